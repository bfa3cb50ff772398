# SPDX-License-Identifier: Apache-2.0
"""TLS on a non-blocking socket, for either end: the standard library's ssl over memory.

:class:`TlsStream` is a :class:`greenamqp.connection.pump.Stream`.  It never waits, and
touches no scheduler: the socket's bytes go through two ``MemoryBIO``, so it is the same
under eventlet, gevent, threads and none of them.  What waits is :class:`Handshake`,
which a hub drives.

A server's end, from ``accept`` to a pump, in the hub's context::

    context = tls.server_context("cert.pem", "key.pem")       # once
    stream = tls.server_stream(sock, context)                 # sock: non-blocking
    tls.Handshake(hub, stream, hub.now() + 10, done)          # keeps itself alive
    def done(error: str | None) -> None:
        if error is not None:       # the stream is closed already
            LOG.warning("no TLS with %s: %s", peer, error)
            return
        who = stream.peer_name      # of the verified client certificate, or None
        Pump(hub, stream, engine).start()

Contexts are made when they are needed, never at import: ``ssl.SSLContext`` is looked up
after monkey patching, as its setters recurse without end when it is patched later.
"""

from __future__ import annotations

import math
import ssl
import typing

from greenamqp import interrupts
from greenamqp.connection import diagnosis
from greenamqp.hubs import Countdown, Hub, Watch

# The most that one TLS record takes on the wire: 5 bytes of header, 2**14 of content,
# 2048 of expansion (RFC 5246, 6.2.3; TLS 1.3 allows less).  A reader's buffer must
# have room for two of them.
MAX_RECORD = 5 + 2**14 + 2048

# One read from the socket takes up to this much.  Bytes.
_RAW_SIZE = 64 * 1024

# What is read at once while shaking hands: what comes after the last message of the
# handshake must fit into the first read of the stream's user.
_HANDSHAKE_SIZE = MAX_RECORD

# The peer's first bytes that are kept, to say what it is if it is no TLS.
_GREETING_SIZE = 64


class TlsSetupError(ValueError):
    """A certificate, key or CA file cannot be used; the text names it and says why.

    It never holds a password.
    """


