"""RTNeural's files (.json): a list of layers with the weights as Keras has them, gates i, f, g, o and x W.

The activation of an LSTM is named and not looked at by RTNeural, whose LSTM has tanh and sigmoid; another name is refused here.

References
----------
``RTNeural/model_loader.h``, ``python/model_utils.py`` in https://github.com/jatinchowdhury18/RTNeural.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders.assembly import Part, Sizes, network
from fastlstm.loaders.found import Contents, Found, listing, quoted
from fastlstm.loaders.json_text import JsonTensor, matrix, vector
from fastlstm.loaders.source import SourceFile

__all__ = ["find", "last_size", "layers_of", "recognises"]

GATES = "ifgo"


def recognises(file: SourceFile) -> bool:
    content = file.json
    layers = content.get("layers") if isinstance(content, dict) else None
    return isinstance(layers, list) and all(isinstance(layer, dict) and "type" in layer for layer in layers)


def find(file: SourceFile) -> Contents:
    """List the LSTMs of the file, named by their places: ``layers.0``."""
    layers = layers_of(file.json)
    found = []
    for index, layer in enumerate(layers):
        name = f"layers.{index}"
        if layer["type"] == "lstm":
            try:
                found.append(lstm(name, layer, file.weights_limit))
            except FormatError as error:
                found.append(Found(name, problem=f"{name}: {error}"))
            except ValueError as error:  # a size no network has
                found.append(Found(name, problem=f"{name}: {error}"))
        elif layer["type"] == "gru":
            found.append(Found(name, problem=f"{name}: this is a GRU, not an LSTM", is_lstm=False))
    kinds = listing((str(layer["type"]) for layer in layers), 5)
    return Contents(found, f"an RTNeural file with layers {kinds}" if layers else "an RTNeural file without layers")


def layers_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = content["layers"]
    for index, layer in enumerate(layers):
        if not isinstance(layer["type"], str):
            raise FormatError(f"layers.{index}: type must be text")
    return layers


def lstm(name: str, layer: dict[str, Any], limit: float) -> Found:
    weights = layer.get("weights")
    if not isinstance(weights, list) or len(weights) != 3:
        raise FormatError("an LSTM needs three weights: kernel, recurrent kernel and bias")
    if layer.get("activation", "") not in ("", "tanh"):
        raise FormatError(f"activation must be tanh, got {quoted(str(layer['activation']))}")
    kernel, recurrent = JsonTensor(matrix(weights[0], "kernel")), JsonTensor(matrix(weights[1], "recurrent kernel"))
    bias = JsonTensor(vector(weights[2], "bias"))
    I, H = kernel.shape[0], recurrent.shape[0]
    if last_size(layer) != H:
        raise FormatError(f"shape must end with {H}, the rows of the recurrent kernel, got {last_size(layer)}")
    parts = [
        Part("weight_ih", ("kernel", kernel), (I, 4 * H), GATES),
        Part("weight_hh", ("recurrent kernel", recurrent), (H, 4 * H), GATES),
        Part("bias_ih", ("bias", bias), (4 * H,), GATES),
    ]
    return network(name, Sizes(I, H), [parts], lambda tensor: tensor.value, limit)


def last_size(layer: dict[str, Any]) -> int:
    """The size of a layer's output, the last number of its shape."""
    shape = layer.get("shape")
    sizes = list(shape) if isinstance(shape, (list, np.ndarray)) else []
    last = sizes[-1] if sizes else None
    if not isinstance(last, (int, float)) or isinstance(last, bool) or not 0 < last < 2**31 or last != int(last):
        raise FormatError(f"shape must be a list that ends with a positive size, got {str(shape)[:100]}")
    return int(last)
