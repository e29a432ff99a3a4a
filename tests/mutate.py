"""Broken files, made with a plan: the crafted ones of ``test_hostile_files.py`` and mutations of good ones.

Run alone it tries many more than the tests do: ``python tests/mutate.py --count 100000 --seed 1 zip legacy safetensors onnx``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickletools
import random
import re
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastlstm.models.graph import Graph

GOLDEN = Path(__file__).parent / "golden"

# ---- Pickles, opcode by opcode -------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + several(*args) + b"R"


def mapping(items: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> bytes:
    pairs = items.items() if isinstance(items, Mapping) else items
    return b"}(" + b"".join(text(key) + value for key, value in pairs) + b"u"


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def storage(key: str, size: int, kind: str = "FloatStorage", location: str = "cpu", *more: bytes) -> bytes:
    return several(text("storage"), named("torch", kind), text(key), text(location), integer(size), *more) + b"Q"


def tensor(
    key: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
    size: int | None = None,
    kind: str = "FloatStorage",
    legacy: bool = False,
    location: str = "cpu",
) -> bytes:
    """``torch._utils._rebuild_tensor_v2`` with its arguments; contiguous by default, in a storage that just holds it."""
    if strides is None:
        strides = contiguous(shape)
    if size is None:
        size = product(shape)
    return call(
        named("torch._utils", "_rebuild_tensor_v2"),
        storage(key, size, kind, location, *([b"N"] if legacy else [])),
        integer(offset),
        several(*map(integer, shape)),
        several(*map(integer, strides)),
        b"\x89",
        named("collections", "OrderedDict") + b")R",
    )


def product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(product(shape[index + 1 :]) for index in range(len(shape)))


# A network of three inputs and two hidden units, small enough that every byte of its file is mutated in a few thousand tries
SHAPES = {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2), "bias_ih_l0": (8,), "bias_hh_l0": (8,)}


def values(shape: tuple[int, ...], seed: int) -> list[float]:
    return [((index * 7 + seed * 3) % 31 - 15) / 32 for index in range(product(shape))]


def network(prefix: str = "", legacy: bool = False, **replaced: bytes) -> bytes:
    """A state dict of :data:`SHAPES`; ``replaced`` gives other opcodes for some of its tensors."""
    items = {name: tensor(str(index), shape, legacy=legacy) for index, (name, shape) in enumerate(SHAPES.items())}
    return mapping({prefix + name: value for name, value in {**items, **replaced}.items()})


def storages() -> dict[str, bytes]:
    """The members of the zip file that hold the tensors of :func:`network`."""
    return {
        f"data/{index}": struct.pack(f"<{product(shape)}f", *values(shape, index)) for index, shape in enumerate(SHAPES.values())
    }


def zipped(
    value: bytes, records: Mapping[str, bytes] | None = None, root: str = "archive/", method: int = 0, **more: bytes
) -> bytes:
    """A file of ``torch.save``: ``value`` pickled, then the storages, by default those of :func:`network`."""
    members = {
        "data.pkl": pickled(value),
        "byteorder": b"little",
        **(storages() if records is None else records),
        "version": b"3\n",
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in {**members, **more}.items():
            archive.writestr(root + name, data)
    return stream.getvalue()


LEGACY_START = pickled(integer(0x1950A86A20F9469CFC6C)) + pickled(integer(1001)) + pickled(mapping({"little_endian": b"\x88"}))


def legacy(value: bytes, records: Mapping[str, bytes] | None = None, itemsize: int = 4) -> bytes:
    """The same as PyTorch wrote it before 1.6: pickles, then the storages in a row, each after its number of elements."""
    records = storages() if records is None else records
    keys = b"](" + b"".join(text(key.removeprefix("data/")) for key in records) + b"e"
    data = b"".join(struct.pack("<q", len(record) // itemsize) + record for record in records.values())
    return LEGACY_START + pickled(value) + pickled(keys) + data


def safetensors(header: object | None = None, data: bytes | None = None, length: int | None = None) -> bytes:
    """A safetensors file; ``header`` is JSON text or what becomes it, by default that of :func:`network`."""
    if header is None:
        header, position = {}, 0
        for name, shape in SHAPES.items():
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, position + 4 * product(shape)]}
            position += 4 * product(shape)
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (
        struct.pack("<Q", len(encoded) if length is None else length)
        + encoded
        + (b"".join(storages().values()) if data is None else data)
    )


# ---- ONNX, field by field ------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    value %= 2**64
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field of a protobuf message: a number, a float32, a text, or bytes that may be a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def onnx_tensor(name: str, shape: tuple[int, ...], data: bytes, dtype: int = 1) -> bytes:
    return b"".join(field(1, size) for size in shape) + field(2, dtype) + field(8, name) + field(9, data)


Attribute = int | float | str | bytes | tuple[int, ...]


def onnx_attribute(name: str, value: Attribute) -> bytes:
    """A message is given as bytes: a tensor."""
    if isinstance(value, tuple):
        return field(1, name) + b"".join(field(8, number) for number in value) + field(20, 7)
    number, kind = {int: (3, 2), float: (2, 1), str: (4, 3), bytes: (5, 4)}[type(value)]
    return field(1, name) + field(number, value) + field(20, kind)


def onnx_node(operator: str, inputs: str, outputs: str, name: str = "", **attributes: Attribute) -> bytes:
    """Names of inputs and outputs in one text, ``-`` for an empty one."""
    parts = [field(1, word.strip("-")) for word in inputs.split()] + [field(2, word.strip("-")) for word in outputs.split()]
    parts += [field(3, name), field(4, operator), *(field(5, onnx_attribute(*pair)) for pair in attributes.items())]
    return b"".join(parts)


def onnx_model(graph: bytes, opset: int = 17) -> bytes:
    return field(1, 8) + field(7, graph) + field(8, field(2, opset))


def onnx_weights() -> bytes:
    """The tensors of :data:`SHAPES` as W, R and B: gates in ONNX's order, W behind an Identity node."""
    rows = {}
    for index, (name, shape) in enumerate(SHAPES.items()):
        numbers, width = values(shape, index), product(shape[1:])
        blocks = [struct.pack(f"<{2 * width}f", *numbers[start : start + 2 * width]) for start in range(0, 8 * width, 2 * width)]
        rows[name] = b"".join(blocks[gate] for gate in (0, 3, 1, 2))
    W, R, b_ih, b_hh = rows.values()
    tensors = (("w", (1, 8, 3), W), ("R", (1, 8, 2), R), ("B", (1, 16), b_ih + b_hh))
    return b"".join(field(5, onnx_tensor(*tensor)) for tensor in tensors)


def onnx(more: bytes = b"", **attributes: int | float | str) -> bytes:
    """A model of one LSTM node; ``more`` fields of its graph."""
    nodes = [onnx_node("Identity", "w", "W"), onnx_node("LSTM", "X W R B", "Y", "lstm", hidden_size=2, **attributes)]
    return onnx_model(b"".join(field(1, node) for node in nodes) + onnx_weights() + more)


def onnx_chain() -> bytes:
    """The same, as exporters write it that fold nothing: torch's matrices, turned by nodes; two directions."""
    nodes, tensors = [], []

    def constant(name: str, *numbers: int) -> str:
        tensors.append(onnx_tensor(name, (len(numbers),), struct.pack(f"<{len(numbers)}q", *numbers), 7))
        return name

    for name, (H4, *columns) in SHAPES.items():
        data = struct.pack(f"<{product((H4, *columns))}f", *values((H4, *columns), 1))
        tensors.append(onnx_tensor(name, (H4, *columns), data))
        for gate in range(4):
            ends = (
                f"{constant(f's{gate}', 2 * gate)} {constant(f'e{gate}', 2 * gate + 2)}"
                if name == "weight_ih_l0"
                else f"s{gate} e{gate}"
            )
            nodes.append(onnx_node("Slice", f"{name} {ends}", f"{name}{gate}"))
        nodes.append(onnx_node("Concat", " ".join(f"{name}{gate}" for gate in (0, 3, 1, 2)), name + "_c", axis=0))
    axis = constant("axis", 0)
    for short, name in (("W", "weight_ih_l0"), ("R", "weight_hh_l0")):
        nodes.append(onnx_node("Unsqueeze", f"{name}_c {axis}", short + "1"))
        nodes.append(onnx_node("Concat", f"{short}1 {short}1", short, axis=0))
    nodes.append(onnx_node("Concat", "bias_ih_l0_c bias_hh_l0_c", "b", axis=0))
    nodes.append(onnx_node("Reshape", f"b {constant('row', 1, -1)}", "b1"))
    nodes.append(onnx_node("Expand", f"b1 {constant('both', 2, 16)}", "b2"))
    nodes.append(onnx_node("Split", "b2 two", "b3 b4", axis=1))
    constant("two", 8, 8)
    nodes.append(onnx_node("Add", "b4 b3", "b5"))
    nodes.append(onnx_node("Concat", "b3 b5", "b6", axis=1))
    nodes.append(onnx_node("Gather", f"b6 {constant('which', *range(16))}", "b7", axis=1))
    nodes.append(onnx_node("Transpose", "b7", "b8"))
    nodes.append(onnx_node("Transpose", "b8", "B"))
    nodes.append(onnx_node("LSTM", "X W R B", "Y", "lstm", hidden_size=2, direction="bidirectional"))
    return onnx_model(b"".join(field(1, node) for node in nodes) + b"".join(field(5, tensor) for tensor in tensors))


