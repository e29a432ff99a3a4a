"""fastlstm inside PyTorch: modules in the place of ``torch.nn.LSTM`` and ``torch.nn.LSTMCell``, on CPUs.

>>> import fastlstm.torch
>>> fastlstm.torch.replace(model)                    # every LSTM of a model, where it stands; optimisers go on working
>>> lstm = fastlstm.torch.LSTM(64, 128, num_layers=2)  # or a fresh one: the same arguments, parameters and calls as nn.LSTM
>>> fastlstm.torch.restore(model)                    # and back, for what knows torch.nn alone, as torch.onnx.export does

*What is shared.* Inputs, outputs, states and gradients are tensors over the engine's own memory: nothing is copied but an input
whose last axis is not contiguous, and packed sequences, which are spread out and gathered again (their padding is not computed).
PyTorch cannot resize what comes out (``resize_``, ``out=``), as all tensors over others' memory; what goes in stays as it was.
The parameters are ordinary ``torch.nn.Parameter``; the module keeps nothing else.

*When weights are repacked.* The engine reads weights in an order of its own. They are packed at the first call, and again when a
call finds that a parameter no longer has the bytes that were packed. So every change counts, also those that PyTorch's version
counters miss (``p.data.copy_(...)``, ``p.numpy()[...] = ...``). Looking takes one reading of the weights, which is felt where a
call is a single step of few rows: inside ``with fastlstm.torch.frozen():`` nothing is compared. What is packed goes when the
memory of the first parameter goes.

*Autograd.* A call that needs gradients keeps a :class:`fastlstm.Tape`, which has copies of all it needs: inputs, outputs and
parameters may be changed in place before ``backward()``. With ``retain_graph=True`` gradients are taken from a copy of the tape.

*Second derivatives.* There are none: who asks for gradients of gradients (``create_graph=True``), by whatever stands before or
behind an LSTM, gets an error. What ``torch.compile`` makes refuses them for all of its graph, as PyTorch does, with one gap:
asked for by an input or a parameter alone (``torch.autograd.grad(d_x.sum(), x)``) PyTorch takes them for missing.

*Threads.* At most ``fastlstm.get_num_threads()``, and at most ``torch.get_num_threads()``. The interpreter is free meanwhile.

*torch.func.* ``grad``, ``vjp``, ``jacrev``, ``vmap`` and ``is_grads_batched=True`` work, also inside each other. What is mapped
over is called once for each of its parts. ``torch.compile`` breaks its graph at a call inside them, as at ``torch.nn.LSTM``.

*Operators.* The calls are custom operators without side effects, ``fastlstm::lstm`` and ``fastlstm::lstm_backward``, wherever
something but autograd looks at them. ``torch.compile`` keeps them whole: no graph break, nothing unrolled. What
``torch.jit.trace`` and ``torch.export`` make keeps a tape at every call if a parameter needed gradients when it was made
(``module.requires_grad_(False)`` before).
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import itertools
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.utils.dlpack import to_dlpack

import fastlstm
from fastlstm import _engine
from fastlstm import threads as _threads
from fastlstm.arrays import Array, contiguous, shape_error
from fastlstm.tape import Tape
from fastlstm.weights import Weights, parameter_shapes

__all__ = ["LSTM", "LSTMCell", "Replaced", "frozen", "replace", "restore"]

Tensor = Any  # torch.Tensor; the type checker does without PyTorch
State = tuple[Tensor, Tensor]


# ---- Modules -------------------------------------------------------------------------------------------------------------------


def _refuse_scripting(module: Any) -> NoReturn:
    raise RuntimeError(
        "torch.jit.script compiles PyTorch's own modules alone: call fastlstm.torch.restore(model) before, or torch.jit.trace"
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

    def forward(self, input: Any, hx: State | None = None) -> tuple[Any, State]:
        """Run whole sequences.

        Parameters
        ----------
        input : tensor, shape (T, B, I), or PackedSequence
            ``(B, T, I)`` if `batch_first`; ``(T, I)`` for one sequence. Of the parameters' dtype.
        hx : (h_0, c_0), optional
            Shapes (L*D, B, P or H) and (L*D, B, H), without B for one sequence. Zeros if left out.

        Returns
        -------
        output : tensor, shape (T, B, D*(P or H)), or PackedSequence
            Laid out as `input`.
        (h_n, c_n) : tensors of the shapes of `hx`
            The state after each row's last step, rows in the order of the caller.

        Raises
        ------
        ValueError
            If a shape does not fit, or a PackedSequence has other sizes than its data.
        TypeError
            If a tensor has another dtype than the parameters, is not on the CPU, or autocast is on; the message says what to do.
        """
        weights = [getattr(self, name) for name in self._flat_weights_names]
        dtype = _check_weights(self._flat_weights_names, weights)
        packed = isinstance(input, torch.nn.utils.rnn.PackedSequence)
        x, batch_sizes, order, back = input if packed else (input, *[None] * 3)
        _check_tensor("input", x, dtype)
        single, batch_first = False, self.batch_first and not packed
        if packed:
            if x.dim() != 2 or x.shape[1] != self.input_size:
                raise shape_error("input.data", ("tokens", self.input_size), tuple(x.shape))
            B = batch_sizes[0] if order is None else order.shape[0]
            B = B if torch.jit.is_tracing() else int(B)  # a trace is for any number of rows
        else:
            single = x.dim() == 2
            if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
                raise shape_error("input", (*(("B", "T") if batch_first else ("T", "B")), self.input_size), tuple(x.shape))
            if single:
                x, batch_first = x.unsqueeze(1), False
            B = x.shape[0 if batch_first else 1]

        states, P = self.num_layers * (2 if self.bidirectional else 1), self.proj_size or self.hidden_size
        h, c = None, None
        if hx is not None:
            h, c = _pair(hx)
            for name, value, size in (("h_0", h, P), ("c_0", c, self.hidden_size)):
                _check_tensor(name, value, dtype)
                expected = (states, size) if single else (states, B, size)
                if tuple(value.shape) != expected:
                    raise shape_error(name, expected, tuple(value.shape))
            if single:
                h, c = h.unsqueeze(1), c.unsqueeze(1)
            if order is not None:
                h, c = h.index_select(1, order), c.index_select(1, order)
        elif packed:  # the operator knows the number of rows from the state
            h, c = x.new_zeros(states, B, P), x.new_zeros(states, B, self.hidden_size)

        if self.dropout and self.training and self.num_layers > 1:
            output, h, c = self._layer_by_layer(x, h, c, batch_sizes, weights, batch_first)
        else:
            output, h, c = _call(x, h, c, batch_sizes, weights, self.bias, self.proj_size, self.bidirectional, batch_first)
        if back is not None:
            h, c = h.index_select(1, back), c.index_select(1, back)
        if packed:
            output = torch.nn.utils.rnn.PackedSequence(output, batch_sizes, order, back)
        elif single:
            output, h, c = output.squeeze(1), h.squeeze(1), c.squeeze(1)
        return output, (h, c)

    def _layer_by_layer(
        self, y: Tensor, h: Tensor | None, c: Tensor | None, batch_sizes: Tensor | None, weights: list[Tensor], batch_first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each layer a network of its own, with dropout between; time first, as ``torch.nn.LSTM`` draws its numbers."""
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
            y, *state = _call(y, h_0, c_0, batch_sizes, tensors, *options)
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
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][: 4 if self.bias else 2]
        weights = [getattr(self, name) for name in names]
        dtype = _check_weights(names, weights)
        _check_tensor("input", input, dtype)
        single = input.dim() == 1
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise shape_error("input", ("B", self.input_size), tuple(input.shape))
        x = input[None, None] if single else input[None]
        h, c = None, None
        if hx is not None:
            h, c = _pair(hx)
            expected = (self.hidden_size,) if single else (x.shape[1], self.hidden_size)
            for name, value in (("h_0", h), ("c_0", c)):
                _check_tensor(name, value, dtype)
                if tuple(value.shape) != expected:
                    raise shape_error(name, expected, tuple(value.shape))
            h, c = (h[None, None], c[None, None]) if single else (h[None], c[None])
        _, h, c = _call(x, h, c, None, weights, self.bias, 0, False, False)
        return (h[0, 0], c[0, 0]) if single else (h[0], c[0])


