"""Activations: those of layers by Keras' names, and ONNX' with their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.equations import sigmoid
from fastlstm.operators.arguments import axis_of

Given = dict[str, Any]

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al., "Self-Normalizing Neural Networks", 2017


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def along_axis(function: Callable[[Array], Array]) -> Callable[..., Array]:
    """Of an axis instead of the last one; before operator set 13 (`flat`) of all axes from it on, as if they were one."""

    def run(x: Array, axis: int, flat: bool) -> Array:
        axis = axis_of(axis, x.ndim)
        turned = x.reshape(*x.shape[:axis], math.prod(x.shape[axis:])) if flat else np.moveaxis(x, axis, -1)
        if not turned.shape[-1]:  # there is no maximum of nothing
            raise ValueError(f"axis {axis} of a tensor of shape {x.shape} is empty")
        y = function(turned)
        return y.reshape(x.shape) if flat else np.moveaxis(y, -1, axis)

    return run


def softmax_axis(given: Given, opset: int, outputs: int) -> Given:
    return {"axis": given.get("axis", 1 if opset < 13 else -1), "flat": opset < 13}


_erf_each = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array) -> Array:
    return np.asarray(_erf_each(x) if x.size else x).astype(x.dtype)


def gelu(x: Array, approximate: bytes = b"none") -> Array:
    if approximate == b"tanh":
        inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x)))
    else:
        inner = erf(x * math.sqrt(0.5))
    return np.asarray(0.5 * x * (1 + inner))


def gelu_kind(given: Given, opset: int, outputs: int) -> Given:
    if given.get("approximate", b"none") not in (b"none", b"tanh"):
        raise ValueError("approximate must be none or tanh")
    return given


def elu(x: Array, alpha: float = 1.0) -> Array:
    return np.where(x < 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x)


def selu(x: Array, alpha: float = SELU_ALPHA, gamma: float = SELU_SCALE) -> Array:
    return np.asarray(x.dtype.type(gamma) * elu(x, alpha))


def leaky_relu(x: Array, alpha: float = 0.01) -> Array:
    return np.where(x < 0, x.dtype.type(alpha) * x, x)


def hard_sigmoid(x: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    return np.asarray(np.minimum(np.maximum(x.dtype.type(alpha) * x + x.dtype.type(beta), 0), 1))


def hard_swish(x: Array) -> Array:
    return np.asarray(x * hard_sigmoid(x, 1 / 6, 0.5))


def prelu(x: Array, slope: Array) -> Array:
    return np.where(x < 0, x * np.broadcast_to(slope, x.shape), x)


KERAS_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {  # of layers, with the constants of Keras 3 where none says otherwise
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "softmax": _softmax,
    "elu": elu,
    "softplus": lambda x: np.logaddexp(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "silu": lambda x: x * sigmoid(x),
    "exponential": np.exp,
    "leaky_relu": lambda x: leaky_relu(x, 0.2),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_sigmoid_keras2": hard_sigmoid,
    "selu": selu,
    "log_softmax": _log_softmax,
    "gelu": gelu,
}
