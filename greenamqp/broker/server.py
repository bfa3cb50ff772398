# SPDX-License-Identifier: Apache-2.0
"""The broker with its sockets, in a hub's context: callbacks, no thread of its own."""

from __future__ import annotations

import _socket
import errno
import logging
import os
import ssl
import typing

from greenamqp.broker.core import Core
from greenamqp.broker.peer import Peer
from greenamqp.broker.settings import Settings
from greenamqp.connection import tls
from greenamqp.connection.pump import Pump, Stream
from greenamqp.hubs import Countdown, Hub, Waiter, Watch

LOG = logging.getLogger(__name__)

_BACKLOG = 1024

# Connections accepted in one wake-up, so that a storm of them leaves the others time.
_ACCEPTS = 16

# No descriptor is free: look again after so long.  Seconds.
_ACCEPT_PAUSE = 1.0

# A peer that is told to go has so long to read it.  Seconds.
_LINGER = 5.0

# How often it is looked for what is too old, and what share of the time that may
# take.  Seconds.
_MAINTENANCE = 1.0
_MAINTENANCE_SHARE = 0.02


class _Accepted:
    """A connection: its pump, its peer, and the timers that end it."""

    def __init__(
        self, server: Server, stream: Stream, name: str, external: str | None = None
    ) -> None:
        self.server = server
        hub = server.hub
        self.peer: Peer = server.core.connect(
            name, self._touch, hub.call_inside, self._opened, self._ended, external
        )
        self.pump = Pump(hub, stream, self.peer.engine, self._closed)
        self._patience = Countdown(hub)
        self._patience.call_in(server.core.settings.handshake_timeout, self._too_slow)

    def start(self) -> None:
        """Move bytes from now on."""
        self.pump.start()

    def _touch(self) -> None:
        self.server.hub.flush_soon(self.pump)

    def _opened(self) -> None:
        self._patience.cancel()

    def _ended(self) -> None:
        """Nothing but the last bytes is to be moved; for that there is a limit."""
        self._patience.cancel()
        if not self.pump.closed:
            self._patience.call_in(_LINGER, self._too_slow)

    def _too_slow(self) -> None:
        self.pump.abort("it took too long")

    def _closed(self, pump: Pump) -> None:
        self._patience.cancel()
        self.server.forget(self)