def client_context(
    ca_file: str = "",
    cert_file: str = "",
    key_file: str = "",
    key_password: str | None = None,
) -> ssl.SSLContext:
    """A context that verifies the peer's certificate and its name.

    :param ca_file: PEM file of the CAs to trust; empty: the system's
    :param cert_file: PEM file of our own certificate, with its chain; empty: none
    :param key_file: of its private key; empty: it is in `cert_file`
    :param key_password: of the key, if it is encrypted
    :raises TlsSetupError: with the file and the reason
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if ca_file:
        _load_ca(context, ca_file)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if cert_file:
        _load_identity(context, cert_file, key_file, key_password)
    return context


def server_context(
    cert_file: str,
    key_file: str = "",
    key_password: str | None = None,
    ca_file: str = "",
    require_client_cert: bool = False,
) -> ssl.SSLContext:
    """A context for the end that is connected to.

    :param cert_file: PEM file of the certificate, with its chain
    :param key_file: of its private key; empty: it is in `cert_file`
    :param key_password: of the key, if it is encrypted
    :param ca_file: PEM file of the CAs of the clients; empty: clients are not asked
        for a certificate
    :param require_client_cert: refuse clients without one; else a client need not
        have one, but what it shows must verify
    :raises TlsSetupError: with the file and the reason
    """
    if require_client_cert and not ca_file:
        raise TlsSetupError(
            "client certificates are required, and no CA file to verify them is given"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load_identity(context, cert_file, key_file, key_password)
    if ca_file:
        _load_ca(context, ca_file)
        context.verify_mode = (
            ssl.CERT_REQUIRED if require_client_cert else ssl.CERT_OPTIONAL
        )
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # TLS 1.2 lets a peer ask for a new handshake at any time, at our expense; nothing
    # in AMQP needs it, and without it a write never has to wait for a read.
    context.options |= ssl.OP_NO_RENEGOTIATION


def _load_ca(context: ssl.SSLContext, ca_file: str) -> None:
    _readable(ca_file, "CA")
    try:
        context.load_verify_locations(cafile=ca_file)
    except (ssl.SSLError, OSError) as exc:
        raise TlsSetupError(
            f"the CA file {ca_file!r} holds no certificate in PEM form "
            f"({diagnosis.ssl_text(exc)})"
        ) from None


def _load_identity(
    context: ssl.SSLContext, cert_file: str, key_file: str, key_password: str | None
) -> None:
    _readable(cert_file, "certificate")
    if key_file:
        _readable(key_file, "key")
    holder = key_file or cert_file
    asked = False

    def password() -> str:
        # Only called for an encrypted key.  Without a function OpenSSL would ask at
        # the terminal, and wait there for ever.
        nonlocal asked
        asked = True
        return key_password or ""

    try:
        context.load_cert_chain(cert_file, key_file or None, password)
    except ssl.SSLError as exc:
        if asked and not key_password:
            problem = "the key is encrypted, and no password for it is given"
        elif asked:
            problem = "the key cannot be decrypted: is its password right?"
        elif exc.reason == "KEY_VALUES_MISMATCH":
            problem = f"the key is not that of the certificate {cert_file!r}"
        else:
            problem = (
                "no certificate with its private key in PEM form "
                f"({diagnosis.ssl_text(exc)})"
            )
    except (OSError, ValueError):
        # ValueError: a password of more than 1024 bytes; its text is not passed on.
        problem = "the key cannot be decrypted: is its password right?"
    else:
        return
    raise TlsSetupError(f"the key file {holder!r} cannot be used: {problem}")


def _readable(path: str, what: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise TlsSetupError(
            f"the {what} file {path!r} cannot be read: {reason or exc}"
        ) from None


def client_stream(
    sock: typing.Any, context: ssl.SSLContext, server_name: str
) -> TlsStream:
    """The client's end on a connected, non-blocking socket, which it then owns.

    :param server_name: the host name or IP address that the peer's certificate must
        be for; a name is also asked for by SNI
    :raises TlsSetupError: if that is no name
    """
    return TlsStream(sock, context, False, server_name)


def server_stream(sock: typing.Any, context: ssl.SSLContext) -> TlsStream:
    """The server's end on an accepted, non-blocking socket, which it then owns."""
    return TlsStream(sock, context, True, None)


class TlsError(OSError):
    """TLS failed; the text says in which way, for people."""

    @property
    def reason(self) -> str:
        """The text as it was given, which may be Lasting."""
        return typing.cast(str, self.args[0])


