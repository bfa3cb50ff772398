# SPDX-License-Identifier: Apache-2.0
"""``compare``: the same work by every side, interleaved, in one table."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import typing

from benchmarks import cells, report
from benchmarks.cells import Cell
from benchmarks.environments import CHECKOUT, Environments
from benchmarks.processes import Bus, WorkerFailed
from benchmarks.samples import BusAt, Pair, Sample
from benchmarks.sides import Side, chosen

#: What the table is made of: medians over the repeats, with their spread.
FIGURES = (
    "rate",
    "p50",
    "p99",
    "p999",
    "cpu",
    "client_cpu",
    "server_cpu",
    "bus_cpu",
    "client_switches",
    "server_switches",
    "client_rss",
    "server_rss",
    "client_threads",
    "server_threads",
    "client_fds",
    "server_fds",
    "noise",
)

#: Links that the embedded broker allows: an RPC target takes three, and some
#: thousands of targets are asked for here.
MAX_LINKS = 100_000

_SHORT_SIDES = "greenamqp,predecessor"
_FULL_SIDES = "greenamqp,greenamqp-stock,predecessor,greenamqp-rabbit,rabbit,floor"


def add_bus_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command needs: a bus, environments, a folder."""
    parser.add_argument(
        "--url",
        help="transport URL of the message bus; by default the embedded broker is "
        "started in a process of its own",
    )
    parser.add_argument(
        "--bus",
        metavar="NAME",
        help="start this message bus by tools/buses (see python -m tools.buses list)",
    )
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        default=CHECKOUT / "build" / "benchmarks",
        help="where environments and results are kept (%(default)s)",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="use this interpreter, as it is, for greenamqp, predecessor or rabbit",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare the options of what is measured; see `options_of`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="GROUP.NAME=VALUE",
        help="an oslo.config option for every side",
    )


def environments(arguments: argparse.Namespace) -> Environments:
    """As the arguments say."""
    given = dict(pair.split("=", 1) for pair in arguments.python)
    return Environments(arguments.folder / "environments", given)


def keep(
    arguments: argparse.Namespace,
    command: str,
    began: datetime.datetime,
    results: dict[str, typing.Any],
) -> pathlib.Path:
    """Write what a command found among the results; returns the file's path."""
    folder: pathlib.Path = arguments.folder / "results"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{command}-{began:%Y%m%d-%H%M%S}.json"
    output.write_text(json.dumps(results, indent=1))
    return output


@contextlib.contextmanager
def bus(arguments: argparse.Namespace, kept: Environments) -> typing.Iterator[BusAt]:
    """The message bus; it ends with the ``with``, if it is ours."""
    if arguments.url:
        yield BusAt(arguments.url)
    elif arguments.bus:
        with _real_bus(arguments.bus) as real:
            yield BusAt(real.url("amqp"), real)
    else:
        command = [
            kept.python("greenamqp"),
            *("-m", "greenamqp", "broker", "--host", "127.0.0.1", "--port", "0"),
            *("--max-links", str(MAX_LINKS)),
        ]
        with Bus(command) as embedded:
            yield BusAt(embedded.announced.split()[-1], embedded)


def _real_bus(name: str) -> typing.Any:
    """A message bus of tools/buses: an instance of our own, which is removed when the
    ``with`` ends."""
    from tools.buses import Bus as RealBus

    return RealBus(name, instance=f"{name}-bench-{os.getpid()}")


def main(argv: typing.Sequence[str]) -> int:
    """The command.  Returns 1 if anything was lost or failed."""
    parser = argparse.ArgumentParser(prog="benchmarks compare", description=__doc__)
    add_bus_arguments(parser)
    parser.add_argument(
        "--rabbit-url",
        help="rabbit:// URL of a RabbitMQ 4.x; adds the rabbit driver, and greenamqp "
        "on the same broker",
    )
    parser.add_argument(
        "--rabbit-amqp-url",
        help="the same broker's amqp:// URL (by default --rabbit-url with that scheme)",
    )
    parser.add_argument(
        "--rabbit",
        metavar="NAME",
        help="start this RabbitMQ by tools/buses, for instance rabbitmq-4.0",
    )
    add_settings(parser)
    parser.add_argument("--sides", help="comma-separated names or patterns")
    parser.add_argument("--loads", help=f"of {','.join(cells.LOADS)}")
    parser.add_argument("--callers", help="comma-separated numbers")
    parser.add_argument("--sizes", help="comma-separated bytes; k and M are understood")
    parser.add_argument("--targets", help="comma-separated numbers")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, help="of each sample")
    parser.add_argument("--warmup", type=float, help="seconds before each sample")
    parser.add_argument(
        "--short", action="store_true", help="what fits into five minutes"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="where results go, without suffix"
    )
    parser.add_argument(
        "--profile",
        type=pathlib.Path,
        metavar="FOLDER",
        help="take one more sample of each, and write where its CPU time goes",
    )
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    try:
        return _compare(arguments)
    except ValueError as exc:
        parser.error(str(exc))


