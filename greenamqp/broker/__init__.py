# SPDX-License-Identifier: Apache-2.0
"""The embedded broker: AMQP 1.0 in memory, for development and tests.

It keeps nothing on disk and is not for production.  ``greenamqp broker`` runs it as a
process; :class:`Broker` runs the same one inside a process::

    with Broker() as broker:
        transport = oslo_messaging.get_rpc_transport(conf, url=broker.url)

Rooms, from the bottom: ``encoding`` (bytes of messages), ``store`` (queues and
addresses) and ``router`` (what a router does instead), ``namespace`` (what is where),
``links`` and ``router_links`` (engine links tied to them), ``peer`` (a connection),
``core`` (a broker without sockets), ``mesh`` (two of them), ``server`` (sockets).  None
of them but the last does I/O; all run in one hub's context.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import typing

from greenamqp import hubs
from greenamqp.broker.mesh import Mesh
from greenamqp.broker.namespace import Namespace
from greenamqp.broker.server import Server
from greenamqp.broker.settings import Settings
from greenamqp.broker.store import Address, Queue

__all__ = ["Broker", "Settings"]

LOG = logging.getLogger(__name__)

# How long stop() waits for peers to take note.  Seconds.
STOP_TIMEOUT = 2.0


class Broker:
    """A broker inside this process.

    Each method may be called from any thread or green thread that may block.  After a
    fork the broker goes on in the parent; the child has no part in it.

    :param host: name or address to listen on
    :param port: 0 picks a free one; see :attr:`port`
    :param hub: where it runs: ``auto`` (the default: in green threads where the
        process is monkey patched, else in a native thread), ``eventlet``, ``gevent``,
        ``threads`` (a native thread of its own), ``blocking`` (whenever somebody
        waits in this thread), or a hub
    :param neighbour: another router, which runs already: the two are a mesh, both on
        its hub, each time that both run
    :param settings: all settings at once
    :param fields: fields of :class:`Settings`
    :raises ValueError: naming a setting whose value is not allowed, or if the two
        cannot be a mesh
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        hub: str | hubs.Hub = "auto",
        neighbour: Broker | None = None,
        settings: Settings | None = None,
        **fields: typing.Any,
    ) -> None:
        self.host = host
        self.port = port
        self.settings = dataclasses.replace(settings or Settings(), **fields)
        self._hub_wanted = hub
        self._hub: hubs.Hub | None = None
        self._server: Server | None = None
        self._pid = 0
        self._mesh: Mesh | None = None
        self._neighbour = neighbour
        if neighbour is not None:
            both = (self, neighbour)
            routers = all(each.settings.behaviour.router for each in both)
            if not routers or neighbour._neighbour is not None:
                raise ValueError("a mesh is of two brokers that behave as routers")
            neighbour._neighbour = self

    def start(self) -> Broker:
        """Listen and serve; returns itself.

        :raises OSError: if host and port cannot be listened on
        :raises greenamqp.connection.tls.TlsSetupError: if a certificate, key or CA
            file cannot be used
        """
        if self._server is not None:
            return self
        hub = self._choose_hub()
        server = Server(hub, self.settings, self.host, self.port)
        hub.acquire()

        def start() -> None:
            with hub.lock:
                server.start()
                self._join(server)

        try:
            hub.run_inside(start)
        except BaseException:
            hub.release()
            raise
        self._hub, self._server = hub, server
        self._pid = os.getpid()
        self.port = server.port
        return self

    def _join(self, server: Server) -> None:
        neighbour = self._neighbour
        if neighbour is None or neighbour._server is None:
            return
        if neighbour._mesh is not None:
            neighbour._mesh.end()  # what it still thinks of one that died
        self._mesh = neighbour._mesh = Mesh(
            server.core,
            neighbour._server.core,
            lambda delay, call: server.hub.call_at(server.hub.now() + delay, call),
        )

    def _leave(self, server: Server) -> None:
        mesh, self._mesh = self._mesh, None
        if mesh is not None:
            neighbour = self._neighbour
            if neighbour is not None and neighbour._server is not None:
                mesh.died(server.core)
            else:
                mesh.end()

    def _choose_hub(self) -> hubs.Hub:
        if self._neighbour is not None and self._neighbour._hub is not None:
            return self._neighbour._hub
        wanted = self._hub_wanted
        if isinstance(wanted, hubs.Hub):
            return wanted
        if wanted == "auto":
            wanted = hubs.choose()
        if wanted == "threads":
            # Not the process's own: driver and broker would hold each other's lock.
            from greenamqp.hubs.threads import ThreadsHub

            return ThreadsHub()
        return hubs.get(wanted)

    def stop(self) -> None:
        """Close all connections in order, then stop listening.  Idempotent.

        Takes up to two seconds if peers do not answer.
        """
        self._end(in_order=True)

    def kill(self) -> None:
        """Cut all connections and be gone, as a process that is killed.  Idempotent;
        it may be started again."""
        self._end(in_order=False)

    def _end(self, in_order: bool) -> None:
        server, hub = self._server, self._hub
        self._server = self._hub = None
        if server is None or hub is None or self._pid != os.getpid():
            return

        def end() -> None:
            drained = hub.waiter()
            with hub.lock:
                self._leave(server)
                if in_order:
                    server.stop(drained)
                else:
                    server.die()
                    return
            drained.wait(hub.now() + STOP_TIMEOUT)
            with hub.lock:
                server.kill()

        hub.run_inside(end)
        hub.release()

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The transport URL, without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = "/?ssl=true" if self.settings.tls_cert else ""
        return f"amqp://{host}:{self.port}{query}"

    # -- for tests

    def depth(self, address: str, virtual_host: str = "") -> int:
        """How many messages an address holds: those that wait and those that are
        with a consumer.  Of ``ADDRESS::NAME`` that queue's, of ``ADDRESS`` the sum of
        its own queue or its subscribers'.  0 for an address that is not there."""

        def look(server: Server) -> int:
            namespace = server.core.namespaces.get(virtual_host)
            if not isinstance(namespace, Namespace):
                return 0
            found = namespace.lookup(address)
            if isinstance(found, Queue):
                return found.depth
            if isinstance(found, Address):
                queues = [found.plain] if found.plain else found.subscriptions
                return sum(queue.depth for queue in queues)
            return 0

        return self._inside(look)

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return self._inside(lambda server: len(server.connections))

    def drop_connections(self) -> int:
        """Cut all connections without a word, as a failing network does; returns how
        many."""
        return self._inside(lambda server: server.drop_connections())

    def _inside(self, function: typing.Callable[[Server], int]) -> int:
        server, hub = self._server, self._hub
        if server is None or hub is None or self._pid != os.getpid():
            return 0

        def run() -> int:
            with hub.lock:
                return function(server)

        return hub.run_inside(run)
