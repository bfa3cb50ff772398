# SPDX-License-Identifier: Apache-2.0
"""What every bus has: who it is, nodes, and a family of addresses that makes them."""

from __future__ import annotations

import abc
import dataclasses
import enum
import typing

from oslo_messaging import Target

from greenamqp.buses.format import Format
from greenamqp.buses.management import Declarations, Management
from greenamqp.buses.predecessor import PREDECESSOR
from greenamqp.engine import EXPIRE_NEVER, RemoteError, Terminus
from greenamqp.policy import Policies


class Service(enum.StrEnum):
    """The two kinds of traffic, which some buses keep apart.

    Strings, as they are part of a key that is looked up for each message: members of
    a plain Enum are hashed by a function in Python.
    """

    RPC = "rpc"
    NOTIFY = "notify"


class Precedence(enum.Enum):
    """For how long a link that receives goes before those that a host which was left as
    it was silent may still have: messages that such a one is given are stuck."""

    #: It does not.
    NEVER = enum.auto()
    #: Until the bus has given that host up: others receive as well, who are to have
    #: their share.
    BRIEFLY = enum.auto()
    #: For good: nobody else is to receive.
    ALWAYS = enum.auto()


@dataclasses.dataclass(frozen=True)
class Bus(abc.ABC):
    """The message bus at the other end, as its Open frame tells, and what is odd about
    its kind.

    Each product has a subclass; what stands here is in order on any bus.

    :cvar PRODUCT: the product's name in its Open frame
    :cvar is_router: whether nothing is stored between sender and receiver
    :cvar has_vhost_prefix: whether a virtual host is asked for as ``vhost:NAME`` in the
        Open frame
    :cvar refusal_ends_session: whether an attach that is refused may end the session
        with all its links
    :cvar patience: seconds after which a session in which it does not answer is left,
        None: it may take any time, as a router does whose consumers are slow
    :cvar settle_delay: seconds for which acknowledgements that are in no hurry may wait
        for more of them, 0: they are better sent at once
    :cvar has_shared_queues: whether ``address::queue`` names a queue of its own on an
        address, which gets a copy of each message and may have many consumers
    :cvar has_queue_policies: whether a link's properties can say how long a queue lives
    :cvar reply_lifetime: seconds for which it keeps an address that it made for a link,
        and what is sent there, when the link went with its connection; 0: it does not
    :cvar addresses_outlive_links: whether such an address goes with its connection, and
        not with its link alone
    :cvar dialect: how it is asked for queues, whatever the family of addresses; None:
        as the family says
    """

    product: str = ""
    version: str = ""
    capabilities: tuple[str, ...] = ()

    PRODUCT: typing.ClassVar[str] = ""
    is_router: typing.ClassVar[bool] = False
    has_vhost_prefix: typing.ClassVar[bool] = False
    refusal_ends_session: typing.ClassVar[bool] = False
    patience: typing.ClassVar[float | None] = None
    settle_delay: typing.ClassVar[float] = 0.0
    has_shared_queues: typing.ClassVar[bool] = False
    has_queue_policies: typing.ClassVar[bool] = False
    reply_lifetime: typing.ClassVar[int] = 0
    addresses_outlive_links: typing.ClassVar[bool] = False
    dialect: typing.ClassVar[type[Management] | None] = None

    @abc.abstractmethod
    def family(self) -> type[Addresser]:
        """What names its nodes, where ``addressing_mode`` says nothing else."""

    @property
    def major(self) -> int:
        """The first number of its version, 0 if there is none."""
        first = self.version.partition(".")[0]
        return int(first) if first.isascii() and first.isdigit() else 0

    def may_take_it_later(self, error: RemoteError | None) -> bool:
        """Whether a rejection may be for now only."""
        return False

    def precedence(self, level: int) -> dict[str, typing.Any]:
        """Properties of a link that is given messages before those of a lower level;
        none where the bus knows no such thing."""
        return {}

    def __str__(self) -> str:
        return f"{self.product} {self.version}".strip() or "of unknown product"


@dataclasses.dataclass(slots=True)
class Node(Terminus):
    """A terminus, and what its link says besides.

    :ivar link_properties: properties of the attach, or None
    :ivar declarations: what must be there before the link is attached
    :ivar repairs: what is declared besides once nobody was there to take a message, as
        those who receive are not told when somebody removes it
    :ivar renewals: those of its declarations that are asked for again once in a while:
        nobody else restores them when somebody removes them, or tells
    :ivar to: where messages go over a link to the anonymous terminus, else None
    :ivar durable: whether messages have to say that they last
    :ivar message_ttl: seconds after which messages are to expire that have no sooner
        end of their own, or None
    :ivar rejects_absent: whether REJECTED with amqp:not-found says that nobody is there
    :ivar may_be_unheard: whether it is in order that nobody takes a message
    :ivar survives: whether it is kept, with what is sent there, while the connection of
        who receives from it is lost
    :ivar outlives_link: whether that is so while the link alone is gone
    :ivar precedence: whether a link that receives goes before those that may be dead
    :ivar remove: the queue to remove when it is wanted no longer, or None
    :ivar reply_to: how requests name it as where replies go, if not by its address
    :ivar otherwise: what serves where its declarations are refused, or None
    """

    link_properties: dict[str, typing.Any] | None = None
    declarations: Declarations = ()
    repairs: Declarations = ()
    renewals: Declarations = ()
    to: str | None = None
    durable: bool = False
    message_ttl: float | None = None
    rejects_absent: bool = False
    may_be_unheard: bool = False
    survives: bool = False
    outlives_link: bool = False
    precedence: Precedence = Precedence.NEVER
    remove: str | None = None
    reply_to: str | None = None
    otherwise: Node | None = None


