"""PyTorch's modules for ours where they stand in a model, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fastlstm.torch.modules import LSTM, LSTMCell, wrong_dtype

__all__ = ["Replaced", "replace", "restore"]


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

    __module__ = "fastlstm.torch"

    swapped: tuple[str, ...]
    left: dict[str, str]


def replace(model: Any) -> Replaced:
    """Let every ``torch.nn.LSTM`` and ``torch.nn.LSTMCell`` of a model run on fastlstm, where it stands.

    The module objects stay the same and get another class: names, parameters, hooks, training mode and whatever refers to them
    stay as they are, and so do optimisers and state dicts.

    Single steps of few rows and units are what it does not make faster: with gradients an :class:`LSTMCell` of B 1, H 16 takes
    twice as long as PyTorch's, of B 32, H 64 and less 1.6 times. Whole sequences through an :class:`LSTM` do not have that cost.

    Afterwards ``isinstance(module, torch.nn.LSTM)`` is False. What goes by the class passes such layers by in silence, as
    ``model.apply(init)`` with that test and ``torch.ao.quantization.quantize_dynamic`` do: let them run before, or ask for
    ``torch.nn.RNNBase``. Parametrizations (``torch.nn.utils.parametrize``) come after: a module that has one is left. Before
    ``torch.export`` or ``torch.jit.trace`` for a runtime without fastlstm, call :func:`restore`.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    Replaced
        What was swapped, and what was left and why. Left are subclasses, whose calls may differ; quantised, scripted and
        compiled modules; modules whose own ``forward`` was set; sizes of 0; and parameters that are not on the CPU, have several
        dtypes, or are neither float32 nor float64. Modules on the "meta" device, whose values are yet to come, are swapped.

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

    For tools that know PyTorch's own modules alone: ``torch.jit.script``, ``torch.fx``, quantisation, and runtimes that are given
    what ``torch.export`` or ``torch.jit.trace`` makes. (``torch.onnx.export`` of a module is shown those by itself, of an
    ExportedProgram not.)

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
    RuntimeError
        If a module was parametrized since; nothing has changed then.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if torch.nn.utils.parametrize.is_parametrized(module) and type(module).__bases__ in ((LSTM,), (LSTMCell,)):
            advice = "call torch.nn.utils.parametrize.remove_parametrizations on it first, or parametrize after restore"
            raise RuntimeError(f"{name or 'model'} was parametrized after replace: {advice}")
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
            return "scripted, which fastlstm does not support: replace the LSTMs of the original, unscripted model"
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
    return wrong_dtype(list(parameters), list(parameters.values()), "model")
