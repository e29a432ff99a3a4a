"""ONNX models: the LSTM nodes in their graphs, and cells that PyTorch took apart, by the names of its parameters.

The onnx package reads the protobuf message, after its parts were counted here: two bytes of a file may be an empty message, which
takes a hundred times as much memory.

References
----------
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders import metadata
from fastlstm.loaders.found import Contents, Found, listing, quoted
from fastlstm.loaders.onnx import lstm as onnx_lstm
from fastlstm.loaders.onnx.constants import TYPES, Constants, is_outside, read
from fastlstm.loaders.onnx.external import Folder
from fastlstm.loaders.onnx.folding import FOLDING
from fastlstm.loaders.onnx.graph import Scope, import_onnx, label, scopes
from fastlstm.loaders.onnx.states import States
from fastlstm.loaders.source import SourceFile, return_freed, weights_limit
from fastlstm.loaders.tensors import to_floats
from fastlstm.loaders.torch import names as torch_names
from fastlstm.weights import MAX_SIZE

if TYPE_CHECKING:
    from fastlstm.models.graph import Graph

__all__ = ["find", "find_live", "model", "recognises"]

# ModelProto: field 1 as a number, and the wire types of the others
IR_VERSION = 1 << 3
FIELDS = {2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}

# Bytes that one part takes, by measurement rounded up: a message of protobuf (35 to 200), and for a node also what is noted here
# of it and of its names; a graph with the tables of its names and its path; a text of a list, as bytes there and as text here.
MESSAGE, TEXT, NUMBER = 200, 150, 16
COSTS = {"NodeProto": 900, "GraphProto": 2200}
WIDE = 4  # of each byte of a text that is not ASCII, in Python's memory
UNKNOWN = 0, 4, None  # kept by protobuf, in pieces that grow
MAX_FIELDS = 2_000_000  # a second of counting
# Weights of 8 bits take four times their file as float32, and as much once more when they are packed: twice WEIGHTS_FLOOR and
# this leave 8 MB of the 64 MB for all else
SPARE = 12 << 20
WIRE_NUMBERS = {1: 8, 5: 4}  # wire types of fixed size


def recognises(file: SourceFile) -> bool:
    """The IR version, which protobuf's writers put first, and another field of a ModelProto after it."""
    head = file.head[:20]
    try:
        first, start = _varint(head, 0, len(head))
        _, start = _varint(head, start, len(head))
        second, _ = _varint(head, start, len(head))
    except FormatError:
        return False
    return first == IR_VERSION and FIELDS.get(second >> 3) == second & 7


def find(file: SourceFile) -> Contents:
    """List the LSTMs of the file.

    Raises
    ------
    FormatError
        If it is broken, or a name in it has two meanings.
    ImportError
        If the onnx package is missing.
    """
    message, spare = _parsed(file)
    return _contents(message, file.size, spare, _folder(file))


def model(file: SourceFile) -> Graph:
    """The whole graph.

    Raises
    ------
    FormatError
        If it is broken, or an output needs a node that is not supported; the message names the first.
    ImportError
        If the onnx package is missing.
    """
    from fastlstm.loaders.onnx import model as onnx_model

    try:
        message, spare = _parsed(file)
        pending = onnx_model.read(message, file.size, spare, _folder(file))
        del message
        return_freed(file.size)  # the model has gone
        return pending.graph()
    except FormatError as error:
        problem = str(error)
    raise FormatError(problem)  # without the traceback, which would keep the model in memory while it is read again


def _folder(file: SourceFile) -> Folder | None:
    return Folder(file.path) if file.external_data else None


def _parsed(file: SourceFile) -> tuple[Any, int]:
    """The ModelProto, and the bytes that its weights may take beyond ``weights_limit``, as its other parts take so few."""
    onnx = import_onnx()
    if file.size > MAX_SIZE:
        raise FormatError(f"an ONNX model of {file.size} bytes; protobuf allows {MAX_SIZE}")
    data = file.read(0, file.size)
    try:
        size = _count(data, onnx.ModelProto.DESCRIPTOR, file.objects_limit)
        message = onnx.ModelProto()
        message.ParseFromString(data)
    except MemoryError:
        raise
    except Exception as error:  # DecodeError of protobuf, which has moved between its versions
        raise FormatError(f"broken ONNX model: {str(error)[:200]}") from None
    return message, min(SPARE, file.objects_limit - size)


def find_live(model: Any) -> Contents:
    """List the LSTMs of an ``onnx.ModelProto``.

    Raises
    ------
    TypeError
        If it is something else.
    """
    onnx = import_onnx()
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model_or_path must be an onnx.ModelProto or a path, got {type(model).__name__}")
    return _contents(model, model.ByteSize(), SPARE)


