"""NumPy archives: any names, any layout of the arrays; objects, bombs and wrong sizes are refused before they are read."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refused

import fastlstm
from fastlstm.loaders import LSTMInfo, load, scan
from fastlstm.weights import parameter_shapes


def tensors(prefix: str = "", **options: Any) -> dict[str, np.ndarray]:
    """A state dict of PyTorch's whose numbers are exact in float16."""
    shapes = parameter_shapes(3, 5, 2, **{"bias": True, "bidirectional": True, "proj_size": 2, **options})
    rng = np.random.default_rng(0)
    return {prefix + name: (rng.integers(-64, 64, shape) / 64).astype(np.float32) for name, shape in shapes.items()}


def npy(
    data: bytes = bytes(96),
    shape: str = "(8, 3)",
    descr: str = "'<f4'",
    order: str = "False",
    version: bytes = b"\1\0",
    end: str = ", }",
) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{end}".encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(header)) + header + data


def npz(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """An archive of a network of 3 inputs and 2 units; ``members`` replace or join its own."""
    own = {"weight_ih_l0": npy(), "weight_hh_l0": npy(bytes(64), "(8, 2)")}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in {**own, **members}.items():
            archive.writestr(name + ".npy", data)
    return stream.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2"])
def test_layouts_and_types(compressed: bool, order: Any, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    stored = {name: np.asarray(tensor, dtype=dtype, order=order) for name, tensor in tensors().items()}
    (np.savez_compressed if compressed else np.savez)(path, **stored)
    assert scan(path) == [LSTMInfo("", 3, 5, 2, True, 2, True, {"2": "float16", "4": "float32", "8": "float64"}[dtype[2]])]
    lstm = load(path)
    assert lstm.dtype == ("float64" if dtype[2] == "8" else "float32")
    for name, tensor in lstm.state_dict().items():
        assert tensor.tobytes() == tensors()[name].astype(lstm.dtype).tobytes(), name


def test_names_and_what_is_beside(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    beside = {"step": np.array(3), "words": np.array(["a", "bc"]), "flags": np.zeros(3, bool), "z": np.zeros(2, "c8")}
    record = np.zeros(2, [("a", "<f4"), ("b", "<i8")])
    np.savez(path, **tensors("a.rnn."), **tensors("b.rnn."), **beside, record=record)
    assert [info.name for info in scan(path)] == ["a.rnn", "b.rnn"]
    assert load(path, "b.rnn", batch_first=True).batch_first
    refused(lambda: load(path), "2 LSTMs", "'a.rnn', 'b.rnn'")
    np.savez(path, **beside)
    refused(lambda: load(path), "no LSTM found: a NumPy archive with 4 arrays", "'step'")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_the_format(version: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, tensor in tensors().items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, tensor, version)
            archive.writestr(name + ".npy", stream.getvalue())
    assert load(path).proj_size == 2


def test_other_writers(tmp_path: Path) -> None:
    """Python 2 wrote 3L, others leave out spaces or the last comma."""
    spellings = {"weight_ih_l0": npy(shape="(8L, 3L)"), "weight_hh_l0": npy(bytes(64), "(8,2)", descr="'<f4'", end="}")}
    (tmp_path / "x").write_bytes(npz(**spellings))
    assert load(tmp_path / "x").hidden_size == 2


def test_not_finite(tmp_path: Path) -> None:
    given = tensors()
    given["bias_ih_l0"][1] = np.nan
    np.savez(tmp_path / "x.npz", **given)
    refused(lambda: load(tmp_path / "x.npz"), "1 NaN or infinite values")
    assert np.isnan(load(tmp_path / "x.npz", allow_nonfinite=True).weights.layers[0].bias_ih[1])


# what is wrong with one member: (the member, what the message must hold)
MEMBERS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "objects": (npy(b"\x80\4.", "()", "'|O'"), ("'x.npy' holds pickled objects",)),
    "objects among the weights": (npy(descr="'|O'"), ("holds pickled objects",)),
    "a pickle": (b"\x80\4cos\nsystem\n.", ("'x.npy' is not in NumPy's format",)),
    "empty": (b"", ("'x.npy' is not in NumPy's format",)),
    "cut off in its header": (npy()[:40], ("declares a header of",)),
    "a header of 4 GB": (b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(99), ("declares a header of 4294967295 bytes",)),
    "version 4": (npy(version=b"\4\0"), ("is not in NumPy's format",)),
    "data cut off": (npy(bytes(95)), ("must have 96 bytes of data, got 95",)),
    "data left over": (npy(bytes(97)), ("must have 96 bytes of data, got 97",)),
    "2e9 numbers, no data": (npy(b"", "(2000000000,)"), ("must have 8000000000 bytes of data, got 0",)),
    "2^62 by 2^62": (npy(b"", f"({2**62}, {2**62})"), ("no dimension may exceed",)),
    "a negative dimension": (npy(shape="(-8, 3)"), ("a header that NumPy does not write",)),
    "a shape that is a call": (npy(shape="(exit(),)"), ("a header that NumPy does not write",)),
    "a dtype that is a call": (npy(descr="exit()"), ("a header that NumPy does not write",)),
    "an expression": (npy(shape="(8, 3) if 1 else ()"), ("a header that NumPy does not write",)),
    "a shape that is no tuple": (npy(shape="(96)"), ("an invalid shape",)),
    "an empty dimension": (npy(shape="(8,,3)"), ("an invalid shape",)),
    "a key twice": (npy(end=", 'shape': (8, 3), }"), ("a header that NumPy does not write",)),
    "a deep header": (npy(shape="(" * 900 + ")" * 900), ("a header that NumPy does not write",)),
}  # fmt: skip


@pytest.mark.parametrize("case", MEMBERS)
def test_broken_member(case: str, tmp_path: Path) -> None:
    member, parts = MEMBERS[case]
    (tmp_path / "x").write_bytes(npz(x=member))
    for act in (scan, load):
        refused(lambda act=act: act(tmp_path / "x"), *parts)


def test_whole_numbers_among_the_weights(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(npz(weight_ih_l0=npy(bytes(192), descr="'<i8'")))
    refused(lambda: load(tmp_path / "x"), "'weight_ih_l0' must be one of float16", "<i8")


def test_bomb(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte: refused by its size, before it is inflated."""
    rows = 4 * 8192
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, columns in (("weight_ih_l0", 3), ("weight_hh_l0", 8192)):
            with archive.open(name + ".npy", "w", force_zip64=True) as member:
                member.write(npy(b"", f"({rows}, {columns})"))
                for _ in range(rows // 4096):
                    member.write(bytes(4096 * columns * 4))
    assert (tmp_path / "x").stat().st_size < 3 << 20
    refused(lambda: load(tmp_path / "x"), "more than", "for this file (twice its size and 16 MiB)")


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (lambda: npz()[:-1], "no zip directory"),
        (lambda: npz()[: len(npz()) // 2], "no zip directory"),
        (lambda: npz() + b"x", "no zip directory"),
        (lambda: npz().replace(bytes(60), bytes(59) + b"\1", 1), "CRC"),
        (lambda: npz(**{"../../x": npy()}), "outside the archive"),
        (lambda: npz(fastlstm=npy()), "'fastlstm.npy' must be one text"),
        (lambda: npz(fastlstm=npy("{}".encode("utf-32-le"), "()", "'<U2'")), "an object with batch_first expected"),
        (lambda: npz(fastlstm=npy(b"\xff\xff\xff\xff", "()", "'<U1'")), "is not text"),
    ],
)
def test_broken_archive(build: Callable[[], bytes], part: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(build())
    refused(lambda: load(tmp_path / "x"), part)


def test_a_member_that_is_no_array(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(npz())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    refused(lambda: load(path), "'readme.txt' is not an array")


def test_a_member_twice(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(npz())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("weight_ih_l0.npy", npy())
    refused(lambda: load(path), "'weight_ih_l0.npy' occurs twice")


def test_what_numpy_made_is_read_alike(tmp_path: Path) -> None:
    lstm = fastlstm.LSTM(3, 5, 2, seed=0)
    np.savez(tmp_path / "x.npz", **lstm.state_dict())
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    assert load(tmp_path / "x.npz")(x)[0].tobytes() == lstm(x)[0].tobytes()
