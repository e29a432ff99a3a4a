"""JSON from files: no key twice, and no more memory than a file of that size may take."""

from __future__ import annotations

import json
from typing import Any

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted

__all__ = ["check", "loads", "parse"]


def parse(text: bytes | bytearray, what: str, limit: int) -> Any:
    """Return the value of a text that may be large.

    Parameters
    ----------
    text : bytes
    what : str
        Its name in messages.
    limit : int
        Most bytes the value may take.

    Raises
    ------
    FormatError
        If it is no JSON, too deep, too large, or has a key twice.
    """
    check(text, what, limit)
    return loads(text, what)


def check(text: bytes | bytearray, what: str, limit: int) -> None:
    """Refuse a text whose value may take more than ``limit`` bytes: Python's objects take up to 20 times its memory."""
    memory = 2 * len(text) + 150 * (text.count(b"{") + text.count(b"[")) + 120 * text.count(b",") + 50 * text.count(b'"')
    if memory + (0 if text.isascii() else 6 * len(text)) > limit:
        raise FormatError(f"the {what} describes more than a file of this size holds")


def loads(text: str | bytes | bytearray, what: str) -> Any:
    """Return the value of a text whose size was looked at before; a FormatError as of :func:`parse`."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)  # of equal names, Python would take the last
        if len(result) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise FormatError(f"the {what} has {quoted(twice)} twice")
        return result

    try:
        return json.loads(text, object_pairs_hook=unique)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:  # also a UnicodeDecodeError, or an integer of thousands of digits
        raise FormatError(f"broken {what}: {str(error)[:200]}") from None
