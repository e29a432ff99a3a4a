"""Whole small models: LSTMs and the layers around them, as a list of steps that a loader reads from a file.

The LSTMs run in the engine, everything else in NumPy. A step knows its inputs by name, so a list of them is a graph; a loader
makes the list and nothing else. What no step does is refused by the loader, by the name of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.arrays import Array, as_array, as_flag, as_floats, shape_error
from fastlstm.models.layers import INPUT, Recurrent, Step
from fastlstm.stream import Stream

__all__ = ["Model", "ModelStream"]

State = tuple[Array, Array]


class Model:
    """A network that a file describes as a whole; made by :func:`fastlstm.load_model`.

    Parameters
    ----------
    steps : sequence of Step
        Each after the steps it takes its inputs from. The result of the last is the result of the model.
    input_size : int or None
        Features of an input; None where inputs are indices.
    dtype : numpy.dtype
        Of the inputs, unless they are indices, and of the results.
    batch_first : bool
        Whether inputs are ``(B, T, ...)`` rather than ``(T, B, ...)``.
    sample_rate : float, optional
        Steps per second that the model was made for, where its file says so.
    input_shape : sequence of (int or None), optional
        Axes of one row of an input, None for any size; by default those of steps, ``(None, input_size)``, or ``(None,)`` for
        indices.

    Raises
    ------
    ValueError, TypeError
        If a name occurs twice, an input is of no step before, or `batch_first` is not a boolean.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        input_size: int | None,
        dtype: Any = "float32",
        batch_first: bool = False,
        sample_rate: float | None = None,
        input_shape: Sequence[int | None] | None = None,
    ) -> None:
        known = {INPUT}
        for step in steps:
            if step.name in known:
                raise ValueError(f"two steps are named {step.name!r:.100}")
            missing = [name for name in step.inputs if name not in known]
            if missing:
                raise ValueError(f"step {step.name!r:.100} needs {missing[0]!r:.100}, which no earlier step gives")
            known.add(step.name)
        if not steps:
            raise ValueError("a model needs at least one step")
        self.steps = tuple(steps)
        self.input_size = input_size
        self.dtype = np.dtype(dtype)
        self.batch_first = as_flag("batch_first", batch_first)
        self.sample_rate = sample_rate
        usual = (None,) if input_size is None else (None, input_size)
        self.input_shape = usual if input_shape is None else tuple(input_shape)

    def __repr__(self) -> str:
        return f"Model({', '.join(f'{step.name}: {type(step).__name__}' for step in self.steps)})"

    def __call__(self, x: Any) -> Array:
        """Run whole sequences.

        Parameters
        ----------
        x : array of the model's dtype, shape (T, B, input_size)
            ``(B, T, input_size)`` if ``batch_first``; ``(T, input_size)`` for one sequence. Without the last axis and of
            integers, where the model begins with an embedding. Where ``input_shape`` differs, that is the shape of a row.

        Returns
        -------
        array
            As many sequences and, unless a step changes that, time steps as `x` has.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit.
        """
        array, single = self._checked(x)
        result = self._run(array, {})
        if not single:
            return result
        return result[:, 0] if self._keeps_time and not self.batch_first else result[0]

    @property
    def _keeps_time(self) -> bool:
        return all(step.pointwise for step in self.steps)

    def _checked(self, x: Any) -> tuple[Array, bool]:
        """`x` with an axis for the batch, and whether that is new."""
        array = as_array("x", x) if self.input_size is None else as_floats("x", x, self.dtype)
        single = array.ndim == len(self.input_shape)
        batch = 0 if self.batch_first else 1
        row = array.shape if single else array.shape[:batch] + array.shape[batch + 1 :]
        if len(row) != len(self.input_shape) or any(a not in (b, None) for a, b in zip(self.input_shape, row, strict=True)):
            free: list[object] = ["T" if size is None else size for size in self.input_shape]
            one = [] if array.ndim == len(free) + 1 else [tuple(free)]
            raise shape_error("x", (*free[:batch], "B", *free[batch:]), array.shape, *one)
        return (np.expand_dims(array, batch) if single else array), single

    def _run(self, x: Array, special: Mapping[str, Callable[[Array], Array]]) -> Array:
        """Run all steps, some of them by another function."""
        results = {INPUT: x}
        for step in self.steps:
            values = [results[name] for name in step.inputs]
            results[step.name] = special[step.name](*values) if step.name in special else step.run(*values)
        return results[self.steps[-1].name]

    def stream(self, batch_size: int = 1) -> ModelStream:
        """A carried state that takes one step at a time, or a block of them.

        Parameters
        ----------
        batch_size : int
            Rows B of every step, 0 or more.

        Returns
        -------
        ModelStream

        Raises
        ------
        ValueError
            If a step needs the whole sequence; the message names it.
        """
        return ModelStream(self, batch_size)


