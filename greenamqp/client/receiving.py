# SPDX-License-Identifier: Apache-2.0
"""What listeners receive, over any number of links in turn."""

from __future__ import annotations

import collections
import logging
import typing
import uuid

from greenamqp import addressing
from greenamqp.client import notices
from greenamqp.client.state import LINK_NAME, State
from greenamqp.engine import (
    ACCEPTED,
    RELEASED,
    Delivery,
    LinkLimitError,
    LinkState,
    LocalProtocolError,
    Receiver,
    RemoteError,
    SettleMode,
    Terminus,
)
from greenamqp.hubs import Timer, Waiter
from greenamqp.management import Refused

if typing.TYPE_CHECKING:
    from greenamqp.client.client import Client

# One name for all of the room: where in it something is logged is nobody's business.
LOG = logging.getLogger("greenamqp.client")


# A link that was up, and may have gone with another one's session, is attached again
# after this pause.  Seconds.
FIRST_RETRY_PAUSE = 0.5


# Acknowledgements that may wait for more of them, in parts of a window.
HELD_SHARE = 4


# Attaches that may be refused, and so have a session each, at one time.
MAX_DOUBTFUL = 4


class Doubts:
    """Whose turn it is to attach in a session of its own.  Hub's context or lock.

    A connection holds few sessions: without turns a thousand queues that are refused
    would take all of them.
    """

    def __init__(self) -> None:
        self._inside: set[ReceivingLink] = set()
        self._waiting: collections.deque[ReceivingLink] = collections.deque()

    def enter(self, inlet: ReceivingLink) -> bool:
        """Whether this one may attach now; if not, it is told to when it may."""
        if inlet in self._inside or len(self._inside) < MAX_DOUBTFUL:
            self._inside.add(inlet)
            return True
        if inlet not in self._waiting:
            self._waiting.append(inlet)
        return False

    def leave(self, inlet: ReceivingLink) -> None:
        """Its attach was answered, or is wanted no longer."""
        if inlet in self._inside:
            self._inside.remove(inlet)
            if self._waiting:
                self._waiting.popleft().attach()
        elif inlet in self._waiting:
            self._waiting.remove(inlet)


class Subscription:
    """What one listener receives, over any number of links.  Hub's context or lock.

    All of them are over one connection: that of ``client``, which changes where a
    connection cannot hold them.

    :param sources: makes the termini, once the bus is known
    :param window: credit of each link: messages unacknowledged at one time
    :param on_message: takes each message; it then owes the link `settle`
    """

    def __init__(
        self,
        client: Client,
        sources: typing.Callable[[addressing.Addresser], list[addressing.Node]],
        window: int,
        on_message: typing.Callable[[ReceivingLink, Delivery, memoryview], None],
    ) -> None:
        self.client = client
        self.window = window
        self.on_message = on_message
        self.inlets: list[ReceivingLink] = []
        #: Why the bus at hand cannot do what is asked, or None.
        self.impossible: NotImplementedError | None = None
        #: Why a link is not up, or "".
        self.refusal = ""
        self._sources = sources
        self._waiters: list[Waiter] = []
        self.stopped = False

    @property
    def attached(self) -> bool:
        """Whether all links are up."""
        return bool(self.inlets) and all(inlet.attached for inlet in self.inlets)

    def attach(self) -> None:
        """Attach all links; the connection is up."""
        addresser = self.client.addresser
        assert addresser is not None
        try:
            sources = self._sources(addresser)
        except NotImplementedError as exc:
            self.impossible = exc
            LOG.error("cannot subscribe: %s", exc)
            self._wake()
            return
        self.impossible = None
        if not self.client.has_room(len(sources)):
            self.client.pass_on(self)
            return
        self._hold([ReceivingLink(self, source) for source in sources])
        for inlet in self.inlets:
            inlet.attach()

    def _hold(self, inlets: list[ReceivingLink]) -> None:
        self.client.links_held += len(inlets) - len(self.inlets)
        self.inlets = inlets

    def moved(self) -> bool:
        """Go to another connection, if there is no link yet that would be lost.
        Returns whether that was done."""
        if any(inlet.link is not None for inlet in self.inlets):
            return False
        return self.client.displace(self)

    def detach(self) -> None:
        """Detach all links, to attach them over another connection."""
        inlets = self.inlets
        self._hold([])
        for inlet in inlets:
            inlet.close()

    def inlet_attached(self) -> None:
        """One more link is up."""
        if self.attached:
            self.refusal = ""
            self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            waiter.wake()

    def connection_lost(self) -> None:
        """All links went with the connection."""
        for inlet in self.inlets:
            inlet.lost()
        self._hold([])

    def wait_attached(self, deadline: float) -> bool:
        """Wait until all links are up.  Not in the hub's context.

        :raises NotImplementedError: if the bus cannot do what is asked
        """
        hub = self.client.hub
        waiter = hub.waiter()
        with hub.lock:
            self._waiters.append(waiter)
        try:
            while True:
                with hub.lock:
                    if self.impossible is not None:
                        raise self.impossible
                    if self.attached:
                        return True
                    if self.client.state is State.CLOSED:
                        return False
                if not waiter.wait(deadline):
                    return False
        finally:
            with hub.lock:
                self._waiters.remove(waiter)

    def stop(self) -> None:
        """Take no more: what comes from now on is released."""
        self.stopped = True
        for inlet in self.inlets:
            inlet.stop()
        self.client.flush()

    def close(self) -> None:
        """Detach all links, for good."""
        self.stopped = True
        inlets = self.inlets
        self._hold([])
        for inlet in inlets:
            inlet.close(for_good=True)


