"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

__all__ = ["as_path", "replacing", "same_file", "writing"]


def as_path(name: str, path: str | os.PathLike[str]) -> str:
    """The path as text; `name` is that of the argument."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be str or os.PathLike, got {type(path).__name__}")
    return text


def same_file(one: str, other: str) -> bool:
    """Also through links, and of files that are not there yet."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A new file beside `path` to write to; at the end it takes that place, with the permissions of what was there before.

    It is removed if something fails. Of a link, the file it points to is replaced.

    Raises
    ------
    OSError
        If it cannot be made or moved, or what is there is no regular file; the message names `path`.
    """
    before = _permissions(path)
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".{os.urandom(8).hex()}.tmp")  # short, as names may not be long
    try:
        try:
            # What was private is so all the time
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if before is None else 0o600))
            yield temporary
            if before is not None:
                os.chmod(temporary, before)
            os.replace(temporary, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        if error.filename != temporary:
            raise
        raise OSError(error.errno, error.strerror, path) from None


def _permissions(path: str) -> int | None:
    """Those of the file that is to be replaced, None if there is none. A device or a FIFO would be gone for all who use it."""
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    if os.path.basename(path) in ("", os.curdir, os.pardir):  # "new/" is no file, even if there is no such directory
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "not a regular file", path)
    return stat.S_IMODE(mode)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream into a file beside its place that is moved there at the end; what was there before is replaced, but for its
    permissions.

    Raises
    ------
    OSError
        If it cannot be written, or what is there is no regular file; nothing has changed then.
    """
    with replacing(as_path("path", path)) as part:
        try:
            with open(part, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(error.errno, error.strerror, part) from None  # of a full disk it names no file
