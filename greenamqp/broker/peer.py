# SPDX-License-Identifier: Apache-2.0
"""One connection to the broker: ties the engine's links to addresses and queues.

No I/O: a peer is given an engine, and two functions of whoever moves its bytes.  All
runs in callbacks of the engine, or in :meth:`Peer.resume`.
"""

from __future__ import annotations

import logging
import typing

from greenamqp.broker import links, router_links
from greenamqp.broker.namespace import Namespace, Refused
from greenamqp.broker.router import RouterNamespace
from greenamqp.broker.settings import Settings
from greenamqp.engine import (
    Connection,
    ConnectionFailed,
    LinkState,
    RemoteError,
    RemoteProtocolError,
)
from greenamqp.engine.sasl import AcceptedConnection

LOG = logging.getLogger(__name__)

# Link names are kept; longer ones are refused.  In characters.
MAX_LINK_NAME = 4096


class Core(typing.Protocol):
    """What a peer needs of its broker."""

    settings: Settings

    def namespace(self, hostname: str | None) -> Namespace | RouterNamespace:
        """The virtual host that a hostname of an Open frame means.

        :raises Refused: if there are too many
        """


class Peer:
    """A connection that was accepted, as its engine's handler.

    :param name: who it is, for the log: the remote address
    :param touch: have the engine's output written
    :param call_soon: run a function in the same thread, after what runs now
    :param on_opened: called once when the peer is known and may attach links
    :param on_ended: called when the connection failed or was closed, or is to be
    """

    def __init__(
        self,
        core: Core,
        name: str,
        touch: typing.Callable[[], None],
        call_soon: typing.Callable[[typing.Callable[[], None]], None],
        on_opened: typing.Callable[[], None] | None = None,
        on_ended: typing.Callable[[], None] | None = None,
    ) -> None:
        self.core = core
        self.name = name
        self.touch = touch
        self.engine: AcceptedConnection
        self.namespace: Namespace | RouterNamespace | None = None
        self.links: dict[links.Endpoint, None] = {}
        self._call_soon = call_soon
        self._on_opened = on_opened
        self._on_ended = on_ended
        # Consumers that could take more once what they were given is written.
        self._stalled: list[links.Consumer] = []

    def __repr__(self) -> str:
        return f"<Peer {self.name}>"

    # -- the connection's life, told by the engine

    def connection_opened(self, connection: Connection) -> None:
        try:
            self.namespace = self.core.namespace(connection.remote_hostname)
        except Refused as exc:
            LOG.warning("%s: refused: %s", self.name, exc)
            connection.close(exc.condition, exc.description)
            self._ended()
            return
        self.namespace.connections += 1
        LOG.info(
            "%s: connected: container %s, user %s, virtual host %s",
            self.name,
            connection.remote_container,
            self.engine.user,
            self.namespace.name or "(none)",
        )
        if self._on_opened is not None:
            self._on_opened()

    def connection_closed(
        self, connection: Connection, error: RemoteError | None
    ) -> None:
        LOG.info("%s: closed by the peer%s", self.name, f": {error}" if error else "")
        self._ended()

    def connection_failed(
        self, connection: Connection, error: ConnectionFailed
    ) -> None:
        level = logging.INFO if self.engine.lost else logging.WARNING
        LOG.log(level, "%s: the connection failed: %s", self.name, error)
        # Where the wire is whole, the peer hears why.
        connection.close("amqp:connection:framing-error", str(error))
        self._ended()

    def _ended(self) -> None:
        namespace, self.namespace = self.namespace, None
        if namespace is not None:
            namespace.connections -= 1
        self._stalled.clear()
        if self._on_ended is not None:
            self._on_ended()

    def close(self, condition: str = "", description: str = "") -> None:
        """End the connection in order.  What it holds goes back to its queues."""
        for endpoint in list(self.links):
            endpoint.gone(failed=False)
        self.engine.close(condition, description)
        self._ended()
        self.touch()

    # -- links

    def link_requested(self, connection: Connection, link: typing.Any) -> None:
        namespace = self.namespace
        if namespace is None:
            return  # on its way out
        try:
            if len(self.links) >= self.core.settings.max_links:
                raise Refused(
                    "amqp:resource-limit-exceeded",
                    f"a connection may have {self.core.settings.max_links} links",
                )
            if len(link.name) > MAX_LINK_NAME:
                raise Refused(
                    "amqp:invalid-field",
                    f"a link's name may have {MAX_LINK_NAME} characters",
                )
            if isinstance(namespace, Namespace):
                links.attach(self, namespace, link)
            else:
                router_links.attach(self, namespace, link)
        except Refused as exc:
            LOG.info("%s: link %s refused: %s", self.name, link.name[:80], exc)
            link.reject(exc.condition, exc.description)
        except RemoteProtocolError:
            raise  # the engine ends the connection for it
        except Exception:
            LOG.exception("%s: link %s cannot be served", self.name, link.name[:80])
            if link.state is LinkState.REQUESTED:
                link.reject("amqp:internal-error")
            else:
                link.close("amqp:internal-error")

    # -- portions

    def stall(self, consumer: links.Consumer) -> None:
        """`consumer` goes on when what it was given is written."""
        self._stalled.append(consumer)
        self.engine.on_written = self._written

    def _written(self) -> None:
        self._call_soon(self.resume)

    def resume(self) -> None:
        """What was sent is written: give the consumers more."""
        stalled, self._stalled = self._stalled, []
        for consumer in stalled:
            consumer.go_on()
        self.touch()
