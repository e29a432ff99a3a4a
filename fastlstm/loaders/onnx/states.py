"""Initial states of LSTM nodes: those that a model has of its own, for all rows of a batch, and those that the caller gives.

A graph that repeats a learned state for every row of its input knows how many rows there are only when it runs. Such a state
depends on sizes and constants alone, so it is the model's own: here it is followed with one row in the place of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.loaders.onnx.constants import MAX_DEPTH, NUMBERS_LIMIT, Call, Constants, NotConstant, Value, effort, read
from fastlstm.loaders.onnx.graph import Scope, label
from fastlstm.loaders.onnx.sizes import Size

__all__ = ["States"]

RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
ELEMENTWISE = ("Add", "Cast", "Div", "Equal", "Exp", "Identity", "Mul", "Neg", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where")
# The input from which on inputs say how, and not what: sizes, and others
SIZED = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Tile": 1}
HOW = {**SIZED, "Gather": 1, "Slice": 1, "Split": 1, "Squeeze": 1, "Transpose": 1, "Unsqueeze": 1}


@dataclass(frozen=True)
class Rows:
    """A constant that a run has as many times along an axis as it has rows; ``axis`` is None for one that is as it is.

    ``uniform`` is one number for a tensor of nothing else, of whatever shape.
    """

    value: Value
    axis: int | None = None
    uniform: bool = False


class States:
    """Finds initial states in the graphs of one model."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._rows: dict[tuple[int, str], Rows | FormatError] = {}
        self._given: dict[tuple[int, int], bool] = {}  # of a graph and a node
        self._zeros: dict[int, tuple[Value, bool]] = {}
        self._effort = 0
        self._inner: dict[tuple[int, int], list[Scope]] = {}  # of such a node
        self._graphs: dict[int, Scope] = {}

    def find(self, scope: Scope, name: str, expected: tuple[int, ...]) -> Value | None:
        """A state of the model's own, for all its rows or for one; None for one that is the caller's to give.

        Parameters
        ----------
        scope : Scope
        name : str
        expected : tuple of int
            The shape, with -1 for the rows.

        Raises
        ------
        FormatError
            If it depends on nothing that a caller gives and yet cannot be computed here, or has another shape.
        """
        if not self._is_given(scope, name):
            rows = self._find_rows(scope, name)
            if rows.uniform:
                return self._spread(rows.value, tuple(max(1, size) for size in expected))
            if rows.axis not in (None, expected.index(-1)):
                raise FormatError(f"it is repeated along axis {rows.axis}; the rows are axis {expected.index(-1)}")
            return rows.value
        shape = self._constants.sizes.shape(scope, name)
        if shape is not None and (
            len(shape) != 3 or any(isinstance(n, int) and n != m >= 0 for n, m in zip(shape, expected, strict=True))
        ):
            sizes = ", ".join(str(n) if isinstance(n, int) else "?" for n in shape)
            wanted = ", ".join("B" if size < 0 else str(size) for size in expected)
            raise FormatError(f"it has the shape ({sizes}); by hidden_size and direction ({wanted}) is expected")
        return None

    def is_zero(self, value: Value) -> bool:
        """Whether a state is certainly what there is without any; of large ones, and after many, nobody knows."""
        if id(value) not in self._zeros:
            self._effort += effort(value)
            small = self._effort <= EFFORT and 0 < value.nbytes <= NUMBERS_LIMIT and not value.outside
            self._zeros[id(value)] = value, small and not read(value, EFFORT).astype(bool).any()
        return self._zeros[id(value)][1]

    def _spread(self, value: Value, shape: tuple[int, ...]) -> Value:
        wide = Value(shape, value.dtype, lambda array: np.broadcast_to(array, shape), (value,), False, value.depth + 1)
        return self._constants.make(("uniform", id(value), shape), wide)

    # ---- What it depends on ----------------------------------------------------------------------------------------------------

    def _is_given(self, scope: Scope, name: str) -> bool:
        """Whether a tensor depends on the values, not only the sizes, of an input, or on chance.

        Every node is looked at once, after all that it reads.
        """
        known, key, needs = self._source(scope, name)
        waiting: list[tuple[tuple[int, int], list[tuple[Scope, str]], Iterator[tuple[Scope, str]]]] = []
        if key is not None:
            self._given[key] = False  # what needs itself is never computed
            waiting.append((key, needs, iter(needs)))
        while waiting:
            key, needs, rest = waiting[-1]
            for each in rest:
                _, inner, more = self._source(*each)
                if inner is not None:
                    self._given[inner] = False
                    waiting.append((inner, more, iter(more)))
                    break
            else:
                self._given[key] = known = any(self._source(*each)[0] for each in needs)
                waiting.pop()
        return known

    def _source(self, scope: Scope, name: str) -> tuple[bool, tuple[int, int] | None, list[tuple[Scope, str]]]:
        """Whether a name is given, if that is known; else the key of its node, and what that reads."""
        owner = scope.owner(name) if name else None
        if owner is None or name not in owner.producers:
            # What goes into a Loop or Scan is among the inputs of that node; but an LSTM in one is given what it takes
            return owner is not None and name in owner.inputs and not owner.walked, None, []
        node, _ = owner.producers[name]
        key = id(owner), id(node)
        if key in self._given:
            return self._given[key], None, []
        standard = node.domain in ("", "ai.onnx")
        if standard and (node.op_type in RANDOM or node.op_type in ("Shape", "Size")):
            return node.op_type in RANDOM, None, []
        if key not in self._inner:
            graphs = [graph for each in node.attribute for graph in ([each.g] if each.HasField("g") else each.graphs)]
            self._inner[key] = [self._names(graph).inside(owner) for graph in graphs]
        inner = [(each, value.name) for each in self._inner[key] for value in each.graph.output]
        read = node.input[: SIZED.get(node.op_type)] if standard else node.input
        return False, key, [(owner, each) for each in read] + inner

    def _names(self, graph: Any) -> Scope:
        """What names stand for in a graph: one index, however many ways lead to it."""
        if id(graph) not in self._graphs:
            self._graphs[id(graph)] = Scope(graph)  # which keeps the graph, and so its id
        return self._graphs[id(graph)]

    # ---- What it is ------------------------------------------------------------------------------------------------------------

    def _find_rows(self, scope: Scope, name: str, depth: int = 0) -> Rows:
        """The tensor of that name with one row in the place of all that only a run knows the number of.

        Where not even that number's place is known, in Expand and Tile, nothing is repeated: what that changes are sizes, and
        the sizes of a state are checked.

        Raises
        ------
        FormatError
            If the rows need not be alike, or it cannot be computed here.
        """
        owner = scope.owner(name) or scope
        key = id(owner), name
        if key not in self._rows:
            if depth > MAX_DEPTH:
                raise FormatError(f"{quoted(name)} is behind more than {MAX_DEPTH} operators")
            self._rows[key] = FormatError(f"{quoted(name)} needs itself")
            try:
                self._rows[key] = self._find(owner, name, depth)
            except FormatError as error:
                self._rows[key] = FormatError(str(error))  # without its traceback, which would keep the model in memory
        known = self._rows[key]
        if isinstance(known, FormatError):
            raise FormatError(str(known))
        return known

    def _find(self, scope: Scope, name: str, depth: int) -> Rows:
        try:
            return Rows(self._constants.get(scope, name))
        except FormatError as error:
            problem = type(error)(str(error))
        node, output = scope.producers.get(name, (None, 0))
        function = REPEATED.get(node.op_type) if node is not None and node.domain in ("", "ai.onnx") else None
        if node is None:
            raise problem
        if function is None:
            unlike = f"{quoted(node.op_type)} node {quoted(label(node))}: {UNLIKE}"
            raise FormatError(unlike) if isinstance(problem, NotConstant) else problem
        self._constants.spend(node)
        how = HOW.get(node.op_type, max(1, len(node.input)))
        if "" in node.input[:how] or len(node.input) < min(1, how):
            raise FormatError(f"{quoted(node.op_type)} node {quoted(label(node))}: an input is missing")
        values = [self._find_rows(scope, each, depth + 1) for each in node.input[:how]]
        if node.op_type in SIZED:
            numbers = self._numbers(scope, node.input[how]) if len(node.input) > how else None
            rest: list[Value | None] = []
        else:
            numbers, rest = None, [self._constants.get(scope, each) if each else None for each in node.input[how:]]
        if len(values) == 1 and values[0].uniform and node.op_type not in ELEMENTWISE:
            return values[0]  # only its shape changes
        call = Call(self._constants, node, name, output, [*(each.value for each in values), *rest])
        try:
            return function(call, values, numbers)
        except FormatError as error:
            raise FormatError(f"{quoted(node.op_type)} node {quoted(label(node))}: {error}") from None

    def _numbers(self, scope: Scope, name: str) -> list[Size | None] | None:
        """Sizes that a node takes, None for one that only a run knows and for which there is no symbol; None if that is all."""
        found = self._constants.sizes.numbers(scope, name)
        if found is not None:
            return list(found.reshape(-1))
        scope = scope.owner(name) or scope
        node, _ = scope.producers.get(name, (None, 0))
        if node is None or node.op_type != "Concat" or node.domain not in ("", "ai.onnx"):
            return None
        result: list[Size | None] = []
        for each in node.input[: MAX_DEPTH + 1]:
            part = self._constants.sizes.numbers(scope, each)
            result += [None] if part is None else list(part.reshape(-1))  # exporters put numbers together one by one
        return result


