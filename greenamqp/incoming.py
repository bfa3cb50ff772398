# SPDX-License-Identifier: Apache-2.0
"""The messages that listeners give: to acknowledge, to give back, to reply to.

Their methods may be called from any thread or green thread that the hub knows, and from
other native threads; none of them waits.  In a child of the process that received them
they only log that they did nothing: what becomes of a message is for the parent to say.
"""

from __future__ import annotations

import functools
import logging
import sys
import typing

from oslo_messaging._drivers import base

from greenamqp.buses import Request
from greenamqp.client import Client, Destination, Known, ReceivingLink, notices
from greenamqp.client.observer import Processing
from greenamqp.engine import (
    ACCEPTED,
    RELEASED,
    Delivery,
    Message,
    Received,
    Receiver,
)
from greenamqp.hubs import logs

# One name for what becomes of messages: see `greenamqp.listener`.
LOG = logging.getLogger("greenamqp.listener")

# A caller is not taken to wait for longer, whatever it says.  Seconds.
LONGEST_CALL = 3600.0

# What is done to a message with an outcome, for messages to people.
_DONE = {ACCEPTED: "acknowledged", RELEASED: "requeued"}


class Queue(typing.Protocol):
    """Where a message waited until it was taken."""

    #: What it is about, for those who observe.
    topic: str | None

    def known(self, reply_to: str | None) -> Known:
        """By what the copies are known of a message that wants its reply there."""

    def put_back(self, arrival: Arrival) -> bool:
        """Have a message that is settled come again from here, as the bus will not give
        it again.  Returns whether that can be.  Lock."""


class Arrival(typing.NamedTuple):
    """A message that came: decoded as AMQP, its body not yet looked at."""

    queue: Queue
    source: ReceivingLink
    link: Receiver
    #: None: it was accepted on arrival.
    delivery: Delivery | None
    message: Received
    #: Whether it is settled already: the bus will not give it again.
    settled: bool


class Incoming(base.IncomingMessage):
    """A notification, as the dispatcher gets it.

    Its methods raise nothing but where they say so: what fails is logged, as the base
    class wants it.
    """

    #: What it is, for those who observe.
    kind = "notification"
    #: Whether it may be other than what oslo.messaging sends.
    may_be_foreign = False
    #: Whether it is in order that it is done again, after a crash.
    may_come_again = True

    def __init__(self, client: Client, arrival: Arrival, request: Request) -> None:
        # For logs, here and in oslo.messaging.
        name = logs.printable(str(request.id or request.unique_id or "without an id"))
        super().__init__(request.context, request.message, name)
        self._client = client
        self._arrival: Arrival | None = arrival
        self._unique_id = request.unique_id
        self._observed: list[Processing] | None = None
        if client.on_hand_out:
            topic = arrival.queue.topic
            self._observed = [
                told
                for each in client.on_hand_out
                if (told := each(self.kind, topic, self.ctxt)) is not None
            ] or None

    def _processed(self, error: str = "") -> None:
        """It was replied to, acknowledged or given back; tells who observes."""
        observed, self._observed = self._observed, None
        for each in observed or ():
            each.ended(error)

    def acknowledge(self) -> None:
        """Tell the message bus that the message is done with.  Does not block.

        Where the bus is better off so (RabbitMQ, under a green hub), a notification's
        acknowledgement leaves some milliseconds later, together with others.
        """
        if self._observed is not None:
            self._acknowledged()
        self._settle(ACCEPTED)

    def requeue(self) -> None:
        """Give the message back, for this or another consumer.  Does not block."""
        if self._observed is not None:
            self._processed()
        self._settle(RELEASED)

    def _acknowledged(self) -> None:
        """Tell who observes: it was worked on."""
        self._processed()

    def _not_ours(self, what: str) -> bool:
        """Whether this is a child of the process that received it; says so."""
        hub = self._client.hub
        if hub.inherited:
            LOG.warning(
                "message %s is not %s: process %s received it, of which this one was "
                "forked",
                self.msg_id,
                what,
                hub.pid,
            )
        return hub.inherited

    def _settle(self, outcome: int) -> None:
        hub = self._client.hub
        if hub.inherited:
            self._not_ours(_DONE[outcome])
            return
        if hub.foreign():
            hub.run_inside(self._settle, outcome)
            return
        if hub.engaged():
            hub.call_inside(functools.partial(self._settle_now, outcome))
        else:
            self._settle_now(outcome)

    def _settle_now(self, outcome: int) -> None:
        with self._client.hub.lock:
            arrival, self._arrival = self._arrival, None
            if arrival is None:
                return
            if LOG.isEnabledFor(logging.DEBUG):
                LOG.debug(
                    "message %s from %s is %s",
                    self.msg_id,
                    arrival.source.address,
                    _DONE[outcome],
                )
            if self._unique_id is not None:
                self._remember(arrival.queue, self._unique_id, outcome)
            if outcome == RELEASED and not arrival.settled:
                # Its sender may have settled it since, and waits for no outcome.
                settled = arrival.link.is_settled(arrival.delivery)
                arrival = arrival._replace(settled=settled)
            if outcome == RELEASED and arrival.settled:
                if not arrival.queue.put_back(arrival):
                    self._client.notices.add(
                        notices.LOST, id=self.msg_id, address=arrival.source.address
                    )
                return
            source, link, delivery = arrival.source, arrival.link, arrival.delivery
            if outcome == ACCEPTED and self.may_come_again:
                settled = source.acknowledge(link, delivery)
            else:
                settled = source.settle(link, delivery, outcome)
            if not settled and not arrival.settled:
                self._client.notices.add(
                    notices.NOT_SETTLED,
                    id=self.msg_id,
                    address=arrival.source.address,
                    outcome=_DONE[outcome],
                )

    def _remember(self, queue: Queue, unique_id: str, outcome: int) -> None:
        """Have its copies known.  Lock."""
        if outcome == ACCEPTED:
            queue.known(None).add(unique_id)


