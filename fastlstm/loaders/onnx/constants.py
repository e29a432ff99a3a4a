"""Constants of an ONNX graph: initializers, Constant nodes, and what a chain of simple operators makes of them.

Exporters that fold no constants reorder gates with Slice and Concat and add the axis of directions with Unsqueeze. A chain is
first described, by shapes and dtypes alone; its arrays are made when weights are read, after their sizes were added up.

References
----------
https://onnx.ai/onnx/operators: each function here is the operator of its name, in all versions from operator set 7 on.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
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
from fastlstm.loaders.tensors import STORED, to_floats
from fastlstm.operators.arguments import axes_of, axis_of
from fastlstm.operators.table import OPERATORS as RUN
from fastlstm.weights import MAX_SIZE

__all__ = [
    "MAX_DEPTH",
    "NUMBERS_LIMIT",
    "OPERATORS",
    "Call",
    "Constants",
    "RunTime",
    "Value",
    "check_inside",
    "dequantized",
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


class RunTime(FormatError):
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
    size = value.nbytes + sum(part.nbytes for part in _parts(value) if part.copies and part is not value)
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
    """

    def __init__(self, external: Folder | None = None) -> None:
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
        RunTime
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
            raise RunTime(f"{quoted(name)} is an input of the model, not a constant")
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
        except RunTime as error:
            raise RunTime(f"{quoted(name)} is computed at run time: {str(error)[:300]}") from None
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise RunTime(f"{quoted(name)} is computed at run time, by a graph inside {quoted(node.op_type)}")
        try:
            if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
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


# ---- Operators -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One node whose inputs are constants."""

    constants: Constants
    node: Any
    name: str  # of the output asked for
    output: int
    inputs: Sequence[Value | None]

    def result(self) -> Value:
        """What the operator of that name, one of ``OPERATORS``, makes of them.

        Raises
        ------
        FormatError
            If that is not defined, or cannot be computed here.
        """
        try:
            return OPERATORS[self.node.op_type](self)
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


def _constant(call: Call) -> Value:
    given = call.attributes(value="t", value_float="f", value_floats="floats", value_int="i", value_ints="ints")
    if len(given) != 1:
        raise FormatError(f"one value expected, got {len(given)}")
    ((kind, value),) = given.items()
    if kind == "value":
        return call.constants.tensor(value, call.name, id(call.node))
    array: Array = np.array(value, np.float32 if "float" in kind else np.int64)
    return call.constants.make((kind, array.shape, array.tobytes()), Value(array.shape, array.dtype.name, lambda: array))


def _identity(call: Call) -> Value:
    call.attributes()
    return call.input(0)


def _cast(call: Call) -> Value:
    x, number = call.input(0), call.attributes(to="i", saturate="i", round_mode="s").get("to")
    dtype = TYPES.get(number) if number is not None else None
    if dtype == x.dtype:
        return x
    if dtype not in ("float16", "float32", "float64", "int64") or (x.dtype in STORED and dtype in INTEGERS):
        raise FormatError(f"a cast from {x.dtype} to {dtype or number} cannot be computed here; {FOLD}")
    kind = DTYPES[dtype]

    def compute(array: Array) -> Array:
        return (to_floats(array, x.dtype) if x.dtype == "bfloat16" else array).astype(kind)

    return call.make(x.shape, dtype, compute, (x,), copies=True)


def _transpose(call: Call) -> Value:
    x = call.input(0)
    perm = call.attributes(perm="ints").get("perm", list(range(len(x.shape)))[::-1])
    if sorted(perm) != list(range(len(x.shape))):
        raise FormatError(f"perm {perm!s:.100} of a tensor with {len(x.shape)} dimensions")
    return call.make((x.shape[axis] for axis in perm), x.dtype, lambda array: array.transpose(perm), (x,), tuple(perm))


def _reshaped(call: Call, x: Value, shape: Iterable[int], copies: bool = False) -> Value:
    """Axes of size 1 come and go without a copy."""
    shape = tuple(shape)
    return call.make(shape, x.dtype, lambda array: array.reshape(shape), (x,), shape, copies=copies)


