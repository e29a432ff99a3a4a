"""The layers of a small model, each a step that knows its inputs by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from fastlstm.arrays import Array
from fastlstm.lstm import LSTM
from fastlstm.network import merged
from fastlstm.operators.activations import KERAS_ACTIVATIONS
from fastlstm.operators.normalizations import normalized
from fastlstm.operators.product import product
from fastlstm.weights import Weights

INPUT = "input"  # the name of what the model is called with


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
        One of :data:`KERAS_ACTIVATIONS`.
    """

    weight: Array
    bias: Array | None = None
    activation: str = "linear"

    def run(self, *values: Array) -> Array:
        y = product(values[0], self.weight.T)
        y = y if self.bias is None else y + self.bias
        return KERAS_ACTIVATIONS[self.activation](y)


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
            raise TypeError(f"{self.name} takes integer indices, got {index.dtype}")
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
        y, _, _ = normalized(values[0], (-1,), self.epsilon)
        y = y if self.gamma is None else y * self.gamma
        return y if self.beta is None else y + self.beta


@dataclass(frozen=True, eq=False)
class Affine(Step):
    """``(x - mean) * scale + shift`` for each feature: what batch normalization is after training."""

    mean: Array
    scale: Array
    shift: Array

    def run(self, *values: Array) -> Array:
        result: Array = (values[0] - self.mean) * self.scale + self.shift
        return result


@dataclass(frozen=True, eq=False)
class Activate(Step):
    """An activation alone, one of :data:`KERAS_ACTIVATIONS`."""

    activation: str

    def run(self, *values: Array) -> Array:
        return KERAS_ACTIVATIONS[self.activation](values[0])


@dataclass(frozen=True, eq=False)
class Features(Step):
    """Some of the features."""

    start: int
    stop: int

    def run(self, *values: Array) -> Array:
        return values[0][..., self.start : self.stop]


MERGES = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum}


@dataclass(frozen=True, eq=False)
class Merge(Step):
    """Its inputs, element by element, by one of :data:`MERGES` or "average"; one with a single feature goes with all."""

    operation: str = "add"

    def run(self, *values: Array) -> Array:
        average = self.operation == "average"
        result: Array = reduce(MERGES["add" if average else self.operation], values)
        return result / result.dtype.type(len(values)) if average else result


@dataclass(frozen=True, eq=False)
class OverTime(Step):
    """The mean or the largest of each feature over the steps, batch-first; the mean of those where a second input is true."""

    largest: bool = False
    pointwise = False

    def run(self, *values: Array) -> Array:
        x, real = values[0], values[1][..., None] if len(values) > 1 else None
        if self.largest:
            if not x.shape[1]:
                raise ValueError(f"{self.name} takes the largest of the steps, and there are none")
            return np.asarray(x.max(axis=1))
        total, count = (x, x.shape[1]) if real is None else (np.where(real, x, 0), real.sum(axis=1))
        with np.errstate(invalid="ignore"):  # a row without a step: NaN, as in Keras
            return np.asarray(total.sum(axis=1, dtype=np.float64) / np.float64(count)).astype(x.dtype)


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
            last: Array = merged(self.weights.merge_mode, h_n[-2], h_n[-1]) if self.weights.bidirectional else h_n[-1]
            return last
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
