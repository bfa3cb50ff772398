# SPDX-License-Identifier: Apache-2.0
"""Reading what processes of this host tell of themselves: see greenamqp.state."""

from __future__ import annotations

import argparse
import json
import pathlib
import socket
import typing

from greenamqp.command import formats, named, service


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the processes' sockets are."""
    parser.add_argument(
        "--config-file",
        action="append",
        type=named,
        default=[],
        metavar="FILE",
        help="configuration of a service that has state_dir (repeatable)",
    )
    parser.add_argument(
        "--state-dir",
        type=named,
        metavar="DIRECTORY",
        help="in place of the one in there",
    )


def directory(args: argparse.Namespace) -> pathlib.Path:
    """:raises Unusable: if none is named, or there is none"""
    named = args.state_dir
    if not named and args.config_file:
        named = service.configuration(args).oslo_messaging_amqp.state_dir
    if not named:
        raise service.Unusable("no state_dir: name it, or a --config-file that has it")
    found = pathlib.Path(named)
    if not found.is_dir():
        raise service.Unusable(f"{found} is no directory: no process has made it yet")
    return found


def read(where: pathlib.Path, pid: int | None = None) -> list[dict[str, typing.Any]]:
    """What the processes say, or the one of them; those that are gone say nothing.

    :raises PermissionError: if the directory is somebody else's
    """
    processes: dict[int, dict[str, typing.Any]] = {}
    paths = (path for path in where.iterdir() if path.suffix == ".sock")
    for path in sorted(paths):
        if pid is not None and path.name.partition(".")[0] != str(pid):
            continue
        whole = _read(path)
        if whole is not None:
            known = processes.setdefault(whole["pid"], whole)
            if known is not whole:  # another hub of the same process
                known["transports"] += whole["transports"]
    return [processes[pid] for pid in sorted(processes)]


def _checked(whole: typing.Any) -> dict[str, typing.Any]:
    """:raises ValueError: it is no process of this library that says so"""
    if not isinstance(whole, dict) or not {"pid", "transports"} <= whole.keys():
        raise ValueError("it says something else")
    return whole


def _read(path: pathlib.Path) -> dict[str, typing.Any] | None:
    data = b""
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(2)
        try:
            reader.connect(str(path))
            while more := reader.recv(65536):
                data += more
            return _checked(json.loads(data))
        except (
            TimeoutError,
            ConnectionError,
            FileNotFoundError,
            BlockingIOError,  # as many as may wait for it do already
            ValueError,
        ):
            return None  # it ended, or does not come to it


#: Of `rows`, all of them.
COLUMNS = (
    "pid",
    "hub",
    "host",
    "bus",
    "state",
    "up_for",
    "sent/s",
    "received/s",
    "call_ms",
    "outcome_ms",
    "sent",
    "received",
    "links",
    "calls",
    "at_work",
    "pending",
    "unsettled",
    "outbox",
    "why_down",
)

#: What people are shown of them: what is left out is in `notes`, or of no use to them.
SHOWN = tuple(
    each
    for each in COLUMNS
    if each not in ("hub", "sent", "received", "outbox", "why_down")
)


def rows(
    processes: list[dict[str, typing.Any]],
    before: typing.Sequence[dict[str, typing.Any]] = (),
) -> list[formats.Row]:
    """One for each connection, and for each transport that has none.

    :param before: what the processes said the last time: rates are since then
    """
    earlier = dict(_connections(before))
    return [
        _row(key, transport, connection, earlier.get(key, (None, None))[1])
        for key, (transport, connection) in _connections(processes)
    ]


def notes(processes: list[dict[str, typing.Any]]) -> list[str]:
    """A line for each connection that is down, with the reason, and for each outbox in
    which notifications wait."""
    lines = []
    for (pid, *_, which), (transport, connection) in _connections(processes):
        if connection is not None and connection["why_down"]:
            lines.append(f"{pid} {connection['host']}: {connection['why_down']}")
        outbox = transport["outbox"]
        if which == 0 and outbox is not None and outbox["waiting"]:
            lines.append(
                f"{pid} {outbox['waiting']} notifications wait in {outbox['directory']}"
            )
    return lines


_Key = tuple[int, str | None, int, int]


def _connections(
    processes: typing.Sequence[dict[str, typing.Any]],
) -> typing.Iterator[
    tuple[_Key, tuple[dict[str, typing.Any], dict[str, typing.Any] | None]]
]:
    """All of them with their transports, by process, hub, and which one of a transport
    it is."""
    for process in processes:
        for number, transport in enumerate(process["transports"]):
            for which, connection in enumerate(transport["connections"] or [None]):
                key = (process["pid"], transport["hub"], number, which)
                yield key, (transport, connection)


def _row(
    key: _Key,
    transport: dict[str, typing.Any],
    connection: dict[str, typing.Any] | None,
    before: dict[str, typing.Any] | None,
) -> formats.Row:
    outbox = transport["outbox"]
    row: dict[str, typing.Any] = {
        "pid": key[0],
        "hub": key[1],
        "outbox": outbox["waiting"] if outbox is not None else None,
    }
    if connection is None:
        return row
    senders = connection["senders"]
    latency = connection["latency"] or {}
    up_for = connection["up_for"]
    return row | {
        **{
            name: connection[name]
            for name in ("host", "bus", "state", "sent", "received", "why_down")
        },
        "up_for": None if up_for is None else round(up_for),
        "sent/s": _rate(connection, before, "sent"),
        "received/s": _rate(connection, before, "received"),
        "call_ms": _milliseconds(latency.get("call")),
        "outcome_ms": _milliseconds(latency.get("outcome")),
        "links": len(senders)
        + sum(len(each["links"]) for each in connection["subscriptions"]),
        "calls": connection["unanswered_calls"],
        "at_work": connection["requests_at_work"],
        "pending": sum(each["pending"] for each in senders),
        "unsettled": sum(each["unsettled"] for each in senders),
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)


def _rate(
    now: dict[str, typing.Any], before: dict[str, typing.Any] | None, name: str
) -> float | None:
    """How many in a second, by the clock of the process."""
    if before is None or now["up_for"] is None or now["came_up"] != before["came_up"]:
        return None
    seconds: float = now["up_for"] - before["up_for"]
    more: float = now[name] - before[name]
    if seconds <= 0 or more < 0:
        return None  # another one has its number now
    return round(more / seconds, 1)
