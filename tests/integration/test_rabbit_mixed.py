# SPDX-License-Identifier: Apache-2.0
"""greenamqp beside oslo.messaging's rabbit:// driver on one RabbitMQ 4: each calls,
casts to and notifies the other."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time

import oslo_messaging
import pytest
from oslo_messaging import Target, exceptions

from greenamqp import command
from greenamqp.command import service
from greenamqp.driver import GreenAMQPDriver
from tests.integration import rabbit
from tests.integration.rabbit import (
    PATIENCE,
    Endpoint,
    HeldCall,
    Remote,
    calling,
    listening,
    notification,
    notifying,
    queues,
    rpc,
    running,
    serving,
    unique,
)

pytestmark = pytest.mark.proves("rabbit")

# Options that both drivers are given, in the query of their URLs.
SETTINGS = {
    "defaults": "",
    "durable": "amqp_durable_queues=true",
    "quorum": "rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true"
    "&rabbit_quorum_delivery_limit=5",
    "stream": "rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true"
    "&rabbit_stream_fanout=true&rabbit_qos_prefetch_count=10",
}


def notify(url, target, context=None, payload=None, **options):
    """A notification as the driver gets it: oslo.messaging's notifier has one
    exchange, and keeps most of a context to itself."""
    event = {
        "event_type": "event",
        "publisher_id": "publisher",
        "payload": payload,
        "priority": "INFO",
        "message_id": unique("message"),
        "timestamp": "",
    }
    with notification(url) as transport:
        transport._driver.send_notification(
            target, context or {}, event, 2.0, **options
        )


@pytest.fixture
def amqp(rabbitmq):
    return rabbitmq.url()


@pytest.fixture
def theirs(amqp):
    return amqp.replace("amqp:", "rabbit:", 1)


@pytest.fixture(params=["amqp to rabbit", "rabbit to amqp"])
def pair(request, amqp, theirs):
    """The URL of who sends, and of who serves."""
    return (amqp, theirs) if request.param == "amqp to rabbit" else (theirs, amqp)


@pytest.fixture(scope="module")
def vhosts(rabbitmq):
    """A virtual host for each of the settings: all must agree on an exchange."""
    made = {name: unique(name) for name in SETTINGS}
    for vhost in made.values():
        rabbitmq.control("add_vhost", vhost)
        rabbitmq.control("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    return made


@pytest.fixture(params=SETTINGS)
def set_pair(request, pair, vhosts):
    """As `pair`, with one of the settings."""
    tail = f"/{vhosts[request.param]}?{SETTINGS[request.param]}"
    return tuple(url.rstrip("/") + tail for url in pair)


def test_call_and_cast(set_pair):
    ours, other = set_pair
    topic = unique("a.b")
    with serving(other, topic) as endpoint, calling(ours, topic) as client:
        for value in (["x", 1, None], {"é": '\x00"\\'}, None, "", False):
            assert client.call({}, "echo", value=value) == value
        client.cast({}, "hear", value="cast")
        assert endpoint.next() == "cast"
        client.prepare(server="server").cast({}, "hear", value="own")
        assert endpoint.next() == "own"


@pytest.mark.parametrize("moved", ["server", "client"])
def test_a_service_that_was_migrated(theirs, vhosts, moved, tmp_path):
    """`greenamqp migrate` on one configuration of both: one side has the new one."""
    old = tmp_path / "service.conf"
    old.write_text(
        "[DEFAULT]\n"
        f"transport_url = {theirs}{vhosts['quorum']}?ssl=0&ssl_version=TLSv1_2\n"
        "[oslo_messaging_rabbit]\n"
        "rabbit_quorum_queue = true\n"
        "rabbit_transient_quorum_queue = true\n"
        "rabbit_quorum_delivery_limit = 5\n"
        "rabbit_qos_prefetch_count = 7\n"
        "heartbeat_in_pthread = true\n"
    )
    assert command.main(["migrate", "--write", str(old)]) == 0
    new = old.with_name("service.conf.greenamqp")
    with contextlib.ExitStack() as made:

        def transport(side):
            path = new if side == moved else old
            args = argparse.Namespace(config_file=[str(path)])
            each = oslo_messaging.get_rpc_transport(service.configuration(args))
            assert isinstance(each._driver, GreenAMQPDriver) is (side == moved)
            made.callback(each.cleanup)
            return each

        target = Target(topic=unique(), server="server")
        served = oslo_messaging.get_rpc_server(
            transport("server"), target, [Endpoint()], "threading"
        )
        made.enter_context(rabbit.running(served))
        client = oslo_messaging.get_rpc_client(
            transport("client"), target, timeout=PATIENCE
        )
        assert client.call({}, "echo", value="moved") == "moved"


def test_servers_of_both_share_a_topic(amqp, theirs):
    topic = unique()
    with (
        serving(amqp, topic, "one") as one,
        serving(theirs, topic, "two") as two,
        calling(amqp, topic) as here,
        calling(theirs, topic) as there,
    ):
        for client in (here, there):
            for name in ("one", "two"):
                assert client.prepare(server=name).call({}, "who") == name
            assert {client.call({}, "who") for _ in range(20)} == {"one", "two"}
            client.prepare(fanout=True).cast({}, "hear", value="all")
            assert (one.next(), two.next()) == ("all", "all")


def test_fanout(set_pair):
    sender, server = set_pair
    topic = unique()
    with (
        serving(server, topic, "one") as one,
        serving(server, topic, "two") as two,
        calling(sender, topic) as client,
    ):
        for number in range(5):
            client.prepare(fanout=True).cast({}, "hear", value=number)
        for endpoint in (one, two):
            # Their server has many threads, and starts them in any order.
            assert sorted(endpoint.next() for _ in range(5)) == list(range(5))


def test_notifications_with_two_pools(set_pair):
    notifier_url, listener_url = set_pair
    topic = unique()
    with notifying(notifier_url, topic) as notifier:
        # Kept in the queue that the notifier itself declares.
        notifier.info({}, "early", {"n": 0})
        with (
            listening(listener_url, topic) as default,
            listening(listener_url, topic, f"{topic}-a") as first,
            listening(listener_url, topic, f"{topic}-b") as second,
        ):
            assert default.next()[1] == "early"
            for number in range(10):
                notifier.info({}, "late", {"n": number})
            for listener in (default, first, second):
                # Their listener has many threads, and starts them in any order.
                heard = [listener.next() for _ in range(10)]
                assert {event for _, event, _ in heard} == {"late"}
                assert sorted(each["n"] for *_, each in heard) == list(range(10))


@pytest.mark.parametrize("version", ["messaging", "messagingv2"])
def test_notifications_of_both_versions(pair, version):
    notifier_url, listener_url = pair
    topic = unique()
    with (
        listening(listener_url, topic) as listener,
        notification(notifier_url) as transport,
    ):
        notifier = oslo_messaging.Notifier(
            transport, "publisher", driver=version, topics=[topic], retry=-1
        )
        notifier.info({}, "event", {"é": [1]})
        assert listener.next() == ("publisher", "event", {"é": [1]})


def test_a_pool_with_members_of_both(amqp, theirs):
    topic = unique()
    with (
        listening(amqp, topic, f"{topic}-pool") as here,
        listening(theirs, topic, f"{topic}-pool") as there,
        notifying(theirs, topic) as notifier,
    ):
        for number in range(100):
            notifier.info({}, "event", {"n": number})
        heard = []
        while len(heard) < 100:
            for member in (here, there):
                while not member.heard.empty():
                    heard.append(member.next()[2]["n"])
        assert sorted(heard) == list(range(100))


def test_one_listener_on_several_exchanges(amqp, theirs):
    """What services notify in their exchanges arrives once at the one agent; in this
    topology a topic has one queue, whatever its exchange."""
    topic = unique()
    exchanges = [unique("exchange") for _ in range(3)]
    heard = rabbit.Notified()
    with notification(amqp) as transport:
        listener = oslo_messaging.get_notification_listener(
            transport,
            [Target(exchange=name, topic=topic) for name in exchanges],
            [heard],
            "threading",
            pool=f"{topic}-agent",
        )
        with rabbit.running(listener):
            for number, name in enumerate(exchanges):
                target = Target(exchange=name, topic=f"{topic}.info")
                notify(theirs, target, payload=number)
            found = sorted(heard.next()[2] for _ in exchanges)
    assert found == [0, 1, 2]
    assert heard.heard.empty()


@pytest.mark.parametrize("allowed", [True, False])
def test_remote_exceptions(pair, allowed):
    client_url, server_url = pair
    topic = unique()
    with serving(server_url, topic):
        transport = oslo_messaging.get_rpc_transport(
            rabbit.conf(),
            client_url,
            allowed_remote_exmods=[Remote.__module__] if allowed else [],
        )
        try:
            client = oslo_messaging.get_rpc_client(
                transport, Target(topic=topic), timeout=PATIENCE
            )
            with pytest.raises(Remote if allowed else oslo_messaging.RemoteError) as e:
                client.call({}, "fail", text="such a thing")
        finally:
            transport.cleanup()
    assert "such a thing" in str(e.value)
    if not allowed:
        assert e.value.exc_type == "Remote"


def test_context_and_tracing_keys_pass(pair):
    client_url, server_url = pair
    topic = unique()
    context = {
        "user": "ü",
        "trace_info": {"hmac_key": "k", "base_id": "b"},
        "nested": {"list": [1, None]},
        "is_admin": False,
    }
    with serving(server_url, topic) as endpoint, calling(client_url, topic) as client:
        client.call(context, "echo", value=1)
        found = endpoint.contexts.get(timeout=PATIENCE)
        # The rabbit:// driver puts this one in.
        found.pop("client_timeout", None)
        assert found == context
    with listening(server_url, topic) as listener:
        notify(client_url, Target(topic=f"{topic}.info"), context)
        listener.next()
        found = listener.contexts.get(timeout=PATIENCE)
        found.pop("client_timeout", None)
        assert found == context


def test_call_monitor(pair):
    """The server's heartbeats keep a call alive beyond the monitor's time-out."""
    client_url, server_url = pair
    topic = unique()
    endpoint = Endpoint("server")
    with (
        serving(server_url, topic, endpoint=endpoint),
        calling(client_url, topic, call_monitor_timeout=2) as client,
    ):
        assert client.call({}, "who") == "server"
        began = time.monotonic()
        call = HeldCall(client, endpoint, "long")
        # Three time-outs of the monitor, which is what is tried here.
        call.caller.join(max(0, began + 6 - time.monotonic()))
        assert call.caller.is_alive() and not call.results
        assert call.end() == ["long"]


def test_call_monitor_gives_up(pair, rabbitmq):
    """The server goes away, and with it its heartbeats."""
    client_url, server_url = pair
    topic = unique()
    endpoint = Endpoint("server")
    failed = []

    def call(client):
        try:
            client.call({}, "wait", value="never")
        except Exception as exc:
            failed.append(exc)

    with calling(client_url, topic, call_monitor_timeout=1) as client:
        transport = oslo_messaging.get_rpc_transport(rabbit.conf(), server_url)
        listener = transport._driver.listen(Target(topic=topic, server="s"), 1, None)
        caller = threading.Thread(target=call, args=(client,))
        caller.start()
        # Taken, and never answered.
        assert _taken(listener)
        caller.join(PATIENCE)
        listener.cleanup()
        transport.cleanup()
    endpoint.gate.set()
    assert isinstance(failed[0], exceptions.MessagingTimeout)


def _taken(listener):
    """One message, from a listener of either driver."""
    poll = getattr(listener, "poll", None) or listener._poll_style_listener.poll
    return poll(timeout=PATIENCE)


def test_a_duplicate_is_dropped_by_both(amqp, theirs):
    """What was acknowledged and comes again has the same unique id."""
    for server in (amqp, theirs):
        topic = unique()
        with serving(server, topic) as endpoint, rpc(amqp) as transport:
            driver = transport._driver
            client = driver._connected()
            # The same message twice, as after a connection that was lost.
            for value, unique_id in (("first", "1"), ("copy", "1"), ("end", "2")):
                client.unique_id = lambda unique_id=unique_id: unique_id
                request = {"method": "hear", "args": {"value": value}}
                driver.send(Target(topic=topic), {}, request)
                if value != "copy":
                    # It is acknowledged before an endpoint hears of it.
                    assert endpoint.next() == value


def test_nobody_there(amqp):
    options = oslo_messaging.TransportOptions(at_least_once=True)
    with calling(amqp, unique(), transport_options=options) as client:
        with pytest.raises(exceptions.MessageUndeliverable):
            client.call({}, "who")
    with calling(amqp, unique(), timeout=2) as client:
        with pytest.raises(exceptions.MessagingTimeout, match="nobody there"):
            client.call({}, "who")
        client.prepare(fanout=True, retry=0).cast({}, "hear", value=1)


def test_a_fanout_after_the_last_server_went(amqp, theirs):
    """Its exchange goes with it: in order, and back with the next server."""
    topic = unique()
    with calling(amqp, topic) as client:
        fanout = client.prepare(fanout=True, retry=0)
        for server in (amqp, theirs, amqp):
            with serving(server, topic) as endpoint:
                fanout.cast({}, "hear", value=server)
                assert endpoint.next() == server
            fanout.cast({}, "hear", value="nobody")


@pytest.mark.parametrize(
    "there, here, option",
    [
        ("", "amqp_durable_queues=true", "amqp_durable_queues"),
        ("amqp_durable_queues=true", "rabbit_quorum_queue=true", "rabbit_quorum_queue"),
        (
            "rabbit_quorum_queue=true",
            "rabbit_quorum_queue=true&rabbit_quorum_delivery_limit=3",
            "rabbit_quorum_delivery_limit",
        ),
    ],
)
def test_options_that_differ_are_named(amqp, theirs, there, here, option):
    topic, exchange = unique(), unique("exchange")
    target = Target(exchange=exchange, topic=f"{topic}.info")
    notify(f"{theirs}?{there}", target)
    with pytest.raises(exceptions.MessageDeliveryFailure) as caught:
        notify(f"{amqp}?{here}", target, retry=0)
    text = str(caught.value)
    assert f"queue '{topic}.info'" in text
    assert "received" in text and "current is" in text
    assert "[oslo_messaging_rabbit]" in text and option in text


def test_an_exchange_that_differs_in_its_life_is_used(amqp, theirs, caplog):
    """As the rabbit:// driver does: the exchange of many services is one of them's."""
    topic, exchange = unique(), unique("exchange")
    notify(theirs, Target(exchange=exchange, topic=f"{unique()}.info"))
    durable = f"{amqp}?amqp_durable_queues=true"
    with listening(durable, topic, exchange=exchange) as own:
        notify(durable, Target(exchange=exchange, topic=f"{topic}.info"), payload=1)
        assert own.next() == ("publisher", "event", 1)
    assert "is used as it is" in caplog.text


