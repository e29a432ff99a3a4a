"""A call of the engine by the way that costs least: outside of PyTorch's operators, as one of them, or inside torch.func."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from fastlstm.torch.operators import FORWARD_MODE, gradients, is_plain, keep, lstm, run_forward
from fastlstm.torch.packed import Tensor
from fastlstm.torch.transforms import call_transformed

__all__ = ["call"]


def call(
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
) -> tuple[Tensor, Tensor, Tensor]:
    options = bias, proj_size, bidirectional, batch_first
    inputs = (x, *weights) if h_0 is None else (x, h_0, c_0, *weights)
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise RuntimeError(FORWARD_MODE)
    if torch._C._are_functorch_transforms_active():
        output, h_n, c_n = call_transformed(options, x, h_0, c_0, batch_sizes, resets, *weights)
        return output, h_n, c_n
    wanting = [tensor for tensor in inputs if tensor.requires_grad] if torch.is_grad_enabled() else []
    if is_plain(*inputs, resets):
        if wanting:
            output, h_n, c_n, _ = _Plain.apply(options, x, h_0, c_0, batch_sizes, resets, *weights)
        else:
            output, h_n, c_n, _ = run_forward(x, h_0, c_0, batch_sizes, resets, weights, *options, None)
        return output, h_n, c_n
    if torch.onnx.is_in_onnx_export():  # PyTorch's own module, which is exported instead, knows none
        raise RuntimeError("torch.onnx.export has nothing for resets=: export a model that is called without")
    record = None
    if torch.jit.is_tracing():  # for calls with gradients and without, whatever asks for them now
        record = _joined(x, inputs)[:, None]
    elif wanting:
        # A compiler may not hold a torch.autograd.Function
        record = _joined(x, inputs) if torch.compiler.is_compiling() else _Origin.apply(*wanting)
    output, h_n, c_n, _ = lstm(x, h_0, c_0, batch_sizes, resets, weights, *options, record)
    return output, h_n, c_n


def _joined(x: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """What :class:`_Origin` makes, of PyTorch's operators: a new tensor each time, as compilers merge equal calls."""
    return torch.cat([torch.empty(0, dtype=x.dtype), *(tensor[:0].reshape(-1) for tensor in inputs)])


class _Plain(torch.autograd.Function):
    """The operators' derivatives for a call that is no operator. The last result is its own origin, see :class:`_Origin`."""

    @staticmethod
    def forward(ctx: Any, options: tuple[Any, ...], *tensors: Any) -> tuple[Tensor, ...]:  # as _Transformed's
        x, h_0, c_0, batch_sizes, resets, *weights = tensors
        record = x.new_empty(0)
        inputs = x, h_0, c_0, batch_sizes, resets, weights, *options, record
        output = run_forward(*inputs)
        keep(ctx, inputs, output)
        return (*output[:3], record)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, _: None) -> tuple[Any, ...]:
        _, x, h_0, c_0, _, _, *weights = ctx.needs_input_grad
        *d_inputs, d_weights = gradients(ctx, (x, h_0, c_0, weights), d_output, d_h_n, d_c_n)
        return (None, *d_inputs, None, None, *d_weights)


class _Origin(torch.autograd.Function):
    """An empty tensor that comes of all inputs that ask for gradients, and holds none of them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.count = len(inputs)
        return inputs[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None,) * ctx.count
