# SPDX-License-Identifier: Apache-2.0
"""More targets than one connection holds: others are made beside it.

On an embedded broker that allows few sessions for a connection.
"""

import os
import select
import threading
import urllib.parse

import oslo_messaging
import pytest
from oslo_messaging import Target

import greenamqp
from greenamqp.client.subscription import KEPT_SESSIONS
from greenamqp.engine import LINKS_PER_SESSION
from tests.chaos.forwarder import Forwarder
from tests.functional import buses, world
from tests.functional.harness import WAIT, connections

pytestmark = pytest.mark.needs("amqp", "raw_broker")

#: Links of an RPC target.
LINKS = 3

#: Sessions of a connection, and how many targets go into those that subscriptions fill.
SESSIONS = KEPT_SESSIONS + 1
TARGETS = LINKS_PER_SESSION // LINKS


class Echo:
    def __init__(self, name):
        self.name = name

    def echo(self, ctxt, value):
        return [self.name, value]


@pytest.fixture
def broker():
    made = buses.EmbeddedBroker("--max-sessions", str(SESSIONS))
    yield made
    made.stop()


@pytest.fixture
def forwarder(broker):
    made = Forwarder(urllib.parse.urlsplit(broker.url).port)
    yield made
    made.go()
    made.accept()
    made.stop()


@pytest.fixture(params=world.own_executors())
def serve(request, bus):
    """Starts a server of so many targets; all are stopped at the end."""
    servers = []

    def start(url, topics):
        # oslo.messaging's tracing options are registered with cfg.CONF alone.
        server = greenamqp.Server(bus.rpc_transport(url=url), executor=request.param)
        for topic in topics:
            server.listen(Target(topic=topic, server="s"), [Echo(topic)])
        if request.param == "blocking":
            thread = threading.Thread(target=server.start)
            thread.start()
        else:
            thread = None
            server.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.stop()
        if thread is not None:
            thread.join(WAIT)
            assert not thread.is_alive()
        server.wait()


def ask(client, topics):
    """Call each target."""
    for topic in topics:
        answer = client.prepare(topic=topic, server="s").call({}, "echo", value=1)
        assert answer == [topic, 1]


def test_targets_on_several_connections(serve, bus, unique, broker, forwarder):
    url = f"amqp://127.0.0.1:{forwarder.port}/"
    topics = [unique() for _ in range(3 * TARGETS)]
    client = bus.client(
        Target(topic="none"), bus.rpc_transport(url=broker.url), timeout=WAIT
    )
    serve(url, topics)
    ask(client, topics)
    assert connections(forwarder.port) == 3
    # All of them are lost, and come back.
    forwarder.cut()
    ask(client, topics)
    assert connections(forwarder.port) == 3


@pytest.mark.parametrize(
    "hub", {"threads": ["threads", "blocking"]}.get(world.current(), ["auto"])
)
def test_descriptor_of_a_listener_on_a_further_connection(hub, bus, unique, broker):
    options = {"oslo_messaging_amqp": {"hub": hub}}
    transport = bus.rpc_transport(url=broker.url, options=options)
    driver = transport._driver
    listeners = [
        driver.subscribe(Target(topic=unique(), server="s"), 1, None)
        for _ in range(TARGETS)
    ]
    topic = unique()
    last = driver.listen(Target(topic=topic, server="s"), 1, None)
    port = urllib.parse.urlsplit(broker.url).port
    assert connections(port) == 2
    sender = bus.client(Target(topic=topic), bus.rpc_transport(url=broker.url))
    sender.cast({}, "echo", value=1)
    messages = []
    while not messages:
        # Under the blocking hub it wakes up for what is no message, too.
        assert select.select([last], [], [], WAIT)[0] == [last]
        messages = last.poll(timeout=0)
    assert messages[0].message["args"] == {"value": 1}
    messages[0].acknowledge()
    for listener in [*listeners, last]:
        listener.cleanup()
    transport.cleanup()
    assert connections(port) == 1  # the sender's


@pytest.fixture
def narrow():
    """A broker that refuses links beyond six of a connection; it does not say so
    before."""
    made = buses.EmbeddedBroker("--max-links", "6")
    yield made
    made.stop()


def test_servers_that_use_up_a_brokers_limit(bus, serve, unique, narrow):
    """They are on as many connections as it takes."""
    topics = [unique() for _ in range(5)]
    serve(narrow.url, topics)
    ask(bus.client(Target(topic="none"), bus.rpc_transport(url=narrow.url)), topics)


def test_listeners_leave_room_for_replies(bus, serve, unique, narrow):
    """And for what their process sends."""
    topic = unique()
    serve(narrow.url, [topic])
    transport = bus.rpc_transport(url=narrow.url)
    listeners = [
        transport._driver.listen(Target(topic=unique(), server="s"), 1, None)
        for _ in range(4)
    ]
    ask(bus.client(Target(topic="none"), transport), [topic])
    for listener in listeners:
        listener.cleanup()


def test_a_caller_of_more_servers_than_it_may_have_links(bus, serve, unique, narrow):
    topic = unique()
    serve(narrow.url, [topic])
    client = bus.client(Target(topic="none"), bus.rpc_transport(url=narrow.url))
    for number in range(30):
        client.prepare(topic=f"absent-{number}").cast({}, "echo", value=1)
        ask(client, [topic])


def test_a_limit_that_the_broker_keeps_is_named(bus, unique, caplog):
    """Where not even one subscription has room: what could not be subscribed to, and
    why, is in the log."""
    broker = buses.EmbeddedBroker("--max-links", "2")
    try:
        options = {"oslo_messaging_amqp": {"default_send_timeout": 5}}
        transport = bus.rpc_transport(url=broker.url, options=options)
        first = transport._driver.listen(Target(topic=unique(), server="s"), 1, None)
        second = transport._driver.listen(Target(topic=unique(), server="s"), 1, None)
        assert "not subscribed yet after 5 s: " in caplog.text
        assert "a connection may have 2 links" in caplog.text.split("not subscribed")[1]
        for listener in (first, second):
            listener.cleanup()
        transport.cleanup()
    finally:
        broker.stop()


@pytest.mark.skipif(world.is_green(), reason="whoever waits for a child serves none")
def test_a_child_leaves_all_connections_alone(serve, bus, unique, broker):
    port = urllib.parse.urlsplit(broker.url).port
    topics = [unique() for _ in range(2 * TARGETS)]
    server = serve(broker.url, topics)
    ends = topics[0], topics[-1]
    client = bus.client(Target(topic="none"), bus.rpc_transport(url=broker.url))
    ask(client, ends)
    assert connections(port) == 3  # the client's is one
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            # The parent answers; what is asked goes over a connection of the child's.
            own = oslo_messaging.get_rpc_client(
                server.transport, Target(topic="none"), timeout=WAIT
            )
            ask(own, ends)
            server.transport.cleanup()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    ask(client, topics)
    assert connections(port) == 3
