"""Coverage-guided fuzzing of the loaders with atheris: ``python tests/fuzz/fuzz_loaders.py onnx corpus -max_total_time=600``.

The formats are those of ``tests/mutate.py``, whose mutators know a format's structure: half of the inputs are theirs, half
libFuzzer's. What follows the format is for libFuzzer: first the folder of its corpus, to which good files are added.
Any exception but the promised ones ends the run, with the input kept. With a sanitizer's runtime preloaded, and with an engine
built with sanitizers (``setup.py``), native code is watched too: CONTRIBUTING.md has the commands.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

with atheris.instrument_imports(include=["fastlstm"]):  # here all that loaders import later, when they are asked
    import fastlstm.loaders
    import fastlstm.models.graph

    for _, name, _ in pkgutil.walk_packages(fastlstm.loaders.__path__, "fastlstm.loaders."):
        if not name.endswith("_worker"):
            importlib.import_module(name)

import mutate  # noqa: E402

from fastlstm.loaders.keras import hdf5  # noqa: E402

LIBFUZZER = 0.5  # of the mutations are libFuzzer's
# Left out is HDF5's library, whose child process takes longer than anything here and starts with the sanitizer
hdf5._ask, hdf5._installed = mutate.fake_answer, lambda name: True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", choices=mutate.formats())
    parser.add_argument("corpus", type=Path)
    options, rest = parser.parse_known_args()
    good, structured = mutate.formats()[options.format]
    options.corpus.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(good):
        (options.corpus / f"good-{index}").write_bytes(data)

    folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    path, report = os.path.join(folder, "input"), mutate.Report()

    def one_input(data: bytes) -> None:
        mutate.attack(path, data, report)

    def mutated(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < LIBFUZZER:
            return bytes(atheris.Mutate(data, max_size))
        return structured(data, rng)[:max_size]

    longest = max(map(len, good))
    arguments = [sys.argv[0], str(options.corpus), f"-max_len={2 * longest}", "-timeout=120", *rest]
    atheris.Setup(arguments, one_input, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
