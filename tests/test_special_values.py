"""NaN, infinity, huge and subnormal numbers, and the floating-point state of the caller."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, TOLERANCE, Case, assert_close, assert_same_bytes, import_torch, make_case, subnormals_work

import fastlstm
from fastlstm.weights import Weights

NAMES = ("t8b7i9h20", "t6b7i9h20l2p7", "t8b4i5h33d2", "t5b4i9h20l2d2p7", "t7b1i4h70")
VALUES = (np.nan, np.inf, -np.inf)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
values = pytest.mark.parametrize("value", VALUES)
names = pytest.mark.parametrize("name", NAMES)


def assert_same_kind(given: tuple[Any, ...], exact: tuple[Any, ...], dtype: str, what: object = "") -> None:
    """NaN and either infinity where the reference has them, and finite numbers close to it."""
    for name, a, e in zip(("output", "h_n", "c_n"), given, exact, strict=True):
        for kind, test in (("NaN", np.isnan), ("inf", np.isposinf), ("-inf", np.isneginf)):
            wrong = np.argwhere(test(a) != test(e))
            at = tuple(wrong[0]) if len(wrong) else ()
            assert not len(wrong), f"{what}: {name}{wrong[0].tolist()} is {a[at]}, expected {e[at]}: {kind} on one side only"
    finite = tuple(np.where(np.isfinite(e), a, 0) for a, e in zip(given, exact, strict=True))
    assert_close(finite, tuple(np.where(np.isfinite(e), e, 0) for e in exact), TOLERANCE[dtype], what)


def assert_others_unchanged(given: tuple[Any, ...], clean: tuple[Any, ...], row: int, what: object = "") -> None:
    others = [b for b in range(clean[0].shape[1]) if b != row]
    assert_same_bytes(tuple(a[:, others] for a in given), tuple(a[:, others] for a in clean), what)


@values
@dtypes
@names
def test_in_the_input(name: str, dtype: str, value: float) -> None:
    """In its own row, from its own step on: before it, and in the other rows, every bit stays."""
    clean = make_case(name, dtype)
    lstm = clean.network()
    expected = clean.run(lstm)
    s = clean.shape
    for t, row, k in ((0, 0, 0), (s.T - 1, s.B - 1, s.I - 1), (2, s.B // 2, slice(None)), (3, 0, slice(1, 3))):
        x = clean.x.copy()
        x[t, row, k] = value
        case = replace(clean, x=x)
        result = case.run(lstm)
        what = f"x[{t}, {row}, {k}] = {value}"
        assert_same_kind(result, case.expected(), dtype, what)
        assert_others_unchanged(result, expected, row, what)
        if s.D == 1:
            assert result[0][:t].tobytes() == expected[0][:t].tobytes(), what
        elif s.L == 1:
            P = s.recurrent
            assert result[0][:t, :, :P].tobytes() == expected[0][:t, :, :P].tobytes(), what
            assert result[0][t + 1 :, :, P:].tobytes() == expected[0][t + 1 :, :, P:].tobytes(), what


@values
@dtypes
@names
def test_in_the_states(name: str, dtype: str, value: float) -> None:
    clean = make_case(name, dtype)
    lstm = clean.network()
    expected = clean.run(lstm)
    s = clean.shape
    for n in (0, 1):
        for record in range(s.L * s.D):
            for row, k in ((0, 0), (s.B - 1, -1), (s.B // 2, slice(None))):
                state = (clean.state[0].copy(), clean.state[1].copy())
                state[n][record, row, k] = value
                case = replace(clean, state=state)
                what = f"{('h_0', 'c_0')[n]}[{record}, {row}, {k}] = {value}"
                result = case.run(lstm)
                assert_same_kind(result, case.expected(), dtype, what)
                assert_others_unchanged(result, expected, row, what)


@values
@dtypes
@names
def test_in_the_weights(name: str, dtype: str, value: float) -> None:
    clean = make_case(name, dtype)
    for tensor, _ in clean.weights.named_tensors():
        for place in (0, -1, 7):
            tensors = {n: a.copy() for n, a in clean.weights.named_tensors()}
            tensors[tensor].reshape(-1)[place] = value
            case = replace(clean, weights=Weights.from_named_tensors(tensors))
            assert_same_kind(case.run(), case.expected(), dtype, f"{tensor}[{place}] = {value}")


@dtypes
def test_nan_is_never_a_plausible_number(dtype: str) -> None:
    """NaN in any one weight of a gate reaches the unit of that gate in the first step and every unit in the second."""
    case = make_case("t2b3i4h20", dtype)
    for gate in range(4):
        tensors = {n: a.copy() for n, a in case.weights.named_tensors()}
        tensors["weight_ih_l0"][gate * 20 + 11, 2] = np.nan
        output, _, _ = replace(case, weights=Weights.from_named_tensors(tensors)).run()
        assert np.isnan(output[0]).tolist() == [[unit == 11 for unit in range(20)]] * 3
        assert np.isnan(output[1]).all()


@dtypes
def test_an_infinite_cell_behind_gates(dtype: str) -> None:
    """Infinity times an open gate stays, times a gate that is exactly 0 is NaN."""
    clean = make_case("t3b3i4h20", dtype)
    tensors = {n: np.abs(a) for n, a in clean.weights.named_tensors()}
    x, (h, c) = clean.x.copy(), (clean.state[0].copy(), clean.state[1].copy())
    x[0, 0], x[0, 1] = np.inf, -np.inf
    c[0, :2, ::2], c[0, :2, 1::2] = np.inf, -np.inf
    case = Case(clean.shape, Weights.from_named_tensors(tensors), x, (h, c))
    assert np.isnan(case.expected()[0][:, 1]).all()
    assert_same_kind(case.run(), case.expected(), dtype)


@dtypes
@pytest.mark.parametrize("name", ["t6b5i1h20", "t6b7i1h33d2", "t4b1i1h70"])
def test_saturated_gates(name: str, dtype: str) -> None:
    """Gates driven to exactly 0 and 1 by inputs up to the end of the range: exact as ever, no overflow on the way."""
    clean = make_case(name, dtype)
    tensors = {n: np.copysign(np.maximum(np.abs(a), 0.05), a).astype(dtype) for n, a in clean.weights.named_tensors()}
    signs = np.sign(clean.x)
    for factor in (1e3, 2e3, 1e5, 1e10, 1e30, float(np.finfo(dtype).max) / 4):
        case = replace(clean, weights=Weights.from_named_tensors(tensors), x=(signs * factor).astype(dtype))
        assert_close(case.run(), case.expected(), TOLERANCE[dtype], f"x = +-{factor:.3g}")


@dtypes
@pytest.mark.parametrize("name", ["t2b5i6h20", "t2b7i9h33d2", "t2b5i6h20p5"])
def test_huge_cell_states(name: str, dtype: str) -> None:
    """Up to the largest number there is: nothing overflows that is finite in the equations."""
    clean = make_case(name, dtype)
    for factor in (1e2, 1e10, 1e30, float(np.finfo(dtype).max) / 4, float(np.finfo(dtype).max)):
        c = (np.sign(clean.state[1]) * np.random.default_rng(1).uniform(0.5, 1, clean.state[1].shape) * factor).astype(dtype)
        case = replace(clean, state=(clean.state[0], c))
        output, h_n, c_n = case.run()
        exact = case.expected()
        assert_close((output, h_n, c_n / factor), (*exact[:2], exact[2] / factor), 2 * TOLERANCE[dtype], f"c_0 of {factor:.3g}")


@dtypes
@names
def test_subnormal_numbers(name: str, dtype: str) -> None:
    """Taken as they are or as zeros: no result can tell, beyond the tolerance."""
    clean = make_case(name, dtype)
    tiny = float(np.finfo(dtype).tiny) / 16
    tensors = {n: a.copy() for n, a in clean.weights.named_tensors()}
    for a in tensors.values():
        a.reshape(-1)[::3] = tiny
    weights = Weights.from_named_tensors(tensors)
    x, state = clean.x.copy(), (clean.state[0].copy(), clean.state[1].copy())
    x[::2], state[0][..., ::2], state[1][..., 1::2] = tiny, -tiny, tiny
    for case in (replace(clean, weights=weights), replace(clean, weights=weights, x=x, state=state)):
        assert_close(case.run(), case.expected(), TOLERANCE[dtype])


# ---- The caller's floating-point state -----------------------------------------------------------------------------------------


def run_all_ways(case: Case) -> list[Any]:
    """A call on one thread, one on several, a stream, and one that raises."""
    lstm = case.network()
    results = [case.run(lstm, threads=1), case.run(lstm, threads=4)]
    stream = lstm.stream(batch_size=case.shape.B)
    results.append((np.stack([stream.step(x) for x in case.x]), *stream.state))
    with pytest.raises(ValueError, match="x"):
        lstm(case.x[..., 1:])
    return results


def test_subnormals_still_work_after_a_call() -> None:
    assert subnormals_work()
    run_all_ways(make_case("t60b3i16h160"))
    assert subnormals_work()
    found: list[bool] = []

    def elsewhere() -> None:
        run_all_ways(make_case("t60b3i16h160"))
        found.append(subnormals_work())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [True]


def test_a_caller_that_flushes_subnormals() -> None:
    """PyTorch can set the flags for its thread: the results stay the same bits, and the flags stay set."""
    torch = import_torch()
    case = make_case("t60b3i16h160")
    expected = run_all_ways(case)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        given = run_all_ways(case)
        flushes = not subnormals_work()
    finally:
        torch.set_flush_denormal(False)
    assert flushes
    for a, b in zip(given, expected, strict=True):
        assert_same_bytes(a, b)


ROUNDING = {"x86_64": (0x400, 0x800, 0xC00), "aarch64": (0x800000, 0x400000, 0xC00000), "arm64": (0x800000, 0x400000, 0xC00000)}


@contextmanager
def rounding(mode: int) -> Iterator[Any]:
    """C's fesetround() for this thread; nearest again at the end."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    assert libm.fesetround(mode) == 0
    try:
        yield libm
    finally:
        libm.fesetround(0)


