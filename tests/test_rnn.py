"""The plain RNN: the right numbers, by the reference, PyTorch and slopes; then the same bits, special values, refusals."""

from __future__ import annotations

import copy
import json
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, FUSED, TOLERANCE, assert_same_on_every_fused, import_torch, results_by_isa
from shapes import EDGE, Shape

import fastlstm
from fastlstm import _engine, reference
from fastlstm.weights import LayerWeights, Weights, parameter_shapes

Named = dict[str, np.ndarray]  # "output", "h_n"; or "input", "h_0" and the parameters

KINDS = ("tanh", "relu")
SHAPES = tuple(shape for shape in EDGE if not shape.P)
# Units are divided (one row, few rows), rows, directions, layers in strides, chunks of steps; H around every width of a block, 4V
DIVIDED = ("t12b1i24h200", "t9b13i20h48l2", "t7b5i33h65d2", "t40b3i16h64l3", "t30b4i1h130l2d2", "t10b8i20h300", "t5b210i9h17")
THREADS = (2, 3, 4, 7)
# Largest error of a gradient in terms of its largest number, against autograd in float64
GRADIENT_TOLERANCE = {"float32": 2e-4, "float64": 1e-10}

dtypes = pytest.mark.parametrize("dtype", DTYPES)
kinds = pytest.mark.parametrize("kind", KINDS)


def named(names: tuple[str, ...]) -> Any:
    return pytest.mark.parametrize("name", names)


@dataclass(frozen=True)
class Case:
    """A network's weights and the arguments of one call."""

    shape: Shape
    weights: Weights
    x: Any
    h_0: Any
    lengths: np.ndarray | None
    resets: np.ndarray | None

    def network(self, **options: Any) -> fastlstm.RNN:
        return fastlstm.RNN.from_weights(self.weights, **options)

    def run(self, rnn: fastlstm.RNN | None = None, **options: Any) -> Named:
        rnn = rnn or self.network()
        output, h_n = rnn(self.x, self.h_0, lengths=self.lengths, resets=self.resets, **options)
        return {"output": output, "h_n": h_n}

    def asked(self) -> tuple[np.ndarray, np.ndarray]:
        """Normal gradients of the output and of h_n."""
        s, rng = self.shape, np.random.default_rng(5)
        B = self.x.shape[1]
        return tuple(rng.standard_normal(n).astype(self.x.dtype) for n in ((s.T, B, s.D * s.H), (s.L * s.D, B, s.H)))

    def gradients(self, rnn: fastlstm.RNN | None = None, d: Any = None, record: Any = None, **options: Any) -> Named:
        rnn = rnn or self.network()
        tape = rnn.record(self.x, self.h_0, lengths=self.lengths, resets=self.resets, **(record or {}))
        grads = tape.backward(*(d or self.asked()), **options)
        return {"input": grads.input, "h_0": grads.state, **grads.parameters}

    def exact(self) -> Weights:
        return self.weights.with_tensors({name: a.astype(np.float64) for name, a in self.weights.named_tensors()})

    def expected(self) -> Named:
        """The reference's."""
        output, (h_n, _) = reference.forward(self.exact(), self.x, self.pair(self.h_0), self.lengths, self.resets)
        return {"output": output, "h_n": h_n}

    def expected_gradients(self) -> Named:
        d_output, d_h = self.asked()
        d_x, (d_h_0, _), parameters = reference.backward(
            self.exact(), self.x, self.pair(self.h_0), d_output, self.pair(d_h), self.lengths, self.resets
        )
        return {"input": d_x, "h_0": d_h_0, **parameters}

    @staticmethod
    def pair(h: np.ndarray | None) -> Any:
        return None if h is None else (h, np.zeros((*h.shape[:2], 0)))

    def rows(self, rows: Any) -> Case:
        x, h_0, resets = (None if a is None else a[:, rows] for a in (self.x, self.h_0, self.resets))
        return Case(self.shape, self.weights, x, h_0, None if self.lengths is None else self.lengths[rows], resets)


