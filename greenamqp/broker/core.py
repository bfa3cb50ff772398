# SPDX-License-Identifier: Apache-2.0
"""A broker without sockets: virtual hosts, and an engine for each connection.

Whoever has sockets (:mod:`greenamqp.broker.server`), or a test's fake wire, asks for a
peer per connection and moves the bytes of its engine.  All in one thread.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import socket
import typing

from greenamqp import chance
from greenamqp.broker.namespace import Namespace, Refused
from greenamqp.broker.peer import Peer
from greenamqp.broker.router import RouterNamespace
from greenamqp.broker.settings import Settings
from greenamqp.broker.store import Usage
from greenamqp.engine.sasl import AcceptedConnection, SaslServer

LOG = logging.getLogger(__name__)

# The highest channel: AMQP gives it 16 bits.
_MAX_CHANNEL = 65535

# Of messages that are not complete, a connection may hold this many of the largest.
_UNFINISHED = 4

# Names of the machine itself that no resolver needs to be asked for.
_LOCAL_NAMES = frozenset(("", "localhost", "localhost.localdomain", "ip6-localhost"))


class Core:
    """What a broker knows.

    :param clock: says what time it is: seconds, monotonic
    """

    def __init__(self, settings: Settings, clock: typing.Callable[[], float]) -> None:
        self.settings = settings
        self.clock = clock
        self.usage = Usage(settings.max_memory)
        self.namespaces: dict[str, Namespace | RouterNamespace] = {}
        #: of a router: called with a virtual host and an address that has its first
        #: receiver, or none any more
        self.on_receivers: typing.Callable[[str, str], None] | None = None
        identity = chance.unique()
        self.container_id = (
            f"Router.{identity[:12]}"
            if settings.behaviour.router
            else f"greenamqp-{identity}"
        )
        host = socket.gethostname().lower()
        self._hostnames = _LOCAL_NAMES | {host, host.partition(".")[0]}
        self._hostnames |= {name.lower() for name in settings.hostnames}

    def namespace(self, hostname: str | None) -> Namespace | RouterNamespace:
        """The virtual host that a hostname of an Open frame means.

        A client without virtual host puts there whatever name it reached the broker
        by: what names this machine means none.

        :raises Refused: if there are too many
        """
        name = "" if self._is_local(hostname or "") else hostname or ""
        found = self.namespaces.get(name)
        if found is not None:
            return found
        if len(self.namespaces) >= self.settings.max_virtual_hosts:
            self._forget_idle()
        if len(self.namespaces) >= self.settings.max_virtual_hosts:
            raise Refused(
                "amqp:resource-limit-exceeded",
                f"there are {self.settings.max_virtual_hosts} virtual hosts already",
            )
        made: Namespace | RouterNamespace
        if self.settings.behaviour.router:
            made = RouterNamespace(
                name,
                self.settings,
                self.container_id,
                self.usage,
                functools.partial(self._receivers_changed, name),
            )
        else:
            made = Namespace(name, self.settings, self.usage, self.clock, self._reclaim)
        self.namespaces[name] = made
        return made

    def _receivers_changed(self, vhost: str, address: str) -> None:
        if self.on_receivers is not None:
            self.on_receivers(vhost, address)

    def routers(self) -> list[tuple[str, RouterNamespace]]:
        """The virtual hosts of a router, by name."""
        return [
            (name, namespace)
            for name, namespace in self.namespaces.items()
            if isinstance(namespace, RouterNamespace)
        ]

    def _is_local(self, hostname: str) -> bool:
        if hostname.lower() in self._hostnames:
            return True
        try:
            ipaddress.ip_address(hostname.strip("[]").partition("%")[0])
        except ValueError:
            return False
        return True

    def connect(
        self,
        name: str,
        touch: typing.Callable[[], None],
        call_soon: typing.Callable[[typing.Callable[[], None]], None],
        on_opened: typing.Callable[[], None] | None = None,
        on_ended: typing.Callable[[], None] | None = None,
        external: str | None = None,
    ) -> Peer:
        """A peer for a connection that was accepted, its engine open.

        :param external: whom the peer's TLS certificate names
        :param name: and the rest as for :class:`Peer`
        """
        settings = self.settings
        behaviour = settings.behaviour
        idle_timeout = behaviour.idle_timeout
        if idle_timeout is None:
            idle_timeout = settings.idle_timeout
        peer = Peer(self, name, touch, call_soon, on_opened, on_ended)
        peer.engine = AcceptedConnection(
            self.container_id,
            peer,
            SaslServer(settings.users or None, settings.anonymous, external),
            properties=dict(behaviour.open_properties()),
            offered_capabilities=behaviour.offered_capabilities,
            idle_timeout=idle_timeout,
            mirrors_idle_timeout=behaviour.mirrors_idle_timeout,
            max_frame_size=behaviour.max_frame_size,
            max_message_size=settings.max_message_size,
            max_unfinished=_UNFINISHED * settings.max_message_size,
            channel_max=min(_MAX_CHANNEL, settings.max_sessions - 1),
            trace=settings.trace,
        )
        peer.engine.open()
        return peer

    def maintain(self, now: float) -> None:
        """To be called every second or so: drop what is too old."""
        for namespace in self.namespaces.values():
            namespace.maintain(now)

    def _reclaim(self) -> None:
        for namespace in self.namespaces.values():
            namespace.forget_idle()

    def _forget_idle(self) -> None:
        for name, namespace in list(self.namespaces.items()):
            namespace.forget_idle()
            if namespace.idle:
                del self.namespaces[name]
