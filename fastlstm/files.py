"""Files that appear whole or not at all."""

from __future__ import annotations

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
        If it cannot be made or moved; the message names `path`.
    """
    target = os.path.realpath(path)
    temporary = f"{target}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        before = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else None
        # What was private is so all the time
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if before is None else 0o600))
        try:
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


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file beside its place and move it there; what was there before is replaced, but for its permissions.

    Raises
    ------
    OSError
        If it cannot be written; nothing has changed then.
    """
    with replacing(as_path("path", path)) as part, open(part, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
