"""The examples run, and what they train learns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from helpers import import_torch, python_environment, required

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: object, **environment: str | None) -> str:
    """What an example prints; it must end well."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=python_environment(**environment), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text)]


def test_adam_in_numpy() -> None:
    output = run("-W", "error", EXAMPLES / "train_numpy.py", "--steps", 150)
    losses, (persistence, network) = numbers(r"loss (\S+)", output), numbers(r"on, .*: (\S+)", output)
    assert len(losses) == 4
    assert losses[-1] < 0.85 * losses[0]
    assert network < 0.95 * persistence


def test_lbfgs_of_scipy() -> None:
    required("scipy.optimize")
    output = run("-W", "error", EXAMPLES / "train_scipy.py", "--iterations", 40)
    losses, (persistence, network) = numbers(r"loss (\S+)", output), numbers(r"on, .*: (\S+)", output)
    assert losses[-1] < 0.9 * losses[0]
    assert network < 0.95 * persistence


def test_help_of_the_training_of_the_demo() -> None:
    """Without the package that has the data."""
    import_torch()
    required("tqdm")
    code = "import runpy, sys; sys.modules['statsmodels'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    assert "--seed SEED" in run("-c", code, EXAMPLES / "train_sunspots.py", "--help")


def test_text_in_torch() -> None:
    import_torch()
    required("tqdm")
    output = run(EXAMPLES / "train_text.py", "--epochs", 2, "--length", 5000, "--threads", 1)
    rows = [[float(cell) for cell in line.split()] for line in output.splitlines()[2:]]
    assert [row[0] for row in rows] == [1, 2]
    for _, theirs, ours, *seconds in rows:
        assert abs(theirs - ours) <= 2e-5
        assert min(seconds) > 0
    assert rows[1][2] < rows[0][2]


def test_two_processes() -> None:
    import_torch()
    output = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, EXAMPLES / "ddp.py", "--steps", 30)
    pairs = re.findall(r"process (\d) of 2: loss (\S+) at first, (\S+) at last", output)
    assert sorted(rank for rank, *_ in pairs) == ["0", "1"]
    assert numbers(r"difference to one process: (\S+)", output)[0] < 1e-4


def test_memory(tmp_path: Path) -> None:
    """Both learn a short gap, and the plain RNN's gradient shrinks."""
    required("matplotlib")
    required("tqdm")
    options = ("--gaps", 3, 24, "--seeds", 1, "--steps", 150, "--hidden", 16, "--output", tmp_path / "memory.png")
    output = run(EXAMPLES / "memory.py", *options)
    assert (tmp_path / "memory.png").stat().st_size > 10_000
    for kind in ("RNN", "LSTM"):
        assert numbers(rf"\n{kind} +(\S+) %", output)[0] > 95
    rnn_h, lstm_h, lstm_c = numbers(r"after step 1: ([^\s,]+)", output)
    assert rnn_h < 1e-2 * min(lstm_h, lstm_c)
