# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` of a message bus in the middle of traffic, and what became of it.

    python -m tests.integration.kills --bus rabbitmq-4.0 [--queues classic]
        [--messages 20000] [--world eventlet] [--one-node]

Two processes exchange numbered notifications and calls.  When a share of them is done
the bus is killed and started again, or of a cluster the node that the sender is
connected to is killed and stays dead; the traffic goes on.
What is promised is checked: every notification whose send returned arrives; every call
ends in a reply or an exception, within its time-out and a second; no call gets another
one's reply.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import typing

from tests.chaos.workers import Worker
from tests.functional.world import WORLDS
from tests.ledger import Figures, compare
from tools.buses import BUSES, Bus

#: Seconds that may pass with nothing heard from a process: far above any time-out.
PATIENCE = 300.0

#: Seconds by which a call may end after its time-out.
GRACE = 1.0

#: Options of the driver, by the beginning of the bus's name.
_OPTIONS: dict[str, dict[str, typing.Any]] = {
    "rabbitmq": {"addressing_mode": "declared"},
}


class Broken(AssertionError):
    """A promise that was not kept."""


def run(
    bus: Bus,
    *,
    world: str = "threads",
    messages: int = 20_000,
    threads: int = 32,
    timeout: float = 60.0,
    options: dict[str, typing.Any] | None = None,
    one_node: bool = False,
    after: float = 0.3,
) -> Figures:
    """Kill `bus` in the middle of as many notifications and calls.

    :param threads: that send
    :param timeout: seconds, of a call and of a notification
    :param one_node: kill the one that the sender is connected to, which stays dead
        until all is sent; else all, and start them again at once
    :param after: the share of them that ends before
    """
    topic = f"kills-{os.getpid()}-{time.monotonic_ns()}"
    options = {"default_notify_timeout": int(timeout), **(options or {})}
    common = {"url": bus.url(), "topic": topic, "options": options}
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(Worker(world, "kills:receive", **common))
        receiver.expect("ready", PATIENCE)
        sender = stack.enter_context(
            Worker(
                world,
                "kills:send",
                messages=messages,
                threads=threads,
                timeout=timeout,
                **common,
            )
        )
        port = sender.expect("ready", PATIENCE)["port"]
        node = bus.ports().index(port) if one_node else None
        sender.tell(go=True)
        while sender.expect("progress", PATIENCE)["ended"] < after * 2 * messages:
            pass
        bus.kill9(node)
        killed = time.monotonic()
        if node is None:
            bus.start()
        while (sent := sender.hear(PATIENCE))["say"] == "progress":
            pass
        bus.start()
        accepted = [number for number, _, _, error in sent["notify"] if error is None]
        receiver.tell(accepted=accepted)
        got = receiver.expect("ledger", PATIENCE)
        for each in (sender, receiver):
            each.finish()
    return compare(sent, got, killed)


def check(figures: Figures, messages: int, timeout: float) -> None:
    """Raise Broken, naming the promise, if one was not kept."""
    for holds, promise in (
        (
            figures["sent"] == figures["calls"] == messages,
            "every notification and call ends",
        ),
        (not figures["lost"], "every notification whose send returned arrives"),
        (
            figures["longest_call"] <= timeout + GRACE,
            f"every call ends within {timeout + GRACE:g} s",
        ),
        (not figures["wrong_replies"], "nobody gets another call's reply"),
        (
            all(seconds is not None for seconds in figures["back_after"].values()),
            "the service comes back",
        ),
    ):
        if not holds:
            raise Broken(f"not kept: {promise}: {text(figures)}")


def text(figures: Figures) -> str:
    """The figures for people."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, float):
            value = f"{value:.1f} s"
        elif isinstance(value, list):
            value = len(value)
        elif name == "back_after":
            value = ", ".join(
                f"{kind} {'never' if seconds is None else f'{seconds:.1f} s'}"
                for kind, seconds in figures["back_after"].items()
            )
        elif isinstance(value, dict):
            value = "".join(f"\n    {n} x {error}" for error, n in value.items()) or 0
        lines.append(f"{name.replace('_', ' ')}: {value}")
    return "\n".join(lines)


def _option(given: str) -> tuple[str, typing.Any]:
    name, _, value = given.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main(argv: typing.Sequence[str] | None = None) -> int:
    """The command; 0 if all that is promised was kept."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.kills", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--bus", required=True, choices=sorted(BUSES), metavar="NAME")
    parser.add_argument("--queues", choices=("classic", "quorum"), help="of RabbitMQ")
    parser.add_argument("--messages", type=int, default=20_000, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--timeout", type=float, default=60.0, help="s (%(default)s)")
    parser.add_argument("--world", default="threads", choices=WORLDS)
    parser.add_argument(
        "--one-node",
        action="store_true",
        help="kill the node that the sender is connected to alone, and leave it dead",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="an option of the driver",
    )
    arguments = parser.parse_args(argv)
    options: dict[str, typing.Any] = {}
    for prefix, given in _OPTIONS.items():
        if arguments.bus.startswith(prefix):
            options |= given
    if arguments.queues:
        options["rabbit_queue_type"] = arguments.queues
    options |= dict(arguments.option)
    with Bus(arguments.bus, f"{arguments.bus}-kills-{os.getpid()}") as bus:
        figures = run(
            bus,
            world=arguments.world,
            messages=arguments.messages,
            threads=arguments.threads,
            timeout=arguments.timeout,
            options=options,
            one_node=arguments.one_node,
        )
    print(text(figures))
    try:
        check(figures, arguments.messages, arguments.timeout)
    except Broken as exc:
        print(str(exc).splitlines()[0].removesuffix(": sent"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
