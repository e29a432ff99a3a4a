"""What the tests share: cases with data, comparisons with their tolerances, and runs in other processes."""

from __future__ import annotations

import importlib
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapes import Shape

import fastlstm
from fastlstm import FormatError, _engine, reference
from fastlstm.weights import Weights, parameter_shapes

_engine.wake_always(True)  # or most tests' calls, small and far between, would be divided among nobody

DTYPES = ("float32", "float64")

# Largest absolute error against the float64 reference, for weights of scale 1/sqrt(H) and states and inputs of scale 1. A
# pre-activation of K fused terms is wrong by about sqrt(K) units in the last place of numbers near 1 (u = 2^-24 and 2^-53), the
# cell adds some 4 u, a gate's slope is at most 1, and forgetting bounds what time piles up: 1 to 5 u are seen for K up to 1000.
# 3e-6 = 50 u leaves room for chains of layers; one wrong term, gate or row is wrong by 1e-2 and more.
TOLERANCE = {"float32": 3e-6, "float64": 1e-12}

FUSED = tuple(isa for isa in fastlstm.available_isas() if isa != "baseline")  # have fused multiply-add, and so the same bits

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc or sets limits of Linux")
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Quiet: one thread for NumPy's own products, so that threads counted are the engine's.
QUIET: dict[str, str | None] = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": None}

SHUT = -10.0  # a gate of 4.5e-5
OPEN = 30.0  # a gate of 1 - 1e-13: in float32 1