@dataclass(frozen=True)
class Replaced:
    """What :func:`replace` did, by the names of ``model.named_modules()`` (the model itself is ``""``).

    Attributes
    ----------
    swapped : tuple of str
        Modules that run on fastlstm now.
    left : dict of str to str
        LSTMs that it left as they were, and why.
    """

    swapped: tuple[str, ...]
    left: dict[str, str]


def replace(model: Any) -> Replaced:
    """Let every ``torch.nn.LSTM`` and ``torch.nn.LSTMCell`` of a model run on fastlstm, where it stands.

    The module objects stay the same and get another class: names, parameters, hooks, training mode and whatever refers to them
    stay as they are, and so do optimisers and state dicts.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    Replaced
        What was swapped, and what was left and why: subclasses, whose calls may differ; quantised, scripted and compiled modules;
        a ``forward`` of the module's own; sizes of 0; parameters that are on another device than the CPU, of several dtypes, or
        neither float32 nor float64. Modules on "meta", whose values are still to come, are swapped.

    Raises
    ------
    TypeError
        If `model` is not a module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    swapped: dict[str, Any] = {}
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, (LSTM, LSTMCell)) or not _is_lstm(module):
            continue
        reason = _reason_to_leave(module)
        if reason:
            left[name] = reason
        else:
            swapped[name] = module
    for module in swapped.values():
        module.__class__ = LSTM if type(module) is torch.nn.LSTM else LSTMCell
    return Replaced(tuple(swapped), left)


def restore(model: Any) -> tuple[str, ...]:
    """The way back from :func:`replace`: every LSTM of a model runs on ``torch.nn`` again, where it stands.

    For tools that know PyTorch's own modules alone: ``torch.onnx.export``, ``torch.jit.script``, ``torch.fx``, quantisation.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    tuple of str
        Modules that run on PyTorch now, by the names of ``model.named_modules()``: of the classes :class:`LSTM` and
        :class:`LSTMCell`, however they came to be, but not of their subclasses.

    Raises
    ------
    TypeError
        If `model` is not a module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    found = {name: module for name, module in model.named_modules() if type(module) in (LSTM, LSTMCell)}
    for module in found.values():
        module.__class__ = torch.nn.LSTM if type(module) is LSTM else torch.nn.LSTMCell
        if isinstance(module, torch.nn.LSTM):
            module._init_flat_weights()
    return tuple(found)


