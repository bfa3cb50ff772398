# SPDX-License-Identifier: Apache-2.0
"""A driver that does nothing: what is left is oslo.messaging's own work.

Calls are answered, casts and notifications accepted, on the spot.  A listener is fed
by the benchmark itself, with as many messages under way as there are callers.
"""

import collections
import threading
import time

from oslo_messaging import transport as oslo_transport
from oslo_messaging._drivers import base


class Driver(base.BaseDriver):
    """Carries nothing."""

    def __init__(self, conf):
        self.conf = conf
        self.listeners = []

    def require_features(self, requeue=False):
        """It has no features to lack."""

    def send(self, target, ctxt, message, wait_for_reply=None, **_ignored):
        """The argument is the answer."""
        return message["args"]["body"] if wait_for_reply else None

    def send_notification(self, *_ignored, **_more):
        """Gone."""

    def listen(self, target, batch_size, batch_timeout):
        """A listener that is fed by `Listener.feed`."""
        listener = Listener(batch_size, batch_timeout)
        self.listeners.append(listener)
        return listener

    def listen_for_notifications(self, targets, pool, batch_size, batch_timeout):
        """As `listen`."""
        return self.listen(None, batch_size, batch_timeout)

    def cleanup(self):
        """There is nothing to close."""


class Incoming(base.RpcIncomingMessage):
    """A message that nobody sent."""

    def __init__(self, message, replied, acknowledged):
        super().__init__({}, message)
        self._replied = replied
        self._acknowledged = acknowledged
        self.client_timeout = None

    def acknowledge(self):
        """The last that is heard of a notification."""
        self._acknowledged()

    def requeue(self):
        """Nobody asks for that."""

    def reply(self, reply=None, failure=None):
        """The last that is heard of a request."""
        self._replied(failure)

    def heartbeat(self):
        """Nobody listens for it."""


class Listener(base.Listener):
    """Calls back in the thread or green thread that feeds it."""

    def __init__(self, batch_size, batch_timeout):
        super().__init__(batch_size or 1, batch_timeout, 0)

    def cleanup(self):
        """There is nothing to let go of."""

    def feed(self, load, value, callers, seconds):
        """Have messages dispatched, `callers` at a time, for so long.

        Returns how many were, and how many of them failed.
        """
        message = _message(load, value)
        counts = collections.Counter()
        free = threading.Semaphore(callers)

        def done(failure=None):
            counts["failed" if failure else "done"] += 1
            free.release()

        def nothing():
            """The reply will come."""

        acknowledged = done if load == "notify" else nothing
        callback = self.on_incoming_callback
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            free.acquire()
            callback([Incoming(message, done, acknowledged)])
        for _ in range(callers):
            free.acquire()
        return counts["done"], counts["failed"]


def _message(load, value):
    """As a client of oslo.messaging makes it."""
    if load == "notify":
        return {
            "message_id": "0",
            "publisher_id": "benchmark",
            "event_type": "benchmark",
            "priority": "INFO",
            "payload": {"number": 0, "body": value},
            "timestamp": "2026-01-01 00:00:00.000000",
        }
    if load == "cast":
        arguments = {"number": 0, "body": value}
        return {"method": "note", "args": arguments, "version": "1.0"}
    return {"method": "echo", "args": {"body": value}, "version": "1.0"}


def transport(conf, kind):
    """A transport of this driver."""
    # What loading a driver registers as well.
    conf.register_opts(oslo_transport._transport_opts)
    if kind == "rpc":
        return oslo_transport.RPCTransport(Driver(conf))
    return oslo_transport.NotificationTransport(Driver(conf))
