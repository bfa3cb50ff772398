# SPDX-License-Identifier: Apache-2.0
"""A service that notifies, and one that listens, with an outbox between them."""

from __future__ import annotations

import itertools
import os
import threading
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


def pace(stage: Stage, url: str, options: dict, first: int, rate: float) -> None:
    """Notifies numbers from `first` on, so many in a second, until it is told to stop;
    then it waits until nothing is left."""
    transport = oslo_messaging.get_notification_transport(stage.conf(**options), url)
    told = notifier.Notifier(transport, "p", driver="messaging", topics=["a"], retry=-1)
    stopped = threading.Event()
    threading.Thread(target=lambda: (stage.hear(), stopped.set()), daemon=True).start()
    stage.say("ready")
    begun = time.monotonic()
    for count in itertools.count():
        if stopped.wait(max(0.0, begun + count / rate - time.monotonic())):
            break
        before = time.monotonic()
        told.info({}, "event", {"number": first + count, "filling": "x" * 1000})
        took = time.monotonic() - before
        stage.say("notified", number=first + count, took=took)
    stage.say("stopped")
    driver = transport._driver
    driver.use_hub().do(driver.outbox.emptying(None))
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
