"""How a cell differs from PyTorch's: activations, coupled gates, clipping. Names alone; the arithmetic is elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["ACTIVATIONS", "PLAIN", "SIGMOID", "TANH", "Activation", "Cell"]

# Each function of x, with its parameters and their defaults as in ONNX. hard_sigmoid covers both of Keras: alpha 0.2 up to
# Keras 2, 1/6 from Keras 3 on.
ACTIVATIONS: dict[str, tuple[float, ...]] = {
    "sigmoid": (),  # 1 / (1 + e^-x)
    "tanh": (),
    "relu": (),  # max(0, x)
    "linear": (),  # x
    "hard_sigmoid": (0.2, 0.5),  # max(0, min(1, alpha x + beta))
    "softsign": (),  # x / (1 + |x|)
    "softplus": (),  # log(1 + e^x)
    "elu": (1.0,),  # x if x >= 0, else alpha (e^x - 1)
    "leaky_relu": (0.01,),  # x if x >= 0, else alpha x
    "thresholded_relu": (1.0,),  # x if x >= alpha, else 0
    "scaled_tanh": (1.0, 1.0),  # alpha tanh(beta x)
    "affine": (1.0, 0.0),  # alpha x + beta
}


@dataclass(frozen=True)
class Activation:
    """An elementwise function: a name of ``ACTIVATIONS`` and its parameters alpha, beta; its defaults if left out."""

    name: str
    parameters: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.name!r:.100}")
        defaults = ACTIVATIONS[self.name]
        given = tuple(float(value) for value in self.parameters)
        if len(given) > len(defaults) or not all(math.isfinite(value) for value in given):
            raise ValueError(f"{self.name} takes at most {len(defaults)} finite parameters, got {self.parameters!r:.100}")
        object.__setattr__(self, "parameters", given + defaults[len(given) :])

    def __str__(self) -> str:
        given = f"({', '.join(f'{value:g}' for value in self.parameters)})"
        return self.name if self.parameters == ACTIVATIONS[self.name] else self.name + given


SIGMOID, TANH = Activation("sigmoid"), Activation("tanh")


@dataclass(frozen=True)
class Cell:
    """One direction's cell::

        i, f, o = gate(clip(W x + R h + b + peephole * c))      o sees the new c, i and f the old one
        g = candidate(clip(W x + R h + b))
        c = clip(f * c + i * g)
        h = o * hidden(c)                                        projected to clip(W_hr h) if there is a projection

    Attributes
    ----------
    gate, candidate, hidden : Activation
        ONNX's f, g and h; Keras' recurrent_activation, activation and activation.
    coupled : None, "forget" or "input"
        "forget": f = 1 - i, f's own weights unused (ONNX input_forget). "input": i = 1 - f (CIFG of TFLite).
    gate_clip : float or None
        Bound of the pre-activations of all gates (ONNX clip).
    cell_clip : float or None
        Bound of the new cell state, before o and h see it (TensorFlow 1, TFLite).
    proj_clip : float or None
        Bound of the projected h. One that is the bound itself passes no gradient, as one that was clipped.
    """

    gate: Activation = SIGMOID
    candidate: Activation = TANH
    hidden: Activation = TANH
    coupled: Literal["forget", "input"] | None = None
    gate_clip: float | None = None
    cell_clip: float | None = None
    proj_clip: float | None = None

    def __post_init__(self) -> None:
        if self.coupled not in (None, "forget", "input"):
            raise ValueError(f"coupled must be None, 'forget' or 'input', got {self.coupled!r:.100}")
        for name in ("gate_clip", "cell_clip", "proj_clip"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, float, np.number)):
                raise TypeError(f"{name} must be a number or None, got {value!r:.100}")
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number or None, got {value!r:.100}")


PLAIN = Cell()  # PyTorch's
