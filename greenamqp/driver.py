# SPDX-License-Identifier: Apache-2.0
"""oslo.messaging's driver contract, and nothing else.

Registered under the names ``amqp`` and ``greenamqp``, and with TLS under ``amqps`` and
``greenamqps``.  Nothing is connected before the first message or subscription: by then
the process has monkey patched what it will, and has forked.  A process that forks later
gets a client, connection and names of its own in the child.
"""

from __future__ import annotations

import logging
import threading
import typing
import warnings
import weakref

from oslo_messaging import Target, TransportHost, exceptions
from oslo_messaging._drivers import base

from greenamqp import (
    chance,
    fork,
    hubs,
    interrupts,
    options,
    report,
    state,
    telemetry,
)
from greenamqp.buses import BadMessage, Format, Service
from greenamqp.client import Client, Destination, Reply
from greenamqp.connection.failover import AMQP_PORT, AMQPS_PORT, Host
from greenamqp.connection.security import Security
from greenamqp.engine import Message
from greenamqp.hubs import Steps, logs
from greenamqp.incoming import Incoming, RpcIncoming
from greenamqp.listener import Listener
from greenamqp.outbox import Directory, NoOutbox, Outbox
from greenamqp.policy import Policies, QueuePolicy
from greenamqp.transport import register_missed_options

LOG = logging.getLogger(__name__)

_Result = typing.TypeVar("_Result")

# Those of this process that were used.
_drivers: weakref.WeakSet[GreenAMQPDriver] = weakref.WeakSet()


def drivers_in_use() -> list[GreenAMQPDriver]:
    """Those of this process that have a client.  From anywhere."""
    while True:
        try:
            return [driver for driver in _drivers if driver.client is not None]
        except RuntimeError:
            pass  # another thread has added one