def _reshape(call: Call) -> Value:
    x, shape = call.input(0), call.numbers(1)
    keep_zeros = call.attributes(allowzero="i").get("allowzero", 0)
    if shape is None or min(shape, default=0) < -1 or shape.count(-1) > 1:
        raise FormatError(f"shape {shape!s:.100}: sizes expected, -1 at most once")
    if not keep_zeros:
        if any(size == 0 and axis >= len(x.shape) for axis, size in enumerate(shape)):
            raise FormatError(f"shape {shape!s:.100} of a tensor with {len(x.shape)} dimensions")
        shape = [size or x.shape[axis] for axis, size in enumerate(shape)]
    count, known = math.prod(x.shape), math.prod(size for size in shape if size != -1)
    if -1 in shape and known and count % known == 0:
        shape[shape.index(-1)] = count // known
    if -1 in shape or math.prod(shape) != count:
        raise FormatError(f"shape {shape!s:.100} of a tensor of shape {x.shape!s:.100}")
    return _reshaped(call, x, shape, copies=True)


def _squeeze(call: Call) -> Value:
    x = call.input(0)
    axes = call.numbers(1, call.attributes(axes="ints").get("axes"))
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
    gone = axes_of(axes, len(x.shape))
    if any(x.shape[axis] != 1 for axis in gone):
        raise FormatError(f"axes {axes!s:.100} of a tensor of shape {x.shape!s:.100} are not all of size 1")
    return _reshaped(call, x, (size for axis, size in enumerate(x.shape) if axis not in gone))


def _unsqueeze(call: Call) -> Value:
    x = call.input(0)
    axes = call.numbers(1, call.attributes(axes="ints").get("axes"))
    if axes is None:
        raise FormatError("axes are missing")
    rank = len(x.shape) + len(axes)
    new, sizes = axes_of(axes, rank), iter(x.shape)
    return _reshaped(call, x, (1 if axis in new else next(sizes) for axis in range(rank)))


def _slice(call: Call) -> Value:
    x, given = call.input(0), call.attributes(starts="ints", ends="ints", axes="ints")
    starts, ends = call.numbers(1, given.get("starts")), call.numbers(2, given.get("ends"))
    axes, steps = call.numbers(3, given.get("axes")), call.numbers(4)
    if starts is None or ends is None:
        raise FormatError("starts or ends are missing")
    places = axes_of(range(len(starts)) if axes is None else axes, len(x.shape))
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(places) == len(steps) or 0 in steps:
        raise FormatError("starts, ends, axes and steps must be equally many, and no step 0")
    ranges = [range(size) for size in x.shape]
    for axis, start, end, step in zip(places, starts, ends, steps, strict=True):
        ranges[axis] = range(*slice(start, end, step).indices(x.shape[axis]))
    return _part(call, x, ranges)


def _part(call: Call, x: Value, ranges: Sequence[range]) -> Value:
    """A view; a range that runs backwards to the front ends before 0, which as a slice is None."""
    where = tuple(slice(r.start, r.stop if r.stop >= 0 else None, r.step) for r in ranges)
    key = tuple((r.start, r.stop, r.step) for r in ranges)
    return call.make(map(len, ranges), x.dtype, lambda array: array[where], (x,), key)


