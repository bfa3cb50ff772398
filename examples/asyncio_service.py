# SPDX-License-Identifier: Apache-2.0
"""A service of coroutines: it serves RPC and calls others, in one asyncio loop.

    python examples/asyncio_service.py [--url amqp://host] [--name NAME]

It serves on topic ``asyncio-service``: ``add`` waits without keeping others waiting,
``pi`` computes in a thread, and ``sum`` has its neighbours add up for it, many at a
time.  It ends after ctrl-C or SIGTERM, when what it serves is done.
"""

import argparse
import asyncio
import signal

import oslo_messaging
from oslo_config import cfg

from greenamqp import aio

TOPIC = "asyncio-service"


class Endpoint:
    """What can be called."""

    def __init__(self, client):
        self._client = client

    async def add(self, ctxt, a, b):
        await asyncio.sleep(0.01)
        return a + b

    def pi(self, ctxt, terms):
        return 4 * sum((-1) ** n / (2 * n + 1) for n in range(terms))

    async def sum(self, ctxt, numbers):
        while len(numbers) > 1:
            pairs = zip(numbers[::2], numbers[1::2], strict=False)
            rest = numbers[-1:] if len(numbers) % 2 else []
            async with asyncio.TaskGroup() as group:
                added = [
                    group.create_task(self._client.call(ctxt, "add", a=a, b=b))
                    for a, b in pairs
                ]
            numbers = [task.result() for task in added] + rest
        return numbers[0]


async def serve(url, name):
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cfg.CONF([], project="asyncio_service")
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
    async with aio.closing(transport), aio.Server(transport) as server:
        client = aio.RPCClient(transport, oslo_messaging.Target(topic=TOPIC))
        target = oslo_messaging.Target(topic=TOPIC, server=name)
        await server.listen(target, [Endpoint(client)])
        print("serving", flush=True)
        await stop.wait()
    print("stopped", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="amqp://127.0.0.1:5672")
    parser.add_argument("--name", default="one", help="what this server is called")
    args = parser.parse_args(argv)
    asyncio.run(serve(args.url, args.name))


if __name__ == "__main__":
    main()
