# SPDX-License-Identifier: Apache-2.0
"""Peers that mean harm: bounded memory, a clear error, and no crash."""

from __future__ import annotations

import struct
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenamqp.engine import Connection, LinkState, RemoteProtocolError
from greenamqp.engine import connection as connection_module
from tests.unit.test_engine_split import recording, server
from tests.unit.wire import RawPeer, Recorder, accepted, feed, output


class Taker(Recorder):
    """Takes every link and message, and keeps only what it was told of the end."""

    def __init__(self):
        super().__init__(self._take)
        self.messages = 0
        self.detached = []

    def _take(self, link):
        link.accept()
        link.on_detached = lambda link, error: self.detached.append(str(error))
        if not link.is_sender:
            link.on_message = self._message
            link.flow(100)

    def _message(self, link, delivery, data):
        self.messages += 1
        link.settle(delivery)


def raw(handler=None, **options) -> RawPeer:
    peer = RawPeer(accepted(handler or Taker(), **options))
    peer.run()
    return peer


def sizes(engine: Connection) -> list[int]:
    """What an engine keeps per link and session."""
    lifecycle = engine.lifecycle
    return [
        len(engine._links),
        len(engine.unfinished),
        len(engine._doomed),
        len(engine.sessions_over),
        len(lifecycle._sender_links),
        len(lifecycle._receiver_links),
    ]


@pytest.mark.parametrize("end", ["close", "detach", "session", "detach-close"])
@pytest.mark.parametrize("kind", ["sender", "receiver"])
def test_links_and_sessions_that_come_and_go_leave_nothing(kind, end):
    peer = raw()
    engine = peer.server
    for number in range(50):
        session = peer.session()
        link = getattr(session, kind)(f"link {number}")
        link.target.address = link.source.address = "a"
        link.open()
        peer.run()
        if end == "close":
            link.close()
        elif end == "detach":
            link.detach()
        elif end == "detach-close":
            link.detach()
            peer.run()
            link.close()
        session.close()
        peer.run()
        link.free()
        link = None
        session.free()
        session = None
        peer.server.handler.links.clear()
        assert sizes(engine) == [0] * 6
    assert engine.failed is None


def test_a_link_that_is_suspended_is_over():
    handler = Taker()
    peer = raw(handler)
    link = peer.sender("a")
    link.detach()
    peer.run()
    assert handler.detached == ["None"]
    assert handler.links[0].state is LinkState.DETACHED
    assert not handler.links[0].settle(None)


def performative(code: int, *fields: bytes) -> bytes:
    """A frame on channel 0 with these fields, each encoded."""
    content = b"".join(fields)
    body = b"\x00\x53" + bytes((code, 0xC0, len(content) + 1, len(fields))) + content
    return struct.pack(">IBBH", 8 + len(body), 2, 0, 0) + body


def why(info: bytes = b"\x40") -> bytes:
    """An error, encoded."""
    content = b"\xa3\x0camqp:illegal\xa1\x03why" + info
    return b"\x00\x53\x1d" + bytes((0xC0, len(content) + 1, 3)) + content


TRUE, FALSE, HANDLE = b"\x41", b"\x42", b"\x43"


def test_a_link_that_is_suspended_says_why():
    handler = Taker()
    peer = raw(handler)
    peer.sender("a")
    feed(peer.server, performative(0x16, HANDLE, FALSE, why()))
    peer.server.process(1.0)
    assert handler.detached == ["amqp:illegal: why"]


def test_a_detach_whose_reason_makes_no_sense():
    """It has a list for a map's key."""
    handler = Taker()
    peer = raw(handler)
    peer.sender("a")
    feed(
        peer.server,
        performative(0x16, HANDLE, TRUE, why(b"\xc1\x05\x02\xc0\x01\x00\x41")),
    )
    peer.server.process(1.0)
    assert handler.events[-1][0] == "failed"
    assert "makes no sense" in handler.events[-1][1]
    assert len(handler.detached) == 1


