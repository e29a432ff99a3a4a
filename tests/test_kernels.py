"""The C kernels without Python (tests/kernels/check.c): against naive twins, and the same bits on every instruction set.

AArch64 is compiled with a cross-compiler and run under an emulator. With FASTLSTM_TEST_STRICT=1 a missing tool is a failure.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sysconfig
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


def build(compiler: str, path: Path, extra: list[str]) -> Path:
    sources = [ROOT / "tests" / "kernels" / "check.c", *sorted(KERNELS.glob("*.c"))]
    subprocess.run([compiler, *FLAGS, *extra, *sources, "-o", path, "-lm", "-lpthread"], check=True)
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
    program = build("cc", tmp_path_factory.mktemp("native") / "check", [])
    return {isa: run(program, isa) for isa in available_isas()}


def fused(lines: dict[str, str]) -> set[str]:
    return {text for isa, text in lines.items() if isa != "baseline"}


def test_every_isa_agrees_with_its_twin_and_with_the_others(native: dict[str, str]) -> None:
    assert all(text.count("\n") == 38 for text in native.values())
    assert len(fused(native)) <= 1


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compilers_agree(compiler: str, native: dict[str, str], tmp_path: Path) -> None:
    need(compiler)
    program = build(compiler, tmp_path / "check", [])
    assert {isa: run(program, isa) for isa in available_isas()} == native


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread", "memory"])
def test_sanitizers_find_nothing(sanitizer: str, native: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes past an end, races, decisions on memory that nobody wrote; all memory begins as NaN."""
    need("clang")
    if sanitizer == "memory" and platform.system() != "Linux":
        pytest.skip("needs Linux")
    monkeypatch.setenv("ASAN_OPTIONS", "max_malloc_fill_size=1073741824:malloc_fill_byte=255")
    program = build(
        "clang", tmp_path / "check", ["-O1", "-g", "-DFL_PLAIN_LOOPS", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    )
    assert run(program, available_isas()[-1]) == native[available_isas()[-1]]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares AArch64 with x86-64")
def test_neon_gives_the_bits_of_avx(native: dict[str, str], tmp_path: Path) -> None:
    compiler, emulator, extra, isas = EMULATED["aarch64"]
    need(compiler, emulator)
    program = build(compiler, tmp_path / "check", extra)
    emulated = {isa: run(emulator, program, isa, "2") for isa in isas}
    assert emulated["baseline"] == native["baseline"]
    assert {emulated["neon"]} == fused(native)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for x86-64's registers")
def test_wide_registers_only_where_they_belong(tmp_path: Path) -> None:
    """The targets of the leaf kernels must not leak: one wide instruction elsewhere, and older machines crash."""
    need("cc", "objdump")
    wide = {"isa_avx512": r"%zmm", "isa_avx2": r"%ymm"}
    for source in sorted(KERNELS.glob("*.c")):
        subprocess.run(["cc", *FLAGS, "-c", source, "-o", tmp_path / "object.o"], check=True)
        code = run("objdump", "-d", "--no-show-raw-insn", tmp_path / "object.o")
        if source.stem in wide:
            assert re.search(wide[source.stem], code)
            assert re.search(r"vfmadd\w+p[sd]", code)
        if source.stem != "isa_avx512":
            assert not re.search(r"%zmm|%k[1-7]\b", code), source.name
            if source.stem != "isa_avx2":
                assert not re.search(r"%ymm|vfmadd|\bv(mov|add|mul)", code), source.name


def test_only_the_module_is_exported() -> None:
    need("nm")
    if sysconfig.get_config_var("SOABI") is None or not _engine.__file__.endswith(".so"):
        pytest.skip("not an ELF module")
    defined = [line.split()[-1] for line in run("nm", "-D", "--defined-only", _engine.__file__).splitlines()]
    assert defined == ["PyInit__engine"]