class GreenAMQPDriver(base.BaseDriver):
    """See the base class for the contract, and the module.

    Methods may be called from any thread or green thread; those that wait do so by
    the hub of the process.
    """

    prefetch_size = 0

    def __init__(
        self,
        conf: typing.Any,
        url: typing.Any,
        default_exchange: str | None = None,
        allowed_remote_exmods: list[str] | None = None,
    ) -> None:
        super().__init__(conf, url, default_exchange, allowed_remote_exmods or [])
        register_missed_options(conf)
        options.check_url(url)
        self._options = options.of(conf, url)
        _check(self._options)
        _check_names(url, self._options)
        Security(self._options).check()
        if self._options.notify_outbox:
            _check_outbox(self._directory())
        if not all(host.hostname for host in url.hosts or [TransportHost()]):
            LOG.warning("the transport URL names no host: that means localhost")
        # Reentrant, for a signal handler that comes while it is held.
        self._lock = threading.RLock()
        self._connecting = False
        self._client: Client | None = None
        self._outbox: Outbox | None = None
        self._finalizer: typing.Any = None
        # The process that was forked from and had a connection.
        self._parent: int | None = None
        fork.tell(self)
        self._tracer = telemetry.tracer(conf) if self._options.traces else None
        self._hub_wish: str | hubs.Hub | None = None
        #: What is asked of queues; see greenamqp.policy.
        self.policies = Policies(self._options, options.RabbitOptions(conf, url))

    def require_features(self, requeue: bool = False) -> None:
        """Requeueing is supported."""

    def forked(self) -> None:
        """See :mod:`greenamqp.fork`: this child's connection will be made anew."""
        # Another thread of the parent may have held it.
        self._lock = threading.RLock()
        self._connecting = False
        self._detach_finalizer()
        client, self._client = self._client, None
        self._outbox = None
        if client is not None:
            self._parent = client.hub.pid
            fork.keep(client)

    @property
    def client(self) -> Client | None:
        """This process's client, None before it is needed and after cleanup()."""
        return self._client

    @property
    def outbox(self) -> Outbox | None:
        """Where this process's notifications wait on disk; None as `client`, and
        without the option."""
        return self._outbox

    def describe(self) -> dict[str, typing.Any]:
        """See :func:`greenamqp.describe`."""
        return state.describe(self._client, self._outbox)

    def _directory(self) -> Directory:
        return Directory(
            self._options.notify_outbox,
            [f"{host.hostname}:{host.port}" for host in hosts_of(self._url)],
            self._url.virtual_host,
            self._default_exchange,
        )

    def _connected(self) -> Client:
        """This process's client; made when first asked for."""
        client = self._client
        if client is not None:
            return client
        with self._lock:
            if self._client is None:
                if self._connecting:
                    raise exceptions.MessageDeliveryFailure(
                        "a signal handler or a finalizer interrupted the first use of "
                        "this transport: it cannot be used before that has gone on"
                    )
                self._connecting = True
                try:
                    client = self._new_client()
                    if self._options.notify_outbox:
                        self._outbox = Outbox(client, self._directory(), self._options)
                        self._outbox.start()
                    if self._options.metrics or self._options.state_dir:
                        telemetry.measure(client, self._outbox, self._options.metrics)
                    if self._tracer is not None:
                        client.on_hand_out.append(self._tracer.handed_out)
                    self._client = client
                    _drivers.add(self)
                    report.register(drivers_in_use)
                    self._finalizer = weakref.finalize(
                        self, _forgotten, client, self._outbox
                    )
                    self._finalizer.atexit = False
                    if self._options.state_dir:
                        state.publish(client, self._outbox, self._options.state_dir)
                finally:
                    self._connecting = False
            return self._client

    def _new_client(self) -> Client:
        if self._parent is not None:
            LOG.info("forked from %s: connecting anew", self._parent)
            self._parent = None
        client = Client(
            hubs.get(self._hub_wish or self._options.hub),
            hosts_of(self._url),
            self._options,
            self._default_exchange,
            self._url.virtual_host or None,
            self.policies,
        )
        return client

    def send(
        self,
        target: Target,
        ctxt: dict[str, typing.Any],
        message: dict[str, typing.Any],
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        retry: int | None = None,
        transport_options: typing.Any = None,
    ) -> typing.Any:
        """Send an RPC request; with `wait_for_reply`, return its reply.

        :param timeout: seconds until MessagingTimeout is raised
        :param call_monitor_timeout: seconds without a heartbeat of the server until
            MessagingTimeout is raised; None or 0: none are asked for
        :param retry: further attempts where the bus gives the message back
        :param transport_options: ``at_least_once`` raises MessageUndeliverable where
            the bus says that nobody takes the message, instead of trying again
        :raises MessagingTimeout, MessageDeliveryFailure, MessageUndeliverable: with
            the reason
        :raises Exception: what the server raised
        """
        client = self._connected()
        reply = _do(
            client,
            self.sending(
                target,
                ctxt,
                message,
                wait_for_reply=wait_for_reply,
                timeout=timeout,
                call_monitor_timeout=call_monitor_timeout,
                retry=retry,
                transport_options=transport_options,
            ),
        )
        return None if reply is None else self.result(reply)

    def sending(
        self,
        target: Target,
        ctxt: dict[str, typing.Any],
        message: dict[str, typing.Any],
        *,
        wait_for_reply: bool | None = None,
        **how: typing.Any,
    ) -> Steps[Reply | None]:
        """As `send`, whose other parameters it takes by their names; the reply is for
        `result`, outside of these steps: what a server raised is raised there, whatever
        it means to a generator."""
        return self._traced(
            "RPC call" if wait_for_reply else "RPC cast",
            target,
            ctxt,
            message,
            lambda ctxt: self._sending(target, ctxt, message, wait_for_reply, **how),
        )

    def _traced(
        self,
        what: str,
        target: Target,
        ctxt: dict[str, typing.Any],
        message: typing.Any,
        steps: typing.Callable[[dict[str, typing.Any]], Steps[_Result]],
    ) -> Steps[_Result]:
        """The steps that send a message, with a span around them where that is asked
        for: `steps` are given the context that the message is to have."""
        if self._tracer is None:
            return steps(ctxt)
        return self._tracer.sending(what, target.topic, ctxt, message, steps)

    def _sending(
        self,
        target: Target,
        ctxt: dict[str, typing.Any],
        message: dict[str, typing.Any],
        wait_for_reply: bool | None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        retry: int | None = None,
        transport_options: typing.Any = None,
    ) -> Steps[Reply | None]:
        client = self._connected()
        opts = self._options
        # Programs say "for ever" by infinity, or a great number, of which the system's
        # timers and AMQP know none.  In this order, so that NaN is for ever as well.
        patience = min(options.MAX_WAIT, timeout or opts.default_send_timeout)
        if call_monitor_timeout is not None:
            # 0 means that nobody is to watch, as with oslo.messaging's other drivers.
            call_monitor_timeout = min(options.MAX_WAIT, call_monitor_timeout) or None
        unique_id = client.unique_id()

        def request(format: Format) -> Message:
            made = format.request(message, ctxt, unique_id, call_monitor_timeout)
            made.ttl = patience if timeout else None
            return made

        destination = Destination.of(target, Service.RPC)
        deadline = client.hub.now() + patience
        mandatory = bool(getattr(transport_options, "at_least_once", False))
        try:
            if not wait_for_reply:
                yield from client.sending(
                    "RPC cast",
                    destination,
                    request,
                    deadline=deadline,
                    retries=retry,
                    settled="rpc-cast" in opts.pre_settled,
                    mandatory=mandatory,
                    impatient=True,
                )
                return None
            return (
                yield from client.calling(
                    destination,
                    request,
                    deadline=deadline,
                    retries=retry,
                    settled="rpc-call" in opts.pre_settled,
                    monitor=call_monitor_timeout,
                    mandatory=mandatory,
                )
            )
        except TimeoutError as exc:
            if interrupts.struck(exc):
                raise  # the program's own
            # Only who gave a time-out expects to hear of it as such.
            if timeout or call_monitor_timeout:
                raise exceptions.MessagingTimeout(str(exc)) from None
            raise exceptions.MessageDeliveryFailure(str(exc)) from None

    def result(self, reply: Reply) -> typing.Any:
        """What an RPC call returns.

        :raises Exception: what the server raised
        :raises MessagingException: the reply cannot be read
        """
        try:
            return reply.result(self._allowed_remote_exmods)
        except BadMessage as exc:
            raise exceptions.MessagingException(
                f"the reply to an RPC call cannot be read: {exc}"
            ) from None

    def send_notification(
        self,
        target: Target,
        ctxt: dict[str, typing.Any],
        message: dict[str, typing.Any],
        version: float,
        retry: int | None = None,
    ) -> None:
        """Send a notification; returns when the message bus has accepted it, or when it
        is in the outbox.

        :param retry: further attempts where the bus gives it back, or the connection
            is lost.  None or -1: for ever, unless ``default_notify_timeout`` is set,
            or the bus says that nobody is there to take it.  With an outbox it has
            no meaning while that can be written
        :raises MessageDeliveryFailure: with the reason
        """
        if logs.is_muted():
            return
        client = self._connected()
        try:
            _do(client, self.notifying(target, ctxt, message, version, retry))
        except exceptions.MessageDeliveryFailure as exc:
            if not logs.in_handler():
                raise
            # Who sends log records would log this as well, and so on.
            with logs.muted():
                LOG.warning("a log record could not be sent: %s", exc)

    def notifying(
        self,
        target: Target,
        ctxt: dict[str, typing.Any],
        message: dict[str, typing.Any],
        version: float,
        retry: int | None,
    ) -> Steps[None]:
        """As `send_notification`, but for what a log handler sends."""
        return self._traced(
            "notification",
            target,
            ctxt,
            message,
            lambda ctxt: self._notifying(target, ctxt, message, version, retry),
        )

    def _notifying(
        self,
        target: Target,
        ctxt: dict[str, typing.Any],
        message: dict[str, typing.Any],
        version: float,
        retry: int | None,
    ) -> Steps[None]:
        client = self._connected()
        opts = self._options
        unique_id = client.unique_id()
        destination = Destination.of(target, Service.NOTIFY)
        envelope = version == 2.0
        entry = None
        if self._outbox is not None:
            entry = yield from self._outbox.sending(
                destination, message, ctxt, unique_id, envelope
            )
            if entry is None:
                return
        timeout = opts.default_notify_timeout
        if timeout is None and retry is not None and retry >= 0:
            timeout = options.NOTIFY_TIMEOUT
        deadline = None if timeout is None else client.hub.now() + timeout
        try:
            if entry is not None:
                yield from client.ending(entry, deadline=deadline, retries=retry)
                return
            yield from client.sending(
                "notification",
                destination,
                lambda format: format.notification(
                    message, ctxt, unique_id, envelope=envelope
                ),
                deadline=deadline,
                retries=retry,
                settled="notify" in opts.pre_settled,
                repeatable=True,
            )
        except TimeoutError as exc:
            if interrupts.struck(exc):
                raise  # the program's own
            raise exceptions.MessageDeliveryFailure(str(exc)) from None

    def listen(
        self, target: Target, batch_size: int, batch_timeout: float | None
    ) -> Listener:
        """A listener for RPC requests to `target`.

        Returns once its subscriptions are up, or could not be made within
        default_send_timeout: then they will be as soon as that is possible.
        """
        return self._attached(self.subscribe, target(), batch_size, batch_timeout)

    def listen_for_notifications(
        self,
        targets_and_priorities: typing.Iterable[tuple[Target, str]],
        pool: str | None,
        batch_size: int,
        batch_timeout: float | None,
    ) -> Listener:
        """A listener for notifications; as `listen`.

        :param pool: each pool gets a copy of each notification, which goes to one of
            the pool's listeners
        :raises NotImplementedError: if the message bus has no way to make pools
        """
        return self._attached(
            self.subscribe_for_notifications,
            targets_and_priorities,
            pool,
            batch_size,
            batch_timeout,
        )

    def _attached(
        self, subscribe: typing.Callable[..., Listener], *args: typing.Any
    ) -> Listener:
        hub = self._connected().hub
        if hub.foreign():
            return hub.run_inside(self._attached, subscribe, *args)
        listener = subscribe(*args)
        patience = self._options.default_send_timeout
        try:
            attached = listener.wait_attached(hub.now() + patience)
        except BaseException:
            listener.cleanup()
            raise
        if not attached:
            LOG.warning(
                "not subscribed yet after %s s: %s; will be as soon as possible",
                patience,
                listener.refusal,
            )
        return listener

    # -- for greenamqp's own servers

    def use_hub(self, name: str | hubs.Hub | None = None) -> hubs.Hub:
        """The hub that this transport is on in this process.

        :param name: which one to use, or a hub itself, if there is a choice yet: that
            is, nothing was sent or listened to before, and ``hub`` says ``auto``
        """
        if name is not None and self._options.hub == "auto":
            self._hub_wish = name
        return self._connected().hub

    def subscribe(
        self, target: Target, batch_size: int, batch_timeout: float | None
    ) -> Listener:
        """As `listen`, without waiting: see Listener.wait_attached."""
        unique = chance.unique()
        return self._subscribe(
            target.topic,
            RpcIncoming,
            batch_size,
            batch_timeout,
            self._options.rpc_server_credit,
            lambda addresser: addresser.rpc_sources(target, unique),
        )

    def subscribe_for_notifications(
        self,
        targets_and_priorities: typing.Iterable[tuple[Target, str]],
        pool: str | None,
        batch_size: int,
        batch_timeout: float | None,
    ) -> Listener:
        """As `listen_for_notifications`, without waiting."""
        targets = [
            Target(exchange=target.exchange, topic=f"{target.topic}.{priority}")
            for target, priority in targets_and_priorities
        ]
        return self._subscribe(
            ", ".join(sorted({target.topic for target in targets})),
            Incoming,
            batch_size,
            batch_timeout,
            self._options.notify_server_credit,
            lambda addresser: addresser.notification_sources(targets, pool),
        )

    def subscribe_to_topic(
        self,
        target: Target,
        pool: str | None,
        kind: type[Incoming],
        batch_size: int = 1,
        batch_timeout: float | None = None,
    ) -> Listener:
        """A listener for what is sent to a whole topic, or a pool's copy of it; without
        waiting."""
        return self._subscribe(
            target.topic,
            kind,
            batch_size,
            batch_timeout,
            self._options.notify_server_credit,
            lambda addresser: addresser.notification_sources([target], pool),
        )

    def _subscribe(
        self,
        topic: str,
        kind: type[Incoming],
        batch_size: int,
        batch_timeout: float | None,
        credit: int,
        sources: typing.Callable[[typing.Any], list[typing.Any]],
    ) -> Listener:
        client = self._connected()
        listener = Listener(client, kind, batch_size, batch_timeout, credit)
        listener.topic = topic
        # As long as something is received, the transport is in use.
        listener.driver = self
        listener.subscribe(sources)
        return listener

    def cleanup(self) -> None:
        """Close the connection and let go of everything.  Idempotent.

        Where nobody can wait (a signal handler, a coroutine of the transport's own
        loop) it returns at once, and the rest is done before long.
        """
        closing = self.closing()
        if closing is not None:
            hub, steps = closing
            hub.complete(steps)

    def closing(self) -> tuple[hubs.Hub, Steps[None]] | None:
        """As `cleanup`, for who does the waiting; None: there is nothing to close."""
        self._detach_finalizer()
        client, self._client = self._client, None
        outbox, self._outbox = self._outbox, None
        return None if client is None else (client.hub, _closing(client, outbox))

    def _detach_finalizer(self) -> None:
        finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.detach()


