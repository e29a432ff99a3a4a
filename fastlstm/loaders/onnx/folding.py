"""What operators make of constants, in ONNX graphs whose exporter folded none: a function for each, and their table.

References
----------
https://onnx.ai/onnx/operators: each function here is the operator of its name, in all versions from operator set 7 on.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.onnx.constants import DTYPES, FOLD, INTEGERS, SMALL, TYPES, Call, Constants, Value, read
from fastlstm.loaders.tensors import STORED, to_floats
from fastlstm.operators.arguments import axes_of, axis_of
from fastlstm.operators.table import OPERATORS

__all__ = ["FOLDING", "dequantized"]

NUMBERS = ("float16", "float32", "float64", "int32", "int64")


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
    return call.make(shape, x.dtype, lambda array: OPERATORS["Tile"].run(array, times), (x,), tuple(repeats), copies=True)


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
    x, function = call.input(0), OPERATORS[call.node.op_type].run
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


FOLDING: dict[str, Callable[[Call], Value]] = {
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
