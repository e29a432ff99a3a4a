"""State dicts inside the dictionaries and lists of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from fastlstm.errors import FormatError
from fastlstm.loaders.found import Contents, Found, summary
from fastlstm.loaders.tensors import LazyTensor
from fastlstm.loaders.torch.names import Group, looks_like_parameter

__all__ = ["contents", "groups"]

MAX_DEPTH = 32
MAX_KEY = 500  # characters

# The way to an object: (way to what holds it, key). A text would grow with the depth, and so would the time to make it.
Path: TypeAlias = "tuple[Path, str] | None"


def groups(root: object, tensor: Callable[[object], LazyTensor | None]) -> list[Group]:
    """Collect every dictionary that holds tensors under text, in the order of the file.

    Each object is visited once, so shared parts cost nothing; nothing recurses, so depth costs nothing.

    Parameters
    ----------
    root : object
    tensor : function (object) -> LazyTensor or None
        None for what is no tensor.
    """
    found: list[Group] = []
    if not isinstance(root, (Mapping, list, tuple)):
        return found
    waiting: list[tuple[Any, Path, int]] = [(root, None, 0)]
    seen = {id(root)}
    while waiting:
        item, path, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise FormatError(f"containers nested more than {MAX_DEPTH} deep")
        tensors: dict[str, LazyTensor] = {}
        numbers: list[str] = []
        inner: list[tuple[Any, Path, int]] = []
        for key, value in item.items() if isinstance(item, Mapping) else enumerate(item):
            lazy = tensor(value)
            if isinstance(key, str) and lazy is not None:
                tensors[key] = lazy
            elif isinstance(key, str) and isinstance(value, (int, float)) and looks_like_parameter(key[-MAX_KEY:]):
                numbers.append(key)
            elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
                seen.add(id(value))
                step = str(key) if isinstance(key, (str, int)) else type(key).__name__
                if len(step) > MAX_KEY:
                    raise FormatError(f"a dictionary key of {len(step)} characters")
                inner.append((value, (path, step), depth + 1))
        waiting += reversed(inner)
        if tensors:
            found.append(Group(_steps(path), tensors, tuple(numbers)))
    return found


def _steps(path: Path) -> tuple[str, ...]:
    steps = []
    while path is not None:
        path, step = path
        steps.append(step)
    return tuple(reversed(steps))


def contents(what: str, found: list[Found], every: list[Group]) -> Contents:
    """Summarise for the case that there is no LSTM."""
    names = [name for group in every for name in group.tensors]
    return Contents(found, summary(what, names) if names else f"{what} without named tensors")
