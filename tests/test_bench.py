"""The benchmarks' own checks: the same numbers from every engine, the limits, the race, the table."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_close, make_case, run_python, settle
from shapes import Shape

import fastlstm
from fastlstm import reference

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from bench import cases, compare, engines, machine, report, weights, worker  # noqa: E402


@pytest.fixture(autouse=True)
def _threads_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastlstm.threads, "_num_threads", 1)  # engines set it


# ---- Engines -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shape", ["t7b5i6h9", "t7b5i6h9l2d2"])
def test_onnx_model_gives_the_references_numbers(shape: str, ragged: bool) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    case = make_case(shape)
    lengths = np.array([7, 1, 4, 6, 2], np.int32) if ragged else None
    model = engines.onnx_model(case.weights, case.shape.T, case.shape.B, ragged)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {"x": case.x, "h_0": case.state[0], "c_0": case.state[1]} | ({"lengths": lengths} if ragged else {})
    output, (h_n, c_n) = reference.forward(case.weights, case.x, case.state, lengths)
    assert_close(tuple(session.run(["output", "h_n", "c_n"], feeds)), (output, h_n, c_n), 3e-6, shape)


SHAPES = ("t6b5i7h10l2", "t6b5i7h10l2d2", "t6b5i7h10l2p3", "t6b2i7h10")
RUNS = [(mode, fitting) for mode in cases.MODES for name in SHAPES if (fitting := cases.as_mode(mode, Shape.parse(name)))]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("mode", "sizes"), RUNS, ids=[f"{mode}-{fitting}" for mode, fitting in RUNS])
@pytest.mark.parametrize("engine", engines.USUAL)
def test_every_engine_gives_the_references_numbers(engine: str, mode: str, sizes: Shape) -> None:
    if missing := engines.missing_modules(engine):
        pytest.skip(f"{', '.join(missing)} not installed")
    case = cases.make_case(mode, sizes)
    training = mode.startswith("train")
    if (sizes.P or training) and engine in ("onnxruntime", "openvino"):
        with pytest.raises(engines.Unsupported, match="does not train" if training else "projection"):
            engines.ENGINES[engine](case, 1)
        return
    network = engines.ENGINES[engine](case, 1)
    given = engines.results(network, engines.call_of(network, mode))
    if training:
        check_training(case, given, f"{engine} {mode} {sizes}")
        return
    state = None if mode == "stream" else case.state
    x = case.x[:4] if mode == "stream" else case.x
    output, (h_n, c_n) = reference.forward(case.weights, x, state, case.lengths if mode == "ragged" else None)
    assert_close(given, (output, h_n, c_n), 3e-6, f"{engine} {mode} {sizes}")


def check_training(case: cases.Case, given: engines.Arrays, what: str) -> None:
    """Outputs and every gradient are the reference's."""
    lengths = case.lengths if case.mode == "train-ragged" else None
    resets = case.resets if case.mode == "train-resets" else None
    output, state = reference.forward(case.weights, case.x, case.state, lengths, resets)
    d_x, d_state, parameters = reference.backward(case.weights, case.x, case.state, case.d_output, None, lengths, resets)
    assert_close(given[:3], (output, *state), 3e-6, what)
    names = ("x", "h_0", "c_0", *parameters)
    for name, a, exact in zip(names, given[3:], (d_x, *d_state, *parameters.values()), strict=True):
        assert a.shape == exact.shape, name
        assert np.abs(a - exact).max() <= 3e-6 * np.abs(exact).max(), f"{what}: the gradient of {name}"


def test_resets_are_inside_the_sequences() -> None:
    """Some rows begin anew, at steps of their own; else the race of them would be that of whole sequences."""
    for shape in cases.shapes_of("train-resets"):
        inside = cases.make_case("train-resets", shape).resets[1:]
        assert 0.5 * cases.RESETS < inside.mean() < 2 * cases.RESETS
        assert not (inside.all(axis=1) & inside.any(axis=1)).any()


@pytest.mark.parametrize("engine", engines.USUAL)
def test_a_stream_goes_on(engine: str) -> None:
    """The hundredth step is right too: buffers that take turns, inputs that come round again."""
    if missing := engines.missing_modules(engine):
        pytest.skip(f"{', '.join(missing)} not installed")
    case = cases.make_case("stream", Shape.parse("t1b3i5h6l2"))
    network = engines.ENGINES[engine](case, 1)
    call = network.stream()
    steps = [network.arrays(call()) for _ in range(100)]
    x = np.resize(case.x, (100, *case.x.shape[1:]))
    output, (h_n, c_n) = reference.forward(case.weights, x)
    assert_close((np.concatenate([step[0] for step in steps]), *steps[-1][1:]), (output, h_n, c_n), 3e-6, engine)


