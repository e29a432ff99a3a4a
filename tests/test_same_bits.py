"""The same bits, however the work is cut. Everything here compares bytes."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import (
    DTYPES,
    TOLERANCE,
    Case,
    assert_close,
    assert_same_bytes,
    assert_same_on_every_fused,
    flat,
    import_torch,
    make_case,
    results_by_isa,
)
from layouts import LAYOUTS
from shapes import EDGE, Shape

import fastlstm
from fastlstm import _engine

# The schedule divides these differently: hidden units (one or few rows), rows, directions, layers, several of these; layers in
# strides, products for a chunk of steps (most) or step by step (very many rows).
DIVIDED = (
    "t12b1i24h200",
    "t9b2i20h150p70",
    "t9b13i20h48l2",
    "t7b5i33h65d2",
    "t6b7i20h70l2d2p33",
    "t15b61i16h40",
    "t40b3i16h64l3",
    "t100b4i1h30l2p11",
    "t200b1i8h96l2d2",
    "t10b8i20h200",
    "t10b8i20h200l2d2",
    "t10b13i21h150p40",
    "t4b210i11h40",
    "t30b1i20h100l2",
)
THREADS = (2, 3, 4, 6, 7, 8)
CUT = ("t12b1i24h200", "t23b3i5h17", "t40b3i16h64l3", "t90b7i5h9l2p4", "t65b2i3h40p39", "t19b13i9h9")  # one direction only


def named(names: tuple[str, ...]) -> Any:
    return pytest.mark.parametrize("name", names)


dtypes = pytest.mark.parametrize("dtype", DTYPES)


def test_the_shapes_meet_every_division() -> None:
    """Else the tests below would compare one way of working with itself."""
    plans = [make_case(name).network().plan(s.T, s.B, n) for name in DIVIDED for s in [Shape.parse(name)] for n in (1, *THREADS)]
    for part in ("layer_groups", "directions", "row_groups", "unit_groups"):
        assert any(plan[part] > 1 for plan in plans), part
    for one, other in itertools.combinations(("layer_groups", "directions", "row_groups", "unit_groups"), 2):
        if (one, other) != ("layer_groups", "directions"):  # never both
            assert any(plan[one] > 1 and plan[other] > 1 for plan in plans), f"{one} and {other}"
    assert any(plan["chunk"] > 1 for plan in plans)
    assert any(plan["chunk"] == 0 for plan in plans)
    assert any(plan["stride"] < Shape.parse(name).T for name in CUT for plan in [make_case(name).network().plan(40, 3, 1)])
    assert all(Shape.parse(name).D == 1 for name in CUT)


@dtypes
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@named(DIVIDED)
def test_threads(name: str, ragged: bool, dtype: str) -> None:
    case = make_case(name, dtype, lengths=ragged, resets=ragged)
    lstm = case.network()
    one = case.run(lstm, threads=1)
    assert_close(one, case.expected(), TOLERANCE[dtype])
    for threads in (*THREADS, None):
        assert_same_bytes(case.run(lstm, threads=threads), one, f"{threads} threads")


def test_threads_with_much_work() -> None:
    """Long enough that several threads are really used, one row and many."""
    for name in ("t60b1i64h512", "t20b64i64h128", "t40b8i32h96l2d2", "t60b4i32h256l2p128"):
        case = make_case(name, lengths=True, resets=True)
        if case.shape.B == 1:
            case = make_case(name)
        lstm = case.network()
        one = case.run(lstm, threads=1)
        for threads in THREADS:
            assert_same_bytes(case.run(lstm, threads=threads), one, f"{name}, {threads} threads")


def test_set_num_threads() -> None:
    case = make_case("t60b9i32h160")
    lstm = case.network()
    one = case.run(lstm, threads=1)
    before = fastlstm.get_num_threads()
    try:
        for threads in (1, 2, 3, 5):
            fastlstm.set_num_threads(threads)
            assert fastlstm.get_num_threads() == threads
            assert_same_bytes(case.run(lstm), one, threads)
    finally:
        fastlstm.set_num_threads(before)


@dtypes
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@named((*DIVIDED, "t5b13i8h9", "t4b20i6h31d2"))
def test_rows_alone_and_together(name: str, ragged: bool, dtype: str) -> None:
    """Each row alone, in pairs, in another order, several times over: its bits stay."""
    case = make_case(name, dtype, lengths=ragged, resets=ragged)
    lstm = case.network()
    whole = case.run(lstm)
    B = case.shape.B
    rng = np.random.default_rng(3)
    choices = [np.array([row]) for row in range(min(B, 13))]
    choices += [rng.permutation(B), np.arange(B)[::-1], rng.integers(0, B, 2 * B + 1), rng.integers(0, B, 6), np.arange(0, B, 3)]
    for rows in choices:
        expected = tuple(a[:, rows] for a in whole)
        assert_same_bytes(case.rows(rows).run(lstm), expected, f"rows {rows.tolist()}")


@dtypes
@named(("t9b13i20h48l2", "t7b5i33h65d2", "t6b7i20h70l2d2p33"))
def test_place_in_the_batch(name: str, dtype: str) -> None:
    """One row at every place among others, which are NaN in one go."""
    case = make_case(name, dtype)
    lstm = case.network()
    alone = case.rows(np.array([0])).run(lstm)
    for place in range(case.shape.B):
        order = np.arange(case.shape.B)
        order[0], order[place] = order[place], order[0]
        moved = case.rows(order)
        assert_same_bytes(tuple(a[:, place : place + 1] for a in moved.run(lstm)), alone, f"place {place}")
        moved.x[:, np.arange(case.shape.B) != place] = np.nan
        assert_same_bytes(tuple(a[:, place : place + 1] for a in moved.run(lstm)), alone, f"place {place} among NaN")


@dtypes
@pytest.mark.parametrize("resets", [False, True])
@named(CUT)
def test_cuts_in_time(name: str, resets: bool, dtype: str) -> None:
    """Cut at random places, the state carried on."""
    case = make_case(name, dtype, resets=resets)
    lstm = case.network()
    whole = case.run(lstm)
    T = case.shape.T
    rng = np.random.default_rng(4)
    for cuts in (*(np.sort(rng.integers(0, T + 1, n)) for n in (1, 1, 2, 3, 5)), np.arange(1, T)):
        outputs, state = [], case.state
        for begin, end in zip([0, *cuts], [*cuts, T], strict=True):
            output, state = lstm(*((piece := case.steps(begin, end, state)).x, piece.state), resets=piece.resets)
            outputs.append(output)
        assert_same_bytes((np.concatenate(outputs), *state), whole, f"cut at {cuts.tolist()}")


@dtypes
@named(CUT)
def test_stream(name: str, dtype: str) -> None:
    """Step by step through a stream, from zeros."""
    case = make_case(name, dtype)
    lstm = case.network()
    output, state = lstm(case.x)
    stream = lstm.stream(batch_size=case.shape.B)
    steps = [stream.step(x_t) for x_t in case.x]
    assert_same_bytes((np.stack(steps), *stream.state), (output, *state))
    if case.shape.B == 1:
        stream.reset()
        steps = [stream.step(x_t) for x_t in case.x[:, 0]]
        assert_same_bytes((np.stack(steps)[:, None], *stream.state), (output, *state))


@dtypes
@named(("t1b1i24h200", "t1b6i9h20l2d2", "t1b11i7h33l2p5", "t1b13i1h1"))
def test_one_step(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step from a state has a way of its own, unless something about it is unusual."""
    case = make_case(name, dtype)
    B = case.shape.B
    x, (h, c) = case.x, case.state
    lstm, first = case.network(), fastlstm.LSTM.from_weights(case.weights, batch_first=True)
    expected = flat(lstm(x, (h, c), lengths=[1] * B))
    results = []

    def seen(*arguments: Any) -> Any:
        results.append(_engine.step(*arguments))
        return results[-1]

    monkeypatch.setattr(fastlstm.lstm, "_engine", SimpleNamespace(step=seen))
    assert_same_bytes(flat(lstm(x, (h, c))), expected)
    assert_same_bytes(flat(lstm(x, (h, c), threads=3)), expected, "three threads")
    output, state = first(x.swapaxes(0, 1).copy(), (h, c))
    assert output.shape == (B, 1, expected[0].shape[-1])
    assert_same_bytes((output.swapaxes(0, 1), *state), expected, "batch_first")
    single = flat(lstm(x[:, 0].copy(), (h[:, 0].copy(), c[:, 0].copy())))
    assert_same_bytes([part[:, None] for part in single], [part[:, :1] for part in expected], "one sequence")
    assert len(results) == 4
    assert None not in results
    assert not any(np.shares_memory(a, b) for result in results for a in flat(result) for b in (x, h, c))
    results.clear()
    for change in LAYOUTS.values():
        assert_same_bytes(flat(lstm(change(x), (change(h), change(c)))), expected)
    assert results
    results.clear()
    for state in ((h[:, :0], c[:, :0]), (h, c[..., :-1]), (h[None], c), (h, c, c), (h,), (h.astype(np.float16), c)):
        with pytest.raises((ValueError, TypeError)):
            lstm(x, state)
    for wrong in (x[..., :-1], x.astype(np.float16), x[0, 0], x[None]):
        with pytest.raises((ValueError, TypeError)):
            lstm(wrong, (h, c))
    assert results == [None] * 10


