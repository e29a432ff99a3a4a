"""A Keras model in the making: its layers, what they take and give, and the steps that they become, with their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.loaders.keras.config import check_keys, config_of
from fastlstm.loaders.keras.layer import Tensor
from fastlstm.loaders.keras.tree import Entry, Place
from fastlstm.loaders.tensors import check_dtype, check_size, precision, to_floats
from fastlstm.weights import MAX_SIZE

if TYPE_CHECKING:
    from fastlstm.models.layers import Step

__all__ = ["MAX_AXES", "Draft", "Layer", "PlannedStep", "Shape", "Value", "is_size", "with_batch"]

Shape: TypeAlias = tuple[int | None, ...]  # of one row, without the batch

MAX_AXES = 8
# Of weights that are there already, these mean nothing
NEUTRAL = {
    *(f"{which}_{kind}" for which in ("embeddings", "gamma", "beta") for kind in ("initializer", "regularizer", "constraint")),
    *("moving_mean_initializer", "moving_variance_initializer"),
}


@dataclass(frozen=True)
class Value:
    """What a layer gives, as far as it is known before it runs.

    Attributes
    ----------
    step : str
        The name of the step whose result it is.
    shape : tuple of int or None
    mask : Value or None
        Which of its steps are real.
    problem : str
        Why it cannot be had; matters to who needs it.
    """

    step: str
    shape: Shape = ()
    mask: Value | None = None
    problem: str = ""


@dataclass(frozen=True)
class Layer:
    """A layer, its weights and what it takes."""

    name: str
    entry: Entry
    place: Place
    inputs: Sequence[Value]
    constants: tuple[float, ...] = ()
    mask: Value | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        return config_of(self.entry)

    def check_keys(self, *known: str) -> None:
        """Refuse any other entry of the configuration, unless it is null."""
        check_keys({key: value for key, value in self.config.items() if value is not None}, {*known} | NEUTRAL)

    def one_input(self, axes: int = 0) -> Value:
        """Its only input, which must have some axes, without the batch."""
        if len(self.inputs) != 1 or self.constants:
            raise FormatError(f"it is called with {len(self.inputs) + len(self.constants)} values, not one")
        if axes and len(self.inputs[0].shape) != axes:
            raise FormatError(f"its input has the shape {with_batch(self.inputs[0].shape)}, and {axes + 1} axes are expected")
        return self.inputs[0]

    def features(self) -> int:
        """How many its only input has."""
        shape = self.one_input().shape
        if not shape or shape[-1] is None:
            raise FormatError(f"its input has the shape {with_batch(shape)}, in which the number of features is missing")
        return shape[-1]


@dataclass(frozen=True)
class PlannedStep:
    """A step that is not made yet."""

    kind: type[Step]
    name: str
    inputs: tuple[str, ...]
    arguments: Mapping[str, Any]


@dataclass
class Draft:
    """The steps that are planned so far; ``used`` are bytes of weights, of at most ``limit``."""

    version: int | None
    limit: float
    used: int = 0
    dtype: np.dtype[Any] | None = None
    steps: dict[str, PlannedStep] = field(default_factory=dict)

    def needed(self, result: str) -> list[PlannedStep]:
        """The steps that one needs, and itself."""
        names, waiting = set[str](), [result]
        while waiting:
            name = waiting.pop()
            if name in self.steps and name not in names:
                names.add(name)
                waiting += self.steps[name].inputs
        return [step for name, step in self.steps.items() if name in names]

    def add(
        self, kind: type[Step], name: str, inputs: Sequence[Value], shape: Shape, mask: Value | None = None, /, **more: Any
    ) -> Value:
        """Plan a step."""
        from fastlstm.models.layers import INPUT

        name = f"{name}_" if name == INPUT else name
        if name in self.steps:
            raise FormatError("another layer has its name")
        self.steps[name] = PlannedStep(kind, name, tuple(value.step for value in inputs), more)
        return Value(name, shape, mask)

    def weights(self, layer: Layer, shapes: Mapping[str, Shape], turned: str = "") -> list[Array]:
        """The weights of a layer, which must have these shapes; one of them transposed."""
        tensors = layer.place.tensors(tuple(shapes))
        if tensors is None:
            raise FormatError(f"its weights {', '.join(shapes)} are not where Keras puts them, or there are others")
        for tensor, shape in zip(tensors, shapes.values(), strict=True):
            if tensor.shape != shape:
                raise FormatError(f"{quoted(tensor.name)} must have shape {shape}, got {tensor.shape!s:.100}")
            check_dtype(tensor.name, tensor)
        self.count(tensors)
        arrays = []
        for role, tensor in zip(shapes, tensors, strict=True):
            stored = tensor.read()
            arrays.append(to_floats(stored.T if role == turned else stored, tensor.dtype))
        return arrays

    def count(self, tensors: Sequence[Tensor]) -> None:
        """Weights that are to be read; together they must not take more than the file may, and be of one precision."""
        for tensor in tensors:
            dtype = precision(tensor.dtype)
            if self.dtype is not None and self.dtype != dtype:  # NumPy takes None for float64
                raise FormatError(f"{quoted(tensor.name)} is {tensor.dtype}, and those before are {self.dtype}")
            self.dtype = dtype
            self.used += math.prod(tensor.shape) * dtype.itemsize
        check_size("the weights up to here", self.used, self.limit)


def with_batch(shape: Shape) -> tuple[object, ...]:
    return "batch", *shape


def is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIZE
