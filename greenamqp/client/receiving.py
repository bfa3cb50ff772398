# SPDX-License-Identifier: Apache-2.0
"""One link that a subscription receives by, over any number of attaches in turn."""

from __future__ import annotations

import logging
import typing

from greenamqp import chance
from greenamqp.buses import Again, Node, Precedence, Refused
from greenamqp.client import notices
from greenamqp.client.context import LINK_NAME, Context
from greenamqp.client.wanted import FIRST_PAUSE, Phase, WantedLink
from greenamqp.engine import (
    ACCEPTED,
    RELEASED,
    Delivery,
    LocalProtocolError,
    Receiver,
    RemoteError,
    SessionStalled,
    SettleMode,
    Terminus,
)
from greenamqp.hubs import Countdown

LOG = logging.getLogger("greenamqp.client")

# Acknowledgements that may wait for more of them, in parts of a window.
HELD_SHARE = 4

# Who receives is not told when somebody removes the exchange that leads to its queue:
# where nobody else would mend that, it has the binding declared again this often at the
# least.  Seconds.
RENEW_EVERY = 300.0

# Credit for less than half a window waits no longer where the peer has none.  Seconds.
DRY_DELAY = 0.05

# For so long a link is kept until another one has taken its place: that may connect
# with TLS, a login and a packet lost, which is sent again after a second.  Who needs
# the room waits meanwhile, and has most of its time-out left.  Seconds.
HANDOVER = 2.0

# What is on its way to a link that another one takes the place of has come after so
# long.  Seconds.
ON_ITS_WAY = 0.1

#: Takes a message: from which source, by which link, and what.
Take = typing.Callable[["ReceivingLink", Receiver, Delivery, memoryview], None]


class Owner(typing.Protocol):
    """The subscription that a link is one of."""

    window: int
    stopped: bool
    #: Why a link is not up, or "".
    refusal: str
    on_message: Take

    def link_attached(self) -> None:
        """One more link is up."""

    def move_early(self) -> bool:
        """The connection has more links than fit: go to another one, if there is no
        link yet that would be lost.  Returns whether that was done."""

    def move(self) -> bool:
        """There is no room for the link.  Returns whether the subscription goes to
        another connection."""

    def forbid(self, cause: Exception) -> None:
        """Asking for a link again is of no use, before somebody changes something."""

    def cannot(self, cause: ValueError) -> None:
        """Nobody can ask for the link: there is no way to write its address."""


