"""The specification itself: against scalars by hand, PyTorch in float64, loops over pieces, autograd and central differences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import (
    Case,
    asked,
    assert_close,
    assert_gradients_close,
    assert_same_bytes,
    flat,
    import_torch,
    make_case,
    torch_forward,
    torch_network,
)
from shapes import EDGE

import fastlstm
from fastlstm import reference
from fastlstm.weights import LayerWeights, Weights, suffix

EXACT = 1e-12  # forward, two float64 implementations
EXACT_GRADIENT = 1e-10  # relative to the largest gradient: sums over all steps and rows

SHAPES = ("t6b5i3h4", "t4b3i7h2l2d2", "t5b4i6h8p3", "t7b3i4h5l3d2p2", "t9b4i5h5l2", "t1b3i2h3", "t4b1i3h2d2")


def cell_by_hand(layer: LayerWeights, x: Any, h: list[float], c: list[float]) -> tuple[list[float], list[float]]:
    """One step of one row in Python's numbers: each sum and product written out."""

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    H, h_t, c_t = len(c), [], []
    for n in range(H):
        z = []
        for gate in range(4):
            row = gate * H + n
            terms = [layer.weight_ih[row, k] * x[k] for k in range(len(x))] + [
                layer.weight_hh[row, k] * h[k] for k in range(len(h))
            ]
            biases = [] if layer.bias_ih is None or layer.bias_hh is None else [layer.bias_ih[row], layer.bias_hh[row]]
            z.append(math.fsum(terms + biases))
        c_t.append(sigmoid(z[1]) * c[n] + sigmoid(z[0]) * math.tanh(z[2]))
        h_t.append(sigmoid(z[3]) * math.tanh(c_t[n]))
    if layer.weight_hr is not None:
        h_t = [math.fsum(layer.weight_hr[p, n] * h_t[n] for n in range(H)) for p in range(len(layer.weight_hr))]
    return h_t, c_t


