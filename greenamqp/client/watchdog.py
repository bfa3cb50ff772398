# SPDX-License-Identifier: Apache-2.0
"""Sessions in which the message bus stands still are left.

RabbitMQ works on the frames of a session one after another.  Where one of them waits
for a queue that does not answer, because its node is gone or it has no leader, all
other links of that session wait with it, for more than a minute.  So where something
that was asked for in a session is not answered for
:attr:`greenamqp.buses.Bus.patience` seconds, the session is left: its links are
detached, and go on in others.  Which of them was at fault is not known; each that
waited for something has a session of its own from then on, until it has got an answer.
If that does not help a link that sends, the connection is left, where somebody still
waits for that: see `pursuit`.

A node that was left because it was silent is frozen, or cut off: the others take up to
ten seconds to agree that its queues are led elsewhere, and what is asked of such a
queue before that may never be answered, by one of them for longer than by another.  So
for HASTE_LASTS seconds an attach, and an outcome of what may be sent again, is waited
for no longer than HASTE.  Where HASTY_SESSIONS did not help, the connection is left for
the next host.  A request to /management is no reason for that, as nodes agree on none
while one of them is frozen.

All this is for a bus that answers.  One that is frozen, or that holds back all who
publish because its memory or disk is full, answers nothing, and to send again would
only make copies.  So before anything is left the bus is asked for a session, which
takes it no time; until it answers, all wait, and then once more for as long as before.
RabbitMQ from 4.0 on gives the session in such an alarm, and takes no messages in it: no
other connection would help where messages cannot leave at all in a new session.
"""

from __future__ import annotations

import logging
import typing

from greenamqp.buses import Management
from greenamqp.client.pursuit import Pursuits
from greenamqp.engine import Connection, Link, Sender
from greenamqp.hubs import Countdown, Hub

LOG = logging.getLogger("greenamqp.client")


#: How long an answer is waited for after a silent host was left.  Seconds.
HASTE = 2.0

#: For so long after its first successor was connected to.  RabbitMQ's nodes take ten
#: seconds to notice that another one stands still, which began before.  Seconds.
HASTE_LASTS = 15.0

#: Sessions in which one destination gets no outcome meanwhile, or links that receive
#: are not attached, before the next host is asked.
HASTY_SESSIONS = 2


class Sending(typing.Protocol):
    """A link that sends, over any number of links of the engine in turn."""

    destination: typing.Any
    link: Sender | None

    @property
    def missed(self) -> bool:
        """Whether anybody waits for what its link was given, or for the link."""

    @property
    def repeatable(self) -> bool:
        """Whether all that waits for its outcome may be sent again."""


