"""The engine's numbers: against the reference on every edge, and against PyTorch on networks drawn at random."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, TOLERANCE, assert_close, assert_same_bytes, flat, make_case, torch_forward
from shapes import DEEPBENCH, EDGE, REAL_USES, Shape

import fastlstm

KINDS: dict[str, dict[str, bool]] = {
    "plain": {},
    "no bias": {"bias": False},
    "lengths": {"lengths": True},
    "resets": {"resets": True},
    "lengths and resets": {"lengths": True, "resets": True},
}
SIZES = {str(size): size for shape in (*REAL_USES, *DEEPBENCH) if (size := shape.at_most(3, 7)).parameters < 10e6}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", EDGE, ids=str)
def test_edges(shape: Shape, dtype: str, kind: str) -> None:
    case = make_case(shape, dtype, **KINDS[kind])
    result = case.run()
    assert all(a.dtype == dtype for a in result)
    assert_close(result, case.expected(), TOLERANCE[dtype], shape.reason)
    if case.lengths is not None:
        padding = np.arange(shape.T)[:, None] >= case.lengths
        assert not result[0][padding].any()
        for state, given in zip(case.state, result[1:], strict=True):  # length 0: the initial state, bit by bit
            assert state[:, case.lengths == 0].tobytes() == given[:, case.lengths == 0].tobytes()


@pytest.mark.parametrize("shape", SIZES.values(), ids=str)
def test_sizes_of_real_networks(shape: Shape) -> None:
    case = make_case(shape, lengths=shape.T > 1)
    assert_close(case.run(), case.expected(), TOLERANCE["float32"], shape.reason)


@pytest.mark.parametrize("seed", range(300))
def test_random_networks_against_torch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    H = int(rng.integers(1, 70))
    shape = Shape(
        T=int(rng.integers(1, 20)),
        B=int(rng.integers(1, 15)),
        I=int(rng.integers(1, 70)),
        H=H,
        L=int(rng.integers(1, 4)),
        D=int(rng.integers(1, 3)),
        P=int(rng.integers(1, H)) if H > 1 and rng.random() < 0.4 else 0,
    )
    dtype = DTYPES[seed % 2]
    case = make_case(shape, dtype, bias=bool(rng.random() < 0.7), lengths=bool(rng.random() < 0.5), seed=seed)
    if case.lengths is not None:
        np.maximum(case.lengths, 1, out=case.lengths)
    assert_close(case.run(), torch_forward(case), TOLERANCE[dtype], shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["t6b5i3h4", "t5b4i9h20l2d2p7"])
def test_without_a_state_it_is_zero(name: str, dtype: str) -> None:
    case = make_case(name, dtype, lengths=True)
    zeros = np.zeros_like(case.state[0]), np.zeros_like(case.state[1])
    lstm = case.network()
    assert_same_bytes(flat(lstm(case.x, lengths=case.lengths)), flat(lstm(case.x, zeros, lengths=case.lengths)))


@pytest.mark.parametrize("T", [0, 1, 7])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("name", ["t7b1i3h4", "t7b1i9h20l2d2p7"])
def test_unbatched(name: str, resets: bool, T: int) -> None:
    """``(T, I)`` is a batch of one row without its axis."""
    case = make_case(name, resets=resets).steps(0, T, make_case(name).state)
    h, c = case.state
    batched = case.run()
    lstm = case.network()
    one = flat(lstm(case.x[:, 0], (h[:, 0], c[:, 0]), resets=None if case.resets is None else case.resets[:, 0]))
    assert_same_bytes(one, tuple(a[:, 0] for a in batched))
    first = fastlstm.LSTM.from_weights(case.weights, batch_first=True)
    assert_same_bytes(
        flat(first(case.x[:, 0], (h[:, 0], c[:, 0]), resets=None if case.resets is None else case.resets[:, 0])), one
    )


@pytest.mark.parametrize("name", ["t7b4i3h5", "t5b4i9h20l2d2p7", "t0b3i4h5", "t3b0i4h5"])
def test_batch_first(name: str) -> None:
    """The input and the output are batch-first, states and resets are not."""
    case = make_case(name, lengths=True, resets=True)
    expected = case.run()
    lstm = fastlstm.LSTM.from_weights(case.weights, batch_first=True)
    for x in (case.x.swapaxes(0, 1), np.ascontiguousarray(case.x.swapaxes(0, 1))):
        output, h_n, c_n = flat(lstm(x, case.state, lengths=case.lengths, resets=case.resets))
        assert_same_bytes((output.swapaxes(0, 1), h_n, c_n), expected)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["t7b4i3h5", "t5b6i9h20l2d2p7", "t0b3i4h5", "t3b0i4h5"])
def test_out(name: str, batch_first: bool) -> None:
    """The result goes into the buffer given, all of it: what was there before is gone in the padding too."""
    case = make_case(name, lengths=True, resets=True)
    expected = case.run()
    lstm = fastlstm.LSTM.from_weights(case.weights, batch_first=True) if batch_first else case.network()
    x = case.x.swapaxes(0, 1) if batch_first else case.x
    shape = expected[0].swapaxes(0, 1).shape if batch_first else expected[0].shape
    buffer = np.full(shape, np.nan, np.float32)
    output, state = lstm(x, case.state, lengths=case.lengths, resets=case.resets, out=buffer)
    assert output is buffer
    assert_same_bytes((buffer.swapaxes(0, 1) if batch_first else buffer, *state), expected)


def test_out_unbatched() -> None:
    case = make_case("t7b1i3h5d2")
    buffer = np.full((7, 10), np.nan, np.float32)
    output, _ = case.network()(case.x[:, 0], (case.state[0][:, 0], case.state[1][:, 0]), out=buffer)
    assert output is buffer
    assert buffer.tobytes() == case.run()[0].tobytes()


@pytest.mark.parametrize("kind", [list, tuple, *(np.dtype(f"{sign}{size}") for sign in "iu" for size in (1, 2, 4, 8))], ids=str)
def test_lengths_of_any_integer_type(kind: Any) -> None:
    case = make_case("t9b7i3h5l2d2", lengths=True)
    assert case.lengths is not None
    lengths = kind(case.lengths.tolist()) if isinstance(kind, type) else case.lengths.astype(kind)
    result = flat(case.network()(case.x, case.state, lengths=lengths))
    assert_close(result, case.expected(), TOLERANCE["float32"])


@pytest.mark.parametrize("batch_first", [False, True])
def test_any_number_of_steps_of_no_row(batch_first: bool) -> None:
    """Nothing is done at any of them, or this would take hours."""
    lstm = fastlstm.LSTM(5, 7, num_layers=2, batch_first=batch_first)
    shape = (0, 1 << 40) if batch_first else (1 << 40, 0)
    output, (h_n, c_n) = lstm(np.broadcast_to(np.float32(0), (*shape, 5)), lengths=[])
    assert output.shape == (*shape, 7)
    assert h_n.shape == c_n.shape == (2, 0, 7)


def test_results_are_new_arrays() -> None:
    """Neither the initial state nor an earlier result changes when a later result is written to."""
    case = make_case("t4b3i3h5", lengths=True)
    lstm = case.network()
    first = case.run(lstm)
    kept = [a.copy() for a in first]
    second = case.run(lstm)
    before = [s.tobytes() for s in case.state]
    for a in second:
        assert a.flags.writeable
        assert a.flags.c_contiguous
        a[...] = 9
    assert_same_bytes(first, tuple(kept))
    assert [s.tobytes() for s in case.state] == before


def test_more_elements_than_32_bits_count() -> None:
    """Pre-activations past 2^31 and an output past 2^31 bytes: rows at both ends are those rows alone."""
    B, H = 1024, 16
    T = math.ceil((2**31 + 1) / (B * 4 * H))
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 4 << 30:
        pytest.skip("needs 4 GiB of memory")
    lstm = make_case(Shape(T, 1, 1, H)).network()
    x = np.random.default_rng(0).standard_normal((T, B, 1), np.float32)
    output, (h_n, c_n) = lstm(x)
    assert output.nbytes > 2**31
    for row in (0, 1, B // 2, B - 1):
        assert_same_bytes((output[:, [row]], h_n[:, [row]], c_n[:, [row]]), flat(lstm(x[:, [row]])), f"row {row}")
