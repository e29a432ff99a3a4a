"""ONNX models read without a runtime: the numbers are ONNX Runtime's and the standard's own, what is not understood is refused.

The golden files are made by ``golden/make_onnx.py`` and ``golden/make_onnx_dynamo.py`` with PyTorch's two exporters.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_close, flat, import_torch, refused, required

import fastlstm
from fastlstm import FormatError, Weights
from fastlstm.cell import SIGMOID, TANH, Activation, Cell
from fastlstm.loaders import LSTMInfo, from_onnx, load, load_model, scan
from fastlstm.weights import parameter_shapes

onnx = required("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fastlstm.loaders.onnx import constants as onnx_constants  # noqa: E402
from fastlstm.loaders.onnx import file as onnx_file  # noqa: E402
from fastlstm.loaders.onnx import lstm as onnx_lstm  # noqa: E402
from fastlstm.loaders.onnx.export import onnx_model  # noqa: E402
from fastlstm.loaders.onnx.folding import FOLDING  # noqa: E402
from fastlstm.loaders.onnx.graph import scopes  # noqa: E402

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
    "dynamo.onnx": [LSTMInfo("node_LSTM_115", 3, 5, 3, True, 0, True, "float32", False)],
    "dynamo_fixed.onnx": [LSTMInfo("node_LSTM_42", 3, 5, 2, False, 0, False, "float32", False)],
    "dynamo_learned.onnx": [LSTMInfo("node_LSTM_64", 3, 5, 2, False, 0, True, "float32", False)],
}


def read(model: Any, name: str | None = None) -> Weights:
    """The weights of an LSTM in a live model, those of variants too."""
    found = onnx_file.find_live(model).choose(name)
    assert found.read is not None
    return found.read()


def run(model: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs by ONNX Runtime, which says nothing about what it removes."""
    runtime = required("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(inputs)))


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
    with np.load(GOLDEN / f"onnx{'_dynamo' * file.startswith('dynamo')}_expected.npz") as arrays:
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


@pytest.mark.parametrize(
    ("file", "shape"), [("dynamo.onnx", (5, 7, 3)), ("dynamo_fixed.onnx", (4, 2, 3)), ("dynamo_learned.onnx", (4, 7, 3))]
)
def test_golden_file_of_the_second_exporter_is_run(file: str, shape: Sequence[int]) -> None:
    """Beside its own output; with more rows and steps than it was exported with, where it says that they are free."""
    x = numbers(shape)
    output, *_ = run(onnx.load(GOLDEN / file), {"x" if file == "dynamo_learned.onnx" else "input": x})
    lstm = load(GOLDEN / file, batch_first=file == "dynamo.onnx")
    assert np.abs(lstm(x)[0] - output).max() < TOLERANCE


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


def test_silero_vad_in_two_formats(tmp_path: Path) -> None:
    """Published once as safetensors and once, trained on, as ONNX: with the same weights both files give the same bits."""
    tensors_file = SILERO.with_name("silero_vad_16k.safetensors")
    if not SILERO.exists() or not tensors_file.exists():
        pytest.skip("the files are not here")
    lstm = load(tensors_file, "lstm_cell")
    model, given = onnx.load(SILERO), lstm.state_dict()
    for tensor in model.graph.initializer:
        if tensor.name.startswith("model.decoder.rnn."):
            kind = tensor.name.removeprefix("model.decoder.rnn.")
            tensor.CopyFrom(numpy_helper.from_array(given[f"{kind}_l0"], tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((40, 3, 128)).astype(np.float32)
    (output, state), (expected, expected_state) = load(tmp_path / "model.onnx")(x), lstm(x)
    for ours, theirs in zip((output, *state), (expected, *expected_state), strict=True):
        assert ours.tobytes() == theirs.tobytes()


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
    shapes = {
        "W": (D, 4 * hidden, inputs),
        "R": (D, 4 * hidden, hidden),
        "B": maybe((D, 8 * hidden)),
        "P": maybe(None if plain else (D, 3 * hidden)),
    }
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
    for number in range(200):
        one, feeds, state, lengths = random_operator(rng)
        Y, Y_h, Y_c = run(one, feeds)
        theirs = Y.transpose(0, 2, 1, 3).reshape(*Y.shape[::2][:1], Y.shape[2], -1), Y_h, Y_c
        weights = read(one)
        ours = oracle(weights, feeds["X"], state, lengths)
        scale = max(1.0, *(np.abs(each).max(initial=0) for each in theirs))
        assert_close(ours, theirs, TOLERANCE * scale, f"{seed} {number} {one.graph.node[0]}")
        assert_close(flat(from_onnx(one)(feeds["X"], state, lengths=lengths)), theirs, TOLERANCE * scale, number)


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


def test_layout_1_is_batch_first() -> None:
    assert from_onnx(model(node(layout=1))).batch_first
    assert not from_onnx(model(node(layout=0))).batch_first
    assert not from_onnx(model(node(layout=1)), batch_first=False).batch_first
    rows = {"initial_h": np.ones((5, 1, H), np.float32), "initial_c": np.zeros((5, 1, H), np.float32)}
    weights = read(model(node(["X", "W", "R", "B", "", "initial_h", "initial_c"], layout=1), tensors() | rows))
    assert weights.layers[0].h_0 is not None
    assert (weights.layers[0].h_0 == 1).all()


def test_zero_states_are_none() -> None:
    zeros = {name: np.zeros((1, 2, H), np.float32) for name in ("initial_h", "initial_c")}
    assert not read(model(node(["X", "W", "R", "B", "", *zeros]), tensors() | zeros)).is_variant


def test_states_of_the_model() -> None:
    """A constant for one row, spread over those of the batch when it is known; others are the caller's to give."""
    row = numbers((1, 1, H))
    states = ["X", "W", "R", "B", "", "h", "h"]
    spread = model([step("Expand", "row", "shape", "h"), node(states)], tensors() | {"row": row})
    assert (read(spread).layers[0].h_0, read(spread).layers[0].c_0) == (pytest.approx(row[0, 0]), pytest.approx(row[0, 0]))
    graph = helper.make_graph([], "empty", [], [])
    choice = helper.make_node("If", ["yes"], ["h"], then_branch=graph, else_branch=graph)
    for before in (step("Expand", "S", "shape", "h"), step("Relu", "S", "h"), choice):
        assert not read(model([before, node(states)])).is_variant
    refused(
        lambda: read(model([choice, node(states)], tensors() | {"yes": np.array([1])})),
        "'If' node 'h'",
        "make the state an input",
    )


def test_dynamic_quantization() -> None:
    """The integers are multiplied out; ONNX Runtime rounds the inputs too, so only the formula can be compared."""
    rng = np.random.default_rng(0)
    for kind, per_channel, D in ((np.int8, True, 2), (np.uint8, False, 1), (np.int8, False, 2)):
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        constants, floats = {}, {}
        for name, columns in (("W", I), ("R", H)):
            # Seven bits: its sums of two products saturate at 16 where a processor has no VNNI
            stored = rng.integers(low // 2, high // 2 + 1, (D, columns, 4 * H)).astype(kind)
            shape = (D, 4 * H) if per_channel else (D,)
            scale = rng.uniform(0.001, 0.01, shape).astype(np.float32)
            zero = np.zeros(shape, kind) if per_channel else rng.integers(low, high + 1, shape).astype(kind)
            constants |= {name: stored, f"{name}_scale": scale, f"{name}_zero_point": zero}
            spread = (D, 1, -1)
            exact = (stored.astype(np.float32) - zero.reshape(spread).astype(np.float32)) * scale.reshape(spread)
            floats[name] = exact.transpose(0, 2, 1)
        floats["B"] = constants["B"] = numbers((D, 8 * H))
        inputs = ["X", "W", "R", "B", "", "", "", "", "W_scale", "W_zero_point", "R_scale", "R_zero_point"]
        direction = "bidirectional" if D == 2 else "forward"
        one = model(node(inputs, op_type="DynamicQuantizeLSTM", domain="com.microsoft", direction=direction), constants)
        assert onnx_file.find_live(one).infos()[0].dtype == kind.__name__
        assert_same_weights(read(one), expected_weights(floats))
        x = numbers((5, 2, I))
        output = run(one, {"X": x})[0].transpose(0, 2, 1, 3).reshape(5, 2, -1)
        assert np.abs(from_onnx(one)(x)[0] - output).max() < 0.05


def test_other_types() -> None:
    values = {name: array.astype(np.float16).astype(np.float32) for name, array in tensors().items()}
    for kind in ("FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT"):
        number = getattr(TensorProto, kind)
        constants = {}
        for name, array in values.items():
            exact = (array.view(np.uint32) & 0xFFFF0000).view(np.float32) if kind == "BFLOAT16" else array
            values[name] = exact
            constants[name] = helper.make_tensor(name, number, exact.shape, exact.ravel())
        weights = read(model(constants=constants))
        assert weights.dtype == (np.float64 if kind == "DOUBLE" else np.float32)
        expected = {name: array.astype(weights.dtype) for name, array in expected_weights(values).items()}
        assert_same_weights(weights, expected)


# ---- Constants -----------------------------------------------------------------------------------------------------------------

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ROWS = np.arange(3, dtype=np.float32).reshape(3, 1)

# operator set, operator, inputs, attributes
CHAINS: list[tuple[int, str, tuple[Any, ...], dict[str, Any]]] = [
    (17, "Identity", (X,), {}),
    (17, "Transpose", (X,), {}),
    (17, "Transpose", (X,), {"perm": [1, 2, 0]}),
    (17, "Reshape", (X, [4, -1]), {}),
    (17, "Reshape", (X, [0, 0, 2, -1]), {}),
    (17, "Reshape", (X[:0], [0, 5]), {"allowzero": 1}),
    (17, "Squeeze", (X[:1], [0]), {}),
    (17, "Squeeze", (X[:1, :, :1],), {}),
    (11, "Squeeze", (X[:1],), {"axes": [0]}),
    (17, "Unsqueeze", (X, [0, -1]), {}),
    (11, "Unsqueeze", (X,), {"axes": [1, 3]}),
    (9, "Slice", (X,), {"starts": [1, -3], "ends": [3, 2**31], "axes": [1, 2]}),
    (17, "Slice", (X, [3, 0], [-9, 9], [2, 0], [-2, 1]), {}),
    (17, "Slice", (X, [-1], [-(2**40)], [-1], [-1]), {}),
    (17, "Slice", (X, [1], [1]), {}),
    (17, "Concat", (X, X[:, :1], X), {"axis": 1}),
    (17, "Concat", (X, X), {"axis": -3}),
    (17, "Gather", (X, [[2, 0], [-1, 1]]), {"axis": 1}),
    (17, "Gather", (X, 1), {}),
    (17, "Split", (X,), {"axis": 2}),
    (17, "Split", (X, [1, 3]), {"axis": 2}),
    (11, "Split", (X,), {"axis": -1, "split": [3, 1]}),
    (18, "Split", (X,), {"axis": 1, "num_outputs": 2}),
    (17, "Expand", (ROWS, [2, 1, 4]), {}),
    (17, "Add", (X, ROWS), {}),
    (17, "Sub", (ROWS, X), {}),
    (17, "Mul", (X, X[0]), {}),
    (17, "Div", (X, X), {}),
    (17, "Add", (np.array([1, 2]), np.array([3, 4])), {}),
    (17, "Cast", (X,), {"to": TensorProto.FLOAT16}),
    (17, "Cast", (X.astype(np.float16),), {"to": TensorProto.DOUBLE}),
    (17, "Cast", (np.arange(4, dtype=np.int8),), {"to": TensorProto.FLOAT}),
    (17, "Constant", (), {"value": numpy_helper.from_array(X)}),
    (17, "Constant", (), {"value_floats": [1.0, 2.5]}),
    (17, "Constant", (), {"value_int": 7}),
    (17, "ConstantOfShape", ([2, 3],), {}),
    (17, "ConstantOfShape", ([2, 3],), {"value": numpy_helper.from_array(np.array([2.5]))}),
    (17, "DequantizeLinear", (X.astype(np.int8), np.float32(0.5), np.int8(3)), {}),
    (17, "DequantizeLinear", (X.astype(np.uint8), ROWS[:, 0] + 1, np.uint8([1, 2, 3])), {"axis": 1}),
    (17, "DequantizeLinear", (X.astype(np.uint8), np.float32(0.5)), {}),
]


@pytest.mark.parametrize(("opset", "operator", "inputs", "attributes"), CHAINS)
def test_operator_beside_onnx_runtime(opset: int, operator: str, inputs: Any, attributes: Any) -> None:
    """Each output of the operator: of constants here, of inputs there."""
    names = [f"in{index}" for index in range(len(inputs))]
    arrays = [np.asarray(value, np.int64 if isinstance(value, (list, int)) else None) for value in inputs]
    outputs = ["out0", "out1"] if operator == "Split" else ["out0"]
    one = helper.make_node(operator, names, outputs, **attributes)
    constants = dict(zip(names, arrays, strict=True))
    opsets, kinds = [helper.make_opsetid("", opset)], [helper.np_dtype_to_tensor_dtype(array.dtype) for array in arrays]
    values = [helper.make_tensor_value_info(*pair, array.shape) for *pair, array in zip(names, kinds, arrays, strict=True)]
    free = [helper.make_empty_tensor_value_info(name) for name in outputs]
    theirs = run(helper.make_model(helper.make_graph([one], "g", values, free), opset_imports=opsets, ir_version=8), constants)
    ((scope,), known) = (scopes(model(one, constants).graph), onnx_constants.Constants(FOLDING))
    for name, expected in zip(outputs, theirs, strict=True):
        value = known.get(scope, name)
        array = onnx_constants.read(value, 1 << 20)
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype.name)
        np.testing.assert_array_equal(array, expected, strict=True)


def test_equal_chains_are_one_value() -> None:
    nodes = [helper.make_node("Transpose", ["x"], [name], perm=[1, 0]) for name in "ab"]
    nodes += [helper.make_node("Unsqueeze", [name, f"axis_{name}"], [name * 2]) for name in "ab"]
    (scope,) = scopes(model(nodes, {"x": ROWS, "axis_a": [0], "axis_b": [0]}).graph)
    known = onnx_constants.Constants(FOLDING)
    assert known.get(scope, "aa") is known.get(scope, "bb")
    assert known.get(scope, "a") is not known.get(scope, "aa")


def test_subgraphs_see_the_names_around_them() -> None:
    """An LSTM in a branch in a branch: W is outside, R at its side, B a Constant between them."""
    constants = tensors()
    for branch in ("then", "else"):
        inner = helper.make_graph([node(name=branch)], "inner", [], [], [numpy_helper.from_array(constants["R"], "R")])
        bias = helper.make_node("Constant", [], ["B"], value=numpy_helper.from_array(constants["B"]))
        empty = helper.make_graph([], "empty", [], [])
        middle = [bias, helper.make_node("If", ["x"], ["Y"], "inside", then_branch=inner, else_branch=empty)]
        outer = helper.make_graph(middle, "middle", [], [])
        one = model(helper.make_node("If", ["x"], ["Y"], "If", then_branch=outer, else_branch=outer), {"W": constants["W"]})
        assert_same_weights(read(one), expected_weights(constants))
        long = f"If.else_branch.inside.then_branch.{branch}"
        assert onnx_file.find_live(one).choose(long).name == branch  # the same weights: the same network


# ---- Networks of several nodes -------------------------------------------------------------------------------------------------


def stacked(
    between: Sequence[Any], second: Mapping[str, Any] = {}, D: int = 1, names: Sequence[str] = ("a", "b"), **more: Any
) -> Any:
    """Two nodes, and what is between Y and X2."""
    constants = tensors(D) | {f"{name}2": array for name, array in tensors(D, D * H, seed=1).items()}
    constants |= {"folded": np.array([0, 0, -1]), "axis": np.array([1])}
    options = {"direction": "bidirectional" if D == 2 else "forward", **more}
    first = node(name=names[0], **options)
    last = node(["X2", "W2", "R2", "B2"], ["Z"], **{"name": names[1], **options, **second})
    return model([first, *between, last], constants, outputs="Z"), constants


def step(operator: str, *names: str, **attributes: Any) -> Any:
    return helper.make_node(operator, names[:-1], names[-1:], **attributes)


FOLDED = [step("Transpose", "Y", "t", perm=[0, 2, 1, 3]), step("Reshape", "t", "folded", "X2")]
SQUEEZED = [step("Squeeze", "Y", "axis", "X2")]
KERAS = [  # batch first and back
    step("Transpose", "Y", "t", perm=[2, 0, 1, 3]),
    step("Reshape", "t", "folded", "u"),
    step("Transpose", "u", "X2", perm=[1, 0, 2]),
]


@pytest.mark.parametrize(
    ("between", "D"),
    [
        (FOLDED, 2),
        (FOLDED, 1),
        (SQUEEZED, 1),
        (KERAS, 2),
        ([*FOLDED[:1], step("Reshape", "t", "folded", "u"), step("Identity", "u", "v"), step("Dropout", "v", "X2")], 2),
    ],
)
@pytest.mark.parametrize("layout", [0, 1])
def test_nodes_of_one_network(between: Sequence[Any], D: int, layout: int) -> None:
    if layout == 1:
        if between is not FOLDED:
            pytest.skip("other axes")
        between = [step("Reshape", "Y", "folded", "X2")]
    one, constants = stacked(between, D=D, layout=layout)
    assert onnx_file.find_live(one).infos() == [LSTMInfo("a", I, H, 2, D == 2, 0, True, "float32", layout == 1)]
    second = {name: constants[f"{name}2"] for name in "WRB"}
    assert_same_weights(read(one), expected_weights(constants) | expected_weights(second, 1))
    assert_same_weights(read(one, "b"), expected_weights(second))  # asked for by name, a layer comes alone
    if layout == 0:
        x = numbers((5, 3, I))
        output = run(one, {"X": x})[0].transpose(0, 2, 1, 3).reshape(5, 3, -1)
        assert np.abs(from_onnx(one)(x)[0] - output).max() < TOLERANCE


@pytest.mark.parametrize(
    "apart",
    [
        lambda: stacked([step("Relu", "Y", "u"), step("Squeeze", "u", "axis", "X2")]),
        lambda: stacked([*SQUEEZED, step("Identity", "X2", "other")]),
        lambda: stacked([step("Transpose", "Y", "t", perm=[1, 0, 2, 3]), step("Reshape", "t", "folded", "X2")]),
        lambda: stacked([step("Reshape", "Y", "folded", "X2")]),
        lambda: stacked([step("Squeeze", "Y", "X2")]),
        lambda: stacked(SQUEEZED, {"direction": "reverse"}),
        lambda: stacked(SQUEEZED, names=("/a/LSTM", "/b/LSTM")),
    ],
)
def test_nodes_that_are_apart(apart: Callable[[], Any]) -> None:
    one, _ = apart()
    assert len(onnx_file.find_live(one).infos()) == 2


def sized(*parts: Any, sizes: Mapping[str, Any] = {}, D: int = 2, shape: Sequence[Any] = ("T", "B", I), **more: Any) -> Any:
    """Two nodes joined by a Reshape to ``shape``, made by these nodes; ``X`` has a shape, too."""
    between = [step("Transpose", "Y", "t", perm=[0, 2, 1, 3]), *parts, step("Reshape", "t", "shape", "X2", **more)]
    one, _ = stacked(between, D=D)
    x = next(value for value in one.graph.input if value.name == "X")
    x.CopyFrom(helper.make_tensor_value_info("X", TensorProto.FLOAT, shape))
    numbers = {"0": [0], "1": [1], "2": [2], "3": [3], "4": [4], "-1": [-1], "one": 1, "8": [8], "shape": [0, 0, -1], **sizes}
    made = {name for part in parts for name in part.output}
    for name, value in numbers.items():
        if name not in made:
            one.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    del one.graph.input[1:]
    return one


def concat(*names: str) -> Any:
    return step("Concat", *names, "shape", axis=0)


def cut(start: str, end: str, result: str, source: str = "s") -> Any:
    return step("Slice", source, start, end, result)


AS_EXPORTED = (
    step("Shape", "t", "s", start=0),
    cut("0", "1", "steps"),
    cut("1", "2", "rows"),
    cut("2", "3", "ways"),
    cut("3", "4", "units"),
    step("Mul", "ways", "units", "both"),
    step("Reshape", "both", "-1", "last"),
    concat("steps", "rows", "last"),
)
GATHERED = (
    step("Shape", "X", "s"),
    step("Gather", "s", "one", "b"),
    step("Unsqueeze", "b", "0", "rows"),
    concat("0", "rows", "-1"),
)
JOINED: dict[str, Callable[[], Any]] = {
    "all at run time": lambda: sized(*AS_EXPORTED),
    "all at run time, one direction": lambda: sized(*AS_EXPORTED, D=1),
    "the size of another tensor": lambda: sized(*GATHERED),
    "numbers": lambda: sized(shape=(5, 3, I), sizes={"shape": [5, 3, 8]}),
    "steps follow": lambda: sized(shape=("T", 3, I), sizes={"shape": [-1, 3, 8]}),
    "rows follow": lambda: sized(shape=(5, "B", I), sizes={"shape": [5, -1, 8]}, allowzero=1),
    "features follow": lambda: sized(sizes={"shape": [0, 0, -1]}),
    "rows must be as many": lambda: sized(sizes={"shape": [0, 3, 8]}),
    "of the state": lambda: with_state(sized(shape=("T", "B", I), sizes={"shape": [-1, 3, 8]}), 3),
    "one direction, without a Transpose": lambda: untransposed(sized(D=1, shape=(5, 3, I), sizes={"shape": [5, 3, 4]})),
    "steps copied, without a Transpose": lambda: untransposed(sized(D=1, shape=("T", 3, I), sizes={"shape": [0, 3, 4]})),
}
APART: dict[str, Callable[[], Any]] = {
    "steps and rows change places": lambda: sized(*AS_EXPORTED[:-1], concat("rows", "steps", "last")),
    "other numbers": lambda: sized(shape=(5, 3, I), sizes={"shape": [3, 5, 8]}),
    "numbers for free axes": lambda: sized(sizes={"shape": [5, 3, 8]}),
    "steps and rows unknown": lambda: sized(sizes={"shape": [-1, 3, 8]}),
    "another size for rows": lambda: sized(step("Shape", "t", "s"), cut("2", "3", "ways"), concat("0", "ways", "-1")),
    "features and rows": lambda: sized(sizes={"shape": [0, -1, 4]}),
    "two directions, without a Transpose": lambda: untransposed(sized(shape=(5, 3, I), sizes={"shape": [5, 3, 8]})),
    "a direction copied for rows": lambda: untransposed(sized(D=1, sizes={"shape": [-1, 0, 4]})),
    "features that do not fit": lambda: sized(sizes={"shape": [0, 0, 4]}),
    "zero is zero": lambda: sized(sizes={"shape": [0, 0, -1]}, allowzero=1),
    "twice the rows": lambda: sized(
        step("Shape", "t", "s"), cut("1", "2", "b"), step("Mul", "b", "2", "rows"), concat("-1", "rows", "8")
    ),
    "of another tensor": lambda: sized(step("Shape", "other", "s"), *AS_EXPORTED[1:]),
    "given at run time": lambda: sized(step("Identity", "other", "shape")),
    "four sizes": lambda: sized(sizes={"shape": [0, 0, 2, 4]}),
    "rows by rows": lambda: sized(
        step("Shape", "t", "s"), cut("1", "2", "b"), step("Mul", "b", "b", "rows"), concat("-1", "rows", "8")
    ),
    "its own size": lambda: sized(step("Shape", "X2", "s"), *AS_EXPORTED[1:]),
    "what makes itself": lambda: sized(step("Mul", "m", "2", "n"), step("Mul", "n", "2", "m"), concat("0", "m", "8")),
    "an enormous number": lambda: sized(
        *(step("Mul", f"n{k}", f"n{k}", f"n{k + 1}") for k in range(60)), concat("0", "n60", "8"), sizes={"n0": [3]}
    ),
}


def untransposed(one: Any) -> Any:
    """Y goes into the Reshape as it is."""
    del one.graph.node[1]
    next(each for each in one.graph.node if each.op_type == "Reshape").input[0] = "Y"
    return one


def with_state(one: Any, rows: int) -> Any:
    """A state of zeros for so many rows in the first node."""
    one.graph.initializer.append(numpy_helper.from_array(np.zeros((2, rows, H), np.float32), "h"))
    first = next(each for each in one.graph.node if each.name == "a")
    first.input.extend(["", "h", "h"])
    return one


@pytest.mark.parametrize("case", JOINED)
def test_sizes_of_run_time_that_join_layers(case: str) -> None:
    one = JOINED[case]()
    assert [info.num_layers for info in onnx_file.find_live(one).infos()] == [2]
    x = numbers((5, 3, I))
    output = run(one, {"X": x})[0].transpose(0, 2, 1, 3).reshape(5, 3, -1)
    assert np.abs(from_onnx(one)(x)[0] - output).max() < TOLERANCE


def test_the_sizes_of_an_embedding_join_layers() -> None:
    one = sized(shape=(5, 3), sizes={"shape": [5, 3, 8]})
    one.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    next(each for each in one.graph.node if each.name == "a").input[0] = "embedded"
    one.graph.initializer.append(numpy_helper.from_array(numbers((7, I)), "words"))
    one.graph.node.insert(0, step("Gather", "words", "X", "embedded"))
    assert [info.num_layers for info in onnx_file.find_live(one).infos()] == [2]


@pytest.mark.parametrize("case", APART)
def test_sizes_of_run_time_that_do_not(case: str) -> None:
    assert len(onnx_file.find_live(APART[case]()).infos()) == 2


def test_modules_are_told_by_metadata() -> None:
    for modules, layers in ((("['', 'a', 'lstm']", "['', 'b', 'lstm']"), [1, 1]), (("['', 'a', 'lstm']",) * 2, [2])):
        one = sized(*AS_EXPORTED)
        for each, text in zip((node for node in one.graph.node if node.op_type == "LSTM"), modules, strict=True):
            each.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=text)
        assert [info.num_layers for info in onnx_file.find_live(one).infos()] == layers


# How a state for every row is made of h, (layers * D, 1, H), and of row, (H,); the batch is n, its sizes (layers * D, n, H)
STATES: dict[str, Any] = {
    "Expand": [step("Expand", "h", "sizes", "s")],
    "Tile": [step("Concat", "1", "n", "1", "times", axis=0), step("Tile", "h", "times", "s")],
    "Tile and arithmetic": [
        step("Concat", "1", "n", "1", "times", axis=0),
        step("Tile", "h", "times", "many"),
        step("Mul", "many", "h", "square"),
        step("Neg", "square", "s"),
    ],
    "a number": [step("ConstantOfShape", "sizes", "zeros"), step("Add", "zeros", "half", "s")],
    "a number for each unit": [step("ConstantOfShape", "sizes", "zeros"), step("Sub", "row", "zeros", "s")],
    "rows in front": [
        step("Transpose", "h", "h1", perm=[1, 0, 2]),
        step("Concat", "n", "1", "1", "times", axis=0),
        step("Tile", "h1", "times", "many"),
        step("Transpose", "many", "s", perm=[1, 0, 2]),
    ],
    "two dimensions": [
        step("Squeeze", "h", "1", "h1"),
        step("Gather", "h1", "0", "both", axis=0),
        step("Concat", "n", "1", "times", axis=0),
        step("Tile", "both", "times", "many"),
        step("Unsqueeze", "many", "0", "one"),
        step("Concat", "one", "one", "s", axis=0),
    ],
    "a Reshape": [
        step("Reshape", "h", "flat", "h1"),
        step("Concat", "n", "1", "times", axis=0),
        step("Tile", "h1", "times", "many"),
        step("Concat", "n", "2", "-1", "three", axis=0),
        step("Reshape", "many", "three", "turned"),
        step("Transpose", "turned", "s", perm=[1, 0, 2]),
    ],
    "parts": [
        step("Expand", "h", "sizes", "all"),
        helper.make_node("Split", ["all"], ["a", "b"], axis=2),
        step("Where", "yes", "b", "a", "c"),
        step("Concat", "c", "a", "s", axis=-1),
    ],
    "a number for both directions, as tf2onnx spreads it": [
        step("Cast", "n", "n32", to=TensorProto.INT32),
        step("Cast", "n32", "n64", to=TensorProto.INT64),
        step("Concat", "n64", "H", "rows", axis=0),
        step("Expand", "half", "rows", "one"),
        step("Unsqueeze", "one", "0", "part"),
        step("Concat", "part", "part", "s", axis=0),
    ],
    "sizes of a tensor that nobody knows": [
        step("Custom", "X", "any"),
        step("Shape", "any", "all", start=1, end=2),
        step("Mul", "all", "all", "same"),
        step("Concat", "2", "same", "H", "any_sizes", axis=0),
        step("Expand", "h", "any_sizes", "s"),
    ],
    "one number, of a shape that nobody knows": [
        step("Custom", "X", "any"),
        step("Shape", "any", "all"),
        step("ConstantOfShape", "all", "zeros"),
        step("Add", "half", "zeros", "many"),
        step("Slice", "many", "0", "1", "0", "some"),
        step("Concat", "some", "some", "s", axis=0),
    ],
}


def with_states(nodes: Sequence[Any], layers: int = 1) -> Any:
    """Nodes that make a state ``s`` for an LSTM of two directions."""
    numbers_of = {"0": 0, "1": 1, "2": 2, "-1": -1, "H": H, "LD": 2 * layers}
    constants: dict[str, Any] = tensors(2) | {name: np.array([n]) for name, n in numbers_of.items()}
    constants |= {"h": numbers((2, 1, H)), "row": numbers((H,)), "half": np.float32(0.5), "yes": np.array([True])}
    constants |= {"flat": np.array([1, -1])}
    parts = [
        step("Shape", "X", "n", start=1, end=2),
        step("Concat", "LD", "n", "H", "sizes", axis=0),
        *nodes,
        node(["X", "W", "R", "B", "", "s", "s"], direction="bidirectional"),
    ]
    made = model(parts, constants)
    made.graph.input[0].CopyFrom(helper.make_tensor_value_info("X", TensorProto.FLOAT, ("T", "B", I)))
    return made


@pytest.mark.parametrize("case", STATES)
def test_a_state_of_the_models_own(case: str) -> None:
    """However a graph repeats it for as many rows as there are."""
    one = with_states(STATES[case])
    if "nobody" in case:  # an operator that no runtime has
        expected = np.full((2, H), 0.5) if "number" in case else numbers((2, 1, H))[:, 0]
        assert [record.h_0.tolist() for record in read(one).layers] == expected.tolist()
        return
    lstm, x = from_onnx(one), numbers((5, 3, I))
    assert lstm.weights.is_variant
    for rows in (1, 3):
        (Y,) = run(one, {"X": x[:, :rows]})
        assert np.abs(lstm(x[:, :rows])[0] - Y.transpose(0, 2, 1, 3).reshape(5, rows, -1)).max() < TOLERANCE


# The same for states that are refused: parts of the message
UNLIKE: dict[str, tuple[Any, str]] = {
    "numbered": ([step("Shape", "X", "n1"), step("Range", "0", "n", "1", "s")], "'Range' node 's'"),
    "a sum over the rows": ([step("Expand", "h", "sizes", "e"), step("ReduceSum", "e", "1", "s")], "'ReduceSum' node 's'"),
    "another axis": (
        [step("Concat", "1", "1", "n", "t", axis=0), step("Tile", "half3", "t", "s")],
        "repeated along axis 2; the rows are axis 1",
    ),
    "two axes": (
        [step("Concat", "n", "n", "1", "t", axis=0), step("Expand", "row", "t", "s")],
        "more than one of its sizes",
    ),
    "two axes in turn": (
        [
            step("Concat", "1", "n", "1", "t", axis=0),
            step("Tile", "h", "t", "e"),
            step("Transpose", "e", "e1", perm=[1, 0, 2]),
            step("Add", "e", "e1", "s"),
        ],
        "repeated along several axes",
    ),
    "rows go apart": (
        [step("Expand", "h", "sizes", "e"), step("Concat", "n", "2", "H", "t", axis=0), step("Reshape", "e", "t", "s")],
        "in which rows go apart",
    ),
    "rows put together": (
        [step("Expand", "h", "sizes", "e"), step("Concat", "e", "e", "s", axis=1)],
        "along the axis of the rows",
    ),
    "rows taken by number": ([step("Expand", "h", "sizes", "e"), step("Gather", "e", "0", "s", axis=1)], "axis of the rows"),
    "no axis of rows": ([step("Expand", "h", "sizes", "e"), step("Squeeze", "e", "s")], "takes the axis of the rows away"),
    "another size": ([step("Tile", "row", "n", "s")], "repeated along axis 0"),
    "sizes from nowhere": (
        [
            step("Gather", "n", "", "m"),
            step("ConstantOfShape", "m", "e"),
            step("Squeeze", "e", "1", "f"),
            step("Range", "f", "s"),
        ],
        "'Range' node 's'",
    ),
    "nothing": ([step("Transpose", "", "s")], "'Transpose' node 's': an input is missing"),
    "one input of two": ([step("Expand", "h", "sizes", "e"), step("Add", "e", "s")], "input 1 is missing"),
    "nothing at all": ([step("Transpose", "s")], "'Transpose' node 's': an input is missing"),
    "nothing of nothing": ([step("Concat", "s", axis=0)], "'Concat' node 's': an input is missing"),
    "itself": ([step("Expand", "t", "sizes", "s"), step("Neg", "s", "t")], "needs itself"),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_a_state_that_rows_may_not_share(case: str) -> None:
    """It depends on nothing that a caller gives, so to begin with zeros would be wrong."""
    nodes, part = UNLIKE[case]
    one = with_states(nodes)
    one.graph.initializer.append(numpy_helper.from_array(numbers((2, 1, 1)), "half3"))
    refused(lambda: from_onnx(one), "because of its initial_h", part)


def test_many_states_that_depend_on_each_other() -> None:
    """Each node is looked at once, however many ways lead to it."""
    more = [step("Add", f"h{n}", f"h{n}", f"h{n + 1}") for n in range(40)]
    start = time.thread_time()
    assert from_onnx(with_states([step("Expand", "h", "sizes", "h0"), *more, step("Identity", "h40", "s")])).weights.is_variant
    many = [step("Add", f"h{n}", f"h{n}", f"h{n + 1}") for n in range(3000)]
    deep = with_states([step("Expand", "h", "sizes", "h0"), *many, step("Identity", "h3000", "s")])
    refused(lambda: from_onnx(deep), "more than 64 operators")
    given = with_states([step("Relu", "S", "h0"), *many, step("Identity", "h3000", "s")])
    assert not from_onnx(given).weights.is_variant
    assert time.thread_time() - start < 2


@pytest.mark.parametrize("kind", ["repeat", "expand", "number", "one of each", "random"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_states_of_an_exported_module(kind: str, dynamo: bool, dynamic: bool, tmp_path: Path) -> None:
    """Two layers of two directions that learned where to begin."""
    torch = import_torch()
    if dynamo:
        required("onnxscript")
    torch.manual_seed(0)

    class Module(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(I, H, 2, bidirectional=True, batch_first=True)
            self.h, self.c = (torch.nn.Parameter(torch.randn(4, 1, H)) for _ in range(2))

        def forward(self, x: Any) -> Any:
            n = x.size(0)
            if kind == "repeat":
                state = self.h.repeat(1, n, 1), self.c.repeat(1, n, 1)
            elif kind == "expand":
                state = self.h.expand(-1, n, -1).contiguous(), self.c.expand(4, n, H).contiguous()
            elif kind == "number":
                state = torch.zeros(4, n, H) + 1, torch.ones(4, n, H) / 2
            elif kind == "one of each":
                state = self.h.expand(4, n, H).contiguous(), self.c.repeat(1, n, 1)
            else:
                state = torch.randn(4, n, H), torch.randn(4, n, H)
            return self.lstm(x, state)[0]

    module = Module().eval()
    x = torch.randn(3, 5, I)
    more: dict[str, Any] = {"external_data": False} if dynamo else {"opset_version": 17}
    if dynamic:
        more |= {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)} if dynamo else {"dynamic_axes": {"x": {0: "B"}}}
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=dynamo, input_names=["x"], verbose=False, **more)
    lstm = load(path, batch_first=True)
    assert (lstm.weights.num_layers, lstm.weights.is_variant) == (2, kind != "random")
    if kind == "random":
        refused(lambda: load_model(path), "'RandomNormalLike', which is not supported")
        return
    if dynamic:
        x = torch.randn(2, 5, I)
    with torch.no_grad():
        expected = module(x).numpy()
    for output in (lstm(x.numpy())[0], load_model(path)(x.numpy())):
        assert output.shape == expected.shape
        assert np.abs(output - expected).max() < TOLERANCE


def test_a_state_for_every_row() -> None:
    """Repeated by Expand, as often as X has rows, and taken apart by Slice; a state of sizes that do not fit is refused."""

    def one(h: np.ndarray, layers: Any = 1, hidden: int = H) -> Any:
        sizes = {"l": layers, "H": hidden, "0": 0, "1": 1, "2": 2}
        parts = [
            step("Shape", "X", "rows", start=1, end=2),
            step("Concat", "l", "rows", "H", "shape", axis=0),
            step("Expand", "h", "shape", "every"),
            step("Slice", "every", "0", "1", "0", "initial"),
            node(["X", "W", "R", "B", "", "initial", "initial"]),
        ]
        made = model(parts, {**tensors(), "h": h, **{name: np.array([n]) for name, n in sizes.items()}})
        made.graph.input[0].CopyFrom(helper.make_tensor_value_info("X", TensorProto.FLOAT, ("T", "B", I)))
        return made

    h = numbers((2, 1, H))
    for given, expected in ((h, h[0, 0]), (h[0, 0], h[0, 0]), (np.float32([0.5]), np.full(H, 0.5, np.float32))):
        weights = read(one(given, 2))
        assert weights.layers[0].h_0.tobytes() == weights.layers[0].c_0.tobytes() == expected.tobytes()
        x = numbers((5, 3, I))
        (Y,) = run(one(given, 2), {"X": x})
        assert np.abs(from_onnx(one(given, 2))(x)[0] - Y[:, 0]).max() < TOLERANCE
    assert read(one(np.float32(0), 2)).layers[0].h_0 is None
    refused(lambda: read(one(np.float32(0), hidden=H + 1)), f"initial_h of shape (1, 1, {H + 1})", f"(1, B, {H}) is expected")


def test_names() -> None:
    """The node's name; where it has none, that of its output; where two are equal, what tells them apart."""
    twice = tensors() | {f"{name}2": array for name, array in tensors(seed=1).items()}
    second = ["X", "W2", "R2", "B2"]

    def names(*nodes: Any) -> list[str]:
        return [info.name for info in onnx_file.find_live(model(nodes, twice)).infos()]

    assert names(node(), node(second, ["Z"], "other")) == ["lstm", "other"]
    assert names(node(name=""), node(second, ["", "Z_h"], "")) == ["Y", "Z_h"]
    assert names(node(), node(second, ["Z"])) == ["Y", "Z"]
    assert names(node(), node(outputs=["Z"], name="same")) == ["lstm"]  # the same weights: the same network
    two = model([node(), node(second, ["Z"], "other")], twice)
    refused(lambda: from_onnx(two), "2 LSTMs", "name=", "'lstm', 'other'")
    refused(lambda: from_onnx(two, "third"), "'third'", "'lstm', 'other'")
    broken = model([node(["X", "W", "R", "W"]), node(["X", "W2", "R2", "W"], ["Z"], "other")], twice)
    refused(lambda: from_onnx(broken), "none of the 2 LSTMs", "'lstm' has B of shape", "'lstm', 'other'")


def test_many_nodes_of_the_same_weights() -> None:
    """Each more takes as long as the one before."""
    one = model()
    (scope,), known = scopes(one.graph), onnx_constants.Constants(FOLDING)
    layer = onnx_lstm.layer(one.graph.node[0], scope, known, 17)
    items = [onnx_file.Item(node(outputs=[f"Y{n}"]), "", [layer]) for n in range(30_000)]
    start = time.thread_time()
    (first,) = onnx_file._merged(items)
    assert len(first.others) == 3 * (len(items) - 1)
    assert time.thread_time() - start < 2


def test_one_bad_node_does_not_hide_the_others(tmp_path: Path) -> None:
    twice = tensors() | {f"{name}2": array for name, array in tensors(seed=1).items()}
    path = tmp_path / "x.onnx"
    onnx.save(model([node(), node(["X", "W2", "R2", "B2"], ["Z"], "other", unknown=1)], twice), path)
    good, bad = scan(path)
    assert (good.name, good.problem, bad.name) == ("lstm", "", "other")
    assert "LSTM node 'other'" in bad.problem
    assert "attribute 'unknown' is not understood" in bad.problem
    assert_same_weights(load(path, "lstm").weights, expected_weights(tensors()))
    refused(lambda: load(path, "other"), "attribute 'unknown' is not understood")
    refused(lambda: load(path), "2 LSTMs found", "name=: 'lstm'", "'other' cannot be loaded", "attribute 'unknown'")
    path.write_bytes(path.read_bytes()[:-1])
    refused(lambda: scan(path), "truncated")


def test_a_cell_taken_apart() -> None:
    """By the names that PyTorch's exporter keeps; unless a node has the weights, which then is the LSTM."""
    shapes = parameter_shapes(I, H, 1, bias=True, bidirectional=False, proj_size=0)
    cell = {f"model.rnn.{name.removesuffix('_l0')}": numbers(shape) for name, shape in shapes.items()}
    steps = [step("Gemm", "X", "model.rnn.weight_ih", "model.rnn.bias_ih", "Y")]
    assert_same_weights(
        read(model(steps, cell), "model.rnn"), {f"{name.rpartition('.')[2]}_l0": array for name, array in cell.items()}
    )
    both = model([node(["X", "lstm.weight_ih_l0", "lstm.weight_hh_l0"])], {
        "lstm.weight_ih_l0": tensors()["W"], "lstm.weight_hh_l0": tensors()["R"]
    })  # fmt: skip
    assert [info.name for info in onnx_file.find_live(both).infos()] == ["lstm"]


# ---- What is refused -----------------------------------------------------------------------------------------------------------


def without(*names: str) -> list[str]:
    return [name if name not in names else "" for name in ("X", "W", "R", "B")]


def with_tensor(name: str, **fields: Any) -> Callable[[], Any]:
    """The model in which a tensor is described otherwise."""

    def build() -> Any:
        tensor = numpy_helper.from_array(tensors()[name], name)
        for field, value in fields.items():
            if isinstance(value, list):
                tensor.ClearField(field)
                getattr(tensor, field).extend(value)
            else:
                setattr(tensor, field, value)
        return model(constants=tensors() | {name: tensor})

    return build


def with_array(**arrays: Any) -> Callable[[], Any]:
    extra = [name for name in arrays if name not in ("W", "R", "B")]
    inputs = ["X", "W", "R", "B", "", *(name if name in arrays else "" for name in ("initial_h", "initial_c", "P"))]
    return lambda: model(node(inputs if extra else inputs[:4]), tensors() | arrays)


def chain(*steps: Any, **constants: Any) -> Callable[[], Any]:
    """The model in which W is computed from w."""
    return lambda: model([*steps, node()], {n: a for n, a in tensors().items() if n != "W"} | {"w": tensors()["W"]} | constants)


def long_chain() -> Any:
    names = ["w", *(f"w{index}" for index in range(70)), "W"]
    return chain(*(step("Add", *pair[:1] * 2, pair[1]) for pair in pairwise(names)))()


def in_a_function() -> Any:
    inner = helper.make_function("own", "f", ["X", "W", "R", "B"], ["Y"], [node()], [helper.make_opsetid("", 17)])
    return helper.make_model(
        helper.make_graph([helper.make_node("f", ["X", "W", "R", "B"], ["Y"], domain="own")], "graph", [], []), functions=[inner]
    )


def duplicated() -> Any:
    one = model()
    one.graph.initializer.append(one.graph.initializer[0])
    return one


def twice(attribute: Any) -> Any:
    one = model()
    one.graph.node[0].attribute.append(helper.make_attribute(*attribute))
    return one


SCALE = {"W_scale": np.ones(1, np.float32), "W_zero_point": np.zeros(1, np.int8)}

# what it is: (the model, what the message must hold (all of it))
REFUSED: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "R missing": (lambda: model(node(without("R"))), ("LSTM node 'lstm' lacks R",)),
    "R left out": (lambda: model(node(["X", "W"])), ("LSTM node 'lstm' lacks R",)),
    "W missing": (lambda: model(node(without("W"))), ("LSTM node 'lstm' lacks W",)),
    "a node without a name": (lambda: model(node(without("R"), name="")), ("LSTM node 'Y' lacks R",)),
    "W with 3H rows": (with_array(W=numbers((1, 3 * H, I))), ("'lstm'", "W of shape (1, 12, 3)", "(1, 16, I)")),
    "R wrong": (with_array(R=numbers((1, 4 * H, H + 1))), ("R of shape (1, 16, 5)", "(1, 16, 4)")),
    "B short": (with_array(B=numbers((1, 4 * H))), ("B of shape (1, 16)", "(1, 32)")),
    "P wrong": (with_array(P=numbers((1, 4 * H))), ("P of shape (1, 16)", "(1, 12)")),
    "W without columns": (with_array(W=numbers((1, 4 * H, 0))), ("W of shape (1, 16, 0)",)),
    "W for two directions": (with_array(W=numbers((2, 4 * H, I))), ("W of shape (2, 16, 3)",)),
    "R of another type": (with_array(R=numbers((1, 4 * H, H)).astype(np.float64)), ("R of float64", "expected float32")),
    "W of integers": (with_array(W=np.zeros((1, 4 * H, I), np.int8)), ("W of int8", "float32")),
    "hidden_size 0": (lambda: model(node(hidden_size=0)), ("'lstm'", "hidden_size 0")),
    "hidden_size -5": (lambda: model(node(hidden_size=-5)), ("hidden_size -5",)),
    "hidden_size 2^40": (lambda: model(node(hidden_size=2**40)), ("hidden_size 1099511627776",)),
    "hidden_size of another network": (lambda: model(node(hidden_size=5)), ("W of shape (1, 16, 3)", "(1, 20, I)")),
    "hidden_size absent": (lambda: model(node(hidden_size=None)), ("no hidden_size",)),
    "direction unknown": (lambda: model(node(direction="sideways")), ("direction 'sideways'", "bidirectional")),
    "layout 7": (lambda: model(node(layout=7)), ("layout 7",)),
    "layout before it existed": (lambda: model(node(layout=1), opset=13), ("operator set 13", "'layout'")),
    "activation unknown": (lambda: model(node(activations=["Sigmoid", "Swish", "Tanh"])), ("'Swish'",)),
    "activations too few": (lambda: model(node(activations=["Sigmoid", "Tanh"])), ("2 activations", "expected 3")),
    "activation without its alpha": (lambda: model(node(activations=["Affine", "Tanh", "Tanh"])), ("too few", "Affine")),
    "activation with half of its values": (
        lambda: model(node(activations=["HardSigmoid", "Tanh", "Tanh"], activation_alpha=[0.2])),
        ("too few", "HardSigmoid"),
    ),
    "more values than activations": (lambda: model(node(activation_alpha=[0.5])), ("activation_alpha", "more values")),
    "activation of infinity": (
        lambda: model(node(activations=["Elu", "Tanh", "Tanh"], activation_alpha=[float("inf")])),
        ("finite",),
    ),
    "input_forget 2": (lambda: model(node(input_forget=2)), ("input_forget 2",)),
    "clip 0": (lambda: model(node(clip=0.0)), ("clip 0.0",)),
    "clip that is no number": (lambda: model(node(clip=float("nan"))), ("clip nan",)),
    "attribute unknown": (lambda: model(node(speed=3)), ("'speed'", "hidden_size")),
    "attribute of the first version": (lambda: model(node(output_sequence=1)), ("'output_sequence'",)),
    "attribute of another type": (lambda: model(node(clip=3)), ("attribute clip", "type")),
    "attribute twice": (lambda: twice(("hidden_size", H)), ("hidden_size is there twice",)),
    "operator set 1": (lambda: model(opset=1), ("operator set 1", "onnx.version_converter")),
    "too many inputs": (lambda: model(node(["X", "W", "R", *[""] * 5, "W"])), ("9 inputs",)),
    "too many outputs": (lambda: model(node(outputs=["Y", "a", "b", "c"])), ("4 outputs",)),
    "LSTM of another domain": (lambda: model(node(domain="my.ops")), ("'my.ops.LSTM'", "not understood")),
    "AttnLSTM": (lambda: model(node(op_type="AttnLSTM", domain="com.microsoft")), ("'com.microsoft.AttnLSTM'",)),
    "in a function": (in_a_function, ("'lstm' is inside the function 'f'", "inline_local_functions")),
    "weights that are inputs": (lambda: model(constants={}), ("no constant W", "'W' is an input of the model")),
    "weights computed at run time": (
        lambda: model([step("Relu", "X", "W"), node()], {"R": tensors()["R"]}),
        ("'W' is computed at run time", "'X' is an input"),
    ),
    "weights from nowhere": (lambda: model(node(["X", "W", "R", "B"]), {}, opset=17), ("'W' is an input",)),
    "one state at run time": (
        lambda: model(node(["X", "W", "R", "B", "", "initial_h", "S"]), tensors() | {"initial_h": numbers((1, 1, H))}),
        ("one initial state is a constant that is not zero", "another is given at run time"),
    ),
    "states of several rows": (with_array(initial_h=numbers((1, 3, H))), ("not one for all rows", "make it an input")),
    "states of no row": (with_array(initial_h=numbers((1, 0, H))), ("not one for all rows",)),
    "states of another size": (with_array(initial_c=numbers((1, 1, H + 1))), ("initial_c of shape (1, 1, 5)", "(1, B, 4)")),
    "raw_data short": (with_tensor("W", raw_data=bytes(188)), ("tensor 'W'", "must have 192 bytes, got 188")),
    "raw_data long": (with_tensor("W", raw_data=bytes(196)), ("tensor 'W'", "must have 192 bytes, got 196")),
    "raw_data and floats": (with_tensor("W", float_data=[1.0]), ("'W' holds its numbers twice",)),
    "no data": (lambda: _bare(dims=[1, 16, 3]), ("192 bytes, got 0",)),
    "floats in the wrong list": (
        lambda: _bare(dims=[1], int64_data=[1]),
        ("raw_data or float_data, got int64_data",),
    ),
    "halves that are none": (
        lambda: _bare(dims=[1], data_type=10, int32_data=[70000]),
        ("outside of float16",),
    ),
    "dimension negative": (with_tensor("W", dims=[1, -16, 3]), ("tensor 'W' has shape (1, -16, 3)", "negative")),
    "dimensions too large": (with_tensor("W", dims=[2**62, 2**62]), ("no dimension may",)),
    "dimensions that overflow": (with_tensor("W", dims=[2**31 - 1] * 3), ("larger than any weights",)),
    "dimensions that overflow beside 0": (with_tensor("W", dims=[0, *[2**31 - 1] * 3]), ("larger than any weights",)),
    "2^33 numbers": (with_tensor("W", dims=[1, 2**30, 8]), ("larger than any weights",)),
    "2^30 numbers": (with_tensor("W", dims=[1, 2**27, 8]), ("must have 4294967296 bytes, got 192",)),
    "type unknown": (with_tensor("W", data_type=99), ("data type 99", "float32")),
    "text": (with_tensor("W", data_type=8), ("data type 8",)),
    "segment": (lambda: _segment(), ("'W' is only a segment",)),
    "sparse": (lambda: _sparse(), ("'W' is sparse",)),
    "external": (lambda: _external(), ("'W' lie in another file", "external_data=True")),
    "initializer twice": (duplicated, ("initializer 'W'", "given before")),
    "output twice": (lambda: model([node(), node(name="b")]), ("output 'Y'", "given before")),
    "output of an initializer's name": (lambda: model(node(outputs=["W"])), ("output 'W'", "given before")),
    "operator unknown": (chain(step("Sin", "w", "W")), ("'Sin' node 'W'", "constant folding")),
    "tile bomb": (chain(step("Tile", "w", "r", "W"), r=np.array([2**30, 1, 1])), ("'Tile' node 'W'", "larger than any weights")),
    "expand bomb": (chain(step("Expand", "w", "r", "W"), r=np.array([2**31 - 1, 16, 3])), ("larger than any weights",)),
    "long chain": (long_chain, ("more than 64 operators",)),
    "chain in a circle": (chain(step("Identity", "v", "W"), step("Identity", "W", "v")), ("more than 64 operators",)),
    "perm wrong": (chain(step("Transpose", "w", "W", perm=[0, 1, 1])), ("perm [0, 1, 1]",)),
    "split wrong": (chain(step("Split", "w", "W", num_outputs=2)), ("num_outputs 2",)),
    "reshape wrong": (chain(step("Reshape", "w", "r", "W"), r=np.array([5, -1])), ("shape [5, -1]",)),
    "slice with step 0": (
        chain(step("Slice", "w", "a", "b", "a", "a", "W"), a=np.array([0]), b=np.array([1])),
        ("no step 0",),
    ),
    "gather beyond the end": (chain(step("Gather", "w", "i", "W", axis=1), i=np.full(16, 16)), ("'lstm'", "beyond 16")),
    "cast to integers": (chain(step("Cast", "w", "W", to=7)), ("'Cast' node 'W'", "a cast from float32 to int64")),
    "attribute of an operator unknown": (chain(step("Identity", "w", "W", fast=1)), ("'Identity' node 'W'", "'fast'")),
    "DynamicQuantizeLSTM without a scale": (
        lambda: model(node(op_type="DynamicQuantizeLSTM", domain="com.microsoft")),
        ("needs W with 3 dimensions, W_scale and W_zero_point",),
    ),
    "DynamicQuantizeLSTM of floats": (
        lambda: model(
            node([*"XWRB", *[""] * 4, *SCALE, *SCALE], op_type="DynamicQuantizeLSTM", domain="com.microsoft"), tensors() | SCALE
        ),
        ("because of its W", "8-bit integers"),
    ),
    "no LSTM": (lambda: model(step("Relu", "X", "Y"), {}), ("no LSTM found", "an ONNX model with 1 nodes: 'Relu'")),
    "GRU": (lambda: model(node(op_type="GRU")), ("no LSTM found", "'lstm': this is a GRU")),
    "a long name": (lambda: model(node(without("R"), name="x" * 5000)), ("'" + "x" * 96 + "...",)),
}  # fmt: skip


def _bare(**fields: Any) -> Any:
    return model(constants=tensors() | {"W": TensorProto(**{"name": "W", "data_type": 1, **fields})})


def _external(**place: str) -> Any:
    one = with_tensor("W", data_location=1)()
    one.graph.initializer[0].ClearField("raw_data")
    for key, value in place.items():
        one.graph.initializer[0].external_data.add(key=key, value=value)
    return one


def _segment() -> Any:
    one = with_tensor("W")()
    one.graph.initializer[0].segment.begin = 0
    return one


def _sparse() -> Any:
    one = model(constants={name: array for name, array in tensors().items() if name != "W"})
    del one.graph.input[:]
    values = numpy_helper.from_array(np.ones(1, np.float32), "W")
    one.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64)), [1, 16, 3])
    )
    return one


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    build, parts = REFUSED[case]
    refused(lambda: from_onnx(build()), *parts)
    path = tmp_path / "model.onnx"
    path.write_bytes(build().SerializeToString())
    refused(lambda: load(path), *parts, str(path)[:100])


