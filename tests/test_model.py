"""Whole small models: what the files describe, computed in float64 beside; streams give the same bits; the rest is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import guitarml, nam, rtneural, values, write_json

import fastlstm
from fastlstm import FormatError, LayerWeights, Weights, load_model
from fastlstm.models.layers import (
    INPUT,
    Activate,
    Dense,
    Embedding,
    Features,
    LayerNorm,
    Merge,
    Recurrent,
    Reshape,
    Step,
)
from fastlstm.models.model import Model
from fastlstm.operators.activations import KERAS_ACTIVATIONS

T, B, H = 9, 3, 4


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def lstm_oracle(x: np.ndarray, layers: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Layers of (W_ih, W_hh, bias, h_0, c_0) over (T, B, I), in float64."""
    y = x.astype(np.float64)
    for w_ih, w_hh, bias, h_0, c_0 in layers:
        h, c = np.tile(h_0, (y.shape[1], 1)).astype(np.float64), np.tile(c_0, (y.shape[1], 1)).astype(np.float64)
        out = []
        for x_t in y:
            i, f, g, o = np.split(x_t @ w_ih.T.astype(np.float64) + h @ w_hh.T.astype(np.float64) + bias, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out.append(h)
        y = np.stack(out)
    return y


def nam_oracle(content: dict[str, Any], x: np.ndarray) -> np.ndarray:
    config, rest = content["config"], np.float64(content["weights"])
    layers = []
    for layer in range(config["num_layers"]):
        I = H if layer else config["input_size"]
        matrix, bias, h_0, c_0, rest = np.split(rest, np.cumsum([4 * H * (I + H), 4 * H, H, H]))
        matrix = matrix.reshape(4 * H, I + H)
        layers.append((matrix[:, :I], matrix[:, I:], bias, h_0, c_0))
    outputs = len(rest) // (H + 1)
    return lstm_oracle(x, layers) @ rest[: outputs * H].reshape(outputs, H).T + rest[outputs * H :]


def guitarml_oracle(content: dict[str, Any], x: np.ndarray) -> np.ndarray:
    tensors = {name: np.float64(value) for name, value in content["state_dict"].items()}
    layers = []
    for k in range(content["model_data"]["num_layers"]):
        bias = tensors[f"rec.bias_ih_l{k}"] + tensors[f"rec.bias_hh_l{k}"]
        layers.append((tensors[f"rec.weight_ih_l{k}"], tensors[f"rec.weight_hh_l{k}"], bias, np.zeros(H), np.zeros(H)))
    y = lstm_oracle(x, layers) @ tensors["lin.weight"].T + tensors.get("lin.bias", 0)
    skip = content["model_data"]["skip"]
    return y + x[..., :skip] if skip else y


def rtneural_oracle(content: dict[str, Any], x: np.ndarray) -> np.ndarray:
    y = x.astype(np.float64)
    for layer in content["layers"]:
        weights = [np.float64(w) for w in layer.get("weights", [])]
        if layer["type"] == "lstm":
            kernel, recurrent, bias = weights
            y = lstm_oracle(y, [(kernel.T, recurrent.T, bias, np.zeros(len(recurrent)), np.zeros(len(recurrent)))])
        elif weights:
            y = y @ weights[0] + weights[1]
        if layer["type"] != "lstm":
            y = {"": y, "tanh": np.tanh(y), "relu": np.maximum(y, 0), "sigmoid": sigmoid(y)}[layer["activation"]]
    return y


def with_activations() -> dict[str, Any]:
    content = rtneural()
    content["layers"][2]["activation"] = "relu"
    content["layers"].append({"type": "activation", "activation": "sigmoid", "shape": [None, None, 2], "weights": []})
    return content


def without_bias() -> dict[str, Any]:
    content = guitarml(bias_fl=False)
    del content["state_dict"]["lin.bias"]
    return content


# (the file, what it computes)
FILES: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any], np.ndarray], np.ndarray]]] = {
    "NAM": (nam(), nam_oracle),
    "NAM, three inputs, two outputs": (nam(3, L=1, outputs=2), nam_oracle),
    "GuitarML": (guitarml(), guitarml_oracle),
    "GuitarML, conditioned": (guitarml(3), guitarml_oracle),
    "GuitarML, no skip": (guitarml(skip=0), guitarml_oracle),
    "GuitarML, two outputs": (guitarml(2, outputs=2, skip=2), guitarml_oracle),
    "GuitarML, one input added to two outputs": (guitarml(2, outputs=2), guitarml_oracle),
    "GuitarML, no bias": (without_bias(), guitarml_oracle),
    "RTNeural": (rtneural(), rtneural_oracle),
    "RTNeural, activations": (with_activations(), rtneural_oracle),
}


