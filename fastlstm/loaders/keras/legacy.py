"""The form of Keras 2, which Keras 3 writes to ``.h5``: a group for each layer, under its name, with a list of weight names.

They are ``lstm/lstm_cell/kernel:0`` and the like; the groups are in ``model_weights``, and the configuration is in the attribute
``model_config``; ``save_weights`` puts the groups at the root, without a configuration.

References
----------
``save_weights_to_hdf5_group`` in ``keras/src/legacy/saving/legacy_h5_format.py``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from fastlstm.errors import FormatError
from fastlstm.loaders import strict_json
from fastlstm.loaders.found import Contents, Found, quoted
from fastlstm.loaders.keras import config as keras_config
from fastlstm.loaders.keras.config import NO_ARGUMENTS, KerasArguments
from fastlstm.loaders.keras.graph import MODELS
from fastlstm.loaders.keras.hdf5 import UNSAID, Dataset, Group
from fastlstm.loaders.keras.layer import CellTensors, Layout, found
from fastlstm.loaders.keras.tree import Configured, Entry, check_number, configured, contents, entry_found, inner_layers, own_name
from fastlstm.loaders.source import SourceFile

__all__ = ["LegacyModel", "described", "find"]

STACKED = re.compile(r"stacked_rnn_cells(_\d+)?")  # Keras numbers them
MAX_LOOKS = 1_000_000  # at steps of paths in models inside models: a crafted file could name each layer in each path

NamedWeights: TypeAlias = dict[tuple[str, ...], dict[str, Dataset]]  # by path, then by the last name


@dataclass(frozen=True)
class NamedCell:
    """A cell and the path of its weights: ``("lstm", "lstm_cell")``."""

    path: tuple[str, ...]
    tensors: CellTensors


def find(tree: Group, weights: Group, file: SourceFile) -> Contents:
    """List the LSTMs; ``weights`` holds the groups of the layers.

    Raises
    ------
    FormatError
        If a layer or a weight is listed and missing, or the configuration cannot be read.
    """
    config, version = described(tree, weights, file.objects_limit)
    usual = keras_config.usual_gate(_version(tree, weights))
    stored: dict[str, list[NamedCell]] = {}
    for name in weights.texts("layer_names"):
        group = weights.group(name)
        if group is None or name in stored:
            raise FormatError(f"layer {quoted(name)} in layer_names is missing in the file, or there twice")
        stored[name] = _named_cells(group)
    results: list[Found] = []
    for layer in inner_layers(config or {}):
        name = own_name(layer)
        cells = stored.pop(name, [])
        recurrent = list(configured(layer, None, (), False))
        for item, layout in zip(recurrent, _layouts(recurrent, cells), strict=True):
            results.append(entry_found(item, layout, version, file.weights_limit, file.keras_arguments or NO_ARGUMENTS))
        check_number(len(results))
        if not recurrent and any(cell.tensors.is_lstm() for cell in cells):
            kind = str(layer.get("class_name"))
            problem = f"its class {quoted(kind)} is not Keras' own: its code decides what it computes"
            results.append(Found(name, problem=f"layer {quoted(name)}: {problem}"))
    for name, cells in stored.items():  # without a configuration, all
        results += _unconfigured(name, cells, file.weights_limit, file.keras_arguments or NO_ARGUMENTS, version, usual)
    return contents(results, [item.name for item in results], "a Keras model" if config else "weights of Keras", tree)


def described(tree: Group, weights: Group, limit: int) -> tuple[Entry | None, int | None]:
    """The configuration of the model, if there is one, and Keras' major version."""
    config = _model_config(tree, limit)
    if config is not None and _says_bfloat16(config):
        for group in tree.walk():
            for name, dataset in group.datasets.items():
                if dataset.dtype == UNSAID:  # of all that Keras has, h5py writes nothing else as this
                    group.datasets[name] = replace(dataset, dtype="bfloat16")
    return config, keras_config.major_version(_version(tree, weights))


def _version(tree: Group, weights: Group) -> str | None:
    return tree.text("keras_version") or weights.text("keras_version")


def _says_bfloat16(config: Entry) -> bool:
    """Whether any layer keeps its weights so: this form has no note of it beside them."""
    waiting: list[Any] = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            dtype = item.get("dtype")
            if "bfloat16" in (dtype, keras_config.config_of(dtype).get("name") if isinstance(dtype, dict) else None):
                return True
        waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return False


def _model_config(tree: Group, limit: int) -> Entry | None:
    text = tree.text("model_config")
    if text is None:
        return None
    config = strict_json.parse(text.encode("utf-8", "surrogatepass"), "model_config", limit)
    if not isinstance(config, dict):
        raise FormatError(f"model_config must be a JSON object, got {type(config).__name__}")
    return config


def _named_cells(group: Group) -> list[NamedCell]:
    """The cells of a layer's group, in the order of its weight_names; other weights are left out."""
    return _cells(_named_weights(group))


def _named_weights(group: Group) -> NamedWeights:
    """The weights of a layer's group, in the order of its weight_names."""
    weights: NamedWeights = {}
    for name in group.texts("weight_names"):
        dataset = group.dataset(name)
        if dataset is None:
            raise FormatError(f"weight {quoted(name)} of layer {quoted(group.path)} is missing in the file")
        *outer, leaf = name.split("/")
        role = re.sub(r":\d+$", "", leaf)
        if weights.setdefault(tuple(outer), {}).setdefault(role, dataset) is not dataset:
            raise FormatError(f"weight {quoted(name)} of layer {quoted(group.path)} is there twice")
    return weights


