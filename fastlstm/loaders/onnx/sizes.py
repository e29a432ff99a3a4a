"""Sizes of tensors that a graph computes at run time: what is known of them before.

An exporter of dynamic axes asks a tensor for its shape, takes that apart and makes the shape of the next tensor of it. Here such
integers are followed with a symbol in the place of each size that only a run knows: what is equal here is equal in every run.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.onnx.graph import Scope, attributes
from fastlstm.loaders.tensors import LazyTensor
from fastlstm.operators.table import OPERATORS

__all__ = ["Open", "Size", "Sizes"]


# What exporters make shapes with; run on arrays of objects
OPERATIONS = ("Concat", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Unsqueeze")
INTEGERS = (6, 7)  # int32, int64: a size fits both
MAX_NUMBERS = 64
MAX_RANK = 16
MAX_NUMBER = 1 << 63
MAX_FACTORS = 8
MAX_DEPTH = 64  # nodes in a row


@dataclass(frozen=True)
class Open:
    """A number times sizes that are not known yet, each given by a graph, a tensor in it and an axis."""

    number: int
    factors: tuple[tuple[int, str, int], ...]

    def __mul__(self, other: Open | int) -> Open | int:
        number, more = (other.number, other.factors) if isinstance(other, Open) else (other, ())
        return Open(self.number * number, tuple(sorted(self.factors + more))) if number else 0

    __rmul__ = __mul__


Size: TypeAlias = Open | int


class Constants(Protocol):
    """What is asked of the constants of a graph."""

    def get(self, scope: Scope, name: str, depth: int = 0, /) -> LazyTensor: ...
    def integers(self, value: Any, /) -> Array: ...


class Sizes:
    """Finds shapes, and integers made of shapes."""

    def __init__(self, constants: Constants) -> None:
        self._constants: Constants = weakref.proxy(constants)  # whose part this is: a circle would keep the model in memory
        self._shapes: dict[tuple[int, str], tuple[Size, ...] | None] = {}
        self._numbers: dict[tuple[int, str], Array | None] = {}

    def note(self, scope: Scope, name: str, shape: tuple[Size, ...]) -> None:
        """Say which shape the result of an operator has that is not known here."""
        self._shapes[id(scope), name] = shape

    def unknown(self, scope: Scope, name: str, rank: int) -> tuple[Size, ...]:
        """The shape of a tensor of which only the number of axes is known."""
        return tuple(Open(1, ((id(scope), name, axis),)) for axis in range(rank))

    def shape(self, scope: Scope, name: str, depth: int = 0) -> tuple[Size, ...] | None:
        """The sizes of a tensor; None if not even their number is known."""
        owner = scope.owner(name)
        if owner is None or depth > MAX_DEPTH:
            return None
        key = id(owner), name
        if key not in self._shapes:
            self._shapes[key] = None  # what needs itself is not known
            found = self._shape(owner, name, depth)
            self._shapes[key] = found if found is not None and len(found) <= MAX_RANK and _few(_objects(found)) else None
        return self._shapes[key]

    def _shape(self, scope: Scope, name: str, depth: int) -> tuple[Size, ...] | None:
        if name in scope.inputs:
            return None if scope.outer else _declared(scope, name)
        node, output = scope.producers.get(name, (None, 0))
        try:
            if node is None or node.op_type == "Constant":
                return self._constants.get(scope, name, depth).shape
            inner = self.shape(scope, node.input[0], depth + 1) if node.input else None
            if inner is None or output or node.domain not in ("", "ai.onnx"):
                return None
            if node.op_type in ("Identity", "Dropout", "Cast"):
                return inner
            if node.op_type == "Transpose":
                perm = attributes(node, {"perm": "ints"}).get("perm", list(range(len(inner)))[::-1])
                return tuple(inner[axis] for axis in perm) if sorted(perm) == list(range(len(inner))) else None
            if node.op_type == "Expand" and all(size == 1 for size in inner):
                wanted = self.numbers(scope, node.input[1], depth + 1)
                return tuple(wanted) if wanted is not None and wanted.ndim == 1 and len(wanted) >= len(inner) else None
            if node.op_type == "Reshape":
                wanted = self.numbers(scope, node.input[1], depth + 1)
                keep = attributes(node, {"allowzero": "i"}).get("allowzero")
                return None if wanted is None else _reshaped(inner, list(wanted), bool(keep))
            if node.op_type == "Gather":  # an embedding
                axis = attributes(node, {"axis": "i"}).get("axis", 0) % len(inner)
                places = self.shape(scope, node.input[1], depth + 1)
                return None if places is None else (*inner[:axis], *places, *inner[axis + 1 :])
            if node.op_type == "Slice" and len(node.input) > 3 and node.input[3]:
                cut = {int(axis) % len(inner) for axis in self._integers(scope, node.input[3], depth + 1).reshape(-1)}
                return tuple(Open(1, ((id(scope), name, axis),)) if axis in cut else size for axis, size in enumerate(inner))
        except (FormatError, IndexError, ZeroDivisionError):
            pass
        return None

    def numbers(self, scope: Scope, name: str, depth: int = 0) -> Array | None:
        """A few integers as an array of sizes, of one axis or none; None if they are not made of shapes and constants alone."""
        owner = scope.owner(name)
        if owner is None or depth > MAX_DEPTH:
            return None
        key = id(owner), name
        if key not in self._numbers:
            self._numbers[key] = None
            try:
                found = self._made(owner, name, depth)
            except (FormatError, ArithmeticError, LookupError, TypeError, ValueError):
                found = None
            self._numbers[key] = found if found is not None and _few(found) else None
        return self._numbers[key]

    def _made(self, scope: Scope, name: str, depth: int) -> Array | None:
        node, output = scope.producers.get(name, (None, 0))
        if node is None or output or node.domain not in ("", "ai.onnx"):
            return self._integers(scope, name, depth).astype(object)
        if node.op_type == "Shape":
            given = attributes(node, {"start": "i", "end": "i"})
            shape = self.shape(scope, node.input[0], depth + 1)
            return None if shape is None else _objects(shape[given.get("start", 0) : given.get("end")])
        if node.op_type == "Cast" and attributes(node, {"to": "i"}).get("to") in INTEGERS:
            return self.numbers(scope, node.input[0], depth + 1)
        if node.op_type not in OPERATIONS or len(node.input) > MAX_NUMBERS:
            return self._integers(scope, name, depth).astype(object)
        first = 2 if node.op_type == "Mul" else len(node.input) if node.op_type == "Concat" else 1  # inputs that may hold sizes
        operator = OPERATORS[node.op_type]
        values = [self.numbers(scope, each, depth + 1) if each else None for each in node.input[:first]]
        least, most = operator.inputs
        if (
            not values
            or any(value is None for value in values)
            or not least <= len(node.input) <= most
            or "" in node.input[:least]
        ):
            return None
        places = [self._integers(scope, each, depth + 1) if each else None for each in node.input[first:]]
        given = attributes(node, operator.attributes)
        if operator.elements(*values, *places, **given) > MAX_NUMBERS:
            return None
        return _objects(operator.run(*values, *places, **given))

    def _integers(self, scope: Scope, name: str, depth: int) -> Array:
        return self._constants.integers(self._constants.get(scope, name, depth))


def _declared(scope: Scope, name: str) -> tuple[Size, ...] | None:
    """What the graph says of its input, which every runtime holds the caller to."""
    kind = scope.inputs[name].type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else Open(1, ((id(scope), name, axis),))
        for axis, dim in enumerate(kind.shape.dim)
    )


def _reshaped(shape: tuple[Size, ...], wanted: list[Size], keep_zeros: bool) -> tuple[Size, ...] | None:
    if not keep_zeros:
        wanted = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    if -1 in wanted:
        place = wanted.index(-1)
        wanted[place] = _quotient(math.prod(shape), math.prod(wanted[:place] + wanted[place + 1 :]))
    return tuple(wanted) if -1 not in wanted else None


def _quotient(a: Size, b: Size) -> Size:
    """-1 if it is not certain."""
    first, second = (size if isinstance(size, Open) else Open(size, ()) for size in (a, b))
    left, right = Counter(first.factors), Counter(second.factors)
    if second.number < 1 or first.number % second.number or right - left:
        return -1
    number, factors = first.number // second.number, tuple(sorted((left - right).elements()))
    return Open(number, factors) if factors else number


def _objects(values: Any) -> Array:
    if isinstance(values, np.ndarray):
        return values.astype(object)
    array: Array = np.empty(len(values) if isinstance(values, tuple) else (), object)
    array[...] = values
    return array


def _few(array: Array) -> bool:
    return (
        array.ndim < 2
        and array.size <= MAX_NUMBERS
        and all(
            len(size.factors) <= MAX_FACTORS and abs(size.number) < MAX_NUMBER
            if isinstance(size, Open)
            else abs(size) < MAX_NUMBER
            for size in array.reshape(-1)
        )
    )
