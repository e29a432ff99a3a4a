"""From the names of TensorFlow 1's variables to LSTMs.

A cell has ``kernel`` (I + H, 4H), the rows of x before those of h and the gates in the order i, j, f, o with j for g; ``bias``
(4H,); with peepholes ``w_i_diag``, ``w_f_diag`` and ``w_o_diag`` (H,); with a projection ``projection/kernel`` (H, P), and then P
rows of h in place of H. ``BasicLSTMCell``, ``LSTMCell``, ``LSTMBlockCell``, ``LSTMBlockFusedCell`` and
``CudnnCompatibleLSTMCell`` all store this. What they add or clip when they run, ``forget_bias``, ``cell_clip`` and
``proj_clip``, is not among the variables.

Layers are the ``cell_0``, ``cell_1``, ... of a ``multi_rnn_cell``. Directions are ``fw`` and ``bw``: of one layer, or of each in
a ``stack_bidirectional_rnn``. Where a whole stack runs each way (``MultiRNNCell`` in ``bidirectional_dynamic_rnn``) these are two
networks, for no layer sees both directions of the one below; the second runs from the end.

References
----------
``tensorflow/python/ops/rnn_cell_impl.py``, ``tensorflow/contrib/rnn/python/ops/lstm_ops.py`` (whose documentation has the gates
in another order than its kernels).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastlstm.cell import PLAIN, Cell
from fastlstm.errors import FormatError
from fastlstm.loaders.assembly import MAX_TENSORS, Part, Sizes, network, split_name, uniquely_named
from fastlstm.loaders.found import Found, quoted, refused
from fastlstm.loaders.tensors import LazyTensor, NamedTensor, ReadStored

__all__ = ["TensorFlowOptions", "find"]

Path = tuple[str, ...]
GATES = "igfo"  # TensorFlow's i, j, f, o
OLD = {"weights": "kernel", "biases": "bias"}  # before TensorFlow 1.2
PEEPHOLES = {"i": "w_i_diag", "f": "w_f_diag", "o": "w_o_diag"}
LEAVES = {"kernel", "bias", "projection/kernel", *PEEPHOLES.values()}
OWN = {"kernel", "bias", "projection", *PEEPHOLES.values()}
CELL = re.compile(r"(?i).*lstm.*cell.*")  # the default names of scopes; another one can be asked for
STACK = re.compile(r"multi_rnn_cell(_[0-9]+)?")
LAYER = re.compile(r"cell_(0|[1-9][0-9]{0,2})")
STACKED_DIRECTIONS = re.compile(r"stack_bidirectional_rnn(_[0-9]+)?")
# Other cells of tf.contrib, whose variables may have the same names and compute something else, by their default scopes
FOREIGN = re.compile(
    r"(coupled_input_forget_gate_lstm|phased_lstm|g_lstm|grid_[0-9a-z_]*lstm|bidirectional_grid_lstm|time_freq_lstm|indy_lstm"
    r"|layer_norm_basic_lstm|layer_norm_lstm|(conv_|conv_[123]d_)lstm)_cell(_[0-9]+)?"
)
# CudnnLSTM's weights for other machines: the one cell that the code gives no forget bias
WITHOUT_FORGET_BIAS = re.compile(r"cudnn_compatible_lstm_cell(_[0-9]+)?")


@dataclass(frozen=True)
class TensorFlowOptions:
    """What a cell of TensorFlow 1 is given when it is made and does not store; None for what TensorFlow's code gives it."""

    forget_bias: float | None = None
    cell: Cell = PLAIN


