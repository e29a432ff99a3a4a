"""ONNX operators that take elements by number, or put them somewhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.operators.arguments import axes_of, axis_of, either, integers_of, number_of

__all__ = [
    "gather_elements",
    "gather_nd",
    "gather_nd_size",
    "one_hot",
    "one_hot_size",
    "pad",
    "pad_of",
    "pad_size",
    "range_of",
    "range_size",
    "scatter_elements",
    "scatter_nd",
    "scatter_of",
    "top_k",
    "triangle",
]


def _check_indices(indices: Array) -> None:
    if indices.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got {indices.dtype}")


def _lines(x: Array, indices: Array, axis: int) -> Array:
    """What the indices are into: a view of the lines along the axis that they are for."""
    _check_indices(indices)
    if indices.ndim != x.ndim or any(m > n for at, (m, n) in enumerate(zip(indices.shape, x.shape, strict=True)) if at != axis):
        raise ValueError(f"indices of shape {indices.shape} into a tensor of shape {x.shape}")
    return x[tuple(slice(None) if at == axis else slice(size) for at, size in enumerate(indices.shape))]


def gather_elements(x: Array, indices: Array, axis: int = 0) -> Array:
    axis = axis_of(axis, x.ndim)
    return np.take_along_axis(_lines(x, indices, axis), indices, axis)


def scatter_of(given: dict[str, Any], opset: int, outputs: int) -> dict[str, Any]:
    if given.pop("reduction", b"none") != b"none":
        raise ValueError("reduction must be none")
    return given


def _check_updates(x: Array, updates: Array, shape: tuple[int, ...]) -> None:
    if updates.dtype != x.dtype or updates.shape != shape:
        raise ValueError(f"updates of {x.dtype} and shape {shape} expected, got {updates.dtype} of shape {updates.shape}")


def scatter_elements(x: Array, indices: Array, updates: Array, axis: int = 0) -> Array:
    axis, result = axis_of(axis, x.ndim), np.array(x)
    _check_updates(x, updates, indices.shape)
    np.put_along_axis(_lines(result, indices, axis), indices, updates, axis)
    return result


def scatter_nd(x: Array, indices: Array, updates: Array) -> Array:
    _check_indices(indices)
    if not indices.ndim or not 1 <= indices.shape[-1] <= x.ndim:
        raise ValueError(f"indices of shape {indices.shape} into a tensor of shape {x.shape}")
    _check_updates(x, updates, indices.shape[:-1] + x.shape[indices.shape[-1] :])
    result: Array = np.array(x)
    result[tuple(np.moveaxis(indices, -1, 0))] = updates
    return result


def triangle(x: Array, k: Array | None = None, upper: int = 1) -> Array:
    if x.ndim < 2:
        raise ValueError(f"matrices expected, got shape {x.shape}")
    furthest = max(x.shape)
    diagonal = 0 if k is None else max(-furthest, min(furthest, number_of(k, "k")))
    return np.triu(x, diagonal) if upper else np.tril(x, diagonal)


def gather_nd_size(x: Array, indices: Array, batch_dims: int = 0) -> int:
    if not 0 <= batch_dims < indices.ndim or not 1 <= indices.shape[-1] <= x.ndim - batch_dims:
        raise ValueError(f"indices of shape {indices.shape} into a tensor of shape {x.shape}, batch_dims {batch_dims}")
    return math.prod((*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :]))


def gather_nd(x: Array, indices: Array, batch_dims: int = 0) -> Array:
    _check_indices(indices)
    shape = indices.shape[:-1]
    if x.shape[:batch_dims] != shape[:batch_dims]:
        raise ValueError(f"indices of shape {indices.shape} into a tensor of shape {x.shape}, batch_dims {batch_dims}")
    rows = (np.arange(n).reshape(-1, *[1] * (len(shape) - 1 - axis)) for axis, n in enumerate(shape[:batch_dims]))
    return np.asarray(x[tuple(rows) + tuple(np.moveaxis(indices, -1, 0))])


def _range(start: Array, limit: Array, delta: Array) -> tuple[Any, Any, int]:
    if any(each.size != 1 for each in (start, limit, delta)):
        raise ValueError("start, limit and delta must be one number each")
    first, last, step = (each.reshape(()).item() for each in (start, limit, delta))
    steps = -((first - last) // step) if isinstance(step, int) else math.ceil((last - first) / step)
    return first, step, max(0, steps)


def range_size(start: Array, limit: Array, delta: Array) -> int:
    return _range(start, limit, delta)[2]


def range_of(start: Array, limit: Array, delta: Array) -> Array:
    first, step, count = _range(start, limit, delta)
    return np.asarray(first + np.arange(count) * step, start.dtype)


def one_hot_size(indices: Array, depth: Array, values: Array, axis: int = -1) -> int:
    return max(1, indices.size) * max(0, number_of(depth.astype(np.int64), "depth"))


def one_hot(indices: Array, depth: Array, values: Array, axis: int = -1) -> Array:
    """A negative index counts from the end; one that is out of bounds gives nothing but the first value."""
    size = number_of(depth.astype(np.int64), "depth")
    if values.shape != (2,) or size < 0:
        raise ValueError(f"a depth and two values expected, got {size} and shape {values.shape}")
    axis = axis_of(axis, indices.ndim + 1)
    places = np.arange(size).reshape(-1, *[1] * (indices.ndim - axis))
    at = np.expand_dims(indices, axis)
    return np.asarray(np.where((at == places) | (at == places - size), values[1], values[0]))


def _pads(x: Array, pads: Any, axes: Any) -> list[tuple[int, int]]:
    numbers, along = either(None, pads, "pads") if isinstance(pads, np.ndarray) else list(pads or ()), integers_of(axes)
    where = axes_of(range(x.ndim) if along is None else along, x.ndim)
    if len(numbers) != 2 * len(where):
        raise ValueError(f"{len(numbers)} pads for {len(where)} axes")
    result = [(0, 0)] * x.ndim
    for place, axis in enumerate(where):
        result[axis] = numbers[place], numbers[place + len(where)]
        if x.shape[axis] + min(result[axis]) < 0 or x.shape[axis] + sum(result[axis]) < 0:
            raise ValueError(f"pads {result[axis]} of an axis of {x.shape[axis]}")
    return result


def pad_size(x: Array, pads: Any = None, constant: Array | None = None, axes: Array | None = None, **given: Any) -> int:
    around = _pads(x, given.get("pads", pads), axes)
    return math.prod(size + sum(ends) for size, ends in zip(x.shape, around, strict=True))


def pad(x: Array, given: Array | None = None, constant: Array | None = None, axes: Array | None = None, **old: Any) -> Array:
    """With one value; a negative number of them takes elements away."""
    around = _pads(x, old.get("pads", given), axes)
    if constant is not None and (constant.size != 1 or constant.dtype != x.dtype):
        raise ValueError(f"one value of {x.dtype} expected, got {constant.dtype} of shape {constant.shape}")
    value = old.get("value", 0) if constant is None else constant.reshape(())
    result: Array = np.full([size + sum(ends) for size, ends in zip(x.shape, around, strict=True)], value, x.dtype)
    source = tuple(slice(max(0, -low), size + min(0, high)) for size, (low, high) in zip(x.shape, around, strict=True))
    target = tuple(slice(max(0, low), n - max(0, high)) for n, (low, high) in zip(result.shape, around, strict=True))
    result[target] = x[source]
    return result


def pad_of(given: dict[str, Any], opset: int, outputs: int) -> dict[str, Any]:
    if given.pop("mode", b"constant") != b"constant":
        raise ValueError("mode must be constant")
    return given


def top_k(
    x: Array, given: Array | None = None, k: int | None = None, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Array, Array]:
    """In order, and of equal ones the first."""
    axis = axis_of(axis, x.ndim)
    size = x.shape[axis]
    count = k if given is None else number_of(given, "k")
    if count is None or not 0 <= count <= size:
        raise ValueError(f"the first {count} of {size}")
    order = np.argsort(np.flip(x, axis) if largest else x, axis, kind="stable")
    order = size - 1 - np.flip(order, axis) if largest else order
    places = np.take(order, np.arange(count), axis)
    return np.take_along_axis(x, places, axis), places
