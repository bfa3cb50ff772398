# SPDX-License-Identifier: Apache-2.0
"""One AMQP 1.0 connection, either end of it: bytes in, bytes out, deadline out.

No socket, no clock, no lock, no thread and no green thread is touched here: who
owns the engine moves the bytes and says what time it is.  It must not be entered
by two threads at once, nor re-entered from one of its own callbacks except through
links' methods.  The owner's round is::

    n = conn.receive_data(view)    # as often as it takes to feed all bytes
    conn.process(now)              # callbacks happen here, and only here
    n = conn.data_to_send(buffer)  # until it returns 0
    conn.data_sent(written)
    ... and again by conn.deadline at the latest.

Connection, session and link life cycle and SASL are pyngus's and proton's work;
deliveries and credit bypass them (:mod:`greenamqp.engine.capi`).  pyngus opens a
session for each link, which meets the limit of 64 sessions of some brokers; here
links share sessions, up to :data:`LINKS_PER_SESSION` in each or as many as the peer
takes.  A session or link too many makes proton stand still without an event, so they
are counted here.
"""

from __future__ import annotations

import dataclasses
import logging
import typing

import proton

from greenamqp import interrupts
from greenamqp.engine import capi
from greenamqp.engine.begin import BeginReader
from greenamqp.engine.capi import (
    pn_collector_peek,
    pn_collector_pop,
    pn_event_delivery,
    pn_event_link,
    pn_event_type,
    pn_transport_capacity,
    pn_transport_peek,
    pn_transport_pop,
    pn_transport_push,
)
from greenamqp.engine.errors import (
    ConnectionFailed,
    LinkLimitError,
    LocalProtocolError,
    RemoteError,
    RemoteProtocolError,
    SessionStalled,
    from_peer,
)
from greenamqp.engine.lifecycle import (
    ConnectionEvents,
    Lifecycle,
    Probe,
    ReceiverEvents,
    SenderEvents,
    Session,
    destroy_link,
    link_of,
    proton_link,
    remote_error,
    tell,
)
from greenamqp.engine.link import (
    Link,
    LinkState,
    Receiver,
    Sender,
    SettleMode,
    Terminus,
)

LOG = logging.getLogger(__name__)

lib = capi.lib
_from_buffer = capi.from_buffer

# proton gives a link a handle below 256 unless told otherwise, and RabbitMQ takes
# 256 links in a session; one is left free for a link that is still detaching.
LINKS_PER_SESSION = 255

# What we take in one frame.  Larger than proton's 16 kB so that a large message
# needs fewer frames, small enough that a peer cannot make us hold much.
MAX_FRAME_SIZE = 64 * 1024

# Bytes of an attach besides the names, at the least.
ATTACH_REST = 64

# Larger messages are refused.  Nothing in OpenStack comes near it; the bound keeps
# a peer from making us collect bytes without end.
MAX_MESSAGE_SIZE = 128 * 1024 * 1024

# Bytes of messages whose rest is still to come, over all links of a connection: a
# peer that begins large messages on many links and ends none is cut off there.
MAX_UNFINISHED = 2 * MAX_MESSAGE_SIZE

# How often at least time is looked at, as a share of an idle time-out: proton finds
# out only when asked that bytes have come or gone since it was last asked.  And who
# wonders how long time was not looked at knows it to this precision.  Less than four: a
# peer that keeps the connection alive speaks so often, as proton and RabbitMQ do, and
# time is looked at then; an idle process is not woken by a timer as well.
TICKS_PER_IDLE_TIMEOUT = 3.5

# How often at most time is looked at, whatever idle time-out a peer asks for: one
# that cannot wait so long for an empty frame closes the connection.  Seconds.
MIN_TICK = 0.02

_DELIVERY = lib.PN_DELIVERY
_LINK_FLOW = lib.PN_LINK_FLOW
_TRANSPORT = lib.PN_TRANSPORT
_LINK_INIT = lib.PN_LINK_INIT
_LINK_REMOTE_CLOSE = lib.PN_LINK_REMOTE_CLOSE
_LINK_REMOTE_DETACH = lib.PN_LINK_REMOTE_DETACH
_TRANSPORT_ERROR = lib.PN_TRANSPORT_ERROR
_NULL = capi.NULL
#: What proton calls a peer that was silent for longer than our idle time-out.
_SILENT = "local-idle-timeout expired"