def test_differences_are_seen() -> None:
    good = (np.full((2, 3), 0.5, np.float32), np.ones(3, np.float32), np.full(3, 100, np.float32))
    near, far = (tuple(array + np.float32(error) for array in good) for error in (5e-6, 2e-5))
    assert engines.difference(good, good) == 0
    assert 0.4 < engines.difference(near, good) < 1 < engines.difference(far, good)
    assert engines.difference((*good[:2], good[2] + np.float32(5e-4)), good) < 1, "relative to numbers above 1"
    assert engines.difference((good[0] * np.nan, *good[1:]), good) == math.inf
    assert engines.difference((good[0][:1], *good[1:]), good) == math.inf


# ---- Cases ---------------------------------------------------------------------------------------------------------------------


def test_cases_are_the_same_in_every_process() -> None:
    code = "from bench.cases import *; print(make_case('forward', Shape.parse('t2b2i3h4')).x.sum())"
    done = run_python(f"import sys; sys.path.append(sys.argv[1]); {code}", ROOT)
    assert np.float32(done.stdout) == cases.make_case("forward", Shape.parse("t2b2i3h4")).x.sum()


def test_lengths_hold_half_the_tokens() -> None:
    for shape in cases.shapes_of("ragged"):
        lengths = cases.lengths_of(shape)
        assert (lengths.min(), lengths.max()) == (1, shape.T)
        assert lengths.mean() / shape.T == pytest.approx(0.5, abs=0.05), shape


def test_select() -> None:
    assert all(mode == "step" and shape.T == 1 and shape.D == 1 for mode, shape in cases.select(["step"]))
    assert [shape.name for _, shape in cases.select(["forward"], "kokoro")] == ["t200b1i640h256d2"]
    assert [shape.name for _, shape in cases.select(["forward"], "t3b2i5h7l2p3")] == ["t3b2i5h7l2p3"]
    assert [shape.name for _, shape in cases.select(["step"], "t3b2i5h7l2p3")] == ["t1b2i5h7l2p3"]
    assert cases.select(["stream"], "t3b2i5h7d2") == cases.select(["ragged"], "t3b1i5h7") == [], "they cannot"
    assert cases.select(["train-resets"], "t3b2i5h7d2") == cases.select(["train-ragged"], "t3b1i5h7") == [], "they cannot either"
    assert [shape.name for _, shape in cases.select(["train-resets"])] == ["t128b8i64h256"]
    assert {"t100b32i128h128", "t50b64i256h256", "t50b64i512h512", "t100b1i256h256"} <= {
        shape.name for _, shape in cases.select(["train"])
    }
    assert cases.select(["forward"], "no such use") == []
    for mode, names in cases.QUICK.items():
        assert {shape.name for _, shape in cases.select([mode], quick=True)} == set(names)


# ---- Limits --------------------------------------------------------------------------------------------------------------------

PEAKS = machine.Peaks(
    1e9,
    (
        machine.Level("L1", 1000, 4e9),
        machine.Level("L2", 10_000, 2e9),
        machine.Level("L3", 100_000, 1e9),
        machine.Level("memory", math.inf, 0.5e9),
    ),
)


@pytest.mark.parametrize(
    ("size", "seconds", "level"),
    [
        (400, 100e-9, "L1"),
        (1000, 250e-9, "L1"),
        (3000, 250e-9 + 1000e-9, "L2"),
        (200_000, 250e-9 + 4500e-9 + 90_000e-9 + 200_000e-9, "memory"),
    ],
)
def test_reading_takes_each_byte_from_the_nearest_level_with_room(size: float, seconds: float, level: str) -> None:
    assert machine.reading(size, PEAKS) == (pytest.approx(seconds), level)


def test_limit_of_one_row_is_reading() -> None:
    # W and R are 4 x 8 x 8 float32, 1024 bytes each. First both: 1000 bytes from L1, 1048 from L2. Then R nine times: 1000, 24.
    limit = machine.limit(Shape.parse("t10b1i8h8"), machine.Peaks(1e12, PEAKS.levels))
    first, again = 1000 / 4e9 + 1048 / 2e9, 1000 / 4e9 + 24 / 2e9
    assert limit == machine.Limit(pytest.approx(first + 9 * again), "L2")


def test_limit_of_many_rows_is_arithmetic() -> None:
    assert machine.limit(Shape.parse("t10b50i8h8"), PEAKS) == machine.Limit(pytest.approx(2 * 10 * 50 * 512 / 1e9), "FMA")


def test_limit_counts_layers_directions_and_projection() -> None:
    # Per direction and layer R is 4 x 4 x 2, the projection 2 x 4: 160 bytes. W is 4 x 4 x 3 in the first layer, then 4 x 4 x 4.
    shape = Shape.parse("t3b1i3h4l2d2p2")
    parameters = 2 * (48 + 40) + 2 * (64 + 40)
    assert shape.parameters == parameters
    slow = machine.Peaks(1e15, (machine.Level("memory", math.inf, 1e9),))
    assert machine.limit(shape, slow).seconds == pytest.approx((4 * parameters + 2 * 4 * 160) / 1e9)


