"""The C kernels without Python (tests/kernels/check.c): against naive twins, and the same bits on every instruction set.

AArch64 is compiled with a cross-compiler and run under an emulator. With FASTLSTM_TEST_STRICT=1 a missing tool is a failure.
"""

from __future__ import annotations

import atexit
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pytest

from fastlstm import _engine, available_isas

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "fastlstm" / "kernels"
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{KERNELS}"]
EMULATED = {"aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64", ["-static"], ("baseline", "neon"))}


def need(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        message = f"not installed: {', '.join(missing)}"
        if os.environ.get("FASTLSTM_TEST_STRICT") == "1":
            pytest.fail(message)
        pytest.skip(message)


@lru_cache
def objects(compiler: str, *extra: str) -> dict[str, Path]:
    """Every source, compiled: several at a time, each once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="fastlstm-kernels-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sources = [ROOT / "tests" / "kernels" / "check.c", *sorted(KERNELS.glob("*.c"))]
    compiled = {source.stem: folder / f"{source.stem}.o" for source in sources}

    def compile_one(source: Path) -> None:
        subprocess.run([compiler, *FLAGS, *extra, "-c", source, "-o", compiled[source.stem]], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sorted(sources, key=lambda source: not source.stem.startswith("isa_"))))  # the longest first
    return compiled


def build(compiler: str, path: Path, *extra: str) -> Path:
    subprocess.run([compiler, *extra, *objects(compiler, *extra).values(), "-o", path, "-lm", "-lpthread"], check=True)
    return path


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each instruction set of this machine prints."""
    need("cc")
    program = build("cc", tmp_path_factory.mktemp("native") / "check")
    return {isa: run(program, isa) for isa in available_isas()}


def fused(lines: dict[str, str]) -> set[str]:
    return {text for isa, text in lines.items() if isa != "baseline"}


def test_every_isa_agrees_with_its_twin_and_with_the_others(native: dict[str, str]) -> None:
    assert all(text.count("\n") == 40 for text in native.values())
    assert len(fused(native)) <= 1


def test_compilers_agree(native: dict[str, str], tmp_path: Path) -> None:
    need("clang")
    program = build("clang", tmp_path / "check")
    assert {isa: run(program, isa) for isa in available_isas()} == native


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread", "memory"])
def test_sanitizers_find_nothing(sanitizer: str, native: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes past an end, races, decisions on memory that nobody wrote; all memory begins as NaN."""
    need("clang")
    if sanitizer == "memory" and platform.system() != "Linux":
        pytest.skip("needs Linux")
    monkeypatch.setenv("ASAN_OPTIONS", "max_malloc_fill_size=1073741824:malloc_fill_byte=255")
    flags = ["-O1", "-g", "-DFL_PLAIN_LOOPS", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = build("clang", tmp_path / "check", *flags)
    assert run(program, available_isas()[-1], "2") == native[available_isas()[-1]]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares AArch64 with x86-64")
def test_neon_gives_the_bits_of_avx(native: dict[str, str], tmp_path: Path) -> None:
    compiler, emulator, extra, isas = EMULATED["aarch64"]
    need(compiler, emulator)
    program = build(compiler, tmp_path / "check", *extra)
    with ThreadPoolExecutor(len(isas)) as pool:  # few divisions of calls: the code that shares work is the same everywhere
        emulated = dict(zip(isas, pool.map(lambda isa: run(emulator, program, isa, "1"), isas), strict=True))
    assert emulated["baseline"] == native["baseline"]
    assert {emulated["neon"]} == fused(native)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for x86-64's registers")
def test_wide_registers_only_where_they_belong() -> None:
    """The targets of the leaf kernels must not leak: one wide instruction elsewhere, and older machines crash."""
    need("cc", "objdump")
    wide = {"isa_avx512": r"%zmm", "isa_avx2": r"%ymm"}
    for source, compiled in objects("cc").items():
        code = run("objdump", "-d", "--no-show-raw-insn", compiled)
        if source in wide:
            assert re.search(wide[source], code)
            assert re.search(r"vfmadd\w+p[sd]", code)
        if source != "isa_avx512":
            assert not re.search(r"%zmm|%k[1-7]\b", code), source
            if source != "isa_avx2":
                assert not re.search(r"%ymm|vfmadd|\bv(mov|add|mul)", code), source


def test_only_the_module_is_exported() -> None:
    need("nm")
    if sysconfig.get_config_var("SOABI") is None or not _engine.__file__.endswith(".so"):
        pytest.skip("not an ELF module")
    defined = [line.split()[-1] for line in run("nm", "-D", "--defined-only", _engine.__file__).splitlines()]
    assert defined == ["PyInit__engine"]
