# SPDX-License-Identifier: Apache-2.0
"""How long the messages of one client took lately, for whoever asks now."""

from __future__ import annotations

import collections
import statistics
import typing

from greenamqp.telemetry.tally import Histograms, Record

#: Seconds for which a duration counts.
LATELY = 60.0

#: How many of a kind are kept, at the most.
KEPT = 200


class Latest:
    """See the module.  Hub's context or lock.

    :param now: the hub's clock
    """

    def __init__(self, now: typing.Callable[[], float]) -> None:
        self._now = now
        # When each was recorded, and the duration.
        self._calls: collections.deque[tuple[float, float]]
        self._calls = collections.deque(maxlen=KEPT)
        self._outcomes: collections.deque[tuple[float, float]]
        self._outcomes = collections.deque(maxlen=KEPT)

    def histograms(self, others: Histograms | None) -> Histograms:
        """What records here, and in `others` as well."""
        ours = Histograms(self._operation, self._settlement, _nowhere)
        if others is None:
            return ours
        return Histograms(*map(_both, ours, others))

    def describe(self) -> dict[str, float | None]:
        """The medians: see :func:`greenamqp.describe`."""
        since = self._now() - LATELY
        return {
            name: statistics.median(lately) if lately else None
            for name, lately in (
                (name, [seconds for instant, seconds in kept if instant >= since])
                for name, kept in (("call", self._calls), ("outcome", self._outcomes))
            )
        }

    def _operation(
        self, seconds: float, what: str, _topic: str | None, came: str
    ) -> None:
        if what == "RPC call" and not came:
            self._calls.append((self._now(), seconds))

    def _settlement(self, seconds: float, *_: object) -> None:
        self._outcomes.append((self._now(), seconds))


def _nowhere(*_: object) -> None:
    """Record nothing."""


def _both(one: Record, other: Record) -> Record:
    def record(seconds: float, what: str, topic: str | None, came: str) -> None:
        one(seconds, what, topic, came)
        other(seconds, what, topic, came)

    return record
