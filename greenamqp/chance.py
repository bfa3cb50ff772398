# SPDX-License-Identifier: Apache-2.0
"""All that is left to chance: names that nobody else has, hosts and pauses of which not
everybody is to take the same.

It comes from the operating system, so that neither a fork nor a program that seeds
Python's own generator makes two processes choose alike.  A simulation gives another
source, and has the same run once more with it.
"""

from __future__ import annotations

import random
import typing


class Source(typing.Protocol):
    """What is asked of a generator: a :class:`random.Random` does."""

    def getrandbits(self, number: int, /) -> int:
        """So many bits."""

    def random(self) -> float:
        """From 0.0 up to, and without, 1.0."""

    def randrange(self, stop: int, /) -> int:
        """From 0 up to, and without, `stop`."""


_source: Source = random.SystemRandom()


def use(source: Source | None) -> None:
    """Take everything from `source` from now on; None: from the operating system."""
    global _source
    _source = source if source is not None else random.SystemRandom()


def unique() -> str:
    """A name that nobody else has: 32 hexadecimal digits."""
    return f"{_source.getrandbits(128):032x}"


def below(number: int) -> int:
    """One of the integers from 0 up to, and without, `number`."""
    return _source.randrange(number)


def share() -> float:
    """From 0.0 up to, and without, 1.0."""
    return _source.random()