def onnx_state() -> bytes:
    """An LSTM that begins with what it learned, for as many rows as there are."""
    numbers = {"one": 1, "width": 2, "front": 0}
    tensors = [onnx_tensor(key, (1,), struct.pack("<q", n), 7) for key, n in numbers.items()]
    tensors.append(onnx_tensor("learned", (1, 1, 2), struct.pack("<2f", 0.5, -0.5)))
    nodes = [
        onnx_node("Shape", "X", "n", start=1, end=2),
        onnx_node("Concat", "one n one", "times", axis=0),
        onnx_node("Tile", "learned times", "h"),
        onnx_node("Concat", "one n width", "sizes", axis=0),
        onnx_node("Reshape", "h sizes", "h0"),
        onnx_node("ConstantOfShape", "sizes", "zeros"),
        onnx_node("Squeeze", "zeros front", "flat"),
        onnx_node("Unsqueeze", "flat front", "c"),
        onnx_node("Transpose", "c", "c1", perm=(0, 1, 2)),
        onnx_node("Add", "c1 h", "c0"),
        onnx_node("LSTM", "X w R B - h0 c0", "Y", "lstm", hidden_size=2),
    ]
    graph = [field(1, node) for node in nodes] + [field(5, tensor) for tensor in tensors]
    return onnx_model(
        b"".join(graph) + onnx_weights() + field(11, onnx_value("X", 1, "T", "B", 3)) + field(12, onnx_value("Y", 1))
    )


def onnx_selection() -> bytes:
    """A graph of what takes elements by number, and of integers of 8 bits."""
    constants = {"two": (2,), "ends": (0, 1, 0, 0), "at": (0,), "scalar": ()}
    tensors = [
        onnx_tensor(key, (len(n),) * (key != "scalar"), struct.pack(f"<{len(n) or 1}q", *(n or (1,))), 7)
        for key, n in constants.items()
    ]
    tensors += [
        onnx_tensor(name, shape, struct.pack(f"<{product(shape)}f", *values(shape, 1))) for name, shape in SELECTED.items()
    ]
    nodes = [
        onnx_node("TopK", "v two", "most places", axis=-1),
        onnx_node("GatherElements", "v places", "g", axis=1),
        onnx_node("Greater", "g most", "more"),
        onnx_node("Not", "more", "less"),
        onnx_node("Where", "less g most", "either"),
        onnx_node("Pad", "either ends", "p"),
        onnx_node("CumSum", "p scalar", "sums", exclusive=1),
        onnx_node("ReduceL2", "sums two1", "length", keepdims=1),
        onnx_node("BatchNormalization", "sums s s s s", "b", epsilon=0.01),
        onnx_node("GroupNormalization", "b s s", "groups", num_groups=3),
        onnx_node("DynamicQuantizeLinear", "groups", "q scale zero"),
        onnx_node("DequantizeLinear", "q scale zero", "floats"),
        onnx_node("MatMulInteger", "q q8 zero", "integers"),
        onnx_node("Mod", "integers integers", "m"),
        onnx_node("Range", "zero1 scalar scalar", "range"),
        onnx_node("GatherND", "floats at2", "nd"),
        onnx_node("OneHot", "places two values", "hot", axis=1),
        onnx_node("PRelu", "floats s", "out"),
        onnx_node("Reshape", "floats three", "X"),
        onnx_node("LSTM", "X w R B", "Y", "lstm", hidden_size=2),
    ]
    tensors.append(onnx_tensor("two1", (1,), struct.pack("<q", 1), 7))
    tensors.append(onnx_tensor("three", (3,), struct.pack("<3q", -1, 1, 3), 7))
    tensors.append(onnx_tensor("zero1", (), struct.pack("<q", 0), 7))
    tensors.append(onnx_tensor("at2", (1, 1), struct.pack("<q", 0), 7))
    tensors.append(onnx_tensor("q8", (3, 2), bytes(range(6)), 2))
    graph = [field(1, node) for node in nodes] + [field(5, tensor) for tensor in tensors] + [onnx_weights()]
    graph.append(field(11, onnx_value("v", 1, "B", 4)))
    outputs = ("out", "hot", "nd", "m", "range", "length", "Y")
    return onnx_model(b"".join(graph) + b"".join(field(12, onnx_value(name, 1)) for name in outputs), opset=21)


SELECTED = {"s": (3,), "values": (2,)}


def onnx_value(name: str, dtype: int, *sizes: int | str) -> bytes:
    shape = b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in sizes)
    return field(1, name) + field(2, field(1, field(1, dtype) + field(2, shape)))


def onnx_graph() -> bytes:
    """A whole graph: an embedding, an LSTM from a state that is made at run time, and most of what exporters write around it."""
    constants = {"zero": (0,), "one": (1,), "two": (2,), "last_one": (-1,), "rows": (0, -1), "spread": (3, 1, 2), "twice": (1, 2)}
    tensors = [onnx_tensor(key, (len(n),), struct.pack(f"<{len(n)}q", *n), 7) for key, n in constants.items()]
    tensors.append(onnx_tensor("at_0", (), struct.pack("<q", 0), 7))
    for index, (name, shape) in enumerate({"table": (5, 3), "fc": (4, 2), "fc_bias": (4,), "gamma": (4,), "mat": (4, 4)}.items()):
        tensors.append(onnx_tensor(name, shape, struct.pack(f"<{product(shape)}f", *values(shape, index))))
    nodes = [
        onnx_node("Gather", "table ids", "x"),
        onnx_node("Shape", "x", "sizes"),
        onnx_node("Gather", "sizes at_0", "b", axis=0),
        onnx_node("Unsqueeze", "b zero", "b1"),
        onnx_node("Concat", "one b1 two", "state", axis=0),
        onnx_node("ConstantOfShape", "state", "h", value=onnx_tensor("", (1,), struct.pack("<f", 0.5))),
        onnx_node("Transpose", "x", "X", perm=(1, 0, 2)),
        onnx_node("LSTM", "X w R B - h c", "Y Y_h Y_c", "lstm", hidden_size=2),
        onnx_node("Squeeze", "Y one", "y"),
        onnx_node("Dropout", "y", "y1"),
        onnx_node("Transpose", "y1", "y2", perm=(1, 0, 2)),
        onnx_node("Gather", "y2 last_one", "l", axis=1),
        onnx_node("Flatten", "l", "last", axis=1),
        onnx_node("Gemm", "last fc fc_bias", "dense", transB=1, alpha=0.5),
        onnx_node("LayerNormalization", "dense gamma fc_bias", "norm", axis=-1, epsilon=1e-5),
        onnx_node("MatMul", "norm mat", "product"),
        onnx_node("Relu", "product", "relu"),
        onnx_node("Split", "relu", "left right", axis=1, num_outputs=2),
        onnx_node("ReduceMean", "left one", "mean", keepdims=1),
        onnx_node("Sub", "right mean", "difference"),
        onnx_node("Pow", "difference difference", "power"),
        onnx_node("Tile", "power twice", "tiled"),
        onnx_node("Reshape", "tiled rows", "flat"),
        onnx_node("Slice", "flat zero last_one one", "part"),
        onnx_node("Clip", "part", "clipped"),
        onnx_node("Softmax", "clipped", "soft", axis=-1),
        onnx_node("Equal", "soft soft", "same"),
        onnx_node("Cast", "same", "number", to=1),
        onnx_node("Where", "same number soft", "chosen"),
        onnx_node("Expand", "Y_c spread", "out"),
    ]
    graph = [field(1, node) for node in nodes] + [field(5, tensor) for tensor in tensors] + [onnx_weights()]
    graph += [field(11, onnx_value("ids", 7, "B", "T")), field(11, onnx_value("c", 1, 1, "B", 2))]
    return onnx_model(b"".join(graph) + field(12, onnx_value("chosen", 1, "B", "N")) + field(12, onnx_value("out", 1)), opset=18)


