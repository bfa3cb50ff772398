# SPDX-License-Identifier: Apache-2.0
"""What it takes to add a message bus: a module, which stands here, and a row."""

import dataclasses
import threading

import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_messaging import conffixture

import greenamqp
from greenamqp import broker, buses
from greenamqp.broker import settings
from greenamqp.buses.qpidd import LegacyAddresser

PRODUCT = "post office"


class PostalAddresser(LegacyAddresser):
    """Addresses that nobody else has."""

    def multicast(self, target, service):
        return f"street.{target.topic}"

    def unicast(self, target, service):
        return f"house.{target.topic}.{target.server}"

    def anycast(self, target, service):
        return f"counter.{service}.{target.topic}"


class PostOffice(buses.Bus):
    """Takes its time."""

    PRODUCT = PRODUCT
    settle_delay = 0.001

    def family(self):
        return PostalAddresser


@pytest.fixture
def post_office(monkeypatch):
    """One that runs: the embedded broker, which says that it is one."""
    monkeypatch.setitem(buses.PRODUCTS, PRODUCT, PostOffice)
    known = settings.PRODUCTS["greenamqp"]
    monkeypatch.setitem(
        settings.PRODUCTS, PRODUCT, dataclasses.replace(known, name=PRODUCT)
    )
    with broker.Broker(product=PRODUCT) as bus:
        yield bus


class Endpoint:
    def __init__(self):
        self.cast = threading.Event()

    def add(self, ctxt, left, right):
        return left + right

    def tell(self, ctxt):
        self.cast.set()


def test_a_module_and_a_row_add_a_bus(post_office):
    conf = cfg.ConfigOpts()
    conffixture.ConfFixture(conf)  # some are registered on cfg.CONF alone
    transport = oslo_messaging.get_rpc_transport(conf, post_office.url)
    endpoint = Endpoint()
    server = greenamqp.Server(transport, executor="threading")
    try:
        server.listen(oslo_messaging.Target(topic="mail", server="one"), [endpoint])
        server.start()
        client = oslo_messaging.get_rpc_client(
            transport, oslo_messaging.Target(topic="mail"), timeout=30
        )
        assert client.call({}, "add", left=2, right=3) == 5
        assert client.prepare(server="one").call({}, "add", left=1, right=1) == 2
        client.prepare(fanout=True).cast({}, "tell")
        assert endpoint.cast.wait(30)
        (connection,) = greenamqp.describe(transport)["connections"]
        assert connection["bus"].startswith(PRODUCT)
    finally:
        server.stop()
        server.wait()
        transport.cleanup()


def test_a_bus_that_nobody_knows_is_addressed_as_a_router():
    bus = buses.identify("carrier pigeon", "1.0")
    assert not bus.is_router
    assert bus.family() is buses.identify("skupper-router").family()


@pytest.mark.parametrize("product", sorted(buses.PRODUCTS))
def test_each_row_says_who_it_is(product):
    bus = buses.identify(product, "4.1.2", ("x",))
    assert bus.PRODUCT == product or not product
    assert (bus.major, bus.capabilities) == (4, ("x",))
    assert str(bus) == f"{product} 4.1.2".strip()
