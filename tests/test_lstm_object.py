"""The network as an object: what it says of itself, its parameters, files, and streams."""

from __future__ import annotations

import copy
import io
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, Case, assert_same_bytes, flat, import_torch, make_case, required
from safetensors import safe_open
from safetensors.numpy import load_file, save

import fastlstm
from fastlstm import _engine
from fastlstm.cell import PLAIN, Activation, Cell
from fastlstm.weights import Weights

NETWORKS: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"bias": False},
    {"proj_size": 4},
    {"num_layers": 2, "bidirectional": True, "proj_size": 3},
    {"num_layers": 2, "bias": False, "bidirectional": True, "proj_size": 1},
)
networks = pytest.mark.parametrize("options", NETWORKS, ids=str)


def kind_of(value: object) -> str:
    return type(value).__name__


@networks
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attributes(options: dict[str, Any], batch_first: bool, dtype: str) -> None:
    lstm = fastlstm.LSTM(5, 7, batch_first=batch_first, dtype=dtype, seed=0, **options)
    expected = {"num_layers": 1, "bidirectional": False, "bias": True, "proj_size": 0, **options}
    expected |= {"input_size": 5, "hidden_size": 7, "batch_first": batch_first, "dtype": np.dtype(dtype)}
    expected["num_directions"] = 2 if expected["bidirectional"] else 1
    assert {name: getattr(lstm, name) for name in expected} == expected
    for name in expected:
        assert type(getattr(lstm, name)) is type(expected[name]), name
    assert eval(repr(lstm), {"LSTM": fastlstm.LSTM}).__repr__() == repr(lstm)
    other = fastlstm.LSTM.from_weights(lstm.weights, batch_first)
    assert {name: getattr(other, name) for name in expected} == expected


@pytest.mark.parametrize("dtype", [np.float64, np.dtype("float64"), "d", float])
def test_dtype_is_anything_numpy_takes(dtype: Any) -> None:
    assert fastlstm.LSTM(5, 7, dtype=dtype).dtype == np.float64


def test_sizes_may_be_numpys_small_integers() -> None:
    lstm = fastlstm.LSTM(np.int8(100), np.int8(101), num_layers=np.uint8(2), proj_size=np.int8(99), seed=0)
    assert lstm.state_dict()["weight_hh_l1"].shape == (404, 99)
    assert type(lstm.hidden_size) is int


@networks
def test_state_dict_is_torchs(options: dict[str, Any]) -> None:
    """The same names in the same order, with the same shapes."""
    torch = import_torch()
    given = {name: a.shape for name, a in fastlstm.LSTM(5, 7, **options).state_dict().items()}
    expected = {name: tuple(a.shape) for name, a in torch.nn.LSTM(5, 7, **options).state_dict().items()}
    assert list(given.items()) == list(expected.items())


@networks
@pytest.mark.parametrize("dtype", DTYPES)
def test_initial_parameters(options: dict[str, Any], dtype: str) -> None:
    """Uniform within 1/sqrt(H), as PyTorch's; the same for the same seed only."""
    lstm = fastlstm.LSTM(50, 36, dtype=dtype, seed=3, **options)
    bound = 36**-0.5
    state = lstm.state_dict()
    for name, a in state.items():
        assert a.dtype == dtype
        assert np.abs(a).max() <= bound, name
        if a.size > 1000:
            counts = np.histogram(a, 10, (-bound, bound))[0]
            assert np.abs(counts - a.size / 10).max() < 6 * (a.size * 0.09) ** 0.5, name
    tensors = list(state.values())
    for n, a in enumerate(tensors):
        for b in tensors[:n]:
            assert a.shape != b.shape or not np.array_equal(a, b)
    again = fastlstm.LSTM(50, 36, dtype=dtype, seed=3, **options).state_dict()
    assert all(again[name].tobytes() == a.tobytes() for name, a in state.items())
    for seed in (4, None):
        other = fastlstm.LSTM(50, 36, dtype=dtype, seed=seed, **options).state_dict()
        assert not any(np.array_equal(other[name], a) for name, a in state.items())