def make(
    shape: Shape | str,
    kind: Any = "tanh",
    dtype: str = "float32",
    *,
    bias: bool = True,
    lengths: bool = False,
    resets: bool = False,
) -> Case:
    """Weights of PyTorch's scale, normal inputs and states; lengths hold 0 and T where there are rows enough."""
    s = Shape.parse(shape) if isinstance(shape, str) else shape
    rng = np.random.default_rng(zlib.crc32(s.name.encode()))
    shapes = parameter_shapes(s.I, s.H, s.L, bias=bias, bidirectional=s.D == 2, proj_size=0, gates=1)
    tensors = {name: rng.uniform(-(s.H**-0.5), s.H**-0.5, size).astype(dtype) for name, size in shapes.items()}
    x, h_0 = (rng.standard_normal(size).astype(dtype) for size in ((s.T, s.B, s.I), (s.L * s.D, s.B, s.H)))
    some_lengths, some_resets = rng.integers(0, s.T + 1, s.B), rng.random((s.T, s.B)) < 0.2
    some_lengths[rng.permutation(s.B)[:2]] = (s.T, 0)[: s.B]
    weights = Weights.from_named_tensors(tensors, kind)
    return Case(s, weights, x, h_0, some_lengths if lengths else None, some_resets if resets else None)


def check(given: Named, expected: Named, tolerance: float, relative: bool = False) -> None:
    assert list(given) == list(expected)
    for name, e in expected.items():
        assert given[name].shape == e.shape, name
        error = np.abs(given[name] - e).max(initial=0)
        bound = tolerance * (np.abs(e).max(initial=0.1) if relative else 1)  # a tensor may be one number, near 0
        assert error <= bound, f"{name}: error {error}, allowed {bound}"


def same_bits(given: Named, expected: Named, what: object = "") -> None:
    assert list(given) == list(expected)
    for name, e in expected.items():
        assert (given[name].dtype, given[name].shape) == (e.dtype, e.shape), f"{what}: {name}"
        assert given[name].tobytes() == e.tobytes(), f"{what}: {name} differs, by up to {np.abs(given[name] - e).max()}"


# ---- The right numbers ---------------------------------------------------------------------------------------------------------


@kinds
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_edges(shape: Shape, dtype: str, kind: str) -> None:
    for options in ({}, {"bias": False}, {"lengths": True, "resets": True}):
        case = make(shape, kind, dtype, **options)
        rnn = case.network()
        check(case.run(rnn), case.expected(), TOLERANCE[dtype])
        tape = rnn.record(case.x, case.h_0, lengths=case.lengths, resets=case.resets)
        same_bits({"output": tape.output, "h_n": tape.state}, case.run(rnn))
        check(case.gradients(rnn), case.expected_gradients(), {"float32": 1e-5, "float64": 1e-13}[dtype], relative=True)


@kinds
@dtypes
@named(("t40b6i33h70", "t25b9i40h50l2d2", "t200b1i9h20l2", "t7b200i3h9", "t6b7i20h257"))
def test_more_tokens_than_a_block(name: str, dtype: str, kind: str) -> None:
    for options in ({}, {"lengths": True, "resets": True}):
        case = make(name, kind, dtype, **options)
        check(case.run(), case.expected(), TOLERANCE[dtype])
        check(case.gradients(), case.expected_gradients(), {"float32": 1e-5, "float64": 1e-13}[dtype], relative=True)


def torch_rnn(case: Case, **options: Any) -> Any:
    torch, s = import_torch(), case.shape
    network = torch.nn.RNN(
        s.I,
        s.H,
        s.L,
        nonlinearity=case.weights.nonlinearity,
        bias=case.weights.bias,
        bidirectional=s.D == 2,
        dtype=torch.float64,
        **options,
    )
    network.load_state_dict({name: torch.from_numpy(a) for name, a in case.exact().named_tensors()})
    return network


