"""Everything that an array may be and that gives the same bits as a plain one."""

from __future__ import annotations

from typing import Any

import numpy as np


class OnlyArray:
    """An object that offers ``__array__`` and nothing else."""

    def __init__(self, a: np.ndarray) -> None:
        self.a = a

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.a if dtype is None else self.a.astype(dtype)


class OnlyDLPack:
    """An object that offers ``__dlpack__`` and nothing else."""

    def __init__(self, a: np.ndarray) -> None:
        self.a = a

    def __dlpack__(self, **options: Any) -> Any:
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.a.__dlpack_device__()


def misaligned(a: np.ndarray, by: int) -> np.ndarray:
    store = np.zeros(a.nbytes + 64, np.uint8)
    moved = store[by : by + a.nbytes].view(a.dtype).reshape(a.shape)
    moved[...] = a
    return moved


def spread(a: np.ndarray) -> np.ndarray:
    """Every second element of something twice as large on each axis, NaN between."""
    store = np.full([2 * n + 1 for n in a.shape], np.nan if a.dtype.kind == "f" else 1, a.dtype)
    view = store[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def reversed_strides(a: np.ndarray) -> np.ndarray:
    backwards = tuple(slice(None, None, -1) for _ in a.shape)
    return a[backwards].copy()[backwards]


def padded_rows(a: np.ndarray) -> np.ndarray:
    return np.concatenate([a, np.ones((*a.shape[:-1], 3), a.dtype)], axis=-1)[..., :-3]


def read_only(a: np.ndarray) -> np.ndarray:
    view = a.copy()
    view.flags.writeable = False
    return view


LAYOUTS: dict[str, Any] = {
    "Fortran order": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "axes swapped": lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
    "every second element": spread,
    "negative strides": reversed_strides,
    "rows apart": padded_rows,
    "read-only": read_only,
    "off by 1 byte": lambda a: misaligned(a, 1),
    "off by one element": lambda a: misaligned(a, a.itemsize),
    "__array__": OnlyArray,
    "__dlpack__": OnlyDLPack,
    "a subclass": lambda a: a.view(type("Sub", (np.ndarray,), {})),
}