def test_seeds_leave_numpys_own_alone() -> None:
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    fastlstm.LSTM(5, 7, seed=0)
    fastlstm.LSTM(5, 7)
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002


@networks
@pytest.mark.parametrize("dtype", DTYPES)
def test_state_dict_round_trip(options: dict[str, Any], dtype: str) -> None:
    source = fastlstm.LSTM(5, 7, dtype=dtype, seed=0, **options)
    target = fastlstm.LSTM(5, 7, dtype=dtype, seed=1, **options)
    x = np.random.default_rng(2).standard_normal((6, 4, 5)).astype(dtype)
    expected = flat(source(x))
    assert target(x)[0].tobytes() != expected[0].tobytes()
    state = source.state_dict()
    target.load_state_dict(dict(reversed(state.items())))
    assert_same_bytes(flat(target(x)), expected)
    assert list(target.state_dict()) == list(source.state_dict())
    for a in state.values():  # copies: neither network changes with them
        a[...] = 0
    assert_same_bytes(flat(source(x)), expected)
    assert_same_bytes(flat(target(x)), expected)
    assert_same_bytes(flat(fastlstm.LSTM.from_weights(source.weights)(x)), expected)


def test_load_state_dict_takes_tensors() -> None:
    torch = import_torch()
    module = torch.nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3)
    lstm = fastlstm.LSTM(5, 7, 2, bidirectional=True, proj_size=3)
    lstm.load_state_dict(module.state_dict())
    for name, a in lstm.state_dict().items():
        assert np.array_equal(a, module.state_dict()[name].numpy()), name
    module.load_state_dict({name: torch.from_numpy(a) for name, a in lstm.state_dict().items()})
    lstm.load_state_dict(dict(module.named_parameters()))  # tensors that want gradients
    lstm.load_state_dict({name: np.asfortranarray(a) for name, a in lstm.state_dict().items()})
    for name, a in lstm.state_dict().items():
        assert np.array_equal(a, module.state_dict()[name].numpy()), name


def changed(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: a for name, a in {**state, **changes}.items() if a is not None}


STATE = fastlstm.LSTM(5, 7, 2, proj_size=3, seed=1).state_dict()
BAD_STATES: dict[str, tuple[dict[str, Any], Any, tuple[str, ...]]] = {
    "missing": (changed(STATE, bias_hh_l1=None), ValueError, ("bias_hh_l1", "missing")),
    "unexpected": (changed(STATE, bias_hh_l2=STATE["bias_hh_l1"]), ValueError, ("bias_hh_l2", "unexpected")),
    "a prefix": ({f"rnn.{name}": a for name, a in STATE.items()}, ValueError, ("rnn.weight_ih_l0",)),
    "empty": ({}, ValueError, ("weight_ih_l0", "missing")),
    "transposed": (changed(STATE, weight_hh_l1=STATE["weight_hh_l1"].T), ValueError, ("weight_hh_l1", "(28, 3)", "(3, 28)")),
    "another size": (
        changed(STATE, weight_ih_l0=STATE["weight_ih_l0"][:, 1:]),
        ValueError,
        ("weight_ih_l0", "(28, 5)", "(28, 4)"),
    ),
    "a dimension more": (changed(STATE, bias_ih_l0=STATE["bias_ih_l0"][None]), ValueError, ("bias_ih_l0", "(28,)", "(1, 28)")),
    "float64": (
        changed(STATE, weight_hr_l1=STATE["weight_hr_l1"].astype("d")),
        TypeError,
        ("weight_hr_l1", "float32", "float64"),
    ),
    "integers": (changed(STATE, bias_hh_l1=np.ones(28, int)), TypeError, ("bias_hh_l1", "float32", "int64")),
    "a list": (changed(STATE, bias_hh_l1=[1.0] * 28), TypeError, ("bias_hh_l1", "list")),
}


