"""One run: a bus, programs that use it, faults, and what must be true at the end.

All of it follows from the seed.  A run has a time of trouble, in which its faults
happen, and a time of peace; then everybody stops, and nothing may be left.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import random
import typing

import oslo_messaging
from oslo_messaging import transport as oslo_transport
from oslo_messaging._tracing import client as tracing_client

from greenamqp import chance
from greenamqp.broker import Broker
from greenamqp.driver import GreenAMQPDriver
from greenamqp.executor import PoolExecutor
from greenamqp.server import Server
from tests.simulation.network import SimNetwork
from tests.simulation.world import SimHub, Stuck, World
from tests.unit import fakes

# Seconds of virtual time.
TROUBLE = 40.0
PEACE = 20.0
CALL_TIMEOUT = 8.0

# How much later than its deadline a call may end: the clock is looked at in the hub.
SLACK = 0.5

# After so long without a fault a call has to succeed: a bus needs up to 16 s to see
# that a connection is dead, whose consumer holds messages until then.
RECOVERY = 20.0

BUSES = ("greenamqp", "qpid-dispatch-router", "skupper-router", "qpid-cpp", "mesh")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, at an instant after the beginning."""

    at: float
    kind: str
    host: str
    seconds: float
    choice: int

    def __str__(self) -> str:
        return f"{self.at:7.3f}  {self.kind} {self.host} for {self.seconds:.3f} s"


KINDS = ("reset", "silent", "still", "freeze", "refuse", "hang", "nameless", "drop")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a seed decides before anything runs."""

    seed: int
    bus: str
    threads: float
    faults: tuple[Fault, ...]

    @property
    def peace_from(self) -> float:
        """When everything has to flow again."""
        ends = [fault.at + fault.seconds for fault in self.faults]
        return max(ends, default=0.0) + RECOVERY


def plan(seed: int) -> Plan:
    """The plan of a seed."""
    rng = random.Random(f"plan {seed}")
    bus = rng.choice(BUSES)
    hosts = ["bus0", "bus1"] if bus == "mesh" else ["bus0"]
    faults = [
        Fault(
            round(rng.uniform(0.0, TROUBLE - 20.0), 3),
            rng.choice(KINDS),
            rng.choice(hosts),
            round(rng.choice((0.05, 0.5, 3.0, 9.0)) * rng.random(), 3),
            rng.randrange(1000),
        )
        for _ in range(rng.randrange(6))
    ]
    faults.sort(key=lambda each: each.at)
    return Plan(seed, bus, rng.choice((0.0, 0.0, 0.05, 0.3)), tuple(faults))


class _Records(logging.Handler):
    """What greenamqp logs; a traceback is a mistake."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        self._run.note("log", f"{record.levelname} {record.getMessage()}")
        if record.exc_info:
            self._run.wrong(f"a traceback: {self.format(record)}")


