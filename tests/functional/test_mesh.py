# SPDX-License-Identifier: Apache-2.0
"""A mesh of two routers in this process: a server at one, clients at the other."""

import pytest
from oslo_messaging import Target

from greenamqp.broker import Broker
from tests.functional.harness import Recorder, in_thread

pytestmark = pytest.mark.any_bus

TIMES = {"mesh_delay": 0.2, "mesh_timeout": 1.0}


class Echo:
    def __init__(self) -> None:
        self.got = Recorder()

    def echo(self, ctxt, value):
        self.got.add(value)
        return value


@pytest.fixture(params=["qpid-dispatch-router", "skupper-router"])
def mesh(request):
    one = Broker(product=request.param, **TIMES)
    with one, Broker(product=request.param, neighbour=one, **TIMES) as other:
        yield one, other


@pytest.fixture
def server(bus, mesh, topic):
    """At the first router."""
    endpoint = Echo()
    target = Target(topic=topic, server="s")
    bus.server(endpoint, target, bus.rpc_transport(url=mesh[0].url))
    return endpoint


def test_calls_and_casts_cross(bus, mesh, server, topic):
    transport = bus.rpc_transport(url=mesh[1].url)
    client = bus.client(Target(topic=topic), transport)
    assert [client.call({}, "echo", value=value) for value in range(20)] == [*range(20)]
    client.prepare(fanout=True).cast({}, "echo", value="all")
    client.prepare(server="s").cast({}, "echo", value="one")
    assert set(server.got.wait(22)[20:]) == {"all", "one"}


def test_the_servers_router_dies_and_comes_again(bus, mesh, server, topic):
    router, other = mesh
    client = bus.client(Target(topic=topic), bus.rpc_transport(url=other.url))
    assert client.call({}, "echo", value="before") == "before"
    router.kill()
    meanwhile = in_thread(client.call, {}, "echo", value="meanwhile")
    router.start()
    assert meanwhile.result() == "meanwhile"
    assert client.call({}, "echo", value="after") == "after"
    assert server.got.items == ["before", "meanwhile", "after"]
