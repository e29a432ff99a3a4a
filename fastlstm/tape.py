"""A recorded forward pass, and the gradients that backpropagation through time takes from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm import _engine
from fastlstm import threads as _threads
from fastlstm.arrays import Array, as_floats, contiguous, in_place, shape_error
from fastlstm.weights import suffix

if TYPE_CHECKING:
    from fastlstm.lstm import LSTM

__all__ = ["Gradients", "Tape"]

State = tuple[Array, Array]

_FORWARD = {"float32": _engine.forward["float"], "float64": _engine.forward["double"]}
_BACKWARD = {"float32": _engine.backward["float"], "float64": _engine.backward["double"]}


@dataclass(frozen=True)
class Gradients:
    """What :meth:`Tape.backward` returns, in the network's dtype.

    Attributes
    ----------
    input : array, shaped as the input
        Zero where there is padding.
    state : (array, array)
        Of the initial state, shaped as it.
    parameters : dict of str to array
        By the names of ``lstm.state_dict()``. ``bias_ih`` and ``bias_hh`` are added in the network: their gradients are equal.
    """

    input: Array
    state: State
    parameters: dict[str, Array]


class Tape:
    """A forward pass that keeps what backpropagation through time needs; made by :meth:`LSTM.record`.

    It keeps copies: arrays that change afterwards do not change the gradients. Per token and direction of a layer these are 4H
    gates, H of the cell state and P (or H) outputs, besides the I inputs of the first layer; padding takes none.

    Attributes
    ----------
    output, state : as :meth:`LSTM.__call__` returns them, bit for bit
    """

    def __init__(
        self,
        lstm: LSTM,
        x: Array,
        h_0: Array | None,
        c_0: Array | None,
        lengths: Array | None,
        resets: Array | None,
        single: bool,
        threads: int | None,
    ) -> None:
        T, B, _ = x.shape
        self._lstm, self._weights, self._single = lstm, lstm.weights, single
        self._transposed = lstm._transposed_weights()
        self._lengths = None if lengths is None else lengths.copy()
        self._resets = None if resets is None else resets.copy()
        self._arguments = (T, B, self._lengths, _bytes(h_0), _bytes(c_0))
        self._engine: _engine.Tape | None = _engine.Tape(lstm._network, *self._arguments)
        self.output, output = lstm._new_output(T, B, single)
        h_n, c_n = lstm._new_state(B)
        most, limit = _threads.allowance(threads)
        _FORWARD[lstm.dtype.name](lstm._network, x, h_0, c_0, output, h_n, c_n, lengths, resets, most, limit, self._engine)
        self.state = (h_n[:, 0], c_n[:, 0]) if single else (h_n, c_n)

    @property
    def nbytes(self) -> int:
        """Bytes that the tape keeps for its gradients; 0 when it is used up."""
        return 0 if self._engine is None else self._engine.nbytes

    def backward(
        self,
        d_output: Any = None,
        d_state: tuple[Any, Any] | None = None,
        *,
        steps: int | None = None,
        threads: int | None = None,
    ) -> Gradients:
        """Gradients of ``sum(output * d_output) + sum(h_n * d_state[0]) + sum(c_n * d_state[1])``.

        The sums behind each number have one order, which depends on T, B and the lengths alone: the same bits on any number of
        threads. No gradient crosses a reset. A tape is used once: its memory becomes that of the gradients.

        Parameters
        ----------
        d_output : array, shaped as `output`, optional
            None stands for zeros.
        d_state : (d_h_n, d_c_n), shaped as `state`, optional
            None stands for zeros, for both or for one of them.
        steps : int, optional
            Truncated backpropagation [1]_: gradients do not cross from step t to step t - 1 where t is a multiple of `steps`; the
            forward pass is not cut. The alternative is to record pieces of a sequence one after the other, each from the final
            state of the one before: the same gradients of the parameters, in less memory.
        threads : int, optional
            The most threads for this call.

        Returns
        -------
        Gradients

        Raises
        ------
        RuntimeError
            If the tape was used before, or the network's weights were replaced since it was recorded.
        ValueError, TypeError
            If a gradient does not fit what it belongs to; the tape can still be used then.

        References
        ----------
        .. [1] R. Williams, J. Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
           Trajectories", Neural Computation 2(4), 1990.
        """
        if self._engine is None:
            raise RuntimeError("this tape was used before: its memory became that of the gradients; record again")
        lstm, (T, B, *_) = self._lstm, self._arguments
        if lstm.weights is not self._weights:
            raise RuntimeError("the network's weights were replaced (load_state_dict) after this tape was recorded; record again")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, (int, np.integer))):
            raise TypeError(f"steps must be an integer or None, got {steps!r:.100}")
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        d_y = None if d_output is None else self._time_first(in_place(_like("d_output", d_output, self.output)))
        d_h_n, d_c_n = self._check_state(d_state)

        single, I = self._single, lstm.input_size
        d_input: Array = np.zeros((T, I) if single else (B, T, I) if lstm.batch_first else (T, B, I), lstm.dtype)
        d_h_0, d_c_0 = (
            np.zeros((len(self._weights.layers), B, size), lstm.dtype) if d is None else d.copy()
            for d, size in ((d_h_n, self._weights.proj_size or lstm.hidden_size), (d_c_n, lstm.hidden_size))
        )  # rows without a step hand on what they are given
        shapes = self._weights.expected_shapes()
        parameters = {name: np.zeros(shape, lstm.dtype) for name, shape in shapes.items()}
        records: list[Any] = []
        for index in range(len(self._weights.layers)):
            end = suffix(index, lstm.num_directions)
            kinds = ("weight_ih", "weight_hh", "bias_ih", "weight_hr")
            records.append(tuple(_bytes(parameters.get(kind + end)) for kind in kinds))
        most, limit = _threads.allowance(threads)
        engine, self._engine = self._engine, None
        try:
            _BACKWARD[lstm.dtype.name](
                self._transposed,
                engine,
                d_y,
                d_h_n,
                d_c_n,
                self._resets,
                steps or 0,
                self._time_first(d_input),
                d_h_0,
                d_c_0,
                records,
                most,
                limit,
            )
        except MemoryError:  # nothing has changed then
            self._engine = engine
            raise
        for name in shapes:
            if name.startswith("bias_hh"):
                parameters[name][...] = parameters[name.replace("bias_hh", "bias_ih")]
        state = (d_h_0[:, 0], d_c_0[:, 0]) if single else (d_h_0, d_c_0)
        return Gradients(d_input, state, parameters)

    def _time_first(self, array: Array) -> Array:
        if self._single:
            return array[:, None]
        return array.transpose(1, 0, 2) if self._lstm.batch_first else array

    def _check_state(self, d_state: tuple[Any, Any] | None) -> tuple[Array | None, Array | None]:
        if d_state is None:
            return None, None
        if not isinstance(d_state, (tuple, list)) or len(d_state) != 2:
            raise TypeError(f"d_state must be a pair (d_h_n, d_c_n), got {type(d_state).__name__}")
        checked: list[Array | None] = []
        for name, value, like in (("d_h_n", d_state[0], self.state[0]), ("d_c_n", d_state[1], self.state[1])):
            array = None if value is None else contiguous(_like(name, value, like))
            checked.append(array[:, None] if array is not None and self._single else array)
        return checked[0], checked[1]

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_engine"] = None if self._engine is None else self._engine.content()
        del state["_transposed"], state["_weights"]
        if self._lstm.weights is not self._weights:
            raise RuntimeError("the network's weights were replaced after this tape was recorded: it can no longer be copied")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._weights, self._transposed = self._lstm.weights, self._lstm._transposed_weights()
        if self._engine is not None:
            self._engine = _engine.Tape(self._lstm._network, *self._arguments)
            self._engine.restore(state["_engine"])


def _like(name: str, value: Any, like: Array) -> Array:
    array = as_floats(name, value, like.dtype)
    if array.shape != like.shape:
        raise shape_error(name, like.shape, array.shape)
    return array


def _bytes(array: Array | None) -> Array | None:
    return None if array is None else array.reshape(-1).view(np.uint8)