# ---- Mutations -----------------------------------------------------------------------------------------------------------------

Random = random.Random

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    16,
    24,
    127,
    128,
    255,
    256,
    *(2**bits + more for bits in (16, 31, 32, 40, 62, 63) for more in (-1, 0)),
)
WORDS = (
    "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "weight_hr_l0", "weight_ih_l1", "weight_ih_l0_reverse", "weight_ih",
    "weight_hh_l0_g", "weight_hh_l0_scale", "storage", "cpu", "0", "1", "../x", "", "\0", "\ud800", "a" * 600, "." * 80,
    "module.weight_ih_l0", "parametrizations.weight_hh_l0.original0", "byteorder", "fastlstm", "__metadata__",
)  # fmt: skip
GLOBALS = (
    b"cos\nsystem\n", b"cbuiltins\ngetattr\n", b"c__builtin__\neval\n", b"ctorch\nHalfStorage\n", b"ctorch\nBFloat16Storage\n",
    b"ctorch\nLongStorage\n", b"ctorch\nDoubleStorage\n", b"ctorch._utils\n_rebuild_parameter\n", b"ccollections\nOrderedDict\n",
    b"ctorch\nSize\n", b"cnumpy\ndtype\n", b"cargparse\nNamespace\n", b"c_codecs\nencode\n", b"ctorch\nfloat32\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._utils\n_rebuild_tensor\n",
)  # fmt: skip
OPCODES = b"(.012BCDFGIJKLMNPQRSTUVXabcdeghijloqrstup}])" + bytes(range(0x80, 0x98))


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Flip, overwrite, insert, delete, repeat, cut off, append: anywhere."""
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice((1, 1, 1, 2, 4, 8, 64)))
    action = rng.randrange(8)
    if action == 0 and start < len(data):
        return data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
    if action == 1:
        return data[:start] + rng.randbytes(stop - start) + data[stop:]
    if action == 2:
        return data[:start] + rng.randbytes(rng.choice((1, 4, 8))) + data[start:]
    if action == 3:
        return data[:start] + data[stop:]
    if action == 4:
        return data[:stop] + data[start:stop] * rng.choice((1, 2, 50)) + data[stop:]
    if action == 5:
        return data[:start]
    if action == 6:
        return data + rng.randbytes(rng.choice((1, 22, 100)))
    width = rng.choice("BHIQ")
    return (
        data[:start]
        + struct.pack("<" + width, rng.choice(NUMBERS) % 2 ** (8 * struct.calcsize(width)))
        + data[start + struct.calcsize(width) :]
    )


def mutate_pickle(data: bytes, rng: Random) -> bytes:
    """Change whole opcodes, so that what follows is still read as it was meant."""
    try:
        positions = [position for _, _, position in pickletools.genops(data)]
    except Exception:
        return mutate_bytes(data, rng)
    index = rng.randrange(len(positions))
    start = positions[index]
    stop = positions[index + 1] if index + 1 < len(positions) else len(data)
    opcode = data[start:stop]
    other = rng.randrange(len(positions))
    chosen = data[positions[other] : positions[other + 1] if other + 1 < len(positions) else len(data)]
    action = rng.randrange(9)
    if opcode[:1] in b"KMJ\x8a" and rng.random() < 0.6:
        new = integer(rng.choice(NUMBERS) * rng.choice((1, 1, 1, -1)))
    elif opcode[:1] in b"X\x8c" and rng.random() < 0.6:
        new = rng.choice((text(rng.choice(WORDS)), b"X" + struct.pack("<I", rng.choice(NUMBERS) % 2**32) + opcode[5:]))
    elif opcode[:1] == b"c" and rng.random() < 0.8:
        new = rng.choice(GLOBALS)
    elif opcode[:1] in b"qhrj" and rng.random() < 0.8:
        new = (
            rng.choice((b"q", b"h")) + bytes([rng.randrange(256)])
            if rng.random() < 0.5
            else rng.choice((b"r", b"j")) + rng.randbytes(4)
        )
    elif action == 0:
        new = b""
    elif action == 1:
        new = opcode * rng.choice((2, 3, 100))
    elif action == 2:
        new = chosen
    elif action == 3:
        new = opcode + chosen
    elif action == 4:
        new = bytes([rng.choice(OPCODES)]) + opcode[1:]
    elif action == 5:
        new = bytes([rng.choice(OPCODES)])
    elif action == 6:
        new = opcode + bytes(rng.choice(OPCODES) for _ in range(rng.randrange(1, 6)))
    elif action == 7:
        new = b"h" + bytes([rng.randrange(40)])
    else:
        return mutate_bytes(data, rng)
    return data[:start] + new + data[stop:]


def mutate_zip(data: bytes, rng: Random) -> bytes:
    """Change the pickle, the members or the directory of a zip file, or its bytes."""
    action = rng.randrange(10)
    if action < 5:
        members = _members(data)
        names = list(members)
        name = next((name for name in names if name.endswith("data.pkl")), "") if action < 4 else rng.choice([*names, ""])
        if not name:
            return mutate_bytes(data, rng)
        if action < 4:
            members[name] = mutate_pickle(members[name], rng)
        else:
            change = rng.randrange(5)
            if change == 0:
                del members[name]
            elif change == 1:
                members[rng.choice(WORDS).encode("ascii", "replace").decode().replace("\0", "") or "x"] = members.pop(name)
            elif change == 2:
                members[name] = mutate_bytes(members[name], rng)
            elif change == 3:
                members[name] = members[rng.choice(names)]
            else:
                members[
                    rng.choice(("archive/constants.pkl", "archive/code/x.py", "b/data.pkl", "/x", "a/../b", "archive/extra"))
                ] = b"x"
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return stream.getvalue()
    if action < 9:
        return _mutate_record(data, rng)
    return mutate_bytes(data, rng)


def _members(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name}
    except Exception:
        return {}  # mutated before


# Of each record: signature, and its fields as (offset, bytes)
RECORDS = (
    (b"PK\x03\x04", ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2))),
    (b"PK\x01\x02", ((4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (34, 2), (42, 4))),
    (b"PK\x05\x06", ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2))),
)  # fmt: skip


def _mutate_record(data: bytes, rng: Random) -> bytes:
    signature, fields = rng.choice(RECORDS)
    starts = []
    start = data.find(signature)
    while start >= 0:
        starts.append(start)
        start = data.find(signature, start + 1)
    if not starts:
        return mutate_bytes(data, rng)
    offset, width = rng.choice(fields)
    place = rng.choice(starts) + offset
    old = int.from_bytes(data[place : place + width], "little")
    new = rng.choice((rng.choice(NUMBERS), old + 1, old - 1, old ^ 1 << rng.randrange(8 * width), 8, len(data)))
    return data[:place] + (new % 2 ** (8 * width)).to_bytes(width, "little") + data[place + width :]


def mutate_legacy(data: bytes, rng: Random) -> bytes:
    """Change one of the five pickles, or the storages behind them."""
    stream = io.BytesIO(data)
    parts = []
    try:
        for _ in range(5):
            start = stream.tell()
            for _ in pickletools.genops(stream):
                pass
            parts.append(data[start : stream.tell()])
    except Exception:
        return mutate_bytes(data, rng)
    rest = data[stream.tell() :]
    index = rng.choice((0, 1, 2, 3, 3, 3, 3, 3, 3, 4, 4, 5, 5, 6))
    if index == 6:
        return mutate_bytes(data, rng)
    if index == 5:
        return b"".join(parts) + mutate_bytes(rest, rng)
    parts[index] = mutate_pickle(parts[index], rng)
    return b"".join(parts) + rest


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """Change fields of the header, its length, or bytes."""
    length = int.from_bytes(data[:8], "little")
    action = rng.randrange(10)
    if action == 0:
        return struct.pack("<Q", rng.choice((*NUMBERS, length + 1, length - 1, 2**64 - 1)) % 2**64) + data[8:]
    try:
        header = json.loads(data[8 : 8 + length])
    except Exception:
        header = None
    if action < 3 or not isinstance(header, dict) or not header:
        return mutate_bytes(data, rng)
    if action == 3:
        encoded = mutate_bytes(data[8 : 8 + length], rng)
        return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]
    name = rng.choice(list(header))
    entry = header[name]
    if action == 4:
        header[rng.choice(WORDS)] = header.pop(name) if rng.random() < 0.7 else entry
    elif action == 5 and isinstance(entry, dict):
        key = rng.choice(("dtype", "shape", "data_offsets", "extra"))
        wrong = (None, 1, -1, 2.5, True, "F32", "x", [], [[]], {}, {"a": 1}, [1, 2], "F16", 10**30)
        entry[key] = rng.choice(wrong)
    elif action == 6 and isinstance(entry, dict):
        entry["dtype"] = rng.choice(("F16", "BF16", "F32", "F64", "I8", "I32", "F8_E4M3", "C64", "BOOL", "F4"))
    elif action in (7, 8) and isinstance(entry, dict) and "shape" in entry:
        numbers = entry.get(rng.choice(("shape", "data_offsets")))
        if isinstance(numbers, list) and numbers:
            numbers[rng.randrange(len(numbers))] = rng.choice((*NUMBERS, -1))
        if rng.random() < 0.5 and isinstance(numbers, list):
            numbers.reverse()
    else:
        header["__metadata__"] = rng.choice(
            (
                {"fastlstm": rng.choice(("", "{}", '{"batch_first": 1}', '{"batch_first": true}', "[" * 999))},
                {"a": "b"},
                [],
                {"a": 1},
            )
        )
    encoded = json.dumps(header).encode()
    if action == 4 and rng.random() < 0.3:
        encoded = encoded.replace(b"{", b'{"weight_ih_l0": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, ', 1)
    return struct.pack("<Q", len(encoded)) + encoded + data[8 + length :]


# The fields that are messages, for each kind of message
NESTED = {
    "model": {7: "graph", 8: "opset"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "value": {2: "type"},
    "type": {1: "tensor type"},
    "tensor type": {2: "shape"},
    "shape": {1: "size"},
}
ONNX_WORDS = (
    "LSTM", "GRU", "Slice", "Concat", "Unsqueeze", "Transpose", "Squeeze", "Reshape", "Gather", "Expand", "ConstantOfShape",
    "Split", "Constant", "Cast", "Add", "Identity", "DequantizeLinear", "DynamicQuantizeLSTM", "If", "X", "W", "R", "B", "Y", "",
    "w", "com.microsoft", "hidden_size", "direction", "bidirectional", "reverse", "layout", "clip", "input_forget", "activations",
    "axis", "axes", "perm", "value", "to", "../x", "\0", "a" * 600, "cell.weight_ih", "cell.weight_hh_l0", "location", "fastlstm",
    "x", "ids", "h", "y", "last", "Gemm", "MatMul", "Softmax", "Tile", "Shape", "Relu", "Div", "Pow", "Where", "Clip",
    "ReduceMean", "Flatten", "Dropout", "LayerNormalization", "Sum", "Erf", "ArgMax", "Size", "Equal", "keepdims", "starts",
    "Range", "OneHot", "TopK", "Pad", "GatherND", "GatherElements", "CumSum", "Mod", "MatMulInteger", "RandomNormalLike",
)  # fmt: skip

Field = tuple[int, int, "int | bytes"]  # number, wire type, value


def fields_of(data: bytes) -> list[Field] | None:
    """The fields of a message, or None if it is none."""
    position, fields = 0, list[Field]()

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    try:
        while position < len(data):
            tag = number()
            wire = tag & 7
            if wire == 0:
                fields.append((tag >> 3, 0, number()))
                continue
            size = {1: 8, 5: 4}.get(wire) or number()
            if wire not in (1, 2, 5) or position + size > len(data):
                return None
            fields.append((tag >> 3, wire, data[position : position + size]))
            position += size
    except IndexError:
        return None
    return fields


def joined(fields: Iterable[Field]) -> bytes:
    parts = []
    for number, wire, value in fields:
        data = varint(value) if isinstance(value, int) else value
        parts.append(varint(number << 3 | wire) + (varint(len(data)) if wire == 2 else b"") + data)
    return b"".join(parts)


def mutate_onnx(data: bytes, rng: Random, kind: str = "model") -> bytes:
    """Change a field of a message somewhere in the tree, so that all around it is still read as it was meant."""
    fields = fields_of(data) if kind else None
    if not fields or rng.random() < 0.03:
        return mutate_bytes(data, rng)
    index = rng.randrange(len(fields))
    number, wire, value = fields[index]
    inner = NESTED.get(kind, {}).get(number)
    if inner and isinstance(value, bytes) and rng.random() < 0.85:
        fields[index] = number, wire, mutate_onnx(value, rng, inner)
        return joined(fields)
    action = rng.randrange(9)
    if action == 0:
        del fields[index]
    elif action == 1 and (wire == 2 or rng.random() < 0.1):  # of a number only the last counts
        fields.insert(index, fields[index])
    elif action == 2:
        fields[index] = rng.choice(fields)
    elif action == 3:
        fields.insert(index, (rng.choice((*range(1, 17), 20, 25, 99)), wire, value))
    elif action == 4:
        fields[index] = rng.choice((*range(1, 17), 20, 25, 99)), wire, value
    elif isinstance(value, int):
        new = rng.choice((rng.choice(NUMBERS), -rng.choice(NUMBERS), value + 1, value - 1, rng.randrange(20)))
        fields[index] = number, 0, new % 2**64
    elif action < 8 and wire == 2 and len(value) < 40:
        fields[index] = number, 2, rng.choice(ONNX_WORDS).encode()
    else:
        fields[index] = number, wire, mutate_bytes(value, rng) if wire == 2 else rng.randbytes(len(value))
    return joined(fields)


# ---- Keras ---------------------------------------------------------------------------------------------------------------------

SIGNATURE = b"\x89HDF\r\n\x1a\n"
BEGIN, END = b"<listing>", b"</listing>"
KERAS_CONFIG = {
    "units": 2, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True, "go_backwards": False,
    "return_sequences": True, "dropout": 0.0,
    "dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}},
}  # fmt: skip
KERAS_WORDS = (
    "LSTM", "GRU", "RNN", "Bidirectional", "StackedRNNCells", "LSTMCell", "CuDNNLSTM", "Sequential", "MyLSTM", "layers", "layer",
    "cell", "cells", "config", "class_name", "name", "units", "tanh", "hard_sigmoid", "gelu", "linear", "merge_mode", "sum",
    "backward_layer", "module", "os.system", "keras.layers", "vars", "0", "1", "2", "lstm", "lstm_1", "layers/lstm/cell/vars/0",
    "layers/lstm", "a/b", "<f4", "<f2", ">f8", "|V2", "<i4", "bfloat16", "kernel:0", "x/kernel:0", "model_config", "layer_names",
    "weight_names", "", "\0", "\ud800", "k" * 2000, "/", "//", "entries", "broken", "missing", "time_major", "go_backwards",
    "forward_lstm", "backward_lstm", "Functional", "InputLayer", "Embedding", "Dense", "Masking", "Add", "Concatenate", "Flatten",
    "Reshape", "LayerNormalization", "TimeDistributed", "RepeatVector", "Dropout", "NotEqual", "Any", "LogicalOr", "LeakyReLU",
    "ExpandDims", "ZerosLike", "OnesLike", "bool", "keras.src.ops.numpy",
    "args", "kwargs", "mask", "training", "inbound_nodes", "input_layers", "output_layers", "batch_shape", "target_shape", "axis",
    "keras_history", "__keras_tensor__", "words", "ids", "mask_zero", "return_sequences", "return_state", "build_input_shape",
)  # fmt: skip


def keras_layer(kind: str, name: str, **config: object) -> dict[str, object]:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name, **config}, "registered_name": None}


def keras_model() -> dict[str, object]:
    """An LSTM, two directions, stacked cells, one inside another model."""
    ways = {key: keras_layer("LSTM", key, **KERAS_CONFIG) for key in ("layer", "backward_layer")}
    ways["backward_layer"]["config"]["go_backwards"] = True  # type: ignore[index]
    cell_config = {key: value for key, value in KERAS_CONFIG.items() if key not in ("go_backwards", "return_sequences")}
    cells = keras_layer("StackedRNNCells", "cells", cells=[keras_layer("LSTMCell", f"c{n}", **cell_config) for n in (0, 1)])
    layers = [
        keras_layer("LSTM", "first", **KERAS_CONFIG),
        keras_layer("Bidirectional", "both", merge_mode="concat", **ways),
        keras_layer("RNN", "stack", cell=cells),
        keras_layer("Sequential", "inner", layers=[keras_layer("LSTM", "last", **KERAS_CONFIG)]),
    ]
    return keras_layer("Functional", "model", layers=layers)


def listed(path: str, attributes: Mapping[str, list[str]] | None = None, *rest: object) -> list[object]:
    return [path, dict(attributes or {}), *rest]


def keras_tree() -> tuple[list[object], int]:
    """What the child says of the weights of :func:`keras_model`, and how many bytes of data they take."""
    entries, offset = [listed("")], 0
    cells = {
        "layers/lstm/cell": (3, "first"),
        "layers/bidirectional/forward_layer/cell": (3, ""),
        "layers/bidirectional/backward_layer/cell": (3, ""),
        "layers/rnn/cell/cells/lstm_cell": (3, ""),
        "layers/rnn/cell/cells/lstm_cell_1": (2, ""),
        "layers/sequential/layers/lstm/cell": (3, ""),
    }
    groups = {"/".join(path.split("/")[:n]) for path in cells for n in range(1, path.count("/") + 2)}
    names = {"layers/lstm": "first", "layers/bidirectional": "both", "layers/rnn": "stack", "layers/sequential": "inner"}
    entries += [listed(path) for path in sorted(groups)]
    entries += [listed(f"{path}/vars", {"name": [name]}) for path, name in names.items()]
    for path, (size, _) in cells.items():
        entries.append(listed(f"{path}/vars", {"name": ["lstm_cell"]}))
        for name, shape in (("0", (size, 8)), ("1", (2, 8)), ("2", (8,))):
            entries.append(listed(f"{path}/vars/{name}", None, shape, "<f4", offset, 4 * product(shape)))
            offset += 4 * product(shape)
    return entries, offset


def keras_legacy_tree() -> tuple[list[object], int]:
    """The same for a file of Keras 2, with its configuration."""
    model = json.dumps(keras_model())
    layers = {
        "first": ["lstm/cell"],
        "both": ["b/forward_l/cell", "b/backward_l/cell"],
        "stack": ["s/c0", "s/c1"],
        "inner": ["last/c"],
    }
    entries = [
        listed("", {"model_config": [model], "keras_version": ["2.15.0"]}),
        listed("model_weights", {"layer_names": [*layers]}),
    ]
    offset = 0
    for layer, cells in layers.items():
        names = [f"{cell}/{leaf}:0" for cell in cells for leaf in ("kernel", "recurrent_kernel", "bias")]
        entries.append(listed(f"model_weights/{layer}", {"weight_names": names}))
        groups = {"/".join(cell.split("/")[:n]) for cell in cells for n in range(1, cell.count("/") + 2)}
        entries += [listed(f"model_weights/{layer}/{group}") for group in sorted(groups)]
        for name in names:
            size = 2 if name.startswith("s/c1") else 3
            shape = (8,) if "bias" in name else (2, 8) if "recurrent" in name else (size, 8)
            entries.append(listed(f"model_weights/{layer}/{name}", None, shape, "<f4", offset, 4 * product(shape)))
            offset += 4 * product(shape)
    return entries, offset


def keras_whole() -> tuple[dict[str, object], dict[str, dict[str, tuple[int, ...]]]]:
    """A model that runs as a whole, with a layer of most classes and a model in it; and the shapes of its layers' weights."""
    called: dict[str, dict[str, object]] = {}

    def tensor(name: str) -> dict[str, object]:
        return {"class_name": "__keras_tensor__", "config": {"shape": None, "dtype": "float32", "keras_history": [name, 0, 0]}}

    def call(kind: str, name: str, *inputs: str, mask: str = "", constant: int | None = None, **config: object) -> None:
        args = [[tensor(other) for other in inputs]] if len(inputs) > 1 else [tensor(other) for other in inputs]
        keywords = {"training": False, "mask": tensor(mask)} if mask else {}
        node = {"args": [*args, *([] if constant is None else [constant])], "kwargs": keywords}
        called[name] = {**keras_layer(kind, name, **config), "name": name, "inbound_nodes": [node] if inputs else []}

    lstm = {**KERAS_CONFIG, "return_sequences": True}
    dense = keras_layer("Dense", "dense", units=2, activation="relu", use_bias=True)
    call("InputLayer", "words", batch_shape=[None, 3])
    call("NotEqual", "real", "words", constant=0)
    call("Embedding", "table", "words", input_dim=4, output_dim=3, mask_zero=True)
    call("LSTM", "first", "table", mask="real", **lstm)
    call("TimeDistributed", "each", "table", layer=dense)
    call("Add", "sum", "first", "each")
    call("LayerNormalization", "norm", "sum", axis=-1, epsilon=0.001, center=True, scale=True)
    call("Bidirectional", "both", "norm", mask="real", merge_mode="ave", layer=keras_layer("LSTM", "way", **lstm))
    call("Concatenate", "beside", "both", "norm", axis=-1)
    call("ExpandDims", "thin", "real", axis=-1)
    call("ZerosLike", "zeros", "both", dtype="bool")
    call("LogicalOr", "wide", "thin", "zeros")
    call("OnesLike", "ones", "norm", dtype="bool")
    call("Concatenate", "masks", "wide", "ones", axis=-1)
    call("Any", "any", "masks", axis=-1, keepdims=False)
    call("LSTM", "last", "beside", mask="any", **{**lstm, "return_sequences": False})
    call("RepeatVector", "repeat", "last", n=2)
    layers = [
        keras_layer("Masking", "masking", mask_value=0.0),
        keras_layer("LSTM", "lstm", **lstm),
        keras_layer("Dropout", "drop"),
    ]
    call("Sequential", "inner", "repeat", layers=layers)
    call("LeakyReLU", "leaky", "inner", negative_slope=0.2)
    call("Flatten", "flat", "leaky")
    call("Reshape", "row", "flat", target_shape=[-1])
    call("Dense", "end", "row", units=1, activation="tanh", use_bias=False)
    ends = {"input_layers": [["words", 0, 0]], "output_layers": ["end", 0, 0]}

    def cell(inputs: int) -> dict[str, tuple[int, ...]]:
        return {"kernel": (inputs, 8), "recurrent_kernel": (2, 8), "bias": (8,)}

    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "table": {"embeddings": (4, 3)},
        "first/cell": cell(3),
        "each/layer": {"kernel": (3, 2), "bias": (2,)},
        "norm": {"gamma": (2,), "beta": (2,)},
        "both/forward_layer/cell": cell(2),
        "both/backward_layer/cell": cell(2),
        "last/cell": cell(4),
        "inner/layers/lstm/cell": cell(2),
        "end": {"kernel": (4, 1)},
    }
    return keras_layer("Functional", "whole", layers=[*called.values()], **ends), shapes


