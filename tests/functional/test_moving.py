# SPDX-License-Identifier: Apache-2.0
"""From eventlet to coroutines: stock green threads and greenamqp.aio, in one loop and
over one connection."""

import asyncio

import pytest
from oslo_messaging import Target

import greenamqp
from greenamqp import aio
from tests.functional import world
from tests.functional.aio.conftest import in_thread
from tests.functional.harness import WAIT, Notified

pytestmark = pytest.mark.skipif(
    world.current() != "eventlet-asyncio", reason="only where eventlet runs on asyncio"
)


class Green:
    def echo(self, ctxt, value):
        return value


def run(coroutine):
    from eventlet.asyncio import spawn_for_awaitable

    async def guarded():
        async with asyncio.timeout(WAIT):
            return await coroutine

    return spawn_for_awaitable(guarded()).wait()


@pytest.mark.parametrize("first", ["green", "coroutine"])
def test_green_threads_and_coroutines_call_each_other(bus, unique, first):
    """Whoever uses the transport first."""
    import eventlet

    transport = bus.rpc_transport()
    green, coroutine = Target(topic=unique("g")), Target(topic=unique("c"))

    class Coroutine:
        async def echo(self, ctxt, value):
            # Through a green thread, and back.
            return [await aio.RPCClient(transport, green).call({}, "echo", value=value)]

        def plain(self, ctxt, value):
            return stock.call(ctxt, "echo", value=value)

    stock = bus.client(coroutine, transport)
    if first == "green":
        bus.server(Green(), green(server="s"), transport)

    async def test():
        async with aio.Server(transport) as server:
            await server.listen(coroutine(server="s"), [Coroutine()])
            if first == "coroutine":
                eventlet.spawn(bus.server, Green(), green(server="s"), transport)
            for method, answer in (("echo", [7]), ("plain", [7])):
                client = aio.RPCClient(transport, coroutine, timeout=WAIT)
                calls = [client.call({}, method, value=7) for _ in range(20)]
                assert await asyncio.gather(*calls) == [answer] * 20
            calls = [
                in_thread(stock.call, {}, "echo", value=number) for number in range(20)
            ]
            assert await asyncio.gather(*calls) == [[number] for number in range(20)]
            (connection,) = greenamqp.describe(transport)["connections"]
            assert connection["unanswered_calls"] == 0
            assert len(connection["subscriptions"]) >= 2

    run(test())


@pytest.mark.needs("store")
def test_green_threads_and_coroutines_notify_each_other(bus, topic, unique):
    transport = bus.notification_transport()
    seen = Notified()
    bus.listener(seen, [Target(topic=topic)], transport)

    async def test():
        notifier = aio.Notifier(transport, "me", "messaging", topics=[topic])
        await notifier.info({}, "of a coroutine", {})
        await in_thread(seen.got.wait, 1)
        other = unique("other")
        async with aio.subscribe(transport, f"{other}.error") as messages:
            stock = bus.notifier([other], transport=transport)
            await in_thread(stock.error, {}, "of a green thread", {})
            message = await anext(messages)
            message.acknowledge()
            assert message.message["event_type"] == "of a green thread"
        assert len(greenamqp.describe(transport)["connections"]) == 1

    run(test())
    assert [each[2] for each in seen.got.items] == ["of a coroutine"]
