"""Files of our own: what was written comes back, byte by byte, in safetensors and npz, variants of the cell included."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import guitarml, linen, nam, rtneural, tensorflow_cell, write_json
from helpers import required
from safetensors import safe_open
from safetensors.numpy import save_file

import fastlstm
from fastlstm import FormatError, LayerWeights, Weights, cli, convert, load, scan
from fastlstm.cell import PLAIN, Activation, Cell
from fastlstm.loaders import metadata, reading
from fastlstm.loaders.npz_file import write_npz
from fastlstm.loaders.safetensors_file import write_safetensors
from fastlstm.loaders.source import opened
from fastlstm.weights import parameter_shapes

GOLDEN = Path(__file__).parent / "golden"
WRITERS = {".safetensors": write_safetensors, ".npz": write_npz}
HARD = Activation("hard_sigmoid", (1 / 6, 0.5))


def network(
    layers: int = 1,
    *,
    dtype: str = "float32",
    peephole: bool = False,
    initial: bool = False,
    cells: tuple[Cell, ...] = (PLAIN,),
    **options: Any,
) -> Weights:
    flags = {key: options.pop(key) for key in ("reverse", "flipped", "merge_mode") if key in options}
    options = {"bias": True, "bidirectional": False, "proj_size": 0, **options}
    shapes = parameter_shapes(3, 5, layers, peephole=peephole, initial=initial, **options)
    rng = np.random.default_rng(0)
    made = Weights.from_named_tensors({name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()})
    every = cells * len(made.layers) if len(cells) == 1 else cells
    records = (LayerWeights(**{**vars(layer), "cell": cell}) for layer, cell in zip(made.layers, every, strict=True))
    return Weights(tuple(records), made.bidirectional, **flags)


# Every word of fastlstm.cell, and everything else that a record may have
VARIANTS = {
    "plain": network(),
    "plain, all options": network(2, bidirectional=True, proj_size=2, dtype="float64"),
    "no bias": network(bias=False),
    "peepholes": network(peephole=True, bidirectional=True),
    "an initial state": network(2, initial=True, proj_size=2),
    "reverse": network(2, reverse=True),
    "flipped": network(reverse=True, flipped=True),
    "activations": network(cells=(Cell(HARD, Activation("relu"), Activation("scaled_tanh", (1.5, 0.1))),)),
    "coupled, clipped": network(cells=(Cell(coupled="forget", gate_clip=0.1, cell_clip=3.0, proj_clip=1e-3),), proj_size=2),
    "merge mode": network(bidirectional=True, merge_mode="ave"),
    "a pair of peepholes": network(bidirectional=True, peephole=True, dtype="float64", merge_mode=None),
    "cells that differ": network(2, bidirectional=True, cells=(PLAIN, Cell(HARD), Cell(coupled="input"), PLAIN)),
}


def assert_same(given: Weights, expected: Weights) -> None:
    for flag in ("bidirectional", "reverse", "flipped", "merge_mode"):
        assert getattr(given, flag) == getattr(expected, flag), flag
    assert [layer.cell for layer in given.layers] == [layer.cell for layer in expected.layers]
    a, b = dict(given.named_tensors()), dict(expected.named_tensors())
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert (tensor.dtype, tensor.shape, tensor.tobytes()) == (b[name].dtype, b[name].shape, b[name].tobytes()), name


def read(path: Path) -> tuple[Weights, bool]:
    """As ``load``, for variants too."""
    weights, info = reading.read(path, None, False)
    assert info is not None
    return weights, bool(info.batch_first)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("case", VARIANTS)
def test_written_and_read(case: str, batch_first: bool, suffix: str, tmp_path: Path) -> None:
    path, weights = tmp_path / f"x{suffix}", VARIANTS[case]
    WRITERS[suffix](path, weights, batch_first)
    given, first = read(path)
    assert_same(given, weights)
    assert first == batch_first
    (info,) = scan(path)
    assert (info.name, info.batch_first, info.dtype) == ("", batch_first, weights.dtype.name)
    assert (info.num_layers, info.bidirectional, info.proj_size) == (weights.num_layers, weights.bidirectional, weights.proj_size)
    other = next(ending for ending in WRITERS if ending != suffix)
    convert(path, tmp_path / f"y{other}")
    assert_same(read(tmp_path / f"y{other}")[0], weights)
    assert read(tmp_path / f"y{other}")[1] == batch_first
    assert set(os.listdir(tmp_path)) == {path.name, f"y{other}"}


def test_plain_networks_are_written_as_ever(tmp_path: Path) -> None:
    """So that older versions read them; and what older versions wrote is read."""
    fastlstm.LSTM(3, 5, seed=0, batch_first=True).save(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert file.metadata() == {"fastlstm": '{"batch_first": true}'}
    save_file(
        {f"rnn.{name}": t for name, t in VARIANTS["plain"].named_tensors()}, tmp_path / "y", {"fastlstm": '{"batch_first": true}'}
    )
    assert load(tmp_path / "y", "rnn").batch_first


SOURCES: dict[str, Any] = {
    "bidirectional_projection.pt": None,
    "float64.safetensors": None,
    "bfloat16.pt": None,
    "weight_norm_new.pt": None,
    "flax_chunked.msgpack": None,
    "x.nam": nam(),
    "guitarml.json": guitarml(),
    "rtneural.json": rtneural(),
    "flax.npz": {f"{one}/{leaf}": array for one, leaves in linen().items() for leaf, array in leaves.items()},
    "tensorflow.npz": tensorflow_cell("rnn/lstm_cell", peepholes=True, proj=2),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("source", SOURCES)
def test_any_format(source: str, suffix: str, tmp_path: Path) -> None:
    path, content = tmp_path / source, SOURCES[source]
    if content is None:
        path = GOLDEN / source
    elif source.endswith(".npz"):
        np.savez(path, **content)
    else:
        write_json(path, content)
    info = convert(path, tmp_path / f"out{suffix}")
    (found,) = scan(path)
    assert info == replace(found, batch_first=bool(found.batch_first))  # the one that was written, where the source has none
    given, batch_first = read(tmp_path / f"out{suffix}")
    assert_same(given, read(path)[0])
    assert batch_first is info.batch_first


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize(("source", "needs"), [("model.onnx", "onnx"), ("keras3.keras", "h5py"), ("keras2.h5", "h5py")])
def test_all_of_a_file(source: str, needs: str, suffix: str, tmp_path: Path) -> None:
    """Formats that know variants of the cell, learned states and Keras' merge modes."""
    required(needs)
    kept = set()
    for info in scan(GOLDEN / source):
        written = convert(GOLDEN / source, tmp_path / f"out{suffix}", info.name)
        assert written == replace(info, batch_first=bool(info.batch_first))
        lstm, given = load(GOLDEN / source, info.name), load(tmp_path / f"out{suffix}")
        assert_same(given.weights, lstm.weights)
        assert given.batch_first == lstm.batch_first == bool(info.batch_first)
        lstm.save(tmp_path / "saved.safetensors")
        assert_same(load(tmp_path / "saved.safetensors").weights, lstm.weights)
        kept.add((lstm.weights.merge_mode, lstm.batch_first))
    merged = {(mode, True) for mode in ("sum", "mul", "ave", None)}
    assert kept >= (merged if source == "keras3.keras" else {("concat", needs == "h5py")})


