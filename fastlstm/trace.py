"""What happens inside a network at every step, as arrays and as a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastlstm.arrays import Array, as_integer
from fastlstm.cell import PLAIN
from fastlstm.equations import clip, evaluate
from fastlstm.masks import spread
from fastlstm.tape import Tape
from fastlstm.weights import LayerWeights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """Gates and states at every step; made by :meth:`LSTM.trace`.

    Attributes
    ----------
    i, f, g, o : arrays, shape (num_layers, num_directions, T, B, hidden_size)
        The input, forget and output gates and the candidate; without B for one sequence. Each step at its own time, also in the
        backward direction. Zero where there is padding, as all others.
    c : array, shape (num_layers, num_directions, T, B, hidden_size)
        The cell state after each step.
    h : array, shape (num_layers, num_directions, T, B, proj_size or hidden_size)
        What each step puts out.
    """

    i: Array
    f: Array
    g: Array
    o: Array
    c: Array
    h: Array

    def __repr__(self) -> str:
        return f"Trace(gates and c: {self.c.shape}, h: {self.h.shape})"

    @classmethod
    def of(cls, tape: Tape[tuple[Array, Array]]) -> Trace:
        """Read a tape that is not used up."""
        lstm, (T, B), engine = tape._net, tape._sizes, tape._engine
        assert engine is not None, "a tape that is not used up"
        found = {}
        for what in "ifgoch":
            n = lstm.weights.recurrent_size if what == "h" else lstm.hidden_size
            values = np.zeros((len(lstm.weights.layers), T, B, n), lstm.dtype)
            for record in range(len(values)):
                engine.read(record, what, values[record].reshape(-1).view(np.uint8))
            found[what] = values
        for record, layer in enumerate(lstm.weights.layers):
            _activate(layer, {what: values[record] for what, values in found.items()})
        if tape._lengths is not None:
            padding = np.arange(T)[:, None] >= tape._lengths
            for values in found.values():
                values[:, padding] = 0
        if tape._steps is not None:
            for values in found.values():
                for record in values:
                    spread(record, tape._steps)
        shape = lstm.num_layers, lstm.num_directions, T, *(() if tape._single else (B,))
        return cls(**{what: values.reshape(*shape, values.shape[-1]) for what, values in found.items()})

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        layer: int = -1,
        direction: int = 0,
        row: int = 0,
        units: Sequence[int] | None = None,
    ) -> Figure:
        """Draw the gates, the cell state and the output of some units over time; needs matplotlib.

        Parameters
        ----------
        path : str or os.PathLike, optional
            Where to save the picture; its suffix decides on the format.
        layer, direction, row : int
            Which; the last layer and the forward direction by default.
        units : sequence of int, optional
            By default the eight whose cell state varies most.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        TypeError
            If one of them is no integer.
        IndexError
            If there is no such layer, direction, row or unit; the message names the argument.
        ImportError
            If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install matplotlib") from error

        L, D, _, *B, H = self.c.shape
        places = [("layer", layer, L), ("direction", direction, D), ("row", row, *(B or [1]))]
        if units is not None and not isinstance(units, Iterable):
            raise TypeError(f"units must be several integers, got {units!r:.100}")
        places += [(f"units[{index}]", unit, H) for index, unit in enumerate(() if units is None else units)]
        for name, place, count in places:
            if not -count <= as_integer(name, place) < count:
                raise IndexError(f"{name} must be between {-count} and {count - 1}, got {place}")
        series = {name: getattr(self, name)[layer, direction] for name in "ifogch"}
        series = {name: values[:, row] if B else values for name, values in series.items()}
        c = series["c"]
        varied = np.argsort(c.std(axis=0))[::-1] if len(c) else np.arange(0)
        chosen = sorted(varied[:8].tolist()) if units is None else [range(c.shape[1])[unit] for unit in units]
        titles = {
            "i": "input gate i",
            "f": "forget gate f",
            "o": "output gate o",
            "g": "candidate g",
            "c": "cell state c",
            "h": "output h",
        }
        figure = Figure(figsize=(11, 6), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(2, 3, sharex=True).flat, titles.items(), strict=True):
            for unit in chosen:
                if unit < series[name].shape[1]:  # a projection has fewer outputs than units
                    axes.plot(series[name][:, unit], linewidth=1.2, label=f"{unit}")
            if name in "ifo":
                axes.set_ylim(-0.03, 1.03)
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(color="0.92")
            axes.spines[["top", "right"]].set_visible(False)
        if chosen:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, title="unit", loc="outside right center", frameon=False)
        figure.supxlabel("step")
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def _activate(w: LayerWeights, seen: dict[str, Array]) -> None:
    """A variant's tape holds pre-activations; make gates of them, in place."""
    cell = w.cell
    if cell == PLAIN and w.weight_peephole is None:
        return
    for name in "ifgo":
        clipped, _ = clip(seen[name].astype(np.float64), cell.gate_clip)
        seen[name][...], _ = evaluate(cell.candidate if name == "g" else cell.gate, clipped)
    if cell.coupled == "forget":
        seen["f"][...] = 1 - seen["i"]
    elif cell.coupled == "input":
        seen["i"][...] = 1 - seen["f"]
