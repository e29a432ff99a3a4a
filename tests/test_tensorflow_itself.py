"""Files and variables that Keras 2.15 and TensorFlow 1's cells wrote, with what they computed: golden/make_tensorflow.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm.loaders import from_tensorflow, load, load_model, scan

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-6


def expected(name: str) -> np.ndarray:
    with np.load(GOLDEN / "tensorflow_expected.npz") as file:
        return file[name]


def close(given: np.ndarray, name: str) -> None:
    np.testing.assert_allclose(given, expected(name), rtol=0, atol=TOLERANCE)


KINDS = ("plain", "hard", "backwards", "both", "ave", "cells")


@pytest.mark.parametrize("file", ["keras215.h5", "keras215.keras"])
@pytest.mark.parametrize("kind", KINDS)
def test_keras_2(file: str, kind: str, h5py: Any) -> None:
    assert {info.name for info in scan(GOLDEN / file)} == set(KINDS)
    lstm = load(GOLDEN / file, kind)
    close(lstm(expected("x"))[0], f"keras|{kind}")


@pytest.mark.parametrize(("name", "kind"), [("lstm", "plain"), ("bidirectional", "both"), ("rnn", "cells")])
def test_weights_of_keras_2(name: str, kind: str, h5py: Any) -> None:
    """Alone, under names of their classes: what has Keras' defaults."""
    close(load(GOLDEN / "keras215.weights.h5", f"layers/{name}")(expected("x"))[0], f"keras|{kind}")


def test_masks_of_keras_2(h5py: Any) -> None:
    close(load_model(GOLDEN / "keras215_masks.h5")(expected("masks|x")), "masks|y")


CELLS: dict[str, dict[str, Any]] = {
    "basic": {},
    "basic_forget": {"forget_bias": 0.0},
    "peepholes": {},
    "projected": {"cell_clip": 0.3, "proj_clip": 0.1},
    "multi": {},
    "both": {},
}


@pytest.mark.parametrize("scope", CELLS)
def test_tensorflow_1(scope: str) -> None:
    with np.load(GOLDEN / "tensorflow1.npz") as file:
        variables = {name: file[name] for name in file.files if name.startswith(f"{scope}/")}
    lstm = from_tensorflow(variables, **CELLS[scope])
    close(lstm(expected("x"))[0], f"tensorflow|{scope}")


@pytest.mark.parametrize("scope", ["basic", "peepholes", "multi", "both"])
def test_variables_in_a_file(scope: str) -> None:
    path = GOLDEN / "tensorflow1.npz"
    (info,) = (info for info in scan(path) if info.name.startswith(f"{scope}/") or info.name == scope)
    close(fastlstm.load(path, info.name)(expected("x"))[0], f"tensorflow|{scope}")