@cache
def _fields(descriptor: Any) -> dict[int, tuple[int, int, Any]]:
    """Of each field of a message: the cost of one, the cost of each byte in it, and what it is: a message, text, or else."""
    table: dict[int, tuple[int, int, Any]] = {}
    for number, part in descriptor.fields_by_number.items():
        inner = part.message_type
        if inner is not None:
            table[number] = COSTS.get(inner.name, MESSAGE), 0, inner
        elif part.type in (part.TYPE_STRING, part.TYPE_BYTES):
            table[number] = TEXT, 0, str if part.type == part.TYPE_STRING else None
        else:  # lists of floats take as much memory as in the file, integers up to 16 times as much
            table[number] = 0, 0 if part.type in (part.TYPE_FLOAT, part.TYPE_DOUBLE) else NUMBER, None
    return table


def _count(data: bytes, descriptor: Any, limit: int) -> int:
    """The bytes that a message takes besides the texts and numbers in it; refuse one of more than ``limit``, or cut off."""
    waiting = [(0, len(data), _fields(descriptor))]
    size = count = 0
    while waiting:
        position, end, known = waiting.pop()
        while position < end:
            tag, position = _varint(data, position, end)
            wire = tag & 7
            each, byte, kind = known.get(tag >> 3, UNKNOWN)
            if each and wire != 2:
                raise FormatError(f"a number at byte {position} where a text or a message is expected")
            count += 1
            size += NUMBER
            if wire == 0:
                _, position = _varint(data, position, end)
            elif wire in WIRE_NUMBERS:
                position += WIRE_NUMBERS[wire]
            elif wire == 2:
                length, start = _varint(data, position, end)
                position = start + length
                size += each + byte * length
                if kind is str:
                    text = data[start : min(position, end)]
                    size += 0 if text.isascii() else WIDE * length
                    if size <= limit:
                        text.decode()  # protobuf lets pass what is not UTF-8
                elif kind is not None:
                    waiting.append((start, min(position, end), _fields(kind)))
            else:
                raise FormatError(f"wire type {wire} at byte {position}, which ONNX does not use")
            if position > end:
                raise FormatError(f"truncated: a field ends at byte {position}, what holds it at byte {end}")
            if size > limit or count > MAX_FIELDS:
                raise FormatError(f"it holds more parts than a model of {len(data)} bytes may")
    return size


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """A number of 7 bits in each byte, and where it ends."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise FormatError(f"truncated: no end of the number before byte {position}")


# ---- What is in a model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Initializer:
    """An initializer by its name, shape and torch's name of its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass
class Item:
    """A recurrent layer found: layers of one network, or a ``problem``; and the node that names it."""

    node: Any
    path: str
    layers: Sequence[onnx_lstm.Layer] = ()
    problem: str = ""
    is_lstm: bool = True
    others: list[str] = field(default_factory=list)

    def names(self) -> tuple[str, str, str]:
        """The node's own name; with the path of its subgraph; and by its output, which is unique there."""
        output = next((name for name in self.node.output if name), "")
        return label(self.node), self.path + label(self.node), self.path + output


