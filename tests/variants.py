"""The one list of cell variants: each a way in which a network differs from PyTorch's, shared by the tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from helpers import Case, make_case

from fastlstm.cell import PLAIN, Activation, Cell
from fastlstm.weights import Weights


@dataclass(frozen=True)
class Variant:
    cell: Cell = PLAIN
    other: Cell | None = None  # of every second record, if it differs: the reverse direction, or every second layer
    peephole: bool = False
    initial: bool = False  # learned h_0 and c_0
    reverse: bool = False
    flipped: bool = False


# Every function, with parameters that are not its defaults, in a place where files have it.
FUNCTIONS = {
    "sigmoid": Activation("sigmoid"),
    "tanh": Activation("tanh"),
    "relu": Activation("relu"),
    "linear": Activation("linear"),
    "hard_sigmoid": Activation("hard_sigmoid"),
    "hard_sigmoid of Keras 3": Activation("hard_sigmoid", (1 / 6, 0.5)),
    "softsign": Activation("softsign"),
    "softplus": Activation("softplus"),
    "elu": Activation("elu", (0.7,)),
    "leaky_relu": Activation("leaky_relu", (0.1,)),
    "thresholded_relu": Activation("thresholded_relu", (0.2,)),
    "scaled_tanh": Activation("scaled_tanh", (0.8, 1.3)),
    "affine": Activation("affine", (0.6, 0.2)),
}
F = FUNCTIONS

VARIANTS = {
    **{f"gate {name}": Variant(Cell(gate=f)) for name, f in FUNCTIONS.items()},
    **{f"candidate {name}": Variant(Cell(candidate=f)) for name, f in FUNCTIONS.items()},
    **{f"hidden {name}": Variant(Cell(hidden=f)) for name, f in FUNCTIONS.items()},
    "peepholes": Variant(peephole=True),
    "f = 1 - i": Variant(Cell(coupled="forget")),
    "i = 1 - f": Variant(Cell(coupled="input")),
    "gate clip": Variant(Cell(gate_clip=0.4)),
    "cell clip": Variant(Cell(cell_clip=0.3)),
    "projection clip": Variant(Cell(proj_clip=0.1)),
    "all clips, peepholes": Variant(Cell(gate_clip=0.7, cell_clip=0.5, proj_clip=0.2), peephole=True),
    "f = 1 - i, peepholes, clips": Variant(Cell(coupled="forget", gate_clip=0.5, cell_clip=0.5), peephole=True),
    "i = 1 - f, peepholes, hard": Variant(Cell(F["hard_sigmoid"], F["softsign"], F["elu"], coupled="input"), peephole=True),
    "learned state": Variant(initial=True),
    "learned state, peepholes, reverse": Variant(initial=True, peephole=True, reverse=True),
    "reverse": Variant(reverse=True),
    "reverse, flipped": Variant(reverse=True, flipped=True),
    "reverse, flipped, hard": Variant(Cell(gate=F["hard_sigmoid"]), initial=True, reverse=True, flipped=True),
    "mixed": Variant(Cell(F["hard_sigmoid"], F["softsign"], F["scaled_tanh"]), other=Cell(cell_clip=0.3)),
    "some plain": Variant(Cell(), other=Cell(coupled="forget", hidden=F["relu"])),
}


def make_variant(weights: Weights, variant: Variant, seed: int = 0) -> Weights:
    """These weights as a network of that kind; one direction alone of a bidirectional one where that is reverse."""
    rng = np.random.default_rng([7, seed])
    H, P = weights.hidden_size, weights.proj_size or weights.hidden_size
    layers = []
    for k, layer in enumerate(weights.layers):
        cell = variant.other if variant.other is not None and k % 2 else variant.cell
        peephole = rng.uniform(-1, 1, 3 * H).astype(weights.dtype) if variant.peephole else None
        h_0, c_0 = (rng.standard_normal(n).astype(weights.dtype) if variant.initial else None for n in (P, H))
        layers.append(replace(layer, cell=cell, weight_peephole=peephole, h_0=h_0, c_0=c_0))
    return replace(weights, layers=tuple(layers), reverse=variant.reverse, flipped=variant.flipped)


def make_variant_case(name: str, variant: Variant, dtype: str = "float32", *, own_state: bool = False, **options: bool) -> Case:
    """A case of that shape, one direction alone if the variant is reverse; ``own_state``: none is given."""
    if variant.reverse:
        name = name.replace("d2", "")
    case = make_case(name, dtype, **options)
    return replace(case, weights=make_variant(case.weights, variant), state=None if own_state else case.state)
