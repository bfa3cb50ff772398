# SPDX-License-Identifier: Apache-2.0
"""``instructions``: how many machine instructions an operation takes, in the client and
in the server.

One of the two processes runs in valgrind, which counts; the other one, and the embedded
broker, run as always.  A count hardly depends on how busy the machine is, so
that it tells what a small change gains or costs.  It leaves out the kernel, and says
nothing of time.  A process in valgrind is some fifty times as slow: with several
callers, what would be done for many messages together is done for few.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import typing

from benchmarks import compare
from benchmarks.cells import Cell
from benchmarks.processes import Worker, WorkerFailed
from benchmarks.samples import Pair
from benchmarks.sides import SIDES

ROLES = ("client", "server")


def main(argv: typing.Sequence[str]) -> int:
    """The command.  Returns 1 if a process failed, 2 without valgrind."""
    parser = argparse.ArgumentParser(
        prog="benchmarks instructions", description=__doc__
    )
    compare.add_bus_arguments(parser)
    compare.add_settings(parser)
    parser.add_argument("--side", default="greenamqp/eventlet", help="(%(default)s)")
    parser.add_argument("--loads", default="call,cast,notify", help="(%(default)s)")
    parser.add_argument("--callers", default="1,16", help="(%(default)s)")
    parser.add_argument("--sizes", default="64", help="(%(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="of the short sample; a hundred operations a second (%(default)s)",
    )
    parser.add_argument(
        "--functions",
        type=int,
        default=0,
        metavar="N",
        help="show the N functions of C in which most instructions are",
    )
    arguments = parser.parse_args(argv)
    if arguments.side not in SIDES:
        parser.error(f"no side is called {arguments.side!r}")
    if shutil.which("valgrind") is None:
        print("this needs valgrind, and its callgrind_control", file=sys.stderr)
        return 2
    try:
        cells = compare.crossed(arguments)
    except ValueError as exc:
        parser.error(str(exc))
    return _count(arguments, cells)


def _count(arguments: argparse.Namespace, cells: list[Cell]) -> int:
    kept = compare.environments(arguments)
    side = SIDES[arguments.side]
    options = compare.options_of(arguments.set)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        buses = {"bus": stack.enter_context(compare.bus(arguments, kept))}
        print(f"{'thousand instructions per operation':40}{'client':>10}{'server':>10}")
        for cell in cells:
            if reason := side.can(cell):
                print(f"{cell}: {reason}")
                continue
            counts: list[float] = []
            tables = ""
            for role in ROLES:
                counter = Counter(folder / f"{role}-{len(tables)}")
                pair = Pair(side, cell, kept, buses, options, under={role: counter.run})
                try:
                    with pair:
                        counts.append(counter.count(pair, role, arguments.seconds))
                except WorkerFailed as exc:
                    print(f"trouble: {cell}: {exc}", file=sys.stderr)
                    return 1
                if arguments.functions:
                    tables += f"\n{role}:\n{counter.functions(arguments.functions)}\n"
            figures = "".join(f"{count / 1000:10,.1f}" for count in counts)
            print(f"{str(cell):40}{figures}{tables}", flush=True)
    return 0


class Counter:
    """Valgrind around one process.

    :param output: where it writes: files whose names begin so
    """

    def __init__(self, output: pathlib.Path) -> None:
        self._output = output
        self._dumps = 0
        #: What stands before the command of the process.
        self.run = (
            "valgrind",
            "-q",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={output}",
        )

    def count(self, pair: Pair, role: str, seconds: float) -> float:
        """Instructions per operation of the process in that role: by how many a sample
        that is three times as long has more, so that what does not depend on the
        number of operations is left out.

        :raises WorkerFailed: if nothing went well, or the counter cannot be read
        """
        worker = {"client": pair.client, "server": pair.server}[role]
        few, less = self._sample(pair, worker, seconds)
        many, more = self._sample(pair, worker, 3 * seconds)
        if many <= few:
            raise WorkerFailed(f"{worker.name}: too few operations to tell")
        return (more - less) / (many - few)

    def _sample(self, pair: Pair, worker: Worker, seconds: float) -> tuple[int, int]:
        """(operations, instructions) of one sample."""
        pair.warm_up(seconds, seconds / 5)
        self._control("--instr=on", worker.pid)
        self._control("--zero", worker.pid)
        result = pair.go()
        self._control("--dump", worker.pid)
        self._control("--instr=off", worker.pid)
        self._dumps += 1
        found = re.search(
            r"^(?:summary|totals): (\d+)", self._dump.read_text(), re.MULTILINE
        )
        if not found:
            raise WorkerFailed(f"{worker.name}: nothing was counted")
        return result["operations"], int(found[1])

    @staticmethod
    def _control(wish: str, pid: int) -> None:
        done = subprocess.run(
            ["callgrind_control", wish, str(pid)], capture_output=True, text=True
        )
        if done.returncode:
            raise WorkerFailed(f"callgrind_control {wish}: {done.stderr}{done.stdout}")

    @property
    def _dump(self) -> pathlib.Path:
        """The latest of its files."""
        return self._output.with_name(f"{self._output.name}.{self._dumps}")

    def functions(self, number: int) -> str:
        """The functions with the most instructions of their own, and their shares."""
        done = subprocess.run(
            ["callgrind_annotate", str(self._dump)],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = [
            f"  {match[1]:>7}  {match[2]}"
            for match in re.finditer(
                r"^\s*[\d,]+ \(\s*([\d.]+%)\)\s+\S*?:(\S+)", done.stdout, re.MULTILINE
            )
        ]
        return "\n".join(lines[:number])
