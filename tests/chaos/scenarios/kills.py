# SPDX-License-Identifier: Apache-2.0
"""Numbered traffic between two processes, whatever becomes of the bus: see
tests.ledger."""

from __future__ import annotations

import oslo_messaging

from tests import ledger
from tests.chaos.workers import Stage


def receive(stage: Stage, url: str, topic: str, options: dict) -> None:
    """Two servers and a listener; told what was accepted, says what came."""
    transport = stage.transport(url, **options)
    arrivals = ledger.Arrivals()
    servers = [
        stage.server(transport, topic, arrivals, f"server-{number}")
        for number in range(2)
    ]
    listener = oslo_messaging.get_notification_listener(
        transport,
        [oslo_messaging.Target(topic=topic)],
        [arrivals],
        executor=stage.executor,
    )
    listener.start()
    stage.say("ready")
    arrivals.await_notifications(stage.hear()["accepted"])
    stage.say("ledger", **arrivals.ledger())
    stage.hear()
    stage.end([*servers, listener])
    transport.cleanup()


def send(
    stage: Stage,
    url: str,
    topic: str,
    messages: int,
    threads: int,
    timeout: float,
    options: dict,
) -> None:
    """As many notifications and calls; says how far it is, and what became of each.

    When it is ready it is connected, and says to which port.
    """
    transport = stage.transport(url, **options)
    sending = ledger.Sending(
        transport,
        topic,
        messages,
        threads,
        timeout,
        lambda ended: stage.say("progress", ended=ended),
    )
    stage.client(transport, topic).call({}, "echo", number=-1, filling="")
    stage.say("ready", port=transport._driver._connected().host.port)
    stage.hear()
    sending.run()
    stage.say("ledger", **sending.ledger())
    stage.hear()
    transport.cleanup()
