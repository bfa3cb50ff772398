# SPDX-License-Identifier: Apache-2.0
"""What the broker does where it passes for a router: nothing is stored.  No I/O.

A message goes from a sender's link straight to a receiver's, and the receiver's
outcome goes back to the sender: settlement is end to end.  A sender gets credit only
while there is a receiver; what is left of it when the last receiver goes stays, until
the sender's next message, for nobody, has its link drained.

Which receiver gets a message is decided when it comes, whoever has credit: by the
:class:`Distribution` of its address.  For the credit of that one it then waits, though
others have some, and though its sender leaves; it comes back only if the receiver
leaves.  What is unsettled is counted in its sender's window.  What is settled waits as
well, but when BACKLOG messages wait for a receiver already, those of them that are
settled are dropped, but for the first.

Of several outcomes of a multicast message the first of rejected, accepted, modified and
released that any receiver gave goes to the sender.

All of it belongs to one thread: see :class:`greenamqp.broker.Broker`.
"""

from __future__ import annotations

import base64
import collections
import enum
import logging
import typing

from greenamqp import chance
from greenamqp.broker.namespace import (
    Refused,
    check_address,
    routable_word,
)
from greenamqp.broker.settings import Settings
from greenamqp.broker.store import Usage

LOG = logging.getLogger(__name__)

_TEMPORARY = "amqp:/_topo/0/"

# Messages that may wait for a receiver before settled ones are dropped, and that a
# balanced address gives a receiver before all others are as busy.
BACKLOG = 250


class Distribution(enum.Enum):
    """Which receivers of an address get a message."""

    #: in turn; those of this router, if it has any
    CLOSEST = enum.auto()
    #: whoever has the fewest that wait for it or for its outcome
    BALANCED = enum.auto()
    #: all, and the sender hears one outcome
    MULTICAST = enum.auto()


_ROUTABLE = {
    "unicast": Distribution.CLOSEST,
    "anycast": Distribution.BALANCED,
    "multicast": Distribution.MULTICAST,
}


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
_RANK = {"rejected": 0, "accepted": 1, "modified": 2, "released": 3}


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

    @property
    def unsettled(self) -> int:
        """Messages that it has, and gave no outcome of."""

    def deliver(self, transit: Transit, data: bytes, settled: bool) -> None:
        """Send the message; its outcome goes to Transit.outcome.  Costs a credit."""