@dataclass(frozen=True)
class Case:
    """A network's weights and the arguments of one call."""

    shape: Shape
    weights: Weights
    x: np.ndarray
    state: Any  # h_0 and c_0, or None
    lengths: np.ndarray | None = None
    resets: np.ndarray | None = None

    def network(self) -> fastlstm.LSTM:
        return fastlstm.LSTM.from_weights(self.weights)

    def run(self, lstm: fastlstm.LSTM | None = None, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Output, h_n and c_n of the engine."""
        lstm = lstm or self.network()
        return flat(lstm(self.x, self.state, lengths=self.lengths, resets=self.resets, **options))

    def exact(self) -> Weights:
        """The weights in float64."""
        return self.weights.with_tensors({name: a.astype(np.float64) for name, a in self.weights.named_tensors()})

    def expected(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Output, h_n and c_n of the reference."""
        return flat(reference.forward(self.exact(), self.x, self.state, self.lengths, self.resets))

    def rows(self, rows: Any) -> Case:
        """The same network on some of the rows, in the order given."""
        return replace(
            self,
            x=self.x[:, rows],
            state=None if self.state is None else tuple(s[:, rows] for s in self.state),
            lengths=None if self.lengths is None else self.lengths[rows],
            resets=None if self.resets is None else self.resets[:, rows],
        )

    def steps(self, begin: int, end: int, state: Any) -> Case:
        """The steps from ``begin`` to before ``end`` (without lengths), from a state."""
        resets = None if self.resets is None else self.resets[begin:end]
        return replace(self, x=self.x[begin:end], state=state, resets=resets)


def make_weights(shape: Shape, dtype: str, rng: np.random.Generator, *, bias: bool = True, scale: float | None = None) -> Weights:
    """Uniform weights of PyTorch's scale, 1/sqrt(H); no two gates alike, so that gates put in each other's place are seen."""
    scale = shape.H**-0.5 if scale is None else scale
    options = {"bias": bias, "bidirectional": shape.D == 2, "proj_size": shape.P}
    shapes = parameter_shapes(shape.I, shape.H, shape.L, **options)
    return Weights.from_named_tensors({name: rng.uniform(-scale, scale, s).astype(dtype) for name, s in shapes.items()})


def make_case(
    shape: Shape | str, dtype: str = "float32", *, bias: bool = True, lengths: bool = False, resets: bool = False, seed: int = 0
) -> Case:
    """A case with normal inputs and normal, non-zero initial states; ``lengths`` hold 0 and T where there are rows enough."""
    shape = Shape.parse(shape) if isinstance(shape, str) else shape
    T, B = shape.T, shape.B
    rng = np.random.default_rng([zlib.crc32(shape.name.encode()), seed])
    weights = make_weights(shape, dtype, rng, bias=bias)
    x, h, c = (
        rng.standard_normal(s).astype(dtype)
        for s in ((T, B, shape.I), (shape.L * shape.D, B, shape.recurrent), (shape.L * shape.D, B, shape.H))
    )
    some_lengths, some_resets = rng.integers(0, T + 1, B), rng.random((T, B)) < 0.2
    some_lengths[rng.permutation(B)[:2]] = (T, 0)[:B]
    return Case(shape, weights, x, (h, c), some_lengths if lengths else None, some_resets if resets else None)


def draw(name: str, seed: int, gates: dict[str, float] | None = None, scale: float = 1) -> Case:
    """Uniform weights of scale 1/sqrt(H), normal inputs times ``scale``, small states; the biases of some gates given."""
    shape = Shape.parse(name)
    rng = np.random.default_rng(seed)
    tensors = dict(make_weights(shape, "float32", rng).named_tensors())
    for gate, bias in (gates or {}).items():
        n = "ifgo".index(gate)
        tensors["bias_ih_l0"][n * shape.H : (n + 1) * shape.H] = bias
        tensors["bias_hh_l0"][n * shape.H : (n + 1) * shape.H] = 0
    x = np.float32(scale) * rng.standard_normal((shape.T, shape.B, shape.I)).astype(np.float32)
    h, c = (rng.uniform(-0.5, 0.5, (1, shape.B, shape.H)).astype(np.float32) for _ in range(2))
    return Case(shape, Weights.from_named_tensors(tensors), x, (h, c))


def asked(case: Case, seed: int = 5) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Normal gradients of the output and of both final states, of the weights' dtype."""
    s = case.shape
    rng = np.random.default_rng([seed, s.T, s.B, s.H])
    shapes = (*case.x.shape[:2], s.D * s.recurrent), (s.L * s.D, case.x.shape[1], s.recurrent), (s.L * s.D, case.x.shape[1], s.H)
    output, h_n, c_n = (rng.standard_normal(shape).astype(case.x.dtype) for shape in shapes)
    return output, (h_n, c_n)


def flat(result: tuple[Any, tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    output, (h_n, c_n) = result
    return output, h_n, c_n


def assert_close(given: tuple[Any, ...], expected: tuple[Any, ...], tolerance: float, what: object = "") -> None:
    """Output, h_n and c_n within an absolute tolerance; a NaN anywhere fails."""
    for name, a, b in zip(("output", "h_n", "c_n"), given, expected, strict=True):
        assert a.shape == b.shape, f"{what}: {name} has shape {a.shape}, expected {b.shape}"
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        if not (error <= tolerance).all():
            at = tuple(int(n) for n in np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape))
            raise AssertionError(
                f"{what}: {name}{list(at)} is {a[at]!r}, expected {b[at]!r}; error {error[at]:.3g} > {tolerance:.3g}"
            )


def assert_same_bytes(given: tuple[Any, ...], expected: tuple[Any, ...], what: object = "") -> None:
    """Output, h_n and c_n equal bit by bit."""
    for name, a, b in zip(("output", "h_n", "c_n"), given, expected, strict=True):
        assert a.shape == b.shape, f"{what}: {name} has shape {a.shape}, expected {b.shape}"
        assert a.dtype == b.dtype, f"{what}: {name} is {a.dtype}, expected {b.dtype}"
        if a.tobytes() != b.tobytes():
            bits = np.dtype(f"u{a.itemsize}")
            at = np.argwhere(np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits))
            first = tuple(int(n) for n in at[0])
            raise AssertionError(
                f"{what}: {name} differs in {len(at)} of {a.size} elements, first at {list(first)}: {a[first]!r} != {b[first]!r}"
            )


def assert_gradients_close(given: Any, expected: Any, tolerance: float) -> None:
    """As :func:`reference.backward` returns them, in terms of the largest of each where that is more than 1."""
    (d_x, (d_h, d_c), parameters), (e_x, e_h, e_c, expected_parameters) = given, expected
    assert set(parameters) == set(expected_parameters)
    pairs = {"x": (d_x, e_x), "h_0": (d_h, e_h), "c_0": (d_c, e_c)}
    pairs |= {name: (parameters[name], expected_parameters[name]) for name in parameters}
    for name, (a, b) in pairs.items():
        b = np.zeros_like(a) if b is None else np.asarray(b)
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max(initial=0)), err_msg=name)


