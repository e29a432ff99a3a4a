"""fastlstm inside PyTorch: what torch.nn.LSTM computes, its gradients, its calls, and errors where it cannot follow."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import importlib.util
import io
import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TOLERANCE, import_torch, python_environment, resident_bytes, run_python

import fastlstm

torch = import_torch()

import fastlstm.torch as bridge  # noqa: E402

rnn = torch.nn.utils.rnn
F64 = torch.float64
EXAMPLES = Path(__file__).parents[1] / "examples"

# (I, H, num_layers, bias, batch_first, bidirectional, proj_size): every option, and I, H and P all different
CONFIGS = [
    (4, 6, 1, True, False, False, 0),
    (4, 6, 2, True, True, True, 0),
    (4, 6, 2, False, False, True, 3),
    (5, 7, 3, True, True, False, 2),
    (1, 1, 1, False, True, False, 0),
]


def modules(config: tuple[Any, ...], dtype: Any = F64, dropout: float = 0.0, seed: int = 0) -> tuple[Any, Any]:
    """torch.nn.LSTM and fastlstm's from the same seed."""
    I, H, L, bias, batch_first, bidirectional, P = config
    both = []
    for kind in (torch.nn.LSTM, bridge.LSTM):
        torch.manual_seed(seed)
        both.append(kind(I, H, L, bias, batch_first, dropout, bidirectional, P, dtype=dtype))
    return both[0], both[1]


def states(config: tuple[Any, ...], *rows: int, dtype: Any = F64) -> tuple[Any, Any]:
    _, H, L, _, _, bidirectional, P = config
    count = L * (2 if bidirectional else 1)
    return tuple(torch.randn(count, *rows, n, dtype=dtype, requires_grad=True) for n in (P or H, H))  # type: ignore[return-value]


def flat(result: Any) -> list[Any]:
    output, (h_n, c_n) = result
    return [output.data if isinstance(output, rnn.PackedSequence) else output, h_n, c_n]


def gradients(module: Any, inputs: list[Any], results: list[Any]) -> list[Any]:
    """Of a sum with fixed random factors, of each input and parameter."""
    generator = torch.Generator().manual_seed(7)
    total = sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in results)
    return list(torch.autograd.grad(total, [*inputs, *module.parameters()]))


def assert_equal(given: list[Any], expected: list[Any], tolerance: float) -> None:
    assert len(given) == len(expected)
    for k, (a, b) in enumerate(zip(given, expected, strict=True)):
        assert a.dtype == b.dtype
        assert a.shape == b.shape, k
        assert not a.numel() or (a - b).detach().abs().max().item() <= tolerance, k


def assert_same_bits(given: list[Any], expected: list[Any]) -> None:
    for a, b in zip(given, expected, strict=True):
        assert a.detach().numpy().tobytes() == b.detach().numpy().tobytes()


# ---- The same as torch.nn.LSTM -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_parameters_and_arguments(config: tuple[Any, ...]) -> None:
    theirs, ours = modules(config, torch.float32)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same_bits(list(ours.parameters()), list(theirs.parameters()))
    assert ours.extra_repr() == theirs.extra_repr()
    other = bridge.LSTM(*config[:4], batch_first=config[4], bidirectional=config[5], proj_size=config[6])
    other.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(other.state_dict())
    assert_same_bits(list(other.parameters()), list(theirs.parameters()))


@pytest.mark.parametrize("given", [True, False], ids=["state", "no state"])
@pytest.mark.parametrize("kind", ["batch", "one", "packed", "packed unsorted"])
@pytest.mark.parametrize("config", CONFIGS)
def test_values_and_gradients(config: tuple[Any, ...], kind: str, given: bool) -> None:
    theirs, ours = modules(config)
    I, batch_first = config[0], config[4]
    T, B = 5, 3
    x = torch.randn(*((T, I) if kind == "one" else (B, T, I) if batch_first else (T, B, I)), dtype=F64, requires_grad=True)
    lengths = [2, 5, 4] if "unsorted" in kind else [5, 4, 1]
    hx = states(config, *(() if kind == "one" else (B,))) if given else None
    results, outputs = [], []
    for module in (ours, theirs):
        argument = rnn.pack_padded_sequence(x, lengths, batch_first, "unsorted" not in kind) if "packed" in kind else x
        output, state = module(argument, hx)
        values = flat((output, state))
        results.append(values + gradients(module, [x, *(hx or ())], values))
        outputs.append(output)
    assert_equal(results[0], results[1], 10 * TOLERANCE["float64"])
    if "packed" in kind:
        assert type(outputs[0]) is rnn.PackedSequence
        for a, b in zip(outputs[0][1:], outputs[1][1:], strict=True):
            assert (a is b is None) or torch.equal(a, b)
    elif kind == "batch":
        assert outputs[0].is_contiguous()


@pytest.mark.parametrize("given", [True, False], ids=["state", "no state"])
@pytest.mark.parametrize("rows", [3, None])
@pytest.mark.parametrize("bias", [True, False])
def test_cell(bias: bool, rows: int | None, given: bool) -> None:
    torch.manual_seed(3)
    theirs = torch.nn.LSTMCell(4, 6, bias, dtype=F64)
    torch.manual_seed(3)
    ours = bridge.LSTMCell(4, 6, bias, dtype=F64)
    assert_same_bits(list(ours.parameters()), list(theirs.parameters()))
    B = () if rows is None else (rows,)
    x, h, c = (torch.randn(*B, n, dtype=F64, requires_grad=True) for n in (4, 6, 6))
    inputs, hx = ([x, h, c], (h, c)) if given else ([x], None)
    results = []
    for cell in (ours, theirs):
        h_1, c_1 = cell(x, cell(x, hx))
        results.append([h_1, c_1, *gradients(cell, inputs, [h_1, c_1])])
    assert_equal(results[0], results[1], 10 * TOLERANCE["float64"])


@pytest.mark.parametrize("compiled", [False, True])
def test_a_cell_results_are_no_views(compiled: bool) -> None:
    """As truncated backpropagation detaches them in place, and what was computed without gradients is changed with them."""
    torch._dynamo.reset()
    module, x = bridge.LSTMCell(4, 6), torch.randn(3, 4)
    cell = torch.compile(module, backend="aot_eager", fullgraph=True) if compiled else module
    expected = [value.detach().clone() for value in cell(x, tuple(value.detach() for value in module(x)))]
    state = cell(x)
    for value in state:
        assert not value._is_view()
        value.detach_()
    assert_same_bits(list(cell(x, state)), expected)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            h, c = cell(x, state)
        assert_same_bits([h, c], expected)
        assert not h._is_view()
        assert not c._is_view()
    with torch.no_grad():
        h, c = cell(x, state)
    factor = torch.ones(6, requires_grad=True)
    h.mul_(factor).add_(c.mul_(factor)).sum().backward()
    assert_equal([factor.grad], [sum(expected).sum(0)], TOLERANCE["float32"])


def test_float32() -> None:
    theirs, ours = modules((40, 64, 2, True, True, True, 0), torch.float32)
    x = torch.randn(4, 30, 40)
    with torch.no_grad():
        assert_equal(flat(ours(x)), flat(theirs(x)), TOLERANCE["float32"])


def test_empty_batches_and_sequences() -> None:
    _, ours = modules(CONFIGS[1])
    for shape in ((0, 5, 4), (3, 0, 4)):  # torch.nn.LSTM refuses the second
        x = torch.randn(shape, dtype=F64, requires_grad=True)
        output, (h_n, _) = ours(x)
        assert (output.shape, h_n.shape) == ((*shape[:2], 12), (4, shape[0], 6))
        (output.sum() + h_n.sum()).backward()
        assert x.grad is not None
        assert x.grad.shape == shape


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("config", CONFIGS[1:4])
def test_dropout_drops_what_torch_drops(config: tuple[Any, ...], packed: bool) -> None:
    theirs, ours = modules(config, dropout=0.4)
    x = torch.randn(*((3, 5) if config[4] else (5, 3)), config[0], dtype=F64, requires_grad=True)
    hx = states(config, 3)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(5)
        argument = rnn.pack_padded_sequence(x, [3, 5, 1], config[4], enforce_sorted=False) if packed else x
        values = flat(module(argument, hx))
        results.append(values + gradients(module, [x, *hx], values))
    assert_equal(results[0], results[1], 10 * TOLERANCE["float64"])
    assert not torch.equal(ours(argument, hx)[1][0], results[0][1])  # another mask each time
    assert_equal(flat(ours.eval()(argument, hx)), flat(theirs.eval()(argument, hx)), TOLERANCE["float64"])


# ---- Rows that begin anew ------------------------------------------------------------------------------------------------------


def each_stretch(module: Any, x: Any, hx: Any, resets: Any) -> Any:
    """What resets mean, by ``torch.nn.LSTM``: the stretches between them are sequences of their own, (T, B, I) row by row."""
    outputs, finals = [], []
    for row in range(x.shape[1]):
        cuts = [int(t) for t in resets[:, row].nonzero()]
        begins = [0, *(t for t in cuts if t)]
        stretches, last = [], None
        for k, (begin, end) in enumerate(zip(begins, [*begins[1:], len(x)], strict=True)):
            state = []
            for given in hx:
                from_left = k == 0 and 0 not in cuts, k == len(begins) - 1
                kept = torch.tensor([from_left[n % 2 if module.bidirectional else 0] for n in range(len(given))])
                state.append(given[:, row : row + 1] * kept[:, None, None])
            output, final = module(x[begin:end, row : row + 1], tuple(state))
            stretches.append(output)
            if last is None:
                last = final
            elif module.bidirectional:  # backwards, the first stretch is the last one
                odd = (torch.arange(len(final[0])) % 2 == 1)[:, None, None]
                last = tuple(torch.where(odd, first, here) for first, here in zip(last, final, strict=True))
            else:
                last = final
        outputs.append(torch.cat(stretches))
        finals.append(last)
    h_n, c_n = (torch.cat(parts, 1) for parts in zip(*finals, strict=True))
    return torch.cat(outputs, 1), (h_n, c_n)


def some_resets(T: int, B: int) -> Any:
    """Of the first step, two in a row, the last step, and a row without any."""
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[0, 0] = resets[2, 0] = resets[3, 0] = resets[T - 1, 1] = True
    return resets