_SomeLink = typing.TypeVar("_SomeLink", Sender, Receiver)


@dataclasses.dataclass(frozen=True)
class Sasl:
    """Which SASL mechanisms a client offers, and as whom.

    ``mechanisms`` is space separated, empty for proton's choice.  ``config_dir`` and
    ``config_name`` are Cyrus SASL's, where proton was built with it.
    """

    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    mechanisms: str = ""
    config_dir: str = ""
    config_name: str = ""


def has_cyrus_sasl() -> bool:
    """Whether proton was built with Cyrus SASL: without it, it knows ANONYMOUS,
    EXTERNAL and PLAIN."""
    return bool(proton.SASL.extended())


class ConnectionHandler(typing.Protocol):
    """What a connection tells its owner, always from inside ``process``."""

    def connection_opened(self, connection: Connection) -> None:
        """Both ends are open: links may be made, the peer's properties are known."""

    def connection_closed(
        self, connection: Connection, error: RemoteError | None
    ) -> None:
        """The peer closed the connection in order; the answer is on its way out.

        All links are detached, with their callbacks, before this is called.
        """

    def connection_failed(
        self, connection: Connection, error: ConnectionFailed
    ) -> None:
        """The connection broke.  All links are detached before this is called."""

    def link_requested(self, connection: Connection, link: Link) -> None:
        """The peer attaches a link: accept() or reject() it, now or later."""


@from_peer
def _check_condition(pn_link: typing.Any) -> None:
    """:raises RemoteProtocolError: what the peer says of why it detaches is nonsense"""
    _ = pn_link.remote_condition


class _Buffer:
    """A buffer that is kept, as a view for Python and a pointer for proton."""

    __slots__ = ("pointer", "view")

    def __init__(self, size: int) -> None:
        data = bytearray(size)
        self.view = memoryview(data)
        self.pointer = _from_buffer(data)


