"""What an LSTM and a plain RNN have in common: checks, arrays and weights around the engine's calls."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from fastlstm import _engine
from fastlstm import threads as _threads
from fastlstm.arrays import (
    Array,
    Inputs,
    as_array,
    as_flag,
    as_floats,
    as_integer,
    as_lengths,
    as_resets,
    contiguous,
    copy_to,
    fits_kernels,
    for_kernels,
    overlap,
    overlaps_itself,
    pieces,
    shape_error,
)
from fastlstm.masks import begin_anew, compact, spread, without_masked
from fastlstm.packed import Packed, State
from fastlstm.recompute import RecomputedTape
from fastlstm.rounding import TYPES
from fastlstm.stream import Stream
from fastlstm.tape import S, Tape
from fastlstm.weights import Nonlinearity, Weights, check_sizes, described, parameter_shapes

__all__ = ["Network", "merged"]

Self = TypeVar("Self", bound="Network[Any]")


class Network(Generic[S]):
    """Base class of LSTM and RNN: everything that does not depend on the cell."""

    _packed: Packed
    _batch_first: bool
    _dtype: np.dtype[Any]
    _sizes: tuple[int, int, int, int]  # of an input, of h and of c; records
    _concat: bool
    _width: int  # of the output of both directions

    def _initialise(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        *,
        bias: bool,
        batch_first: bool,
        bidirectional: bool,
        proj_size: int = 0,
        nonlinearity: Nonlinearity | None = None,
        dtype: Any,
        seed: int | None,
        dropout: float,
    ) -> None:
        """Fresh weights, as PyTorch draws them."""
        if dropout != 0:
            raise ValueError(f"dropout must be 0, got {dropout!r:.100}: it belongs to training, record(x, dropout=)")
        input_size, hidden_size, num_layers, proj_size = check_sizes(input_size, hidden_size, num_layers, proj_size)
        bias, bidirectional = as_flag("bias", bias), as_flag("bidirectional", bidirectional)
        self._batch_first = as_flag("batch_first", batch_first)
        kind = _as_dtype(dtype)
        shapes = parameter_shapes(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            bidirectional=bidirectional,
            proj_size=proj_size,
            gates=1 if nonlinearity else 4,
        )
        if sum(int(np.prod(shape, dtype=object)) for shape in shapes.values()) > 1 << 44:
            raise ValueError(f"hidden_size {hidden_size} and input_size {input_size} make more weights than memory can hold")
        rng = np.random.default_rng(None if seed is None else as_integer("seed", seed, 0, 2**64 - 1))
        bound = 1 / np.sqrt(hidden_size)
        tensors = {name: rng.uniform(-bound, bound, shape).astype(kind) for name, shape in shapes.items()}
        self._adopt(Weights.from_named_tensors(tensors, nonlinearity))

    @classmethod
    def from_weights(cls: type[Self], weights: Weights, batch_first: bool = False) -> Self:
        """A network with these weights.

        Parameters
        ----------
        weights : Weights
            Its arrays are copied if they are writable.
        batch_first : bool
            Whether inputs and outputs are ``(B, T, ...)``.

        Returns
        -------
        LSTM or RNN
            An instance of the class this is called on.

        Raises
        ------
        TypeError
            If `weights` is not a :class:`Weights`, or `batch_first` is not a boolean.
        ValueError
            If the weights are those of an RNN for an LSTM, or the reverse.
        """
        if not isinstance(weights, Weights):
            raise TypeError(f"weights must be fastlstm.Weights, got {type(weights).__name__}")
        cls._check_kind(weights)
        network = cls.__new__(cls)
        network._batch_first = as_flag("batch_first", batch_first)
        network._adopt(weights)
        return network

    # ---- What differs ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def _check_kind(weights: Weights) -> None:
        """Refuse the weights of another kind of network."""
        raise NotImplementedError

    @staticmethod
    def _split(name: str, state: Any, names: tuple[str, str]) -> tuple[Any, ...]:
        """The parts of a state that a caller gives; `name` and `names` are those of the argument and of its parts."""
        raise NotImplementedError

    @staticmethod
    def _join(h: Array, c: Array) -> S:
        """The state that a caller gets."""
        raise NotImplementedError

    def _adopt(self, weights: Weights) -> None:
        """Pack `weights`; the last thing that can fail comes before the first thing that changes."""
        packed = Packed(weights)
        owned = packed.weights
        self._packed = packed  # in one piece: other threads' calls take the old weights or the new ones
        self._dtype = owned.dtype
        self._sizes = (owned.input_size, owned.recurrent_size, owned.cell_size, len(owned.layers))
        self._concat = owned.merge_mode == "concat"
        self._width = owned.num_directions * self._sizes[1]

    # ---- What it is ------------------------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Weights:
        """The parameters; read-only arrays."""
        return self._packed.weights

    @weights.setter
    def weights(self, weights: Weights) -> None:
        raise AttributeError("weights cannot be set: use load_state_dict for new tensors, from_weights for a new network")

    @property
    def batch_first(self) -> bool:
        """Whether inputs and outputs are ``(B, T, ...)``. May be set."""
        return self._batch_first

    @batch_first.setter
    def batch_first(self, batch_first: bool) -> None:
        self._batch_first = as_flag("batch_first", batch_first)

    @property
    def input_size(self) -> int:
        """Size I of an input."""
        return self.weights.input_size

    @property
    def hidden_size(self) -> int:
        """Size H of a layer: of the cell state, of an RNN of h."""
        return self.weights.hidden_size

    @property
    def num_layers(self) -> int:
        """Layers, each reading the output of the one before."""
        return self.weights.num_layers

    @property
    def bidirectional(self) -> bool:
        """Whether each layer also runs from the end to the beginning."""
        return self.weights.bidirectional

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return self.weights.num_directions

    @property
    def output_size(self) -> int:
        """Size of the output's last axis; of both side by side where the output is a pair."""
        return self._width if self.weights.merge_mode in ("concat", None) else self._sizes[1]

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self.weights.bias

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of weights, inputs and outputs: float32 or float64."""
        return self.weights.dtype

    @property
    def weight_dtype(self) -> str:
        """Type that the matrices are kept in: "float32" or "float64", or after :meth:`to` "float16", "bfloat16" or "int8"."""
        return self.weights.weight_dtype or self.dtype.name

    def __repr__(self) -> str:
        return described(type(self).__name__, self.weights, self.batch_first)

    def __copy__(self: Self) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __reduce__(self) -> Any:
        others = {name: value for name, value in self.__dict__.items() if name not in Network.__annotations__}  # a user's
        return type(self).from_weights, (self.weights, self.batch_first), others or None

    # ---- Running it ------------------------------------------------------------------------------------------------------------

    def _call(self, x: Any, state: Any, lengths: Any, mask: Any, resets: Any, out: Any, threads: int | None) -> tuple[Any, S]:
        """Run whole sequences."""
        inputs = self._check(x, state, lengths, mask, resets)
        _, x, single, h_0, c_0, lengths, resets, steps, ended = inputs
        T, B, _ = x.shape
        most, limit = _threads.allowance(threads)
        merge_mode = self.weights.merge_mode
        merges = not self._concat and merge_mode is not None
        given = None
        if out is not None:
            shape = self._output_shape(T, B, single)
            given = self._check_out(out, (*shape[:-1], self._sizes[1]) if merges else shape, inputs)
        if given is not None and not merges and fits_kernels(given):
            result, output = given, self._as_written(given, single, self._batch_first)
        else:
            result, output = self._new_output(T, B, single)
        final, packed = self._new_state(B), self._packed
        packed.forward(packed.network, x, h_0, c_0, output, *final, lengths, resets, most, limit)
        if steps is not None:
            spread(output, steps)
        if ended is not None:
            begin_anew(final, ended, self._directions(reverse=False), self.weights.initial_state)
        if given is not None and result is not given and not merges:
            copy_to(given, result)
            result = given
        if not self._concat:
            forward, backward = np.split(result, 2, axis=-1)
            result = merged(merge_mode, forward, backward, given)
        return (result if out is None or merge_mode is None else out), self._as_returned(final, single)

    def _record(
        self,
        x: Any,
        state: Any,
        lengths: Any,
        mask: Any,
        resets: Any,
        dropout: Any,
        seed: Any,
        recompute: bool,
        threads: int | None,
    ) -> Tape[S]:
        """Run whole sequences and keep what their gradients need."""
        inputs = self._check(x, state, lengths, mask, resets)
        if not isinstance(dropout, (int, float, np.integer, np.floating)) or isinstance(dropout, bool):
            raise TypeError(f"dropout must be a number, got {dropout!r:.100}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, got {dropout}")
        chosen = int.from_bytes(os.urandom(8), "little") if seed is None else as_integer("seed", seed, 0, 2**64 - 1)
        if self.weights.merge_mode != "concat":
            raise ValueError(f"record and trace need merge_mode 'concat', got {self.weights.merge_mode!r}")
        recompute = as_flag("recompute", recompute)
        if recompute and self.weights.layers[0].h_0 is not None:
            raise ValueError("recompute=True is not supported for a network with an initial state of its own; leave it out")
        kind: type[Tape[S]] = RecomputedTape if recompute else Tape
        return kind(self, inputs, float(dropout), chosen, threads)

    def _check(self, x: Any, state: Any, lengths: Any, mask: Any, resets: Any) -> Inputs:
        """A call's arguments as the engine takes them."""
        I = self._sizes[0]
        x = given = as_floats("x", x, self._dtype)
        single = x.ndim == 2
        if x.ndim not in (2, 3) or x.shape[-1] != I:
            free = ("B", "T") if self._batch_first else ("T", "B")
            raise shape_error("x", (*free, I), x.shape, *([] if x.ndim == 3 else [("T", I)]))
        if single:
            x = x[:, None]
        elif self._batch_first:
            x = x.transpose(1, 0, 2)
        T, B, _ = x.shape
        x = for_kernels(x)
        h_0, c_0 = (None, None) if state is None else self._check_state(state, B, single)
        if lengths is not None:
            if single:
                raise ValueError("lengths needs a batch: x must have 3 dimensions, got 2")
            lengths = as_lengths(lengths, T, B)
        if resets is not None:
            resets = as_resets(resets, (T,) if single else (T, B))
        steps = ended = None
        if mask is not None:
            if lengths is not None:
                raise ValueError("mask and lengths cannot be used together: pass one of them")
            steps, lengths, resets, ended = without_masked(mask, resets, T, B, single)
            x = compact(x, steps)
        if ended is not None and h_0 is not None and c_0 is not None:  # directions that begin at the end
            h_0, c_0 = h_0.copy(), c_0.copy()
            begin_anew((h_0, c_0), ended, self._directions(reverse=True), self.weights.initial_state)
        # Inputs(...) itself takes twice as long, a twentieth of a small call
        return tuple.__new__(Inputs, (given, x, single, h_0, c_0, lengths, resets, steps, ended))

    def _directions(self, *, reverse: bool) -> slice:
        """Of the records (L*D) those that run in time or, with `reverse`, against it."""
        if self.num_directions == 2:
            return slice(int(reverse), None, 2)
        return slice(None) if self.weights.reverse == reverse else slice(0)

    def _output_shape(self, T: int, B: int, single: bool) -> tuple[int, ...]:
        return (T, self._width) if single else (B, T, self._width) if self._batch_first else (T, B, self._width)

    def _new_output(self, T: int, B: int, single: bool) -> tuple[Array, Array]:
        """An array as the caller gets it, and the same memory as the engine writes it."""
        output = _engine.new_array(self._output_shape(T, B, single), self._dtype)
        return output, self._as_written(output, single, self._batch_first)

    def _as_written(self, output: Array, single: bool, batch_first: bool) -> Array:
        """The same memory as (T, B, ...) with each step at its own time, which Keras' order of processing turns round."""
        output = output[:, None] if single else output.transpose(1, 0, 2) if batch_first else output
        return output[::-1] if self.weights.flipped else output

    def _as_returned(self, state: State, single: bool) -> S:
        """The engine's state as callers get it."""
        h, c = state
        return self._join(h[:, 0], c[:, 0]) if single else self._join(h, c)

    def _new_state(self, B: int) -> State:
        _, P, C, records = self._sizes
        return np.empty((records, B, P), self._dtype), np.empty((records, B, C), self._dtype)

    def _check_state(self, state: Any, B: int, single: bool) -> State:
        """The initial state as contiguous arrays (L*D, B, P) and (L*D, B, C)."""
        _, P, C, records = self._sizes
        names = ("h_0", "c_0")
        checked = []
        for name, value, size in zip(names, self._split("state", state, names), (P, C), strict=False):
            array = as_floats(name, value, self._dtype)
            expected = (records, size) if single else (records, B, size)
            if array.shape != expected:
                raise shape_error(name, expected, array.shape)
            array = contiguous(array)
            checked.append(array[:, None] if single else array)
        return checked[0], checked[1] if len(checked) == 2 else np.empty((records, B, C), self._dtype)

    def _check_out(self, out: Any, shape: tuple[int, ...], inputs: Inputs) -> Array:
        array = as_array("out", out, self._dtype)
        if array.dtype != self._dtype:  # no advice to convert it: the result would be in what nobody has
            kind = self._dtype.name
            raise TypeError(f"out must be {kind} as the weights are, got {array.dtype}; make it with dtype={kind}")
        if array is not out and array.size and not np.may_share_memory(array, as_array("out", out)):
            raise TypeError(f"out must share its memory with NumPy; converting {type(out).__name__} makes a copy")
        if array.shape != shape:
            raise shape_error("out", shape, array.shape)
        if not array.flags.writeable:
            raise ValueError("out is read-only")
        if array.size and overlaps_itself(array):
            raise ValueError("out must not overlap itself: some of its elements share memory")
        for name, other in inputs.arrays():
            if other is not None and overlap(array, other):
                raise ValueError(f"out must not overlap {name}")
        return array

    def stream(self, batch_size: int = 1) -> Stream[S]:
        """Start a stream: it keeps the state from one step to the next.

        Parameters
        ----------
        batch_size : int
            Rows B of every step, 0 or more.

        Returns
        -------
        Stream

        Raises
        ------
        ValueError, TypeError
            If the network is bidirectional or reverse, and so needs the whole sequence, or `batch_size` is not a non-negative
            integer.
        """
        return Stream(self, batch_size)

    def plan(self, T: int, B: int, threads: int | None = None) -> dict[str, int]:
        """How a call with T steps and B rows would be divided.

        Parameters
        ----------
        T, B : int
            0 or more.
        threads : int, optional
            The most threads; :func:`fastlstm.get_num_threads` if left out.

        Returns
        -------
        dict
            ``threads`` in all; ``layer_groups`` that run side by side, each a stride behind the one below; ``directions``: 2 if
            both run side by side; ``row_groups`` that never wait for each other; ``unit_groups``: threads that divide the hidden
            units and meet at every step; ``chunk``: steps whose input product is taken at once (0: with the recurrent product);
            ``stride``: steps that a layer hands on to the next at a time; ``blocks_at_once``: blocks of units that a single row
            takes together; ``patience_ns``: a pair parts when it has lost more, and a quarter of the call, to other processes;
            ``expected_ns``: the cost model's estimate, for a server of 2023: for comparing plans, not for predicting times; its
            constants are explained in ``kernels/plan.c``. The division depends on these arguments, on the size of L2 and on how
            fast the shared cache is, which is measured once: ask with ``threads=64`` what a machine of 64 such processors would
            do. A call itself may be divided otherwise: into groups that meet less often or into fewer threads while meetings take
            longer than usual, processors are busy or threads would have to be woken up, and into uneven parts while one of two
            processors is slower.

        Raises
        ------
        ValueError, TypeError
            If T or B is not an integer from 0 to 2^40, or `threads` not from 1 to 1024.
        """
        T, B = as_integer("T", T, 0, 2**40), as_integer("B", B, 0, 2**40)
        return _engine.plan(self._packed.network, T, B, _threads.allowance(threads)[0])

    # ---- Weights ---------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters under PyTorch's names, in PyTorch's order: ``weight_ih_l0``, ``weight_hh_l0``, ...

        Returns
        -------
        dict of str to array
        """
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
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping of names to arrays, got {type(state_dict).__name__}")
        expected = self.weights.expected_shapes()
        for name in state_dict:
            if name not in expected:
                names = ", ".join([*expected][:10]) + (", ..." if len(expected) > 10 else "")
                raise ValueError(f"unexpected tensor {name!r:.100}; expected {names}")
        tensors = {}
        for name, shape in expected.items():
            if name not in state_dict:
                raise ValueError(f"tensor {name} is missing; expected shape {shape}")
            value = state_dict[name]
            tensor = as_floats(name, value.detach() if hasattr(value, "detach") else value, self._dtype)
            if tensor.shape != shape:
                raise shape_error(name, shape, tensor.shape)
            tensors[name] = np.array(tensor, order="C")
        self._adopt(self.weights.with_tensors(tensors))

    def to(self: Self, *, weight_dtype: str) -> Self:
        """A new network whose matrices are rounded to a smaller type and kept in it; this one stays as it is.

        With few rows, a step takes as long as reading its weights, so fewer bytes make it faster. Inputs, outputs, states, biases
        and all arithmetic stay float32: float16 and bfloat16 give, bit for bit, the results of a float32 network with the rounded
        weights (returned by ``state_dict()``); int8 agrees with it up to rounding. Everything else holds as before: the same bits
        however a call is divided, and gradients (of the rounded weights).

        Parameters
        ----------
        weight_dtype : {"float16", "bfloat16", "int8", "float32"}
            float16 keeps 11 significant bits of each weight and bfloat16 8. int8 keeps 127 steps up to the largest weight of its
            row (one gate of one unit), and is worthwhile only if even half-size weights come from memory. "float32" goes back to
            full-size storage; the weights stay rounded. A float64 network accepts only "float64".

        Returns
        -------
        LSTM or RNN

        Raises
        ------
        ValueError
            If there is no such type for this network, or a weight is too large for it; the message names the tensor.
        TypeError
            If `weight_dtype` names no type.
        """
        name = _type_name(weight_dtype)
        own = self.dtype.name
        if name != own and (name not in TYPES or self.dtype != np.float32):
            choice = own if self.dtype != np.float32 else f"one of {', '.join((own, *TYPES))}"
            raise ValueError(f"weight_dtype of a {own} network must be {choice}, got {name!r:.100}")
        return type(self).from_weights(self.weights.rounded(None if name == own else name), self.batch_first)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters under PyTorch's names, and whether the network is batch-first, as a safetensors or npz file.

        :func:`fastlstm.load` reads the files of an LSTM, :meth:`RNN.load` those of an RNN. PyTorch's ``load_state_dict`` accepts
        what the safetensors library reads from either.

        Parameters
        ----------
        path : str or os.PathLike
            ``.npz`` writes an npz file, any other suffix a safetensors file; suffixes of other formats (``.pt``, ``.h5``,
            ``.onnx``, ...) are refused. An existing file is replaced and keeps its permissions. The file is written under a
            temporary name and then renamed, so `path` never holds half a file.

        Raises
        ------
        OSError
            If the file cannot be written, or `path` is not a regular file; nothing has changed then.
        ValueError
            If the suffix is that of another format; for ``.onnx`` use :meth:`LSTM.to_onnx`.
        TypeError
            If `path` is not a path.
        """
        from fastlstm.loaders.reading import writer

        writer("path", path, "safetensors")(self.weights, self.batch_first)


