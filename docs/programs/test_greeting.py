# SPDX-License-Identifier: Apache-2.0
import oslo_messaging
import pytest


class Greeter:
    def greet(self, ctxt, name):
        return f"Hello, {name}"


@pytest.fixture
def greeter(greenamqp_transport):
    server = oslo_messaging.get_rpc_server(
        greenamqp_transport,
        oslo_messaging.Target(topic="greeting", server="one"),
        [Greeter()],
        executor="threading",
    )
    server.start()
    yield server
    server.stop()
    server.wait()


def test_greeting(greeter, greenamqp_transport):
    client = oslo_messaging.get_rpc_client(
        greenamqp_transport, oslo_messaging.Target(topic="greeting")
    )
    assert client.call({}, "greet", name="world") == "Hello, world"
