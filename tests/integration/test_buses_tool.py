# SPDX-License-Identifier: Apache-2.0
"""The tool that runs message buses, tried on a bus that needs no installing.

greenamqp's embedded broker plays the bus: it listens on a port, lets a user in
and dies when it is killed, which is all that the tool knows of one.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tools.buses import BUSES, Bus, BusError, Scratch, instances
from tools.buses.__main__ import main
from tools.buses.kinds import Command, Kind, Layout

ROOT = Path(__file__).parents[2]


class Embedded(Kind):
    """The embedded broker, as many of them as asked for."""

    summary = "greenamqp's embedded broker"
    schemes = ("amqp", "rabbit")
    start_timeout = 60.0

    def __init__(self, name: str, nodes: int = 1) -> None:
        super().__init__(name)
        self.nodes = nodes

    def install(self, scratch: Scratch) -> Path:
        return ROOT

    def prepare(self, layout: Layout, node: int) -> None:
        layout.node_folder(node).mkdir()

    def command(self, layout: Layout, node: int) -> Command:
        argv = [sys.executable, "-m", "greenamqp", "broker"]
        argv += ["--port", str(layout.amqp_port(node))]
        argv += ["--user", f"{self.user}:{self.password}"]
        return Command(argv, dict(os.environ), cwd=ROOT)


class Broken(Embedded):
    """A broker that ends as soon as it is started."""

    def command(self, layout: Layout, node: int) -> Command:
        code = "raise SystemExit('no licence for this broker')"
        return Command([sys.executable, "-c", code], dict(os.environ))


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    monkeypatch.setitem(BUSES, "embedded", Embedded("embedded"))
    monkeypatch.setitem(BUSES, "embedded-two", Embedded("embedded-two", nodes=2))
    monkeypatch.setitem(BUSES, "broken", Broken("broken"))


@pytest.fixture
def scratch(tmp_path):
    scratch = Scratch(tmp_path / "buses")
    yield scratch
    for bus in instances(scratch):
        bus.stop()


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_killed_bus_comes_back_on_its_port(scratch):
    bus = Bus("embedded", scratch=scratch).start()
    (port,) = bus.ports()
    assert bus.url() == f"amqp://greenamqp:greenamqp@127.0.0.1:{port}/"
    assert bus.url("rabbit") == f"rabbit://greenamqp:greenamqp@127.0.0.1:{port}/"
    assert bus.running() == [True]
    bus.kill9()
    assert bus.running() == [False]
    assert not listens(port)
    bus.start()
    assert bus.ports() == [port]
    assert listens(port)


def test_stop_leaves_nothing(scratch):
    with Bus("embedded", scratch=scratch) as bus:
        (port,) = bus.ports()
        folder = bus.logs()[0].parent
        assert folder.is_dir()
    assert not listens(port)
    assert not folder.exists()
    assert not bus.exists()
    assert instances(scratch) == []
    bus.stop()


def test_stop_can_keep_the_data(scratch):
    bus = Bus("embedded", scratch=scratch).start()
    (port,) = bus.ports()
    mark = bus.logs()[0].parent / "node1" / "mark"
    mark.touch()
    bus.stop(keep=True)
    assert bus.running() == [False]
    bus.start()
    assert bus.ports() == [port]
    assert mark.exists()


def test_one_node_of_several_is_killed_and_started_again(scratch):
    bus = Bus("embedded-two", scratch=scratch).start()
    first, second = bus.ports()
    login = "greenamqp:greenamqp@127.0.0.1"
    assert bus.url() == f"amqp://{login}:{first},{login}:{second}/"
    bus.kill9(0)
    assert bus.running() == [False, True]
    bus.start()
    assert bus.running() == [True, True]


def test_instances_of_one_bus_are_apart(scratch):
    one = Bus("embedded", "one", scratch).start()
    two = Bus("embedded", "two", scratch).start()
    assert one.ports() != two.ports()
    one.stop()
    assert two.running() == [True]


def test_another_object_and_the_command_see_the_same_bus(scratch, capsys):
    bus = Bus("embedded", "seen", scratch).start()
    assert Bus("embedded", "seen", scratch.folder).url() == bus.url()
    options = ["--dir", str(scratch.folder)]
    assert main([*options, "list"]) == 0
    assert f"1 of 1 nodes run: {bus.url()}" in capsys.readouterr().out
    assert main([*options, "url", "--instance", "seen", "--scheme", "amqp"]) == 0
    assert capsys.readouterr().out == f"{bus.url()}\n"
    assert main([*options, "kill9", "--instance", "seen"]) == 0
    assert bus.running() == [False]
    assert main([*options, "stop", "--all"]) == 0
    assert not bus.exists()


def test_a_broker_that_ends_at_once_is_an_error_with_its_last_words(scratch):
    bus = Bus("broken", scratch=scratch)
    with pytest.raises(BusError, match="(?s)ended at once.*no licence"):
        bus.start()
    assert not bus.exists()
    assert not (scratch.run / "broken").exists()


def test_unknown_names_are_errors(scratch, capsys):
    with pytest.raises(BusError, match="unknown bus 'nosuch'"):
        Bus("nosuch", scratch=scratch)
    with pytest.raises(BusError, match="was not started"):
        Bus("embedded", scratch=scratch).url()
    assert main(["--dir", str(scratch.folder), "url", "embedded"]) == 1
    assert "was not started" in capsys.readouterr().err