@kinds
@dtypes
@pytest.mark.parametrize("lengths", [False, True], ids=["full", "ragged"])
@named(("t9b4i5h7", "t1b1i3h1", "t12b5i6h33l2d2", "t7b3i33h65l3", "t20b9i8h130d2", "t6b4i7h7l2"))
def test_torch(name: str, lengths: bool, dtype: str, kind: str) -> None:
    """nn.RNN and autograd; packed sequences, which know no length 0, for lengths."""
    torch = import_torch()
    case = make(name, kind, dtype, bias=name != "t7b3i33h65l3", lengths=lengths)
    network = torch_rnn(case)
    x, h_0 = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (case.x, case.h_0))
    if case.lengths is None:
        output, h_n = network(x, h_0)
    else:
        np.maximum(case.lengths, 1, out=case.lengths)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(case.lengths), enforce_sorted=False)
        output, h_n = network(packed, h_0)
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, total_length=len(x))
    check(case.run(), {"output": output.detach().numpy(), "h_n": h_n.detach().numpy()}, TOLERANCE[dtype])
    d_output, d_h = case.asked()
    loss = (output * torch.from_numpy(d_output)).sum() + (h_n * torch.from_numpy(d_h)).sum()
    loss.backward()
    parameters = {name: p.grad.numpy() for name, p in network.named_parameters()}
    expected = {"input": x.grad.numpy(), "h_0": h_0.grad.numpy(), **parameters}
    for recompute in (False, True):
        check(case.gradients(record={"recompute": recompute}), expected, GRADIENT_TOLERANCE[dtype], relative=True)


@kinds
def test_torch_batch_first_one_sequence_and_no_state(kind: str) -> None:
    torch = import_torch()
    case = make("t9b4i5h7l2d2", kind, "float64")
    network, rnn = torch_rnn(case, batch_first=True), case.network(batch_first=True)
    x = np.ascontiguousarray(case.x.swapaxes(0, 1))
    with torch.no_grad():
        for given, hx in ((x, None), (x, case.h_0), (x[0], None), (x[0], np.ascontiguousarray(case.h_0[:, 0]))):
            expected = network(torch.from_numpy(given), None if hx is None else torch.from_numpy(hx))
            for a, e in zip(rnn(given, hx), expected, strict=True):
                assert a.shape == e.shape
                np.testing.assert_allclose(a, e, rtol=0, atol=1e-13)


@kinds
@pytest.mark.parametrize("bias", [True, False])
@named(("t4b3i2h3l2d2", "t5b2i3h3"))
def test_slopes(name: str, bias: bool, kind: str) -> None:
    """Every element of the input, the state and the parameters, by central differences; lengths and resets."""
    case = make(name, kind, "float64", bias=bias, lengths=True, resets=True)
    d_output, d_h = case.asked()
    tensors = {"input": case.x, "h_0": case.h_0, **dict(case.weights.named_tensors())}
    step, expected = 1e-5, {}
    for tensor_name, tensor in tensors.items():
        slopes = expected[tensor_name] = np.zeros(tensor.shape)
        for at in np.ndindex(tensor.shape):
            value, losses = tensor[at], []
            for moved in (value + step, value - step):
                tensor[at] = moved
                result = case.run()  # packs the weights anew
                losses.append(float((result["output"] * d_output).sum() + (result["h_n"] * d_h).sum()))
            tensor[at] = value
            slopes[at] = (losses[0] - losses[1]) / (2 * step)
    check(case.gradients(), expected, 1e-7, relative=True)


def test_relu_has_no_slope_at_zero() -> None:
    """As PyTorch's."""
    rnn = fastlstm.RNN(2, 3, nonlinearity="relu")
    rnn.load_state_dict({name: np.zeros_like(a) for name, a in rnn.state_dict().items()})
    tape = rnn.record(np.ones((4, 2, 2), np.float32))
    grads = tape.backward(np.ones((4, 2, 3), np.float32))
    assert not any(a.any() for a in grads.parameters.values())


@kinds
def test_dropout_and_truncation(kind: str) -> None:
    """Layers recorded apart, with what was dropped between them; pieces of a sequence recorded apart."""
    case = make("t12b3i5h9l2", kind, "float64")
    rnn = case.network()
    tape = rnn.record(case.x, case.h_0, dropout=0.4, seed=3)
    assert tape.output.tobytes() == rnn.record(case.x, case.h_0, dropout=0.4, seed=3, recompute=True).output.tobytes()
    lower, upper = (fastlstm.RNN.from_weights(Weights((layer,))) for layer in case.weights.layers)
    kept = lower(case.x, case.h_0[:1])[0].copy()
    _engine.drop(kept, 0.4, 3, 0)
    assert (kept == 0).any()
    assert tape.output.tobytes() == upper(kept, case.h_0[1:])[0].tobytes()

    d_output, _ = case.asked()
    cut = rnn.record(case.x, case.h_0).backward(d_output, steps=4).parameters
    whole: Named = {name: np.zeros_like(a) for name, a in cut.items()}
    state = case.h_0
    for begin in range(0, 12, 4):
        piece = rnn.record(case.x[begin : begin + 4], state)
        state = piece.state
        for name, a in piece.backward(d_output[begin : begin + 4]).parameters.items():
            whole[name] += a
    check(cut, whole, 1e-13, relative=True)