EFFORT = 1 << 26  # bytes to find out which states are zeros
UNLIKE = "its rows need not be alike; make the state an input of the model"


def _open(numbers: Iterable[Size | None]) -> tuple[list[int], int | None]:
    """Sizes with 1 for the one that only a run knows, and its place."""
    listed = list(numbers)
    places = [place for place, size in enumerate(listed) if not isinstance(size, int)]
    if len(places) > 1:
        raise FormatError(f"more than one of its sizes is known only to a run; {UNLIKE}")
    return [size if isinstance(size, int) else 1 for size in listed], places[0] if places else None


def _vague(numbers: list[Size | None] | None) -> bool:
    """Whether it takes a run to know more than how many rows there are."""
    return numbers is None or sum(not isinstance(size, int) for size in numbers) > 1


def _uniform(constants: Constants, value: Value) -> Rows:
    one = Value((), value.dtype, lambda array: array.reshape(()), (value,), False, value.depth + 1)
    return Rows(constants.make(("one", id(value)), one), uniform=True)


def _made(call: Call, *numbers: list[int]) -> Value:
    """What the operator gives, with these numbers as its last inputs."""
    given = [_constant(call.constants, each) for each in numbers]
    return replace(call, inputs=[*call.inputs, *given]).result()


def _constant(constants: Constants, numbers: list[int]) -> Value:
    if not all(-(1 << 63) <= number < 1 << 63 for number in numbers):
        raise FormatError("sizes that are no integers of 64 bits")
    array = np.array(numbers, np.int64)
    return constants.make(("sizes", array.tobytes()), Value(array.shape, "int64", lambda: array))


