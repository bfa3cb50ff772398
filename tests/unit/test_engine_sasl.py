# SPDX-License-Identifier: Apache-2.0
"""The server's SASL: every state, byte by byte, and proton as the client."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenamqp.engine import Connection, Sasl
from greenamqp.engine.sasl import MAX_FRAME, SaslServer, SaslState
from tests.unit.wire import Recorder, Wire, accepted, feed, output

SASL = b"AMQP\x03\x01\x00\x00"
AMQP = b"AMQP\x00\x01\x00\x00"
USERS = {"alice": "pass:word", "böb": "ünï"}


def frame(code: int, *fields: bytes | None, channel: int = 0) -> bytes:
    """A SASL frame with symbols and binaries for fields, as a client sends it."""
    body = b""
    for number, field in enumerate(fields):
        if field is None:
            body += b"\x40"
        else:
            kind = 0xA3 if code == 0x41 and number == 0 else 0xA0
            body += bytes((kind, len(field))) + field
    content = b"\x00\x53" + bytes((code, 0xC0, len(body) + 1, len(fields))) + body
    return struct.pack(">IBBH", 8 + len(content), 2, 1, channel) + content


def init(mechanism: bytes, response: bytes | None = None) -> bytes:
    return frame(0x41, mechanism, response)


def plain(user: str, password: str) -> bytes:
    return b"\0" + user.encode() + b"\0" + password.encode()


def outcome(server: SaslServer) -> int | None:
    """The code of the sasl-outcome at the end of the output, None if there is none."""
    position = server.output.find(b"\x00\x53\x44")
    return server.output[-1] if position >= 0 else None


@pytest.mark.parametrize(
    ("server", "stream", "user"),
    [
        (SaslServer, SASL + init(b"ANONYMOUS"), None),
        (SaslServer, SASL + init(b"ANONYMOUS", b"me@host"), None),
        (SaslServer, b"", None),
        (
            lambda: SaslServer(USERS, False),
            SASL + init(b"PLAIN", plain("alice", "pass:word")),
            "alice",
        ),
        (
            lambda: SaslServer(USERS, False),
            SASL + init(b"PLAIN", plain("böb", "ünï")),
            "böb",
        ),
        (
            lambda: SaslServer(USERS, False),
            SASL + init(b"PLAIN") + frame(0x43, plain("alice", "pass:word")),
            "alice",
        ),
        (
            lambda: SaslServer(None, False, "CN=me"),
            SASL + init(b"EXTERNAL", b""),
            "CN=me",
        ),
    ],
    ids=[
        "anonymous",
        "anonymous-with-trace",
        "no-sasl",
        "plain",
        "plain-unicode",
        "plain-challenged",
        "external",
    ],
)
def test_let_in_wherever_the_stream_is_cut(server, stream, user):
    stream += AMQP + b"what follows"
    for cut in range(len(stream) + 1):
        exchange = server()
        rest = exchange.receive(stream[:cut])
        if exchange.state is SaslState.DONE:
            rest += stream[cut:]
        else:
            rest += exchange.receive(stream[cut:])
        assert exchange.state is SaslState.DONE, f"cut at {cut}"
        assert rest == AMQP + b"what follows"
        assert exchange.user == user
        assert outcome(exchange) in ((0,) if stream.startswith(SASL) else (None,))


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (SASL + init(b"PLAIN", plain("alice", "wrong")), "wrong user or password"),
        (SASL + init(b"PLAIN", plain("nobody", "")), "wrong user or password"),
        (SASL + init(b"PLAIN", b"alice"), "wrong user or password"),
        (SASL + init(b"PLAIN", b"\0\xff\xfe\0x"), "wrong user or password"),
        (SASL + init(b"PLAIN", b"\0alice\0pass:word\0more"), "wrong user"),
        (SASL + init(b"PLAIN") + frame(0x43, b""), "wrong user or password"),
        (SASL + init(b"ANONYMOUS"), "mechanism 'ANONYMOUS'"),
        (SASL + init(b"EXTERNAL"), "mechanism 'EXTERNAL'"),
        (SASL + init(b"CRAM-MD5"), "mechanism 'CRAM-MD5'"),
        (SASL + frame(0x41, None, None), "mechanism ''"),
    ],
)
def test_turned_away(stream, reason):
    exchange = SaslServer(USERS, anonymous=False)
    assert exchange.receive(stream + AMQP) == b""
    assert exchange.state is SaslState.FAILED
    assert reason in exchange.reason
    assert outcome(exchange) == 1
    assert "pass:word" not in exchange.reason


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"AMQP\x02\x01\x00\x00",
        b"AMQP\x00\x00\x09\x01",
        SASL + b"\x00\x00\x00\x07\x02\x01\x00\x00",
        SASL + struct.pack(">IBBH", MAX_FRAME + 1, 2, 1, 0),
        SASL + struct.pack(">IBBH", 12, 2, 0, 0) + bytes(4),
        SASL + struct.pack(">IBBH", 12, 1, 1, 0) + bytes(4),
        SASL + struct.pack(">IBBH", 12, 9, 1, 0) + bytes(4),
        SASL + struct.pack(">IBBH", 12, 2, 1, 0) + bytes(4),
        SASL + struct.pack(">IBBH", 8, 2, 1, 0),
        SASL + frame(0x43, b"response without init"),
        SASL + frame(0x40),
        SASL + SASL,
        SASL + init(b"ANONYMOUS") + SASL,
        SASL + init(b"ANONYMOUS") + init(b"ANONYMOUS"),
    ],
)
def test_what_is_no_sasl(stream):
    exchange = SaslServer()
    assert exchange.receive(stream) == b""
    assert exchange.state is SaslState.FAILED
    assert exchange.reason
    assert exchange.receive(b"more") == b""
    # It said what it speaks, for whoever debugs the peer.
    assert exchange.output.startswith((SASL, AMQP))


def test_who_must_log_in_may_not_go_past_it():
    exchange = SaslServer(USERS, anonymous=False)
    assert exchange.receive(AMQP) == b""
    assert exchange.state is SaslState.FAILED
    assert exchange.reason == "the peer did not log in"


def test_frames_without_end():
    exchange = SaslServer(USERS, anonymous=False)
    exchange.receive(SASL)
    for _ in range(100):
        exchange.receive(init(b"PLAIN"))
    assert exchange.state is SaslState.FAILED
    assert len(exchange.output) < 1000


@pytest.mark.parametrize(
    ("options", "mechanisms"),
    [
        ({}, ("ANONYMOUS",)),
        ({"passwords": USERS}, ("PLAIN", "ANONYMOUS")),
        ({"passwords": USERS, "anonymous": False}, ("PLAIN",)),
        ({"external": "me", "passwords": USERS}, ("EXTERNAL", "PLAIN", "ANONYMOUS")),
    ],
)
def test_what_is_offered(options, mechanisms):
    exchange = SaslServer(**options)
    exchange.receive(SASL)
    assert exchange.mechanisms == mechanisms
    for name in ("EXTERNAL", "PLAIN", "ANONYMOUS"):
        assert (name.encode() in exchange.output) is (name in mechanisms)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_noise(noise):
    exchange = SaslServer(USERS, anonymous=False)
    exchange.receive(SASL + noise)
    assert exchange.state in (SaslState.INIT, SaslState.RESPONSE, SaslState.FAILED)
    assert exchange.user is None


# -- with an engine behind it, and proton as the client


@pytest.mark.parametrize("limit", [1, 5, 64 * 1024])
@pytest.mark.parametrize(
    ("sasl", "user"),
    [
        (Sasl(mechanisms="ANONYMOUS"), None),
        (Sasl("alice", "pass:word"), "alice"),
        (Sasl("böb", "ünï", "PLAIN"), "böb"),
        (None, None),
    ],
)
def test_protons_client_is_let_in(sasl, user, limit):
    handler = Recorder()
    client = Connection("client", handler, sasl=sasl)
    server = accepted(sasl=SaslServer(USERS, anonymous=True))
    client.open()
    Wire(client, server).run(limit)
    assert handler.events == [("opened",)] == server.handler.events
    assert server.user == user


@pytest.mark.parametrize(
    ("sasl", "reason"),
    [
        (Sasl("alice", "wrong", "PLAIN"), "wrong user or password"),
        (Sasl(mechanisms="ANONYMOUS"), "no common|mechanism|without a word"),
        (None, "did not log in"),
    ],
)
def test_protons_client_is_turned_away(sasl, reason):
    ours, theirs = Recorder(), Recorder()
    client = Connection("client", ours, sasl=sasl)
    server = accepted(theirs, SaslServer(USERS, anonymous=False))
    client.open()
    Wire(client, server).run()
    if not server.failed:
        # A client that finds no mechanism leaves.
        assert client.failed
        return
    assert server.finished
    assert [event[0] for event in theirs.events] == ["failed"]
    assert reason in theirs.events[0][1]
    assert ours.events and ours.events[0][0] == "failed"
    # Whatever else comes is not looked at.
    assert feed(server, b"anything") == 0
    assert output(server) == b""


def test_a_second_exchange_is_refused():
    handler = Recorder()
    server = accepted(handler, SaslServer())
    feed(server, SASL + init(b"ANONYMOUS") + AMQP + SASL)
    server.process(1.0)
    while output(server):
        server.process(1.0)
    assert handler.events and handler.events[0][0] == "failed"


def test_what_is_written_is_counted():
    told = []
    server = accepted()
    client = Connection("client", Recorder())
    client.open()
    wire = Wire(client, server)
    wire.run()
    server.unwritten = 17
    server.on_written = lambda: told.append("written")
    wire.run()
    assert server.unwritten == 0
    assert told == ["written"]
    wire.run()
    assert told == ["written"]
