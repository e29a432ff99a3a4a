"""What a race found, as a Markdown table and as a chart: python -m bench.report FILE.json [--markdown FILE] [--chart FILE]"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

from bench.cases import MODES
from bench.engines import ENGINES

Row = dict[str, Any]

BUSY = 0.5  # processors' worth of other work before a run, from which on its numbers are marked

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {"torch": "#D55E00", "torch.compile": "#CC79A7", "onnxruntime": "#0072B2", "openvino": "#009E73"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Draw again what bench.compare --json wrote.")
    parser.add_argument("json", type=Path)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--threads", type=int, nargs="+", help="default: all that were measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--chart", type=Path, metavar="FILE")
    options = parser.parse_args()
    record = json.loads(options.json.read_text())
    threads = options.threads or {row["threads"] for row in record["rows"]}
    record["rows"] = [row for row in record["rows"] if row["mode"] in options.modes and row["threads"] in threads]
    text = markdown(record)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.chart:
        chart(record, options.chart)
    if not options.markdown and not options.chart:
        print(text)


# ---- Markdown ------------------------------------------------------------------------------------------------------------------


def markdown(record: dict[str, Any]) -> str:
    """The machine and its peaks, then one table for each thread count and mode."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in {"Python": machine["python"], **machine["versions"]}.items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}; {machine['system']}; {versions}.",
        f"Float32, medians of {record['rounds']} rounds; `{machine['command']}`.",
    ]
    if machine["load"] > BUSY:
        lines.append(f"**The machine was busy: load average {machine['load']} before the start.**")
    for threads, peaks in record["peaks"].items():
        if peaks:
            reads = ", ".join(f"{name} {rate:.0f}" for name, rate in peaks.items() if name != "FMA")
            lines.append(f"Measured with {plural(threads)}: {peaks['FMA']:.0f} GFLOP/s; reading, in GB/s: {reads}.")
    for (threads, mode), rows in sections(record["rows"]).items():
        lines += ["", f"### {mode.capitalize()}, {plural(threads)}: {MODES[mode]}", "", *table(rows)]
    return "\n".join(lines)


def table(rows: list[Row]) -> list[str]:
    """The rows of one section, their geometric mean, and why engines are missing."""
    rivals = [name for name in ENGINES if name != "fastlstm" and any(name in row["engines"] for row in rows)]
    titles = [ENGINES[name].title for name in rivals]
    header = ["use", "shape", "fastlstm", *titles, "best / fastlstm", "of the limit", "first call", "memory"]
    lines = [line(header), line(["---", "---", *["---:"] * (len(header) - 2)])]
    for row in rows:
        engines = row["engines"]
        cells = [row["reason"].replace("|", "/"), f"`{row['shape']}`", duration(engines["fastlstm"].get("seconds"))]
        cells += [duration(engines.get(name, {}).get("seconds")) for name in rivals]
        fraction = engines["fastlstm"].get("fraction")
        cells.append(f"**{row['ratio']:.2f}**" if "ratio" in row else "–")
        cells.append(f"{fraction:.0%} {row['bound']}" if fraction else "–")
        cells += [pair(engines, rivals, "first", duration), pair(engines, rivals, "memory", mebibytes)]
        lines.append(line(cells))
    means = [mean([ratio(row, name) for row in rows]) for name in rivals]
    lines.append(line(["geometric mean", "", "", *means, f"**{mean([row.get('ratio') for row in rows])}**", "", "", ""]))
    reasons: dict[str, set[str]] = {}
    for row in rows:
        for name, result in row["engines"].items():
            for kind in ("skipped", "wrong"):
                if kind in result:
                    reasons.setdefault(result[kind], set()).add(ENGINES[name].title)
    return lines + [f"\n–: {', '.join(sorted(titles))}: {reason}." for reason, titles in reasons.items()]


def sections(rows: list[Row]) -> dict[tuple[int, str], list[Row]]:
    """Rows by thread count and mode, in the order in which they were measured."""
    found: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["threads"], row["mode"]), []).append(row)
    return found


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def pair(engines: dict[str, Any], rivals: list[str], key: str, text: Any) -> str:
    """fastlstm's number and the least of the rivals'."""
    least = min((engines[name][key] for name in rivals if key in engines.get(name, {})), default=None)
    return f"{text(engines['fastlstm'].get(key))}; {text(least)}"


def ratio(row: Row, rival: str) -> float | None:
    """How many times as long as fastlstm a rival takes."""
    own, other = (row["engines"].get(name, {}).get("seconds") for name in ("fastlstm", rival))
    return other / own if own and other else None


def mean(ratios: list[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio]
    return f"{statistics.geometric_mean(known):.2f}" if known else "–"


def duration(seconds: float | None) -> str:
    """Three digits and a unit: 8.41 µs, 275 µs, 4.35 ms, 1.20 s."""
    if seconds is None:
        return "–"
    unit, scale = next((u, s) for u, s in (("µs", 1e6), ("ms", 1e3), ("s", 1.0)) if seconds * s < 999.5 or u == "s")
    value = seconds * scale
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def mebibytes(size: float | None) -> str:
    return "–" if size is None else f"{size / 2**20:.1f} MiB"


def plural(threads: int | str) -> str:
    return "1 thread" if int(threads) == 1 else f"{threads} threads"


# ---- Chart ---------------------------------------------------------------------------------------------------------------------


def chart(record: dict[str, Any], path: Path) -> None:
    """How many times as long as fastlstm each rival takes: a row for each shape, the best rival large."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    found = {key: [row for row in rows if "ratio" in row] for key, rows in sections(record["rows"]).items()}
    columns = sorted({threads for threads, mode in found if found[threads, mode]})
    modes = [mode for mode in MODES if any(found.get((threads, mode)) for threads in columns)]
    if not modes:
        raise ValueError("nothing to draw: no row has a rival")
    heights = [max(len(found.get((threads, mode), ())) for threads in columns) + 1.5 for mode in modes]
    size = (3.6 + 4.2 * len(columns), 1.2 + 0.22 * sum(heights))
    figure, grid = plt.subplots(
        len(modes),
        len(columns),
        figsize=size,
        squeeze=False,
        sharex=True,
        sharey="row",
        height_ratios=heights,
        layout="constrained",
    )
    for mode, axes_of_mode in zip(modes, grid, strict=True):
        ordered = sorted(found.get((columns[-1], mode), ()), key=lambda row: row["ratio"])
        place = {row["shape"]: number for number, row in enumerate(ordered)}
        for threads, axes in zip(columns, axes_of_mode, strict=True):
            rows = found.get((threads, mode), [])
            for row in rows:
                y = place.setdefault(row["shape"], len(place))
                axes.plot([1, row["ratio"]], [y, y], color="0.75", linewidth=1.2, zorder=1)
                for rival in COLOURS:
                    times = ratio(row, rival)
                    if times:
                        best = rival == row["best_rival"]
                        style = {"s": 36, "zorder": 3} if best else {"s": 14, "alpha": 0.55, "zorder": 2}
                        axes.scatter(times, y, color=COLOURS[rival], linewidth=0, **style)
            axes.axvline(1, color="0.2", linewidth=1, zorder=1)
            axes.axvspan(1e-9, 1, color="#D55E00", alpha=0.06, linewidth=0)
            axes.set_xscale("log")
            axes.grid(axis="x", color="0.92", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0, labelsize=8)
            axes.spines[["top", "right", "left"]].set_visible(False)
            geometric = mean([row["ratio"] for row in rows])
            axes.set_title(f"{mode}, {plural(threads)}: geometric mean {geometric}", loc="left", fontsize=10)
        labels = {row["shape"]: label(row) for key in found if key[1] == mode for row in found[key]}
        axes_of_mode[0].set_yticks(list(place.values()), [labels[shape] for shape in place])
        axes_of_mode[0].set_ylim(-0.7, len(place) - 0.3)
    ratios = [r for rows in found.values() for row in rows for name in COLOURS if (r := ratio(row, name))]
    low, high = min(0.8, min(ratios) / 1.1), max(2.2, max(ratios) * 1.15)
    ticks = [digit * 10.0**power for power, digit in itertools.product(range(-2, 5), (1, 2, 5))]
    for axes in grid[-1]:
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("time / time of fastlstm   (large dot: best rival)")
    drawn = {name for rows in found.values() for row in rows for name in COLOURS if ratio(row, name)}
    handles = [Line2D([], [], color=COLOURS[name], marker="o", linestyle="", label=ENGINES[name].title) for name in drawn]
    handles.sort(key=lambda handle: str(handle.get_label()))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def label(row: Row) -> str:
    """The use in a few words, and the shape."""
    use = row["reason"].partition(",")[0].partition(":")[0].removesuffix(" inference")
    return f"{use}  {row['shape']}" if use else row["shape"]


if __name__ == "__main__":
    main()
