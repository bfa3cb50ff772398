"""A cluster of three in RabbitMQ 4.0's way, with what is odd about it.

Queues and exchanges are declared over ``/management``; all is sent over the anonymous
terminus.  What a session asks for is done one after another, so where one thing waits,
all that follows does:

* a classic queue lives on a node; while that is away its messages are rejected without
  a condition, and while it is frozen whoever uses it waits
* the leader of a quorum queue moves when its node has been away for LEADER_MOVES; what
  is sent to it has no outcome until then, and a session may lose what it sent before or
  meanwhile, and all that it sends later, without a word
* while a node is frozen nothing can be declared
* what is refused ends the session
* in an alarm nothing is done for a connection that has published
"""

from __future__ import annotations

import typing
import urllib.parse

from greenamqp.broker import links
from greenamqp.broker.namespace import Refused
from greenamqp.broker.server import Server
from greenamqp.broker.store import Policy, Queue, Usage
from tests.simulation.plan import RABBIT_PATIENCE, Fault
from tests.simulation.rabbit import Client, RabbitCore, RabbitSettings
from tests.simulation.world import SimHub

if typing.TYPE_CHECKING:
    from tests.simulation.run import Run

#: Seconds after which a quorum queue has another leader.
LEADER_MOVES = 6.0


class NodeQueue:
    """A queue, and which node it is on.  It is what a consumer has for its address."""

    owner = None

    def __init__(self, cluster: Cluster, name: str, node: Node, fields: dict) -> None:
        arguments = fields["arguments"]
        self.cluster = cluster
        self.name = name
        self.node = node
        self.quorum = arguments.get("x-queue-type") == "quorum"
        self.durable = fields["durable"] or self.quorum
        self.auto_delete = fields["auto_delete"]
        self.store = Queue(name, Policy(), cluster.usage, cluster.clock)

    @property
    def ready(self) -> bool:
        """Whether it does what it is asked for."""
        return self.node.ready and (not self.quorum or self.cluster.majority)

    @property
    def away(self) -> bool:
        """Whether it is known to be away."""
        return not self.quorum and not self.node.up

    def unsubscribe(self, consumer: links.Consumer, queue: Queue) -> None:
        """As :class:`greenamqp.broker.store.Address` has it."""
        queue.unsubscribe(consumer)
        if self.auto_delete and not queue.consumers:
            self.cluster.delete_queue(self.name)


class _Exchange:
    def __init__(self, kind: str, auto_delete: bool) -> None:
        self.kind = kind
        self.auto_delete = auto_delete
        self.bindings: dict[tuple[str, str], None] = {}


class Node:
    """One of the three."""

    def __init__(self, cluster: Cluster, host: str) -> None:
        self.cluster = cluster
        self.host = host
        self.hub = SimHub(cluster.run.world, host, cluster.run.network)
        self.up = False
        self.server: Server

    @property
    def ready(self) -> bool:
        """Whether it does anything."""
        return self.up and not self.hub.frozen

    def start(self) -> None:
        """Serve."""
        settings = RabbitSettings(
            idle_timeout=10, max_sessions=self.cluster.max_sessions
        )
        self.server = Server(self.hub, settings, self.host, 5672)
        self.server.core = RabbitCore(settings, self.hub.now, self)
        self.hub.acquire()
        with self.hub.lock:
            self.server.start()
        self.up = True

    def die(self) -> None:
        """Be killed."""
        if self.up:
            self.up = False
            with self.hub.lock:
                self.server.die()
            self.hub.release()
            self.cluster.lost(self)
            for queue in list(self.cluster.queues.values()):
                if queue.node is self and not queue.durable:
                    self.cluster.delete_queue(queue.name)

    def close_all(self) -> None:
        """Close all connections, as an operator does."""
        if self.up:
            with self.hub.lock:
                for peer in self.peers:
                    peer.close("amqp:internal-error", "Connection forced")

    def stop(self) -> None:
        """Leave in order."""
        if self.up:
            drained = self.hub.waiter()
            with self.hub.lock:
                self.server.stop(drained)
            drained.wait(self.hub.now() + 2.0)
            with self.hub.lock:
                self.server.kill()
            self.hub.release()

    @property
    def peers(self) -> list[Client]:
        """Its connections."""
        return [typing.cast(Client, each.peer) for each in self.server.connections]