def _do(client: Client, steps: Steps[_Result]) -> _Result:
    try:
        return client.hub.do(steps)
    except hubs.EngagedError as exc:
        raise exceptions.MessageDeliveryFailure(str(exc)) from exc


def _closing(client: Client, outbox: Outbox | None) -> Steps[None]:
    try:
        if outbox is not None:
            yield from outbox.closing()
    except BaseException:
        # Thrown into its wait: the connection is closed all the same.
        client.hub.begin(client.closing())
        raise
    yield from client.closing()


def _forgotten(client: Client, outbox: Outbox | None) -> None:
    """A transport is gone that nobody has cleaned up.  Called by the garbage collector,
    which may be anywhere."""
    if not client.context.closed and not client.hub.inherited:
        client.hub.begin(_closing(client, outbox))
        warnings.warn(
            f"a transport to {client.connection.host} was not cleaned up: "
            "call its cleanup()",
            ResourceWarning,
            stacklevel=2,
        )


def _check(opts: typing.Any) -> None:
    """Refuse values that oslo.config cannot check."""
    unknown = set(opts.pre_settled) - set(options.PRE_SETTLED)
    if unknown:
        raise ValueError(
            f"[{options.GROUP.name}] pre_settled: {', '.join(sorted(unknown))!r} is "
            f"not allowed; allowed: {', '.join(options.PRE_SETTLED)}"
        )


