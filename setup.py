"""Build of the one compiled module, ``fastlstm._engine``; everything else is declared in pyproject.toml.

Switches (environment variables, read at build time):

FASTLSTM_NO_OPENMP=1   build without OpenMP: every call runs on the calling thread
FASTLSTM_DEBUG=1       -O1 -g, bounds-checked memoryviews
FASTLSTM_SYMBOLS=1     keep the names of functions, for perf and objdump
FASTLSTM_SANITIZE=1    address and undefined-behaviour sanitizers (run with the sanitizer runtime preloaded)
FASTLSTM_WERROR=1      warnings in our C are errors (CI)
"""

import os
from glob import glob

from setuptools import Extension, setup


def switch(name: str) -> bool:
    return os.environ.get(f"FASTLSTM_{name}", "0") not in ("", "0")


# Contraction is off: every fused multiply-add in the kernels is written out, so that all compilers give the same bits.
compile_args = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra"]
compile_args.append("-fno-asynchronous-unwind-tables")  # nothing is thrown through C; they are 50 KB
link_args: list[str] = []
macros: list[tuple[str, str | None]] = []

if not switch("NO_OPENMP"):
    compile_args.append("-fopenmp")
    link_args.append("-fopenmp")
if switch("DEBUG"):
    compile_args += ["-O1", "-g"]
elif not switch("SANITIZE"):
    compile_args.append("-g0")
    if not switch("SYMBOLS"):
        link_args.append("-Wl,-s")
if switch("SANITIZE"):
    compile_args += ["-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    macros.append(("FL_PLAIN_LOOPS", None))
    link_args.append("-fsanitize=address,undefined")
if switch("WERROR"):
    compile_args.append("-Werror")

engine = Extension(
    "fastlstm._engine",
    sources=["fastlstm/_engine.pyx", *sorted(glob("fastlstm/kernels/*.c"))],
    depends=sorted(glob("fastlstm/kernels/*.h")),
    include_dirs=["fastlstm/kernels"],
    define_macros=macros,
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)
engine.cython_directives = {
    "language_level": 3,
    "boundscheck": switch("DEBUG"),
    "wraparound": False,
    "initializedcheck": False,
    "embedsignature": True,
}

setup(ext_modules=[engine])