@pytest.mark.parametrize("rows", [3, None])
@pytest.mark.parametrize("config", CONFIGS)
def test_rows_that_begin_anew(config: tuple[Any, ...], rows: int | None) -> None:
    theirs, ours = modules(config)
    B = rows or 1
    x, hx = torch.randn(7, B, config[0], dtype=F64, requires_grad=True), states(config, B)
    resets = some_resets(7, 3)[:, :B]
    given: tuple[Any, ...] = (x.transpose(0, 1) if config[4] else x, hx, resets)
    if rows is None:
        given = x[:, 0], tuple(s[:, 0] for s in hx), resets[:, 0]
    output, state = ours(*given[:2], resets=given[2])
    if rows is None:
        values = [y.unsqueeze(1) for y in flat((output, state))]
    else:
        values = flat((output.transpose(0, 1) if config[4] else output, state))
    theirs.batch_first = False
    expected = flat(each_stretch(theirs, x, hx, resets))
    results = values + gradients(ours, [x, *hx], values)
    assert_equal(results, expected + gradients(theirs, [x, *hx], expected), 10 * TOLERANCE["float64"])
    with torch.no_grad():
        assert_same_bits(flat(ours(*given[:2], resets=given[2])), flat((output, state)))
    none = torch.zeros_like(given[2])
    assert_same_bits(flat(ours(*given[:2], resets=none)), flat(ours(*given[:2])))


def test_resets_between_layers_that_drop() -> None:
    """The same bits as without dropout, gradients too, where nothing is dropped; and something else where half is."""
    config = CONFIGS[1]
    ours = modules(config, dropout=0.5)[1]
    x, hx = torch.randn(3, 7, config[0], dtype=F64, requires_grad=True), states(config, 3)
    resets = some_resets(7, 3)
    whole = flat(ours.eval()(x, hx, resets=resets))
    assert not torch.equal(flat(ours.train()(x, hx, resets=resets))[0], whole[0])
    ours.dropout = 1e-300  # drops nothing, but layer by layer
    parts = flat(ours(x, hx, resets=resets))
    assert_same_bits(parts, whole)
    assert_same_bits(gradients(ours, [x, *hx], parts), gradients(ours, [x, *hx], whole))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_resets_under_transforms_and_compilers() -> None:
    module = modules(CONFIGS[0])[1]
    x, resets = torch.randn(7, 3, 4, dtype=F64), some_resets(7, 3)
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def loss(parameters: Any, x: Any, resets: Any) -> Any:
        return torch.func.functional_call(module, parameters, (x,), {"resets": resets})[0].square().sum()

    module(x, resets=resets)[0].square().sum().backward()
    expected = [parameter.grad for parameter in module.parameters()]
    assert_same_bits(list(torch.func.grad(loss)(parameters, x, resets).values()), expected)
    apart = torch.func.vmap(torch.func.grad(loss), (None, 1, 1))(parameters, x[:, :, None], resets[:, :, None])
    assert_equal([d.sum(0) for d in apart.values()], expected, 1e-12)
    compiled = torch.compile(lambda x, resets: module(x, resets=resets)[0], fullgraph=True, backend="aot_eager")
    given = compiled(x, resets)
    assert_same_bits([given], [module(x, resets=resets)[0]])
    assert_same_bits(list(torch.autograd.grad(given.square().sum(), list(module.parameters()))), expected)


@pytest.mark.filterwarnings("ignore")  # of tracing, which is deprecated
@pytest.mark.parametrize("make", [torch.jit.trace, lambda module, given: torch.export.export(module, given).module()])
def test_resets_are_an_input_of_what_is_made(make: Any) -> None:
    class Learner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = modules(CONFIGS[0])[1]

        def forward(self, x: Any, resets: Any) -> Any:
            return self.lstm(x, resets=resets)[0]

    module, x = Learner(), torch.randn(7, 3, 4, dtype=F64)
    made = make(module, (x, some_resets(7, 3)))
    for resets in (some_resets(7, 3), some_resets(7, 3).flip(0)):
        assert_same_bits([made(x, resets)], [module(x, resets)])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("config", CONFIGS[:4])
def test_gradcheck(config: tuple[Any, ...], packed: bool) -> None:
    """Central differences, through every input and parameter; gradcheck changes them where version counters do not look."""
    config = (2, 3, *config[2:6], 2 if config[6] else 0)
    _, module = modules(config)
    x = torch.randn(*((2, 3) if config[4] else (3, 2)), 2, dtype=F64, requires_grad=True)
    hx = states(config, 2)

    def run(x: Any, h: Any, c: Any, *parameters: Any) -> list[Any]:
        return flat(module(rnn.pack_padded_sequence(x, [2, 3], config[4], enforce_sorted=False) if packed else x, (h, c)))

    assert torch.autograd.gradcheck(run, (x, *hx, *module.parameters()))


# ---- Autograd ------------------------------------------------------------------------------------------------------------------


def test_only_calls_that_need_gradients_keep_a_tape() -> None:
    _, module = modules(CONFIGS[0])
    x = torch.randn(5, 3, 4, dtype=F64)
    with torch.no_grad():
        module(x)
    with torch.inference_mode():
        module(x)
    result = module.requires_grad_(False)(x)
    assert len(bridge.tapes._tapes) == 0
    assert not result[0].requires_grad
    result = module(x.requires_grad_())
    assert len(bridge.tapes._tapes) == 1
    result[0].sum().backward()
    assert len(bridge.tapes._tapes) == 0  # autograd has let go of it
    result = module(x)
    del result
    assert len(bridge.tapes._tapes) == 0  # so has a graph that nobody wants


def test_what_is_not_needed_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    backward = fastlstm.Tape.backward

    def spy(tape: Any, d_output: Any, d_state: Any, **options: Any) -> Any:
        seen.append((d_output is None, d_state[0] is None, d_state[1] is None, options["input"]))
        return backward(tape, d_output, d_state, **options)

    monkeypatch.setattr(fastlstm.Tape, "backward", spy)
    _, module = modules(CONFIGS[0])
    x = torch.randn(5, 3, 4, dtype=F64)
    module(x)[0].sum().backward()
    module(x)[1][1].sum().backward()
    module.requires_grad_(False)(x.requires_grad_())[0].sum().backward()
    assert seen == [(False, True, True, False), (True, True, False, False), (False, True, True, True)]
    assert module.weight_ih_l0.requires_grad is False
    module.bias_hh_l0.requires_grad_(True).grad = None
    module.weight_ih_l0.grad = None
    module(x)[0].sum().backward()
    assert module.bias_hh_l0.grad is not None
    assert module.weight_ih_l0.grad is None


def test_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays: list[Any] = []
    record = fastlstm.LSTM.record

    def spy(lstm: Any, x: Any, *arguments: Any, **options: Any) -> Any:
        tape = record(lstm, x, *arguments, **options)
        arrays.extend((x, tape.output, *tape.state))
        return tape

    monkeypatch.setattr(fastlstm.LSTM, "record", spy)
    _, module = modules(CONFIGS[1])
    x = torch.randn(5, 3, 4, dtype=F64).transpose(0, 1)
    output, (h_n, c_n) = module(x)
    assert [a.ctypes.data for a in arrays] == [t.data_ptr() for t in (x, output, h_n, c_n)]


def test_what_is_given_can_still_be_resized() -> None:
    """NumPy's views of tensors, as ``Tensor.numpy()`` makes them, would forbid it for good."""
    module = bridge.LSTM(4, 6)
    x, h, c, d = torch.randn(5, 3, 4), torch.randn(1, 3, 6), torch.randn(1, 3, 6), torch.randn(5, 3, 6)
    packed = rnn.pack_sequence([torch.randn(n, 4) for n in (5, 2)])
    module(x, (h, c))[0].backward(d)
    module(packed)
    for tensor in (x, h, c, d, packed.data, packed.batch_sizes):
        tensor.resize_(100)
    values = [parameter.detach().clone() for parameter in module.parameters()]
    for parameter, value in zip(module.parameters(), values, strict=True):
        storage = parameter.untyped_storage()
        size = storage.size()
        storage.resize_(0)
        storage.resize_(size)
        parameter.data.copy_(value)
    x = torch.randn(5, 3, 4)
    expected = torch.nn.LSTM(4, 6)
    expected.load_state_dict(module.state_dict())
    assert_equal(flat(module(x)), flat(expected(x)), TOLERANCE["float32"])


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 5, 4).transpose(0, 1),
        torch.randn(5, 3, 8)[..., ::2],
        torch.randn(4, 3, 5).permute(2, 1, 0),
        torch.randn(1, 3, 4).expand(5, 3, 4),
        torch.randn(5, 1, 4).expand(5, 3, 4),
        torch.randn(1, 1, 1).expand(5, 3, 4),
        torch.randn(61)[1:].view(5, 3, 4),
        torch.randn(5, 3, 4, dtype=torch.complex64).conj().imag,
        torch.randn(5, 3, 4).requires_grad_() * 2,
    ],
    ids=["transposed", "strided", "permuted", "one step", "one row", "one number", "offset", "negative", "with a graph"],
)
def test_inputs_of_any_layout(x: Any) -> None:
    module, before = bridge.LSTM(4, 6), x.detach().clone()
    assert_same_bits(flat(module(x)), flat(module(before.contiguous())))
    assert torch.equal(x, before)


def test_changes_in_place_before_backward_do_no_harm() -> None:
    _, module = modules(CONFIGS[1])
    x = torch.randn(3, 5, 4, dtype=F64, requires_grad=True)
    resets = some_resets(5, 3)
    expected = gradients(module, [x], flat(module(x, resets=resets)))
    y = x * 1
    result = flat(module(y, resets=resets))
    with torch.no_grad():
        y.zero_()
        resets.logical_not_()
        for parameter in module.parameters():
            parameter.add_(1)
    assert_same_bits(gradients(module, [x], result), expected)


def test_backward_again() -> None:
    _, module = modules(CONFIGS[1])
    x = torch.randn(3, 5, 4, dtype=F64, requires_grad=True)
    total = module(x)[0].square().sum()
    first = torch.autograd.grad(total, [x, *module.parameters()], retain_graph=True)
    assert_same_bits(list(torch.autograd.grad(total, [x, *module.parameters()])), list(first))
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        total.backward()


def test_a_tape_that_was_used_says_so() -> None:
    module = modules(CONFIGS[0])[1]
    output, *_, tape = bridge.operators.lstm(
        torch.randn(5, 3, 4, dtype=F64), *[None] * 4, list(module.parameters()), True, 0, False, False, torch.empty(0)
    )
    arguments = (tape, output, None, None, [5, 3, 4, 1, 3, 6], True, 0, False, True, F64)
    bridge.operators.lstm_backward(*arguments)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        bridge.operators.lstm_backward(*arguments)