@dataclass
class Scope:
    """The variables of one cell; ``foreign`` is one that no such cell has, ``twice`` says which are the same."""

    path: Path
    tensors: dict[str, NamedTensor] = field(default_factory=dict)
    foreign: str = ""
    twice: str = ""

    @property
    def peepholes(self) -> bool:
        return not self.tensors.keys().isdisjoint(PEEPHOLES.values())

    @property
    def shape(self) -> tuple[int, int, int]:
        """I, H and P (0 without a projection)."""
        name, kernel = self.get("kernel")
        if len(kernel.shape) != 2 or kernel.shape[1] % 4:
            raise FormatError(f"{quoted(name)} must have shape (I + H, 4 * H), got {kernel.shape!s:.100}")
        H, P = kernel.shape[1] // 4, 0
        if "projection/kernel" in self.tensors:
            projection = self.tensors["projection/kernel"]
            if len(projection[1].shape) != 2:
                raise FormatError(f"{quoted(projection[0])} must have shape ({H}, P), got {projection[1].shape!s:.100}")
            P = projection[1].shape[1]
        I = kernel.shape[0] - (P or H)
        if I < 1:
            raise FormatError(f"{quoted(name)} has {kernel.shape[0]} rows, none for inputs beside {P or H} for the state")
        return I, H, P

    def get(self, name: str) -> NamedTensor:
        if name not in self.tensors:
            raise FormatError(f"{quoted('/'.join((*self.path, name)))} is missing")
        return self.tensors[name]

    def parts(self, I: int, H: int, P: int) -> list[Part]:
        if self.twice:
            raise FormatError(self.twice)
        if self.foreign:
            raise FormatError(f"{quoted(self.foreign)} is not understood: BasicLSTMCell and LSTMCell have no such variable")
        rows, kernel = I + (P or H), self.get("kernel")
        parts = [
            Part("weight_ih", kernel, (rows, 4 * H), GATES, (0, I)),
            Part("weight_hh", kernel, (rows, 4 * H), GATES, (I, rows)),
            Part("bias_ih", self.get("bias"), (4 * H,), GATES),
        ]
        if self.peepholes:
            parts += [Part("weight_peephole", self.get(name), (H,), gate) for gate, name in PEEPHOLES.items()]
        if P:
            parts.append(Part("weight_hr", self.get("projection/kernel"), (H, P)))
        return parts


@dataclass
class Group:
    """Cells that make one network: by (layer, direction)."""

    path: Path
    scopes: dict[tuple[int, int], Scope] = field(default_factory=dict)
    reverse: bool = False


def find(
    tensors: Mapping[str, LazyTensor],
    read: ReadStored,
    limit: float = math.inf,
    batch_first: bool | None = True,
    options: TensorFlowOptions | None = None,
    asked: str | None = None,
) -> list[Found]:
    """Find the LSTMs among variables; slots of optimizers and moving averages are passed over.

    Parameters
    ----------
    options : TensorFlowOptions, optional
        By default TensorFlow's own; then a scope without a kernel is taken for something else of the same name.
    asked : str, optional
        A scope that is a cell whatever it is called.
    """
    scopes = [scope for scope in _scopes(tensors, asked) if options is not None or "kernel" in scope.tensors]
    groups = _grouped(scopes)
    found = [_examine(group, read, limit, batch_first, options or TensorFlowOptions()) for group in groups]
    return uniquely_named((group.path, group.path, item) for group, item in zip(groups, found, strict=True))


def _scopes(tensors: Mapping[str, LazyTensor], asked: str | None) -> list[Scope]:
    of_keras = {_path(name)[:-1] for name in tensors if name.removesuffix(":0").endswith("recurrent_kernel")}  # another loader's
    cells: dict[Path, Scope] = {}
    room = MAX_TENSORS
    for name, tensor in tensors.items():
        *before, leaf = _path(name)
        leaf, scope = OLD.get(leaf, leaf), tuple(before)
        if leaf == "kernel" and scope[-1:] == ("projection",):
            scope, leaf = scope[:-1], "projection/kernel"
        if leaf in LEAVES and scope not in of_keras and (_is_cell(scope, leaf) or "/".join(scope) == asked):
            cell = cells.setdefault(scope, Scope(scope))
            if leaf in cell.tensors:
                cell.twice = f"{quoted(name)} and {quoted(cell.tensors[leaf][0])} are the same variable"
            cell.tensors[leaf] = name, tensor
            room -= 1
            if room < 0:
                raise FormatError(f"more than {MAX_TENSORS} parameters of recurrent layers")
    # A cell whose scope has another name shows by its peepholes; its kernel may have come before them
    for name, tensor in tensors.items() if any(scope.peepholes for scope in cells.values()) else ():
        *before, leaf = _path(name)
        own = cells.get(tuple(before))
        if own is not None and OLD.get(leaf, leaf) in LEAVES:
            own.tensors.setdefault(OLD.get(leaf, leaf), (name, tensor))
    for name in tensors if cells else ():
        path = _path(name)
        for depth in range(len(path)):  # kernel/Adam is a slot of the optimizer, input/gamma a layer normalisation
            above, rest = cells.get(path[:depth]), [OLD.get(part, part) for part in path[depth : depth + 2]]
            unknown = rest[0] not in OWN or (rest[0] == "projection" and rest[1:] != ["kernel"])
            if above is not None and unknown:
                above.foreign = above.foreign or name
    return list(cells.values())


def _path(name: str) -> Path:
    return split_name(name.removesuffix(":0"))


def _is_cell(scope: Path, leaf: str) -> bool:
    return leaf in PEEPHOLES.values() or bool(scope and CELL.fullmatch(scope[-1]))


