# SPDX-License-Identifier: Apache-2.0
"""The message buses that are tried, each with the driver that is tried on it.

A row is a bus by name, started with :mod:`tools.buses` or as an embedded broker, a
scheme of its URL and the options in it. Several rows may be of one bus.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from tests.functional.buses import EmbeddedBroker, identify
from tools.buses import BUSES, Bus


@dataclasses.dataclass(frozen=True)
class Row:
    """A bus and how it is used.

    :ivar name: what it is called on the command line
    :ivar title: what it is called in the table
    :ivar bus: its name in tools.buses; empty: an embedded broker
    :ivar product: what an embedded broker passes for
    :ivar scheme: of the URL, which chooses the driver
    :ivar query: options of the URL
    :ivar suites: files of this folder that are about this bus; they start one of
        their own, because they kill it
    :ivar kills: files of this folder that kill it under load, for minutes
    :ivar oslo: whether oslo.messaging's own tests run on it
    """

    name: str
    title: str
    bus: str = ""
    product: str = "greenamqp"
    scheme: str = "amqp"
    query: str = ""
    suites: tuple[str, ...] = ()
    kills: tuple[str, ...] = ()
    oslo: bool = True

    @contextlib.contextmanager
    def running(self, instance: str) -> Iterator[str]:
        """Start the bus, stop it at the end; gives its URL.

        ``instance`` is a name that no other running bus has. Raises BusError or
        RuntimeError if it does not come up.
        """
        if self.bus:
            with Bus(self.bus, instance) as bus:
                yield self._url(bus.url(self.scheme))
            return
        broker = EmbeddedBroker("--product", self.product)
        try:
            yield self._url(broker.url)
        finally:
            broker.stop()

    def product_at(self, url: str) -> str:
        """What the bus at ``url`` says it is, where it can be asked."""
        if self.scheme != "amqp":
            return BUSES[self.bus].summary
        said = identify(url)
        return f"{said.product} {said.version}"

    def _url(self, url: str) -> str:
        return url + (f"?{self.query}" if self.query else "")


_RABBITMQ = (
    "test_rabbitmq.py",
    "test_rabbit_mixed.py",
    "test_limits.py",
    "test_doctor.py",
)
_KILLS = ("test_kills.py",)

#: Every row by its name, in the order of the table.
ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "rabbitmq-4.0",
            "RabbitMQ 4.0",
            "rabbitmq-4.0",
            suites=(*_RABBITMQ, "test_tokens.py"),
            kills=_KILLS,
        ),
        Row(
            "rabbitmq-4.3",
            "RabbitMQ 4.3",
            "rabbitmq-4.3",
            suites=_RABBITMQ,
            kills=_KILLS,
        ),
        Row(
            "rabbitmq-4.0-declared",
            "RabbitMQ 4.0, declared",
            "rabbitmq-4.0",
            query="addressing_mode=declared",
        ),
        Row(
            "rabbitmq-3.10",
            "RabbitMQ 3.10",
            "rabbitmq-3.10",
            suites=("test_rabbitmq_3.py",),
        ),
        Row(
            "rabbit",
            "rabbit:// on RabbitMQ 4.0",
            "rabbitmq-4.0",
            scheme="rabbit",
        ),
        Row(
            "artemis",
            "Artemis",
            "artemis",
            suites=("test_artemis.py", "test_artemis_tokens.py"),
        ),
        Row("qpid-broker-j", "Broker-J", "qpid-broker-j", suites=("test_broker_j.py",)),
        Row("embedded", "embedded broker"),
        Row(
            "qpid-dispatch-router",
            "as a qpid router",
            product="qpid-dispatch-router",
            oslo=False,
        ),
        Row(
            "skupper-router",
            "as a skupper router",
            product="skupper-router",
            oslo=False,
        ),
        Row("qpid-cpp", "as qpidd", product="qpid-cpp"),
    )
}
