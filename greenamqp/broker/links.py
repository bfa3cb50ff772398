# SPDX-License-Identifier: Apache-2.0
"""The broker's ends of links, where it stores messages: consumers and producers.

They tie an engine's link to a queue or address; see :mod:`greenamqp.broker.store`.
All methods run in callbacks of an engine, in the broker's thread.
"""

from __future__ import annotations

import dataclasses
import logging
import typing

from greenamqp.broker import encoding
from greenamqp.broker.namespace import DYNAMIC_PREFIX, Namespace, Refused
from greenamqp.broker.settings import Settings
from greenamqp.broker.store import Address, BoundTarget, Entry, Outcome, Queue
from greenamqp.engine import (
    ACCEPTED,
    EXPIRE_NEVER,
    EXPIRE_WITH_LINK,
    MODIFIED,
    REJECTED,
    RELEASED,
    LocalProtocolError,
    Receiver,
    RemoteError,
    Sender,
    SettleMode,
    Terminus,
)
from greenamqp.engine.sasl import AcceptedConnection

LOG = logging.getLogger(__name__)

# A receiver with much credit gets a long queue in portions of this many bytes, each
# when the one before is written: so a large queue blocks nobody else, and a receiver
# that does not read its socket holds no more of it than this.
PORTION = 256 * 1024


class Core(typing.Protocol):
    """What links need of their broker."""

    settings: Settings


class Peer(typing.Protocol):
    """What links need of the connection that they are on."""

    name: str
    engine: AcceptedConnection
    links: dict[Endpoint, None]
    touch: typing.Callable[[], None]

    @property
    def core(self) -> Core:
        """The broker."""

    def stall(self, consumer: Consumer) -> None:
        """`consumer` goes on when what it was given is written."""


class Endpoint:
    """The broker's end of a link."""

    __slots__ = ("link", "peer")

    def __init__(self, peer: Peer, link: typing.Any) -> None:
        self.peer = peer
        self.link = link

    def join(self) -> None:
        """It is complete: it counts among its connection's links from now on."""
        self.link.on_detached = self._detached
        self.peer.links[self] = None

    def _detached(self, link: typing.Any, error: RemoteError | None) -> None:
        self.gone(failed=self.peer.engine.failed is not None)

    def gone(self, failed: bool) -> None:
        """The link is no more; `failed` if its connection broke.  Idempotent."""
        if self in self.peer.links:
            del self.peer.links[self]
            self._gone(failed)

    def _gone(self, failed: bool) -> None:
        raise NotImplementedError

    def detach(self, condition: str, description: str) -> None:
        """End the link because the peer broke a rule."""
        LOG.warning("%s: link %s: %s", self.peer.name, self.link.name, description)
        self.link.close(condition, description)
        self.gone(failed=False)


