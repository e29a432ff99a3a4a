"""Safetensors files: a header in JSON, then the tensors' bytes. Also what ``LSTM.save`` writes.

References
----------
https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.files import writing
from fastlstm.loaders import metadata, schemes, strict_json
from fastlstm.loaders.found import Contents, quoted
from fastlstm.loaders.source import SourceFile
from fastlstm.loaders.tensors import STORED, to_floats
from fastlstm.loaders.torch import nested
from fastlstm.loaders.torch.names import Group
from fastlstm.weights import MAX_SIZE, Weights

__all__ = ["find", "recognises", "write_safetensors"]

MAX_HEADER = 16 << 20  # bytes: 150,000 tensors
PIECE = 1 << 21  # numbers written at a time: Ctrl-C waits for no more
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class Entry:
    """One tensor of the header; ``dtype`` is torch's name for the dtypes that can be read."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def recognises(file: SourceFile) -> bool:
    """The header begins with ``{``; a text that begins with one too is JSON, unless it is a length that fits."""
    length = int.from_bytes(file.head[:8], "little")
    return file.head[8:9] == b"{" and (file.head[:1] != b"{" or length <= file.size - 8)


def find(file: SourceFile) -> Contents:
    """List the LSTMs of the file.

    Raises
    ------
    FormatError
        If it is broken, by our checks or those of the safetensors library.
    """
    header, data_start = _header(file)
    ours = _ours(header.pop("__metadata__", {}))
    tensors = {name: _entry(name, value) for name, value in header.items()}

    def read(entry: Entry) -> Array:
        raw = file.read(data_start + entry.start, entry.stop - entry.start)
        return np.frombuffer(raw, STORED[entry.dtype].newbyteorder("<")).reshape(entry.shape)

    if ours is not None and ours.cells is not None:
        found = metadata.find(ours, tensors, lambda wanted: [to_floats(read(e), e.dtype) for e in wanted], file.weights_limit)
    else:
        found = schemes.find(tensors, read, file.weights_limit, ours.batch_first if ours else None, file.layout)
    return nested.contents("a safetensors file", found, [Group((), tensors)])


def _header(file: SourceFile) -> tuple[dict[str, Any], int]:
    """Return the JSON object and where the data begin.

    The library checks that the tensors cover the data without overlap or hole, and that JSON is not deep; it takes the last of
    two equal names, and Python's reader takes 20 times the memory of the text, so that is checked here, and first.
    """
    from safetensors import SafetensorError, safe_open

    length = int.from_bytes(file.head[:8], "little")
    if length > file.size - 8:
        raise FormatError(f"truncated safetensors file: a header of {length} bytes declared, {file.size - 8} follow")
    if length > MAX_HEADER:
        raise FormatError(f"a safetensors header of {length} bytes, more than {MAX_HEADER}")
    text = file.read(8, length)
    strict_json.check(text, "safetensors header", file.objects_limit)
    opened = f"/proc/self/fd/{file.stream.fileno()}"  # this file, also if another one is at its path by now, or a FIFO
    try:
        with safe_open(opened if os.path.exists(opened) else file.path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise FormatError(f"broken safetensors file: {str(error)[:200]}") from None
    header = strict_json.loads(text, "safetensors header")
    if not isinstance(header, dict):
        raise FormatError(f"broken safetensors file: the header is {type(header).__name__}")
    return header, 8 + length


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"tensor {quoted(name)} needs dtype, shape and data_offsets in the safetensors header, and only these")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise FormatError(f"tensor {quoted(name)}: dtype, shape or data_offsets are of a wrong type in the safetensors header")
    if any(size > MAX_SIZE for size in shape):
        raise FormatError(f"tensor {quoted(name)} has shape {tuple(shape)!s:.100}: no dimension may exceed {MAX_SIZE}")
    entry = Entry(DTYPES.get(dtype, dtype), tuple(shape), offsets[0], offsets[1])
    if entry.dtype in STORED:
        expected = STORED[entry.dtype].itemsize
        for size in shape:
            expected *= size
        if entry.stop - entry.start != expected:
            raise FormatError(f"tensor {quoted(name)} must have {expected} bytes, got {entry.stop - entry.start}")
    return entry


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)


def _ours(given: Any) -> metadata.Metadata | None:
    """What ``write_safetensors`` recorded, None in files of others."""
    text = given.get(metadata.KEY) if isinstance(given, dict) else None
    return None if text is None else metadata.parse(text)


def write_safetensors(path: str | os.PathLike[str], weights: Weights, batch_first: bool) -> None:
    """Write a network under PyTorch's names, so that ``nn.LSTM.load_state_dict`` reads it too.

    The file appears at once or not at all: it is written beside its place and then moved there.

    Parameters
    ----------
    path : str or os.PathLike
        Replaced if it exists.
    weights : Weights
    batch_first : bool
        Kept in the file's metadata, as is what differs from PyTorch's LSTM.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    # Not by safetensors' functions, which make the whole file in memory, and end the process if there is no room for it
    tensors = dict(sorted(weights.named_tensors()))
    header: dict[str, Any] = {"__metadata__": {metadata.KEY: metadata.text_of(weights, batch_first)}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": f"F{8 * tensor.itemsize}", "shape": tensor.shape, "data_offsets": (begin, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with writing(path) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            numbers = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).reshape(-1)
            for begin in range(0, numbers.size, PIECE):
                stream.write(numbers[begin : begin + PIECE].data)
