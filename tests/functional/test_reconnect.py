# SPDX-License-Identifier: Apache-2.0
"""The connection to the bus breaks, and comes back: what goes on, what is restored.

A forwarder between the driver and the bus breaks it. That needs a URL with a host and
a port, and a driver that connects.
"""

import socket
import threading
import urllib.parse
from collections import Counter

import pytest
from oslo_messaging import MessagingException, MessagingTimeout, Target

from greenamqp.broker import Broker
from greenamqp.connection import life
from tests.chaos.forwarder import Forwarder
from tests.functional.harness import Gate, InfoOnly, Recorder, in_thread

pytestmark = [pytest.mark.needs("processes"), pytest.mark.proves("reconnect")]

#: Connect again as soon as can be said.
EAGER = {
    "oslo_messaging_amqp": {
        "connection_retry_interval": 1,
        "connection_retry_backoff": 0,
        "link_retry_delay": 1,
    },
    "oslo_messaging_rabbit": {
        "heartbeat_timeout_threshold": 0,
        "rabbit_retry_interval": 1,
        "rabbit_retry_backoff": 0,
        "kombu_reconnect_delay": 0.1,
    },
}


class Echo:
    def __init__(self, name="echo", shared=None):
        self.name = name
        self.gate = Gate()
        self.got = Recorder() if shared is None else shared

    def echo(self, ctxt, value):
        return value

    def note(self, ctxt, value):
        self.got.add((self.name, value))

    def hold(self, ctxt):
        self.gate.enter()
        return "held"


@pytest.fixture
def forwarder(bus):
    parts = urllib.parse.urlsplit(bus.bus.url)
    made = Forwarder(parts.port, parts.hostname)
    yield made
    made.go()
    made.accept()
    made.stop()


@pytest.fixture
def url(bus, forwarder):
    parts = urllib.parse.urlsplit(bus.bus.url)
    user = parts.netloc.rpartition("@")[0]
    host = f"{user}@" if user else ""
    return bus.bus.url_with(f"{host}127.0.0.1:{forwarder.port}")


@pytest.fixture
def target(topic):
    return Target(topic=topic, server="server")


def call_until_answered(client, value):
    """Calls may fail while the connection is away, but must not for ever."""
    for _ in range(20):
        try:
            return client.prepare(timeout=5).call({}, "echo", value=value)
        except MessagingException:
            continue
    return client.call({}, "echo", value=value)


@pytest.mark.parametrize("end", ["cut", "close"])
def test_calls_work_again_after_the_clients_connection_broke(
    bus, target, forwarder, url, end
):
    bus.server(Echo(), target)
    client = bus.client(target, bus.rpc_transport(url=url, options=EAGER))
    for turn in range(3):
        assert call_until_answered(client, turn) == turn
        assert getattr(forwarder, end)() >= 1


def test_every_subscription_of_a_server_is_restored(bus, target, topic, forwarder, url):
    """Any server, this server, and all servers."""
    server = Echo()
    bus.server(server, target, bus.rpc_transport(url=url, options=EAGER))
    client = bus.client(Target(topic=topic))
    for turn in range(3):
        assert call_until_answered(client, turn) == turn
        direct = client.prepare(server="server")
        assert call_until_answered(direct, turn) == turn
        client.prepare(fanout=True).cast({}, "note", value=turn)
        server.got.wait_for(
            lambda got, turn=turn: ("echo", turn) in got, f"fanout of turn {turn}"
        )
        assert forwarder.cut() >= 1
        if turn < 2:
            # A fanout reaches only who is subscribed: wait until it is back.
            assert call_until_answered(direct, "back") == "back"


@pytest.mark.needs("store")
def test_notifications_of_a_listener_that_was_cut_off_are_kept(
    bus, topic, forwarder, url
):
    """At least once: what was under way may come twice, nothing is lost."""
    endpoint = InfoOnly()
    bus.listener(
        endpoint,
        [Target(topic=topic)],
        bus.notification_transport(url=url, options=EAGER),
    )
    notifier = bus.notifier([topic])
    for number in range(60):
        if number % 20 == 10:
            forwarder.cut()
        notifier.info({}, str(number), {})
    endpoint.got.wait_for(lambda got: len(set(got)) == 60, "sixty different events")


def test_notifier_waits_for_the_bus_to_come_back(bus, topic, forwarder, url):
    endpoint = InfoOnly()
    bus.listener(endpoint, [Target(topic=topic)])
    notifier = bus.notifier(
        [topic], transport=bus.notification_transport(url=url, options=EAGER)
    )
    notifier.info({}, "before", {})
    forwarder.refuse()
    forwarder.cut()
    sending = in_thread(notifier.info, {}, "while it was away", {})
    forwarder.accept()
    sending.result()
    endpoint.got.wait_for(lambda got: "while it was away" in got, "the event")


@pytest.mark.needs("pools")
def test_pool_member_is_restored(bus, topic, unique, forwarder, url):
    pool = unique("pool")
    endpoint = InfoOnly()
    bus.listener(
        endpoint,
        [Target(topic=topic)],
        bus.notification_transport(url=url, options=EAGER),
        pool=pool,
    )
    notifier = bus.notifier([topic])
    for number in range(30):
        if number % 10 == 5:
            forwarder.cut()
        notifier.info({}, str(number), {})
    endpoint.got.wait_for(lambda got: len(set(got)) == 30, "thirty different events")


