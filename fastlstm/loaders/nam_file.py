"""Neural Amp Modeler's files (.nam): JSON whose ``weights`` are one list.

For each layer ``[W_ih | W_hh]``, row by row, shape (4H, I + H), gates i, f, g, o; the bias (4H,); then the state that the layer
begins with, h (H,) and c (H,). After the layers the head, a dense layer: its weight, shape (outputs, H), and its bias.

References
----------
``NAM/lstm.cpp`` in https://github.com/sdatkinson/NeuralAmpModelerCore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders.found import Contents, Found, LSTMInfo, quoted
from fastlstm.loaders.json_text import Numbers, float32, size_of, vector
from fastlstm.loaders.source import SourceFile
from fastlstm.weights import LayerWeights, Weights

if TYPE_CHECKING:
    from fastlstm.models.model import Model

__all__ = ["find", "model", "recognises"]

KEYS = {"input_size", "hidden_size", "num_layers", "in_channels", "out_channels"}


@dataclass(frozen=True)
class Network:
    """Sizes (outputs are those of the head), and the list of all weights."""

    I: int
    H: int
    L: int
    outputs: int
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
                float32(self.values[at : at + 4 * H * (I + H) + 6 * H]),
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


def model(file: SourceFile) -> Model:
    """The LSTM and its head, from the learned initial state on (players run half a second of silence first).

    Raises
    ------
    FormatError
        If there is another architecture.
    """
    from fastlstm.models.layers import INPUT, Dense, Recurrent
    from fastlstm.models.model import Model

    if file.json["architecture"] != "LSTM":
        raise FormatError(f"architecture {quoted(str(file.json['architecture']))} is not supported")
    network = _network(file.json)
    head = float32(network.values[network.count() :])
    weight, bias = head[: -network.outputs].reshape(network.outputs, network.H), head[-network.outputs :]
    steps = [Recurrent("lstm", (INPUT,), network.weights()), Dense("head", ("lstm",), weight, bias)]
    rate = file.json.get("sample_rate")
    return Model(steps, network.I, sample_rate=float(rate) if isinstance(rate, (int, float)) else None)


def _network(content: dict[str, Any]) -> Network:
    config = content["config"]
    if not isinstance(config, dict) or not config.keys() <= KEYS:
        raise FormatError(f"config must be an object with {', '.join(sorted(KEYS))} and nothing else")
    I, H, L = (size_of(config, key, "config") for key in ("input_size", "hidden_size", "num_layers"))
    outputs = size_of(config, "out_channels", "config") if "out_channels" in config else 1
    if config.get("in_channels", I) != I:
        raise FormatError(f"in_channels must be input_size, {I}, got {str(config['in_channels'])[:50]}")
    network = Network(I, H, L, outputs, vector(content["weights"], "weights"))
    if len(network.values) < network.L:
        raise FormatError(f"num_layers is {network.L}, weights has {len(network.values)} numbers")
    expected = network.count() + outputs * (network.H + 1)
    if len(network.values) != expected:
        raise FormatError(
            f"weights must have {expected} numbers for input_size {network.I}, hidden_size {network.H}, num_layers {network.L} "
            f"and {outputs} output(s), got {len(network.values)}"
        )
    return network
