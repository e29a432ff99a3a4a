"""Bytes to float arrays, exactly: float16 and bfloat16 become the float32 of the same value."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.arrays import Array

__all__ = ["STORED", "fill", "to_floats"]


# How the bytes are read; NumPy has no bfloat16, so its bits are
STORED: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


def to_floats(stored: Array, dtype: str) -> Array:
    """Return a new C-contiguous native array that owns its memory; ``stored`` has the type ``STORED[dtype]``, any byte order."""
    if dtype == "bfloat16":
        result: Array = np.empty(stored.shape, np.float32)
        bits = result.view(np.uint32)
        bits[...] = stored
        bits <<= 16  # a bfloat16 is the upper half of a float32
        return result
    return stored.astype(np.float64 if dtype == "float64" else np.float32, order="C")


def fill(target: Array, stored: Array) -> None:
    """Write stored numbers, of any layout and of a type of ``STORED``, into a part of an array of float32 or float64."""
    if stored.dtype.kind == "u":
        bits = target.view(np.uint32)
        bits[...] = stored
        bits <<= 16
    else:
        with np.errstate(over="ignore"):
            target[...] = stored
