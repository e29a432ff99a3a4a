"""The machine: what it is, what it can do at most, and so how fast an LSTM could be on it."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Shape

ITEM = 4  # bytes of a float32
PACKAGES = ("fastlstm", "numpy", "torch", "onnx", "onnxruntime", "openvino")
LEVELS = ("L1", "L2", "L3", "memory")


@dataclass(frozen=True)
class Level:
    """A place weights are read from: bytes that all threads together keep there, and read from it per second."""

    name: str
    capacity: float
    bytes_per_second: float


@dataclass(frozen=True)
class Peaks:
    """What a number of threads can do at most, in operations and bytes per second; a multiply-add is two operations."""

    flops: float
    levels: tuple[Level, ...]  # nearest first; the last holds anything


@dataclass(frozen=True)
class Limit:
    """The least time a call can take, and what sets it: "FMA", or the furthest level the weights come from."""

    seconds: float
    bound: str


# ---- Measuring -----------------------------------------------------------------------------------------------------------------


@functools.cache
def peak_library() -> ctypes.CDLL:
    """peak.c, built for this processor by ``$CC``, else cc.

    Raises
    ------
    RuntimeError
        If there is no compiler, or it fails.
    """
    source = Path(__file__).with_name("peak.c")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    options = ["-O3", native, "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        try:
            subprocess.run([*compiler, *options, str(source), "-o", str(library)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"cannot build {source.name}: {getattr(error, 'stderr', None) or error}") from error
        loaded = ctypes.CDLL(str(library))
    loaded.peak_fma.argtypes = [ctypes.c_int, ctypes.c_double]
    loaded.peak_read.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_double]
    loaded.peak_fma.restype = loaded.peak_read.restype = ctypes.c_double
    return loaded


def peak_fma(threads: int, seconds: float) -> float:
    """Operations per second of fused multiply-adds in registers."""
    return _rate(peak_library().peak_fma(threads, seconds))


def peak_read(threads: int, size: int, seconds: float) -> float:
    """Bytes per second that all threads read, each from its own `size` bytes."""
    return _rate(peak_library().peak_read(threads, size, seconds))


def _rate(rate: float) -> float:
    if rate < 0:
        raise MemoryError("peak.c got no thread or no memory")
    return rate


def measurements(threads: int) -> dict[str, Callable[[float], float]]:
    """What is measured with this many threads: functions of the seconds to take, under the names ``peaks`` knows.

    Each level is read from a block that fits it well and the level before not at all. Blocks stay below eight times the second
    level where the third is huge, for such a cache is shared with strangers.
    """
    L1, L2, L3 = cache_sizes()
    third = max(min(L3 // 2 // threads, 8 * L2), 2 * L2)
    blocks = {"L1": L1 // 2, "L2": L2 // 2, "L3": third, "memory": max(2 * L3 // threads, 4 * third)}
    reads = {name: functools.partial(peak_read, threads, size) for name, size in blocks.items()}
    return {"FMA": functools.partial(peak_fma, threads), **reads}


def peaks(rates: dict[str, float], threads: int) -> Peaks:
    """The peaks from a rate for each of ``measurements``."""
    L1, L2, L3 = cache_sizes()
    capacities = {"L1": threads * L1, "L2": threads * L2, "L3": L3, "memory": float("inf")}
    return Peaks(rates["FMA"], tuple(Level(name, capacities[name], rates[name]) for name in LEVELS))


def cache_sizes() -> tuple[int, int, int]:
    """Bytes of a core's first and second level for data, and of the third level; usual ones where the system does not say."""
    found = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found[int(level)] = int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
    return found.get(1, 32 << 10), found.get(2, 1 << 20), found.get(3, 16 << 20)


# ---- Limits --------------------------------------------------------------------------------------------------------------------


def limit(shape: Shape, peaks: Peaks, lengths: np.ndarray | None = None, training: bool = False) -> Limit:
    """The least time of a forward pass: its arithmetic at the peak, or reading its weights, whichever is longer.

    Every weight is read once in a call; the recurrent ones (R, and the projection) again at each further step, for a step needs
    the h of the one before. W may serve the whole sequence as one chunk. A byte comes from the nearest level that has room for
    it: in a first reading all weights of the network compete, later those of one layer and direction. Inputs, outputs and the
    gates' functions are free.

    With `lengths`, shape (B,), only tokens cost, and there are as many steps as in the longest row.

    Gradients take twice the arithmetic again: a weight and a token have a product for the input's gradient and one for the
    weight's. They read the weights as a forward pass does; what is kept in between, and the sums of gradients, are free.
    """
    T = shape.T if lengths is None else int(lengths.max())
    share = 1.0 if lengths is None else float(lengths.sum()) / (shape.T * shape.B)
    recurrent = ITEM * (4 * shape.H * shape.recurrent + shape.P * shape.H)
    arithmetic = (3 if training else 1) * shape.flops * share / peaks.flops
    first, furthest = reading(ITEM * shape.parameters, peaks)
    again, _ = reading(recurrent, peaks)
    reads = (2 if training else 1) * (first + (T - 1) * shape.L * shape.D * again)
    if T > 1:
        furthest = reading(recurrent, peaks)[1]
    return Limit(arithmetic, "FMA") if arithmetic >= reads else Limit(reads, furthest)


def reading(size: float, peaks: Peaks) -> tuple[float, str]:
    """Seconds to read `size` bytes that lie as near as they fit, and the furthest level among their places."""
    seconds, before, furthest = 0.0, 0.0, ""
    for level in peaks.levels:
        part = min(size, level.capacity) - before
        if part <= 0:
            break
        seconds += part / level.bytes_per_second
        before += part
        furthest = level.name
    return seconds, furthest


# ---- Describing ----------------------------------------------------------------------------------------------------------------


def describe() -> dict[str, Any]:
    """The machine, the versions and the command, for the record of a run."""
    import fastlstm

    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": dict(zip(LEVELS, cache_sizes(), strict=False)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
        "isa": fastlstm.isa,
        "revision": revision(),
        "load": round(os.getloadavg()[0], 2),
        "command": shlex.join(["python", "-m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    name = known.get("model name") or platform.machine()
    numbers = [f"{label} {known[key]}" for label, key in (("family", "cpu family"), ("model", "model")) if key in known]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def revision() -> str | None:
    """The commit of the working tree, marked if there are changes."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
