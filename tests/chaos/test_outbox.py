# SPDX-License-Identifier: Apache-2.0
"""Notifications wait on disk while the message bus is away, whoever dies meanwhile."""

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


def test_while_the_bus_is_well_nothing_is_written(notifier, listener, tmp_path):
    worker = notifier()
    assert notified(worker, range(20))["sent"] == 0
    assert came(listener, 20) == list(range(20))
    assert not list(tmp_path.rglob("*.db"))


def test_an_outage_with_kills(notifier, listener, forwarder):
    """Two processes are killed while there is no bus; the third one sends it all."""
    worker = notifier()
    notified(worker, range(10))
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
    done = notified(worker, range(100, 110), empty=WAIT)
    assert done["waiting"] == 0 or done["destinations"] == []
    assert came(listener, 110) == list(range(110))
    worker.finish()