def required(name: str) -> Any:
    """A package that a test needs, or skip the test; with FASTLSTM_TEST_STRICT=1, where all are installed, its absence fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own affair
        if os.environ.get("FASTLSTM_TEST_STRICT") == "1":
            return importlib.import_module(name)
        return pytest.importorskip(name)


def import_keras() -> Any:
    """Keras on PyTorch, or skip the test."""
    import_torch()
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return required("keras")


def import_torch() -> Any:
    """PyTorch on one thread (its own threads cost more than they bring here), or skip the test."""
    torch = required("torch")
    torch.set_num_threads(1)
    return torch


def torch_network(weights: Weights, dtype: str = "float64") -> Any:
    """``torch.nn.LSTM`` with these weights."""
    torch = import_torch()
    network = torch.nn.LSTM(
        weights.input_size,
        weights.hidden_size,
        weights.num_layers,
        bias=weights.bias,
        bidirectional=weights.bidirectional,
        proj_size=weights.proj_size,
        dtype=getattr(torch, dtype),
    )
    network.load_state_dict({name: torch.from_numpy(a.astype(dtype)) for name, a in weights.named_tensors()})
    return network


def torch_forward(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output, h_n and c_n of PyTorch in float64; with lengths, of its packed sequences, which know no length 0."""
    torch = import_torch()
    network = torch_network(case.weights)
    x, h, c = (torch.from_numpy(a.astype(np.float64)) for a in (case.x, *case.state))
    with torch.no_grad():
        if case.lengths is None:
            output, (h_n, c_n) = network(x, (h, c))
        else:
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(case.lengths), enforce_sorted=False)
            packed_output, (h_n, c_n) = network(packed, (h, c))
            output, _ = torch.nn.utils.rnn.pad_packed_sequence(packed_output, total_length=case.shape.T)
    return output.numpy(), h_n.numpy(), c_n.numpy()


def refused(act: Callable[[], object], *parts: str) -> str:
    """The message that something is refused with: it names all `parts`, and is fit to be printed whatever a file holds."""
    with pytest.raises(FormatError) as caught:
        act()
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert message.isprintable()
    assert len(message) < 1500
    return message


def python_command(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def python_environment(**changes: str | None) -> dict[str, str]:
    """This environment for an interpreter that finds the same fastlstm and these helpers; a None takes a variable away."""
    paths = [Path(__file__).parent, Path(fastlstm.__file__).parents[1]]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **changes}
    return {name: value for name, value in variables.items() if value is not None}


def run_python(code: str, *arguments: object, timeout: float = 120, check: bool = True, **environment: str | None) -> Any:
    """Run code in a fresh interpreter; with ``check``, it must end well."""
    done = subprocess.run(
        python_command(code, *arguments), env=python_environment(**environment), capture_output=True, text=True, timeout=timeout
    )
    if check:
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def results_by_isa(function: str, folder: Path, isas: tuple[str, ...] = fastlstm.available_isas()) -> dict[str, Any]:
    """The named arrays that ``module.function`` of the tests gives in a process of its own under each instruction set."""
    module, results = function.split(".")[0], {}
    for isa in isas:
        path = folder / f"{isa}.npz"
        code = f"assert fastlstm.isa == sys.argv[1]; numpy.savez(sys.argv[2], **{function}())"
        run_python(f"import sys, numpy, fastlstm, {module}; {code}", isa, path, FASTLSTM_ISA=isa)
        results[isa] = dict(np.load(path))
    return results


