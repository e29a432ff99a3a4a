"""ONNX operators on NumPy arrays: those that exporters write around LSTMs, each a function and a line of the table below.

Functions of one kind and some length are in ``onnx_normalizations``, ``onnx_quantized`` and ``onnx_selection``.

A function takes the inputs by position, None for one left out, and the attributes by name. It is ONNX's operator of that name in
all versions from operator set 7 on; where a version moved an attribute to an input, both are taken.

References
----------
https://onnx.ai/onnx/operators
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.model import ACTIVATIONS, SELU_ALPHA, SELU_SCALE, SMALL, small_product
from fastlstm.onnx_arguments import axes_of, axis_of, either, integers_of, number_of, sizes_of
from fastlstm.onnx_normalizations import (
    batch_normalization,
    batch_normalization_of,
    group_normalization,
    group_normalization_of,
    instance_normalization,
    layer_normalization,
    mean,
    skip_layer_normalization,
)
from fastlstm.onnx_quantized import dequantize, dynamic_quantize, matmul_integer, quantize, quantize_of
from fastlstm.onnx_selection import (
    gather_elements,
    gather_nd,
    gathered_nd,
    one_hot,
    one_hot_size,
    pad,
    pad_of,
    padded,
    range_of,
    range_size,
    top_k,
)

__all__ = ["OPERATORS", "Operator", "product"]

Given = dict[str, Any]
ANY_NUMBER = 1 << 16  # of inputs


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes
    ----------
    run : function (*inputs, **attributes) -> array, or tuple of arrays
    inputs : (int, int)
        Least and most.
    attributes : mapping of str to str
        Those it has, and of which kind: "i", "f", "s", "t", "ints", "floats".
    needs : tuple of str
        The attributes that it must have.
    elements : function (*inputs, **attributes) -> int
        How many elements the result has, at most: known before there is memory for them.
    off : tuple of int
        Inputs that must be left out or be a constant 0.
    prepare : function (attributes, operator set, outputs) -> attributes
        Checks and translates what the file gives for ``run``; raises ValueError.
    alike : bool
        Whether all inputs must be of one dtype.
    floats : bool
        Whether the first input must be floats.
    outputs : int
        Most.
    """

    run: Callable[..., Any]
    inputs: tuple[int, int] = (1, 1)
    attributes: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    elements: Callable[..., int] = lambda *inputs, **_: sum(x.size for x in inputs if x is not None)
    off: tuple[int, ...] = ()
    prepare: Callable[[Given, int, int], Given] = lambda given, opset, outputs: given
    alike: bool = False
    floats: bool = False
    outputs: int = 1


# ---- Sizes ---------------------------------------------------------------------------------------------------------


def _broadcast(*inputs: Array | None, **_: Any) -> int:
    return math.prod(np.broadcast_shapes(*(x.shape for x in inputs if x is not None)))


def _expanded(x: Array, shape: Array) -> int:
    return math.prod(np.broadcast_shapes(x.shape, tuple(sizes_of(shape))))


def _gathered(x: Array, indices: Array, axis: int = 0) -> int:
    axis = axis_of(axis, x.ndim)
    return math.prod((*x.shape[:axis], indices.size, *x.shape[axis + 1 :]))


def _multiplied(a: Array, b: Array) -> int:
    rows, columns = a.shape[-2:-1], b.shape[-1:] if b.ndim > 1 else ()
    return math.prod((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *rows, *columns))


def _gemm_size(a: Array, b: Array, c: Array | None = None, transA: int = 0, transB: int = 0, **_: float) -> int:
    _matrices(a, b)
    return math.prod((a.shape[1 if transA else 0], b.shape[0 if transB else 1]))


def _matrices(*inputs: Array) -> None:
    if any(x.ndim != 2 for x in inputs):
        raise ValueError(f"matrices expected, got shapes {', '.join(str(x.shape) for x in inputs)}")


# ---- Layout --------------------------------------------------------------------------------------------------------------------


def _transpose(x: Array, perm: list[int] | None = None) -> Array:
    return np.transpose(x, perm)


