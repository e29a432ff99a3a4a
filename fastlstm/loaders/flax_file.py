"""Files of ``flax.serialization.to_bytes`` (.msgpack): nested dictionaries with arrays in them.

Read without the msgpack package: it would make all objects and copies of all arrays before anything could be counted. Here the
structure is walked once, and arrays stay in the file until they are asked for.

References
----------
https://github.com/msgpack/msgpack/blob/master/spec.md; ``flax/serialization.py``: extension 1 is an array as (shape, name of its
dtype, bytes), arrays of more than 1 GB are dictionaries of flat chunks.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders import flax_names
from fastlstm.loaders.found import Contents, quoted, summary
from fastlstm.loaders.source import SourceFile
from fastlstm.loaders.tensors import STORED, LazyTensor
from fastlstm.weights import MAX_SIZE

__all__ = ["find", "recognises"]

MAX_DEPTH = 50
MAX_NAME = 500
OBJECT = 300  # bytes that one value may take in memory, with its place in a dictionary, its key and its path
CHUNKED = "__msgpack_chunked_array__"
NDARRAY, COMPLEX, SCALAR = 1, 2, 3
OTHER_DTYPES = {"V2": "bfloat16"}  # Flax before 0.3.4
# First byte: bytes of the length behind it
TEXT = {0xD9: 1, 0xDA: 2, 0xDB: 4}
BINARY = {0xC4: 1, 0xC5: 2, 0xC6: 4}
EXTENSION = {0xC7: 1, 0xC8: 2, 0xC9: 4}
LISTS = {0xDC: 2, 0xDD: 4}
MAPS = {0xDE: 2, 0xDF: 4}
FIXED_EXTENSION = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
CONSTANTS: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclass(frozen=True)
class Stored:
    """An array in the file: its chunks as (start, stop)."""

    shape: tuple[int, ...]
    dtype: str
    spans: tuple[tuple[int, int], ...]


def recognises(file: SourceFile) -> bool:
    """It begins with a dictionary whose first key is text."""
    head = file.head
    if not head:
        return False
    start = 1 if 0x81 <= head[0] <= 0x8F else 1 + MAPS[head[0]] if head[0] in MAPS else 0
    key = head[start] if 0 < start < len(head) else 0
    return 0xA0 <= key <= 0xBF or key in TEXT


def find(file: SourceFile) -> Contents:
    """List the LSTMs of the file.

    Raises
    ------
    FormatError
        If it is broken, or an array does not have the bytes that its shape demands.
    """
    reader = Reader(file)
    root = reader.value()
    if reader.position != file.size:
        raise FormatError(f"{file.size - reader.position} bytes after the end of the msgpack data")
    tensors = _tensors(root, reader)

    def read(tensor: Stored) -> Array:
        dtype = STORED[tensor.dtype].newbyteorder("<")
        if len(tensor.spans) == 1:
            start, stop = tensor.spans[0]
            return np.frombuffer(file.read(start, stop - start), dtype).reshape(tensor.shape)
        flat: Array = np.empty(math.prod(tensor.shape), dtype)
        at = 0
        for start, stop in tensor.spans:
            chunk = np.frombuffer(file.read(start, stop - start), dtype)
            flat[at : at + len(chunk)] = chunk
            at += len(chunk)
        return flat.reshape(tensor.shape)

    found = flax_names.find(tensors, read, file.weights_limit)
    return Contents(found, summary("a Flax file (msgpack)", tensors, "arrays"))


class Reader:
    """Walks the structure; every size is compared with what is left of the file before it is used."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._room = file.objects_limit
        self.position = 0

    def charge(self, memory: int) -> None:
        self._room -= memory
        if self._room < 0:
            raise FormatError(f"the msgpack data describe more than a file of {self._file.size} bytes holds")

    def _take(self, length: int) -> bytes:
        data = self._file.read(self.position, length)
        self.position += length
        return data

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "big")

    def _skip(self, length: int) -> tuple[int, int]:
        start, stop = self.position, self.position + length
        if stop > self._file.size:
            raise FormatError(f"truncated: {length} bytes expected at offset {start}, the file has {self._file.size}")
        self.position = stop
        return start, stop

    def value(self, depth: int = 0) -> Any:
        """Read one value: arrays as :class:`Stored`, bytes as where they are."""
        if depth > MAX_DEPTH:
            raise FormatError(f"containers nested more than {MAX_DEPTH} deep")
        self.charge(OBJECT)
        first = self._number(1)
        if first <= 0x7F or first >= 0xE0:
            return first if first <= 0x7F else first - 0x100
        if first in CONSTANTS:
            return CONSTANTS[first]
        if first in NUMBERS:
            code = NUMBERS[first]
            return struct.unpack(code, self._take(struct.calcsize(code)))[0]
        if first <= 0x8F or first in MAPS:
            return self._map(first & 0x0F if first <= 0x8F else self._number(MAPS[first]), depth)
        if first <= 0x9F or first in LISTS:
            count = first & 0x0F if first <= 0x9F else self._number(LISTS[first])
            return [self.value(depth + 1) for _ in range(count)]
        if first <= 0xBF or first in TEXT:
            return self._text(first)
        if first in BINARY:
            return self._skip(self._number(BINARY[first]))
        if first in EXTENSION or first in FIXED_EXTENSION:
            length = self._number(EXTENSION[first]) if first in EXTENSION else FIXED_EXTENSION[first]
            return self._extension(self._number(1), length, depth)
        raise FormatError(f"broken msgpack data: byte {first:#x} at offset {self.position - 1}")

    def _text(self, first: int) -> str:
        length = first & 0x1F if first <= 0xBF else self._number(TEXT[first])
        self.charge(4 * length)
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise FormatError(f"broken msgpack data: text that is not UTF-8 at offset {self.position - length}") from None

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for _ in range(count):
            first = self._number(1)
            if not (0xA0 <= first <= 0xBF or first in TEXT):
                raise FormatError(f"broken Flax file: a dictionary key that is no text at offset {self.position - 1}")
            key = self._text(first)
            if key in result:
                raise FormatError(f"dictionary key {quoted(key)} twice")
            result[key] = self.value(depth + 1)
        return result

    def _extension(self, code: int, length: int, depth: int) -> Stored | None:
        start, stop = self._skip(length)
        if code == COMPLEX:
            return None
        if code not in (NDARRAY, SCALAR):
            raise FormatError(f"broken Flax file: an object of type {code} at offset {start}")
        self.position = start
        described = self.value(depth + 1)
        if self.position != stop or not isinstance(described, list) or len(described) != 3:
            raise FormatError(f"broken Flax file: an array at offset {start} that is not its shape, dtype and bytes")
        shape, dtype, span = described
        return _array(_sizes(shape), OTHER_DTYPES.get(dtype, dtype) if isinstance(dtype, str) else "", (span,))


