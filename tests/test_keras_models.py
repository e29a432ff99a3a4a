"""Whole models of Keras: ``load_model`` gives Keras' own numbers, and refuses by name what it cannot run.

The golden files and the values expected of them are made by ``golden/make_keras_models.py``.
"""

from __future__ import annotations

import copy
import itertools
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import Edit, edited, edited_h5, with_old_container, without_names

from fastlstm import FormatError, load_model
from fastlstm.loaders.keras import hdf5

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-5  # Keras computes in float32 too, in its own order
B, T, I, WORDS = 3, 7, 3, 9
FILES = ("keras3_model.keras", "keras2_model.h5")


pytestmark = pytest.mark.filterwarnings("ignore")  # Keras warns of its own old format, and of much else


ANSWERS: dict[bytes, bytes] = {}


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that lists HDF5 files is asked once for the same bytes: most refusals differ in the configuration alone."""
    ask = hdf5._ask

    def answer(descriptor: int, limit: int) -> bytes:
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, size, 0)
        if data not in ANSWERS:
            ANSWERS[data] = ask(descriptor, limit)
        return ANSWERS[data]

    monkeypatch.setattr(hdf5, "_ask", answer)


def agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


# ---- Golden files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_golden_file(file: str, h5py: Any) -> None:
    with np.load(GOLDEN / "keras_model_expected.npz") as expected:
        x, y = expected["x"], expected["y"]
    model = load_model(GOLDEN / file)
    agree(model(x), y)
    agree(model(x[0]), y[0])
    agree(model(x[:0]), y[:0])


@pytest.mark.parametrize("change", [without_names, with_old_container])
def test_groups_without_names_are_told_by_their_order(change: Edit, tmp_path: Path, h5py: Any) -> None:
    """As before Keras 3.7, and as in 2.13 to 2.15."""
    path = tmp_path / "x.keras"
    path.write_bytes(edited(GOLDEN / "keras3_model.keras", change))
    with np.load(GOLDEN / "keras_model_expected.npz") as expected:
        agree(load_model(path)(expected["x"]), expected["y"])


def test_golden_stream(h5py: Any) -> None:
    model = load_model(GOLDEN / "keras3_stream.keras")
    with np.load(GOLDEN / "keras_model_expected.npz") as expected:
        x, y = expected["stream_x"], expected["stream_y"]
    agree(model(x), y)
    stream = model.stream(len(x))
    assert np.stack([stream.step(x[:, t]) for t in range(x.shape[1])], axis=1).tobytes() == model(x).tobytes()
    stream.reset()
    assert stream.process(x[:, :2]).tobytes() == model(x)[:, :2].tobytes()  # however many steps the model was made for


# ---- Keras itself --------------------------------------------------------------------------------------------------------------


class Maker:
    """Random layers, and models of them."""

    def __init__(self, keras: Any, seed: int) -> None:
        self.keras, self.L, self.rng = keras, keras.layers, random.Random(seed)

    def lstm(self, sequences: bool) -> Any:
        L, rng = self.L, self.rng
        more = {"return_sequences": sequences}
        units = rng.choice((2, 3, 4))
        kind = rng.randrange(5)
        if kind == 0:
            return L.Bidirectional(L.LSTM(units, **more), merge_mode=rng.choice(("concat", "sum", "mul", "ave")))
        if kind == 1:
            return L.RNN([L.LSTMCell(units), L.LSTMCell(units)], go_backwards=rng.random() < 0.3, **more)
        activations = {
            "activation": rng.choice(("tanh", "relu")),
            "recurrent_activation": rng.choice(("sigmoid", "hard_sigmoid")),
        }
        more |= {
            "go_backwards": rng.random() < 0.3,
            "use_bias": rng.random() < 0.8,
            "zero_output_for_mask": sequences and kind == 2,
        }
        return L.LSTM(units, dropout=0.2, **(activations if rng.random() < 0.3 else {}), **more)

    def pointwise(self) -> Any:
        L, rng = self.L, self.rng
        activation = rng.choice((None, "relu", "tanh", "sigmoid", "softmax", "elu", "selu", "softplus", "softsign", "silu"))
        return rng.choice(
            (
                lambda: L.Dense(rng.choice((2, 3, 5)), activation=activation, use_bias=rng.random() < 0.7),
                lambda: L.TimeDistributed(L.Dense(3, activation=activation)),
                lambda: L.TimeDistributed(L.LayerNormalization()),
                lambda: L.LayerNormalization(center=rng.random() < 0.7, scale=rng.random() < 0.7, epsilon=1e-4),
                lambda: L.Activation(rng.choice(("hard_sigmoid", "exponential", "leaky_relu", "relu6", "log_softmax", "gelu"))),
                lambda: L.BatchNormalization(center=rng.random() < 0.7, scale=rng.random() < 0.7, epsilon=0.02),
                lambda: L.TimeDistributed(L.BatchNormalization()),
                lambda: L.ReLU(max_value=rng.choice((None, 0.7)), negative_slope=0.1, threshold=0.2),
                lambda: L.LeakyReLU(negative_slope=0.2),
                lambda: L.ELU(),
                lambda: L.Dropout(0.3),
                lambda: L.SpatialDropout1D(0.3),
                lambda: L.GaussianNoise(0.3),
                lambda: L.ActivityRegularization(0.3),
            )
        )()

    def body(self, masked: bool) -> list[Any]:
        """Layers from steps to a result."""
        L, rng = self.L, self.rng
        layers = [self.lstm(True) if rng.random() < 0.4 else self.pointwise() for _ in range(rng.randrange(4))]
        ending = rng.randrange(5)
        if ending == 0:
            layers += [self.lstm(True), self.pointwise()]
        elif ending == 1:
            layers += [self.lstm(False), L.Dense(2, activation=rng.choice((None, "softmax")))]
        elif ending == 2:
            layers += [self.lstm(False), L.RepeatVector(4), self.lstm(True), L.TimeDistributed(L.Dense(2))]
        elif ending == 3:
            pool = rng.choice((L.GlobalAveragePooling1D, L.GlobalMaxPooling1D))
            layers += [self.lstm(True), pool(), L.BatchNormalization(), L.Dense(2)]
        else:
            layers += [self.lstm(True), L.Flatten(), L.Dense(6), L.Reshape((2, -1)), self.lstm(False)]
            if not masked:
                layers.append(L.Softmax())
        return layers

    def front(self) -> tuple[Any, list[Any], bool]:
        """The input, layers that make steps of it, and whether they are masked."""
        L, rng, Input = self.L, self.rng, self.keras.Input
        kind = rng.randrange(5)
        if kind == 0:
            return Input((T,)), [L.Embedding(WORDS, I)], False
        if kind == 1:
            return Input((T,)), [L.Embedding(WORDS, I, mask_zero=True)], True
        if kind == 2:
            return Input((T, I)), [L.Masking(rng.choice((0.0, -1.0)))], True
        if kind == 3:
            return Input((T * I,)), [L.Reshape((-1, I))], False
        return Input((T, I)), [], False

    def sequential(self) -> Any:
        given, front, masked = self.front()
        return self.keras.Sequential([given, *front, *self.body(masked)])

    def functional(self) -> Any:
        """Two branches whose outputs are added or put side by side, sometimes with a model among the layers."""
        L, rng, keras = self.L, self.rng, self.keras
        given, front, masked = self.front()
        x = given
        for layer in front:
            x = layer(x)
        a = L.LSTM(3, return_sequences=True)(x)
        b = L.TimeDistributed(L.Dense(3))(x)
        if rng.random() < 0.3:
            inner = self.keras.Sequential([keras.Input((T, 3)), self.lstm(True), L.Dense(3)], name="inner")
            a = inner(a)
        sums = (L.Add, L.Subtract, L.Average, *(() if masked else (L.Multiply, L.Maximum, L.Minimum)))
        x = rng.choice((lambda: a + b, lambda: rng.choice(sums)()([a, b]), lambda: L.Concatenate()([a, b])))()
        for layer in self.body(masked):
            x = layer(x)
        return keras.Model(given, x)


def inputs_of(model: Any, rng: np.random.Generator) -> np.ndarray:
    shape = model.input_shape[1:]
    if len(shape) == 1 and shape[0] == T:
        return rng.integers(0, WORDS, (B, T)) * rng.integers(0, 2, (B, T))
    x = rng.standard_normal((B, *shape)).astype(np.float32)
    if len(shape) == 2:
        x[rng.random((B, T)) < 0.3] = rng.choice((0, -1))
    return x


def randomized(model: Any, rng: np.random.Generator) -> Any:
    for variable in model.variables:
        low = 0.3 if variable.name == "moving_variance" else -0.7
        variable.assign(rng.uniform(low, 0.7, variable.shape).astype("f4"))
    return model


def compare(keras: Any, model: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    x = inputs_of(randomized(model, rng), rng)
    y = keras.ops.convert_to_numpy(model(x, training=False))
    for name in ("x.keras", "x.h5"):
        model.save(tmp_path / name)
        agree(load_model(tmp_path / name)(x), y)


def test_a_mask_passes_what_is_skipped(keras: Any, h5py: Any, tmp_path: Path) -> None:
    L = keras.layers
    skipped = (L.Dropout(0.2), L.SpatialDropout1D(0.2), L.GaussianDropout(0.2), L.AlphaDropout(0.2), L.GaussianNoise(0.2))
    layers = [L.Embedding(WORDS, I, mask_zero=True), *skipped, L.ActivityRegularization(0.2), L.LSTM(4)]
    model = randomized(keras.Sequential([keras.Input((T,)), *layers]), np.random.default_rng(0))
    x = np.random.default_rng(0).integers(0, 2, (B, T))
    for name in ("x.keras", "x.h5"):
        model.save(tmp_path / name)
        agree(load_model(tmp_path / name)(x), keras.ops.convert_to_numpy(model(x, training=False)))


def test_what_pools_and_normalizes_keeps_its_digits(keras: Any, h5py: Any, tmp_path: Path) -> None:
    L = keras.layers
    model = keras.Sequential([keras.Input((None, 1)), L.BatchNormalization(epsilon=0), L.GlobalAveragePooling1D(name="mean")])
    model.layers[0].set_weights([np.array([n], "f4") for n in (1, 0.5, 1e4, 1e-4)])
    model.save(tmp_path / "x.keras")
    loaded = load_model(tmp_path / "x.keras")
    x = (1e4 + np.random.default_rng(0).standard_normal((2, 100_000, 1)) * 1e-2).astype("f4")
    exact = ((x.astype(float) - 1e4) / 1e-2).mean(axis=1) + 0.5
    np.testing.assert_allclose(loaded(x), exact, rtol=0, atol=2e-7)
    assert np.isnan(loaded(x[:, :0])).all()
    model = keras.Sequential([keras.Input((None, 1)), L.GlobalMaxPooling1D(name="most")])
    model.save(tmp_path / "x.keras")
    with pytest.raises(ValueError, match="most takes the largest of the steps, and there are none"):
        load_model(tmp_path / "x.keras")(x[:, :0])


@pytest.mark.parametrize("kind", ["sequential", "functional"])
@pytest.mark.parametrize("seed", range(12))
def test_random_models(kind: str, seed: int, keras: Any, h5py: Any, tmp_path: Path) -> None:
    keras.utils.set_random_seed(seed)
    model = getattr(Maker(keras, seed), kind)()
    compare(keras, model, np.random.default_rng(seed), tmp_path)


def masked_models(keras: Any) -> Iterator[tuple[str, Any, Any]]:
    """Models whose masks are made of several, or come out of a model: a name, the input and the result."""
    L, Input, ops = keras.layers, keras.Input, keras.ops
    words, steps = Input((T,)), Input((T, I))
    plain, e, other = L.Embedding(WORDS, I)(words), *(L.Embedding(WORDS, I, mask_zero=True)(words) for _ in range(2))
    zeros, ones = L.Masking(0.0)(steps), L.Masking(1.0)(steps)
    both = L.Bidirectional(L.LSTM(5, return_sequences=True))
    yield "beside its own Bidirectional", words, L.LSTM(4)(L.Concatenate()([e, both(e)]))
    yield "the mean of masked steps", steps, L.Dense(2)(L.GlobalAveragePooling1D()(L.BatchNormalization()(zeros)))
    yield "a difference of two masks", steps, L.LSTM(4)(L.Subtract()([zeros, ones]))
    yield "two embeddings", words, L.LSTM(4)(L.Concatenate()([e, other]))
    yield "masked beside plain", words, L.LSTM(4)(L.Concatenate()([e, plain]))
    yield "plain beside masked", words, L.LSTM(4)(L.Concatenate()([plain, e]))
    yield "two of Masking", steps, L.LSTM(4, return_sequences=True)(L.Concatenate()([zeros, L.ReLU()(ones), steps]))
    yield "two of Masking only", steps, L.LSTM(4, return_sequences=True)(L.Concatenate()([zeros, ones]))
    yield "one after the other", steps, L.LSTM(4, return_sequences=True)(L.Concatenate(axis=1)([zeros, steps, ones]))
    yield "a sum of masked and plain", words, L.LSTM(4)(L.Add()([e, plain]))
    yield "a sum of two masks", steps, L.LSTM(4)(L.Add()([zeros, ones]))
    yield "a sum of three", steps, L.LSTM(4)(L.Add()([zeros, ones, L.Masking(-1.0)(steps)]))
    yield "an operation knows no masks", steps, L.LSTM(4)(zeros + zeros)
    yield "nor does a product", steps, L.LSTM(4)(zeros * ones)
    yield "nor does this one", steps, L.LSTM(4)(ops.concatenate([zeros, zeros], axis=-1))
    inner = keras.Sequential([Input((T,)), L.Embedding(WORDS, I, mask_zero=True), L.Dense(I)])
    yield "out of a model", words, L.LSTM(4)(inner(words))
    yield "out of a model and a sum", words, L.LSTM(4)(L.Add()([inner(words), e]))
    yield "out of a model and a sum without", words, L.LSTM(4)(L.Add()([inner(words), plain]))
    # Keras knows one of these masks when the model is made, and writes that the other is true everywhere
    yield "out of a model and known", words, L.LSTM(4)(L.Concatenate()([inner(words), e]))
    yield "out of a model and beside", words, L.LSTM(4)(L.Concatenate()([inner(words), plain]))
    through = Input((T, I))
    lstm = keras.Model(through, L.Dropout(0.5)(L.LSTM(I, return_sequences=True)(through)))
    yield "through a model", steps, L.LSTM(4)(lstm(zeros))
    through = Input((T, I))
    beside = keras.Model(through, L.Concatenate()([through, L.Masking(1.0)(through)]))
    yield "known inside a model", steps, L.LSTM(4)(beside(zeros))
    through = Input((T, I))
    added = keras.Model(through, L.Add()([through, L.ReLU()(through)]))
    yield "known to nobody", steps, L.LSTM(4, zero_output_for_mask=True, return_sequences=True)(added(zeros))


def unusual_models(keras: Any) -> Iterator[tuple[str, Any, Any]]:
    """Cells of several sizes, directions with and without a bias, and states that nobody takes."""
    L, steps = keras.layers, keras.Input((T, I))
    masked = L.Masking()(steps)
    for what, given in (("plain", steps), ("masked", masked)):
        for sequences in (False, True):
            more: dict[str, Any] = {"return_sequences": sequences}
            sizes = L.RNN([L.LSTMCell(6), L.LSTMCell(4, use_bias=False), L.LSTMCell(4)], **more)
            yield f"sizes, {what}", steps, L.Dense(2)(sizes(given))
            bare = L.LSTM(4, use_bias=False, go_backwards=True, **more)
            yield f"a bias of one, {what}", steps, L.Bidirectional(L.LSTM(4, **more), backward_layer=bare)(given)
            both = L.Bidirectional(L.LSTM(4, return_state=True, **more))
            yield f"states, {what}", steps, L.Dense(2)(both(given)[0])
            yield f"states of one, {what}", steps, L.LSTM(4, return_state=True, **more)(given)[0]
    backwards = L.RNN([L.LSTMCell(3), L.LSTMCell(4)], go_backwards=True, return_sequences=True)
    yield "sizes, backwards", steps, L.LSTM(4)(backwards(steps))
    zeros = L.RNN([L.LSTMCell(3), L.LSTMCell(4)], return_sequences=True, zero_output_for_mask=True)
    yield "sizes, zero", steps, zeros(masked)
    yield "biases of some cells", steps, L.RNN([L.LSTMCell(4, use_bias=False), L.LSTMCell(4)])(masked)


def models_in_models(keras: Any) -> Iterator[tuple[str, Any, Any]]:
    """Functional and sequential models called by each other, two and three deep; in .h5 some names are in no path."""
    L, steps = keras.layers, keras.Input((T, I))

    def functional(*layers: Any) -> Any:
        given = x = keras.Input((None, I))
        for layer in layers:
            x = layer(x)
        return keras.Model(given, x)

    def sequential(*layers: Any) -> Any:
        return keras.Sequential([keras.Input((None, I)), *layers])

    for kinds in itertools.product((functional, sequential), repeat=3):
        first, second, third = kinds
        inner = [third(L.LSTM(I, return_sequences=True), L.Dense(I)) for _ in range(2)]
        outer = first(second(*inner, L.Dense(I)), L.LSTM(I, return_sequences=True))
        yield " of ".join(kind.__name__ for kind in kinds), steps, outer(steps)


@pytest.mark.parametrize(
    "models", [masked_models, unusual_models, models_in_models], ids=["masks of several", "unusual layers", "models in models"]
)
def test_numbers_of_keras(models: Any, keras: Any, h5py: Any, tmp_path: Path) -> None:
    for seed, (what, given, result) in enumerate(models(keras)):
        rng = np.random.default_rng(seed)
        model = randomized(keras.Model(given, result), rng)
        x = rng.integers(0, 3, (B, T)) if given.shape[1:] == (T,) else rng.integers(-1, 2, (B, T, 1)).repeat(I, 2).astype("f4")
        y = keras.ops.convert_to_numpy(model(x, training=False))
        for name in ("x.keras", "x.h5"):
            model.save(tmp_path / name)
            assert np.abs(load_model(tmp_path / name)(x) - y).max() < TOLERANCE, (what, name)


def test_dtypes_that_differ(keras: Any, h5py: Any, tmp_path: Path) -> None:
    L = keras.layers
    for first, second in (("float64", "float32"), ("float32", "float64")):
        keras.Sequential([keras.Input((T, I)), L.LSTM(3, dtype=first), L.Dense(2, dtype=second)]).save(tmp_path / "x.keras")
        with pytest.raises(FormatError, match=f"is {second}, and those before are {first}"):
            load_model(tmp_path / "x.keras")


def test_other_dtypes(keras: Any, h5py: Any, tmp_path: Path) -> None:
    for dtype, ours in (("float64", "float64"), ("float16", "float32"), ("bfloat16", "float32")):
        L = keras.layers
        layers = [
            L.Embedding(WORDS, I, dtype=dtype),
            L.LSTM(3, dtype=dtype, recurrent_initializer="zeros"),
            L.Dense(2, dtype=dtype),
        ]
        model = randomized(keras.Sequential([keras.Input((T,)), *layers]), np.random.default_rng(0))
        model.save(tmp_path / "x.keras")
        loaded = load_model(tmp_path / "x.keras")
        x = np.arange(T)[None] % WORDS
        assert loaded(x).dtype == loaded.dtype == ours
        theirs = keras.ops.convert_to_numpy(keras.ops.cast(model(x), "float64"))
        np.testing.assert_allclose(loaded(x), theirs, rtol=0, atol=2e-2 if ours == "float32" else 1e-7)


# ---- What is refused -----------------------------------------------------------------------------------------------------------


def layer_of(model: Any, name: str) -> Any:
    return next(layer for layer in model["config"]["layers"] if layer["config"].get("name") == name)


def config(name: str, /, **values: Any) -> Edit:
    return lambda model: layer_of(model, name)["config"].update(values)


def entry(name: str, /, **values: Any) -> Edit:
    return lambda model: layer_of(model, name).update(values)


def keywords(name: str, /, **values: Any) -> Edit:
    return lambda model: layer_of(model, name)["inbound_nodes"][0]["kwargs"].update(values)


def history(name: str, *made: Any) -> Edit:
    """Another tensor as the first argument."""

    def change(model: Any) -> None:
        tensor = layer_of(model, name)["inbound_nodes"][0]["args"][0]
        (tensor[0] if isinstance(tensor, list) else tensor)["config"]["keras_history"] = list(made)

    return change


def called_twice(model: Any) -> None:
    layer_of(model, "norm")["inbound_nodes"] *= 2


def nested_deep(model: Any) -> None:
    inner = layer_of(model, "inner")
    for depth in range(60):
        config = {"name": f"inner{depth}", "layers": [dict(inner)]}
        inner.update(class_name="Sequential", config=config, name=config["name"])
    config["name"] = inner["name"] = "inner"


def top(**values: Any) -> Edit:
    return lambda model: model["config"].update(values)


TENSOR = {"class_name": "__keras_tensor__", "config": {"keras_history": ["lstm", 0, 0]}}
REFUSED: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "subclassed": (lambda model: model.update(class_name="Mine"), ("class 'Mine' is not Keras' Sequential or Functional",)),
    "another's": (lambda model: model.update(module="mine"), ("class 'Functional' is not Keras'",)),
    "no layers": (top(layers={}), ("layers must be a list",)),
    "a layer that is none": (lambda model: model["config"]["layers"].append(3), ("layers must be a list",)),
    "two of a name": (config("norm", name="add"), ("same name",)),
    "a name that is none": (config("norm", name=["x"]), ("same name, or one has none",)),
    "no outputs": (top(output_layers=[]), ("it has 0 outputs",)),
    "two outputs": (top(output_layers=[["lstm", 0, 0], ["norm", 0, 0]]), ("it has 2 outputs",)),
    "outputs of numbers": (top(output_layers=[1, 2]), ("a layer and two numbers expected, got 1",)),
    "two inputs": (top(input_layers={"a": ["words", 0, 0], "b": ["words", 0, 0]}), ("it has 2 inputs",)),
    "an input that is none": (top(input_layers=["lstm", 0, 0]), ("'lstm' is not a layer of class InputLayer",)),
    "an unknown input": (top(input_layers=["x" * 2000, 0, 0]), ("is not a layer of class InputLayer",)),
    "an unknown output": (top(output_layers=["nothing", 0, 0]), ("its output takes the result of 'nothing'",)),
    "the second of an output": (top(output_layers=["lstm", 0, 1]), ("output 1 of 'lstm'",)),
    "sparse": (config("words", sparse=True), ("input is sparse",)),
    "no shape": (config("words", batch_shape=None), ("shape of the model's input is not",)),
    "a negative shape": (config("words", batch_shape=[None, -4]), ("shape of the model's input must be a list",)),
    "an enormous shape": (config("words", batch_shape=[None, 2**40]), ("shape of the model's input must be a list",)),
    "an unknown layer": (history("norm", "nothing", 0, 0), ("layer 'norm' takes the result of 'nothing'",)),
    "a circle": (history("norm", "flat", 0, 0), ("layer 'flat' needs its own result",)),
    "itself": (history("norm", "norm", 0, 0), ("layer 'norm' needs its own result",)),
    "another output": (history("norm", "add", 0, 1), ("'norm'", "output 1 of 'add'")),
    "called twice": (called_twice, ("'norm'", "called 2 times")),
    "never called": (entry("norm", inbound_nodes=[]), ("'norm'", "called 0 times")),
    "called with text": (entry("norm", inbound_nodes=["x"]), ("'norm'", "not as Keras writes")),
    "called with no tensor": (entry("norm", inbound_nodes=[{"args": [1], "kwargs": {}}]), ("'norm'", "without a tensor")),
    "called with an object": (entry("norm", inbound_nodes=[{"args": [{"a": 1}]}]), ("'norm'", "called with {'a': 1}")),
    "training": (keywords("drop", training=True), ("'drop'", "training=True")),
    "an initial state": (keywords("lstm", initial_state=TENSOR), ("'lstm'", "called with 'initial_state'")),
    "a mask of text": (keywords("lstm", mask="x"), ("'lstm'", "mask 'x'")),
    "a mask of features": (keywords("lstm", mask=TENSOR | {"config": {"keras_history": ["norm", 0, 0]}}), ("'lstm'", "no mask")),
    "a mask not run": (
        lambda model: next(one for one in model["config"]["layers"] if one["class_name"] == "NotEqual").update(class_name="Less"),
        ("mask is not supported", "class 'Less' is not supported"),
    ),
    "a custom layer": (
        entry("norm", class_name="Norm"),
        ("'norm'", "class 'Norm' is not supported", "name=...) with 'both', 'lstm'"),
    ),
    "another's layer": (entry("norm", module="mine.layers"), ("'norm'", "class 'LayerNormalization' is not supported")),
    "a Lambda": (entry("norm", class_name="Lambda"), ("'norm'", "class 'Lambda' is not supported")),
    "a GRU": (entry("lstm", class_name="GRU"), ("'lstm'", "this is a GRU")),
    "return_sequences of text": (config("lstm", return_sequences="no"), ("'lstm'", "return_sequences must be true or false")),
    "merge_mode null": (config("both", merge_mode=None), ("'both'", "merge_mode is null")),
    "time_major": (config("lstm", time_major=True), ("'lstm'", "time_major")),
    "zero and last": (config("lstm", zero_output_for_mask=True), ("'lstm'", "zero_output_for_mask")),
    "more units": (config("lstm", units=10**9), ("'lstm'", "1000000000 units")),
    "an unknown key": (config("norm", extra=1), ("'norm'", "'extra' in the configuration is not understood")),
    "huge units": (config("input", units=2**31), ("'input'", "units must be a positive integer")),
    "other units": (config("input", units=3), ("'input'", "must have shape (12, 3), got (12, 2)")),
    "no bias": (
        config("input", use_bias=False),
        ("'input'", "weights kernel are not where Keras puts them"),
    ),
    "mish": (
        config("input", activation="mish"),
        ("'input'", "activation 'mish' is not supported; supported are elu, exponential"),
    ),
    "an activation of its own": (config("input", activation={"class_name": "function"}), ("'input'", "activation {'class_name'")),
    "lora": (config("input", lora_rank=4), ("'input'", "'lora_rank' in the configuration is not understood")),
    "more words": (config("embedding", input_dim=10), ("'embedding'", "must have shape (10, 3), got (9, 3)")),
    "words of a layer": (history("embedding", "flat", 0, 0), ("needs its own result",)),
    "another axis": (config("norm", axis=[1]), ("'norm'", "axis [1]")),
    "rms": (config("norm", rms_scaling=True), ("'norm'", "rms_scaling")),
    "epsilon": (config("norm", epsilon=-1), ("'norm'", "epsilon must not be negative")),
    "epsilon missing": (config("norm", epsilon=None), ("'norm'", "epsilon must be a number")),
    "epsilon huge": (config("norm", epsilon=10**400), ("'norm'", "epsilon must be a number")),
    "what does not add": (history("add", "embedding", 0, 0), ("'add'", "and only what has the same shape goes together")),
    "more times": (config("repeat", n=3), ("'input'", "must have shape (18, 2), got (12, 2)")),
    "the batch axis": (config("beside", axis=0), ("'beside'", "axis must be one of")),
    "no times": (config("repeat", n=0), ("'repeat'", "n must be a positive integer")),
    "a Conv in time": (
        lambda model: layer_of(model, "frames")["config"]["layer"].update(class_name="Conv1D"),
        ("'frames'", "it applies 'Conv1D', and only these are supported"),
    ),
    "a slope twice": (config("leaky", alpha=0.3), ("'leaky'", "negative_slope is missing, or there twice")),
    "channels first": (config("flat", data_format="channels_first"), ("'flat'", "data_format must be channels_last")),
    "inside a model": (
        lambda model: layer_of(model, "inner")["config"]["layers"][1].update(class_name="GRU"),
        ("layer 'inner/lstm': this is a GRU",),
    ),
    "models in models": (nested_deep, ("nests layers more than 50 deep",)),
    "a model of no layers": (
        lambda model: layer_of(model, "inner")["config"].update(layers=[]),
        ("'inner'", "layers must be a list"),
    ),
    "an input in the middle": (entry("norm", class_name="InputLayer"), ("'norm'", "second input")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path, h5py: Any, remembered: None) -> None:
    change, parts = REFUSED[case]
    path = tmp_path / "x.keras"
    path.write_bytes(edited(GOLDEN / "keras3_model.keras", config=change))
    with pytest.raises(FormatError) as caught:
        load_model(path)
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert len(message) < 1500


def test_refused_weights(tmp_path: Path, h5py: Any) -> None:
    def moved(file: Any) -> None:
        file["layers/dense/vars"].move("0", "5")

    def doubled(file: Any) -> None:
        array = file["layers/dense/vars/0"][()].astype("f8")
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = array

    def whole_numbers(file: Any) -> None:
        array = file["layers/dense/vars/0"][()].astype("i4")
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = array

    def not_finite(file: Any) -> None:
        file["layers/dense/vars/0"][0, 0] = np.nan

    path = tmp_path / "x.keras"
    for change, part in (
        (moved, "'input': its weights kernel, bias are not where Keras puts them"),
        (doubled, "is float64, and those before are float32"),
        (whole_numbers, "must be one of float16, bfloat16, float32, float64, got"),
        (not_finite, "input_.weight holds 1 NaN or infinite values"),
    ):
        path.write_bytes(edited(GOLDEN / "keras3_model.keras", change))
        with pytest.raises(FormatError, match=re.escape(part)):
            load_model(path)
    assert np.isnan(load_model(path, allow_nonfinite=True)(np.arange(6)[None])).all()


def test_models_of_keras_that_are_refused(keras: Any, h5py: Any, remembered: None, tmp_path: Path) -> None:
    L, Input, Model = keras.layers, keras.Input, keras.Model
    words, steps, other = Input((T,), name="words"), Input((T, I), name="steps"), Input((T, I), name="other")
    shared, lstm = L.Dense(I, name="shared"), L.LSTM(I, return_sequences=True, name="lstm")
    masked = L.Masking(name="masked")(steps)
    embedded = L.Embedding(WORDS, I, mask_zero=True)
    for model, part in (
        (
            Model(words, L.Concatenate()([L.Flatten()(L.Embedding(WORDS, I)(words)), L.Dense(2, name="d")(words)])),
            "layer 'd' takes as",
        ),
        (Model([steps, other], L.LSTM(2)(L.Add()([steps, other]))), "it has 2 inputs"),
        (Model(steps, [L.LSTM(2)(steps), L.LSTM(3)(steps)]), "it has 2 outputs"),
        (Model(steps, L.Dense(2)(L.LSTM(3, return_state=True, name="last")(steps)[1])), "it takes output 1 of 'last'"),
        (keras.Sequential([Input((T, I)), L.LSTM(3, return_state=True, name="last")]), "layer 'last': it has return_state"),
        (
            keras.Sequential([Input((T, I)), L.Bidirectional(L.LSTM(3, return_state=True), name="last")]),
            "layer 'last': it has return_state",
        ),
        (
            Model(steps, L.RNN([L.LSTMCell(3), L.LSTMCell(2)], go_backwards=True)(masked)),
            "cells of several sizes that go backwards",
        ),
        (Model(steps, shared(lstm(shared(steps)))), "layer 'shared': it is called 2 times"),
        (Model(steps, L.Softmax(name="soft")(masked)), "layer 'soft': a Softmax with a mask"),
        (Model(words, L.LSTM(2)(L.Concatenate()([embedded(words), embedded(words)]))), "it is called 2 times"),
        (Model(steps, L.LSTM(2)(L.Softmax(name="soft")(L.Add()([masked, masked])))), "layer 'soft': a Softmax with a mask"),
        (Model(steps, L.LSTM(2)(keras.ops.zeros_like(steps))), "ZerosLike and OnesLike are supported only for masks"),
        (Model(steps, L.Flatten()(keras.ops.expand_dims(steps, 1))), "ExpandDims is supported only for a new last axis"),
        (Model(steps, L.UnitNormalization(name="norm")(steps)), "layer 'norm': its class 'UnitNormalization' is not supported"),
        (Model(steps, L.BatchNormalization(axis=1, name="norm")(steps)), "layer 'norm': it normalizes axis 1, and only the last"),
        (Model(steps, L.LSTM(2)(L.Multiply(name="by")([masked, masked]))), "layer 'by': this layer looks at masks"),
        (
            Model(steps, L.GlobalAveragePooling1D(keepdims=True, name="mean")(steps)),
            "layer 'mean': it is supported only with data_format",
        ),
        (Model(steps, L.LSTM(2)(keras.ops.average(steps) + steps)), "it is called with 1 values, not two"),
        (Model(steps, L.LSTM(2, name="last")(steps * 2.0)), ": it is called with 2.0, and only results"),
        (keras.Sequential([Input((T, None)), L.ReLU()]), "in which the number of features is missing"),
        (keras.Sequential([Input((T, I)), L.Dropout(0.5)]), "no layer that computes anything"),
    ):
        model.save(tmp_path / "x.keras")
        with pytest.raises(FormatError, match=re.escape(part)):
            load_model(tmp_path / "x.keras")


def test_what_no_one_needs_is_not_refused(tmp_path: Path, h5py: Any) -> None:
    """A layer that the output does not need may be of any class."""

    def change(model: Any) -> None:
        more = copy.deepcopy(layer_of(model, "norm"))
        more |= {"class_name": "Mine", "name": "more"}
        more["config"]["name"] = "more"
        model["config"]["layers"].append(more)

    path = tmp_path / "x.keras"
    path.write_bytes(edited(GOLDEN / "keras3_model.keras", config=change))
    assert load_model(path)(np.arange(6)[None]).shape == (1, 2)


def test_legacy_weights_are_refused(tmp_path: Path, h5py: Any) -> None:
    def change(file: Any) -> None:
        del file["model_weights/inner"].attrs["weight_names"]

    path = tmp_path / "x.h5"
    path.write_bytes(edited_h5(GOLDEN / "keras2_model.h5", change))
    with pytest.raises(FormatError, match=r"'inner/lstm'.*not where Keras puts them"):
        load_model(path)
    with pytest.raises(FormatError, match="does not describe a whole model"):
        load_model(GOLDEN / "keras2_weights.h5")
    with pytest.raises(FormatError, match="does not describe a whole model"):
        load_model(GOLDEN / "keras3.weights.h5")
    with pytest.raises(FormatError, match="it has 0 inputs"):
        load_model(GOLDEN / "keras2.h5")


def test_wrong_inputs(h5py: Any) -> None:
    model = load_model(GOLDEN / "keras3_model.keras")
    for x, error, part in (
        (np.zeros((2, 5), int), ValueError, "x must have shape (B, 6), got (2, 5)"),
        (np.zeros((2, 6)), TypeError, "embedding takes integer indices"),
        (np.full((2, 6), 9), ValueError, "embedding has 9 entries"),
    ):
        with pytest.raises(error, match=re.escape(part)):
            model(x)
    with pytest.raises(ValueError, match="needs the whole sequence"):
        model.stream()
