"""ONNX models read without a runtime: the numbers are ONNX Runtime's and the standard's own, what is not understood is refused.

The golden files are made by ``golden/make_onnx.py`` with PyTorch's exporter.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_close, flat, import_needed, import_torch

import fastlstm
from fastlstm import FormatError, Weights
from fastlstm.cell import SIGMOID, TANH, Activation, Cell
from fastlstm.loaders import LSTMInfo, from_onnx, load, scan
from fastlstm.weights import LayerWeights, parameter_shapes

onnx = import_needed("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fastlstm.export_onnx import onnx_model  # noqa: E402
from fastlstm.loaders import onnx_file, onnx_lstm  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
SILERO = Path(__file__).parents[2] / "shared" / "data" / "silero_vad_16k_op15.onnx"

# Outputs of scale 1 in float32, computed in another order than ONNX Runtime's, over a few steps and hidden units
TOLERANCE = 2e-5

# file: (the LSTMs that scan lists)
FILES = {
    "model.onnx": [
        LSTMInfo("/rnn/LSTM", 3, 5, 2, True, 0, True, "float32", False),
        LSTMInfo("/rnn_1/LSTM", 10, 5, 1, False, 0, True, "float32", False),
    ],
    "unfolded_9.onnx": [LSTMInfo("/LSTM", 3, 5, 2, True, 0, True, "float32", False)],
    "unfolded_17.onnx": [LSTMInfo("/LSTM", 3, 5, 2, True, 0, True, "float32", False)],
    "cell.onnx": [LSTMInfo("cell", 3, 5, 1, False, 0, True, "float32")],
    "float16.onnx": [LSTMInfo("/LSTM", 3, 5, 3, False, 0, False, "float16", False)],
    "float64.onnx": [LSTMInfo("/LSTM", 3, 5, 3, False, 0, False, "float64", False)],
    "learned.onnx": [LSTMInfo("/lstm/LSTM", 3, 5, 1, False, 0, True, "float32", False)],
}


def read(model: Any, name: str | None = None) -> Weights:
    """The weights of an LSTM in a live model, those of variants too."""
    found = onnx_file.find_live(model).choose(name)
    assert found.read is not None
    return found.read()


def run(model: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs by ONNX Runtime, which says nothing about what it removes."""
    runtime = import_needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(inputs)))


def refused(act: Callable[[], object], *parts: str) -> None:
    with pytest.raises(FormatError) as caught:
        act()
    for part in parts:
        assert part in str(caught.value)


# ---- Models --------------------------------------------------------------------------------------------------------------------

I, H = 3, 4


def numbers(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([*shape, seed]).standard_normal(shape) / 2).astype(np.float32)


def tensors(D: int = 1, inputs: int = I, hidden: int = H, seed: int = 0) -> dict[str, np.ndarray]:
    """Constants of an LSTM node by ONNX's names."""
    shapes = {"W": (D, 4 * hidden, inputs), "R": (D, 4 * hidden, hidden), "B": (D, 8 * hidden)}
    return {name: numbers(shape, seed) for name, shape in shapes.items()}


def node(inputs: Sequence[str] = ("X", "W", "R", "B"), outputs: Sequence[str] = ("Y",), name: str = "lstm", **more: Any) -> Any:
    return helper.make_node(more.pop("op_type", "LSTM"), inputs, outputs, name, **{"hidden_size": H, **more})


def model(
    nodes: Sequence[Any] | Any = (), constants: Mapping[str, Any] | None = None, opset: int = 17, outputs: str = "Y", **more: Any
) -> Any:
    """A model; constants are arrays or TensorProtos, by default those of :func:`node`. All that is not made is an input."""
    nodes = list(nodes) if isinstance(nodes, (list, tuple)) else [nodes]
    nodes = nodes or [node()]
    given = {
        name: value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in (tensors() if constants is None else constants).items()
    }
    made = {name for each in nodes for name in each.output} | given.keys()
    free = dict.fromkeys(name for each in nodes for name in each.input if name and name not in made)
    kinds = {name: TensorProto.INT32 if "lens" in name else TensorProto.FLOAT for name in free}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()],
        list(given.values()),
        **more,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def assert_same_weights(weights: Weights, expected: Mapping[str, np.ndarray]) -> None:
    given = dict(weights.named_tensors())
    assert given.keys() == expected.keys()
    for name, tensor in given.items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape), name
        assert tensor.tobytes() == expected[name].tobytes(), name


def from_onnx_order(array: np.ndarray) -> np.ndarray:
    """i, o, f, c to i, f, g, o."""
    i, o, f, c = np.split(array, 4)
    return np.concatenate([i, f, c, o])


def expected_weights(constants: Mapping[str, np.ndarray], layer: int = 0) -> dict[str, np.ndarray]:
    result = {}
    for d, end in zip(range(len(constants["W"])), ("", "_reverse"), strict=False):
        b_ih, b_hh = np.split(constants["B"][d], 2)
        parts = {"weight_ih": constants["W"][d], "weight_hh": constants["R"][d], "bias_ih": b_ih, "bias_hh": b_hh}
        result |= {f"{name}_l{layer}{end}": from_onnx_order(array) for name, array in parts.items()}
    return result


