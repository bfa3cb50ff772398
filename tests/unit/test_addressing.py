# SPDX-License-Identifier: Apache-2.0
"""Addresses.  Those that programs on both ends must agree on are compared with
``addresses.json``: what the ``amqp`` driver of oslo.messaging 14.9.3 makes of the same
options and targets."""

import json
import pathlib
import re

import pytest
from oslo_messaging import Target

from greenamqp import buses
from greenamqp.buses import Service, identify
from greenamqp.buses.base import join
from greenamqp.buses.rabbitmq import management as rabbitmq
from greenamqp.engine import DURABLE, EXPIRE_NEVER
from tests.unit import fakes

TABLE = json.loads(pathlib.Path(__file__).with_name("addresses.json").read_text())
QPIDD = identify("qpid-cpp")
ROUTER = identify("qpid-dispatch-router", "1.19.0")
OWN = identify("greenamqp")


def addresser(bus=QPIDD, vhost=None, default_exchange="openstack", **options):
    return buses.choose(fakes.options(**options), default_exchange, vhost, bus)


def addresses(nodes):
    return [node.address for node in nodes]


@pytest.mark.parametrize(
    "group",
    TABLE,
    ids=lambda group: " ".join(
        str(part)
        for part in (
            group["mode"],
            group["product"],
            group["vhost"],
            group["default_exchange"],
            *group["options"].values(),
        )
    ),
)
def test_addresses_are_the_predecessors(group):
    made = buses.choose(
        fakes.options(addressing_mode=group["mode"], **group["options"]),
        group["default_exchange"],
        group["vhost"],
        identify(group["product"] or ""),
    )
    assert group["addresses"]
    for exchange, topic, server, fanout, rpc, notify in group["addresses"]:
        target = Target(exchange=exchange, topic=topic, server=server, fanout=fanout)
        assert made.destination(target, Service.RPC).address == rpc
        assert made.destination(target, Service.NOTIFY).address == notify


def test_the_table_has_both_modes_and_kinds_of_bus():
    assert len(TABLE) > 50
    seen = {(group["mode"], group["product"]) for group in TABLE}
    assert {
        ("legacy", None),
        ("routable", None),
        ("dynamic", None),
        ("dynamic", "qpid-cpp"),
        ("dynamic", "qpid-dispatch-router"),
        ("legacy", "qpid-dispatch-router"),
        ("routable", "qpid-cpp"),
    } <= seen


@pytest.mark.parametrize("bus", [QPIDD, ROUTER], ids=str)
@pytest.mark.parametrize("vhost", [None, "vh"])
def test_a_server_receives_what_is_sent_to_it_its_group_and_all(bus, vhost):
    made = addresser(bus, vhost)
    server = Target(topic="t", server="s", exchange="x")
    wanted = {
        made.destination(target, Service.RPC).address
        for target in (
            Target(topic="t", exchange="x"),
            Target(topic="t", exchange="x", server="s"),
            Target(topic="t", exchange="x", fanout=True),
        )
    }
    assert len(wanted) == 3
    assert set(addresses(made.rpc_sources(server))) == wanted


def test_a_group_without_a_server_name_receives_what_is_sent_to_the_group_and_all():
    made = addresser()
    assert sorted(addresses(made.rpc_sources(Target(topic="t")))) == [
        "broadcast.openstack.t.all",
        "unicast.openstack.t",
    ]


@pytest.mark.parametrize("bus", [QPIDD, ROUTER, OWN], ids=str)
def test_a_listener_receives_the_notifications_of_its_exchange_alone(bus):
    made = addresser(bus)
    sent = {
        exchange: made.destination(
            Target(topic="notifications.info", exchange=exchange), Service.NOTIFY
        ).address
        for exchange in ("nova", "neutron", None)
    }
    assert len(set(sent.values())) == 3
    for exchange, address in sent.items():
        target = Target(topic="notifications.info", exchange=exchange)
        assert addresses(made.notification_sources([target], None)) == [address]


def test_rpc_and_notifications_are_kept_apart_by_routers_alone():
    target = Target(topic="t")
    legacy, routable = addresser(QPIDD), addresser(ROUTER)
    assert legacy.destination(target, Service.RPC) == legacy.destination(
        target, Service.NOTIFY
    )
    assert routable.destination(target, Service.RPC) != routable.destination(
        target, Service.NOTIFY
    )


# -- pools


def test_each_pool_has_a_queue_of_its_own():
    made = addresser(OWN)
    target = Target(topic="notifications.info", exchange="nova")
    address = made.destination(target, Service.NOTIFY).address
    sources = {
        pool: addresses(made.notification_sources([target], pool))
        for pool in ("metering", "audit", None)
    }
    # What is sent reaches all of them: each is a queue on the same address.
    assert sources[None] == [address]
    for pool in ("metering", "audit"):
        (source,) = sources[pool]
        assert source.startswith(f"{address}::")
        assert pool in source
    assert len({source for (source,) in sources.values()}) == 3