def _check_outbox(directory: Directory) -> None:
    """:raises ValueError: there can be no outbox there; says why"""
    try:
        directory.make()
    except NoOutbox as exc:
        raise ValueError(f"[{options.GROUP.name}] notify_outbox: {exc}") from None


def _check_names(url: typing.Any, opts: typing.Any) -> None:
    """Refuse what would reach the message bus as another name, or not at all: its
    texts are UTF-8, and end for proton at the first NUL."""
    names = [
        ("transport URL: the virtual host", url.virtual_host),
        (f"[{options.GROUP.name}] container_name", opts.container_name),
        (f"[{options.GROUP.name}] sasl_default_realm", opts.sasl_default_realm),
    ]
    for host in url.hosts:
        names += [
            (f"transport URL: the user name for {host.hostname}", host.username),
            (f"transport URL: the password for {host.hostname}", host.password),
        ]
    for what, text in names:
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            problem = "has a character that UTF-8 does not know"
        else:
            if "\0" not in (text or ""):
                continue
            problem = "has a NUL in it"
        # Without the text: it may be the password.
        raise ValueError(f"{what} {problem}")


def hosts_of(url: typing.Any) -> list[Host]:
    """The hosts of a transport URL, in its order."""
    # TLS that the configuration alone asks for goes to the port without, as with the
    # predecessor: files that work must go on working.
    default_port = AMQPS_PORT if options.asks_for_tls(url) else AMQP_PORT
    hosts = [
        Host(
            host.hostname or "localhost",
            host.port or default_port,
            host.username or None,
            host.password or None,
        )
        for host in url.hosts
    ]
    return hosts or [Host("localhost", default_port)]


def set_queue_policy(
    transport: typing.Any, target: Target, policy: QueuePolicy | None
) -> None:
    """Ask for `policy` where this transport sends to `target` or listens on it.

    It takes effect with the next link that is made; set it before the first message.
    A topic of notifications may be given without its priority.  From any thread.

    :param policy: None: what the options say
    :raises TypeError: for a transport of another driver
    """
    driver = transport._driver
    if not isinstance(driver, GreenAMQPDriver):
        raise TypeError(
            "queue policies are for transports of the amqp driver; this one's URL has "
            f"the scheme {driver._url.transport!r}"
        )
    driver.policies.set(target, policy)
