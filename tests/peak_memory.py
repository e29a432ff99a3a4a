"""What a file takes at its peak: run as a process of its own by :func:`measured`, on Linux, which lets a process reset its peak.

Whatever is loaded once, a library or a buffer, is so before. A child that reads HDF5 counts with all that it takes, its
interpreter too, beside what this process has at that time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

AVAILABLE = os.access("/proc/self/clear_refs", os.W_OK)
MB = 1 << 20
GOLDEN = Path(__file__).with_name("golden")
ACTS = ("scan", "load", "load_model")

# The child that reads HDF5; it says at its end how much memory it took
WORKER = """
import runpy
with open("/proc/self/status") as status:
    runpy.run_path({path!r}, run_name="__main__")
    print("peak:", next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
"""


def measured(path: Path, acts: Sequence[str] = ACTS) -> tuple[bool, int, float]:
    """Whether any of ``acts`` but scan loaded it, the bytes of the peak, and the seconds.

    ``load:keras`` loads with that layout, ``from_onnx`` with what lies in other files.
    """
    result = subprocess.run(
        [sys.executable, __file__, path, *acts], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    assert result.returncode == 0, result.stderr
    loaded, peak, seconds = result.stdout.split()
    return loaded == "True", int(peak), float(seconds)


def main() -> None:
    import safetensors  # noqa: F401

    import fastlstm.models.model  # noqa: F401
    from fastlstm import FormatError, from_onnx, load, load_model, scan
    from fastlstm.loaders import assembly, flax_file, guitarml_file, nam_file, npz_file, rtneural_file  # noqa: F401
    from fastlstm.loaders.keras import hdf5

    def act(path: str, name: str) -> bool:
        name, _, layout = name.partition(":")
        if name == "scan":
            scan(path)
            return False
        if name == "from_onnx":
            return bool(from_onnx(path, external_data=True))
        return bool(load(path, layout=layout or None) if name == "load" else load_model(path))

    path, *acts = sys.argv[1:]
    warm = ["cell.pt", "legacy.pt", "float16.safetensors", "keras3_float16.weights.h5", "unfolded_9.onnx"]
    for file in warm:
        with suppress(ImportError):  # of h5py or onnx, if it is not there
            load(GOLDEN / file)

    def status(field: str) -> int:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

    def peak() -> int:
        most = status("VmHWM")
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        return most

    def ask(descriptor: int, limit: int, ask: Callable[[int, int], bytes] = hdf5._ask) -> bytes:
        peaks.append(peak() - before)
        text, _, child = ask(descriptor, limit).partition(b"peak: ")
        peaks.append(peak() - before + int(child or 0))
        return text

    with tempfile.TemporaryDirectory() as folder:
        worker = Path(folder, "worker.py")
        worker.write_text(WORKER.format(path=str(hdf5.WORKER)))
        hdf5._ask, hdf5.WORKER = ask, worker
        peak()
        peaks, before, start = list[int](), status("VmRSS"), time.perf_counter()
        loaded = False
        for name in acts:
            try:
                loaded |= act(path, name)
            except (FormatError, OSError) as error:
                print(f"{name}: {error}"[:300], file=sys.stderr)
        print(loaded, max([*peaks, peak() - before]), time.perf_counter() - start)


if __name__ == "__main__":
    main()
