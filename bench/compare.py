"""The race of the engines: python -m bench.compare --help; README.md says how it measures."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tqdm
from shapes import Shape

import fastlstm
from bench import machine, report
from bench.cases import MODES, lengths_of, select
from bench.engines import ENGINES, USUAL, difference, missing_modules
from bench.worker import Worker

TURN_SECONDS = 0.03  # of one engine in one round
PEAK_SECONDS = 0.02  # of one measurement of the machine
ROUNDS, QUICK_ROUNDS = 7, 3


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cases = select(options.modes, options.shapes, options.quick)
    if not cases:
        print("no shape matches", file=sys.stderr)
        return 2
    engines = installed(options.engines)
    record: dict[str, Any] = {"machine": machine.describe(), "rounds": options.rounds, "peaks": {}, "rows": []}
    tqdm.tqdm.monitor_interval = 0  # no thread of ours beside the engines
    with tqdm.tqdm(total=len(cases) * len(options.threads), unit="case", file=sys.stderr) as bar:
        for threads in options.threads:
            rates = first_rates(threads)
            rows = []
            with workers(engines, threads) as running:
                for mode, shape in cases:
                    bar.set_postfix_str(f"{mode} {shape} threads={threads}")
                    rows.append(race(mode, shape, running, threads, options.rounds, rates))
                    bar.update()
            peaks = machine.peaks({name: statistics.median(values) for name, values in rates.items()}, threads) if rates else None
            record["peaks"][str(threads)] = describe_peaks(peaks)
            record["rows"] += [complete(row, peaks) for row in rows]
    text = report.markdown(record)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.chart:
        report.chart(record, options.chart)
    return 1 if any("wrong" in result for row in record["rows"] for result in row["engines"].values()) else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description="Race fastlstm against other engines.")
    parser.add_argument("--threads", type=int, nargs="+", default=[fastlstm.get_num_threads()], help="default: all there are")
    parser.add_argument("--shapes", metavar="PATTERN", help="a regular expression of names and uses, or any shape's name")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(USUAL), help="default: all but torch.compile")
    parser.add_argument("--rounds", type=int, help=f"turns of each engine; default {ROUNDS}, with --quick {QUICK_ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="a few shapes, in less than two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything measured; bench.report draws from it later")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--chart", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def installed(names: list[str]) -> list[str]:
    """fastlstm first, then those of the engines that can be imported; the others are named on stderr."""
    found = ["fastlstm"]
    for name in names:
        if missing := missing_modules(name):
            print(f"{name} is left out: {', '.join(missing)} not installed", file=sys.stderr)
        elif name not in found:
            found.append(name)
    return found


@contextlib.contextmanager
def workers(engines: list[str], threads: int) -> Iterator[list[Worker]]:
    running: list[Worker] = []
    try:
        for engine in engines:
            running.append(Worker(engine, threads))
        yield running
    finally:
        for worker in running:
            worker.stop()


# ---- A case --------------------------------------------------------------------------------------------------------------------


def race(
    mode: str, shape: Shape, running: list[Worker], threads: int, rounds: int, rates: dict[str, list[float]]
) -> dict[str, Any]:
    """Make the case in every worker, check the results against fastlstm's, then ask for times in turn.

    The order is another one in each round. A worker whose results differ is not timed. Each round also measures the FMA peak and
    one of the bandwidths.
    """
    row: dict[str, Any] = {"mode": mode, "shape": shape.name, "reason": shape.reason, "threads": threads, "engines": {}}
    racing, expected = [], None
    for worker in running:
        made = worker.ask("make", mode, shape.name)
        if "results" in made:
            result = made.pop("results")
            expected = expected or result
            made["difference"] = difference(result, expected)
            if made["difference"] <= 1:
                racing.append(worker)
                made["turns"] = []
            else:
                made["wrong"] = f"results differ from fastlstm's by {made['difference']:.3g} times the tolerance"
        row["engines"][worker.engine] = made
        worker.settle()
    order = random.Random(shape.name)
    restless = 0
    for number in range(rounds):
        for worker in order.sample(racing, len(racing)):
            row["engines"][worker.engine]["turns"].append(worker.ask("time", TURN_SECONDS))
            restless += not worker.settle()
        measure(rates, threads, number)
    for worker in running:
        memory = worker.ask("drop")
        if worker in racing:
            turns = row["engines"][worker.engine]["turns"]
            row["engines"][worker.engine] |= {"seconds": statistics.median(turns), "memory": memory}
    if restless:
        row["restless"] = restless
    return row


def first_rates(threads: int) -> dict[str, list[float]]:
    """Three measurements of everything; nothing, with a word on stderr, where peak.c cannot be built."""
    rates: dict[str, list[float]] = {}
    try:
        for _ in range(3):
            for name, peak in machine.measurements(threads).items():
                rates.setdefault(name, []).append(peak(PEAK_SECONDS))
    except (RuntimeError, MemoryError) as error:
        print(f"no limits: {error}", file=sys.stderr)
        return {}
    return rates


def measure(rates: dict[str, list[float]], threads: int, number: int) -> None:
    """The FMA peak, and one of the bandwidths in turn, added to `rates`."""
    if rates:
        peaks = machine.measurements(threads)
        for name in ("FMA", machine.LEVELS[number % len(machine.LEVELS)]):
            rates[name].append(peaks[name](PEAK_SECONDS))


def complete(row: dict[str, Any], peaks: machine.Peaks | None) -> dict[str, Any]:
    """The row with what follows from its times: the best rival, the ratio to it, the limit, and each engine's fraction of it."""
    times = {name: result["seconds"] for name, result in row["engines"].items() if "seconds" in result}
    rivals = {name: seconds for name, seconds in times.items() if name != "fastlstm"}
    if rivals:
        best = min(rivals, key=lambda name: rivals[name])
        row |= {"best_rival": best, "ratio": rivals[best] / times["fastlstm"]}
    if peaks:
        shape = Shape.parse(row["shape"])
        lengths = lengths_of(shape) if row["mode"].endswith("ragged") else None
        limit = machine.limit(shape, peaks, lengths, row["mode"].startswith("train"))
        row |= {"limit": limit.seconds, "bound": limit.bound}
        for name, seconds in times.items():
            row["engines"][name]["fraction"] = limit.seconds / seconds
    return row


def describe_peaks(peaks: machine.Peaks | None) -> dict[str, float]:
    """GFLOP/s and GB/s, rounded."""
    if peaks is None:
        return {}
    return {"FMA": round(peaks.flops / 1e9, 1)} | {level.name: round(level.bytes_per_second / 1e9, 1) for level in peaks.levels}


if __name__ == "__main__":
    sys.exit(main())
