"""Whole ONNX graphs of LSTMs and what stands around them: LSTMs run in the engine, other operators in NumPy.

A graph is no :class:`fastlstm.models.model.Model`: its steps may have several results, and it is called with its own inputs in
its own layout. Shapes are computed at run time, as exporters of dynamic axes have it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from fastlstm.arrays import Array, as_array, shape_error
from fastlstm.lstm import LSTM
from fastlstm.models.layers import Step
from fastlstm.operators.table import OPERATORS

__all__ = ["Constant", "Graph", "GraphInput", "LSTMNode", "Node"]

# Elements that a call may have in memory whatever its inputs are; more only with larger inputs, see Graph
FLOOR = 1 << 24


@dataclass(frozen=True)
class GraphInput:
    """What a graph takes.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
        Of floats exactly this; of integers any that fit.
    shape : tuple of int, str or None, or None
        Sizes, the file's names of those that are free, or None for free ones without a name; None if the file does not say.
    stored : str
        What the file says instead of ``dtype``, if that is float16 or bfloat16.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None
    stored: str = ""

    def checked(self, value: Any) -> Array:
        """A read-only array of that dtype and shape.

        Raises
        ------
        ValueError, TypeError
            If it does not fit; the message names the input.
        """
        name = f"input {self.name!r:.100}"
        array = as_array(name, value, self.dtype)
        if self.dtype.kind != "f":
            array = self._integers(name, array)
        elif array.dtype != self.dtype:
            why = f", as which its {self.stored} runs here" if self.stored else ""
            raise TypeError(f"{name} must be {self.dtype}{why}, got {array.dtype}; convert it to {self.dtype.name} first")
        wanted = array.shape if self.shape is None else self.shape
        if len(wanted) != array.ndim or any(
            isinstance(size, int) and size != given for size, given in zip(wanted, array.shape, strict=True)
        ):
            raise shape_error(name, tuple("?" if size is None else size for size in wanted), array.shape)
        view: Array = array.view()
        view.flags.writeable = False  # so that no result shares memory with it, see Graph
        return view

    def _integers(self, name: str, array: Array) -> Array:
        if array.dtype == self.dtype:
            return array
        if self.dtype.kind not in "iu" or array.dtype.kind not in "iu":
            raise TypeError(f"{name} must be {self.dtype}, got {array.dtype}")
        bounds = np.iinfo(self.dtype)
        if array.size and not bounds.min <= int(array.min()) <= int(array.max()) <= bounds.max:
            raise ValueError(f"{name} has numbers outside of {self.dtype}")
        return array.astype(self.dtype)


@dataclass(frozen=True, eq=False)
class Constant(Step):
    """A tensor of the file.

    Attributes
    ----------
    value : array
    is_mask : bool
        Whether infinity in it is meant: no weight.
    """

    value: Array
    is_mask: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.name,)

    def run(self, *values: Array) -> Array:
        return self.value

    def arrays(self) -> Iterator[tuple[str, Array]]:
        return iter(()) if self.is_mask else super().arrays()


@dataclass(frozen=True, eq=False)
class Node(Step):
    """A node with an operator of :data:`fastlstm.operators.table.OPERATORS`.

    Attributes
    ----------
    kind : str
        The operator.
    attributes : dict
    outputs : tuple of str
        Names of the results; empty for those nobody wants.
    """

    kind: str
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]

    def elements(self, *values: Array | None) -> int:
        return int(OPERATORS[self.kind].elements(*values, **self.attributes))

    def run(self, *values: Array) -> Any:
        operator, first = OPERATORS[self.kind], values[0]
        dtypes = {value.dtype for value in values if value is not None}
        if operator.alike and len(dtypes) > 1:
            raise ValueError(f"inputs of one dtype expected, got {' and '.join(sorted(map(str, dtypes)))}")
        if operator.floats and first.dtype.kind != "f":
            raise ValueError(f"floats expected, got {first.dtype}")
        result = operator.run(*values, **self.attributes)
        return np.asarray(result, first.dtype) if operator.floats and not isinstance(result, tuple) else result


@dataclass(frozen=True, eq=False)
class LSTMNode(Step):
    """An LSTM with ONNX's inputs X, sequence_lens, initial_h, initial_c and outputs Y, Y_h, Y_c.

    ONNX leaves open what Y_h and Y_c of a row of length 0 are: here they are its initial state, as of every call of an LSTM; ONNX
    Runtime gives 0.

    Attributes
    ----------
    lstm : LSTM
        One layer; batch first if the node's layout is 1.
    outputs : tuple of str
    """

    lstm: LSTM
    outputs: tuple[str, ...]
    kind: str = field(default="LSTM", init=False)

    def elements(self, *values: Array | None) -> int:
        x = values[0]
        assert x is not None
        if x.ndim != 3:
            raise ValueError(f"X must have 3 dimensions, got shape {x.shape}")
        return math.prod((*x.shape[:2], self.lstm.num_directions, self.lstm.hidden_size))

    def run(self, *values: Any) -> Any:
        x, lengths, h, c = values
        if x.dtype != self.lstm.dtype:
            raise ValueError(f"X must be {self.lstm.dtype}, got {x.dtype}")
        D, H = self.lstm.num_directions, self.lstm.hidden_size
        first = self.lstm.batch_first  # then Y is (B, T, D, H), a state (B, D, H)
        B = x.shape[0 if first else 1]
        state = None
        if h is not None or c is not None:
            zero = np.zeros((D, B, H), x.dtype)
            h, c = (zero if part is None else part.swapaxes(0, 1) if first and part.ndim == 3 else part for part in (h, c))
            state = h, c
        y, (h_n, c_n) = self.lstm(x, state, lengths=lengths)
        y = y.reshape(*y.shape[:2], D, H)
        return (y, h_n.swapaxes(0, 1), c_n.swapaxes(0, 1)) if first else (y.swapaxes(1, 2), h_n, c_n)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        for name, tensor in self.lstm.weights.named_tensors():
            yield f"{self.name}.{name}", tensor


