"""Guitar amplifiers as JSON: Neural Amp Modeler's, GuitarML's, RTNeural's; each number in its place, and all of them used."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import guitarml, nam, rtneural, values, write_json
from helpers import refused

from fastlstm import Weights
from fastlstm.loaders import LSTMInfo, json_text, load, nam_file, scan
from fastlstm.loaders.source import opened

H, L = 4, 2  # of the files where nothing else is said


def weights_in(path: Path) -> Weights:
    with opened(path) as file:
        found = nam_file.find(file).choose(None)
        assert found.read is not None
        return found.read()


# ---- Neural Amp Modeler --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("I", "L", "outputs"), [(1, 1, 1), (1, 2, 1), (3, 3, 2), (H, 2, 1)])
def test_nam(I: int, L: int, outputs: int, tmp_path: Path) -> None:
    content = nam(I, L=L, outputs=outputs)
    path = write_json(tmp_path / "x.nam", content)
    assert scan(path) == [LSTMInfo("", I, H, L, False, 0, True, "float32")]
    rest = iter(np.float32(content["weights"]))
    take = lambda *shape: np.array([next(rest) for _ in range(int(np.prod(shape)))], np.float32).reshape(shape)  # noqa: E731
    weights = weights_in(path)
    for index, layer in enumerate(weights.layers):
        both = take(4 * H, (H if index else I) + H)
        assert (np.concatenate([layer.weight_ih, layer.weight_hh], 1) == both).all()
        assert (layer.bias_ih + layer.bias_hh == take(4 * H)).all()
        assert (layer.h_0 == take(H)).all()
        assert (layer.c_0 == take(H)).all()
    assert len(list(rest)) == outputs * (H + 1)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n\t", " :\r\n ")])
def test_nam_however_it_is_spaced(separators: tuple[str, str], tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.nam", nam(), separators=separators)
    expected = weights_in(write_json(tmp_path / "y.nam", nam(), indent=4, sort_keys=True))
    for (name, given), (_, other) in zip(weights_in(path).named_tensors(), expected.named_tensors(), strict=True):
        assert given.tobytes() == other.tobytes(), name
    path.write_bytes(b"\xef\xbb\xbf \n" + path.read_bytes() + b"\n\n")
    assert scan(path)


def test_a_large_nam(tmp_path: Path) -> None:
    """Some megabytes, read in a fraction of a second per megabyte."""
    path = write_json(tmp_path / "x.nam", nam(H=256, L=1))
    assert path.stat().st_size > 5 << 20
    start = time.thread_time()
    assert weights_in(path).hidden_size == 256
    assert time.thread_time() - start < 10


def config(**changes: Any) -> dict[str, Any]:
    return nam(config={"input_size": 1, "hidden_size": H, "num_layers": L} | changes)


COUNT = len(nam()["weights"])
BAD_NAM: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one number too few": (nam(weights=nam()["weights"][:-1]), ("weights must have", f"got {COUNT - 1}")),
    "one number too many": (nam(weights=[*nam()["weights"], 0]), (f"weights must have {COUNT} numbers", f"got {COUNT + 1}")),
    "no numbers": (nam(weights=[]), ("num_layers is 2, weights has 0 numbers",)),
    "text among the numbers": (nam(weights=[1, "2", 3]), ("weights must be a list of numbers",)),
    "lists among the numbers": (nam(weights=[[1, 2], [3]]), ("weights must be a list of numbers",)),
    "an object for the numbers": (nam(weights={}), ("weights must be a list of numbers",)),
    "a WaveNet": (nam(architecture="WaveNet"), ("no LSTM found", "architecture 'WaveNet'")),
    "an architecture of no name": (nam(architecture=["LSTM"]), ("no LSTM found",)),
    "another hidden size": (config(hidden_size=5), ("weights must have",)),
    "a hidden size of 0": (config(hidden_size=0), ("hidden_size, a positive integer, got 0",)),
    "a hidden size of -4": (config(hidden_size=-4), ("hidden_size, a positive integer, got -4",)),
    "a hidden size of 2^40": (config(hidden_size=2**40), ("hidden_size, a positive integer",)),
    "a hidden size of 4.5": (config(hidden_size=4.5), ("hidden_size, a positive integer, got 4.5",)),
    "a hidden size as text": (config(hidden_size="8"), ("hidden_size, a positive integer, got '8'",)),
    "a hidden size that is true": (config(hidden_size=True), ("hidden_size, a positive integer, got True",)),
    "2^31 - 1 layers": (config(num_layers=2**31 - 1), ("num_layers is 2147483647",)),
    "another key": (config(bidirectional=True), ("config must be an object with",)),
    "a config that is a list": (nam(config=[]), ("config must be an object",)),
    "inputs that do not fit": (config(in_channels=2), ("in_channels must be input_size, 1, got 2",)),
    "NaN": (nam(weights=[float("nan"), *nam()["weights"][1:]]), ("1 NaN or infinite values",)),
    "infinity": (nam(weights=[float("-inf"), *nam()["weights"][1:]]), ("1 NaN or infinite values",)),
    "too large for float32": (nam(weights=[1e300, *nam()["weights"][1:]]), ("1 NaN or infinite values",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_NAM)
def test_bad_nam(case: str, tmp_path: Path) -> None:
    content, parts = BAD_NAM[case]
    refused(lambda: load(write_json(tmp_path / "x", content)), *parts)


# ---- GuitarML ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("I", [1, 2, H])
@pytest.mark.parametrize("bare", [False, True])
def test_guitarml(I: int, bare: bool, tmp_path: Path) -> None:
    content = guitarml(I)
    path = write_json(tmp_path / "x.json", content["state_dict"] if bare else content)
    assert scan(path) == [LSTMInfo("rec", I, H, L, False, 0, True, "float32")]
    for name, tensor in load(path, "rec").state_dict().items():
        assert (tensor == np.float32(content["state_dict"][f"rec.{name}"])).all(), name


def tensor_changed(name: str, value: Any) -> dict[str, Any]:
    content = guitarml()
    content["state_dict"][f"rec.{name}"] = value
    return content


def without_bias() -> dict[str, Any]:
    content = guitarml()
    del content["state_dict"]["lin.bias"]
    return content


NO_ROWS = "got a list that is no list of rows of numbers, all of one length"
BAD_GUITARML: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "another hidden size": (guitarml(hidden_size=5), ("model_data has hidden_size 5, the tensors have 4",)),
    "another input size": (guitarml(input_size=2), ("model_data has input_size 2, the tensors have 1",)),
    "another unit": (guitarml(unit_type="GRU"), ("unit_type must be LSTM, got 'GRU'",)),
    "another output size": (guitarml(output_size=2), ("model_data has output_size 2, the tensors have 1",)),
    "a bias that is not declared": (guitarml(bias_fl=False), ("model_data has bias_fl False, the tensors have True",)),
    "a bias that is missing": (without_bias(), ("model_data has bias_fl True, the tensors have False",)),
    "rows of different lengths": (tensor_changed("weight_hh_l0", [[1, 2, 3, 4], [1, 2, 3]]), ("'rec.weight_hh_l0'", NO_ROWS)),
    "rows that are no lists": (tensor_changed("weight_hh_l0", [[1, 2], "x"]), ("'rec.weight_hh_l0'", NO_ROWS)),
    "three axes": (tensor_changed("weight_hh_l0", [[[1], [2]]]), ("'rec.weight_hh_l0'", NO_ROWS)),
    "a peephole that is a number": (
        tensor_changed("weight_peephole_l0", 1.5),
        ("'rec.weight_peephole_l0' belongs to an LSTM, by its name",),
    ),
    "a tensor missing": (tensor_changed("weight_hh_l1", None), ("'rec.weight_hh_l1' is missing",)),
    "a wrong shape": (tensor_changed("bias_hh_l1", [1.0, 2.0]), ("'rec.bias_hh_l1' must have shape (16,), got (2,)",)),
    "a GRU": (
        {"state_dict": {"rec.weight_ih_l0": values(0, 12, 1).tolist(), "rec.weight_hh_l0": values(0, 12, 4).tolist()}},
        ("no LSTM found", "this is a GRU"),
    ),
    "a state dict that is none": ({"state_dict": 3, "rec.weight_ih_l0": [[1.0]]}, ("'rec.weight_hh_l0' is missing",)),
    "nothing": ({"state_dict": {}}, ("no LSTM found: a state dict as JSON without named tensors",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_GUITARML)
def test_bad_guitarml(case: str, tmp_path: Path) -> None:
    content, parts = BAD_GUITARML[case]
    refused(lambda: load(write_json(tmp_path / "x", content)), *parts)
    if not parts[0].startswith("no LSTM found"):
        refused(lambda: scan(tmp_path / "x"), *parts)


def test_a_state_dict_as_json(tmp_path: Path) -> None:
    """icefall's scales, numbers in JSON, count; what stands beside an LSTM does not, whatever it is."""
    content = guitarml()["state_dict"]
    scales = {f"{name}_scale": n / 4 for n, name in enumerate(key for key in content if key.startswith("rec."))}
    beside = {"conv.weight": [[[1.0]]], "ragged": [[1], [2, 3]], "epoch": 3, "words": ["a"], "none": []}
    found = load(write_json(tmp_path / "x.json", content | scales | beside), "rec").state_dict()
    for name, tensor in found.items():
        factor = np.float32(np.exp(scales[f"rec.{name}_scale"]))
        assert (tensor == np.float32(content[f"rec.{name}"]) * factor).all(), name


