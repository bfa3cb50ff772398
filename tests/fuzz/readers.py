# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed by bytes alone: all that code of ours reads of a peer without proton,
the embedded broker's included, and what the formats make of a message.

No driver is built for it, so a process looks at thousands a second.  :func:`run` takes
any bytes, the first of which says who reads them; it raises AssertionError if a promise
is broken, or whatever else a reader raises that it does not promise:

* a message that is read without proton is what proton makes of it, if that can;
* whatever is no message, request or reply is said to be none;
* a reply can be written to each request;
* a login, and what is read of a peer's first frames, comes to the same however the
  stream is cut into pieces;
* nothing is imported.
"""

from __future__ import annotations

import sys
import typing

import oslo_messaging

from greenamqp.broker import encoding
from greenamqp.buses import format, predecessor
from greenamqp.buses.rabbitmq import format as rabbit
from greenamqp.engine import Codec, DecodeError, Message, begin, login, plain, sasl
from tests.fuzz import wire

FORMATS: tuple[format.Format, ...] = (predecessor.PREDECESSOR, rabbit.RABBIT)

#: What plain.Received and proton's decoder both have.
FIELDS = ("body", "id", "reply_to", "correlation_id", "expiry_time")

PASSWORDS = {"user": "secret"}

CODEC = Codec()


def as_message(data: bytes) -> None:
    """A message for a listener or a caller."""
    received = plain.read(data)
    try:
        decoded = CODEC.decode(data)
    except DecodeError:
        decoded = None
    if received is not None and decoded is not None:
        for name in FIELDS:
            given, expected = getattr(received, name), getattr(decoded, name)
            assert given == expected, f"{name}: {given!r}, by proton {expected!r}"
    try:
        request, reply = CODEC.decode_request(data), CODEC.decode_reply(data)
    except DecodeError:
        return
    for each in FORMATS:
        _as_request(each, request)
        _as_reply(each, reply)


def as_forwarded(data: bytes) -> None:
    """A message that the embedded broker hands on."""
    try:
        before = encoding.read_header(data)
        changed = encoding.with_ttl(data, before.ttl // 2)
        encoding.address(data)
        again = encoding.redelivered(data, 1, 7)
    except encoding.Malformed:
        return
    assert len(changed) == len(data)
    assert encoding.time_to_live(changed) == before.ttl // 2
    after = encoding.read_header(again)
    assert after.durable == before.durable
    assert after.ttl == min(before.ttl, 7)
    assert again[after.end :] == data[before.end :]


def as_body(data: bytes) -> None:
    """The body of a message that is well as such."""
    for each in FORMATS:
        _as_request(each, plain.Received(data, "id", "reply-to"))
        _as_reply(each, plain.Received(data, correlation_id="id"))


def _as_request(reader: format.Format, message: plain.Received) -> None:
    for parse in (reader.parse_request, reader.parse_any):
        try:
            request = parse(message)
        except format.BadMessage:
            continue
        assert isinstance(request.context, dict)
        if request.reply_to is not None:
            CODEC.encode(reader.reply(request.id, {"answer": 1}, None, "unique"))
            CODEC.encode(reader.heartbeat(request.id, "unique"))


def _as_reply(reader: format.Format, message: plain.Received) -> None:
    try:
        _, ending, content = reader.open_reply(message)
    except format.BadMessage:
        return
    if ending:
        _result(reader, content)


def _result(reader: format.Format, content: typing.Any) -> None:
    try:
        reader.result(content, wire.ALLOWED)
    except (format.BadMessage, oslo_messaging.RemoteError):
        pass
    except Exception as exc:
        # What the peer says that it raised, of a module that may be named.
        module = type(exc).__module__
        allowed = ("builtins", "oslo_messaging", *wire.ALLOWED)
        assert module.startswith(allowed), repr(exc)


def as_client(data: bytes) -> None:
    """A client that logs in at the embedded broker."""
    _in_pieces(data, lambda: _Server(anonymous=True))
    _in_pieces(data, lambda: _Server(anonymous=False))


class _Server(sasl.SaslServer):
    def __init__(self, anonymous: bool) -> None:
        super().__init__(PASSWORDS, anonymous, external="CN=peer")
        self.rest = b""

    def feed(self, data: bytes) -> None:
        if self.state is sasl.SaslState.DONE:
            self.rest += data
        elif self.state is not sasl.SaslState.FAILED:
            self.rest += self.receive(data)

    def found(self) -> typing.Any:
        return self.state, self.user, bytes(self.output), self.rest


def as_server(data: bytes) -> None:
    """A server at which we log in."""
    _in_pieces(data, _Client)


class _Client(login.Login):
    def __init__(self) -> None:
        super().__init__({"EXTERNAL": b"", "OAUTHBEARER": b"token"})

    def feed(self, data: bytes) -> None:
        if self.state in (login.LoginState.OFFER, login.LoginState.OUTCOME):
            self.receive(data)
        else:
            self.input += data

    def found(self) -> typing.Any:
        left = b"" if self.state is login.LoginState.FAILED else bytes(self.input)
        return self.state, self.outcome, bytes(self.output), left


def as_stream(data: bytes) -> None:
    """A peer's bytes up to its first Begin."""
    _in_pieces(data, _Begin)


