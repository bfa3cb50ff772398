# SPDX-License-Identifier: Apache-2.0
"""Taking samples: one client process and one server process of one side."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
import typing
import uuid

from benchmarks.cells import BACKLOG, Cell
from benchmarks.environments import Environments
from benchmarks.processes import Worker, WorkerFailed
from benchmarks.sides import Side

#: Seconds that the server may take to work off what was sent.
DRAIN_PATIENCE = 120.0

#: Seconds between two looks at how far it is.
_DRAIN_INTERVAL = 0.02

Sample = dict[str, typing.Any]


def machine_cpu() -> float:
    """CPU seconds that the machine has spent on anything at all."""
    with open("/proc/stat") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Meter(typing.Protocol):
    """A bus whose processes are in sight."""

    def cpu(self) -> float:
        """CPU seconds it used so far."""


class BusAt(typing.NamedTuple):
    """Where a message bus is, and who says what it uses, if somebody can."""

    url: str
    meter: Meter | None = None


class Pair:
    """Client and server of one side, for one cell; both end with the ``with``.

    :param buses: by what :attr:`Side.bus` says
    :param options: oslo.config options by group
    :param plan: more than the cell says, for the server
    :param under: by role, a command that runs its process
    """

    def __init__(
        self,
        side: Side,
        cell: Cell,
        environments: Environments,
        buses: typing.Mapping[str, BusAt],
        options: dict[str, dict[str, str]],
        plan: dict[str, typing.Any] | None = None,
        under: typing.Mapping[str, typing.Sequence[str]] = {},
    ) -> None:
        self.side = side
        self.cell = cell
        self._python = environments.python(side.environment)
        url, self._meter = buses[side.bus]
        self._description: dict[str, typing.Any] = {
            "hub": side.hub,
            "url": url,
            "stack": side.stack,
            "server": side.server,
            "options": options,
            # Its own topics: nobody else's messages, nothing left from before.
            "prefix": f"bench-{uuid.uuid4().hex[:12]}",
        }
        self._plan = plan or {}
        self._under = under
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> typing.Self:
        with contextlib.ExitStack() as stack:
            self.server = stack.enter_context(self._worker("server", self.side.hub))
            self.server.wait_ready()
            hub = self.side.client_hub(self.cell)
            self.client = stack.enter_context(self._worker("client", hub))
            self.client.wait_ready()
            self._stack = stack.pop_all()
        return self

    def _worker(self, role: str, hub: str) -> Worker:
        description = {**self._description, "hub": hub}
        if hub == "blocking":
            # Nothing else tells the driver that there is no scheduler.
            description["url"] = _with_query(description["url"], "hub=blocking")
        plan = self.cell.plan()
        if role == "server":
            plan.update(self._plan)
        under = self._under.get(role, ())
        return Worker(self._python, role, description, plan, self.side.name, under)

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def sample(self, seconds: float, warmup: float) -> Sample:
        """Take one.

        :raises WorkerFailed: if a process ended or hangs
        """
        server = self.server
        backlog = self._flood() if self.cell.load == "slow" else None
        self.warm_up(seconds, warmup)
        machine = machine_cpu()
        bus = self._meter.cpu() if self._meter is not None else None
        before = server.ask("mark")
        result = self.go()
        after = server.ask("mark")
        machine = machine_cpu() - machine
        if self.side.stack == "nothing":
            # Two halves that never meet: the server's is fed by itself.
            fed = server.ask("feed", **self._load(seconds, warmup))
            before, after = fed["before"], fed["after"]
            served = fed["operations"]
            result["failures"] += fed["failures"]
        else:
            served = result["operations"]
        if self._meter is not None and bus is not None:
            bus = self._meter.cpu() - bus
        sample = self._figures(result, before, after, served, bus, machine)
        if backlog is not None:
            sample["lost"] += self._hurry(backlog)
        return sample

    def warm_up(self, seconds: float, warmup: float) -> None:
        """The first part of a sample; `go` is to follow, for so many seconds."""
        self.client.send("load", **self._load(seconds, warmup))
        warm = self.client.answer()
        if self._awaited:
            self._drain(warm)

    def go(self) -> dict[str, typing.Any]:
        """The second part; returns what the client has to say of it when all has
        arrived."""
        self.client.send("go")
        result = self.client.answer()
        if self._awaited:
            self._drain(result)
        return result

    def _load(self, seconds: float, warmup: float) -> dict[str, typing.Any]:
        return {
            "load": self.cell.operation,
            "size": self.cell.size,
            "callers": self.cell.callers,
            "seconds": seconds,
            "warmup": warmup,
        }

    @property
    def _awaited(self) -> bool:
        """Whether operations are done only when the server has them."""
        return self.cell.counted and self.side.stack != "nothing"

    def profile(self, folder: pathlib.Path, seconds: float) -> dict[str, pathlib.Path]:
        """Take a sample with a profiler; writes a file of stacks for each process.

        Returns the files by role; none where it would see nothing: in native threads.
        """
        if self.side.hub not in ("eventlet", "gevent") and self.side.stack != "proton":
            return {}
        workers = {"client": self.client, "server": self.server}
        for worker in workers.values():
            worker.ask("profile")
        self.sample(seconds, 0.2)
        name = f"{self.side.name}-{self.cell}".replace("/", "-").replace(", ", "-")
        written = {}
        for role, worker in workers.items():
            path = folder / f"{name.replace(' ', '')}-{role}.stacks"
            worker.ask("profiled", path=str(path.resolve()))
            written[role] = path
        return written

    def answers(self) -> bool:
        """Whether a call, or a message, goes through now."""
        return self.client.ask("once", load=self.cell.operation)["well"]

    def _figures(
        self,
        result: Sample,
        before: Sample,
        after: Sample,
        served: int,
        bus: float | None,
        machine: float,
    ) -> Sample:
        operations = result["operations"]
        if not operations or not served:
            raise WorkerFailed(
                f"{self.side.name}: not one operation went well: {result['failure']}"
            )
        began = result["before"]["at"]
        # What is not answered is done when the last of it has arrived.
        ended = after["last"] if self.cell.counted and after.get("last") else None
        elapsed = max(ended or 0.0, result["after"]["at"]) - began
        lost, twice = self._loss(result, after)
        client_cpu = result["after"]["cpu"] - result["before"]["cpu"]
        server_cpu = after["cpu"] - before["cpu"]
        return {
            "operations": operations,
            "seconds": elapsed,
            "rate": operations / elapsed,
            "p50": result["p50"],
            "p99": result["p99"],
            "p999": result["p999"],
            "max": result["max"],
            "histogram": result["histogram"],
            "client_cpu": 1e6 * client_cpu / operations,
            "server_cpu": 1e6 * server_cpu / served,
            "cpu": 1e6 * (client_cpu / operations + server_cpu / served),
            "bus_cpu": 1e6 * bus / operations if bus is not None else None,
            "client_switches": (
                result["after"]["switches"] - result["before"]["switches"]
            )
            / operations,
            "server_switches": (after["switches"] - before["switches"]) / served,
            "client_rss": result["after"]["rss"],
            "server_rss": after["rss"],
            "client_threads": result["after"]["threads"],
            "server_threads": after["threads"],
            "client_fds": result["after"]["fds"],
            "server_fds": after["fds"],
            "lost": lost,
            "twice": twice,
            "failures": result["failures"],
            "failure": result["failure"],
            # CPU of others while this ran, in cores.
            "noise": max(0.0, machine - client_cpu - server_cpu - (bus or 0.0))
            / elapsed,
        }

    def _loss(self, result: Sample, after: Sample) -> tuple[int, int]:
        """(lost, delivered twice) so far in the life of this pair."""
        if not self.cell.counted or self.side.stack == "nothing":
            return result["failures"], 0
        # One that failed may have arrived all the same.
        lost = result["sent"] - result["failed"] - after["different"]
        return max(0, lost), after["received"] - after["different"]

    def _drain(self, result: Sample) -> None:
        """Wait until the server has all that was sent, or does not get it."""
        due = result["sent"] - result["failed"]
        deadline = time.monotonic() + DRAIN_PATIENCE
        while self.server.ask("received")["received"] < due:
            if time.monotonic() > deadline:
                return  # the loss will be counted
            time.sleep(_DRAIN_INTERVAL)

    def _flood(self) -> int:
        """Give the slow target its backlog; returns how many it has got in all."""
        self.server.ask("hurry", on=False)
        return self.client.ask("flood", count=BACKLOG, size=self.cell.size)["sent"]

    def _hurry(self, due: int) -> int:
        """Have the slow target work off the rest; returns how many it never got."""
        self.server.ask("hurry", on=True)
        deadline = time.monotonic() + DRAIN_PATIENCE
        while True:
            different = self.server.ask("slow")["different"]
            if different >= due or time.monotonic() > deadline:
                return due - different
            time.sleep(_DRAIN_INTERVAL)


def _with_query(url: str, query: str) -> str:
    """A transport URL with one more option."""
    if "?" in url:
        return f"{url}&{query}"
    scheme, _, rest = url.partition("://")
    return f"{url}?{query}" if "/" in rest else f"{url}/?{query}"
