"""Flax's parameters, live and in files: the network computes what Flax computes, and what is not understood is refused by name.

The golden files are made by ``golden/make_flax.py`` with the real framework.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import linen, values
from helpers import refused, required

import fastlstm
from fastlstm.errors import FormatError
from fastlstm.loaders import LSTMInfo, from_flax, load, scan

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5
I, H = 3, 5

FILES = {
    "flax_linen.msgpack": [LSTMInfo("", 3, 5, 1, False, 0, True, "float32", True)],
    "flax_chunked.msgpack": [LSTMInfo("", 3, 5, 1, True, 0, True, "float32", True)],
    "flax_nnx.msgpack": [LSTMInfo("", 3, 5, 1, False, 0, True, "float32", True)],
    "flax_bfloat16.msgpack": [LSTMInfo("", 3, 5, 1, False, 0, True, "bfloat16", True)],
    "flax_state.msgpack": [
        LSTMInfo("LSTMCell_0", 3, 4, 1, False, 0, True, "float32", True),
        LSTMInfo("OptimizedLSTMCell_0", 4, 5, 1, False, 0, True, "float32", True),
    ],
}


def assert_same(a: fastlstm.LSTM, b: fastlstm.LSTM) -> None:
    for (name, one), (_, other) in zip(a.weights.named_tensors(), b.weights.named_tensors(), strict=True):
        assert one.tobytes() == other.tobytes(), name


# ---- Golden files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_golden_file(file: str) -> None:
    assert scan(GOLDEN / file) == FILES[file]
    with np.load(GOLDEN / "flax_expected.npz") as expected:
        for info in FILES[file]:
            lstm = load(GOLDEN / file, info.name)
            assert lstm.batch_first
            if file in expected:
                np.testing.assert_allclose(lstm(expected["x"])[0], expected[file], rtol=0, atol=TOLERANCE)


def test_a_checkpoint_without_its_optimizer() -> None:
    """The moments of the optimizer have the same tree as the parameters and are passed over."""
    for name in ("OptimizedLSTMCell_0", "params/params/OptimizedLSTMCell_0", "params.params.OptimizedLSTMCell_0"):
        assert load(GOLDEN / "flax_state.msgpack", name).hidden_size == 5
    refused(lambda: load(GOLDEN / "flax_state.msgpack"), "2 LSTMs", "'LSTMCell_0', 'OptimizedLSTMCell_0'")


def test_loading_needs_no_flax() -> None:
    code = (
        "import sys, fastlstm\n"
        f"fastlstm.load({str(GOLDEN / 'flax_linen.msgpack')!r})\n"
        "print([name for name in ('flax', 'jax', 'msgpack') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- Trees ---------------------------------------------------------------------------------------------------------------------


def expected_weights(tree: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``W x`` in place of ``x W``, gate by gate."""
    return (
        np.concatenate([tree[f"i{gate}"]["kernel"].T for gate in "ifgo"]),
        np.concatenate([tree[f"h{gate}"]["kernel"].T for gate in "ifgo"]),
        np.concatenate([tree[f"h{gate}"]["bias"] for gate in "ifgo"]),
    )


@pytest.mark.parametrize("inputs", [3, 5])
def test_each_gate_in_its_place(inputs: int) -> None:
    tree = linen(inputs)
    layer = from_flax(tree).weights.layers[0]
    weight_ih, weight_hh, bias = expected_weights(tree)
    assert (layer.weight_ih == weight_ih).all()
    assert (layer.weight_hh == weight_hh).all()
    assert (layer.bias_ih + layer.bias_hh == bias).all()


