# SPDX-License-Identifier: Apache-2.0
"""From eventlet to coroutines: stock green threads and greenamqp.aio, in one loop."""

import asyncio

import pytest
from oslo_messaging import Target

from greenamqp import aio
from tests.functional import world
from tests.functional.harness import WAIT

pytestmark = pytest.mark.skipif(
    world.current() != "eventlet-asyncio", reason="only where eventlet runs on asyncio"
)


class Green:
    def echo(self, ctxt, value):
        return value


class Coroutine:
    async def echo(self, ctxt, value):
        await asyncio.sleep(0.01)
        return [value]


def test_green_threads_and_coroutines_call_each_other(bus, unique):
    import eventlet
    from eventlet.asyncio import spawn_for_awaitable

    green, coroutine = unique("green"), unique("coroutine")
    bus.server(Green(), Target(topic=green, server="s"))
    stock = bus.client(Target(topic=coroutine))

    async def test():
        transport = bus.rpc_transport()
        async with (
            asyncio.timeout(WAIT),
            aio.closing(transport),
            aio.Server(transport) as server,
        ):
            await server.listen(Target(topic=coroutine, server="s"), [Coroutine()])
            client = aio.RPCClient(transport, Target(topic=green))
            calls = [client.call({}, "echo", value=number) for number in range(20)]
            assert await asyncio.gather(*calls) == list(range(20))
            answers = []
            answered = asyncio.Event()

            def call():
                answers.append(stock.call({}, "echo", value=1))
                answered.set()

            eventlet.spawn(call)
            await answered.wait()
            assert answers == [[1]]

    spawn_for_awaitable(test()).wait()
