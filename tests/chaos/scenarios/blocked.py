# SPDX-License-Identifier: Apache-2.0
"""A process that blocks its hub."""

import threading

import oslo_messaging

from greenamqp.connection.guard import GUARD
from tests.chaos.workers import Stage


class Endpoint:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def echo(self, ctxt, value):
        return value

    def block(self, ctxt, seconds):
        """Blocks the server's hub from within an endpoint."""
        self._stage.block(seconds)
        return seconds


def serve(stage: Stage, url: str, options: dict) -> None:
    """Do what the test says: block SECONDS, or call VALUE, or one right after the
    other."""
    transport = stage.transport(url, **options)
    server = stage.server(transport, "topic", Endpoint(stage))
    client = stage.client(transport, "topic")
    stage.say("ready", value=client.call({}, "echo", value=1))
    while order := stage.hear():
        if "block" in order:
            if order.get("busy"):
                # Something is always about to be written while the hub is blocked.
                casts = threading.Thread(target=_cast, args=(client, 200))
                casts.start()
            stage.block(order["block"])
            if order.get("busy"):
                casts.join()
            beats = sum(charge.beats for charge in GUARD._charges)
            if "call" not in order:
                stage.say("blocked", beats=beats)
                continue
        try:
            stage.say("answered", value=client.call({}, "echo", value=order["call"]))
        except oslo_messaging.MessagingException as exc:
            stage.say("failed", error=str(exc))
    stage.end([server])
    transport.cleanup()
    stage.say("threads", names=[t.name for t in threading.enumerate()])


def _cast(client, count):
    for number in range(count):
        client.cast({}, "echo", value=number)
