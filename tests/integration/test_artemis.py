# SPDX-License-Identifier: Apache-2.0
"""greenamqp on a real Artemis: alone, a pair that fails over, a cluster."""

from __future__ import annotations

import json
import os
import threading
import time

import oslo_messaging
import pytest
from oslo_messaging import Target, exceptions

import greenamqp
from greenamqp import command
from greenamqp.driver import set_queue_policy
from greenamqp.policy import QueuePolicy
from tests.functional.certificates import Authority
from tests.integration.artemis import Failed, TlsArtemis, operator
from tests.integration.contract import Contract, KeepsReplies
from tests.integration.services import (
    PATIENCE,
    Endpoint,
    calling,
    listening,
    notification,
    notifying,
    serving,
    unique,
)
from tools.buses import BUSES, Bus

MODULE = f"tests-{os.getpid()}"


@pytest.fixture(scope="module")
def bus():
    with Bus("artemis", f"artemis-{MODULE}") as bus:
        yield bus


@pytest.fixture
def url(bus):
    return bus.url()


class TestContract(Contract, KeepsReplies):
    """What is so on every bus, and on those that keep replies."""


def test_the_doctor_finds_it_in_order(url, capsys):
    assert command.main(["doctor", "--url", url]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ok"
    wrong = url.replace("@", "x@")
    assert command.main(["doctor", "--quick", "--url", wrong]) == 1
    assert "wrong user name or password" in capsys.readouterr().out


# -- what it makes, and how long that stays


def test_only_what_is_needed_is_made(url):
    topic = unique()
    with operator(url) as it:
        with calling(url, topic) as client, serving(url, topic):
            client.call({}, "who")
            with notifying(url, topic) as notifier, listening(url, topic, "p"):
                notifier.info({}, "event", {})
                during = it.queues(topic)
        # What is for all servers goes with the server; the broker keeps the rest.
        after = it.come_to(topic, lambda left: len(left) <= 4)
    routes = sorted(queue["routingType"] for queue in during.values())
    # One server, any server, all servers; listeners without a pool, the pool.
    assert routes == ["ANYCAST"] * 2 + ["MULTICAST"] * 3
    assert len(after) == 4
    assert all(queue["durable"] == "true" for queue in after.values())


def test_the_queue_for_replies_goes_with_its_process_in_order(url):
    with operator(url) as it, calling(url, unique()) as client:
        with serving(url, client.target.topic):
            client.call({}, "who")
            ((name, made),) = it.come_to(".reply:", lambda all: len(all) == 1).items()
            assert (made["durable"], made["autoDelete"]) == ("false", "true")
            assert it.ask("getAddressInfo", name)
        client.transport.cleanup()
        it.come_to(".reply:", lambda left: not left)
        until = time.monotonic() + PATIENCE
        with pytest.raises(Failed):
            while time.monotonic() < until:
                it.ask("getAddressInfo", name)


def test_a_late_reply_leaves_no_queue(url):
    topic = unique()
    endpoint = Endpoint()
    with serving(url, topic, endpoint=endpoint):
        with operator(url) as it:
            before = set(it.queues(""))
            with calling(url, topic, timeout=1) as client:
                with pytest.raises(oslo_messaging.MessagingTimeout):
                    client.call({}, "wait", value=1)
            assert endpoint.started.wait(PATIENCE)
            endpoint.gate.set()
            with calling(url, topic) as client:
                # The server's worker for it may come after the other's reply.
                assert client.call({}, "echo", value=2) == 2
                client.cast({}, "hear", value=3)
                assert endpoint.next() == 3
            it.come_to("", before.issuperset)


@pytest.mark.proves("ttl")
def test_a_request_that_nobody_takes_expires(url):
    topic = unique()
    with serving(url, topic):
        pass
    with calling(url + "?rpc_cast_ttl=1", topic, timeout=1) as client:
        with pytest.raises(oslo_messaging.MessagingTimeout):
            client.call({}, "who")
        client.cast({}, "hear", value="old")
        # A message without an end of its own, which is to be the first one left.
        with calling(url + "?rpc_cast_ttl=0", topic) as other, operator(url) as it:
            other.cast({}, "hear", value="new")
            (name,) = (name for name in it.queues(topic) if ".anycast:" in name)
            it.come_to(name, lambda found: found[name]["messageCount"] == "1")
        with serving(url, topic) as endpoint:
            assert endpoint.next() == "new"


def test_nobody_is_told_that_there_is_no_server(url):
    """A limit of this bus: in a cluster the server may be elsewhere."""
    options = oslo_messaging.TransportOptions(at_least_once=True)
    with calling(url, unique(), transport_options=options) as client:
        client.cast({}, "hear", value=1)


def test_a_notification_waits_for_room_in_its_queue(url):
    topic = unique()
    setting = {
        "maxSizeBytes": 20_000,
        "pageSizeBytes": 10_000,
        "addressFullMessagePolicy": "FAIL",
    }
    address = f"openstack.org.om.notify.anycast:openstack:{topic}.info"
    with operator(url) as it, notifying(url, topic) as notifier:
        it.ask("addAddressSettings", address, json.dumps(setting))

        def notify():
            for number in range(40):
                notifier.info({}, "event", {"n": number, "content": "x" * 1000})

        thread = threading.Thread(target=notify)
        thread.start()
        until = time.monotonic() + PATIENCE
        while thread.is_alive() and not waits(notifier.transport):
            assert time.monotonic() < until
        with listening(url, topic) as listener:
            assert {listener.next()[2]["n"] for _ in range(40)} == set(range(40))
            thread.join(PATIENCE)


def waits(transport) -> bool:
    """Whether there is a message that the broker does not take for now."""
    return any(
        sender["phase"] == "up" and sender["pending"]
        for connection in greenamqp.describe(transport)["connections"]
        for sender in connection["senders"]
    )


# -- policies


@pytest.mark.proves("policy")
def test_a_policy_of_length_and_life(url):
    topic = unique()
    target = Target(topic=topic)
    with notification(url) as transport:
        set_queue_policy(transport, target, QueuePolicy(expires=5, max_length=3))
        notifier = oslo_messaging.Notifier(
            transport, "publisher", driver="messaging", topics=[topic], retry=0
        )
        for number in range(6):
            notifier.info({}, "event", {"n": number})
        with operator(url) as it:
            ((name, queue),) = it.queues(topic).items()
            assert queue["ringSize"] == "3" and queue["autoDelete"] == "true"
        with listening(url, topic) as listener:
            assert [listener.next()[2]["n"] for _ in range(3)] == [3, 4, 5]
        # The broker looks every 30 s which queues are to go.
        with operator(url) as it:
            it.come_to(topic, lambda left: name not in left)


@pytest.mark.proves("policy")
def test_a_policy_of_how_long_a_message_lives(url):
    topic = unique()
    with notification(url) as transport, operator(url) as it:
        policy = QueuePolicy(message_ttl=0.5)
        set_queue_policy(transport, Target(topic=topic), policy)
        notifier = oslo_messaging.Notifier(
            transport, "publisher", driver="messaging", topics=[topic], retry=0
        )
        notifier.info({}, "event", {})
        it.come_to(
            topic, lambda all: [q["messageCount"] for q in all.values()] == ["0"]
        )


def test_a_policy_that_an_existing_queue_cannot_take_is_refused(url):
    topic = unique()
    with notifying(url, topic) as notifier:
        notifier.info({}, "event", {})
    with notification(url) as transport:
        set_queue_policy(transport, Target(topic=topic), QueuePolicy(expires=5))
        with pytest.raises(
            exceptions.MessageDeliveryFailure,
            match="exists with auto-delete False.*asks for auto-delete True",
        ):
            transport._driver.send_notification(
                Target(topic=f"{topic}.info"), {}, {"event_type": "e"}, 2.0, retry=0
            )


def test_a_length_may_be_set_later(url):
    topic = unique()
    with notifying(url, topic) as notifier:
        notifier.info({}, "event", {})
    with notification(url) as transport, operator(url) as it:
        set_queue_policy(transport, Target(topic=topic), QueuePolicy(max_length=7))
        transport._driver.send_notification(
            Target(topic=f"{topic}.info"), {}, {"event_type": "e"}, 2.0, retry=0
        )
        assert [queue["ringSize"] for queue in it.queues(topic).values()] == ["7"]


def test_who_may_not_manage_has_all_but_policies(url):
    user, topic = unique("user"), unique()
    with operator(url) as it:
        it.user_without_management(user)
    theirs = url.replace("greenamqp:greenamqp", f"{user}:secret")
    with serving(theirs, topic), calling(theirs, topic) as client:
        assert client.call({}, "who") == "server"
    with notifying(theirs, topic) as notifier, listening(theirs, topic) as listener:
        notifier.info({}, "event", {})
        assert listener.next()[1] == "event"
    with notification(theirs) as transport:
        set_queue_policy(transport, Target(topic="limited"), QueuePolicy(max_length=7))
        with pytest.raises(
            exceptions.MessageDeliveryFailure,
            match="activemq.management was closed: amqp:unauthorized-access",
        ):
            transport._driver.send_notification(
                Target(topic="limited.info"), {}, {"event_type": "e"}, 2.0, retry=0
            )


# -- TLS


@pytest.mark.proves("tls")
def test_tls_with_certificates_on_both_sides(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    certificate = authority.issue("127.0.0.1", "localhost")
    kind = TlsArtemis("artemis-tls", certificate, authority.ca)
    monkeypatch.setitem(BUSES, kind.name, kind)
    mine = authority.issue("client")
    with Bus(kind.name, f"artemis-tls-{MODULE}") as bus:
        (port,) = bus.ports()
        (tls_port,) = bus.ports(1)
        url = bus.url().replace(f":{port}", f":{tls_port}")
        url += f"?ssl_ca_file={authority.ca}&ssl_cert_file={mine}"
        topic = unique()
        with serving(url, topic), calling(url, topic) as client:
            assert client.call({}, "who") == "server"
        without = url.partition("&")[0] + "&connection_retry_interval=1"
        with calling(without, topic, timeout=5) as client:
            with pytest.raises(oslo_messaging.MessagingTimeout, match="certificate"):
                client.call({}, "who")


# -- more than one


@pytest.mark.proves("failover")
def test_a_pair_fails_over_and_loses_nothing_that_was_accepted():
    quick = "?connection_retry_interval=1&connection_retry_backoff=0"
    with Bus("artemis-pair", f"artemis-pair-{MODULE}") as pair:
        url = pair.url() + quick
        topic = unique()
        outcomes: dict[int, object] = {}
        ended = threading.Semaphore(0)
        stop = threading.Event()

        def call():
            with calling(url, topic, timeout=20) as client:
                number = 0
                while not stop.is_set():
                    began = time.monotonic()
                    try:
                        answer = client.call({}, "echo", value=number)
                    except exceptions.MessagingException as exc:
                        answer = exc
                    outcomes[number] = (answer, time.monotonic() - began)
                    number += 1
                    ended.release()

        with (
            notifying(url, topic) as notifier,
            listening(url, topic) as default,
            listening(url, topic, "pool") as pool,
            serving(url, topic),
        ):
            caller = threading.Thread(target=call)
            caller.start()
            for number in range(300):
                if number == 100:
                    pair.kill9(0)
                notifier.info({}, "event", {"n": number})
            for listener in (default, pool):
                heard = set()
                while len(heard) < 300:
                    heard.add(listener.next()[2]["n"])
                assert heard == set(range(300))
            for _ in range(len(outcomes) + 20):  # calls go on
                assert ended.acquire(timeout=PATIENCE)
            stop.set()
            caller.join(PATIENCE)
        failed = 0
        for number, (answer, seconds) in outcomes.items():
            if isinstance(answer, Exception):
                failed += 1
            else:
                assert answer == number
            assert seconds < 21
        # The one that was on its way when the primary died, and one more at most
        # that met the backup before its server did.
        assert failed <= 2


@pytest.mark.proves("failover")
def test_a_cluster_is_one_bus():
    with Bus("artemis-cluster", f"artemis-cluster-{MODULE}") as cluster:
        login = "greenamqp:greenamqp@127.0.0.1"
        one, two = (f"amqp://{login}:{port}/" for port in cluster.ports())
        topic = unique()
        with (
            serving(one, topic, "server"),
            calling(one, topic) as near,
            calling(two, topic) as far,
        ):
            for client in (near, far):
                assert client.call({}, "who") == "server"
                assert client.prepare(server="server").call({}, "who") == "server"
        with notifying(two, topic) as notifier:
            notifier.info({}, "early", {})
            with (
                listening(one, topic) as default,
                listening(one, topic, "pool") as pool,
                listening(two, topic, "other") as other,
            ):
                assert default.next()[1] == "early"
                notifier.info({}, "late", {})
                for listener in (default, pool, other):
                    assert listener.next()[1] == "late"
