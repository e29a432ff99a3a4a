"""Live PyTorch objects: modules and state dicts. PyTorch itself is never imported: whoever passes a module has done so."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders import nested
from fastlstm.loaders.floats import STORED
from fastlstm.loaders.found import Contents, Found, listing, quoted
from fastlstm.loaders.torch_names import Array, Group, LazyTensor
from fastlstm.loaders.torch_names import find as find_lstms

__all__ = ["find"]

# What torch.ao.quantization leaves in place of a recurrent layer's parameters: packed, readable by torch alone
PACKED = "_all_weight_values."
RECURRENT = ("LSTM", "LSTMCell", "GRU", "GRUCell", "RNN", "RNNCell")


@dataclass(frozen=True)
class LiveTensor:
    """A tensor or array, not converted yet."""

    value: Any
    shape: tuple[int, ...]
    dtype: str


def find(source: object) -> Contents:
    """List the LSTMs in a module or a state dict.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if isinstance(source, Mapping):
        every = nested.groups(source, _lazy)
        packed = {key.partition(PACKED)[0].rstrip(".") for key in source if isinstance(key, str) and PACKED in key}
        return nested.contents("a state dict", [*find_lstms(every, _read), *map(_quantized, sorted(packed))], every)
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.Module):
        raise TypeError(f"a torch.nn.Module or a state dict expected, got {type(source).__name__} (for a file: fastlstm.load)")
    return _module(torch, source)


def _module(torch: Any, module: Any) -> Contents:
    classes = (torch.nn.RNNBase, torch.nn.RNNCellBase)
    modules = list(module.named_modules())
    tensors: dict[str, LazyTensor] = {}
    batch_first: dict[str, bool | None] = {}
    quantized = []
    for path, part in modules:
        # A scripted module has lost its class and remembers the name
        if isinstance(part, classes) or getattr(part, "original_name", None) in RECURRENT:
            batch_first[path] = getattr(part, "batch_first", None)
            for name, value in part.state_dict().items():
                lazy = _lazy(value)
                if lazy is not None:
                    tensors[f"{path}.{name}" if path else name] = lazy
        elif type(part).__name__ in RECURRENT and "quantized" in type(part).__module__:
            quantized.append(_quantized(path))
    found = [
        replace(item, info=replace(item.info, batch_first=batch_first.get(item.name)) if item.info else None)
        for item in find_lstms([Group((), tensors)], _read)
        if item.name in batch_first
    ]
    kinds = listing(sorted({type(part).__name__ for _, part in modules}), 5)
    return Contents([*found, *quantized], f"a module made of {kinds}")


def _quantized(path: str) -> Found:
    return Found(path, problem=f"{quoted(path)} is quantized: pass the model as it was before")


def _lazy(value: object) -> LiveTensor | None:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None or not (hasattr(value, "detach") or hasattr(value, "__array__")):
        return None
    return LiveTensor(value, tuple(shape), getattr(dtype, "name", str(dtype).removeprefix("torch.")))


def _read(tensors: Sequence[LiveTensor]) -> list[Array]:
    arrays = []
    for tensor in tensors:
        value = tensor.value
        try:
            if hasattr(value, "detach"):
                # NumPy has no bfloat16; force also copies from other devices and resolves lazy negation
                value = (value.detach().float() if tensor.dtype in ("bfloat16", "float16") else value.detach()).numpy(force=True)
            array = np.asarray(value)
            if tensor.dtype not in STORED or array.shape != tensor.shape:
                raise ValueError(f"got an array of shape {array.shape} and dtype {array.dtype}")
            arrays.append(array.astype(np.float64 if tensor.dtype == "float64" else np.float32, order="C"))
        except (RuntimeError, TypeError, ValueError) as error:
            raise FormatError(f"a tensor of shape {tensor.shape} and dtype {tensor.dtype} cannot be read: {error}") from error
    return arrays
