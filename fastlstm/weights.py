"""The canonical weights: one record per layer and direction, PyTorch's names, gates in the order i, f, g, o; a plain RNN has one.

Every loader produces :class:`Weights`; the engine, ``state_dict`` and ``save`` consume it. Nothing else passes between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from fastlstm import rounding
from fastlstm.arrays import Array, as_flag, as_integer, shape_error
from fastlstm.cell import PLAIN, Activation, Cell

__all__ = [
    "MERGE_MODES",
    "NONLINEARITIES",
    "TENSORS",
    "Array",
    "LayerWeights",
    "Nonlinearity",
    "Weights",
    "check_sizes",
    "described",
    "parameter_shapes",
]

Nonlinearity = Literal["tanh", "relu"]  # of a plain RNN
NONLINEARITIES = get_args(Nonlinearity)
MERGE_MODES = ("concat", "sum", "mul", "ave")  # and None: both outputs
SUPPORTED_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
MAX_LAYERS = 1 << 16
MAX_SIZE = 2**31 - 1  # of any one dimension; products are checked in Python's integers, which do not overflow


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One direction of one layer.

    Attributes
    ----------
    weight_ih : array, shape (4*H, I)
        In all, H in place of 4*H of a plain RNN.
    weight_hh : array, shape (4*H, H), or (4*H, P) with a projection
    bias_ih, bias_hh : arrays, shape (4*H,), or both None
    weight_hr : array, shape (P, H), or None without a projection
    weight_peephole : array, shape (3*H,), or None
        Factors of c in the pre-activations of i, f and o.
    h_0, c_0 : arrays, shape (H or P,) and (H,), or both None
        The initial state that a file carries, for every row where the caller gives none.
    cell : Cell
    nonlinearity : "tanh" or "relu" of a plain RNN, None of an LSTM
    """

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None = None
    bias_hh: Array | None = None
    weight_hr: Array | None = None
    weight_peephole: Array | None = None
    h_0: Array | None = None
    c_0: Array | None = None
    cell: Cell = PLAIN
    nonlinearity: Nonlinearity | None = None


TENSORS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peephole", "h_0", "c_0")


