"""Weights that other frameworks stored, without those frameworks.

A format is one module with two functions, named in ``FORMATS``: ``recognises`` looks at the content of a file, ``find`` lists its
LSTMs. It is imported when a file is to be read. Nothing here executes or imports what a file names, and whatever its bytes, only
FormatError or OSError is raised.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders.found import Contents, Found, LSTMInfo, quoted
from fastlstm.weights import Weights

if TYPE_CHECKING:
    from fastlstm.loaders.source import SourceFile
    from fastlstm.lstm import LSTM

__all__ = ["LSTMInfo", "from_keras", "from_onnx", "from_torch", "load", "scan"]


# Modules of this package, asked in this order
FORMATS = ("safetensors_file", "keras_file", "torch_file", "onnx_file")


class Format(Protocol):
    """What such a module provides."""

    def recognises(self, file: SourceFile, /) -> bool: ...
    def find(self, file: SourceFile, /) -> Contents: ...


def scan(path: str | os.PathLike[str]) -> list[LSTMInfo]:
    """List the LSTMs in a file, reading sizes and names only.

    Parameters
    ----------
    path : str or os.PathLike
        As for :func:`load`.

    Returns
    -------
    list of LSTMInfo
        In the order of the file; empty if there is none.

    Raises
    ------
    FormatError
        If the file cannot be read, or holds an LSTM that cannot be loaded exactly; the message names the tensor.
    OSError
        If the system refuses.
    ImportError
        If reading that format needs a package that is not installed; the message says which.
    """
    from fastlstm.loaders.source import opened

    with opened(path) as file:
        return _contents(file).infos()


def load(
    path: str | os.PathLike[str], name: str | None = None, *, batch_first: bool | None = None, allow_nonfinite: bool = False
) -> LSTM:
    """Load an LSTM from a file.

    Parameters
    ----------
    path : str or os.PathLike
        A ``.pt``/``.pth`` file of ``torch.save``, a safetensors file, an ONNX model, a ``.keras`` or ``.h5`` file of Keras 2 or 3
        (weights alone too: then Keras' defaults are taken for activations and direction); the content decides, not the suffix.
    name : str, optional
        Which LSTM, as :func:`scan` names it; needed if there are several. PyTorch: the prefix of its tensors without the trailing
        dot; ``module.`` (DataParallel) and ``_orig_mod.`` (torch.compile) may be left out. ONNX: the name of its node, of the
        first one if the LSTM has several layers. Keras: the layer's name, inside another model with the names of those around
        it, ``"encoder/lstm"``; those may be left out.
    batch_first : bool, optional
        Whether inputs are ``(B, T, I)``; by default what the file says, True for Keras, else False.
    allow_nonfinite : bool
        Accept NaN and infinity among the weights.

    Returns
    -------
    LSTM

    Raises
    ------
    FormatError
        If the file cannot be read, or holds no LSTM, or several and no name is given, or none of that name, or one that cannot be
        loaded exactly. The message names the file and the tensor, what was expected and what was found. A ``ValueError``.
    OSError
        If the system refuses.
    ImportError
        If reading that format needs a package that is not installed; the message says which.
    """
    weights, info = _read(path, name, allow_nonfinite)
    return _made(weights, info, batch_first)


def from_torch(module_or_state_dict: Any, name: str | None = None, *, batch_first: bool | None = None) -> LSTM:
    """Take an LSTM from a live PyTorch module or a state dict.

    Parameters
    ----------
    module_or_state_dict : torch.nn.Module or mapping of str to tensor or array
        ``nn.LSTM``, ``nn.LSTMCell``, a module that contains one (scripted modules too), or a state dict, also nested in others.
    name : str, optional
        Which LSTM: the path of the module, the prefix in the state dict. Needed if there are several.
    batch_first : bool, optional
        By default that of the module; False for cells and state dicts.

    Returns
    -------
    LSTM
        With a copy of the weights.

    Raises
    ------
    FormatError
        If there is no LSTM, or several and no name is given, or one that cannot be taken exactly. A ``ValueError``.
    TypeError
        If it is neither a module nor a mapping.
    """
    from fastlstm.loaders import torch_module

    found = torch_module.find(module_or_state_dict).choose(name)
    return _made(_weights(found, allow_nonfinite=True), found.info, batch_first)


def from_onnx(
    model_or_path: Any,
    name: str | None = None,
    *,
    batch_first: bool | None = None,
    allow_nonfinite: bool = False,
    external_data: bool = False,
) -> LSTM:
    """Take an LSTM from an ONNX model.

    Its weights are initializers, constants, or what simple operators make of those; inside If, Loop and Scan too. Nodes that an
    exporter wrote for one network of several layers are one LSTM, as are nodes with the same weights. Constant initial states
    that are not zero become the LSTM's own; those computed from the model's inputs are yours to pass. Weights of
    ``com.microsoft.DynamicQuantizeLSTM`` are dequantized to float32.

    Parameters
    ----------
    model_or_path : onnx.ModelProto, str or os.PathLike
    name : str, optional
        Which LSTM: the name of its node, or of the first node if it has several layers, or of an output of that where it has no
        name; the prefix of its weights, if PyTorch's exporter took the cell apart. Needed if there are several.
    batch_first : bool, optional
        By default what the node's ``layout`` says: False for 0, True for 1.
    allow_nonfinite : bool
        Accept NaN and infinity among the weights.
    external_data : bool
        Read weights that lie in other files, if those are in the folder of the model or below; links are not followed.

    Returns
    -------
    LSTM
        With a copy of the weights.

    Raises
    ------
    FormatError
        If it cannot be read, or holds no LSTM, or several and no name is given, or one that cannot be taken exactly. The message
        names the node and the tensor. A ``ValueError``.
    TypeError
        If it is neither a model nor a path.
    ImportError
        If the onnx package is missing.

    References
    ----------
    https://onnx.ai/onnx/operators/onnx__LSTM.html
    """
    from fastlstm.loaders import onnx_file

    def contents(file: SourceFile) -> Contents:
        if not onnx_file.recognises(file):
            raise FormatError("not an ONNX model; fastlstm.load reads other formats")
        return onnx_file.find(file, external_data)

    if isinstance(model_or_path, (str, os.PathLike)):
        weights, info = _read(model_or_path, name, allow_nonfinite, contents)
    else:
        found = onnx_file.find_live(model_or_path).choose(name)
        weights, info = _weights(found, allow_nonfinite), found.info
    return _made(weights, info, batch_first)


def from_keras(layer_or_model: Any, name: str | None = None, *, batch_first: bool | None = None) -> LSTM:
    """Take an LSTM from a live Keras layer or model.

    Parameters
    ----------
    layer_or_model : keras.layers.Layer
        ``LSTM``, ``Bidirectional``, ``RNN`` of an ``LSTMCell`` or of several, or a model that contains one; built.
    name : str, optional
        Which LSTM: the layer's name, inside another model with the names of those around it, ``"encoder/lstm"``; those may be
        left out. Needed if there are several.
    batch_first : bool, optional
        True unless the layer is ``time_major``.

    Returns
    -------
    LSTM
        With a copy of the weights. It gives what the layer gives with ``return_sequences`` and ``return_state``: all steps (with
        ``go_backwards`` in the order of processing), and the state after the last.

    Raises
    ------
    FormatError
        If there is no LSTM, or several and no name is given, or one that cannot be taken exactly. A ``ValueError``.
    TypeError
        If it is no Keras layer.

    Notes
    -----
    A mask in Keras that is true for the first steps of each row and false for the rest (padding on the right) is
    ``lengths=mask.sum(axis=1)``. Final states are then the same, and the outputs of real steps; in the padding, outputs here are
    zero, as with ``zero_output_for_mask`` and as Bidirectional has them, where other layers of Keras repeat the last real one.
    Other masks cannot be expressed.
    """
    from fastlstm.loaders import keras_live

    found = keras_live.find(layer_or_model).choose(name)
    return _made(_weights(found, allow_nonfinite=True), found.info, batch_first)


def _contents(file: SourceFile) -> Contents:
    from fastlstm.loaders.sniff import describe

    for name in FORMATS:
        loader = cast(Format, import_module(f"{__name__}.{name}"))
        if loader.recognises(file):
            return loader.find(file)
    raise FormatError(describe(file))


def _read(
    path: str | os.PathLike[str],
    name: str | None,
    allow_nonfinite: bool,
    contents: Callable[[SourceFile], Contents] = _contents,
) -> tuple[Weights, LSTMInfo | None]:
    """Whatever was noted of the file is forgotten when this returns: the network takes memory next."""
    from fastlstm.loaders.source import opened

    with opened(path) as file:
        found = contents(file).choose(name)
        return _weights(found, allow_nonfinite), found.info


def _weights(found: Found, allow_nonfinite: bool = False) -> Weights:
    assert found.read is not None, "choose() returns what can be read"
    try:
        weights = found.read()
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(f"{quoted(found.name)}: {error}") from error
    if not allow_nonfinite:
        _check_finite(weights, found.name)
    return weights


def _check_finite(weights: Weights, name: str) -> None:
    for tensor_name, tensor in weights.named_tensors():
        with np.errstate(invalid="ignore"):
            extremes = tensor.min(), tensor.max()  # both NaN if any is; needs no array of booleans
        if not np.isfinite(extremes).all():
            count = int(tensor.size - np.isfinite(tensor).sum())
            raise FormatError(
                f"{tensor_name} of LSTM {quoted(name)} holds {count} values that are NaN or infinite; "
                "pass allow_nonfinite=True to load them as they are"
            )


def _made(weights: Weights, info: LSTMInfo | None, batch_first: bool | None) -> LSTM:
    from fastlstm.lstm import LSTM

    if batch_first is None:
        batch_first = bool(info is not None and info.batch_first)
    try:
        return LSTM.from_weights(weights, batch_first)
    except ValueError as error:  # what is understood but cannot be run
        raise FormatError(str(error)) from error