# ---- The same bits -------------------------------------------------------------------------------------------------------------


@kinds
@dtypes
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@named(DIVIDED)
def test_threads(name: str, ragged: bool, dtype: str, kind: str) -> None:
    case = make(name, kind, dtype, lengths=ragged, resets=ragged)
    rnn = case.network()
    one, gradients = case.run(rnn, threads=1), case.gradients(rnn, threads=1)
    for threads in THREADS:
        same_bits(case.run(rnn, threads=threads), one, f"{threads} threads")
        same_bits(case.gradients(rnn, record={"threads": threads}, threads=threads), gradients, f"{threads} threads")
    same_bits(case.gradients(rnn, record={"recompute": True}), gradients, "recompute")


def test_the_shapes_meet_every_division() -> None:
    plans = [make(name).network().plan(s.T, s.B, n) for name in DIVIDED for s in [Shape.parse(name)] for n in (1, *THREADS)]
    for part in ("layer_groups", "directions", "row_groups", "unit_groups", "chunk"):
        assert any(plan[part] > 1 for plan in plans), part
    assert any(plan["chunk"] == 0 for plan in plans)


@kinds
@dtypes
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@named(DIVIDED)
def test_rows_alone_and_together(name: str, ragged: bool, dtype: str, kind: str) -> None:
    case = make(name, kind, dtype, lengths=ragged, resets=ragged)
    rnn, B = case.network(), case.shape.B
    whole, (d_output, d_h) = case.run(rnn), case.asked()
    gradients = case.gradients(rnn)
    rng = np.random.default_rng(3)
    for rows in (np.array([0]), np.array([B - 1]), rng.permutation(B), rng.integers(0, B, B + 1)):
        same_bits(case.rows(rows).run(rnn), {n: a[:, rows] for n, a in whole.items()}, rows)
        some = case.rows(rows).gradients(rnn, d=(d_output[:, rows], d_h[:, rows]))
        same_bits({n: some[n] for n in ("input", "h_0")}, {n: gradients[n][:, rows] for n in ("input", "h_0")}, rows)


@kinds
@dtypes
@named(("t12b1i24h200", "t40b3i16h64l3", "t19b13i9h9", "t11b2i3h70l2"))
def test_cuts_and_streams(name: str, dtype: str, kind: str) -> None:
    case = make(name, kind, dtype)
    rnn, whole = case.network(), case.run()
    for cuts in ((1,), (5, 6), tuple(range(1, case.shape.T))):
        state, parts = case.h_0, []
        for begin, end in zip((0, *cuts), (*cuts, case.shape.T), strict=True):
            y, state = rnn(case.x[begin:end], state)
            parts.append(y)
        same_bits({"output": np.concatenate(parts), "h_n": state}, whole, cuts)
    stream = rnn.stream(case.shape.B)
    stream.state = case.h_0
    same_bits({"output": np.stack([stream.step(x_t) for x_t in case.x]), "h_n": stream.state}, whole, "stream")
    stream.reset(rows=[0])
    assert not stream.state[:, 0].any()
    assert stream.state[:, 1:].tobytes() == whole["h_n"][:, 1:].tobytes()


def isa_results() -> Named:
    """Outputs and gradients of many cases."""
    found = {}
    for name in DIVIDED:
        for kind in KINDS:
            for dtype in DTYPES:
                case = make(name, kind, dtype, lengths=True, resets=True)
                arrays = (*case.run().values(), *case.gradients().values())
                found[f"{name}, {kind}, {dtype}"] = np.concatenate([a.ravel() for a in arrays])
    return found


def test_instruction_sets(tmp_path: Path) -> None:
    """All that have fused multiply-add."""
    assert_same_on_every_fused(results_by_isa("test_rnn.isa_results", tmp_path, FUSED))


# ---- Special values ------------------------------------------------------------------------------------------------------------


