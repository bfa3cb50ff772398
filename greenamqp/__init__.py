# SPDX-License-Identifier: Apache-2.0
"""greenamqp: an AMQP 1.0 transport driver for oslo.messaging, native to green threads.

Most programs only name the driver in their transport URL (``amqp://...``).  What this
package offers beside it is listed below; each is imported when first asked for, so
that importing greenamqp costs nothing and imports neither eventlet nor gevent.
"""

import importlib
import typing

_EXPORTS = {
    "CannotConnect": "greenamqp.connection.life",
    "QueuePolicy": "greenamqp.policy",
    "RPCServer": "greenamqp.server",
    "Server": "greenamqp.server",
    "get_batch_notification_listener": "greenamqp.server",
    "get_notification_listener": "greenamqp.server",
    "get_notification_transport": "greenamqp.transport",
    "get_rpc_transport": "greenamqp.transport",
    "join_consumer_pool": "greenamqp.pool",
    "set_queue_policy": "greenamqp.driver",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> typing.Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
