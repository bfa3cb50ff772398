# SPDX-License-Identifier: Apache-2.0
"""Run oslo.messaging's own functional tests through greenamqp.

    python tests/functional/run_oslo.py [--url URL] [--world WORLD ...]

The tests are those installed with oslo.messaging as
``oslo_messaging.tests.functional``. They are run in two worlds: ``eventlet``, as
they stand (importing them patches the process and their servers ask for the
eventlet executor), and ``threads``, where that patching is left out and their
servers get the threading executor; ``gevent`` is there on demand. Each part of them
has a process and an embedded broker of its own, unless ``--url`` names a bus.

Some tests skip themselves for URLs that begin with ``amqp:`` because of an old
fault of one bus. The driver has a second name, ``greenamqp:``, and under that name
they are run as well.

Left out are the tests for RabbitMQ alone; those for Kafka skip themselves. Any
other test that is skipped counts as failed. Ends with one line
``N passed, N failed, N skipped``; the exit status is 0 only if none failed and no
world ran fewer than MINIMUM tests.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator

if __name__ == "__main__":
    # Started by its path, only this folder is on the path.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.functional import buses

WORLDS = ("eventlet", "threads", "gevent")
DEFAULT_WORLDS = ("eventlet", "threads")

#: Fewer tests than this in one world mean that something was not found.
MINIMUM = 25

#: Seconds for one part in one world. The slowest takes about one minute, nearly all
#: of it waiting.
PART_TIMEOUT = 900

PACKAGE = "oslo_messaging.tests.functional"

#: What is run in a process of its own; the parts of a world run side by side. The
#: form ``n/m`` takes every m-th test, beginning with number n.
PARTS = {
    "rpc": [
        f"{PACKAGE}.test_functional.CallTestCase",
        f"{PACKAGE}.test_functional.CastTestCase",
    ],
    "notify": [f"{PACKAGE}.test_functional.NotifyTestCase"],
    # Each of these ten waits 15 s for more; so two to a process.
    **{f"logger {n}": [f"{PACKAGE}.notify.test_logger", f"{n}/5"] for n in range(5)},
    # Needs a port and a socket path that are fixed: one at a time on a machine.
    "metrics": [f"{PACKAGE}.test_functional.MetricsTestCase"],
}

#: Tests that may be skipped, by the end of their name: they are for other buses.
MAY_SKIP = {
    "test_mandatory_call": "the mandatory flag is RabbitMQ's",
}

#: Why a test skips itself for amqp: URLs although the driver can do it.
OLD_FAULT = "QPID-6307"


# -- in the process that runs the tests ---------------------------------------


def run_part(world: str, names: list[str], report: str) -> None:
    """Run the tests ``names`` in this process, write what came of each."""
    import unittest

    prepare(world)
    import testtools

    share = names.pop() if "/" in names[-1] else "0/1"
    first, step = map(int, share.split("/"))
    loaded = unittest.defaultTestLoader.loadTestsFromNames(names)
    suite = unittest.TestSuite(list(testtools.iterate_tests(loaded))[first::step])

    class Result(unittest.TextTestResult):
        outcomes: dict[str, tuple[str, str]] = {}

        def note(self, test, outcome, reason=""):
            self.outcomes[test.id()] = (outcome, reason)

        def addSuccess(self, test):
            super().addSuccess(test)
            self.note(test, "passed")

        def addFailure(self, test, err, details=None):
            super().addFailure(test, err)
            self.note(test, "failed", str(err[1]))

        def addError(self, test, err, details=None):
            super().addError(test, err)
            self.note(test, "failed", str(err[1]))

        def addSkip(self, test, reason="", details=None):
            if not reason and details and "reason" in details:
                reason = details["reason"].as_text()
            super().addSkip(test, reason)
            self.note(test, "skipped", reason)

    unittest.TextTestRunner(verbosity=2, resultclass=Result).run(suite)
    with open(report, "w") as file:
        json.dump(Result.outcomes, file)


def prepare(world: str) -> None:
    """Make the process and oslo.messaging's tests fit for ``world``."""
    import eventlet

    if world == "eventlet":
        import oslo_messaging.tests  # noqa: F401 - patches

        assert eventlet.patcher.is_monkey_patched("thread")
        return
    if world == "gevent":
        from gevent import monkey

        monkey.patch_all()
    eventlet.monkey_patch = lambda *args, **kwargs: None
    import oslo_messaging
    import oslo_messaging.tests

    assert not eventlet.patcher.is_monkey_patched("thread")
    for name in (
        "get_rpc_server",
        "get_notification_listener",
        "get_batch_notification_listener",
    ):
        setattr(oslo_messaging, name, threaded(getattr(oslo_messaging, name)))


