"""Neural Amp Modeler's files (.nam): JSON whose ``weights`` are one list.

For each layer ``[W_ih | W_hh]``, row by row, shape (4H, I + H), gates i, f, g, o; the bias (4H,); then the state that the layer
begins with, h (H,) and c (H,). After the layers the head: a dense layer to one output, weight (H,) and bias.

References
----------
``NAM/lstm.cpp`` in https://github.com/sdatkinson/NeuralAmpModelerCore.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders.found import Contents, Found, LSTMInfo, quoted
from fastlstm.loaders.json_text import Numbers, size_of, vector
from fastlstm.loaders.source import SourceFile
from fastlstm.weights import LayerWeights, Weights

__all__ = ["find", "recognises"]


@dataclass(frozen=True)
class Network:
    """Sizes, and the list of all weights."""

    I: int
    H: int
    L: int
    values: Numbers

    def count(self) -> int:
        """Numbers in the layers."""
        H = self.H
        return sum(4 * H * (inputs + H) + 4 * H + 2 * H for inputs in (self.I, *[H] * (self.L - 1)))

    def weights(self) -> Weights:
        layers, at, H = [], 0, self.H
        for layer in range(self.L):
            I = self.I if layer == 0 else H
            matrix, bias, h_0, c_0 = np.split(
                self.values[at : at + 4 * H * (I + H) + 6 * H].astype(np.float32),
                np.cumsum([4 * H * (I + H), 4 * H, H]),
            )
            matrix = matrix.reshape(4 * H, I + H)
            zero = np.zeros_like(bias)
            layers.append(LayerWeights(matrix[:, :I].copy(), matrix[:, I:].copy(), bias, zero, h_0=h_0, c_0=c_0))
            at += 4 * H * (I + H) + 6 * H
        return Weights(tuple(layers))


def recognises(file: SourceFile) -> bool:
    return isinstance(file.json, dict) and {"architecture", "config", "weights"} <= file.json.keys()


def find(file: SourceFile) -> Contents:
    """List the LSTM of the file; it is named ``""``.

    Raises
    ------
    FormatError
        If its weights are not as many as its sizes demand.
    """
    architecture = file.json["architecture"]
    if architecture != "LSTM":
        return Contents([], f"a Neural Amp Modeler file of architecture {quoted(str(architecture))}")
    network = _network(file.json)
    info = LSTMInfo("", network.I, network.H, network.L, False, 0, True, "float32")
    return Contents([Found("", info, network.weights)], "a Neural Amp Modeler file")


def _network(content: dict[str, object]) -> Network:
    config = content["config"]
    if not isinstance(config, dict) or not config.keys() <= {"input_size", "hidden_size", "num_layers"}:
        raise FormatError("config must be an object with input_size, hidden_size and num_layers, and only these")
    I, H, L = (size_of(config, key, "config") for key in ("input_size", "hidden_size", "num_layers"))
    network = Network(I, H, L, vector(content["weights"], "weights"))
    if len(network.values) < network.L:
        raise FormatError(f"num_layers is {network.L}, weights has {len(network.values)} numbers")
    expected = network.count() + network.H + 1
    if len(network.values) != expected:
        raise FormatError(
            f"weights must have {expected} numbers for input_size {network.I}, hidden_size {network.H}, num_layers {network.L} "
            f"and one output, got {len(network.values)}"
        )
    return network
