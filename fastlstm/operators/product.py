"""Products of matrices; a small one gives a row the same bits in any batch."""

from __future__ import annotations

import numpy as np

from fastlstm.arrays import Array

__all__ = ["product"]

# Up to this many weights a dense layer adds in one order whatever the batch; beyond, the speed of a matrix product counts more
SMALL = 4096
BLOCK = 1 << 16  # products that a small dense layer has in memory at a time


def product(a: Array, b: Array) -> Array:
    """``a b``; with a small matrix b each row adds in one order, alone and in any batch."""
    if b.ndim == 2 and 0 < b.size <= SMALL and a.ndim and a.shape[-1] == len(b) and a.dtype.kind == "f":
        return _small_product(a, b.T)
    return np.asarray(np.matmul(a, b))


def _small_product(x: Array, weight: Array) -> Array:
    """``x W^T``, each number the sum of one contiguous row of products: NumPy adds those in one order, alone or in any batch."""
    O, I = weight.shape
    rows = x.reshape(-1, I)
    result = np.empty((len(rows), O), x.dtype)
    step = max(1, BLOCK // weight.size)
    for start in range(0, len(rows), step):
        np.add.reduce(rows[start : start + step, None] * weight, axis=-1, out=result[start : start + step])
    return result.reshape(*x.shape[:-1], O)