@pytest.mark.parametrize("what", BAD_STATES)
def test_a_bad_state_dict_changes_nothing(what: str) -> None:
    bad, error, fragments = BAD_STATES[what]
    lstm = fastlstm.LSTM(5, 7, 2, proj_size=3, seed=0)
    x = np.random.default_rng(2).standard_normal((6, 4, 5), np.float32)
    before, state = flat(lstm(x)), lstm.state_dict()
    with pytest.raises(error) as raised:
        lstm.load_state_dict(bad)
    assert all(fragment in str(raised.value) for fragment in fragments), str(raised.value)
    assert_same_bytes(flat(lstm(x)), before)
    assert all(lstm.state_dict()[name].tobytes() == a.tobytes() for name, a in state.items())


@pytest.mark.parametrize("bad", [None, 3, "weights.safetensors", list(STATE.items()), list(STATE), iter(STATE)], ids=kind_of)
def test_a_state_dict_is_a_mapping(bad: Any) -> None:
    with pytest.raises(TypeError, match=f"state_dict must be a mapping.*{type(bad).__name__}"):
        fastlstm.LSTM(5, 7, 2, proj_size=3).load_state_dict(bad)


def test_a_hostile_name_is_cut() -> None:
    lstm = fastlstm.LSTM(5, 7)
    with pytest.raises(ValueError, match=r"unexpected tensor 'a\\na\\na") as raised:
        lstm.load_state_dict({"a\n" * 10**6: np.ones(3, "f")})
    assert len(str(raised.value)) < 1000


def test_weights_cannot_be_changed_behind_its_back() -> None:
    """Arrays the network was made from stay the caller's; those it shows are read-only."""
    case = make_case("t6b4i5h7")
    tensors = {name: a.copy() for name, a in case.weights.named_tensors()}
    for read_only in (False, True):
        given = {name: a.copy() for name, a in tensors.items()}
        views = {name: a[...] for name, a in given.items()}
        for view in views.values():
            view.flags.writeable = not read_only
        lstm = fastlstm.LSTM.from_weights(Weights.from_named_tensors(views))
        expected = case.run(lstm)
        for a in given.values():
            a[...] = 0
        assert_same_bytes(case.run(lstm), expected)
        assert_same_bytes(case.run(fastlstm.LSTM.from_weights(lstm.weights)), expected, "the weights it shows")
        for name, a in lstm.weights.named_tensors():
            assert a.tobytes() == tensors[name].tobytes(), name
            with pytest.raises(ValueError, match="read-only"):
                a[0] = 0


# ---- Files ---------------------------------------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_save_and_load(tmp_path: Path, options: dict[str, Any], dtype: str, batch_first: bool) -> None:
    path = tmp_path / "network.safetensors"
    lstm = fastlstm.LSTM(5, 7, dtype=dtype, batch_first=batch_first, seed=0, **options)
    assert lstm.save(path) is None
    assert sorted(os.listdir(tmp_path)) == ["network.safetensors"]
    stored = load_file(path)
    assert {name: a.tobytes() for name, a in stored.items()} == {name: a.tobytes() for name, a in lstm.state_dict().items()}
    with safe_open(path, "numpy") as opened:
        assert path.read_bytes() == save(stored, opened.metadata()), "what safetensors' own function makes of it"
    loaded = fastlstm.load(path)
    assert loaded.batch_first == batch_first
    assert loaded.dtype == dtype
    x = np.random.default_rng(2).standard_normal((6, 6, 5)).astype(dtype)
    assert_same_bytes(flat(loaded(x)), flat(lstm(x)))
    fastlstm.LSTM(5, 7, seed=1).save(str(path))  # an existing file is replaced
    assert (
        fastlstm.load(path).state_dict()["bias_ih_l0"].tobytes()
        == fastlstm.LSTM(5, 7, seed=1).state_dict()["bias_ih_l0"].tobytes()
    )