class ModelStream:
    """The state of B rows that advance through a :class:`Model`; made by :meth:`Model.stream`.

    It belongs to one thread at a time. A copy (also by pickling) goes on by itself from where the stream is.
    """

    def __init__(self, model: Model, batch_size: int) -> None:
        for step in model.steps:
            if not step.pointwise or (isinstance(step, Recurrent) and (step.lstm.bidirectional or step.weights.reverse)):
                raise ValueError(f"{step.name!r:.100} needs the whole sequence, so this model cannot stream")
        self._model = model
        self._streams: dict[str, Stream[Any]] = {}
        self._recurrent = [step for step in model.steps if isinstance(step, Recurrent)]
        for step in self._recurrent:
            self._streams[step.name] = step.lstm.stream(batch_size)
        self._special: dict[str, Callable[[Array], Array]] = {name: stream.step for name, stream in self._streams.items()}
        self._engines = [stream._engine for stream in self._streams.values()]
        self.batch_size = batch_size

    def __repr__(self) -> str:
        return f"ModelStream({self._model!r}, batch_size={self.batch_size})"

    @property
    def state(self) -> dict[str, State]:
        """Copies of (h, c) of every LSTM, as :attr:`fastlstm.Stream.state`, by the names of its step. May be set."""
        return {name: stream.state for name, stream in self._streams.items()}

    @state.setter
    def state(self, state: Mapping[str, State]) -> None:
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to (h, c), got {type(state).__name__}")
        if set(state) != set(self._streams):
            raise ValueError(f"state must have the keys {list(self._streams)!s:.200}, got {list(state)!s:.200}")
        before = self.state
        try:
            for name, stream in self._streams.items():
                try:
                    stream.state = state[name]
                except (ValueError, TypeError) as error:
                    raise type(error)(f"state[{name!r:.100}]: {error}") from None
        except BaseException:
            self._go_to(before)
            raise

    def reset(self, rows: Iterable[int] | Array | None = None) -> None:
        """Begin anew from the initial states, all rows or `rows`.

        Parameters
        ----------
        rows : integers, or bool array of shape (B,), optional
            As for :meth:`fastlstm.Stream.reset`.

        Raises
        ------
        ValueError, TypeError
            If a row is not an integer from 0 to B - 1, or there are not B booleans; nothing has changed then.
        """
        if isinstance(rows, Iterator):
            rows = list(rows)  # for every LSTM
        for stream in self._streams.values():
            stream.reset(rows)

    def step(self, x: Any) -> Array:
        """Take one step.

        Parameters
        ----------
        x : array of the model's dtype, shape (B, input_size)
            Also ``(input_size,)`` if `batch_size` is 1.

        Returns
        -------
        array, shape (B, outputs)
            ``(outputs,)`` for an `x` without batch.

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit; the state has not changed then.
        """
        size = self._model.input_size
        array = as_array("x", x) if size is None else as_floats("x", x, self._model.dtype)
        shape = () if size is None else (size,)
        single = array.shape == shape and self.batch_size == 1
        if not single and array.shape != (self.batch_size, *shape):
            raise shape_error("x", (self.batch_size, *shape), array.shape, *([shape] if self.batch_size == 1 else []))
        before = [(engine, engine.current) for engine in self._engines]
        try:
            result = self._model._run(array[None] if single else array, self._special)
            return result[0] if single else result
        except BaseException:  # Ctrl-C too: some of the LSTMs have taken the step, others have not
            for engine, current in before:
                engine.take_back(current)
            raise

    def process(self, x: Any) -> Array:
        """Take a block of steps: the results of as many calls of :meth:`step`.

        Parameters
        ----------
        x : array, shape as for a call of the model
            Of `batch_size` sequences.

        Returns
        -------
        array

        Raises
        ------
        ValueError, TypeError
            If `x` does not fit; the state has not changed then, nor after Ctrl-C.
        """
        array, single = self._model._checked(x)
        axis = 0 if self._model.batch_first else 1
        if array.shape[axis] != self.batch_size:
            raise ValueError(f"x must have {self.batch_size} sequences, got {array.shape[axis]}")

        before = self.state
        after: dict[str, State] = {}

        def advance(step: Recurrent) -> Callable[[Array], Array]:
            def run(values: Array) -> Array:
                output: Array
                output, after[step.name] = step.lstm(values, before[step.name])
                return output

            return run

        result = self._model._run(array, {step.name: advance(step) for step in self._recurrent})
        if single:
            result = result[0] if axis == 0 else result[:, 0]
        try:
            self._go_to(after)
        except BaseException:  # Ctrl-C between two LSTMs
            self._go_to(before)
            raise
        return result

    def _go_to(self, states: Mapping[str, State]) -> None:
        for name, state in states.items():
            self._streams[name].state = state

    def __reduce__(self) -> Any:
        return _go_on, (self._model, self.batch_size, self.state)


def _go_on(model: Model, batch_size: int, states: Mapping[str, State]) -> ModelStream:
    """A copy of a stream."""
    copied = ModelStream(model, batch_size)
    copied._go_to(states)
    return copied
