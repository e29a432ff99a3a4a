"""Bad calls: a ValueError or TypeError that names the argument, what was expected and what was given; and nothing has changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from helpers import DTYPES, TOLERANCE, Case, assert_close, assert_same_bytes, flat, import_torch, make_case
from hypothesis import given
from hypothesis import strategies as st
from shapes import Shape

import fastlstm
from fastlstm import LayerWeights, Weights

CASE = make_case("t6b4i5h7l2d2p3", lengths=True, resets=True)
NETWORK = CASE.network()
EXPECTED = CASE.run(NETWORK)
H_0, C_0 = CASE.state


class OnAnotherDevice:
    """What a GPU array looks like."""

    shape, dtype = (6, 4, 5), "float32"

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("not on the CPU")


class GivesCopies:
    """What a dataset of h5py or a table of pandas looks like: reading it makes an array."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, *arguments: Any, **options: Any) -> np.ndarray:
        return self.values.copy()


class Refuses:
    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no array here")


def x_of(dtype: Any) -> np.ndarray:
    return np.ones((6, 4, 5), dtype)


# what is passed, the error, what its message must hold (all of it)
BAD_CALLS: dict[str, tuple[dict[str, Any], Any, tuple[str, ...]]] = {
    "x: 0 dimensions": ({"x": np.float32(1) * np.ones((), "f")}, ValueError, ("x", "(T, B, 5)", "()")),
    "x: 1 dimension": ({"x": CASE.x[0, 0]}, ValueError, ("x", "(T, B, 5)", "(5,)")),
    "x: 4 dimensions": ({"x": CASE.x[None]}, ValueError, ("x", "(T, B, 5)", "(1, 6, 4, 5)")),
    "x: too few inputs": ({"x": CASE.x[..., 1:]}, ValueError, ("x", "(T, B, 5)", "(6, 4, 4)")),
    "x: too many inputs": ({"x": np.ones((6, 4, 6), "f")}, ValueError, ("x", "(T, B, 5)", "(6, 4, 6)")),
    "x: no inputs": ({"x": np.ones((6, 4, 0), "f")}, ValueError, ("x", "(T, B, 5)", "(6, 4, 0)")),
    "x: one sequence, wrong inputs": ({"x": np.ones((6, 4), "f")}, ValueError, ("x", "5", "(6, 4)")),
    **{
        f"x: {dtype}": ({"x": x_of(dtype)}, TypeError, ("x", "float32", dtype))
        for dtype in ("float64", "float16", "int32", "int64", "uint8", "bool", "complex64", "object", "datetime64[s]")
    },
    "x: strings": ({"x": x_of("U3")}, TypeError, ("x", "float32", "U3")),
    "x: records": ({"x": x_of([("a", "f4")])}, TypeError, ("x", "float32")),
    "x: None": ({"x": None}, TypeError, ("x", "None")),
    "x: a list": ({"x": CASE.x.tolist()}, TypeError, ("x", "list")),
    "x: a number": ({"x": 1.0}, TypeError, ("x", "float")),
    "x: a string": ({"x": "six"}, TypeError, ("x", "str")),
    "x: a masked array": ({"x": np.ma.masked_array(CASE.x, CASE.x > 0)}, TypeError, ("x", "mask", "x.filled(...)")),
    "x: on another device": ({"x": OnAnotherDevice()}, TypeError, ("x", "OnAnotherDevice")),
    "x: an object that refuses": ({"x": Refuses()}, TypeError, ("x", "Refuses")),
    "state: one array": ({"state": H_0}, (TypeError, ValueError), ("state", "h_0", "c_0")),
    "state: a triple": ({"state": (H_0, C_0, C_0)}, (TypeError, ValueError), ("state", "h_0", "c_0")),
    "state: a single": ({"state": (H_0,)}, (TypeError, ValueError), ("state", "h_0", "c_0")),
    "state: a dictionary": ({"state": {"h_0": H_0, "c_0": C_0}}, (TypeError, ValueError), ("state", "h_0", "c_0")),
    "h_0: None": ({"state": (None, C_0)}, TypeError, ("h_0", "None")),
    "c_0: None": ({"state": (H_0, None)}, TypeError, ("c_0", "None")),
    "h_0 and c_0: in each other's place": ({"state": (C_0, H_0)}, ValueError, ("h_0", "(4, 4, 3)", "(4, 4, 7)")),
    "h_0: another batch": ({"state": (H_0[:, :3], C_0)}, ValueError, ("h_0", "(4, 4, 3)", "(4, 3, 3)")),
    "c_0: another batch": ({"state": (H_0, C_0[:, :3])}, ValueError, ("c_0", "(4, 4, 7)", "(4, 3, 7)")),
    "h_0: a batch of 1 is not broadcast": ({"state": (H_0[:, :1], C_0)}, ValueError, ("h_0", "(4, 4, 3)", "(4, 1, 3)")),
    "h_0: too few layers": ({"state": (H_0[:2], C_0)}, ValueError, ("h_0", "(4, 4, 3)", "(2, 4, 3)")),
    "c_0: no batch": ({"state": (H_0, C_0[:, 0])}, ValueError, ("c_0", "(4, 4, 7)", "(4, 7)")),
    "h_0: float64": ({"state": (H_0.astype("d"), C_0)}, TypeError, ("h_0", "float32", "float64")),
    "c_0: float64": ({"state": (H_0, C_0.astype("d"))}, TypeError, ("c_0", "float32", "float64")),
    "h_0: integers": ({"state": (H_0.astype(int), C_0)}, TypeError, ("h_0", "float32", "int64")),
    "c_0: masked": ({"state": (H_0, np.ma.masked_array(C_0))}, TypeError, ("c_0", "mask")),
    "lengths: too few": ({"lengths": [1, 2, 3]}, ValueError, ("lengths", "(4,)", "(3,)")),
    "lengths: too many": ({"lengths": [1, 2, 3, 4, 5]}, ValueError, ("lengths", "(4,)", "(5,)")),
    "lengths: none": ({"lengths": []}, ValueError, ("lengths", "(4,)", "(0,)")),
    "lengths: 2 dimensions": ({"lengths": np.ones((4, 1), int)}, ValueError, ("lengths", "(4,)", "(4, 1)")),
    "lengths: a number": ({"lengths": 3}, (TypeError, ValueError), ("lengths",)),
    "lengths: above T": ({"lengths": [1, 7, 2, 3]}, ValueError, ("lengths", "6", "7")),
    "lengths: below 0": ({"lengths": [1, 2, -1, 3]}, ValueError, ("lengths", "0", "-1")),
    "lengths: far above": ({"lengths": [1, 2, 3, 2**63 - 1]}, ValueError, ("lengths", str(2**63 - 1))),
    "lengths: above int64": ({"lengths": np.array([1, 2, 3, 2**64 - 1], np.uint64)}, ValueError, ("lengths", str(2**64 - 1))),
    "lengths: above any integer type": ({"lengths": [1, 2, 3, 2**70]}, ValueError, ("lengths[3]", "T = 6", str(2**70))),
    "lengths: large ones of both signs": ({"lengths": [2**63, -1, 0, 1]}, ValueError, ("lengths[0]", "T = 6", str(2**63))),
    "lengths: True among them": ({"lengths": [True, 2, 3, 4]}, TypeError, ("lengths[0]", "integer", "True")),
    "lengths: floats": ({"lengths": np.ones(4)}, TypeError, ("lengths", "integer", "float64")),
    "lengths: a list with a float": ({"lengths": [1, 2, 3.0, 4]}, TypeError, ("lengths[2]", "integer", "3.0")),
    "lengths: bools": ({"lengths": np.ones(4, bool)}, TypeError, ("lengths", "integer", "bool")),
    "lengths: strings": ({"lengths": ["1", "2", "3", "4"]}, TypeError, ("lengths", "integer")),
    "lengths: None among them": ({"lengths": [1, 2, None, 4]}, TypeError, ("lengths",)),
    "lengths: ragged": ({"lengths": [[1], [2, 3], [1], [1]]}, (TypeError, ValueError), ("lengths",)),
    "lengths: a string": ({"lengths": "1234"}, TypeError, ("lengths",)),
    "lengths: masked": ({"lengths": np.ma.masked_array([1, 2, 3, 4])}, TypeError, ("lengths", "mask")),
    "resets: batch-first": ({"resets": CASE.resets.T}, ValueError, ("resets", "(6, 4)", "(4, 6): (T, B), also with batch_first")),
    "resets: one row": ({"resets": CASE.resets[:, 0]}, ValueError, ("resets", "(6, 4)", "(6,)")),
    "resets: one step too few": ({"resets": CASE.resets[1:]}, ValueError, ("resets", "(6, 4)", "(5, 4)")),
    "resets: integers": ({"resets": CASE.resets.astype(int)}, TypeError, ("resets", "bool", "int64")),
    "resets: bytes": ({"resets": CASE.resets.view("u1")}, TypeError, ("resets", "bool", "uint8")),
    "resets: floats": ({"resets": CASE.resets.astype("f")}, TypeError, ("resets", "bool", "float32")),
    "resets: a bool": ({"resets": True}, (TypeError, ValueError), ("resets",)),
    "out: wrong shape": ({"out": np.ones((6, 4, 7), "f")}, ValueError, ("out", "(6, 4, 6)", "(6, 4, 7)")),
    "out: batch-first": ({"out": np.ones((4, 6, 6), "f")}, ValueError, ("out", "(6, 4, 6)", "(4, 6, 6)")),
    "out: float64": ({"out": np.ones((6, 4, 6))}, TypeError, ("out", "float32", "float64", "make it with dtype=float32")),
    "out: a copy": ({"out": GivesCopies(np.ones((6, 4, 6), "f"))}, TypeError, ("out", "copy", "GivesCopies")),
    "out: a list": ({"out": []}, TypeError, ("out", "list")),
    "out: read-only": ({"out": np.broadcast_to(np.float32(1), (6, 4, 6))}, ValueError, ("out", "read-only")),
    "threads: 0": ({"threads": 0}, ValueError, ("threads", "1", "0")),
    "threads: -2": ({"threads": -2}, ValueError, ("threads", "1", "-2")),
    "threads: a float": ({"threads": 1.5}, TypeError, ("threads", "integer", "1.5")),
    "threads: an array": ({"threads": np.array(1.5)}, TypeError, ("threads", "integer", "1.5")),
    "threads: a string": ({"threads": "2"}, TypeError, ("threads", "integer", "'2'")),
    "threads: a bool": ({"threads": True}, TypeError, ("threads", "integer", "True")),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_bad_calls(what: str) -> None:
    changes, error, fragments = BAD_CALLS[what]
    buffer = np.full(EXPECTED[0].shape, 7, np.float32)
    arguments = {"x": CASE.x, "state": CASE.state, "lengths": CASE.lengths, "resets": CASE.resets, "out": buffer, **changes}
    copies = [a.tobytes() for a in (CASE.x, *CASE.state, CASE.lengths, CASE.resets) if a is not None]
    with pytest.raises(error) as raised:
        NETWORK(arguments.pop("x"), arguments.pop("state"), **arguments)
    message = str(raised.value)
    assert all(fragment in message for fragment in fragments), message
    assert re.match(rf"{re.escape(what.split(':')[0].split()[0])}\b", message) or what.startswith("state"), message
    assert (buffer == 7).all()
    assert copies == [a.tobytes() for a in (CASE.x, *CASE.state, CASE.lengths, CASE.resets) if a is not None]
    assert_same_bytes(CASE.run(NETWORK), EXPECTED)


def test_batch_first_names_its_own_layout() -> None:
    first = fastlstm.LSTM.from_weights(CASE.weights, batch_first=True)
    with pytest.raises(ValueError, match=re.escape("x must have shape (B, T, 5), got (6, 4, 4)")):
        first(CASE.x[..., 1:])
    with pytest.raises(ValueError, match=re.escape("out must have shape (6, 4, 6), got (4, 6, 6)")):
        first(CASE.x, out=np.ones((4, 6, 6), "f"))


def test_advice_is_true_of_tensors_too() -> None:
    torch = import_torch()
    for x in (CASE.x.astype("d"), torch.from_numpy(CASE.x.astype("d"))):
        with pytest.raises(TypeError, match=r"^x must be float32 as the weights are, got float64; convert it to float32 first$"):
            NETWORK(x)
    masked = {name: np.ma.masked_array(value) for name, value in NETWORK.state_dict().items()}
    with pytest.raises(TypeError, match=r"^weight_ih_l0 is a masked array, .* pass weight_ih_l0\.filled\(\.\.\.\)$"):
        CASE.network().load_state_dict(masked)


ONE = np.ones((4, 1), "f")
BAD_WEIGHTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "lists": (lambda: Weights((LayerWeights([[1.0]], [[1.0]]),)), TypeError, "weight_ih_l0 must be a numpy.ndarray, got list"),
    "None": (lambda: Weights((LayerWeights(ONE, None),)), TypeError, "weight_hh_l0 must be a numpy.ndarray, got NoneType"),
    "a masked array": (
        lambda: Weights((LayerWeights(ONE, ONE), LayerWeights(ONE, np.ma.masked_array(ONE)))),
        TypeError,
        "weight_hh_l1 must be a numpy.ndarray, got MaskedArray",
    ),
    "several are missing": (  # the first in PyTorch's order is named
        lambda: Weights((LayerWeights(ONE, ONE, ONE[:, 0], ONE[:, 0]), LayerWeights(ONE, ONE))),
        ValueError,
        "bias_ih_l1 is missing: expected shape (4,)",
    ),
    "no layers": (lambda: Weights((1, None)), TypeError, "layers must be a tuple of fastlstm.LayerWeights, got int, NoneType"),
    "a number": (lambda: Weights(1), TypeError, "layers must be a tuple of fastlstm.LayerWeights, got int"),
    "no tuple": (
        lambda: Weights(LayerWeights(ONE, ONE)),
        TypeError,
        "layers must be a tuple of fastlstm.LayerWeights, got one alone",
    ),
    "a stream of no network": (lambda: fastlstm.Stream(3), TypeError, "network must be fastlstm.LSTM or fastlstm.RNN, got int"),
    "no mapping": (lambda: Weights.from_named_tensors(3), TypeError, "tensors must be a mapping of names to arrays, got int"),
    "no tensors": (
        lambda: Weights.from_named_tensors({}),
        ValueError,
        "weight_ih_l0 is missing: tensors must have the names of state_dict(), got none",
    ),
    "other names": (
        lambda: Weights.from_named_tensors({"rnn.weight_ih_l0": ONE, 3: ONE}),
        ValueError,
        "weight_ih_l0 is missing: tensors must have the names of state_dict(), got 'rnn.weight_ih_l0', 3",
    ),
    "a name that is no text": (
        lambda: Weights.from_named_tensors({"weight_ih_l0": ONE, "weight_hh_l0": ONE, 3: ONE}),
        ValueError,
        "unexpected tensor 3 among the weights of 1 layer record(s)",
    ),
    "tensors": (
        lambda: Weights.from_named_tensors(import_torch().nn.LSTM(3, 5).state_dict()),
        TypeError,
        "weight_ih_l0 must be a numpy.ndarray, got Tensor; fastlstm.from_torch takes tensors",
    ),
}


