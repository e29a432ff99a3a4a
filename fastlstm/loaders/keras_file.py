"""What Keras wrote: ``.keras`` archives, ``.weights.h5``, and the ``.h5`` files of Keras 2 (which Keras 3 still writes).

``.keras`` is a zip file with metadata.json (the version), config.json (the layers) and model.weights.h5, which is what
``save_weights`` writes alone: a tree of groups named after classes and running numbers (``layers/lstm_1/cell/vars/0``), each with
its layer's name as an attribute since Keras 3.7. The older form has a group for each layer, under its name, with a list of weight
names (``lstm/lstm_cell/kernel:0``), in ``model_weights`` beside the attribute ``model_config``, or at the root without any.

Where there is no configuration (weights alone, layers of a subclassed model) Keras' defaults are taken: tanh, sigmoid, forward.

References
----------
``keras/src/saving/saving_lib.py`` and ``keras/src/legacy/saving/legacy_h5_format.py``.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastlstm.errors import FormatError
from fastlstm.loaders import hdf5, keras_config, strict_json
from fastlstm.loaders.archive import Archive
from fastlstm.loaders.found import Contents, Found, listing, quoted
from fastlstm.loaders.hdf5 import Group
from fastlstm.loaders.keras_layer import CellTensors, Layout, found
from fastlstm.loaders.source import WEIGHTS_FLOOR, SourceFile

__all__ = ["find", "recognises"]

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the second in Keras 2.13 to 2.15
MAX_DEPTH = 50  # of models in models

Entry = Mapping[str, Any]  # a serialized layer: class_name, config, ...


def recognises(file: SourceFile) -> bool:
    """An HDF5 file, or a zip file with a config.json and weights beside it."""
    if file.archive is not None:
        members = file.archive.members
        return CONFIG in members and any(name.startswith("model.weights.") for name in members)
    return file.head.startswith(hdf5.SIGNATURE)


def find(file: SourceFile) -> Contents:
    """List the LSTMs of the file.

    Raises
    ------
    FormatError
        If it is broken, or does what no file of Keras does.
    ImportError
        If h5py is not installed.
    """
    if file.archive is not None:
        return _archive(file, file.archive)
    tree = hdf5.read_tree(file.stream, file, file.objects_limit)
    weights = tree.groups.get("model_weights", tree)
    if "layer_names" in weights.attributes or "layer_names0" in weights.attributes:
        return _legacy(tree, weights, file)
    return _tree(tree, None, None, file.weights_limit, "an HDF5 file")


def _archive(file: SourceFile, archive: Archive) -> Contents:
    if WEIGHTS not in archive.members:
        others = listing(name for name in archive.members if name.startswith("model.weights."))
        raise FormatError(f"a Keras archive without {WEIGHTS}, but with {others}: save it again with model.save(path)")
    texts = {}
    for name in (CONFIG, METADATA):
        limit = file.objects_limit // 4
        texts[name] = strict_json.parse(archive.read(name, limit), name, file.objects_limit)
        if not isinstance(texts[name], dict):
            raise FormatError(f"{name} must be a JSON object, got {type(texts[name]).__name__}")
    data = bytes(archive.read(WEIGHTS, file.size + WEIGHTS_FLOOR))
    inner = SourceFile(io.BytesIO(data), len(data), file.path)
    if not inner.head.startswith(hdf5.SIGNATURE):
        raise FormatError(f"{WEIGHTS} in the archive is not an HDF5 file")
    with tempfile.TemporaryFile() as copy:  # for the child, which reads a file
        copy.write(data)
        copy.flush()
        tree = hdf5.read_tree(copy, inner, file.objects_limit)
    version = texts[METADATA].get("keras_version")
    major = keras_config.major_version(version if isinstance(version, str) else None)
    return _tree(tree, texts[CONFIG], major, file.weights_limit, "a Keras archive")


# ---- Configurations ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configured:
    """A recurrent layer in a configuration; ``names``: of the models around it and its own; ``group``: where its state is."""

    names: tuple[str, ...]
    entry: Entry
    group: Group | None = None


def _inner(entry: Entry) -> Iterator[tuple[str, list[Entry]]]:
    """The layers inside a model or wrapper: a list under ``layers``, or one under the name of its attribute."""
    config = entry.get("config")
    layers = config if isinstance(config, list) else config.get("layers") if isinstance(config, dict) else None
    if isinstance(layers, list):
        yield "layers", [layer for layer in layers if isinstance(layer, dict)]
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict) and isinstance(value.get("config"), dict) and isinstance(value.get("class_name"), str):
            yield key, [value]


def _is_recurrent(entry: Entry) -> bool:
    return entry.get("class_name") in (*keras_config.RECURRENT, *keras_config.OTHERS)


def _name(entry: Entry) -> str:
    config = entry.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    name = name or entry.get("name")
    return name if isinstance(name, str) else ""


def _configured(entry: Entry, group: Group | None, names: tuple[str, ...] = (), top: bool = True) -> Iterator[Configured]:
    """All recurrent layers of a configuration; ``group`` holds the state of ``entry``, if that is known."""
    if len(names) > MAX_DEPTH:
        raise FormatError(f"the configuration nests layers more than {MAX_DEPTH} deep")
    own = names if top else (*names, _name(entry))
    if not top and (_is_recurrent(entry) or _is_custom(entry, group)):
        yield Configured(own, entry, group)
        return
    for key, layers in _inner(entry):
        if key == "layers":
            groups = _in_container(layers, group)
        else:
            groups = [group.groups.get(key) if group else None]
        for layer, inner in zip(layers, groups, strict=True):
            yield from _configured(layer, inner, own, False)


def _is_custom(entry: Entry, group: Group | None) -> bool:
    """Whether a layer of a class that is not Keras' has stored what looks like an LSTM."""
    return not keras_config.class_of(entry) and group is not None and _layout(group) is not None


