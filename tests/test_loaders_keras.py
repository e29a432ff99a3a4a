"""What Keras wrote, read without it, and its live layers: the numbers are Keras' own, what is not understood is refused by name.

The golden files and the values expected of them are made by ``golden/make_keras.py``.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import Edit, edited, edited_h5, with_old_container, without_names
from helpers import refused

import fastlstm
from fastlstm import FormatError, LayerWeights, Weights
from fastlstm.cell import PLAIN, Activation, Cell
from fastlstm.loaders import LSTMInfo, from_keras, load, reading, scan, source
from fastlstm.loaders.keras import config as keras_config
from fastlstm.loaders.keras import hdf5
from fastlstm.loaders.keras import live as keras_live

GOLDEN = Path(__file__).parent / "golden"
# Keras computes in float32 too, in its own order
TOLERANCE = 2e-5


pytestmark = pytest.mark.filterwarnings("ignore")  # Keras warns of its own old format, and of much else


def expected(key: str) -> list[np.ndarray]:
    with np.load(GOLDEN / "keras_expected.npz") as file:
        return [file[name] for name in file.files if name.startswith(key + "|")]


def given_input(size: int = 3) -> np.ndarray:
    with np.load(GOLDEN / "keras_expected.npz") as file:
        return file["x" if size == 3 else "x_4"]


def weights_of(path: Path, name: str | None = None) -> Weights:
    """As ``load`` reads them, before there is a network, which cannot run every variant."""
    with source.opened(path) as file:
        return reading.weights_of(reading.contents_of(file).choose(name))


# ---- Every kind of layer in exact arithmetic -----------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "elu": lambda x, alpha: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x, alpha: np.where(x >= 0, x, alpha * x),
}


def apply(activation: Activation, x: np.ndarray) -> np.ndarray:
    return FUNCTIONS[activation.name](x, *activation.parameters)


def exact(weights: Weights, x: np.ndarray) -> list[np.ndarray]:
    """Outputs (B, T, H) in float64, as Keras merges and orders them; the weights' cell with Keras' activations."""
    y = np.asarray(x, np.float64)
    for first in range(0, len(weights.layers), weights.num_directions):
        ways = []
        for direction, layer in enumerate(weights.layers[first : first + weights.num_directions]):
            backwards = weights.reverse or direction == 1
            out = one_direction(layer, y[:, ::-1] if backwards else y)
            ways.append(out[:, ::-1] if backwards and not weights.flipped else out)
        y = np.concatenate(ways, axis=2)
    merged = {"sum": np.add, "mul": np.multiply, "ave": lambda a, b: (a + b) / 2}
    if weights.merge_mode in merged:
        return [merged[weights.merge_mode](*ways)]
    return ways if weights.merge_mode is None else [y]


def one_direction(layer: LayerWeights, x: np.ndarray) -> np.ndarray:
    h = c = np.zeros((x.shape[0], layer.weight_hh.shape[1]))
    steps = []
    for t in range(x.shape[1]):
        z = x[:, t] @ layer.weight_ih.T.astype(np.float64) + h @ layer.weight_hh.T.astype(np.float64)
        if layer.bias_ih is not None:
            z = z + layer.bias_ih + layer.bias_hh
        i, f, g, o = np.split(z, 4, axis=1)
        i, f, o = (apply(layer.cell.gate, gate) for gate in (i, f, o))
        c = f * c + i * apply(layer.cell.candidate, g)
        h = o * apply(layer.cell.hidden, c)
        steps.append(h)
    return np.stack(steps, axis=1)


def assert_gives(weights: Weights, outputs: list[np.ndarray]) -> None:
    """The weights give these outputs, by the oracle above and by the engine."""
    x = given_input(weights.input_size)
    output = fastlstm.LSTM.from_weights(weights, batch_first=True)(x)[0]
    for given in (exact(weights, x), list(output) if weights.merge_mode is None else [output]):
        for a, b in zip(given, outputs, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


# ---- Golden files --------------------------------------------------------------------------------------------------------------


def info(name: str, I: int, H: int, layers: int = 1, bidirectional: bool = False, bias: bool = True, **more: Any) -> LSTMInfo:
    return LSTMInfo(name, I, H, layers, bidirectional, 0, bias, **{"dtype": "float32", "batch_first": True, **more})


EVERY_KIND = [
    info("zeta", 3, 5),
    info("alpha", 3, 5, bias=False),
    info("backwards", 3, 5),
    info("hard", 3, 5),
    info("relu", 3, 5),
    *(info(name, 3, 4, bidirectional=True) for name in ("both", "sum", "mul", "ave", "pair", "both_cells")),
    info("one_cell", 3, 5),
    info("cells", 3, 4, 2),
    info("encoder/lstm", 3, 4),
    info("decoder/lstm", 4, 4),
    info("frames/inner", 3, 4),
]
# What weights alone do not say
CONFIGURED = ("backwards", "hard", "relu", "sum", "mul", "ave", "pair")
KERAS_2 = [
    info("plain", 3, 5),
    info("cudnn", 3, 5),
    info("both", 3, 4, bidirectional=True),
    info("cells", 3, 4, 2),
]
# file: (what scan lists, where the expected values are, which names have none)
FILES = {
    "keras3.keras": (EVERY_KIND, "keras3", ()),
    "keras3.h5": (EVERY_KIND, "keras3", ()),
    "keras3.weights.h5": (EVERY_KIND, "keras3", CONFIGURED),
    "keras2.h5": ([*KERAS_2, info("hard", 3, 5), info("time_major", 3, 5, batch_first=False)], "keras2", ("hard",)),
    "keras2_weights.h5": (KERAS_2, "keras2", ()),
}


@pytest.mark.parametrize("file", FILES)
def test_golden_file(file: str, h5py: Any) -> None:
    infos, key, without = FILES[file]
    assert sorted(scan(GOLDEN / file), key=str) == sorted(infos, key=str)
    if file != "keras3.weights.h5":
        assert scan(GOLDEN / file) == infos
    with source.opened(GOLDEN / file) as opened:
        contents = reading.contents_of(opened)
        for item in infos:
            if item.name not in without:
                assert_gives(reading.weights_of(contents.choose(item.name)), expected(f"{key}|{item.name}"))


@pytest.mark.parametrize("file", ["keras3.keras", "keras3.h5", "keras2.h5"])
def test_load_and_run(file: str, h5py: Any) -> None:
    lstm = load(GOLDEN / file, "both")
    assert lstm.batch_first
    output, (h_n, _) = lstm(given_input())
    np.testing.assert_allclose(output, expected(f"{file[:6]}|both")[0], rtol=0, atol=TOLERANCE)
    assert (h_n[0] == output[:, -1, :4]).all()
    assert (h_n[1] == output[:, 0, 4:]).all()
    assert not load(GOLDEN / file, "both", batch_first=False).batch_first


def test_what_the_configuration_says(h5py: Any) -> None:
    def cells(name: str, file: str = "keras3.keras") -> Cell:
        return weights_of(GOLDEN / file, name).layers[0].cell

    softsign, relu = Activation("softsign"), Activation("relu")
    assert cells("zeta") == PLAIN
    assert cells("hard") == Cell(Activation("hard_sigmoid", (1 / 6, 0.5)), softsign, softsign)
    assert cells("hard", "keras2.h5").gate == Activation("hard_sigmoid", (0.2, 0.5))
    assert cells("relu") == Cell(candidate=relu, hidden=relu)
    weights = weights_of(GOLDEN / "keras3.keras", "backwards")
    assert weights.reverse
    assert weights.flipped
    for mode in ("sum", "mul", "ave"):
        assert weights_of(GOLDEN / "keras3.keras", mode).merge_mode == mode
    assert weights_of(GOLDEN / "keras3.keras", "pair").merge_mode is None
    assert weights_of(GOLDEN / "keras3.weights.h5", "pair").merge_mode == "concat"
    assert not load(GOLDEN / "keras2.h5", "time_major").batch_first


def test_hard_sigmoid_of_keras_2(h5py: Any) -> None:
    kernel, recurrent, bias = expected("hard")
    layer = weights_of(GOLDEN / "keras2.h5", "hard").layers[0]
    for given, array in ((layer.weight_ih, kernel.T), (layer.weight_hh, recurrent.T), (layer.bias_ih, bias)):
        assert given.tobytes() == array.tobytes()
    assert not layer.bias_hh.any()


def test_cudnn_keeps_two_biases(h5py: Any) -> None:
    layer = weights_of(GOLDEN / "keras2.h5", "cudnn").layers[0]
    assert layer.bias_ih.any()
    assert layer.bias_hh.any()
    assert layer.cell == PLAIN


def test_subclassed_model(h5py: Any) -> None:
    """Its configuration does not hold those of its layers: defaults are taken."""
    path = GOLDEN / "keras3_subclassed.keras"
    assert {item.name for item in scan(path)} == {"reading", "first", "second"}
    for name, key in (("reading", "reading"), ("first", "steps"), ("second", "second")):
        assert_gives(weights_of(path, name), expected(f"keras3_subclassed|{key}"))


@pytest.mark.parametrize(("place", "name"), [("", "first"), ("layers/own/", "layers/own")])
def test_an_attribute_called_cell(place: str, name: str, tmp_path: Path, h5py: Any) -> None:
    """Of a model or a layer of one's own: it is not all that is in there."""

    def beside(file: Any) -> None:
        file.move("layers/lstm_cell", f"{place}cell")
        file.move("layers/lstm", f"{place}reader")

    path = tmp_path / "x.keras"
    path.write_bytes(edited(GOLDEN / "keras3_subclassed.keras", beside))
    assert {item.name for item in scan(path)} == {"reading", name, "second"}
    for given, key in (("reading", "reading"), (name, "steps"), ("second", "second")):
        assert_gives(weights_of(path, given), expected(f"keras3_subclassed|{key}"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype: str, h5py: Any) -> None:
    path = GOLDEN / f"keras3_{dtype}.weights.h5"
    assert scan(path) == [info("lstm", 3, 4, dtype=dtype)]
    layer = load(path).weights.layers[0]
    kernel, recurrent, bias = expected(dtype)
    for given, array in ((layer.weight_ih, kernel.T), (layer.weight_hh, recurrent.T), (layer.bias_ih, bias)):
        assert given.dtype == array.dtype
        assert given.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("refused_activation.keras", ("'custom'", "activation must be one of", "squash")),
        ("refused_class.keras", ("'custom'", "class 'LSTM' is not Keras'", "its code decides")),
        ("refused_gelu.keras", ("'gelu'", "activation must be one of elu, hard_sigmoid", "got 'gelu'")),
    ],
)
def test_golden_file_is_refused(file: str, parts: tuple[str, ...], h5py: Any) -> None:
    refused(lambda: load(GOLDEN / file), file, *parts)
    refused(lambda: scan(GOLDEN / file), *parts)


