# SPDX-License-Identifier: Apache-2.0
"""The public servers: many targets, exchanges and pools on one executor.

:class:`Server` listens on any number of RPC targets and notification topics, on one or
several transports, and dispatches them all in one executor.  What a message means is
decided by oslo.messaging's own dispatchers and servers, so endpoints, serializers,
access policies, expected exceptions, tracing and metrics work as they do there.

:class:`RPCServer` goes with oslo.messaging's own ``get_rpc_server(server_cls=...)``,
which then takes the executors ``blocking`` and ``gevent`` too;
:func:`get_notification_listener` and :func:`get_batch_notification_listener` are the
counterparts for notifications.
"""

from __future__ import annotations

import functools
import logging
import typing

from oslo_messaging import Target, exceptions
from oslo_messaging import server as oslo_server
from oslo_messaging._drivers import base
from oslo_messaging.notify import dispatcher as notify_dispatcher
from oslo_messaging.notify import listener as notify_listener
from oslo_messaging.rpc import dispatcher as rpc_dispatcher
from oslo_messaging.rpc import server as rpc_server
from oslo_service import service

from greenamqp import executor as executors
from greenamqp.driver import GreenAMQPDriver
from greenamqp.hubs import Hub
from greenamqp.incoming import AnyIncoming
from greenamqp.listener import Listener

LOG = logging.getLogger(__name__)

# How long start() waits for the subscriptions of all targets.  Seconds.
SUBSCRIBE_TIMEOUT = 30.0

_Process = typing.Callable[[list[base.IncomingMessage]], object]


@functools.lru_cache(maxsize=256)
def _is_compatible(version: str | None, wanted: str) -> bool:
    """Whether an endpoint of that version takes a request for another: the same few
    pairs all the time."""
    target = Target(version=version)
    return bool(rpc_dispatcher.RPCDispatcher._is_compatible(target, wanted))


class RPCDispatcher(rpc_dispatcher.RPCDispatcher):
    """oslo.messaging's dispatcher, without what a request that is not monitored does
    not need: it makes a thread and an event for each, which it then does not use."""

    def dispatch(self, incoming: typing.Any) -> typing.Any:
        message = incoming.message
        endpoint, method = self.find(message)
        if incoming.client_timeout:
            # Only now: for what it does not find its heartbeats would go on.
            return super().dispatch(incoming)
        return self._do_dispatch(
            endpoint, method, incoming.ctxt, message.get("args", {})
        )

    def find(self, message: dict[str, typing.Any]) -> tuple[typing.Any, str]:
        """The endpoint that a request is for, and the name of its method.

        :raises NoSuchMethod, UnsupportedVersion: there is none
        """
        method = typing.cast(str, message.get("method"))
        namespace = message.get("namespace")
        version = message.get("version", "1.0")
        found_compatible = False
        for endpoint in self.endpoints:
            target = getattr(endpoint, "target", None) or self._default_target
            if not (
                self._is_namespace(target, namespace)
                and _is_compatible(target.version, version)
            ):
                continue
            if hasattr(endpoint, method) and self.access_policy.is_allowed(
                endpoint, method
            ):
                return endpoint, method
            found_compatible = True
        if found_compatible:
            raise rpc_dispatcher.NoSuchMethod(method)
        raise rpc_dispatcher.UnsupportedVersion(version, method=method)


class _RPCProcessing(rpc_server.RPCServer):
    """What oslo.messaging's server does with one request, without being a server."""

    def __init__(self, transport: typing.Any, dispatcher: typing.Any) -> None:
        self.conf = transport.conf
        self.dispatcher = dispatcher


class _NotificationProcessing(notify_listener.NotificationServer):
    """What oslo.messaging's listener does with one notification."""

    def __init__(self, dispatcher: typing.Any, allow_requeue: bool) -> None:
        self.dispatcher = dispatcher
        self._allow_requeue = allow_requeue


