# SPDX-License-Identifier: Apache-2.0
"""greenamqp: an AMQP 1.0 transport driver for oslo.messaging, native to green threads.

Most programs only name the driver in their transport URL (``amqp://...``).  What this
package offers beside it is listed below; each is imported when first asked for, so
that importing greenamqp costs nothing and imports neither eventlet nor gevent.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    # For type checkers, which do not call __getattr__.
    from greenamqp.connection.life import CannotConnect as CannotConnect
    from greenamqp.driver import set_queue_policy as set_queue_policy
    from greenamqp.inspection import describe as describe
    from greenamqp.inspection import is_connected as is_connected
    from greenamqp.policy import QueuePolicy as QueuePolicy
    from greenamqp.pool import join_consumer_pool as join_consumer_pool
    from greenamqp.server import RPCServer as RPCServer
    from greenamqp.server import Server as Server
    from greenamqp.server import (
        get_batch_notification_listener as get_batch_notification_listener,
    )
    from greenamqp.server import get_notification_listener as get_notification_listener
    from greenamqp.transport import (
        get_notification_transport as get_notification_transport,
    )
    from greenamqp.transport import get_rpc_transport as get_rpc_transport

_EXPORTS = {
    "CannotConnect": "greenamqp.connection.life",
    "QueuePolicy": "greenamqp.policy",
    "RPCServer": "greenamqp.server",
    "Server": "greenamqp.server",
    "describe": "greenamqp.inspection",
    "get_batch_notification_listener": "greenamqp.server",
    "get_notification_listener": "greenamqp.server",
    "get_notification_transport": "greenamqp.transport",
    "get_rpc_transport": "greenamqp.transport",
    "is_connected": "greenamqp.inspection",
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