@pytest.mark.parametrize("constant", [True, False])
def test_second_derivatives_are_refused(constant: bool) -> None:
    """Never taken as zero, whether or not the first ones depend on anything that asks for a gradient."""
    _, module = modules(CONFIGS[0])
    x = torch.randn(5, 3, 4, dtype=F64, requires_grad=True)
    output = module(x)[0]
    (d_x,) = torch.autograd.grad(output.sum() if constant else output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"second derivatives.*torch\.nn\.LSTM"):
        (d_x.square().sum() + output.sum()).backward()


ONES = [torch.ones(5, 3, 4, dtype=F64)]


def adapted(module: Any) -> Any:
    """What learning to learn differentiates: parameters after a step, of the parameters before it."""
    before = list(module.parameters())
    gradients_ = torch.autograd.grad(module(*ONES)[0].square().sum(), before, create_graph=True)
    total = sum((p - 0.1 * g).square().sum() for p, g in zip(before, gradients_, strict=True))
    return torch.autograd.grad(total, before)


def penalised(module: Any, pick: Any, run: Any = None, batched: bool = False) -> None:
    """The derivative of a gradient penalty, of a factor behind the LSTM, of its input or of a parameter alone."""
    x, head = torch.randn(5, 3, 4, dtype=F64, requires_grad=True), torch.randn(6, dtype=F64, requires_grad=True)
    output = (module if run is None else run)(x)[0]
    given = torch.stack([head.expand(5, 3, 6)] * 2) if batched else head.expand(5, 3, 6)
    (d_x,) = torch.autograd.grad(output, x, given, create_graph=True, is_grads_batched=batched)
    own = next(module.parameters())
    torch.autograd.grad(d_x.square().sum() + (output * head).sum(), pick(head, x, own), allow_unused=True)


@pytest.mark.parametrize(
    "derive",
    [
        adapted,
        lambda module: torch.autograd.functional.hvp(
            lambda x: module(x)[0].square().sum(), *[torch.ones(5, 3, 4, dtype=F64)] * 2
        ),
        lambda module: torch.autograd.functional.hessian(lambda x: module(x)[0].sum(), *ONES),
        lambda module: torch.autograd.functional.jvp(lambda x: module(x)[0], *ONES, *ONES),
        lambda module: penalised(module, lambda head, x, own: head),
        lambda module: penalised(module, lambda head, x, own: x),
        lambda module: penalised(module, lambda head, x, own: own),
    ],
    ids=["adapted", "hvp", "hessian", "jvp", "of what follows", "of the input", "of a parameter"],
)
def test_second_derivatives_are_refused_of_whatever_they_are_taken(derive: Any) -> None:
    """Also where first derivatives alone would give plausible numbers."""
    with pytest.raises(RuntimeError, match=r"second derivatives.*torch\.nn\.LSTM"):
        derive(modules(CONFIGS[0])[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, of what it loads for these derivatives
@pytest.mark.parametrize("wants", [True, False])
def test_forward_mode_derivatives_are_refused(wants: bool) -> None:
    """They would be taken as zero; calls without any are none of its affair."""
    from torch.autograd import forward_ad

    module = modules(CONFIGS[0])[1].requires_grad_(wants)
    x = torch.randn(5, 3, 4, dtype=F64)
    for derive in (
        lambda: torch.func.jvp(lambda x: module(x)[0], (x,), (x,)),
        lambda: torch.func.jacfwd(lambda x: module(x)[0])(x),
        lambda: torch.func.jvp(lambda c: module(x, (c, c))[0], *[(torch.ones(1, 3, 6, dtype=F64),)] * 2),
    ):
        with pytest.raises(RuntimeError, match=r"forward-mode derivatives.*torch\.nn\.LSTM"):
            derive()
    with forward_ad.dual_level():
        assert torch.equal(module(x)[0], module(x)[0])
        with pytest.raises(RuntimeError, match="forward-mode derivatives"):
            module(forward_ad.make_dual(x, x))


def test_checkpointing_and_hooks_on_saved_tensors() -> None:
    from torch.utils.checkpoint import checkpoint

    _, module = modules(CONFIGS[1])
    x = torch.randn(3, 5, 4, dtype=F64, requires_grad=True)
    expected = gradients(module, [x], flat(module(x)))
    for reentrant in (False, True):
        if reentrant:
            checkpoint(lambda x: module(x)[0], x, use_reentrant=True).sum().backward()
            continue
        result = flat(checkpoint(module, x, use_reentrant=False))
        assert len(bridge.tapes._tapes) == 0
        assert_same_bits(gradients(module, [x], result), expected)
    with torch.autograd.graph.save_on_cpu():  # hands on what is there already
        result = flat(module(x))
    assert_same_bits(gradients(module, [x], result), expected)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        total = module(x)[0].sum()
    with pytest.raises(RuntimeError, match="saved_tensors_hooks"):
        total.backward()


# ---- torch.func ----------------------------------------------------------------------------------------------------------------


def parts(module: Any) -> Any:
    """A function of parameters, an input and a state, those, and the axes of their rows."""
    torch.manual_seed(1)
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    x, (h, c) = torch.randn(3, 5, 4, dtype=F64), (s.detach() for s in states(CONFIGS[2], 3))

    def loss(parameters: Any, x: Any, h: Any, c: Any) -> Any:
        output, (h_n, c_n) = torch.func.functional_call(module, parameters, (x, (h, c)))
        return output.square().sum() + h_n.sum() + (c_n**3).sum()

    return loss, (parameters, x.transpose(0, 1), h, c), (None, 1, 1, 1)


def rows(values: Any) -> Any:
    """Each row a batch of one: to be mapped over on axis 1."""
    parameters, *tensors = values
    return (parameters, *(tensor.unsqueeze(2) for tensor in tensors))


def doubled(parameters: Any) -> Any:
    return {name: torch.stack([value, 2 * value]) for name, value in parameters.items()}


def grad_of_all(module: Any) -> Any:
    loss, values, _ = parts(module)
    return torch.func.grad_and_value(loss, (0, 1, 2, 3))(*values)


def vjp_twice(module: Any) -> Any:
    loss, values, _ = parts(module)
    value, pull = torch.func.vjp(loss, *values)
    return value, pull(torch.ones_like(value)), pull(2 * torch.ones_like(value))


def grad_of_each_row(module: Any) -> Any:
    loss, values, axes = parts(module)
    return torch.func.vmap(torch.func.grad(loss, (0, 1, 2, 3)), axes)(*rows(values))


def grad_of_an_ensemble(module: Any) -> Any:
    loss, (parameters, *tensors), _ = parts(module)
    return torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None, None, None))(doubled(parameters), *tensors)


def grad_of_each_row_in_an_ensemble(module: Any) -> Any:
    loss, values, axes = parts(module)
    parameters, *tensors = rows(values)
    inner = torch.func.vmap(torch.func.grad(loss, (0, 1)), axes)
    return torch.func.vmap(inner, (0, None, None, None))(doubled(parameters), *tensors)


def jacrev(module: Any) -> Any:
    _, (parameters, x, *_), _ = parts(module)
    run = lambda parameters, x: torch.func.functional_call(module, parameters, (x,))[0]  # noqa: E731
    return torch.func.jacrev(run, (0, 1))(parameters, x[:2, :1])


def jacobian(module: Any) -> Any:
    _, (_, x, h, c), _ = parts(module)
    given = tuple(tensor[:, :1].contiguous() for tensor in (x[:2], h, c))
    return torch.autograd.functional.jacobian(lambda x, h, c: module(x, (h, c))[0], given, vectorize=True)


def grads_batched(module: Any) -> Any:
    _, (_, x, *_), _ = parts(module)
    output = module(x)[0]
    return torch.autograd.grad(output, list(module.parameters()), torch.stack([output, 2 * output]), is_grads_batched=True)


def vmap_of_autograd(module: Any) -> Any:
    _, (_, x, *_), _ = parts(module)
    output = module(x)[0]
    inner = lambda d: torch.autograd.grad(output, list(module.parameters()), d, retain_graph=True)  # noqa: E731
    return torch.func.vmap(inner)(torch.stack([output, 2 * output]).detach())


def grad_inside_autograd(module: Any) -> Any:
    """Two levels want gradients of one call."""
    _, (_, x, *_), _ = parts(module)
    output, pull = torch.func.vjp(lambda x: module(x)[0], x)
    return torch.autograd.grad(output.sum(), list(module.parameters())), pull(torch.ones_like(output).detach())


TRANSFORMS = [
    *(grad_of_all, vjp_twice, grad_of_each_row, grad_of_an_ensemble, grad_of_each_row_in_an_ensemble, jacrev, jacobian),
    *(grads_batched, vmap_of_autograd, grad_inside_autograd),
]


def tensors_of(tree: Any) -> list[Any]:
    return [tensor.detach() for tensor in torch.utils._pytree.tree_leaves(tree)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, of what it loads for these transforms
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: Any) -> None:
    theirs, ours = modules(CONFIGS[2])
    gc.collect()
    before = len(bridge.tapes._tapes)
    assert_equal(tensors_of(transform(ours)), tensors_of(transform(theirs)), 20 * TOLERANCE["float64"])
    gc.collect()
    assert len(bridge.tapes._tapes) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vmap_alone() -> None:
    """What torch.nn.LSTM refuses: against a loop."""
    theirs, ours = modules(CONFIGS[2])
    _, (_, x, h, c), _ = parts(ours)
    x = torch.stack([x, 2 * x]).requires_grad_()
    run = lambda module, x: flat(module(x, (h, c)))  # noqa: E731
    given = torch.func.vmap(lambda x: run(ours, x))(x)
    expected = [torch.stack(results) for results in zip(*(run(theirs, part) for part in x), strict=True)]
    assert_equal(given, expected, TOLERANCE["float64"])
    assert_equal(gradients(ours, [x], given), gradients(theirs, [x], expected), 20 * TOLERANCE["float64"])
    cells = [kind(4, 6, dtype=F64) for kind in (bridge.LSTMCell, torch.nn.LSTMCell)]
    cells[0].load_state_dict(cells[1].state_dict())
    derive = [torch.func.grad(lambda x, cell=cell: cell(x)[1].sum()) for cell in cells]
    assert_equal([torch.func.vmap(derive[0])(x[0])], [torch.stack(list(map(derive[1], x[0])))], TOLERANCE["float64"])
    with pytest.raises(ValueError, match="axis of size 0"):
        torch.func.vmap(lambda x: ours(x)[0])(x[:0])


