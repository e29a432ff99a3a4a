"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["as_path", "replacing", "write_whole"]


def as_path(name: str, path: str | os.PathLike[str]) -> str:
    """The path as text; `name` is that of the argument."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be str or os.PathLike, got {type(path).__name__}")
    return text


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
    temporary = f"{target}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
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


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file beside its place and move it there; what was there before is replaced, but for its permissions.

    Raises
    ------
    OSError
        If it cannot be written, or what is there is no regular file; nothing has changed then.
    """
    with replacing(as_path("path", path)) as part, open(part, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
