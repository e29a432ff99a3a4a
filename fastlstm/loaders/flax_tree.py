"""Live parameters of Flax. Flax itself is never imported: whoever passes a module has done so."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from fastlstm.loaders import flax_names
from fastlstm.loaders.found import Contents, listing
from fastlstm.loaders.live import flattened, read_one

__all__ = ["find"]


def find(source: object) -> Contents:
    """List the LSTMs in a tree of parameters, or in a module of ``flax.nnx``.

    Raises
    ------
    TypeError
        If it is neither.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(source, nnx.Module):
        source = nnx.state(source)
    if not isinstance(source, Mapping):
        raise TypeError(
            f"a tree of parameters or a flax.nnx.Module expected, got {type(source).__name__} (of a flax.linen.Module, pass the "
            "variables; for a file: fastlstm.load)"
        )
    tensors = flattened(source)
    names = f": {listing(tensors, 5)}" if tensors else ""
    return Contents(flax_names.find(tensors, read_one), f"a tree with {len(tensors)} arrays{names}")
