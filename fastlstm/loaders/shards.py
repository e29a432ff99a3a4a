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
from typing import Any

from fastlstm.errors import FormatError
from fastlstm.loaders.found import Contents, Found, quoted

__all__ = ["mark_incomplete"]

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
PART = re.compile(r".*\d{5}-of-(\d{5})\D.*", re.DOTALL)
PARAMETER = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?")
MOST_INDEXES = 16


def mark_incomplete(contents: Contents, path: str) -> Contents:
    """What a file holds; an LSTM gets a problem if the file is one of several and others may hold the rest of it.

    An index beside it tells, whatever both are called. Without one, a name such as ``model-00001-of-00002.safetensors`` does.
    """
    own = os.path.basename(path)
    if not contents.found or not own.endswith(SUFFIXES):
        return contents
    broken: FormatError | None = None
    for index in _indexes(os.path.dirname(path)):
        try:
            places = _places(index)
        except FormatError as error:
            broken = error
            continue
        except OSError:  # it may not be read, or has just gone
            continue
        if own in places.values():
            elsewhere = [name for name, place in places.items() if place != own]
            return replace(contents, found=[_whole(item, elsewhere, index) for item in contents.found])
    part = PART.fullmatch(own)
    if not part or int(part[1]) < 2:
        return contents
    if broken:
        raise broken
    problem = (
        f"{own!r:.200} is one file of several, and their index (*.index.json) is not beside it: the others may hold the rest of "
        "this LSTM. Save the model in one file, or rename this one if it holds the whole LSTM"
    )
    return replace(contents, found=[Found(item.name, problem=problem, aliases=item.aliases) for item in contents.found])


def _indexes(folder: str) -> list[str]:
    try:
        with os.scandir(folder or os.curdir) as entries:
            names = [entry.name for entry in entries if ".index." in entry.name and entry.name.endswith(".json")]
    except OSError:  # a folder that may be used and not listed
        return []
    return [os.path.join(folder, name) for name in sorted(names)[:MOST_INDEXES]]


def _places(index: str) -> dict[str, Any]:
    """The file that each tensor is in."""
    from fastlstm.loaders.source import opened

    with opened(index) as file:
        places = file.json.get("weight_map") if isinstance(file.json, dict) else None
    return places if isinstance(places, dict) else {}


def _whole(item: Found, elsewhere: Sequence[str], index: str) -> Found:
    prefix = f"{item.name}." if item.name else ""
    for name in elsewhere:
        if name.startswith(prefix) and PARAMETER.fullmatch(name[len(prefix) :]):
            place = f"{quoted(name)} of this LSTM is in another file of the checkpoint ({index!r:.200})"
            return Found(item.name, problem=f"{place}: save the model in one file", aliases=item.aliases)
    return item
