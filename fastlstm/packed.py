"""Weights as the engine has packed them, and the engine's functions for their dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fastlstm import _engine
from fastlstm.arrays import Array, as_bytes
from fastlstm.cell import ACTIVATIONS, PLAIN
from fastlstm.isa import isa as _isa  # noqa: F401  (chooses the kernels before a network is packed)
from fastlstm.weights import TENSORS, LayerWeights, Weights

__all__ = ["OptionalState", "Packed", "State"]

State = tuple[Array, Array]  # as the engine sees it: h (L*D, B, P) and c (L*D, B, C); C is 0 in a plain RNN
OptionalState = tuple["Array | None", "Array | None"]  # None: zeros, or what the network begins from

_KINDS = tuple(ACTIVATIONS)  # by the engine's numbers


class Packed:
    """Weights, and what the engine made of them. Immutable: ``load_state_dict`` makes a new one, so that a tape or a stream,
    which holds the old one, keeps weights that belong together."""

    __slots__ = ("_transposed", "add", "backward", "drop", "forward", "network", "shapes", "weights")

    def __init__(self, weights: Weights) -> None:
        weights = weights.rounded(weights.weight_dtype) if weights.weight_dtype else weights
        owned = replace(weights, layers=tuple(_owned(layer) for layer in weights.layers))
        self.weights = owned
        self.network = _engine.Network(
            _rows(owned),
            [_variant(layer) for layer in owned.layers],
            owned.dtype.itemsize,
            owned.input_size,
            owned.hidden_size,
            owned.num_layers,
            owned.num_directions,
            owned.proj_size,
            owned.reverse,
            owned.nonlinearity,
            owned.weight_dtype,
        )
        # Chosen once for a network; Cython's own choice by the arrays of each call takes longer than a small step
        floating = "float" if owned.dtype == np.float32 else "double"
        self.forward, self.backward = _engine.forward[floating], _engine.backward[floating]
        self.add, self.drop = _engine.add[floating], _engine.drop[floating]
        self.shapes = owned.expected_shapes()  # every tape asks
        self._transposed: _engine.Transposed | None = None

    @property
    def transposed(self) -> _engine.Transposed:
        """The weights packed a second time, for gradients, when they are first asked for."""
        if self._transposed is None:
            self._transposed = _engine.Transposed(self.network, _rows(self.weights))
        return self._transposed


def _owned(layer: LayerWeights) -> LayerWeights:
    """The same tensors as read-only, contiguous arrays that nobody else can write to."""

    def own(tensor: Array | None) -> Array | None:
        if tensor is None:
            return None
        flags = tensor.flags
        if flags.writeable or not flags.owndata or not flags.c_contiguous or not flags.aligned:
            tensor = np.array(tensor, order="C")
            tensor.setflags(write=False)
        return tensor

    return replace(layer, **{kind: own(getattr(layer, kind)) for kind in TENSORS})  # type: ignore[arg-type]


def _rows(weights: Weights) -> list[tuple[Array | None, ...]]:
    """Each record's tensors as flat bytes, as the engine packs them."""
    return [tuple(as_bytes(getattr(layer, kind)) for kind in TENSORS) for layer in weights.layers]


def _variant(layer: LayerWeights) -> tuple[Any, ...] | None:
    """The cell in the engine's numbers; None for PyTorch's, which has its own kernel."""
    cell = layer.cell
    if cell == PLAIN and layer.weight_peephole is None:
        return None
    functions = ((_KINDS.index(f.name), *(*f.parameters, 0.0, 0.0)[:2]) for f in (cell.gate, cell.candidate, cell.hidden))
    clips = (np.inf if clip is None else clip for clip in (cell.gate_clip, cell.cell_clip, cell.proj_clip))
    return *functions, (None, "forget", "input").index(cell.coupled), *clips
