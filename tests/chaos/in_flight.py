# SPDX-License-Identifier: Apache-2.0
"""Connections are cut while calls are in flight, and what became of these.

    python -m tests.chaos.in_flight [--bus rabbitmq-4.0] [--world eventlet] [--cuts 20]
        [--callers 50] [--any] [--query pre_settled=rpc-reply]

Client and server each have a forwarder between them and the bus: the connection of
one, of the other or of both is reset, and what is on its way is thrown away.  Each cut
finds as many calls in flight as there are callers.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import os
import sys
import time
import typing
import urllib.parse

from tests.chaos import brokers
from tests.chaos.forwarder import Forwarder
from tests.chaos.workers import Worker
from tests.functional.world import WORLDS

#: Seconds that a call may take: far more than any cut.
TIMEOUT = 60.0


class Figures(typing.TypedDict):
    """What became of all calls.  Times in seconds."""

    in_flight: int
    calls: int
    raised: dict[str, int]
    wrong_replies: int
    executed_twice: int
    longest: float


def run(
    url: str,
    world: str,
    *,
    cuts: int,
    callers: int,
    named: bool = True,
) -> Figures:
    """Cut that often, in turn the client, the server, and both.

    :param url: of the bus
    :param named: the calls name their server; else any server of the topic may get
        them
    """
    topic = f"in-flight-{os.getpid()}-{time.monotonic_ns()}"
    with contextlib.ExitStack() as stack:
        near = stack.enter_context(Forwarder(urllib.parse.urlsplit(url).port))
        far = stack.enter_context(Forwarder(urllib.parse.urlsplit(url).port))
        server = stack.enter_context(
            Worker(world, "in_flight:serve", url=_through(far, url), topic=topic)
        )
        server.expect("ready")
        client = stack.enter_context(
            Worker(
                world,
                "in_flight:call",
                url=_through(near, url),
                callers=callers,
                timeout=TIMEOUT,
                named=named,
                topic=topic,
            )
        )
        which = itertools.cycle([(near,), (far,), (near, far)])
        for _ in range(cuts):
            client.expect("round", 2 * TIMEOUT)
            for forwarder in next(which):
                assert forwarder.cut() > 0
            client.tell(again=True)
        client.expect("round", 2 * TIMEOUT)
        client.tell(again=False)
        sent = client.expect("ledger", 2 * TIMEOUT)
        server.tell(end=True)
        got = server.expect("ledger")
        for each in (client, server):
            each.finish()
    raised = collections.Counter(call[2] for call in sent["calls"] if call[2])
    return {
        "in_flight": cuts * callers,
        "calls": len(sent["calls"]),
        "raised": dict(raised),
        "wrong_replies": len(sent["wrong"]),
        "executed_twice": sum(count > 1 for _, count in got["executed"]),
        "longest": max(call[1] for call in sent["calls"]),
    }


def _through(forwarder: Forwarder, url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    login = parts.netloc.rpartition("@")
    netloc = f"{login[0]}{login[1]}127.0.0.1:{forwarder.port}"
    return parts._replace(netloc=netloc).geturl()


def text(figures: Figures) -> str:
    """The figures for people."""
    raised = "".join(f"\n    {n} x {error}" for error, n in figures["raised"].items())
    return (
        f"{figures['in_flight']} in flight when their connection was cut, "
        f"{figures['calls']} calls in all: {sum(figures['raised'].values())} raised, "
        f"{figures['executed_twice']} executed twice, {figures['wrong_replies']} wrong "
        f"replies, the longest {figures['longest']:.1f} s{raised}"
    )


def main(argv: typing.Sequence[str] | None = None) -> int:
    """The command; 0 if none raised or was executed twice."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.in_flight", description=__doc__.splitlines()[0]
    )
    brokers.add_argument(parser)
    parser.add_argument("--world", default="threads", choices=WORLDS)
    parser.add_argument("--cuts", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--callers", type=int, default=50, help="(%(default)s)")
    parser.add_argument(
        "--any", action="store_true", help="call any server of the topic, not the one"
    )
    parser.add_argument("--query", default="", help="of the URL: options of the driver")
    arguments = parser.parse_args(argv)
    with brokers.chosen(arguments.bus, "in-flight") as (_, url):
        figures = run(
            f"{url}?{arguments.query}",
            arguments.world,
            cuts=arguments.cuts,
            callers=arguments.callers,
            named=not arguments.any,
        )
    print(text(figures))
    return int(bool(figures["raised"] or figures["executed_twice"]))


if __name__ == "__main__":
    sys.exit(main())