@dataclass(frozen=True, eq=False)
class Weights:
    """A whole network: ``layers`` is layer-major, then direction (l0, l0_reverse, l1, ...), as PyTorch orders its states.

    Attributes
    ----------
    layers : tuple of LayerWeights
    bidirectional : bool
    reverse : bool
        Whether the single direction runs from the end to the beginning. Outputs stay at their own time.
    flipped : bool
        Whether outputs are in the order of processing instead, as Keras returns them with ``go_backwards``; needs `reverse`.
    merge_mode : {"concat", "sum", "mul", "ave", None}
        How the outputs of the two directions of a one-layer network are combined, as in Keras' Bidirectional. "ave" is half the
        sum; None returns a pair.
    weight_dtype : {None, "float16", "bfloat16", "int8"}
        The smaller type in which the engine stores the matrices. Those that are not rounded to it yet are when a network is made
        of them; :meth:`rounded` does so before.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit together; the message names the tensor, what was expected and what was given.
    """

    layers: tuple[LayerWeights, ...]
    bidirectional: bool = False
    reverse: bool = False
    flipped: bool = False
    merge_mode: str | None = "concat"
    weight_dtype: str | None = None

    def __post_init__(self) -> None:
        for flag in ("bidirectional", "reverse", "flipped"):
            object.__setattr__(self, flag, as_flag(flag, getattr(self, flag)))
        if self.merge_mode not in (*MERGE_MODES, None):
            raise ValueError(f"merge_mode must be one of {', '.join(MERGE_MODES)} or None, got {self.merge_mode!r:.100}")
        if (self.reverse and self.bidirectional) or (self.flipped and not self.reverse):
            raise ValueError("reverse needs bidirectional=False, and flipped needs reverse=True")
        _check_layers(self.layers)
        if not self.layers or len(self.layers) % self.num_directions:
            raise ValueError(f"layers must have {self.num_directions} record(s) per layer, got {len(self.layers)} in total")
        if self.merge_mode != "concat" and (self.num_directions, self.num_layers) != (2, 1):
            raise ValueError(f"merge_mode {self.merge_mode!r} needs one bidirectional layer")
        first = self.layers[0]
        for layer in self.layers:
            if layer.nonlinearity != first.nonlinearity or first.nonlinearity not in (None, *NONLINEARITIES):
                allowed = f"one of {', '.join(NONLINEARITIES)} or None in all layers"
                raise ValueError(f"nonlinearity must be {allowed}, got {layer.nonlinearity!r:.100}")
            if layer.nonlinearity and (layer.cell != PLAIN or any(getattr(layer, name) is not None for name in TENSORS[4:])):
                raise ValueError("a plain RNN has no projection, peepholes, initial state or cell of its own")
        given = {"weight_ih_l0": first.weight_ih, "weight_hh_l0": first.weight_hh, **dict(self.named_tensors())}
        for name, tensor in given.items():
            _check_array(name, tensor)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            if given[name].ndim != 2:
                raise ValueError(f"{name} must have 2 dimensions, got shape {given[name].shape}")
        if self.dtype not in SUPPORTED_DTYPES:
            raise ValueError(f"weight_ih_l0 must be float32 or float64, got {self.dtype}")
        check_sizes(self.input_size, self.hidden_size, self.num_layers, self.proj_size)
        if self.weight_dtype not in (None, *rounding.TYPES):
            raise ValueError(f"weight_dtype must be one of {', '.join(rounding.TYPES)} or None, got {self.weight_dtype!r:.100}")
        if self.weight_dtype and self.dtype != np.float32:
            raise ValueError(f"weight_dtype {self.weight_dtype!r} needs float32 weights, got {self.dtype}")
        expected = self.expected_shapes()
        for name, shape in expected.items():
            if name not in given:
                raise ValueError(f"{name} is missing: expected shape {shape}")
        for name, tensor in given.items():
            if name not in expected:
                raise ValueError(f"{name} was not expected in a network with bias={self.bias}, proj_size={self.proj_size}")
            if tensor.shape != expected[name]:
                raise shape_error(name, expected[name], tensor.shape)
            if tensor.dtype != self.dtype:
                raise ValueError(f"{name} must be {self.dtype} as weight_ih_l0 is, got {tensor.dtype}")

    @property
    def num_directions(self) -> int:
        """2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def num_layers(self) -> int:
        """Layers, each reading the output of the one before."""
        return len(self.layers) // self.num_directions

    @property
    def input_size(self) -> int:
        """Size I of an input."""
        return int(self.layers[0].weight_ih.shape[1])

    @property
    def hidden_size(self) -> int:
        """Size H of the cell state."""
        return int(self.layers[0].weight_hh.shape[0]) // self.gates

    @property
    def cell_size(self) -> int:
        """Size of the state c: 0 in a plain RNN, which has none."""
        return self.hidden_size if self.nonlinearity is None else 0

    @property
    def recurrent_size(self) -> int:
        """Size of the state h: ``proj_size``, or ``hidden_size`` without a projection."""
        return self.proj_size or self.hidden_size

    @property
    def nonlinearity(self) -> Nonlinearity | None:
        """Of a plain RNN; None for an LSTM."""
        return self.layers[0].nonlinearity

    @property
    def gates(self) -> int:
        """4, or 1 of a plain RNN."""
        return 4 if self.nonlinearity is None else 1

    @property
    def proj_size(self) -> int:
        """Size of the projected state, 0 without a projection."""
        weight_hr = self.layers[0].weight_hr
        return 0 if weight_hr is None else int(weight_hr.shape[0])

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self.layers[0].bias_ih is not None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every tensor: float32 or float64."""
        return self.layers[0].weight_ih.dtype

    @property
    def is_variant(self) -> bool:
        """Whether the engine must do anything that ``torch.nn.LSTM`` does not; ``merge_mode`` comes after it."""
        special = any(w.cell != PLAIN or w.weight_peephole is not None or w.h_0 is not None for w in self.layers)
        return special or self.reverse

    @property
    def initial_state(self) -> tuple[Array, Array]:
        """h_0, shape (L*D, P or H), and c_0, shape (L*D, cell_size), where none is given: zeros, unless the file holds one."""
        C, P = self.cell_size, self.recurrent_size
        h_0 = np.stack([np.zeros(P, self.dtype) if w.h_0 is None else w.h_0 for w in self.layers])
        return h_0, np.stack([np.zeros(C, self.dtype) if w.c_0 is None else w.c_0 for w in self.layers])

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors under PyTorch's names, in PyTorch's order.

        Returns
        -------
        dict of str to tuple of int
        """
        return parameter_shapes(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
            peephole=self.layers[0].weight_peephole is not None,
            initial=self.layers[0].h_0 is not None,
            gates=self.gates,
        )

    def named_tensors(self) -> Iterator[tuple[str, Array]]:
        """The tensors under PyTorch's names, in the order of ``nn.LSTM.state_dict()``.

        Yields
        ------
        (str, array)
        """
        for index, layer in enumerate(self.layers):
            for kind in TENSORS:
                tensor = getattr(layer, kind)
                if tensor is not None:
                    yield kind + suffix(index, self.num_directions), tensor

    def with_tensors(self, tensors: Mapping[str, Array]) -> Weights:
        """The same kind of network with other tensors.

        Parameters
        ----------
        tensors : mapping of str to array
            All those of :meth:`named_tensors`.

        Returns
        -------
        Weights

        Raises
        ------
        KeyError, ValueError
            If one is missing or does not fit.
        """
        layers = []
        for index, layer in enumerate(self.layers):
            end = suffix(index, self.num_directions)
            kinds = [kind for kind in TENSORS if getattr(layer, kind) is not None]
            layers.append(replace(layer, **{kind: tensors[kind + end] for kind in kinds}))  # type: ignore[arg-type]
        return replace(self, layers=tuple(layers))

    def rounded(self, weight_dtype: str | None) -> Weights:
        """The same network with matrices rounded to a smaller type, to be kept in it; biases and all else stay as they are.

        Parameters
        ----------
        weight_dtype : {"float16", "bfloat16", "int8"} or None
            int8 has a scale for each row of a matrix; see :mod:`fastlstm.rounding`.

        Returns
        -------
        Weights
            Of float32, as before: numbers that the type has.

        Raises
        ------
        ValueError
            If a weight is too large for the type, or int8 is to hold one that is not finite; the message names the tensor.
        """
        if weight_dtype is None:
            return replace(self, weight_dtype=None)
        checked = replace(self, weight_dtype=weight_dtype)
        matrices = {
            name: rounding.rounded(name, tensor, weight_dtype) if tensor.ndim == 2 else tensor
            for name, tensor in self.named_tensors()
        }
        return checked.with_tensors(matrices)

    @classmethod
    def from_named_tensors(cls, tensors: Mapping[str, Array], nonlinearity: Nonlinearity | None = None) -> Weights:
        """Read back what :meth:`named_tensors` gives.

        Parameters
        ----------
        tensors : mapping of str to array
            Their names must be exactly one network's.
        nonlinearity : {"tanh", "relu"}, optional
            Of a plain RNN; None for an LSTM.

        Returns
        -------
        Weights

        Raises
        ------
        ValueError, TypeError
            If a tensor is missing, unexpected or does not fit; the message names it.
        """
        if not isinstance(tensors, Mapping):
            raise TypeError(f"tensors must be a mapping of names to arrays, got {type(tensors).__name__}")
        if "weight_ih_l0" not in tensors:
            names = ", ".join(f"{name!r:.100}" for name in list(tensors)[:5]) or "none"
            raise ValueError(f"weight_ih_l0 is missing: tensors must have the names of state_dict(), got {names}")
        bidirectional = "weight_ih_l0_reverse" in tensors
        directions = 2 if bidirectional else 1
        remaining = dict(tensors)
        layers: list[LayerWeights] = []
        while "weight_ih" + suffix(len(layers), directions) in remaining:
            end = suffix(len(layers), directions)
            if "weight_hh" + end not in remaining:
                raise ValueError(f"weight_hh{end} is missing")
            found: dict[str, Any] = {kind: remaining.pop(kind + end, None) for kind in TENSORS}
            layers.append(LayerWeights(**found, nonlinearity=nonlinearity))
        if remaining:
            raise ValueError(
                f"unexpected tensor {min(remaining, key=str)!r:.100} among the weights of {len(layers)} layer record(s)"
            )
        return cls(tuple(layers), bidirectional)


def _check_layers(layers: object) -> None:
    """That they are records; what these hold is looked at later."""
    every = layers if isinstance(layers, (tuple, list)) else (layers,)
    wrong = [type(layer).__name__ for layer in every if not isinstance(layer, LayerWeights)]
    if wrong or every is not layers:
        raise TypeError(f"layers must be a tuple of fastlstm.LayerWeights, got {', '.join(wrong) or 'one alone'}")


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        advice = "; fastlstm.from_torch takes tensors" if hasattr(value, "detach") else ""
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(value).__name__}{advice}")


def suffix(index: int, num_directions: int) -> str:
    """PyTorch's name ending for record ``index``: ``_l0``, ``_l0_reverse``, ``_l1``, ..."""
    layer, direction = divmod(index, num_directions)
    return f"_l{layer}" + ("_reverse" if direction else "")


