"""Whole small models: LSTMs and the layers around them, as a list of steps that a loader reads from a file.

The LSTMs run in the engine, everything else in NumPy. A step knows its inputs by name, so a list of them is a graph; a loader
makes the list and nothing else. What no step does is refused by the loader, by the name of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm.arrays import Array, as_array, as_flag, as_floats, shape_error
from fastlstm.lstm import LSTM
from fastlstm.stream import Stream
from fastlstm.weights import Weights

__all__ = [
    "ACTIVATIONS",
    "INPUT",
    "SELU_ALPHA",
    "SELU_SCALE",
    "SMALL",
    "Activate",
    "Add",
    "AnyFeature",
    "Concatenate",
    "Dense",
    "Either",
    "Embedding",
    "Everywhere",
    "Features",
    "LastAxis",
    "LastStep",
    "LayerNorm",
    "Masked",
    "Model",
    "ModelStream",
    "NotEqual",
    "ReLU",
    "Recurrent",
    "RepeatVector",
    "Reshape",
    "Step",
    "WholeSequence",
    "small_product",
]

INPUT = "input"  # the name of what the model is called with
# Up to this many weights a dense layer adds in one order whatever the batch; beyond, the speed of a matrix product counts more
SMALL = 4096
BLOCK = 1 << 16  # products that a small dense layer has in memory at a time

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al., "Self-Normalizing Neural Networks", 2017

State = tuple[Array, Array]


# ---- Activations ---------------------------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))  # cannot overflow
    result: Array = np.where(x < 0, e, 1) / (1 + e)
    return result


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "softmax": _softmax,
    "elu": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "silu": lambda x: x * _sigmoid(x),
    "exponential": np.exp,
    "leaky_relu": lambda x: np.where(x < 0, x * 0.2, x),  # Keras' slope
    "relu6": lambda x: np.clip(x, 0, 6),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_sigmoid_keras2": lambda x: np.clip(x * 0.2 + 0.5, 0, 1),
    "selu": lambda x: SELU_SCALE * np.where(x < 0, SELU_ALPHA * np.expm1(np.minimum(x, 0)), x),
    "log_softmax": _log_softmax,
}


# ---- Steps ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a model.

    Attributes
    ----------
    name : str
        Unique in its model; the layer's own name.
    inputs : tuple of str
        The names of the steps whose results it takes, or :data:`INPUT`.
    pointwise : bool
        Whether each time step is computed from the same one alone, so that a stream can take it.
    """

    name: str
    inputs: tuple[str, ...]
    pointwise = True

    def run(self, *values: Array) -> Array:
        """The result, from the results of ``inputs``; features are on the last axis."""
        raise NotImplementedError

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Its parameters by name."""
        for key, value in vars(self).items():
            if isinstance(value, np.ndarray):
                yield f"{self.name}.{key}", value


@dataclass(frozen=True, eq=False)
class Recurrent(Step):
    """An LSTM; its weights' initial state, if they have one, begins every sequence.

    Attributes
    ----------
    weights : Weights
    batch_first : bool
        Whether the values are ``(B, T, ...)``.
    """

    weights: Weights
    batch_first: bool = False
    lstm: LSTM = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lstm", LSTM.from_weights(self.weights, self.batch_first))

    def run(self, *values: Array) -> Array:
        output: Array = self.lstm(values[0])[0]
        return output

    def arrays(self) -> Iterator[tuple[str, Array]]:
        for name, tensor in self.weights.named_tensors():
            yield f"{self.name}.{name}", tensor


@dataclass(frozen=True, eq=False)
class Dense(Step):
    """``activation(x W^T + b)``.

    Attributes
    ----------
    weight : array, shape (outputs, inputs)
    bias : array, shape (outputs,), or None
    activation : str
        One of :data:`ACTIVATIONS`.
    """

    weight: Array
    bias: Array | None = None
    activation: str = "linear"

    def run(self, *values: Array) -> Array:
        y = small_product(values[0], self.weight) if self.weight.size <= SMALL else values[0] @ self.weight.T
        y = y if self.bias is None else y + self.bias
        return ACTIVATIONS[self.activation](y)


def small_product(x: Array, weight: Array) -> Array:
    """``x W^T``, each number the sum of one contiguous row of products: NumPy adds those in one order, alone or in any batch."""
    O, I = weight.shape
    rows = x.reshape(-1, I)
    result = np.empty((len(rows), O), x.dtype)
    step = max(1, BLOCK // weight.size)
    for start in range(0, len(rows), step):
        np.add.reduce(rows[start : start + step, None] * weight, axis=-1, out=result[start : start + step])
    return result.reshape(*x.shape[:-1], O)


@dataclass(frozen=True, eq=False)
class Embedding(Step):
    """A row of a table for each index.

    Attributes
    ----------
    table : array, shape (entries, outputs)
    """

    table: Array

    def run(self, *values: Array) -> Array:
        index = values[0]
        if index.dtype.kind not in "iu":
            raise TypeError(f"{self.name} takes indices, integers, got {index.dtype}")
        if index.size and not 0 <= index.min() <= index.max() < len(self.table):
            raise ValueError(f"{self.name} has {len(self.table)} entries, got indices from {index.min()} to {index.max()}")
        return self.table[index]


@dataclass(frozen=True, eq=False)
class LayerNorm(Step):
    """``(x - mean) / sqrt(variance + epsilon) * gamma + beta`` over the features.

    Attributes
    ----------
    gamma, beta : arrays, shape (features,), or None
    epsilon : float
    """

    gamma: Array | None = None
    beta: Array | None = None
    epsilon: float = 1e-5

    def run(self, *values: Array) -> Array:
        x = values[0]
        centred = x - x.mean(axis=-1, keepdims=True)
        y: Array = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + x.dtype.type(self.epsilon))
        y = y if self.gamma is None else y * self.gamma
        return y if self.beta is None else y + self.beta


@dataclass(frozen=True, eq=False)
class Activate(Step):
    """An activation alone, one of :data:`ACTIVATIONS`."""

    activation: str

    def run(self, *values: Array) -> Array:
        return ACTIVATIONS[self.activation](values[0])


@dataclass(frozen=True, eq=False)
class Features(Step):
    """Some of the features."""

    start: int
    stop: int

    def run(self, *values: Array) -> Array:
        return values[0][..., self.start : self.stop]


@dataclass(frozen=True, eq=False)
class Add(Step):
    """The sum of its inputs; one with a single feature is added to all."""

    def run(self, *values: Array) -> Array:
        result = values[0]
        for value in values[1:]:
            result = result + value
        return result


@dataclass(frozen=True, eq=False)
class LastStep(Step):
    """The last time step of each sequence."""

    batch_first: bool = False
    pointwise = False

    def run(self, *values: Array) -> Array:
        return values[0][:, -1] if self.batch_first else values[0][-1]


@dataclass(frozen=True, eq=False)
class Reshape(Step):
    """Another shape for all axes but the first, as Keras' Reshape and Flatten; -1 for one that follows from the others."""

    shape: tuple[int, ...]
    pointwise = False

    def run(self, *values: Array) -> Array:
        return values[0].reshape(len(values[0]), *self.shape)


