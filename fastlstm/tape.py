"""A recorded forward pass, and the gradients that backpropagation through time takes from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from fastlstm import _engine
from fastlstm import threads as _threads
from fastlstm.arrays import Array, Inputs, as_bytes, as_flag, as_floats, as_integer, contiguous, for_kernels, shape_error
from fastlstm.masks import begin_anew, compact, spread
from fastlstm.packed import OptionalState, State
from fastlstm.weights import suffix

if TYPE_CHECKING:
    from fastlstm.network import Network

__all__ = ["GradientMemory", "Gradients", "S", "Tape", "copies", "zeros"]

S = TypeVar("S")  # the state as callers see it: (h, c), or h alone of a plain RNN
GradientMemory = tuple["Array | None", ...]  # where the gradients of one layer's and direction's parameters go
_USED = "this tape has already been used, or its backward was interrupted; call record again"


@dataclass(frozen=True, eq=False)
class Gradients(Generic[S]):
    """What :meth:`Tape.backward` returns, in the network's dtype.

    Attributes
    ----------
    input : array, shaped as the input, or None
        Zero where there is padding. None if it was not asked for.
    state : (array, array), or an array of an RNN
        Of the initial state, shaped as it.
    parameters : dict of str to array
        Under the names of ``state_dict()``. ``bias_ih`` and ``bias_hh`` have equal gradients, because the network adds them. The
        arrays are views of one block of memory, which lives as long as any of them: copy what you keep.
    """

    input: Array | None
    state: S
    parameters: dict[str, Array]

    def __repr__(self) -> str:
        states: tuple[Any, ...] = self.state if isinstance(self.state, tuple) else (self.state,)
        state = ", ".join(str(array.shape) for array in states)
        shapes = ", ".join(f"{name}: {array.shape}" for name, array in self.parameters.items())
        of_input = None if self.input is None else self.input.shape
        return f"Gradients(input: {of_input}, state: {state}, parameters: {{{shapes}}})"


class Tape(Generic[S]):
    """A forward pass that keeps what backpropagation through time needs; made by :meth:`LSTM.record` or
    :meth:`RNN.record`.

    It keeps copies: arrays that change afterwards do not change the gradients. Per token and direction of a layer these are 4H
    gates, H of the cell state and P (or H) outputs, or 2H numbers of an RNN, besides the I inputs of the first layer. H is
    rounded up to a multiple of 16, I and the outputs of a layer to whole cache lines; a row of a multiple of 1024 bytes has one
    more. Padding takes none.

    Attributes
    ----------
    output, state : as a call returns them, bit for bit if nothing is dropped
    dropout : float
        Probability that an element between two layers is dropped.
    seed : int
        Which ones.
    """

    def __init__(self, network: Network[S], inputs: Inputs, dropout: float, seed: int, threads: int | None) -> None:
        T, B, _ = inputs.x.shape
        self.dropout, self.seed = dropout, seed
        self._net, self._packed, self._single, self._sizes = network, network._packed, inputs.single, (T, B)
        self._batch_first = network.batch_first  # the network's may change before the gradients are taken
        self._lengths = None if inputs.lengths is None else inputs.lengths.copy()
        self._resets = None if inputs.resets is None else inputs.resets.copy()
        self._steps, self._ended, self._given = inputs.steps, inputs.ended, inputs.h_0 is not None
        self._unused = [True]  # emptied by the one backward pass: of two threads only one can pop
        self.output, output = network._new_output(T, B, inputs.single)
        final = network._new_state(B)
        self._record(inputs.x, (inputs.h_0, inputs.c_0), output, final, _threads.allowance(threads))
        if inputs.steps is not None:
            spread(output, inputs.steps)
        if inputs.ended is not None:
            begin_anew(final, inputs.ended, network._directions(reverse=False), network.weights.initial_state)
        self.state: S = network._as_returned(final, inputs.single)

    def _record(self, x: Array, state: OptionalState, output: Array, final: State, threads: tuple[int, int]) -> None:
        """The forward pass; everything in the engine's shapes."""
        self._packed.transposed  # noqa: B018  (now, when a lack of memory costs nothing)
        self._arguments = (*self._sizes, self._lengths, *map(as_bytes, state), self.dropout, self.seed)
        self._engine: _engine.Tape | None = _engine.Tape(self._packed.network, *self._arguments)
        run, network = self._packed.forward, self._packed.network
        run(network, x, *state, output, *final, self._lengths, self._resets, *threads, self._engine)

    def _run_back(
        self,
        d_y: Array | None,
        d_final: OptionalState,
        steps: int,
        d_x: Array | None,
        d_state: State,
        memory: list[GradientMemory],
        threads: tuple[int, int],
    ) -> None:
        """The backward pass; everything in the engine's shapes. `d_x` (None: not wanted), `d_state` and `memory` are written."""
        assert self._engine is not None, "a tape that is not used up"
        run, transposed = self._packed.backward, self._packed.transposed
        run(transposed, self._engine, d_y, *d_final, self._resets, steps, 0, d_x, *d_state, memory, False, *threads)

    def _free(self) -> None:
        """Let go of what the gradients were taken from."""
        self._engine = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(output: {self.output.shape})"

    @property
    def nbytes(self) -> int:
        """Bytes that the tape keeps for its gradients; 0 when it is used up."""
        return 0 if self._engine is None else self._engine.nbytes

    def backward(
        self,
        d_output: Any = None,
        d_state: Any = None,
        *,
        steps: int | None = None,
        input: bool = True,
        threads: int | None = None,
    ) -> Gradients[S]:
        """Gradients of ``sum(output * d_output) + sum(h_n * d_state[0]) + sum(c_n * d_state[1])``.

        The sums behind each number have one order, which depends on T, B and the lengths alone: the same bits on any number of
        threads. No gradient crosses a reset. A tape can be used once, because its memory is overwritten. A call that Ctrl-C
        interrupts uses it up as well; one that fails for lack of memory does not.

        Parameters
        ----------
        d_output : array, shaped as `output`, optional
            None stands for zeros.
        d_state : (d_h_n, d_c_n), or d_h_n of an RNN, shaped as `state`, optional
            None stands for zeros, for both or for one of them.
        steps : int, optional
            Truncated backpropagation [1]_: gradients do not cross from step t to step t - 1 where t is a multiple of `steps`; the
            forward pass is not cut. With a mask, steps are counted without the masked ones. The alternative is to record pieces
            of a sequence one after the other, each from the final state of the one before: the same gradients of the parameters,
            in less memory.
        input : bool
            Whether to compute the gradient of the input. Without it, a one-layer call takes a tenth less time if I is small, and
            a fifth to a quarter less if I equals H.
        threads : int, optional
            The most threads for this call.

        Returns
        -------
        Gradients

        Raises
        ------
        RuntimeError
            If the tape was used before (also by a call that Ctrl-C ended), or the network's weights were replaced since it was
            recorded.
        ValueError, TypeError
            If a gradient does not fit what it belongs to; the tape can still be used then.

        References
        ----------
        .. [1] R. Williams, J. Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
           Trajectories", Neural Computation 2(4), 1990.
        """
        if not self._unused:
            raise RuntimeError(_USED)
        net, (T, B) = self._net, self._sizes
        if net._packed is not self._packed:
            raise RuntimeError("the network's weights were replaced (load_state_dict) after this tape was recorded; record again")
        cut, wanted = _check_steps(steps, T), as_flag("input", input)
        d_y, d_asked, allowed = self._check_output(d_output), self._check_state(d_state), _threads.allowance(threads)

        d_input, d_x = self._room_for_input() if wanted else (None, None)
        d_final = d_asked
        if self._ended is not None:
            d_final = copies(d_asked, net._new_state(B))
            begin_anew(d_final, self._ended, net._directions(reverse=False), None)
        d_initial = copies(d_final, net._new_state(B))  # a row without a step hands on what it is given
        parameters = _room_of(self._packed.shapes, net.dtype, T * B)
        try:
            self._unused.pop()
        except IndexError:
            raise RuntimeError(_USED) from None  # by another Python thread, just now
        try:
            self._run_back(d_y, d_final, cut, d_x, d_initial, self._memory_of(parameters), allowed)
        except MemoryError:  # nothing has changed then
            self._unused.append(True)
            raise
        except BaseException:  # after Ctrl-C it is worth nothing
            self._free()
            raise
        self._free()
        if d_x is not None and self._steps is not None:
            spread(d_x, self._steps)
        if self._ended is not None:
            self._add_initial(parameters, d_asked, net._directions(reverse=False))
            if self._given:
                self._add_initial(parameters, d_initial, net._directions(reverse=True))
            begin_anew(d_initial, self._ended, net._directions(reverse=True), None)
        for name in parameters:
            if name.startswith("bias_hh"):
                parameters[name][...] = parameters[name.replace("bias_hh", "bias_ih")]
        return Gradients(d_input, net._as_returned(d_initial, self._single), parameters)

    def _room_for_input(self) -> tuple[Array, Array]:
        """The gradient of the input as the caller gets it, and the same memory as (T, B, I); not written where rows end."""
        net, (T, B), I = self._net, self._sizes, self._net.input_size
        room = _room if self._lengths is None and T and B else zeros
        d_input = room((T, I) if self._single else (B, T, I) if self._batch_first else (T, B, I), net.dtype)
        return d_input, d_input[:, None] if self._single else d_input.transpose(1, 0, 2) if self._batch_first else d_input

    def _memory_of(self, parameters: dict[str, Array]) -> list[GradientMemory]:
        """The gradients of each layer and direction, as the engine takes them; that of bias_hh is bias_ih's."""
        kinds = ("weight_ih", "weight_hh", "bias_ih", "weight_hr", "weight_peephole", "h_0", "c_0")
        ends = [suffix(record, self._net.num_directions) for record in range(len(self._packed.weights.layers))]
        return [tuple(as_bytes(parameters.get(kind + end)) for kind in kinds) for end in ends]

    def _add_initial(self, parameters: dict[str, Array], d_state: OptionalState, records: slice) -> None:
        """Where rows restart, the gradient of their state is one of the network's own initial state, if it has one."""
        for kind, d in zip(("h_0", "c_0"), d_state, strict=True):
            for record in range(len(self._packed.weights.layers))[records]:
                name = kind + suffix(record, self._net.num_directions)
                if d is not None and name in parameters:
                    parameters[name] += d[record, self._ended].sum(axis=0)

    def _check_output(self, d_output: Any) -> Array | None:
        if d_output is None:
            return None
        given = for_kernels(_like("d_output", d_output, self.output))
        d_y = self._net._as_written(given, self._single, self._batch_first)
        return d_y if self._steps is None else compact(d_y, self._steps)

    def _check_state(self, d_state: Any) -> OptionalState:
        if d_state is None:
            return None, None
        names = ("d_h_n", "d_c_n")
        likes = self._net._split("state", self.state, names)
        checked: list[Array | None] = []
        for name, value, like in zip(names, self._net._split("d_state", d_state, names), likes, strict=False):
            array = None if value is None else contiguous(_like(name, value, like))
            checked.append(array[:, None] if array is not None and self._single else array)
        return checked[0], checked[1] if len(checked) == 2 else None

    def __getstate__(self) -> dict[str, Any]:
        if self._net._packed is not self._packed:
            raise RuntimeError("the network's weights were replaced after this tape was recorded: it can no longer be copied")
        state = self.__dict__.copy()
        for name in self._remade:
            state.pop(name, None)
        return state | {"_unused": self._unused.copy(), "content": self._content()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        content = state.pop("content")
        self.__dict__.update(state)
        self._packed = self._net._packed
        self._restore(content)

    _remade: tuple[str, ...] = ("_packed", "_engine")  # when a tape is copied

    def _content(self) -> Any:
        return None if self._engine is None else self._engine.content()

    def _restore(self, content: Any) -> None:
        self._engine = None
        if content is not None:
            self._engine = _engine.Tape(self._packed.network, *self._arguments)
            self._engine.restore(content)


def _check_steps(steps: Any, T: int) -> int:
    """Of truncation; 0: none, as at T or beyond nothing is cut."""
    return 0 if steps is None else min(as_integer("steps", steps, 1), max(T, 1))


def _room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    array: Array = _engine.new_array(shape, dtype, 1 << 20)  # gradients are rarely kept
    return array


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    array = _room(shape, dtype)
    array.fill(0)
    return array


def _room_of(shapes: dict[str, tuple[int, ...]], dtype: np.dtype[Any], tokens: int) -> dict[str, Array]:
    """Arrays of one piece of memory: many of some megabytes would come from fresh pages at every call. Zeros without tokens."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    memory, ends = (_room if tokens else zeros)((sum(sizes),), dtype), accumulate(sizes)
    return {name: memory[end - size : end].reshape(shapes[name]) for name, size, end in zip(shapes, sizes, ends, strict=True)}


def copies(state: OptionalState, room: State) -> State:
    """A state's values, zeros where there are none, in `room`."""
    for array, values in zip(room, state, strict=True):
        array[...] = 0 if values is None else values
    return room


def _like(name: str, value: Any, like: Array) -> Array:
    array = as_floats(name, value, like.dtype)
    if array.shape != like.shape:
        raise shape_error(name, like.shape, array.shape)
    return array