def test_a_pools_queue_outlives_its_members():
    made = addresser(OWN)
    (pooled,) = made.notification_sources([Target(topic="t")], "pool")
    (alone,) = made.notification_sources([Target(topic="t")], None)
    assert pooled.expiry_policy == EXPIRE_NEVER
    assert alone.expiry_policy != EXPIRE_NEVER


def test_pools_of_different_exchanges_do_not_share_a_queue():
    made = addresser(OWN)
    queues = {
        made.notification_sources([Target(topic="t", exchange=exchange)], "pool")[
            0
        ].address.partition("::")[2]
        for exchange in ("nova", "neutron")
    }
    assert len(queues) == 2


@pytest.mark.parametrize("bus", [QPIDD, ROUTER, identify()], ids=str)
def test_a_pool_where_the_bus_has_none(bus):
    with pytest.raises(NotImplementedError, match="pool 'metering'") as caught:
        addresser(bus).notification_sources([Target(topic="t")], "metering")
    assert str(bus) in str(caught.value)


# -- small things


@pytest.mark.parametrize(
    "bus, router",
    [
        (QPIDD, False),
        (ROUTER, True),
        (identify("skupper-router"), True),
        (identify(), False),
    ],
    ids=str,
)
def test_which_bus_is_a_router(bus, router):
    assert bus.is_router is router


@pytest.mark.parametrize(
    "bus, text",
    [
        (identify(), "of unknown product"),
        (identify("a"), "a"),
        (identify("a", "1"), "a 1"),
    ],
)
def test_a_bus_names_itself(bus, text):
    assert str(bus) == text


@pytest.mark.parametrize(
    "parts, joined",
    [(("a", "b"), "a.b"), (("a", None, "", "b"), "a.b"), ((None,), ""), ((), "")],
)
def test_join(parts, joined):
    assert join(".", *parts) == joined


# -- RabbitMQ before 4.0

RABBITMQ_3 = identify("RabbitMQ", "3.10.8")


def test_rabbitmq_3_makes_queues_by_attaches_all_with_one_durability():
    made = addresser(RABBITMQ_3, "vh")
    server = Target(topic="a/b", server="s")
    queues = [
        "/queue/openstack.org%2Fom%2Frpc%2Funicast%2Fopenstack%2Fa%2Fb%2Fs",
        "/queue/openstack.org%2Fom%2Frpc%2Fanycast%2Fopenstack%2Fa%2Fb",
    ]
    everybody = (
        "/exchange/amq.direct/openstack.org%2Fom%2Frpc%2Fmulticast%2Fopenstack%2Fa%2Fb"
    )
    sources = made.rpc_sources(server, "u")
    assert addresses(sources) == [queues[0], everybody, queues[1]]
    assert [source.durability for source in sources] == [DURABLE, 0, DURABLE]
    assert made.destination(server, Service.RPC) == sources[0]
    assert made.destination(Target(topic="a/b"), Service.RPC) == sources[2]
    fanout = made.destination(Target(topic="a/b", fanout=True), Service.RPC)
    assert fanout == sources[1]


def test_rabbitmq_3_keeps_notifications_and_replies():
    made = addresser(RABBITMQ_3)
    target = Target(exchange="nova", topic="t.info")
    (source,) = made.notification_sources([target], None)
    assert source == made.destination(target, Service.NOTIFY)
    assert source.durable and source.durability == DURABLE
    reply = made.reply_source("u")
    assert reply.address == "/queue/reply.u"
    assert reply.survives and not reply.dynamic
    assert made.reply_destination(reply.address).address == reply.address


def test_rabbitmq_3_refuses_pools_and_advises_a_policy_for_its_own_names():
    made = addresser(RABBITMQ_3)
    with pytest.raises(NotImplementedError, match="pool 'p'.*RabbitMQ 3.10.8"):
        made.notification_sources([Target(topic="t.info")], "p")
    pattern = re.search("'([^']+)' '{\"expires\"", made.advice)[1]
    assert re.search(pattern, "reply.u") and re.search(pattern, "amq.gen-x")
    for node in made.rpc_sources(Target(topic="t", server="s"), "u"):
        assert not re.search(pattern, node.address.removeprefix("/queue/"))


def test_only_buses_that_want_something_done_give_advice():
    assert addresser(QPIDD).advice is addresser(ROUTER).advice is None
    assert addresser(identify("RabbitMQ", "4.0.5")).advice is None


@pytest.mark.parametrize("mode", ["rabbit", "declared"])
def test_who_declares_asks_in_the_dialect_of_the_bus(mode):
    family = buses.choose(
        fakes.options(addressing_mode=mode),
        "openstack",
        None,
        identify("RabbitMQ", "4.0.5"),
    )
    assert family.reply_source("u").declarations
    assert family.dialect is rabbitmq.Management
