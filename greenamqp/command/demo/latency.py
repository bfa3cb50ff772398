# SPDX-License-Identifier: Apache-2.0
"""Latencies of many operations in little room.

A histogram with buckets that grow by a fixed factor, so that a percentile is
right within 2.2 % whatever its size, histograms of several processes can be added,
and one travels as a small JSON object. Pure; to be used from one thread at a time.
"""

import math
import typing
from collections.abc import Mapping

#: Buckets per doubling: the borders of a bucket are a factor of 2 ** (1 / 16), or
#: 4.4 %, apart, and its middle stands for everything in it.
_PER_DOUBLING = 16

#: What the first bucket starts at, in seconds; everything shorter is in it too.
_SHORTEST = 1e-6


class Latencies:
    """How long each of many operations took, in seconds."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one operation. A negative time counts as none."""
        bucket = 0
        if seconds > _SHORTEST:
            bucket = int(math.log2(seconds / _SHORTEST) * _PER_DOUBLING)
            self._longest = max(self._longest, seconds)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def merge(self, dumped: Mapping[str, typing.Any]) -> None:
        """Add what another one's :meth:`dump` gave."""
        for bucket, count in dumped["buckets"].items():
            # JSON makes text of the keys.
            bucket = int(bucket)
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self._longest = max(self._longest, dumped["longest"])

    def dump(self) -> dict[str, typing.Any]:
        """The histogram in JSON's types, for :meth:`merge`."""
        return {"buckets": dict(self._buckets), "longest": self._longest}

    @property
    def count(self) -> int:
        """How many operations were counted."""
        return sum(self._buckets.values())

    @property
    def longest(self) -> float:
        """The longest one, exactly, in seconds; 0.0 if there is none."""
        return self._longest

    def percentile(self, part: float) -> float | None:
        """The time, in seconds, that ``part`` (0 < part <= 1) of them did not
        exceed; None if there are none."""
        due = math.ceil(self.count * part)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= due:
                middle = _SHORTEST * 2 ** ((bucket + 0.5) / _PER_DOUBLING)
                return min(middle, self._longest)
        return None
