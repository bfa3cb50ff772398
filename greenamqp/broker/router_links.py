# SPDX-License-Identifier: Apache-2.0
"""The broker's ends of links, where it passes for a router.

They tie an engine's link to an address; see :mod:`greenamqp.broker.router`.
All methods run in callbacks of an engine, in the broker's thread.
"""

from __future__ import annotations

import typing

from greenamqp.broker import encoding
from greenamqp.broker.links import Endpoint, Incoming, Peer, answer
from greenamqp.broker.namespace import Refused
from greenamqp.broker.router import (
    ACCEPTED,
    LOST,
    RELEASED,
    Result,
    RouterAddress,
    RouterNamespace,
    Transit,
)
from greenamqp.engine import (
    LocalProtocolError,
    Receiver,
    Sender,
    SettleMode,
    capi,
)

_OUTCOMES = {
    "accepted": capi.ACCEPTED,
    "released": capi.RELEASED,
    "modified": capi.MODIFIED,
    "rejected": capi.REJECTED,
}


class RouterReceiver(Endpoint):
    """A link on which the router sends."""

    __slots__ = ("address", "credit", "limit", "namespace", "settled")

    link: Sender

    def __init__(
        self,
        peer: Peer,
        namespace: RouterNamespace,
        link: Sender,
        address: RouterAddress,
    ) -> None:
        super().__init__(peer, link)
        self.namespace = namespace
        self.address = address
        self.credit = 0
        self.limit = link.max_message_size
        self.settled = link.remote_settle_mode is SettleMode.SETTLED
        link.on_credit = self._on_credit
        link.on_drain = self._on_drain
        link.on_settled = self._on_settled
        self.join()
        address.attach_receiver(self)

    def _on_credit(self, link: Sender) -> None:
        self.credit = link.credit
        self.address.ready(self)

    def _on_drain(self, link: Sender) -> None:
        self.credit = 0
        link.drained()

    @property
    def unsettled(self) -> int:
        return self.link.unsettled

    def deliver(self, transit: Transit, data: bytes, settled: bool) -> None:
        if 0 < self.limit < len(data):
            self._refuse(
                transit,
                Result(
                    "rejected",
                    (
                        "amqp:link:message-size-exceeded",
                        f"the receiver takes messages of {self.limit} bytes",
                    ),
                ),
            )
            return
        settled = settled or self.settled
        try:
            self.link.send(data, transit, settled)
        except LocalProtocolError:
            # The peer took its credit back.
            self.credit = 0
            self._refuse(transit, RELEASED)
            return
        self.credit -= 1
        self.peer.touch()
        if settled and not transit.settled:
            transit.outcome(ACCEPTED)

    @staticmethod
    def _refuse(transit: Transit, result: Result) -> None:
        if not transit.settled:
            transit.outcome(result)

    def _on_settled(
        self, link: Sender, transit: Transit, outcome: int, error: typing.Any
    ) -> None:
        if outcome == capi.RELEASED:
            result = RELEASED
        elif outcome == capi.MODIFIED:
            # Whatever the receiver said of the delivery: for a router it has failed.
            result = Result("modified", (True, error["undeliverable"]))
        elif outcome == capi.REJECTED:
            given = (error.condition, error.description) if error else None
            result = Result("rejected", given)
        else:
            result = ACCEPTED
        transit.outcome(result)

    def _gone(self, failed: bool) -> None:
        for transit in self.link.abandon():
            transit.outcome(LOST)
        self.address.detach_receiver(self)
        self.namespace.release(self.address)