def parameter_shapes(
    input_size: int,
    hidden_size: int,
    num_layers: int,
    *,
    bias: bool,
    bidirectional: bool,
    proj_size: int,
    peephole: bool = False,
    initial: bool = False,
    gates: int = 4,
) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters under PyTorch's names, in PyTorch's order."""
    directions = 2 if bidirectional else 1
    recurrent = proj_size or hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(num_layers * directions):
        end = suffix(index, directions)
        shapes["weight_ih" + end] = (gates * hidden_size, input_size if index < directions else directions * recurrent)
        shapes["weight_hh" + end] = (gates * hidden_size, recurrent)
        if bias:
            shapes["bias_ih" + end] = (gates * hidden_size,)
            shapes["bias_hh" + end] = (gates * hidden_size,)
        if proj_size:
            shapes["weight_hr" + end] = (proj_size, hidden_size)
        if peephole:
            shapes["weight_peephole" + end] = (3 * hidden_size,)
        if initial:
            shapes["h_0" + end] = (recurrent,)
            shapes["c_0" + end] = (hidden_size,)
    return shapes


def check_sizes(input_size: int, hidden_size: int, num_layers: int, proj_size: int) -> tuple[int, int, int, int]:
    """The same as Python's integers, which do not overflow; sizes no network has are refused before memory is asked for."""
    I, H = as_integer("input_size", input_size, 1, MAX_SIZE), as_integer("hidden_size", hidden_size, 1, MAX_SIZE)
    L, P = as_integer("num_layers", num_layers, 1, MAX_LAYERS), as_integer("proj_size", proj_size, 0, MAX_SIZE)
    if P >= H and P:
        raise ValueError(f"proj_size must be smaller than hidden_size {H}, got {P}")
    return I, H, L, P


