"""What callers hand in, as NumPy arrays: nothing is converted silently, every refusal names the argument."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "Array",
    "Inputs",
    "as_array",
    "as_booleans",
    "as_bytes",
    "as_flag",
    "as_floats",
    "as_integer",
    "as_lengths",
    "as_resets",
    "booleans_error",
    "contiguous",
    "copy_to",
    "fits_kernels",
    "for_kernels",
    "overlap",
    "overlaps_itself",
    "pieces",
    "shape_error",
]

Array = np.ndarray[Any, np.dtype[Any]]


class Inputs(NamedTuple):
    """The arguments of a call on whole sequences, checked, as the engine takes them."""

    given: Array  # x as it was given
    x: Array  # (T, B, I), which the kernels can read in place
    single: bool  # whether it was one sequence (T, I)
    h_0: Array | None  # (L*D, B, P)
    c_0: Array | None  # (L*D, B, C)
    lengths: Array | None  # (B,)
    resets: Array | None  # (T, B), bytes
    steps: Array | None  # with a mask: the times (T, B, 1) of the steps of x
    ended: Array | None  # with a mask: rows (B,) that restart after their last step

    def arrays(self) -> Iterator[tuple[str, Array | None]]:
        """Those that a call reads, under the names of the arguments."""
        arrays = (self.given, self.h_0, self.c_0, self.lengths, self.resets)
        return zip(("x", "h_0", "c_0", "lengths", "resets"), arrays, strict=True)


PIECE = 8 << 20  # bytes that are copied at a time: between two pieces Ctrl-C takes effect


def as_array(name: str, value: Any, dtype: np.dtype[Any] | None = None) -> Array:
    """`value` as an array over the same memory where that is possible; objects with ``__array__`` or ``__dlpack__`` too.

    `dtype` is for the message where NumPy does not know the type, as with bfloat16.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        advice = f"; pass {name}.data" if name == "out" else f"; pass {name}.filled(...)"
        raise TypeError(f"{name} is a masked array, whose mask would be ignored{advice}")
    if getattr(value, "requires_grad", False):
        raise TypeError(f"{name} requires a gradient, which would be lost; pass {name}.detach()")
    if hasattr(value, "data_ptr") and hasattr(value, "numel") and value.numel() and not value.data_ptr():
        raise ValueError(f"{name} has no memory: the tensor's storage was freed")
    try:
        if hasattr(value, "__array__"):
            return np.asarray(value)
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
    except MemoryError:
        raise
    except Exception as error:
        of = "" if dtype is None else f" of {dtype}"
        message = f"{name} must be an array{of} on the CPU; {type(value).__name__} could not be read as one: {error!s:.200}"
        raise TypeError(message) from error
    raise TypeError(f"{name} must be an array, got {type(value).__name__}")


def as_floats(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """An array of exactly `dtype`."""
    array = as_array(name, value, dtype)
    if array.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} as the weights are, got {array.dtype}; convert it to {dtype.name} first")
    return array


def as_integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An integer of Python or NumPy, within bounds.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    value : object
    least, most : int, optional
        The bounds; there is no `most` without `least`.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If it is no integer; True is none.
    ValueError
        If it is out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r:.100}")
    if least is not None and (value < least or (most is not None and value > most)):
        bounds = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {bounds}, got {value!s:.100}")
    return int(value)


def as_flag(name: str, value: Any) -> bool:
    """True or False, or 1 or 0: any other object, such as the text of a configuration file, would pass for True.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : object

    Returns
    -------
    bool

    Raises
    ------
    TypeError
        If it is none of these.
    """
    if not isinstance(value, (bool, int, np.bool_, np.integer)) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {value!r:.100}")
    return bool(value)


