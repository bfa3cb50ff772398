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
import bisect
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import typing

from benchmarks.report import aligned
from tests.chaos import brokers, timeline
from tests.chaos.workers import Worker
from tests.functional.world import WORLDS
from tests.ledger import PENDING, QUIET, compare
from tools.buses import BUSES, Bus

#: Seconds that may pass with nothing heard from a process.
PATIENCE = 300.0

#: Callers of each driver, and as many notifiers.
CALLERS = 4

#: Seconds that a call may take.
TIMEOUT = 30.0

#: Seconds by which a call may end after its time-out.
GRACE = 1.0

#: Seconds of traffic before the first fault: what the rate is then is the usual one.
BEFORE = 5.0

#: Seconds of traffic after the end of each fault, and after its beginning beyond the
#: time-out of the calls: what was in flight then has ended before the next fault.
AFTER = 15.0
BEYOND = 5.0

#: The share of the usual rate that counts as being back.
BACK = 0.8

#: Drivers by name: the scheme of their URL, and what its query has.
DRIVERS = {
    "greenamqp": ("amqp", ""),
    "declared": ("amqp", "addressing_mode=declared&rabbit_queue_type={queues}"),
    "rabbit": ("rabbit", ""),
}

#: The query of the URL, which all drivers read, for each type of queue.
QUEUES = {
    "classic": "",
    "quorum": "rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true"
    "&amqp_durable_queues=true",
}

Row = dict[str, typing.Any]


class Embedded(brokers.Broker):
    """The embedded broker, in the way of tools.buses as far as faults want it."""

    def kill9(self, node: int) -> None:
        self.kill()

    def signal(self, number: int, node: int) -> None:
        os.kill(self.pid, number)


@dataclasses.dataclass
class Field:
    """What a fault can reach.

    :ivar bus: a tools.buses.Bus, or Embedded
    :ivar topics: of each driver; its exchange has the same name
    :ivar workers: by "driver role"
    """

    bus: typing.Any
    topics: list[str]
    workers: dict[str, Worker]

    def evaluate(self, code: str) -> None:
        """Run Erlang on a node of RabbitMQ; "@queues" and "@exchanges" are those that
        belong to the topics."""
        names = ",".join(f"<<{json.dumps(topic)}>>" for topic in self.topics)
        for what, name, listed in (
            ("queues", "element(4, amqqueue:get_name(X))", "rabbit_amqqueue:list()"),
            ("exchanges", "element(4, element(2, X))", "rabbit_exchange:list()"),
        ):
            code = code.replace(
                f"@{what}",
                f"[X || X <- {listed}, T <- [{names}], "
                f"string:find({name}, T) =/= nomatch]",
            )
        self.bus.control("eval", code)

    def each(self, number: int, role: str) -> None:
        """A signal to the process of each driver that plays a role."""
        for name, worker in self.workers.items():
            if name.split()[1] == role:
                os.kill(worker.pid, number)

    def restart(self, node: int) -> None:
        """In order, and wait until it serves."""
        self.bus.signal(signal.SIGTERM, node)
        self.bus.wait_gone(node)
        self.bus.start()


_Step = typing.Callable[[Field, int], typing.Any]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault: what brings it about, how long it lasts, and what ends it.

    :ivar each: whether it is one node's, and comes to each in turn
    :ivar only: what the name of the bus begins with, where not all can have it
    :ivar takes: types of queues, as in QUEUES, that lose what is in them by it
    """

    text: str
    begin: _Step
    seconds: float = 0.0
    end: _Step = lambda field, node: None
    each: bool = False
    only: str = ""
    takes: tuple[str, ...] = ()


def _memory(limit: str) -> _Step:
    return lambda field, node: field.bus.control(
        "set_vm_memory_high_watermark", "absolute", limit, node=node
    )


def _evaluate(code: str) -> _Step:
    return lambda field, node: field.evaluate(code)


FAULTS: dict[str, Fault] = {
    "kill": Fault(
        "kill -9 of a node, started again",
        lambda field, node: field.bus.kill9(node),
        5.0,
        lambda field, node: field.bus.start(),
        each=True,
        takes=("classic",),
    ),
    "outage": Fault(
        "kill -9 of all nodes, started again",
        lambda field, node: field.bus.kill9(None),
        5.0,
        lambda field, node: field.bus.start(),
        takes=("classic",),
    ),
    "freeze": Fault(
        "a node is frozen for 25 s",
        lambda field, node: field.bus.signal(signal.SIGSTOP, node),
        25.0,
        lambda field, node: field.bus.signal(signal.SIGCONT, node),
        each=True,
    ),
    "alarm": Fault(
        "memory alarm of 25 s",
        _memory("1MiB"),
        25.0,
        _memory("1GiB"),
        only="rabbitmq",
    ),
    "close": Fault(
        "all connections are closed",
        lambda field, node: field.bus.control("close_all_connections", "fault"),
        only="rabbitmq",
    ),
    "stop-app": Fault(
        "stop_app of a node, start_app",
        lambda field, node: field.bus.control("stop_app", node=node),
        5.0,
        lambda field, node: field.bus.control("start_app", node=node),
        each=True,
        only="rabbitmq",
        takes=("classic",),
    ),
    "rolling": Fault(
        "all nodes are restarted in turn",
        lambda field, node: [
            field.restart(each) for each in range(field.bus.kind.nodes)
        ],
        only="rabbitmq-cluster",
        takes=("classic",),
    ),
    "delete-queues": Fault(
        "the topic's queues are deleted",
        _evaluate(
            '[rabbit_amqqueue:delete(Q, false, false, <<"fault">>) || Q <- @queues].'
        ),
        only="rabbitmq",
        takes=("classic", "quorum"),
    ),
    "delete-exchanges": Fault(
        "the exchanges are deleted",
        _evaluate(
            "[rabbit_exchange:ensure_deleted(element(2, E), false, "
            '<<"fault">>) || E <- @exchanges].'
        ),
        only="rabbitmq",
    ),
    "kill-queues": Fault(
        "the processes of the topic's queues are killed",
        _evaluate(
            "[case amqqueue:get_pid(Q) of {N, On} -> "
            "exit(rpc:call(On, erlang, whereis, [N]), kill); "
            "P -> exit(P, kill) end || Q <- @queues]."
        ),
        only="rabbitmq",
        takes=("classic",),
    ),
    "leader": Fault(
        "the leader of each quorum queue moves",
        _evaluate(
            "[case amqqueue:get_pid(Q) of {_, On} -> "
            "rabbit_quorum_queue:transfer_leadership(Q, "
            "hd(rabbit_nodes:list_running() -- [On])); "
            "_ -> classic end || Q <- @queues]."
        ),
        only="rabbitmq-cluster",
    ),
    "stop-client": Fault(
        "callers and notifiers are stopped for 10 s",
        lambda field, node: [
            field.each(signal.SIGSTOP, role) for role in ("call", "notify")
        ],
        10.0,
        lambda field, node: [
            field.each(signal.SIGCONT, role) for role in ("call", "notify")
        ],
    ),
    "stop-server": Fault(
        "one of the two servers is stopped for 10 s",
        lambda field, node: field.each(signal.SIGSTOP, "serve-1"),
        10.0,
        lambda field, node: field.each(signal.SIGCONT, "serve-1"),
    ),
}

#: What a round is made of: faults by name, each with its node.
Plan = list[tuple[str, int]]


@dataclasses.dataclass
class Window:
    """A fault as it was: its instants, and where what belongs to it ends."""

    name: str
    node: int
    begin: float
    end: float
    until: float = 0.0


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
) -> tuple[list[Window], dict[str, dict[str, typing.Any]]]:
    """One round.  Returns the faults as they were, and the ledger of each driver.

    :param urls: by driver
    :param patience: seconds in which all that has begun has to end after the last
        fault
    """
    stamp = time.monotonic_ns() // 1_000_000
    topics = {driver: f"faults-{driver}-{stamp}" for driver in urls}
    roles = [(driver, role) for driver in urls for role in ("serve-1", "serve-2")]
    workers: dict[str, Worker] = {}

    with contextlib.ExitStack() as stack:

        def begin(driver: str, role: str, scenario: str, **more: typing.Any) -> None:
            workers[f"{driver} {role}"] = stack.enter_context(
                Worker(
                    world,
                    scenario,
                    url=urls[driver],
                    topic=topics[driver],
                    log=str(logs / f"{driver}-{role}.log") if logs else "",
                    **more,
                )
            )

        for driver, role in roles:
            begin(driver, role, "faults:receive", name=role)
        for worker in workers.values():
            worker.expect("ready", PATIENCE)
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
            workers[name].expect("ready", PATIENCE)
        for name in senders:
            workers[name].tell(go=True)
        field = Field(bus, list(topics.values()), workers)
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


# -- what became of it


def figures(
    windows: list[Window],
    ledger: dict[str, typing.Any],
    callers: int = CALLERS,
    timeout: float = TIMEOUT,
) -> list[Row]:
    """What each fault did to one driver."""
    sent, got = ledger["sent"], ledger["got"]
    wells = {
        kind: sorted(ended for _, _, ended, error in sent[kind] if error is None)
        for kind in ("call", "notify")
    }
    first = windows[0].begin
    rows = []
    for window in windows:
        notes = {
            kind: [note for note in sent[kind] if _belongs(note[1], window, windows)]
            for kind in ("call", "notify")
        }
        numbers = {kind: {note[0] for note in notes[kind]} for kind in notes}
        found = compare(
            {"wrong": [w for w in sent["wrong"] if w[0] in numbers["call"]], **notes},
            {
                "notified": [x for x in got["notified"] if x[0] in numbers["notify"]],
                "executed": [x for x in got["executed"] if x[0] in numbers["call"]],
            },
        )
        errors = {**found["not_accepted"], **found["call_errors"]}
        row: Row = {
            "fault": window.name,
            "node": window.node,
            "lasted": window.end - window.begin,
            "sent": found["sent"] + found["calls"],
            "lost": len(found["lost"]),
            "raised": sum(errors.values()) - errors.get(PENDING, 0),
            "stuck": errors.pop(PENDING, 0),
            "hung": sum(
                ended - begun > timeout + GRACE for _, begun, ended, _ in notes["call"]
            ),
            "wrong": len(found["wrong_replies"]),
            "executed twice": len(found["executed_twice"]),
            "delivered twice": len(found["doubled"]),
            "errors": errors,
        }
        for kind, ends in wells.items():
            usual = _count(ends, first - BEFORE + 1, first) / (BEFORE - 1)
            row[f"{kind} stall"] = _stall(sent[kind], window, callers)
            row[f"{kind} back"] = _back(ends, window, usual)
        rows.append(row)
    return rows


def _belongs(instant: float, window: Window, windows: list[Window]) -> bool:
    # What was on its way when the first one began is counted with it.
    begin = 0.0 if window is windows[0] else window.begin
    return begin <= instant < window.until or (
        window is windows[-1] and instant >= window.until
    )


def _count(ends: list[float], begin: float, end: float) -> int:
    return bisect.bisect_left(ends, end) - bisect.bisect_left(ends, begin)


def _stall(notes: list[typing.Any], window: Window, callers: int) -> float:
    """The longest time for which any one caller had no success, also where it ended
    in the next fault's."""
    last = dict.fromkeys(range(callers), window.begin)
    worst = 0.0
    for number, _, ended, error in sorted(notes, key=lambda note: note[2]):
        before = last[number % callers]
        if error is None and ended > window.begin and before < window.until:
            worst = max(worst, ended - before)
            last[number % callers] = ended
    return max(worst, *(window.until - instant for instant in last.values()))


