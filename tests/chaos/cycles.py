# SPDX-License-Identifier: Apache-2.0
"""Stock servers started and stopped again and again on one transport: does memory grow?

    python -m tests.functional.world WORLD tests.chaos.cycles [--bus rabbitmq-4.0]
        [--cycles 20000] [--servers 32]

Each server has a topic of its own, is called once, and ends.  The resident memory of
this process is printed from time to time, and how much it grew for each cycle of the
latter half.
"""

from __future__ import annotations

import argparse
import gc
import os
import pathlib
import sys
import threading

from tests.chaos import brokers
from tests.chaos.workers import Stage


class Endpoint:
    """Answers."""

    def echo(self, ctxt, number):
        return number


def resident() -> int:
    """Bytes of this process."""
    gc.collect()
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def run(url: str, cycles: int, servers: int, rows: int = 20) -> list[tuple[int, int]]:
    """So many cycles, of which as many as there are servers run at a time; returns the
    resident memory, in bytes, after so many."""
    stage = Stage()
    transport = stage.transport(url)
    lock = threading.Lock()
    done = 0
    measured: list[tuple[int, int]] = []

    def cycle(number: int) -> None:
        nonlocal done
        topic = f"cycles-{os.getpid()}-{number}"
        client = stage.client(transport, topic)
        while True:
            server = stage.server(transport, topic, Endpoint())
            answer = client.call({}, "echo", number=number)
            assert answer == number
            stage.end([server])
            with lock:
                if done >= cycles:
                    return
                done += 1
                if done % max(1, cycles // rows) == 0:
                    bytes_now = resident()
                    measured.append((done, bytes_now))
                    print(f"{done:8} cycles {bytes_now / 1e6:8.1f} MB", flush=True)

    threads = [threading.Thread(target=cycle, args=(n,)) for n in range(servers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    transport.cleanup()
    return measured


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    brokers.add_argument(parser)
    parser.add_argument("--cycles", type=int, default=20_000, help="(%(default)s)")
    parser.add_argument("--servers", type=int, default=32, help="at a time")
    arguments = parser.parse_args()
    with brokers.chosen(arguments.bus, "cycles") as (_, url):
        measured = run(url, arguments.cycles, arguments.servers)
    (before, small), (after, large) = measured[len(measured) // 2 - 1], measured[-1]
    grown = (large - small) / (after - before)
    print(f"from {before} to {after} cycles: {grown:.0f} bytes for each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
