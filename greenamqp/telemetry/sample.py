# SPDX-License-Identifier: Apache-2.0
"""Which of many values are recorded: all of few, some of many.

To record a value in a histogram takes OpenTelemetry's SDK longer than an RPC call takes
the driver.  So no more than RATE of them are recorded in a second, evenly spread.
"""

from __future__ import annotations

#: Values that are recorded in a second, at the most; about.
RATE = 50


class Sample:
    """A choice among the values of one kind.  One thread at a time."""

    __slots__ = ("_since", "_seen", "_stride")

    def __init__(self) -> None:
        self._since = 0.0
        self._seen = 0
        # Every so many values one is taken.
        self._stride = 1

    def takes(self, now: float) -> bool:
        """Whether the value at the instant `now` is recorded."""
        seen = self._seen
        if now - self._since >= 1.0:
            # As many as in the time before are to be expected.
            rate = seen / max(1.0, now - self._since)
            self._stride = max(1, round(rate / RATE))
            self._since = now
            seen = 0
        self._seen = seen + 1
        return seen % self._stride == 0
