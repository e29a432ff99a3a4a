"""What a Keras layer computes, from its configuration: names and numbers are looked at, nothing is imported or executed.

References
----------
``get_config`` of ``keras/src/layers/rnn/{rnn,lstm,bidirectional,stacked_rnn_cells}.py`` and of the same layers in Keras 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastlstm.cell import PLAIN, SIGMOID, TANH, Activation, Cell
from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.weights import MERGE_MODES

__all__ = [
    "NO_ARGUMENTS",
    "RECURRENT",
    "CellPlan",
    "KerasArguments",
    "Plan",
    "check_keys",
    "class_of",
    "config_of",
    "flag",
    "is_operation",
    "major_version",
    "other_kind",
    "plain_plan",
    "plan",
    "returns_state",
    "shown",
    "usual_gate",
    "version_from",
]

RECURRENT = ("LSTM", "CuDNNLSTM", "RNN", "Bidirectional")  # may be an LSTM
OTHERS = {
    "GRU": "a GRU",
    "CuDNNGRU": "a GRU",
    "GRUCell": "a GRU",
    "SimpleRNN": "a plain RNN (tanh or relu)",
    "SimpleRNNCell": "a plain RNN (tanh or relu)",
    **{f"ConvLSTM{n}D": "a convolutional LSTM" for n in (1, 2, 3)},
}

# Keras' activations by name. hard_sigmoid: max(0, min(1, 0.2 x + 0.5)) up to Keras 2, x / 6 + 0.5 from Keras 3 on
ACTIVATIONS = {
    **{name: Activation(name) for name in ("sigmoid", "tanh", "relu", "linear", "softsign", "softplus", "elu")},
    "leaky_relu": Activation("leaky_relu", (0.2,)),
    "sparse_sigmoid": Activation("hard_sigmoid", (0.5, 0.5)),
}
HARD_SIGMOID = {2: Activation("hard_sigmoid", (0.2, 0.5)), 3: Activation("hard_sigmoid", (1 / 6, 0.5))}
VERSIONS = {f"hard_sigmoid_keras{version}": version for version in HARD_SIGMOID}  # by a caller's names for these

STACKS = "each direction stacks several cells and reads only itself; fastlstm's layers read both directions"

# Every key that a configuration may have. Those of the first group mean nothing to what is computed from given weights.
NEUTRAL = {
    "name", "trainable", "dtype", "dynamic", "autocast", "batch_input_shape", "batch_shape", "input_shape", "input_dim",
    "input_length", "input_dtype", "ragged", "sparse", "return_sequences", "return_state", "stateful", "unroll",
    "zero_output_for_mask", "implementation", "num_constants", "use_cudnn", "activity_regularizer", "unit_forget_bias",
    "dropout", "recurrent_dropout", "seed", "reverse_state_order", "weights",
    *(f"{which}{kind}" for which in ("kernel_", "recurrent_", "bias_") for kind in ("initializer", "regularizer", "constraint")),
}  # fmt: skip
ORDER = {"go_backwards", "time_major"}
CELL = {"units", "activation", "recurrent_activation", "use_bias"}


@dataclass(frozen=True)
class CellPlan:
    """One layer of one direction; ``units`` and ``bias`` are None where nothing says what they must be."""

    units: int | None = None
    bias: bool | None = None
    cell: Cell = PLAIN
    cudnn: bool = False


@dataclass(frozen=True)
class Plan:
    """What a recurrent layer computes: ``cells`` of one direction, then those of the other."""

    cells: tuple[CellPlan, ...]
    bidirectional: bool = False
    backwards: bool = False
    merge_mode: str | None = "concat"
    batch_first: bool = True


@dataclass(frozen=True)
class KerasArguments:
    """What a caller says of a layer by Keras' names, where there are weights alone; None for Keras' default."""

    go_backwards: bool | None = None
    activation: str | None = None
    recurrent_activation: str | None = None
    merge_mode: str | None = None

    def names(self) -> list[str]:
        """What was said."""
        return [name for name, value in vars(self).items() if value is not None]


NO_ARGUMENTS = KerasArguments()


def plain_plan(count: int, bidirectional: bool, arguments: KerasArguments = NO_ARGUMENTS, version: int | None = None) -> Plan:
    """What the caller tells of so many cells, and else Keras' defaults, where there are weights alone.

    Raises
    ------
    FormatError
        If that does not fit the layer, or an activation is not known; the caller adds the layer's name.
    """
    if bidirectional and arguments.go_backwards:
        raise FormatError("go_backwards: the file holds both directions of a Bidirectional layer")
    if bidirectional and count != 2:
        raise FormatError(STACKS)
    if not bidirectional and arguments.merge_mode is not None:
        raise FormatError("merge_mode: the file holds no Bidirectional layer, but one direction")
    gate = _given_activation(arguments.recurrent_activation, "recurrent_activation", SIGMOID, version)
    activation = _given_activation(arguments.activation, "activation", TANH, version)
    cells = (CellPlan(cell=Cell(gate, activation, activation)),) * count
    return Plan(cells, bidirectional, bool(arguments.go_backwards), arguments.merge_mode or "concat")


def _given_activation(name: str | None, key: str, default: Activation, version: int | None) -> Activation:
    if name is None:
        return default
    if name == "hard_sigmoid" and version is None:
        raise FormatError(
            f"{key}: Keras 2 and 3 compute hard_sigmoid differently, and the file does not say which it was: "
            f"pass one of {', '.join(VERSIONS)}"
        )
    return HARD_SIGMOID[VERSIONS[name]] if name in VERSIONS else _activation({key: name}, key, version)


def class_of(entry: Mapping[str, Any]) -> str:
    """The class of a serialized layer, ``""`` if it is not one of Keras' own.

    Keras 3 gives classes of a caller's the module null, whatever their name; before it there was no module.
    """
    name, module = entry.get("class_name"), entry.get("module", "keras")
    ours = isinstance(module, str) and module.split(".")[0] in ("keras", "tf_keras", "tensorflow")
    return name if isinstance(name, str) and ours and entry.get("registered_name") in (None, name) else ""


def is_operation(entry: Mapping[str, Any]) -> bool:
    """Whether it is a function of Keras 3 rather than a layer: some have the same class name, and in ``.h5`` no module."""
    module = entry.get("module")
    if isinstance(module, str):
        return ".ops." in module
    return "trainable" not in config_of(entry) and class_of(entry) != "SpatialDropout1D"  # the one layer that does not write it


def other_kind(entry: Mapping[str, Any]) -> str:
    """Of a recurrent layer that is no LSTM, what it is."""
    waiting = [entry]
    while waiting:
        each = waiting.pop()
        kind = OTHERS.get(class_of(each), "")
        if kind:
            return kind
        inner = [config_of(each).get(key) for key in ("cell", "layer")]
        waiting += [value for value in inner if isinstance(value, dict)]
    return ""


def version_from(entry: Mapping[str, Any], version: int | None, arguments: KerasArguments) -> tuple[int | None, KerasArguments]:
    """The version, from the caller where the file has none and a layer's hard_sigmoid needs it; and what else the caller says."""
    said = {VERSIONS[name] for name in (arguments.activation, arguments.recurrent_activation) if name in VERSIONS}
    if version is not None or len(said) != 1:
        return version, arguments
    pairs = list(zip(*(plan(entry, number).cells for number in HARD_SIGMOID), strict=True))
    needed = {
        "activation": any(a.cell.candidate != b.cell.candidate for a, b in pairs),
        "recurrent_activation": any(a.cell.gate != b.cell.gate for a, b in pairs),
    }
    rest = {key: value for key, value in vars(arguments).items() if not (needed.get(key) and value in VERSIONS)}
    return said.pop(), KerasArguments(**rest)