@kinds
@dtypes
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(value: float, dtype: str, kind: str) -> None:
    case = make("t6b9i5h19l2d2", kind, dtype)
    rnn, clean, clean_gradients = case.network(), case.run(), case.gradients()
    case.x[3, 4, 2] = value
    given, gradients = case.run(rnn), case.gradients(rnn)
    others = [row for row in range(9) if row != 4]
    same_bits({n: a[:, others] for n, a in given.items()}, {n: a[:, others] for n, a in clean.items()})
    for name in ("input", "h_0"):
        assert gradients[name][:, others].tobytes() == clean_gradients[name][:, others].tobytes()
    if np.isnan(value):
        assert np.isnan(given["output"][:, 4]).all()
        nan = np.isnan(gradients["weight_hh_l0"])
        assert nan.all()
    elif kind == "tanh":
        assert np.isfinite(given["output"]).all()
    else:
        with np.errstate(all="ignore"):
            expected = case.expected()["output"][:, 4]
        np.testing.assert_array_equal(np.isnan(given["output"][:, 4]), np.isnan(expected))


@kinds
def test_one_nan(kind: str) -> None:
    """Whichever comes in, one comes out."""
    x = np.full((3, 2, 4), np.nan, np.float32)
    x.view(np.uint32)[:, 1] |= 0x80000123
    output, _ = fastlstm.RNN(4, 5, nonlinearity=kind, seed=0)(x)
    assert set(output.view(np.uint32).ravel().tolist()) == {0x7FC00000}


@pytest.mark.parametrize("name", ["t0b3i4h5l2", "t3b0i4h5l2"])
def test_empty(name: str) -> None:
    case = make(Shape.parse(name))
    found = case.run()
    assert found["output"].shape == (case.shape.T, case.shape.B, 5)
    assert found["h_n"].tobytes() == case.h_0.tobytes()
    gradients = case.gradients()
    assert gradients["h_0"].tobytes() == case.asked()[1].tobytes()
    assert not gradients["weight_hh_l0"].any()


# ---- The object ----------------------------------------------------------------------------------------------------------------


def test_attributes() -> None:
    rnn = fastlstm.RNN(3, 5, 2, nonlinearity="relu", bidirectional=True, batch_first=True, bias=False, dtype="float64", seed=1)
    found = (rnn.input_size, rnn.hidden_size, rnn.num_layers, rnn.num_directions, rnn.nonlinearity, rnn.bias, rnn.dtype)
    assert found == (3, 5, 2, 2, "relu", False, np.float64)
    assert (
        repr(rnn)
        == "RNN(3, 5, num_layers=2, bias=False, batch_first=True, bidirectional=True, nonlinearity='relu', dtype='float64')"
    )
    assert repr(fastlstm.RNN(3, 5)) == "RNN(3, 5)"
    torch = import_torch()
    theirs = torch.nn.RNN(3, 5, 2, nonlinearity="relu", bidirectional=True, bias=False).state_dict()
    assert {name: a.shape for name, a in rnn.state_dict().items()} == {name: tuple(a.shape) for name, a in theirs.items()}
    assert list(rnn.state_dict()) == list(theirs)


def test_seed_and_initialisation() -> None:
    a, b = (fastlstm.RNN(30, 64, seed=7).state_dict() for _ in range(2))
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert 0.12 < max(np.abs(t).max() for t in a.values()) <= 1 / 8


@kinds
def test_copies(kind: str) -> None:
    case = make("t6b3i4h5l2", kind)
    rnn = case.network(batch_first=False)
    for other in (pickle.loads(pickle.dumps(rnn)), copy.deepcopy(rnn)):
        assert (type(other), other.nonlinearity) == (fastlstm.RNN, kind)
        same_bits(case.run(other), case.run(rnn))
    for recompute in (False, True):
        tape = rnn.record(case.x, case.h_0, recompute=recompute)
        again = pickle.loads(pickle.dumps(tape))
        for t in (tape, again):
            grads = t.backward(*case.asked())
            same_bits({"input": grads.input, "h_0": grads.state, **grads.parameters}, case.gradients(rnn))
            with pytest.raises(RuntimeError, match="record again"):
                t.backward()