def _from_end(rows: Rows) -> int | None:
    return None if rows.axis is None else rows.axis - len(rows.value.shape)


def _same(axes: Iterable[int | None]) -> int | None:
    found = {axis for axis in axes if axis is not None}
    if len(found) > 1:
        raise FormatError(f"what it takes is repeated along several axes; {UNLIKE}")
    return next(iter(found), None)


def _elementwise(call: Call, values: list[Rows], numbers: Any) -> Rows:
    value, axis = _made(call), _same(map(_from_end, values))
    if any(each.uniform for each in values) and math.prod(value.shape) == 1 and axis is None:
        return _uniform(call.constants, value)
    return Rows(value, None if axis is None else axis + len(value.shape))


def _expand(call: Call, values: list[Rows], numbers: list[Size | None] | None) -> Rows:
    (x,) = values
    if _vague(numbers) and math.prod(x.value.shape) == 1:
        return _uniform(call.constants, x.value)
    if numbers is None:
        return x
    sizes, place = _open(numbers)
    value = _made(call, sizes)
    if place is not None:
        place += len(value.shape) - len(sizes)
    axis = _from_end(x)
    return Rows(value, _same((place, None if axis is None else axis + len(value.shape))))


def _tile(call: Call, values: list[Rows], numbers: list[Size | None] | None) -> Rows:
    (x,) = values
    if numbers is None:
        return x
    repeats, place = _open(numbers)
    return Rows(_made(call, repeats), _same((place, x.axis)))


