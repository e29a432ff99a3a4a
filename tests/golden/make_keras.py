"""Makes the golden files of Keras in this folder, and the values Keras gives for them: ``python tests/golden/make_keras.py``.

Made with keras 3.15.1 on torch 2.13.0 (CPU), h5py 3.16.0. ``keras2.h5`` and ``keras2_weights.h5`` are not Keras 2's own work:
they are written here with h5py as its source writes them (``tf_keras/src/saving/legacy/hdf5_format.py``), with the weights of
layers of Keras 3, whose values are expected of them too. The tests read the files without Keras.
"""

import json
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import h5py
import keras
import numpy as np
from keras import layers as L

HERE = Path(__file__).parent
I, T, B = 3, 6, 2
rng = np.random.default_rng(20260102)
expected: dict[str, np.ndarray] = {"x": rng.standard_normal((B, T, I)).astype(np.float32)}
expected["x_4"] = rng.standard_normal((B, T, 4)).astype(np.float32)
ALL = {"return_sequences": True}


def randomize(model: keras.Model) -> None:
    model.set_weights([rng.uniform(-0.7, 0.7, w.shape).astype(np.float32) for w in model.get_weights()])


def expect(key: str, layer: keras.layers.Layer) -> None:
    """Record what a layer gives for ``x`` with all steps: the output, of merge mode None the pair."""
    if isinstance(layer, L.Bidirectional):
        clone = L.Bidirectional.from_config(layer.get_config())
    else:
        clone = type(layer).from_config({**layer.get_config(), "return_sequences": True})
    x = expected["x" if layer.get_weights()[0].shape[0] == I else "x_4"]
    clone.build(x.shape)
    clone.set_weights(layer.get_weights())
    output = clone(x)
    outputs = output if isinstance(output, (tuple, list)) else [output]
    for index, array in enumerate(outputs):
        expected[f"{key}|{index}"] = keras.ops.convert_to_numpy(array)


def every_kind() -> keras.Model:
    x = keras.Input((None, I), name="x")
    encoder = keras.Sequential([keras.Input((None, I)), L.LSTM(4, **ALL, name="lstm"), L.Dense(2)], name="encoder")
    decoder = keras.Sequential([keras.Input((None, I)), L.Dense(4), L.LSTM(4, **ALL, name="lstm")], name="decoder")
    parts = [
        L.LSTM(5, name="zeta"),  # names in another order than the running numbers of their classes
        L.LSTM(5, **ALL, use_bias=False, name="alpha"),
        L.LSTM(5, **ALL, go_backwards=True, name="backwards"),
        L.LSTM(5, **ALL, recurrent_activation="hard_sigmoid", activation="softsign", name="hard"),
        L.LSTM(5, **ALL, recurrent_activation="sigmoid", activation="relu", dropout=0.3, stateful=False, name="relu"),
        L.Bidirectional(L.LSTM(4, **ALL), name="both"),
        L.Bidirectional(L.LSTM(4, **ALL), merge_mode="sum", name="sum"),
        L.Bidirectional(L.LSTM(4, **ALL), merge_mode="mul", name="mul"),
        L.Bidirectional(L.LSTM(4, **ALL), merge_mode="ave", name="ave"),
        L.Bidirectional(L.LSTM(4, **ALL), merge_mode=None, name="pair"),
        L.Bidirectional(L.RNN(L.LSTMCell(4), **ALL), name="both_cells"),
        L.RNN(L.LSTMCell(5), **ALL, name="one_cell"),
        L.RNN([L.LSTMCell(4, name="low"), L.LSTMCell(4, name="high")], **ALL, name="cells"),
        L.GRU(4, name="gru"),
        L.Bidirectional(L.GRU(4), name="gru_both"),
        encoder,
        decoder,
    ]
    outputs = [part(x) for part in parts]
    frames = L.TimeDistributed(L.LSTM(4, name="inner"), name="frames")(L.Reshape((-1, 1, I))(x))
    return keras.Model(x, [*outputs, frames], name="every_kind")


LSTMS = ("zeta", "alpha", "backwards", "hard", "relu", "both", "sum", "mul", "ave", "pair", "both_cells", "one_cell", "cells")