def test_call_under_way_ends_in_a_reply_or_an_error(bus, target, forwarder, url):
    """Whatever the bus can keep of the reply address: the caller is not left alone."""
    server = Echo()
    bus.server(server, target)
    client = bus.client(target, bus.rpc_transport(url=url, options=EAGER), timeout=10)
    call = in_thread(client.call, {}, "hold")
    server.gate.wait_entered()
    forwarder.cut()
    server.gate.open()
    try:
        assert call.result() == "held"
    except MessagingException:
        pass
    assert call_until_answered(client, "after") == "after"


def test_casts_are_done_at_most_once(bus, target, forwarder, url):
    """A cast whose fate is unknown is not sent again; it raises instead."""
    got = Recorder()
    bus.server(Echo("server", got), target)
    client = bus.client(target, bus.rpc_transport(url=url, options=EAGER))
    sent = []
    for number in range(100):
        if number % 25 == 12:
            forwarder.cut()
        try:
            client.cast({}, "note", value=number)
        except MessagingException:
            continue
        sent.append(number)
    got.wait_for(lambda items: {value for _, value in items} >= set(sent), "every cast")
    bus.stop_servers()
    assert max(Counter(got.items).values()) == 1


@pytest.mark.needs("amqp", "ttl")
def test_request_lives_no_longer_than_its_caller_waits(
    bus, target, unique, forwarder, url
):
    """The time until the bus is there counts: it is the caller's."""
    timeout = 4
    forwarder.refuse()
    client = bus.client(
        target, bus.rpc_transport(url=url, options=EAGER), timeout=timeout
    )
    call = in_thread(client.call, {}, "note", value="given up")
    threading.Event().wait(timeout - 2)
    forwarder.accept()
    with pytest.raises(MessagingTimeout):
        call.result()
    with pytest.raises(MessagingTimeout):
        bus.client(Target(topic=unique("nobody")), timeout=1).call({}, "echo", value=0)
    server = Echo()
    bus.server(server, target)
    bus.client(target).call({}, "note", value="now")
    bus.stop_servers()
    assert server.got.items == [("echo", "now")]


@pytest.mark.needs("amqp")
def test_server_started_while_the_bus_is_away(bus, target, forwarder, url):
    """start() does not fail; the server is there when the bus is."""
    forwarder.refuse()
    options = {"oslo_messaging_amqp": {"default_send_timeout": 5}}
    options["oslo_messaging_amqp"].update(EAGER["oslo_messaging_amqp"])
    bus.server(Echo(), target, bus.rpc_transport(url=url, options=options))
    forwarder.accept()
    client = bus.client(target)
    assert call_until_answered(client, "there") == "there"


@pytest.mark.needs("amqp")
@pytest.mark.proves("silence")
def test_silence_is_noticed(bus, target, forwarder, url):
    """A connection on which nothing comes any more is given up after idle_timeout."""
    bus.server(Echo(), target)
    options = {"oslo_messaging_amqp": {"idle_timeout": 2}}
    options["oslo_messaging_amqp"].update(EAGER["oslo_messaging_amqp"])
    client = bus.client(target, bus.rpc_transport(url=url, options=options))
    assert client.call({}, "echo", value=1) == 1
    accepted = forwarder.figures()["accepted"]
    forwarder.stall()
    forwarder.wait_accepted(accepted + 1)
    forwarder.go()
    assert call_until_answered(client, 2) == 2


@pytest.mark.any_bus
def test_a_name_with_several_addresses(bus, topic, monkeypatch):
    """One refuses, one accepts and is silent, one is a bus: the silent one is left for
    the next as soon as another host would be."""
    with Broker(host="127.0.0.3") as broker:
        silent = socket.create_server(("127.0.0.2", broker.port))
        original = socket.getaddrinfo

        def getaddrinfo(host, port, *args, **options):
            if host != "several.test":
                return original(host, port, *args, **options)
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port))
                for n in (1, 2, 3)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(life, "CONNECT_TIMEOUT_OF_MANY", 1.0)
        # One attempt takes longer than the caller waits.
        monkeypatch.setattr(life, "CONNECT_TIMEOUT", 600.0)
        url = f"amqp://several.test:{broker.port}"
        bus.server(
            Echo(), Target(topic=topic, server="s"), bus.rpc_transport(url=broker.url)
        )
        client = bus.client(Target(topic=topic), bus.rpc_transport(url=url))
        assert client.call({}, "echo", value=1) == 1
        silent.close()


class DetachesAll(Echo):
    """Each time that it is called, before it answers, the bus detaches all links."""

    def __init__(self, broker):
        super().__init__()
        self._broker = broker

    def echo(self, ctxt, value):
        self._broker._hub.run_inside(self._detach)
        return value

    def _detach(self):
        with self._broker._hub.lock:
            for connection in self._broker._server.connections:
                for link in list(connection.peer.links):
                    link.detach("amqp:link:detach-forced", "an operator")
                connection.pump.flush()


@pytest.mark.any_bus
def test_links_are_detached_under_way(bus, topic, broker):
    """The reply has an address that outlives its link: each call waits for it."""
    endpoint = DetachesAll(broker)
    target = Target(topic=topic, server="s")
    bus.server(endpoint, target, bus.rpc_transport(url=broker.url))
    client = bus.client(Target(topic=topic), bus.rpc_transport(url=broker.url))
    for number in range(5):
        assert client.call({}, "echo", value=number) == number