def _constant_of_shape(call: Call, values: list[Rows], numbers: list[Size | None] | None) -> Rows:
    if numbers is None or _vague(numbers):
        return _uniform(call.constants, _made(call, []))
    sizes, place = _open(numbers)
    return Rows(_made(call, sizes), place)


def _transpose(call: Call, values: list[Rows], numbers: Any) -> Rows:
    (x,) = values
    value, rank = _made(call), len(x.value.shape)
    perm = call.attributes(perm="ints").get("perm", list(range(rank))[::-1])
    return Rows(value, None if x.axis is None else perm.index(x.axis))


def _squeeze(call: Call, values: list[Rows], numbers: Any) -> Rows:
    (x,) = values
    axes, rank = call.numbers(1, call.attributes(axes="ints").get("axes")), len(x.value.shape)
    value = _made(call)
    if x.axis is None:
        return Rows(value)
    gone = {axis % rank for axis in axes or ()}
    if axes is None or x.axis in gone:
        raise FormatError(f"takes the axis of the rows away; {UNLIKE}")
    return Rows(value, x.axis - sum(axis < x.axis for axis in gone))


def _unsqueeze(call: Call, values: list[Rows], numbers: Any) -> Rows:
    (x,) = values
    axes, value = call.numbers(1, call.attributes(axes="ints").get("axes")), _made(call)
    rank = len(value.shape)
    new = {axis % rank for axis in axes or ()}
    old = [axis for axis in range(rank) if axis not in new]
    return Rows(value, None if x.axis is None else old[x.axis])


def _slice(call: Call, values: list[Rows], numbers: Any) -> Rows:
    return Rows(_made(call), values[0].axis)


def _not_along(axis: int, x: Rows) -> int:
    axis = axis % max(1, len(x.value.shape))
    if axis == x.axis:
        raise FormatError(f"works along the axis of the rows; {UNLIKE}")
    return axis


def _gather(call: Call, values: list[Rows], numbers: Any) -> Rows:
    (x,) = values
    axis = _not_along(call.attributes(axis="i").get("axis", 0), x)
    more = len(call.input(1).shape) - 1
    return Rows(_made(call), x.axis if x.axis is None or x.axis < axis else x.axis + more)


def _split(call: Call, values: list[Rows], numbers: Any) -> Rows:
    _not_along(call.attributes(axis="i", split="ints", num_outputs="i").get("axis", 0), values[0])
    return Rows(_made(call), values[0].axis)


def _concat(call: Call, values: list[Rows], numbers: Any) -> Rows:
    if all(each.uniform for each in values) and len({read(each.value, EFFORT).tobytes() for each in values}) == 1:
        return values[0]
    value, axis = _made(call), _same(each.axis for each in values)
    _not_along(call.attributes(axis="i").get("axis", 0), Rows(value, axis))
    return Rows(value, axis)


def _reshape(call: Call, values: list[Rows], numbers: list[Size | None] | None) -> Rows:
    """One that leaves the axis of the rows, with as many elements before and behind it."""
    (x,) = values
    if numbers is None or x.axis is None:
        raise FormatError(f"to sizes that only a run knows; {UNLIKE}")
    shape, wanted = x.value.shape, list(numbers)
    before, behind = math.prod(shape[: x.axis]), math.prod(shape[x.axis + 1 :])
    if not call.attributes(allowzero="i").get("allowzero", 0):
        wanted = [
            (None if axis == x.axis else shape[axis]) if size == 0 and axis < len(shape) else size
            for axis, size in enumerate(wanted)
        ]
    rest = math.prod(size for size in wanted if isinstance(size, int) and size != -1)
    known = any(not isinstance(size, int) for size in wanted)
    wanted = [size if size != -1 else before * behind // max(1, rest) if known else None for size in wanted]
    sizes, place = _open(wanted)
    if place is None or math.prod(sizes[:place]) != before or math.prod(sizes[place + 1 :]) != behind:
        raise FormatError(f"to a shape {sizes!s:.100} in which rows go apart; {UNLIKE}")
    sizes[place] = shape[x.axis]
    return Rows(_made(call, sizes), place)


REPEATED: dict[str, Callable[[Call, list[Rows], Any], Rows]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Gather": _gather,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
}
