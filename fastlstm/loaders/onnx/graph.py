"""The graphs of an ONNX model: what a name stands for, in which scope, and the attributes of a node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from fastlstm.errors import FormatError
from fastlstm.loaders.found import listing, quoted

__all__ = ["Scope", "attributes", "import_onnx", "label", "scopes"]

# AttributeProto: the field that holds a value, and the number of its type
KINDS = {"f": 1, "i": 2, "s": 3, "t": 4, "floats": 6, "ints": 7, "strings": 8}
MAX_LIST = 1000  # numbers in one attribute; weights are tensors
MAX_PATH = 300  # characters, its end


def import_onnx() -> Any:
    """The onnx package.

    Raises
    ------
    ImportError
        If it is not installed; the message says how to.
    """
    try:
        return import_module("onnx")
    except ImportError as error:
        raise ImportError(f"ONNX models need the onnx package: pip install onnx ({error})") from error


@dataclass(eq=False)
class Scope:
    """One graph: what its names stand for. A name that is not here is one of the graph around it.

    Attributes
    ----------
    graph : GraphProto
    outer : Scope or None
    path : str
        Which subgraph this is: ``"node.then_branch."``; empty for the main graph.
    walked : bool
        Whether this is a second look at a subgraph, on the way through the node that it is part of.
    inputs : dict of str to ValueInfoProto
        Graph inputs without a constant default.
    sparse : set of str
        Sparse initializers.
    tensors : dict of str to TensorProto
        The initializers.
    producers : dict of str to (NodeProto, index)
        Which output of which node a name is.
    uses : Counter of str
        How often a name's numbers are read, here and in subgraphs, or given out; its shape is not counted.
    """

    graph: Any
    outer: Scope | None = None
    path: str = ""
    walked: bool = False
    inputs: dict[str, Any] = field(default_factory=dict)
    sparse: set[str] = field(default_factory=set)
    tensors: dict[str, Any] = field(default_factory=dict)
    producers: dict[str, tuple[Any, int]] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for tensor in self.graph.initializer:
            self._define(tensor.name, "initializer")
            self.tensors[tensor.name] = tensor
        for tensor in self.graph.sparse_initializer:
            self._define(tensor.values.name, "sparse initializer")
            self.sparse.add(tensor.values.name)
        # Until IR version 3 every initializer was an input as well
        if len({value.name for value in self.graph.input}) < len(self.graph.input):
            raise FormatError(f"two inputs of the graph {quoted(self.path + self.graph.name)} have one name")
        constant = self.tensors.keys() | self.sparse
        self.inputs = {value.name: value for value in self.graph.input if value.name not in constant}
        for node in self.graph.node:
            for index, name in enumerate(node.output):
                if name:  # an empty one is an output nobody wants
                    self._define(name, "output")
                    self.producers[name] = node, index

    def _define(self, name: str, what: str) -> None:
        if name in self.tensors or name in self.sparse or name in self.inputs or name in self.producers:
            raise FormatError(f"{what} {quoted(name)} of the graph {quoted(self.path + self.graph.name)} has a name given before")

    def inside(self, outer: Scope) -> Scope:
        """A second look at the same graph, on the way through a node of another scope; what names stand for is shared."""
        again = copy(self)
        again.outer, again.path, again.walked = outer, "", True
        return again

    def owner(self, name: str) -> Scope | None:
        """The innermost scope that knows the name."""
        scope: Scope | None = self
        while scope is not None and not (
            name in scope.producers or name in scope.tensors or name in scope.inputs or name in scope.sparse
        ):
            scope = scope.outer
        return scope

    def in_order(self) -> list[Any]:
        """The nodes, each after those whose results it takes, else in the order of the file: some tools add theirs at the end.

        Raises
        ------
        FormatError
            If nodes need each other's results.
        """
        result: list[Any] = []
        done: dict[int, bool] = {}  # by the id of a node; False while what it takes is being put in order
        for start in self.graph.node:
            waiting = [] if id(start) in done else [(start, iter(start.input))]
            done.setdefault(id(start), False)
            while waiting:
                node, names = waiting[-1]
                found = (self.producers[name][0] for name in names if name in self.producers)
                before = next((each for each in found if not done.get(id(each))), None)
                if before is None:
                    done[id(node)] = True
                    result.append(node)
                    waiting.pop()
                elif id(before) in done:
                    path = [each for each, _ in waiting]
                    circle = listing(map(label, path[[*map(id, path)].index(id(before)) :]), 5)
                    raise FormatError(
                        f"nodes of the graph {quoted(self.path + self.graph.name)} need each other's results: {circle}"
                    )
                else:
                    done[id(before)] = False
                    waiting.append((before, iter(before.input)))
        return result

    def use(self, name: str) -> None:
        owner = self.owner(name)
        if owner is not None:
            owner.uses[name] += 1


def scopes(graph: Any, outer: Scope | None = None, path: str = "") -> Iterator[Scope]:
    """The graph and all graphs inside its nodes (If, Loop, Scan); protobuf itself allows no more than 100 levels."""
    scope = Scope(graph, outer, path)
    for value in graph.output:
        scope.use(value.name)
    yield scope
    for node in graph.node:
        for name in node.input if node.op_type not in ("Shape", "Size") else ():
            scope.use(name)
        name = label(node)
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            for index, subgraph in enumerate(inner):
                number = f"[{index}]" if attribute.graphs else ""
                yield from scopes(subgraph, scope, f"{path}{name}.{attribute.name}{number}."[-MAX_PATH:])


def label(node: Any) -> str:
    """The node's name, or that of its first output: ONNX asks for no names of nodes."""
    return str(node.name or next((name for name in node.output if name), ""))


def attributes(node: Any, known: Mapping[str, str]) -> dict[str, Any]:
    """The attributes of a node, each of its ``known`` kind: a key of ``KINDS``.

    Raises
    ------
    FormatError
        If one is unknown, of another kind, or there twice.
    """
    result: dict[str, Any] = {}
    for attribute in node.attribute:
        kind = known.get(attribute.name)
        if kind is None:
            expected = ", ".join(known) or "none"
            raise FormatError(f"attribute {quoted(attribute.name)} is not understood; expected {expected}")
        if attribute.type != KINDS[kind] or attribute.ref_attr_name:
            raise FormatError(f"attribute {attribute.name} must be a value of type {kind}, got type {attribute.type}")
        if attribute.name in result:
            raise FormatError(f"attribute {attribute.name} is there twice")
        value = getattr(attribute, kind)
        if kind in ("floats", "ints", "strings"):
            if len(value) > MAX_LIST:
                raise FormatError(f"attribute {attribute.name} has {len(value)} values, more than {MAX_LIST}")
            value = list(value)
        result[attribute.name] = value
    return result