# ---- What exporters wrote ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_golden_file(file: str) -> None:
    assert scan(GOLDEN / file) == FILES[file]
    with np.load(GOLDEN / "onnx_expected.npz") as arrays:
        for info in FILES[file]:
            start = f"{file}|{info.name}|"
            expected = {key.removeprefix(start): arrays[key] for key in arrays.files if key.startswith(start)}
            assert_same_weights(read(onnx.load(GOLDEN / file), info.name), expected)


@pytest.mark.parametrize("file", ["model.onnx", "unfolded_9.onnx"])
def test_golden_file_is_run(file: str) -> None:
    """The first LSTM of the file, beside the model's own output of it."""
    whole = onnx.load(GOLDEN / file)
    last = [each.output[0] for each in whole.graph.node if each.op_type == "Reshape"][-1]
    whole.graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))
    x = numbers((6, 3, 3))
    output = run(whole, {"x": x})[-1]
    assert np.abs(load(GOLDEN / file, FILES[file][0].name)(x)[0] - output).max() < TOLERANCE


def test_silero_vad() -> None:
    """The weights are behind Slice, Concat and Unsqueeze in the branches of an If inside another; both branches share them."""
    if not SILERO.exists():
        pytest.skip("the file is not here")
    name = "/model/decoder/rnn/LSTM"
    assert scan(SILERO) == [LSTMInfo(name, 128, 128, 1, False, 0, True, "float32", False)]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(SILERO).graph.initializer}
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    expected = {f"{kind}_l0": tensors[f"model.decoder.rnn.{kind}"] for kind in kinds}
    for given in (None, name, "/model/decoder/rnn_1/LSTM"):
        assert_same_weights(load(SILERO, given).weights, expected)


# ---- The operator --------------------------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: np.logaddexp(0, x),
    "elu": lambda x, alpha: np.where(x >= 0, x, alpha * np.expm1(x)),
    "leaky_relu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
    "thresholded_relu": lambda x, alpha: np.where(x >= alpha, x, 0),
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "affine": lambda x, alpha, beta: alpha * x + beta,
}


