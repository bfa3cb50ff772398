# SPDX-License-Identifier: Apache-2.0
"""What the driver asks of the message bus, over any number of connections in turn."""

from __future__ import annotations

import itertools
import logging
import typing

from greenamqp import buses, chance, interrupts
from greenamqp.buses import Format
from greenamqp.client import absence, notices, observer
from greenamqp.client.context import Context
from greenamqp.client.copies import Known
from greenamqp.client.outgoing import Call, Compose, Destination, Outgoing, Reply
from greenamqp.client.receiving import Take
from greenamqp.client.replies import Replies
from greenamqp.client.sending import SendingLink
from greenamqp.client.subscription import Room, Subscription
from greenamqp.client.turns import Turns
from greenamqp.client.watchdog import Watchdog
from greenamqp.connection.failover import Host
from greenamqp.connection.life import BusConnection
from greenamqp.connection.state import State
from greenamqp.engine import Connection
from greenamqp.hubs import Countdown, Hub, Steps, Waiter, logs
from greenamqp.policy import Policies

LOG = logging.getLogger("greenamqp.client")

# How often replies that nobody waits for are looked through for old ones.  Seconds.
SWEEP_INTERVAL = 1.0

# A message that waits for ever is told of in the log when it has waited for so long.
# Seconds.
LONG_WAIT = 30.0