@pytest.mark.parametrize("end", ["detach", "session"])
def test_what_crosses_our_detach_is_its_answer(end):
    handler = Taker()
    peer = raw(handler)
    link = peer.sender("a")
    (ours,) = handler.links
    closed = []
    ours.on_closed = closed.append
    ours.close()
    if end == "detach":
        link.detach()
    else:
        link.session.close()
    peer.run()
    assert closed == [ours]
    assert handler.detached == []
    assert sizes(peer.server) == [0] * 6
    assert peer.server.failed is None


def test_more_sessions_than_allowed():
    peer = raw(channel_max=3)
    for _ in range(4):
        peer.session()
    peer.run()
    assert peer.server.failed is None
    # proton on our side keeps to what it was told, so the peer's is told a lie.
    begin = bytes.fromhex(
        "00000021 0200 0009 005311 c0140540 5201 707fffffff 707fffffff"
    )
    begin += bytes.fromhex("70000000ff 4040")[: 0x21 - len(begin)]
    feed(peer.server, begin)
    peer.server.process(1.0)
    assert peer.server.failed is not None


def test_a_second_link_of_the_same_name_ends_the_connection():
    handler = Taker()
    peer = raw(handler)
    for _ in range(2):
        link = peer.session().sender("same")
        link.target.address = "a"
        link.open()
    peer.run()
    assert handler.events[-1][0] == "failed"
    assert "'same'" in handler.events[-1][1]


@pytest.mark.parametrize("where", ["name", "address", "container"])
def test_text_that_is_not_utf8(where):
    handler = Taker()
    engine = accepted(handler)
    peer = RawPeer(engine, container="PATCH" if where == "container" else "raw")
    peer.patch = lambda data: data.replace(b"PATCH", b"\xff\xfe\xfd\xfc\xfb")
    peer.run()
    peer.sender(
        "PATCH" if where == "address" else "a", "PATCH" if where == "name" else "s"
    )
    if where == "container":
        with pytest.raises(RemoteProtocolError, match="UnicodeDecodeError"):
            _ = engine.remote_container
        return
    if where == "address" and engine.failed is None:
        with pytest.raises(RemoteProtocolError, match="UnicodeDecodeError"):
            _ = handler.links[0].remote_target
        return
    assert handler.events[-1][0] == "failed"
    assert "protocol" in handler.events[-1][1]


@pytest.mark.parametrize("credit", [2**31, 2**32 - 1])
def test_credit_that_proton_cannot_count_costs_the_link(credit):
    handler = Taker()
    peer = raw(handler)
    receiver = peer.receiver("a")
    few, many = (struct.pack(">I", each) for each in (0x12345678, credit))
    peer.patch = lambda data: data.replace(few, many)
    receiver.flow(0x12345678)
    peer.run()
    (told,) = handler.detached
    assert told.startswith("amqp:not-implemented: a credit of more than 2147483647")
    assert receiver.remote_condition.name == "amqp:not-implemented"
    assert peer.server.failed is None


def test_credit_that_is_taken_back_costs_nothing():
    handler = Taker()
    peer = raw(handler)
    receiver = peer.receiver("a")
    receiver.flow(0x12345678)
    peer.run()
    (link,) = handler.links
    link.send(b"\x00\x53\x77\x40", None)
    # The peer has not seen that one, and gives none any more.
    few, none = (struct.pack(">I", each) for each in (0x1234567A, 0))
    peer.patch = lambda data: data.replace(few, none)
    receiver.flow(2)
    peer.run()
    assert link.credit == -1
    assert handler.detached == []


