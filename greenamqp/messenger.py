# SPDX-License-Identifier: Apache-2.0
"""One connection to the message bus, as the driver sees it.

Send, call, subscribe: the messenger keeps what these need over any number of
connections in turn.  It connects when first used, restores its links after the
connection was lost, and treats what was under way as the delivery promises say:

* what the peer cannot have seen is sent when the connection is back;
* what it may have accepted is sent again only if twice is allowed (notifications);
  an RPC request whose fate is unknown fails, and a call whose reply address went with
  the connection fails at once instead of by its time-out;
* RELEASED and MODIFIED are tried again, within the retries and the deadline;
  REJECTED fails.

Life of the connection::

    state        event                              next
    ---------    -------------------------------    ----------
    IDLE         somebody wants something           CONNECTING
    CONNECTING   the stream is connected            OPENING
    CONNECTING   it cannot be                       WAITING
    OPENING      the peer's Open frame              UP
    OPENING      refused, broken or too late        WAITING
    UP           lost or closed by the peer         WAITING
    WAITING      the pause is over                  CONNECTING
    any          close()                            CLOSED

All methods may be called from any thread or green thread that the hub knows; what
happens inside the hub's context or under its lock is marked as such.
"""

from __future__ import annotations

import collections
import enum
import logging
import os
import platform
import sys
import typing
import uuid

from oslo_messaging import Target, exceptions

from greenamqp import addressing, connect, diagnosis, notices
from greenamqp.engine import (
    MODIFIED,
    REJECTED,
    RELEASED,
    Connection,
    ConnectionFailed,
    DecodeError,
    Delivery,
    LinkState,
    LocalProtocolError,
    Message,
    Received,
    Receiver,
    RemoteError,
    Sender,
    SettleMode,
    Terminus,
)
from greenamqp.engine import Link as EngineLink
from greenamqp.failover import Backoff, Host, Hosts
from greenamqp.guard import GUARD
from greenamqp.hubs import Hub, Timer, Waiter
from greenamqp.policy import Policies
from greenamqp.pump import Pump, Stream
from greenamqp.security import Security

LOG = logging.getLogger(__name__)

# Seconds for one attempt: to connect, to shake hands, to exchange Open frames.
CONNECT_TIMEOUT = 30.0

# The same where there are other hosts to try: a sender that waits for 30 seconds, as it
# does by default, gets past two hosts that are silent.
CONNECT_TIMEOUT_OF_MANY = 10.0

# Seconds that close() waits for the peer's Close.
CLOSE_TIMEOUT = 2.0

# A message that the peer released is sent again after this pause, twice as long each
# further time up to the option link_retry_delay.  A mesh of routers takes up to a
# second to know a new consumer everywhere.  Seconds.
FIRST_RETRY_PAUSE = 0.1

# How often replies that nobody waits for are looked through for old ones.  Seconds.
SWEEP_INTERVAL = 1.0

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

# Prefix of the names of links, as the predecessor's: operators know them.
_LINK_NAME = "openstack.org/om"


class State(enum.Enum):
    """Where the connection is in its life; see the table at the top."""

    IDLE = "idle"
    CONNECTING = "connecting"
    OPENING = "opening"
    UP = "up"
    WAITING = "waiting"
    CLOSED = "closed"


class Destination(typing.NamedTuple):
    """Where a message goes: a target and kind of traffic, or a ready address."""

    exchange: str | None
    topic: str | None
    server: str | None
    fanout: bool
    service: addressing.Service
    address: str | None = None

    @classmethod
    def of(cls, target: Target, service: addressing.Service) -> Destination:
        """The destination of what is sent to `target`."""
        return cls(
            target.exchange, target.topic, target.server, bool(target.fanout), service
        )

    @classmethod
    def reply(cls, address: str) -> Destination:
        """The destination of replies to `address`."""
        return cls(None, None, None, False, addressing.Service.RPC, address)

    def node(self, addresser: addressing.Addresser) -> addressing.Node:
        """As the bus at hand names it.

        :raises NotImplementedError: if the bus cannot keep the policy asked for
        """
        if self.address is not None:
            return addressing.Node(self.address)
        target = Target(
            exchange=self.exchange,
            topic=self.topic,
            server=self.server,
            fanout=self.fanout,
        )
        return addresser.destination(target, self.service)

    def __str__(self) -> str:
        if self.address is not None:
            return self.address
        return " ".join(
            f"{name}={value}"
            for name, value in zip(
                ("exchange", "topic", "server", "fanout"), self[:4], strict=True
            )
            if value
        )


class Outgoing:
    """A message on its way out, until its outcome is known.

    :ivar error: after `done`, why it failed, or None
    """

    __slots__ = (
        "attempts",
        "deadline",
        "destination",
        "done",
        "error",
        "last_reason",
        "mandatory",
        "message",
        "on_failure",
        "repeatable",
        "retries",
        "settled",
        "what",
        "waiter",
    )

    is_call = False

    def __init__(
        self,
        what: str,
        destination: Destination,
        message: Message,
        deadline: float | None,
        retries: int | None,
        settled: bool,
        repeatable: bool,
        waiter: Waiter | None,
        mandatory: bool = False,
    ) -> None:
        self.what = what
        self.destination = destination
        self.message = message
        self.deadline = deadline
        # None: as often as the deadline allows.
        self.retries = None if retries is None or retries < 0 else retries
        self.settled = settled
        # Whether it may be sent again when it may have been accepted.
        self.repeatable = repeatable
        # Whether it fails when nobody is there to take it.
        self.mandatory = mandatory
        self.waiter = waiter
        # Told of an error where nobody waits.
        self.on_failure: typing.Callable[[Exception], None] | None = None
        self.attempts = 0
        self.done = False
        self.error: Exception | None = None
        self.last_reason = ""

    def may_retry(self) -> bool:
        """Whether another attempt is allowed; counts it."""
        if self.retries is None:
            return True
        self.retries -= 1
        return self.retries >= 0

    def accepted(self) -> None:
        """The next hop took it."""
        self.finish(None)

    def finish(self, error: Exception | None) -> None:
        """Nothing more will happen to it."""
        if self.done:
            return
        self.done = True
        self.error = error
        if self.waiter is not None:
            self.waiter.wake()
        elif error is not None and self.on_failure is not None:
            self.on_failure(error)

    def failed(self, reason: str) -> None:
        """Finish with the error that the application is to see."""
        self.finish(
            exceptions.MessageDeliveryFailure(
                f"{self.what} to {self.destination} failed: {reason}"
            )
        )


    def undeliverable(self, address: str | None) -> None:
        """Finish as the ``mandatory`` flag promises: nobody takes it."""
        self.finish(
            exceptions.MessageUndeliverable(
                f"{self.what} to {self.destination}: nobody there to take it",
                self.destination.exchange,
                address,
                self.message,
            )
        )


