# SPDX-License-Identifier: Apache-2.0
"""The two environments, the buses between them, and parties in either."""

import json
import os
import pathlib
import sys
import time

import pytest

from tests.functional import buses
from tests.interop import predecessor

#: Seconds that an answer may take; only a test that fails waits so long.
WAIT = 90

HERE = pathlib.Path(__file__).parent

#: Product that the bus says it is, addressing mode of both sides, path of the URL.
BUSES = [
    ("greenamqp", "legacy", ""),
    ("greenamqp", "routable", ""),
    ("qpid-cpp", "dynamic", "/cloud"),
    ("qpid-dispatch-router", "dynamic", "/cloud"),
]


class Failed(Exception):
    """What a party was asked to do raised an exception; `error` is how it says so."""

    def __init__(self, error: dict) -> None:
        super().__init__(error)
        self.error = error


class Party:
    """A party.py at work in one of the environments."""

    def __init__(self, python: str, *arguments: str) -> None:
        self._process, self._stderr = buses.spawn(
            [python, str(HERE / "party.py"), *arguments],
            {k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )

    def begin(self, do: str, **arguments: object) -> None:
        """Ask for something without waiting for the answer."""
        line = json.dumps({"do": do, **arguments})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> object:
        """The answer to what was asked for; raises Failed."""
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the party is gone:\n{self.errors()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer)
        return answer["ok"]

    def ask(self, do: str, **arguments: object) -> object:
        """Ask for something; returns the answer or raises Failed."""
        self.begin(do, **arguments)
        return self.end()

    def events(self, count: int) -> list:
        """What its endpoints were given, once they were given `count` things."""
        deadline = time.monotonic() + WAIT
        while len(events := self.ask("events")) < count:
            assert time.monotonic() < deadline, f"only {events}\n{self.errors()}"
        return events

    def errors(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._stderr.close()


@pytest.fixture(scope="session")
def pythons() -> dict[str, str]:
    return {"new": sys.executable, "old": predecessor.python()}


@pytest.fixture(scope="session", params=BUSES, ids=lambda p: "-".join(p[:2]))
def bus(request, tmp_path_factory):
    """URL of a bus, and the configuration file that both sides read."""
    product, mode, path = request.param
    conf_file = tmp_path_factory.mktemp("conf") / "service.conf"
    # A router gives a requeued message back to its sender, which then waits so long.
    conf_file.write_text(
        f"[oslo_messaging_amqp]\naddressing_mode = {mode}\nlink_retry_delay = 1\n"
    )
    broker = buses.EmbeddedBroker("--product", product)
    try:
        yield broker.url.rstrip("/") + path, str(conf_file)
    finally:
        broker.stop()


@pytest.fixture
def party(bus, pythons):
    """Start a party on the ``old`` or the ``new`` side, or on the latter with
    ``coroutines``, connected to the bus."""
    started = []
    url, conf_file = bus
    drivers = {
        "new": "greenamqp.driver",
        "old": "oslo_messaging._drivers.impl_amqp1",
    }

    def start(side, exmods=()):
        coroutines = side == "coroutines"
        side = "new" if coroutines else side
        made = Party(pythons[side], *["coroutines"] * coroutines)
        started.append(made)
        driver = made.ask("open", url=url, conf_file=conf_file, exmods=exmods)
        assert driver == drivers[side]
        return made

    yield start
    for made in started:
        made.kill()


@pytest.fixture(
    params=["old-to-new", "new-to-old", "old-to-coroutines", "coroutines-to-old"]
)
def sides(request):
    """(who calls or sends, who serves or listens)."""
    return request.param.split("-to-")
