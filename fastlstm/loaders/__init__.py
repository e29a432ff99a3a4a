"""Weights that other frameworks stored, without those frameworks.

Nothing here executes or imports what a file names, and whatever its bytes, only FormatError or OSError is raised. How a source is
read, and what a format is, stands in ``reading.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm.arrays import as_flag
from fastlstm.errors import FormatError
from fastlstm.files import as_path, same_file
from fastlstm.loaders import reading
from fastlstm.loaders.found import Contents, LSTMInfo, listing, quoted, summary

if TYPE_CHECKING:
    from fastlstm.loaders.source import SourceFile
    from fastlstm.lstm import LSTM
    from fastlstm.models.graph import Graph
    from fastlstm.models.model import Model

__all__ = [
    "LSTMInfo",
    "convert",
    "from_flax",
    "from_haste",
    "from_keras",
    "from_onnx",
    "from_tensorflow",
    "from_torch",
    "load",
    "load_model",
    "scan",
]


def scan(path: str | os.PathLike[str], *, external_data: bool = False) -> list[LSTMInfo]:
    """List the LSTMs in a file, reading sizes and names only.

    Parameters
    ----------
    path : str or os.PathLike
    external_data : bool
        As for :func:`load`. Without it the LSTMs of an ONNX model whose weights lie in other files are listed with their sizes
        all the same, and with a ``problem``.

    Returns
    -------
    list of LSTMInfo
        In the order of the file; empty if there is none. One that cannot be loaded exactly says why in ``problem``.

    Raises
    ------
    FormatError
        If the file cannot be read, or if none of the LSTMs in it can be loaded; the message says why.
    TypeError
        If `path` is no path, or `external_data` is not a boolean.
    OSError
        If the file cannot be opened or read.
    ImportError
        If reading that format needs a package that is not installed; the message says which.
    """
    from fastlstm.loaders.source import opened

    with opened(path) as file:
        file.external_data = as_flag("external_data", external_data)
        return reading.contents_of(file).infos()


def load(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    batch_first: bool | None = None,
    layout: str | None = None,
    allow_nonfinite: bool = False,
    external_data: bool = False,
    go_backwards: bool | None = None,
    activation: str | None = None,
    recurrent_activation: str | None = None,
    merge_mode: str | None = None,
) -> LSTM:
    """Load an LSTM from a file.

    Parameters
    ----------
    path : str or os.PathLike
        A file written by ``torch.save`` (``.pt``, ``.pth``), safetensors, Keras 2 or 3 (``.keras``, ``.h5``, or weights only, see
        the last four arguments), ONNX, NumPy (``.npz``), Flax (``.msgpack``), Neural Amp Modeler (``.nam``), GuitarML or RTNeural
        (``.json``). The format is recognised by content, not by suffix.
    name : str, optional
        The name that :func:`scan` shows; needed if the file holds several LSTMs. PyTorch: the prefix of its tensors without the
        trailing dot; ``module.`` (DataParallel) and ``_orig_mod.`` (torch.compile) may be left out. ONNX: the name of its node,
        or of the first node if it has several layers. Keras: the layer's name, optionally with the names of the models around
        it (``"encoder/lstm"``). Flax, TensorFlow 1 and Haste: its path or scope. RTNeural: its position, ``"layers.0"``.
    batch_first : bool, optional
        Whether inputs are ``(B, T, I)``. By default what the file says (Keras, ONNX, fastlstm), or else the convention of the
        framework whose tensor names it has: True for Flax, Keras and TensorFlow 1, False for the others.
    layout : {"keras", "haste"}, optional
        The order of the gates in an npz or safetensors file with tensors named ``kernel`` and ``recurrent_kernel``. Keras and
        Haste both use these names, and the file does not say which it was. TensorFlow 1 variables are read with the defaults
        of :func:`from_tensorflow`; to change those, load the arrays yourself and pass them to it.
    allow_nonfinite : bool
        Accept NaN and infinity among the weights.
    external_data : bool
        ONNX only: read weights stored in separate files, where PyTorch's exporter puts them; see :func:`from_onnx`.
    go_backwards, activation, recurrent_activation, merge_mode : optional
        The arguments the Keras layer was created with, for files that do not record them: weights only (``.weights.h5``,
        ``save_weights``) and layers of a subclassed model. The defaults are Keras' own: False, "tanh", "sigmoid" and "concat".
        **If the layer was created with other values, leaving them out gives wrong numbers without an error.** Pass "linear" for
        an activation of None. For a ``merge_mode`` of None use "concat": the halves of its output are Keras' two outputs. If the
        version of Keras is unknown, write ``hard_sigmoid`` as "hard_sigmoid_keras2" (slope 1/5) or "hard_sigmoid_keras3" (1/6).
        Not accepted for files that do record these arguments.

    Returns
    -------
    LSTM

    Raises
    ------
    FormatError
        If the file cannot be read, holds no LSTM, holds several and no `name` is given, holds none of that name, or holds one
        that cannot be loaded exactly. The message names the file and the tensor, what was expected and what was found. A
        ``ValueError``. An LSTM that cannot be loaded counts here: without a `name`, the remaining one is not assumed to be meant.
    ValueError, TypeError
        If an argument has another value or type; the message names it.
    OSError
        If the file cannot be opened or read.
    ImportError
        If reading that format needs a package that is not installed; the message says which.
    """
    batch_first = reading.flag_or_none("batch_first", batch_first)
    arguments = reading.keras_arguments(
        go_backwards, activation=activation, recurrent_activation=recurrent_activation, merge_mode=merge_mode
    )
    weights, info = reading.read(path, name, allow_nonfinite, layout, external_data, arguments=arguments)
    return reading.made(weights, info, batch_first)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    name: str | None = None,
    *,
    batch_first: bool | None = None,
    layout: str | None = None,
    allow_nonfinite: bool = False,
    external_data: bool = False,
    go_backwards: bool | None = None,
    activation: str | None = None,
    recurrent_activation: str | None = None,
    merge_mode: str | None = None,
) -> LSTMInfo:
    """Write an LSTM of any readable file as a safetensors or npz file, which :func:`load` reads back exactly.

    Tensors have PyTorch's names; what differs from PyTorch's LSTM (other activations, peepholes, an initial state, a reverse
    direction, another ``merge_mode``) and ``batch_first`` are kept beside them. float16 and bfloat16 are widened to float32.

    Parameters
    ----------
    source : str or os.PathLike
    target : str or os.PathLike
        Ends with ``.safetensors`` or ``.npz``; replaced if it exists, and only when all is done.
    name, batch_first, layout, allow_nonfinite, external_data, go_backwards, activation, recurrent_activation, merge_mode
        As for :func:`load`.

    Returns
    -------
    LSTMInfo
        The LSTM as the source describes it, with the ``batch_first`` that was written.

    Raises
    ------
    FormatError
        As from :func:`load`. A ``ValueError``.
    ValueError, TypeError
        If `target` has another suffix or is the source, or an argument has another value or type; the message names it.
    OSError
        If a file cannot be read or written, or what is at `target` is not a regular file.
    ImportError
        If reading that format needs a package that is not installed; the message says which.
    """
    write, source = reading.writer("target", target), as_path("source", source)
    if same_file(source, os.fspath(target)):
        raise ValueError(f"target must be another file than source, got {source!r:.200} for both")
    batch_first = reading.flag_or_none("batch_first", batch_first)
    arguments = reading.keras_arguments(
        go_backwards, activation=activation, recurrent_activation=recurrent_activation, merge_mode=merge_mode
    )
    weights, info = reading.read(source, name, allow_nonfinite, layout, external_data, arguments=arguments)
    assert info is not None
    written = bool(info.batch_first) if batch_first is None else batch_first
    write(weights, written)
    return replace(info, batch_first=written)


def load_model(path: str | os.PathLike[str], *, allow_nonfinite: bool = False, external_data: bool = False) -> Model | Graph:
    """Load a whole small model: LSTMs and the layers around them, as a file describes it.

    The LSTMs keep all promises of :class:`LSTM`; a dense layer of more than 4096 weights is NumPy's product, whose last bits
    depend on how many rows and steps it is given.

    Parameters
    ----------
    path : str or os.PathLike
        A file of Neural Amp Modeler, GuitarML or RTNeural, a sequential or functional model of Keras 2 or 3 (``.keras``,
        ``.h5``), or an ONNX model; the content decides, not the suffix.
    allow_nonfinite : bool
        Accept NaN and infinity among the weights. The masks of an ONNX model, constants of zeros and infinity that are added or
        chosen, are no weights.
    external_data : bool
        Of an ONNX model: read weights that lie in other files, as :func:`from_onnx` does.

    Returns
    -------
    Model or Graph
        A :class:`fastlstm.models.model.Model`, to be called with arrays, or for ``stream()``. Of an ONNX model a
        :class:`fastlstm.models.graph.Graph`: it is called with the graph's inputs, in the order and the shapes of the file
        (``model.inputs``), gives its outputs, a tuple if they are several, and does not stream. LSTMs run in the engine, the
        operators of ``fastlstm.operators`` in NumPy; float16 runs as float32.

    Raises
    ------
    FormatError
        If the file cannot be read, or describes no whole model, or one with a layer that is not supported: the message names the
        first, and how to load the LSTM alone. A ``ValueError``.
    TypeError
        If `path` is no path, or a flag is not a boolean.
    OSError
        If the file cannot be opened or read.
    ImportError
        If reading that format needs a package that is not installed; the message says which.

    Notes
    -----
    A Keras model is ``batch_first`` and computes what Keras does at inference: dropout and noise do nothing, and masks, of an
    Embedding with ``mask_zero`` or of Masking, leave out steps. Every call begins anew, also where a layer is ``stateful``: a
    stream carries the state.
    """
    from fastlstm.loaders.source import opened

    allow_nonfinite, external_data = as_flag("allow_nonfinite", allow_nonfinite), as_flag("external_data", external_data)
    with opened(path) as file:
        file.external_data = external_data
        loader = reading.format_of(file)
        try:
            if not isinstance(loader, reading.ModelFormat):
                raise FormatError("the file holds weights but does not describe a whole model")
            model = loader.model(file)
        except ValueError as error:
            names = [item.name for item in loader.find(file).found if item.info and not item.info.problem]
            alone = f"; the LSTM alone: fastlstm.load(path, name={quoted(names[0])})" if names else ""
            if len(names) > 1:
                alone = f"; one of its LSTMs alone: fastlstm.load(path, name=...) with {listing(names, 5)}"
            raise FormatError(f"{error}{alone}") from None
        if not allow_nonfinite:
            for step in model.steps:
                for name, array in step.arrays():
                    reading.check_finite(name, array)
        return model


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
    from fastlstm.loaders.torch import module as torch_module

    return reading.chosen(torch_module.find(module_or_state_dict), name, batch_first)


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
    Any other mask is passed with time first, ``mask=mask.T``, whether the network is ``batch_first`` or not.
    """
    from fastlstm.loaders.keras import live as keras_live

    return reading.chosen(keras_live.find(layer_or_model), name, batch_first)


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
    from fastlstm.loaders.onnx import file as onnx_file

    batch_first = reading.flag_or_none("batch_first", batch_first)
    allow_nonfinite, external_data = as_flag("allow_nonfinite", allow_nonfinite), as_flag("external_data", external_data)

    def contents(file: SourceFile) -> Contents:
        if not onnx_file.recognises(file):
            raise FormatError("not an ONNX model; fastlstm.load reads other formats")
        return onnx_file.find(file)

    if isinstance(model_or_path, (str, os.PathLike)):
        weights, info = reading.read(model_or_path, name, allow_nonfinite, external_data=external_data, contents=contents)
    else:
        found = onnx_file.find_live(model_or_path).choose(name)
        weights, info = reading.weights_of(found, allow_nonfinite), found.info
    return reading.made(weights, info, batch_first)