class Watchdog:
    """See the module.  One for each connection; hub's context or lock.

    :param where: the bus, for messages to people
    :param pursuits: what is known of the destinations, also over former connections
    :param senders: the links that send, whose outcomes are waited for
    :param left: called after links were given up
    :param leave: leaves the connection, for the reason given
    :param left_at: when a silent host was left, the latest of them
    """

    def __init__(
        self,
        hub: Hub,
        where: str,
        patience: float | None,
        pursuits: Pursuits,
        connection: Connection,
        management: Management,
        senders: typing.Callable[[], typing.Iterable[Sending]],
        left: typing.Callable[[], None],
        leave: typing.Callable[[str], None],
        left_at: float,
    ) -> None:
        self._hub = hub
        self._where = where
        self._patience = patience
        self._pursuits = pursuits
        self._connection = connection
        self._management = management
        self._senders = senders
        self._left = left
        self._leave = leave
        # In the order in which they were attached, and when.
        self._attaching: dict[Link, float] = {}
        # When an attach was last answered in a session: hundreds of them take a while.
        self._heard: dict[object, float] = {}
        # What each link waited for when it was looked at, and since when.
        self._waits: dict[Link, tuple[object, float]] = {}
        # Whether the bus was asked if it answers at all, and has not yet.
        self._asking = False
        # Whether it was found that it does not.
        self._mute = False
        # Whether it takes no messages, in new sessions either.
        self._full = False
        self._asked_at = 0.0
        self._next_look = Countdown(hub)
        self._hasty_until = left_at + HASTE_LASTS
        # By destination: in how many sessions in haste there was no outcome.  None is
        # for links that receive, whose attaches were not answered.
        self._in_vain: dict[object, int] = {}
        if patience is not None:
            self._look_later()

    def stop(self) -> None:
        """The connection is gone."""
        self._patience = None
        self._next_look.cancel()

    def attaching(self, link: Link) -> None:
        """The peer's answer to this one's attach is waited for."""
        if self._patience is not None:
            self._attaching[link] = self._hub.now()

    def answered(self, link: Link) -> None:
        """It came, or is waited for no longer."""
        if self._attaching.pop(link, None) is not None:
            self._heard[link.session] = self._hub.now()

    @property
    def hasty(self) -> bool:
        """Whether answers are waited for but briefly."""
        return self._hub.now() < self._hasty_until

    @property
    def _shortest(self) -> float:
        assert self._patience is not None
        return min(HASTE, self._patience) if self.hasty else self._patience

    def _look_later(self) -> None:
        self._next_look.call_in(self._shortest / 2, self._look)

    def _look(self) -> None:
        patience = self._patience
        assert patience is not None
        self._look_later()
        late = self._late()
        if self._full and not late:
            self._full = False
            LOG.warning("%s takes messages again", self._where)
        if self._asking:
            if self._hub.now() >= self._asked_at + patience / 2:
                self._found_mute()
        elif late:
            self._asked_at = self._hub.now()
            self._asking = self._connection.probe(self._answers)
            if self._asking:
                self._left()
            else:
                self._give_up(late)  # no session is left to ask for

    # -- does the bus answer at all?

    def _found_mute(self) -> None:
        if not self._mute:
            self._mute = True
            LOG.warning(
                "%s answers nothing: it stands still, or holds back all who publish "
                "(is its memory or disk full?); what was sent waits",
                self._where,
            )

    def _answers(self) -> None:
        # Links may not be left from within the engine.
        if self._patience is not None:
            self._hub.call_at(self._hub.now(), self._answered_at_all)

    def _answered_at_all(self) -> None:
        self._asking = False
        if self._patience is None:
            return
        if not self._mute:
            self._give_up(self._late())
            return
        self._mute = False
        LOG.warning("%s answers again", self._where)
        now = self._hub.now()
        self._waits.clear()
        self._heard.clear()
        for link in self._attaching:
            self._attaching[link] = now

    # -- who waits too long

    def _late(self) -> dict[Link, Sending | None]:
        """The links that have waited for one thing for too long; which sending link
        that is."""
        now, hasty, shortest = self._hub.now(), self.hasty, self._shortest
        late: dict[Link, Sending | None] = {}
        senders = {
            sender.link: sender for sender in self._senders() if sender.link is not None
        }
        for link, since in self._attaching.items():
            if since > now - shortest:
                break
            sender = senders.get(typing.cast(Sender, link))
            pause = self._pause(sender, hasty)
            if self._heard.get(link.session, since) <= now - pause:
                late[link] = sender
        if not self._attaching:
            self._heard.clear()
        waits: dict[Link, tuple[object, float]] = {}
        waiting: list[tuple[object, Sender, Sending | None]] = []
        asked, asking = self._management.unanswered, self._management.link
        if asked is not None and asking is not None:
            waiting.append((asked, asking, None))
        waiting += [
            (each.oldest, each, sender)
            for each, sender in senders.items()
            if each.unsettled
        ]
        for thing, each, sender in waiting:
            before, since = self._waits.get(each, (None, now))
            waits[each] = (thing, since if before is thing else now)
            again = hasty and sender is not None and sender.repeatable
            if before is thing and since <= now - self._pause(sender, again):
                late[each] = sender
        self._waits = waits
        return late

    def _pause(self, sender: Sending | None, hasty: bool) -> float:
        """How long it may wait."""
        assert self._patience is not None
        if hasty:
            return self._shortest
        if sender is None:
            return self._patience
        return self._pursuits.pause(sender.destination, self._patience)

    def _give_up(self, late: dict[Link, Sending | None]) -> None:
        """The bus answers, but not these."""
        if not late:
            return
        now, patience, hasty = self._hub.now(), self._shortest, self.hasty
        elsewhere = False
        if hasty and any(
            sender is None and link in self._attaching for link, sender in late.items()
        ):
            elsewhere = self._count_in_vain(None)
        for link, sender in list(late.items()):
            if sender is None:
                continue
            if hasty:
                in_vain = self._count_in_vain(sender.destination)
                elsewhere |= in_vain and sender.missed
                continue
            pursued = sender.destination in self._pursuits
            if pursued and sender.link is not None and sender.link.held_back:
                self._found_full()
                del late[link]
            elif sender.missed or not pursued:
                elsewhere |= self._pursuits.step(sender.destination, now)
            # A connection is too much for what nobody waits for any more.  A session is
            # not: those who wait for less than this find it as it is, each in turn.
        reason = f"the message bus did not answer within {patience:g} s"
        if elsewhere:
            self._step_others(late, now - patience)
            self._leave(f"{reason}, nor in a new session")
            return
        for link in late:
            self._connection.leave_session(link, reason)
        self._left()

    def _count_in_vain(self, destination: object) -> bool:
        """One more session did not help.  Returns whether the next one would not."""
        count = self._in_vain.get(destination, 0) + 1
        self._in_vain[destination] = count
        return count >= HASTY_SESSIONS

    def _found_full(self) -> None:
        if not self._full:
            self._full = True
            LOG.warning(
                "%s takes no messages: it holds back all who publish (is its memory or "
                "disk full?); what was sent waits",
                self._where,
            )

    def _step_others(self, late: dict[Link, Sending | None], instant: float) -> None:
        """What else has waited since before `instant` goes on over a new connection as
        well: it is not left once for each of them."""
        for sender in self._senders():
            link = sender.link
            if link is None or link in late or sender.destination not in self._pursuits:
                continue
            _, since = self._waits.get(link, (None, self._hub.now()))
            if since <= instant:
                self._pursuits.step(sender.destination, self._hub.now())
