"""The cell of :class:`fastlstm.cell.Cell` in float64 NumPy, and its gradient: what one step does to each row and unit by itself.

Infinity and NaN go where IEEE arithmetic takes them.
"""

from __future__ import annotations

import numpy as np

from fastlstm.cell import Activation
from fastlstm.weights import Array, LayerWeights

__all__ = ["backward", "clip", "evaluate", "forward", "sigmoid"]

Saved = tuple[Array, ...]  # what a step keeps for its gradient


def forward(w: LayerWeights, z: Array, c_prev: Array) -> tuple[Array, Array, Saved]:
    """The new c, and h before the projection, from the pre-activations `z` (B, 4H) without peepholes and the old c (B, H)."""
    if w.nonlinearity:  # a plain RNN: h is all there is
        h, dh = evaluate(Activation(w.nonlinearity), z)
        return c_prev, h, (dh,)
    z_i, z_f, z_g, z_o = np.split(z, 4, axis=1)
    cell = w.cell
    i, di = _gate(cell.gate, z_i + _peephole(w, 0, c_prev), cell.gate_clip)  # di is the slope of i, and so on
    f, df = _gate(cell.gate, z_f + _peephole(w, 1, c_prev), cell.gate_clip)
    g, dg = _gate(cell.candidate, z_g, cell.gate_clip)
    if cell.coupled == "forget":
        f, df = 1 - i, np.zeros_like(i)
    elif cell.coupled == "input":
        i, di = 1 - f, np.zeros_like(f)
    c, dc = clip(f * c_prev + i * g, cell.cell_clip)
    o, do = _gate(cell.gate, z_o + _peephole(w, 2, c), cell.gate_clip)
    s, ds = evaluate(cell.hidden, c)
    return c, o * s, (c_prev, c, i, f, g, o, s, di, df, dg, do, ds, dc)


def backward(w: LayerWeights, saved: Saved, d_m: Array, d_c: Array) -> tuple[Array, Array, Array]:
    """Gradients of z, of the old c and, summed over rows, of the peepholes, from those of the results of :func:`forward`."""
    if w.nonlinearity:
        d_z = np.where(saved[0] == 0, 0.0, d_m) if w.nonlinearity == "relu" else d_m * saved[0]  # relu lets no NaN through
        return d_z, d_c, np.zeros(0)
    c_prev, c, i, f, g, o, s, di, df, dg, do, ds, dc = saved
    d_o = d_m * s * do
    d_c = (d_c + d_m * o * ds + _peephole(w, 2, d_o)) * dc
    d_i = d_c * (g - c_prev if w.cell.coupled == "forget" else g) * di
    d_f = d_c * (c_prev - g if w.cell.coupled == "input" else c_prev) * df
    d_c_prev = d_c * f + _peephole(w, 0, d_i) + _peephole(w, 1, d_f)
    d_peephole = np.concatenate([d_i * c_prev, d_f * c_prev, d_o * c], axis=1).sum(axis=0)
    return np.concatenate([d_i, d_f, d_c * i * dg, d_o], axis=1), d_c_prev, d_peephole


def clip(x: Array, bound: float | None) -> tuple[Array, Array]:
    """The clipped values, and their slopes: 0 or 1, and 1 where x is the bound itself."""
    if bound is None:
        return x, np.ones_like(x)
    return np.clip(x, -bound, bound), np.where(np.abs(x) > bound, 0.0, 1.0)


def _gate(activation: Activation, z: Array, bound: float | None) -> tuple[Array, Array]:
    clipped, inside = clip(z, bound)
    value, slope = evaluate(activation, clipped)
    return value, slope * inside


def _peephole(w: LayerWeights, gate: int, c: Array) -> Array | float:
    return 0.0 if w.weight_peephole is None else np.split(w.weight_peephole, 3)[gate] * c


def evaluate(activation: Activation, x: Array) -> tuple[Array, Array]:
    """The function's values and its slopes at `x`; at a kink the slope of the left, at the bounds of hard_sigmoid 0."""
    a, b = (*activation.parameters, 0.0, 0.0)[:2]
    match activation.name:
        case "sigmoid":
            y = sigmoid(x)
            return y, y * (1 - y)
        case "tanh" | "scaled_tanh":
            a, b = activation.parameters or (1.0, 1.0)
            y = np.tanh(b * x)
            return a * y, a * b * (1 - y**2)
        case "relu":
            return np.where(x < 0, 0.0, x), np.where(x <= 0, 0.0, 1.0)
        case "linear":
            return x, np.ones_like(x)
        case "affine":
            return a * x + b, np.full_like(x, a)
        case "hard_sigmoid":
            y = a * x + b
            return np.clip(y, 0.0, 1.0), np.where((y <= 0) | (y >= 1), 0.0, a)
        case "softsign":
            return x / (1 + np.abs(x)), 1 / (1 + np.abs(x)) ** 2
        case "softplus":
            return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), sigmoid(x)
        case "elu":
            e = np.exp(np.minimum(x, 0))
            return np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x), np.where(x <= 0, a * e, 1.0)
        case "leaky_relu":
            return np.where(x < 0, a * x, x), np.where(x <= 0, a, 1.0)
        case "thresholded_relu":
            return np.where(x < a, 0.0, x), np.where(x <= a, 0.0, 1.0)
    raise AssertionError(activation.name)


def sigmoid(x: Array) -> Array:
    """Of x's own type."""
    e = np.exp(-np.abs(x))  # cannot overflow
    return np.where(x < 0, e, 1.0) / (1.0 + e)
