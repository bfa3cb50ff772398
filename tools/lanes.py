# SPDX-License-Identifier: Apache-2.0
"""Run targets of make, some of them side by side, and show what each took.

    python3 tools/lanes.py [-j LANES] TARGET ...

Each target is a make of its own. They start in the order given, as lanes become free.
What one writes is shown whole when it has ended, so that the log can be read; all are
run, also after a failure. At the end a table says what became of each, its seconds and
those of its processes' CPU. The exit status is 0 only if all succeeded; after Ctrl-C it
is 130, as soon as what ran has ended.

Only targets whose virtual environment is there may run side by side: make would
otherwise fill it while others use it. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import typing


class Done(typing.NamedTuple):
    """A target that has ended: exit status, seconds, seconds of CPU."""

    target: str
    status: int
    seconds: float
    cpu: float

    def __str__(self) -> str:
        said = f"failed with {self.status}" if self.status else "passed"
        return f"{self.target}: {said}, {self.seconds:.0f} s, {self.cpu:.0f} s of CPU"


def run(target: str, output: typing.BinaryIO) -> Done:
    """Make `target`; what it writes goes to `output`."""
    before = time.monotonic()
    process = subprocess.Popen(
        [os.environ.get("MAKE", "make"), "--no-print-directory", target],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = used.ru_utime + used.ru_stime
    return Done(target, process.returncode, time.monotonic() - before, cpu)


def run_all(targets: typing.Sequence[str], lanes: int) -> list[Done]:
    """Run all, `lanes` at once; shows each as it ends, in one piece."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for target in targets:
        waiting.put(target)
    done: list[Done] = []
    over: queue.SimpleQueue[None] = queue.SimpleQueue()
    showing = threading.Lock()

    def lane() -> None:
        while True:
            try:
                target = waiting.get_nowait()
            except queue.Empty:
                over.put(None)
                return
            with tempfile.TemporaryFile() as output:
                ended = run(target, output)
                output.seek(0)
                with showing:
                    done.append(ended)
                    print(f"==== {target}", flush=True)
                    shutil.copyfileobj(output, sys.stdout.buffer)
                    print(f"==== {ended}", flush=True)

    at_work = [threading.Thread(target=lane) for _ in range(lanes)]
    for each in at_work:
        each.start()
    interrupted = False
    while at_work:
        try:
            over.get()
            at_work.pop()
        except KeyboardInterrupt:
            # What runs has the signal as well; nothing else is to begin.
            interrupted = True
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
    if interrupted:
        raise KeyboardInterrupt
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-j", type=int, default=2, metavar="LANES", dest="lanes")
    parser.add_argument("targets", nargs="+", metavar="TARGET")
    options = parser.parse_args()
    before = time.monotonic()
    done = run_all(options.targets, options.lanes)
    print("\n".join(map(str, done)))
    print(f"{len(done)} in {time.monotonic() - before:.0f} s")
    return 1 if any(each.status for each in done) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