def _array(shape: tuple[int, ...], dtype: str, spans: tuple[object, ...]) -> Stored:
    held = [span for span in spans if isinstance(span, tuple)]
    if not dtype or len(held) != len(spans):
        raise FormatError("broken Flax file: an array whose dtype is no text or whose data are no bytes")
    if dtype in STORED:
        expected = math.prod(shape) * STORED[dtype].itemsize
        given = sum(stop - start for start, stop in held)
        if given != expected:
            raise FormatError(f"an array of shape {shape!s:.100} and dtype {dtype} must have {expected} bytes, got {given}")
    elif dtype.startswith("object"):
        raise FormatError("an array of objects, which could execute code")
    return Stored(shape, dtype, tuple(held))


def _sizes(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape) or len(shape) > 64:
        raise FormatError(f"broken Flax file: an invalid shape: {str(shape)[:100]}")
    return tuple(shape)


def _joined(value: dict[str, Any]) -> Stored:
    """An array that is stored in chunks."""
    shape, chunks = value.get("shape"), value.get("chunks")
    if value.keys() != {CHUNKED, "shape", "chunks"} or not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
        raise FormatError("broken Flax file: an array in chunks that is not its shape and its chunks")
    for numbered in (shape, chunks):
        if numbered.keys() != {str(index) for index in range(len(numbered))}:
            raise FormatError("broken Flax file: an array in chunks whose dimensions or chunks are not numbered from 0")
    sizes, parts = ([numbered[str(index)] for index in range(len(numbered))] for numbered in (shape, chunks))
    if not all(isinstance(part, Stored) and len(part.shape) == 1 and part.dtype == parts[0].dtype for part in parts):
        raise FormatError("broken Flax file: a chunk that is no flat array of the dtype of the others")
    return _array(_sizes(sizes), parts[0].dtype, tuple(span for part in parts for span in part.spans))


def _tensors(root: object, reader: Reader) -> dict[str, LazyTensor]:
    """The arrays under their paths."""
    result: dict[str, LazyTensor] = {}
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict) and CHUNKED in value:
            value = _joined(value)
        if isinstance(value, Stored):
            if path in result:
                raise FormatError(f"two arrays have the name {quoted(path)}")
            result[path] = value
        elif isinstance(value, (dict, list)):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            steps = [(f"{path}/{key}" if path else str(key), item) for key, item in inner]
            reader.charge(sum(4 * len(name) for name, _ in steps) if len(path) > 50 else 0)
            if any(len(name) > MAX_NAME for name, _ in steps):
                raise FormatError(f"a name of more than {MAX_NAME} characters in {quoted(path)}")
            waiting += reversed(steps)
    return result