def from_flax(params: Any, name: str | None = None, *, batch_first: bool | None = None) -> LSTM:
    """Take an LSTM from the parameters of a Flax model.

    Parameters
    ----------
    params : mapping, or flax.nnx.Module
        Variables of a ``linen`` model or the state of an ``nnx`` model: nested, or flat with keys such as ``"a/b/kernel"``,
        ``"a.b.kernel"`` or ``("a", "b", "kernel")``; NumPy or JAX arrays, also in ``nnx.Param``. It holds an ``LSTMCell`` or
        ``OptimizedLSTMCell``, alone or in an ``RNN``; an ``RNN`` pair in a ``Bidirectional`` is one network of two directions.
    name : str, optional
        Which LSTM: its path with slashes or dots, with or without the leading ``params`` and the trailing ``cell``. Needed if
        there are several.
    batch_first : bool, optional
        Whether inputs are ``(B, T, I)``; True by default, as in Flax.

    Returns
    -------
    LSTM
        With a copy of the weights. Of an ``nnx`` module activations, direction and order of axes are those it has; they are no
        parameters, and of those alone Flax's defaults are taken. The state is ``(h, c)`` here; a Flax carry is ``(c, h)``.

    Raises
    ------
    FormatError
        If there is no LSTM, or several and no name is given, or one that cannot be taken exactly. A ``ValueError``.
    TypeError
        If it is neither a mapping nor a module of ``flax.nnx``.
    """
    from fastlstm.loaders import flax_live

    return reading.chosen(flax_live.find(params), name, batch_first)