def _back(ends: list[float], window: Window, usual: float) -> float | None:
    """How many seconds after the end of a fault a second begins that has the usual
    rate; None: it did not come."""
    steps = int(10 * (window.until - window.end - 1))
    for step in range(max(0, steps) + 1):
        begin = window.end + step / 10
        if usual and _count(ends, begin, begin + 1) >= BACK * usual:
            return step / 10
    return None


class Broken(AssertionError):
    """A promise that was not kept."""


#: What may not be, by its name in a row.
PROMISES = {
    "lost": "every notification whose send returned arrives",
    "hung": "every call ends by its time-out",
    "wrong": "nobody gets another call's reply",
    "stuck": "at the end nothing waits any more",
}


def check(rows: list[Row], queues: str = "") -> None:
    """Raise Broken, naming the promise and the fault, if one was not kept.

    :param queues: their type, where they do not outlast all faults: what was in them
        is not the driver's to keep
    """
    for row in rows:
        for name, promise in PROMISES.items():
            taken = name == "lost" and queues and queues in FAULTS[row["fault"]].takes
            if row[name] and not taken:
                raise Broken(f"not kept: {promise}: {row}")
        if row["call back"] is None or row["notify back"] is None:
            raise Broken(f"not kept: the service comes back: {row}")


#: How the figures of a fault that came several times are drawn together.
_SUMS = (
    *("sent", "lost", "raised", "stuck", "hung", "wrong"),
    *("executed twice", "delivered twice"),
)
_WORST = ("call stall", "notify stall", "call back", "notify back")


