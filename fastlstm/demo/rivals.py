"""The same network in fastlstm, PyTorch and ONNX Runtime, to be timed side by side on one thread."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

import fastlstm
from fastlstm.arrays import Array

__all__ = ["Contender", "gather", "one_thread"]


class Contender(NamedTuple):
    """Two ways over the same sequence; both return its output, shape (T, H), and begin with a zero state."""

    steps: Callable[[], Array]
    sequence: Callable[[], Array]


def gather(lstm: fastlstm.LSTM, x: Array) -> tuple[dict[str, Contender], dict[str, str]]:
    """Everyone who is installed, with the network and the sequence `x` of shape (T, I); and why the others are not there."""
    contenders, missing = {"fastlstm": ours(lstm, x)}, {}
    for name, modules, make in (("PyTorch", ["torch"], pytorch), ("ONNX Runtime", ["onnxruntime", "onnx"], onnx_runtime)):
        try:
            loaded = [import_module(module) for module in modules]
        except (ImportError, OSError) as error:  # OSError: a shared library that does not load
            missing[name] = f"not timed: {str(error).splitlines()[0]}"
        else:
            contenders[f"{name} {loaded[0].__version__}"] = make(lstm, x, *loaded)
    return contenders, missing


@contextmanager
def one_thread() -> Iterator[None]:
    """Everyone on one thread: nobody gains by a second one with a network this small."""
    torch = sys.modules.get("torch")
    before = fastlstm.get_num_threads(), torch and torch.get_num_threads()
    fastlstm.set_num_threads(1)
    if torch:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        fastlstm.set_num_threads(before[0])
        if torch:
            torch.set_num_threads(before[1])


def ours(lstm: fastlstm.LSTM, x: Array) -> Contender:
    stream = lstm.stream()

    def steps() -> Array:
        stream.reset()
        return np.stack([stream.step(x_t) for x_t in x])

    return Contender(steps, lambda: lstm(x)[0])


def pytorch(lstm: fastlstm.LSTM, x: Array, torch: Any) -> Contender:
    module = lstm.to_torch()
    whole = torch.from_numpy(np.array(x))
    single = [whole[t : t + 1] for t in range(len(x))]

    def steps() -> Array:
        state, outputs = None, []
        with torch.inference_mode():
            for x_t in single:
                output, state = module(x_t, state)
                outputs.append(output[0])
            return np.asarray(torch.stack(outputs).numpy())

    def sequence() -> Array:
        with torch.inference_mode():
            return np.asarray(module(whole)[0].numpy())

    return Contender(steps, sequence)


def onnx_runtime(lstm: fastlstm.LSTM, x: Array, onnxruntime: Any, onnx: Any) -> Contender:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = onnx_model(lstm, onnx).SerializeToString()
    run = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run
    names = [f"{kind}_{layer}" for layer in range(lstm.num_layers) for kind in "hc"]
    zeros = dict.fromkeys(names, np.zeros((1, 1, lstm.hidden_size), np.float32))
    whole = np.array(x)[:, None]

    def steps() -> Array:
        state, outputs = zeros, []
        for t in range(len(whole)):
            output, *new = run(None, {"x": whole[t : t + 1], **state})
            state = dict(zip(names, new, strict=True))
            outputs.append(output[0, 0, 0])
        return np.stack(outputs)

    return Contender(steps, lambda: np.asarray(run(None, {"x": whole, **zeros})[0][:, 0, 0]))


def onnx_model(lstm: fastlstm.LSTM, onnx: Any) -> Any:
    """A graph of one LSTM node per layer, with the states of each layer as inputs and outputs.

    What ``lstm.to_onnx`` writes has those of all layers in one tensor, as PyTorch has: to split and join them takes ONNX Runtime
    a tenth of a step of the demo's network (102 us against 94), which would not be fair.
    """
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    H, weights = lstm.hidden_size, lstm.state_dict()

    def gates(tensor: Array) -> Array:
        """From i, f, g, o to ONNX's i, o, f, c, with its axis of directions."""
        i, f, g, o = np.split(tensor, 4)
        return np.concatenate([i, o, f, g])[None]

    nodes, tensors, states_in, states_out, below = [], [], [], [], "x"
    for k in range(lstm.num_layers):
        w, r, *biases = (gates(weights[f"{name}_l{k}"]) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        b = np.concatenate(biases, axis=1)
        tensors += [numpy_helper.from_array(tensor, f"{name}_{k}") for name, tensor in (("W", w), ("R", r), ("B", b))]
        inputs, outputs = [below, f"W_{k}", f"R_{k}", f"B_{k}", "", f"h_{k}", f"c_{k}"], [f"Y_{k}", f"hn_{k}", f"cn_{k}"]
        nodes.append(helper.make_node("LSTM", inputs, outputs, hidden_size=H))
        below = f"Y_{k}"  # (T, 1, B, H)
        if k + 1 < lstm.num_layers:
            nodes.append(helper.make_node("Squeeze", [below, "axis"], [f"x_{k + 1}"]))
            below = f"x_{k + 1}"
        states_in += [helper.make_tensor_value_info(name, kind, [1, 1, H]) for name in inputs[-2:]]
        states_out += [helper.make_tensor_value_info(name, kind, [1, 1, H]) for name in outputs[-2:]]
    tensors.append(numpy_helper.from_array(np.array([1]), "axis"))
    graph = helper.make_graph(
        nodes,
        "lstm",
        [helper.make_tensor_value_info("x", kind, ["T", 1, lstm.input_size]), *states_in],
        [helper.make_tensor_value_info(below, kind, ["T", 1, 1, H]), *states_out],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
