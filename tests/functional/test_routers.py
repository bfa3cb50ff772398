# SPDX-License-Identifier: Apache-2.0
"""Consumers of a router that are slow or stuck, and who sends to them.

A router stores nothing: it tells who sends what became of a message when the consumer
does, and for a fanout when the slowest one does.
"""

import types

import pytest
from oslo_messaging import MessageDeliveryFailure, NotificationResult, Target

from greenamqp.broker import Broker
from tests.functional.buses import ROUTER
from tests.functional.harness import Gate, InfoBatches, Recorder, in_thread

pytestmark = pytest.mark.any_bus


ROLES = ["qpid-dispatch-router", "skupper-router"]


@pytest.fixture(params=[ROUTER] if ROUTER else ROLES)
def router(request):
    """The embedded broker in either role, or a real one."""
    if ROUTER:
        yield types.SimpleNamespace(url=ROUTER)
        return
    with Broker(product=request.param) as broker:
        yield broker


class Endpoint:
    """Does what it is asked for, once the gate is open."""

    def __init__(self, gate=None):
        self._gate = gate
        self.got = Recorder()

    def work(self, ctxt, number):
        if self._gate is not None:
            self._gate.enter()
        self.got.add(number)


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.open()


def serve(bus, router, topic, name, endpoint, window=10):
    transport = bus.rpc_transport(
        url=router.url,
        options={"oslo_messaging_amqp": {"rpc_server_credit": window}},
    )
    bus.server(endpoint, Target(topic=topic, server=name), transport)
    return transport


def test_fanouts_go_on_while_one_of_three_is_stuck(bus, router, topic, gate):
    """More of them than the router keeps in mind for one link."""
    healthy = [Endpoint(), Endpoint()]
    for name, endpoint in zip("ab", healthy, strict=True):
        serve(bus, router, topic, name, endpoint)
    stuck = Endpoint(gate)
    serve(bus, router, topic, "c", stuck)
    fanout = bus.client(
        Target(topic=topic, fanout=True), bus.rpc_transport(url=router.url)
    )
    for number in range(400):
        fanout.cast({}, "work", number=number)
    for endpoint in healthy:
        assert sorted(endpoint.got.wait(400)) == list(range(400))
    assert stuck.got.items == []


def test_casts_to_a_busy_server_are_accepted_on_arrival(bus, router, topic, gate):
    """As many as its window holds; each is executed once."""
    endpoint = Endpoint(gate)
    serve(bus, router, topic, "s", endpoint, window=50)
    client = bus.client(
        Target(topic=topic, server="s"), bus.rpc_transport(url=router.url)
    )
    for number in range(50):
        client.cast({}, "work", number=number)
    gate.open()
    assert sorted(endpoint.got.wait(50)) == list(range(50))


def test_a_cast_that_failed_is_not_executed_later(bus, router, topic, gate):
    """What neither workers nor window hold waits in the router, which cannot give it
    back."""
    endpoint = Endpoint(gate)
    serve(bus, router, topic, "s", endpoint, window=5)
    transport = bus.rpc_transport(
        url=router.url,
        options={"oslo_messaging_amqp": {"default_send_timeout": 5}},
    )
    client = bus.client(Target(topic=topic, server="s"), transport)
    accepted = Recorder()
    failed = Recorder()

    def cast(number):
        try:
            client.cast({}, "work", number=number)
        except MessageDeliveryFailure as exc:
            assert "will not execute it any more" in str(exc)
            failed.add(number)
        else:
            accepted.add(number)

    for sending in [in_thread(cast, number) for number in range(80)]:
        sending.result()
    assert failed.items
    gate.open()
    cast(-1)  # it is behind them
    executed = endpoint.got.wait(len(accepted.items))
    assert sorted(executed) == sorted(accepted.items)


def test_what_was_accepted_is_executed_though_the_server_stops(
    bus, router, topic, gate
):
    endpoint = Endpoint(gate)
    server = bus.server(
        endpoint, Target(topic=topic, server="s"), bus.rpc_transport(url=router.url)
    )
    client = bus.client(
        Target(topic=topic, server="s"), bus.rpc_transport(url=router.url)
    )
    for number in range(90):
        client.cast({}, "work", number=number)
    gate.open()
    server.stop()
    server.wait()
    assert sorted(endpoint.got.items) == list(range(90))


def test_one_notifier_fills_a_batch(bus, router, topic):
    """One after the other: it does not wait until the batch is handed over."""
    endpoint = InfoBatches()
    bus.batch_listener(
        endpoint,
        [Target(topic=topic)],
        bus.notification_transport(url=router.url),
        batch_size=5,
    )
    notifier = bus.notifier(
        [topic], transport=bus.notification_transport(url=router.url)
    )
    for number in range(20):
        notifier.info({}, str(number), {})
    assert [len(batch) for batch in endpoint.got.wait(4)] == [5, 5, 5, 5]
    assert endpoint.events() == [str(number) for number in range(20)]


def test_a_batch_that_is_requeued_comes_again(bus, router, topic):
    """From the listener itself, since the router has it no more."""
    seen = []

    def once_more(events):
        new = not set(events) & set(seen)
        seen.extend(events)
        return NotificationResult.REQUEUE if new else NotificationResult.HANDLED

    endpoint = InfoBatches(once_more)
    bus.batch_listener(
        endpoint,
        [Target(topic=topic)],
        bus.notification_transport(url=router.url),
        batch_size=4,
        allow_requeue=True,
    )
    notifier = bus.notifier(
        [topic], transport=bus.notification_transport(url=router.url)
    )
    for number in range(4):
        notifier.info({}, str(number), {})
    first, second = endpoint.got.wait(2)
    assert sorted(first) == sorted(second) == ["0", "1", "2", "3"]
