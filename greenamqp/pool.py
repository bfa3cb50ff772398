# SPDX-License-Identifier: Apache-2.0
"""Consumer pools: share the messages of a topic, and take none away from others."""

from __future__ import annotations

import logging
import typing

from oslo_messaging import Target

from greenamqp import executor as executors
from greenamqp.hubs.threads import ThreadsHub
from greenamqp.incoming import AnyIncoming
from greenamqp.listener import Listener
from greenamqp.server import PoolProcessing, driver_of

LOG = logging.getLogger(__name__)

# How long join_consumer_pool waits for its subscription.  Seconds.
SUBSCRIBE_TIMEOUT = 30.0

Callback = typing.Callable[[typing.Any], object]


class PoolMember:
    """A membership in a consumer pool: a handle.  Made by join_consumer_pool only."""

    def __init__(
        self, listener: Listener, callback: Callback, requeue_on_error: bool
    ) -> None:
        self._listener = listener
        hub = listener.hub
        # One worker: a member gets its messages one after another, in order.
        self._executor: executors.PoolExecutor = (
            executors.ThreadingExecutor(hub, 1)
            if isinstance(hub, ThreadsHub)
            else executors.PoolExecutor(hub, 1)
        )
        processing = PoolProcessing(callback, requeue_on_error)
        self._executor.add_listener(listener, processing.process)
        self._executor.start()

    def stop(self) -> None:
        """Leave the pool: wait for the message at hand (but for a callback that calls
        this itself), give back what was not begun, detach.  Idempotent.  From any
        thread."""
        self._executor.stop()
        self._executor.wait()
        self._executor.remove_listener(self._listener)
        self._listener.cleanup()


def join_consumer_pool(
    transport: typing.Any,
    callback: Callback,
    pool_name: str,
    topic: str,
    exchange_name: str | None = None,
    *,
    requeue_on_error: bool = False,
) -> PoolMember:
    """Share the messages sent to `topic` with the other members of a pool.

    A member has a worker of its own.  Where a program has several, or servers beside
    them, :meth:`greenamqp.Server.join_consumer_pool` puts all into one dispatcher, on
    every executor.

    Exactly one member of a pool gets each message, and every pool gets its own copy.
    While a pool has no members, the message bus keeps its messages.

    :param callback: called with each message, its JSON unpacked, be it a notification
        (then with what the notifier sent: ``event_type``, ``payload`` and so on) or
        any other JSON value; one at a time, in a worker of the transport's hub.  What
        it raises is logged.
    :param pool_name: what the members of the pool have in common
    :param topic: the whole topic, of notifications with the priority:
        ``notifications.info``
    :param exchange_name: None: the control exchange
    :param requeue_on_error: give a message back to the bus when the callback raises,
        instead of acknowledging it
    :raises NotImplementedError: if the message bus has no way to make pools
    :raises TypeError: for a transport of another driver
    """
    driver = driver_of(transport)
    target = Target(exchange=exchange_name, topic=topic)
    hub = driver.use_hub()
    if hub.foreign():
        return hub.run_inside(
            lambda: join_consumer_pool(
                transport,
                callback,
                pool_name,
                topic,
                exchange_name,
                requeue_on_error=requeue_on_error,
            )
        )
    listener = driver.subscribe_to_topic(target, pool_name, AnyIncoming)
    try:
        if not listener.wait_attached(hub.now() + SUBSCRIBE_TIMEOUT):
            LOG.warning(
                "pool %s on %s: not subscribed yet after %s s: %s; will be as soon as "
                "possible",
                pool_name,
                topic,
                SUBSCRIBE_TIMEOUT,
                listener.refusal,
            )
        return PoolMember(listener, callback, requeue_on_error)
    except BaseException:
        listener.cleanup()
        raise