def test_saving_where_nothing_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=re.escape("nowhere")):
        fastlstm.LSTM(5, 7).save(tmp_path / "nowhere" / "network.safetensors")
    folder, file = tmp_path / "folder.npz", tmp_path / "file"
    folder.mkdir()
    file.write_text("old")
    for path in (folder, file / "network.npz", tmp_path / "nowhere" / "network.npz"):
        with pytest.raises(OSError, match=re.escape(repr(str(path))) + "$"):  # and no other name
            fastlstm.LSTM(5, 7).save(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.npz"]
    assert os.listdir(folder) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    lstm, fifo = fastlstm.LSTM(5, 7), tmp_path / "fifo.npz"
    os.mkfifo(fifo)
    (tmp_path / "link.npz").symlink_to(fifo)
    (tmp_path / "folder.npz").mkdir()
    before = sorted(os.listdir(tmp_path))
    for path, error in (
        (fifo, OSError),
        (tmp_path / "link.npz", OSError),
        (tmp_path / "folder.npz", IsADirectoryError),
        (f"{tmp_path}/new/", IsADirectoryError),
        (f"{tmp_path}/new/.", IsADirectoryError),
        ("", FileNotFoundError),
    ):
        with pytest.raises(error) as caught:
            lstm.save(path)
        assert caught.value.filename == os.fspath(path)
    assert sorted(os.listdir(tmp_path)) == before
    assert fifo.is_fifo()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", ["network.npz", "network.NPZ"])
def test_the_suffix_says_what_is_saved(tmp_path: Path, name: str, batch_first: bool) -> None:
    lstm = fastlstm.LSTM(5, 7, 2, batch_first=batch_first, seed=0)
    lstm.save(tmp_path / name)
    with np.load(tmp_path / name) as archive:
        stored = {key: archive[key].tobytes() for key in archive if key != "fastlstm"}
    assert stored == {key: array.tobytes() for key, array in lstm.state_dict().items()}
    assert fastlstm.load(tmp_path / name).batch_first == batch_first
    fastlstm.RNN(5, 7, seed=0).save(tmp_path / name)
    with np.load(tmp_path / name) as archive:
        assert archive["weight_hh_l0"].shape == (7, 7)
    with pytest.raises(ValueError, match=r"path must not end with \.onnx, as save .*, got '.*network\.ONNX'; to_onnx writes"):
        lstm.save(tmp_path / "network.ONNX")
    for suffix in (".pt", ".pth", ".h5", ".keras", ".json", ".nam", ".msgpack"):
        with pytest.raises(ValueError, match=f"path must not end with {suffix}, as save writes .safetensors or .npz, got '.*'$"):
            lstm.save(tmp_path / f"network{suffix}")
    assert os.listdir(tmp_path) == [name]
    lstm.save(tmp_path / "network")  # whatever else it is called
    assert load_file(tmp_path / "network").keys() == stored.keys()
    assert fastlstm.load(tmp_path / "network").batch_first == batch_first


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666], ids=oct)
@pytest.mark.parametrize("name", ["network.safetensors", "network.npz"])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, name: str, mode: int) -> None:
    path = tmp_path / name
    path.write_text("old")
    path.chmod(mode)
    fastlstm.LSTM(5, 7, seed=0).save(path)
    assert path.stat().st_mode & 0o777 == mode
    assert fastlstm.load(path).hidden_size == 7
    fresh = tmp_path / f"fresh.{name}"
    (tmp_path / "other").write_text("any")
    fastlstm.LSTM(5, 7, seed=0).save(fresh)
    assert fresh.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("path", [None, 3, b"network.safetensors", ["network.safetensors"], io.BytesIO()], ids=kind_of)
def test_a_path_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    lstm = fastlstm.LSTM(5, 7)
    lstm.save("source.safetensors")
    for name, call in (
        ("path", lstm.save),
        ("path", lstm.to_onnx),
        ("path", fastlstm.load),
        ("path", fastlstm.scan),
        ("path", fastlstm.load_model),
        ("target", lambda target: fastlstm.convert("source.safetensors", target)),
    ):
        if call == lstm.to_onnx:
            required("onnx")
        with pytest.raises(TypeError, match=f"{name} must be str or os.PathLike, got {type(path).__name__}"):
            call(path)
    assert os.listdir(tmp_path) == ["source.safetensors"]


