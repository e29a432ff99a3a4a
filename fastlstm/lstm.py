"""The LSTM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from fastlstm import _engine
from fastlstm import threads as _threads
from fastlstm.arrays import Array
from fastlstm.network import Network
from fastlstm.tape import Tape
from fastlstm.weights import Weights

if TYPE_CHECKING:
    from fastlstm.trace import Trace

__all__ = ["LSTM"]

State = tuple[Array, Array]


class LSTM(Network[State]):
    """A stack of LSTM layers, with PyTorch's equations, names and argument order.

    For each step t, with gates i, f, g, o [1]_ [2]_::

        i, f, o = sigmoid(W x + R h + b),  g = tanh(W x + R h + b)
        c = f * c + i * g
        h = o * tanh(c)                        projected to P values if proj_size is P [3]_

    The same inputs always give the same bits: alone or in a batch, whole or step by step, on any number of threads. Several
    Python threads may call one network at the same time.

    Parameters
    ----------
    input_size, hidden_size : int
        Sizes I of an input and H of the cell state.
    num_layers : int
        Layers, each reading the output of the one before.
    bias : bool
        Whether there are biases (two for each gate, as in PyTorch; they are added).
    batch_first : bool
        Whether `x` and `output` are ``(B, T, ...)`` instead of ``(T, B, ...)``. States are never batch-first.
    bidirectional : bool
        Whether each layer also has a second direction that runs from the end to the beginning.
    proj_size : int
        Size P of the projected h; 0 for none, else smaller than `hidden_size`.
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
        If a size is not a positive integer or does not fit the others, a flag is not a boolean, `dtype` is not one of the two,
        `seed` is not a non-negative integer, or `dropout` is not 0.

    References
    ----------
    .. [1] S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
    .. [2] F. Gers, J. Schmidhuber, F. Cummins, "Learning to Forget", Neural Computation 12(10), 2000.
    .. [3] H. Sak, A. Senior, F. Beaufays, "Long Short-Term Memory Recurrent Neural Network Architectures for Large Scale
       Acoustic Modeling", Interspeech 2014.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        proj_size: int = 0,
        dtype: Any = "float32",
        seed: int | None = None,
        dropout: Literal[0] = 0,
    ) -> None:
        self._initialise(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            proj_size=proj_size,
            dtype=dtype,
            seed=seed,
            dropout=dropout,
        )

    @property
    def proj_size(self) -> int:
        """Size P of the projected h; 0 without a projection."""
        return self.weights.proj_size

    def __call__(
        self,
        x: Any,
        state: tuple[Any, Any] | None = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        out: Any = None,
        threads: int | None = None,
    ) -> tuple[Any, State]:
        """Run whole sequences.

        Parameters
        ----------
        x : array of the network's dtype, shape (T, B, input_size)
            ``(B, T, input_size)`` if `batch_first`; ``(T, input_size)`` for one sequence. Any strides; never written to. Copied
            only if its last axis is not contiguous.
        state : (h_0, c_0), optional
            Shapes (num_layers * num_directions, B, proj_size or hidden_size) and (num_layers * num_directions, B, hidden_size);
            without B for one sequence. By default the network's own initial state: zeros, unless its file contained one.
        lengths : integers, shape (B,), optional
            Number of real steps in each row, 0 to T, in any order. The rest is not computed and is zero in the output. The final
            state is that of each row's last real step, and the backward direction starts there.
        mask : bool array, shape (T, B), also if `batch_first`, optional
            An alternative to `lengths`: true where a row has a step. Other steps are skipped: their output is zero and the state
            does not change, as in Keras with ``zero_output_for_mask``. A reset at such a step takes effect at the row's next real
            one, and behind the last one on the state that is returned. ``(T,)`` for one sequence.
        resets : bool array, shape (T, B), also if `batch_first`, optional
            Where true, that row restarts before step t, as if no state had been given. ``(T,)`` for one sequence. The backward
            direction restarts at the same boundaries: a reset at step t takes effect before it processes step t - 1.
        out : array, optional
            Array to write the output to; must not overlap an input. Written in place if its last axis is contiguous, else a copy
            is made. If ``merge_mode`` is None, one array for both outputs.
        threads : int, optional
            The most threads for this call.

        Returns
        -------
        output : array, shape (T, B, num_directions * (proj_size or hidden_size))
            ``(B, T, ...)`` if `batch_first`. If the weights' ``merge_mode`` is not ``"concat"`` (a Bidirectional layer of Keras),
            the last axis is that of one direction: their sum, product or mean, or a pair of outputs for None.
        (h_n, c_n) : arrays of the shapes of `state`
            The state after each row's last step.

        Raises
        ------
        ValueError
            If a shape or a length does not fit.
        TypeError
            If an argument or array has the wrong type: nothing is converted silently.
        MemoryError
            If working memory cannot be allocated; nothing has changed then, except perhaps `out`.
        """
        if type(state) is tuple and self._concat and lengths is None and mask is None and resets is None and out is None:
            one = _engine.step(self._packed.network, x, state, self._dtype, self._batch_first, *_threads.allowance(threads))
            if one is not None:
                return one
        return self._call(x, state, lengths, mask, resets, out, threads)

    def record(
        self,
        x: Any,
        state: tuple[Any, Any] | None = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        dropout: float = 0.0,
        seed: int | None = None,
        recompute: bool = False,
        threads: int | None = None,
    ) -> Tape[State]:
        """Run whole sequences and keep what the gradients need.

        Parameters
        ----------
        x, state, lengths, mask, resets : as for :meth:`__call__`
        dropout : float, 0 to 1
            Probability of zeroing an element of a layer's output before the next layer reads it; the others are divided by
            ``1 - dropout``. Applied to all layers but the last, as in ``torch.nn.LSTM``.
        seed : int, optional
            Determines which elements are dropped, on any number of threads. By default a new one for each call; see
            ``tape.seed``.
        recompute : bool
            Keep only each layer's inputs and occasional states, and run the steps in between again for the gradients [1]_: the
            same bits, for a third more time and a fraction of the memory. Not available if the network has an initial state of
            its own.
        threads : as for :meth:`__call__`

        Returns
        -------
        Tape
            ``tape.output`` and ``tape.state`` are what :meth:`__call__` returns, bit for bit, if nothing is dropped.
            ``tape.backward(d_output, d_state)`` gives the gradients.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As :meth:`__call__`; and if `dropout` or `seed` is out of range, or the weights' ``merge_mode`` is not ``"concat"``.

        References
        ----------
        .. [1] A. Gruslys et al., "Memory-Efficient Backpropagation Through Time", NeurIPS 2016.
        """
        return self._record(x, state, lengths, mask, resets, dropout, seed, recompute, threads)

    def trace(
        self,
        x: Any,
        state: tuple[Any, Any] | None = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        threads: int | None = None,
    ) -> Trace:
        """Run whole sequences and return the gates and states of every step, layer and direction.

        Parameters
        ----------
        x, state, lengths, mask, resets, threads : as for :meth:`__call__`

        Returns
        -------
        Trace
            Arrays ``i, f, g, o, c, h``, and a method that plots them.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As :meth:`record`.
        """
        from fastlstm.trace import Trace

        return Trace.of(self.record(x, state, lengths=lengths, mask=mask, resets=resets, threads=threads))

    def to_torch(self) -> Any:
        """A live ``torch.nn.LSTM`` with equal weights, on the CPU; PyTorch must be installed.

        Returns
        -------
        torch.nn.LSTM
            Of the same sizes, dtype and ``batch_first``, in training mode, with gradients, as a fresh one.

        Raises
        ------
        ValueError
            If the network is a variant that PyTorch does not have; the message says in what.
        ImportError
            If PyTorch is not installed.
        """
        from fastlstm.loaders.torch.module import to_module

        return to_module(self.weights, self.batch_first)

    def to_keras_weights(self) -> list[Array]:
        """Copies of the parameters as ``keras_layer.set_weights`` takes them: kernel, recurrent_kernel, bias.

        The three arrays of each layer and direction follow one another: the list of a Keras RNN with stacked cells, of which a
        slice is the list of one LSTM. Keras has one bias where PyTorch has two: it is their sum, rounded once. Weights that came
        from Keras are returned bit for bit.

        Returns
        -------
        list of array
            Shapes (I, 4*H), (H, 4*H) and, with a bias, (4*H,); gates in Keras' order i, f, c, o.

        Raises
        ------
        ValueError
            If Keras has no such layer: with a projection, peepholes, initial states, clipping or coupled gates.
        """
        from fastlstm.loaders.keras.live import keras_weights

        return keras_weights(self.weights)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the network as an ONNX model of standard operators (operator set 17), which :func:`fastlstm.load` reads, too.

        Inputs are ``x``, ``h_0`` and ``c_0``, outputs ``output``, ``h_n`` and ``c_n``, in the shapes of a call with a batch.

        Parameters
        ----------
        path : str or os.PathLike
            Replaced if it exists; never holds half a file.

        Raises
        ------
        ValueError
            If the operator cannot express the network: with a projection, for example.
        ImportError
            If the onnx package is missing.
        """
        from fastlstm.loaders.onnx.export import write_onnx

        write_onnx(path, self.weights, self.batch_first)

    @staticmethod
    def _check_kind(weights: Weights) -> None:
        if weights.nonlinearity is not None:
            raise ValueError("weights must be those of an LSTM, got those of a plain RNN; use fastlstm.RNN")

    @staticmethod
    def _split(name: str, state: Any, names: tuple[str, str]) -> tuple[Any, ...]:
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            given = f"{type(state).__name__} of {len(state)}" if isinstance(state, (tuple, list)) else type(state).__name__
            raise TypeError(f"{name} must be a pair ({', '.join(names)}), got {given}")
        return tuple(state)

    @staticmethod
    def _join(h: Array, c: Array) -> State:
        return h, c