@pytest.mark.parametrize("what", BAD_WEIGHTS)
def test_bad_weights(what: str) -> None:
    call, error, message = BAD_WEIGHTS[what]
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_float64_network_asks_for_float64(dtype: str) -> None:
    lstm = fastlstm.LSTM(5, 7, dtype="float64", seed=1)
    with pytest.raises(TypeError, match=f"x must be float64.*{dtype}"):
        lstm(np.ones((2, 3, 5), dtype))


def test_one_sequence() -> None:
    """States and resets of one sequence have no batch axis."""
    x, h, c = CASE.x[:, 0], H_0[:, 0], C_0[:, 0]
    for call, pattern in (
        (lambda: NETWORK(x, (H_0, C_0)), r"h_0 must have shape \(4, 3\), got \(4, 4, 3\)"),
        (lambda: NETWORK(x, (h, C_0)), r"c_0 must have shape \(4, 7\), got \(4, 4, 7\)"),
        (lambda: NETWORK(x, (h, c), resets=CASE.resets), r"resets must have shape \(6,\), got \(6, 4\)"),
        (lambda: NETWORK(x, (h, c), out=np.ones((6, 1, 6), "f")), r"out must have shape \(6, 6\), got \(6, 1, 6\)"),
    ):
        with pytest.raises(ValueError, match=pattern):
            call()