def _in_container(layers: Sequence[Entry], group: Group | None) -> list[Group | None]:
    """The group of each layer of a model: the one with its name, or without names the next one of its class."""
    container = next((group.groups[key] for key in CONTAINERS if key in group.groups), None) if group else None
    if container is None:
        return [None] * len(layers)
    families: dict[str, list[Group]] = {}
    for name, child in container.groups.items():  # in the order of their numbers
        families.setdefault(re.sub(r"_\d+$", "", name), []).append(child)
    result: list[Group | None] = []
    kinds = [_snake(str(layer.get("class_name"))) for layer in layers]
    for index, (layer, kind) in enumerate(zip(layers, kinds, strict=True)):
        family = families.get(kind, [])
        named = [child for child in family if _stored_name(child) == _name(layer)]
        if len(named) == 1:
            result.append(named[0])
        elif len(family) == kinds.count(kind) and not any(map(_stored_name, family)):
            result.append(family[kinds[:index].count(kind)])
        else:
            result.append(None)
    return result


def _snake(name: str) -> str:
    """As ``to_snake_case`` in ``keras/src/utils/naming.py``."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name[:200]))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _entry_found(item: Configured, layout: Layout | None, version: int | None, limit: float) -> Found:
    name = "/".join(item.names)
    other = keras_config.other_kind(item.entry)
    if other:
        return Found(name, problem=f"layer {quoted(name)}: this is {other}, not an LSTM", is_lstm=False)
    return found(name, layout, lambda: keras_config.plan(item.entry, version), limit, item.names[-1:])


def _unique(found_: list[Found], paths: Sequence[str]) -> list[Found]:
    """Where several have one name, the place in the file is theirs."""
    counts = Counter(item.name for item in found_)
    result = []
    for item, path in zip(found_, paths, strict=True):
        if counts[item.name] > 1:
            aliases = (*(alias for alias in item.aliases if alias != path), item.name)
            info = replace(item.info, name=path) if item.info else None
            item = replace(item, name=path, info=info, aliases=aliases)
        result.append(item)
    return result


def _contents(found_: list[Found], paths: Sequence[str], what: str, tree: Group) -> Contents:
    names = [dataset.name for group in tree.walk() for dataset in group.datasets.values()]
    return Contents(_unique(found_, paths), f"{what} with {len(names)} dataset(s)" + (f": {listing(names, 5)}" if names else ""))


# ---- The tree of Keras 3 -------------------------------------------------------------------------------------------------------


def _tree(tree: Group, config: Entry | None, version: int | None, limit: float, what: str) -> Contents:
    layouts = {group.path: (names, group, layout) for names, group, layout in _layouts(tree)}
    configured = list(_configured(config, tree)) if config else []
    placed = [item for item in configured if item.group]
    for item in configured:
        if item.group is None:  # inside a subclassed model, whose attributes name the groups
            named = [group for names, group, _ in layouts.values() if names[-1:] == item.names[-1:]]
            namesakes = [other for other in configured if other.names[-1] == item.names[-1]]
            group = named[0] if len(named) == len(namesakes) == 1 else None
            placed.append(replace(item, group=group))
    results, paths = [], []
    for item in placed:
        path = item.group.path if item.group else ""
        results.append(_entry_found(item, layouts.pop(path, (None, None, None))[2], version, limit))
        paths.append(path)
    homeless = [item for item, result in zip(placed, results, strict=True) if not item.group and result.is_lstm]
    for path, (names, _, layout) in layouts.items():
        name = "/".join(names) or path
        if homeless:
            others = listing(("/".join(item.names) for item in homeless), 5)
            problem = f"layer {quoted(name)}: it cannot be told which of the configuration's layers it is: {others}"
            results.append(Found(name, problem=problem))
        else:
            results.append(found(name, layout, None, limit, (path, *names[-1:])))
        paths.append(path)
    return _contents(results, paths, what, tree)


def _stored_name(group: Group) -> str:
    variables = group.groups.get("vars")
    return (variables.text("name") or "") if variables else ""


def _layouts(tree: Group) -> Iterator[tuple[tuple[str, ...], Group, Layout]]:
    """Every group that holds an LSTM, with the names stored around it and its own (none before Keras 3.7)."""
    waiting: list[tuple[tuple[str, ...], Group]] = [((), tree)]
    while waiting:
        names, group = waiting.pop()
        own = _stored_name(group) if group is not tree else ""
        names = (*names, own) if own else names
        layout = _layout(group)
        if layout:
            yield names if own else (), group, layout
        else:  # what lies inside an LSTM belongs to it
            waiting += [(names, inner) for inner in reversed(group.groups.values())]


def _layout(group: Group) -> Layout | None:
    directions = [group.groups[key] for key in ("forward_layer", "backward_layer") if key in group.groups]
    if len(directions) == 2:
        forward, backward = map(_cells, directions)
        return Layout(forward + backward, True) if forward and backward else None
    cells = _cells(group)
    return Layout(cells) if cells else None


def _cells(group: Group) -> tuple[CellTensors, ...]:
    """Of an LSTM or an RNN the cell or cells; of an LSTMCell itself. Empty if it is none of them."""
    group = group.groups.get("cell", group)
    stacked = group.groups.get("cells")
    groups = list(stacked.groups.values()) if stacked else [group]
    cells = [_cell(inner) for inner in groups]
    return tuple(cell for cell in cells if cell) if all(cells) else ()


def _cell(group: Group) -> CellTensors | None:
    variables = group.groups.get("vars")
    datasets = variables.datasets if variables else {}
    if datasets.keys() not in ({"0", "1"}, {"0", "1", "2"}):
        return None
    cell = CellTensors(datasets["0"], datasets["1"], datasets.get("2"))
    return cell if cell.is_lstm() else None


# ---- A group for each layer, as Keras 2 wrote it -------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedCell:
    """A cell and the path of its weights: ``("lstm", "lstm_cell")``."""

    path: tuple[str, ...]
    tensors: CellTensors


def _legacy(tree: Group, weights: Group, file: SourceFile) -> Contents:
    text = tree.text("model_config")
    config = None
    if text is not None:
        config = strict_json.parse(text.encode("utf-8", "surrogateescape"), "model_config", file.objects_limit)
        if not isinstance(config, dict):
            raise FormatError(f"model_config must be a JSON object, got {type(config).__name__}")
    version = keras_config.major_version(tree.text("keras_version") or weights.text("keras_version"))
    stored = {}
    for name in weights.texts("layer_names"):
        group = weights.group(name)
        if group is None or name in stored:
            raise FormatError(f"layer {quoted(name)} in layer_names is missing in the file, or there twice")
        stored[name] = _named_cells(group)
    results: list[Found] = []
    top = next((layers for key, layers in _inner(config) if key == "layers"), []) if config else []
    for layer in top:
        name = _name(layer)
        inside = list(_configured(layer, None, (), False))
        cells = stored.pop(name, [])
        for item in inside:
            layout = _legacy_layout(item, inside, cells)
            results.append(_entry_found(item, layout, version, file.weights_limit))
        if not inside and cells:
            stored[name] = cells
    for name, cells in stored.items():
        if config and any(cell.tensors.is_lstm() for cell in cells):
            kind = next((str(layer.get("class_name")) for layer in top if _name(layer) == name), "")
            problem = f"layer {quoted(name)}: its class {quoted(kind)} is not Keras' own: its code decides what it computes"
            results.append(Found(name, problem=problem))
        elif not config:
            results += _unconfigured(name, cells, file.weights_limit)
    return _contents(results, [item.name for item in results], "a Keras model" if config else "weights of Keras", tree)


def _named_cells(group: Group) -> list[NamedCell]:
    """The cells of a layer's group, in the order of its weight_names; other weights are left out."""
    cells: dict[tuple[str, ...], dict[str, hdf5.Dataset]] = {}
    for name in group.texts("weight_names"):
        dataset = group.dataset(name)
        if dataset is None:
            raise FormatError(f"weight {quoted(name)} of layer {quoted(group.path)} is missing in the file")
        *outer, leaf = name.split("/")
        role = re.sub(r":\d+$", "", leaf)
        if cells.setdefault(tuple(outer), {}).setdefault(role, dataset) is not dataset:
            raise FormatError(f"weight {quoted(name)} of layer {quoted(group.path)} is there twice")
    return [
        NamedCell(path, CellTensors(roles["kernel"], roles["recurrent_kernel"], roles.get("bias")))
        for path, roles in cells.items()
        if roles.keys() in ({"kernel", "recurrent_kernel"}, {"kernel", "recurrent_kernel", "bias"})
    ]


