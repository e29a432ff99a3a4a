"""What this installation is and runs on."""

from __future__ import annotations

import sys
from typing import TextIO

import numpy as np

import fastlstm
from fastlstm import _engine

__all__ = ["config", "show_config"]


def config() -> dict[str, str]:
    """What a bug report should say: versions, instruction sets, threads, compiler, platform."""
    import platform  # costs more than all of fastlstm's own modules

    build = _engine.build_info()
    return {
        "fastlstm": fastlstm.__version__,
        "instruction set": f"{fastlstm.isa} (available: {', '.join(fastlstm.available_isas())})",
        "threads": str(fastlstm.get_num_threads()),
        "OpenMP": build["openmp"],
        "compiler": build["compiler"],
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "NumPy": np.__version__,
        "platform": platform.platform(),
    }


def show_config(file: TextIO | None = None) -> None:
    """Print the version, the instruction set in use and those available, threads, compiler, NumPy and platform.

    Parameters
    ----------
    file : text file, optional
        Where to print; standard output if left out.
    """
    for name, value in config().items():
        print(f"{name:17}{value}", file=file or sys.stdout)