def described(kind: str, weights: Weights, batch_first: bool = False) -> str:
    """A network of these weights, as it is shown."""
    parts = [str(weights.input_size), str(weights.hidden_size)]
    if weights.num_layers != 1:
        parts.append(f"num_layers={weights.num_layers}")
    if not weights.bias:
        parts.append("bias=False")
    if batch_first:
        parts.append("batch_first=True")
    parts += [f"{flag}=True" for flag in ("bidirectional", "reverse", "flipped") if getattr(weights, flag)]
    if weights.merge_mode != "concat":
        parts.append(f"merge_mode={weights.merge_mode!r}")
    if weights.proj_size:
        parts.append(f"proj_size={weights.proj_size}")
    if weights.nonlinearity not in (None, "tanh"):
        parts.append(f"nonlinearity={weights.nonlinearity!r}")
    if weights.dtype != np.float32:
        parts.append(f"dtype={weights.dtype.name!r}")
    if weights.weight_dtype:
        parts.append(f"weight_dtype={weights.weight_dtype!r}")
    return f"{kind}({', '.join(parts + _special(weights))})"


def _special(weights: Weights) -> list[str]:
    """In words, what ``torch.nn.LSTM`` does not have; of the first layer, the others may differ."""
    first, words = weights.layers[0], []
    if first.weight_peephole is not None:
        words.append("peepholes")
    if first.h_0 is not None:
        words.append("initial state")
    for item in fields(Cell):
        value = getattr(first.cell, item.name)
        if value != getattr(PLAIN, item.name):
            words.append(f"{item.name}={value if isinstance(value, Activation) else repr(value)}")
    if any(layer.cell != first.cell for layer in weights.layers):
        words.append("cells that differ")
    return words
