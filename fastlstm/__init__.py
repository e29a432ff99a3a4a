"""fastlstm: fast, exactly reproducible LSTM networks on CPUs.

>>> lstm = fastlstm.load("model.safetensors")  # or from_torch(module), from_keras(model), from_onnx(path), LSTM(64, 128)
>>> output, (h_n, c_n) = lstm(x)  # x: (T, B, I), or (B, T, I) if batch_first
>>> stream = lstm.stream()  # step by step: the same bits
>>> y_t = stream.step(x_t)
>>> tape = lstm.record(x)  # training
>>> grads = tape.backward(d_output)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import_module("fastlstm._engine")
except ModuleNotFoundError as error:
    if error.name != "fastlstm._engine":
        raise
    raise ImportError(
        f"{__path__[0]} holds sources that are not compiled. To use the installed package, start Python in another folder or as "
        "python -I; to use these sources, run: python setup.py build_ext --inplace"
    ) from None

from fastlstm.config import show_config
from fastlstm.errors import FormatError
from fastlstm.isa import available_isas, isa
from fastlstm.lstm import LSTM
from fastlstm.rnn import RNN
from fastlstm.stream import Stream
from fastlstm.tape import Gradients, Tape
from fastlstm.threads import get_num_threads, set_num_threads
from fastlstm.weights import LayerWeights, Weights

if TYPE_CHECKING:
    from fastlstm.loaders import (
        LSTMInfo,
        convert,
        from_flax,
        from_haste,
        from_keras,
        from_onnx,
        from_tensorflow,
        from_torch,
        load,
        load_model,
        scan,
    )

__version__ = "0.1.0"

__all__ = [
    "LSTM",
    "RNN",
    "FormatError",
    "Gradients",
    "LSTMInfo",
    "LayerWeights",
    "Stream",
    "Tape",
    "Weights",
    "__version__",
    "available_isas",
    "convert",
    "from_flax",
    "from_haste",
    "from_keras",
    "from_onnx",
    "from_tensorflow",
    "from_torch",
    "get_num_threads",
    "isa",
    "load",
    "load_model",
    "scan",
    "set_num_threads",
    "show_config",
]


def __getattr__(name: str) -> Any:
    """The loaders, imported when first used: reading files takes more of the standard library than running networks."""
    if name in __all__:  # asked only for what is not there yet
        from fastlstm import loaders

        return getattr(loaders, name)
    raise AttributeError(f"module 'fastlstm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
