# SPDX-License-Identifier: Apache-2.0
"""The stream may be cut anywhere: what happens does not depend on where.

Each end is played the recorded bytes of the other, in pieces, and must tell of the
same events in the same order as when it got them all at once.
"""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenamqp.engine import Connection, Message, Sasl, Terminus
from greenamqp.engine.sasl import SaslServer
from tests.unit.wire import Recorder, Wire, accepted, output

LARGE = 3000


class Scenario(Recorder):
    """A conversation with a bit of everything.  Reacts to what comes in, so that each
    end can be played the other's part."""

    def __init__(self) -> None:
        super().__init__(self._serve)

    # the client's part

    def connection_opened(self, connection):
        super().connection_opened(connection)
        if isinstance(connection.handler, ClientPart):
            connection.handler.begin(connection)

    # the server's part

    def _serve(self, link):
        if link.remote_target.address == "refused":
            link.reject("amqp:not-found", "no such thing")
            return
        link.accept()
        link.on_detached = lambda link, error: self.events.append(
            ("detached", link.name, str(error))
        )
        if link.is_sender:
            link.on_credit = self._credit
            link.on_settled = lambda link, *outcome: self.events.append(outcome)
        else:
            link.on_message = self._message
            link.flow(10)

    def _credit(self, link):
        while link.credit:
            link.send(b"\x00\x53\x77\xa1\x03abc", f"sent {link.credit}")

    def _message(self, link, delivery, data):
        self.events.append(("message", bytes(data)))
        link.settle(delivery)


class ClientPart(Scenario):
    def begin(self, connection):
        sender = connection.create_sender(Terminus("queue"))
        sender.on_attached = lambda link: self.events.append(("attached",))
        sender.on_credit = self._send
        sender.on_settled = self._settled
        refused = connection.create_sender(Terminus("refused"))
        refused.on_detached = lambda link, error: self.events.append(
            ("refused", str(error))
        )
        receiver = connection.create_receiver(Terminus("queue"))
        receiver.on_attached = lambda link: link.flow(3)
        receiver.on_message = self._receive
        self.sent = self.done = 0

    def _send(self, link):
        for body in ("small", "x" * LARGE, "last")[self.sent :]:
            self.sent += 1
            link.send(link.connection.codec.encode(Message(body, id="1")), self.sent)

    def _settled(self, link, *outcome):
        self.events.append(outcome)
        self._one_done(link)

    def _receive(self, link, delivery, data):
        self._message(link, delivery, data)
        self._one_done(link)

    def _one_done(self, link):
        self.done += 1
        if self.done == 6:
            link.close()
            link.connection.close()


def client() -> Connection:
    connection = Connection(
        "client",
        ClientPart(),
        sasl=Sasl("user", "secret", "PLAIN"),
        properties={"product": "test"},
        max_frame_size=1024,
    )
    connection.open()
    return connection


def server() -> Connection:
    return accepted(
        Scenario(),
        SaslServer({"user": "secret"}, anonymous=False),
        max_frame_size=1024,
    )


@functools.cache
def recording() -> tuple[list[bytes], list[bytes], list, list]:
    """(what the client sent, what the server sent, the events of each).

    In the pieces in which it was sent: each is an answer to the one before, so two of
    them never come together.
    """
    one, other = client(), server()
    wire = Wire(one, other)
    wire.run()
    assert one.closed
    return (
        wire.log[0],
        wire.log[1],
        one.handler.events,
        other.handler.events,
    )


def play(connection: Connection, pieces: list[bytes]) -> list:
    """The events of an end that is played `pieces`; its own output is let go of."""
    connection.process(1.0)
    while output(connection):
        pass
    for piece in pieces:
        view = memoryview(piece)
        while view:
            taken = connection.receive_data(view, len(view))
            assert taken > 0
            view = view[taken:]
            connection.process(1.0)
        while output(connection):
            connection.process(1.0)
    events = connection.handler.events
    connection.destroy()
    return events


def test_the_scenario_has_a_bit_of_everything():
    _, _, ours, theirs = recording()
    kinds = [event[0] for event in ours]
    for kind in ("opened", "attached", "refused", "message"):
        assert kind in kinds
    assert [event[0] for event in theirs].count("message") == 3
    assert [event[0] for event in ours if isinstance(event[0], int)] == [1, 2, 3]
    assert theirs[-1] == ("closed", None)
    assert ("refused", "amqp:not-found: no such thing") in ours


@pytest.mark.parametrize("end", ["client", "server"])
def test_split_at_every_byte(end):
    to_server, to_client, client_events, server_events = recording()
    pieces, events, make = (
        (to_client, client_events, client)
        if end == "client"
        else (to_server, server_events, server)
    )
    for index, piece in enumerate(pieces):
        for cut in range(1, len(piece)):
            parts = [*pieces[:index], piece[:cut], piece[cut:], *pieces[index + 1 :]]
            assert play(make(), parts) == events, f"piece {index}, byte {cut}"


@pytest.mark.parametrize("end", ["client", "server"])
def test_byte_by_byte(end):
    to_server, to_client, client_events, server_events = recording()
    if end == "client":
        stream = b"".join(to_client)
        pieces = [stream[at : at + 1] for at in range(len(stream))]
        assert play(client(), pieces) == client_events
    else:
        stream = b"".join(to_server)
        pieces = [stream[at : at + 1] for at in range(len(stream))]
        assert play(server(), pieces) == server_events


@given(st.lists(st.integers(0, 10_000), max_size=20))
@settings(max_examples=100)
def test_any_pieces(cuts):
    to_server, _, _, server_events = recording()
    pieces = []
    for piece in to_server:
        bounds = sorted({0, len(piece), *(cut % len(piece) for cut in cuts)})
        pieces += [
            piece[start:end] for start, end in zip(bounds, bounds[1:], strict=False)
        ]
    assert play(server(), pieces) == server_events


@pytest.mark.parametrize("limit", [1, 2, 7, 64, 1000])
def test_a_wire_that_carries_little_at_a_time(limit):
    one, other = client(), server()
    Wire(one, other).run(limit)
    assert sorted(map(str, one.handler.events)) == sorted(map(str, recording()[2]))
    assert sorted(map(str, other.handler.events)) == sorted(map(str, recording()[3]))
