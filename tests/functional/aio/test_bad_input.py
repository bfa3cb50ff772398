# SPDX-License-Identifier: Apache-2.0
"""Messages that are none, to coroutines: rejected and logged, and the next is taken."""

import pytest
from oslo_messaging import Target

from greenamqp import aio
from tests.functional.aio.conftest import in_thread
from tests.functional.test_bad_input import (
    BAD_BODIES,
    EXCHANGE,
    LEGACY,
    reports,
    sender,
)

__all__ = ["sender"]  # a fixture

pytestmark = [
    pytest.mark.needs("amqp", "raw_broker"),
    pytest.mark.proves("bad input"),
]


def test_requests(run, bus, topic, sender, caplog):
    class Endpoint:
        async def echo(self, ctxt, value):
            return value

    async def test():
        transport = bus.rpc_transport(EXCHANGE, options=LEGACY)
        address = f"unicast.{EXCHANGE}.{topic}"
        async with aio.closing(transport), aio.Server(transport) as server:
            await server.listen(Target(topic=topic, server="s"), [Endpoint()])
            client = aio.RPCClient(transport, Target(topic=topic))
            for which, body in BAD_BODIES.items():
                caplog.clear()
                told = await in_thread(sender.send, address, body, id=which)
                assert told == sender.of_bad
                assert await client.call({}, "echo", value=which) == which
                assert reports(caplog, address, which) == 1, which

    run(test)


@pytest.mark.needs("store")
def test_messages_as_they_come(run, bus, topic, sender, caplog):
    async def test():
        transport = bus.notification_transport(EXCHANGE, options=LEGACY)
        address = f"unicast.{EXCHANGE}.{topic}.info"
        async with (
            aio.closing(transport),
            aio.subscribe(transport, f"{topic}.info") as messages,
        ):
            for which in ("no JSON", "not UTF-8", "too deep"):
                body = BAD_BODIES[which]
                told = await in_thread(sender.send, address, body, id=which)
                assert told == sender.of_bad
            notifier = aio.Notifier(transport, "me", "messagingv2", topics=[topic])
            await notifier.info({}, "event", {})
            message = await anext(messages)
            message.acknowledge()
            assert message.message["event_type"] == "event"

    run(test)
    assert reports(caplog, topic) == 3
