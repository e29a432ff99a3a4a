"""Backpropagation through time: the right numbers, by the reference, PyTorch's autograd and slopes; then the same bits."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    DTYPES,
    FORK,
    FUSED,
    OPEN,
    QUIET,
    SHUT,
    Case,
    asked,
    assert_interrupted_soon,
    assert_same_bytes,
    assert_same_on_every_fused,
    draw,
    flat,
    import_torch,
    linux,
    make_case,
    posix,
    results_by_isa,
    run_python,
    settle,
    torch_network,
)
from layouts import LAYOUTS
from shapes import EDGE, Shape

import fastlstm
from fastlstm import _engine, reference
from fastlstm.weights import Weights

Named = dict[str, np.ndarray]  # "input", "h_0", "c_0" and the parameters

# Largest error of a tensor in terms of its largest number; float32 keeps within 2e-6 on most cases here, where sums are short.
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}
KINDS: dict[str, dict[str, bool]] = {
    "plain": {},
    "no bias": {"bias": False},
    "lengths": {"lengths": True},
    "resets": {"resets": True},
    "lengths and resets": {"lengths": True, "resets": True},
}
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def named(names: tuple[str, ...]) -> Any:
    return pytest.mark.parametrize("name", names)


# ---- What is asked of a case -------------------------------------------------------------------------------------------------


def by_name(d_input: Any, d_state: Any, parameters: Any) -> Named:
    return {"input": d_input, "h_0": d_state[0], "c_0": d_state[1], **parameters}


def gradients(case: Case, d_output: Any, d_state: Any, lstm: fastlstm.LSTM | None = None, **options: Any) -> Named:
    """The engine's."""
    lstm = lstm or case.network()
    recording = {"threads": options.get("threads"), "recompute": options.pop("recompute", False)}
    tape = lstm.record(case.x, case.state, lengths=case.lengths, resets=case.resets, **recording)
    grads = tape.backward(d_output, d_state, **options)
    return by_name(grads.input, grads.state, grads.parameters)


def exact(case: Case, d_output: Any, d_state: Any) -> Named:
    """The reference's; it takes no pair of which one is None."""
    if d_state is not None:
        zeros = (np.zeros(s.shape) for s in asked(case)[1])
        d_state = tuple(zero if d is None else d for d, zero in zip(d_state, zeros, strict=True))
    return by_name(*reference.backward(case.exact(), case.x, case.state, d_output, d_state, case.lengths, case.resets))


def by_torch(case: Case, d_output: Any, d_state: Any, steps: int | None = None) -> Named:
    """PyTorch's autograd in float64, over a loop in which rows past their end keep their state and resets begin from zeros.

    h and c are detached between the steps t - 1 and t of a row where `steps` divides t, in both directions.
    """
    torch = import_torch()
    s = case.shape
    T, B, _ = case.x.shape
    leaves = {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in case.weights.named_tensors()}
    x, h_0, c_0 = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (case.x, *case.state))
    real = np.arange(T)[:, None] < (np.full(B, T) if case.lengths is None else case.lengths)
    resets = np.zeros((T, B), bool) if case.resets is None else case.resets
    y, finals = x, []
    for layer in range(s.L):
        sides = []
        for side in range(s.D):
            end = f"_l{layer}" + "_reverse" * side
            w_ih, w_hh, b_ih, b_hh, w_hr = (
                leaves.get(kind + end) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            )
            h, c = h_0[layer * s.D + side], c_0[layer * s.D + side]
            found: list[Any] = [None] * T
            for t in range(T)[:: -1 if side else 1]:
                crossed = t + side  # the later of this step and the one before it
                if crossed < T:
                    there = torch.from_numpy(real[crossed])[:, None]  # elsewhere h is an initial or a final state
                    fresh = torch.from_numpy(resets[crossed] & real[crossed])[:, None]
                    if steps and crossed and crossed % steps == 0:
                        h, c = torch.where(there, h.detach(), h), torch.where(there, c.detach(), c)
                    h, c = torch.where(fresh, torch.zeros_like(h), h), torch.where(fresh, torch.zeros_like(c), c)
                z = torch.nn.functional.linear(y[t], w_ih, b_ih) + torch.nn.functional.linear(h, w_hh, b_hh)
                i, f, g, o = z.chunk(4, dim=1)
                c_t = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h_t = torch.sigmoid(o) * torch.tanh(c_t)
                h_t = h_t if w_hr is None else h_t @ w_hr.T
                here = torch.from_numpy(real[t])[:, None]
                h, c = torch.where(here, h_t, h), torch.where(here, c_t, c)
                found[t] = torch.where(here, h_t, torch.zeros_like(h_t))
            finals.append((h, c))
            sides.append(torch.stack(found))
        y = torch.cat(sides, dim=2)
    loss = torch.zeros((), dtype=torch.float64)
    pairs = [] if d_output is None else [(y, d_output)]
    for final, d in zip(zip(*finals, strict=True), d_state or (None, None), strict=True):
        pairs += [] if d is None else [(torch.stack(final), d)]
    for value, d in pairs:
        loss = loss + (value * torch.from_numpy(d.astype(np.float64))).sum()
    if loss.requires_grad:
        loss.backward()
    tensors = {"input": x, "h_0": h_0, "c_0": c_0, **leaves}
    return {name: np.zeros(a.shape) if a.grad is None else a.grad.numpy() for name, a in tensors.items()}


def by_torchs_own_lstm(case: Case, d_output: Any, d_state: Any) -> Named:
    """torch.nn.LSTM's, in float64; packed sequences for lengths."""
    torch = import_torch()
    network = torch_network(case.weights)
    x, h_0, c_0 = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (case.x, *case.state))
    if case.lengths is None:
        output, last = network(x, (h_0, c_0))
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(case.lengths), enforce_sorted=False)
        output, last = network(packed, (h_0, c_0))
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, total_length=len(x))
    for value, d in zip((output, *last), (d_output, *d_state), strict=True):
        value.backward(torch.from_numpy(d.astype(np.float64)), retain_graph=True)
    parameters = {name: parameter.grad.numpy() for name, parameter in network.named_parameters()}
    return by_name(x.grad.numpy(), (h_0.grad.numpy(), c_0.grad.numpy()), parameters)


def errors(given: Named, expected: Named) -> dict[str, float]:
    """The largest error of each tensor, in terms of its largest number; infinite where zeros or shapes are not met."""
    assert list(given) == list(expected)
    found = {}
    for name, e in expected.items():
        assert given[name].shape == e.shape, f"{name} has shape {given[name].shape}, expected {e.shape}"
        largest = np.abs(e).max(initial=0)
        error = np.abs(given[name] - e).max(initial=0)
        found[name] = float(error / largest) if largest else float("inf" if error else 0)
    return found


def check(given: Named, expected: Named, tolerance: float, what: object = "") -> None:
    wrong = {name: error for name, error in errors(given, expected).items() if not error <= tolerance}
    assert not wrong, f"{what}: relative errors {wrong}, allowed {tolerance}"


def same_bits(given: Named, expected: Named, what: object = "") -> None:
    assert list(given) == list(expected)
    for name, e in expected.items():
        a = given[name]
        assert (a.dtype, a.shape) == (e.dtype, e.shape), f"{what}: {name} is {a.dtype} {a.shape}, expected {e.dtype} {e.shape}"
        if a.tobytes() != e.tobytes():
            bits = f"u{a.itemsize}"
            at = np.argwhere(np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(e).view(bits))
            first = tuple(at[0].tolist())
            raise AssertionError(f"{what}: {name} differs in {len(at)} of {a.size}, first at {first}: {a[first]} != {e[first]}")


def of_rows(found: Named, rows: Any) -> Named:
    """The gradients that belong to rows, of some of them."""
    return {name: found[name][:, rows] for name in ("input", "h_0", "c_0")}


# ---- The right numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@dtypes
@pytest.mark.parametrize("shape", EDGE, ids=str)
def test_edges(shape: Shape, dtype: str, kind: str) -> None:
    case = make_case(shape, dtype, **KINDS[kind])
    d_output, d_state = asked(case)
    lstm = case.network()
    tape = lstm.record(case.x, case.state, lengths=case.lengths, resets=case.resets)
    assert_same_bytes(flat((tape.output, tape.state)), case.run(lstm))
    assert tape.nbytes > 0
    grads = tape.backward(d_output, d_state)
    assert tape.nbytes == 0
    given = by_name(grads.input, grads.state, grads.parameters)
    assert list(grads.parameters) == list(lstm.state_dict())
    assert all(a.dtype == dtype and a.flags.writeable for a in given.values())
    check(given, exact(case, d_output, d_state), TOLERANCE[dtype], shape.reason)
    if case.lengths is not None:
        padding = np.arange(shape.T)[:, None] >= case.lengths
        assert not given["input"][padding].any()
        for name, d in zip(("h_0", "c_0"), d_state, strict=True):  # length 0: handed on, bit by bit
            assert given[name][:, case.lengths == 0].tobytes() == d[:, case.lengths == 0].tobytes()


def random_case(seed: int, rng: np.random.Generator) -> Case:
    H = int(rng.choice([rng.integers(1, 9), rng.integers(9, 40), rng.integers(40, 80)]))
    shape = Shape(
        T=int(rng.integers(1, 14)),
        B=int(rng.choice([1, rng.integers(1, 9), rng.integers(9, 24)])),
        I=int(rng.choice([H, rng.integers(1, 9), rng.integers(9, 90)])),
        H=H,
        L=int(rng.integers(1, 4)),
        D=int(rng.integers(1, 3)),
        P=int(rng.integers(1, H)) if H > 1 and rng.random() < 0.4 else 0,
    )
    kinds = {kind: bool(rng.random() < chance) for kind, chance in (("bias", 0.7), ("lengths", 0.5), ("resets", 0.4))}
    return make_case(shape, DTYPES[seed % 2], seed=seed, **kinds)


@pytest.mark.parametrize("seed", range(200))
def test_random_networks(seed: int) -> None:
    """Against autograd, by every way in which a call may be written."""
    rng = np.random.default_rng(seed)
    case = random_case(seed, rng)
    d_output, (d_h, d_c) = asked(case, seed)
    some = rng.integers(0, 5)
    d_state: Any = (d_h, d_c) if some < 2 else None if some == 2 else (None, d_c) if some == 3 else (d_h, None)
    d_y = None if some != 2 and rng.random() < 0.2 else d_output
    steps = int(rng.integers(1, case.shape.T + 2)) if rng.random() < 0.3 else None
    expected = by_torch(case, d_y, d_state, steps)
    if steps is None:
        check(exact(case, d_y, d_state), expected, 1e-13, "the reference itself")
    batch_first = bool(rng.random() < 0.3)
    lstm = fastlstm.LSTM.from_weights(case.weights, batch_first=batch_first)
    x = case.x
    if batch_first:
        x, d_y = x.swapaxes(0, 1), None if d_y is None else d_y.swapaxes(0, 1)
    tape = lstm.record(x, case.state, lengths=case.lengths, resets=case.resets)
    grads = tape.backward(d_y, d_state, steps=steps)
    given = by_name(grads.input.swapaxes(0, 1) if batch_first else grads.input, grads.state, grads.parameters)
    check(given, expected, TOLERANCE[case.x.dtype.name], f"{case.shape}, steps {steps}")
    tape = lstm.record(x, case.state, lengths=case.lengths, resets=case.resets, recompute=True)
    assert tape.backward(d_y, d_state, input=False).input is None
    tape = lstm.record(x, case.state, lengths=case.lengths, resets=case.resets, recompute=True)
    grads = tape.backward(d_y, d_state, steps=steps)
    recomputed = by_name(grads.input.swapaxes(0, 1) if batch_first else grads.input, grads.state, grads.parameters)
    same_bits(recomputed, given, f"{case.shape}, steps {steps}, recomputed")
    if batch_first or case.lengths is not None:
        return
    one = by_torch(alone := case.rows([0]), d_output[:, :1], (d_h[:, :1], d_c[:, :1]))
    h, c = alone.state
    tape = lstm.record(case.x[:, 0], (h[:, 0], c[:, 0]), resets=None if case.resets is None else case.resets[:, 0])
    grads = tape.backward(d_output[:, 0], (d_h[:, 0], d_c[:, 0]))
    assert grads.input.shape == (case.shape.T, case.shape.I)
    assert grads.state[0].shape == h[:, 0].shape
    given = by_name(grads.input[:, None], [s[:, None] for s in grads.state], grads.parameters)
    check(given, one, TOLERANCE[case.x.dtype.name], f"{case.shape}, one sequence")


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_against_torchs_own_lstm(seed: int) -> None:
    case = replace(random_case(seed, np.random.default_rng(seed)), resets=None)
    if case.lengths is not None:
        np.maximum(case.lengths, 1, out=case.lengths)
    d_output, d_state = asked(case)
    expected = by_torchs_own_lstm(case, d_output, d_state)
    check(gradients(case, d_output, d_state), expected, TOLERANCE[case.x.dtype.name], case.shape)


@dtypes
@named(("t40b6i33h70", "t25b9i40h50l2d2p21", "t200b1i9h20l2", "t9b70i12h20d2", "t7b200i3h9p4", "t90b20i6h18l2d2"))
def test_more_tokens_than_a_block(name: str, dtype: str) -> None:
    """Gradients of the weights are summed block by block of tokens: several blocks, blocks of one step, blocks cut by an end.

    A tape that recomputes takes several of its segments then.
    """
    for kind in ("plain", "lengths and resets"):
        case = make_case(name, dtype, **KINDS[kind])
        d_output, d_state = asked(case)
        given = gradients(case, d_output, d_state)
        check(given, exact(case, d_output, d_state), TOLERANCE[dtype], kind)
        same_bits(gradients(case, d_output, d_state, recompute=True), given, "recomputed")
        truncated = gradients(case, d_output, (None, d_state[1]), steps=4)
        same_bits(gradients(case, d_output, (None, d_state[1]), steps=4, recompute=True, threads=3), truncated, "steps")


@pytest.mark.parametrize("bias", [True, False])
@named(("t3b3i2h2l2d2", "t4b3i3h4p2", "t3b2i2h3l2d2p1"))
def test_slopes(name: str, bias: bool) -> None:
    """Every single element of the input, the states and the parameters, by central differences of the engine's own outputs."""
    case = make_case(name, "float64", bias=bias, lengths=True, resets=True, seed=2)
    d_output, d_state = asked(case)
    tensors = {"input": case.x, "h_0": case.state[0], "c_0": case.state[1], **dict(case.weights.named_tensors())}
    lstm, step = case.network(), 1e-5  # truncation about step^2 = 1e-10, rounding about 1e-15 / step = 1e-10
    given = gradients(case, d_output, d_state)
    expected = {}
    for tensor_name, tensor in tensors.items():
        is_weight = tensor_name not in ("input", "h_0", "c_0")
        slopes = expected[tensor_name] = np.zeros(tensor.shape)
        for at in np.ndindex(tensor.shape):
            value, losses = tensor[at], []
            for moved in (value + step, value - step):
                tensor[at] = moved
                if is_weight:
                    lstm.load_state_dict({n: a for n, a in tensors.items() if n not in ("input", "h_0", "c_0")})
                losses.append(sum(float((a * d).sum()) for a, d in zip(case.run(lstm), (d_output, *d_state), strict=True)))
            tensor[at] = value
            slopes[at] = (losses[0] - losses[1]) / (2 * step)
        if is_weight:
            lstm.load_state_dict({n: a for n, a in tensors.items() if n not in ("input", "h_0", "c_0")})
    check(given, expected, 2e-7)  # of tensors whose gradients are small