class Cluster:
    """See the module."""

    has_pools = True

    def __init__(self, run: Run) -> None:
        self.run = run
        self.max_sessions = run.rng.choice((64, 64, 12))
        lasting = run.rng.choice(("rabbit_quorum_queue", "amqp_durable_queues"))
        self.query = f"?{lasting}=true"
        if run.rng.random() < 0.5:
            self.query += "&rabbit_transient_quorum_queue=true"
        self.nodes = [Node(self, host) for host in run.plan.hosts]
        self.hubs = [node.hub for node in self.nodes]
        self.queues: dict[str, NodeQueue] = {}
        self.exchanges: dict[str, _Exchange] = {}
        self.alarm_until = 0.0
        self.clock = lambda: run.world.clock
        self.usage = Usage(RabbitSettings().max_memory)

    def start(self) -> None:
        """Serve."""
        for node in self.nodes:
            node.start()

    def stop(self) -> None:
        """Leave in order."""
        for node in self.nodes:
            node.hub.go(node.stop)

    # -- faults

    def strike(self, fault: Fault) -> None:
        """What the cluster does."""
        world = self.run.world
        node = next(node for node in self.nodes if node.host == fault.host)
        hub, until = node.hub, world.clock + fault.seconds
        if fault.kind == "freeze":
            hub.freeze(True)
            self.lost(node)
            world.call_at(until, lambda: hub.freeze(False))
        elif fault.kind == "drop":
            hub._call_soon(lambda: node.server.drop_connections() and None)
        elif fault.kind == "die":
            hub._call_soon(node.die)
            world.call_at(
                until, lambda: hub._call_soon(lambda: node.up or node.start())
            )
        elif fault.kind == "alarm":
            self.alarm_until = max(self.alarm_until, until)
        else:
            for each in self.nodes:
                each.hub._call_soon(each.close_all)

    def lost(self, node: Node) -> None:
        """A node does nothing any more: the leaders that it has move."""
        world, rng = self.run.world, self.run.rng
        led = [each for each in self.queues.values() if each.quorum]
        for queue in led:
            if queue.node is node:
                for each in self.nodes:
                    for peer in each.peers if each.up else ():
                        peer.may_be_deaf(queue, rng)
        world.call_at(world.clock + LEADER_MOVES, self._move_leaders)

    def _move_leaders(self) -> None:
        ready = [node for node in self.nodes if node.ready]
        for queue in self.queues.values():
            if queue.quorum and not queue.node.ready and self.majority:
                queue.node = self.run.rng.choice(ready)

    def loses(self) -> bool:
        """Whether a session loses what it sent while there was no leader."""
        loses = self.run.plan.loses
        return bool(loses) and self.run.rng.random() < loses

    def unnoticed(self) -> None:
        """A session has lost what it was sent for the first time: up to now nobody
        could know, however long ago its queue's leader was lost."""
        self.run.unnoticed(RABBIT_PATIENCE)

    @property
    def majority(self) -> bool:
        """Whether most nodes do something."""
        return sum(node.ready for node in self.nodes) * 2 > len(self.nodes)

    @property
    def agrees(self) -> bool:
        """Whether anything can be declared."""
        return not any(node.up and node.hub.frozen for node in self.nodes)

    # -- what there is

    def declare_queue(self, name: str, node: Node, fields: dict) -> bool:
        """Make it, on a node, if there is none; returns whether it was made."""
        if name in self.queues:
            return False
        self.queues[name] = NodeQueue(self, name, node, fields)
        return True

    def declare_exchange(self, name: str, fields: dict) -> None:
        """Make it, if there is none."""
        if name not in self.exchanges:
            made = _Exchange(fields["type"], fields["auto_delete"])
            self.exchanges[name] = made

    def delete_queue(self, name: str) -> None:
        """Remove it, and what goes with it."""
        queue = self.queues.pop(name, None)
        if queue is None:
            return
        consumers = typing.cast("set[links.Consumer]", queue.store.consumers)
        for consumer in sorted(consumers, key=lambda each: each.link.name):
            consumer.detach("amqp:resource-deleted", f"queue '{name}' was deleted")
        queue.store.delete()
        for title, exchange in list(self.exchanges.items()):
            had = bool(exchange.bindings)
            for bound in [each for each in exchange.bindings if each[0] == name]:
                del exchange.bindings[bound]
            if had and not exchange.bindings and exchange.auto_delete:
                del self.exchanges[title]

    def route(self, address: str) -> list[NodeQueue]:
        """The queues that an address leads to.

        :raises Refused: there is no such thing
        """
        kind, *names = (urllib.parse.unquote(each) for each in address.split("/")[1:])
        if kind == "queues":
            return [self.queues[name] for name in names if name in self.queues]
        exchange = self.exchanges.get(names[0])
        if exchange is None:
            raise Refused("amqp:not-found", f"no exchange '{names[0]}' in vhost '/'")
        key = names[1] if len(names) > 1 else ""
        return [
            self.queues[queue]
            for queue, bound in exchange.bindings
            if exchange.kind == "fanout" or bound == key
        ]
