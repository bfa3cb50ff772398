# SPDX-License-Identifier: Apache-2.0
"""pyngus: the life cycle of connections, sessions and links.  Nowhere else is it used.

proton tells what happens event by event; pyngus makes of it when an endpoint is open,
closed by the peer, closed on both sides.  The engine dispatches the events itself, and
goes past pyngus for deliveries and credit, so it needs some of what pyngus keeps to
itself:

====================================  ==================================================
private to pyngus                     why
====================================  ==================================================
``link._SessionProxy``                links share sessions, which pyngus has for one
                                      link each
``link._SessionProxy._links``         they are told of its end one after another
``link._Link._handle_proton_event``,  the engine takes events from proton itself, in C
and those of the other two
``Connection._pn_connection``,        the engine moves bytes and events by proton's C
``_pn_transport``, ``_pn_collector``  API; capabilities, channel-max
``Connection._pn_sasl``               the outcome of a login, to explain a failed one
``Connection._transport_bound``       a server reads before it opens
``Connection._sender_links``,         links that share a session are made outside of
``_receiver_links``                   pyngus, and a name is free when its link is
                                      detached
``Connection._error``                 what pyngus takes for a failure
``Connection._handler``               a connection that was let go of tells nothing
``link._pn_link``, ``_handler``,      proton's link; who is told; the name, which may be
``_name``                             wanted again
====================================  ==================================================

``tests/unit/test_engine_lifecycle.py`` says which of them a new pyngus has no more.
"""

from __future__ import annotations

import logging
import typing

import pyngus
from pyngus.link import _Link, _SessionProxy

from greenamqp.engine import capi
from greenamqp.engine.errors import RemoteError

lib = capi.lib

# At DEBUG it says "Opening the link." and the like for each, and not of which: we say
# that ourselves.  Who wants to see it sets its level, before or after this.
if logging.getLogger("pyngus").level == logging.NOTSET:
    logging.getLogger("pyngus").setLevel(logging.WARNING)


class Owner(typing.Protocol):
    """What a session asks of the engine's connection."""

    lifecycle: Lifecycle
    links_per_session: int
    #: Sessions that proton holds.
    sessions_alive: dict[Session, None]
    #: Those that are ended on both sides, to be given back once no event names them.
    sessions_over: list[Session]
    #: How many of ours the peer holds.
    session_count: int

    def session_ended(self, session: Session, error: RemoteError | None) -> None:
        """The peer ended it, with all its links."""

    def session_given(self, session: Session) -> None:
        """The peer has begun one that no link was waiting for."""

    def fail(self, reason: str) -> None:
        """The connection is of no use any more."""


class LinkUser(typing.Protocol):
    """The engine's link, which is told."""

    def attached(self) -> None:
        """The peer's Attach came."""

    def detached(self, error: RemoteError | None) -> None:
        """The peer's Detach came."""

    def both_closed(self) -> None:
        """Both ends are detached."""

    def released(self) -> None:
        """proton's link is gone."""


#: Whom pyngus tells of a connection.
ConnectionEvents: type = pyngus.ConnectionEventHandler


class _Ordered(dict[typing.Any, None]):
    """As a set, in the order in which it was filled."""

    def add(self, item: typing.Any) -> None:
        self[item] = None

    def discard(self, item: typing.Any) -> None:
        self.pop(item, None)


class Session(_SessionProxy):
    """A session that links share, and whose end is told to all of them."""

    _pn_session: typing.Any

    def __init__(self, name: str, owner: Owner, pn_session: object = None) -> None:
        self.owner = owner
        self.local = pn_session is None
        #: Whether it was made for the links that are in it, and takes no other.
        self.reserved = False
        #: Whether it takes no link any more, and is ended with its last one.
        self.left = False
        super().__init__(name, owner.lifecycle, pn_session)
        # The end of a session is told to its links, in the order of their addresses in
        # memory if pyngus's set stayed: no two runs would be the same.
        self._links = _Ordered()
        owner.sessions_alive[self] = None
        # Whether it counts as one that we began.
        self._counted = self.local
        owner.session_count += self.local

    @property
    def endpoints(self) -> list[typing.Any]:
        """pyngus's links in it."""
        return list(self._links)

    def detach_all(self, error: RemoteError | None) -> None:
        """Tell all links in it that they are detached."""
        for endpoint in self.endpoints:
            link = link_of(endpoint)
            if link is not None:
                link.detached(error)

    @property
    def empty(self) -> bool:
        """Whether no link is in it."""
        return not self._links

    @property
    def free(self) -> bool:
        """Whether it has room for another link."""
        return len(self._links) < self.owner.links_per_session

    def link_destroyed(self, link: object) -> None:
        # Kept when empty: the next link will use it, unless it was left.
        self._links.discard(link)
        if self.left and not self._links:
            self.end()

    def end(self) -> None:
        """It is not needed any more."""
        if self._pn_session is not None:
            self._pn_session.close()

    def uncount(self) -> None:
        """The peer has ended it, so that it allows another one."""
        self.owner.session_count -= self._counted
        self._counted = False

    def _ep_need_close(self) -> None:
        """The peer ended the session, and with it every link in it."""
        condition = capi.condition_of(
            lib.pn_session_remote_condition(self._pn_session._impl)
        )
        error = RemoteError(*condition) if condition else None
        self.owner.session_ended(self, error)
        self._pn_session.close()

    def _ep_closed(self) -> None:
        """Both ends are ended: let go of it, or a peer that begins and ends sessions
        all day would fill our memory."""
        self.uncount()
        self.owner.sessions_over.append(self)

    def release(self) -> None:
        """Give it back to proton.  Its links are freed.

        Not left to the end of the connection: proton's session holds this object, and
        through it itself, so neither would ever be freed, nor the connection.
        """
        self.owner.sessions_alive.pop(self, None)
        if self._pn_session is not None:
            self._pn_session.context = None
            self._pn_session.free()
            self._pn_session = None

    def _ep_error(self, error: object) -> None:
        self.owner.fail(f"session {self._name}: {error}")