@pytest.mark.skipif(platform.machine() not in ROUNDING, reason="the values of FE_UPWARD and so on are not known here")
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("direction", range(3), ids=["down", "up", "to zero"])
def test_a_caller_that_rounds_otherwise(direction: int, threads: int) -> None:
    """The results stay the same bits, and so does the caller's rounding."""
    case = make_case("t60b3i16h160")
    lstm = case.network()
    expected = case.run(lstm, threads=threads)
    mode = ROUNDING[platform.machine()][direction]
    with rounding(mode) as libm:
        result = case.run(lstm, threads=threads)
        after = libm.fegetround()
    assert after == mode
    assert_same_bytes(result, expected)


@pytest.mark.skipif(platform.machine() not in ROUNDING, reason="the values of FE_UPWARD and so on are not known here")
def test_a_network_made_by_a_caller_that_rounds_otherwise() -> None:
    """The two biases are added when the network is made: rounded to nearest then too."""
    case = make_case("t5b3i16h160")
    with rounding(ROUNDING[platform.machine()][0]):
        lstm = case.network()
    assert_same_bytes(case.run(lstm), case.run())


@dtypes
@pytest.mark.parametrize("kind", [fastlstm.LSTM, fastlstm.RNN])
def test_the_sign_of_zero(kind: type[Any], dtype: str) -> None:
    """tanh(+0) is +0, as in NumPy."""
    network = kind(3, 20, bidirectional=True, seed=0, dtype=dtype)
    network.load_state_dict({name: np.zeros_like(tensor) for name, tensor in network.state_dict().items()})
    output, state = network(np.zeros((4, 7, 3), dtype))
    for array in (output, *(state if isinstance(state, tuple) else (state,))):
        assert array.tobytes() == bytes(array.nbytes)