def oracle(weights: Weights, x: np.ndarray, state: Any, lengths: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One layer by the equations of :class:`Cell`, in float64, row by row: output (T, B, D*H), h_n and c_n (D, B, H)."""
    T, B, _ = x.shape
    H = weights.hidden_size
    output = np.zeros((T, B, len(weights.layers), H))
    h_n, c_n = np.zeros((2, len(weights.layers), B, H))
    for d, w in enumerate(weights.layers):
        cell = w.cell
        gate, candidate, hidden = (
            lambda x, f=f: FUNCTIONS[f.name](x, *f.parameters) for f in (cell.gate, cell.candidate, cell.hidden)
        )
        p_i, p_f, p_o = np.split(np.zeros(3 * H) if w.weight_peephole is None else w.weight_peephole.astype(float), 3)
        bias = 0 if w.bias_ih is None else w.bias_ih.astype(float) + w.bias_hh
        bound = np.inf if cell.gate_clip is None else cell.gate_clip
        for b in range(B):
            h, c = (np.zeros(H) if s is None else s.astype(float) for s in (w.h_0, w.c_0))
            if state is not None:
                h, c = state[0][d, b].astype(float), state[1][d, b].astype(float)
            steps = range(T if lengths is None else lengths[b])
            for t in reversed(steps) if weights.reverse or d == 1 else steps:
                z = np.split(w.weight_ih.astype(float) @ x[t, b] + w.weight_hh.astype(float) @ h + bias, 4)
                i = gate(np.clip(z[0] + p_i * c, -bound, bound))
                f = 1 - i if cell.coupled == "forget" else gate(np.clip(z[1] + p_f * c, -bound, bound))
                c = f * c + i * candidate(np.clip(z[2], -bound, bound))
                h = gate(np.clip(z[3] + p_o * c, -bound, bound)) * hidden(c)
                output[t, b, d] = h
            h_n[d, b], c_n[d, b] = h, c
    return output.reshape(T, B, -1), h_n, c_n


def random_operator(rng: np.random.Generator) -> tuple[Any, dict[str, np.ndarray], Any, Any]:
    """A model of one node with any of ONNX's options; its inputs, the state among them or None, the lengths or None.

    A third has none that nn.LSTM does not have.
    """
    plain = rng.random() < 0.3

    def maybe(value: Any) -> Any:
        return value if rng.random() < 0.5 else None

    D, T, B = int(rng.integers(1, 3)), int(rng.integers(1, 7)), int(rng.integers(1, 4))
    inputs, hidden = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    direction = "bidirectional" if D == 2 else "forward" if plain else str(rng.choice(["forward", "reverse"]))
    shapes = {"W": (D, 4 * hidden, inputs), "R": (D, 4 * hidden, hidden), "B": maybe((D, 8 * hidden)), "P": maybe(None if plain else (D, 3 * hidden))}
    constants = {n: rng.uniform(-1, 1, s).astype(np.float32) / 2 for n, s in shapes.items() if s}
    feeds = {"X": rng.standard_normal((T, B, inputs)).astype(np.float32)}
    lengths = maybe(rng.integers(1, T + 1, B).astype(np.int32))
    if lengths is not None:
        feeds["sequence_lens"] = lengths
    state = None
    kind = 2 * rng.integers(2) if plain else rng.integers(3)
    if kind == 1:  # of the model itself, for every row
        rows = rng.uniform(-1, 1, (2, D, 1, hidden)).astype(np.float32).repeat(B, axis=2)
        constants |= {"initial_h": rows[0], "initial_c": rows[1]}
    elif kind == 2:
        state = tuple(rng.uniform(-1, 1, (2, D, B, hidden)).astype(np.float32))
        feeds |= {"initial_h": state[0], "initial_c": state[1]}
    options: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if not plain and rng.random() < 0.3:
        options["input_forget"] = 1
    if not plain and rng.random() < 0.3:
        options["clip"] = float(rng.uniform(0.1, 1))
    if not plain and rng.random() < 0.6:
        names = [str(name) for name in rng.choice(list(onnx_lstm.ACTIVATIONS), 3 * D)]
        options["activations"] = [name.upper() if rng.random() < 0.3 else name for name in names]
        ours = [onnx_lstm.ACTIVATIONS[name] for name in names]
        # Two have no defaults, and ONNX Runtime's for the third is 0, the standard's 1
        if rng.random() < 0.7 or {"affine", "scaled_tanh", "thresholded_relu"} & set(ours):
            for which, takers in (("alpha", onnx_lstm.TAKES_ALPHA), ("beta", onnx_lstm.TAKES_BOTH)):
                values = [float(rng.uniform(0.1, 0.9)) for name in ours if name in takers]
                options |= {f"activation_{which}": values} if values else {}
    every = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    names = [name if name in constants or name in feeds else "" for name in every]
    one = node(names, ["Y", "Y_h", "Y_c"], **options)
    return model(one, constants, opset=int(rng.choice([7, 14, 17])), outputs="Y Y_h Y_c"), feeds, state, lengths


@pytest.mark.parametrize("seed", range(4))
def test_random_operators(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plain = 0
    for number in range(200):
        one, feeds, state, lengths = random_operator(rng)
        Y, Y_h, Y_c = run(one, feeds)
        theirs = Y.transpose(0, 2, 1, 3).reshape(*Y.shape[::2][:1], Y.shape[2], -1), Y_h, Y_c
        weights = read(one)
        ours = oracle(weights, feeds["X"], state, lengths)
        scale = max(1.0, *(np.abs(each).max(initial=0) for each in theirs))
        assert_close(ours, theirs, TOLERANCE * scale, f"{seed} {number} {one.graph.node[0]}")
        if not weights.is_variant:
            plain += 1
            assert_close(flat(from_onnx(one)(feeds["X"], state, lengths=lengths)), theirs, TOLERANCE, number)
    assert plain > 40


def standard_cases() -> Iterator[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the standard makes the cases of all operators
        yield from collect_testcases("LSTM")


def test_the_standards_own_cases() -> None:
    """Each feeds the weights as inputs; here they become constants. They give some of the outputs."""
    cases = 0
    for case in standard_cases():
        ((inputs, outputs),) = case.data_sets
        one = onnx.ModelProto.FromString(case.model.SerializeToString())
        given = dict(zip((value.name for value in one.graph.input), inputs, strict=True))
        keep = [value for value in one.graph.input if value.name in ("X", "sequence_lens")]
        constants = [name for name in given if name not in ("X", "sequence_lens")]
        one.graph.initializer.extend(numpy_helper.from_array(given[name], name) for name in constants)
        del one.graph.input[:]
        one.graph.input.extend(keep)
        found = onnx_file.find_live(one).choose(None)
        x = given["X"].swapaxes(0, 1) if found.info.batch_first else given["X"]
        lengths = given.get("sequence_lens")
        output, h_n, c_n = oracle(found.read(), x, None, None if lengths is None else lengths.astype(int))
        D = len(h_n)
        Y = output.reshape(*output.shape[:2], D, -1).transpose(0, 2, 1, 3)
        ours = {"Y": Y, "Y_h": h_n, "Y_c": c_n}
        if found.info.batch_first:
            ours = {"Y": Y.transpose(2, 0, 1, 3), "Y_h": h_n.swapaxes(0, 1), "Y_c": c_n.swapaxes(0, 1)}
        for value, expected in zip(one.graph.output, outputs, strict=True):
            np.testing.assert_allclose(ours[value.name], expected, rtol=0, atol=TOLERANCE, err_msg=case.name)
        cases += 1
    assert cases >= 4