@named(("t9b7i20h33l2d2p9", "t20b13i9h47", "t12b1i30h70l3", "t6b40i16h16d2"))
def test_slopes_along_directions(name: str) -> None:
    """Larger networks: the slope along a random direction of each tensor is the gradient's product with it."""
    case = make_case(name, "float64", lengths=True, resets=True)
    d_output, d_state = asked(case)
    given = gradients(case, d_output, d_state)
    rng = np.random.default_rng(11)
    start = {"input": case.x, "h_0": case.state[0], "c_0": case.state[1], **dict(case.weights.named_tensors())}
    step = 1e-5
    for tensor in start:
        direction = rng.standard_normal(start[tensor].shape)
        losses = []
        for sign in (1, -1):
            t = {**start, tensor: start[tensor] + sign * step * direction}
            weights = Weights.from_named_tensors({n: t[n] for n, _ in case.weights.named_tensors()})
            moved = replace(case, weights=weights, x=t["input"], state=(t["h_0"], t["c_0"]))
            losses.append(sum(float((a * d).sum()) for a, d in zip(moved.run(), (d_output, *d_state), strict=True)))
        slope, expected = (losses[0] - losses[1]) / (2 * step), float((given[tensor] * direction).sum())
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-7 * float(np.abs(given[tensor] * direction).sum())), tensor


# Bounds of the design for usual numbers and open forget gates; with gates shut it allows 1e-4. With inputs times 100 the sums of
# the forward pass go through 30 and more and are rounded to some 1e-6: no gradient can be better. PyTorch reaches 1e-5.
ACCURACY: dict[str, tuple[str, dict[str, float], float, float]] = {  # shape, gates' biases, scale of the inputs, bound
    "usual numbers": ("t100b4i128h256", {}, 1, 5e-7),
    "usual numbers, 2000 steps": ("t2000b1i64h64", {}, 1, 5e-7),
    "inputs times 100": ("t100b4i128h256", {}, 100, 1e-5),
    "inputs times 100, 2000 steps": ("t2000b1i64h64", {}, 100, 1e-5),
    "forget gates open": ("t100b4i128h256", {"f": OPEN}, 1, 5e-6),
    "gates shut": ("t100b4i128h256", dict.fromkeys("ifo", SHUT), 1, 1.5e-6),
    "gates shut, 2000 steps": ("t2000b1i64h64", dict.fromkeys("ifo", SHUT), 1, 1.5e-6),
}


@pytest.mark.parametrize("what", ACCURACY)
def test_accuracy(what: str) -> None:
    """Of three draws the middle one within the bound, and all within 1.5 times the bound, as for outputs."""
    name, gates, scale, bound = ACCURACY[what]
    found: dict[str, list[float]] = {}
    for seed in range(3):
        case = draw(name, seed, gates, scale)
        d_output, d_state = asked(case)
        expected = (exact if importlib.util.find_spec("torch") is None else by_torchs_own_lstm)(
            case, d_output, d_state
        )  # is faster
        for tensor, error in errors(gradients(case, d_output, d_state), expected).items():
            found.setdefault(tensor, []).append(error)
    for tensor, measured in found.items():
        text = f"{tensor}: measured {', '.join(f'{e:.3g}' for e in measured)}; bound {bound:.3g}"
        assert sorted(measured)[1] <= bound, text
        assert max(measured) <= 1.5 * bound, text


# ---- Truncated ---------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("kind", ["plain", "lengths and resets"])
@named(("t9b4i5h20", "t12b5i7h17l3p6", "t7b3i4h9d2", "t10b6i5h18l2d2p7"))
def test_truncated(name: str, kind: str, dtype: str) -> None:
    """With `steps`, gradients stop between steps t - 1 and t where it divides t; in the reverse direction they stop there too, on
    their way from t - 1 to t. Layers hand theirs down at each step. The final state asks of the last piece of each row alone."""
    case = make_case(name, dtype, **KINDS[kind])
    d_output, d_state = asked(case)
    T = case.shape.T
    for steps in (1, 2, 3, T - 1, np.int64(4)):
        given = gradients(case, d_output, d_state, steps=steps)
        check(given, by_torch(case, d_output, d_state, int(steps)), TOLERANCE[dtype], f"steps {steps}")
    whole = gradients(case, d_output, d_state)
    for steps in (T, T + 1, 2**31, 2**63, 2**100):
        same_bits(gradients(case, d_output, d_state, steps=steps), whole, f"steps {steps}: nothing is cut")


def add(total: Named, part: Named) -> None:
    for name, a in part.items():
        if name not in ("input", "h_0", "c_0"):
            total[name] = total.get(name, 0) + a


@named(("t11b4i5h20", "t12b5i7h17l3p6"))
def test_truncated_is_pieces(name: str) -> None:
    """One direction: pieces one after the other, each from the state the one before ended with, by the reference and by tapes."""
    case = make_case(name, "float64", resets=True)
    d_output, d_state = asked(case)
    for steps in (1, 4, 5):
        total: Named = {}
        by_tapes: Named = {}
        inputs, taped_inputs = [], []
        state, lstm = case.state, case.network()
        for begin in range(0, case.shape.T, steps):
            end = min(begin + steps, case.shape.T)
            piece, last = case.steps(begin, end, state), end == case.shape.T
            d = d_output[begin:end], d_state if last else None
            part, taped = exact(piece, *d), gradients(piece, *d, lstm)
            state = piece.expected()[1:]
            if begin == 0:
                initial = {name: part[name] for name in ("h_0", "c_0")}
            inputs.append(part["input"])
            taped_inputs.append(taped["input"])
            add(total, part)
            add(by_tapes, taped)
        expected = {"input": np.concatenate(inputs), **initial, **total}
        given = gradients(case, d_output, d_state, lstm, steps=steps)
        check(given, expected, 1e-13, f"steps {steps}")
        check({**given, "input": np.concatenate(taped_inputs), **by_tapes}, expected, 1e-13, f"tapes of {steps} steps")


# ---- Nothing to do -----------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("batch_first", [False, True])
@named(("t0b3i5h4", "t0b2i5h4l2d2p3", "t4b0i5h3", "t4b0i5h6l2d2p3", "t0b0i5h3", "t6b3i5h20l2d2p7"))
def test_what_is_asked_of_the_state_passes_through(name: str, batch_first: bool, dtype: str) -> None:
    """T = 0, B = 0 and rows of length 0, with resets that change nothing: the initial state gets the final state's gradient."""
    case = make_case(name, dtype, resets=True)
    T, B = case.shape.T, case.shape.B
    lengths = np.zeros(B, int) if T else None
    lstm = fastlstm.LSTM.from_weights(case.weights, batch_first=batch_first)
    x = case.x.swapaxes(0, 1) if batch_first else case.x
    d_output, d_state = asked(case)
    d_y = d_output.swapaxes(0, 1) if batch_first else d_output
    for asked_state in (d_state, (None, d_state[1]), (d_state[0], None), None):
        tape = lstm.record(x, case.state, lengths=lengths, resets=case.resets)
        grads = tape.backward(d_y, asked_state)
        assert grads.input.shape == x.shape
        assert not grads.input.any()
        for given, wanted, like in zip(grads.state, asked_state or (None, None), d_state, strict=True):
            assert given.tobytes() == (np.zeros_like(like) if wanted is None else wanted).tobytes()
            assert given is not wanted
        assert {n: a.shape for n, a in grads.parameters.items()} == {n: a.shape for n, a in lstm.state_dict().items()}
        assert not any(a.any() for a in grads.parameters.values())


@dtypes
def test_one_sequence_of_no_steps(dtype: str) -> None:
    case = make_case("t0b1i5h4", dtype)
    _, d_state = asked(case)
    h, c = (s[:, 0] for s in case.state)
    grads = case.network().record(case.x[:, 0], (h, c)).backward(None, (d_state[0][:, 0], d_state[1][:, 0]))
    assert grads.input.shape == (0, 5)
    assert [s.tobytes() for s in grads.state] == [s.tobytes() for s in d_state]


@dtypes
@named(("t6b5i3h4", "t5b4i9h20l2d2p7"))
def test_none_is_zeros(name: str, dtype: str) -> None:
    case = make_case(name, dtype, lengths=True)
    lstm = case.network()
    d_output, (d_h, d_c) = asked(case)
    zeros = np.zeros_like(d_output), np.zeros_like(d_h), np.zeros_like(d_c)
    for y, state, full in (
        (d_output, None, (d_output, *zeros[1:])),
        (None, (d_h, d_c), (zeros[0], d_h, d_c)),
        (None, [None, d_c], (zeros[0], zeros[1], d_c)),
        (d_output, (d_h, None), (d_output, d_h, zeros[2])),
        (None, None, zeros),
        (None, (None, None), zeros),
    ):
        same_bits(gradients(case, y, state, lstm), gradients(case, full[0], full[1:], lstm))
    none = replace(case, state=None)
    given = replace(case, state=(np.zeros_like(case.state[0]), np.zeros_like(case.state[1])))
    same_bits(gradients(none, d_output, (d_h, d_c), lstm), gradients(given, d_output, (d_h, d_c), lstm), "no initial state")


# ---- The same bits -----------------------------------------------------------------------------------------------------------

# A team of 2 to 18 threads divides these differently: hidden units, rows, directions, all of them.
DIVIDED = (
    "t12b1i24h200",
    "t9b2i20h150p70",
    "t9b13i20h48l2",
    "t7b5i33h65d2",
    "t6b7i20h70l2d2p33",
    "t10b8i20h200l2d2",
    "t10b13i21h150p40",
    "t10b24i20h90",
    "t12b9i30h300d2",
    "t45b5i12h70l2",
)
THREADS = (2, 3, 4, 6, 8, 18)


def test_the_shapes_meet_every_division() -> None:
    plans = []
    for s in map(Shape.parse, DIVIDED):
        network = make_case(s).network()._packed.network
        plans += [_engine.backward_plan(network, s.T, s.B, n) for n in THREADS]
    parts = ("directions", "row_groups", "unit_groups")
    for part in parts:
        assert any(plan[part] > 1 for plan in plans), part
    for one, other in (parts[:2], parts[1:], parts[::2]):
        assert any(plan[one] > 1 and plan[other] > 1 for plan in plans), f"{one} and {other}"
    assert any(all(plan[part] > 1 for part in parts) for plan in plans)
    assert max(plan["threads"] for plan in plans) == 18


@dtypes
@pytest.mark.parametrize("kind", ["plain", "lengths and resets"])
@named(DIVIDED)
def test_threads(name: str, kind: str, dtype: str) -> None:
    """On any number of threads, recorded on any number; with every rest of `steps` and of what is asked."""
    case = make_case(name, dtype, **KINDS[kind])
    lstm = case.network()
    d_output, d_state = asked(case)
    one = gradients(case, d_output, d_state, lstm, threads=1)
    check(one, exact(case, d_output, d_state), TOLERANCE[dtype])
    truncated = gradients(case, None, d_state, lstm, threads=1, steps=3)
    for threads in THREADS if dtype == "float32" else (3, 8):
        same_bits(gradients(case, d_output, d_state, lstm, threads=threads), one, f"{threads} threads")
        if threads % 3 == 0:
            same_bits(gradients(case, None, d_state, lstm, threads=threads, steps=3), truncated, f"{threads} threads, steps")
    tape = lstm.record(case.x, case.state, lengths=case.lengths, resets=case.resets, threads=4)
    grads = tape.backward(d_output, d_state, threads=1)
    same_bits(by_name(grads.input, grads.state, grads.parameters), one, "recorded on 4 threads")


def test_threads_with_much_work() -> None:
    """Long enough that threads come and go, wait, and part."""
    for name in ("t60b1i64h512", "t20b64i64h128", "t60b8i32h96l2d2", "t60b4i32h256l2p128"):
        case = make_case(name, lengths=not name.startswith("t60b1i"), resets=True)
        lstm = case.network()
        d_output, d_state = asked(case)
        one = gradients(case, d_output, d_state, lstm, threads=1)
        for threads in (2, 2, 2, 3, 4, 8):
            same_bits(gradients(case, d_output, d_state, lstm, threads=threads), one, f"{name}, {threads} threads")


@dtypes
@pytest.mark.parametrize("kind", ["plain", "lengths and resets"])
@named((*DIVIDED[:7], "t5b13i8h9", "t4b20i6h31d2", "t40b23i6h20l2"))
def test_rows_alone_and_together(name: str, kind: str, dtype: str) -> None:
    """Gradients of the input and the states: each row alone, in another order, several times over."""
    case = make_case(name, dtype, **KINDS[kind])
    lstm = case.network()
    d_output, (d_h, d_c) = asked(case)
    whole = gradients(case, d_output, (d_h, d_c), lstm)
    B = case.shape.B
    rng = np.random.default_rng(3)
    choices = [np.array([row]) for row in range(min(B, 13))]
    choices += [rng.permutation(B), np.arange(B)[::-1], rng.integers(0, B, 2 * B + 1), rng.integers(0, B, 6), np.arange(0, B, 3)]
    for rows in choices:
        given = gradients(case.rows(rows), d_output[:, rows], (d_h[:, rows], d_c[:, rows]), lstm)
        same_bits(of_rows(given, slice(None)), of_rows(whole, rows), f"rows {rows.tolist()}")


@dtypes
@named(("t12b6i9h20", "t15b11i7h33l2p5", "t9b7i5h16l2d2", "t30b4i3h40l3d2p9"))
def test_lengths_are_rows_alone(name: str, dtype: str) -> None:
    """A row in a ragged batch is that row alone without its padding, whatever the padding holds: NaN, resets, gradients asked."""
    case = make_case(name, dtype, lengths=True)
    lstm = case.network()
    d_output, (d_h, d_c) = asked(case)
    whole = gradients(case, d_output, (d_h, d_c), lstm)
    for row, length in enumerate(case.lengths):
        h, c = (s[:, [row]] for s in case.state)
        alone = Case(case.shape, case.weights, case.x[:length, [row]], (h, c))
        given = gradients(alone, d_output[:length, [row]], (d_h[:, [row]], d_c[:, [row]]), lstm)
        part = of_rows(whole, [row])
        assert not part["input"][length:].any()
        same_bits(of_rows(given, slice(None)), {**part, "input": part["input"][:length]}, f"row {row} of length {length}")
    padding = np.arange(case.shape.T)[:, None] >= case.lengths
    x, d_y = case.x.copy(), d_output.copy()
    x[padding], d_y[padding] = np.nan, np.inf
    same_bits(gradients(replace(case, x=x, resets=padding), d_y, (d_h, d_c), lstm), whole, "NaN and resets in the padding")
    plain = replace(case, lengths=None)
    full = replace(case, lengths=np.full(case.shape.B, case.shape.T))
    same_bits(gradients(full, d_output, (d_h, d_c), lstm), gradients(plain, d_output, (d_h, d_c), lstm), "all lengths T")