class Call(Outgoing):
    """A request whose caller waits for a reply."""

    __slots__ = ("monitor", "monitor_deadline", "reply", "was_accepted")

    is_call = True

    def __init__(
        self, *args: typing.Any, monitor: float | None, mandatory: bool
    ) -> None:
        super().__init__(*args, mandatory=mandatory)
        self.reply: Received | None = None
        self.monitor = monitor
        self.monitor_deadline: float | None = None
        self.was_accepted = False

    def accepted(self) -> None:
        self.was_accepted = True


class Outlet:
    """What goes to one destination, over one link at a time.  Hub's context or lock."""

    __slots__ = (
        "_link",
        "_messenger",
        "_resting",
        "_retry_timer",
        "address",
        "destination",
        "last_used",
        "pending",
        "refusal",
    )

    def __init__(self, messenger: Messenger, destination: Destination) -> None:
        self._messenger = messenger
        self.destination = destination
        self.address: str | None = None
        self.pending: collections.deque[Outgoing] = collections.deque()
        self.last_used = messenger.hub.now()
        self.refusal = ""
        self._link: Sender | None = None
        self._retry_timer: Timer | None = None
        # What the peer released, until its pause is over.
        self._resting: dict[Outgoing, Timer] = {}

    @property
    def in_use(self) -> bool:
        """Whether anything waits here, for credit or for its outcome."""
        return bool(
            self.pending
            or self._resting
            or (self._link is not None and self._link.unsettled)
        )

    def submit(self, entry: Outgoing) -> None:
        """Send now if that is possible, else when it is."""
        self.last_used = self._messenger.hub.now()
        link = self._link
        if not self.pending and link is not None and self._ready(link, entry):
            self._transmit(link, entry)
            return
        self.pending.append(entry)
        if link is None:
            self.attach()

    def _ready(self, link: Sender, entry: Outgoing) -> bool:
        if link.state is not LinkState.ATTACHED or link.credit <= 0:
            return False
        return not entry.is_call or self._messenger.replies.address is not None

    def _transmit(self, link: Sender, entry: Outgoing) -> None:
        messenger = self._messenger
        message = entry.message
        message.address = self.address
        if entry.is_call:
            messenger.replies.expect(typing.cast(Call, entry))
        engine = messenger.engine
        assert engine is not None
        data = engine.codec.encode(message)
        limit = link.max_message_size
        if 0 < limit < len(data):
            entry.failed(
                f"the message has {len(data)} bytes, and the link to {self.address} "
                f"takes {limit} at most"
            )
            return
        entry.attempts += 1
        link.send(data, entry, entry.settled)
        if entry.settled:
            entry.accepted()

    def send_pending(self) -> None:
        """Send what waits, as far as credit goes."""
        link = self._link
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
            pending.popleft()
            self._transmit(link, entry)
        self._messenger.flush()

    def attach(self) -> None:
        """Attach the link, if the connection is up."""
        messenger = self._messenger
        if self._link is not None or messenger.state is not State.UP:
            return
        if self._retry_timer is not None:
            return
        assert messenger.engine is not None
        assert messenger.addresser is not None
        try:
            node = self.destination.node(messenger.addresser)
        except NotImplementedError as exc:
            self._refused(str(exc), True)
            return
        self.address = node.address
        try:
            link = messenger.engine.create_sender(
                node,
                Terminus(node.address),
                name=f"{_LINK_NAME}/sender/[{self.address}]/{uuid.uuid4().hex}",
                properties=node.link_properties,
            )
        except LocalProtocolError as exc:
            self._refused(str(exc), False)
            return
        except ValueError as exc:  # AMQP has no way to write such a name
            self._refused(str(exc), True)
            return
        self._link = link
        link.on_attached = self._attached
        link.on_detached = self._detached
        link.on_credit = self._credit
        link.on_settled = self._settled
        messenger.flush()

    def _attached(self, link: Sender) -> None:
        self.refusal = ""
        self.send_pending()

    def _credit(self, link: Sender) -> None:
        if self.pending:
            self.send_pending()

    def _settled(
        self, link: Sender, entry: Outgoing, outcome: int, error: typing.Any
    ) -> None:
        if outcome == RELEASED and entry.mandatory:
            entry.undeliverable(self.address)
        elif outcome == RELEASED:
            self._again(entry, "the message bus released it: nobody there to take it")
        elif outcome == REJECTED:
            reason = str(error) if error is not None else "no reason given"
            entry.failed(f"the message bus rejected it: {reason}")
        elif outcome == MODIFIED:
            in_doubt = error["failed"] or error["undeliverable"]
            reason = "the message bus returned it: " + (
                "its consumer was lost" if error["failed"] else "it was modified"
            )
            if in_doubt and not entry.repeatable:
                entry.failed(reason)
            else:
                self._again(entry, reason)
        else:
            entry.accepted()

    def _again(self, entry: Outgoing, reason: str) -> None:
        if entry.done:
            return
        entry.last_reason = reason
        if entry.is_call:
            # No server has it: no reply can come, and none may be waited for.
            self._messenger.replies.forget(typing.cast(Call, entry))
        if not entry.may_retry():
            entry.failed(reason)
            return
        messenger = self._messenger
        pause = min(
            FIRST_RETRY_PAUSE * 2 ** min(entry.attempts - 1, 16),
            messenger.options.link_retry_delay,
        )
        self._resting[entry] = messenger.hub.call_at(
            messenger.hub.now() + pause, lambda: self._resend(entry)
        )

    def _resend(self, entry: Outgoing) -> None:
        del self._resting[entry]
        if not entry.done:
            if entry.is_call:
                # The link may have gone with the connection, with no call to keep it.
                self._messenger.replies.attach()
            self.submit(entry)
            self._messenger.flush()

    def _detached(self, link: Sender, error: RemoteError | None) -> None:
        """The peer closed the link, or refused it, or the connection went."""
        if link is not self._link or link.connection.ended:
            return  # the messenger hears of the connection, and tells connection_lost
        self._link = None
        reason = str(error) if error is not None else "the peer detached the link"
        permanent = error is not None and error.condition in _PERMANENT
        self._messenger.notices.add(
            notices.LINK_CLOSED, address=self.address, reason=reason
        )
        again = self._lost_outcomes(link, reason)
        self._refused(reason, permanent)
        self._put_back(again)

    def _refused(self, reason: str, permanent: bool) -> None:
        self.refusal = reason
        waiting, self.pending = self.pending, collections.deque()
        for entry in waiting:
            entry.last_reason = reason
            if entry.done:
                continue
            if permanent or not entry.may_retry():
                entry.failed(f"{self.address}: {reason}")
            else:
                self.pending.append(entry)
        self._retry_later()

    def _retry_later(self) -> None:
        if self.pending and self._link is None and self._retry_timer is None:
            messenger = self._messenger
            self._retry_timer = messenger.hub.call_at(
                messenger.hub.now() + messenger.options.link_retry_delay, self._retry
            )

    def _retry(self) -> None:
        self._retry_timer = None
        if self.pending:
            self.attach()

    def _put_back(self, entries: list[Outgoing]) -> None:
        """Send these again, before what was never sent."""
        self.pending.extendleft(reversed(entries))
        self._retry_later()

    def _lost_outcomes(self, link: Sender, reason: str) -> list[Outgoing]:
        """The link is gone, and with it the outcome of what is unsettled on it.

        Returns what is to be sent again, in the order in which it was.
        """
        again = []
        for entry in link.abandon():
            if entry.done:
                continue
            entry.last_reason = reason
            if entry.is_call and typing.cast(Call, entry).was_accepted:
                continue
            if entry.repeatable and entry.may_retry():
                again.append(entry)
            else:
                entry.failed(f"{reason}; whether it arrived is unknown")
        return again

    def connection_lost(self, reason: str) -> None:
        """The link went with the connection, or there was none: what may be sent
        when it is back waits on, within its retries."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        link, self._link = self._link, None
        again = self._lost_outcomes(link, reason) if link is not None else []
        waiting, self.pending = self.pending, collections.deque()
        for entry in waiting:
            if entry.done:
                continue
            entry.last_reason = reason
            # A reply that has not left yet is not sent again, but for the first time.
            if (entry.on_failure and not entry.attempts) or entry.may_retry():
                self.pending.append(entry)
            else:
                entry.failed(reason)
        self.pending.extendleft(reversed(again))

    def withdraw(self, entry: Outgoing) -> None:
        """Do not send this one any more, if it is not on its way."""
        if entry in self.pending:
            self.pending.remove(entry)
        timer = self._resting.pop(entry, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Detach the link; what waits is the caller's to see to."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def fail_all(self, reason: str) -> None:
        """Fail all that waits here, for good."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        resting, self._resting = self._resting, {}
        for entry, timer in resting.items():
            timer.cancel()
            entry.failed(reason)
        link, self._link = self._link, None
        if link is not None:
            for entry in link.abandon():
                entry.failed(reason)
        while self.pending:
            self.pending.popleft().failed(reason)


