"""One run: a bus, programs that use it, faults, and what must be true at the end.

All of it follows from the seed.  A run has a time of trouble, in which its faults
happen, and a time of peace; then everybody stops, and nothing may be left.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import shutil
import tempfile
import typing
from unittest import mock

from oslo_messaging._drivers import common

from greenamqp import chance, fork
from greenamqp.broker import Broker
from greenamqp.connection.life import CONNECT_TIMEOUT
from greenamqp.connection.state import State
from greenamqp.engine.capi import lib
from tests.simulation.cluster import Cluster
from tests.simulation.ledger import Ledger
from tests.simulation.network import SimNetwork, SimSocket
from tests.simulation.plan import (
    BACK,
    CALL_TIMEOUT,
    CLIENTS,
    KEEPER,
    SERVERS,
    Fault,
    Plan,
    plan,
)
from tests.simulation.programs import Calling, Keeping, Program, Serving
from tests.simulation.world import SimHub, Stuck, World

__all__ = ["Fault", "Plan", "Run", "plan", "shrink"]

# How often what must be true all the time is looked at.  Seconds.
_LOOK = 0.5

# Lines of warning and worse that a process may log: in all, and more for each fault.
_LINES, _LINES_PER_FAULT = 20, 25


class _Records(logging.Handler):
    """What greenamqp logs; a traceback is a mistake."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.levelno >= logging.WARNING
        text = record.getMessage()
        if disk := self._run.disk_path:
            text = text.replace(disk, "/disk")
        self._run.note("log", f"{record.levelname} {text}")
        if record.exc_info:
            self._run.wrong(f"a traceback: {self.format(record)}")


class _Brief:
    """A traceback that says the same in each version of Python, and everywhere."""

    @staticmethod
    def format_exception(kind, value, _traceback) -> list[str]:
        return [f"{kind.__name__}: {value}\n"]


class EmbeddedBus:
    """One or two embedded brokers, in one process."""

    has_pools = False
    query = ""

    def __init__(self, run: Run) -> None:
        self._run = run
        bus = run.plan.bus
        product = "qpid-dispatch-router" if bus == "mesh" else bus
        self.has_pools = product == "greenamqp"
        self.hubs = [SimHub(run.world, "bus0", run.network)]
        self._brokers: list[Broker] = []
        for host in run.plan.hosts:
            self._brokers.append(
                Broker(
                    host,
                    5672,
                    hub=self.hubs[0],
                    neighbour=self._brokers[0] if self._brokers else None,
                    product=product,
                    idle_timeout=6,
                    max_links=run.plan.most_links or 8_192,
                )
            )

    def start(self) -> None:
        """Serve."""
        for broker in self._brokers:
            broker.start()

    def stop(self) -> None:
        """Leave in order."""
        for broker in self._brokers:
            self.hubs[0].go(broker.stop)

    def strike(self, fault: Fault) -> None:
        """What the bus does."""
        world, hub = self._run.world, self.hubs[0]
        broker = self._brokers[fault.choice % len(self._brokers)]
        if fault.kind == "freeze":
            hub.freeze(True)
            world.call_at(world.clock + fault.seconds, lambda: hub.freeze(False))
        elif fault.kind == "drop":
            hub._call_soon(lambda: broker.drop_connections() and None)
        else:
            hub._call_soon(broker.kill)
            world.call_at(
                world.clock + fault.seconds,
                lambda: hub._call_soon(lambda: broker.start() and None),
            )