def test_constant_lengths_are_not_dropped() -> None:
    """They are a caller's to give, at each call; those of whole sequences say nothing."""
    inputs = ("X", "W", "R", "B", "sequence_lens")
    for lengths, problem in (([6, 2, 4], True), ([6, 6, 6], False), ([5, 5, 5], True)):
        made = model(node(inputs), {**tensors(), "sequence_lens": np.array(lengths, np.int32)})
        sizes = helper.make_tensor_type_proto(TensorProto.FLOAT, (6, 3, I))
        made.graph.input[0].type.CopyFrom(sizes)
        if problem:
            refused(lambda made=made: from_onnx(made), "'lstm'", "constant sequence_lens", "lengths=", "load_model")
        else:
            from_onnx(made)
    made.graph.input[0].type.tensor_type.ClearField("shape")
    refused(lambda: from_onnx(made), "constant sequence_lens")


def test_a_gru_is_named() -> None:
    assert onnx_file.find_live(model(node(op_type="GRU"))).infos() == []
    refused(lambda: from_onnx(model(node(op_type="RNN")), "lstm"), "'lstm': this is a plain RNN, not an LSTM")


def test_not_finite(tmp_path: Path) -> None:
    one = with_array(B=np.full((1, 8 * H), np.nan, np.float32))()
    refused(lambda: from_onnx(one), "bias_ih_l0", "allow_nonfinite")
    assert from_onnx(one, allow_nonfinite=True).hidden_size == H


