"""A whole Keras model as steps: the walk over its graph, from its input to its output, and over those of models in it.

Masks go with the values, as in Keras: layers pass them on or lose them, into models and out of them, and an LSTM leaves out the
steps that its mask says are none. Keras 3 writes in the graph of a functional model where the masks come from that it knew when
the model was made; these come first, as in Keras. All others follow from the layers.

References
----------
``keras/src/layers/layer.py`` for masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.loaders.keras.config import class_of, is_operation, other_kind, shown
from fastlstm.loaders.keras.draft import MAX_AXES, Draft, Layer, PlannedStep, Shape, Value, is_size, with_batch
from fastlstm.loaders.keras.graph import MODELS, Call, Graph, graph
from fastlstm.loaders.keras.steps import LAYERS
from fastlstm.loaders.keras.tree import MAX_DEPTH, Entry, Names, Place, joined

if TYPE_CHECKING:
    from fastlstm.models.model import Model

__all__ = ["Pending", "read"]


@dataclass(frozen=True)
class Pending:
    """All that a model is made of, read from the file."""

    steps: list[PlannedStep]
    shape: Shape
    indices: bool
    dtype: np.dtype[Any]

    def model(self) -> Model:
        """Make the steps; those with LSTMs pack the weights."""
        from fastlstm.models.model import Model

        steps = [step.kind(step.name, step.inputs, **step.arguments) for step in self.steps]
        size = None if self.indices else self.shape[-1]
        return Model(steps, size, self.dtype, batch_first=True, input_shape=self.shape)


def read(entry: Entry, version: int | None, place: Place, limit: float) -> Pending:
    """Read a model and all its weights.

    Parameters
    ----------
    entry : mapping
        The serialized model.
    version : int or None
        Of Keras, 2 or 3.
    place : Place
        Where its weights are.
    limit : number
        Most bytes that they may take together.

    Raises
    ------
    FormatError
        At the first layer that is not supported; the message names it.
    """
    from fastlstm.models.layers import INPUT, Embedding, NotEqual, Reshape

    every = graph(entry)
    shape = _shape(every.shape, "the model's input")
    draft = Draft(version, limit)
    result = _Walk(draft).run(every, (), place, Value(INPUT, shape))
    if result.problem:
        raise FormatError(result.problem)
    steps = draft.needed(result.step)
    if not steps:
        raise FormatError("it has no layer that computes anything")
    takers = {step.kind: step.name for step in steps if INPUT in step.inputs}
    indices = Embedding in takers
    for kind, name in takers.items():
        if indices and kind not in (Embedding, NotEqual):
            raise FormatError(f"layer {quoted(name)} takes as numbers what an Embedding takes as indices")
    if not indices and (not shape or shape[-1] is None):
        raise FormatError(f"its input has the shape {with_batch(shape)}, in which the number of features is missing")
    if all(step.kind is not Reshape for step in steps) and len(shape) > (0 if indices else 1):
        shape = None, *shape[1:]  # then no layer minds how many time steps there are
    return Pending(steps, shape, indices, draft.dtype or np.dtype(np.float32))


@dataclass(frozen=True)
class _Walk:
    """Asks the layers, each after those whose results it takes, for the steps that they become."""

    draft: Draft

    def run(self, every: Graph, names: Names, place: Place, given: Value) -> Value:
        """The result of a model."""
        if len(names) > MAX_DEPTH:
            raise FormatError(f"the configuration nests layers more than {MAX_DEPTH} deep")
        places = place.inner(every.layers)
        values = {every.input: given}
        for call in every.calls:
            values[call.name] = self._call(call, (*names, call.name), places[call.index], values)
        return values[every.output]

    def _call(self, call: Call, names: Names, place: Place, values: Mapping[str, Value]) -> Value:
        """What a layer gives. A problem is kept for those who need the result: that of a mask may be needed by nobody."""
        inputs = [values[name] for name in call.inputs]
        problems = [value.problem for value in inputs if value.problem]
        if problems:
            return Value("", problem=problems[0])
        name = joined(names)
        operation = is_operation(call.entry)  # a function of Keras, such as a + b: it knows no masks
        mask = values[call.mask] if call.mask else inputs[0].mask if inputs and not operation else None
        layer = Layer(name, call.entry, place, inputs, call.constants, mask)
        try:
            if call.problem:
                raise FormatError(call.problem)
            kind = class_of(call.entry)
            if kind in MODELS:
                return self._nested(layer, names)
            result = self._layer(layer, kind)
            return replace(result, mask=None) if operation else result
        except FormatError as error:
            return Value("", problem=f"layer {quoted(name)}: {error}")

    def _nested(self, layer: Layer, names: Names) -> Value:
        return self.run(graph(layer.entry), names, layer.place, replace(layer.one_input(), mask=layer.mask))

    def _layer(self, layer: Layer, kind: str) -> Value:
        other = other_kind(layer.entry)
        if other:
            raise FormatError(f"this is {other}, which is not supported")
        if kind not in LAYERS:
            own = "" if kind else " (nor is it Keras' own: what an LSTM inside it is told to do, the caller has to say)"
            raise FormatError(f"its class {shown(layer.entry.get('class_name'))} is not supported{own}")
        return LAYERS[kind](self.draft, layer)


def _shape(value: Any, what: str) -> Shape:
    """The axes after the first, which is the batch."""
    if value is None:
        raise FormatError(f"the shape of {what} is not in the configuration")
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_AXES or not all(n is None or is_size(n) for n in value[1:]):
        raise FormatError(f"the shape of {what} must be a list of null and positive numbers, got {shown(value)}")
    return tuple(value[1:])