def test_limit_of_lengths_counts_tokens_and_the_longest_row() -> None:
    shape = Shape.parse("t10b50i8h8")
    lengths = np.full(50, 4)
    assert machine.limit(shape, PEAKS, lengths).seconds == pytest.approx(0.4 * machine.limit(shape, PEAKS).seconds)
    one = Shape.parse("t10b1i8h8")
    assert machine.limit(one, PEAKS, np.array([3])).seconds == machine.limit(one.at_most(3, 1), PEAKS).seconds


def test_limit_of_training() -> None:
    """Three products for one; the weights once forward, once back."""
    many, one = Shape.parse("t10b50i8h8"), Shape.parse("t10b1i8h8")
    slow, fast = PEAKS, machine.Peaks(1e12, PEAKS.levels)
    assert machine.limit(many, slow, training=True).seconds == pytest.approx(3 * machine.limit(many, slow).seconds)
    assert machine.limit(one, fast, training=True).seconds == pytest.approx(2 * machine.limit(one, fast).seconds)
    lengths = np.full(50, 4)
    assert machine.limit(many, slow, lengths, True).seconds == pytest.approx(3 * machine.limit(many, slow, lengths).seconds)


def test_measured_peaks() -> None:
    try:
        machine.peak_library()
    except RuntimeError as error:
        pytest.skip(str(error))
    _, L2, L3 = machine.cache_sizes()
    assert machine.peak_fma(2, 0.01) > 1e8
    # A core's L1 is several times as fast as memory: unless loops were left out, or blocks lie elsewhere.
    settle(lambda: machine.peak_read(1, 4 * max(L2, L3), 0.01) / machine.peak_read(1, 8192, 0.01), 0.7, "memory as fast as L1")
    assert set(machine.measurements(2)) == {"FMA", *machine.LEVELS}


# ---- The race ------------------------------------------------------------------------------------------------------------------


class FakeWorker:
    """Answers as a worker does: with a result, and with times in turn."""

    def __init__(self, engine: str, result: float, times: list[float], log: list[str]) -> None:
        self.engine, self.result, self.times, self.log = engine, result, times, log

    def ask(self, question: str, *arguments: Any) -> Any:
        self.log.append(f"{self.engine} {question}")
        if question == "make":
            return {"build": 1.0, "first": 2.0, "results": (np.full(3, self.result),) * 3}
        return self.times.pop(0) if question == "time" else 1 << 20

    def settle(self) -> bool:
        self.log.append(f"{self.engine} settle")
        return True


def test_race_takes_turns_and_leaves_out_wrong_results() -> None:
    log: list[str] = []
    fakes: Any = [
        FakeWorker("fastlstm", 1.0, [2.0, 9.0, 1.0], log),
        FakeWorker("torch", 1.0, [8.0, 6.0, 7.0], log),
        FakeWorker("openvino", 1.1, [], log),
    ]
    row = compare.race("forward", Shape.parse("t2b2i3h4"), fakes, 1, 3, {})
    found = row["engines"]
    assert (found["fastlstm"]["seconds"], found["torch"]["seconds"]) == (2.0, 7.0)
    assert "seconds" not in found["openvino"]
    assert "differ" in found["openvino"]["wrong"]
    assert [entry for entry in log if entry.startswith("openvino")] == ["openvino make", "openvino settle", "openvino drop"]
    turns = [entry.split()[0] for entry in log if entry.endswith("time")]
    assert [sorted(turns[i : i + 2]) for i in (0, 2, 4)] == [["fastlstm", "torch"]] * 3, "each once in every round"
    assert all(after.endswith("settle") for at, after in itertools.pairwise(log) if at.endswith("time"))
    row = compare.complete(row, PEAKS)
    assert (row["best_rival"], row["ratio"]) == ("torch", 3.5)
    assert found["torch"]["fraction"] == pytest.approx(row["limit"] / 7)


def test_turn_is_the_time_of_one_call() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    assert 0 < worker.turn(call, 0.1) < 1e-4
    assert calls > 100


def test_a_worker_that_dies_is_an_error() -> None:
    running = worker.Worker("fastlstm", 1)
    try:
        with pytest.raises(RuntimeError, match="AttributeError"):
            running.ask("no_such_question")
        before = worker.processor_seconds(running._process.pid)
        made = running.ask("make", "forward", "t50b8i32h32")
        assert made["results"][0].shape == (50, 8, 32)
        if sys.platform == "linux":
            assert worker.processor_seconds(running._process.pid) > before > 0
        running._process.kill()
        with pytest.raises(RuntimeError, match="fastlstm: the worker died"):
            running.ask("time", 0.01)
    finally:
        running.stop()


