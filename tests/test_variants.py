"""Cells that differ from PyTorch's: the specification against scalars, ONNX Runtime and central differences, then the engine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, TOLERANCE, Case, assert_close, flat
from test_reference import EXACT, assert_gradients_close, random_gradients
from variants import FUNCTIONS, VARIANTS, Variant, make_variant_case

from fastlstm import equations, reference
from fastlstm.cell import ACTIVATIONS, Activation, Cell
from fastlstm.weights import LayerWeights, Weights

# ---- The specification ---------------------------------------------------------------------------------------------------------

BY_HAND: dict[str, Any] = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "relu": lambda x: max(x, 0.0),
    "linear": lambda x: x,
    "hard_sigmoid": lambda x, a, b: max(0.0, min(1.0, a * x + b)),
    "softsign": lambda x: x / (1 + abs(x)),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "elu": lambda x, a: x if x >= 0 else a * (math.exp(x) - 1),
    "leaky_relu": lambda x, a: x if x >= 0 else a * x,
    "thresholded_relu": lambda x, a: x if x >= a else 0.0,
    "scaled_tanh": lambda x, a, b: a * math.tanh(b * x),
    "affine": lambda x, a, b: a * x + b,
}


def test_every_function_is_in_the_list() -> None:
    assert {f.name for f in FUNCTIONS.values()} == set(ACTIVATIONS) == set(BY_HAND)


@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_and_slopes(f: Activation) -> None:
    x = np.array([-30.0, -9.1, -3.2, -2.4, -1.0, -0.3, -1e-3, 1e-3, 0.15, 0.25, 0.7, 1.9, 2.6, 3.1, 20.0])
    y, slope = equations.evaluate(f, x)
    np.testing.assert_allclose(y, [BY_HAND[f.name](v, *f.parameters) for v in x], rtol=1e-12, atol=1e-15)
    step = 1e-6
    above, below = (equations.evaluate(f, x + sign * step)[0] for sign in (1, -1))
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-8, atol=2e-9)


@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_at_the_ends(f: Activation) -> None:
    with np.errstate(all="ignore"):
        (low, high, none), slopes = equations.evaluate(f, np.array([-np.inf, np.inf, np.nan]))
    ends = {
        "sigmoid": (0, 1),
        "tanh": (-1, 1),
        "relu": (0, math.inf),
        "hard_sigmoid": (0, 1),
        "softsign": (math.nan, math.nan),
        "softplus": (0, math.inf),
        "elu": (-0.7, math.inf),
        "thresholded_relu": (0, math.inf),
        "scaled_tanh": (-0.8, 0.8),
    }
    np.testing.assert_array_equal((low, high), ends.get(f.name, (-math.inf, math.inf)))
    assert np.isnan(none)
    assert np.isfinite(slopes[:2]).all()


def test_clip_keeps_the_slope_at_the_bound() -> None:
    """As PyTorch's clamp does; a NaN passes."""
    values, slopes = equations.clip(np.array([-3.0, -2.0, 0.0, 2.0, 2.5, np.nan]), 2.0)
    np.testing.assert_array_equal(values, [-2, -2, 0, 2, 2, np.nan])
    np.testing.assert_array_equal(slopes, [0, 1, 1, 1, 0, 1])


def slopes(case: Case, d_output: np.ndarray, d_state: Any, step: float = 1e-5) -> dict[str, np.ndarray]:
    """Central differences for every element of the input, the states and the parameters: wrong by about step^2."""
    tensors = {"x": case.x, **dict(case.weights.named_tensors())}
    if case.state is not None:
        tensors |= {"h_0": case.state[0], "c_0": case.state[1]}

    def loss() -> float:
        state = None if case.state is None else (tensors["h_0"], tensors["c_0"])
        result = reference.forward(case.weights.with_tensors(tensors), tensors["x"], state, case.lengths, case.resets)
        return sum(float((a * d).sum()) for a, d in zip(flat(result), (d_output, *d_state), strict=True))

    found = {}
    for name, tensor in tensors.items():
        found[name] = np.zeros_like(tensor)
        for at in np.ndindex(tensor.shape):
            value = tensor[at]
            tensor[at] = value + step
            above = loss()
            tensor[at] = value - step
            below = loss()
            tensor[at] = value
            found[name][at] = (above - below) / (2 * step)
    return found


