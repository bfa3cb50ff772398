# SPDX-License-Identifier: Apache-2.0
"""Queues and exchanges that are declared before they are used: RabbitMQ from 4.0 on.

An attach makes nothing there, so that each terminus says what must be declared first.
The names are those that routers get as addresses::

    all servers    fanout exchange PREFIX/multicast/EXCHANGE/TOPIC; each server has a
                   queue PREFIX/multicast/EXCHANGE/TOPIC/<unique>, which expires
    one server     queue PREFIX/unicast/EXCHANGE/TOPIC/SERVER
    any server     queue PREFIX/anycast/EXCHANGE/TOPIC
    notifications  fanout exchange PREFIX/anycast/EXCHANGE/TOPIC, with a queue of the
                   same name, and a queue <pool>/PREFIX/... for each pool
    replies        queue reply/<unique>, which expires

All is sent over the anonymous terminus, message by message: in 4.0 an attach that is
refused ends the session with all links on it, and what a queue that is gone gives back
there is RELEASED.  Who sends a request declares no queue, so that it is told when there
is no server; who notifies declares the queue, as the ``rabbit://`` driver does, so that
nothing is lost before the first listener comes.
"""

from __future__ import annotations

import typing

from oslo_messaging import Target

from greenamqp.buses.base import Addresser, Node, Precedence, Service
from greenamqp.buses.rabbitmq.management import (
    Declaration,
    Management,
    binding,
    exchange,
    queue,
    quote,
)
from greenamqp.buses.routers import RoutableAddresser
from greenamqp.policy import QueuePolicy


def queue_address(name: str) -> str:
    """The address of a queue."""
    return f"/queues/{quote(name)}"


def exchange_address(name: str, key: str = "") -> str:
    """The address of an exchange, as a target."""
    address = f"/exchanges/{quote(name)}"
    return f"{address}/{quote(key)}" if key else address


def policy_arguments(policy: QueuePolicy) -> dict[str, typing.Any]:
    """What is asked of a queue, as its arguments."""
    arguments: dict[str, typing.Any] = dict(policy.properties())
    if "x-max-length" in arguments:
        arguments["x-overflow"] = "drop-head"
    return arguments


def of_server(shared: list[Node], fanout: Node) -> list[Node]:
    """What an RPC server receives from.

    :param shared: what others may receive from as well, that of the topic last
    :param fanout: what it alone has, for what is sent to all
    """
    for each in shared:
        each.precedence = Precedence.BRIEFLY
    return [*shared[:-1], fanout, shared[-1]]


class DeclaredAddresser(RoutableAddresser):
    """See the module."""

    # The first version that has requests to declare things.
    since = 4
    has_virtual_hosts = True
    dialect = Management

    def _configure(self, options: typing.Any) -> None:
        super()._configure(options)
        self._lasting_type = options.rabbit_queue_type
        self._transient = {
            "x-queue-type": options.rabbit_transient_queue_type,
            "x-expires": options.rabbit_transient_queues_ttl * 1000,
        }

    def _lasting(self, name: str, target: Target) -> Declaration:
        """A queue that stays, as far as its policy lets it."""
        arguments: dict[str, typing.Any] = {"x-queue-type": self._lasting_type}
        arguments.update(policy_arguments(self._policies.find(target)))
        return queue(name, arguments)

    def _notified(self, target: Target) -> tuple[str, tuple[Declaration, ...]]:
        """The exchange of notifications, and all that keeps them."""
        name = self.anycast(target, Service.NOTIFY)
        return name, (
            exchange(name, "fanout"),
            self._lasting(name, target),
            binding(name, name, ""),
        )

    def destination(self, target: Target, service: Service) -> Node:
        if target.fanout:
            name = self.multicast(target, service)
            return Node(
                to=exchange_address(name),
                declarations=(exchange(name, "fanout"),),
                durable=True,
                may_be_unheard=True,
            )
        if service is Service.NOTIFY:
            name, declarations = self._notified(target)
            return Node(
                to=exchange_address(name), declarations=declarations, durable=True
            )
        if target.server:
            name = self.unicast(target, service)
        else:
            name = self.anycast(target, service)
        return Node(to=queue_address(name), durable=True)

    def reply_destination(self, address: str) -> Node:
        return Node(to=address, durable=True, survives=True)

    def reply_source(self, unique: str) -> Node:
        name = f"reply/{unique}"
        return Node(
            queue_address(name),
            declarations=(queue(name, self._transient),),
            durable=True,
            survives=True,
            precedence=Precedence.ALWAYS,
            remove=name,
        )

    def rpc_sources(self, target: Target, unique: str = "") -> list[Node]:
        group = Target(exchange=target.exchange, topic=target.topic)
        everybody = self.multicast(target, Service.RPC)
        own = f"{everybody}/{unique}"
        shared = [self._source(self.anycast(target, Service.RPC), group)]
        if target.server:
            shared.insert(0, self._source(self.unicast(target, Service.RPC), target))
        bound = binding(everybody, own, "")
        fanout = Node(
            queue_address(own),
            declarations=(
                exchange(everybody, "fanout"),
                queue(own, self._transient),
                bound,
            ),
            renewals=(bound,),
            precedence=Precedence.ALWAYS,
            remove=own,
        )
        return of_server(shared, fanout)

    def _source(self, name: str, target: Target) -> Node:
        return Node(queue_address(name), declarations=(self._lasting(name, target),))

    def _notification_source(self, target: Target, pool: str | None) -> Node:
        name, declarations = self._notified(target)
        if pool is None:
            return Node(queue_address(name), declarations=declarations)
        own = f"{pool}/{name}"
        bound = binding(name, own, "")
        return Node(
            queue_address(own),
            declarations=(exchange(name, "fanout"), self._lasting(own, target), bound),
            renewals=(bound,),
        )


class TooOld(Addresser):
    """RabbitMQ before 4.0: whatever is asked for is refused, and why."""

    def _configure(self, options: typing.Any) -> None:
        pass

    def _refuse(self) -> NotImplementedError:
        return NotImplementedError(
            f"{self._bus} cannot be told over AMQP 1.0 which queues there are to be: "
            f"this addressing_mode needs RabbitMQ {DeclaredAddresser.since}.0 or newer "
            "(dynamic chooses one that works)"
        )

    def multicast(self, target: Target, service: Service) -> str:
        raise self._refuse()

    def unicast(self, target: Target, service: Service) -> str:
        raise self._refuse()

    def anycast(self, target: Target, service: Service) -> str:
        raise self._refuse()

    def reply_source(self, unique: str) -> Node:
        raise self._refuse()
