"""Numbers of smaller types, as float32: how the matrices of a network are rounded that keeps them small.

float16 and bfloat16 round to the nearest, ties to even. int8 is an integer from -127 to 127 times a scale, which each row of a
matrix (one gate of one unit) has of its own: its largest magnitude divided by 127, to 16 bits, so that a product is a float32
without rounding, and rounding again changes nothing.
"""

from __future__ import annotations

import numpy as np

from fastlstm.arrays import Array

__all__ = ["TYPES", "rounded"]


def rounded(name: str, matrix: Array, weight_dtype: str) -> Array:
    """The nearest numbers that a type has.

    Parameters
    ----------
    name : str
        For messages.
    matrix : array of float32, shape (rows, K)
    weight_dtype : {"float16", "bfloat16", "int8"}

    Returns
    -------
    array of float32, shape (rows, K)

    Raises
    ------
    ValueError
        If a number is too large for the type, or not finite and the type is int8.
    """
    with np.errstate(all="ignore"):
        result = TYPES[weight_dtype](matrix)
    finite = np.isfinite(matrix)
    lost = ~finite if weight_dtype == "int8" and not finite.all() else finite & ~np.isfinite(result)
    if lost.any():
        value = matrix[np.unravel_index(int(np.argmax(lost)), matrix.shape)]
        raise ValueError(f"{name} holds {value}, which weight_dtype {weight_dtype!r} cannot represent")
    return result


def _float16(matrix: Array) -> Array:
    return matrix.astype(np.float16).astype(np.float32)


def _bfloat16(matrix: Array) -> Array:
    bits = matrix.view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    result: Array = nearest.view(np.float32)
    result[np.isnan(matrix)] = np.nan
    return result


def _int8(matrix: Array) -> Array:
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    fraction, exponent = np.frexp(largest / np.float32(127))
    scale = np.ldexp(np.rint(fraction * np.float32(2**16)), exponent - 16).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 0  # the kernels take a subnormal one for zero
    steps = np.rint(np.divide(matrix, scale, out=np.zeros_like(matrix), where=scale > 0))
    result: Array = np.clip(steps, -127, 127) * scale
    return result


TYPES = {"float16": _float16, "bfloat16": _bfloat16, "int8": _int8}
