# SPDX-License-Identifier: Apache-2.0
"""Apache Qpid Broker-J: queues and exchanges that are created before they are used.

The names are those of :mod:`greenamqp.buses.named`::

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

It is asked by requests to the node ``$management``, which have their operation and the
type of object in application properties, and the attributes of a new object in a map
for their body.  The answer has a status, numbered as HTTP's, in application properties.
"""

from __future__ import annotations

import dataclasses
import typing

from oslo_messaging import Target

from greenamqp.buses import management
from greenamqp.buses.base import Addresser, Bus, Node, Service
from greenamqp.buses.management import Again, Declarations, Refused, Steps, check_policy
from greenamqp.buses.named import NamedAddresser
from greenamqp.engine import Message

_Items = tuple[tuple[str, typing.Any], ...]

_EXISTS = 409
# Answers that another attempt does not change.
_PERMANENT_STATUS = frozenset((400, 403, _EXISTS))

_QUEUE = "org.apache.qpid.Queue"
_FANOUT_EXCHANGE = "org.apache.qpid.FanoutExchange"
_EXCHANGE = "org.apache.qpid.Exchange"


@dataclasses.dataclass(frozen=True)
class Created(management.Declaration):
    """An object that there is to be.

    :ivar attributes: what it is made with
    :ivar agreed: those of them that one that exists must have, too
    """

    kind: str
    name: str
    attributes: _Items = ()
    agreed: _Items = ()


@dataclasses.dataclass(frozen=True)
class Binding(management.Declaration):
    """A binding of a queue to a fanout exchange."""

    exchange: str
    queue: str


def queue(
    name: str,
    attempts: int = 0,
    dead_letters: str | None = None,
    policy: typing.Mapping[str, typing.Any] | None = None,
) -> Created:
    """A durable queue.

    :param attempts: how often a message is delivered at most; 0: any number of times
    :param dead_letters: the queue that takes it then
    :param policy: further attributes, in which one that exists must agree
    """
    attributes: _Items = ()
    if attempts:
        attributes = (("maximumDeliveryAttempts", attempts),)
    if dead_letters is not None:
        attributes += (("alternateBinding", (("destination", dead_letters),)),)
    agreed = tuple(sorted((policy or {}).items()))
    return Created(f"queue {name!r}", _QUEUE, name, attributes, agreed)


def fanout_exchange(name: str) -> Created:
    """A durable exchange that gives each of its queues a copy."""
    return Created(f"exchange {name!r}", _FANOUT_EXCHANGE, name)


def binding(exchange: str, queue: str) -> Binding:
    """A binding of a queue to a fanout exchange."""
    what = f"binding of queue {queue!r} to exchange {exchange!r}"
    return Binding(what, exchange, queue)


class Management(management.Management):
    """See the module."""

    node = "$management"
    # The broker works off all that it has read before it writes anything, and what is
    # created is on disk first: many at once and it is silent for so long on a busy
    # machine that the connection counts as lost.
    window = 8

    def _steps(self, declaration: typing.Any) -> Steps:
        if isinstance(declaration, Binding):
            answer = yield _request(
                "bind",
                _EXCHANGE,
                declaration.exchange,
                destination=declaration.queue,
                bindingKey="",
            )
            _check(answer, declaration.what)
            return
        agreed = dict(declaration.agreed)
        attributes = {
            key: dict(value) if isinstance(value, tuple) else value
            for key, value in declaration.attributes
        }
        answer = yield _request(
            "CREATE",
            declaration.kind,
            body={"name": declaration.name, "durable": True} | attributes | agreed,
        )
        if _status(answer) != _EXISTS:
            _check(answer, declaration.what)
        elif agreed:
            # It may be another one: the broker does not compare.
            answer = yield _request("READ", declaration.kind, declaration.name)
            _check(answer, declaration.what)
            check_policy(declaration.what, agreed, answer.body)


def _request(
    operation: str,
    kind: str,
    name: str | None = None,
    body: dict[str, typing.Any] | None = None,
    **arguments: str,
) -> Message:
    properties = {"operation": operation, "type": kind, **arguments}
    if name is not None:
        properties |= {"index": "object-path", "key": name}
    return Message(body or {}, properties=properties)


def _status(answer: Message) -> int:
    status = (answer.properties or {}).get("statusCode")
    return int(status) if isinstance(status, int) else 0


def _check(answer: Message, what: str) -> None:
    """Refuse what the broker refused."""
    status = _status(answer)
    if not 200 <= status < 300:
        reason = (answer.properties or {}).get("statusDescription", "no reason given")
        raise Refused(
            f"{what} was refused ({status}): {reason}",
            Again.NEVER if status in _PERMANENT_STATUS else Again.LATER,
        )


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

    dialect = Management

    def _lasting(self, name: str, target: Target) -> tuple[Created, ...]:
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


class BrokerJ(Bus):
    """Apache Qpid Broker-J."""

    PRODUCT = "Apache Qpid Broker-J Core"
    addresses_outlive_links = True

    def family(self) -> type[Addresser]:
        return BrokerJAddresser
