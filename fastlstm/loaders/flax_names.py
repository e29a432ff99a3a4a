"""From the names of Flax's parameters to LSTMs.

==========================  ==================================================================================
``linen.LSTMCell``          ``ii, if, ig, io``: kernel (I, H) each; ``hi, hf, hg, ho``: kernel (H, H) and bias (H,) each
``linen.OptimizedLSTMCell`` the same
``nnx.LSTMCell``            the same, with ``if_`` for ``if``
``nnx.OptimizedLSTMCell``   ``dense_i``: kernel (I, 4H); ``dense_h``: kernel (H, 4H) and bias (4H,); gates i, f, g, o
==========================  ==================================================================================

``RNN`` holds its cell as ``cell``, ``Bidirectional`` holds two of them as ``forward_rnn`` and ``backward_rnn``. Activations are
no parameters: they are taken to be the defaults, if no live module says more (``flax_live.py``).

References
----------
``flax/linen/recurrent.py``, ``flax/nnx/nn/recurrent.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fastlstm.cell import PLAIN, Cell
from fastlstm.errors import FormatError
from fastlstm.loaders.assembly import MAX_TENSORS, Part, Sizes, network, split_name, uniquely_named
from fastlstm.loaders.found import Found, other_layer, quoted, refused
from fastlstm.loaders.tensors import LazyTensor, NamedTensor, ReadStored

__all__ = ["FlaxOptions", "Path", "find"]

Path = tuple[str, ...]
GATES = "ifgo"
DENSE = ("dense_i", "dense_h")
SEPARATE = (*(f"{side}{gate}" for side in "ih" for gate in GATES), "if_")
GRU = {"ir", "iz", "in", "hr", "hz", "hn"}
VALUE = ("value", "raw_value")  # of a Param, where a tree was flattened through it


@dataclass(frozen=True)
class FlaxOptions:
    """Of one cell, or of both of a ``Bidirectional``, by default what Flax's are; ``problem``: why it cannot be run as there."""

    cell: Cell = PLAIN
    reverse: bool = False
    flipped: bool = False
    batch_first: bool | None = True
    problem: str = ""


@dataclass
class CellTensors:
    """What one path holds: tensors by (linear layer, kernel or bias)."""

    path: Path
    tensors: dict[tuple[str, str], NamedTensor] = field(default_factory=dict)
    foreign: str = ""
    twice: str = ""

    @property
    def linears(self) -> set[str]:
        return {linear for linear, _ in self.tensors}

    @property
    def is_dense(self) -> bool:
        return not self.linears.isdisjoint(DENSE)

    def add(self, linear: str, leaf: str, name: str, tensor: LazyTensor) -> None:
        key = linear.rstrip("_"), leaf
        if key in self.tensors:
            self.twice = f"{quoted(name)} and {quoted(self.tensors[key][0])} are the same parameter"
        self.tensors[key] = name, tensor

    def get(self, linear: str, leaf: str) -> NamedTensor:
        if (linear, leaf) not in self.tensors:
            raise FormatError(f"{quoted('/'.join((*self.path, linear, leaf)))} is missing")
        return self.tensors[linear, leaf]

    def other_kind(self) -> str:
        """What it is if it is no LSTM; empty if it is one, or one in part."""
        linears = self.linears
        if linears & GRU:
            return "a GRU"
        kernel = self.tensors.get(("dense_h", "kernel"))
        if kernel is not None and len(kernel[1].shape) == 2:
            rows, columns = kernel[1].shape
            return {3 * rows: "a GRU", rows: "a plain RNN"}.get(columns, "")
        return ""

    def sizes(self) -> tuple[int, int]:
        """I and H."""
        rows = []
        for linear in DENSE if self.is_dense else ("ii", "hi"):
            name, tensor = self.get(linear, "kernel")
            if len(tensor.shape) != 2:
                raise FormatError(f"{quoted(name)} must have 2 dimensions, got shape {tensor.shape!s:.100}")
            rows.append(tensor.shape[0])
        return rows[0], rows[1]

    def parts(self, I: int, H: int) -> list[Part]:
        if self.twice:
            raise FormatError(self.twice)
        expected = {}
        if self.is_dense:
            expected["dense_i", "kernel"] = Part("weight_ih", self.get("dense_i", "kernel"), (I, 4 * H), GATES)
            expected["dense_h", "kernel"] = Part("weight_hh", self.get("dense_h", "kernel"), (H, 4 * H), GATES)
            expected["dense_h", "bias"] = Part("bias_hh", self.get("dense_h", "bias"), (4 * H,), GATES)
        else:
            for gate in GATES:
                expected[f"i{gate}", "kernel"] = Part("weight_ih", self.get(f"i{gate}", "kernel"), (I, H), gate)
                expected[f"h{gate}", "kernel"] = Part("weight_hh", self.get(f"h{gate}", "kernel"), (H, H), gate)
                expected[f"h{gate}", "bias"] = Part("bias_hh", self.get(f"h{gate}", "bias"), (H,), gate)
        for key, (name, _) in self.tensors.items():
            if key not in expected:
                raise FormatError(f"{quoted(name)} is not understood: no parameter of an LSTMCell")
        if self.foreign:
            raise FormatError(f"{quoted(self.foreign)} is not understood: no parameter of an LSTMCell")
        return list(expected.values())


