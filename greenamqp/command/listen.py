# SPDX-License-Identifier: Apache-2.0
"""``greenamqp listen``: an RPC server that answers every method with its arguments."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import typing

import greenamqp
from greenamqp.command import named, service
from greenamqp.command.ending import Ending


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    service.add_arguments(parser)
    parser.add_argument("topic", type=named)
    parser.add_argument(
        "--server", type=named, default="greenamqp", help="its name (%(default)s)"
    )
    parser.add_argument("--exchange", type=named, help="control_exchange otherwise")
    parser.add_argument(
        "--quiet", action="store_true", help="print no line for each request"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM (returns 0) or SIGINT (returns 130)."""
    import oslo_messaging
    from oslo_messaging.rpc import dispatcher
    from oslo_messaging.rpc.server import RPCServer

    class Echo(dispatcher.RPCDispatcher):
        """Any method of any namespace and version."""

        def dispatch(self, incoming: typing.Any) -> dict[str, typing.Any]:
            message = incoming.message
            answer = {
                "method": message.get("method"),
                "arguments": message.get("args", {}),
                "context": incoming.ctxt,
            }
            if not args.quiet:
                print(json.dumps(answer, default=str), flush=True)
            return answer

    try:
        conf = service.configuration(args)
        if args.exchange:
            service.set_exchange(conf, args.exchange)
        transport = service.transport(conf, args.url, args.timeout)
    except service.Unusable as exc:
        print(f"greenamqp listen: {exc}", file=sys.stderr)
        return exc.status
    done = threading.Event()
    ending = Ending(done.set)
    target = oslo_messaging.Target(topic=args.topic, server=args.server)
    server = RPCServer(transport, target, Echo([], None), "threading")
    try:
        server.start()
    except (
        oslo_messaging.MessagingException,
        NotImplementedError,
        ValueError,  # there is no way to write such a name
    ) as exc:
        # ServerListenError has the reason with it.
        print(f"greenamqp listen: {exc}", file=sys.stderr)
        transport.cleanup()
        return 1
    at = ", ".join(
        link["address"]
        for connection in greenamqp.describe(transport)["connections"]
        for subscription in connection["subscriptions"]
        for link in subscription["links"]
    )
    print(f"greenamqp listen: {args.topic}.{args.server} is served at {at}", flush=True)
    done.wait()
    server.stop()
    server.wait()
    transport.cleanup()
    return ending.status