def returns_state(entry: Mapping[str, Any]) -> bool:
    """Whether a layer, or what Bidirectional wraps, gives its state beside its output."""
    config = config_of(entry)
    inner = (config_of(layer) for key in ("layer", "backward_layer") if isinstance(layer := config.get(key), dict))
    return any(each.get("return_state", False) is not False for each in (config, *inner))


def usual_gate(text: object) -> str | None:
    """The recurrent_activation of layers that were told none; None for sigmoid, as since Keras 2.3 (2.2.4-tf: of both)."""
    return "hard_sigmoid" if isinstance(text, str) and re.fullmatch(r"2\.[01](\.\d+)*(-tf)?|2\.2(\.\d+)*", text) else None


def major_version(text: object) -> int | None:
    """2 or 3, None if it is unknown."""
    return int(text[0]) if isinstance(text, str) and text[:1] in ("2", "3") and text[1:2] in ("", ".") else None


def plan(entry: Mapping[str, Any], version: int | None) -> Plan:
    """Read the configuration of a layer of :data:`RECURRENT`.

    Parameters
    ----------
    entry : mapping
        With ``class_name`` and ``config``.
    version : int or None
        2 or 3: what hard_sigmoid means.

    Raises
    ------
    FormatError
        If it is of another class, or anything in it is not understood; the caller adds the layer's name.
    """
    kind, config = class_of(entry), config_of(entry)
    if kind not in RECURRENT:
        name = entry.get("class_name")
        raise FormatError(f"its class {shown(name)} is not Keras' LSTM, RNN or Bidirectional: its code decides what it computes")
    if kind == "Bidirectional":
        return _bidirectional(config, version)
    cells = _cells(config, version) if kind == "RNN" else (_cell(kind, config, version, ORDER),)
    if kind == "RNN":
        check_keys(config, ORDER | {"cell"})
    backwards, time_major = (flag(config, key, False) for key in ("go_backwards", "time_major"))
    return Plan(cells, backwards=backwards, batch_first=not time_major)