@dtypes
@named(("t12b6i9h20", "t15b11i7h33l2p5", "t9b7i5h16l2d2", "t30b4i3h40l3d2p9"))
def test_lengths_are_rows_alone(name: str, dtype: str) -> None:
    """A row in a ragged batch is that row alone without its padding; what the padding holds does not matter."""
    case = make_case(name, dtype, lengths=True)
    assert case.lengths is not None
    lstm = case.network()
    output, h_n, c_n = case.run(lstm)
    for row, length in enumerate(case.lengths):
        alone = flat(lstm(case.x[:length, [row]], tuple(s[:, [row]] for s in case.state)))
        assert_same_bytes((output[:length, [row]], h_n[:, [row]], c_n[:, [row]]), alone, f"row {row} of length {length}")
        assert not output[length:, row].any()
    padding = np.arange(case.shape.T)[:, None] >= case.lengths
    case.x[padding] = np.nan
    result = flat(lstm(case.x, case.state, lengths=case.lengths, resets=padding))
    assert_same_bytes(result, (output, h_n, c_n), "NaN and resets in the padding")
    full = np.full(case.shape.B, case.shape.T)
    plain = make_case(name, dtype)
    assert_same_bytes(flat(lstm(plain.x, plain.state, lengths=full)), plain.run(lstm), "all lengths T")


