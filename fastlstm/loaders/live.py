"""Tensors and arrays that a caller passes, of any framework: looked at first, converted when they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.loaders.tensors import STORED, LazyTensor, precision

__all__ = ["LiveTensor", "flattened", "lazy", "read", "read_one"]

MAX_DEPTH = 50


@dataclass(frozen=True)
class LiveTensor:
    """A tensor or array, not converted yet."""

    value: Any
    shape: tuple[int, ...]
    dtype: str
    name: str = ""


def lazy(value: object, name: str = "") -> LiveTensor | None:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None or not (hasattr(value, "detach") or hasattr(value, "__array__")):
        return None
    return LiveTensor(value, tuple(shape), getattr(dtype, "name", str(dtype).removeprefix("torch.")), name)


def read(tensors: Sequence[LiveTensor]) -> list[Array]:
    arrays = []
    for tensor in tensors:
        value = tensor.value
        try:
            if isinstance(value, np.ma.MaskedArray):
                raise TypeError("a masked array, whose mask would be ignored; pass its filled(...)")
            if hasattr(value, "detach"):
                # NumPy has no bfloat16; force also copies from other devices and resolves lazy negation
                value = (value.detach().float() if tensor.dtype in ("bfloat16", "float16") else value.detach()).numpy(force=True)
            array = np.asarray(value)
            if tensor.dtype not in STORED or array.shape != tensor.shape:
                raise ValueError(f"got an array of shape {array.shape} and dtype {array.dtype}")
            arrays.append(array.astype(precision(tensor.dtype), order="C"))
        except (RuntimeError, TypeError, ValueError) as error:
            what = f"tensor {quoted(tensor.name)}" if tensor.name else "a tensor"
            raise FormatError(f"{what} of shape {tensor.shape} and dtype {tensor.dtype} cannot be read: {error}") from error
    return arrays


def read_one(tensor: LiveTensor) -> Array:
    return read([tensor])[0]


def flattened(tree: Mapping[Any, Any]) -> dict[str, LazyTensor]:
    """The tensors of nested mappings and lists under their paths, with slashes; keys may be text, numbers and tuples of them.

    Raises
    ------
    FormatError
        If two have the same path.
    """
    result: dict[str, LazyTensor] = {}
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    while waiting:
        path, item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise FormatError(f"containers nested more than {MAX_DEPTH} deep")
        inner = []
        for key, value in item.items() if isinstance(item, Mapping) else enumerate(item):
            steps = key if isinstance(key, tuple) else (key,)
            name = "/".join([*([path] if path else []), *map(str, steps)])
            tensor = lazy(value, name)
            if tensor is not None:
                if name in result:
                    raise FormatError(f"two tensors have the name {quoted(name)}")
                result[name] = tensor
            elif isinstance(value, (Mapping, list, tuple)):
                inner.append((name, value, depth + 1))
        waiting += reversed(inner)
    return result
