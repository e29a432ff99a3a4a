"""NumPy archives (.npz): a zip file whose members are arrays. Also what ``fastlstm convert`` writes.

The header of a member is a Python literal; here it must be the one text that NumPy writes, and is never evaluated.

References
----------
``numpy/lib/format.py``, "NPY format".
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from functools import partial

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.files import writing
from fastlstm.loaders import metadata, schemes
from fastlstm.loaders.archive import Archive
from fastlstm.loaders.found import Contents, quoted, summary
from fastlstm.loaders.source import SourceFile
from fastlstm.loaders.tensors import to_floats
from fastlstm.weights import MAX_SIZE, Weights

__all__ = ["find", "members_of", "recognises", "stored", "write_npz"]

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # bytes, as in NumPy
USUAL_HEADER = 256
MAX_TENSORS = 5_000  # headers to read: each takes a tenth of a millisecond
HEADER = re.compile(
    r" *\{ *'descr' *: *(?:'([^'\\]{1,20})'|\[.*\]) *, *'fortran_order' *: *(True|False) *, "
    r"*'shape' *: *\(([0-9L, ]*)\) *,? *\} *\n?",
    re.DOTALL,
)
FLOATS = {"f2": "float16", "f4": "float32", "f8": "float64"}


@dataclass(frozen=True)
class Member:
    """One array: ``dtype`` is torch's name for what can be read, NumPy's description of anything else."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    byteorder: str
    fortran: bool


def recognises(file: SourceFile) -> bool:
    return file.archive is not None and any(name.endswith(".npy") for name in file.archive.members)


def find(file: SourceFile) -> Contents:
    """List the LSTMs of the file, under the names of any framework.

    Raises
    ------
    FormatError
        If a member is no plain array of the size it declares.
    """
    archive = file.archive
    assert archive is not None
    members, read = members_of(archive), partial(stored, archive)
    ours = metadata.parse(_text(archive, members.pop(metadata.KEY))) if metadata.KEY in members else None
    if ours is not None and ours.cells is not None:
        found = metadata.find(ours, members, lambda wanted: [to_floats(read(m), m.dtype) for m in wanted], file.weights_limit)
    else:
        found = schemes.find(members, read, file.weights_limit, ours.batch_first if ours else None, file.layout)
    return Contents(found, summary("a NumPy archive", members, "arrays"))


def members_of(archive: Archive) -> dict[str, Member]:
    """The arrays of an archive by name, none of them read."""
    if len(archive.members) > MAX_TENSORS:
        raise FormatError(f"{len(archive.members)} arrays, more than {MAX_TENSORS}")
    members: dict[str, Member] = {}
    for name in archive.members:
        if not name.endswith(".npy"):
            raise FormatError(f"{quoted(name)} is not an array (.npy) and does not belong in a NumPy archive (.npz)")
        members[name.removesuffix(".npy")] = _member(archive, name)
    return members


def stored(archive: Archive, member: Member) -> Array:
    """An array of floats, as it is stored."""
    data = archive.span(member.file, member.start, member.stop)
    numbers: Array = np.frombuffer(data, np.dtype(f"{member.byteorder}f{_itemsize(member.dtype)}"))
    return numbers.reshape(member.shape, order="F" if member.fortran else "C")


def _member(archive: Archive, name: str) -> Member:
    head = archive.start(name, USUAL_HEADER)
    version = head[6:8]
    if head[:6] != MAGIC or version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise FormatError(f"{quoted(name)} is not in NumPy's format (.npy)")
    width = 2 if version == b"\1\0" else 4
    length = int.from_bytes(head[8 : 8 + width], "little")
    start = 8 + width + length
    size = archive.size_of(name)
    if length > MAX_HEADER or start > size:
        raise FormatError(f"{quoted(name)} declares a header of {length} bytes; it has {size}, and {MAX_HEADER} are allowed")
    text = (head if start <= len(head) else archive.start(name, start))[8 + width : start]
    match = HEADER.fullmatch(text.decode("latin1"))
    if match is None:
        raise FormatError(f"{quoted(name)} has a header that NumPy does not write: {quoted(text[:80].decode('latin1').strip())}")
    descr, order, sizes = match.groups()
    shape = _shape(name, sizes)
    if descr is None:
        return Member(name, "structured", shape, start, size, "<", False)
    if "O" in descr:
        raise FormatError(f"{quoted(name)} holds pickled objects, which could execute code: save arrays of numbers alone")
    kind = descr.lstrip("<>|=")
    itemsize = _itemsize(kind)
    if itemsize and math.prod(shape) * itemsize != size - start:
        expected = math.prod(shape) * itemsize
        raise FormatError(f"{quoted(name)} of shape {shape!s:.100} must have {expected} bytes of data, got {size - start}")
    return Member(name, FLOATS.get(kind, descr), shape, start, size, ">" if descr[0] == ">" else "<", order == "True")


def _shape(name: str, text: str) -> tuple[int, ...]:
    """The literal of a tuple: ``()``, ``(3,)``, ``(3, 4)``; Python 2 wrote ``3L``."""
    numbers = [number.strip().removesuffix("L") for number in text.split(",")]
    if numbers[-1] == "":
        numbers.pop()
    if (len(numbers) == 1 and "," not in text) or len(numbers) > 64 or not all(n.isdigit() and len(n) < 20 for n in numbers):
        raise FormatError(f"{quoted(name)} has an invalid shape: ({text[:80]})")
    shape = tuple(map(int, numbers))
    if any(size > MAX_SIZE for size in shape):
        raise FormatError(f"{quoted(name)} has shape {shape!s:.100}: no dimension may exceed {MAX_SIZE}")
    return shape


def _itemsize(kind: str) -> int:
    """Bytes of one element; 0 for what is not looked at."""
    if kind in FLOATS.values():
        return {"float16": 2, "float32": 4, "float64": 8}[kind]
    match = re.fullmatch("([biufcSVU])([0-9]{1,6})", kind)
    return 0 if match is None else int(match[2]) * (4 if match[1] == "U" else 1)


def _text(archive: Archive, member: Member) -> str:
    """One text, as ``np.array("...")`` is stored."""
    if member.shape != () or not member.dtype.startswith("<U") or member.stop - member.start > 4 * metadata.MAX_TEXT:
        raise FormatError(f"{quoted(member.file)} must be one text of at most {metadata.MAX_TEXT} characters")
    data = archive.span(member.file, member.start, member.stop)
    try:
        return data.decode("utf-32-le").rstrip("\0")
    except UnicodeDecodeError as error:
        raise FormatError(f"{quoted(member.file)} is not text: {error}") from None


def write_npz(path: str | os.PathLike[str], weights: Weights, batch_first: bool) -> None:
    """Write a network as a NumPy archive under PyTorch's names, with a text ``fastlstm`` that says the rest.

    The file appears at once or not at all.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    ours = np.array(metadata.text_of(weights, batch_first))
    with writing(path) as stream:
        np.savez(stream, **{metadata.KEY: ours}, **dict(weights.named_tensors()))  # type: ignore[arg-type]