def test_what_is_declared_is_the_same(amqp, theirs, rabbitmq):
    """The queues that each of the two makes for the same targets."""
    found = []
    for url in (amqp, theirs):
        topic = unique()
        with (
            serving(url, topic),
            calling(url, topic) as client,
            notifying(url, topic) as notifier,
            listening(url, topic, f"{topic}-pool"),
        ):
            client.call({}, "who")
            notifier.info({}, "event", {})
            found.append(
                sorted(
                    (
                        name.replace(topic, "T").partition("_fanout_")[0],
                        row["type"],
                        row["durable"],
                        # Without the types of numbers, by which none differs.
                        str([(each[0], each[-1]) for each in row["arguments"]]),
                    )
                    for name, row in queues(rabbitmq).items()
                    if topic in name
                )
            )
    assert found[0] == found[1] and len(found[0]) == 5


@pytest.mark.parametrize("side", ["amqp", "theirs"])
def test_who_calls_makes_a_deleted_exchange_anew(amqp, theirs, side, rabbitmq):
    """And has it lead to the queues of a server, whom nobody tells."""
    exchange, topic = unique("exchange"), unique()
    delete = (
        'rabbit_exchange:ensure_deleted(rabbit_misc:r(<<"/">>, exchange, '
        f'<<"{exchange}">>), false, <<"test">>).'
    )
    target = Target(exchange=exchange, topic=topic, server="one")
    with (
        rpc(amqp if side == "amqp" else theirs) as transport,
        running(
            oslo_messaging.get_rpc_server(
                transport, target, [Endpoint("answer")], "threading"
            )
        ),
        calling(amqp, topic) as client,
    ):
        for server in (None, "one", None):
            client = client.prepare(exchange=exchange, server=server)
            assert client.call({}, "who") == "answer"
            rabbitmq.control("eval", delete)
            assert client.call({}, "who") == "answer"


def test_a_lost_connection_costs_no_call(pair, rabbitmq):
    client_url, server_url = pair
    topic = unique()
    endpoint = Endpoint("server")
    with (
        serving(server_url, topic, endpoint=endpoint),
        calling(client_url, topic) as client,
    ):
        assert client.call({}, "who") == "server"
        call = HeldCall(client, endpoint, "kept")
        rabbitmq.control("close_all_connections", "test")
        assert client.call({}, "who") == "server"
        assert call.end() == ["kept"]
