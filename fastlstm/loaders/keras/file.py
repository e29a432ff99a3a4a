"""What Keras wrote: ``.keras`` archives, ``.weights.h5``, and the ``.h5`` files of Keras 2 (which Keras 3 still writes).

``.keras`` is a zip file with metadata.json (the version), config.json (the layers) and model.weights.h5, which is what
``save_weights`` writes alone. Where there is no configuration (weights alone, layers of a subclassed model) the caller says what
a layer computes, or Keras' defaults are taken: tanh, sigmoid, forward, side by side.

References
----------
``keras/src/saving/saving_lib.py`` and ``keras/src/legacy/saving/legacy_h5_format.py``.
"""

from __future__ import annotations

import re
import tempfile
from typing import TYPE_CHECKING

from fastlstm.errors import FormatError
from fastlstm.loaders import strict_json
from fastlstm.loaders.archive import Archive
from fastlstm.loaders.found import Contents, listing
from fastlstm.loaders.keras import config as keras_config
from fastlstm.loaders.keras import hdf5
from fastlstm.loaders.keras import legacy as keras_legacy
from fastlstm.loaders.keras import model as keras_model
from fastlstm.loaders.keras import tree as keras_tree
from fastlstm.loaders.keras.config import NO_ARGUMENTS
from fastlstm.loaders.keras.hdf5 import Group
from fastlstm.loaders.keras.tree import Entry
from fastlstm.loaders.source import WEIGHTS_FLOOR, SourceFile, return_freed

if TYPE_CHECKING:
    from fastlstm.models.model import Model

__all__ = ["find", "model", "recognises"]

SHARD = re.compile(r".*_[0-9]{5,}\.weights\.h5", re.DOTALL)
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


def recognises(file: SourceFile) -> bool:
    """An HDF5 file, or a zip file with a config.json and weights beside it."""
    if file.archive is not None:
        members = file.archive.members
        return CONFIG in members and any(name.startswith("model.weights.") for name in members)
    return file.head.startswith(hdf5.SIGNATURE)


def find(file: SourceFile) -> Contents:
    """List the LSTMs of the file.

    Raises
    ------
    FormatError
        If it is broken, or does what no file of Keras does.
    ImportError
        If h5py is not installed.
    """
    if file.archive is not None:
        tree, config, version = _archive(file, file.archive)
        return keras_tree.find(tree, config, version, file.weights_limit, "a Keras archive", file.keras_arguments or NO_ARGUMENTS)
    tree, weights = _hdf5(file)
    if weights.texts("layer_names"):
        return keras_legacy.find(tree, weights, file)
    # Only its name tells a shard; a whole file may have such a name, too
    shard = SHARD.fullmatch(file.path) is not None
    what = "by its name a shard of Keras' weights, which may hold parts of layers," if shard else "an HDF5 file"
    return keras_tree.find(tree, None, None, file.weights_limit, what, file.keras_arguments or NO_ARGUMENTS, shard)


def model(file: SourceFile) -> Model:
    """The model that the file describes.

    Raises
    ------
    FormatError
        If it describes none, or at the first layer that is not supported; the message names it.
    ImportError
        If h5py is not installed.
    """
    pending = _pending(file)  # what is left when this returns is the weights: the steps take memory next
    return_freed(file.size)
    return pending.model()


def _pending(file: SourceFile) -> keras_model.Pending:
    if file.archive is not None:
        tree, config, version = _archive(file, file.archive)
        return keras_model.read(config, version, keras_tree.TreePlace(tree), file.weights_limit)
    tree, weights = _hdf5(file)
    described, version = keras_legacy.described(tree, weights, file.objects_limit)
    if described is None:
        raise FormatError("the file holds weights but does not describe a whole model")
    return keras_model.read(described, version, keras_legacy.LegacyModel(weights), file.weights_limit)


def _hdf5(file: SourceFile) -> tuple[Group, Group]:
    """The whole tree, and the group of the layers' groups."""
    tree = hdf5.read_tree(file.stream, file, file.objects_limit)
    return tree, tree.groups.get("model_weights", tree)


def _archive(file: SourceFile, archive: Archive) -> tuple[Group, Entry, int | None]:
    """The tree of the weights, the configuration, and Keras' major version."""
    if WEIGHTS not in archive.members:
        others = listing(name for name in archive.members if name.startswith("model.weights."))
        raise FormatError(f"a Keras archive without {WEIGHTS}, but with {others}: save it again with model.save(path)")
    # The child reads a file, and the numbers are read from it, too: they need not be in memory meanwhile. Nor need the texts
    copy = file.copies.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # closed with the file
    for chunk in archive.chunks(WEIGHTS, file.size + WEIGHTS_FLOOR):
        copy.write(chunk)
    copy.flush()
    inner = SourceFile(copy, archive.size_of(WEIGHTS), file.path)
    if not inner.head.startswith(hdf5.SIGNATURE):
        raise FormatError(f"{WEIGHTS} in the archive is not an HDF5 file")
    tree = hdf5.read_tree(copy, inner, file.objects_limit)
    texts = {}
    for name in (CONFIG, METADATA):
        texts[name] = strict_json.parse(archive.read(name, file.objects_limit // 4), name, file.objects_limit)
        if not isinstance(texts[name], dict):
            raise FormatError(f"{name} must be a JSON object, got {type(texts[name]).__name__}")
    return tree, texts[CONFIG], keras_config.major_version(texts[METADATA].get("keras_version"))
