"""The command line, in this process and once in its own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import python_environment, run_python
from safetensors.numpy import save_file

import fastlstm
from fastlstm import cli
from fastlstm.config import show_config

GOLDEN = Path(__file__).parent / "golden"
COMMAND = [sys.executable, "-W", "error", "-m", "fastlstm"]
I, H = 5, 7


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that the arguments can be plain names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(name: str = "model.safetensors", **options: Any) -> fastlstm.LSTM:
    """A network, also saved under `name`."""
    lstm = fastlstm.LSTM(I, H, **{"num_layers": 2, "seed": 1, **options})
    lstm.save(name)
    return lstm


def inputs(*shape: int, name: str = "x.npy", dtype: str = "float32") -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    np.save(name, x)
    return x


def run(*arguments: str, model: str = "model.safetensors") -> int:
    return cli.main(["run", model, "x.npy", "-o", "y.npy", *arguments])


def refused(capsys: pytest.CaptureFixture[str], status: int, *parts: str, files: set[str]) -> None:
    """Status 2, one line that holds all `parts`, and no other files than those given."""
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.startswith("fastlstm: error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert set(os.listdir()) == files


# ---- run: the same bytes as a call ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 7, 29, 30, 1000])
@pytest.mark.parametrize("options", [{}, {"proj_size": 3, "dtype": "float64"}], ids=["plain", "projected-float64"])
def test_chunks_do_not_change_a_byte(folder: Path, chunk: int | None, options: dict[str, Any]) -> None:
    lstm, x = make(**options), inputs(30, 3, I, dtype=options.get("dtype", "float32"))
    expected, (h, c) = lstm(x)
    assert run("--state-out", "state.npz", "--threads", "2", *([] if chunk is None else ["--chunk", str(chunk)])) == 0
    y = np.load("y.npy", allow_pickle=False)
    assert (y.dtype, y.shape, y.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    with np.load("state.npz", allow_pickle=False) as state:
        assert (state["h"].tobytes(), state["c"].tobytes()) == (h.tobytes(), c.tobytes())
    assert set(os.listdir()) == {"model.safetensors", "x.npy", "y.npy", "state.npz"}


def test_chunks_of_the_default_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps as fit the memory, at least one."""
    lstm, x = make(), inputs(30, 3, I)
    lengths = []
    call = fastlstm.LSTM.__call__
    monkeypatch.setattr(fastlstm.LSTM, "__call__", lambda self, x, *a, **k: lengths.append(len(x)) or call(self, x, *a, **k))
    for nbytes, steps in ((7 * 3 * (I + H) * 4, 7), (1, 1), (1 << 20, 30)):
        monkeypatch.setattr(cli, "CHUNK_BYTES", nbytes)
        lengths.clear()
        assert run() == 0
        assert set(lengths[:-1]) <= {steps}
        assert (lengths[0], sum(lengths)) == (steps, 30)
    assert np.load("y.npy").tobytes() == call(lstm, x)[0].tobytes()


def test_the_state_goes_on_where_it_was(folder: Path) -> None:
    lstm, x = make(), inputs(30, 3, I)
    expected = lstm(x)[0]
    for part, arguments in ((x[:11], []), (x[11:], ["--state-in", "state.npz"])):
        np.save("x.npy", part)
        assert run(*arguments, "--state-out", "state.npz", "--chunk", "4") == 0
    assert np.load("y.npy").tobytes() == expected[11:].tobytes()
    with np.load("state.npz") as state:
        assert state["h"].tobytes() == lstm(x)[1][0].tobytes()


def test_smaller_weights(folder: Path) -> None:
    lstm, x = make(), inputs(30, 3, I)
    assert run("--weight-dtype", "bfloat16", "--chunk", "7") == 0
    y = np.load("y.npy")
    assert y.tobytes() == lstm.to(weight_dtype="bfloat16")(x)[0].tobytes() != lstm(x)[0].tobytes()


@pytest.mark.parametrize("chunk", ["4", "100"])
def test_batch_first(folder: Path, chunk: str) -> None:
    lstm, x = make(), inputs(8, 30, I)
    time_first = np.ascontiguousarray(x.transpose(1, 0, 2))
    assert run("--batch-first", "--chunk", chunk) == 0
    assert np.load("y.npy").tobytes() == lstm(time_first)[0].transpose(1, 0, 2).tobytes()


