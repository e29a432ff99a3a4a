"""What PyTorch wrote, read without it: the values are PyTorch's own, to the byte, and what is not understood is refused by name.

The golden files and the values expected of them are made by ``golden/make_torch.py`` with the real framework.
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest
from helpers import refused, required
from safetensors.numpy import save_file

import fastlstm
from fastlstm import FormatError, Weights
from fastlstm.loaders import LSTMInfo, from_torch, load, scan
from fastlstm.weights import parameter_shapes

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "data"

# file: (the LSTMs that scan lists)
FILES = {
    "bidirectional_projection.pt": [LSTMInfo("", 3, 5, 2, True, 2, True, "float32")],
    "bidirectional_projection.safetensors": [LSTMInfo("", 3, 5, 2, True, 2, True, "float32")],
    "cell.pt": [LSTMInfo("cell", 3, 5, 1, False, 0, True, "float32")],
    "float16.pt": [LSTMInfo("", 3, 5, 1, False, 0, False, "float16")],
    "float16.safetensors": [LSTMInfo("", 3, 5, 1, False, 0, False, "float16")],
    "bfloat16.pt": [LSTMInfo("", 3, 5, 1, False, 0, False, "bfloat16")],
    "bfloat16.safetensors": [LSTMInfo("", 3, 5, 1, False, 0, False, "bfloat16")],
    "float64.pt": [LSTMInfo("", 3, 5, 1, False, 0, False, "float64")],
    "float64.safetensors": [LSTMInfo("", 3, 5, 1, False, 0, False, "float64")],
    "weight_norm_old.pt": [LSTMInfo("encoder.rnn", 3, 5, 1, False, 0, True, "float32")],
    "weight_norm_new.pt": [LSTMInfo("encoder.rnn", 3, 5, 1, False, 0, True, "float32")],
    "nested.pt": [LSTMInfo("encoder.rnn", 3, 5, 1, False, 0, True, "float32")],
    "legacy.pt": [LSTMInfo("encoder.rnn", 3, 5, 1, False, 0, True, "float32")],
    "protocol5.pt": [LSTMInfo("encoder.rnn", 3, 5, 1, False, 0, True, "float32")],
    "views.pt": [LSTMInfo("", 4, 3, 2, False, 0, True, "float32")],
    "parallel.pt": [LSTMInfo("module.encoder.rnn", 3, 5, 1, True, 0, True, "float32")],
    "several.pt": [
        LSTMInfo("a", 3, 5, 1, False, 0, True, "float32"),
        LSTMInfo("b.0", 3, 4, 1, False, 0, True, "float32"),
        LSTMInfo("b.1", 4, 3, 1, False, 0, True, "float32"),
    ],
    "twins.pt": [
        LSTMInfo("teacher.encoder.rnn", 3, 5, 1, False, 0, True, "float32"),
        LSTMInfo("student.encoder.rnn", 3, 5, 1, False, 0, True, "float32"),
    ],
    "scaled.pt": [LSTMInfo("encoder.lstm", 3, 5, 1, False, 0, True, "float32")],
}

# file: what the message must hold (all of it)
REFUSED = {
    "refused_module.pt": ("'torch.nn.modules.rnn.LSTM'", "torch.save(model.state_dict(), path)"),
    "refused_script.pt": ("TorchScript", "torch.save(model.state_dict(), path)"),
    "refused_quantized.pt": ("'torch.ScriptObject'", "quantized"),
    "refused_orthogonal.pt": ("'encoder.rnn.parametrizations.weight_hh_l0.original'", "parametrization"),
    "refused_negated.pt": ("'weight_ih_l0'", "negation"),
    "refused_gru.pt": ("'rnn'", "this is a GRU"),
    "refused_rnn.pt": ("'rnn'", "this is a plain RNN (tanh or relu)"),
}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that differ between tensors, rows and columns, and are exact in float16."""
    seed = sum(name.encode())
    return (((np.arange(np.prod(shape)) * 7 + seed) % 64 - 32) / 64).astype(np.float32).reshape(shape)


def state_dict(prefix: str = "", layers: int = 1, *, cell: bool = False, **options: Any) -> dict[str, Any]:
    shapes = parameter_shapes(3, 5, layers, **{"bias": True, "bidirectional": False, "proj_size": 0, **options})
    return {prefix + (name.removesuffix("_l0") if cell else name): values(name, shape) for name, shape in shapes.items()}


def expected_weights(file: str, name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "torch_expected.npz") as expected:
        start = f"{file}|{name}|"
        return {key.removeprefix(start): expected[key] for key in expected.files if key.startswith(start)}


def assert_same_weights(weights: Weights, expected: dict[str, np.ndarray], ulps: int = 0) -> None:
    given = dict(weights.named_tensors())
    assert given.keys() == expected.keys()
    for name, tensor in given.items():
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape), name
        if ulps:
            np.testing.assert_array_max_ulp(tensor, expected[name], ulps)
        else:
            assert tensor.tobytes() == expected[name].tobytes(), name


# ---- Golden files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_golden_file(file: str) -> None:
    assert scan(GOLDEN / file) == FILES[file]
    for info in FILES[file]:
        lstm = load(GOLDEN / file, info.name)
        # PyTorch's norm of a row is summed in float32, ours in float64: half an ulp against up to three of its own
        assert_same_weights(lstm.weights, expected_weights(file, info.name), ulps=4 if "weight_norm" in file else 0)
        assert not lstm.batch_first


@pytest.mark.parametrize("file", REFUSED)
def test_golden_file_is_refused(file: str) -> None:
    message = refused(lambda: load(GOLDEN / file), *REFUSED[file], file)
    assert "weights_only" not in message


@pytest.mark.parametrize("file", ["refused_gru.pt", "refused_rnn.pt"])
def test_no_lstm(file: str) -> None:
    assert scan(GOLDEN / file) == []
    refused(lambda: load(GOLDEN / file), "no LSTM", "a PyTorch checkpoint with 4 tensors", "'rnn.weight_ih_l0'")
    refused(lambda: load(GOLDEN / file, "rnn"), *REFUSED[file])


