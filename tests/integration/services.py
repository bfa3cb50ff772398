# SPDX-License-Identifier: Apache-2.0
"""Services and clients on any message bus, by its URL."""

from __future__ import annotations

import contextlib
import queue
import threading
import typing
import uuid
from collections.abc import Iterator

import oslo_messaging
from oslo_config import cfg
from oslo_messaging import Target

#: Seconds that anything may take before it counts as lost; far more than it needs.
PATIENCE = 60


def unique(prefix: str = "topic") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


class Remote(Exception):
    """What a server raises."""


class Endpoint:
    """Answers, and keeps what it hears."""

    target = Target()

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.heard: queue.Queue[typing.Any] = queue.Queue()
        self.contexts: queue.Queue[typing.Any] = queue.Queue()
        self.started = threading.Event()
        self.gate = threading.Event()

    def echo(self, ctxt, value):
        self.contexts.put(ctxt)
        return value

    def who(self, ctxt):
        return self.name

    def fail(self, ctxt, text):
        raise Remote(text)

    def hear(self, ctxt, value):
        self.contexts.put(ctxt)
        self.heard.put(value)

    def wait(self, ctxt, value):
        self.started.set()
        assert self.gate.wait(PATIENCE)
        return value

    def next(self) -> typing.Any:
        return self.heard.get(timeout=PATIENCE)


class HeldCall:
    """A call of ``wait`` that the endpoint has begun, and holds until `end`."""

    def __init__(self, client, endpoint: Endpoint, value: typing.Any) -> None:
        self.results: list[typing.Any] = []
        self.caller = threading.Thread(
            target=lambda: self.results.append(client.call({}, "wait", value=value))
        )
        self._endpoint = endpoint
        self.caller.start()
        assert endpoint.started.wait(PATIENCE)

    def end(self) -> list[typing.Any]:
        """Let it be answered; returns all answers that came."""
        self._endpoint.gate.set()
        self.caller.join(PATIENCE)
        return self.results


class Notified(Endpoint):
    """Keeps notifications."""

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        self.contexts.put(ctxt)
        self.heard.put((publisher_id, event_type, payload))


def conf() -> cfg.ConfigOpts:
    # oslo.messaging's tracing options are registered with the global one alone.
    if cfg.CONF._args is None:
        cfg.CONF([], default_config_files=[], default_config_dirs=[])
    return cfg.CONF


@contextlib.contextmanager
def rpc(url: str) -> Iterator[oslo_messaging.RPCTransport]:
    transport = oslo_messaging.get_rpc_transport(
        conf(), url, allowed_remote_exmods=[__name__]
    )
    try:
        yield transport
    finally:
        transport.cleanup()


@contextlib.contextmanager
def notification(url: str) -> Iterator[oslo_messaging.NotificationTransport]:
    transport = oslo_messaging.get_notification_transport(conf(), url)
    try:
        yield transport
    finally:
        transport.cleanup()


@contextlib.contextmanager
def running(server: typing.Any) -> Iterator[typing.Any]:
    server.start()
    try:
        yield server
    finally:
        server.stop()
        server.wait()


@contextlib.contextmanager
def serving(
    url: str, topic: str, server: str = "server", endpoint: Endpoint | None = None
) -> Iterator[Endpoint]:
    endpoint = endpoint or Endpoint(server)
    with (
        rpc(url) as transport,
        running(
            oslo_messaging.get_rpc_server(
                transport, Target(topic=topic, server=server), [endpoint], "threading"
            )
        ),
    ):
        yield endpoint


@contextlib.contextmanager
def listening(
    url: str, topic: str, pool: str | None = None, exchange: str | None = None
) -> Iterator[Notified]:
    endpoint = Notified(pool or "")
    with (
        notification(url) as transport,
        running(
            oslo_messaging.get_notification_listener(
                transport,
                [Target(topic=topic, exchange=exchange)],
                [endpoint],
                "threading",
                pool=pool,
            )
        ),
    ):
        yield endpoint


@contextlib.contextmanager
def calling(url: str, topic: str, **options: typing.Any) -> Iterator[typing.Any]:
    options.setdefault("timeout", PATIENCE)
    with rpc(url) as transport:
        yield oslo_messaging.get_rpc_client(transport, Target(topic=topic), **options)


@contextlib.contextmanager
def notifying(url: str, topic: str) -> Iterator[oslo_messaging.Notifier]:
    with notification(url) as transport:
        yield oslo_messaging.Notifier(
            transport, "publisher", driver="messaging", topics=[topic], retry=-1
        )


def call_and_notify(url: str) -> None:
    """A call and a notification get through."""
    topic = unique()
    with serving(url, topic), calling(url, topic) as client:
        assert client.call({}, "who") == "server"
    with listening(url, topic) as listener, notifying(url, topic) as notifier:
        notifier.info({}, "event", {"n": 1})
        assert listener.next()[2] == {"n": 1}
