# SPDX-License-Identifier: Apache-2.0
"""Serve RPC and read the standard input in one thread, with no other.

    python examples/select_loop.py [--url amqp://host]

Type lines; each becomes the answer to the next calls of ``last_line``.  A line
``call NAME`` makes such a call to the program that serves as NAME, which it said when
it was started: start it twice on one bus, and they answer each other.  End of input,
or ``quit``, ends it.

The loop waits with ``select.poll`` for two descriptors: the input's and the server's.
The latter is readable whenever there is something to do: a request, a heartbeat that
is due, a lost connection to make anew.
"""

import argparse
import select
import sys
import uuid

import oslo_messaging
from oslo_config import cfg

import greenamqp


class Endpoint:
    """What can be called."""

    def __init__(self):
        self.line = "nothing was typed yet"

    def last_line(self, ctxt):
        return self.line


def ask(transport, names, timeout):
    """What the program of that name answers, or why there is no answer."""
    if len(names) != 1:
        return "whom? It is call NAME"
    target = oslo_messaging.Target(topic="select_loop", server=names[0])
    client = oslo_messaging.get_rpc_client(transport, target, timeout=timeout)
    try:
        # Pumps while it waits; requests that come meanwhile are kept.
        return f"answer: {client.call({}, 'last_line')}"
    except oslo_messaging.MessagingException as exc:
        return f"no answer: {exc}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="amqp://127.0.0.1:5672")
    parser.add_argument("--name", default=f"loop-{uuid.uuid4().hex[:8]}")
    parser.add_argument(
        "--timeout",
        type=float,
        default=10,
        help="seconds to wait for an answer (%(default)s)",
    )
    args = parser.parse_args(argv)

    cfg.CONF([], project="select_loop")
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=args.url)
    endpoint = Endpoint()
    server = greenamqp.Server(transport, executor="blocking")
    server.listen(
        oslo_messaging.Target(topic="select_loop", server=args.name), [endpoint]
    )
    server.attach()
    print(f"serving as {args.name}", flush=True)

    poller = select.poll()
    poller.register(server.fileno(), select.POLLIN)
    poller.register(sys.stdin.fileno(), select.POLLIN)
    running = True
    while running:
        for fd, _events in poller.poll():
            if fd == server.fileno():
                server.step()
                continue
            line = sys.stdin.readline()
            if not line or line.strip() == "quit":
                running = False
            elif line.split()[:1] == ["call"]:
                print(ask(transport, line.split()[1:], args.timeout), flush=True)
            else:
                endpoint.line = line.strip()
                print("noted", flush=True)

    server.stop()
    server.wait()
    transport.cleanup()


if __name__ == "__main__":
    main()
