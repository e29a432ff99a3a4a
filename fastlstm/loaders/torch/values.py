"""What the pickles of ``torch.save`` may name, and the plain values those names become. Nothing is imported, nothing executed.

References
----------
``torch/_utils.py`` (the ``_rebuild`` functions and their arguments), ``torch/serialization.py`` (persistent ids of storages).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted

__all__ = ["FUNCTIONS", "INERT", "NAMES", "OBJECTS", "RESAVE", "Global", "Storage", "Tensor"]

RESAVE = "save the weights alone, with torch: torch.save(model.state_dict(), path), or checkpoint['state_dict'] of a checkpoint"

MAX_DIMENSIONS = 64

ITEMSIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex128": 16, "complex64": 8, "complex32": 4,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "qint32": 4, "qint8": 1, "quint8": 1, "quint4x2": 1, "quint2x4": 1,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1,
}  # fmt: skip

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8",
    "QInt32Storage": "qint32", "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}  # fmt: skip


@dataclass(frozen=True)
class Global:
    """The name of a class or function, as text."""

    name: str


class Inert:
    """Something a checkpoint holds beside its weights: kept as a blank."""


INERT = Inert()


@dataclass(frozen=True)
class Storage:
    """A run of ``size`` elements in the file, not read yet."""

    key: str
    dtype: str
    size: int

    @property
    def nbytes(self) -> int:
        return self.size * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; strides and offset count elements. ``storage`` is None for a kind of tensor that cannot be read."""

    dtype: str
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    def span(self) -> tuple[int, int]:
        """First and one-past-last byte of the storage that belong to it."""
        if 0 in self.shape:
            return 0, 0
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return self.offset * self.itemsize, (last + 1) * self.itemsize


def unsupported(name: str) -> FormatError:
    if name == "torch.ScriptObject" or "quantized" in name:
        return FormatError(f"unsupported global {quoted(name)}: this model is quantized; before quantization, {RESAVE}")
    if name.startswith("numpy."):  # what else of NumPy a checkpoint holds is a blank
        return FormatError(
            f"unsupported global {quoted(name)}: a NumPy array beside the weights; only tensors and plain containers "
            "are read: save the state dict of the checkpoint alone, with torch: torch.save(checkpoint['state_dict'], path)"
        )
    return FormatError(
        f"unsupported global {quoted(name)}: only tensors and plain containers are read, never classes or functions; "
        f"if this is a whole pickled model, {RESAVE}"
    )


def storage(identity: Any) -> Storage:
    """What a persistent id ``("storage", class, key, location, size)`` means; the location (a device) is not looked at."""
    kind, key, size = identity[1], identity[2], identity[4]
    module, _, name = kind.name.rpartition(".") if isinstance(kind, Global) else ("", "", "")
    if name not in STORAGES or not module.startswith("torch"):
        raise FormatError("broken pickle: a storage of no known class")
    if not isinstance(key, str) or not _is_size(size):
        raise FormatError(f"broken pickle: a storage whose key is {type(key).__name__} and whose size is {type(size).__name__}")
    return Storage(key, STORAGES[name], size)


def set_item(target: dict[Any, Any], key: object, value: object) -> None:
    """Set a key that occurs once. Only keys whose hash costs little and cannot be made to collide: that of nested tuples takes
    exponential time where they share their parts, and long integers are equal modulo 2**61 - 1 by choice of whoever wrote them.
    """
    words = isinstance(key, tuple) and len(key) < 10 and all(type(part) is str for part in key)
    if not (words or key is None or isinstance(key, (str, bytes, float)) or (isinstance(key, int) and abs(key) < 1 << 64)):
        raise FormatError(f"the pickle uses a {type(key).__name__} as a dictionary key: {RESAVE}")
    if key in target:
        shown = quoted(key) if isinstance(key, str) else f"{key!r:.100}"
        raise FormatError(f"the pickle sets the dictionary key {shown} twice")
    target[key] = value


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    # Python 2 wrote the items as an argument, Python 3 sets them afterwards
    result: dict[Any, Any] = {}
    for pair in items:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise FormatError(f"broken pickle: a dictionary made of {type(pair).__name__}, not of pairs")
        set_item(result, pair[0], pair[1])
    return result