def test_one_format_recognises_a_file(tmp_path: Path) -> None:
    paths = [path for path in GOLDEN.iterdir() if path.suffix != ".py" and path.is_file()]
    for name, content in SOURCES.items():
        if isinstance(content, dict) and not name.endswith(".npz"):
            paths.append(tmp_path / name)
            write_json(paths[-1], content)
    seen = set()
    for path in paths:
        with opened(path) as file:
            formats = [name for name in reading.FORMATS if import_module(f"fastlstm.loaders.{name}").recognises(file)]
        assert len(formats) == 1, (path.name, formats)
        seen.add(formats[0])
    assert seen == set(reading.FORMATS)


def test_choices(tmp_path: Path) -> None:
    assert convert(GOLDEN / "several.pt", tmp_path / "x.npz", "b.0", batch_first=True).batch_first is True
    assert (load(tmp_path / "x.npz").hidden_size, load(tmp_path / "x.npz").batch_first) == (4, True)
    with pytest.raises(ValueError, match=r"^target must end with \.safetensors or \.npz, got '.*x\.onnx'$"):
        convert(GOLDEN / "cell.pt", tmp_path / "x.onnx")
    with pytest.raises(FormatError, match="3 LSTMs found"):
        convert(GOLDEN / "several.pt", tmp_path / "y.npz")
    assert os.listdir(tmp_path) == ["x.npz"]


