# SPDX-License-Identifier: Apache-2.0
"""The programs in examples/, run as a user would, on the bus of the run."""

import pathlib
import signal
import socket
import sqlite3
import subprocess
import sys

import oslo_messaging
import pytest
import requests
from oslo_config import cfg
from oslo_messaging import Target

from tests.functional import world

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"

# The examples choose their own world, so once is enough.
pytestmark = [
    pytest.mark.skipif(
        world.current() != "threads", reason="the examples choose their own world"
    ),
    pytest.mark.needs("amqp", "pools"),
    pytest.mark.proves("demo"),
]


class Program:
    """A running example; its output is read line by line."""

    def __init__(self, url, name, *args):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", EXAMPLES / name, *args, "--url", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def type(self, line):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def line(self, start):
        """Read until a line that begins so, and return it."""
        return self.lines(start)[0]

    def lines(self, *starts):
        """Read until for each of `starts` a line came that begins so, in any order."""
        found, seen = {}, []
        for line in self._process.stdout:
            seen.append(line)
            found |= {s: line.rstrip("\n") for s in starts if line.startswith(s)}
            if len(found) == len(starts):
                return [found[start] for start in starts]
        raise AssertionError(f"not all of {starts} in: {''.join(seen)}")

    def interrupt(self):
        self._process.send_signal(signal.SIGINT)

    def end(self):
        """Wait for its end; returns what is left of its output."""
        output, _ = self._process.communicate()
        assert self._process.returncode == 0
        return output

    def terminate(self):
        self._process.terminate()
        self._process.communicate()


@pytest.fixture
def program(the_bus):
    running = []

    def start(name, *args):
        running.append(Program(the_bus.url, name, *args))
        return running[-1]

    yield start
    for each in running:
        each.terminate()


@pytest.fixture
def call(the_bus):
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=the_bus.url)

    def call(target, method, **arguments):
        client = oslo_messaging.get_rpc_client(transport, target, timeout=60)
        return client.call({}, method, **arguments)

    yield call
    transport.cleanup()


def test_agent(program, tmp_path):
    """Every notification becomes one sample, those published meanwhile too."""
    database = str(tmp_path / "samples.sqlite")
    agent = program("agent.py", "--database", database, "--expect", "50")
    agent.line("listening")
    program("publish.py", "--count", "10").end()
    assert "50 samples" in agent.end()
    program("publish.py", "--count", "3").end()
    output = program("agent.py", "--database", database, "--expect", "15").end()
    assert "65 samples" in output
    with sqlite3.connect(database) as samples:
        rows = samples.execute(
            "SELECT publisher, count(*) FROM samples GROUP BY publisher"
        ).fetchall()
    assert dict(rows) == {
        f"{name}.host": 13
        for name in ("nova", "neutron", "cinder", "glance", "keystone")
    }


@pytest.mark.needs("absent")
def test_deploy(program):
    """An agent that starts late finds its plan; the api hears of every step."""
    program("deploy.py", "conductor").line("conductor ready")
    api = program("deploy.py", "api", "--deployments", "2")
    api.lines("deployment-0: deployment.waiting", "deployment-1: deployment.waiting")
    for number in range(2):
        agent = program("deploy.py", "agent", f"agent-of-deployment-{number}")
        assert "plan carried out" in agent.end()
    assert "all 2 deployments are done" in api.end()


def test_select_loop(program, call, unique):
    """The input and RPC are served side by side by one thread."""
    name = unique("loop")
    target = Target(topic="select_loop", server=name)
    loop = program("select_loop.py", "--name", name)
    loop.line("serving")
    assert call(target, "last_line") == "nothing was typed yet"
    loop.type("typed")
    loop.line("noted")
    assert call(target, "last_line") == "typed"
    other = program("select_loop.py", "--name", unique("other"), "--timeout", "1")
    other.line("serving")
    other.type("call")
    assert other.line("whom") == "whom? It is call NAME"
    other.type(f"call {unique('nobody')}")
    assert "timed out" in other.line("no answer")
    other.type(f"call {name}")
    assert other.line("answer") == "answer: typed"
    for each in (loop, other):
        each.type("quit")
        each.end()


@pytest.mark.parametrize(
    "way", ["select", "poll", "epoll", "selectors", "asyncio", "eventlet", "gevent"]
)
def test_wait(program, the_bus, way):
    """A listener's descriptor, waited for in each way."""
    waiter = program("wait.py", "--with", way, "--count", "20")
    waiter.line("waiting")
    transport = oslo_messaging.get_notification_transport(cfg.CONF, url=the_bus.url)
    notifier = oslo_messaging.Notifier(
        transport, "p", driver="messagingv2", topics=["wait"]
    )
    for number in range(20):
        notifier.info({}, "event", number)
    transport.cleanup()
    assert waiter.end().split() == [str(number) for number in range(20)]


def test_asyncio_service(program, call):
    """It calls itself, many times at once, and ends when it is told to."""
    service = program("asyncio_service.py")
    service.line("serving")
    target = Target(topic="asyncio-service")
    assert call(target, "add", a=1, b=2) == 3
    assert call(target, "sum", numbers=list(range(101))) == 5050
    assert abs(call(target, "pi", terms=1000) - 3.1405926538) < 1e-9
    service.interrupt()
    assert "stopped" in service.end()


def test_asyncio_http(program):
    """A request makes a call; what becomes of that is told by the status."""
    service = program("asyncio_service.py")
    service.line("serving")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gateway = program("asyncio_http.py", "--port", str(port))
    gateway.line("=")
    url = f"http://127.0.0.1:{port}/sum"
    answer = requests.get(url, {"numbers": "1,2,3.5"}, timeout=60)
    assert (answer.status_code, answer.json()) == (200, 6.5)
    assert requests.get(url, {"numbers": "one"}, timeout=60).status_code == 400
    service.interrupt()
    service.end()
    answer = requests.get(url, {"numbers": "1,2"}, timeout=60)
    assert answer.status_code in (503, 504), answer.text
    assert "asyncio-service" in answer.json()["error"]
    gateway.interrupt()
    gateway.end()


def test_asyncio_agent(program, the_bus):
    agent = program("asyncio_agent.py", "asyncio-agent-exchange")
    agent.line("following")
    oslo_messaging.set_transport_defaults("asyncio-agent-exchange")
    try:
        transport = oslo_messaging.get_notification_transport(cfg.CONF, url=the_bus.url)
    finally:
        oslo_messaging.set_transport_defaults("openstack")
    notifier = oslo_messaging.Notifier(
        transport, "p", driver="messagingv2", topics=["notifications"]
    )
    names = [f"event.{number}." for number in range(20)]
    for name in names:
        notifier.info({}, name, {})
    transport.cleanup()
    assert sorted(agent.lines(*names)) == sorted(names)
    agent.interrupt()
    assert not agent.end()


def test_asyncio_server(program, call):
    """Calls are answered while coroutines run."""
    server = program("asyncio_server.py")
    server.line("serving")
    target = Target(topic="asyncio", server="one")
    assert [call(target, "add", a=i, b=1) for i in range(5)] == [1, 2, 3, 4, 5]
    assert call(target, "finish") == 5
    assert "5 additions" in server.end()
