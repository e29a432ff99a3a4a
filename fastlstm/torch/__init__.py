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

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastlstm.torch needs PyTorch: pip install torch") from error

from fastlstm.torch.modules import LSTM, LSTMCell
from fastlstm.torch.packed import frozen
from fastlstm.torch.swap import Replaced, replace, restore

__all__ = ["LSTM", "LSTMCell", "Replaced", "frozen", "replace", "restore"]