def assert_same_on_every_fused(results: dict[str, Any]) -> None:
    """Bit by bit the same under all instruction sets with fused multiply-add; skips the test where one would be compared with
    itself."""
    if len(FUSED) < 2:
        pytest.skip("needs two instruction sets with fused multiply-add")
    *others, last = FUSED
    assert results[last]
    for isa in others:
        assert list(results[isa]) == list(results[last])
        for key, best in results[last].items():
            given, bits = results[isa][key], f"u{best.itemsize}"
            assert (given.dtype, given.shape) == (best.dtype, best.shape), key
            different = np.flatnonzero(given.view(bits) != best.view(bits))
            at = different[:1]
            assert not len(different), f"{key}: {isa} {given[at]}, {last} {best[at]} at {at}"


def assert_interrupted_soon(code: str, *arguments: object, pause: float) -> None:
    """Ctrl-C, so many seconds after the code has printed "ready", takes effect in 0.3 s in one of three runs; it prints when."""
    waits = []
    for _ in range(3):
        child = subprocess.Popen(
            python_command(code, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=python_environment(),
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", child.communicate()[1]
            time.sleep(pause)
            sent = time.monotonic()
            child.send_signal(signal.SIGINT)
            output, complaints = child.communicate(timeout=120)
        finally:
            child.kill()
        assert child.returncode == 0, complaints
        assert "never" not in output, "the call ended before the signal"
        waits.append(float(output) - sent)
        if waits[-1] < 0.1:
            break
    print(f"Ctrl-C took effect after {', '.join(f'{1000 * w:.0f} ms' for w in waits)}")
    assert min(waits) < 0.3, waits


FORK = """
import hashlib, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork with threads
import fastlstm
from helpers import make_case

case = make_case("t60b8i32h160l2d2", lengths=True, resets=True)
lstm = case.network()

def digest(**options):
    return hashlib.sha256(b"".join(a.tobytes() for a in case.run(lstm, **options))).hexdigest()

def in_child(work, seconds=30):
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)  # a child that hangs is killed
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return child

def joined(child):
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the child ended with {status}"

expected = digest(threads=1)

def check():
    assert digest() == expected
    try:
        digest(threads=0)
    except ValueError as error:
        assert str(error) == "threads must be between 1 and 1024, got 0"
    else:
        raise AssertionError("threads=0 was taken")
    assert digest(threads=2) == expected
    assert digest(threads=4) == expected
"""


def subnormals_work() -> bool:
    """Whether this thread's arithmetic keeps subnormal numbers, as inputs and as results."""
    small = np.full(64, np.finfo(np.float32).tiny, np.float32)
    half = small * np.float32(0.5)
    return bool((half > 0).all() and (half * np.float32(2) == small).all())


def resident_bytes() -> int:
    """Memory this process occupies (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def median_seconds(
    calls: tuple[Callable[[], object], ...], rounds: int = 15, clock: Callable[[], float] = time.thread_time
) -> list[float]:
    """Median time of each call, asked in turn so that a disturbance meets all of them; usually processor time of this thread."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds in zip(calls, times, strict=True):
            begin = clock()
            call()
            seconds.append(clock() - begin)
    return [statistics.median(seconds) for seconds in times]


def need_a_calm_machine() -> None:
    """Skip a test of several threads where other work takes their processors: nothing could be learnt from it."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processors < 2 or os.getloadavg()[0] > processors + 0.5:
        pytest.skip("needs two processors without much other work")


def settle(measure: Callable[[], float], bound: float, what: str, attempts: int = 3) -> None:
    """A measured number must stay under its bound in one of a few attempts: other work on the machine only adds to it."""
    measured = []
    for _ in range(attempts):
        measured.append(measure())
        if measured[-1] <= bound:
            return
    raise AssertionError(f"{what}: measured {', '.join(f'{m:.4g}' for m in measured)}, bound {bound:.4g}")
