"""From a whole ONNX graph to steps that run here: constants are read, dead nodes left out, all else is in the table of operators.

References
----------
https://github.com/onnx/onnx/blob/main/docs/IR.md
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.loaders.onnx import lstm as onnx_lstm
from fastlstm.loaders.onnx.constants import DTYPES, FOLD, TYPES, Constants, Value, check_inside, effort
from fastlstm.loaders.onnx.constants import read as compute
from fastlstm.loaders.onnx.external import Folder
from fastlstm.loaders.onnx.folding import FOLDING
from fastlstm.loaders.onnx.graph import Scope, attributes, label
from fastlstm.loaders.source import weights_limit
from fastlstm.loaders.tensors import STORED, to_floats
from fastlstm.lstm import LSTM
from fastlstm.models.graph import Constant, Graph, GraphInput, GraphStep, LSTMNode, Node
from fastlstm.operators.table import OPERATORS
from fastlstm.weights import Weights

__all__ = ["Pending", "read"]

FOREIGN = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # domains in which no model has functions of its own

LSTMS = {("", "LSTM"), ("ai.onnx", "LSTM"), ("com.microsoft", "DynamicQuantizeLSTM")}
OLDEST = 7  # operator set
MAX_RANK = 16
# What takes a mask, or a bound, with infinity in it
TAKES_MASKS = ("Add", "Clip", "Concat", "Equal", "Expand", "Max", "Min", "ScatterND", "Sub", "Trilu", "Where")
MAX_MASK = 1 << 20  # elements
# Bytes that computing constants may write: a part that many of them have is computed for each
EFFORT_FLOOR = 1 << 30
EFFORT = 400  # times the size of the model


@dataclass(frozen=True)
class PendingLSTM:
    """An LSTM node that has its place in ``weights`` of the graph; several may have one."""

    name: str
    inputs: tuple[str, ...]
    place: int
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Pending:
    """All that a graph needs of its model, which need not be in memory while the networks are packed."""

    inputs: Sequence[GraphInput]
    outputs: Sequence[str]
    steps: Sequence[Constant | Node | PendingLSTM]
    weights: Sequence[tuple[Weights, bool]]
    growth: int

    def graph(self) -> Graph:
        networks: dict[int, LSTM] = {}
        steps: list[GraphStep] = []
        for step in self.steps:
            if isinstance(step, PendingLSTM):
                try:
                    lstm = networks.get(step.place) or LSTM.from_weights(*self.weights[step.place])
                except ValueError as error:
                    raise FormatError(f"node {quoted(step.name)} ('LSTM') {error}") from None
                networks[step.place] = lstm
                steps.append(LSTMNode(step.name, step.inputs, lstm, step.outputs))
            else:
                steps.append(step)
        return Graph(self.inputs, self.outputs, steps, growth=self.growth)


def read(message: Any, size: int, spare: int = 0, folder: Folder | None = None) -> Pending:
    """Read the graph of a model of so many bytes.

    Parameters
    ----------
    message : onnx.ModelProto
    size : int
    spare : int
        Bytes that constants may take beyond what such a file allows.
    folder : Folder, optional
        Where tensors may be that are in other files.

    Returns
    -------
    Pending

    Raises
    ------
    FormatError
        At the first node, in the order of the file, that an output needs and that is not supported; the message names it.
    """
    opset = max((entry.version for entry in message.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST:
        raise FormatError(f"the graph is of operator set {opset}: convert it to {OLDEST} or newer with onnx.version_converter")
    return _Reader(message.graph, opset, size, spare, folder).read()


class _Reader:
    """Reads one graph; what all its constants take together is limited."""

    def __init__(self, proto: Any, opset: int, size: int, spare: int, folder: Folder | None) -> None:
        self.proto, self.opset, self.stored, self.spare, self.folder = proto, opset, size, spare, folder
        self.scope, self.constants = Scope(proto), Constants(FOLDING, folder)
        self.spent = self.effort = 0
        self.steps: list[Constant | Node | PendingLSTM] = []
        self.made: set[str] = set()  # names of results so far
        self.places: dict[Hashable, int] = {}  # of networks in weights
        self.weights: list[tuple[Weights, bool]] = []

    def read(self) -> Pending:
        outputs = [value.name for value in self.proto.output]
        if not outputs:
            raise FormatError("the graph has no outputs")
        if "" in outputs or "" in self.scope.inputs:
            raise FormatError("an input or output of the graph has no name")
        inputs = [self.input(value) for value in self.proto.input if value.name in self.scope.inputs]
        self.made.update(each.name for each in inputs)
        for node in self.needed(set(outputs)):
            name = label(node)
            try:
                step = self.lstm(node) if (node.domain, node.op_type) in LSTMS else self.node(node)
            except FormatError:
                raise
            except ValueError as error:
                raise FormatError(f"node {quoted(name)} ({quoted(node.op_type)}) {error}") from None
            self.steps.append(step)
            self.made.update(filter(None, node.output))
        for name in outputs:
            self.take(name)
        weights = {name for step in self.steps if getattr(step, "kind", "") not in TAKES_MASKS for name in step.inputs}
        steps = [
            replace(step, is_mask=_is_mask(step.value)) if isinstance(step, Constant) and step.name not in weights else step
            for step in self.steps
        ]
        return Pending(inputs, outputs, steps, self.weights, self.size)

    @property
    def size(self) -> int:
        """Bytes of the file, and of those in other files that were asked for so far."""
        return self.stored + (self.folder.total if self.folder else 0)

    @property
    def limit(self) -> int:
        """Bytes that all constants may take."""
        return weights_limit(self.size) + self.spare

    def input(self, value: Any) -> GraphInput:
        name, kind = value.name, value.type.tensor_type
        dtype = TYPES.get(kind.elem_type)
        if dtype is None:
            raise FormatError(f"input {quoted(name)} of the graph is no tensor of one of {', '.join(TYPES.values())}")
        sizes = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None for dim in kind.shape.dim
        )
        if len(sizes) > MAX_RANK:
            raise FormatError(f"input {quoted(name)} of the graph has {len(sizes)} dimensions, more than {MAX_RANK}")
        run_as = _run_as(dtype)
        stored = dtype if run_as.kind == "f" and run_as.name != dtype else ""
        return GraphInput(name, run_as, sizes if kind.HasField("shape") else None, stored)

    def needed(self, wanted: set[str]) -> list[Any]:
        """The nodes that the outputs depend on and that are no constants, each after those whose results it takes."""
        nodes = self.scope.in_order()
        for node in nodes:  # from the first on, so that no chain is long when it is asked for
            self.constant(next(iter(node.output), ""))
        needed = []
        for node in reversed(nodes):
            if any(name in wanted and self.constant(name) is None for name in node.output if name):
                needed.append(node)
                wanted.update(node.input)
        return needed[::-1]

    def constant(self, name: str) -> Value | None:
        """The constant of that name; None if it is computed at run time, or at least not by what computes constants."""
        try:
            return self.constants.get(self.scope, name) if name else None
        except FormatError:
            if name not in self.scope.producers and name not in self.scope.inputs and self.scope.owner(name):
                raise  # a broken initializer
            return None

    def take(self, name: str) -> str:
        """Make sure that there is a result of that name before the next step."""
        if not name or name in self.made:
            return name
        value = self.constant(name)
        if value is None:
            raise FormatError(f"{quoted(name)} is read and nothing before gives it")
        self.steps.append(Constant(name, (), self.array(value, name)))
        self.made.add(name)
        return name

    def array(self, value: Value, name: str) -> Array:
        check_inside(value)
        size = value.nbytes * (2 if value.dtype in ("float16", "bfloat16") else 1)
        self.spend(size, name, value)
        stored = compute(value, self.limit + self.size - self.spent + (0 if value.copies else value.nbytes))
        array: Array = to_floats(stored, value.dtype) if value.dtype in STORED else np.array(stored, DTYPES[value.dtype])
        array.flags.writeable = False
        return array

    def spend(self, size: int, name: str, *values: Value) -> None:
        self.effort += sum(map(effort, values))
        if self.effort > EFFORT_FLOOR + EFFORT * self.size:
            raise FormatError(f"with {quoted(name)} the constants take too long to compute: many of the same parts; {FOLD}")
        self.spent += size
        if self.spent > self.limit:
            raise FormatError(f"with {quoted(name)} the constants take more than {self.limit} bytes")

    def node(self, node: Any) -> Node:
        kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        operator = OPERATORS.get(kind)
        if operator is None:
            ours = (
                "" if node.domain in FOREIGN else "; if it is a function of the model: onnx.inliner.inline_local_functions first"
            )
            raise FormatError(f"node {quoted(label(node))} is {quoted(kind)}, which is not supported{ours}")
        inputs = list(node.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        least, most = operator.inputs
        if not least <= len(inputs) <= most or not all(inputs[:least]):
            raise ValueError(f"has {len(inputs)} inputs; expected {least} to {most}")
        if any(node.output[operator.outputs :]) or not node.output:
            raise ValueError(f"has {len(node.output)} outputs, of which {operator.outputs} can be given")
        given = attributes_of(node, operator.attributes, operator.needs)
        for name, of in operator.attributes.items():
            if of == "t" and name in given:
                tensor = self.constants.tensor(given[name], node.output[0], id(node))
                given[name] = self.array(tensor, node.output[0])
        for place in operator.off:
            if len(inputs) > place and inputs[place]:
                value = self.constant(inputs[place])
                if value is None or self.array(value, inputs[place]).any():
                    raise ValueError(f"has an input {quoted(inputs[place])} that is not a constant 0")
                inputs[place] = ""
        prepared = operator.prepare(given, self.opset, len(node.output))
        return Node(label(node), tuple(map(self.take, inputs)), kind, prepared, tuple(node.output))

    def lstm(self, node: Any) -> PendingLSTM:
        layer = onnx_lstm.layer(node, self.scope, self.constants, self.opset)
        x, lengths, h, c = ([*node.input, *[""] * 7][place] for place in (0, 4, 5, 6))
        if not x:
            raise ValueError("lacks X")
        if layer.identity not in self.places:
            found = onnx_lstm.found([layer], layer.name, (), self.limit, self.limit + self.size - self.spent)
            if found.read is None:
                raise FormatError(found.problem)
            self.spend(0, layer.name, *layer.weights)
            weights = found.read()
            self.spend(sum(array.nbytes for _, array in weights.named_tensors()), layer.name)
            self.places[layer.identity] = len(self.weights)
            self.weights.append((weights, layer.layout == 1))
        inputs = tuple(map(self.take, (x, lengths, h, c)))
        return PendingLSTM(label(node), inputs, self.places[layer.identity], tuple(node.output))


def attributes_of(node: Any, known: Any, needs: tuple[str, ...]) -> dict[str, Any]:
    try:
        given = attributes(node, known)
    except FormatError as error:
        raise ValueError(str(error)) from None
    missing = [name for name in needs if name not in given]
    if missing:
        raise ValueError(f"lacks the attribute {missing[0]}")
    return given


def _is_mask(value: Array) -> bool:
    """Whether there is nothing in it but zeros and infinity."""
    return value.dtype.kind == "f" and value.size <= MAX_MASK and not value[~np.isinf(value)].any()


def _run_as(dtype: str) -> np.dtype[Any]:
    """float16 and bfloat16 are widened, as weights are."""
    return np.dtype(np.float32) if dtype in ("float16", "bfloat16") else DTYPES[dtype]
