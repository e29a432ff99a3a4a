"""Tensors called ``kernel``, ``recurrent_kernel`` and ``bias``: Keras' and Haste's, which differ in the order of the gates alone.

Both have x W: ``kernel`` (I, 4H), ``recurrent_kernel`` (H, 4H), ``bias`` (4H,). Keras has the gates i, f, g, o, Haste i, g, f, o.
Nothing in the names or shapes tells which, so whoever loads must say: ``layout="keras"`` or ``"haste"``.

References
----------
``keras/src/layers/rnn/lstm.py``; ``haste_pytorch/lstm.py`` in https://github.com/lmnt-com/haste.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fastlstm.errors import FormatError
from fastlstm.loaders.assembly import MAX_TENSORS, Part, Sizes, network, split_name, uniquely_named
from fastlstm.loaders.found import Found, other_layer, quoted, refused
from fastlstm.loaders.tensors import LazyTensor, NamedTensor, ReadStored
from fastlstm.weights import Weights

__all__ = ["LAYOUTS", "find"]

Path = tuple[str, ...]
LAYOUTS = {"keras": "ifgo", "haste": "igfo"}
LEAVES = ("kernel", "recurrent_kernel", "bias")


def find(
    tensors: Mapping[str, LazyTensor],
    read: ReadStored,
    limit: float = math.inf,
    batch_first: bool | None = None,
    layout: str | None = None,
) -> list[Found]:
    """Find the LSTMs; without a layout they are listed and cannot be loaded."""
    scopes = _scopes(tensors)
    result = []
    for path in scopes:
        pair = _pair(path, scopes)
        if pair is not None and path != pair[0]:
            continue  # the backward one came with the forward one
        both = [scopes[one] for one in pair] if pair else [scopes[path]]
        at = _around_directions(path) if pair else path
        short = at[:-1] if len(at) > 1 and at[-1].startswith("lstm_cell") else at
        result.append((at, short, _examine(path, both, read, limit, batch_first, layout)))
    return uniquely_named(result)


def _scopes(tensors: Mapping[str, LazyTensor]) -> dict[Path, dict[str, NamedTensor]]:
    scopes: dict[Path, dict[str, NamedTensor]] = {}
    for name in tensors:
        *before, leaf = _path(name)
        if leaf == "recurrent_kernel":
            scopes[tuple(before)] = {}
    if len(LEAVES) * len(scopes) > MAX_TENSORS:
        raise FormatError(f"more than {MAX_TENSORS} parameters of recurrent layers")
    for name, tensor in tensors.items() if scopes else ():
        *before, leaf = _path(name)
        scope = scopes.get(tuple(before))
        if scope is not None:
            scope[f"{name} again" if leaf in scope else leaf] = name, tensor  # which is none of LEAVES
    return scopes


def _path(name: str) -> Path:
    return split_name(name.removesuffix(":0"))


def _pair(path: Path, scopes: Mapping[Path, object]) -> tuple[Path, Path] | None:
    """The two paths of a ``Bidirectional``, if this is one of them: ``forward_lstm`` and ``backward_lstm`` at the same place."""
    for index, step in enumerate(path):
        side, _, rest = step.partition("_")
        if side in ("forward", "backward") and rest:
            forward, backward = ((*path[:index], f"{name}_{rest}", *path[index + 1 :]) for name in ("forward", "backward"))
            if forward in scopes and backward in scopes:
                return forward, backward
    return None


def _around_directions(path: Path) -> Path:
    index = next(index for index, step in enumerate(path) if step.startswith(("forward_", "backward_")))
    return path[:index]


def _examine(
    path: Path,
    both: Sequence[Mapping[str, NamedTensor]],
    read: ReadStored,
    limit: float,
    batch_first: bool | None,
    layout: str | None,
) -> Found:
    shape = both[0]["recurrent_kernel"][1].shape
    other = {3: "a GRU", 1: "a plain RNN"}.get(shape[1] // shape[0] if len(shape) == 2 and shape[0] else 0)
    if other and shape[1] % shape[0] == 0:
        return other_layer("", quoted("/".join(path)), other)
    try:
        for scope in both:
            for leaf in ("kernel", "recurrent_kernel"):
                if leaf not in scope:
                    raise FormatError(f"{quoted('/'.join((*path, leaf)))} is missing")
                if len(scope[leaf][1].shape) != 2:
                    raise FormatError(f"{quoted(scope[leaf][0])} must have 2 dimensions, got {scope[leaf][1].shape!s:.100}")
            for leaf, (name, _) in scope.items():
                if leaf not in LEAVES:
                    raise FormatError(f"{quoted(name)} belongs to an LSTM and is not understood")
        sizes = Sizes(both[0]["kernel"][1].shape[0], shape[0], bidirectional=len(both) == 2, bias="bias" in both[0])
        gates = LAYOUTS[layout or "keras"]
        records = [_parts(scope, sizes, gates) for scope in both]
        found = network("", sizes, records, read, limit, batch_first=layout != "haste" if batch_first is None else batch_first)
    except ValueError as error:
        return refused("", quoted("/".join(path)), error)
    if layout or found.info is None:
        return found
    return Found("", replace(found.info, problem=LAYOUT), _ask)


def _parts(scope: Mapping[str, NamedTensor], sizes: Sizes, gates: str) -> list[Part]:
    I, H = sizes.input_size, sizes.hidden_size
    if sizes.bias and "bias" not in scope:
        raise FormatError(f"one direction has a bias, that of {quoted(scope['kernel'][0])} has none")
    return [
        Part("weight_ih", scope["kernel"], (I, 4 * H), gates),
        Part("weight_hh", scope["recurrent_kernel"], (H, 4 * H), gates),
        *([Part("bias_ih", scope["bias"], (4 * H,), gates)] if "bias" in scope else []),
    ]


LAYOUT = (
    "kernel, recurrent_kernel and bias have the gates in the order i, f, g, o (Keras) or i, g, f, o (Haste), and nothing in "
    "the file tells which: pass layout='keras' or layout='haste'"
)


def _ask() -> Weights:
    raise FormatError(LAYOUT)
