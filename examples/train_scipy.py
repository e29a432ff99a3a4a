"""Training with SciPy: one vector holds all parameters, and L-BFGS finds its way by the gradients of the tape. A few seconds.

L-BFGS wants exact gradients of the whole sum, not of samples: the series is cut into windows that all count at every step, in
float64. The same bits every time, so the line search never meets noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

import fastlstm

DATA = Path(fastlstm.__file__).parent / "demo" / "sunspots.npz"
WINDOW, HIDDEN = 240, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=60, help="of L-BFGS (default: %(default)s)")
    args = parser.parse_args()

    with np.load(DATA) as file:
        series, split = file["input"][:, 0].astype(np.float64), int(file["test_start"])
    starts = np.arange(0, split - WINDOW, WINDOW // 2)
    windows = series[starts + np.arange(WINDOW + 1)[:, None]]  # (T + 1, B)
    lstm = fastlstm.LSTM(1, HIDDEN, dtype="float64", seed=0)
    shapes = {name: p.shape for name, p in lstm.state_dict().items()} | {"head": (HIDDEN,), "bias": ()}

    def unflatten(vector: np.ndarray) -> dict[str, np.ndarray]:
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        parts = np.split(vector, ends[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def flatten(arrays: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(arrays[name]) for name in shapes])

    def loss_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = unflatten(vector)
        head, bias = parameters.pop("head"), parameters.pop("bias")
        lstm.load_state_dict(parameters)
        tape = lstm.record(windows[:-1, :, None])
        error = windows[:-1] + tape.output @ head + bias - windows[1:]
        d_forecast = 2 * error / error.size
        gradients = tape.backward(d_forecast[..., None] * head, input=False).parameters
        gradients["head"] = np.einsum("tb,tbh->h", d_forecast, tape.output)
        gradients["bias"] = d_forecast.sum()
        return float(np.mean(error**2)), flatten(gradients)

    begin = flatten({**lstm.state_dict(), "head": np.zeros(HIDDEN), "bias": np.zeros(())})
    print(f"loss {loss_and_gradient(begin)[0]:.6f} at the beginning")
    result = minimize(loss_and_gradient, begin, jac=True, method="L-BFGS-B", options={"maxiter": args.iterations})
    print(f"loss {result.fun:.6f} after {result.nit} iterations, {result.nfev} gradients")

    parameters = unflatten(result.x)
    head, bias = parameters.pop("head"), parameters.pop("bias")
    lstm.load_state_dict(parameters)
    forecast = series[:-1] + lstm(series[:-1, None])[0] @ head + bias
    for name, guess in (("last month", series[:-1]), ("LSTM", forecast)):
        rmse = np.sqrt(np.mean(((10 * guess[split - 1 :]) ** 2 - (10 * series[split:]) ** 2) ** 2))
        print(f"root mean square error from 1965 on, {name}: {rmse:.2f}")


if __name__ == "__main__":
    main()
