"""ONNX operators of 8-bit integers, as quantizers write them: exact in the integers, whatever the order of sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.operators.arguments import axis_of

__all__ = ["dequantize", "dynamic_quantize", "matmul_integer", "quantize", "quantize_of"]


BYTE = np.dtype(np.uint8)


def quantize_of(given: dict[str, Any], opset: int, outputs: int) -> dict[str, Any]:
    if any(given.pop(name, 0) for name in ("block_size", "output_dtype", "precision")):
        raise ValueError("block_size, output_dtype or precision is not understood")
    given.pop("saturate", None)  # of 8-bit floats
    return given


def _along(parameter: Array, x: Array, axis: int) -> Array:
    """One for all, or one for each place along an axis."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = axis_of(axis, x.ndim)
    if parameter.shape != x.shape[axis : axis + 1]:
        raise ValueError(f"one value, or one for each of axis {axis} of shape {x.shape} expected, got shape {parameter.shape}")
    return parameter.reshape(-1, *[1] * (x.ndim - 1 - axis))


def _check_integers(*arrays: Array | None) -> None:
    for array in arrays:
        if array is not None and array.dtype not in (np.int8, np.uint8):
            raise ValueError(f"integers of 8 bits expected, got {array.dtype}")


def dequantize(x: Array, scale: Array, zero: Array | None = None, axis: int = 1) -> Array:
    if x.dtype != np.int32:  # a bias
        _check_integers(x, zero)
    shift = 0 if zero is None else _along(zero, x, axis).astype(np.int64)
    return np.asarray((x.astype(np.int64) - shift).astype(np.float32) * _along(scale, x, axis))


def quantize(x: Array, scale: Array, zero: Array | None = None, axis: int = 1) -> Array:
    _check_integers(zero)
    kind: np.dtype[Any] = BYTE if zero is None else zero.dtype
    shift = 0 if zero is None else _along(zero, x, axis).astype(np.float32)
    return _rounded(np.rint(x / _along(scale, x, axis)) + shift, kind)


def _rounded(x: Array, kind: np.dtype[Any]) -> Array:
    bounds = np.iinfo(kind)
    return np.asarray(np.clip(np.nan_to_num(x), bounds.min, bounds.max).astype(kind))


def dynamic_quantize(x: Array) -> tuple[Array, Array, Array]:
    """To 0 to 255, so that 0 is exact: the integers, the scale and what stands for 0."""
    if x.dtype != np.float32:
        raise ValueError(f"float32 expected, got {x.dtype}")
    low, high = x.min(initial=0), x.max(initial=0)
    scale = (high - low) / np.float32(255) if high > low else np.float32(1)
    zero = np.rint(np.clip(-low / scale, 0, 255))
    return _rounded(np.rint(x / scale) + zero, BYTE), np.asarray(scale, np.float32), _rounded(zero, BYTE)


def matmul_integer(a: Array, b: Array, a_zero: Array | None = None, b_zero: Array | None = None) -> Array:
    """In float64, where every sum of products of 8-bit integers is exact."""
    _check_integers(a, b, a_zero, b_zero)
    left, right = a.astype(np.float64), b.astype(np.float64)
    if a_zero is not None:  # one for all, or for each row
        left -= a_zero.reshape(-1, 1) if a_zero.ndim == 1 and a_zero.size > 1 else a_zero
    if b_zero is not None:  # one for all, or for each column
        right -= b_zero
    return np.asarray(np.matmul(left, right).astype(np.int64).astype(np.int32))
