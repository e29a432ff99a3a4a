"""ONNX operators that give the same elements in another shape, order or type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.operators.arguments import axes_of, axis_of, either, integers_of, sizes_of

Given = dict[str, Any]


def expand_size(x: Array, shape: Array) -> int:
    return math.prod(np.broadcast_shapes(x.shape, tuple(sizes_of(shape))))


def gather_size(x: Array, indices: Array, axis: int = 0) -> int:
    axis = axis_of(axis, x.ndim)
    return math.prod((*x.shape[:axis], indices.size, *x.shape[axis + 1 :]))


def transpose(x: Array, perm: list[int] | None = None) -> Array:
    return np.transpose(x, perm)


def reshape(x: Array, shape: Array, allowzero: int = 0) -> Array:
    sizes = either(None, shape, "sizes")
    if not allowzero:
        if any(size == 0 and axis >= x.ndim for axis, size in enumerate(sizes)):
            raise ValueError(f"shape {sizes!s:.100} of a tensor with {x.ndim} dimensions")
        sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
    if min(sizes, default=0) < -1:
        raise ValueError(f"shape {sizes!s:.100}: sizes expected, -1 at most once")
    return x.reshape(sizes)


def flatten(x: Array, axis: int = 1) -> Array:
    if not -x.ndim <= axis <= x.ndim:
        raise ValueError(f"axis {axis} of a tensor with {x.ndim} dimensions")
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def squeeze(x: Array, given: Array | None = None, axes: list[int] | None = None) -> Array:
    gone = integers_of(given if axes is None else axes)
    return np.squeeze(x, None if gone is None else axes_of(gone, x.ndim))


def unsqueeze(x: Array, given: Array | None = None, axes: list[int] | None = None) -> Array:
    new = either(axes, given, "axes")
    return np.expand_dims(x, axes_of(new, x.ndim + len(new)))


def slice_of(x: Array, *given: Array | None, **attributes: list[int]) -> Array:
    starts, ends, axes, steps = [*given, *[None] * 4][:4]
    first = either(attributes.get("starts"), starts, "starts")
    last = either(attributes.get("ends"), ends, "ends")
    along = integers_of(attributes.get("axes", axes))
    along = list(axes_of(range(len(first)) if along is None else along, x.ndim))
    step = integers_of(steps) or [1] * len(first)
    if not len(first) == len(last) == len(along) == len(step) or 0 in step:
        raise ValueError("starts, ends, axes and steps must be equally many, and no step 0")
    where = [slice(None)] * x.ndim
    for axis, *ends_and_step in zip(along, first, last, step, strict=True):
        start, stop, stride = slice(*ends_and_step).indices(x.shape[axis])
        where[axis] = slice(start, stop if stop >= 0 else None, stride)  # a range backwards to the front ends before 0
    return x[tuple(where)]


def split(
    x: Array, given: Array | None = None, split: list[int] | None = None, axis: int = 0, parts: int = 1
) -> tuple[Array, ...]:
    axis, sizes = axis_of(axis, x.ndim), integers_of(given if split is None else split)
    if sizes is None:  # equal parts; the last may be smaller
        size = -(-x.shape[axis] // parts)
        ends = [min(size * part, x.shape[axis]) for part in range(1, parts)]
    else:
        if len(sizes) != parts or min(sizes) < 0 or sum(sizes) != x.shape[axis]:
            raise ValueError(f"split {sizes!s:.100} of {x.shape[axis]} into {parts} outputs")
        ends = [sum(sizes[:part]) for part in range(1, parts)]
    return tuple(np.split(x, ends, axis))


def split_parts(given: Given, opset: int, outputs: int) -> Given:
    if given.pop("num_outputs", outputs) != outputs:
        raise ValueError(f"num_outputs differs from its {outputs} outputs")
    return {**given, "parts": outputs}


def concatenate(*parts: Array, axis: int) -> Array:
    return np.concatenate(parts, axis_of(axis, parts[0].ndim))


def gather(x: Array, indices: Array, axis: int = 0) -> Array:
    if indices.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got {indices.dtype}")
    return np.take(x, indices, axis_of(axis, x.ndim))


def shape_of(x: Array, start: int = 0, end: int | None = None) -> Array:
    return np.array(x.shape[slice(start, end)], np.int64)


def expand(x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(sizes_of(shape))))


def constant_of_shape(shape: Array, value: Array | None = None) -> Array:
    one = np.zeros(1, np.float32) if value is None else value
    if one.size != 1:
        raise ValueError(f"one value expected, got shape {one.shape}")
    return np.broadcast_to(one.reshape(()), sizes_of(shape))


def tile(x: Array, repeats: Array) -> Array:
    times = sizes_of(repeats)
    if len(times) != x.ndim:
        raise ValueError(f"repeats {times!s:.100} of a tensor with {x.ndim} dimensions")
    # Not np.tile, which makes an array for each axis
    apart = x.reshape([n for size in x.shape for n in (1, size)])
    again = np.broadcast_to(apart, [n for pair in zip(times, x.shape, strict=True) for n in pair])
    return again.reshape([n * size for n, size in zip(times, x.shape, strict=True)])


def cast(x: Array, to: np.dtype[Any]) -> Array:
    return x if x.dtype == to else x.astype(to)


# float16 and bfloat16 run as float32, as their weights do
CASTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float32", 11: "float64", 16: "float32"}


def cast_target(given: Given, opset: int, outputs: int) -> Given:
    if given["to"] not in CASTS:
        raise ValueError(f"casts to data type {given['to']}; expected one of {', '.join(dict.fromkeys(CASTS.values()))}")
    return {"to": np.dtype(CASTS[given["to"]])}
