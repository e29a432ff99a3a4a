"""How many threads a call may use: OMP_NUM_THREADS, else the processors this process may run on."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

from fastlstm import _engine
from fastlstm.arrays import as_integer

__all__ = ["allowance", "get_num_threads", "set_num_threads"]

_num_threads: int | None = None  # None: not asked for yet
_processors: int | None = None
_usual: tuple[int, int] | None = None  # what a call gets that does not say otherwise; None: not known yet
_alone = _engine.build_info()["openmp"] == "no"  # only one thread: no OpenMP, or a forked child


def set_num_threads(n: int) -> None:
    """Let every call use at most `n` threads from now on; ``threads=`` of a single call overrides it.

    Parameters
    ----------
    n : int
        From 1 to 1024. Small calls use fewer, where more would not pay. Never set more than there are processors: threads that
        wait for each other then take turns, and beside another busy process a call may take a hundred times as long. A forked
        child, and a build without OpenMP, keep to one thread.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer in that range.

    Notes
    -----
    OpenMP's workers belong to the thread that first called for them, until it ends, and those of all callers together are never
    more than the processors. In a pool of threads the first callers have them, and calls of the others run on one thread, even if
    the first ones are idle. Where calls come one at a time, let one thread make them; where they come from all at once, the
    processors are busiest with one thread for each.
    """
    global _num_threads, _usual
    _num_threads = check_threads("n", n)
    _usual = None


def get_num_threads() -> int:
    """The maximum number of threads of a call: as set, or else ``OMP_NUM_THREADS``, or else the processors available.

    Processors are counted at the first use, from the CPU affinity of the process and its control group's CPU quota. A forked
    child has one thread, whatever was set, and so has a build without OpenMP.

    Returns
    -------
    int
    """
    global _num_threads
    if _alone:
        return 1
    n = _num_threads
    if n is None:
        n = _num_threads = _from_environment() or processors()
    return n


def allowance(threads: int | None) -> tuple[int, int]:
    """For one call: the most threads it may use, and the processors that all calls share (0: no limit)."""
    global _usual
    usual = _usual
    # Single steps take a microsecond: a tenth of it would be spent below. Compared with the number, as another thread may store
    # an old `_usual` just after set_num_threads
    if threads is None and usual is not None and usual[0] == _num_threads:
        return usual
    if threads is not None:
        n = check_threads("threads", threads)
        return (1, 0) if _alone else (n, max(n, processors()))
    if _alone:
        return 1, 0
    n = get_num_threads()
    usual = _usual = n, max(n, processors())
    return usual


def check_threads(name: str, n: int) -> int:
    return as_integer(name, n, 1, 1024)


def processors() -> int:
    global _processors
    if _processors is None:
        try:
            count = len(os.sched_getaffinity(0))
        except AttributeError:  # not on macOS
            count = os.cpu_count() or 1
        # OMP_PROC_BIND and its like leave this thread one processor, and each worker another
        count = max(count, _engine.openmp_processors())
        _processors = max(1, min(count, _quota()))
    return _processors


def _from_environment() -> int | None:
    """The first level of OMP_NUM_THREADS, which may be a list: "4,2"."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not first.isascii() or not first.isdigit() or not first.strip("0"):
        return None
    return min(int(first.lstrip("0")[:9]), 1024)  # Python refuses numbers of thousands of digits


def _quota() -> int:
    """Processors' worth of time that the control groups of this process allow, rounded up."""
    least = 1 << 30
    for group in _control_groups():
        try:
            limit, period = (group / "cpu.max").read_text().split()  # version 2
        except (OSError, ValueError):
            try:
                limit = (group / "cpu.cfs_quota_us").read_text().strip()  # version 1
                period = (group / "cpu.cfs_period_us").read_text().strip()
            except OSError:
                continue
        if limit.isdigit() and period.isdigit() and int(period) > 0:
            least = min(least, math.ceil(int(limit) / int(period)))
    return least


def _control_groups() -> list[Path]:
    """Every control group from the process's own up to the root: each may hold a quota."""
    groups: list[Path] = []
    try:
        lines = os.fsdecode(Path("/proc/self/cgroup").read_bytes()).splitlines()
    except OSError:
        return groups
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base = Path("/sys/fs/cgroup")
        elif "cpu" in controllers.split(","):
            base = Path("/sys/fs/cgroup/cpu")
        else:
            continue
        own = base / path.lstrip("/")
        groups += [own, *(parent for parent in own.parents if parent.is_relative_to(base))]
    return groups


def _remember_main_thread() -> None:
    _engine.set_main_thread(threading.main_thread().ident or 0)  # a thread that has begun has one


def _after_fork_in_child() -> None:
    global _alone, _usual
    _usual = None
    _alone = True  # OpenMP's workers did not survive the fork, and waiting for them would hang
    _remember_main_thread()


_remember_main_thread()
os.register_at_fork(after_in_child=_after_fork_in_child)