def find(
    tensors: Mapping[str, LazyTensor],
    read: ReadStored,
    limit: float = math.inf,
    batch_first: bool | None = True,
    options_of: Callable[[list[Path]], FlaxOptions] | None = None,
) -> list[Found]:
    """Find the LSTMs among tensors named by their paths, with slashes or dots; moments of an optimizer are passed over.

    ``options_of`` tells what else is known of a cell, or of two side by side.
    """
    cells = _cells(tensors)
    result = []
    for path, cell in cells.items():
        pair = _pair(path, cells)
        if pair is not None and path != pair[0]:
            continue  # the backward one came with the forward one
        both = [cells[one] for one in pair] if pair else [cell]
        at = _without_cell(path)[:-1] if pair else _without_cell(path)
        other = next(filter(None, (one.other_kind() for one in both)), "")
        if other:
            found = other_layer("", quoted("/".join(at)), other)
        else:
            options = options_of([one.path for one in both]) if options_of else FlaxOptions(batch_first=batch_first)
            found = _examine(both, read, limit, options)
        if not pair:
            whole = (separator.join(each) for each in (path, _without_params(path)) for separator in "/.")
            found = replace(found, aliases=tuple(whole))
        result.append((at, _without_params(at), found))
    return uniquely_named(result)


def _cells(tensors: Mapping[str, LazyTensor]) -> dict[Path, CellTensors]:
    cells: dict[Path, CellTensors] = {}
    for name, tensor in tensors.items():
        path = split_name(name)
        path = path[:-1] if path[-1] in VALUE and len(path) > 1 else path
        if len(path) < 2 or "opt_state" in path:
            continue
        *before, linear, leaf = path
        if linear in SEPARATE or linear in DENSE or linear in GRU:
            cell = cells.setdefault(tuple(before), CellTensors(tuple(before)))
            if leaf in ("kernel", "bias"):
                cell.add(linear, leaf, name, tensor)
            else:
                cell.foreign = cell.foreign or name
    if sum(len(cell.tensors) for cell in cells.values()) > MAX_TENSORS:
        raise FormatError(f"more than {MAX_TENSORS} parameters of recurrent layers")
    # One layer that happens to have such a name is no cell
    return {path: cell for path, cell in cells.items() if len(cell.linears) >= (2 if cell.is_dense else 3)}


def _pair(path: Path, cells: Mapping[Path, CellTensors]) -> tuple[Path, Path] | None:
    """The two paths of a ``Bidirectional``, if this is one of them."""
    end = path[-1:] if path[-1:] == ("cell",) else ()
    before = path[: len(path) - len(end)]
    if before[-1:] not in (("forward_rnn",), ("backward_rnn",)):
        return None
    forward, backward = ((*before[:-1], name, *end) for name in ("forward_rnn", "backward_rnn"))
    return (forward, backward) if forward in cells and backward in cells else None


def _examine(cells: Sequence[CellTensors], read: ReadStored, limit: float, options: FlaxOptions) -> Found:
    if options.problem:
        return Found("", problem=options.problem)
    try:
        I, H = cells[0].sizes()
        sizes = Sizes(I, H, bidirectional=len(cells) == 2)
        return network(
            "",
            sizes,
            [cell.parts(I, H) for cell in cells],
            read,
            limit,
            batch_first=options.batch_first,
            cell=options.cell,
            reverse=options.reverse,
            flipped=options.flipped,
        )
    except ValueError as error:
        return refused("", quoted("/".join(cells[0].path)), error)


def _without_cell(path: Path) -> Path:
    return path[:-1] if path[-1:] == ("cell",) else path


def _without_params(path: Path) -> Path:
    while path[:1] == ("params",):
        path = path[1:]
    return path
