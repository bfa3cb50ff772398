# SPDX-License-Identifier: Apache-2.0
"""Queues that an attach makes: RabbitMQ before 4.0, with its AMQP 1.0 plugin.

That plugin has no management requests, no anonymous terminus and no policies of queues;
what it has is that an attach to ``/queue/NAME`` makes a queue, and one to
``/exchange/amq.direct/KEY`` a queue of its own, bound to an exchange that is always
there.  The names are those that routers get as addresses::

    all servers    /exchange/amq.direct/PREFIX/multicast/EXCHANGE/TOPIC
    one server     /queue/PREFIX/unicast/EXCHANGE/TOPIC/SERVER
    any server     /queue/PREFIX/anycast/EXCHANGE/TOPIC
    notifications  /queue/PREFIX/anycast/EXCHANGE/TOPIC
    replies        /queue/reply.<unique>

with each slash of a name as ``%2F``.  Queues that are shared are durable; whoever sends
to one makes it as well, so that nothing is lost before the first consumer comes, and no
request finds out that there is no server.

The broker removes none of these queues.  Those for replies and for what is sent to all
servers belong to one process, and stay behind when it ends: an operator's policy has to
remove them, and nothing over AMQP 1.0 tells whether there is one (:attr:`advice`).
"""

from __future__ import annotations

from oslo_messaging import Target

from greenamqp.buses.base import Node, Service
from greenamqp.buses.routers import RoutableAddresser
from greenamqp.engine import DURABLE

# In the names that this module gives to queues for replies, and those that the broker
# gives to queues of attaches to an exchange.
_POLICY = (
    "rabbitmqctl set_policy --apply-to queues greenamqp "
    r"""'^amq\.gen-|^reply\.' '{"expires":600000}'"""
)


def _quote(name: str) -> str:
    """A name as a segment of an address.  The plugin decodes nothing else."""
    return name.replace("/", "%2F")


class Rabbit3Addresser(RoutableAddresser):
    """See the module."""

    has_virtual_hosts = True
    advice = (
        "this RabbitMQ keeps the queues of clients that are gone, and whether a policy "
        f"removes them cannot be seen over AMQP 1.0; if there is none: {_POLICY}"
    )

    def _shared(self, name: str, target: Target) -> Node:
        """A queue that keeps what is sent while nobody listens."""
        node = self._queue(f"/queue/{_quote(name)}", target)
        # What durability makes it with must be the same at all attaches: another one
        # ends the session.
        node.durability = DURABLE
        node.durable = True
        return node

    def _everybody(self, target: Target, service: Service) -> Node:
        key = _quote(self.multicast(target, service))
        return Node(f"/exchange/amq.direct/{key}")

    def destination(self, target: Target, service: Service) -> Node:
        if target.fanout:
            return self._everybody(target, service)
        if target.server:
            return self._shared(self.unicast(target, service), target)
        return self._shared(self.anycast(target, service), target)

    def reply_destination(self, address: str) -> Node:
        return Node(address, survives=True)

    def reply_source(self, unique: str) -> Node:
        return Node(f"/queue/reply.{unique}", durable=True, survives=True)

    def rpc_sources(self, target: Target, unique: str = "") -> list[Node]:
        group = Target(exchange=target.exchange, topic=target.topic)
        sources = [
            self._everybody(target, Service.RPC),
            self._shared(self.anycast(target, Service.RPC), group),
        ]
        if target.server:
            sources.insert(0, self._shared(self.unicast(target, Service.RPC), target))
        return sources

    def _notification_source(self, target: Target, pool: str | None) -> Node:
        if pool is not None:
            raise self._no_pools(pool)
        return self._shared(self.anycast(target, Service.NOTIFY), target)