class Consumer(Endpoint):
    """A link on which the broker sends: a consumer of a queue."""

    __slots__ = (
        "address",
        "credit",
        "draining",
        "limit",
        "listed",
        "namespace",
        "queue",
        "settled",
        "stalled",
    )

    link: Sender

    def __init__(
        self,
        peer: Peer,
        namespace: Namespace,
        link: Sender,
        address: Address,
        bound: Queue | None,
    ) -> None:
        super().__init__(peer, link)
        self.namespace = namespace
        self.address = address
        self.credit = 0
        self.listed = False
        self.stalled = False
        self.draining = False
        self.limit = link.max_message_size
        self.settled = link.remote_settle_mode is SettleMode.SETTLED
        if bound is None:
            self.queue = address.subscribe(self)
        else:
            self.queue = bound
            bound.subscribe(self)
        link.on_credit = self._on_credit
        link.on_drain = self._on_drain
        link.on_settled = self._on_settled
        self.join()

    def _on_credit(self, link: Sender) -> None:
        self.credit = link.credit
        if not self.listed and not self.stalled:
            self.queue.ready(self)

    def _on_drain(self, link: Sender) -> None:
        self.draining = self.stalled
        if not self.stalled:
            # What there was is on its way: give back the credit that is left.
            self.credit = 0
            self.queue.not_ready(self)
            link.drained()

    def go_on(self) -> None:
        """What it was given is written."""
        self.stalled = False
        if self not in self.peer.links:
            return
        self.credit = self.link.credit
        if self.credit > 0:
            self.queue.ready(self)
        if self.draining:
            self._on_drain(self.link)

    def deliver(self, entry: Entry, data: bytes) -> bool:
        size = len(data)
        if 0 < self.limit < size:
            LOG.warning(
                "%s: link %s takes messages of %d bytes: one of %d bytes in %s waits"
                " for another consumer",
                self.peer.name,
                self.link.name,
                self.limit,
                size,
                self.queue.name,
            )
            self.queue.give_back(entry, failed=False, excluded=self)
            return True
        try:
            self.link.send(data, entry, self.settled)
        except LocalProtocolError:
            # The peer took its credit back.
            self.credit = 0
            self.queue.give_back(entry, failed=False)
            return False
        peer = self.peer
        peer.touch()
        if self.settled:
            self.queue.done(entry)
        self.credit = credit = self.credit - 1
        engine = peer.engine
        engine.unwritten += size
        if credit <= 0:
            return False
        if engine.unwritten > PORTION:
            self.stalled = True
            peer.stall(self)
            return False
        return True

    def _on_settled(
        self, link: Sender, entry: Entry, outcome: int, error: typing.Any
    ) -> None:
        queue = entry.queue
        if outcome == ACCEPTED:
            queue.done(entry)
        elif outcome == RELEASED:
            queue.give_back(entry, failed=False)
        elif outcome == MODIFIED:
            queue.give_back(
                entry,
                failed=error["failed"],
                excluded=self if error["undeliverable"] else None,
            )
        else:
            # REJECTED; or settled without an outcome, which says nothing better.
            LOG.debug(
                "%s: a message of %s was rejected: %s",
                self.peer.name,
                queue.name,
                error,
            )
            queue.done(entry)

    def _gone(self, failed: bool) -> None:
        entries = self.link.abandon()
        self.address.unsubscribe(self, self.queue)
        for entry in entries:
            self.queue.give_back(entry, failed=failed)
        if self.address.owner is self:
            self.address.owner = None
            if self.queue.policy.expires is None or self.link.closed_by_peer:
                self.namespace.delete(self.address)


def _settle(link: Receiver, delivery: typing.Any, outcome: Outcome) -> None:
    """Tell a sender what became of its message."""
    if outcome is Outcome.ACCEPTED:
        link.settle(delivery)
    elif outcome in (Outcome.FULL, Outcome.GONE):
        link.settle(delivery, RELEASED)
    else:
        link.settle(
            delivery,
            REJECTED,
            condition="amqp:resource-limit-exceeded",
            description="the queue is as long as its policy allows",
        )


class Incoming(Endpoint):
    """A link on which the broker receives, and its credit.

    The peer has `window` credits at most, fewer where there is less room, and gets
    more when it has used half of them.
    """

    __slots__ = ("credit", "low", "window")

    link: Receiver

    def __init__(self, peer: Peer, link: Receiver) -> None:
        super().__init__(peer, link)
        self.window = peer.core.settings.behaviour.credit
        self.low = self.window // 2
        self.credit = 0
        link.on_message = self._on_message
        link.on_aborted = self._on_aborted

    def _on_message(
        self, link: Receiver, delivery: typing.Any, data: memoryview
    ) -> None:
        self.credit -= 1
        if self.credit < 0:
            self.detach(
                "amqp:link:transfer-limit-exceeded", "a message came without credit"
            )
            return
        try:
            self.receive(delivery, bytes(data))
        except encoding.Malformed as exc:
            LOG.warning("%s: link %s: %s", self.peer.name, link.name, exc)
            link.settle(
                delivery,
                REJECTED,
                condition="amqp:decode-error",
                description=str(exc),
            )
        if self.credit <= self.low:
            self.top_up()

    def _on_aborted(self, link: Receiver) -> None:
        self.credit -= 1
        self.top_up()

    def receive(self, delivery: typing.Any, data: bytes) -> None:
        """Take a message in."""
        raise NotImplementedError

    def top_up(self) -> None:
        """Give as much credit as there is room for."""
        self._grant(self.window)

    def _grant(self, room: int) -> None:
        more = min(self.window, room) - self.credit
        if more > 0:
            self.credit += more
            self.link.flow(more)
            self.peer.touch()


