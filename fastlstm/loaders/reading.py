"""How a source is read: which format a file has, which LSTM of it is meant, and what the caller said.

A format is one module with two functions, named in ``FORMATS``: ``recognises`` looks at the content of a file, ``find`` lists its
LSTMs; a third, ``model``, is there if the format describes whole models. A module is imported when a file is to be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np

from fastlstm.arrays import as_flag
from fastlstm.errors import FormatError
from fastlstm.files import as_path
from fastlstm.loaders import shards
from fastlstm.loaders.found import Contents, Found, LSTMInfo, quoted
from fastlstm.weights import MERGE_MODES, Weights

if TYPE_CHECKING:
    from fastlstm.loaders.keras.config import KerasArguments
    from fastlstm.loaders.source import SourceFile
    from fastlstm.lstm import LSTM
    from fastlstm.models.graph import Graph
    from fastlstm.models.model import Model

__all__ = [
    "FORMATS",
    "Format",
    "ModelFormat",
    "as_mapping",
    "check_finite",
    "chosen",
    "contents_of",
    "flag_or_none",
    "format_of",
    "keras_arguments",
    "made",
    "read",
    "read_rnn",
    "weights_of",
    "writer",
]


# Modules of this package, asked in this order: of those that are zip files, the one that says least of itself comes last
FORMATS = (
    "safetensors_file",
    "keras.file",
    "torch.file",
    "npz_file",
    "onnx.file",
    "flax_file",
    "nam_file",
    "guitarml_file",
    "rtneural_file",
)
OF_OTHERS = (".onnx", ".pt", ".pth", ".h5", ".keras", ".json", ".nam", ".msgpack")  # suffixes that `save` would belie
PLAIN_TENSORS = ("safetensors_file", "npz_file")  # those that layout= is for


class Format(Protocol):
    """What such a module provides."""

    def recognises(self, file: SourceFile, /) -> bool: ...
    def find(self, file: SourceFile, /) -> Contents: ...


@runtime_checkable
class ModelFormat(Format, Protocol):
    """What one provides that describes whole models."""

    def model(self, file: SourceFile, /) -> Model | Graph: ...


def format_of(file: SourceFile) -> Format:
    """The first that recognises the file; what the caller said of a source is not for every one."""
    from fastlstm.loaders.sniff import describe

    for name in FORMATS:
        loader = cast(Format, import_module(f"fastlstm.loaders.{name}"))
        if loader.recognises(file):
            if file.layout is not None and name not in PLAIN_TENSORS:
                raise FormatError(f"layout={file.layout!r} applies only to npz and safetensors files")
            if file.keras_arguments is not None and name != "keras.file":
                raise FormatError(f"{', '.join(file.keras_arguments.names())}: only for Keras files")
            return loader
    raise FormatError(describe(file))


def contents_of(file: SourceFile) -> Contents:
    return shards.mark_incomplete(format_of(file).find(file), file.path)


def read(
    path: str | os.PathLike[str],
    name: str | None,
    allow_nonfinite: bool,
    layout: str | None = None,
    external_data: bool = False,
    contents: Callable[[SourceFile], Contents] = contents_of,
    arguments: KerasArguments | None = None,
) -> tuple[Weights, LSTMInfo | None]:
    """Whatever was noted of the file is forgotten when this returns: the network takes memory next."""
    from fastlstm.loaders.source import opened, return_freed

    allow_nonfinite = as_flag("allow_nonfinite", allow_nonfinite)
    if layout is not None:
        from fastlstm.loaders.kernel_names import LAYOUTS

        if layout not in [*LAYOUTS]:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)} or None, got {layout!r:.100}")
    with opened(path, layout) as file:
        file.external_data, file.keras_arguments = as_flag("external_data", external_data), arguments
        found = contents(file).choose(name)
        weights, info = weights_of(found, allow_nonfinite), found.info
    size = file.size
    del file, found
    return_freed(size)
    return weights, info


def read_rnn(path: str | os.PathLike[str], allow_nonfinite: bool) -> tuple[Weights, bool]:
    """What :meth:`RNN.save` wrote, and whether it is batch-first."""
    from fastlstm.loaders.source import opened

    allow_nonfinite = as_flag("allow_nonfinite", allow_nonfinite)
    with opened(path) as file:
        contents = contents_of(file)
        found = [item for item in contents.found if item.read and not item.is_lstm]
        if len(found) != 1:
            raise FormatError(f"not what RNN.save writes: {contents.summary}; for an LSTM: fastlstm.load")
        weights, info = weights_of(found[0], allow_nonfinite), found[0].info
    return weights, bool(info and info.batch_first)


def weights_of(found: Found, allow_nonfinite: bool = False) -> Weights:
    assert found.read is not None, "choose() returns what can be read"
    try:
        weights = found.read()
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(f"{quoted(found.name)}: {error}") from error
    if not allow_nonfinite:
        for name, tensor in weights.named_tensors():
            check_finite(f"{name} of LSTM {quoted(found.name)}", tensor)
    return weights


def check_finite(name: str, tensor: np.ndarray[Any, np.dtype[Any]]) -> None:
    if not tensor.size:
        return
    with np.errstate(invalid="ignore"):
        extremes = tensor.min(), tensor.max()  # both NaN if any is; needs no array of booleans
    if not np.isfinite(extremes).all():
        count = int(tensor.size - np.isfinite(tensor).sum())
        raise FormatError(f"{name} holds {count} NaN or infinite values; pass allow_nonfinite=True to load them as they are")


def chosen(contents: Contents, name: str | None, batch_first: bool | None) -> LSTM:
    """What a caller holds in memory is taken as it is, NaN too."""
    batch_first, found = flag_or_none("batch_first", batch_first), contents.choose(name)
    return made(weights_of(found, allow_nonfinite=True), found.info, batch_first)


def made(weights: Weights, info: LSTMInfo | None, batch_first: bool | None) -> LSTM:
    from fastlstm.lstm import LSTM

    if batch_first is None:
        batch_first = bool(info is not None and info.batch_first)
    try:
        return LSTM.from_weights(weights, batch_first)
    except ValueError as error:  # what is understood but cannot be run
        raise FormatError(str(error)) from error


def keras_arguments(go_backwards: bool | None, **layer: str | None) -> KerasArguments | None:
    """What the caller says of a layer of Keras; None if that is nothing."""
    if go_backwards is None and all(value is None for value in layer.values()):
        return None
    from fastlstm.loaders.keras.config import KerasArguments

    for key, value in layer.items():
        if not isinstance(value, (str, type(None))):
            raise TypeError(f"{key} must be str or None, got {value!r:.100}")
    if layer["merge_mode"] not in (*MERGE_MODES, None):
        raise ValueError(f"merge_mode must be one of {', '.join(MERGE_MODES)} or None, got {layer['merge_mode']!r:.100}")
    return KerasArguments(None if go_backwards is None else as_flag("go_backwards", go_backwards), **layer)


def flag_or_none(name: str, value: Any) -> bool | None:
    return None if value is None else as_flag(name, value)


def as_mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        given = f"{type(value).__name__} (for a file: fastlstm.load)"
        raise TypeError(f"{name} must be a mapping of names to arrays, got {given}")
    return value


def writer(name: str, path: str | os.PathLike[str], otherwise: str | None = None) -> Callable[[Weights, bool], None]:
    """What writes weights, and whether they are batch-first, to `path` as its suffix says; `name` is that of the argument.

    Raises
    ------
    ValueError
        If it has another suffix, and there is no form to take `otherwise`, or it is that of another format.
    TypeError
        If it is no path.
    """
    from fastlstm.loaders.npz_file import write_npz
    from fastlstm.loaders.safetensors_file import write_safetensors

    writers = {".safetensors": write_safetensors, ".npz": write_npz}
    text = as_path(name, path)
    suffix = os.path.splitext(text)[1].lower()
    if suffix not in writers and otherwise is None:
        raise ValueError(f"{name} must end with {' or '.join(writers)}, got {text!r:.200}")
    if suffix in OF_OTHERS:
        advice = "; to_onnx writes ONNX models" if suffix == ".onnx" else ""
        ours = " or ".join(writers)
        raise ValueError(f"{name} must not end with {suffix}, as save writes {ours}, got {text!r:.200}{advice}")
    return partial(writers[suffix if suffix in writers else f".{otherwise}"], text)
