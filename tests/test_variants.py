"""Cells that differ from PyTorch's: the specification against scalars, ONNX Runtime and central differences, then the engine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import (
    DTYPES,
    TOLERANCE,
    Case,
    asked,
    assert_close,
    assert_gradients_close,
    assert_same_bytes,
    assert_same_on_every_fused,
    flat,
    results_by_isa,
)
from variants import FUNCTIONS, VARIANTS, Variant, make_variant_case

import fastlstm
from fastlstm import arrays, equations, reference
from fastlstm.cell import ACTIVATIONS, PLAIN, Activation, Cell
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


def slopes(case: Case, run: Any, d_output: np.ndarray, d_state: Any, step: float = 1e-5) -> dict[str, np.ndarray]:
    """Central differences for every element of the input, the states and the parameters: wrong by about step^2."""
    tensors = {"x": case.x, **dict(case.weights.named_tensors())}
    if case.state is not None:
        tensors |= {"h_0": case.state[0], "c_0": case.state[1]}

    def loss() -> float:
        state = None if case.state is None else (tensors["h_0"], tensors["c_0"])
        result = run(case.weights.with_tensors(tensors), tensors["x"], state, case.lengths, case.resets)
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
    d_output, d_state = asked(case)
    expected = slopes(case, reference.forward, d_output, d_state)
    given = reference.backward(case.weights, case.x, case.state, d_output, d_state, case.lengths, case.resets)
    assert_slopes(given, expected, case)


def assert_slopes(given: Any, expected: dict[str, np.ndarray], case: Case) -> None:
    (d_x, d_state, parameters), none = given, np.zeros(0)
    e_h, e_c = (expected.pop(name, none) for name in ("h_0", "c_0"))
    d_state = (none, none) if case.state is None else d_state
    assert_gradients_close((d_x, d_state, parameters), (expected.pop("x"), e_h, e_c, expected), 1e-8)


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
        _, _, d = reference.backward(case.weights, case.x, case.state, *asked(case))
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
        assert_close((output[:length, [row]], h_n[:, [row]], c_n[:, [row]]), (y[::-1], h, c), TOLERANCE["float64"])
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
    assert_close(again, flat(reference.forward(bare, case.x, mixed, case.lengths)), TOLERANCE["float64"])


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
    tape = case.network().record(case.x, case.state, lengths=case.lengths, resets=case.resets, threads=threads)
    g = tape.backward(*asked(case), threads=threads)
    return g.input, g.state, g.parameters


def engine_forward(weights: Weights, x: Any, state: Any, lengths: Any, resets: Any) -> Any:
    return fastlstm.LSTM.from_weights(weights)(x, state, lengths=lengths, resets=resets, threads=1)


@pytest.mark.parametrize("own_state", [False, True], ids=["given state", "own state"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_gradients_are_the_slope(variant: Variant, own_state: bool) -> None:
    """Of the shipped kernels themselves, without the reference."""
    case = make_variant_case("t4b3i2h3l2d2p2", variant, "float64", lengths=True, resets=True, own_state=own_state)
    assert_slopes(gradients(case), slopes(case, engine_forward, *asked(case)), case)


@pytest.mark.parametrize("own_state", [False, True], ids=["given state", "own state"])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_gradients_are_the_references(variant: Variant, name: str, own_state: bool) -> None:
    for ragged in (False, True):
        case = make_variant_case(name, variant, "float64", lengths=ragged, resets=ragged, own_state=own_state)
        d_output, d_state = asked(case)
        d_x, d_h, parameters = reference.backward(case.weights, case.x, case.state, d_output, d_state, case.lengths, case.resets)
        assert_gradients_close(gradients(case), (d_x, *d_h, parameters), 1e-11)


# ---- The same bits -------------------------------------------------------------------------------------------------------------

DIVIDED = ("t12b1i24h200", "t9b13i20h48l2", "t6b7i20h70l2d2p33")  # hidden units, rows and directions are divided
KINDS = {name: VARIANTS[name] for name in ("all clips, peepholes", "f = 1 - i, peepholes, clips", "mixed", "some plain")}
KINDS["i = 1 - f, learned, reverse"] = Variant(Cell(FUNCTIONS["softplus"], coupled="input"), initial=True, reverse=True)
KINDS["learned, peepholes"] = VARIANTS["learned state, peepholes, reverse"]
KINDS["flipped"] = VARIANTS["reverse, flipped, hard"]
kinds = pytest.mark.parametrize("variant", KINDS.values(), ids=KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def assert_same_gradients(given: Any, expected: Any, what: object) -> None:
    (d_x, d_state, parameters), (e_x, e_state, e_parameters) = given, expected
    assert_same_bytes((d_x, *d_state), (e_x, *e_state), what)
    for name, gradient in parameters.items():
        assert gradient.tobytes() == e_parameters[name].tobytes(), f"{what}: {name}"


@dtypes
@pytest.mark.parametrize("name", DIVIDED)
@kinds
def test_threads(variant: Variant, name: str, dtype: str) -> None:
    for own_state in (False, True):
        case = make_variant_case(name, variant, dtype, lengths=own_state, resets=own_state, own_state=own_state)
        lstm = case.network()
        one, slope = case.run(lstm, threads=1), gradients(case)
        for threads in (2, 3, 4, 7):
            assert_same_bytes(case.run(lstm, threads=threads), one, f"{threads} threads")
            assert_same_gradients(gradients(case, threads), slope, f"{threads} threads")


@dtypes
@kinds
def test_rows_alone_and_together(variant: Variant, dtype: str) -> None:
    case = make_variant_case("t9b13i20h37l2d2p9", variant, dtype, lengths=True, resets=True)
    lstm = case.network()
    whole = case.run(lstm)
    for rows in ([0], [5], [12, 3], [*range(12, -1, -1)], [4] * 7):
        assert_same_bytes(case.rows(rows).run(lstm), tuple(a[:, rows] for a in whole), f"rows {rows}")


@dtypes
@kinds
def test_cuts_in_time_and_streams(variant: Variant, dtype: str) -> None:
    """Whole, cut anywhere, step by step, and recorded."""
    case = make_variant_case("t23b3i5h17l2", replace(variant, reverse=False, flipped=False), dtype, own_state=True)
    lstm = case.network()
    whole = case.run(lstm)
    for cut in (1, 7, 22):
        first, state = lstm(case.x[:cut])
        second, state = lstm(case.x[cut:], state)
        assert_same_bytes((np.concatenate([first, second]), *state), whole, f"cut at {cut}")
    stream = lstm.stream(3)
    for _ in range(2):
        steps = [stream.step(x_t) for x_t in case.x]
        assert_same_bytes((np.stack(steps), *stream.state), whole, "stream")
        stream.reset()
    stream.step(case.x[0])
    stream.reset([1])
    step, begin = stream.step(case.x[0]), lstm(case.x[:1])[0][0]
    assert step[1].tobytes() == begin[1].tobytes()
    assert step[0].tobytes() != begin[0].tobytes()
    tape = lstm.record(case.x)
    assert_same_bytes((tape.output, *tape.state), whole, "recorded")


def test_reverse_networks_do_not_stream() -> None:
    lstm = make_variant_case("t2b1i3h4", Variant(reverse=True)).network()
    with pytest.raises(ValueError, match="reverse network cannot stream"):
        lstm.stream()


@dtypes
def test_one_reverse_direction_is_that_of_two(dtype: str) -> None:
    case = make_variant_case("t9b5i6h33d2", Variant(), dtype, lengths=True, resets=True)
    both = case.run()
    alone = Weights((case.weights.layers[1],), reverse=True)
    h_0, c_0 = (s[1:] for s in case.state)
    given = flat(fastlstm.LSTM.from_weights(alone)(case.x, (h_0, c_0), lengths=case.lengths, resets=case.resets))
    assert_same_bytes(given, (np.ascontiguousarray(both[0][..., 33:]), both[1][1:], both[2][1:]))


def test_flipped_output_goes_anywhere() -> None:
    """Batch-first, one sequence, a caller's buffer, a recorded pass."""
    case = make_variant_case("t9b5i6h33", VARIANTS["reverse, flipped, hard"], lengths=True)
    output, h_n, c_n = case.run()
    first = fastlstm.LSTM.from_weights(case.weights, batch_first=True)
    x, buffer = np.ascontiguousarray(case.x.swapaxes(0, 1)), np.full((5, 9, 33), np.nan, np.float32)
    given, state = first(x, case.state, lengths=case.lengths, out=buffer)
    assert given is buffer
    assert_same_bytes((given.swapaxes(0, 1), *state), (output, h_n, c_n))
    full = replace(case, lengths=None)
    one = case.network()(case.x[:, 0], tuple(s[:, 0] for s in case.state))
    assert_same_bytes(flat(one), tuple(a[:, 0] for a in full.run()))
    tape = first.record(x, case.state, lengths=case.lengths)
    assert_same_bytes((tape.output.swapaxes(0, 1), *tape.state), (output, h_n, c_n))
    d_output, d_state = asked(case)
    g = tape.backward(np.ascontiguousarray(d_output.swapaxes(0, 1)), d_state)
    assert_same_gradients((g.input.swapaxes(0, 1), g.state, g.parameters), gradients(case), "batch-first")


