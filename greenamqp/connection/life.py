# SPDX-License-Identifier: Apache-2.0
"""One connection to the message bus, made again whenever it was lost.

The table of its states is in the package.  The owner hears of it by :class:`Owner`.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import typing

from greenamqp import chance, interrupts
from greenamqp.connection import connect, diagnosis
from greenamqp.connection.diagnosis import Interrupted, Lasting
from greenamqp.connection.failover import Backoff, Host, Hosts
from greenamqp.connection.guard import GUARD
from greenamqp.connection.pump import Pump, Stream
from greenamqp.connection.security import Security
from greenamqp.connection.state import State
from greenamqp.connection.tls import TlsStream
from greenamqp.engine import (
    LINKS_PER_SESSION,
    Connection,
    ConnectionFailed,
    Link,
    RemoteError,
    client_connection,
)
from greenamqp.hubs import Countdown, Hub, Steps, Waiter

# Both rooms above the engine log by this name: an operator reads one story.
LOG = logging.getLogger("greenamqp.client")

# Seconds for one attempt: to connect, to shake hands, to exchange Open frames.
CONNECT_TIMEOUT = 30.0

# The same where there are other hosts to try: a sender that waits for 30 seconds, as it
# does by default, gets past two hosts that are silent.
CONNECT_TIMEOUT_OF_MANY = 10.0

# Seconds until the next attempt after a connection that something at this end cut off,
# which says nothing of its host.
INTERRUPTED_PAUSE = 0.1

# Why there is no connection where nobody listens.
REFUSED = os.strerror(errno.ECONNREFUSED)

# The highest channel of a connection. Our own links share sessions, or have one each
# where a bus needs that; a peer that begins all of these costs us some 8 MB.
CHANNEL_MAX = 2047

# No bus attaches links to its clients. Each one that is refused and then left half open
# costs some 4 kB, so a peer that goes on with it is left.
MAX_REFUSED_LINKS = 100

# Seconds that closing() waits for the peer's Close.
CLOSE_TIMEOUT = 2.0


class Owner(typing.Protocol):
    """Who is told.  Hub's context or lock."""

    def connection_up(self, engine: Connection) -> None:
        """The peer has opened the connection."""

    def connection_lost(self, reason: str) -> None:
        """It is gone, or an attempt to make it failed; another one follows.

        :param reason: of each host that was tried since it was up and lasted, the
            latest first
        """


class CannotConnect(Exception):
    """No host of the transport URL can be used, and waiting does not help: credentials
    that are refused, a certificate that is not trusted, an unknown virtual host,
    another protocol.  The text says what it is, for each host."""


