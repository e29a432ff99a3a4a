"""Masks: a row stands still at a step left out, so it is the row without that step.

Those steps are moved behind the row's end, where nothing is computed, and the results back to their own times.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.arrays import Array, as_booleans, pieces

__all__ = ["put_in_order", "taken_in_order", "without_masked"]


def without_masked(
    x: Array, mask: Any, lengths: Array | None, resets: Array | None, single: bool
) -> tuple[Array, Array, Array | None, Array]:
    """The input, lengths and resets without the masked steps, and the times (T, B, 1) of its steps."""
    if lengths is not None:
        raise ValueError("mask and lengths cannot be used together: pass one of them")
    T, B, _ = x.shape
    order, count = _real_steps(mask, (T,) if single else (T, B))
    order, count = order.reshape(T, B), count.reshape(B)
    if resets is not None:  # one at a masked step waits for the next real one
        seen = np.take_along_axis(np.cumsum(resets, axis=0, dtype=np.int64), order, 0)
        resets = (np.diff(seen, axis=0, prepend=np.zeros((1, B), np.int64)) > 0).view(np.uint8)
    return taken_in_order(x, order[..., None]), count, resets, order[..., None]


def _real_steps(mask: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """A mask as the real steps of each row: their order (T, B), before the masked ones, and their number (B,)."""
    array = as_booleans("mask", mask, shape)
    return np.argsort(~array, axis=0, kind="stable"), array.sum(axis=0, dtype=np.int64)


def taken_in_order(array: Array, order: Array) -> Array:
    """Rows without their masked steps: what stands at the times (T, B, 1) of `order`."""
    packed: Array = np.empty(array.shape, array.dtype)
    for piece in pieces(array):
        packed[piece] = np.take_along_axis(array, order[piece], 0)
    return packed


def put_in_order(packed: Array, order: Array) -> None:
    """What stands at each step of rows without their masked steps, put at its own time, in place."""
    spread = np.zeros(packed.shape, packed.dtype)
    for piece in pieces(packed):
        np.put_along_axis(spread, order[piece], packed[piece], 0)  # behind a row's end it is zero already
    for piece in pieces(packed):
        packed[piece] = spread[piece]
