"""Masks: a row stands still at a step left out, so it is the row without that step.

Those steps are moved behind the row's end, where nothing is computed, and the results back to their own times.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastlstm.arrays import PIECE, Array, as_booleans, pieces

__all__ = ["Compacted", "begin_anew", "compact", "spread", "without_masked"]


class Compacted(NamedTuple):
    """Rows without their masked steps."""

    steps: Array  # (T, B, 1): the times of their steps, and then of the masked ones
    lengths: Array  # (B,)
    resets: Array | None  # (T, B), bytes
    ended: Array | None  # (B,): rows that restart after their last step; None if there are none


def without_masked(mask: Any, resets: Array | None, T: int, B: int, single: bool) -> Compacted:
    """What a mask leaves of rows. A reset at a masked step waits for the next real one, or for the next call."""
    real = as_booleans("mask", mask, (T,) if single else (T, B)).reshape(T, B)
    steps, lengths = np.empty((T, B), np.int64), np.empty(B, np.int64)
    moved = None if resets is None else np.empty((T, B), np.uint8)
    ended = np.zeros(B, bool)
    rows = max(1, PIECE // max(T * 8, 1))  # at a time, so that Ctrl-C does not wait
    for some in (slice(begin, begin + rows) for begin in range(0, B, rows)):
        steps[:, some] = np.argsort(~real[:, some], axis=0, kind="stable")
        lengths[some] = real[:, some].sum(axis=0)
        if resets is not None and moved is not None and T:
            seen = np.cumsum(resets[:, some], axis=0, dtype=np.int64)
            met = np.take_along_axis(seen, steps[:, some], 0)
            moved[:, some] = np.diff(met, axis=0, prepend=0) > 0
            last = np.take_along_axis(met, np.maximum(lengths[None, some] - 1, 0), 0)[0]
            ended[some] = seen[-1] > np.where(lengths[some] > 0, last, 0)
    return Compacted(steps[..., None], lengths, moved, ended if ended.any() else None)


def begin_anew(state: tuple[Array, Array], rows: Array, records: slice, initial: tuple[Array, Array] | None) -> None:
    """Give rows of some layers and directions the initial state (L*D, ...), or zeros, in place."""
    for array, values in zip(state, initial or (None, None), strict=True):
        array[records, rows] = 0 if values is None else values[records, None]


def compact(array: Array, steps: Array) -> Array:
    """Rows without their masked steps: what stands at the times (T, B, 1) of `steps`."""
    packed: Array = np.empty(array.shape, array.dtype)
    for piece in pieces(array):
        packed[piece] = np.take_along_axis(array, steps[piece], 0)
    return packed


def spread(packed: Array, steps: Array) -> None:
    """The opposite of :func:`compact`, in place: each step at its own time, and zeros at the masked ones."""
    array = np.zeros(packed.shape, packed.dtype)
    for piece in pieces(packed):
        np.put_along_axis(array, steps[piece], packed[piece], 0)  # behind a row's end it is zero already
    for piece in pieces(packed):
        packed[piece] = array[piece]