def _legacy_layout(item: Configured, inside: Sequence[Configured], cells: Sequence[NamedCell]) -> Layout | None:
    """The cells of one of the recurrent layers inside a layer: all if it is the only one, else those whose path has its name."""
    chosen = list(cells)
    if len(inside) > 1:
        if sum(other.names[-1] == item.names[-1] for other in inside) > 1:
            return None
        chosen = [cell for cell in cells if item.names[-1] in cell.path]
    bidirectional = item.entry.get("class_name") == "Bidirectional"
    return Layout(tuple(cell.tensors for cell in chosen), bidirectional) if chosen else None


def _unconfigured(name: str, cells: Sequence[NamedCell], limit: float) -> list[Found]:
    """LSTMs of a layer's group where there is no configuration: Bidirectional and stacked cells are told by the names."""
    layouts: list[tuple[tuple[str, ...], Layout]] = []
    index = 0
    while index < len(cells):
        cell = cells[index]
        partner = cells[index + 1] if index + 1 < len(cells) else cell
        path = _bidirectional_path(cell.path, partner.path)
        if path is not None:
            layouts.append((path, Layout((cell.tensors, partner.tensors), True)))
            index += 2
        elif "stacked_rnn_cells" in cell.path:
            path = cell.path[: cell.path.index("stacked_rnn_cells")]
            stacked = [other for other in cells[index:] if other.path[: len(path) + 1] == cell.path[: len(path) + 1]]
            layouts.append((path, Layout(tuple(other.tensors for other in stacked))))
            index += len(stacked)
        else:
            layouts.append((cell.path, Layout((cell.tensors,))))
            index += 1
    layouts = [(path, layout) for path, layout in layouts if all(cell.is_lstm() for cell in layout.cells)]
    alone = len(layouts) == 1
    return [found(name if alone else "/".join((name, *path)), layout, None, limit, path[-1:]) for path, layout in layouts]


def _bidirectional_path(path: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...] | None:
    """What comes before ``forward_lstm`` in one and ``backward_lstm`` in the other."""
    for n, (step, its) in enumerate(zip(path, other, strict=False)):
        if step.startswith("forward_") and its == "backward_" + step.removeprefix("forward_"):
            return path[:n]
    return None