def test_save(tmp_path: Path) -> None:
    """PyTorch reads the file; loading it as an LSTM is refused by name."""
    rnn = fastlstm.RNN(3, 4, 2, seed=0)
    rnn.save(tmp_path / "rnn.safetensors")
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "rnn.safetensors")
    assert {name: a.tobytes() for name, a in tensors.items()} == {name: a.tobytes() for name, a in rnn.state_dict().items()}
    with pytest.raises(fastlstm.FormatError, match=r"a plain RNN, not an LSTM: fastlstm\.RNN\.load reads it"):
        fastlstm.load(tmp_path / "rnn.safetensors")
    other = fastlstm.RNN(3, 4, 2, seed=1)
    other.load_state_dict(tensors)
    x = np.ones((5, 2, 3), np.float32)
    assert other(x)[0].tobytes() == rnn(x)[0].tobytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("weight_dtype", [None, "float16", "int8"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_save_and_load(nonlinearity: Any, weight_dtype: str | None, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rnn{suffix}"
    rnn = fastlstm.RNN(3, 4, 2, nonlinearity=nonlinearity, bidirectional=True, batch_first=True, bias=not weight_dtype, seed=0)
    rnn = rnn.to(weight_dtype=weight_dtype) if weight_dtype else rnn
    rnn.save(path)
    loaded = fastlstm.RNN.load(path)
    assert repr(loaded) == repr(rnn)
    x = np.random.default_rng(0).standard_normal((5, 2, 3), np.float32)
    assert loaded(x)[0].tobytes() == rnn(x)[0].tobytes()
    assert not fastlstm.RNN.load(path, batch_first=False).batch_first
    assert fastlstm.scan(path) == []


def test_files_that_are_not_of_an_rnn(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    fastlstm.LSTM(3, 4, seed=0).save(path)
    with pytest.raises(fastlstm.FormatError, match=r"not what RNN\.save writes: .*; for an LSTM: fastlstm\.load"):
        fastlstm.RNN.load(path)
    tensors = {name: np.full_like(tensor, np.nan) for name, tensor in fastlstm.RNN(3, 4).state_dict().items()}
    np.savez(path, **tensors)
    with pytest.raises(fastlstm.FormatError, match=r"not what RNN\.save writes"):
        fastlstm.RNN.load(path)
    rnn = fastlstm.RNN(3, 4)
    rnn.load_state_dict(tensors)
    rnn.save(path)
    with pytest.raises(fastlstm.FormatError, match="holds 12 NaN or infinite values"):
        fastlstm.RNN.load(path)
    assert np.isnan(fastlstm.RNN.load(path, allow_nonfinite=True).state_dict()["weight_ih_l0"]).all()
    ours = {"batch_first": False, "cells": [{}], "nonlinearity": "gelu"}
    np.savez(path, fastlstm=np.array(json.dumps(ours)), **tensors)
    with pytest.raises(fastlstm.FormatError, match="nonlinearity must be one of tanh, relu, got 'gelu'"):
        fastlstm.RNN.load(path)


def test_relu_lets_no_gradient_through_where_it_is_zero() -> None:
    """Not even NaN, as in PyTorch, in the reference too."""
    weights = Weights((LayerWeights(-np.ones((1, 1)), np.ones((1, 1)), nonlinearity="relu"),))
    x = np.ones((2, 1, 1))
    for d in (np.nan, np.inf):
        d_output = np.full((2, 1, 1), d)
        engine = fastlstm.RNN.from_weights(weights).record(x).backward(d_output)
        d_x, (d_h, _), parameters = reference.backward(weights, x, None, d_output, None)
        assert engine.input is not None
        for gradient in (engine.input, d_x, engine.state, d_h, *engine.parameters.values(), *parameters.values()):
            assert (gradient == 0).all()


def test_refusals() -> None:
    rnn = fastlstm.RNN(3, 4)
    x, h = np.zeros((5, 2, 3), np.float32), np.zeros((1, 2, 4), np.float32)
    pair: Any = (h, h)
    calls: tuple[tuple[type[Exception], str, Any], ...] = (
        (ValueError, r"nonlinearity must be one of tanh, relu, got 'gelu'", lambda: fastlstm.RNN(3, 4, nonlinearity="gelu")),  # type: ignore[arg-type]
        (ValueError, "hidden_size must be between 1", lambda: fastlstm.RNN(3, 0)),
        (ValueError, r"x must have shape \(T, B, 3\), got \(5, 2, 4\)", lambda: rnn(np.zeros((5, 2, 4), np.float32))),
        (TypeError, "x must be float32", lambda: rnn(x.astype(np.float64))),
        (ValueError, r"h_0 must have shape \(1, 2, 4\), got \(1, 3, 4\)", lambda: rnn(x, np.zeros((1, 3, 4), np.float32))),
        (TypeError, "h_0 must be an array, got tuple", lambda: rnn(x, pair)),
        (TypeError, "h_0 must be float32", lambda: rnn(x, h.astype(np.float64))),
        (ValueError, "lengths must be between 0 and T = 5", lambda: rnn(x, lengths=[6, 0])),
        (ValueError, r"resets must have shape \(5, 2\)", lambda: rnn(x, resets=np.zeros((2, 5), bool))),
        (ValueError, "out must not overlap x", lambda: fastlstm.RNN(3, 3)(x, out=x)),
        (ValueError, "dropout must be between 0 and 1", lambda: rnn.record(x, dropout=2)),
        (ValueError, r"d_h_n must have shape \(1, 2, 4\)", lambda: rnn.record(x).backward(None, h[0])),
        (TypeError, "d_h_n must be an array, got tuple", lambda: rnn.record(x).backward(None, pair)),
        (ValueError, "weight_ih_l0 must have shape", lambda: rnn.load_state_dict(fastlstm.RNN(3, 5).state_dict())),
        (ValueError, "a bidirectional network cannot stream", lambda: fastlstm.RNN(3, 4, bidirectional=True).stream()),
        (ValueError, r"h must have shape \(1, 1, 4\)", lambda: setattr(rnn.stream(), "state", h)),
        (ValueError, "those of an LSTM; use fastlstm.LSTM", lambda: fastlstm.RNN.from_weights(fastlstm.LSTM(3, 4).weights)),
        (ValueError, "those of a plain RNN; use fastlstm.RNN", lambda: fastlstm.LSTM.from_weights(rnn.weights)),
    )
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()


def test_weights_that_do_not_fit() -> None:
    w = fastlstm.RNN(3, 4).weights.layers[0]
    with pytest.raises(ValueError, match="nonlinearity must be"):
        Weights((LayerWeights(w.weight_ih, w.weight_hh, nonlinearity="gelu"),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nonlinearity must be"):
        Weights((w, LayerWeights(w.weight_hh, w.weight_hh, w.bias_ih, w.bias_hh, nonlinearity="relu")))
    with pytest.raises(ValueError, match="has no projection"):
        Weights((LayerWeights(w.weight_ih, w.weight_hh, weight_hr=w.weight_hh[:2], nonlinearity="tanh"),))


def test_out_and_layouts() -> None:
    case = make("t7b5i3h11d2")
    rnn, whole = case.network(), case.run()
    out = np.full((7, 5, 22), np.nan, np.float32)
    assert rnn(case.x, case.h_0, out=out)[0] is out
    assert out.tobytes() == whole["output"].tobytes()
    strided = np.full((7, 5, 6), np.nan, np.float32)
    strided[..., ::2] = case.x
    assert rnn(strided[..., ::2], np.asfortranarray(case.h_0))[0].tobytes() == whole["output"].tobytes()


@kinds
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_masked_step_is_as_if_it_were_not_there(bidirectional: bool, kind: str) -> None:
    T, B, rng = 11, 3, np.random.default_rng(7)
    rnn = fastlstm.RNN(5, 19, num_layers=2, nonlinearity=kind, bidirectional=bidirectional, seed=0)
    x, mask = rng.standard_normal((T, B, 5), np.float32), rng.random((T, B)) < 0.6
    output, h_n = rnn(x, mask=mask)
    tape = rnn.record(x, mask=mask)
    assert tape.output.tobytes() == output.tobytes()
    assert tape.state.tobytes() == h_n.tobytes()
    d_x = tape.backward(np.ones_like(output)).input
    for b in range(B):
        alone, h = rnn(np.ascontiguousarray(x[mask[:, b], b]))
        assert output[mask[:, b], b].tobytes() == alone.tobytes()
        assert h_n[:, b].tobytes() == h.tobytes()
        assert d_x is not None
        assert d_x[mask[:, b], b].any(axis=-1).all()
        assert not output[~mask[:, b], b].any()
        assert not d_x[~mask[:, b], b].any()
