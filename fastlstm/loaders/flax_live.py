"""Live parameters and modules of Flax. A module of ``flax.nnx`` also says activations, direction and order of axes of its cells.

References
----------
``flax/nnx/nn/recurrent.py``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastlstm.cell import Activation, Cell
from fastlstm.errors import FormatError
from fastlstm.loaders import flax_names
from fastlstm.loaders.flax_names import FlaxOptions, Path
from fastlstm.loaders.found import Contents, quoted, summary
from fastlstm.loaders.live import flattened, read_one

__all__ = ["find"]

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


def find(source: object) -> Contents:
    """List the LSTMs in a tree of parameters, or in a module of ``flax.nnx``.

    Flax itself is never imported: whoever passes a module has done so.

    Raises
    ------
    TypeError
        If it is neither.
    """
    nnx, options_of = sys.modules.get("flax.nnx"), None
    if nnx is not None and isinstance(source, nnx.Module):
        source, options_of = nnx.state(source), partial(_options_of, source)
    if not isinstance(source, Mapping):
        raise TypeError(
            f"params must be a tree of parameters or a flax.nnx.Module, got {type(source).__name__} (of a "
            "flax.linen.Module, pass the variables; for a file: fastlstm.load)"
        )
    tensors = flattened(source)
    return Contents(flax_names.find(tensors, read_one, options_of=options_of), summary("a tree", tensors, "arrays"))


def _options_of(module: Any, cells: list[Path]) -> FlaxOptions:
    """What a module says of the cell at a path, or of two cells side by side."""
    try:
        return _both(module, cells) if len(cells) == 2 else _one(module, cells[0])
    except FormatError as error:
        return FlaxOptions(problem=f"{quoted('/'.join(cells[0]))}: {error}")


def _one(module: Any, path: Path) -> FlaxOptions:
    cell = _cell(_at(module, path))
    if path[-1:] != ("cell",):
        return FlaxOptions(cell)
    rnn = _at(module, path[:-1])
    if not isinstance(rnn, sys.modules["flax.nnx"].RNN):  # what a module of one's own does with its cell is its own affair
        return FlaxOptions(cell)
    _check_own(rnn, "RNN")
    return FlaxOptions(cell, bool(rnn.reverse), bool(rnn.reverse) and not rnn.keep_order, not rnn.time_major)


def _both(module: Any, paths: list[Path]) -> FlaxOptions:
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
    return FlaxOptions(cells[0], batch_first=not pair.time_major)


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
