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


_Durations = collections.deque[tuple[float, float]]


class Latest:
    """See the module.  Hub's context or lock.

    :param now: the hub's clock
    """

    def __init__(self, now: typing.Callable[[], float]) -> None:
        self._now = now
        # When each was recorded, and the duration.
        self._calls: _Durations = collections.deque(maxlen=KEPT)
        self._outcomes: _Durations = collections.deque(maxlen=KEPT)

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
            "call": _median(self._calls, since),
            "outcome": _median(self._outcomes, since),
        }

    def _operation(
        self, seconds: float, what: str, _topic: str | None, came: str
    ) -> None:
        if what == "RPC call" and not came:
            self._calls.append((self._now(), seconds))

    def _settlement(self, seconds: float, *_: object) -> None:
        self._outcomes.append((self._now(), seconds))


def _median(kept: _Durations, since: float) -> float | None:
    lately = [seconds for instant, seconds in kept if instant >= since]
    return statistics.median(lately) if lately else None


def _nowhere(*_: object) -> None:
    """Record nothing."""


def _both(one: Record, other: Record) -> Record:
    def record(seconds: float, what: str, topic: str | None, came: str) -> None:
        one(seconds, what, topic, came)
        other(seconds, what, topic, came)

    return record