def test_loading_needs_no_torch() -> None:
    code = (
        "import sys, fastlstm.loaders as loaders\n"
        f"for file in ('weight_norm_new.pt', 'legacy.pt', 'bfloat16.safetensors'): loaders.load({str(GOLDEN)!r} + '/' + file)\n"
        "print([name for name in ('torch', 'onnx', 'h5py', 'tensorflow') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_silero_vad() -> None:
    path = SHARED / "silero_vad_16k.safetensors"
    if not path.exists():
        pytest.skip("the file is not here")
    assert scan(path) == [LSTMInfo("lstm_cell", 128, 128, 1, False, 0, True, "float32")]
    lstm = load(path, name="lstm_cell")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, tensor in lstm.weights.named_tensors():
        start, stop = header["lstm_cell." + name.removesuffix("_l0")]["data_offsets"]
        assert tensor.tobytes() == data[8 + length + start : 8 + length + stop]


# ---- Which LSTM ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name", "means"),
    [
        ("nested.pt", "model.state_dict.encoder.rnn", "encoder.rnn"),
        ("parallel.pt", "encoder.rnn", "module.encoder.rnn"),
        ("bidirectional_projection.pt", "", ""),
        ("several.pt", "b.0", "b.0"),
        ("twins.pt", "teacher.encoder.rnn", "teacher.encoder.rnn"),
    ],
)
def test_names(file: str, name: str, means: str) -> None:
    assert_same_weights(load(GOLDEN / file, name).weights, expected_weights(file, means))


def test_several_and_no_name() -> None:
    refused(lambda: load(GOLDEN / "several.pt"), "3 LSTMs", "name=", "'a', 'b.0', 'b.1'")
    refused(lambda: load(GOLDEN / "twins.pt", "encoder.rnn"), "'teacher.encoder.rnn', 'student.encoder.rnn'", "means several")


def test_unknown_name() -> None:
    refused(lambda: load(GOLDEN / "several.pt", "c"), "'c'", "'a', 'b.0', 'b.1'")
    refused(lambda: load(GOLDEN / "several.pt", ""), "''", "'a', 'b.0', 'b.1'")
    refused(lambda: load(GOLDEN / "several.pt", "gru"), "'gru'", "this is a GRU")
    refused(lambda: load(GOLDEN / "cell.pt", "model.cell"), "'model.cell'", "'cell'")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_may_be_left_out(wrapper: str) -> None:
    tensors = state_dict(wrapper + "rnn.") | state_dict("other.rnn.")
    expected = dict(from_torch(tensors, wrapper + "rnn").weights.named_tensors())
    assert_same_weights(from_torch(tensors, "rnn").weights, expected)
    assert_same_weights(from_torch(state_dict(wrapper), "").weights, expected)


def test_an_exact_name_comes_before_a_shortened_one() -> None:
    tensors = {name: tensor + 1 for name, tensor in state_dict("module.rnn.").items()} | state_dict("rnn.")
    assert from_torch(tensors, "rnn").weights.layers[0].bias_ih[0] == tensors["rnn.bias_ih_l0"][0]
    assert from_torch(tensors, "module.rnn").weights.layers[0].bias_ih[0] == tensors["module.rnn.bias_ih_l0"][0]


def test_batch_first_is_asked_for() -> None:
    assert load(GOLDEN / "cell.pt", batch_first=True).batch_first
    assert from_torch(state_dict(), batch_first=True).batch_first


def test_info_in_words() -> None:
    info = LSTMInfo("encoder.rnn", 3, 5, 2, True, 2, False, "bfloat16", True)
    assert str(info) == (
        "'encoder.rnn': LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True, bias=False, proj_size=2), bfloat16"
    )
    assert str(LSTMInfo("a\n", 3, 5, 1, False, 0, True, "float32")) == r"'a\n': LSTM(3, 5), float32"


# ---- State dicts: what is understood, and what is refused ----------------------------------------------------------------------


def test_siblings_are_ignored() -> None:
    """docTR, where ``decoder`` is the LSTM; Stanza's learned states; an encoder's norms and projections beside the LSTM."""
    tensors = state_dict("decoder.", 2, bidirectional=True) | {
        "feat_extractor.0.weight": np.ones((2, 2)),
        "linear.bias": np.ones(2),
        "decoder_h_init": np.ones((2, 1, 5)),
        "norm.weight": np.ones(5),
        "encoder.weight_ih_linear.bias": np.ones(5),
        "steps": np.array(3),
    }
    assert from_torch(tensors, "decoder").num_layers == 2
    assert from_torch(tensors).bidirectional


def test_an_lstm_at_the_top_beside_other_parts() -> None:
    tensors = state_dict() | {
        "fc.weight": np.ones((2, 5)),
        "decoder.weight_hh": np.ones((6, 2)),
        "decoder.weight_ih": np.ones((6, 2)),
    }
    assert from_torch(tensors).hidden_size == 5


def test_stacked_cells_are_one_each() -> None:
    tensors = state_dict("cells.0.", cell=True) | {name: t * 2 for name, t in state_dict("cells.1.", cell=True).items()}
    first, second = (from_torch(tensors, f"cells.{index}").weights for index in (0, 1))
    assert_same_weights(first, state_dict())
    assert_same_weights(second, {name: t * 2 for name, t in state_dict().items()})


def test_floats_of_several_widths_become_float32() -> None:
    tensors = state_dict()
    tensors["weight_ih_l0"] = tensors["weight_ih_l0"].astype(np.float16)
    assert_same_weights(from_torch(tensors).weights, state_dict())
    tensors = {name: tensor.astype(">f8") for name, tensor in state_dict().items()}
    assert_same_weights(from_torch(tensors).weights, {name: t.astype(np.float64) for name, t in state_dict().items()})


def test_weights_are_copied() -> None:
    tensors = state_dict()
    lstm = from_torch(tensors)
    tensors["weight_ih_l0"][:] = 0
    assert_same_weights(lstm.weights, state_dict())