@pytest.mark.parametrize("name", [3, True, b"", ["lstm"]], ids=repr)
def test_a_name_is_text(tmp_path: Path, name: Any) -> None:
    lstm = fastlstm.LSTM(5, 7)
    lstm.save(tmp_path / "network.safetensors")
    for call in (fastlstm.from_torch, fastlstm.from_haste, fastlstm.from_flax, fastlstm.from_tensorflow):
        with pytest.raises(TypeError, match=f"name must be str or None, got {re.escape(repr(name))}"):
            call(lstm.state_dict(), name)
    with pytest.raises(TypeError, match=f"name must be str or None, got {re.escape(repr(name))}"):
        fastlstm.load(tmp_path / "network.safetensors", name)


@pytest.mark.parametrize("batch_first", ["False", 2], ids=repr)
def test_batch_first_is_true_or_false(tmp_path: Path, batch_first: Any) -> None:
    source = tmp_path / "network.safetensors"
    fastlstm.LSTM(5, 7).save(source)
    for call in (fastlstm.load, lambda path, **options: fastlstm.convert(path, tmp_path / "other.npz", **options)):
        with pytest.raises(TypeError, match="batch_first must be True or False"):
            call(source, batch_first=batch_first)
    assert os.listdir(tmp_path) == ["network.safetensors"]


# ---- Streams -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["t9b4i5h20", "t9b1i5h20l2p7", "t9b7i5h33l3"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


def test_words_for_what_pytorch_has_not() -> None:
    (layer,) = fastlstm.LSTM(3, 5, seed=0).weights.layers
    cell = Cell(Activation("hard_sigmoid"), hidden=Activation("leaky_relu", (0.3,)), gate_clip=3.0, coupled="forget")
    vector = np.zeros(5, "f")
    layer = replace(layer, cell=cell, weight_peephole=np.zeros(15, "f"), h_0=vector, c_0=vector)
    rest = "peepholes, initial state, gate=hard_sigmoid, hidden=leaky_relu(0.3), coupled='forget', gate_clip=3.0"
    for weights, words in (
        (Weights((layer,)), ""),
        (Weights((layer,), reverse=True), "reverse=True, "),
        (Weights((layer,), reverse=True, flipped=True), "reverse=True, flipped=True, "),
    ):
        assert repr(fastlstm.LSTM.from_weights(weights)) == f"LSTM(3, 5, {words}{rest})"
    both = Weights((replace(layer, cell=PLAIN), layer), bidirectional=True)
    assert repr(fastlstm.LSTM.from_weights(both)).endswith("bidirectional=True, peepholes, initial state, cells that differ)")


def test_gradients_are_shown_by_their_shapes() -> None:
    lstm, rnn = fastlstm.LSTM(3, 5, bias=False, seed=0), fastlstm.RNN(3, 5, bias=False, seed=0)
    x, d_output = np.zeros((7, 2, 3), "f"), np.zeros((7, 2, 5), "f")
    shown = "Gradients(input: {}, state: {}, parameters: {{weight_ih_l0: ({}, 3), weight_hh_l0: ({}, 5)}})"
    assert repr(lstm.record(x).backward(d_output)) == shown.format("(7, 2, 3)", "(1, 2, 5), (1, 2, 5)", 20, 20)
    assert repr(rnn.record(x).backward(d_output, input=False)) == shown.format("None", "(1, 2, 5)", 5, 5)


def test_gradients_are_themselves_alone() -> None:
    lstm, x = fastlstm.LSTM(3, 5, seed=0), np.zeros((7, 2, 3), "f")
    first, second = (lstm.record(x).backward() for _ in range(2))
    assert first == first
    assert first != second
    assert len({first, second}) == 2


@pytest.mark.parametrize("kind", [fastlstm.LSTM, fastlstm.RNN])
def test_what_may_be_set(kind: Any) -> None:
    network = kind(3, 5, seed=0)
    kept = network.weights
    with pytest.raises(AttributeError, match=r"weights cannot be set: .*load_state_dict.*from_weights"):
        network.weights = kind(3, 5, seed=1).weights
    for wrong in ("no", None, 2):
        with pytest.raises(TypeError, match="batch_first must be True or False"):
            network.batch_first = wrong
    assert (network.weights is kept, network.batch_first) == (True, False)
    network.batch_first = True
    h_n = network(np.zeros((2, 7, 3), "f"))[1]
    assert (h_n if kind is fastlstm.RNN else h_n[0]).shape == (1, 2, 5)
    assert repr(network).endswith("(3, 5, batch_first=True)")


