# SPDX-License-Identifier: Apache-2.0
"""Runs the tests on one bus: a process for each suite in each world."""

from __future__ import annotations

import collections
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from tests.functional import buses, run_oslo
from tests.integration import recorder, results
from tests.integration.rows import Row

HERE = pathlib.Path(__file__).parent

#: What can be chosen: the functional suite, the suites that are about one bus, those
#: that kill it under load, and oslo.messaging's own tests.
SUITES = ("functional", "own", "kills", "oslo")

#: Those that see to their worlds themselves: they are run once.
_ONCE = ("own", "kills")

#: A run of which nothing comes but that the bus did not start, or not end.
_BUS = "bus"


class Runner:
    """Runs what was chosen on one row, and keeps what came of it.

    :param folder: where the results of the row are; what is there of other suites and
        worlds stays
    :param arguments: for pytest; where there are any, nothing is kept, since they may
        leave tests out
    :param say: shows a line of progress
    """

    def __init__(
        self,
        row: Row,
        folder: pathlib.Path,
        arguments: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self.row = row
        self.results = results.load(folder) or results.Results()
        self._ran = [_BUS]
        self._folder = folder
        self._arguments = arguments
        self._say = say

    def run(self, worlds: Sequence[str], suites: Sequence[str]) -> None:
        """Start the bus, run, stop it.  A bus that does not start is a broken run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self.results.broken.pop(_BUS, None)
        before = time.monotonic()
        try:
            with self.row.running(f"{self.row.name}-matrix-{os.getpid()}") as url:
                self._tell(f"started in {time.monotonic() - before:.0f} s")
                self.results.product = self.row.product_at(url)
                for suite in suites:
                    for world in ("threads",) if suite in _ONCE else worlds:
                        command = self._command(suite, world, url)
                        if command is not None:
                            self._run(suite, world, url, command)
        except Exception as error:  # whatever a bus may raise: other rows are to go on
            self.results.broken[_BUS] = str(error)
            self._tell(str(error))
        self._save()

    def _save(self) -> None:
        if not self._arguments:
            results.save(self._folder, self.results)

    @property
    def failed(self) -> bool:
        """Whether anything that was run by this runner failed."""
        return self.results.failed(self._ran)

    def _tell(self, text: str) -> None:
        self._say(f"{self.row.title}: {text}")

    def _command(self, suite: str, world: str, url: str) -> list[str] | None:
        """What runs a suite, None where there is nothing to run."""
        record = ["-p", "tests.integration.recorder", *self._arguments]
        if suite == "functional":
            module = ["-m", "tests.functional.world", world, "pytest"]
            return [sys.executable, *module, *record, "tests/functional"]
        if suite in _ONCE:
            names = self.row.suites if suite == "own" else self.row.kills
            files = [str(HERE / name) for name in names]
            pytest = [sys.executable, "-m", "pytest", *record]
            return [*pytest, *files] if files else None
        if not self.row.oslo or world not in run_oslo.WORLDS:
            return None
        script = os.path.join(buses.ROOT, "tests", "functional", "run_oslo.py")
        path = str(self._record(suite, world))
        return [
            *(sys.executable, script),
            *("--url", url, "--world", world, "--record", path),
        ]

    def _record(self, suite: str, world: str) -> pathlib.Path:
        return self._folder / f"{suite}-{world}.jsonl"

    def _run(self, suite: str, world: str, url: str, command: list[str]) -> None:
        name = f"{suite} {world}"
        path = self._record(suite, world)
        path.unlink(missing_ok=True)
        environment = buses.plain_environment() | {
            recorder.ENV: str(path),
            # The bus of the functional suite; which one the other starts for itself.
            buses.ENV: url,
            "RABBITMQ": self.row.bus,
        }
        self._tell(name)
        before = time.monotonic()
        status = subprocess.run(command, cwd=buses.ROOT, env=environment).returncode
        seconds = time.monotonic() - before
        tests, wrong = results.load_run(path, status)
        self.results.add(name, tests, wrong)
        self._ran.append(name)
        self._save()
        counts = collections.Counter(test.outcome for test in tests)
        said = ", ".join(f"{counts[x]} {x}" for x in ("passed", "failed", "skipped"))
        self._tell(f"{name}: {said} in {seconds:.0f} s{wrong and '; '}{wrong}")