def test_names(h5py: Any) -> None:
    path = GOLDEN / "keras3.keras"
    assert load(path, "inner").hidden_size == load(path, "frames/inner").hidden_size == 4
    refused(lambda: load(path), "16 LSTMs", "name=", "'zeta', 'alpha'")
    refused(lambda: load(path, "lstm"), "means several", "'encoder/lstm', 'decoder/lstm'")
    refused(lambda: load(path, "nothing"), "no LSTM is named 'nothing'", "'zeta'")
    refused(lambda: load(path, "gru"), "'gru': this is a GRU")
    refused(lambda: load(path, "gru_both"), "'gru_both': this is a GRU")
    assert load(GOLDEN / "keras3.weights.h5", "layers/lstm_1").bias is False


def test_loading_imports_neither_keras_nor_h5py(h5py: Any) -> None:
    code = (
        "import sys, fastlstm.loaders as loaders\n"
        f"for file in ('keras3.keras', 'keras2.h5'): loaders.load({str(GOLDEN)!r} + '/' + file, 'both')\n"
        "print([name for name in ('torch', 'keras', 'h5py', 'tensorflow') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


# ---- Files of other versions, made from the golden ones ------------------------------------------------------------------------


def with_windows_names(file: Any) -> None:
    """What TensorFlow's file functions made of paths there: one group where others have several."""
    with_old_container(file)
    groups: list[str] = []
    file.visit(lambda path: groups.append(path) if path.endswith("/vars") else None)
    for path in groups:
        if len(file[path]):
            outer = path.removesuffix("/vars").replace("/", "\\")
            file.create_group(outer)
            file.move(path, f"{outer}/vars")
    del file["_layer_checkpoint_dependencies"]


@pytest.mark.parametrize("change", [without_names, with_old_container, with_windows_names])
def test_groups_without_names_are_told_by_their_order(change: Edit, tmp_path: Path, h5py: Any) -> None:
    """As before Keras 3.7, and as in 2.13 to 2.15."""
    path = tmp_path / "x.keras"
    path.write_bytes(edited(GOLDEN / "keras3.keras", change))
    assert scan(path) == EVERY_KIND
    with source.opened(path) as file:
        contents = reading.contents_of(file)
        for item in EVERY_KIND:
            assert_gives(reading.weights_of(contents.choose(item.name)), expected(f"keras3|{item.name}"))


def test_weights_alone_without_names(tmp_path: Path, h5py: Any) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(edited_h5(GOLDEN / "keras3.weights.h5", without_names))
    assert_gives(weights_of(path, "layers/lstm"), expected("keras3|zeta"))
    assert_gives(weights_of(path, "layers/sequential_1/layers/lstm"), expected("keras3|decoder/lstm"))


@pytest.mark.parametrize(
    ("version", "gate"),
    [
        ("2.0.9", "hard_sigmoid"),
        ("2.1.6-tf", "hard_sigmoid"),
        ("2.2.4", "hard_sigmoid"),
        ("2.2.4-tf", "sigmoid"),
        ("2.3.0", "sigmoid"),
        ("2.15.0", "sigmoid"),
    ],
)
def test_what_a_version_did_where_nothing_was_said(version: str, gate: str, tmp_path: Path, h5py: Any) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(edited_h5(GOLDEN / "keras2_weights.h5", lambda file: file.attrs.update(keras_version=version)))
    expected_gate = Activation("hard_sigmoid", (0.2, 0.5)) if gate == "hard_sigmoid" else Activation("sigmoid")
    for name in ("plain", "both"):
        assert load(path, name).weights.layers[0].cell.gate == expected_gate
    assert load(path, "cudnn").weights.layers[0].cell.gate == Activation("sigmoid")
    assert load(path, "plain", recurrent_activation="sigmoid").weights.layers[0].cell.gate == Activation("sigmoid")


def test_a_group_that_cannot_be_told_is_refused(tmp_path: Path, h5py: Any) -> None:
    def change(file: Any) -> None:
        without_names(file)
        file.move("layers/lstm_4", "elsewhere")

    path = tmp_path / "x.keras"
    path.write_bytes(edited(GOLDEN / "keras3.keras", change))
    refused(lambda: load(path, "zeta"), "'zeta'", "weights")
    refused(lambda: load(path, "layers/lstm_1"), "cannot be told", "'zeta', 'alpha'")
    assert load(path, "both").hidden_size == 4


def test_two_layers_of_one_name_are_refused(tmp_path: Path, h5py: Any) -> None:
    def change(model: Any) -> None:
        layer_config(model, "alpha")["config"]["name"] = "zeta"

    path = tmp_path / "x.keras"
    path.write_bytes(edited(GOLDEN / "keras3.keras", config=change))
    refused(lambda: load(path, "zeta"), "'zeta'", "several")


def test_deflated_archive(tmp_path: Path, h5py: Any) -> None:
    path = tmp_path / "x.keras"
    with zipfile.ZipFile(GOLDEN / "keras3.keras") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert load(path, "both").hidden_size == 4


def layer_config(model: Any, name: str) -> Any:
    return next(layer for layer in model["config"]["layers"] if layer["config"]["name"] == name)


def changed(name: str, **values: Any) -> Edit:
    def change(model: Any) -> None:
        layer_config(model, name)["config"].update(values)

    return change


def changed_entry(name: str, **values: Any) -> Edit:
    def change(model: Any) -> None:
        layer_config(model, name).update(values)

    return change


def changed_cell(**values: Any) -> Edit:
    return lambda model: layer_config(model, "one_cell")["config"]["cell"]["config"].update(values)


def changed_direction(key: str, **values: Any) -> Edit:
    return lambda model: layer_config(model, "both")["config"][key]["config"].update(values)


def sequence(*edits: Edit) -> Edit:
    return lambda model: [edit(model) for edit in edits] and None


MARKER = "harmed"

# what is broken: (layer, how its configuration is changed, what the message must hold)
CONFIGS: dict[str, tuple[str, Edit, tuple[str, ...]]] = {
    "more units than weights": ("zeta", changed("zeta", units=10**9), ("1000000000 units", "has 5")),
    "units negative": ("zeta", changed("zeta", units=-4), ("units must be a positive integer, got -4",)),
    "units a text": ("zeta", changed("zeta", units="5"), ("units must be", "'5'")),
    "units true": ("zeta", changed("zeta", units=True), ("units must be", "True")),
    "no activation": ("zeta", lambda m: layer_config(m, "zeta")["config"].pop("activation"), ("activation is missing",)),
    "unknown activation": ("zeta", changed("zeta", activation="swish"), ("activation must be one of", "'swish'")),
    "activation a lambda": (
        "zeta",
        changed("zeta", activation={"class_name": "__lambda__", "config": {"value": f"open('{MARKER}', 'w')"}}),
        ("activation must be one of", "__lambda__"),
    ),
    "unknown recurrent activation": (
        "zeta",
        changed("zeta", recurrent_activation=["sigmoid"]),
        ("recurrent_activation must be one of",),
    ),
    "use_bias a number": ("zeta", changed("zeta", use_bias=1), ("use_bias must be true or false, got 1",)),
    "a bias too many": ("zeta", changed("zeta", use_bias=False), ("use_bias=False", "holds a bias")),
    "a bias too few": ("alpha", changed("alpha", use_bias=True), ("use_bias=True", "holds no bias")),
    "go_backwards null": ("zeta", changed("zeta", go_backwards=None), ("go_backwards must be",)),
    "an unknown key": ("zeta", changed("zeta", zoneout=0.1), ("'zoneout'", "not understood")),
    "a key with control characters": ("zeta", changed("zeta", **{"\x1b[31m": 1}), (r"'\x1b[31m'",)),
    "a long key": ("zeta", changed("zeta", **{"k" * 5000: 1}), ("kkk",)),
    "another module": (
        "zeta",
        changed_entry("zeta", module="os", class_name="LSTM"),
        ("class 'LSTM' is not Keras'",),
    ),
    "a class of the caller's with the same name": (
        "zeta",
        changed_entry("zeta", module=None, registered_name="LSTM"),
        ("class 'LSTM' is not Keras'",),
    ),
    "a cell of the caller's with the same name": (
        "one_cell",
        lambda m: layer_config(m, "one_cell")["config"]["cell"].update(module=None, registered_name="LSTMCell"),
        ("cells must be keras.layers.LSTMCell",),
    ),
    "a registered class": ("zeta", changed_entry("zeta", registered_name="my>LSTM"), ("class 'LSTM' is not Keras'",)),
    "no configuration": ("zeta", changed_entry("zeta", config={"name": "zeta"}), ("units must be",)),
    "merge mode": ("both", changed("both", merge_mode="max"), ("merge_mode must be", "'max'")),
    "no layer": ("both", changed("both", layer=None), ("its layer is missing",)),
    "both forward": (
        "both",
        changed_direction("backward_layer", go_backwards=False),
        ("go_backwards must be False in its layer and True in its backward_layer",),
    ),
    "first backward": ("both", changed_direction("layer", go_backwards=True), ("go_backwards must be False in its layer",)),
    "directions of two sizes": ("both", changed_direction("backward_layer", units=3), ("directions have 4, 3 units",)),
    "one direction with time first": ("both", changed_direction("layer", time_major=True), ("time_major",)),
    "a cell of its own": (
        "one_cell",
        lambda m: layer_config(m, "one_cell")["config"]["cell"].update(class_name="MyCell", module="my.cells"),
        ("cells must be keras.layers.LSTMCell", "'MyCell'"),
    ),
    "no cell": ("one_cell", changed("one_cell", cell=7), ("cells must be", "7")),
    "an unknown key of a cell": ("one_cell", changed_cell(peephole=True), ("'peephole'",)),
    "cells of two sizes": (
        "cells",
        lambda m: layer_config(m, "cells")["config"]["cell"]["config"]["cells"][1]["config"].update(units=7),
        ("4, 7 units",),
    ),
    "no cells": (
        "cells",
        lambda m: layer_config(m, "cells")["config"]["cell"]["config"].update(cells=[]),
        ("cells must be", "[]"),
    ),
    "a cell too few": (
        "cells",
        lambda m: layer_config(m, "cells")["config"]["cell"]["config"]["cells"].pop(),
        ("1 cell(s) in all, the file holds 2",),
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configuration_is_refused(case: str, tmp_path: Path, h5py: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change, parts = CONFIGS[case]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.keras"
    path.write_bytes(edited(GOLDEN / "keras3.keras", config=change))
    message = refused(lambda: load(path, name), f"layer {name!r}", *parts)
    assert message.isprintable()
    problems = {item.name: item.problem for item in scan(path) if item.problem}  # all others can be loaded
    assert problems.keys() == {name}
    assert message.endswith(problems[name])
    assert not (tmp_path / MARKER).exists()


def test_activations_of_keras(keras: Any) -> None:
    """Every one that is not refused is Keras' own function."""
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    for name in (*keras_config.ACTIVATIONS, "hard_sigmoid", None):
        config = {"units": 1, "activation": name, "recurrent_activation": name}
        entry = {"class_name": "LSTM", "config": config}
        cell = keras_config.plan(entry, 3).cells[0].cell
        values = keras.ops.convert_to_numpy(keras.activations.get(name)(x))
        np.testing.assert_allclose(apply(cell.gate, x.astype(np.float64)), values, rtol=0, atol=1e-6)
        assert cell.candidate == cell.hidden == cell.gate


@pytest.mark.parametrize(
    ("text", "major"), [("3.15.1", 3), ("2.2.4-tf", 2), ("2", 2), ("1.2.2", None), ("30.1", None), (None, None)]
)
def test_versions(text: str | None, major: int | None) -> None:
    assert keras_config.major_version(text) == major


def test_hard_sigmoid_needs_the_version(tmp_path: Path, h5py: Any) -> None:
    path = tmp_path / "x.keras"
    path.write_bytes(edited(GOLDEN / "keras3.keras", metadata=lambda value: value.update(keras_version="4.0")))
    refused(lambda: load(path, "hard"), "hard_sigmoid", "keras_version")
    assert load(path, "zeta").hidden_size == 5


def test_bfloat16_in_the_old_form(keras: Any, h5py: Any, tmp_path: Path) -> None:
    """It has no note of the dtype beside the weights: the configuration tells."""
    L, path = keras.layers, tmp_path / "x.h5"
    for dtype in ("bfloat16", "float16"):
        layer = L.LSTM(4, dtype=dtype, recurrent_initializer="zeros", name="lstm")  # no others in bfloat16
        inner = keras.Sequential([keras.Input((7, 3)), layer])
        for model in (inner, keras.Sequential([keras.Input((7, 3)), inner, L.Dense(2, dtype=dtype)])):
            model.save(path)
            assert [item.dtype for item in scan(path)] == [dtype]
            kernel = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(layer.cell.kernel, "float32")))
            assert load(path).weights.layers[0].weight_ih.tobytes() == kernel.T.tobytes()
            x = np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32)
            theirs = keras.ops.convert_to_numpy(keras.ops.cast(model(x), "float32"))
            np.testing.assert_allclose(fastlstm.load_model(path)(x), theirs, rtol=0, atol=2e-2)
    layer = L.LSTM(4, dtype="bfloat16", recurrent_initializer="zeros")
    keras.Sequential([keras.Input((7, 3)), layer]).save(path)
    path.write_bytes(edited_h5(path, lambda file: file.attrs.pop("model_config") and None))
    refused(
        lambda: load(path), "kernel' must be one of float16, bfloat16", "|V2 (bfloat16? the file does not say: save it as .keras)"
    )


def test_shards(keras: Any, h5py: Any, tmp_path: Path) -> None:
    """Where a layer may go on in the next file it is refused, and the index names the files."""
    keras.utils.clear_session()  # which numbers the names of cells
    L = keras.layers
    cases = (  # with kernels (3, 16), recurrent ones (4, 16) and biases (16,): 192, 256 and 64 bytes
        (L.LSTM(4, name="mine"), 192 + 256, "mine"),
        (L.Bidirectional(L.LSTM(4, name="mine"), name="both"), 512, "both/backward_mine"),
        (L.Bidirectional(L.LSTM(4), name="mine"), 2 * 512 - 64, "mine"),
        (L.RNN([L.LSTMCell(4), L.LSTMCell(4)], name="mine"), 512, "mine/stacked_rnn_cells/lstm_cell"),
    )
    first, second, index = (tmp_path / name for name in ("x_00000.weights.h5", "x_00001.weights.h5", "x.weights.json"))
    for layer, size, name in cases:
        keras.Sequential([keras.Input((7, 3)), layer, L.Dense(2)]).save_weights(index, max_shard_size=size / 1024**3)
        refused(lambda: scan(index), "index of Keras' weights", "'x_00000.weights.h5'", "without max_shard_size")
        refused(lambda: load(first), f"layer {name!r}", "a shard of Keras' weights", "without max_shard_size")
        refused(lambda: load(second), "a shard of Keras' weights")

    model = keras.Sequential([keras.Input((7, 3)), L.LSTM(4, name="mine"), L.Dense(2)])
    model.save_weights(index, max_shard_size=512 / 1024**3)
    model.save_weights(tmp_path / "x.weights.h5")
    epoch = (tmp_path / "x.weights.h5").rename(tmp_path / "epoch_00010.weights.h5")
    for path in first, epoch:  # all of the layer is there
        assert load(path).weights.layers[0].bias_ih is not None


def test_index_of_others(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"metadata": {"total_size": 1}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}')
    refused(lambda: scan(path), "an index of weights in other files, 'm-1.safetensors', 'm-2.safetensors'")
    path.write_text('{"weight_map": [1, "x"]}')
    refused(lambda: scan(path), "this is JSON text, not of")


# ---- Archives and HDF5 files that are wrong ------------------------------------------------------------------------------------

ARCHIVES: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "cut off": (lambda: (GOLDEN / "keras3.keras").read_bytes()[:-1], ("truncated", "no zip directory")),
    "half": (lambda: (GOLDEN / "keras3.keras").read_bytes()[:100_000], ("truncated", "no zip directory")),
    "no metadata": (lambda: edited(GOLDEN / "keras3.keras", metadata=None), ("'metadata.json' is missing",)),
    "configuration a list": (
        lambda: edited(GOLDEN / "keras3.keras", config=b"[]"),
        ("config.json must be a JSON object, got list",),
    ),
    "configuration broken": (lambda: edited(GOLDEN / "keras3.keras", config=b"{"), ("broken config.json",)),
    "configuration deep": (lambda: edited(GOLDEN / "keras3.keras", config=b'{"a":' * 100_000), ("config.json",)),
    "a key twice": (lambda: edited(GOLDEN / "keras3.keras", config=b'{"a": 1, "a": 2}'), ("the config.json has 'a' twice",)),
    "no HDF5": (lambda: edited(GOLDEN / "keras3.keras", model=b"x" * 100), ("model.weights.h5", "not an HDF5 file")),
    "weights in another form": (
        lambda: zip_of({"config.json": b"{}", "metadata.json": b"{}", "model.weights.npz": b""}),
        ("'model.weights.npz'", "model.save(path)"),
    ),
    "HDF5 cut off": (lambda: (GOLDEN / "keras3.weights.h5").read_bytes()[:90_000], ("broken HDF5 file", "truncated")),
    "HDF5 signature alone": (lambda: hdf5.SIGNATURE + bytes(99), ("broken HDF5 file",)),
    "model_config a list": (
        lambda: edited_h5(GOLDEN / "keras2.h5", lambda f: f.attrs.create("model_config", "[1]")),
        ("model_config must be a JSON object, got list",),
    ),
    "model_config a number": (
        lambda: edited_h5(GOLDEN / "keras2.h5", lambda f: f.attrs.create("model_config", 7)),
        ("'model_config'", "no text"),
    ),
    "a layer missing": (
        lambda: edited_h5(GOLDEN / "keras2.h5", lambda f: f["model_weights"].pop("plain")),
        ("layer 'plain'", "missing in the file"),
    ),
    "a weight missing": (
        lambda: edited_h5(GOLDEN / "keras2.h5", lambda f: f["model_weights/plain/lstm/lstm_cell_0"].pop("bias:0")),
        ("weight 'lstm/lstm_cell_0/bias:0'", "'model_weights/plain'", "missing"),
    ),
    "a weight twice": (
        lambda: edited_h5(GOLDEN / "keras2.h5", lambda f: repeat(f["model_weights/plain"], "lstm/lstm_cell_0/kernel:1")),
        ("'lstm/lstm_cell_0/kernel:1'", "twice"),
    ),
    "no LSTM": (
        lambda: with_h5(lambda f: f.create_dataset("a", data=[1.0])),
        ("no LSTM found: an HDF5 file with 1 dataset(s): 'a'",),
    ),
}