def contiguous(array: Array) -> Array:
    """The array itself if it is C-contiguous and aligned, else a copy."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array
    if array.nbytes <= PIECE:
        return np.array(array, order="C")
    copy: Array = np.empty(array.shape, array.dtype)
    copy_to(copy, array)
    return copy


def copy_to(target: Array, source: Array) -> None:
    """As ``target[...] = source`` of one shape, and Ctrl-C takes effect on the way."""
    while len(target) == 1 and target.ndim > 1:
        target, source = target[0], source[0]
    for piece in pieces(target):
        target[piece] = source[piece]


def pieces(array: Array) -> Iterator[slice]:
    """Slices of the first axis, of some megabytes each."""
    step = max(1, len(array) * PIECE // max(array.nbytes, 1))
    return (slice(begin, begin + step) for begin in range(0, len(array), step))


def fits_kernels(array: Array) -> bool:
    """Whether the kernels can work on it: aligned, last axis contiguous."""
    return array.flags.aligned and (array.shape[-1] == 1 or array.strides[-1] == array.itemsize)


def for_kernels(array: Array) -> Array:
    """The array itself if the kernels can work on it, else a copy."""
    return array if fits_kernels(array) else contiguous(array)


def as_bytes(array: Array | None) -> Array | None:
    """The same memory as flat bytes, as the engine takes tensors that may be missing; the array is contiguous."""
    return None if array is None else array.reshape(-1).view(np.uint8)


def as_lengths(value: Any, T: int, B: int) -> Array:
    """Lengths as int64; any integers in a list or array of shape (B,), each 0..T."""
    try:
        array = np.asarray(value) if isinstance(value, (list, tuple)) else as_array("lengths", value)
    except ValueError as error:
        raise ValueError(f"lengths must have shape ({B},): {error}") from error
    if array.ndim == 1 and (array.dtype == object or isinstance(value, (list, tuple))):
        array = np.array([_index(f"lengths[{row}]", length) for row, length in enumerate(value)], object)  # of any size
    if array.shape != (B,):
        raise shape_error("lengths", (B,), array.shape)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iuO":
        raise TypeError(f"lengths must be integers, got {array.dtype}")
    bad = (array < 0) | (array > T)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"lengths must be between 0 and T = {T}, got lengths[{row}] = {array[row]}")
    return np.ascontiguousarray(array, np.int64)


def _index(name: str, value: Any) -> int:
    """What Python takes for an integer, an element of a tensor too; True is none."""
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an integer, got {value!r:.100}")


def as_resets(value: Any, shape: tuple[int, ...]) -> Array:
    """Resets as bytes of shape (T, B); given as booleans of that shape, or (T,) for one sequence."""
    bits = as_booleans("resets", value, shape).view(np.uint8)
    return bits[:, None] if bits.ndim == 1 else bits


def as_booleans(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """An array of booleans of that shape, which is (T, B), or (T,) for one sequence."""
    array = as_array(name, value)
    if array.dtype != np.bool_:
        raise TypeError(f"{name} must be bool, got {array.dtype}")
    if array.shape != shape:
        raise booleans_error(name, shape, array.shape)
    return array


def booleans_error(name: str, expected: tuple[int, ...], given: tuple[int, ...]) -> ValueError:
    """The error for booleans of another shape than (T, B), which callers with ``batch_first`` are tempted to turn."""
    error = shape_error(name, expected, given)
    return ValueError(f"{error}: (T, B), also with batch_first") if given == expected[::-1] else error


def shape_error(name: str, expected: tuple[object, ...], given: tuple[int, ...], *others: tuple[object, ...]) -> ValueError:
    """The error for a wrong shape; letters may stand for lengths that are free, and `others` would do, too."""
    wanted = ("(" + ", ".join(str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")" for shape in (expected, *others))
    return ValueError(f"{name} must have shape {' or '.join(wanted)}, got {given}")


def overlap(a: Array, b: Array) -> bool:
    """Whether they share memory, as far as can be told with little work."""
    if not np.may_share_memory(a, b):  # by their bounds
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # any integer, NumPy says
    except np.exceptions.TooHardError:
        return True  # what cannot be shown to be apart is taken as overlapping


def overlaps_itself(array: Array) -> bool:
    """Whether two elements may share memory: sorted by stride, each axis must step over all inner ones."""
    if array.flags.forc:
        return False
    extent = array.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return True
            extent += stride * (size - 1)
    return False