def together(rows: list[Row]) -> dict[str, Row]:
    """One row for each fault: sums, and the worst of what was timed."""
    result: dict[str, Row] = {}
    for name in dict.fromkeys(row["fault"] for row in rows):
        same = [row for row in rows if row["fault"] == name]
        result[name] = {"times": len(same)}
        for column in _SUMS:
            result[name][column] = sum(row[column] for row in same)
        for column in _WORST:
            times = [row[column] for row in same]
            result[name][column] = None if None in times else max(times)
    return result


def table(rows: dict[str, list[Row]]) -> str:
    """Fault by driver, for people."""
    lines = [["fault", "driver", *(name for name in ("times", *_SUMS, *_WORST))]]
    drawn = {driver: together(each) for driver, each in rows.items()}
    for fault in next(iter(drawn.values())):
        for driver, each in drawn.items():
            row = each[fault]
            counts = [str(row[name]) for name in ("times", *_SUMS)]
            seconds = [
                "never" if row[name] is None else f"{row[name]:.1f}" for name in _WORST
            ]
            lines.append([fault, driver, *counts, *seconds])
    errors = [
        f"{driver}, {row['fault']}: {count} x {error[:200]}"
        for driver, each in rows.items()
        for row in each
        for error, count in row["errors"].items()
    ]
    return "\n".join([aligned(lines), *errors])


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
    if unknown := [*{*drivers} - {*DRIVERS}, *{*names} - {*FAULTS}]:
        parser.error(f"unknown: {', '.join(unknown)}")
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    output = arguments.output or pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
    output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {driver: [] for driver in drivers}
    with _bus(arguments) as (bus, address, count):
        urls = {}
        for driver in drivers:
            scheme, query = DRIVERS[driver]
            query = query.format(queues=arguments.queues)
            urls[driver] = f"{address(scheme)}?{query}&{QUEUES[arguments.queues]}"
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
            if driver != "rabbit":
                check(rows[driver], arguments.queues if driver != "declared" else "")
    except Broken as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _possible(bus: str) -> str:
    return ",".join(n for n, fault in FAULTS.items() if bus.startswith(fault.only))


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
