"""A cluster of three in RabbitMQ 4.0's way, with what is odd about it.

Queues and exchanges are declared over ``/management``; all is sent over the anonymous
terminus.  What a session asks for is done one after another, so where one thing waits,
all that follows does:

* a classic queue lives on a node; while that is away its messages are rejected without
  a condition, and while it is frozen whoever uses it waits
* the leader of a quorum queue moves when its node has been away for LEADER_MOVES; what
  was sent to it has no outcome until then, and a session may lose it, and all that it
  sends later, without a word
* while a node is frozen nothing can be declared
* what is refused ends the session
* in an alarm nothing is done for a connection that has published
"""

from __future__ import annotations

import collections
import dataclasses
import typing
import urllib.parse

import proton

from greenamqp.broker import encoding, links
from greenamqp.broker.core import Core
from greenamqp.broker.namespace import Namespace, Refused
from greenamqp.broker.peer import Peer
from greenamqp.broker.server import Server
from greenamqp.broker.settings import Product, Settings
from greenamqp.broker.store import Policy, Queue
from greenamqp.engine import REJECTED, RELEASED, LinkState, Message
from greenamqp.engine.lifecycle import link_of
from greenamqp.engine.sasl import AcceptedConnection, SaslServer
from tests.simulation.plan import Fault
from tests.simulation.world import SimHub

if typing.TYPE_CHECKING:
    from tests.simulation.run import Run

#: Seconds after which a quorum queue has another leader.
LEADER_MOVES = 6.0

# How likely a session is deaf afterwards to what it sends to that queue.
_DEAF = 0.3

# How often what waits is looked at.  Seconds.
_LOOK = 0.1

_MANAGEMENT = "/management"

_PRODUCT = Product(
    "RabbitMQ",
    "4.0.5",
    offered_capabilities=("LINK_PAIR_V1_0", "ANONYMOUS-RELAY"),
    credit=170,
    max_frame_size=131072,
)

_Work = typing.Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class _Settings(Settings):
    @property
    def behaviour(self) -> Product:
        return _PRODUCT


