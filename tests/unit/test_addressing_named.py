# SPDX-License-Identifier: Apache-2.0
"""Addresses of Artemis and Broker-J, and what has to be declared for them."""

import itertools

import pytest
from oslo_messaging import Target

from greenamqp import buses
from greenamqp.buses import Service, identify
from greenamqp.buses.broker_j import DEAD_LETTERS
from greenamqp.policy import Policies, QueuePolicy
from tests.unit import fakes

ARTEMIS = identify("apache-activemq-artemis", "2.56.0")
BROKER_J = identify("Apache Qpid Broker-J Core", "9.2.1")
RPC = "openstack.org.om.rpc"
NOTIFY = "openstack.org.om.notify"

both = pytest.mark.parametrize("bus", [ARTEMIS, BROKER_J], ids=str)


def addresser(bus, vhost=None, policies=None, **options):
    return buses.choose(fakes.options(**options), "openstack", vhost, bus, policies)


def policies(target, **policy):
    made = Policies()
    made.set(target, QueuePolicy(**policy))
    return made


def address(node):
    return node.to or node.address


# -- what both have in common


@both
def test_names(bus):
    family = addresser(bus)
    target = Target(exchange="nova", topic="compute", server="host.example.org")
    assert address(family.destination(target, Service.RPC)) == (
        f"{RPC}.unicast:nova:compute:host.example.org"
    )
    assert address(family.destination(Target(topic="t"), Service.RPC)) == (
        f"{RPC}.anycast:openstack:t"
    )
    fanout = Target(topic="t", fanout=True)
    assert address(family.destination(fanout, Service.RPC)) == (
        f"{RPC}.multicast:openstack:t"
    )
    assert address(family.destination(Target(topic="t.info"), Service.NOTIFY)) == (
        f"{NOTIFY}.anycast:openstack:t.info"
    )


@both
def test_the_options_of_names_are_heard(bus):
    family = addresser(
        bus,
        "v",
        rpc_address_prefix="a/b",
        anycast_address="any",
        default_rpc_exchange="x",
    )
    request = family.destination(Target(topic="t"), Service.RPC)
    assert address(request) == "a.b.any:v:x:t"


@both
def test_no_two_targets_share_a_name(bus):
    family = addresser(bus)
    parts = ("a", "a.a", "a:a", "a::a", "a/a", "a%3Aa", "a?a", "#", "*")
    names = {
        address(
            family.destination(
                Target(exchange=exchange, topic=topic, server=server), Service.RPC
            )
        )
        for exchange, topic, server in itertools.product(parts, parts, (None, *parts))
    }
    assert len(names) == len(parts) ** 2 * (len(parts) + 1)
    for name in names:
        # Nothing that the brokers would take for more than a name.
        assert "::" not in name and not set(name) & set("/#*?")


@both
def test_a_server_receives_what_is_sent_to_it_its_group_and_all(bus):
    family = addresser(bus)
    sources = family.rpc_sources(Target(topic="t", server="s"), "unique")
    sent = {
        address(family.destination(target, Service.RPC))
        for target in (
            Target(topic="t"),
            Target(topic="t", server="s"),
            Target(topic="t", fanout=True),
        )
    }
    assert {node.address for node in sources} == sent
    assert len(family.rpc_sources(Target(topic="t"), "unique")) == 2


@both
def test_requests_say_how_long_they_live(bus):
    request = addresser(bus).destination(Target(topic="t"), Service.RPC)
    assert (request.message_ttl, request.durable) == (86400, True)
    family = addresser(bus, rpc_cast_ttl=7)
    target = Target(topic="t", server="s")
    assert family.destination(target, Service.RPC).message_ttl == 7
    assert family.destination(target, Service.NOTIFY).message_ttl is None
    eternal = addresser(bus, rpc_cast_ttl=0).destination(target, Service.RPC)
    assert eternal.message_ttl is None


@both
def test_the_queue_of_listeners_without_a_pool_is_there_before_they_are(bus):
    family = addresser(bus)
    target = Target(topic="t.info")
    (listener,) = family.notification_sources([target], None)
    declared = family.destination(target, Service.NOTIFY).declarations
    queue = listener.address.rpartition("::")[2]
    assert queue in [each.name for each in declared if hasattr(each, "name")]


@both
def test_pools_have_queues_of_their_own(bus):
    family = addresser(bus)
    topics = [Target(topic=topic) for topic in ("t.info", "t.error", "default")]
    sources = [
        source.address
        for pool in (None, "p", "q", "p:q", "default")
        for source in family.notification_sources(topics, pool)
    ]
    assert len(set(sources)) == len(sources) == 15


