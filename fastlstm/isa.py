"""The instruction set of the kernels: the best this machine has, or the one that ``FASTLSTM_ISA`` names."""

import os

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
        have = ", ".join(available_isas())
        raise ImportError(f"FASTLSTM_ISA={wanted[:100]!r} is not available; this machine has {have}") from None
    return wanted


isa: str = _choose()