class ReceivingLink:
    """One receiving link of a subscription.  Hub's context or lock.

    Credit goes back to the peer for what was settled, half a window at a time: one
    flow frame then serves many messages, and a slow consumer holds no more than its
    window.
    """

    __slots__ = (
        "_awaited",
        "_closed",
        "_declaring",
        "_doubtful",
        "_held",
        "_held_timer",
        "_returned",
        "_subscription",
        "_timer",
        "_was_up",
        "format",
        "link",
        "source",
    )

    def __init__(self, subscription: Subscription, source: addressing.Node) -> None:
        self._subscription = subscription
        self.source = source
        #: What its messages are in.
        self.format = subscription.client.format
        self.link: Receiver | None = None
        self._returned = 0
        self._timer: Timer | None = None
        self._closed = False
        # Whether what it needs is being declared.
        self._declaring = False
        # Whether the last attach was refused, and whether the link was up.
        self._doubtful = False
        self._was_up = False
        # Whether senders wait for what becomes of their messages here.
        self._awaited = subscription.client.bus.is_router
        # What is acknowledged, and waits for more to be settled with it.
        self._held: list[Delivery] = []
        self._held_timer: Timer | None = None

    @property
    def attached(self) -> bool:
        """Whether the link is up."""
        return self.link is not None and self.link.state is LinkState.ATTACHED

    @property
    def address(self) -> str:
        """What it receives from, for messages to people."""
        return self.source.address or "?"

    def attach(self) -> None:
        """Attach the link."""
        self._timer = None
        client = self._subscription.client
        if self._closed or client.state is not State.UP:
            return
        if self.link is not None or self._subscription.stopped:
            return
        assert client.engine is not None
        if self._must_declare():
            return
        if client.overfull and self._subscription.moved():
            return
        # Not twice may it happen to the others that they go with it.
        alone = self._doubtful and client.bus.refusal_ends_session
        if alone and not client.doubts.enter(self):
            return
        try:
            link = client.engine.create_receiver(
                self.source,
                Terminus(self.source.address),
                name=f"{LINK_NAME}/receiver/[{self.address}]/{uuid.uuid4().hex}",
                settle_mode=SettleMode.MIXED,
                properties=self.source.link_properties,
                own_session=alone,
            )
        except LocalProtocolError as exc:
            client.doubts.leave(self)
            if not isinstance(exc, LinkLimitError) or not client.displace(
                self._subscription
            ):
                self._not_subscribed(self.address, exc)
                self._retry_later()
            return
        except ValueError as exc:  # AMQP has no way to write such a name
            client.doubts.leave(self)
            self._not_subscribed(repr(self.address), exc)
            return
        self.link = link
        self._returned = 0
        link.on_attached = self._attached
        link.on_detached = self._detached
        link.on_message = self._message
        link.on_dropped = self._dropped
        assert client.watch is not None
        client.watch.attaching(link)
        client.flush()

    def _must_declare(self) -> bool:
        """Whether something must be declared first; has that done."""
        management = self._subscription.client.management
        declarations = self.source.declarations
        if self._declaring or management is None or management.has(declarations):
            return self._declaring
        self._declaring = True
        management.declare(declarations, self._declared)
        return True

    def _declared(self, refused: Refused | None) -> None:
        self._declaring = False
        if refused is None:
            self.attach()
        elif not self._subscription.stopped and not self._closed:
            self._not_subscribed(self.address, refused)
            self._retry_later()

    def _not_subscribed(self, address: str, reason: Exception) -> None:
        self._subscription.refusal = f"{address}: {reason}"
        self._subscription.client.notices.add(
            notices.NOT_SUBSCRIBED, address=address, reason=reason
        )

    def _answered(self, link: Receiver) -> None:
        """The bus said something to the attach, or it is wanted no longer."""
        client = self._subscription.client
        client.doubts.leave(self)
        if client.watch is not None:
            client.watch.answered(link)

    def _attached(self, link: Receiver) -> None:
        self._answered(link)
        if self._doubtful:
            self._doubtful = False
            link.share_session()
        self._was_up = True
        if not self._subscription.stopped:
            link.flow(self._subscription.window)
        self._subscription.inlet_attached()

    def _detached(self, link: Receiver, error: RemoteError | None) -> None:
        if link is not self.link or link.connection.ended:
            return  # the client hears of the connection, and calls lost()
        self.link = None
        self._let_go()
        client = self._subscription.client
        self._answered(link)
        delay: float = client.options.link_retry_delay
        was_up, self._was_up = self._was_up, False
        self._doubtful = not was_up
        if was_up and client.bus.refusal_ends_session:
            # Perhaps it was in the session of another link, that was refused or not
            # answered.
            delay = min(delay, FIRST_RETRY_PAUSE)
        if self.source.declarations and client.management is not None:
            client.management.forget(self.source.declarations)
        if not self._subscription.stopped:
            reason = error or "no reason given"
            self._subscription.refusal = f"{self.address}: {reason}"
            client.notices.add(
                notices.SUBSCRIPTION_CLOSED,
                address=self.address,
                reason=reason,
                delay=delay,
            )
            self._retry_later(delay)

    def _retry_later(self, delay: float | None = None) -> None:
        client = self._subscription.client
        if delay is None:
            delay = client.options.link_retry_delay
        self._timer = client.hub.call_at(client.hub.now() + delay, self.attach)

    def _message(self, link: Receiver, delivery: Delivery, data: memoryview) -> None:
        if self._subscription.stopped:
            link.settle(delivery, RELEASED)
            return
        self._subscription.on_message(self, delivery, data)

    def _dropped(self, link: Receiver, reason: str) -> None:
        self.give_back(link)

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

        Returns False if its link is gone: the bus will deliver it again.
        """
        if not link.settle(
            delivery, outcome, condition=condition, description=description
        ):
            return False
        self.give_back(link)
        client = self._subscription.client
        if self._awaited:
            client.flush_soon()
        else:
            client.flush_late()
        return True

    def acknowledge(self, link: Receiver, delivery: Delivery) -> bool:
        """Settle a message that on_message was given as accepted, together with others
        where the bus is better off so: it is in no hurry, since it may come again.

        Returns False if its link is gone: the bus will deliver it again.
        """
        client = self._subscription.client
        delay = client.bus.settle_delay
        if (
            not delay
            or not client.hub.punctual
            or link is not self.link
            or link.credit <= 0  # the bus waits for it
            or not link.usable(delivery)
        ):
            return self.settle(link, delivery, ACCEPTED)
        self._held.append(delivery)
        if len(self._held) * HELD_SHARE >= self._subscription.window:
            self._settle_held()
        elif self._held_timer is None:
            hub = client.hub
            self._held_timer = hub.call_at(hub.now() + delay, self._held_long_enough)
        return True

    def _held_long_enough(self) -> None:
        self._held_timer = None
        self._settle_held()

    def _settle_held(self) -> None:
        held = self._held
        if held and self.link is not None:
            self._held = []
            for delivery in held:
                self.settle(self.link, delivery, ACCEPTED)

    def _let_go(self) -> None:
        """Nothing is tried again; what is held comes again, as its link is gone."""
        self._held.clear()
        for timer in (self._timer, self._held_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._held_timer = None

    def give_back(self, link: Receiver) -> None:
        """One more message may come."""
        if link is not self.link or self._subscription.stopped:
            return
        self._returned += 1
        if self._returned * 2 >= self._subscription.window:
            link.flow(self._returned)
            self._returned = 0
            self._subscription.client.flush_soon()

    def stop(self) -> None:
        """Withdraw the credit; what is on its way already is released on arrival."""
        self._settle_held()
        self._let_go()
        if self.attached and self.link is not None:
            self.link.flow(-max(0, self.link.credit))

    def lost(self) -> None:
        """The link went with the connection."""
        self._declaring = False
        self._let_go()
        self.link = None

    def close(self, for_good: bool = False) -> None:
        """Detach the link; there will be no other.

        :param for_good: remove the queue as well that nobody else wants
        """
        self._closed = True
        self.stop()
        client = self._subscription.client
        link, self.link = self.link, None
        if link is not None:
            if for_good and client.state is not State.CLOSED:
                # Not before the bus has detached it, too: RabbitMQ 4.0 would end the
                # session, and with it all other subscriptions.
                client.leaving.add(self)
                link.on_closed = lambda link: self.remove()
                for_good = False
            link.close()
            self._answered(link)
        else:
            client.doubts.leave(self)
        if for_good:
            self.remove()

    def remove(self) -> None:
        """Remove the queue that nobody else wants."""
        client = self._subscription.client
        client.leaving.discard(self)
        management = client.management
        if self.source.remove is not None and management is not None:
            management.delete_queue(self.source.remove)
