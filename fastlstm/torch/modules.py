"""The modules, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from fastlstm.arrays import booleans_error, shape_error
from fastlstm.torch.calls import call
from fastlstm.torch.operators import state_shapes
from fastlstm.torch.packed import Tensor
from fastlstm.weights import parameter_shapes

__all__ = ["LSTM", "LSTMCell", "wrong_dtype"]

State = tuple[Tensor, Tensor]

_OF_A_CELL = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


def _refuse_scripting(module: Any) -> NoReturn:
    raise RuntimeError(
        "torch.jit.script supports only PyTorch's own modules: call fastlstm.torch.restore(model) first, or use torch.jit.trace"
    )


class LSTM(torch.nn.RNNBase):
    """``torch.nn.LSTM`` on fastlstm's engine: the same arguments, parameters, initialisation, state dict and calls.

    A subclass of ``torch.nn.RNNBase`` but not of ``torch.nn.LSTM``, at which ``torch.compile`` breaks its graph.

    Parameters
    ----------
    input_size, hidden_size : int
        Sizes I of an input and H of the cell state.
    num_layers : int
    bias : bool
    batch_first : bool
        Whether input and output are ``(B, T, ...)`` instead of ``(T, B, ...)``. States are never batch-first.
    dropout : float
        Probability of zeroing an output of every layer but the last, in training; from PyTorch's own generator, as in
        ``torch.nn.LSTM`` (the same seed drops the same values).
    bidirectional : bool
    proj_size : int
        Size P of the projected h; 0 for none.
    device, dtype : optional
        Of the parameters. Calls need them on the CPU, in float32 or float64.

    Raises
    ------
    ValueError, TypeError
        As ``torch.nn.LSTM``.

    Examples
    --------
    >>> lstm = fastlstm.torch.LSTM(3, 5, bidirectional=True)
    >>> output, (h_n, c_n) = lstm(torch.randn(7, 2, 3))
    >>> output.shape
    torch.Size([7, 2, 10])
    """

    __module__ = "fastlstm.torch"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )

    # What subclasses of torch.nn.LSTM may call
    check_forward_args = torch.nn.LSTM.check_forward_args
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    permute_hidden = torch.nn.LSTM.permute_hidden
    __prepare_scriptable__ = _refuse_scripting

    def forward(self, input: Any, hx: State | None = None, resets: Tensor | None = None) -> tuple[Any, State]:
        """Run whole sequences.

        Parameters
        ----------
        input : tensor, shape (T, B, I), or PackedSequence
            ``(B, T, I)`` if `batch_first`; ``(T, I)`` for one sequence. Of the parameters' dtype.
        hx : (h_0, c_0), optional
            Shapes (L*D, B, P or H) and (L*D, B, H), without B for one sequence. Zeros if left out.
        resets : tensor of bool, shape (T, B), optional
            Where true, that row starts anew from zeros before that step, such as the first one of an episode. Also (T, B) if
            `batch_first`; ``(T,)`` for one sequence. No gradient crosses. The backward direction begins anew at the same places:
            before it takes the step left of each reset.

        Returns
        -------
        output : tensor, shape (T, B, D*(P or H)), or PackedSequence
            Laid out as `input`.
        (h_n, c_n) : tensors of the shapes of `hx`
            The state after each row's last step, rows in the order of the caller.

        Raises
        ------
        ValueError
            If a shape does not fit, a PackedSequence has other sizes than its data, or resets are given with one.
        TypeError
            If a tensor has another dtype than the parameters, is not on the CPU, or autocast is on; the message says what to do.
        """
        if _is_exported(input) and resets is None:
            exported: tuple[Any, State] = torch.nn.LSTM.forward(self, input, hx)
            return exported
        weights, dtype = _checked_weights(self, self._flat_weights_names)
        run = self._run_packed if isinstance(input, PackedSequence) else self._run_padded
        return run(input, hx, resets, weights, dtype)

    def _run_padded(
        self, x: Tensor, hx: State | None, resets: Tensor | None, weights: list[Tensor], dtype: Any
    ) -> tuple[Tensor, State]:
        _check_tensor("input", x, dtype)
        axes, batch_first = x.dim(), self.batch_first
        single = axes == 2
        if axes not in (2, 3) or x.shape[-1] != self.input_size:
            raise shape_error("input", (*(("B", "T") if batch_first else ("T", "B")), self.input_size), tuple(x.shape))
        if single:
            x, batch_first = x.unsqueeze(1), False
        rows = () if single else (x.shape[0 if batch_first else 1],)
        if resets is not None:
            _check_resets(resets, (x.shape[1 if batch_first else 0], *rows))
            resets = resets.unsqueeze(1) if single else resets
        h, c = None, None
        if hx is not None:
            records = self.num_layers * (2 if self.bidirectional else 1)
            h, c = _checked_state(hx, (records, *rows), self.hidden_size, self.proj_size, dtype)
            h, c = (h.unsqueeze(1), c.unsqueeze(1)) if single else (h, c)
        output, h, c = self._run_layers(x, h, c, None, resets, weights, batch_first)
        return (output.squeeze(1), (h.squeeze(1), c.squeeze(1))) if single else (output, (h, c))

    def _run_packed(
        self, input: PackedSequence, hx: State | None, resets: Tensor | None, weights: list[Tensor], dtype: Any
    ) -> tuple[PackedSequence, State]:
        x, batch_sizes, order, back = input
        _check_tensor("input", x, dtype)
        if resets is not None:
            raise ValueError("resets are for padded tensors: a PackedSequence takes none")
        if x.dim() != 2 or x.shape[1] != self.input_size:
            raise shape_error("input.data", ("tokens", self.input_size), tuple(x.shape))
        if not torch.jit.is_tracing() and not torch.compiler.is_compiling():
            _check_packed(batch_sizes, order)
        B = batch_sizes[0] if order is None else order.shape[0]
        B = B if torch.jit.is_tracing() else int(B)  # a trace is for any number of rows
        rows = self.num_layers * (2 if self.bidirectional else 1), B
        if hx is None:  # the operator knows the number of rows from the state
            h, c = (x.new_zeros(shape) for shape in state_shapes(rows, self.hidden_size, self.proj_size))
        else:
            h, c = _checked_state(hx, rows, self.hidden_size, self.proj_size, dtype)
            h, c = (h, c) if order is None else (h.index_select(1, order), c.index_select(1, order))
        output, h, c = self._run_layers(x, h, c, batch_sizes, None, weights, False)
        h, c = (h, c) if back is None else (h.index_select(1, back), c.index_select(1, back))
        return PackedSequence(output, batch_sizes, order, back), (h, c)

    def _run_layers(
        self,
        y: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        batch_sizes: Tensor | None,
        resets: Tensor | None,
        weights: list[Tensor],
        batch_first: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """In one call; with dropout each as a network of its own: time first, as ``torch.nn.LSTM`` draws its numbers."""
        if not self.dropout or not self.training or self.num_layers == 1:
            return call(y, h, c, batch_sizes, resets, weights, self.bias, self.proj_size, self.bidirectional, batch_first)
        sizes: dict[str, Any] = {"bias": self.bias, "bidirectional": self.bidirectional, "proj_size": self.proj_size}
        shapes = parameter_shapes(self.input_size, self.hidden_size, self.num_layers, **sizes)
        for (name, shape), weight in zip(shapes.items(), weights, strict=True):  # packing sees one layer at a time
            if tuple(weight.shape) != shape:
                raise shape_error(name, shape, tuple(weight.shape))
        directions, final = 2 if self.bidirectional else 1, []
        per_layer = len(weights) // self.num_layers
        y = y.transpose(0, 1) if batch_first else y
        for layer in range(self.num_layers):
            last = layer + 1 == self.num_layers
            if layer:
                y = torch.nn.functional.dropout(y, self.dropout)
            if last and batch_first:
                y = y.transpose(0, 1)
            own = slice(layer * directions, (layer + 1) * directions)
            h_0, c_0 = (None, None) if h is None or c is None else (h[own], c[own])
            tensors = weights[layer * per_layer : (layer + 1) * per_layer]
            options = self.bias, self.proj_size, self.bidirectional, last and batch_first
            y, *state = call(y, h_0, c_0, batch_sizes, resets, tensors, *options)
            final.append(state)
        h_n, c_n = (torch.cat(parts) for parts in zip(*final, strict=True))
        return y, h_n, c_n


class LSTMCell(torch.nn.LSTMCell):
    """``torch.nn.LSTMCell`` on fastlstm's engine: one step at a time, with the same arguments, parameters and calls.

    For inference step by step :func:`frozen` saves looking at the parameters at every step, and :meth:`fastlstm.LSTM.stream` (of
    ``fastlstm.from_torch(module)``) all of PyTorch's overhead.

    Parameters
    ----------
    input_size, hidden_size : int
    bias : bool
    device, dtype : optional
        Of the parameters. Calls need them on the CPU, in float32 or float64.
    """

    __module__ = "fastlstm.torch"

    __prepare_scriptable__ = _refuse_scripting

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """Take one step.

        Parameters
        ----------
        input : tensor, shape (B, I) or (I,)
        hx : (h_0, c_0), optional
            Shapes (B, H), or (H,) for one row. Zeros if left out.

        Returns
        -------
        h_1, c_1 : tensors, shape (B, H) or (H,)

        Raises
        ------
        ValueError, TypeError
            As :meth:`LSTM.forward`.
        """
        if _is_exported(input):
            state: State = super().forward(input, hx)
            return state
        weights, dtype = _checked_weights(self, _OF_A_CELL if self.bias else _OF_A_CELL[:2])
        _check_tensor("input", input, dtype)
        axes = input.dim()
        single = axes == 1
        if axes not in (1, 2) or input.shape[-1] != self.input_size:
            raise shape_error("input", ("B", self.input_size), tuple(input.shape))
        # Of one row alone, as in torch.nn.LSTMCell: results that are views cannot be detached in place
        x = input.unsqueeze(0) if single else input
        h, c = None, None
        if hx is not None:
            h, c = _checked_state(hx, () if single else (x.shape[0],), self.hidden_size, 0, dtype)
            h, c = (h.unsqueeze(0), c.unsqueeze(0)) if single else (h, c)
        _, h, c = call(x, h, c, None, None, weights, self.bias, 0, False, False)
        return (h.squeeze(0), c.squeeze(0)) if single else (h, c)


def _is_exported(input: Any) -> bool:
    """Whether ``torch.onnx.export`` looks on, which knows PyTorch's own modules alone: it is shown what those do. Symbols of
    ``torch.fx``, which does so as well, are refused."""
    if isinstance(input, Proxy):
        raise RuntimeError(
            "torch.fx takes only PyTorch's own modules for one step: call fastlstm.torch.restore(model) first, "
            "or let is_leaf_module of the tracer return True for this module"
        )
    return torch.onnx.is_in_onnx_export() and not torch.compiler.is_dynamo_compiling()


def wrong_dtype(names: Sequence[str], weights: list[Tensor], module: str) -> str:
    """What is wrong with the parameters' dtypes, and what to call; empty if nothing is."""
    for name, weight in zip(names, weights, strict=True):
        if weight.dtype not in (torch.float32, torch.float64):
            advice = "" if weight.dtype.is_complex else f": call {module}.float()"  # which would drop the imaginary part
            return f"{name} is {weight.dtype}; fastlstm computes in float32 and float64{advice}"
        if weight.dtype != weights[0].dtype:
            return f"{name} is {weight.dtype}, {names[0]} {weights[0].dtype}: call {module}.float() or {module}.double()"
    return ""


