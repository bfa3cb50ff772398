# SPDX-License-Identifier: Apache-2.0
"""greenamqp on a real RabbitMQ 4, with the queues and exchanges of the rabbit:// driver
and with those of its own."""

from __future__ import annotations

import contextlib

import oslo_messaging
import pytest
from oslo_messaging import Target, exceptions

from greenamqp.client import receiving
from greenamqp.driver import set_queue_policy
from greenamqp.policy import QueuePolicy
from tests.chaos.workers import wait_until
from tests.integration.rabbit import (
    PATIENCE,
    AnyVersion,
    Endpoint,
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


@pytest.fixture(params=["rabbit", "declared"])
def url(rabbitmq, request):
    return rabbitmq.url() + f"?addressing_mode={request.param}"


@pytest.fixture
def declared(rabbitmq):
    """As `url`, for what is about the driver's own queues."""
    return rabbitmq.url() + "?addressing_mode=declared"


def mine(rabbitmq, topic, vhost="/"):
    return {name: row for name, row in queues(rabbitmq, vhost).items() if topic in name}


class TestAnyVersion(AnyVersion):
    """In both modes."""

    # A quorum queue that is killed within seconds of its declaration does not come
    # back to work in 4.0: that is the broker's, and not what is tried here.
    lasting = "&rabbit_queue_type=classic&amqp_durable_queues=true"


@pytest.mark.proves("mandatory")
def test_nobody_there_is_an_error_where_it_is_asked_for(url):
    options = oslo_messaging.TransportOptions(at_least_once=True)
    with calling(url, unique(), transport_options=options) as client:
        with pytest.raises(exceptions.MessageUndeliverable):
            client.call({}, "who")


def test_notifications_wait_and_pools_get_copies(url):
    topic = unique()
    with notifying(url, topic) as notifier:
        notifier.info({}, "early", {"n": 1})
        with (
            listening(url, topic) as default,
            listening(url, topic, "pool") as pool,
            listening(url, topic, "other") as other,
        ):
            assert default.next()[1] == "early"
            notifier.info({}, "late", {"n": 2})
            for listener in (default, pool, other):
                assert listener.next() == ("publisher", "late", {"n": 2})


def test_what_must_last_is_durable_and_quorum(declared, rabbitmq):
    topic = unique()
    with serving(declared, topic), notifying(declared, topic) as notifier:
        notifier.info({}, "event", {})
        found = mine(rabbitmq, topic)
    kinds = sorted((row["type"], row["durable"]) for row in found.values())
    assert kinds == [("classic", True)] + 3 * [("quorum", True)]


def test_classic_by_option(declared, rabbitmq):
    topic = unique()
    with notifying(declared + "&rabbit_queue_type=classic", topic) as notifier:
        notifier.info({}, "event", {})
    assert [row["type"] for row in mine(rabbitmq, topic).values()] == ["classic"]


def test_queues_of_one_process_are_removed_with_it(url, rabbitmq):
    def for_all():
        marks = ("multicast", "_fanout_")
        return [
            name
            for name in mine(rabbitmq, topic)
            if any(mark in name for mark in marks)
        ]

    topic = unique()
    before = {name for name in queues(rabbitmq) if name.startswith("reply")}
    with serving(url, topic), calling(url, topic) as client:
        client.call({}, "who")
        assert for_all()
        replies = {name for name in queues(rabbitmq) if name.startswith("reply")}
        assert len(replies - before) == 1
    assert not for_all()
    # The bus says goodbye to a connection, and may remove its queue a moment later.
    mine_alone = replies - before
    wait_until(lambda: not mine_alone & set(queues(rabbitmq)), "its replies' is gone")


@pytest.mark.proves("policy")
def test_queue_policy_becomes_arguments(url, rabbitmq):
    topic = unique()
    policy = QueuePolicy(3600, 1800, max_length=2)
    # The listener must ask for the same; by options here, by target there.
    asked = "&queue_expires=3600&queue_message_ttl=1800&queue_max_length=2"
    with notification(url) as transport:
        set_queue_policy(transport, Target(topic=topic), policy)
        notifier = oslo_messaging.Notifier(
            transport, "p", driver="messaging", topics=[topic], retry=-1
        )
        for number in range(5):
            notifier.info({}, "event", {"n": number})
        (row,) = mine(rabbitmq, topic).values()
    arguments = dict(map(_argument, row["arguments"]))
    assert arguments["x-expires"] == 3600_000
    assert arguments["x-message-ttl"] == 1800_000
    assert arguments["x-max-length"] == 2
    with listening(url + asked, topic) as listener:
        assert [listener.next()[2]["n"] for _ in range(2)] == [3, 4]


def _argument(given):
    # [name, value] or [name, type, value], by the broker's version.
    return (given[0], given[-1])


@pytest.mark.proves("policy")
def test_a_queue_that_differs_is_named(declared):
    topic = unique()
    with notifying(declared + "&rabbit_queue_type=classic", topic) as notifier:
        notifier.info({}, "event", {})
    with notification(declared) as transport:
        driver = transport._driver
        with pytest.raises(exceptions.MessageDeliveryFailure) as caught:
            driver.send_notification(
                Target(topic=f"{topic}.info"), {}, {"event_type": "e"}, 2.0, retry=0
            )
    text = str(caught.value)
    assert topic in text and "classic" in text and "quorum" in text


@pytest.mark.proves("virtual hosts")
def test_virtual_hosts(url, rabbitmq):
    vhost, topic = unique("vhost"), unique()
    rabbitmq.control("add_vhost", vhost)
    rabbitmq.control("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    url = url.replace("/?", f"/{vhost}?")
    with serving(url, topic), calling(url, topic) as client:
        assert client.call({}, "who") == "server"
        assert len(mine(rabbitmq, topic, vhost)) == 3
        assert not mine(rabbitmq, topic)


@pytest.mark.proves("reconnect")
def test_a_fanout_while_the_connection_is_lost_is_kept(url, rabbitmq):
    topic = unique()
    with serving(url, topic) as endpoint, calling(url, topic) as client:
        rabbitmq.control("close_all_connections", "test")
        client.prepare(fanout=True).cast({}, "hear", value="kept")
        assert endpoint.next() == "kept"


def test_what_an_operator_deletes_comes_back(url, rabbitmq):
    topic = unique()
    with listening(url, topic) as listener, notifying(url, topic) as notifier:
        notifier.info({}, "before", {})
        assert listener.next()[1] == "before"
        for name in mine(rabbitmq, topic):
            rabbitmq.control("delete_queue", name)
        notifier.info({}, "after", {})
        assert listener.next()[1] == "after"


def test_a_fanout_exchange_that_an_operator_deletes_comes_back(
    url, rabbitmq, monkeypatch
):
    """With what leads from there to each server, which nobody tells."""
    monkeypatch.setattr(receiving, "RENEW_EVERY", 1.0)
    topic = unique()
    with serving(url, topic) as endpoint, calling(url, topic) as client:
        deleted = rabbitmq.control(
            "eval",
            '[begin rabbit_exchange:ensure_deleted(N, false, <<"test">>), N end '
            "|| X <- rabbit_exchange:list(), N <- [element(2, X)], "
            f'string:find(element(4, N), <<"{topic}">>) =/= nomatch].',
        )
        assert topic in deleted

        def heard():
            client.prepare(fanout=True).cast({}, "hear", value="again")
            return not endpoint.heard.empty()

        wait_until(heard, "the server is bound again")


def test_no_right_to_a_queue_harms_nobody_else(url, rabbitmq):
    """Its session ends: the other subscriptions of the connection must go on."""
    good, bad, user = unique("good"), unique("bad"), unique("user")
    rabbitmq.control("add_user", user, "secret")
    rabbitmq.control(
        "set_permissions", user, ".*", ".*", f"^(?!.*{bad}).*$"
    )  # may declare all of it, and not read what is bad
    theirs = url.replace("guest:guest", f"{user}:secret")
    with contextlib.ExitStack() as stack:
        transport = stack.enter_context(rpc(theirs + "&default_send_timeout=5"))
        endpoints = {}
        for topic in (good, bad):
            endpoints[topic] = Endpoint(topic)
            stack.enter_context(
                running(
                    oslo_messaging.get_rpc_server(
                        transport,
                        Target(topic=topic, server="s"),
                        [endpoints[topic]],
                        "threading",
                    )
                )
            )
        client = stack.enter_context(calling(url, good))
        assert client.call({}, "who") == good


@pytest.mark.proves("many targets")
def test_many_targets_share_sessions(url, rabbitmq):
    """300 servers have 900 links, which must not be 900 sessions."""
    topics = [unique("many") for _ in range(300)]
    classic = url + "&rabbit_queue_type=classic"
    with rpc(classic) as transport, calling(classic, "none") as client:
        driver = transport._driver
        listeners = [
            driver.subscribe(Target(topic=topic, server="s"), 1, None)
            for topic in topics
        ]
        hub = driver.use_hub()
        for listener in listeners:
            assert listener.wait_attached(hub.now() + PATIENCE)
        engine = driver._connected().connection.engine
        assert engine.session_count <= 5
        for topic in topics[:3] + topics[-3:]:
            client.prepare(topic=topic).cast({}, "hear", value=topic)
        for topic, listener in zip(topics, listeners, strict=True):
            if topic in topics[:3] + topics[-3:]:
                (message,) = listener.poll(timeout=PATIENCE)
                assert message.message["args"] == {"value": topic}
                message.acknowledge()
            listener.cleanup()
