"""PyTorch's state dicts as JSON: GuitarML's (``model_data`` and ``state_dict``, tensors ``rec.*`` and ``lin.*``), or bare ones.

References
----------
``SimpleRNN`` in ``CoreAudioML/networks.py``, https://github.com/Alec-Wright/Automated-GuitarAmpModelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders import nested
from fastlstm.loaders.found import Contents, quoted
from fastlstm.loaders.json_text import JsonTensor, matrix
from fastlstm.loaders.source import SourceFile
from fastlstm.loaders.torch_names import Array, Group
from fastlstm.loaders.torch_names import find as find_lstms

__all__ = ["find", "recognises"]

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
        If a tensor is no list of numbers or of rows, or its sizes are not those that ``model_data`` declares.
    """
    group = Group((), tensors(file.json))
    found = find_lstms([group], _read, file.weights_limit)
    declared = file.json.get("model_data")
    if isinstance(declared, dict) and len(found) == 1 and found[0].info is not None:
        for key, field in SIZES.items():
            size = getattr(found[0].info, field)
            if key in declared and declared[key] != size:
                raise FormatError(f"model_data has {key} {str(declared[key])[:50]}, the tensors have {size}")
    return nested.contents("a state dict as JSON", found, [group])


def tensors(content: dict[str, Any]) -> dict[str, JsonTensor]:
    """The tensors by name."""
    held = content.get("state_dict", content)
    result = {}
    for name, value in held.items():
        if isinstance(value, np.ndarray):
            result[name] = JsonTensor(value)
        elif isinstance(value, list):
            result[name] = JsonTensor(matrix(value, quoted(name)))
    return result


def _read(wanted: Sequence[JsonTensor]) -> list[Array]:
    return [tensor.value.astype(np.float32) for tensor in wanted]
