"""The tree of weights that Keras 3 writes, and which layers of a configuration it belongs to.

Groups are named after classes and running numbers, ``layers/lstm_1/cell/vars/0``, or after attributes in subclassed models; since
Keras 3.7 the attribute ``name`` of ``vars`` is the layer's own name.

References
----------
``_save_state`` and ``_save_container_state`` in ``keras/src/saving/saving_lib.py``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from fastlstm.errors import FormatError
from fastlstm.loaders.found import Contents, Found, listing, other_layer, quoted, summary
from fastlstm.loaders.keras import config as keras_config
from fastlstm.loaders.keras.config import NO_ARGUMENTS, KerasArguments
from fastlstm.loaders.keras.hdf5 import Dataset, Group
from fastlstm.loaders.keras.layer import CellTensors, Layout, found

__all__ = [
    "Configured",
    "Entry",
    "Place",
    "TreePlace",
    "check_number",
    "configured",
    "contents",
    "entry_found",
    "find",
    "inner_layers",
    "joined",
    "own_name",
]

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the second in Keras 2.13 to 2.15
MAX_DEPTH = 50  # of models in models
MAX_NAME = 1000  # characters, with the names around it: names are repeated for all that is inside
MAX_LAYERS = 10_000

Entry: TypeAlias = Mapping[str, Any]  # a serialized layer: class_name, config, ...
Names: TypeAlias = tuple[str, ...]  # of the models around a layer, and its own


def find(
    tree: Group,
    config: Entry | None,
    version: int | None,
    limit: float,
    what: str,
    arguments: KerasArguments = NO_ARGUMENTS,
    shard: bool = False,
) -> Contents:
    """List the LSTMs.

    Parameters
    ----------
    tree : Group
    config : mapping or None
        The serialized model, None where there are weights alone.
    version : int or None
        Of Keras, 2 or 3.
    limit : number
        Most bytes that the weights of one LSTM may take.
    what : str
        What the file is, in messages.
    arguments : KerasArguments
        What the caller says of layers without a configuration.
    shard : bool
        Whether the rest of a layer may be in another file.
    """
    layouts = {group.path: (names, group, layout) for names, group, layout in _layouts(tree)}
    layers = list(configured(config, tree)) if config else []
    check_number(len(layers))
    layers = _with_groups(layers, [item[:2] for item in layouts.values()])
    results, paths, homeless = [], [], []
    for layer in layers:
        _, _, layout = layouts.pop(layer.group.path, (None, None, None)) if layer.group else (None, None, None)
        results.append(entry_found(layer, layout, version, limit, arguments))
        paths.append(layer.group.path if layer.group else "")
        if not layer.group and results[-1].is_lstm:
            homeless.append(results[-1].name)
    for path, (names, group, layout) in layouts.items():
        name = joined(names) or path
        if shard and _may_go_on(group, layout):
            problem = (
                "by its name the file is a shard of Keras' weights, and a part of this layer may lie in another: save them "
                "without max_shard_size, model.save_weights('x.weights.h5'); if the file is whole, rename it"
            )
            results.append(Found(name, problem=f"layer {quoted(name)}: {problem}"))
        elif homeless:
            problem = f"it cannot be told which of the configuration's layers it is: {listing(homeless, 5)}"
            results.append(Found(name, problem=f"layer {quoted(name)}: {problem}"))
        else:
            results.append(found(name, layout, None, limit, (path, *names[-1:]), arguments, version))
        paths.append(path)
    return contents(results, paths, what, tree)


def contents(results: Sequence[Found], paths: Sequence[str], what: str, tree: Group) -> Contents:
    """All that was found; where several have one name, the place in the file is theirs."""
    counts = Counter(item.name for item in results)
    named = []
    for item, path in zip(results, paths, strict=True):
        if counts[item.name] > 1 and path:
            aliases = {*item.aliases, item.name} - {path}
            info = replace(item.info, name=path) if item.info else None
            item = replace(item, name=path, info=info, aliases=tuple(sorted(aliases)))
        named.append(item)
    datasets = [dataset.name for group in tree.walk() for dataset in group.datasets.values()]
    return Contents(named, summary(what, datasets, "dataset(s)"))


def entry_found(layer: Configured, layout: Layout | None, version: int | None, limit: float, arguments: KerasArguments) -> Found:
    """A layer that a configuration describes."""
    name = joined(layer.names)
    other = keras_config.other_kind(layer.entry)
    if other:
        return other_layer(name, f"layer {quoted(name)}", other)
    try:
        version, arguments = keras_config.version_from(layer.entry, version, arguments)
    except FormatError as error:
        return Found(name, problem=f"layer {quoted(name)}: {error}")
    return found(name, layout, lambda: keras_config.plan(layer.entry, version), limit, layer.names[-1:], arguments)


def check_number(layers: int) -> None:
    if layers > MAX_LAYERS:
        raise FormatError(f"the configuration has more than {MAX_LAYERS} recurrent layers")


def joined(names: Names) -> str:
    if sum(map(len, names)) > MAX_NAME:
        raise FormatError(f"the name of a layer and those around it have more than {MAX_NAME} characters")
    return "/".join(names)


# ---- Configurations ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configured:
    """A recurrent layer in a configuration; ``group`` is where its state is, None if that is not known."""

    names: Names
    entry: Entry
    group: Group | None = None


def configured(entry: Entry, group: Group | None, names: Names = (), is_model: bool = True) -> Iterator[Configured]:
    """All recurrent layers in the configuration of a layer or, if ``is_model``, of the outermost model, which lends no name.

    Raises
    ------
    FormatError
        If layers are nested too deep.
    """
    if len(names) > MAX_DEPTH:
        raise FormatError(f"the configuration nests layers more than {MAX_DEPTH} deep")
    if not is_model:
        names = (*names, own_name(entry))
        if entry.get("class_name") in (*keras_config.RECURRENT, *keras_config.OTHERS) or _looks_like_lstm(entry, group):
            yield Configured(names, entry, group)
            return
    config = entry.get("config")
    layers = inner_layers(entry)
    for layer, place in zip(layers, _in_container(layers, group), strict=True):
        yield from configured(layer, place, names, False)
    for key, value in config.items() if isinstance(config, dict) else ():  # a wrapper's layer, under the name of its attribute
        if isinstance(value, dict) and isinstance(value.get("config"), dict) and isinstance(value.get("class_name"), str):
            yield from configured(value, group.groups.get(key) if group else None, names, False)


def inner_layers(entry: Entry) -> list[Entry]:
    """The layers of a model."""
    config = entry.get("config")
    layers = config.get("layers") if isinstance(config, dict) else config  # a list alone before Keras 2.2.3
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def own_name(entry: Entry) -> str:
    config = entry.get("config")
    name = (config.get("name") if isinstance(config, dict) else None) or entry.get("name")
    return name if isinstance(name, str) else ""


def _looks_like_lstm(entry: Entry, group: Group | None) -> bool:
    """Whether a layer of a class that is not Keras' has stored what an LSTM stores."""
    return not keras_config.class_of(entry) and group is not None and _layout(group) is not None