def test_batch_first_as_the_file_says_or_not(folder: Path) -> None:
    lstm, x = make(batch_first=True), inputs(3, 30, I)
    expected = lstm(x)[0]
    assert run("--chunk", "7") == 0
    assert np.load("y.npy").tobytes() == expected.tobytes()
    np.save("x.npy", x.transpose(1, 0, 2))
    assert run("--chunk", "7", "--no-batch-first") == 0
    assert np.load("y.npy").tobytes() == expected.transpose(1, 0, 2).tobytes()


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence(folder: Path, batch_first: bool) -> None:
    lstm, x = make(batch_first=batch_first), inputs(30, I)
    expected, (h, c) = lstm(x)
    assert run("--chunk", "2", "--state-out", "state") == 0
    assert np.load("y.npy").tobytes() == expected.tobytes()
    with np.load("state") as state:  # the name as given, nothing added to it
        assert (state["h"].tobytes(), state["c"].tobytes()) == (h.tobytes(), c.tobytes())


def test_a_bidirectional_network_runs_in_one_piece(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "CHUNK_BYTES", 1)
    lstm, x = make(bidirectional=True), inputs(30, 3, I)
    refused(capsys, run("--chunk", "7"), "--chunk", "bidirectional", files={"model.safetensors", "x.npy"})
    assert run() == 0
    assert np.load("y.npy").tobytes() == lstm(x)[0].tobytes()


@pytest.mark.parametrize("flipped", [False, True], ids=["own-time", "order-of-processing"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_reverse_network_runs_in_one_piece(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, num_layers: int, flipped: bool
) -> None:
    """As a node of ONNX, or a layer of Keras with go_backwards: its state comes from the steps that follow."""
    monkeypatch.setattr(cli, "CHUNK_BYTES", 1)
    weights = replace(fastlstm.LSTM(I, H, num_layers, seed=1).weights, reverse=True, flipped=flipped)
    lstm, x = fastlstm.LSTM.from_weights(weights), inputs(30, 3, I)
    lstm.save("model.safetensors")
    refused(capsys, run("--chunk", "7"), "--chunk", "reverse", files={"model.safetensors", "x.npy"})
    assert run("--state-out", "state.npz") == 0
    output, (h, c) = lstm(x)
    assert np.load("y.npy").tobytes() == output.tobytes()
    with np.load("state.npz") as state:
        assert (state["h"].tobytes(), state["c"].tobytes()) == (h.tobytes(), c.tobytes())


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".ONNX"])
def test_a_state_is_not_written_under_another_suffix(folder: Path, capsys: Any, suffix: str) -> None:
    make()
    inputs(30, 3, I)
    status = run("--state-out", f"state{suffix}")
    refused(capsys, status, "--state-out writes an .npz file", f"state{suffix}", files={"model.safetensors", "x.npy"})


def test_convert_prints_what_it_wrote(folder: Path, capsys: Any) -> None:
    make()
    assert cli.main(["convert", "model.safetensors", "y.npz", "--batch-first"]) == 0
    assert "batch_first=True" in capsys.readouterr().out
    assert fastlstm.load("y.npz").batch_first
    assert cli.main(["convert", "y.npz", "z.npz", "--no-batch-first"]) == 0
    assert "batch_first" not in capsys.readouterr().out
    assert not fastlstm.load("z.npz").batch_first


@pytest.mark.parametrize("shape", [(0, 3, I), (30, 0, I), (0, I)])
def test_nothing_to_do(folder: Path, shape: tuple[int, ...]) -> None:
    make()
    inputs(*shape)
    assert run("--state-out", "state.npz") == 0
    assert np.load("y.npy").shape == (*shape[:-1], H)
    with np.load("state.npz") as state:
        assert state["c"].shape == (2, *shape[1:-1], H)
        assert not state["c"].any()


def test_fortran_order_and_a_link_in_the_place_of_the_output(folder: Path) -> None:
    lstm, x = make(), np.asfortranarray(inputs(30, 3, I))
    np.save("x.npy", x)
    Path("results").mkdir()
    Path("y.npy").symlink_to("results/y.npy")
    assert run("--chunk", "4") == 0
    assert Path("y.npy").is_symlink()
    assert np.load("results/y.npy").tobytes() == lstm(x)[0].tobytes()
    assert os.listdir("results") == ["y.npy"]


