"""The plain RNN."""

from __future__ import annotations

import os
from typing import Any, Literal

from fastlstm.arrays import Array
from fastlstm.network import Network
from fastlstm.tape import Tape
from fastlstm.weights import NONLINEARITIES, Nonlinearity, Weights

__all__ = ["RNN"]


class RNN(Network[Array]):
    """A network of plain recurrent layers, with PyTorch's equations, names and argument order.

    For each step t [1]_::

        h = tanh(W x + R h + b)                or relu(...)

    It runs on the engine of :class:`LSTM`: what holds there of bits, threads, lengths and resets holds here.

    Parameters
    ----------
    input_size, hidden_size : int
        Sizes I of an input and H of the state.
    num_layers : int
        Layers, each reading the output of the one before.
    nonlinearity : {"tanh", "relu"}
    bias : bool
        Whether there are biases (two, as in PyTorch; they are added).
    batch_first : bool
        Whether `x` and `output` are ``(B, T, ...)`` instead of ``(T, B, ...)``. States are never batch-first.
    bidirectional : bool
        Whether each layer also has a second network that runs from the end to the beginning.
    dtype : {"float32", "float64"}
        Of the weights, the inputs and the outputs.
    seed : int, optional
        Of the initial weights: uniform within 1/sqrt(hidden_size), as PyTorch's.
    dropout : 0
        Accepted for compatibility with PyTorch; must be 0. Dropout is an argument of :meth:`record`.

    Attributes
    ----------
    weights : Weights
        The parameters; read-only arrays.

    Raises
    ------
    ValueError, TypeError
        If a size is not a positive integer, there is no such nonlinearity, a flag is not a boolean, `dtype` is not one of the
        two, `seed` is not an integer of 0 or more, or `dropout` is not 0.

    References
    ----------
    .. [1] J. Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        dtype: Any = "float32",
        seed: int | None = None,
        dropout: Literal[0] = 0,
    ) -> None:
        if nonlinearity not in NONLINEARITIES:
            raise ValueError(f"nonlinearity must be one of {', '.join(NONLINEARITIES)}, got {nonlinearity!r:.100}")
        self._initialise(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            nonlinearity=nonlinearity,
            dtype=dtype,
            seed=seed,
            dropout=dropout,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, batch_first: bool | None = None, allow_nonfinite: bool = False) -> RNN:
        """Load what :meth:`save` wrote.

        Other files of plain RNNs do not say which nonlinearity they are for: make one with it, and give it their tensors by
        :meth:`load_state_dict`.

        Parameters
        ----------
        path : str or os.PathLike
        batch_first : bool, optional
            Whether inputs are ``(B, T, ...)``; by default as it was saved.
        allow_nonfinite : bool
            Accept NaN and infinity among the weights.

        Returns
        -------
        RNN

        Raises
        ------
        FormatError
            If the file cannot be read or is not such a file; the message names it. A ``ValueError``.
        TypeError
            If an argument has another type.
        OSError
            If the file cannot be opened or read.
        """
        from fastlstm.loaders import reading

        chosen = reading.flag_or_none("batch_first", batch_first)
        weights, saved = reading.read_rnn(path, allow_nonfinite)
        return cls.from_weights(weights, saved if chosen is None else chosen)

    @property
    def nonlinearity(self) -> Nonlinearity:
        """The function of the pre-activation."""
        return self.weights.nonlinearity or "tanh"

    def __call__(
        self,
        x: Any,
        h_0: Any = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        out: Any = None,
        threads: int | None = None,
    ) -> tuple[Array, Array]:
        """Run whole sequences.

        Parameters
        ----------
        x : array of the network's dtype, shape (T, B, input_size)
            ``(B, T, input_size)`` if `batch_first`; ``(T, input_size)`` for one sequence. Any strides; never written to.
        h_0 : array, shape (num_layers * num_directions, B, hidden_size), optional
            Without B for one sequence; zeros if left out.
        lengths, mask, resets, out, threads : as for :meth:`LSTM.__call__`

        Returns
        -------
        output : array, shape (T, B, num_directions * hidden_size)
            ``(B, T, ...)`` if `batch_first`.
        h_n : array of the shape of `h_0`
            The state after each row's last step.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As :meth:`LSTM.__call__`.
        """
        return self._call(x, h_0, lengths, mask, resets, out, threads)

    def record(
        self,
        x: Any,
        h_0: Any = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        dropout: float = 0.0,
        seed: int | None = None,
        recompute: bool = False,
        threads: int | None = None,
    ) -> Tape[Array]:
        """Run whole sequences and keep what their gradients need.

        Parameters
        ----------
        x, h_0, lengths, mask, resets : as for :meth:`__call__`
        dropout, seed, recompute : as for :meth:`LSTM.record`
        threads : as for :meth:`__call__`

        Returns
        -------
        Tape
            ``tape.output`` and ``tape.state``, which is h_n, are what :meth:`__call__` returns, bit for bit, if nothing is
            dropped. ``tape.backward(d_output, d_h_n)`` gives the gradients; its ``state`` is that of `h_0`.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As :meth:`__call__`; and if `dropout` or `seed` is out of range.
        """
        return self._record(x, h_0, lengths, mask, resets, dropout, seed, recompute, threads)

    @staticmethod
    def _check_kind(weights: Weights) -> None:
        if weights.nonlinearity is None:
            raise ValueError("weights must be those of a plain RNN, got those of an LSTM; use fastlstm.LSTM")

    @staticmethod
    def _split(name: str, state: Any, names: tuple[str, str]) -> tuple[Any, ...]:
        return (state,)

    @staticmethod
    def _join(h: Array, c: Array) -> Array:
        return h