def _is_lstm(module: Any) -> bool:
    names = ("LSTM", "LSTMCell", "QuantizableLSTM")  # those of torch.ao, which are no subclasses; a script remembers its class
    kind = type(module)
    foreign = kind.__module__.startswith("torch.") and kind.__name__ in names  # many models are called LSTM, too
    return isinstance(module, (torch.nn.LSTM, torch.nn.LSTMCell)) or foreign or getattr(module, "original_name", None) in names


def _reason_to_leave(module: Any) -> str:
    kind = type(module)
    if kind not in (torch.nn.LSTM, torch.nn.LSTMCell):
        if isinstance(module, torch.jit.ScriptModule):
            return "scripted, which fastlstm's modules cannot be: replace the LSTMs of the model it was made of"
        if ".quantiz" in kind.__module__ or ".ao." in kind.__module__:
            return f"quantised ({kind.__module__}.{kind.__qualname__})"
        return f"{kind.__module__}.{kind.__qualname__} is not torch.nn's own class: its calls may differ"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled: replace before compile()"
    if "forward" in vars(module):  # a wrapper's, which would go on calling torch.nn's
        return "forward was set on the module itself: replace before that"
    for name in ("input_size", "hidden_size"):
        if getattr(module, name) < 1:
            return f"{name} is {getattr(module, name)}; fastlstm needs 1 at least"
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        if parameter.device.type not in ("cpu", "meta"):
            return f"{name} is on {parameter.device}; fastlstm runs on CPUs: call model.cpu()"
    return _wrong_dtype(list(parameters), list(parameters.values()), "model")


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Your word that no parameter changes inside: what is packed is used without comparing it with the parameters.

    It holds for the calls of this thread. Parameters that were moved, replaced or never packed are compared and packed as ever.
    A change is seen by the next call outside. Inside of what ``torch.compile`` compiles it does nothing: put it around the call.

    Examples
    --------
    >>> with torch.inference_mode(), fastlstm.torch.frozen():
    ...     for x in frames:
    ...         h, c = cell(x, (h, c))
    """
    if torch.compiler.is_compiling():  # compilers do not know context variables
        yield
        return
    token = _frozen.set(True)
    try:
        yield
    finally:
        _frozen.reset(token)


_frozen: contextvars.ContextVar[bool] = contextvars.ContextVar("fastlstm.torch.frozen", default=False)


# ---- Checks --------------------------------------------------------------------------------------------------------------------


def _wrong_dtype(names: list[str], weights: list[Tensor], module: str) -> str:
    """What is wrong with the parameters' dtypes, and what to call; empty if nothing is."""
    for name, weight in zip(names, weights, strict=True):
        if weight.dtype not in (torch.float32, torch.float64):
            advice = "" if weight.dtype.is_complex else f": call {module}.float()"  # which would drop the imaginary part
            return f"{name} is {weight.dtype}; fastlstm computes in float32 and float64{advice}"
        if weight.dtype != weights[0].dtype:
            return f"{name} is {weight.dtype}, {names[0]} {weights[0].dtype}: call {module}.float() or {module}.double()"
    return ""