def _checked_weights(module: Any, names: Sequence[str]) -> tuple[list[Tensor], Any]:
    """A module's parameters and their dtype, which is that of everything else. Of their shapes packing checks all but the first.

    Every one is looked at: PyTorch would hand a call with one on the meta device to what knows shapes alone, and its output
    would be whatever memory held.
    """
    weights = [getattr(module, name) for name in names]
    dtype = getattr(weights[0], "dtype", None)
    for name, weight in zip(names, weights, strict=True):
        if weight is None:
            raise TypeError(f"{name} must be a tensor, got None; a module without biases is made with bias=False")
        if weight.dtype != dtype or dtype not in (torch.float32, torch.float64):
            raise TypeError(wrong_dtype(names, weights, "module"))
        device = weight.device.type
        if device == "meta":
            raise TypeError(f"{name} is on the meta device, without values: call module.to_empty(device='cpu') and load them")
        if device != "cpu":
            raise TypeError(f"{name} is on {weight.device}; fastlstm runs on CPUs: call module.cpu(), or use torch.nn.LSTM")
    if torch.is_autocast_enabled("cpu"):
        raise TypeError(
            "autocast is on, and this module computes in its own dtype only; call it with tensors of that dtype "
            "inside torch.autocast('cpu', enabled=False)"
        )
    first = 4 * module.hidden_size, module.input_size
    if not torch.jit.is_tracing() and weights[0].shape != first:  # it would warn
        raise shape_error(names[0], first, tuple(weights[0].shape))
    return weights, dtype