# Of each layer, by its name, the group that Keras 3 puts it in
STEMS = {
    "first": "lstm",
    "last": "lstm_1",
    "table": "embedding",
    "each": "time_distributed",
    "norm": "layer_normalization",
    "both": "bidirectional",
    "inner": "sequential",
    "end": "dense",
}


def keras_whole_trees() -> tuple[tuple[list[object], int], tuple[list[object], int]]:
    """What the child says of the weights of :func:`keras_whole` in Keras' own archive, and in a file of the old form."""
    model, shapes = keras_whole()
    kinds = {layer["config"]["name"]: layer["class_name"] for layer in model["config"]["layers"]}  # type: ignore[index]
    tree: list[object] = [listed(""), listed("layers")]
    described = {"model_config": [json.dumps(model)], "keras_version": ["3.15.1"]}
    legacy = [listed("", described), listed("model_weights", {"layer_names": [*kinds]})]
    offset, made, named = 0, set[str](), dict[str, list[str]]()
    for path, weights in shapes.items():
        layer, _, rest = path.partition("/")
        stem = STEMS[layer]
        steps = ["layers", stem, *rest.split("/")] if rest else ["layers", stem]
        for end in range(2, len(steps) + 1):
            group = "/".join(steps[:end])
            if group not in made:
                made.add(group)
                tree.append(listed(group))
                if end == 2:
                    tree.append(listed(f"{group}/vars", {"name": [layer]}))
        variables = "/".join([*steps, "vars"])
        if len(steps) > 2:
            tree.append(listed(variables, {"name": ["x"]}))
        for index, (role, shape) in enumerate(weights.items()):
            size = 4 * product(shape)
            tree.append(listed(f"{variables}/{index}", None, shape, "<f4", offset, size))
            inside = rest.replace("layers/", "").replace("forward_layer", "forward_way").replace("backward_layer", "backward_way")
            if not any(name.startswith(f"{layer}/{inside}") for name in named.get(layer, [])):
                parts = f"model_weights/{layer}/{layer}/{inside}".rstrip("/").split("/")
                for end in range(2, len(parts) + 1):
                    if "/".join(parts[:end]) not in made:
                        made.add("/".join(parts[:end]))
                        legacy.append(listed("/".join(parts[:end])))
            name = f"{layer}/{inside}/{role}".replace("//", "/")
            named.setdefault(layer, []).append(name)
            legacy.append(listed(f"model_weights/{layer}/{name}", None, shape, "<f4", offset, size))
            offset += size
    for layer in kinds:
        if f"model_weights/{layer}" not in made:
            legacy.append(listed(f"model_weights/{layer}"))
    for entry in legacy:
        path = str(entry[0])  # type: ignore[index]
        if path.startswith("model_weights/") and path.count("/") == 1:
            entry[1]["weight_names"] = named.get(path.split("/")[1], [])  # type: ignore[index]
    return (tree, offset), (legacy, offset)


