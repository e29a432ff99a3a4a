"""TensorFlow 1's variables: the network computes what its cells are documented to compute.

TensorFlow 1 runs on no Python that is still supported, so the equations of its cells are written out here, from
``tensorflow/python/ops/rnn_cell_impl.py`` (BasicLSTMCell.call, LSTMCell.call) and ``rnn.py``: i, j, f, o = split([x, h] K + b).
What the same cells of TensorFlow 2.15 gave is in test_tensorflow_itself.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import tensorflow_cell as cell
from files import values
from helpers import refused

import fastlstm
from fastlstm import Weights
from fastlstm.cell import PLAIN, Cell
from fastlstm.loaders import from_haste, from_tensorflow, kernel_names, live, load, scan, tensorflow_names

I, H, P = 3, 5, 2
B, T = 2, 7
Variables = dict[str, np.ndarray]


# ---- TensorFlow's equations ----------------------------------------------------------------------------------------------------


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def run_cell(
    variables: Variables,
    scope: str,
    x: np.ndarray,
    state: tuple[np.ndarray, np.ndarray] | None = None,
    forget_bias: float = 1.0,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs (B, T, P or H), the last c and the last m (TensorFlow's h) of one cell over (B, T, I), in float64."""
    own = {
        name.removeprefix(scope + "/"): value.astype(np.float64) for name, value in variables.items() if name.startswith(scope)
    }
    hidden, proj = own["bias"].size // 4, own.get("projection/kernel")
    c = np.zeros((len(x), hidden)) if state is None else state[0]
    m = np.zeros((len(x), hidden if proj is None else proj.shape[1])) if state is None else state[1]
    w_i, w_f, w_o = (own.get(f"w_{gate}_diag", np.zeros(hidden)) for gate in "ifo")
    outputs = []
    for t in range(x.shape[1]):
        i, j, f, o = np.split(np.concatenate([x[:, t], m], 1) @ own["kernel"] + own["bias"], 4, axis=1)
        c = sigmoid(f + forget_bias + w_f * c) * c + sigmoid(i + w_i * c) * np.tanh(j)
        c = c if cell_clip is None else np.clip(c, -cell_clip, cell_clip)
        m = sigmoid(o + w_o * c) * np.tanh(c)
        m = m if proj is None else m @ proj
        m = m if proj_clip is None else np.clip(m, -proj_clip, proj_clip)
        outputs.append(m)
    return np.stack(outputs, 1), c, m


def run_weights(weights: Weights, x: np.ndarray) -> np.ndarray:
    """What canonical weights mean (``fastlstm.cell``), for variants too: outputs (B, T, D * (P or H)), in float64."""
    y, directions = x.astype(np.float64), weights.num_directions
    for first in range(0, len(weights.layers), directions):
        outputs = []
        for k, w in enumerate(weights.layers[first : first + directions]):
            backwards = k == 1 or weights.reverse
            peephole = np.zeros(3 * weights.hidden_size) if w.weight_peephole is None else w.weight_peephole.astype(np.float64)
            p_i, p_f, p_o = np.split(peephole, 3)
            h, c = np.zeros((len(x), w.weight_hh.shape[1])), np.zeros((len(x), weights.hidden_size))
            out = np.zeros((*y.shape[:2], h.shape[1]))
            for t in reversed(range(y.shape[1])) if backwards else range(y.shape[1]):
                z = y[:, t] @ w.weight_ih.T.astype(np.float64) + h @ w.weight_hh.T.astype(np.float64)
                z_i, z_f, z_g, z_o = np.split(z + w.bias_ih.astype(np.float64) + w.bias_hh.astype(np.float64), 4, axis=1)
                c = sigmoid(z_f + p_f * c) * c + sigmoid(z_i + p_i * c) * np.tanh(z_g)
                c = np.clip(c, -w.cell.cell_clip, w.cell.cell_clip) if w.cell.cell_clip else c
                h = sigmoid(z_o + p_o * c) * np.tanh(c)
                h = h if w.weight_hr is None else h @ w.weight_hr.T.astype(np.float64)
                h = np.clip(h, -w.cell.proj_clip, w.cell.proj_clip) if w.cell.proj_clip else h
                out[:, t] = h
            outputs.append(out)
        y = np.concatenate(outputs, 2)
    return y


