"""RTNeural's files (.json): a list of layers with the weights as Keras has them, gates i, f, g, o and x W.

The activation of an LSTM is named and not looked at by RTNeural, whose LSTM has tanh and sigmoid; another name is refused here.

References
----------
``RTNeural/model_loader.h``, ``python/model_utils.py`` in https://github.com/jatinchowdhury18/RTNeural.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.assembly import Part, Sizes, network
from fastlstm.loaders.found import Contents, Found, listing, other_layer, quoted
from fastlstm.loaders.json_text import JsonTensor, NumberList, float32, matrix, vector
from fastlstm.loaders.source import SourceFile

if TYPE_CHECKING:
    from fastlstm.models.model import Model

__all__ = ["find", "model", "recognises"]

GATES = "ifgo"
ACTIVATIONS = {"": "linear", **{name: name for name in ("linear", "tanh", "relu", "sigmoid", "softmax", "elu")}}
GAINS = ("in_skip", "in_gain", "out_gain")  # of AIDA-X, which plays such files


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
                found.append(_lstm(name, layer, file.weights_limit))
            except FormatError as error:
                found.append(Found(name, problem=str(error)))
        elif layer["type"] == "gru":
            found.append(other_layer(name, name, "a GRU"))
    kinds = listing((str(layer["type"]) for layer in layers), 5)
    return Contents(found, f"an RTNeural file with layers {kinds}")


def layers_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = content["layers"]
    for index, layer in enumerate(layers):
        if not isinstance(layer["type"], str):
            raise FormatError(f"layers.{index}: type must be text")
    return layers


def _lstm(name: str, layer: dict[str, Any], limit: float) -> Found:
    try:
        return _checked_lstm(name, layer, limit)
    except ValueError as error:  # a FormatError too
        raise FormatError(f"{name}: {error}") from None


def _checked_lstm(name: str, layer: dict[str, Any], limit: float) -> Found:
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


def model(file: SourceFile) -> Model:
    """The layers one after the other.

    Raises
    ------
    FormatError
        At the first layer that is not supported; the message names it.
    """
    from fastlstm.models.layers import INPUT, Activate, Dense, Recurrent, Step
    from fastlstm.models.model import Model

    for key in GAINS:
        if file.json.get(key) not in (None, 0, False):
            raise FormatError(f"{key} is {str(file.json[key])[:50]}: what players do with it is not done here")
    steps: list[Step] = []
    size = first = last_size({"shape": file.json.get("in_shape")})
    before = INPUT
    for index, layer in enumerate(layers_of(file.json)):
        name, kind = f"layers.{index}", layer["type"]
        if kind == "lstm":
            found = _lstm(name, layer, file.weights_limit)
            assert found.info is not None
            assert found.read is not None
            inputs = found.info.input_size
            steps.append(Recurrent(name, (before,), found.read()))
        elif kind in ("dense", "time-distributed-dense"):
            weight, bias = _dense(name, layer)
            inputs = weight.shape[1]
            steps.append(Dense(name, (before,), weight, bias, _activation(name, layer)))
        elif kind == "activation":
            inputs = size
            steps.append(Activate(name, (before,), _activation(name, layer)))
        else:
            raise FormatError(f"{name} is {quoted(kind)}, which is not supported")
        if inputs != size:
            raise FormatError(f"{name} takes {inputs} inputs, there are {size}")
        size, before = last_size(layer), name
    if not steps:
        raise FormatError("there are no layers")
    return Model(steps, first)


def _dense(name: str, layer: dict[str, Any]) -> tuple[Array, Array]:
    weights = layer.get("weights")
    if not isinstance(weights, list) or len(weights) != 2:
        raise FormatError(f"{name} must have two weights, a matrix and a bias")
    weight, bias = matrix(weights[0], f"{name}: the first weight"), vector(weights[1], f"{name}: the bias")
    if weight.shape[1] != last_size(layer) or bias.shape != (weight.shape[1],):
        raise FormatError(f"{name}: weight {weight.shape}, bias {bias.shape} and {last_size(layer)} outputs do not fit together")
    return float32(weight.T), float32(bias)


def _activation(name: str, layer: dict[str, Any]) -> str:
    activation = layer.get("activation", "")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise FormatError(f"{name} has the activation {quoted(str(activation))}, which is not supported")
    return ACTIVATIONS[activation]


def last_size(layer: dict[str, Any]) -> int:
    """The size of a layer's output, the last number of its shape."""
    shape = layer.get("shape")
    sizes = list(shape.values) if isinstance(shape, NumberList) else shape if isinstance(shape, list) else []
    last = sizes[-1] if sizes else None
    if not isinstance(last, (int, float)) or isinstance(last, bool) or not 0 < last < 2**31 or last != int(last):
        raise FormatError(f"shape must be a list that ends with a positive size, got {str(shape)[:100]}")
    return int(last)
