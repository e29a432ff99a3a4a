"""Whole ONNX graphs: what exporters write gives ONNX Runtime's numbers, each operator alone too; the rest is refused by name.

The golden files are made by ``golden/make_onnx_graph.py`` with PyTorch's two exporters.
"""

from __future__ import annotations

import pickle
import tracemalloc
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import import_torch, required

from fastlstm import FormatError, load, load_model
from fastlstm.models.graph import FLOOR, Graph
from fastlstm.models.model import Model
from fastlstm.operators.layout import tile

onnx = required("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"

# Outputs of scale 1 in float32, computed in another order than ONNX Runtime's
TOLERANCE = 2e-5


def runtime(model: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs by ONNX Runtime."""
    ort = required("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return list(ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, dict(inputs)))


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([*shape, seed]).standard_normal(shape).astype(np.float32)


def node(kind: str, inputs: str = "", outputs: str = "y", name: str = "", **attributes: Any) -> Any:
    """Names in one text, ``-`` for an empty one."""
    return helper.make_node(
        kind, [word.strip("-") for word in inputs.split()], [word.strip("-") for word in outputs.split()], name, **attributes
    )


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Any],
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: str = "y",
    opset: int = 20,
) -> Any:
    """A model; inputs are arrays, whose dtypes are declared, or (dtype, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [
            helper.make_tensor_value_info(name, *value)
            if isinstance(value, tuple)
            else helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def typed(proto: Any) -> Any:
    """With the types of its outputs, which ONNX Runtime wants to know."""
    found = {value.name: value for value in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    inferred = onnx.shape_inference.infer_shapes(proto).graph.output
    for index, value in enumerate(inferred):
        proto.graph.output[index].CopyFrom(found.get(value.name, value))
    return proto


def loaded(proto: Any, folder: Path) -> Graph:
    onnx.save(proto, folder / "model.onnx")
    graph = load_model(folder / "model.onnx")
    assert isinstance(graph, Graph)
    return graph


def assert_equal(given: Any, expected: Sequence[np.ndarray], tolerance: float = TOLERANCE) -> None:
    results = given if isinstance(given, tuple) else (given,)
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(result, wanted, rtol=tolerance, atol=tolerance)


# ---- What exporters write ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["graph_torchscript.onnx", "graph_dynamo.onnx"])
def test_golden_file(file: str) -> None:
    graph = load_model(GOLDEN / file)
    with np.load(GOLDEN / "onnx_graph_expected.npz") as arrays:
        tokens, expected = arrays["tokens"], [arrays["tags"], arrays["topic"]]
    assert_equal(graph(tokens), expected)
    assert_equal(graph(tokens.astype(np.int32)), expected)
    assert_equal(graph(tokens[:1, :2]), runtime((GOLDEN / file).read_bytes(), {"tokens": tokens[:1, :2]}))
    assert (graph.outputs, [(each.name, each.dtype) for each in graph.inputs]) == (("tags", "topic"), [("tokens", np.int64)])


def test_a_cell_that_was_taken_apart() -> None:
    x, h, c = numbers(2, 3), numbers(2, 5), numbers(2, 5, seed=1)
    data = (GOLDEN / "cell.onnx").read_bytes()
    assert_equal(load_model(GOLDEN / "cell.onnx")(x, h, c), runtime(data, {"x": x, "h": h, "c": c}))


def test_float64() -> None:
    """ONNX Runtime's LSTM has no double: against the same weights in an LSTM."""
    import fastlstm

    x = numbers(4, 2, 3).astype(np.float64)
    given = load_model(GOLDEN / "float64.onnx")(x)
    output, (h_n, c_n) = fastlstm.load(GOLDEN / "float64.onnx", batch_first=True)(x)
    assert_equal(given, [output, h_n, c_n], 1e-12)


def test_float16_runs_as_float32() -> None:
    x = numbers(4, 2, 3)
    given = load_model(GOLDEN / "float16.onnx")(x)
    expected = runtime((GOLDEN / "float16.onnx").read_bytes(), {"x": x.astype(np.float16)})
    for result, wanted in zip(given, expected, strict=True):
        assert result.dtype == np.float32
        assert np.abs(result - wanted).max() < 1e-3
    message = "input 'x' must be float32, as which its float16 runs here, got float16; convert it to float32 first"
    with pytest.raises(TypeError, match=message):
        load_model(GOLDEN / "float16.onnx")(x.astype(np.float16))


def random_module(seed: int) -> tuple[Any, Any, bool]:
    """A module, an input, and whether time comes second."""
    torch = import_torch()
    nn = torch.nn
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    first, words, D = bool(rng.integers(2)), bool(rng.integers(2)), int(rng.integers(1, 3))
    I, H, L, end = (int(n) for n in (rng.integers(2, 9), rng.integers(2, 9), rng.integers(1, 4), rng.integers(3)))
    activation = [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.Softsign, nn.LeakyReLU, nn.Hardsigmoid, nn.GELU, nn.SiLU][
        int(rng.integers(10))
    ]

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = nn.Embedding(13, I) if words else nn.Sequential(nn.Linear(3, I), activation())
            self.lstm = nn.LSTM(I, H, L, bidirectional=D == 2, batch_first=first, dropout=0.3 if L > 1 else 0.0)
            self.head = nn.Sequential(nn.LayerNorm(D * H), nn.Dropout(), nn.Linear(D * H, 4), activation(), nn.Linear(4, 2))

        def forward(self, x: Any) -> Any:
            y, (h, _) = self.lstm(self.start(x))
            if end == 1:
                y = y[:, -1] if first else y[-1]
            if end == 2:
                y = torch.flatten(h[-D:].transpose(0, 1), 1)
            return torch.softmax(self.head(y), -1)

    shape = (2, 4)
    x = torch.randint(0, 13, shape) if words else torch.randn(*shape, 3)
    return Module().eval(), x, first


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("seed", range(10))
def test_random_exports(seed: int, dynamo: bool, tmp_path: Path) -> None:
    torch = import_torch()
    if dynamo:
        required("onnxscript")
    module, x, first = random_module(seed)
    names = {0: "B", 1: "T"} if first else {0: "T", 1: "B"}
    axes: dict[str, Any] = {"dynamic_axes": {"x": names}}
    if dynamo:
        axes = {"dynamic_shapes": (dict.fromkeys(names, torch.export.Dim.AUTO),), "external_data": bool(seed % 2)}
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=dynamo, input_names=["x"], verbose=False, **axes)
    graph, rng = load_model(path, external_data=True), np.random.default_rng(seed)
    for shape in ((2, 4), (1, 1), (5, 3), (3, 17)):
        # The second exporter makes some sizes those of the example, whatever it was asked for
        fixed = graph.inputs[0].shape
        size = tuple(n if isinstance(n, int) else free for n, free in zip(fixed, (*shape, 3), strict=False))
        given = rng.integers(0, 13, size) if x.dtype == torch.int64 else rng.standard_normal(size).astype(np.float32)
        try:
            expected = runtime(path, {"x": given})
        except Exception:  # and others in its nodes, whatever it wrote of its inputs
            assert shape != (2, 4)
            with pytest.raises(ValueError, match="node"):
                graph(given)
            continue
        assert_equal(graph(given), expected)
        with torch.no_grad():
            assert_equal(graph(given), [module(torch.from_numpy(given)).numpy()])


# ---- Operators -----------------------------------------------------------------------------------------------------------------

X, Y = numbers(2, 3, 4), numbers(2, 3, 4, seed=1)
INTEGERS = np.array([[7, -7, 5], [-5, 3, -9]])
ENDLESS = np.float32([1, np.inf, -np.inf, np.nan])
BYTES = np.array([[0, 200, 255], [7, 100, 128]], np.uint8)
CHANNELS = numbers(3, 3, seed=2)  # of X
ints = np.array

# name: (operator, inputs, attributes, operator set)
OPERATORS: dict[str, tuple[str, list[Any], dict[str, Any], int]] = {
    "Abs": ("Abs", [X], {}, 20),
    "Add": ("Add", [X, X[:1, :, :1]], {}, 20),
    "ArgMax": ("ArgMax", [X], {"axis": 1, "keepdims": 0}, 20),
    "ArgMax, the last": ("ArgMax", [np.round(X)], {"axis": -1, "select_last_index": 1}, 20),
    "Cast": ("Cast", [X], {"to": TensorProto.DOUBLE}, 20),
    "Cast to integers": ("Cast", [3 * X], {"to": TensorProto.INT64}, 20),
    "Clip": ("Clip", [X, np.float32(-0.5), np.float32(0.25)], {}, 20),
    "Clip, old": ("Clip", [X], {"min": -0.5}, 9),
    "Concat": ("Concat", [X, Y, X], {"axis": -2}, 20),
    "ConstantOfShape": ("ConstantOfShape", [ints([2, 3])], {}, 20),
    "ConstantOfShape, a value": ("ConstantOfShape", [ints([2])], {"value": numpy_helper.from_array(np.array([5]))}, 20),
    "Div": ("Div", [X, Y], {}, 20),
    "Div of integers": ("Div", [INTEGERS, ints([2, -2, 4])], {}, 20),
    "Dropout": ("Dropout", [X], {}, 20),
    "Elu": ("Elu", [X], {"alpha": 0.7}, 20),
    "Equal": ("Equal", [INTEGERS, ints([7, 3, 5])], {}, 20),
    "Erf": ("Erf", [X], {}, 20),
    "Exp": ("Exp", [X], {}, 20),
    "Expand": ("Expand", [X[:, :1], ints([5, 1, 2, 4])], {}, 20),
    "Flatten": ("Flatten", [X], {"axis": 2}, 20),
    "Flatten all": ("Flatten", [X], {"axis": 0}, 20),
    "Gather": ("Gather", [X, ints([[2, -1], [0, 0]])], {"axis": 1}, 20),
    "Gather one": ("Gather", [X, ints(-1)], {"axis": 1}, 20),
    "Gelu": ("Gelu", [X], {}, 20),
    "Gelu by tanh": ("Gelu", [X], {"approximate": "tanh"}, 20),
    "Gemm": ("Gemm", [X[0], Y[0], Y[0, 0, :3]], {"transB": 1, "alpha": 0.5, "beta": 2.0}, 20),
    "Gemm, turned": ("Gemm", [X[0], Y[0]], {"transA": 1}, 20),
    "HardSigmoid": ("HardSigmoid", [3 * X], {}, 20),
    "HardSwish": ("HardSwish", [3 * X], {}, 20),
    "Identity": ("Identity", [X], {}, 20),
    "LayerNormalization": ("LayerNormalization", [X, Y[0, 0], Y[0, 1]], {"epsilon": 0.01}, 20),
    "LayerNormalization of two axes": ("LayerNormalization", [X, Y[0]], {"axis": 1}, 20),
    "LeakyRelu": ("LeakyRelu", [X], {"alpha": 0.2}, 20),
    "Log": ("Log", [np.abs(X)], {}, 20),
    "LogSoftmax": ("LogSoftmax", [X], {"axis": 1}, 20),
    "LogSoftmax, old": ("LogSoftmax", [X], {"axis": 1}, 11),
    "MatMul": ("MatMul", [X, Y[0].T], {}, 20),
    "MatMul of a vector": ("MatMul", [X, Y[0, 0]], {}, 20),
    "MatMul of two vectors": ("MatMul", [X[0, 0], Y[0, 0]], {}, 20),
    "MatMul of batches": ("MatMul", [X, Y[:, None].swapaxes(2, 3)], {}, 20),
    "MatMul, large": ("MatMul", [numbers(3, 100), numbers(100, 90) / 10], {}, 20),
    "Max": ("Max", [X, Y, X[0]], {}, 20),
    "Min": ("Min", [X, Y], {}, 20),
    "Mul": ("Mul", [X, Y], {}, 20),
    "Neg": ("Neg", [X], {}, 20),
    "Pow": ("Pow", [np.abs(X), Y], {}, 20),
    "Pow 2": ("Pow", [X, np.float32(2)], {}, 20),
    "Reciprocal": ("Reciprocal", [X], {}, 20),
    "ReduceMax": ("ReduceMax", [X, ints([-1])], {}, 20),
    "ReduceMean": ("ReduceMean", [X, ints([0, 2])], {"keepdims": 0}, 20),
    "ReduceMean, old": ("ReduceMean", [X], {"axes": [-1]}, 13),
    "ReduceSum": ("ReduceSum", [X], {}, 20),
    "ReduceSum of nothing": ("ReduceSum", [X, np.zeros(0, np.int64)], {"noop_with_empty_axes": 1}, 20),
    "Relu": ("Relu", [X], {}, 20),
    "Reshape": ("Reshape", [X, ints([0, -1])], {}, 20),
    "Selu": ("Selu", [X], {}, 20),
    "Shape": ("Shape", [X], {"start": 1, "end": -1}, 20),
    "Sigmoid": ("Sigmoid", [X], {}, 20),
    "Size": ("Size", [X], {}, 20),
    "Slice": ("Slice", [X, ints([1, -100]), ints([2**62, 3]), ints([1, -1]), ints([1, 2])], {}, 20),
    "Slice backwards": ("Slice", [X, ints([-1]), ints([-(2**62)]), ints([1]), ints([-1])], {}, 20),
    "Slice, old": ("Slice", [X], {"starts": [-1], "ends": [100], "axes": [1]}, 9),
    "Softmax": ("Softmax", [X], {}, 20),
    "Softmax, old": ("Softmax", [X], {}, 11),
    "Softplus": ("Softplus", [X], {}, 20),
    "Softsign": ("Softsign", [X], {}, 20),
    "Sqrt": ("Sqrt", [np.abs(X)], {}, 20),
    "Squeeze": ("Squeeze", [X[:, :1, :1], ints([-1, 1])], {}, 20),
    "Squeeze all": ("Squeeze", [X[:, :1]], {}, 20),
    "Squeeze, old": ("Squeeze", [X[:, :1]], {"axes": [1]}, 11),
    "Sub": ("Sub", [X, Y], {}, 20),
    "Sum": ("Sum", [X, Y, X], {}, 20),
    "Tanh": ("Tanh", [X], {}, 20),
    "Tile": ("Tile", [X, ints([2, 1, 3])], {}, 20),
    "Transpose": ("Transpose", [X], {"perm": [2, 0, 1]}, 20),
    "Transpose all": ("Transpose", [X], {}, 20),
    "Unsqueeze": ("Unsqueeze", [X, ints([-1, 0])], {}, 20),
    "Unsqueeze, old": ("Unsqueeze", [X], {"axes": [1]}, 11),
    "Where": ("Where", [X > 0, X, Y[:, :, :1]], {}, 20),
    "And": ("And", [X > 0, Y[:1] > 0], {}, 20),
    "BatchNormalization": ("BatchNormalization", [X, *CHANNELS, np.abs(CHANNELS[0])], {"epsilon": 0.01}, 20),
    "BatchNormalization, old": ("BatchNormalization", [X[..., None], *CHANNELS, np.abs(CHANNELS[0])], {"momentum": 0.8}, 9),
    "CumSum": ("CumSum", [X, ints(1)], {}, 20),
    "CumSum, exclusive": ("CumSum", [X, ints(-1)], {"exclusive": 1}, 20),
    "CumSum, reverse": ("CumSum", [INTEGERS, ints(1)], {"exclusive": 1, "reverse": 1}, 20),
    "DequantizeLinear": ("DequantizeLinear", [BYTES, np.float32(0.1), np.uint8(7)], {}, 20),
    "DequantizeLinear by axis": (
        "DequantizeLinear",
        [BYTES.view(np.int8), np.float32([0.1, 2]), np.int8([3, -3])],
        {"axis": 0},
        13,
    ),
    "DequantizeLinear of a bias": ("DequantizeLinear", [INTEGERS.astype(np.int32), np.float32(0.1)], {}, 10),
    "GatherElements": ("GatherElements", [X, ints([[[1, -1, 0], [0, 0, 1]]])], {"axis": 1}, 20),
    "GatherND": ("GatherND", [X, ints([[0, 1], [-1, 2]])], {}, 20),
    "GatherND of rows": ("GatherND", [X, ints([[1], [0]])], {"batch_dims": 1}, 20),
    "GatherND of two axes": ("GatherND", [X, ints([[[0], [1], [3]], [[3], [2], [0]]])], {"batch_dims": 2}, 20),
    "GlobalAveragePool": ("GlobalAveragePool", [X[None]], {}, 20),
    "GlobalMaxPool": ("GlobalMaxPool", [X], {}, 20),
    "Greater": ("Greater", [X, Y[:, :1]], {}, 20),
    "GreaterOrEqual": ("GreaterOrEqual", [INTEGERS, ints([5, -7, 5])], {}, 20),
    "GroupNormalization": ("GroupNormalization", [numbers(2, 6, 5), *numbers(2, 6)], {"num_groups": 3}, 21),
    "InstanceNormalization": ("InstanceNormalization", [X, *CHANNELS[:2]], {"epsilon": 0.01}, 20),
    "Less": ("Less", [X, Y], {}, 7),
    "LessOrEqual": ("LessOrEqual", [X, X[:1]], {}, 20),
    "MatMulInteger": ("MatMulInteger", [BYTES, BYTES.T.view(np.int8).copy(), np.uint8(3), np.int8([2, -5])], {}, 20),
    "MatMulInteger, plain": ("MatMulInteger", [BYTES, BYTES.T.copy()], {}, 10),
    "Mod": ("Mod", [INTEGERS, ints([2, -2, 4])], {}, 20),
    "Mod of floats": ("Mod", [X, Y], {"fmod": 1}, 20),
    "Not": ("Not", [X > 0], {}, 20),
    "OneHot": ("OneHot", [INTEGERS, ints(6), np.float32([0.5, 2])], {}, 20),
    "OneHot in front": ("OneHot", [INTEGERS, ints([6]), ints([0, 1])], {"axis": 0}, 11),
    "Or": ("Or", [X > 0, Y > 0], {}, 20),
    "PRelu": ("PRelu", [X, Y[0, :, :1]], {}, 20),
    "Pad": ("Pad", [X, ints([0, 1, 2, 1, 0, -3]), np.float32(0.5)], {}, 20),
    "Pad, some axes": ("Pad", [X, ints([-1, 2]), np.float32(0), ints([-2])], {"mode": "constant"}, 20),
    "Pad, old": ("Pad", [X], {"pads": [0, 0, 1, 0, 2, 0], "value": 1.5}, 10),
    "QuantizeLinear": ("QuantizeLinear", [9 * X, np.float32(0.1), np.uint8(7)], {}, 20),
    "QuantizeLinear by axis": ("QuantizeLinear", [X, np.float32([0.1, 2, 1]), np.int8([3, -3, 0])], {"axis": 1}, 13),
    "Range": ("Range", [ints(3), ints(20), ints(4)], {}, 20),
    "Range backwards": ("Range", [np.float32(1), np.float32(-1), np.float32(-0.25)], {}, 20),
    "Range of nothing": ("Range", [ints(3), ints(1), ints(1)], {}, 20),
    "ReduceL2": ("ReduceL2", [X, ints([0, -1])], {}, 20),
    "ReduceL2, old": ("ReduceL2", [X], {"axes": [1], "keepdims": 0}, 13),
    "ReduceLogSumExp": ("ReduceLogSumExp", [100 * X, ints([1])], {}, 20),
    "ReduceMin": ("ReduceMin", [X, ints([1])], {"keepdims": 0}, 20),
    "ReduceProd": ("ReduceProd", [INTEGERS, ints([1])], {}, 20),
    "ArgMin": ("ArgMin", [np.round(X)], {"axis": 1, "select_last_index": 1}, 20),
    "Ceil": ("Ceil", [3 * X], {}, 20),
    "Celu": ("Celu", [X], {"alpha": 0.5}, 20),
    "Cos": ("Cos", [X], {}, 20),
    "Einsum": ("Einsum", [X, Y], {"equation": "bid, bjd -> bij"}, 20),
    "Einsum, implicit": ("Einsum", [X, Y[0]], {"equation": "...ji,ki"}, 20),
    "Einsum of a diagonal": ("Einsum", [X[:, :3, :3]], {"equation": "...ii->...i"}, 20),
    "Einsum of one sum": ("Einsum", [X, Y], {"equation": "abc,abc->"}, 20),
    "Floor": ("Floor", [3 * X], {}, 20),
    "IsInf": ("IsInf", [ENDLESS], {}, 20),
    "IsInf above": ("IsInf", [ENDLESS], {"detect_negative": 0}, 20),
    "IsInf below": ("IsInf", [ENDLESS], {"detect_positive": 0}, 20),
    "IsNaN": ("IsNaN", [ENDLESS], {}, 20),
    "Mean": ("Mean", [X, Y, X[0]], {}, 20),
    "Mish": ("Mish", [3 * X], {}, 20),
    "ScatterElements": ("ScatterElements", [X, ints([[[1, -1, 0], [0, 0, 1]]]), Y[:1, :2, :3]], {"axis": 2}, 20),
    "ScatterElements, old": ("ScatterElements", [X[0], ints([[2, -1]]), Y[0, :1, :2]], {}, 11),
    "ScatterND": ("ScatterND", [X, ints([[0, 1], [-1, 2]]), Y[0, :2]], {}, 20),
    "ScatterND of numbers": ("ScatterND", [X, ints([[[0, 1, 2]], [[1, -1, 0]]]), Y[0, :2, :1]], {"reduction": "none"}, 20),
    "Sign": ("Sign", [np.round(X)], {}, 20),
    "Sign of integers": ("Sign", [INTEGERS], {}, 20),
    "Sin": ("Sin", [X], {}, 20),
    "Trilu": ("Trilu", [X], {}, 20),
    "Trilu below": ("Trilu", [X, ints(-1)], {"upper": 0}, 20),
    "Trilu far away": ("Trilu", [X, ints(2**62)], {}, 20),
    "Xor": ("Xor", [X > 0, Y > 0], {}, 20),
    "Round": ("Round", [np.float32([0.5, 1.5, -2.5, -0.4])], {}, 20),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_operator(case: str, tmp_path: Path) -> None:
    kind, arrays, attributes, opset = OPERATORS[case]
    inputs = {f"x{index}": np.asarray(array) for index, array in enumerate(arrays)}
    proto = typed(model([node(kind, " ".join(inputs), **attributes)], inputs, opset=opset))
    assert_equal(loaded(proto, tmp_path)(*inputs.values()), runtime(proto, inputs), 2e-6)


@pytest.mark.parametrize("case", ["largest", "smallest", "old"])
def test_top_k(case: str, tmp_path: Path) -> None:
    more = {"largest": {"axis": 1}, "smallest": {"largest": 0}, "old": {"k": 2}}[case]
    x, k = np.round(2 * X), {} if case == "old" else {"k": ints([2])}  # with equal ones
    proto = model([node("TopK", " ".join(["x", *k]), "y places", **more)], {"x": x}, k, "y places", 9 if case == "old" else 20)
    assert_equal(loaded(proto, tmp_path)(x), runtime(typed(proto), {"x": x}), 0)


@pytest.mark.parametrize("x", [3 * X, np.abs(X) + 1, -np.abs(X), 0 * X], ids=["both", "positive", "negative", "zeros"])
def test_dynamic_quantization(x: np.ndarray, tmp_path: Path) -> None:
    proto = model([node("DynamicQuantizeLinear", "x", "y scale zero")], {"x": x}, None, "y scale zero")
    assert_equal(loaded(proto, tmp_path)(x), runtime(typed(proto), {"x": x}), 0)


CONTRIB: dict[str, tuple[str, list[Any], dict[str, Any], str]] = {
    "FusedGemm": ("FusedGemm", [X[0], Y[0], Y[0, 0, :3]], {"transB": 1, "alpha": 0.5, "activation": "Relu"}, "y"),
    "FusedGemm by LeakyRelu": ("FusedGemm", [X[0], Y[0].T], {"activation": "LeakyRelu", "activation_alpha": 0.3}, "y"),
    "FusedMatMul": ("FusedMatMul", [X, Y], {"transB": 1, "alpha": 0.5}, "y"),
    "FusedMatMul, turned": ("FusedMatMul", [X, Y[0]], {"transA": 1, "transBatchA": 0}, "y"),
    "FusedMatMul of a vector": ("FusedMatMul", [X[0, :, 0], Y[0]], {"transA": 1}, "y"),
    "Gelu": ("Gelu", [X], {}, "y"),
    "QuickGelu": ("QuickGelu", [X], {}, "y"),
    "QuickGelu of another slope": ("QuickGelu", [X], {"alpha": 1.5}, "y"),
    "SkipLayerNormalization": ("SkipLayerNormalization", [X, Y, *Y[0]], {"epsilon": 0.01}, "y"),
    "SkipLayerNormalization and the sum": ("SkipLayerNormalization", [X, Y, Y[0, 0]], {}, "y - - sum"),
}


@pytest.mark.parametrize("case", CONTRIB)
def test_operator_of_onnx_runtime(case: str, tmp_path: Path) -> None:
    kind, arrays, attributes, outputs = CONTRIB[case]
    inputs = {f"x{index}": np.asarray(array) for index, array in enumerate(arrays)}
    made = node(kind, " ".join(inputs), outputs, domain="com.microsoft", **attributes)
    proto = model([made], inputs, outputs=outputs.replace("-", ""))
    graph = loaded(proto, tmp_path)
    for value in proto.graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    assert_equal(graph(*inputs.values()), runtime(proto, inputs))


@pytest.mark.parametrize(("axis", "given"), [(1, None), (2, [2, 1, 1])])
def test_split(axis: int, given: list[int] | None, tmp_path: Path) -> None:
    sizes = {} if given is None else {"sizes": np.array(given)}
    more = {"num_outputs": 3} if given is None else {}
    proto = model([node("Split", " ".join(["x", *sizes]), "a b c", axis=axis, **more)], {"x": X}, sizes, "a b c")
    assert_equal(loaded(proto, tmp_path)(X), runtime(typed(proto), {"x": X}), 0)


I, H, T, B = 3, 4, 6, 2


def lstm_constants(D: int = 1, inputs: int = I) -> dict[str, np.ndarray]:
    shapes = {"W": (D, 4 * H, inputs), "R": (D, 4 * H, H), "B": (D, 8 * H)}
    return {name: numbers(*shape) / 2 for name, shape in shapes.items()}


def head() -> tuple[Any, dict[str, np.ndarray]]:
    """An LSTM and two dense layers after it."""
    nodes = [
        node("LSTM", "x W R B", "a", hidden_size=H),
        node("Squeeze", "a one", "b"),
        node("Gather", "b zero", "c", axis=0),
        node("Gemm", "c fc bias", "d", transB=1),
        node("Relu", "d", "e"),
        node("MatMul", "e out"),
    ]
    constants = {"one": ints([1]), "zero": ints(0), "fc": numbers(5, H), "bias": numbers(5), "out": numbers(5, 3)}
    inputs = {"x": numbers(T, B, I)}
    return typed(model(nodes, inputs, lstm_constants() | constants, opset=17)), inputs


def test_saved_by_onnx_runtime(tmp_path: Path) -> None:
    """With a Gemm and a Relu in one node."""
    ort = required("onnxruntime")
    proto, inputs = head()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert "FusedGemm" in {each.op_type for each in optimized.graph.node}
    assert_equal(loaded(optimized, tmp_path)(*inputs.values()), runtime(proto, inputs))


def test_quantized_by_onnx_runtime(tmp_path: Path) -> None:
    """Dense layers of 8 bits run as there, where the LSTM stays in float32."""
    required("onnxruntime")
    quantization = required("onnxruntime.quantization")
    proto, inputs = head()
    onnx.save(proto, tmp_path / "plain.onnx")
    kinds = ["Gemm", "MatMul"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_dynamic(tmp_path / "plain.onnx", tmp_path / "small.onnx", op_types_to_quantize=kinds)
    small = onnx.load(tmp_path / "small.onnx")
    assert "MatMulInteger" in {each.op_type for each in small.graph.node}
    (expected,) = runtime(small, inputs)
    # A number beside the half of a step may be rounded to the other side
    assert np.abs(loaded(small, tmp_path)(*inputs.values()) - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("state", ["", "h c", "h -", "- c"])
@pytest.mark.parametrize("lengths", [False, True])
def test_lstm(direction: str, state: str, lengths: bool, tmp_path: Path) -> None:
    D = 2 if direction == "bidirectional" else 1
    inputs = {"x": numbers(T, B, I)} | {name: numbers(D, B, H, seed=ord(name)) for name in state.replace("-", "").split()}
    if lengths:
        inputs["n"] = np.array([T, 2], np.int32)
    words = f"x W R B {'n' if lengths else '-'} {state}"
    proto = model([node("LSTM", words, "y h_n c_n", direction=direction, hidden_size=H)], inputs, lstm_constants(D), "y h_n c_n")
    graph = loaded(proto, tmp_path)
    expected = runtime(typed(proto), inputs)
    assert_equal(graph(*inputs.values()), expected)

    # Batch first, which ONNX Runtime does not run
    proto.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    turned = [value if value.ndim == 1 else value.swapaxes(0, 1) for value in inputs.values()]
    y, *states = expected
    assert_equal(loaded(proto, tmp_path)(*turned), [y.transpose(2, 0, 1, 3), *(part.swapaxes(0, 1) for part in states)])


@pytest.mark.parametrize("kind", ["linear", "input", "encoder", "learned", "both learned", "computed and learned"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_one_state_of_two(kind: str, dynamic: bool, tmp_path: Path) -> None:
    """One state computed, given or learned, the other zeros or learned: the graph runs; of the LSTM alone zeros are no state."""
    torch = import_torch()
    nn = torch.nn
    torch.manual_seed(0)

    class Module(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.encoder, self.linear = nn.LSTM(I, H), nn.LSTM(I, H), nn.Linear(H, H)
            self.h, self.c = (nn.Parameter(torch.randn(1, 1, H)) for _ in range(2))

        def forward(self, x: Any, z: Any) -> Any:
            B = x.size(1)
            h = {
                "linear": lambda: self.linear(z).unsqueeze(0),
                "input": lambda: z.unsqueeze(0),
                "encoder": lambda: self.encoder(x)[1][0] + 0 * z,
                "learned": lambda: self.h.expand(1, B, H).contiguous(),
                "both learned": lambda: self.h.expand(1, B, H).contiguous(),
                "computed and learned": lambda: self.linear(z).unsqueeze(0),
            }[kind]()
            c = self.c.repeat(1, B, 1) if kind.endswith(" learned") else torch.zeros_like(h)
            return self.lstm(x, (h, c))[0] + z

    module = Module().eval()
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = torch.randn(T, B, I), torch.randn(B, H)
        axes = {"dynamic_axes": {"x": {1: "B"}, "z": {0: "B"}}} if dynamic else {}
        torch.onnx.export(module, given, path, dynamo=False, opset_version=17, input_names=["x", "z"], **axes)
    graph, rows = load_model(path), B + 3 if dynamic else B
    given = torch.randn(T, rows, I), torch.randn(rows, H)
    with torch.no_grad():
        assert_equal(graph(*map(np.asarray, given)), [module(*given).numpy()])
    if kind == "computed and learned":
        with pytest.raises(FormatError, match="one initial state is a constant that is not zero, another is given at run time"):
            load(path)
    else:
        lstm = load(path, None if kind != "encoder" else "/lstm/LSTM")
        assert lstm.weights.is_variant == ("learned" in kind)


def test_nodes_with_the_same_weights_share_them(tmp_path: Path) -> None:
    nodes = [node("LSTM", "x W R B", "y1", hidden_size=H), node("LSTM", "z W R B", "y2", hidden_size=H)]
    proto = model([*nodes, node("Add", "y1 y2")], {"x": numbers(T, B, I), "z": numbers(T, B, I)}, lstm_constants())
    graph = loaded(proto, tmp_path)
    assert len({id(step.lstm) for step in graph.steps if hasattr(step, "lstm")}) == 1
    inputs = {"x": numbers(T, B, I), "z": numbers(T, B, I, seed=1)}
    assert_equal(graph(*inputs.values()), runtime(typed(proto), inputs))


def test_dead_nodes_are_left_out(tmp_path: Path) -> None:
    nodes = [node("Conv", "x W", "nobody"), node("NonZero", "nobody", "either"), node("Relu", "x")]
    assert repr(loaded(model(nodes, {"x": X}), tmp_path)) == "Graph(x -> y: 1 nodes)"


def test_nodes_in_any_order(tmp_path: Path) -> None:
    """Some tools add nodes at the end of the list."""
    nodes = [
        node("Cast", "x", "a", "in", to=TensorProto.FLOAT16),
        node("LSTM", "a W R B", "b", "lstm", hidden_size=H),
        node("Squeeze", "b one", "c"),
        node("Identity", "one1", "one"),
        node("Mul", "c c", "y"),
    ]
    constants = lstm_constants() | {"one1": ints([1])}
    inputs = {"x": numbers(T, B, I)}
    ordered = loaded(model(nodes, inputs, constants), tmp_path)
    assert [step.name for step in ordered.steps if not hasattr(step, "value")] == ["in", "lstm", "c", "y"]
    for order in ([4, 1, 2, 0, 3], [1, 2, 3, 4, 0], [4, 3, 2, 1, 0]):
        graph = loaded(model([nodes[place] for place in order], inputs, constants), tmp_path)
        assert graph(*inputs.values()).tobytes() == ordered(*inputs.values()).tobytes()
        assert load(tmp_path / "model.onnx", "lstm").hidden_size == H
    many = [node("Neg", f"x{n}", f"x{n + 1}") for n in range(5000)]
    assert_equal(loaded(model(many[::-1], {"x0": X}, outputs="x5000"), tmp_path)(X), [X], 0)


def test_converted_to_float16(tmp_path: Path) -> None:
    """ONNX Runtime's converter puts the Cast of an input after all other nodes."""
    required("onnxruntime")
    float16 = required("onnxruntime.transformers.float16")
    nodes = [node("LSTM", "x W R B", "a", hidden_size=H), node("Squeeze", "a one", "b"), node("Relu", "b", "y")]
    inputs = {"x": numbers(T, B, I)}
    proto = typed(model(nodes, inputs, lstm_constants() | {"one": ints([1])}))
    expected = loaded(proto, tmp_path)(*inputs.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = float16.convert_float_to_float16(proto, keep_io_types=True)
    assert converted.graph.node[0].op_type != "Cast"
    given = loaded(converted, tmp_path)(*inputs.values())
    assert given.dtype == np.float32
    assert np.abs(given - expected).max() < 1e-3


def test_a_long_chain_of_nodes(tmp_path: Path) -> None:
    nodes = [node("Neg", f"x{n}", f"x{n + 1}") for n in range(301)]
    assert_equal(loaded(model(nodes, {"x0": X}, outputs="x301"), tmp_path)(X), [-X], 0)


def test_a_row_has_the_same_bits_in_any_batch() -> None:
    graph = load_model(GOLDEN / "graph_dynamo.onnx")
    tokens = np.random.default_rng(0).integers(0, 11, (5, 6))
    tags, topic = graph(tokens)
    for row in range(5):
        alone = graph(tokens[row : row + 1])
        assert alone[0].tobytes() == tags[row].tobytes()
        assert alone[1].tobytes() == topic[row].tobytes()


# ---- The object ----------------------------------------------------------------------------------------------------------------


def test_results_own_their_memory(tmp_path: Path) -> None:
    nodes = [node("Identity", "c", "same"), node("Transpose", "x", "turned"), node("Expand", "x sizes", "wide")]
    constants = {"c": numbers(2, 2), "sizes": np.array([3, 2, 3, 4])}
    graph = loaded(model(nodes, {"x": X}, constants, "same turned wide x"), tmp_path)
    x = X.copy()
    for result in graph(x):
        result[...] = 7
    assert (x == X).all()
    assert_equal(graph(x), [constants["c"], X.T, np.broadcast_to(X, (3, 2, 3, 4)), X], 0)


def test_pickle_and_stream(tmp_path: Path) -> None:
    graph = load_model(GOLDEN / "graph_torchscript.onnx")
    tokens = np.arange(6).reshape(2, 3)
    for given, expected in zip(pickle.loads(pickle.dumps(graph))(tokens), graph(tokens), strict=True):
        assert given.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="which axis is time"):
        graph.stream()
    assert not isinstance(graph, Model)


def test_memory_is_free_when_nobody_reads_it_any_more(tmp_path: Path) -> None:
    """Together the results are over the limit, at any time only three of them are there."""
    nodes = [node("Neg", f"x{n}", f"x{n + 1}") for n in range(64)]
    x = np.zeros(FLOOR // 32, np.float32)
    proto = model([node("Expand", "z sizes", "x0"), *nodes], {"z": x[:1]}, {"sizes": np.array([len(x)])}, "x64")
    assert loaded(proto, tmp_path)(x[:1]).shape == x.shape


# ---- Refused at a call ---------------------------------------------------------------------------------------------------------

ONE = np.ones(1, np.float32)
HUGE = np.array([2**20, 2**20])
PAIR = node("Add", "x x", name="adds")

# name: (nodes, inputs, constants, the error, parts of its message)
CALLS: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "another rank": (
        [PAIR],
        {"x": ((TensorProto.FLOAT, ["B", 4]), X)},
        {},
        ValueError,
        ("'x' must have shape (B, 4)", "(2, 3, 4)"),
    ),
    "another size": ([PAIR], {"x": ((TensorProto.FLOAT, [None, 3, 5]), X)}, {}, ValueError, ("(?, 3, 5)",)),
    "another dtype": ([PAIR], {"x": ((TensorProto.FLOAT, None), X.astype(float))}, {}, TypeError, ("input 'x' must be float32",)),
    "floats for integers": ([PAIR], {"x": ((TensorProto.INT64, None), X)}, {}, TypeError, ("input 'x' must be int64",)),
    "integers too large": ([PAIR], {"x": ((TensorProto.INT32, None), ints([2**40]))}, {}, ValueError, ("outside of int32",)),
    "shapes that do not fit": (
        [node("Add", "x z", name="adds")],
        {"x": X, "z": X[:, :2]},
        {},
        ValueError,
        ("node 'adds' (Add)", "shape mismatch"),
    ),
    "dtypes that do not fit": (
        [node("Add", "x z", name="adds")],
        {"x": X[0, :2, :3], "z": INTEGERS},
        {},
        ValueError,
        ("node 'adds' (Add)", "float32 and int64"),
    ),
    "no floats": (
        [node("Tanh", "x", name="t")],
        {"x": INTEGERS},
        {},
        ValueError,
        ("node 't' (Tanh): floats expected, got int64",),
    ),
    "an index too large": (
        [node("Gather", "table x")],
        {"x": ints([5])},
        {"table": X[0]},
        ValueError,
        ("'y' (Gather)", "out of bounds"),
    ),
    "a shape that does not fit": (
        [node("Reshape", "x s")],
        {"x": X},
        {"s": ints([5, -1])},
        ValueError,
        ("(Reshape)", "cannot reshape"),
    ),
    "an axis that is not there": ([node("Squeeze", "x s")], {"x": X}, {"s": ints([4])}, ValueError, ("axis 4", "3 dimensions")),
    "X of two dimensions": (
        [node("LSTM", "x W R B", hidden_size=H, name="l")],
        {"x": X[0]},
        lstm_constants(),
        ValueError,
        ("'l' (LSTM): X must have 3",),
    ),
    "X of another size": (
        [node("LSTM", "x W R B", hidden_size=H, name="l")],
        {"x": X},
        lstm_constants(),
        ValueError,
        ("'l' (LSTM): x must have", "3"),
    ),
    "lengths too large": (
        [node("LSTM", "x W R B n", hidden_size=H, name="l")],
        {"x": numbers(T, 1, I), "n": np.array([99], np.int32)},
        lstm_constants(),
        ValueError,
        ("'l' (LSTM)", "lengths[0] = 99"),
    ),
    "Expand": (
        [node("Expand", "x s", name="e")],
        {"x": ONE},
        {"s": HUGE},
        ValueError,
        ("'e' (Expand)", "1099511627776 elements"),
    ),
    "Tile": ([node("Tile", "x s")], {"x": ONE}, {"s": ints([2**40])}, ValueError, ("(Tile)", "elements")),
    "ConstantOfShape": (
        [node("Mul", "x s", "n"), node("ConstantOfShape", "n")],
        {"x": ints([1])},
        {"s": HUGE},
        ValueError,
        ("(ConstantOfShape)", "elements"),
    ),
    "Range": (
        [node("Range", "x s one")],
        {"x": ints(0)},
        {"s": ints(2**40), "one": ints(1)},
        ValueError,
        ("(Range)", "elements"),
    ),
    "Range without an end": (
        [node("Range", "x s one")],
        {"x": np.float32(0)},
        {"s": np.float32(1), "one": np.float32(0)},
        ValueError,
        ("(Range)", "division"),
    ),
    "OneHot": (
        [node("OneHot", "x s two")],
        {"x": np.zeros((1, 0), np.int64)},
        {"s": ints(2**40), "two": ONE.repeat(2)},
        ValueError,
        ("(OneHot)", "elements"),
    ),
    "Pad": ([node("Pad", "x s")], {"x": ONE}, {"s": ints([0, 2**40])}, ValueError, ("(Pad)", "elements")),
    "Pad that takes too much": ([node("Pad", "x s")], {"x": ONE}, {"s": ints([-2, 5])}, ValueError, ("(Pad)", "of an axis of 1")),
    "TopK of too many": ([node("TopK", "x s", "y i")], {"x": ONE}, {"s": ints([2])}, ValueError, ("(TopK): the first 2 of 1",)),
    "GatherND": (
        [node("Expand", "x s", "i"), node("GatherND", "table i")],
        {"x": ints([0])},
        {"s": ints([2**20, 1]), "table": numbers(2, 64)},
        ValueError,
        ("(GatherND)", "elements"),
    ),
    "GatherElements of more": (
        [node("GatherElements", "x s")],
        {"x": X[0, 0]},
        {"s": ints([7])},
        ValueError,
        ("(GatherElements)", "out of bounds"),
    ),
    "numbers for Not": ([node("Not", "x")], {"x": X}, {}, ValueError, ("(Not): bool expected, got float32",)),
    "an outer product": (
        [node("Expand", "x s", "a"), node("Reshape", "a column", "b"), node("MatMul", "b a")],
        {"x": ONE},
        {"s": ints([1, 2**14]), "column": ints([-1, 1])},
        ValueError,
        ("(MatMul)", "elements"),
    ),
    "sums of rows and columns": (
        [node("Expand", "x s", "a"), node("Reshape", "a column", "b"), node("Add", "b a")],
        {"x": ONE},
        {"s": ints([1, 2**14]), "column": ints([-1, 1])},
        ValueError,
        ("(Add)", "elements"),
    ),
    "doubled again and again": (
        [node("Concat", f"x{n} x{n}", f"x{n + 1}", axis=0) for n in range(40)] + [node("Size", "x40")],
        {"x0": ONE},
        {},
        ValueError,
        ("(Concat)", "elements"),
    ),
    "views that keep much": (
        [
            step
            for n in range(40)
            for step in (node("Expand", "x s", f"e{n}"), node("Neg", f"e{n}", f"n{n}"), node("Slice", f"n{n} zero one", f"s{n}"))
        ]
        + [node("Concat", " ".join(f"s{n}" for n in range(40)), axis=0)],
        {"x": ONE},
        {"s": ints([2**20]), "zero": ints([0]), "one": ints([1])},
        ValueError,
        ("elements",),
    ),
    "many indices": (
        [node("Expand", "x s", "i"), node("Gather", "table i")],
        {"x": ints([0])},
        {"s": ints([2**20]), "table": numbers(2, 64)},
        ValueError,
        ("(Gather)", "elements"),
    ),
    "an outer product by Einsum": (
        [node("Expand", "x s", "x1"), node("Einsum", "x1 x1", equation="i,j->ij")],
        {"x": ONE},
        {"s": ints([2**13])},
        ValueError,
        ("(Einsum)", "elements"),
    ),
    "an equation of other letters": ([node("Einsum", "x", equation="ij->k")], {"x": X[0]}, {}, ValueError, ("(Einsum)", "'k'")),
    "an index beyond": (
        [node("ScatterElements", "x i x")],
        {"x": X, "i": np.full(X.shape, 3)},
        {},
        ValueError,
        ("(ScatterElements)", "out of bounds"),
    ),
    "fewer updates than places": (
        [node("ScatterND", "x i u")],
        {"x": X, "i": ints([[0], [1]]), "u": X[:1]},
        {},
        ValueError,
        ("(ScatterND): updates of float32 and shape (2, 3, 4) expected",),
    ),
    "updates of another type": (
        [node("ScatterElements", "x i u")],
        {"x": X, "i": np.zeros(X.shape, np.int64), "u": X.astype(np.float64)},
        {},
        ValueError,
        ("(ScatterElements): updates of float32", "got float64"),
    ),
    "a triangle of a vector": ([node("Trilu", "x")], {"x": X[0, 0]}, {}, ValueError, ("(Trilu): matrices expected",)),
    "a long sequence": (
        [node("Expand", "x s", "x1"), node("LSTM", "x1 W R B", hidden_size=H)],
        {"x": ONE},
        {"s": ints([2**22, 1, 1])} | lstm_constants(inputs=1),
        ValueError,
        ("(LSTM)", "elements"),
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_call(case: str, tmp_path: Path) -> None:
    nodes, inputs, constants, kind, parts = CALLS[case]
    declared = {name: value[0] if isinstance(value, tuple) else value for name, value in inputs.items()}
    proto = model(nodes, declared, constants, nodes[-1].output[0])
    arrays = [value[1] if isinstance(value, tuple) else value for value in inputs.values()]
    graph = loaded(proto, tmp_path)
    with pytest.raises(kind) as caught:
        graph(*arrays)
    for part in parts:
        assert part in str(caught.value)


def test_number_of_inputs(tmp_path: Path) -> None:
    graph = loaded(model([node("Add", "x z")], {"x": X, "z": X}), tmp_path)
    for arrays in ((), (X,), (X, X, X)):
        with pytest.raises(TypeError, match=r"takes 2 input\(s\) \('x', 'z'\), got"):
            graph(*arrays)


# ---- Refused when it is loaded -------------------------------------------------------------------------------------------------

LSTM = node("LSTM", "x W R B", "y", "rnn", hidden_size=H)
ALONE = "the LSTM alone: fastlstm.load(path, name='rnn')"
SEQUENCE = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)


def changed(proto: Any, **lists: Any) -> Any:
    for key, value in lists.items():
        getattr(proto.graph, key).append(value)
    return proto


def after(*nodes: Any, outputs: str = "z", opset: int = 20, **constants: Any) -> Any:
    """An LSTM and what comes after it."""
    return model([LSTM, *nodes], {"x": X}, lstm_constants(inputs=4) | constants, outputs, opset)


BRANCH = helper.make_graph([node("Identity", "y", "b")], "branch", [], [helper.make_empty_tensor_value_info("b")])

BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "an operator": (after(node("Conv", "y W", "z", "conv")), ("node 'conv' is 'Conv', which is not supported", ALONE)),
    "the first of two": (
        after(node("Conv", "y W", "a", "conv"), node("Loop", "a", "z", "loop")),
        ("node 'conv' is 'Conv'", ALONE),
    ),
    "a GRU": (after(node("GRU", "y W R", "z", "gru", hidden_size=4)), ("node 'gru' is 'GRU'", ALONE)),
    "an If": (
        after(node("If", "t", "z", "if", then_branch=BRANCH, else_branch=BRANCH), t=np.array(True)),
        ("node 'if' is 'If'", ALONE),
    ),
    "another domain": (
        after(node("Attention", "y W", "z", "f", domain="com.microsoft")),
        ("'f' is 'com.microsoft.Attention'", ALONE),
    ),
    "an unknown attribute": (after(node("Relu", "y", "z", "r", limit=6.0)), ("node 'r' ('Relu') attribute 'limit'", ALONE)),
    "no axis": (after(node("Concat", "y y", "z", "c")), ("node 'c' ('Concat') lacks the attribute axis",)),
    "too many inputs": (after(node("Relu", "y y", "z", "r")), ("node 'r' ('Relu') has 2 inputs; expected 1 to 1",)),
    "too few inputs": (after(node("Add", "y -", "z", "a")), ("node 'a' ('Add') has 1 inputs; expected 2 to 2",)),
    "a cast to text": (after(node("Cast", "y", "z", "c", to=8)), ("node 'c' ('Cast') casts to data type 8",)),
    "Dropout that trains": (
        after(node("Dropout", "y ratio train", "z", "d"), ratio=np.float32(0.5), train=np.array(True)),
        ("node 'd' ('Dropout')", "'train'"),
    ),
    "a mask of Dropout": (after(node("Dropout", "y", "z mask", "d")), ("node 'd' ('Dropout') has 2 outputs",)),
    "statistics of a layer norm": (
        after(node("LayerNormalization", "y g", "z mean", "n"), g=numbers(4)),
        ("node 'n' ('LayerNormalization') has 2 outputs",),
    ),
    "another Gelu": (after(node("Gelu", "y", "z", "g", approximate="other")), ("node 'g' ('Gelu') approximate",)),
    "a Split into another number": (after(node("Split", "y", "z", "s", num_outputs=2)), ("node 's' ('Split') num_outputs",)),
    "a name from nowhere": (after(node("Add", "y nowhere", "z", "a")), ("'nowhere' is read and nothing before gives it",)),
    "a loop": (after(node("Add", "y b", "a"), node("Neg", "a", "b"), outputs="b"), ("need each other's results: 'a', 'b'",)),
    "itself": (after(node("Add", "y b", "b", "adds"), outputs="b"), ("need each other's results: 'adds'", ALONE)),
    "an output from nowhere": (after(outputs="nowhere"), ("'nowhere' is read and nothing before gives it",)),
    "no output": (after(outputs=""), ("the graph has no outputs", ALONE)),
    "an output without a name": (
        changed(after(), output=helper.make_empty_tensor_value_info("")),
        ("an input or output of the graph has no name",),
    ),
    "BatchNormalization that trains": (
        after(node("BatchNormalization", "y g g g g", "z", "b", training_mode=1), g=numbers(1)),
        ("node 'b' ('BatchNormalization') training_mode",),
    ),
    "Pad by reflection": (
        after(node("Pad", "y p", "z", "p", mode="reflect"), p=ints([0] * 8)),
        ("node 'p' ('Pad') mode must be",),
    ),
    "blocks": (
        after(node("DequantizeLinear", "y g", "z", "d", block_size=2), g=numbers(1)),
        ("node 'd' ('DequantizeLinear') block_size",),
    ),
    "an unknown activation": (
        after(node("FusedGemm", "y g", "z", "f", domain="com.microsoft", activation="Elu"), g=numbers(1)),
        ("node 'f' ('FusedGemm') an activation of Relu",),
    ),
    "an old operator set": (after(outputs="y", opset=6), ("operator set 6",)),
    "an input that is no tensor": (changed(after(outputs="y"), input=SEQUENCE), ("input 's' of the graph is no tensor",)),
    "text": (changed(after(outputs="y"), input=helper.make_tensor_value_info("s", 8, None)), ("input 's' of the graph",)),
    "too many dimensions": (
        changed(after(outputs="y"), input=helper.make_tensor_value_info("s", 1, [1] * 99)),
        ("'s' of the graph has 99 dimensions",),
    ),
    "an LSTM that cannot be read": (
        model([node("LSTM", "x W R B", "y", "rnn", hidden_size=5)], {"x": X}, lstm_constants()),
        ("LSTM node 'rnn' has W of shape",),
    ),
    "an LSTM without X": (
        model([node("LSTM", "- W R B", "y", "rnn", hidden_size=H)], {"x": X}, lstm_constants()),
        ("node 'rnn' ('LSTM') lacks X",),
    ),
    "weights that are inputs": (
        model([LSTM], {"x": X, "W": numbers(1, 16, 3)}, {k: v for k, v in lstm_constants().items() if k != "W"}),
        ("LSTM node 'rnn' has no constant W",),
    ),
    "an equation": (after(node("Einsum", "y y", "z", equation="i..j,k->")), ("'i..j,k->'", "letters and dots")),
    "an equation of three": (after(node("Einsum", "y y y", "z", equation="i,j,k->")), ("has 3 inputs; expected 1 to 2",)),
    "a reduction": (after(node("ScatterND", "y i y", "z", reduction="add"), i=ints([[0]])), ("reduction must be none",)),
    "batches turned": (
        after(node("FusedMatMul", "y y", "z", domain="com.microsoft", transBatchA=1)),
        ("transBatchA and transBatchB must be 0",),
    ),
    "NaN": (
        after(node("Add", "y n", "z"), n=np.float32(np.nan)),
        ("n.value holds 1 NaN", "allow_nonfinite=True"),
    ),
    "infinity in a product": (
        after(node("MatMul", "y n", "z"), n=np.full((H, 1), np.inf, np.float32)),
        ("n.value holds 4 NaN or infinite values",),
    ),
    "infinity among numbers": (
        after(node("Add", "y n", "z"), n=np.float32([1, np.inf, 0, 1])),
        ("n.value holds 1 NaN or infinite values",),
    ),
    "infinity as a state": (
        model(
            [node("LSTM", "x W R B - h", "y", "rnn", hidden_size=H), node("Add", "y h", "z")],
            {"x": X},
            lstm_constants() | {"h": np.full((1, B, H), np.inf, np.float32)},
        ),
        ("h.value holds",),
    ),
    "large constants": (
        after(
            *(node("Expand", f"one{n} s", f"e{n}") for n in range(9)),
            node("Sum", " ".join(f"e{n}" for n in range(9)) + " y", "z"),
            s=np.array([2**20]),
            **{f"one{n}": np.float32(n) for n in range(9)},
        ),
        ("the constants take more than",),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str, tmp_path: Path) -> None:
    proto, parts = BAD[case]
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(FormatError) as caught:
        load_model(path)
    for part in ("model.onnx", *parts):
        assert part in str(caught.value)


def test_which_lstms_can_be_loaded_alone(tmp_path: Path) -> None:
    """All of them: the node that does not run may come after any."""
    second = node("LSTM", "a W2 R B", "b", "second", hidden_size=H)
    nodes = [node("LSTM", "x W R B", "y", "first", hidden_size=H), node("Conv", "y W", "a", "conv"), second]
    path = tmp_path / "model.onnx"
    onnx.save(model(nodes, {"x": X}, lstm_constants(inputs=4) | {"W2": numbers(1, 4 * H, 3)}, "b"), path)
    with pytest.raises(FormatError) as caught:
        load_model(path)
    assert str(caught.value).endswith("one of its LSTMs alone: fastlstm.load(path, name=...) with 'first', 'second'")


def test_nonfinite_constants_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model([node("Mul", "x n")], {"x": X}, {"n": np.float32(np.inf)}), path)
    assert np.isinf(load_model(path, allow_nonfinite=True)(X)).all()


MASKS = {"scalar": np.float32(-np.inf), "causal": np.triu(np.full((T, T), -np.inf, np.float32), 1)}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_of_attention(mask: np.ndarray, tmp_path: Path) -> None:
    """Where a score is masked, softmax gives 0."""
    allowed = np.tril(np.ones((T, T), bool))
    nodes = [node("Where", "allowed x mask", "s")] if mask.ndim == 0 else [node("Add", "x mask", "s")]
    scores = numbers(B, T, T)
    proto = model([*nodes, node("Softmax", "s", axis=-1)], {"x": scores}, {"allowed": allowed, "mask": mask})
    result = loaded(proto, tmp_path)(scores)
    assert_equal(result, runtime(proto, {"x": scores}))
    assert not result[:, ~allowed].any()


def test_a_tile_takes_no_more_than_its_result() -> None:
    """An array for each axis would be half as much again."""
    tracemalloc.start()
    try:
        result = tile(np.ones((2, 1), np.float32), np.array([1 << 20, 2]))
        assert tracemalloc.get_traced_memory()[1] < 1.1 * result.nbytes
    finally:
        tracemalloc.stop()
    assert result.shape == (1 << 21, 2)
