# SPDX-License-Identifier: Apache-2.0
"""``listeners``: what it costs to listen to many targets at once.

One server process for each number of targets, all over one connection; a client calls
one of the targets while the others idle.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import statistics
import sys
import time
import typing

from benchmarks import compare
from benchmarks.cells import Cell
from benchmarks.processes import WorkerFailed
from benchmarks.samples import Pair, Sample
from benchmarks.sides import SIDES

TARGETS = (1, 100, 1000, 5000)

#: The predecessor is asked for no more: it takes a thread or green thread and a link
#: with a session of its own for each.
PREDECESSOR_TARGETS = (1, 200)

_SIDES = ("eventlet", "gevent", "threads", "blocking")


def main(argv: typing.Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks listeners", description=__doc__)
    compare.add_bus_arguments(parser)
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)))
    parser.add_argument("--hubs", default=",".join(_SIDES))
    parser.add_argument("--no-predecessor", action="store_true")
    parser.add_argument("--no-floor", action="store_true")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="(%(default)s)")
    parser.add_argument(
        "--idle", type=float, default=5.0, help="seconds of watching it do nothing"
    )
    arguments = parser.parse_args(argv)
    kept = compare.environments(arguments)
    hubs = arguments.hubs.split(",")
    targets = [int(number) for number in arguments.targets.split(",")]
    runs = [(f"greenamqp/{hub}", targets) for hub in hubs]
    if not arguments.no_predecessor:
        runs += [
            (f"predecessor/{hub}", list(PREDECESSOR_TARGETS))
            for hub in hubs
            if hub != "blocking"
        ]
    if not arguments.no_floor:
        runs.append(("floor/proton", targets))
    for name, _targets in runs:
        if name not in SIDES:
            parser.error(f"no hub is called {name.split('/')[1]!r}")
        kept.python(SIDES[name].environment)
    began = datetime.datetime.now()
    rows: list[dict[str, typing.Any]] = []
    troubles: list[str] = []
    with compare.bus(arguments, kept) as where:
        for name, targets in runs:
            with contextlib.ExitStack() as pairs:
                running = []
                for number in targets:
                    print(f"{name}, {number} targets", file=sys.stderr, flush=True)
                    # The client calls the first target only.
                    cell = Cell("call", 1, 64, 1)
                    pair = Pair(
                        SIDES[name],
                        cell,
                        kept,
                        {"bus": where},
                        {},
                        {"targets": number, "attach": name.endswith("/blocking")},
                    )
                    try:
                        running.append((number, pairs.enter_context(pair)))
                    except WorkerFailed as exc:
                        troubles.append(f"{name}, {number} targets: {exc}")
                rows += _watch(name, running, arguments, troubles)
    results = {
        "began": began.isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": {
            environment: kept.versions(environment)
            for environment in sorted({SIDES[name].environment for name, _ in runs})
        },
        "troubles": troubles,
        "rows": rows,
    }
    output = compare.keep(arguments, "listeners", began, results)
    print(_table(rows))
    for trouble in troubles:
        print(f"trouble: {trouble}", file=sys.stderr)
    print(f"written: {output}")
    return 1 if troubles else 0


def _watch(
    name: str,
    running: list[tuple[int, Pair]],
    arguments: argparse.Namespace,
    troubles: list[str],
) -> list[dict[str, typing.Any]]:
    """Figures of each number of targets, taken in turn."""
    rows = []
    idle = {}
    for number, pair in running:
        # Before anything was called: pools are empty, nothing is under way.
        counted = pair.server.ask("census")
        before = pair.server.ask("mark")
        time.sleep(arguments.idle)
        after = pair.server.ask("mark")
        counted["idle"] = (after["cpu"] - before["cpu"]) / (after["at"] - before["at"])
        idle[number] = counted
    samples: dict[int, list[Sample]] = {number: [] for number, _pair in running}
    for _ in range(arguments.repeats):
        for number, pair in running:
            try:
                samples[number].append(pair.sample(arguments.seconds, 0.3))
            except WorkerFailed as exc:
                troubles.append(f"{name}, {number} targets: {exc}")
    least = min(idle) if idle else 0
    for number, pair in running:
        counted = idle[number]
        taken = samples[number]
        if not taken:
            continue
        row = {
            "side": name,
            "targets": number,
            "threads": counted["threads"],
            "threads_busy": taken[-1]["server_threads"],
            "greenlets": counted["greenlets"],
            "fds": counted["fds"],
            "rss": counted["rss"],
            "rss_per_target": (counted["rss"] - idle[least]["rss"]) / (number - least)
            if number > least
            else None,
            "subscribed": pair.server.ready["subscribed"],
            "idle_cpu": counted["idle"],
            "failures": sum(sample["failures"] for sample in taken),
        }
        for figure in ("p50", "p99", "cpu", "client_cpu", "server_cpu", "noise"):
            row[figure] = statistics.median(sample[figure] for sample in taken)
        rows.append(row)
    return rows


def _table(rows: list[dict[str, typing.Any]]) -> str:
    lines = [
        f"{'side':22}{'targets':>8}{'threads':>8}{'busy':>6}{'greenlets':>10}"
        f"{'fds':>6}{'MB':>6}{'kB/target':>10}{'subscribe':>10}{'idle CPU':>9}"
        f"{'p50':>7}{'p99':>8}{'us/call':>8}{'server':>7}"
    ]
    for row in rows:
        each = row["rss_per_target"]
        lines.append(
            f"{row['side']:22}{row['targets']:8,}{row['threads']:8,}"
            f"{row['threads_busy']:6,}{row['greenlets']:10,}{row['fds']:6,}"
            f"{row['rss'] / 1e6:6.0f}{'' if each is None else f'{each / 1e3:.1f}':>10}"
            f"{row['subscribed']:8.2f} s{row['idle_cpu']:8.2%} {row['p50']:7,.0f}"
            f"{row['p99']:8,.0f}{row['cpu']:8,.0f}{row['server_cpu']:7,.0f}"
        )
    lines += [
        "threads: native ones of the server before the first call; busy: after calls.",
        "p50, p99: microseconds of a call to one target, one caller, while the others "
        "idle; us/call: CPU of client and server.",
    ]
    return "\n".join(lines)
