"""The engine in a process: Python threads, fork, signals, memory, and what a process is told from outside."""

from __future__ import annotations

import copy
import os
import pickle
import platform
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import FORK, QUIET, assert_interrupted_soon, assert_same_bytes, linux, make_case, posix, run_python

import fastlstm

# ---- Python threads ----------------------------------------------------------------------------------------------------------


def test_many_python_threads_on_one_network() -> None:
    """Sixteen callers at once, each with its own input, some with several threads of their own: the same bits as alone."""
    cases = [make_case(name, lengths=True, resets=True, seed=n) for n, name in enumerate(["t30b5i12h80l2d2p30"] * 8)]
    lstm = cases[0].network()
    expected = [case.run(lstm, threads=1) for case in cases]
    begin = threading.Barrier(16)

    def work(n: int) -> None:
        begin.wait()
        for repeat in range(12):
            case = cases[(n + repeat) % 8]
            options = {"threads": (1, 2, 4)[n % 3]} if n % 4 else {}
            assert_same_bytes(case.run(lstm, **options), expected[(n + repeat) % 8], f"caller {n}, call {repeat}")

    with ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(work, n) for n in range(16)]:
            future.result(timeout=120)


@linux
def test_operating_system_threads_stay_few() -> None:
    """At most the processors and the callers, whoever calls; and calls that end give their threads back."""
    run_python(
        """
import os, threading
import fastlstm
from helpers import make_case

case = make_case("t40b6i32h256d2")
lstm = case.network()
done, callers = threading.Event(), 32

def work():
    while not done.is_set():
        case.run(lstm)

before = len(os.listdir("/proc/self/task"))
threads = [threading.Thread(target=work) for _ in range(callers)]
for thread in threads:
    thread.start()
most = 0
for _ in range(150):
    most = max(most, len(os.listdir("/proc/self/task")))
    done.wait(0.01)
done.set()
for thread in threads:
    thread.join()
allowed = before + callers + len(os.sched_getaffinity(0)) + 2
assert most <= allowed, f"{most} threads of the operating system, allowed are {allowed}"
""",
        **QUIET,
    )


@linux
def test_callers_that_come_and_go_leave_nothing() -> None:
    run_python(
        """
import os, threading
from helpers import make_case

case = make_case("t40b6i32h256d2")
lstm = case.network()
case.run(lstm)
before = len(os.listdir("/proc/self/task"))
for _ in range(60):
    thread = threading.Thread(target=case.run, args=(lstm,))
    thread.start()
    thread.join()
after = len(os.listdir("/proc/self/task"))
assert after <= before + len(os.sched_getaffinity(0)) + 2, f"{before} threads before, {after} after 60 callers"
""",
        **QUIET,
    )


def test_daemon_threads_at_exit() -> None:
    """The process ends while calls are running, without a word and with status 0."""
    for threads in (1, 2):
        done = run_python(
            """
import sys, threading
from helpers import make_case

case = make_case("t400b4i32h256d2")
lstm = case.network()
under_way = threading.Barrier(5)

def work():
    case.run(lstm, threads=int(sys.argv[1]))
    under_way.wait()
    while True:
        case.run(lstm, threads=int(sys.argv[1]))

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
under_way.wait()
print("done")
""",
            threads,
            timeout=60,
        )
        assert done.stdout == "done\n"
        assert done.stderr == ""


# ---- fork --------------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("before", ["digest()", "digest(threads=4)", "digest(threads=1)", "pass"])
def test_fork_after_use(before: str) -> None:
    """The child gets the same bits, and so do the child's child and then again the parent."""
    run_python(
        FORK
        + f"""
{before}

def grandchild():
    check()
    joined(in_child(check))

joined(in_child(grandchild))
check()
joined(in_child(check))
""",
        timeout=90,
    )


