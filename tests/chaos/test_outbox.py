# SPDX-License-Identifier: Apache-2.0
"""Notifications wait on disk while the message bus is away, whoever dies meanwhile."""

import json
import subprocess
import sys

import pytest

from tests.chaos.workers import WAIT, Worker

#: The worlds, and the hub that none of them has.
HUBS = [
    ("threads", "threads"),
    ("threads", "blocking"),
    ("eventlet", "auto"),
    ("gevent", "auto"),
]


@pytest.fixture(params=HUBS, ids=lambda each: "-".join(each))
def hub(request):
    return request.param


def few(*names):
    """Not under every hub: what differs there is tested with others."""
    return pytest.mark.parametrize(
        "hub", [each for each in HUBS if each in names], ids="-".join, indirect=True
    )


@pytest.fixture
def notifier(hub, url, tmp_path):
    """Starts a process that notifies over the outbox."""
    world, name = hub
    started = []

    def start(look: float = 0.2, **options) -> Worker:
        options = {"notify_outbox": str(tmp_path / "outbox"), "hub": name, **options}
        worker = Worker(world, "outbox:notify", url=url, look=look, options=options)
        started.append(worker)
        worker.expect("ready")
        return worker

    yield start
    for worker in started:
        worker.__exit__()


@pytest.fixture
def listener(broker):
    with Worker("threads", "outbox:listen", url=broker.url) as worker:
        worker.expect("ready")
        yield worker


def notified(worker: Worker, numbers, topic: str = "a", **more) -> dict:
    worker.tell(numbers=list(numbers), topic=topic, **more)
    return worker.expect("done")


def came(listener: Worker, count: int) -> list[int]:
    """So many different numbers, in the order in which each came first."""
    numbers: dict[int, None] = {}
    while len(numbers) < count:
        numbers[listener.expect("came")["number"]] = None
    return list(numbers)


def test_an_outage_with_kills(notifier, listener, forwarder, tmp_path):
    """Two processes are killed while there is no bus; the third one sends it all."""
    worker = notifier()
    assert notified(worker, range(10))["sent"] == 0
    assert not list(tmp_path.rglob("*.db")), "the bus is well, and it was written"
    forwarder.refuse()
    forwarder.cut()
    for first in (10, 40):
        done = notified(worker, range(first, first + 30))
        assert done["waiting"] >= 30
        worker.__exit__()
        worker = notifier()
    done = notified(worker, range(70, 100))
    assert done["waiting"] == 90
    forwarder.accept()
    done = notified(worker, range(100, 110), empty=True)
    assert done["destinations"] == []
    assert came(listener, 110) == list(range(110))
    worker.finish()


@few(("threads", "threads"), ("gevent", "auto"))
def test_two_processes_on_one_outbox(notifier, listener, forwarder):
    """Each sends its own, in order; who stays sends what the other one leaves."""
    one, two = notifier(), notifier()
    notified(one, [0])
    notified(two, [1000])
    assert sorted(came(listener, 2)) == [0, 1000]
    forwarder.refuse()
    forwarder.cut()
    for first in (1, 11):
        notified(one, range(first, first + 10))
        notified(two, range(1000 + first, 1000 + first + 10))
    one.__exit__()
    forwarder.accept()
    # What was left comes into its file when it looks again.
    assert notified(two, [], sent=40)["sent"] == 40
    found = came(listener, 40)
    assert [each for each in found if each < 1000] == list(range(1, 21))
    assert [each for each in found if each > 1000] == list(range(1001, 1021))


def test_a_forked_child_has_an_outbox_of_its_own(notifier, listener, forwarder):
    worker = notifier()
    notified(worker, range(3))
    forwarder.refuse()
    forwarder.cut()
    notified(worker, range(3, 6))
    notified(worker, [], fork=50)
    notified(worker, range(6, 9))
    forwarder.accept()
    # The child's came into its file, or was never left behind.
    assert notified(worker, [], sent=7)["sent"] == 7
    found = came(listener, 10)
    assert [each for each in found if each != 50] == list(range(9))


@few(("threads", "threads"))
def test_the_command(notifier, listener, forwarder, tmp_path):
    worker = notifier()
    notified(worker, [0])
    forwarder.refuse()
    forwarder.cut()
    notified(worker, range(1, 4))
    notified(worker, range(100_000, 100_003), topic="b")

    def command(*arguments: str) -> str:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "greenamqp", "outbox", *arguments],
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    top = str(tmp_path / "outbox")
    head, *lines = command("list", top).splitlines()
    assert head.split() == ["waiting", "to", "oldest", "bus", "state", "file"]
    assert [line.split()[:2] for line in lines] == [["3", "a.info"], ["3", "b.info"]]
    assert all("in use" in line for line in lines)
    rows = json.loads(command("list", top, "-f", "json"))
    assert [(row["waiting"], row["to"]) for row in rows] == [
        (3, "a.info"),
        (3, "b.info"),
    ]
    assert command("count", top, "-f", "yaml") == "waiting: 6\n"
    assert command("purge", top, "--topic", "b") == "3 notifications removed\n"
    assert command("count", top) == "3\n"
    worker.__exit__()
    assert "left" in command("list", top)
    forwarder.accept()
    url = f"amqp://127.0.0.1:{forwarder.port}/"
    assert command("send", top, "--url", url) == "3 notifications sent\n"
    assert command("count", top) == "0\n"
    assert came(listener, 4) == [0, 1, 2, 3]


@few(("threads", "blocking"), ("eventlet", "auto"))
def test_a_frozen_bus_gets_each_once(notifier, listener, broker):
    """What had left before it was written stays on its way, and is not sent again."""
    worker = notifier()
    notified(worker, [0])
    broker.freeze()
    assert notified(worker, range(1, 31))["waiting"] == 30
    broker.thaw()
    assert notified(worker, [], empty=True)["sent"] == 30
    notified(worker, [31])
    found = [listener.expect("came")["number"] for _ in range(32)]
    assert found == list(range(32))