@dataclass(frozen=True, eq=False)
class WholeSequence(Recurrent):
    """An LSTM that returns its last output alone, or whose second input is a mask: true where a row has a step.

    At any other step the state stands still, as in Keras.

    Attributes
    ----------
    last : bool
        Whether it returns the output of each row's last step, ``(B, ...)``; of two directions each its own last one.
    hold : bool
        Whether the outputs of the steps left out repeat the one before, rather than being zero.
    """

    last: bool = False
    hold: bool = True
    pointwise = False

    def run(self, *values: Array) -> Array:
        x, mask = values[0], values[1] if len(values) > 1 else None
        steps_first = mask.T if mask is not None and self.batch_first else mask
        output, (h_n, _) = self.lstm(x, mask=steps_first)
        if self.last:
            return self._merged(h_n)
        if mask is None or not self.hold:
            result: Array = output
            return result
        # A flipped output is in the order of processing, so its steps are left out in that order
        time = 1 if self.batch_first else 0
        real = np.flip(mask, time) if self.weights.flipped else mask
        steps = np.arange(real.shape[time]).reshape((1, -1) if time else (-1, 1))
        latest = np.maximum.accumulate(
            np.where(real, steps, 0), axis=time
        )  # before the first, step 0: zero as the engine left it
        return np.take_along_axis(output, latest[..., None], axis=time)

    def _merged(self, h_n: Array) -> Array:
        ways = h_n[-self.weights.num_directions :]
        mode = self.weights.merge_mode
        if mode == "concat":
            return np.concatenate(list(ways), axis=-1)
        result: Array = ways.prod(axis=0) if mode == "mul" else ways.sum(axis=0)
        return result * result.dtype.type(0.5) if mode == "ave" else result