def test_stream_starts_from_zeros_and_goes_on(case: Case) -> None:
    lstm = case.network()
    B, s = case.shape.B, case.shape
    stream = lstm.stream(batch_size=B)
    assert [a.shape for a in stream.state] == [(s.L, B, s.recurrent), (s.L, B, s.H)]
    assert not any(a.any() for a in stream.state)
    output, state = lstm(case.x)
    for t in range(s.T):
        y_t = stream.step(case.x[t])
        assert y_t.tobytes() == output[t].tobytes()
        assert_same_bytes((y_t, *stream.state), (output[t], *lstm(case.x[: t + 1])[1]), f"step {t}")
    assert_same_bytes((output, *stream.state), (output, *state))


def test_stream_state_is_a_copy(case: Case) -> None:
    lstm = case.network()
    stream, other = lstm.stream(batch_size=case.shape.B), lstm.stream(batch_size=case.shape.B)
    outputs = []
    for x_t in case.x:
        y_t = stream.step(x_t)
        outputs.append(y_t.copy())
        for a in (*stream.state, y_t):
            a[...] = 9
        other.step(-x_t)
    assert_same_bytes((np.stack(outputs), *stream.state), flat(lstm(case.x)))


def test_stream_reset(case: Case) -> None:
    lstm = case.network()
    stream = lstm.stream(batch_size=case.shape.B)
    for _ in range(2):
        assert_same_bytes((np.stack([stream.step(x_t) for x_t in case.x]), *stream.state), flat(lstm(case.x)))
        assert stream.reset() is None
        assert not any(a.any() for a in stream.state)


def torch_tensor(rows: list[int]) -> Any:
    return import_torch().tensor(rows, dtype=import_torch().int32)


def unlike_integers(rows: list[int]) -> Any:
    return [np.uint64(rows[0]), *rows[1:], *map(np.int8, rows)]


@pytest.mark.parametrize("kind", [list, tuple, np.array, iter, torch_tensor, unlike_integers])
def test_stream_reset_of_rows_is_resets(case: Case, kind: Any) -> None:
    """Resetting rows before a step is what ``resets`` does in one call."""
    lstm = case.network()
    s = case.shape
    resets = np.random.default_rng(7).random((s.T, s.B)) < 0.3
    resets[4], resets[5] = True, False
    stream = lstm.stream(batch_size=s.B)
    masked, outputs = lstm.stream(batch_size=s.B), []
    for x_t, rows in zip(case.x, resets, strict=True):
        masked.reset(rows=rows)
        masked.step(x_t)
        stream.reset(rows=kind(np.flatnonzero(rows).tolist()) if rows.any() else [])
        outputs.append(stream.step(x_t))
    assert_same_bytes((np.stack(outputs), *stream.state), flat(lstm(case.x, resets=resets)))
    assert [s.tobytes() for s in masked.state] == [s.tobytes() for s in stream.state]


def test_a_stream_is_shown() -> None:
    lstm = fastlstm.LSTM(3, 4, batch_first=True)
    stream = lstm.stream(batch_size=2)
    assert [repr(each) for each in (stream, copy.copy(stream))] == ["Stream(LSTM(3, 4), batch_size=2)"] * 2
    assert repr(fastlstm.RNN(3, 4, nonlinearity="relu").stream()) == "Stream(RNN(3, 4, nonlinearity='relu'), batch_size=1)"


