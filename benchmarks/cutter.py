# SPDX-License-Identifier: Apache-2.0
"""A forwarder between clients and the bus that cuts connections when told to."""

from __future__ import annotations

import selectors
import socket
import threading
import time
import typing
import urllib.parse

#: Seconds that clients may take to be back after a cut.
PATIENCE = 60.0


class Cutter:
    """Forwards bytes in a thread of its own, from start to the end of the ``with``."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._bus = (parts.hostname or "localhost", parts.port or 5672)
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        login = parts.netloc.rpartition("@")[0]
        netloc = f"{login}@127.0.0.1:{port}" if login else f"127.0.0.1:{port}"
        self.url = urllib.parse.urlunsplit(parts._replace(netloc=netloc))
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> typing.Self:
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stopping = True
        self._wake.send(b"x")
        self._thread.join()
        with self._lock:
            for sock in list(self._peers):
                self._drop(sock)
        for sock in (self._listening, self._wake, self._woken):
            sock.close()
        self._selector.close()

    def cut(self, back: typing.Callable[[], bool]) -> int:
        """Cut all connections and wait until `back` says that all is well again.

        Returns how many connections were cut.

        :raises TimeoutError: if it does not
        """
        with self._lock:
            count = len(self._peers) // 2
            for sock in list(self._peers):
                self._drop(sock)
        deadline = time.monotonic() + PATIENCE
        while not back():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing works {PATIENCE} s after a cut")
        return count

    def _run(self) -> None:
        while not self._stopping:
            for key, _events in self._selector.select():
                sock = typing.cast(socket.socket, key.fileobj)
                with self._lock:
                    if sock is self._listening:
                        self._accept()
                    elif sock in self._peers:
                        self._forward(sock)

    def _accept(self) -> None:
        client, _address = self._listening.accept()
        bus = socket.create_connection(self._bus)
        for sock, other in ((client, bus), (bus, client)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[sock] = other
            self._selector.register(sock, selectors.EVENT_READ)

    def _forward(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(1 << 16)
            if data:
                # Blocking: a slow reader slows its writer, as without us.
                self._peers[sock].sendall(data)
                return
        except OSError:
            pass
        self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        """Close both ends of one connection."""
        other = self._peers.pop(sock, None)
        if other is None:
            return
        del self._peers[other]
        for each in (sock, other):
            self._selector.unregister(each)
            each.close()