def test_not_onto_itself(tmp_path: Path) -> None:
    """What else the file holds would be gone."""
    path, link = tmp_path / "x.npz", tmp_path / "link.npz"
    fastlstm.LSTM(3, 4, seed=0).save(path)
    link.symlink_to(path)
    before = path.read_bytes()
    for target in (path, link, tmp_path / "." / "x.npz"):
        with pytest.raises(ValueError, match="target must be another file than source"):
            fastlstm.convert(path, target)
    assert path.read_bytes() == before


def test_not_finite(tmp_path: Path) -> None:
    lstm = fastlstm.LSTM(3, 5, seed=0)
    lstm.load_state_dict({name: t * np.nan for name, t in lstm.state_dict().items()})
    lstm.save(tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="NaN or infinite"):
        convert(tmp_path / "x.safetensors", tmp_path / "y.npz")
    convert(tmp_path / "x.safetensors", tmp_path / "y.npz", allow_nonfinite=True)
    assert np.isnan(load(tmp_path / "y.npz", allow_nonfinite=True).weights.layers[0].weight_ih).all()


# ---- The text beside the tensors -----------------------------------------------------------------------------------------------

BAD_TEXTS = (
    "", "{", "[]", "3", "{}", '{"batch_first": 1}', '{"batch_first": true, "more": 1}',
    '{"batch_first": true, "batch_first": true}',
    '{"batch_first": true, "reverse": true}', '{"batch_first": true, "cells": []}', '{"batch_first": true, "cells": {}}',
    '{"batch_first": true, "cells": [3]}', '{"batch_first": true, "cells": [{"gate": "relu"}]}',
    '{"batch_first": true, "cells": [{"gate": ["swish"]}]}', '{"batch_first": true, "cells": [{"gate": ["elu", 1, 2]}]}',
    '{"batch_first": true, "cells": [{"gate": ["elu", "1"]}]}', '{"batch_first": true, "cells": [{"gate": ["elu", NaN]}]}',
    '{"batch_first": true, "cells": [{"gate": ["elu", 1%s]}]}' % ("0" * 400), '{"batch_first": true, "cells": [{"gate": []}]}',
    '{"batch_first": true, "cells": [{"coupled": 1}]}', '{"batch_first": true, "cells": [{"coupled": "both"}]}',
    '{"batch_first": true, "cells": [{"cell_clip": -1}]}', '{"batch_first": true, "cells": [{"cell_clip": true}]}',
    '{"batch_first": true, "cells": [{"cell_clip": Infinity}]}', '{"batch_first": true, "cells": [{"layer_norm": true}]}',
    '{"batch_first": true, "merge_mode": "sum"}', '{"batch_first": true, "cells": [{}], "merge_mode": "concat"}',
    '{"batch_first": true, "cells": [{}], "merge_mode": ["sum"]}',
    '{"batch_first": true, "cells": [{}], "reverse": 1}', "[" * 100_000,
    '{"batch_first": true, "cells": [%s{}]}' % ("{}, " * 70_000),
)  # fmt: skip


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: text[:60])
@pytest.mark.parametrize("suffix", WRITERS)
def test_bad_text(text: str, suffix: str, tmp_path: Path) -> None:
    tensors = dict(VARIANTS["plain"].named_tensors())
    path = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(path, **tensors, fastlstm=np.array(text))
    else:
        save_file(tensors, path, {"fastlstm": text})
    for act in (scan, load):
        with pytest.raises(FormatError, match="fastlstm"):
            act(path)


@pytest.mark.parametrize(
    ("ours", "part"),
    [
        ({"cells": [{}, {}]}, "2 cells for 1 records"),
        ({"cells": [{}], "flipped": True}, "flipped needs reverse=True"),
        ({"cells": [{}], "merge_mode": "sum"}, "needs one bidirectional layer"),
        ({"cells": [{}]}, ""),
    ],
)
def test_text_that_does_not_fit(ours: dict[str, Any], part: str, tmp_path: Path) -> None:
    tensors = dict(VARIANTS["plain"].named_tensors())
    text = json.dumps({"batch_first": False, **ours})
    save_file(tensors, tmp_path / "x", {"fastlstm": text})
    if part:
        with pytest.raises(FormatError, match=part):
            scan(tmp_path / "x")
    else:
        assert_same(read(tmp_path / "x")[0], VARIANTS["plain"])


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    tensors = dict(VARIANTS["plain"].named_tensors())
    for change, problem in (
        ({"fc.weight": np.zeros(3, "f")}, "unexpected tensor 'fc.weight'"),
        ({"weight_hh_l0": np.zeros((20, 4), "f")}, "weight_hh_l0 must have shape"),
        ({"bias_ih_l0": np.zeros(20)}, "bias_ih_l0 must be float32"),
        ({"bias_ih_l0": np.zeros([1] * 40, "f")}, "'bias_ih_l0' must be a matrix or a vector, got 40 dimensions"),
        ({"more": np.zeros((0, 2, 2), "f")}, "'more' must be a matrix or a vector, got 3 dimensions"),
        ({"bias_ih_l0": np.zeros(20, int)}, "'bias_ih_l0' must be one of float16"),
    ):
        save_file(tensors | change, tmp_path / "x", {"fastlstm": json.dumps({"batch_first": False, "cells": [{}]})})
        with pytest.raises(FormatError, match=problem):
            scan(tmp_path / "x")


