# SPDX-License-Identifier: Apache-2.0
"""What goes to one destination, over any number of links in turn."""

from __future__ import annotations

import collections
import logging
import math
import typing

from greenamqp import chance
from greenamqp.buses import Again, Refused
from greenamqp.client import absence, notices
from greenamqp.client.context import LINK_NAME, Context
from greenamqp.client.doubt import CallsInDoubt
from greenamqp.client.outcome import Verdict, judge
from greenamqp.client.outgoing import Call, Destination, Outgoing
from greenamqp.client.pauses import doubled
from greenamqp.client.replies import Replies
from greenamqp.client.wanted import FIRST_PAUSE, Phase, WantedLink
from greenamqp.engine import (
    ACCEPTED,
    LocalProtocolError,
    RemoteError,
    Sender,
    SessionStalled,
    Terminus,
)
from greenamqp.hubs import Countdown, Timer

LOG = logging.getLogger("greenamqp.client")

# A message that the peer released is sent again after this pause, twice as long each
# further time up to the option link_retry_delay.  A mesh of routers takes up to a
# second to know a new consumer everywhere.  Seconds.
FIRST_RETRY_PAUSE = 0.1

# On a router the pause grows no longer than this: what a router releases is stored
# nowhere, and a mesh that lost a router has found its other ways within seconds.
# Nothing ends the pause early: each RELEASED brings a flow, so to try again with that
# would be a hot loop.  Seconds.
LONGEST_ROUTER_PAUSE = 1.0

# A refusal of these kinds does not go away by trying again.
_PERMANENT = frozenset(
    (
        "amqp:unauthorized-access",
        "amqp:not-allowed",
        "amqp:invalid-field",
        "amqp:not-implemented",
        "amqp:precondition-failed",
    )
)


