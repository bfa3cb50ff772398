# SPDX-License-Identifier: Apache-2.0
"""Queues and exchanges as oslo.messaging's ``rabbit://`` driver has them, so that its
services and those of greenamqp meet on one RabbitMQ (from 4.0 on)::

    any server     topic exchange EXCHANGE; queue TOPIC, bound with its name
    one server     the same exchange; queue TOPIC.SERVER, bound with its name
    all servers    fanout exchange TOPIC_fanout, auto-delete; each server has a queue
                   TOPIC_fanout_<unique>, which expires
    notifications  topic exchange EXCHANGE; queue TOPIC.PRIORITY, bound with its name;
                   each pool has a queue of the pool's name, bound with TOPIC.PRIORITY
    replies        queue reply_<unique>, which expires; the default exchange

What is durable, deleted, quorum and so on is decided by the options of that driver, in
its group ``[oslo_messaging_rabbit]``, for whoever declares a queue declares it for all.
An exchange that exists and differs in how long it lasts is used as it is; a queue that
differs is refused, with the option that would make it agree.

Who sends declares the exchange, and who notifies the queue as well: nothing is lost
before the first listener comes.  All is sent over the anonymous terminus, see
:mod:`greenamqp.buses.rabbitmq.declared`.
"""

from __future__ import annotations

import typing

from oslo_config import cfg
from oslo_messaging import Target

from greenamqp.buses.base import Addresser, Node, Precedence, Service
from greenamqp.buses.rabbitmq.declared import (
    DeclaredAddresser,
    exchange_address,
    of_server,
    policy_arguments,
    queue_address,
)
from greenamqp.buses.rabbitmq.format import RABBIT
from greenamqp.buses.rabbitmq.management import (
    Declaration,
    Management,
    binding,
    exchange,
    is_binding,
    queue,
)
from greenamqp.engine import source_filter
from greenamqp.options import RABBIT_GROUP, RabbitOptions

# The exchange where neither target nor control_exchange name one.
_LAST_RESORT = "openstack"

# What one that exists may differ in: it serves all the same.
_LIFE = ("auto_delete", "durable")

# Which options decide on what; for errors.
_ANY = (
    ("x-delivery-limit", f"[{RABBIT_GROUP}] rabbit_quorum_delivery_limit"),
    ("x-max-in-memory-length", f"[{RABBIT_GROUP}] rabbit_quorum_max_memory_length"),
    ("x-max-in-memory-bytes", f"[{RABBIT_GROUP}] rabbit_quorum_max_memory_bytes"),
    ("x-ha-policy", f"[{RABBIT_GROUP}] rabbit_ha_queues"),
)
_LASTING = (
    *_ANY,
    ("durable", f"[{RABBIT_GROUP}] amqp_durable_queues or rabbit_quorum_queue"),
    ("auto_delete", f"[{RABBIT_GROUP}] amqp_auto_delete"),
    ("x-queue-type", f"[{RABBIT_GROUP}] rabbit_quorum_queue"),
    ("x-expires", "queue_expires or the target's queue policy"),
    ("x-message-ttl", "queue_message_ttl or the target's queue policy"),
    ("x-max-length", "queue_max_length or the target's queue policy"),
    ("x-overflow", "queue_max_length or the target's queue policy"),
)
_TRANSIENT = (
    *_ANY,
    ("durable", f"[{RABBIT_GROUP}] rabbit_transient_quorum_queue"),
    ("x-queue-type", f"[{RABBIT_GROUP}] rabbit_transient_quorum_queue"),
    ("x-expires", f"[{RABBIT_GROUP}] rabbit_transient_queues_ttl"),
    ("x-max-age", f"[{RABBIT_GROUP}] rabbit_transient_queues_ttl"),
)

# Where a stream is read from: what comes from now on.
_FROM_NOW_ON = source_filter("rabbitmq:stream-offset-spec", "next")