class Connection(ConnectionEvents):
    """One end of an AMQP 1.0 connection.

    :param container_id: this container's name; unique per connection, since some
        brokers name a link's node after it
    :param handler: who is told what happens
    :param server: True for the end that was connected to
    :param hostname: the Open frame's hostname: the virtual host, where the peer has
        such
    :param properties: connection properties of the Open frame
    :param idle_timeout: seconds of silence after which the peer counts as lost;
        0: never
    :param sasl: who logs in, and how; None: no SASL layer
    :param offered_capabilities: of the Open frame
    :param links_per_session: the most that are put into one, if it is known before the
        peer says it; see the attribute
    :param trace: let proton write every frame to the process's stderr; those of a
        login with a password are left out
    """

    def __init__(
        self,
        container_id: str,
        handler: ConnectionHandler,
        *,
        server: bool = False,
        hostname: str | None = None,
        properties: dict[str, typing.Any] | None = None,
        idle_timeout: float = 0,
        sasl: Sasl | None = None,
        offered_capabilities: tuple[str, ...] = (),
        max_frame_size: int = MAX_FRAME_SIZE,
        max_message_size: int = MAX_MESSAGE_SIZE,
        max_unfinished: int = MAX_UNFINISHED,
        channel_max: int | None = None,
        links_per_session: int = LINKS_PER_SESSION,
        trace: bool = False,
    ) -> None:
        self.handler = handler
        self.max_message_size = max_message_size
        self.max_unfinished = max_unfinished
        self.codec = capi.Codec()
        #: for the deliveries of all its links
        self.delivery_tag = capi.DeliveryTag()
        #: how many whole messages came, over all links
        self.received = 0
        #: How many links share a session: no more than the peer takes, once it has
        #: said that.
        self.links_per_session = min(links_per_session, LINKS_PER_SESSION)
        #: monotonic instant by which `process` must be called again, or None
        self.deadline: float | None = None
        self.opened = False
        self.failed: ConnectionFailed | None = None
        #: Whether the connection failed or is being closed, by either side.
        self.ended = False
        self._closing = False
        self._reported = False
        # What comes from then on has time looked at: an idle process is spared a timer.
        self._tick_from = 0.0
        self._links: dict[typing.Any, Sender | Receiver] = {}  # by pn_link_t *
        self._sessions: list[Session] = []  # that links may be put into
        self._spare: Session | None = None  # the latest by which the peer was asked
        self.sessions_alive: dict[Session, None] = {}  # all that proton holds
        self.session_count = 0
        self._link_count = 0
        self._doomed: list[typing.Any] = []
        self.sessions_over: list[Session] = []
        self.unfinished: dict[Link, int] = {}  # bytes of a message so far
        self._buffer = _Buffer(MAX_FRAME_SIZE)
        # The peer's answer to our first Begin; a server answers those of its clients.
        self._begin = None if server else BeginReader()
        options: dict[str, typing.Any] = {
            "x-server": server,
            "max-frame-size": max_frame_size,
            # The frames of a login hold its password.
            "x-trace-protocol": trace and (sasl is None or not sasl.password),
        }
        if hostname is not None:
            options["hostname"] = hostname
        if properties is not None:
            options["properties"] = properties
        if idle_timeout:
            options["idle-time-out"] = idle_timeout
        self._idle_timeout = idle_timeout
        self._trace_after_login = trace and not options["x-trace-protocol"]
        self.lifecycle = Lifecycle(self, container_id, options)
        self._transport = self.lifecycle.transport._impl
        self._collector = self.lifecycle.collector._impl
        if sasl is not None:
            self.log_in(sasl, sasl.mechanisms)
        if channel_max is not None:
            self.lifecycle.transport.channel_max = channel_max
        if offered_capabilities:
            self.lifecycle.connection.offered_capabilities = [
                proton.symbol(name) for name in offered_capabilities
            ]

    def log_in(self, sasl: Sasl, mechanisms: str) -> None:
        """As the parameter ``sasl``, with other mechanisms.  Only before `open`."""
        # This is what switches the layer on.
        connection, layer = self.lifecycle.connection, self.lifecycle.pn_sasl
        layer.allow_insecure_mechs = True
        if mechanisms:
            layer.allowed_mechs(mechanisms.upper())
        if sasl.username is not None:
            connection.user = sasl.username
        if sasl.password is not None:
            connection.password = sasl.password
        if sasl.config_dir:
            layer.config_path(sasl.config_dir)
        if sasl.config_name:
            layer.config_name(sasl.config_name)

    def await_open(self) -> None:
        """Take in what the peer says, its Open frame first; :meth:`open` answers."""
        self.lifecycle.bind()

    def open(self) -> None:
        """Begin: the protocol header, SASL and the Open frame go out."""
        self.lifecycle.open()

    def close(self, condition: str = "", description: str = "") -> None:
        """Close in order: links, then the connection.  Idempotent.

        The owner goes on moving bytes until `closed`.
        """
        if self._closing:
            return
        self._closing = self.ended = True
        for link in list(self._links.values()):
            link.close()
        self.lifecycle.close(
            proton.Condition(condition, description) if condition else None
        )

    # -- who the peer is

    @property
    @from_peer
    def remote_properties(self) -> dict[str, typing.Any]:
        """The connection properties of the peer's Open frame, keys as str."""
        given = self.lifecycle.remote_properties or {}
        return {str(key): value for key, value in given.items()}

    @property
    @from_peer
    def remote_container(self) -> str | None:
        """The peer's container id."""
        container: str | None = self.lifecycle.remote_container
        return container

    @property
    @from_peer
    def remote_hostname(self) -> str | None:
        """The hostname of the peer's Open frame: the virtual host it asks for."""
        hostname: str | None = self.lifecycle.remote_hostname
        return hostname

    @property
    @from_peer
    def remote_offered_capabilities(self) -> tuple[str, ...]:
        """The capabilities that the peer's Open frame offers."""
        offered = self.lifecycle.connection.remote_offered_capabilities
        return tuple(str(name) for name in offered) if offered else ()

    @property
    def remote_idle_timeout(self) -> float:
        """Seconds within which the peer wants to hear from us; 0: it does not care."""
        milliseconds: int = lib.pn_transport_get_remote_idle_timeout(self._transport)
        return milliseconds / 1000.0

    @property
    def silent(self) -> bool:
        """Whether it ended as the peer was silent for too long."""
        condition = capi.condition_of(lib.pn_transport_condition(self._transport))
        return condition is not None and condition[1] == _SILENT

    @property
    def remote_opened(self) -> bool:
        """Whether the peer's Open frame has come."""
        return bool(
            self.lifecycle.connection.state
            & (proton.Endpoint.REMOTE_ACTIVE | proton.Endpoint.REMOTE_CLOSED)
        )

    def set_idle_timeout(self, seconds: float) -> None:
        """As the parameter ``idle_timeout``.  Only before :meth:`open`."""
        self.lifecycle.transport.idle_timeout = seconds
        self._idle_timeout = seconds

    @property
    def idle_timeout(self) -> float:
        """Seconds: the shorter of both ends' idle time-outs; 0 if neither has one."""
        ours, theirs = self._idle_timeout, self.remote_idle_timeout
        return min(ours, theirs) if ours and theirs else ours or theirs

    @property
    def sent(self) -> int:
        """How many messages left, over all links."""
        return int(self.delivery_tag.number[0])

    @property
    def max_sessions(self) -> int:
        """How many sessions both ends allow at one time."""
        return int(lib.pn_transport_get_channel_max(self._transport)) + 1

    def room_for_links(self, kept: int) -> int:
        """How many links can share sessions, while `kept` sessions are left to others
        where the peer allows so many; not less than what one session holds."""
        return max(1, self.max_sessions - kept) * self.links_per_session

    @property
    def sasl_outcome(self) -> int | None:
        """proton's SASL outcome, None while there is none."""
        sasl = self.lifecycle.sasl
        return sasl.outcome if sasl is not None else None

    @property
    def sasl_mechanism(self) -> str | None:
        """The SASL mechanism that was chosen, None while there is none."""
        sasl = self.lifecycle.sasl
        return (sasl.mech or None) if sasl is not None else None

    # -- bytes

    def receive_data(self, data: typing.Any, size: int) -> int:
        """Feed up to `size` bytes from the start of `data`, a cffi pointer or a buffer.

        Returns how many were taken: feed the rest again, or the stream is corrupt.
        0 means that the connection takes no more; `process` then tells why.
        """
        if not isinstance(data, capi.ffi.CData):
            data = _from_buffer(data)
        taken = pn_transport_push(self._transport, data, size)
        if self._begin is not None and taken > 0:
            self._read_begin(capi.ffi.buffer(data, taken))
        if self._trace_after_login and self.sasl_outcome is not None:
            self._trace_after_login = False
            self.lifecycle.transport.trace(proton.Transport.TRACE_FRM)
        return taken if taken > 0 else 0

    def _read_begin(self, data: typing.Any) -> None:
        reader = self._begin
        assert reader is not None
        reader.feed(memoryview(data))
        if not reader.done:
            return
        self._begin = None
        limit = reader.max_links
        if limit is None or limit >= self.links_per_session:
            return
        self.links_per_session = limit
        most = max((len(session.endpoints) for session in self._sessions), default=0)
        if most > limit:
            # They went out before this was known, and the peer will not have them.
            self.fail(
                f"the peer takes {limit} links in a session; {most} were attached "
                "before it said so"
            )

    def receive_eof(self) -> None:
        """The peer will send no more bytes."""
        self.lifecycle.close_input()

    def data_to_send(self, buffer: typing.Any, size: int) -> int:
        """Copy up to `size` bytes that are to be written into `buffer`, a cffi
        pointer; returns how many, 0 if there are none now.  They stay in the engine
        until `data_sent`."""
        pending = pn_transport_peek(self._transport, buffer, size)
        return pending if pending > 0 else 0

    def data_sent(self, count: int) -> None:
        """`count` of the bytes that data_to_send gave are written."""
        pn_transport_pop(self._transport, count)

    def abort(self, reason: str) -> None:
        """The wire broke, for `reason`: the next `process` tells the handler."""
        self.fail(reason)

    @property
    def closed(self) -> bool:
        """Whether no byte will go either way any more."""
        return bool(lib.pn_transport_closed(self._transport))

    @property
    def finished(self) -> bool:
        """Whether all that was to be written is written, the Close included."""
        return bool(lib.pn_transport_pending(self._transport) < 0)

    # -- links

    def create_sender(
        self,
        target: Terminus,
        source: Terminus | None = None,
        *,
        name: str | None = None,
        settle_mode: SettleMode = SettleMode.MIXED,
        properties: dict[str, typing.Any] | None = None,
        own_session: bool = False,
    ) -> Sender:
        """Attach a link that sends to `target`; on_attached says when it is up.

        :param own_session: give it a session of its own, where a refusal would
            end the session and every link in it (RabbitMQ 3.10 and 4.0); if the peer
            allows no further session, it shares one.  See Link.share_session.
        :raises LinkLimitError: if the peer allows no further session or link
        :raises ValueError: there is no way to write these names to this peer
        """
        name = name or self._next_name("sender")
        self._check_names(name, source, target)
        endpoint = self._session(own_session).new_sender(name)
        link = Sender(self, endpoint)
        return self._create(
            link, SenderEvents(link), source, target, settle_mode, properties
        )

    def create_receiver(
        self,
        source: Terminus,
        target: Terminus | None = None,
        *,
        name: str | None = None,
        settle_mode: SettleMode = SettleMode.MIXED,
        properties: dict[str, typing.Any] | None = None,
        own_session: bool = False,
        beside: Link | None = None,
    ) -> Receiver:
        """Attach a link that receives from `source`; on_attached says when it is up.

        Parameters and errors as for create_sender.

        :param beside: put it into the session of this link
        """
        name = name or self._next_name("receiver")
        self._check_names(name, source, target)
        if beside is not None:
            session = beside._session
            if not session.free:
                raise LinkLimitError(
                    f"the peer takes {self.links_per_session} links in a session"
                )
        else:
            session = self._session(own_session)
        endpoint = session.new_receiver(name)
        link = Receiver(self, endpoint)
        proton_link(endpoint).max_message_size = self.max_message_size
        return self._create(
            link, ReceiverEvents(link), source, target, settle_mode, properties
        )

    def _create(
        self,
        link: _SomeLink,
        events: SenderEvents | ReceiverEvents,
        source: Terminus | None,
        target: Terminus | None,
        settle_mode: SettleMode,
        properties: dict[str, typing.Any] | None,
    ) -> _SomeLink:
        endpoint = link._endpoint
        tell(endpoint, events)
        pn_link = proton_link(endpoint)
        (source or Terminus()).write(pn_link.source)
        (target or Terminus()).write(pn_link.target)
        pn_link.snd_settle_mode = settle_mode
        if properties:
            pn_link.properties = {proton.symbol(k): v for k, v in properties.items()}
        self._links[link._pn] = link
        registry = self.lifecycle.links(link.is_sender)
        registry[link.name] = endpoint
        endpoint.open()
        return link

    def _check_names(self, name: str, *termini: Terminus | None) -> None:
        """Refuse what does not go into one frame, as an attach has to: proton writes a
        larger frame than the peer takes all the same, which ends the connection.

        :raises ValueError: saying so; UnicodeEncodeError: it is not even text
        """
        texts = [name, *(each.address or "" for each in termini if each is not None)]
        size = sum(len(text.encode()) for text in texts)
        limit = lib.pn_transport_get_remote_max_frame(self._transport)
        if 0 < limit < size + ATTACH_REST:
            raise ValueError(
                f"names of {size} bytes do not go into a frame of {limit} bytes, which "
                "is the largest that the peer takes"
            )

    def _next_name(self, kind: str) -> str:
        self._link_count += 1
        return f"{kind}-{self._link_count}"

    def _session(self, own: bool) -> Session:
        if self.ended:
            raise LocalProtocolError("the connection is closed")
        # The latest first: those before it are full, as a rule.
        for session in reversed(self._sessions):
            if session.empty or not (own or session.reserved or not session.free):
                session.reserved = own
                return session
        if self.session_count < self.max_sessions:
            session = Session(f"session-{self.session_count}", self)
            session.reserved = own
            session.open()
            self._sessions.append(session)
            return session
        if own:
            return self._session(False)
        raise LinkLimitError(
            f"the peer allows {self.max_sessions} sessions of "
            f"{self.links_per_session} links"
        )

    def probe(self, answered: typing.Callable[[], None]) -> bool:
        """Ask the peer for a session, which it can give whatever becomes of others, to
        see whether it answers at all.

        :param answered: called in `process` when it has
        :return: False if it allows no further session
        """
        if self.ended or self.session_count >= self.max_sessions:
            return False
        Probe(self, answered).open()
        return True

    def session_given(self, session: Session) -> None:
        """See :class:`greenamqp.engine.lifecycle.Owner`."""
        spare, self._spare = self._spare, session
        self._sessions.append(session)
        if spare is not None and spare in self._sessions and spare.empty:
            self._sessions.remove(spare)
            spare.end()

    # -- time and events

    def process(self, now: float) -> None:
        """Dispatch what has happened; `now` is a monotonic instant in seconds.

        An exception from a callback is the callback's bug: it is logged and the
        event counts as handled, so that it cannot stop the rest.  One that a signal
        handler raised is raised: then the connection has to be aborted.
        """
        collector = self._collector
        links = self._links
        while True:
            event = pn_collector_peek(collector)
            if event == _NULL:
                break
            kind = pn_event_type(event)
            try:
                if kind == _DELIVERY:
                    link = links.get(pn_event_link(event))
                    if link is not None:
                        link._delivery_updated(pn_event_delivery(event))
                elif kind == _LINK_FLOW:
                    link = links.get(pn_event_link(event))
                    if link is not None:
                        link._flow()
                elif kind != _TRANSPORT:
                    self._handle(event, kind)
            except BaseException as exc:
                if interrupts.struck(exc):
                    pn_collector_pop(collector)  # it may not be handled twice
                    raise
                LOG.exception("an AMQP event could not be handled")
            pn_collector_pop(collector)
        if pn_transport_capacity(self._transport) < 0 and not self.ended:
            # Some of what is no frame ends proton's input without an event.
            self.fail("the peer broke the protocol: it sent what is no AMQP frame")
        if self.deadline is None or now >= self._tick_from:
            self._tick(now)
            if pn_collector_peek(collector) != _NULL:
                # The peer was silent for too long: not to be told only a tick later.
                self.process(now)
                return
        if self._doomed or self.sessions_over:
            self._destroy_links()
        if self.failed is not None or self.lifecycle.failure:
            self._report()

    def _tick(self, now: float) -> None:
        # proton counts in milliseconds, and takes 0 for "no deadline".
        due = lib.pn_transport_tick(self._transport, max(1, int(now * 1000)))
        if not due:
            # Nothing to keep up yet; the peer's wish comes with its Open frame.
            self.deadline = None if not self.opened else float("inf")
            self._tick_from = float("inf")
            return
        # At the very millisecond nothing is overdue yet, and we would be asked to
        # come back at once.
        self.deadline = max(
            now + MIN_TICK,
            min(now + self.idle_timeout / TICKS_PER_IDLE_TIMEOUT, (due + 1) / 1000.0),
        )
        self._tick_from = now + (self.deadline - now) / 4

    def _handle(self, event: typing.Any, kind: int) -> None:
        if kind == _TRANSPORT_ERROR:
            self.fail(self._transport_error())
            return
        if self.failed is not None:
            return  # what follows the fault makes no sense
        try:
            if kind == _LINK_INIT:
                pn_link = pn_event_link(event)
                # Of what was made here pyngus need not be told.
                if pn_link in self._links or self._misnamed(pn_link):
                    return
            wrapped = proton.Event.wrap(event)
            if kind == _LINK_REMOTE_DETACH:
                self._link_suspended(wrapped.context)
                return
            if kind == _LINK_REMOTE_CLOSE:
                _check_condition(wrapped.context)
            if self.lifecycle.handle(wrapped):
                return
            if (
                kind == lib.PN_SESSION_INIT
                and getattr(wrapped.context, "context", None) is None  # not ours
            ):
                Session("remote", self, wrapped.context)
                return
            self.lifecycle.handle_session(wrapped)
        except (
            RemoteProtocolError,
            UnicodeDecodeError,
            proton.ProtonException,
        ) as exc:
            self.fail(f"the peer broke the protocol: {exc}")

    def _link_suspended(self, pn_link: typing.Any) -> None:
        """The peer detached without closing (section 2.6.5).  No link is kept here
        for the peer to resume, so this ends it; pyngus does not know the event."""
        endpoint = pn_link.context
        link = link_of(endpoint) if endpoint is not None else None
        if link is None:
            return
        if link.state is LinkState.DETACHED:
            link.both_closed()  # it crossed ours, and is all the answer there is
            return
        lib.pn_link_detach(pn_link._impl)
        condition = capi.condition_of(lib.pn_link_remote_condition(pn_link._impl))
        link.detached(RemoteError(*condition) if condition else None)
        self.destroy_later(endpoint)

    def _misnamed(self, pn: typing.Any) -> bool:
        """Refuse a second link of the same name and role: pyngus would leave it open
        without a word.  (AMQP 1.0, 2.6.1: such an attach steals the link, which a
        driver never wants.)  And one without a name."""
        pn_name = lib.pn_link_name(pn)
        if pn_name == _NULL:
            self.fail("the peer attached a link without a name")
            return True
        name = capi.ffi.string(pn_name).decode()
        registry = self.lifecycle.links(bool(lib.pn_link_is_sender(pn)))
        if name not in registry:
            return False
        self.fail(f"the peer attached a second link of the name {name!r}")
        return True

    def _transport_error(self) -> str:
        condition = capi.condition_of(lib.pn_transport_condition(self._transport))
        if condition is None:
            return "the connection was closed without a reason"
        name, text = condition
        if text == _SILENT:
            # Ours; proton's name for it would accuse the peer of something else.
            return (
                f"the peer was silent for longer than the idle time-out of "
                f"{self._idle_timeout:g} s"
            )
        return f"{name}: {text}" if text else name

    def fail(self, reason: str) -> None:
        if self.failed is None:
            self.failed = ConnectionFailed(reason)
            self.ended = True

    def _report(self) -> None:
        """Tell the handler of a failure, once, after all events are dispatched."""
        if self._reported:
            return
        self._reported = True
        if self.failed is None:
            self.fail(str(self.lifecycle.failure))
        failed = self.failed
        assert failed is not None
        self._detach_all(RemoteError("amqp:connection:forced", str(failed)))
        try:
            self.handler.connection_failed(self, failed)
        except Exception as exc:
            if interrupts.struck(exc):
                raise
            LOG.exception("the failure of a connection could not be handled")

    def _detach_all(self, error: RemoteError | None) -> None:
        for link in list(self._links.values()):
            try:
                link.detached(error)
            except Exception as exc:
                if interrupts.struck(exc):
                    raise
                LOG.exception("the end of a link could not be handled")

    # pyngus's connection callbacks

    def connection_active(self, connection: typing.Any) -> None:
        self.opened = True
        self.deadline = None  # the peer's idle time-out is known now
        self.handler.connection_opened(self)

    def connection_remote_closed(
        self, connection: typing.Any, condition: object
    ) -> None:
        error = remote_error(condition)
        if self._closing:
            return
        self._closing = self.ended = True
        self._detach_all(error)
        self.lifecycle.close()
        self._reported = True
        self.handler.connection_closed(self, error)

    def sender_requested(
        self,
        connection: typing.Any,
        link_handle: str,
        name: str,
        requested_source: str | None,
        properties: dict[str, typing.Any],
    ) -> None:
        endpoint = self.lifecycle.links(True)[link_handle]
        link = Sender(self, endpoint)
        self._requested(link, SenderEvents(link))

    def receiver_requested(
        self,
        connection: typing.Any,
        link_handle: str,
        name: str,
        requested_target: str | None,
        properties: dict[str, typing.Any],
    ) -> None:
        endpoint = self.lifecycle.links(False)[link_handle]
        link = Receiver(self, endpoint)
        self._requested(link, ReceiverEvents(link))

    def _requested(
        self, link: Sender | Receiver, events: SenderEvents | ReceiverEvents
    ) -> None:
        link.state = LinkState.REQUESTED
        tell(link._endpoint, events)
        self._links[link._pn] = link
        self.handler.link_requested(self, link)

    # what links ask of their connection

    def receive_buffer(self, size: int) -> _Buffer:
        if size > len(self._buffer.view):
            self._buffer = _Buffer(max(size, 2 * len(self._buffer.view)))
        return self._buffer

    def forget_link(self, link: Link) -> None:
        """A detached link is told of nothing more, and its name is free."""
        self._links.pop(link._pn, None)
        self.unfinished.pop(link, None)
        endpoint = link._endpoint
        self._link_count += 1
        self.lifecycle.free_name(endpoint, link.is_sender, self._link_count)

    def message_unfinished(self, link: Link, size: int) -> None:
        """`size` bytes of a message have come, and not yet its end."""
        unfinished = self.unfinished
        unfinished[link] = size
        if len(unfinished) > 1 and sum(unfinished.values()) > self.max_unfinished:
            self.fail(
                f"the peer began messages of more than {self.max_unfinished} bytes"
                f" on {len(unfinished)} links and ended none"
            )

    def destroy_later(self, endpoint: typing.Any) -> None:
        """Both ends are detached: free the link once no event can name it.

        pyngus frees nothing from within its callbacks.
        """
        self._doomed.append(endpoint)

    def _destroy_links(self) -> None:
        doomed, self._doomed = self._doomed, []
        for endpoint in doomed:
            if proton_link(endpoint) is not None:
                destroy_link(endpoint)
        ended, self.sessions_over = self.sessions_over, []
        for session in ended:
            session.release()

    def session_ended(self, session: Session, error: RemoteError | None) -> None:
        if session in self._sessions:
            self._sessions.remove(session)
        session.uncount()
        links = {endpoint: link_of(endpoint) for endpoint in session.endpoints}
        left = [
            link
            for link in links.values()
            if link is not None and link.state is LinkState.DETACHED
        ]
        session.detach_all(error)
        for endpoint in links:
            # No detach will come for it any more.
            self.destroy_later(endpoint)
        for link in left:
            if link.on_closed is not None:
                link.on_closed(link)

    def leave_session(self, link: Link, reason: str) -> None:
        """Detach all links of this one's session, which the peer does not answer in.

        They are told by on_detached, at once, with SessionStalled.  The session takes
        no other link, as what it sends may be lost; it is ended when the peer has
        answered for all of these.  Not from a callback of a link.
        """
        if link.state is LinkState.DETACHED:
            return
        session = link._session
        session.left = True
        if session in self._sessions:
            self._sessions.remove(session)
        session.detach_all(SessionStalled(reason))

    def refuse_link(self, link: Link, condition: str, description: str) -> None:
        """Detach a link whose peer broke a rule, and tell its user."""
        if link.state is LinkState.DETACHED:
            return
        link.state = LinkState.DETACHED
        link._endpoint.close(proton.Condition(condition, description))
        self.forget_link(link)
        if link.on_detached is not None:
            link.on_detached(link, RemoteError(condition, description))

    def destroy(self) -> None:
        """Let go of all that belongs to proton.  Nothing may be called afterwards."""
        for link in list(self._links.values()):
            link.state = LinkState.DETACHED
            link.released()
        self._links.clear()
        self._sessions.clear()
        self._spare = None
        self._doomed.clear()
        self.sessions_over.clear()
        self.lifecycle.destroy_links()
        for session in list(self.sessions_alive):
            session.release()
        self.lifecycle.destroy()
