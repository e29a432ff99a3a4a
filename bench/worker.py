"""One engine in a process of its own, asked over a pipe."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import statistics
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shapes import Shape

from bench.cases import make_case
from bench.engines import ENGINES, Call, Unsupported, call_of, results

SAMPLE_SECONDS = 100e-6  # a sample is as many calls as take this long: a clock reading costs 50 ns
WARM_SECONDS = 5e-3  # before a turn is timed: threads wake, caches fill
PATIENCE_SECONDS = 600.0  # for the slowest answer: a first call that compiles
IDLE_SECONDS = 0.01  # a process that computed nothing for so long has stopped spinning
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Worker:
    """A process that has one engine, seen from its parent.

    Each question is a tuple of a method's name of ``Bench`` and its arguments; the answer is what the method returned. A worker
    that died or failed raises RuntimeError here.
    """

    def __init__(self, engine: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.engine = engine
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, engine, threads), daemon=True)
        kept = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
        try:
            self._process.start()
        finally:
            for name, value in kept.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value
        theirs.close()
        self.ask("version")

    def ask(self, question: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((question, *arguments))
            if not self._pipe.poll(PATIENCE_SECONDS):
                raise RuntimeError(f"{self.engine}: no answer to {question!r} in {PATIENCE_SECONDS:.0f} s")
            answer, problem = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"{self.engine}: the worker died at {question!r}") from error
        if problem:
            raise RuntimeError(f"{self.engine}: {problem}")
        return answer

    def settle(self) -> bool:
        """Wait until its threads have stopped spinning, half a second at most; whether they have.

        Engines' threads look for more work for some milliseconds after a call, on the cores the next engine needs. Forbidding
        that would slow the engines down, so the processor time of the process is watched until it stands still.
        """
        for _ in range(50):
            before = processor_seconds(self._process.pid)
            time.sleep(IDLE_SECONDS)
            if processor_seconds(self._process.pid) - before < 0.05 * IDLE_SECONDS:
                return True
        return False

    def stop(self) -> None:
        self._pipe.close()  # it leaves its loop
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def processor_seconds(pid: int | None) -> float:
    """Processor time of another process, of all its threads; where the system does not tell, 0: waiting is then all there is."""
    try:
        return time.clock_gettime((~(pid or 0) << 3) | 2)  # Linux's number for the clock of a process
    except OSError:
        return 0.0


# ---- In the worker's process -------------------------------------------------------------------------------------------------


class Bench:
    """Answers a worker's questions about one case at a time."""

    def __init__(self, engine: str, threads: int) -> None:
        self._name, self._threads = engine, threads
        self._call: Call | None = None
        self._engine: Any = None
        self._memory = 0

    def version(self) -> str:
        return self._name

    def make(self, mode: str, shape: str) -> dict[str, Any]:
        """Build a network and call it once: the seconds of both, and the results; or why there are none."""
        case = make_case(mode, Shape.parse(shape))
        self._memory = resident_bytes()
        try:
            begin = time.perf_counter()
            self._engine = ENGINES[self._name](case, self._threads)
            self._call = call_of(self._engine, mode)
            built = time.perf_counter()
            self._call()
            first = time.perf_counter()
            if mode == "stream":
                self._call = call_of(self._engine, mode)  # from its beginning
            result = results(self._engine, self._call)
        except Unsupported as reason:
            return {"skipped": str(reason)}
        except Exception as error:
            return {"wrong": f"{type(error).__name__}: {error}"[:300]}
        return {"build": built - begin, "first": first - built, "results": result}

    def time(self, seconds: float) -> float:
        """Seconds of one call: the median of as many samples as fit into `seconds`, after a warm-up."""
        assert self._call is not None
        gc.disable()
        try:
            return turn(self._call, seconds)
        finally:
            gc.enable()

    def drop(self) -> int:
        """Forget the network; the resident bytes it had added to the process, with all that was kept for its calls."""
        grown = resident_bytes() - self._memory
        self._engine = self._call = None
        trim()
        return grown


def serve(pipe: Connection, engine: str, threads: int) -> None:
    bench = Bench(engine, threads)
    while True:
        try:
            question, *arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send((getattr(bench, question)(*arguments), None))
        except Exception:
            pipe.send((None, traceback.format_exc()))


def turn(call: Call, seconds: float) -> float:
    """The median sample of a call in about `seconds`."""
    clock = time.perf_counter
    begin, calls = clock(), 0
    while not calls or clock() - begin < min(WARM_SECONDS, seconds):
        call()
        calls += 1
    once = (clock() - begin) / calls
    repeats = range(max(1, round(SAMPLE_SECONDS / once)))
    samples: list[float] = []
    end = clock() + seconds
    while not samples or clock() < end:
        before = clock()
        for _ in repeats:
            call()
        samples.append((clock() - before) / len(repeats))
    return statistics.median(samples)


def resident_bytes() -> int:
    """Memory of this process that is in use, where Linux tells; else 0."""
    trim()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Collect garbage, and give free memory back to the system, where the C library can."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return