def batched_graph(module: Any, x: Any) -> None:
    y = x.clone().requires_grad_()
    output = module(y)[0]
    (d_y,) = torch.autograd.grad(output, y, torch.ones_like(output)[None], create_graph=True, is_grads_batched=True)
    (d_y.square().sum() + output.sum()).backward()


def mapped_graph(module: Any, x: Any) -> None:
    y = x.clone().requires_grad_()
    output = module(y)[0]
    d_y = torch.func.vmap(lambda d: torch.autograd.grad(output, y, d, create_graph=True)[0])(torch.ones_like(output)[None])
    (d_y.square().sum() + output.sum()).backward()


SECOND = {
    "grad of grad": lambda m, x: torch.func.grad(lambda x: torch.func.grad(lambda x: m(x)[0].sum())(x).sum())(x),
    "of what was handed back": lambda m, x: torch.func.grad(lambda d: torch.func.vjp(lambda x: m(x)[0], x)[1](d)[0].sum())(
        torch.ones(5, 3, 6, dtype=F64)
    ),
    "autograd around grad": lambda m, x: torch.func.grad(lambda x: m(x)[0].sum())(x).sum().backward(),
    "jacrev of jacrev": lambda m, x: torch.func.jacrev(torch.func.jacrev(lambda x: m(x)[0].sum()))(x),
    "hessian": lambda m, x: torch.autograd.functional.hessian(lambda x: m(x)[0].sum(), x, vectorize=True),
    "is_grads_batched": batched_graph,
    "is_grads_batched, of what follows": lambda m, x: penalised(m, lambda head, x, own: head, batched=True),
    "is_grads_batched, of the input": lambda m, x: penalised(m, lambda head, x, own: x, batched=True),
    "vectorised jacobian": lambda m, x: (
        torch.autograd.functional.jacobian(lambda x: m(x)[0], x[:1, :1].requires_grad_(), vectorize=True, create_graph=True)
        .sum()
        .backward()
    ),
    "vmap": mapped_graph,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("derive", SECOND)
def test_second_derivatives_by_transforms_are_refused(derive: str) -> None:
    with pytest.raises(RuntimeError, match=r"second derivatives.*torch\.nn\.LSTM"):
        SECOND[derive](modules(CONFIGS[0])[1], torch.randn(5, 3, 4, dtype=F64))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forward_mode_around_other_transforms_is_refused() -> None:
    module, x = modules(CONFIGS[0])[1], torch.randn(5, 3, 4, dtype=F64)
    total = lambda x: module(x)[0].sum()  # noqa: E731
    for derive in (
        lambda: torch.func.hessian(total)(x),
        lambda: torch.func.jvp(torch.func.grad(total), (x,), (x,)),
        lambda: torch.func.vmap(lambda d: torch.func.jvp(total, (x,), (d,)))(x[None]),
    ):
        with pytest.raises(RuntimeError, match=r"forward-mode derivatives.*torch\.nn\.LSTM"):
            derive()


# ---- Packed weights ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with every packing."""
    made: list[Any] = []
    adopt = fastlstm.LSTM._adopt
    monkeypatch.setattr(fastlstm.LSTM, "_adopt", lambda lstm, weights: (made.append(weights), adopt(lstm, weights))[1])
    return made


def change_by_step(module: Any, x: Any) -> None:
    optimizer = torch.optim.Adam(module.parameters())
    module(x)[0].sum().backward()
    optimizer.step()


def change_one_in_numpy(module: Any, x: Any) -> None:
    module.weight_hh_l1.detach().numpy()[-1, -1] += 1


CHANGES = {
    "optimiser": change_by_step,
    "in place": lambda m, x: torch.nn.init.ones_(m.bias_ih_l0),
    "data.copy_": lambda m, x: m.weight_ih_l0.data.mul_(2),
    "data =": lambda m, x: setattr(m.weight_hh_l0, "data", m.weight_hh_l0.data + 1),
    "numpy": change_one_in_numpy,
    "load_state_dict": lambda m, x: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "assign": lambda m, x: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}, assign=True),
    "another parameter": lambda m, x: setattr(m, "bias_hh_l1", torch.nn.Parameter(m.bias_hh_l1 + 1)),
    "vector_to_parameters": lambda m, x: torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(m.parameters()) / 2, m.parameters()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_are_packed_again_when_they_changed_and_only_then(change: str, packs: list[Any]) -> None:
    config = (4, 6, 2, True, False, False, 0)
    theirs, ours = modules(config)
    x = torch.randn(5, 3, 4, dtype=F64)
    for _ in range(3):
        with torch.no_grad():
            ours(x)
        ours(x)
    assert len(packs) == 1
    CHANGES[change](ours, x)
    for _ in range(3):
        result = ours(x)[0]
    assert len(packs) == 2
    theirs.load_state_dict(ours.state_dict())
    assert_equal([result], [theirs(x)[0]], TOLERANCE["float64"])


def sharing(one: Any, other: Any) -> Callable[[], list[Any]]:
    other.weight_ih_l0 = one.weight_ih_l0
    return lambda: [module(torch.ones(5, 3, 4))[0] for module in (one, other)]


def padded_and_packed(module: Any) -> Callable[[], list[Any]]:
    x = torch.randn(3, 5, 4)
    packed = rnn.pack_padded_sequence(x, [5, 4, 1], batch_first=True)
    return lambda: [module(x)[0], module(packed)[0].data]


def with_and_without_dropout(module: Any) -> Callable[[], list[Any]]:
    return lambda: [module.train(training)(torch.ones(5, 3, 4))[0] for training in (False, True)]


def in_part_and_whole(module: Any) -> Callable[[], list[Any]]:
    """The first H units of a network alone, as slimmable networks are called."""
    part, x = bridge.LSTM(4, 2, bias=False), torch.ones(5, 3, 4)
    weights = {"weight_ih_l0": module.weight_ih_l0[:8], "weight_hh_l0": module.weight_hh_l0[:8, :2]}
    return lambda: [module(x)[0], torch.func.functional_call(part, weights, (x,))[0]]


# Calls of several kinds with the same first parameter, and how many networks they need
ALTERNATING: dict[str, tuple[int, Callable[[], Callable[[], list[Any]]]]] = {
    "one matrix": (2, lambda: sharing(bridge.LSTM(4, 6), bridge.LSTM(4, 6))),
    "padded, packed": (1, lambda: padded_and_packed(bridge.LSTM(4, 6, batch_first=True))),
    "dropout": (3, lambda: with_and_without_dropout(bridge.LSTM(4, 6, 2, dropout=1.0))),
    "a part": (2, lambda: in_part_and_whole(bridge.LSTM(4, 6, bias=False))),
}


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("case", ALTERNATING)
def test_calls_that_alternate_do_not_pack_again(case: str, is_frozen: bool, packs: list[Any]) -> None:
    count, make = ALTERNATING[case]
    run = make()
    expected = run()
    assert len(packs) == count
    with bridge.frozen() if is_frozen else contextlib.nullcontext():
        for _ in range(3):
            assert_same_bits(run(), expected)
    assert len(packs) == count


@pytest.mark.filterwarnings("ignore")  # weight_norm is deprecated, and used
def test_parameters_computed_for_each_call_are_packed_when_their_numbers_change(packs: list[Any]) -> None:
    module, x = bridge.LSTM(4, 6), torch.randn(5, 3, 4)
    torch.nn.utils.weight_norm(module, "weight_hh_l0")
    results = []
    for k in range(6):
        results.append(module(x)[0])  # each with a graph
        assert len(packs) == (k in (0, 3))
        packs.clear()  # which keeps the tensors
        if k == 2:
            module.weight_hh_l0_g.data.mul_(2)
    networks = bridge.packed._networks[id(module.weight_ih_l0.untyped_storage())][1]
    assert len(networks) == 1


def test_views_into_one_memory_do_not_gather_without_end(packs: list[Any]) -> None:
    """As the individuals of a population do; those used last are kept."""
    module, x = bridge.LSTM(4, 6), torch.randn(5, 3, 4)
    parameters = dict(module.named_parameters())
    sizes = [parameter.numel() for parameter in parameters.values()]
    population = torch.randn(100, sum(sizes))

    def run(k: int) -> Any:
        parts = population[k].split(sizes)
        weights = {name: part.view(p.shape) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        return torch.func.functional_call(module, weights, (x,))[0]

    with torch.no_grad():
        expected = [run(0)]
        for k in range(1, len(population)):
            expected.append(run(k))
            run(0)
        assert len(bridge.packed._networks[id(population.untyped_storage())][1]) == bridge.packed._MOST
        assert len(packs) == len(population)
        for k in (0, *range(len(population) - 20, len(population))):
            assert torch.equal(run(k), expected[k])
        assert len(packs) == len(population)


def test_frozen_sees_parameters_that_became_smaller() -> None:
    """In place: the addresses and strides are those of the packed ones."""
    module, x = bridge.LSTM(4, 6), torch.randn(5, 3, 4)
    with torch.no_grad(), bridge.frozen():
        module(x)
        other = {name: parameter[:8] for name, parameter in module.named_parameters()}
        other["weight_hh_l0"] = module.weight_hh_l0[:8, :2]
        smaller = bridge.LSTM(4, 2)
        given = torch.func.functional_call(smaller, other, (x,))[0]
        smaller.load_state_dict(other)
        assert torch.equal(given, smaller(x)[0])
        deep = bridge.LSTM(4, 6, 2)
        deep(x)
        state = (torch.zeros(2, 3, 6),) * 2
        deep.weight_hh_l1.data = deep.weight_hh_l1.data[:12]
        with pytest.raises(ValueError, match="weight_hh_l1"):
            deep(x, state)


def test_frozen_sees_other_tensors_where_the_packed_ones_were() -> None:
    """Sampled weights, as evolution strategies call a module with: each comes to lie where the last one was."""
    module, x = bridge.LSTM(8, 64), torch.randn(5, 2, 8)
    weight, bias = module.weight_hh_l0.detach(), module.bias_ih_l0.detach()

    def run() -> list[Any]:
        generator = torch.Generator().manual_seed(0)
        noises = (torch.randn(weight.shape, generator=generator) for _ in range(8))
        return [torch.func.functional_call(module, {"weight_hh_l0": weight + noise}, (x,))[0] for noise in noises]

    with torch.no_grad():
        expected = run()
        with bridge.frozen():
            assert all(map(torch.equal, run(), expected))
            module(x)
            other = {"bias_ih_l0": bias[:1].expand(256)}  # the same address
            inside = torch.func.functional_call(module, other, (x,))[0]
        assert torch.equal(inside, torch.func.functional_call(module, other, (x,))[0])


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "input"])
def test_memory_that_was_freed_is_refused(name: str) -> None:
    module, x = bridge.LSTM(4, 64), torch.randn(2, 1, 4)
    tensor = x if name == "input" else getattr(module, name).data
    tensor.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="has no memory: its storage was freed"):
        module(x)
    if name == "input":
        with pytest.raises(ValueError, match="x has no memory"):
            fastlstm.LSTM(4, 8)(x)


