"""Two numbers with targets: the fraction of the FMA peak with many rows, and one step with one row. Run: python -m bench.tile

Peak, sequence and step are measured in turn on one thread of one process, so that the machine's noise meets all of them; medians
over the rounds are printed. The sequence is timed by the thread's processor time, for other processes may interrupt it, and the
peak's short loops leave interruptions out too; its wall time, printed beside it, is the same on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from shapes import Shape

import fastlstm
from bench.machine import peak_fma
from bench.worker import turn

SEQUENCE = Shape(T=8, B=64, I=512, H=512)
STEP = Shape(T=1, B=1, I=128, H=128)
SECONDS = 0.005
FRACTION_TARGET = 0.75  # of the FMA peak
STEP_TARGET = 10e-6  # seconds: what the best rival needs, see NOTES.md


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tile", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    sequence, step = fastlstm.LSTM(SEQUENCE.I, SEQUENCE.H, seed=0), fastlstm.LSTM(STEP.I, STEP.H, seed=0)
    x = rng.standard_normal((SEQUENCE.T, SEQUENCE.B, SEQUENCE.I), np.float32)
    x_t = rng.standard_normal((STEP.T, STEP.B, STEP.I), np.float32)
    h_0, c_0 = (rng.standard_normal((1, STEP.B, STEP.H), np.float32) for _ in range(2))
    fastlstm.set_num_threads(1)
    stream = step.stream()

    found: dict[str, list[float]] = {name: [] for name in ("peak", "processor", "wall", "call", "stream")}
    for _ in range(options.rounds):
        found["peak"].append(peak_fma(1, SECONDS))
        sequence(x)
        wall, processor = time.perf_counter(), time.thread_time()
        sequence(x)
        found["processor"].append(SEQUENCE.flops / (time.thread_time() - processor))
        found["wall"].append(SEQUENCE.flops / (time.perf_counter() - wall))
        found["call"].append(turn(lambda: step(x_t, (h_0, c_0)), SECONDS))
        found["stream"].append(turn(lambda: stream.step(x_t[0]), SECONDS))
    medians = {name: statistics.median(values) for name, values in found.items()}

    print(f"{fastlstm.isa}, one thread, {options.rounds} rounds; FMA peak {medians['peak'] / 1e9:.0f} GFLOP/s")
    fraction, wall = (medians[name] / medians["peak"] for name in ("processor", "wall"))
    report(f"{SEQUENCE}: fraction of the peak", f"{fraction:.1%}", f"at least {FRACTION_TARGET:.0%}", fraction >= FRACTION_TARGET)
    print(f"{'':<27}by wall time {wall:>15.1%}")
    for name, what in (("call", "a call with state"), ("stream", "stream.step")):
        text, target = f"{medians[name] * 1e6:.2f} us", f"at most {STEP_TARGET * 1e6:.0f} us"
        report(f"{STEP}: {what}", text, target, medians[name] <= STEP_TARGET)


def report(what: str, value: str, target: str, met: bool) -> None:
    print(f"{what:<45} {value:>10}   target: {target:<14} {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