def test_compare_from_the_command_line(tmp_path: Path) -> None:
    names = {kind: tmp_path / f"found.{kind}" for kind in ("json", "markdown")}
    code = "import sys; sys.path.append(sys.argv.pop(1)); from bench.compare import main; sys.exit(main())"
    options = ["--engines", "fastlstm", "--shapes", "t5b3i6h8l2", "--rounds", 2, "--threads", 1]
    done = run_python(code, ROOT, *options, *(part for kind, name in names.items() for part in (f"--{kind}", name)))
    record = json.loads(names["json"].read_text())
    assert [row["mode"] for row in record["rows"]] == list(cases.MODES)
    for row in record["rows"]:
        result = row["engines"]["fastlstm"]
        assert len(result["turns"]) == 2
        assert 0 < result["seconds"] < 1
        assert result["first"] > 0
        assert "ratio" not in row, "there is no rival"
    assert names["markdown"].read_text() == done.stdout
    assert "t5b3i6h8l2" in done.stdout


# ---- The report ----------------------------------------------------------------------------------------------------------------


def record() -> dict[str, Any]:
    """A race of two shapes, whose numbers are easy to check."""

    def result(seconds: float) -> dict[str, float]:
        return {"seconds": seconds, "first": 2 * seconds, "memory": 3 << 20, "fraction": 0.4}

    first = {"fastlstm": result(1e-3), "torch": result(4e-3), "openvino": result(8e-3)}
    second = {"fastlstm": result(2e-6), "torch": result(2e-6), "openvino": {"skipped": "no such thing"}}
    rows = [
        {"shape": "t9b2i3h4", "reason": "a use, in detail", "engines": first, "best_rival": "torch", "ratio": 4.0, "bound": "L2"},
        {"shape": "t9b2i3h4p2", "reason": "another", "engines": second, "best_rival": "torch", "ratio": 1.0, "bound": "FMA"},
    ]
    about = {
        "cpu": "a CPU",
        "cores": 2,
        "isa": "avx2",
        "system": "Linux",
        "python": "3.12",
        "versions": {"torch": "2"},
        "load": 0.1,
        "command": "c",
    }
    common = {"mode": "forward", "threads": 2, "limit": 1e-6}
    peaks = {"2": {"FMA": 340.0, "L1": 590.0, "L2": 265.0, "L3": 50.0, "memory": 25.0}}
    return {"machine": about, "rounds": 3, "peaks": peaks, "rows": [common | row for row in rows]}


def test_smaller_weights_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    weights.main(["--rounds", "1", "--threads", "1", "--shapes", "t1b2i5h4", "t3b2i5h4d2", "t2b1i5h9p3"])
    _, head, _, *lines = capsys.readouterr().out.splitlines()
    assert head == "| shape | float32 | float16 | bfloat16 | int8 |"
    assert [line.split("`")[1] for line in lines] == ["t1b2i5h4", "t3b2i5h4d2", "t2b1i5h9p3"]
    for line in lines:
        assert all(float(ratio) > 0 for ratio in line.split("|")[3:6])


def test_markdown() -> None:
    found = record()
    text = report.markdown(found)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0].count("|") == table[1].count("|") == table[2].count("|") == table[-1].count("|")
    assert table[0].startswith("| use | shape | fastlstm | PyTorch | OpenVINO | best / fastlstm |")
    numbers = "1.00 ms | 4.00 ms | 8.00 ms | **4.00** | 40% L2 | 2.00 ms; 8.00 ms | 3.0 MiB; 3.0 MiB"
    assert table[2] == f"| a use, in detail | `t9b2i3h4` | {numbers} |"
    assert "| 2.00 µs | 2.00 µs | – | **1.00** | 40% FMA |" in table[3]
    assert "| geometric mean |  |  | 2.00 | 8.00 | **2.00** |" in table[4]
    assert "–: OpenVINO: no such thing." in text
    assert "Measured with 2 threads: 340 GFLOP/s; reading, in GB/s: L1 590, L2 265, L3 50, memory 25." in text
    assert "busy" not in text
    found["machine"]["load"] = 3
    assert "**The machine was busy: load average 3 before the start.**" in report.markdown(found)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4e-6, "3.40 µs"), (27.46e-6, "27.5 µs"), (275e-6, "275 µs"), (999.7e-6, "1.00 ms"), (0.0999, "99.9 ms"), (62, "62.0 s")],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_chart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.chart(record(), tmp_path / "chart.svg")
    drawn = (tmp_path / "chart.svg").read_text()
    assert "a use  t9b2i3h4" in drawn
    assert "geometric mean 2.00" in drawn
