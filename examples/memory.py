"""Where the LSTM comes from: a plain RNN and an LSTM learn to carry one bit over a gap.

The first step shows a bit, +1 or -1, beside a mark; random bits without a mark follow. After the last of them the network is
asked for the first one. To learn it, gradients must reach back over the whole gap. In a plain RNN they shrink with every step
[1]_ [2]_; in an LSTM they go along the cell state c, which only the forget gate shrinks [3]_ [4]_. Both begin from PyTorch's
initialisation, but that the LSTM's forget gates begin open (--forget-bias): the first LSTM [3]_ had none, as if f were 1.

The picture shows how well both answer for each gap; the gradients that reach step t in the untrained networks; and the gates
and the cell state of a trained LSTM, in a unit that carries the bit. Needs matplotlib and tqdm; takes a minute on two cores.

References
----------
.. [1] S. Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", diploma thesis, TU Munich, 1991.
.. [2] Y. Bengio, P. Simard, P. Frasconi, "Learning Long-Term Dependencies with Gradient Descent Is Difficult", IEEE
   Transactions on Neural Networks 5(2), 1994.
.. [3] S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
.. [4] F. Gers, J. Schmidhuber, F. Cummins, "Learning to Forget", Neural Computation 12(10), 2000.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from tqdm import tqdm

import fastlstm

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Named = dict[str, np.ndarray]

KINDS = ("RNN", "LSTM")
COLOURS = {"RNN": "#c2571a", "LSTM": "#1f5fa8"}
BATCH, TESTS = 32, 1000
RATE, BETA_1, BETA_2, EPSILON, CLIP = 1e-3, 0.9, 0.999, 1e-8, 1.0


def draw(rng: np.random.Generator, gap: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (gap + 1, rows, 2), bits beside the mark of the first, and that first bit (rows,)."""
    x = np.zeros((gap + 1, rows, 2), np.float32)
    x[:, :, 0] = rng.choice([-1, 1], (gap + 1, rows))
    x[0, :, 1] = 1
    return x, x[0, :, 0].copy()


