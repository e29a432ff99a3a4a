"""The demo: its numbers, its plot, its times."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TOLERANCE as OF_REFERENCE

import fastlstm
from fastlstm import cli, demo, reference, threads
from fastlstm.demo import rivals


@pytest.fixture(scope="module")
def lstm() -> fastlstm.LSTM:
    return fastlstm.load(demo.FOLDER / "sunspots.pt", name="lstm")


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    return demo.read_data()


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def test_agrees_with_pytorch_and_the_reference(lstm: fastlstm.LSTM, data: dict[str, np.ndarray]) -> None:
    result = demo.forecast(lstm, data)
    start = result.test_start
    assert 0 < result.difference <= demo.TOLERANCE == 3e-6
    output = reference.forward(lstm.weights, data["input"][:, None])[0][:, 0]
    np.testing.assert_allclose(lstm(data["input"])[0], output, rtol=0, atol=OF_REFERENCE["float32"])
    assert np.ptp(data["output"]) > 1  # nothing trivial was compared
    normalised = np.sqrt(result.months_ahead) / 10
    np.testing.assert_allclose(normalised[start:], np.maximum(data["prediction"], 0), rtol=0, atol=2e-5)


def test_the_data(data: dict[str, np.ndarray]) -> None:
    """Monthly means of 1749 to June 2009: those that every table of them gives for the first month, the highest and the last."""
    years, values = data["years"], data["values"]
    assert len(values) == len(years) == (2009 - 1749) * 12 + 6
    assert (values[0], values.max(), values[-1]) == (58.0, 253.8, 2.6)
    assert int(years[values.argmax()]) == 1957
    np.testing.assert_allclose(np.diff(years), 1 / 12)
    np.testing.assert_allclose(data["input"][:, 0], np.sqrt(values) / 10, rtol=1e-6)
    assert years[int(data["test_start"]) - 1] < 1965 < years[int(data["test_start"])]


def test_errors_over_the_test_span(lstm: fastlstm.LSTM, data: dict[str, np.ndarray]) -> None:
    """The errors written out month by month, from the forecasts that were made `lead` months before."""
    result = demo.forecast(lstm, data)
    months = range(result.test_start, len(result.values))
    truth = np.array([result.values[m] for m in months])
    for n, lead in enumerate((1, 12)):
        network = np.array([result.months_ahead[m - lead, lead - 1] for m in months])
        persistence = np.array([result.values[m - lead] for m in months])
        assert result.rmse["this network"][n] == pytest.approx(rmse(network, truth))
        assert result.rmse["persistence"][n] == pytest.approx(rmse(persistence, truth))
        assert result.rmse["this network"][n] < result.rmse["linear autoregression"][n] < result.rmse["persistence"][n]
        np.testing.assert_array_equal(result.made_before(lead)[-len(truth) :], network)


def test_the_forecasts_do_not_know_the_future(lstm: fastlstm.LSTM, data: dict[str, np.ndarray]) -> None:
    cut = int(data["test_start"]) + 100
    changed = {**data, "input": np.concatenate([data["input"][:cut], data["input"][cut:] + 1])}
    before, after = (demo.forecast(lstm, d).months_ahead for d in (data, changed))
    np.testing.assert_array_equal(before[:cut], after[:cut])
    assert (before[cut:] != after[cut:]).any()


def test_the_plot(lstm: fastlstm.LSTM, data: dict[str, np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from fastlstm.demo.plot import BASELINE, DATA, FORECAST, SHADE, draw

    result = demo.forecast(lstm, data)
    path = tmp_path / "plot"  # without an ending: a PNG, under this very name
    draw(result, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with path.open("rb") as file:
        pixels = (imread(file)[..., :3] * 255).round().astype(int)
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 1000
    for color, least in ((DATA, 1000), (FORECAST, 1000), (BASELINE, 500), (SHADE, 100_000)):
        rgb = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
        assert (np.abs(pixels - rgb).max(axis=2) <= 2).sum() > least, color
    draw(dataclasses.replace(result, months_ahead=0 * result.months_ahead), tmp_path / "flat.png")
    assert (tmp_path / "flat.png").read_bytes() != path.read_bytes()  # the forecast is what is drawn
    draw(result, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(ValueError, match="xyz"):
        draw(result, tmp_path / "plot.xyz")


@pytest.mark.parametrize("rival", ["PyTorch", "ONNX Runtime"])
def test_the_rivals_compute_the_same(lstm: fastlstm.LSTM, data: dict[str, np.ndarray], rival: str) -> None:
    """Else their times would mean nothing."""
    x = data["input"][:60]
    contenders, missing = rivals.gather(lstm, x)
    if rival in missing:
        pytest.skip(missing[rival])
    ours, theirs = (next(c for name, c in contenders.items() if name.startswith(n)) for n in ("fastlstm", rival))
    for _ in range(2):  # each call begins anew
        assert ours.steps().tobytes() == ours.sequence().tobytes() == lstm(x)[0].tobytes()
        for output in (theirs.steps(), theirs.sequence()):
            assert output.shape == (60, lstm.hidden_size)
            np.testing.assert_allclose(output, lstm(x)[0], rtol=0, atol=3e-6)


def test_who_is_not_installed_is_named(lstm: fastlstm.LSTM, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "onnx"):
        monkeypatch.setitem(sys.modules, module, None)
    contenders, missing = rivals.gather(lstm, data["input"][:5])
    assert list(contenders) == ["fastlstm"]
    assert "torch" in missing["PyTorch"]
    assert "onnx" in missing["ONNX Runtime"]


def test_times_are_per_step_and_threads_are_given_back(
    lstm: fastlstm.LSTM, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    now = 0.0

    def call(name: str, steps: int, *seconds: float) -> Any:
        """Takes so many seconds, round by round."""
        durations = iter(seconds)

        def run() -> np.ndarray:
            nonlocal now
            calls.append(name)
            now += next(durations)
            return np.zeros((steps, 3))

        return run

    fake = {
        "a": rivals.Contender(call("a1", 5, 99, 10, 90, 20), call("a2", 5, 99, 5, 1, 2)),
        "b": rivals.Contender(call("b1", 2, 99, 8, 8, 8), call("b2", 4, 0, 8, 8, 9)),
    }
    with monkeypatch.context() as fake_clock:
        fake_clock.setattr(demo, "perf_counter", lambda: now)
        times = demo.time_per_step(fake, rounds=3)
    assert calls == ["a1", "a2", "b1", "b2"] * 4  # in turns
    assert times == {"a": (4, 0.4), "b": (4, 2)}  # medians, and a first round that does not count
    monkeypatch.setattr(threads, "_num_threads", 3)
    with rivals.one_thread():
        assert fastlstm.get_num_threads() == 1
        times = demo.time_per_step({"fastlstm": rivals.ours(lstm, data["input"][:50])}, rounds=3)
    assert fastlstm.get_num_threads() == 3
    assert all(t > 0 for t in times["fastlstm"])


def test_what_it_prints(tmp_path: Path) -> None:
    file = io.StringIO()
    assert demo.run(None, rounds=1, file=file)
    lines = file.getvalue().splitlines()
    assert "monthly mean sunspot numbers, 1749 to 2009: 3126 steps" in lines[0]
    assert "LSTM(1, 32, num_layers=2)" in lines[1]
    table = {line[:28].strip(): line[28:].split() for line in lines}
    assert float(table["this network"][1]) < float(table["persistence"][1])
    assert float(table["fastlstm"][0]) > 0
    for name, cells in table.items():
        if name.startswith(("PyTorch", "ONNX")) and cells[0] != "not":
            theirs, ours = float(cells[0]), float(table["fastlstm"][0])
            assert float(cells[2].strip("(x)")) == pytest.approx(theirs / ours, rel=0.1)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rivals, "gather", lambda lstm, x: ({"fastlstm": rivals.ours(lstm, x)}, {}))
    assert cli.main(["demo", "--no-plot"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--plot", "my.png"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"fastlstm-demo.png", "my.png"}
    capsys.readouterr()
    assert cli.main(["demo", "--plot", "my.xyz"]) == 2
    assert cli.main(["demo", "--plot", "missing/my.png"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"fastlstm-demo.png", "my.png"}
    out, err = capsys.readouterr()
    assert out.count("Time per step") == 2  # a picture that cannot be drawn costs nothing else
    assert err.count("\n") == 2
    assert "xyz" in err
    assert "missing" in err
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["demo"]) == 0
    assert "Plot      none, matplotlib is not installed: pip install matplotlib" in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "fastlstm.demo.plot")
    monkeypatch.setattr(demo, "forecast", None)  # no work is done first
    assert cli.main(["demo", "--plot", "my.png"]) == 2
    assert capsys.readouterr() == ("", "fastlstm: error: plots need matplotlib: pip install matplotlib\n")


@pytest.mark.parametrize("wrong", [1e-5, np.nan])
def test_a_difference_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: float) -> None:
    data = demo.read_data()
    data["output"][17, 3] += wrong
    monkeypatch.setattr(demo, "read_data", lambda: data)
    monkeypatch.setattr(rivals, "gather", lambda lstm, x: ({"fastlstm": rivals.ours(lstm, x)}, {}))
    assert cli.main(["demo", "--no-plot"]) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert err.startswith("fastlstm: error: ")
