"""What is raced: the shapes of each mode, and the data of a case, the same in every process."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace

import numpy as np
from shapes import DEEPBENCH, REAL_USES, TRAINING, Shape

from fastlstm.weights import Weights, parameter_shapes

MODES = {
    "forward": "whole sequences, from a given state",
    "ragged": "sequences of different lengths: half of the tokens are padding",
    "step": "one step, state given and returned",
    "stream": "one step, state carried by the engine",
    "train": "whole sequences from a given state, then all gradients, the input's too",
    "train-ragged": "the same with different lengths: half of the tokens are padding",
    "train-resets": "the same with rows that begin anew inside the sequences",
}
RESETS = 0.02  # how often a row begins anew: episodes of 50 steps
STREAM_STEPS = 8  # different inputs of a stream, taken again and again

# For --quick: each mode, each kind of limit, layers and directions.
QUICK = {
    "forward": ("t512b1i128h128", "t100b16i256h256d2", "t365b64i16h128", "t50b1i512h512"),
    "ragged": ("t12b512i64h64d2", "t20b64i1024h200l3d2"),
    "step": ("t1b1i128h128", "t1b1i320h320l2"),
    "stream": ("t1b1i128h128", "t1b1i320h320l2"),
    "train": ("t100b32i128h128", "t128b8i64h256"),
    "train-ragged": ("t12b512i64h64d2",),
    "train-resets": ("t128b8i64h256",),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A network's weights and the arguments of one call, or of the steps of a stream."""

    mode: str
    shape: Shape
    weights: Weights
    x: np.ndarray  # (T, B, I); (STREAM_STEPS, B, I) of a stream
    state: tuple[np.ndarray, np.ndarray]  # not zero; a stream begins from zeros
    lengths: np.ndarray  # (B,)
    resets: np.ndarray  # (T, B)
    d_output: np.ndarray  # (T, B, D * size of h): what is asked of the gradients


def make_case(mode: str, shape: Shape) -> Case:
    """The case of this mode and shape, with PyTorch's scale of weights and normal inputs and states."""
    rng = np.random.default_rng(zlib.crc32(shape.name.encode()))
    scale = np.float32(shape.H**-0.5)
    sizes = parameter_shapes(shape.I, shape.H, shape.L, bias=True, bidirectional=shape.D == 2, proj_size=shape.P)
    tensors = {name: (2 * rng.random(size, np.float32) - 1) * scale for name, size in sizes.items()}
    for tensor in tensors.values():
        tensor.setflags(write=False)
    T, layers = STREAM_STEPS if mode == "stream" else shape.T, shape.L * shape.D
    x = rng.standard_normal((T, shape.B, shape.I), np.float32)
    h, c = (rng.standard_normal((layers, shape.B, n), np.float32) for n in (shape.recurrent, shape.H))
    d_output = rng.standard_normal((T, shape.B, shape.D * shape.recurrent), np.float32)
    resets = rng.random((T, shape.B)) < RESETS
    return Case(mode, shape, Weights.from_named_tensors(tensors), x, (h, c), lengths_of(shape), resets, d_output)


def lengths_of(shape: Shape) -> np.ndarray:
    """Lengths of a ragged batch, shape (B,): from 1 to T in even steps, shuffled."""
    return np.random.default_rng(0).permutation(np.linspace(1, shape.T, shape.B).round().astype(np.int64))


def shapes_of(mode: str) -> list[Shape]:
    """The shapes raced in a mode: single steps of every network that can stream, ragged batches of every batch of sequences."""
    more = {"forward": DEEPBENCH, "train": TRAINING}
    uses = (*REAL_USES, *more.get(mode, ()))
    if mode == "train-resets":
        uses = tuple(shape for shape in uses if "resets" in shape.reason)
    fitting = [as_mode(mode, shape) for shape in uses if mode in ("step", "stream") or shape.T > 1]
    return list({shape.name: shape for shape in reversed(fitting) if shape}.values())[::-1]  # of two alike the first


def as_mode(mode: str, shape: Shape) -> Shape | None:
    """The shape of a case of this mode, or None: two directions cannot step nor be cut in time; one row has nothing to pad."""
    if mode in ("step", "stream"):
        reason = shape.reason if shape.T == 1 else shape.reason.partition(",")[0]
        return replace(shape, T=1, reason=reason) if shape.D == 1 else None
    if mode == "train-resets":
        return shape if shape.D == 1 else None
    return shape if not mode.endswith("ragged") or shape.B > 1 else None


def select(modes: list[str], pattern: str | None = None, quick: bool = False) -> list[tuple[str, Shape]]:
    """The cases to run: those whose name or reason the regular expression is found in; any other shape by its exact name."""
    chosen = []
    for mode in modes:
        shapes = shapes_of(mode)
        if pattern is not None:
            found = [shape for shape in shapes if re.search(pattern, f"{shape.name} {shape.reason}", re.IGNORECASE)]
            named = as_mode(mode, Shape.parse(pattern)) if re.fullmatch(r"t\d+b\d+i\d+h\d+[ldp\d]*", pattern) else None
            shapes = found or ([named] if named else [])
        elif quick:
            shapes = [shape for shape in shapes if shape.name in QUICK[mode]]
        chosen += [(mode, shape) for shape in shapes]
    return chosen
