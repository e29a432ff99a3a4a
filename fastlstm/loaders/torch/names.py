"""From the names of PyTorch's tensors to LSTMs: prefixes, layers, cells, weight norm, pruning.

Shapes are checked before anything is read.

References
----------
.. [1] ``torch.nn.LSTM`` and ``torch.nn.LSTMCell``: names and shapes of the parameters.
.. [2] T. Salimans, D. Kingma, "Weight Normalization", 2016: ``w = g * v / ||v||``, by row, by column (``dim=1``) or of all
   (``dim=None``). ``torch.nn.utils.weight_norm`` stores ``_g`` and ``_v``, ``torch.nn.utils.parametrizations.weight_norm`` stores
   ``original0`` and ``original1``. ``torch.nn.utils.prune`` stores ``_orig`` and ``_mask``, of zeros and ones: their product.
.. [3] icefall, ``ScaledLSTM`` in ``scaling.py``: each parameter times ``exp`` of a number named ``_scale``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders.found import Found, LSTMInfo, distinct, listing, other_layer, quoted, refused
from fastlstm.loaders.tensors import (
    LazyTensor,
    NamedTensor,
    ReadFloats,
    check_dtype,
    check_size,
    dtypes,
    handed_over,
    one_precision,
)
from fastlstm.weights import Weights, check_sizes, parameter_shapes

__all__ = ["Group", "find", "looks_like_parameter"]


# Module paths have 30 to 100 characters; longer ones would make the look-up of every prefix slow.
MAX_NAME = 500
MAX_DEPTH = 50
MAX_PARAMETERS = 20_000  # of all LSTMs of a file together: each takes more than a kilobyte while it is looked at

PARAMETER = r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)((?:_l(?:0|[1-9][0-9]{0,2})(?:_reverse)?)?)"
DIRECT = re.compile(PARAMETER + r"(|_g|_v|_scale|_orig|_mask|_raw)")
PARAMETRIZED = re.compile(PARAMETER + r"\.(.+)", re.DOTALL)
# A name inside an LSTM's own prefix that changes what it computes: numbered by layer, a peephole, a normalisation
FOREIGN = re.compile(r"(weight|bias)_c[a-z]?(_.*)?|.*_l[0-9]+(_.*)?", re.DOTALL)
FOREIGN_IN_CELL = re.compile(r"(weight|bias)_.*", re.DOTALL)
FOREIGN_WORD = re.compile(r"(^|_)(peephole|layer_?norm|batch_?norm|norm|ln|bn|gamma|beta)s?(_|[0-9]|$)")
# An initial state that was learned: h0, c_0, h_init, init_hidden, learned_cell_state, hx
STATE, START = r"([hc]x?|hidden|cell|state|hidden_state|cell_state)s?", r"(0|init|initial|learned|start)"
INITIAL = re.compile(rf"{STATE}_?{START}|{START}_?{STATE}(_?0)?|[hc]x")
HINTS = {
    "original": "a parametrization: torch.nn.utils.parametrize.remove_parametrizations makes a plain tensor of it",
    "scale": "a scale for some parameters and none for others",
}


@dataclass(frozen=True)
class Group:
    """One state dict: its place in a nested file, its tensors by name, and names of other values that an LSTM may depend on."""

    outer: tuple[str, ...]
    tensors: Mapping[str, LazyTensor]
    others: tuple[str, ...] = ()


@dataclass(slots=True)
class Parameter:
    """One parameter as it is stored: by variant ("" is the plain one), the name and the tensor."""

    stored: dict[str, NamedTensor] = field(default_factory=dict)

    @property
    def main(self) -> NamedTensor:
        """What has the parameter's shape: the plain tensor, the direction ``v`` of a weight norm, or what is pruned."""
        return self.stored.get("") or self.stored.get("v") or self.stored.get("orig") or next(iter(self.stored.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.main[1].shape

    def check(self) -> None:
        """Refuse what is not exactly one known way to store a parameter."""
        for variant, (name, _) in self.stored.items():
            if variant not in ("", "g", "v", "orig", "mask", "raw", "scale"):
                raise FormatError(f"{quoted(name)} is not understood ({HINTS.get(variant, 'a parametrization')})")
        parts = self.stored.keys() - {"scale"}
        if parts not in ({""}, {"raw"}, {"g", "v"}, {"orig", "mask"}):
            names = listing(name for name, _ in self.stored.values())
            raise FormatError(
                "a parameter is one tensor (raw under weight drop), both parts (g and v) of a weight norm, or orig and mask of "
                f"a pruned one, found {names}"
            )
        if "g" in parts:
            by_column = [(1, *self.shape[1:])] if len(self.shape) == 2 else []
            self._check_shape("g", (self.shape[:1] + (1,) * (len(self.shape) - 1), (), *by_column))
        if "mask" in parts:
            self._check_shape("mask", (self.shape,))
        if "scale" in self.stored:
            self._check_shape("scale", ((), (1,)))

    def _check_shape(self, variant: str, expected: tuple[tuple[int, ...], ...]) -> None:
        name, tensor = self.stored[variant]
        if tensor.shape not in expected:
            raise FormatError(f"{quoted(name)} must have shape {expected[0]}, got {tensor.shape!s:.100}")

    def compute(self, arrays: Mapping[str, Array]) -> Array:
        """The effective parameter, made in place of the array with its shape."""
        if "v" in arrays:
            value = _weight_norm(arrays["g"], arrays["v"])
        elif "orig" in arrays:
            value, mask = arrays["orig"], arrays["mask"]
            if not ((mask == 0) | (mask == 1)).all():
                raise FormatError(
                    f"{quoted(self.stored['mask'][0])} must hold zeros and ones alone, as the mask of a pruned tensor"
                )
            with np.errstate(all="ignore"):
                value *= mask
        else:
            value = arrays["raw" if "raw" in arrays else ""]  # weight drop leaves nothing out at inference
        if "scale" in arrays:
            with np.errstate(all="ignore"):
                value *= np.exp(arrays["scale"].reshape(()).astype(np.float64)).astype(value.dtype)
        return value


@dataclass(slots=True)
class Candidate:
    """What one prefix holds: parameters by (layer, direction, kind), where the layer of a cell is None."""

    prefix: str
    parameters: dict[tuple[int | None, int, str], Parameter] = field(default_factory=dict)
    is_cell: bool = False
    foreign: str = ""
    twice: str = ""

    def add(self, kind: str, end: str, variant: str, name: str, tensor: LazyTensor) -> None:
        layer = int(end[2:].removesuffix("_reverse")) if end else None
        self.is_cell |= layer is None
        parameter = self.parameters.setdefault((layer, int(end.endswith("_reverse")), kind), Parameter())
        if variant in parameter.stored:
            self.twice = f"{quoted(name)} and {quoted(parameter.stored[variant][0])} are the same parameter"
        parameter.stored[variant] = (name, tensor)

    def spell(self, canonical: str) -> str:
        """The name in the file of a parameter of ``nn.LSTM``."""
        return (f"{self.prefix}." if self.prefix else "") + (canonical.removesuffix("_l0") if self.is_cell else canonical)


def find(groups: Iterable[Group], reader: ReadFloats, limit: float = math.inf, batch_first: bool | None = None) -> list[Found]:
    """Find the LSTMs in state dicts.

    Parameters
    ----------
    groups : iterable of Group
    reader : function (tensors) -> arrays
    limit : number
        Most bytes the weights of one LSTM may take.
    batch_first : bool or None
        For all of them, where the source says so.
    """
    found: list[tuple[tuple[str, ...], Found]] = []
    room = MAX_PARAMETERS
    for group in groups:
        candidates = _candidates(group, room)
        found += [(group.outer, _examine(candidate, reader, limit, batch_first)) for candidate in candidates]
        room -= sum(len(candidate.parameters) for candidate in candidates)
    return _named(found)


def looks_like_parameter(name: str) -> bool:
    """Whether a name, in any module, is one of a recurrent layer's parameters, or of something that belongs to one."""
    tail = name.rpartition(".")[2]
    return bool(DIRECT.fullmatch(tail) or FOREIGN.fullmatch(tail))


def _candidates(group: Group, room: int) -> list[Candidate]:
    candidates: dict[str, Candidate] = {}
    for name in (*group.tensors, *group.others):
        if len(name) > MAX_NAME or name.count(".") > MAX_DEPTH:
            raise FormatError(f"the name {quoted(name)} is {len(name)} characters long or has too many parts")
    for name, tensor in group.tensors.items():
        prefix, parametrized, tail = f".{name}".rpartition(".parametrizations.")
        if parametrized:
            prefix = prefix[1:]
            match = PARAMETRIZED.fullmatch(tail)
            variant = {"original0": "g", "original1": "v"}.get(match[3], match[3]) if match else ""
        else:
            prefix, _, tail = name.rpartition(".")
            match = DIRECT.fullmatch(tail)
            variant = match[3][1:] if match else ""
        if match:
            room -= 1
            if room < 0:
                raise FormatError(f"more than {MAX_PARAMETERS} parameters of recurrent layers")
            candidates.setdefault(prefix, Candidate(prefix)).add(match[1], match[2], variant, name, tensor)
    for name in (*group.tensors, *group.others) if candidates else ():
        parts = name.split(".")
        for depth in range(len(parts)):
            candidate = candidates.get(".".join(parts[:depth]))
            if candidate is not None and not candidate.foreign and _is_foreign(parts[depth:], candidate.is_cell):
                candidate.foreign = name
        own = candidates.get(".".join(parts[:-1]))
        if own is not None and name not in group.tensors and looks_like_parameter(name):
            own.foreign = name
    return [candidate for prefix, candidate in candidates.items() if not _is_weight_drop(candidate, candidates, prefix)]


def _is_weight_drop(wrapper: Candidate, candidates: dict[str, Candidate], prefix: str) -> bool:
    """Whether it is a weight drop around another LSTM, as fastai's, whose raw tensors are then that one's parameters.

    Of these the other holds nothing, or what the last training step left over.
    """
    wrapped = candidates.get(f"{prefix}.module" if prefix else "module")
    if wrapped is None or any(set(parameter.stored) != {"raw"} for parameter in wrapper.parameters.values()):
        return False
    wrapped.parameters |= wrapper.parameters
    return True


def _is_foreign(parts: Sequence[str], in_cell: bool) -> bool:
    """Whether a name inside an LSTM's prefix, split at its dots, is a parameter of that LSTM which nn.LSTM does not have.

    Other things may live there: the prefix of a model that *is* an LSTM is empty and holds all else too.
    """
    first = parts[0]
    if first == "parametrizations":
        return not PARAMETRIZED.fullmatch(".".join(parts[1:]))
    if len(parts) == 1:
        if DIRECT.fullmatch(first):
            return False
        if FOREIGN.fullmatch(first) or (in_cell and FOREIGN_IN_CELL.fullmatch(first)):
            return True
    if INITIAL.fullmatch(first.lower()) and (
        len(parts) == 1 or (len(parts) == 2 and parts[1].isdigit())
    ):  # or one for each layer
        return True
    return FOREIGN_WORD.search(first.lower()) is not None


def _examine(candidate: Candidate, reader: ReadFloats, limit: float, batch_first: bool | None) -> Found:
    other = _other_kind(candidate)
    if other:
        return other_layer(candidate.prefix, quoted(candidate.prefix), other)
    try:
        info, parameters = _check(candidate, limit)
    except ValueError as error:
        return refused(candidate.prefix, quoted(candidate.prefix), error)

    def read() -> Weights:
        arrays = iter(reader([tensor for parameter in parameters.values() for _, tensor in parameter.stored.values()]))
        tensors = {}
        for canonical, parameter in parameters.items():
            tensors[canonical] = handed_over(parameter.compute({variant: next(arrays) for variant in parameter.stored}))
        return Weights.from_named_tensors(tensors)

    return Found(candidate.prefix, replace(info, batch_first=batch_first), read)


def _other_kind(candidate: Candidate) -> str:
    """A GRU has three gates and a plain RNN one; a projection, which only an LSTM has, would blur the ratio."""
    first = None if candidate.is_cell else 0
    recurrent = candidate.parameters.get((first, 0, "weight_hh"))
    if recurrent is None or len(recurrent.shape) != 2 or any(kind == "weight_hr" for _, _, kind in candidate.parameters):
        return ""
    rows, columns = recurrent.shape
    return {3 * columns: "a GRU", columns: "a plain RNN (tanh or relu)"}.get(rows, "") if columns else ""


def _check(candidate: Candidate, limit: float) -> tuple[LSTMInfo, dict[str, Parameter]]:
    """Return what the LSTM is, and its parameters under their canonical names in PyTorch's order.

    Raises
    ------
    ValueError
        If a parameter is missing, unknown, or has another shape or dtype than the rest demands.
    """
    given = candidate.parameters
    layers = {layer for layer, _, _ in given}
    kinds = {kind for _, _, kind in given}
    if candidate.is_cell and (len(layers) > 1 or "weight_hr" in kinds):
        names = listing((parameter.main[0] for parameter in given.values()), 10)
        raise FormatError(f"neither an LSTM nor an LSTMCell has all of {names}")
    if candidate.twice:
        raise FormatError(candidate.twice)
    if candidate.foreign:
        name = quoted(candidate.foreign)
        stored = {name for parameter in given.values() for name, _ in parameter.stored.values()}
        if candidate.foreign.endswith("_u") and f"{candidate.foreign[:-2]}_orig" in stored:
            raise FormatError(
                f"{name} is of a spectral norm: torch.nn.utils.remove_spectral_norm makes a plain tensor of its weight"
            )
        initial = any(INITIAL.fullmatch(part.lower()) for part in candidate.foreign.split("."))
        way = "an initial state? pass it to the calls, and a" if initial else "if it belongs to another layer, pass a"
        raise FormatError(f"{name} belongs to an LSTM, by its name: no parameter of nn.LSTM ({way} state dict without it)")
    for parameter in given.values():
        parameter.check()
        for name, tensor in parameter.stored.values():  # before shapes: what is sparse, quantized or without values has none here
            check_dtype(name, tensor)

    sizes = {}
    for kind in ("weight_ih", "weight_hh"):
        matrix = given.get((None if candidate.is_cell else 0, 0, kind))
        if matrix is None:
            raise FormatError(f"{quoted(candidate.spell(kind + '_l0'))} is missing")
        if len(matrix.shape) != 2:
            raise FormatError(f"{quoted(matrix.main[0])} must have 2 dimensions, got shape {matrix.shape!s:.100}")
        sizes[kind] = matrix.shape
    rows, recurrent = sizes["weight_hh"]
    if rows % 4 or (rows != 4 * recurrent and "weight_hr" not in kinds):
        raise FormatError(
            f"{quoted(candidate.spell('weight_hh_l0'))} has shape {(rows, recurrent)}: "
            "not 4 (LSTM), 3 (GRU) or 1 (plain RNN) times as many rows as columns, and there is no projection weight_hr_l0"
        )
    missing_layer = next(layer for layer in range(len(layers) + 1) if layer not in layers)
    if not candidate.is_cell and missing_layer < len(layers):
        raise FormatError(f"{quoted(candidate.spell(f'weight_ih_l{missing_layer}'))} is missing")

    info = LSTMInfo(
        name=candidate.prefix,
        input_size=sizes["weight_ih"][1],
        hidden_size=rows // 4,
        num_layers=len(layers),
        bidirectional=any(direction for _, direction, _ in given),
        proj_size=recurrent if "weight_hr" in kinds else 0,
        bias=not kinds.isdisjoint({"bias_ih", "bias_hh"}),
        dtype=dtypes(tensor for parameter in given.values() for _, tensor in parameter.stored.values()),
    )
    check_sizes(info.input_size, info.hidden_size, info.num_layers, info.proj_size)
    parameters = {}
    for canonical, shape in _expected_shapes(info).items():
        found = given.get(_key(canonical, candidate.is_cell))
        if found is None:
            raise FormatError(f"{quoted(candidate.spell(canonical))} is missing: shape {shape} expected")
        if found.shape != shape:
            raise FormatError(f"{quoted(found.main[0])} must have shape {shape}, got {found.shape!s:.100}")
        parameters[canonical] = found
    _check_stored(list(parameters.values()), limit)
    return info, parameters


def _expected_shapes(info: LSTMInfo) -> dict[str, tuple[int, ...]]:
    return parameter_shapes(
        info.input_size,
        info.hidden_size,
        info.num_layers,
        bias=info.bias,
        bidirectional=info.bidirectional,
        proj_size=info.proj_size,
    )


def _key(canonical: str, is_cell: bool) -> tuple[int | None, int, str]:
    match = DIRECT.fullmatch(canonical)
    assert match is not None, canonical
    layer = None if is_cell else int(match[2][2:].removesuffix("_reverse"))
    return layer, int(match[2].endswith("_reverse")), match[1]


def _check_stored(parameters: Sequence[Parameter], limit: float) -> None:
    """Refuse dtypes that do not go together, scales for some parameters only, and more bytes than ``limit``."""
    stored = [entry for parameter in parameters for entry in parameter.stored.values()]
    dtype = one_precision(stored)
    scaled = [parameter for parameter in parameters if "scale" in parameter.stored]
    if scaled and len(scaled) < len(parameters):
        raise FormatError(f"{quoted(scaled[0].stored['scale'][0])} is not understood ({HINTS['scale']})")
    size = sum(math.prod(tensor.shape) for _, tensor in stored) * dtype.itemsize
    check_size(f"{quoted(stored[0][0])} and the rest of its LSTM", size, limit)


def _weight_norm(g: Array, v: Array) -> Array:
    """``w = g * v / ||v||`` in float64 and rounded once; in place of ``v``, in blocks of rows that bound the memory.

    The norm is of each row, of each column or of all, as ``g`` has a number for each.
    """
    step = max(1, 2**17 // max(1, math.prod(v.shape[1:])))
    blocks = [slice(start, start + step) for start in range(0, len(v), step)]
    by_row = g.ndim > 0 and len(g) == len(v)
    with np.errstate(all="ignore"):
        if not by_row:
            squares = sum(np.square(v[block], dtype=np.float64).sum(axis=0 if g.ndim else None) for block in blocks)
            factor = g / np.sqrt(squares)
        for block in blocks:
            rows = v[block].astype(np.float64)
            if by_row:
                norms = np.sqrt((rows * rows).reshape(len(rows), -1).sum(axis=1)).reshape(-1, *[1] * (v.ndim - 1))
                factor = g[block] / norms
            v[block] = rows * factor
    return v


def _named(found: Sequence[tuple[tuple[str, ...], Found]]) -> list[Found]:
    """Give each its prefix in the state dict as its name; if several share it, with the place of that in the file before it.

    The other spelling is accepted too, and both without the wrappers of DataParallel and torch.compile.
    """
    shorts = Counter(item.name for _, item in found)
    result = []
    for outer, item in found:
        long = ".".join([*outer, item.name] if item.name else outer)
        name, other = (item.name, long) if shorts[item.name] == 1 else (long, item.name)
        aliases = {other, _unwrapped(item.name), _unwrapped(long)} - {name}
        info = replace(item.info, name=name) if item.info else None
        result.append(replace(item, name=name, info=info, aliases=tuple(sorted(aliases))))
    return distinct(result)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