# -- Artemis


def test_artemis_is_told_how_to_route():
    family = addresser(ARTEMIS)
    request = family.destination(Target(topic="t", server="s"), Service.RPC)
    assert (request.capabilities, request.declarations) == (("queue",), ())
    fanout = family.destination(Target(topic="t", fanout=True), Service.RPC)
    assert (fanout.capabilities, fanout.durable) == (("topic",), False)
    assert fanout.may_be_unheard
    notification = family.destination(Target(topic="t.info"), Service.NOTIFY)
    assert (notification.capabilities, notification.durable) == (("topic",), True)
    routes = [node.capabilities for node in family.rpc_sources(Target(topic="t"))]
    assert routes == [("topic",), ("queue",)]
    (listener,) = family.notification_sources([Target(topic="t.info")], None)
    assert listener.capabilities == ("topic",)
    name = f"{NOTIFY}.anycast:openstack:t.info"
    assert listener.address == f"{name}::{name}"


def test_artemis_makes_a_reply_address_anew_so_no_queue_is_asked_for():
    reply = addresser(ARTEMIS).reply_destination("uuid")
    assert (reply.to, reply.address, reply.capabilities) == ("uuid", None, ())


def test_artemis_policies():
    target = Target(topic="t")
    family = addresser(
        ARTEMIS,
        policies=policies(target, expires=2.5, message_ttl=3, max_length=4),
    )
    for node in (
        family.destination(target, Service.RPC),
        family.destination(target, Service.NOTIFY),
        family.notification_sources([target], "pool")[0],
        family.rpc_sources(target)[1],
    ):
        (declared,) = node.declarations
        assert dict(declared.arguments) == {
            "auto-delete": True,
            "auto-delete-delay": 2500,
            "auto-delete-message-count": -1,
            "ring-size": 4,
        }
    # What is in the queue is told to live so long by who sends it there.
    assert family.destination(target, Service.NOTIFY).message_ttl == 3
    assert family.destination(target, Service.RPC).message_ttl == 3
    (listener,) = family.notification_sources([target], "pool")
    assert listener.declarations[0].name.startswith("pool:pool:")


# -- Broker-J


def test_broker_j_sends_over_the_anonymous_terminus_and_hears_of_rejections():
    family = addresser(BROKER_J)
    for node in (
        family.destination(Target(topic="t"), Service.RPC),
        family.destination(Target(topic="t.info"), Service.NOTIFY),
        family.destination(Target(topic="t", fanout=True), Service.RPC),
        family.reply_destination("TempQueue1"),
    ):
        assert node.address is None and node.rejects_absent
        assert "amqp:rejected:list" in node.outcomes


def test_broker_j_requests_create_no_queue():
    family = addresser(BROKER_J)
    assert family.destination(Target(topic="t"), Service.RPC).declarations == ()
    fanout = family.destination(Target(topic="t", fanout=True), Service.RPC)
    assert [each.what for each in fanout.declarations] == [
        f"exchange '{RPC}.multicast:openstack:t'"
    ]
    assert fanout.may_be_unheard


def test_broker_j_queues_have_a_limit_of_attempts():
    family = addresser(BROKER_J)
    for node in (
        *family.rpc_sources(Target(topic="t", server="s"))[:1],
        *family.notification_sources([Target(topic="t.info")], "pool"),
    ):
        dead, queue = (each for each in node.declarations if "queue" in each.what[:5])
        assert dead.name == DEAD_LETTERS and not dead.attributes
        assert dict(queue.attributes) == {
            "maximumDeliveryAttempts": 100,
            "alternateBinding": (("destination", DEAD_LETTERS),),
        }


def test_broker_j_policies():
    target = Target(topic="t")
    family = addresser(
        BROKER_J, policies=policies(target, message_ttl=1.5, max_length=3)
    )
    queue = family.rpc_sources(target)[1].declarations[1]
    assert dict(queue.agreed) == {
        "maximumMessageTtl": 1500,
        "maximumQueueDepthMessages": 3,
        "overflowPolicy": "RING",
    }
    # Whoever asks for a policy makes the queue: the server may be yet to come.
    request = family.destination(target, Service.RPC)
    assert request.declarations[1] == queue


def test_broker_j_has_no_queue_that_expires():
    target = Target(topic="t")
    family = addresser(BROKER_J, policies=policies(target, expires=5))
    for ask in (
        lambda: family.rpc_sources(target),
        lambda: family.destination(target, Service.NOTIFY),
        lambda: family.notification_sources([target], "pool"),
    ):
        with pytest.raises(NotImplementedError, match=r"expires=5.*Broker-J.*expire"):
            ask()
