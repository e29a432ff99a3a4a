"""Networks that keep their matrices in float16, bfloat16 or int8 (``lstm.to(weight_dtype=...)``)."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_close, assert_same_bytes, make_case
from safetensors.numpy import load_file, save_file
from shapes import EDGE, Shape
from variants import VARIANTS, Variant, make_variant_case

import fastlstm
from fastlstm import _engine
from fastlstm.rounding import TYPES, rounded


@pytest.mark.parametrize("weight_dtype", TYPES)
@pytest.mark.parametrize("shape", EDGE, ids=str)
def test_it_is_the_network_of_the_rounded_weights(shape: Shape, weight_dtype: str) -> None:
    case = make_case(shape, lengths=shape.B > 3, resets=shape.T > 4)
    lstm = case.network()
    small = lstm.to(weight_dtype=weight_dtype)
    large = small.to(weight_dtype="float32")
    assert (lstm.weight_dtype, small.weight_dtype, large.weight_dtype) == ("float32", weight_dtype, "float32")
    for name, tensor in small.state_dict().items():
        before = lstm.state_dict()[name]
        expected = rounded(name, before, weight_dtype) if tensor.ndim == 2 else before
        assert tensor.tobytes() == expected.tobytes() == large.state_dict()[name].tobytes(), name
    if weight_dtype != "int8":
        assert_same_bytes(case.run(small), case.run(large))
    assert_close(case.run(small), replace(case, weights=large.weights).expected(), 3e-6)


@pytest.mark.parametrize("weight_dtype", TYPES)
def test_the_same_bits_however_it_is_divided(weight_dtype: str) -> None:
    case = make_case("t9b13i21h75")
    lstm = case.network().to(weight_dtype=weight_dtype)
    whole = case.run(lstm)
    for threads in (1, 2, 3, 5):
        assert_same_bytes(case.run(lstm, threads=threads), whole)
    for row in range(13):
        assert_same_bytes(case.rows([row]).run(lstm), (whole[0][:, [row]], whole[1][:, [row]], whole[2][:, [row]]))
    state = case.state
    stream = lstm.stream(13)
    stream.state = state
    for t in range(9):
        output, *state = case.steps(t, t + 1, tuple(state)).run(lstm)
        assert output.tobytes() == whole[0][t : t + 1].tobytes() == stream.step(case.x[t]).tobytes()
    assert_same_bytes((whole[0], *state), whole)


@pytest.mark.parametrize("weight_dtype", TYPES)
def test_what_is_close_to_the_large_network_and_takes_less_memory(weight_dtype: str) -> None:
    case = make_case("t30b4i64h96")
    lstm = case.network()
    small = lstm.to(weight_dtype=weight_dtype)
    error = np.abs(case.run(small)[0] - case.run(lstm)[0]).max()
    assert 0 < error < {"float16": 5e-4, "bfloat16": 4e-3, "int8": 1e-2}[weight_dtype]
    size, large = (network._packed.network.nbytes for network in (small, lstm))
    assert size < {"float16": 0.53, "bfloat16": 0.53, "int8": 0.29}[weight_dtype] * large


@pytest.mark.parametrize("weight_dtype", TYPES)
def test_a_plain_rnn(weight_dtype: str) -> None:
    rnn = fastlstm.RNN(7, 70, 2, bidirectional=True, seed=3).to(weight_dtype=weight_dtype)
    x = np.random.default_rng(0).standard_normal((6, 5, 7)).astype(np.float32)
    large = rnn.to(weight_dtype="float32")
    np.testing.assert_allclose(rnn(x)[0], large(x)[0], rtol=0, atol=1e-6 if weight_dtype == "int8" else 0)


@pytest.mark.parametrize("weight_dtype", TYPES)
def test_rounding_again_changes_nothing(weight_dtype: str) -> None:
    rng = np.random.default_rng(5)
    scales = np.exp2(rng.uniform(-60, 60, (500, 1))) if weight_dtype == "int8" else np.exp2(rng.uniform(-20, 10, (500, 1)))
    matrix = (rng.standard_normal((500, 33)) * scales).astype(np.float32)
    matrix[7] = 0
    once = rounded("weight_hh_l0", matrix, weight_dtype)
    assert rounded("weight_hh_l0", once, weight_dtype).tobytes() == once.tobytes()
    step = {  # from one number to the next
        "float16": np.abs(matrix) * 2.0**-10 + 2.0**-24,
        "bfloat16": np.abs(matrix) * 2.0**-7,
        "int8": np.abs(matrix).max(1, keepdims=True) / 127,
    }[weight_dtype]
    assert (np.abs(once - matrix) <= 0.5001 * step).all()
    assert (once[7] == 0).all()


def test_rounding_to_halves_is_to_the_nearest_even() -> None:
    cases = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8 + 2**-20), 2.0**-140, np.nan, -np.inf]], np.float32)
    np.testing.assert_array_equal(
        rounded("w", cases, "bfloat16"),
        np.array([[1, 1 + 2**-6, -(1 + 2**-7), 2.0**-140 // 2**-133 * 2**-133, np.nan, -np.inf]], np.float32),
    )
    np.testing.assert_array_equal(rounded("w", cases, "float16"), cases.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("weight_dtype", TYPES)
def test_special_numbers_of_a_type(weight_dtype: str) -> None:
    """The largest, subnormal ones, signed zeros and, where it has them, infinity and NaN reach the kernel as they are."""
    lstm = fastlstm.LSTM(6, 5, bias=False, seed=0)
    weights = lstm.state_dict()
    special = [0.0, -0.0, 2.0**-24, -(2.0**-15), 65504.0, -3 * 2.0**-20]
    weights["weight_ih_l0"][:6] = np.array(special, np.float32)
    if weight_dtype != "int8":
        weights["weight_ih_l0"][7, 2:4] = np.inf, np.nan
    lstm.load_state_dict(weights)
    small = lstm.to(weight_dtype=weight_dtype)
    x = np.eye(6, dtype=np.float32)[:, None]
    large = small.to(weight_dtype="float32")
    if weight_dtype == "int8":
        np.testing.assert_allclose(small(x)[0], large(x)[0], rtol=0, atol=1e-6)
    else:
        assert small(x)[0].tobytes() == large(x)[0].tobytes()


@pytest.mark.parametrize("weight_dtype", TYPES)
def test_gradients_are_those_of_the_rounded_weights(weight_dtype: str) -> None:
    case = make_case("t6b7i10h21p5")
    small = case.network().to(weight_dtype=weight_dtype)
    tapes = [lstm.record(case.x, case.state) for lstm in (small, small.to(weight_dtype="float32"))]
    ours, exact = (tape.backward(np.ones_like(tape.output)) for tape in tapes)
    for name, gradient in exact.parameters.items():
        np.testing.assert_allclose(ours.parameters[name], gradient, rtol=1e-4, atol=1e-5)
    if weight_dtype != "int8":
        assert ours.input.tobytes() == exact.input.tobytes()


@pytest.mark.parametrize("weight_dtype", TYPES)
def test_recomputed_steps_have_the_smaller_weights(weight_dtype: str) -> None:
    case = make_case("t40b7i10h21l2d2", lengths=True, resets=True)
    small = case.network().to(weight_dtype=weight_dtype)
    tapes = [
        small.record(case.x, case.state, lengths=case.lengths, resets=case.resets, recompute=recompute)
        for recompute in (False, True)
    ]
    kept, recomputed = (tape.backward(np.ones_like(tape.output), tape.state) for tape in tapes)
    assert tapes[1].output.tobytes() == case.run(small)[0].tobytes()
    assert recomputed.input.tobytes() == kept.input.tobytes()
    for name, gradient in kept.parameters.items():
        assert recomputed.parameters[name].tobytes() == gradient.tobytes()


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("weight_dtype", TYPES)
def test_copies_and_files_keep_it(weight_dtype: str, suffix: str, tmp_path: Path) -> None:
    shape = Shape(4, 3, 11, 18, L=2)
    small = fastlstm.LSTM(11, 18, 2, batch_first=True, seed=1).to(weight_dtype=weight_dtype)
    x = np.random.default_rng(0).standard_normal((shape.B, shape.T, shape.I)).astype(np.float32)
    expected = small(x)[0].tobytes()
    small.save(tmp_path / "small.safetensors")
    path = tmp_path / f"converted.{suffix}"
    fastlstm.convert(tmp_path / "small.safetensors", path)
    for other in (
        pickle.loads(pickle.dumps(small)),
        copy.deepcopy(small),
        fastlstm.load(tmp_path / "small.safetensors"),
        fastlstm.load(path),
    ):
        assert other.weight_dtype == weight_dtype
        assert other.batch_first
        assert repr(other) == f"LSTM(11, 18, num_layers=2, batch_first=True, weight_dtype={weight_dtype!r})"
        assert other(x)[0].tobytes() == expected


@pytest.mark.parametrize("weight_dtype", TYPES)
def test_loaded_weights_are_rounded(weight_dtype: str) -> None:
    lstm, small = fastlstm.LSTM(6, 9, seed=0), fastlstm.LSTM(6, 9, seed=1).to(weight_dtype=weight_dtype)
    small.load_state_dict(lstm.state_dict())
    assert small.weight_dtype == weight_dtype
    expected = lstm.to(weight_dtype=weight_dtype).state_dict()
    assert {name: t.tobytes() for name, t in small.state_dict().items()} == {name: t.tobytes() for name, t in expected.items()}


@pytest.mark.parametrize("given", ["float16", np.float16, np.dtype(np.float16)])
def test_names_and_types(given: Any) -> None:
    assert fastlstm.LSTM(3, 4, seed=0).to(weight_dtype=given).weight_dtype == "float16"


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_cell(name: str) -> None:
    variant: Variant = VARIANTS[name]
    case = make_variant_case("t6b4i7h19d2p6", variant)
    small = case.network().to(weight_dtype="bfloat16")
    assert_same_bytes(case.run(small), case.run(small.to(weight_dtype="float32")))


def test_what_cannot_be_is_refused() -> None:
    lstm = fastlstm.LSTM(3, 4, seed=0)
    with pytest.raises(
        ValueError, match="weight_dtype of a float32 network must be one of float32, float16, bfloat16, int8, got 'int4'"
    ):
        lstm.to(weight_dtype="int4")
    with pytest.raises(ValueError, match="must be one of float32, float16, bfloat16, int8, got 'float64'"):
        lstm.to(weight_dtype=np.float64)
    for wrong in (None, 3, ["float16"]):
        with pytest.raises(TypeError, match="weight_dtype must be the name of a dtype, such as 'float16', got"):
            lstm.to(weight_dtype=wrong)  # type: ignore[arg-type]
    double = fastlstm.LSTM(3, 4, dtype="float64", seed=0)
    assert double.to(weight_dtype="float64").weight_dtype == "float64"
    with pytest.raises(ValueError, match="weight_dtype of a float64 network must be float64, got 'float16'"):
        double.to(weight_dtype="float16")
    weights = lstm.state_dict()
    weights["weight_hh_l0"][2, 1] = 1e5
    lstm.load_state_dict(weights)
    with pytest.raises(ValueError, match=r"weight_hh_l0 holds 100000\.0, which weight_dtype 'float16' cannot represent"):
        lstm.to(weight_dtype="float16")
    weights["weight_hh_l0"][2, 1] = np.nan
    lstm.load_state_dict(weights)
    with pytest.raises(ValueError, match="weight_hh_l0 holds nan, which weight_dtype 'int8' cannot represent"):
        lstm.to(weight_dtype="int8")
    small = fastlstm.LSTM(3, 4, seed=0).to(weight_dtype="float16")
    before = small.state_dict()["weight_hh_l0"].tobytes()
    with pytest.raises(ValueError, match="weight_ih_l0 holds 9"):
        small.load_state_dict(fastlstm.LSTM(3, 4, seed=0).state_dict() | {"weight_ih_l0": np.full((16, 3), 1e38, np.float32)})
    assert small.state_dict()["weight_hh_l0"].tobytes() == before


def test_a_file_that_names_another_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    fastlstm.LSTM(3, 4, seed=0).to(weight_dtype="int8").save(path)
    tensors = load_file(path)
    for text in ('"int4"', '"float32"', "null", "7", '["int8"]', '{"int8": 1}'):
        save_file(tensors, path, {"fastlstm": f'{{"batch_first": false, "cells": [{{}}], "weight_dtype": {text}}}'})
        with pytest.raises(fastlstm.FormatError, match="weight_dtype"):
            fastlstm.load(path)
    save_file(
        {name: tensor.astype(np.float64) for name, tensor in tensors.items()},
        path,
        {"fastlstm": '{"batch_first": false, "cells": [{}], "weight_dtype": "int8"}'},
    )
    with pytest.raises(fastlstm.FormatError, match="weight_dtype 'int8' needs float32 weights, got float64"):
        fastlstm.load(path)
    tensors["weight_hh_l0"] = tensors["weight_hh_l0"] * np.float32(1e30)
    save_file(tensors, path, {"fastlstm": '{"batch_first": false, "cells": [{}], "weight_dtype": "float16"}'})
    with pytest.raises(fastlstm.FormatError, match="weight_hh_l0 holds"):
        fastlstm.load(path)


def test_the_plan_knows_the_smaller_weights() -> None:
    lstm = fastlstm.LSTM(1024, 1024, seed=0)
    assert lstm.to(weight_dtype="int8").plan(10, 1, threads=2)["expected_ns"] < lstm.plan(10, 1, threads=2)["expected_ns"]
    with pytest.raises(ValueError, match="weight_dtype"):  # the boundary looks once more
        _engine.Network([], [None], 8, 1, 1, 1, 1, 0, False, None, "float16")


@pytest.mark.parametrize("weight_dtype", TYPES)
def test_rounding_where_numpy_raises(weight_dtype: str) -> None:
    matrix = np.array([[1e-40, 1e-8, -1.0, 0.0]], np.float32)
    with np.errstate(all="raise"):
        assert abs(rounded("weight_hh_l0", matrix, weight_dtype)[0, 2] + 1) < 1e-4


def test_weights_too_small_for_a_scale_are_zero_everywhere() -> None:
    """A scale that is subnormal would be zero in the kernels alone."""
    matrix = np.array([[1e-36, -5e-37], [1e-34, -5e-35]], np.float32)
    assert (rounded("weight_hh_l0", matrix, "int8")[0] == 0).all()
    assert (rounded("weight_hh_l0", matrix, "int8")[1] != 0).all()