@dtypes
@named(CUT)
def test_resets_are_pieces(name: str, dtype: str) -> None:
    """A row with resets is its pieces alone, each but the first from zeros."""
    case = make_case(name, dtype, resets=True)
    assert case.resets is not None
    case.resets[0, 0] = True
    lstm = case.network()
    output, h_n, c_n = case.run(lstm)
    for row in range(case.shape.B):
        state: Any = tuple(s[:, [row]] for s in case.state)
        begins = [0, *(t for t in range(1, case.shape.T) if case.resets[t, row])]
        for begin, end in zip(begins, [*begins[1:], case.shape.T], strict=True):
            result, last = lstm(case.x[begin:end, [row]], None if case.resets[begin, row] else state)
            assert output[begin:end, [row]].tobytes() == result.tobytes(), f"row {row}, steps {begin} to {end}"
        assert_same_bytes((result, h_n[:, [row]], c_n[:, [row]]), (result, *last), f"final state of row {row}")
    assert_same_bytes(
        flat(lstm(case.x, case.state, resets=np.zeros_like(case.resets))), make_case(name, dtype).run(lstm), "no resets"
    )


@dtypes
def test_resets_in_both_directions_are_pieces(dtype: str) -> None:
    """One layer: the reverse direction of each piece but the last begins from zeros."""
    case = make_case("t30b4i5h18d2p7", dtype, resets=True)
    assert case.resets is not None
    lstm = case.network()
    output, h_n, c_n = case.run(lstm)
    T = case.shape.T
    for row in range(case.shape.B):
        begins = [0, *(t for t in range(1, T) if case.resets[t, row])]
        for begin, end in zip(begins, [*begins[1:], T], strict=True):
            h, c = (s[:, [row]].copy() for s in case.state)
            if begin > 0 or case.resets[0, row]:
                h[0], c[0] = 0, 0
            if end < T:
                h[1], c[1] = 0, 0
            result, last = lstm(case.x[begin:end, [row]], (h, c))
            assert output[begin:end, [row]].tobytes() == result.tobytes(), f"row {row}, steps {begin} to {end}"
            for n, final in enumerate((h_n, c_n)):
                if end == T:
                    assert final[0, row].tobytes() == last[n][0].tobytes()
                if begin == 0:
                    assert final[1, row].tobytes() == last[n][1].tobytes()


