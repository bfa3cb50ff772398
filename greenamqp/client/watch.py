# SPDX-License-Identifier: Apache-2.0
"""Sessions in which the message bus stands still are left.

RabbitMQ works on the frames of a session one after another.  Where one of them waits
for a queue that does not answer, because its node is gone or it has no leader, all
other links of that session wait with it, for more than a minute.  So where something
that was asked for in a session is not answered for
:attr:`greenamqp.addressing.Bus.patience` seconds, the session is left: its links are
detached, and go on in others.  Which of them was at fault is not known; each that
waited for something has a session of its own from then on, until it has got an answer.

A link that sends in a session of its own is left to wait there: it holds up nobody, and
what has no outcome in an alarm of the bus is not sent again and again.
"""

from __future__ import annotations

import typing

from greenamqp.engine import Connection, Link, Receiver, Sender
from greenamqp.hubs import Hub, Timer
from greenamqp.management import Management


class Watch:
    """See the module.  One for each connection; hub's context or lock.

    :param senders: the links that send, whose outcomes are waited for
    :param left: called after links were given up
    """

    def __init__(
        self,
        hub: Hub,
        patience: float | None,
        connection: Connection,
        management: Management,
        senders: typing.Callable[[], typing.Iterable[Sender]],
        left: typing.Callable[[], None],
    ) -> None:
        self._hub = hub
        self._patience = patience
        self._connection = connection
        self._management = management
        self._senders = senders
        self._left = left
        # In the order in which they were attached, and when.
        self._attaching: dict[Receiver, float] = {}
        # When an attach was last answered in a session: hundreds of them take a while.
        self._heard: dict[object, float] = {}
        # What each link waited for when it was looked at, and since when.
        self._waits: dict[Link, tuple[object, float]] = {}
        self._timer: Timer | None = None
        if patience is not None:
            self._look_later(patience)

    def stop(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def attaching(self, link: Receiver) -> None:
        """The peer's answer to this one's attach is waited for."""
        if self._patience is not None:
            self._attaching[link] = self._hub.now()

    def answered(self, link: Receiver) -> None:
        """It came, or is waited for no longer."""
        if self._attaching.pop(link, None) is not None:
            self._heard[link.session] = self._hub.now()

    def _look_later(self, patience: float) -> None:
        self._timer = self._hub.call_at(self._hub.now() + patience / 2, self._look)

    def _look(self) -> None:
        patience = self._patience
        assert patience is not None
        late = self._late(self._hub.now() - patience)
        for link in late:
            self._connection.leave_session(
                link, f"the message bus did not answer within {patience:g} s"
            )
        if late:
            self._left()
        self._look_later(patience)

    def _late(self, instant: float) -> list[Link]:
        """The links that have waited for one thing since before `instant`."""
        late: list[Link] = []
        for receiver, since in self._attaching.items():
            if since > instant:
                break
            if self._heard.get(receiver.session, since) <= instant:
                late.append(receiver)
        if not self._attaching:
            self._heard.clear()
        now = self._hub.now()
        waits: dict[Link, tuple[object, float]] = {}
        asked = self._management.unanswered
        oldest = [(asked, self._management.link)] if asked is not None else []
        oldest += [(link.oldest, link) for link in self._senders() if _waits(link)]
        for thing, link in oldest:
            if link is None:
                continue
            before, since = self._waits.get(link, (None, now))
            waits[link] = (thing, since if before is thing else now)
            if before is thing and since <= instant:
                late.append(link)
        self._waits = waits
        return late


def _waits(link: Sender) -> bool:
    """Whether it waits for outcomes, and others may wait with it."""
    return link.unsettled > 0 and not link.alone
