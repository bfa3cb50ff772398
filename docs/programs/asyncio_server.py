# SPDX-License-Identifier: Apache-2.0
import asyncio

import oslo_messaging
from oslo_config import cfg

from greenamqp import aio


class Endpoint:
    async def add(self, ctxt, a, b):
        await asyncio.sleep(0.1)  # others are served meanwhile
        return a + b


async def main():
    cfg.CONF([])
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, "amqp://127.0.0.1:5672")
    async with aio.closing(transport), aio.Server(transport) as server:
        target = oslo_messaging.Target(topic="calculator", server="one")
        await server.listen(target, [Endpoint()])
        print("serving", flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
