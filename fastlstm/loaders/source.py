"""A file opened with care: regular files only, exact reads, sizes known before memory is asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from fastlstm.errors import FormatError
from fastlstm.files import as_path
from fastlstm.loaders.archive import Archive

if TYPE_CHECKING:
    from fastlstm.loaders.keras.config import KerasArguments

__all__ = ["WEIGHTS_CEILING", "SourceFile", "opened", "return_freed", "weights_limit"]

LARGE = 4 << 20  # bytes: a smaller file leaves little behind
HEAD = 4096  # bytes a format may look at to recognise its files

# The promise is a peak of 4 times the file plus 64 MB. Parsing comes first and is over when weights are read, so either may use
# most of it. Float16 doubles as float32, and deflated weights may be larger than their file: hence 2 times, and a floor
# under which a small file may inflate as it likes.
WEIGHTS_FLOOR = 16 << 20
OBJECTS_FLOOR = 40 << 20
OBJECTS_CEILING = 1 << 30
JSON_CEILING = 1 << 28  # bytes of text: ten million weights
WEIGHTS_CEILING = 8 << 30  # bytes: 2e9 parameters, 40 times the largest LSTM published; a sparse file may claim any size


class SourceFile:
    """An open file: its first bytes, its size, and reads that return all that was asked for or raise."""

    def __init__(self, stream: BinaryIO, size: int, path: str = "", layout: str | None = None) -> None:
        self.stream = stream
        self.size = size
        self.path = path
        self.layout = layout  # what the caller said of tensors whose names do not tell
        self.keras_arguments: KerasArguments | None = None  # of a layer of which there are weights alone, by the caller
        self.external_data = False  # whether the caller wants other files to be read, too
        self.copies = ExitStack()  # files that are needed for as long as this one
        self.head = self.read(0, min(size, HEAD))

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise FormatError(f"truncated: {length} bytes expected at offset {offset}, the file has {self.size}")
        self.stream.seek(offset)
        data = self.stream.read(length)
        if len(data) != length:
            raise FormatError(f"truncated while it was read: {length} bytes expected at offset {offset}, got {len(data)}")
        return data

    @property
    def weights_limit(self) -> int:
        """Most bytes the weights of one LSTM may take, stored or expanded."""
        return weights_limit(self.size)

    @property
    def objects_limit(self) -> int:
        """Most bytes the names, numbers and containers around the weights may take."""
        return min(2 * self.size + OBJECTS_FLOOR, OBJECTS_CEILING)

    @cached_property
    def archive(self) -> Archive | None:
        """The members, if this is a zip file.

        Raises
        ------
        FormatError
            If it is a broken one.
        """
        return Archive(self.stream, self.size) if self.head[:4] in (b"PK\x03\x04", b"PK\x05\x06") else None

    @cached_property
    def json(self) -> Any:
        """The content, if this is JSON text that describes an object; else None.

        Raises
        ------
        FormatError
            If it begins like one and is broken.
        """
        if not self.head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").startswith(b"{"):
            return None
        if self.size > JSON_CEILING:
            raise FormatError(f"JSON of {self.size} bytes, more than {JSON_CEILING}")
        from fastlstm.loaders import json_text

        return json_text.parse(self.read(0, self.size), self.objects_limit)


def weights_limit(size: int) -> int:
    """The same for a file of that size, or what stands for one."""
    return min(2 * size + WEIGHTS_FLOOR, WEIGHTS_CEILING)


@contextmanager
def opened(path: str | os.PathLike[str], layout: str | None = None) -> Iterator[SourceFile]:
    """Open ``path`` without waiting: opening a FIFO would block until somebody writes.

    Raises
    ------
    FormatError
        If it is not a regular file; also prefixed with the file's name to each FormatError raised inside.
    OSError
        If the file cannot be opened or read.
    """
    name = as_path("path", path)
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(name, flags | getattr(os, "O_NOCTTY", 0))
        except ValueError as error:  # a NUL byte in the path
            raise FormatError(f"not a path: {error}") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            if os.path.exists(os.path.join(name, "saved_model.pb")):
                raise FormatError("a TensorFlow SavedModel: with Keras, save the model as .keras or .h5")
            raise FormatError(f"{_kind(status.st_mode)}, not a regular file")
        with open(descriptor, "rb") as stream:
            file = SourceFile(stream, status.st_size, name, layout)
            with file.copies:
                yield file
    except FormatError as error:
        raise FormatError(f"{name!r:.200}: {error}") from None


def return_freed(size: int) -> None:
    """Give the system what was freed after a file of so many bytes; glibc would keep up to 64 MB, beside what comes next."""
    trim = _trim() if size >= LARGE else None
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    import ctypes

    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "something special")
