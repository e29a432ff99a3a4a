"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["as_path", "write_whole"]


def as_path(name: str, path: str | os.PathLike[str]) -> str:
    """The path as text; `name` is that of the argument."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be str or os.PathLike, got {type(path).__name__}")
    return text


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file beside its place and move it there; what was there before is replaced.

    Raises
    ------
    OSError
        If it cannot be written; nothing has changed then.
    """
    target = os.path.realpath(as_path("path", path))
    temporary = f"{target}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
