"""Plain tensors with names, as safetensors and npz files hold them: found by whichever framework's names they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastlstm.arrays import Array
from fastlstm.errors import FormatError
from fastlstm.loaders import flax_names, kernel_names, tensorflow_names
from fastlstm.loaders.found import Found, distinct
from fastlstm.loaders.tensors import LazyTensor, ReadStored, fill, precision
from fastlstm.loaders.torch import names as torch_names

__all__ = ["find"]


def find(
    tensors: Mapping[str, LazyTensor], read: ReadStored, limit: float, batch_first: bool | None = None, layout: str | None = None
) -> list[Found]:
    """Find the LSTMs of PyTorch's, Flax's, TensorFlow 1's, Keras' and Haste's names.

    Parameters
    ----------
    tensors : mapping of names to what is known of them
    read : function (tensor) -> array, as it is stored
    limit : number
        Most bytes the weights of one LSTM may take.
    batch_first : bool, optional
        For all of them, where the source says so; else each framework's usual order.
    layout : {"keras", "haste"}, optional
        Where names do not tell.
    """
    usual = True if batch_first is None else batch_first

    def read_floats(wanted: Sequence[LazyTensor]) -> list[Array]:
        arrays = []
        for tensor in wanted:
            array = np.empty(tensor.shape, precision(tensor.dtype))
            fill(array, read(tensor))
            arrays.append(array)
        return arrays

    of_kernels = kernel_names.find(tensors, read, limit, batch_first, layout)
    if layout and not of_kernels:
        raise FormatError(f"layout={layout!r} is for tensors named kernel and recurrent_kernel, of which there are none")
    return distinct(
        [
            *torch_names.find([torch_names.Group((), tensors)], read_floats, limit, batch_first),
            *flax_names.find(tensors, read, limit, usual),
            *tensorflow_names.find(tensors, read, limit, usual),
            *of_kernels,
        ]
    )
