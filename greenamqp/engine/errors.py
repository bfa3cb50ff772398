# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the engine, and whose fault it was.

The engine raises :class:`LocalProtocolError` where this side broke a rule, and
reports a :class:`RemoteProtocolError` or :class:`ConnectionFailed` to its handler
where the peer or the wire did.  The client maps them to oslo.messaging's
exceptions; nothing above it sees them.
"""

from __future__ import annotations

import functools
import typing


class LocalProtocolError(Exception):
    """This side asked the engine for something that AMQP 1.0 does not allow."""


class LinkLimitError(LocalProtocolError):
    """The connection cannot hold another session or link (AMQP 1.0, 2.7.1)."""


class RemoteError(Exception):
    """An error condition that the peer gave (AMQP 1.0 part 2, section 2.8.14).

    :ivar condition: its symbol, such as ``amqp:not-found``
    :ivar description: the peer's own words, may be empty
    """

    def __init__(self, condition: str, description: str = "") -> None:
        super().__init__(condition, description)
        self.condition = condition
        self.description = description

    def __str__(self) -> str:
        if self.description:
            return f"{self.condition}: {self.description}"
        return self.condition


class SessionStalled(RemoteError):
    """The peer did not answer in a session, which was left for that reason."""

    def __init__(self, description: str) -> None:
        super().__init__("", description)

    def __str__(self) -> str:
        return self.description


class RemoteProtocolError(Exception):
    """The peer sent something that AMQP 1.0 does not allow, or that makes no sense."""


_Read = typing.TypeVar("_Read", bound=typing.Callable[..., typing.Any])


def from_peer(read: _Read) -> _Read:
    """Decorates what decodes data that a peer may fill at will: whatever that raises
    (text that is no UTF-8, a map whose key is a list, nesting without end) is the
    peer's fault, and raised as RemoteProtocolError."""

    @functools.wraps(read)
    def reading(*args: typing.Any) -> typing.Any:
        try:
            return read(*args)
        except Exception as exc:
            raise RemoteProtocolError(
                f"the peer sent data that makes no sense ({type(exc).__name__}: {exc})"
            ) from None

    return typing.cast(_Read, reading)


class ConnectionFailed(Exception):
    """The connection is gone: the wire, the peer or a broken rule ended it."""

    @property
    def reason(self) -> str:
        """The text as it was given."""
        return typing.cast(str, self.args[0])
