"""Calls inside torch.func's transforms, and gradients of several at once (vmap, ``is_grads_batched``)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastlstm.torch.operators import (
    DERIVATIVE,
    FORWARD_MODE,
    OPTIONS,
    Once,
    backward_shapes,
    keep_sizes,
    lstm,
    lstm_backward,
    run_backward,
    weight_shapes,
)
from fastlstm.torch.packed import Tensor
from fastlstm.torch.tapes import keep_together

__all__ = ["call_transformed"]


@torch._disable_dynamo  # type: ignore[untyped-decorator]  # a compiler breaks its graph here, as at torch.nn.LSTM
def call_transformed(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    functorch = torch._C._functorch
    if any(level.key() == functorch.TransformType.Functionalize for level in functorch.get_interpreter_stack() or ()):
        raise RuntimeError("fastlstm's LSTM does not support torch.func.functionalize; use torch.nn.LSTM inside it")
    output, h_n, c_n, _ = _Transformed.apply(*arguments)
    return output, h_n, c_n


class _Transformed(torch.autograd.Function):
    """A call inside torch.func's transforms, told as these ask for it; outside of them :class:`_Plain` costs less.

    What is mapped over (vmap, jacrev, gradients of each row) is called once for each of its parts.
    """

    @staticmethod
    def forward(options: tuple[Any, ...], *tensors: Any) -> tuple[Tensor, ...]:
        x, h_0, c_0, batch_sizes, resets, *weights = tensors
        record = torch.empty(0)  # whether a gradient is wanted is known to the transforms around this one
        result: tuple[Tensor, ...] = lstm(x, h_0, c_0, batch_sizes, resets, weights, *options, record)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        options, x, h_0, c_0, _, _, *weights = inputs
        _, _, c_n, tape = output
        ctx.mark_non_differentiable(tape)
        ctx.save_for_backward(tape, x, h_0, c_0, *weights)
        keep_sizes(ctx, x, c_n, options)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, _: None) -> tuple[Any, ...]:
        tape, x, h_0, c_0, *weights = ctx.saved_tensors
        given = d_output, d_h_n, d_c_n
        if all(d is None for d in given):
            return (None,) * len(ctx.needs_input_grad)
        _, needs_x, *_ = ctx.needs_input_grad
        with torch.no_grad():
            grads = lstm_backward(tape, *given, ctx.shapes, *ctx.options, needs_x, ctx.dtype, again=True)
        # They come of the inputs and of what was given: who asks how, at whatever level, is told
        origins = [tensor for tensor in (*given, x, h_0, c_0, *weights) if tensor is not None]
        d_x, d_h_0, d_c_0, *d_weights = Once.apply(len(grads), *grads, *origins)
        states = (None, None) if h_0 is None else (d_h_0, d_c_0)
        return (None, d_x if needs_x else None, *states, None, None, *d_weights)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> None:
        raise RuntimeError(FORWARD_MODE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        if info.batch_size == 0:
            raise ValueError("fastlstm's LSTM cannot be mapped over an axis of size 0: the shape of the results is not known")
        results = [_Transformed.apply(*part) for part in _parts(info.batch_size, in_dims, arguments)]
        *outputs, tapes = zip(*results, strict=True)
        return (*map(torch.stack, outputs), _together(list(tapes))), (0, 0, 0, 0)


def _parts(count: int, dims: Sequence[Any], arguments: Sequence[Any]) -> Iterator[list[Any]]:
    """The arguments of each of ``count`` calls, from some that have an axis for them."""
    for k in range(count):
        yield [value.select(dim, k) if isinstance(dim, int) else value for value, dim in zip(arguments, dims, strict=True)]


def _gradients_of_each(*arguments: Any) -> list[Tensor]:
    """``fastlstm::lstm_backward`` where tensors stand for several: inside vmap, or with ``is_grads_batched``."""
    arguments = arguments[:10]  # without ``again``, which the dispatcher leaves out if it is false
    _, _, _, _, *sizes, _, _ = arguments
    shapes = weight_shapes(*sizes)
    *first, parameters = _lstm_backward_flat(*arguments, True)  # the next part may have the same tape
    flat = parameters.split([math.prod(shape) for shape in shapes])
    return [*first, *(part.view(shape) for part, shape in zip(flat, shapes, strict=True))]


def _backward_flat(*arguments: Any) -> tuple[Tensor, ...]:
    """``fastlstm::lstm_backward_flat``: the gradients of all weights in one tensor.

    An operator that gives no list is called once for each part by what ``is_grads_batched`` is made of, without a rule.
    """
    *first, d_weights = _split_off(run_backward(*arguments))
    return (*first, torch.cat([d.flatten() for d in d_weights]))


def _backward_flat_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    *first, d_weights = _split_off(backward_shapes(*arguments))
    return (*first, d_weights[0].new_empty(sum(d.numel() for d in d_weights)))


def _flat_of_each(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    results = [_lstm_backward_flat(*part) for part in _parts(info.batch_size, in_dims, arguments)]
    return tuple(map(torch.stack, zip(*results, strict=True))), (0, 0, 0, 0)


def _split_off(grads: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    d_x, d_h_0, d_c_0, *d_weights = grads
    return d_x, d_h_0, d_c_0, d_weights


def _keep_each_together(info: Any, in_dims: tuple[Any, ...], tapes: list[Tensor]) -> tuple[Tensor, int]:
    return _together([_together(part) for part in _parts(info.batch_size, in_dims[0], tapes)]), 0


_lstm_backward_flat = torch.library.custom_op(
    "fastlstm::lstm_backward_flat",
    _backward_flat,
    mutates_args=(),
    schema=f"({DERIVATIVE}{OPTIONS}bool needs_input, ScalarType dtype, bool again) -> (Tensor, Tensor, Tensor, Tensor)",
)
_together = torch.library.custom_op("fastlstm::tapes", keep_together, mutates_args=(), schema="(Tensor[] tapes) -> Tensor")
_lstm_backward_flat.register_fake(_backward_flat_shapes)
_together.register_fake(torch.stack)
for _key in ("Batched", "FuncTorchBatched"):  # of is_grads_batched, and of vmap
    lstm_backward._lib.impl("lstm_backward", _gradients_of_each, _key)
if hasattr(_together, "register_vmap"):  # from PyTorch 2.5 on; before, vmap warns that it calls each part, and cannot be nested
    _lstm_backward_flat.register_vmap(_flat_of_each)
    _together.register_vmap(_keep_each_together)