@pytest.mark.parametrize("separator", ["/", ".", None])
@pytest.mark.parametrize("prefix", [(), ("params", "cell"), ("params", "encoder", "cell"), ("encoder",)])
def test_flat_and_nested(separator: str | None, prefix: tuple[str, ...]) -> None:
    tree = linen()
    flat: dict[Any, Any] = {(*prefix, one, leaf): array for one, leaves in tree.items() for leaf, array in leaves.items()}
    nested: Any = tree
    for step in reversed(prefix):
        nested = {step: nested}
    keyed = flat if separator is None else {separator.join(path): array for path, array in flat.items()}
    for source in (keyed, nested):
        assert_same(from_flax(source), from_flax(tree))
        for name in ("/".join(prefix), ".".join(prefix), "/".join(prefix).removeprefix("params/")):
            assert_same(from_flax(source, name), from_flax(tree))
            assert_same(from_flax(source, name.removesuffix("/cell").removesuffix(".cell")), from_flax(tree))
    refused(lambda: from_flax(nested, "decoder"), "no LSTM is named 'decoder'")


def test_batch_first() -> None:
    assert from_flax(linen()).batch_first
    assert not from_flax(linen(), batch_first=False).batch_first


def test_two_directions_and_one_of_them() -> None:
    tree = {"bi": {"forward_rnn": {"cell": linen()}, "backward_rnn": {"cell": linen(seed=50)}}}
    lstm = from_flax(tree, "bi")
    assert lstm.bidirectional
    assert_same(from_flax(tree), lstm)
    assert (lstm.weights.layers[1].weight_ih == expected_weights(linen(seed=50))[0]).all()
    del tree["bi"]["backward_rnn"]
    assert not from_flax(tree, "bi/forward_rnn").bidirectional


def without(*path: str) -> dict[str, Any]:
    tree = linen()
    inner = tree
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return tree


BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "nothing": ({}, ("no LSTM found", "0 arrays")),
    "a dense layer": ({"Dense_0": {"kernel": values(0, 3, 4)}}, ("no LSTM found", "'Dense_0/kernel'")),
    "a kernel missing": (without("if"), ("'if/kernel' is missing",)),
    "the first kernel missing": (without("ii"), ("'ii/kernel' is missing",)),
    "a bias missing": (without("hg", "bias"), ("'hg/bias' is missing",)),
    "a bias too many": (linen() | {"ii": {"kernel": values(0, I, H), "bias": values(1, H)}}, ("'ii/bias' is not understood",)),
    "another kernel too": (linen() | {"ii": {"kernel": values(0, I, H), "lora": values(2, 1)}}, ("'ii/lora'",)),
    "a wrong shape": (linen() | {"ig": {"kernel": values(0, H, I)}}, ("'ig/kernel' must have shape (3, 5), got (5, 3)",)),
    "one number": (linen() | {"ii": {"kernel": np.float32(1)}}, ("'ii/kernel' must have 2 dimensions, got shape ()",)),
    "whole numbers": (linen() | {"ii": {"kernel": np.ones((I, H), int)}}, ("'ii/kernel' must be one of float16", "int64")),
    "two precisions": (linen() | {"ig": {"kernel": np.ones((I, H))}}, ("one precision expected",)),
    "no inputs": (linen(0), ("input_size must be between 1",)),
    "a GRU": (
        {"gru": {name: {"kernel": values(0, 3, 4)} for name in ("ir", "iz", "in", "hr", "hz", "hn")}},
        ("no LSTM found", "'gru': this is a GRU"),
    ),
    "a GRU of nnx": (
        {"gru": {"dense_i": {"kernel": values(0, 3, 12)}, "dense_h": {"kernel": values(0, 4, 12)}}},
        ("no LSTM found", "'gru': this is a GRU"),
    ),
    "two spellings of one parameter": (linen() | {"if_": {"kernel": values(0, I, H)}}, ("are the same parameter",)),
    "a path twice": ({"a": linen()} | {"a/ii": {"kernel": values(0, I, H)}}, ("two tensors have the name 'a/ii/kernel'",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    tree, parts = BAD[case]
    refused(lambda: from_flax(tree), *parts)


def test_one_bad_cell_does_not_hide_the_others(tmp_path: Path) -> None:
    tree = {"good": linen(), "bad": without("if"), "twice": linen() | {"if_": {"kernel": values(0, I, H)}}}
    flat = {f"{name}/{linear}/{leaf}": a for name, cell in tree.items() for linear, d in cell.items() for leaf, a in d.items()}
    np.savez(tmp_path / "x.npz", **flat)
    problems = {info.name: info.problem for info in scan(tmp_path / "x.npz")}
    assert problems["good"] == ""
    assert "'bad/if/kernel' is missing" in problems["bad"]
    assert "are the same parameter" in problems["twice"]
    assert_same(load(tmp_path / "x.npz", "good"), from_flax(linen()))


def test_not_a_tree() -> None:
    with pytest.raises(TypeError, match="params must be a tree of parameters or a flax"):
        from_flax("model.msgpack")


# ---- The framework itself ------------------------------------------------------------------------------------------------------


def randomised(tree: Any, rng: np.random.Generator) -> Any:
    jax = required("jax")
    return jax.tree.map(lambda leaf: jax.numpy.asarray(rng.uniform(-1, 1, leaf.shape), leaf.dtype), tree)


def check(lstm: fastlstm.LSTM, x: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(lstm(x)[0], np.asarray(expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_live_linen(cell: str, bidirectional: bool, tmp_path: Path) -> None:
    nn, serialization, jax = required("flax.linen"), required("flax.serialization"), required("jax")
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 6, I)).astype(np.float32)
    make = lambda: nn.RNN(getattr(nn, cell)(H))  # noqa: E731
    module = nn.Bidirectional(make(), make()) if bidirectional else make()
    variables = randomised(module.init(jax.random.key(0), x), rng)
    lstm = from_flax(variables)
    assert lstm.bidirectional == bidirectional
    check(lstm, x, module.apply(variables, x))
    (tmp_path / "x").write_bytes(serialization.to_bytes(variables))
    assert_same(load(tmp_path / "x"), lstm)
    flat = required("flax.traverse_util").flatten_dict(variables)
    assert_same(from_flax(flat), lstm)
    np.savez(tmp_path / "x.npz", **{"/".join(path): array for path, array in flat.items()})
    assert_same(load(tmp_path / "x.npz"), lstm)
    assert load(tmp_path / "x.npz").batch_first


def test_live_linen_carry() -> None:
    """Flax's carry is (c, h)."""
    nn, jax = required("flax.linen"), required("jax")
    rng = np.random.default_rng(6)
    x, h, c = rng.standard_normal((2, 1, I)), rng.standard_normal((2, H)), rng.standard_normal((2, H))
    x, h, c = (array.astype(np.float32) for array in (x, h, c))
    cell = nn.LSTMCell(H)
    variables = randomised(cell.init(jax.random.key(0), (c, h), x[:, 0]), rng)
    (c_1, h_1), y = cell.apply(variables, (c, h), x[:, 0])
    output, (h_n, c_n) = from_flax(variables)(x, (h[None], c[None]))
    for given, expected in ((output[:, 0], y), (h_n[0], h_1), (c_n[0], c_1)):
        np.testing.assert_allclose(given, np.asarray(expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cell", ["LSTMCell", "OptimizedLSTMCell"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_live_nnx(cell: str, bidirectional: bool, tmp_path: Path) -> None:
    nnx, serialization = required("flax.nnx"), required("flax.serialization")
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, 6, I)).astype(np.float32)
    make = lambda seed: nnx.RNN(getattr(nnx, cell)(I, H, rngs=nnx.Rngs(seed)), rngs=nnx.Rngs(seed))  # noqa: E731
    module = nnx.Bidirectional(make(0), make(1), rngs=nnx.Rngs(2)) if bidirectional else make(0)
    pure = randomised(nnx.to_pure_dict(nnx.state(module, nnx.Param)), rng)
    nnx.update(module, pure)
    lstm = from_flax(module)
    check(lstm, x, module(x))
    state = nnx.state(module)
    (tmp_path / "x").write_bytes(serialization.to_bytes(pure))
    for other in (from_flax(state), from_flax(pure), from_flax(dict(nnx.to_flat_state(state))), load(tmp_path / "x")):
        assert_same(other, lstm)


@pytest.mark.parametrize("function", ["tanh", "relu", "hard_sigmoid", "soft_sign", "softplus", "elu", "leaky_relu"])
def test_live_activations(function: str) -> None:
    nnx, jax = required("flax.nnx"), required("jax")
    x, other = values(0, 2, 6, I), getattr(jax.nn, function)
    for cell, given in (("LSTMCell", {"activation_fn": other}), ("OptimizedLSTMCell", {"gate_fn": other})):
        module = nnx.RNN(getattr(nnx, cell)(I, H, rngs=nnx.Rngs(1), **given))
        check(from_flax(module), x, module(x))


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("keep_order", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_live_order(reverse: bool, keep_order: bool, time_major: bool) -> None:
    nnx = required("flax.nnx")
    x = values(0, 4, 6, I)
    options = {"reverse": reverse, "keep_order": keep_order, "time_major": time_major}
    module = nnx.RNN(nnx.LSTMCell(I, H, rngs=nnx.Rngs(1)), **options)
    lstm = from_flax(module)
    assert lstm.batch_first is not time_major
    check(lstm, x, module(x))
    pair = nnx.Bidirectional(module, nnx.RNN(nnx.LSTMCell(I, H, rngs=nnx.Rngs(2))), time_major=time_major, rngs=nnx.Rngs(0))
    lstm = from_flax(pair)
    assert lstm.batch_first is not time_major
    check(lstm, x, pair(x))


def test_live_modules_that_compute_something_else() -> None:
    nnx = required("flax.nnx")

    class Mine(nnx.LSTMCell):
        pass

    def rnn(seed: int, cell: Any = nnx.LSTMCell, **options: Any) -> Any:
        return nnx.RNN(cell(I, H, rngs=nnx.Rngs(seed), **options))

    class MyRNN(nnx.RNN):
        pass

    class Both(nnx.Module):
        def __init__(self) -> None:
            self.forward_rnn, self.backward_rnn = rnn(0), rnn(1)

    def pair(*both: Any, **options: Any) -> Any:
        return nnx.Bidirectional(*both, rngs=nnx.Rngs(2), **options)

    for module, message in {
        rnn(0, Mine): "its class 'Mine' is not Flax's own",
        MyRNN(nnx.LSTMCell(I, H, rngs=nnx.Rngs(0)), reverse=True): "its class 'MyRNN' is not Flax's own RNN",
        pair(rnn(0), MyRNN(nnx.LSTMCell(I, H, rngs=nnx.Rngs(0)))): "its class 'MyRNN' is not Flax's own RNN",
        nnx.Dict({"a/b": rnn(0)}): "its place in the module cannot be told",
        rnn(0, gate_fn=lambda x: x): "gate_fn '<lambda>' is not understood",
        pair(rnn(0), rnn(1), merge_fn=lambda a, b: a + b): "merge_fn is not concatenation.*one by one",
        pair(rnn(0), rnn(1, activation_fn=nnx.relu)): "different activations",
        Both(): "'Both' is not Flax's own Bidirectional",
    }.items():
        with pytest.raises(FormatError, match=message):
            from_flax(module)
        from_flax(nnx.state(module))  # parameters alone: as Flax's default
    halves = pair(rnn(0), rnn(1), merge_fn=lambda a, b: a + b)
    x = values(0, 2, 6, I)
    check(from_flax(halves.forward_rnn), x, halves.forward_rnn(x))


def test_live_model_with_several() -> None:
    nn, jax = required("flax.linen"), required("jax")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.RNN(nn.LSTMCell(4))(x), nn.RNN(nn.LSTMCell(5))(x)

    x = values(0, 2, 6, I)
    variables = randomised(Model().init(jax.random.key(0), x), np.random.default_rng(0))
    for name, expected in zip(("LSTMCell_0", "LSTMCell_1"), Model().apply(variables, x), strict=True):
        check(from_flax(variables, name), x, expected)
    with pytest.raises(TypeError, match=r"of a flax\.linen\.Module, pass the variables"):
        from_flax(Model())


# ---- Broken files --------------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return bytes([0xA0 | len(value)]) + value.encode()


def array(
    shape: bytes = b"\x92\x03\x05", dtype: bytes = text("float32"), data: bytes = b"\xc4\x3c" + bytes(60), code: int = 1
) -> bytes:
    payload = b"\x93" + shape + dtype + data
    return b"\xc7" + bytes([len(payload), code]) + payload


def chunked(*items: tuple[str, bytes]) -> bytes:
    return bytes([0x81 + len(items)]) + text("__msgpack_chunked_array__") + b"\xc3" + b"".join(text(k) + v for k, v in items)


FLAT = array(b"\x91\x0f")
BROKEN: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "bytes after the end": (array() + b"\0", ("1 bytes after the end",)),
    "cut off": (array()[:-1], ("truncated",)),
    "more shape than data": (array(b"\x92\x04\x05"), ("shape (4, 5)", "must have 80 bytes, got 60")),
    "a dimension of -1": (array(b"\x92\x03\xff"), ("an invalid shape",)),
    "a dimension of 2^40": (array(b"\x92\x00\xcf" + struct.pack(">Q", 2**40)), ("an invalid shape",)),
    "a shape of text": (array(text("ab")), ("an invalid shape",)),
    "objects": (array(dtype=text("object")), ("objects, which could execute code",)),
    "a dtype that is none": (array(dtype=b"\xc0"), ("dtype is no text",)),
    "data that are no bytes": (array(data=b"\xc0"), ("data are no bytes",)),
    "two values for an array": (b"\xc7\x03\x01\x92\xc0\xc0", ("not its shape, dtype and bytes",)),
    "an array longer than its extension": (b"\xc7\x05\x01" + array()[3:], ("not its shape, dtype and bytes",)),
    "an extension of Python's": (array(code=5), ("an object of type 5",)),
    "a reserved byte": (b"\xc1", ("byte 0xc1",)),
    "a key that is no text": (b"\x81\x01\xc0", ("a dictionary key that is no text",)),
    "a key twice": (b"\x82" + 2 * (text("a") + b"\xc0"), ("dictionary key 'a' twice",)),
    "a list of 4 billion": (b"\xdd\xff\xff\xff\xff\xc0", ("truncated",)),
    "a text of 4 billion": (b"\xdb\xff\xff\xff\xffa", ("describe more than a file of",)),
    "text that is not UTF-8": (b"\xa1\xff", ("UTF-8",)),
    "lists, 100 deep": (b"\x91" * 100, ("nested more than 50 deep",)),
    "arrays in arrays": (b"\xc7\xff\x01" * 200, ("",)),
    "chunks without a shape": (chunked(("chunks", b"\x81" + text("0") + FLAT)), ("not its shape and its chunks",)),
    "chunks of another size": (
        chunked(("shape", b"\x81" + text("0") + b"\x10"), ("chunks", b"\x81" + text("0") + FLAT)),
        ("must have 64 bytes, got 60",),
    ),
    "chunks with a gap": (
        chunked(("shape", b"\x81" + text("0") + b"\x0f"), ("chunks", b"\x81" + text("1") + FLAT)),
        ("not numbered from 0",),
    ),
    "chunks that are not flat": (
        chunked(("shape", b"\x81" + text("0") + b"\x0f"), ("chunks", b"\x81" + text("0") + array())),
        ("no flat array",),
    ),
    "a name of 600 characters": (
        (b"\x81" + b"\xd9\xc8" + b"n" * 200) * 3 + b"\xc0", ("a name of more than 500 characters",)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file(case: str, tmp_path: Path) -> None:
    value, parts = BROKEN[case]
    (tmp_path / "x").write_bytes(b"\x81" + text("w") + value)
    for act in (scan, load):
        refused(lambda act=act: act(tmp_path / "x"), *parts)
