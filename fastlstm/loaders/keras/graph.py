"""Which layer of a Keras model takes its input from which, from the model's configuration: a chain or a graph of layers.

Keras 3 writes the arguments of each call of a layer, ``{"args": [...], "kwargs": {...}}``, in which a tensor is given by its
``keras_history``: the layer that made it, which call of that layer, and which of its outputs. Keras 2 writes a list of such
histories. What Keras 3 computes of masks stands in the graph too, as layers of its own that are operations.

References
----------
``Functional.get_config`` and ``serialize_node`` in ``keras/src/models/functional.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.loaders.keras.config import class_of, config_of, returns_state, shown
from fastlstm.loaders.keras.tree import Entry, inner_layers, own_name

__all__ = ["MODELS", "Call", "Graph", "graph"]

MODELS = ("Sequential", "Functional", "Model")
MAX_LAYERS = 10_000


@dataclass(frozen=True)
class Call:
    """A layer and what it is called with.

    Attributes
    ----------
    index : int
        Its place among the layers of the model.
    name : str
    entry : mapping
        Its own configuration.
    inputs : tuple of str
        The names of the layers whose results it takes.
    constants : tuple of float
        Numbers that it takes beside them.
    mask : str or None
        The layer that computes its mask, where the configuration says so.
    problem : str
        Why the call cannot be run; empty if it can.
    """

    index: int
    name: str
    entry: Entry
    inputs: tuple[str, ...] = ()
    constants: tuple[float, ...] = ()
    mask: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class Graph:
    """A model: all its layers, and those calls that its output needs, each after what it takes.

    ``shape`` is that of the model's input, as the configuration has it.
    """

    layers: tuple[Entry, ...]
    calls: tuple[Call, ...]
    input: str
    output: str
    shape: Any


def graph(entry: Entry) -> Graph:
    """Read the configuration of a model.

    Raises
    ------
    FormatError
        If it is no model of one input and one output, or a layer takes what no layer gives, or what needs its own result.
    """
    kind = class_of(entry)
    if kind not in MODELS:
        name = shown(entry.get("class_name"))
        raise FormatError(f"its class {name} is not Keras' Sequential or Functional: its code decides what it computes")
    layers = inner_layers(entry)
    config = entry.get("config")
    listed = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(listed, list) or len(layers) != len(listed) or not 0 < len(layers) <= MAX_LAYERS:
        raise FormatError(f"its layers must be a list of 1 to {MAX_LAYERS} objects")
    names = [own_name(layer) for layer in layers]
    if len(set(names)) < len(names) or "" in names:
        raise FormatError("two of its layers have the same name, or one has none")
    return (_chain if kind == "Sequential" else _functional)(entry, layers, names)


def _chain(entry: Entry, layers: Sequence[Entry], names: Sequence[str]) -> Graph:
    first = layers[0]
    if class_of(first) == "InputLayer":
        before, shape, start = names[0], _input_shape(first), 1
    else:  # the first layer has it in Keras 2, the model in Keras 3
        config = config_of(first)
        before, start = "", 0
        shape = config.get("batch_input_shape", config.get("batch_shape", config_of(entry).get("build_input_shape")))
    begin, calls = before, []
    for index, (layer, name) in enumerate(zip(layers[start:], names[start:], strict=True), start):
        several = "it has return_state, and so several outputs, which are not supported" if returns_state(layer) else ""
        calls.append(Call(index, name, layer, (before,), problem=several))
        before = name
    return Graph(tuple(layers), tuple(calls), begin, before, shape)


def _functional(entry: Entry, layers: Sequence[Entry], names: Sequence[str]) -> Graph:
    config = config_of(entry)
    ends = {}
    for key, what in (("input_layers", "input"), ("output_layers", "output")):
        histories = list(_histories(config.get(key)))
        if len(histories) != 1:
            raise FormatError(f"it has {len(histories)} {what}s, and models of one are supported")
        if histories[0].output:
            raise FormatError(f"its {what} is output {histories[0].output} of {quoted(histories[0].layer)}, a layer with several")
        ends[what] = histories[0].layer
    places = {name: index for index, name in enumerate(names)}
    if ends["input"] not in places or class_of(layers[places[ends["input"]]]) != "InputLayer":
        raise FormatError(f"its input {quoted(ends['input'])} is not a layer of class InputLayer")
    calls = {name: _call(index, name, layer) for index, (name, layer) in enumerate(zip(names, layers, strict=True))}
    ordered = tuple(_ordered(calls, ends["input"], ends["output"]))
    return Graph(tuple(layers), ordered, ends["input"], ends["output"], _input_shape(layers[places[ends["input"]]]))


def _input_shape(layer: Entry) -> Any:
    config = config_of(layer)
    for key in ("sparse", "ragged"):
        if config.get(key):
            raise FormatError(f"its input is {key}")
    return config.get("batch_shape", config.get("batch_input_shape"))


def _ordered(calls: Mapping[str, Call], given: str, output: str) -> Iterator[Call]:
    """The calls that the output needs, each after those it needs itself; without recursion, which a long chain would exhaust."""
    done, open_calls = {given}, set[str]()
    waiting = [(output, "")]
    while waiting:
        name, user = waiting[-1]
        if name in done:
            waiting.pop()
            continue
        call = calls.get(name)
        if call is None:
            taker = f"layer {quoted(user)}" if user else "its output"
            raise FormatError(f"{taker} takes the result of {quoted(name)}, which is not a layer of the model")
        needed = [other for other in (*call.inputs, *([call.mask] if call.mask else [])) if other not in done]
        if not needed:
            done.add(name)
            waiting.pop()
            yield call
        elif name in open_calls:
            raise FormatError(f"layer {quoted(name)} needs its own result")
        else:
            open_calls.add(name)
            waiting += [(other, name) for other in needed]


# ---- Calls ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """A tensor: output number ``output`` of a layer."""

    layer: str
    output: int


def _history(value: Any) -> History | None:
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        value = config_of(value).get("keras_history")
    if (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in value[1:3])
    ):
        return History(value[0], value[2])
    return None


def _histories(value: Any) -> Iterator[History]:
    """One history, or those of a list or dictionary."""
    one = _history(value)
    if one:
        yield one
    elif isinstance(value, (list, dict)) and value:
        for item in value.values() if isinstance(value, dict) else value:
            inner = _history(item)
            if inner is None:
                raise FormatError(f"a layer and two numbers expected, got {shown(item)}")
            yield inner


def _call(index: int, name: str, layer: Entry) -> Call:
    """A layer of a functional model; what is wrong with the call matters if the output needs it."""
    nodes = layer.get("inbound_nodes")
    if class_of(layer) == "InputLayer":
        return Call(index, name, layer, problem="it is a second input, and models of one are supported")
    if not isinstance(nodes, list) or len(nodes) != 1:
        times = len(nodes) if isinstance(nodes, list) else 0
        return Call(index, name, layer, problem=f"it is called {times} times, and only layers called once are supported")
    try:
        tensors, constants, keywords = _arguments(nodes[0])
        mask = _mask(keywords)
        for tensor in (*tensors, *([mask] if mask else [])):
            if tensor.output:
                raise FormatError(f"it takes output {tensor.output} of {quoted(tensor.layer)}, a layer with several")
        return Call(index, name, layer, tuple(tensor.layer for tensor in tensors), constants, mask.layer if mask else None)
    except FormatError as error:
        return Call(index, name, layer, problem=str(error))


def _arguments(node: Any) -> tuple[list[History], tuple[float, ...], dict[str, Any]]:
    keywords: dict[str, Any] = {}
    constants: list[float] = []
    if isinstance(node, dict):
        given, keywords = node.get("args"), node.get("kwargs", {})
        if not isinstance(given, list) or not isinstance(keywords, dict):
            raise FormatError("its inbound_nodes are not as Keras writes them")
        # A layer that takes several tensors takes a list of them
        given = given[0] + given[1:] if given and isinstance(given[0], list) else given
    elif isinstance(node, list):
        given = [node] if _history(node) else node
        for item in given:
            more = item[3] if isinstance(item, list) and len(item) == 4 else {}
            if not isinstance(more, dict):
                raise FormatError("its inbound_nodes are not as Keras writes them")
            keywords |= more
    else:
        raise FormatError("its inbound_nodes are not as Keras writes them")
    tensors = []
    for item in given:
        tensor = _history(item)
        if tensor:
            tensors.append(tensor)
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            constants.append(item)
        else:
            raise FormatError(f"it is called with {shown(item)}: only tensors and numbers are supported, no slices")
    if not tensors:
        raise FormatError("it is called without a tensor")
    return tensors, tuple(constants), keywords


def _mask(keywords: Mapping[str, Any]) -> History | None:
    """The mask; any other argument that is given could change what is computed."""
    for key, value in keywords.items():
        if key == "training" and value:
            raise FormatError("it is called with training=True")
        if key not in ("training", "mask") and value is not None:
            raise FormatError(f"it is called with {shown(key)}, which is not supported")
    mask = keywords.get("mask")
    if mask is None or (isinstance(mask, list) and mask and all(item is None for item in mask)):
        return None
    history = _history(mask)
    if history is None:
        raise FormatError(f"it is called with the mask {shown(mask)}")
    return history
