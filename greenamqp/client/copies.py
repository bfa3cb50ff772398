# SPDX-License-Identifier: Apache-2.0
"""Which messages were had of late: should one come again, it is a copy."""

from __future__ import annotations

# When a connection breaks, the bus may not have heard of the latest acknowledgements,
# and gives as many messages once more as a listener may hold; a client sends a request
# again when it has reconnected, and others have sent theirs meanwhile.
PER_CREDIT = 4
LEAST = 10_000

# In place of empty sets, since most of thousands of listeners idle.  Never added to.
_NONE: set[str] = set()


class Known:
    """At least so many ids of the latest, and twice as many at the most: half are
    forgotten at a time, as to forget one after another takes longer than all else here.

    Hub's context or lock.
    """

    __slots__ = ("_before", "_latest", "_limit")

    def __init__(self) -> None:
        self._limit = LEAST
        self._latest = _NONE
        self._before = _NONE

    def __len__(self) -> int:
        return len(self._latest) + len(self._before)

    def __contains__(self, id: str) -> bool:
        return id in self._latest or id in self._before

    def provide(self, credit: int) -> None:
        """There is a listener that may hold so many messages."""
        self._limit = max(self._limit, PER_CREDIT * credit)

    def add(self, id: str) -> None:
        """It was had."""
        if self._latest is _NONE:
            self._latest = set()
        self._latest.add(id)
        if len(self._latest) >= self._limit:
            self._latest, self._before = _NONE, self._latest

    def discard(self, id: str) -> None:
        """It was given back: should it come again, it is no copy."""
        self._latest.discard(id)
        self._before.discard(id)
