# SPDX-License-Identifier: Apache-2.0
"""What a transport says of itself."""

import json

import oslo_messaging
import pytest
from oslo_messaging import Target

import greenamqp
from greenamqp.broker import Broker
from tests.functional.harness import Gate, in_thread

pytestmark = pytest.mark.any_bus

PASSWORD = "s3cr3t"


class Endpoint:
    def __init__(self):
        self.gate = Gate()

    def hold(self, ctxt):
        self.gate.enter()
        return "held"


@pytest.fixture
def broker():
    with Broker(users={"nova": PASSWORD}) as made:
        yield made


@pytest.fixture
def url(broker):
    return f"amqp://nova:{PASSWORD}@127.0.0.1:{broker.port}/"


def test_before_it_is_used(bus, url):
    transport = bus.rpc_transport(url=url)
    assert greenamqp.describe(transport)["connections"] == []
    assert not greenamqp.is_connected(transport)


def test_a_server_and_a_call(bus, broker, topic, url):
    endpoint = Endpoint()
    serving = bus.rpc_transport(url=url)
    bus.server(endpoint, Target(topic=topic, server="s"), serving)
    calling = bus.rpc_transport(url=url)
    waiting = in_thread(bus.client(Target(topic=topic), calling).call, {}, "hold")
    endpoint.gate.wait_entered()

    (server,) = greenamqp.describe(serving)["connections"]
    assert server["host"] == f"127.0.0.1:{broker.port}"
    assert server["state"] == "up"
    assert server["up_for"] >= 0
    assert (server["came_up"], server["received"]) == (1, 1)
    assert server["bus"].startswith("greenamqp")
    assert server["requests_at_work"] == 1
    (subscription,) = server["subscriptions"]
    assert subscription["attached"] and subscription["refusal"] == ""
    assert len(subscription["links"]) == 3
    assert {link["phase"] for link in subscription["links"]} == {"up"}

    (client,) = greenamqp.describe(calling)["connections"]
    assert client["unanswered_calls"] == 1
    assert client["reply_address"]
    assert client["latency"] is None
    assert (client["sent"], client["received"]) == (1, 0)
    (sender,) = client["senders"]
    assert topic in sender["address"]
    assert sender["credit"] > 0
    assert (sender["phase"], sender["pending"]) == ("up", 0)

    assert greenamqp.is_connected(serving) and greenamqp.is_connected(calling)
    assert PASSWORD not in json.dumps([server, client])
    endpoint.gate.open()
    assert waiting.result() == "held"


def test_while_there_is_no_bus(bus, topic, url):
    wrong = url.replace(PASSWORD, "wr0ng")
    transport = bus.rpc_transport(url=wrong)
    client = bus.client(Target(topic=topic), transport, timeout=1)
    with pytest.raises(oslo_messaging.MessagingException):
        client.call({}, "hold")
    (connection,) = greenamqp.describe(transport)["connections"]
    assert connection["state"] != "up" and connection["up_for"] is None
    assert (connection["came_up"], connection["sent"]) == (0, None)
    assert "wrong user name or password" in connection["why_down"]
    assert "wr0ng" not in json.dumps(connection)
    assert not greenamqp.is_connected(transport)


def test_another_driver(bus):
    transport = oslo_messaging.get_rpc_transport(bus.conf(), url="fake://")
    with pytest.raises(TypeError, match="amqp driver"):
        greenamqp.describe(transport)
