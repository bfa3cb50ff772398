# SPDX-License-Identifier: Apache-2.0
"""``greenamqp demo`` and the programs of the first steps, as a user starts them."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from greenamqp.broker import Broker
from greenamqp.broker.settings import Settings
from tests.functional import buses, world

pytestmark = pytest.mark.skipif(
    world.current() != "threads", reason="the programs choose their own world; once"
)

_PROGRAMS = pathlib.Path(buses.ROOT) / "docs/programs"

#: Far above what any of it takes on a busy machine.
_LIMIT = 180


def _own_process():
    """In the child: a shell's background job would have SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    buses.die_with_parent()


def demo(*arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "greenamqp", "demo", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=buses.ROOT,
        preexec_fn=_own_process,
        **kwargs,
    )


def children_of(pid):
    """The processes that a process has started and that still run."""
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [int(child) for child in children.read().split()]


def await_end(pids):
    """Wait until none of the processes runs."""
    deadline = time.monotonic() + _LIMIT
    for pid in pids:
        while os.path.exists(f"/proc/{pid}"):
            assert time.monotonic() < deadline, f"process {pid} was left behind"
            os.sched_yield()


@pytest.mark.any_bus
@pytest.mark.parametrize(
    ("hub", "rate"),
    [
        ("eventlet", "200"),
        ("gevent", "200"),
        ("threads", "0"),  # as fast as it goes
    ],
)
def test_nothing_is_lost_or_doubled(hub, rate):
    with demo("--hub", hub, "--duration", "2", "--rate", rate) as process:
        shown, _ = process.communicate(timeout=_LIMIT)
    assert process.returncode == 0, shown
    assert "Nothing was lost, nothing was doubled" in shown
    # Both workers of the pool had their share of nova's notifications.
    split = re.search(r"^ *nova .* (\d+) \+ (\d+) ", shown, re.MULTILINE)
    assert split and int(split[1]) and int(split[2]), shown
    threads = _column(shown, "native threads")
    connections = _column(shown, "connections")
    assert set(connections[1:]) == {1}, "one connection per process"
    # gevent resolves host names in a native thread of its own.
    most = {"eventlet": 1, "gevent": 2}.get(hub)
    if most:
        assert max(threads[1:]) <= most, shown


def _column(shown, title):
    """The numbers of a column of the processes' table, the broker's first."""
    lines = iter(shown.partition("\nProcesses")[2].splitlines()[1:])
    header = next(lines)
    end = header.index(title) + len(title)
    rows = []
    for line in lines:
        if not line.strip():
            break
        rows.append(int(line[:end].split()[-1]))
    return rows


@pytest.mark.needs("processes", "pools")
@pytest.mark.proves("demo")
def test_on_a_bus_that_is_there_already_twice(the_bus):
    """The second run meets nothing of the first."""
    for _ in range(2):
        arguments = ["--url", the_bus.url, "--duration", "1", "--hub", "threads"]
        with demo(*arguments) as process:
            shown, _ = process.communicate(timeout=_LIMIT)
        assert process.returncode == 0, shown
        assert "Not removed" not in shown
        assert ("Left out" in shown) is bool(the_bus.why_not("exchanges"))


@pytest.mark.any_bus
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(end):
    with Broker("127.0.0.1", 0, settings=Settings()) as broker:
        with demo("--url", broker.url, "--duration", "600") as process:
            children = _running(process)
            assert _pools(broker)
            process.send_signal(end)
            rest, _ = process.communicate(timeout=_LIMIT)
        assert process.returncode == 130, rest
        assert "Traceback" not in rest and "Not removed" not in rest
        await_end(children)
        assert not _pools(broker)


@pytest.mark.any_bus
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_looks_for_the_bus(end):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://127.0.0.1:{silent.getsockname()[1]}"
        with demo("--url", url) as process:
            there, _ = silent.accept()
            process.send_signal(end)
            shown, _ = process.communicate(timeout=_LIMIT)
            there.close()
    assert process.returncode == 130, shown
    assert "Traceback" not in shown


@pytest.mark.any_bus
def test_a_role_that_is_killed_ends_it():
    with demo("--duration", "600") as process:
        children = _running(process, 12)
        os.kill(children[-1], signal.SIGKILL)
        rest, _ = process.communicate(timeout=_LIMIT)
    assert process.returncode == 1, rest
    assert re.search(r"process \S+ was killed by SIGKILL", rest)
    await_end(children)


def _running(process, count=11):
    """Wait until the demo is under load; returns the pids of its processes: a broker of
    its own, if it has one, the RPC server, agents, publishers and clients."""
    for line in process.stdout:
        if line.startswith("Running"):
            children = children_of(process.pid)
            assert len(children) == count
            return children
    raise AssertionError("it ended before it ran")