def _reshape(x: Array, shape: Array, allowzero: int = 0) -> Array:
    sizes = either(None, shape, "sizes")
    if not allowzero:
        if any(size == 0 and axis >= x.ndim for axis, size in enumerate(sizes)):
            raise ValueError(f"shape {sizes!s:.100} of a tensor with {x.ndim} dimensions")
        sizes = [size or x.shape[axis] for axis, size in enumerate(sizes)]
    if min(sizes, default=0) < -1:
        raise ValueError(f"shape {sizes!s:.100}: sizes expected, -1 at most once")
    return x.reshape(sizes)


def _flatten(x: Array, axis: int = 1) -> Array:
    if not -x.ndim <= axis <= x.ndim:
        raise ValueError(f"axis {axis} of a tensor with {x.ndim} dimensions")
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(x: Array, given: Array | None = None, axes: list[int] | None = None) -> Array:
    gone = integers_of(given if axes is None else axes)
    return np.squeeze(x, None if gone is None else axes_of(gone, x.ndim))


def _unsqueeze(x: Array, given: Array | None = None, axes: list[int] | None = None) -> Array:
    new = either(axes, given, "axes")
    return np.expand_dims(x, axes_of(new, x.ndim + len(new)))


def _slice(x: Array, *given: Array | None, **attributes: list[int]) -> Array:
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


def _split(
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


def _split_parts(given: Given, opset: int, outputs: int) -> Given:
    if given.pop("num_outputs", outputs) != outputs:
        raise ValueError(f"num_outputs differs from its {outputs} outputs")
    return {**given, "parts": outputs}


def _concat(*parts: Array, axis: int) -> Array:
    return np.concatenate(parts, axis_of(axis, parts[0].ndim))


def _gather(x: Array, indices: Array, axis: int = 0) -> Array:
    if indices.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got {indices.dtype}")
    return np.take(x, indices, axis_of(axis, x.ndim))


def _shape(x: Array, start: int = 0, end: int | None = None) -> Array:
    return np.array(x.shape[slice(start, end)], np.int64)


def _expand(x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(sizes_of(shape))))


def _constant_of_shape(shape: Array, value: Array | None = None) -> Array:
    one = np.zeros(1, np.float32) if value is None else value
    if one.size != 1:
        raise ValueError(f"one value expected, got shape {one.shape}")
    return np.broadcast_to(one.reshape(()), sizes_of(shape))


def _tile(x: Array, repeats: Array) -> Array:
    times = sizes_of(repeats)
    if len(times) != x.ndim:
        raise ValueError(f"repeats {times!s:.100} of a tensor with {x.ndim} dimensions")
    # Not np.tile, which makes an array for each axis
    apart = x.reshape([n for size in x.shape for n in (1, size)])
    again = np.broadcast_to(apart, [n for pair in zip(times, x.shape, strict=True) for n in pair])
    return again.reshape([n * size for n, size in zip(times, x.shape, strict=True)])


def _cast(x: Array, to: np.dtype[Any]) -> Array:
    return x if x.dtype == to else x.astype(to)


# float16 and bfloat16 run as float32, as their weights do
CASTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float32", 11: "float64", 16: "float32"}


def _cast_target(given: Given, opset: int, outputs: int) -> Given:
    if given["to"] not in CASTS:
        raise ValueError(f"casts to data type {given['to']}; expected one of {', '.join(dict.fromkeys(CASTS.values()))}")
    return {"to": np.dtype(CASTS[given["to"]])}


# ---- Arithmetic ----------------------------------------------------------------------------------------------------------------


def product(a: Array, b: Array) -> Array:
    """``a b``; with a small matrix b each row adds in one order, alone and in any batch, as in :class:`fastlstm.model.Dense`."""
    if b.ndim == 2 and 0 < b.size <= SMALL and a.ndim and a.shape[-1] == len(b) and a.dtype.kind == "f":
        return small_product(a, b.T)
    return np.asarray(np.matmul(a, b))