class Addresser(abc.ABC):
    """Makes termini of targets, for one connection to one bus.

    :param options: the group of options
    :param default_exchange: for targets that name none
    :param vhost: goes into each address, where the bus has no virtual hosts
    :param policies: what is asked of queues
    :cvar advice: what an operator of such a bus has to see to, or None; it is logged
        as a warning once the bus is known
    :cvar dialect: how the bus is asked for what the nodes declare
    :cvar format: what messages are in
    :cvar has_virtual_hosts: whether the bus keeps virtual hosts apart by itself, so
        that no address has to
    :cvar since: the first major version of the bus that it works on
    :cvar one_queue: why all exchanges of a topic, and all topics of a pool, share one
        queue, or empty: they do not
    """

    advice: str | None = None
    has_virtual_hosts: bool = False
    since: int = 0
    dialect: type[Management] = Management
    format: Format = PREDECESSOR
    one_queue: typing.ClassVar[str] = ""

    def __init__(
        self,
        options: typing.Any,
        default_exchange: str | None,
        vhost: str | None,
        bus: Bus,
        policies: Policies | None = None,
    ) -> None:
        self._default_exchange = default_exchange
        self._vhost = vhost
        self._bus = bus
        if bus.dialect is not None:
            self.dialect = bus.dialect
        self._policies = policies or Policies()
        self._configure(options)

    @abc.abstractmethod
    def _configure(self, options: typing.Any) -> None:
        """Take what a family wants to know of the options."""

    @abc.abstractmethod
    def multicast(self, target: Target, service: Service) -> str:
        """The address of all servers of a target."""

    @abc.abstractmethod
    def unicast(self, target: Target, service: Service) -> str:
        """The address of the one server that the target names."""

    @abc.abstractmethod
    def anycast(self, target: Target, service: Service) -> str:
        """The address of any server of a target."""

    def destination(self, target: Target, service: Service) -> Node:
        """Where messages for `target` are sent.

        :raises NotImplementedError: if a policy is asked for that the bus cannot keep
        """
        if target.fanout:
            return Node(self.multicast(target, service), may_be_unheard=True)
        if target.server:
            return self._queue(self.unicast(target, service), target)
        return self._queue(self.anycast(target, service), target)

    def reply_destination(self, address: str) -> Node:
        """Where replies to `address`, which came with a request, are sent."""
        return Node(address, survives=self._bus.reply_lifetime > 0)

    def reply_source(self, unique: str) -> Node:
        """What replies come from.

        :param unique: a part of a name that nobody else has, always the same for one
            caller

        :raises NotImplementedError: if there can be no such thing
        """
        lifetime = self._bus.reply_lifetime
        return Node(
            dynamic=True,
            timeout=lifetime,
            survives=lifetime > 0,
            outlives_link=self._bus.addresses_outlive_links,
        )

    def rpc_sources(self, target: Target, unique: str = "") -> list[Node]:
        """What a server of `target` receives from.

        :param unique: a part of a name that no other server has, always the same for
            one server

        :raises NotImplementedError: if a policy is asked for that the bus cannot keep
        """
        group = Target(exchange=target.exchange, topic=target.topic)
        sources = [
            Node(self.multicast(target, Service.RPC)),
            self._queue(self.anycast(target, Service.RPC), group),
        ]
        if target.server:
            unicast = self.unicast(target, Service.RPC)
            sources.insert(0, self._queue(unicast, target))
        return sources

    def notification_sources(
        self, targets: typing.Iterable[Target], pool: str | None
    ) -> list[Node]:
        """What a listener for the notifications of `targets` receives from.

        :raises NotImplementedError: if a pool is named and the bus has none, or a
            policy is asked for that it cannot keep
        """
        return [self._notification_source(target, pool) for target in targets]

    def _notification_source(self, target: Target, pool: str | None) -> Node:
        address = self.anycast(target, Service.NOTIFY)
        if pool is None:
            return self._queue(address, target)
        if not self._bus.has_shared_queues:
            raise self._no_pools(pool)
        node = self._queue(f"{address}::{pool}.{address}", target)
        # The pool's messages wait for its members, also while it has none.
        node.expiry_policy = EXPIRE_NEVER
        return node

    def _no_pools(self, pool: str) -> NotImplementedError:
        return NotImplementedError(
            f"pool {pool!r}: the message bus ({self._bus}) gives no way to have "
            "each pool get a copy of each notification"
        )

    def _queue(self, address: str, target: Target) -> Node:
        """The node of a queue, with what is asked of it."""
        policy = self._policies.find(target)
        if not policy:
            return Node(address)
        if not self._bus.has_queue_policies:
            raise NotImplementedError(
                f"{policy} for {address}: the message bus ({self._bus}) "
                + (
                    "stores nothing"
                    if self._bus.is_router
                    else "cannot be told over AMQP 1.0"
                )
            )
        return Node(address, link_properties=policy.properties())


def join(separator: str, *parts: str | None) -> str:
    """The parts that are there, joined to an address.

    :raises ValueError: AMQP has no way to write it, or proton would end it early
    """
    address = separator.join(part for part in parts if part)
    address.encode()
    if "\0" in address:
        raise ValueError(f"there is a NUL in {address!r}")
    return address
