"""ONNX operators that compute: element by element, along axes, products of matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.operators.activations import KERAS_ACTIVATIONS, leaky_relu
from fastlstm.operators.arguments import axes_of, axis_of, integers_of, number_of
from fastlstm.operators.product import product

Given = dict[str, Any]


def broadcast_size(*inputs: Array | None, **_: Any) -> int:
    return math.prod(np.broadcast_shapes(*(x.shape for x in inputs if x is not None)))


def product_size(a: Array, b: Array) -> int:
    rows, columns = a.shape[-2:-1], b.shape[-1:] if b.ndim > 1 else ()
    return math.prod((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *rows, *columns))


def gemm_size(a: Array, b: Array, c: Array | None = None, transA: int = 0, transB: int = 0, **_: float) -> int:
    _matrices(a, b)
    return math.prod((a.shape[1 if transA else 0], b.shape[0 if transB else 1]))


def _matrices(*inputs: Array) -> None:
    if any(x.ndim != 2 for x in inputs):
        raise ValueError(f"matrices expected, got shapes {', '.join(str(x.shape) for x in inputs)}")


def gemm(
    a: Array, b: Array, c: Array | None = None, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Array:
    y = product(a.T if transA else a, b.T if transB else b)
    y = y if alpha == 1 else y * y.dtype.type(alpha)
    if c is None or beta == 0:
        return y
    return np.asarray(y + np.broadcast_to(c if beta == 1 else c * y.dtype.type(beta), y.shape))


def turned(a: Array, b: Array, transA: int = 0, transB: int = 0) -> tuple[Array, Array]:
    """The last two axes; a vector has no other."""
    a, b = (x.swapaxes(-1, -2) if turn and x.ndim > 1 else x for x, turn in ((a, transA), (b, transB)))
    return a, b


def fused_product(a: Array, b: Array, alpha: float = 1.0, **turns: int) -> Array:
    return np.asarray(product(*turned(a, b, **turns)) * a.dtype.type(alpha))


def fused_product_of(given: Given, opset: int, outputs: int) -> Given:
    if given.pop("transBatchA", 0) or given.pop("transBatchB", 0):
        raise ValueError("transBatchA and transBatchB must be 0")
    return given


MAX_EQUATION = 100  # characters: the pattern takes their square
TERM = r"[A-Za-z]*(\.\.\.)?[A-Za-z]*"


def einsum_of(given: Given, opset: int, outputs: int) -> Given:
    """The equation with what it gives, also where that follows from what it takes."""
    equation = given["equation"].decode("ascii", "replace").replace(" ", "")
    if len(equation) > MAX_EQUATION or not re.fullmatch(f"{TERM}(,{TERM})?(->{TERM})?", equation):
        raise ValueError(f"equation {equation!r:.100}: letters and dots of one or two inputs expected")
    if "->" not in equation:
        once = sorted(letter for letter in set(equation) - set(",.") if equation.count(letter) == 1)
        equation += "->" + "..." * ("." in equation) + "".join(once)
    return {"equation": equation}


def einsum_size(*inputs: Array, equation: str) -> int:
    terms, _, result = equation.partition("->")
    sizes: dict[str, int] = {}
    rest: tuple[int, ...] = ()
    for term, x in zip(terms.split(","), inputs, strict=True):
        before, _, after = term.partition("...")
        end = x.ndim - len(after)
        for letter, size in (*zip(before, x.shape, strict=False), *zip(after, x.shape[max(0, end) :], strict=False)):
            sizes[letter] = max(size, sizes.get(letter, 0))
        rest = np.broadcast_shapes(rest, x.shape[len(before) : max(0, end)])
    return math.prod((*(sizes[letter] for letter in result if letter != "."), *rest))


# What a product may end with, as ONNX Runtime's optimizers write it
FUSED: dict[bytes, Callable[..., Array]] = {
    b"": lambda x: x,
    b"Relu": KERAS_ACTIVATIONS["relu"],
    b"Sigmoid": KERAS_ACTIVATIONS["sigmoid"],
    b"Tanh": KERAS_ACTIVATIONS["tanh"],
    b"LeakyRelu": leaky_relu,
}


def fused_gemm(*inputs: Any, activation: Callable[[Array], Array], **given: Any) -> Array:
    return activation(gemm(*inputs, **given))


def fused_activation(given: Given, opset: int, outputs: int) -> Given:
    name, alpha = given.pop("activation", b""), given.pop("activation_alpha", None)
    if name not in FUSED or given.keys() & {"activation_beta", "activation_gamma"} or (alpha is None) == (name == b"LeakyRelu"):
        raise ValueError(f"an activation of {', '.join(key.decode() for key in FUSED if key)} and its alpha expected")
    function = FUSED[name]
    return {**given, "activation": function if alpha is None else partial(function, alpha=alpha)}


def divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = a // b  # rounds down, ONNX towards zero
    return np.asarray(quotient + ((a % b != 0) & ((a < 0) != (b < 0))))


def power(x: Array, exponent: Array) -> Array:
    if x.dtype.kind == "f" and exponent.size == 1 and exponent == 2:
        return np.broadcast_to(x * x, np.broadcast_shapes(x.shape, exponent.shape))  # exact, and fast
    return np.power(x, exponent).astype(x.dtype)


def where(condition: Array, x: Array, y: Array) -> Array:
    if condition.dtype != np.bool_ or x.dtype != y.dtype:
        raise ValueError(f"a condition and two inputs of one dtype expected, got {condition.dtype}, {x.dtype} and {y.dtype}")
    return np.where(condition, x, y)


def clip(x: Array, low: Array | None = None, high: Array | None = None, **given: float) -> Array:
    least: Any = x.dtype.type(given["min"]) if "min" in given else low
    most: Any = x.dtype.type(given["max"]) if "max" in given else high
    x = x if least is None else np.maximum(x, least)
    return x if most is None else np.minimum(x, most)


def folded(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """Of any number of inputs, from the first on."""

    def run(first: Array, *more: Array) -> Array:
        for value in more:
            first = function(first, value)
        return first

    return run


def reduced(function: Callable[..., Array]) -> Callable[..., Array]:
    def run(
        x: Array, given: Array | None = None, axes: list[int] | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        along = integers_of(given if axes is None else axes)
        if not along:
            along = [] if noop_with_empty_axes else list(range(x.ndim))
        return np.asarray(function(x, axis=axes_of(along, x.ndim), keepdims=bool(keepdims)), x.dtype)

    return run


def log_sum_exp(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    most = x.max(axis, keepdims=True, initial=-np.inf)
    most = np.where(np.isfinite(most), most, 0)
    total = np.log(np.exp(x - most).sum(axis, keepdims=keepdims))
    return np.asarray(total + most.reshape(total.shape))


def over_places(function: Callable[..., Array]) -> Callable[[Array], Array]:
    """Of all axes after that of channels."""

    def run(x: Array) -> Array:
        if x.ndim < 3:
            raise ValueError(f"at least 3 dimensions expected, got shape {x.shape}")
        return function(x, axis=tuple(range(2, x.ndim)), keepdims=True)

    return run


def logical(function: Callable[..., Array]) -> Callable[..., Array]:
    def run(*inputs: Array) -> Array:
        if any(x.dtype != np.bool_ for x in inputs):
            raise ValueError(f"bool expected, got {' and '.join(str(x.dtype) for x in inputs)}")
        return function(*inputs)

    return run


def mod(a: Array, b: Array, fmod: int = 0) -> Array:
    if a.dtype.kind == "f" and not fmod:
        raise ValueError("fmod must be 1 for floats")
    return np.asarray(np.fmod(a, b) if fmod else np.mod(a, b))


def cumulated(x: Array, axis: Array, exclusive: int = 0, reverse: int = 0) -> Array:
    along = axis_of(number_of(axis, "axis"), x.ndim)
    turned = np.moveaxis(np.flip(x, along) if reverse else x, along, 0)
    result: Array = np.cumsum(turned, 0, x.dtype)
    if exclusive:
        result = np.concatenate([np.zeros_like(turned[:1]), result[:-1]])
    back = np.moveaxis(result, 0, along)
    return np.flip(back, along) if reverse else back


def place_of(function: Callable[[Array, int], Array]) -> Callable[..., Array]:
    """Of the largest or smallest along an axis."""

    def run(x: Array, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
        axis = axis_of(axis, x.ndim)
        at = x.shape[axis] - 1 - function(np.flip(x, axis), axis) if select_last_index else function(x, axis)
        return np.expand_dims(at, axis) if keepdims else np.asarray(at)

    return run