def _check_tensor(name: str, value: Any, dtype: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.device.type != "cpu":
        advice = f"; pass {name}.cpu()" if value.device.type != "meta" else ", which has no values"
        raise TypeError(f"{name} must be on the CPU as the parameters are, got {value.device}{advice}")
    if value.dtype != dtype:
        like = "" if dtype == torch.bool else " as the parameters are"
        raise TypeError(f"{name} must be {dtype}{like}, got {value.dtype}; pass {name}.to({dtype})")
    if not torch.compiler.is_compiling() and value.is_nested:  # older compilers do not know it
        packed = f"torch.nn.utils.rnn.pack_sequence({name}.unbind(), enforce_sorted=False)"
        advice = f"; an LSTM takes {packed}" if name == "input" else ""
        raise TypeError(f"{name} must be a dense tensor, got a nested tensor{advice}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}; pass {name}.to_dense()")


def _check_packed(batch_sizes: Tensor, order: Tensor | None) -> None:
    """Whether a PackedSequence's numbers of rows agree; where they are known."""
    if not len(batch_sizes):
        raise ValueError("input.batch_sizes must have at least one step, got none")
    rows = int(batch_sizes[0])
    if order is not None and len(order) != rows:
        raise ValueError(f"input.sorted_indices must have one index for each of the {rows} rows, got {len(order)}")


def _check_resets(resets: Any, expected: tuple[int, ...]) -> None:
    _check_tensor("resets", resets, torch.bool)
    if tuple(resets.shape) != expected:
        raise booleans_error("resets", expected, tuple(resets.shape))


def _checked_state(hx: Any, rows: tuple[int, ...], H: int, proj_size: int, dtype: Any) -> State:
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        given = f"{type(hx).__name__} of {len(hx)}" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"hx must be a pair (h_0, c_0), got {given}")
    h_0, c_0 = hx
    h_shape, c_shape = state_shapes(rows, H, proj_size)
    for name, value, expected in (("h_0", h_0, h_shape), ("c_0", c_0, c_shape)):
        _check_tensor(name, value, dtype)
        if value.shape != expected:
            raise shape_error(name, expected, tuple(value.shape))
    return h_0, c_0
