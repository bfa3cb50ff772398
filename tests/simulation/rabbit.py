"""A connection to a node of RabbitMQ's: what it asks for, and what becomes of that.

See :mod:`tests.simulation.cluster` for what is odd about it.
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
from greenamqp.broker.settings import Product, Settings
from greenamqp.engine import REJECTED, RELEASED, LinkState, Message
from greenamqp.engine.lifecycle import link_of
from greenamqp.engine.sasl import AcceptedConnection, SaslServer

if typing.TYPE_CHECKING:
    from tests.simulation.cluster import Cluster, Node, NodeQueue

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
class RabbitSettings(Settings):
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


class RabbitCore(Core):
    def __init__(
        self, settings: Settings, clock: typing.Callable[[], float], node: Node
    ) -> None:
        super().__init__(settings, clock)
        self.node = node
        self.container_id = "rabbit@cluster"

    def connect(self, name, touch, call_soon, on_opened=None, on_ended=None, _=None):
        peer = Client(self, name, touch, call_soon, on_opened, on_ended)
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


class Client(Peer):
    """A connection to a node."""

    core: RabbitCore

    def __init__(self, *args: typing.Any) -> None:
        super().__init__(*args)
        self.has_published = False
        self._work: dict[typing.Any, collections.deque[_Work]] = {}
        # Which quorum queues each session has sent to, and which are deaf to that.
        self._used: dict[typing.Any, set[str]] = {}
        self.deaf: set[typing.Any] = set()
        # Those that have been sent something since: it can be noticed.
        self._told: set[typing.Any] = set()
        self._ended_sessions: set[typing.Any] = set()
        self._timer = False

    @property
    def cluster(self) -> Cluster:
        """The node's."""
        return self.core.node.cluster

    def may_be_deaf(self, queue: NodeQueue, rng: typing.Any) -> None:
        """The leader of a queue is lost."""
        for session, used in self._used.items():
            if queue.name in used and rng.random() < _DEAF:
                self.deaf.add(session)

    def used(self, session: typing.Any, queue: NodeQueue) -> None:
        """A session has sent to a queue."""
        if queue.quorum:
            self._used.setdefault(session, set()).add(queue.name)

    def swallows(self, session: typing.Any) -> bool:
        """Whether what a session was sent is lost without a word."""
        if session not in self.deaf:
            return False
        if session not in self._told:
            self._told.add(session)
            self.cluster.unnoticed()
        return True

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

    peer: Client  # type: ignore[assignment]

    def __init__(self, peer: Client, link: typing.Any) -> None:
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

    def __init__(self, peer: Client, link: typing.Any) -> None:
        # What has no outcome, as a quorum queue has no leader.
        self._pending: list[tuple[typing.Any, bytes, list[NodeQueue]]] = []
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
            if peer.swallows(self.session):
                return True
        self._put(delivery, data, found)
        return True

    def _put(self, delivery: typing.Any, data: bytes, queues: list[NodeQueue]) -> None:
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
        ready = [each for each in self._pending if all(q.ready for q in each[2])]
        if ready and self.peer.cluster.loses():
            self.peer.deaf.add(self.session)
        if self._pending and self.peer.swallows(self.session):
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
            made = cluster.declare_queue(name, self.peer.core.node, body)
            return "201" if made else "200", {"name": name}
        if method == "PUT" and kind == "exchanges":
            cluster.declare_exchange(name, body)
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
