"""The demo's plot: needs matplotlib."""

from __future__ import annotations

import os
from pathlib import Path

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install matplotlib") from error

from fastlstm.demo import LEADS, Forecast

__all__ = ["draw"]

INK, DATA, FORECAST, BASELINE, SHADE = "#333333", "#9aa5b1", "#d1495b", "#30638e", "#fdf3dc"
FIRST_YEAR = 1900  # older cycles would only crowd it


def draw(result: Forecast, path: str | os.PathLike[str], lead: int = 12) -> None:
    """Draw the data with the forecasts made `lead` months before, and below them how far off those were in the test span."""
    years, values, start = result.years, result.values, result.test_start
    ahead = result.made_before(lead)
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(2, 1))

    top.set_title("Monthly sunspot numbers, forecast one year ahead by an LSTM", loc="left", weight="bold", color=INK)
    top.axvspan(years[start], years[-1], color=SHADE, lw=0, label="test span, unseen in training")
    top.plot(years, values, color=DATA, lw=0.9, label="observed")
    top.plot(years[lead:], ahead, color=FORECAST, lw=1.4, label=f"forecast {lead} months before")
    top.set_xlim(FIRST_YEAR, years[-1])
    top.set_ylim(0, 1.15 * values[years >= FIRST_YEAR].max())  # room for the legend
    top.set_ylabel("sunspot number")
    top.legend(loc="upper left", ncols=3, frameon=False, fontsize=9)

    bottom.set_facecolor(SHADE)
    bottom.axhline(0, color=INK, lw=0.8)
    for name, key, guess, color, width in (
        ("same as a year ago", "persistence", values[start - lead : -lead], BASELINE, 0.8),
        ("this network", "this network", ahead[start - lead :], FORECAST, 1.2),
    ):
        label = f"{name}: RMSE {result.rmse[key][LEADS.index(lead)]:.1f}"
        bottom.plot(years[start:], guess - values[start:], color=color, lw=width, label=label)
    bottom.margins(y=0.15)  # room for the legend
    bottom.set_xlim(years[start], years[-1])
    bottom.set_ylabel("forecast − observed")
    bottom.set_xlabel("year")
    bottom.legend(loc="lower left", ncols=2, frameon=False, fontsize=9)

    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    figure.savefig(path, dpi=150, format=Path(path).suffix[1:] or "png")
