"""One step at a time, with the state carried from call to call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from fastlstm import _engine
from fastlstm import threads as _threads
from fastlstm.arrays import Array, as_array, as_floats, as_integer, for_kernels, shape_error
from fastlstm.weights import MAX_SIZE, Weights, described

if TYPE_CHECKING:
    from fastlstm.network import Network

__all__ = ["Stream"]


S = TypeVar("S")  # the state: (h, c), or h alone of a plain RNN


class Stream(Generic[S]):
    """The state of B rows that advance one step at a time; made by :meth:`LSTM.stream` or :meth:`RNN.stream`.

    The outputs are, bit for bit, those of one call over the whole sequence. A stream keeps the weights it was made with, even if
    the network is given others. Only one thread may use it at a time. A copy (or a pickled stream) continues independently from
    the current state.
    """

    def __init__(self, network: Network[S], batch_size: int = 1) -> None:
        from fastlstm.network import Network  # which needs this module first

        if not isinstance(network, Network):
            raise TypeError(f"network must be fastlstm.LSTM or fastlstm.RNN, got {type(network).__name__}")
        if network.bidirectional:
            raise ValueError("a bidirectional network cannot stream: its backward direction begins at the end of the sequence")
        if network.weights.reverse:
            raise ValueError("a reverse network cannot stream: it begins at the end of the sequence")
        B = as_integer("batch_size", batch_size, 0, MAX_SIZE)
        self._I, self._P = network.input_size, network.weights.recurrent_size
        self._dtype = network.dtype
        self._shape = (B, self._P)
        self._kind, self._packed = type(network), network._packed
        self._initial = self._packed.weights.initial_state
        self._split, self._join = network._split, network._join
        self._take_memory()
        self.reset()

    def __repr__(self) -> str:
        return f"Stream({described(self._kind.__name__, self._packed.weights)}, batch_size={self.batch_size})"

    def _take_memory(self) -> None:
        """Room for the state before a step and after it, and the engine's prepared call."""
        L, B, C = self._packed.weights.num_layers, self.batch_size, self._packed.weights.cell_size
        self._h = tuple(np.zeros((L, B, self._P), self._dtype) for _ in range(2))
        self._c = tuple(np.zeros((L, B, C), self._dtype) for _ in range(2))
        h, c = (tuple(array.reshape(-1).view(np.uint8) for array in pair) for pair in (self._h, self._c))
        self._engine = _engine.StreamState(self._packed.network, B, h, c, _threads.allowance(None)[0])  # type: ignore[arg-type]

    def step(self, x: Any) -> Array:
        """Take one step.

        Parameters
        ----------
        x : array of the network's dtype, shape (B, input_size)
            Also ``(input_size,)`` if `batch_size` is 1.

        Returns
        -------
        array, shape (B, proj_size or hidden_size)
            ``(proj_size or hidden_size,)`` for an `x` without batch.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit; the state has not changed then.
        """
        if type(x) is not np.ndarray or x.dtype is not self._dtype or not 1 <= x.ndim <= 2:
            x = self._check(x)
        output = np.empty(self._shape if x.ndim == 2 else self._P, self._dtype)
        threads, limit = _threads.allowance(None)
        if self._engine.step(x, output, threads, limit):
            return output
        if not self._engine.step(for_kernels(self._check(x)), output, threads, limit):
            raise AssertionError("the engine refused an input that was checked")
        return output

    def _check(self, x: Any) -> Array:
        """Explain what is wrong with `x`, or return it as an array."""
        array = as_floats("x", x, self._dtype)
        B = self._shape[0]
        if array.shape != (B, self._I) and not (B == 1 and array.shape == (self._I,)):
            raise shape_error("x", (B, self._I), array.shape, *([(self._I,)] if B == 1 else []))
        return array

    @property
    def batch_size(self) -> int:
        """Rows B of every step."""
        return self._shape[0]

    @property
    def state(self) -> S:
        """Copies of h, shape (num_layers, B, P or H), and c, shape (num_layers, B, H); of an RNN h alone. May be set."""
        now = self._engine.current
        return self._join(self._h[now].copy(), self._c[now].copy())

    @state.setter
    def state(self, state: Any) -> None:
        now, names, given = self._engine.current, ("h", "c"), []
        held_now = self._h[now], self._c[now]
        for name, value, held in zip(names, self._split("state", state, names), held_now, strict=False):
            array = as_floats(name, value, self._dtype)
            if array.shape != held.shape:
                raise shape_error(name, held.shape, array.shape)
            given.append(array)
        self._engine.check_idle()
        for held, array in zip(held_now, given, strict=False):
            held[...] = array

    def reset(self, rows: Iterable[int] | Array | None = None) -> None:
        """Restart all rows, or only `rows`, from zeros or from the network's own initial state.

        Parameters
        ----------
        rows : integers, or bool array of shape (B,), optional
            Indices from 0 to B - 1 in any order, or true for each row to restart (such as ``done`` of an environment). By default
            all rows.

        Raises
        ------
        ValueError, TypeError
            If a row is not an integer from 0 to B - 1, or there are not B booleans; nothing has changed then.
        RuntimeError
            If another thread takes a step just now.
        """
        chosen: Any = slice(None)
        if rows is not None:
            rows = as_array("rows", rows) if hasattr(rows, "__array__") else rows  # the elements of a tensor are tensors
            B = self.batch_size
            if isinstance(rows, np.ndarray) and rows.dtype == np.bool_:
                if rows.shape != (B,):
                    raise shape_error("rows of booleans", (B,), rows.shape)
                rows = np.flatnonzero(rows)
            try:
                chosen = list(rows)
            except TypeError:
                raise TypeError(f"rows must be a sequence of integers, such as [3], got {rows!r:.100}") from None
            if any(isinstance(row, bool) for row in chosen):
                raise TypeError(f"rows must be integers, or one bool array of shape ({B},), got {chosen!r:.100}")
            if chosen and not B:
                raise ValueError(f"rows must be empty, as batch_size is 0, got {chosen!r:.100}")
            # Python's integers: NumPy makes floats of an unsigned one beside others
            chosen = [as_integer(f"rows[{index}]", row, 0, B - 1) for index, row in enumerate(chosen)]
        self._engine.check_idle()
        now = self._engine.current
        for held, initial in zip((self._h[now], self._c[now]), self._initial, strict=True):
            held[:, chosen] = initial[:, None]

    def __copy__(self) -> Stream[S]:
        """Another state over the same packed weights, which nothing changes."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._take_memory()
        other.state = self.state
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream[S]:
        return self.__copy__()

    def __reduce__(self) -> Any:
        return _go_on, (self._kind, self._packed.weights, self.batch_size, self.state)


def _go_on(kind: type[Network[S]], weights: Weights, batch_size: int, state: S) -> Stream[S]:
    """A stream that was pickled."""
    stream = kind.from_weights(weights).stream(batch_size)
    stream.state = state
    return stream