# ---- RTNeural ------------------------------------------------------------------------------------------------------------------


def test_rtneural(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", rtneural())
    assert scan(path) == [LSTMInfo("layers.1", 3, H, 1, False, 0, True, "float32")]
    (layer,) = load(path).weights.layers
    assert (layer.weight_ih == values(2, 3, 4 * H).T).all()
    assert (layer.weight_hh == values(3, H, 4 * H).T).all()
    assert (layer.bias_ih + layer.bias_hh == values(4, 4 * H)).all()


def lstm_changed(**changes: Any) -> dict[str, Any]:
    content = rtneural()
    content["layers"][1] |= changes
    return content


def weights_changed(index: int, value: Any) -> dict[str, Any]:
    content = rtneural()
    content["layers"][1]["weights"][index] = value
    return content


BAD_RTNEURAL: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "another size": (lstm_changed(shape=[None, None, 5]), ("layers.1: shape must end with 4", "got 5")),
    "a size of -1": (lstm_changed(shape=[None, -1]), ("layers.1: shape must be a list that ends with a positive size",)),
    "no shape": (lstm_changed(shape=None), ("layers.1: shape must be a list",)),
    "an activation": (lstm_changed(activation="relu"), ("layers.1: activation must be tanh, got 'relu'",)),
    "two weights": (lstm_changed(weights=[[[1.0]], [[1.0]]]), ("layers.1: an LSTM needs three weights",)),
    "no weights": (lstm_changed(weights=None), ("layers.1: an LSTM needs three weights",)),
    "a kernel transposed": (weights_changed(0, values(2, 4 * H, 3).tolist()), ("layers.1: 'kernel' must have shape (16, 16)",)),
    "a short bias": (weights_changed(2, [1.0]), ("layers.1: 'bias' must have shape (16,), got (1,)",)),
    "a bias of rows": (weights_changed(2, [[1.0]]), ("layers.1: bias must be a list of numbers",)),
    "no LSTM": (rtneural(layers=rtneural()["layers"][:1]), ("no LSTM found", "layers 'time-distributed-dense'")),
    "a GRU": (rtneural(layers=[{"type": "gru"}]), ("no LSTM found", "layers.0: this is a GRU")),
    "a type that is no text": (rtneural(layers=[{"type": 3}]), ("layers.0: type must be text",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RTNEURAL)
def test_bad_rtneural(case: str, tmp_path: Path) -> None:
    content, parts = BAD_RTNEURAL[case]
    refused(lambda: load(write_json(tmp_path / "x", content)), *parts)


# ---- JSON ----------------------------------------------------------------------------------------------------------------------

ROOM = 1 << 26


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        'a \\ " \n \u20ac \U0001f600 \ud800',
        {"a": [1, "x"], "b": {"c": []}, "": None},
        [True, False, None, 0, -1, 2**70, 1.5, -2e-300],
        [[], [[]], {}],
        {"text": "with \\", "more": '\\\\" \\u0041'},
    ],
)
@pytest.mark.parametrize("options", [{}, {"indent": 1}, {"ensure_ascii": False, "separators": (",", ":")}])
def test_json_as_python_reads_it(content: Any, options: dict[str, Any]) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, json_text.NumberList):
            return value.values.tolist()
        if isinstance(value, list):
            return [plain(item) for item in value]
        return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value

    text = json.dumps(content, **options).encode("utf-8", "surrogatepass")
    if b"\xed\xa0\x80" in text:
        refused(lambda: json_text.parse(text, ROOM), "broken JSON")
    else:
        assert plain(json_text.parse(text, ROOM)) == json.loads(text)


