# SPDX-License-Identifier: Apache-2.0
"""An HTTP service that makes calls: one asyncio loop, one connection to the bus.

    python examples/asyncio_http.py [--url amqp://host] [--port 8080]

``GET /sum?numbers=1,2,3`` has asyncio_service.py add them up.  A client that goes away
takes its call with it.  It ends after ctrl-C or SIGTERM.  Needs aiohttp.
"""

import argparse
import functools

import oslo_messaging
from aiohttp import web
from oslo_config import cfg

from greenamqp import aio

CLIENT = web.AppKey("client", aio.RPCClient)

#: Which status says what became of a call that has no result.
STATUSES = (
    (oslo_messaging.MessagingTimeout, 504),
    (oslo_messaging.MessageDeliveryFailure, 503),
    (oslo_messaging.RemoteError, 502),
)


async def add_up(request):
    try:
        numbers = [float(number) for number in request.query["numbers"].split(",")]
    except (KeyError, ValueError):
        raise web.HTTPBadRequest(text="numbers=1,2,3 is wanted\n") from None
    client = request.app[CLIENT]
    try:
        return web.json_response(await client.call({}, "sum", numbers=numbers))
    except tuple(kind for kind, _ in STATUSES) as exc:
        status = next(status for kind, status in STATUSES if isinstance(exc, kind))
        return web.json_response({"error": str(exc)}, status=status)


def application(url):
    """It has a transport as long as it runs."""

    async def messaging(app):
        cfg.CONF([], project="asyncio_http")
        transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
        async with aio.closing(transport):
            target = oslo_messaging.Target(topic="asyncio-service")
            app[CLIENT] = aio.RPCClient(transport, target, timeout=10)
            yield

    app = web.Application()
    app.cleanup_ctx.append(messaging)
    app.router.add_get("/sum", add_up)
    return app


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="amqp://127.0.0.1:5672")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args(argv)
    web.run_app(
        application(args.url),
        host="127.0.0.1",
        port=args.port,
        handler_cancellation=True,
        print=functools.partial(print, flush=True),
    )


if __name__ == "__main__":
    main()
