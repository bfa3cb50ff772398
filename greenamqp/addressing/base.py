# SPDX-License-Identifier: Apache-2.0
"""What every family of addresses provides."""

from __future__ import annotations

import abc
import dataclasses
import enum
import typing

from oslo_messaging import Target

from greenamqp.engine import EXPIRE_NEVER, RemoteError, Terminus
from greenamqp.formats import PREDECESSOR, Format
from greenamqp.management import Declarations, Management, embedded
from greenamqp.policy import Policies

#: The product's name in its Open frame.
RABBITMQ = "RabbitMQ"


class Service(enum.StrEnum):
    """The two kinds of traffic, which some buses keep apart.

    Strings, as they are part of a key that is looked up for each message: members of
    a plain Enum are hashed by a function in Python.
    """

    RPC = "rpc"
    NOTIFY = "notify"


@dataclasses.dataclass(frozen=True)
class Bus:
    """Who the peer says it is, in its Open frame."""

    product: str = ""
    version: str = ""
    capabilities: tuple[str, ...] = ()

    @property
    def is_router(self) -> bool:
        """Whether nothing is stored between sender and receiver."""
        return self.product in ("qpid-dispatch-router", "skupper-router")

    @property
    def major(self) -> int:
        """The first number of its version, 0 if there is none."""
        first = self.version.partition(".")[0]
        return int(first) if first.isascii() and first.isdigit() else 0

    @property
    def has_vhost_prefix(self) -> bool:
        """Whether a virtual host is asked for as ``vhost:NAME`` in the Open frame."""
        return self.product == RABBITMQ

    def may_take_it_later(self, error: RemoteError | None) -> bool:
        """Whether a rejection may be for now only: a classic queue's node is away.

        RabbitMQ 4.0 then gives no condition (nor does it where a queue is full), and
        4.3 one that it gives for other reasons as well.
        """
        if self.product != RABBITMQ:
            return False
        return error is None or (
            error.condition == "amqp:precondition-failed"
            and "unavailable" in error.description
        )

    @property
    def refusal_ends_session(self) -> bool:
        """Whether an attach that is refused may end the session with all its links."""
        return self.product == RABBITMQ

    @property
    def patience(self) -> float | None:
        """Seconds after which a session in which it does not answer is left, None: it
        may take any time, as a router does whose consumers are slow.

        RabbitMQ answers an attach, a declaration and a message in far less; where it
        waits for a queue that is not there it takes more than a minute.
        """
        return 10.0 if self.product == RABBITMQ else None

    @property
    def settle_delay(self) -> float:
        """Seconds for which acknowledgements that are in no hurry may wait for more of
        them, 0: they are better sent at once.

        RabbitMQ handles each disposition by itself, for a quorum queue with a round of
        its members, and a durable classic queue that is emptied by it gives its file
        up, to make another one for the next message.  Through a router the sender
        waits for them.
        """
        return 0.003 if self.product == RABBITMQ else 0.0

    @property
    def has_shared_queues(self) -> bool:
        """Whether ``address::queue`` names a queue of its own on an address, which
        gets a copy of each message and may have many consumers."""
        return self.product == "greenamqp"

    @property
    def has_queue_policies(self) -> bool:
        """Whether a link's properties can say how long a queue lives."""
        return self.product == "greenamqp"

    def __str__(self) -> str:
        return f"{self.product} {self.version}".strip() or "of unknown product"


@dataclasses.dataclass
class Node(Terminus):
    """A terminus, and what its link says besides.

    :ivar link_properties: properties of the attach, or None
    :ivar declarations: what must be there before the link is attached
    :ivar to: where messages go over a link to the anonymous terminus, else None
    :ivar durable: whether messages have to say that they last
    :ivar message_ttl: seconds after which messages are to expire that have no sooner
        end of their own, or None
    :ivar rejects_absent: whether REJECTED with amqp:not-found says that nobody is there
    :ivar may_be_unheard: whether it is in order that nobody takes a message
    :ivar survives: whether what is sent there while the connection is lost is kept
    :ivar remove: the queue to remove when it is wanted no longer, or None
    :ivar reply_to: how requests name it as where replies go, if not by its address
    """

    link_properties: dict[str, typing.Any] | None = None
    declarations: Declarations = ()
    to: str | None = None
    durable: bool = False
    message_ttl: float | None = None
    rejects_absent: bool = False
    may_be_unheard: bool = False
    survives: bool = False
    remove: str | None = None
    reply_to: str | None = None


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
    :cvar one_queue: why all exchanges of a topic, and all topics of a pool, share one
        queue, or empty: they do not
    """

    advice: str | None = None
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
        if bus.has_shared_queues:
            self.dialect = embedded.Management
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
        return Node(address)

    def reply_source(self, unique: str) -> Node:
        """What replies come from.

        :param unique: a part of a name that nobody else has, always the same for one
            caller

        :raises NotImplementedError: if there can be no such thing
        """
        return Node(dynamic=True)

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
    """The parts that are there, joined."""
    return separator.join(part for part in parts if part)