class BusConnection:
    """See the module.  Hub's context or lock, but for `closing`.

    :param hub: does the waiting
    :param hosts: where to connect to
    :param options: the group of options
    :param virtual_host: of the transport URL, or None
    :param has_vhost_prefix: whether a peer of this product wants a virtual host to be
        asked for as ``vhost:NAME``
    :param owner: is told when it is up and when it is lost
    :param patience: seconds for one attempt, None: CONNECT_TIMEOUT, or where there are
        several hosts CONNECT_TIMEOUT_OF_MANY
    :ivar stages: what the latest attempt was at, for people, each with the instant at
        which that began; the last of one that succeeded is ``up``
    """

    def __init__(
        self,
        hub: Hub,
        hosts: typing.Sequence[Host],
        options: typing.Any,
        virtual_host: str | None,
        has_vhost_prefix: typing.Callable[[str], bool],
        owner: Owner,
        patience: float | None = None,
    ) -> None:
        self.hub = hub
        self.options = options
        self.state = State.IDLE
        self.engine: Connection | None = None
        #: Why there is no connection, for those who time out meanwhile: of each host
        #: that was tried since there was one that lasted, the latest first.
        self.last_failure = ""
        self._owner = owner
        self._has_vhost_prefix = has_vhost_prefix
        self._failures: dict[Host, str] = {}
        self._virtual_host = virtual_host
        self._hosts = Hosts(hosts)
        self._every_host = frozenset(hosts)
        self._security = Security(options)
        # Hosts that want "vhost:" before the name of a virtual host.
        self._vhost_prefixed: set[Host] = set()
        # Those of them of which that is not known: they left without a word when they
        # were asked without it, each with why.
        self._vhost_guessed: dict[Host, str] = {}
        # Hosts that want no SASL layer, each with what it answered to one.
        self._without_sasl: dict[Host, str] = {}
        self._refused_links = 0
        self._backoff = Backoff(
            len(hosts),
            options.connection_retry_interval,
            options.connection_retry_backoff,
            options.connection_retry_interval_max,
        )
        # As the last peer said.
        self._links_per_session = LINKS_PER_SESSION
        self._pump: Pump | None = None
        self._attempt: connect.Attempt | None = None
        # Until the next attempt, or the end of the time for the Open frame.
        self._timer = Countdown(hub)
        self._closed_waiter: Waiter | None = None
        # Engines and streams that were given up, to be let go of before long.
        self._discarded: list[tuple[Connection, Pump | None]] = []
        self._next_discard = Countdown(hub)
        # When the connection came up.
        self._up_since = 0.0
        self._came_up = 0
        # Since when it is wanted and not up, and for how long it was before.
        self._down_since: float | None = None
        #: Whether the latest one that was up ended as its host was silent.
        self.after_silence = False
        self._down_before = 0.0
        if patience is None:
            patience = CONNECT_TIMEOUT if len(hosts) == 1 else CONNECT_TIMEOUT_OF_MANY
        self._patience = patience
        self.stages: list[tuple[str, float]] = []
        # Seconds of silence after which the peer counts as lost.
        self._idle_timeout = float(options.idle_timeout)
        silent = options.silent_host_timeout
        if len(hosts) > 1 and silent and silent < self._idle_timeout:
            # The peer is told, and sends an empty frame more often than that, also
            # where it takes nothing from those who publish: an alarm of RabbitMQ's is
            # no reason to go elsewhere, as it holds for the whole cluster.
            self._idle_timeout = float(silent)
        # When the attempt that is under way counts as failed.
        self._attempt_until = 0.0
        # Of each host the addresses that were connected to in vain, one after another,
        # and whether it has others.
        self._avoided: dict[Host, set[typing.Any]] = {}
        self._has_others = False
        self._guarded = bool(options.heartbeat_guard)
        if self._guarded:
            GUARD.acquire()
        hub.acquire()
        hub.revivers.append(self._revive)

    # -- for the owner

    @property
    def host(self) -> Host:
        """The host that it is connected to, or tries."""
        return self._hosts.current

    @property
    def tls(self) -> TlsStream | None:
        """The stream that it is over, where that is TLS."""
        stream = self._pump.stream if self._pump is not None else None
        return stream if isinstance(stream, TlsStream) else None

    @property
    def where(self) -> str:
        """That host and the virtual host, for messages to people."""
        host = str(self._hosts.current)
        return f"{host}/{self._virtual_host}" if self._virtual_host else host

    def why_down(self) -> str:
        """Why it is not up: the failures, or how far the first attempt has come."""
        if self.hub.ended:
            return f"{self.where}: the asyncio loop that it belongs to is closed"
        return self.last_failure or f"{self.where}: {self._progress()}"

    @property
    def exhausted(self) -> bool:
        """Whether every host was tried in vain since it was up, in every way."""
        if self._without_sasl or self._vhost_guessed:
            return False
        if self._has_others:
            return False  # the next address may do
        return self._failures.keys() >= self._every_host

    @property
    def hopeless(self) -> CannotConnect | None:
        """Why there will be no connection before somebody changes something at this end
        or the other; None: there may be.  It is tried again all the same."""
        if self.state is not State.UP and self.exhausted:
            if all(isinstance(text, Lasting) for text in self._failures.values()):
                return CannotConnect(self.last_failure)
        return None

    def describe(self) -> dict[str, typing.Any]:
        """See :func:`greenamqp.describe`."""
        state = State.CLOSED if self.hub.ended else self.state
        up = state is State.UP
        engine = self.engine if up else None
        return {
            "host": str(self.host),
            "virtual_host": self._virtual_host,
            "state": state.value,
            "up_for": self.hub.now() - self._up_since if up else None,
            "came_up": self._came_up,
            "sent": engine.sent if engine is not None else None,
            "received": engine.received if engine is not None else None,
            "time_down": self._time_down,
            "why_down": "" if up else self.why_down(),
        }

    @property
    def _time_down(self) -> float:
        """For how long it was wanted and not up, all in all.  Seconds."""
        if self._down_since is None:
            return self._down_before
        return self._down_before + self.hub.now() - self._down_since

    def wanted(self) -> None:
        """Somebody needs the connection."""
        if self.state is State.IDLE:
            self._connect()

    def catch_up(self) -> None:
        """Before something is sent: see :meth:`Pump.catch_up`."""
        if self._pump is not None:
            self._pump.catch_up()

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

    def leave(self, reason: str) -> None:
        """It is of no use to the owner: make another one, to the next host where there
        are several.  Not from a callback of the engine."""
        if self.state is State.UP:
            assert self.engine is not None
            self.engine.close()
            self._lost(reason)

    def begin_close(self, waiter: Waiter) -> None:
        """Say goodbye to the peer; nothing is told to the owner any more.

        :param waiter: woken when the peer has answered
        """
        self._timer.cancel()
        pump = self._pump
        if pump is not None and not pump.closed:
            self._closed_waiter = waiter
            assert self.engine is not None
            self.engine.close()
            self.hub.flush_now(pump)

    def stop(self) -> None:
        """It is wanted no longer: no attempt goes on, and none begins."""
        self.state = State.CLOSED
        self._timer.cancel()
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None

    def closing(self) -> Steps[None]:
        """After `begin_close`: wait for the peer's goodbye, CLOSE_TIMEOUT at the most.
        Without the hub's lock."""
        waiter, pump = self._closed_waiter, self._pump
        if waiter is not None and pump is not None and not pump.closed:
            yield waiter, self.hub.now() + CLOSE_TIMEOUT

    def put_away(self) -> None:
        """Let go of all that is left after the goodbye, or without one."""
        if self._pump is not None:
            self._pump.close()
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.destroy()
        self._empty_bin()  # the hub's timers may go with its last user
        if self._revive in self.hub.revivers:
            self.hub.revivers.remove(self._revive)

    def release(self) -> None:
        """After `put_away`, without the hub's lock: the hub may stop."""
        self.hub.release()
        if self._guarded:
            GUARD.release()

    # -- attempts

    def _connect(self) -> None:
        if self.state not in (State.IDLE, State.WAITING):
            return  # a second timer: a signal handler raised before the first was known
        self.state = State.CONNECTING
        if self._down_since is None:
            self._down_since = self.hub.now()
        host = self._hosts.current
        LOG.debug("connecting to %s", host)
        self._attempt_until = self.hub.now() + self._patience
        security = self._security
        secured: dict[str, typing.Any] = {}
        if security.gets_password(host):
            secured["password"] = lambda: security.password(host)
        if security.tls:
            secured["context"] = security.context
            secured["server_name"] = security.server_name(host, self._virtual_host)
        self._attempt = connect.Attempt(
            self.hub,
            host.hostname,
            host.port,
            self._attempt_until,
            self._connected,
            avoid=self._avoided.setdefault(host, set()),
            **secured,
        )
        self.stages = self._attempt.stages

    def _progress(self) -> str:
        """How far the first attempt to connect has come."""
        if self.state is State.OPENING:
            assert self._pump is not None
            return self._explain("connected, and no answer to the Open frame yet")
        stage = self._attempt.stage if self._attempt is not None else "not connected"
        return f"still {stage}"

    def _connected(self, stream: Stream | None, reason: str | None) -> None:
        attempt, self._attempt = self._attempt, None
        self._has_others = False
        if self.state is not State.CONNECTING:
            if stream is not None:
                stream.close()
            return
        if stream is None:
            text = f"cannot connect: {reason}"
            refused = reason == REFUSED
            self._lost(diagnosis.as_lasting(reason or "", text), refused)
            return
        if attempt is not None:
            self._avoided[self._hosts.current].add(attempt.address)
            self._has_others = attempt.has_others
        try:
            engine = self._new_engine(attempt.password if attempt else None)
        except Exception as exc:
            stream.close()
            if interrupts.struck(exc):
                raise
            self._lost(f"cannot connect: {exc}")
            return
        if self._has_others:
            soon = self.hub.now() + CONNECT_TIMEOUT_OF_MANY
            self._attempt_until = min(self._attempt_until, soon)
        self.state = State.OPENING
        self.stages.append(("opening", self.hub.now()))
        self._refused_links = 0
        self._timer.call_at(self._attempt_until, self._opening_timed_out)
        self.engine = engine
        self._pump = Pump(
            self.hub,
            stream,
            self.engine,
            self._pump_closed,
            self.options.idle_timeout,
        )
        self.engine.open()
        self._pump.start()

    def _new_engine(self, password: str | None) -> Connection:
        options = self.options
        host = self._hosts.current
        # What is no text in its name has no way into AMQP.
        command = os.path.basename(sys.argv[0]).encode(errors="replace").decode()
        command = command or "python"
        prefix = options.container_name or command
        sasl = None
        hostname = self._hostname()
        if host not in self._without_sasl:
            sasl = self._security.login(host, password)
            self._security.warn_of_plain(host, sasl)
            if self._security.ticket_wanted:
                # Cyrus SASL asks Kerberos for a ticket to what is said here.
                hostname = hostname or host.hostname.rstrip(".")
        return client_connection(
            # Names are made when they are needed: after a fork they differ.
            f"{prefix}.{self.hub.pid}.{chance.unique()}",
            self,
            hostname=hostname,
            properties={"process": command, **self.hub.identity()},
            idle_timeout=self._idle_timeout,
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
        explained = self._explain(reason)
        before = self._without_sasl.pop(host, None)
        if before is not None:
            text = f"{before}; without SASL: {explained}"
            return diagnosis.as_lasting(explained, text)
        before = self._vhost_guessed.pop(host, None)
        if before is not None:
            self._vhost_prefixed.discard(host)
            return diagnosis.as_lasting(explained, f"{before}: {explained}")
        pump, engine = self._pump, self.engine
        if self._may_want_prefix(engine):
            # RabbitMQ, whose default virtual host this user may not use.
            self._vhost_prefixed.add(host)
            explained += f"; asking for vhost:{self._virtual_host} instead"
            self._vhost_guessed[host] = explained
            return explained
        mechanism = engine.sasl_mechanism if engine is not None else None
        login = self._security.login(host)
        if (
            pump is not None
            and not login.username
            and not self._security.sasl_wanted
            # One that was refused is not made up for by going without.
            and (login.mechanisms or mechanism in (None, "none"))
            and diagnosis.wants_no_sasl(pump.greeting or b"", login.mechanisms.split())
        ):
            # Nobody asked for a login, so none is lost: the predecessor would have
            # gone without SASL at once.
            self._without_sasl[host] = explained
        return explained

    def _may_want_prefix(self, engine: Connection | None) -> bool:
        """Whether the peer has left after the login as it would not give what it took
        for its default virtual host: it says nothing then, and not who it is."""
        return (
            bool(self._virtual_host)
            and self._hosts.current not in self._vhost_prefixed
            and engine is not None
            and engine.sasl_outcome == diagnosis.SASL_OK
            and not engine.remote_opened
            and self.hub.now() < self._attempt_until  # else it is slow
        )

    def _opening_timed_out(self) -> None:
        if self._pump is not None and self.state is State.OPENING:
            self._pump.abort("no answer to the Open frame in time")

    # -- the engine's handler

    def connection_opened(self, connection: Connection) -> None:
        """The peer has answered."""
        if connection is not self.engine or self.state is not State.OPENING:
            return
        product = str(connection.remote_properties.get("product", ""))
        if self._wants_other_hostname(connection, product):
            return
        self.state = State.UP
        if self._pump is not None:
            self._pump.greeting = None
            if self._guarded and not self._pump.keep_alive():
                LOG.warning(
                    "heartbeat_guard does nothing over TLS, as to %s", self.where
                )
        self._timer.cancel()
        self._up_since = self.hub.now()
        self._came_up += 1
        self._down_before, self._down_since = self._time_down, None
        self.stages.append(("up", self._up_since))
        self.last_failure = ""
        self._avoided.clear()
        self._vhost_guessed.clear()
        self._has_others = False
        LOG.info(
            "connected to %s (%s %s), %s, login: %s",
            self.where,
            product or "a peer that does not say what it is",
            connection.remote_properties.get("version", ""),
            "TLS" if self._security.tls else "no TLS",
            connection.sasl_mechanism or "none",
        )
        self._owner.connection_up(connection)

    def _wants_other_hostname(self, connection: Connection, product: str) -> bool:
        """Whether the virtual host must be asked for in another way, which only now
        is known: then it connects once more."""
        host = self._hosts.current
        wants_prefix = self._has_vhost_prefix(product)
        if not self._virtual_host or wants_prefix is (host in self._vhost_prefixed):
            return False
        if wants_prefix:
            self._vhost_prefixed.add(host)
        else:
            self._vhost_prefixed.discard(host)  # a guess was wrong
        self._vhost_guessed.pop(host, None)
        self._avoided.clear()
        self.state = State.WAITING
        connection.close()
        self._discard_engine()
        self._timer.call_in(0, self._connect)
        return True

    def connection_closed(
        self, connection: Connection, error: RemoteError | None
    ) -> None:
        """The peer closed the connection."""
        if connection is self.engine:
            condition = error.condition if error is not None else ""
            self._lost(diagnosis.closed_by_peer(condition, error))

    def connection_failed(
        self, connection: Connection, error: ConnectionFailed
    ) -> None:
        """The connection broke."""
        if connection is self.engine:
            self._lost(error.reason)

    def link_requested(self, connection: Connection, link: Link) -> None:
        """No peer has business with a client's nodes."""
        link.reject("amqp:not-allowed", "this container has no nodes")
        self._refused_links += 1
        if self._refused_links > MAX_REFUSED_LINKS:
            connection.abort("the peer attaches links to us, a client, without end")

    def _pump_closed(self, pump: Pump) -> None:
        if self._closed_waiter is not None:
            self._closed_waiter.wake()
        if pump is self._pump and self.state in (State.UP, State.OPENING):
            self._lost("the connection was closed")

    def _lost(self, reason: str, refused: bool = False) -> None:
        """The connection is gone or could not be made: try again, if not closed.

        :param refused: whether nobody listens at that host
        """
        if self.state in (State.CLOSED, State.WAITING):
            return
        was_up = self.state is State.UP
        where = self.where
        interrupted = isinstance(reason, Interrupted)
        guessed = len(self._vhost_guessed)
        if self.state is State.OPENING and not interrupted:
            reason = self._opening_failed(reason)
        host = self._hosts.current
        lasted = self.hub.now() - self._up_since if was_up else None
        if lasted is not None and lasted >= self.options.connection_retry_interval:
            # Not before: some open a connection to say that they refuse it.
            self._failures.clear()
            # The next attempt is made otherwise: with a token that is new, say.
            reason = str(reason)
        self._failures.pop(host, None)
        self._failures[host] = diagnosis.as_lasting(reason, f"{where}: {reason}")
        self.last_failure = "; ".join(reversed(self._failures.values()))
        if interrupted:
            pause = INTERRUPTED_PAUSE
        elif self._has_others:
            # A name with several addresses: the next of them, at once.
            pause = 0.0
        elif len(self._vhost_guessed) > guessed:
            pause = 0.0  # the same one, asked otherwise
        else:
            pause = self._backoff.next_pause(lasted, refused)
            self._avoided.pop(host, None)
            self._hosts.advance()
        # First of all: whatever interrupts the rest, somebody goes on.
        self._timer.call_in(pause, self._connect)
        self.state = State.WAITING
        if was_up:
            self._down_since = self.hub.now()
            self.after_silence = self.engine is not None and self.engine.silent
        self._discard_engine()
        self._owner.connection_lost(self.last_failure)
        LOG.warning(
            "%s %s: %s; trying %s in %.1f s",
            "lost the connection to" if was_up else "no connection to",
            where,
            reason,
            self._hosts.current,
            pause,
        )

    def _revive(self) -> None:
        """See Hub.cut_off: whatever the state, and however much of what led to it was
        done, something drives what comes next."""
        if self._discarded:
            self._next_discard.call_in(0, self._empty_bin)
        if self.state in (State.IDLE, State.CLOSED):
            return
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        reason = Interrupted("what a signal handler raised")
        if self._pump is not None:
            self._pump.abort(reason)
        if self.state is State.WAITING:
            self.state = State.CONNECTING  # what led to it may have been cut off, too
        self._lost(reason)

    def _discard_engine(self) -> None:
        """Close the stream and free the engine, once it is not in use any more."""
        engine, pump = self.engine, self._pump
        if engine is None:
            self._pump = None
            return
        self._links_per_session = engine.links_per_session
        # Not from within one of its own callbacks.  And without a call, so that no
        # signal handler comes in between.
        self._discarded += [(engine, pump)]
        self.engine = self._pump = None
        if not self._next_discard.runs:
            self._next_discard.call_in(0, self._empty_bin)

    def _empty_bin(self) -> None:
        self._next_discard.cancel()
        while self._discarded:
            engine, pump = self._discarded[0]
            if pump is not None:
                pump.flush()
                pump.close()
            del self._discarded[0]
            engine.destroy()