class RabbitAddresser(Addresser):
    """See the module."""

    format = RABBIT
    dialect = Management
    since = DeclaredAddresser.since
    has_virtual_hosts = True
    one_queue = "queues are named after the topic or the pool alone, as for rabbit://"

    def _configure(self, options: typing.Any) -> None:
        # Why nothing can be declared: who sends or listens is told.
        self._wrong = ""
        try:
            given = self._policies.rabbit.values
        except (cfg.Error, ValueError) as exc:
            given = RabbitOptions().values
            self._wrong = f"[{RABBIT_GROUP}]: {exc}"
        self._given = given
        self._durable = given.amqp_durable_queues or given.rabbit_quorum_queue
        self._wrong = self._wrong or _contradiction(given)

    # -- names

    def _exchange(self, target: Target) -> str:
        return target.exchange or self._default_exchange or _LAST_RESORT

    def multicast(self, target: Target, service: Service) -> str:
        return exchange_address(f"{target.topic}_fanout")

    def unicast(self, target: Target, service: Service) -> str:
        key = f"{target.topic}.{target.server}"
        return exchange_address(self._exchange(target), key)

    def anycast(self, target: Target, service: Service) -> str:
        return exchange_address(self._exchange(target), target.topic)

    # -- declarations

    def _quorum(self, wanted: bool) -> dict[str, typing.Any]:
        """The arguments of a queue, or none of a classic one."""
        given = self._given
        arguments: dict[str, typing.Any] = {}
        if given.rabbit_ha_queues:
            arguments["x-ha-policy"] = "all"
        if wanted:
            limits = {
                "x-delivery-limit": given.rabbit_quorum_delivery_limit,
                "x-max-in-memory-length": given.rabbit_quorum_max_memory_length,
                "x-max-in-memory-bytes": given.rabbit_quorum_max_memory_bytes,
            }
            arguments["x-queue-type"] = "quorum"
            arguments.update((name, limit) for name, limit in limits.items() if limit)
        return arguments

    def _shared_exchange(self, name: str) -> Declaration:
        return exchange(
            name,
            "topic",
            durable=self._durable,
            auto_delete=self._given.amqp_auto_delete,
            may_differ=_LIFE,
            options=_LASTING,
        )

    def _fanout_exchange(self, target: Target) -> Declaration:
        return exchange(
            f"{target.topic}_fanout",
            "fanout",
            durable=self._given.rabbit_transient_quorum_queue,
            auto_delete=True,
            may_differ=_LIFE,
            options=_TRANSIENT,
        )

    def _lasting(self, name: str, target: Target) -> Declaration:
        """A queue that all of a topic, or of a pool, share."""
        arguments = self._quorum(self._given.rabbit_quorum_queue)
        arguments.update(policy_arguments(self._policies.find(target)))
        return queue(
            name,
            arguments,
            durable=self._durable,
            auto_delete=self._given.amqp_auto_delete,
            options=_LASTING,
        )

    def _transient(self, name: str) -> Declaration:
        """A queue of one process."""
        quorum = self._given.rabbit_transient_quorum_queue
        arguments = self._quorum(quorum)
        if self._given.rabbit_transient_queues_ttl:
            arguments["x-expires"] = self._given.rabbit_transient_queues_ttl * 1000
        return queue(name, arguments, durable=quorum, options=_TRANSIENT)

    def _shared_queue(
        self, target: Target, key: str, name: str | None = None
    ) -> tuple[Declaration, ...]:
        """A queue, and that it gets what is sent with `key`."""
        shared, name = self._exchange(target), name or key
        return (
            self._shared_exchange(shared),
            self._lasting(name, target),
            binding(shared, name, key),
        )

    # -- what is asked of every family

    def _check(self) -> None:
        if self._wrong:
            raise NotImplementedError(self._wrong)

    def destination(self, target: Target, service: Service) -> Node:
        self._check()
        if target.fanout:
            return Node(
                to=self.multicast(target, service),
                declarations=(self._fanout_exchange(target),),
                durable=True,
                may_be_unheard=True,
            )
        if service is Service.NOTIFY:
            return Node(
                to=self.anycast(target, service),
                declarations=self._shared_queue(target, target.topic),
                durable=True,
            )
        shared, key = self._exchange(target), typing.cast(str, target.topic)
        address = self.anycast
        if target.server:
            address, key = self.unicast, f"{key}.{target.server}"
        return Node(
            to=address(target, service),
            declarations=(self._shared_exchange(shared),),
            # It goes with an exchange that somebody deletes.
            repairs=(binding(shared, key, key, optional=True),),
            durable=True,
        )

    def reply_destination(self, address: str) -> Node:
        return Node(to=queue_address(address), durable=True, survives=True)

    def reply_source(self, unique: str) -> Node:
        self._check()
        name = f"reply_{unique}"
        return Node(
            queue_address(name),
            declarations=(self._transient(name),),
            durable=True,
            survives=True,
            precedence=Precedence.ALWAYS,
            remove=name,
            reply_to=name,
        )

    def rpc_sources(self, target: Target, unique: str = "") -> list[Node]:
        self._check()
        group = Target(exchange=target.exchange, topic=target.topic)
        topic = typing.cast(str, target.topic)
        shared = [self._source(group, topic)]
        if target.server:
            shared.insert(0, self._source(target, f"{topic}.{target.server}"))
        return of_server(shared, self._everybody(target, unique))

    def _source(self, target: Target, key: str, name: str | None = None) -> Node:
        return Node(
            queue_address(name or key),
            declarations=self._shared_queue(target, key, name),
        )

    def _everybody(self, target: Target, unique: str) -> Node:
        """Where one server gets what is sent to all."""
        topic = typing.cast(str, target.topic)
        everybody = f"{topic}_fanout"
        if self._given.rabbit_stream_fanout:
            return self._stream(target, everybody)
        own = f"{everybody}_{unique}"
        bound = binding(everybody, own, topic)
        return Node(
            queue_address(own),
            declarations=(self._fanout_exchange(target), self._transient(own), bound),
            renewals=(bound,),
            precedence=Precedence.ALWAYS,
            remove=own,
        )

    def _stream(self, target: Target, name: str) -> Node:
        """One queue for all servers, from which each reads all."""
        arguments: dict[str, typing.Any] = {"x-queue-type": "stream"}
        if self._given.rabbit_transient_queues_ttl:
            arguments["x-max-age"] = f"{self._given.rabbit_transient_queues_ttl}s"
        return Node(
            queue_address(name),
            filter=_FROM_NOW_ON,
            declarations=(
                self._fanout_exchange(target),
                queue(name, arguments, options=_TRANSIENT),
                binding(name, name, typing.cast(str, target.topic)),
            ),
        )

    def notification_sources(
        self, targets: typing.Iterable[Target], pool: str | None
    ) -> list[Node]:
        self._check()
        found: dict[str | None, Node] = {}
        for target in targets:
            node = self._source(target, typing.cast(str, target.topic), pool)
            # One queue for a topic of many exchanges, and one for all of a pool.
            same = found.setdefault(node.address, node)
            if same is not node:
                same.declarations = tuple(
                    dict.fromkeys(same.declarations + node.declarations)
                )
        if pool is not None:
            for node in found.values():
                node.renewals = tuple(filter(is_binding, node.declarations))
        return list(found.values())


def _contradiction(given: typing.Any) -> str:
    """Why options of the rabbit:// driver cannot all be meant; it refuses them too."""
    for quorum in ("rabbit_quorum_queue", "rabbit_transient_quorum_queue"):
        if getattr(given, quorum) and given.rabbit_ha_queues:
            return (
                f"[{RABBIT_GROUP}] {quorum} and rabbit_ha_queues: a queue can be one "
                "of the two"
            )
    if given.rabbit_stream_fanout and not given.rabbit_transient_quorum_queue:
        return (
            f"[{RABBIT_GROUP}] rabbit_stream_fanout needs rabbit_transient_quorum_queue"
        )
    if given.rabbit_stream_fanout and given.rabbit_qos_prefetch_count <= 0:
        return (
            f"[{RABBIT_GROUP}] rabbit_stream_fanout needs a rabbit_qos_prefetch_count "
            "above 0"
        )
    return ""