@pytest.mark.parametrize("prefix", ["", "rnn."])
def test_weight_norm_both_spellings(prefix: str) -> None:
    rng = np.random.default_rng(0)
    g, v = rng.uniform(0.5, 2, (20, 1)).astype(np.float32), rng.standard_normal((20, 5)).astype(np.float32)
    expected = (g.astype(np.float64) * v / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
    for first, second in (("weight_hh_l0_g", "weight_hh_l0_v"), (f"{PARAMETRIZED}original0", f"{PARAMETRIZED}original1")):
        tensors = state_dict(prefix)
        del tensors[prefix + "weight_hh_l0"]
        weights = from_torch(tensors | {prefix + first: g, prefix + second: v}).weights
        assert_same_weights(weights, state_dict() | {"weight_hh_l0": expected})


def test_weight_norm_of_a_large_matrix() -> None:
    """More rows than one block of the computation takes."""
    g, v = np.full((4 * 300, 1), 3, np.float32), np.tile(np.float32([3, 4, 0]), (1200, 100))
    shapes = parameter_shapes(1, 300, 1, bias=False, bidirectional=False, proj_size=0)
    weights = from_torch({"weight_ih_l0": np.ones(shapes["weight_ih_l0"], "f"), "weight_hh_l0_g": g, "weight_hh_l0_v": v}).weights
    assert (weights.layers[0].weight_hh == np.tile(np.float32([0.18, 0.24, 0]), (1200, 100))).all()


def test_scaled_lstm() -> None:
    tensors = state_dict() | {f"{name}_scale": np.float32(index / 4) for index, name in enumerate(state_dict())}
    expected = {name: t * np.float32(np.exp(index / 4)) for index, (name, t) in enumerate(state_dict().items())}
    assert_same_weights(from_torch(tensors).weights, expected)


PARAMETRIZED = "parametrizations.weight_hh_l0."
ONES = np.ones


def without(*names: str, **options: Any) -> dict[str, Any]:
    return {name: tensor for name, tensor in state_dict("rnn.", **options).items() if name not in names}


# what is broken: (the state dict, what the message must hold)
BAD_STATE_DICTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one bias of two": (without("rnn.bias_hh_l0"), ("'rnn.bias_hh_l0' is missing",)),
    "the other bias": (without("rnn.bias_ih_l0"), ("'rnn.bias_ih_l0' is missing",)),
    "a bias in the second layer only": (
        without("rnn.bias_ih_l0", "rnn.bias_hh_l0", layers=2),
        ("'rnn.bias_ih_l0' is missing",),
    ),
    "one bias of a cell": (without("rnn.bias_hh", cell=True), ("'rnn.bias_hh' is missing",)),
    "no weight_hh": (without("rnn.weight_hh_l0"), ("'rnn.weight_hh_l0' is missing",)),
    "no weight_ih": (without("rnn.weight_ih_l0"), ("'rnn.weight_ih_l0' is missing",)),
    "layers 0 and 2": (
        {name: t for name, t in without(layers=3).items() if "_l1" not in name},
        ("'rnn.weight_ih_l1' is missing",),
    ),
    "no layer 0": ({n: t for n, t in without(layers=2).items() if "_l0" not in n}, ("'rnn.weight_ih_l0' is missing",)),
    "layer 0 and 999": (without() | {"rnn.weight_ih_l999": ONES((20, 5), "f")}, ("'rnn.weight_ih_l1' is missing",)),
    "reverse in one layer of two": (
        {n: t for n, t in without(layers=2, bidirectional=True).items() if not n.endswith("l1_reverse")},
        ("'rnn.weight_ih_l1_reverse' is missing", "(20, 10)"),
    ),
    "reverse only": (
        {name + "_reverse": tensor for name, tensor in state_dict("rnn.").items()},
        ("'rnn.weight_ih_l0' is missing",),
    ),
    "a projection in one layer of two": (
        without("rnn.weight_hr_l1", layers=2, proj_size=2),
        ("'rnn.weight_hr_l1' is missing", "(2, 5)"),
    ),
    "a projection of the wrong shape": (
        without(proj_size=2) | {"rnn.weight_hr_l0": ONES((5, 2), "f")},
        ("'rnn.weight_hr_l0' must have shape (2, 5), got (5, 2)",),
    ),
    "a projection as wide as the state": (
        without() | {"rnn.weight_hr_l0": ONES((5, 5), "f")},
        ("proj_size must be smaller than hidden_size 5",),
    ),
    "a projection forgotten": (without("rnn.weight_hr_l0", proj_size=2), ("'rnn.weight_hh_l0' has shape (20, 2)", "weight_hr")),
    "a projection in a cell": (without(cell=True) | {"rnn.weight_hr": ONES((2, 5), "f")}, ("LSTMCell", "'rnn.weight_hr'")),
    "transposed": ({n: t.T for n, t in without().items()}, ("'rnn.weight_hh_l0' has shape (5, 20)",)),
    "a second layer of other width": (
        without(layers=2) | {"rnn.weight_ih_l1": ONES((20, 6), "f")},
        ("'rnn.weight_ih_l1' must have shape (20, 5), got (20, 6)",),
    ),
    "a bias of 3 gates": (without() | {"rnn.bias_ih_l0": ONES(15, "f")}, ("'rnn.bias_ih_l0' must have shape (20,), got (15,)",)),
    "a matrix of 3 dimensions": (without() | {"rnn.weight_hh_l0": ONES((20, 5, 1), "f")}, ("2 dimensions", "(20, 5, 1)")),
    "5 gates": (without() | {"rnn.weight_hh_l0": ONES((25, 5), "f")}, ("(25, 5)", "GRU")),
    "no hidden units": (without() | {"rnn.weight_hh_l0": ONES((0, 0), "f")}, ("hidden_size", "got 0")),
    "no inputs": (without() | {"rnn.weight_ih_l0": ONES((20, 0), "f")}, ("input_size", "got 0")),
    "integers": (without() | {"rnn.bias_ih_l0": ONES(20, np.int8)}, ("'rnn.bias_ih_l0' must be one of float16", "int8")),
    "complex": ({n: t.astype(np.complex64) for n, t in without().items()}, ("must be one of float16", "complex64")),
    "float32 and float64": (
        without() | {"rnn.bias_ih_l0": ONES(20)},
        ("'rnn.bias_ih_l0' is float64", "'rnn.weight_ih_l0' is float32"),
    ),
    "float16 and float64": (
        {n: t.astype("f8") for n, t in without().items()} | {"rnn.bias_hh_l0": ONES(20, "f2")},
        ("'rnn.bias_hh_l0' is float16", "float64"),
    ),
    "a cell and layers": (without() | without(cell=True), ("neither an LSTM nor an LSTMCell", "'rnn.weight_ih'")),
    "g without v": (
        without("rnn.weight_hh_l0") | {"rnn.weight_hh_l0_g": ONES((20, 1), "f")},
        ("both parts", "'rnn.weight_hh_l0_g'"),
    ),
    "v without g": (without("rnn.weight_hh_l0") | {"rnn.weight_hh_l0_v": ONES((20, 5), "f")}, ("both parts",)),
    "weight norm and the plain tensor": (
        without() | {"rnn.weight_hh_l0_g": ONES((20, 1), "f"), "rnn.weight_hh_l0_v": ONES((20, 5), "f")},
        ("'rnn.weight_hh_l0', 'rnn.weight_hh_l0_g', 'rnn.weight_hh_l0_v'",),
    ),
    "weight norm in both spellings": (
        without() | {"rnn.bias_ih_l0_g": ONES((20,), "f"), "rnn.parametrizations.bias_ih_l0.original0": ONES((20,), "f")},
        ("'rnn.bias_ih_l0_g'", "are the same parameter"),
    ),
    "weight norm of neither rows nor columns": (
        without("rnn.weight_hh_l0") | {"rnn.weight_hh_l0_g": ONES((5, 1), "f"), "rnn.weight_hh_l0_v": ONES((20, 5), "f")},
        ("'rnn.weight_hh_l0_g' must have shape (20, 1), got (5, 1)",),
    ),
    "weight norm of a bias by column": (
        without("rnn.bias_hh_l0") | {"rnn.bias_hh_l0_g": ONES((1,), "f"), "rnn.bias_hh_l0_v": ONES((20,), "f")},
        ("'rnn.bias_hh_l0_g' must have shape (20,), got (1,)",),
    ),
    "orthogonal": (
        without("rnn.weight_hh_l0") | {"rnn.parametrizations.weight_hh_l0.original": ONES((20, 5), "f")},
        ("'rnn.parametrizations.weight_hh_l0.original' is not understood",),
    ),
    "a parametrization with a state": (
        without("rnn.weight_hh_l0") | {f"rnn.{PARAMETRIZED}{n}": ONES((20, 5), "f") for n in ("original0", "original1", "0.u")},
        ("'rnn.parametrizations.weight_hh_l0.0.u' is not understood",),
    ),
    "a parametrization of something else": (
        without() | {"rnn.parametrizations.weight_xx_l0.original0": ONES(2)},
        ("'rnn.parametrizations.weight_xx_l0.original0'", "no parameter of nn.LSTM"),
    ),
    "pruned without a mask": (
        without("rnn.weight_hh_l0") | {"rnn.weight_hh_l0_orig": ONES((20, 5), "f")},
        ("orig and mask of a pruned one, found 'rnn.weight_hh_l0_orig'",),
    ),
    "a mask and the plain tensor": (without() | {"rnn.bias_hh_l0_mask": ONES(20, "f")}, ("orig and mask", "bias_hh_l0_mask'")),
    "a mask of another shape": (
        without("rnn.weight_hh_l0") | {"rnn.weight_hh_l0_orig": ONES((20, 5), "f"), "rnn.weight_hh_l0_mask": ONES((20, 1), "f")},
        ("'rnn.weight_hh_l0_mask' must have shape (20, 5), got (20, 1)",),
    ),
    "a mask of other numbers": (
        without("rnn.weight_hh_l0") | {"rnn.weight_hh_l0_orig": ONES((20, 5), "f"), "rnn.weight_hh_l0_mask": values("", (20, 5))},
        ("'rnn.weight_hh_l0_mask' must hold zeros and ones alone",),
    ),
    "a scale for one": (without() | {"rnn.bias_ih_l0_scale": ONES((), "f")}, ("'rnn.bias_ih_l0_scale' is not understood",)),
    "scales by row": (
        without() | {f"{name}_scale": ONES(20, "f") for name in without()},
        ("'rnn.weight_ih_l0_scale' must have shape (), got (20,)",),
    ),
    "a scale in a cell": (without(cell=True) | {"rnn.weight_ih_scale": ONES((), "f")}, ("'rnn.weight_ih_scale'",)),
    **{
        f"foreign: {name}": (without() | {f"rnn.{name}": ONES(20, "f")}, (f"'rnn.{name}' belongs to an LSTM",))
        for name in (
            "weight_ch_l0", "weight_ci", "bias_xx_l0", "weight_ih_l00", "weight_ih_l1000", "weight_ih_l-1_l0",
            "weight_ih_l0_backward", "h_0_l0", "peephole_i", "layer_norm.weight",
            "LayerNorm_c.bias", "ln_ih.weight", "norm1.weight", "gamma_h", "beta",
            "h0", "c0", "h_0", "c_0", "H0", "h_init", "c_init", "init_h", "init_c0", "initial_state", "hidden_init", "hx", "h0.1",
            "learned_cell_state",
        )
    },
    **{
        f"foreign in a cell: {name}": (without(cell=True) | {f"rnn.{name}": ONES(20, "f")}, (f"'rnn.{name}'", "no parameter"))
        for name in ("weight_ch", "weight_pi", "bias_x", "weight_ih_q", "ln_ih.weight")
    },
    **{
        f"a number: {name}": (without() | {f"rnn.{name}": 0.5}, (f"'rnn.{name}'", "no parameter of nn.LSTM"))
        for name in ("weight_hh_l0_scale", "weight_peephole_l0", "weight_hh_l0_raw")
    },
    "foreign at the top": (state_dict() | {"weight_ch_l0": ONES(20, "f")}, ("'weight_ch_l0'", "no parameter of nn.LSTM")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_STATE_DICTS)
def test_state_dict_is_refused(case: str) -> None:
    tensors, parts = BAD_STATE_DICTS[case]
    refused(lambda: from_torch(tensors), *parts)


def test_numbers_beside_an_lstm() -> None:
    assert_same_weights(from_torch(state_dict() | {"epoch": 3, "grad_norm": 0.5, "lr": 1e-3}).weights, state_dict())


def test_an_initial_state_beside_an_lstm_is_not_its_own() -> None:
    """As Stanza's taggers have it; nor is a layer that computes one. Whoever loads the LSTM alone passes the state."""
    tensors = state_dict("lstm.") | {
        "lstm_h_init": ONES((1, 1, 5), "f"),
        "h0": ONES((1, 1, 5), "f"),
        "init_h.weight": ONES((5, 2), "f"),
    }
    assert_same_weights(from_torch(tensors).weights, state_dict())
    assert_same_weights(
        from_torch(state_dict() | {"init_h.weight": ONES((5, 2), "f"), "shift": ONES(5, "f")}).weights, state_dict()
    )


@pytest.mark.parametrize("left_over", [False, True])
def test_weight_drop(left_over: bool) -> None:
    """As fastai's AWD-LSTM is saved: inference uses the raw tensor; the inner LSTM's lacks what the last step dropped."""
    expected = state_dict()
    outer = {f"{n}.rnns.0.module.{name}": a for n in "01" for name, a in expected.items() if left_over or name != "weight_hh_l0"}
    for n in "01":
        if left_over:
            outer[f"{n}.rnns.0.module.weight_hh_l0"] = ONES((20, 5), "f")
        outer[f"{n}.rnns.0.weight_hh_l0_raw"] = expected["weight_hh_l0"]
    for n in "01":
        assert_same_weights(from_torch(outer, f"{n}.rnns.0.module").weights, expected)
    refused(lambda: from_torch(outer), "2 LSTMs")
    inside = {name + "_raw" * (name == "weight_hh_l0"): a for name, a in expected.items()}
    assert_same_weights(from_torch(inside).weights, expected)
    both = expected | {"weight_hh_l0_raw": expected["weight_hh_l0"]}
    refused(lambda: from_torch(both), "raw under weight drop", "'weight_hh_l0'", "'weight_hh_l0_raw'")
    torch = required("torch")
    wrapper = torch.nn.Module()
    wrapper.module = torch.nn.LSTM(3, 5)
    wrapper.weight_hh_l0_raw = torch.nn.Parameter(torch.ones(20, 5))
    assert (from_torch(wrapper, "module").state_dict()["weight_hh_l0"] == 1).all()


def test_live_subclasses() -> None:
    """One that computes something else is not taken for what it computes with."""
    torch = required("torch")

    class Residual(torch.nn.LSTM):  # type: ignore[misc, name-defined]
        def forward(self, input: Any, hx: Any = None) -> Any:
            output, state = super().forward(input, hx)
            return output + 1, state

    class Named(torch.nn.LSTM):  # type: ignore[misc, name-defined]
        pass

    refused(lambda: from_torch(Residual(3, 5)), "the module is", "Residual, an LSTM with a forward of its own", "state_dict()")
    refused(lambda: from_torch(torch.nn.Sequential(Residual(3, 5))), "'0' is", "a forward of its own")
    module = torch.nn.Sequential(Residual(3, 5), torch.nn.LSTM(5, 5))
    assert_same_output(from_torch(module, "1"), module[1])
    named = Named(3, 5)
    assert_same_output(from_torch(named), named)


def test_one_bad_lstm_does_not_hide_the_others(tmp_path: Path) -> None:
    np_dict = state_dict("good.") | without("rnn.bias_hh_l0")
    assert_same_weights(from_torch(np_dict, "good").weights, state_dict())
    refused(lambda: from_torch(np_dict, "rnn"), "'rnn.bias_hh_l0' is missing")
    nameless = ("2 LSTMs", "name=: 'good'", "'rnn' cannot be loaded", "'rnn.bias_hh_l0' is missing")
    refused(lambda: from_torch(np_dict), *nameless)
    path = tmp_path / "x"
    save_file(np_dict, path)
    good, bad = sorted(scan(path), key=lambda info: info.name)
    assert good == LSTMInfo("good", 3, 5, 1, False, 0, True, "float32")
    assert (bad.name, bad.input_size, bad.hidden_size, bad.num_layers, bad.dtype) == ("rnn", 0, 0, 0, "")
    assert "'rnn.bias_hh_l0' is missing" in bad.problem
    assert str(bad) == f"'rnn': cannot be loaded: {bad.problem}"
    assert_same_weights(load(path, "good").weights, state_dict())
    refused(lambda: load(path, "rnn"), "'rnn.bias_hh_l0' is missing")
    refused(lambda: load(path), *nameless)  # the only good one need not be the one that is meant
    save_file(without("rnn.bias_hh_l0"), path)
    refused(lambda: scan(path), "'rnn.bias_hh_l0' is missing")
    bad_dict = without("rnn.bias_hh_l0")
    save_file(bad_dict | {f"other.{name}": tensor for name, tensor in bad_dict.items()}, path)
    both = "'other.rnn.bias_hh_l0' is missing", "'rnn.bias_hh_l0' is missing"
    refused(lambda: scan(path), "none of the 2 LSTMs found can be loaded (", "'other.rnn'", *both)
    save_file(np_dict, path)
    path.write_bytes(path.read_bytes()[:-1])  # a damaged file is no file with one bad LSTM
    refused(lambda: scan(path), "broken safetensors file")
    refused(lambda: load(path, "good"), "broken safetensors file")


def test_two_spellings_of_one_parameter_do_not_hide_the_other_lstms(tmp_path: Path) -> None:
    twice = {"rnn.parametrizations.bias_hh_l0.original0": ONES((20, 1), "f"), "rnn.bias_hh_l0_g": ONES((20, 1), "f")}
    save_file(state_dict("good.") | without("rnn.bias_hh_l0") | twice, tmp_path / "x")
    problems = {info.name: info.problem for info in scan(tmp_path / "x")}
    assert problems["good"] == ""
    assert "are the same parameter" in problems["rnn"]


def test_two_lstms_of_one_name_do_not_hide_the_others(tmp_path: Path) -> None:
    """PyTorch's and Haste's names for the same place."""
    haste = {"rnn.kernel": ONES((3, 20), "f"), "rnn.recurrent_kernel": ONES((5, 20), "f"), "rnn.bias": ONES(20, "f")}
    save_file(state_dict("good.") | state_dict("rnn.") | haste, tmp_path / "x")
    problems = {info.name: info.problem for info in scan(tmp_path / "x")}
    assert problems == {"good": "", "rnn": "2 recurrent layers have the name 'rnn'"}
    assert_same_weights(load(tmp_path / "x", "good").weights, state_dict())
    refused(lambda: load(tmp_path / "x", "rnn"), "2 recurrent layers have the name 'rnn'")


def test_nested_dictionaries() -> None:
    tensors = {"epoch": 3, "model": {"state_dict": state_dict("encoder.rnn.")}, "optimizer": {"state": {0: {"exp_avg": ONES(3)}}}}
    for name in (None, "encoder.rnn", "model.state_dict.encoder.rnn"):
        assert_same_weights(from_torch(tensors, name).weights, state_dict())
    twice = {"a": [state_dict("rnn."), {"b": state_dict("rnn.", bias=False)}]}
    refused(lambda: from_torch(twice), "'a.0.rnn', 'a.1.b.rnn'")
    assert not from_torch(twice, "a.1.b.rnn").bias
    same = state_dict("rnn.")
    assert from_torch({"model": same, "copy": same}).bias


def test_what_is_neither_module_nor_state_dict() -> None:
    for wrong in ("model.pt", 3, None, [state_dict()], ONES(3)):
        with pytest.raises(
            TypeError, match=r"module_or_state_dict must be a torch\.nn\.Module or a state dict, got " + type(wrong).__name__
        ):
            from_torch(wrong)
    refused(lambda: from_torch({}), "no LSTM", "a state dict without named tensors")


# ---- Files ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "layers": 2}, {"proj_size": 2}, {"bias": False}, {"dtype": "float64"}], ids=str
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_save_and_load(options: dict[str, Any], batch_first: bool, tmp_path: Path) -> None:
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    expected = {name: tensor.astype(dtype) for name, tensor in state_dict(**options).items()}
    path = tmp_path / "model.safetensors"
    fastlstm.LSTM.from_weights(Weights.from_named_tensors(expected), batch_first).save(path)
    (info,) = scan(path)
    assert (info.name, info.dtype, info.batch_first) == ("", dtype, batch_first)
    lstm = load(path)
    assert_same_weights(lstm.weights, expected)
    assert lstm.batch_first == batch_first
    assert load(path, batch_first=not batch_first).batch_first != batch_first


def test_save_replaces_the_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = from_torch(state_dict())
    path, link = tmp_path / "model", tmp_path / "link.safetensors"
    path.write_text("old")
    link.symlink_to(path)
    lstm.save(link)
    assert link.is_symlink()
    assert_same_weights(load(path).weights, state_dict())
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    old = path.read_bytes()
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        lstm.save(link)
    assert path.read_bytes() == old
    assert sorted(os.listdir(tmp_path)) == ["link.safetensors", "model"]
    with pytest.raises(FileNotFoundError):
        lstm.save(tmp_path / "nowhere" / "model.safetensors")


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    for number, file in enumerate(("cell.pt", "legacy.pt", "float16.safetensors")):
        path = tmp_path / f"model.{number}.onnx"
        path.write_bytes((GOLDEN / file).read_bytes())
        assert [info.hidden_size for info in scan(str(path))] == [5]


def test_big_endian_zip(tmp_path: Path) -> None:
    stored = {"cell.pt": "<u4", "float16.pt": "<u2", "bfloat16.pt": "<u2", "float64.pt": "<u8"}
    for file, width in stored.items():
        path = tmp_path / file
        with zipfile.ZipFile(GOLDEN / file) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if "/data/" in name:
                    data = np.frombuffer(data, width).byteswap().tobytes()
                new.writestr(name, b"big" if name.endswith("/byteorder") else data)
        assert_same_weights(load(path).weights, expected_weights(file, FILES[file][0].name))


def test_deflated_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(GOLDEN / "views.pt") as old, zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same_weights(load(tmp_path / "x").weights, expected_weights("views.pt", ""))


@pytest.mark.parametrize(("kind", "dtype"), [("HalfStorage", "f2"), ("FloatStorage", "f4"), ("DoubleStorage", "f8")])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_views_of_one_storage(kind: str, dtype: str, form: str, tmp_path: Path) -> None:
    """Offsets and strides count elements, whatever their width."""
    data = np.random.default_rng(0).standard_normal(200).astype(dtype)
    views = {
        "weight_ih_l0": ((8, 3), (1, 8), 100),
        "weight_hh_l0": ((8, 2), (4, 2), 31),
        "bias_ih_l0": ((8,), (0,), 7),
        "bias_hh_l0": ((8,), (3,), 178),
    }
    tensors = {
        name: mutate.tensor("0", shape, strides, offset, len(data), kind, form == "legacy")
        for name, (shape, strides, offset) in views.items()
    }
    value, records = mutate.mapping(tensors), {"data/0": data.tobytes()}
    file = mutate.zipped(value, records) if form == "zip" else mutate.legacy(value, records, data.itemsize)
    (tmp_path / "x").write_bytes(file)
    expected = {
        name: np.lib.stride_tricks.as_strided(data[offset:], shape, [stride * data.itemsize for stride in strides])
        for name, (shape, strides, offset) in views.items()
    }
    wide = np.float64 if dtype == "f8" else np.float32
    assert_same_weights(load(tmp_path / "x").weights, {name: view.astype(wide) for name, view in expected.items()})


def test_python_2_wrote_the_keys_as_bytes(tmp_path: Path) -> None:
    """And the dictionary from a list of pairs."""
    pairs = b"".join(
        b"](U" + bytes([len(name)]) + name.encode() + mutate.tensor(str(index), shape) + b"e"
        for index, (name, shape) in enumerate(mutate.SHAPES.items())
    )
    ordered = mutate.named("collections", "OrderedDict") + b"](" + pairs + b"e\x85R"
    (tmp_path / "x").write_bytes(mutate.zipped(ordered))
    expected = {name: np.float32(mutate.values(shape, k)).reshape(shape) for k, (name, shape) in enumerate(mutate.SHAPES.items())}
    assert_same_weights(load(tmp_path / "x").weights, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(value: float, tmp_path: Path) -> None:
    tensors = state_dict()
    tensors["weight_hh_l0"][3, 2] = value
    tensors["weight_hh_l0"][0, 0] = value
    path = tmp_path / "x.safetensors"
    fastlstm.LSTM.from_weights(Weights.from_named_tensors(tensors)).save(path)
    refused(lambda: load(path), "weight_hh_l0", "2 NaN or infinite values", "allow_nonfinite=True")
    assert_same_weights(load(path, allow_nonfinite=True).weights, tensors)
    assert_same_weights(from_torch(tensors).weights, tensors)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts bytes as Linux does")
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_only_that_lstm_is_read(kind: str, tmp_path: Path) -> None:
    """Beside 32 MB of other tensors."""
    big = np.zeros(8 << 20, np.float32)
    path = tmp_path / "x"
    if kind == "safetensors":
        save_file({"big": big} | state_dict("rnn."), path)
    else:
        is_legacy = kind == "legacy"
        records = {**mutate.storages(), "data/9": big.tobytes()}
        value = mutate.network(legacy=is_legacy, big=mutate.tensor("9", big.shape, legacy=is_legacy))
        path.write_bytes((mutate.legacy if is_legacy else mutate.zipped)(value, records))

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    load(path)
    before = bytes_read()
    load(path)
    assert bytes_read() - before < 200_000


# ---- Live PyTorch --------------------------------------------------------------------------------------------------------------

LIVE = {
    "plain": {},
    "layers": {"num_layers": 3},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "projection": {"proj_size": 2, "num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True, "bidirectional": True},
}


def assert_same_output(lstm: fastlstm.LSTM, module: Any) -> None:
    import torch

    x = torch.linspace(-1, 1, 4 * 2 * module.input_size).view(4, 2, module.input_size).to(next(module.parameters()).dtype)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a projection takes PyTorch's slow way
        output, (h_n, c_n) = module(x)
    given, (given_h, given_c) = lstm(x.numpy())
    tolerance = 1e-6 if lstm.dtype == np.float32 else 1e-14
    for a, b in ((given, output), (given_h, h_n), (given_c, c_n)):
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", LIVE)
@pytest.mark.parametrize("width", ["float32", "float64"])
def test_live_module(case: str, width: str) -> None:
    torch = required("torch")
    module = torch.nn.LSTM(3, 5, dtype=getattr(torch, width), **LIVE[case])
    lstm = from_torch(module)
    assert lstm.batch_first == module.batch_first
    assert_same_weights(lstm.weights, {name: tensor.detach().numpy() for name, tensor in module.named_parameters()})
    assert_same_output(lstm, module)


@pytest.mark.parametrize("case", LIVE)
@pytest.mark.parametrize("how", ["zip", "legacy", "protocol 4", "safetensors", "parameters", "nested"])
def test_live_file(case: str, how: str, tmp_path: Path) -> None:
    torch = required("torch")
    module = torch.nn.LSTM(3, 5, **LIVE[case])
    path = tmp_path / "x"
    if how == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file(module.state_dict(), path)
    elif how == "parameters":
        torch.save(dict(module.named_parameters()), path)
    elif how == "nested":
        torch.save([{"model": module.state_dict()}, torch.ones(3)], path)
    else:
        options = {"legacy": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}.get(how, {})
        torch.save(module.state_dict(), path, **options)
    assert_same_output(load(path, batch_first=module.batch_first), module)


def test_live_modules_inside_others() -> None:
    torch = required("torch")
    nn = torch.nn
    model = nn.ModuleDict(
        {"rnn": nn.LSTM(3, 5, batch_first=True), "cell": nn.LSTMCell(3, 4), "gru": nn.GRU(3, 5), "fc": nn.Linear(5, 2)}
    )
    assert from_torch(model, "rnn").batch_first
    assert not from_torch(model, "rnn", batch_first=False).batch_first
    assert not from_torch(model, "cell").batch_first
    refused(lambda: from_torch(model), "2 LSTMs", "'rnn', 'cell'")
    refused(lambda: from_torch(model, "gru"), "this is a GRU")
    refused(lambda: from_torch(model["fc"]), "no LSTM", "a module made of 'Linear'")
    wrapped = nn.DataParallel(nn.ModuleDict({"rnn": model["rnn"]}))
    assert_same_output(from_torch(wrapped, "rnn"), model["rnn"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch will take it away
        scripted = torch.jit.script(model["rnn"])
    assert from_torch(scripted).batch_first
    assert_same_output(from_torch(scripted), model["rnn"])


def test_live_cell() -> None:
    torch = required("torch")
    cell = torch.nn.LSTMCell(3, 5)
    x, h, c = torch.ones(2, 3), torch.full((2, 5), 0.5), torch.full((2, 5), -0.25)
    expected = cell(x, (h, c))
    output, (_, c_n) = from_torch(cell)(x[None].numpy(), (h[None].numpy(), c[None].numpy()))
    np.testing.assert_allclose(output[0], expected[0].detach().numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(c_n[0], expected[1].detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("spelling", ["old", "new"])
def test_live_weight_norm(spelling: str, dim: int | None) -> None:
    torch = required("torch")
    torch.manual_seed(0)
    module = torch.nn.LSTM(30, 50)
    if spelling == "old":
        with pytest.warns(FutureWarning):
            torch.nn.utils.weight_norm(module, "weight_hh_l0", dim)
    else:
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0", dim)
    with torch.no_grad():
        next(p for name, p in module.named_parameters() if name.endswith(("_g", "original0"))).mul_(1.5)
    assert_same_output(from_torch(module), module)
    # PyTorch adds up the squares in the precision of the weights
    module(torch.zeros(1, 1, 30))
    np.testing.assert_array_max_ulp(from_torch(module).weights.layers[0].weight_hh, module.weight_hh_l0.detach().numpy(), 8)
    double = module.double()
    double(torch.zeros(1, 1, 30, dtype=torch.float64))
    np.testing.assert_array_max_ulp(from_torch(double).weights.layers[0].weight_hh, double.weight_hh_l0.detach().numpy(), 8)
    assert_same_weights(from_torch(module.state_dict()).weights, dict(from_torch(module).weights.named_tensors()))


@pytest.mark.parametrize("prefix", ["", "encoder.rnn."])
def test_an_lstm_in_several_files_is_not_taken_for_a_part_of_it(prefix: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {f"{prefix}{name}": tensor for name, tensor in fastlstm.LSTM(3, 5, 2, seed=0).state_dict().items()}
    other = {f"decoder.{name}": tensor for name, tensor in fastlstm.LSTM(3, 5, seed=1).state_dict().items()}
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    lower = {name: tensor for name, tensor in tensors.items() if "_l0" in name}
    upper = {name: tensor for name, tensor in tensors.items() if "_l1" in name}
    save_file(lower, tmp_path / files[0])
    save_file(upper | other, tmp_path / files[1])
    places = dict.fromkeys(lower, files[0]) | dict.fromkeys(upper | other, files[1])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    refused(lambda: load(tmp_path / files[0]), f"'{prefix}weight_ih_l1' of this LSTM is in another file of the checkpoint")
    assert load(tmp_path / files[1], name="decoder").hidden_size == 5
    refused(lambda: load(index), "load the one that holds the whole LSTM")
    index.write_text("{")
    refused(lambda: load(tmp_path / files[0]), "model.safetensors.index.json': broken JSON")
    for text in ("[]", "{}", '{"weight_map": [1]}'):
        index.write_text(text)
        refused(lambda: load(tmp_path / files[0]), "is one file of several, and their index")
    index.unlink()
    refused(lambda: load(tmp_path / files[0]), "is one file of several, and their index")
    refused(lambda: scan(tmp_path / files[1]), "none of the 2 LSTMs", "is one file of several")
    alone = (tmp_path / files[0]).rename(tmp_path / "model-00001-of-00001.safetensors")
    assert load(alone).num_layers == 1, "nobody says that there is more"


@pytest.mark.parametrize(
    ("file", "index"),
    [
        ("model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json"),
        ("model-00001-of-00002.fp16.safetensors", "model.safetensors.index.fp16.json"),
        ("part1.safetensors", "model.safetensors.index.json"),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
    ],
)
def test_an_index_is_found_by_what_it_lists(file: str, index: str, tmp_path: Path) -> None:
    torch = required("torch")
    module = torch.nn.LSTM(3, 5)
    weights = {name: tensor for name, tensor in module.state_dict().items() if "weight" in name}
    if file.endswith(".bin"):
        torch.save(weights, tmp_path / file)
    else:
        save_file = pytest.importorskip("safetensors.torch").save_file
        save_file(weights, tmp_path / file)
    places = {name: file if "weight" in name else "other" for name in module.state_dict()}
    (tmp_path / "a.index.json").write_text("{")  # of nothing that is loaded
    (tmp_path / index).write_text(json.dumps({"weight_map": places}))
    (tmp_path / "b.index.json").write_text(json.dumps({"weight_map": {"x": "y"}}))
    refused(lambda: load(tmp_path / file), "'bias_ih_l0' of this LSTM is in another file of the checkpoint", index)


def test_live_initial_state_is_refused() -> None:
    torch = required("torch")

    class Learned(torch.nn.LSTM):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(3, 5)
            self.h0 = torch.nn.Parameter(torch.ones(1, 1, 5))

    for source in (Learned(), Learned().state_dict(), torch.nn.ModuleDict({"lstm": Learned()}).state_dict()):
        refused(
            lambda source=source: from_torch(source),
            "h0' belongs to an LSTM, by its name: no parameter of nn.LSTM (an initial state?",
        )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_live_pruned(dtype: str, tmp_path: Path) -> None:
    torch = required("torch")
    from torch.nn.utils import prune

    module = torch.nn.LSTM(3, 5, 2, bidirectional=True)
    prune.random_unstructured(module, "weight_hh_l0", amount=0.3)
    prune.ln_structured(module, "weight_ih_l1_reverse", amount=0.5, n=2, dim=0)
    prune.random_unstructured(module, "bias_ih_l1", amount=0.5)
    module = module.to(getattr(torch, dtype))
    torch.save(module.state_dict(), tmp_path / "x")
    saved = load(tmp_path / "x").weights
    assert_same_weights(saved, dict(from_torch(module).weights.named_tensors()))
    if dtype == "float32":
        assert_same_output(from_torch(module), module)
    for name in ("weight_hh_l0", "weight_ih_l1_reverse", "bias_ih_l1"):
        prune.remove(module, name)
    assert_same_weights(saved, {name: tensor.float().numpy() for name, tensor in module.state_dict().items()})


def test_golden_pruned() -> None:
    torch = required("torch")
    given = torch.load(GOLDEN / "pruned.pt")
    weights = load(GOLDEN / "pruned.pt", "encoder.rnn").weights
    wanted = given["encoder.rnn.weight_hh_l0_orig"] * given["encoder.rnn.weight_hh_l0_mask"]
    assert weights.layers[0].weight_hh.tobytes() == wanted.numpy().tobytes()


def test_a_numpy_array_beside_the_weights(tmp_path: Path) -> None:
    torch = required("torch")
    torch.save({"hist": np.arange(3.0), "state_dict": torch.nn.LSTM(3, 5).state_dict()}, tmp_path / "x")
    message = refused(lambda: load(tmp_path / "x"), "a NumPy array beside", "torch.save(checkpoint['state_dict'], path)")
    assert "model" not in message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_live_half_precision(dtype: str, tmp_path: Path) -> None:
    torch = required("torch")
    module = torch.nn.LSTM(3, 5).to(getattr(torch, dtype))
    expected = {name: tensor.float().numpy() for name, tensor in module.state_dict().items()}
    assert_same_weights(from_torch(module).weights, expected)
    torch.save(module.state_dict(), tmp_path / "x")
    assert scan(tmp_path / "x")[0].dtype == dtype
    assert_same_weights(load(tmp_path / "x").weights, expected)


def test_live_tensors_of_unusual_kinds() -> None:
    torch = required("torch")
    lazy = {name: torch._neg_view(-torch.from_numpy(tensor)) for name, tensor in state_dict().items()}
    assert_same_weights(from_torch(lazy).weights, state_dict())
    strided = {name: torch.from_numpy(np.repeat(tensor, 2, 0))[::2] for name, tensor in state_dict().items()}
    assert_same_weights(from_torch(strided).weights, state_dict())
    for meta in (torch.nn.LSTM(3, 5, device="meta"), torch.nn.LSTM(3, 5, device="meta").state_dict()):
        refused(lambda meta=meta: from_torch(meta), "'weight_ih_l0'", "shape (20, 3)", "cannot be read")
    lists = {name: value.tolist() for name, value in torch.nn.LSTM(3, 5).state_dict().items()}
    refused(
        lambda: from_torch(lists), "without named tensors", "'weight_ih_l0' is of type list, a tensor or an array was expected"
    )
    int8 = torch.zeros(20, dtype=torch.int8)
    refused(lambda: from_torch({**lazy, "bias_ih_l0": int8}), "'bias_ih_l0' must be one of float16", "int8")


def test_live_quantized_module() -> None:
    torch = required("torch")
    quantized = required("torch.ao.nn.quantized.dynamic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch will take it away
        model = torch.nn.ModuleDict({"rnn": quantized.LSTM(3, 5)})
        refused(lambda: from_torch(model.state_dict()), "'rnn' is quantized")
    refused(lambda: from_torch(model), "'rnn' is quantized")


def test_whatever_is_accepted_pytorch_reads_alike(tmp_path: Path) -> None:
    """Mutated files: what we and PyTorch load has the same values."""
    torch = required("torch")
    path = tmp_path / "x"
    compared = 0
    for data in mutate.mutants("zip", 1500, seed=2):
        path.write_bytes(data)
        try:
            infos = scan(path)
            weights = [load(path, info.name, allow_nonfinite=True).weights for info in infos]
        except (FormatError, OSError):
            continue
        try:
            theirs = torch.load(io.BytesIO(data), weights_only=True)
        except Exception:
            continue  # a device, a hook, a member that we have no need to look at
        for info, ours in zip(infos, weights, strict=True):
            for name, tensor in ours.named_tensors():
                stored = theirs.get(f"{info.name}.{name}".removeprefix(".")) if isinstance(theirs, dict) else None
                if stored is not None:  # else a weight norm
                    assert stored.double().numpy().astype(tensor.dtype).tobytes() == tensor.tobytes(), (compared, name)
                    compared += 1
    assert compared > 200


def test_a_module_under_several_names_has_all_of_them() -> None:
    torch = required("torch")
    module = torch.nn.Module()
    module.first = module.second = torch.nn.LSTM(3, 5)
    module.inner = torch.nn.Sequential(module.first)
    for name in ("first", "second", "inner.0"):
        assert_same_weights(from_torch(module, name).weights, dict(from_torch(module).weights.named_tensors()))


def test_spectral_norm_is_named() -> None:
    torch = required("torch")
    module = torch.nn.Sequential(torch.nn.LSTM(3, 5))
    torch.nn.utils.spectral_norm(module[0], "weight_hh_l0")
    for source in (module, module.state_dict()):
        refused(lambda source=source: from_torch(source), "'0.weight_hh_l0_u'", "torch.nn.utils.remove_spectral_norm")