@dtypes
def test_repeated_runs_whatever_ran_between(dtype: str) -> None:
    cases = [make_case(name, dtype, lengths=True, resets=True) for name in DIVIDED]
    networks = [case.network() for case in cases]
    first = [gradients(case, *asked(case), lstm) for case, lstm in zip(cases, networks, strict=True)]
    for n in np.random.default_rng(6).integers(0, len(cases), 25):
        same_bits(gradients(cases[n], *asked(cases[n]), networks[n]), first[n], DIVIDED[n])
    for case, expected in zip(cases, first, strict=True):
        same_bits(gradients(case, *asked(case)), expected, "a network made anew")


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: str) -> None:
    """Inputs and gradients asked in any layout, batch-first or not: the same bits, and nothing written to them."""
    case = make_case("t9b6i11h20l2d2p7", dtype, lengths=True, resets=True)
    lstm = case.network()
    d_output, (d_h, d_c) = asked(case)
    expected = gradients(case, d_output, (d_h, d_c), lstm)
    change = LAYOUTS[layout]
    lengths = case.lengths if layout == "axes swapped" else change(case.lengths)
    plain = [case.x, *case.state, case.resets, d_output, d_h, d_c]
    x, h, c, resets, d_y, d_h_n, d_c_n = changed = [change(a) for a in plain]
    grads = lstm.record(x, (h, c), lengths=lengths, resets=resets).backward(d_y, (d_h_n, d_c_n))
    same_bits(by_name(grads.input, grads.state, grads.parameters), expected)
    for given, original in zip(changed, plain, strict=True):
        assert np.array_equal(getattr(given, "a", given), original)
    first = fastlstm.LSTM.from_weights(case.weights, batch_first=True)
    swapped = [change(np.ascontiguousarray(a.swapaxes(0, 1))) for a in (case.x, d_output)]
    grads = first.record(swapped[0], (h, c), lengths=lengths, resets=resets).backward(swapped[1], (d_h_n, d_c_n))
    assert grads.input.flags.c_contiguous
    same_bits(by_name(grads.input.swapaxes(0, 1), grads.state, grads.parameters), expected, "batch_first")


