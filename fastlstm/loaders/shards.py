"""Checkpoints in several files: an LSTM that lies in more than one of them is not taken for the part that is in one.

References
----------
https://huggingface.co/docs/safetensors, "model.safetensors.index.json": ``weight_map`` names the file of each tensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace

from fastlstm.loaders.found import Contents, Found, quoted

__all__ = ["checked"]

PART = re.compile(r"(.*)-\d{5}-of-(\d{5})(\.safetensors|\.bin)", re.DOTALL)
PARAMETER = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?")


def checked(contents: Contents, path: str) -> Contents:
    """What a file holds, whose name may say that it is one of several; the index beside it is read for the names in others."""
    from fastlstm.loaders.source import opened

    match = PART.fullmatch(path)
    index = f"{match[1]}{match[3]}.index.json" if match and int(match[2]) > 1 else ""
    if not os.path.isfile(index):
        return contents
    with opened(index) as file:
        places = file.json.get("weight_map") if isinstance(file.json, dict) else None
    own = os.path.basename(path)
    elsewhere = [name for name, place in places.items() if place != own] if isinstance(places, dict) else []
    return replace(contents, found=[_whole(item, elsewhere, index) for item in contents.found])


def _whole(item: Found, elsewhere: Sequence[str], index: str) -> Found:
    prefix = f"{item.name}." if item.name else ""
    for name in elsewhere:
        if name.startswith(prefix) and PARAMETER.fullmatch(name[len(prefix) :]):
            place = f"{quoted(name)} of this LSTM is in another file of the checkpoint ({index!r:.200})"
            return Found(item.name, problem=f"{place}: save the model in one file", aliases=item.aliases)
    return item
