"""How calls would be divided, on larger machines too: a plan depends on sizes and threads alone: nobody needs 64 processors."""

from __future__ import annotations

import pytest

import fastlstm

THREADS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def network(I: int, H: int, L: int = 1, D: int = 1, P: int = 0) -> fastlstm.LSTM:
    return fastlstm.LSTM(I, H, L, bidirectional=D == 2, proj_size=P, seed=0)


@pytest.mark.parametrize("sizes", [(1, 16), (128, 128), (256, 256, 2, 2), (512, 512), (64, 1024), (40, 200, 3, 1, 30)], ids=str)
@pytest.mark.parametrize(("T", "B"), [(1, 1), (100, 1), (50, 4), (50, 64), (20, 1000)])
def test_more_threads_never_look_slower(sizes: tuple[int, ...], T: int, B: int) -> None:
    lstm = network(*sizes)
    plans = [lstm.plan(T, B, threads=n) for n in THREADS]
    for n, plan in zip(THREADS, plans, strict=True):
        assert plan["threads"] == plan["layer_groups"] * plan["directions"] * plan["row_groups"] * plan["unit_groups"] <= n
        assert plan["layer_groups"] <= (lstm.num_layers if lstm.num_directions == 1 else 1)
        assert plan["row_groups"] <= B
        assert plan["unit_groups"] <= lstm.hidden_size
        assert plan == lstm.plan(T, B, threads=n)
    expected = [plan["expected_ns"] for plan in plans]
    assert expected == sorted(expected, reverse=True)


@pytest.mark.parametrize("threads", [2, 16, 64])
def test_small_calls_stay_on_one_thread(threads: int) -> None:
    for sizes, T, B in (((1, 16), 1, 1), ((32, 32), 1, 1), ((16, 16), 50, 1), ((8, 8), 30, 2)):
        assert network(*sizes).plan(T, B, threads=threads)["threads"] == 1, sizes


@pytest.mark.parametrize("threads", [16, 64])
def test_one_long_row_divides_hidden_units(threads: int) -> None:
    """So that each processor keeps its share of R in its own cache."""
    for H in (512, 1024, 2048):
        plan = network(128, H).plan(200, 1, threads=threads)
        assert plan["unit_groups"] >= min(threads, H // 16), H
        assert plan["chunk"] > 8, "and the input's products are taken for many steps at once"


def test_meetings_cost_more_than_they_bring_to_one_short_row() -> None:
    """At H 64 a step takes less than two microseconds: 64 threads would spend it all on meeting."""
    assert 1 < network(64, 64).plan(200, 1, threads=64)["threads"] <= 8


@pytest.mark.parametrize("threads", [16, 64])
def test_many_rows_keep_all_processors_busy(threads: int) -> None:
    for sizes, B in (((256, 256), 256), ((512, 512), 512), ((128, 128), 1024)):
        plan = network(*sizes).plan(50, B, threads=threads)
        assert plan["threads"] > 0.9 * threads, (sizes, B)
        assert plan["row_groups"] >= 16, "rows need not meet at every step"


@pytest.mark.parametrize("threads", [2, 16, 64])
def test_both_directions_run_side_by_side(threads: int) -> None:
    for B in (2, 64) if threads > 2 else (64,):
        assert network(256, 256, 1, 2).plan(100, B, threads=threads)["directions"] == 2


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_small_layers_run_side_by_side(layers: int) -> None:
    """Each a few steps behind the one below; they meet seldom, where threads that divide a layer's units meet at every step."""
    for sizes, T, B in (((64, 64), 200, 1), ((32, 32), 500, 1), ((128, 128), 500, 1), ((64, 64), 100, 2)):
        plan = network(*sizes, layers).plan(T, B, threads=layers)
        assert plan["layer_groups"] == layers, sizes
        assert plan["stride"] * layers < T / 4, "and soon all of them have work"


def test_layers_that_fill_a_cache_divide_hidden_units() -> None:
    assert network(512, 512, 2).plan(200, 1, threads=2)["layer_groups"] == 1
    assert network(64, 64, 2, 2).plan(200, 1, threads=2)["layer_groups"] == 1, "the reverse direction begins at the end"
    assert network(64, 64, 2).plan(1, 1, threads=2)["layer_groups"] == 1, "there is nothing to do at the same time"


def test_a_team_is_worth_its_threads() -> None:
    """By the model, with 16 processors: ten times faster where there is work enough, and not a thread more than helps."""
    lstm = network(512, 512)
    alone, team = (lstm.plan(50, 256, threads=n)["expected_ns"] for n in (1, 16))
    assert 10 < alone / team <= 16.5
