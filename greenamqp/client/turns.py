# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is to attach a link in a session of its own."""

from __future__ import annotations

import collections
import typing

# Attaches that may be refused, and so have a session each, at one time.
MAX_DOUBTFUL = 4


class Waiting(typing.Protocol):
    """A link that may be refused."""

    def want(self) -> None:
        """Its turn has come."""


class Turns:
    """See the module.  One for each connection; hub's context or lock.

    A connection holds few sessions: without turns a thousand queues that are refused
    would take all of them.
    """

    def __init__(self) -> None:
        self._inside: set[Waiting] = set()
        self._waiting: collections.deque[Waiting] = collections.deque()

    def enter(self, link: Waiting) -> bool:
        """Whether this one may attach now; if not, it is told to when it may."""
        if link in self._inside or len(self._inside) < MAX_DOUBTFUL:
            self._inside.add(link)
            return True
        if link not in self._waiting:
            self._waiting.append(link)
        return False

    def leave(self, link: Waiting) -> None:
        """Its attach was answered, or is wanted no longer."""
        self._inside.discard(link)
        if link in self._waiting:
            self._waiting.remove(link)
        # Not all that are told enter: some are wanted no longer, or elsewhere.
        while self._waiting and len(self._inside) < MAX_DOUBTFUL:
            self._waiting.popleft().want()
