# SPDX-License-Identifier: Apache-2.0
"""Apache Qpid Broker-J: queues and exchanges that are created before they are used.

The names are those of :mod:`greenamqp.addressing.named`::

    all servers    fanout exchange; each server has a queue of its own that the broker
                   makes for its link, and that is gone with its session
    one server     queue
    any server     queue
    notifications  fanout exchange NAME, with a queue default:NAME for listeners without
                   a pool, and a queue pool:POOL:NAME for each pool
    replies        dynamic, gone with its connection

All is sent over the anonymous terminus, message by message: what is not there is
REJECTED, and an attach to it would be refused.  Who sends a request creates no queue,
so that it is told when there is no server, unless a policy is asked for, which is for
queues of servers that are still to come; who notifies creates the queue for listeners
without a pool, so that nothing is lost before the first one comes.

A rejected message comes again here, without end where nothing is said of its queue: so
each queue has a limit of attempts, and what is over it goes to a queue for all that.
The broker keeps the queues of servers that left: each request says how long it lives.
"""

from __future__ import annotations

import typing

from oslo_messaging import Target

from greenamqp.addressing.base import Node, Service
from greenamqp.addressing.named import NamedAddresser
from greenamqp.management import Declarations, broker_j
from greenamqp.management.broker_j import binding, fanout_exchange, queue

#: The queue for what was delivered in vain too often.
DEAD_LETTERS = "greenamqp.dead-letters"

# How often a message is delivered at most.  Rejections count, which take a millisecond
# each, and so do losses of a connection, also for a message that only waited in the
# window of a listener: a network that comes and goes must not make it a dead letter.
_ATTEMPTS = 100

# The broker takes a link that lists no outcomes for one that knows no rejection, and
# detaches it instead.
_OUTCOMES = (
    "amqp:accepted:list",
    "amqp:rejected:list",
    "amqp:released:list",
    "amqp:modified:list",
)


class BrokerJAddresser(NamedAddresser):
    """See the module."""

    #: The product's name in its Open frame.
    PRODUCT = "Apache Qpid Broker-J Core"

    dialect = broker_j.Management

    def _lasting(self, name: str, target: Target) -> tuple[broker_j.Created, ...]:
        """A queue that stays, with what is asked of it."""
        policy = self._policies.find(target)
        if policy.expires is not None:
            raise NotImplementedError(
                f"{policy} for {name}: a policy with expires cannot be kept, the "
                f"message bus ({self._bus}) has no queues that expire"
            )
        agreed: dict[str, typing.Any] = {}
        if policy.message_ttl is not None:
            agreed["maximumMessageTtl"] = max(1, int(policy.message_ttl * 1000))
        if policy.max_length is not None:
            agreed["maximumQueueDepthMessages"] = policy.max_length
            agreed["overflowPolicy"] = "RING"
        return (queue(DEAD_LETTERS), queue(name, _ATTEMPTS, DEAD_LETTERS, agreed))

    def _notified(
        self, target: Target, pool: str | None
    ) -> tuple[str, str, Declarations]:
        """The exchange of notifications, a queue of it, and all that keeps them."""
        name = self.anycast(target, Service.NOTIFY)
        own = f"default:{name}" if pool is None else self._pool_queue(pool, name)
        return (
            name,
            own,
            (
                fanout_exchange(name),
                *self._lasting(own, target),
                binding(name, own),
            ),
        )

    def destination(self, target: Target, service: Service) -> Node:
        node = Node(outcomes=_OUTCOMES, rejects_absent=True)
        if target.fanout:
            node.to = self.multicast(target, service)
            node.declarations = (fanout_exchange(node.to),)
            node.may_be_unheard = True
        elif service is Service.NOTIFY:
            node.to, _, node.declarations = self._notified(target, None)
            node.durable = True
        else:
            make = self.unicast if target.server else self.anycast
            node.to = make(target, service)
            if self._policies.find(target):
                node.declarations = self._lasting(node.to, target)
            node.durable = True
            node.message_ttl = self._cast_ttl
        return node

    def reply_destination(self, address: str) -> Node:
        return Node(to=address, outcomes=_OUTCOMES, rejects_absent=True)

    def rpc_sources(self, target: Target, unique: str = "") -> list[Node]:
        group = Target(exchange=target.exchange, topic=target.topic)
        everybody = self.multicast(target, Service.RPC)
        sources = [
            Node(everybody, declarations=(fanout_exchange(everybody),)),
            self._source(self.anycast(target, Service.RPC), group),
        ]
        if target.server:
            sources.insert(0, self._source(self.unicast(target, Service.RPC), target))
        return sources

    def _source(self, name: str, target: Target) -> Node:
        return Node(name, declarations=self._lasting(name, target))

    def _notification_source(self, target: Target, pool: str | None) -> Node:
        _, own, declarations = self._notified(target, pool)
        return Node(own, declarations=declarations)