def _contents(model: Any, size: int, spare: int, folder: Folder | None = None) -> Contents:
    """List the LSTMs of a model of so many bytes, with tensors in other files if their folder is given.

    Weights may take ``spare`` bytes more than such a file allows.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    constants = Constants(FOLDING, folder)
    states = States(constants)
    every = list(scopes(model.graph))
    items = [_examine(node, scope, constants, states, opset) for scope in every for node in _in_order(scope) if _kind(node)]
    items += [_in_function(node, function) for function in model.functions for node in function.node if _kind(node)]

    total = size + (folder.total if folder else 0)
    limit = weights_limit(total) + spare
    room = limit + total
    layers = [layer for item in items for layer in item.layers]
    chains = {id(chain[0]): chain for chain in onnx_lstm.chains(layers, constants)}
    items = [
        replace(item, layers=chains[id(item.layers[0])]) if item.layers else item
        for item in items
        if not item.layers or id(item.layers[0]) in chains
    ]
    texts = [entry.value for entry in model.metadata_props if entry.key == metadata.KEY]
    recorded = metadata.batch_first(texts[-1]) if texts else None
    found = [
        onnx_lstm.found(item.layers, name, aliases, limit, room, recorded)
        if item.layers
        else Found(name, problem=item.problem, is_lstm=item.is_lstm, aliases=aliases)
        for item, name, aliases in _named(_merged(items))
    ]
    inner = [layer for chain in chains.values() for layer in chain[1:]]
    parts = [onnx_lstm.found([layer], layer.name, (), limit, room, recorded) for layer in inner]
    found += _taken_apart(every[0], constants, limit, room)
    kinds = Counter(node.op_type for scope in every for node in scope.graph.node)
    operators = listing((kind for kind, _ in kinds.most_common()), 5)
    return Contents(found, f"an ONNX model with {kinds.total()} nodes" + (f": {operators}" if kinds else ""), parts)


def _in_order(scope: Scope) -> Sequence[Any]:
    try:
        return scope.in_order()
    except FormatError:  # an LSTM beside nodes that never run can be read all the same
        return list(scope.graph.node)


def _taken_apart(scope: Scope, constants: Constants, limit: int, room: int) -> list[Found]:
    """Cells without a node, by PyTorch's names of initializers that no LSTM node has."""
    tensors = {
        name: Initializer(name, tuple(tensor.dims), TYPES.get(tensor.data_type, "another type"))
        for name, tensor in scope.tensors.items()
        if name not in constants.used and len(name) <= torch_names.MAX_NAME and name.count(".") <= torch_names.MAX_DEPTH
    }

    def reader(wanted: Sequence[Initializer]) -> list[Array]:
        return [to_floats(read(constants.get(scope, tensor.name), room), tensor.dtype) for tensor in wanted]

    outside = {_owner(name): name for name in tensors if is_outside(scope.tensors[name])} if constants.external is None else {}
    found = torch_names.find([torch_names.Group((), tensors)], reader, math.inf if outside else limit)
    return [
        replace(item, info=replace(item.info, problem=constants.get(scope, outside[item.name]).outside))
        if item.info and item.name in outside
        else item
        for item in found
    ]


def _owner(name: str) -> str:
    """The prefix of a tensor."""
    prefix, parametrized, _ = f".{name}".rpartition(".parametrizations.")
    return prefix[1:] if parametrized else name.rpartition(".")[0]


def _kind(node: Any) -> str:
    """What recurrent layer a node is, by its operator; empty for all else."""
    standard = node.domain in ("", "ai.onnx")
    if standard and node.op_type in ("GRU", "RNN"):
        return "a GRU" if node.op_type == "GRU" else "a plain RNN"
    if standard and node.op_type == "LSTM":
        return "LSTM"
    if node.domain == "com.microsoft" and node.op_type == "DynamicQuantizeLSTM":
        return "LSTM"
    return "of an unknown kind" if "LSTM" in node.op_type and not standard else ""


def _examine(node: Any, scope: Scope, constants: Constants, states: States, opset: int) -> Item:
    kind, name = _kind(node), quoted(label(node))
    if kind == "of an unknown kind":
        operator = quoted(f"{node.domain}.{node.op_type}")
        return Item(node, scope.path, problem=f"{operator} node {name} is not understood: no LSTM of the ONNX standard")
    if kind != "LSTM":
        return Item(node, scope.path, problem=f"{name}: this is {kind}, not an LSTM", is_lstm=False)
    try:
        return Item(node, scope.path, [onnx_lstm.layer(node, scope, constants, opset, states)])
    except FormatError as error:
        return Item(node, scope.path, problem=str(error))


def _in_function(node: Any, function: Any) -> Item:
    where = f"{quoted(label(node))} is inside the function {quoted(function.name)} of the model"
    problem = f"LSTM node {where}: inline it first with onnx.inliner.inline_local_functions"
    return Item(node, f"{function.name}.", problem=problem, is_lstm="LSTM" in node.op_type)


def _merged(items: Sequence[Item]) -> list[Item]:
    """Nodes with the same weights, such as those in both branches of an If, are one network; the first one names it."""
    result: list[Item] = []
    known: dict[object, Item] = {}
    for item in items:
        first = known.setdefault(tuple(layer.identity for layer in item.layers), item) if item.layers else item
        if first is item:
            result.append(item)
        else:
            first.others.extend(item.names())
    return result


def _named(items: Sequence[Item]) -> list[tuple[Item, str, tuple[str, ...]]]:
    """Each with the first of its names that no other has, and with the other names."""
    counts = [Counter(names) for names in zip(*(item.names() for item in items), strict=True)]
    result = []
    taken: set[str] = set()
    for item in items:
        names = item.names()
        free = (name for name, count in zip(names, counts, strict=True) if count[name] == 1 and name not in taken)
        name = next(free, f"{names[2]}#{len(taken)}")
        taken.add(name)
        result.append((item, name, tuple(sorted({*names, *item.others} - {name}))))
    return result
