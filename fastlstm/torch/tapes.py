"""Tapes behind tensors that name them, as operators hand on tensors and nothing else; and how packed sequences lie."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import numpy as np
import torch

from fastlstm.arrays import Array
from fastlstm.tape import Tape
from fastlstm.torch.packed import Tensor, array_of

__all__ = ["Ragged", "graph_is_retained", "keep_together", "recall", "remember"]


class _Kept(np.ndarray[Any, np.dtype[Any]]):
    """The number of a tape, and the tape: PyTorch holds this array as long as it holds the tensor over it, and no longer."""

    tape: Tape[Any]
    ragged: Ragged | None
    used: bool


class _Several(np.ndarray[Any, np.dtype[Any]]):
    """The numbers of several tapes, and those."""

    parts: list[_Kept]


_tapes: weakref.WeakValueDictionary[int, _Kept] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def remember(tape: Tape[Any], ragged: Ragged | None) -> Tensor:
    """A tensor that names a tape."""
    number = next(_numbers)
    kept = np.array([number], np.int64).view(_Kept)
    kept.tape, kept.ragged, kept.used = tape, ragged, False
    _tapes[number] = kept
    return torch.from_numpy(kept)


def recall(tape: Tensor) -> _Kept:
    """The tape that a tensor names."""
    if len(tape) == 0:
        raise RuntimeError(
            "this LSTM call kept nothing for its gradients, as nothing required them when the model was exported; "
            "export it after requires_grad_(True) and outside of torch.no_grad()"
        )
    kept = _tapes.get(int(tape))
    if kept is None:
        raise RuntimeError(
            "the tape of this LSTM call is gone: a hook on saved tensors put a copy in the place of its tensor; "
            "let torch.autograd.graph.saved_tensors_hooks return integer tensors as they are"
        )
    return kept


def keep_together(tapes: list[Tensor]) -> Tensor:
    """``fastlstm::tapes``: the names of several tapes in one tensor, which keeps all of them."""
    kept = np.stack([array_of(tape) for tape in tapes]).view(_Several)
    kept.parts = [_tapes[int(number)] for number in kept.flat]
    return torch.from_numpy(kept)


def graph_is_retained() -> bool:
    """Whether a backward pass is under way that was asked to retain the graph; where PyTorch does not say, no."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is not None and torch._C._current_graph_task_id() >= 0 and bool(ask())


class Ragged:
    """The layout of a packed sequence: its tokens step by step, of each step the rows that have it, longest row first."""

    def __init__(self, batch_sizes: Array, tokens: int) -> None:
        if (batch_sizes[1:] > batch_sizes[:-1]).any() or batch_sizes[-1] < 0 or batch_sizes.sum() != tokens:
            expected = f"must never rise and must add up to {tokens}, the tokens of input.data"
            raise ValueError(f"input.batch_sizes {expected}, got {batch_sizes.tolist()!s:.100}")
        self.present = np.arange(batch_sizes[0]) < batch_sizes[:, None]  # (T, B)
        self.lengths = self.present.sum(axis=0)
        self.full = bool(self.present.all())

    def spread(self, tokens: Array) -> Array:
        """(tokens, n) as (T, B, n)."""
        if self.full:
            return tokens.reshape(*self.present.shape, tokens.shape[1])
        padded = np.zeros((*self.present.shape, tokens.shape[1]), tokens.dtype)
        padded[self.present] = tokens
        return padded

    def gather(self, padded: Array) -> Array:
        """(T, B, n) as (tokens, n)."""
        return padded.reshape(-1, padded.shape[2]) if self.full else padded[self.present]