class _Endpoint:
    """Notes each execution."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def echo(self, ctxt: object, value: int) -> int:
        self._run.executed.append(value)
        pause = self._run.rng.choice((0.0, 0.0, 0.01, 0.3))
        if pause:
            self._run.sleep(self._run.server_hub, pause)
        return value

    def note(self, ctxt: object, value: int) -> None:
        self._run.executed.append(value)

    def info(self, ctxt, publisher, event_type, payload, metadata) -> None:
        self._run.notified.append(payload)


class _Server(Server):
    def _make_executor(self) -> PoolExecutor:
        return PoolExecutor(self._hub_of(self.transport), 8)


@functools.cache
def _conf() -> typing.Any:
    conf = fakes.conf(idle_timeout=6, container_name="simulated")
    conf.register_opts(
        tracing_client.oslo_messaging_tracing, group="oslo_messaging_tracing"
    )
    return conf


class Run:
    """One run of a plan; `mistakes` are the promises that were not kept."""

    def __init__(self, wanted: Plan) -> None:
        self.plan = wanted
        self.mistakes: list[str] = []
        self.timeline: list[str] = []
        self.executed: list[int] = []
        self.notified: list[int] = []
        self._calls = 0
        self._ends: list[float] = []
        self._busy = 0
        self._number = 0
        self._taken: set[int] = set()
        self.rng = random.Random(f"run {wanted.seed}")
        self.world = World(self.rng, wanted.threads)
        self.network = SimNetwork(self.world)
        self.begin = self.world.clock

    def note(self, who: str, text: str) -> None:
        """A line of the timeline."""
        self.timeline.append(f"{self.world.clock - self.begin:9.4f} {who:8} {text}")

    def wrong(self, text: str) -> None:
        """A promise was not kept."""
        self.mistakes.append(text)
        self.note("WRONG", text)

    def sleep(self, hub: SimHub, seconds: float) -> None:
        """Let virtual time pass for one green thread."""
        hub.waiter().wait(hub.now() + seconds)

    # -- who takes part

    def _bus(self) -> None:
        bus = self.plan.bus
        product = "qpid-dispatch-router" if bus == "mesh" else bus
        self._bus_hub = SimHub(self.world, "bus0", self.network)
        first = Broker(
            "bus0", 5672, hub=self._bus_hub, product=product, idle_timeout=6
        )
        self.brokers = [first]
        if bus == "mesh":
            self.brokers.append(Broker("bus1", 5672, neighbour=first, product=product))
        for broker in self.brokers:
            broker.start()

    def _driver(self, process: str) -> tuple[SimHub, typing.Any]:
        hub = SimHub(self.world, process, self.network)
        conf = _conf()
        hosts = ",".join(f"{broker.host}:5672" for broker in self.brokers)
        url = oslo_messaging.TransportURL.parse(conf, f"amqp://{hosts}/")
        driver = GreenAMQPDriver(conf, url, "openstack")
        driver.use_hub(hub)
        return hub, oslo_transport.RPCTransport(driver)

    def _serve(self) -> None:
        target = oslo_messaging.Target(topic="work", server="s")
        self.server = _Server(self._server_transport)
        endpoint = _Endpoint(self)
        self.server.listen(target, [endpoint])
        self.server.listen_for_notifications(
            [oslo_messaging.Target(topic="news")], [endpoint], priorities=["info"]
        )
        self.server.start()

    def _act(self, hub: SimHub, transport: typing.Any, kind: str) -> None:
        """One who sends, until the time is over."""
        self._busy += 1
        world = self.world
        try:
            while world.clock < self.begin + TROUBLE + PEACE:
                self.sleep(hub, 0.2 + 3.0 * self.rng.random())
                self._number += 1
                number, began = self._number, world.clock
                self.note(kind, f"{number} begins")
                try:
                    self._once(transport, kind, number)
                except oslo_messaging.MessagingException as exc:
                    self.note(kind, f"{number} failed: {exc}")
                    if began > self.begin + self.plan.peace_from:
                        self.wrong(f"{kind} {number} failed in peace: {exc}")
                else:
                    self.note(kind, f"{number} is done")
                    if kind != "caller":
                        self._taken.add(number)
                if kind == "caller" and world.clock > began + CALL_TIMEOUT + SLACK:
                    self.wrong(
                        f"call {number} took {world.clock - began:.3f} s, with a "
                        f"time-out of {CALL_TIMEOUT:g} s"
                    )
        finally:
            self._busy -= 1

    def _once(self, transport: typing.Any, kind: str, number: int) -> None:
        driver = transport._driver
        if kind == "notifier":
            message = {
                "event_type": "e",
                "payload": number,
                "publisher_id": "p",
                "priority": "INFO",
                "message_id": str(number),
                "timestamp": "",
            }
            target = oslo_messaging.Target(topic="news.info")
            driver.send_notification(target, {}, message, 2.0, None)
            return
        target = oslo_messaging.Target(topic="work")
        method = "echo" if kind == "caller" else "note"
        message = {"method": method, "args": {"value": number}}
        if kind != "caller":
            driver.send(target, {}, message)
            return
        self._calls += 1
        reply = driver.send(
            target, {}, message, wait_for_reply=True, timeout=CALL_TIMEOUT
        )
        if reply != number:
            self.wrong(f"call {number} got the reply of {reply}")

    # -- what goes wrong

    def _strike(self, fault: Fault) -> None:
        network, world = self.network, self.world
        self.note("FAULT", str(fault))
        host = fault.host
        if fault.kind in ("reset", "silent"):
            ends = [each for each in network.connections() if each.where[0] == host]
            if ends:
                end = ends[fault.choice % len(ends)]
                if fault.kind == "reset":
                    network.reset(end)
                else:
                    network.kill_silently(end)
        elif fault.kind == "still":
            network.still_until["bus0"] = world.clock + fault.seconds
        elif fault.kind == "freeze":
            self._bus_hub.freeze(True)
            world.call_at(
                world.clock + fault.seconds, lambda: self._bus_hub.freeze(False)
            )
        elif fault.kind == "drop":
            broker = self.brokers[fault.choice % len(self.brokers)]
            self._bus_hub.soon.append(lambda: broker.drop_connections() and None)
        else:
            hosts = {
                "refuse": network.refusing,
                "hang": network.hanging,
                "nameless": network.nameless,
            }[fault.kind]
            hosts.add(host)
            world.call_at(world.clock + fault.seconds, lambda: hosts.discard(host))

    # -- the run

    def run(self) -> list[str]:
        """Play it; returns what was wrong."""
        logger = logging.getLogger("greenamqp")
        records = _Records(self)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(records)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        chance.use(random.Random(f"chance {self.plan.seed}"))
        try:
            self._play()
        except Stuck as exc:
            self.wrong(f"stuck: {exc}")
        finally:
            chance.use(None)
            logger.removeHandler(records)
            logger.setLevel(level)
            logger.propagate = propagate
        return self.mistakes

    def _play(self) -> None:
        world = self.world
        self._bus()
        self.server_hub, self._server_transport = self._driver("server")
        self.server_hub.go(self._serve)
        world.run_until(self.begin + 2.0)
        self.begin = world.clock
        clients = [self._driver(f"client{number}") for number in range(2)]
        for hub, transport in clients:
            for kind in ("caller",) * 5 + ("caster",) * 2 + ("notifier",) * 2:
                hub.go(self._act, hub, transport, kind)
        for fault in self.plan.faults:
            world.call_at(self.begin + fault.at, lambda f=fault: self._strike(f))
        world.run_until(self.begin + TROUBLE + PEACE + CALL_TIMEOUT + 40.0)
        if self._busy:
            self.wrong(f"{self._busy} senders hang")
        for _, transport in clients:
            expected = transport._driver.client.replies.waiting
            if expected:
                self.wrong(f"{len(expected)} calls that are over are still expected")
        self._close(clients)
        self._judge(clients)

    def _close(self, clients: list[tuple[SimHub, typing.Any]]) -> None:
        def close() -> None:
            self.server.stop()
            self.server.wait()
            self._server_transport.cleanup()

        self.server_hub.go(close)
        for hub, transport in clients:
            hub.go(transport.cleanup)
        self.world.run_until(self.world.clock + 30.0)
        for broker in self.brokers:
            self._bus_hub.go(broker.stop)
        self.world.run_until(self.world.clock + 30.0)

    def _judge(self, clients: list[tuple[SimHub, typing.Any]]) -> None:
        twice = {each for each in self.executed if self.executed.count(each) > 1}
        if twice:
            self.wrong(f"executed twice: {sorted(twice)}")
        had = {*self.executed, *self.notified}
        # What a broker dropped with its own process is not meant: none crashes here.
        lost = sorted(self._taken - had)
        if lost:
            self.wrong(f"accepted and never consumed: {lost}")
        for hub in (self.server_hub, self._bus_hub, *(each for each, _ in clients)):
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
