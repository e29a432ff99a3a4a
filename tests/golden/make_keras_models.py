"""Makes the golden files of whole Keras models in this folder, and the values Keras gives for them.

Run ``python tests/golden/make_keras_models.py``; made with keras 3.15.1 on torch 2.13.0 (CPU), h5py 3.16.0. ``keras2_model.h5``
is not Keras 2's own work: it is written here with h5py as its source writes it (``save_model_to_hdf5`` and ``get_network_config``
of tf_keras), with the weights of the same model. The tests read the files without Keras.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import h5py
import keras
import numpy as np
from keras import layers as L

HERE = Path(__file__).parent
T, WORDS = 6, 9
rng = np.random.default_rng(20261122)
ALL = {"return_sequences": True}


def tagger() -> keras.Model:
    """Masked words through two directions, an inner model beside them, and one layer of most kinds."""
    words = keras.Input((T,), name="words")
    x = L.Embedding(WORDS, 3, mask_zero=True, name="embedding")(words)
    both = L.Bidirectional(L.LSTM(2, **ALL), name="both")(x)
    frames = L.TimeDistributed(L.Dense(4, activation="relu"), name="frames")(x)
    x = L.Add(name="add")([both, frames])
    x = L.LayerNormalization(name="norm")(x)
    x = L.Dropout(0.5, name="drop")(x)
    x = L.LSTM(3, name="lstm")(x)
    x = L.RepeatVector(2, name="repeat")(x)
    inner = keras.Sequential([keras.Input((2, 3)), L.LSTM(2, **ALL, name="lstm"), L.Dense(3, name="dense")], name="inner")
    x = L.Concatenate(name="beside")([inner(x), x])
    x = L.LeakyReLU(negative_slope=0.3, name="leaky")(x)
    x = L.Flatten(name="flat")(x)
    return keras.Model(words, L.Dense(2, activation="softmax", name="input")(x), name="tagger")  # a name that is our own, too


def stream() -> keras.Model:
    return keras.Sequential([keras.Input((5, 2)), L.LSTM(3, **ALL), L.Dropout(0.1), L.LSTM(2, **ALL), L.Dense(1)])


def randomize(model: keras.Model) -> None:
    model.set_weights([rng.uniform(-0.7, 0.7, w.shape).astype(np.float32) for w in model.get_weights()])


def save(model: keras.Model, file: str) -> None:
    """Keras' archive, deflated: most of a small HDF5 file is zeros."""
    model.save(HERE / file)
    with zipfile.ZipFile(HERE / file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(HERE / file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)


def as_keras_2(entry: dict[str, Any]) -> dict[str, Any]:
    """A layer's configuration in the words of Keras 2."""
    config = {
        key: value for key, value in entry["config"].items() if key not in ("optional", "quantization_config", "build_config")
    }
    if entry["class_name"] == "InputLayer":
        config["batch_input_shape"] = config.pop("batch_shape")
    if entry["class_name"] == "LeakyReLU":
        config["alpha"] = config.pop("negative_slope")
    if entry["class_name"] in ("LSTM", "TimeDistributed", "Bidirectional"):
        config.pop("seed", None)
    if "layer" in config:
        config["layer"] = as_keras_2(config["layer"])
    if "layers" in config:
        config = {"name": config["name"], "layers": [as_keras_2(layer) for layer in config["layers"]]}
    result = {"class_name": entry["class_name"], "config": config}
    nodes = entry.get("inbound_nodes")
    if nodes is not None:
        (args,) = nodes[0]["args"] if nodes else ([],)
        tensors = args if isinstance(args, list) else [args]
        # The nodes of a model that is a layer begin with its own
        made = [tensor["config"]["keras_history"] for tensor in tensors]
        result |= {
            "name": entry["name"],
            "inbound_nodes": [[[name, int(name == "inner"), 0, {}] for name, _, _ in made]] if made else [],
        }
    return result


def keras_2(model: keras.Model, file: str) -> None:
    config = json.loads(model.to_json())["config"]
    layers = [as_keras_2(layer) for layer in config["layers"] if layer["module"] != "keras.src.ops.numpy"]
    described = {"name": "tagger", "layers": layers, "input_layers": [["words", 0, 0]], "output_layers": [["input", 0, 0]]}
    with h5py.File(HERE / file, "w") as root:
        root.attrs["keras_version"], root.attrs["backend"] = "2.15.0", "tensorflow"
        root.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": described})
        group = root.create_group("model_weights")
        group.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            names = [variable.path.removeprefix(f"{layer.name}/") for variable in layer.weights]
            if layer.name != "inner":
                names = [f"{layer.name}/{name}" for name in names]
            target = group.create_group(layer.name)
            target.attrs["weight_names"] = [f"{name}:0".encode() for name in names]
            for name, value in zip(names, layer.get_weights(), strict=True):
                target[f"{name}:0"] = value


def main() -> None:
    keras.utils.set_random_seed(0)
    model = tagger()
    randomize(model)
    words = rng.integers(1, WORDS, (4, T))
    words[0, 4:] = words[1, :2] = words[2] = 0
    y = keras.ops.convert_to_numpy(model(words))
    save(model, "keras3_model.keras")
    keras_2(model, "keras2_model.h5")
    chain = stream()
    randomize(chain)
    x = rng.standard_normal((2, 5, 2)).astype(np.float32)
    save(chain, "keras3_stream.keras")
    stream_y = keras.ops.convert_to_numpy(chain(x))
    np.savez_compressed(HERE / "keras_model_expected.npz", x=words, y=y, stream_x=x, stream_y=stream_y)


if __name__ == "__main__":
    main()
