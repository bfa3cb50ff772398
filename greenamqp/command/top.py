# SPDX-License-Identifier: Apache-2.0
"""``greenamqp top``: what the processes of this host are doing now."""

from __future__ import annotations

import argparse
import json
import sys
import time
import typing

from greenamqp.command import seconds, service, states

_CLEAR = "\x1b[H\x1b[2J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    states.add_arguments(parser)
    parser.add_argument(
        "--interval",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="between two looks (%(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="look once, and end")


def run(args: argparse.Namespace) -> int:
    """Show it until interrupted; once where it is no terminal, and then no rates."""
    once = args.once or args.format == "json" or not sys.stdout.isatty()
    try:
        where = states.directory(args)
        before: list[dict[str, typing.Any]] = []
        while True:
            found = states.read(where)
            if args.format == "json":
                print(json.dumps(found, indent=2))
            else:
                shown = states.table(found, before)
                print(shown if once else _CLEAR + shown, flush=True)
            if once:
                return 0
            before = found
            time.sleep(args.interval)
    except (service.Unusable, OSError) as exc:
        print(f"greenamqp top: {exc}", file=sys.stderr)
        return 2
