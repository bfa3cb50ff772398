# SPDX-License-Identifier: Apache-2.0
"""The server of coroutines: many targets, exchanges and pools in one loop."""

from __future__ import annotations

import logging
import typing

from oslo_messaging import Target
from oslo_messaging import server as oslo_server
from oslo_messaging._drivers import base

from greenamqp.aio import serving
from greenamqp.aio.executor import TaskExecutor
from greenamqp.aio.transport import hub_of
from greenamqp.driver import GreenAMQPDriver
from greenamqp.incoming import AnyIncoming
from greenamqp.listener import Listener
from greenamqp.server import (
    SUBSCRIBE_TIMEOUT,
    RPCDispatcher,
    driver_of,
    need,
    notified,
)

LOG = logging.getLogger(__name__)

_Process = typing.Callable[[list[base.IncomingMessage]], typing.Awaitable[None]]


class Subscription:
    """One thing that a Server listens to: a handle.  Made by the Server only.

    :ivar what: what it is, for messages to people
    """

    def __init__(self, server: Server, what: str, listener: Listener) -> None:
        self.what = what
        self._server = server
        self._listener: Listener | None = listener

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.what}>"

    async def stop(self) -> None:
        """Take no more, wait for what was begun (but for an endpoint that calls this
        itself), then detach.  Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await self._server._remove(self, listener)


class Server:
    """Listens on many targets, exchanges and pools, in one asyncio loop.

    Endpoints are oslo.messaging's, with methods that are ``async def`` or plain.  Plain
    ones run in a thread of the loop's executor, unless they are `in_place`.  Each
    request has a task and a context (contextvars) of its own, and heartbeats for a
    caller that wants them.

    ``async with Server(transport) as server`` stops it at the end.  All methods are for
    coroutines of one loop: that of the first of them.

    :param transport: the transport of what is listened to, unless told otherwise
    :param pool_size: how many requests, notifications and batches are served at a time;
        None: the option ``executor_thread_pool_size``.  What comes beyond waits, and
        the message bus is given no credit for it
    :raises TypeError: for a transport of another driver
    :raises ValueError: for a pool_size below 1
    """

    def __init__(self, transport: typing.Any, pool_size: int | None = None) -> None:
        driver_of(transport)
        self.transport = transport
        transport.conf.register_opts(oslo_server._pool_opts)
        if pool_size is not None and pool_size < 1:
            raise ValueError(f"a pool of {pool_size} workers cannot work")
        self._size = pool_size or transport.conf.executor_thread_pool_size
        self._executor: TaskExecutor | None = None
        self._subscriptions: list[Subscription] = []

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def listen(
        self,
        target: Target,
        endpoints: typing.Sequence[object],
        *,
        serializer: typing.Any = None,
        access_policy: typing.Any = None,
        transport: typing.Any = None,
    ) -> Subscription:
        """Serve RPC requests to `target` with `endpoints`; returns when the
        subscription is up, or the server is stopped meanwhile.

        :raises RuntimeError: while :meth:`stop` waits; this holds for all that listens
        :raises InvalidTarget: if the target names no topic or no server
        """
        need(target, "topic", "server")
        wanted = target()  # the caller may change its own
        dispatcher = RPCDispatcher(list(endpoints), serializer, access_policy)
        return await self._add(
            f"RPC {wanted}",
            transport,
            lambda driver: driver.subscribe(wanted, 1, None),
            serving.RPC(dispatcher).process,
        )

    async def listen_for_notifications(
        self,
        targets: typing.Sequence[Target],
        endpoints: typing.Sequence[object],
        *,
        pool: str | None = None,
        batch_size: int | None = None,
        batch_timeout: float | None = None,
        allow_requeue: bool = False,
        serializer: typing.Any = None,
        priorities: typing.Sequence[str] | None = None,
        transport: typing.Any = None,
    ) -> Subscription:
        """Give notifications on `targets` to `endpoints`; returns when the subscription
        is up.

        :param pool: each pool gets a copy of each notification, for one of its members
        :param batch_size: if given, endpoints get lists of up to so many notifications
        :param batch_timeout: seconds that a list which is not full waits for more
        :param allow_requeue: whether endpoints may give notifications back
        :param priorities: which to subscribe to; None: those endpoints have methods for
        :raises InvalidTarget: if a target names no topic
        :raises NotImplementedError: if the message bus has no way to make pools
        """
        kind = serving.Notifications if batch_size is None else serving.Batches
        dispatcher = kind(endpoints, serializer, allow_requeue)
        what, wanted = notified(targets, pool, priorities, dispatcher)
        return await self._add(
            what,
            transport,
            lambda driver: driver.subscribe_for_notifications(
                wanted, pool, batch_size or 1, batch_timeout
            ),
            dispatcher.process,
        )

    async def join_consumer_pool(
        self,
        callback: typing.Callable[[typing.Any], object],
        pool_name: str,
        topic: str,
        exchange_name: str | None = None,
        *,
        requeue_on_error: bool = False,
        transport: typing.Any = None,
    ) -> Subscription:
        """Share the messages sent to `topic` with the other members of a pool, as
        :func:`greenamqp.join_consumer_pool` does; returns when the subscription is up.

        :param callback: called with each message, several at a time; plain ones as the
            plain methods of endpoints
        :raises NotImplementedError: if the message bus has no way to make pools
        """
        target = Target(exchange=exchange_name, topic=topic)
        return await self._add(
            f"pool {pool_name} on {topic}",
            transport,
            lambda driver: driver.subscribe_to_topic(target, pool_name, AnyIncoming),
            serving.Pool(callback, requeue_on_error).process,
        )

    async def _add(
        self,
        what: str,
        transport: typing.Any,
        subscribe: typing.Callable[[GreenAMQPDriver], Listener],
        process: _Process,
    ) -> Subscription:
        driver, hub = hub_of(transport or self.transport)
        executor = self._executor
        if executor is None:
            executor = self._executor = TaskExecutor(hub, self._size)
            executor.start()
        elif executor.hub is not hub:
            raise RuntimeError("this server belongs to another asyncio loop")
        elif executor.stopped:
            raise RuntimeError("this server is being stopped: listen again after that")
        listener = subscribe(driver)
        subscription = Subscription(self, what, listener)
        self._subscriptions.append(subscription)
        executor.add_listener(listener, process)
        try:
            deadline = hub.now() + SUBSCRIBE_TIMEOUT
            if (
                not await hub.drive(listener.attaching(deadline))
                and subscription._listener is listener  # not stopped meanwhile
            ):
                LOG.warning(
                    "%s: not subscribed yet after %s s: %s; will be as soon as "
                    "possible",
                    what,
                    SUBSCRIBE_TIMEOUT,
                    listener.refusal,
                )
        except BaseException:
            await subscription.stop()
            raise
        return subscription

    async def _remove(self, subscription: Subscription, listener: Listener) -> None:
        self._subscriptions.remove(subscription)
        executor = self._executor
        assert executor is not None
        try:
            await executor.hub.drive(executor.removing(listener))
        finally:
            # Also when the task is cancelled meanwhile.
            await executor.hub.drive(listener.closing())

    async def stop(self) -> None:
        """Begin nothing more, wait until what was begun is done (but for an endpoint
        that calls this itself), then detach.  Idempotent; may listen again after it.

        ``asyncio.timeout`` around it ends the wait; what was begun goes on.
        """
        executor = self._executor
        if executor is None:
            return
        executor.stop()
        try:
            await executor.hub.drive(executor.ending())
        finally:
            self._executor = None
            subscriptions, self._subscriptions = self._subscriptions, []
            for subscription in subscriptions:
                listener, subscription._listener = subscription._listener, None
                if listener is not None:
                    await executor.hub.drive(listener.closing())