class Probe(Session):
    """A session that is begun to see whether the peer answers.

    It is not ended then, but kept for the next link: proton would give its channel to a
    new session at once, and RabbitMQ loses a Begin that comes before it has answered
    the End on that channel.
    """

    def __init__(self, owner: Owner, answered: typing.Callable[[], None]) -> None:
        super().__init__("probe", owner)
        self._answered = answered

    def _ep_active(self) -> None:
        self.owner.session_given(self)
        self._answered()


class Lifecycle(pyngus.Connection):
    """pyngus's connection, of which the engine drives the events itself.

    :param owner: a ConnectionEvents
    """

    def __init__(
        self, owner: typing.Any, container_id: str, properties: dict[str, typing.Any]
    ) -> None:
        super().__init__(
            pyngus.Container(container_id), container_id, owner, properties
        )

    @property
    def connection(self) -> typing.Any:
        """proton's connection."""
        return self._pn_connection

    @property
    def transport(self) -> typing.Any:
        """proton's transport."""
        return self._pn_transport

    @property
    def collector(self) -> typing.Any:
        """proton's collector of events."""
        return self._pn_collector

    @property
    def sasl(self) -> typing.Any:
        """proton's SASL layer, None as long as nobody asked for one."""
        return self._pn_sasl

    @property
    def failure(self) -> str | None:
        """What pyngus takes for a failure of the connection."""
        return self._error

    def bind(self) -> None:
        """Take in what the peer says; `open` answers."""
        self._pn_transport.bind(self._pn_connection)
        self._transport_bound = True

    def links(self, senders: bool) -> dict[str, typing.Any]:
        """pyngus's links by name."""
        links: dict[str, typing.Any]
        links = self._sender_links if senders else self._receiver_links
        return links

    def free_name(self, endpoint: typing.Any, senders: bool, number: int) -> None:
        """The peer may use the link's name again.

        pyngus keeps links by name until they are destroyed, which happens when both
        ends are detached; the peer may use the name before that.
        """
        links = self.links(senders)
        name = endpoint._name
        if name in links and links[name] is endpoint:
            del links[name]
            endpoint._name = f"{number} was {name}"
            links[endpoint._name] = endpoint

    def handle(self, event: typing.Any) -> bool:
        """Handle proton's event of a link or of the connection; returns whether it was
        one."""
        return bool(
            _Link._handle_proton_event(event, self) or self._handle_proton_event(event)
        )

    def handle_session(self, event: typing.Any) -> None:
        """Handle proton's event of a session that there is."""
        _SessionProxy._handle_proton_event(event, self)

    def destroy_links(self) -> None:
        """Let go of all links; from now on nobody is told of anything."""
        self._handler = None
        for endpoint in [*self._sender_links.values(), *self._receiver_links.values()]:
            destroy_link(endpoint)

    def _connection_failed(self, error: str = "unknown error") -> None:
        # pyngus logs here; the owner tells its handler, who knows host and reason.
        self._error = error


def proton_link(endpoint: typing.Any) -> typing.Any:
    """proton's link of pyngus's, None once it was destroyed."""
    return endpoint._pn_link


def tell(endpoint: typing.Any, events: SenderEvents | ReceiverEvents) -> None:
    """Have pyngus tell of a link."""
    endpoint._handler = events


def link_of(endpoint: typing.Any) -> typing.Any:
    """The engine's link that pyngus tells of its own, or None."""
    events = endpoint._handler
    return events.link if events is not None else None


def destroy_link(endpoint: typing.Any) -> None:
    """Let go of proton's link, and have the engine's do so."""
    link = link_of(endpoint)
    endpoint.destroy()
    if link is not None:
        link.released()


class _LinkEvents:
    """pyngus's callbacks of a link, turned into the engine's."""

    def __init__(self, link: LinkUser) -> None:
        self.link = link

    def _active(self, endpoint: typing.Any) -> None:
        self.link.attached()

    def _remote_closed(self, endpoint: typing.Any, condition: object) -> None:
        self.link.detached(remote_error(condition))

    def _closed(self, endpoint: typing.Any) -> None:
        self.link.both_closed()

    def _failed(self, endpoint: typing.Any, error: object) -> None:
        self.link.detached(RemoteError("amqp:internal-error", str(error)))


class SenderEvents(_LinkEvents, pyngus.SenderEventHandler):
    """Of a link that sends."""

    sender_active = _LinkEvents._active
    sender_remote_closed = _LinkEvents._remote_closed
    sender_closed = _LinkEvents._closed
    sender_failed = _LinkEvents._failed


class ReceiverEvents(_LinkEvents, pyngus.ReceiverEventHandler):
    """Of a link that receives."""

    receiver_active = _LinkEvents._active
    receiver_remote_closed = _LinkEvents._remote_closed
    receiver_closed = _LinkEvents._closed
    receiver_failed = _LinkEvents._failed


def remote_error(condition: typing.Any) -> RemoteError | None:
    """pyngus's error of the peer's as the engine's."""
    if not condition:
        return None
    return RemoteError(condition.name or "", condition.description or "")
