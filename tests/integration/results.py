# SPDX-License-Identifier: Apache-2.0
"""What came of the tests on one bus, read from what the runs wrote down.

A run is one process: one suite in one world. It leaves a file of JSON lines in the
folder of its row, see :mod:`.recorder`, and the row a file that says what it was.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import pathlib
import time
import typing
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of a test.

    :ivar outcome: passed, failed or skipped
    :ivar reason: why it was skipped
    :ivar proves: features that it proves
    :ivar refuses: features whose refusal it shows
    :ivar lacks: the feature that the bus lacks, for which it was skipped, or None
    """

    test: str
    outcome: str
    reason: str = ""
    proves: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    lacks: str | None = None


class Verdict(enum.Enum):
    """What is said of a feature on a bus; the value is the word of the table."""

    WORKS = "works"
    REFUSED = "refused"
    CANNOT = "cannot"
    FAILED = "FAILED"
    NOT_RUN = "not run"


class Cell(typing.NamedTuple):
    """A verdict, and the reason where it is not that it works."""

    verdict: Verdict
    reason: str = ""


@dataclasses.dataclass
class Results:
    """All that is known of one row.

    :ivar product: what the bus says it is, with its version
    :ivar tests: by run: the tests of each, where it ran
    :ivar broken: runs that did not come to their end: run -> what was seen
    :ivar dates: by run: the day of it
    """

    product: str = ""
    tests: dict[str, list[Report]] = dataclasses.field(default_factory=dict)
    broken: dict[str, str] = dataclasses.field(default_factory=dict)
    dates: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, run: str, tests: list[Report], wrong: str) -> None:
        """What came of a run, in place of an older one; `wrong` as of load_run()."""
        self.tests[run] = tests
        self.dates[run] = time.strftime("%Y-%m-%d", time.gmtime())
        self.broken.pop(run, None)
        if wrong:
            self.broken[run] = wrong

    def cell(self, feature: str) -> Cell:
        """What the tests say of ``feature``.

        One failure is enough to fail.  A test that was skipped decides only where none
        has passed: that the bus cannot do it, if that is what it lacks; if the test
        needs something else that it lacks, that nothing is known.
        """
        found = collections.defaultdict(list)
        for tests in self.tests.values():
            for test in tests:
                if feature in test.refuses and test.outcome == "passed":
                    found[Verdict.REFUSED].append(test)
                elif feature in test.proves or feature in test.refuses:
                    found[_verdict(test, feature)].append(test)
        for verdict in (
            Verdict.FAILED,
            Verdict.WORKS,
            Verdict.REFUSED,
            Verdict.CANNOT,
        ):
            if found[verdict]:
                return Cell(verdict, self._reason(verdict, found))
        return Cell(Verdict.NOT_RUN, self._reason(Verdict.NOT_RUN, found))

    @staticmethod
    def _reason(verdict: Verdict, found: dict[Verdict, list[Report]]) -> str:
        if verdict is Verdict.FAILED:
            names = {test.test.rpartition("::")[2] for test in found[verdict]}
            return ", ".join(sorted(names))
        if verdict is Verdict.WORKS:
            return ""
        telling = found[
            Verdict.NOT_RUN if verdict is Verdict.NOT_RUN else Verdict.CANNOT
        ]
        reasons = {test.reason: None for test in telling if test.lacks}
        return "; ".join(reasons)

    def counts(self) -> dict[str, collections.Counter[str]]:
        """By run: how many tests passed, failed and were skipped."""
        return {
            run: collections.Counter(test.outcome for test in tests)
            for run, tests in self.tests.items()
        }

    def failed(self, runs: Iterable[str] | None = None) -> bool:
        """Whether any of these runs failed, or did not come to its end; or of all."""
        known = {*self.tests, *self.broken}
        return any(
            run in self.broken
            or any(test.outcome == "failed" for test in self.tests[run])
            for run in (known if runs is None else known.intersection(runs))
        )


def _verdict(test: Report, feature: str) -> Verdict:
    if test.outcome == "skipped":
        return Verdict.CANNOT if test.lacks == feature else Verdict.NOT_RUN
    return Verdict.WORKS if test.outcome == "passed" else Verdict.FAILED


def load_run(path: pathlib.Path, status: int) -> tuple[list[Report], str]:
    """The tests of a run that has ended with ``status``.

    Also returns what was wrong with the run itself, or nothing: it crashed, ended
    for another reason than its tests, or ran none.
    """
    tests = []
    ended = None
    if path.exists():
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "exit" in entry:
                ended = entry["exit"]
                continue
            entry |= {key: tuple(entry.get(key, ())) for key in ("proves", "refuses")}
            tests.append(Report(**entry))
    failed = any(test.outcome == "failed" for test in tests)
    if ended is None:
        return tests, f"the process ended with {status} in the middle"
    if not tests:
        return tests, "no test was run"
    if status != (1 if failed else 0):
        return tests, f"the process ended with {status}"
    return tests, ""


def save(folder: pathlib.Path, results: Results) -> None:
    """Keep the results of a row in its folder, in place of older ones."""
    (folder / "results.json").write_text(
        json.dumps(dataclasses.asdict(results), indent=1)
    )


def load(folder: pathlib.Path) -> Results | None:
    """The results that were kept last, None if there are none."""
    path = folder / "results.json"
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    kept["tests"] = {
        run: [
            Report(
                **test
                | {"proves": tuple(test["proves"]), "refuses": tuple(test["refuses"])}
            )
            for test in tests
        ]
        for run, tests in kept["tests"].items()
    }
    return Results(**kept)
