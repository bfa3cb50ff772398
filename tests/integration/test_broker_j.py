# SPDX-License-Identifier: Apache-2.0
"""greenamqp on a real Qpid Broker-J."""

from __future__ import annotations

import json
import os
import time

import oslo_messaging
import pytest
from oslo_messaging import Target, exceptions
from proton import Message
from proton.utils import BlockingConnection

from greenamqp.buses.broker_j import DEAD_LETTERS
from greenamqp.driver import set_queue_policy
from greenamqp.policy import QueuePolicy
from tests.functional.certificates import Authority
from tests.integration.contract import Contract
from tests.integration.keystores import PASSWORD, write_key
from tests.integration.services import (
    PATIENCE,
    calling,
    listening,
    notification,
    notifying,
    rpc,
    serving,
    unique,
)
from tools.buses import BUSES, Bus
from tools.buses.broker_j import BrokerJ

NOTIFY = "openstack.org.om.notify.anycast:openstack:"


@pytest.fixture(scope="module")
def bus():
    with Bus("qpid-broker-j", f"qpid-broker-j-tests-{os.getpid()}") as bus:
        yield bus


@pytest.fixture
def url(bus):
    return bus.url()


@pytest.fixture
def raw(url):
    connection = BlockingConnection(url, timeout=PATIENCE, allowed_mechs="PLAIN")
    yield connection
    connection.close()


def statistics(raw, queue):
    """What the broker has counted at a queue."""
    answers = raw.create_receiver(None, dynamic=True, credit=1)
    request = Message(
        {},
        properties={
            "operation": "getStatistics",
            "type": "org.apache.qpid.Queue",
            "index": "object-path",
            "key": queue,
        },
        reply_to=answers.link.remote_source.address,
        id="1",
    )
    requests = raw.create_sender("$management")
    requests.send(request)
    found = answers.receive().body
    answers.accept()
    for link in (answers, requests):
        link.close()
    return found


class TestContract(Contract):
    """What is so on every bus."""


@pytest.mark.proves("mandatory")
def test_nobody_there_is_an_error_where_it_is_asked_for(url):
    options = oslo_messaging.TransportOptions(at_least_once=True)
    with calling(url, unique(), transport_options=options) as client:
        with pytest.raises(exceptions.MessageUndeliverable):
            client.call({}, "who")
        with pytest.raises(exceptions.MessageUndeliverable):
            client.cast({}, "who")


def test_nobody_there_without_a_retry(url):
    with calling(url, unique(), retry=0) as client:
        with pytest.raises(exceptions.MessageDeliveryFailure, match="nobody there"):
            client.cast({}, "hear", value=1)


def test_what_cannot_be_read_ends_among_the_dead_letters(url, raw):
    topic = unique()
    with listening(url, topic) as listener, notifying(url, topic) as notifier:
        bad = Message(f"no JSON {topic}", durable=True)
        raw.create_sender(f"{NOTIFY}{topic}.info").send(bad)
        notifier.info({}, "good", {})
        assert listener.next()[1] == "good"
        dead = raw.create_receiver(DEAD_LETTERS, credit=100)
        while dead.receive().body != bad.body:
            dead.accept()
        dead.accept()


@pytest.mark.proves("policy")
def test_a_policy_of_length(url):
    topic = unique()
    with notification(url) as transport:
        set_queue_policy(transport, Target(topic=topic), QueuePolicy(max_length=3))
        notifier = oslo_messaging.Notifier(
            transport, "publisher", driver="messaging", topics=[topic], retry=0
        )
        for number in range(6):
            notifier.info({}, "event", {"n": number})
    # The policy is the queue's: a listener without one takes it as it is.
    with listening(url, topic) as listener:
        assert [listener.next()[2]["n"] for _ in range(3)] == [3, 4, 5]


def test_who_asks_for_a_policy_makes_the_queue(url):
    topic = unique()
    with rpc(url) as transport:
        target = Target(topic=topic, server="late")
        set_queue_policy(transport, target, QueuePolicy(max_length=2))
        client = oslo_messaging.get_rpc_client(transport, target)
        for value in (1, 2, 3):
            client.cast({}, "hear", value=value)
        with serving(url, topic, "late") as endpoint:
            assert sorted((endpoint.next(), endpoint.next())) == [2, 3]