def _cells(arguments: argparse.Namespace) -> list[Cell]:
    """What is asked for: axes that are given are crossed, else the usual plan."""
    given = (arguments.loads, arguments.callers, arguments.sizes, arguments.targets)
    if not any(given):
        return cells.short() if arguments.short else cells.star()
    return crossed(arguments)


def crossed(arguments: argparse.Namespace) -> list[Cell]:
    """Every combination of the loads, callers, sizes and targets that are asked for.

    :raises ValueError: for what there is not
    """
    loads = (arguments.loads or "call").split(",")
    for load in loads:
        if load not in cells.LOADS:
            raise ValueError(
                f"no load is called {load!r}; there are: {', '.join(cells.LOADS)}"
            )
    return cells.cross(
        loads,
        _numbers(arguments.callers or "16"),
        _numbers(arguments.sizes or "64"),
        _numbers(getattr(arguments, "targets", None) or "1"),
    )


def _numbers(text: str) -> list[int]:
    units = {"k": 1024, "M": 1024 * 1024}
    numbers = []
    for part in text.split(","):
        unit = units.get(part[-1:], 1)
        number = int(part.rstrip("kM")) * unit
        if number < 1:
            raise ValueError(f"{part!r} is no number of anything")
        numbers.append(number)
    return numbers


def options_of(settings: list[str]) -> dict[str, dict[str, str]]:
    """oslo.config options by group, as ``--set`` gives them."""
    options: dict[str, dict[str, str]] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        group, _, name = key.rpartition(".")
        options.setdefault(group or "DEFAULT", {})[name] = value
    return options


