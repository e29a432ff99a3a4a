"""What a file is that no loader reads: said by name, so that its owner knows what to do."""

from __future__ import annotations

from fastlstm.loaders.found import listing
from fastlstm.loaders.source import SourceFile

__all__ = ["describe"]

# (offset, bytes there, what it is)
SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch that with git lfs pull"),
    (4, b"TFL3", "a TFLite model"),
    (0, b"\x93NUMPY", "a single NumPy array (.npy)"),
    (0, b"GGUF", "a GGUF file"),
    (257, b"ustar", "a tar archive (a NeMo model, or PyTorch before 0.2): unpack it, or with torch save its state_dict again"),
    (0, b"\x1f\x8b", "a file compressed with gzip: unpack it first"),
    (0, b"BZh", "a file compressed with bzip2: unpack it first"),
    (0, b"\xfd7zXZ", "a file compressed with xz: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a file compressed with zstd: unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive: unpack it first"),
)

# (end of a member's name, what the zip file is)
MEMBERS = (
    ("archive_format", "a torch.export archive (.pt2): with torch, save the state_dict of the model in it"),
    (".pth", "a zip file with PyTorch files in it: unpack it and load one of them"),
    (".pt", "a zip file with PyTorch files in it: unpack it and load one of them"),
)


def describe(file: SourceFile) -> str:
    """Return a sentence about a file that no loader recognises."""
    head = file.head
    if not head:
        return "the file is empty"
    if file.archive is not None:
        names = list(file.archive.members)
        kinds = (what for end, what in MEMBERS if any(name.endswith(end) for name in names))
        what = next(kinds, "a zip file that no torch.save wrote, without a <name>/data.pkl")
        return f"this is {what}; its members: {listing(names, 5) or 'none'}"
    for offset, signature, what in SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return f"this is {what}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "this is an HTML page, perhaps a login or error page that was downloaded in place of the file"
    if text.startswith(b"<?xml"):
        return "this is XML (an OpenVINO model?)"
    if text.startswith((b"{", b"[")):
        shards = _shards(file)
        if any(name.endswith(".weights.h5") for name in shards):
            once = "save them in one file, model.save_weights('x.weights.h5') without max_shard_size"
            return f"this is the index of Keras' weights in shards, {listing(shards, 5)}: {once}, or load one with a whole LSTM"
        if shards:
            return f"this is an index of weights in other files, {listing(shards, 5)}: load the one that holds the whole LSTM"
        if isinstance(file.json, dict) and "class_name" in file.json:
            return "this is the configuration of a Keras model, without its weights"
        return "this is JSON text, not of Neural Amp Modeler, GuitarML or RTNeural"
    return "this is not a zip file, a pickle, a safetensors file, or any other known format"


def _shards(file: SourceFile) -> list[str]:
    """The files that an index names, of Keras or of Hugging Face: ``weight_map`` has one or several for each weight."""
    content = file.json
    every = content.get("weight_map") if isinstance(content, dict) else None
    lists = [value if isinstance(value, list) else [value] for value in every.values()] if isinstance(every, dict) else []
    return list(dict.fromkeys(name for names in lists for name in names if isinstance(name, str)))