def test_which_of_several(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks = {name: fastlstm.LSTM(I, H, seed=seed) for seed, name in enumerate(("encoder.rnn", "decoder"))}
    tensors = {f"{name}.{key}": value for name, lstm in networks.items() for key, value in lstm.state_dict().items()}
    save_file(tensors, "model.safetensors")
    x = inputs(4, 2, I)
    refused(capsys, run(), "encoder.rnn", "decoder", files={"model.safetensors", "x.npy"})
    for name, lstm in networks.items():
        assert run("--name", name) == 0
        assert np.load("y.npy").tobytes() == lstm(x)[0].tobytes()


def test_messages_name_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And not the arguments of functions, which nobody passes here."""
    lstm, files = fastlstm.LSTM(I, H, seed=1), {"model.safetensors", "x.npy"}
    inputs(4, 2, I)
    state = lstm.state_dict()
    save_file({f"{prefix}.{name}": value for prefix in "ab" for name, value in state.items()}, "model.safetensors")
    refused(capsys, run(), "2 LSTMs found, pass one of these as --name: 'a', 'b'", files=files)
    save_file({"kernel": np.ones((I, 4 * H), "f"), "recurrent_kernel": np.ones((H, 4 * H), "f")}, "model.safetensors")
    refused(capsys, run(), "pass --layout keras or --layout haste", files=files)
    fastlstm.LSTM(I, H, dtype="float64").save("model.safetensors")
    refused(capsys, run("--weight-dtype", "int8"), "error: --weight-dtype of a float64 network", files=files)
    lstm.save("model.safetensors")
    refused(capsys, run("--threads", "0"), "error: --threads must be between 1", files=files)
    save_file(state | {"bias_ih_l0": state["bias_ih_l0"] * np.float32("nan")}, "model.safetensors")
    refused(capsys, run(), "NaN or infinite values; pass --allow-nonfinite to load", files=files)
    assert run("--allow-nonfinite") == 0
    assert np.isnan(np.load("y.npy")).all()


def test_what_is_told_of_weights_of_keras(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    source = str(GOLDEN / "keras3.weights.h5")
    for name, options, told in (
        ("zeta", ["--go-backwards", "--activation", "softsign"], {"go_backwards": True, "activation": "softsign"}),
        ("zeta", ["--recurrent-activation", "hard_sigmoid_keras2"], {"recurrent_activation": "hard_sigmoid_keras2"}),
        ("both", ["--merge-mode", "sum"], {"merge_mode": "sum"}),
    ):
        assert cli.main(["convert", source, "x.npz", "--name", name, *options]) == 0
        lstm = fastlstm.load(source, name, **told)
        x = np.random.default_rng(0).standard_normal((2, 4, lstm.input_size)).astype("f")
        expected = lstm(x)[0]
        assert fastlstm.load("x.npz")(x)[0].tobytes() == expected.tobytes()
        np.save("x.npy", x)
        assert run("--name", name, *options, model=source) == 0
        assert np.load("y.npy").tobytes() == expected.tobytes()
        for file in ("x.npz", "y.npy"):
            os.remove(file)
    capsys.readouterr()
    for name, options, part in (
        ("both", ["--go-backwards"], "--go-backwards: the file holds both directions"),
        ("zeta", ["--merge-mode", "sum"], "--merge-mode: the file holds no Bidirectional"),
        ("zeta", ["--activation", "foo"], "'zeta': --activation must be one of elu"),
        ("zeta", ["--recurrent-activation", "hard_sigmoid"], "--recurrent-activation: Keras 2 and 3 compute"),
    ):
        refused(capsys, run("--name", name, *options, model=source), part, files={"x.npy"})
    status = run("--name", "zeta", "--activation", "relu", "--go-backwards", model=str(GOLDEN / "keras3.h5"))
    refused(capsys, status, "--go-backwards, --activation: leave out, its configuration is in the file\n", files={"x.npy"})
    with pytest.raises(SystemExit):
        run("--merge-mode", "None", model=source)
    assert "argument --merge-mode: invalid choice: 'None'" in capsys.readouterr().err
    fastlstm.LSTM(I, H, seed=1).save("model.safetensors")
    refused(
        capsys,
        run("--activation", "relu"),
        "error: 'model.safetensors': --activation: only for Keras files",
        files={"x.npy", "model.safetensors"},
    )


# ---- run: what is refused, and what is left behind -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "parts"),
    [
        (np.zeros((4, 3, I + 1), "f4"), ("x.npy", f"(T, B, {I})", f"(4, 3, {I + 1})")),
        (np.zeros((4,), "f4"), ("x.npy", f"(T, B, {I})", "(4,)")),
        (np.zeros((4, 3, 2, I), "f4"), ("x.npy", "(4, 3, 2, 5)")),
        (np.zeros((), "f4"), ("x.npy", "()")),
        (np.zeros((4, 3, I), "f8"), ("x.npy", "float32", "float64", "numpy.load('x.npy').astype('float32')")),
        (np.zeros((4, 3, I), ">f4"), ("x.npy", "float32", ">f4")),
        (np.zeros((4, 3, I), "i4"), ("x.npy", "float32", "int32")),
        (np.full((4, 3, I), None, object), ("x.npy", "not an .npy file of numbers")),
        (b"", ("x.npy", "not an .npy file of numbers")),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': ((((((((((", ("x.npy", "not an .npy file of numbers")),
        (b"random bytes, and many of them", ("x.npy", "not an .npy file of numbers")),
        (None, ("x.npy", "No such file")),
    ],
    ids=lambda value: None if isinstance(value, tuple) else type(value).__name__,
)
def test_bad_input(folder: Path, capsys: pytest.CaptureFixture[str], x: Any, parts: tuple[str, ...]) -> None:
    make()
    if isinstance(x, bytes):
        Path("x.npy").write_bytes(x)
    elif x is not None:
        np.save("x.npy", x)
    status = run("--state-out", "state.npz")
    refused(capsys, status, *parts, files={"model.safetensors", "x.npy"} - ({"x.npy"} if x is None else set()))


def test_a_truncated_array(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    inputs(30, 3, I)
    Path("x.npy").write_bytes(Path("x.npy").read_bytes()[:-1])
    refused(capsys, run(), "x.npy", files={"model.safetensors", "x.npy"})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_not_waited_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    os.mkfifo("x.npy")
    refused(capsys, run(), "x.npy", "not a regular file", files={"model.safetensors", "x.npy"})
    os.rename("x.npy", "pipe")
    inputs(4, 3, I)
    for option in ("-o", "--state-out"):
        refused(
            capsys,
            run(option, "pipe"),
            "error: pipe: not a regular file",
            files={"model.safetensors", "x.npy", "pipe"},
        )
    refused(
        capsys,
        run("--state-in", "pipe"),
        "pipe",
        "not a regular file",
        files={"model.safetensors", "x.npy", "pipe"},
    )


def test_pickles_are_not_executed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    hostile = b"cos\nmkdir\n(S'executed'\ntR."  # a pickle that makes a folder
    for content in (hostile, hostile + b"\x93NUMPY"):
        Path("x.npy").write_bytes(content)
        refused(capsys, run(), "x.npy", files={"model.safetensors", "x.npy"})
    inputs(4, 3, I)
    Path("state.npz").write_bytes(hostile)
    refused(capsys, run("--state-in", "state.npz"), "state.npz", files={"model.safetensors", "x.npy", "state.npz"})


@pytest.mark.parametrize(
    ("state", "part"),
    [
        (
            {"h": np.zeros((2, 3, H), "f4"), "c": np.zeros((2, 4, H), "f4")},
            f"'state.npz': c must have shape (2, 3, {H}), got",
        ),
        ({"h": np.zeros((2, H), "f4"), "c": np.zeros((2, H), "f4")}, f"'state.npz': h must have shape (2, 3, {H}), got"),
        ({"h": np.zeros((2, 3, H), "f4"), "c": np.zeros((2, 3, H), "f8")}, "'state.npz': c must be float32"),
        ({"h": np.zeros((2, 3, H), "f4")}, "'state.npz': not an .npz file with arrays h and c"),
        ({"h": np.full(2, None), "c": np.full(2, None)}, "'state.npz': 'h.npy' holds pickled objects"),
    ],
)
@pytest.mark.parametrize("steps", [0, 4])
def test_bad_state(folder: Path, capsys: pytest.CaptureFixture[str], state: dict[str, np.ndarray], part: str, steps: int) -> None:
    make()
    inputs(steps, 3, I)
    np.savez("state.npz", **state)
    refused(capsys, run("--state-in", "state.npz"), part, files={"model.safetensors", "x.npy", "state.npz"})


def test_a_state_that_is_a_bomb(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shapes are looked at before anything is inflated."""
    make()
    inputs(4, 3, I)
    np.savez_compressed("state.npz", h=np.zeros(50_000_000, "f4"), c=np.zeros(1, "f4"))
    tracemalloc.start()
    refused(
        capsys, run("--state-in", "state.npz"), "h must have shape (2, 3, 7)", files={"model.safetensors", "x.npy", "state.npz"}
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_bad_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    inputs(30, 3, I)
    Path("folder").mkdir()
    files = {"model.safetensors", "x.npy", "folder"}
    refused(capsys, run("--threads", "0"), "threads", "0", files=files)
    refused(capsys, run("--chunk", "0"), "--chunk", "0", files=files)
    refused(capsys, run("--state-out", "./y.npy"), "same file", files=files)
    refused(capsys, run("--state-in", "missing.npz"), "missing.npz", files=files)
    refused(capsys, run("--name", "other"), "other", files=files)
    refused(capsys, run("-o", "folder"), "folder", "not a regular file", files=files)
    refused(capsys, run("-o", "y/"), "error: y/: Is a directory", files=files)
    refused(capsys, run("-o", ""), "error: '': No such file", files=files)
    refused(capsys, run("--state-out", ""), "error: '': No such file", files=files)
    refused(capsys, run("-o", "-"), "error: -o", "'-'", "pipe", files=files)
    refused(capsys, cli.main(["run", "model.safetensors", "-", "-o", "y.npy"]), "error: INPUT", "'-'", "pipe", files=files)
    refused(capsys, run("-o", "missing/y.npy"), "error: missing/y.npy: No", files=files)
    refused(capsys, run("--state-out", "missing/s.npz"), "missing", files=files)
    refused(capsys, run(model="missing.pt"), "missing.pt", "No such file", files=files)
    refused(capsys, run("-o", "y.npz"), "-o writes one array, as .npy", "y.npz", files=files)
    Path("model.safetensors").write_bytes(b"not\na\nmodel")
    refused(capsys, run(), files=files)
    refused(capsys, cli.main(["scan", "model.safetensors"]), files=files)
    refused(capsys, cli.main(["scan", "missing.pt"]), "missing.pt", files=files)


def test_what_is_read_is_not_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lstm, x = make(), inputs(30, 3, I)
    assert run("--state-out", "state.npz") == 0
    os.symlink("model.safetensors", "link")
    os.link("x.npy", "hard")
    contents = {name: Path(name).read_bytes() for name in os.listdir()}
    for arguments, options in (
        (["-o", "model.safetensors"], "-o and FILE"),
        (["-o", "./link"], "-o and FILE"),
        (["--state-out", "link"], "--state-out and FILE"),
        (["--state-out", "x.npy"], "--state-out and INPUT"),
        (["--state-out", "hard"], "--state-out and INPUT"),
        (["--state-in", "state.npz", "-o", "state.npz"], "-o and --state-in"),
        (["-o", "new", "--state-out", "new"], "-o and --state-out"),
    ):
        refused(capsys, run(*arguments), f"error: {options} are the same file: ", files=set(contents))
    assert {name: Path(name).read_bytes() for name in contents} == contents
    assert run("-o", "x.npy", "--state-in", "state.npz", "--state-out", "state.npz") == 0
    assert np.load("x.npy").tobytes() == lstm(x, lstm(x)[1])[0].tobytes()


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 2, "fastlstm: error: out of memory\n"),
        (OSError(28, "No space left on device"), 2, "fastlstm: error: [Errno 28] No space left on device\n"),
        (ValueError("two\nlines"), 2, "fastlstm: error: two lines\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_run_that_breaks_off_leaves_the_old_files(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    text: str,
) -> None:
    make()
    inputs(30, 3, I)
    call, calls = fastlstm.LSTM.__call__, []

    def breaks_off(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return call(*args, **options)

    monkeypatch.setattr(fastlstm.LSTM, "__call__", breaks_off)
    for name in ("y.npy", "state.npz"):
        Path(name).write_text("old")
    assert run("--chunk", "7", "--state-out", "state.npz") == status
    assert len(calls) == 3
    assert capsys.readouterr() == ("", text)
    assert {name: Path(name).read_text() for name in ("y.npy", "state.npz")} == {"y.npy": "old", "state.npz": "old"}
    assert set(os.listdir()) == {"model.safetensors", "x.npy", "y.npy", "state.npz"}


def test_the_disk_is_asked_for_space_first(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    inputs(30, 3, I)
    asked = []

    def full(descriptor: int, offset: int, size: int) -> None:
        asked.append(size)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    refused(capsys, run(), "No space left", files={"model.safetensors", "x.npy"})
    assert 30 * 3 * H * 4 < asked[0] < 30 * 3 * H * 4 + 1000


def test_progress_on_a_terminal_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    make()
    inputs(30, 3, I)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, arguments, bar in (
        (Terminal(), ["--chunk", "10"], True),
        (Terminal(), [], False),  # one chunk: nothing to wait for
        (io.StringIO(), ["--chunk", "10"], False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        assert run(*arguments) == 0
        assert ("30/30" in stream.getvalue().replace(".0", "")) == bar
    monkeypatch.setitem(sys.modules, "tqdm", None)  # not installed
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert run("--chunk", "10") == 0


# ---- scan, info, and the process itself ----------------------------------------------------------------------------------------


def test_scan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fastlstm.LSTM(3, 7, num_layers=2, bidirectional=True, proj_size=4)
    second = fastlstm.LSTM(11, 5, bias=False)
    tensors = {f"encoder.rnn.{key}": value.astype("f2") for key, value in first.state_dict().items()}
    tensors |= {f"b\x1b[1m.{key}": value for key, value in second.state_dict().items()}
    save_file(tensors, "model.safetensors")
    assert cli.main(["scan", "model.safetensors"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "input", "hidden", "layers", "directions", "projection", "bias", "dtype"]
    assert sorted(row.split() for row in rows) == [
        ["'b\\x1b[1m'", "11", "5", "1", "1", "-", "no", "float32"],  # nothing in a file reaches the terminal as it stands
        ["encoder.rnn", "3", "7", "2", "2", "4", "yes", "float16"],
    ]
    columns = [row.rindex(" ") for row in (header, *rows)]
    assert len(set(columns)) == 1  # aligned


def test_scan_of_what_cannot_be_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {f"{name}.{key}": value for name in ("good", "broken") for key, value in fastlstm.LSTM(3, 7).state_dict().items()}
    del tensors["broken.bias_hh_l0"]
    save_file(tensors, "model.safetensors")
    assert cli.main(["scan", "model.safetensors"]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    good, broken = sorted(rows, reverse=True)
    assert good.split() == ["good", "3", "7", "1", "1", "-", "yes", "float32"]
    assert broken.startswith("broken  cannot be loaded: 'broken.bias_hh_l0' is missing")
    assert cli.main(["convert", "model.safetensors", "good.npz"]) == 2
    assert "'broken' cannot be loaded" in capsys.readouterr().err


def test_external_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    lstm = make(num_layers=1)
    x = inputs(9, 2, I)
    lstm.to_onnx("one.onnx")
    onnx.save(onnx.load("one.onnx"), "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    files = {"model.safetensors", "x.npy", "one.onnx", "model.onnx", "model.data"}
    assert cli.main(["scan", "model.onnx"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[1:8] == [str(I), str(H), "1", "1", "-", "yes", "float32"]
    assert "lie in another file" in row
    refused(capsys, run(model="model.onnx"), "another file: pass --external-data to read files", files=files)
    assert cli.main(["scan", "model.onnx", "--external-data"]) == 0
    assert "another file" not in capsys.readouterr().out
    assert run("--external-data", model="model.onnx") == 0
    np.testing.assert_array_equal(np.load("y.npy"), lstm(x)[0])
    assert cli.main(["convert", "model.onnx", "again.npz", "--external-data"]) == 0
    np.testing.assert_array_equal(fastlstm.load("again.npz")(x)[0], lstm(x)[0])


def test_scan_says_what_there_is_instead(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scan", str(GOLDEN / "refused_gru.pt")]) == 2
    message = capsys.readouterr().err
    assert "no LSTM found" in message
    assert "GRU" in message


def test_scan_without_a_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make()
    assert cli.main(["scan", "model.safetensors"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["''", str(I), str(H), "2", "1", "-", "yes", "float32"]
    save_file({"linear.weight": np.zeros((3, 4), "f4")}, "other.safetensors")
    assert cli.main(["scan", "other.safetensors"]) == 2
    assert "no LSTM" in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    lines = {line[:17].strip(): line[17:] for line in shown.splitlines()}
    assert lines["fastlstm"] == fastlstm.__version__
    assert lines["instruction set"] == f"{fastlstm.isa} (available: {', '.join(fastlstm.available_isas())})"
    assert lines["threads"] == str(fastlstm.get_num_threads())
    assert lines["NumPy"] == np.__version__
    assert all(lines[name] for name in ("OpenMP", "compiler", "Python", "platform"))
    file = io.StringIO()
    show_config(file)
    assert file.getvalue() == shown
    assert capsys.readouterr().out == ""


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status, part in (
        (["--version"], 0, f"fastlstm {fastlstm.__version__}\n"),
        (["--help"], 0, "scan"),
        (["run", "--help"], 0, "--state-in monday.npz"),
        (["demo", "--help"], 0, "--no-plot"),
        ([], 2, "COMMAND"),
        (["run", "model.pt"], 2, "--output"),
        (["demo", "--plot", "p.png", "--no-plot"], 2, "not allowed with"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == status
        assert part in "".join(capsys.readouterr())


def test_as_a_process(folder: Path) -> None:
    """The module, in its own process: results, errors without a traceback, and a reader that goes away."""
    lstm, x = make(), inputs(30, 3, I)

    def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"env": python_environment(), **options}
        return subprocess.run([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, timeout=120, **options)

    done = process("run", "model.safetensors", "x.npy", "-o", "y.npy", "--chunk", "7")
    assert (done.returncode, done.stderr) == (0, "")
    assert np.load("y.npy").tobytes() == lstm(x)[0].tobytes()
    done = process("scan", "missing.pt")
    assert (done.returncode, done.stderr) == (2, "fastlstm: error: missing.pt: No such file or directory\n")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        done = process("scan", "model.safetensors", stdout=gone)
    assert (done.returncode, done.stderr) == (1, "")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "info"]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, timeout=120, env=python_environment())
    assert (done.returncode, done.stderr) == (0, "")
    save_file({f"\u03bb.{key}": value for key, value in lstm.state_dict().items()}, "model.safetensors")
    done = process("scan", "model.safetensors", stdout=subprocess.PIPE, env=python_environment(PYTHONIOENCODING="ascii"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].startswith("\\u03bb ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(folder: Path, number: signal.Signals) -> None:
    make()
    inputs(1_000_000, 1, I)
    Path("y.npy").write_text("old")
    arguments = ["run", "model.safetensors", "x.npy", "-o", "y.npy", "--state-out", "state.npz", "--chunk", "1"]
    # It may come while NumPy opens a file, which the exception then closes: a warning that nobody sees, if it is no error
    command = [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-m", "fastlstm", *arguments]
    before = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup, whose children ignore it too
    try:
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=python_environment())
    finally:
        signal.signal(number, before)
    with running:
        until = time.monotonic() + 60
        while len(list(folder.glob("*.tmp"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        running.send_signal(number)
        assert running.stderr is not None
        assert running.stderr.read() == ""
    assert running.returncode == 128 + number
    assert Path("y.npy").read_text() == "old"
    assert set(os.listdir()) == {"model.safetensors", "x.npy", "y.npy"}


def test_signals_are_given_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that the process ignores, as after nohup, stay ignored."""
    seen = []
    monkeypatch.setattr(cli, "info", lambda args: seen.append(list(map(signal.getsignal, both))) or 0)
    both = signal.SIGTERM, signal.SIGHUP
    before = [signal.signal(number, handler) for number, handler in zip(both, (signal.SIG_DFL, signal.SIG_IGN), strict=True)]
    try:
        assert cli.main(["info"]) == 0
        assert list(map(signal.getsignal, both)) == [signal.SIG_DFL, signal.SIG_IGN]
        ((ours, theirs),) = seen
        assert callable(ours)
        assert theirs == signal.SIG_IGN
    finally:
        for number, handler in zip(both, before, strict=True):
            signal.signal(number, handler)


def test_importing_it_is_light() -> None:
    code = "import sys, fastlstm; before = set(sys.modules); import fastlstm.cli; print(*set(sys.modules) - before)"
    loaded = run_python(code).stdout.split()
    assert not {name.split(".")[0] for name in loaded} & {"matplotlib", "tqdm", "torch", "onnx", "onnxruntime"}
    assert "fastlstm.demo" not in loaded
    assert len(loaded) < 20