def _write_programs(the_bus, folder, *names):
    for name in names:
        program = (_PROGRAMS / f"{name}.py").read_text()
        assert "amqp://127.0.0.1:5672" in program
        program = program.replace("amqp://127.0.0.1:5672", the_bus.url)
        (folder / f"{name}.py").write_text(program)


def _run_program(folder, name):
    return subprocess.run(
        [sys.executable, f"{name}.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_LIMIT,
    )


def _served(folder, server, client, environment=None):
    """What became of the program `client` while `server` serves."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", f"{server}.py"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        preexec_fn=buses.die_with_parent,
    ) as serving:
        assert serving.stdout.readline() == "serving\n"
        done = _run_program(folder, client)
        serving.kill()
    return done


@pytest.mark.needs("amqp", "processes")
@pytest.mark.proves("demo")
def test_the_programs_of_coroutines(the_bus, tmp_path):
    _write_programs(the_bus, tmp_path, "asyncio_server", "asyncio_client")
    client = _served(tmp_path, "asyncio_server", "asyncio_client")
    assert client.stdout == "5050\n", client.stderr
    assert client.returncode == 0


PATCHED = "import eventlet\neventlet.monkey_patch()\n"


@pytest.mark.needs("amqp", "processes")
@pytest.mark.proves("demo")
@pytest.mark.parametrize(
    ("step", "first", "loop"),
    [
        ("moving_eventlet", "", "epolls"),
        ("moving_eventlet", "", "asyncio"),
        ("moving_server", "", "asyncio"),
        ("moving_method", "", "asyncio"),
        ("moving_coroutines", "", None),
        ("moving_threads", PATCHED, "epolls"),
        ("moving_threads", "", None),
    ],
)
def test_each_step_away_from_eventlet(the_bus, tmp_path, step, first, loop):
    _write_programs(the_bus, tmp_path, step, "moving_client")
    program = tmp_path / f"{step}.py"
    program.write_text(first + program.read_text())
    environment = {**os.environ, "EVENTLET_HUB": loop} if loop else None
    client = _served(tmp_path, step, "moving_client", environment)
    assert client.stdout == "20\n", client.stderr
    assert client.returncode == 0


@pytest.mark.needs("amqp", "processes")
@pytest.mark.proves("demo")
def test_the_programs_of_the_first_steps(the_bus, tmp_path):
    _write_programs(the_bus, tmp_path, "server", "client")
    with subprocess.Popen(
        [sys.executable, "server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=buses.die_with_parent,
    ) as server:
        # The prompt comes when the server has started; it has no line's end.
        said = ""
        while not said.endswith("Enter to stop. "):
            assert (read := server.stdout.read(1)), said
            said += read
        client = _run_program(tmp_path, "client")
        server.communicate("\n", timeout=_LIMIT)
    assert client.stdout == "Hello, world\n", client.stderr
    assert client.returncode == 0
    assert server.returncode == 0


@pytest.mark.any_bus
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://nova:wrong@{}", "wrong user name or password"),
        ("amqp://{}", "the peer wants a login by SASL"),
        ("amqps://nova:right@{}", "TLS on this port"),
        ("rabbit://nova:right@{}", "amqp://"),
        ("amqp://{}/?nosuch=1", "nosuch"),
    ],
)
def test_a_bus_that_cannot_be_used_is_told_of_in_one_line(url, said):
    broker = buses.EmbeddedBroker("--user", "nova:right")
    try:
        with demo("--url", url.format(f"127.0.0.1:{broker.port}")) as process:
            shown, _ = process.communicate(timeout=_LIMIT)
    finally:
        broker.stop()
    assert process.returncode == 1
    first, told = shown.splitlines()
    assert first == "Starting the processes ..."
    assert told.startswith("greenamqp demo: ") and said in told


@pytest.mark.any_bus
def test_a_bus_without_pools_is_refused_in_one_line():
    router = buses.EmbeddedBroker("--product", "qpid-dispatch-router")
    try:
        with demo("--url", router.url) as process:
            shown, _ = process.communicate(timeout=_LIMIT)
    finally:
        router.stop()
    assert process.returncode == 1
    assert re.search(r"pool '[\w-]+': .*qpid-dispatch-router", shown)
    assert "Traceback" not in shown


@pytest.mark.any_bus
def test_no_queue_of_a_pool_stays_on_the_bus():
    with Broker("127.0.0.1", 0, settings=Settings()) as broker:
        arguments = ["--url", broker.url, "--hub", "threads", "--duration", "1"]
        with demo(*arguments) as process:
            shown, _ = process.communicate(timeout=_LIMIT)
        assert process.returncode == 0, shown
        assert "Not removed" not in shown
        assert not _pools(broker)


def _pools(broker):
    """The queues of pools that are there."""
    return [
        queue.name
        for namespace in list(broker._server.core.namespaces.values())
        for address in list(namespace.addresses.values())
        for queue in list(address.bound.values())
    ]
