# SPDX-License-Identifier: Apache-2.0
"""A client that logs in by its certificate: the SASL mechanism EXTERNAL.

proton with Cyrus SASL does EXTERNAL only where TLS is proton's own: Cyrus wants to know
who we are to the peer, and proton has no way to tell it but for the certificate of its
own TLS.  It then says "no mechanism available", or goes on with a weaker mechanism.

So this end speaks EXTERNAL itself (AMQP 1.0 part 5, section 5.3), where the peer offers
it.  Where it does not, all that came is proton's, as if nobody had been in between.
"""

from __future__ import annotations

import enum
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

# The certificate says who we are: nothing is added to that.
_INIT_FIELDS = b"\xc0\x0d\x02\xa3\x08EXTERNAL\xa0\x00"
_NOTHING = b"\xc0\x03\x01\xa0\x00"


class LoginState(enum.Enum):
    """Where the exchange is.

    ========  =============================================  ==================
    state     what comes                                     next
    ========  =============================================  ==================
    OFFER     the peer's mechanisms, EXTERNAL among them     OUTCOME
    OFFER     mechanisms without it, or anything else        LEFT
    OUTCOME   sasl-challenge                                 OUTCOME
    OUTCOME   sasl-outcome                                   DONE or FAILED
    OUTCOME   anything else                                  FAILED
    ========  =============================================  ==================
    """

    OFFER = "offer"
    OUTCOME = "outcome"
    DONE = "done"
    #: Not by EXTERNAL.
    LEFT = "left"
    FAILED = "failed"


class ExternalLogin:
    """One exchange.  Feed it bytes, send its ``output``, ask its ``state``.

    :ivar input: what was not used: DONE: of AMQP; LEFT: all that came
    :ivar outcome: the peer's code, None while there is none
    :ivar reason: why it FAILED
    """

    def __init__(self) -> None:
        self.state = LoginState.OFFER
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
        if "EXTERNAL" not in (sasl_offer(given) or ()):
            self.state = LoginState.LEFT
            return
        del self.input[: 8 + size]
        self.output += sasl_frame(INIT, _INIT_FIELDS)
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
            self.output += sasl_frame(RESPONSE, _NOTHING)
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


class ExternalConnection(GatedConnection):
    """A client's end that logs in by EXTERNAL if the peer offers it, else as `sasl` has
    it beside that.  As :class:`Connection` otherwise."""

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
        self._gate = ExternalLogin()
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
        return None if self._gate.state is LoginState.OFFER else "EXTERNAL"

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
            if name != "EXTERNAL"
        ]
        if left and not others:
            # Without any, proton would take whatever it can do.
            self._gate.state = LoginState.FAILED
            self.fail("amqp:unauthorized-access: the peer does not offer EXTERNAL")
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
    """A client's end of a connection, which logs in by EXTERNAL whatever proton was
    built with."""
    if sasl is not None and has_cyrus_sasl():
        if "EXTERNAL" in sasl.mechanisms.upper().split():
            return ExternalConnection(container_id, handler, sasl=sasl, **options)
    return Connection(container_id, handler, sasl=sasl, **options)