@dtypes
def test_repeated_runs_whatever_ran_between(dtype: str) -> None:
    cases = [make_case(name, dtype, lengths=True, resets=True) for name in DIVIDED]
    networks = [case.network() for case in cases]
    first = [case.run(lstm) for case, lstm in zip(cases, networks, strict=True)]
    rng = np.random.default_rng(6)
    for n in rng.integers(0, len(cases), 60):
        assert_same_bytes(cases[n].run(networks[n]), first[n], DIVIDED[n])
    for case, expected in zip(cases, first, strict=True):
        assert_same_bytes(case.run(), expected, "a network made anew")


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs(layout: str, dtype: str) -> None:
    """Input, states, lengths and resets in any layout: the same bits, and nothing written to them."""
    case = make_case("t9b6i11h20l2d2p7", dtype, lengths=True, resets=True)
    lstm = case.network()
    expected = case.run(lstm)
    change = LAYOUTS[layout]
    assert case.lengths is not None
    assert case.resets is not None
    h, c = case.state
    x, h, c, resets = change(case.x), change(h), change(c), change(case.resets)
    lengths = case.lengths if layout == "axes swapped" else change(case.lengths)
    assert_same_bytes(flat(lstm(x, (h, c), lengths=lengths, resets=resets)), expected)
    for given, original in zip((x, h, c, lengths, resets), (case.x, *case.state, case.lengths, case.resets), strict=True):
        assert np.array_equal(getattr(given, "a", given), original)
    first = fastlstm.LSTM.from_weights(case.weights, batch_first=True)
    output, state = first(change(np.ascontiguousarray(case.x.swapaxes(0, 1))), (h, c), lengths=lengths, resets=resets)
    assert_same_bytes((output.swapaxes(0, 1), *state), expected, "batch_first")


def test_memory_maps(tmp_path: Path) -> None:
    case = make_case("t9b6i11h20l2")
    np.save(tmp_path / "x.npy", case.x)
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    lstm = case.network()
    assert_same_bytes(flat(lstm(x, case.state)), case.run(lstm))
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float32, (9, 6, 20))
    lstm(x, case.state, out=out)
    out.flush()
    assert np.load(tmp_path / "out.npy").tobytes() == case.run(lstm)[0].tobytes()


def test_zero_strides() -> None:
    """One row, one step and one number seen many times."""
    case = make_case("t9b6i11h20")
    lstm = case.network()
    for part in (case.x[:1], case.x[:, :1], case.x[:, :, :1], case.x[:1, :1, :1]):
        x = np.broadcast_to(part, case.x.shape)
        state = tuple(np.broadcast_to(s[:, :1], s.shape) for s in case.state)
        resets = np.broadcast_to(np.arange(9)[:, None] == 4, (9, 6))
        expected = flat(lstm(x.copy(), tuple(s.copy() for s in state), resets=resets.copy()))
        assert_same_bytes(flat(lstm(x, state, resets=resets)), expected)


def test_tensors() -> None:
    torch = import_torch()
    case = make_case("t9b6i11h20", lengths=True, resets=True)
    lstm = case.network()
    x, h, c, lengths, resets = (torch.from_numpy(a) for a in (case.x, *case.state, case.lengths, case.resets))
    assert_same_bytes(flat(lstm(x, (h, c), lengths=lengths, resets=resets)), case.run(lstm))
    x, h, c = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, h, c))
    assert_same_bytes(flat(lstm(x, (h, c), lengths=lengths, resets=resets)), case.run(lstm))