class _Ended(Exception):
    """What ends the session."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.condition = condition
        self.description = description


def _no_queue(name: str) -> str:
    return f"no queue '{name}' in vhost '/'"


class _Queue:
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
        settings = _Settings(idle_timeout=10, max_sessions=self.cluster.max_sessions)
        self.server = Server(self.hub, settings, self.host, 5672)
        self.server.core = _Core(settings, self.hub.now, self)
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
    def peers(self) -> list[_Peer]:
        """Its connections."""
        return [typing.cast(_Peer, each.peer) for each in self.server.connections]


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
        self.queues: dict[str, _Queue] = {}
        self.exchanges: dict[str, _Exchange] = {}
        self.alarm_until = 0.0
        self.clock = lambda: run.world.clock
        self.usage = Core(_Settings(), self.clock).usage

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

    @property
    def majority(self) -> bool:
        """Whether most nodes do something."""
        return sum(node.ready for node in self.nodes) * 2 > len(self.nodes)

    @property
    def agrees(self) -> bool:
        """Whether anything can be declared."""
        return not any(node.up and node.hub.frozen for node in self.nodes)

    # -- what there is

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

    def route(self, address: str) -> list[_Queue]:
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


class _Core(Core):
    def __init__(
        self, settings: Settings, clock: typing.Callable[[], float], node: Node
    ) -> None:
        super().__init__(settings, clock)
        self.node = node
        self.container_id = "rabbit@cluster"

    def connect(self, name, touch, call_soon, on_opened=None, on_ended=None, _=None):
        peer = _Peer(self, name, touch, call_soon, on_opened, on_ended)
        peer.engine = AcceptedConnection(
            self.container_id,
            peer,
            SaslServer(),
            properties=_PRODUCT.open_properties() | {"node": self.node.host},
            offered_capabilities=_PRODUCT.offered_capabilities,
            idle_timeout=self.settings.idle_timeout,
            max_frame_size=_PRODUCT.max_frame_size,
            max_message_size=16 * 1024 * 1024,
            channel_max=self.settings.max_sessions - 1,
        )
        peer.engine.open()
        return peer


class _Peer(Peer):
    """A connection to a node."""

    core: _Core

    def __init__(self, *args: typing.Any) -> None:
        super().__init__(*args)
        self.has_published = False
        self._work: dict[typing.Any, collections.deque[_Work]] = {}
        # Which quorum queues each session has sent to, and which are deaf to that.
        self._used: dict[typing.Any, set[str]] = {}
        self.deaf: set[typing.Any] = set()
        self._ended_sessions: set[typing.Any] = set()
        self._timer = False

    @property
    def cluster(self) -> Cluster:
        """The node's."""
        return self.core.node.cluster

    def may_be_deaf(self, queue: _Queue, rng: typing.Any) -> None:
        """The leader of a queue is lost."""
        for session, used in self._used.items():
            if queue.name in used and rng.random() < _DEAF:
                self.deaf.add(session)

    def used(self, session: typing.Any, queue: _Queue) -> None:
        """A session has sent to a queue."""
        if queue.quorum:
            self._used.setdefault(session, set()).add(queue.name)

    # -- one after another

    def do(self, session: typing.Any, work: _Work) -> None:
        """Do something in its turn; it says whether it is done, or waits."""
        queue = self._work.setdefault(session, collections.deque())
        queue.append(work)
        if len(queue) == 1:
            self._go_on(session)

    @property
    def _held(self) -> bool:
        cluster = self.cluster
        return self.has_published and cluster.alarm_until > cluster.clock()

    def _go_on(self, session: typing.Any) -> None:
        queue = self._work.get(session)
        while queue:
            if self._held or not queue[0]():
                self.look_later()
                return
            if queue:
                queue.popleft()
        self._work.pop(session, None)

    def look_later(self) -> None:
        """Something waits."""
        if not self._timer:
            self._timer = True
            hub = self.core.node.hub
            # Of no hub, as it is nothing that a hub is asked to leave behind.
            world = self.cluster.run.world
            world.call_at(world.clock + _LOOK, lambda: hub._call_soon(self._look))

    def _look(self) -> None:
        self._timer = False
        if self.namespace is not None:
            with self.core.node.hub.lock:
                for session in list(self._work):
                    self._go_on(session)
                for endpoint in list(self.links):
                    if isinstance(endpoint, _Publisher):
                        endpoint.look()
            self.touch()

    def end_session(self, session: typing.Any, condition: str, reason: str) -> None:
        """End it, with all its links."""
        self._work.pop(session, None)
        self._ended_sessions.add(session)
        for endpoint in list(self.links):
            if endpoint.link.state is not LinkState.DETACHED:
                if endpoint.link.session is session:
                    endpoint.gone(failed=False)
        session._pn_session.condition = proton.Condition(condition, reason)
        session._pn_session.close()
        for each in session.endpoints:
            self._let_go(link_of(each))
        self.touch()

    def _let_go(self, link: typing.Any) -> None:
        """A link goes without a frame."""
        if link is not None and link.state is not LinkState.DETACHED:
            link.state = LinkState.DETACHED
            self.engine.forget_link(link)
            self.engine.destroy_later(link._endpoint)

    # -- links

    def link_requested(self, connection: typing.Any, link: typing.Any) -> None:
        if self.namespace is None:
            return
        session = link.session
        if session in self._ended_sessions:
            self._let_go(link)  # it was on its way
            return

        def attach() -> bool:
            if link.state is not LinkState.REQUESTED or self.namespace is None:
                return True
            try:
                return self._attach(link)
            except _Ended as exc:
                self.end_session(session, exc.condition, exc.description)
                return True

        self.do(session, attach)

    def _attach(self, link: typing.Any) -> bool:
        if link.is_sender:
            return self._attach_consumer(link)
        if link.remote_target.address == _MANAGEMENT:
            link.accept()
            _Manager(self, link).top_up()
        elif link.remote_target.address is None:
            link.accept(max_message_size=16 * 1024 * 1024)
            _Publisher(self, link).top_up()
        else:
            raise _Ended("amqp:invalid-field", "Attach rejected: {unknown_destination")
        self.touch()
        return True

    def _attach_consumer(self, link: typing.Any) -> bool:
        source = link.remote_source
        if source.dynamic:
            raise _Ended("amqp:not-implemented", "Dynamic sources not supported")
        if source.address == _MANAGEMENT:
            link.accept()
            _Answers(self, link).join()
            self.touch()
            return True
        name = urllib.parse.unquote((source.address or "").rpartition("/")[2])
        queue = self.cluster.queues.get(name)
        if queue is None or queue.away:
            raise _Ended("amqp:not-found", _no_queue(name))
        if not queue.ready:
            return False
        link.accept(source=links.answer(source, source.address))
        links.Consumer(
            self,
            typing.cast(Namespace, self.namespace),
            link,
            typing.cast(typing.Any, queue),
            queue.store,
        )
        self.touch()
        return True


