"""The tensors that networks are made of: what is known of one before it is read, and its bytes as numbers.

Numbers become floats exactly: of float16 and bfloat16 the float32 of the same value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted

__all__ = [
    "FLOATS",
    "STORED",
    "LazyTensor",
    "NamedTensor",
    "ReadFloats",
    "ReadStored",
    "check_dtype",
    "check_size",
    "dtypes",
    "fill",
    "handed_over",
    "one_precision",
    "precision",
    "to_floats",
    "too_large",
]


# How the bytes are read; NumPy has no bfloat16, so its bits are
STORED: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
FLOATS = tuple(STORED)


class LazyTensor(Protocol):
    """What is known of a tensor before it is read; ``dtype`` is torch's name without ``torch.``."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


NamedTensor: TypeAlias = "tuple[str, LazyTensor]"
# Reads tensors into new C-contiguous arrays: float64 as it is, float32, float16 and bfloat16 as float32.
ReadFloats = Callable[[Sequence[Any]], Sequence[Array]]
# Returns one tensor as it is stored: the dtype that STORED has for its own, any layout; or floats made of it.
ReadStored = Callable[[Any], Array]


# ---- Checks --------------------------------------------------------------------------------------------------------------------


def precision(dtype: str) -> np.dtype[Any]:
    """What numbers of a dtype become here: float64 stays, all else is float32."""
    return np.dtype(np.float64 if dtype == "float64" else np.float32)


def dtypes(tensors: Iterable[LazyTensor]) -> str:
    """As LSTMInfo has them: several are joined by ``+``."""
    return "+".join(sorted({tensor.dtype for tensor in tensors}))


def check_dtype(name: str, tensor: LazyTensor) -> None:
    """Refuse a tensor that holds no floats."""
    if tensor.dtype not in FLOATS:
        raise FormatError(f"{quoted(name)} must be one of {', '.join(FLOATS)}, got {tensor.dtype:.100}")


def one_precision(tensors: Sequence[NamedTensor]) -> np.dtype[Any]:
    """What all these become; tensors of no floats are refused, and those that do not go together."""
    first_name, first = tensors[0]
    for name, tensor in tensors:
        check_dtype(name, tensor)
        if precision(tensor.dtype) != precision(first.dtype):
            raise FormatError(f"{quoted(name)} is {tensor.dtype}, {quoted(first_name)} is {first.dtype}: one precision expected")
    return precision(first.dtype)


def check_size(what: str, size: int, limit: float) -> None:
    """Refuse weights that take more bytes than they may."""
    if size > limit:
        raise FormatError(too_large(what, size, limit))


def too_large(what: str, size: int, limit: float) -> str:
    """Of weights that take more than :func:`fastlstm.loaders.source.weights_limit`: the rule, and what fits it."""
    rule = f"more than {limit} for this file (twice its size and 16 MiB)"
    return f"{what} take {size} bytes, {rule}: store every weight in full, not compressed, shared or quantized"


# ---- Numbers -------------------------------------------------------------------------------------------------------------------


def to_floats(stored: Array, dtype: str) -> Array:
    """Return a new C-contiguous native array that owns its memory; ``stored`` has the type ``STORED[dtype]``, any byte order."""
    if dtype == "bfloat16":
        result: Array = np.empty(stored.shape, np.float32)
        bits = result.view(np.uint32)
        bits[...] = stored
        bits <<= 16  # a bfloat16 is the upper half of a float32
        return result
    return stored.astype(precision(dtype), order="C")


def fill(target: Array, stored: Array) -> None:
    """Write stored numbers, of any layout and of a type of ``STORED``, into a part of an array of float32 or float64."""
    if stored.dtype.kind == "u":
        bits = target.view(np.uint32)
        bits[...] = stored
        bits <<= 16
    else:
        with np.errstate(over="ignore"):
            target[...] = stored


def handed_over(array: Array) -> Array:
    """The same array, no longer to be written: whoever needs a private one need not copy it."""
    array.flags.writeable = False
    return array