def test_packed_sequences_that_contradict_themselves() -> None:
    module, sequence = bridge.LSTM(4, 5), torch.nn.utils.rnn.PackedSequence
    with pytest.raises(ValueError, match="batch_sizes must have at least one step"):
        module(sequence(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    two = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="sorted_indices must have one index for each of the 3 rows, got 2"):
        module(sequence(torch.zeros(10, 4), torch.tensor([3, 3, 2, 2]), two, two))


def test_frozen_parameters_are_not_compared(monkeypatch: pytest.MonkeyPatch, packs: list[Any]) -> None:
    theirs, ours = modules(CONFIGS[1])
    x = torch.randn(3, 5, 4, dtype=F64)
    compared: list[Any] = []
    same = fastlstm._engine.same_arrays
    monkeypatch.setattr(fastlstm._engine, "same_arrays", lambda a, b: (compared.append(a), same(a, b))[1])
    with bridge.frozen():
        before = ours(x)[0]  # packed here
        ours(x)[0].sum().backward()
        assert (len(packs), len(compared)) == (1, 0)
        ours.weight_ih_l0.data.mul_(2)  # a broken word
        assert torch.equal(ours(x)[0], before)
        ours.weight_ih_l0.data = ours.weight_ih_l0.data.clone()
        theirs.load_state_dict(ours.state_dict())
        assert_equal(flat(ours(x)), flat(theirs(x)), TOLERANCE["float64"])
        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.append((ours(x), len(compared))))
        thread.start()
        thread.join()
        assert seen[0][1] == len(compared) == 1  # another thread has given no word
    ours.weight_ih_l0.data.mul_(2)
    theirs.load_state_dict(ours.state_dict())
    assert_equal(flat(ours(x)), flat(theirs(x)), TOLERANCE["float64"])


def test_packed_weights_go_with_their_parameters() -> None:
    gc.collect()
    before = len(bridge.packed._networks)
    module = bridge.LSTM(4, 6)
    module(torch.zeros(1, 1, 4))
    assert len(bridge.packed._networks) == before + 1
    module.double()(torch.zeros(1, 1, 4, dtype=F64))
    assert len(bridge.packed._networks) == before + 1
    del module
    gc.collect()
    assert len(bridge.packed._networks) == before


@pytest.mark.parametrize("kind", [bridge.LSTM, bridge.LSTMCell])
def test_parameters_that_are_swapped(kind: Any) -> None:
    """PyTorch swaps a tensor only if nothing refers to it weakly."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module, other, x = kind(4, 6), kind(4, 6), torch.randn(3, 4)
        parameter, before = module.weight_hh_l0 if kind is bridge.LSTM else module.weight_hh, len(bridge.packed._networks)
        run = lambda module, x: module(x)[0]  # noqa: E731
        expected = run(module, x)
        outer = torch.nn.Sequential(module)
        if kind is bridge.LSTMCell:  # torch.nn.LSTM's parameters have weak references of PyTorch's own
            outer.load_state_dict(torch.nn.Sequential(other).state_dict())
            expected = run(other, x)
            assert torch.equal(run(module, x), expected)
        outer.double()
        assert_equal([run(module, x.double()).float()], [expected], TOLERANCE["float32"])
        assert parameter is next(p for name, p in module.named_parameters() if "weight_hh" in name)
        assert len(bridge.packed._networks) <= before + 2
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_parameters_in_one_piece_of_memory(packs: list[Any]) -> None:
    """As flattened ones are: each first parameter is known by its place."""
    first, second = (bridge.LSTM(4, 6) for _ in range(2))
    x = torch.randn(5, 3, 4)
    expected = [module(x)[0] for module in (first, second)]
    parameters = [*first.parameters(), *second.parameters()]
    whole = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    torch.nn.utils.vector_to_parameters(whole, parameters)
    del whole
    packs.clear()
    for _ in range(3):
        assert_same_bits([module(x)[0] for module in (first, second)], expected)
    assert len(packs) <= 2


def test_parameters_from_inference_mode_and_functional_calls() -> None:
    theirs, ours = modules(CONFIGS[0])
    x = torch.randn(5, 3, 4, dtype=F64)
    with torch.inference_mode():
        frozen = bridge.LSTM(4, 6, dtype=F64)
        frozen.load_state_dict(theirs.state_dict())
        assert_equal(flat(frozen(x)), flat(theirs(x)), TOLERANCE["float64"])
    for scale in (2, 3):
        other = {name: (value * scale).detach().requires_grad_() for name, value in theirs.named_parameters()}
        results = []
        for module in (ours, theirs):
            values = flat(torch.func.functional_call(module, other, (x,)))
            results.append([*values, *torch.autograd.grad(values[0].sum(), list(other.values()))])
        assert_equal(results[0], results[1], 10 * TOLERANCE["float64"])


@pytest.mark.filterwarnings("ignore")  # weight_norm is deprecated, and used
def test_weight_norm() -> None:
    theirs, ours = modules(CONFIGS[0])
    for module in (theirs, ours):
        torch.nn.utils.weight_norm(module, "weight_hh_l0")
    x = torch.randn(5, 3, 4, dtype=F64)
    for _ in range(2):
        for module in (theirs, ours):
            with torch.no_grad():
                module.weight_hh_l0_g.mul_(2)
        results = [[y, *gradients(module, [], [y])] for module in (ours, theirs) for y in [module(x)[0]]]
        assert_equal(results[0], results[1], 10 * TOLERANCE["float64"])


def test_copies_and_conversions() -> None:
    _, module = modules(CONFIGS[1])
    x = torch.randn(3, 5, 4, dtype=F64)
    expected = flat(module(x))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert_same_bits(flat(other(x)), expected)
        with torch.no_grad():
            other.weight_ih_l0.zero_()
        assert not torch.equal(other(x)[0], expected[0])
    assert_same_bits(flat(module(x)), expected)
    assert module.float()(x.float())[0].dtype == torch.float32
    assert_equal([module(x.float())[0].double()], [expected[0]], TOLERANCE["float32"])
    network = fastlstm.from_torch(module)  # the engine's own network, of the same numbers
    assert network.batch_first
    assert network(x.float().numpy())[0].tobytes() == module(x.float())[0].detach().numpy().tobytes()


def test_many_threads_at_once() -> None:
    _, module = modules((8, 16, 2, True, False, True, 0), torch.float32)
    xs = [torch.randn(20, 2, 8) for _ in range(8)]
    expected = [[y, *gradients(module, [], [y])] for x in xs for y in [module(x)[0]]]
    module = copy.deepcopy(module)  # nothing is packed yet
    wrong: list[int] = []

    def run(k: int) -> None:
        for _ in range(10):
            y = module(xs[k])[0]
            for a, b in zip([y, *gradients(module, [], [y])], expected[k], strict=True):
                if a.detach().numpy().tobytes() != b.detach().numpy().tobytes():
                    wrong.append(k)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_threads_are_bounded_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlstm.threads._num_threads", 3)
    for asked, expected in ((1, 1), (2, 2), (3, None), (4, None)):
        monkeypatch.setattr(torch, "get_num_threads", lambda asked=asked: asked)
        assert bridge.packed.allowance() == expected


# ---- Errors --------------------------------------------------------------------------------------------------------------------


def lstm_errors() -> list[Any]:
    x, h, c = torch.zeros(5, 3, 4), torch.zeros(2, 3, 6), torch.zeros(2, 3, 6)
    packed = rnn.pack_sequence([torch.zeros(5, 3)])
    return [
        (ValueError, r"input must have shape \(B, T, 4\), got \(5, 3, 3\)", (x[..., :3],)),
        (ValueError, r"input must have shape \(B, T, 4\), got \(1, 5, 3, 4\)", (x[None],)),
        (ValueError, r"input\.data must have shape \(tokens, 4\), got \(5, 3\)", (packed,)),
        (ValueError, r"h_0 must have shape \(2, 5, 6\), got \(2, 3, 6\)", (x, (h, c))),
        (ValueError, r"c_0 must have shape \(2, 6\), got \(2, 3, 6\)", (x[0], (h[:, 0], c))),
        (TypeError, r"hx must be a pair \(h_0, c_0\), got Tensor", (x, h)),
        (TypeError, r"hx must be a pair \(h_0, c_0\), got tuple of 3", (x, (h, c, c))),
        (TypeError, r"h_0 must be a tensor, got NoneType", (x, (None, c))),
        (TypeError, r"input must be a tensor, got ndarray", (x.numpy(),)),
        (TypeError, r"input must be torch\.float32.*got torch\.float64; pass input\.to\(torch\.float32\)", (x.double(),)),
        (TypeError, r"input must be torch\.float32.*got torch\.float16", (x.half(),)),
        (TypeError, r"input must be torch\.float32.*got torch\.complex64", (x + 0j,)),
        (
            TypeError,
            r"c_0 must be torch\.float32.*got torch\.bfloat16",
            (x, (torch.zeros(2, 5, 6), torch.zeros(2, 5, 6).bfloat16())),
        ),
        (TypeError, r"input must be on the CPU.*got meta, which has no values", (x.to("meta"),)),
        (TypeError, r"input must be a dense tensor.*to_dense", (x.to_sparse(),)),
    ]


@pytest.mark.parametrize(
    ("error", "message", "resets"),
    [
        (TypeError, r"resets must be a tensor, got list", [[False]]),
        (TypeError, r"resets must be torch\.bool, got torch\.float32; pass resets\.to\(torch\.bool\)", torch.zeros(5, 3)),
        (TypeError, r"resets must be on the CPU.*got meta", torch.zeros(5, 3, dtype=torch.bool, device="meta")),
        (ValueError, r"resets .* \(5, 3\), got \(3, 5\): \(T, B\), also with batch_first", torch.zeros(3, 5, dtype=torch.bool)),
        (ValueError, r"resets must have shape \(5, 3\), got \(5,\)$", torch.zeros(5, dtype=torch.bool)),
    ],
)
def test_resets_that_do_not_fit(error: Any, message: str, resets: Any) -> None:
    for batch_first in (False, True):
        x = torch.zeros(3, 5, 4) if batch_first else torch.zeros(5, 3, 4)
        with pytest.raises(error, match=message):
            bridge.LSTM(4, 6, batch_first=batch_first)(x, resets=resets)
    with pytest.raises(ValueError, match="a PackedSequence takes none"):
        bridge.LSTM(4, 6)(rnn.pack_sequence([torch.zeros(5, 4)]), resets=torch.zeros(5, 1, dtype=torch.bool))


@pytest.mark.parametrize("sizes", [[2, 3, 1], [3, 2], [3, 2, 2], [6, 1, -1]])
def test_packed_sequences_whose_sizes_do_not_fit(sizes: list[int]) -> None:
    packed = rnn.PackedSequence(torch.zeros(6, 4), torch.tensor(sizes))
    with pytest.raises(ValueError, match=r"input\.batch_sizes must never rise and must add up to 6.*got \["):
        bridge.LSTM(4, 6)(packed)


@pytest.mark.filterwarnings("ignore")  # of scripting, which is deprecated
@pytest.mark.parametrize("module", [bridge.LSTM(4, 6), bridge.LSTMCell(4, 6)])
def test_scripting_is_told_the_way_back(module: Any) -> None:
    for model in (module, torch.nn.Sequential(torch.nn.Linear(4, 4), module)):
        with pytest.raises(RuntimeError, match=r"call fastlstm\.torch\.restore\(model\)"):
            torch.jit.script(model)


@pytest.mark.parametrize("module", [bridge.LSTM(4, 6), bridge.LSTMCell(4, 6)])
def test_symbolic_traces_are_told_the_way_back(module: Any) -> None:
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, module: Any, name: str) -> bool:
            return isinstance(module, (bridge.LSTM, bridge.LSTMCell)) or super().is_leaf_module(module, name)

    model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), copy.deepcopy(module)), torch.randn(3, 4)
    with pytest.raises(RuntimeError, match=r"call fastlstm\.torch\.restore\(model\) first, or let is_leaf_module"):
        torch.fx.symbolic_trace(model)
    expected = model(x)[0]
    assert torch.equal(torch.fx.GraphModule(model, Leaves().trace(model))(x)[0], expected)
    bridge.restore(model)
    assert_equal([torch.fx.symbolic_trace(model)(x)[0]], [expected], TOLERANCE["float32"])


@pytest.mark.parametrize("module", [bridge.LSTM(4, 6), bridge.LSTMCell(4, 6)])
def test_functionalize_is_refused(module: Any) -> None:
    total = lambda x: module(x)[0].sum()  # noqa: E731
    for run in (torch.func.functionalize(total), torch.func.grad(torch.func.functionalize(total))):
        with pytest.raises(RuntimeError, match=r"does not support torch\.func\.functionalize; use torch\.nn\.LSTM"):
            run(torch.zeros(3, 4))


class Steps(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.nn.LSTMCell(4, 6)

    def forward(self, x: Any) -> Any:
        state = None
        for t in range(len(x)):
            state = self.cell(x[t], state)
        return state


EXPORTED: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: torch.nn.LSTM(4, 6, num_layers=2, bidirectional=True),
    "batch first": lambda: torch.nn.LSTM(4, 6, batch_first=True, bias=False),
    "cell": Steps,
}


@pytest.mark.filterwarnings("ignore")  # of the older exporter, which is deprecated
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("what", EXPORTED)
def test_onnx_exporters_are_shown_the_module_of_pytorch(what: str, dynamo: bool, tmp_path: Any) -> None:
    """What they write is what they write of the model before it was replaced."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, x, written = EXPORTED[what]().eval(), torch.randn(5, 3, 4), []
    for replaced in (False, True):
        if replaced:
            assert bridge.replace(model).swapped
        path = tmp_path / f"{replaced}.onnx"
        torch.onnx.export(model, (x,), path, dynamo=dynamo, external_data=False)
        written.append([node.op_type for node in onnx.load(path).graph.node])
    assert written[0] == written[1]
    assert type(model) is not torch.nn.LSTM
    if what != "cell":
        lstm = fastlstm.load(path, batch_first=what == "batch first")
        np.testing.assert_array_equal(lstm(x.numpy())[0], model(x)[0].detach().numpy())


