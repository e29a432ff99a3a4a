"""The command line: ``fastlstm demo | scan | run | convert | info``.

Exit status: 0, or 1 if the demo's numbers are wrong, 2 for an error (one line on standard error), 128 and its number after a
signal (Ctrl-C, SIGTERM, SIGHUP).
"""

from __future__ import annotations

import argparse
import errno
import io
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastlstm
from fastlstm.arrays import Array, shape_error
from fastlstm.errors import FormatError
from fastlstm.files import replacing, same_file
from fastlstm.rounding import TYPES
from fastlstm.weights import MERGE_MODES

__all__ = ["main"]

PLOT = "fastlstm-demo.png"  # of the demo
CHUNK_BYTES = 16 << 20  # of input and output that `run` works on at a time, unless --chunk says otherwise


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process if left out.

    Returns
    -------
    int
        The exit status.

    Raises
    ------
    SystemExit
        From argparse: status 2 for arguments it does not understand, 0 after ``--help`` and ``--version``. After SIGTERM and
        SIGHUP, unless the process ignores them or has its own way with them: 128 and the signal's number.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that a terminal has no letters for is shown all the same
    args = make_parser().parse_args(argv)
    try:
        with ended_by_signals():
            status: int = args.command(args)
        if sys.stdout is not None:  # closed: >&-
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output has gone, as in `fastlstm scan FILE | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        named = error.filename is not None and error.strerror
        return fail(f"{error.filename or repr('')}: {error.strerror}" if named else str(error), args)
    except (ValueError, ImportError) as error:
        return fail(str(error), args)
    except MemoryError as error:
        return fail(str(error) or "out of memory", args)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP become exceptions, as Ctrl-C is one: else they would leave temporary files behind."""

    def end(number: int, frame: object) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # a second one would break off what the first one tidies up
        raise SystemExit(128 + number)

    ours: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
        ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_DFL]  # nohup ignores one
    for each in ours:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


def fail(message: str, args: argparse.Namespace) -> int:
    if sys.stderr is not None:  # it may be closed, and print would take standard output
        print("fastlstm: error:", one_line(message, args), file=sys.stderr)
    return 2


def one_line(message: str, args: argparse.Namespace) -> str:
    """A message in the words of the command line: options in the place of the arguments of Python's functions.

    A message has an argument as ``name=`` or ``name=value``, or begins with what was given wrongly.
    """
    options: dict[str, str] = args.options
    line = " ".join(message.splitlines())
    hint = rf"(?<!\S)({'|'.join(options)})=(?:True\b|'(\w+)'|(?=[:,]|$))"
    line = re.sub(hint, lambda found: " ".join(filter(None, (options[found[1]], found[2]))), line)
    # Of what was not given a message says what the file has
    names = [name for name, value in vars(args).items() if name in options and value is not None and value is not False]
    given = "|".join(names) or "(?!)"
    leading = rf"(?:^|(?<=: ))((?:{given})(?:, (?:{given}))*)(?=[ :])"
    return re.sub(leading, lambda found: ", ".join(options[name] for name in found[1].split(", ")), line)


# ---- Arguments -----------------------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    def add(name: str, command: Any, text: str, examples: str) -> argparse.ArgumentParser:
        epilog = "examples:\n" + "".join(f"  {line.strip()}\n" for line in examples.splitlines())
        layout = argparse.RawDescriptionHelpFormatter
        sub = commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=layout)
        sub.set_defaults(command=command)
        return sub

    parser = argparse.ArgumentParser(prog="fastlstm", description="Fast, exactly reproducible LSTM networks on CPUs.")
    parser.add_argument("--version", action="version", version=f"fastlstm {fastlstm.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    sub = add(
        "demo",
        demo,
        "Forecast sunspots with a network trained in PyTorch, check its numbers, time it beside its rivals, draw a plot.",
        """fastlstm demo
        fastlstm demo --plot sunspots.svg""",
    )
    plot = sub.add_mutually_exclusive_group()
    plot.add_argument("--plot", metavar="PATH", help=f"where to draw (default: {PLOT}, if matplotlib is installed)")
    plot.add_argument("--no-plot", action="store_true", help="draw nothing")

    sub = add(
        "scan",
        scan,
        "List the LSTMs that a file holds, also those that cannot be loaded, with the reason.",
        """fastlstm scan checkpoint.pt
        fastlstm scan amplifier.nam""",
    )
    sub.add_argument(
        "file",
        metavar="FILE",
        help="any that fastlstm.load reads: .pt, .pth, .safetensors, .keras, .h5, .onnx, .npz, .msgpack, .nam, .json",
    )
    add_external_data(sub)

    sub = add(
        "run",
        run,
        "Run an LSTM over an .npy array, a chunk of time steps at a time: the array may be larger than memory.",
        """fastlstm run model.safetensors x.npy -o y.npy
        fastlstm run checkpoint.pt x.npy -o y.npy --name encoder.rnn --batch-first
        fastlstm run model.safetensors monday.npy -o y1.npy --state-out monday.npz
        fastlstm run model.safetensors tuesday.npy -o y2.npy --state-in monday.npz""",
    )
    sub.add_argument("file", metavar="FILE", help="the network, as for scan")
    sub.add_argument("input", metavar="INPUT.npy", help="shape (T, B, I); (B, T, I) if batch-first; (T, I) for one sequence")
    sub.add_argument("-o", "--output", metavar="OUTPUT.npy", required=True, help="replaced only when all is done")
    add_choice(sub)
    sub.add_argument("--threads", type=int, metavar="N", help="the most threads (default: OMP_NUM_THREADS or all processors)")
    sub.add_argument("--state-in", metavar="STATE.npz", help="initial state, arrays h and c (default: the file's, or zeros)")
    sub.add_argument("--state-out", metavar="STATE.npz", help="where to write the final state")
    sub.add_argument("--chunk", type=int, metavar="STEPS", help="time steps at a time (default: about 16 MB; same result)")
    sub.add_argument("--weight-dtype", choices=TYPES, help="round the weights to a smaller type first (default: leave them)")

    sub = add(
        "convert",
        convert,
        "Write an LSTM as .safetensors or .npz, under PyTorch's names, with all that the file says of it.",
        """fastlstm convert amplifier.nam amplifier.safetensors
        fastlstm convert checkpoint.pt encoder.npz --name encoder.rnn
        fastlstm convert tagger.weights.h5 tagger.npz --activation relu --merge-mode sum""",
    )
    sub.add_argument("file", metavar="SOURCE", help="the network, as for scan")
    sub.add_argument("output", metavar="TARGET", help="ends with .safetensors or .npz; replaced only when all is done")
    add_choice(sub)

    add("info", info, "Show version, instruction sets, threads, compiler and platform.", "fastlstm info")
    for sub in commands.choices.values():  # for messages; of two options for one argument the first
        options = ((action.dest, option) for action in sub._actions for option in reversed(action.option_strings))
        sub.set_defaults(options={name: option for name, option in options if option.startswith("--")})
    return parser


def add_choice(sub: argparse.ArgumentParser) -> None:
    """Which LSTM of a file, and what the file may leave open."""
    sub.add_argument("--name", help="which LSTM to use, if the file holds several (see scan)")
    sub.add_argument(
        "--batch-first",
        action=argparse.BooleanOptionalAction,
        help="whether the arrays are (B, T, ...) (default: as the file says, else as is usual in its framework)",
    )
    sub.add_argument("--layout", choices=("keras", "haste"), help="order of gates of tensors named kernel and recurrent_kernel")
    sub.add_argument("--allow-nonfinite", action="store_true", help="accept NaN and infinity among the weights")
    add_external_data(sub)
    keras = sub.add_argument_group(
        "Keras weights without a configuration",
        "How the layer was created, if the file does not record it; Keras' defaults are assumed otherwise.",
    )
    keras.add_argument("--go-backwards", action="store_true", default=None, help="it runs from the last step to the first")
    keras.add_argument("--activation", metavar="NAME", help='"linear" where Keras had None (default: tanh)')
    keras.add_argument(
        "--recurrent-activation", metavar="NAME", help="hard_sigmoid_keras2 and hard_sigmoid_keras3 differ (default: sigmoid)"
    )
    keras.add_argument("--merge-mode", choices=MERGE_MODES, help="of a Bidirectional (default: concat)")


def choice(args: argparse.Namespace) -> dict[str, Any]:
    """The same as the functions take it."""
    of_keras = ("go_backwards", "activation", "recurrent_activation", "merge_mode")
    names = ("batch_first", "layout", "allow_nonfinite", "external_data", *of_keras)
    return {name: getattr(args, name) for name in names}


def add_external_data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--external-data", action="store_true", help="read weights that an ONNX model has in files beside it")


# ---- Commands ------------------------------------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> int:
    from fastlstm.demo import run

    plot, lacking = args.plot, False
    if plot is None and not args.no_plot:  # nobody has asked for it: what it needs may be missing
        lacking = find_spec("matplotlib") is None
        plot = None if lacking else PLOT
    agrees = run(plot)
    if lacking:
        print("Plot      none, matplotlib is not installed: pip install matplotlib")
    if agrees:
        return 0
    print("fastlstm: error: the output differs from PyTorch's by more than is allowed", file=sys.stderr)
    return 1


def info(args: argparse.Namespace) -> int:
    fastlstm.show_config()
    return 0


def scan(args: argparse.Namespace) -> int:
    found = fastlstm.scan(args.file, external_data=args.external_data)
    if not found:
        fastlstm.load(args.file, external_data=args.external_data)  # fails, and says what the file holds instead
    rows: list[tuple[str, ...]] = [("name", "input", "hidden", "layers", "directions", "projection", "bias", "dtype")]
    for lstm in found:
        name = lstm.name if lstm.name and lstm.name.isprintable() else repr(lstm.name)
        problem = [f"cannot be loaded: {one_line(lstm.problem, args)}"] if lstm.problem else []
        if problem and not lstm.hidden_size:
            rows.append((name, *problem))
        else:
            sizes = (lstm.input_size, lstm.hidden_size, lstm.num_layers, 1 + lstm.bidirectional, lstm.proj_size or "-")
            rows.append((name, *map(str, sizes), "yes" if lstm.bias else "no", str(lstm.dtype), *problem))
    full = [row[: len(rows[0])] for row in rows if len(row) >= len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)] + [0]
    widths[0] = max(len(row[0]) for row in rows)
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
    return 0


def run(args: argparse.Namespace) -> int:
    check_paths(args)
    lstm = fastlstm.load(args.file, args.name, **choice(args))
    if args.weight_dtype:
        lstm = lstm.to(weight_dtype=args.weight_dtype)
    x = read_array(args.input)
    time = 1 if lstm.batch_first and x.ndim == 3 else 0
    if x.ndim not in (2, 3) or x.shape[-1] != lstm.input_size:
        batch = "B, T" if lstm.batch_first else "T, B"
        raise ValueError(f"{args.input}: shape must be ({batch}, {lstm.input_size}) or (T, {lstm.input_size}), got {x.shape}")
    if x.dtype != lstm.dtype:
        raise ValueError(
            f"{args.input}: dtype must be {lstm.dtype} as the weights are, got {x.dtype}; in Python: "
            f"numpy.save(path, numpy.load({args.input!r}).astype({lstm.dtype.name!r}))"
        )
    rows = x.shape[1 - time : 2 - time] if x.ndim == 3 else ()
    state = None if args.state_in is None else read_state(args.state_in, lstm, rows)
    steps, shape = x.shape[time], (*x.shape[:-1], lstm.output_size)
    chunk = chunk_steps(args.chunk, lstm, steps, x.nbytes + x.itemsize * math.prod(shape))

    with replacing(args.output) as part, nullcontext() if args.state_out is None else replacing(args.state_out) as state_part:
        output = np.lib.format.open_memmap(part, mode="w+", dtype=lstm.dtype, shape=shape)
        reserve(part)
        for begin in progress(range(0, max(steps, 1), chunk)):  # without steps one call too: the final state is the initial one
            cut = (slice(None),) * time + (slice(begin, begin + chunk),)
            _, state = lstm(x[cut], state, out=output[cut], threads=args.threads)
        output.flush()
        if state_part and state:
            with open(state_part, "wb") as file:
                np.savez(file, h=state[0], c=state[1])
    return 0


def convert(args: argparse.Namespace) -> int:
    print(fastlstm.convert(args.file, args.output, args.name, **choice(args)))
    return 0


# ---- Files ---------------------------------------------------------------------------------------------------------------------


def check_paths(args: argparse.Namespace) -> None:
    """Refuse to write over what is read. The output may take the place of the input, and a state that of the one before."""
    read = {"FILE": args.file, "INPUT": args.input, "--state-in": args.state_in}
    written = {"-o": args.output, "--state-out": args.state_out}
    for option, path in (read | written).items():
        if path == "-":
            raise ValueError(f"{option} must be the path of a file, got '-': nothing is read from a pipe or written to one")
    for option, path in written.items():
        for other, taken in (read | written).items():
            wanted = other == option or (option, other) in (("-o", "INPUT"), ("--state-out", "--state-in"))
            if not wanted and path is not None and taken is not None and same_file(path, taken):
                raise ValueError(f"{option} and {other} are the same file: {path}")
    if args.output.lower().endswith((".npz", ".safetensors", ".onnx")):
        raise ValueError(f"-o writes one array, as .npy: its name must not end like {args.output}")
    if args.state_out and args.state_out.lower().endswith((".npy", ".safetensors", ".onnx")):
        raise ValueError(f"--state-out writes an .npz file: its name must not end like {args.state_out}")


def check_regular(path: str) -> None:
    """Opening a FIFO would wait until somebody writes."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path}: not a regular file")


def read_array(path: str) -> Array:
    """The array of an .npy file, memory-mapped; nothing in the file is executed."""
    check_regular(path)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # a damaged header makes NumPy raise whatever its parsing steps raise
        raise ValueError(f"{path}: not an .npy file of numbers: {error}") from error


def read_state(path: str, lstm: fastlstm.LSTM, rows: tuple[int, ...]) -> tuple[Array, Array]:
    """The arrays h and c of an .npz file; `rows` is (B,), or () for one sequence."""
    from fastlstm.loaders.npz_file import members_of, stored
    from fastlstm.loaders.source import opened

    check_regular(path)
    with opened(path) as file:
        members = {} if file.archive is None else members_of(file.archive)
        if file.archive is None or not {"h", "c"} <= members.keys():
            raise FormatError("not an .npz file with arrays h and c")
        for name, size in (("h", lstm.weights.recurrent_size), ("c", lstm.weights.cell_size)):
            if members[name].dtype != lstm.dtype.name:
                raise FormatError(f"{name} must be {lstm.dtype} as the weights are, got {members[name].dtype}")
            shape = (lstm.num_layers * lstm.num_directions, *rows, size)
            if members[name].shape != shape:
                raise FormatError(str(shape_error(name, shape, members[name].shape)))
        h, c = (stored(file.archive, members[name]).astype(lstm.dtype) for name in "hc")
    return h, c


def chunk_steps(given: int | None, lstm: fastlstm.LSTM, steps: int, nbytes: int) -> int:
    """Time steps that one call takes."""
    if given is not None and given < 1:
        raise ValueError(f"--chunk must be at least 1, got {given}")
    if lstm.bidirectional or lstm.weights.reverse:  # the state goes from the end to the beginning, not from chunk to chunk
        if given is not None:
            what = "bidirectional network, whose backward direction" if lstm.bidirectional else "reverse network, which"
            raise ValueError(f"--chunk does not fit a {what} begins at the end")
        return max(steps, 1)
    return given or max(1, CHUNK_BYTES * steps // max(nbytes, 1))


def progress(starts: range) -> Iterable[int]:
    """With a bar on standard error, if that is a terminal, tqdm is installed and there is something to wait for."""
    if len(starts) < 2 or sys.stderr is None or not sys.stderr.isatty():
        return starts
    try:
        from tqdm import tqdm
    except ImportError:
        return starts
    return tqdm(starts, unit=" steps", unit_scale=starts.step)


def reserve(path: str) -> None:
    """Take the file's space on the disk now: writing to a memory map of a full disk would kill the process."""
    size = os.path.getsize(path)
    if size and hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that cannot
                    raise OSError(error.errno, error.strerror, path) from None
