"""What the engine takes for parameters and tensors: packed networks, arrays over the same memory; and on how many threads."""

from __future__ import annotations

import contextlib
import contextvars
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import to_dlpack

import fastlstm
from fastlstm import _engine
from fastlstm import threads as _threads
from fastlstm.arrays import Array, contiguous
from fastlstm.weights import Weights, parameter_shapes

__all__ = ["Tensor", "allowance", "array_of", "frozen", "packed_network", "per_record"]

Tensor = Any  # torch.Tensor; the type checker does without PyTorch


@dataclass(frozen=True, eq=False)
class _Packed:
    """A packed network, copies of the arrays it was packed of, and where these came from: their memory, and the places in it."""

    memories: list[weakref.ref[Any]]
    options: tuple[bool, int, bool, bool]
    places: list[tuple[int, tuple[int, ...], bool]]
    arrays: list[Array]
    lstm: fastlstm.LSTM

    def is_of(self, weights: list[Tensor]) -> bool:
        """Whether these tensors are where the packed ones were. An address alone may be used again by what comes after."""
        return self.places == [_place(weight) for weight in weights] and all(
            known() is weight.untyped_storage() for known, weight in zip(self.memories, weights, strict=True)
        )


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...], bool]:
    """Address, strides, and whether it is read negated."""
    return tensor.data_ptr(), tensor.stride(), tensor.is_neg()


# By the id of the first tensor's memory, until that dies, and the place in it. PyTorch does not swap tensors with weak references
# (torch.__future__.set_swap_module_params_on_conversion); their memory may have some
_networks: dict[tuple[int, int], _Packed] = {}


def packed_network(weights: list[Tensor], bias: bool, proj_size: int, bidirectional: bool, batch_first: bool) -> fastlstm.LSTM:
    """The packed network of these weights; packed now, if it is not there or not made of these very bytes.

    Version counters are not asked: they miss what is written through ``.data``, as gradcheck does, or through NumPy.
    """
    memory, options = weights[0].untyped_storage(), (bias, proj_size, bidirectional, batch_first)
    key = id(memory), weights[0].storage_offset()
    known = _networks.get(key)
    if known is not None and (known.memories[0]() is not memory or known.options != options):
        known = None
    if known is not None and _frozen.get() and known.is_of(weights):
        return known.lstm
    arrays = [contiguous(array_of(weight)) for weight in weights]
    if known is not None and _engine.same_arrays(arrays, known.arrays) and arrays[0].dtype == known.lstm.dtype:
        return known.lstm
    records, directions = len(arrays) // per_record(bias, proj_size), 2 if bidirectional else 1
    I, H = arrays[0].shape[1], len(arrays[0]) // 4
    sizes: dict[str, Any] = {"bias": bias, "bidirectional": bidirectional, "proj_size": proj_size}
    named = dict(zip(parameter_shapes(I, H, records // directions, **sizes), arrays, strict=True))
    lstm = fastlstm.LSTM.from_weights(Weights.from_named_tensors(named), batch_first)  # copies them

    def forget(dead: weakref.ref[Any]) -> None:
        if key in _networks and _networks[key].memories[0] is dead:
            del _networks[key]

    copies = [tensor for _, tensor in lstm.weights.named_tensors()]
    memories = [weakref.ref(memory, forget), *(weakref.ref(weight.untyped_storage()) for weight in weights[1:])]
    _networks[key] = _Packed(memories, options, [_place(weight) for weight in weights], copies, lstm)
    return lstm


def per_record(bias: bool, proj_size: int) -> int:
    """Tensors of each layer and direction."""
    return 2 + 2 * bias + (proj_size > 0)


class _Lent:
    """A tensor as NumPy asks for others' memory."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return to_dlpack(self.tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


def array_of(tensor: Tensor) -> Array:
    """The tensor's memory as an array to be read.

    ``tensor.numpy()`` would let nobody resize the tensor any more, as FSDP does with parameters. Through the tensor's own
    ``__dlpack__`` it would take twice as long.
    """
    tensor = tensor.resolve_neg()
    if not tensor.data_ptr() and tensor.numel():
        freed = "its storage was freed, as sharded modules do between their calls"
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no memory: {freed}")
    array: Array = np.from_dlpack(_Lent(tensor))
    return array


def allowance() -> int | None:
    """The most threads for a call: None leaves it to fastlstm, unless PyTorch was given fewer."""
    n: int = torch.get_num_threads()
    return n if n < _threads.get_num_threads() else None


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Promise that no parameter changes inside: packed weights are used without comparing them with the parameters.

    Applies to calls of this thread. Parameters that were moved, replaced or never packed are still compared and packed. A change
    made inside is noticed by the next call outside. Has no effect in code compiled by ``torch.compile``: put it around the call.

    Examples
    --------
    >>> with torch.inference_mode(), fastlstm.torch.frozen():
    ...     for x in frames:
    ...         h, c = cell(x, (h, c))
    """
    if torch.compiler.is_compiling():  # compilers do not know context variables
        yield
        return
    token = _frozen.set(True)
    try:
        yield
    finally:
        _frozen.reset(token)


_frozen: contextvars.ContextVar[bool] = contextvars.ContextVar("fastlstm.torch.frozen", default=False)
