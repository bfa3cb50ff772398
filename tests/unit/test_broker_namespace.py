# SPDX-License-Identifier: Apache-2.0
"""What an address is, when it is made and when it goes; virtual hosts; settings."""

from __future__ import annotations

import socket

import proton
import pytest

from greenamqp.broker.core import Core
from greenamqp.broker.namespace import DYNAMIC_PREFIX, Namespace, Refused
from greenamqp.broker.settings import PRODUCTS, Settings
from greenamqp.broker.store import Kind, Usage


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def namespace(clock=None, **settings) -> Namespace:
    given = Settings(**settings)
    return Namespace("", given, Usage(given.max_memory), clock or Clock())


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(Refused) as refused:
        function(*args, **kwargs)
    assert refused.value.description == str(refused.value) != ""
    return refused.value.condition


MESSAGE = bytes(proton.Message(body="x").encode())


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("exclusive.nova.compute.host", Kind.QUEUE),
        ("unicast.nova.compute", Kind.QUEUE),
        ("broadcast.nova.compute.all", Kind.TOPIC),
        ("broadcast", Kind.TOPIC),
        ("my.broadcast", Kind.QUEUE),
        ("openstack.org/om/rpc/multicast/nova/compute", Kind.TOPIC),
        ("openstack.org/om/notify/multicast/nova/compute", Kind.TOPIC),
        ("openstack.org/om/rpc/unicast/nova/compute/host", Kind.QUEUE),
        ("openstack.org/om/notify/anycast/nova/notifications.info", Kind.QUEUE),
        ("openstack.org/om/rpc/multicast", Kind.TOPIC),
        ("openstack.org/om/rpc/other/multicast", Kind.QUEUE),
        ("anything else", Kind.QUEUE),
        ("ümläut", Kind.QUEUE),
    ],
)
def test_what_an_address_is(address, kind):
    assert namespace().resolve(address)[0].kind is kind


def test_prefixes_can_be_set():
    made = namespace(topic_prefixes=("events/",), queue_prefixes=("jobs/",))
    assert made.resolve("events/x")[0].kind is Kind.TOPIC
    assert made.resolve("broadcast.x")[0].kind is Kind.QUEUE


def test_capabilities_overrule_and_are_remembered():
    made = namespace()
    node = made.resolve("unicast.x", ["topic"])[0]
    assert node.kind is Kind.TOPIC
    assert made.resolve("unicast.x")[0] is node
    assert made.resolve("broadcast.x", ["queue", "other"])[0].kind is Kind.QUEUE
    assert refusal(made.resolve, "unicast.x", ["queue"]) == "amqp:precondition-failed"


def test_qpidd_knows_its_patterns_alone():
    made = namespace(product="qpid-cpp")
    assert made.resolve("unicast.x")[0].kind is Kind.QUEUE
    assert made.resolve("my.broadcast.x")[0].kind is Kind.TOPIC
    assert made.resolve("any", ["queue"])[0].kind is Kind.QUEUE
    assert refusal(made.resolve, "anything") == "amqp:not-found"


def test_bound_queues():
    made = namespace()
    node, queue = made.resolve("unicast.x::pool::more")
    assert node.name == "unicast.x" and list(node.bound) == ["pool::more"]
    assert made.resolve("unicast.x::pool::more") == (node, queue)
    assert made.lookup("unicast.x::pool::more") is queue
    assert made.lookup("unicast.x::other") is None
    assert made.lookup("missing::pool") is None
    for wrong in ("::", "a::", "::q"):
        assert refusal(made.resolve, wrong) == "amqp:invalid-field"


def test_the_policy_is_that_of_the_terminus_that_comes_first():
    made = namespace(max_queue_messages=17)
    properties = {
        proton.symbol("x-expires"): 5000,
        "x-message-ttl": 1500,
        "x-max-length": 3,
        "x-overflow": "reject-publish",
        "something-else": "ignored",
    }
    policy = made.resolve("a", (), properties)[0].plain.policy
    assert (policy.expires, policy.message_ttl) == (5.0, 1.5)
    assert (policy.max_length, policy.refuse_newest) == (3, True)
    assert policy.max_messages == 17
    assert made.resolve("a", (), {"x-max-length": 9})[0].plain.policy is policy
    node, queue = made.resolve("b::q", (), properties)
    assert queue.policy.expires == 5.0
    assert node.plain.policy.expires is None, "it is the bound queue's"


@pytest.mark.parametrize(
    "properties",
    [
        {"x-expires": -1},
        {"x-expires": "soon"},
        {"x-max-length": True},
        {"x-message-ttl": 1.5},
        {"x-overflow": "explode"},
    ],
)
def test_policies_that_make_no_sense(properties):
    assert refusal(namespace().resolve, "a", (), properties) == "amqp:invalid-field"


def test_dynamic_addresses():
    made = namespace()
    node = made.make_dynamic("container", "link")
    other = made.make_dynamic("container", "link")
    assert node.name.startswith(DYNAMIC_PREFIX) and node is not other
    assert made.resolve(node.name)[0] is node
    made.delete(node)
    assert refusal(made.resolve, node.name) == "amqp:not-found"
    assert made.make_dynamic("c", "l", ["topic"]).kind is Kind.TOPIC


