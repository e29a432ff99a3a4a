"""Networks put together from matrices of other shapes than PyTorch's: x W in place of W x, a tensor for each gate, other orders.

A format says which tensors it has, which shapes they must have and where each belongs (:class:`Part`); here they are checked, and
read one after the other when the network is asked for.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.cell import PLAIN, Cell
from fastlstm.errors import FormatError
from fastlstm.loaders.found import Found, LSTMInfo, distinct, quoted
from fastlstm.loaders.tensors import NamedTensor, ReadStored, check_size, dtypes, fill, handed_over, one_precision
from fastlstm.weights import LayerWeights, Weights, check_sizes, parameter_shapes, suffix

__all__ = ["MAX_TENSORS", "Part", "Sizes", "network", "split_name", "uniquely_named"]

MAX_TENSORS = 20_000  # of the recurrent layers of a file together
MAX_NAME = 500
MAX_DEPTH = 50


@dataclass(frozen=True)
class Part:
    """A tensor of the source and its place in a record.

    Attributes
    ----------
    kind : str
        Of the record's tensor, such as ``weight_ih``. What no part covers is zero.
    source : (name, tensor)
    shape : tuple of int
        What the tensor must have. It is transposed, a vector stays as it is.
    gates : str
        The order in which it holds gates, letters of ``ifgo``; empty for a tensor without gates.
    rows : (int, int), optional
        Which rows of the tensor belong here.
    """

    kind: str
    source: NamedTensor
    shape: tuple[int, ...]
    gates: str = ""
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network, as in ``nn.LSTM``."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    bias: bool = True

    @property
    def recurrent(self) -> int:
        return self.proj_size or self.hidden_size

    def input_of(self, index: int) -> int:
        """Inputs of record ``index``."""
        directions = 1 + self.bidirectional
        return self.input_size if index < directions else directions * self.recurrent


def network(
    name: str,
    sizes: Sizes,
    records: Sequence[Sequence[Part]],
    read: ReadStored,
    limit: float = math.inf,
    *,
    batch_first: bool | None = None,
    cell: Cell = PLAIN,
    forget_bias: float = 0.0,
    reverse: bool = False,
    flipped: bool = False,
) -> Found:
    """Describe one network; its tensors are read when it is asked for.

    Parameters
    ----------
    name : str
    sizes : Sizes
    records : sequence of sequences of Part
        One for each layer and direction, in PyTorch's order.
    read : function (tensor) -> array
    limit : number
        Most bytes the weights may take.
    batch_first, cell, reverse, flipped
        Of the network.
    forget_bias : float
        Added to the forget gate's pre-activation, beside the bias that is stored.

    Raises
    ------
    ValueError
        If a tensor has another shape or dtype than it must have; the message names it.
    """
    check_sizes(sizes.input_size, sizes.hidden_size, sizes.num_layers, sizes.proj_size)
    parts = [part for record in records for part in record]
    dtype = _check(parts, limit)
    peephole = any(part.kind == "weight_peephole" for part in parts)
    shapes = parameter_shapes(
        sizes.input_size,
        sizes.hidden_size,
        sizes.num_layers,
        bias=sizes.bias,
        bidirectional=sizes.bidirectional,
        proj_size=sizes.proj_size,
        peephole=peephole,
    )
    kinds = defaultdict[str, dict[str, tuple[int, ...]]](dict)  # of each record, by the end of its names
    for key, shape in shapes.items():
        kind, mark, end = key.rpartition("_l")
        kinds[mark + end][kind] = shape

    def load() -> Weights:
        layers = []
        for index, record in enumerate(records):
            end = suffix(index, 1 + sizes.bidirectional)
            tensors = {kind: np.zeros(shape, dtype) for kind, shape in kinds[end].items()}
            _read_into(tensors, record, sizes.hidden_size, read)
            if forget_bias:
                tensors["bias_hh"][sizes.hidden_size : 2 * sizes.hidden_size] += forget_bias
            tensors = {kind: handed_over(tensor) for kind, tensor in tensors.items()}
            layers.append(LayerWeights(**tensors, cell=cell))  # type: ignore[arg-type]  # the names of TENSORS
        return Weights(tuple(layers), sizes.bidirectional, reverse, flipped)

    info = LSTMInfo(
        name=name,
        input_size=sizes.input_size,
        hidden_size=sizes.hidden_size,
        num_layers=sizes.num_layers,
        bidirectional=sizes.bidirectional,
        proj_size=sizes.proj_size,
        bias=sizes.bias,
        dtype=dtypes(part.source[1] for part in parts),
        batch_first=batch_first,
    )
    return Found(name, info, load)


def _check(parts: Sequence[Part], limit: float) -> np.dtype[Any]:
    count = 0
    for part in parts:
        name, tensor = part.source
        if tensor.shape != part.shape:
            raise FormatError(f"{quoted(name)} must have shape {part.shape}, got {tensor.shape!s:.100}")
        rows = part.rows[1] - part.rows[0] if part.rows else part.shape[0]
        count += rows * math.prod(part.shape[1:])
    dtype = one_precision([part.source for part in parts])
    check_size(f"{quoted(parts[0].source[0])} and the rest of its LSTM", count * dtype.itemsize, limit)
    return dtype


def _read_into(tensors: dict[str, Array], record: Sequence[Part], H: int, read: ReadStored) -> None:
    """Read one tensor after the other, so that no two are held as they are stored; one with several places only once."""
    by_source: dict[str, list[Part]] = {}
    for part in record:
        by_source.setdefault(part.source[0], []).append(part)
    for parts in by_source.values():
        stored = read(parts[0].source[1])
        for part in parts:
            values, target = (stored[slice(*part.rows)] if part.rows else stored).T, tensors[part.kind]
            order = "ifo" if part.kind == "weight_peephole" else "ifgo"
            for k, gate in enumerate(part.gates):
                at = order.index(gate) * H
                fill(target[at : at + H], values[k * H : (k + 1) * H])
            if not part.gates:
                fill(target, values)


# ---- Names ---------------------------------------------------------------------------------------------------------------------


def split_name(name: str) -> tuple[str, ...]:
    """The parts of a path written with slashes, or with dots."""
    if len(name) > MAX_NAME:
        raise FormatError(f"the name {quoted(name)} is {len(name)} characters long")
    parts = tuple(name.split("/" if "/" in name else "."))
    if len(parts) > MAX_DEPTH:
        raise FormatError(f"the name {quoted(name)} has {len(parts)} parts")
    return parts


def uniquely_named(found: Iterable[tuple[tuple[str, ...], tuple[str, ...], Found]]) -> list[Found]:
    """Name each by its short path, or by the long one where several share the short one; the others and its aliases mean it, too.

    Parameters
    ----------
    found : iterable of (long path, short path, Found)
    """
    every = list(found)
    shorts = Counter(short for _, short, _ in every)
    result = []
    for long, short, item in every:
        name = "/".join(short if shorts[short] == 1 else long)
        spellings = {*item.aliases, *(separator.join(path) for path in (long, short) for separator in "/.")}
        info = replace(item.info, name=name) if item.info else None
        result.append(replace(item, name=name, info=info, aliases=tuple(sorted(spellings - {name}))))
    return distinct(result)
