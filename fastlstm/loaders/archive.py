"""Zip files whose directory is checked before any member is read, and whose members are read within a known size."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted

__all__ = ["Archive"]

END_RECORD = 22  # bytes of the end-of-directory record without a comment
LOCATOR64, END_RECORD64 = 20, 56  # of what stands before it in large files
# zipfile makes an object of 600 bytes of each directory entry of 50 bytes: 4 MB of them (60,000 tensors) stay under 64 MB.
DIRECTORY_LIMIT = 4 << 20
CHUNK = 1 << 20
ZIP64 = 0xFFFF  # in place of a number: it is in the zip64 record
UNREADABLE_FLAGS = 0x1 | 0x20 | 0x40  # encrypted, patched, strongly encrypted


class _OutsideError(OSError):
    """A seek out of the file. An OSError, because zipfile expects one where a file is too short for a zip64 record."""


# What zipfile and zlib raise for bytes they do not understand.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    _OutsideError,
)


@contextmanager
def _format_errors() -> Iterator[None]:
    try:
        yield
    except FormatError:
        raise
    except _ZIP_ERRORS as error:
        raise FormatError(f"broken zip file: {str(error)[:200]}") from None


class _CappedStream:
    """The reads zipfile makes, none larger than the directory may be: sizes in the file do not decide about memory."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._size = size

    def read(self, length: int = -1) -> bytes:
        remaining = max(0, self._size - self._stream.tell())
        length = remaining if length < 0 else min(length, remaining)
        if length > DIRECTORY_LIMIT:
            raise FormatError(f"the zip directory claims {length} bytes, more than {DIRECTORY_LIMIT}")
        return self._stream.read(length)

    def seek(self, offset: int, whence: int = 0) -> int:
        start = {0: 0, 1: self._stream.tell(), 2: self._size}[whence]
        if not 0 <= start + offset <= self._size:
            raise _OutsideError(f"it points to offset {start + offset}, the file has {self._size} bytes")
        return self._stream.seek(start + offset)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """The stream belongs to whoever opened it."""


def _declared_directory(stream: BinaryIO, size: int, end: bytes) -> int:
    """Where the directory begins, as the end of the archive has it; zipfile shifts all of it to where it ends."""
    declared: int = struct.unpack("<I", end[16:20])[0]
    if declared == 0xFFFFFFFF and size >= END_RECORD + LOCATOR64 + END_RECORD64:
        stream.seek(size - END_RECORD - LOCATOR64 - END_RECORD64)
        record = stream.read(END_RECORD64)
        if record[:4] == b"PK\x06\x06":
            declared = struct.unpack("<Q", record[48:56])[0]
    return declared


class Archive:
    """The members of a zip file.

    Raises
    ------
    FormatError
        If the directory is broken, names a member twice or outside the archive, or uses what only a crafted file uses.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.size = size
        if size >= END_RECORD:
            stream.seek(size - END_RECORD)
        end = stream.read(END_RECORD)
        if end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
            raise FormatError("truncated: no zip directory at the end of the file (or bytes after it)")
        with _format_errors():
            self._zip = zipfile.ZipFile(_CappedStream(stream, size))
        if self._zip.start_dir != _declared_directory(stream, size, end):
            raise FormatError("bytes before the zip archive, or between its members and its directory")
        entries = self._zip.infolist()
        disks, declared = struct.unpack("<I2xH", end[4:12])
        if disks not in (0, ZIP64 << 16 | ZIP64) or declared not in (len(entries), ZIP64):
            raise FormatError(f"broken zip file: {declared} members declared, {len(entries)} found, or more than one disk")
        self.members: dict[str, zipfile.ZipInfo] = {}
        for info in entries:
            name = info.filename
            if name in self.members:
                raise FormatError(f"zip member {quoted(name)} occurs twice")
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":":
                raise FormatError(f"zip member {quoted(name)} lies outside the archive")
            if info.compress_size > size or info.header_offset >= size:
                raise FormatError(f"zip member {quoted(name)} claims {info.compress_size} bytes, the file has {size}")
            self.members[name] = info

    def size_of(self, name: str) -> int:
        return self._checked(name).file_size

    def read(self, name: str, limit: int) -> bytearray:
        """Return a whole member of at most ``limit`` bytes."""
        size = self._checked(name).file_size
        if size > limit:
            raise FormatError(f"zip member {quoted(name)} has {size} bytes, more than {limit}")
        return self.span(name, 0, size)

    def span(self, name: str, start: int, stop: int) -> bytearray:
        """Return bytes ``start:stop`` of a member. All of it passes by, for its checksum; only these bytes are kept.

        The caller has compared ``stop - start`` with its budget.
        """
        info = self._checked(name)
        if not 0 <= start <= stop <= info.file_size:
            raise FormatError(f"zip member {quoted(name)} has {info.file_size} bytes, {stop} are needed")
        kept = bytearray(stop - start)
        position = 0
        for chunk in self.chunks(name, info.file_size):
            first, last = max(start, position), min(stop, position + len(chunk))
            if first < last:
                kept[first - start : last - start] = memoryview(chunk)[first - position : last - position]
            position += len(chunk)
        return kept

    def chunks(self, name: str, limit: int) -> Iterator[bytes]:
        """A whole member of at most ``limit`` bytes, in pieces; it is good if the last one came."""
        info = self._checked(name)
        if info.file_size > limit:
            raise FormatError(f"zip member {quoted(name)} has {info.file_size} bytes, more than {limit}")
        position = 0
        with _format_errors(), self._zip.open(info) as member:
            while chunk := member.read(CHUNK):
                position += len(chunk)
                yield chunk
        if position != info.file_size:
            raise FormatError(f"zip member {quoted(name)} is truncated: {info.file_size} bytes expected, got {position}")

    def start(self, name: str, length: int) -> bytes:
        """Return the first bytes of a member, without its checksum; fewer if it is shorter."""
        with _format_errors(), self._zip.open(self._checked(name)) as member:
            return member.read(length)

    def _checked(self, name: str) -> zipfile.ZipInfo:
        info = self.members.get(name)
        if info is None:
            raise FormatError(f"zip member {quoted(name)} is missing")
        if info.flag_bits & UNREADABLE_FLAGS:
            raise FormatError(f"zip member {quoted(name)} is encrypted or patched (flags {info.flag_bits:#x})")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FormatError(f"zip member {quoted(name)} uses compression method {info.compress_type}, not stored or deflated")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise FormatError(
                f"zip member {quoted(name)} is stored, yet has {info.compress_size} bytes in place of {info.file_size}"
            )
        return info
