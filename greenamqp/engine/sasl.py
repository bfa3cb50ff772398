# SPDX-License-Identifier: Apache-2.0
"""The server's side of SASL, and the connection of a server that uses it.

python-qpid-proton's server side knows ANONYMOUS and EXTERNAL alone unless it was
built with Cyrus SASL, and then takes users from Cyrus's files.  So a server speaks
SASL itself (AMQP 1.0 part 5, section 5.3): :class:`SaslServer` turns bytes into bytes,
and :class:`AcceptedConnection` puts it before an engine.

A client that sends no SASL header is let in where ANONYMOUS is allowed.
"""

from __future__ import annotations

import enum
import hmac
import logging
import struct
import typing

from greenamqp.engine import capi
from greenamqp.engine.connection import Connection, ConnectionHandler

LOG = logging.getLogger(__name__)

SASL_HEADER = b"AMQP\x03\x01\x00\x00"
AMQP_HEADER = b"AMQP\x00\x01\x00\x00"

# No SASL frame is larger than this (section 5.3.1).
MAX_FRAME = 512

# A client that tries passwords gets no more frames than an exchange can need.
MAX_FRAMES = 4

MECHANISMS, INIT, CHALLENGE, RESPONSE, OUTCOME = range(0x40, 0x45)
_OK = 0
_AUTH = 1


class SaslState(enum.Enum):
    """Where the exchange is.

    ===========  =======================================  ==================
    state        what comes                               next
    ===========  =======================================  ==================
    HEADER       the SASL header                          INIT
    HEADER       the AMQP header, ANONYMOUS allowed       DONE
    HEADER       anything else                            FAILED
    INIT         sasl-init with a response                AMQP or FAILED
    INIT         sasl-init without one, where one is due  RESPONSE
    RESPONSE     sasl-response                            AMQP or FAILED
    AMQP         the AMQP header                          DONE
    AMQP         anything else                            FAILED
    ===========  =======================================  ==================
    """

    HEADER = "header"
    INIT = "init"
    RESPONSE = "response"
    AMQP = "amqp"
    DONE = "done"
    FAILED = "failed"


class Broken(Exception):
    """The peer sent what does not belong there."""


