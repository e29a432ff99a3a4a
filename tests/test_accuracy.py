"""How near float32 comes to exact arithmetic, in easy and in hard conditions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers import Case, make_weights
from shapes import Shape

from fastlstm.weights import Weights

SHAPES = ("t100b4i128h256", "t2000b1i64h64")
SHUT = -10.0  # a gate of 4.5e-5
OPEN = 30.0  # a gate of 1 - 1e-13: in float32 1


def draw(name: str, seed: int, gates: dict[str, float] | None = None, scale: float = 1) -> Case:
    """Uniform weights of scale 1/sqrt(H), normal inputs times ``scale``, small states; the biases of some gates given."""
    shape = Shape.parse(name)
    rng = np.random.default_rng(seed)
    tensors = dict(make_weights(shape, "float32", rng).named_tensors())
    for gate, bias in (gates or {}).items():
        n = "ifgo".index(gate)
        tensors["bias_ih_l0"][n * shape.H : (n + 1) * shape.H] = bias
        tensors["bias_hh_l0"][n * shape.H : (n + 1) * shape.H] = 0
    x = np.float32(scale) * rng.standard_normal((shape.T, shape.B, shape.I)).astype(np.float32)
    h, c = (rng.uniform(-0.5, 0.5, (1, shape.B, shape.H)).astype(np.float32) for _ in range(2))
    return Case(shape, Weights.from_named_tensors(tensors), x, (h, c))


def check(make: Callable[[int], Case], bound: float, *, relative: bool = False, of: tuple[int, ...] = (0,)) -> None:
    """Of five draws the middle one within the bound, and all within 1.5 times the bound: the worst of many elements varies so.

    Errors are the largest of the output (0) or the final cell state (2); relative ones in terms of the largest exact number.
    """
    cases = [make(seed) for seed in range(5)]
    results = [(case.run(), case.expected()) for case in cases]
    for n in of:
        errors = []
        for given, exact in results:
            errors.append(float(np.abs(given[n] - exact[n]).max() / (np.abs(exact[n]).max() if relative else 1)))
        text = f"{('output', 'h_n', 'c_n')[n]}: measured {', '.join(f'{e:.3g}' for e in errors)}; bound {bound:.3g}"
        assert sorted(errors)[2] <= bound, text
        assert max(errors) <= 1.5 * bound, text


@pytest.mark.parametrize("name", SHAPES)
def test_usual_numbers(name: str) -> None:
    check(lambda seed: draw(name, seed), 2.5e-7)


@pytest.mark.parametrize("name", SHAPES)
def test_inputs_times_100(name: str) -> None:
    """Terms near 100 are rounded to some 1e-5, and some of their sums are small."""
    check(lambda seed: draw(name, seed, scale=100), 1.5e-5)


@pytest.mark.parametrize("name", ["t100b4i128h256", "t100b1i64h64"])
def test_forget_gates_open(name: str) -> None:
    """The cell adds up 100 steps and forgets nothing."""
    check(lambda seed: draw(name, seed, {"f": OPEN}), 3e-6, relative=True, of=(2,))


@pytest.mark.parametrize("gates", ["f", "ifo"])
@pytest.mark.parametrize("name", ["t100b4i128h256", "t100b1i64h64"])
def test_gates_shut(name: str, gates: str) -> None:
    """Forget gates alone, or all: then everything is tiny, and as exact in proportion."""
    check(lambda seed: draw(name, seed, dict.fromkeys(gates, SHUT)), 1e-6, relative=True, of=(0, 2))