@posix
def test_fork_of_a_stream() -> None:
    """A stream that was made before steps on in the child, on its one thread."""
    run_python(
        FORK
        + """
import numpy as np

fastlstm.set_num_threads(2)
wide = fastlstm.LSTM(640, 640, seed=0)
assert wide.plan(1, 8)["threads"] == 2
x = np.random.default_rng(0).standard_normal((3, 8, 640)).astype("f")
expected, _ = wide(x)
stream = wide.stream(8)
assert stream.step(x[0]).tobytes() == expected[0].tobytes()

def check():
    for t in (1, 2):
        assert stream.step(x[t]).tobytes() == expected[t].tobytes()

joined(in_child(check))
check()
""",
        timeout=90,
    )


@posix
def test_fork_while_others_call() -> None:
    """Other threads are in the middle of a call when this one forks."""
    run_python(
        FORK
        + """
done = threading.Event()

def work(threads):
    while not done.is_set():
        digest(threads=threads)

callers = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 2, 3)]
for caller in callers:
    caller.start()
for _ in range(10):
    joined(in_child(check))
    time.sleep(0.01)
done.set()
for caller in callers:
    caller.join()
check()
""",
        timeout=120,
    )


@posix
def test_multiprocessing_after_use() -> None:
    run_python(
        FORK
        + """
import multiprocessing

def work(n):
    return digest()

if __name__ == "__main__":
    digest(threads=2)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map_async(work, range(12)).get(timeout=60) == [expected] * 12
""",
        timeout=90,
    )


# ---- Signals -----------------------------------------------------------------------------------------------------------------


LONG_CALL = """
import signal, sys, time
import numpy as np
import fastlstm
from helpers import assert_same_bytes, make_case, subnormals_work

name, threads = sys.argv[1], int(sys.argv[2])
small = make_case("t5b3i4h20l2")
lstm = small.network()
before = small.run(lstm)
T, B, I, H, L = eval(name)
long = fastlstm.LSTM(I, H, L, seed=0)
x = np.broadcast_to(np.float32(0.5), (T, B, I))
out = np.empty((T, B, H), np.float32)
long(x[:2, :2], threads=threads)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a run in the background ignores, and so do its children
print("ready", flush=True)
try:
    long(x, out=out, threads=threads)
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
else:
    print("never", flush=True)
assert subnormals_work()
again = long(x[:4, :2], threads=threads)
assert again[0].tobytes() == long(x[:4, :2], threads=1)[0].tobytes()
assert_same_bytes(small.run(lstm), before)
"""


@posix
@pytest.mark.timing
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", ["(40000, 1, 8, 512, 4)", "(3, 40000, 64, 512, 2)", "(1, 4000, 2048, 2048, 2)"])
def test_interrupt(sizes: str, threads: int) -> None:
    """Ctrl-C ends a long call soon: many steps, few steps with many rows, and one step of a large network."""
    assert_interrupted_soon(LONG_CALL, sizes, threads, pause=0.3)


@posix
def test_a_stream_is_not_changed_under_a_step() -> None:
    """Not by a signal's handler, which runs in the middle of it."""
    run_python(
        """
import signal
import numpy as np, fastlstm

fastlstm.set_num_threads(1)  # or many processors would be through before the signal
stream = fastlstm.LSTM(512, 2048, seed=0).stream(2000)
x, zeros = np.ones((2000, 512), np.float32), stream.state
seen = []

def handler(*_):
    for change in (stream.reset, lambda: stream.reset([1]), lambda: setattr(stream, "state", zeros), lambda: stream.step(x)):
        try:
            change()
        except RuntimeError as error:
            seen.append(str(error))

signal.signal(signal.SIGALRM, handler)
before = stream.step(x)
for _ in range(20):
    stream.reset()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    output = stream.step(x)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if len(seen) == 4:
        assert output.tobytes() == before.tobytes()
        break
    seen.clear()  # the signal was handled before the step had begun
assert seen == ["this stream is in use: by another thread, or by the step that this signal's handler interrupts"] * 4, seen
stream.reset()
assert not stream.state[0].any()
"""
    )