def _gemm(
    a: Array, b: Array, c: Array | None = None, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Array:
    y = product(a.T if transA else a, b.T if transB else b)
    y = y if alpha == 1 else y * y.dtype.type(alpha)
    if c is None or beta == 0:
        return y
    return np.asarray(y + np.broadcast_to(c if beta == 1 else c * y.dtype.type(beta), y.shape))


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = a // b  # rounds down, ONNX towards zero
    return np.asarray(quotient + ((a % b != 0) & ((a < 0) != (b < 0))))


def _power(x: Array, exponent: Array) -> Array:
    if x.dtype.kind == "f" and exponent.size == 1 and exponent == 2:
        return np.broadcast_to(x * x, np.broadcast_shapes(x.shape, exponent.shape))  # exact, and fast
    return np.power(x, exponent).astype(x.dtype)


def _where(condition: Array, x: Array, y: Array) -> Array:
    if condition.dtype != np.bool_ or x.dtype != y.dtype:
        raise ValueError(f"a condition and two inputs of one dtype expected, got {condition.dtype}, {x.dtype} and {y.dtype}")
    return np.where(condition, x, y)


def _clip(x: Array, low: Array | None = None, high: Array | None = None, **given: float) -> Array:
    least: Any = x.dtype.type(given["min"]) if "min" in given else low
    most: Any = x.dtype.type(given["max"]) if "max" in given else high
    x = x if least is None else np.maximum(x, least)
    return x if most is None else np.minimum(x, most)


def _folded(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """Of any number of inputs, from the first on."""

    def run(first: Array, *more: Array) -> Array:
        for value in more:
            first = function(first, value)
        return first

    return run


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    def run(
        x: Array, given: Array | None = None, axes: list[int] | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        along = integers_of(given if axes is None else axes)
        if not along:
            along = [] if noop_with_empty_axes else list(range(x.ndim))
        return np.asarray(function(x, axis=axes_of(along, x.ndim), keepdims=bool(keepdims)), x.dtype)

    return run


def _log_sum_exp(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    most = x.max(axis, keepdims=True, initial=-np.inf)
    most = np.where(np.isfinite(most), most, 0)
    total = np.log(np.exp(x - most).sum(axis, keepdims=keepdims))
    return np.asarray(total + most.reshape(total.shape))


def _over_places(function: Callable[..., Array]) -> Callable[[Array], Array]:
    """Of all axes after that of channels."""

    def run(x: Array) -> Array:
        if x.ndim < 3:
            raise ValueError(f"at least 3 dimensions expected, got shape {x.shape}")
        return function(x, axis=tuple(range(2, x.ndim)), keepdims=True)

    return run


def _logical(function: Callable[..., Array]) -> Callable[..., Array]:
    def run(*inputs: Array) -> Array:
        if any(x.dtype != np.bool_ for x in inputs):
            raise ValueError(f"bool expected, got {' and '.join(str(x.dtype) for x in inputs)}")
        return function(*inputs)

    return run


def _mod(a: Array, b: Array, fmod: int = 0) -> Array:
    if a.dtype.kind == "f" and not fmod:
        raise ValueError("fmod must be 1 for floats")
    return np.asarray(np.fmod(a, b) if fmod else np.mod(a, b))


def _cumulated(x: Array, axis: Array, exclusive: int = 0, reverse: int = 0) -> Array:
    along = axis_of(number_of(axis, "axis"), x.ndim)
    turned = np.moveaxis(np.flip(x, along) if reverse else x, along, 0)
    result: Array = np.cumsum(turned, 0, x.dtype)
    if exclusive:
        result = np.concatenate([np.zeros_like(turned[:1]), result[:-1]])
    back = np.moveaxis(result, 0, along)
    return np.flip(back, along) if reverse else back


def _argmax(x: Array, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    axis = axis_of(axis, x.ndim)
    at = x.shape[axis] - 1 - np.flip(x, axis).argmax(axis) if select_last_index else x.argmax(axis)
    return np.expand_dims(at, axis) if keepdims else np.asarray(at)


# ---- Activations ---------------------------------------------------------------------------------------------------------------


def _along_axis(function: Callable[[Array], Array]) -> Callable[..., Array]:
    """Of an axis instead of the last one; before operator set 13 (`flat`) of all axes from it on, as if they were one."""

    def run(x: Array, axis: int, flat: bool) -> Array:
        axis = axis_of(axis, x.ndim)
        turned = x.reshape(*x.shape[:axis], math.prod(x.shape[axis:])) if flat else np.moveaxis(x, axis, -1)
        if not turned.shape[-1]:  # there is no maximum of nothing
            raise ValueError(f"axis {axis} of a tensor of shape {x.shape} is empty")
        y = function(turned)
        return y.reshape(x.shape) if flat else np.moveaxis(y, -1, axis)

    return run


def _softmax_axis(given: Given, opset: int, outputs: int) -> Given:
    return {"axis": given.get("axis", 1 if opset < 13 else -1), "flat": opset < 13}


_erf_each = np.vectorize(math.erf, otypes=[np.float64])


def _erf(x: Array) -> Array:
    return np.asarray(_erf_each(x) if x.size else x).astype(x.dtype)


def _gelu(x: Array, approximate: bytes = b"none") -> Array:
    if approximate == b"tanh":
        inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x)))
    else:
        inner = _erf(x * math.sqrt(0.5))
    return np.asarray(0.5 * x * (1 + inner))


def _gelu_kind(given: Given, opset: int, outputs: int) -> Given:
    if given.get("approximate", b"none") not in (b"none", b"tanh"):
        raise ValueError("approximate must be none or tanh")
    return given


def _elu(x: Array, alpha: float = 1.0) -> Array:
    return np.where(x < 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x)


def _selu(x: Array, alpha: float = SELU_ALPHA, gamma: float = SELU_SCALE) -> Array:
    return np.asarray(x.dtype.type(gamma) * _elu(x, alpha))


def _leaky_relu(x: Array, alpha: float = 0.01) -> Array:
    return np.where(x < 0, x.dtype.type(alpha) * x, x)


def _hard_sigmoid(x: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    return np.asarray(np.minimum(np.maximum(x.dtype.type(alpha) * x + x.dtype.type(beta), 0), 1))


def _hard_swish(x: Array) -> Array:
    return np.asarray(x * _hard_sigmoid(x, 1 / 6, 0.5))


def _prelu(x: Array, slope: Array) -> Array:
    return np.where(x < 0, x * np.broadcast_to(slope, x.shape), x)


FUSED: dict[bytes, Callable[..., Array]] = {
    b"": lambda x: x,
    b"Relu": ACTIVATIONS["relu"],
    b"Sigmoid": ACTIVATIONS["sigmoid"],
    b"Tanh": ACTIVATIONS["tanh"],
    b"LeakyRelu": _leaky_relu,
}


def _fused_gemm(*inputs: Any, activation: Callable[[Array], Array], **given: Any) -> Array:
    return activation(_gemm(*inputs, **given))


def _fused_activation(given: Given, opset: int, outputs: int) -> Given:
    name, alpha = given.pop("activation", b""), given.pop("activation_alpha", None)
    if name not in FUSED or given.keys() & {"activation_beta", "activation_gamma"} or (alpha is None) == (name == b"LeakyRelu"):
        raise ValueError(f"an activation of {', '.join(key.decode() for key in FUSED if key)} and its alpha expected")
    function = FUSED[name]
    return {**given, "activation": function if alpha is None else partial(function, alpha=alpha)}


# ---- The table -----------------------------------------------------------------------------------------------------------------


def _unary(function: Callable[..., Array], floats: bool = True, **attributes: str) -> Operator:
    return Operator(function, attributes=attributes, floats=floats)


def _pair(function: Callable[..., Array]) -> Operator:
    return Operator(function, (2, 2), elements=_broadcast, alike=True)


def _many(function: Callable[[Array, Array], Array]) -> Operator:
    return Operator(_folded(function), (1, ANY_NUMBER), elements=_broadcast, alike=True)


def _over_axes(function: Callable[..., Array], floats: bool = False) -> Operator:
    return Operator(_reduce(function), (1, 2), {"axes": "ints", "keepdims": "i", "noop_with_empty_axes": "i"}, floats=floats)


def _softmax(function: Callable[[Array], Array]) -> Operator:
    return Operator(_along_axis(function), attributes={"axis": "i"}, prepare=_softmax_axis, floats=True)


OPERATORS: dict[str, Operator] = {
    # Layout and shapes
    "Cast": Operator(_cast, attributes={"to": "i", "saturate": "i", "round_mode": "s"}, needs=("to",), prepare=_cast_target),
    "Concat": Operator(_concat, (1, ANY_NUMBER), {"axis": "i"}, needs=("axis",), alike=True),
    "ConstantOfShape": Operator(
        _constant_of_shape, attributes={"value": "t"}, elements=lambda shape, **_: math.prod(sizes_of(shape))
    ),
    "Dropout": Operator(lambda x, *more: x, (1, 3), {"ratio": "f", "seed": "i"}, off=(2,), prepare=lambda *_: {}),
    "Expand": Operator(_expand, (2, 2), elements=_expanded),
    "Flatten": Operator(_flatten, attributes={"axis": "i"}),
    "Gather": Operator(_gather, (2, 2), {"axis": "i"}, elements=_gathered),
    "GatherElements": Operator(gather_elements, (2, 2), {"axis": "i"}, elements=lambda x, indices, **_: indices.size),
    "GatherND": Operator(gather_nd, (2, 2), {"batch_dims": "i"}, elements=gathered_nd),
    "Identity": Operator(lambda x: x),
    "OneHot": Operator(one_hot, (3, 3), {"axis": "i"}, elements=one_hot_size),
    "Pad": Operator(pad, (1, 4), {"mode": "s", "pads": "ints", "value": "f"}, elements=padded, prepare=pad_of),
    "Range": Operator(range_of, (3, 3), elements=range_size, alike=True),
    "Reshape": Operator(_reshape, (2, 2), {"allowzero": "i"}),
    "Shape": Operator(_shape, attributes={"start": "i", "end": "i"}, elements=lambda x, **_: x.ndim),
    "Size": Operator(lambda x: np.array(x.size, np.int64), elements=lambda x: 1),
    "Slice": Operator(_slice, (1, 5), {"starts": "ints", "ends": "ints", "axes": "ints"}),
    "Split": Operator(
        _split, (1, 2), {"axis": "i", "split": "ints", "num_outputs": "i"}, prepare=_split_parts, outputs=ANY_NUMBER
    ),
    "Squeeze": Operator(_squeeze, (1, 2), {"axes": "ints"}),
    "Tile": Operator(_tile, (2, 2), elements=lambda x, repeats: x.size * math.prod(sizes_of(repeats))),
    "TopK": Operator(
        top_k,
        (1, 2),
        {"axis": "i", "k": "i", "largest": "i", "sorted": "i"},
        elements=lambda x, *_, **__: 4 * x.size,  # sorting takes places of all
        outputs=2,
    ),
    "Transpose": Operator(_transpose, attributes={"perm": "ints"}),
    "Unsqueeze": Operator(_unsqueeze, (1, 2), {"axes": "ints"}),
    # Arithmetic
    "Abs": _unary(np.abs, floats=False),
    "Add": _pair(np.add),
    "And": Operator(_logical(np.logical_and), (2, 2), elements=_broadcast),
    "ArgMax": Operator(_argmax, attributes={"axis": "i", "keepdims": "i", "select_last_index": "i"}),
    "BatchNormalization": Operator(
        batch_normalization,
        (5, 5),
        {"epsilon": "f", "momentum": "f", "spatial": "i", "training_mode": "i"},
        prepare=batch_normalization_of,
        floats=True,
    ),
    "Clip": Operator(_clip, (1, 3), {"min": "f", "max": "f"}, alike=True, elements=_broadcast),
    "CumSum": Operator(_cumulated, (2, 2), {"exclusive": "i", "reverse": "i"}),
    "DequantizeLinear": Operator(dequantize, (2, 3), {"axis": "i", "block_size": "i", "output_dtype": "i"}, prepare=quantize_of),
    "Div": _pair(_divide),
    "DynamicQuantizeLinear": Operator(dynamic_quantize, outputs=3, elements=lambda x: x.size + 2),
    "Equal": _pair(np.equal),
    "Erf": _unary(_erf),
    "Exp": _unary(np.exp),
    "Gemm": Operator(
        _gemm,
        (2, 3),
        {"alpha": "f", "beta": "f", "transA": "i", "transB": "i"},
        elements=_gemm_size,
        alike=True,
        floats=True,
    ),
    "GlobalAveragePool": _unary(_over_places(mean)),
    "GlobalMaxPool": _unary(_over_places(np.max)),
    "Greater": _pair(np.greater),
    "GreaterOrEqual": _pair(np.greater_equal),
    "GroupNormalization": Operator(
        group_normalization,
        (3, 3),
        {"epsilon": "f", "num_groups": "i", "stash_type": "i"},
        needs=("num_groups",),
        prepare=group_normalization_of,
        alike=True,
        floats=True,
    ),
    "InstanceNormalization": Operator(instance_normalization, (3, 3), {"epsilon": "f"}, alike=True, floats=True),
    "LayerNormalization": Operator(
        layer_normalization, (2, 3), {"axis": "i", "epsilon": "f", "stash_type": "i"}, alike=True, floats=True
    ),
    "Less": _pair(np.less),
    "LessOrEqual": _pair(np.less_equal),
    "Log": _unary(np.log),
    "MatMul": Operator(product, (2, 2), elements=_multiplied, alike=True),
    "MatMulInteger": Operator(matmul_integer, (2, 4), elements=lambda a, b, *_: _multiplied(a, b) + 2 * (a.size + b.size)),
    "Max": _many(np.maximum),
    "Min": _many(np.minimum),
    "Mod": Operator(_mod, (2, 2), {"fmod": "i"}, elements=_broadcast, alike=True),
    "Mul": _pair(np.multiply),
    "Neg": _unary(np.negative, floats=False),
    "Not": Operator(_logical(np.logical_not)),
    "Or": Operator(_logical(np.logical_or), (2, 2), elements=_broadcast),
    "Pow": Operator(_power, (2, 2), elements=_broadcast),
    "QuantizeLinear": Operator(
        quantize,
        (2, 3),
        {"axis": "i", "block_size": "i", "output_dtype": "i", "precision": "i", "saturate": "i"},
        prepare=quantize_of,
    ),
    "Reciprocal": _unary(np.reciprocal),
    "ReduceL2": _over_axes(lambda x, axis, keepdims: np.sqrt((x * x).sum(axis, keepdims=keepdims)), floats=True),
    "ReduceLogSumExp": _over_axes(_log_sum_exp, floats=True),
    "ReduceMax": _over_axes(np.max),
    "ReduceMean": _over_axes(mean, floats=True),
    "ReduceMin": _over_axes(np.min),
    "ReduceProd": _over_axes(np.prod),
    "ReduceSum": _over_axes(np.sum),
    "Round": _unary(np.rint),
    "Sqrt": _unary(np.sqrt),
    "Sub": _pair(np.subtract),
    "Sum": _many(np.add),
    "Where": Operator(_where, (3, 3), elements=_broadcast),
    # Activations
    "Elu": _unary(_elu, alpha="f"),
    "Gelu": Operator(_gelu, attributes={"approximate": "s"}, prepare=_gelu_kind, floats=True),
    "HardSigmoid": _unary(_hard_sigmoid, alpha="f", beta="f"),
    "HardSwish": _unary(_hard_swish),
    "LeakyRelu": _unary(_leaky_relu, alpha="f"),
    "LogSoftmax": _softmax(ACTIVATIONS["log_softmax"]),
    "PRelu": Operator(_prelu, (2, 2), alike=True, floats=True),
    "Relu": _unary(ACTIVATIONS["relu"], floats=False),
    "Selu": _unary(_selu, alpha="f", gamma="f"),
    "Sigmoid": _unary(ACTIVATIONS["sigmoid"]),
    "Softmax": _softmax(ACTIVATIONS["softmax"]),
    "Softplus": _unary(ACTIVATIONS["softplus"]),
    "Softsign": _unary(ACTIVATIONS["softsign"]),
    "Tanh": _unary(ACTIVATIONS["tanh"]),
    # What ONNX Runtime's optimizers write
    "com.microsoft.FusedGemm": Operator(
        _fused_gemm,
        (2, 3),
        {
            **{"alpha": "f", "beta": "f", "transA": "i", "transB": "i", "activation": "s"},
            **{f"activation_{name}": "f" for name in ("alpha", "beta", "gamma")},
        },
        elements=lambda *inputs, activation, **given: _gemm_size(*inputs, **given),
        prepare=_fused_activation,
        alike=True,
        floats=True,
    ),
    "com.microsoft.Gelu": _unary(_gelu),
    "com.microsoft.SkipLayerNormalization": Operator(
        skip_layer_normalization,
        (3, 5),
        {"epsilon": "f"},
        elements=lambda x, *_, **__: 4 * x.size,
        alike=True,
        floats=True,
        outputs=4,
    ),
}