def zip_of(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def with_h5(make: Edit) -> bytes:
    import h5py as library

    stream = io.BytesIO()
    with library.File(stream, "w") as file:
        make(file)
    return stream.getvalue()


def repeat(group: Any, name: str) -> None:
    group[name] = np.zeros((3, 20), np.float32)
    group.attrs["weight_names"] = [*(str(old).encode() for old in group.attrs["weight_names"]), name.encode()]


def replace_text(file: Any, old: str, new: str) -> None:
    file.attrs["model_config"] = file.attrs["model_config"].replace(old, new)


@pytest.mark.parametrize("case", ARCHIVES)
def test_file_is_refused(case: str, tmp_path: Path, h5py: Any) -> None:
    make, parts = ARCHIVES[case]
    path = tmp_path / "x"
    path.write_bytes(make())
    refused(lambda: load(path), repr(str(path)), *parts)


def test_a_layer_of_a_foreign_class_in_the_old_form(tmp_path: Path, h5py: Any) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(edited_h5(GOLDEN / "keras2.h5", lambda f: replace_text(f, '"LSTM"', '"MyLSTM"')))
    refused(lambda: load(path, "plain"), "'plain'", "class 'MyLSTM' is not Keras'")
    problems = {item.name: item.problem for item in scan(path)}
    assert "class 'MyLSTM' is not Keras'" in problems["plain"]
    assert problems["cells"] == ""
    assert load(path, "cells").hidden_size == 4


def lstm_group(file: Any, **replaced: Any) -> Any:
    """An LSTM of three inputs and two units; ``replaced`` gives other arguments of ``create_dataset`` for some of its arrays."""
    group = file.create_group("layers/lstm/cell/vars")
    for name, shape in (("0", (3, 8)), ("1", (2, 8)), ("2", (8,))):
        options = {"data": np.ones(shape, np.float32), **replaced.get(f"v{name}", {})}
        group.create_dataset(name, **options)
    return group


def in_pieces(file: Any) -> None:
    lstm_group(file, v0={"compression": "gzip"})


def bomb(file: Any) -> None:
    lstm_group(file, v0={"data": None, "shape": (2**28, 8), "chunks": (2**20, 8), "dtype": "f4", "compression": "gzip"})


def outside(file: Any) -> None:
    lstm_group(file, v0={"data": None, "shape": (3, 8), "dtype": "f4", "external": [("/etc/passwd", 0, 96)]})


def virtual(file: Any) -> None:
    import h5py as library

    group = lstm_group(file)
    del group["0"]
    layout = library.VirtualLayout((3, 8), "f4")
    layout[:] = library.VirtualSource("/etc/passwd", "x", (3, 8))
    group.create_virtual_dataset("0", layout)


def linked(kind: str, *arguments: str) -> Edit:
    def make(file: Any) -> None:
        import h5py as library

        lstm_group(file)["3"] = getattr(library, kind)(*arguments)

    return make


def circle(file: Any) -> None:
    group = lstm_group(file)
    group["again"] = file["layers"]


def twice(file: Any) -> None:
    group = lstm_group(file)
    file["layers/other"] = group


def deep(file: Any) -> None:
    file.create_group("/".join(["a"] * 600))


HAZARDS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "compressed": (in_pieces, ("'layers/lstm/cell/vars/0'", "compressed or in pieces")),
    "a bomb": (bomb, ("weights take",)),
    "external storage": (outside, ("'layers/lstm/cell/vars/0' lie in other files",)),
    "virtual dataset": (virtual, ("'layers/lstm/cell/vars/0' lie in other files",)),
    "soft link": (linked("SoftLink", "/layers"), ("'layers/lstm/cell/vars/3' is a link",)),
    "external link": (linked("ExternalLink", "/etc/passwd", "/x"), ("'layers/lstm/cell/vars/3' is a link", "another file")),
    "a circle": (circle, ("another name of an object, or a circle",)),
    "two names": (twice, ("another name of an object",)),
    "a long path": (deep, ("a name of more than 1000 characters",)),
    "integers": (lambda f: lstm_group(f, v1={"data": np.ones((2, 8), np.int32)}), ("vars/1' must be one of float16", "<i4")),
    "texts": (lambda f: lstm_group(f, v0={"data": np.full((3, 8), b"x")}), ("vars/0' must be one of", "S1")),
    "complex": (lambda f: lstm_group(f, v0={"data": np.ones((3, 8), np.complex64)}), ("vars/0' must be one of",)),
    "two precisions": (lambda f: lstm_group(f, v2={"data": np.ones(8)}), ("vars/2' is float64",)),
    "no inputs": (lambda f: lstm_group(f, v0={"data": np.ones((0, 8), np.float32)}), ("input_size must be between 1",)),
    "a bias too short": (
        lambda f: lstm_group(f, v2={"data": np.ones(7, np.float32)}),
        ("vars/2' must have shape (8,), got (7,)",),
    ),
    "data never written": (
        lambda f: lstm_group(f, v0={"data": None, "shape": (3, 8), "dtype": "f4"}),
        ("vars/0'", "in pieces"),
    ),
    "attributes of another kind": (lambda f: lstm_group(f).attrs.create("name", 3.5), ("'name'", "no text")),
}


