"""Write what Keras 2 and TensorFlow 1's cells give: ``keras215*`` (four files), ``tensorflow1.npz`` and
``tensorflow_expected.npz``.

Run ``python tests/golden/make_tensorflow.py``; made with tensorflow-cpu 2.15.1 and its Keras 2.15.0 on Python 3.11.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow import keras

HERE = Path(__file__).parent
v1 = tf.compat.v1
X = np.random.default_rng(1).normal(size=(2, 6, 3)).astype(np.float32)  # (B, T, I)


def keras_2(expected: dict[str, np.ndarray]) -> None:
    """One model with a layer of each kind, all on the same input, in the three formats that Keras 2.15 writes."""
    keras.utils.set_random_seed(2)
    layers = keras.layers
    everything = {"return_sequences": True, "bias_initializer": "glorot_uniform"}
    kinds = [
        layers.LSTM(5, name="plain", **everything),
        layers.LSTM(5, name="hard", recurrent_activation="hard_sigmoid", **everything),
        layers.LSTM(4, name="backwards", go_backwards=True, use_bias=False, return_sequences=True),
        layers.Bidirectional(layers.LSTM(4, **everything), name="both"),
        layers.Bidirectional(layers.LSTM(4, **everything), merge_mode="ave", name="ave"),
        layers.RNN([layers.LSTMCell(4), layers.LSTMCell(4)], return_sequences=True, name="cells"),
    ]
    x = keras.Input((6, 3), name="x")
    model = keras.Model(x, [layer(x) for layer in kinds])
    for layer, output in zip(kinds, model.predict(X, verbose=0), strict=True):
        expected[f"keras|{layer.name}"] = output
    model.save(HERE / "keras215.h5")
    model.save(HERE / "keras215.keras")
    model.save_weights(HERE / "keras215.weights.h5")


def masks(expected: dict[str, np.ndarray]) -> None:
    """A whole model with masks, which stand in its file as Keras 2 writes them."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(9, 3, mask_zero=True),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.LSTM(3),
            layers.Dense(2, activation="softmax"),
        ]
    )
    words = np.array([[1, 2, 0, 0, 3, 0], [0, 4, 5, 6, 7, 8], [0] * 6], np.int32)
    expected["masks|x"], expected["masks|y"] = words, model.predict(words, verbose=0)
    model.save(HERE / "keras215_masks.h5")


def tensorflow_1(expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The variables of a graph with a cell of each kind."""
    cells = v1.nn.rnn_cell
    kinds = {
        "basic": cells.BasicLSTMCell(4),
        "basic_forget": cells.BasicLSTMCell(4, forget_bias=0.0),
        "peepholes": cells.LSTMCell(4, use_peepholes=True),
        "projected": cells.LSTMCell(5, num_proj=2, use_peepholes=True, cell_clip=0.3, proj_clip=0.1),
        "multi": cells.MultiRNNCell([cells.LSTMCell(4), cells.LSTMCell(4)]),
    }
    with v1.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(4)
        x = v1.placeholder(tf.float32, X.shape)
        outputs = {}
        uniform = v1.random_uniform_initializer(-1, 1)
        for scope, cell in kinds.items():
            outputs[scope] = v1.nn.dynamic_rnn(cell, x, dtype=tf.float32, scope=v1.VariableScope(False, scope, uniform))[0]
        with v1.variable_scope("both", initializer=uniform):
            pair = v1.nn.bidirectional_dynamic_rnn(cells.LSTMCell(4), cells.LSTMCell(4), x, dtype=tf.float32)[0]
        outputs["both"] = tf.concat(pair, -1)
        session.run(v1.global_variables_initializer())
        for scope, output in session.run(outputs, {x: X}).items():
            expected[f"tensorflow|{scope}"] = output
        variables = v1.global_variables()
        return {variable.name: value for variable, value in zip(variables, session.run(variables), strict=True)}


def main() -> None:
    expected: dict[str, np.ndarray] = {"x": X}
    keras_2(expected)
    masks(expected)
    np.savez(HERE / "tensorflow1.npz", **tensorflow_1(expected))
    np.savez(HERE / "tensorflow_expected.npz", **expected)
    for name, value in expected.items():
        print(name, value.shape)


if __name__ == "__main__":
    main()