class TlsStream:
    """TLS on a non-blocking socket.  Make it with `client_stream`, `server_stream`.

    To be used by one thread at a time, as the pump that owns it is.  First `shake`
    until it returns True (see :class:`Handshake`); then it is a
    :class:`greenamqp.connection.pump.Stream`, whose reader has a buffer of at least
    ``2 * MAX_RECORD`` bytes.
    """

    def __init__(
        self,
        sock: typing.Any,
        context: ssl.SSLContext,
        server_side: bool,
        server_name: str | None,
    ) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        try:
            self._tls = context.wrap_bio(
                self._incoming,
                self._outgoing,
                server_side=server_side,
                server_hostname=server_name,
            )
        except (ValueError, ssl.SSLError) as exc:
            raise TlsSetupError(f"{server_name!r} is no host name: {exc}") from None
        #: the peer's first bytes, as they came; empty once the handshake is complete
        self.greeting = b""
        self._server_side = server_side
        self._established = False
        self._ended = False
        self._failure: TlsError | None = None
        # Encrypted bytes that the socket had no room for, and how many of the bytes
        # that send() was given they stand for: those count as sent only when all of
        # them are with the socket, so that the caller comes back for the rest.
        self._backlog = memoryview(b"")
        self._unreported = 0
        self._raw = memoryview(bytearray(_RAW_SIZE))

    def fileno(self) -> int:
        """The socket's descriptor."""
        return int(self._socket.fileno())

    # -- shaking hands

    def shake(self) -> bool:
        """Go on with the handshake as far as it goes now; returns whether it is done.

        Not done, it waits for the socket to be readable, and while `wants_write` also
        for room in it.

        :raises TlsError: it failed; what the peer should hear of it is written
        """
        if not self._flush_for_handshake():
            return False
        while not self._established:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                if not self._flush_for_handshake():
                    return False
            except ssl.SSLError as exc:
                self._flush_quietly()  # the alert
                raise TlsError(
                    diagnosis.handshake_failed(exc, self.greeting, self._server_side)
                ) from None
            else:
                self._established = True
                self.greeting = b""
                return self._flush_for_handshake()
            if not self._fetch_for_handshake():
                return False
        return True

    def _flush_for_handshake(self) -> bool:
        try:
            self._flush()
        except BlockingIOError:
            return False
        except OSError as exc:
            if interrupts.struck(exc):
                raise
            raise self._broken(exc) from None
        return True

    def _fetch_for_handshake(self) -> bool:
        try:
            size = self._socket.recv_into(self._raw[:_HANDSHAKE_SIZE])
        except BlockingIOError:
            return False
        except OSError as exc:
            if interrupts.struck(exc):
                raise
            raise self._broken(exc) from None
        if size == 0:
            raise TlsError(
                diagnosis.handshake_failed(None, self.greeting, self._server_side)
            )
        if len(self.greeting) < _GREETING_SIZE:
            self.greeting = (self.greeting + self._raw[:size])[:_GREETING_SIZE]
        self._incoming.write(self._raw[:size])
        return True

    def _broken(self, exc: OSError) -> TlsError:
        return TlsError(f"the connection was lost in the TLS handshake: {exc}")

    @property
    def wants_write(self) -> bool:
        """Whether encrypted bytes wait for room in the socket."""
        return bool(self._backlog)

    # -- who the peer is, once hands are shaken

    @property
    def version(self) -> str:
        """As in ``TLSv1.3``."""
        return self._tls.version() or "TLS"

    @property
    def peer_name(self) -> str | None:
        """The common name in the subject of the peer's verified certificate, else its
        first alternative name; None if it showed no certificate."""
        certificate = self.certificate
        for part in certificate.get("subject", ()):
            for key, value in part:
                if key == "commonName":
                    return str(value)
        for _kind, value in certificate.get("subjectAltName", ()):
            return str(value)
        return None

    @property
    def certificate(self) -> dict[str, typing.Any]:
        """The peer's verified certificate, as ``ssl.SSLSocket.getpeercert`` has it;
        empty if it showed none."""
        return typing.cast("dict[str, typing.Any]", self._tls.getpeercert() or {})

    # -- as a stream

    @property
    def buffered(self) -> bool:
        """Whether `recv_into` may have something although the socket is not readable:
        true only before the first one, for what came with the end of the handshake."""
        return bool(self._incoming.pending or self._tls.pending())

    def recv_into(self, buffer: memoryview, /) -> int:
        """Read into `buffer`; 0 is the end of the stream.

        Whatever has been read from the socket by then and can be decrypted is in the
        buffer afterwards, so that waiting for the socket waits for all there is.

        :raises BlockingIOError: there is nothing now
        :raises OSError: the connection broke, or the peer sent no proper TLS
        """
        size = len(buffer)
        filled = 0
        more = True
        while True:
            filled += self._decrypt(buffer[filled:])
            if self._ended or self._failure is not None or not more:
                break
            # A record that is not complete yet may be held already; it and what is
            # read now must fit into what is left of the buffer.
            room = min(size - filled - MAX_RECORD, _RAW_SIZE)
            if room <= 0:
                break
            try:
                count = self._socket.recv_into(self._raw[:room])
            except BlockingIOError:
                break
            except OSError as exc:
                if not filled or interrupts.struck(exc):
                    raise
                # What was there before counts: the next read tells.
                self._failure = TlsError(str(exc))
                break
            if count:
                self._incoming.write(self._raw[:count])
            else:
                self._incoming.write_eof()
            more = count == room
        if filled:
            return filled
        if self._failure is not None:
            raise self._failure
        if self._ended:
            return 0
        raise BlockingIOError

    def _decrypt(self, buffer: memoryview) -> int:
        """All that can be decrypted now; notes the stream's end, or its failure."""
        filled = 0
        while filled < len(buffer) and self._failure is None:
            try:
                count = self._tls.read(len(buffer) - filled, buffer[filled:])
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                # Without a close_notify an attacker may have cut the stream; AMQP has
                # a Close of its own, whose absence is noticed.
                self._ended = True
                break
            except ssl.SSLError as exc:
                # The data before it counts: the next read tells.
                self._failure = TlsError(diagnosis.tls_failed(exc))
                break
            if not count:
                self._ended = True
                break
            filled += typing.cast(int, count)
        if self._outgoing.pending:
            self._flush_quietly()  # an alert, or a new key
        return filled

    def send(self, data: memoryview, /) -> int:
        """Write some of `data`; returns how many bytes.

        Bytes that did not count as sent must come again, at the start of `data`: some
        of them may be encrypted already.

        :raises BlockingIOError: there is no room now
        :raises OSError: the connection broke
        """
        self._flush()
        sent, self._unreported = self._unreported, 0
        rest = len(data) - sent
        if rest <= 0:
            return len(data)
        try:
            done = sent
            while done < len(data):
                done += self._tls.write(data[done:])
        except ssl.SSLError as exc:
            raise TlsError(diagnosis.tls_failed(exc)) from None
        try:
            self._flush()
        except BlockingIOError:
            self._unreported = rest
            if sent == 0:
                raise
            return sent
        return len(data)

    def _flush(self) -> None:
        """Write what is encrypted; raises BlockingIOError if not all of it went."""
        while True:
            if not self._backlog:
                if not self._outgoing.pending:
                    return
                self._backlog = memoryview(self._outgoing.read())
            count = self._socket.send(self._backlog)
            self._backlog = self._backlog[count:]

    def _flush_quietly(self) -> None:
        try:
            self._flush()
        except OSError as exc:
            # Else whoever reads or writes next meets it.
            if interrupts.struck(exc):
                raise

    def detach(self) -> int:
        """Give the socket's descriptor up, saying nothing to the peer; returns it."""
        return int(self._socket.detach())

    def close(self) -> None:
        """Say goodbye as far as that goes without waiting, and close the socket."""
        if self._established and not self._ended:
            try:
                self._tls.unwrap()
            except (ssl.SSLError, ValueError):
                pass  # our close_notify is written; the peer's is not waited for
            self._flush_quietly()
        self._socket.close()