@posix
def test_interrupt_of_a_long_step() -> None:
    """A stream's step of one thread, too: it ends, and the state is the one before."""
    run_python(
        """
import os, signal, threading
import numpy as np, fastlstm

fastlstm.set_num_threads(1)
stream = fastlstm.LSTM(512, 512, seed=0).stream(30000)
x = np.ones((30000, 512), np.float32)
signal.signal(signal.SIGINT, signal.default_int_handler)  # as above
timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
try:
    timer.start()
    stream.step(x)
    timer.join()  # not that the signal comes later still
except KeyboardInterrupt:
    pass
assert not any(array.any() for array in stream.state), "the step went on to its end"
"""
    )


@posix
def test_other_signal_handlers_run_during_a_call() -> None:
    """A handler that does not raise runs while the call goes on, and the result is right."""
    run_python(
        """
import signal, time
import numpy as np
from helpers import assert_same_bytes, make_case

case = make_case("t4000b1i8h256l2")
lstm = case.network()
expected = case.run(lstm)
seen = []

def handler(number, frame):
    seen.append(time.monotonic())
    assert float.fromhex("0x1p-1074") * 1.0 != 0, "subnormal numbers are zero in a handler, which is not the engine's"

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
begin = time.monotonic()
while len(seen) < 3 and time.monotonic() < begin + 20:
    assert_same_bytes(case.run(lstm), expected)
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(seen) >= 3
"""
    )


# ---- Memory ------------------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("room", [1, 3, 6, 12])
def test_no_memory_for_another_thread(room: int) -> None:
    """The call runs on one: OpenMP's runtime would end the process."""
    run_python(
        """
import pathlib, resource, sys, threading
import fastlstm
from helpers import assert_same_bytes, make_case

case = make_case("t20b3i4h80l2")
lstm = case.network()
expected = case.run(lstm, threads=1)
now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (now + (int(sys.argv[1]) << 20), hard))
assert_same_bytes(case.run(lstm, threads=2), expected)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
assert_same_bytes(case.run(lstm, threads=2), expected)
assert len(list(pathlib.Path("/proc/self/task").iterdir())) == 2, "and on two when there is room"
""",
        room,
        **QUIET,
    )


@posix
def test_an_interrupted_step_is_not_taken() -> None:
    """Or whoever catches a timeout could not know whether to take it again."""
    run_python(
        """
import signal
import fastlstm, numpy as np

class Late(Exception):
    pass

def late(*_):
    raise Late

signal.signal(signal.SIGALRM, late)
stream, x = fastlstm.LSTM(64, 512, 4, seed=0).stream(), np.ones((1, 64), np.float32)
kept = 0
for _ in range(200):
    before = stream.state[0].tobytes()
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4)
        while True:
            before, _ = stream.state[0].tobytes(), stream.step(x)
    except Late:
        kept += stream.state[0].tobytes() == before
assert kept > 150, kept
""",
        **QUIET,
    )


@linux
@pytest.mark.parametrize("variable", ["OMP_PROC_BIND=true", "OMP_PLACES=cores"])
def test_bound_threads_leave_the_number_as_it_is(variable: str) -> None:
    code = "import fastlstm; print(fastlstm.get_num_threads())"
    name, value = variable.split("=")
    plain, bound = (run_python(code, OMP_NUM_THREADS=None, **more).stdout for more in ({}, {name: value}))
    assert plain == bound


@linux
def test_workers_are_woken_up_for_enough() -> None:
    """A small call alone stays on one thread, small calls at once do not, nor does a large one."""
    run_python(
        """
import pathlib, time
import fastlstm, numpy as np

def tasks():
    return len(list(pathlib.Path("/proc/self/task").iterdir()))

small = fastlstm.LSTM(64, 192)
assert small.plan(1, 1, threads=2)["threads"] == 2
step, state = np.zeros((1, 1, 64), np.float32), (np.zeros((1, 1, 192), np.float32),) * 2
for _ in range(5):
    small(step, state, threads=2)
    time.sleep(0.01)
assert tasks() == 1
until = time.monotonic() + 10
while tasks() == 1 and time.monotonic() < until:
    small(step, state, threads=2)
assert tasks() == 2
""",
        **QUIET,
    )
    run_python(
        """
import pathlib
import fastlstm, numpy as np

fastlstm.LSTM(64, 512)(np.zeros((50, 4, 64), np.float32), threads=2)
assert len(list(pathlib.Path("/proc/self/task").iterdir())) == 2
""",
        **QUIET,
    )