class _Begin(begin.BeginReader):
    def feed(self, data: bytes) -> None:  # type: ignore[override]
        if not self.done:
            super().feed(memoryview(data))

    def found(self) -> typing.Any:
        return self.done, self.max_links


def _in_pieces(data: bytes, make: typing.Callable[[], typing.Any]) -> None:
    whole, halves, bytewise = make(), make(), make()
    whole.feed(data)
    middle = len(data) // 2
    halves.feed(data[:middle])
    halves.feed(data[middle:])
    for at in range(len(data)):
        bytewise.feed(data[at : at + 1])
    assert whole.found() == halves.found() == bytewise.found()


READERS = (as_message, as_body, as_client, as_server, as_stream, as_forwarded)


def run(data: bytes) -> None:
    """Have the reader that the first byte names read the rest.

    :raises AssertionError: a promise is broken
    """
    if not data:
        return
    READERS[data[0] % len(READERS)](data[1:])
    imported = [name for name in wire.TRAPS if name in sys.modules]
    assert not imported, f"imported: {imported}"


def seeds() -> list[bytes]:
    """Bytes that lead far into each reader, to begin with."""
    messages, bodies = [], []
    for each in FORMATS:
        request = each.request({"method": "m", "args": {"a": 1}}, {"c": 1}, "u" * 32, 5)
        each.expect_reply(request, "1", "reply")
        told = (
            request,
            each.notification({"event_type": "e"}, {}, "u" * 32, envelope=True),
            each.reply("1", {"a": [1.5, None, True]}, None, "u"),
            each.reply("1", None, _failure(), "u"),
            each.heartbeat("1", "u"),
        )
        messages += [CODEC.encode(message) for message in told]
        bodies += [_bytes(message.body) for message in told if message.body]
    frames = sasl.sasl_frame
    plain_init = b"\xc0\x18\x02\xa3\x05PLAIN\xa0\x0c\0user\0secret"
    external = b"\xc0\x0c\x01\xa3\x08EXTERNAL"
    one_symbol = b"\xc0\x0b\x01\xa3\x08EXTERNAL"
    array = b"\xc0\x17\x01\xe0\x14\x02\xa3\x05PLAIN\x0bOAUTHBEARER"
    accepted = frames(sasl.OUTCOME, b"\xc0\x03\x01\x50\x00")
    opened = wire.frame(wire.described(0x10, ["list", "container"]))
    begun = wire.frame(
        wire.described(0x11, ["list", None, ["uint", 0], *[["uint", 9]] * 3])
    )
    start = sasl.SASL_HEADER
    clients = [
        start + frames(sasl.INIT, init) + sasl.AMQP_HEADER + opened
        for init in (plain_init, external)
    ]
    servers = [
        start + frames(sasl.MECHANISMS, offer) + accepted + sasl.AMQP_HEADER
        for offer in (one_symbol, array)
    ]
    streams = [sasl.AMQP_HEADER + opened + begun]
    lasting = Message("text", id="i", address="to", ttl=60, durable=True, priority=7)
    forwarded = [CODEC.encode(lasting)]
    groups = (messages, bodies, clients, servers, streams, forwarded)
    return [
        bytes((kind,)) + data for kind, group in enumerate(groups) for data in group
    ]


def _bytes(body: str | bytes) -> bytes:
    return body if isinstance(body, bytes) else body.encode()


def _failure() -> typing.Any:
    try:
        raise ValueError("wrong")
    except ValueError:
        return sys.exc_info()
