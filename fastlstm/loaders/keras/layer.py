"""A recurrent layer of Keras as an LSTM: its tensors against its plan, and their way to PyTorch's shapes.

Keras multiplies x W where PyTorch multiplies W x: kernel (I, 4H), recurrent_kernel (H, 4H), one bias (4H,), gates i, f, c, o.
CuDNNLSTM (Keras 2) keeps each gate's matrices as cuDNN does, so that its kernel's bytes are those of W itself, (H, I), its
recurrent kernel is W untransposed, and there are two biases.

References
----------
``_convert_rnn_weights`` in ``tf_keras/src/saving/legacy/hdf5_format.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastlstm.arrays import Array
from fastlstm.cell import PLAIN
from fastlstm.errors import FormatError
from fastlstm.loaders.found import Found, LSTMInfo, quoted
from fastlstm.loaders.keras.config import NO_ARGUMENTS, CellPlan, KerasArguments, Plan, plain_plan
from fastlstm.loaders.tensors import LazyTensor, check_size, dtypes, handed_over, one_precision, to_floats
from fastlstm.weights import LayerWeights, Weights, check_sizes

__all__ = ["CellTensors", "Layout", "Tensor", "found"]


class Tensor(LazyTensor, Protocol):
    """A tensor of a file or a live layer, with its name and how it is read."""

    @property
    def name(self) -> str: ...
    def read(self) -> Array: ...


@dataclass(frozen=True)
class CellTensors:
    """What an LSTMCell stores."""

    kernel: Tensor
    recurrent_kernel: Tensor
    bias: Tensor | None

    def all(self) -> list[Tensor]:
        return [self.kernel, self.recurrent_kernel, *([self.bias] if self.bias else [])]

    def is_lstm(self) -> bool:
        """Whether the shapes are those of a cell with four gates; of three for a GRU, of one for a plain RNN."""
        kernel, recurrent = self.kernel.shape, self.recurrent_kernel.shape
        return len(kernel) == len(recurrent) == 2 and kernel[1] == recurrent[1] == 4 * recurrent[0] > 0

    def is_cudnn(self) -> bool:
        """Whether there are two biases for each unit, as of a CuDNNLSTM."""
        return self.bias is not None and self.bias.shape == tuple(8 * size for size in self.recurrent_kernel.shape[:1])


@dataclass(frozen=True)
class Layout:
    """The cells that a layer stores, forward ones first."""

    cells: tuple[CellTensors, ...]
    bidirectional: bool = False


def found(
    name: str,
    layout: Layout | None,
    make_plan: Callable[[], Plan] | None,
    limit: float = math.inf,
    aliases: Sequence[str] = (),
    arguments: KerasArguments = NO_ARGUMENTS,
    version: int | None = None,
) -> Found:
    """One LSTM, or why it cannot be loaded.

    Parameters
    ----------
    name : str
    layout : Layout or None
        None if the weights are missing.
    make_plan : function () -> Plan, or None
        None where nothing in the file says it. A FormatError of it becomes the reason.
    limit : number
        Most bytes that the weights may take.
    aliases : sequence of str
    arguments : KerasArguments
        What the caller says, where nothing in the file does; of another layer it says nothing.
    version : int or None
        Of Keras: what hard_sigmoid means there.
    """
    others = tuple(alias for alias in aliases if alias != name)
    try:
        if make_plan and arguments.names():
            raise FormatError(f"{', '.join(arguments.names())}: leave out, its configuration is in the file")
        plan = make_plan() if make_plan else None
        if layout is None:
            raise FormatError(
                "its weights are not where Keras puts them, or several layers could be meant; fastlstm.from_keras may help"
            )
        plan = plan or plain_plan(len(layout.cells), layout.bidirectional, arguments, version)
        info = _check(name, layout, plan, limit)
    except ValueError as error:
        return Found(name, problem=f"layer {quoted(name)}: {error}", aliases=others)
    cells, chosen = layout.cells, plan

    def read() -> Weights:
        records = tuple(_record(tensors, cell, info.bias) for tensors, cell in zip(cells, chosen.cells, strict=True))
        return Weights(records, chosen.bidirectional, chosen.backwards, chosen.backwards, chosen.merge_mode)

    return Found(name, info, read, aliases=others)


def _check(name: str, layout: Layout, plan: Plan, limit: float) -> LSTMInfo:
    if len(layout.cells) != len(plan.cells) or layout.bidirectional != plan.bidirectional:
        raise FormatError(f"its configuration has {len(plan.cells)} cell(s) in all, the file holds {len(layout.cells)}")
    _check_units(layout, plan)
    tensors = [tensor for cell in layout.cells for tensor in cell.all()]
    first = tensors[0]
    if len(first.shape) != 2:
        raise FormatError(f"{quoted(first.name)} must have 2 dimensions, got shape {first.shape}")
    H = layout.cells[0].recurrent_kernel.shape[:1] or (0,)
    info = LSTMInfo(
        name=name,
        input_size=first.shape[0],
        hidden_size=H[0],
        num_layers=len(plan.cells) // (1 + plan.bidirectional),
        bidirectional=plan.bidirectional,
        proj_size=0,
        bias=any(cell.bias for cell in layout.cells),
        dtype=dtypes(tensors),
        batch_first=plan.batch_first,
    )
    check_sizes(info.input_size, info.hidden_size, info.num_layers, 0)
    for index, (stored, cell) in enumerate(zip(layout.cells, plan.cells, strict=True)):
        above = index > 0 and not plan.bidirectional
        _check_cell(stored, cell, info.hidden_size if above else info.input_size, info.hidden_size)
    dtype = one_precision([(tensor.name, tensor) for tensor in tensors])
    check_size("its weights", sum(math.prod(tensor.shape) for tensor in tensors) * dtype.itemsize, limit)
    return info


def _check_units(layout: Layout, plan: Plan) -> None:
    """Refuse cells of several sizes in one network."""
    pairs = zip(layout.cells, plan.cells, strict=True)
    units = [cell.units or next(iter(stored.recurrent_kernel.shape), 0) for stored, cell in pairs]
    if len(set(units)) > 1:
        sizes = ", ".join(map(str, units))
        if plan.bidirectional:
            raise FormatError(f"its directions have {sizes:.100} units: those of one network have one size")
        raise FormatError(
            f"its cells have {sizes:.100} units: the layers of one network have one size "
            "(fastlstm.load_model runs others, of a file that describes the whole model)"
        )


def _check_cell(stored: CellTensors, cell: CellPlan, I: int, H: int) -> None:
    if cell.units not in (None, H):
        raise FormatError(f"its configuration has {cell.units} units, {quoted(stored.recurrent_kernel.name)} has {H}")
    if cell.bias not in (None, stored.bias is not None):
        has = "holds a" if stored.bias else "holds no"
        raise FormatError(f"its configuration has use_bias={not stored.bias}, the file {has} bias")
    expected: list[tuple[Tensor, tuple[int, ...]]] = [(stored.kernel, (I, 4 * H)), (stored.recurrent_kernel, (H, 4 * H))]
    if stored.bias:
        if stored.is_cudnn() and cell.cell != PLAIN:
            raise FormatError(f"{quoted(stored.bias.name)} has two biases: a CuDNNLSTM, which has no other activations")
        expected.append((stored.bias, (8 * H if cell.cudnn or stored.is_cudnn() else 4 * H,)))
    for tensor, shape in expected:
        if tensor.shape != shape:
            raise FormatError(f"{quoted(tensor.name)} must have shape {shape}, got {tensor.shape!s:.100}")


def _record(stored: CellTensors, cell: CellPlan, bias: bool) -> LayerWeights:
    """With a bias of zero where only other cells of the network have one."""
    kernel, recurrent = stored.kernel, stored.recurrent_kernel
    I, H = kernel.shape[0], recurrent.shape[0]
    if stored.bias and stored.is_cudnn():
        weight_ih, weight_hh = (
            to_floats(matrix.read().reshape(-1, 4, H).transpose(1, 0, 2), matrix.dtype).reshape(4 * H, size)
            for matrix, size in ((kernel, I), (recurrent, H))
        )
        biases = to_floats(stored.bias.read(), stored.bias.dtype).reshape(2, 4 * H)
        bias_ih, bias_hh = biases[0].copy(), biases[1].copy()
    else:
        weight_ih, weight_hh = (to_floats(matrix.read().T, matrix.dtype) for matrix in (kernel, recurrent))
        zero = np.zeros(4 * H, weight_ih.dtype) if bias else None
        bias_ih = to_floats(stored.bias.read(), stored.bias.dtype) if stored.bias else zero
        bias_hh = None if bias_ih is None else np.zeros_like(bias_ih)
    for array in (weight_ih, weight_hh, bias_ih, bias_hh):
        if array is not None:
            handed_over(array)
    return LayerWeights(weight_ih, weight_hh, bias_ih, bias_hh, cell=cell.cell)