def _split(call: Call) -> Value:
    x, given = call.input(0), call.attributes(axis="i", split="ints", num_outputs="i")
    axis = axis_of(given.get("axis", 0), len(x.shape))
    sizes, count = call.numbers(1, given.get("split")), len(call.node.output)
    if given.get("num_outputs", count) != count:
        raise FormatError(f"num_outputs {given['num_outputs']} of {count} outputs")
    if sizes is None:  # equal parts; the last may be smaller
        size = -(-x.shape[axis] // count)
        sizes = [min(size, x.shape[axis] - start) for start in range(0, size * count, max(1, size))]
    if len(sizes) != count or min(sizes) < 0 or sum(sizes) != x.shape[axis]:
        raise FormatError(f"split {sizes!s:.100} of {x.shape[axis]} into {count} outputs")
    start = sum(sizes[: call.output])
    ranges = [range(size) for size in x.shape]
    ranges[axis] = range(start, start + sizes[call.output])
    return _part(call, x, ranges)


def _concat(call: Call) -> Value:
    parts = tuple(call.input(index) for index in range(len(call.inputs)))
    axis = call.attributes(axis="i").get("axis")
    if axis is None or not parts:
        raise FormatError("axis or inputs are missing")
    first = parts[0]
    axis = axis_of(axis, len(first.shape))
    for part in parts:
        rest = part.shape[:axis] + part.shape[axis + 1 :]
        if (part.dtype, rest) != (first.dtype, first.shape[:axis] + first.shape[axis + 1 :]) or len(part.shape) <= axis:
            raise FormatError(
                f"{first.dtype} of shape {first.shape!s:.100} and {part.dtype} of {part.shape!s:.100} on axis {axis}"
            )
    shape = list(first.shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return call.make(shape, first.dtype, lambda *arrays: np.concatenate(arrays, axis), parts, axis, copies=True)


def _gather(call: Call) -> Value:
    x, indices = call.input(0), call.input(1)
    axis = axis_of(call.attributes(axis="i").get("axis", 0), len(x.shape))
    if indices.dtype not in ("int32", "int64"):
        raise FormatError(f"indices must be integers, got {indices.dtype}")

    def compute(array: Array, which: Array) -> Array:
        try:
            return np.take(array, which, axis)
        except IndexError:
            raise FormatError(f"an index of a Gather node is beyond {array.shape[axis]}") from None

    shape = x.shape[:axis] + indices.shape + x.shape[axis + 1 :]
    return call.make(shape, x.dtype, compute, (x, indices), axis, copies=True)


def _expand(call: Call) -> Value:
    x, target = call.input(0), call.numbers(1)
    call.attributes()
    if target is None or min(target, default=0) < 0:
        raise FormatError(f"shape {target!s:.100}: sizes expected")
    shape = np.broadcast_shapes(x.shape, tuple(target))
    return call.make(shape, x.dtype, lambda array: np.broadcast_to(array, shape), (x,), shape)


def _constant_of_shape(call: Call) -> Value:
    shape, tensor = call.numbers(0), call.attributes(value="t").get("value")
    if shape is None or min(shape, default=0) < 0:
        raise FormatError(f"shape {shape!s:.100}: sizes expected")
    sizes, zero = tuple(shape), np.zeros((), np.float32)
    one = Value((), "float32", lambda: zero) if tensor is None else call.constants.tensor(tensor, call.name, id(call.node))
    if math.prod(one.shape) != 1:
        raise FormatError(f"one value expected, got shape {one.shape!s:.100}")
    made = Value(sizes, one.dtype, lambda array: np.broadcast_to(array.reshape(()), sizes), (one,), copies=False, depth=1)
    return call.constants.make((call.node.op_type, sizes, one.dtype, read(one, SMALL).tobytes()), made)


def _tile(call: Call) -> Value:
    x, repeats = call.input(0), call.numbers(1)
    call.attributes()
    if repeats is None or len(repeats) != len(x.shape) or min(repeats, default=0) < 0:
        raise FormatError(f"repeats {repeats!s:.100} of a tensor with {len(x.shape)} dimensions")
    shape, times = map(operator.mul, repeats, x.shape), np.array(repeats, np.int64)
    return call.make(shape, x.dtype, lambda array: RUN["Tile"].run(array, times), (x,), tuple(repeats), copies=True)


def _equal(call: Call) -> Value:
    call.attributes()
    a, b = call.input(0), call.input(1)
    if a.dtype != b.dtype or a.dtype not in (*NUMBERS, "bool"):
        raise FormatError(f"{a.dtype} and {b.dtype} cannot be compared here; {FOLD}")
    return call.make(np.broadcast_shapes(a.shape, b.shape), "bool", np.equal, (a, b), copies=True)


def _where(call: Call) -> Value:
    call.attributes()
    condition, a, b = (call.input(index) for index in range(3))
    if condition.dtype != "bool" or a.dtype != b.dtype:
        raise FormatError(f"bool and two of one dtype expected, got {condition.dtype}, {a.dtype} and {b.dtype}")
    shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
    return call.make(shape, a.dtype, np.where, (condition, a, b), copies=True)


def _function(call: Call) -> Value:
    call.attributes()
    x, function = call.input(0), RUN[call.node.op_type].run
    if x.dtype not in ("float32", "float64"):
        raise FormatError(f"{x.dtype} cannot be computed here; {FOLD}")
    return call.make(x.shape, x.dtype, function, (x,), copies=True)


def _arithmetic(function: Callable[[Array, Array], Array], dtypes: Iterable[str]) -> Callable[[Call], Value]:
    allowed = frozenset(dtypes)

    def operator(call: Call) -> Value:
        call.attributes()
        a, b = call.input(0), call.input(1)
        if a.dtype != b.dtype or a.dtype not in allowed:
            raise FormatError(f"{a.dtype} and {b.dtype} cannot be computed here; {FOLD}")
        return call.make(np.broadcast_shapes(a.shape, b.shape), a.dtype, function, (a, b), copies=True)

    return operator


def _dequantize_linear(call: Call) -> Value:
    x, scale = call.input(0), call.input(1)
    zero = call.inputs[2] if len(call.inputs) > 2 else None
    given = call.attributes(axis="i", block_size="i", output_dtype="i")
    if given.get("block_size") or given.get("output_dtype"):
        raise FormatError(f"block_size and output_dtype are not understood; {FOLD}")
    shape: tuple[int, ...] = ()
    if scale.shape:
        axis = axis_of(given.get("axis", 1), len(x.shape))
        shape = tuple(size if index == axis else 1 for index, size in enumerate(x.shape))
    return dequantized(call.constants, x, scale, zero, shape)


def dequantized(constants: Constants, x: Value, scale: Value, zero: Value | None, shape: tuple[int, ...]) -> Value:
    """``(x - zero) * scale`` in float32, where scale and zero are spread out to ``shape`` to go with x."""
    if x.dtype not in ("int8", "uint8") or scale.dtype != "float32" or (zero is not None and zero.dtype != x.dtype):
        kinds = ", ".join(value.dtype for value in (x, scale, zero) if value is not None)
        raise FormatError(f"8-bit integers, a float32 scale and a zero point like the integers expected, got {kinds}")
    for what, value in (("scale", scale), ("zero point", zero)):
        if value is not None and math.prod(value.shape) != math.prod(shape):
            raise FormatError(f"the {what} must have {math.prod(shape)} values, got shape {value.shape!s:.100}")

    def compute(numbers: Array, factor: Array, offset: Array | None = None) -> Array:
        result: Array = numbers.astype(np.float32)  # exact, and so is the difference
        if offset is not None:
            result -= offset.reshape(shape).astype(np.float32)
        result *= factor.reshape(shape)
        return result

    inputs = (x, scale) if zero is None else (x, scale, zero)
    depth = 1 + max(value.depth for value in inputs)
    return constants.make(("dequantized", shape, *map(id, inputs)), Value(x.shape, "float32", compute, inputs, True, depth))


NUMBERS = ("float16", "float32", "float64", "int32", "int64")

OPERATORS: dict[str, Callable[[Call], Value]] = {
    "Add": _arithmetic(np.add, NUMBERS),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": _dequantize_linear,
    "Div": _arithmetic(np.divide, NUMBERS[:3]),
    "Equal": _equal,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Mul": _arithmetic(np.multiply, NUMBERS),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(np.subtract, NUMBERS),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    **dict.fromkeys(("Exp", "Neg", "Relu", "Sigmoid", "Sqrt", "Tanh"), _function),
}
