"""A tape that keeps a fraction of the memory: its backward pass computes what it needs once more."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlstm import _engine
from fastlstm.arrays import Array, as_bytes
from fastlstm.packed import OptionalState, Packed, State
from fastlstm.tape import GradientMemory, S, Tape, copies, zeros
from fastlstm.weights import Weights

__all__ = ["RecomputedTape"]


class RecomputedTape(Tape[S]):
    """A tape that keeps the inputs of each layer and a state now and then. Its backward pass recomputes the steps between two
    kept states, for one layer and direction after the other."""

    _remade = ("_packed", "_parts")

    def _record(self, x: Array, state: OptionalState, output: Array, final: State, threads: tuple[int, int]) -> None:
        net, D, (T, B) = self._net, self._net.num_directions, self._sizes
        self._segment, self._parts = _segment(T, B), _parts(self._packed.weights)
        self._inputs = [x.copy()]  # of each layer
        self._states: list[dict[int, OptionalState]] = []  # of each part: by a segment's first step, the state it begins from
        for layer in range(net.num_layers):
            last = layer + 1 == net.num_layers
            y = output if last else _engine.new_array((T, B, net._width), net.dtype)
            for side in range(D):
                index = layer * D + side
                part = self._parts[index]
                before: OptionalState = _copy_of(state[0], index), _copy_of(state[1], index)  # the caller's arrays may change
                states: dict[int, OptionalState] = {}
                for begin, end in self._segments(part):
                    states[begin], after = before, _state_of(part, B)
                    inputs, outputs = self._inputs[layer][begin:end], y[begin:end, :, self._columns(side)]
                    part.forward(part.network, inputs, *before, outputs, *after, *self._cut(begin, end), *threads)
                    if part.weights.reverse and begin:
                        _zero(after, self._fresh(begin))
                    before = after
                final[0][index], final[1][index] = after[0][0], after[1][0]
                self._states.append(states)
            if not last:
                if self.dropout:
                    self._packed.drop(y, self.dropout, self.seed, layer)
                self._inputs.append(y)

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
        D, packed = self._net.num_directions, self._packed
        for layer in reversed(range(self._net.num_layers)):
            wanted = layer > 0 or d_x is not None
            d_inputs = [zeros(self._inputs[layer].shape, self._net.dtype) for _ in range(D if wanted else 0)]
            for side in range(D):
                index = layer * D + side
                d_after: OptionalState = _part_of(d_final[0], index), _part_of(d_final[1], index)
                d_part = None if d_y is None else d_y[:, :, self._columns(side)]
                d_input = d_inputs[side] if wanted else None
                d_h, d_c = self._part_back(index, d_input, d_part, d_after, steps, memory[index], threads)
                d_state[0][index], d_state[1][index] = d_h[0], d_c[0]
            if wanted:
                d_y = d_inputs[0]
                if D == 2:
                    packed.add(packed.network, d_y, d_inputs[1])
                if layer and self.dropout:
                    packed.drop(d_y, self.dropout, self.seed, layer - 1)
        if d_x is not None:
            d_x[...] = d_y

    def _free(self) -> None:
        self._inputs, self._states = [], []

    def _part_back(
        self,
        index: int,
        d_x: Array | None,
        d_y: Array | None,
        d_after: OptionalState,
        steps: int,
        memory: GradientMemory,
        threads: tuple[int, int],
    ) -> State:
        """One layer and direction, segment by segment from its end; the gradient of its initial state."""
        part, x = self._parts[index], self._inputs[index // self._net.num_directions]
        T, B = self._sizes
        for done, (begin, end) in enumerate(reversed(self._segments(part))):
            state, (lengths, resets) = self._states[index][begin], self._cut(begin, end)
            tape = _engine.Tape(part.network, end - begin, B, lengths, as_bytes(state[0]), as_bytes(state[1]))
            after = _state_of(part, B)
            output = _engine.new_array((end - begin, B, after[0].shape[-1]), x.dtype)
            part.forward(part.network, x[begin:end], *state, output, *after, lengths, resets, *threads, tape)
            d_before = copies(d_after, _state_of(part, B))
            d_out, d_in = (None if d is None else d[begin:end] for d in (d_y, d_x))
            adds = done > 0
            part.backward(part.transposed, tape, d_out, *d_after, resets, steps, begin, d_in, *d_before, [memory], adds, *threads)
            border = end if part.weights.reverse else begin
            if 0 < border < T:
                _zero(d_before, self._active(border) if steps and border % steps == 0 else self._fresh(border))
            d_after = d_before
        return d_before

    def _segments(self, part: Packed) -> list[tuple[int, int]]:
        """First step and end of each segment, in the order of processing."""
        T = self._sizes[0]
        segments = [(begin, min(begin + self._segment, T)) for begin in range(0, max(T, 1), self._segment)]
        return segments[::-1] if part.weights.reverse else segments

    def _columns(self, side: int) -> slice:
        width = self._net._width // self._net.num_directions
        return slice(side * width, (side + 1) * width)

    def _cut(self, begin: int, end: int) -> tuple[Array | None, Array | None]:
        """A segment's lengths, which keep the order that rows have in the whole, and resets."""
        lengths = None if self._lengths is None else self._lengths - begin
        return lengths, None if self._resets is None else self._resets[begin:end]

    def _active(self, t: int) -> Array:
        """Which rows have step t."""
        return np.ones(self._sizes[1], bool) if self._lengths is None else self._lengths > t

    def _fresh(self, t: int) -> Array:
        """Which rows begin anew at step t."""
        active = self._active(t)
        return np.zeros_like(active) if self._resets is None else active & (self._resets[t] != 0)

    @property
    def nbytes(self) -> int:
        """Bytes that the tape keeps for its gradients, without what the backward pass takes while it runs; 0 once it is used."""
        states = [array for states in self._states for state in states.values() for array in state if array is not None]
        return sum(array.nbytes for array in self._inputs + states)

    def _content(self) -> Any:
        return None

    def _restore(self, content: Any) -> None:
        self._parts = _parts(self._packed.weights)


def _segment(T: int, B: int) -> int:
    """Steps between two states that are kept: about the root of T, in whole blocks of the engine's sums over tokens."""
    block = _engine.block_steps(B)
    return block * max(1, round(math.sqrt(T) / block))


def _parts(weights: Weights) -> list[Packed]:
    """Each layer and direction as a network of its own."""
    parts = []
    for index, layer in enumerate(weights.layers):
        reverse = weights.reverse or index % weights.num_directions == 1
        parts.append(Packed(Weights((layer,), reverse=reverse, weight_dtype=weights.weight_dtype)))
    return parts


def _state_of(part: Packed, B: int) -> State:
    """Room for a part's state."""
    weights = part.weights
    return np.empty((1, B, weights.recurrent_size), weights.dtype), np.empty((1, B, weights.cell_size), weights.dtype)


def _part_of(state: Array | None, index: int) -> Array | None:
    """One layer's and direction's part, as (1, B, ...)."""
    return None if state is None else state[index : index + 1]


def _copy_of(state: Array | None, index: int) -> Array | None:
    return None if state is None else state[index : index + 1].copy()


def _zero(state: State, rows: Any) -> None:
    for array in state:
        array[:, rows] = 0