GraphStep = Constant | Node | LSTMNode


class Graph:
    """A whole ONNX graph; made by :func:`fastlstm.load_model`.

    It is called with the graph's inputs, in the order of the file and in the shapes of the file. All tensors of a call together
    may have as many elements as its inputs have, times the bytes of the file, and 16 million in any case: what a feed-forward
    model makes of its inputs stays far below, a file that is made to fill the memory does not.

    Parameters
    ----------
    inputs : sequence of GraphInput
    outputs : sequence of str
        Names of tensors.
    steps : sequence of Constant, Node and LSTMNode
        Each after the steps it takes its inputs from; an empty name stands for an input that is left out.
    growth : int
        Elements that a call may have in memory for each element of its inputs.

    Attributes
    ----------
    inputs, outputs, steps
        As given.
    dtype : numpy.dtype
        Of its first input of floats; float32 without one.
    """

    def __init__(
        self, inputs: Sequence[GraphInput], outputs: Sequence[str], steps: Sequence[GraphStep], growth: int = 1 << 20
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.steps: tuple[GraphStep, ...] = tuple(steps)
        self.dtype = next((each.dtype for each in self.inputs if each.dtype.kind == "f"), np.dtype(np.float32))
        self._growth = growth
        self._spent: list[list[str]] = [[] for _ in self.steps]  # what nobody reads after that step
        last = {name: index for index, step in enumerate(self.steps) for name in step.inputs if name}
        for name, reader in last.items():
            if name not in self.outputs:
                self._spent[reader].append(name)
        self._read = {*last, *self.outputs}

    def __repr__(self) -> str:
        takes, gives = ", ".join(each.name for each in self.inputs), ", ".join(self.outputs)
        return f"Graph({takes} -> {gives}: {sum(not isinstance(step, Constant) for step in self.steps)} nodes)"

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph.

        Parameters
        ----------
        *inputs : arrays
            As ``inputs`` describes them, in that order.

        Returns
        -------
        array, or tuple of arrays
            One for each of ``outputs``; memory of its own.

        Raises
        ------
        ValueError, TypeError
            If an input does not fit, or the graph does not fit itself: the message names the input or the node.
        """
        if len(inputs) != len(self.inputs):
            names = ", ".join(f"{each.name!r:.100}" for each in self.inputs[:20])
            raise TypeError(f"the graph takes {len(self.inputs)} input(s) ({names}), got {len(inputs)}")
        results: dict[str, Any] = {"": None}
        for each, value in zip(self.inputs, inputs, strict=True):
            results[each.name] = each.checked(value)
        limit = max(FLOOR, self._growth * sum(array.size for array in results.values() if array is not None))
        sizes: dict[str, int] = {}  # elements in memory
        live = 0
        with np.errstate(all="ignore"):
            for step, spent in zip(self.steps, self._spent, strict=True):
                if isinstance(step, Constant):
                    results[step.name] = step.value
                    continue
                for name, array in zip(step.outputs, self._results(step, results, limit - live), strict=False):
                    if name in self._read:
                        results[name] = np.asarray(array)
                        sizes[name] = getattr(array.base, "size", array.size)  # a view keeps all that it is a view of
                        live += sizes[name]
                for name in spent:
                    del results[name]
                    live -= sizes.pop(name, 0)
        # What is read-only is a constant, or shares memory with one or with an input
        found = tuple(
            array if array.flags.writeable else np.array(array, order="C") for array in map(results.__getitem__, self.outputs)
        )
        return found if len(found) != 1 else found[0]

    def _results(self, step: Node | LSTMNode, results: Mapping[str, Any], room: int) -> tuple[Array, ...]:
        """What one step gives, if that is no more than so many elements."""
        values = [results[name] for name in step.inputs]
        try:
            size = step.elements(*values)
            if size > room:
                raise ValueError(f"would give {size} elements; the memory limit for inputs of this size leaves {room}")
            given = step.run(*values)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"node {step.name!r:.100} ({step.kind}): {str(error)[:500]}") from error
        return given if isinstance(given, tuple) else (given,)

    def stream(self, batch_size: int = 1) -> NoReturn:
        """Not supported: an ONNX file does not say which axis is time.

        Raises
        ------
        ValueError
            Always. A graph that takes and gives its state is called step by step.
        """
        raise ValueError("an ONNX graph does not say which axis is time: call it step by step, with its state if it takes one")