def test_a_message_larger_than_allowed_costs_the_link():
    handler = Taker()
    peer = raw(handler, max_message_size=10_000, max_frame_size=1024)
    session = peer.session()
    links = [session.sender(name) for name in ("large", "small")]
    for link in links:
        link.target.address = link.name
        link.open()
    peer.run()
    for link, size in zip(links, (10_001, 10_000), strict=True):
        link.delivery("tag")
        link.send(bytes(size))
        link.advance()
    peer.run()
    assert handler.messages == 1
    assert handler.detached == [
        "amqp:link:message-size-exceeded: a message of more than 10000 bytes"
    ]
    assert links[0].remote_condition.name == "amqp:link:message-size-exceeded"
    assert peer.server.failed is None
    assert not peer.server.unfinished


def test_a_message_that_never_ends_is_cut_off():
    handler = Taker()
    peer = raw(handler, max_message_size=100_000, max_frame_size=1024)
    link = peer.sender("a")
    link.delivery("tag")
    for _ in range(1000):
        link.send(bytes(1000))
        peer.run()
        if handler.detached:
            break
    assert handler.detached and "message-size" in handler.detached[0]


def test_unfinished_messages_on_many_links_are_bounded():
    handler = Taker()
    peer = raw(handler, max_message_size=100_000, max_unfinished=250_000)
    session = peer.session()
    for number in range(10):
        link = session.sender(str(number))
        link.target.address = "a"
        link.open()
        peer.run()
        link.delivery("tag")
        link.send(bytes(90_000))
        peer.run()
        if handler.events[-1][0] == "failed":
            break
    assert "250000" in handler.events[-1][1]
    assert number < 3


def test_aborted_messages_are_told_of_and_forgotten():
    dropped = []
    handler = Taker()
    peer = raw(handler)
    link = peer.sender("a")
    handler.links[0].on_aborted = dropped.append
    for tag in "abc":
        delivery = link.delivery(tag)
        link.send(b"begun")
        peer.run()
        delivery.abort()
        peer.run()
    link.delivery("whole")
    link.send(b"whole")
    link.advance()
    peer.run()
    assert len(dropped) == 3
    assert handler.messages == 1
    assert not peer.server.unfinished


def test_a_frame_larger_than_allowed():
    handler = Taker()
    peer = raw(handler, max_frame_size=512)
    feed(peer.server, struct.pack(">IBBH", 10**9, 2, 0, 0) + bytes(600))
    peer.server.process(1.0)
    assert handler.events[-1][0] == "failed"


def test_endless_heartbeats_are_only_time():
    handler = Taker()
    peer = raw(handler)
    empty = struct.pack(">IBBH", 8, 2, 0, 0)
    assert feed(peer.server, empty * 10_000) == 80_000
    assert peer.server.failed is None
    assert sizes(peer.server) == [0] * 6


@given(st.data())
@settings(max_examples=300)
def test_damaged_streams_never_do_more_than_fail(data):
    """Bytes of a conversation with some of them changed: it goes on, or it fails with
    a reason, or the SASL exchange does; no callback raises."""
    pieces = list(recording()[0])
    at = data.draw(st.integers(0, len(pieces) - 1))
    piece = bytearray(pieces[at])
    for _ in range(data.draw(st.integers(1, 3))):
        piece[data.draw(st.integers(0, len(piece) - 1))] = data.draw(
            st.integers(0, 255)
        )
    pieces[at] = bytes(piece)
    engine = server()
    with mock.patch.object(connection_module.LOG, "exception") as raised:
        for piece in pieces:
            feed(engine, piece)
            engine.process(1.0)
            while output(engine):
                engine.process(1.0)
    assert not raised.called
    if engine.failed is not None:
        assert str(engine.failed)
        failures = [event for event in engine.handler.events if event[0] == "failed"]
        assert len(failures) == 1


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_noise_after_the_header(noise):
    handler = Taker()
    engine = accepted(handler)
    feed(engine, b"AMQP\x00\x01\x00\x00" + noise)
    engine.process(1.0)
    while output(engine):
        engine.process(1.0)
    engine.receive_eof()
    engine.abort("the end")
    engine.process(1.0)
    assert [event[0] for event in handler.events] in (["failed"], ["opened", "failed"])
    engine.destroy()
