"""Numbers among what ONNX operators are given: axes, sizes and places, checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastlstm.arrays import Array

__all__ = ["axes_of", "axis_of", "either", "integers_of", "number_of", "sizes_of"]


def integers_of(value: Array | Sequence[int] | None) -> list[int] | None:
    """From an attribute, or an input of few integers."""
    if value is None or isinstance(value, list):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ValueError(f"axes, sizes and places must be a list of integers, got {array.dtype} of shape {array.shape}")
    return [int(number) for number in array.reshape(-1)]


def either(attribute: Sequence[int] | None, value: Array | None, what: str) -> list[int]:
    found = integers_of(value if attribute is None else attribute)
    if found is None:
        raise ValueError(f"{what} are missing")
    return found


def axis_of(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a tensor with {rank} dimensions")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    result = tuple(axis_of(axis, rank) for axis in axes)
    if len(set(result)) < len(result):
        raise ValueError(f"axes {result} name one twice")
    return result


def sizes_of(shape: Array | None) -> list[int]:
    sizes = either(None, shape, "sizes")
    if min(sizes, default=0) < 0:
        raise ValueError(f"sizes {sizes!s:.100}: none may be negative")
    return sizes


def number_of(value: Array, what: str) -> int:
    """The only one of an input."""
    found = integers_of(value)
    if found is None or len(found) != 1:
        raise ValueError(f"{what} must be one integer, got shape {value.shape}")
    return found[0]
