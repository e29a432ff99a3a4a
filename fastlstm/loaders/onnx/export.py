"""An LSTM as an ONNX model: one LSTM node for each layer, the states of all layers as inputs and outputs.

References
----------
https://onnx.ai/onnx/operators/onnx__LSTM.html, version 14.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.cell import SIGMOID, TANH, Activation
from fastlstm.files import writing
from fastlstm.loaders import metadata
from fastlstm.loaders.onnx.graph import import_onnx
from fastlstm.loaders.onnx.lstm import ACTIVATIONS, TAKES_ALPHA, TAKES_BOTH
from fastlstm.weights import LayerWeights, Weights

__all__ = ["onnx_model", "write_onnx"]


OPSET, IR_VERSION = 17, 8  # of 2022: what every runtime in use reads
MAX_BYTES = 2**31 - 2**20  # protobuf has no larger messages; the rest is for all but the weights
NAME = "lstm"  # of the first node, the next ones are lstm_1, ...
TO_ONNX = {ours: name for name, ours in ACTIVATIONS.items()}


def write_onnx(path: str | os.PathLike[str], weights: Weights, batch_first: bool) -> None:
    """Write :func:`onnx_model` as a file, which appears whole or not at all."""
    with writing(path) as stream:
        stream.write(onnx_model(weights, batch_first).SerializeToString())


def onnx_model(weights: Weights, batch_first: bool = False) -> Any:
    """The network as an ``onnx.ModelProto``.

    Inputs are ``x`` (T, B, I), or (B, T, I) if `batch_first`, and ``h_0`` and ``c_0`` (L*D, B, H); outputs are ``output``
    (T, B, D*H), or (B, T, D*H), ``h_n`` and ``c_n``: all as PyTorch has them. T and B are free.

    Parameters
    ----------
    weights : Weights
    batch_first : bool
        Kept in the model's metadata, too.

    Raises
    ------
    ValueError
        If ONNX has no words for the network: a projection, its own initial states, a clipped cell state, ...
    ImportError
        If the onnx package is missing.
    """
    _check(weights)
    onnx = import_onnx()
    L, D, H = weights.num_layers, weights.num_directions, weights.hidden_size
    nodes, constants = _nodes(weights, batch_first, onnx.helper.make_node)
    kind = onnx.helper.np_dtype_to_tensor_dtype(weights.dtype)
    free = ["B", "T"] if batch_first else ["T", "B"]

    def declared(**shapes: list[object]) -> list[Any]:
        return [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]

    graph = onnx.helper.make_graph(
        nodes,
        NAME,
        declared(x=[*free, weights.input_size], h_0=[L * D, "B", H], c_0=[L * D, "B", H]),
        declared(output=[*free, D * H], h_n=[L * D, "B", H], c_n=[L * D, "B", H]),
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fastlstm")
    onnx.helper.set_model_props(model, {metadata.KEY: json.dumps({"batch_first": bool(batch_first)})})
    return model


def _nodes(weights: Weights, batch_first: bool, make: Callable[..., Any]) -> tuple[list[Any], dict[str, Array]]:
    """The nodes in the order they run, and the constants by name; Y (T, D, B, H) is folded to (T, B, D*H) for the next layer."""
    L, D = weights.num_layers, weights.num_directions
    direction = "bidirectional" if D == 2 else "reverse" if weights.reverse else "forward"
    constants: dict[str, Array] = {"axis": np.array([1])} if D == 1 else {"folded": np.array([0, 0, -1])}
    h_0, c_0, h_n, c_n = ([f"{name}_l{k}" for k in range(L)] if L > 1 else [name] for name in ("h_0", "c_0", "h_n", "c_n"))
    nodes, below = [], "x"
    if L > 1:
        constants["directions"] = np.full(L, D)
        nodes += [make("Split", [state, "directions"], parts, axis=0) for state, parts in (("h_0", h_0), ("c_0", c_0))]
    if batch_first:
        below = "x_time_first"
        nodes.append(make("Transpose", ["x"], [below], perm=[1, 0, 2]))
    for k in range(L):
        records = weights.layers[k * D : (k + 1) * D]
        tensors = {f"{name}_l{k}": array for name, array in _tensors(records).items()}
        constants |= {name: array for name, array in tensors.items() if array is not None}
        W, R, B, P = (name if array is not None else "" for name, array in tensors.items())
        inputs, y = [below, W, R, B, "", h_0[k], c_0[k], *([P] if P else [])], f"Y_l{k}"
        options = {"hidden_size": weights.hidden_size, "direction": direction, **_attributes(records)}
        nodes.append(make("LSTM", inputs, [y, h_n[k], c_n[k]], f"{NAME}_{k}" if k else NAME, **options))
        below = f"x_l{k + 1}" if k + 1 < L else "output_time_first" if batch_first else "output"
        if D == 2:
            nodes.append(make("Transpose", [y], [f"{y}_folded"], perm=[0, 2, 1, 3]))
            nodes.append(make("Reshape", [f"{y}_folded", "folded"], [below]))
        else:
            nodes.append(make("Squeeze", [y, "axis"], [below]))
    if batch_first:
        nodes.append(make("Transpose", [below], ["output"], perm=[1, 0, 2]))
    if L > 1:
        nodes += [make("Concat", parts, [state], axis=0) for state, parts in (("h_n", h_n), ("c_n", c_n))]
    return nodes, constants


def _check(weights: Weights) -> None:
    """Refuse what the operator cannot express."""
    problems = {
        "a projection (proj_size)": weights.proj_size > 0,
        "outputs in the order of processing (flipped)": weights.flipped,
        "outputs of two directions made one (merge_mode)": weights.merge_mode not in ("concat", None),
        "outputs of two directions not side by side (merge_mode=None)": weights.merge_mode is None,
        "initial states of its own (h_0, c_0), which fit every batch size": any(w.h_0 is not None for w in weights.layers),
        "coupled gates with i = 1 - f": any(w.cell.coupled == "input" for w in weights.layers),
        "a clipped cell state or projection": any(w.cell.cell_clip or w.cell.proj_clip for w in weights.layers),
        "directions with different clips or coupled gates": any(
            (a.cell.coupled, a.cell.gate_clip) != (b.cell.coupled, b.cell.gate_clip)
            for a, b in zip(weights.layers[::2], weights.layers[1::2], strict=False)
            if weights.bidirectional
        ),
        "more than 2 GB of weights": sum(tensor.nbytes for _, tensor in weights.named_tensors()) > MAX_BYTES,
    }
    for what, present in problems.items():
        if present:
            raise ValueError(f"the LSTM operator of ONNX has no words for {what}: save the network as safetensors")


def _tensors(records: tuple[LayerWeights, ...]) -> dict[str, Array | None]:
    """W, R, B and P of one layer, from i, f, g, o to ONNX's i, o, f, c and with its axis of directions."""

    def ordered(array: Array, *order: int) -> Array:
        blocks = np.split(array, len(order))
        return np.concatenate([blocks[place] for place in order])

    def gates(array: Array) -> Array:
        return ordered(array, 0, 3, 1, 2)

    biases = [
        np.concatenate([gates(w.bias_ih), gates(w.bias_hh)]) for w in records if not (w.bias_ih is None or w.bias_hh is None)
    ]
    peepholes = [ordered(w.weight_peephole, 0, 2, 1) for w in records if w.weight_peephole is not None]
    return {
        "W": np.stack([gates(w.weight_ih) for w in records]),
        "R": np.stack([gates(w.weight_hh) for w in records]),
        "B": np.stack(biases) if biases else None,
        "P": np.stack(peepholes) if peepholes else None,
    }


def _attributes(records: tuple[LayerWeights, ...]) -> dict[str, Any]:
    """Those that are not ONNX's defaults."""
    result: dict[str, Any] = {}
    functions = [_in_onnx(function) for w in records for function in (w.cell.gate, w.cell.candidate, w.cell.hidden)]
    if functions != [SIGMOID, TANH, TANH] * len(records):
        result["activations"] = [TO_ONNX[function.name] for function in functions]
        alphas = [function.parameters[0] for function in functions if function.name in TAKES_ALPHA]
        betas = [function.parameters[1] for function in functions if function.name in TAKES_BOTH]
        result |= {name: values for name, values in (("activation_alpha", alphas), ("activation_beta", betas)) if values}
    cell = records[0].cell
    if cell.gate_clip is not None:
        result["clip"] = cell.gate_clip
    if cell.coupled:
        result["input_forget"] = 1
    return result


def _in_onnx(function: Activation) -> Activation:
    return Activation("affine") if function.name == "linear" else function