@dataclass(frozen=True, eq=False)
class NotEqual(Step):
    """True where there is another value than one; of indices, or of features."""

    value: float

    def run(self, *values: Array) -> Array:
        return np.asarray(values[0] != self.value)


@dataclass(frozen=True, eq=False)
class AnyFeature(Step):
    """Whether any of the features is true."""

    def run(self, *values: Array) -> Array:
        return np.asarray(values[0].any(axis=-1))


@dataclass(frozen=True, eq=False)
class Either(Step):
    """True where either input is; an axis of 1 goes with any size."""

    def run(self, *values: Array) -> Array:
        return np.asarray(values[0] | values[1])


@dataclass(frozen=True, eq=False)
class Everywhere(Step):
    """True everywhere, or false, in the shape of its input."""

    value: bool

    def run(self, *values: Array) -> Array:
        return np.broadcast_to(np.bool_(self.value), values[0].shape)


@dataclass(frozen=True, eq=False)
class LastAxis(Step):
    """One more axis at the end, of size 1."""

    def run(self, *values: Array) -> Array:
        return values[0][..., None]


@dataclass(frozen=True, eq=False)
class Masked(Step):
    """Zero in all features of the steps that the second input says are none."""

    def run(self, *values: Array) -> Array:
        return np.where(values[1][..., None], values[0], values[0].dtype.type(0))


@dataclass(frozen=True, eq=False)
class ReLU(Step):
    """``min(x, most)`` from a threshold on, ``slope * (x - threshold)`` below it."""

    slope: float = 0.0
    threshold: float = 0.0
    most: float | None = None

    def run(self, *values: Array) -> Array:
        x = values[0]
        y = np.where(x < self.threshold, (x - self.threshold) * self.slope, x)
        return y if self.most is None else np.minimum(y, self.most)


@dataclass(frozen=True, eq=False)
class Concatenate(Step):
    """Its inputs side by side; ``axis`` counts from the end, -1 for the features."""

    axis: int = -1

    @property
    def pointwise(self) -> bool:  # type: ignore[override]  # of the features it is
        return self.axis == -1

    def run(self, *values: Array) -> Array:
        return np.concatenate(values, axis=self.axis)


@dataclass(frozen=True, eq=False)
class RepeatVector(Step):
    """The same features at each of some time steps, batch-first."""

    count: int
    pointwise = False

    def run(self, *values: Array) -> Array:
        return np.repeat(values[0][:, None], self.count, axis=1)


# ---- Models --------------------------------------------------------------------------------------------------------------------


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
        If a name occurs twice, an input is of no step before, or `batch_first` is neither true nor false.
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
            missing = [name for name in step.inputs if name not in known]
            if missing or step.name in known:
                raise ValueError(f"{step.name!r:.100} takes {missing} which no step before it gives, or has the name of another")
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
            raise shape_error("x", (*free[:batch], "B", *free[batch:]), array.shape)
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

    def reset(self) -> None:
        """Begin anew, from the initial states."""
        for stream in self._streams.values():
            stream.reset()

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
            raise shape_error("x", (self.batch_size, *shape), array.shape)
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

        before = {name: stream.state for name, stream in self._streams.items()}
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
        return _go_on, (self._model, self.batch_size, {name: stream.state for name, stream in self._streams.items()})


def _go_on(model: Model, batch_size: int, states: Mapping[str, State]) -> ModelStream:
    """A copy of a stream."""
    copied = ModelStream(model, batch_size)
    copied._go_to(states)
    return copied