class AnyIncoming(Incoming):
    """A message of any program: its JSON need not be oslo.messaging's.

    ``message`` is what an oslo.messaging sender sent, or else the JSON value itself.
    """

    may_be_foreign = True


class RpcIncoming(Incoming, base.RpcIncomingMessage):
    """An RPC request, which may want a reply."""

    kind = "RPC request"
    # Acknowledged before it is executed, so that this happens once at the most.
    may_come_again = False
    # Whether it is counted among `requests_at_work`; not before that was done.
    _at_work = False

    def __init__(self, client: Client, arrival: Arrival, request: Request) -> None:
        super().__init__(client, arrival, request)
        self._reply_to = request.reply_to
        # Without it nobody waits for heartbeats.
        self.client_timeout = request.call_monitor_timeout if self._reply_to else None
        self._request_id = request.id
        # A reply is in the format of its request.
        self._format = arrival.source.format
        # Until when its caller waits for the reply, as far as that is known.
        self._waited_until = 0.0
        if self._reply_to:
            ttl = min(arrival.message.ttl or 0.0, LONGEST_CALL)
            self._waited_until = client.hub.now() + ttl
            with client.hub.lock:
                client.requests_at_work += 1
                self._at_work = True

    def __del__(self) -> None:
        # An endpoint was left by what is no Exception, such as eventlet's Timeout:
        # oslo.messaging has no reply to that, and says nothing.
        client = self._client
        if self._at_work and not client.context.closed and not client.hub.inherited:
            client.hub.call_inside(functools.partial(_forget_work, client))

    def _acknowledged(self) -> None:
        for each in self._observed or ():
            each.begun()

    def _settle_now(self, outcome: int) -> None:
        if outcome == RELEASED:
            self._done()  # no reply will come
        super()._settle_now(outcome)

    def _remember(self, queue: Queue, unique_id: str, outcome: int) -> None:
        # Its copies are known since it was taken; but not if others may have it.
        if outcome == RELEASED:
            queue.known(self._reply_to).discard(unique_id)

    def _done(self) -> bool:
        """It is not at work any more; returns whether others are."""
        client = self._client
        with client.hub.lock:
            client.requests_at_work -= self._at_work
            self._at_work = False
            return client.requests_at_work > 0

    def reply(self, reply: typing.Any = None, failure: typing.Any = None) -> None:
        """Send the result, or a failure (an exc_info triple), to the caller.

        Does not wait for the outcome; what fails later is logged.

        :raises Exception: it cannot be serialised; its caller gets that as the failure
        """
        if self._observed is not None:
            self._processed(failure[0].__name__ if failure else "")
        if not self._reply_to:
            LOG.debug("no reply to %s: its sender wants none", self.msg_id)
            return
        if self._not_ours("replied to"):
            return
        client = self._client
        compose, id = self._format.reply, self._request_id
        unserialisable = None
        try:
            message = compose(id, reply, failure, client.unique_id())
        except Exception as exc:
            unserialisable = exc
            message = compose(id, None, sys.exc_info(), client.unique_id())
        if client.hub.engaged():
            client.hub.call_inside(functools.partial(self._reply, message))
        else:
            self._reply(message)
        if unserialisable is not None:
            raise unserialisable

    def _reply(self, message: Message) -> None:
        options = self._client.options
        left = self._waited_until - self._client.hub.now()
        # The last one of a batch takes the others' replies with it in one write.
        others = self._done()
        self._post(
            "RPC reply",
            message,
            timeout=max(options.default_reply_timeout, left),
            retries=options.default_reply_retry,
            settled="rpc-reply" in options.pre_settled,
            volatile="rpc-reply-volatile" in options.pre_settled,
            urgent=not others,
        )

    def heartbeat(self) -> None:
        """Tell the caller that its request is being worked on.  Does not block.

        :raises RuntimeError: it is not, any more: oslo.messaging sends heartbeats for
            ever for a request that it finds no method for, until this fails
        """
        if not self._reply_to:
            LOG.warning("no heartbeat for %s: it names no reply address", self.msg_id)
            return
        if self._not_ours("heard of again"):
            return
        if not self._at_work:
            raise RuntimeError(f"request {self.msg_id} is not worked on any more")
        timeout = self.client_timeout or 0
        message = self._format.heartbeat(self._request_id, self._client.unique_id())
        # A stale heartbeat is worse than none: it goes off with the caller's patience.
        message.ttl = timeout or None
        self._post(
            "RPC heartbeat",
            message,
            timeout=timeout,
            retries=0,
            settled=True,
        )

    def _post(
        self,
        what: str,
        message: Message,
        *,
        timeout: float,
        retries: int,
        settled: bool,
        volatile: bool = False,
        urgent: bool = True,
    ) -> None:
        hub = self._client.hub
        assert self._reply_to is not None
        destination = Destination.reply(self._reply_to)

        def post() -> None:
            self._client.post(
                what,
                destination,
                lambda format: message,
                deadline=hub.now() + timeout,
                retries=retries,
                settled=settled,
                volatile=volatile,
                urgent=urgent,
            )

        if hub.foreign():
            hub.run_inside(post)
        else:
            post()


def _forget_work(client: Client) -> None:
    """A request is gone that was not replied to.  Hub's context or lock."""
    client.requests_at_work -= 1