class _Working(links.Incoming):
    """A link on which messages are worked on one after another."""

    __slots__ = ("session",)

    peer: _Peer  # type: ignore[assignment]

    def __init__(self, peer: _Peer, link: typing.Any) -> None:
        super().__init__(peer, link)
        self.session = link.session
        self.join()

    def receive(self, delivery: typing.Any, data: bytes) -> None:
        def work() -> bool:
            if self not in self.peer.links:
                return True
            try:
                done = self.work(delivery, data)
            except _Ended as exc:
                self.peer.end_session(self.session, exc.condition, exc.description)
                return True
            if done:
                self.peer.touch()
            return done

        self.peer.do(self.session, work)

    def work(self, delivery: typing.Any, data: bytes) -> bool:
        """Do it; returns whether it is done, or waits."""
        raise NotImplementedError

    def _gone(self, failed: bool) -> None:
        pass


class _Publisher(_Working):
    """The anonymous terminus."""

    __slots__ = ("_pending",)

    def __init__(self, peer: _Peer, link: typing.Any) -> None:
        # What has no outcome, as a quorum queue has no leader.
        self._pending: list[tuple[typing.Any, bytes, list[_Queue]]] = []
        super().__init__(peer, link)

    def work(self, delivery: typing.Any, data: bytes) -> bool:
        peer, link = self.peer, self.link
        peer.has_published = True
        try:
            found = peer.cluster.route(encoding.address(data) or "")
        except Refused as exc:
            link.settle(
                delivery,
                REJECTED,
                condition=exc.condition,
                description=exc.description,
            )
            return True
        if not found:
            link.settle(delivery, RELEASED)
            return True
        for queue in found:
            if not queue.quorum and not queue.away and not queue.ready:
                return False  # its node is frozen
        if any(queue.quorum for queue in found):
            for queue in found:
                peer.used(self.session, queue)
            if self.session in peer.deaf:
                return True
        self._put(delivery, data, found)
        return True

    def _put(self, delivery: typing.Any, data: bytes, queues: list[_Queue]) -> None:
        left = []
        for queue in queues:
            if queue.quorum and not queue.ready:
                left.append(queue)
            elif queue.away:
                self.link.settle(delivery, REJECTED)
                return
            else:
                ttl = encoding.time_to_live(data)
                expires = queue.store.clock() + ttl / 1000.0 if ttl else None
                queue.store.put(data, expires)
        if left:
            self._pending.append((delivery, data, left))
            self.peer.look_later()
        else:
            self.link.settle(delivery)

    def look(self) -> None:
        """Is there a leader again?"""
        if self.session in self.peer.deaf:
            self._pending.clear()
        pending, self._pending = self._pending, []
        for each in pending:
            self._put(*each)


class _Answers(links.Endpoint):
    """The link by which the answers of the management leave."""

    __slots__ = ()

    def _gone(self, failed: bool) -> None:
        pass


class _Manager(_Working):
    """Where the management is asked."""

    __slots__ = ()

    def work(self, delivery: typing.Any, data: bytes) -> bool:
        peer = self.peer
        request = peer.engine.codec.decode(memoryview(data))
        answers = [
            each
            for each in peer.links
            if isinstance(each, _Answers) and each.link.session is self.session
        ]
        if not answers or answers[0].link.credit <= 0:
            raise _Ended("amqp:precondition-failed", "no credit for the answer")
        if not peer.cluster.agrees:
            return False
        self.link.settle(delivery)
        status, body = self._answer(request)
        answer = Message(body, subject=status)
        answer.correlation_id = request.id
        answers[0].link.send(peer.engine.codec.encode(answer), None, True)
        return True

    def _answer(self, request: typing.Any) -> tuple[str, typing.Any]:
        cluster = self.peer.cluster
        method, path = request.subject, request.address
        kind, _, name = path[1:].partition("/")
        name, body = urllib.parse.unquote(name), request.body
        if method == "DELETE" and kind == "queues":
            cluster.delete_queue(name)
            return "200", {"message_count": 0}
        if method == "PUT" and kind == "queues":
            if name in cluster.queues:
                return "200", {"name": name}
            node = self.peer.core.node
            cluster.queues[name] = _Queue(cluster, name, node, body)
            return "201", {"name": name}
        if method == "PUT" and kind == "exchanges":
            if name not in cluster.exchanges:
                cluster.exchanges[name] = _Exchange(body["type"], body["auto_delete"])
            return "204", None
        if method == "POST" and kind == "bindings":
            exchange = cluster.exchanges.get(body["source"])
            if exchange is None:
                return "400", f"no exchange '{body['source']}' in vhost '/'"
            if body["destination_queue"] not in cluster.queues:
                return "400", _no_queue(body["destination_queue"])
            exchange.bindings[body["destination_queue"], body["binding_key"]] = None
            return "204", None
        raise _Ended("amqp:internal-error", "function_clause")