def _as_dtype(dtype: Any) -> np.dtype[Any]:
    given = f"{dtype!r:.100}"
    try:
        found: np.dtype[Any] | None = None if dtype is None else np.dtype(dtype)  # NumPy takes None for float64
    except TypeError:
        found = None
    if found is None or found not in (np.float32, np.float64):
        raise ValueError(f"dtype must be NumPy's float32 or float64, got {given if found is None else found}")
    return found


def _type_name(weight_dtype: Any) -> str:
    """A type's name, given as such or as NumPy's (or another library's) type."""
    if isinstance(weight_dtype, str):
        return weight_dtype
    try:
        if weight_dtype is not None:
            return str(np.dtype(weight_dtype).name)
    except TypeError:
        pass
    raise TypeError(f"weight_dtype must be the name of a dtype, such as 'float16', got {weight_dtype!r:.100}")


def merged(mode: str | None, forward: Array, backward: Array, out: Array | None = None) -> Any:
    """What two directions give, made one as Keras' Bidirectional does; a pair if its mode is None."""
    if mode is None:
        return forward, backward
    if mode == "concat":
        return np.concatenate((forward, backward), axis=-1)
    result = np.empty(forward.shape, forward.dtype) if out is None else out
    combine = np.multiply if mode == "mul" else np.add
    with np.errstate(all="ignore"):  # infinity and NaN go where IEEE arithmetic takes them
        for piece in pieces(result):
            combine(forward[piece], backward[piece], out=result[piece])
            if mode == "ave":
                result[piece] *= 0.5
    return result
