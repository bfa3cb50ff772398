# SPDX-License-Identifier: Apache-2.0
"""What a process tells through its socket, in every world."""

import csv
import errno
import io
import json
import os
import pathlib
import socket
import stat
import subprocess
import sys
import unittest.mock

import pytest
import yaml
from oslo_messaging import Target

import greenamqp
from greenamqp import state
from greenamqp.command import states
from tests.functional import buses, world
from tests.functional.terminal import CTRL_C, Terminal

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
    assert connection["latency"].keys() == {"call", "outcome"}
    assert all(seconds > 0 for seconds in connection["latency"].values())
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
    assert header.split()[:3] == ["pid", "host", "bus"]
    assert line.split()[0] == str(os.getpid()) and " up " in line


def test_a_process_that_stands_still_is_left_out(where):
    """Its socket takes no more readers than wait for it already."""
    os.makedirs(where, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(os.path.join(where, "1.1.sock"))
        silent.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(silent.getsockname())
            assert states.read(pathlib.Path(where)) == []


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

    def rates(*looks):
        (row,) = states.rows(*looks)
        return row["sent/s"], row["received/s"]

    assert rates([now], [before]) == (2.5, 300.0)
    # Not across a connection that was lost meanwhile.
    later["came_up"] += 1
    assert rates([now], [before]) == rates([now]) == (None, None)
    # Nor if another transport has its place, as one was cleaned up.
    later |= {"came_up": connection["came_up"], "sent": connection["sent"] - 1}
    assert rates([now], [before]) == (None, 300.0)


@pytest.mark.parametrize("form", ["json", "yaml", "csv"])
def test_for_programs(used, where, topic, form):
    def whole(text):
        return json.loads(text) if form == "json" else yaml.safe_load(text)

    status, shown, _ = ask("top", "--state-dir", where, "-f", form)
    assert status == 0
    if form == "csv":
        (row,) = csv.DictReader(io.StringIO(shown))
        assert (row["pid"], row["state"]) == (str(os.getpid()), "up")
        assert int(row["sent"]) > 0 and row["sent/s"] == row["why_down"] == ""
    else:
        assert [each["pid"] for each in whole(shown)] == [os.getpid()]

    pid = str(os.getpid())
    status, shown, _ = ask("state", "--state-dir", where, "-f", form, pid)
    assert status == 0
    if form == "csv":
        fields = dict(csv.reader(io.StringIO(shown)))
        assert fields["field"] == "value"
        assert fields["transports.0.connections.0.state"] == "up"
        assert any(topic in value for value in fields.values())
    else:
        assert whole(shown)["pid"] == os.getpid()


#: Runs the command without rich.
WITHOUT = (
    "import sys; sys.modules['rich.live'] = None; "
    "from greenamqp.command import main; sys.exit(main())"
)


@pytest.mark.parametrize("how", [["-m", "greenamqp"], ["-c", WITHOUT]])
def test_in_a_terminal(used, where, how):
    """It looks again and again, in place of what it showed before."""
    arguments = ["top", "--state-dir", where, "--interval", "0.1"]
    with Terminal([sys.executable, *how, *arguments]) as terminal:
        terminal.wait_for(rf"\b{os.getpid()}\b.*\bup\b", times=3)
        terminal.press(CTRL_C)
        assert terminal.end() == 130
    # rich goes to a screen of its own, and back.
    assert (b"\x1b[?1049l" in terminal.shown) is ("-m" in how)
    assert b"Traceback" not in terminal.shown


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


def test_a_process_of_the_same_number_in_another_container(bus, topic, where):
    """Each keeps its socket; what one that was killed has left makes place."""
    os.mkdir(where, 0o700)
    number = next(state._numbers)
    left, other, own = (
        os.path.join(where, f"{os.getpid()}.{number + more}.sock") for more in (1, 2, 3)
    )
    options = {"oslo_messaging_amqp": {"state_dir": where}}
    with socket.socket(socket.AF_UNIX) as killed, socket.socket(socket.AF_UNIX) as peer:
        killed.bind(left)
        killed.listen()
        killed.close()
        peer.bind(other)
        peer.listen()
        transports = [bus.rpc_transport(options=options) for _ in range(2)]
        for hub in range(2):
            bus.client(Target(topic=topic), transports[hub]).cast({}, "echo")
            if hub == 0:
                assert os.path.exists(left)
                bus.cleanup(transports[0])
                assert not os.path.exists(left)
        assert sorted(os.listdir(where)) == sorted(map(os.path.basename, (other, own)))
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(other)
            peer.accept()[0].close()


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


def test_without_a_descriptor_for_a_reader_it_does_not_spin(where):
    """Who waits to be accepted is told of all the time."""
    hub = unittest.mock.MagicMock()
    board = state._Board(hub, where)
    real, board._socket = board._socket, unittest.mock.Mock(wraps=board._socket)
    try:
        board._socket._accept.side_effect = OSError(errno.EMFILE, "too many")
        board._acceptable()
        hub.watch.return_value.close.assert_called_once_with()
        (_, again), _ = hub.call_at.call_args
        again()
        assert hub.watch.call_count == 2
    finally:
        board._socket = real
        board.close()
