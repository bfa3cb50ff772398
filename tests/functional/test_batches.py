# SPDX-License-Identifier: Apache-2.0
"""Batches of notifications: how large, how soon, and what becomes of each."""

from collections import Counter

import pytest
from oslo_messaging import NotificationResult, Target

from tests.functional import world
from tests.functional.harness import InfoBatches, Recorder, in_thread

pytestmark = pytest.mark.proves("batches")


def publish(notifier, count):
    """Publish all at once: a router says what became of each only when its batch is
    acknowledged, so that one after the other they would never fill a batch."""
    names = [str(number) for number in range(count)]
    sending = [in_thread(notifier.info, {}, name, {"n": name}) for name in names]
    for one in sending:
        one.result()
    return names


@pytest.mark.parametrize("executor", world.executors())
def test_full_batches_need_no_time_out(bus, topic, executor):
    """Without batch_timeout a batch is delivered when it is full, and only then."""
    endpoint = InfoBatches()
    bus.batch_listener(endpoint, [Target(topic=topic)], batch_size=5, executor=executor)
    names = publish(bus.notifier([topic]), 20)
    batches = endpoint.got.wait(4)
    assert [len(batch) for batch in batches] == [5, 5, 5, 5]
    assert Counter(endpoint.events()) == Counter(names)


def test_full_batch_does_not_wait_for_its_time_out(bus, topic):
    """The time-out is longer than the test may take."""
    endpoint = InfoBatches()
    transport = bus.notification_transport()
    bus.batch_listener(
        endpoint, [Target(topic=topic)], transport, batch_size=3, batch_timeout=600
    )
    publish(bus.notifier([topic]), 3)
    (batch,) = endpoint.got.wait(1)
    assert sorted(batch) == ["0", "1", "2"]
    # Complete a second one, so that stopping does not wait for it either.
    publish(bus.notifier([topic]), 3)
    endpoint.got.wait(2)


def test_partial_batch_comes_after_its_time_out(bus, topic):
    """Nothing more is published, so only the time-out can deliver these."""
    endpoint = InfoBatches()
    bus.batch_listener(endpoint, [Target(topic=topic)], batch_size=100, batch_timeout=1)
    names = publish(bus.notifier([topic]), 7)
    endpoint.got.wait_for(lambda got: sum(map(len, got)) == 7, "seven messages")
    bus.stop_servers()
    assert Counter(endpoint.events()) == Counter(names)


@pytest.mark.needs("store")
def test_backlog_is_cut_into_batches(bus, topic):
    names = publish(bus.notifier([topic]), 23)
    endpoint = InfoBatches()
    bus.batch_listener(endpoint, [Target(topic=topic)], batch_size=10, batch_timeout=2)
    endpoint.got.wait_for(lambda got: sum(map(len, got)) == 23, "23 messages")
    bus.stop_servers()
    assert max(map(len, endpoint.got.items)) <= 10
    assert len(endpoint.got) >= 3
    assert Counter(endpoint.events()) == Counter(names)


@pytest.mark.needs("credit")
def test_batch_is_no_larger_than_the_window(bus, topic):
    """A batch of 50 can never be full where at most 10 are under way.

    Without batch_timeout a driver that waited for 50 would wait for ever.
    """
    endpoint = InfoBatches()
    transport = bus.notification_transport(options=bus.bus.window_options(10))
    bus.batch_listener(endpoint, [Target(topic=topic)], transport, batch_size=50)
    names = publish(bus.notifier([topic]), 40)
    endpoint.got.wait_for(lambda got: sum(map(len, got)) == 40, "40 messages")
    assert max(map(len, endpoint.got.items)) <= 10
    assert Counter(endpoint.events()) == Counter(names)


def test_batch_of_one(bus, topic):
    endpoint = InfoBatches()
    bus.batch_listener(endpoint, [Target(topic=topic)], batch_size=1)
    names = publish(bus.notifier([topic]), 10)
    batches = endpoint.got.wait(10)
    assert all(len(batch) == 1 for batch in batches)
    assert Counter(endpoint.events()) == Counter(names)


@pytest.mark.needs("requeue")
def test_requeued_batch_comes_again(bus, topic):
    seen = Counter()

    def requeue_once(events):
        new = [event for event in events if not seen[event]]
        seen.update(events)
        return NotificationResult.REQUEUE if new else NotificationResult.HANDLED

    endpoint = InfoBatches(requeue_once)
    bus.batch_listener(
        endpoint,
        [Target(topic=topic)],
        batch_size=4,
        batch_timeout=1,
        allow_requeue=True,
    )
    names = publish(bus.notifier([topic]), 12)
    endpoint.got.wait_for(
        lambda got: all(sum(batch.count(name) for batch in got) >= 2 for name in names),
        "second delivery of each",
    )
    bus.stop_servers()
    assert max(map(len, endpoint.got.items)) <= 4


def test_several_priorities_in_a_batch(bus, topic):
    """The dispatcher sorts a batch by priority; nothing is lost by it."""
    got = []

    class Endpoint(InfoBatches):
        def error(self, messages):
            events = [message["event_type"] for message in messages]
            got.extend(events)
            self.got.add(events)

    endpoint = Endpoint()
    bus.batch_listener(endpoint, [Target(topic=topic)], batch_size=10, batch_timeout=1)
    notifier = bus.notifier([topic])
    sending = [
        in_thread(getattr(notifier, priority), {}, f"{priority}.{number}", {})
        for number in range(10)
        for priority in ("info", "error")
    ]
    for one in sending:
        one.result()
    endpoint.got.wait_for(lambda got: sum(map(len, got)) == 20, "20 messages")
    bus.stop_servers()
    assert Counter(got) == Counter(f"error.{n}" for n in range(10))
    assert len(endpoint.events()) == 20


@pytest.mark.needs("pools")
@pytest.mark.proves("pools")
def test_batches_in_pools(bus, topic, unique):
    pools = {unique("pool"): Recorder() for _ in range(2)}
    for pool, shared in pools.items():
        for _ in range(2):
            bus.batch_listener(
                InfoBatches(shared=shared),
                [Target(topic=topic)],
                pool=pool,
                batch_size=5,
                batch_timeout=1,
            )
    names = publish(bus.notifier([topic]), 30)
    for shared in pools.values():
        shared.wait_for(lambda got: sum(map(len, got)) == 30, "30 messages")
    bus.stop_servers()
    for shared in pools.values():
        events = [event for batch in shared.items for event in batch]
        assert Counter(events) == Counter(names)
        assert max(map(len, shared.items)) <= 5