class Handshake:
    """A handshake that a hub drives.  For use in the hub's context.

    :param deadline: monotonic instant at which it counts as failed, or infinity
    :param done: called once, in the hub's context: with None when it is complete, else
        with the reason, the stream being closed
    """

    def __init__(
        self,
        hub: Hub,
        stream: TlsStream,
        deadline: float,
        done: typing.Callable[[str | None], None],
    ) -> None:
        self._hub = hub
        self._stream = stream
        self._done: typing.Callable[[str | None], None] | None = done
        self._ends = Countdown(hub)
        if deadline < math.inf:
            self._ends.call_at(deadline, self._timed_out)
        self._watch: Watch | None = hub.watch(stream.fileno(), self._step)
        # Not at once: `done` must not be called before its owner has this object.
        hub.call_at(hub.now(), self._step)

    def cancel(self) -> None:
        """Give up and close the stream; nothing is called any more."""
        if self._done is not None:
            self._done = None
            self._let_go()
            self._stream.close()

    def _step(self) -> None:
        if self._done is None:
            return
        try:
            complete = self._stream.shake()
        except TlsError as exc:
            self._finish(exc.reason)
            return
        if complete:
            self._finish(None)
        elif self._watch is not None:
            self._watch.want_write(self._step if self._stream.wants_write else None)

    def _timed_out(self) -> None:
        self._finish(diagnosis.handshake_late(self._stream.greeting))

    def _finish(self, error: str | None) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        self._let_go()
        if error is not None:
            self._stream.close()
        done(error)

    def _let_go(self) -> None:
        self._ends.cancel()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