def weights_of(variables: Variables, name: str | None = None, forget_bias: float = 1.0, cell: Cell = PLAIN) -> Weights:
    """As :func:`from_tensorflow`, for variants too."""
    options = tensorflow_names.TensorFlowOptions(forget_bias, cell)
    found = tensorflow_names.find(live.flattened(variables), live.read_one, options=options, asked=name)
    from fastlstm.loaders.found import Contents

    chosen = Contents(found, "").choose(name)
    assert chosen.read is not None
    return chosen.read()


def check(weights: Weights, expected: np.ndarray, x: np.ndarray) -> None:
    np.testing.assert_allclose(run_weights(weights, x), expected, rtol=0, atol=1e-12)
    output, _ = fastlstm.LSTM.from_weights(weights, batch_first=True)(x.astype(np.float32))
    np.testing.assert_allclose(output, expected, rtol=0, atol=3e-6)


X = values(100, B, T, I)


# ---- Cells ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scope", ["basic_lstm_cell", "rnn/basic_lstm_cell", "decoder/rnn/lstm_cell", "lstm_fused_cell", "BasicLSTMCell"]
)
@pytest.mark.parametrize("forget_bias", [1.0, 0.0, 2.5])
def test_basic_cell(scope: str, forget_bias: float) -> None:
    variables = cell(scope)
    expected, c, h = run_cell(variables, scope, X, forget_bias=forget_bias)
    lstm = from_tensorflow(variables, forget_bias=forget_bias)
    output, (h_n, c_n) = lstm(X)
    for given, wanted in ((output, expected), (h_n[0], h), (c_n[0], c)):
        np.testing.assert_allclose(given, wanted, rtol=0, atol=3e-6)
    check(weights_of(variables, forget_bias=forget_bias), expected, X)


def test_state_is_c_and_h_there() -> None:
    variables = cell("lstm_cell")
    c, h = values(1, B, H), values(2, B, H)
    expected, _, _ = run_cell(variables, "lstm_cell", X, (c, h))
    output, _ = from_tensorflow(variables)(X, (h[None], c[None]))
    np.testing.assert_allclose(output, expected, rtol=0, atol=3e-6)


def test_square_matrices() -> None:
    variables = cell("lstm_cell", H, H)
    x = values(3, B, T, H)
    check(weights_of(variables), run_cell(variables, "lstm_cell", x)[0], x)


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("proj", [0, P])
@pytest.mark.parametrize("clips", [(None, None), (0.3, 0.2)])
def test_full_cell(peepholes: bool, proj: int, clips: tuple[float | None, float | None]) -> None:
    variables = cell("rnn/lstm_cell", peepholes=peepholes, proj=proj)
    cell_clip, proj_clip = clips if proj else (clips[0], None)
    expected, _, _ = run_cell(variables, "rnn/lstm_cell", X, cell_clip=cell_clip, proj_clip=proj_clip)
    weights = weights_of(variables, cell=Cell(cell_clip=cell_clip, proj_clip=proj_clip))
    assert (weights.proj_size, weights.layers[0].weight_peephole is not None) == (proj, peepholes)
    check(weights, expected, X)


def test_the_default_forget_bias_is_one() -> None:
    variables = cell("lstm_cell")
    bias = from_tensorflow(variables).weights.layers[0]
    given = variables["lstm_cell/bias"].reshape(4, H)[[0, 2, 1, 3]]
    given[1] += 1
    np.testing.assert_allclose((bias.bias_ih + bias.bias_hh).reshape(4, H), given, rtol=1e-6)


