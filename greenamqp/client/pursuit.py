# SPDX-License-Identifier: Apache-2.0
"""How a missing outcome is pursued: policy alone, no clock and no link.

A message bus that answers owes an outcome for each message.  RabbitMQ before 4.2 can
lose what a session has sent to a quorum queue, and all that it sends after that; a
session may also wait for a queue that does not answer.  Nothing tells the two apart, so
the waiting is given up in steps, each destination for itself:

======  =====================  =====================================
step    after                  what is sent next goes
======  =====================  =====================================
first   the bus's patience     in a new session
second  the same               over a new connection, to the next
                               host where there are several
others  twice as long each     the same
        time, up to LONGEST
======  =====================  =====================================

Any outcome ends it.  The pauses grow, as a new connection disturbs all that goes over
the old one, and as each step may make a copy of what may be repeated.
"""

from __future__ import annotations

import typing

from greenamqp.client.pauses import doubled

#: A queue may have no leader for days, and the bus is well otherwise.  Seconds.
LONGEST = 320.0

#: A destination that was not pursued for so long is forgotten.  Seconds.
FORGOTTEN_AFTER = 3600.0


class Pursuits:
    """See the module.  One for each client, over all of its connections."""

    def __init__(self) -> None:
        # By destination: the steps that were taken, and when the latest was.
        self._taken: dict[typing.Hashable, tuple[int, float]] = {}

    def __contains__(self, destination: typing.Hashable) -> bool:
        """Whether an outcome is missing there."""
        return destination in self._taken

    def pause(self, destination: typing.Hashable, patience: float) -> float:
        """Seconds that the next outcome is waited for."""
        steps, _ = self._taken.get(destination, (0, 0.0))
        return doubled(patience, max(0, steps - 1), max(LONGEST, patience))

    def step(self, destination: typing.Hashable, now: float) -> bool:
        """It was waited for in vain.  Returns whether a new session is not enough."""
        steps, _ = self._taken.get(destination, (0, now))
        if not steps:
            self._forget(now - FORGOTTEN_AFTER)
        self._taken[destination] = (steps + 1, now)
        return steps > 0

    def answered(self, destination: typing.Hashable) -> None:
        """An outcome came."""
        self._taken.pop(destination, None)

    def _forget(self, instant: float) -> None:
        old = [key for key, (_, since) in self._taken.items() if since < instant]
        for key in old:
            del self._taken[key]