@pytest.mark.parametrize("own_state", [False, True], ids=["given state", "own state"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_backward_is_the_slope(variant: Variant, own_state: bool) -> None:
    case = make_variant_case("t4b3i2h3l2d2p2", variant, "float64", lengths=True, resets=True, own_state=own_state)
    d_output, d_state = random_gradients(case)
    expected = slopes(case, d_output, d_state)
    d_x, d_given, parameters = reference.backward(case.weights, case.x, case.state, d_output, d_state, case.lengths, case.resets)
    d_h, d_c = d_given if case.state is not None else (np.zeros(0), np.zeros(0))
    e_h, e_c = (expected.pop(name, np.zeros(0)) for name in ("h_0", "c_0"))
    assert_gradients_close((d_x, (d_h, d_c), parameters), (expected.pop("x"), e_h, e_c, expected), 1e-8)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_are_met(variant: Variant) -> None:
    """Else a test could not tell a variant from PyTorch's cell."""
    case = make_variant_case("t6b5i4h7l2d2p3", variant, "float64", own_state=True)
    plain = tuple(replace(w, cell=Cell(), weight_peephole=None, h_0=None, c_0=None) for w in case.weights.layers)
    output = reference.forward(case.weights, case.x)[0]
    differs = np.abs(output - reference.forward(Weights(plain, case.weights.bidirectional), case.x)[0]).max() > 1e-3
    assert differs == (case.weights.is_variant)


def test_unused_gate_has_no_gradient() -> None:
    for coupled, gate in (("forget", 1), ("input", 0)):
        case = make_variant_case("t4b3i2h3", Variant(Cell(coupled=coupled), peephole=True), "float64")  # type: ignore[arg-type]
        _, _, d = reference.backward(case.weights, case.x, case.state, *random_gradients(case))
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_peephole_l0"):
            parts = np.split(d[name], 3 if "peephole" in name else 4)
            assert [bool(part.any()) for part in parts] == [n != gate for n in range(len(parts))], name


def test_reverse_is_forward_on_a_flipped_sequence() -> None:
    case = make_variant_case("t6b5i4h7l2p3", Variant(), "float64", lengths=True)
    assert case.lengths is not None
    output, h_n, c_n = flat(reference.forward(replace(case.weights, reverse=True), case.x, case.state, case.lengths))
    for row, length in enumerate(case.lengths):
        alone = case.rows([row])
        y, h, c = flat(reference.forward(case.weights, alone.x[:length][::-1], alone.state))
        assert_close((output[:length, [row]], h_n[:, [row]], c_n[:, [row]]), (y[::-1], h, c), EXACT)
    flipped = reference.forward(replace(case.weights, reverse=True, flipped=True), case.x, case.state, case.lengths)
    assert_close(flat(flipped), (output[::-1], h_n, c_n), 0)


# ---- ONNX Runtime --------------------------------------------------------------------------------------------------------------

ONNX_NAMES = {"linear": "Affine"}  # the others are camel case; ONNX has no linear function for recurrent cells


def onnx_run(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One layer in ONNX Runtime, in float32."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper, weights = onnx.helper, case.weights
    H, D = weights.hidden_size, weights.num_directions

    def iofc(a: np.ndarray) -> np.ndarray:
        return a.reshape(4, H, -1)[[0, 3, 1, 2]].reshape(a.shape)

    names: list[str] = []
    alphas: list[float] = []
    betas: list[float] = []
    for w in weights.layers:
        for f in (w.cell.gate, w.cell.candidate, w.cell.hidden):
            parameters = (1.0, 0.0) if f.name == "linear" else f.parameters
            names.append(ONNX_NAMES.get(f.name, "".join(part.capitalize() for part in f.name.split("_"))))
            alphas += parameters[:1]
            betas += parameters[1:]
    tensors = {
        "W": np.stack([iofc(w.weight_ih) for w in weights.layers]),
        "R": np.stack([iofc(w.weight_hh) for w in weights.layers]),
        "b": np.stack([np.concatenate([iofc(w.bias_ih), iofc(w.bias_hh)]) for w in weights.layers]),  # type: ignore[arg-type]
    }
    if weights.layers[0].weight_peephole is not None:
        tensors["p"] = np.stack([w.weight_peephole.reshape(3, H)[[0, 2, 1]].ravel() for w in weights.layers])  # type: ignore[union-attr]
    cell = weights.layers[0].cell
    attributes: dict[str, Any] = {"activations": names, "input_forget": int(cell.coupled == "forget")}
    attributes |= {"activation_alpha": alphas} if alphas else {}
    attributes |= {"activation_beta": betas} if betas else {}
    attributes |= {"clip": cell.gate_clip} if cell.gate_clip else {}
    direction = "bidirectional" if D == 2 else "reverse" if weights.reverse else "forward"
    inputs = ["x", "W", "R", "b", "n", "h", "c", *(["p"] if "p" in tensors else [])]
    node = helper.make_node("LSTM", inputs, ["y", "h_n", "c_n"], hidden_size=H, direction=direction, **attributes)
    lengths = np.full(case.shape.B, case.shape.T) if case.lengths is None else case.lengths
    feeds = {"x": case.x, "h": case.state[0], "c": case.state[1], "n": lengths.astype(np.int32)}
    graph = helper.make_graph(
        [node],
        "variant",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()],
        [helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, None) for k in ("y", "h_n", "c_n")],
        [onnx.numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, h_n, c_n = session.run(None, feeds)
    return y.transpose(0, 2, 1, 3).reshape(case.shape.T, case.shape.B, -1), h_n, c_n


IN_ONNX = {
    name: v
    for name, v in VARIANTS.items()
    if not v.flipped and v.other is None and v.cell.coupled != "input" and v.cell.cell_clip is None and v.cell.proj_clip is None
}


@pytest.mark.parametrize("variant", IN_ONNX.values(), ids=IN_ONNX)
def test_reference_is_onnx_runtimes(variant: Variant) -> None:
    case = make_variant_case("t6b5i4h7d2", variant, lengths=True)
    assert case.lengths is not None
    np.maximum(case.lengths, 1, out=case.lengths)
    assert_close(onnx_run(case), case.expected(), 5e-6)


def test_learned_state_is_for_rows_without_one() -> None:
    """Without a state every row begins there, and again after each reset; a given state comes first."""
    case = make_variant_case("t6b5i4h7l2d2p3", Variant(initial=True), "float64", lengths=True)
    assert case.lengths is not None
    np.maximum(case.lengths, 1, out=case.lengths)  # resets in the padding do nothing
    own = tuple(np.stack([np.tile(getattr(w, name), (5, 1)) for w in case.weights.layers]) for name in ("h_0", "c_0"))
    bare = replace(case.weights, layers=tuple(replace(w, h_0=None, c_0=None) for w in case.weights.layers))
    given = flat(reference.forward(bare, case.x, own, case.lengths))
    assert_close(flat(reference.forward(case.weights, case.x, None, case.lengths)), given, 0)
    assert_close(flat(reference.forward(case.weights, case.x, own, case.lengths)), given, 0)
    resets = np.zeros((6, 5), bool)
    resets[0] = True
    again = flat(reference.forward(case.weights, case.x, case.state, case.lengths, resets))
    D = np.arange(4) % 2 == 0  # the forward directions begin at step 0
    mixed = tuple(np.where(D[:, None, None], a, b) for a, b in zip(own, case.state, strict=True))
    assert_close(again, flat(reference.forward(bare, case.x, mixed, case.lengths)), EXACT)


def test_layer_weights_by_hand() -> None:
    """One step in Python's numbers: peepholes, both couplings, all three clips."""
    w_x, w_h, p, b = [0.5, -0.4, 1.2, 0.3], [0.2, 0.7, -0.6, 0.9], [0.8, -1.1, 0.6], [0.1, 0.2, -0.1, 0.05]
    x, h, c = 0.9, -0.3, 0.7
    z = [w_x[n] * x + w_h[n] * h + b[n] for n in range(4)]

    def clamp(v: float, bound: float) -> float:
        return max(-bound, min(bound, v))

    for coupled in (None, "forget", "input"):
        i = BY_HAND["sigmoid"](clamp(z[0] + p[0] * c, 0.9))
        f = BY_HAND["sigmoid"](clamp(z[1] + p[1] * c, 0.9))
        i, f = (i, 1 - i) if coupled == "forget" else (1 - f, f) if coupled == "input" else (i, f)
        c_1 = clamp(f * c + i * math.tanh(clamp(z[2], 0.9)), 0.6)
        o = BY_HAND["sigmoid"](clamp(z[3] + p[2] * c_1, 0.9))
        columns = [np.array(v)[:, None] for v in (w_x, w_h)]
        layer = LayerWeights(
            *columns, np.array(b), np.zeros(4), weight_peephole=np.array(p),
            cell=Cell(coupled=coupled, gate_clip=0.9, cell_clip=0.6),  # type: ignore[arg-type]
        )  # fmt: skip
        given = flat(reference.forward(Weights((layer,)), [[[x]]], ([[[h]]], [[[c]]])))
        np.testing.assert_allclose([a.item() for a in given], [o * math.tanh(c_1)] * 2 + [c_1], rtol=1e-14)


# ---- The engine ----------------------------------------------------------------------------------------------------------------

# Full vectors and tails of every width, one row and many, projection, layers handed on in strides, both directions.
SIZES = ("t7b5i6h33d2", "t5b13i9h20l2d2p7", "t9b1i5h70l3p37", "t40b3i8h16l2")


def tolerance(case: Case, expected: tuple[np.ndarray, ...]) -> float:
    """That of PyTorch's cell, for numbers that functions without bounds have made larger than 1."""
    return TOLERANCE[case.weights.dtype.name] * max(1.0, *(np.abs(a).max() for a in expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_engine_is_the_reference(variant: Variant, name: str, dtype: str) -> None:
    for own_state in (False, True):
        case = make_variant_case(name, variant, dtype, lengths=True, resets=True, own_state=own_state)
        expected = case.expected()
        assert all(np.abs(a).max() < 100 for a in expected)  # else the tolerance would say little
        assert_close(case.run(), expected, tolerance(case, expected), own_state)


# ---- The engine's gradients ----------------------------------------------------------------------------------------------------


def gradients(case: Case, threads: int | None = 1) -> Any:
    """What the engine gives for random gradients of the results, as :func:`reference.backward` returns it."""
    d_output, d_state = random_gradients(case)
    kind = case.weights.dtype
    tape = case.network().record(case.x, case.state, lengths=case.lengths, resets=case.resets, threads=threads)
    g = tape.backward(d_output.astype(kind), (d_state[0].astype(kind), d_state[1].astype(kind)), threads=threads)
    return g.input, g.state, g.parameters


@pytest.mark.parametrize("own_state", [False, True], ids=["given state", "own state"])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_gradients_are_the_references(variant: Variant, name: str, own_state: bool) -> None:
    for ragged in (False, True):
        case = make_variant_case(name, variant, "float64", lengths=ragged, resets=ragged, own_state=own_state)
        d_output, d_state = random_gradients(case)
        d_x, d_h, parameters = reference.backward(case.weights, case.x, case.state, d_output, d_state, case.lengths, case.resets)
        assert_gradients_close(gradients(case), (d_x, *d_h, parameters), 1e-11)
