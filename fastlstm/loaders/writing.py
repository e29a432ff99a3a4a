"""Files that appear at once or not at all: written beside their place and then moved there."""

from __future__ import annotations

import os
from contextlib import suppress

__all__ = ["written"]


def written(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a whole file; one that exists is replaced, or as it was if anything fails.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    target = os.path.realpath(path)
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