def _grouped(scopes: Sequence[Scope]) -> list[Group]:
    """Put layers and directions together."""
    groups: dict[tuple[Path, str], Group] = {}
    inner: dict[Path, set[int]] = {}
    placed = []
    for scope in scopes:
        path, layer, direction, stacked = scope.path[:-1], 0, None, False
        if len(path) >= 2 and LAYER.fullmatch(path[-1]) and STACK.fullmatch(path[-2]):
            path, layer, stacked = path[:-1], int(path[-1][5:]), True
            inner.setdefault(path, set()).add(layer)
        before = path[:-1] if stacked else path
        if before[-1:] in (("fw",), ("bw",)):
            direction = int(before[-1] == "bw")
        placed.append((scope, path, before, layer, direction, stacked))
    for scope, path, before, layer, direction, stacked in placed:
        if direction is None:
            group = groups.setdefault((path if stacked else scope.path, ""), Group(path if stacked else scope.path))
            group.scopes[layer, 0] = scope
        elif stacked and len(inner[path]) > 1:
            group = groups.setdefault((path, ""), Group(path, reverse=direction == 1))
            group.scopes[layer, 0] = scope
        else:
            outer, layer = before[:-1], 0
            if len(outer) >= 3 and LAYER.fullmatch(outer[-2]) and STACKED_DIRECTIONS.fullmatch(outer[-3]):
                outer, layer = outer[:-2], int(outer[-2][5:])
            group = groups.setdefault((outer, "both"), Group(outer))
            if (layer, direction) in group.scopes:
                group = groups.setdefault((scope.path, ""), Group(scope.path))
            group.scopes[layer, direction] = scope
    return [part for group in groups.values() for part in _of_one_size(group)]


def _of_one_size(group: Group) -> list[Group]:
    """The group, or each of its layers if they have different sizes or only one direction is there."""
    try:
        sizes = {scope.shape[1:] for scope in group.scopes.values()}
    except FormatError:
        return [group]  # which says so when it is examined
    directions = {direction for _, direction in group.scopes}
    if len(sizes) > 1:
        layers: dict[int, Group] = {}
        for (layer, direction), scope in group.scopes.items():
            one = layers.setdefault(layer, Group((*group.path, f"cell_{layer}"), reverse=group.reverse))
            one.scopes[0, direction] = scope
        return list(layers.values())
    if directions == {1}:
        group.reverse = True
        group.scopes = {(layer, 0): scope for (layer, _), scope in group.scopes.items()}
    return [group]


def _examine(group: Group, read: ReadStored, limit: float, batch_first: bool | None, options: TensorFlowOptions) -> Found:
    directions = 1 + any(direction for _, direction in group.scopes)
    scopes = [scope.path[-1:] for scope in group.scopes.values()]
    foreign = next((name for names in scopes for name in names if FOREIGN.fullmatch(name)), None)
    if foreign is not None:
        return Found("", problem=f"{quoted('/'.join(group.path))}: its cell is {quoted(foreign)}, which is no LSTM of this kind")
    forget_bias = options.forget_bias
    if forget_bias is None:
        forget_bias = 0.0 if all(names and WITHOUT_FORGET_BIAS.fullmatch(names[0]) for names in scopes) else 1.0
    try:
        layers = 1 + max(layer for layer, _ in group.scopes)
        for layer in range(layers):
            for direction in range(directions):
                if (layer, direction) not in group.scopes:
                    where = "/".join(group.path)
                    raise FormatError(f"{quoted(where)}: layer {layer} has no cell for direction {direction}")
        I, H, P = group.scopes[0, 0].shape
        sizes = Sizes(I, H, layers, directions == 2, P)
        records = [
            group.scopes[divmod(index, directions)].parts(sizes.input_of(index), H, P) for index in range(layers * directions)
        ]
        _check_peepholes(records)
        return network(
            "",
            sizes,
            records,
            read,
            limit,
            batch_first=batch_first,
            cell=options.cell,
            forget_bias=forget_bias,
            reverse=group.reverse,
        )
    except ValueError as error:
        return refused("", quoted("/".join(group.path)), error)


def _check_peepholes(records: Sequence[Sequence[Part]]) -> None:
    with_peepholes = [any(part.kind == "weight_peephole" for part in record) for record in records]
    if any(with_peepholes) and not all(with_peepholes):
        name = records[with_peepholes.index(False)][0].source[0]
        raise FormatError(f"the cell of {quoted(name)} has no peepholes (w_i_diag, w_f_diag, w_o_diag), others of its network do")
