# SPDX-License-Identifier: Apache-2.0
"""What a process tells through its socket, in every world."""

import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest
from oslo_messaging import Target

import greenamqp
from greenamqp.command import states
from tests.functional import buses, world

pytestmark = pytest.mark.any_bus


class Endpoint:
    def echo(self, ctxt):
        return "back"


def ask(*arguments):
    """A command, in a process of its own; returns its status and output."""
    made = subprocess.run(
        [sys.executable, "-m", "greenamqp", *arguments],
        capture_output=True,
        text=True,
        cwd=buses.ROOT,
        timeout=60,
    )
    return made.returncode, made.stdout, made.stderr


@pytest.fixture
def where(tmp_path):
    return str(tmp_path / "state")


@pytest.fixture
def used(bus, topic, where):
    """A server and a client that have talked to each other."""
    options = {"oslo_messaging_amqp": {"state_dir": where}}
    transport = bus.rpc_transport(options=options)
    target = Target(topic=topic, server="s")
    bus.server(Endpoint(), target, transport)
    assert bus.client(target, transport).call({}, "echo") == "back"
    return transport


def test_the_whole_of_one_process(bus, used, where, topic):
    status, shown, _ = ask(
        "state", "--state-dir", where, "-f", "json", str(os.getpid())
    )
    assert status == 0
    whole = json.loads(shown)
    assert whole["pid"] == os.getpid()
    ((connection,),) = (each["connections"] for each in whole["transports"])
    assert connection["state"] == "up"
    assert any(topic in each["address"] for each in connection["senders"])

    for transport in whole["transports"]:
        own = greenamqp.describe(used)
        assert transport.keys() == own.keys()
        assert connection.keys() == own["connections"][0].keys()

    status, shown, _ = ask("state", "--state-dir", where, str(os.getpid()))
    assert status == 0 and f"pid: {os.getpid()}" in shown and topic in shown


def test_an_outbox_is_told(bus, topic, where, tmp_path):
    options = {
        "oslo_messaging_amqp": {
            "state_dir": where,
            "notify_outbox": str(tmp_path / "outbox"),
        }
    }
    transport = bus.notification_transport(url="amqp://127.0.0.1:1", options=options)
    bus.notifier([topic], transport=transport).info({}, "test.event", {})
    status, shown, _ = ask("state", "--state-dir", where, str(os.getpid()))
    assert status == 0 and "outbox:" in shown and "waiting: 1" in shown
    status, shown, _ = ask("top", "--state-dir", where)
    assert status == 0 and "1 notifications wait in" in shown


def test_all_processes(used, where):
    status, shown, _ = ask("top", "--state-dir", where)
    assert status == 0
    header, line = shown.splitlines()
    assert header.split()[:3] == ["pid", "hub", "host"]
    assert line.split()[0] == str(os.getpid()) and " up " in line


def test_rates_are_since_the_look_before(used, where):
    (before,) = states.read(pathlib.Path(where))
    ((connection,),) = (each["connections"] for each in before["transports"])
    now = json.loads(json.dumps(before))
    ((later,),) = (each["connections"] for each in now["transports"])
    later |= {
        "up_for": connection["up_for"] + 2,
        "sent": connection["sent"] + 5,
        "received": connection["received"] + 600,
    }
    cells = states.table([now], [before]).splitlines()[1].split()
    assert "2.5" in cells and "300.0" in cells
    # Not across a connection that was lost meanwhile.
    later["came_up"] += 1
    assert "300.0" not in states.table([now], [before])
    assert "300.0" not in states.table([now])


def test_it_is_private_and_goes_with_the_transport(bus, used, where):
    assert stat.S_IMODE(os.stat(where).st_mode) == 0o700
    (name,) = os.listdir(where)
    assert name.startswith(f"{os.getpid()}.")
    bus.stop_servers()
    bus.cleanup(used)
    assert os.listdir(where) == []
    assert ask("state", "--state-dir", where, str(os.getpid()))[0] == 1


def test_a_directory_that_others_may_enter_is_not_used(bus, topic, where, caplog):
    os.mkdir(where)
    os.chmod(where, 0o755)
    options = {"oslo_messaging_amqp": {"state_dir": where}}
    transport = bus.rpc_transport(options=options)
    bus.client(Target(topic=topic), transport).cast({}, "echo")
    assert os.listdir(where) == []
    assert "mode 0700" in caplog.text


@pytest.mark.skipif(
    world.current() == "eventlet-asyncio",
    reason="in a child of a process in which loops came and went, eventlet's hub finds "
    "another loop running",
)
def test_a_child_has_its_own(bus, where, topic):
    options = {"oslo_messaging_amqp": {"state_dir": where}}
    transport = bus.rpc_transport(options=options)
    bus.client(Target(topic=topic), transport).cast({}, "echo")
    before = os.listdir(where)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            bus.client(Target(topic=topic), transport).cast({}, "echo")
            os.write(writer, "\n".join(os.listdir(where)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as told:
        names = told.read().split()
    assert set(before) < set(names)
    assert {name.partition(".")[0] for name in names} == {str(os.getpid()), str(pid)}
    # The parent's is whole: the child, which is gone, says nothing.
    status, shown, _ = ask("top", "--state-dir", where, "-f", "json")
    assert status == 0
    assert os.getpid() in [each["pid"] for each in json.loads(shown)]
    assert pid not in [each["pid"] for each in json.loads(shown)]
