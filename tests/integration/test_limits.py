# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ's limits of sessions and links: kept, and met by further connections."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from greenamqp.client.subscription import KEPT_SESSIONS
from tests.integration.targets import Service
from tools.buses import Bus

pytestmark = pytest.mark.proves("many targets")

#: Links of an RPC target.
LINKS = 3

OPTIONS = {"addressing_mode": "declared", "rabbit_queue_type": "classic"}


@pytest.fixture
def bus() -> Iterator[Bus]:
    """A RabbitMQ of its own, whose settings may be changed."""
    kind = os.environ.get("RABBITMQ", "rabbitmq-4.0")
    with Bus(kind, f"{kind}-limits-{os.getpid()}") as made:
        yield made


def limit(bus: Bus, sessions: int, links: int) -> None:
    """As in its configuration file, for connections to come."""
    for name, value in (
        ("session_max_per_connection", sessions),
        ("link_max_per_session", links),
    ):
        bus.control("eval", f"application:set_env(rabbit, {name}, {value}).")


def test_small_limits(bus):
    sessions, links = KEPT_SESSIONS + 3, 10
    limit(bus, sessions, links)
    targets = 3 * links // LINKS  # that fill a connection
    service = Service(bus.url(), 2 * targets + 1, OPTIONS)
    try:
        service.start()
        service.wait_attached()
        held = service.connections()
        assert len(held) == 3
        assert all(connection.sessions <= sessions for connection in held)
        service.call()
    finally:
        service.stop()


def test_a_thousand_targets_on_one_connection(bus):
    service = Service(bus.url(), 1000, OPTIONS)
    try:
        service.start()
        service.wait_attached()
        ((sessions, links),) = service.connections()
        assert links >= 1000 * LINKS
        assert sessions <= 64
        service.call(step=50)
    finally:
        service.stop()
