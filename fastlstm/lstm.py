"""The LSTM: checks what it is given, allocates what it returns, and leaves the arithmetic to the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm import _engine
from fastlstm import threads as _threads
from fastlstm.arrays import Array, as_array, as_floats, as_lengths, as_resets, contiguous, in_place, shape_error
from fastlstm.cell import ACTIVATIONS, PLAIN
from fastlstm.isa import isa as _isa  # noqa: F401  (chooses the kernels before a network is packed)
from fastlstm.stream import Stream
from fastlstm.tape import RecomputedTape, Tape
from fastlstm.weights import TENSORS, LayerWeights, Weights, check_sizes, parameter_shapes

if TYPE_CHECKING:
    from fastlstm.trace import Trace

__all__ = ["LSTM"]

State = tuple[Array, Array]


class LSTM:
    """A network of LSTM layers, with PyTorch's equations, names and argument order.

    For each step t, with gates i, f, g, o [1]_ [2]_::

        i, f, o = sigmoid(W x + R h + b),  g = tanh(W x + R h + b)
        c = f * c + i * g
        h = o * tanh(c)                        projected to P values if proj_size is P [3]_

    The same inputs give the same bits, however a call is divided: alone or in a batch, whole or step by step, on any number of
    threads. A network may be called by several threads at once.

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
        Whether each layer also has a second network that runs from the end to the beginning.
    proj_size : int
        Size P of the projected h; 0 for none, else smaller than `hidden_size`.
    dtype : {"float32", "float64"}
        Of the weights, the inputs and the outputs.
    seed : int, optional
        Of the initial weights: uniform within 1/sqrt(hidden_size), as PyTorch's.

    Attributes
    ----------
    weights : Weights
        The parameters; read-only arrays.

    Raises
    ------
    ValueError, TypeError
        If a size is not a positive integer or does not fit the others.

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
    ) -> None:
        check_sizes(input_size, hidden_size, num_layers, proj_size)
        kind = _as_dtype(dtype)
        shapes = parameter_shapes(
            input_size, hidden_size, num_layers, bias=bias, bidirectional=bidirectional, proj_size=proj_size
        )
        if sum(int(np.prod(shape, dtype=object)) for shape in shapes.values()) > 1 << 44:
            raise ValueError(f"hidden_size {hidden_size} and input_size {input_size} make more weights than memory can hold")
        try:
            rng = np.random.default_rng(seed)
        except (TypeError, ValueError) as error:
            raise type(error)(f"seed must be a non-negative integer or None, got {seed!r:.100}") from error
        bound = 1 / np.sqrt(hidden_size)
        tensors = {name: rng.uniform(-bound, bound, shape).astype(kind) for name, shape in shapes.items()}
        self.batch_first = bool(batch_first)
        self._adopt(Weights.from_named_tensors(tensors))

    @classmethod
    def from_weights(cls, weights: Weights, batch_first: bool = False) -> LSTM:
        """A network with these weights. Arrays that anybody else could write to are copied."""
        if not isinstance(weights, Weights):
            raise TypeError(f"weights must be fastlstm.Weights, got {type(weights).__name__}")
        lstm = cls.__new__(cls)
        lstm.batch_first = bool(batch_first)
        lstm._adopt(weights)
        return lstm

    def _adopt(self, weights: Weights) -> None:
        """Pack `weights`; the last thing that can fail comes before the first thing that changes."""
        owned = replace(weights, layers=tuple(_owned(layer) for layer in weights.layers))
        network = _engine.Network(
            _rows(owned),
            [_variant(layer) for layer in owned.layers],
            owned.dtype.itemsize,
            owned.input_size,
            owned.hidden_size,
            owned.num_layers,
            owned.num_directions,
            owned.proj_size,
            owned.reverse,
        )
        self.weights = owned
        self._network = network
        self._transposed: _engine.Transposed | None = None
        self._dtype = owned.dtype
        self._forward = _FORWARD[owned.dtype.name]
        self._sizes = (owned.input_size, owned.hidden_size, owned.proj_size or owned.hidden_size, len(owned.layers))
        self._width = owned.num_directions * self._sizes[2]

    def _transposed_weights(self) -> _engine.Transposed:
        """The weights packed a second time, for gradients, when they are first asked for."""
        if self._transposed is None:
            self._transposed = _engine.Transposed(self._network, _rows(self.weights))
        return self._transposed

    # ---- What it is ------------------------------------------------------------------------------------------------------------

    @property
    def input_size(self) -> int:
        return self.weights.input_size

    @property
    def hidden_size(self) -> int:
        return self.weights.hidden_size

    @property
    def num_layers(self) -> int:
        return self.weights.num_layers

    @property
    def bidirectional(self) -> bool:
        return self.weights.bidirectional

    @property
    def num_directions(self) -> int:
        return self.weights.num_directions

    @property
    def proj_size(self) -> int:
        return self.weights.proj_size

    @property
    def output_size(self) -> int:
        """Size of the output's last axis; of both side by side where the output is a pair."""
        return self._width if self.weights.merge_mode in ("concat", None) else self._sizes[2]

    @property
    def bias(self) -> bool:
        return self.weights.bias

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.weights.dtype

    def __repr__(self) -> str:
        parts = [str(self.input_size), str(self.hidden_size)]
        if self.num_layers != 1:
            parts.append(f"num_layers={self.num_layers}")
        if not self.bias:
            parts.append("bias=False")
        if self.batch_first:
            parts.append("batch_first=True")
        if self.bidirectional:
            parts.append("bidirectional=True")
        if self.weights.merge_mode != "concat":
            parts.append(f"merge_mode={self.weights.merge_mode!r}")
        if self.proj_size:
            parts.append(f"proj_size={self.proj_size}")
        if self.dtype != np.float32:
            parts.append(f"dtype={self.dtype.name!r}")
        return f"LSTM({', '.join(parts)})"

    def __reduce__(self) -> Any:
        return LSTM.from_weights, (self.weights, self.batch_first)

    # ---- Running it ------------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        x: Any,
        state: tuple[Any, Any] | None = None,
        *,
        lengths: Any = None,
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
            without B for one sequence. If left out: the network's own initial state, which is zero unless its file holds one.
        lengths : integers, shape (B,), optional
            Real steps of each row, 0..T, in any order; the rest is not computed, and zero in the output. Final states are those
            of each row's last real step; the backward direction begins there.
        resets : bool array, shape (T, B), optional
            Where true, that row begins anew before step t, as if no state had been given. ``(T,)`` for one sequence. The
            backward direction begins anew at the same places: before it takes the step left of each reset.
        out : array, optional
            Where to write the output; must not overlap an input. For a pair of outputs: one array that holds them side by side.
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
            If something has another type: nothing is converted silently.
        MemoryError
            If scratch memory cannot be had; nothing has changed then but perhaps `out`.
        """
        seen, x, single, h_0, c_0, lengths, resets = self._check(x, state, lengths, resets)
        T, B, _ = x.shape
        most, limit = _threads.allowance(threads)
        merge_mode = self.weights.merge_mode
        if out is None or merge_mode in ("sum", "mul", "ave"):
            result, output = self._new_output(T, B, single)
            target = result
        else:
            result = self._check_out(out, self._output_shape(T, B, single), (seen, h_0, c_0, lengths, resets))
            target = in_place(result)  # a copy of `out` if the kernels cannot write to it as it stands
            output = self._as_written(target, single)
        h_n, c_n = self._new_state(B)
        self._forward(self._network, x, h_0, c_0, output, h_n, c_n, lengths, resets, most, limit)
        if target is not result:
            result[...] = target
        if single:
            h_n, c_n = h_n[:, 0], c_n[:, 0]
        if merge_mode != "concat":
            return self._merged(result, out, (seen, h_0, c_0, lengths, resets)), (h_n, c_n)
        return (result if out is None else out), (h_n, c_n)

    def record(
        self,
        x: Any,
        state: tuple[Any, Any] | None = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        dropout: float = 0.0,
        seed: int | None = None,
        recompute: bool = False,
        threads: int | None = None,
    ) -> Tape:
        """Run whole sequences and keep what their gradients need.

        Parameters
        ----------
        x, state, lengths, resets, threads : as for :meth:`__call__`
        dropout : float, 0 to 1
            Probability that an element of a layer's output is zero for the next layer, the others being divided by
            ``1 - dropout``: as in ``torch.nn.LSTM`` on the outputs of all layers but the last.
        seed : int, optional
            Which elements are dropped: the same for the same seed, on any number of threads. Without a seed other ones at each
            call; ``tape.seed`` tells.
        recompute : bool
            Keep only the inputs of each layer and a state now and then, and run the steps between a second time for the
            gradients [1]_: the same bits, for a third more time and a fraction of the memory.

        Returns
        -------
        Tape
            ``tape.output`` and ``tape.state`` are what :meth:`__call__` returns, bit for bit, if nothing is dropped.
            ``tape.backward(d_output, d_state)`` gives the gradients.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As :meth:`__call__`.

        References
        ----------
        .. [1] A. Gruslys et al., "Memory-Efficient Backpropagation Through Time", NeurIPS 2016.
        """
        _, x, single, h_0, c_0, lengths, resets = self._check(x, state, lengths, resets)
        if not isinstance(dropout, (int, float, np.floating)) or isinstance(dropout, bool):
            raise TypeError(f"dropout must be a number, got {dropout!r:.100}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, got {dropout}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer))):
            raise TypeError(f"seed must be an integer or None, got {seed!r:.100}")
        if seed is not None and not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be between 0 and 2**64 - 1, got {seed}")
        chosen = int.from_bytes(os.urandom(8), "little") if seed is None else int(seed)
        if self.weights.merge_mode != "concat":
            raise ValueError(f"gradients are of both directions side by side, not of merge_mode {self.weights.merge_mode!r}")
        if recompute and self.weights.layers[0].h_0 is not None:
            raise ValueError("recompute=True does not cover a network with an initial state of its own; leave it out")
        kind = RecomputedTape if recompute else Tape
        return kind(self, x, h_0, c_0, lengths, resets, single, float(dropout), chosen, threads)

    def trace(
        self,
        x: Any,
        state: tuple[Any, Any] | None = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        threads: int | None = None,
    ) -> Trace:
        """Run whole sequences and return the gates and states of every step, layer and direction.

        Parameters
        ----------
        x, state, lengths, resets, threads : as for :meth:`__call__`

        Returns
        -------
        Trace
            Arrays ``i, f, g, o, c, h``, and a method that plots them.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As :meth:`__call__`.
        """
        from fastlstm.trace import Trace

        return Trace.of(self.record(x, state, lengths=lengths, resets=resets, threads=threads))

    def _check(self, x: Any, state: Any, lengths: Any, resets: Any) -> tuple[Any, ...]:
        """The input as it was given and as (T, B, I) to be read in place, whether it is one sequence, and the rest as the engine
        takes it."""
        I = self._sizes[0]
        x = seen = as_floats("x", x, self._dtype)
        single = x.ndim == 2
        if x.ndim not in (2, 3) or x.shape[-1] != I:
            free = ("B", "T") if self.batch_first else ("T", "B")
            raise shape_error("x", (*free, I), x.shape)
        if single:
            x = x[:, None]
        elif self.batch_first:
            x = x.transpose(1, 0, 2)
        T, B, _ = x.shape
        x = in_place(x)
        h_0, c_0 = (None, None) if state is None else self._check_state(state, B, single)
        if lengths is not None:
            if single:
                raise ValueError("lengths needs a batch: x must have 3 dimensions, got 2")
            lengths = as_lengths(lengths, T, B)
        if resets is not None:
            resets = as_resets(resets, (T,) if single else (T, B))
        return seen, x, single, h_0, c_0, lengths, resets

    def _output_shape(self, T: int, B: int, single: bool) -> tuple[int, ...]:
        return (T, self._width) if single else (B, T, self._width) if self.batch_first else (T, B, self._width)

    def _new_output(self, T: int, B: int, single: bool) -> tuple[Array, Array]:
        """An array as the caller gets it, and the same memory as the engine writes it."""
        output = np.empty(self._output_shape(T, B, single), self._dtype)
        return output, self._as_written(output, single)

    def _as_written(self, output: Array, single: bool) -> Array:
        """The same memory as (T, B, ...) with each step at its own time, which Keras' order of processing turns round."""
        output = output[:, None] if single else output.transpose(1, 0, 2) if self.batch_first else output
        return output[::-1] if self.weights.flipped else output

    def _new_state(self, B: int) -> State:
        _, H, P, records = self._sizes
        return np.empty((records, B, P), self._dtype), np.empty((records, B, H), self._dtype)

    def _merged(self, both: Array, out: Any, inputs: tuple[Array | None, ...]) -> Any:
        """The outputs of both directions made one, as Keras' Bidirectional does; a pair if its mode is None."""
        forward, backward = np.split(both, 2, axis=-1)
        mode = self.weights.merge_mode
        if mode is None:
            return forward, backward
        result = np.empty(forward.shape, self._dtype) if out is None else self._check_out(out, forward.shape, inputs)
        with np.errstate(all="ignore"):  # infinity and NaN go where IEEE arithmetic takes them
            (np.multiply if mode == "mul" else np.add)(forward, backward, out=result)
            if mode == "ave":
                result *= 0.5
        return result if out is None else out

    def _check_state(self, state: tuple[Any, Any], B: int, single: bool) -> State:
        """The initial state as contiguous arrays (L*D, B, P) and (L*D, B, H)."""
        _, H, P, records = self._sizes
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"state must be a pair (h_0, c_0), got {type(state).__name__}")
        checked = []
        for name, value, size in (("h_0", state[0], P), ("c_0", state[1], H)):
            array = as_floats(name, value, self._dtype)
            expected = (records, size) if single else (records, B, size)
            if array.shape != expected:
                raise shape_error(name, expected, array.shape)
            array = contiguous(array)
            checked.append(array[:, None] if single else array)
        return checked[0], checked[1]

    def _check_out(self, out: Any, shape: tuple[int, ...], inputs: tuple[Array | None, ...]) -> Array:
        array = as_floats("out", out, self._dtype)
        if array.shape != shape:
            raise shape_error("out", shape, array.shape)
        if not array.flags.writeable:
            raise ValueError("out is read-only")
        if array.size and _overlaps_itself(array):
            raise ValueError("out must not overlap itself: some of its elements share memory")
        for name, other in zip(("x", "h_0", "c_0", "lengths", "resets"), inputs, strict=True):
            if other is not None and _overlap(array, other):
                raise ValueError(f"out must not overlap {name}")
        return array

    def stream(self, batch_size: int = 1) -> Stream:
        """A carried state that takes one step at a time.

        Parameters
        ----------
        batch_size : int
            Rows B of every step.

        Returns
        -------
        Stream

        Raises
        ------
        ValueError
            If the network is bidirectional, which needs the whole sequence.
        """
        return Stream(self, batch_size)

    def plan(self, T: int, B: int, threads: int | None = None) -> dict[str, int]:
        """How a call with T steps and B rows would be divided.

        Returns
        -------
        dict
            ``threads`` in all; ``directions``: 2 if both run side by side; ``row_groups`` that never wait for each other;
            ``unit_groups``: threads that divide the hidden units and meet at every step; ``chunk``: steps whose input product is
            taken at once (0: with the recurrent product); ``stride``: steps that a layer hands on to the next at a time.
        """
        return _engine.plan(self._network, T, B, _threads.allowance(threads)[0])

    # ---- Weights ---------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters under PyTorch's names, in PyTorch's order: ``weight_ih_l0``, ``weight_hh_l0``, ..."""
        return {name: tensor.copy() for name, tensor in self.weights.named_tensors()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replace all parameters; on an error nothing has changed.

        Parameters
        ----------
        state_dict : mapping of str to arrays or tensors
            Exactly the names, shapes and dtype of :meth:`state_dict`.

        Raises
        ------
        ValueError, TypeError
            If a tensor is missing, unexpected or does not fit; the message names it.
        """
        expected = self.weights.expected_shapes()
        for name in state_dict:
            if name not in expected:
                raise ValueError(f"unexpected tensor {name!r:.100}; expected {', '.join(expected)}")
        tensors = {}
        for name, shape in expected.items():
            if name not in state_dict:
                raise ValueError(f"tensor {name} is missing; expected shape {shape}")
            value = state_dict[name]
            tensor = as_array(name, value.detach() if hasattr(value, "detach") else value)
            if tensor.shape != shape:
                raise shape_error(name, shape, tensor.shape)
            tensors[name] = np.array(as_floats(name, tensor, self._dtype), order="C")
        self._adopt(self.weights.with_tensors(tensors))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network as a safetensors file that :func:`fastlstm.load` reads: parameters, batch-first or not, variants.

        The file is written beside its place and then moved there: `path` never holds half a file.
        """
        from fastlstm.loaders.safetensors_file import write_safetensors

        write_safetensors(path, self.weights, self.batch_first)

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
        from fastlstm.loaders.torch_module import to_module

        return to_module(self.weights, self.batch_first)

    def to_keras_weights(self) -> list[Array]:
        """Copies of the parameters as ``keras_layer.set_weights`` takes them: kernel, recurrent_kernel, bias.

        Of each layer (each direction of a Bidirectional) in turn, so a network of several layers makes the list of an RNN of
        stacked cells, and a slice of it that of one LSTM. Keras has one bias where PyTorch has two: their sum, rounded once, and
        so what Keras gave comes back to the bit.

        Raises
        ------
        ValueError
            If Keras has no such layer: with a projection, peepholes, initial states, clipping or coupled gates.
        """
        from fastlstm.loaders.keras_export import keras_weights

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
        from fastlstm.export_onnx import write_onnx

        write_onnx(path, self.weights, self.batch_first)


_KINDS = tuple(ACTIVATIONS)  # by the engine's numbers
_FORWARD = {"float32": _engine.forward["float"], "float64": _engine.forward["double"]}


def _as_dtype(dtype: Any) -> np.dtype[Any]:
    given = f"{dtype!r:.100}"
    try:
        found: np.dtype[Any] | None = None if dtype is None else np.dtype(dtype)  # NumPy takes None for float64
    except TypeError:
        found = None
    if found is None or found not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {given if found is None else found}")
    return found


def _owned(layer: LayerWeights) -> LayerWeights:
    """The same tensors as read-only, contiguous arrays that nobody else can write to."""

    def own(tensor: Array | None) -> Array | None:
        if tensor is None:
            return None
        flags = tensor.flags
        if flags.writeable or not flags.owndata or not flags.c_contiguous or not flags.aligned:
            tensor = np.array(tensor, order="C")
            tensor.setflags(write=False)
        return tensor

    return replace(layer, **{kind: own(getattr(layer, kind)) for kind in TENSORS})  # type: ignore[arg-type]


def _rows(weights: Weights) -> list[Any]:
    """Each record's tensors as flat bytes, as the engine packs them."""
    return [tuple(_bytes(getattr(layer, kind)) for kind in TENSORS) for layer in weights.layers]


def _bytes(tensor: Array | None) -> Array | None:
    return None if tensor is None else tensor.reshape(-1).view(np.uint8)


def _variant(layer: LayerWeights) -> tuple[Any, ...] | None:
    """The cell in the engine's numbers; None for PyTorch's, which has its own kernel."""
    cell = layer.cell
    if cell == PLAIN and layer.weight_peephole is None:
        return None
    functions = ((_KINDS.index(f.name), *(*f.parameters, 0.0, 0.0)[:2]) for f in (cell.gate, cell.candidate, cell.hidden))
    clips = (np.inf if clip is None else clip for clip in (cell.gate_clip, cell.cell_clip, cell.proj_clip))
    return *functions, (None, "forget", "input").index(cell.coupled), *clips


def _overlap(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # any integer, NumPy says
    except np.exceptions.TooHardError:
        return True  # what cannot be shown to be apart is taken as overlapping


def _overlaps_itself(array: Array) -> bool:
    """Whether two elements may share memory: sorted by stride, each axis must step over all inner ones."""
    extent = array.itemsize
    for stride, size in sorted((abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return True
            extent += stride * (size - 1)
    return False
