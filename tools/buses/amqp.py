# SPDX-License-Identifier: Apache-2.0
"""Ask a port whether it speaks AMQP 1.0 and lets a user in.

Used to know when a bus is ready.  A port that accepts a TCP connection proves
little (a broker may listen long before its virtual host is up), so this logs
in with SASL PLAIN, opens a connection and reads the peer's Open frame.  It
knows just enough of AMQP for that and is no client.  Standard library only,
so that the tool runs before anything is installed.
"""

from __future__ import annotations

import socket
import struct

_SASL_HEADER = b"AMQP\x03\x01\x00\x00"
_AMQP_HEADER = b"AMQP\x00\x01\x00\x00"
_SASL_INIT, _SASL_OUTCOME = 0x41, 0x44
_OPEN, _CLOSE = 0x10, 0x18
#: Nothing that is read here comes near this; a larger size means garbage.
_MAX_FRAME = 1 << 20


class NotReady(Exception):
    """The peer does not (yet) serve AMQP 1.0 to this user; the text says why."""


def _binary(data: bytes, code: int) -> bytes:
    """Encode *data* as vbin8 (0xa0), str8 (0xa1) or sym8 (0xa3)."""
    return bytes((code, len(data))) + data


def _frame(kind: int, performative: int, *fields: bytes) -> bytes:
    payload = b"".join(fields)
    body = bytes((0x00, 0x53, performative, 0xC0, len(payload) + 1, len(fields)))
    body += payload
    return struct.pack(">IBBH", 8 + len(body), 2, kind, 0) + body


def _read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise NotReady("the peer closed the connection")
        data += more
    return data


def _read_frame(sock: socket.socket) -> tuple[int, bytes]:
    """Return (performative, rest of the body) of the next frame with a body."""
    while True:
        size, doff, _kind, _channel = struct.unpack(">IBBH", _read_exactly(sock, 8))
        if not 8 <= size <= _MAX_FRAME:
            raise NotReady("the peer does not speak AMQP 1.0")
        body = _read_exactly(sock, size - 8)[doff * 4 - 8 :]
        if not body:
            continue
        if body[:2] != b"\x00\x53":
            raise NotReady("the peer's frame cannot be read")
        return body[2], body[3:]


def _expect_header(sock: socket.socket, header: bytes) -> None:
    got = _read_exactly(sock, len(header))
    if got != header:
        raise NotReady(f"the peer answered {got!r} to {header!r}")


def check(
    host: str, port: int, user: str, password: str, timeout: float = 10.0
) -> None:
    """Log in at *host*:*port* and open a connection, then close it.

    *timeout* is in seconds and bounds each read.  Raises NotReady or OSError.
    """
    with socket.create_connection((host, port), timeout) as sock:
        sock.sendall(_SASL_HEADER)
        _expect_header(sock, _SASL_HEADER)
        _performative, mechanisms = _read_frame(sock)
        if b"PLAIN" not in mechanisms.replace(b"AMQPLAIN", b""):
            raise NotReady("the peer does not offer SASL PLAIN")
        plain = f"\0{user}\0{password}".encode()
        sock.sendall(
            _frame(1, _SASL_INIT, _binary(b"PLAIN", 0xA3), _binary(plain, 0xA0))
        )
        performative, body = _read_frame(sock)
        if performative != _SASL_OUTCOME or b"\x50\x00" not in body:
            raise NotReady(f"user {user!r} was not let in")
        sock.sendall(_AMQP_HEADER)
        _expect_header(sock, _AMQP_HEADER)
        sock.sendall(_frame(0, _OPEN, _binary(b"readiness check", 0xA1)))
        performative, _body = _read_frame(sock)
        if performative != _OPEN:
            raise NotReady("the peer did not open the connection")
        sock.sendall(struct.pack(">IBBH", 12, 2, 0, 0) + b"\x00\x53\x18\x45")
        performative, body = _read_frame(sock)
        # Our own close is answered with an empty one.  A close that carries
        # an error was on its way before: the virtual host is not there yet.
        if performative != _CLOSE or b"amqp:" in body:
            raise NotReady("the peer closed the connection with an error")