def test_big_endian_is_read_right_or_refused() -> None:
    swapped = CASE.x.astype(">f4")
    try:
        result = flat(NETWORK(swapped, CASE.state, lengths=CASE.lengths, resets=CASE.resets))
    except TypeError as error:
        assert re.match("x must be float32", str(error))  # noqa: PT017 - refusing is one of two right answers
    else:
        assert_same_bytes(result, EXPECTED)


FLAGS: dict[str, Callable[[Any], Any]] = {
    "recompute": lambda flag: NETWORK.record(CASE.x, recompute=flag),
    "recompute, of a plain RNN": lambda flag: fastlstm.RNN(5, 7).record(CASE.x, recompute=flag),
    "input": lambda flag: NETWORK.record(CASE.x).backward(np.ones_like(EXPECTED[0]), input=flag),
    "bidirectional": lambda flag: Weights(CASE.weights.layers, flag),
    "reverse": lambda flag: Weights(CASE.weights.layers[:1], reverse=flag),
    "flipped": lambda flag: Weights(CASE.weights.layers[:1], reverse=True, flipped=flag),
    # Said before anything is read: there is no such file
    "allow_nonfinite": lambda flag: fastlstm.load("nowhere", allow_nonfinite=flag),
    "allow_nonfinite, of convert": lambda flag: fastlstm.convert("nowhere", "nowhere.npz", allow_nonfinite=flag),
    "allow_nonfinite, of load_model": lambda flag: fastlstm.load_model("nowhere", allow_nonfinite=flag),
    "allow_nonfinite, of from_onnx": lambda flag: fastlstm.from_onnx("nowhere", allow_nonfinite=flag),
    "external_data": lambda flag: fastlstm.from_onnx("nowhere", external_data=flag),
    "external_data, of load_model": lambda flag: fastlstm.load_model("nowhere", external_data=flag),
    "batch_first": lambda flag: fastlstm.load("nowhere", batch_first=flag),
    "batch_first, of convert": lambda flag: fastlstm.convert("nowhere", "nowhere.npz", batch_first=flag),
    "batch_first, of from_onnx": lambda flag: fastlstm.from_onnx("nowhere", batch_first=flag),
    "batch_first, of from_torch": lambda flag: fastlstm.from_torch(CASE.network().state_dict(), batch_first=flag),
}