@pytest.mark.parametrize("network", [fastlstm.LSTM, fastlstm.RNN])
def test_dropout_is_asked_for_elsewhere(network: Any) -> None:
    """PyTorch takes it when a network is made."""
    for nothing in (0, 0.0):
        assert network(1, 4, 2, dropout=nothing).num_layers == 2
    for dropout in (0.5, 1, None, "0"):
        with pytest.raises(ValueError, match=r"dropout must be 0, got .*record\(x, dropout=\)"):
            network(1, 4, 2, dropout=dropout)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copy_of_a_stream_goes_on_by_itself(case: Case, copied: Any) -> None:
    lstm = case.network()
    stream = lstm.stream(batch_size=case.shape.B)
    outputs = [stream.step(x_t) for x_t in case.x[:4]]
    lstm.load_state_dict({name: a * 0 for name, a in lstm.state_dict().items()})  # not the stream's, nor its copy's
    other = copied(stream)
    other.step(-case.x[4])
    other = copied(stream)
    outputs += [stream.step(x_t) for x_t in case.x[4:]]
    expected = flat(case.network()(case.x))
    assert_same_bytes((np.stack(outputs), *stream.state), expected)
    assert_same_bytes((np.stack([*outputs[:4], *map(other.step, case.x[4:])]), *other.state), expected)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_stream_packs_nothing_again(case: Case, copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = case.network().stream(batch_size=case.shape.B)
    monkeypatch.setattr(_engine, "Network", None)
    assert copied(stream).step(case.x[0]).tobytes() == stream.step(case.x[0]).tobytes()


def test_stream_of_one_row_takes_both_shapes() -> None:
    case = make_case("t9b1i5h20l2p7")
    lstm = case.network()
    stream = lstm.stream()
    output, state = lstm(case.x)
    for t in range(9):
        x_t, expected = (case.x[t], output[t]) if t % 2 else (case.x[t, 0], output[t, 0])
        y_t = stream.step(x_t)
        assert y_t.shape == expected.shape
        assert y_t.tobytes() == expected.tobytes()
    assert_same_bytes((output, *stream.state), (output, *state))


def test_stream_takes_any_layout(case: Case) -> None:
    lstm = case.network()
    output, _ = lstm(case.x)
    T, B, I = case.x.shape
    store = np.zeros(4 * B * I + 64, np.uint8)

    def odd(x_t: np.ndarray) -> np.ndarray:
        view = store[1 : 1 + x_t.nbytes].view(np.float32).reshape(x_t.shape)
        view[...] = x_t
        return view

    layouts = (np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2], lambda a: a[::-1].copy()[::-1], odd)
    stream = lstm.stream(batch_size=B)
    for t in range(T):
        assert stream.step(layouts[t % 4](case.x[t])).tobytes() == output[t].tobytes()


def test_stream_keeps_its_network(case: Case) -> None:
    """New parameters of the network are not the stream's, and the network may be gone."""
    lstm = case.network()
    expected = flat(lstm(case.x))
    stream = lstm.stream(batch_size=case.shape.B)
    outputs = [stream.step(case.x[0])]
    lstm.load_state_dict({name: a * 0 for name, a in lstm.state_dict().items()})
    outputs.append(stream.step(case.x[1]))
    del lstm
    outputs += [stream.step(x_t) for x_t in case.x[2:]]
    assert_same_bytes((np.stack(outputs), *stream.state), expected)


def test_a_bidirectional_network_cannot_stream() -> None:
    with pytest.raises(ValueError, match="bidirectional"):
        fastlstm.LSTM(5, 7, bidirectional=True).stream()


@pytest.mark.parametrize("recompute", [False, True])
@networks
def test_the_gradient_of_the_input_can_be_left_out(options: dict[str, Any], recompute: bool) -> None:
    """The others keep their bits."""
    lstm = fastlstm.LSTM(5, 7, seed=0, **options)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 3, 5)).astype(np.float32)
    tapes = [lstm.record(x, lengths=[6, 0, 4], recompute=recompute) for _ in range(2)]
    d_output = rng.standard_normal(tapes[0].output.shape).astype(np.float32)
    with_input, without = tapes[0].backward(d_output), tapes[1].backward(d_output, input=False)
    assert with_input.input is not None
    assert np.abs(with_input.input).max() > 0
    assert without.input is None
    for a, b in zip(with_input.state, without.state, strict=True):
        assert a.tobytes() == b.tobytes()
    for name, gradient in with_input.parameters.items():
        assert without.parameters[name].tobytes() == gradient.tobytes()
