# SPDX-License-Identifier: Apache-2.0
"""``soak``: whether memory, descriptors, green threads and the cost of a message stay
where they are, over many messages, many idle listeners and many reconnects.
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
from benchmarks.cutter import Cutter
from benchmarks.samples import Pair, Sample
from benchmarks.sides import SIDES

#: The first samples, up to here, are where memory may grow.  Messages.
SETTLED = 100_000

#: Options for a connection that is cut again and again: by default a driver pauses
#: longer each time that it was soon lost, up to half a minute.
_IMPATIENT = {
    "oslo_messaging_amqp": {
        "connection_retry_interval": "1",
        "connection_retry_interval_max": "1",
    }
}

#: Listeners that idle in the second part.
IDLE_LISTENERS = 1000


def main(argv: typing.Sequence[str]) -> int:
    """The command.  Returns 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="benchmarks soak", description=__doc__)
    compare.add_bus_arguments(parser)
    parser.add_argument("--side", default="greenamqp/eventlet", help="(%(default)s)")
    parser.add_argument("--load", default="call", choices=("call", "cast", "notify"))
    parser.add_argument("--callers", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="bytes (%(default)s)")
    parser.add_argument(
        "--messages", type=int, default=3_000_000, help="at the most (%(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=15, help="at the most (%(default)s)"
    )
    parser.add_argument(
        "--reconnects", type=int, default=0, help="then cut the connections so often"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of each sample (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    if arguments.side not in SIDES:
        parser.error(f"no side is called {arguments.side!r}")
    kept = compare.environments(arguments)
    side = SIDES[arguments.side]
    began = datetime.datetime.now()
    cell = Cell(arguments.load, arguments.callers, arguments.size)
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(compare.bus(arguments, kept))
        cutter = None
        if arguments.reconnects:
            cutter = stack.enter_context(Cutter(where.url))
            where = where._replace(url=cutter.url)
        buses = {"bus": where}
        # Room in the server's tally for every message, taken from the start.
        plan = {"expected": 2 * arguments.messages}
        pair = stack.enter_context(Pair(side, cell, kept, buses, _IMPATIENT, plan))
        rows = _long(pair, arguments)
        if cutter is not None:
            rows += _reconnects(pair, cutter, arguments)
        crowd = {**plan, "targets": IDLE_LISTENERS}
        many = stack.enter_context(Pair(side, cell, kept, buses, {}, crowd))
        beside = _beside(pair, many, arguments)
    results = {
        "began": began.isoformat(timespec="seconds"),
        "side": arguments.side,
        "load": arguments.load,
        "callers": arguments.callers,
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": kept.versions(side.environment),
        "rows": rows,
        "idle_listeners": beside,
    }
    output = compare.keep(arguments, "soak", began, results)
    print(_text(rows, beside))
    print(f"written: {output}")
    lost = max(row["lost"] for row in rows)
    if lost:
        print(f"{lost} messages were lost or failed", file=sys.stderr)
    return 1 if lost else 0


def _long(pair: Pair, arguments: argparse.Namespace) -> list[dict[str, typing.Any]]:
    """Sample after sample; a row whenever the number of messages has doubled enough."""
    rows: list[dict[str, typing.Any]] = []
    total = 0
    failures = 0
    due = 10_000
    until = time.monotonic() + arguments.minutes * 60
    recent: list[Sample] = []
    print(_HEADER, file=sys.stderr)
    while total < arguments.messages and time.monotonic() < until:
        sample = pair.sample(arguments.seconds, 0.05)
        recent.append(sample)
        total += sample["operations"]
        failures += sample["failures"]
        if total >= due or not rows:
            rows.append(_row(pair, recent, total, failures))
            print(_line(rows[-1]), file=sys.stderr, flush=True)
            recent = []
            due = max(2 * due, total) if total < 1_000_000 else total + 500_000
    if recent:
        rows.append(_row(pair, recent, total, failures))
    return rows


def _row(
    pair: Pair, samples: list[Sample], total: int, failures: int, event: str = ""
) -> dict[str, typing.Any]:
    client = pair.client.ask("census")
    server = pair.server.ask("census")
    # The samples since the last row, but no more than a few: cost as it is now.
    samples = samples[-5:]
    return {
        "messages": total,
        "event": event,
        **{
            name: statistics.median(sample[name] for sample in samples)
            for name in ("rate", "cpu", "client_cpu", "server_cpu", "p99", "noise")
        },
        "client_rss": client["rss"],
        "server_rss": server["rss"],
        "client_fds": client["fds"],
        "server_fds": server["fds"],
        "client_greenlets": client["greenlets"],
        "server_greenlets": server["greenlets"],
        "client_threads": client["threads"],
        "server_threads": server["threads"],
        "lost": samples[-1]["lost"] + failures,
    }


def _reconnects(
    pair: Pair, cutter: Cutter, arguments: argparse.Namespace
) -> list[dict[str, typing.Any]]:
    """Cut both connections again and again, idle, then look at the cost once more."""
    done = 0
    while done < arguments.reconnects:
        done += cutter.cut(pair.answers)
    samples = [pair.sample(arguments.seconds, 0.5) for _ in range(5)]
    failures = sum(sample["failures"] for sample in samples)
    row = _row(pair, samples, 0, failures, f"after {done} reconnects")
    return [row]


def _beside(
    alone: Pair, crowded: Pair, arguments: argparse.Namespace
) -> list[dict[str, typing.Any]]:
    """The cost of a message with few and with many idle listeners, in turn."""
    figures: dict[int, list[Sample]] = {1: [], IDLE_LISTENERS: []}
    for _ in range(5):
        figures[1].append(alone.sample(arguments.seconds, 0.2))
        figures[IDLE_LISTENERS].append(crowded.sample(arguments.seconds, 0.2))
    return [
        {
            "listeners": number,
            **{
                name: statistics.median(sample[name] for sample in samples)
                for name in ("rate", "cpu", "p50", "p99", "noise")
            },
        }
        for number, samples in figures.items()
    ]


_HEADER = (
    f"{'messages':>12}{'ops/s':>8}{'us/op':>7}{'p99':>8}{'MB client':>11}"
    f"{'server':>8}{'fds':>9}{'greenlets':>11}{'threads':>9}{'lost':>6}"
)


def _line(row: dict[str, typing.Any]) -> str:
    return (
        f"{row['messages']:12,}{row['rate']:8,.0f}{row['cpu']:7.1f}{row['p99']:8,.0f}"
        f"{row['client_rss'] / 1e6:11.1f}{row['server_rss'] / 1e6:8.1f}"
        f"{row['client_fds']:5}/{row['server_fds']:<3}"
        f"{row['client_greenlets']:7}/{row['server_greenlets']:<3}"
        f"{row['client_threads']:5}/{row['server_threads']:<3}{row['lost']:6}"
        f"  {row['event']}"
    )


def _text(
    rows: list[dict[str, typing.Any]], beside: list[dict[str, typing.Any]]
) -> str:
    lines = [_HEADER, *(_line(row) for row in rows)]
    counted = [row for row in rows if not row["event"]]
    settled = next((row for row in counted if row["messages"] >= SETTLED), counted[-1])
    last = rows[-1]
    lines.append(
        f"since {settled['messages']:,} messages: client "
        f"{(last['client_rss'] - settled['client_rss']) / 1e3:+,.0f} kB, server "
        f"{(last['server_rss'] - settled['server_rss']) / 1e3:+,.0f} kB, CPU per "
        f"message {last['cpu'] / counted[0]['cpu'] - 1:+.1%} against the first"
    )
    few, many = beside
    lines.append(
        f"{many['listeners']} targets instead of 1: CPU per message "
        f"{many['cpu'] / few['cpu'] - 1:+.1%}, p50 {many['p50'] / few['p50'] - 1:+.1%}"
    )
    return "\n".join(lines)
