# SPDX-License-Identifier: Apache-2.0
"""How long it takes one process to listen to many targets, and what it holds for it.

    python -m tests.integration.targets --bus rabbitmq-4.0 [--targets 1000]
        [--queues classic]

One :class:`greenamqp.Server` listens to so many RPC targets.  Printed are the seconds
until all are declared and attached, the connections that they are on, with the sessions
and links of each; then the same after the bus was killed and started again.  Run it by
``python -m tests.functional.world WORLD tests.integration.targets`` for another world
than native threads.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import typing

import oslo_messaging
from oslo_messaging import Target

import greenamqp
from greenamqp.client import Client
from tests.chaos import workers
from tests.functional import world
from tools.buses import BUSES, Bus

#: Seconds within which all must be attached, far more than it takes.
PATIENCE = 600.0


class Echo:
    """What each target has."""

    def echo(self, ctxt, value):
        return value


class Connection(typing.NamedTuple):
    """What one connection holds."""

    sessions: int
    links: int


def connections(client: Client | None) -> list[Connection]:
    """Those of a client and of the further ones behind it."""
    found = []
    while client is not None:
        engine = client.connection.engine
        assert engine is not None
        found.append(Connection(engine.session_count, len(engine._links)))
        client = client._further
    return found


class Service:
    """A server of so many targets on a bus, and a client that calls it.

    :param options: of the driver
    """

    def __init__(self, url: str, targets: int, options: dict[str, typing.Any]) -> None:
        conf = workers.configured(**options)
        self._transport = oslo_messaging.get_rpc_transport(conf, url)
        self._server = greenamqp.Server(self._transport)
        self._topics = [f"targets-{os.getpid()}-{number}" for number in range(targets)]
        for topic in self._topics:
            self._server.listen(Target(topic=topic, server="server"), [Echo()])

    def start(self) -> None:
        """Begin to listen to all; see wait_attached."""
        self._server.start()

    @property
    def _listeners(self) -> list[typing.Any]:
        return [each._listener for each in self._server._subscriptions]

    @property
    def attached(self) -> int:
        """How many targets are listened to."""
        return sum(listener._subscription.attached for listener in self._listeners)

    def wait_attached(self) -> None:
        """Wait until all are attached."""
        deadline = time.monotonic() + PATIENCE
        for listener in self._listeners:
            if not listener.wait_attached(deadline):
                raise TimeoutError(
                    f"not all attached after {PATIENCE:g} s: {listener.refusal}"
                )

    def call(self, step: int = 1) -> None:
        """Call each `step`th target, and check the answer."""
        client = oslo_messaging.get_rpc_client(
            self._transport, Target(topic=""), timeout=PATIENCE
        )
        for number, topic in list(enumerate(self._topics))[::step]:
            answer = client.prepare(topic=topic, server="server").call(
                {}, "echo", value=number
            )
            if answer != number:
                raise AssertionError(f"{topic} answered {answer}")

    def connections(self) -> list[Connection]:
        """What it holds now."""
        return connections(self._transport._driver._connected())

    def stop(self) -> None:
        """Stop all, and let go of the connections."""
        self._server.stop()
        self._server.wait()
        self._transport.cleanup()


def main(argv: typing.Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.targets", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--bus", required=True, choices=sorted(BUSES), metavar="NAME")
    parser.add_argument("--targets", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--queues", choices=("classic", "quorum"), help="of RabbitMQ")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    options: dict[str, typing.Any] = {}
    if arguments.bus.startswith("rabbitmq"):
        options["addressing_mode"] = "declared"
    if arguments.queues:
        options["rabbit_queue_type"] = arguments.queues
    with Bus(arguments.bus, f"{arguments.bus}-targets-{os.getpid()}") as bus:
        service = Service(bus.url(), arguments.targets, options)
        print(f"{arguments.targets} targets on {arguments.bus}, {world.current()}")
        begun = time.monotonic()
        service.start()
        service.wait_attached()
        print(f"declared and attached in {time.monotonic() - begun:.1f} s")
        for connection in service.connections():
            print(f"  {connection.sessions} sessions, {connection.links} links")
        service.call(step=max(1, arguments.targets // 100))
        begun = time.monotonic()
        bus.kill9()
        while service.attached:
            time.sleep(0.01)
        bus.start()
        ready = time.monotonic()
        service.wait_attached()
        now = time.monotonic()
        print(
            f"kill -9: attached again after {now - begun:.1f} s, "
            f"{now - ready:.1f} s after the bus lets users in"
        )
        for connection in service.connections():
            print(f"  {connection.sessions} sessions, {connection.links} links")
        service.call(step=max(1, arguments.targets // 100))
        print("called: all answered")
        service.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
