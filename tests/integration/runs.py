# SPDX-License-Identifier: Apache-2.0
"""Runs the tests on one bus: a process for each suite in each world."""

from __future__ import annotations

import collections
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from tests.functional import buses, run_oslo
from tests.integration import recorder, results
from tests.integration.rows import Row

HERE = pathlib.Path(__file__).parent

#: What a bus that does not start is called among the runs.
_START = "start"

#: What can be chosen: the functional suite, the suites that are about one bus, and
#: oslo.messaging's own tests.
SUITES = ("functional", "own", "oslo")


def run_row(
    row: Row,
    worlds: Iterable[str],
    suites: Iterable[str],
    folder: pathlib.Path,
    arguments: list[str],
    say: Callable[[str], None],
) -> results.Results:
    """Start the bus of ``row`` and run what was chosen; keep and return the results.

    ``arguments`` are for pytest. A bus that does not start is a broken run. What was
    kept of other suites and worlds stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = results.load(folder) or results.Results()
    found.broken.pop(_START, None)
    before = time.monotonic()
    try:
        with row.running(f"{row.name}-matrix-{os.getpid()}") as url:
            say(f"{row.title}: started in {time.monotonic() - before:.0f} s")
            found.product = row.product_at(url)
            for suite in suites:
                # Those that are about one bus are written in native threads.
                for world in ("threads",) if suite == "own" else worlds:
                    _run_suite(row, url, world, suite, folder, arguments, found, say)
    except Exception as error:  # whatever a start may raise; the others go on
        found.broken[_START] = str(error)
        say(f"{row.title}: {error}")
    results.save(folder, found)
    return found


def _run_suite(
    row: Row,
    url: str,
    world: str,
    suite: str,
    folder: pathlib.Path,
    arguments: list[str],
    found: results.Results,
    say: Callable[[str], None],
) -> None:
    command = _command(row, url, world, suite)
    if command is None:
        return
    name = f"{suite} {world}"
    path = folder / f"{suite}-{world}.jsonl"
    path.unlink(missing_ok=True)
    environment = buses.plain_environment() | {recorder.ENV: str(path)}
    if suite == "functional":
        environment[buses.ENV] = url
    elif suite == "own":
        environment |= {"RABBITMQ": row.bus}
    if suite == "oslo":
        command += ["--record", str(path)]
    else:
        command += arguments
    say(f"{row.title}: {name}")
    before = time.monotonic()
    status = subprocess.run(command, cwd=buses.ROOT, env=environment).returncode
    seconds = time.monotonic() - before
    tests, wrong = results.load_run(path, status)
    found.add(name, tests, wrong)
    counts = collections.Counter(test.outcome for test in tests)
    said = ", ".join(f"{counts[x]} {x}" for x in ("passed", "failed", "skipped"))
    say(f"{row.title}: {name}: {said} in {seconds:.0f} s. {wrong}".rstrip(". ") + ".")


def _command(row: Row, url: str, world: str, suite: str) -> list[str] | None:
    """What runs a suite, None where there is nothing to run."""
    in_world = [sys.executable, "-m", "tests.functional.world", world, "pytest"]
    record = ["-p", "tests.integration.recorder"]
    if suite == "functional":
        return [*in_world, *record, "tests/functional"]
    if suite == "own":
        if not row.suites:
            return None
        files = [str(HERE / name) for name in row.suites]
        return [sys.executable, "-m", "pytest", *record, *files]
    if not row.oslo or world not in run_oslo.WORLDS:
        return None
    script = os.path.join(buses.ROOT, "tests", "functional", "run_oslo.py")
    return [sys.executable, script, "--url", url, "--world", world]
