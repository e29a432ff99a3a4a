"""fastlstm: fast, exactly reproducible LSTM networks on CPUs."""

from fastlstm.errors import FormatError
from fastlstm.isa import available_isas, isa
from fastlstm.lstm import LSTM
from fastlstm.stream import Stream
from fastlstm.threads import get_num_threads, set_num_threads
from fastlstm.weights import LayerWeights, Weights

__version__ = "0.1.0"

__all__ = [
    "LSTM",
    "FormatError",
    "LayerWeights",
    "Stream",
    "Weights",
    "__version__",
    "available_isas",
    "get_num_threads",
    "isa",
    "set_num_threads",
]