OUT_LAYOUTS: dict[str, tuple[tuple[int, ...], Any]] = {
    "rows apart": ((9, 6, 43), lambda store: store[..., 2:-1]),
    "axes swapped": ((6, 9, 40), lambda store: store.swapaxes(0, 1)),
    "every second element": ((18, 12, 80), lambda store: store[1::2, ::2, 1::2]),
    "negative strides": ((9, 6, 40), lambda store: store[::-1, ::-1, ::-1]),
    "negative strides of rows": ((9, 6, 40), lambda store: store[::-1, ::-1]),
    "Fortran order": ((40, 6, 9), lambda store: store.T),
    "off by one element": ((2161,), lambda store: store[1:].reshape(9, 6, 40)),
    "off by 1 byte": ((2161,), lambda store: store.view(np.uint8)[1:-3].view(np.float32).reshape(9, 6, 40)),
}


@pytest.mark.parametrize("layout", OUT_LAYOUTS)
def test_layouts_of_out(layout: str) -> None:
    """A buffer of any layout is filled, and nothing beside it is written to."""
    case = make_case("t9b6i11h20d2", lengths=True)
    lstm = case.network()
    expected = case.run(lstm)
    shape, view = OUT_LAYOUTS[layout]
    store, expected_store = np.full(shape, 7, np.float32), np.full(shape, 7, np.float32)
    view(expected_store)[...] = expected[0]
    out = view(store)
    result = lstm(case.x, case.state, lengths=case.lengths, out=out)
    assert result[0] is out
    assert_same_bytes(flat(result), expected)
    assert store.tobytes() == expected_store.tobytes()


# ---- Instruction sets ----------------------------------------------------------------------------------------------------------


ISA_CASES = [
    *((shape.name, kind) for shape in EDGE if shape.T and shape.B for kind in ("plain", "ragged")),
    *((name, "ragged") for name in DIVIDED),
    *((name, kind) for name in ("t20b9i17h50l2d2p21", "t20b1i64h130") for kind in ("nan", "inf", "huge", "tiny")),
]


def isa_case(name: str, kind: str, dtype: str) -> Case:
    case = make_case(name, dtype, lengths=kind == "ragged", resets=kind == "ragged")
    place = (slice(3, 5), 0, slice(None, None, 3))
    tiny = np.finfo(dtype).tiny
    values = {"nan": np.nan, "inf": -np.inf, "huge": np.finfo(dtype).max / 1e6, "tiny": tiny / 8}
    if kind in values:
        case.x[place] = values[kind]
        case.state[1][0, 0, ::2] = values[kind]
    return case


def isa_outputs() -> dict[str, np.ndarray]:
    outputs = {}
    for dtype in DTYPES:
        for name, kind in ISA_CASES:
            outputs[f"{name}/{kind}/{dtype}"] = np.concatenate([a.ravel() for a in isa_case(name, kind, dtype).run(threads=1)])
    return outputs


@pytest.fixture(scope="module")
def by_isa(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_by_isa("test_same_bits.isa_outputs", tmp_path_factory.mktemp("isas"))


def test_the_best_instruction_set_is_the_last() -> None:
    isas = fastlstm.available_isas()
    assert isas[0] == "baseline"
    assert fastlstm.isa in isas
    if "FASTLSTM_ISA" not in os.environ:
        assert fastlstm.isa == isas[-1]


def test_instruction_sets(by_isa: dict[str, Any]) -> None:
    """Every set with fused multiply-add gives the same bits."""
    assert_same_on_every_fused(by_isa)


def test_instruction_sets_differ_by_rounding_only(by_isa: dict[str, Any]) -> None:
    """The baseline too."""
    for dtype in DTYPES:
        for name, kind in ISA_CASES:
            if kind in ("plain", "ragged"):
                exact = np.concatenate([a.ravel() for a in isa_case(name, kind, dtype).expected()])
                for isa, outputs in by_isa.items():
                    error = np.abs(outputs[f"{name}/{kind}/{dtype}"] - exact).max()
                    assert error <= TOLERANCE[dtype], f"{name}, {kind}, {dtype}: {isa} is wrong by {error:.3g}"
