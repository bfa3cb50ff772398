# SPDX-License-Identifier: Apache-2.0
"""Apache ActiveMQ Artemis: addresses that an attach makes, with their routing.

The names are those of :mod:`greenamqp.buses.named`.  A terminus says by a
capability whether one consumer gets a message, or each queue of the address::

    all servers    topic; each server has a queue of its own, gone with its link
    one server     queue
    any server     queue
    notifications  topic ADDRESS; the queue ADDRESS::ADDRESS for listeners without a
                   pool, ADDRESS::pool:POOL:ADDRESS for each pool
    replies        topic; a queue that goes when it had no consumer for a while; where
                   that is refused, dynamic, gone with its link

Who sends a request makes its queue too: in a cluster the server may be on another
broker, which this one then passes the request on to.  So nobody is told that there is
no server.  Who notifies makes the queue for listeners without a pool, so that nothing
is lost before the first one comes.  What is sent to a reply address goes over the
anonymous terminus and asks for no queue: the broker makes what was asked for anew when
the caller is gone, and a queue would keep the reply for ever.

The broker keeps the queues of servers that left: each request says how long it lives.

A queue without further attributes is made by a link that names it, which every user may
attach who may use it.  One with attributes takes a request to ``activemq.management``,
and the right to make such: an operation and its arguments as JSON.  The answer says
whether it succeeded, and with what or why not.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing

from oslo_messaging import Target

from greenamqp import chance
from greenamqp.buses import management
from greenamqp.buses.base import Addresser, Bus, Node, Service
from greenamqp.buses.management import Again, Refused, Steps, check_policy, listed
from greenamqp.buses.named import NamedAddresser, quote
from greenamqp.engine import (
    Connection,
    LocalProtocolError,
    Message,
    RemoteError,
    Sender,
    Terminus,
)

#: One consumer of an address gets a message.
ANYCAST = "ANYCAST"
#: Each queue of an address gets it.
MULTICAST = "MULTICAST"

# The broker's text, which begins with a number that stands for it, where a queue of
# that name is there already.
_EXISTS = "AMQ229019"

# The same where a queue, or an address, is not there.
_NOT_THERE = ("AMQ229017", "AMQ229203")

_Items = tuple[tuple[str, typing.Any], ...]


@dataclasses.dataclass(frozen=True)
class Declaration(management.Declaration):
    """A queue.  See :func:`queue` and :func:`attached_queue`."""

    address: str
    name: str
    routing: str
    arguments: _Items = ()
    durable: bool = True


def queue(
    address: str,
    name: str,
    routing: str,
    arguments: typing.Mapping[str, typing.Any],
    durable: bool = True,
) -> Declaration:
    """A queue of an address, with further attributes, all of which the broker must
    agree to."""
    items = tuple(sorted(arguments.items()))
    return Declaration(f"queue {name!r}", address, name, routing, items, durable)


def attached_queue(address: str, name: str) -> Declaration:
    """A multicast queue of an address as an attach makes it: durable, for good."""
    return Declaration(f"queue {name!r}", address, name, MULTICAST)


class Management(management.Management):
    """See the module."""

    node = "activemq.management"

    def __init__(
        self, connection: Connection, flush: typing.Callable[[], None]
    ) -> None:
        super().__init__(connection, flush)
        # Links that are attached only to have their queue made.
        self._makers: dict[Sender, management.Request] = {}

    def _enter(self, request: management.Request) -> None:
        declaration = request.declaration
        if isinstance(declaration, Declaration) and not declaration.arguments:
            self._attach(request, declaration)
        else:
            super()._enter(request)

    def _attach(self, request: management.Request, declaration: Declaration) -> None:
        target = Terminus(
            f"{declaration.address}::{declaration.name}", capabilities=("topic",)
        )
        try:
            link = self._connection.create_sender(
                target, name=f"management/{chance.unique()}"
            )
        except LocalProtocolError as exc:
            self._finish(request, Refused(f"{declaration.what}: {exc}"))
            return
        except ValueError as exc:  # no way to write its name
            self._finish(request, Refused(f"{declaration.what}: {exc}", Again.NEVER))
            return
        self._makers[link] = request
        link.on_attached = self._made
        link.on_detached = self._not_made
        self._flush()

    def _made(self, link: Sender) -> None:
        request = self._makers.pop(link)
        link.close()
        self._flush()
        self._finish(request, None)

    def _not_made(self, link: Sender, error: RemoteError | None) -> None:
        request = self._makers.pop(link, None)
        if request is None or link.connection.ended:
            return
        self._finish(request, Refused.by_link(f"{request.what} was refused", error))

    def _steps(self, declaration: Declaration) -> Steps:
        wanted = dict(declaration.arguments)
        whole = wanted | {
            "name": declaration.name,
            "address": declaration.address,
            "routing-type": declaration.routing,
            "durable": declaration.durable,
            "auto-create-address": True,
        }
        answer = yield _operation("createQueue", json.dumps(whole), False)
        told = _result(answer)
        if not _succeeded(answer) and str(told).startswith(_EXISTS):
            # What may be changed of it is; the answer has what it is now.
            changes = {"name": declaration.name, **wanted}
            answer = yield _operation("updateQueue", json.dumps(changes))
            told = _result(answer)
        if not _succeeded(answer):
            raise Refused(
                f"{declaration.what} with {listed(wanted)} was refused: {told}"
            )
        try:
            found = json.loads(told)
        except (TypeError, ValueError):
            found = None
        check_policy(
            declaration.what, wanted, found, ", and the broker changes it no more"
        )

    def _removal(self, name: str) -> Steps:
        # In one request, as the connection may be closed after it; the address, which
        # has the queue's name, takes that along.
        yield from self._remove("address", name, "deleteAddress", True)

    def _removals(
        self, address: str | None, declarations: management.Declarations
    ) -> dict[str, typing.Callable[[], Steps]]:
        found: dict[str, typing.Callable[[], Steps]] = {}
        if address is not None:
            name, bound, queue = address.partition("::")
            # The name of a queue, where there is one of the address's own.
            found[f"queue {queue or name!r}"] = functools.partial(
                self._remove, "queue", queue or name, "destroyQueue", True, True
            )
            found[f"address {name!r}"] = functools.partial(
                self._remove, "address", name, "deleteAddress", True
            )
        return found

    def _remove(self, what: str, name: str, operation: str, *force: bool) -> Steps:
        answer = yield _operation(operation, name, *force)
        told = str(_result(answer))
        if not _succeeded(answer) and not told.startswith(_NOT_THERE):
            raise Refused(f"{what} {name!r} was not removed: {told}")


def _operation(name: str, *arguments: typing.Any) -> Message:
    """A request to the broker as a whole."""
    return Message(
        json.dumps(arguments),
        properties={"_AMQ_ResourceName": "broker", "_AMQ_OperationName": name},
    )


def _succeeded(answer: Message) -> bool:
    return bool((answer.properties or {}).get("_AMQ_OperationSucceeded"))


def _result(answer: Message) -> typing.Any:
    """What it returned, or why it did not: JSON in a list of one."""
    try:
        (result,) = json.loads(answer.body)
    except (TypeError, ValueError):
        return answer.body
    return result


def _expiring(seconds: float) -> dict[str, typing.Any]:
    """The attributes of a queue that goes so long after its last consumer."""
    return {
        "auto-delete": True,
        "auto-delete-delay": max(1, int(seconds * 1000)),
        "auto-delete-message-count": -1,  # whatever it holds
    }


# How long the queue for replies lasts without a consumer, while the connection of its
# process is lost.  Seconds.
_REPLY_LIFETIME = 600

#: What each kind of routing is as a capability of a terminus.
_CAPABILITY = {ANYCAST: ("queue",), MULTICAST: ("topic",)}


class ArtemisAddresser(NamedAddresser):
    """See the module."""

    dialect = Management

    def _asked(
        self, address: str, name: str, routing: str, target: Target
    ) -> tuple[Declaration, ...]:
        """What the policy of a queue takes a request for."""
        policy = self._policies.find(target)
        arguments: dict[str, typing.Any] = {}
        if policy.expires is not None:
            arguments |= _expiring(policy.expires)
        if policy.max_length is not None:
            arguments["ring-size"] = policy.max_length
        if not arguments:
            return ()
        return (queue(address, name, routing, arguments),)

    def destination(self, target: Target, service: Service) -> Node:
        ttl = self._policies.find(target).message_ttl
        if target.fanout:
            address = self.multicast(target, service)
            return Node(
                address,
                capabilities=_CAPABILITY[MULTICAST],
                message_ttl=ttl,
                may_be_unheard=True,
            )
        if service is Service.NOTIFY:
            address = self.anycast(target, service)
            return Node(
                address,
                capabilities=_CAPABILITY[MULTICAST],
                # What a policy asks for must come before what an attach makes.
                declarations=(
                    self._asked(address, address, MULTICAST, target)
                    or (attached_queue(address, address),)
                ),
                durable=True,
                message_ttl=ttl,
            )
        node = self._requests(target, service)
        node.durable = True
        node.message_ttl = min(filter(None, (ttl, self._cast_ttl)), default=None)
        return node

    def reply_destination(self, address: str) -> Node:
        return Node(to=address, survives=True)

    def reply_source(self, unique: str) -> Node:
        prefix = f"{self._prefix[Service.RPC]}.reply".replace("/", ".")
        address = f"{quote(prefix)}:{unique}"
        arguments = _expiring(_REPLY_LIFETIME)
        return Node(
            f"{address}::{address}",
            capabilities=_CAPABILITY[MULTICAST],
            declarations=(queue(address, address, MULTICAST, arguments, False),),
            survives=True,
            remove=address,
            reply_to=address,
            otherwise=Node(dynamic=True),
        )

    def _requests(self, target: Target, service: Service = Service.RPC) -> Node:
        """The queue of the requests to one server, or to any of a group."""
        make = self.unicast if target.server else self.anycast
        address = make(target, service)
        return Node(
            address,
            capabilities=_CAPABILITY[ANYCAST],
            declarations=self._asked(address, address, ANYCAST, target),
        )

    def rpc_sources(self, target: Target, unique: str = "") -> list[Node]:
        everybody = self.multicast(target, Service.RPC)
        sources = [
            Node(everybody, capabilities=_CAPABILITY[MULTICAST]),
            self._requests(Target(exchange=target.exchange, topic=target.topic)),
        ]
        if target.server:
            sources.insert(0, self._requests(target))
        return sources

    def _notification_source(self, target: Target, pool: str | None) -> Node:
        address = self.anycast(target, Service.NOTIFY)
        # The name of a queue is unique in the broker, not in its address.
        name = address if pool is None else self._pool_queue(pool, address)
        return Node(
            f"{address}::{name}",
            capabilities=_CAPABILITY[MULTICAST],
            declarations=self._asked(address, name, MULTICAST, target),
        )


class Artemis(Bus):
    """Apache ActiveMQ Artemis."""

    PRODUCT = "apache-activemq-artemis"

    def family(self) -> type[Addresser]:
        return ArtemisAddresser