def test_zero_strides() -> None:
    """One number asked of everything, as `output.sum()` does."""
    case = make_case("t9b6i11h20l2")
    d_output, (d_h, _) = asked(case)
    for d_y, d in ((np.broadcast_to(np.float32(1), d_output.shape), d_h[:, :1]), (d_output[:1], d_h[:1, :1, :1])):
        wide = np.broadcast_to(d_y, d_output.shape), np.broadcast_to(d, d_h.shape)
        same_bits(gradients(case, wide[0], (wide[1], None)), gradients(case, wide[0].copy(), (wide[1].copy(), None)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_recomputed_gradients_that_vanish(dtype: str) -> None:
    """Of two directions they are added as all else is: subnormal numbers as zero, without NumPy's warnings."""
    case = make_case("t9b6i11h20l2d2", dtype=dtype)
    d_output, d_state = (None if d is None else d * d.dtype.type(np.finfo(dtype).tiny * 100) for d in (asked(case)[0], None))
    with np.errstate(all="raise"):
        plain, again = (gradients(case, d_output, d_state, recompute=recompute) for recompute in (False, True))
    same_bits(plain, again)
    d_x = plain["input"]
    assert d_x.any()
    assert not ((d_x != 0) & (abs(d_x) < np.finfo(dtype).tiny)).any()


def test_tensors() -> None:
    torch = import_torch()
    case = make_case("t9b6i11h20")
    d_output, d_state = asked(case)
    given = gradients(case, torch.from_numpy(d_output), tuple(torch.from_numpy(d) for d in d_state))
    same_bits(given, gradients(case, d_output, d_state))


@pytest.mark.parametrize("recompute", [False, True])
def test_arrays_that_change_after_recording(recompute: bool) -> None:
    """A tape keeps copies."""
    case = make_case("t9b6i11h20l2d2p7", lengths=True, resets=True)
    d_output, d_state = asked(case)
    expected = gradients(case, d_output, d_state)
    for layout in (np.asarray, np.asfortranarray):
        x, h, c, lengths, resets = arguments = [layout(a.copy()) for a in (case.x, *case.state, case.lengths, case.resets)]
        tape = case.network().record(x, (h, c), lengths=lengths, resets=resets, recompute=recompute)
        output, (h_n, c_n) = tape.output, tape.state
        for a in (*arguments, output, h_n, c_n):
            a[...] = 1
        copied = copy.deepcopy(tape)
        for each in (copied, tape):
            grads = each.backward(d_output, d_state)
            same_bits(by_name(grads.input, grads.state, grads.parameters), expected)


ISA_CASES = [
    *((shape.name, kind) for shape in EDGE if 0 < shape.T < 500 and shape.B for kind in ("plain", "lengths and resets")),
    *((name, "lengths and resets") for name in DIVIDED),
]


def isa_gradients() -> Named:
    found = {}
    for dtype in DTYPES:
        for name, kind in ISA_CASES:
            case = make_case(name, dtype, **KINDS[kind])
            for steps in (None, 2):
                all_of_them = gradients(case, *asked(case), threads=1, steps=steps).values()
                found[f"{name}, {kind}, {dtype}, steps {steps}"] = np.concatenate([a.ravel() for a in all_of_them])
    return found


def test_instruction_sets(tmp_path: Path) -> None:
    """Every set with fused multiply-add gives the same bits."""
    assert_same_on_every_fused(results_by_isa("test_gradients.isa_gradients", tmp_path, FUSED))


# ---- NaN, infinity, subnormal numbers ----------------------------------------------------------------------------------------

SPECIAL = ("t8b7i9h20", "t6b7i9h20l2p7", "t8b4i5h33d2", "t5b4i9h20l2d2p7", "t7b1i4h70")


def check_kinds(given: Named, expected: Named, dtype: str, what: object) -> None:
    """NaN and either infinity where the reference has them, finite numbers close to it elsewhere."""
    finite_given, finite_expected = {}, {}
    for name, e in expected.items():
        a = given[name]
        for kind, test in (("NaN", np.isnan), ("inf", np.isposinf), ("-inf", np.isneginf)):
            wrong = np.argwhere(test(a) != test(e))
            at = tuple(wrong[0]) if len(wrong) else ()
            assert not len(wrong), f"{what}: {name}{list(at)} is {a[at]}, expected {e[at]}: {kind} on one side only"
        finite_given[name], finite_expected[name] = (np.where(np.isfinite(e), b, 0) for b in (a, e))
    check(finite_given, finite_expected, 100 * TOLERANCE[dtype], what)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@dtypes
@named(SPECIAL)
def test_nan_and_infinity(name: str, dtype: str, value: float) -> None:
    """In the input, the states and what is asked: as in the reference, and other rows' gradients of input and state unchanged."""
    for kind in ("plain",) if dtype == "float64" else ("plain", "lengths and resets"):
        clean = make_case(name, dtype, **KINDS[kind])
        s, lstm = clean.shape, clean.network()
        d_output, d_state = asked(clean)
        unchanged = gradients(clean, d_output, d_state, lstm)
        arrays = {"x": clean.x, "h_0": clean.state[0], "c_0": clean.state[1]}
        arrays |= {"d_output": d_output, "d_h_n": d_state[0], "d_c_n": d_state[1]}
        for which in arrays:
            outer = s.T if which in ("x", "d_output") else s.L * s.D
            for first, row, k in ((0, 0, 0), (outer - 1, s.B - 1, -1), (outer // 2, s.B // 2, slice(None))):
                a = {n: b.copy() for n, b in arrays.items()}
                a[which][first, row, k] = value
                dirty = replace(clean, x=a["x"], state=(a["h_0"], a["c_0"]))
                d = a["d_output"], (a["d_h_n"], a["d_c_n"])
                what = f"{kind}, {which}[{first}, {row}, {k}] = {value}"
                given = gradients(dirty, *d, lstm)
                check_kinds(given, exact(dirty, *d), dtype, what)
                others = [b for b in range(s.B) if b != row]
                same_bits(of_rows(given, others), of_rows(unchanged, others), f"{what}: other rows")
                if k == 0:
                    same_bits(gradients(dirty, *d, lstm, threads=3), given, f"{what}, on threads")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@dtypes
@named(SPECIAL[1:4])
def test_nan_and_infinity_in_the_weights(name: str, dtype: str, value: float) -> None:
    clean = make_case(name, dtype)
    d = asked(clean)
    for tensor, _ in clean.weights.named_tensors():
        for place in (0, -1, 7):
            tensors = {n: a.copy() for n, a in clean.weights.named_tensors()}
            tensors[tensor].reshape(-1)[place % tensors[tensor].size] = value
            dirty = replace(clean, weights=Weights.from_named_tensors(tensors))
            check_kinds(gradients(dirty, *d), exact(dirty, *d), dtype, f"{tensor}[{place}] = {value}")


@dtypes
def test_resets_and_cuts_stop_nan(dtype: str) -> None:
    """What is asked after a reset, or a cut, is NaN: nothing of it arrives before."""
    case = make_case("t8b3i5h20p7", dtype)
    resets = np.zeros((8, 3), bool)
    resets[4, 1] = True
    d_output, d_state = asked(case)
    d_output[5:, 1] = np.nan
    d_state[0][:, 1], d_state[1][:, 1] = np.inf, np.nan
    reset = gradients(replace(case, resets=resets), d_output, d_state)
    cut = gradients(case, d_output, d_state, steps=4)
    for given in (reset, cut):
        assert np.isnan(given["input"][4:, 1]).all()
        assert np.isfinite(given["input"][:4]).all()
        assert np.isfinite(given["h_0"]).all()
        assert np.isfinite(given["c_0"]).all()


@pytest.mark.timing
@dtypes
def test_subnormal_numbers_cost_nothing(dtype: str) -> None:
    case = make_case("t100b4i64h96", dtype)
    d_output, d_state = asked(case)
    lstm, tiny = case.network(), np.finfo(dtype).tiny / 1000
    small = (np.sign(d_output) * tiny).astype(dtype), tuple((np.sign(d) * tiny).astype(dtype) for d in d_state)

    def measure() -> float:
        times: list[list[float]] = [[], []]
        for _ in range(9):
            for d, seconds in zip(((d_output, d_state), small), times, strict=True):
                tape = lstm.record(case.x, case.state, threads=1)
                begin = time.thread_time()
                tape.backward(*d, threads=1)
                seconds.append(time.thread_time() - begin)
        return sorted(times[1])[4] / sorted(times[0])[4]

    settle(measure, 2, "time with subnormal gradients over that without")


# ---- Refusals ----------------------------------------------------------------------------------------------------------------


def refusals() -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    """What is given to backward after a (7, 3, 5) call of 2 layers, 8 units, 4 projected, 2 directions; the error; its words."""
    y, h, c = np.zeros((7, 3, 8), np.float32), np.zeros((4, 3, 4), np.float32), np.zeros((4, 3, 8), np.float32)
    return {
        "too few steps": ({"d_output": y[1:]}, ValueError, r"d_output must have shape \(7, 3, 8\), got \(6, 3, 8\)"),
        "a row less": ({"d_output": y[:, 1:]}, ValueError, r"d_output must have shape \(7, 3, 8\), got \(7, 2, 8\)"),
        "batch-first": ({"d_output": y.swapaxes(0, 1)}, ValueError, r"d_output must .* \(7, 3, 8\), got \(3, 7, 8\)"),
        "a flat one": ({"d_output": y[:, 0]}, ValueError, r"d_output must have shape \(7, 3, 8\), got \(7, 8\)"),
        "a number": ({"d_output": np.float32(1)}, ValueError, r"d_output must have shape \(7, 3, 8\), got \(\)"),
        "float64": ({"d_output": y.astype(float)}, TypeError, "d_output must be float32 as the weights are, got float64"),
        "integers": ({"d_output": y.astype(int)}, TypeError, "d_output must be float32 as the weights are, got int64"),
        "a list": ({"d_output": y.tolist()}, TypeError, "d_output must be an array, got list"),
        "masked": ({"d_output": np.ma.masked_array(y)}, TypeError, "d_output is a masked array"),
        "d_h_n of P": ({"d_state": (c, c)}, ValueError, r"d_h_n must have shape \(4, 3, 4\), got \(4, 3, 8\)"),
        "d_c_n of H": ({"d_state": (h, h)}, ValueError, r"d_c_n must have shape \(4, 3, 8\), got \(4, 3, 4\)"),
        "d_c_n alone": ({"d_state": (None, c[:2])}, ValueError, r"d_c_n must have shape \(4, 3, 8\), got \(2, 3, 8\)"),
        "d_h_n alone": ({"d_state": (h[:, 0], None)}, ValueError, r"d_h_n must have shape \(4, 3, 4\), got \(4, 4\)"),
        "d_c_n of float64": ({"d_state": (h, c.astype(float))}, TypeError, "d_c_n must be float32 .* got float64"),
        "one state": ({"d_state": h}, TypeError, r"d_state must be a pair \(d_h_n, d_c_n\), got ndarray"),
        "three states": ({"d_state": (h, c, c)}, TypeError, r"d_state must be a pair \(d_h_n, d_c_n\), got tuple"),
        "steps 0": ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        "steps -1": ({"steps": -1}, ValueError, "steps must be at least 1, got -1"),
        "steps 1.5": ({"steps": 1.5}, TypeError, "steps must be an integer, got 1.5"),
        "steps True": ({"steps": True}, TypeError, "steps must be an integer, got True"),
        "steps of text": ({"steps": "2"}, TypeError, "steps must be an integer, got '2'"),
        "threads 0": ({"threads": 0}, ValueError, "threads must be between 1 and 1024, got 0"),
        "threads 1.5": ({"threads": 1.5}, TypeError, "threads must be an integer, got 1.5"),
    }


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("what", refusals())
def test_refused_and_nothing_changed(what: str, recompute: bool) -> None:
    case = make_case("t7b3i5h8l2d2p4")
    given, error, words = refusals()[what]
    tape = case.network().record(case.x, case.state, recompute=recompute)
    bytes_before = tape.nbytes
    with pytest.raises(error, match=words):
        tape.backward(**given)
    assert tape.nbytes == bytes_before
    grads = tape.backward(*asked(case))
    same_bits(by_name(grads.input, grads.state, grads.parameters), gradients(case, *asked(case)))


def test_refused_of_one_sequence() -> None:
    case = make_case("t7b1i5h8")
    tape = case.network().record(case.x[:, 0])
    d_output, (d_h, d_c) = asked(case)
    with pytest.raises(ValueError, match=r"d_output must have shape \(7, 8\), got \(7, 1, 8\)"):
        tape.backward(d_output)
    with pytest.raises(ValueError, match=r"d_h_n must have shape \(1, 8\), got \(1, 1, 8\)"):
        tape.backward(None, (d_h, d_c))
    assert tape.backward(d_output[:, 0]).input.any()


@pytest.mark.parametrize("recompute", [False, True])
def test_a_tape_is_used_once(recompute: bool) -> None:
    case = make_case("t7b3i5h8")
    tape = case.network().record(case.x, recompute=recompute)
    kept = tape.output.copy()
    tape.backward(asked(case)[0])
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"this tape has already been used, or its backward was interrupted.*record again"):
            tape.backward(asked(case)[0])
    assert tape.nbytes == 0
    assert tape.output.tobytes() == kept.tobytes()


@pytest.mark.parametrize("recompute", [False, True])
def test_a_tape_that_was_interrupted_keeps_nothing(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case("t7b3i5h8l2")
    tape = case.network().record(case.x, recompute=recompute)
    before = tape.nbytes
    assert before > 0

    def break_off(error: BaseException) -> None:
        def run(*arguments: Any) -> None:
            raise error

        for packed in tape._parts if recompute else [tape._packed]:
            monkeypatch.setattr(packed, "backward", run)

    break_off(MemoryError())
    with pytest.raises(MemoryError):
        tape.backward(asked(case)[0])
    assert tape.nbytes == before
    break_off(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        tape.backward(asked(case)[0])
    assert tape.nbytes == 0
    with pytest.raises(RuntimeError, match="interrupted"):
        tape.backward(asked(case)[0])


def test_a_tape_shows_its_shape() -> None:
    case = make_case("t5b2i3h4")
    assert repr(case.network().record(case.x)) == "Tape(output: (5, 2, 4))"


@pytest.mark.parametrize("recompute", [False, True])
def test_a_tape_keeps_the_order_of_its_axes(recompute: bool) -> None:
    """Whatever becomes of the network's batch_first afterwards."""
    lstm = fastlstm.LSTM(3, 5, seed=0, batch_first=True)
    x, d_output = np.ones((2, 7, 3), np.float32), np.ones((2, 7, 5), np.float32)
    expected = lstm.record(x, recompute=recompute).backward(d_output)
    tape = lstm.record(x, recompute=recompute)
    lstm.batch_first = False
    found = tape.backward(d_output)
    same_bits(by_name(found.input, found.state, found.parameters), by_name(expected.input, expected.state, expected.parameters))


def test_a_tape_of_replaced_weights() -> None:
    case = make_case("t7b3i5h8")
    lstm = case.network()
    tape = lstm.record(case.x)
    lstm.load_state_dict(lstm.state_dict())
    with pytest.raises(RuntimeError, match=r"weights were replaced .*load_state_dict.*record again"):
        tape.backward(asked(case)[0])
    with pytest.raises(RuntimeError, match="weights were replaced"):
        pickle.dumps(tape)
    lstm.record(case.x).backward(asked(case)[0])


def test_record_refuses_what_a_call_refuses() -> None:
    case = make_case("t7b3i5h8")
    lstm = case.network()
    for given, error, words in (
        ({"x": case.x[..., 1:]}, ValueError, r"x must have shape \(T, B, 5\), got \(7, 3, 4\)"),
        ({"x": case.x.astype(float)}, TypeError, "x must be float32"),
        ({"x": case.x, "lengths": [1, 2, 8]}, ValueError, "lengths must be between 0 and T = 7"),
        ({"x": case.x, "resets": np.zeros((7, 2), bool)}, ValueError, r"resets must have shape \(7, 3\)"),
        ({"x": case.x, "state": case.state[0]}, TypeError, "state must be a pair"),
        ({"x": case.x, "threads": 0}, ValueError, "threads must be between"),
    ):
        with pytest.raises(error, match=words):
            lstm.record(**given)


# ---- Copies ------------------------------------------------------------------------------------------------------------------

COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda o: pickle.loads(pickle.dumps(o))}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("how", COPIES)
@named(("t9b4i5h20l2d2p7", "t7b1i3h5", "t0b2i5h4l2d2p3", "t4b0i5h3"))
def test_copies(how: str, name: str, recompute: bool) -> None:
    """A copy has its own memory: both can be used, in either order, once each."""
    for batch_first in (False, True):
        case = make_case(name, lengths=True, resets=True)
        lstm = fastlstm.LSTM.from_weights(case.weights, batch_first=batch_first)
        d_output, d_state = asked(case)
        x, d_y = (a.swapaxes(0, 1) if batch_first else a for a in (case.x, d_output))
        for state in (case.state, None):
            tape = lstm.record(x, state, lengths=case.lengths, resets=case.resets, recompute=recompute)
            other, third = COPIES[how](tape), COPIES[how](tape)
            assert other.output.tobytes() == tape.output.tobytes()
            assert other.nbytes == tape.nbytes
            found = [each.backward(d_y, d_state, threads=1) for each in (other, tape, third)]
            for grads in found[1:]:
                first = by_name(found[0].input, found[0].state, found[0].parameters)
                same_bits(by_name(grads.input, grads.state, grads.parameters), first)
            used = COPIES[how](tape)
            assert used.nbytes == 0
            assert used.output.tobytes() == other.output.tobytes()
            with pytest.raises(RuntimeError, match="already been used"):
                used.backward(d_y)


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_one_sequence(how: str) -> None:
    case = make_case("t9b1i5h20d2", resets=True)
    d_output, d_state = asked(case)
    h, c = (s[:, 0] for s in case.state)
    tape = case.network().record(case.x[:, 0], (h, c), resets=case.resets[:, 0])
    grads, others = (each.backward(d_output[:, 0], tuple(d[:, 0] for d in d_state)) for each in (tape, COPIES[how](tape)))
    same_bits(by_name(grads.input, grads.state, grads.parameters), by_name(others.input, others.state, others.parameters))


@named(("t6000b1i1h18", "t6000b1i1h16d2", "t6000b1i1h20p7"))
def test_a_pickled_tape_holds_its_own_call_alone(name: str) -> None:
    """Memory of earlier calls is lent to later ones; what these leave as it was is not handed on."""
    shape = make_case(name).shape
    before = fastlstm.LSTM(256, 16, seed=0)
    secret = np.float32(1234.5678)
    for kind in (fastlstm.LSTM, fastlstm.RNN):
        for T in range(500, 4500, 500):
            before.record(np.full((T, 1, 256), secret))
        options = {} if kind is fastlstm.RNN else {"proj_size": shape.P}
        network = kind(shape.I, shape.H, bidirectional=shape.D == 2, seed=0, **options)
        tape = network.record(np.zeros((shape.T, shape.B, shape.I), np.float32))
        content = pickle.dumps(tape)
        assert secret.tobytes() not in content
        assert content == pickle.dumps(tape) == pickle.dumps(pickle.loads(content))


def test_a_pickled_tape_runs_in_another_process(tmp_path: Path) -> None:
    """Under another instruction set too: what is kept does not depend on it."""
    case = make_case("t9b4i5h20l2d2p7", "float64", lengths=True)
    tape = case.network().record(case.x, case.state, lengths=case.lengths)
    (tmp_path / "tape").write_bytes(pickle.dumps((tape, asked(case))))
    grads = tape.backward(*asked(case))
    for isa in fastlstm.available_isas():
        run_python(
            """
import pathlib, pickle, sys
folder = pathlib.Path(sys.argv[1])
tape, asked = pickle.loads((folder / "tape").read_bytes())
(folder / "found").write_bytes(pickle.dumps(tape.backward(*asked)))
""",
            tmp_path,
            FASTLSTM_ISA=isa,
        )
        found = pickle.loads((tmp_path / "found").read_bytes())
        given, expected = (by_name(g.input, g.state, g.parameters) for g in (found, grads))
        if isa == fastlstm.isa or "baseline" not in (isa, fastlstm.isa):
            same_bits(given, expected, isa)
        check(given, expected, 1e-13, isa)


# ---- In a process ------------------------------------------------------------------------------------------------------------


def test_many_python_threads_on_one_network() -> None:
    """Twelve callers, each with tapes of its own: the same bits as alone."""
    cases = [make_case("t30b5i12h80l2d2p30", lengths=True, resets=True, seed=n) for n in range(6)]
    lstm = cases[0].network()
    cases = [replace(case, weights=cases[0].weights) for case in cases]
    expected = [gradients(case, *asked(case), lstm, threads=1) for case in cases]
    begin = threading.Barrier(12)

    def work(n: int) -> None:
        begin.wait()
        for repeat in range(6):
            case = cases[(n + repeat) % 6]
            options = {"threads": (1, 2, 4)[n % 3]} if n % 4 else {}
            same_bits(gradients(case, *asked(case), lstm, **options), expected[(n + repeat) % 6], f"caller {n}, {repeat}")

    with ThreadPoolExecutor(12) as pool:
        for future in [pool.submit(work, n) for n in range(12)]:
            future.result(timeout=120)


def test_several_python_threads_on_one_tape() -> None:
    """One is first, the others are told that the tape is used."""
    case = make_case("t60b8i32h128")
    lstm = case.network()
    d = asked(case)
    expected = gradients(case, *d, lstm)
    for _ in range(20):
        tape = lstm.record(case.x, case.state)
        begin = threading.Barrier(6)

        def work(_: int, tape: Any = tape, begin: Any = begin) -> Named | str:
            begin.wait()
            try:
                grads = tape.backward(*d)
            except RuntimeError as error:
                return str(error)
            return by_name(grads.input, grads.state, grads.parameters)

        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(work, range(6)))
        results = [f for f in found if not isinstance(f, str)]
        assert len(results) == 1
        same_bits(results[0], expected)
        assert all("already been used" in f for f in found if isinstance(f, str))


@posix
def test_fork() -> None:
    """A tape of the parent can be used in the child, and then in the parent."""
    run_python(
        FORK
        + """
from helpers import asked
from test_gradients import by_name, gradients, same_bits

d = asked(case)
expected_gradients = gradients(case, *d, lstm, threads=2)
tape = lstm.record(case.x, case.state, lengths=case.lengths, resets=case.resets)

def backward():
    same_bits(gradients(case, *d, lstm), expected_gradients)
    same_bits(gradients(case, *d, lstm, threads=4), expected_gradients)
    grads = tape.backward(*d)
    same_bits(by_name(grads.input, grads.state, grads.parameters), expected_gradients)

joined(in_child(backward))
joined(in_child(lambda: joined(in_child(backward))))
backward()
""",
        timeout=90,
    )


LONG_CALL = """
import signal, sys, time
import numpy as np
import fastlstm
from helpers import asked, make_case, subnormals_work
from test_gradients import gradients, same_bits

name, threads = sys.argv[1], int(sys.argv[2])
small = make_case("t5b3i4h20l2")
before = gradients(small, *asked(small))
T, B, I, H, L = eval(name)
lstm = fastlstm.LSTM(I, H, L, seed=0)
x = np.broadcast_to(np.float32(0.5), (T, B, I))
ones = np.ones((T, B, H), np.float32)  # as the engine takes it: a copy would still be under way when the signal comes
lstm.record(x[:2, :2]).backward(ones[:2, :2], threads=threads)
tape = lstm.record(x)
np.ones(sum(a.size for a in lstm.state_dict().values()), np.float32)  # pages that the host of a virtual machine has found by then
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
print("ready", flush=True)
try:
    tape.backward(ones, threads=threads)
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
else:
    print("never", flush=True)
assert subnormals_work()
try:
    tape.backward(ones)
except RuntimeError as error:
    assert "interrupted" in str(error)
else:
    raise AssertionError("half used up")
assert tape.nbytes == 0
same_bits(gradients(small, *asked(small)), before)
"""


@posix
@pytest.mark.timing
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", ["(12000, 1, 8, 512, 4)", "(2, 20000, 64, 512, 2)", "(1, 2000, 2048, 2048, 2)"])
def test_interrupt(sizes: str, threads: int) -> None:
    """Ctrl-C ends a long backward pass soon: many steps, few steps with many rows, one step of a large network."""
    assert_interrupted_soon(LONG_CALL, sizes, threads, pause=0.5)


@linux
@pytest.mark.parametrize("what", ["tape", "scratch", "weights"])
def test_out_of_memory(what: str) -> None:
    """MemoryError, whichever part has no room; the tape that was recorded can still be used."""
    run_python(
        """
import pathlib, resource, sys
import numpy as np
import fastlstm
from helpers import asked, make_case
from test_gradients import by_name, gradients, same_bits

what = sys.argv[1]
small = make_case("t20b3i4h80l2")
expected = gradients(small, *asked(small))
I, H = {"tape": (4, 512), "scratch": (4, 64), "weights": (4096, 1024)}[what]
T, B = {"tape": (40, 64), "scratch": (4, 20000), "weights": (1, 1)}[what]
x = np.broadcast_to(np.float32(0.5), (T, B, I))
d_output = np.broadcast_to(np.float32(1), (T, B, H))
whole = fastlstm.LSTM(I, H, seed=0).record(x).backward(d_output)  # memory of calls goes with the last network
large = fastlstm.LSTM(I, H, seed=0)
tape = None if what == "tape" else large.record(x)
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
for _ in range(3):
    now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (12 << 20), hard))
    try:
        large.record(x) if what == "tape" else tape.backward(d_output)
    except MemoryError as error:
        assert str(error)
    else:
        raise AssertionError("that was enough memory")
    same_bits(gradients(small, *asked(small)), expected)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
grads = (tape or large.record(x)).backward(d_output)
same_bits(by_name(grads.input, grads.state, grads.parameters), by_name(whole.input, whole.state, whole.parameters))
""",
        what,
        **QUIET,
    )


@linux
@pytest.mark.parametrize(("bound", "environment"), [(16, {}), (2, {"MALLOC_MMAP_THRESHOLD_": "65536"})], ids=["heap", "maps"])
def test_memory_does_not_grow_with_the_shapes_seen(bound: int, environment: dict[str, str]) -> None:
    """Hundreds of shapes on one network, tapes used, copied and thrown away: nothing is kept of any."""
    if environment and platform.libc_ver()[0] != "glibc":
        pytest.skip("a setting of glibc")
    run_python(
        """
import copy, sys
import numpy as np
import fastlstm
from helpers import resident_bytes

rng = np.random.default_rng(0)
lstm = fastlstm.LSTM(24, 40, 2, bidirectional=True, seed=0)

def call(n, T, B):
    x = rng.standard_normal((T, B, 24), np.float32)
    tape = lstm.record(x, lengths=rng.integers(0, T + 1, B), resets=rng.random((T, B)) < 0.1)
    if n % 4 == 1:
        tape = copy.copy(tape)
    if n % 4:
        try:
            tape.backward(tape.output[1:])
        except ValueError:
            pass
        tape.backward(tape.output, threads=n % 3 + 1)

def calls(many):
    for n in range(many):
        call(n, int(rng.integers(1, 51)), int(rng.integers(1, 41)))

call(1, 50, 40)
calls(60)
before = resident_bytes()
calls(240)
growth = (resident_bytes() - before) / 2**20
assert growth < float(sys.argv[1]), f"grew by {growth:.1f} MiB"
""",
        bound,
        **QUIET,
        **environment,
    )
