"""The weights of a network as Keras keeps them."""

from __future__ import annotations

from fastlstm.arrays import Array
from fastlstm.cell import Cell
from fastlstm.weights import Weights

__all__ = ["keras_weights"]


def keras_weights(weights: Weights) -> list[Array]:
    """See :meth:`fastlstm.LSTM.to_keras_weights`."""
    arrays = []
    for layer in weights.layers:
        for name in ("weight_hr", "weight_peephole", "h_0"):
            if getattr(layer, name) is not None:
                raise ValueError(f"Keras has no LSTM with a {name}")
        cell = layer.cell
        if cell != Cell(cell.gate, cell.candidate, cell.candidate):
            raise ValueError("Keras has no LSTM with coupled gates, clipping, or two functions for candidate and output")
        arrays += [layer.weight_ih.T.copy(), layer.weight_hh.T.copy()]
        if layer.bias_ih is not None and layer.bias_hh is not None:
            arrays.append(layer.bias_ih + layer.bias_hh)
    return arrays