def _bidirectional(config: Mapping[str, Any], version: int | None) -> Plan:
    check_keys(config, {"layer", "backward_layer", "merge_mode"})
    merge_mode = config.get("merge_mode", "concat")
    if merge_mode not in (*MERGE_MODES, None):
        raise FormatError(f"merge_mode must be one of {', '.join(MERGE_MODES)} or null, got {shown(merge_mode)}")
    layer, backward_layer = config.get("layer"), config.get("backward_layer")
    if not isinstance(layer, dict) or not isinstance(backward_layer, (dict, type(None))):
        raise FormatError("its layer is missing in the configuration")
    if class_of(layer) == "Bidirectional" or class_of(backward_layer or {}) == "Bidirectional":
        raise FormatError("Bidirectional inside Bidirectional")
    forward = plan(layer, version)
    backward = plan(backward_layer, version) if backward_layer else forward
    if forward.backwards or (backward_layer and not backward.backwards):
        raise FormatError("go_backwards must be False in its layer and True in its backward_layer")
    if len(forward.cells) != 1 or len(backward.cells) != 1:
        raise FormatError(STACKS)
    if forward.batch_first != backward.batch_first:
        raise FormatError("one direction is time_major, the other is not")
    return Plan(forward.cells + backward.cells, True, False, merge_mode, forward.batch_first)


def _cells(config: Mapping[str, Any], version: int | None) -> tuple[CellPlan, ...]:
    """Of an RNN: one LSTMCell or several."""
    cell = config.get("cell")
    entries: list[Any] = [cell]
    if isinstance(cell, dict) and class_of(cell) == "StackedRNNCells":
        check_keys(config_of(cell), {"cells"})
        several = config_of(cell).get("cells")
        entries = several if isinstance(several, list) and several else [several]
    cells = []
    for entry in entries:
        if not isinstance(entry, dict) or class_of(entry) != "LSTMCell":
            name = entry.get("class_name") if isinstance(entry, dict) else entry
            raise FormatError(f"its cells must be keras.layers.LSTMCell, got {shown(name)}")
        cells.append(_cell("LSTMCell", config_of(entry), version, set()))
    return tuple(cells)


def _cell(kind: str, config: Mapping[str, Any], version: int | None, more: set[str]) -> CellPlan:
    check_keys(config, CELL | more)
    units = config.get("units")
    if not isinstance(units, int) or isinstance(units, bool) or units < 1:
        raise FormatError(f"units must be a positive integer, got {shown(units)}")
    if kind == "CuDNNLSTM":  # it knows no other activations
        return CellPlan(units, True, PLAIN, cudnn=True)
    gate, activation = (_activation(config, key, version) for key in ("recurrent_activation", "activation"))
    return CellPlan(units, flag(config, "use_bias", True), Cell(gate, activation, activation))


def _activation(config: Mapping[str, Any], key: str, version: int | None) -> Activation:
    if key not in config:
        raise FormatError(f"{key} is missing in the configuration")
    name = "linear" if config[key] is None else config[key]
    if name == "hard_sigmoid":
        if version is None:
            raise FormatError(
                f"{key} is hard_sigmoid, which Keras 2 and 3 compute differently, and keras_version is neither: "
                f"pass {' or '.join(f'{key}={name!r}' for name in VERSIONS)}"
            )
        return HARD_SIGMOID[version]
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(sorted([*ACTIVATIONS, "hard_sigmoid"]))
        raise FormatError(f"{key} must be one of {known}, got {shown(name)}")
    return ACTIVATIONS[name]


def check_keys(config: Mapping[str, Any], known: set[str]) -> None:
    for key in config:
        if key not in known and key not in NEUTRAL:
            raise FormatError(f"{shown(key)} in the configuration is not understood, and may change what is computed")


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise FormatError(f"{key} must be true or false, got {shown(value)}")
    return value


def config_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    config = entry.get("config")
    return config if isinstance(config, dict) else {}


def shown(value: object) -> str:
    return quoted(value) if isinstance(value, str) else quoted(f"{value!r:.200}")[1:-1]