def test_numbers_of_a_list(tmp_path: Path) -> None:
    """Also where the pieces that the list is taken apart in begin and end."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 3276, 3277, 20_000):
        expected = rng.standard_normal(count) * 10.0 ** rng.integers(-300, 300, count)
        given = json_text.parse(json.dumps(expected.tolist()).encode(), ROOM)
        assert given.values.tobytes() == expected.tobytes()
    for text in (f"[{' ' * 200_000}1, 2]", f"[1,{' ' * 200_000} 2]", f"[1, 2{' ' * 200_000}]"):
        assert json_text.parse(text.encode(), ROOM).values.tolist() == [1, 2]
    given = json_text.parse(b"[1e5, -0, NaN, Infinity, -Infinity, 0.0, 1E+2, 2e-2]", ROOM)
    assert repr(given.values.tolist()) == "[100000.0, 0.0, nan, inf, -inf, 0.0, 100.0, 0.02]".replace(
        "100000.0, 0.0", "100000.0, -0.0"
    )


BROKEN = (
    b"", b"{", b"[", b"[1", b"[1,", b"[1,]", b"[,1]", b"[1 2]", b"[01]", b"[1.]", b"[.5]", b"[+1]", b"[1e]", b"[--1]", b"[1_0]",
    b"[inf]", b"[nan]", b"[-NaN]", b"[0x10]", b"{1: 2}", b"{'a': 1}", b'{"a" 1}', b'{"a": }', b'{"a": 1,}', b'{"a": 1 "b": 2}',
    b'{"a": 1}}', b'{"a": 1} x', b'"abc', b'"\\', b'"\\"', b'"\\x"', b'"\n"', b'"\xff"', b"tru", b"nul", b"True", b"'a'",
    b"[tru]", b"[1, 2, x]", b"\0", b"/* */ 1", b"[" + b"1," * 70_000 + b"]", b"[" + b"1," * 40_000 + b"x,1]", b"-", b"--", b"[-]",
)  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: repr(text[:12]))
def test_broken_json(text: bytes) -> None:
    refused(lambda: json_text.parse(text, ROOM), "broken JSON")


def test_limits_of_json() -> None:
    refused(lambda: json_text.parse(b"[" * 60 + b"]" * 60, ROOM), "nested more than 50 deep")
    refused(lambda: json_text.parse(b'{"a":' * 100_000, ROOM), "nested more than 50 deep")
    refused(lambda: json_text.parse(b'{"a": 1, "a": 1}', ROOM), "'a' twice")
    refused(lambda: json_text.parse(b'{"a": 1, "\\u0061": 1}', ROOM), "'a' twice")
    refused(lambda: json_text.parse(b"[" + b"[]," * 1000 + b"[]]", 100_000), "describes more than")
    refused(lambda: json_text.parse(b"[" + b"1," * 100_000 + b"1]", 100_000), "describes more than")
    refused(lambda: json_text.parse(b'"' + b"a" * 100_000 + b'"', 100_000), "describes more than")


def test_json_of_something_else(tmp_path: Path) -> None:
    for content in (
        {"weight_map": {}},
        {"layers": 3},
        {"layers": []},
        {"layers": [{"name": "x"}]},
        {"config": {}, "weights": []},
    ):
        refused(lambda content=content: load(write_json(tmp_path / "x", content)), "this is JSON text")