def test_qpidd_names_dynamic_addresses_after_their_link():
    made = namespace(product="qpid-cpp")
    node = made.make_dynamic("container", "link")
    assert node.name == "container_link"
    assert made.make_dynamic("container", "link") is node


def test_addresses_that_may_not_be():
    made = namespace(refused_prefixes=("secret", "hidden/"))
    assert refusal(made.resolve, "") == "amqp:invalid-field"
    assert refusal(made.resolve, "x" * 5000) == "amqp:invalid-field"
    assert refusal(made.resolve, "secret.x") == "amqp:unauthorized-access"
    assert refusal(made.resolve, "hidden/x::q") == "amqp:unauthorized-access"


def test_addresses_are_limited_but_idle_ones_make_room():
    made = namespace(max_addresses=3)
    for number in range(10):
        made.resolve(str(number))
    for name in "abc":
        made.resolve(name)[0].send(MESSAGE)
    assert refusal(made.resolve, "d") == "amqp:resource-limit-exceeded"
    assert refusal(made.make_dynamic, "c", "l") == "amqp:resource-limit-exceeded"
    assert sorted(made.addresses) == ["a", "b", "c"]


def test_bound_queues_and_other_virtual_hosts_count():
    core = Core(Settings(max_addresses=4), Clock())
    one, other = core.namespace("one"), core.namespace("other")
    one.resolve("a::q")
    other.resolve("b")[0].send(MESSAGE)
    other.resolve("idle")
    assert core.usage.addresses == 4
    one.resolve("a::r")
    assert other.lookup("idle") is None, "it made room"
    assert refusal(one.resolve, "a::s") == "amqp:resource-limit-exceeded"
    assert refusal(other.resolve, "c") == "amqp:resource-limit-exceeded"
    one.resolve("a")[0].unbind("q")
    other.resolve("c")
    one.delete(one.resolve("a")[0])
    assert core.usage.addresses == 2


def test_maintenance():
    clock = Clock()
    made = namespace(clock)
    short = made.resolve("short", (), {"x-expires": 5000})[0]
    made.resolve("long")
    queue = made.resolve("long::q", (), {"x-message-ttl": 1000})[1]
    queue.put(MESSAGE)
    made.maintain(clock.now)
    assert made.lookup("short") is short and queue.depth == 1
    clock.now += 6
    made.maintain(clock.now)
    assert made.lookup("short") is None and short.deleted
    assert queue.depth == 0 and made.lookup("long::q") is queue


def test_many_idle_addresses_are_forgotten_in_time():
    made = namespace()
    for number in range(1500):
        made.resolve(str(number))
    made.resolve("kept")[0].send(MESSAGE)
    made.maintain(100.0)
    assert list(made.addresses) == ["kept"]


# -- virtual hosts


@pytest.mark.parametrize(
    "hostname",
    [
        None,
        "",
        "localhost",
        "LOCALHOST",
        "127.0.0.1",
        "10.1.2.3",
        "::1",
        "[::1]",
        "fe80::1%eth0",
        socket.gethostname(),
        "bus.example.org",
    ],
)
def test_what_names_the_machine_is_no_virtual_host(hostname):
    core = Core(Settings(hostnames=("Bus.Example.org",)), Clock())
    assert core.namespace(hostname).name == ""


def test_virtual_hosts_know_nothing_of_each_other():
    core = Core(Settings(), Clock())
    one, other = core.namespace("one"), core.namespace("other")
    one.resolve("a")[0].send(MESSAGE)
    assert other.lookup("a") is None
    assert core.namespace("one") is one


def test_virtual_hosts_are_limited_but_idle_ones_make_room():
    core = Core(Settings(max_virtual_hosts=2), Clock())
    for number in range(10):
        core.namespace(str(number))
    for name in "ab":
        core.namespace(name).connections += 1
    assert refusal(core.namespace, "c") == "amqp:resource-limit-exceeded"


# -- settings


def test_products():
    for name, product in PRODUCTS.items():
        settings = Settings(product=name)
        assert settings.behaviour is product
        assert product.open_properties()["product"] == name
        assert product.open_properties()["version"]


@pytest.mark.parametrize(
    ("setting", "value", "shown"),
    [
        ("product", "qpid", "qpid-cpp"),
        ("max_links", 0, "max_links"),
        ("max_sessions", 0, "max_sessions"),
        ("max_memory", -1, "max_memory"),
        ("idle_timeout", -1, "idle_timeout"),
    ],
)
def test_settings_that_make_no_sense_are_named(setting, value, shown):
    with pytest.raises(ValueError, match=shown):
        Settings(**{setting: value})


def test_who_may_come_without_a_name():
    assert Settings().anonymous
    assert not Settings(users={"a": "b"}).anonymous
    assert Settings(users={"a": "b"}, allow_anonymous=True).anonymous
    assert not Settings(allow_anonymous=False).anonymous


def test_passwords_are_not_shown():
    assert "hidden" not in repr(Settings(users={"me": "hidden"}))
