"""The instruction set of the kernels: the best this machine has, or the one that ``FASTLSTM_ISA`` names."""

import os
import sys
from itertools import pairwise

from fastlstm import _engine

__all__ = ["available_isas", "isa"]


def available_isas() -> tuple[str, ...]:
    """Names of the instruction sets that this machine runs, from worst to best.

    ``"baseline"`` (no fused multiply-add), ``"avx2"``, ``"avx512"`` on x86-64; ``"baseline"``, ``"neon"`` on AArch64.

    Returns
    -------
    tuple of str
    """
    return _engine.available_isas()


def _choose() -> str:
    wanted = os.environ.get("FASTLSTM_ISA") or available_isas()[-1]
    try:
        _engine.choose_isa(wanted)
    except ValueError:
        message = f"FASTLSTM_ISA={wanted[:100]!r}: this machine has {', '.join(available_isas())}"
        if _is_command():
            print("fastlstm: error:", message, file=sys.stderr)
            raise SystemExit(2) from None
        raise ImportError(message) from None
    return wanted


def _is_command() -> bool:
    """Whether this import is that of the command ``fastlstm``, whose users no traceback helps; its own code comes later."""
    if sys.argv[:1] == ["-m"]:  # Python looks for the module that it is to run
        return ("-m", "fastlstm") in pairwise(sys.orig_argv)
    return os.path.basename("".join(sys.argv[:1])) == "fastlstm"


isa: str = _choose()