def test_what_was_parametrized_since_is_not_restored() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.LSTM(4, 6), "b": torch.nn.LSTMCell(4, 6)})
    bridge.replace(model)
    for name, weight in (("b", "weight_hh"), ("a", "weight_hh_l0")):
        torch.nn.utils.parametrizations.weight_norm(model[name], weight)
        with pytest.raises(RuntimeError, match=f"{name} was parametrized after replace: call"):
            bridge.restore(model)
        torch.nn.utils.parametrize.remove_parametrizations(model[name], weight)
    assert bridge.restore(model) == ("a", "b")


@pytest.mark.filterwarnings("ignore")
def test_resets_are_not_exported(tmp_path: Any) -> None:
    pytest.importorskip("onnx")

    class Resets(bridge.LSTM):
        def forward(self, x: Any) -> Any:
            return super().forward(x, resets=torch.zeros(x.shape[:2], dtype=torch.bool))

    with pytest.raises(RuntimeError, match="has nothing for resets="):
        torch.onnx.export(Resets(4, 6), (torch.zeros(5, 3, 4),), tmp_path / "x.onnx", dynamo=False)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_to_be_packed(layout: Any) -> None:
    module, sequences = bridge.LSTM(4, 6), [torch.randn(n, 4) for n in (2, 5)]
    nested = torch.nested.nested_tensor(sequences, layout=layout)
    with pytest.raises(TypeError, match=r"nested tensor; an LSTM takes torch\.nn\.utils\.rnn\.pack_sequence\(input\.unbind\(\)"):
        module(nested)
    with pytest.raises(TypeError, match=r"resets must be a dense tensor, got a nested tensor$"):  # packed they are refused, too
        module(torch.zeros(5, 2, 4), resets=torch.nested.nested_tensor([torch.zeros(n) > 0 for n in (2, 5)], layout=layout))
    module(rnn.pack_sequence(nested.unbind(), enforce_sorted=False))


@pytest.mark.parametrize("case", range(len(lstm_errors())))
def test_errors(case: int) -> None:
    kind, message, arguments = lstm_errors()[case]
    with pytest.raises(kind, match=message):
        bridge.LSTM(4, 6, bidirectional=True, batch_first=True)(*arguments)


def test_errors_of_a_cell() -> None:
    cell, x, h = bridge.LSTMCell(4, 6), torch.zeros(3, 4), torch.zeros(3, 6)
    for message, arguments in (
        (r"input must have shape \(B, 4\), got \(3, 3\)", (x[:, :3],)),
        (r"input must have shape \(B, 4\), got \(1, 3, 4\)", (x[None],)),
        (r"h_0 must have shape \(3, 6\), got \(2, 6\)", (x, (h[:2], h))),
        (r"c_0 must have shape \(6,\), got \(3, 6\)", (x[0], (h[0], h))),
    ):
        with pytest.raises(ValueError, match=message):
            cell(*arguments)
    with pytest.raises(TypeError, match=r"call module\.float\(\)"):
        cell.half()(x)


def test_errors_of_the_parameters() -> None:
    x = torch.zeros(5, 3, 4)
    for change, message in (
        (lambda m: m.half(), r"torch\.float16; .* call module\.float\(\)"),
        (lambda m: m.bfloat16(), r"torch\.bfloat16; .* call module\.float\(\)"),
        (lambda m: m.to("meta"), r"meta device.*to_empty"),
    ):
        with pytest.raises(TypeError, match=message):
            change(bridge.LSTM(4, 6))(x)
    for module, given in ((bridge.LSTM(4, 6), x), (bridge.LSTMCell(4, 6), x[0])):  # a state dict that had not all
        name = list(module.state_dict())[-1]
        setattr(module, name, torch.nn.Parameter(getattr(module, name).to("meta")))
        with pytest.raises(TypeError, match=f"{name} is on the meta device"):
            module(given)
        setattr(module, name, torch.nn.Parameter(torch.zeros(24, dtype=torch.bfloat16)))
        with pytest.raises(TypeError, match=rf"{name} is torch\.bfloat16; .* call module\.float\(\)"):
            module(given)
    with torch.autocast("cpu"), pytest.raises(TypeError, match=r"torch\.autocast\('cpu', enabled=False\)"):
        bridge.LSTM(4, 6)(x)
    if torch.cuda.is_available():
        with pytest.raises(TypeError, match=r"call module\.cpu\(\)"):
            bridge.LSTM(4, 6, device="cuda")(x)
    mixed = bridge.LSTM(4, 6)
    mixed.weight_hh_l0 = torch.nn.Parameter(mixed.weight_hh_l0.double())
    with pytest.raises(
        TypeError, match=r"weight_hh_l0 is torch\.float64, weight_ih_l0 torch\.float32: call module\.float\(\) or"
    ):
        mixed(x)
    with pytest.raises(TypeError, match=r"weight_ih_l0 is torch\.complex64; fastlstm computes in float32 and float64$"):
        bridge.LSTM(4, 6, dtype=torch.complex64)(x)
    for arguments in ((0, 6), (4, -1), (4, 6, 0)):
        with pytest.raises(ValueError, match="greater than zero"):
            bridge.LSTM(*arguments)


def test_parameters_that_do_not_fit() -> None:
    x = torch.zeros(5, 3, 4)
    for name, shape, expected in (
        ("weight_ih_l0", (24, 5), (24, 4)),
        ("weight_ih_l0", (96,), (24, 4)),
        ("weight_ih_l0", (20, 4), (24, 4)),
        ("weight_hh_l1", (24, 5), (24, 6)),
        ("weight_ih_l1", (24, 5), (24, 6)),
        ("bias_hh_l1", (24, 1), (24,)),
        ("bias_ih_l0", None, None),
    ):
        for dropout in (0, 0.5):
            module = bridge.LSTM(4, 6, 2, dropout=dropout)
            setattr(module, name, None if shape is None else torch.nn.Parameter(torch.zeros(shape)))
            if shape is None:
                with pytest.raises(TypeError, match=f"{name} must be a tensor, got None.*bias=False"):
                    module(x)
            else:
                with pytest.raises(ValueError, match=re.escape(f"{name} must have shape {expected}, got {shape}")):
                    module(x)
    for module, given in ((bridge.LSTM(4, 6), x), (bridge.LSTMCell(4, 6), x[0])):
        expected_name = next(iter(module.state_dict()))
        smaller = dict(type(module)(4, 5).named_parameters())
        for context in (contextlib.nullcontext(), bridge.frozen()):  # agreeing with each other does not help
            with context, pytest.raises(ValueError, match=rf"{expected_name} must have shape \(24, 4\), got \(20, 4\)"):
                torch.func.functional_call(module, smaller, (given,))
        for name in smaller:
            getattr(module, name).data = smaller[name].data
        with pytest.raises(ValueError, match=rf"{expected_name} must have shape \(24, 4\), got \(20, 4\)"):
            module(given)
    cell = bridge.LSTMCell(4, 6)
    cell.bias_hh = None
    with pytest.raises(TypeError, match="bias_hh must be a tensor, got None"):
        cell(x[0])


