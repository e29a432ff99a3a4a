"""What smaller weights gain: one row in float32, float16, bfloat16 and int8, asked in turn. Run: python -m bench.weights

Medians over the rounds of a stream's step where a shape has one step, else of a call into an array of its own.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
from shapes import Shape

import fastlstm
from bench.worker import turn

SHAPES = [Shape.parse(name) for name in ("t1b1i128h128", "t100b1i256h256", "t50b1i512h512", "t25b1i1024h1024", "t10b1i2048h2048")]
TYPES = ("float32", "float16", "bfloat16", "int8")
SECONDS = 0.02


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.weights", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=fastlstm.get_num_threads())
    parser.add_argument("--shapes", type=Shape.parse, nargs="+", default=SHAPES, help="such as t50b4i512h512")
    options = parser.parse_args(argv)
    fastlstm.set_num_threads(options.threads)

    print(f"{fastlstm.isa}, {options.threads} thread(s), medians of {options.rounds} rounds; float32's time / the smaller type's")
    print("| shape | float32 | " + " | ".join(TYPES[1:]) + " |")
    print("| --- | ---: |" + " ---: |" * len(TYPES[1:]))
    for shape in options.shapes:
        calls = [call_of(shape, weight_dtype) for weight_dtype in TYPES]
        found: list[list[float]] = [[] for _ in calls]
        for _ in range(options.rounds):
            for call, seconds in zip(calls, found, strict=True):
                call()
                seconds.append(turn(call, SECONDS))
        first, *others = map(statistics.median, found)
        gains = " | ".join(f"{first / other:.2f}" for other in others)
        print(f"| `{shape}` | {first * 1e6:.0f} us | {gains} |", flush=True)


def call_of(shape: Shape, weight_dtype: str) -> Callable[[], object]:
    lstm = fastlstm.LSTM(shape.I, shape.H, shape.L, bidirectional=shape.D == 2, proj_size=shape.P, seed=0)
    lstm = lstm.to(weight_dtype=weight_dtype)
    x = np.random.default_rng(0).standard_normal((shape.T, shape.B, shape.I), np.float32)
    if shape.T == 1 and shape.D == 1:
        stream = lstm.stream(shape.B)
        return lambda: stream.step(x[0])
    out = np.empty((shape.T, shape.B, shape.D * shape.recurrent), np.float32)
    return lambda: lstm(x, out=out)


if __name__ == "__main__":
    main()