class Producer(Incoming):
    """A link that sends to one address."""

    __slots__ = ("namespace", "target")

    def __init__(
        self,
        peer: Peer,
        namespace: Namespace,
        link: Receiver,
        target: Address | BoundTarget,
    ) -> None:
        super().__init__(peer, link)
        self.namespace = namespace
        self.target = target
        self._address.senders += 1
        self.join()

    @property
    def _address(self) -> Address:
        target = self.target
        return target.address if isinstance(target, BoundTarget) else target

    def receive(self, delivery: typing.Any, data: bytes) -> None:
        _settle(self.link, delivery, self.target.send(data))

    def top_up(self) -> None:
        room = self.target.room()
        if room > 0:
            self._grant(room)
        else:
            self._address.when_room(self.top_up)

    def _gone(self, failed: bool) -> None:
        address = self._address
        address.senders -= 1
        address.forget(self.top_up)
        if address.owner is self:
            self.namespace.delete(address)


class AnonymousProducer(Incoming):
    """A link that sends to the address that each message names."""

    __slots__ = ("namespace",)

    def __init__(self, peer: Peer, namespace: Namespace, link: Receiver) -> None:
        super().__init__(peer, link)
        self.namespace = namespace
        self.join()

    def receive(self, delivery: typing.Any, data: bytes) -> None:
        name = encoding.address(data)
        namespace = self.namespace
        target: Address | BoundTarget | None = None
        if name is not None:
            target = namespace.addresses.get(name)
        if target is None:
            if namespace.settings.behaviour.listed_only:
                # qpidd accepts all, and drops what has no place to go.
                self.link.settle(delivery)
                return
            if name is None:
                self._refuse(delivery, "amqp:precondition-failed", "there is no 'to'")
                return
            try:
                address, queue = namespace.resolve(name)
            except Refused as exc:
                if exc.condition == "amqp:not-found":
                    # Nobody is there, as far as we know: not the message's fault.
                    self.link.settle(delivery, RELEASED)
                else:
                    self._refuse(delivery, exc.condition, exc.description)
                return
            target = address if queue is None else BoundTarget(address, queue)
        outcome = target.send(data) if target.room() > 0 else Outcome.FULL
        _settle(self.link, delivery, outcome)

    def _refuse(self, delivery: typing.Any, condition: str, reason: str) -> None:
        self.link.settle(delivery, REJECTED, condition=condition, description=reason)

    def _gone(self, failed: bool) -> None:
        pass


def answer(asked: Terminus, address: str | None, dynamic: bool = False) -> Terminus:
    """The terminus that there is, as the answer to the one asked for."""
    return dataclasses.replace(
        asked.echo(),
        address=address,
        dynamic=dynamic,
        # There is no browsing, so the answer does not promise it.
        distribution_mode=Terminus().distribution_mode,
    )


def attach(peer: Peer, namespace: Namespace, link: typing.Any) -> None:
    """Accept a link that the peer asked for.

    :raises Refused: if it cannot be
    """
    if link.is_sender:
        _attach_consumer(peer, namespace, link)
    else:
        _attach_producer(peer, namespace, link)