def test_too_many_cells() -> None:
    cells = tuple(Cell(gate_clip=1 / (3 + k), cell_clip=1 / (7 + k), proj_clip=1 / (9 + k)) for k in range(2500))
    with pytest.raises(ValueError, match="the cells of 2500 layers take"):
        metadata.text_of(network(2500, cells=cells), False)


# ---- The command line ----------------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(Path("amp.nam"), nam())
    assert cli.main(["convert", "amp.nam", "amp.safetensors"]) == 0
    assert capsys.readouterr().out == "'': LSTM(1, 4, num_layers=2), float32\n"
    assert_same(read(Path("amp.safetensors"))[0], read(Path("amp.nam"))[0])
    assert cli.main(["convert", str(GOLDEN / "several.pt"), "b.npz", "--name", "b.0", "--batch-first"]) == 0
    assert load("b.npz").batch_first
    np.savez("keras.npz", kernel=np.zeros((3, 20), "f"), recurrent_kernel=np.ones((5, 20), "f"))
    assert cli.main(["convert", "keras.npz", "k.npz"]) == 2
    assert "--layout keras or --layout haste" in capsys.readouterr().err
    assert cli.main(["convert", "keras.npz", "k.npz", "--layout", "haste"]) == 0
    assert cli.main(["convert", "amp.nam", "amp"]) == 2
    assert "error: target must end with .safetensors or .npz, got 'amp'\n" in capsys.readouterr().err
    assert cli.main(["scan", "amp.nam"]) == 0
    assert cli.main(["convert", "nowhere", "x.npz"]) == 2
    assert set(os.listdir()) == {"amp.nam", "amp.safetensors", "b.npz", "keras.npz", "k.npz"}


# ---- PyTorch -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True}],
    ids=["plain", "no bias", "all"],
)
def test_to_torch(dtype: str, options: dict[str, Any]) -> None:
    torch = required("torch")
    lstm = fastlstm.LSTM(3, 5, dtype=dtype, seed=0, **options)
    before = torch.random.get_rng_state()
    module = lstm.to_torch()
    assert torch.equal(before, torch.random.get_rng_state())
    assert type(module) is torch.nn.LSTM
    assert (module.batch_first, module.proj_size, module.training) == (lstm.batch_first, lstm.proj_size, True)
    state = lstm.state_dict()
    assert list(module.state_dict()) == list(state)
    for name, tensor in module.state_dict().items():
        assert tensor.numpy().tobytes() == state[name].tobytes(), name
    assert_same(fastlstm.from_torch(module).weights, lstm.weights)
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oneDNN has no projections
        output, _ = module(torch.from_numpy(x))
    output.sum().backward()
    np.testing.assert_allclose(lstm(x)[0], output.detach().numpy(), rtol=0, atol=1e-6)
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    assert lstm.state_dict()["weight_ih_l0"].any()


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("peepholes", "which has peepholes: run it in fastlstm, where record"),
        ("an initial state", "an initial state among the weights"),
        ("reverse", "a backward direction without a forward one"),
        ("activations", "which has activations other than sigmoid and tanh: "),
        ("coupled, clipped", "which has coupled input and forget gates, clipping: "),
        ("merge mode", r"not concatenated \(merge_mode='ave'\)"),
        ("a pair of peepholes", r"peepholes, two directions that are not concatenated \(merge_mode=None\)"),
        ("cells that differ", "which has activations other than sigmoid and tanh, coupled input and forget gates: "),
    ],
)
def test_variants_are_not_pytorchs(case: str, part: str) -> None:
    from fastlstm.loaders.torch.module import to_module

    with pytest.raises(ValueError, match=part):
        to_module(VARIANTS[case], False)