@pytest.mark.parametrize("flag", ["no", 2, 0.0], ids=repr)
@pytest.mark.parametrize("what", FLAGS)
def test_flags_are_true_or_false(what: str, flag: Any) -> None:
    """The text of a configuration file would pass for true."""
    with pytest.raises(TypeError, match=f"^{what.split(',')[0]} must be True or False, got {flag!r}$"):
        FLAGS[what](flag)


# ---- Memory that out shares --------------------------------------------------------------------------------------------------


def view_at(store: np.ndarray, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    return store[offset : offset + int(np.prod(shape))].reshape(shape)


@pytest.mark.parametrize("argument", ["x", "h_0", "c_0"])
@pytest.mark.parametrize("name", ["t3b2i3h4", "t2b3i6h4l2d2p3"])
def test_out_that_overlaps_an_input(name: str, argument: str) -> None:
    """At every offset: the right result, or an error that names both."""
    case = make_case(name)
    lstm = case.network()
    expected = case.run(lstm)
    inputs = {"x": case.x, "h_0": case.state[0], "c_0": case.state[1]}
    size, out_size = inputs[argument].size, expected[0].size
    for offset in range(size + out_size + 1):
        store = np.zeros(size + 2 * out_size, np.float32)
        shared = view_at(store, out_size, inputs[argument].shape)
        shared[...] = inputs[argument]
        out = view_at(store, offset, expected[0].shape)
        before = store.tobytes()
        given = {**inputs, argument: shared}
        try:
            result = flat(lstm(given["x"], (given["h_0"], given["c_0"]), out=out))
        except ValueError as error:
            assert re.search(rf"\bout\b.*\b{argument}\b", str(error))  # noqa: PT017 - one of two right answers
            assert store.tobytes() == before
            assert 0 < offset < size + out_size, "refused, though they only touch"
        else:
            assert_same_bytes(result, expected, f"out {offset - out_size} elements after {argument}")


def test_out_that_overlaps_lengths_or_resets() -> None:
    store = np.zeros(6 * 4 * 6 * 4, np.uint8)
    out = store.view(np.float32).reshape(6, 4, 6)
    for argument, shared in (
        ("lengths", store[64:96].view(np.int64)),
        ("resets", store[-24:].view(bool).reshape(6, 4)),
    ):
        try:
            result = flat(NETWORK(CASE.x, CASE.state, out=out, **{argument: shared}))
        except ValueError as error:
            assert re.search(rf"\bout\b.*\b{argument}\b", str(error))  # noqa: PT017
        else:
            zeros = np.zeros_like(shared)
            assert_same_bytes(result, flat(NETWORK(CASE.x, CASE.state, **{argument: zeros})), argument)
        store[...] = 0


def test_out_that_overlaps_itself() -> None:
    """Writable, of the right shape, but some elements are the same memory."""
    store = np.full(6 * 4 * 6, 7, np.float32)
    for strides in ((0, 24, 4), (96, 0, 4), (96, 24, 0), (24, 24, 4), (48, 12, 4), (4, 4, 4)):
        out = np.lib.stride_tricks.as_strided(store, (6, 4, 6), strides)
        with pytest.raises(ValueError, match=r"\bout\b.*overlap"):
            NETWORK(CASE.x, CASE.state, out=out)
        assert (store == 7).all()


def test_inputs_may_share_memory() -> None:
    case = make_case("t2b3i7h7l2")
    store = np.concatenate([case.x.ravel(), np.ones(3, "f")])
    x, h, c = view_at(store, 0, (2, 3, 7)), view_at(store, 1, (2, 3, 7)), view_at(store, 3, (2, 3, 7))
    lstm = case.network()
    assert_same_bytes(flat(lstm(x, (h, c))), flat(lstm(x.copy(), (h.copy(), c.copy()))))


# ---- Making a network --------------------------------------------------------------------------------------------------------

SIZES = {"input_size": 5, "hidden_size": 7}
BAD_NETWORKS: dict[str, tuple[dict[str, Any], Any, tuple[str, ...]]] = {
    **{
        f"{name}: {value}": ({name: value}, ValueError, (name, str(value)))
        for name in ("input_size", "hidden_size", "num_layers")
        for value in (0, -1, 2**40, 2**70)
    },
    **{
        f"{name}: {value!r}": ({name: value}, TypeError, (name, repr(value)))
        for name in ("input_size", "hidden_size", "num_layers", "proj_size")
        for value in (1.5, "3", None, True, [3])
    },
    **{
        f"{name}: {value!r}": ({name: value}, TypeError, (name, "True or False", repr(value)))
        for name in ("bias", "batch_first", "bidirectional")
        for value in ("False", None, 2, 1.0)
    },
    "proj_size: -1": ({"proj_size": -1}, ValueError, ("proj_size", "-1")),
    "proj_size: as large as the state": ({"proj_size": 7}, ValueError, ("proj_size", "hidden_size", "7")),
    "proj_size: larger than the state": ({"proj_size": 8}, ValueError, ("proj_size", "hidden_size", "7", "8")),
    "dtype: float16": ({"dtype": "float16"}, (TypeError, ValueError), ("dtype", "float32", "float64", "float16")),
    "dtype: an integer type": ({"dtype": int}, (TypeError, ValueError), ("dtype", "float32", "float64", "int64")),
    "dtype: not a type": ({"dtype": "single malt"}, (TypeError, ValueError), ("dtype", "float32", "float64", "single malt")),
    "dtype: None": ({"dtype": None}, (TypeError, ValueError), ("dtype", "None")),
    "dtype: big-endian": ({"dtype": ">f4"}, (TypeError, ValueError), ("dtype", ">f4")),
    **{f"seed: {value!r}": ({"seed": value}, TypeError, ("seed",)) for value in ("zero", True, [1, 2], 0.5)},
    "seed: negative": ({"seed": -1}, ValueError, ("seed", "-1")),
    "num_layers: more than memory can hold": ({"num_layers": 10**8}, ValueError, ("num_layers", "100000000")),
    "hidden_size: more weights than memory": ({"hidden_size": 2**30}, (ValueError, MemoryError), ()),
}


@pytest.mark.parametrize("what", BAD_NETWORKS)
def test_bad_networks(what: str) -> None:
    changes, error, fragments = BAD_NETWORKS[what]
    with pytest.raises(error) as raised:
        fastlstm.LSTM(**{**SIZES, **changes})
    assert all(fragment in str(raised.value) for fragment in fragments), str(raised.value)


@pytest.mark.parametrize("given_", [None, {}, [], "weights", 3], ids=repr)
def test_from_weights_wants_weights(given_: Any) -> None:
    with pytest.raises(TypeError, match="weights"):
        fastlstm.LSTM.from_weights(given_)


@pytest.mark.parametrize("given_", ["False", None, 2], ids=repr)
def test_from_weights_wants_a_truth_value(given_: Any) -> None:
    with pytest.raises(TypeError, match=f"batch_first must be True or False, got {given_!r}"):
        fastlstm.LSTM.from_weights(CASE.weights, given_)
    assert fastlstm.LSTM.from_weights(CASE.weights, 1).batch_first is True


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", None, True, np.array(1.5)], ids=repr)
def test_set_num_threads_wants_a_positive_integer(n: Any) -> None:
    before = fastlstm.get_num_threads()
    with pytest.raises(ValueError if type(n) is int else TypeError, match=re.escape(repr(n))):
        fastlstm.set_num_threads(n)
    assert fastlstm.get_num_threads() == before


# ---- Streams -----------------------------------------------------------------------------------------------------------------


def test_bad_steps_change_nothing() -> None:
    case = make_case("t6b4i5h7l2p3")
    lstm = case.network()
    stream = lstm.stream(batch_size=4)
    stream.step(case.x[0])
    before = [s.tobytes() for s in stream.state]
    bad: tuple[tuple[Callable[[], Any], Any, str], ...] = (
        (lambda: stream.step(case.x[1, :3]), ValueError, r"x must have shape \(4, 5\), got \(3, 5\)"),
        (lambda: stream.step(case.x[1, :, 1:]), ValueError, r"x must have shape \(4, 5\), got \(4, 4\)"),
        (lambda: stream.step(case.x[1, 0]), ValueError, r"x must have shape \(4, 5\), got \(5,\)"),
        (lambda: stream.step(case.x), ValueError, r"x must have shape \(4, 5\), got \(6, 4, 5\)"),
        (lambda: stream.step(case.x[1].astype("d")), TypeError, "x must be float32.*float64"),
        (lambda: stream.step(None), TypeError, "x.*None"),
        (lambda: stream.step(case.x[1].tolist()), TypeError, "x.*list"),
        (lambda: stream.step(np.ma.masked_array(case.x[1])), TypeError, "x.*mask"),
        (lambda: stream.reset(rows=[4]), ValueError, r"rows\[0\] must be between 0 and 3, got 4"),
        (lambda: stream.reset(rows=2), TypeError, r"rows.*\b2\b"),  # type: ignore[arg-type]
        (
            lambda: stream.reset(rows=[True, False, False, True]),
            TypeError,
            r"rows must.* bool array of shape \(4,\), got \[True, False",
        ),
        (lambda: stream.reset(rows=np.ones(3, bool)), ValueError, r"rows of booleans must have shape \(4,\), got \(3,\)"),
        (lambda: stream.reset(rows=np.ones((4, 1), bool)), ValueError, r"rows of booleans must have shape \(4,\), got \(4, 1\)"),
        (lambda: stream.reset(rows=[0, -1]), ValueError, r"rows\[1\] must be between 0 and 3, got -1"),
        (lambda: stream.reset(rows=[0, 1.0]), TypeError, r"rows\[1\] must be an integer, got 1\.0"),
    )
    for call, error, pattern in bad:
        with pytest.raises(error, match=pattern):
            call()
        assert [s.tobytes() for s in stream.state] == before
    for size, error in ((-1, ValueError), (2**31, ValueError), (1.5, TypeError), ("2", TypeError), (None, TypeError)):
        with pytest.raises(error, match="batch_size"):
            lstm.stream(batch_size=size)


@pytest.mark.parametrize(("T", "B"), [(-1, 4), (6, -1), (2**63, 4), (1.5, 4), ("6", 4), (6, None), (True, 4)], ids=repr)
def test_a_plan_wants_sizes(T: Any, B: Any) -> None:
    wrong = "T" if B == 4 else "B"
    with pytest.raises((TypeError, ValueError), match=f"^{wrong} must be "):
        NETWORK.plan(T, B)


def test_bfloat16_is_told_what_to_be() -> None:
    torch = import_torch()
    with pytest.raises(TypeError, match="x must be an array of float32"):
        NETWORK(torch.zeros(6, 4, 5, dtype=torch.bfloat16))


# ---- Any call at all ---------------------------------------------------------------------------------------------------------


@st.composite
def calls(draw: Any) -> Case:
    """A case of any shape with at most one argument of any other shape, type or value."""
    H = draw(st.integers(1, 9))
    sizes = (
        st.integers(0, 5),
        st.integers(0, 8),
        st.integers(1, 6),
        st.just(H),
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(0, H - 1),
    )
    shape = Shape(*(draw(size) for size in sizes))
    case = make_case(
        shape, draw(st.sampled_from(DTYPES)), bias=draw(st.booleans()), lengths=True, resets=True, seed=draw(st.integers(0, 9))
    )
    for name in ("lengths", "resets"):
        if draw(st.booleans()):
            case = replace(case, **{name: None})
    argument = draw(st.sampled_from(["x", "h_0", "c_0", "lengths", "resets", None]))
    if argument is None:
        return case
    right = {
        "x": case.x,
        "h_0": case.state[0],
        "c_0": case.state[1],
        "lengths": np.zeros(shape.B, int),
        "resets": case.x[..., 0] > 0,
    }[argument]
    shapes = st.one_of(
        st.just(right.shape), st.permutations(right.shape).map(tuple), hnp.array_shapes(min_dims=0, min_side=0, max_side=9)
    )
    types = st.one_of(st.just(right.dtype), hnp.integer_dtypes(), hnp.scalar_dtypes(), hnp.unicode_string_dtypes(max_len=3))
    value = np.zeros(draw(shapes), draw(types))
    if value.dtype.kind in "iu" and value.size:
        value.flat[0] = draw(st.integers(0, shape.T + 1))
    if argument in ("h_0", "c_0"):
        return replace(case, state=(value, case.state[1]) if argument == "h_0" else (case.state[0], value))
    return replace(case, **{argument: value})


def is_right(case: Case) -> bool:
    """Whether a call is as the documentation wants it."""
    s, dtype, x = case.shape, case.weights.dtype, case.x
    if x.dtype != dtype or x.ndim not in (2, 3) or x.shape[-1] != s.I:
        return False
    T, rows = x.shape[0], x.shape[1:-1]  # (B,), or () for one sequence
    states = all(
        a.dtype == dtype and a.shape == (s.L * s.D, *rows, n) for a, n in zip(case.state, (s.recurrent, s.H), strict=True)
    )
    lengths, resets = case.lengths, case.resets
    right_lengths = lengths is None or (
        lengths.dtype.kind in "iu" and rows and lengths.shape == rows and (lengths >= 0).all() and (lengths <= T).all()
    )
    return bool(states and right_lengths and (resets is None or (resets.dtype == bool and resets.shape == (T, *rows))))


@given(calls())
def test_any_call_is_right_or_refused(case: Case) -> None:
    if is_right(case):
        result = case.run()
        if case.x.ndim == 2:  # one sequence
            h, c = (s[:, None] for s in case.state)
            case = replace(case, x=case.x[:, None], state=(h, c), resets=None if case.resets is None else case.resets[:, None])
            result = tuple(a[:, None] for a in result)
        assert_close(result, case.expected(), TOLERANCE[case.weights.dtype.name])
        return
    try:
        case.run()
    except (TypeError, ValueError) as error:
        assert re.match(r"(x|h_0|c_0|lengths|resets) ", str(error)), str(error)  # noqa: PT017
    else:
        assert case.lengths is not None and case.lengths.size == 0, "a wrong call was accepted"  # noqa: PT018