def _in_container(layers: Sequence[Entry], group: Group | None) -> list[Group | None]:
    """The group of each layer of a model: that with its name, or without any names the next one of its class."""
    container = next((group.groups[key] for key in CONTAINERS if key in group.groups), None) if group else None
    if container is None:
        return [None] * len(layers)
    families: dict[str, list[Group]] = defaultdict(list)  # in the order of their numbers
    named: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for label, child in container.groups.items():
        kind, name = re.sub(r"_\d+$", "", label), _stored_name(child)
        families[kind].append(child)
        if name:
            named[kind, name].append(child)
    with_names = {kind for kind, _ in named}
    kinds = [_snake(str(layer.get("class_name"))) for layer in layers]
    counts, before = Counter(kinds), Counter[str]()
    claims = Counter((kind, own_name(layer)) for layer, kind in zip(layers, kinds, strict=True))
    result: list[Group | None] = []
    for layer, kind in zip(layers, kinds, strict=True):
        key = kind, own_name(layer)
        if kind not in with_names and len(families[kind]) == counts[kind]:
            result.append(families[kind][before[kind]])
        else:
            result.append(named[key][0] if len(named.get(key, [])) == claims[key] == 1 else None)
        before[kind] += 1
    return result


def _snake(name: str) -> str:
    """As ``to_snake_case`` in ``keras/src/utils/naming.py``."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name[:200]))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _with_groups(layers: Sequence[Configured], groups: Sequence[tuple[Names, Group]]) -> list[Configured]:
    """Give a layer inside a subclassed model, whose groups have the names of attributes, the only one with its own name."""
    counts = Counter(layer.names[-1] for layer in layers)
    named: dict[str, list[Group]] = defaultdict(list)
    for names, group in groups:
        if names:
            named[names[-1]].append(group)
    result = []
    for layer in layers:
        same = named.get(layer.names[-1], [])
        lone = same[0] if len(same) == counts[layer.names[-1]] == 1 else None
        result.append(layer if layer.group else replace(layer, group=lone))
    return result


# ---- Weights -------------------------------------------------------------------------------------------------------------------


def _stored_name(group: Group) -> str:
    variables = group.groups.get("vars")
    return (variables.text("name") or "") if variables else ""


def _layouts(tree: Group) -> Iterator[tuple[Names, Group, Layout]]:
    """Every group that holds an LSTM, with the names stored around it and its own; without a name of its own, none."""
    waiting: list[tuple[Names, Group]] = [((), tree)]
    while waiting:
        names, group = waiting.pop()
        own = _stored_name(group) if group is not tree else ""
        names = (*names, own) if own else names
        inner = group.groups
        # The file itself is a model: a "cell" in it is an attribute of that name, as others are
        layout = None if group is tree and "cell" in inner else _layout(group)
        if layout:
            yield names if own else (), group, layout
            # What lies inside an LSTM belongs to it; what lies beside the "cell" of a layer of one's own does not
            inner = {key: each for key, each in inner.items() if key != "cell"} if "cell" in inner else {}
        waiting += [(names, each) for each in reversed(inner.values())]


def _may_go_on(group: Group, layout: Layout) -> bool:
    """Whether another file may hold a bias, a direction or a cell that this one would lack."""
    lone = group.path.rpartition("/")[2] in ("forward_layer", "backward_layer")
    stacked = "/cells/" in f"{group.path}/" or "cells" in group.groups.get("cell", group).groups
    return lone or stacked or any(cell.bias is None for cell in layout.cells)


def _layout(group: Group) -> Layout | None:
    if "forward_layer" in group.groups and "backward_layer" in group.groups:
        forward, backward = (_cells(group.groups[key]) for key in ("forward_layer", "backward_layer"))
        return Layout(forward + backward, True) if forward and backward else None
    cells = _cells(group)
    return Layout(cells) if cells else None


def _cells(group: Group) -> tuple[CellTensors, ...]:
    """Of an LSTM or an RNN the cell or cells; of an LSTMCell itself. Empty if it is none of them."""
    group = group.groups.get("cell", group)
    stacked = group.groups.get("cells")
    cells = [_cell(inner) for inner in (stacked.groups.values() if stacked else [group])]
    return tuple(cell for cell in cells if cell) if all(cells) else ()


def _cell(group: Group) -> CellTensors | None:
    variables = group.groups.get("vars")
    datasets = variables.datasets if variables else {}
    if datasets.keys() not in ({"0", "1"}, {"0", "1", "2"}):
        return None
    cell = CellTensors(datasets["0"], datasets["1"], datasets.get("2"))
    return cell if cell.is_lstm() else None


# ---- Places --------------------------------------------------------------------------------------------------------------------


class Place(Protocol):
    """Where the weights of one layer are, or of a model."""

    def inner(self, layers: Sequence[Entry], /) -> Sequence[Place]:
        """Those of the layers of a model."""

    def wrapped(self) -> Place:
        """That of the layer in a TimeDistributed."""

    def layout(self, entry: Entry, /) -> Layout | None:
        """The cells of a recurrent layer; None if they cannot be told."""

    def tensors(self, roles: Sequence[str], /) -> list[Dataset] | None:
        """The weights of another layer, in the order of these names; None if it does not have just those."""


@dataclass(frozen=True)
class TreePlace:
    """In the tree that Keras 3 writes."""

    group: Group | None

    def inner(self, layers: Sequence[Entry]) -> list[TreePlace]:
        return [TreePlace(group) for group in _in_container(layers, self.group)]

    def wrapped(self) -> TreePlace:
        return TreePlace(self.group.groups.get("layer") if self.group else None)

    def layout(self, entry: Entry) -> Layout | None:
        return _layout(self.group) if self.group else None

    def tensors(self, roles: Sequence[str]) -> list[Dataset] | None:
        variables = self.group.groups.get("vars") if self.group else None
        if variables is None or variables.datasets.keys() != {str(number) for number in range(len(roles))}:
            return None
        return [variables.datasets[str(number)] for number in range(len(roles))]