def _attach_consumer(peer: Peer, namespace: Namespace, link: Sender) -> None:
    source = link.remote_source
    bound: Queue | None = None
    if source.dynamic:
        address = _dynamic(peer, namespace, link, source)
    elif source.address is None:
        raise Refused("amqp:invalid-field", "the source has no address")
    else:
        address, bound = _resolve_source(namespace, source, _properties(link, source))
        owner = address.owner
        if isinstance(owner, Endpoint) and owner.peer is not peer:
            if not source.timeout:
                raise Refused(
                    "amqp:resource-locked",
                    f"{address.name} belongs to another connection",
                )
            # Who made it is back, before we know that its connection is lost.
            address.owner = None
            owner.detach("amqp:link:stolen", f"{address.name} has a new receiver")
    name = source.address or address.name
    link.accept(source=answer(source, name, source.dynamic))
    consumer = Consumer(peer, namespace, link, address, bound)
    made_for_one = source.dynamic or address.name.startswith(DYNAMIC_PREFIX)
    if made_for_one and address.owner is None:
        address.owner = consumer


def _properties(
    link: typing.Any, terminus: Terminus
) -> dict[typing.Any, typing.Any] | None:
    """What a peer wants of the queue, if it is to be made: it may say so in the
    terminus's dynamic-node-properties or in the link's properties."""
    of_link = link.remote_properties
    if not isinstance(of_link, dict) or not of_link:
        return terminus.node_properties
    return {**(terminus.node_properties or {}), **of_link}


def _resolve_source(
    namespace: Namespace,
    source: Terminus,
    properties: typing.Mapping[typing.Any, typing.Any] | None,
) -> tuple[Address, Queue | None]:
    """The address and the bound queue that a source names.

    How long a bound queue lives is for the receiver that makes it to say.
    """
    assert source.address is not None
    is_new = namespace.lookup(source.address) is None
    address, bound = namespace.resolve(source.address, source.capabilities, properties)
    if bound is None:
        return address, None
    if source.expiry_policy == EXPIRE_NEVER:
        bound.auto_delete = False
    elif source.expiry_policy == EXPIRE_WITH_LINK:
        # Also of one that was to stay: it is not wanted any more.
        bound.auto_delete = True
    elif is_new and bound.policy.expires is None:
        if source.timeout:
            bound.policy = dataclasses.replace(bound.policy, expires=source.timeout)
        else:
            bound.auto_delete = True
    return address, bound


def _dynamic(
    peer: Peer, namespace: Namespace, link: typing.Any, terminus: Terminus
) -> Address:
    """A new address, which lasts for the terminus's timeout when its link goes with the
    connection, and not when it is closed (part 3, section 3.5.3)."""
    properties = _properties(link, terminus)
    if terminus.timeout:
        properties = {"x-expires": terminus.timeout * 1000, **(properties or {})}
    return namespace.make_dynamic(
        peer.engine.remote_container or "",
        link.name,
        terminus.capabilities,
        properties,
    )


def _attach_producer(peer: Peer, namespace: Namespace, link: Receiver) -> None:
    target = link.remote_target
    limit = peer.core.settings.max_message_size
    if link.is_coordinator:
        raise Refused("amqp:not-implemented", "there are no transactions")
    if target.dynamic:
        address = _dynamic(peer, namespace, link, target)
        link.accept(target=answer(target, address.name, True), max_message_size=limit)
        producer = Producer(peer, namespace, link, address)
        if address.owner is None:
            address.owner = producer
        producer.top_up()
    elif target.address is None:
        link.accept(max_message_size=limit)
        AnonymousProducer(peer, namespace, link).top_up()
    else:
        address, bound = namespace.resolve(
            target.address, target.capabilities, _properties(link, target)
        )
        link.accept(max_message_size=limit)
        node = address if bound is None else BoundTarget(address, bound)
        Producer(peer, namespace, link, node).top_up()