class _BatchProcessing(notify_listener.BatchNotificationServer):
    """What oslo.messaging's listener does with a batch of notifications."""

    def __init__(self, dispatcher: typing.Any, allow_requeue: bool) -> None:
        self.dispatcher = dispatcher
        self._allow_requeue = allow_requeue


class PoolProcessing:
    """Gives the messages of a consumer pool to a callback.

    :param requeue_on_error: give a message back to the bus when the callback raises,
        instead of acknowledging it
    """

    def __init__(
        self, callback: typing.Callable[[typing.Any], object], requeue_on_error: bool
    ) -> None:
        self._callback = callback
        self._requeue_on_error = requeue_on_error

    def process(self, messages: list[base.IncomingMessage]) -> None:
        """Call back with each message, then say what became of it."""
        for message in messages:
            try:
                self._callback(message.message)
            except Exception:
                LOG.exception("a pool's callback failed")
                if self._requeue_on_error:
                    message.requeue()
                    continue
            message.acknowledge()


def driver_of(transport: typing.Any) -> GreenAMQPDriver:
    """The driver of a transport.

    :raises TypeError: if it is another one than greenamqp's
    """
    driver = transport._driver
    if not isinstance(driver, GreenAMQPDriver):
        raise TypeError(
            "this server wants a transport of the amqp driver; its URL has the scheme "
            f"{driver._url.transport!r}"
        )
    return driver


