# SPDX-License-Identifier: Apache-2.0
"""The connection itself, and what the driver asks of it."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import platform
import sys
import typing
import uuid

from greenamqp import addressing, connect, diagnosis, interrupts, logs, notices
from greenamqp.engine import (
    LINKS_PER_SESSION,
    Connection,
    ConnectionFailed,
    Delivery,
    RemoteError,
    Sender,
)
from greenamqp.engine import Link as EngineLink
from greenamqp.failover import Backoff, Host, Hosts
from greenamqp.guard import GUARD
from greenamqp.hubs import Hub, Timer, Waiter
from greenamqp.management import Management
from greenamqp.messenger.inlet import Doubts, Inlet, Subscription
from greenamqp.messenger.outgoing import Call, Compose, Destination, Outgoing, Reply
from greenamqp.messenger.outlet import Outlet
from greenamqp.messenger.replies import Replies
from greenamqp.messenger.state import State
from greenamqp.messenger.watch import Watch
from greenamqp.policy import Policies
from greenamqp.pump import Pump, Stream
from greenamqp.security import Security

# One name for all of the room: where in it something is logged is nobody's business.
LOG = logging.getLogger("greenamqp.messenger")

# Seconds for one attempt: to connect, to shake hands, to exchange Open frames.
CONNECT_TIMEOUT = 30.0

# The same where there are other hosts to try: a sender that waits for 30 seconds, as it
# does by default, gets past two hosts that are silent.
CONNECT_TIMEOUT_OF_MANY = 10.0

# The highest channel of a connection. Our own links share sessions, or have one each
# where a bus needs that; a peer that begins all of these costs us some 8 MB.
CHANNEL_MAX = 2047

# Sessions of a connection that subscriptions do not fill: one for the management of the
# bus, one for replies, four for links that may be refused, two for links that send.
KEPT_SESSIONS = 8

# No bus attaches links to its clients. Each one that is refused and then left half open
# costs some 4 kB, so a peer that goes on with it is left.
MAX_REFUSED_LINKS = 100

# Seconds that close() waits for the peer's Close.
CLOSE_TIMEOUT = 2.0

# How often replies that nobody waits for are looked through for old ones.  Seconds.
SWEEP_INTERVAL = 1.0


class Messenger:
    """See the package.

    A connection that cannot hold all subscriptions has others beside it: each is
    another messenger's, which the one before it made, and all that it does is to
    receive.  What is sent and called goes over the first.

    :param hub: does the waiting
    :param hosts: where to connect to
    :param options: the group of options
    :param default_exchange: for targets that name none
    :param virtual_host: of the transport URL, or None
    :param policies: what is asked of queues
    """

    def __init__(
        self,
        hub: Hub,
        hosts: typing.Sequence[Host],
        options: typing.Any,
        default_exchange: str | None = None,
        virtual_host: str | None = None,
        policies: Policies | None = None,
    ) -> None:
        self.hub = hub
        self.options = options
        self.state = State.IDLE
        self.engine: Connection | None = None
        self.addresser: addressing.Addresser | None = None
        self.bus = addressing.Bus()
        #: What messages are in: of the bus at hand, or the last one, or the likely one.
        self.format = addressing.likely_format(options)
        #: What has things declared; None while there is no connection.
        self.management: Management | None = None
        self.replies = Replies(self)
        #: Which links may be attached although they may be refused.
        self.doubts = Doubts()
        #: Looks whether the bus answers; None while there is no connection.
        self.watch: Watch | None = None
        #: How many links the subscriptions have, or wait for.
        self.links_held = 0
        self.notices = notices.Notices(hub)
        #: Requests that were handed to servers and are not replied to yet.
        self.requests_at_work = 0
        #: Why there is no connection, for those who time out meanwhile: of each host
        #: that was tried since there was one, the latest first.
        self.last_failure = ""
        self._failures: dict[Host, str] = {}
        self._default_exchange = default_exchange
        self._virtual_host = virtual_host
        self._policies = policies
        self._hosts = Hosts(hosts)
        self._security = Security(options)
        # Hosts that want "vhost:" before the name of a virtual host.
        self._vhost_prefixed: set[Host] = set()
        # Whether an operator was told what such a bus wants.
        self._advised = False
        # Hosts that want no SASL layer, each with what it answered to one.
        self._without_sasl: dict[Host, str] = {}
        self._refused_links = 0
        self._backoff = Backoff(
            len(hosts),
            options.connection_retry_interval,
            options.connection_retry_backoff,
            options.connection_retry_interval_max,
        )
        self._outlets: dict[Destination, Outlet] = {}
        # In the order in which they came.
        self._subscriptions: dict[Subscription, None] = {}
        #: What waits for its link to be detached, to remove its queue then.
        self.leaving: set[Inlet] = set()
        # Receives what this connection cannot hold; made when it is first needed.
        self._further: Messenger | None = None
        self._make_further = functools.partial(
            Messenger,
            hub,
            hosts,
            options,
            default_exchange,
            virtual_host,
            policies,
        )
        # As the last peer said.
        self._links_per_session = LINKS_PER_SESSION
        self._prefix = uuid.uuid4().hex
        self._count = itertools.count(1)
        self._unattended: list[Outgoing] = []
        self._pump: Pump | None = None
        self._attempt: connect.Attempt | None = None
        self._timer: Timer | None = None
        self._maintenance: Timer | None = None
        self._sweep: Timer | None = None
        self._closed_waiters: list[Waiter] = []
        # Engines and streams that were given up, to be let go of before long.
        self._discarded: list[tuple[Connection, Pump | None]] = []
        self._bin_timer: Timer | None = None
        # When the connection came up.
        self._up_since = 0.0
        self._patience = CONNECT_TIMEOUT if len(hosts) == 1 else CONNECT_TIMEOUT_OF_MANY
        # When the attempt that is under way counts as failed.
        self._attempt_until = 0.0
        self._guarded = bool(options.heartbeat_guard)
        if self._guarded:
            GUARD.acquire()
        hub.acquire()
        hub.revivers.append(self._revive)

    # -- for the driver

    def unique_id(self) -> str:
        """A name for a message that no other one has.  From any thread."""
        return f"{self._prefix}.{next(self._count)}"

    def send(
        self,
        what: str,
        destination: Destination,
        compose: Compose,
        *,
        deadline: float,
        retries: int | None = None,
        settled: bool = False,
        repeatable: bool = False,
        mandatory: bool = False,
    ) -> None:
        """Send and wait until the next hop has accepted.  May block until `deadline`.

        :param what: how errors name it
        :param compose: makes the message; what it raises is raised here
        :param retries: further attempts allowed; None or negative: any number
        :param settled: ask for no outcome
        :param repeatable: whether it may be sent again when its outcome is unknown
        :param mandatory: fail at once when nobody is there to take it
        :raises TimeoutError: at the deadline, saying what was waited for
        :raises MessageDeliveryFailure: refused, rejected, or retries exhausted
        :raises MessageUndeliverable: nobody is there, and it was mandatory
        :raises EngagedError: see Hub.check_may_wait
        """
        self.hub.check_may_wait()
        waiter = self.hub.waiter()
        entry = Outgoing(
            what,
            destination,
            compose,
            self.format,
            deadline,
            retries,
            settled,
            repeatable,
            waiter,
            mandatory,
        )
        self._submit(entry)
        try:
            while not entry.done:
                if not waiter.wait(deadline):
                    break
        finally:
            in_time = self._leave(entry)
        if not in_time:
            raise TimeoutError(self._late(entry))
        if entry.error is not None:
            raise entry.error

    def call(
        self,
        destination: Destination,
        compose: Compose,
        *,
        deadline: float,
        retries: int | None = None,
        settled: bool = False,
        monitor: float | None = None,
        mandatory: bool = False,
    ) -> Reply:
        """Send a request and wait for its reply.  May block until `deadline`.

        :param monitor: seconds without a heartbeat after which to give up
        :raises TimeoutError: at the deadline, saying what was waited for
        :raises MessageDeliveryFailure: as for send, and when the reply cannot come
        :raises EngagedError: see Hub.check_may_wait
        """
        self.hub.check_may_wait()
        waiter = self.hub.waiter()
        call = Call(
            "RPC call",
            destination,
            compose,
            self.format,
            deadline,
            retries,
            settled,
            False,
            waiter,
            mandatory,
            monitor=monitor,
        )
        if monitor is not None:
            # From now on, not from the sending: it may be long until that.
            call.monitor_deadline = self.hub.now() + monitor
        self._submit(call)
        silence = ""
        try:
            while not call.done:
                until = deadline
                if call.monitor_deadline is not None:
                    until = min(until, call.monitor_deadline)
                if not waiter.wait(until) and not call.done:
                    now = self.hub.now()
                    if now >= deadline:
                        break
                    # Heartbeats move the monitor's deadline without a wake.
                    beat = call.monitor_deadline
                    if beat is not None and now >= beat:
                        silence = f"no heartbeat from the server for {monitor} s"
                        break
        finally:
            in_time = self._leave(call)
        if not in_time:
            raise TimeoutError(self._late(call, silence))
        if call.error is not None:
            raise call.error
        return typing.cast(Reply, call.reply)

    def post(
        self,
        what: str,
        destination: Destination,
        compose: Compose,
        *,
        deadline: float,
        retries: int | None = None,
        settled: bool = False,
        urgent: bool = True,
    ) -> None:
        """Send without waiting: for replies.  A failure is logged.  Does not block.

        :param urgent: write it now; else with whatever else is written before long
        """
        post = functools.partial(
            self._post, what, destination, compose, deadline, retries, settled, urgent
        )
        if self.hub.engaged():
            self.hub.call_inside(post)
        else:
            post()

    def _post(
        self,
        what: str,
        destination: Destination,
        compose: Compose,
        deadline: float,
        retries: int | None,
        settled: bool,
        urgent: bool,
    ) -> None:
        entry = Outgoing(
            what,
            destination,
            compose,
            self.format,
            deadline,
            retries,
            settled,
            False,
            None,
        )
        entry.on_failure = self._post_failed
        self._submit(entry, urgent)
        if not entry.done:
            with self.hub.lock:
                self._unattended.append(entry)
                if self._sweep is None:
                    self._sweep = self.hub.call_at(
                        self.hub.now() + SWEEP_INTERVAL, self._sweep_unattended
                    )

    def _post_failed(self, error: Exception) -> None:
        self.notices.add(notices.NOT_SENT, reason=error)

    def subscribe(
        self,
        sources: typing.Callable[[addressing.Addresser], list[addressing.Node]],
        window: int,
        on_message: typing.Callable[[Inlet, Delivery, memoryview], None],
    ) -> Subscription:
        """Receive from `sources` from now on, whatever becomes of the connection.

        Does not wait; see Subscription.wait_attached.
        """
        with self.hub.lock:
            subscription = Subscription(self, sources, window, on_message)
            self._take_on(subscription)
            return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Detach a subscription's links, over whichever connection they are."""
        with self.hub.lock:
            messenger = subscription.messenger
            messenger._subscriptions.pop(subscription, None)
            subscription.close()
            messenger.flush()

    def close(self) -> None:
        """Close the connection in order and let go of everything.  May block for
        CLOSE_TIMEOUT.  What waits fails.  Idempotent.  See Hub.check_may_wait."""
        if self.hub.engaged():
            self.hub.call_inside(lambda: self.hub.spawn(self.close))
            return
        waiter = self.hub.waiter()
        with self.hub.lock:
            if self.state is State.CLOSED:
                return
            self.state = State.CLOSED
            further, self._further = self._further, None
            self._stop_timers()
            if self._attempt is not None:
                self._attempt.cancel()
                self._attempt = None
            reason = "the transport was cleaned up"
            for outlet in self._outlets.values():
                outlet.fail_all(reason)
            self._outlets.clear()
            self.replies.fail_all(reason)
            self.replies.close()
            for subscription in self._subscriptions:
                subscription.close()
                subscription._wake()
            self._subscriptions.clear()
            self._unattended.clear()
            # All sessions end now: nothing is left to wait for.
            for inlet in list(self.leaving):
                inlet.remove()
            pump = self._pump
            self.management = None
            if pump is not None and not pump.closed:
                self._closed_waiters.append(waiter)
                assert self.engine is not None
                self.engine.close()
                self.hub.flush_now(pump)
        try:
            if further is not None:
                further.close()
            if pump is not None and not pump.closed:
                waiter.wait(self.hub.now() + CLOSE_TIMEOUT)
        finally:
            # Also when a time-out or kill of the application throws us out.
            self._put_away(pump)

    def forget(self) -> bool:
        """Close before long, for nobody can ask for anything any more.  From anywhere.
        Returns False if there is nothing to be closed."""
        hub = self.hub
        if self.state is State.CLOSED or hub.inherited:
            return False
        hub.call_inside(lambda: hub.spawn(self.close))
        return True

    def _put_away(self, pump: Pump | None) -> None:
        """Let go of all that is left after the goodbye, or without one."""
        with self.hub.lock:
            if pump is not None:
                pump.close()
            engine, self.engine = self.engine, None
            if engine is not None:
                engine.destroy()
            self._empty_bin()  # the hub's timers may go with its last user
            self.notices.close()
            if self._revive in self.hub.revivers:
                self.hub.revivers.remove(self._revive)
        self.hub.release()
        if self._guarded:
            GUARD.release()
        logs.drain()

    # -- inside: the hub's context or its lock

    def flush(self) -> None:
        """Have what the engine holds written."""
        if self._pump is not None:
            self.hub.flush_now(self._pump)

    def flush_soon(self) -> None:
        """Have what the engine holds written before long."""
        if self._pump is not None:
            self.hub.flush_soon(self._pump)

    def flush_late(self) -> None:
        """Have what the engine holds written, which nobody waits for."""
        if self._pump is not None:
            self.hub.flush_late(self._pump)

    def _take_on(self, subscription: Subscription) -> None:
        self._subscriptions[subscription] = None
        if self.state is State.UP:
            subscription.attach()
        else:
            self._wanted()

    def has_room(self, links: int) -> bool:
        """Whether so many more links of subscriptions fit into this connection.

        If there are none yet, they always do, as they would fit nowhere else either.
        """
        return not self.links_held or self.links_held + links <= self._room

    @property
    def _room(self) -> int:
        assert self.engine is not None
        return self.engine.room_for_links(KEPT_SESSIONS)

    @property
    def overfull(self) -> bool:
        """Whether subscriptions were given more links than fit: how many the peer takes
        in a session is known only after the first of them."""
        return self.links_held > self._room

    def pass_on(self, subscription: Subscription) -> None:
        """Have this one received over another connection."""
        del self._subscriptions[subscription]
        if self._further is None:
            LOG.info(
                "%s links of subscriptions are all that one connection to %s holds: "
                "connecting once more",
                self.links_held,
                self._where(),
            )
            self._further = self._make_further()
        subscription.messenger = self._further
        self._further._take_on(subscription)

    def displace(self, subscription: Subscription) -> bool:
        """There was no room for one of its links after all.  Returns whether it is
        received over another connection from now on."""
        if len(subscription.inlets) >= self.links_held:
            return False
        subscription.detach()
        self.pass_on(subscription)
        return True

    def send_pending(self) -> None:
        """The reply address is known: calls may leave."""
        for outlet in list(self._outlets.values()):
            if outlet.pending:
                outlet.send_pending()

    def _submit(self, entry: Outgoing, urgent: bool = True) -> None:
        with self.hub.lock:
            if self.state is State.CLOSED:
                entry.failed("the transport was cleaned up")
                return
            outlet = self._outlets.get(entry.destination)
            if outlet is None:
                outlet = Outlet(self, entry.destination)
                self._outlets[entry.destination] = outlet
            try:
                if entry.is_call and self.replies.address is None:
                    self.replies.attach()
                outlet.submit(entry)
                if self.state is not State.UP:
                    self._wanted()
                elif urgent:
                    self.flush()
                else:
                    self.flush_soon()
            except BaseException as exc:
                if interrupts.struck(exc):
                    self.hub.cut_off(exc)
                raise

    def _leave(self, entry: Outgoing) -> bool:
        """Its sender waits no longer.  Returns whether it was done; if not, it is
        taken back as far as that goes, and whatever becomes of it goes unheard."""
        if entry.done and entry.error is None:
            return True
        with self.hub.lock:
            if entry.is_call:
                self.replies.forget(typing.cast(Call, entry))
            if entry.done:
                return True
            entry.done = True
            outlet = self._outlets.get(entry.destination)
            if outlet is not None:
                outlet.withdraw(entry)
                if not entry.last_reason:
                    entry.last_reason = outlet.refusal
            return False

    def _late(self, entry: Outgoing, silence: str = "") -> str:
        """What was waited for in vain.

        :param silence: a server that was silent for too long, if that is the reason
        """
        reason = entry.last_reason
        if not reason and self.state is not State.UP:
            reason = self.last_failure or f"{self._where()}: {self._progress()}"
        if not reason and entry.is_call and self.replies.address is None:
            reason = self.replies.refusal
        if not reason:
            if entry.is_call and entry.attempts:
                reason = silence or "no reply"
            elif entry.attempts:
                reason = "no outcome from the message bus"
            else:
                reason = "the message bus gives no credit: is there a consumer?"
        return f"{entry.what} to {entry.destination} timed out: {reason}"

    def _sweep_unattended(self) -> None:
        self._sweep = None
        now = self.hub.now()
        left = []
        for entry in self._unattended:
            if entry.done:
                continue
            if entry.deadline is not None and entry.deadline <= now:
                outlet = self._outlets.get(entry.destination)
                if outlet is not None:
                    outlet.withdraw(entry)
                entry.failed(self._late(entry))
            else:
                left.append(entry)
        self._unattended = left
        if left:
            self._sweep = self.hub.call_at(now + SWEEP_INTERVAL, self._sweep_unattended)

    # -- connecting

    def _wanted(self) -> None:
        """Somebody needs the connection."""
        if self.state is State.IDLE:
            self._connect()

    def _connect(self) -> None:
        self._timer = None
        self.state = State.CONNECTING
        host = self._hosts.current
        LOG.debug("connecting to %s", host)
        self._attempt_until = self.hub.now() + self._patience
        security = self._security
        secured: dict[str, typing.Any] = {}
        if security.tls:
            secured = {
                "context": security.context,
                "server_name": security.server_name(host, self._virtual_host),
            }
        self._attempt = connect.Attempt(
            self.hub,
            host.hostname,
            host.port,
            self._attempt_until,
            self._connected,
            **secured,
        )

    def _progress(self) -> str:
        """How far the first attempt to connect has come."""
        if self.state is State.OPENING:
            assert self._pump is not None
            return self._explain("connected, and no answer to the Open frame yet")
        stage = getattr(self._attempt, "stage", "not connected")
        return f"still {stage}"

    def _connected(self, stream: Stream | None, reason: str | None) -> None:
        self._attempt = None
        if self.state is not State.CONNECTING:
            if stream is not None:
                stream.close()
            return
        if stream is None:
            self._lost(f"cannot connect: {reason}")
            return
        self.state = State.OPENING
        self._refused_links = 0
        self._timer = self.hub.call_at(self._attempt_until, self._opening_timed_out)
        self.engine = self._new_engine()
        self._pump = Pump(self.hub, stream, self.engine, self._pump_closed)
        self.engine.open()
        self._pump.start()

    def _new_engine(self) -> Connection:
        options = self.options
        host = self._hosts.current
        command = os.path.basename(sys.argv[0]) or "python"
        prefix = options.container_name or command
        sasl = None
        if host not in self._without_sasl:
            sasl = self._security.login(host)
            self._security.warn_of_plain(host, sasl)
        return Connection(
            # Names are made when they are needed: after a fork they differ.
            f"{prefix}.{os.getpid()}.{uuid.uuid4().hex}",
            self,
            hostname=self._hostname(),
            properties={
                "process": command,
                "pid": os.getpid(),
                "node": platform.node() or "unknown",
            },
            idle_timeout=options.idle_timeout,
            channel_max=CHANNEL_MAX,
            links_per_session=self._links_per_session,
            sasl=sasl,
            trace=options.trace,
        )

    def _hostname(self) -> str | None:
        """What the Open frame asks for as virtual host."""
        vhost = self._virtual_host
        if vhost and self._hosts.current in self._vhost_prefixed:
            return f"vhost:{vhost}"
        return vhost if vhost and not self.options.pseudo_vhost else None

    def _explain(self, reason: str) -> str:
        """Why no Open frame came, from what the peer said in its place."""
        engine, pump = self.engine, self._pump
        if engine is None or pump is None:
            return reason
        host = self._hosts.current
        sasl = host not in self._without_sasl
        login = self._security.login(host)
        vhost = self._hostname()
        return diagnosis.opening_failed(
            reason,
            pump.greeting or b"",
            tls=self._security.tls,
            sasl=sasl,
            allowed=login.mechanisms.split(),
            outcome=engine.sasl_outcome,
            mechanism=engine.sasl_mechanism,
            user=login.username,
            vhost=vhost,
        )

    def _opening_failed(self, reason: str) -> str:
        """Explain, and choose what to try next time."""
        host = self._hosts.current
        before = self._without_sasl.pop(host, None)
        if before is not None:
            return f"{before}; without SASL: {self._explain(reason)}"
        pump = self._pump
        login = self._security.login(host)
        explained = self._explain(reason)
        if (
            pump is not None
            and not login.username
            and not self._security.sasl_wanted
            and diagnosis.wants_no_sasl(
                pump.greeting or b"", login.mechanisms.split()
            )
        ):
            # Nobody asked for a login, so none is lost: the predecessor would have
            # gone without SASL at once.
            self._without_sasl[host] = explained
        return explained

    def _opening_timed_out(self) -> None:
        self._timer = None
        if self._pump is not None:
            self._pump.abort(f"no answer to the Open frame in {self._patience:.0f} s")

    @property
    def host(self) -> Host:
        """The host that it is connected to, or tries."""
        return self._hosts.current

    def _where(self) -> str:
        host = str(self._hosts.current)
        return f"{host}/{self._virtual_host}" if self._virtual_host else host

    # the engine's handler

    def connection_opened(self, connection: Connection) -> None:
        """The peer has answered: choose addresses, restore all links."""
        if connection is not self.engine or self.state is not State.OPENING:
            return
        if self._wants_other_hostname(connection):
            return
        self.state = State.UP
        if self._pump is not None:
            self._pump.greeting = None
            if self._guarded and not self._pump.keep_alive():
                LOG.warning(
                    "heartbeat_guard does nothing over TLS, as to %s", self._where()
                )
        self._stop_timer()
        self._up_since = self.hub.now()
        self.last_failure = ""
        self._failures.clear()
        properties = connection.remote_properties
        self.bus = addressing.Bus(
            product=str(properties.get("product", "")),
            version=str(properties.get("version", "")),
            capabilities=connection.remote_offered_capabilities,
        )
        self.addresser = addressing.choose(
            self.options,
            self._default_exchange,
            self._virtual_host if self.options.pseudo_vhost else None,
            self.bus,
            self._policies,
        )
        self.format = self.addresser.format
        LOG.info(
            "connected to %s (%s %s), %s, login: %s",
            self._where(),
            self.bus.product or "a peer that does not say what it is",
            self.bus.version,
            "TLS" if self._security.tls else "no TLS",
            connection.sasl_mechanism or "none",
        )
        advice = self.addresser.advice
        if advice is not None and not self._advised:
            self._advised = True
            LOG.warning("%s (%s): %s", self._where(), self.bus, advice)
        self.management = self.addresser.dialect(connection, self.flush_soon)
        self.doubts = Doubts()
        self.watch = Watch(
            self.hub,
            self.bus.patience,
            connection,
            self.management,
            self._senders,
            self.flush,
        )
        if self.replies.waiting or any(
            entry.is_call
            for outlet in self._outlets.values()
            for entry in outlet.pending
        ):
            self.replies.attach()
        for subscription in list(self._subscriptions):
            subscription.attach()
        for outlet in list(self._outlets.values()):
            if outlet.pending:
                outlet.attach()
        self._schedule_maintenance()

    def _wants_other_hostname(self, connection: Connection) -> bool:
        """Whether the virtual host must be asked for in another way, which only now
        is known: then it connects once more."""
        host = self._hosts.current
        bus = addressing.Bus(str(connection.remote_properties.get("product", "")))
        if not self._virtual_host or host in self._vhost_prefixed:
            return False
        if not bus.has_vhost_prefix:
            return False
        self._vhost_prefixed.add(host)
        self.state = State.WAITING
        self._stop_timers()
        connection.close()
        self._discard_engine()
        self._timer = self.hub.call_at(self.hub.now(), self._connect)
        return True

    def connection_closed(
        self, connection: Connection, error: RemoteError | None
    ) -> None:
        """The peer closed the connection."""
        if connection is self.engine:
            self._lost(f"closed by the peer: {error or 'no reason given'}")

    def connection_failed(
        self, connection: Connection, error: ConnectionFailed
    ) -> None:
        """The connection broke."""
        if connection is self.engine:
            self._lost(str(error))

    def link_requested(self, connection: Connection, link: EngineLink) -> None:
        """No peer has business with a client's nodes."""
        link.reject("amqp:not-allowed", "this container has no nodes")
        self._refused_links += 1
        if self._refused_links > MAX_REFUSED_LINKS:
            connection.abort("the peer attaches links to us, a client, without end")

    def _pump_closed(self, pump: Pump) -> None:
        for waiter in self._closed_waiters:
            waiter.wake()
        if pump is self._pump and self.state in (State.UP, State.OPENING):
            self._lost("the connection was closed")

    def _lost(self, reason: str) -> None:
        """The connection is gone or could not be made: try again, if not closed."""
        if self.state in (State.CLOSED, State.WAITING):
            return
        was_up = self.state is State.UP
        where = self._where()
        # Links that went just before it need no line of their own.
        self.notices.drop(notices.LINK_CLOSED, notices.SUBSCRIPTION_CLOSED)
        if self.state is State.OPENING:
            reason = self._opening_failed(reason)
        self.state = State.WAITING
        host = self._hosts.current
        self._failures.pop(host, None)
        self._failures[host] = f"{where}: {reason}"
        self.last_failure = "; ".join(reversed(self._failures.values()))
        self.addresser = None
        self.management = None
        self.leaving.clear()
        self._stop_timers()
        self._discard_engine()
        for subscription in self._subscriptions:
            subscription.connection_lost()
        for outlet in list(self._outlets.values()):
            outlet.connection_lost(self.last_failure)
            if not outlet.in_use:
                del self._outlets[outlet.destination]
        # After the outlets: what they keep for another attempt is not waited for.
        self.replies.connection_lost(self.last_failure)
        pause = self._backoff.next_pause(
            self.hub.now() - self._up_since if was_up else None
        )
        self._hosts.advance()
        LOG.warning(
            "%s %s: %s; trying %s in %.1f s",
            "lost the connection to" if was_up else "no connection to",
            where,
            reason,
            self._hosts.current,
            pause,
        )
        self._timer = self.hub.call_at(self.hub.now() + pause, self._connect)

    def _revive(self) -> None:
        """See Hub.cut_off: whatever the state, and however much of what led to it was
        done, something drives what comes next."""
        if self._discarded:
            if self._bin_timer is not None:
                self._bin_timer.cancel()
            self._bin_timer = self.hub.call_at(self.hub.now(), self._empty_bin)
        if self.state in (State.IDLE, State.CLOSED):
            return
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        reason = "what a signal handler raised interrupted the connection's work"
        if self._pump is not None:
            self._pump.abort(reason)
        if self.state is State.WAITING:
            self.state = State.CONNECTING  # what led to it may have been cut off, too
        self._lost(reason)

    def _discard_engine(self) -> None:
        """Close the stream and free the engine, once it is not in use any more."""
        engine, self.engine = self.engine, None
        pump, self._pump = self._pump, None
        if engine is None:
            return
        self._links_per_session = engine.links_per_session

        # Not from within one of its own callbacks.
        self._discarded.append((engine, pump))
        if self._bin_timer is None:
            self._bin_timer = self.hub.call_at(self.hub.now(), self._empty_bin)

    def _empty_bin(self) -> None:
        if self._bin_timer is not None:
            self._bin_timer.cancel()
            self._bin_timer = None
        while self._discarded:
            engine, pump = self._discarded.pop(0)
            if pump is not None:
                pump.flush()
                pump.close()
            engine.destroy()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _senders(self) -> list[Sender]:
        """The links that outlets send by."""
        links = [outlet.link for outlet in self._outlets.values()]
        return [link for link in links if link is not None]

    def _stop_timers(self) -> None:
        self._stop_timer()
        if self.watch is not None:
            self.watch.stop()
            self.watch = None
        for timer in (self._maintenance, self._sweep):
            if timer is not None:
                timer.cancel()
        self._maintenance = self._sweep = None
        if self._unattended and self.state is not State.CLOSED:
            self._sweep = self.hub.call_at(
                self.hub.now() + SWEEP_INTERVAL, self._sweep_unattended
            )

    # -- maintenance

    def _schedule_maintenance(self) -> None:
        self._maintenance = self.hub.call_at(
            self.hub.now() + self.options.default_sender_link_timeout / 2,
            self._detach_idle,
        )

    def _detach_idle(self) -> None:
        """Detach sender links that were not used for a while."""
        self._detach_unused(
            self.hub.now() - self.options.default_sender_link_timeout
        )
        self._schedule_maintenance()

    def _detach_unused(self, since: float) -> bool:
        """Detach those that were not used since this instant; returns whether there
        were any."""
        unused = [
            outlet
            for outlet in self._outlets.values()
            if outlet.last_used <= since and not outlet.in_use
        ]
        for outlet in unused:
            outlet.close()
            del self._outlets[outlet.destination]
        self.flush()
        return bool(unused)

    def make_room(self) -> bool:
        """The connection holds no further link.  Returns whether some that are not in
        use were detached for one."""
        return self._detach_unused(self.hub.now())