def from_tensorflow(
    variables: Mapping[str, Any],
    name: str | None = None,
    *,
    forget_bias: float | None = None,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
    batch_first: bool | None = None,
) -> LSTM:
    """Take an LSTM from the variables of a TensorFlow 1 graph.

    Parameters
    ----------
    variables : mapping of str to array
        Names such as ``"rnn/multi_rnn_cell/cell_0/basic_lstm_cell/kernel"``, with or without ``":0"``; an open npz file too.
        ``BasicLSTMCell``, ``LSTMCell`` (peepholes and projection included), ``LSTMBlockCell``, ``LSTMBlockFusedCell`` and
        ``CudnnCompatibleLSTMCell``.
        The cells of a ``MultiRNNCell`` are layers, ``fw`` and ``bw`` are directions.
    name : str, optional
        Which LSTM: the scope of the cell, the ``multi_rnn_cell`` or the ``bidirectional_rnn``. Needed if there are several, and
        for a cell whose scope has a name of its own.
    forget_bias : float, optional
        What the cell was made with: TensorFlow adds it at every step and does not store it. Here it is part of the bias. By
        default what TensorFlow's own code has: 0 of a ``cudnn_compatible_lstm_cell``, 1 of all others.
    cell_clip, proj_clip : float, optional
        What the cell was made with, not stored either. (The documentation of ``LSTMBlockCell`` says that cell_clip is 3 by
        default; its code clips only if asked.)
    batch_first : bool, optional
        Whether inputs are ``(B, T, I)``; True by default, as ``dynamic_rnn`` has them unless ``time_major``.

    Returns
    -------
    LSTM
        With a copy of the weights. The state is ``(h, c)`` here; TensorFlow's ``LSTMStateTuple`` is ``(c, h)``.

    Raises
    ------
    FormatError
        If there is no LSTM, or several and no name is given, or one that cannot be taken exactly. A ``ValueError``.
    ValueError, TypeError
        If it is no mapping, or an argument has another value or type; the message names it.
    """
    from fastlstm.cell import Cell
    from fastlstm.loaders import live, tensorflow_names

    if forget_bias is not None:
        if not isinstance(forget_bias, (int, float, np.number)):
            raise TypeError(f"forget_bias must be a number, got {forget_bias!r:.100}")
        if not np.isfinite(forget_bias):
            raise ValueError(f"forget_bias must be a finite number, got {forget_bias!r:.100}")
        forget_bias = float(forget_bias)
    tensors = live.flattened(reading.as_mapping("variables", variables))
    options = tensorflow_names.TensorFlowOptions(forget_bias, Cell(cell_clip=cell_clip, proj_clip=proj_clip))
    found = tensorflow_names.find(tensors, live.read_one, options=options, asked=name)
    return reading.chosen(Contents(found, summary("variables", tensors)), name, batch_first)


def from_haste(tensors: Mapping[str, Any], name: str | None = None, *, batch_first: bool | None = None) -> LSTM:
    """Take an LSTM from the state dict of a Haste layer.

    Parameters
    ----------
    tensors : mapping of str to tensor or array
        ``kernel``, ``recurrent_kernel`` and ``bias``, with the gates in the order i, g, f, o; an open npz file too.
    name : str, optional
        Which LSTM: the prefix of its tensors. Needed if there are several.
    batch_first : bool, optional
        Whether inputs are ``(B, T, I)``; False by default, as in Haste.

    Returns
    -------
    LSTM
        With a copy of the weights.

    Raises
    ------
    FormatError
        If there is no LSTM, or several and no name is given, or one that cannot be taken exactly. A ``ValueError``.
    TypeError
        If it is no mapping.
    """
    from fastlstm.loaders import kernel_names, live

    every = live.flattened(reading.as_mapping("tensors", tensors))
    found = kernel_names.find(every, live.read_one, batch_first=False, layout="haste")
    return reading.chosen(Contents(found, summary("a state dict", every)), name, batch_first)
