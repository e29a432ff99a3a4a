"""Every engine on every shape, in one process: pytest bench --benchmark-enable [-k 'stream and torch'] [--threads 1]

Without --benchmark-enable each case runs once, as a check. For a comparison that noise and other engines' threads do not disturb
see compare.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shapes import Shape

from bench.cases import MODES, make_case, select
from bench.engines import ENGINES, USUAL, FastLSTM, Unsupported, call_of, difference, missing_modules, results

pytestmark = pytest.mark.filterwarnings("default")  # other engines' warnings are not our errors

CASES = [pytest.param(mode, shape, id=f"{mode}-{shape}") for mode, shape in select(list(MODES))]


@pytest.mark.parametrize("engine", USUAL)
@pytest.mark.parametrize(("mode", "shape"), CASES)
def test_speed(benchmark: Any, mode: str, shape: Shape, engine: str, threads: int) -> None:
    if missing := missing_modules(engine):
        pytest.skip(f"{', '.join(missing)} not installed")
    benchmark.group = f"{mode} {shape}, {threads} threads"
    case = make_case(mode, shape)
    try:
        network = ENGINES[engine](case, threads)
        call = call_of(network, mode)
    except Unsupported as reason:
        pytest.skip(str(reason))
    ours = FastLSTM(case, threads)
    expected = results(ours, call_of(ours, mode))
    found = difference(results(network, call), expected)
    assert found <= 1, f"{engine} differs by {found:.3g} times the tolerance"
    assert all(np.isfinite(array).all() for array in expected)
    benchmark(call)