def test_other_objects(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"model_or_path must be an onnx\.ModelProto or a path, got dict"):
        from_onnx({})
    path = tmp_path / "model.onnx"
    path.write_bytes((GOLDEN / "cell.pt").read_bytes())
    refused(lambda: from_onnx(path), "not an ONNX model", "fastlstm.load")
    assert load(path).hidden_size == 5  # the content decides, not the suffix


def test_onnx_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for act in (lambda: load(GOLDEN / "cell.onnx"), lambda: scan(GOLDEN / "cell.onnx"), lambda: from_onnx(GOLDEN / "cell.onnx")):
        with pytest.raises(ImportError, match="pip install onnx"):
            act()
    with pytest.raises(ImportError, match="pip install onnx"):
        fastlstm.LSTM(2, 3).to_onnx("x.onnx")


# ---- External data -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model whose W lies in ``weights/w.bin``; fields of its place may be given."""

    def write(**place: str | None) -> Path:
        W = tensors()["W"].tobytes()
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / "w.bin").write_bytes(b"1234" + W)
        given = {"location": "weights/w.bin", "offset": "4", "length": str(len(W)), **place}
        one = _external(**{key: value for key, value in given.items() if value is not None})
        path = tmp_path / "model.onnx"
        path.write_bytes(one.SerializeToString())
        return path

    return write


