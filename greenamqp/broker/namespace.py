# SPDX-License-Identifier: Apache-2.0
"""The addresses of one virtual host: what is where, made when it is first named.

What an address is, is found in this order:

1. if it is there already, it is what it is; a terminus that asks for the other kind
   is refused;
2. the terminus's capability ``queue`` or ``topic`` says so;
3. ``openstack.org/om/{rpc,notify}/multicast/...`` is a topic, and the same with
   ``unicast`` or ``anycast`` a queue;
4. one of the prefixes of the settings fits;
5. it is a queue.

``ADDRESS::NAME`` is the queue NAME that is bound to ADDRESS.

No I/O here; see :mod:`greenamqp.broker.store` for the queues.
"""

from __future__ import annotations

import dataclasses
import logging
import typing

from greenamqp import chance
from greenamqp.broker.settings import Settings
from greenamqp.broker.store import Address, Kind, Policy, Queue, Usage

LOG = logging.getLogger(__name__)

# Addresses are made by whoever names them; longer ones are refused. In characters.
MAX_ADDRESS_LENGTH = 4096

# Addresses that the broker makes begin so; nobody else can make one.
DYNAMIC_PREFIX = "greenamqp.dynamic/"

# Addresses without content are forgotten from this many on.
_KEEP_IDLE = 1000

_BOUND = "::"
_ROUTABLE = "openstack.org/om/"
_ROUTABLE_KINDS = {
    "multicast": Kind.TOPIC,
    "unicast": Kind.QUEUE,
    "anycast": Kind.QUEUE,
}


class Refused(Exception):
    """The broker does not do what a peer asked for.

    :ivar condition: the AMQP error condition (part 2, section 2.8.15) or link error
    """

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.condition = condition
        self.description = description


def routable_word(address: str) -> str:
    """What a routable address of oslo.messaging says of itself, "" for others."""
    if not address.startswith(_ROUTABLE):
        return ""
    parts = address.split("/", 4)
    return parts[3] if len(parts) > 3 else ""


def check_address(address: str, settings: Settings) -> None:
    """:raises Refused: if nobody may use this address"""
    if len(address) > MAX_ADDRESS_LENGTH:
        raise Refused(
            "amqp:invalid-field",
            f"the address is longer than {MAX_ADDRESS_LENGTH} characters",
        )
    if settings.refused_prefixes and address.startswith(settings.refused_prefixes):
        raise Refused(
            "amqp:unauthorized-access", f"the address {address} may not be used"
        )


def queue_policy(
    settings: Settings, properties: typing.Mapping[typing.Any, typing.Any] | None
) -> Policy:
    """The policy of a queue that is made, from the settings and the properties of
    the terminus that names it first.

    :raises Refused: if a property has a value that makes no sense
    """
    policy = Policy(
        max_messages=settings.max_queue_messages, max_bytes=settings.max_queue_bytes
    )
    if not properties:
        return policy
    given = {str(key): value for key, value in properties.items()}
    changes: dict[str, typing.Any] = {}
    for key, field, scale in (
        ("x-expires", "expires", 0.001),
        ("x-message-ttl", "message_ttl", 0.001),
        ("x-max-length", "max_length", 1),
    ):
        value = given.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise Refused(
                "amqp:invalid-field", f"{key} must be a number of 0 or more: {value!r}"
            )
        changes[field] = value * scale
    overflow = given.get("x-overflow")
    if overflow is not None:
        if overflow not in ("drop-head", "reject-publish"):
            raise Refused(
                "amqp:invalid-field",
                f"x-overflow must be drop-head or reject-publish: {overflow!r}",
            )
        changes["refuse_newest"] = overflow == "reject-publish"
    return dataclasses.replace(policy, **changes)


