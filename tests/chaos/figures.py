# SPDX-License-Identifier: Apache-2.0
"""What faults have cost, by the ledgers of tests.ledger; see tests.chaos.faults."""

from __future__ import annotations

import bisect
import dataclasses
import typing

from benchmarks.report import aligned
from tests.chaos.kinds import FAULTS
from tests.ledger import PENDING, compare

#: Callers of each driver, and as many notifiers.
CALLERS = 4

#: Seconds that a call may take.
TIMEOUT = 30.0

#: Seconds by which a call may end after its time-out.
GRACE = 1.0

#: Seconds of traffic before the first fault: what the rate is then is the usual one.
BEFORE = 5.0

#: The share of the usual rate that counts as being back.
BACK = 0.8

Row = dict[str, typing.Any]


@dataclasses.dataclass
class Window:
    """A fault as it was: its instants, and where what belongs to it ends."""

    name: str
    node: int
    begin: float
    end: float
    until: float = 0.0


def figures(
    windows: list[Window],
    ledger: dict[str, typing.Any],
    callers: int = CALLERS,
    timeout: float = TIMEOUT,
) -> list[Row]:
    """What each fault did to one driver."""
    sent, got = ledger["sent"], ledger["got"]
    wells = {
        kind: sorted(ended for _, _, ended, error in sent[kind] if error is None)
        for kind in ("call", "notify")
    }
    first = windows[0].begin
    rows = []
    for window in windows:
        notes = {
            kind: [note for note in sent[kind] if _belongs(note[1], window, windows)]
            for kind in ("call", "notify")
        }
        numbers = {kind: {note[0] for note in notes[kind]} for kind in notes}
        found = compare(
            {"wrong": [w for w in sent["wrong"] if w[0] in numbers["call"]], **notes},
            {
                "notified": [x for x in got["notified"] if x[0] in numbers["notify"]],
                "executed": [x for x in got["executed"] if x[0] in numbers["call"]],
            },
        )
        errors = {**found["not_accepted"], **found["call_errors"]}
        row: Row = {
            "fault": window.name,
            "node": window.node,
            "lasted": window.end - window.begin,
            "sent": found["sent"] + found["calls"],
            "lost": len(found["lost"]),
            "raised": sum(errors.values()) - errors.get(PENDING, 0),
            "stuck": errors.pop(PENDING, 0),
            "hung": sum(
                ended - begun > timeout + GRACE for _, begun, ended, _ in notes["call"]
            ),
            "wrong": len(found["wrong_replies"]),
            "executed twice": len(found["executed_twice"]),
            "delivered twice": len(found["doubled"]),
            "errors": errors,
        }
        for kind, ends in wells.items():
            usual = _count(ends, first - BEFORE + 1, first) / (BEFORE - 1)
            row[f"{kind} stall"] = _stall(sent[kind], window, callers)
            row[f"{kind} back"] = _back(ends, window, usual)
        rows.append(row)
    return rows


def _belongs(instant: float, window: Window, windows: list[Window]) -> bool:
    # What was on its way when the first one began is counted with it.
    begin = 0.0 if window is windows[0] else window.begin
    return begin <= instant < window.until or (
        window is windows[-1] and instant >= window.until
    )


def _count(ends: list[float], begin: float, end: float) -> int:
    return bisect.bisect_left(ends, end) - bisect.bisect_left(ends, begin)


def _stall(notes: list[typing.Any], window: Window, callers: int) -> float:
    """The longest time for which any one caller had no success, also where it ended
    in the next fault's."""
    last = dict.fromkeys(range(callers), window.begin)
    worst = 0.0
    for number, _, ended, error in sorted(notes, key=lambda note: note[2]):
        before = last[number % callers]
        if error is None and ended > window.begin and before < window.until:
            worst = max(worst, ended - before)
            last[number % callers] = ended
    return max(worst, *(window.until - instant for instant in last.values()))


def _back(ends: list[float], window: Window, usual: float) -> float | None:
    """How many seconds after the end of a fault a second begins that has the usual
    rate; None: it did not come."""
    steps = int(10 * (window.until - window.end - 1))
    for step in range(max(0, steps) + 1):
        begin = window.end + step / 10
        if usual and _count(ends, begin, begin + 1) >= BACK * usual:
            return step / 10
    return None


class Broken(AssertionError):
    """A promise that was not kept."""


#: What may not be, by its name in a row.
PROMISES = {
    "lost": "every notification whose send returned arrives",
    "hung": "every call ends by its time-out",
    "wrong": "nobody gets another call's reply",
    "stuck": "at the end nothing waits any more",
}


def check(rows: list[Row], queues: str = "") -> None:
    """Raise Broken, naming the promise and the fault, if one was not kept.

    :param queues: their type, where they do not outlast all faults: what was in them
        is not the driver's to keep
    """
    for row in rows:
        for name, promise in PROMISES.items():
            taken = name == "lost" and queues and queues in FAULTS[row["fault"]].takes
            if row[name] and not taken:
                raise Broken(f"not kept: {promise}: {row}")
        if row["call back"] is None or row["notify back"] is None:
            raise Broken(f"not kept: the service comes back: {row}")


#: How the figures of a fault that came several times are drawn together.
_SUMS = (
    *("sent", "lost", "raised", "stuck", "hung", "wrong"),
    *("executed twice", "delivered twice"),
)
_WORST = ("call stall", "notify stall", "call back", "notify back")


def together(rows: list[Row]) -> dict[str, Row]:
    """One row for each fault: sums, and the worst of what was timed."""
    result: dict[str, Row] = {}
    for name in dict.fromkeys(row["fault"] for row in rows):
        same = [row for row in rows if row["fault"] == name]
        result[name] = {"times": len(same)}
        for column in _SUMS:
            result[name][column] = sum(row[column] for row in same)
        for column in _WORST:
            times = [row[column] for row in same]
            result[name][column] = None if None in times else max(times)
    return result


def table(rows: dict[str, list[Row]]) -> str:
    """Fault by driver, for people."""
    lines = [["fault", "driver", *(name for name in ("times", *_SUMS, *_WORST))]]
    drawn = {driver: together(each) for driver, each in rows.items()}
    for fault in next(iter(drawn.values())):
        for driver, each in drawn.items():
            row = each[fault]
            counts = [str(row[name]) for name in ("times", *_SUMS)]
            seconds = [
                "never" if row[name] is None else f"{row[name]:.1f}" for name in _WORST
            ]
            lines.append([fault, driver, *counts, *seconds])
    errors = [
        f"{driver}, {row['fault']}: {count} x {error[:200]}"
        for driver, each in rows.items()
        for row in each
        for error, count in row["errors"].items()
    ]
    return "\n".join([aligned(lines), *errors])