class Model:
    """A recurrent layer, and a logit from its last h."""

    def __init__(self, kind: str, hidden: int, forget_bias: float, seed: int, dtype: str = "float32") -> None:
        self.network: Any = getattr(fastlstm, kind)(2, hidden, dtype=dtype, seed=seed)
        weights: Named = self.network.state_dict()
        if kind == "LSTM":
            weights["bias_ih_l0"][hidden : 2 * hidden] += forget_bias  # gates i, f, g, o
            self.network.load_state_dict(weights)
        head = np.random.default_rng(seed).uniform(-1, 1, hidden) / np.sqrt(hidden)
        self.parameters: Named = {**weights, "head": head.astype(dtype), "bias": np.zeros((), dtype)}
        self.mean = {name: np.zeros_like(p) for name, p in self.parameters.items()}
        self.square = {name: np.zeros_like(p) for name, p in self.parameters.items()}
        self.steps = 0

    def final(self, state: Any) -> np.ndarray:
        """The last h: of the LSTM's pair, or what the RNN returns."""
        h, *_ = state if isinstance(state, tuple) else (state,)
        return np.asarray(h)[-1]

    def slope(self, h: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the loss, the mean of log(1 + exp(-bit logit)): with regard to the logits, and to h_n as the network has it."""
        logits = h @ self.parameters["head"] + self.parameters["bias"]
        d_logits = -bits / (1 + np.exp(bits * logits)) / len(bits)
        return d_logits, (d_logits[:, None] * self.parameters["head"])[None].astype(h.dtype)

    def back(self, tape: Any, d_h: np.ndarray) -> Any:
        return tape.backward(None, (d_h, None) if isinstance(tape.state, tuple) else d_h, input=False)

    def learn(self, x: np.ndarray, bits: np.ndarray) -> None:
        """One step of Adam, on gradients clipped to a norm of 1."""
        tape = self.network.record(x)
        h = self.final(tape.state)
        d_logits, d_h = self.slope(h, bits)
        gradients = self.back(tape, d_h).parameters | {"head": d_logits @ h, "bias": d_logits.sum()}
        norm = np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        self.steps += 1
        rate = RATE * np.sqrt(1 - BETA_2**self.steps) / (1 - BETA_1**self.steps)
        for name, gradient in gradients.items():  # Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015
            g = gradient * min(1.0, CLIP / (norm + 1e-6))
            self.mean[name] = BETA_1 * self.mean[name] + (1 - BETA_1) * g
            self.square[name] = BETA_2 * self.square[name] + (1 - BETA_2) * g**2
            step = rate * self.mean[name] / (np.sqrt(self.square[name]) + EPSILON)
            self.parameters[name] = (self.parameters[name] - step).astype(np.float32)
        self.network.load_state_dict({name: self.parameters[name] for name in self.network.state_dict()})

    def success(self, x: np.ndarray, bits: np.ndarray) -> float:
        """Share of right answers."""
        logits = self.final(self.network(x)[1]) @ self.parameters["head"] + self.parameters["bias"]
        return float(np.mean((logits > 0) == (bits > 0)))

    def reach(self, x: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Norms of dL/dh_t, and for the LSTM of dL/dc_t, for each t: the gradients of the state from which the rest of the
        sequence begins. (A sequence cut anywhere goes on with the same bits.)"""
        x, states = x.astype(self.network.dtype), [None]
        for x_t in x:
            states.append(self.network(x_t[None], states[-1])[1])
        _, d_h = self.slope(self.final(states[-1]), bits)
        norms = []
        for t in range(1, len(x)):
            d_state = self.back(self.network.record(x[t:], states[t]), d_h).state
            norms.append([np.sqrt((d**2).sum()) for d in (d_state if isinstance(d_state, tuple) else (d_state,))])
        return np.array(norms) / np.sqrt((d_h**2).sum())


def plot(
    path: Path, gaps: list[int], success: dict[str, np.ndarray], reach: dict[str, np.ndarray], lstm: Model, gap: int
) -> None:
    """Three panels, the third of two parts."""
    x, bits = draw(np.random.default_rng(7), gap, 64)
    trace = lstm.network.trace(x)
    c = trace.c[0, 0]
    sides = c[:, bits > 0], c[:, bits < 0]
    apart = np.abs(sides[0].mean(axis=1) - sides[1].mean(axis=1)) / (sides[0].std(axis=1) + sides[1].std(axis=1) + 0.1)
    unit = int(np.argmax(apart.mean(axis=0)))  # where the two bits' cell states are farthest apart
    one, other = int(np.argmax(bits > 0)), int(np.argmax(bits < 0))

    plt.rcParams.update({"font.size": 9, "axes.grid": True, "grid.color": "0.92", "axes.spines.top": False})
    plt.rcParams.update({"axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 10, "legend.frameon": False})
    figure = plt.figure(figsize=(13, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 1.15))

    axes = figure.add_subplot(grid[:, 0])
    for kind, found in success.items():
        axes.plot(gaps, found.mean(axis=1), color=COLOURS[kind], label=kind)
        axes.plot(gaps, found, "o", color=COLOURS[kind], markersize=4, alpha=0.5)
    axes.axhline(0.5, color="0.5", linestyle=":", label="guessing")
    axes.set(xscale="log", ylim=(0.4, 1.03), xlabel="gap (steps)", title="Right answers: mean and each seed")
    axes.set_xticks(gaps, [str(gap) for gap in gaps])
    axes.minorticks_off()
    axes.legend(loc="center left")

    axes = figure.add_subplot(grid[:, 1])
    for kind, norms in reach.items():
        axes.plot(range(1, len(norms) + 1), norms[:, 0], color=COLOURS[kind], label=f"{kind}: dL/dh")
        if norms.shape[1] > 1:
            axes.plot(range(1, len(norms) + 1), norms[:, 1], "--", color=COLOURS[kind], label=f"{kind}: dL/dc")
    axes.set(
        yscale="log",
        xlabel="step t",
        title="Gradients that reach step t, before training",
    )
    axes.legend()

    top = figure.add_subplot(grid[0, 2])
    for gate, name in ((trace.f, "forget f"), (trace.i, "input i"), (trace.o, "output o")):
        top.plot(gate[0, 0][:, one, unit], linewidth=1.2, label=name)
    top.set(ylim=(-0.03, 1.4), yticks=(0, 0.5, 1), title=f"A unit that carries the bit, trained on gap {gap}: its gates")
    top.tick_params(labelbottom=False)
    top.legend(ncols=3, loc="upper center", fontsize=8)
    bottom = figure.add_subplot(grid[1, 2], sharex=top)
    for row, style in ((one, "-"), (other, "--")):
        bottom.plot(c[:, row, unit], style, color=COLOURS["LSTM"], label=f"bit {int(bits[row]):+d}")
    bottom.set(xlabel="step t", title="its cell state c")
    bottom.margins(y=0.25)
    bottom.legend(ncols=2, loc="best", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gaps", type=int, nargs="+", default=[5, 10, 20, 40, 80, 160], metavar="STEPS", help="(default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind for each gap (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps for each (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=24, help="hidden units (default: %(default)s)")
    parser.add_argument("--forget-bias", type=float, default=5.0, help="added to the forget gates' bias (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("memory.png"), help="the picture (default: %(default)s)")
    args = parser.parse_args()
    gaps = sorted(args.gaps)
    if gaps[0] < 1 or min(args.seeds, args.hidden) < 1 or args.steps < 0:
        parser.error("gaps, seeds and hidden units must be at least 1")

    success = {kind: np.zeros((len(gaps), args.seeds)) for kind in KINDS}
    reach = {}
    best: tuple[float, int, Model | None] = (0.0, 0, None)  # the LSTM that succeeds over the longest gap
    for kind in KINDS:
        fresh = [Model(kind, args.hidden, args.forget_bias, seed, "float64") for seed in range(args.seeds)]
        sequence = draw(np.random.default_rng(3), min(gaps[-1], 100), 64)
        reach[kind] = np.exp(np.mean([np.log(model.reach(*sequence) + 1e-300) for model in fresh], axis=0))
    jobs = [(kind, n, seed) for n in range(len(gaps)) for kind in KINDS for seed in range(args.seeds)]
    with tqdm(total=args.steps * sum(gaps[n] + 1 for _, n, _ in jobs), unit="step", unit_scale=True) as progress:
        for kind, n, seed in jobs:
            gap, rng = gaps[n], np.random.default_rng([seed, gaps[n]])
            model = Model(kind, args.hidden, args.forget_bias, seed)
            progress.set_postfix_str(f"{kind}, gap {gap}, seed {seed}")
            for _ in range(args.steps):
                model.learn(*draw(rng, gap, BATCH))
                progress.update(gap + 1)
            success[kind][n, seed] = model.success(*draw(np.random.default_rng(99), gap, TESTS))
            if kind == "LSTM" and success[kind][n, seed] >= min(best[0], 0.98):
                best = success[kind][n, seed], gap, model

    print("right answers   " + "".join(f"  gap {gap:<4}" for gap in gaps))
    for kind, found in success.items():
        print(f"{kind:16}" + "".join(f"  {100 * mean:5.1f} % " for mean in found.mean(axis=1)))
    for kind, norms in reach.items():
        names = ("dL/dh", "dL/dc")[: norms.shape[1]]
        print(
            f"{kind}, untrained: " + ", ".join(f"{name} after step 1: {v:.1e}" for name, v in zip(names, norms[0], strict=True))
        )
    assert best[2] is not None
    plot(args.output, gaps, success, reach, best[2], best[1])
    print(f"picture: {args.output}")


if __name__ == "__main__":
    main()
