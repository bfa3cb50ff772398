# SPDX-License-Identifier: Apache-2.0
"""Where a hub's sockets come from: the operating system, or what stands in for it."""

from __future__ import annotations

import _socket  # the class that no monkey patching replaces
import socket
import typing

#: As ``getaddrinfo`` has it: family, kind, protocol, name, address.
Info = tuple[typing.Any, ...]


class Network:
    """The operating system's.  From anywhere, but for `look_up`, which may block."""

    def look_up(self, hostname: str, port: int) -> list[Info]:
        """The addresses of a host.  Where it may block.

        :raises OSError: if the name has none, or cannot be looked up
        """
        try:
            # An address needs no look-up: gevent would start a thread for it.
            return _socket.getaddrinfo(
                hostname, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        except socket.gaierror:
            # The module's function, not _socket's: cooperative where it is patched.
            return socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM)

    def socket(self, family: int, kind: int, proto: int) -> typing.Any:
        """A new socket, which does not block.

        :raises OSError: if there is none
        """
        kind |= socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        return _socket.socket(family, kind, proto)

    def listen(self, host: str, port: int, backlog: int) -> typing.Any:
        """A socket that listens, and does not block.

        :param port: 0 picks a free one
        :raises OSError: if host and port cannot be listened on
        """
        family, kind, proto, _, address = _socket.getaddrinfo(
            host, port, 0, _socket.SOCK_STREAM, 0, _socket.AI_PASSIVE
        )[0]
        sock = self.socket(family, kind, proto)
        try:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(backlog)
        except BaseException:
            sock.close()
            raise
        return sock

    def accept(self, listening: typing.Any) -> tuple[typing.Any, typing.Any]:
        """The next connection: a socket, and where it comes from.

        :raises BlockingIOError: if there is none
        :raises OSError: if it is gone, or no descriptor is free
        """
        fd, address = listening._accept()
        return _socket.socket(fileno=fd), address


NETWORK = Network()