def test_external_data(outside: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ({}, {"length": None}, {"checksum": "?"}):
        path = outside(**place)
        assert_same_weights(from_onnx(path, external_data=True).weights, expected_weights(tensors()))
        refused(lambda path=path: load(path), "another file", "'W'", "external_data=True")
        refused(lambda path=path: from_onnx(path), "another file", "'W'", "external_data=True")
    monkeypatch.chdir(path.parent)
    assert from_onnx("model.onnx", external_data=True).hidden_size == H
    assert from_onnx(outside(location="./weights/w.bin"), external_data=True).hidden_size == H
    refused(lambda: from_onnx(onnx.load("model.onnx", load_external_data=False), external_data=True), "another file")


def test_external_data_by_every_reader(outside: Callable[..., Path], tmp_path: Path) -> None:
    path, expected = outside(), expected_weights(tensors())
    assert_same_weights(load(path, external_data=True).weights, expected)
    (info,) = scan(path, external_data=True)
    assert info == LSTMInfo("lstm", I, H, 1, False, 0, True, "float32", False)
    target = tmp_path / "lstm.npz"
    assert fastlstm.convert(path, target, external_data=True) == info
    assert_same_weights(load(target).weights, expected)
    refused(lambda: fastlstm.convert(path, target), "'W' lie in another file", "external_data=True")
    for reader in (load, scan, fastlstm.load_model):
        with pytest.raises(TypeError, match="external_data must be True or False, got 'no'"):
            reader(path, external_data="no")  # type: ignore[operator]
    assert load(target, external_data=True).hidden_size == H  # leave that other formats have no use for


def test_scan_says_what_lies_in_another_file(outside: Callable[..., Path]) -> None:
    """With its sizes, which are in the model; whatever the file would be, it is not opened."""
    for place in ({}, {"location": "/etc/passwd"}):
        (info,) = scan(outside(**place))
        assert replace(info, problem="") == LSTMInfo("lstm", I, H, 1, False, 0, True, "float32", False)
        assert "'W' lie in another file: pass external_data=True" in info.problem
        assert str(info).startswith("'lstm': LSTM(3, 4), float32; cannot be loaded: LSTM node 'lstm'")


def elsewhere(name: str, *shape: int) -> Any:
    tensor = TensorProto(name=name, data_type=1, dims=shape, data_location=1)
    tensor.external_data.add(key="location", value="w.bin")
    return tensor


def test_weights_in_another_file_may_be_larger_than_the_model_allows(tmp_path: Path) -> None:
    """Sizes are told; nothing of them is read, or made, before it is allowed."""
    path, inputs, hidden = tmp_path / "model.onnx", 1 << 20, 256
    shapes = {"W": (1, 4 * hidden, inputs), "R": (1, 4 * hidden, hidden), "B": (1, 8 * hidden)}
    one = model(node(hidden_size=hidden), {name: elsewhere(name, *shape) for name, shape in shapes.items()})
    path.write_bytes(one.SerializeToString())
    (info,) = scan(path)
    assert (info.input_size, info.hidden_size) == (inputs, hidden)
    for act in (load, fastlstm.load_model):
        with pytest.raises(FormatError, match="'W' lie in another file") as caught:
            act(path)
        assert "the LSTM alone" not in str(caught.value)
    path.write_bytes(model(constants=tensors() | {"W": elsewhere("W", 1, 1 << 30, 1 << 20)}).SerializeToString())
    refused(lambda: scan(path), "larger than any weights")


@pytest.mark.filterwarnings("ignore")  # of PyTorch's exporter
def test_what_pytorch_exports_with_external_data(tmp_path: Path) -> None:
    """Its default, also for small models; a cell is taken apart, and found by the names of its tensors."""
    torch = import_torch()
    required("onnxscript")

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.LSTM(8, 16, 2, bidirectional=True)
            self.cell = torch.nn.LSTMCell(32, 12)

        def forward(self, x: Any) -> Any:
            y, _ = self.rnn(x)
            return self.cell(y[1], self.cell(y[0]))[0]

    both, path = Both().eval(), tmp_path / "both.onnx"
    torch.onnx.export(both, (torch.zeros(5, 2, 8),), path, dynamo=True, external_data=True, verbose=False)
    without, allowed = scan(path), scan(path, external_data=True)
    assert [replace(info, problem="") for info in without] == allowed
    assert all("external_data=True" in info.problem for info in without)
    assert [(info.input_size, info.hidden_size, info.num_layers) for info in allowed] == [(8, 16, 2), (32, 12, 1)]
    for info, part in zip(allowed, (both.rnn, both.cell), strict=True):
        refused(lambda name=info.name: load(path, name), "another file", "external_data=True")
        given, expected = load(path, info.name, external_data=True), fastlstm.from_torch(part)
        x = np.random.default_rng(0).standard_normal((5, 2, info.input_size)).astype(np.float32)
        assert_close(flat(given(x)), flat(expected(x)), TOLERANCE)
    refused(lambda: load(path), "2 LSTMs found, pass one of these as name=")


@pytest.mark.parametrize(
    "location",
    [
        "../w.bin",
        "weights/../../w.bin",
        "/etc/passwd",
        "/dev/zero",
        "",
        ".",
        "weights//w.bin",
        "a\\w.bin",
        "x\0",
        "././w",
        ".//etc/passwd",
        "./../w.bin",
        "./",
    ],
)
def test_external_data_outside_of_the_folder(location: str, outside: Callable[..., Path]) -> None:
    path = outside(location=location)
    (path.parents[1] / "w.bin").write_bytes(bytes(300))
    refused(lambda: from_onnx(path, external_data=True), "no plain path below")


def test_external_data_that_is_no_file_of_its_own(outside: Callable[..., Path]) -> None:
    path = outside()
    file, folder = path.parent / "weights" / "w.bin", path.parent / "weights"

    def attempt(*parts: str) -> None:
        refused(lambda: from_onnx(path, external_data=True), "'weights/w.bin'", *parts)

    os.link(file, path.parent / "second")
    attempt("hard link")
    (path.parent / "second").unlink()
    file.rename(path.parent / "real")
    attempt("cannot be opened")
    file.symlink_to(path.parent / "real")
    attempt("links are not followed")
    file.unlink()
    os.mkfifo(file)
    attempt("no regular file")
    file.unlink()
    file.mkdir()
    attempt("beside the model")
    file.rmdir()
    folder.rmdir()
    (path.parent / "elsewhere").mkdir()
    (path.parent / "real").rename(path.parent / "elsewhere" / "w.bin")
    folder.symlink_to(path.parent / "elsewhere")
    attempt("links are not followed")


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ({"length": "191"}, ("must have 192 bytes, got 191",)),
        ({"length": "193"}, ("193 bytes expected at offset 4 of 'weights/w.bin', which has 196",)),
        ({"offset": "0", "length": "196"}, ("must have 192 bytes, got 196",)),
        ({"offset": "8"}, ("192 bytes expected at offset 8",)),
        ({"offset": "8", "length": None}, ("192 bytes expected at offset 8",)),
        ({"offset": "9" * 18}, ("at offset 999999999999999999",)),
        ({"offset": "-4"}, ("offset must be a number", "'-4'")),
        ({"offset": "9" * 19}, ("offset must be a number",)),
        ({"length": "x"}, ("length must be a number",)),
        ({"location": None}, ("no location",)),
        ({"colour": "red"}, ("'colour' is unknown",)),
    ],
)
def test_external_data_at_a_wrong_place(place: dict[str, Any], parts: tuple[str, ...], outside: Callable[..., Path]) -> None:
    path = outside(**place)
    refused(lambda: from_onnx(path, external_data=True), "'W'", *parts)


