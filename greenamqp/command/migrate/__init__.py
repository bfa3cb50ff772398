# SPDX-License-Identifier: Apache-2.0
"""``greenamqp migrate``: what a configuration for ``rabbit://``, or for the ``amqp``
driver that oslo.messaging had, means here.

Exit status: 0 services can move, 1 something is to be done first, 2 the arguments or
the files cannot be used.
"""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    from greenamqp.command import formats, named
    from greenamqp.command.migrate.plan import SUFFIX

    parser.add_argument(
        "config",
        nargs="+",
        type=named,
        metavar="CONFIG",
        help="the configuration of one service: all its files, in the order in which "
        "it reads them",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"make CONFIG{SUFFIX} beside each file that has to change",
    )
    formats.add_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Read, say what it means, and write if asked to; returns the exit status."""
    from greenamqp.command import service
    from greenamqp.command.migrate import report
    from greenamqp.command.migrate.reading import Migration

    try:
        migration = Migration(args.config)
        written = migration.write() if args.write else []
    except (service.Unusable, OSError) as exc:
        print(f"greenamqp migrate: {exc}", file=sys.stderr)
        return 2
    if args.format == "text":
        print(report.as_text(migration, written))
    else:
        print(report.rendered(args.format, migration, written))
    return 1 if migration.first else 0
