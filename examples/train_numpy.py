"""Training without a framework: the tape gives gradients, Adam is a few lines of NumPy.

One LSTM layer forecasts next month's sunspot number (monthly means of 1749 to 1964; 1965 to 2009 are for testing). A few seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import fastlstm

DATA = Path(fastlstm.__file__).parent / "demo" / "sunspots.npz"
WINDOW, BATCH, HIDDEN = 240, 16, 24
RATE, BETA_1, BETA_2, EPSILON = 5e-3, 0.9, 0.999, 1e-8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps (default: %(default)s)")
    args = parser.parse_args()

    with np.load(DATA) as file:
        series, split = file["input"][:, 0], int(file["test_start"])  # float32: square roots of sunspot numbers, over 10
    rng = np.random.default_rng(0)
    lstm = fastlstm.LSTM(1, HIDDEN, seed=0)
    parameters = {**lstm.state_dict(), "head": np.zeros(HIDDEN, np.float32), "bias": np.zeros((), np.float32)}
    mean = {name: np.zeros_like(p) for name, p in parameters.items()}
    square = {name: np.zeros_like(p) for name, p in parameters.items()}

    for step in range(1, args.steps + 1):
        starts = rng.integers(0, split - WINDOW, BATCH)
        windows = series[starts + np.arange(WINDOW + 1)[:, None]]  # (T + 1, B)
        x, target = windows[:-1, :, None], windows[1:]

        tape = lstm.record(x)
        error = windows[:-1] + tape.output @ parameters["head"] + parameters["bias"] - target
        loss = np.mean(error**2)
        d_forecast = 2 * error / error.size
        gradients = tape.backward(d_forecast[..., None] * parameters["head"], input=False).parameters
        gradients["head"] = np.einsum("tb,tbh->h", d_forecast, tape.output)
        gradients["bias"] = d_forecast.sum()

        for name, g in gradients.items():  # Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015
            mean[name] = BETA_1 * mean[name] + (1 - BETA_1) * g
            square[name] = BETA_2 * square[name] + (1 - BETA_2) * g**2
            rate = RATE * np.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
            parameters[name] = (parameters[name] - rate * mean[name] / (np.sqrt(square[name]) + EPSILON)).astype(np.float32)
        lstm.load_state_dict({name: parameters[name] for name in lstm.state_dict()})
        if step == 1 or step % 50 == 0:
            print(f"step {step:4}  loss {loss:.5f}")

    forecast = series[:-1] + lstm(series[:-1, None])[0] @ parameters["head"] + parameters["bias"]
    for name, guess in (("last month", series[:-1]), ("LSTM", forecast)):
        rmse = np.sqrt(np.mean(((10 * guess[split - 1 :]) ** 2 - (10 * series[split:]) ** 2) ** 2))
        print(f"root mean square error from 1965 on, {name}: {rmse:.2f}")


if __name__ == "__main__":
    main()
