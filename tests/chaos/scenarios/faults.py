# SPDX-License-Identifier: Apache-2.0
"""Numbered traffic between processes, on any driver and whatever becomes of the bus:
see tests.ledger and tests.chaos.faults."""

from __future__ import annotations

import logging
from typing import Any

import oslo_messaging

from tests import ledger
from tests.chaos.workers import Stage


def _begin(topic: str, log: str) -> None:
    # An exchange that no other driver has: what is deleted is not made again by others.
    oslo_messaging.set_transport_defaults(topic)
    if log:
        logging.basicConfig(
            filename=log,
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
        )


def _driver(transport: Any) -> str:
    """The module of the driver at work: two have the same scheme."""
    return type(transport._driver).__module__


def receive(stage: Stage, url: str, topic: str, name: str, log: str = "") -> None:
    """A server and a listener; whenever it is told anything it says what came."""
    _begin(topic, log)
    transport = stage.transport(url)
    arrivals = ledger.Arrivals()
    server = stage.server(transport, topic, arrivals, name)
    listener = stage.listener(transport, topic, arrivals)
    stage.say("ready", driver=_driver(transport))
    while stage.hear():
        stage.say("ledger", **arrivals.ledger())
    stage.end([server, listener])
    transport.cleanup()


def send(
    stage: Stage,
    url: str,
    topic: str,
    kinds: list[str],
    callers: int,
    pause: float,
    timeout: float,
    patience: float,
    messages: int | None = None,
    log: str = "",
) -> None:
    """Sends until it is told to stop, or all is sent, and says what became of each.

    :param patience: seconds that what has begun has to end after that
    """
    _begin(topic, log)
    transport = stage.transport(url)
    sending = ledger.Sending(
        transport,
        topic,
        messages,
        callers,
        timeout,
        lambda ended: stage.say("progress", ended=ended),
        kinds=kinds,
        pause=pause,
    )
    stage.client(transport, topic).call({}, "echo", number=-1, filling="")
    stage.say("ready", driver=_driver(transport))
    stage.hear()
    sending.start()
    stage.hear()
    sending.stop(patience)
    stage.say("ledger", **sending.ledger())
    stage.hear()
    transport.cleanup()