def _check_weights(names: list[str], weights: list[Tensor]) -> Any:
    """The dtype of the first parameter, which is that of everything else.

    Every one is looked at: PyTorch would hand a call with one on the meta device to what knows shapes alone, and its output
    would be whatever memory held.
    """
    dtype = weights[0].dtype
    for name, weight in zip(names, weights, strict=True):
        if weight.dtype != dtype or dtype not in (torch.float32, torch.float64):
            raise TypeError(_wrong_dtype(names, weights, "module"))
        device = weight.device.type
        if device == "meta":
            raise TypeError(f"{name} is on the meta device, without values: call module.to_empty(device='cpu') and load them")
        if device != "cpu":
            raise TypeError(f"{name} is on {weight.device}; fastlstm runs on CPUs: call module.cpu(), or use torch.nn.LSTM")
    if torch.is_autocast_enabled("cpu"):
        raise TypeError(
            "autocast is on, which would compute in another dtype; call this module with tensors of its own dtype "
            "inside torch.autocast('cpu', enabled=False)"
        )
    return dtype


def _check_tensor(name: str, value: Any, dtype: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.device.type != "cpu":
        advice = f"; pass {name}.cpu()" if value.device.type != "meta" else ", which has no values"
        raise TypeError(f"{name} must be on the CPU as the parameters are, got {value.device}{advice}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be {dtype} as the parameters are, got {value.dtype}; pass {name}.to({dtype})")
    if not torch.compiler.is_compiling() and value.is_nested:  # older compilers do not know it
        packed = f"torch.nn.utils.rnn.pack_sequence({name}.unbind(), enforce_sorted=False)"
        raise TypeError(f"{name} must be a dense tensor, got a nested tensor; an LSTM takes {packed}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}; pass {name}.to_dense()")


def _pair(hx: Any) -> State:
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        given = f"{type(hx).__name__} of {len(hx)}" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"hx must be a pair (h_0, c_0), got {given}")
    return hx[0], hx[1]


# ---- Operators -----------------------------------------------------------------------------------------------------------------


def _call(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    proj_size: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (x, *weights) if h_0 is None else (x, h_0, c_0, *weights)
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in inputs):
        raise RuntimeError(_FORWARD)
    if torch._C._are_functorch_transforms_active():
        output, h_n, c_n = _call_transformed(x, h_0, c_0, batch_sizes, bias, proj_size, bidirectional, batch_first, *weights)
        return output, h_n, c_n
    # A trace is for calls with and without gradients
    wanting = [tensor for tensor in inputs if tensor.requires_grad] if torch.is_grad_enabled() or torch.jit.is_tracing() else []
    options = bias, proj_size, bidirectional, batch_first
    if _is_plain(*inputs):
        if wanting:
            output, h_n, c_n, _ = _Plain.apply(x, h_0, c_0, batch_sizes, *options, *weights)
        else:
            output, h_n, c_n, _ = _forward(x, h_0, c_0, batch_sizes, weights, *options, None)
        return output, h_n, c_n
    record = None
    if wanting:
        # Neither compilers nor traces may hold a torch.autograd.Function. With a new tensor each time, as a compiler merges equal
        # calls, but each needs a tape of its own; of all inputs, as a trace does not know which will ask for gradients
        noted = torch.compiler.is_compiling() or torch.jit.is_tracing()
        nothing = [torch.empty(0, dtype=x.dtype), *(tensor[:0].reshape(-1) for tensor in inputs)] if noted else []
        record = torch.cat(nothing) if noted else _Origin.apply(*wanting)
    output, h_n, c_n, _ = _lstm(x, h_0, c_0, batch_sizes, weights, *options, record)
    return output, h_n, c_n


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether nobody but autograd looks on: then what the operators do is done without them, which take 0.2 ms a call."""
    ordinary = torch.Tensor, torch.nn.Parameter
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or any(type(t) not in ordinary or torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors if t is not None)
    )


def _forward(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    proj_size: int,
    bidirectional: bool,
    batch_first: bool,
    record: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``fastlstm::lstm``: x is (T, B, I), (B, T, I) if batch_first, or packed data (tokens, I); the last result names a tape."""
    network = _network(weights, bias, proj_size, bidirectional, batch_first)
    state = None if h_0 is None else (_array(h_0), _array(c_0))
    ragged = None if batch_sizes is None else _Ragged(_array(batch_sizes), len(x))
    array = _array(x)
    lengths = None
    if ragged is not None:
        array, lengths = ragged.spread(array), ragged.lengths
    if record is not None:
        tape = network.record(array, state, lengths=lengths, threads=_allowance())
        output, (h_n, c_n), name = tape.output, tape.state, _remember(tape, ragged)
    else:
        output, (h_n, c_n) = network(array, state, lengths=lengths, threads=_allowance())
        name = torch.empty(0, dtype=torch.int64)
    if ragged is not None:
        output = ragged.gather(output)
    return torch.from_numpy(output), torch.from_numpy(h_n), torch.from_numpy(c_n), name