def pieces(case: Case, row: int, reverse: bool) -> list[tuple[list[int], bool]]:
    """The runs of steps of one row in the order of processing, each with whether it begins from the initial state."""
    length = case.shape.T if case.lengths is None else int(case.lengths[row])
    begins = [t for t in range(length) if t == 0 or (case.resets is not None and case.resets[t, row])]
    runs = [list(range(begin, end)) for begin, end in zip(begins, [*begins[1:], length], strict=False)]
    starts_anew = case.resets is not None and length > 0 and bool(case.resets[0, row])
    if reverse:
        return [(run[::-1], n == 0) for n, run in enumerate(reversed(runs))]
    return [(run, n == 0 and not starts_anew) for n, run in enumerate(runs)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_by_hand(name: str, bias: bool) -> None:
    case = make_case(name, "float64", bias=bias, lengths=True, resets=True)
    s = case.shape
    h_n, c_n = (state.copy() for state in case.state)
    y = case.x
    for layer in range(s.L):
        above = np.zeros((s.T, s.B, s.D * s.recurrent))
        for direction in range(s.D):
            k = layer * s.D + direction
            for row in range(s.B):
                h, c = list(case.state[0][k, row]), list(case.state[1][k, row])
                for run, from_initial in pieces(case, row, reverse=direction == 1):
                    if not from_initial:
                        h, c = [0.0] * s.recurrent, [0.0] * s.H
                    for t in run:
                        h, c = cell_by_hand(case.weights.layers[k], y[t, row], h, c)
                        above[t, row, direction * s.recurrent : (direction + 1) * s.recurrent] = h
                h_n[k, row], c_n[k, row] = h, c
        y = above
    assert_close(case.expected(), (y, h_n, c_n), EXACT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [s for s in EDGE if s.T and s.B], ids=str)
def test_forward_is_torchs(shape: Any, bias: bool) -> None:
    case = make_case(shape, "float64", bias=bias)
    assert_close(case.expected(), torch_forward(case), EXACT)


@pytest.mark.parametrize("name", SHAPES)
def test_lengths_are_torchs_packed_sequences(name: str) -> None:
    case = make_case(name, "float64", lengths=True)
    assert case.lengths is not None
    output, h_n, c_n = case.expected()
    some, none = case.lengths > 0, case.lengths == 0
    assert_close((output[:, some], h_n[:, some], c_n[:, some]), torch_forward(case.rows(some)), EXACT)
    assert not output[:, none].any()
    np.testing.assert_array_equal(h_n[:, none], case.state[0][:, none])
    np.testing.assert_array_equal(c_n[:, none], case.state[1][:, none])


def autograd(case: Case, d_output: np.ndarray | None, d_state: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Gradients by PyTorch: every piece of every row runs alone through one-directional one-layer networks."""
    torch = import_torch()
    s = case.shape
    cells = [torch_network(Weights((layer,))) for layer in case.weights.layers]
    x, h_0, c_0 = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (case.x, *case.state))
    y, h_n, c_n = x, {}, {}
    for layer in range(s.L):
        zero = torch.zeros(s.recurrent, dtype=torch.float64)  # the output in the padding
        columns = [[[zero] * s.D for _ in range(s.B)] for _ in range(s.T)]
        for direction in range(s.D):
            k = layer * s.D + direction
            for row in range(s.B):
                h, c = h_0[k, row], c_0[k, row]
                for run, from_initial in pieces(case, row, reverse=direction == 1):
                    if not from_initial:
                        h, c = torch.zeros_like(h), torch.zeros_like(c)
                    out, (h, c) = cells[k](y[run, row], (h[None], c[None]))
                    h, c = h[0], c[0]
                    for n, t in enumerate(run):
                        columns[t][row][direction] = out[n]
                h_n[k, row], c_n[k, row] = h, c
        y = torch.stack([torch.stack([torch.cat(directions) for directions in rows]) for rows in columns])
    loss = torch.zeros((), dtype=torch.float64)
    if d_output is not None:
        loss = loss + (y * torch.from_numpy(d_output)).sum()
    if d_state is not None:
        for final, gradient in zip((h_n, c_n), d_state, strict=True):
            for place, value in final.items():
                loss = loss + (value * torch.from_numpy(gradient[place])).sum()
    loss.backward()
    names = {}
    for k, cell in enumerate(cells):
        for name, parameter in cell.named_parameters():
            full = name.removesuffix("_l0") + suffix(k, s.D)
            names[full] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return x.grad, h_0.grad, c_0.grad, names


@pytest.mark.parametrize("which", ["output", "state", "both"])
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "lengths and resets"])
@pytest.mark.parametrize("name", SHAPES)
def test_backward_is_autograd(name: str, ragged: bool, which: str) -> None:
    case = make_case(name, "float64", lengths=ragged, resets=ragged)
    d_output, d_state = asked(case)
    given_output, given_state = (None if which == "state" else d_output), (None if which == "output" else d_state)
    given = reference.backward(case.weights, case.x, case.state, given_output, given_state, case.lengths, case.resets)
    assert_gradients_close(given, autograd(case, given_output, given_state), EXACT_GRADIENT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["t3b3i2h2l2d2", "t4b3i3h4p2", "t3b2i2h3l2d2p1"])
def test_backward_is_the_slope(name: str, bias: bool) -> None:
    """Every single element of the input, the states and the parameters by central differences."""
    case = make_case(name, "float64", bias=bias, lengths=True, resets=True, seed=2)
    d_output, d_state = asked(case)
    tensors = {"x": case.x, "h_0": case.state[0], "c_0": case.state[1], **dict(case.weights.named_tensors())}

    def loss() -> float:
        weights = Weights.from_named_tensors({name: tensors[name] for name, _ in case.weights.named_tensors()})
        result = reference.forward(weights, tensors["x"], (tensors["h_0"], tensors["c_0"]), case.lengths, case.resets)
        return sum(float((a * d).sum()) for a, d in zip(flat(result), (d_output, *d_state), strict=True))

    step = 1e-5  # truncation about step^2 = 1e-10, rounding about 1e-15 / step = 1e-10
    slopes = {}
    for name_, tensor in tensors.items():
        slopes[name_] = np.zeros_like(tensor)
        for at in np.ndindex(tensor.shape):
            value = tensor[at]
            tensor[at] = value + step
            above = loss()
            tensor[at] = value - step
            below = loss()
            tensor[at] = value
            slopes[name_][at] = (above - below) / (2 * step)
    given = reference.backward(case.weights, case.x, case.state, d_output, d_state, case.lengths, case.resets)
    expected = (slopes.pop("x"), slopes.pop("h_0"), slopes.pop("c_0"), slopes)
    assert_gradients_close(given, expected, 1e-8)


def test_no_state_is_zeros() -> None:
    case = make_case("t4b3i5h4l2d2p3", "float64")
    zeros = np.zeros_like(case.state[0]), np.zeros_like(case.state[1])
    assert_close(flat(reference.forward(case.weights, case.x)), flat(reference.forward(case.weights, case.x, zeros)), 0)


@pytest.mark.parametrize("name", ["t0b3i5h4l2d2p3", "t4b0i5h3d2", "t0b0i5h3"])
def test_nothing_to_do(name: str) -> None:
    case = make_case(name, "float64")
    output, h_n, c_n = case.expected()
    assert output.shape == (case.shape.T, case.shape.B, case.shape.D * case.shape.recurrent)
    np.testing.assert_array_equal(h_n, case.state[0])
    np.testing.assert_array_equal(c_n, case.state[1])
    d_x, d_state, parameters = reference.backward(case.weights, case.x, case.state, None, case.state)
    assert d_x.shape == case.x.shape
    np.testing.assert_array_equal(d_state[0], case.state[0])
    np.testing.assert_array_equal(d_state[1], case.state[1])
    assert not any(gradient.any() for gradient in parameters.values())


def test_float32_weights_are_computed_in_float64() -> None:
    case = make_case("t5b3i4h6l2p2")
    wide = Weights.from_named_tensors({name: a.astype(np.float64) for name, a in case.weights.named_tensors()})
    d_output, d_state = asked(case)
    narrow = reference.backward(case.weights, case.x, case.state, d_output, d_state)
    exact = reference.backward(wide, case.x.astype(np.float64), case.state, d_output, d_state)
    assert narrow[0].dtype == np.float64
    assert_gradients_close(narrow, (exact[0], *exact[1], exact[2]), EXACT_GRADIENT)
    assert case.expected()[0].dtype == np.float64
    assert_close(case.expected(), flat(reference.forward(wide, case.x, case.state)), EXACT)


def test_an_initial_state_of_the_network_is_taken_to_float64() -> None:
    weights = fastlstm.LSTM(3, 4, seed=0).weights
    zeros = replace(weights.layers[0], h_0=np.zeros(4, np.float32), c_0=np.zeros(4, np.float32))
    x = np.random.default_rng(0).standard_normal((9, 2, 3))
    own = flat(reference.forward(replace(weights, layers=(zeros,)), x))
    assert [array.dtype for array in own] == [np.float64] * 3
    assert_same_bytes(own, flat(reference.forward(weights, x)))
    third = np.full((1, 2, 4), 1 / 3)
    assert (reference.forward(replace(weights, layers=(zeros,)), x[:0], (third, third))[1][0] == 1 / 3).all()


def test_arguments_are_not_written_to() -> None:
    case = make_case("t5b4i3h6l2d2p4", "float64", lengths=True, resets=True)
    d_output, d_state = asked(case)
    arguments = [
        case.x,
        *case.state,
        case.lengths,
        case.resets,
        d_output,
        *d_state,
        *(a for _, a in case.weights.named_tensors()),
    ]
    before = [a.tobytes() for a in arguments if a is not None]
    for a in arguments:
        if a is not None:
            a.flags.writeable = False
    reference.backward(case.weights, case.x, case.state, d_output, d_state, case.lengths, case.resets)
    assert [a.tobytes() for a in arguments if a is not None] == before


def test_what_padding_holds_does_not_matter() -> None:
    case = make_case("t6b4i3h5l2d2p4", "float64", lengths=True, resets=True)
    assert case.lengths is not None
    assert case.resets is not None
    padding = np.arange(6)[:, None] >= case.lengths
    d_output, d_state = asked(case)
    clean = reference.backward(case.weights, case.x, case.state, d_output, d_state, case.lengths, case.resets & ~padding)
    x, d_output = case.x.copy(), d_output.copy()
    x[padding], d_output[padding] = np.nan, np.nan
    dirty = reference.backward(case.weights, x, case.state, d_output, d_state, case.lengths, case.resets | padding)
    assert_gradients_close(dirty, (clean[0], *clean[1], clean[2]), 0)
    output, _ = reference.forward(case.weights, x, case.state, case.lengths, case.resets | padding)
    assert not output[padding].any()


def test_huge_values_saturate_silently() -> None:
    """No overflow in the exponentials, no warning, and the limits themselves."""
    ones = np.ones((4, 1))
    weights = Weights((LayerWeights(ones, ones),))
    with np.errstate(all="raise", under="ignore"):
        output, (h_n, c_n) = reference.forward(weights, [[[1e5]], [[-1e5]]], ([[[0.5]]], [[[2.0]]]))
    np.testing.assert_array_equal(output[:, 0, 0], [math.tanh(3.0), 0.0])  # c = 1 * 2 + 1 * 1, then all gates shut
    np.testing.assert_array_equal([h_n, c_n], [[[[0.0]]], [[[0.0]]]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(value: float) -> None:
    case = make_case("t6b4i3h5l2p4", "float64")
    clean = case.expected()
    x = case.x.copy()
    x[2, 1] = value
    output, (h_n, c_n) = reference.forward(case.weights, x, case.state)
    others = [0, 2, 3]
    for given, expected in zip((output, h_n, c_n), clean, strict=True):
        np.testing.assert_array_equal(given[:, others], expected[:, others])
    np.testing.assert_array_equal(output[:2], clean[0][:2])
    assert np.isnan(output[2:, 1]).all()  # infinities of both signs meet in every sum
    assert np.isnan(h_n[:, 1]).all()
