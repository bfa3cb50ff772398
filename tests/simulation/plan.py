"""What a seed decides before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import random

# Seconds of virtual time.
TROUBLE = 40.0
PEACE = 20.0
LAST, LONGEST = 10.0, 100.0  # of peace at the least, and of a run at the most
CALL_TIMEOUT = 8.0

# After so long without a fault a call has to succeed: a bus needs up to 16 s to see
# that a connection is dead, whose consumer holds messages until then.
RECOVERY = 20.0

# After an attempt to connect that took all of its time, everything is back within this.
BACK = 10.0

# RabbitMQ needs up to 6 s for another leader, and the driver 15 s to leave a session in
# which it does not answer, once it has used that.
RABBIT_RECOVERY, RABBIT_PATIENCE = 30.0, 15.0

BUSES = (
    "greenamqp",
    "qpid-dispatch-router",
    "skupper-router",
    "qpid-cpp",
    "mesh",
    "rabbitmq",
    "rabbitmq",
)
ROUTERS = ("qpid-dispatch-router", "skupper-router", "mesh")

#: Who uses the bus.  Those that serve, those that call, one with an outbox.
SERVERS = ("server0", "server1")
CLIENTS = ("client0", "client1")
KEEPER = "keeper"

#: What a connection or the way to a host suffers.
#: "cut" is one more: a reset in the middle of what is sent next.
NETWORK = ("reset", "silent", "still", "refuse", "hang", "nameless")

#: What the bus does; what only one does that keeps nothing.
BUS = ("freeze", "drop")
ROUTER = (*BUS, "die")
RABBIT = (*ROUTER, "freeze", "alarm", "close")

#: What is over in a moment, and no more than a connection is lost.
BRIEF = ("reset", "drop", "close")

#: Where replies wait for a client that was cut off.
KEEPS_REPLIES = ("greenamqp", "rabbitmq")

#: After more losses of connections in a short time a client backs off for longer than a
#: call may take.
FEW = 3

#: What becomes of a process that uses it.
PROCESS = ("crash", "stop")  # or "fork"

# How many times longer callers pause than in the first runs there were, until the last
# fault is over, and after it.  Most of what is found was done before; most of a run's
# cost came after.
_DENSE, _USUAL, _SPARSE = (1.0, 1.0), (1.0, 8.0), (2.0, 8.0)
PACES = (_DENSE, _SPARSE, _USUAL, _SPARSE, _USUAL, *(_SPARSE,) * 4, _USUAL)

# After so long at the most a connection may be lost again, which is about to have its
# login, its links, what it declares.  Seconds.
AGAIN = (0.01, 0.05, 0.3, 2.0)

# So often connections are cut where the network is a bad one.
CUTS = 15

# Of a client's callers: each kind as often as it is named.
ACTORS = (
    *("call",) * 5,
    *("cast",) * 2,
    "fanout",
    "notify",
    "insist",
    "bulk",
)


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """See the module.

    :ivar threads: how likely callers change where threads could; 0.0: never
    :ivar actors: what the callers of each client do
    :ivar kills: seconds from one caller that is killed to the next, on average; 0.0:
        none is.  Only green threads can be
    :ivar most_links: what the bus takes on a connection; 0: far more than they need
    :ivar loses: how likely a session of a cluster has lost what it sent to a queue that
        had no leader, once it has one, and loses all that it sends later
    :ivar pace: how many times longer callers pause, until the last fault is over and
        after it
    """

    seed: int
    bus: str
    threads: float
    faults: tuple[Fault, ...]
    actors: tuple[str, ...] = ("call",) * 5 + ("cast",) * 2 + ("notify",) * 2
    kills: float = 0.0
    most_links: int = 0
    loses: float = 0.0
    pace: tuple[float, float] = _DENSE

    @functools.cached_property
    def calm_from(self) -> float:
        """When the last fault is over, seconds after the beginning."""
        return max((fault.at + fault.seconds for fault in self.faults), default=0.0)

    @property
    def peace_from(self) -> float:
        """When everything has to flow again, seconds after the beginning."""
        longest = RABBIT_RECOVERY if self.bus == "rabbitmq" else RECOVERY
        return self.calm_from + longest

    @functools.cached_property
    def length(self) -> float:
        """When nobody begins anything any more, seconds after the beginning."""
        return max(TROUBLE + PEACE, min(self.peace_from + LAST, LONGEST))

    @property
    def hosts(self) -> tuple[str, ...]:
        """Where the bus is."""
        number = {"mesh": 2, "rabbitmq": 3}.get(self.bus, 1)
        return ("bus0", "bus1", "bus2")[:number]

    @property
    def keeps_replies(self) -> bool:
        """Whether no call may fail for its reply, but for one that is struck twice."""
        brief = all(fault.kind in (*BRIEF, "cut") for fault in self.faults)
        return brief and len(self.faults) <= FEW and self.bus in KEEPS_REPLIES

    @property
    def is_router(self) -> bool:
        """Whether the bus keeps nothing."""
        return self.bus in ROUTERS


def plan(seed: int, before: bool = False) -> Plan:
    """The plan of a seed.

    :param before: without what came last: as the seeds meant it that were kept until
        then
    """
    rng = random.Random(f"plan {seed}")
    bus = rng.choice(BUSES)
    threads = rng.choice((0.0, 0.0, 0.05, 0.3))
    made = Plan(
        seed,
        bus,
        threads,
        (),
        tuple(rng.choice(ACTORS) for _ in range(8)),
        0.0 if threads else rng.choice((0.0, 0.3, 3.0)),
    )
    faults = [_fault(rng, made) for _ in range(rng.randrange(6))]
    brief = random.Random(f"brief plan {seed}")
    if bus in KEEPS_REPLIES and brief.random() < 0.3:
        kinds = BRIEF if bus == "rabbitmq" else BRIEF[:-1]
        faults = [
            dataclasses.replace(
                each, kind=brief.choice(kinds), host=brief.choice(made.hosts)
            )
            for each in faults
        ]
    # What came later has a chance of its own, so that the seeds before it still mean
    # what they meant.
    later = random.Random(f"other plan {seed}")
    loses = 0.0
    if bus == "rabbitmq" and later.random() < 0.1:
        faults, loses = _rolling(later, made), 0.5
    for number, fault in enumerate(faults):
        if fault.kind == "crash" and later.random() < 0.3:
            faults[number] = dataclasses.replace(fault, kind="fork")
    most_links = 0
    if bus != "rabbitmq" and later.random() < 0.3:
        most_links = later.choice((8, 11))
    faults.sort(key=lambda each: each.at)
    made = dataclasses.replace(
        made, faults=tuple(faults), most_links=most_links, loses=loses
    )
    return made if before else _last(made)


def _last(made: Plan) -> Plan:
    """What came last."""
    rng = random.Random(f"last plan {made.seed}")
    faults = []
    for fault in made.faults:
        if fault.kind == "reset" and rng.random() < 0.5:
            fault = dataclasses.replace(fault, kind="cut")
        faults.append(fault)
        if fault.kind in (*BRIEF, "cut") and rng.random() < 0.5:
            at = round(fault.at + rng.choice(AGAIN) * rng.random(), 3)
            faults.append(dataclasses.replace(fault, at=at))
    if rng.random() < 0.15:
        faults += [
            Fault(
                round(rng.uniform(0.0, TROUBLE - 20.0), 3),
                "cut",
                rng.choice(made.hosts),
                0.0,
                rng.randrange(1000),
            )
            for _ in range(CUTS)
        ]
    faults.sort(key=lambda each: each.at)
    return dataclasses.replace(made, faults=tuple(faults), pace=rng.choice(PACES))


def _rolling(rng: random.Random, made: Plan) -> list[Fault]:
    """Nodes are away in turn, for longer than their leaders stay; who is connected to
    the one that stays has the same connection throughout."""
    at, faults = 0.0, []
    for host in 3 * rng.sample(made.hosts, len(made.hosts) - 1):
        at = round(at + rng.uniform(0.0, 3.0), 3)
        seconds = round(rng.uniform(6.0, 8.0), 3)
        kind = rng.choice(("freeze", "die"))
        faults.append(Fault(at, kind, host, seconds, rng.randrange(1000)))
        at = round(at + seconds, 3)
    return faults


def _fault(rng: random.Random, made: Plan) -> Fault:
    at = round(rng.uniform(0.0, TROUBLE - 20.0), 3)
    others = {"rabbitmq": RABBIT}.get(made.bus, ROUTER if made.is_router else BUS)
    seconds = round(rng.choice((0.05, 0.5, 3.0, 9.0)) * rng.random(), 3)
    if rng.random() < 0.2:
        kind, hosts = rng.choice(PROCESS), (*SERVERS, *CLIENTS, KEEPER)
    else:
        kind = rng.choice(NETWORK + others)
        hosts = made.hosts
    return Fault(at, kind, rng.choice(hosts), seconds, rng.randrange(1000))
