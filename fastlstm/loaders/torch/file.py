"""Files written by ``torch.save``: a zip file with one pickle and the storages (since PyTorch 1.6), or all in a row (before).

References
----------
``torch/serialization.py``: ``_load`` for the zip file, ``_legacy_load`` for the older form.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.archive import Archive
from fastlstm.loaders.found import Contents, quoted
from fastlstm.loaders.source import SourceFile
from fastlstm.loaders.tensors import STORED, LazyTensor, to_floats
from fastlstm.loaders.torch import nested
from fastlstm.loaders.torch.names import find as find_lstms
from fastlstm.loaders.torch.pickle import Budget, Unpickler
from fastlstm.loaders.torch.values import RESAVE, Storage, Tensor, storage

__all__ = ["find", "recognises"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_HEAD = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # that number, pickled
LEGACY_PROTOCOL = 1001
MAX_VERSION = 10  # of the zip form, caffe2/serialize/versions.h


def recognises(file: SourceFile) -> bool:
    """A zip file with a ``<name>/data.pkl``, or a pickle of protocol 2 to 5."""
    if file.archive is not None:
        return any(name.endswith("/data.pkl") for name in file.archive.members)
    return file.head[:1] == b"\x80" and file.head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def find(file: SourceFile) -> Contents:
    """List the LSTMs of the file.

    Raises
    ------
    FormatError
        If it holds more than tensors and plain containers, or is broken.
    """
    checkpoint = _zipped(file, file.archive) if file.archive is not None else _legacy(file)
    every = nested.groups(checkpoint.root, lambda value: cast(LazyTensor, value) if isinstance(value, Tensor) else None)
    for group in every:
        for name, tensor in group.tensors.items():
            checkpoint.check(name, cast(Tensor, tensor))
    return nested.contents("a PyTorch checkpoint", find_lstms(every, checkpoint.read, file.weights_limit), every)


@dataclass
class Checkpoint:
    """What ``torch.save`` was given, and where its storages are.

    Attributes
    ----------
    root : object
        Plain containers, numbers, text, tensors.
    stored_size : function (key) -> bytes of that storage in the file
    span : function (key, start, stop) -> these bytes of it
    limit : int
        Most bytes to read of the storages of one LSTM.
    size : int
        Of the file. Of a deflated storage all is inflated, for its checksum, also where little is read.
    byteorder : str
        As NumPy writes it.
    """

    root: Any
    stored_size: Callable[[str], int]
    span: Callable[[str, int, int], bytes | bytearray]
    limit: int
    size: int
    byteorder: Literal["<", ">"] = "<"

    def check(self, name: str, tensor: Tensor) -> None:
        """Refuse a tensor that does not lie in its storage, or a storage that is not in the file."""
        if tensor.storage is None:
            return
        stop = tensor.span()[1]
        if stop > tensor.storage.nbytes:
            raise FormatError(
                f"tensor {quoted(name)} of shape {tensor.shape!s:.100} exceeds its storage: it needs {stop} bytes, "
                f"the storage has {tensor.storage.nbytes}"
            )
        size = self.stored_size(tensor.storage.key)
        if size != tensor.storage.nbytes:
            expected = tensor.storage.nbytes
            raise FormatError(f"the storage of tensor {quoted(name)} must have {expected} bytes, the file has {size}")

    def read(self, tensors: Sequence[Tensor]) -> list[Array]:
        """Read tensors, of each storage the part they need together and only once."""
        spans: dict[str, tuple[int, int]] = {}
        for tensor in tensors:
            assert tensor.storage is not None
            start, stop = tensor.span()
            known = spans.get(tensor.storage.key, (start, stop))
            spans[tensor.storage.key] = min(start, known[0]), max(stop, known[1])
        size = sum(stop - start for start, stop in spans.values())
        if size > self.limit:
            raise FormatError(f"the storages of one LSTM take {size} bytes, a file of this size may hold {self.limit}")
        whole = sum(map(self.stored_size, spans))
        if whole > max(self.limit, self.size):  # deflated: others are not larger than the file
            raise FormatError(f"the storages of one LSTM inflate to {whole} bytes, a file of this size may hold {self.limit}")
        blocks = {key: self.span(key, start, stop) for key, (start, stop) in spans.items()}
        arrays = []
        for tensor in tensors:
            assert tensor.storage is not None
            key = tensor.storage.key
            stored: Array = np.ndarray(
                tensor.shape,
                STORED[tensor.dtype].newbyteorder(self.byteorder),
                blocks[key],
                tensor.offset * tensor.itemsize - spans[key][0],
                [stride * tensor.itemsize for stride in tensor.strides],
            )
            arrays.append(to_floats(stored, tensor.dtype))
        return arrays


@dataclass
class Storages:
    """The storages a pickle has named so far."""

    items: int
    known: dict[str, Storage] = field(default_factory=dict)

    def __call__(self, identity: Any) -> Storage:
        if len(identity) != self.items or (self.items == 6 and identity[5] is not None):
            raise FormatError(f"broken pickle: a storage described by {len(identity)} values, or a view of another")
        new = storage(identity)
        known = self.known.setdefault(new.key, new)
        if known != new:
            raise FormatError(f"storage {quoted(new.key)} has {known.size} {known.dtype} here, {new.size} {new.dtype} there")
        return known


def _zipped(file: SourceFile, archive: Archive) -> Checkpoint:
    pickles = [name for name in archive.members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise FormatError(f"one data.pkl expected, found {', '.join(map(quoted, pickles[:5]))}")
    root = pickles[0].removesuffix("data.pkl")
    if any(name == f"{root}constants.pkl" or name.startswith(f"{root}code/") for name in archive.members):
        raise FormatError(f"a TorchScript archive (torch.jit.save): load it with torch.jit.load and {RESAVE}")
    version = _record(archive, root + "version", "3")
    if not (version.isascii() and version.isdigit() and 1 <= int(version) <= MAX_VERSION):
        raise FormatError(f"version {quoted(version)} of PyTorch's file format, expected 1 to {MAX_VERSION}")
    order = _record(archive, root + "byteorder", "little")
    if order not in ("little", "big"):
        raise FormatError(f"byteorder {quoted(order)}, expected little or big")

    data = archive.read(pickles[0], file.objects_limit // 4)
    budget = Budget(file.objects_limit - len(data))
    stream = io.BytesIO(data)
    value = Unpickler(cast(BinaryIO, stream), len(data), budget, Storages(5)).load()
    if stream.tell() != len(data):
        raise FormatError(f"{len(data) - stream.tell()} bytes after the end of {quoted(pickles[0])}")

    def stored_size(key: str) -> int:
        return archive.size_of(f"{root}data/{key}")

    def span(key: str, start: int, stop: int) -> bytearray:
        return archive.span(f"{root}data/{key}", start, stop)

    return Checkpoint(value, stored_size, span, file.weights_limit, file.size, "<" if order == "little" else ">")


def _record(archive: Archive, name: str, default: str) -> str:
    return archive.read(name, 20).decode("latin1").strip() if name in archive.members else default


def _legacy(file: SourceFile) -> Checkpoint:
    if LEGACY_HEAD not in file.head[:64]:
        raise FormatError(f"a bare pickle, not a file of torch.save: with torch, load it as it was written and {RESAVE}")
    stream = file.stream
    stream.seek(0)
    storages = Storages(6)
    unpickler = Unpickler(stream, file.size, Budget(file.objects_limit), storages)
    magic, protocol, system, value, keys = (unpickler.load() for _ in range(5))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise FormatError("broken file of torch.save: magic number or protocol version are wrong")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise FormatError("written on a big-endian machine: load it with torch and save it again")
    if not isinstance(keys, list) or len(keys) != len(storages.known):
        raise FormatError("broken file of torch.save: its list of storages does not fit its tensors")

    starts: dict[str, int] = {}
    position = stream.tell()
    for key in keys:
        known = storages.known.get(key) if isinstance(key, str) else None
        if known is None or key in starts:
            raise FormatError("broken file of torch.save: its list of storages does not fit its tensors")
        (size,) = struct.unpack("<q", file.read(position, 8))
        if size != known.size:
            raise FormatError(f"storage {quoted(known.key)} must have {known.size} elements, the file has {size}")
        starts[known.key] = position + 8
        position += 8 + known.nbytes
        if position > file.size:
            raise FormatError(f"truncated: storage {quoted(known.key)} ends at {position}, the file has {file.size} bytes")
    if position != file.size:
        raise FormatError(f"{file.size - position} bytes after the last storage")

    def span(key: str, start: int, stop: int) -> bytes:
        return file.read(starts[key] + start, stop - start)

    return Checkpoint(value, lambda key: storages.known[key].nbytes, span, file.weights_limit, file.size)