@linux
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_no_memory_to_save(suffix: str, tmp_path: Path) -> None:
    """A file as large as the network needs little of it; what is there is replaced by a whole one or not at all."""
    run_python(
        """
import pathlib, resource, sys
import fastlstm

path = pathlib.Path(sys.argv[1])
large = fastlstm.LSTM(1024, 1024, seed=0)
fastlstm.LSTM(3, 4, seed=0).save(path)
old = path.read_bytes()
now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
for room in (0, 4, 24):
    resource.setrlimit(resource.RLIMIT_AS, (now + (room << 20), hard))
    try:
        large.save(path)
    except MemoryError:
        assert path.suffix == ".npz" and room < 24, room
        assert path.read_bytes() == old
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert list(path.parent.iterdir()) == [path]
    weights = fastlstm.load(path).weights.layers[0]
    assert len(old) == path.stat().st_size or (weights.weight_hh == large.weights.layers[0].weight_hh).all()
assert path.stat().st_size > large.weights.layers[0].weight_hh.nbytes
""",
        tmp_path / f"network{suffix}",
        **QUIET,
    )


@linux
@pytest.mark.parametrize("what", ["output", "scratch", "weights"])
def test_out_of_memory(what: str) -> None:
    """MemoryError, whichever part has no room, and the next small call works."""
    run_python(
        """
import pathlib, resource, sys
import numpy as np
import fastlstm
from helpers import assert_same_bytes, make_case

small = make_case("t20b3i4h80l2")
lstm = small.network()
expected = small.run(lstm)
assert_same_bytes(small.run(lstm, threads=2), expected)
T, B, H = {"output": (4000, 64, 512), "scratch": (1, 400000, 64), "weights": (1, 1, 8)}[sys.argv[1]]
large = fastlstm.LSTM(4, H, seed=0)
x = np.broadcast_to(np.float32(0.5), (T, B, 4))
out = np.empty((T, B, H), np.float32) if sys.argv[1] == "scratch" else None
now = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
for _ in range(3):
    resource.setrlimit(resource.RLIMIT_AS, (now + (100 << 20), hard))
    try:
        fastlstm.LSTM(4096, 4096) if sys.argv[1] == "weights" else large(x, out=out)
    except MemoryError as error:
        assert str(error)
    else:
        raise AssertionError("that was enough memory")
    assert_same_bytes(small.run(lstm), expected)
    assert_same_bytes(small.run(lstm, threads=2), expected)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
if sys.argv[1] != "weights":
    large(x, out=out)
assert_same_bytes(small.run(lstm), expected)
""",
        what,
        **QUIET,
    )


@linux
@pytest.mark.parametrize(
    ("bound", "environment"),
    [
        (16, {}),  # MiB: the holes that glibc's heap gets from arrays of many sizes, NumPy's own too
        (2, {"MALLOC_MMAP_THRESHOLD_": "65536"}),  # no holes: whatever is large is given back at once
    ],
    ids=["heap", "maps"],
)
def test_memory_does_not_grow_with_the_shapes_seen(bound: int, environment: dict[str, str]) -> None:
    """Hundreds of shapes on one network: nothing is kept of any."""
    if environment and platform.libc_ver()[0] != "glibc":
        pytest.skip("a setting of glibc")
    run_python(
        """
import sys
import numpy as np
import fastlstm
from helpers import resident_bytes

rng = np.random.default_rng(0)
lstm = fastlstm.LSTM(24, 96, 2, bidirectional=True, seed=0)

def call(T, B):
    x = rng.standard_normal((T, B, 24), np.float32)
    lstm(x, lengths=rng.integers(0, T + 1, B), resets=rng.random((T, B)) < 0.1)

def calls(n):
    for _ in range(n):
        call(int(rng.integers(1, 121)), int(rng.integers(1, 61)))

call(120, 60)
calls(100)
before = resident_bytes()
calls(400)
growth = (resident_bytes() - before) / 2**20
assert growth < float(sys.argv[1]), f"grew by {growth:.1f} MiB"
""",
        bound,
        **QUIET,
        **environment,
    )