class Namespace:
    """The addresses of one virtual host of a broker that stores messages.

    :param reclaim: have all virtual hosts forget addresses that nobody uses
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        usage: Usage,
        clock: typing.Callable[[], float],
        reclaim: typing.Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        #: connections that are open to it
        self.connections = 0
        self.addresses: dict[str, Address] = {}
        self._usage = usage
        self._clock = clock
        self._reclaim = reclaim or self.forget_idle

    # -- finding and making addresses

    def lookup(self, address: str) -> Address | Queue | None:
        """What is at an address, if it is there."""
        found = self.addresses.get(address)
        if found is not None or _BOUND not in address:
            return found
        base, _, name = address.partition(_BOUND)
        node = self.addresses.get(base)
        return node.bound.get(name) if node is not None else None

    def resolve(
        self,
        address: str,
        capabilities: typing.Collection[str] = (),
        properties: typing.Mapping[typing.Any, typing.Any] | None = None,
    ) -> tuple[Address, Queue | None]:
        """What is at an address, made if need be: the address, and the bound queue
        where it names one.

        :raises Refused: if it cannot or must not be there
        """
        check_address(address, self.settings)
        base, bound, name = address.partition(_BOUND)
        if bound and not (base and name):
            raise Refused(
                "amqp:invalid-field", f"{address}: an address and a queue are due"
            )
        node = self._address(base, capabilities, None if bound else properties)
        if not bound:
            return node, None
        queue = node.bound.get(name)
        if queue is None:
            policy = queue_policy(self.settings, properties)
            self._look_for_room()
            queue = node.bind(name, policy)
        return node, queue

    def _address(
        self,
        name: str,
        capabilities: typing.Collection[str],
        properties: typing.Mapping[typing.Any, typing.Any] | None,
    ) -> Address:
        wanted = None
        if "topic" in capabilities:
            wanted = Kind.TOPIC
        elif "queue" in capabilities:
            wanted = Kind.QUEUE
        node = self.addresses.get(name)
        if node is not None:
            if wanted is not None and wanted is not node.kind:
                raise Refused(
                    "amqp:precondition-failed",
                    f"{name} is a {node.kind.value}, not a {wanted.value}",
                )
            return node
        if not name:
            raise Refused("amqp:invalid-field", "the address is empty")
        if name.startswith(DYNAMIC_PREFIX):
            raise Refused("amqp:not-found", f"{name} is gone, and its owner with it")
        kind = wanted or self.kind_of(name)
        if kind is None:
            raise Refused("amqp:not-found", f"there is nothing at {name}")
        policy = queue_policy(self.settings, properties)
        node = self._make(name, kind, policy)
        node.explicit = wanted is not None
        return node

    def _look_for_room(self) -> None:
        """:raises Refused: if there are as many addresses as there may be"""
        usage = self._usage
        if usage.addresses >= self.settings.max_addresses:
            self._reclaim()
        if usage.addresses >= self.settings.max_addresses:
            raise Refused(
                "amqp:resource-limit-exceeded",
                f"there are {self.settings.max_addresses} addresses already",
            )

    def _make(self, name: str, kind: Kind, policy: Policy) -> Address:
        self._look_for_room()
        node = Address(name, kind, policy, self._usage, self._clock)
        self.addresses[name] = node
        self._usage.addresses += 1
        LOG.debug("new %s %s", kind.value, name)
        return node

    def kind_of(self, name: str) -> Kind | None:
        """What an address is that nothing is known of, None if it may not be."""
        settings = self.settings
        if settings.behaviour.listed_only:
            # Like regular expressions without an anchor.
            if any(prefix in name for prefix in settings.queue_prefixes):
                return Kind.QUEUE
            if any(prefix in name for prefix in settings.topic_prefixes):
                return Kind.TOPIC
            return None
        kind = _ROUTABLE_KINDS.get(routable_word(name))
        if kind is not None:
            return kind
        return Kind.TOPIC if name.startswith(settings.topic_prefixes) else Kind.QUEUE

    def make_dynamic(
        self,
        container: str,
        link: str,
        capabilities: typing.Collection[str] = (),
        properties: typing.Mapping[typing.Any, typing.Any] | None = None,
    ) -> Address:
        """An address for a terminus that asked for one.

        Its link is to be made its owner, to go with it, or to leave it to expire.

        :raises Refused: if there are too many addresses
        """
        kind = Kind.TOPIC if "topic" in capabilities else Kind.QUEUE
        policy = queue_policy(self.settings, properties)
        if self.settings.behaviour.listed_only:
            # qpidd names it so, hence equal names share one node.
            name = f"{container}_{link}"
            node = self.addresses.get(name)
            if node is not None:
                return node
        else:
            name = f"{DYNAMIC_PREFIX}{chance.unique()}"
        node = self._make(name, kind, policy)
        node.explicit = True  # nobody but us can make it again
        return node

    # -- the life of addresses

    def delete(self, address: Address) -> None:
        """Forget an address, with all that it holds."""
        if self.addresses.get(address.name) is address:
            del self.addresses[address.name]
            self._usage.addresses -= 1
            LOG.debug("%s %s deleted", address.kind.value, address.name)
        address.delete()

    def maintain(self, now: float) -> None:
        """Drop what is too old: messages, queues, addresses that nobody uses."""
        for address in list(self.addresses.values()):
            if address.expire(now):
                self.delete(address)
        # Where addresses are not made by whoever names them, their being there counts.
        if len(self.addresses) > _KEEP_IDLE and not self.settings.behaviour.listed_only:
            self.forget_idle()

    def forget_idle(self) -> None:
        """Forget addresses that would be the same if they were made anew."""
        for address in list(self.addresses.values()):
            if address.idle:
                self.delete(address)

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost if it were made anew when next named."""
        return not self.connections and all(
            address.idle for address in self.addresses.values()
        )
