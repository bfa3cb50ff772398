# SPDX-License-Identifier: Apache-2.0
"""From a host name to a connected stream, without blocking the hub.

One attempt at one host: look its name up, try its addresses in turn, shake hands for
TLS.  It succeeds or fails once, by its deadline.  An address that does not answer, in
either of the last two, is left for the next one when it has used up its share of the
time.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import typing

from greenamqp import interrupts
from greenamqp.connection import diagnosis, tls
from greenamqp.connection.pump import Stream
from greenamqp.hubs import Countdown, Hub, Watch

Done = typing.Callable[["Stream | None", "str | None"], None]

_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)


class Attempt:
    """One attempt to connect.  For use in the hub's context.

    :param deadline: monotonic instant at which the attempt counts as failed
    :param done: called once, in the hub's context, with the stream or the reason
    :param context: makes the context for TLS, and may read files and raise ValueError;
        None: no TLS
    :param server_name: whose certificate the peer must show; default: the host's
    :param avoid: addresses to be tried after all others
    :param password: gets the password to log in with, and may read a file or run a
        command and raise ValueError; None: there is none to get
    """

    def __init__(
        self,
        hub: Hub,
        hostname: str,
        port: int,
        deadline: float,
        done: Done,
        *,
        context: typing.Callable[[], ssl.SSLContext] | None = None,
        server_name: str | None = None,
        avoid: typing.Container[typing.Any] = (),
        password: typing.Callable[[], str] | None = None,
    ) -> None:
        self._hub = hub
        self._hostname = hostname
        self._port = port
        self._done: Done | None = done
        self._addresses: list[tuple[typing.Any, ...]] = []
        self._avoid = avoid
        #: the address at hand
        self.address: typing.Any = None
        self._socket: typing.Any = None
        self._watch: Watch | None = None
        self._get_password = password
        #: what was got, or None
        self.password: str | None = None
        self._make_context = context
        self._context: ssl.SSLContext | None = None
        self._server_name = server_name or hostname
        self._handshake: tls.Handshake | None = None
        self._tls_stream: tls.TlsStream | None = None
        self._reason = "no address"
        #: what it was at, for people, each with the instant at which that began
        first = "getting the password" if password else "looking its name up"
        self.stages = [(first, hub.now())]
        self._deadline = deadline
        self._ends = Countdown(hub)
        self._ends.call_at(deadline, self._timed_out)
        # The share of the address at hand.
        self._share_ends = Countdown(hub)
        hub.holders[self] = None
        hub.offload(self._resolve, self._resolved)

    @property
    def has_others(self) -> bool:
        """Whether there are addresses that were not tried, but for those to avoid."""
        return any(each[4] not in self._avoid for each in self._addresses)

    @property
    def stage(self) -> str:
        """What it is at, for people."""
        return self.stages[-1][0]

    def _enter(self, stage: str) -> None:
        self.stages.append((stage, self._hub.now()))

    def forked(self) -> None:
        """See :class:`greenamqp.hubs.base.Holder`."""
        stream = self._socket if self._tls_stream is None else self._tls_stream
        self._done = self._socket = self._tls_stream = None
        self._handshake = self._watch = None
        self._ends.forked()
        self._share_ends.forked()
        if stream is not None:
            os.close(stream.detach())

    def cancel(self) -> None:
        """Give up; nothing is called any more."""
        self._done = None
        self._hub.holders.pop(self, None)
        self._drop_socket()
        self._ends.cancel()
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None

    def _resolve(self) -> list[tuple[typing.Any, ...]]:
        if self._get_password is not None:
            self.password = self._get_password()
            self._enter("looking its name up")
        if self._make_context is not None:
            # Here, since it reads files as well.
            self._context = self._make_context()
        return self._hub.network.look_up(self._hostname, self._port)

    def _resolved(self, result: typing.Any, error: BaseException | None) -> None:
        if self._done is None:
            return
        if isinstance(error, OSError):
            self._finish(None, f"cannot look the name up: {error}")
            return
        if error is not None:
            self._finish(None, str(error) or type(error).__name__)
            return
        self._addresses = sorted(result, key=lambda each: each[4] in self._avoid)
        self._next_address()

    def _next_address(self) -> None:
        self._enter("connecting")
        while self._addresses:
            family, kind, proto, _name, address = self._addresses.pop(0)
            self.address = address
            try:
                self._socket = self._hub.network.socket(family, kind, proto)
                code = self._socket.connect_ex(address)
            except OSError as exc:
                if interrupts.struck(exc):
                    raise
                self._reason = str(exc)
                self._drop_socket()
                continue
            if code in _IN_PROGRESS:
                self._watch = self._hub.watch(self._socket.fileno(), _ignore)
                self._watch.want_write(self._connected)
                self._give_share()
                return
            if code == 0:
                self._use()
                return
            self._reason = os.strerror(code)
            self._drop_socket()
        self._finish(None, self._reason)

    def _give_share(self) -> None:
        """The address at hand gets its share of the time that is left, if there are
        others."""
        if self._addresses:
            now = self._hub.now()
            share = (self._deadline - now) / (len(self._addresses) + 1)
            self._share_ends.call_at(now + share, self._no_answer)

    def _no_answer(self) -> None:
        """This address gets no more time."""
        self._reason = self._leave_handshake() or os.strerror(errno.ETIMEDOUT)
        self._drop_socket()
        self._next_address()

    def _connected(self) -> None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._reason = os.strerror(code)
            self._drop_socket()
            self._next_address()
        else:
            self._use()

    def _use(self) -> None:
        self._drop_watch()
        stream, self._socket = self._socket, None
        prepare(stream)
        if self._context is None:
            self._finish(stream, None)
            return
        self._enter("shaking hands for TLS")
        try:
            self._tls_stream = tls.client_stream(
                stream, self._context, self._server_name
            )
        except tls.TlsSetupError as exc:
            stream.close()
            self._finish(None, str(exc))
            return
        self._give_share()
        # The attempt's own timer is the deadline.
        self._handshake = tls.Handshake(
            self._hub, self._tls_stream, float("inf"), self._shaken
        )

    def _shaken(self, error: str | None) -> None:
        self._handshake = None
        stream, self._tls_stream = self._tls_stream, None
        self._drop_watch()
        if error is not None and self._addresses:
            self._reason = error
            self._next_address()
        else:
            self._finish(stream if error is None else None, error)

    def _timed_out(self) -> None:
        self._finish(None, self._leave_handshake() or "no answer in time")

    def _leave_handshake(self) -> str | None:
        """Give up the handshake that is under way, if one is; returns why."""
        handshake, self._handshake = self._handshake, None
        stream, self._tls_stream = self._tls_stream, None
        if handshake is None or stream is None:
            return None
        reason = diagnosis.handshake_late(stream.greeting)
        handshake.cancel()
        return reason

    def _finish(self, stream: Stream | None, reason: str | None) -> None:
        done, self._done = self._done, None
        self._hub.holders.pop(self, None)
        self._drop_socket()
        self._ends.cancel()
        if done is not None:
            done(stream, reason)
        elif stream is not None:
            stream.close()

    def _drop_watch(self) -> None:
        self._share_ends.cancel()
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _drop_socket(self) -> None:
        self._drop_watch()
        if self._socket is not None:
            self._hub.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None


def prepare(sock: typing.Any) -> None:
    """Set a connected TCP socket up for messaging."""
    # A request must not wait for the acknowledgement of the one before it.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Finds a vanished peer where the idle time-out is switched off.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _ignore() -> None:
    """An fd that connects is watched for writing only; errors show there too."""