def _cells(weights: NamedWeights) -> list[NamedCell]:
    return [
        NamedCell(path, CellTensors(roles["kernel"], roles["recurrent_kernel"], roles.get("bias")))
        for path, roles in weights.items()
        if roles.keys() in ({"kernel", "recurrent_kernel"}, {"kernel", "recurrent_kernel", "bias"})
    ]


def _layouts(layers: Sequence[Configured], cells: Sequence[NamedCell]) -> list[Layout | None]:
    """The cells of each recurrent layer of a group: all if it is the only one, else those whose path has its name.

    Their order alone would not do: what is not trainable comes last.
    """
    named: dict[str, list[CellTensors]] = defaultdict(list)
    for cell in cells:
        for step in {*cell.path} if len(layers) > 1 else {layer.names[-1] for layer in layers}:
            named[step].append(cell.tensors)
    counts = Counter(layer.names[-1] for layer in layers)
    result: list[Layout | None] = []
    for layer in layers:
        own = named.get(layer.names[-1], []) if counts[layer.names[-1]] == 1 else []
        result.append(Layout(tuple(own), layer.entry.get("class_name") == "Bidirectional") if own else None)
    return result


def _unconfigured(
    name: str, cells: Sequence[NamedCell], limit: float, arguments: KerasArguments, version: int | None, usual: str | None
) -> list[Found]:
    """LSTMs of a layer's group where there is no configuration: Bidirectional and stacked cells are told by the names.

    ``usual``: recurrent_activation of layers that were told none, but CuDNNLSTM.
    """
    if arguments.recurrent_activation is None and not any(cell.tensors.is_cudnn() for cell in cells):
        arguments = replace(arguments, recurrent_activation=usual)
    layouts: list[tuple[tuple[str, ...], Layout]] = []
    index = 0
    while index < len(cells):
        path, count, bidirectional = cells[index].path, 1, False
        before = _before_directions(path, cells[index + 1].path) if index + 1 < len(cells) else None
        if before is not None:
            path, count, bidirectional = before, 2, True
        elif stack := next((step for step in path if STACKED.fullmatch(step)), None):
            start = path[: path.index(stack) + 1]
            path = start[:-1]
            while index + count < len(cells) and cells[index + count].path[: len(start)] == start:
                count += 1
        own = tuple(cell.tensors for cell in cells[index : index + count])
        if all(tensors.is_lstm() for tensors in own):
            layouts.append((path, Layout(own, bidirectional)))
        index += count
    if len(layouts) == 1:
        return [found(name, layouts[0][1], None, limit, (), arguments, version)]
    return [found("/".join((name, *path)), layout, None, limit, path[-1:], arguments, version) for path, layout in layouts]


def _before_directions(path: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...] | None:
    """What comes before ``forward_lstm`` in one and ``backward_lstm`` in the other."""
    for n, (step, its) in enumerate(zip(path, other, strict=False)):
        if step.startswith("forward_") and its == "backward_" + step.removeprefix("forward_"):
            return path[:n]
    return None


def _by_step(weights: NamedWeights) -> dict[str, NamedWeights]:
    result: dict[str, NamedWeights] = defaultdict(dict)
    for path, roles in weights.items():
        for step in {*path}:
            result[step][path] = roles
    return result


# ---- Places --------------------------------------------------------------------------------------------------------------------


@dataclass
class Looks:
    """How many there were."""

    count: int = 0


@dataclass(frozen=True)
class LegacyModel:
    """The place of the outermost model: a group for each of its layers."""

    weights: Group

    def inner(self, layers: Sequence[Entry]) -> list[LegacyPlace]:
        listed = set(self.weights.texts("layer_names"))
        groups = [self.weights.group(name) if (name := own_name(layer)) in listed else None for layer in layers]
        looks = Looks()
        return [LegacyPlace(_named_weights(group) if group else {}, looks) for group in groups]

    def wrapped(self) -> LegacyModel:
        return self

    def layout(self, entry: Entry) -> None:
        return None

    def tensors(self, roles: Sequence[str]) -> None:
        return None


@dataclass(frozen=True)
class LegacyPlace:
    """The weights of a layer; those of a layer inside a model are told by its name in their paths.

    A path may have the name of the innermost sequential model, and of no other: ``loose`` are those that may belong to a model
    though they do not name it.
    """

    weights: NamedWeights
    looks: Looks
    loose: NamedWeights = field(default_factory=dict)

    def inner(self, layers: Sequence[Entry]) -> list[LegacyPlace]:
        self.looks.count += sum(map(len, self.weights)) + sum(map(len, self.loose))
        if self.looks.count > MAX_LOOKS:
            raise FormatError("too many weights in models inside models")
        names = [own_name(layer) for layer in layers]
        own, others = _by_step(self.weights), _by_step(self.loose)
        listed = set(names)
        loose = {path: roles for path, roles in {**self.weights, **self.loose}.items() if not listed.intersection(path)}
        return [
            LegacyPlace(own.get(name) or others.get(name) or {}, self.looks, loose if layer.get("class_name") in MODELS else {})
            for name, layer in zip(names, layers, strict=True)
        ]

    def wrapped(self) -> LegacyPlace:
        return self

    def layout(self, entry: Entry) -> Layout | None:
        cells = tuple(cell.tensors for cell in _cells(self.weights))
        return Layout(cells, entry.get("class_name") == "Bidirectional") if cells else None

    def tensors(self, roles: Sequence[str]) -> list[Dataset] | None:
        found = next(iter(self.weights.values())) if len(self.weights) == 1 else {}
        return [found[role] for role in roles] if found.keys() == set(roles) else None