def two_lstms() -> Model:
    """Two LSTMs of one layer, the first with an initial state of its own, and a dense layer."""
    lower, upper = (fastlstm.LSTM(I, 4, seed=I).weights.layers[0] for I in (2, 4))
    lower = replace(lower, h_0=values(1, 4), c_0=values(2, 4))
    steps: list[Step] = [
        Recurrent("lower", (INPUT,), Weights((lower,))),
        Recurrent("upper", ("lower",), Weights((upper,))),
        Dense("out", ("upper",), values(3, 3, 4)),
    ]
    return Model(steps, 2)


def inputs(model: Model, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((*shape, model.input_size or 1)).astype(np.float32)


@pytest.mark.parametrize("case", FILES)
def test_whole_model(case: str, tmp_path: Path) -> None:
    content, oracle = FILES[case]
    model = load_model(write_json(tmp_path / "x", content))
    x = inputs(model, T, B)
    y = model(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, oracle(content, x), rtol=0, atol=5e-6)
    assert model(x[:, 0]).tobytes() == np.ascontiguousarray(y[:, 0]).tobytes()


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("batch", [1, B])
def test_a_stream_gives_the_same_bits(case: str, batch: int, tmp_path: Path) -> None:
    model = load_model(write_json(tmp_path / "x", FILES[case][0]))
    x = inputs(model, T, batch)
    y = model(x)
    stream = model.stream(batch)
    for _ in range(2):
        assert np.stack([stream.step(x_t) for x_t in x]).tobytes() == y.tobytes()
        stream.reset()
        parts = [stream.process(x[:4]), stream.step(x[4])[None], stream.process(x[5:5]), stream.process(x[5:])]
        assert np.concatenate(parts).tobytes() == y.tobytes()
        stream.reset()
    if batch == 1:
        assert np.stack([stream.step(x_t[0]) for x_t in x]).tobytes() == y.tobytes()
        stream.reset()
        assert stream.process(x[:, 0]).tobytes() == y.tobytes()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copy_of_a_stream_goes_on_by_itself(copied: Any) -> None:
    model = two_lstms()
    x = inputs(model, T, B)
    y = model(x)
    stream = model.stream(B)
    parts = [stream.process(x[:3]), stream.step(x[3])[None]]
    other = copied(stream)
    other.process(-x)
    other = copied(stream)
    rest = stream.process(x[4:])
    assert np.concatenate([*parts, rest]).tobytes() == y.tobytes()
    assert np.stack([other.step(x_t) for x_t in x[4:]]).tobytes() == rest.tobytes()


def test_the_state_of_a_stream_can_be_kept_and_given_back() -> None:
    model = two_lstms()
    x = inputs(model, T, B)
    y = model(x)
    stream = model.stream(B)
    stream.process(x[:3])
    kept = stream.state
    assert [(name, h.shape, c.shape) for name, (h, c) in kept.items()] == [
        (step.name, (1, B, step.lstm.hidden_size), (1, B, step.lstm.hidden_size)) for step in model.steps[:2]
    ]
    stream.process(-x)
    stream.state = kept
    assert stream.process(x[3:]).tobytes() == y[3:].tobytes()
    for wrong, error, part in (
        (None, TypeError, "state must be a mapping of names to"),
        ({"lower": kept["lower"]}, ValueError, r"state must have the keys \['lower', 'upper'\], got \['lower'\]"),
        ({**kept, "upper": tuple(part[:, :1] for part in kept["upper"])}, ValueError, r"state\['upper'\]: h must have shape"),
        ({**kept, "upper": None}, TypeError, r"state\['upper'\]: "),
    ):
        before = stream.state
        with pytest.raises(error, match=part):
            stream.state = wrong
        assert str(stream.state) == str(before)


@pytest.mark.parametrize("rows", [[1], np.array([False, True, False]), "once"])
def test_some_rows_of_a_stream_begin_anew(rows: Any) -> None:
    model = two_lstms()
    x = inputs(model, T, B)
    stream = model.stream(B)
    stream.process(x[:4])
    stream.reset(iter([1]) if isinstance(rows, str) else rows)
    rest = stream.process(x[4:])
    y = model(x)[4:]
    y[:, 1] = model(x[4:])[:, 1]
    assert rest.tobytes() == y.tobytes()
    with pytest.raises(ValueError, match=r"rows\[0\] must be between 0 and 2, got 3"):
        stream.reset([3])
    with pytest.raises(TypeError, match="rows must be a sequence of integers"):
        stream.reset(3)


class Fails(Step):
    """Raises what it is told to."""

    error: type[BaseException] | None = None

    def run(self, *values: np.ndarray) -> np.ndarray:
        if Fails.error is not None:
            raise Fails.error
        return values[0]


@pytest.mark.parametrize("place", ["lower", "upper"], ids="after {}".format)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_stream_that_raises_has_not_moved(error: type[BaseException], place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the LSTMs before the place nor those after it."""
    whole = two_lstms()
    lower, upper, out = whole.steps
    if place == "lower":
        model = Model([lower, Fails("fails", ("lower",)), replace(upper, inputs=("fails",)), out], 2)
    else:
        model = Model([lower, upper, Fails("fails", ("upper",)), replace(out, inputs=("fails",))], 2)
    x = inputs(model, T, B)
    stream, parts = model.stream(B), []
    for block in (x[:3], x[3], x[4:7], x[7], x[8:]):
        take = stream.step if block.ndim == 2 else stream.process
        monkeypatch.setattr(Fails, "error", error)
        for _ in range(2):
            with pytest.raises(error):
                take(block)
        monkeypatch.setattr(Fails, "error", None)
        parts.append(take(block).reshape(-1, B, 3))
    assert np.concatenate(parts).tobytes() == whole(x).tobytes()


def test_a_stream_interrupted_between_its_states_has_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_lstms()
    x = inputs(model, T, B)
    stream, setter = model.stream(B), fastlstm.Stream.state.fset
    sets = []

    def interrupted(stream: fastlstm.Stream, state: Any) -> None:
        sets.append(state)
        if len(sets) == 2:
            raise KeyboardInterrupt
        setter(stream, state)

    monkeypatch.setattr(fastlstm.Stream, "state", fastlstm.Stream.state.setter(interrupted))
    with pytest.raises(KeyboardInterrupt):
        stream.process(x)
    assert stream.process(x).tobytes() == model(x).tobytes()


def test_sample_rate(tmp_path: Path) -> None:
    assert load_model(write_json(tmp_path / "x", nam())).sample_rate == 48000.0
    assert load_model(write_json(tmp_path / "x", rtneural())).sample_rate is None


def test_pickle_and_words(tmp_path: Path) -> None:
    model = load_model(write_json(tmp_path / "x", nam()))
    x = inputs(model, T, B)
    assert pickle.loads(pickle.dumps(model))(x).tobytes() == model(x).tobytes()
    assert repr(model) == "Model(lstm: Recurrent, head: Dense)"


# ---- Refused -------------------------------------------------------------------------------------------------------------------


def layer(kind: str, **more: Any) -> dict[str, Any]:
    content = rtneural()
    content["layers"].insert(1, {"type": kind, "activation": "", "shape": [None, None, 3], "weights": [], **more})
    return content


def dense_changed(**changes: Any) -> dict[str, Any]:
    content = rtneural()
    content["layers"][2] |= changes
    return content


def more_tensors(**tensors: Any) -> dict[str, Any]:
    content = guitarml()
    content["state_dict"] |= tensors
    return content


NOT_FINITE = guitarml()
NOT_FINITE["state_dict"]["lin.bias"] = [float("nan")]
RT_ALONE, GUITARML_ALONE = "fastlstm.load(path, name='layers.2')", "fastlstm.load(path, name='rec')"

BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a convolution": (layer("conv1d"), ("layers.1 is 'conv1d', which is not supported", RT_ALONE)),
    "a GRU": (layer("gru"), ("layers.1 is 'gru'", RT_ALONE)),
    "an unknown layer": (layer("unknown"), ("layers.1 is 'unknown'", RT_ALONE)),
    "an unknown activation": (layer("activation", activation="swish"), ("layers.1 has the activation 'swish'", RT_ALONE)),
    "an activation that is no text": (layer("activation", activation=[]), ("layers.1 has the activation", RT_ALONE)),
    "sizes that do not fit": (rtneural(in_shape=[None, None, 2]), ("layers.0 takes 1 inputs, there are 2",)),
    "no size of the input": (rtneural(in_shape=None), ("shape must be a list that ends",)),
    "a dense layer of another size": (dense_changed(shape=[None, 3]), ("layers.2: weight (4, 2), bias (2,) and 3 outputs",)),
    "a dense layer without a bias": (dense_changed(weights=[[[1.0]]]), ("layers.2 must have two weights",)),
    "gains of a player": (rtneural(in_gain=-3.0), ("in_gain is -3.0", "fastlstm.load(path, name='layers.1')")),
    "a skip of a player": (rtneural(in_skip=1), ("in_skip is 1",)),
    "a broken LSTM": (layer("lstm"), ("layers.1: an LSTM needs three weights",)),
    "another model": (guitarml(model="AdvancedClipSimpleRNN"), ("'AdvancedClipSimpleRNN'", GUITARML_ALONE)),
    "a state dict alone": (guitarml()["state_dict"], ("model_data must say that model is 'SimpleRNN'", GUITARML_ALONE)),
    "another unit": (guitarml(unit_type="GRU"), ("unit_type must be LSTM, got 'GRU'",)),
    "another output size": (guitarml(output_size=2), ("model_data has output_size 2, the tensors have 1",)),
    "a skip of more than there are inputs": (guitarml(skip=2), ("skip must be a number of inputs",)),
    "a skip that does not fit the outputs": (guitarml(3, outputs=2, skip=3), ("can be added to 2 outputs, got 3",)),
    "a skip of text": (guitarml(skip="1"), ("skip must be a number",)),
    "another tensor": (more_tensors(**{"clip.weight": [1.0]}), ("'clip.weight'", GUITARML_ALONE)),
    "another head": (more_tensors(**{"lin.weight": [[1.0]]}), ("'lin.weight' must have shape (outputs, 4)",)),
    "a WaveNet": (nam(architecture="WaveNet"), ("architecture 'WaveNet' is not supported",)),
    "NaN in the head": (NOT_FINITE, ("lin.bias holds 1 NaN or infinite values",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str, tmp_path: Path) -> None:
    content, parts = BAD[case]
    with pytest.raises(FormatError) as caught:
        load_model(write_json(tmp_path / "x", content))
    for part in parts:
        assert part in str(caught.value)


def test_not_finite_if_asked_for(tmp_path: Path) -> None:
    model = load_model(write_json(tmp_path / "x", NOT_FINITE), allow_nonfinite=True)
    assert np.isnan(model(inputs(model, T, B))).all()


def test_a_file_of_weights_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    fastlstm.LSTM(3, 5, seed=0).save(path)
    with pytest.raises(FormatError, match=r"does not describe a whole model; the LSTM alone: fastlstm\.load\(path, name=''\)"):
        load_model(path)


@pytest.mark.parametrize(
    ("x", "error", "part"),
    [
        (np.zeros((T, B, 2), "f"), ValueError, r"x must have shape \(T, B, 1\), got \(9, 3, 2\)"),
        (np.zeros(T, "f"), ValueError, r"x must have shape \(T, B, 1\) or \(T, 1\), got \(9,\)"),
        (np.zeros((T, B, 1)), TypeError, "x must be float32"),
        ([[0.0]], TypeError, "x must be an array"),
    ],
)
def test_wrong_inputs(x: Any, error: type[Exception], part: str, tmp_path: Path) -> None:
    model = load_model(write_json(tmp_path / "x", nam()))
    with pytest.raises(error, match=part):
        model(x)
    with pytest.raises(error, match=part):
        model.stream().process(x)
    with pytest.raises(ValueError, match="x must have 2 sequences, got 3"):
        model.stream(2).process(np.zeros((T, 3, 1), "f"))
    with pytest.raises(ValueError, match=r"x must have shape \(2, 1\), got \(1,\)"):
        model.stream(2).step(np.zeros(1, "f"))
    with pytest.raises(ValueError, match=r"x must have shape \(1, 1\) or \(1,\), got \(2,\)"):
        model.stream().step(np.zeros(2, "f"))
    assert repr(model.stream(2)) == f"ModelStream({model!r}, batch_size=2)"


# ---- Steps ---------------------------------------------------------------------------------------------------------------------


def weights(I: int, H: int, **options: Any) -> Weights:
    return fastlstm.LSTM(I, H, seed=0, **options).weights


@dataclass(frozen=True, eq=False)
class LastStep(Step):
    """The last time step of each sequence."""

    batch_first: bool = False
    pointwise = False

    def run(self, *values: np.ndarray) -> np.ndarray:
        return values[0][:, -1] if self.batch_first else values[0][-1]


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_classifier_of_words(batch_first: bool) -> None:
    """An embedding, an LSTM of two directions, normalisation, the last step, a softmax: as graphs of Keras and ONNX will have."""
    steps: list[Step] = [
        Embedding("words", (INPUT,), values(0, 10, 4)),
        LayerNorm("norm", ("words",), values(1, 4), values(2, 4), 1e-3),
        Recurrent("lstm", ("norm",), weights(4, 5, bidirectional=True), batch_first),
        LastStep("last", ("lstm",), batch_first),
        Dense("out", ("last",), values(3, 6, 10), values(4, 6), "softmax"),
        Reshape("pairs", ("out",), (3, -1)),
    ]
    model = Model(steps, None, batch_first=batch_first)
    x = np.random.default_rng(0).integers(0, 10, (B, T) if batch_first else (T, B))
    table = values(0, 10, 4).astype(np.float64)[x]
    normed = (table - table.mean(-1, keepdims=True)) / np.sqrt(table.var(-1, keepdims=True) + 1e-3) * values(1, 4) + values(2, 4)
    lstm = fastlstm.LSTM.from_weights(weights(4, 5, bidirectional=True), batch_first)
    hidden = lstm(normed.astype(np.float32))[0].astype(np.float64)
    z = (hidden[:, -1] if batch_first else hidden[-1]) @ values(3, 6, 10).T + values(4, 6)
    expected = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    np.testing.assert_allclose(model(x), expected.reshape(B, 3, 2), rtol=0, atol=2e-6)
    one = x[0] if batch_first else x[:, 0]
    np.testing.assert_allclose(model(one), expected[0].reshape(3, 2), rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="'lstm' needs the whole sequence"):
        model.stream()
    with pytest.raises(ValueError, match="words has 10 entries, got indices from 10 to 10"):
        model(x * 0 + 10)
    with pytest.raises(TypeError, match="words takes integer indices, got float64"):
        model(x * 1.0)


def test_activations() -> None:
    x = np.array([-800, -3, -0.5, 0, 0.5, 3, 80], np.float32)
    expected = {
        "linear": x,
        "relu": [0, 0, 0, 0, 0.5, 3, 80],
        "sigmoid": [0, 0.04742587, 0.37754067, 0.5, 0.62245933, 0.95257413, 1],
        "tanh": np.tanh(x.astype(float)),
        "elu": [-1, -0.95021293, -0.39346934, 0, 0.5, 3, 80],
        "softplus": [0, 0.04858735, 0.47407698, 0.69314718, 0.97407698, 3.04858735, 80],
        "softsign": [-800 / 801, -0.75, -1 / 3, 0, 1 / 3, 0.75, 80 / 81],
        "silu": [0, -0.14227762, -0.18877033, 0, 0.31122967, 2.85772238, 80],
        "exponential": np.exp(x.astype(float)),
        "softmax": np.exp(x.astype(float) - 80) / np.exp(x.astype(float) - 80).sum(),
        "leaky_relu": [-160, -0.6, -0.1, 0, 0.5, 3, 80],
        "relu6": [0, 0, 0, 0, 0.5, 3, 6],
        "hard_sigmoid": [0, 0, 0.5 - 0.5 / 6, 0.5, 0.5 + 0.5 / 6, 1, 1],
        "hard_sigmoid_keras2": [0, 0, 0.4, 0.5, 0.6, 1, 1],
        "selu": [-1.75809934, -1.67056873, -0.69175819, 0, 0.52535050, 3.15210296, 84.0560790],
        "log_softmax": x.astype(float) - 80,
        "gelu": [0, -0.00404970, -0.15426877, 0, 0.34573123, 2.99595030, 80],
    }
    assert expected.keys() == KERAS_ACTIVATIONS.keys()
    for name, wanted in expected.items():
        y = Activate("a", (INPUT,), name).run(x)
        assert y.dtype == np.float32, name
        np.testing.assert_allclose(y, np.float32(wanted), rtol=2e-6, atol=1e-7, err_msg=name)


def test_small_dense_layers_do_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    for inputs, outputs in ((1, 1), (40, 1), (1, 40), (16, 3), (64, 64), (9, 100)):
        dense = Dense("d", (INPUT,), rng.standard_normal((outputs, inputs)).astype("f"), rng.standard_normal(outputs).astype("f"))
        x = rng.standard_normal((500, 2, inputs)).astype(np.float32)
        whole = dense.run(x)
        np.testing.assert_allclose(whole, x.astype(float) @ dense.weight.T.astype(float) + dense.bias, rtol=0, atol=2e-5)
        for rows in (x[:1], x[3:4], x[:7], x[::2], np.asfortranarray(x)):
            assert dense.run(rows).tobytes() in (
                whole[:1].tobytes(),
                whole[3:4].tobytes(),
                whole[:7].tobytes(),
                whole[::2].tobytes(),
                whole.tobytes(),
            )


def test_a_graph() -> None:
    steps = [
        Features("first", (INPUT,), 0, 1),
        Activate("squashed", (INPUT,), "tanh"),
        Merge("sum", ("squashed", "first", INPUT)),
    ]
    x = inputs(Model(steps, 3), T, B)
    np.testing.assert_allclose(Model(steps, 3)(x), np.tanh(x) + x[..., :1] + x, rtol=1e-6)
    with pytest.raises(ValueError, match="step 'sum' needs 'squashed', which no earlier step gives"):
        Model([steps[0], steps[2]], 3)
    with pytest.raises(ValueError, match="two steps are named 'first'"):
        Model([steps[0], steps[0]], 3)
    with pytest.raises(ValueError, match="at least one step"):
        Model([], 3)


def test_learned_initial_states_of_several_layers() -> None:
    """Each layer begins with its own, in every row."""
    layers = tuple(
        LayerWeights(
            values(k, 16, H if k else 2),
            values(k + 5, 16, H),
            values(k + 10, 16),
            values(k + 15, 16),
            h_0=values(k + 20, H),
            c_0=values(k + 25, H),
        )
        for k in range(2)
    )
    model = Model([Recurrent("lstm", (INPUT,), Weights(layers))], 2)
    x = inputs(model, T, B)
    expected = lstm_oracle(x, [(w.weight_ih, w.weight_hh, w.bias_ih + w.bias_hh, w.h_0, w.c_0) for w in layers])
    np.testing.assert_allclose(model(x), expected, rtol=0, atol=5e-6)
