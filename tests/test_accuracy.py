"""How near float32 comes to exact arithmetic, in easy and in hard conditions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from helpers import OPEN, SHUT, Case, draw

SHAPES = ("t100b4i128h256", "t2000b1i64h64")


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
