"""ONNX operators that normalize: each has a mean and a deviation, of what it is given or of what it was trained with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.operators.arguments import axis_of

__all__ = [
    "batch_normalization",
    "batch_normalization_of",
    "group_normalization",
    "group_normalization_of",
    "instance_normalization",
    "layer_normalization",
    "mean",
    "normalized",
    "skip_layer_normalization",
]


def mean(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    """NumPy's own warns where there is nothing to add."""
    return np.asarray(x.sum(axis, keepdims=keepdims) / x.dtype.type(math.prod(x.shape[each] for each in axis)))


def normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    """And the mean, and the deviation from it."""
    middle = mean(x, axes, True)
    centred = x - middle
    deviation = np.sqrt(mean(centred * centred, axes, True) + x.dtype.type(epsilon))
    return centred / deviation, middle, deviation


def _by_channel(parameter: Array, x: Array) -> Array:
    """Of axis 1 of x."""
    if x.ndim < 2 or parameter.shape != x.shape[1:2]:
        raise ValueError(f"a value for each channel of shape {x.shape} expected, got shape {parameter.shape}")
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


def layer_normalization(
    x: Array, scale: Array, bias: Array | None = None, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Array:
    axes = tuple(range(axis_of(axis, x.ndim), x.ndim))
    y, _, _ = normalized(x, axes, epsilon)
    y = y * np.broadcast_to(scale, x.shape)
    return np.asarray(y if bias is None else y + np.broadcast_to(bias, x.shape))


def skip_layer_normalization(
    x: Array, skip: Array, gamma: Array, beta: Array | None = None, bias: Array | None = None, epsilon: float = 1e-12
) -> tuple[Array, ...]:
    """A layer norm of a sum: the result, the mean, one by the deviation, and the sum."""
    total = x + np.broadcast_to(skip, x.shape)
    total = total if bias is None else total + np.broadcast_to(bias, x.shape)
    y, middle, deviation = normalized(total, (axis_of(-1, x.ndim),), epsilon)
    y = y * np.broadcast_to(gamma, x.shape)
    return y if beta is None else y + np.broadcast_to(beta, x.shape), middle, 1 / deviation, total


def batch_normalization(x: Array, scale: Array, bias: Array, average: Array, variance: Array, epsilon: float = 1e-5) -> Array:
    scale, bias, average, variance = (_by_channel(each, x) for each in (scale, bias, average, variance))
    return np.asarray((x - average) / np.sqrt(variance + variance.dtype.type(epsilon)) * scale + bias)


def batch_normalization_of(given: dict[str, Any], opset: int, outputs: int) -> dict[str, Any]:
    if given.pop("training_mode", 0) or not given.pop("spatial", 1):
        raise ValueError("training_mode or spatial is not that of inference, by channel")
    given.pop("momentum", None)
    return given


def instance_normalization(x: Array, scale: Array, bias: Array, epsilon: float = 1e-5) -> Array:
    y, _, _ = normalized(x, tuple(range(2, x.ndim)), epsilon)
    return np.asarray(y * _by_channel(scale, x) + _by_channel(bias, x))


def group_normalization(
    x: Array, scale: Array, bias: Array, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1, by_group: bool = False
) -> Array:
    if x.ndim < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"{num_groups} groups of the channels of shape {x.shape}")
    size = x.shape[1] // num_groups
    groups = x.reshape(len(x), num_groups, size * math.prod(x.shape[2:]))
    y = normalized(groups, (2,), epsilon)[0].reshape(x.shape)
    scale, bias = (np.repeat(each, size) if by_group else each for each in (scale, bias))
    return np.asarray(y * _by_channel(scale, x) + _by_channel(bias, x))


def group_normalization_of(given: dict[str, Any], opset: int, outputs: int) -> dict[str, Any]:
    """Before operator set 21 there is a scale for each group, since for each channel."""
    return {**given, "by_group": opset < 21}
