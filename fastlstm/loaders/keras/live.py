"""Live Keras layers and models, and the way back. Keras itself is never imported: whoever passes a layer has done so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.found import Contents, Found, other_layer, quoted
from fastlstm.loaders.keras import config as keras_config
from fastlstm.loaders.keras.layer import CellTensors, Layout, found
from fastlstm.loaders.tensors import STORED
from fastlstm.weights import Weights

__all__ = ["find", "keras_weights"]


@dataclass(frozen=True)
class KerasVariable:
    """A variable, not converted yet."""

    name: str
    variable: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.variable.shape)

    @property
    def dtype(self) -> str:
        dtype = self.variable.dtype
        return str(getattr(dtype, "name", dtype))

    def read(self) -> Array:
        """The values, for bfloat16 their bits, as a file has them."""
        try:
            array = np.asarray(self.variable.numpy())
            if self.dtype == "bfloat16":
                return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            return array.astype(STORED[self.dtype], copy=False)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise FormatError(f"{quoted(self.name)} cannot be read: {error}") from error


def find(source: object) -> Contents:
    """List the LSTMs in a layer or model.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if not _ancestors(source) or not hasattr(source, "get_config"):
        raise TypeError(f"layer_or_model must be a Keras layer or model, got {type(source).__name__} (for a file: fastlstm.load)")
    results = [_found(names, layer) for names, layer in _recurrent(source)]
    advice = "; of a cell, pass keras.layers.RNN(cell)" if type(source).__name__.endswith("Cell") else ""
    return Contents(results, f"a {type(source).__name__} of Keras without a recurrent layer{advice}")


def _ancestors(value: object) -> list[type]:
    """Those of its classes that are Keras' own."""
    return [kind for kind in type(value).__mro__ if keras_config.class_of(_entry(kind))]


def _entry(kind: type) -> dict[str, Any]:
    return {"class_name": kind.__name__, "module": kind.__module__}


def _recurrent(source: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every recurrent layer once, with the names of the models around it (but the outermost) and its own."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), source)]
    seen = {id(source)}
    while waiting:
        names, layer = waiting.pop()
        if {kind.__name__ for kind in _ancestors(layer)} & {*keras_config.RECURRENT, *keras_config.OTHERS}:
            yield names or (str(layer.name),), layer
            continue
        for part in reversed(getattr(layer, "layers", None) or getattr(layer, "_layers", None) or []):
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append(((*names, str(part.name)), part))


def _found(names: tuple[str, ...], layer: Any) -> Found:
    name = "/".join(names)
    entry = _entry(type(layer))
    if keras_config.class_of(entry):  # of another class, the configuration could be anything
        entry["config"] = layer.get_config()
    other = keras_config.other_kind(entry)
    if other:
        return other_layer(name, f"layer {quoted(name)}", other)
    root = sys.modules[_ancestors(layer)[0].__module__.split(".")[0]]
    version = keras_config.major_version(getattr(root, "__version__", None))

    def plan() -> keras_config.Plan:
        result = keras_config.plan(entry, version)
        if not layer.built:
            raise FormatError("it has no weights yet: call the layer or the model once, or build it")
        return result

    return found(name, _layout(layer), plan, aliases=names[-1:])


def _layout(layer: Any) -> Layout | None:
    if hasattr(layer, "forward_layer"):
        directions = [_cells(direction) for direction in (layer.forward_layer, layer.backward_layer)]
        return Layout(tuple(cell for cells in directions for cell in cells), True) if all(directions) else None
    cells = _cells(layer)
    return Layout(cells) if cells else None


def _cells(layer: Any) -> tuple[CellTensors, ...]:
    cell = getattr(layer, "cell", layer)
    cells = []
    for part in getattr(cell, "cells", [cell]):
        kernel, recurrent, bias = (getattr(part, name, None) for name in ("kernel", "recurrent_kernel", "bias"))
        if kernel is None or recurrent is None:
            return ()
        matrices = KerasVariable(f"{part.name}/kernel", kernel), KerasVariable(f"{part.name}/recurrent_kernel", recurrent)
        cells.append(CellTensors(*matrices, None if bias is None else KerasVariable(f"{part.name}/bias", bias)))
    return tuple(cells)


def keras_weights(weights: Weights) -> list[Array]:
    """See :meth:`fastlstm.LSTM.to_keras_weights`."""
    arrays = []
    for layer in weights.layers:
        cell = layer.cell
        problems = {
            "a projection (proj_size)": layer.weight_hr is not None,
            "peepholes": layer.weight_peephole is not None,
            "an initial state of its own (h_0, c_0)": layer.h_0 is not None,
            "coupled gates": cell.coupled is not None,
            "clipping": cell != replace(cell, gate_clip=None, cell_clip=None, proj_clip=None),
            "different activations of candidate and output": cell.candidate != cell.hidden,
        }
        for what, present in problems.items():
            if present:
                raise ValueError(f"Keras has no LSTM with {what}: save the network as safetensors")
        arrays += [layer.weight_ih.T.copy(), layer.weight_hh.T.copy()]
        if layer.bias_ih is not None and layer.bias_hh is not None:
            arrays.append(layer.bias_ih + layer.bias_hh)
    return arrays