class ReceivingLink(WantedLink[Receiver]):
    """See the module.  Hub's context or lock.

    Credit goes back to the peer for what was settled, half a window at a time: one
    flow frame then serves many messages, and a slow consumer holds no more than its
    window.  Less goes back after DRY_DELAY if the peer has none: workers that are busy
    for long would otherwise keep a part of the window from those who send.

    :ivar awaited: whether senders wait for what becomes of their messages here, since
        nothing is stored between them and us
    :ivar format: what its messages are in
    """

    __slots__ = (
        "_dry_ends",
        "_held",
        "_held_ends",
        "_owner",
        "_next_renewal",
        "_precedence_ends",
        "_returned",
        "awaited",
        "format",
    )

    def __init__(self, context: Context, owner: Owner, source: Node) -> None:
        super().__init__(context)
        self._owner = owner
        self.node = source
        self.format = context.format
        self._returned = 0
        self.awaited = context.bus.is_router
        # Runs while the link at hand goes before others for now.
        self._precedence_ends = Countdown(context.hub)
        # Runs while something is to be declared again later.
        self._next_renewal = Countdown(context.hub)
        # What is acknowledged, and waits for more to be settled with it.
        self._held: list[Delivery] = []
        self._held_ends = Countdown(context.hub)
        # Runs while the peer has no credit, and less than half a window is to go back.
        self._dry_ends = Countdown(context.hub)

    def describe(self) -> dict[str, typing.Any]:
        """See :func:`greenamqp.describe`."""
        return {
            "address": self.address,
            "phase": self.phase.value,
            "credit": self.link.credit if self.link is not None else 0,
        }

    @property
    def attached(self) -> bool:
        """Whether the link is up."""
        return self.phase is Phase.UP

    @property
    def address(self) -> str:
        """What it receives from, for messages to people."""
        return self.node.address or "?"

    # -- the life of its link

    def _prepare(self) -> bool:
        return not self._owner.stopped

    def _create(self) -> Receiver | None:
        context = self._context
        engine = context.engine
        assert engine is not None
        if self._owner.move_early():
            return None
        # Not twice may it happen to the others that they go with it.
        alone = self.alone and context.bus.refusal_ends_session
        if alone and not context.turns.enter(self):
            return None
        precedence = context.precedence(self.node)
        link = engine.create_receiver(
            self.node,
            Terminus(self.node.address),
            name=f"{LINK_NAME}/receiver/[{self.address}]/{chance.unique()}",
            settle_mode=SettleMode.MIXED,
            properties=(self.node.link_properties or {}) | precedence,
            own_session=alone,
        )
        if precedence and self.node.precedence is Precedence.BRIEFLY:
            self._precedence_ends.call_at(context.outdated_at, self._end_precedence)
        self._returned = 0
        link.on_message = self._message
        link.on_aborted = self.give_back
        return link

    def _no_room(self, reason: str) -> bool:
        return self._owner.move()

    def _not_created(self, error: LocalProtocolError | ValueError) -> None:
        self._context.turns.leave(self)
        if isinstance(error, LocalProtocolError):
            self._not_subscribed(self.address, error)
            self.rest()
        else:
            self._not_subscribed(repr(self.address), error)
            self._owner.cannot(error)

    def _not_declared(self, refused: Refused) -> None:
        if not self._owner.stopped:
            self._not_subscribed(self.address, refused)
            if refused.again is Again.NEVER:
                self._owner.forbid(refused)
            self.rest(self.undeclared_pause)

    def _not_subscribed(self, address: str, reason: Exception) -> None:
        self._owner.refusal = f"{address}: {reason}"
        self._context.notices.add(
            notices.NOT_SUBSCRIBED, address=address, reason=reason
        )

    def _attached(self, link: Receiver) -> None:
        self._context.turns.leave(self)
        self.rejoin(link)
        if not self._owner.stopped:
            link.flow(self._owner.window)
            LOG.debug(
                "subscribed to %s with a credit of %s: link %s",
                self.address,
                self._owner.window,
                link.name,
            )
        self._renew_later()
        self._owner.link_attached()

    def _redeclared(self) -> None:
        self._owner.link_attached()

    def _rested(self) -> None:
        if self.link is None:
            self.want()
        else:
            self.declare()

    def _renew_later(self) -> None:
        wanted = self.node.renewals and not self._owner.stopped
        if wanted and not self._next_renewal.runs:
            # Not all servers in the same instant.
            pause = RENEW_EVERY * (0.5 + 0.5 * chance.share())
            self._next_renewal.call_in(pause, self._renew)

    def _renew(self) -> None:
        management = self._context.management
        if self.phase is Phase.UP and management is not None:
            management.renew(self.node.renewals, self._renewed)
        self._renew_later()

    def _renewed(self, refused: Refused | None) -> None:
        if refused is None or refused.again is not Again.AT_ONCE:
            return  # what was refused for another reason is seen to next time
        if self.phase is not Phase.UP or self._owner.stopped:
            return
        LOG.warning("somebody removed what leads to %s: %s", self.address, refused)
        self.forget_declarations()
        self.declare()

    def _detached(
        self, link: Receiver, error: RemoteError | None, was_up: bool
    ) -> None:
        self._forget_link()
        context = self._context
        context.turns.leave(self)
        delay: float = context.options.link_retry_delay
        # Where a refusal ends the session, it may have been meant for another link.
        meant = self.alone or not context.bus.refusal_ends_session
        self.alone = not was_up
        stalled = isinstance(error, SessionStalled)
        if was_up or stalled or self._assumed:
            # What was not answered was not refused: at once, in another session.  And
            # what was taken to be there, and is not, is declared after all.
            delay = min(delay, FIRST_PAUSE)
        if not stalled:
            self.forget_declarations()
        if not self._owner.stopped:
            reason = error or "no reason given"
            self._owner.refusal = f"{self.address}: {reason}"
            context.notices.add(
                notices.SUBSCRIPTION_CLOSED,
                address=self.address,
                reason=reason,
                delay=delay,
            )
            if meant and Again.after(error) is Again.NEVER:
                self._owner.forbid(Refused.by_link(self.address, error))
            self.rest(delay)

    def _end_precedence(self) -> None:
        """Others that receive are to have their share again.  What is not acknowledged
        comes again, to any of them."""
        if self.link is not None and self.phase is not Phase.UP:
            self._precedence_ends.call_in(FIRST_PAUSE, self._end_precedence)
            return
        self._settle_held()
        self._forget_link()
        self.reattach()

    # -- messages

    def _message(self, link: Receiver, delivery: Delivery, data: memoryview) -> None:
        if self._owner.stopped:
            link.settle(delivery, RELEASED)
            return
        self._owner.on_message(self, link, delivery, data)
        if self._returned and link.credit <= 0:
            self._dry(link)

    def accept_on_arrival(self, link: Receiver, delivery: Delivery) -> None:
        """Settle a message that on_message is given as accepted.  Its credit is due
        when it is done with: settle it once more then, as None."""
        link.settle(delivery, ACCEPTED)
        self._context.flush_soon()

    def settle(
        self,
        link: Receiver,
        delivery: Delivery,
        outcome: int,
        condition: str = "",
        description: str = "",
    ) -> bool:
        """Settle a message that on_message was given, and return its credit; it is
        written before long.

        :param delivery: None: it was accepted on arrival
        :return: False if its link is gone: the bus will deliver it again
        """
        if delivery is None:
            self.give_back(link)
            return True
        if not link.settle(
            delivery, outcome, condition=condition, description=description
        ):
            return False
        self.give_back(link)
        context = self._context
        if self.awaited:
            context.flush_soon()
        else:
            context.flush_late()
        return True

    def acknowledge(self, link: Receiver, delivery: Delivery) -> bool:
        """Settle a message that on_message was given as accepted, together with others
        where the bus is better off so: it is in no hurry, since it may come again.

        Returns False if its link is gone: the bus will deliver it again.
        """
        context = self._context
        delay = context.bus.settle_delay
        if (
            not delay
            or delivery is None
            or not context.hub.punctual
            or link is not self.link
            or link.credit <= 0  # the bus waits for it
            or not link.usable
        ):
            return self.settle(link, delivery, ACCEPTED)
        self._held.append(delivery)
        if len(self._held) * HELD_SHARE >= self._owner.window:
            self._settle_held()
        elif not self._held_ends.runs:
            self._held_ends.call_in(delay, self._settle_held)
        return True

    def _settle_held(self) -> None:
        held = self._held
        if held and self.link is not None:
            self._held = []
            for delivery in held:
                self.settle(self.link, delivery, ACCEPTED)

    def _forget_link(self) -> None:
        """The link is gone: what is held comes again, and nothing is due any more."""
        self._held.clear()
        self._held_ends.cancel()
        self._dry_ends.cancel()
        self._precedence_ends.cancel()
        self._next_renewal.cancel()

    def give_back(self, link: Receiver) -> None:
        """One more message may come."""
        if link is not self.link or self._owner.stopped:
            return
        self._returned += 1
        if self._returned * 2 >= self._owner.window:
            self._return(link)
        elif link.credit <= 0:
            self._dry(link)

    def _return(self, link: Receiver) -> None:
        link.flow(self._returned)
        self._returned = 0
        self._context.flush_soon()

    def _dry(self, link: Receiver) -> None:
        """The peer has no credit."""
        if link is self.link and not self._owner.stopped and not self._dry_ends.runs:
            self._dry_ends.call_in(DRY_DELAY, self._dry_for_a_while)

    def _dry_for_a_while(self) -> None:
        link = self.link
        if link is not None and self._returned and link.credit <= 0:
            self._return(link)

    # -- the end

    def stop(self) -> None:
        """Withdraw the credit; what is on its way already is released on arrival."""
        self._settle_held()
        self._forget_link()
        if self.phase is Phase.RESTING:
            self._calm(Phase.WANTED)
        if self.attached and self.link is not None:
            self.link.flow(-max(0, self.link.credit))

    def lost(self) -> None:
        """The link went with the connection."""
        self._forget_link()
        self.went_down()

    def leave(self) -> Leaving | None:
        """There will be no other, as another one takes its place.  Returns what
        receives meanwhile, by the link that there is; None if none is up."""
        self._settle_held()
        self._forget_link()
        was_up = self._was_up
        link = self.go()
        self._context.turns.leave(self)
        if link is not None and was_up:
            return Leaving(self._context, link)
        if link is not None:
            link.close()
        return None

    def close(self, for_good: bool = False) -> None:
        """Detach the link; there will be no other.

        :param for_good: remove the queue as well that nobody else wants
        """
        self.stop()
        context = self._context
        link = self.go()
        if link is not None:
            if for_good and not context.closed:
                # Not before the bus has detached it, too: RabbitMQ 4.0 would end the
                # session, and with it all other subscriptions.
                context.departing[self.remove] = None
                link.on_closed = lambda link: self.remove()
                for_good = False
            link.close()
        context.turns.leave(self)
        if for_good:
            self.remove()

    def remove(self) -> None:
        """Remove the queue that nobody else wants."""
        self._context.departing.pop(self.remove, None)
        management = self._context.management
        if self.node.remove is not None and management is not None:
            management.delete_queue(self.node.remove)
            # What it is bound to may go with it.
            self.forget_declarations()


class Leaving:
    """A link until another one has taken its place, for HANDOVER seconds at the most.

    It receives by the credit that it has, and is given no more.  Hub's context or lock.
    """

    def __init__(self, context: Context, link: Receiver) -> None:
        self._context = context
        self._link = link
        self._ends = Countdown(context.hub)
        self._ends.call_in(HANDOVER, self.give_back)
        context.departing[self.detach] = None
        link.on_closed = self._closed

    def give_back(self) -> None:
        """Receive no more.  What is on its way is given back before the link goes, or a
        router would tell who sent it that its consumer was lost."""
        link = self._link
        if link.connection is not self._context.engine or link.credit <= 0:
            self.detach()
            return
        link.on_message = None
        link.flow(-link.credit)
        self._ends.call_in(ON_ITS_WAY, self.detach)
        self._context.flush_soon()

    def detach(self) -> None:
        """Detach it now."""
        self._ends.cancel()
        if self._link.connection is self._context.engine:
            self._link.close()
            self._context.flush_soon()

    def _closed(self, link: Receiver) -> None:
        """The bus has detached it, too."""
        self._ends.cancel()
        self._context.departing.pop(self.detach, None)
