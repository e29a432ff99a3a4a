"""Two processes train one model, each on half of every batch: ``torchrun --nproc-per-node 2 examples/ddp.py``.

DistributedDataParallel averages the gradients over gloo; each process computes its own with fastlstm, on one thread unless
OMP_NUM_THREADS says otherwise. In the end the first process trains once more, alone on whole batches, and compares. Needs torch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import fastlstm.torch

DATA = Path(fastlstm.__file__).parent / "demo" / "sunspots.npz"
WINDOW, BATCH = 120, 32


class Forecaster(nn.Module):
    """From months up to t, shape (T, B, 1), month t + 1: the last month plus what the LSTM adds."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastlstm.torch.LSTM(1, 24)
        self.head = nn.Linear(24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.head(self.lstm(x)[0])


def train(model: nn.Module, series: np.ndarray, steps: int, rank: int, processes: int) -> tuple[float, float]:
    """The first and the last loss of this process's part of the batches."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(steps):
        starts = rng.integers(0, len(series) - WINDOW, BATCH)[rank::processes]  # every process draws the same
        windows = torch.from_numpy(series[starts + np.arange(WINDOW + 1)[:, None], None])
        loss = nn.functional.mse_loss(model(windows[:-1]), windows[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps (default: %(default)s)")
    args = parser.parse_args()
    with np.load(DATA) as file:
        series = file["input"][: int(file["test_start"]), 0]

    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(rank)  # the first process's parameters are sent to the others
    model = DistributedDataParallel(Forecaster())
    first, last = train(model, series, args.steps, rank, processes)
    print(f"process {rank} of {processes}: loss {first:.5f} at first, {last:.5f} at last\n", end="", flush=True)
    if rank == 0:
        torch.manual_seed(0)
        alone = Forecaster()
        train(alone, series, args.steps, 0, 1)
        pairs = zip(alone.parameters(), model.parameters(), strict=True)
        print(f"largest difference to one process: {max((a - b).abs().max().item() for a, b in pairs):.1e}")
    distributed.destroy_process_group()
    # gloo's threads, which outlive the group, drop their last Python objects a little after the sums are ready, and would abort a
    # process whose interpreter is ending by then.
    time.sleep(0.5)


if __name__ == "__main__":
    main()