@pytest.mark.parametrize("case", HAZARDS)
def test_hazardous_hdf5(case: str, tmp_path: Path, h5py: Any) -> None:
    make, parts = HAZARDS[case]
    for name in ("x.h5", "x.keras"):
        data = with_h5(make)
        if name == "x.keras":
            data = zip_of({"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": data})
        (tmp_path / name).write_bytes(data)
        refused(lambda path=tmp_path / name: load(path), *parts)


def test_a_plain_group_is_good_before_it_is_broken(tmp_path: Path, h5py: Any) -> None:
    (tmp_path / "x.h5").write_bytes(with_h5(lstm_group))
    assert load(tmp_path / "x.h5").hidden_size == 2
    (tmp_path / "x.h5").write_bytes(with_h5(lambda f: lstm_group(f, v0={"data": np.ones((3, 8), ">f4")})))
    assert load(tmp_path / "x.h5").weights.layers[0].weight_ih.tolist() == np.ones((8, 3)).tolist()


def test_nonfinite_weights(tmp_path: Path, h5py: Any) -> None:
    (tmp_path / "x.h5").write_bytes(with_h5(lambda f: lstm_group(f, v2={"data": np.full(8, np.nan, np.float32)})))
    refused(lambda: load(tmp_path / "x.h5"), "bias_ih_l0", "allow_nonfinite=True")
    assert np.isnan(load(tmp_path / "x.h5", allow_nonfinite=True).weights.layers[0].bias_ih).all()


