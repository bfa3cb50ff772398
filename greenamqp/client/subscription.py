# SPDX-License-Identifier: Apache-2.0
"""What one listener receives, and the room that there is for links.

A connection holds so many of them.  :class:`Room` knows who makes room for whom:

* A subscription that finds none goes to a further connection, that of another client.
  Its links are counted before they are attached, and one may be refused all the same.
* A link that sends, or that replies come by, can go nowhere else.  Of the links that
  were not used for LEFT_FOR_ROOM seconds the older half is detached for it.  Where
  there are none, the latest subscription goes to the further connection: a link that
  was used a moment ago is soon wanted again.  Where there is no subscription either,
  the older half of all links that are not in use is detached.

A subscription that goes to a further connection leaves its links when it is up there,
or after HANDOVER seconds: it is always somewhere, as far as the further connection
comes up in time.  What is sent to all may come by both; it is known by its id.
"""

from __future__ import annotations

import logging
import typing

from oslo_messaging.exceptions import MessageDeliveryFailure

from greenamqp import buses
from greenamqp.client.context import Context
from greenamqp.client.receiving import Leaving, ReceivingLink, Take
from greenamqp.client.sending import SendingLink
from greenamqp.hubs import Steps, Waiter

LOG = logging.getLogger("greenamqp.client")

# Sessions of a connection that subscriptions do not fill: one for the management of the
# bus, one for replies, four for links that may be refused, two for links that send.
KEPT_SESSIONS = 8

# Links that find no room together are not each given some.  Seconds.
ROOM_HOLDS = 0.25

# What was not used for so long makes room for what is.  Seconds.
LEFT_FOR_ROOM = 10.0


class Subscription:
    """What one listener receives, over any number of links.  Hub's context or lock.

    All of them are over one connection: that of ``room``, which changes where a
    connection cannot hold them.

    :param sources: makes the termini, once the bus is known
    :param window: credit of each link: messages unacknowledged at one time
    :param on_message: takes each message; it then owes the link `settle`
    """

    def __init__(
        self,
        room: Room,
        sources: typing.Callable[[buses.Addresser], list[buses.Node]],
        window: int,
        on_message: Take,
    ) -> None:
        self.room = room
        self.window = window
        self.on_message = on_message
        self.links: list[ReceivingLink] = []
        # Those of the connection before, until these are up.
        self._leaving: list[Leaving] = []
        #: Why the bus at hand cannot do what is asked, or None.
        self.impossible: NotImplementedError | ValueError | None = None
        #: Why a link is not up, or "".
        self.refusal = ""
        #: Why one will not be without somebody's doing, where that is not waited for.
        self.forbidden: Exception | None = None
        self._sources = sources
        self._waiters: list[Waiter] = []
        self.stopped = False

    def describe(self) -> dict[str, typing.Any]:
        """See :func:`greenamqp.describe`."""
        return {
            "attached": self.attached,
            "window": self.window,
            "refusal": self.refusal,
            "links": [link.describe() for link in self.links],
        }

    @property
    def attached(self) -> bool:
        """Whether all links are up."""
        return bool(self.links) and all(link.attached for link in self.links)

    def attach(self) -> None:
        """Attach all links; the connection is up."""
        addresser = self.room.context.addresser
        assert addresser is not None
        try:
            sources = self._sources(addresser)
        except (NotImplementedError, ValueError) as exc:
            LOG.error("cannot subscribe: %s", exc)
            self.cannot(exc)
            return
        self.impossible = None
        if not self.room.has_room(len(sources)):
            self.room.pass_on(self)
            return
        context = self.room.context
        self._hold([ReceivingLink(context, self, source) for source in sources])
        for link in self.links:
            link.want()

    def _hold(self, links: list[ReceivingLink]) -> None:
        self.room.links_held += len(links) - len(self.links)
        self.links = links

    def move_early(self) -> bool:
        """See :class:`greenamqp.client.receiving.Owner`."""
        if not self.room.overfull or any(link.link is not None for link in self.links):
            return False
        return self.room.move(self)

    def move(self) -> bool:
        """See :class:`greenamqp.client.receiving.Owner`."""
        return self.room.move(self)

    def give_up(self) -> None:
        """Give up all links, to attach them over another connection."""
        links = self.links
        self._hold([])
        self._leaving += filter(None, [link.leave() for link in links])

    def link_attached(self) -> None:
        """One more link is up."""
        if self.attached:
            self.refusal = ""
            self.forbidden = None
            leaving, self._leaving = self._leaving, []
            for link in leaving:
                link.give_back()
            self.wake()

    def forbid(self, cause: Exception) -> None:
        """See :class:`greenamqp.client.receiving.Owner`."""
        if self.room.context.options.fail_fast:
            self.forbidden = cause
            self.wake()

    def cannot(self, cause: NotImplementedError | ValueError) -> None:
        """See :class:`greenamqp.client.receiving.Owner`."""
        self.impossible = cause
        self.wake()

    def wake(self) -> None:
        """Have those who wait look again."""
        for waiter in self._waiters:
            waiter.wake()

    def connection_lost(self) -> None:
        """All links went with the connection."""
        for link in self.links:
            link.lost()
        self._hold([])
        self.forbidden = None
        if self.room.context.hopeless is not None:
            self.wake()

    def attaching(self, deadline: float | None) -> Steps[bool]:
        """Wait until all links are up, `deadline`, or the end of the subscription;
        returns whether they are up.

        :raises NotImplementedError: if the bus cannot do what is asked
        :raises ValueError: if it has no way to write such a name
        :raises MessageDeliveryFailure: if waiting is of no use, where ``fail_fast``
            says so; the cause is why
        """
        hub = self.room.context.hub
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
                    if self.stopped or self.room.context.closed:
                        return False
                    cause = self.room.context.hopeless or self.forbidden
                    if cause is not None:
                        raise MessageDeliveryFailure(
                            f"cannot subscribe: {cause}"
                        ) from cause
                if not (yield waiter, deadline):
                    return False
        finally:
            with hub.lock:
                self._waiters.remove(waiter)

    def stop(self) -> None:
        """Take no more: what comes from now on is released."""
        self.stopped = True
        self.wake()
        for link in self.links:
            link.stop()
        self.room.context.flush()

    def close(self) -> None:
        """Detach all links, for good."""
        self.stopped = True
        self.wake()
        for old in self._leaving:
            old.detach()
        links = self.links
        self._hold([])
        for link in links:
            link.close(for_good=True)


