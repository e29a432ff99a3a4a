"""What a live module of ``flax.nnx`` says of its cells beside their parameters: activations, direction, order of axes.

References
----------
``flax/nnx/nn/recurrent.py``.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

from fastlstm.cell import PLAIN, Activation, Cell
from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted

__all__ = ["Said", "said_of"]

Path = tuple[str, ...]
# The functions of ``jax.nn`` that the engine has
FUNCTIONS = {
    "sigmoid": Activation("sigmoid"),
    "tanh": Activation("tanh"),
    "relu": Activation("relu"),
    "hard_sigmoid": Activation("hard_sigmoid", (1 / 6, 0.5)),
    "soft_sign": Activation("softsign"),
    "softplus": Activation("softplus"),
    "elu": Activation("elu"),
    "leaky_relu": Activation("leaky_relu"),
}


PARAMETERS = "pass its parameters, nnx.state(...), which are run as Flax's own"


@dataclass(frozen=True)
class Said:
    """Of one cell, or of both of a ``Bidirectional``, by default what Flax's are; ``problem``: why it cannot be run as there."""

    cell: Cell = PLAIN
    reverse: bool = False
    flipped: bool = False
    batch_first: bool | None = True
    problem: str = ""


def said_of(module: Any, cells: list[Path]) -> Said:
    """What a module says of the cell at a path, or of two cells side by side."""
    try:
        return _both(module, cells) if len(cells) == 2 else _one(module, cells[0])
    except FormatError as error:
        return Said(problem=f"{quoted('/'.join(cells[0]))}: {error}")


def _one(module: Any, path: Path) -> Said:
    cell = _cell(_at(module, path))
    if path[-1:] != ("cell",):
        return Said(cell)
    rnn = _at(module, path[:-1])
    if not isinstance(rnn, sys.modules["flax.nnx"].RNN):  # what a module of one's own does with its cell is its own affair
        return Said(cell)
    _check_own(rnn, "RNN")
    return Said(cell, bool(rnn.reverse), bool(rnn.reverse) and not rnn.keep_order, not rnn.time_major)


def _both(module: Any, paths: list[Path]) -> Said:
    cells = [_cell(_at(module, path)) for path in paths]
    for path in paths:
        if path[-1] == "cell":
            _check_own(_at(module, path[:-1]), "RNN")
    pair = _at(module, paths[0][: -2 if paths[0][-1] == "cell" else -1])
    alone = "take forward_rnn and backward_rnn one by one"
    _check_own(pair, "Bidirectional")
    if pair.merge_fn is not inspect.signature(type(pair).__init__).parameters["merge_fn"].default:
        raise FormatError(f"its merge_fn is not concatenation, the default: {alone}")
    if cells[0] != cells[1]:
        raise FormatError(f"its directions have different activations: {alone}")
    return Said(cells[0], batch_first=not pair.time_major)


def _cell(cell: Any) -> Cell:
    _check_own(cell, "LSTMCell", "OptimizedLSTMCell")
    if getattr(cell, "carry_init", None) is not None:
        raise FormatError(f"its carry_init is not the default, zeros; {PARAMETERS}, and the state at each call")
    gate, activation = (_activation(key, getattr(cell, key)) for key in ("gate_fn", "activation_fn"))
    return Cell(gate, activation, activation)


def _activation(key: str, function: object) -> Activation:
    nn = sys.modules["jax.nn"]
    for name, activation in FUNCTIONS.items():
        if function is getattr(nn, name):
            return activation
    name = getattr(function, "__name__", type(function).__name__)
    raise FormatError(f"{key} {quoted(name)} is not understood: none of jax.nn's {', '.join(FUNCTIONS)}")


def _at(module: Any, path: Path) -> Any:
    for step in path:
        try:
            module = getattr(module, step) if hasattr(module, step) else module[int(step) if step.isdecimal() else step]
        except (KeyError, IndexError, TypeError):  # a key of a dict with a slash in it, for one
            raise FormatError(f"its place in the module cannot be told; {PARAMETERS}") from None
    return module


def _check_own(module: Any, *names: str) -> None:
    """Refuse subclasses: their code decides what they compute."""
    if not any(type(module) is getattr(sys.modules["flax.nnx"], name) for name in names):
        kind = quoted(type(module).__name__)
        raise FormatError(
            f"its class {kind} is not Flax's own {' or '.join(names)}, and may compute something else; {PARAMETERS}"
        )