@linux
def test_memory_of_networks_and_calls_is_given_back() -> None:
    run_python(
        """
import gc
import numpy as np
import fastlstm
from helpers import resident_bytes

x = np.ones((3, 2, 64), np.float32)

def cycle():
    lstm = fastlstm.LSTM(64, 256, 2, seed=0)  # 6 MB of packed weights
    lstm(x)
    lstm.load_state_dict(lstm.state_dict())
    stream = lstm.stream(4)
    for bad in (x[..., 1:], x.astype(float), None):
        try:
            lstm(bad)
        except (TypeError, ValueError):
            pass

for _ in range(3):
    cycle()
gc.collect()
before = resident_bytes()
for _ in range(40):
    cycle()
gc.collect()
growth = resident_bytes() - before
assert growth < 32 << 20, f"grew by {growth / 2**20:.1f} MiB in 40 networks"
""",
        **QUIET,
    )


@linux
def test_lent_memory_goes_back_when_calls_have_not_needed_it_for_seconds() -> None:
    run_python(
        """
import time
import numpy as np
import fastlstm
from helpers import resident_bytes

lstm = fastlstm.LSTM(32, 128, seed=0)
x = np.ones((1000, 16, 32), np.float32)
lstm(x[:3, :1])
before = resident_bytes()
for T in (1000, 500, 250, 125, 700, 350):
    lstm.record(x[:T])  # 45 MB and less
kept = resident_bytes() - before
assert kept > 40 << 20, f"{kept / 2**20:.1f} MiB"
time.sleep(5.1)
lstm(x[:3, :1])
left = resident_bytes() - before
assert left < 8 << 20, f"{left / 2**20:.1f} MiB"
""",
        **QUIET,
    )


@linux
def test_memory_of_calls_is_lent_to_the_next_and_goes_with_the_last_network() -> None:
    run_python(
        """
import numpy as np
import fastlstm
from helpers import resident_bytes

x = np.ones((400, 16, 32), np.float32)
fastlstm.LSTM(32, 64, seed=0).record(x[:3]).backward(x[:3, :, :1] * np.ones(64, np.float32))
before = resident_bytes()
first, second = fastlstm.LSTM(32, 256, seed=0), fastlstm.LSTM(32, 64, seed=0)
for _ in range(3):
    tape = first.record(x)  # 40 MB
    del tape
kept = resident_bytes() - before
assert 25 << 20 < kept < 70 << 20, f"{kept / 2**20:.1f} MiB"
del first
assert resident_bytes() - before > 25 << 20
del second
left = resident_bytes() - before
assert left < 12 << 20, f"{left / 2**20:.1f} MiB"
""",
        **QUIET,
    )