@keras.saving.register_keras_serializable(package="golden")
class Subclassed(keras.Model):
    """Its configuration does not hold those of its layers."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.reader = L.LSTM(5, **ALL, name="reading")
        self.pair = [L.LSTMCell(4, name="first"), L.Bidirectional(L.LSTM(4, **ALL), name="second")]
        self.recurrent = L.RNN(self.pair[0], **ALL, name="steps")

    def call(self, x: object) -> object:
        return self.reader(x), self.recurrent(x), self.pair[1](x)


@keras.saving.register_keras_serializable(package="golden")
def squash(x: object) -> object:
    return keras.ops.tanh(x) * 0.9


@keras.saving.register_keras_serializable(package="golden")
class LSTM(L.LSTM):
    """Keras' name, another's code."""

    def call(self, sequences: object, initial_state: object = None, mask: object = None, training: bool = False) -> object:
        return -super().call(sequences, initial_state, mask, training)


def sequential(*layers: keras.layers.Layer) -> keras.Model:
    model = keras.Sequential([keras.Input((None, I)), *layers])
    randomize(model)
    return model


def keras2(file: str, parts: list[tuple[str, keras.layers.Layer]], *, with_config: bool) -> None:
    """The file of Keras 2 for a model of these layers; ``parts`` gives each layer's first name in the names of its weights."""
    with h5py.File(HERE / file, "w") as root:
        group = root.create_group("model_weights") if with_config else root
        for target in {root, group}:
            target.attrs["keras_version"], target.attrs["backend"] = "2.15.0", "tensorflow"
        configs = []
        group.attrs["layer_names"] = [b"x", *(layer.name.encode() for _, layer in parts)]
        group.create_group("x").attrs["weight_names"] = np.zeros(0)
        for number, (stem, layer) in enumerate(parts):
            config = layer.get_config()
            kind = type(layer).__name__
            names = []
            cells = [f"{stem}/lstm_cell_{number}"]
            if kind == "Bidirectional":
                cells = [f"{stem}/{way}_lstm/lstm_cell_{number}" for way in ("forward", "backward")]
            elif kind == "RNN":
                cells = [f"{stem}/stacked_rnn_cells/lstm_cell_{n}" for n in (8, 9)]
            values = layer.get_weights()
            if layer.name == "cudnn":  # each gate as cuDNN keeps it; the bias in two parts
                kind, cells = "CuDNNLSTM", [stem]
                kernel, recurrent, bias = values
                gates = [k.T.ravel().reshape(k.shape) for k in np.hsplit(kernel, 4)]
                half = np.round(bias * 64) / 128
                values = [
                    np.hstack(gates),
                    np.hstack([r.T for r in np.hsplit(recurrent, 4)]),
                    np.concatenate([half, bias - half]),
                ]
                config = {key: config[key] for key in ("name", "units", "return_sequences", "go_backwards")}
            for cell in cells:
                names += [f"{cell}/{leaf}:0" for leaf in ("kernel", "recurrent_kernel", "bias")]
            target = group.create_group(layer.name)
            target.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, values, strict=True):
                target[name] = value
            for extra in ("seed", "zero_output_for_mask", "quantization_config"):
                config.pop(extra, None)
            if kind not in ("Bidirectional", "RNN"):
                config["time_major"] = layer.name == "time_major"
            configs.append({"class_name": kind, "config": config, "name": layer.name, "inbound_nodes": []})
        if with_config:
            model = {"class_name": "Functional", "config": {"name": "model", "layers": configs}}
            root.attrs["model_config"] = json.dumps(model)


def main() -> None:
    keras.utils.set_random_seed(0)
    model = every_kind()
    randomize(model)
    model.save(HERE / "keras3.keras")
    model.save(HERE / "keras3.h5")
    model.save_weights(HERE / "keras3.weights.h5")
    for name in LSTMS:
        expect(f"keras3|{name}", model.get_layer(name))
    for name, index in (("encoder", 0), ("decoder", 1)):
        expect(f"keras3|{name}/lstm", model.get_layer(name).layers[index])
    expect("keras3|frames/inner", model.get_layer("frames").layer)

    model = Subclassed(name="subclassed")
    model(expected["x"])
    randomize(model)
    model.save(HERE / "keras3_subclassed.keras")
    for layer in (model.reader, model.recurrent, model.pair[1]):
        expect(f"keras3_subclassed|{layer.name}", layer)

    for dtype in ("float16", "bfloat16", "float64"):
        model = keras.Sequential([keras.Input((None, I)), L.LSTM(4, dtype=dtype, recurrent_initializer="zeros", name="lstm")])
        randomize(model)
        model.save_weights(HERE / f"keras3_{dtype}.weights.h5")
        for index, weight in enumerate(model.get_layer("lstm").weights):
            value = keras.ops.convert_to_numpy(weight)
            expected[f"{dtype}|{index}"] = value.astype(np.float64 if dtype == "float64" else np.float32)

    sequential(L.LSTM(4, activation=squash, name="custom")).save(HERE / "refused_activation.keras")
    sequential(LSTM(4, name="custom")).save(HERE / "refused_class.keras")
    sequential(L.LSTM(4, activation="gelu", name="gelu")).save(HERE / "refused_gelu.keras")

    plain = [
        ("lstm", L.LSTM(5, **ALL, name="plain")),
        ("lstm_2", L.LSTM(5, **ALL, name="cudnn")),
        ("bidirectional", L.Bidirectional(L.LSTM(4, **ALL), name="both")),
        ("rnn", L.RNN([L.LSTMCell(4), L.LSTMCell(4)], **ALL, name="cells")),
    ]
    hard = [("lstm_3", L.LSTM(5, **ALL, recurrent_activation="hard_sigmoid", name="hard"))]
    time_major = [("lstm_4", L.LSTM(5, **ALL, name="time_major"))]
    for _, layer in plain + hard + time_major:
        layer.build((None, None, I))
        layer.set_weights([rng.uniform(-0.7, 0.7, w.shape).astype(np.float32) for w in layer.get_weights()])
        if layer.name != "hard":  # which Keras 3 computes with another slope
            expect(f"keras2|{layer.name}", layer)
    keras2("keras2.h5", plain + hard + time_major, with_config=True)
    keras2("keras2_weights.h5", plain, with_config=False)
    for index, value in enumerate(hard[0][1].get_weights()):
        expected[f"hard|{index}"] = value

    np.savez_compressed(HERE / "keras_expected.npz", **expected)


if __name__ == "__main__":
    main()