# ---- The child process ---------------------------------------------------------------------------------------------------------

# what the child does in place of its work: (code, what the message must hold)
CHILDREN = {
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ("did not survive", "-11")),
    "ends without a word": ("", ("did not survive",)),
    "never ends": ("import time; time.sleep(100)", ("more than 1 s",)),
    "is busy for ever": ("while True: pass", ("more than 1 s",)),
    "talks for ever": ("while True: print('x' * 100000)", ("a description of more than",)),
    "speaks no JSON": ("print('hello')", ("broken description",)),
    "says something else": ("print('[]')", ("unknown way",)),
    "says something unknown": ("print('{\"a\": 1}')", ("refused HDF5 file",)),
    "misses a list": ("print('{\"missing\": [1]}')", ("refused HDF5 file",)),
    "lists numbers": ("print('{\"entries\": [1]}')", ("unknown way",)),
    "lists a shape of texts": ("print('{\"entries\": [[\"a\", {}, [\"x\"], \"<f4\", 0, 4]]}')", ("'a' has a shape",)),
    "lists a huge shape": ("print('{\"entries\": [[\"a\", {}, [1099511627776], \"<f4\", 0, 4]]}')", ("no dimension may exceed",)),
    "lists a negative offset": ("print('{\"entries\": [[\"a\", {}, [1], \"<f4\", -4, 4]]}')", ("unknown way",)),
    "lists a child without parents": ("print('{\"entries\": [[\"a/b\", {}]]}')", ("'a/b' lies in no group",)),
    "lists twice": ("print('{\"entries\": [[\"a\", {}], [\"a\", {}]]}')", ("'a' occurs twice",)),
    "lists attributes of numbers": ("print('{\"entries\": [[\"a\", {\"name\": [1]}]]}')", ("unknown way",)),
    "lists an offset after the end": (
        "print('{\"entries\": [[\"a\", {}], [\"a/vars\", {}], [\"a/vars/0\", {}, [3, 8], \"<f4\", 90, 96],"
        " [\"a/vars/1\", {}, [2, 8], \"<f4\", 0, 64]]}')",
        ("truncated: 96 bytes expected at offset 90",),
    ),
    "lists fewer bytes than there must be": (
        "print('{\"entries\": [[\"a\", {}], [\"a/vars\", {}], [\"a/vars/0\", {}, [3, 8], \"<f4\", 0, 95],"
        " [\"a/vars/1\", {}, [2, 8], \"<f4\", 0, 64]]}')",
        ("'a/vars/0' must have 96 bytes, the file has 95",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHILDREN)
def test_a_child_that(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, h5py: Any) -> None:
    code, parts = CHILDREN[case]
    (tmp_path / "worker.py").write_text(code)
    monkeypatch.setattr(hdf5, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(hdf5, "SECONDS", 1 if case in ("never ends", "is busy for ever") else 60)
    (tmp_path / "x.h5").write_bytes(hdf5.SIGNATURE + bytes(100))
    begin = time.perf_counter()
    refused(lambda: load(tmp_path / "x.h5"), *parts)
    assert time.perf_counter() - begin < 20


def test_the_child_is_confined(tmp_path: Path, h5py: Any) -> None:
    """After it has taken its limits it can open no file, start no process, and take no more memory and time than it may."""
    code = (
        "import os, resource, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import hdf5_worker\n"
        "hdf5_worker.confine(0)\n"
        "def fails(act):\n"
        "    try: act()\n"
        "    except (OSError, MemoryError): return True\n"
        "print(fails(lambda: open('/etc/passwd')), fails(lambda: bytearray(20 << 20)), fails(lambda: bytearray(12 << 20)),\n"
        "      resource.getrlimit(resource.RLIMIT_CPU)[0] <= 20, resource.getrlimit(resource.RLIMIT_CORE)[1])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(hdf5.WORKER.parent)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout.split() == ["True", "True", "None", "True", "0"]


def test_the_child_has_time_by_the_size_of_the_file(tmp_path: Path, h5py: Any) -> None:
    code = "import sys\nsys.path.insert(0, sys.argv[1])\nimport hdf5_worker\nhdf5_worker.confine(0)\nwhile True: pass\n"
    took = []
    for size in (100, 1 << 19):  # half a MB is worth a second
        (tmp_path / "x.h5").write_bytes(bytes(size))
        before = os.times()
        with open(tmp_path / "x.h5", "rb") as stream:
            child = subprocess.run([sys.executable, "-c", code, str(hdf5.WORKER.parent)], stdin=stream, check=False)
        assert child.returncode == -signal.SIGPROF
        took.append(sum(os.times()[2:4]) - sum(before[2:4]))
    # The timer counts whole ticks of whoever runs when one ends: on a busy machine too many, and the signal comes early
    assert 0.3 < took[0] < 1.2
    assert 0.3 < took[1] - took[0] < 1.3


def test_the_child_ignores_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, h5py: Any) -> None:
    """Neither the folder it is in nor PYTHONPATH nor HDF5's plugins decide what it runs."""
    for name in ("h5py.py", "json.py", "sitecustomize.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / MARKER)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    assert load(GOLDEN / "keras3_float16.weights.h5").hidden_size == 4
    assert not (tmp_path / MARKER).exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the child knows its size as Linux says it")
def test_the_child_takes_little(tmp_path: Path, h5py: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of Keras with a thousand layers are listed with less than what there always is; with nothing, none is."""
    from fastlstm.loaders.keras import hdf5_worker

    for version in ("earliest", "latest"):
        with h5py.File(tmp_path / "x.h5", "w", libver=version) as file:
            for number in range(1000):
                cell = file.create_group(f"layers/lstm_{number}/cell/vars")
                cell["0"], cell["1"], cell["2"] = (np.zeros(shape, "f4") for shape in ((2, 4), (1, 4), 4))
        assert len(scan(tmp_path / "x.h5")) == 1000
        monkeypatch.setattr(hdf5, "MEMORY", -(1 << 30))  # what is always there remains
        assert len(scan(tmp_path / "x.h5")) == 1000
        monkeypatch.undo()
    text = Path(hdf5_worker.__file__).read_text(encoding="utf-8").replace("LEAST_MEMORY = 16 << 20", "LEAST_MEMORY = 0")
    (tmp_path / "worker.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(hdf5, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(hdf5, "MEMORY", -(1 << 30))
    refused(lambda: scan(tmp_path / "x.h5"), "HDF5")


def test_without_h5py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        load(GOLDEN / "keras3.keras")


def test_from_many_threads_and_after_fork(h5py: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    files = ["keras3.keras", "keras2.h5"] * 4
    with ThreadPoolExecutor(4) as pool:
        networks = list(pool.map(lambda file: load(GOLDEN / file, "both"), files))
    assert len({lstm.weights.layers[0].weight_ih.tobytes() for lstm in networks}) == 2


def test_reading_goes_on_where_it_was(h5py: Any) -> None:
    """The child shares the position in the file; whatever it does, reads here are right."""
    path = GOLDEN / "keras3.weights.h5"
    data = path.read_bytes()
    with source.opened(path) as file:
        tree = hdf5.read_tree(file.stream, file, file.objects_limit)
        for offset, length in ((100, 20_000), (0, len(data)), (4000, 5000)):
            assert file.read(offset, length) == data[offset : offset + length]
        for group in tree.walk():
            for dataset in group.datasets.values():
                assert dataset.read().shape == dataset.shape


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts files as Linux does")
def test_nothing_stays_open(h5py: Any, tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(with_h5(circle))
    before = len(os.listdir("/proc/self/fd"))
    for path in (GOLDEN / "keras3.keras", GOLDEN / "keras2.h5", GOLDEN / "refused_gelu.keras", tmp_path / "x.h5"):
        with warnings.catch_warnings(), pytest.raises(FormatError):
            load(path, "nothing")
        assert len(os.listdir("/proc/self/fd")) == before


# ---- Live layers ---------------------------------------------------------------------------------------------------------------


def randomized(model: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    model.set_weights([rng.uniform(-1, 1, w.shape).astype(w.dtype) / np.sqrt(max(w.shape[0], 4)) for w in model.get_weights()])
    return model


def model_of(keras: Any, layer: Any, I: int, seed: int = 0) -> Any:
    x = keras.Input((None, I))
    return randomized(keras.Model(x, layer(x)), seed)


LAYERS: dict[str, Callable[[Any, int], Any]] = {
    "LSTM": lambda L, H: L.LSTM(H, return_sequences=True, name="x"),
    "LSTM without bias": lambda L, H: L.LSTM(H, return_sequences=True, use_bias=False, name="x"),
    "LSTM with dropout": lambda L, H: L.LSTM(H, return_sequences=True, dropout=0.2, recurrent_dropout=0.3, name="x"),
    **{
        f"Bidirectional, {mode}": lambda L, H, mode=mode: L.Bidirectional(L.LSTM(H, return_sequences=True), mode, name="x")
        for mode in ("concat", "sum", "mul", "ave", None)
    },
    "RNN": lambda L, H: L.RNN(L.LSTMCell(H), return_sequences=True, name="x"),
    "RNN of three": lambda L, H: L.RNN([L.LSTMCell(H) for _ in range(3)], return_sequences=True, name="x"),
    "Bidirectional RNN": lambda L, H: L.Bidirectional(L.RNN(L.LSTMCell(H, use_bias=False), return_sequences=True), name="x"),
    "two backward layers": lambda L, H: L.Bidirectional(
        L.LSTM(H, return_sequences=True), backward_layer=L.LSTM(H, return_sequences=True, go_backwards=True), name="x"
    ),
}
SIZES = [(3, 4), (5, 5), (1, 16), (7, 33), (64, 128)]


@pytest.mark.parametrize("kind", LAYERS)
def test_live_layers_and_their_files(kind: str, keras: Any, h5py: Any, tmp_path: Path) -> None:
    for index, (I, H) in enumerate(SIZES):
        model = model_of(keras, LAYERS[kind](keras.layers, H), I, index)
        x = np.random.default_rng(index).standard_normal((2, 9, I)).astype(np.float32)
        outputs = model(x)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        outputs = [keras.ops.convert_to_numpy(output) for output in outputs]
        networks = [from_keras(model), from_keras(model.layers[1]), from_keras(model, "x")]
        if index in (0, 3):
            for file in ("x.keras", "x.h5"):
                model.save(tmp_path / file)
                networks.append(load(tmp_path / file))
        for lstm in networks:
            assert lstm.batch_first
            output = lstm(x)[0]
            for a, b in zip(output if lstm.weights.merge_mode is None else [output], outputs, strict=True):
                assert a.shape == b.shape
                np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)
            for a, b in zip(lstm.to_keras_weights(), model.get_weights(), strict=True):
                assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("activation", ["relu", "hard_sigmoid", "softsign", "softplus", "elu", "leaky_relu", "linear"])
@pytest.mark.parametrize("backwards", [False, True])
def test_live_variants(activation: str, backwards: bool, keras: Any) -> None:
    options = {"activation": activation, "recurrent_activation": "hard_sigmoid", "go_backwards": backwards}
    model = model_of(keras, keras.layers.LSTM(5, return_sequences=True, **options), 3)
    weights = reading.weights_of(keras_live.find(model).choose(None))
    assert weights.reverse == weights.flipped == backwards
    assert_gives(weights, [keras.ops.convert_to_numpy(model(given_input()))])


def test_live_states(keras: Any) -> None:
    layer = keras.layers.LSTM(5, return_sequences=True, return_state=True)
    x = given_input()
    output, h, c = layer(x)
    given, (h_n, c_n) = from_keras(layer)(x)
    for a, b in ((given, output), (h_n[0], h), (c_n[0], c)):
        np.testing.assert_allclose(a, keras.ops.convert_to_numpy(b), rtol=0, atol=TOLERANCE)
    state = (h_n * 0.5, c_n * 2)
    output, *_ = layer(x, initial_state=[state[0][0], state[1][0]])
    np.testing.assert_allclose(from_keras(layer)(x, state)[0], keras.ops.convert_to_numpy(output), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_masks_on_the_right_are_lengths(bidirectional: bool, keras: Any) -> None:
    """As the docstring of ``from_keras`` says; other layers than Bidirectional repeat the last output in the padding."""
    layer = keras.layers.LSTM(4, return_sequences=True, return_state=True)
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    x = given_input()
    lengths = np.array([6, 2])
    mask = np.arange(6) < lengths[:, None]
    output, *states = (keras.ops.convert_to_numpy(value) for value in layer(x, mask=mask))
    given, (h_n, c_n) = from_keras(layer)(x, lengths=mask.sum(axis=1))
    np.testing.assert_allclose(given[mask], output[mask], rtol=0, atol=TOLERANCE)
    assert not given[~mask].any()
    for index, state in enumerate(states):
        np.testing.assert_allclose((h_n, c_n)[index % 2][index // 2], state, rtol=0, atol=TOLERANCE)
    if bidirectional:
        assert not output[~mask].any()


def test_other_masks_are_passed_with_time_first(keras: Any) -> None:
    """As the docstring of ``from_keras`` says."""
    layer = keras.layers.LSTM(4, return_sequences=True, return_state=True)
    x = given_input()
    mask = np.array([[True, False, True, True, False, True], [False, True, True, False, False, False]])
    output, h, c = (keras.ops.convert_to_numpy(value) for value in layer(x, mask=mask))
    given, (h_n, c_n) = from_keras(layer)(x, mask=mask.T)
    for a, b in ((given[mask], output[mask]), (h_n[0], h), (c_n[0], c)):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def test_live_models(keras: Any) -> None:
    L = keras.layers
    inner = keras.Sequential([keras.Input((None, 3)), L.LSTM(4, return_sequences=True, name="lstm")], name="encoder")
    shared = L.LSTM(4, return_sequences=True, name="shared")
    x = keras.Input((None, 3))
    model = keras.Model(x, [inner(x), shared(x), shared(shared(L.Dense(3)(x))[..., :3]), L.GRU(2, name="gru")(x)])
    assert [item.name for item in keras_live.find(model).infos()] == ["shared", "encoder/lstm"]
    assert from_keras(model, "lstm").hidden_size == 4
    refused(lambda: from_keras(model), "2 LSTMs", "'shared', 'encoder/lstm'")
    refused(lambda: from_keras(model, "gru"), "this is a GRU")
    refused(lambda: from_keras(keras.Sequential([keras.Input((3,)), L.Dense(2)])), "no LSTM found", "Sequential")


# ---- Weights alone -------------------------------------------------------------------------------------------------------------

# What a layer is made with, and what load is told of it
ALONE: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "plain": (lambda L: L.LSTM(5, return_sequences=True), {}),
    "backwards": (lambda L: L.LSTM(5, return_sequences=True, go_backwards=True), {"go_backwards": True}),
    "forwards": (lambda L: L.LSTM(5, return_sequences=True), {"go_backwards": False}),
    "activation": (lambda L: L.LSTM(5, return_sequences=True, activation="softsign"), {"activation": "softsign"}),
    "no activation": (lambda L: L.LSTM(5, return_sequences=True, activation=None), {"activation": "linear"}),
    "both activations": (
        lambda L: L.LSTM(5, return_sequences=True, activation="relu", recurrent_activation="hard_sigmoid", go_backwards=True),
        {"activation": "relu", "recurrent_activation": "hard_sigmoid_keras3", "go_backwards": True},
    ),
    "cells backwards": (
        lambda L: L.RNN([L.LSTMCell(5), L.LSTMCell(5)], return_sequences=True, go_backwards=True),
        {"go_backwards": True},
    ),
    **{
        mode: (lambda L, mode=mode: L.Bidirectional(L.LSTM(5, return_sequences=True), merge_mode=mode), {"merge_mode": mode})
        for mode in ("concat", "sum", "mul", "ave")
    },
    "both": (
        lambda L: L.Bidirectional(L.LSTM(5, return_sequences=True, activation="softsign"), merge_mode="sum"),
        {"merge_mode": "sum", "activation": "softsign", "go_backwards": False},
    ),
}


@pytest.mark.parametrize("old", [False, True], ids=["weights.h5", "old form"])
@pytest.mark.parametrize("case", ALONE)
def test_weights_alone_and_what_the_caller_tells(case: str, old: bool, keras: Any, h5py: Any, tmp_path: Path) -> None:
    make, told = ALONE[case]
    model, path = model_of(keras, make(keras.layers), 3), tmp_path / "x.weights.h5"
    if old:
        from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, model)
    else:
        model.save_weights(path)
    given = load(path, **told)(given_input())[0]
    np.testing.assert_allclose(given, keras.ops.convert_to_numpy(model(given_input())), rtol=0, atol=TOLERANCE)
    if set(told.values()) - {False, "concat"}:
        plain = load(path)(given_input())[0]  # as Keras' defaults have it
        assert plain.shape != given.shape or np.abs(plain - given).max() > 0.01
    fastlstm.convert(path, tmp_path / "x.npz", **told)
    assert load(tmp_path / "x.npz")(given_input())[0].tobytes() == given.tobytes()


def test_stacked_cells_have_a_number_in_the_old_form(keras: Any, h5py: Any, tmp_path: Path) -> None:
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    L = keras.layers
    cells = L.StackedRNNCells([L.LSTMCell(5), L.LSTMCell(5)], name="stacked_rnn_cells_7")
    model = model_of(keras, L.RNN(cells, return_sequences=True), 3)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        save_weights_to_hdf5_group(file, model)
    given = load(tmp_path / "x.h5")(given_input())[0]
    np.testing.assert_allclose(given, keras.ops.convert_to_numpy(model(given_input())), rtol=0, atol=TOLERANCE)


def test_cells_that_are_no_network(keras: Any, h5py: Any, tmp_path: Path) -> None:
    """What they are is said of weights alone, too, where only the shapes tell."""
    L = keras.layers
    sizes = L.RNN([L.LSTMCell(6), L.LSTMCell(4)], name="mine")
    deep = L.Bidirectional(L.RNN([L.LSTMCell(5), L.LSTMCell(5)]), name="mine")
    for layer, part in ((sizes, "its cells have 6, 4 units"), (deep, "each direction stacks several cells")):
        model = keras.Sequential([keras.Input((7, 3)), layer])
        model.save(tmp_path / "x.keras")
        model.save_weights(tmp_path / "x.weights.h5")
        for name in ("x.keras", "x.weights.h5"):
            refused(lambda name=name: load(tmp_path / name), f"{name}': layer 'mine'", part)


@pytest.mark.parametrize("bare", ["forward", "backward"])
def test_a_bias_of_one_direction(bare: str, keras: Any, h5py: Any, tmp_path: Path) -> None:
    """That of the other is zero."""
    L = keras.layers
    ways = [
        L.LSTM(4, return_sequences=True, use_bias=way != bare, go_backwards=way == "backward") for way in ("forward", "backward")
    ]
    model = model_of(keras, L.Bidirectional(ways[0], backward_layer=ways[1], name="mine"), 3)
    wanted = keras.ops.convert_to_numpy(model(given_input()))
    model.save(tmp_path / "x.keras")
    model.save(tmp_path / "x.h5")
    model.save_weights(tmp_path / "x.weights.h5")
    for lstm in (from_keras(model), *(load(tmp_path / name) for name in ("x.keras", "x.h5", "x.weights.h5"))):
        np.testing.assert_allclose(lstm(given_input())[0], wanted, rtol=0, atol=TOLERANCE)
        layer = lstm.weights.layers[bare == "backward"]
        assert not np.any([layer.bias_ih, layer.bias_hh])


def test_the_version_of_hard_sigmoid_is_told_too(h5py: Any) -> None:
    def gate(file: str, name: str, activation: str) -> Activation:
        return load(GOLDEN / file, name, recurrent_activation=activation).weights.layers[0].cell.gate

    assert gate("keras2_weights.h5", "plain", "hard_sigmoid") == Activation("hard_sigmoid", (0.2, 0.5))  # the file says which
    assert gate("keras3_subclassed.keras", "second", "hard_sigmoid") == Activation("hard_sigmoid", (1 / 6, 0.5))
    for version, slope in ((2, 0.2), (3, 1 / 6)):
        assert gate("keras3.weights.h5", "zeta", f"hard_sigmoid_keras{version}") == Activation("hard_sigmoid", (slope, 0.5))
    refused(
        lambda: gate("keras3.weights.h5", "zeta", "hard_sigmoid"),
        *("recurrent_activation: Keras 2 and 3", "hard_sigmoid_keras2, hard_sigmoid_keras3"),
    )


def test_the_version_is_told_of_a_configuration_that_lacks_it(tmp_path: Path, h5py: Any) -> None:
    def change(file: Any) -> None:
        for group in (file, file["model_weights"]):
            group.attrs.pop("keras_version", None)

    path = tmp_path / "x.h5"
    path.write_bytes(edited_h5(GOLDEN / "keras2.h5", change))
    refused(
        lambda: load(path, "hard"),
        "keras_version is neither",
        "recurrent_activation='hard_sigmoid_keras2' or recurrent_activation='hard_sigmoid_keras3'",
    )
    for version, slope in ((2, 0.2), (3, 1 / 6)):
        lstm = load(path, "hard", recurrent_activation=f"hard_sigmoid_keras{version}")
        assert lstm.weights.layers[0].cell.gate == Activation("hard_sigmoid", (slope, 0.5))
    told = {"recurrent_activation": "hard_sigmoid_keras2"}
    for name, options, part in (
        ("plain", told, "recurrent_activation: leave out"),  # a sigmoid
        ("hard", {**told, "go_backwards": False}, "go_backwards: leave out"),
        ("hard", {**told, "activation": "hard_sigmoid_keras2"}, "activation: leave out"),
        ("hard", {**told, "activation": "hard_sigmoid_keras3"}, "activation, recurrent_activation: leave out"),
        ("hard", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation: leave out"),
    ):
        refused(lambda name=name, options=options: load(path, name, **options), "configuration is in the file", part)
    refused(lambda: load(GOLDEN / "keras2.h5", "hard", **told), "recurrent_activation: leave out")


def test_what_the_caller_may_not_tell(h5py: Any, tmp_path: Path) -> None:
    alone = GOLDEN / "keras3.weights.h5"
    for options, parts in (
        ({"name": "both", "go_backwards": True}, ("'both'", "both directions")),
        ({"name": "zeta", "merge_mode": "concat"}, ("'zeta'", "one direction")),
        ({"name": "zeta", "activation": "gelu"}, ("'zeta'", "activation must be one of elu", "got 'gelu'")),
    ):
        refused(lambda options=options: load(alone, **options), *parts)
    refused(lambda: load(GOLDEN / "keras2_weights.h5", "cudnn", activation="relu"), "two biases", "CuDNNLSTM")
    for file in ("keras3.keras", "keras3.h5", "keras2.h5"):
        name = "plain" if file == "keras2.h5" else "zeta"
        for options in ({"go_backwards": False}, {"activation": "tanh", "recurrent_activation": "sigmoid"}):
            refused(
                lambda file=file, name=name, options=options: load(GOLDEN / file, name, **options),
                *("configuration is in the file", f"{', '.join(options)}: leave out"),
            )
    path = tmp_path / "x.npz"
    fastlstm.LSTM(3, 4).save(path)
    refused(lambda: load(path, go_backwards=False), "go_backwards: only for Keras files")
    with pytest.raises(ValueError, match=r"merge_mode must be one of concat, sum, mul, ave or None, got 'max'"):
        load(alone, "both", merge_mode="max")
    for key in ("activation", "recurrent_activation", "merge_mode"):
        with pytest.raises(TypeError, match=rf"{key} must be str or None, got \['tanh'\]"):
            load(alone, "zeta", **{key: ["tanh"]})
    with pytest.raises(TypeError, match="go_backwards must be True or False, got 'yes'"):
        load(alone, "zeta", go_backwards="yes")  # type: ignore[arg-type]


class _Custom:
    """Made inside a function, for Keras may not be here."""

    @staticmethod
    def lstm(keras: Any) -> type:
        class MyLSTM(keras.layers.LSTM):
            pass

        return MyLSTM


def test_live_layers_that_are_refused(keras: Any) -> None:
    L = keras.layers
    custom = _Custom.lstm(keras)(4, name="mine")
    custom.build((None, None, 3))
    refused(lambda: from_keras(custom), "'mine'", "class 'MyLSTM' is not Keras'")
    refused(lambda: from_keras(L.LSTM(4, name="new")), "'new'", "no weights yet", "build")
    gelu = L.LSTM(4, activation="gelu", name="gelu")
    gelu.build((None, None, 3))
    refused(lambda: from_keras(gelu), "'gelu'", "activation must be one of")
    sizes = L.RNN([L.LSTMCell(4), L.LSTMCell(3)], name="sizes")
    sizes.build((None, None, 3))
    refused(lambda: from_keras(sizes), "'sizes'", "4, 3 units")
    deep = L.Bidirectional(L.RNN([L.LSTMCell(4), L.LSTMCell(4)]), name="deep")
    deep.build((None, None, 3))
    refused(lambda: from_keras(deep), "'deep'", "each direction stacks several cells")
    for value in (3, "model.keras", {"a": 1}, np.zeros(3)):
        with pytest.raises(TypeError, match=r"layer_or_model must be a Keras layer or model.*fastlstm\.load"):
            from_keras(value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_live_dtypes(dtype: str, keras: Any) -> None:
    layer = keras.layers.LSTM(4, dtype=dtype, recurrent_initializer="zeros")
    layer.build((None, None, 3))
    lstm = from_keras(layer)
    assert lstm.dtype == ("float64" if dtype == "float64" else "float32")
    kernel = np.asarray(layer.get_weights()[0]).astype(lstm.dtype)
    assert lstm.weights.layers[0].weight_ih.tobytes() == kernel.T.copy().tobytes()


# ---- Merging, and the way back -------------------------------------------------------------------------------------------------

MODES: dict[str | None, Callable[..., Any]] = {
    "sum": np.add,
    "mul": np.multiply,
    "ave": lambda a, b: (a + b) / np.float32(2),
    None: lambda a, b: (a, b),
}


def merging(mode: str | None, batch_first: bool = False) -> tuple[fastlstm.LSTM, fastlstm.LSTM]:
    """A network of that merge mode, and the same one side by side."""
    plain = fastlstm.LSTM(3, 4, bidirectional=True, batch_first=batch_first, seed=0)
    return fastlstm.LSTM.from_weights(Weights(plain.weights.layers, True, merge_mode=mode), batch_first), plain


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_merge_modes(mode: str | None, batch_first: bool) -> None:
    lstm, plain = merging(mode, batch_first)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 5, 3)).astype(np.float32)
    lengths = [5, 0, 2, 4, 5]
    for data, options in ((x, {}), (x, {"lengths": lengths}), (x[0], {}), (x[:0], {}), (x[:, :0], {})):
        both, state = plain(data, **options)
        wanted = MODES[mode](both[..., :4], both[..., 4:])
        output, (h_n, c_n) = lstm(data, **options)
        assert h_n.tobytes() == state[0].tobytes()
        assert c_n.tobytes() == state[1].tobytes()
        shape = both.shape if mode is None else (*both.shape[:-1], 4)
        for out in (np.empty(shape, np.float32), np.empty((*shape, 2), np.float32)[..., 0]):
            given = lstm(data, out=out, **options)[0]
            if mode is None:
                assert all(np.shares_memory(half, out) or not half.size for half in given)
                assert np.array_equal(np.concatenate(given, axis=-1), out)
            else:
                assert given is out
            for result in (given, output):
                for a, b in zip(result, wanted, strict=True) if mode is None else [(result, wanted)]:
                    assert a.dtype == b.dtype
                    assert np.array_equal(a, b)


def test_merge_modes_and_the_rest() -> None:
    lstm, plain = merging("sum")
    x = np.zeros((5, 2, 3), np.float32)
    with pytest.raises(ValueError, match=r"out must have shape \(5, 2, 4\), got \(5, 2, 8\)"):
        lstm(x, out=np.empty((5, 2, 8), np.float32))
    merged = np.zeros((5, 2, 4), np.float32)
    with pytest.raises(ValueError, match="out must not overlap x"):
        lstm(merged[..., :3], out=merged)
    assert [merging(mode)[0].output_size for mode in ("sum", "mul", "ave", None, "concat")] == [4, 4, 4, 8, 8]
    assert repr(lstm) == "LSTM(3, 4, bidirectional=True, merge_mode='sum')"
    lstm.load_state_dict(plain.state_dict())
    assert lstm.weights.merge_mode == "sum"
    with pytest.raises(ValueError, match="merge_mode"):
        lstm.to_onnx("x.onnx")
    for weights in (fastlstm.LSTM(3, 4).weights, fastlstm.LSTM(3, 4, 2, bidirectional=True).weights):
        with pytest.raises(ValueError, match="merge_mode 'ave' needs one bidirectional layer"):
            Weights(weights.layers, weights.bidirectional, merge_mode="ave")
    with pytest.raises(ValueError, match="merge_mode must be"):
        Weights(plain.weights.layers, True, merge_mode="max")


def test_to_keras_weights() -> None:
    lstm = fastlstm.LSTM(3, 4, 2, bidirectional=True, seed=0)
    arrays = lstm.to_keras_weights()
    state = lstm.state_dict()
    assert len(arrays) == 12
    for index, end in enumerate(("l0", "l0_reverse", "l1", "l1_reverse")):
        kernel, recurrent, bias = arrays[3 * index : 3 * index + 3]
        assert np.array_equal(kernel, state[f"weight_ih_{end}"].T)
        assert np.array_equal(recurrent, state[f"weight_hh_{end}"].T)
        assert np.array_equal(bias, state[f"bias_ih_{end}"] + state[f"bias_hh_{end}"])
        assert all(array.flags.c_contiguous and array.flags.writeable for array in (kernel, recurrent, bias))
    assert len(fastlstm.LSTM(3, 4, bias=False).to_keras_weights()) == 2
    with pytest.raises(ValueError, match=r"^Keras has no LSTM with a projection \(proj_size\): save the network as safetensors$"):
        fastlstm.LSTM(3, 4, proj_size=2).to_keras_weights()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"weight_peephole": np.zeros(12, "f")}, "peepholes"),
        ({"h_0": np.zeros(4, "f"), "c_0": np.zeros(4, "f")}, "an initial state of its own (h_0, c_0)"),
        ({"cell": Cell(coupled="forget")}, "coupled gates"),
        ({"cell": Cell(gate_clip=1.0)}, "clipping"),
        ({"cell": Cell(cell_clip=1.0)}, "clipping"),
        ({"cell": Cell(hidden=Activation("relu"))}, "different activations of candidate and output"),
    ],
)
def test_to_keras_weights_says_what_keras_lacks(change: dict[str, Any], what: str) -> None:
    layer = replace(fastlstm.LSTM(3, 4).weights.layers[0], **change)
    with pytest.raises(ValueError, match=rf"^Keras has no LSTM with {re.escape(what)}: save the network as safetensors$"):
        fastlstm.LSTM.from_weights(fastlstm.Weights((layer,))).to_keras_weights()


def test_to_keras_and_back(keras: Any) -> None:
    lstm = fastlstm.LSTM(3, 4, bidirectional=True, batch_first=True, seed=0)
    layer = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))
    layer.build((None, None, 3))
    layer.set_weights(lstm.to_keras_weights())
    x = given_input()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), lstm(x)[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["both", "sum", "pair"])
def test_on_the_command_line(name: str, tmp_path: Path, h5py: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from fastlstm.cli import main

    path = str(GOLDEN / "keras3.keras")
    assert main(["scan", path]) == 0
    assert "encoder/lstm" in capsys.readouterr().out
    np.save(tmp_path / "x.npy", given_input())
    assert main(["run", path, str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy"), "--name", name]) == 0
    wanted = np.concatenate(expected(f"keras3|{name}"), axis=-1)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), wanted, rtol=0, atol=TOLERANCE)


def test_wrappers_in_wrappers_without_end() -> None:
    """A reader of JSON may go deeper than a function can call itself."""
    entry: dict[str, Any] = {"class_name": "GRU", "module": "keras.layers", "config": {}}
    for _ in range(20_000):
        entry = {"class_name": "Bidirectional", "module": "keras.layers", "config": {"layer": entry}}
    assert keras_config.other_kind(entry) == keras_config.OTHERS["GRU"]
    for _ in range(20_001):
        entry = entry["config"].pop("layer", {})  # one by one, not by a destructor that calls itself


def test_what_keras_users_pass_that_is_nothing_to_load(keras: Any, tmp_path: Path) -> None:
    with pytest.raises(
        FormatError, match=r"a LSTMCell of Keras without a recurrent layer; of a cell, pass keras\.layers\.RNN\(cell\)"
    ):
        fastlstm.from_keras(keras.layers.LSTMCell(3))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    with pytest.raises(FormatError, match="a TensorFlow SavedModel: with Keras, save the model as"):
        fastlstm.load(tmp_path / "saved")
