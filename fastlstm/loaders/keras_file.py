"""What Keras wrote: ``.keras`` archives, ``.weights.h5``, and the ``.h5`` files of Keras 2 (which Keras 3 still writes).

``.keras`` is a zip file with metadata.json (the version), config.json (the layers) and model.weights.h5, which is what
``save_weights`` writes alone. Where there is no configuration (weights alone, layers of a subclassed model) Keras' defaults are
taken: tanh, sigmoid, forward, side by side.

References
----------
``keras/src/saving/saving_lib.py`` and ``keras/src/legacy/saving/legacy_h5_format.py``.
"""

from __future__ import annotations

import io
import tempfile

from fastlstm.errors import FormatError
from fastlstm.loaders import hdf5, keras_config, keras_legacy, keras_tree, strict_json
from fastlstm.loaders.archive import Archive
from fastlstm.loaders.found import Contents, listing
from fastlstm.loaders.source import WEIGHTS_FLOOR, SourceFile

__all__ = ["find", "recognises"]

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
        return _archive(file, file.archive)
    tree = hdf5.read_tree(file.stream, file, file.objects_limit)
    weights = tree.groups.get("model_weights", tree)
    if weights.texts("layer_names"):
        return keras_legacy.find(tree, weights, file)
    return keras_tree.find(tree, None, None, file.weights_limit, "an HDF5 file")


def _archive(file: SourceFile, archive: Archive) -> Contents:
    if WEIGHTS not in archive.members:
        others = listing(name for name in archive.members if name.startswith("model.weights."))
        raise FormatError(f"a Keras archive without {WEIGHTS}, but with {others}: save it again with model.save(path)")
    texts = {}
    for name in (CONFIG, METADATA):
        texts[name] = strict_json.parse(archive.read(name, file.objects_limit // 4), name, file.objects_limit)
        if not isinstance(texts[name], dict):
            raise FormatError(f"{name} must be a JSON object, got {type(texts[name]).__name__}")
    data = bytes(archive.read(WEIGHTS, file.size + WEIGHTS_FLOOR))
    inner = SourceFile(io.BytesIO(data), len(data), file.path)
    if not inner.head.startswith(hdf5.SIGNATURE):
        raise FormatError(f"{WEIGHTS} in the archive is not an HDF5 file")
    with tempfile.TemporaryFile() as copy:  # for the child, which reads a file
        copy.write(data)
        copy.flush()
        tree = hdf5.read_tree(copy, inner, file.objects_limit)
    version = keras_config.major_version(texts[METADATA].get("keras_version"))
    return keras_tree.find(tree, texts[CONFIG], version, file.weights_limit, "a Keras archive")