def fake_hdf5(entries: list[object], size: int) -> bytes:
    """A file that :func:`fake_answer` reads in place of HDF5's library: the data, then what there is to say of them."""
    moved = [[*entry[:4], entry[4] + 8, entry[5]] if len(entry) == 6 else entry for entry in entries]  # type: ignore[arg-type, index]
    data = struct.pack(f"<{size // 4}f", *values((size // 4,), 1))
    return SIGNATURE + data + BEGIN + json.dumps({"entries": moved}).encode() + END


def fake_answer(descriptor: int, limit: int) -> bytes:
    data = os.pread(descriptor, 1 << 24, 0)
    return data.partition(BEGIN)[2].rpartition(END)[0][: limit // 8]


class Forked:
    """Reads HDF5 in a fork of this process, which has imported h5py, in place of an interpreter of its own: a tenth of the time.

    The fork runs the same script under the same limits. A file that is read again is not listed again.
    """

    def __init__(self) -> None:
        import h5py

        from fastlstm.loaders.keras import hdf5, hdf5_worker

        self.worker, self.hdf5 = hdf5_worker, hdf5
        self.worker.rehearse(h5py)  # here, and then in no fork
        self.worker.rehearse = lambda h5py: None
        self.last: tuple[bytes, bytes] | None = None
        self.ended: Counter[int] = Counter()  # by what ended the forks: 0, or minus the number of a signal

    def __call__(self, descriptor: int, limit: int) -> bytes:
        from fastlstm import FormatError

        data = os.pread(descriptor, 1 << 26, 0)
        if self.last is None or self.last[0] != data:
            self.last = data, self._ask(descriptor, limit)
        if not self.last[1]:
            raise FormatError(f"{self.hdf5.BROKEN}: HDF5's library did not survive it")
        return self.last[1]

    def _ask(self, descriptor: int, limit: int) -> bytes:
        request = self.hdf5._request(limit)
        ours, theirs = os.pipe()
        position = os.lseek(descriptor, 0, os.SEEK_CUR)  # the fork shares it
        child = os.fork()
        if child == 0:
            try:
                os.dup2(descriptor, 0)
                os.dup2(theirs, 1)
                sys.argv = ["", json.dumps(request)]
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # what waits in the other belongs to the parent
                self.worker.main()
                sys.stdout.flush()
            finally:
                os._exit(0)
        os.close(theirs)
        try:
            text = self.hdf5._read_until(ours, request["limit"], time.monotonic() + 60)
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            text = b""
        finally:
            os.close(ours)
            self.ended[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] += 1
            os.lseek(descriptor, position, os.SEEK_SET)
        return text


def keras_archive(model: object = None, weights: bytes | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(model or keras_model()))
        archive.writestr("model.weights.h5", weights or fake_hdf5(*keras_tree()))
    return stream.getvalue()


def mutate_config(data: bytes, rng: Random) -> bytes:
    """Change a few values, keys or elements anywhere inside, or bytes."""
    try:
        value = json.loads(data)
    except Exception:
        return mutate_bytes(data, rng)
    if rng.random() < 0.1:
        return mutate_bytes(data, rng)
    places: list[tuple[object, object]] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else []
        places += [(item, key) for key in keys]
        waiting += [item[key] for key in keys]
    if not places:
        return mutate_bytes(data, rng)
    holder, key = rng.choice(places)
    old = holder[key]  # type: ignore[index]
    action = rng.randrange(7)
    if action == 0:
        del holder[key]  # type: ignore[attr-defined]
    elif action == 1 and isinstance(holder, dict):
        holder[rng.choice(KERAS_WORDS)] = holder.pop(key) if rng.random() < 0.5 else old
    elif action == 2 and isinstance(holder, list):
        holder.append(old)
    elif action == 3 and isinstance(old, str) and old[:1] in "{[":  # a text that is JSON itself
        holder[key] = mutate_config(old.encode(), rng).decode("latin1")  # type: ignore[index]
    elif action == 4:
        other, place = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[place]))  # type: ignore[index]
    elif action == 5:
        holder[key] = rng.choice((*NUMBERS, -1, *KERAS_WORDS))  # type: ignore[index]
    else:
        wrong = (None, 1, -1, 2.5, True, False, [], [[]], {}, {"a": 1}, [1, 2], 10**30, "x", [old], {"config": old})
        holder[key] = rng.choice(wrong)  # type: ignore[index]
    return json.dumps(value).encode()


def mutate_listing(data: bytes, rng: Random) -> bytes:
    head, found, rest = data.partition(BEGIN)
    text, _, tail = rest.rpartition(END)
    return head + BEGIN + mutate_config(text, rng) + END + tail if found and rng.random() < 0.8 else mutate_bytes(data, rng)


def mutate_keras(data: bytes, rng: Random) -> bytes:
    """Change the configuration, what the child says of the weights, the members or the directory of the archive, or bytes."""
    if data[:2] != b"PK":
        return mutate_listing(data, rng)
    members = _members(data) if rng.random() < 0.8 else {}
    name = rng.choice((*["config.json"] * 4, "model.weights.h5", "model.weights.h5", "metadata.json"))
    if name not in members:
        return mutate_zip(data, rng)
    members[name] = mutate_listing(members[name], rng) if name.endswith("h5") else mutate_config(members[name], rng)
    return rezipped(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def rezipped(members: Mapping[str, bytes], method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def mutate_hdf5(data: bytes, rng: Random) -> bytes:
    """Change bytes where there is something, which in these files is a tenth; of an archive, those of the weights in it."""
    if data[:2] == b"PK":
        members = _members(data)
        if "model.weights.h5" not in members:
            return mutate_bytes(data, rng)
        members["model.weights.h5"] = mutate_hdf5(members["model.weights.h5"], rng)
        return rezipped(members, zipfile.ZIP_STORED)
    places = [position for position, byte in enumerate(data) if byte]
    start = rng.choice(places) if places else 0
    width = rng.choice((1, 1, 2, 4, 8))
    action = rng.randrange(6)
    if action == 0:
        return mutate_bytes(data, rng)
    if action == 1:
        other = rng.choice(places) if places else 0
        new = data[other : other + width]
    elif action == 2:
        new = (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
    elif action == 3:
        new = bytes([data[start] ^ 1 << rng.randrange(8)])
    elif action == 4:
        new = rng.randbytes(width)
    else:  # an address of somewhere else in the file
        new = rng.randrange(len(data)).to_bytes(8, "little")
    return data[:start] + new + data[start + len(new) :]


# ---- npz -----------------------------------------------------------------------------------------------------------------------


def npy(shape: tuple[int, ...], seed: int, descr: str = "<f4", order: bool = False) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + struct.pack(f"<{product(shape)}f", *values(shape, seed))


def npz(names: Mapping[str, tuple[int, ...]] = SHAPES, method: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """An npz file; ``more`` are whole members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for index, (name, shape) in enumerate(names.items()):
            archive.writestr(name + ".npy", npy(shape, index))
        for name, data in more.items():
            archive.writestr(name + ".npy", data)
    return stream.getvalue()


FLAX_SHAPES = {
    **{f"params/cell/i{gate}/kernel": (3, 2) for gate in "ifgo"},
    **{f"params/cell/h{gate}/kernel": (2, 2) for gate in "ifgo"},
    **{f"params/cell/h{gate}/bias": (2,) for gate in "ifgo"},
}
TENSORFLOW_SHAPES = {
    "rnn/lstm_cell/kernel": (4, 8),
    "rnn/lstm_cell/bias": (8,),
    "rnn/lstm_cell/projection/kernel": (2, 1),
}
NAMES = (
    "weight_ih_l0", "weight_hh_l0", "h_0_l0", "weight_peephole_l0", "params/cell/ii/kernel", "params/cell/if_/kernel",
    "forward_rnn/cell/ii/kernel", "rnn/lstm_cell/kernel", "rnn/lstm_cell/w_i_diag", "rnn/multi_rnn_cell/cell_1/lstm_cell/kernel",
    "lstm/recurrent_kernel", "lstm/kernel:0", "fastlstm", "a/b", "x", "n" * 600, "/" * 60,
)  # fmt: skip


def mutate_npz(data: bytes, rng: Random) -> bytes:
    """Change names, headers, contents, the directory or bytes."""
    action = rng.randrange(10)
    members = _members(data) if action < 7 else {}
    if not members:
        return _mutate_record(data, rng) if action < 9 else mutate_bytes(data, rng)
    name = rng.choice(list(members))
    content = members[name]
    if action < 3:
        end = content.find(b"\n") + 1 or len(content)
        header, rest = content[10:end], content[end:]
        old = rng.choice((b"<f4", b"False", b"'shape'", b"(", b"2", b"8", b",", b" ", b"}"))
        new = rng.choice(
            (b">f4", b"<f2", b"<f8", b"|O", b"True", b"8", b"-1", b"2L", b"4294967296", b"", b")", b"exit()", b"\xff")
        )
        header = header.replace(old, new, 1) if rng.random() < 0.8 else mutate_bytes(header, rng)
        version = rng.choice((b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\4\0"))
        length = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS)
        width = "<H" if version == b"\1\0" else "<I"
        members[name] = b"\x93NUMPY" + version + struct.pack(width, length % 2 ** (8 * struct.calcsize(width))) + header + rest
    elif action == 3:
        members[rng.choice(NAMES) + rng.choice((".npy", ".npy", ".npy", ""))] = (
            members.pop(name) if rng.random() < 0.7 else content
        )
    elif action == 4:
        del members[name]
    elif action == 5:
        members[name] = members[rng.choice(list(members))]
    else:
        members[name] = mutate_bytes(content, rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, content in members.items():
            archive.writestr(member or "x", content)
    return stream.getvalue()


# ---- Flax's msgpack ------------------------------------------------------------------------------------------------------------


def packed(value: object) -> bytes:
    """msgpack, as Flax has it: dictionaries, lists, texts, whole numbers, and (shape, values) as an array."""
    if isinstance(value, dict):
        items = b"".join(packed(key) + packed(item) for key, item in value.items())
        return (bytes([0x80 | len(value)]) if len(value) < 16 else b"\xde" + struct.pack(">H", len(value))) + items
    if isinstance(value, str):
        encoded = value.encode()
        return (bytes([0xA0 | len(encoded)]) if len(encoded) < 32 else b"\xd9" + bytes([len(encoded)])) + encoded
    if isinstance(value, bytes):
        return b"\xc5" + struct.pack(">H", len(value)) + value
    if isinstance(value, list):
        return bytes([0x90 | len(value)]) + b"".join(map(packed, value))
    if isinstance(value, tuple):
        shape, seed = value
        data = struct.pack(f"<{product(shape)}f", *values(shape, seed))
        payload = packed([list(shape), "float32", data])
        return b"\xc7" + bytes([len(payload), 1]) + payload
    assert isinstance(value, int)
    return bytes([value])


def flax_tree() -> dict[str, object]:
    tree: dict[str, object] = {}
    for index, (name, shape) in enumerate(FLAX_SHAPES.items()):
        inner = tree
        *before, leaf = name.split("/")
        for step in before:
            inner = inner.setdefault(step, {})  # type: ignore[assignment]
        inner[leaf] = (shape, index)
    return tree


def mutate_msgpack(data: bytes, rng: Random) -> bytes:
    """Change texts, the first bytes of values, lengths, or bytes anywhere."""
    action = rng.randrange(6)
    if action == 0:
        words = (b"cell", b"params", b"kernel", b"bias", b"float32", b"ii", b"if", b"hg")
        return data.replace(rng.choice(words), rng.choice((*words, b"float64", b"bfloat16", b"object_", b"if_", b"opt_state")), 1)
    if action == 1:
        places = [match.start() for match in re.finditer(rb"[\x80-\x9f\xa0-\xbf\xc0-\xdf]", data)]
        place = rng.choice(places or [0])
        new = rng.choice((bytes([rng.randrange(0x80, 0x100)]), b"\xdd\xff\xff\xff\xff", b"\xc0", b"\x91\xc0", b"\xff"))
        return data[:place] + new + data[place + 1 :]
    if action == 2:
        places = [match.start() for match in re.finditer(rb"[\xc4-\xc9]", data)]
        place = rng.choice(places or [0]) + rng.choice((1, 1, 2))
        return data[:place] + bytes([rng.choice((0, 1, 5, 7, 8, 24, 40, 255))]) + data[place + 1 :]
    if action == 3:
        marker = b"\xb9__msgpack_chunked_array__\xc3"
        start = data.find(b"\xc7", rng.randrange(len(data) + 1))
        if start < 0 or len(data) < start + 3:
            return mutate_bytes(data, rng)
        array = data[start : start + 3 + data[start + 1]]
        dims = rng.choice((b"\x81\xa10\x06", b"\x82\xa10\x03\xa11\x02", b"\x81\xa11\x02", b"\x80", b"\xc0"))
        return data[:start] + b"\x83" + marker + b"\xa5shape" + dims + b"\xa6chunks\x81\xa10" + array + data[start + len(array) :]
    if action == 4:
        start = data.find(b"\x93\x92", rng.randrange(len(data) + 1))  # an array's shape
        if start >= 0:
            return data[: start + 2] + bytes([rng.choice((0, 1, 2, 3, 4, 127, 0xFF, 0xE0, 0xCF, 0xC0))]) + data[start + 3 :]
    return mutate_bytes(data, rng)


# ---- JSON ----------------------------------------------------------------------------------------------------------------------


def rows_of(shape: tuple[int, ...], seed: int) -> object:
    flat = values(shape, seed)
    return flat if len(shape) == 1 else [flat[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]


def nam() -> dict[str, object]:
    config = {"input_size": 1, "hidden_size": 2, "num_layers": 1}
    return {"version": "0.5.4", "architecture": "LSTM", "config": config, "weights": values((39,), 0), "sample_rate": 48000}


def guitarml() -> dict[str, object]:
    declared = {"model": "SimpleRNN", "input_size": 3, "skip": 1, "unit_type": "LSTM", "num_layers": 1, "hidden_size": 2}
    tensors = {f"rec.{name}": rows_of(shape, index) for index, (name, shape) in enumerate(SHAPES.items())}
    return {"model_data": declared, "state_dict": tensors | {"lin.weight": rows_of((1, 2), 5), "lin.bias": [0.5]}}


def rtneural() -> dict[str, object]:
    lstm = [rows_of((3, 8), 0), rows_of((2, 8), 1), rows_of((8,), 2)]
    layers = [
        {"type": "lstm", "activation": "tanh", "shape": [None, None, 2], "weights": lstm},
        {"type": "dense", "activation": "", "shape": [None, None, 1], "weights": [rows_of((2, 1), 3), [0.5]]},
    ]
    return {"in_shape": [None, None, 3], "layers": layers}


JSON_VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 1.5, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "LSTM", "lstm", "tanh",
    "x" * 200, [], [1, 2], [[1], [2]], [[]], [None], {}, {"type": "lstm"}, {"a": 1},
)  # fmt: skip
JSON_KEYS = (
    "weights",
    "config",
    "architecture",
    "hidden_size",
    "rec.weight_ih_l0",
    "rec.weight_ih_l1",
    "state_dict",
    "layers",
    "type",
    "é",
)


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Change one value, key or length of the structure, or bytes of the text."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    try:
        content = json.loads(data)
    except Exception:
        return mutate_bytes(data, rng)
    places: list[tuple[object, object]] = []
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            places += [(item, key) for key in item]
            waiting += item.values()
        elif isinstance(item, list) and item:
            places += [(item, rng.randrange(len(item)))]
            waiting += item[:4] if len(item) > 4 else item
    if not places:
        return mutate_bytes(data, rng)
    holder, key = rng.choice(places)
    action = rng.randrange(5)
    if action < 2:
        holder[key] = rng.choice(JSON_VALUES)  # type: ignore[index]
    elif action == 2:
        del holder[key]  # type: ignore[attr-defined]
    elif action == 3 and isinstance(holder, dict):
        holder[rng.choice(JSON_KEYS)] = holder.pop(key) if rng.random() < 0.5 else holder[key]
    elif isinstance(holder, list):
        holder.append(holder[0])
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    if action == 4 and isinstance(holder, dict):
        text = text.replace("{", '{"weights": 1, ', 1)
    return text.encode()


# ---- All formats ---------------------------------------------------------------------------------------------------------------

Mutation = Callable[[bytes, Random], bytes]
FAKED = ("keras", "keras_model")  # HDF5's library is left out
SLOW = ("hdf5",)  # every file is read by a process of its own, and twice


def formats() -> dict[str, tuple[list[bytes], Mutation]]:
    """For each format some good files, and how to mutate one."""

    def golden(*names: str) -> list[bytes]:
        return [(GOLDEN / name).read_bytes() for name in names]

    return {
        "zip": ([zipped(network()), *golden("float16.pt", "weight_norm_new.pt", "views.pt")], mutate_zip),
        "legacy": ([legacy(network(legacy=True)), *golden("legacy.pt")], mutate_legacy),
        "safetensors": (
            [safetensors(), *golden("bidirectional_projection.safetensors", "bfloat16.safetensors")],
            mutate_safetensors,
        ),
        "onnx": ([onnx(), onnx_chain(), onnx_state(), *golden("float16.onnx", "dynamo_learned.onnx")], mutate_onnx),
        "onnx-graph": ([onnx_graph(), onnx_selection(), *golden("float16.onnx")], mutate_onnx),
        "keras": ([keras_archive(), fake_hdf5(*keras_tree()), fake_hdf5(*keras_legacy_tree())], mutate_keras),
        "keras_model": (
            [keras_archive(keras_whole()[0], fake_hdf5(*keras_whole_trees()[0])), fake_hdf5(*keras_whole_trees()[1])],
            mutate_keras,
        ),
        "hdf5": (golden("keras3_float16.weights.h5", "keras2_weights.h5", "keras2_model.h5", "keras3_model.keras"), mutate_hdf5),
        "npz": (
            [npz(), npz(FLAX_SHAPES), npz(TENSORFLOW_SHAPES, fastlstm_=npy((3,), 0)), npz(method=zipfile.ZIP_DEFLATED)],
            mutate_npz,
        ),
        "msgpack": (
            [packed(flax_tree()), *golden("flax_nnx.msgpack", "flax_chunked.msgpack")],
            mutate_msgpack,
        ),
        "nam": ([json.dumps(nam()).encode()], mutate_json),
        "guitarml": ([json.dumps(guitarml()).encode()], mutate_json),
        "rtneural": ([json.dumps(rtneural()).encode()], mutate_json),
    }


def mutants(name: str, count: int, seed: int = 0) -> Iterable[bytes]:
    """``count`` mutated files; a third of them mutated twice, some three times."""
    rng = Random(f"{name} {seed}")
    good, mutate = formats()[name]
    for _ in range(count):
        data = rng.choice((good[0], rng.choice(good)))
        for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3))):
            data = mutate(data, rng)
        yield data


class Report:
    """What became of the files: by message without its details, how many; the slowest; how many were loaded."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self.loaded = 0
        self.count = 0

    def __str__(self) -> str:
        lines = [f"{self.count} files, {self.loaded} loaded, slowest {self.slowest * 1e3:.0f} ms"]
        return "\n".join(lines + [f"{count:8} {outcome}" for outcome, count in self.outcomes.most_common()])


MOST = 4  # LSTMs of a file that are loaded


def attack(path: str, data: bytes, report: Report) -> None:
    """Write one file, scan it and load it, as a whole model too if it may be one; a graph that was loaded is called.

    Any exception but the two promised ones goes on to the caller, with the file kept.
    """
    from fastlstm import FormatError
    from fastlstm.loaders import load, load_model, scan
    from fastlstm.models.graph import Graph

    with open(path, "wb") as stream:
        stream.write(data)
    report.count += 1
    start = processor_seconds()
    names: list[str | None] = [None]
    loaded = False
    whole = data[:1] in (b"{", b"\x08") or b"config.json" in data or data[:8] == SIGNATURE
    for act in ("scan", *(["load_model"] if whole else []), *["load"] * MOST):
        try:
            result = load(path, names.pop()) if act == "load" else {"scan": scan, "load_model": load_model}[act](path)
        except (FormatError, OSError) as error:
            kind = re.sub("-?[0-9]+", "#", re.split("['\"]", str(error).split(": ", 1)[-1])[0])
            report.outcomes[kind[:50].strip() or "tensor names"] += 1
            if len(str(error)) > 2000:
                raise AssertionError(f"a message of {len(str(error))} characters") from error
        else:
            loaded = loaded or act != "scan"
            report.outcomes[f"{act} returned a {type(result).__name__}"] += 1
            if isinstance(result, Graph):
                report.outcomes[f"the graph {called(result)}"] += 1
            if act == "scan" and len(result) > 1:
                names = [info.name for info in result[:MOST]]
        if not names:
            break
    report.loaded += loaded
    report.slowest = max(report.slowest, processor_seconds() - start)


def processor_seconds() -> float:
    """Of this process and its children that have ended: other work on the machine does not count."""
    return sum(os.times()[:4])


MOST_INPUTS = 100_000  # elements


def called(graph: Graph) -> str:
    """Call a graph with ones, free sizes 2: it runs, or it does not fit itself, and nothing else."""
    import numpy as np

    shapes = [tuple(size if isinstance(size, int) else 2 for size in each.shape or ()) for each in graph.inputs]
    if sum(map(product, shapes)) > MOST_INPUTS:
        return "was not called"
    try:
        graph(*(np.ones(shape, each.dtype) for shape, each in zip(shapes, graph.inputs, strict=True)))
    except ValueError as error:
        if len(str(error)) > 2000:
            raise AssertionError(f"a message of {len(str(error))} characters") from error
        return "does not fit itself"
    return "ran"


def limit_memory(extra: int) -> None:
    """Make allocations fail that take the process over its present size by more than ``extra`` bytes."""
    import resource

    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("format", nargs="*", choices=[*formats(), "all"], default="all")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fork", action="store_true", help="read HDF5 in forks of this process: many more in the same time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for name in formats() if "all" in options.format else options.format:
            if name in FAKED:  # HDF5's library is left out
                from fastlstm.loaders.keras import hdf5

                hdf5._ask, hdf5._installed = fake_answer, lambda name: True
            elif options.fork and name in SLOW:
                from fastlstm.loaders.keras import hdf5

                forked = hdf5._ask = Forked()
            report = Report()
            path = os.path.join(folder, "mutant")
            warm = formats()[name][0]
            for data in warm:
                attack(path, data, report)
            assert report.loaded == len(warm), f"the files to be mutated must be good ones\n{report}"
            if sys.platform == "linux" and name not in SLOW:
                limit_memory(64 << 20)
            report = Report()
            start = time.perf_counter()
            try:
                for data in mutants(name, options.count, options.seed):
                    attack(path, data, report)
            except BaseException:
                kept = f"mutant-{name}-{options.seed}-{report.count}"
                Path(kept).write_bytes(data)
                print(f"the file is kept as {kept}", file=sys.stderr)
                raise
            print(f"{name}: {time.perf_counter() - start:.1f} s, {report}")
            if sys.platform == "linux":
                import resource

                most = [resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
                print(f"most memory: {most[0]} MB, of a child {most[1]} MB")
            if options.fork and name in SLOW:
                print(f"forks by what ended them: {dict(forked.ended)}")
            assert report.slowest < (300 if name in SLOW else 1), "a file took too long"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