# ---- Export --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_export(layers: int, bidirectional: bool, bias: bool, batch_first: bool, tmp_path: Path) -> None:
    """Checked by the onnx package, run by ONNX Runtime, read back to the byte."""
    path, D = tmp_path / "model.onnx", 1 + bidirectional
    for dtype in ("float32", "float64"):
        options = {"bias": bias, "bidirectional": bidirectional, "batch_first": batch_first}
        lstm = fastlstm.LSTM(I, H, layers, dtype=dtype, seed=1, **options)
        lstm.to_onnx(path)
        onnx.checker.check_model(onnx.load(path), full_check=True)
        again = load(path)
        assert repr(again) == repr(lstm)
        assert_same_weights(again.weights, lstm.state_dict())
        assert_same_weights(from_onnx(onnx.load(path)).weights, lstm.state_dict())
    lstm = fastlstm.LSTM(I, H, layers, seed=1, **options)
    x, state = numbers((5, 2, I)), numbers((2, layers * D, 5 if batch_first else 2, H))
    theirs = run(onnx_model(lstm.weights, batch_first), {"x": x, "h_0": state[0], "c_0": state[1]})
    assert_close(flat(lstm(x, tuple(state))), tuple(theirs), TOLERANCE)
    assert sorted(tmp_path.iterdir()) == [path]


