# SPDX-License-Identifier: Apache-2.0
"""A client that logs in by its certificate or by a token: the SASL mechanisms EXTERNAL,
OAUTHBEARER and XOAUTH2.

proton with Cyrus SASL does EXTERNAL only where TLS is proton's own: Cyrus wants to know
who we are to the peer, and proton has no way to tell it but for the certificate of its
own TLS.  It then says "no mechanism available", or goes on with a weaker mechanism.
And it knows nothing of tokens.

So this end speaks these mechanisms itself (AMQP 1.0 part 5, section 5.3), where the
peer offers one of them.  Where it does not, all that came is proton's, as if nobody had
been in between.
"""

from __future__ import annotations

import enum
import struct
import typing

from greenamqp.engine import capi
from greenamqp.engine.connection import (
    Connection,
    ConnectionHandler,
    Sasl,
    has_cyrus_sasl,
)
from greenamqp.engine.sasl import (
    CHALLENGE,
    INIT,
    MAX_FRAME,
    MAX_FRAMES,
    OUTCOME,
    RESPONSE,
    SASL_HEADER,
    Broken,
    GatedConnection,
    sasl_frame,
    sasl_offer,
    take_frame,
)

#: The mechanisms that take a token for a password.
BEARER = ("OAUTHBEARER", "XOAUTH2")

# What is said to a challenge: nothing, but that RFC 7628 (section 3.2.3) wants a byte,
# where the challenge is what was wrong with the token.
_ANSWERS = {"OAUTHBEARER": b"\x01"}


def responses(sasl: Sasl) -> dict[str, bytes]:
    """The mechanisms of this module that are allowed, in that order, each with what is
    said first."""
    said = {}
    user, token = sasl.username or "", sasl.password or ""
    for name in sasl.mechanisms.upper().split():
        if name == "EXTERNAL":
            # The certificate says who we are: nothing is added to that.
            said[name] = b""
        elif name == "OAUTHBEARER":  # RFC 7628, section 3.1
            identity = user.replace("=", "=3D").replace(",", "=2C")
            said[name] = f"n,a={identity},\x01auth=Bearer {token}\x01\x01".encode()
        elif name == "XOAUTH2":
            said[name] = f"user={user}\x01auth=Bearer {token}\x01\x01".encode()
    return said


def _fields(*fields: bytes) -> bytes:
    """A list of fields, each given with its constructor."""
    body = b"".join(fields)
    if len(body) < 255:
        return struct.pack(">BBB", 0xC0, len(body) + 1, len(fields)) + body
    return struct.pack(">BII", 0xD0, len(body) + 4, len(fields)) + body


def _binary(data: bytes) -> bytes:
    if len(data) < 256:
        return struct.pack(">BB", 0xA0, len(data)) + data
    return struct.pack(">BI", 0xB0, len(data)) + data


def _symbol(name: str) -> bytes:
    return struct.pack(">BB", 0xA3, len(name)) + name.encode("ascii")


class LoginState(enum.Enum):
    """Where the exchange is.

    ========  =============================================  ==================
    state     what comes                                     next
    ========  =============================================  ==================
    OFFER     the peer's mechanisms, one of ours among them  OUTCOME
    OFFER     mechanisms without one, or anything else       LEFT
    OUTCOME   sasl-challenge                                 OUTCOME
    OUTCOME   sasl-outcome                                   DONE or FAILED
    OUTCOME   anything else                                  FAILED
    ========  =============================================  ==================
    """

    OFFER = "offer"
    OUTCOME = "outcome"
    DONE = "done"
    #: Not by one of these mechanisms.
    LEFT = "left"
    FAILED = "failed"