@pytest.mark.proves("policy")
def test_a_policy_of_how_long_a_message_lives(url, raw):
    topic = unique()
    with notification(url) as transport:
        policy = QueuePolicy(message_ttl=0.5)
        set_queue_policy(transport, Target(topic=topic), policy)
        notifier = oslo_messaging.Notifier(
            transport, "publisher", driver="messaging", topics=[topic], retry=0
        )
        notifier.info({}, "event", {})
    name = f"default:{NOTIFY}{topic}.info"
    found = statistics(raw, name)
    assert found["totalEnqueuedMessages"] == 1
    # The broker looks through its queues every 30 s.
    until = time.monotonic() + PATIENCE
    while found["queueDepthMessages"]:
        assert time.monotonic() < until
        found = statistics(raw, name)
    assert found["totalExpiredMessages"] == 1


def test_a_policy_that_an_existing_queue_does_not_have_is_refused(url):
    topic = unique()
    with notifying(url, topic) as notifier:
        notifier.info({}, "event", {})
    with notification(url) as transport:
        set_queue_policy(transport, Target(topic=topic), QueuePolicy(max_length=3))
        with pytest.raises(
            exceptions.MessageDeliveryFailure,
            match="exists with maximumQueueDepthMessages unset.*asks for",
        ):
            transport._driver.send_notification(
                Target(topic=f"{topic}.info"), {}, {"event_type": "e"}, 2.0, retry=0
            )


@pytest.mark.proves("policy")
def test_a_queue_that_is_to_expire_is_refused(url):
    topic = unique()
    with rpc(url) as transport:
        set_queue_policy(transport, Target(topic=topic), QueuePolicy(expires=5))
        server = oslo_messaging.get_rpc_server(
            transport, Target(topic=topic, server="s"), [], "threading"
        )
        with pytest.raises(NotImplementedError, match="expires=5.*Broker-J"):
            server.start()


def test_a_virtual_host_of_the_broker_that_is_not_there_is_named(url):
    wrong = url.rstrip("/") + "/nowhere?pseudo_vhost=false"
    with calling(wrong, unique(), timeout=5) as client:
        with pytest.raises(oslo_messaging.MessagingTimeout, match="nknown host"):
            client.call({}, "who")
    right = url.rstrip("/") + "/default?pseudo_vhost=false"
    topic = unique()
    with serving(right, topic), calling(url, topic) as client:
        assert client.call({}, "who") == "server"


class TlsBrokerJ(BrokerJ):
    """A Broker-J that has a second port, with TLS and the mechanisms that it offers
    there by default.

    :param certificate: PEM file of its certificate and key
    """

    ports = 2

    def __init__(self, name, certificate):
        super().__init__(name)
        self._certificate = certificate

    def prepare(self, layout, node):
        super().prepare(layout, node)
        folder = layout.node_folder(node)
        keys = folder / "key.p12"
        write_key(self._certificate, keys)
        path = folder / "initial.json"
        config = json.loads(path.read_text())
        config["keystores"] = [
            {
                "name": "keys",
                "type": "FileKeyStore",
                "keyStoreType": "PKCS12",
                "storeUrl": keys.as_uri(),
                "password": PASSWORD,
            }
        ]
        (plain,) = config["authenticationproviders"]
        default = {"name": "default", "type": "Plain", "users": plain["users"]}
        config["authenticationproviders"].append(default)
        (port,) = config["ports"]
        config["ports"].append(
            port
            | {
                "name": "AMQPS",
                "port": layout.ports[node][1],
                "transports": ["SSL"],
                "keyStore": "keys",
                "authenticationProvider": "default",
            }
        )
        path.write_text(json.dumps(config))


def test_tls(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    kind = TlsBrokerJ("qpid-broker-j-tls", authority.issue("127.0.0.1", "localhost"))
    monkeypatch.setitem(BUSES, kind.name, kind)
    with Bus(kind.name, f"qpid-broker-j-tls-{os.getpid()}") as bus:
        (port,) = bus.ports()
        (tls_port,) = bus.ports(1)
        url = bus.url().replace(f":{port}", f":{tls_port}")
        topic = unique()
        secured = f"{url}?ssl_ca_file={authority.ca}"
        with serving(secured, topic), calling(secured, topic) as client:
            assert client.call({}, "who") == "server"