def test_export_of_variants() -> None:
    """What the operator has words for comes back as it was; the rest is refused."""
    plain = fastlstm.LSTM(I, H, seed=2).weights.layers[0]
    peephole = numbers((3 * H,))
    alpha, beta = np.float32([0.3, 0.7]).tolist()
    cells = [
        Cell(Activation("hard_sigmoid", (alpha, beta)), Activation("relu"), Activation("elu", (beta,)), "forget", 2.5),
        Cell(SIGMOID, Activation("scaled_tanh", (beta, alpha)), Activation("softsign"), "forget", 2.5),
        Cell(TANH, Activation("leaky_relu", (alpha,)), Activation("affine", (alpha, beta))),
    ]
    for directions, options in ((cells[:2], {"bidirectional": True}), (cells[2:], {"reverse": True}), (cells[:1], {})):
        layers = tuple(replace(plain, cell=cell, weight_peephole=peephole * n) for n, cell in enumerate(directions, 1))
        weights = Weights(layers, **options)
        again = read(onnx_model(weights))
        assert_same_weights(again, dict(weights.named_tensors()))
        assert [layer.cell for layer in again.layers] == directions
        assert (again.bidirectional, again.reverse) == (weights.bidirectional, weights.reverse)
        x, state = numbers((5, 2, I)), numbers((2, len(layers), 2, H))
        theirs = run(onnx_model(weights), {"x": x, "h_0": state[0], "c_0": state[1]})
        assert_close(oracle(weights, x, state), tuple(theirs), TOLERANCE)
    linear = Weights((replace(plain, cell=Cell(hidden=Activation("linear"))),))
    assert read(onnx_model(linear)).layers[0].cell.hidden == Activation("affine", (1.0, 0.0))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"cell": Cell(coupled="input")}, "i = 1 - f"),
        ({"cell": Cell(cell_clip=1.0)}, "clipped cell state"),
        ({"h_0": np.ones(H, np.float32), "c_0": np.ones(H, np.float32)}, "initial states of its own"),
    ],
)
def test_what_the_operator_has_no_words_for(change: dict[str, Any], part: str) -> None:
    weights = Weights((replace(fastlstm.LSTM(I, H).weights.layers[0], **change),))
    with pytest.raises(ValueError, match=f"has no .*{part}.*safetensors"):
        onnx_model(weights)