def threaded(factory):
    """``factory`` of servers, with "threading" wherever "eventlet" is asked for."""
    import functools
    import inspect

    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def made(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        if bound.arguments.get("executor") == "eventlet":
            bound.arguments["executor"] = "threading"
        return factory(*bound.args, **bound.kwargs)

    return made


# -- in the process that starts them -------------------------------------------


@contextlib.contextmanager
def a_bus(url: str | None) -> Iterator[str]:
    """The URL of the bus to use: ``url``, or that of a broker of our own."""
    if url:
        yield url
        return
    broker = buses.EmbeddedBroker()
    try:
        yield broker.url
    finally:
        broker.stop()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process of this machine is in here."""
    path = os.path.join(tempfile.gettempdir(), f"greenamqp-oslo-{os.getuid()}.lock")
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Part:
    """One part of the tests at work in one world."""

    def __init__(self, world: str, name: str, tests: list[str], url: str) -> None:
        self.title = f"{world}: {name}: {url.split('://')[0]}://"
        self._folder = tempfile.mkdtemp(prefix="greenamqp-oslo-")
        self._report = os.path.join(self._folder, "report.json")
        self._log = open(os.path.join(self._folder, "log"), "w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [
                sys.executable,
                os.path.abspath(__file__),
                "--part",
                world,
                self._report,
                *tests,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=buses.ROOT,
            env=environment(url),
            # The tests start programs of their own; all must go with them.
            start_new_session=True,
        )

    def outcomes(self) -> dict[str, tuple[str, str]]:
        """Wait for the end; returns {test: (outcome, reason)}."""
        try:
            status = self._process.wait(PART_TIMEOUT)
        except subprocess.TimeoutExpired:
            status = f"none within {PART_TIMEOUT} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
        try:
            with open(self._report) as file:
                outcomes = {k: tuple(v) for k, v in json.load(file).items()}
        except (OSError, ValueError):
            outcomes = {}
        failed = status != 0 or any(o == "failed" for o, _ in outcomes.values())
        if status != 0:
            outcomes[self.title] = ("failed", f"the process ended with {status}")
        counts = count(outcomes)
        print(f"{self.title} {summary(counts)}", flush=True)
        if failed:
            self._log.seek(0)
            print(self._log.read(), flush=True)
        self._log.close()
        shutil.rmtree(self._folder)
        return outcomes


def environment(url: str) -> dict[str, str]:
    scripts = sysconfig.get_path("scripts")
    return buses.plain_environment() | {
        "RPC_TRANSPORT_URL": url,
        "NOTIFY_TRANSPORT_URL": url,
        # One of the tests runs "python3 -m oslo_metrics".
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }


def count(outcomes: dict[str, tuple[str, str]]) -> dict[str, int]:
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for outcome, _ in outcomes.values():
        counts[outcome] += 1
    return counts


def summary(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in counts.items())


def renamed(url: str) -> str:
    """The same bus under the driver's other name."""
    return "greenamqp:" + url.removeprefix("amqp:")


def run_world(world: str, url: str | None, keyword: str) -> dict[str, tuple[str, str]]:
    """Run every part in ``world``; returns {test: (outcome, reason)}."""
    outcomes: dict[str, tuple[str, str]] = {}
    chosen = {name: tests for name, tests in PARTS.items() if keyword in name}
    with contextlib.ExitStack() as stack:
        side_by_side = []
        for name, tests in chosen.items():
            if name != "metrics":
                bus = stack.enter_context(a_bus(url))
                side_by_side.append(Part(world, name, tests, bus))
        for part in side_by_side:
            outcomes |= part.outcomes()
        bus = stack.enter_context(a_bus(url))
        if "metrics" in chosen:
            with alone():
                outcomes |= Part(world, "metrics", chosen["metrics"], bus).outcomes()
        again = [
            test
            for test, (outcome, reason) in outcomes.items()
            if outcome == "skipped" and OLD_FAULT in reason
        ]
        if again and bus.startswith("amqp:"):
            other = renamed(bus)
            outcomes |= Part(world, "other name", again, other).outcomes()
    for test, (outcome, reason) in outcomes.items():
        if outcome == "skipped" and test.rpartition(".")[2] not in MAY_SKIP:
            outcomes[test] = ("failed", f"skipped itself: {reason}")
    return {f"{world}: {test}": result for test, result in outcomes.items()}


def main() -> int:
    if sys.argv[1:2] == ["--part"]:
        world, report, *names = sys.argv[2:]
        run_part(world, names, report)
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--url",
        default=os.environ.get(buses.ENV),
        help=f"a bus (default: {buses.ENV} of the environment, or embedded brokers)",
    )
    parser.add_argument(
        "--world", action="append", choices=WORLDS, help="default: eventlet, threads"
    )
    parser.add_argument(
        "--record", metavar="FILE", help="write down what came of each test"
    )
    parser.add_argument("-k", default="", help=f"only parts of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    outcomes: dict[str, tuple[str, str]] = {}
    too_few = []
    for world in arguments.world or DEFAULT_WORLDS:
        results = run_world(world, arguments.url, arguments.k)
        ran = sum(outcome != "skipped" for outcome, _ in results.values())
        if ran < MINIMUM and not arguments.k:
            too_few.append(f"only {ran} tests ran in {world}")
        outcomes |= results
    for test, (outcome, reason) in sorted(outcomes.items()):
        if outcome != "passed":
            print(f"{outcome}: {test}: {reason}")
    for complaint in too_few:
        print(complaint)
    counts = count(outcomes)
    print(summary(counts))
    status = 1 if counts["failed"] or too_few else 0
    if arguments.record:
        record(arguments.record, outcomes, status)
    return status


def record(path: str, outcomes: dict[str, tuple[str, str]], status: int) -> None:
    """Write the lines that tests/integration/recorder.py writes for pytest's tests."""
    lines: list[dict[str, object]] = [
        {"test": test, "outcome": outcome, "reason": reason, "proves": ["oslo"]}
        for test, (outcome, reason) in outcomes.items()
    ]
    lines.append({"exit": status})
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
