# SPDX-License-Identifier: Apache-2.0
"""An agent of coroutines: a copy of what several services notify, shared in a pool.

    python examples/asyncio_agent.py [--url amqp://host] [--pool NAME] [EXCHANGE ...]

It prints the event types that come on topic ``notifications``, with priority ``info``,
of each EXCHANGE (nova and neutron).  Others get each notification as well; agents of
one pool share them.  It ends after ctrl-C or SIGTERM.
"""

import argparse
import asyncio
import contextlib
import signal

import oslo_messaging
from oslo_config import cfg

from greenamqp import aio


async def follow(url, pool, exchanges):
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def show(message):
        print(message["event_type"], flush=True)

    cfg.CONF([], project="asyncio_agent")
    transport = oslo_messaging.get_notification_transport(cfg.CONF, url=url)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(aio.closing(transport))
        server = await stack.enter_async_context(aio.Server(transport))
        for exchange in exchanges:
            await server.join_consumer_pool(
                show, pool, "notifications.info", exchange, requeue_on_error=True
            )
        print("following", flush=True)
        await stop.wait()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("exchanges", nargs="*", default=["nova", "neutron"])
    parser.add_argument("--url", default="amqp://127.0.0.1:5672")
    parser.add_argument("--pool", default="asyncio-agent")
    args = parser.parse_args(argv)
    asyncio.run(follow(args.url, args.pool, args.exchanges))


if __name__ == "__main__":
    main()