class Server:
    """Listens, and serves whoever connects.  For the hub's context.

    :param host: name or address to listen on
    :param port: 0 picks a free one
    :raises greenamqp.connection.tls.TlsSetupError: if the settings name a certificate,
        key or CA file that cannot be used
    """

    def __init__(self, hub: Hub, settings: Settings, host: str, port: int) -> None:
        self.hub = hub
        self._tls = _context(settings) if settings.tls_cert else None
        # TLS handshakes that are not complete: not connections yet.
        self._handshakes: dict[tls.Handshake, tls.TlsStream] = {}
        self.core = Core(settings, hub.now)
        self.host = host
        self.port = port
        self.connections: dict[_Accepted, None] = {}
        self._listening: typing.Any = None  # a _socket.socket
        self._watch: Watch | None = None
        self._next_maintenance = Countdown(hub)
        self._pause = Countdown(hub)
        self._drained: Waiter | None = None
        self._refused = 0

    def start(self) -> None:
        """Listen.

        :raises OSError: if host and port cannot be listened on
        """
        sock = self.hub.network.listen(self.host, self.port, _BACKLOG)
        self.port = sock.getsockname()[1]
        self._listening = sock
        self.hub.holders[self] = None
        self._watch = self.hub.watch(sock.fileno(), self._acceptable)
        self._maintain()
        settings = self.core.settings
        LOG.info(
            "broker listens on %s:%d as %s; it keeps messages in memory only, nothing "
            "on disk, and is for development and tests, not for production",
            self.host,
            self.port,
            settings.product,
        )

    def stop(self, drained: Waiter) -> None:
        """Listen no more and close all connections in order; `drained` is woken when
        the last is gone."""
        self._take_no_more()
        self._drained = drained
        for accepted in list(self.connections):
            accepted.peer.close("amqp:connection:forced", "the broker is stopped")
        self._look_whether_drained()

    def die(self) -> None:
        """Be gone without a word, as a process that is killed."""
        self._take_no_more()
        self.drop_connections()

    def _take_no_more(self) -> None:
        self._stop_listening()
        self._next_maintenance.cancel()
        for handshake in self._handshakes:
            handshake.cancel()
        self._handshakes.clear()

    def kill(self) -> None:
        """Close what is left as it is."""
        for accepted in list(self.connections):
            accepted.pump.close()

    def forked(self) -> None:
        """See :class:`greenamqp.hubs.base.Holder`; the pumps are told by themselves."""
        sock, self._listening = self._listening, None
        if sock is not None:
            sock.close()
        for stream in self._handshakes.values():
            os.close(stream.detach())
        self._handshakes.clear()
        self._watch = None
        self._pause.forked()
        self._next_maintenance.forked()

    def drop_connections(self) -> int:
        """Cut all connections without a word; returns how many."""
        victims = list(self.connections)
        for accepted in victims:
            accepted.pump.abort("cut on request")
        return len(victims)

    def forget(self, accepted: _Accepted) -> None:
        """A connection is gone."""
        self.connections.pop(accepted, None)
        accepted.peer.engine.destroy()
        self._look_whether_drained()

    def _look_whether_drained(self) -> None:
        if self._drained is not None and not self.connections:
            drained, self._drained = self._drained, None
            drained.wake()

    def _stop_listening(self) -> None:
        self.hub.holders.pop(self, None)
        self._pause.cancel()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def _acceptable(self) -> None:
        for _ in range(_ACCEPTS):
            if self._listening is None:
                return
            try:
                sock, address = self.hub.network.accept(self._listening)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS):
                    self._pause_accepting(exc)
                    return
                LOG.info("a connection was gone before it was accepted: %s", exc)
                continue
            self._accept(sock, address)

    def _accept(self, sock: typing.Any, address: typing.Any) -> None:
        name = _name(address)
        limit = self.core.settings.max_connections
        if len(self.connections) + len(self._handshakes) >= limit:
            if self._refused % 100 == 0:
                LOG.warning("%s: refused: there are %d connections", name, limit)
            self._refused += 1
            sock.close()
            return
        try:
            sock.setblocking(False)
            if sock.family != getattr(_socket, "AF_UNIX", None):
                sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        except OSError as exc:
            LOG.info("%s: gone before it was served: %s", name, exc)
            sock.close()
            return
        if self._tls is None:
            self._serve(typing.cast(Stream, sock), name)
        else:
            try:
                # Anew for each connection: they may have been renewed.
                self._tls = _context(self.core.settings)
            except tls.TlsSetupError as exc:
                LOG.warning("%s: served with the TLS files as they were: %s", name, exc)
            self._shake_hands(tls.server_stream(sock, self._tls), name)

    def _serve(self, stream: Stream, name: str, external: str | None = None) -> None:
        accepted = _Accepted(self, stream, name, external)
        self.connections[accepted] = None
        accepted.start()

    def _shake_hands(self, stream: tls.TlsStream, name: str) -> None:
        def done(error: str | None) -> None:
            self._handshakes.pop(handshake, None)
            if error is None:
                self._serve(stream, name, stream.peer_name)
            else:
                LOG.warning("%s: no TLS: %s", name, error)

        deadline = self.hub.now() + self.core.settings.handshake_timeout
        handshake = tls.Handshake(self.hub, stream, deadline, done)
        self._handshakes[handshake] = stream

    def _pause_accepting(self, exc: OSError) -> None:
        """The descriptor stays readable, so a look at it would be a busy loop."""
        LOG.warning("no connection can be accepted: %s", exc)
        assert self._watch is not None
        self._watch.close()
        self._watch = None
        self._pause.call_in(_ACCEPT_PAUSE, self._resume)

    def _resume(self) -> None:
        if self._listening is not None:
            self._watch = self.hub.watch(self._listening.fileno(), self._acceptable)

    def _maintain(self) -> None:
        begin = self.hub.now()
        self.core.maintain(begin)
        end = self.hub.now()
        pause = max(_MAINTENANCE, (end - begin) / _MAINTENANCE_SHARE)
        self._next_maintenance.call_at(end + pause, self._maintain)


def _context(settings: Settings) -> ssl.SSLContext:
    """Reads files."""
    return tls.server_context(
        settings.tls_cert,
        settings.tls_key,
        settings.tls_key_password,
        settings.tls_ca,
        settings.tls_require_client_cert,
    )


def _name(address: typing.Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{host}:{address[1]}"
    return "local socket"