@linux
def test_memory_of_large_arrays_is_lent_when_they_are_gone() -> None:
    run_python(
        """
import numpy as np
import fastlstm
from helpers import resident_bytes

x = np.ones((200, 32, 256), np.float32)  # 6.5 MB
lstm = fastlstm.LSTM(256, 256, seed=0)
first, _ = lstm(x)
values = first.copy()
second, _ = lstm(2 * x)
assert not np.shares_memory(first, second)
np.testing.assert_array_equal(first, values)
address = first.ctypes.data
del first
third, _ = lstm(x)
assert third.ctypes.data == address
np.testing.assert_array_equal(third, values)

tape = lstm.record(x, lengths=[150] * 32)
once = tape.backward(np.ones_like(tape.output))
del second, tape
tape = lstm.record(x, lengths=[150] * 32)
assert not tape.output[150:].any()
again = tape.backward(np.ones_like(tape.output))
assert not again.input[150:].any()
for name, gradient in again.parameters.items():
    np.testing.assert_array_equal(gradient, once.parameters[name])
del lstm, tape, once, again
np.testing.assert_array_equal(third, values)  # still the caller's
del third, values
x = np.zeros(1)
assert resident_bytes() < 64 << 20, resident_bytes()
""",
        **QUIET,
    )


# ---- Copies ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), lambda o: pickle.loads(pickle.dumps(o, 0))]
)
def test_copies_give_the_same_bits(copied: Any, batch_first: bool) -> None:
    case = make_case("t9b4i5h20l2d2p7")
    lstm = fastlstm.LSTM.from_weights(case.weights, batch_first=batch_first)
    other = copied(lstm)
    x = case.x.swapaxes(0, 1) if batch_first else case.x
    (output, state), (other_output, other_state) = lstm(x, case.state), other(x, case.state)
    assert_same_bytes((other_output, *other_state), (output, *state))
    assert other.batch_first == batch_first
    assert list(other.state_dict()) == list(lstm.state_dict())


class Named(fastlstm.LSTM):
    """A network with something of its user's."""

    name: list[str]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_have_what_users_added(copied: Any) -> None:
    lstm = Named(5, 7, seed=0)
    lstm.name = ["encoder"]
    other = copied(lstm)
    assert type(other) is Named
    assert other.name == ["encoder"]
    assert (other.name is lstm.name) == (copied is copy.copy)
    other.load_state_dict(fastlstm.LSTM(5, 7, seed=1).state_dict())
    x = np.ones((3, 2, 5), "f")
    assert lstm(x)[0].tobytes() == fastlstm.LSTM(5, 7, seed=0)(x)[0].tobytes()


def test_weights_that_are_replaced_during_calls_belong_together() -> None:
    """One thread loads weights in turn while another takes gradients: of the one or of the other; at the end of the last."""
    a, b = (fastlstm.LSTM(6, 40, seed=seed) for seed in (1, 2))
    x, d_output = np.random.default_rng(0).standard_normal((5, 3, 6)).astype("f"), np.ones((5, 3, 40), "f")
    expected = {lstm.record(x).backward(d_output).input.tobytes() for lstm in (a, b)}
    shared, done, refused = copy.copy(a), threading.Event(), []

    def load() -> None:
        for _ in range(300):
            for lstm in (b, a):
                shared.load_state_dict(lstm.state_dict())
        done.set()

    loader = threading.Thread(target=load)
    loader.start()
    while not done.is_set():
        try:
            assert shared.record(x).backward(d_output).input.tobytes() in expected
        except RuntimeError as error:
            refused.append(str(error))
    loader.join()
    assert all("weights were replaced" in message for message in refused)
    assert shared.record(x).backward(d_output).input.tobytes() == a.record(x).backward(d_output).input.tobytes()


def test_a_pickled_network_runs_in_another_process(tmp_path: Path) -> None:
    case = make_case("t9b4i5h20l2d2p7", "float64", lengths=True)
    (tmp_path / "network").write_bytes(pickle.dumps((case.network(), case)))
    run_python(
        """
import pathlib, pickle, sys
lstm, case = pickle.loads(pathlib.Path(sys.argv[1], "network").read_bytes())
pathlib.Path(sys.argv[1], "result").write_bytes(pickle.dumps(case.run(lstm)))
""",
        tmp_path,
    )
    assert_same_bytes(pickle.loads((tmp_path / "result").read_bytes()), case.run())


# ---- What a process is told --------------------------------------------------------------------------------------------------


def said(code: str, **environment: str | None) -> str:
    return str(run_python(code, **environment).stdout).strip()


