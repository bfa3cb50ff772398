# SPDX-License-Identifier: Apache-2.0
"""Try the driver on message buses, and show what works where.

    python -m tests.integration [option ...] [BUS or WORLD ...] [-- pytest's ...]

Starts each BUS (default: all that there are), runs the functional suite on it, the
suites of this folder that are about it, and oslo.messaging's own tests, in each WORLD
(default: threads and eventlet); then prints a table of bus by feature. The exit status
is 0 only if every bus started, every run came to its end and no test failed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys

from tests.functional import buses, world
from tests.integration import matrix, results, runs
from tests.integration.rows import ROWS

#: Where results are kept, one folder for each bus; the last of each bus is there.
RESULTS = pathlib.Path(buses.ROOT) / "build" / "integration"

#: Worlds that are tried unless some are named: the others have the same engine, and
#: ``make test`` runs all of them.
_WORLDS = ("threads", "eventlet")

#: How the page of the documentation says that it is made.
_COMMAND = "python -m tests.integration --kept --write {path}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration",
        description=__doc__.splitlines()[0],
        epilog=f"buses: {', '.join(ROWS)}; worlds: {', '.join(world.WORLDS)}",
    )
    parser.add_argument("names", nargs="*", metavar="BUS or WORLD")
    parser.add_argument(
        "--suite",
        action="append",
        choices=runs.SUITES,
        help="may be given again (default: all)",
    )
    parser.add_argument(
        "--kept",
        action="store_true",
        help="run nothing: show what was kept of the last run on each bus",
    )
    parser.add_argument(
        "--write", metavar="FILE", help="write the table as a page of documentation"
    )
    return parser


def _say(text: str) -> None:
    print(f"== {text}", flush=True)


def main(argv: list[str]) -> int:
    # Whatever ends this ends the buses, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # A bus in Java lives for minutes here: its best compiler would take more of the
    # processors than it gives back.
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
    for_pytest = []
    if "--" in argv:
        at = argv.index("--")
        argv, for_pytest = argv[:at], argv[at + 1 :]
    parser = _parser()
    options = parser.parse_args(argv)
    if unknown := set(options.names).difference(ROWS, world.WORLDS):
        parser.error(f"no such: {', '.join(sorted(unknown))}; {parser.epilog}")
    worlds = [name for name in world.WORLDS if name in options.names]
    rows = [row for name, row in ROWS.items() if name in options.names]
    table = []
    failed = []
    for row in rows or ROWS.values():
        folder = RESULTS / row.name
        if options.kept:
            if found := results.load(folder):
                table.append((row, found))
                failed += [row.title] if found.failed() else []
            continue
        runner = runs.Runner(row, folder, for_pytest, _say)
        runner.run(worlds or _WORLDS, options.suite or runs.SUITES)
        table.append((row, runner.results))
        failed += [row.title] if runner.failed else []
    print(matrix.as_text(table))
    if options.write:
        command = _COMMAND.format(path=options.write)
        pathlib.Path(options.write).write_text(matrix.as_page(table, command))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed or not table else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
