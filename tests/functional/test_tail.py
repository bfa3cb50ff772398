# SPDX-License-Identifier: Apache-2.0
"""``greenamqp tail``."""

import csv
import io
import json
import signal
import subprocess
import sys

import pytest
import yaml
from oslo_messaging import Target

from greenamqp import command
from greenamqp.broker import Broker
from tests.functional import buses, harness, world
from tests.functional.terminal import CTRL_C, Terminal

pytestmark = pytest.mark.skipif(
    world.current() != "threads", reason="a command is a process of its own; once"
)

_LIMIT = 60


def tail(url, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "greenamqp", "tail", "--url", url, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=buses.ROOT,
        preexec_fn=buses.die_with_parent,
    )
    said = process.stderr.readline()
    assert "subscribed" in said, said + process.stderr.read()
    return process


@pytest.mark.needs("pools", "policy", "processes")
def test_it_takes_nothing_from_anybody(bus, the_bus, topic):
    listening = harness.Notified()
    bus.listener(listening, [Target(topic=topic)])
    notifier = bus.notifier([topic])
    with tail(the_bus.url, topic, "--event", "good.*", "--count", "2") as process:
        for event in ("good.one", "bad.one", "good.two"):
            notifier.info({}, event, {"n": 1})
        shown, _ = process.communicate(timeout=_LIMIT)
    assert process.returncode == 0
    first, second = shown.splitlines()
    assert ' INFO publisher good.one {"n": 1}' in first
    assert " good.two " in second
    listening.got.wait(3)
    assert sorted(listening.events()) == ["bad.one", "good.one", "good.two"]


@pytest.mark.any_bus
def test_json_and_its_end(bus, the_bus, topic):
    where = ["--where", "payload.n == `1`"]
    with tail(the_bus.url, topic, "-f", "json", *where) as process:
        notifier = bus.notifier([topic])
        notifier.error({}, "other", {"n": 2})
        notifier.error({}, "it", {"n": 1})
        whole = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=_LIMIT)
    assert process.returncode == 130
    assert whole["event_type"] == "it" and whole["payload"] == {"n": 1}
    assert whole["priority"] == "ERROR"


@pytest.mark.any_bus
def test_in_a_terminal(bus, the_bus, topic):
    arguments = ["-m", "greenamqp", "tail", topic, "--url", the_bus.url]
    with Terminal([sys.executable, *arguments]) as terminal:
        terminal.wait_for("subscribed")
        notifier = bus.notifier([topic])
        # What moves the cursor is a peer's, and not passed on.
        notifier.info({}, "one\x1b[2Jtwo", {"n": "\x1b[31m"})
        terminal.wait_for(r' INFO publisher one.\[2Jtwo \{"n": "\\u001b\[31m"\}')
        terminal.press(CTRL_C)
        assert terminal.end() == 130
    assert b"\x1b" not in terminal.shown
    assert b"Traceback" not in terminal.shown


@pytest.mark.any_bus
@pytest.mark.parametrize("form", ["yaml", "csv"])
def test_for_other_programs(bus, the_bus, topic, form):
    with tail(the_bus.url, topic, "-f", form, "--count", "2") as process:
        notifier = bus.notifier([topic])
        for number in (1, 2):
            notifier.info({}, "it", {"n": number})
        shown, _ = process.communicate(timeout=_LIMIT)
    assert process.returncode == 0
    if form == "yaml":
        found = [each["payload"] for each in yaml.safe_load_all(shown)]
    else:
        rows = csv.DictReader(io.StringIO(shown))
        found = [json.loads(each["payload"]) for each in rows]
    assert found == [{"n": 1}, {"n": 2}]


@pytest.mark.any_bus
@pytest.mark.parametrize("product", ["qpid-dispatch-router", "qpid-cpp"])
def test_a_bus_that_cannot(capsys, product):
    with Broker(product=product) as broker:
        assert command.main(["tail", "--url", broker.url]) == 1
    assert "pool" in capsys.readouterr().err


@pytest.mark.any_bus
def test_what_is_no_jmespath(capsys):
    assert command.main(["tail", "--where", "a ==="]) == 2
    assert "--where" in capsys.readouterr().err


@pytest.mark.any_bus
@pytest.mark.parametrize("form", ["text", "csv"])
def test_names_that_are_not_for_a_terminal(bus, the_bus, topic, form):
    notifier = bus.notifier([topic])
    with tail(the_bus.url, topic, "--count", "2", "-f", form) as process:
        for event in ("half \ud800 \x1b[2J", "whole"):
            notifier.info({}, event, {})
        shown, said = process.communicate(timeout=_LIMIT)
    assert (process.returncode, said) == (0, "")
    assert len(shown.splitlines()) == (2 if form == "text" else 3)
    assert ("\x1b" in shown) == (form == "csv")