def _forward_shapes(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    proj_size: int,
    bidirectional: bool,
    batch_first: bool,
    record: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B = x.shape[0 if batch_first else 1] if h_0 is None else h_0.shape[1]
    H, D = weights[0].shape[0] // 4, 2 if bidirectional else 1
    P, records = proj_size or H, len(weights) // _per_record(bias, proj_size)
    return (
        x.new_empty((*x.shape[:-1], D * P)),
        x.new_empty((records, B, P)),
        x.new_empty((records, B, H)),
        x.new_empty((0 if record is None else 1,), dtype=torch.int64),
    )


def _backward(
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

    ``again``: whether the tape may be asked once more.
    """
    kept = _tapes.get(int(tape)) if len(tape) else None
    if kept is None:
        raise RuntimeError(
            "the tape of this LSTM call is gone: a hook on saved tensors put a copy in the place of its tensor; "
            "let torch.autograd.graph.saved_tensors_hooks return integer tensors as they are"
        )
    if kept.used:
        raise RuntimeError("the gradients of this LSTM call were taken before; the first time needs retain_graph=True")
    recorded, ragged = kept.tape, kept.ragged
    if again or _graph_is_retained():
        recorded = copy.copy(recorded)
    else:
        kept.used = True
    d_y, d_h, d_c = (None if d is None else _array(d) for d in (d_output, d_h_n, d_c_n))
    if ragged is not None and d_y is not None:
        d_y = ragged.spread(d_y)
    grads = recorded.backward(d_y, (d_h, d_c), input=needs_input, threads=_allowance())
    d_x = np.empty(0, grads.state[0].dtype) if grads.input is None else grads.input
    if ragged is not None and needs_input:
        d_x = ragged.gather(d_x)
    return [torch.from_numpy(array) for array in (d_x, *grads.state, *grads.parameters.values())]


def _backward_shapes(
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
    *x, records, B, H = shapes
    tensors = [tuple(x) if needs_input else (0,), (records, B, proj_size or H), (records, B, H)]
    tensors += _weight_shapes(shapes, bias, proj_size, bidirectional)
    return [tape.new_empty(shape, dtype=dtype) for shape in tensors]


def _weight_shapes(shapes: Sequence[int], bias: bool, proj_size: int, bidirectional: bool) -> list[tuple[int, ...]]:
    *x, records, _, H = shapes
    sizes: dict[str, Any] = {"bias": bias, "bidirectional": bidirectional, "proj_size": proj_size}
    return list(parameter_shapes(x[-1], H, records // (2 if bidirectional else 1), **sizes).values())


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What autograd keeps of a call: the name of the tape, which lives as long as that tensor, and sizes."""
    x, h_0, _, _, _, bias, proj_size, bidirectional, _, record = inputs
    _, _, c_n, tape = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(tape, record)
    ctx.has_state = h_0 is not None
    ctx.shapes, ctx.dtype = [*x.shape, *c_n.shape], x.dtype
    ctx.options = bias, proj_size, bidirectional


def _differentiate(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, _: None) -> tuple[Any, ...]:
    needs = *ctx.needs_input_grad[:3], ctx.needs_input_grad[4]
    *d_inputs, d_weights = _gradients(ctx, needs, d_output, d_h_n, d_c_n)
    return (*d_inputs, None, d_weights, *[None] * 5)


def _gradients(
    ctx: Any, needs: tuple[Any, ...], d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None
) -> tuple[Any, ...]:
    """Of x, h_0 and c_0, and a list of those of the weights; None for what is not needed."""
    *needs_inputs, needs_weights = needs
    given = d_output, d_h_n, d_c_n
    if all(d is None for d in given):
        return None, None, None, [None] * len(needs_weights)
    tape, record = ctx.saved_tensors
    backward: Any = _backward if _is_plain(*given) else _lstm_backward
    with torch.no_grad():
        grads = backward(tape, *given, ctx.shapes, *ctx.options, needs_inputs[0], ctx.dtype)
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


class _Plain(torch.autograd.Function):
    """The operators' derivatives for a call that is no operator. The last result is its own origin, see :class:`_Origin`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:  # as _Transformed's
        tensors, options, weights = arguments[:4], arguments[4:8], arguments[8:]
        inputs = (*tensors, list(weights), *options, weights[0].new_empty(0))
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return (*output[:3], inputs[-1])

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, _: None) -> tuple[Any, ...]:
        needs = *ctx.needs_input_grad[:3], ctx.needs_input_grad[8:]
        *d_inputs, d_weights = _gradients(ctx, needs, d_output, d_h_n, d_c_n)
        return (*d_inputs, *[None] * 5, *d_weights)


class _Origin(torch.autograd.Function):
    """An empty tensor that comes of all inputs that ask for gradients, and holds none of them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.count = len(inputs)
        return inputs[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None,) * ctx.count


_SECOND = "fastlstm's LSTM has no second derivatives (create_graph=True); use torch.nn.LSTM for gradients of gradients"
_FORWARD = "fastlstm's LSTM has no forward-mode derivatives (jvp, jacfwd); use torch.nn.LSTM for those"


class _Once(torch.autograd.Function):
    """The first ``count`` tensors, gradients that have none of their own, come of all others: who asks for those is told."""

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
        raise RuntimeError(_FORWARD)


_X = "Tensor input, Tensor? h_0, Tensor? c_0, Tensor? batch_sizes, Tensor[] weights, "
_D = "Tensor tape, Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, SymInt[] shapes, "
_OPTIONS = "bool bias, SymInt proj_size, bool bidirectional, "
_lstm = torch.library.custom_op(
    "fastlstm::lstm",
    _forward,
    mutates_args=(),
    schema=f"({_X}{_OPTIONS}bool batch_first, Tensor? record) -> (Tensor, Tensor, Tensor, Tensor)",
)
_lstm_backward = torch.library.custom_op(
    "fastlstm::lstm_backward",
    _backward,
    mutates_args=(),
    schema=f"({_D}{_OPTIONS}bool needs_input, ScalarType dtype, bool again=False) -> Tensor[]",
)
_lstm.register_fake(_forward_shapes)
_lstm.register_autograd(_differentiate, setup_context=_keep)
_lstm_backward.register_fake(_backward_shapes)
_one = torch.library.custom_op("fastlstm::one", torch.ones_like, mutates_args=(), schema="(Tensor origin) -> Tensor")
_one.register_autograd(_Once.backward)
_one.register_fake(torch.ones_like)


def _refusing(origins: list[Tensor], grads: list[Tensor]) -> Any:
    """The same gradients, come of the `origins` by way of :class:`_Once`."""
    if torch._C._functorch.is_legacy_batchedtensor(grads[-1]):  # with is_grads_batched only what is inside has a graph that lasts
        one = _one(sum((origin.reshape(-1)[:0].sum() for origin in origins[1:]), origins[0].sum()))
        return [gradient * one for gradient in grads]
    return _Once.apply(len(grads), *grads, *origins)


# ---- torch.func ----------------------------------------------------------------------------------------------------------------


@torch._disable_dynamo  # type: ignore[untyped-decorator]  # a compiler breaks its graph here, as at torch.nn.LSTM
def _call_transformed(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    output, h_n, c_n, _ = _Transformed.apply(*arguments)
    return output, h_n, c_n


class _Transformed(torch.autograd.Function):
    """A call inside torch.func's transforms, told as these ask for it; outside of them :class:`_Plain` costs less.

    What is mapped over (vmap, jacrev, gradients of each row) is called once for each of its parts.
    """

    @staticmethod
    def forward(
        x: Tensor,
        h_0: Tensor | None,
        c_0: Tensor | None,
        batch_sizes: Tensor | None,
        bias: bool,
        proj_size: int,
        bidirectional: bool,
        batch_first: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        record = torch.empty(0)  # whether a gradient is wanted is known to the transforms around this one
        result: tuple[Tensor, ...] = _lstm(
            x, h_0, c_0, batch_sizes, list(weights), bias, proj_size, bidirectional, batch_first, record
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, h_0, c_0, _, bias, proj_size, bidirectional, _, *weights = inputs
        _, _, c_n, tape = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(tape)
        ctx.save_for_backward(tape, x, h_0, c_0, *weights)
        ctx.shapes, ctx.dtype = [*x.shape, *c_n.shape], x.dtype
        ctx.options = bias, proj_size, bidirectional

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, _: None) -> tuple[Any, ...]:
        tape, x, h_0, c_0, *weights = ctx.saved_tensors
        given = d_output, d_h_n, d_c_n
        if all(d is None for d in given):
            return (None,) * (8 + len(weights))
        with torch.no_grad():
            grads = _lstm_backward(tape, *given, ctx.shapes, *ctx.options, ctx.needs_input_grad[0], ctx.dtype, again=True)
        # They come of the inputs and of what was given: who asks how, at whatever level, is told
        origins = [tensor for tensor in (*given, x, h_0, c_0, *weights) if tensor is not None]
        d_x, d_h_0, d_c_0, *d_weights = _Once.apply(len(grads), *grads, *origins)
        states = (None, None) if h_0 is None else (d_h_0, d_c_0)
        return (d_x if ctx.needs_input_grad[0] else None, *states, *[None] * 5, *d_weights)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> None:
        raise RuntimeError(_FORWARD)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        if info.batch_size == 0:
            raise ValueError("fastlstm's LSTM cannot be mapped over an axis of size 0, whose results have no known shape")
        results = [_Transformed.apply(*part) for part in _parts(info.batch_size, in_dims, arguments)]
        *outputs, tapes = zip(*results, strict=True)
        return (*map(torch.stack, outputs), _together(list(tapes))), (0, 0, 0, 0)


def _parts(count: int, dims: Sequence[Any], arguments: Sequence[Any]) -> Iterator[list[Any]]:
    """The arguments of each of ``count`` calls, from some that have an axis for them."""
    for k in range(count):
        yield [value.select(dim, k) if isinstance(dim, int) else value for value, dim in zip(arguments, dims, strict=True)]


def _gradients_of_each(*arguments: Any) -> list[Tensor]:
    """``fastlstm::lstm_backward`` where tensors stand for several: inside vmap, or with ``is_grads_batched``."""
    shapes = _weight_shapes(*arguments[4:8])
    *first, parameters = _lstm_backward_flat(*arguments[:10], True)  # the next part may have the same tape
    flat = parameters.split([math.prod(shape) for shape in shapes])
    return [*first, *(part.view(shape) for part, shape in zip(flat, shapes, strict=True))]


def _backward_flat(*arguments: Any) -> tuple[Tensor, ...]:
    """``fastlstm::lstm_backward_flat``: the gradients of all weights in one tensor.

    An operator that gives no list is called once for each part by what ``is_grads_batched`` is made of, without a rule.
    """
    *first, d_weights = _split_off(_backward(*arguments))
    return (*first, torch.cat([d.flatten() for d in d_weights]))


def _backward_flat_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    *first, d_weights = _split_off(_backward_shapes(*arguments))
    return (*first, d_weights[0].new_empty(sum(d.numel() for d in d_weights)))


def _flat_of_each(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    results = [_lstm_backward_flat(*part) for part in _parts(info.batch_size, in_dims, arguments)]
    return tuple(map(torch.stack, zip(*results, strict=True))), (0, 0, 0, 0)


def _split_off(grads: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    d_x, d_h_0, d_c_0, *d_weights = grads
    return d_x, d_h_0, d_c_0, d_weights


def _keep_together(tapes: list[Tensor]) -> Tensor:
    """``fastlstm::tapes``: the names of several tapes in one tensor, which keeps all of them."""
    kept = np.stack([_array(tape) for tape in tapes]).view(_Several)
    kept.parts = [_tapes[int(number)] for number in kept.flat]
    return torch.from_numpy(kept)


def _keep_each_together(info: Any, in_dims: tuple[Any, ...], tapes: list[Tensor]) -> tuple[Tensor, int]:
    return _together([_together(part) for part in _parts(info.batch_size, in_dims[0], tapes)]), 0


_lstm_backward_flat = torch.library.custom_op(
    "fastlstm::lstm_backward_flat",
    _backward_flat,
    mutates_args=(),
    schema=f"({_D}{_OPTIONS}bool needs_input, ScalarType dtype, bool again) -> (Tensor, Tensor, Tensor, Tensor)",
)
_together = torch.library.custom_op("fastlstm::tapes", _keep_together, mutates_args=(), schema="(Tensor[] tapes) -> Tensor")
_lstm_backward_flat.register_fake(_backward_flat_shapes)
_together.register_fake(torch.stack)
for _key in ("Batched", "FuncTorchBatched"):  # of is_grads_batched, and of vmap
    _lstm_backward._lib.impl("lstm_backward", _gradients_of_each, _key)
if hasattr(_together, "register_vmap"):  # from PyTorch 2.5 on; before, vmap warns that it calls each part, and cannot be nested
    _lstm_backward_flat.register_vmap(_flat_of_each)
    _together.register_vmap(_keep_each_together)


# ---- Tapes ---------------------------------------------------------------------------------------------------------------------


class _Kept(np.ndarray[Any, np.dtype[Any]]):
    """The number of a tape, and the tape: PyTorch holds this array as long as it holds the tensor over it, and no longer."""

    tape: Tape[Any]
    ragged: _Ragged | None
    used: bool


class _Several(np.ndarray[Any, np.dtype[Any]]):
    """The numbers of several tapes, and those."""

    parts: list[_Kept]


_tapes: weakref.WeakValueDictionary[int, _Kept] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def _remember(tape: Tape[Any], ragged: _Ragged | None) -> Tensor:
    """A tensor that names a tape: operators hand on tensors and nothing else."""
    number = next(_numbers)
    kept = np.array([number], np.int64).view(_Kept)
    kept.tape, kept.ragged, kept.used = tape, ragged, False
    _tapes[number] = kept
    return torch.from_numpy(kept)


def _graph_is_retained() -> bool:
    """Whether a backward pass is under way that was asked to retain the graph; where PyTorch does not say, no."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is not None and torch._C._current_graph_task_id() >= 0 and bool(ask())


class _Ragged:
    """The layout of a packed sequence: its tokens step by step, of each step the rows that have it, longest row first."""

    def __init__(self, batch_sizes: Array, tokens: int) -> None:
        if (batch_sizes[1:] > batch_sizes[:-1]).any() or batch_sizes[-1] < 0 or batch_sizes.sum() != tokens:
            expected = f"numbers of rows that never rise and are {tokens} together, as input.data has"
            raise ValueError(f"input.batch_sizes must be {expected}, got {batch_sizes.tolist()!s:.100}")
        self.present = np.arange(batch_sizes[0]) < batch_sizes[:, None]  # (T, B)
        self.lengths = self.present.sum(axis=0)
        self.full = bool(self.present.all())

    def spread(self, tokens: Array) -> Array:
        """(tokens, n) as (T, B, n)."""
        if self.full:
            return tokens.reshape(*self.present.shape, tokens.shape[1])
        padded = np.zeros((*self.present.shape, tokens.shape[1]), tokens.dtype)
        padded[self.present] = tokens
        return padded

    def gather(self, padded: Array) -> Array:
        """(T, B, n) as (tokens, n)."""
        return padded.reshape(-1, padded.shape[2]) if self.full else padded[self.present]


# ---- Packed weights ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Packed:
    """A packed network, copies of the arrays it was packed of, and where these came from: the first one's memory, addresses."""

    memory: weakref.ref[Any]
    options: tuple[bool, int, bool, bool]
    places: list[int]
    arrays: list[Array]
    lstm: fastlstm.LSTM


# By the id of the first tensor's memory, until that dies, and the place in it. PyTorch does not swap tensors with weak references
# (torch.__future__.set_swap_module_params_on_conversion); their memory may have some
_networks: dict[tuple[int, int], _Packed] = {}


def _network(weights: list[Tensor], bias: bool, proj_size: int, bidirectional: bool, batch_first: bool) -> fastlstm.LSTM:
    """The packed network of these weights; packed now, if it is not there or not made of these very bytes.

    Version counters are not asked: they miss what is written through ``.data``, as gradcheck does, or through NumPy.
    """
    memory, options = weights[0].untyped_storage(), (bias, proj_size, bidirectional, batch_first)
    key = id(memory), weights[0].storage_offset()
    known = _networks.get(key)
    if known is not None and (known.memory() is not memory or known.options != options):
        known = None
    if known is not None and _frozen.get() and known.places == [weight.data_ptr() for weight in weights]:
        return known.lstm
    arrays = [contiguous(_array(weight)) for weight in weights]
    if known is not None and _engine.same_arrays(arrays, known.arrays) and arrays[0].dtype == known.lstm.dtype:
        return known.lstm
    records, directions = len(arrays) // _per_record(bias, proj_size), 2 if bidirectional else 1
    I, H = arrays[0].shape[1], len(arrays[0]) // 4
    sizes: dict[str, Any] = {"bias": bias, "bidirectional": bidirectional, "proj_size": proj_size}
    named = dict(zip(parameter_shapes(I, H, records // directions, **sizes), arrays, strict=True))
    lstm = fastlstm.LSTM.from_weights(Weights.from_named_tensors(named), batch_first)  # copies them

    def forget(dead: weakref.ref[Any]) -> None:
        if key in _networks and _networks[key].memory is dead:
            del _networks[key]

    copies = [tensor for _, tensor in lstm.weights.named_tensors()]
    places = [weight.data_ptr() for weight in weights]
    _networks[key] = _Packed(weakref.ref(memory, forget), options, places, copies, lstm)
    return lstm


def _per_record(bias: bool, proj_size: int) -> int:
    """Tensors of each layer and direction."""
    return 2 + 2 * bias + (proj_size > 0)


class _Lent:
    """A tensor as NumPy asks for others' memory."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return to_dlpack(self.tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


def _array(tensor: Tensor) -> Array:
    """The tensor's memory as an array to be read.

    ``tensor.numpy()`` would let nobody resize the tensor any more, as FSDP does with parameters. Through the tensor's own
    ``__dlpack__`` it would take twice as long.
    """
    array: Array = np.from_dlpack(_Lent(tensor.resolve_neg()))
    return array


def _allowance() -> int | None:
    """The most threads for a call: None leaves it to fastlstm, unless PyTorch was given fewer."""
    n: int = torch.get_num_threads()
    return n if n < _threads.get_num_threads() else None