class _RouterIncoming(Incoming):
    """A link on which the router receives: what is unsettled counts in its window."""

    __slots__ = ("_open", "namespace")

    def __init__(self, peer: Peer, namespace: RouterNamespace, link: Receiver) -> None:
        super().__init__(peer, link)
        self.namespace = namespace
        # Messages whose outcome is due.
        self._open: dict[typing.Any, Transit] = {}
        link.on_drained = self._on_drained
        link.on_settled = self._on_settled

    def _on_drained(self, link: Receiver, credit: int) -> None:
        self.credit -= credit
        self.top_up()

    def _on_settled(self, link: Receiver, delivery: typing.Any) -> None:
        """Its sender waits for no outcome: it counts in the window no longer."""
        transit = self._open.pop(delivery, None)
        if transit is None:
            return  # it was settled when it was read, though it came unsettled
        transit.settled = True
        link.settle(delivery)
        self.top_up()
        self.peer.touch()

    def top_up(self) -> None:
        self._grant(self.window - len(self._open))

    def give_credit(self) -> None:
        self.top_up()

    def settle(self, token: typing.Any, result: Result) -> None:
        self._open.pop(token, None)
        if self not in self.peer.links:
            return
        detail = result.detail
        if result.name == "modified":
            self.link.settle(
                token, capi.MODIFIED, failed=detail[0], undeliverable=detail[1]
            )
        elif result.name == "rejected" and detail is not None:
            self.link.settle(
                token, capi.REJECTED, condition=detail[0], description=detail[1]
            )
        else:
            self.link.settle(token, _OUTCOMES[result.name])
        self.peer.touch()
        self.top_up()

    def passed(self, token: typing.Any) -> None:
        self.link.settle(token)
        self.top_up()

    def _send(self, address: RouterAddress, delivery: typing.Any, data: bytes) -> None:
        settled = self.link.presettled(delivery)
        transit = address.send(self, delivery, data, settled)
        if transit is not None and transit.open and not settled:
            self._open[delivery] = transit


class RouterSender(_RouterIncoming):
    """A link that sends to one address; it has credit while there is a receiver."""

    __slots__ = ("address",)

    def __init__(
        self,
        peer: Peer,
        namespace: RouterNamespace,
        link: Receiver,
        address: RouterAddress,
    ) -> None:
        super().__init__(peer, namespace, link)
        self.address = address
        self.join()
        address.attach_sender(self)

    def top_up(self) -> None:
        if self.address.reachable:
            super().top_up()

    def receive(self, delivery: typing.Any, data: bytes) -> None:
        self._send(self.address, delivery, data)
        if not self.address.reachable:
            # What was left when the last receiver went stayed with the peer; now it
            # has used some of it in vain, and is not to go on with the rest.
            self.link.drain()
            self.peer.touch()

    def _gone(self, failed: bool) -> None:
        self.address.detach_sender(self)
        self.namespace.release(self.address)


class AnonymousRouterSender(_RouterIncoming):
    """A link that sends to the address that each message names."""

    __slots__ = ()

    def receive(self, delivery: typing.Any, data: bytes) -> None:
        name = encoding.address(data)
        if name is None:
            self.link.settle(
                delivery,
                capi.REJECTED,
                condition="amqp:precondition-failed",
                description="there is no 'to'",
            )
        elif (address := self.namespace.lookup(name)) is not None:
            self._send(address, delivery, data)
            return
        else:
            self.link.settle(delivery, capi.RELEASED)
        self.top_up()

    def _gone(self, failed: bool) -> None:
        """What it sent is on its way."""


def attach(peer: Peer, namespace: RouterNamespace, link: typing.Any) -> None:
    """Accept a link that the peer asked for.

    :raises Refused: if it cannot be
    """
    if link.is_sender:
        _attach_receiver(peer, namespace, link)
    else:
        _attach_sender(peer, namespace, link)


def _attach_receiver(peer: Peer, namespace: RouterNamespace, link: Sender) -> None:
    source = link.remote_source
    if source.dynamic:
        address = namespace.make_dynamic()
    elif source.address is None:
        raise Refused("amqp:invalid-field", "the source has no address")
    else:
        address = namespace.resolve(source.address)
    link.accept(source=answer(source, address.name, source.dynamic))
    RouterReceiver(peer, namespace, link, address)


def _attach_sender(peer: Peer, namespace: RouterNamespace, link: Receiver) -> None:
    target = link.remote_target
    if link.is_coordinator:
        raise Refused("amqp:not-implemented", "there are no transactions")
    if target.dynamic:
        raise Refused("amqp:not-implemented", "there are no dynamic targets")
    if target.address is None:
        link.accept()
        sender = AnonymousRouterSender(peer, namespace, link)
        sender.join()
        sender.top_up()
    else:
        address = namespace.resolve(target.address)
        link.accept()
        RouterSender(peer, namespace, link, address)
