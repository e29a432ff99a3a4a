"""A trained network at work: it forecasts sunspot numbers a year ahead, is checked against PyTorch and timed beside its rivals.

The weights (``sunspots.pt``) are as PyTorch saved them; ``examples/train_sunspots.py`` made them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TextIO

import numpy as np

import fastlstm
from fastlstm.arrays import Array
from fastlstm.demo import rivals

__all__ = ["TOLERANCE", "Forecast", "forecast", "run"]

FOLDER = Path(__file__).parent
TOLERANCE = 3e-6  # of the output against PyTorch's: both are float32, and each rounds in its own order
LEADS = (1, 12)  # months ahead


@dataclass(frozen=True, eq=False)
class Forecast:
    """What the network says of the data.

    Attributes
    ----------
    years, values : arrays of float64, shape (T,)
        Middle of each month, and its mean sunspot number.
    test_start : int
        The first month that training has not seen.
    months_ahead : array of float64, shape (T, 12)
        Forecasts made in month t of the months t + 1 to t + 12.
    rmse : dict of str to (float, float)
        Root mean square errors over the test span, 1 and 12 months ahead: of the network and of what it should beat.
    difference : float
        The largest difference between fastlstm's output and the one PyTorch computed when it exported the weights.
    torch_version : str
        The PyTorch that did.
    """

    years: Array
    values: Array
    test_start: int
    months_ahead: Array
    rmse: dict[str, tuple[float, ...]]
    difference: float
    torch_version: str

    def made_before(self, lead: int) -> Array:
        """The forecasts of months ``lead`` to T - 1, each made ``lead`` months before."""
        return np.asarray(self.months_ahead[:-lead, lead - 1])


def read_data() -> dict[str, Array]:
    """The arrays that the training script wrote."""
    with np.load(FOLDER / "sunspots.npz", allow_pickle=False) as archive:
        return dict(archive)


def forecast(lstm: fastlstm.LSTM, data: dict[str, Array]) -> Forecast:
    """Run the network over all months and measure its errors.

    Parameters
    ----------
    lstm : LSTM
        The network, of one input and as many outputs as ``head_weight`` has columns.
    data : dict of str to array
        What :func:`read_data` gives.
    """
    x, values, start = data["input"], data["values"], int(data["test_start"])
    output, _ = lstm(x)
    normalised = x + output @ data["head_weight"].T + data["head_bias"]  # the last month, and what changes from it
    months_ahead = (10 * np.maximum(normalised, 0).astype(np.float64)) ** 2  # the input is sqrt(values) / 10

    def rmse(of: Callable[[int], Array]) -> tuple[float, ...]:
        return tuple(float(np.sqrt(np.mean((of(lead) - values[start:]) ** 2))) for lead in LEADS)

    return Forecast(
        years=data["years"],
        values=values,
        test_start=start,
        months_ahead=months_ahead,
        rmse={
            "this network": rmse(lambda lead: months_ahead[start - lead : -lead, lead - 1]),
            "linear autoregression": tuple(float(error) for error in data["autoregression"]),
            "persistence": rmse(lambda lead: values[start - lead : -lead]),
        },
        difference=float(np.max(np.abs(output[start:] - data["output"]))),
        torch_version=str(data["torch_version"]),
    )


def time_per_step(contenders: dict[str, rivals.Contender], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds per time step, one step at a time and as a whole sequence: medians over rounds in which all take turns."""
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            for call, times in zip((contender.steps, contender.sequence), taken[name], strict=True):
                begin = perf_counter()
                output = call()
                times.append((perf_counter() - begin) / len(output))
    return {name: (median(steps[1:]), median(whole[1:])) for name, (steps, whole) in taken.items()}  # the first round warms up


def run(plot_path: str | os.PathLike[str] | None = "fastlstm-demo.png", *, rounds: int = 15, file: TextIO | None = None) -> bool:
    """Load the network, forecast, compare, time and draw, and print what came of it.

    Parameters
    ----------
    plot_path : path or None
        Where to write the plot, in the format of the name's ending (PNG without one); None for no plot.
    rounds : int
        Of the timing, at least 1.
    file : text file, optional
        Where to print; standard output if left out.

    Returns
    -------
    bool
        Whether the output agrees with PyTorch's to within :data:`TOLERANCE`.

    Raises
    ------
    OSError, ValueError
        If the plot cannot be written, or not in the format that its name asks for; everything else is printed then.
    ImportError
        If there is to be a plot and matplotlib is not installed.
    """

    if plot_path is not None:
        from fastlstm.demo.plot import draw  # which may fail, before the work begins

    def say(line: str = "") -> None:
        print(line, file=file or sys.stdout, flush=True)

    data = read_data()
    lstm = fastlstm.load(FOLDER / "sunspots.pt", name="lstm")
    result = forecast(lstm, data)
    agrees = result.difference <= TOLERANCE

    first, start, last = (int(result.years[index]) for index in (0, result.test_start, -1))
    say(f"Data      monthly mean sunspot numbers, {first} to {last}: {len(result.values)} steps; tested from {start} on")
    say(f"Network   {lstm}, trained on the months before {start}, exported by PyTorch {result.torch_version}")
    verdict = "" if agrees else ": FAILED"
    say(f"Accuracy  largest difference from PyTorch's output {result.difference:.1e}, allowed {TOLERANCE:.0e}{verdict}")
    say()
    say(f"{'Test error (RMSE)':28}{'1 month ahead':>16}{'12 months ahead':>20}")
    for name, errors in result.rmse.items():
        say(f"{name:28}{errors[0]:16.1f}{errors[1]:20.1f}")

    contenders, missing = rivals.gather(lstm, data["input"][result.test_start :])
    say()
    say(f"{'Time per step, one thread':28}{'step by step':>16}{'whole sequence':>20}")
    with rivals.one_thread():
        times = time_per_step(contenders, rounds)
    ours = times["fastlstm"]
    for name, theirs in times.items():
        ratios = ["" if theirs is ours else f" ({t / our:.1f}x)" for t, our in zip(theirs, ours, strict=True)]
        cells = [f"{1e6 * t:.2f} us{ratio}" for t, ratio in zip(theirs, ratios, strict=True)]
        say(f"{name:28}{cells[0]:>16}{cells[1]:>20}")
    for name, reason in missing.items():
        say(f"{name:28}{reason}")
    if plot_path is not None:  # last, for it may fail
        draw(result, plot_path)
        say()
        say(f"Plot      {os.fspath(plot_path)}")
    return agrees
