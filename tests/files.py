"""Files as other programs write them, from numbers of our own; and golden ones with something changed."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Edit = Callable[[Any], None]


def values(seed: int, *shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)


# ---- Guitar amplifiers -----------------------------------------------------------------------------------------------------


def nam(I: int = 1, H: int = 4, L: int = 2, outputs: int = 1, **changes: Any) -> dict[str, Any]:
    """A .nam file as the trainer exports it."""
    count = sum(4 * H * (inputs + H) + 6 * H for inputs in (I, *[H] * (L - 1))) + outputs * (H + 1)
    config = {"input_size": I, "hidden_size": H, "num_layers": L} | ({"out_channels": outputs} if outputs > 1 else {})
    content = {
        "version": "0.5.4",
        "metadata": {"name": 'an "amp" \u00e9', "loudness": -37.8, "training": {"valid": [True, None, 1, -2.5e-3]}},
        "architecture": "LSTM",
        "config": config,
        "weights": values(0, count).tolist(),
        "sample_rate": 48000,
    }
    return content | changes


def guitarml(I: int = 1, H: int = 4, L: int = 2, outputs: int = 1, **declared: Any) -> dict[str, Any]:
    """A file as ``SimpleRNN.save_model`` writes it."""
    tensors = {}
    for layer in range(L):
        tensors |= {
            f"rec.weight_ih_l{layer}": values(layer, 4 * H, H if layer else I),
            f"rec.weight_hh_l{layer}": values(layer + 10, 4 * H, H),
            f"rec.bias_ih_l{layer}": values(layer + 20, 4 * H),
            f"rec.bias_hh_l{layer}": values(layer + 30, 4 * H),
        }
    tensors |= {"lin.weight": values(40, outputs, H), "lin.bias": values(41, outputs)}
    data = {
        "model": "SimpleRNN",
        "input_size": I,
        "skip": 1,
        "output_size": outputs,
        "unit_type": "LSTM",
        "num_layers": L,
        "hidden_size": H,
        "bias_fl": True,
    }
    return {"model_data": data | declared, "state_dict": {name: tensor.tolist() for name, tensor in tensors.items()}}


def rtneural(I: int = 1, H: int = 4, **changes: Any) -> dict[str, Any]:
    """A file as ``model_utils.save_model`` writes it: dense, LSTM, dense."""

    def layer(kind: str, size: int, activation: str, *weights: np.ndarray) -> dict[str, Any]:
        return {"type": kind, "activation": activation, "shape": [None, None, size], "weights": [w.tolist() for w in weights]}

    layers = [
        layer("time-distributed-dense", 3, "tanh", values(0, I, 3), values(1, 3)),
        layer("lstm", H, "tanh", values(2, 3, 4 * H), values(3, H, 4 * H), values(4, 4 * H)),
        layer("dense", 2, "", values(5, H, 2), values(6, 2)),
    ]
    return {"in_shape": [None, None, I], "layers": layers} | changes


def write_json(path: Path, content: Any, **options: Any) -> Path:
    path.write_text(json.dumps(content, **options))
    return path


# ---- Flax and TensorFlow ---------------------------------------------------------------------------------------------------


def linen(I: int = 3, H: int = 5, seed: int = 0) -> dict[str, Any]:
    """The tree of an ``LSTMCell``."""
    inputs = {f"i{gate}": {"kernel": values(seed + k, I, H)} for k, gate in enumerate("ifgo")}
    hidden = {
        f"h{gate}": {"kernel": values(seed + k + 4, H, H), "bias": values(seed + k + 8, H)} for k, gate in enumerate("ifgo")
    }
    return inputs | hidden


def tensorflow_cell(
    scope: str, inputs: int = 3, hidden: int = 5, seed: int = 0, *, peepholes: bool = False, proj: int = 0
) -> dict[str, np.ndarray]:
    """The variables of one cell."""
    result = {"kernel": values(seed, inputs + (proj or hidden), 4 * hidden), "bias": values(seed + 1, 4 * hidden)}
    if peepholes:
        result |= {f"w_{gate}_diag": values(seed + 2 + k, hidden) for k, gate in enumerate("fio")}
    if proj:
        result["projection/kernel"] = values(seed + 5, hidden, proj)
    return {f"{scope}/{name}" if scope else name: value for name, value in result.items()}


# ---- Keras -----------------------------------------------------------------------------------------------------------------


def edited(path: Path, h5: Edit | None = None, **texts: Edit | bytes | None) -> bytes:
    """A ``.keras`` file with its weights or the JSON of a member changed; a member of None is left out."""
    import h5py as library

    result = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            change = texts.get(name.split(".")[0], b"")
            if name.endswith(".h5") and h5:
                stream = io.BytesIO(data)
                with library.File(stream, "r+") as file:
                    h5(file)
                data = stream.getvalue()
            elif callable(change):
                value = json.loads(data)
                change(value)
                data = json.dumps(value).encode()
            elif change is not None and change:
                data = change
            if change is not None:
                new.writestr(name, data)
    return result.getvalue()


def edited_h5(path: Path, change: Edit) -> bytes:
    import h5py as library

    stream = io.BytesIO(path.read_bytes())
    with library.File(stream, "r+") as file:
        change(file)
    return stream.getvalue()


def without_names(file: Any) -> None:
    file.visititems(lambda _, item: item.attrs.pop("name", None) and None)


def with_old_container(file: Any) -> None:
    without_names(file)
    file.move("layers", "_layer_checkpoint_dependencies")
