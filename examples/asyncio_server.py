# SPDX-License-Identifier: Apache-2.0
"""Serve RPC from an asyncio program, through add_reader, in asyncio's own thread.

    python examples/asyncio_server.py [--url amqp://host]

It serves ``add`` on topic ``asyncio``, counts the seconds in a coroutine beside that,
and ends after a call of ``finish``.
"""

import argparse
import asyncio

import oslo_messaging
from oslo_config import cfg

import greenamqp


class Endpoint:
    """What can be called."""

    def __init__(self, finished):
        self._finished = finished
        self.calls = 0

    def add(self, ctxt, a, b):
        self.calls += 1
        return a + b

    def finish(self, ctxt):
        self._finished.set()
        return self.calls


async def count_seconds():
    seconds = 0
    while True:
        await asyncio.sleep(1)
        seconds += 1
        print(f"{seconds} s", flush=True)


async def serve(url):
    cfg.CONF([], project="asyncio_server")
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
    finished = asyncio.Event()
    endpoint = Endpoint(finished)
    server = greenamqp.Server(transport, executor="blocking")
    server.listen(oslo_messaging.Target(topic="asyncio", server="one"), [endpoint])
    server.attach()

    loop = asyncio.get_running_loop()
    loop.add_reader(server.fileno(), server.step)
    ticker = loop.create_task(count_seconds())
    print("serving", flush=True)
    await finished.wait()
    # The answer to finish() leaves with the clean-up below at the latest.
    ticker.cancel()
    loop.remove_reader(server.fileno())
    server.stop()
    server.wait()
    transport.cleanup()
    print(f"{endpoint.calls} additions", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="amqp://127.0.0.1:5672")
    args = parser.parse_args(argv)
    asyncio.run(serve(args.url))


if __name__ == "__main__":
    main()