class Transit:
    """A message on its way."""

    __slots__ = ("best", "data", "multicast", "open", "sender", "settled", "token")

    def __init__(
        self,
        sender: Sender,
        token: typing.Any,
        data: bytes,
        settled: bool,
        multicast: bool,
        receivers: int,
    ) -> None:
        self.sender = sender
        self.token = token
        self.data = data
        self.settled = settled
        self.multicast = multicast
        self.open = receivers  # whose outcome is due
        self.best: Result | None = None

    def outcome(self, result: Result) -> None:
        """What one receiver made of it."""
        if self.multicast and result.name == "rejected":
            result = Result("rejected")  # nobody is told why
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
        distribution: Distribution,
        on_receivers: typing.Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.distribution = distribution
        self._on_receivers = on_receivers
        #: the next one first, with what waits for its credit
        self.receivers: dict[Receiver, collections.deque[Transit]] = {}
        #: the receivers that another router has, as one
        self.beyond: Receiver | None = None
        self.senders: dict[Sender, None] = {}

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
        """`sender` is gone; what it sent is not."""
        self.senders.pop(sender, None)

    def send(
        self,
        sender: Sender,
        token: typing.Any,
        data: bytes,
        settled: bool,
        farther: bool = True,
    ) -> Transit | None:
        """Pass a message on; the sender hears of its outcome, now or later.

        :param farther: whether it may go to another router; if not, it came from there
        :return: None: there is no receiver
        """
        takers = self._takers(self.beyond if farther else None)
        if not takers:
            if settled:
                sender.passed(token)
            else:
                sender.settle(token, RELEASED)
            return None
        multicast = self.distribution is Distribution.MULTICAST
        transit = Transit(sender, token, data, settled, multicast, len(takers))
        for receiver in takers:
            self._give(receiver, transit)
        if settled:
            sender.passed(token)
        return transit

    def _takers(self, beyond: Receiver | None) -> list[Receiver]:
        """Who gets the next message."""
        own = list(self.receivers)
        others = [] if beyond is None else [beyond]
        if self.distribution is Distribution.MULTICAST:
            return others + own
        if not own:
            return others
        if self.distribution is Distribution.CLOSEST:
            self._rotate()
            return own[:1]
        load = {each: self._load(each) for each in own}
        if beyond is not None:
            load[beyond] = beyond.unsettled + 1  # it is farther away
        idlest = min(load, key=lambda each: load[each])
        if load[idlest] == 0:
            self._rotate()
        return [idlest]

    def _rotate(self) -> None:
        """Another receiver is the next one."""
        first = next(iter(self.receivers))
        self.receivers[first] = self.receivers.pop(first)

    def _load(self, receiver: Receiver) -> int:
        """What waits for a receiver, or for an outcome from it."""
        return receiver.unsettled + len(self.receivers[receiver])

    def _give(self, receiver: Receiver, transit: Transit) -> None:
        backlog = self.receivers.get(receiver)
        if backlog is None or (receiver.credit > 0 and not backlog):
            receiver.deliver(transit, transit.data, transit.settled)
            return
        if transit.settled and len(backlog) >= BACKLOG:
            first = backlog.popleft()
            kept = [each for each in backlog if not each.settled]
            backlog.clear()
            backlog.extend([first, *kept])
        backlog.append(transit)

    # -- receivers

    def attach_receiver(self, receiver: Receiver) -> None:
        """`receiver` gets messages once it has credit: `ready`."""
        first = not self.receivers
        self.receivers[receiver] = collections.deque()
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
        """`receiver` is gone, and has given all outcomes that there will be."""
        for transit in self.receivers[receiver]:
            transit.outcome(RELEASED)
        # Not before: each outcome brings credit, also the last one.
        del self.receivers[receiver]
        if not self.receivers and self._on_receivers is not None:
            self._on_receivers(self.name)

    def ready(self, receiver: Receiver) -> None:
        """`receiver` has credit."""
        backlog = self.receivers[receiver]
        while backlog and receiver.credit > 0:
            transit = backlog.popleft()
            receiver.deliver(transit, transit.data, transit.settled)


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
        return self._make(name, self._distribution(name))

    def _distribution(self, name: str) -> Distribution:
        word = routable_word(name)
        if word in _ROUTABLE:
            return _ROUTABLE[word]
        if name.startswith(self.settings.topic_prefixes):
            return Distribution.MULTICAST
        if name.startswith(self.settings.queue_prefixes):
            return Distribution.CLOSEST
        return Distribution.BALANCED

    def make_dynamic(self) -> RouterAddress:
        """A temporary address, which goes with its receiver."""
        unique = bytes.fromhex(chance.unique())
        coded = base64.b64encode(unique, altchars=b"+_").decode()
        name = f"{_TEMPORARY}{self._router_id}/temp.{coded[:15]}"
        return self._make(name, Distribution.CLOSEST)

    def _make(self, name: str, distribution: Distribution) -> RouterAddress:
        if self._usage.addresses >= self.settings.max_addresses:
            raise Refused(
                "amqp:resource-limit-exceeded",
                f"there are {self.settings.max_addresses} addresses already",
            )
        address = RouterAddress(name, distribution, self._on_receivers)
        self.addresses[name] = address
        self._usage.addresses += 1
        return address

    def release(self, address: RouterAddress) -> None:
        """Somebody detached: an address that nobody is attached to is no more."""
        if not address.reachable and not address.senders:
            if self.addresses.get(address.name) is address:
                del self.addresses[address.name]
                self._usage.addresses -= 1

    def forget_idle(self) -> None:
        """What nobody is attached to is forgotten already."""

    def maintain(self, now: float) -> None:
        """Nothing is kept, so nothing grows old."""

    @property
    def idle(self) -> bool:
        """Whether nobody uses it."""
        return not self.connections and not self.addresses
