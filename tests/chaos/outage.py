# SPDX-License-Identifier: Apache-2.0
"""A long outage of the message bus, and a service that notifies into its outbox.

    python -m tests.chaos.outage [--bus rabbitmq-4.0] [--minutes 20] [--rate 50]
        [--kills 2] [--world threads]

The bus is killed, and started again after so long.  Meanwhile the service is killed as
often as that, at even distances, and started again at once.  What came is held against
what was notified: all of it, in order, and how long each notification held up who made
it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import typing

from greenamqp.command.percentiles import percentile
from tests.chaos import brokers
from tests.chaos.workers import Worker
from tests.functional.world import WORLDS

#: Seconds of traffic before the outage, and at least as many after it.
AROUND = 10.0

#: Seconds in which everything that waits has to arrive when the bus is back.
PATIENCE = 1200.0


class Figures(typing.TypedDict):
    """What became of it.  Times in seconds."""

    notified: int
    missing: int
    out_of_order: int
    came_twice: int
    median: float
    p99: float
    longest: float
    drained: float


class Service:
    """The process that notifies, and the next one in its place.

    :ivar next: the first number that is not known to have been notified
    :ivar took: how long each held up who made it
    """

    def __init__(self, world: str, url: str, folder: str, rate: float) -> None:
        self._how = {"url": url, "options": {"notify_outbox": folder}, "rate": rate}
        self._world = world
        self.next = 0
        self.took: list[float] = []
        self.worker = self._begin()

    def _begin(self) -> Worker:
        worker = Worker(self._world, "outbox:pace", first=self.next, **self._how)
        worker.expect("ready")
        return worker

    def replace(self) -> None:
        """Kill it, without a word, and start another one."""
        self.worker.__exit__()
        self.worker = self._begin()

    def run(self, until: float) -> None:
        """Let it go on until this instant."""
        while time.monotonic() < until:
            self.note(self.worker.hear())

    def note(self, message: dict[str, typing.Any]) -> bool:
        """What it said.  Returns whether that is a notification."""
        if message["say"] != "notified":
            return False
        self.next = message["number"] + 1
        self.took.append(message["took"])
        return True


def run(
    bus: typing.Any,
    url: str,
    *,
    seconds: float,
    rate: float,
    kills: int,
    world: str = "threads",
) -> Figures:
    """One outage.

    :param bus: with ``kill9(None)`` and ``start()``
    """
    with (
        tempfile.TemporaryDirectory(prefix="outage-") as folder,
        Worker("threads", "outbox:listen", url=url) as listener,
    ):
        listener.expect("ready")
        service = Service(world, url, f"{folder}/outbox", rate)
        try:
            service.run(time.monotonic() + AROUND)
            begun = time.monotonic()
            bus.kill9(None)
            for kill in range(1, kills + 1):
                service.run(begun + seconds * kill / (kills + 1))
                service.replace()
            service.run(begun + seconds)
            bus.start()
            back = time.monotonic()
            service.run(back + AROUND)
            service.worker.tell(stop=True)
            while service.note(service.worker.hear()):
                pass
            total = service.next
            came: dict[int, int] = {}
            while len(came) < total:
                number = listener.expect("came", PATIENCE)["number"]
                came[number] = came.get(number, 0) + 1
            drained = time.monotonic() - back
            service.worker.finish()
        finally:
            service.worker.__exit__()
    order, took = list(came), sorted(service.took)
    return {
        "notified": total,
        "missing": len(set(range(total)) - came.keys()),
        "out_of_order": sum(b < a for a, b in zip(order, order[1:], strict=False)),
        "came_twice": sum(count > 1 for count in came.values()),
        "median": took[len(took) // 2],
        "p99": percentile(took, 0.99),
        "longest": took[-1],
        "drained": drained,
    }


def main(argv: typing.Sequence[str] | None = None) -> int:
    """The command; 0 if all arrived, in order."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.outage", description=__doc__.splitlines()[0]
    )
    brokers.add_argument(parser)
    parser.add_argument("--world", default="threads", choices=WORLDS)
    parser.add_argument("--minutes", type=float, default=20.0, help="(%(default)s)")
    parser.add_argument("--rate", type=float, default=50.0, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=2, help="(%(default)s)")
    arguments = parser.parse_args(argv)
    with brokers.chosen(arguments.bus, "outage") as (bus, url):
        figures = run(
            bus,
            url,
            seconds=arguments.minutes * 60,
            rate=arguments.rate,
            kills=arguments.kills,
            world=arguments.world,
        )
    print(
        f"{figures['notified']} notified: {figures['missing']} missing, "
        f"{figures['out_of_order']} out of order, {figures['came_twice']} twice; "
        f"the caller was held up for {1000 * figures['median']:.1f} ms in the median, "
        f"{1000 * figures['p99']:.1f} ms in the 99th percentile, "
        f"{1000 * figures['longest']:.0f} ms at the most; "
        f"all had come {figures['drained']:.0f} s after the bus was back"
    )
    return int(bool(figures["missing"] or figures["out_of_order"]))


if __name__ == "__main__":
    sys.exit(main())
