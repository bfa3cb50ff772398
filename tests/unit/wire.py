# SPDX-License-Identifier: Apache-2.0
"""A wire that is no wire: two engines joined by memory, for tests without I/O.

Time stands still unless a test moves it.  Bytes cross in pieces of a chosen size, so
that a test can split the stream wherever it wants.
"""

from __future__ import annotations

import typing

import proton

from greenamqp.engine import Connection, capi
from greenamqp.engine.sasl import AcceptedConnection, SaslServer

_SIZE = 64 * 1024
_pointer = capi.ffi.new("char[]", _SIZE)


class Recorder:
    """A handler that keeps what it was told; links that are asked for are accepted
    unless ``on_link`` decides."""

    def __init__(self, on_link: typing.Callable | None = None) -> None:
        self.events: list[tuple] = []
        self.links: list = []
        self._on_link = on_link

    def connection_opened(self, connection):
        self.events.append(("opened",))

    def connection_closed(self, connection, error):
        self.events.append(("closed", error))

    def connection_failed(self, connection, error):
        self.events.append(("failed", str(error)))

    def link_requested(self, connection, link):
        self.events.append(("requested", link.name))
        self.links.append(link)
        if self._on_link is None:
            link.accept()
        else:
            self._on_link(link)


def output(connection: Connection, limit: int = _SIZE) -> bytes:
    """Up to `limit` bytes of what the engine has to send, taken from it."""
    size = connection.data_to_send(_pointer, min(limit, _SIZE))
    data = bytes(capi.ffi.buffer(_pointer, size))
    if size:
        connection.data_sent(size)
    return data


def feed(connection: Connection, data: bytes, now: float = 1.0) -> int:
    """Give the engine bytes; returns how many it took before it took no more."""
    offset = 0
    while offset < len(data):
        taken = connection.receive_data(data[offset:], len(data) - offset)
        if taken == 0:
            break
        offset += taken
        connection.process(now)
    return offset


class Wire:
    """Joins two engines; `now` is the time of both."""

    def __init__(self, one: Connection, other: Connection, now: float = 1.0) -> None:
        self.ends = (one, other)
        self.now = now
        #: all that crossed, from each end, in the pieces it crossed in
        self.log: tuple[list[bytes], list[bytes]] = ([], [])

    def step(self, limit: int = _SIZE) -> int:
        """Move up to `limit` bytes each way; returns how many moved."""
        moved = 0
        for end in self.ends:
            end.process(self.now)
        for index in (0, 1):
            data = output(self.ends[index], limit)
            if data:
                moved += len(data)
                self.log[index].append(data)
                feed(self.ends[1 - index], data, self.now)
        for end in self.ends:
            end.process(self.now)
        return moved

    def run(self, limit: int = _SIZE) -> None:
        """Move bytes until neither end has more to say."""
        while self.step(limit):
            pass


def joined(
    client_handler=None, server_handler=None, client_options=None, server_options=None
) -> tuple[Connection, Connection, Wire]:
    """An open client and server and the wire between them."""
    client = Connection("client", client_handler or Recorder(), **client_options or {})
    server = Connection(
        "server", server_handler or Recorder(), server=True, **server_options or {}
    )
    client.open()
    server.open()
    wire = Wire(client, server)
    wire.run()
    return client, server, wire


def accepted(handler=None, sasl: SaslServer | None = None, **options):
    """The end of a server that was connected to, which speaks SASL itself."""
    connection = AcceptedConnection(
        "server", handler or Recorder(), sasl or SaslServer(), **options
    )
    connection.open()
    return connection


class RawPeer:
    """proton alone at the other end: for what no engine would do to its peer.

    Whoever frees a session lets go of its links' Python objects first: proton frees
    them with it, whoever else holds them.
    """

    def __init__(self, server: Connection, container: str = "raw") -> None:
        self.server = server
        #: what becomes of the bytes that it sends
        self.patch: typing.Callable[[bytes], bytes] = lambda data: data
        self.connection = proton.Connection()
        self.connection.container = container
        self.transport = proton.Transport()
        self.transport.bind(self.connection)
        self.connection.open()
        server.open()

    def session(self) -> proton.Session:
        """A new session, begun."""
        session = self.connection.session()
        session.open()
        return session

    def sender(self, address: str, name: str = "s") -> proton.Sender:
        """A link that sends there, attached."""
        link = self.session().sender(name)
        link.target.address = address
        link.open()
        self.run()
        return link

    def receiver(
        self, address: str, name: str = "r", *, max_message_size: int = 0
    ) -> proton.Receiver:
        """A link that receives from there, attached."""
        link = self.session().receiver(name)
        link.source.address = address
        link.max_message_size = max_message_size
        link.open()
        self.run()
        return link

    def run(self, now: float = 1.0) -> None:
        """Move bytes until neither end has more to say."""
        moved = True
        while moved:
            moved = False
            self.server.process(now)
            while (size := self.transport.pending()) > 0:
                data = bytes(self.transport.peek(size))
                self.transport.pop(len(data))
                feed(self.server, self.patch(data), now)
                moved = True
            while data := output(self.server):
                offset = 0
                while offset < len(data) and self.transport.capacity() > 0:
                    offset += self.transport.push(data[offset:]) or len(data)
                moved = True