def test_export_of_other_networks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no words for a projection \(proj_size\)"):
        fastlstm.LSTM(I, H, proj_size=2).to_onnx(tmp_path / "x")
    for merge_mode, words in (("sum", "made one"), (None, "not side by side")):
        pair = replace(fastlstm.LSTM(I, H, bidirectional=True).weights, merge_mode=merge_mode)
        with pytest.raises(ValueError, match=f"has no words for outputs of two directions {words}"):
            onnx_model(pair)
    both = fastlstm.LSTM(I, H, bidirectional=True).weights
    clipped = Weights((replace(both.layers[0], cell=Cell(gate_clip=1.0)), both.layers[1]), True)
    with pytest.raises(ValueError, match="directions with different clips"):
        onnx_model(clipped)
    flipped = Weights(fastlstm.LSTM(I, H).weights.layers, reverse=True, flipped=True)
    with pytest.raises(ValueError, match="flipped"):
        onnx_model(flipped)
    assert list(tmp_path.iterdir()) == []


# ---- PyTorch's exporter, where it is installed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 3, "batch_first": True}])
def test_live_export(options: dict[str, Any], dynamo: bool, free: bool, tmp_path: Path) -> None:
    """The second exporter puts large tensors beside the model."""
    torch = import_torch()
    if dynamo:
        required("onnxscript")
    module, path = torch.nn.LSTM(I, H, **options).eval(), tmp_path / "model.onnx"
    more: dict[str, Any] = {"input_names": ["x"]}
    if free and dynamo:
        more["dynamic_shapes"] = ({0: torch.export.Dim("first"), 1: torch.export.Dim("second")},)
    elif free:
        more["dynamic_axes"] = {"x": {0: "first", 1: "second"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(5, 2, I),), path, dynamo=dynamo, verbose=False, **more)
    weights = from_onnx(path, external_data=True).weights
    assert_same_weights(weights, {name: value.numpy() for name, value in module.state_dict().items()})


@pytest.mark.parametrize("free", [False, True])
def test_a_projection_that_the_exporter_cannot_write(free: bool) -> None:
    """The second exporter leaves it out and cuts the weights wrongly; the sizes of the states show it."""
    torch = import_torch()
    required("onnxscript")
    shapes = ({0: torch.export.Dim("T"), 1: torch.export.Dim("B")},) if free else None
    module = torch.nn.LSTM(I, H, proj_size=2).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (torch.zeros(5, 2, I),), dynamo=True, dynamic_shapes=shapes, verbose=False)
    refused(lambda: from_onnx(program.model_proto), "initial_c of shape", "is expected")