# ---- replace -------------------------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """LSTMs at several depths, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LSTM(8, 6, 2, batch_first=True, dropout=0.3))
        self.alias = self.encoder[1]
        self.cell = torch.nn.LSTMCell(6, 5)
        self.head = torch.nn.Linear(5, 2)

    def forward(self, x: Any) -> Any:
        y, (h, _) = self.encoder(x)
        h, _ = self.cell(y[:, -1], self.cell(h[-1]))
        return self.head(h)


def test_replace() -> None:
    torch.manual_seed(0)
    theirs = Model()
    ours = copy.deepcopy(theirs).eval()
    parameters, optimizer = list(ours.parameters()), torch.optim.Adam(ours.parameters())
    calls: list[Any] = []
    ours.cell.register_forward_hook(lambda module, arguments, result: calls.append(type(module)))
    handle = ours.alias.register_forward_pre_hook(lambda module, arguments: calls.append("before"))
    done = bridge.replace(ours)
    assert done == bridge.Replaced(("encoder.1", "cell"), {})
    assert type(ours.alias) is type(ours.encoder[1]) is bridge.LSTM
    assert not ours.alias.training
    assert all(a is b for a, b in zip(ours.parameters(), parameters, strict=True))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(3, 7, 4)
    theirs_optimizer = torch.optim.Adam(theirs.parameters())
    for _ in range(3):
        for model, step in ((ours.train(), optimizer), (theirs.train(), theirs_optimizer)):
            torch.manual_seed(1)
            model(x).square().sum().backward()
            step.step()
            step.zero_grad()
    assert_equal(list(ours.parameters()), list(theirs.parameters()), 1e-5)
    assert calls == ["before", bridge.LSTMCell, bridge.LSTMCell] * 3
    handle.remove()
    ours(x)
    assert calls[9:] == [bridge.LSTMCell] * 2
    assert bridge.replace(ours) == bridge.Replaced((), {})
    one = torch.nn.LSTM(4, 6)
    assert bridge.replace(one).swapped == ("",)
    assert type(one) is bridge.LSTM
    with pytest.raises(TypeError, match="model must be"):
        bridge.replace(torch.nn.LSTM)


@pytest.mark.filterwarnings("ignore")  # of scripting, which is deprecated
def test_restore_is_the_way_back() -> None:
    model = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(4, 6, 2, dropout=0.1), "cell": torch.nn.LSTMCell(4, 6)}).eval()
    x, parameters, bridge_lstm = torch.randn(5, 3, 4), list(model.parameters()), bridge.LSTM(4, 6)
    expected = flat(model["lstm"](x))
    bridge.replace(model)
    model["more"] = bridge_lstm
    assert bridge.restore(model) == ("lstm", "cell", "more")
    assert [type(module) for module in model.values()] == [torch.nn.LSTM, torch.nn.LSTMCell, torch.nn.LSTM]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=False))
    assert all(torch.equal(a, b) for a, b in zip(flat(model["lstm"](x)), expected, strict=True))
    scripted = torch.jit.script(torch.nn.Sequential(model["lstm"]))
    assert all(torch.equal(a, b) for a, b in zip(flat(scripted(x)), expected, strict=True))
    assert bridge.restore(model) == ()
    with pytest.raises(TypeError, match="model must be"):
        bridge.restore(torch.nn.LSTM)


@pytest.mark.filterwarnings("ignore")  # of tracing, which is deprecated, and of what it takes for constants
@pytest.mark.parametrize("grad", [True, False])
def test_traces(grad: bool) -> None:
    """They are saved and loaded, run with other sizes, and have gradients."""

    class Packing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = bridge.LSTM(3, 4)

        def forward(self, x: Any, lengths: Any) -> Any:
            return rnn.pad_packed_sequence(self.lstm(rnn.pack_padded_sequence(x, lengths))[0])[0]

    with torch.set_grad_enabled(grad):
        for module, small, large in (
            (bridge.LSTM(3, 4, 2, bidirectional=True), (torch.randn(5, 2, 3),), (torch.randn(7, 3, 3),)),
            (bridge.LSTMCell(3, 4), (torch.randn(2, 3),), (torch.randn(5, 3),)),
            (Packing(), (torch.randn(5, 2, 3), torch.tensor([5, 3])), (torch.randn(6, 4, 3), torch.tensor([6, 4, 2, 1]))),
        ):
            file = io.BytesIO()
            torch.jit.save(torch.jit.trace(module, small), file)
            traced = torch.jit.load(io.BytesIO(file.getvalue()))
            first = [result[0] if isinstance(result, tuple) else result for result in (traced(*large), module(*large))]
            assert torch.equal(*first)
            if grad:
                for output in first:
                    output.sum().backward()
                for ours, theirs in zip(module.parameters(), traced.parameters(), strict=True):
                    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("made_for_gradients", [False, True])
def test_traces_of_frozen_modules_have_gradients_where_a_call_asks(made_for_gradients: bool) -> None:
    """They are checked by a trace without gradients, which must be the same; and without gradients nothing is kept."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), bridge.LSTM(4, 5).requires_grad_(False))
    x = torch.randn(7, 3, 4)
    with torch.set_grad_enabled(made_for_gradients):
        traced = torch.jit.trace(model, x)
    model(x)[0].square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model[0].parameters()]
    model.zero_grad()
    traced(x)[0].square().sum().backward()
    assert_same_bits([parameter.grad for parameter in model[0].parameters()], expected)
    model[1].requires_grad_(True)
    traced(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model[1].parameters())
    kept = len(bridge.tapes._tapes)
    with torch.no_grad():
        y = traced(x)[0]
    assert len(bridge.tapes._tapes) == kept
    assert not y.requires_grad


@pytest.mark.filterwarnings("ignore")
def test_what_was_exported_without_gradients_says_so() -> None:
    x = torch.randn(7, 3, 4)
    with torch.no_grad():
        exported = torch.export.export(bridge.LSTM(4, 5), (x,)).module()
    with pytest.raises(RuntimeError, match="nothing required them when the model was exported; export it after"):
        exported(x)[0].sum().backward()


def test_batch_first_output_has_one_layout() -> None:
    """In training, with dropout, as in use."""
    lstm, x = bridge.LSTM(3, 4, 2, dropout=0.1, batch_first=True), torch.randn(5, 2, 3)
    assert lstm.train()(x)[0].is_contiguous()
    assert lstm.eval()(x)[0].is_contiguous()


def test_a_parameter_that_negates() -> None:
    """A view that says of itself that its numbers have the other sign."""
    lstm, x, z = bridge.LSTM(3, 4), torch.randn(5, 2, 3), torch.randn(16, 4, dtype=torch.complex64)
    found = torch.func.functional_call(lstm, {"weight_hh_l0": z.conj().imag}, (x,))
    expected = torch.func.functional_call(lstm, {"weight_hh_l0": -z.imag}, (x,))
    assert all(torch.equal(a, b) for a, b in zip(flat(found), flat(expected), strict=True))


@pytest.mark.filterwarnings("ignore")  # of scripting and quantising, both deprecated
def test_what_replace_leaves() -> None:
    class Custom(torch.nn.LSTM):
        pass

    compiled = torch.nn.LSTM(4, 6)
    compiled.compile()
    wrapped = torch.nn.LSTM(4, 6)
    wrapped.forward = functools.partial(torch.nn.LSTM.forward, wrapped)
    quantised = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.LSTM(4, 6)), {torch.nn.LSTM})
    mixed = torch.nn.LSTM(4, 6)
    mixed.bias_hh_l0 = torch.nn.Parameter(mixed.bias_hh_l0.double())
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.LSTM(4, 6), "weight_hh_l0")
    model = torch.nn.ModuleDict(
        {
            "a_custom": Custom(4, 6),
            "a_half": torch.nn.LSTM(4, 6).half(),
            "a_brain": torch.nn.LSTMCell(4, 6).bfloat16(),
            "a_scripted": torch.jit.script(torch.nn.LSTM(4, 6)),
            "a_quantised": quantised,
            "a_normed": normed,
            "a_compiled": compiled,
            "a_wrapped": wrapped,
            "a_mixed": mixed,
            "a_complex": torch.nn.LSTMCell(4, 6, dtype=torch.complex64),
            "a_nothing": torch.nn.LSTMCell(4, 0),
            "a_gru": torch.nn.GRU(4, 6),
            "a_plain": torch.nn.LSTM(4, 6),
        }
    )
    kinds = {name: type(module) for name, module in model.named_modules()}
    done = bridge.replace(model)
    assert done.swapped == ("a_plain",)
    for name, word in {
        "a_custom": "Custom is not torch.nn's own",
        "a_half": "call model.float()",
        "a_brain": "call model.float()",
        "a_scripted": "replace the LSTMs of the original, unscripted",
        "a_quantised.0": "quantised",
        "a_normed": "ParametrizedLSTM is not torch.nn's own",
        "a_compiled": "before compile()",
        "a_mixed": "bias_hh_l0 is torch.float64, weight_ih_l0 torch.float32: call model.float() or model.double()",
        "a_complex": "float32 and float64",
        "a_nothing": "hidden_size is 0",
        "a_wrapped": "forward was set on the module itself",
    }.items():
        assert word in done.left.pop(name), name
    assert done.left == {}
    assert all(type(module) is kinds[name] for name, module in model.named_modules() if name != "a_plain")

    class LSTM(torch.nn.Module):
        """A model around one, called as many are."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(4, 6)

    assert bridge.replace(LSTM()) == bridge.Replaced(("lstm",), {})


# ---- torch.compile and operators -----------------------------------------------------------------------------------------------


