# SPDX-License-Identifier: Apache-2.0
"""Who is told what becomes of messages, where somebody wants to know.

What is observed of a message is its own.  All is called for each message: it must be
quick, may not wait, and may not raise.
"""

from __future__ import annotations

import typing


class Observation(typing.Protocol):
    """One message on its way out.  Hub's context or lock."""

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
    """One message that was handed to a server or listener.  In the thread that works on
    it."""

    def begun(self) -> None:
        """It is an RPC request that is carried out next, in this thread."""

    def ended(self, error: str) -> None:
        """It was replied to, acknowledged or given back.

        :param error: the kind of error of the endpoint, or ""
        """


#: A message is to be sent: its kind, as in Outgoing, and its topic, which replies have
#: not.  Hub's lock.
Sending = typing.Callable[[str, str | None], Observation]

#: A message was handed out: its kind, its listener's topic, and its context.  Returns
#: None if it is not observed.
HandedOut = typing.Callable[[str, str | None, dict[str, typing.Any]], Processing | None]
