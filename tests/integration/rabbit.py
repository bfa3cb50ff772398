# SPDX-License-Identifier: Apache-2.0
"""Services and clients on a RabbitMQ, and what is on it."""

from __future__ import annotations

import json
import typing

from tests.integration.services import (
    PATIENCE,
    Endpoint,
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
    "Endpoint",
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
]


def queues(bus: typing.Any, vhost: str = "/") -> dict[str, dict[str, typing.Any]]:
    """The queues on a broker, each with what it is."""
    columns = ("name", "type", "durable", "arguments", "messages", "consumers")
    listed = bus.control(
        "--formatter", "json", "-q", "-p", vhost, "list_queues", *columns
    )
    return {row["name"]: row for row in json.loads(listed)}
