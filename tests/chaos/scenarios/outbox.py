# SPDX-License-Identifier: Apache-2.0
"""A service that notifies, and one that listens, with an outbox between them."""

from __future__ import annotations

import os
import time

import oslo_messaging
from oslo_messaging.notify import notifier

import greenamqp
from greenamqp.outbox import outbox
from tests.chaos.workers import WAIT, Stage


def notify(stage: Stage, url: str, look: float, options: dict) -> None:
    """Notifies as it is told; says how long the slowest took, in seconds."""
    outbox.LOOK_INTERVAL = look
    stage.eager(0.1)
    transport = oslo_messaging.get_notification_transport(stage.conf(**options), url)
    notifiers = {
        topic: notifier.Notifier(
            transport, "p", driver="messaging", topics=[topic], retry=-1
        )
        for topic in ("a", "b")
    }
    driver = transport._driver
    stage.say("ready", hub=driver.use_hub().name)
    while order := stage.hear():
        slowest = 0.0
        for number in order.get("numbers", ()):
            before = time.monotonic()
            notifiers[order["topic"]].info({}, "event", {"number": number})
            slowest = max(slowest, time.monotonic() - before)
        if "fork" in order:
            child = os.fork()
            if not child:
                notifiers["a"].info({}, "event", {"number": order["fork"]})
                os._exit(0)
            stage.wait_child(child)
        driver._connected()
        if "sent" in order:
            # In waits of the hub's: some only move then.
            until = time.monotonic() + WAIT
            while driver.outbox.sent < order["sent"] and time.monotonic() < until:
                driver.use_hub().waiter().wait(time.monotonic() + 0.05)
        if "empty" in order:
            driver.use_hub().do(driver.outbox.emptying(time.monotonic() + WAIT))
        stage.say("done", slowest=slowest, **greenamqp.describe(transport)["outbox"])
    transport.cleanup()


def listen(stage: Stage, url: str) -> None:
    """Says each number that comes, in order: one thread takes them."""
    stage.eager(0.1)
    transport = oslo_messaging.get_notification_transport(stage.conf(), url)
    listener = transport._driver.listen_for_notifications(
        [(oslo_messaging.Target(topic=topic), "info") for topic in ("a", "b")],
        None,
        1,
        None,
    )
    stage.say("ready")
    while True:
        for incoming in listener.poll(timeout=1):
            stage.say("came", number=incoming.message["payload"]["number"])
            incoming.acknowledge()
