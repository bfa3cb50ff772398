# SPDX-License-Identifier: Apache-2.0
"""What the broker does where it passes for a router: nothing is stored.  No I/O.

A message goes from a sender's link straight to a receiver's, and the receiver's
outcome goes back to the sender: settlement is end to end.  A sender gets credit only
while there is a receiver; what is left of it when the last receiver goes stays, until
the sender's next message, for nobody, has its link drained.  An unsettled message that
finds receivers but none with credit waits, and is counted in its sender's window; a
settled one is dropped.

An address is either *multicast* (each receiver gets a copy, and the sender hears one
outcome for all) or not (one receiver gets the message, in turn).  Of several outcomes
of a multicast message the first of accepted, modified, rejected and released that any
receiver gave goes to the sender.

All of it belongs to one thread: see :class:`greenamqp.broker.Broker`.
"""

from __future__ import annotations

import base64
import collections
import logging
import typing

from greenamqp import chance
from greenamqp.broker.namespace import (
    Refused,
    check_address,
    routable_kind,
)
from greenamqp.broker.settings import Settings
from greenamqp.broker.store import Kind, Usage

LOG = logging.getLogger(__name__)

_TEMPORARY = "amqp:/_topo/0/"


def is_temporary(name: str) -> bool:
    """Whether an address is one that a router made, which names that router."""
    return name.startswith(_TEMPORARY)


class Result(typing.NamedTuple):
    """An outcome that a receiver gave: its name, and what goes with it.

    ``detail`` is (failed, undeliverable here) with "modified", (condition,
    description) or None with "rejected", else None.
    """

    name: str
    detail: typing.Any = None


ACCEPTED = Result("accepted")
RELEASED = Result("released")
#: to the sender, where the receiver went away before it gave an outcome
LOST = Result("modified", (True, False))

# Which outcome of several a sender hears.
_RANK = {"accepted": 0, "modified": 1, "rejected": 2, "released": 3}


class Sender(typing.Protocol):
    """Whose messages come in."""

    def give_credit(self) -> None:
        """There is a receiver: fill the window."""

    def settle(self, token: typing.Any, result: Result) -> None:
        """The outcome of the message `token`; its place in the window is free."""

    def passed(self, token: typing.Any) -> None:
        """A settled message is gone, or dropped; its place in the window is free."""


class Receiver(typing.Protocol):
    """Who gets messages."""

    credit: int
    #: kept by the address: whether it waits among those that have credit
    listed: bool

    def deliver(self, transit: Transit, data: bytes, settled: bool) -> None:
        """Send the message; its outcome goes to Transit.outcome.  Costs a credit."""


class Transit:
    """A message on its way."""

    __slots__ = ("best", "data", "open", "sender", "settled", "token")

    def __init__(
        self, sender: Sender, token: typing.Any, data: bytes, settled: bool
    ) -> None:
        self.sender = sender
        self.token = token
        self.data = data
        self.settled = settled
        self.open = 1  # receivers whose outcome is due
        self.best: Result | None = None

    def outcome(self, result: Result) -> None:
        """What one receiver made of it."""
        best = self.best
        if best is None or _RANK[result.name] < _RANK[best.name]:
            self.best = best = result
        self.open -= 1
        if self.open == 0 and not self.settled:
            self.sender.settle(self.token, best)


