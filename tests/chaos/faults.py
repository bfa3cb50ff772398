# SPDX-License-Identifier: Apache-2.0
"""Faults of a real message bus, and what each costs: the same ones for any driver.

    python -m tests.chaos.faults --bus rabbitmq-cluster [--queues quorum]
        [--drivers greenamqp,rabbit] [--faults kill,freeze] [--nodes 1,2,3]
        [--long MINUTES --seed N] [--output FOLDER]

Each driver has processes of its own: callers, notifiers and two with a server and a
listener each.  All drivers run side by side on one bus, so that a fault hits them in
the same instant; their topics and exchanges are their own.  What became of each message
is in a ledger (tests.ledger), of which this draws a table, fault by driver, and a
picture for each round: rates, errors and faults over time.

Each fault has a round of its own, on each node in turn, with new processes; with
--long one round has faults at random, which a seed repeats.

What is promised is checked: what was accepted is consumed, no call outlasts its
time-out, nobody gets another one's reply, and at the end nothing is stuck.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import sys
import tempfile
import time
import typing
import urllib.parse

from tests.chaos import brokers, timeline
from tests.chaos.figures import (
    BEFORE,
    CALLERS,
    TIMEOUT,
    Broken,
    Row,
    Window,
    check,
    figures,
    table,
)
from tests.chaos.forwarder import Forwarder
from tests.chaos.kinds import FAULTS, Field
from tests.chaos.workers import Worker
from tests.functional.world import WORLDS
from tests.interop import predecessor
from tests.ledger import QUIET
from tools.buses import BUSES, Bus

#: Seconds that may pass with nothing heard from a process.
PATIENCE = 300.0

#: Seconds of traffic after the end of each fault, and after its beginning beyond the
#: time-out of the calls: what was in flight then has ended before the next fault.
AFTER = 15.0
BEYOND = 5.0


@dataclasses.dataclass(frozen=True)
class Driver:
    """A driver that has the faults.

    :ivar scheme: of its URL
    :ivar module: of its class, which a scheme alone does not name
    :ivar query: what its URL has beside what all have
    :ivar python: finds the interpreter of who uses it, which it may have to install
    """

    scheme: str
    module: str
    query: str = ""
    python: typing.Callable[[], str] = lambda: sys.executable

    @property
    def promises(self) -> bool:
        """Whether what greenamqp promises is asked of it."""
        return self.module == "greenamqp.driver"


#: By name.
DRIVERS = {
    "greenamqp": Driver("amqp", "greenamqp.driver"),
    "declared": Driver(
        "amqp",
        "greenamqp.driver",
        "addressing_mode=declared&rabbit_queue_type={queues}",
    ),
    "predecessor": Driver(
        "amqp", "oslo_messaging._drivers.impl_amqp1", python=predecessor.python
    ),
    "rabbit": Driver("rabbit", "oslo_messaging._drivers.impl_rabbit"),
}

#: The query of the URL, which all drivers read, for each type of queue.
QUEUES = {
    "classic": "",
    "quorum": "rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true"
    "&amqp_durable_queues=true",
}


class Embedded(brokers.Broker):
    """The embedded broker, in the way of tools.buses as far as faults want it."""

    def kill9(self, node: int) -> None:
        self.kill()

    def signal(self, number: int, node: int) -> None:
        os.kill(self.pid, number)


#: What a round is made of: faults by name, each with its node.
Plan = list[tuple[str, int]]


def play(
    bus: typing.Any,
    urls: dict[str, str],
    plan: Plan,
    *,
    world: str = "threads",
    callers: int = CALLERS,
    pause: float = 0.1,
    timeout: float = TIMEOUT,
    patience: float = 60.0,
    logs: pathlib.Path | None = None,
    paths: typing.Sequence[Forwarder] = (),
) -> tuple[list[Window], dict[str, dict[str, typing.Any]]]:
    """One round.  Returns the faults as they were, and the ledger of each driver.

    :param urls: by driver
    :param paths: what all connections go through, by node, where that is so
    :param patience: seconds in which all that has begun has to end after the last
        fault
    """
    stamp = time.monotonic_ns() // 1_000_000
    topics = {driver: f"faults-{driver}-{stamp}" for driver in urls}
    roles = [(driver, role) for driver in urls for role in ("serve-1", "serve-2")]
    workers: dict[str, Worker] = {}
    pythons = {driver: DRIVERS[driver].python() for driver in urls}

    with contextlib.ExitStack() as stack:

        def begin(driver: str, role: str, scenario: str, **more: typing.Any) -> None:
            workers[f"{driver} {role}"] = stack.enter_context(
                Worker(
                    world,
                    scenario,
                    pythons[driver],
                    url=urls[driver],
                    topic=topics[driver],
                    log=str(logs / f"{driver}-{role}.log") if logs else "",
                    **more,
                )
            )

        for driver, role in roles:
            begin(driver, role, "faults:receive", name=role)
        for driver, role in roles:
            _ready(workers[f"{driver} {role}"], driver)
        senders = {f"{driver} {kind}" for driver in urls for kind in ("call", "notify")}
        for driver in urls:
            for kind in ("call", "notify"):
                begin(
                    driver,
                    kind,
                    "faults:send",
                    kinds=[kind],
                    callers=callers,
                    pause=pause,
                    timeout=timeout,
                    patience=patience,
                )
        for name in senders:
            _ready(workers[name], name.partition(" ")[0])
        for name in senders:
            workers[name].tell(go=True)
        field = Field(bus, list(topics.values()), workers, paths)
        windows = _faults(field, plan, timeout + BEYOND)
        windows[-1].until = time.monotonic()
        for name in senders:
            workers[name].tell(stop=True)
        ledgers = {}
        for driver in urls:
            sent = {"wrong": [], "call": [], "notify": []}
            for kind in ("call", "notify"):
                told = _ledger(workers[f"{driver} {kind}"])
                sent[kind] = told[kind]
                sent["wrong"] += told["wrong"]
            ledgers[driver] = {"sent": sent}
        for driver in urls:
            ledgers[driver]["got"] = _arrived(
                [workers[f"{driver} {role}"] for role in ("serve-1", "serve-2")],
                {note[0] for note in ledgers[driver]["sent"]["notify"] if not note[3]},
            )
    return windows, ledgers


def _ready(worker: Worker, driver: str) -> None:
    """Wait until it is."""
    used = worker.expect("ready", PATIENCE)["driver"]
    assert used == DRIVERS[driver].module, f"{driver}: {used} is at work"


def _faults(field: Field, plan: Plan, lasting: float) -> list[Window]:
    time.sleep(BEFORE)
    windows: list[Window] = []
    for name, node in plan:
        fault = FAULTS[name]
        begin = time.monotonic()
        if windows:
            windows[-1].until = begin
        fault.begin(field, node)
        time.sleep(fault.seconds)
        fault.end(field, node)
        windows.append(Window(name, node, begin, time.monotonic()))
        time.sleep(max(AFTER, begin + lasting - time.monotonic()))
    return windows


def _ledger(worker: Worker) -> dict[str, typing.Any]:
    while (message := worker.hear(PATIENCE))["say"] != "ledger":
        pass
    return message


def _arrived(workers: list[Worker], accepted: set[int]) -> dict[str, typing.Any]:
    """What the receivers of a driver have got, once all has come or nothing more
    comes."""
    quiet, before = time.monotonic(), -1
    while True:
        total: dict[str, dict[int, int]] = {"notified": {}, "executed": {}}
        for worker in workers:
            worker.tell(ledger=True)
            told = _ledger(worker)
            for kind, counts in total.items():
                for number, count in told[kind]:
                    counts[number] = counts.get(number, 0) + count
        came = sum(total["notified"].values())
        if came != before:
            quiet, before = time.monotonic(), came
        if accepted <= total["notified"].keys() or time.monotonic() - quiet > QUIET:
            return {kind: sorted(counts.items()) for kind, counts in total.items()}
        time.sleep(0.5)


# -- the command


def _plans(
    names: list[str], nodes: list[int], minutes: float, seed: int
) -> typing.Iterator[Plan]:
    if not minutes:
        for name in names:
            each = nodes if FAULTS[name].each else nodes[:1]
            yield [(name, node) for node in each]
        return
    rng = random.Random(seed)
    plan, seconds = [], 0.0
    while seconds < minutes * 60:
        name = rng.choice(names)
        plan.append((name, rng.choice(nodes)))
        seconds += max(FAULTS[name].seconds + AFTER, TIMEOUT + BEYOND)
    yield plan


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.faults", description=__doc__.splitlines()[0]
    )
    listed = "; ".join(f"{name}: {fault.text}" for name, fault in FAULTS.items())
    buses = ["embedded", *sorted(BUSES)]
    parser.add_argument("--bus", choices=buses, default="embedded", metavar="NAME")
    parser.add_argument("--instance", help="a name of its own, to use one that runs")
    parser.add_argument("--queues", choices=QUEUES, default="classic")
    parser.add_argument(
        "--drivers", default="greenamqp", help=f"of {', '.join(DRIVERS)} (%(default)s)"
    )
    parser.add_argument("--faults", help=f"(all that the bus can have) {listed}")
    parser.add_argument("--nodes", help="of a cluster, counted from 1 (all)")
    parser.add_argument("--world", default="threads", choices=WORLDS)
    parser.add_argument("--callers", type=int, default=CALLERS, help="(%(default)s)")
    parser.add_argument("--pause", type=float, default=0.1, help="s (%(default)s)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="(%(default)s)")
    parser.add_argument(
        "--long", type=float, default=0.0, metavar="MINUTES", help="faults at random"
    )
    parser.add_argument("--seed", type=int, help="of --long (a new one)")
    parser.add_argument("--output", type=pathlib.Path, help="for pictures and logs")
    return parser


def main(argv: typing.Sequence[str] | None = None) -> int:
    """The command; 0 if all that is promised was kept by greenamqp."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    drivers = arguments.drivers.split(",")
    names = (arguments.faults or _possible(arguments.bus)).split(",")
    if not arguments.faults:
        names = [name for name in names if not FAULTS[name].apart]
    if unknown := [*{*drivers} - {*DRIVERS}, *{*names} - {*FAULTS}]:
        parser.error(f"unknown: {', '.join(unknown)}")
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    output = arguments.output or pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
    output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {driver: [] for driver in drivers}
    with contextlib.ExitStack() as stack:
        bus, address, count = stack.enter_context(_bus(arguments))
        urls = {}
        for driver in drivers:
            query = DRIVERS[driver].query.format(queues=arguments.queues)
            url = address(DRIVERS[driver].scheme)
            urls[driver] = f"{url}?{query}&{QUEUES[arguments.queues]}"
        paths = []
        if any(FAULTS[name].path for name in names):
            paths = _paths(stack, urls)
        nodes = [int(node) - 1 for node in (arguments.nodes or "").split(",") if node]
        nodes = nodes or list(range(count))
        if arguments.long:
            print(f"--seed {seed}", flush=True)
        for plan in _plans(names, nodes, arguments.long, seed):
            title = "long" if arguments.long else plan[0][0]
            logs = output / title
            logs.mkdir(exist_ok=True)
            windows, ledgers = play(
                bus,
                urls,
                plan,
                world=arguments.world,
                callers=arguments.callers,
                pause=arguments.pause,
                timeout=arguments.timeout,
                logs=logs,
                paths=paths,
            )
            timeline.draw(output / f"{title}.svg", windows, ledgers)
            raw = {"windows": [dataclasses.asdict(each) for each in windows], **ledgers}
            (logs / "ledger.json").write_text(json.dumps(raw))
            for driver, ledger in ledgers.items():
                rows[driver] += figures(
                    windows, ledger, arguments.callers, arguments.timeout
                )
            (output / "rows.json").write_text(json.dumps(rows, indent=1))
            done = {driver: each[-len(plan) :] for driver, each in rows.items()}
            print(table(done), flush=True)
    print(table(rows))
    print(f"pictures and logs: {output}")
    try:
        for driver in rows:
            if DRIVERS[driver].promises:
                check(rows[driver], arguments.queues if driver != "declared" else "")
    except Broken as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _possible(bus: str) -> str:
    return ",".join(n for n, fault in FAULTS.items() if bus.startswith(fault.only))


def _paths(stack: contextlib.ExitStack, urls: dict[str, str]) -> list[Forwarder]:
    """A forwarder before each node, that the URLs name in its place."""
    netloc = urllib.parse.urlsplit(next(iter(urls.values()))).netloc
    ports = [int(each.rpartition(":")[2]) for each in netloc.split(",")]
    paths = [stack.enter_context(Forwarder(port)) for port in ports]
    for driver, url in urls.items():
        for port, path in zip(ports, paths, strict=True):
            url = url.replace(f":{port}", f":{path.port}")
        urls[driver] = url
    return paths


@contextlib.contextmanager
def _bus(
    arguments: argparse.Namespace,
) -> typing.Iterator[tuple[typing.Any, typing.Callable[[str], str], int]]:
    """The bus, its URL by scheme, how many nodes it has."""
    if arguments.bus == "embedded":
        with Embedded() as broker:
            yield broker, lambda scheme: broker.url, 1
        return
    bus = Bus(arguments.bus, arguments.instance or f"{arguments.bus}-{os.getpid()}")
    running = bus.exists()
    bus.start()
    try:
        yield bus, bus.url, bus.kind.nodes
    finally:
        if not running:
            bus.stop()


if __name__ == "__main__":
    sys.exit(main())