class Run:
    """One run of a plan; `mistakes` are the promises that were not kept."""

    def __init__(self, wanted: Plan) -> None:
        self.plan = wanted
        self.mistakes: list[str] = []
        self.timeline: list[str] = []
        self.ledger = Ledger(wanted)
        self.rng = random.Random(f"run {wanted.seed}")
        self.world = World(self.rng, wanted.threads)
        self.network = SimNetwork(self.world)
        self.begin = self.world.clock
        self.hubs: list[SimHub] = []
        self.server_names = SERVERS
        self.disk_path = ""
        # Until when what is begun may fail, as what is broken is noticed only then.
        self._noticed_at = 0.0
        self._records = _Records(self)
        self.bus = (Cluster if wanted.bus == "rabbitmq" else EmbeddedBus)(self)
        self.hubs += self.bus.hubs
        self.has_pools = self.bus.has_pools
        self.query = self.bus.query
        self.ledger.consumers = {
            "call": ("work",),
            "cast": ("work",),
            **dict.fromkeys(
                ("notify", "insist", "keep"), ("news", "pool")[: 1 + self.has_pools]
            ),
            "bulk": ("bulk",),
        }
        self._servers = [Serving(self, name) for name in SERVERS]
        self._callers: list[Calling] = [
            Calling(self, name, wanted.actors) for name in CLIENTS
        ]
        self._keeper = Keeping(self, KEEPER, ("keep", "keep"))
        self._callers.append(self._keeper)

    @property
    def end(self) -> float:
        """When nobody begins anything any more."""
        return self.begin + self.plan.length

    @property
    def calm_from(self) -> float:
        """When the last fault is over."""
        return self.begin + self.plan.calm_from

    @property
    def peace_from(self) -> float:
        """From when on what is begun has to succeed."""
        return max(self.begin + self.plan.peace_from, self._noticed_at)

    def unnoticed(self, seconds: float) -> None:
        """Something broke just now, and is noticed within so long."""
        self._noticed_at = max(self._noticed_at, self.world.clock + seconds)

    def note(self, who: str, text: str) -> None:
        """A line of the timeline."""
        self.timeline.append(f"{self.world.clock - self.begin:9.4f} {who:8} {text}")

    def wrong(self, text: str) -> None:
        """A promise was not kept."""
        self.mistakes.append(text)
        self.note("WRONG", text)

    def sleep(self, hub: SimHub, seconds: float) -> None:
        """Let virtual time pass for one green thread."""
        hub.waiter().wait(self.world.clock + seconds)

    def disk(self) -> str:
        """A directory that processes leave files in."""
        if not self.disk_path:
            self.disk_path = tempfile.mkdtemp(prefix="simulation-")
        return self.disk_path

    # -- what goes wrong

    def _strike(self, fault: Fault) -> None:
        self.note("FAULT", str(fault))
        programs = {each.name: each for each in self._programs}
        if fault.host in programs:
            self._strike_program(programs[fault.host], fault)
        elif not self._strike_network(fault):
            self.bus.strike(fault)

    def _strike_program(self, program: Program, fault: Fault) -> None:
        if program.hub.dead:
            return
        if fault.kind == "stop":
            program.stop(fault.seconds)
        elif fault.kind == "fork":
            program.fork()
        else:
            program.crash()
            self.world.call_at(self.world.clock + fault.seconds, program.start)

    def _strike_network(self, fault: Fault) -> bool:
        network, world = self.network, self.world
        host = fault.host
        if fault.kind in ("reset", "cut", "silent"):
            ends = [each for each in network.connections() if each.where[0] == host]
            if ends:
                end = ends[fault.choice % len(ends)]
                if fault.kind == "reset":
                    network.reset(end)
                elif fault.kind == "cut":
                    network.cut(end)
                else:
                    network.kill_silently(end)
                    if self._is_opening(end):
                        self.unnoticed(CONNECT_TIMEOUT + BACK)
        elif fault.kind == "still":
            network.still_until[host] = world.clock + fault.seconds
        elif fault.kind in ("refuse", "hang", "nameless"):
            hosts = {
                "refuse": network.refusing,
                "hang": network.hanging,
                "nameless": network.nameless,
            }[fault.kind]
            hosts.add(host)
            world.call_at(world.clock + fault.seconds, lambda: hosts.discard(host))
        else:
            return False
        return True

    def _is_opening(self, end: SimSocket) -> bool:
        """Whether who connected waits for the peer's Open there: it does so for all of
        CONNECT_TIMEOUT, as a bus may be busy."""
        for program in self._programs:
            client = program.client
            while client is not None:
                pump = client.connection._pump
                if pump is not None and pump.stream is end:
                    return client.connection.state is State.OPENING
                client = client._further
        return False

    # -- the run

    @property
    def _programs(self) -> list[Program]:
        return [*self._servers, *self._callers]

    def run(self) -> list[str]:
        """Play it; returns what was wrong."""
        logger = logging.getLogger("greenamqp")
        level, propagate = logger.level, logger.propagate
        logger.addHandler(self._records)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        # What endpoints raise where their own calls fail.
        logging.getLogger("oslo_messaging").setLevel(logging.CRITICAL)
        chance.use(random.Random(f"chance {self.plan.seed}"))
        try:
            with (
                mock.patch.object(common, "traceback", _Brief),
                mock.patch.object(fork, "_kept", []),
            ):
                self._play()
        except Stuck as exc:
            self.wrong(f"stuck: {exc}")
        finally:
            logger.removeHandler(self._records)
            logger.setLevel(logging.CRITICAL)
            self.world.end(self.hubs)
            chance.use(None)
            logger.setLevel(level)
            logger.propagate = propagate
            if self.disk_path:
                shutil.rmtree(self.disk_path)
        return self.mistakes

    def _play(self) -> None:
        world = self.world
        self.bus.start()
        for server in self._servers:
            server.start()
        world.run_until(self.begin + 2.0)
        self.begin = world.clock
        for caller in self._callers:
            caller.start()
        for fault in self.plan.faults:
            world.call_at(self.begin + fault.at, lambda f=fault: self._strike(f))
        self._look()
        world.run_until(self.end)
        if not self._until(lambda: not any(each.busy for each in self._callers), 40.0):
            hanging = [
                f"{message.kind} {message.number}"
                for each in self._callers
                for message in each.at_work.values()
            ]
            self.wrong(f"they hang: {', '.join(hanging)}")
        if not self._until(lambda: not self._keeper.waiting, 40.0):
            self.wrong(f"{self._keeper.waiting} notifications stay on the disk")
        # What was taken at the very end comes still.
        world.run_until(world.clock + CALL_TIMEOUT + 4.0)
        self._judge()
        self._close()
        self._look_what_is_left()

    def _until(self, over: typing.Callable[[], bool], most: float) -> bool:
        """Let everything happen until `over`, for so many seconds; returns whether it
        is."""
        latest = self.world.clock + most
        while not over() and self.world.clock < latest:
            self.world.run_until(self.world.clock + 0.5)
        return over()

    def _look(self) -> None:
        """What must be true all the time."""
        for program in self._programs:
            client = program.client
            if program.hub.dead or client is None:
                continue
            if isinstance(program, Calling):
                self._look_who_waits(program)
            for subscription in client.room.subscriptions:
                for link in subscription.links:
                    if link.link is None or link.link._pn is None:
                        continue
                    held = lib.pn_link_unsettled(link.link._pn)
                    if held + link.link.credit > subscription.window:
                        self.wrong(
                            f"{program.name} holds {held} messages of {link.address} "
                            f"and gave credit for {link.link.credit}, with a window of "
                            f"{subscription.window}"
                        )
        if self.world.clock < self.end:
            self.world.call_at(self.world.clock + _LOOK, self._look)

    def _look_who_waits(self, program: Calling) -> None:
        """Nothing is kept for callers that are gone."""
        client, callers = program.client, len(program.at_work)
        links = client._links.values()
        kept = {
            "replies": len(client.replies.waiting),
            "entries": sum(
                not entry.done
                for link in links
                for entry in (*link.pending, *link._resting)
                if entry.waiter is not None
            ),
        }
        for what, number in kept.items():
            if number > callers:
                self.wrong(f"{program.name}: {number} {what} for {callers} callers")

    def _judge(self) -> None:
        since = {each.name: (each.life, each.since) for each in self._servers}
        for mistake in self.ledger.judge(self.begin, self.peace_from, since):
            self.wrong(mistake)
        for program in self._programs:
            if program.client is None:
                continue
            for found in program.client.describe():
                left = {
                    "unanswered calls": found["unanswered_calls"],
                    "requests at work": found["requests_at_work"],
                    "pending": sum(each["pending"] for each in found["senders"]),
                    "unsettled": sum(each["unsettled"] for each in found["senders"]),
                }
                for what, number in left.items():
                    if number:
                        self.wrong(f"{program.name} has {number} {what}, at rest")
        # A reply to whoever was killed, or has given up, is told of as well.
        given_up = [
            each
            for each in self.ledger.messages.values()
            if not each.fate or each.how == "late"
        ]
        most = _LINES + _LINES_PER_FAULT * len(self.plan.faults) + len(given_up)
        if self._records.count > most:
            self.wrong(f"{self._records.count} warnings, with a limit of {most}")

    def _close(self) -> None:
        closing = [program.hub.go(program.close) for program in self._programs]
        self._until(lambda: all(thread.dead for thread in closing), 30.0)
        self.bus.stop()
        self.world.run_until(self.world.clock + 8.0)

    def _look_what_is_left(self) -> None:
        for hub in self.hubs:
            if hub.dead:
                continue
            left = {
                "threads": len(hub.threads),
                "timers": self.world.timers_of(hub),
                "watches": len(hub.watches),
                "waits with a deadline": len(hub._alarm.deadlines),
                "users": hub._users,
            }
            for what, number in left.items():
                if number:
                    self.wrong(f"{hub.process} leaves {number} {what}")
        if self.network.sockets:
            self.wrong(f"{len(self.network.sockets)} sockets are left")


def shrink(failing: Plan) -> Plan:
    """The same with as few faults as still fail."""
    faults = list(failing.faults)
    for fault in list(faults):
        fewer = [each for each in faults if each is not fault]
        candidate = dataclasses.replace(failing, faults=tuple(fewer))
        if Run(candidate).run():
            faults = fewer
    return dataclasses.replace(failing, faults=tuple(faults))