def _compare(arguments: argparse.Namespace) -> int:
    rabbit = bool(arguments.rabbit_url or arguments.rabbit)
    patterns = arguments.sides or (_SHORT_SIDES if arguments.short else _FULL_SIDES)
    sides = chosen(patterns.split(","), rabbit)
    wanted = _cells(arguments)
    seconds = arguments.seconds or (0.7 if arguments.short else 2.0)
    warmup = arguments.warmup or seconds / 3
    options = options_of(arguments.set)
    kept = environments(arguments)
    for side in sides:
        kept.python(side.environment)
    began = datetime.datetime.now()
    output = arguments.output or arguments.folder / "results" / (
        f"compare-{began:%Y%m%d-%H%M%S}"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    samples: dict[tuple[Cell, str], list[Sample]] = {}
    troubles: list[str] = []
    with contextlib.ExitStack() as stack:
        buses = {}
        if any(side.bus == "bus" for side in sides):
            buses["bus"] = stack.enter_context(bus(arguments, kept))
        if rabbit:
            buses.update(_rabbit(arguments, stack))
        for number, cell in enumerate(wanted, 1):
            print(f"[{number}/{len(wanted)}] {cell}", file=sys.stderr, flush=True)
            with contextlib.ExitStack() as pairs:
                running = []
                for side in sides:
                    if side.can(cell):
                        continue
                    pair = Pair(side, cell, kept, buses, options)
                    try:
                        running.append(pairs.enter_context(pair))
                    except WorkerFailed as exc:
                        troubles.append(f"{cell}: {exc}")
                taken = _interleave(
                    running, arguments.repeats, seconds, warmup, troubles
                )
                for name, list_ in taken.items():
                    samples[cell, name] = list_
                if arguments.profile is not None:
                    arguments.profile.mkdir(parents=True, exist_ok=True)
                    for pair in running:
                        if pair.side.name not in taken:
                            continue
                        try:
                            written = pair.profile(arguments.profile, 5 * seconds)
                        except WorkerFailed as exc:
                            troubles.append(f"{cell}: {exc}")
                            continue
                        for role, path in written.items():
                            print(f"{pair.side.name}, {cell}, CPU of the {role}:")
                            print(f"  {report.shares(path)}", flush=True)
    results = _results(arguments, kept, sides, samples, troubles, began)
    with open(f"{output}.json", "w") as file:
        json.dump(results, file, indent=1)
    print(report.table(results))
    for trouble in troubles:
        print(f"trouble: {trouble}", file=sys.stderr)
    drawn = report.chart(results, pathlib.Path(f"{output}.png"))
    print(f"written: {output}.json{f', {output}.png' if drawn else ''}")
    lost = sum(
        sample["lost"] + sample["failures"]
        for list_ in samples.values()
        for sample in list_
    )
    if lost:
        print(f"{lost} messages were lost or failed", file=sys.stderr)
    return 1 if lost or troubles else 0


def _rabbit(
    arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> dict[str, BusAt]:
    """One RabbitMQ, by the URLs of both drivers."""
    if arguments.rabbit_url:
        rest = arguments.rabbit_url.partition("://")[2]
        amqp = arguments.rabbit_amqp_url or f"amqp://{rest}"
        return {"rabbit": BusAt(arguments.rabbit_url), "rabbit-amqp": BusAt(amqp)}
    real = stack.enter_context(_real_bus(arguments.rabbit))
    return {
        "rabbit": BusAt(real.url("rabbit"), real),
        "rabbit-amqp": BusAt(real.url("amqp"), real),
    }


def _interleave(
    running: list[Pair],
    repeats: int,
    seconds: float,
    warmup: float,
    troubles: list[str],
) -> dict[str, list[Sample]]:
    """One sample of each in turn, again and again, beginning with another each time.

    What the machine does beside then meets all of them alike.
    """
    taken: dict[str, list[Sample]] = {pair.side.name: [] for pair in running}
    running = list(running)
    for repeat in range(repeats):
        first = repeat % len(running) if running else 0
        for pair in running[first:] + running[:first]:
            try:
                sample = pair.sample(seconds, warmup)
            except WorkerFailed as exc:
                troubles.append(f"{pair.cell}: {exc}")
                running.remove(pair)
                continue
            taken[pair.side.name].append(sample)
    return {name: samples for name, samples in taken.items() if samples}


def _results(
    arguments: argparse.Namespace,
    kept: Environments,
    sides: list[Side],
    samples: dict[tuple[Cell, str], list[Sample]],
    troubles: list[str],
    began: datetime.datetime,
) -> dict[str, typing.Any]:
    rows = []
    by_name = {side.name: side for side in sides}
    for (cell, name), taken in samples.items():
        row: dict[str, typing.Any] = {
            "load": cell.load,
            "callers": cell.callers,
            "size": cell.size,
            "targets": cell.targets,
            "side": name,
            "baseline": by_name[name].baseline,
            "floors": by_name[name].floors,
            "repeats": len(taken),
            # These two are counts of all repeats, not medians.
            "lost": max(0, *(sample["lost"] for sample in taken), 0)
            + sum(sample["failures"] for sample in taken),
            "twice": max(sample["twice"] for sample in taken),
            "samples": taken,
        }
        for figure in FIGURES:
            values = [s[figure] for s in taken if s[figure] is not None]
            row[figure] = statistics.median(values) if values else None
            row[f"{figure}_min"] = min(values) if values else None
            row[f"{figure}_max"] = max(values) if values else None
        rows.append(row)
    return {
        "began": began.isoformat(timespec="seconds"),
        "ended": datetime.datetime.now().isoformat(timespec="seconds"),
        "arguments": {
            name: str(value) if isinstance(value, pathlib.Path) else value
            for name, value in vars(arguments).items()
            if "url" not in name  # may hold a password
        },
        "machine": {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "load": os.getloadavg(),
        },
        "versions": {
            name: kept.versions(name)
            for name in sorted({side.environment for side in sides})
        },
        "troubles": troubles,
        "rows": rows,
    }