class Client:
    """See the package.

    A connection that cannot hold all subscriptions has others beside it: each is
    another client's, which the one before it made, and all that it does is to receive.
    What is sent and called goes over the first.

    :param hub: does the waiting
    :param hosts: where to connect to
    :param options: the group of options
    :param default_exchange: for targets that name none
    :param virtual_host: of the transport URL, or None
    :param policies: what is asked of queues
    """

    def __init__(
        self,
        hub: Hub,
        hosts: typing.Sequence[Host],
        options: typing.Any,
        default_exchange: str | None = None,
        virtual_host: str | None = None,
        policies: Policies | None = None,
    ) -> None:
        self.hub = hub
        self.options = options
        self.connection = BusConnection(
            hub, hosts, options, virtual_host, buses.has_vhost_prefix, self
        )
        self.context = Context(hub, options, self.connection)
        self.notices = self.context.notices
        self.room = Room(self.context, self._make_further, self._unused, self._detach)
        self.replies = Replies(
            self.context, self.room.make, self._send_pending, self._no_replies
        )
        #: Requests that were handed to servers and are not replied to yet.
        self.requests_at_work = 0
        #: Told of all messages that are to be sent, or None.
        self.on_send: observer.Sending | None = None
        #: Tells how long they take: see :func:`greenamqp.describe`; None: nobody looks.
        self.latency: typing.Callable[[], dict[str, float | None]] | None = None
        #: Told of all messages that listeners hand out.
        self.on_hand_out: list[observer.HandedOut] = []
        #: The calls that were taken, by any listener: one alone is to execute each.
        self.calls_had = Known()
        #: Called when it is closed, in the hub's context or under its lock.
        self.at_close: list[typing.Callable[[], None]] = []
        self._hosts = hosts
        self._default_exchange = default_exchange
        self._virtual_host = virtual_host
        self._policies = policies
        # Whether all links know that there is no connection.
        self._down = True
        # Whether an operator was told what such a bus wants.
        self._advised = False
        self._links: dict[Destination, SendingLink] = {}
        # Receives what this connection cannot hold; made when it is first needed.
        self._further: Client | None = None
        self._prefix = chance.unique()
        self._count = itertools.count(1)
        self._unattended: list[Outgoing] = []
        self._next_idle = Countdown(hub)
        self._next_sweep = Countdown(hub)

    # -- for the driver

    @property
    def format(self) -> Format:
        """What messages are in."""
        return self.context.format

    def unique_id(self) -> str:
        """A name for a message that no other one has.  From any thread."""
        return f"{self._prefix}.{next(self._count)}"

    def sending(
        self,
        what: str,
        destination: Destination,
        compose: Compose,
        *,
        deadline: float | None,
        retries: int | None = None,
        settled: bool = False,
        repeatable: bool = False,
        mandatory: bool = False,
        impatient: bool = False,
    ) -> Steps[None]:
        """Send and wait, until `deadline`, for the next hop to accept.

        :param what: how errors name it
        :param compose: makes the message; what it raises is raised here
        :param deadline: None: there is none while the bus does not say that nobody is
            there to take it (see `absence`), but for what a log handler sends, which
            the rest of the program may wait for: that waits for LONG_WAIT
        :param retries: further attempts allowed; None or negative: any number
        :param settled: ask for no outcome
        :param repeatable: whether it may be sent again when its outcome is unknown
        :param mandatory: fail at once when nobody is there to take it
        :param impatient: fail soon when nobody is there: see `absence`
        :raises TimeoutError: at the deadline, saying what was waited for
        :raises MessageDeliveryFailure: refused, rejected, or retries exhausted
        :raises MessageUndeliverable: nobody is there, and it was mandatory
        """
        waiter = self.hub.waiter()
        entry = Outgoing(
            what,
            destination,
            compose,
            self.context.format,
            deadline=deadline,
            retries=retries,
            settled=settled,
            repeatable=repeatable,
            mandatory=mandatory,
            waiter=waiter,
        )
        entry.impatient = impatient
        yield from self._seeing_through(entry, waiter, submitted=False)

    def ending(
        self, entry: Outgoing, *, deadline: float | None, retries: int | None
    ) -> Steps[None]:
        """Wait, until `deadline`, for the outcome of what was offered; all as for
        `sending`.  Nobody else is told of it any more."""
        waiter = self.hub.waiter()
        with self.hub.lock:
            entry.taken_over(waiter, deadline, retries)
        yield from self._seeing_through(entry, waiter, submitted=True)

    def _seeing_through(
        self, entry: Outgoing, waiter: Waiter, *, submitted: bool
    ) -> Steps[None]:
        """Wait for its outcome, as its deadline says; raises what `sending` does."""
        deadline = entry.deadline
        try:
            if not submitted:
                self._submit(entry)
            if deadline is None:
                yield from self._enduring(entry, waiter)
            while not entry.done:
                if not (yield waiter, deadline):
                    break
        finally:
            in_time = self._leave(entry)
        if not in_time:
            raise TimeoutError(self._late(entry))
        if entry.error is not None:
            raise entry.error

    def _enduring(self, entry: Outgoing, waiter: Waiter) -> Steps[None]:
        """Wait for what has no deadline, until that is to be told of.

        :raises TimeoutError: it waits no longer
        """
        until = self.hub.now() + LONG_WAIT
        while not entry.done:
            if (yield waiter, until) or entry.done:
                continue
            if logs.in_handler():
                raise TimeoutError(self._late(entry))
            # Who sends log records would have this one wait as well, and so on.
            with logs.muted():
                LOG.warning(
                    "%s to %s has waited for %g s, and waits on: %s",
                    entry.what,
                    entry.destination,
                    LONG_WAIT,
                    self._waits_for(entry),
                )
            return

    def calling(
        self,
        destination: Destination,
        compose: Compose,
        *,
        deadline: float,
        retries: int | None = None,
        settled: bool = False,
        monitor: float | None = None,
        mandatory: bool = False,
    ) -> Steps[Reply]:
        """Send a request and wait, until `deadline`, for its reply.

        :param monitor: seconds without a heartbeat after which to give up
        :raises TimeoutError: at the deadline, saying what was waited for
        :raises MessageDeliveryFailure: as for `sending`, and when the reply cannot come
        """
        waiter = self.hub.waiter()
        call = Call(
            "RPC call",
            destination,
            compose,
            self.context.format,
            deadline=deadline,
            retries=retries,
            settled=settled,
            mandatory=mandatory,
            waiter=waiter,
            monitor=monitor,
        )
        if monitor is not None:
            # From now on, not from the sending: it may be long until that.
            call.monitor_deadline = self.hub.now() + monitor
        silence = ""
        try:
            self._submit(call)
            while not call.done:
                until = deadline
                if call.monitor_deadline is not None:
                    until = min(until, call.monitor_deadline)
                if not (yield waiter, until) and not call.done:
                    now = self.hub.now()
                    if now >= deadline:
                        break
                    # Heartbeats move the monitor's deadline without a wake.
                    beat = call.monitor_deadline
                    if beat is not None and now >= beat:
                        silence = f"no heartbeat from the server for {monitor} s"
                        break
        finally:
            in_time = self._leave(call)
        if not in_time:
            raise TimeoutError(self._late(call, silence))
        if call.error is not None:
            raise call.error
        return call.reply

    def post(
        self,
        what: str,
        destination: Destination,
        compose: Compose,
        *,
        deadline: float,
        retries: int | None = None,
        settled: bool = False,
        volatile: bool = False,
        urgent: bool = True,
    ) -> None:
        """Send without waiting: for replies, which may be repeated.  Does not block.
        A failure is logged.

        :param retries: further attempts allowed where the bus gives it back; None or
            negative: any number
        :param settled: ask for no outcome; `volatile`: where the destination goes with
            its receiver's connection
        :param urgent: write it now; else with whatever else is written before long
        """
        entry = Outgoing(
            what,
            destination,
            compose,
            self.context.format,
            deadline=deadline,
            retries=retries,
            settled=settled,
            repeatable=True,
        )
        entry.posted = True
        entry.volatile = volatile
        entry.on_end = self._post_ended
        if self.hub.engaged():
            self.hub.call_inside(lambda: self._post(entry, urgent))
        else:
            self._post(entry, urgent)

    def _post(self, entry: Outgoing, urgent: bool) -> None:
        self._submit(entry, urgent)
        if not entry.done:
            with self.hub.lock:
                self._unattended.append(entry)
                if not self._next_sweep.runs:
                    self._next_sweep.call_in(SWEEP_INTERVAL, self._sweep_unattended)

    def _post_ended(self, error: Exception | None) -> None:
        if error is not None:
            self.notices.add(notices.NOT_SENT, reason=error)

    def offer(
        self,
        destination: Destination,
        compose: Compose,
        *,
        settled: bool = False,
        waiter: Waiter | None = None,
        on_end: typing.Callable[[Exception | None], None] | None = None,
    ) -> Outgoing:
        """Send a notification, for as long as it takes.  Does not block.

        :param waiter: woken at the end
        :param on_end: called at the end instead, in the hub's context or under its
            lock, with what it failed by or None; may not send
        """
        entry = Outgoing(
            "notification",
            destination,
            compose,
            self.context.format,
            settled=settled,
            repeatable=True,
            waiter=waiter,
        )
        entry.on_end = on_end
        self._submit(entry)
        return entry

    def withdraw(self, entry: Outgoing) -> None:
        """What was offered need not be sent any more, as far as it was not."""
        self._leave(entry)

    @property
    def unavailable(self) -> str:
        """Why there is no connection, where one was tried for in vain or lost; else
        "".  From any thread."""
        if self.connection.state is State.UP:
            return ""
        return self.connection.last_failure

    def subscribe(
        self,
        sources: typing.Callable[[buses.Addresser], list[buses.Node]],
        window: int,
        on_message: Take,
    ) -> Subscription:
        """Receive from `sources` from now on, whatever becomes of the connection.

        Does not wait; see Subscription.attaching.
        """
        with self.hub.lock:
            subscription = Subscription(self.room, sources, window, on_message)
            self.room.take_on(subscription)
            return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Detach a subscription's links, over whichever connection they are."""
        with self.hub.lock:
            subscription.room.remove(subscription)

    def closing(self) -> Steps[None]:
        """Close the connection in order and let go of everything, within CLOSE_TIMEOUT.
        What waits fails.  Idempotent."""
        waiter = self.hub.waiter()
        context = self.context
        with self.hub.lock:
            if context.closed:
                return
            context.closed = True
            further, self._further = self._further, None
            self.connection.stop()
            self._stop_timers()
            reason = "the transport was cleaned up"
            for link in self._links.values():
                link.fail_all(reason)
            self._links.clear()
            self.replies.fail_all(reason)
            self.replies.close()
            self.room.close()
            self._unattended.clear()
            context.down()
            self.connection.begin_close(waiter)
        try:
            if further is not None:
                yield from further.closing()
            yield from self.connection.closing()
        finally:
            # Also when a time-out or kill of the application throws us out.
            with self.hub.lock:
                for leave in self.at_close:
                    leave()
                self.connection.put_away()
                self.notices.close()
            self.connection.release()
            logs.drain()

    # -- inside: the hub's context or its lock

    def _make_further(self) -> Room:
        self._further = Client(
            self.hub,
            self._hosts,
            self.options,
            self._default_exchange,
            self._virtual_host,
            self._policies,
        )
        return self._further.room

    def _send_pending(self) -> None:
        """The reply address is known: calls may leave."""
        for link in list(self._links.values()):
            link.in_doubt.replies_come()
            if link.pending:
                link.send_pending()

    def _no_replies(self, cause: Exception) -> None:
        """No reply can come before somebody changes something."""
        if self.options.fail_fast:
            for link in self._links.values():
                link.give_up(cause, calls_only=True)

    def _submit(self, entry: Outgoing, urgent: bool = True) -> None:
        with self.hub.lock:
            if self.on_send is not None:
                topic = entry.destination.topic
                entry.observation = self.on_send(entry.what, topic)
            context = self.context
            if context.closed:
                entry.failed("the transport was cleaned up")
                return
            self.connection.catch_up()
            hopeless = context.hopeless if context.engine is None else None
            if hopeless is not None and entry.waiter is not None:
                entry.failed(str(hopeless), hopeless)
                return
            if isinstance(entry, Call) and self.replies.address is None:
                # First of all: it may have links that are not in use detached.
                self.replies.want()
            link = self._links.get(entry.destination)
            if link is None:
                link = SendingLink(
                    context, self.replies, self.room.make, entry.destination
                )
                self._links[entry.destination] = link
            try:
                link.submit(entry)
                if context.engine is None:
                    self.connection.wanted()
                elif urgent:
                    context.flush()
                else:
                    context.flush_soon()
            except BaseException as exc:
                if interrupts.struck(exc):
                    self.hub.cut_off(exc)
                raise

    def _leave(self, entry: Outgoing) -> bool:
        """Its sender waits no longer.  Returns whether it was done; if not, it is
        taken back as far as that goes, and whatever becomes of it goes unheard."""
        if entry.done and entry.error is None:
            return True
        with self.hub.lock:
            if isinstance(entry, Call):
                self.replies.forget(entry)
            if entry.done:
                return True
            entry.given_up()
            link = self._links.get(entry.destination)
            if link is not None:
                link.withdraw(entry)
                if not entry.last_reason:
                    entry.last_reason = link.refusal
            return False

    def _late(self, entry: Outgoing, silence: str = "") -> str:
        """What was waited for in vain.

        :param silence: a server that was silent for too long, if that is the reason
        """
        reason = self._waits_for(entry, silence)
        return f"{entry.what} to {entry.destination} timed out: {reason}"

    def _waits_for(self, entry: Outgoing, silence: str = "") -> str:
        reason = entry.last_reason
        if not reason and self.context.engine is None:
            reason = self.connection.why_down()
        if not reason and isinstance(entry, Call) and self.replies.address is None:
            reason = self.replies.refusal
        if not reason:
            if isinstance(entry, Call) and entry.attempts:
                reason = silence or "no reply"
            elif entry.attempts and entry.message.expiry_time:
                reason = (
                    "no server took it in time: they are busy, or gone; those of this "
                    "driver will not execute it any more"
                )
            elif entry.attempts:
                reason = "no outcome from the message bus: it may still arrive"
            else:
                reason = absence.NO_CREDIT
        return reason

    def _sweep_unattended(self) -> None:
        now = self.hub.now()
        left = []
        for entry in self._unattended:
            if entry.done:
                continue
            if entry.deadline is not None and entry.deadline <= now:
                link = self._links.get(entry.destination)
                if link is not None:
                    link.withdraw(entry)
                entry.failed(self._late(entry))
            else:
                left.append(entry)
        self._unattended = left
        if left:
            self._next_sweep.call_at(now + SWEEP_INTERVAL, self._sweep_unattended)

    def describe(self) -> list[dict[str, typing.Any]]:
        """What is going on, as plain data: see :func:`greenamqp.describe`.  One entry
        for each connection.  From any thread."""
        with self.hub.lock:
            mine = self.connection.describe()
            mine |= {
                "bus": str(self.context.bus) if self.context.bus.product else "",
                "unanswered_calls": len(self.replies.waiting),
                "requests_at_work": self.requests_at_work,
                "reply_address": self.replies.address,
                "latency": self.latency() if self.latency is not None else None,
                "senders": [link.describe() for link in self._links.values()],
                "subscriptions": [each.describe() for each in self.room.subscriptions],
            }
        further = self._further
        return [mine, *(further.describe() if further is not None else [])]

    @property
    def connected(self) -> bool:
        """Whether all of its connections are up.  From any thread."""
        if self.connection.state is not State.UP or self.hub.ended:
            return False
        return self._further is None or self._further.connected

    # -- the connection's owner

    def connection_up(self, engine: Connection) -> None:
        """The peer has opened the connection: choose addresses, restore all links."""
        context = self.context
        if not self._down:
            # A signal handler interrupted the telling of the loss.
            self.connection_lost("the connection was lost")
        self._down = False
        context.bus = buses.of_peer(engine)
        if self.connection.after_silence:
            context.left_silent_host()
        addresser = buses.choose(
            self.options,
            self._default_exchange,
            self._virtual_host if self.options.pseudo_vhost else None,
            context.bus,
            self._policies,
        )
        advice = addresser.advice
        if advice is not None and not self._advised:
            self._advised = True
            LOG.warning("%s (%s): %s", self.connection.where, context.bus, advice)
        context.engine = engine
        context.addresser = addresser
        context.format = addresser.format
        context.management = addresser.dialect(engine, context.flush_soon)
        context.turns = Turns()
        context.watchdog = Watchdog(
            self.hub,
            self.connection.where,
            context.bus.patience,
            context.pursuits,
            engine,
            context.management,
            self._links.values,
            context.flush,
            self.connection.leave,
            context.left_at,
        )
        if self.replies.waiting or any(
            isinstance(entry, Call)
            for link in self._links.values()
            for entry in link.pending
        ):
            self.replies.want()
        self.room.restore()
        for link in list(self._links.values()):
            if link.pending:
                link.want()
        self._schedule_idle()

    def connection_lost(self, reason: str) -> None:
        """The connection is gone, or could not be made."""
        # Links that went just before it need no line of their own.
        self.notices.drop(notices.LINK_CLOSED, notices.SUBSCRIPTION_CLOSED)
        self.context.down()
        self._stop_timers()
        self.room.connection_lost()
        hopeless = self.context.hopeless
        for link in list(self._links.values()):
            link.connection_lost(reason)
            if hopeless is not None:
                link.give_up(hopeless)
            if not link.in_use:
                del self._links[link.destination]
        # After those: what they keep for another attempt is not waited for.
        self.replies.connection_lost(reason)
        self._down = True

    def _stop_timers(self) -> None:
        self._next_idle.cancel()
        self._next_sweep.cancel()
        if self._unattended and not self.context.closed:
            self._next_sweep.call_in(SWEEP_INTERVAL, self._sweep_unattended)

    # -- links that are not in use

    def _schedule_idle(self) -> None:
        self._next_idle.call_in(
            self.options.default_sender_link_timeout / 2, self._detach_idle
        )

    def _detach_idle(self) -> None:
        """Detach sending links that were not used for a while."""
        since = self.hub.now() - self.options.default_sender_link_timeout
        self._detach([link for link in self._unused() if link.last_used <= since])
        self._schedule_idle()

    def _unused(self) -> list[SendingLink]:
        return [link for link in self._links.values() if not link.in_use]

    def _detach(self, links: list[SendingLink]) -> None:
        for link in links:
            link.close()
            del self._links[link.destination]
        self.context.flush()
