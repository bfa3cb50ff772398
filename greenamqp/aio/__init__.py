# SPDX-License-Identifier: Apache-2.0
"""oslo.messaging for coroutines, on the same connection, links and promises.

Everything here is for the loop that it is first used in: a transport belongs to that
loop from its first message or subscription on.  Its transport is one of
``oslo_messaging.get_rpc_transport`` or ``get_notification_transport``; nothing blocks
the loop, and no thread is made but those of the loop's own executor (name lookups,
logging handlers, an outbox's disk, plain endpoint methods).

To cancel a task withdraws what it has not sent yet, and lets go of the rest: a request
that the message bus has may be executed, and its reply goes nowhere.

It stands on the driver's steps (``GreenAMQPDriver.sending`` and the like), which the
loop's hub drives, and on :class:`greenamqp.listener.Listener`.
"""

from greenamqp.aio.client import RPCClient
from greenamqp.aio.notifier import Notifier
from greenamqp.aio.server import Server, Subscription
from greenamqp.aio.serving import expected_exceptions, in_place
from greenamqp.aio.subscription import Messages, subscribe
from greenamqp.aio.transport import cleanup, closing

__all__ = [
    "Messages",
    "Notifier",
    "RPCClient",
    "Server",
    "Subscription",
    "cleanup",
    "closing",
    "expected_exceptions",
    "in_place",
    "subscribe",
]