class Room:
    """See the module.  The subscriptions of one client; hub's context or lock.

    :param make_further: makes another client, over a connection of its own, and
        returns its room
    :param unused: the links that send, and are not in use
    :param detach: detaches such links
    :ivar subscriptions: in the order in which they came
    :ivar links_held: how many links they have, or wait for
    """

    def __init__(
        self,
        context: Context,
        make_further: typing.Callable[[], Room],
        unused: typing.Callable[[], list[SendingLink]],
        detach: typing.Callable[[list[SendingLink]], None],
    ) -> None:
        self.context = context
        self._make_further = make_further
        self._unused = unused
        self._detach = detach
        self._further: Room | None = None
        self.subscriptions: dict[Subscription, None] = {}
        self.links_held = 0
        # How many they may have, where the bus refused one more.
        self._limit: int | None = None
        # Until when room that was made for one link serves others as well.
        self._made_until = 0.0

    def take_on(self, subscription: Subscription) -> None:
        """Receive it from now on."""
        self.subscriptions[subscription] = None
        if self.context.engine is not None:
            subscription.attach()
        else:
            self.context.connection.wanted()

    def has_room(self, links: int) -> bool:
        """Whether so many more links of subscriptions fit into this connection.

        If there are none yet they always do, as they would fit nowhere else either;
        but not where links that send, or that replies come by, need the whole
        connection.
        """
        if not self.links_held and self._limit != 0:
            return True
        return self.links_held + links <= self._capacity

    @property
    def _capacity(self) -> int:
        assert self.context.engine is not None
        room = self.context.engine.room_for_links(KEPT_SESSIONS)
        return room if self._limit is None else min(room, self._limit)

    @property
    def overfull(self) -> bool:
        """Whether subscriptions were given more links than fit: how many the peer takes
        in a session is known only after the first of them."""
        return self.links_held > self._capacity

    def pass_on(self, subscription: Subscription) -> None:
        """Have this one received over another connection."""
        del self.subscriptions[subscription]
        if self._further is None:
            LOG.info(
                "%s links of subscriptions are all that one connection to %s holds: "
                "connecting once more",
                self.links_held,
                self.context.connection.where,
            )
            self._further = self._make_further()
        subscription.room = self._further
        self._further.take_on(subscription)

    def move(self, subscription: Subscription) -> bool:
        """There was no room for one of its links after all.  Returns whether it is
        received over another connection from now on."""
        if len(subscription.links) >= self.links_held:
            return False
        self._give_up(subscription)
        return True

    def make(self) -> bool:
        """There is none for a link that sends, or that replies come by.  Returns
        whether others were given up for it."""
        now = self.context.hub.now()
        if now < self._made_until or self.context.departing:
            return True
        unused = sorted(self._unused(), key=lambda link: link.last_used)
        old = [link for link in unused if link.last_used <= now - LEFT_FOR_ROOM]
        latest = next(reversed(self.subscriptions), None)
        if latest is not None and not old:
            self._give_up(latest)
        elif unused:
            older = old or unused
            self._detach(older[: (len(older) + 1) // 2])
        else:
            return False
        self._made_until = now + ROOM_HOLDS
        return True

    def _give_up(self, subscription: Subscription) -> None:
        subscription.give_up()
        self._limit = self.links_held
        self.pass_on(subscription)

    def remove(self, subscription: Subscription) -> None:
        """It is wanted no longer."""
        self.subscriptions.pop(subscription, None)
        subscription.close()
        self.context.flush()

    def restore(self) -> None:
        """The connection is up: attach all."""
        for subscription in list(self.subscriptions):
            subscription.attach()

    def connection_lost(self) -> None:
        """All links went with the connection."""
        for subscription in self.subscriptions:
            subscription.connection_lost()

    def close(self) -> None:
        """End all subscriptions; the client was closed."""
        for subscription in self.subscriptions:
            subscription.close()
        self.subscriptions.clear()
        # All sessions end now: nothing is left to wait for.
        for remove in list(self.context.departing):
            remove()
