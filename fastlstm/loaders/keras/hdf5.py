"""HDF5 files: the tree is listed by a short-lived child process (``hdf5_worker.py``), the numbers are read here.

Keras writes each dataset in one piece, so an offset is all that is needed; HDF5's library never handles data, and what the child
says is checked like a header that stands in the file.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders import strict_json
from fastlstm.loaders.found import quoted
from fastlstm.loaders.source import SourceFile
from fastlstm.loaders.tensors import STORED
from fastlstm.weights import MAX_SIZE

__all__ = ["SIGNATURE", "UNSAID", "Dataset", "Group", "read_tree"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
WORKER = Path(__file__).with_name("hdf5_worker.py")
# For the child in all, beside the limit of what its description may take here: it has 40 MB before it looks at the file. With
# the text of its answer that makes 61 MB and 2.25 times the file.
MEMORY = 16 << 20
SECONDS = 60  # by the clock, for a child that waits; one that computes has a limit of its own
INSTALL = "reading HDF5 (Keras .keras and .h5 files) needs h5py: pip install h5py"
BROKEN = "broken HDF5 file"
WINDOWS = ("_layer_checkpoint_dependencies\\", "layers\\")
MAX_DIMENSIONS = 32
UNSAID = "|V2 (bfloat16? the file does not say: save it as .keras)"  # the dtype of two bytes without a note of what they are


@dataclass(frozen=True)
class Dataset:
    """An array in the file; ``dtype`` is torch's name for the dtypes that can be read. ``offset`` is None if it is in pieces."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    byteorder: str
    offset: int | None
    stored: int
    source: SourceFile

    def read(self) -> Array:
        """The array as it is stored, of the dtype ``STORED[self.dtype]``."""
        kind = STORED[self.dtype]
        expected = math.prod(self.shape) * kind.itemsize
        if self.offset is None:
            raise FormatError(f"dataset {quoted(self.name)} is compressed or in pieces, as Keras stores none: save it with Keras")
        if self.stored != expected:
            raise FormatError(f"dataset {quoted(self.name)} must have {expected} bytes, the file has {self.stored}")
        raw = self.source.read(self.offset, expected)
        return np.frombuffer(raw, kind.newbyteorder(self.byteorder)).reshape(self.shape)  # type: ignore[arg-type]


@dataclass
class Group:
    """A group, with what is in it, and of its attributes those that Keras' formats use."""

    path: str
    attributes: dict[str, list[str]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)

    def texts(self, name: str) -> list[str]:
        """An attribute that is a list; Keras cuts long ones into name0, name1, ..."""
        keys = [name, *(f"{name}{number}" for number in range(len(self.attributes)))]
        return [text for key in keys for text in self.attributes.get(key, [])]

    def text(self, name: str) -> str | None:
        """An attribute that is a single text."""
        return next(iter(self.attributes.get(name, [])), None)

    def group(self, path: str) -> Group | None:
        group: Group | None = self
        for step in path.split("/"):
            group = group.groups.get(step) if group else None
        return group

    def dataset(self, path: str) -> Dataset | None:
        outer, _, name = path.rpartition("/")
        group = self.group(outer) if outer else self
        return group.datasets.get(name) if group else None

    def walk(self) -> Iterator[Group]:
        """This group and all in it, outer ones first."""
        waiting = [self]
        while waiting:
            group = waiting.pop()
            yield group
            waiting += reversed(group.groups.values())


def read_tree(stream: BinaryIO, source: SourceFile, limit: int) -> Group:
    """List an HDF5 file.

    Parameters
    ----------
    stream : file
        With a file descriptor, which the child reads; its position stays.
    source : SourceFile
        The same bytes, from which datasets will be read.
    limit : int
        Most bytes that the description may take in memory.

    Raises
    ------
    FormatError
        If HDF5 cannot read it, crashes or takes too long, or if it refers to other files.
    ImportError
        If h5py is not installed.
    """
    if not _installed("h5py"):
        raise ImportError(INSTALL)
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("reading HDF5 needs a Python interpreter to start, and sys.executable is none")
    text = _ask(stream.fileno(), limit)
    answer = strict_json.parse(text, "description of the HDF5 file", limit)
    if not isinstance(answer, dict) or len(answer) != 1:
        raise FormatError(f"{BROKEN}: its reader answered in an unknown way")
    ((kind, value),) = answer.items()
    if kind == "missing" and isinstance(value, str):
        raise ImportError(f"{INSTALL} (it is here, but could not be imported: {value})")
    if kind != "entries" or not isinstance(value, list):
        raise FormatError(f"{BROKEN if kind == 'broken' else 'refused HDF5 file'}: {value!a:.400}")
    return _tree(value, source)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # somebody put None, or a module without a spec, in sys.modules
        return sys.modules.get(name) is not None


