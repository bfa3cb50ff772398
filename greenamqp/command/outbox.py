# SPDX-License-Identifier: Apache-2.0
"""``greenamqp outbox``: what waits on disk for the message bus; see the option
``notify_outbox``.

Looks into the files of living processes, too.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import sys
import time
import typing
import warnings

from greenamqp.command import formats, named, number, seconds

with warnings.catch_warnings(record=True):
    # See greenamqp.command.service.
    from greenamqp.buses.format import loads
    from greenamqp.outbox import Store
    from greenamqp.outbox.directory import all_files, is_free

#: Seconds: a hundred years.
_LONGEST = 100 * 365 * 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.set_defaults(complain=parser.error)
    actions = parser.add_subparsers(metavar="action", dest="action")
    for name, summary in (
        ("list", "show what waits, one line for each file and destination"),
        ("count", "print how many notifications wait"),
        ("send", "send what no process looks after, and wait until it has gone"),
        ("purge", "remove what waits: it is never sent"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("directory", type=named, help="as notify_outbox says")
        if name == "list":
            formats.add_argument(action, people=("table",))
        if name == "count":
            formats.add_argument(action)
        if name == "send":
            action.add_argument(
                "--config-file",
                action="append",
                type=named,
                default=[],
                metavar="FILE",
                help="what the service is configured with, in place of its --url",
            )
            action.add_argument(
                "--url", type=named, help="transport URL, credentials included"
            )
            action.add_argument(
                "--exchange",
                type=named,
                help="default exchange of the service: in brackets in what list shows; "
                "by default as its configuration says",
            )
            action.add_argument(
                "--timeout",
                type=seconds,
                default=60.0,
                metavar="SECONDS",
                help="give up after that; what is left stays (default: %(default)s)",
            )
        if name == "purge":
            action.add_argument(
                "--older-than",
                type=lambda text: number(text, 0, _LONGEST),
                default=0.0,
                metavar="SECONDS",
                help="remove only what is older (default: all)",
            )
            action.add_argument(
                "--topic", type=named, help="remove only what goes to this topic"
            )


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    if args.action is None:
        args.complain("an action is required: list, count, send or purge")
    try:
        files = all_files(args.directory)
    except OSError as exc:
        return _complain(f"{args.directory}: {exc.strerror}")
    if args.action == "send":
        return _send(args)
    total = 0
    status = 0
    rows: list[formats.Row] = []
    for path in files:
        try:
            store = Store(path)
            try:
                if args.action == "list":
                    rows += _rows(store)
                elif args.action == "count":
                    total += store.count
                else:
                    total += _purge(args, store)
            finally:
                store.close()
        except (OSError, sqlite3.Error) as exc:
            status = _complain(f"{path}: {exc}")
    if args.action == "list":
        print(formats.rendered(args.format, rows, rows, _COLUMNS))
    elif args.action == "count" and args.format == "text":
        print(total)
    elif args.action == "count":
        whole = {"waiting": total}
        print(formats.rendered(args.format, whole, [whole], ("waiting",)))
    else:
        print(f"{total} notifications removed")
    return status


_COLUMNS = ("waiting", "to", "oldest", "bus", "state", "file")


def _rows(store: Store) -> list[formats.Row]:
    """What waits in a file: `oldest` is the age of the first, in seconds."""
    state = "left" if is_free(store.path) else "in use"
    return [
        {
            "waiting": count,
            "to": _where(lane),
            "oldest": round(max(0.0, time.time() - oldest)),
            "bus": store.bus,
            "state": state,
            "file": str(store.path),
        }
        for lane, (count, oldest) in store.lanes().items()
    ]


def _where(lane: str) -> str:
    exchange, topic, server, _fanout = loads(lane)
    return "/".join(part for part in (exchange, topic, server) if part)


def _purge(args: argparse.Namespace, store: Store) -> int:
    """Returns how many letters it removed."""
    if args.topic is None:
        return store.purge(args.older_than)
    return sum(
        store.purge(args.older_than, lane)
        for lane in store.lanes()
        # The priority follows the topic.
        if args.topic in (loads(lane)[1], loads(lane)[1].rpartition(".")[0])
    )


def _send(args: argparse.Namespace) -> int:
    from greenamqp import options
    from greenamqp.command import service

    try:
        conf = service.configuration(args)
        if args.exchange:
            service.set_exchange(conf, args.exchange)
        conf.set_override("notify_outbox", args.directory, options.GROUP.name)
        transport = service.transport(conf, args.url, args.timeout, notifications=True)
    except service.Unusable as exc:
        return _complain(str(exc), exc.status)
    driver: typing.Any = transport._driver
    try:
        hub = driver.use_hub()
        outbox = driver.outbox
        assert outbox is not None
        empty = hub.do(outbox.emptying(hub.now() + args.timeout))
        found = outbox.describe()
    finally:
        transport.cleanup()
    print(f"{found['sent']} notifications sent")
    lost = sum(found["dropped"].values())
    if lost:
        _complain(f"{lost} were lost: {found['dropped']}")
    if not empty:
        return _complain(f"{found['waiting']} wait still, after {args.timeout:g} s")
    others = _of_other_buses(args.directory)
    for bus, count in others.items():
        _complain(f"{count} wait for another message bus, or exchange: {bus}")
    # Of what stays as its file cannot be used, the log says why.
    failed = lost or outbox.refused or outbox.failing
    return 1 if failed or (others and not found["sent"]) else 0


def _of_other_buses(directory: str) -> dict[str, int]:
    """How many wait for each that no process looks after."""
    found: dict[str, int] = {}
    for path in all_files(directory):
        with contextlib.suppress(OSError, sqlite3.Error):
            if is_free(path):
                store = Store(path)
                if store.count:
                    found[store.bus] = found.get(store.bus, 0) + store.count
                store.close()
    return found


def _complain(text: str, status: int = 1) -> int:
    print(f"greenamqp outbox: {text}", file=sys.stderr)
    return status
