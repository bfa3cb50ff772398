# SPDX-License-Identifier: Apache-2.0
"""Who is told what becomes of messages, where somebody wants to know.

A client has an observer or None; what is observed is a message's own.  All is called
in the hub's context or under its lock, for each message: it must be quick, may not
wait, and may not raise.
"""

from __future__ import annotations

import typing


class Observation(typing.Protocol):
    """One message on its way out."""

    def transmitted(self) -> None:
        """It was given to the engine, perhaps once more."""

    def settled(self, outcome: int, error: typing.Any) -> None:
        """The bus said what became of it.

        :param outcome: ACCEPTED, REJECTED, RELEASED or MODIFIED
        :param error: of REJECTED a RemoteError or None
        """

    def ended(self, error: Exception | None) -> None:
        """Nothing more will happen to it.

        :param error: what its sender gets, or None
        """


class Processing(typing.Protocol):
    """One message that was handed to a server or listener."""

    def ended(self, error: str) -> None:
        """It was replied to, acknowledged or given back.

        :param error: the kind of error of the endpoint, or ""
        """


class Observer(typing.Protocol):
    """All messages of a client."""

    def sending(self, what: str, topic: str | None) -> Observation:
        """A message is to be sent.

        :param what: its kind, as in :class:`greenamqp.client.outgoing.Outgoing`
        :param topic: where to, or None: it is a reply
        """

    def handed_out(self, what: str, topic: str | None) -> Processing:
        """A message was handed out, of that kind and topic."""
