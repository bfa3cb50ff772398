# SPDX-License-Identifier: Apache-2.0
"""The sides of a comparison: who does the same work, under which scheduler."""

from __future__ import annotations

import dataclasses
import fnmatch
import typing

from benchmarks.cells import Cell

#: Targets above which stock servers in native threads are left out: one of their
#: pools each, and they bring a small machine to a standstill.
MANY = 50


@dataclasses.dataclass(frozen=True)
class Side:
    """One of those that are compared.

    :param name: how tables and options call it
    :param environment: whose interpreter runs it
    :param hub: eventlet, gevent, threads, blocking, or for coroutines asyncio, uvloop
    :param bus: which URL it gets: "bus", "rabbit", or "rabbit-amqp" for AMQP 1.0 on
        the same RabbitMQ
    :param stack: oslo, proton, nothing, or the library of a peer; see the worker
    :param server: stock or own; see the worker
    :param baseline: the name of the side that its figures are set against
    :param floors: the names of the sides whose CPU together is the least that its own
        could be
    """

    name: str
    environment: str
    hub: str
    bus: str = "bus"
    stack: str = "oslo"
    server: str = "stock"
    baseline: str = ""
    floors: tuple[str, ...] = ()

    def can(self, cell: Cell) -> str:
        """Why this side has no part in a cell, or an empty string."""
        if self.stack != "oslo" and (
            cell.targets != 1 or cell.load not in ("call", "cast", "notify")
        ):
            return "the floor has simple loads only"
        if self.name.startswith("peer/") and cell.load != "call":
            return "the peers make calls only"
        if (
            self.stack == "oslo"
            and self.server == "stock"
            and self.hub == "threads"
            and cell.targets > MANY
        ):
            return f"it has up to 64 threads for each of {cell.targets} targets"
        if self.hub in ("asyncio", "uvloop") and cell.load in ("slow", "batch"):
            return "coroutines have the simple loads only"
        if self.hub == "blocking" and cell.load == "slow":
            return "its endpoints run one after another, as promised"
        return ""

    def client_hub(self, cell: Cell) -> str:
        """What the calling process runs: one thread can only be one caller."""
        if self.hub == "blocking" and cell.callers > 1:
            return "eventlet"
        return self.hub


def _all() -> typing.Iterator[Side]:
    for hub in ("eventlet", "gevent", "threads", "blocking"):
        peer = "threads" if hub == "blocking" else hub
        against = f"predecessor/{peer}"
        yield Side(
            f"greenamqp/{hub}",
            "greenamqp",
            hub,
            server="own",
            baseline=against,
            floors=("floor/proton", "floor/own"),
        )
        if hub != "blocking":
            yield Side(
                f"greenamqp-stock/{hub}",
                "greenamqp",
                hub,
                baseline=against,
                floors=("floor/proton", f"floor/oslo-{hub}"),
            )
    for hub in ("asyncio", "uvloop"):
        yield Side(
            f"greenamqp/{hub}",
            "greenamqp",
            hub,
            server="own",
            baseline="predecessor/threads",
        )
    for hub in ("eventlet", "gevent", "threads"):
        yield Side(f"predecessor/{hub}", "predecessor", hub)
    for hub in ("eventlet", "threads", "asyncio"):
        against = "rabbit/threads"
        if hub != "asyncio":
            against = f"rabbit/{hub}"
            yield Side(against, "rabbit", hub, bus="rabbit")
        yield Side(
            f"greenamqp-rabbit/{hub}",
            "greenamqp",
            hub,
            bus="rabbit-amqp",
            server="own",
            baseline=against,
        )
    yield Side("peer/proton-blocking", "peers", "threads", stack="proton-blocking")
    for stack, hub in (("rabbitmq-amqp", "threads"), ("aio-pika", "asyncio")):
        yield Side(f"peer/{stack}", "peers", hub, bus="rabbit-amqp", stack=stack)
    yield Side("floor/proton", "greenamqp", "threads", stack="proton")
    for hub in ("eventlet", "gevent", "threads"):
        yield Side(f"floor/oslo-{hub}", "greenamqp", hub, stack="nothing")
    yield Side("floor/own", "greenamqp", "threads", stack="nothing", server="own")


#: All there are, in the order of the table.
SIDES: dict[str, Side] = {side.name: side for side in _all()}


def chosen(patterns: typing.Iterable[str], rabbit: bool) -> list[Side]:
    """The sides that one of `patterns` names: a name, the part before the slash, or a
    pattern of the shell.

    :param rabbit: whether there is a RabbitMQ; without, its sides are left out
    :raises ValueError: for a pattern that names none
    """
    wanted = []
    for pattern in patterns:
        names = [
            name
            for name in SIDES
            if fnmatch.fnmatchcase(name, pattern) or name.split("/")[0] == pattern
        ]
        if not names:
            raise ValueError(
                f"no side is called {pattern!r}; there are: {', '.join(SIDES)}"
            )
        wanted += names
    sides = [side for name, side in SIDES.items() if name in wanted]
    return [side for side in sides if rabbit or side.bus == "bus"]
