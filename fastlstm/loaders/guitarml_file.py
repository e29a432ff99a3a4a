"""PyTorch's state dicts as JSON: GuitarML's (``model_data`` and ``state_dict``, tensors ``rec.*`` and ``lin.*``), or bare ones.

References
----------
``SimpleRNN`` in ``CoreAudioML/networks.py``, https://github.com/Alec-Wright/Automated-GuitarAmpModelling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.found import Contents, LSTMInfo, listing, quoted
from fastlstm.loaders.json_text import JsonTensor, NumberList, float32, matrix
from fastlstm.loaders.source import SourceFile
from fastlstm.loaders.tensors import LazyTensor
from fastlstm.loaders.torch import nested
from fastlstm.loaders.torch.names import Group, looks_like_parameter
from fastlstm.loaders.torch.names import find as find_lstms

if TYPE_CHECKING:
    from fastlstm.models.model import Model

__all__ = ["find", "model", "recognises"]

# What model_data says, and the field of LSTMInfo that must agree
SIZES = {"input_size": "input_size", "hidden_size": "hidden_size", "num_layers": "num_layers"}


def recognises(file: SourceFile) -> bool:
    if not isinstance(file.json, dict):
        return False
    return isinstance(file.json.get("state_dict"), dict) or any(key.endswith("weight_ih_l0") for key in file.json)


def find(file: SourceFile) -> Contents:
    """List the LSTMs of the file, named by the prefixes of their tensors: ``rec`` in GuitarML's.

    Raises
    ------
    FormatError
        If ``model_data`` declares another network than that of the tensors.
    """
    group = Group((), tensors(file.json))
    found = find_lstms([group], _read, file.weights_limit)
    declared = file.json.get("model_data")
    if isinstance(declared, dict) and len(found) == 1 and found[0].info is not None:
        _check(declared, found[0].info, group.tensors)
    return nested.contents("a state dict as JSON", found, [group])


def _check(declared: dict[str, Any], info: LSTMInfo, held: Mapping[str, LazyTensor]) -> None:
    """What ``model_data`` says must be true of the tensors; ``bias_fl`` is about that of the dense layer."""
    if declared.get("unit_type", "LSTM") != "LSTM":
        raise FormatError(f"unit_type must be LSTM, got {quoted(str(declared['unit_type']))}")
    true: dict[str, int] = {key: getattr(info, field) for key, field in SIZES.items()}
    if "lin.weight" in held:
        true |= {"output_size": held["lin.weight"].shape[0], "bias_fl": "lin.bias" in held}
    for key, value in true.items():
        if key in declared and declared[key] != value:
            raise FormatError(f"model_data has {key} {str(declared[key])[:50]}, the tensors have {value}")


def model(file: SourceFile) -> Model:
    """``SimpleRNN``: the LSTM, a dense layer, and with ``skip`` the first features of the input added to the result.

    Raises
    ------
    FormatError
        If the file does not say that it is one, or holds another tensor.
    """
    from fastlstm.models.layers import INPUT, Dense, Features, Merge, Recurrent, Step
    from fastlstm.models.model import Model

    declared = file.json.get("model_data")
    if not isinstance(declared, dict) or declared.get("model") != "SimpleRNN":
        what = declared.get("model") if isinstance(declared, dict) else None
        raise FormatError(f"model_data must say that model is 'SimpleRNN', got {quoted(str(what))}")
    skip = declared.get("skip", 0)
    found = find(file).choose("rec")
    assert found.info is not None
    assert found.read is not None
    held = tensors(file.json)
    dense = {name: tensor for name, tensor in held.items() if not name.startswith("rec.")}
    if "lin.weight" not in dense or not dense.keys() <= {"lin.weight", "lin.bias"}:
        raise FormatError(f"beside rec.* there must be lin.weight and lin.bias, found {listing(dense, 5) or 'neither'}")
    weight, bias = dense["lin.weight"], dense.get("lin.bias")
    outputs = weight.shape[0]
    if weight.shape != (outputs, found.info.hidden_size) or (bias is not None and bias.shape != (outputs,)):
        raise FormatError(f"'lin.weight' must have shape (outputs, {found.info.hidden_size}), and lin.bias (outputs,)")
    if type(skip) is not int or not 0 <= skip <= found.info.input_size or (skip and 1 not in (skip, outputs) and skip != outputs):
        raise FormatError(f"skip must be a number of inputs that can be added to {outputs} outputs, got {str(skip)[:50]}")

    head = Dense("lin", ("rec",), float32(weight.value), None if bias is None else float32(bias.value))
    steps: list[Step] = [Recurrent("rec", (INPUT,), found.read()), head]
    if skip:
        steps += [Features("residual", (INPUT,), 0, skip), Merge("skip", ("lin", "residual"))]
    return Model(steps, found.info.input_size)


def tensors(content: dict[str, Any]) -> dict[str, JsonTensor]:
    """The tensors by name."""
    inner = content.get("state_dict")
    held = inner if isinstance(inner, dict) else content
    result = {}
    for name, value in held.items():
        if isinstance(value, NumberList):
            result[name] = JsonTensor(value.values)
        elif isinstance(value, list):
            result[name] = _matrix(value)
        elif type(value) in (int, float) and looks_like_parameter(name):  # a scale
            result[name] = JsonTensor(np.array(float(value)))
    return result


def _matrix(value: list[Any]) -> JsonTensor:
    """Rows of numbers; any other list is a tensor that no LSTM has, of whatever shape."""
    try:
        return JsonTensor(matrix(value, "a tensor"))
    except FormatError:
        return JsonTensor(np.empty(0), "a list that is no list of rows of numbers, all of one length")


def _read(wanted: Sequence[JsonTensor]) -> list[Array]:
    return [float32(tensor.value) for tensor in wanted]
