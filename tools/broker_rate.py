# SPDX-License-Identifier: Apache-2.0
"""How fast the embedded broker is: messages per second and its CPU time for each.

    python tools/broker_rate.py [--url amqp://host:port] [--messages N] [--size BYTES]

Starts a broker of its own unless a URL is given.  One client process, on the engine
alone, sends through two connections: a sender and a receiver of one queue, with so
many messages under way at most as --window says.  This is a measurement and no test.
"""

from __future__ import annotations

import _socket
import argparse
import os
import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

from greenamqp import hubs
from greenamqp.command.processes import cpu_seconds, stat
from greenamqp.connection.pump import Pump
from greenamqp.engine import Connection, Message, Sasl, Terminus


class Client:
    """One connection of the client, and its handler."""

    def __init__(self, hub: hubs.Hub, host: str, port: int, name: str) -> None:
        sock = _socket.socket()
        sock.connect((host, port))
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self.opened = hub.waiter()
        self.engine = Connection(name, self, hostname=host, sasl=Sasl())
        self.engine.open()
        self.pump = Pump(hub, sock, self.engine)
        self.pump.start()
        self.opened.wait(hub.now() + 10)

    def connection_opened(self, connection: Connection) -> None:
        self.opened.wake()

    def connection_closed(self, connection: Connection, error: object) -> None:
        print("closed:", error)

    def connection_failed(self, connection: Connection, error: object) -> None:
        print("failed:", error)

    def link_requested(self, connection: Connection, link: object) -> None:
        raise AssertionError("a broker asks for no links")


def measure(args: argparse.Namespace, host: str, port: int, pid: int | None) -> None:
    """Send the messages, print one line."""
    hub = hubs.get("blocking")
    hub.acquire()
    out = Client(hub, host, port, "rate-sender")
    back = Client(hub, host, port, "rate-receiver")
    address = f"{args.address}.{os.getpid()}"
    receiver = back.engine.create_receiver(Terminus(address))
    sender = out.engine.create_sender(Terminus(address))
    message = Message("x" * args.size, id="0123456789", ttl=args.ttl)
    data = out.engine.codec.encode(message)
    finished = hub.waiter()
    total = args.messages
    counts = {"sent": 0, "settled": 0, "received": 0}

    def send() -> None:
        while (
            sender.credit > 0
            and counts["sent"] < total
            and counts["sent"] - counts["received"] < args.window
        ):
            counts["sent"] += 1
            sender.send(data, None)
        hub.flush_soon(out.pump)

    def settled(*_: object) -> None:
        counts["settled"] += 1
        if counts["settled"] == total and counts["received"] >= total:
            finished.wake()

    def received(link, delivery, view) -> None:
        counts["received"] += 1
        link.settle(delivery)
        if counts["received"] % 64 == 0:
            link.flow(64)
        send()
        if counts["received"] == total and counts["settled"] >= total:
            finished.wake()

    sender.on_credit = lambda link: send()
    sender.on_settled = settled
    receiver.on_message = received
    receiver.on_attached = lambda link: link.flow(1000)
    hub.flush_now(out.pump)
    hub.flush_now(back.pump)
    start, before = time.monotonic(), cpu_seconds(stat(pid or 0))
    mine = time.process_time()
    finished.wait(None)
    elapsed = time.monotonic() - start
    line = f"{total / elapsed:10.0f} messages/s"
    if pid:
        used = cpu_seconds(stat(pid)) - before
        line += f", broker {used / total * 1e6:6.2f} us CPU each"
    line += f", client {(time.process_time() - mine) / total * 1e6:6.2f}"
    print(f"{args.size:8d} B, window {args.window:4d}: {line}", flush=True)
    for client in (out, back):
        client.pump.close()
        client.connection.engine.destroy()
    hub.release()


def main() -> int:
    """Run it; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url")
    parser.add_argument("--address", default="unicast.rate")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--ttl", type=float)
    parser.add_argument("--product", default="greenamqp")
    args = parser.parse_args()
    broker = None
    if args.url:
        url = args.url
    else:
        command = [sys.executable, "-m", "greenamqp", "broker", "--port", "0"]
        broker = subprocess.Popen(
            [*command, "--product", args.product], stdout=subprocess.PIPE, text=True
        )
        assert broker.stdout is not None
        url = broker.stdout.readline().split()[-1]
    parts = urlsplit(url)
    try:
        measure(args, parts.hostname or "", parts.port or 5672, broker and broker.pid)
    finally:
        if broker is not None:
            broker.send_signal(signal.SIGTERM)
            broker.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
