"""fastlstm inside PyTorch: drop-in replacements for ``torch.nn.LSTM`` and ``torch.nn.LSTMCell`` on CPUs.

>>> import fastlstm.torch
>>> fastlstm.torch.replace(model)                    # every LSTM of a model, where it stands; optimisers go on working
>>> lstm = fastlstm.torch.LSTM(64, 128, num_layers=2)  # or a fresh one: the same arguments, parameters and calls as nn.LSTM
>>> fastlstm.torch.restore(model)                    # and back, for what knows torch.nn alone, as torch.onnx.export does

*Memory.* Tensors share their memory with the engine: inputs, outputs, states and gradients are not copied, except an input
whose last axis is not contiguous, and packed sequences, which are unpacked and packed again (their padding is not computed). As
with any tensor over foreign memory, outputs cannot be resized (``resize_``, ``out=``). Parameters are ordinary
``torch.nn.Parameter`` objects; the module stores nothing else.

*Repacking.* The engine stores weights in its own order. They are packed at the first call, and again whenever a call finds that
the bytes of a parameter have changed. So every change is noticed, including those that PyTorch's version counters miss
(``p.data.copy_(...)``, ``p.numpy()[...] = ...``). The check reads all weights once, which is noticeable if a call is a single
step with few rows; inside ``with fastlstm.torch.frozen():`` it is skipped. Packed weights are freed with the memory of the first
parameter; of what lies in one memory, as flattened parameters do, the 32 networks used last are kept.

*Autograd.* A call that needs gradients keeps a :class:`fastlstm.Tape` with copies of everything it needs, so inputs, outputs and
parameters may be modified in place before ``backward()``. With ``retain_graph=True`` gradients come from a copy of the tape.

*Second derivatives* are not supported: gradients of gradients (``create_graph=True``) through an LSTM raise an error, also if
they are requested through the layers before or after it. A graph made by ``torch.compile`` refuses them as a whole, as PyTorch
does, with one gap: requested for an input or a parameter alone (``torch.autograd.grad(d_x.sum(), x)``), PyTorch treats them as
missing.

*Threads.* A call uses at most ``fastlstm.get_num_threads()`` and ``torch.get_num_threads()`` threads, and releases the GIL.

*torch.func.* ``grad``, ``vjp``, ``jacrev``, ``vmap`` and ``is_grads_batched=True`` work, also nested. A mapped call runs once for
each element of the mapped axis. ``torch.compile`` breaks its graph at a call inside these, as it does at ``torch.nn.LSTM``.
``torch.func.functionalize`` is not supported.

*Operators.* Where more than autograd is involved, calls go through custom operators without side effects, ``fastlstm::lstm``
and ``fastlstm::lstm_backward``. ``torch.compile`` keeps them whole: no graph break, nothing unrolled. Models made by
``torch.jit.trace`` keep a tape where a call asks for gradients. Those made by ``torch.export`` keep one at every call if anything
required gradients when they were made, else at none; call ``module.requires_grad_(False)`` first if none is wanted. Where such a
model is loaded, ``import fastlstm.torch`` must come before ``torch.jit.load`` or ``torch.export.load``: it registers the
operators. Another runtime does not have them: call ``restore(model)`` before ``torch.export`` or ``torch.jit.trace`` if it is to
run the result, and before ``torch.export`` for ``torch.onnx.export`` of an ExportedProgram. (``torch.onnx.export`` of a module is
shown PyTorch's own by itself.)

*Classes.* An :class:`LSTM` is a ``torch.nn.RNNBase`` and no ``torch.nn.LSTM``, also after ``replace``: see there.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastlstm.torch needs PyTorch: pip install torch") from error

from fastlstm.torch.modules import LSTM, LSTMCell
from fastlstm.torch.packed import frozen
from fastlstm.torch.swap import Replaced, replace, restore

__all__ = ["LSTM", "LSTMCell", "Replaced", "frozen", "replace", "restore"]
