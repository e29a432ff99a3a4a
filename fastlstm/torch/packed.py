"""What the engine takes for parameters and tensors: packed networks, arrays over the same memory; and on how many threads."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import itertools
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


_MOST = 32  # networks of one memory: a flattened model may have as many LSTMs, a population of views has any number


@dataclass(eq=False)
class _Packed:
    """A packed network, copies of the arrays it was packed of, and where those lay: their memory, and how in it."""

    memories: list[weakref.ref[Any]]
    addresses: list[int]  # of the memories
    layouts: list[tuple[Any, ...]]
    arrays: list[Array]
    lstms: tuple[fastlstm.LSTM, fastlstm.LSTM]  # time first and batch first
    used: int  # when, of all uses

    def is_of(self, weights: list[Tensor]) -> bool:
        """Whether these tensors, at the addresses of the packed ones, are those: addresses are used again."""
        for known, layout, weight in zip(self.memories, self.layouts, weights, strict=True):
            if known() is not weight.untyped_storage() or layout != (weight.shape, weight.stride(), weight.is_neg()):
                return False
        return True

    def is_gone(self) -> bool:
        """Whether one of its tensors is no more, or elsewhere: those that are computed anew for each call, or freed between."""
        alive = [known() for known in self.memories]
        return any(memory is None or memory.data_ptr() != at for memory, at in zip(alive, self.addresses, strict=True))


# By the id of the first tensor's memory, until that dies; of each memory by what packing depends on, and all tensors' addresses.
# PyTorch does not swap tensors with weak references (torch.__future__.set_swap_module_params_on_conversion); their memory may
# have some
_networks: dict[int, tuple[weakref.ref[Any], dict[tuple[Any, ...], _Packed]]] = {}
_NONE: tuple[None, dict[tuple[Any, ...], _Packed]] = (None, {})
_uses = itertools.count()


def packed_network(weights: list[Tensor], bias: bool, proj_size: int, bidirectional: bool, batch_first: bool) -> fastlstm.LSTM:
    """The packed network of these weights; packed now, if it is not there or not made of these very bytes.

    Version counters are not asked: they miss what is written through ``.data``, as gradcheck does, or through NumPy.
    """
    first, memory, known = weights[0], weights[0].untyped_storage(), None
    # The first shape tells all sizes that the others do not, and all have one dtype
    key = bias, proj_size, bidirectional, first.dtype, first.shape, *[weight.data_ptr() for weight in weights]
    owner, networks = _networks.get(id(memory), _NONE)
    if owner is not None and owner() is memory:
        known = networks.get(key)
    else:
        networks = {}
    if known is not None:
        known.used = next(_uses)
        if _frozen.get() and known.is_of(weights):
            return known.lstms[batch_first]
    arrays = [contiguous(array_of(weight)) for weight in weights]
    if known is not None and _engine.same_arrays(arrays, known.arrays):
        return known.lstms[batch_first]
    # Tensors that were computed again, as weight_norm's are, may have the same bytes at other addresses
    others = [other for k, other in list(networks.items()) if k[:4] == key[:4]]
    found = next((other for other in others if _engine.same_arrays(arrays, other.arrays)), None)
    if found is None:
        records, directions = len(arrays) // per_record(bias, proj_size), 2 if bidirectional else 1
        I, H = arrays[0].shape[1], len(arrays[0]) // 4
        sizes: dict[str, Any] = {"bias": bias, "bidirectional": bidirectional, "proj_size": proj_size}
        named = dict(zip(parameter_shapes(I, H, records // directions, **sizes), arrays, strict=True))
        lstm = fastlstm.LSTM.from_weights(Weights.from_named_tensors(named))  # copies them
        other = copy.copy(lstm)  # of the same packed weights
        other.batch_first = True
        copies, lstms = [tensor for _, tensor in lstm.weights.named_tensors()], (lstm, other)
    else:
        copies, lstms = found.arrays, found.lstms
    memories = [weight.untyped_storage() for weight in weights]
    addresses = [storage.data_ptr() for storage in memories]
    layouts = [(weight.shape, weight.stride(), weight.is_neg()) for weight in weights]
    _add(key, memory, _Packed([weakref.ref(storage) for storage in memories], addresses, layouts, copies, lstms, next(_uses)))
    return lstms[batch_first]


def _add(key: tuple[Any, ...], memory: Any, packed: _Packed) -> None:
    """Keep a network; instead of those whose tensors are no more, and of those that were not used for longest."""
    number = id(memory)

    def forget(dead: weakref.ref[Any]) -> None:
        if number in _networks and _networks[number][0] is dead:
            del _networks[number]

    # Without a lock, which a call from a finalizer would wait for: the worst that other threads do is to pack once more
    owner, networks = _networks.get(number, _NONE)
    if owner is None or owner() is not memory:
        networks = {}
        _networks[number] = weakref.ref(memory, forget), networks
    networks.pop(key, None)
    for other, known in list(networks.items()):
        if known.is_gone():
            networks.pop(other, None)
    while len(networks) >= _MOST:
        oldest, _ = min(list(networks.items()), key=lambda item: item[1].used)
        networks.pop(oldest, None)
    networks[key] = packed


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
