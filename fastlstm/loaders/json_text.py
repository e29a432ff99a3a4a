"""JSON, read within limits: lists of numbers become arrays at once, for Python's own reader makes 20 times the memory of a text.

Strict but for one thing: ``NaN``, ``Infinity`` and ``-Infinity`` are numbers, as Python and what is trained with it write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted

__all__ = ["JsonTensor", "NumberList", "Numbers", "float32", "matrix", "parse", "size_of", "vector"]

Numbers: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"

MAX_DEPTH = 50
OBJECT = 400  # bytes that a value may take in memory, with its place in a dictionary or list
NUMBER_SIZE = 16  # bytes: one in a list, one in the matrix that lists become
CHUNK = 1 << 16  # bytes of a list of numbers that are taken apart at a time
SPACE = re.compile(rb"[ \t\r\n]*")
LITERAL = rb"(?:-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|Infinity)|NaN)"
NUMBER = re.compile(LITERAL)
NUMBERS = re.compile(rb"\s*" + LITERAL + rb"(?:\s*,\s*" + LITERAL + rb")*\s*")
LIST = re.compile(rb"\[[-+0-9.eE, \t\r\nNaInfity]*\]")  # perhaps one of numbers alone
WORDS = {b"true": True, b"false": False, b"null": None}


@dataclass(frozen=True, eq=False)
class NumberList:
    """A list of nothing but numbers. No array itself, so that it can be compared with what is expected in its place."""

    values: Numbers


def parse(data: bytes, limit: int) -> Any:
    """Read a whole text.

    Parameters
    ----------
    data : bytes
    limit : int
        Most bytes that what it describes may take.

    Returns
    -------
    dict, list, str, int, float, bool, None or NumberList
        The last for a list of nothing but numbers.

    Raises
    ------
    FormatError
        If it is no JSON, deeper than 50, has a key twice or describes too much.
    """
    reader = _Reader(data.removeprefix(b"\xef\xbb\xbf"), limit)
    value = reader.value(0)
    reader.end()
    return value


class _Reader:
    def __init__(self, data: bytes, limit: int) -> None:
        self._data = data
        self._room = limit
        self._limit = limit
        self._at = 0

    def _error(self, what: str) -> FormatError:
        line = self._data.count(b"\n", 0, self._at) + 1
        return FormatError(f"broken JSON: {what} at byte {self._at}, line {line}")

    def _charge(self, memory: int) -> None:
        self._room -= memory
        if self._room < 0:
            raise FormatError(f"the JSON text describes more than {self._limit} bytes, too much for a file of this size")

    def _next(self) -> bytes:
        """The next character after white space; it stays."""
        match = SPACE.match(self._data, self._at)
        assert match is not None
        self._at = match.end()
        return self._data[self._at : self._at + 1]

    def end(self) -> None:
        if self._next():
            raise self._error("more text after the end")

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise FormatError(f"JSON nested more than {MAX_DEPTH} deep")
        self._charge(OBJECT)
        first = self._next()
        if first == b"{":
            return self._object(depth)
        if first == b"[":
            match = LIST.match(self._data, self._at)
            return self._list(depth) if match is None else self._numbers(match.end())
        if first == b'"':
            return self._text()
        for word, value in WORDS.items():
            if self._data.startswith(word, self._at):
                self._at += len(word)
                return value
        number = NUMBER.match(self._data, self._at)
        if number is None:
            raise self._error(f"{quoted(first.decode('latin1'))} where a value is expected" if first else "the text ends")
        self._at = number.end()
        text = number[0]
        return int(text) if len(text) < 19 and re.fullmatch(b"-?[0-9]+", text) else float(text)

    def _object(self, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        self._at += 1
        if self._next() == b"}":
            self._at += 1
            return result
        while True:
            if self._next() != b'"':
                raise self._error("no text where a key is expected")
            key = self._text()
            if key in result:
                raise FormatError(f"the JSON text has {quoted(key)} twice")
            if self._next() != b":":
                raise self._error("no colon after a key")
            self._at += 1
            result[key] = self.value(depth + 1)
            if not self._more(b"}"):
                return result

    def _list(self, depth: int) -> list[Any]:
        result = []
        self._at += 1
        while True:
            result.append(self.value(depth + 1))
            if not self._more(b"]"):
                return result

    def _more(self, end: bytes) -> bool:
        """Whether a comma follows, or the end; either is passed."""
        following = self._next()
        if following not in (b",", end):
            raise self._error(f"neither a comma nor {end.decode()}" if following else "the text ends")
        self._at += 1
        return following == b","

    def _text(self) -> str:
        end = self._at
        while True:
            end = self._data.find(b'"', end + 1)
            if end < 0:
                raise self._error("a text without an end")
            before = end - 1
            while self._data[before] == 0x5C:  # a backslash, and an even number of them are none
                before -= 1
            if (end - before) % 2:
                break
        self._charge(6 * (end - self._at))
        try:
            text: str = json.loads(self._data[self._at : end + 1].decode())
        except (ValueError, RecursionError) as error:
            raise self._error(f"a text that is none ({str(error)[:60]})") from None
        self._at = end + 1
        return text

    def _numbers(self, end: int) -> NumberList:
        """The list of numbers from here to ``end``; taken apart in pieces, so that its parts do not all exist at once."""
        start, stop = self._at + 1, end - 1
        blank = SPACE.match(self._data, start, stop)
        if blank is not None and blank.end() == stop:
            self._at = end
            return NumberList(np.empty(0))
        count = self._data.count(b",", start, stop) + 1
        self._charge(NUMBER_SIZE * count)
        result = np.empty(count)
        filled = 0
        while filled < count:
            cut = stop
            if stop - start > CHUNK:
                cut = self._data.rfind(b",", start, start + CHUNK)
                cut = self._data.find(b",", start, stop) if cut < 0 else cut  # blanks
                cut = stop if cut < 0 else cut
            piece = self._data[start:cut]
            if not NUMBERS.fullmatch(piece):
                self._at = start
                raise self._error("a list of numbers with something else in it")
            numbers = piece.split(b",")
            result[filled : filled + len(numbers)] = list(map(float, numbers))
            filled += len(numbers)
            start = cut + 1
        self._at = end
        return NumberList(result)


# ---- What is looked for in such a text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JsonTensor:
    """Numbers of a text, meant as float32."""

    value: Numbers
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


def vector(value: object, what: str) -> Numbers:
    """A list of numbers."""
    if not isinstance(value, NumberList):
        raise FormatError(f"{what} must be a list of numbers")
    return value.values


def matrix(value: object, what: str) -> Numbers:
    """A list of lists of numbers, all of one length."""
    rows = [row.values for row in value if isinstance(row, NumberList)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(rows) < len(value) or len({len(row) for row in rows}) != 1:
        raise FormatError(f"{what} must be a list of rows of numbers, all of one length")
    return np.stack(rows)


def float32(numbers: Numbers) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The nearest numbers of float32; what is too large becomes infinite, and is refused where infinity is."""
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32, order="C")


def size_of(holder: Mapping[str, Any], key: str, what: str) -> int:
    """A positive integer that a network's size can be."""
    value = holder.get(key)
    if type(value) is not int or not 0 < value < 2**31:
        raise FormatError(f"{what} must have {key}, a positive integer, got {value!r:.100}")
    return value
