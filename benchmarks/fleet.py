# SPDX-License-Identifier: Apache-2.0
"""``fleet``: what many services at once cost their message bus and their hosts, and how
they come back when it does.

Each service has a transport with a stock RPC server of three links, a client and a
notifier; many are in one process.  Each number of services, of each driver, gets a
broker of its own, and goes through the same: start, idle, a load as a cloud has it,
calls by one caller, and a storm: the broker is killed and comes back.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import sys
import threading
import time
import typing
import uuid

from benchmarks import compare, fleet_report
from benchmarks.brokers import Broker, Census, Embedded, Foreign, Real
from benchmarks.environments import Environments
from benchmarks.processes import Worker, WorkerFailed
from benchmarks.samples import machine_cpu
from benchmarks.sides import SIDES, Side
from benchmarks.worker.measure import summary

#: Who takes part, by the scheme of the URL that it needs.
_SIDES = {"greenamqp-stock": "amqp", "rabbit": "rabbit"}

#: The embedded broker's: all that any fleet on one machine needs.
_LIMITS = ("--max-links", "100000", "--max-connections", "100000")

#: Seconds between what each service reports, and what it then notifies.
REPORT_INTERVAL = 10.0

#: The controller's casts: to one service in so many, so often; and to all, so often.
BURST_SHARE = 20
BURST_INTERVAL = 1.0
FANOUT_INTERVAL = 10.0

#: Bytes in each message of the load.
SIZE = 300

#: Seconds after the start, before anything is measured: a bus that frees memory late
#: has done so.
_SETTLE = 5.0

#: Seconds that all services may take to start, and to come back.
_PATIENCE = 600.0

#: Seconds that what was sent may take to arrive, and between two looks at that.
_DRAIN = 30.0
_DRAIN_INTERVAL = 0.2

#: Seconds between two looks at the memory of a broker in a storm.
_STORM_INTERVAL = 0.25

Figures = dict[str, typing.Any]


def main(argv: typing.Sequence[str]) -> int:
    """The command.  Returns 1 if anything was lost or failed."""
    parser = argparse.ArgumentParser(prog="benchmarks fleet", description=__doc__)
    compare.add_bus_arguments(parser)
    parser.add_argument(
        "--rabbit-url", help="with --url: the same broker's rabbit:// URL"
    )
    compare.add_settings(parser)
    parser.add_argument(
        "--services", default="1,10,100,1000", help="how many (%(default)s)"
    )
    parser.add_argument("--hub", default="eventlet", help="(%(default)s)")
    parser.add_argument(
        "--sides", default=",".join(_SIDES), help="of them (%(default)s)"
    )
    parser.add_argument(
        "--per-process", type=int, default=50, help="services (%(default)s)"
    )
    parser.add_argument(
        "--idle", type=float, default=20.0, help="seconds (%(default)s)"
    )
    parser.add_argument(
        "--load", type=float, default=30.0, help="seconds (%(default)s)"
    )
    parser.add_argument(
        "--calls", type=float, default=3.0, help="seconds (%(default)s)"
    )
    parser.add_argument(
        "--down",
        type=float,
        default=20.0,
        help="seconds for which the broker is away in a storm; 0: no storm "
        "(%(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        numbers = [int(number) for number in arguments.services.split(",")]
        sides = _sides(arguments)
        options = compare.options_of(arguments.set)
    except ValueError as exc:
        parser.error(str(exc))
    if min(numbers) < 1 or arguments.per_process < 1:
        parser.error("of services there must be 1 or more")
    kept = compare.environments(arguments)
    began = datetime.datetime.now()
    rows: list[Figures] = []
    troubles: list[str] = []
    for number in numbers:
        for scheme, side in sides:
            name = f"{side.name}, {number} services"
            if not _has(arguments, scheme):
                continue
            print(name, file=sys.stderr, flush=True)
            try:
                with _broker(arguments, kept) as broker:
                    with Run(side, number, broker, kept, options, arguments) as run:
                        rows.append(run.row())
            except WorkerFailed as exc:
                troubles.append(f"{name}: {exc}")
    results = {
        "began": began.isoformat(timespec="seconds"),
        "ended": datetime.datetime.now().isoformat(timespec="seconds"),
        "bus": "a URL" if arguments.url else arguments.bus or "embedded",
        "set": arguments.set,
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "load": os.getloadavg(),
        },
        "versions": {
            environment: kept.versions(environment)
            for environment in sorted({side.environment for _scheme, side in sides})
        },
        "troubles": troubles,
        "rows": rows,
    }
    output = compare.keep(arguments, "fleet", began, results)
    print(fleet_report.table(results))
    for trouble in troubles:
        print(f"trouble: {trouble}", file=sys.stderr)
    picture = output.with_suffix(".png")
    drawn = fleet_report.chart(results, picture)
    print(f"written: {output}{f', {picture}' if drawn else ''}")
    lost = sum(row["lost"] + row["failures"] for row in rows)
    if lost:
        print(f"{lost} messages were lost or failed", file=sys.stderr)
    return 1 if lost or troubles or not rows else 0


def _sides(arguments: argparse.Namespace) -> list[tuple[str, Side]]:
    """:raises ValueError: for one that there is not"""
    sides = []
    for name in arguments.sides.split(","):
        side = SIDES.get(f"{name}/{arguments.hub}")
        if name not in _SIDES or side is None:
            raise ValueError(
                f"there is no {name}/{arguments.hub} for a fleet; there are "
                f"{', '.join(_SIDES)}, under the hubs of compare"
            )
        sides.append((_SIDES[name], side))
    return sides


def _has(arguments: argparse.Namespace, scheme: str) -> bool:
    """Whether the message bus speaks what that scheme stands for."""
    if arguments.url or not arguments.bus:
        return scheme == "amqp" or bool(arguments.url and arguments.rabbit_url)
    from tools.buses import BUSES

    return arguments.bus in BUSES and scheme in BUSES[arguments.bus].schemes


def _broker(arguments: argparse.Namespace, kept: Environments) -> Broker:
    if arguments.url:
        urls = {"amqp": arguments.url}
        if arguments.rabbit_url:
            urls["rabbit"] = arguments.rabbit_url
        return Foreign(urls)
    return Real(arguments.bus) if arguments.bus else Embedded(kept, _LIMITS)


class Run:
    """One number of services of one side, on one broker; all end with the ``with``."""

    def __init__(
        self,
        side: Side,
        services: int,
        broker: Broker,
        kept: Environments,
        options: dict[str, dict[str, str]],
        arguments: argparse.Namespace,
    ) -> None:
        self._side = side
        self._services = services
        self._broker = broker
        self._python = kept.python(side.environment)
        self._arguments = arguments
        self._description = {
            "hub": side.hub,
            "url": broker.urls[_SIDES[side.name.split("/")[0]]],
            "options": options,
            "prefix": f"fleet-{uuid.uuid4().hex[:12]}",
        }
        self._stack = contextlib.ExitStack()
        self._workers: list[Worker] = []
        # Connections that are not of the services.
        self._beside = 0

    def __enter__(self) -> typing.Self:
        with contextlib.ExitStack() as stack:
            plan = {"hosts": self._services}
            self._controller = stack.enter_context(self._worker("controller", plan))
            self._controller.wait_ready()
            first = 0
            while first < self._services:
                count = min(self._arguments.per_process, self._services - first)
                plan = {"first": first, "count": count}
                self._workers.append(stack.enter_context(self._worker("fleet", plan)))
                first += count
            for worker in self._workers:
                worker.wait_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _worker(self, role: str, plan: Figures) -> Worker:
        name = f"{self._side.name} ({self._services})"
        return Worker(self._python, role, self._description, plan, name)

    def _all(
        self, do: str, patience: float = _PATIENCE, **arguments: typing.Any
    ) -> list[Figures]:
        """What each process answers; all of them at it at the same time."""
        for worker in self._workers:
            worker.send(do, **arguments)
        return [worker.answer(patience) for worker in self._workers]

    def row(self) -> Figures:
        """All figures.

        :raises WorkerFailed: if a process ended or hangs
        """
        arguments = self._arguments
        say = self._say
        row: Figures = {
            "side": self._side.name,
            "services": self._services,
            "processes": len(self._workers),
        }
        say("start")
        row.update(self._start())
        say("idle")
        row["idle"] = self._watched(lambda: time.sleep(arguments.idle))
        say("load")
        load: Figures = {}
        row["load"] = self._watched(lambda: load.update(self._load()))
        row["load"].update(load)
        say("calls")
        row["calls"] = self._calls()
        if arguments.down and self._broker.ours:
            say("storm")
            row["storm"] = self._storm()
        row["lost"] = sum(load["lost"].values())
        row["failures"] = len(load["failures"]) + len(row["calls"]["failures"])
        return row

    def _say(self, phase: str) -> None:
        now = datetime.datetime.now()
        print(f"  {now:%H:%M:%S} {phase}", file=sys.stderr, flush=True)

    def _start(self) -> Figures:
        bus_before = self._bus_census()
        self._beside = bus_before["connections"]
        before = self._all("mark")
        began = time.monotonic()
        started = self._all("start")
        seconds = time.monotonic() - began
        failures = [failure for each in started for failure in each["failures"]]
        if failures:
            raise WorkerFailed(f"{len(failures)} did not start: {failures[0]}")
        time.sleep(_SETTLE)
        after = self._all("census")
        host = {
            figure: _grown(before, after, figure) / self._services
            for figure in ("rss", "fds", "threads")
        }
        host["greenlets"] = sum(each["greenlets"] for each in after) / self._services
        bus = self._bus_census()
        # Without what is there for the controller, or by itself.
        grown = {what: number - bus_before[what] for what, number in bus.items()}
        return {"seconds": seconds, "host": host, "bus": grown, "bus_in_all": bus}

    def _bus_census(self) -> Census:
        census = self._broker.census()
        if self._broker.ours:
            census["memory"] = self._broker.memory()
        return census

    def _watched(self, work: typing.Callable[[], None]) -> Figures:
        """What is used while `work` runs, in cores."""
        machine, bus = machine_cpu(), self._broker.cpu()
        before = self._all("mark")
        controller = self._controller.ask("mark")
        work()
        after = self._all("mark")
        bus = self._broker.cpu() - bus
        machine = machine_cpu() - machine
        last = self._controller.ask("mark")
        seconds = last["at"] - controller["at"]
        host = _grown(before, after, "cpu")
        beside = last["cpu"] - controller["cpu"]
        return {
            "seconds": seconds,
            "bus_cpu": bus / seconds,
            "host_cpu": host / seconds,
            "controller_cpu": beside / seconds,
            "switches": _grown(before, after, "switches") / seconds,
            "noise": max(0.0, machine - bus - host - beside) / seconds,
            "bus_memory": self._broker.memory(),
        }

    def _load(self) -> Figures:
        """Reports, notifications, casts and fanouts, all at the same time."""
        seconds = self._arguments.load
        before = self._came()
        burst = max(1, self._services // BURST_SHARE)
        self._controller.send(
            "load",
            seconds=seconds,
            burst=burst,
            burst_interval=BURST_INTERVAL,
            fanout_interval=FANOUT_INTERVAL,
            size=SIZE,
        )
        done = self._all("load", seconds=seconds, interval=REPORT_INTERVAL, size=SIZE)
        sent = self._controller.answer()
        failures = [each for part in (*done, sent) for each in part["failures"]]
        due = {
            "reports": sum(part["reports"] for part in done),
            "notifications": sum(part["notifications"] for part in done),
            "casts": sent["casts"],
            "fanouts": sent["fanouts"] * self._services,
        }
        deadline = time.monotonic() + _DRAIN
        while True:
            came = self._came()
            lost = {
                what: due[what] - (came.get(what, 0) - before.get(what, 0))
                for what in due
            }
            if not any(lost.values()) or time.monotonic() > deadline:
                break
            time.sleep(_DRAIN_INTERVAL)
        latencies = [latency for part in done for latency in part["latencies"]]
        return {
            "sent": due,
            "lost": {what: max(0, number) for what, number in lost.items()},
            "failures": failures,
            **summary(latencies),
        }

    def _came(self) -> dict[str, int]:
        """What has arrived so far, anywhere."""
        marks = [*self._all("mark"), self._controller.ask("mark")]
        return {
            what: sum(mark.get(what, 0) for mark in marks)
            for what in ("reports", "notifications", "casts", "fanouts")
        }

    def _calls(self) -> Figures:
        """Calls by one caller, one after another."""
        seconds = self._arguments.calls
        # Once before, for all that is made with the first call of each.
        self._controller.ask("calls", seconds=seconds / 3)
        before, bus = self._all("mark"), self._broker.cpu()
        result = self._controller.ask("calls", seconds=seconds)
        bus = self._broker.cpu() - bus
        after = self._all("mark")
        calls = result["calls"] or 1
        client = result["after"]["cpu"] - result["before"]["cpu"]
        host = _grown(before, after, "cpu")
        return {
            **{name: result[name] for name in ("p50", "p99", "max", "failures")},
            "calls": result["calls"],
            "client_cpu": client / calls,
            "host_cpu": host / calls,
            "bus_cpu": bus / calls,
        }

    def _storm(self) -> Figures:
        """The broker is killed, is away, and comes back; until each service answers."""
        broker = self._broker
        broker.kill()
        killed = time.monotonic()
        patience = self._arguments.down + _PATIENCE
        for worker in self._workers:
            worker.send("storm", seconds=patience)
        host = self._cpu()
        time.sleep(self._arguments.down)
        broker.start_again()
        opened = broker.wait_open()
        with _Peak(broker) as peak:
            done = [worker.answer(patience + 60) for worker in self._workers]
        ended = time.monotonic()
        answered = sorted(at - opened for part in done for at in part["answered"])
        attempts = [at for part in done for at in part["attempts"]]
        failed = [kind for part in done for at, kind in part["failed"] if at > opened]
        after = sum(at > opened for at in attempts)
        return {
            "down": opened - killed,
            "answered": answered,
            "never": self._services - len(answered),
            "attempts_before": sum(killed < at <= opened for at in attempts),
            "attempts_after": after,
            "attempts": sorted(at - opened for at in attempts if at > opened),
            # The controller's come back as well.
            "connections": broker.census()["connections"] - self._beside,
            "failed_calls": {kind: failed.count(kind) for kind in sorted(set(failed))},
            "bus_cpu": peak.cpu,
            "bus_memory": peak.memory,
            "host_cpu": self._cpu() - host,
            "seconds": ended - opened,
        }

    def _cpu(self) -> float:
        """CPU seconds of all services' processes, from outside: they are busy."""
        return sum(worker.cpu() for worker in self._workers)


def _grown(before: list[Figures], after: list[Figures], figure: str) -> float:
    """By how much a figure of all processes has."""
    return sum(b[figure] - a[figure] for a, b in zip(before, after, strict=True))


class _Peak:
    """The most memory that a broker has while the ``with`` lasts, and its CPU."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.memory = 0
        self.cpu = 0.0

    def __enter__(self) -> typing.Self:
        self.cpu = self._broker.cpu()
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._done.wait(_STORM_INTERVAL):
            self.memory = max(self.memory, self._broker.memory())

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        self._thread.join()
        self.cpu = self._broker.cpu() - self.cpu
