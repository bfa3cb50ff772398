# SPDX-License-Identifier: Apache-2.0
"""A broker without sockets, and clients on fake wires: for the broker's unit tests.

Or a real message bus that a URL names, and clients with sockets: so that the same tests
say whether the broker does as that one does.
"""

from __future__ import annotations

import select
import socket
import time
import urllib.parse

import proton
import pytest

from greenamqp.broker.core import Core
from greenamqp.broker.settings import Settings
from greenamqp.engine import (
    ACCEPTED,
    Connection,
    Receiver,
    Sender,
    SettleMode,
    Terminus,
)
from tests.unit.wire import RawPeer, Recorder, Wire, feed, output


class Bus:
    """A broker whose time stands still."""

    def __init__(self, **settings) -> None:
        self.now = 100.0
        self.core = Core(Settings(**settings), lambda: self.now)
        self.wires: list[Wire] = []
        self.soon: list = []

    def peer(self, **options):
        """The broker's end of a connection, with nobody at the other."""
        return self.core.connect("test", lambda: None, self.soon.append, **options)

    def client(self, container: str = "client", sasl=None, **options) -> Client:
        """An open connection to it."""
        peer = self.peer()
        handler = Recorder()
        engine = Connection(container, handler, sasl=sasl, **options)
        engine.open()
        self.wires.append(Wire(engine, peer.engine, self.now))
        client = Client(self, engine, peer, handler)
        self.run()
        return client

    def raw(self, **options) -> RawPeer:
        """proton alone as the client."""
        peer = self.peer(**options)
        raw = RawPeer(peer.engine)
        raw.peer = peer
        raw.run()
        return raw

    def run(self) -> None:
        """Move bytes until nobody has more to say."""
        moved = True
        while moved:
            moved = False
            for wire in self.wires:
                wire.now = self.now
                while wire.step():
                    moved = True
            soon, self.soon[:] = self.soon[:], []
            for function in soon:
                function()
                moved = True


class Client:
    """One connection; its links keep what they are told in ``context``."""

    def __init__(self, bus: Bus, engine: Connection, peer, handler: Recorder) -> None:
        self.bus = bus
        self.engine = engine
        self.peer = peer
        self.handler = handler

    @property
    def events(self) -> list:
        return self.handler.events

    def sender(self, address: str | None, **terminus) -> Sender:
        """A sender; ``context`` is the list of (handle, outcome, error)."""
        link = self.engine.create_sender(Terminus(address, **terminus))
        link.context = []
        link.on_settled = lambda link, *outcome: link.context.append(outcome)
        self._watch(link)
        return link

    def receiver(
        self,
        address: str | None,
        credit: int = 1000,
        take=lambda link, delivery: link.settle(delivery),
        settled: bool = False,
        **terminus,
    ) -> Taking:
        """A receiver; `take` is what it does with a message."""
        link = self.engine.create_receiver(
            Terminus(address, **terminus),
            settle_mode=SettleMode.SETTLED if settled else SettleMode.MIXED,
        )
        taking = Taking(self.bus, link, take)
        self._watch(link)
        if credit:
            link.flow(credit)
            self.bus.run()
        return taking

    def _watch(self, link) -> None:
        errors: list = []
        link.on_detached = lambda link, error: errors.append(str(error))
        self.engine.__dict__.setdefault("detached", {})[link.name] = errors
        self.bus.run()

    def detached(self, link) -> list[str]:
        """The errors that the link was detached with."""
        return self.engine.__dict__["detached"][link.name]

    def cut(self) -> None:
        """The connection breaks, as the broker sees it."""
        self.bus.wires[:] = [
            wire for wire in self.bus.wires if self.engine not in wire.ends
        ]
        self.peer.engine.abort("cut")
        self.peer.engine.process(self.bus.now)
        self.bus.run()

    def close(self) -> None:
        self.engine.close()
        self.bus.run()


class RealBus:
    """A message bus at a URL, as far as its clients see it.

    When it has no more to say is not known: it has been quiet for a while.
    """

    QUIET = 0.1

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._place = (parts.hostname, parts.port or 5672)
        self.clients: dict[RealClient, socket.socket] = {}

    def client(self, container: str = "client") -> RealClient:
        handler = Recorder()
        engine = Connection(container, handler)
        engine.open()
        client = RealClient(self, engine, None, handler)
        self.clients[client] = socket.create_connection(self._place)
        self.run()
        return client

    def run(self) -> None:
        """Move bytes until nobody has had more to say for a while."""
        while self.clients:
            for client, sock in self.clients.items():
                while data := output(client.engine):
                    sock.sendall(data)
            found = {sock: client for client, sock in self.clients.items()}
            readable, _, _ = select.select(list(found), [], [], self.QUIET)
            if not readable:
                break
            for sock in readable:
                if data := sock.recv(1 << 20):
                    feed(found[sock].engine, data, time.monotonic())
                else:
                    self.leave(found[sock])

    def __getattr__(self, name: str):
        pytest.skip(f"a real bus has no {name}")

    def leave(self, client: RealClient) -> None:
        self.clients.pop(client).close()

    def close(self) -> None:
        for client in list(self.clients):
            client.close()


class RealClient(Client):
    """One connection to a RealBus."""

    def cut(self) -> None:
        self.bus.leave(self)
        self.bus.run()

    def close(self) -> None:
        super().close()
        if self in self.bus.clients:
            self.bus.leave(self)


class Taking:
    """A receiver and what it got."""

    def __init__(self, bus: Bus, link: Receiver, take) -> None:
        self.bus = bus
        self.link = link
        self.data: list[bytes] = []
        self.held: list = []
        self._take = take
        link.on_message = self._message

    def _message(self, link, delivery, data) -> None:
        self.data.append(bytes(data))
        self.held.append(delivery)
        if self._take is not None:
            self._take(link, delivery)

    def settle(self, index: int, outcome: int = ACCEPTED, **how) -> None:
        """Settle a message that was held."""
        self.link.settle(self.held[index], outcome, **how)
        self.bus.run()

    @property
    def messages(self) -> list[proton.Message]:
        return [decoded(data) for data in self.data]

    @property
    def bodies(self) -> list:
        return [message.body for message in self.messages]


def message(body: object, **fields) -> bytes:
    """An encoded message."""
    return bytes(proton.Message(body=body, **fields).encode())


def decoded(data: bytes) -> proton.Message:
    """The message that the bytes hold."""
    made = proton.Message()
    made.decode(data)
    return made


def send(bus: Bus, sender: Sender, *bodies: object, **fields) -> list:
    """Send messages, as many as there is credit for; returns the sender's outcomes."""
    settled = fields.pop("settled", False)
    for body in bodies:
        sender.send(message(body, **fields), body, settled)
    bus.run()
    return sender.context


def drains_of(sender) -> list:
    """When the broker asked for the credit, as a sender notes it and gives it."""
    drains = []

    def drain(link):
        drains.append(link.credit)
        link.drained()

    sender.on_drain = drain
    return drains
