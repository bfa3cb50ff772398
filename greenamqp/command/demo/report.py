# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: a line while it runs and a summary at the end.

:class:`Picture` holds what is to be shown; :func:`live_line` and :func:`summary` make
text of it, without I/O; :class:`Screen` puts it on a terminal or into a file. One
thread.
"""

import collections
import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from typing import TextIO

from greenamqp.command.demo import plan, workload
from greenamqp.command.demo.ledger import Ledger, Verdict
from greenamqp.command.demo.processes import Usage
from greenamqp.command.percentiles import percentile

_TITLES_RPC = {"call": "calls", "cast": "casts", "fanout": "fanout casts"}

#: By stream and receiver.
Verdicts = dict[tuple[str, str], Verdict]

#: How many verdicts that are not well are shown one by one.
_VERDICTS_SHOWN = 10

#: How many numbers one of them has of each kind: to look at, not to count.
_EXAMPLES = 5


@dataclasses.dataclass
class Picture:
    """Everything that is shown, kept up to date by the orchestrator."""

    run: plan.Run
    #: How the bus is called, for the heading.
    bus: str
    ledger: Ledger = dataclasses.field(default_factory=Ledger)
    #: How long each operation took, seconds, by what it was.
    latencies: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    #: What should not have happened -> how often it did.
    events: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    #: The most that each process held, by its name.
    usage: dict[str, Usage] = dataclasses.field(default_factory=dict)
    phase: str = ""
    #: How long the load has been on, seconds.
    elapsed: float = 0.0


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            "  "
            + row[0].ljust(widths[0])
            + "".join(
                "  " + cell.rjust(width)
                for cell, width in zip(row[1:], widths[1:], strict=True)
            )
        ).rstrip()
        for row in rows
    ]


def seconds(value: float) -> str:
    """A duration in a unit that fits it."""
    if value < 0.0995:
        return f"{value * 1e3:.1f} ms"
    if value < 0.9995:
        return f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s"


def _percentiles(times: list[float]) -> list[str]:
    """The time that half of them did not exceed, 99 %, and all."""
    times = sorted(times)
    return [
        seconds(percentile(times, part)) if times else "-" for part in (0.5, 0.99, 1.0)
    ]


def _rpc_streams(kind: str) -> list[str]:
    return [stream for stream, _ in plan.streams() if stream.split("/", 1)[0] == kind]


def _rpc_counts(ledger: Ledger, kind: str) -> tuple[int, int, int]:
    """How many were made, how many failed, how many receipts there were."""
    made = failed = received = 0
    for stream, receivers in plan.streams():
        if stream.split("/", 1)[0] == kind:
            good, bad = ledger.sends(stream)
            made += good
            failed += bad
            received += sum(ledger.receipts(stream, who) for who in receivers)
    return made, failed, received


def live_line(picture: Picture) -> str:
    """What to show while the demo runs, in one line."""
    ledger = picture.ledger
    streams = [plan.notify_stream(service) for service in workload.SERVICES]
    parts = [f"published {sum(ledger.sends(stream)[0] for stream in streams)}"]
    for pool in plan.POOLS:
        got = sum(ledger.receipts(stream, pool) for stream in streams)
        parts.append(f"{pool} {got}")
    for kind, title in _TITLES_RPC.items():
        made, failed, _ = _rpc_counts(ledger, kind)
        parts.append(f"{title} {made}" + (f" ({failed} FAILED)" if failed else ""))
    if picture.events:
        parts.append(f"NOT WELL: {picture.events.total()}")
    return f"{picture.phase}: {picture.elapsed:3.0f} s: " + ", ".join(parts)


def summary(picture: Picture) -> tuple[list[str], bool]:
    """The closing summary as lines, and True if all went well.

    All went well if every message came exactly once wherever it was due, no send
    and no call failed, and nothing happened that should not.
    """
    ledger = picture.ledger
    verdicts = {(v.stream, v.receiver): v for v in ledger.verdicts()}
    bad = [verdict for verdict in verdicts.values() if not verdict.exactly_once]
    failed = sum(ledger.sends(stream)[1] for stream, _ in plan.streams())
    nothing = [
        title
        for title, streams in [
            ("notification", [plan.notify_stream(s) for s in workload.SERVICES]),
            *((_TITLES_RPC[kind], _rpc_streams(kind)) for kind in _TITLES_RPC),
        ]
        if not any(ledger.sends(stream)[0] for stream in streams)
    ]
    lines = [
        "",
        f"{picture.elapsed:.1f} s of load, {picture.bus}, hub {picture.run.hub}",
        "",
        "Notifications",
        *_notification_table(picture, verdicts),
        "",
        f"RPC: {len(plan.RPC_TOPICS) * plan.SERVERS_PER_TOPIC} targets in one process",
        *_rpc_table(picture, verdicts),
        "",
        "Processes (the most each held; connections are those to the bus)",
        *_process_table(picture),
        "",
    ]
    for verdict in bad[:_VERDICTS_SHOWN]:
        lines.append(_describe(verdict))
    if len(bad) > _VERDICTS_SHOWN:
        lines.append(f"... and {len(bad) - _VERDICTS_SHOWN} more like these")
    for what, count in sorted(picture.events.items()):
        lines.append(f"NOT WELL: {what}: {count} times")
    for title in nothing:
        lines.append(f"NOT WELL: no {title} was sent at all")
    well = not (bad or failed or picture.events or nothing)
    if well:
        lines.append("Nothing was lost, nothing was doubled, no send or call failed.")
    else:
        lost = sum(len(verdict.lost) for verdict in bad)
        doubled = sum(len(verdict.doubled) for verdict in bad)
        lines.append(f"FAILED: {lost} lost, {doubled} doubled, {failed} not sent.")
    return lines, well


def _notification_table(picture: Picture, verdicts: Verdicts) -> list[str]:
    ledger = picture.ledger
    rows = [
        ["exchange", "published", "failed", "pool", "received", "split", "once"]
        + ["p50", "p99", "longest"]
    ]
    groups = {service: [service] for service in workload.SERVICES}
    for title, services in (groups | {"all": list(workload.SERVICES)}).items():
        streams = [plan.notify_stream(service) for service in services]
        sends = [ledger.sends(stream) for stream in streams]
        times = [
            each
            for service in services
            for each in picture.latencies[f"notify/{service}"]
        ]
        front = [title, *(str(sum(numbers)) for numbers in zip(*sends, strict=True))]
        back = _percentiles(times)
        for pool in plan.POOLS:
            found = [verdicts[stream, pool] for stream in streams]
            splits = [ledger.split(stream, pool) for stream in streams]
            shares = [
                str(sum(split.get(worker, 0) for split in splits))
                for worker in plan.worker_names(pool)
            ]
            rows.append(
                [
                    *front,
                    pool,
                    str(sum(verdict.received for verdict in found)),
                    " + ".join(shares),
                    "yes" if all(v.exactly_once for v in found) else "NO",
                    *back,
                ]
            )
            # Only the first pool's line says what is the same for all.
            front, back = [""] * len(front), [""] * len(back)
    return table(rows)


def _rpc_table(picture: Picture, verdicts: Verdicts) -> list[str]:
    rows = [["", "made", "failed", "received", "once", "p50", "p99", "longest"]]
    for kind, title in _TITLES_RPC.items():
        made, failed, received = _rpc_counts(picture.ledger, kind)
        once = all(
            verdicts[stream, receiver].exactly_once
            for stream, receivers in plan.streams()
            if stream in _rpc_streams(kind)
            for receiver in receivers
        )
        rows.append(
            [
                title,
                str(made),
                str(failed),
                str(received),
                "yes" if once else "NO",
                *_percentiles(picture.latencies[kind]),
            ]
        )
    return [
        *table(rows),
        f"  (a fanout cast goes to the {plan.SERVERS_PER_TOPIC} servers of its topic)",
    ]


def _process_table(picture: Picture) -> list[str]:
    rows = [["process", "connections", "native threads", "fds", "memory", "CPU"]]
    for name, usage in picture.usage.items():
        rows.append(
            [
                name,
                str(usage.connections),
                str(usage.threads),
                str(usage.fds),
                f"{usage.memory / 1e6:.0f} MB",
                f"{usage.cpu:.1f} s",
            ]
        )
    return table(rows)


def _describe(verdict: Verdict) -> str:
    parts = []
    for kind in ("lost", "doubled", "unsent"):
        if numbers := getattr(verdict, kind):
            examples = ", ".join(map(str, numbers[:_EXAMPLES]))
            parts.append(f"{len(numbers)} {kind} (number {examples})")
    return f"NOT WELL: {verdict.stream} at {verdict.receiver}: " + "; ".join(parts)


class Screen:
    """Shows how far it is in one line, in place on a terminal; elsewhere it is one more
    line where something has changed, at most one a second."""

    def __init__(self, out: TextIO):
        self._out = out
        self._in_place = out.isatty()
        self._last_line = ""

    @property
    def interval(self) -> float:
        """How often to call :meth:`update`, seconds."""
        return 0.25 if self._in_place else 1.0

    def update(self, picture: Picture) -> None:
        """Show the picture as it is now."""
        line = live_line(picture)
        if line == self._last_line:
            return
        self._last_line = line
        if not self._in_place:
            self.say([line])
            return
        # One that wraps could not be written over.
        width = shutil.get_terminal_size().columns - 1
        self._out.write(f"\r\x1b[K{line[:width]}")
        self._out.flush()

    def say(self, lines: Iterable[str]) -> None:
        """Show lines that stay, in place of the one that does not."""
        if self._in_place:
            self._out.write("\r\x1b[K")
        self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()
