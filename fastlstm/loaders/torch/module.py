"""Live PyTorch objects: modules and state dicts. To read them PyTorch is not imported: whoever passes a module has done so."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from fastlstm.cell import PLAIN
from fastlstm.loaders.found import Contents, Found, listing, quoted
from fastlstm.loaders.live import lazy, read
from fastlstm.loaders.tensors import LazyTensor
from fastlstm.loaders.torch import nested
from fastlstm.loaders.torch.names import Group
from fastlstm.loaders.torch.names import find as find_lstms
from fastlstm.weights import Weights

__all__ = ["find", "to_module"]

# What torch.ao.quantization leaves in place of a recurrent layer's parameters: packed, readable by torch alone
PACKED = "_all_weight_values."
RECURRENT = ("LSTM", "LSTMCell", "GRU", "GRUCell", "RNN", "RNNCell")


def find(source: object) -> Contents:
    """List the LSTMs in a module or a state dict.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if isinstance(source, Mapping):
        every = [replace(group, tensors=_named(group.tensors)) for group in nested.groups(source, lazy)]
        packed = {key.partition(PACKED)[0].rstrip(".") for key in source if isinstance(key, str) and PACKED in key}
        found = nested.contents("a state dict", [*find_lstms(every, read), *map(_quantized, sorted(packed))], every)
        return found if every else replace(found, summary=found.summary + _other_values(source))
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.Module):
        raise TypeError(
            f"module_or_state_dict must be a torch.nn.Module or a state dict, got {type(source).__name__} "
            "(for a file: fastlstm.load)"
        )
    return _module(torch, source)


def _named(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: replace(tensor, name=name) for name, tensor in tensors.items()}


def _other_values(source: Mapping[Any, Any]) -> str:
    """What stands under the first name, where no tensor does."""
    for name, value in source.items():
        if isinstance(name, str) and not isinstance(value, Mapping):
            return f"; {quoted(name)} is of type {type(value).__name__}, a tensor or an array was expected"
    return ""


def _module(torch: Any, module: Any) -> Contents:
    classes = (torch.nn.RNNBase, torch.nn.RNNCellBase)
    modules = list(module.named_modules())
    tensors: dict[str, LazyTensor] = {}
    batch_first: dict[str, bool | None] = {}
    refused = []
    for path, part in modules:
        # A scripted module has lost its class and remembers the name
        if isinstance(part, classes) or getattr(part, "original_name", None) in RECURRENT:
            if _computes_otherwise(torch, part):
                refused.append(_other_forward(path, part))
                continue
            batch_first[path] = getattr(part, "batch_first", None)
            for name, value in part.state_dict().items():
                full = f"{path}.{name}" if path else name
                tensor = lazy(value, full)
                if tensor is not None:
                    tensors[full] = tensor
        elif type(part).__name__ in RECURRENT and "quantized" in type(part).__module__:
            refused.append(_quantized(path))
    whole = module.state_dict()
    for name in whole:
        if name.endswith("_raw") and name not in tensors:  # weight drop is a wrapper that holds what it drops from
            tensor = lazy(whole[name], name)
            if tensor is not None:
                tensors[name] = tensor
    others = tuple(name for name in whole if name not in tensors)  # of other wrappers: what they make weights of
    first = {id(part): path for path, part in modules}
    aliases: dict[str, tuple[str, ...]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if path != first[id(part)]:
            aliases[first[id(part)]] = (*aliases.get(first[id(part)], ()), path)
    found = [
        replace(
            item,
            info=replace(item.info, batch_first=batch_first.get(item.name)) if item.info else None,
            aliases=(*item.aliases, *aliases.get(item.name, ())),
        )
        for item in find_lstms([Group((), tensors, others)], read)
        if item.name in batch_first
    ]
    kinds = listing(sorted({type(part).__name__ for _, part in modules}), 5)
    return Contents([*found, *refused], f"a module made of {kinds}")


def _computes_otherwise(torch: Any, part: Any) -> bool:
    """Whether an LSTM has a ``forward`` that is not PyTorch's, nor one of ours, which compute the same."""
    if not isinstance(part, (torch.nn.RNNBase, torch.nn.RNNCellBase)) or isinstance(
        part, (torch.nn.GRU, torch.nn.GRUCell, torch.nn.RNN, torch.nn.RNNCell)
    ):
        return False
    ours = sys.modules.get("fastlstm.torch")
    known = [kind.forward for place in (torch.nn, ours) if place is not None for kind in (place.LSTM, place.LSTMCell)]
    return "forward" in vars(part) or type(part).forward not in known


def _other_forward(path: str, part: Any) -> Found:
    name = f"{type(part).__module__}.{type(part).__qualname__}"
    what = quoted(path) if path else "the module"
    problem = f"{what} is {name:.100}, an LSTM with a forward of its own, which may compute something else"
    return Found(path, problem=f"{problem}: pass its state_dict() if it does not")


def _quantized(path: str) -> Found:
    return Found(path, problem=f"{quoted(path)} is quantized: pass the model as it was before")


def to_module(weights: Weights, batch_first: bool) -> Any:
    """Make a ``torch.nn.LSTM``; the one function here that imports PyTorch.

    Raises
    ------
    ValueError
        If PyTorch has no such network.
    ImportError
        If PyTorch is not installed.
    """
    first, cells = weights.layers[0], [vars(layer.cell) for layer in weights.layers]
    changed = {name for cell in cells for name in cell if cell[name] != getattr(PLAIN, name)}
    variants = {
        "an initial state among the weights (h_0, c_0)": first.h_0 is not None,
        "peepholes": first.weight_peephole is not None,
        "a backward direction without a forward one (reverse)": weights.reverse,
        f"two directions that are not concatenated (merge_mode={weights.merge_mode!r})": weights.merge_mode != "concat",
        "activations other than sigmoid and tanh": not changed.isdisjoint(("gate", "candidate", "hidden")),
        "coupled input and forget gates": "coupled" in changed,
        "clipping": not changed.isdisjoint(("gate_clip", "cell_clip", "proj_clip")),
    }
    found = [what for what, present in variants.items() if present]
    if found:
        raise ValueError(
            f"torch.nn.LSTM cannot express this network, which has {', '.join(found)}: "
            "run it in fastlstm, where record() gives its gradients"
        )
    try:
        torch: Any = import_module("torch")
    except ImportError as error:
        raise ImportError("to_torch needs PyTorch: pip install torch") from error
    # On no device first: an initialisation would draw from the caller's random numbers
    module = torch.nn.LSTM(
        weights.input_size,
        weights.hidden_size,
        weights.num_layers,
        bias=weights.bias,
        batch_first=batch_first,
        bidirectional=weights.bidirectional,
        proj_size=weights.proj_size,
        device="meta",
        dtype=getattr(torch, weights.dtype.name),
    ).to_empty(device="cpu")
    module.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in weights.named_tensors()})
    return module
