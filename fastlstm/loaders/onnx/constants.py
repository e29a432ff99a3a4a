"""Constants of an ONNX graph: initializers, Constant nodes, and chains of operators on them, computed when they are read.

Exporters that fold no constants reorder gates with Slice and Concat and add the axis of directions with Unsqueeze. A chain is
first described, by shapes and dtypes alone; its arrays are made when weights are read, after their sizes were added up.
What an operator makes of its inputs is not known here: whoever makes :class:`Constants` hands in a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.loaders.onnx.external import Folder
from fastlstm.loaders.onnx.graph import Scope, attributes, label
from fastlstm.loaders.onnx.sizes import Sizes
from fastlstm.loaders.source import WEIGHTS_CEILING
from fastlstm.loaders.tensors import STORED
from fastlstm.weights import MAX_SIZE

__all__ = [
    "DTYPES",
    "FOLD",
    "INTEGERS",
    "MAX_DEPTH",
    "NUMBERS_LIMIT",
    "SMALL",
    "TYPES",
    "Call",
    "Constants",
    "NotConstant",
    "Value",
    "check_inside",
    "effort",
    "is_outside",
    "read",
]

INTEGERS = {name: np.dtype(name) for name in ("int8", "uint8", "int32", "int64", "bool")}
DTYPES = {**STORED, **INTEGERS}
# TensorProto.DataType
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64", 16: "bfloat16",
}  # fmt: skip
# Where numbers are that are not in raw_data; what is missing here is in int32_data
FIELDS = {"float32": "float_data", "float64": "double_data", "int64": "int64_data"}
DATA = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")

MAX_DEPTH = 64  # nodes in a chain
PART = 1000  # bytes that are written in the time that one part of a chain takes
MAX_PARTS = 1_000_000  # inputs, outputs and attributes of a node, once for each output of it that is asked for
MAX_RANK = 8
MAX_NUMBERS = 64  # of a shape, of axes, of where slices begin
NUMBERS_LIMIT = 1 << 20  # bytes to compute them
SMALL = 256  # bytes: constants up to here are the same if their content is
EXTERNAL = 1  # TensorProto.DataLocation


class NotConstant(FormatError):
    """Not a constant: it depends on an input of the model."""


@dataclass(frozen=True, eq=False)
class Value:
    """A constant whose elements nobody has read yet.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        A key of ``DTYPES``; the arrays have the type there, so bfloat16 is its bits.
    compute : function (arrays of the inputs) -> array
    inputs : tuple of Value
    copies : bool
        Whether ``compute`` takes memory; False for views.
    depth : int
        Length of the chain.
    outside : str
        Where its numbers, or some that it is computed from, lie in another file that may not be read: how to allow it.
    """

    shape: tuple[int, ...]
    dtype: str
    compute: Callable[..., Array]
    inputs: tuple[Value, ...] = ()
    copies: bool = True
    depth: int = 0
    outside: str = ""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def read(value: Value, limit: int) -> Array:
    """Compute a value, every part of it once.

    Raises
    ------
    FormatError
        If that takes more than ``limit`` bytes, or numbers in another file; before anything is computed.
    """
    check_inside(value)
    # A view takes nothing; but whoever reads one that repeats what it is a view of goes over all of it
    size = max(value.nbytes, sum(part.nbytes for part in _parts(value) if part.copies))
    if size > limit:
        raise FormatError(f"takes {size} bytes to compute, more than {limit} for this file")
    with np.errstate(all="ignore"):
        return _compute(value, {})


def check_inside(*values: Value) -> None:
    """Refuse numbers that lie in another file, if those may not be read."""
    for value in values:
        if value.outside:
            raise FormatError(value.outside)


def effort(value: Value) -> int:
    """What it takes to compute a value, as bytes that are written."""
    copied = (part for part in _parts(value) if part.copies and not part.outside)
    return sum(part.nbytes for part in copied) + PART * sum(1 + len(part.inputs) for part in _parts(value))


def _parts(value: Value) -> Collection[Value]:
    """The value and all that it is computed from, each once."""
    parts = {id(value): value}
    waiting = [value]
    while waiting:
        for part in waiting.pop().inputs:
            if id(part) not in parts:
                parts[id(part)] = part
                waiting.append(part)
    return parts.values()


def _compute(value: Value, made: dict[int, Array]) -> Array:
    if id(value) not in made:
        made[id(value)] = value.compute(*(_compute(part, made) for part in value.inputs))
    return made[id(value)]


class Constants:
    """Finds the constants that names stand for.

    Equal descriptions are one object: nodes that read the same weights, each through a chain of its own, have the same values.

    Parameters
    ----------
    operators : mapping of str to function (call) -> Value
        What each makes of constants; any other is refused.
    external : Folder, optional
        Where tensors may be that are in other files.
    """

    def __init__(self, operators: Mapping[str, Callable[[Call], Value]], external: Folder | None = None) -> None:
        self.operators = operators
        self.external = external
        self._known: dict[tuple[int, str], Value | FormatError] = {}
        self._made: dict[Hashable, Value] = {}
        self.sizes = Sizes(self)
        self.used: set[str] = set()  # initializers asked for
        self._room = MAX_PARTS

    def get(self, scope: Scope, name: str, depth: int = 0) -> Value:
        """The constant of that name, seen from a scope.

        Raises
        ------
        NotConstant
            If it depends on an input of the model.
        FormatError
            If it cannot be computed here; the message names the tensor or the node.
        """
        owner = scope.owner(name)
        if owner is None:
            raise FormatError(f"tensor {quoted(name)} is nowhere in the model")
        key = id(owner), name
        if key not in self._known:
            if depth > MAX_DEPTH:
                raise FormatError(f"tensor {quoted(name)} is behind more than {MAX_DEPTH} operators; {FOLD}")
            try:
                self._known[key] = self._find(owner, name, depth)
            except FormatError as error:
                self._known[key] = type(error)(str(error))  # without its traceback, which would keep the model in memory
        known = self._known[key]
        if isinstance(known, FormatError):
            raise type(known)(str(known))
        return known

    def _find(self, scope: Scope, name: str, depth: int) -> Value:
        if name in scope.inputs:
            raise NotConstant(f"{quoted(name)} is an input of the model, not a constant")
        if name in scope.sparse:
            raise FormatError(f"tensor {quoted(name)} is sparse: export it as a dense one")
        if name in scope.tensors:
            self.used.add(name)
            return self.tensor(scope.tensors[name], name, (id(scope), name))
        node, output = scope.producers[name]
        self.spend(node)
        if node.op_type == "Shape":  # of a tensor that need not be constant
            known = self.sizes.numbers(scope, name, depth)
            if known is not None and all(isinstance(size, int) for size in known):
                array = known.astype(np.int64)
                return self.make(("sizes", array.tobytes()), Value(array.shape, "int64", lambda: array))
        try:
            inputs = [self.get(scope, each, depth + 1) if each else None for each in node.input]
        except NotConstant as error:
            raise NotConstant(f"{quoted(name)} is computed at run time: {str(error)[:300]}") from None
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise NotConstant(f"{quoted(name)} is computed at run time, by a graph inside {quoted(node.op_type)}")
        try:
            if node.op_type not in self.operators or node.domain not in ("", "ai.onnx"):
                raise FormatError(f"operator {quoted(node.op_type)} cannot be computed here; {FOLD}")
            return Call(self, node, name, output, inputs).result()
        except FormatError as error:
            raise FormatError(f"{quoted(node.op_type)} node {quoted(label(node))}: {error}") from None

    def spend(self, node: Any) -> None:
        """Count the parts of a node."""
        self._room -= len(node.input) + len(node.output) + len(node.attribute)
        if self._room < 0:
            raise FormatError(f"constants that are made of more than {MAX_PARTS} parts; {FOLD}")

    def make(self, key: Hashable, value: Value) -> Value:
        """The value with that description, this one if it is the first.

        Raises
        ------
        FormatError
            If the chain is too long or no array could have that shape.
        """
        _check_shape(value.shape, value.dtype)
        if value.depth > MAX_DEPTH:
            raise FormatError(f"more than {MAX_DEPTH} operators in a row; {FOLD}")
        outside = value.outside or next((part.outside for part in value.inputs if part.outside), "")
        return self._made.setdefault(key, replace(value, outside=outside))

    def integers(self, value: Value, what: str = "an input") -> Array:
        """The numbers of a small constant: a shape, axes, where slices begin.

        Raises
        ------
        FormatError
            If they are no integers, or more than a few.
        """
        if value.dtype not in ("int32", "int64") or len(value.shape) > 1 or math.prod(value.shape) > MAX_NUMBERS:
            raise FormatError(f"{what} must be a few integers, got {value.dtype} of shape {value.shape!s:.100}")
        return read(value, NUMBERS_LIMIT)

    def tensor(self, tensor: Any, name: str, place: Hashable) -> Value:
        """A TensorProto: its numbers must be exactly as many as its dimensions say."""
        what = f"tensor {quoted(name)}"
        dtype, shape = TYPES.get(tensor.data_type), tuple(tensor.dims)
        if dtype is None:
            raise FormatError(f"{what} has data type {tensor.data_type}; expected one of {', '.join(TYPES.values())}")
        if any(not 0 <= size <= MAX_SIZE for size in shape):
            raise FormatError(f"{what} has shape {shape!s:.100}: no dimension may be negative or exceed {MAX_SIZE}")
        if tensor.HasField("segment"):
            raise FormatError(f"{what} is only a segment of a tensor")
        _check_shape(shape, dtype)
        count = math.prod(shape)
        size = count * DTYPES[dtype].itemsize
        filled = [field for field in DATA if len(getattr(tensor, field))]
        outside = is_outside(tensor)
        if len(filled) + tensor.HasField("raw_data") + outside > 1:
            raise FormatError(f"{what} holds its numbers twice")

        compute: Callable[[], Array]
        if outside and self.external is None:
            problem = (
                f"the numbers of {what} lie in another file: pass external_data=True to read files in the folder of the model, "
                "or save it with onnx.save as one file"
            )
            return self.make(("tensor", dtype, shape, place), Value(shape, dtype, _nothing, outside=problem))
        if outside:
            external = cast(Folder, self.external)
            found = external.size(tensor, size)

            def compute() -> Array:
                return np.frombuffer(external.read(tensor, size), DTYPES[dtype].newbyteorder("<")).reshape(shape)

        elif filled:
            field = FIELDS.get(dtype, "int32_data")
            if filled != [field]:
                raise FormatError(f"{what} must hold its numbers in raw_data or {field}, got {filled[0]}")
            found = len(getattr(tensor, field)) * DTYPES[dtype].itemsize

            def compute() -> Array:
                return _listed(getattr(tensor, field), dtype, count, what).reshape(shape)

        else:
            found = len(tensor.raw_data)

            def compute() -> Array:
                return np.frombuffer(tensor.raw_data, DTYPES[dtype].newbyteorder("<")).reshape(shape)

        if found != size:
            raise FormatError(f"{what} of shape {shape!s:.100} and type {dtype} must have {size} bytes, got {found}")
        value = Value(shape, dtype, compute)
        small = size <= SMALL and not outside
        return self.make(("tensor", dtype, shape, compute().tobytes() if small else place), value)


@dataclass(frozen=True)
class Call:
    """One node whose inputs are constants."""

    constants: Constants
    node: Any
    name: str  # of the output asked for
    output: int
    inputs: Sequence[Value | None]

    def result(self) -> Value:
        """What the operator of that name, one of those that are known, makes of them.

        Raises
        ------
        FormatError
            If that is not defined, or cannot be computed here.
        """
        try:
            return self.constants.operators[self.node.op_type](self)
        except FormatError:
            raise
        except ValueError as error:  # of the operators that run at every call, and of NumPy
            raise FormatError(str(error)) from None

    def attributes(self, **known: str) -> dict[str, Any]:
        return attributes(self.node, known)

    def input(self, index: int) -> Value:
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise FormatError(f"input {index} is missing")
        return value

    def numbers(self, index: int, attribute: list[int] | None = None) -> list[int] | None:
        """Small integers from an attribute (older operator sets) or an input; None if neither is there."""
        if attribute is not None:
            return attribute
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            return None
        return [int(number) for number in self.constants.integers(value, f"input {index}").reshape(-1)]

    def make(
        self,
        shape: Iterable[int],
        dtype: str,
        compute: Callable[..., Array],
        inputs: tuple[Value, ...],
        *parameters: Hashable,
        copies: bool = False,
    ) -> Value:
        key = (self.node.op_type, *parameters, dtype, *map(id, inputs))
        depth = 1 + max(value.depth for value in inputs)
        return self.constants.make(key, Value(tuple(shape), dtype, compute, inputs, copies, depth))


def is_outside(tensor: Any) -> bool:
    """Whether the numbers of a TensorProto are in another file."""
    return bool(tensor.data_location == EXTERNAL)


def _nothing() -> Array:
    raise AssertionError("read() asks for no numbers that are outside")


FOLD = "export the model with constant folding, or fold them with onnxruntime or onnxsim"


def _check_shape(shape: tuple[int, ...], dtype: str) -> None:
    """NumPy refuses some shapes with large axes even if another is empty."""
    size = math.prod(max(1, length) for length in shape) * DTYPES[dtype].itemsize
    if len(shape) > MAX_RANK or size > WEIGHTS_CEILING:
        raise FormatError(f"a tensor of shape {shape!s:.100} is larger than any weights")


def _listed(numbers: Any, dtype: str, count: int, what: str) -> Array:
    """Numbers of a repeated field; int32_data holds all that is narrow, floats as their bits."""
    if dtype in FIELDS:
        return np.fromiter(numbers, DTYPES[dtype], count)
    wide = np.fromiter(numbers, np.int32, count)
    bounds = np.iinfo(np.uint16 if dtype == "float16" else np.uint8 if dtype == "bool" else DTYPES[dtype])
    if wide.size and not bounds.min <= wide.min() <= wide.max() <= bounds.max:
        raise FormatError(f"{what} has numbers outside of {dtype}")
    return wide.astype(np.uint16).view(np.float16) if dtype == "float16" else wide.astype(DTYPES[dtype])
