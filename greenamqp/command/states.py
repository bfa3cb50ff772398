# SPDX-License-Identifier: Apache-2.0
"""Reading what processes of this host tell of themselves: see greenamqp.state."""

from __future__ import annotations

import argparse
import json
import pathlib
import socket
import typing

from greenamqp.command import named, service


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
    service.add_format(parser)


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


def _read(path: pathlib.Path) -> dict[str, typing.Any] | None:
    data = b""
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(2)
        try:
            reader.connect(str(path))
            while more := reader.recv(65536):
                data += more
            return typing.cast("dict[str, typing.Any]", json.loads(data))
        except (TimeoutError, ConnectionError, FileNotFoundError, ValueError):
            return None  # it ended, or does not come to it


_COLUMNS = (
    ("pid", 8),
    ("hub", 9),
    ("host", 24),
    ("bus", 22),
    ("state", 11),
    ("up for", 8),
    ("sent/s", 8),
    ("recv/s", 8),
    ("links", 6),
    ("calls", 6),
    ("at work", 8),
    ("pending", 8),
    ("unsettled", 10),
)


def table(
    processes: list[dict[str, typing.Any]],
    before: typing.Sequence[dict[str, typing.Any]] = (),
) -> str:
    """A line for each connection, and more where it is down, with the reason, or where
    notifications wait in an outbox.

    :param before: what the processes said the last time: rates are since then
    """
    earlier = dict(_connections(before))
    lines = ["".join(f"{name:<{width}}" for name, width in _COLUMNS)]
    for process in processes:
        for transport in process["transports"]:
            outbox = transport["outbox"]
            if outbox is not None and outbox["waiting"]:
                lines.append(
                    f"{process['pid']:<7} {outbox['waiting']} notifications wait in "
                    f"{outbox['directory']}"
                )
    for key, connection in _connections(processes):
        lines += _lines(key[0], key[1], connection, earlier.get(key))
    return "\n".join(line.rstrip() for line in lines)


def _connections(
    processes: typing.Sequence[dict[str, typing.Any]],
) -> typing.Iterator[tuple[tuple[int, str, int, int], dict[str, typing.Any]]]:
    """All of them, by process, hub, and which one of a transport it is."""
    for process in processes:
        for number, transport in enumerate(process["transports"]):
            for which, connection in enumerate(transport["connections"]):
                yield (process["pid"], transport["hub"], number, which), connection


def _rate(
    now: dict[str, typing.Any], before: dict[str, typing.Any] | None, name: str
) -> str:
    """How many in a second, by the clock of the process."""
    if before is None or now["up_for"] is None or now["came_up"] != before["came_up"]:
        return "-"
    seconds = now["up_for"] - before["up_for"]
    return f"{(now[name] - before[name]) / seconds:.1f}" if seconds > 0 else "-"


def _lines(
    pid: int,
    hub: str,
    connection: dict[str, typing.Any],
    before: dict[str, typing.Any] | None,
) -> list[str]:
    senders = connection["senders"]
    links = len(senders) + sum(
        len(each["links"]) for each in connection["subscriptions"]
    )
    up_for = connection["up_for"]
    cells = (
        pid,
        hub,
        connection["host"],
        connection["bus"],
        connection["state"],
        "-" if up_for is None else f"{up_for:.0f} s",
        _rate(connection, before, "sent"),
        _rate(connection, before, "received"),
        links,
        connection["unanswered_calls"],
        connection["requests_at_work"],
        sum(each["pending"] for each in senders),
        sum(each["unsettled"] for each in senders),
    )
    line = ""
    for cell, (_, width) in zip(cells, _COLUMNS, strict=True):
        line += f"{str(cell)[: width - 1]:<{width}}"
    lines = [line]
    if connection["why_down"]:
        lines.append(f"        {connection['why_down']}")
    return lines