THREADS = "import fastlstm; print(fastlstm.get_num_threads())"


@linux
def test_default_number_of_threads() -> None:
    """OMP_NUM_THREADS, else the processors this process may use."""
    assert said(THREADS, OMP_NUM_THREADS="3") == "3"
    assert said(THREADS, OMP_NUM_THREADS="5,2") == "5"
    assert said(THREADS, OMP_NUM_THREADS="1") == "1"
    assert said(THREADS, OMP_NUM_THREADS="0003") == "3"
    assert said(THREADS, OMP_NUM_THREADS=5000 * "9") == "1024"
    processors = sorted(os.sched_getaffinity(0))
    default = int(said(THREADS, OMP_NUM_THREADS=None))
    assert 1 <= default <= len(processors)
    one = f"import os; os.sched_setaffinity(0, [{processors[-1]}]); {THREADS}"
    assert said(one, OMP_NUM_THREADS=None) == "1"
    assert said(one, OMP_NUM_THREADS="4") == "4"
    for nothing in ("", "0", "-1", "many"):
        assert said(THREADS, OMP_NUM_THREADS=nothing) == str(default)


def test_forced_instruction_set() -> None:
    for isa in fastlstm.available_isas():
        assert said("import fastlstm; print(fastlstm.isa)", FASTLSTM_ISA=isa) == isa
    assert said("import fastlstm; print(fastlstm.isa)", FASTLSTM_ISA=None) == fastlstm.available_isas()[-1]


@pytest.mark.parametrize("name", ["avx3", "AVX2", "sse", "neon,avx2", " ", "x" * 300])
def test_an_unknown_instruction_set_is_an_import_error(name: str) -> None:
    done = run_python("import fastlstm", check=False, FASTLSTM_ISA=name)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert last.startswith("ImportError: "), last
    assert "FASTLSTM_ISA" in last
    assert fastlstm.available_isas()[0] in last
    assert name[:50] in last
    assert len(last) < 300


def test_pytorch_is_missing() -> None:
    done = run_python("import sys; sys.modules['torch'] = None; import fastlstm.torch", check=False)
    assert done.stderr.strip().splitlines()[-1] == "ImportError: fastlstm.torch needs PyTorch: pip install torch"


def test_sources_that_are_not_compiled_say_so() -> None:
    """As in a clone, whose folder Python asks before it looks for what is installed."""
    done = run_python("import sys; sys.modules['fastlstm._engine'] = None; import fastlstm", check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: "), last
    for wanted in ("not compiled", "python -I", "build_ext --inplace"):
        assert wanted in last


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints what a bug report needs."""
    fastlstm.show_config()
    text = capsys.readouterr().out
    for wanted in (fastlstm.__version__, fastlstm.isa, str(fastlstm.get_num_threads()), np.__version__):
        assert re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text), f"{wanted} is missing in\n{text}"


# ---- Beside PyTorch ----------------------------------------------------------------------------------------------------------


DIGEST = """
import hashlib
def digest():
    from helpers import make_case
    case = make_case("t60b8i32h160l2d2", lengths=True, resets=True)
    lstm = case.network()
    return [hashlib.sha256(b"".join(a.tobytes() for a in case.run(lstm, threads=n))).hexdigest() for n in (1, 2, 4, None)]
def use_torch():
    import warnings
    warnings.simplefilter("ignore")
    import torch
    torch.set_num_threads(2)
    with torch.no_grad():
        torch.nn.LSTM(32, 160, 2, bidirectional=True)(torch.ones(60, 8, 32))
"""


def test_in_one_process_with_torch() -> None:
    """In either order, each with its own OpenMP runtime: the same bits."""
    pytest.importorskip("torch")
    alone = said(DIGEST + "print(digest())")
    assert said(DIGEST + "use_torch(); print(digest()); use_torch(); digest()") == alone
    assert said(DIGEST + "first = digest(); use_torch(); print(digest()); assert first == digest()") == alone
