# SPDX-License-Identifier: Apache-2.0
"""The ``greenamqp`` command (also ``python -m greenamqp``).

Each subcommand is a module with two functions: ``add_arguments(parser)`` declares
its arguments, ``run(args)`` does the work and returns the exit status. Only the
module of the subcommand that was asked for is imported, so that ``greenamqp demo``
does not import the broker, and no subcommand pays for another one's libraries.
"""

import argparse
import contextlib
import errno
import importlib
import io
import math
import os
import signal
import sys
from collections.abc import Sequence

from greenamqp.command.ending import interrupted_by

#: Subcommand -> (module, one line for ``greenamqp --help``).
COMMANDS = {
    "broker": (
        "greenamqp.command.broker",
        "run the embedded AMQP 1.0 broker, for development and tests",
    ),
    "demo": (
        "greenamqp.command.demo",
        "run the main job of the driver and show its figures",
    ),
    "doctor": (
        "greenamqp.command.doctor",
        "look at a message bus and a configuration, and say what is wrong",
    ),
    "migrate": (
        "greenamqp.command.migrate",
        "say what a configuration for rabbit:// means here, and make the new one",
    ),
    "call": ("greenamqp.command.call", "make an RPC call by hand, or many"),
    "cast": ("greenamqp.command.cast", "make an RPC cast by hand, or many"),
    "notify": ("greenamqp.command.notify", "send a notification by hand, or many"),
    "listen": (
        "greenamqp.command.listen",
        "serve a topic with an echo, for call and cast",
    ),
    "tail": (
        "greenamqp.command.tail",
        "show notifications as they pass, without taking them from anybody",
    ),
    "state": ("greenamqp.command.state", "show what one process of this host is doing"),
    "top": ("greenamqp.command.top", "show what all processes of this host are doing"),
    "outbox": (
        "greenamqp.command.outbox",
        "list, count, send or remove the notifications that wait on disk",
    ),
}


def _version() -> str:
    from importlib import metadata

    return metadata.version("greenamqp")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: object):
        super().__init__(option_strings, dest, nargs=0, help=str(kwargs["help"]))

    def __call__(
        self, parser: argparse.ArgumentParser, *_asked: object, **_how: object
    ) -> None:
        print(f"greenamqp {_version()}")
        parser.exit()


def named(text: str) -> str:
    """For argparse: a text that is there, as a variable of a shell is not that was not
    set.

    :raises argparse.ArgumentTypeError: if it is empty
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def whole(text: str, least: int, most: int, factor: int = 1) -> int:
    """For argparse: a whole number of that range.

    :param factor: what a letter at the end of it stands for; 1: there is none
    :raises argparse.ArgumentTypeError: naming the range
    """
    try:
        value = int(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from {least} to {most}"
        )
    return value


def count(text: str) -> int:
    """The same, for how many there are to be."""
    return whole(text, 1, 10**9)


def number(text: str, least: float, most: int) -> float:
    """For argparse: a number of that range.

    :raises argparse.ArgumentTypeError: naming the range
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number from {least:g} to {most}"
        )
    return value


def seconds(text: str) -> float:
    """The same, for how long something lasts: up to a day."""
    return number(text, 0.1, 86_400)


def rate(text: str) -> float:
    """The same, for how often a second: more than any machine does; 0 is allowed."""
    return number(text, 0, 1_000_000)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that ``argv`` (default: the process's) names.

    Returns its exit status; 130 after Ctrl-C, 141 where nobody reads its output any
    more. argparse exits with status 2 where the arguments are wrong. To be called from
    the main thread of a process.
    """
    # oslo.messaging imports eventlet, whatever it is used with, whose resolver would be
    # a third of the start.
    os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What peers have in names is shown in any locale, half a surrogate too.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # It may be ignored.
        with interrupted_by(signal.SIGINT) if usual else contextlib.nullcontext():
            try:
                return _run(sys.argv[1:] if argv is None else argv)
            finally:
                if sys.stdout is not None:  # it may have been closed before
                    sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except OSError as exc:
        if exc.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # What is still to be written goes nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if exc.errno == errno.EPIPE:
            return 141  # as `head` leaves it
        print(f"greenamqp: {exc.strerror}", file=sys.stderr)
        return 1


def _run(argv: Sequence[str]) -> int:
    # The top level has no option that takes a value, so the first argument that is
    # no option names the subcommand.
    chosen = next((arg for arg in argv if not arg.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="greenamqp", description="AMQP 1.0 for oslo.messaging."
    )
    parser.add_argument("--version", action=_Version, help="print the version")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    asked = parser
    for name, (module_name, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            module = importlib.import_module(module_name)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
            asked = subparser
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        # Left to itself argparse shows the usage of the top level, which says nothing
        # of the options of the subcommand.
        asked.error(f"unrecognized arguments: {' '.join(unknown)}")
    status: int = args.run(args)
    return status
