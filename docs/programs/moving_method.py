# SPDX-License-Identifier: Apache-2.0
import eventlet

eventlet.monkey_patch()

import asyncio

import oslo_messaging
from eventlet.asyncio import spawn_for_awaitable
from oslo_config import cfg

from greenamqp import aio

TARGET = oslo_messaging.Target(topic="numbers")


class Endpoint:
    def __init__(self, transport):
        self.client = aio.RPCClient(transport, TARGET)

    def double(self, ctxt, number):
        eventlet.sleep(0.1)  # a database is asked
        return 2 * number

    async def total(self, ctxt, numbers):
        def double(number):
            return self.client.call(ctxt, "double", number=number)

        return sum(await asyncio.gather(*map(double, numbers)))


async def main():
    cfg.CONF([])
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, "amqp://127.0.0.1:5672")
    async with aio.closing(transport), aio.Server(transport) as server:
        await server.listen(TARGET(server="one"), [Endpoint(transport)])
        print("serving", flush=True)
        await asyncio.Event().wait()


spawn_for_awaitable(main()).wait()
