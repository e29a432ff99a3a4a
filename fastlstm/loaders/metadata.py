"""What our own files say beside their tensors: a JSON object under the name ``fastlstm``.

``batch_first`` alone for a network that PyTorch has too; such a file is read like any other. A variant also has ``cells``, one
object for each layer and direction or one for all, and may have ``reverse``, ``flipped``, ``merge_mode`` and ``weight_dtype``
(the tensors are float32 all the same): see ``fastlstm.Weights``. So has a plain RNN, with its ``nonlinearity``. A cell names what
differs from PyTorch's; an activation is a list of its name and its parameters. Anything else is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.cell import PLAIN, Activation, Cell
from fastlstm.errors import FormatError
from fastlstm.loaders import strict_json
from fastlstm.loaders.found import Found, LSTMInfo, quoted
from fastlstm.loaders.tensors import LazyTensor, ReadFloats, check_dtype, check_size, dtypes, handed_over, precision
from fastlstm.rounding import TYPES
from fastlstm.weights import MERGE_MODES, NONLINEARITIES, Nonlinearity, Weights

__all__ = ["KEY", "MAX_TEXT", "Metadata", "batch_first", "find", "parse", "text_of"]

KEY = "fastlstm"
MAX_TEXT = 200_000  # characters: a thousand cells, each of its own kind
FLAGS = ("batch_first", "reverse", "flipped")


@dataclass(frozen=True)
class Metadata:
    """What such a text says; ``cells`` is None for a network that PyTorch has too."""

    batch_first: bool
    cells: tuple[Cell, ...] | None = None
    reverse: bool = False
    flipped: bool = False
    merge_mode: str | None = "concat"
    weight_dtype: str | None = None
    nonlinearity: Nonlinearity | None = None


# ---- Writing -------------------------------------------------------------------------------------------------------------------


def text_of(weights: Weights, batch_first: bool) -> str:
    """The text for a network.

    Raises
    ------
    ValueError
        If its cells are too many and too different for a file.
    """
    ours: dict[str, Any] = {"batch_first": bool(batch_first)}
    if weights.is_variant or weights.merge_mode != "concat" or weights.weight_dtype or weights.nonlinearity:
        cells = [_from_cell(layer.cell) for layer in weights.layers]
        ours["cells"] = cells[:1] if all(cell == cells[0] for cell in cells) else cells
        ours |= {name: True for name in ("reverse", "flipped") if getattr(weights, name)}
        if weights.merge_mode != "concat":
            ours["merge_mode"] = weights.merge_mode
        if weights.weight_dtype:
            ours["weight_dtype"] = weights.weight_dtype
        if weights.nonlinearity:
            ours["nonlinearity"] = weights.nonlinearity
    text = json.dumps(ours)
    if len(text) > MAX_TEXT:
        raise ValueError(f"the cells of {len(weights.layers)} layers take {len(text)} characters, a file holds {MAX_TEXT}")
    return text


def _from_cell(cell: Cell) -> dict[str, Any]:
    result = {}
    for item in fields(Cell):
        value = getattr(cell, item.name)
        if value != getattr(PLAIN, item.name):
            result[item.name] = [value.name, *value.parameters] if isinstance(value, Activation) else value
    return result


# ---- Reading -------------------------------------------------------------------------------------------------------------------


def parse(text: object) -> Metadata:
    """Read it back.

    Raises
    ------
    FormatError
        If it is anything but what :func:`text_of` writes.
    """
    try:
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            raise ValueError(f"one text of at most {MAX_TEXT} characters expected")
        ours = strict_json.loads(text, "JSON text")
        if not isinstance(ours, dict) or "batch_first" not in ours:
            raise ValueError("an object with batch_first expected")
        for key, value in ours.items():
            if key not in (*FLAGS, "merge_mode", "weight_dtype", "nonlinearity", "cells"):
                raise ValueError(f"{quoted(key)} is not understood")
            if key in FLAGS and not isinstance(value, bool):
                raise ValueError(f"{key} must be true or false, got {value!r:.100}")
        if ours.get("merge_mode", "sum") not in (*MERGE_MODES[1:], None):  # concat is not written
            raise ValueError(f"merge_mode must be one of {', '.join(MERGE_MODES[1:])} or null, got {ours['merge_mode']!r:.100}")
        if ours.get("weight_dtype", "int8") not in TYPES:
            raise ValueError(f"weight_dtype must be one of {', '.join(TYPES)}, got {ours['weight_dtype']!r:.100}")
        if ours.get("nonlinearity", "tanh") not in NONLINEARITIES:
            raise ValueError(f"nonlinearity must be one of {', '.join(NONLINEARITIES)}, got {ours['nonlinearity']!r:.100}")
        if "cells" not in ours:
            if ours.keys() != {"batch_first"}:
                raise ValueError("reverse, flipped, merge_mode, weight_dtype and nonlinearity need cells")
            return Metadata(**ours)
        cells = ours.pop("cells")
        if not isinstance(cells, list) or not cells:
            raise ValueError("cells must be a list")
        return Metadata(cells=tuple(map(_to_cell, cells)), **ours)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FormatError(f"metadata {KEY!r} is broken: {str(error)[:200]}; it is {quoted(str(text)[:200])}") from None


def batch_first(text: object) -> bool:
    """Read back what such a text says where the rest of the file says all else of the network, as an ONNX model does.

    Raises
    ------
    FormatError
        If it says more, or is broken.
    """
    try:
        ours = parse(text)
    except FormatError:
        ours = None
    if ours is None or ours.cells is not None:
        raise FormatError(f"metadata {KEY!r} must be an object with batch_first alone, got {quoted(str(text)[:200])}")
    return ours.batch_first


def _to_cell(value: object) -> Cell:
    if not isinstance(value, dict):
        raise ValueError(f"a cell must be an object, got {value!r:.100}")
    known = {item.name for item in fields(Cell)}
    given: dict[str, Any] = {}
    for key, entry in value.items():
        if key not in known:
            raise ValueError(f"{quoted(key)} of a cell is not understood")
        if key in ("gate", "candidate", "hidden"):
            if not isinstance(entry, list) or not entry or not isinstance(entry[0], str) or not all(map(_number, entry[1:])):
                raise ValueError(f"{key} must be a list of a name and numbers, got {entry!r:.100}")
            given[key] = Activation(entry[0], tuple(entry[1:]))
        elif key == "coupled" and not isinstance(entry, str):
            raise ValueError(f"coupled must be text, got {entry!r:.100}")
        elif key != "coupled" and not _number(entry):
            raise ValueError(f"{key} must be a number, got {entry!r:.100}")
        else:
            given[key] = entry if key == "coupled" else float(entry)
    return Cell(**given)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def find(ours: Metadata, tensors: Mapping[str, LazyTensor], read: ReadFloats, limit: float) -> list[Found]:
    """The one network of a file that says it holds a variant: its tensors are exactly those of the network.

    Raises
    ------
    FormatError
        If a tensor does not fit; nothing has been read then.
    """
    assert ours.cells is not None
    size = 0
    for name, tensor in tensors.items():
        check_dtype(name, tensor)
        if len(tensor.shape) > 2:
            raise FormatError(f"{quoted(name)} must be a matrix or a vector, got {len(tensor.shape)} dimensions")
        size += math.prod(tensor.shape) * precision(tensor.dtype).itemsize
    check_size("the tensors of the network", size, limit)

    def made(arrays: Mapping[str, Array]) -> Weights:
        try:
            weights = Weights.from_named_tensors(arrays, ours.nonlinearity)
            count, cells = len(weights.layers), ours.cells or ()
            if len(cells) not in (1, count):
                raise ValueError(f"{len(cells)} cells for {count} records of layers and directions")
            layers = (
                replace(layer, cell=cell)
                for layer, cell in zip(weights.layers, cells * count if len(cells) == 1 else cells, strict=True)
            )
            return replace(
                weights,
                layers=tuple(layers),
                reverse=ours.reverse,
                flipped=ours.flipped,
                merge_mode=ours.merge_mode,
                weight_dtype=ours.weight_dtype,
            )
        except FormatError:
            raise
        except ValueError as error:
            raise FormatError(str(error)) from None

    def load() -> Weights:
        return made(dict(zip(tensors, map(handed_over, read(list(tensors.values()))), strict=True)))

    # The same checks on arrays that have the shapes and take no memory
    shown = made({name: np.broadcast_to(np.zeros((), precision(tensor.dtype)), tensor.shape) for name, tensor in tensors.items()})
    info = LSTMInfo(
        name="",
        input_size=shown.input_size,
        hidden_size=shown.hidden_size,
        num_layers=shown.num_layers,
        bidirectional=shown.bidirectional,
        proj_size=shown.proj_size,
        bias=shown.bias,
        dtype=dtypes(tensors.values()),
        batch_first=ours.batch_first,
    )
    if ours.nonlinearity:
        return [Found("", info, load, problem="this is a plain RNN, not an LSTM: fastlstm.RNN.load reads it", is_lstm=False)]
    return [Found("", info, load)]
