"""What takes how long, in proportion: medians of interleaved runs, a few attempts, processor time where that tells enough."""

from __future__ import annotations

import statistics
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers import make_case, median_seconds, need_a_calm_machine, python_command, python_environment, run_python, settle

from fastlstm.weights import Weights

pytestmark = pytest.mark.timing


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["t100b64i64h128", "t60b48i96h160l2d2", "t80b96i32h64p40"])
def test_only_tokens_cost(name: str, threads: int) -> None:
    """With half of the steps padding, a call takes half the time."""
    if threads > 1:
        need_a_calm_machine()
    case = make_case(name)
    T, B = case.shape.T, case.shape.B
    lengths = np.random.default_rng(0).permutation(np.linspace(0, T, B).round().astype(int))
    share = lengths.sum() / (T * B)
    assert 0.45 < share < 0.55
    ragged = replace(case, lengths=lengths)
    lstm = case.network()
    clock = time.thread_time if threads == 1 else time.perf_counter

    def measure() -> float:
        calls = lambda: case.run(lstm, threads=threads), lambda: ragged.run(lstm, threads=threads)
        whole, part = median_seconds(calls, rounds=25, clock=clock)
        return part / whole / float(share)

    settle(measure, 1.15, "time of a real token over that of any token without lengths")


def test_resets_cost_nothing() -> None:
    case = make_case("t100b16i64h128", resets=True)
    plain = replace(case, resets=None)
    lstm = case.network()

    def measure() -> float:
        without, with_resets = median_seconds((lambda: plain.run(lstm, threads=1), lambda: case.run(lstm, threads=1)))
        return with_resets / without

    settle(measure, 1.15, "time with resets over that without")


@pytest.mark.parametrize("where", ["input", "weights", "state", "everything"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_numbers_cost_nothing(dtype: str, where: str) -> None:
    """60 to 115 times slower elsewhere."""
    case = make_case("t100b4i64h96", dtype)
    tiny = np.finfo(dtype).tiny
    usual = case.network()

    def small(a: np.ndarray) -> np.ndarray:
        return (np.sign(a) * (tiny / 1000)).astype(dtype)

    tensors = {name: a.copy() for name, a in case.weights.named_tensors()}
    if where in ("weights", "everything"):
        tensors["weight_ih_l0"], tensors["weight_hh_l0"] = small(tensors["weight_ih_l0"]), small(tensors["weight_hh_l0"])
    if where in ("state", "everything"):  # gates of 1e-20 and less: the cell and its output are subnormal in every step
        tensors["bias_ih_l0"][:] = np.log(tiny) / 2 - 2
        tensors["bias_hh_l0"][:] = 0
    state = (small(case.state[0]), small(case.state[1])) if where in ("state", "everything") else case.state
    x = small(case.x) if where in ("input", "everything") else case.x
    subnormal = replace(case, weights=Weights.from_named_tensors(tensors), x=x, state=state)
    lstm = subnormal.network()

    def measure() -> float:
        without, with_subnormals = median_seconds((lambda: case.run(usual, threads=1), lambda: subnormal.run(lstm, threads=1)))
        return with_subnormals / without

    settle(measure, 3, "time with subnormal numbers over that without")


def test_import() -> None:
    """NumPy's import and little more."""
    code = """
import time
import numpy
begin = time.process_time()
import fastlstm
print(time.process_time() - begin)
"""

    def measure() -> float:
        compiled = {"PYTHONDONTWRITEBYTECODE": None}  # as an installed package is
        return statistics.median(float(run_python(code, **compiled).stdout) for _ in range(5))

    settle(measure, 0.030, "seconds to import fastlstm after NumPy")


def test_import_brings_no_framework() -> None:
    code = "import sys, fastlstm; print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    found = set(run_python(code).stdout.split())
    heavy = {
        "torch",
        "tensorflow",
        "jax",
        "keras",
        "onnx",
        "onnxruntime",
        "scipy",
        "pandas",
        "matplotlib",
        "h5py",
        "tqdm",
        "safetensors",
    }
    assert not found & heavy


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("t500b16i64h256", 40),  # long enough that the scheduler's slices of some milliseconds do not decide
        ("t1b16i100h1024", 1500),  # a slice is ten times as long as the call
        ("t100b1i128h128", 4000),
    ],
)
def test_a_busy_neighbour_slows_in_proportion(name: str, calls: int) -> None:
    """With one other process computing, the slowest calls take at most three times as long as usual."""
    need_a_calm_machine()
    case = make_case(name)
    lstm = case.network()

    def seconds(n: int) -> list[float]:
        times = []
        for _ in range(n):
            begin = time.perf_counter()
            case.run(lstm, threads=2)
            times.append(time.perf_counter() - begin)
        return sorted(times)

    def measure() -> float:
        alone = seconds(calls)[calls // 2]
        neighbour = subprocess.Popen(python_command("while True: pass"), env=python_environment())
        try:
            time.sleep(0.2)
            return seconds(calls)[calls * 95 // 100] / alone
        finally:
            neighbour.kill()
            neighbour.wait()

    settle(measure, 3, "95th percentile beside a busy process over the median alone")
