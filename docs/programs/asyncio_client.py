# SPDX-License-Identifier: Apache-2.0
import asyncio

import oslo_messaging
from oslo_config import cfg

from greenamqp import aio


async def main():
    cfg.CONF([])
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, "amqp://127.0.0.1:5672")
    async with aio.closing(transport):
        client = aio.RPCClient(transport, oslo_messaging.Target(topic="calculator"))
        calls = [client.call({}, "add", a=number, b=1) for number in range(100)]
        print(sum(await asyncio.gather(*calls)))


asyncio.run(main())