def test_cells_for_cudnn_have_no_forget_bias() -> None:
    """``CudnnCompatibleLSTMCell`` passes 0; whoever knows better says so."""
    name = "cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell"
    variables = cell(name)
    for given, forget_bias in ((None, 0.0), (1.0, 1.0)):
        expected, _, _ = run_cell(variables, name, X, forget_bias=forget_bias)
        np.testing.assert_allclose(from_tensorflow(variables, forget_bias=given)(X)[0], expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("kind", ["coupled_input_forget_gate_lstm_cell", "phased_lstm_cell_1", "layer_norm_basic_lstm_cell"])
def test_other_cells_by_their_default_names(kind: str) -> None:
    refused(lambda: from_tensorflow(cell(f"rnn/{kind}")), kind, "no LSTM of this kind")
    assert from_tensorflow(cell("rnn/my_lstm_cell")).hidden_size == H


# ---- Networks ------------------------------------------------------------------------------------------------------------------


def test_layers_of_a_multi_rnn_cell() -> None:
    scope = "decoder/rnn/multi_rnn_cell"
    variables: Variables = {}
    y = X
    for layer in (1, 0):  # in no particular order
        variables |= cell(f"{scope}/cell_{layer}/basic_lstm_cell", H if layer else I, seed=10 * layer)
    for layer in (0, 1):
        y, _, _ = run_cell(variables, f"{scope}/cell_{layer}/basic_lstm_cell", y)
    lstm = from_tensorflow({f"{name}:0": value for name, value in variables.items()}, scope)
    assert (lstm.num_layers, lstm.batch_first) == (2, True)
    check(weights_of(variables), y, X)


def test_layers_of_different_sizes_are_one_network_each() -> None:
    variables = cell("rnn/multi_rnn_cell/cell_0/lstm_cell", I, 4) | cell("rnn/multi_rnn_cell/cell_1/lstm_cell", 4, 6, seed=9)
    first, second = "rnn/multi_rnn_cell/cell_0", "rnn/multi_rnn_cell/cell_1"
    assert [from_tensorflow(variables, name).hidden_size for name in (first, second)] == [4, 6]
    refused(lambda: from_tensorflow(variables), "2 LSTMs", repr(first), repr(second))


def test_two_directions() -> None:
    scope = "encoder/bidirectional_rnn"
    variables = cell(f"{scope}/fw/lstm_cell") | cell(f"{scope}/bw/lstm_cell", seed=20)
    forward = run_cell(variables, f"{scope}/fw/lstm_cell", X)[0]
    backward = run_cell(variables, f"{scope}/bw/lstm_cell", X[:, ::-1])[0][:, ::-1]
    assert from_tensorflow(variables, scope).bidirectional
    check(weights_of(variables), np.concatenate([forward, backward], 2), X)


def test_stacked_directions() -> None:
    variables: Variables = {}
    y = X
    for layer in range(2):
        scope = f"stack_bidirectional_rnn/cell_{layer}/bidirectional_rnn"
        for k, side in enumerate(("fw", "bw")):
            variables |= cell(f"{scope}/{side}/lstm_cell", 2 * H if layer else I, seed=40 * layer + 20 * k)
        forward = run_cell(variables, f"{scope}/fw/lstm_cell", y)[0]
        backward = run_cell(variables, f"{scope}/bw/lstm_cell", y[:, ::-1])[0][:, ::-1]
        y = np.concatenate([forward, backward], 2)
    weights = weights_of(variables)
    assert (weights.num_layers, weights.bidirectional) == (2, True)
    check(weights, y, X)


def test_a_stack_in_each_direction_is_two_networks() -> None:
    """``bidirectional_dynamic_rnn`` of two MultiRNNCells: no layer sees the other direction."""
    variables: Variables = {}
    results = {}
    for k, side in enumerate(("fw", "bw")):
        y = X[:, ::-1] if k else X
        for layer in range(2):
            scope = f"bidirectional_rnn/{side}/multi_rnn_cell/cell_{layer}/lstm_cell"
            variables |= cell(scope, H if layer else I, seed=40 * k + 20 * layer)
            y = run_cell(variables, scope, y)[0]
        results[f"bidirectional_rnn/{side}/multi_rnn_cell"] = y[:, ::-1] if k else y
    for name, expected in results.items():
        weights = weights_of(variables, name)
        assert weights.reverse == ("/bw/" in name)
        check(weights, expected, X)


def test_the_backward_direction_alone() -> None:
    variables = cell("bidirectional_rnn/bw/lstm_cell")
    weights = weights_of(variables)
    assert weights.reverse
    check(weights, run_cell(variables, "bidirectional_rnn/bw/lstm_cell", X[:, ::-1])[0][:, ::-1], X)


# ---- Names ---------------------------------------------------------------------------------------------------------------------


def test_what_is_beside_a_cell() -> None:
    variables = cell("rnn/lstm_cell")
    kernel, bias = variables["rnn/lstm_cell/kernel"], variables["rnn/lstm_cell/bias"]
    more = {
        "rnn/lstm_cell/kernel/Adam": kernel,
        "rnn/lstm_cell/kernel/Adam_1": kernel,
        "rnn/lstm_cell/bias/ExponentialMovingAverage": bias,
        "dense/kernel": values(0, 20, 16),
        "dense/bias": values(0, 16),
        "global_step": np.int64(3),
    }
    assert from_tensorflow(variables | more).hidden_size == H


def test_a_scope_with_a_name_of_its_own() -> None:
    variables = cell("speech/my_cell") | {"dense/kernel": values(0, 20, 16), "dense/bias": values(0, 16)}
    refused(lambda: from_tensorflow(variables), "no LSTM found", "'speech/my_cell/kernel'")
    assert from_tensorflow(variables, "speech/my_cell").hidden_size == H
    assert weights_of(cell("speech/my_cell", peepholes=True)).hidden_size == H
    assert from_tensorflow(cell(""), "").hidden_size == H


def test_names_before_tensorflow_1_2() -> None:
    variables = {
        name.replace("kernel", "weights").replace("bias", "biases"): v for name, v in cell("rnn/basic_lstm_cell").items()
    }
    check(weights_of(variables), run_cell(cell("rnn/basic_lstm_cell"), "rnn/basic_lstm_cell", X)[0], X)


def test_a_cell_of_pytorch_with_such_a_name(tmp_path: Path) -> None:
    """In a file of any framework, a scope without a kernel is none of TensorFlow's."""
    torchs = {"lstm_cell.weight_ih": (20, 3), "lstm_cell.weight_hh": (20, 5), "lstm_cell.bias": (20,)}
    np.savez(tmp_path / "x.npz", **{name: values(k, *shape) for k, (name, shape) in enumerate(torchs.items())})
    assert [(info.name, info.hidden_size) for info in scan(tmp_path / "x.npz")] == [("lstm_cell", 5)]


def changed(name: str, value: Any, **options: Any) -> Variables:
    result = cell("lstm_cell", **options) | {f"lstm_cell/{name}": value}
    return {key: array for key, array in result.items() if array is not None}


BAD: dict[str, tuple[Variables, tuple[str, ...]]] = {
    "no bias": (changed("bias", None), ("'lstm_cell/bias' is missing",)),
    "no kernel": (changed("kernel", None), ("'lstm_cell/kernel' is missing",)),
    "one peephole missing": (changed("w_o_diag", None, peepholes=True), ("'lstm_cell/w_o_diag' is missing",)),
    "a projection's bias": (changed("projection/bias", values(0, P), proj=P), ("'lstm_cell/projection/bias' is not understood",)),
    "its biases": (changed("projection/biases", values(0, P), proj=P), ("'lstm_cell/projection/biases' is not understood",)),
    "a projection's mask": (changed("projection/mask", values(0, P), proj=P), ("'lstm_cell/projection/mask' is not understood",)),
    "a layer normalisation": (changed("input/gamma", values(0, H)), ("'lstm_cell/input/gamma' is not understood",)),
    "three gates": (changed("kernel", values(0, 8, 15)), ("must have shape (I + H, 4 * H), got (8, 15)",)),
    "no rows for inputs": (changed("kernel", values(0, 5, 20)), ("has 5 rows, none for inputs beside 5",)),
    "a convolution": (changed("kernel", values(0, 3, 3, 8, 20)), ("must have shape (I + H, 4 * H)",)),
    "a short bias": (changed("bias", values(0, 19)), ("'lstm_cell/bias' must have shape (20,), got (19,)",)),
    "a short peephole": (changed("w_f_diag", values(0, 4), peepholes=True), ("'lstm_cell/w_f_diag' must have shape (5,)",)),
    "layer 1 of 2": (cell("rnn/multi_rnn_cell/cell_1/lstm_cell"), ("layer 0 has no cell",)),
    "peepholes in one layer": (
        cell("multi_rnn_cell/cell_0/lstm_cell") | cell("multi_rnn_cell/cell_1/lstm_cell", H, peepholes=True),
        ("'multi_rnn_cell/cell_0/lstm_cell/kernel' has no peepholes",),
    ),
    "whole numbers": (changed("bias", np.ones(20, int)), ("must be one of float16", "int64")),
    "two names for one": (
        {**cell("lstm_cell"), "lstm_cell/weights": values(0, 8, 20)},
        ("'lstm_cell/weights' and 'lstm_cell/kernel' are the same variable",),
    ),
    "Keras": (
        {"lstm/lstm_cell/kernel": values(0, 3, 20), "lstm/lstm_cell/recurrent_kernel": values(0, 5, 20)},
        ("no LSTM found", "'lstm/lstm_cell/recurrent_kernel'"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    variables, parts = BAD[case]
    refused(lambda: from_tensorflow(variables), *parts)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"^variables must be a mapping of names to arrays, got str"):
        from_tensorflow("model.ckpt")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^tensors must be a mapping of names to arrays, got list"):
        from_haste([1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="forget_bias must be a finite number"):
        from_tensorflow(cell("lstm_cell"), forget_bias=float("nan"))
    with pytest.raises(TypeError, match="forget_bias must be a number, got '1'"):
        from_tensorflow(cell("lstm_cell"), forget_bias="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="proj_clip must be a number or None, got '3'"):
        from_tensorflow(cell("lstm_cell"), proj_clip="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cell_clip must be a positive number"):
        from_tensorflow(cell("lstm_cell"), cell_clip=-3)


def test_in_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **cell("rnn/lstm_cell"))
    assert [info.name for info in scan(tmp_path / "x.npz")] == ["rnn/lstm_cell"]
    output, _ = load(tmp_path / "x.npz")(X)
    np.testing.assert_allclose(output, run_cell(cell("rnn/lstm_cell"), "rnn/lstm_cell", X)[0], rtol=0, atol=3e-6)
    with np.load(tmp_path / "x.npz") as variables:
        output, _ = from_tensorflow(variables, forget_bias=0.0)(X)
    np.testing.assert_allclose(output, run_cell(cell("rnn/lstm_cell"), "rnn/lstm_cell", X, forget_bias=0)[0], rtol=0, atol=3e-6)


def test_one_bad_cell_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    bad = {
        "rnn/multi_rnn_cell/cell_0/lstm_cell": cell("rnn/multi_rnn_cell/cell_0/lstm_cell"),
        "rnn/multi_rnn_cell/cell_2/lstm_cell": cell("rnn/multi_rnn_cell/cell_2/lstm_cell", H),
        "twice/lstm_cell": cell("twice/lstm_cell") | {"twice/lstm_cell/weights": values(0, 8, 20)},
        "normed/lstm_cell": cell("normed/lstm_cell") | {"normed/lstm_cell/input/gamma": values(0, 5)},
    }
    np.savez(path, **cell("good/lstm_cell"), **{name: array for one in bad.values() for name, array in one.items()})
    problems = {info.name: info.problem for info in scan(path)}
    assert problems.keys() == {"good/lstm_cell", "rnn/multi_rnn_cell", "twice/lstm_cell", "normed/lstm_cell"}
    assert problems["good/lstm_cell"] == ""
    assert "layer 1 has no cell" in problems["rnn/multi_rnn_cell"]
    assert "are the same variable" in problems["twice/lstm_cell"]
    assert "'normed/lstm_cell/input/gamma' is not understood" in problems["normed/lstm_cell"]
    assert load(path, "good/lstm_cell").hidden_size == H
    refused(lambda: load(path), "4 LSTMs found", "name=: 'good/lstm_cell'", "'rnn/multi_rnn_cell' cannot be loaded")
    refused(lambda: load(path, "twice/lstm_cell"), "are the same variable")


# ---- Haste ---------------------------------------------------------------------------------------------------------------------


def haste(prefix: str = "") -> Variables:
    shapes = {"kernel": (I, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": (4 * H,)}
    return {prefix + name: values(k, *shape) for k, (name, shape) in enumerate(shapes.items())}


def test_haste_has_its_gates_in_another_order() -> None:
    """kernel x as documented in ``haste_pytorch/lstm.py``: i, g, f, o."""
    tensors = haste("lstm.")
    h, c, outputs = np.zeros((B, H)), np.zeros((B, H)), []
    for t in range(T):
        z = X[:, t] @ tensors["lstm.kernel"] + h @ tensors["lstm.recurrent_kernel"] + tensors["lstm.bias"]
        i, g, f, o = np.split(z, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    output, _ = from_haste(tensors, "lstm")(X.transpose(1, 0, 2))
    np.testing.assert_allclose(output, np.stack(outputs), rtol=0, atol=3e-6)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_keras_and_haste_must_be_told_apart(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if suffix == "npz":
        with open(path, "wb") as file:
            np.savez(file, **haste("lstm."))
    else:
        from safetensors.numpy import save_file

        save_file(haste("lstm."), path)
    assert [(info.name, info.hidden_size) for info in scan(path)] == [("lstm", H)]
    assert "layout='keras' or layout='haste'" in scan(path)[0].problem
    refused(lambda: load(path), "layout='keras' or layout='haste'")
    both = [load(path, layout=layout).weights.layers[0].weight_ih for layout in ("haste", "keras")]
    assert (both[0] == from_haste(haste("lstm.")).weights.layers[0].weight_ih).all()
    assert (both[0].reshape(4, H, I)[[0, 2, 1, 3]] == both[1].reshape(4, H, I)).all()
    assert [load(path, layout=layout).batch_first for layout in ("haste", "keras")] == [False, True]
    with pytest.raises(ValueError, match="layout must be one of keras, haste or None, got"):
        load(path, layout="torch")


def test_layout_is_for_such_files_alone(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden"
    refused(lambda: load(golden / "float16.pt", layout="haste"), "layout='haste' applies only to npz and safetensors files")
    path = tmp_path / "x.safetensors"
    fastlstm.LSTM(3, 4, seed=0).save(path)
    refused(lambda: load(path, layout="haste"), "layout='haste' is for tensors named kernel and recurrent_kernel, of which")


def test_directions_of_keras_layers() -> None:
    tensors = {f"bi/{side}_lstm/lstm_cell/{name}": v for side in ("forward", "backward") for name, v in haste().items()}
    (found,) = kernel_names.find(live.flattened(tensors), live.read_one, layout="keras")
    assert found.info is not None
    assert (found.name, found.info.bidirectional) == ("bi", True)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"kernel": values(0, I, 4 * H - 4)}, "'kernel' must have shape (3, 20), got (3, 16)"),
        ({"bias": values(0, 8 * H)}, "'bias' must have shape (20,), got (40,)"),
        ({"gamma": values(0, 2, 4 * H)}, "'gamma' belongs to an LSTM and is not understood"),
        ({"recurrent_kernel": values(0, H, 3 * H)}, "this is a GRU"),
        ({"recurrent_kernel": values(0, H, H)}, "this is a plain RNN"),
        ({"recurrent_kernel": values(0, H)}, "'recurrent_kernel' must have 2 dimensions"),
    ],
)
def test_haste_refused(change: Variables, part: str) -> None:
    refused(lambda: from_haste(haste() | change), part)
