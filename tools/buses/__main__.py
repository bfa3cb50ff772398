# SPDX-License-Identifier: Apache-2.0
"""The command: start, stop and kill real message buses for tests."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence

from .bus import BUSES, Bus, instances
from .errors import BusError
from .scratch import ENV_SCRATCH, Scratch, default_scratch


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.buses", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--dir",
        help=f"the scratch folder (default: ${ENV_SCRATCH}, or {default_scratch()})",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    def add_bus(name: str, run: Callable[..., None], text: str) -> None:
        command = add(name, run, text)
        command.add_argument("name", nargs="?", choices=sorted(BUSES), metavar="NAME")
        command.add_argument(
            "--instance", help="a name of its own (default: the bus's name)"
        )
        if name == "stop":
            command.add_argument("--all", action="store_true", help="every instance")
            command.add_argument(
                "--keep", action="store_true", help="keep the data for a later start"
            )
        if name in ("kill9", "ctl"):
            command.add_argument(
                "--node", type=int, help="a node of a cluster, counted from 1"
            )
        if name == "url":
            command.add_argument("--scheme", help="amqp or rabbit (default: each)")
        if name == "ctl":
            command.add_argument("arguments", nargs=argparse.REMAINDER)

    add_bus("start", _start, "start or start again, wait until ready, print URLs")
    add_bus("stop", _stop, "stop and remove everything of an instance")
    add_bus("kill9", _kill9, "kill the broker hard; start brings it back")
    add_bus("url", _url, "print transport URLs")
    add_bus("ctl", _control, "run the broker's own tool (rabbitmqctl, artemis)")
    install = add("install", _install, "install what is missing, start nothing")
    install.add_argument("names", nargs="+", choices=sorted(BUSES), metavar="NAME")
    add("list", _list, "what can be started and what runs")
    add("purge", _purge, "stop all and remove what was installed in the folder")
    return parser


def _bus(options: argparse.Namespace, scratch: Scratch) -> Bus:
    if options.name:
        return Bus(options.name, options.instance, scratch)
    if options.instance:
        for bus in instances(scratch):
            if bus.instance == options.instance:
                return bus
        raise BusError(f"there is no instance {options.instance!r}")
    raise BusError(f"name a bus: {', '.join(sorted(BUSES))}")


def _node(options: argparse.Namespace, bus: Bus) -> int | None:
    if options.node is None:
        return None
    if not 1 <= options.node <= bus.kind.nodes:
        raise BusError(f"{bus.instance} has nodes 1 to {bus.kind.nodes}")
    return int(options.node) - 1


def _start(options: argparse.Namespace, scratch: Scratch) -> None:
    bus = _bus(options, scratch).start()
    for scheme in bus.kind.schemes:
        print(bus.url(scheme))


def _install(options: argparse.Namespace, scratch: Scratch) -> None:
    for name in options.names:
        print(f"{name}: {BUSES[name].install(scratch)}", flush=True)


def _stop(options: argparse.Namespace, scratch: Scratch) -> None:
    chosen = instances(scratch) if options.all else [_bus(options, scratch)]
    for bus in chosen:
        bus.stop(keep=options.keep)


def _kill9(options: argparse.Namespace, scratch: Scratch) -> None:
    bus = _bus(options, scratch)
    bus.kill9(_node(options, bus))


def _url(options: argparse.Namespace, scratch: Scratch) -> None:
    bus = _bus(options, scratch)
    for scheme in [options.scheme] if options.scheme else bus.kind.schemes:
        print(bus.url(scheme))


def _control(options: argparse.Namespace, scratch: Scratch) -> None:
    bus = _bus(options, scratch)
    arguments = [x for x in options.arguments if x != "--"]
    print(bus.control(*arguments, node=_node(options, bus) or 0), end="")


def _list(options: argparse.Namespace, scratch: Scratch) -> None:
    for name, kind in sorted(BUSES.items()):
        print(f"{name:22}{kind.summary}")
    for bus in instances(scratch):
        alive = bus.running()
        print(f"{bus.instance:22}{sum(alive)} of {len(alive)} nodes run: {bus.url()}")


def _purge(options: argparse.Namespace, scratch: Scratch) -> None:
    for bus in instances(scratch):
        bus.stop()
    shutil.rmtree(scratch.folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done, 1 with a message on a BusError."""
    options = _parser().parse_args(argv)
    try:
        options.run(options, Scratch(options.dir))
    except BusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