class SaslServer:
    """One exchange.  Feed it bytes, send its ``output``, ask its ``state``.

    :param passwords: PLAIN passwords by user name; None: PLAIN is not offered
    :param anonymous: whether ANONYMOUS is offered
    :param external: whom the transport below says the peer is (TLS: its
        certificate's subject); None: EXTERNAL is not offered
    """

    def __init__(
        self,
        passwords: typing.Mapping[str, str] | None = None,
        anonymous: bool = True,
        external: str | None = None,
    ) -> None:
        self.state = SaslState.HEADER
        self.output = bytearray()
        #: who the peer is, once DONE; None: nobody in particular
        self.user: str | None = None
        #: why it FAILED
        self.reason = ""
        self._passwords = passwords
        self._anonymous = anonymous
        self._external = external
        self._mechanism = ""
        self._input = bytearray()
        self._frames = 0
        self.mechanisms = tuple(
            name
            for name, offered in (
                ("EXTERNAL", external is not None),
                ("PLAIN", passwords is not None),
                ("ANONYMOUS", anonymous),
            )
            if offered
        )

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the peer.  Returns those that are for the AMQP connection,
        its header included: empty until DONE."""
        self._input += data
        try:
            while self._step():
                pass
        except Broken as exc:
            self._fail(str(exc))
        if self.state is not SaslState.DONE:
            return b""
        rest = bytes(self._input)
        self._input.clear()
        return rest

    def _step(self) -> bool:
        """Do one thing; returns whether something changed."""
        state = self.state
        if state is SaslState.HEADER or state is SaslState.AMQP:
            start = bytes(self._input[:8])
            expected: tuple[bytes, ...] = (AMQP_HEADER, SASL_HEADER)
            if state is SaslState.AMQP:
                expected = expected[:1]
            if not any(header.startswith(start) for header in expected):
                # Tell the peer what we speak, and close (part 2, section 2.2).
                if not self.output:
                    header = SASL_HEADER if state is SaslState.HEADER else AMQP_HEADER
                    self.output += header
                raise Broken(f"the peer does not speak AMQP 1.0: it sent {start!r}")
            if len(start) < 8:
                return False
            if state is SaslState.AMQP:
                self.state = SaslState.DONE
            elif start == SASL_HEADER:
                del self._input[:8]
                self.output += SASL_HEADER
                self.output += sasl_frame(MECHANISMS, _symbols(self.mechanisms))
                self.state = SaslState.INIT
            elif self._anonymous:
                self.state = SaslState.DONE
            else:
                self.output += SASL_HEADER
                raise Broken("the peer did not log in")
            return True
        if state in (SaslState.INIT, SaslState.RESPONSE):
            frame = self._next_frame()
            if frame is None:
                return False
            self._frame(*frame)
            return True
        return False

    def _next_frame(self) -> tuple[int, list[bytes | None]] | None:
        frame = take_frame(self._input)
        if frame is not None:
            self._frames += 1
            if self._frames > MAX_FRAMES:
                raise Broken("the peer sent too many SASL frames")
        return frame

    def _frame(self, code: int, fields: list[bytes | None]) -> None:
        if self.state is SaslState.INIT and code == INIT and fields:
            self._mechanism = (fields[0] or b"").decode("ascii", "replace")
            if self._mechanism not in self.mechanisms:
                self._refuse(f"the peer asked for the mechanism {self._mechanism!r}")
                return
            response = fields[1] if len(fields) > 1 else None
            if response is None and self._mechanism == "PLAIN":
                self.output += sasl_frame(CHALLENGE, b"\xc0\x03\x01\xa0\x00")
                self.state = SaslState.RESPONSE
                return
            self._authenticate(response or b"")
        elif self.state is SaslState.RESPONSE and code == RESPONSE and fields:
            self._authenticate(fields[0] or b"")
        else:
            raise Broken(f"SASL frame 0x{code:02x} does not belong there")

    def _authenticate(self, response: bytes) -> None:
        if self._mechanism == "ANONYMOUS":
            self.user = None
        elif self._mechanism == "EXTERNAL":
            self.user = self._external
        else:
            user = self._check_plain(response)
            if user is None:
                self._refuse("wrong user or password")
                return
            self.user = user
        self.output += sasl_frame(OUTCOME, b"\xc0\x03\x01\x50" + bytes((_OK,)))
        self.state = SaslState.AMQP

    def _check_plain(self, response: bytes) -> str | None:
        """The user that a PLAIN response (RFC 4616) names with the right password."""
        parts = response.split(b"\0")
        if len(parts) != 3 or self._passwords is None:
            return None
        try:
            user = parts[1].decode()
        except UnicodeDecodeError:
            return None
        password = self._passwords.get(user)
        # An unknown user takes as long as a wrong password.
        matches = hmac.compare_digest((password or "").encode(), parts[2])
        return user if matches and password is not None else None

    def _refuse(self, reason: str) -> None:
        self.output += sasl_frame(OUTCOME, b"\xc0\x03\x01\x50" + bytes((_AUTH,)))
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        self.state = SaslState.FAILED
        self.reason = reason
        self._input.clear()


def take_frame(data: bytearray) -> tuple[int, list[bytes | None]] | None:
    """(descriptor, fields) of the SASL frame that `data` begins with, which is taken
    out of it; None while it is not complete.

    :raises Broken: it is none
    """
    if len(data) < 8:
        return None
    size, offset, kind = struct.unpack_from(">IBB", data)
    if not 8 <= size <= MAX_FRAME or kind != 1 or not 2 <= offset <= size // 4:
        raise Broken("the peer sent a frame that is no SASL frame")
    if len(data) < size:
        return None
    body = bytes(data[4 * offset : size])
    del data[:size]
    try:
        return _read(body)
    except (IndexError, struct.error):
        raise Broken("the peer sent a SASL frame that is cut off") from None


def sasl_frame(code: int, body: bytes) -> bytes:
    """A SASL frame whose body is a list, given with its constructor."""
    content = b"\x00\x53" + bytes((code,)) + body
    return struct.pack(">IBBH", 8 + len(content), 2, 1, 0) + content


def sasl_offer(greeting: bytes) -> tuple[str, ...] | None:
    """The SASL mechanisms that a server offers, from its first bytes; None if it has
    not come so far."""
    if not greeting.startswith(SASL_HEADER):
        return None
    try:
        size, offset, kind = struct.unpack_from(">IBB", greeting, 8)
        body = greeting[8 + 4 * offset : 8 + size]
        if kind != 1 or len(body) < size - 4 * offset:
            return None
        return tuple(_mechanisms(body))
    except (IndexError, struct.error):
        return None


def _mechanisms(body: bytes) -> typing.Iterator[str]:
    """The symbols in the only field of a sasl-mechanisms frame (section 5.3.3.1)."""
    if body[:3] == b"\x00\x53\x40":
        at = 3
    elif body[:10] == b"\x00\x80\x00\x00\x00\x00\x00\x00\x00\x40":
        at = 10
    else:
        return
    # The list of fields; then an array of symbols, or one symbol alone.
    at += {0xC0: 3, 0xD0: 9}[body[at]] if body[at] in (0xC0, 0xD0) else len(body)
    kind = body[at]
    if kind == 0xE0:
        count, element, at = body[at + 2], body[at + 3], at + 4
    elif kind == 0xF0:
        count, element, at = (
            struct.unpack_from(">I", body, at + 5)[0],
            body[at + 9],
            at + 10,
        )
    else:
        count, element, at = 1, kind, at + 1
    for _ in range(count):
        if element == 0xA3:
            size, at = body[at], at + 1
        elif element == 0xB3:
            size, at = struct.unpack_from(">I", body, at)[0], at + 4
        else:
            return
        if at + size > len(body):
            return
        yield body[at : at + size].decode("ascii", "replace")
        at += size


def _symbols(names: typing.Sequence[str]) -> bytes:
    """A list whose one field is an array of symbols."""
    elements = b"".join(bytes((len(name),)) + name.encode("ascii") for name in names)
    array = b"\xe0" + bytes((len(elements) + 2, len(names))) + b"\xa3" + elements
    return b"\xc0" + bytes((len(array) + 1, 1)) + array


def _read(body: bytes) -> tuple[int, list[bytes | None]]:
    """(descriptor, fields) of a SASL frame's body; its fields are symbols, binaries,
    strings and single bytes."""
    if body[0] != 0:
        raise Broken("the peer sent a SASL frame without a descriptor")
    if body[1] == 0x53:
        code, at = body[2], 3
    elif body[1] == 0x80:
        code, at = struct.unpack_from(">Q", body, 2)[0], 10
    else:
        raise Broken("the peer sent a SASL frame with a strange descriptor")
    kind = body[at]
    if kind == 0x45:
        return code, []
    if kind == 0xC0:
        count, at = body[at + 2], at + 3
    elif kind == 0xD0:
        count, at = struct.unpack_from(">I", body, at + 5)[0], at + 9
    else:
        raise Broken("the peer sent a SASL frame that is no list")
    fields: list[bytes | None] = []
    for _ in range(min(count, 8)):
        kind = body[at]
        if kind == 0x40:
            fields.append(None)
            at += 1
            continue
        if kind == 0x50:
            size, at = 1, at + 1
        elif kind in (0xA0, 0xA1, 0xA3):
            size, at = body[at + 1], at + 2
        elif kind in (0xB0, 0xB1, 0xB3):
            size, at = struct.unpack_from(">I", body, at + 1)[0], at + 5
        else:
            raise Broken("the peer sent a SASL frame with a strange field")
        if at + size > len(body):
            raise IndexError
        fields.append(body[at : at + size])
        at += size
    return code, fields


class GatedConnection(Connection):
    """An end whose SASL exchange is its own: while that goes on proton neither hears
    nor says anything.

    A subclass feeds the exchange, and has `_feed` take what comes after it.
    """

    #: What the exchange has to say, which may outlast it.
    _early: bytearray
    #: Whether proton neither hears nor says anything.
    _shut = True

    @property
    def _over(self) -> bool:
        """While it is shut: whether nothing will come of it any more."""
        raise NotImplementedError

    @staticmethod
    def _given(data: typing.Any, size: int) -> bytes:
        """What `receive_data` was given."""
        if isinstance(data, capi.ffi.CData):
            return bytes(capi.ffi.buffer(data, size))
        return bytes(memoryview(data)[:size])

    def _feed(self, rest: bytes) -> None:
        """What came with the end of the exchange, which the owner counts as taken."""
        while rest:
            taken = Connection.receive_data(self, rest, len(rest))
            if taken == 0:
                return  # it takes no more, and its failure will be reported
            rest = rest[taken:]

    def data_to_send(self, buffer: typing.Any, size: int) -> int:
        if self._early:
            size = min(size, len(self._early))
            capi.ffi.memmove(buffer, bytes(self._early[:size]), size)
            return size
        return 0 if self._shut else super().data_to_send(buffer, size)

    def data_sent(self, count: int) -> None:
        if self._early:
            del self._early[:count]
        else:
            super().data_sent(count)

    @property
    def closed(self) -> bool:
        if self._shut:
            # Who was turned away has nothing more to say that would be heard.
            return self._over and not self._early
        return super().closed

    @property
    def finished(self) -> bool:
        if self._shut:
            return self._over and not self._early
        return not self._early and super().finished


class AcceptedConnection(GatedConnection):
    """The server's end of a connection: a SASL exchange, then AMQP.

    Call ``open()`` at once; nothing of AMQP goes out before the peer is let in.  A
    peer that is not is told so, and the handler hears connection_failed.

    :param sasl: the exchange
    :param mirrors_idle_timeout: ask of the peer the idle time-out that it asks of us;
        our Open frame then comes after the peer's
    :param options: as of :class:`Connection`
    """

    def __init__(
        self,
        container_id: str,
        handler: ConnectionHandler,
        sasl: SaslServer,
        mirrors_idle_timeout: bool = False,
        **options: typing.Any,
    ) -> None:
        super().__init__(container_id, handler, server=True, **options)
        self._mirrors = mirrors_idle_timeout
        #: who the peer is, once it is let in; None: nobody in particular
        self.user: str | None = None
        #: bytes of messages that were sent and may not be written yet: counted by
        #: whoever sends, set to 0 when nothing is left to write
        self.unwritten = 0
        #: called once when nothing is left to write
        self.on_written: typing.Callable[[], None] | None = None
        #: the wire broke, as opposed to a rule of the protocol
        self.lost = False
        self._gate = sasl
        self._early = sasl.output

    @property
    def _over(self) -> bool:
        return self._gate.state is SaslState.FAILED

    def open(self) -> None:
        if self._mirrors:
            self.await_open()
        else:
            super().open()

    def process(self, now: float) -> None:
        super().process(now)
        if self._mirrors and self.remote_opened:
            self._mirrors = False
            # proton asks for half of what it allows, as section 2.4.5 advises.
            self.set_idle_timeout(2 * self.remote_idle_timeout)
            super().open()
            super().process(now)

    def receive_data(self, data: typing.Any, size: int) -> int:
        if not self._shut:
            return super().receive_data(data, size)
        gate = self._gate
        if gate.state is SaslState.FAILED:
            return 0
        rest = gate.receive(self._given(data, size))
        # mypy does not know that receive may change it.
        if gate.state is SaslState.FAILED:  # type: ignore[comparison-overlap]
            self.fail(gate.reason)
        elif gate.state is SaslState.DONE:
            self._shut = False
            self.user = gate.user
            self._feed(rest)
        return size

    def abort(self, reason: str) -> None:
        self.lost = True
        super().abort(reason)

    def data_to_send(self, buffer: typing.Any, size: int) -> int:
        pending = super().data_to_send(buffer, size)
        if pending == 0 and not self._shut:
            self.unwritten = 0
            if self.on_written is not None:
                on_written, self.on_written = self.on_written, None
                on_written()
        return pending
