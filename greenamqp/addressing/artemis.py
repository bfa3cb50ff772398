# SPDX-License-Identifier: Apache-2.0
"""Apache ActiveMQ Artemis: addresses that an attach makes, with their routing.

The names are those of :mod:`greenamqp.addressing.named`.  A terminus says by a
capability whether one consumer gets a message, or each queue of the address::

    all servers    topic; each server has a queue of its own, gone with its link
    one server     queue
    any server     queue
    notifications  topic ADDRESS; the queue ADDRESS::ADDRESS for listeners without a
                   pool, ADDRESS::pool:POOL:ADDRESS for each pool
    replies        dynamic, gone with its link

Who sends a request makes its queue too: in a cluster the server may be on another
broker, which this one then passes the request on to.  So nobody is told that there is
no server.  Who notifies makes the queue for listeners without a pool, so that nothing
is lost before the first one comes.  What is sent to a reply address goes over the
anonymous terminus and asks for no queue: the broker makes what was asked for anew when
the caller is gone, and a queue would keep the reply for ever.

The broker keeps the queues of servers that left: each request says how long it lives.
"""

from __future__ import annotations

import typing

from oslo_messaging import Target

from greenamqp.addressing.base import Node, Service
from greenamqp.addressing.named import NamedAddresser
from greenamqp.management import artemis
from greenamqp.management.artemis import ANYCAST, MULTICAST

#: What each kind of routing is as a capability of a terminus.
_CAPABILITY = {ANYCAST: ("queue",), MULTICAST: ("topic",)}


class ArtemisAddresser(NamedAddresser):
    """See the module."""

    #: The product's name in its Open frame.
    PRODUCT = "apache-activemq-artemis"

    dialect = artemis.Management

    def _asked(
        self, address: str, name: str, routing: str, target: Target
    ) -> tuple[artemis.Declaration, ...]:
        """What the policy of a queue takes a request for."""
        policy = self._policies.find(target)
        arguments: dict[str, typing.Any] = {}
        if policy.expires is not None:
            arguments["auto-delete"] = True
            arguments["auto-delete-delay"] = max(1, int(policy.expires * 1000))
            arguments["auto-delete-message-count"] = -1  # whatever it holds
        if policy.max_length is not None:
            arguments["ring-size"] = policy.max_length
        if not arguments:
            return ()
        return (artemis.queue(address, name, routing, arguments),)

    def destination(self, target: Target, service: Service) -> Node:
        ttl = self._policies.find(target).message_ttl
        if target.fanout:
            address = self.multicast(target, service)
            return Node(address, capabilities=_CAPABILITY[MULTICAST], message_ttl=ttl)
        if service is Service.NOTIFY:
            address = self.anycast(target, service)
            return Node(
                address,
                capabilities=_CAPABILITY[MULTICAST],
                # What a policy asks for must come before what an attach makes.
                declarations=(
                    self._asked(address, address, MULTICAST, target)
                    or (artemis.attached_queue(address, address),)
                ),
                durable=True,
                message_ttl=ttl,
            )
        node = self._requests(target, service)
        node.durable = True
        node.message_ttl = min(filter(None, (ttl, self._cast_ttl)), default=None)
        return node

    def reply_destination(self, address: str) -> Node:
        return Node(to=address)

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
