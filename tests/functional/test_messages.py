# SPDX-License-Identifier: Apache-2.0
"""``greenamqp call``, ``cast``, ``notify`` and ``listen``."""

import json
import signal
import subprocess
import sys

import pytest
from oslo_messaging import Target

from greenamqp import command
from tests.functional import buses, harness, world

pytestmark = [
    pytest.mark.needs("amqp", "processes"),
    pytest.mark.skipif(
        world.current() != "threads", reason="a command is a process of its own; once"
    ),
]

_LIMIT = 60


@pytest.fixture
def echo(the_bus, topic):
    """What ``listen`` writes, request by request."""
    with subprocess.Popen(
        [sys.executable, "-m", "greenamqp", "listen", "--url", the_bus.url, topic],
        stdout=subprocess.PIPE,
        text=True,
        cwd=buses.ROOT,
        preexec_fn=buses.die_with_parent,
    ) as process:
        assert "is served" in process.stdout.readline()
        yield process.stdout
        process.send_signal(signal.SIGTERM)
        assert process.wait(_LIMIT) == 0


def test_a_call_and_a_cast(the_bus, echo, topic, capsys):
    url = ["--url", the_bus.url]
    context = ["--context", '{"user": "nova"}']
    assert command.main(["call", *url, topic, "go", '{"n": 1}', *context]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["method"] == "go" and answer["arguments"] == {"n": 1}
    assert answer["context"]["user"] == "nova"
    assert json.loads(echo.readline()) == answer

    assert command.main(["cast", *url, topic, "all", "--fanout"]) == 0
    assert json.loads(echo.readline())["method"] == "all"
    assert command.main(["cast", *url, topic, "one", "--server", "greenamqp"]) == 0
    assert json.loads(echo.readline())["method"] == "one"


def test_nobody_listens_there(the_bus, topic, capsys):
    """The address is told, which is to be compared with that of ``listen``."""
    url = ["--url", the_bus.url, "--timeout", "1"]
    assert command.main(["call", *url, topic, "go"]) == 1
    _, *where = capsys.readouterr().err.splitlines()
    assert any("  sent to " in line and topic in line for line in where)


def test_many(the_bus, echo, topic, capsys):
    arguments = ["--url", the_bus.url, topic, "go", "--count", "30", "--rate", "500"]
    assert command.main(["call", *arguments]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 30
    assert shown.err.startswith("30 of 30 in ")


def test_notify(bus, the_bus, topic):
    endpoint = harness.Notified()
    bus.listener(endpoint, [Target(topic=topic)])
    arguments = [topic, "compute.start", '{"n": [1]}', "--priority", "warn"]
    assert command.main(["notify", "--url", the_bus.url, *arguments]) == 0
    (got,) = endpoint.got.wait(1)
    assert got[:4] == ("warn", "greenamqp", "compute.start", {"n": [1]})


@pytest.mark.any_bus
def test_what_cannot_be_sent_is_said(capsys):
    arguments = ["--url", "amqp://nova:s3cr3t@127.0.0.1:1", "--timeout", "1", "t", "m"]
    assert command.main(["call", *arguments]) == 1
    shown = capsys.readouterr().err
    assert "Connection refused" in shown and "s3cr3t" not in shown


@pytest.mark.any_bus
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["call", "t", "m", "[1]"], "no JSON object"),
        (["call", "t", "m", "{"], "is no JSON"),
        (["cast", "t", "m", "--count", "0"], "1 to 1000000000"),
        (["notify", "t", "e", "--rate", "nan"], "0 to 1000000"),
        (["listen", "t", "--timeout", "0"], "0.1 to 86400"),
    ],
)
def test_bad_arguments(arguments, said, capsys):
    with pytest.raises(SystemExit) as exited:
        command.main(arguments)
    assert exited.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.any_bus
def test_another_driver(capsys):
    assert command.main(["call", "--url", "rabbit://nova:s3cr3t@h", "t", "m"]) == 2
    shown = capsys.readouterr().err
    assert "amqp://" in shown and "s3cr3t" not in shown