class Replies:
    """The link that replies to this process's calls come by.  Hub's context or lock.

    It is attached with the first call.  Its credit is never less than the number of
    calls that wait, so that a router drops no reply for want of credit.
    """

    __slots__ = (
        "_count",
        "_credit",
        "_link",
        "_messenger",
        "_prefix",
        "_retry_timer",
        "address",
        "refusal",
        "waiting",
    )

    def __init__(self, messenger: Messenger) -> None:
        self._messenger = messenger
        self._prefix = uuid.uuid4().hex
        self._count = 0
        self._link: Receiver | None = None
        self._retry_timer: Timer | None = None
        #: Where replies are to be sent; None while there is no such place.
        self.address: str | None = None
        self.waiting: dict[typing.Any, Call] = {}
        #: Why there is no such place, for those who time out meanwhile.
        self.refusal = ""
        self._credit = 0  # of the link, as the peer sees it

    def expect(self, call: Call) -> None:
        """A request leaves: its reply will be recognised by its message id."""
        message = call.message
        # A fresh id for each attempt: a late reply to an earlier one must not be taken
        # for this one's.
        self._count += 1
        message.id = f"{self._prefix}.{self._count}"
        message.reply_to = self.address
        self.waiting[message.id] = call
        if call.monitor is not None:
            call.monitor_deadline = self._messenger.hub.now() + call.monitor
        self._top_up()

    def forget(self, call: Call) -> None:
        """Its caller waits no longer."""
        self.waiting.pop(call.message.id, None)

    def attach(self) -> None:
        """Attach the link, if the connection is up and it is not there yet."""
        messenger = self._messenger
        if (
            self._link is not None
            or self._retry_timer is not None
            or messenger.state is not State.UP
        ):
            return
        assert messenger.engine is not None
        try:
            link = messenger.engine.create_receiver(
                Terminus(dynamic=True),
                name=f"{_LINK_NAME}/receiver/[rpc-response]/{uuid.uuid4().hex}",
            )
        except LocalProtocolError as exc:
            LOG.error("no link for replies: %s", exc)
            return
        self._link = link
        link.on_attached = self._attached
        link.on_detached = self._detached
        link.on_message = self._message
        link.on_dropped = self._dropped
        messenger.flush()

    def _attached(self, link: Receiver) -> None:
        self.address = link.remote_source.address
        self.refusal = ""
        self._credit = 0
        self._top_up()
        self._messenger.send_pending()

    def _detached(self, link: Receiver, error: RemoteError | None) -> None:
        if link is not self._link or link.connection.ended:
            return  # the messenger hears of the connection, and tells connection_lost
        reason = str(error) if error is not None else "no reason given"
        LOG.error("the link for replies was closed by the peer: %s", reason)
        self.refusal = f"the link for replies was closed: {reason}"
        self.connection_lost(self.refusal)
        messenger = self._messenger
        self._retry_timer = messenger.hub.call_at(
            messenger.hub.now() + messenger.options.link_retry_delay, self._retry
        )

    def _retry(self) -> None:
        self._retry_timer = None
        self.attach()

    def _message(self, link: Receiver, delivery: Delivery, data: memoryview) -> None:
        try:
            message = link.connection.codec.decode_reply(data)
        except DecodeError as exc:
            LOG.error("a reply that cannot be decoded was rejected: %s", exc)
            link.settle(
                delivery,
                REJECTED,
                condition="amqp:decode-error",
                description=str(exc),
            )
            self._used_credit()
            return
        link.settle(delivery)
        call = self.waiting.get(message.correlation_id)
        if call is None:
            LOG.warning(
                "a reply that nobody waits for was dropped: it came late, or was not "
                "for us (correlation-id %s)",
                message.correlation_id,
            )
        elif message.body is None:
            # A heartbeat: the server is at work on it.
            if call.monitor is not None:
                call.monitor_deadline = self._messenger.hub.now() + call.monitor
        else:
            del self.waiting[message.correlation_id]
            call.reply = message
            call.finish(None)
        self._used_credit()

    def _dropped(self, link: Receiver, reason: str) -> None:
        LOG.warning("a reply was lost: %s", reason)
        self._used_credit()

    def _used_credit(self) -> None:
        self._credit -= 1
        self._top_up()

    def _top_up(self) -> None:
        """Grant credit when half the window is used, or more calls wait than replies
        may come; then for twice as many, so that not each call costs a frame."""
        waiting = len(self.waiting)
        window = self._messenger.options.reply_link_credit
        if self._link is not None and (
            self._credit < waiting or self._credit * 2 <= window
        ):
            grant = max(window, 2 * waiting) - self._credit
            self._credit += grant
            self._link.flow(grant)

    def connection_lost(self, reason: str) -> None:
        """The link is gone, and with it the address that replies are sent to."""
        self._stop_timer()
        self._link = None
        self.address = None
        self.fail_all(f"{reason}; whether the request was carried out is unknown")

    def _stop_timer(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None

    def close(self) -> None:
        """Detach the link."""
        self._stop_timer()
        link, self._link = self._link, None
        self.address = None
        if link is not None:
            link.close()

    def fail_all(self, reason: str) -> None:
        """Fail all calls that wait for a reply."""
        waiting, self.waiting = self.waiting, {}
        for call in waiting.values():
            call.failed(reason)


class Subscription:
    """What one listener receives, over any number of links.  Hub's context or lock.

    :param sources: makes the termini, once the bus is known
    :param window: credit of each link: messages unacknowledged at one time
    :param on_message: takes each message; it then owes the link `settle`
    """

    def __init__(
        self,
        messenger: Messenger,
        sources: typing.Callable[[addressing.Addresser], list[addressing.Node]],
        window: int,
        on_message: typing.Callable[[Inlet, Delivery, memoryview], None],
    ) -> None:
        self.messenger = messenger
        self.window = window
        self.on_message = on_message
        self.inlets: list[Inlet] = []
        #: Why the bus at hand cannot do what is asked, or None.
        self.impossible: NotImplementedError | None = None
        self._sources = sources
        self._waiters: list[Waiter] = []
        self.stopped = False

    @property
    def attached(self) -> bool:
        """Whether all links are up."""
        return bool(self.inlets) and all(inlet.attached for inlet in self.inlets)

    def attach(self) -> None:
        """Attach all links; the connection is up."""
        addresser = self.messenger.addresser
        assert addresser is not None
        try:
            sources = self._sources(addresser)
        except NotImplementedError as exc:
            self.impossible = exc
            LOG.error("cannot subscribe: %s", exc)
            self._wake()
            return
        self.impossible = None
        self.inlets = [Inlet(self, source) for source in sources]
        for inlet in self.inlets:
            inlet.attach()

    def inlet_attached(self) -> None:
        """One more link is up."""
        if self.attached:
            self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            waiter.wake()

    def connection_lost(self) -> None:
        """All links went with the connection."""
        for inlet in self.inlets:
            inlet.lost()
        self.inlets = []

    def wait_attached(self, deadline: float) -> bool:
        """Wait until all links are up.  Not in the hub's context.

        :raises NotImplementedError: if the bus cannot do what is asked
        """
        hub = self.messenger.hub
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
                    if self.messenger.state is State.CLOSED:
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
        self.messenger.flush()

    def close(self) -> None:
        """Detach all links."""
        self.stopped = True
        for inlet in self.inlets:
            inlet.close()
        self.inlets = []


class Inlet:
    """One receiving link of a subscription.  Hub's context or lock.

    Credit goes back to the peer for what was settled, half a window at a time: one
    flow frame then serves many messages, and a slow consumer holds no more than its
    window.
    """

    __slots__ = ("_returned", "_subscription", "_timer", "link", "source")

    def __init__(self, subscription: Subscription, source: addressing.Node) -> None:
        self._subscription = subscription
        self.source = source
        self.link: Receiver | None = None
        self._returned = 0
        self._timer: Timer | None = None

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
        messenger = self._subscription.messenger
        if messenger.state is not State.UP or self._subscription.stopped:
            return
        assert messenger.engine is not None
        try:
            link = messenger.engine.create_receiver(
                self.source,
                Terminus(self.source.address),
                name=f"{_LINK_NAME}/receiver/[{self.address}]/{uuid.uuid4().hex}",
                settle_mode=SettleMode.MIXED,
                properties=self.source.link_properties,
            )
        except LocalProtocolError as exc:
            messenger.notices.add(
                notices.NOT_SUBSCRIBED, address=self.address, reason=exc
            )
            self._retry_later()
            return
        except ValueError as exc:  # AMQP has no way to write such a name
            messenger.notices.add(
                notices.NOT_SUBSCRIBED, address=repr(self.address), reason=exc
            )
            return
        self.link = link
        self._returned = 0
        link.on_attached = self._attached
        link.on_detached = self._detached
        link.on_message = self._message
        link.on_dropped = self._dropped
        messenger.flush()

    def _attached(self, link: Receiver) -> None:
        if not self._subscription.stopped:
            link.flow(self._subscription.window)
        self._subscription.inlet_attached()

    def _detached(self, link: Receiver, error: RemoteError | None) -> None:
        if link is not self.link or link.connection.ended:
            return  # the messenger hears of the connection, and calls lost()
        self.link = None
        messenger = self._subscription.messenger
        if not self._subscription.stopped:
            messenger.notices.add(
                notices.SUBSCRIPTION_CLOSED,
                address=self.address,
                reason=error or "no reason given",
                delay=messenger.options.link_retry_delay,
            )
            self._retry_later()

    def _retry_later(self) -> None:
        messenger = self._subscription.messenger
        self._timer = messenger.hub.call_at(
            messenger.hub.now() + messenger.options.link_retry_delay, self.attach
        )

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
        """Settle a message that on_message was given, and return its credit.

        Returns False if its link is gone: the bus will deliver it again.
        """
        if not link.settle(
            delivery, outcome, condition=condition, description=description
        ):
            return False
        self.give_back(link)
        return True

    def give_back(self, link: Receiver) -> None:
        """One more message may come."""
        if link is not self.link or self._subscription.stopped:
            return
        self._returned += 1
        if self._returned * 2 >= self._subscription.window:
            link.flow(self._returned)
            self._returned = 0

    def stop(self) -> None:
        """Withdraw the credit; what is on its way already is released on arrival."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.attached and self.link is not None:
            self.link.flow(-max(0, self.link.credit))

    def lost(self) -> None:
        """The link went with the connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.link = None

    def close(self) -> None:
        """Detach the link."""
        self.stop()
        link, self.link = self.link, None
        if link is not None:
            link.close()


class Messenger:
    """See the module.

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
        self.state = State.IDLE
        self.engine: Connection | None = None
        self.addresser: addressing.Addresser | None = None
        self.bus = addressing.Bus()
        self.replies = Replies(self)
        self.notices = notices.Notices(hub)
        #: Requests that were handed to servers and are not replied to yet.
        self.requests_at_work = 0
        #: Why the last attempt failed, for those who time out meanwhile.
        self.last_failure = ""
        self._default_exchange = default_exchange
        self._virtual_host = virtual_host
        self._policies = policies
        self._hosts = Hosts(hosts)
        self._security = Security(options)
        # Hosts that want no SASL layer, each with what it answered to one.
        self._without_sasl: dict[Host, str] = {}
        self._backoff = Backoff(
            len(hosts),
            options.connection_retry_interval,
            options.connection_retry_backoff,
            options.connection_retry_interval_max,
        )
        self._outlets: dict[Destination, Outlet] = {}
        self._subscriptions: list[Subscription] = []
        self._unattended: list[Outgoing] = []
        self._pump: Pump | None = None
        self._attempt: connect.Attempt | None = None
        self._timer: Timer | None = None
        self._maintenance: Timer | None = None
        self._sweep: Timer | None = None
        self._closed_waiters: list[Waiter] = []
        # Engines and streams that were given up, to be let go of before long.
        self._discarded: list[tuple[Connection, Pump | None]] = []
        self._bin_timer: Timer | None = None
        # When the connection came up.
        self._up_since = 0.0
        self._patience = CONNECT_TIMEOUT if len(hosts) == 1 else CONNECT_TIMEOUT_OF_MANY
        # When the attempt that is under way counts as failed.
        self._attempt_until = 0.0
        self._guarded = bool(options.heartbeat_guard)
        if self._guarded:
            GUARD.acquire()
        hub.acquire()

    # -- for the driver

    def send(
        self,
        what: str,
        destination: Destination,
        message: Message,
        *,
        deadline: float,
        retries: int | None = None,
        settled: bool = False,
        repeatable: bool = False,
        mandatory: bool = False,
    ) -> None:
        """Send and wait until the next hop has accepted.  May block until `deadline`.

        :param what: how errors name it
        :param retries: further attempts allowed; None or negative: any number
        :param settled: ask for no outcome
        :param repeatable: whether it may be sent again when its outcome is unknown
        :param mandatory: fail at once when nobody is there to take it
        :raises TimeoutError: at the deadline, saying what was waited for
        :raises MessageDeliveryFailure: refused, rejected, or retries exhausted
        :raises MessageUndeliverable: nobody is there, and it was mandatory
        """
        entry = Outgoing(
            what,
            destination,
            message,
            deadline,
            retries,
            settled,
            repeatable,
            self.hub.waiter(),
            mandatory,
        )
        self._submit(entry)
        waiter = typing.cast(Waiter, entry.waiter)
        try:
            while not entry.done:
                if not waiter.wait(deadline):
                    break
        finally:
            in_time = self._leave(entry)
        if not in_time:
            raise TimeoutError(self._late(entry))
        if entry.error is not None:
            raise entry.error

    def call(
        self,
        destination: Destination,
        message: Message,
        *,
        deadline: float,
        retries: int | None = None,
        settled: bool = False,
        monitor: float | None = None,
        mandatory: bool = False,
    ) -> Received:
        """Send a request and wait for its reply.  May block until `deadline`.

        :param monitor: seconds without a heartbeat after which to give up
        :raises TimeoutError: at the deadline, saying what was waited for
        :raises MessageDeliveryFailure: as for send, and when the reply cannot come
        """
        call = Call(
            "RPC call",
            destination,
            message,
            deadline,
            retries,
            settled,
            False,
            self.hub.waiter(),
            monitor=monitor,
            mandatory=mandatory,
        )
        if monitor is not None:
            # From now on, not from the sending: it may be long until that.
            call.monitor_deadline = self.hub.now() + monitor
        self._submit(call)
        waiter = typing.cast(Waiter, call.waiter)
        late = ""
        try:
            while not call.done:
                until = deadline
                if call.monitor_deadline is not None:
                    until = min(until, call.monitor_deadline)
                if not waiter.wait(until) and not call.done:
                    now = self.hub.now()
                    if now >= deadline:
                        break
                    # Heartbeats move the monitor's deadline without a wake.
                    beat = call.monitor_deadline
                    if beat is not None and now >= beat:
                        late = f"no heartbeat from the server for {monitor} s"
                        break
        finally:
            in_time = self._leave(call)
        if not in_time:
            raise TimeoutError(self._late(call, late))
        if call.error is not None:
            raise call.error
        return typing.cast(Received, call.reply)

    def post(
        self,
        what: str,
        destination: Destination,
        message: Message,
        *,
        deadline: float,
        retries: int | None = None,
        settled: bool = False,
        urgent: bool = True,
    ) -> None:
        """Send without waiting: for replies.  A failure is logged.  Does not block.

        :param urgent: write it now; else with whatever else is written before long
        """
        entry = Outgoing(
            what, destination, message, deadline, retries, settled, False, None
        )
        entry.on_failure = self._post_failed
        self._submit(entry, urgent)
        if not entry.done:
            with self.hub.lock:
                self._unattended.append(entry)
                if self._sweep is None:
                    self._sweep = self.hub.call_at(
                        self.hub.now() + SWEEP_INTERVAL, self._sweep_unattended
                    )

    def _post_failed(self, error: Exception) -> None:
        self.notices.add(notices.NOT_SENT, reason=error)

    def subscribe(
        self,
        sources: typing.Callable[[addressing.Addresser], list[addressing.Node]],
        window: int,
        on_message: typing.Callable[[Inlet, Delivery, memoryview], None],
    ) -> Subscription:
        """Receive from `sources` from now on, whatever becomes of the connection.

        Does not wait; see Subscription.wait_attached.
        """
        with self.hub.lock:
            subscription = Subscription(self, sources, window, on_message)
            self._subscriptions.append(subscription)
            if self.state is State.UP:
                subscription.attach()
            else:
                self._wanted()
            return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Detach a subscription's links."""
        with self.hub.lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
            subscription.close()
            self.flush()

    def close(self) -> None:
        """Close the connection in order and let go of everything.  May block for
        CLOSE_TIMEOUT.  What waits fails.  Idempotent."""
        waiter = self.hub.waiter()
        with self.hub.lock:
            if self.state is State.CLOSED:
                return
            self.state = State.CLOSED
            self._stop_timers()
            if self._attempt is not None:
                self._attempt.cancel()
                self._attempt = None
            reason = "the transport was cleaned up"
            for outlet in self._outlets.values():
                outlet.fail_all(reason)
            self._outlets.clear()
            self.replies.fail_all(reason)
            self.replies.close()
            for subscription in self._subscriptions:
                subscription.close()
                subscription._wake()
            self._subscriptions.clear()
            self._unattended.clear()
            pump = self._pump
            if pump is not None and not pump.closed:
                self._closed_waiters.append(waiter)
                assert self.engine is not None
                self.engine.close()
                pump.flush_now()
        if pump is not None and not pump.closed:
            waiter.wait(self.hub.now() + CLOSE_TIMEOUT)
            with self.hub.lock:
                pump.close()
        with self.hub.lock:
            engine, self.engine = self.engine, None
            if engine is not None:
                engine.destroy()
            self._empty_bin()  # the hub's timers may go with its last user
            self.notices.write()
        self.hub.release()
        if self._guarded:
            GUARD.release()

    # -- inside: the hub's context or its lock

    def flush(self) -> None:
        """Have what the engine holds written."""
        if self._pump is not None:
            self._pump.flush_now()

    def flush_soon(self) -> None:
        """Have what the engine holds written before long."""
        if self._pump is not None:
            self._pump.flush_soon()

    def send_pending(self) -> None:
        """The reply address is known: calls may leave."""
        for outlet in list(self._outlets.values()):
            if outlet.pending:
                outlet.send_pending()

    def _submit(self, entry: Outgoing, urgent: bool = True) -> None:
        with self.hub.lock:
            if self.state is State.CLOSED:
                entry.failed("the transport was cleaned up")
                return
            outlet = self._outlets.get(entry.destination)
            if outlet is None:
                outlet = Outlet(self, entry.destination)
                self._outlets[entry.destination] = outlet
            if entry.is_call and self.replies.address is None:
                self.replies.attach()
            outlet.submit(entry)
            if self.state is not State.UP:
                self._wanted()
            elif urgent:
                self.flush()
            else:
                self.flush_soon()

    def _leave(self, entry: Outgoing) -> bool:
        """Its sender waits no longer.  Returns whether it was done; if not, it is
        taken back as far as that goes, and whatever becomes of it goes unheard."""
        if entry.done and entry.error is None:
            return True
        with self.hub.lock:
            if entry.is_call:
                self.replies.forget(typing.cast(Call, entry))
            if entry.done:
                return True
            entry.done = True
            outlet = self._outlets.get(entry.destination)
            if outlet is not None:
                outlet.withdraw(entry)
                if not entry.last_reason:
                    entry.last_reason = outlet.refusal
            return False

    def _late(self, entry: Outgoing, reason: str = "") -> str:
        if not reason:
            reason = entry.last_reason
        if not reason and self.state is not State.UP:
            reason = self.last_failure or f"{self._where()}: {self._progress()}"
        if not reason and entry.is_call and self.replies.address is None:
            reason = self.replies.refusal
        if not reason:
            if entry.is_call and entry.attempts:
                reason = "no reply"
            elif entry.attempts:
                reason = "no outcome from the message bus"
            else:
                reason = "the message bus gives no credit: is there a consumer?"
        return f"{entry.what} to {entry.destination} timed out: {reason}"

    def _sweep_unattended(self) -> None:
        self._sweep = None
        now = self.hub.now()
        left = []
        for entry in self._unattended:
            if entry.done:
                continue
            if entry.deadline is not None and entry.deadline <= now:
                outlet = self._outlets.get(entry.destination)
                if outlet is not None:
                    outlet.withdraw(entry)
                entry.failed(self._late(entry))
            else:
                left.append(entry)
        self._unattended = left
        if left:
            self._sweep = self.hub.call_at(now + SWEEP_INTERVAL, self._sweep_unattended)

    # -- connecting

    def _wanted(self) -> None:
        """Somebody needs the connection."""
        if self.state is State.IDLE:
            self._connect()

    def _connect(self) -> None:
        self._timer = None
        self.state = State.CONNECTING
        host = self._hosts.current
        LOG.debug("connecting to %s", host)
        self._attempt_until = self.hub.now() + self._patience
        security = self._security
        secured: dict[str, typing.Any] = {}
        if security.tls:
            secured = {
                "context": security.context,
                "server_name": security.server_name(host, self._virtual_host),
            }
        self._attempt = connect.Attempt(
            self.hub,
            host.hostname,
            host.port,
            self._attempt_until,
            self._connected,
            **secured,
        )

    def _progress(self) -> str:
        """How far the first attempt to connect has come."""
        if self.state is State.OPENING:
            assert self._pump is not None
            return self._explain("connected, and no answer to the Open frame yet")
        stage = getattr(self._attempt, "stage", "not connected")
        return f"still {stage}"

    def _connected(self, stream: Stream | None, reason: str | None) -> None:
        self._attempt = None
        if self.state is not State.CONNECTING:
            if stream is not None:
                stream.close()
            return
        if stream is None:
            self._lost(f"cannot connect: {reason}")
            return
        self.state = State.OPENING
        self._timer = self.hub.call_at(self._attempt_until, self._opening_timed_out)
        self.engine = self._new_engine()
        self._pump = Pump(self.hub, stream, self.engine, self._pump_closed)
        self.engine.open()
        self._pump.start()

    def _new_engine(self) -> Connection:
        options = self.options
        host = self._hosts.current
        command = os.path.basename(sys.argv[0]) or "python"
        prefix = options.container_name or command
        vhost = self._virtual_host
        sasl = None
        if host not in self._without_sasl:
            sasl = self._security.login(host)
            self._security.warn_of_plain(host, sasl)
        return Connection(
            # Names are made when they are needed: after a fork they differ.
            f"{prefix}.{os.getpid()}.{uuid.uuid4().hex}",
            self,
            hostname=vhost if vhost and not options.pseudo_vhost else None,
            properties={
                "process": command,
                "pid": os.getpid(),
                "node": platform.node() or "unknown",
            },
            idle_timeout=options.idle_timeout,
            sasl=sasl,
            trace=options.trace,
        )

    def _explain(self, reason: str) -> str:
        """Why no Open frame came, from what the peer said in its place."""
        engine, pump = self.engine, self._pump
        if engine is None or pump is None:
            return reason
        host = self._hosts.current
        sasl = host not in self._without_sasl
        login = self._security.login(host)
        vhost = None if self.options.pseudo_vhost else self._virtual_host
        return diagnosis.opening_failed(
            reason,
            pump.greeting or b"",
            tls=self._security.tls,
            sasl=sasl,
            allowed=login.mechanisms.split(),
            outcome=engine.sasl_outcome,
            mechanism=engine.sasl_mechanism,
            user=login.username,
            vhost=vhost,
        )

    def _opening_failed(self, reason: str) -> str:
        """Explain, and choose what to try next time."""
        host = self._hosts.current
        before = self._without_sasl.pop(host, None)
        if before is not None:
            return f"{before}; without SASL: {self._explain(reason)}"
        pump = self._pump
        login = self._security.login(host)
        explained = self._explain(reason)
        if (
            pump is not None
            and not login.username
            and not self._security.sasl_wanted
            and diagnosis.wants_no_sasl(
                pump.greeting or b"", login.mechanisms.split()
            )
        ):
            # Nobody asked for a login, so none is lost: the predecessor would have
            # gone without SASL at once.
            self._without_sasl[host] = explained
        return explained

    def _opening_timed_out(self) -> None:
        self._timer = None
        if self._pump is not None:
            self._pump.abort(f"no answer to the Open frame in {self._patience:.0f} s")

    def _where(self) -> str:
        host = str(self._hosts.current)
        return f"{host}/{self._virtual_host}" if self._virtual_host else host

    # the engine's handler

    def connection_opened(self, connection: Connection) -> None:
        """The peer has answered: choose addresses, restore all links."""
        if connection is not self.engine or self.state is not State.OPENING:
            return
        self.state = State.UP
        if self._pump is not None:
            self._pump.greeting = None
            if self._guarded and not self._pump.keep_alive():
                LOG.warning(
                    "heartbeat_guard does nothing over TLS, as to %s", self._where()
                )
        self._stop_timer()
        self._up_since = self.hub.now()
        self.last_failure = ""
        properties = connection.remote_properties
        self.bus = addressing.Bus(
            product=str(properties.get("product", "")),
            version=str(properties.get("version", "")),
            capabilities=connection.remote_offered_capabilities,
        )
        self.addresser = addressing.choose(
            self.options,
            self._default_exchange,
            self._virtual_host if self.options.pseudo_vhost else None,
            self.bus,
            self._policies,
        )
        LOG.info(
            "connected to %s (%s %s), %s, login: %s",
            self._where(),
            self.bus.product or "a peer that does not say what it is",
            self.bus.version,
            "TLS" if self._security.tls else "no TLS",
            connection.sasl_mechanism or "none",
        )
        if self.replies.waiting or any(
            entry.is_call
            for outlet in self._outlets.values()
            for entry in outlet.pending
        ):
            self.replies.attach()
        for subscription in list(self._subscriptions):
            subscription.attach()
        for outlet in list(self._outlets.values()):
            if outlet.pending:
                outlet.attach()
        self._schedule_maintenance()

    def connection_closed(
        self, connection: Connection, error: RemoteError | None
    ) -> None:
        """The peer closed the connection."""
        if connection is self.engine:
            self._lost(f"closed by the peer: {error or 'no reason given'}")

    def connection_failed(
        self, connection: Connection, error: ConnectionFailed
    ) -> None:
        """The connection broke."""
        if connection is self.engine:
            self._lost(str(error))

    def link_requested(self, connection: Connection, link: EngineLink) -> None:
        """No peer has business with a client's nodes."""
        link.reject("amqp:not-allowed", "this container has no nodes")

    def _pump_closed(self, pump: Pump) -> None:
        for waiter in self._closed_waiters:
            waiter.wake()
        if pump is self._pump and self.state in (State.UP, State.OPENING):
            self._lost("the connection was closed")

    def _lost(self, reason: str) -> None:
        """The connection is gone or could not be made: try again, if not closed."""
        if self.state in (State.CLOSED, State.WAITING):
            return
        was_up = self.state is State.UP
        where = self._where()
        if self.state is State.OPENING:
            reason = self._opening_failed(reason)
        self.state = State.WAITING
        self.last_failure = f"{where}: {reason}"
        self.addresser = None
        self._stop_timers()
        self._discard_engine()
        for subscription in self._subscriptions:
            subscription.connection_lost()
        for outlet in list(self._outlets.values()):
            outlet.connection_lost(self.last_failure)
            if not outlet.in_use:
                del self._outlets[outlet.destination]
        # After the outlets: what they keep for another attempt is not waited for.
        self.replies.connection_lost(self.last_failure)
        pause = self._backoff.next_pause(
            self.hub.now() - self._up_since if was_up else None
        )
        self._hosts.advance()
        LOG.warning(
            "%s %s: %s; trying %s in %.1f s",
            "lost the connection to" if was_up else "no connection to",
            where,
            reason,
            self._hosts.current,
            pause,
        )
        self._timer = self.hub.call_at(self.hub.now() + pause, self._connect)

    def _discard_engine(self) -> None:
        """Close the stream and free the engine, once it is not in use any more."""
        engine, self.engine = self.engine, None
        pump, self._pump = self._pump, None
        if engine is None:
            return

        # Not from within one of its own callbacks.
        self._discarded.append((engine, pump))
        if self._bin_timer is None:
            self._bin_timer = self.hub.call_at(self.hub.now(), self._empty_bin)

    def _empty_bin(self) -> None:
        if self._bin_timer is not None:
            self._bin_timer.cancel()
            self._bin_timer = None
        discarded, self._discarded = self._discarded, []
        for engine, pump in discarded:
            if pump is not None:
                pump.flush()
                pump.close()
            engine.destroy()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_timers(self) -> None:
        self._stop_timer()
        for timer in (self._maintenance, self._sweep):
            if timer is not None:
                timer.cancel()
        self._maintenance = self._sweep = None
        if self._unattended and self.state is not State.CLOSED:
            self._sweep = self.hub.call_at(
                self.hub.now() + SWEEP_INTERVAL, self._sweep_unattended
            )

    # -- maintenance

    def _schedule_maintenance(self) -> None:
        self._maintenance = self.hub.call_at(
            self.hub.now() + self.options.default_sender_link_timeout / 2,
            self._detach_idle,
        )

    def _detach_idle(self) -> None:
        """Detach sender links that were not used for a while."""
        oldest = self.hub.now() - self.options.default_sender_link_timeout
        for destination, outlet in list(self._outlets.items()):
            if outlet.last_used <= oldest and not outlet.in_use:
                outlet.close()
                del self._outlets[destination]
        self.flush()
        self._schedule_maintenance()