def test_operators_keep_their_word() -> None:
    """Their schema (nothing is changed), their shapes on tensors without values, their gradients."""
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for config, packed, record in itertools.product(CONFIGS[1:4], (False, True), (None, torch.empty(0))):
        module = modules(config)[1]
        weights, options = list(module.parameters()), (config[3], config[6], config[5], config[4] and not packed)
        x = torch.randn(3, 5, config[0], dtype=F64)
        h, c, sizes, resets = None, None, None, torch.rand(x.shape[1], x.shape[0]) < 0.3
        if not options[3]:
            resets = resets.T.contiguous()
        if packed:
            resets = None
            h, c = (s.detach() for s in states(config, 3))
            x, sizes, _, _ = rnn.pack_sequence([torch.randn(n, config[0], dtype=F64) for n in (5, 2, 1)])
        arguments = (x, h, c, sizes, resets, weights, *options, record)
        torch.library.opcheck(bridge.operators.lstm, arguments, test_utils=tests)
        if record is not None:
            with torch.no_grad():
                output, _, c_n, tape = bridge.operators.lstm(*arguments)
            for needs_input in (True, False):
                some = (tape, output, None, c_n, [*x.shape, *c_n.shape], *options[:3], needs_input, F64)
                kept = bridge.tapes._tapes[int(tape)]
                given = bridge.operators.lstm_backward(*some)
                shapes = bridge.operators.backward_shapes(*some)
                assert [(g.shape, g.dtype) for g in given] == [(s.shape, s.dtype) for s in shapes]
                assert kept.used
                output, _, c_n, tape = bridge.operators.lstm(*arguments)


def test_operators_keep_their_word_for_one_step() -> None:
    module, x = bridge.LSTMCell(4, 6, dtype=F64), torch.randn(3, 4, dtype=F64, requires_grad=True)
    h, c = (torch.randn(3, 6, dtype=F64, requires_grad=True) for _ in range(2))
    weights = list(module.parameters())
    for state, record in itertools.product(((None, None), (h, c)), (None, torch.empty(0))):
        arguments = (x, *state, None, None, weights, True, 0, False, False, record)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(bridge.operators.lstm, arguments, test_utils=tests)
    with torch.no_grad():
        output, _, _, tape = bridge.operators.lstm(*arguments)
    for needs_input in (True, False):
        some = (tape, output, None, c.detach(), [3, 4, 3, 6], True, 0, False, needs_input, F64, True)
        given, shapes = bridge.operators.lstm_backward(*some), bridge.operators.backward_shapes(*some)
        assert [(g.shape, g.dtype) for g in given] == [(s.shape, s.dtype) for s in shapes]


class Tagger(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 4)
        self.lstm = bridge.LSTM(4, 6, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.cell = bridge.LSTMCell(12, 5)
        self.head = torch.nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        y, _ = self.lstm(self.embedding(x))
        h, c = self.cell(y[:, 0])
        h, c = self.cell(y[:, -1], (h, c))
        return self.head(h)


@pytest.mark.parametrize("training", [True, False])
def test_compile_keeps_the_calls_whole(training: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Tagger().train(training)
    model.lstm.dropout *= not training  # its numbers come from another generator when compiled
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((3, 7), (5, 9)):
        x = torch.randint(11, shape)
        with torch.set_grad_enabled(training):
            expected, given = model(x), compiled(x)
            assert_equal([given], [expected], 1e-6)
            if training:
                assert_equal(gradients(model, [], [given]), gradients(model, [], [expected]), 1e-5)
    model.lstm.weight_ih_l0.data.mul_(2)
    assert_equal([compiled(x)], [model(x)], 1e-6)


def test_frozen_inside_what_is_compiled() -> None:
    torch._dynamo.reset()
    module, x = bridge.LSTM(4, 6), torch.randn(5, 3, 4)

    def run(x: Any) -> Any:
        with bridge.frozen():
            return module(x)[0]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), module(x)[0])
    module.weight_ih_l0.data.mul_(2)
    assert torch.equal(compiled(x), module(x)[0])


def test_compile_packed_sequences() -> None:
    torch._dynamo.reset()
    module = modules(CONFIGS[1])[1]
    data = [torch.randn(n, 4, dtype=F64) for n in (2, 5, 3)]
    packed = rnn.pack_sequence(data, enforce_sorted=False)
    given = torch.compile(module, fullgraph=True, backend="aot_eager")(packed)
    expected = module(packed)
    assert_equal(flat(given), flat(expected), 0)
    assert_equal(gradients(module, [], flat(given)), gradients(module, [], flat(expected)), 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside PyTorch
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_compiler_does_not_merge_calls(backend: str) -> None:
    """Two equal calls, each with its own gradient."""
    if backend == "inductor" and not shutil.which("g++") and os.environ.get("FASTLSTM_TEST_STRICT") != "1":
        pytest.skip("needs g++")
    torch._dynamo.reset()
    module = modules(CONFIGS[0])[1]
    x = torch.randn(5, 3, 4, dtype=F64)

    def twice(x: Any) -> Any:
        return module(x)[0].square().sum() + module(x)[0].sum()

    compiled = torch.compile(twice, fullgraph=True, backend=backend)
    assert_equal(gradients(module, [], [compiled(x)]), gradients(module, [], [twice(x)]), 1e-12)


MAKERS = {
    "trace": lambda module, x: torch.jit.trace(module, (x,)),
    "export": lambda module, x: torch.export.export(module, (x,)).module(),
    "compile": lambda module, x: torch.compile(module, fullgraph=True, backend="eager"),
}


@pytest.mark.filterwarnings("ignore")  # of tracing, which is deprecated
@pytest.mark.parametrize("make", MAKERS)
def test_second_derivatives_of_what_was_made_are_refused(make: str) -> None:
    torch._dynamo.reset()
    module = modules(CONFIGS[0])[1]
    made = MAKERS[make](module, torch.randn(5, 3, 4, dtype=F64))
    owner = module if make == "compile" else made
    for pick in (lambda head, x, own: head, lambda head, x, own: x, lambda head, x, own: own):
        with pytest.raises(RuntimeError, match=r"second derivatives.*torch\.nn\.LSTM"):
            penalised(owner, pick, made)


@pytest.mark.parametrize("make", ["trace", "export"])
@pytest.mark.filterwarnings("ignore")
def test_what_was_made_does_not_merge_calls(make: str) -> None:
    """Two equal calls, each with its own gradient."""

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = modules(CONFIGS[0])[1]

        def forward(self, x: Any) -> Any:
            return self.lstm(x)[0].square().sum() + self.lstm(x)[0].sum()

    module, x = Twice(), torch.randn(5, 3, 4, dtype=F64)
    made = MAKERS[make](module, x)
    for _ in range(3):
        assert_equal(gradients(made, [], [made(x)]), gradients(module, [], [module(x)]), 1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transforms_inside_what_is_compiled() -> None:
    """The compiler breaks its graph there, as at torch.nn.LSTM."""
    torch._dynamo.reset()
    module, x = modules(CONFIGS[0])[1], torch.randn(5, 3, 4, dtype=F64)
    derive = torch.func.grad(lambda x: module(x)[0].square().sum())
    assert_equal([torch.compile(derive, backend="aot_eager")(x)], [derive(x)], 0)


# ---- Training ------------------------------------------------------------------------------------------------------------------


def example(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_training_on_text() -> None:
    """Embedding, LSTM, linear layer and Adam: torch.nn.LSTM's losses, and no growing memory."""
    text = example("train_text")
    numbers, characters = text.read(None, 16_000)
    losses = []
    for replaced in (False, True):
        torch.manual_seed(0)
        model = text.CharacterModel(characters, 48)
        if replaced:
            assert bridge.replace(model).swapped == ("lstm",)
        losses.append([loss for loss, _ in text.train(model, numbers, 6)])
    assert losses[1][-1] < 0.95 * losses[1][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

    epochs = text.train(model, numbers, 12)
    sizes = []
    for _ in epochs:
        gc.collect()
        sizes.append(resident_bytes())
    assert sizes[-1] - sizes[3] < 4 << 20
    assert len(bridge.tapes._tapes) == 0


SHARDED = """
import time
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import fastlstm.torch

distributed.init_process_group("gloo")
torch.set_num_threads(1)
mesh = init_device_mesh("cpu", (2,))
losses = []
for replaced in (False, True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(3, 8, 2))
    if replaced:
        fastlstm.torch.replace(model)
    fully_shard(model[0], mesh=mesh)  # the parameters' memory is taken away between calls
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    torch.manual_seed(distributed.get_rank())
    x = torch.randn(4, 2, 3)
    for _ in range(4):
        loss = model(x)[0].square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
difference = max(abs(a - b) for a, b in zip(losses[:4], losses[4:]))
print(f"process {distributed.get_rank()}: {difference < 1e-5 and losses[4] != losses[7]}\\n", end="", flush=True)
distributed.destroy_process_group()
time.sleep(0.5)  # gloo's threads, as in examples/ddp.py
"""


def test_sharded_parameters(tmp_path: Path) -> None:
    """Two processes, each with half of every parameter: torch.nn.LSTM's losses."""
    if not hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip("needs PyTorch 2.6")
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["process 0: True", "process 1: True"]


def test_fastlstm_does_not_import_torch() -> None:
    run_python("import sys, fastlstm; assert 'torch' not in sys.modules; import fastlstm.torch; assert 'torch' in sys.modules")


def test_public_names_have_one_place() -> None:
    """Pickles name it, too."""
    for kind in (bridge.LSTM, bridge.LSTMCell, bridge.Replaced):
        assert kind.__module__ == "fastlstm.torch"
        assert pickle.loads(pickle.dumps(kind)) is kind


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.seen.append(str(operator))
        return operator(*arguments, **(options or {}))


def test_operators_where_somebody_looks() -> None:
    """Plain calls leave the operators out, which take longer than a small step; who looks sees them, and the same bits."""
    lstm = bridge.LSTM(3, 5, num_layers=2)
    x = torch.randn(4, 2, 3, requires_grad=True)

    def gradients() -> list[torch.Tensor]:
        output, (_, c_n) = lstm(x)
        return [output, c_n, *torch.autograd.grad(output.sum() + c_n.sum(), (x, *lstm.parameters()))]

    with Watch() as watch:
        watched = gradients()
        with torch.no_grad():
            watched.append(lstm(x)[0])
    assert watch.seen.count("fastlstm.lstm.default") == 2
    assert watch.seen.count("fastlstm.lstm_backward.default") == 1
    plain = gradients()
    assert "_Plain" in type(plain[0].grad_fn).__name__
    with torch.no_grad():
        plain.append(lstm(x)[0])
    for one, other in zip(plain, watched, strict=True):
        assert torch.equal(one, other)
