"""The engine as custom operators of PyTorch, and their derivatives."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from fastlstm.torch.packed import Tensor, allowance, array_of, packed_network, per_record
from fastlstm.torch.tapes import Ragged, graph_is_retained, recall, remember
from fastlstm.weights import parameter_shapes

__all__ = [
    "DERIVATIVE",
    "FORWARD_MODE",
    "OPTIONS",
    "Once",
    "backward_shapes",
    "gradients",
    "is_plain",
    "keep",
    "keep_sizes",
    "lstm",
    "lstm_backward",
    "run_backward",
    "run_forward",
    "state_shapes",
    "weight_shapes",
]


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether only autograd observes this call, and no tracing, compiling, vmap or subclass: then it needs no custom operators,
    which take 0.2 ms a call."""
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    ordinary, is_batched = (torch.Tensor, torch.nn.Parameter, type(None)), torch._C._functorch.is_legacy_batchedtensor
    for tensor in tensors:  # noqa: SIM110  (asked at every step: all() takes twice as long)
        if type(tensor) not in ordinary or (tensor is not None and is_batched(tensor)):
            return False
    return True


def run_forward(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    resets: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    proj_size: int,
    bidirectional: bool,
    batch_first: bool,
    record: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fastlstm::lstm``: x is (T, B, I), (B, T, I) if batch_first, or packed data (tokens, I), which knows no resets (T, B); the
    last result names a tape.

    Without batch_sizes x (B, I) is one step of one layer, as cells take it: states and results are (B, ...), too. The axes are
    put on and taken off arrays, whose views are no views to autograd.
    """
    network = packed_network(weights, bias, proj_size, bidirectional, batch_first)
    state = None if h_0 is None else (array_of(h_0), array_of(c_0))
    ragged = None if batch_sizes is None else Ragged(array_of(batch_sizes), len(x))
    array = array_of(x)
    step = ragged is None and array.ndim == 2
    if step:
        array, state = array[None], None if state is None else (state[0][None], state[1][None])
    lengths, anew = None, None if resets is None else array_of(resets)
    if ragged is not None:
        array, lengths = ragged.spread(array), ragged.lengths
    # Of a trace it has two axes, and asks for a tape if it asks for gradients now
    if record is not None and (record.ndim == 1 or record.requires_grad):
        # The seed is of no dropout: drawing one costs two microseconds
        tape = network.record(array, state, lengths=lengths, resets=anew, threads=allowance(), seed=0)
        output, (h_n, c_n), name = tape.output, tape.state, remember(tape, ragged)
    else:
        output, (h_n, c_n) = network(array, state, lengths=lengths, resets=anew, threads=allowance())
        name = torch.empty(0, dtype=torch.int64)
    if ragged is not None:
        output = ragged.gather(output)
    if step:
        output, h_n, c_n = output[0], h_n[0], c_n[0]
    return torch.from_numpy(output), torch.from_numpy(h_n), torch.from_numpy(c_n), name


def forward_shapes(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    resets: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    proj_size: int,
    bidirectional: bool,
    batch_first: bool,
    record: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    step = batch_sizes is None and x.dim() == 2
    B = x.shape[0 if batch_first or step else 1] if h_0 is None else h_0.shape[-2]
    rows = (B,) if step else (len(weights) // per_record(bias, proj_size), B)
    h_shape, c_shape = state_shapes(rows, weights[0].shape[0] // 4, proj_size)
    return (
        x.new_empty((*x.shape[:-1], h_shape[-1] * (2 if bidirectional else 1))),
        x.new_empty(h_shape),
        x.new_empty(c_shape),
        x.new_empty((0 if record is None else 1,), dtype=torch.int64),
    )


def run_backward(
    tape: Tensor,
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    shapes: Sequence[int],
    bias: bool,
    proj_size: int,
    bidirectional: bool,
    needs_input: bool,
    dtype: Any,
    again: bool = False,
) -> list[Tensor]:
    """``fastlstm::lstm_backward``: gradients of x (empty if not needed), h_0, c_0 and every weight; shapes: of x, then of c_0.

    ``again``: whether the tape may be asked once more. The options and ``dtype``, which the tape knows, are for
    :func:`backward_shapes`, which has none.
    """
    kept = recall(tape)
    if kept.used:
        raise RuntimeError("the gradients of this LSTM call were already taken; pass retain_graph=True the first time")
    recorded, ragged = kept.tape, kept.ragged
    if again or graph_is_retained():
        recorded = copy.copy(recorded)
    else:
        kept.used = True
    step = len(shapes) == STEP
    d_y, d_h, d_c = (None if d is None else array_of(d)[None] if step else array_of(d) for d in (d_output, d_h_n, d_c_n))
    if ragged is not None and d_y is not None:
        d_y = ragged.spread(d_y)
    grads = recorded.backward(d_y, (d_h, d_c), input=needs_input, threads=allowance())
    d_x = np.empty(0, grads.state[0].dtype) if grads.input is None else grads.input
    if ragged is not None and needs_input:
        d_x = ragged.gather(d_x)
    inputs = [d_x, *grads.state]
    if step:
        inputs = [d[0] if len(d) else d for d in inputs]
    return [torch.from_numpy(array) for array in (*inputs, *grads.parameters.values())]


def backward_shapes(
    tape: Tensor,
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    shapes: Sequence[int],
    bias: bool,
    proj_size: int,
    bidirectional: bool,
    needs_input: bool,
    dtype: Any,
    again: bool = False,
) -> list[Tensor]:
    *x, records, B, H = _with_records(shapes)
    rows = (B,) if len(shapes) == STEP else (records, B)
    d_x = tuple(x) if needs_input else (0,)
    tensors = d_x, *state_shapes(rows, H, proj_size), *weight_shapes(shapes, bias, proj_size, bidirectional)
    return [tape.new_empty(shape, dtype=dtype) for shape in tensors]


def state_shapes(rows: tuple[int, ...], H: int, proj_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of h and of c."""
    return (*rows, proj_size or H), (*rows, H)


def weight_shapes(shapes: Sequence[int], bias: bool, proj_size: int, bidirectional: bool) -> list[tuple[int, ...]]:
    *x, records, _, H = _with_records(shapes)
    sizes: dict[str, Any] = {"bias": bias, "bidirectional": bidirectional, "proj_size": proj_size}
    return list(parameter_shapes(x[-1], H, records // (2 if bidirectional else 1), **sizes).values())


STEP = 4  # how many sizes the shapes of one step are: x (B, I) and c_0 (B, H)


def _with_records(shapes: Sequence[int]) -> Sequence[int]:
    return (*shapes[:2], 1, *shapes[2:]) if len(shapes) == STEP else shapes


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What autograd keeps of a call: the name of the tape, which lives as long as that tensor, and sizes."""
    x, h_0, _, _, _, _, *options, record = inputs
    _, _, c_n, tape = output
    ctx.save_for_backward(tape, record)
    ctx.has_state = h_0 is not None
    keep_sizes(ctx, x, c_n, options)


def keep_sizes(ctx: Any, x: Tensor, c_n: Tensor, options: Sequence[Any]) -> None:
    """What :func:`run_backward` is given besides the tape and gradients; those may be None."""
    ctx.set_materialize_grads(False)
    bias, proj_size, bidirectional, _ = options
    ctx.shapes, ctx.dtype = [*x.shape, *c_n.shape], x.dtype
    ctx.options = bias, proj_size, bidirectional


def _differentiate(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, _: None) -> tuple[Any, ...]:
    x, h_0, c_0, _, _, weights, *others = ctx.needs_input_grad
    *d_inputs, d_weights = gradients(ctx, (x, h_0, c_0, weights), d_output, d_h_n, d_c_n)
    return (*d_inputs, None, None, d_weights, *[None] * len(others))


def gradients(
    ctx: Any, needs: tuple[Any, ...], d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None
) -> tuple[Any, ...]:
    """Of x, h_0 and c_0, and a list of those of the weights; None for what is not needed."""
    *needs_inputs, needs_weights = needs
    given = d_output, d_h_n, d_c_n
    if all(d is None for d in given):
        return None, None, None, [None] * len(needs_weights)
    tape, record = ctx.saved_tensors
    run: Any = run_backward if is_plain(*given) else lstm_backward
    with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
        grads = run(tape, *given, ctx.shapes, *ctx.options, needs_inputs[0], ctx.dtype)
    if torch.is_grad_enabled():  # create_graph=True: what comes out must not pass for a constant
        origin = record if record.requires_grad else torch.empty(0, requires_grad=True)
        grads = _refusing([origin, *(d for d in given if d is not None)], grads)
    d_x, d_h_0, d_c_0, *d_weights = grads
    return (
        d_x if needs_inputs[0] else None,
        d_h_0 if ctx.has_state and needs_inputs[1] else None,
        d_c_0 if ctx.has_state and needs_inputs[2] else None,
        [d if needed else None for d, needed in zip(d_weights, needs_weights, strict=True)],
    )


_SECOND = "fastlstm's LSTM has no second derivatives (create_graph=True); use torch.nn.LSTM for gradients of gradients"
FORWARD_MODE = "fastlstm's LSTM has no forward-mode derivatives (jvp, jacfwd); use torch.nn.LSTM for those"


class Once(torch.autograd.Function):
    """Makes the first ``count`` tensors, gradients, depend on all others, so that second derivatives raise an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors[:count]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(_SECOND)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> None:
        raise RuntimeError(FORWARD_MODE)


_X = "Tensor input, Tensor? h_0, Tensor? c_0, Tensor? batch_sizes, Tensor? resets, Tensor[] weights, "
DERIVATIVE = "Tensor tape, Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, SymInt[] shapes, "
OPTIONS = "bool bias, SymInt proj_size, bool bidirectional, "
lstm = torch.library.custom_op(
    "fastlstm::lstm",
    run_forward,
    mutates_args=(),
    schema=f"({_X}{OPTIONS}bool batch_first, Tensor? record) -> (Tensor, Tensor, Tensor, Tensor)",
)
lstm_backward = torch.library.custom_op(
    "fastlstm::lstm_backward",
    run_backward,
    mutates_args=(),
    schema=f"({DERIVATIVE}{OPTIONS}bool needs_input, ScalarType dtype, bool again=False) -> Tensor[]",
)
lstm.register_fake(forward_shapes)
lstm.register_autograd(_differentiate, setup_context=keep)
lstm_backward.register_fake(backward_shapes)


def _refusing(origins: list[Tensor], grads: list[Tensor]) -> Any:
    """The same gradients, come of the `origins` by way of :class:`Once`."""
    if torch._C._functorch.is_legacy_batchedtensor(grads[-1]):
        one = _one(sum((origin.reshape(-1)[:0].sum() for origin in origins[1:]), origins[0].sum()))
        return [gradient * one for gradient in grads]
    return Once.apply(len(grads), *grads, *origins)


# With is_grads_batched an operator is called for each part, outside of what PyTorch wraps around them: there a graph lasts
_one = torch.library.custom_op("fastlstm::one", torch.ones_like, mutates_args=(), schema="(Tensor origin) -> Tensor")
_one.register_autograd(Once.backward)
_one.register_fake(torch.ones_like)