def _size(items: Any) -> tuple[Any, ...]:
    # Of a text or bytes it would make an object for each character; of a list or tuple what was charged
    if not isinstance(items, (list, tuple)):
        raise FormatError(f"broken pickle: a torch.Size of {type(items).__name__}, not of a tuple")
    return tuple(items)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _tensor(source: Any, offset: Any, shape: Any, strides: Any, dtype: str = "") -> Tensor:
    if not isinstance(source, Storage):
        raise FormatError(f"broken pickle: a tensor of {type(source).__name__}, not of a storage")
    for numbers in (shape, strides):
        if not isinstance(numbers, (tuple, list)) or len(numbers) > MAX_DIMENSIONS or not all(map(_is_size, numbers)):
            raise FormatError(f"broken pickle: a tensor's shape or strides are not {MAX_DIMENSIONS} or fewer sizes below 2**63")
    if len(shape) != len(strides) or not _is_size(offset):
        raise FormatError("broken pickle: a tensor's strides or offset do not fit its shape")
    if math.prod(shape) >= 1 << 63:
        raise FormatError(f"the number of elements of a tensor of shape {tuple(shape)!s:.200} overflows")
    return Tensor(dtype or source.dtype, tuple(shape), tuple(strides), offset, source)


def _tensor_v2(source: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, metadata: Any = None) -> Tensor:
    tensor = _tensor(source, offset, shape, strides)
    # Metadata {"neg": True} or {"conj": True}: the values are not those stored
    return Tensor(f"{tensor.dtype} with a pending negation or conjugation", tensor.shape) if metadata else tensor


def _tensor_v3(
    source: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor:
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if name not in ITEMSIZE or metadata:
        return Tensor("of an unknown kind")
    return _tensor(source, offset, shape, strides, name)


def _tensor_with_attributes(function: Any, kind: Any, args: Any, _attributes: Any) -> Tensor:
    if not isinstance(function, Global) or not isinstance(kind, Global) or not isinstance(args, tuple):
        raise FormatError("broken pickle: a tensor subclass written in an unknown way")
    if kind.name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        raise unsupported(kind.name)
    if function.name not in _TENSORS:
        raise unsupported(function.name)
    return _TENSORS[function.name](*args)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise FormatError(f"broken pickle: a parameter of {type(data).__name__}, not of a tensor")
    return data


def _bytes(text: Any, encoding: Any) -> bytes:
    # Protocol 2 has no bytes: it writes them as _codecs.encode("...", "latin1")
    if not isinstance(text, str) or encoding != "latin1":
        raise FormatError("broken pickle: bytes written in an unknown way")
    return text.encode("latin1")


_TENSORS: dict[str, Callable[..., Tensor]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_qtensor": lambda *_: Tensor("quantized"),
    "torch._utils._rebuild_sparse_tensor": lambda *_: Tensor("sparse"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: Tensor("meta (without values)"),
}

# Beside the weights an ordinary checkpoint holds these; none can change what an LSTM computes.
_BLANKS = (
    "torch.device",
    "torch.serialization._get_layout",
    "collections.Counter",
    "collections.defaultdict",
    "builtins.set",
    "builtins.frozenset",
    "builtins.bytearray",
    "builtins.bytes",
    "builtins.complex",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)

# What a pickle may call, and our own function that is called in its place.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "_codecs.encode": _bytes,
    **dict.fromkeys(_BLANKS, lambda *_: INERT),
}

# What a pickle may make an object of; it stays a blank.
OBJECTS = {"argparse.Namespace", "torch.torch_version.TorchVersion"}

# What a pickle may name and nothing more.
NAMES = {
    *(f"{module}.{name}" for module in ("torch", "torch.storage", "torch.cuda") for name in STORAGES),
    *(f"torch.{name}" for name in ITEMSIZE),
    *(f"torch.per_{kind}" for kind in ("tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric")),
    "torch.per_channel_affine_float_qparams",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str")),  # of a defaultdict
}