class RouterAddress:
    """An address of a router: its receivers, and the senders that wait for one.

    :param on_receivers: called when there are receivers, and when there are none
    """

    def __init__(
        self,
        name: str,
        multicast: bool,
        on_receivers: typing.Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.multicast = multicast
        self._on_receivers = on_receivers
        self.receivers: list[Receiver] = []
        #: the receivers that another router has, as one
        self.beyond: Receiver | None = None
        self.senders: dict[Sender, None] = {}
        self._ready: collections.deque[Receiver] = collections.deque()
        # Messages that wait for credit: of all receivers, or, multicast, of one each.
        self._pending: collections.deque[Transit] = collections.deque()
        self._backlog: dict[Receiver, collections.deque[Transit]] = {}

    def __repr__(self) -> str:
        return f"<RouterAddress {self.name!r}>"

    @property
    def reachable(self) -> bool:
        """Whether there are receivers, as far as is known."""
        return bool(self.receivers) or self.beyond is not None

    # -- senders

    def attach_sender(self, sender: Sender) -> None:
        """`sender` names this address; it gets credit while there are receivers."""
        self.senders[sender] = None
        if self.reachable:
            sender.give_credit()

    def detach_sender(self, sender: Sender) -> None:
        """`sender` is gone, and what it sent that nobody has yet."""
        self.senders.pop(sender, None)
        self.drop(sender)

    def drop(self, sender: Sender) -> None:
        """Forget what `sender` sent and no receiver has."""
        for waiting in (self._pending, *self._backlog.values()):
            if waiting:
                kept = [transit for transit in waiting if transit.sender is not sender]
                waiting.clear()
                waiting.extend(kept)

    def send(
        self,
        sender: Sender,
        token: typing.Any,
        data: bytes,
        settled: bool,
        farther: bool = True,
    ) -> None:
        """Pass a message on; the sender hears of its outcome, now or later.

        :param farther: whether it may go to another router; if not, it came from there
        """
        beyond = self.beyond if farther else None
        if not self.receivers and beyond is None:
            if settled:
                sender.passed(token)
            else:
                sender.settle(token, RELEASED)
            return
        transit = Transit(sender, token, data, settled)
        if self.multicast:
            self._multicast(transit, beyond)
        elif not self.receivers:
            assert beyond is not None
            self._deliver(beyond, transit)
        elif self._ready:
            receiver = self._ready.popleft()
            self._deliver(receiver, transit)
            if receiver.credit > 0:
                self._ready.append(receiver)
            else:
                receiver.listed = False
        elif not settled:
            self._pending.append(transit)
            return
        if settled:
            sender.passed(token)

    def _multicast(self, transit: Transit, beyond: Receiver | None) -> None:
        transit.open = len(self.receivers) + (beyond is not None)
        if beyond is not None:
            self._deliver(beyond, transit)
        for receiver in list(self.receivers):
            if receiver.credit > 0 and not self._backlog[receiver]:
                self._deliver(receiver, transit)
            elif not transit.settled:
                self._backlog[receiver].append(transit)

    @staticmethod
    def _deliver(receiver: Receiver, transit: Transit) -> None:
        receiver.deliver(transit, transit.data, transit.settled)

    # -- receivers

    def attach_receiver(self, receiver: Receiver) -> None:
        """`receiver` gets messages once it has credit: `ready`."""
        receiver.listed = False
        first = not self.receivers
        self.receivers.append(receiver)
        if self.multicast:
            self._backlog[receiver] = collections.deque()
        if first:
            self._give_credit()
            if self._on_receivers is not None:
                self._on_receivers(self.name)

    def _give_credit(self) -> None:
        for sender in list(self.senders):
            sender.give_credit()

    def set_beyond(self, receiver: Receiver | None) -> None:
        """Another router has receivers, or has none any more."""
        self.beyond = receiver
        if receiver is not None:
            self._give_credit()

    def detach_receiver(self, receiver: Receiver) -> None:
        """`receiver` is gone; who it had messages of hears from its link."""
        self.receivers.remove(receiver)
        if receiver.listed:
            receiver.listed = False
            self._ready.remove(receiver)
        for transit in self._backlog.pop(receiver, ()):
            transit.outcome(RELEASED)
        if not self.receivers:
            pending, self._pending = self._pending, collections.deque()
            for transit in pending:
                transit.outcome(RELEASED)
            if self._on_receivers is not None:
                self._on_receivers(self.name)

    def ready(self, receiver: Receiver) -> None:
        """`receiver` has credit."""
        if self.multicast:
            backlog = self._backlog[receiver]
            while backlog and receiver.credit > 0:
                self._deliver(receiver, backlog.popleft())
            return
        while self._pending and receiver.credit > 0:
            self._deliver(receiver, self._pending.popleft())
        if receiver.credit > 0 and not receiver.listed:
            receiver.listed = True
            self._ready.append(receiver)

    def not_ready(self, receiver: Receiver) -> None:
        """`receiver` has no credit any more."""
        if receiver.listed:
            receiver.listed = False
            self._ready.remove(receiver)


class RouterNamespace:
    """The addresses of one virtual host of a router.

    :param on_receivers: called with the name of an address that has its first
        receiver, and when the last one is gone
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        router_id: str,
        usage: Usage,
        on_receivers: typing.Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self._usage = usage
        self.settings = settings
        self.connections = 0
        self.addresses: dict[str, RouterAddress] = {}
        self._router_id = router_id
        self._on_receivers = on_receivers

    def lookup(self, name: str) -> RouterAddress | None:
        """The address, if anybody is attached to it."""
        return self.addresses.get(name)

    def resolve(self, name: str) -> RouterAddress:
        """The address, made if need be.

        :raises Refused: if nobody may use it
        """
        found = self.addresses.get(name)
        if found is not None:
            return found
        check_address(name, self.settings)
        if not name:
            raise Refused("amqp:invalid-field", "the address is empty")
        kind = routable_kind(name)
        multicast = kind is Kind.TOPIC or (
            kind is None and name.startswith(self.settings.topic_prefixes)
        )
        return self._make(name, multicast)

    def make_dynamic(self) -> RouterAddress:
        """A temporary address, which goes with its receiver."""
        unique = bytes.fromhex(chance.unique())
        coded = base64.b64encode(unique, altchars=b"+_").decode().rstrip("=")
        name = f"{_TEMPORARY}{self._router_id}/temp.{coded}"
        return self._make(name, False)

    def _make(self, name: str, multicast: bool) -> RouterAddress:
        if self._usage.addresses >= self.settings.max_addresses:
            raise Refused(
                "amqp:resource-limit-exceeded",
                f"there are {self.settings.max_addresses} addresses already",
            )
        address = RouterAddress(name, multicast, self._on_receivers)
        self.addresses[name] = address
        self._usage.addresses += 1
        return address

    def release(self, address: RouterAddress) -> None:
        """Somebody detached: an address that nobody is attached to is no more."""
        if not address.reachable and not address.senders:
            if self.addresses.get(address.name) is address:
                del self.addresses[address.name]
                self._usage.addresses -= 1

    def drop(self, sender: Sender) -> None:
        """A sender to any address is gone, and what it sent that nobody has yet."""
        for address in self.addresses.values():
            address.drop(sender)

    def forget_idle(self) -> None:
        """What nobody is attached to is forgotten already."""

    def maintain(self, now: float) -> None:
        """Nothing is kept, so nothing grows old."""

    @property
    def idle(self) -> bool:
        """Whether nobody uses it."""
        return not self.connections and not self.addresses