class Login:
    """One exchange.  Feed it bytes, send its ``output``, ask its ``state``.

    :param responses: the mechanisms, the best first, each with what is said first
    :ivar mechanism: the one that was chosen, or None
    :ivar input: what was not used: DONE: of AMQP; LEFT: all that came
    :ivar outcome: the peer's code, None while there is none
    :ivar reason: why it FAILED
    """

    def __init__(self, responses: typing.Mapping[str, bytes]) -> None:
        self.state = LoginState.OFFER
        self.mechanism: str | None = None
        self._responses = responses
        self.output = bytearray(SASL_HEADER)
        self.input = bytearray()
        self.outcome: int | None = None
        self.reason = ""
        self._frames = 0

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer."""
        self.input += data
        if self.state is LoginState.OFFER:
            self._look_at_offer()
        try:
            while self.state is LoginState.OUTCOME and self._step():
                pass
        except Broken as exc:
            self._fail(f"amqp:connection:framing-error: {exc}")

    def _look_at_offer(self) -> None:
        given = bytes(self.input)
        start = given[:8]
        if not SASL_HEADER.startswith(start):
            self.state = LoginState.LEFT
            return
        size = int.from_bytes(given[8:12], "big")
        if len(given) < 12 or (len(given) < 8 + size and size <= MAX_FRAME):
            return  # more is to come
        offered = sasl_offer(given) or ()
        chosen = next((name for name in self._responses if name in offered), None)
        if chosen is None:
            self.state = LoginState.LEFT
            return
        self.mechanism = chosen
        del self.input[: 8 + size]
        first = _binary(self._responses[chosen])
        self.output += sasl_frame(INIT, _fields(_symbol(chosen), first))
        self.state = LoginState.OUTCOME

    def _step(self) -> bool:
        frame = take_frame(self.input)
        if frame is None:
            return False
        code, fields = frame
        self._frames += 1
        if self._frames > MAX_FRAMES:
            raise Broken("the peer sent too many SASL frames")
        if code == CHALLENGE:
            answer = _ANSWERS.get(self.mechanism or "", b"")
            self.output += sasl_frame(RESPONSE, _fields(_binary(answer)))
        elif code == OUTCOME and fields and len(fields[0] or b"") == 1:
            self.outcome = (fields[0] or b"")[0]
            if self.outcome == 0:
                self.state = LoginState.DONE
            else:
                self._fail("amqp:unauthorized-access: the peer refused the login")
        else:
            raise Broken(f"SASL frame 0x{code:02x} does not belong there")
        return True

    def _fail(self, reason: str) -> None:
        self.state = LoginState.FAILED
        self.reason = reason


class LoginConnection(GatedConnection):
    """A client's end that logs in by a mechanism of this module if the peer offers one,
    else as `sasl` has it beside these.  As :class:`Connection` otherwise."""

    def __init__(
        self,
        container_id: str,
        handler: ConnectionHandler,
        *,
        sasl: Sasl,
        **options: typing.Any,
    ) -> None:
        super().__init__(container_id, handler, **options)
        self._login = sasl
        self._responses = responses(sasl)
        self._gate = Login(self._responses)
        self._early = self._gate.output

    def open(self) -> None:
        """Begin: the SASL header goes out, and nothing of proton's before it is known
        how to log in."""

    @property
    def _over(self) -> bool:
        return self.ended

    @property
    def sasl_outcome(self) -> int | None:
        if self._gate.state is LoginState.LEFT:
            return super().sasl_outcome
        return self._gate.outcome

    @property
    def sasl_mechanism(self) -> str | None:
        if self._gate.state is LoginState.LEFT:
            return super().sasl_mechanism
        return self._gate.mechanism

    def receive_data(self, data: typing.Any, size: int) -> int:
        gate = self._gate
        if not self._shut:
            return super().receive_data(data, size)
        if gate.state is LoginState.FAILED:
            return 0
        gate.receive(self._given(data, size))
        # mypy does not know that receive may change it.
        if gate.state is LoginState.FAILED:  # type: ignore[comparison-overlap]
            self.fail(gate.reason)
        elif gate.state in (LoginState.DONE, LoginState.LEFT):
            self._go_on()
        return size

    def _go_on(self) -> None:
        """It is proton's from here on."""
        left = self._gate.state is LoginState.LEFT
        others = [
            name
            for name in self._login.mechanisms.upper().split()
            if name not in self._responses
        ]
        if left and not others:
            # Without any, proton would take whatever it can do.
            self._gate.state = LoginState.FAILED
            names = " or ".join(self._responses)
            self.fail(f"amqp:unauthorized-access: the peer does not offer {names}")
            return
        self._shut = False
        if left:
            self.log_in(self._login, " ".join(others))
        super().open()
        if left:
            self._skip_header()
        rest = bytes(self._gate.input)
        self._gate.input.clear()
        self._feed(rest)

    def _skip_header(self) -> None:
        """The gate has sent the SASL header already."""
        size = len(SASL_HEADER)
        buffer = capi.ffi.new("char[]", size)
        if Connection.data_to_send(self, buffer, size) == size:
            if bytes(capi.ffi.buffer(buffer, size)) == SASL_HEADER:
                Connection.data_sent(self, size)


def client_connection(
    container_id: str,
    handler: ConnectionHandler,
    *,
    sasl: Sasl | None = None,
    **options: typing.Any,
) -> Connection:
    """A client's end of a connection, which logs in by EXTERNAL, OAUTHBEARER and
    XOAUTH2 whatever proton was built with."""
    if sasl is not None:
        own = responses(sasl)
        if (own and has_cyrus_sasl()) or any(name in own for name in BEARER):
            return LoginConnection(container_id, handler, sasl=sasl, **options)
    return Connection(container_id, handler, sasl=sasl, **options)
