# SPDX-License-Identifier: Apache-2.0
"""What the demo shows, and when it says that all went well."""

import io

import pytest

from greenamqp.command.demo import plan, report
from greenamqp.command.demo.processes import Usage


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def picture():
    """A run in which everything was received once."""
    run = plan.Run(id="r", url="amqp://x", hub="eventlet", rate=1.0)
    picture = report.Picture(run=run, bus="a bus", phase="Running", elapsed=3.2)
    for stream, receivers in plan.streams():
        picture.ledger.expect(stream, receivers)
        picture.ledger.sent(stream, 4)
        for receiver in receivers:
            workers = (
                plan.worker_names(receiver) if receiver in plan.POOLS else ["server"]
            )
            for number in range(4):
                worker = workers[number % len(workers)]
                picture.ledger.got(stream, receiver, worker, [number])
    picture.latencies["call"].append(0.002)
    picture.usage["broker"] = Usage(1, 20, 13, 30_000_000, 1.5)
    return picture


def text_of(picture):
    lines, well = report.summary(picture)
    return "\n".join(lines), well


def test_all_is_well(picture):
    text, well = text_of(picture)
    assert well
    assert "Nothing was lost, nothing was doubled" in text
    assert "NOT WELL" not in text and "NO" not in text.split()
    # Published, received by the pool, and its split among two workers.
    assert "2 + 2" in text
    everything = next(line for line in text.splitlines() if line.startswith("  all"))
    assert everything.split()[:7] == ["all", "20", "0", "metering", "20", "10", "+"]
    for name in ("nova", "keystone", "metering", "audit", "casts", "broker"):
        assert name in text


def test_a_lost_message_is_not_well(picture):
    picture.ledger.sent("notify/nova", 1)
    text, well = text_of(picture)
    assert not well
    assert "notify/nova at metering: 1 lost (number 4)" in text
    assert "FAILED: 2 lost, 0 doubled, 0 not sent" in text


def test_a_doubled_message_is_not_well(picture):
    picture.ledger.got("cast/client-1", plan.SERVERS, "server", [2])
    text, well = text_of(picture)
    assert not well
    assert "cast/client-1 at servers: 1 doubled (number 2)" in text


def test_a_fanout_cast_that_misses_one_server_is_not_well(picture):
    stream = plan.fanout_stream("client-1", "compute")
    picture.ledger.sent(stream, 1)
    for server in plan.server_names()[1:]:
        picture.ledger.got(stream, server, "server", [4])
    text, well = text_of(picture)
    assert not well
    assert "fanout/client-1/compute at host-01: 1 lost" in text
    assert "FAILED: 1 lost" in text


def test_a_failed_send_is_not_well(picture):
    picture.ledger.sent("call/client-1", 1, [4])
    text, well = text_of(picture)
    assert not well
    assert "FAILED: 0 lost, 0 doubled, 1 not sent" in text


def test_an_odd_event_is_not_well(picture):
    picture.events["notification altered on its way"] = 3
    text, well = text_of(picture)
    assert not well
    assert "NOT WELL: notification altered on its way: 3 times" in text


def test_a_run_that_sent_nothing_is_not_well():
    run = plan.Run(id="r", url="amqp://x", hub="eventlet", rate=1.0)
    picture = report.Picture(run=run, bus="a bus")
    for stream, receivers in plan.streams():
        picture.ledger.expect(stream, receivers)
    text, well = text_of(picture)
    assert not well
    assert "no notification was sent" in text and "no calls was sent" in text


def test_many_faults_are_summed_up(picture):
    for service in ("nova", "neutron", "cinder", "glance", "keystone"):
        picture.ledger.sent(f"notify/{service}", 1)
    for client in plan.client_names():
        picture.ledger.sent(f"call/{client}", 1)
    text, _ = text_of(picture)
    assert "and 2 more" in text


def test_the_live_line(picture):
    picture.ledger.sent("call/client-1", 1, [4])
    line = report.live_line(picture)
    assert "published 20, metering 20, audit 20" in line
    assert "calls 8 (1 FAILED)" in line
    assert "NOT WELL" not in line
    picture.events["something odd"] += 1
    assert "NOT WELL: 1" in report.live_line(picture)


def test_on_a_terminal_the_line_is_drawn_over(picture):
    out = Terminal()
    screen = report.Screen(out)
    for phase in ("Running", "Draining"):
        picture.phase = phase
        screen.update(picture)
    screen.say(["done"])
    # What a terminal shows of each line in the end.
    shown = [line.rpartition("\r\x1b[K")[2] for line in out.getvalue().split("\n")]
    assert shown == ["done", ""]
    assert "Draining" in out.getvalue()


def test_elsewhere_there_is_a_line_for_each_change(picture):
    out = io.StringIO()
    screen = report.Screen(out)
    screen.update(picture)
    screen.update(picture)
    picture.phase = "Another"
    screen.update(picture)
    screen.update(picture)
    assert out.getvalue().count("\n") == 2
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    "value, text",
    [(0.0004, "0.4 ms"), (0.25, "250 ms"), (0.9999, "1.00 s")],
)
def test_durations(value, text):
    assert report.seconds(value) == text