class Subscription:
    """One thing that a Server listens to: a handle.  Made by the Server only.

    :ivar what: what it is, for messages to people
    """

    def __init__(
        self,
        server: Server,
        what: str,
        transport: typing.Any,
        subscribe: typing.Callable[[], Listener],
        process: _Process,
    ) -> None:
        self.what = what
        self._server = server
        self._transport = transport
        self._subscribe = subscribe
        self._process = process
        self._listener: Listener | None = None
        self._stopped = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.what}>"

    def stop(self) -> None:
        """Take no more, wait for what was begun (but for an endpoint that calls this
        itself), then detach.  Idempotent."""
        self._stopped = True
        self._server._forget(self)
        self._detach()

    def _detach(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            executor = self._server._executor
            if executor is not None:
                executor.remove_listener(listener)
            listener.cleanup()


class Server(service.ServiceBase):
    """Listens on many targets, exchanges and pools, in one dispatcher.

    :param transport: the transport of what is listened to, unless told otherwise
    :param executor: ``blocking``, ``eventlet``, ``gevent`` or ``threading``; None:
        what fits the process.  With ``blocking``, start() dispatches in the calling
        thread and returns after stop(); it never makes a thread, and neither does the
        driver, as it then uses its blocking hub.
    :param pool_size: workers of the other executors; None: the option
        ``executor_thread_pool_size``
    :raises ValueError: for an unknown executor
    :raises TypeError: for a transport of another driver

    listen(), listen_for_notifications() and the handles' stop() may be called before
    and after start(), from an endpoint, another green thread or another thread.
    """

    def __init__(
        self,
        transport: typing.Any,
        executor: str | None = None,
        pool_size: int | None = None,
    ) -> None:
        self.transport = transport
        self.conf = transport.conf
        self.conf.register_opts(oslo_server._pool_opts)
        if executor is not None and executor not in executors.HUBS:
            raise ValueError(
                f"executor must be one of {', '.join(executors.HUBS)}; "
                f"it is {executor!r}"
            )
        driver_of(transport)
        self._executor_name = executor
        self._pool_size = pool_size
        # Made by start(): a launcher makes the server, then forks, then starts it.
        self._executor: executors.Executor | None = None
        self._subscriptions: list[Subscription] = []

    def _hub_of(self, transport: typing.Any) -> Hub:
        """The hub that a transport is on, or will be."""
        name = self._executor_name
        # A monkey patched process has "threads" that are green: auto finds that out.
        wish = None if name in (None, "threading") else executors.HUBS[name]
        return driver_of(transport).use_hub(wish)

    def _make_executor(self) -> executors.Executor:
        hub = self._hub_of(self.transport)
        name = self._executor_name or (
            "threading" if hub.name == "threads" else hub.name
        )
        size = self._pool_size or self.conf.executor_thread_pool_size
        return executors.make(name, hub, size)

    # -- what is listened to

    def listen(
        self,
        target: Target,
        endpoints: typing.Sequence[object],
        *,
        serializer: typing.Any = None,
        access_policy: typing.Any = None,
        transport: typing.Any = None,
    ) -> Subscription:
        """Serve RPC requests to `target` with `endpoints`.

        After start() it returns when the subscription is up.

        :raises InvalidTarget: if the target names no topic or no server
        """
        transport = transport or self.transport
        dispatcher = RPCDispatcher(endpoints, serializer, access_policy)
        return self._listen(transport, target, dispatcher)

    def _listen(
        self, transport: typing.Any, target: Target, dispatcher: typing.Any
    ) -> Subscription:
        need(target, "topic", "server")
        driver = driver_of(transport)
        wanted = target()  # the caller may change its own
        return self._add(
            f"RPC {wanted}",
            transport,
            lambda: driver.subscribe(wanted, 1, None),
            _RPCProcessing(transport, dispatcher)._process_incoming,
        )

    def listen_for_notifications(
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
        """Give notifications on `targets` to `endpoints`.

        :param pool: each pool gets a copy of each notification, for one of its members
        :param batch_size: if given, endpoints get lists of up to so many notifications
        :param batch_timeout: seconds that a list which is not full waits for more
        :param allow_requeue: whether endpoints may give notifications back
        :param priorities: which to subscribe to; None: those endpoints have methods for
        :raises InvalidTarget: if a target names no topic
        """
        transport = transport or self.transport
        batched = batch_size is not None
        make = (
            notify_dispatcher.BatchNotificationDispatcher
            if batched
            else notify_dispatcher.NotificationDispatcher
        )
        dispatcher = make(endpoints, serializer)
        what, wanted = notified(targets, pool, priorities, dispatcher)
        driver = driver_of(transport)
        processing = (_BatchProcessing if batched else _NotificationProcessing)(
            dispatcher, allow_requeue
        )
        return self._add(
            what,
            transport,
            lambda: driver.subscribe_for_notifications(
                wanted, pool, batch_size or 1, batch_timeout
            ),
            processing._process_incoming,
        )

    def join_consumer_pool(
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
        :func:`greenamqp.join_consumer_pool` does, in this server's dispatcher.

        :param callback: called with each message in the server's workers, in several of
            them at a time where there are several; ``blocking``: in start()
        :raises NotImplementedError: after start(): if the message bus has no way to
            make pools; before, start() raises it
        """
        transport = transport or self.transport
        driver = driver_of(transport)
        target = Target(exchange=exchange_name, topic=topic)
        return self._add(
            f"pool {pool_name} on {topic}",
            transport,
            lambda: driver.subscribe_to_topic(target, pool_name, AnyIncoming),
            PoolProcessing(callback, requeue_on_error).process,
        )

    def _add(
        self,
        what: str,
        transport: typing.Any,
        subscribe: typing.Callable[[], Listener],
        process: _Process,
    ) -> Subscription:
        subscription = Subscription(self, what, transport, subscribe, process)
        self._subscriptions.append(subscription)
        if self._executor is not None:
            try:
                self._begin(self._executor, [subscription])
            except BaseException:
                subscription.stop()
                raise
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def _begin(
        self, executor: executors.Executor, subscriptions: list[Subscription]
    ) -> None:
        """Subscribe to all, then wait for all: the round trips overlap."""
        hub = executor.hub
        if hub.foreign():
            hub.run_inside(self._begin, executor, subscriptions)
            return
        for subscription in subscriptions:
            other = self._hub_of(subscription._transport)
            if other is not hub:
                raise ValueError(
                    f"{subscription.what}: its transport is on the {other.name} hub, "
                    f"and this server on the {hub.name} hub"
                )
            if subscription._stopped:
                continue
            listener = subscription._listener = subscription._subscribe()
            executor.add_listener(listener, subscription._process)
            if subscription._stopped or self._executor is not executor:
                subscription._detach()  # another thread stopped it meanwhile, or all
        deadline = hub.now() + SUBSCRIBE_TIMEOUT
        for subscription in subscriptions:
            attached = subscription._listener
            if (
                attached is not None
                and not attached.wait_attached(deadline)
                and attached is subscription._listener  # not stopped meanwhile
            ):
                LOG.warning(
                    "%s: not subscribed yet after %s s: %s; will be as soon as "
                    "possible",
                    subscription.what,
                    SUBSCRIBE_TIMEOUT,
                    attached.refusal,
                )

    # -- oslo.service

    def start(self) -> None:
        """Subscribe to all and begin to dispatch.

        With the blocking executor: dispatch in this thread until stop().

        :raises NotImplementedError: if a message bus cannot do what is asked
        :raises ValueError: if the executor does not go with the hub of a transport
        """
        if self._executor is not None:
            LOG.warning("the server has been started already")
            return
        executor = self._executor = self._make_executor()
        try:
            self._begin(executor, list(self._subscriptions))
        except BaseException:
            self._detach()
            raise
        executor.start()

    # -- for a program that has a loop of its own: the blocking executor only

    def attach(self) -> None:
        """Subscribe to all, for a loop of the program's own that waits for fileno()
        and calls step(); instead of start(), with the blocking executor only.

        :raises ValueError: if the executor is another one
        :raises NotImplementedError: if a message bus cannot do what is asked
        """
        if self._executor is not None:
            LOG.warning("the server has been started already")
            return
        executor = self._make_executor()
        if not isinstance(executor, executors.BlockingExecutor):
            raise ValueError("attach() is for the executor 'blocking'")
        executor.fileno()
        self._executor = executor
        try:
            self._begin(executor, list(self._subscriptions))
        except BaseException:
            self._detach()
            raise
        executor.attach()

    def _attached(self) -> executors.BlockingExecutor:
        if not isinstance(self._executor, executors.BlockingExecutor):
            raise ValueError("attach() the server first")
        return self._executor

    def fileno(self) -> int:
        """A descriptor that is readable whenever step() has something to do: one for
        all that the server listens to, and for all else on this thread's blocking hub.

        Only wait for it.  It stays the same until the last transport of the thread is
        cleaned up; a reconnect does not change it.

        :raises ValueError: before attach()
        """
        return self._attached().fileno()

    def step(self) -> None:
        """Do what there is to do: move bytes, keep heartbeats alive, reconnect,
        dispatch one request or batch of each target at the most.  Does not wait.

        :raises ValueError: before attach()
        """
        self._attached().step()

    def stop(self) -> None:
        """Begin nothing more.  Does not wait; may be called from anywhere."""
        if self._executor is not None:
            self._executor.stop()

    def wait(self) -> None:
        """Wait, after stop(), until what was begun is done; then detach from the bus.
        start() may be called again afterwards."""
        if self._executor is not None:
            self._executor.wait()
            self._detach()

    def _detach(self) -> None:
        for subscription in [*self._subscriptions]:  # others may be stopped meanwhile
            subscription._detach()
        self._executor = None

    def reset(self) -> None:
        """Nothing is kept that a SIGHUP would want renewed."""


def need(target: Target, *fields: str) -> None:
    for field in fields:
        if not getattr(target, field):
            raise exceptions.InvalidTarget(
                f"a server's target must have a {field}", target
            )


def notified(
    targets: typing.Sequence[Target],
    pool: str | None,
    priorities: typing.Sequence[str] | None,
    dispatcher: typing.Any,
) -> tuple[str, list[tuple[Target, str]]]:
    """What is listened to by who wants notifications: for people, and each target with
    each priority.

    :param priorities: None: those that `dispatcher` has endpoints for
    :raises InvalidTarget: if a target names no topic
    """
    for target in targets:
        need(target, "topic")
    what = f"notifications {', '.join(map(str, targets))}"
    return what + (f" pool {pool}" if pool else ""), [
        (target(), priority)
        for target in targets
        for priority in priorities or dispatcher.supported_priorities
    ]


class _OneServer(service.ServiceBase):
    """A Server that looks like oslo.messaging's MessageHandlingServer."""

    def __init__(self, transport: typing.Any, executor: str | None) -> None:
        self.transport = transport
        self.conf = transport.conf
        self._executor_name = executor
        self._server: Server | None = None

    def _subscribe(self, server: Server) -> None:
        raise NotImplementedError

    def start(self, override_pool_size: int | None = None) -> None:
        """Begin to serve.  With the blocking executor: serve in this thread until
        stop(), then return."""
        if self._server is not None:
            LOG.warning("the server has been started already")
            return
        server = Server(self.transport, self._executor_name, override_pool_size)
        self._subscribe(server)
        self._server = server
        try:
            server.start()
        except BaseException:
            if server._executor is None:  # it did not come to serve
                self._server = None
            raise

    def stop(self) -> None:
        """Begin nothing more.  Does not wait; may be called from anywhere."""
        if self._server is not None:
            self._server.stop()

    def wait(self) -> None:
        """Wait, after stop(), until what was begun is done; then detach."""
        server = self._server
        if server is not None:
            server.wait()  # another thread may stop it only now
            if self._server is server:
                self._server = None

    def reset(self) -> None:
        """Nothing to do."""


class RPCServer(_OneServer):
    """For ``server_cls=`` of oslo.messaging's get_rpc_server: one target, and any
    executor of greenamqp's."""

    def __init__(
        self,
        transport: typing.Any,
        target: Target,
        dispatcher: typing.Any,
        executor: str | None = None,
    ) -> None:
        super().__init__(transport, executor)
        self.target = target
        self.dispatcher = dispatcher

    def _subscribe(self, server: Server) -> None:
        server._listen(self.transport, self.target, self.dispatcher)


class NotificationListener(_OneServer):
    """What get_notification_listener and its batch counterpart return."""

    def __init__(
        self,
        transport: typing.Any,
        executor: str | None,
        targets: typing.Sequence[Target],
        endpoints: typing.Sequence[object],
        **options: typing.Any,
    ) -> None:
        super().__init__(transport, executor)
        self._targets = list(targets)
        self._endpoints = list(endpoints)
        self._options = options

    def _subscribe(self, server: Server) -> None:
        server.listen_for_notifications(self._targets, self._endpoints, **self._options)


def get_notification_listener(
    transport: typing.Any,
    targets: typing.Sequence[Target],
    endpoints: typing.Sequence[object],
    executor: str | None = None,
    serializer: typing.Any = None,
    allow_requeue: bool = False,
    pool: str | None = None,
) -> NotificationListener:
    """As oslo.messaging's function of that name, for any executor of greenamqp's."""
    return NotificationListener(
        transport,
        executor,
        targets,
        endpoints,
        serializer=serializer,
        allow_requeue=allow_requeue,
        pool=pool,
    )


def get_batch_notification_listener(
    transport: typing.Any,
    targets: typing.Sequence[Target],
    endpoints: typing.Sequence[object],
    executor: str | None = None,
    serializer: typing.Any = None,
    allow_requeue: bool = False,
    pool: str | None = None,
    batch_size: int = 100,
    batch_timeout: float | None = 1.0,
) -> NotificationListener:
    """As oslo.messaging's function of that name, for any executor of greenamqp's."""
    return NotificationListener(
        transport,
        executor,
        targets,
        endpoints,
        serializer=serializer,
        allow_requeue=allow_requeue,
        pool=pool,
        batch_size=batch_size,
        batch_timeout=batch_timeout,
    )
