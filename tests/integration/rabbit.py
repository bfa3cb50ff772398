# SPDX-License-Identifier: Apache-2.0
"""Services and clients on a RabbitMQ, and what is on it."""

from __future__ import annotations

import json
import typing

import pytest

from tests.integration.contract import Basics, KeepsReplies
from tests.integration.services import (
    PATIENCE,
    Endpoint,
    HeldCall,
    Notified,
    Remote,
    calling,
    conf,
    listening,
    notification,
    notifying,
    rpc,
    running,
    serving,
    unique,
)

__all__ = [
    "PATIENCE",
    "AnyVersion",
    "Endpoint",
    "HeldCall",
    "Notified",
    "Remote",
    "calling",
    "conf",
    "listening",
    "notification",
    "notifying",
    "rpc",
    "running",
    "serving",
    "unique",
    "queues",
    "write_down",
]


def queues(bus: typing.Any, vhost: str = "/") -> dict[str, dict[str, typing.Any]]:
    """The queues on a broker, each with what it is."""
    columns = ("name", "type", "durable", "arguments", "messages", "consumers")
    listed = bus.control(
        "--formatter", "json", "-q", "-p", vhost, "list_queues", *columns
    )
    return {row["name"]: row for row in json.loads(listed)}


def write_down(bus: typing.Any) -> None:
    """Have a broker write to its disk what was declared.

    It says that a queue is there seconds before it does so by itself, and a kill in
    between takes the queue, with all that was accepted for it.
    """
    # Khepri writes before it answers; there Mnesia is not running.
    bus.control("eval", "catch mnesia:sync_log().")


class AnyVersion(Basics, KeepsReplies):
    """What greenamqp does on each RabbitMQ.  Wants the fixtures ``url`` and
    ``rabbitmq``."""

    #: Added to the URL where what is sent must outlive the broker.
    lasting = ""

    @pytest.mark.proves("reconnect")
    def test_a_lost_connection_costs_no_call(self, url, rabbitmq):
        """The reply is sent while nobody is there to receive it, and is received."""
        topic = unique()
        endpoint = Endpoint("server")
        with serving(url, topic, endpoint=endpoint), calling(url, topic) as client:
            assert client.call({}, "who") == "server"
            call = HeldCall(client, endpoint, "kept")
            rabbitmq.control("close_all_connections", "test")
            assert call.end() == ["kept"]
            assert client.call({}, "who") == "server"

    @pytest.mark.proves("restart")
    def test_kill_9_loses_no_notification_that_was_accepted(self, url, rabbitmq):
        url, topic = url + self.lasting, unique()
        with notifying(url, topic) as notifier, listening(url, topic) as listener:
            write_down(rabbitmq)
            for number in range(200):
                if number == 100:
                    rabbitmq.kill9()
                    rabbitmq.start()
                notifier.info({}, "event", {"n": number})
            heard = set()
            while len(heard) < 200:
                heard.add(listener.next()[2]["n"])
        assert heard == set(range(200))
