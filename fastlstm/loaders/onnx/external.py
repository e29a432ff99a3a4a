"""Numbers of ONNX tensors that lie in files beside the model: read only if asked for, and only from the model's folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted

__all__ = ["Folder"]

# A checksum covers a whole file, of which a network may be a small part; nobody compares it
KEYS = ("location", "offset", "length", "checksum")
MAX_PARTS = 20  # of a path


class Folder:
    """The folder of a model: no link is followed, nothing outside of it is opened."""

    def __init__(self, model: str) -> None:
        self._path = os.path.dirname(model) or "."
        self._sizes: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Bytes of all files that were asked for."""
        return sum(self._sizes.values())

    def size(self, tensor: Any, expected: int) -> int:
        """Bytes declared for a tensor, ``expected`` if none are; they are in the file."""
        location, offset, length = _place(tensor)
        with self._opened(location) as stream:
            self._sizes[location] = os.fstat(stream.fileno()).st_size
        declared = expected if length is None else length
        if offset + declared > self._sizes[location]:
            raise FormatError(
                f"external data of {quoted(tensor.name)}: {declared} bytes expected at offset {offset} of {quoted(location)}, "
                f"which has {self._sizes[location]}"
            )
        return declared

    def read(self, tensor: Any, expected: int) -> bytes:
        location, offset, _ = _place(tensor)
        with self._opened(location) as stream:
            stream.seek(offset)
            data = stream.read(expected)
        if len(data) != expected:
            raise FormatError(f"{quoted(location)} became shorter while it was read")
        return data

    @contextmanager
    def _opened(self, location: str) -> Iterator[BinaryIO]:
        if not hasattr(os, "O_NOFOLLOW") or os.open not in os.supports_dir_fd:
            raise FormatError("files beside a model cannot be opened safely on this system: save it with onnx.save as one file")
        *folders, name = _parts(location)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(self._path, flags & ~os.O_NOFOLLOW | os.O_DIRECTORY)  # the folder itself is the caller's choice
        try:
            for part in folders:
                inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
                os.close(folder)
                folder = inner
            descriptor = os.open(name, flags | os.O_NONBLOCK, dir_fd=folder)
        except OSError as error:
            raise FormatError(
                f"{quoted(location)} beside the model cannot be opened (links are not followed: copy what they lead to): "
                f"{error.strerror}"
            ) from None
        finally:
            os.close(folder)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(descriptor)
            raise FormatError(
                f"{quoted(location)} beside the model is no regular file of its own (a folder, device or hard link)"
            )
        with open(descriptor, "rb") as stream:
            yield stream


def _parts(location: str) -> list[str]:
    parts = location.split("/")
    if len(parts) > MAX_PARTS or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise FormatError(f"{quoted(location)} is no plain path below the model's folder")
    return parts


def _place(tensor: Any) -> tuple[str, int, int | None]:
    """Location, offset and length; each a text."""
    given: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in KEYS or entry.key in given:
            raise FormatError(f"external data of {quoted(tensor.name)}: {quoted(entry.key)} is unknown or there twice")
        given[entry.key] = entry.value
    if "location" not in given:
        raise FormatError(f"external data of {quoted(tensor.name)} have no location")
    numbers = {}
    for key in ("offset", "length"):
        text = given.get(key, "0")
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise FormatError(f"external data of {quoted(tensor.name)}: {key} must be a number of bytes, got {quoted(text)}")
        numbers[key] = int(text)
    location = given["location"].removeprefix("./")  # the folder itself, which some writers say
    return location, numbers["offset"], numbers["length"] if "length" in given else None