ISA_KINDS = {**VARIANTS, **KINDS}
ISA_VALUES = {"plain": 0.0, "nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 1e30, "tiny": 1e-39}


def isa_case(name: str, value: str, dtype: str) -> Case:
    case = make_variant_case("t7b5i6h35l2d2p9", ISA_KINDS[name], dtype, lengths=True, resets=True)
    if value != "plain":
        case.x[3:5, 0, ::3] = case.state[1][0, 1, ::2] = ISA_VALUES[value]
    return case


def assert_where_expected(case: Case, given: Any, expected: Any, what: str = "") -> None:
    """NaN and infinities in the same places, finite numbers close by."""
    bound = tolerance(case, tuple(np.nan_to_num(a, nan=0, posinf=0, neginf=0) for a in expected))
    for a, b in zip(given, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=bound, err_msg=what)


def joined(arrays: Any) -> np.ndarray:
    return np.concatenate([a.ravel() for a in arrays])


def isa_results() -> dict[str, np.ndarray]:
    """Outputs and gradients of all the cases."""
    results = {}
    for dtype in DTYPES:
        for name in ISA_KINDS:
            for value in ISA_VALUES:
                case = isa_case(name, value, dtype)
                d_x, d_state, parameters = gradients(case)
                results[f"{name}/{value}/{dtype}"] = joined(case.run(threads=1))
                results[f"{name}/{value}/{dtype}/gradients"] = joined((d_x, *d_state, *parameters.values()))
    return results


@pytest.fixture(scope="module")
def by_isa(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_by_isa("test_variants.isa_results", tmp_path_factory.mktemp("isas"))


def test_instruction_sets(by_isa: dict[str, Any]) -> None:
    assert_same_on_every_fused(by_isa)


@dtypes
@pytest.mark.parametrize("name", ISA_KINDS)
def test_instruction_sets_differ_by_rounding_only(name: str, dtype: str, by_isa: dict[str, Any]) -> None:
    """Outputs and gradients of each, the baseline's too, are the reference's; special values are where it has them."""
    for value in ISA_VALUES:
        case = isa_case(name, value, dtype)
        expected = joined(case.expected())
        for isa, results in by_isa.items():
            assert_where_expected(case, (results[f"{name}/{value}/{dtype}"],), (expected,), f"{isa}, {value}")
    case = isa_case(name, "plain", dtype)
    d_x, d_state, parameters = reference.backward(case.exact(), case.x, case.state, *asked(case), case.lengths, case.resets)
    tensors = (d_x, *d_state, *parameters.values())
    bounds = {"float32": 1e-5, "float64": 1e-11}[dtype] * joined(np.full(a.size, max(1.0, np.abs(a).max())) for a in tensors)
    for isa, results in by_isa.items():
        assert (np.abs(results[f"{name}/plain/{dtype}/gradients"] - joined(tensors)) <= bounds).all(), isa


# ---- Special values ------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ISA_KINDS)
def test_nan_and_infinity(name: str, value: str, dtype: str) -> None:
    """They go where the reference has them, and no other row notices."""
    case = isa_case(name, value, dtype)
    given, expected = case.run(), case.expected()
    assert_where_expected(case, given, expected)
    others = [2, 3, 4]
    assert_same_bytes(tuple(a[:, others] for a in given), case.rows(others).run(), "the other rows")


@dtypes
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_the_kernels(f: Activation, dtype: str) -> None:
    """One unit whose c is g = f(x): every function over its whole range, and its slope."""
    x = np.concatenate([np.linspace(-30, 30, 4001), np.geomspace(1e-30, 1e4, 200), -np.geomspace(1e-30, 1e4, 200)]).astype(dtype)
    one, big = np.array([[1.0]], dtype), np.array([0, 0, 0, 0], dtype)
    weight = np.array([[0], [0], [1], [0]], dtype)
    cell = Cell(Activation("affine", (0.0, 1.0)), f, Activation("linear"))
    lstm = fastlstm.LSTM.from_weights(Weights((LayerWeights(weight, 0 * weight, big, big, cell=cell),)))
    y, slope = equations.evaluate(f, x.astype(np.float64))
    tape = lstm.record(x[None, :, None])
    error = 4 * np.finfo(dtype).eps
    least = error if f.name in ("affine", "hard_sigmoid") else 0  # alpha x and beta cancel there
    np.testing.assert_allclose(tape.output[0, :, 0], y, rtol=error, atol=least + np.finfo(dtype).tiny)
    d_x = tape.backward(np.broadcast_to(one, (1, len(x), 1))).input[0, :, 0]
    left, right = (equations.evaluate(f, x.astype(np.float64) + sign * 1e-6)[1] for sign in (-1, 1))
    away = np.abs(left - right) < 1e-3  # from a kink, where rounding decides
    np.testing.assert_allclose(d_x[away], slope[away], rtol=4 * error, atol=error + np.finfo(dtype).tiny)


@dtypes
@kinds
def test_recomputed_tapes_take_the_same_gradients(variant: Variant, dtype: str) -> None:
    case = make_variant_case("t300b3i5h17l2d2p9", variant, dtype, lengths=True, resets=True)
    lstm, (d_output, d_state) = case.network(), asked(case)
    if variant.initial:
        with pytest.raises(ValueError, match="an initial state of its own"):
            lstm.record(case.x, case.state, recompute=True)
        return
    results = []
    for recompute in (False, True):
        tape = lstm.record(case.x, case.state, lengths=case.lengths, resets=case.resets, recompute=recompute)
        g = tape.backward(d_output, d_state)
        results.append(((tape.output, *tape.state), (g.input, g.state, g.parameters)))
    assert_same_bytes(results[1][0], results[0][0])
    assert_same_gradients(results[1][1], results[0][1], "recomputed")


# ---- Masks ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["learned state", "reverse, flipped, hard", "peepholes", "mixed"])
def test_masked_steps_are_left_out(name: str, batch_first: bool) -> None:
    """Each row is that row without its masked steps; resets at masked steps wait for the next real one."""
    case = make_variant_case("t12b6i4h9l2d2p5", VARIANTS[name], resets=True)
    assert case.resets is not None
    rng = np.random.default_rng(2)
    mask = rng.random((12, 6)) < 0.6
    mask[:, 4], mask[:, 5] = False, True
    case.resets[behind_last(mask)] = False
    case.x[~mask] = np.nan
    time = int(batch_first)
    lstm = fastlstm.LSTM.from_weights(case.weights, batch_first=batch_first)
    output, (h_n, c_n) = lstm(case.x.swapaxes(0, time), case.state, mask=mask, resets=case.resets)
    buffer = np.full_like(output, np.nan)
    lstm(case.x.swapaxes(0, time), case.state, mask=mask, resets=case.resets, out=buffer)
    assert buffer.tobytes() == output.tobytes()
    output = output.swapaxes(0, time)
    if case.weights.flipped:
        output = output[::-1]
    assert not output[~mask].any()
    for row in range(6):
        steps = np.flatnonzero(mask[:, row])
        resets = [case.resets[before + 1 : t + 1, row].any() for before, t in zip([-1, *steps], steps, strict=False)]
        state = tuple(s[:, row] for s in case.state)
        given = np.array(resets, bool)
        y, (h, c) = case.network()(case.x[steps, row], state, resets=given)
        y = y[::-1] if case.weights.flipped else y
        assert_same_bytes((output[steps, row], h_n[:, row], c_n[:, row]), (np.ascontiguousarray(y), h, c), f"row {row}")
        one = lstm(case.x[:, row], state, mask=mask[:, row], resets=case.resets[:, row])
        whole = output[::-1, row] if case.weights.flipped else output[:, row]
        assert_same_bytes(flat(one), (np.ascontiguousarray(whole), h, c), f"row {row} as one sequence")


def behind_last(mask: np.ndarray) -> np.ndarray:
    """Masked steps that have no real one after them."""
    return ~np.maximum.accumulate(mask[::-1], axis=0)[::-1]


@pytest.mark.parametrize("name", ["peepholes", "learned state", "rnn"])
@pytest.mark.parametrize("given", [False, True])
def test_a_reset_behind_the_last_step_holds_for_the_next_call(name: str, given: bool) -> None:
    """Calls on parts of a sequence, masked at their ends, give what one on the whole does; and so do their gradients."""
    rng = np.random.default_rng(0)
    network: Any = fastlstm.RNN(3, 5, 2, seed=0, dtype="float64")
    state: Any = rng.standard_normal((2, 6, 5))
    if name != "rnn":
        network = make_variant_case("t9b6i3h5l2", VARIANTS[name], "float64").network()
        state = tuple(rng.standard_normal((2, 2, 6, 5)))
    state = state if given else None
    x, d_output = rng.standard_normal((9, 6, 3)), rng.standard_normal((9, 6, 5))
    mask, resets = rng.random((9, 6)) < 0.5, rng.random((9, 6)) < 0.4
    mask[3:5, :3], resets[4, :2] = False, True
    mask[:5, 5], resets[:5, 5] = False, True
    one, two = slice(5), slice(5, None)

    def record(part: slice, before: Any) -> fastlstm.Tape[Any]:
        tape: fastlstm.Tape[Any] = network.record(x[part], before, mask=mask[part], resets=resets[part])
        output, final = network(x[part], before, mask=mask[part], resets=resets[part])
        assert output.tobytes() == tape.output.tobytes()
        assert [a.tobytes() for a in as_tuple(final)] == [a.tobytes() for a in as_tuple(tape.state)]
        return tape

    whole, first = record(slice(None), state), record(one, state)
    second = record(two, first.state)
    assert np.concatenate([first.output, second.output]).tobytes() == whole.output.tobytes()
    assert [a.tobytes() for a in as_tuple(second.state)] == [a.tobytes() for a in as_tuple(whole.state)]

    d_state = tuple(rng.standard_normal(array.shape) for array in as_tuple(whole.state))
    expected = whole.backward(d_output, d_state if len(d_state) == 2 else d_state[0])
    g_two = second.backward(d_output[two], d_state if len(d_state) == 2 else d_state[0])
    g_one = first.backward(d_output[one], g_two.state)
    np.testing.assert_allclose(np.concatenate([g_one.input, g_two.input]), expected.input, rtol=0, atol=1e-12)
    for found, wanted in zip(as_tuple(g_one.state), as_tuple(expected.state), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    for key, value in expected.parameters.items():
        if given or not key.startswith(("h_0", "c_0")):  # the second part was given a state
            total = g_one.parameters[key] + g_two.parameters[key]
            np.testing.assert_allclose(total, value, rtol=0, atol=1e-11, err_msg=key)


@pytest.mark.parametrize("name", ["peepholes", "learned state"])
def test_a_reset_behind_the_last_step_of_both_directions(name: str) -> None:
    """The forward one ends with the initial state, and the other begins with it."""
    rng = np.random.default_rng(0)
    lstm = make_variant_case("t5b3i3h4l2d2", VARIANTS[name], "float64").network()
    x, state, d_output = rng.standard_normal((5, 3, 3)), rng.standard_normal((2, 4, 3, 4)), rng.standard_normal((5, 3, 8))
    mask, resets = np.ones((5, 3), bool), np.zeros((5, 3), bool)
    mask[3:, :2], resets[4, 1] = False, True
    initial = lstm.weights.initial_state
    fresh = state.copy()
    for array, values in zip(fresh, initial, strict=True):
        array[1::2, 1] = values[1::2]
    tape, plain = lstm.record(x, tuple(state), mask=mask, resets=resets), lstm.record(x, tuple(fresh), mask=mask)
    assert tape.output.tobytes() == plain.output.tobytes()
    for found, wanted, values in zip(tape.state, plain.state, initial, strict=True):
        wanted[::2, 1] = values[::2]
        assert found.tobytes() == wanted.tobytes()
    d_state = rng.standard_normal((2, 4, 3, 4))
    g, kept = tape.backward(d_output, tuple(d_state)), d_state.copy()
    kept[:, ::2, 1] = 0
    expected = plain.backward(d_output, tuple(kept))
    assert g.input.tobytes() == expected.input.tobytes()
    for kind, found, wanted, final in zip("hc", g.state, expected.state, d_state, strict=True):
        for record in range(4):
            key = f"{kind}_0_l{record // 2}" + "_reverse" * (record % 2)
            if key in g.parameters:
                gained = wanted[record, 1] if record % 2 else final[record, 1]
                np.testing.assert_allclose(g.parameters[key], expected.parameters[key] + gained, rtol=0, atol=1e-13, err_msg=key)
        wanted[1::2, 1] = 0
        assert found.tobytes() == wanted.tobytes()


def as_tuple(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def test_large_arrays_are_copied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that Ctrl-C does not wait for a copy; the pieces make the same array."""
    case = make_variant_case("t12b6i4h9l2d2p5", VARIANTS["mixed"])
    mask = np.random.default_rng(2).random((12, 6)) < 0.6
    x, d_output = np.asfortranarray(case.x), asked(case)[0]

    def results() -> list[bytes]:
        lstm = case.network()
        tape = lstm.record(x, mask=mask)
        g = tape.backward(d_output)
        assert g.input is not None
        return [array.tobytes() for array in (*flat(lstm(x)), *flat(lstm(x, mask=mask)), tape.output, g.input, *g.state)]

    whole = results()
    for piece in (1, 200, 1000):
        monkeypatch.setattr(arrays, "PIECE", piece)
        assert results() == whole


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["reverse, flipped", "peepholes", "mixed"])
def test_gradients_of_masked_rows(name: str, batch_first: bool, recompute: bool) -> None:
    """Those of the row without its masked steps, for one row alone and for one of many."""
    case = make_variant_case("t12b3i4h9l2d2p5", VARIANTS[name], "float64", resets=True)
    assert case.resets is not None
    mask = np.random.default_rng(2).random((12, 3)) < 0.6
    np.logical_and(case.resets, mask, out=case.resets)
    time, lstm = int(batch_first), fastlstm.LSTM.from_weights(case.weights, batch_first=batch_first)
    d_output, d_state = asked(case)
    tape = lstm.record(case.x.swapaxes(0, time), case.state, mask=mask, resets=case.resets, recompute=recompute)
    called = lstm(case.x.swapaxes(0, time), case.state, mask=mask, resets=case.resets)
    assert_same_bytes((tape.output, *tape.state), flat(called))
    g = tape.backward(d_output.swapaxes(0, time), d_state)
    total = dict.fromkeys(g.parameters, 0.0)
    assert g.input is not None
    d_x, flip = g.input.swapaxes(0, time), -1 if case.weights.flipped else 1
    assert not d_x[~mask].any()
    for row in range(3):
        steps, state = np.flatnonzero(mask[:, row]), tuple(s[:, row] for s in case.state)
        alone = case.network().record(case.x[steps, row], state, resets=case.resets[steps, row])
        expected = alone.backward(d_output[::flip][steps, row][::flip], tuple(d[:, row] for d in d_state))
        np.testing.assert_allclose(d_x[steps, row], expected.input, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(g.state[0][:, row], expected.state[0], rtol=1e-12, atol=1e-13)
        total = {name: total[name] + gradient for name, gradient in expected.parameters.items()}
    for key, gradient in g.parameters.items():
        np.testing.assert_allclose(gradient, total[key], rtol=1e-11, atol=1e-12, err_msg=key)


def test_masks_that_are_refused() -> None:
    case = make_variant_case("t3b2i4h5", Variant())
    lstm, mask = case.network(), np.ones((3, 2), bool)
    assert_same_bytes(flat(lstm(case.x, case.state, mask=mask)), case.run())
    for wrong, error, words in (
        (mask[:2], ValueError, "mask must have shape"),
        (mask.astype(int), TypeError, "mask must be bool"),
    ):
        with pytest.raises(error, match=words):
            lstm(case.x, mask=wrong)
    with pytest.raises(ValueError, match="mask and lengths cannot be used together"):
        lstm(case.x, mask=mask, lengths=[1, 2])


def test_no_bound_on_the_projection_clips_nothing() -> None:
    """Where another feature makes it a variant: an infinite h is not taken for one that was clipped."""
    plain = fastlstm.LSTM(1, 2, proj_size=1, dtype="float64", seed=0).weights
    layer = replace(plain.layers[0], weight_hr=np.full((1, 2), 1.7e308), weight_hh=np.zeros((8, 1)))
    x, d_output = np.full((1, 1, 1), 20.0), np.ones((1, 1, 1))
    found = []
    for cell in (PLAIN, replace(PLAIN, cell_clip=100.0)):
        weights = replace(plain, layers=(replace(layer, weight_ih=np.full((8, 1), 2.0), cell=cell),))
        tape = fastlstm.LSTM.from_weights(weights).record(x)
        assert np.isinf(tape.output).all()
        found.append(tape.backward(d_output).parameters["weight_hr_l0"])
    assert found[0].tobytes() == found[1].tobytes()
    assert found[0].any()