class SendingLink(WantedLink[Sender]):
    """See the module.  Hub's context or lock.

    :param replies: where the replies to calls come
    :param make_room: has others make room for this link; returns whether they do
    :ivar pending: what waits for a link, for credit, or for a declaration
    :ivar in_doubt: calls whose outcome was lost, which wait for their replies
    :ivar refusal: why there is no link, for those who time out meanwhile
    """

    __slots__ = (
        "_absence_ends",
        "_asked_at",
        "_limit",
        "_loose",
        "_loose_ends",
        "_make_room",
        "_replies",
        "_resting",
        "_settled_late",
        "address",
        "destination",
        "in_doubt",
        "last_used",
        "pending",
        "refusal",
    )

    def __init__(
        self,
        context: Context,
        replies: Replies,
        make_room: typing.Callable[[], bool],
        destination: Destination,
    ) -> None:
        super().__init__(context)
        self._replies = replies
        self._make_room = make_room
        self.destination = destination
        self.alone = destination in context.pursuits
        self.address: str | None = None
        self.pending: collections.deque[Outgoing] = collections.deque()
        self.last_used = context.hub.now()
        self.refusal = ""
        # Bytes that it takes in one message; 0: any number.
        self._limit = 0
        # When a message that needs no outcome has asked for one.
        self._asked_at = -math.inf
        # Runs while some of what is pending waits for somebody to be there.
        self._absence_ends = Countdown(context.hub)
        # Fanouts on a router, whose outcome is waited for briefly: until when.
        self._loose: collections.deque[tuple[float, Outgoing]] = collections.deque()
        self._loose_ends = Countdown(context.hub)
        # Whether the latest of them had no outcome in that time.
        self._settled_late = False
        # What the peer released, until its pause is over.
        self._resting: dict[Outgoing, Timer] = {}
        self.in_doubt = CallsInDoubt(context, replies, self.submit)

    @property
    def in_use(self) -> bool:
        """Whether anything waits here, for credit or for its outcome."""
        return bool(
            self.pending
            or self._resting
            or any(self.in_doubt)
            or self.phase is Phase.DECLARING
            or (self.link is not None and self.link.unsettled)
        )

    @property
    def missed(self) -> bool:
        """Whether anybody waits for what its link was given, or for the link."""
        link = self.link
        handles = link.handles if link is not None else ()
        return any(not entry.done for entry in (*self.pending, *handles))

    @property
    def repeatable(self) -> bool:
        """Whether all that waits for its outcome may be sent again."""
        handles = self.link.handles if self.link is not None else ()
        calls = self._repeats_calls and self._replies.survives
        return all(
            entry.done or entry.repeatable or (isinstance(entry, Call) and calls)
            for entry in handles
        )

    @property
    def _repeats_calls(self) -> bool:
        # One server knows a copy as such; of several another one may get it, and
        # executes it.
        return bool(self.destination.server) or self._context.options.repeat_calls

    def describe(self) -> dict[str, typing.Any]:
        """See :func:`greenamqp.describe`."""
        link = self.link
        return {
            "address": self.address,
            "phase": self.phase.value,
            "credit": link.credit if link is not None else 0,
            "unsettled": link.unsettled if link is not None else 0,
            "pending": len([*self.pending, *self._resting, *self.in_doubt]),
            "refusal": self.refusal,
        }

    def submit(self, entry: Outgoing) -> None:
        """Send now if that is possible, else when it is."""
        self.last_used = self._context.hub.now()
        link = self.link
        if not self.pending and link is not None and self._ready(link, entry):
            self._transmit(link, entry)
            return
        self.pending.append(entry)
        if link is None:
            self.want()
        else:
            self._look_for_consumer()

    def _ready(self, link: Sender, entry: Outgoing) -> bool:
        if self.phase is not Phase.UP or link.credit <= 0:
            return False
        if self._context.engine is None:
            return False  # a signal handler interrupted the telling of the loss
        return not isinstance(entry, Call) or self._replies.address is not None

    def _transmit(self, link: Sender, entry: Outgoing) -> None:
        context = self._context
        if entry.format is not context.format:
            try:
                entry.recompose(context.format)
            except (TypeError, ValueError) as exc:
                entry.rejected(f"it cannot be written for {context.bus}: {exc}")
                return
        message = entry.message
        message.address = self.address
        limited = entry.expires or self.node.message_ttl is not None
        message.ttl = self._ttl(entry) if limited else None
        message.expiry_time = self._expiry_time(entry) if entry.impatient else 0
        call = entry if isinstance(entry, Call) else None
        if self.node.durable and (call is None or self._replies.survives):
            # No request has to outlive the address that its reply goes to.
            message.durable = True
        if call is not None:
            self._replies.expect(call)
        engine = context.engine
        assert engine is not None
        data = engine.codec.encode(message)
        if 0 < self._limit < len(data):
            entry.rejected(
                f"the message has {len(data)} bytes, and the link to {self.address} "
                f"takes {self._limit} at most"
            )
            return
        entry.attempts += 1
        settled = entry.settled or (entry.volatile and not self.node.survives)
        link.send(data, entry, settled and not self._is_to_ask())
        if entry.observation is not None:
            entry.observation.transmitted()
        if entry.traced:
            where, attempt = self.address, entry.attempts
            entry.trace("%s bytes sent to %s, attempt %s", len(data), where, attempt)
        if settled:
            entry.accepted()
        elif self.node.may_be_unheard and context.bus.is_router:
            self._let_loose(entry)

    def _is_to_ask(self) -> bool:
        """Whether a message that needs no outcome is to ask for one all the same.

        Once in a while: where the bus may stand still in a session it may lose what it
        is sent there, and only an outcome that does not come tells.  See `watchdog`."""
        patience, now = self._context.bus.patience, self._context.hub.now()
        if patience is None or now < self._asked_at + patience:
            return False
        self._asked_at = now
        return True

    def _ttl(self, entry: Outgoing) -> float | None:
        """How long a message may live from now on.  Seconds."""
        ttl = self.node.message_ttl
        if entry.expires and entry.deadline is not None:
            # What is left of it: nobody may act on a request whose caller has given up.
            left = max(0.001, entry.deadline - self._context.hub.now())
            return left if ttl is None else min(ttl, left)
        return ttl

    def _expiry_time(self, entry: Outgoing) -> float:
        """Until when a server may take a cast that a router cannot take back from it,
        0: for ever.  Seconds since 1970.  See `absence`."""
        if not self._context.bus.is_router or self.node.may_be_unheard:
            return 0
        if entry.settled or entry.deadline is None:
            return 0
        hub = self._context.hub
        return hub.wall_clock() + entry.deadline - absence.OUTCOME_TIME - hub.now()

    def send_pending(self) -> None:
        """Send what waits, as far as credit goes."""
        link = self.link
        if link is None:
            return
        pending = self.pending
        while pending:
            entry = pending[0]
            if entry.done:  # its caller gave up
                pending.popleft()
                continue
            if not self._ready(link, entry):
                break
            self._transmit(link, entry)
            # Not before: what a signal handler raises may cut this off.
            if pending and pending[0] is entry:
                pending.popleft()
        self._look_for_consumer()
        self._context.flush()

    # -- fanouts on a router

    def _let_loose(self, entry: Outgoing) -> None:
        """A router tells the outcome of a fanout when the slowest of all consumers has
        settled: one that is stuck must not hold up who sends.  See `absence`."""
        if self._settled_late:
            entry.accepted()
        self._loose.append((self._context.hub.now() + absence.FANOUT_PATIENCE, entry))
        if not self._loose_ends.runs:
            self._loose_ends.call_at(self._loose[0][0], self._settle_loose)

    def _settle_loose(self) -> None:
        """The patience with some is over: let the router forget them, or it would give
        no more credit."""
        now = self._context.hub.now()
        link = self.link
        while self._loose and self._loose[0][0] <= now:
            entry = self._loose.popleft()[1]
            if link is not None and link.oldest is entry:
                link.settle_oldest()
                self._settled_late = True
                entry.accepted()
        if self._loose:
            self._loose_ends.call_at(self._loose[0][0], self._settle_loose)
        self._context.flush()

    # -- nobody there

    def _look_for_consumer(self) -> None:
        """On a router no credit, and nothing under way, means that nobody is there:
        what does not wait for that for ever is seen to.  See `absence`."""
        link = self.link
        if not self.pending or link is None or not self._context.bus.is_router:
            return
        if self.phase is not Phase.UP or link.credit > 0 or link.unsettled:
            return
        now = self._context.hub.now()
        upcoming = None
        for entry in list(self.pending):
            patience = absence.patience(entry, self.node)
            if patience is not None:
                until = self._wanting_since(entry, now) + patience
                if until <= now:
                    absence.conclude(entry, self.node, self.address)
                    continue
                upcoming = until if upcoming is None else min(until, upcoming)
        self._sweep()
        self._absence_ends.cancel()
        if upcoming is not None:
            self._absence_ends.call_at(upcoming, self._look_for_consumer)

    def _calm(self, phase: Phase) -> None:
        super()._calm(phase)
        self._loose.clear()
        self._loose_ends.cancel()
        self._settled_late = False
        self._absence_ends.cancel()

    def _in_vain(self, entry: Outgoing) -> bool:
        """Whether nobody is there for this one for as long as it waits for that."""
        patience = absence.patience(entry, self.node)
        if patience is None:
            return False
        now = self._context.hub.now()
        return self._wanting_since(entry, now) + patience <= now

    def _wanting_since(self, entry: Outgoing, now: float) -> float:
        """When nobody was there for this one, or for those before it."""
        if entry.wanting_since is None:
            before = self.pending[0].wanting_since if self.pending else None
            entry.wanting_since = now if before is None else before
        return entry.wanting_since

    # -- the life of its link

    def _prepare(self) -> bool:
        addresser = self._context.addresser
        assert addresser is not None
        try:
            self.node = self.destination.node(addresser)
        except NotImplementedError as exc:
            self._refused(str(exc), True)
            return False
        self.address = self.node.to or self.node.address
        return True

    def _create(self) -> Sender:
        engine = self._context.engine
        assert engine is not None
        link = engine.create_sender(
            self.node,
            Terminus(self.address, outcomes=self.node.outcomes),
            name=f"{LINK_NAME}/sender/[{self.address}]/{chance.unique()}",
            properties=self.node.link_properties,
            own_session=self.alone,
        )
        link.on_credit = self._credit
        link.on_settled = self._settled
        return link

    def _no_room(self, reason: str) -> bool:
        if not self._make_room():
            return False
        LOG.debug("the link to %s waits for room: %s", self.address, reason)
        self.refusal = reason
        # Room comes with the peer's answers to the detaches.
        self._rest_if_needed(FIRST_RETRY_PAUSE)
        return True

    def _not_created(self, error: LocalProtocolError | ValueError) -> None:
        self._refused(str(error), not isinstance(error, LocalProtocolError))

    def _declaring(self) -> None:
        self.refusal = f"waiting for the message bus to declare {self.address}"

    def _not_declared(self, refused: Refused) -> None:
        never = refused.again is Again.NEVER
        self._refused(str(refused), never, self.undeclared_pause, refused)

    def _redeclared(self) -> None:
        self.refusal = ""
        self.send_pending()

    def _rested(self) -> None:
        if not self.pending:
            return
        if self.link is None:
            self.want()
        elif not self.declare():
            self.send_pending()

    def _attached(self, link: Sender) -> None:
        self.refusal = ""
        self._limit = link.max_message_size
        self.send_pending()

    def _detached(self, link: Sender, error: RemoteError | None, was_up: bool) -> None:
        reason = str(error) if error is not None else "the peer detached the link"
        self._context.notices.add(
            notices.LINK_CLOSED, address=self.address, reason=reason
        )
        if isinstance(error, SessionStalled):
            # The bus does not answer in the link's session: on in another one.
            self.alone = not was_up or link.unsettled > 0
            self._lost_outcomes(link, reason)
            watchdog = self._context.watchdog
            if watchdog is not None and watchdog.hasty:
                self.in_doubt.replies_come()
            # Else calls stay in doubt until the bus takes anything in the new session:
            # if it holds back all who publish it has them, and is not to have two.
            if self.pending:
                self.want()
            return
        self.forget_declarations()
        permanent = error is not None and error.condition in _PERMANENT
        pause = FIRST_PAUSE if was_up else None
        self._refused(reason, permanent, pause, error)
        self._lost_outcomes(link, reason)
        self.in_doubt.replies_come()
        self._rest_if_needed(pause)

    def _refused(
        self,
        reason: str,
        permanent: bool,
        pause: float | None = None,
        cause: Exception | None = None,
    ) -> None:
        """There is no link, or no use in it: what may not be tried again fails.

        :param cause: what the bus said, or None
        """
        self.refusal = reason
        absent = isinstance(cause, RemoteError) and cause.condition == "amqp:not-found"
        for entry in list(self.pending):
            if entry.done:
                continue
            entry.last_reason = reason
            endless = entry.deadline is None
            in_vain = absent and endless and self._in_vain(entry)
            if permanent or in_vain or not entry.may_retry():
                where = f"{self.address}: " if self.address else ""
                entry.failed(f"{where}{reason}", cause)
        self._sweep()
        self._rest_if_needed(pause)

    def _sweep(self) -> None:
        """Those whose end is known wait no longer.

        Who ends several leaves each where it is until all are seen to, for a signal
        handler may raise in between."""
        self.pending = collections.deque(
            entry for entry in self.pending if not entry.done
        )

    def _rest_if_needed(self, pause: float | None = None) -> None:
        if self.pending and (self.link is None or self.undeclared):
            self.rest(pause)

    # -- outcomes

    def _credit(self, link: Sender) -> None:
        if self.pending:
            self.send_pending()

    def _settled(
        self, link: Sender, entry: Outgoing, outcome: int, error: typing.Any
    ) -> None:
        if self.alone:
            self._context.pursuits.answered(self.destination)
            self.rejoin(link)
            self.in_doubt.replies_come()
        self._settled_late = False
        if entry.observation is not None:
            entry.observation.settled(outcome, error)
        if outcome == ACCEPTED:
            entry.accepted()
            return
        verdict, reason = judge(
            outcome,
            error,
            self.node,
            self._context.bus,
            mandatory=entry.mandatory,
            repeatable=entry.repeatable,
        )
        if verdict is Verdict.DONE:
            entry.accepted()
        elif verdict is Verdict.UNDELIVERABLE:
            entry.undeliverable(self.address)
            self.repair()  # for those that come after it
            self.declare()
        elif verdict is Verdict.FAILED:
            entry.rejected(reason)
        else:
            absent = verdict is Verdict.AGAIN_DECLARED
            if absent:
                self.repair()
            self._again(entry, reason, absent)

    def _again(self, entry: Outgoing, reason: str, absent: bool) -> None:
        if entry.done:
            return
        entry.last_reason = reason
        if isinstance(entry, Call) and not entry.in_doubt:
            # No server has it: no reply can come, and none may be waited for.
            self._replies.forget(entry)
        context = self._context
        waits_for_somebody = (context.bus.is_router and entry.impatient) or (
            absent and entry.deadline is None
        )
        if waits_for_somebody and self._in_vain(entry):
            entry.failed(reason)
            return
        if not entry.may_retry():
            entry.failed(reason)
            return
        longest = context.options.link_retry_delay
        if context.bus.is_router:
            longest = min(longest, LONGEST_ROUTER_PAUSE)
        pause = doubled(FIRST_RETRY_PAUSE, entry.attempts - 1, longest)
        if entry.traced:
            entry.trace("again in %.1f s: %s", pause, reason)
        self._resting[entry] = context.hub.call_at(
            context.hub.now() + pause, lambda: self._resend(entry)
        )

    def _resend(self, entry: Outgoing) -> None:
        if isinstance(entry, Call) and not entry.done:
            # It may have gone with the connection, with no call to keep it. While the
            # entry rests here, this link is in use, and none that it makes room of.
            self._replies.want()
        if not entry.done:
            if self.link is not None:
                self.declare()
            self.submit(entry)
            self._context.flush()
        self._resting.pop(entry, None)

    def _lost_outcomes(self, link: Sender, reason: str) -> None:
        """The link is gone, and with it the outcome of what is unsettled on it: what is
        to be sent again comes before what waits, in the order in which it was."""
        again: list[Outgoing] = []
        for entry in list(link.handles):
            if entry.done:
                continue
            entry.last_reason = reason
            if isinstance(entry, Call) and self._replies.survives:
                # If it arrived its reply will, too.
                if self._repeats_calls and entry.may_retry():
                    entry.in_doubt = True
                    if self.destination.server:
                        again.append(entry)
                    else:
                        self.in_doubt.add(entry)
                continue
            if entry.repeatable and entry.may_follow():
                again.append(entry)
            else:
                entry.failed(f"{reason}; whether it arrived is unknown")
        self._put_first(again)
        link.recall(set(again))
        link.abandon()

    def _put_first(self, entries: list[Outgoing]) -> None:
        """Before all others that wait, but for those that do already."""
        waiting = set(self.pending)
        self.pending.extendleft(
            entry for entry in reversed(entries) if entry not in waiting
        )

    def connection_lost(self, reason: str) -> None:
        """The link went with the connection, or there was none: what may be sent
        when it is back waits on, within its retries."""
        # Where an outcome is missing still, nobody else is to wait with it.
        self.alone = self.destination in self._context.pursuits
        for entry in list(self.pending):
            if entry.done:
                continue
            entry.last_reason = reason
            if entry.deadline is None:
                entry.wanting_since = None  # there is no bus to say so
            if not entry.may_follow():
                entry.failed(reason)
        self._sweep()
        # Nor is a pause over that was interrupted.
        for timer in self._resting.values():
            timer.cancel()
        self._put_first(list(self._resting))
        self._resting.clear()
        self.in_doubt.replies_stop()
        if self.link is not None:
            self._lost_outcomes(self.link, reason)
        self.went_down()

    def give_up(self, cause: Exception, calls_only: bool = False) -> None:
        """What somebody waits for is not worth waiting for."""
        for entry in [*self.pending, *self._resting, *self.in_doubt]:
            if entry.waiter is not None and (isinstance(entry, Call) or not calls_only):
                self.withdraw(entry)
                entry.failed(str(cause), cause)

    def withdraw(self, entry: Outgoing) -> None:
        """Do not send this one any more, if it is not on its way."""
        if entry in self.pending:
            self.pending.remove(entry)
        timer = self._resting.pop(entry, None)
        if timer is not None:
            timer.cancel()
        self.in_doubt.discard(entry)

    def close(self) -> None:
        """Detach the link; what waits is the caller's to see to."""
        self.in_doubt.replies_stop()
        link = self.go()
        if link is not None:
            link.close()

    def fail_all(self, reason: str) -> None:
        """Fail all that waits here, for good."""
        resting, self._resting = self._resting, {}
        for entry, timer in resting.items():
            timer.cancel()
            entry.failed(reason)
        self.in_doubt.fail_all(reason)
        link = self.go()
        if link is not None:
            for entry in link.abandon():
                if entry.posted:
                    entry.accepted()  # as far as it goes: it has left
                else:
                    entry.failed(reason)
        while self.pending:
            self.pending.popleft().failed(reason)
