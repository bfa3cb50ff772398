# SPDX-License-Identifier: Apache-2.0
"""The deadlines of a hub's waiters, behind one timer.

Most waiters are woken long before their deadlines, so that a timer for each would be
set in vain.  They are only looked through when the alarm, the earliest of them, goes
off.
"""

from __future__ import annotations

import math
import typing

from greenamqp.hubs.base import Hub, Timer

_Waiter = typing.TypeVar("_Waiter")


class Alarm(typing.Generic[_Waiter]):
    """See the module.  Hub's thread.

    :param due: called in the hub's context with each whose deadline has passed
    :ivar deadlines: of those who wait; each takes its own out afterwards
    :ivar instant: when the alarm goes off; infinite: not at all
    """

    __slots__ = ("_due", "_hub", "_timer", "deadlines", "instant")

    def __init__(self, hub: Hub, due: typing.Callable[[_Waiter], object]) -> None:
        self._hub = hub
        self._due = due
        self._timer: Timer | None = None
        self.deadlines: dict[_Waiter, float] = {}
        self.instant = math.inf

    def add(self, waiter: _Waiter, deadline: float) -> None:
        """It waits until then."""
        self.deadlines[waiter] = deadline
        if deadline < self.instant:
            # A signal handler that adds one itself must not come in between.
            with self._hub.lock:
                if deadline < self.instant:
                    self._set(deadline)

    def _set(self, instant: float) -> None:
        """Go off at `instant`, and not later.  Under the hub's lock."""
        self.instant = instant
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._hub.call_at(instant, self._went_off)

    def renew(self) -> None:
        """The timer may be lost: set it anew."""
        self.instant = math.inf
        if self.deadlines:
            self._set(min(self.deadlines.values()))

    def stop(self) -> None:
        """The hub's last user is gone: leave no timer, if nobody waits."""
        if self._timer is not None and not self.deadlines:
            self._timer.cancel()
            self._timer = None
            self.instant = math.inf

    def _went_off(self) -> None:
        now = self._hub.now()
        self._timer = None
        self.instant = earliest = math.inf
        for waiter, deadline in self.deadlines.items():
            if deadline <= now:
                self._due(waiter)
            elif deadline < earliest:
                earliest = deadline
        if earliest < math.inf:
            self._set(earliest)