def _request(limit: int) -> dict[str, Any]:
    # What this process imports h5py from, the child does too; it takes nothing else from the environment or the folder it is in
    return {"path": [path for path in sys.path if os.path.isabs(path)], "limit": limit // 8, "memory": limit + MEMORY}


def _ask(descriptor: int, limit: int) -> bytes:
    """The child's answer, all of it within its time and size."""
    request = _request(limit)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HDF5")}
    environment |= {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-S", "-B", str(WORKER), json.dumps(request)]
    position = os.lseek(descriptor, 0, os.SEEK_CUR)  # the child shares it
    deadline = time.monotonic() + SECONDS
    process = subprocess.Popen(
        command, stdin=descriptor, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, close_fds=True
    )
    try:
        assert process.stdout is not None
        text = _read_until(process.stdout.fileno(), request["limit"], deadline)
        status = process.wait(max(0.1, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise FormatError(f"{BROKEN}: reading it took more than {SECONDS} s") from None
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        os.lseek(descriptor, position, os.SEEK_SET)
    if not text:
        raise FormatError(f"{BROKEN}: HDF5's library did not survive it (exit status {status} of {quoted(sys.executable)})")
    return text


def _read_until(descriptor: int, limit: int, deadline: float) -> bytes:
    text = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while selector.select(max(0, deadline - time.monotonic())):
            part = os.read(descriptor, 1 << 16)
            if not part:
                return bytes(text)
            text += part
            if len(text) > limit:
                raise FormatError(f"{BROKEN}: a description of more than {limit} bytes")
    raise TimeoutError


def _tree(entries: list[Any], source: SourceFile) -> Group:
    """The groups by name, each numbered family in its order: lstm, lstm_1, lstm_2, ..., lstm_10."""
    root = Group("")
    if not all(map(_is_entry, entries)):
        raise FormatError(f"{BROKEN}: its reader answered in an unknown way")
    for entry in sorted(entries, key=lambda entry: _order(entry[0])):
        path, attributes = entry[0], entry[1]
        if not path:
            root.attributes = attributes
            continue
        *outer, name = _steps(path)
        group = root
        for step in outer:
            if step not in group.groups and "\\" in path:
                group.groups[step] = Group(path)
            if step not in group.groups:
                raise FormatError(f"{BROKEN}: {quoted(path)} lies in no group")
            group = group.groups[step]
        if name in group.groups or name in group.datasets:
            raise FormatError(f"{BROKEN}: {quoted(path)} occurs twice")
        if len(entry) == 2:
            group.groups[name] = Group(path, attributes)
        else:
            group.datasets[name] = _dataset(entry, source)
    return root


def _steps(path: str) -> list[str]:
    """The names of the groups on the way; TensorFlow's Keras 2.13 to 2.15 wrote several as one on Windows, with backslashes."""
    steps = path.split("/")
    return [*steps[0].split("\\"), *steps[1:]] if steps[0].startswith(WINDOWS) else steps


def _order(path: str) -> tuple[int, str, int, str]:
    """Groups before what is in them; of one family by its numbers."""
    stem, _, number = path.rpartition("_")
    numbered = stem and number.isascii() and number.isdigit() and len(number) < 10 and (number == "0" or number[0] != "0")
    return path.count("/"), stem if numbered else path, int(number) if numbered else -1, path


def _is_entry(entry: Any) -> bool:
    """Whether it begins with a path and its attributes, and is as long as a group's or a dataset's."""
    if not isinstance(entry, list) or len(entry) not in (2, 6):
        return False
    return isinstance(entry[0], str) and len(entry[0]) <= 2000 and _are_texts(entry[1])


def _are_texts(attributes: Any) -> bool:
    return isinstance(attributes, dict) and all(
        isinstance(value, list) and all(isinstance(text, str) for text in value) for value in attributes.values()
    )


def _dataset(entry: list[Any], source: SourceFile) -> Dataset:
    path, attributes, shape, dtype, offset, stored = entry
    shape = [] if shape is None else shape
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise FormatError(f"dataset {quoted(path)} has a shape {shape!a:.100}: no dimension may exceed {MAX_SIZE}")
    if not isinstance(dtype, str) or not (offset is None or _is_size(offset, 1 << 63)) or not _is_size(stored, 1 << 64):
        raise FormatError(f"{BROKEN}: its reader answered in an unknown way")
    # NumPy has no bfloat16: Keras stores its bits, and says so
    names = {"f2": "float16", "f4": "float32", "f8": "float64"}
    name = names.get(dtype[1:], dtype[:50])
    if dtype == "|V2":
        name = "bfloat16" if attributes.get("dtype") == ["bfloat16"] else UNSAID
    return Dataset(path, tuple(shape), name, ">" if dtype[0:1] == ">" else "<", offset, stored, source)


def _is_size(value: Any, limit: int = MAX_SIZE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit
