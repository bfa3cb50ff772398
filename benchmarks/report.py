# SPDX-License-Identifier: Apache-2.0
"""Results as a table and as a picture."""

from __future__ import annotations

import collections
import itertools
import math
import pathlib
import typing

from benchmarks.cells import Cell
from benchmarks.worker.measure import BUCKETS_PER_DECADE

#: Others' use of the machine above which a figure is marked, in cores.
NOISY = 0.15

Results = dict[str, typing.Any]
Row = dict[str, typing.Any]


def table(results: Results) -> str:
    """All figures, cell by cell."""
    rows = results["rows"]
    by_key = {(_cell(row), row["side"]): row for row in rows}
    lines = [_header()]
    for cell, group in itertools.groupby(rows, key=_cell):
        lines.append([f"-- {cell}"])
        for row in group:
            floors = [by_key.get((cell, name)) for name in row["floors"]]
            lines.append(_line(row, by_key.get((cell, row["baseline"])), floors))
    text = aligned(lines)
    notes = [
        "",
        f"Medians of {max((row['repeats'] for row in rows), default=0)} interleaved "
        "repeats; the share after ± is half the distance between the extremes.",
        "p50, p99, p99.9: microseconds.  us/op: CPU of client and server process "
        "together, whole processes; the bus's apart.",
        "x and %: rate and CPU against the peer under the same scheduler.",
        "floor: CPU against that of its floors together, "
        "floor/proton and one of oslo.messaging's.",
        "cs/op: context switches of both processes.  MB, threads: client/server.",
        f"machine: {results['machine']['system']}, {results['machine']['cores']} cores",
    ]
    if any((row["noise"] or 0) > NOISY for row in rows):
        notes.append(
            "! other processes used more than "
            f"{NOISY:.0%} of a core meanwhile: not for comparison with other runs"
        )
    return text + "\n".join(notes)


def _cell(row: Row) -> Cell:
    return Cell(row["load"], row["callers"], row["size"], row["targets"])


def _header() -> list[str]:
    return [
        *("side", "ops/s", "±", "x", "p50", "p99", "p99.9"),
        *("us/op", "±", "%", "floor", "client", "server", "bus"),
        *("cs/op", "MB", "threads", "lost", ""),
    ]


def _line(row: Row, baseline: Row | None, floors: list[Row | None]) -> list[str]:
    least = sum(floor["cpu"] if floor else math.nan for floor in floors)
    return [
        row["side"],
        f"{row['rate']:,.0f}",
        _spread(row, "rate"),
        f"{row['rate'] / baseline['rate']:.2f}" if baseline else "",
        *(f"{row[name]:,.0f}" for name in ("p50", "p99", "p999")),
        f"{row['cpu']:,.0f}",
        _spread(row, "cpu"),
        f"{100 * row['cpu'] / baseline['cpu']:.0f}" if baseline else "",
        f"{row['cpu'] / least:.2f}" if least > 0 else "",
        *(f"{row[name]:,.0f}" for name in ("client_cpu", "server_cpu")),
        f"{row['bus_cpu']:,.0f}" if row["bus_cpu"] is not None else "",
        f"{row['client_switches'] + row['server_switches']:.2f}",
        "/".join(f"{row[name] / 1e6:.0f}" for name in ("client_rss", "server_rss")),
        "/".join(f"{row[name]:.0f}" for name in ("client_threads", "server_threads")),
        str(row["lost"]),
        "!" if (row["noise"] or 0) > NOISY else "",
    ]


def _spread(row: Row, name: str) -> str:
    half = (row[f"{name}_max"] - row[f"{name}_min"]) / 2
    return f"{half / row[name]:.0%}" if row[name] else ""


def aligned(lines: list[list[str]]) -> str:
    """Rows of cells as text; a row of one cell is a heading."""
    columns = max(len(line) for line in lines)
    full = [line for line in lines if len(line) == columns]
    widths = [max(len(line[i]) for line in full) for i in range(columns)]
    text = ""
    for line in lines:
        if len(line) < columns:
            text += "\n" + line[0] + "\n"
            continue
        cells = [line[0].ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)
        ]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def shares(stacks: pathlib.Path) -> str:
    """Whose code had the CPU, by the innermost call that is not the standard library's:
    rooms of greenamqp, and packages of others.

    :param stacks: what the profiler of a worker wrote
    """
    counts: collections.Counter[str] = collections.Counter()
    for line in stacks.read_text().splitlines():
        calls, _, count = line.rpartition(" ")
        for call in reversed(calls.split(";")):
            owner = _owner(call.rpartition(" (")[2].rpartition(":")[0])
            if owner:
                break
        counts[owner or "standard library"] += int(count)
    total = counts.total() or 1
    return ", ".join(
        f"{owner} {count / total:.0%}" for owner, count in counts.most_common()
    )


def _owner(path: str) -> str:
    """The room or package of a file; "" for the standard library's."""
    _, installed, package = path.rpartition("/site-packages/")
    if installed:
        return package.split("/")[0].removesuffix(".py")
    if "/benchmarks/" in path:
        return "benchmarks"  # first, as the folder around it may be called greenamqp
    _, own, module = path.rpartition("/greenamqp/")
    if own:
        room, inside, _ = module.partition("/")
        return f"greenamqp/{room}" if inside else "greenamqp"
    return ""


def chart(results: Results, path: pathlib.Path) -> bool:
    """Draw throughput and CPU per number of callers, and latency distributions.

    Returns False where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = results["rows"]
    usual = [row for row in rows if row["targets"] == 1 and row["load"] != "slow"]
    sizes = sorted({row["size"] for row in usual})
    loads = sorted({row["load"] for row in usual})
    if not usual:
        return False
    sides = list(dict.fromkeys(row["side"] for row in rows))
    palette = pyplot.get_cmap("tab20")
    colours = {side: palette(index % 20) for index, side in enumerate(sides)}
    figure, axes = pyplot.subplots(
        len(loads), 3, figsize=(18, 4.5 * len(loads)), squeeze=False
    )
    for line, load in enumerate(loads):
        shown = [r for r in usual if r["load"] == load and r["size"] == sizes[0]]
        _per_callers(axes[line][0], shown, "rate", colours)
        axes[line][0].set(title=f"{load}: operations per second", yscale="log")
        _per_callers(axes[line][1], shown, "cpu", colours)
        axes[line][1].set(title=f"{load}: CPU of both, us per operation", yscale="log")
        _latencies(axes[line][2], shown, colours)
        axes[line][2].set(title=f"{load}: latency", xscale="log")
    axes[0][0].legend(fontsize="small")
    figure.suptitle(
        f"{results['began']}, {results['machine']['cores']} cores, "
        f"{sizes[0]} B; medians, bars from the lowest to the highest"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return True


def _per_callers(
    axis: typing.Any, rows: list[Row], name: str, colours: dict[str, typing.Any]
) -> None:
    for side, group in _by_side(rows):
        points = sorted(group, key=lambda row: row["callers"])
        values = [row[name] for row in points]
        axis.errorbar(
            [row["callers"] for row in points],
            values,
            yerr=[
                [row[name] - row[f"{name}_min"] for row in points],
                [row[f"{name}_max"] - row[name] for row in points],
            ],
            label=side,
            color=colours[side],
            marker="o",
            capsize=2,
        )
    axis.set(xlabel="callers", xscale="log")
    numbers = sorted({row["callers"] for row in rows})
    axis.set_xticks(numbers, [str(number) for number in numbers])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _latencies(
    axis: typing.Any, rows: list[Row], colours: dict[str, typing.Any]
) -> None:
    """The distributions over all repeats, at the number of callers in the middle."""
    numbers = sorted({row["callers"] for row in rows})
    if not numbers:
        return
    callers = numbers[len(numbers) // 2]
    for side, group in _by_side([row for row in rows if row["callers"] == callers]):
        counts = [
            sum(bucket)
            for bucket in zip(
                *(sample["histogram"] for row in group for sample in row["samples"]),
                strict=True,
            )
        ]
        total = sum(counts)
        slower = [1 - done / total for done in itertools.accumulate(counts)]
        edges = [10 ** ((i + 1) / BUCKETS_PER_DECADE) for i in range(len(counts))]
        first = next(i for i, count in enumerate(counts) if count)
        seen = slice(max(0, first - 1), len(counts) - slower.count(0) + 1)
        axis.step(edges[seen], slower[seen], label=side, color=colours[side])
    axis.set(
        xlabel=f"microseconds, {callers} callers",
        ylabel="share that is slower",
        yscale="log",
        ylim=(1e-4, 1),
    )
    axis.grid(alpha=0.3)


def _by_side(rows: list[Row]) -> typing.Iterator[tuple[str, list[Row]]]:
    for side in dict.fromkeys(row["side"] for row in rows):
        yield side, [row for row in rows if row["side"] == side]
