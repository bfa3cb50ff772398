# SPDX-License-Identifier: Apache-2.0
"""Notifications: priorities, topics, exchanges, pools, storing, requeueing."""

import json
import pathlib
from collections import Counter

import oslo_messaging
import pytest
from oslo_messaging import NotificationResult, Target

from tests.functional import world
from tests.functional.harness import (
    Gate,
    InfoOnly,
    Notified,
    Recorder,
    in_thread,
)

PRIORITIES = ["audit", "debug", "info", "warn", "error", "critical", "sample"]

#: Real notifications of a compute service, where they are at hand.
REAL = (
    pathlib.Path(__file__).resolve().parents[3]
    / "shared"
    / "notifications"
    / "nova.jsonl"
)


class WithContext(oslo_messaging.NoOpSerializer):
    """Puts a context into notifications: the notifier drops one that is a dict."""

    def serialize_context(self, ctxt):
        return {"user": "漢", "some key nobody knows": {"nested": [1, None]}}


@pytest.mark.parametrize("driver", ["messaging", "messagingv2"])
@pytest.mark.proves("notify")
def test_all_priorities(bus, topic, driver):
    """Each reaches its own method, with everything that was said, in both formats."""
    endpoint = Notified()
    bus.listener(endpoint, [Target(topic=topic)])
    notifier = bus.notifier(
        [topic], publisher="me.host", driver=driver, serializer=WithContext()
    )
    for priority in PRIORITIES:
        payload = {"priority": priority, "text": "žluť 漢 🐎", "list": [1, None]}
        getattr(notifier, priority)({}, f"type.{priority}", payload)
    endpoint.got.wait(len(PRIORITIES))
    bus.stop_servers()
    got = {item[0]: item[1:] for item in endpoint.got.items}
    assert len(endpoint.got) == len(got)
    assert set(got) == set(PRIORITIES)
    for priority, (publisher, event_type, payload, ctxt) in got.items():
        assert publisher == "me.host"
        assert event_type == f"type.{priority}"
        assert payload["priority"] == priority
        assert payload["text"] == "žluť 漢 🐎"
        assert payload["list"] == [1, None]
        assert ctxt["user"] == "漢"
        assert ctxt["some key nobody knows"] == {"nested": [1, None]}


@pytest.mark.proves("notify")
def test_only_the_priorities_of_the_endpoint(bus, topic):
    """What a listener has no method for stays on the bus for another."""
    info, everything = InfoOnly(), Notified()
    listener = bus.listener(info, [Target(topic=topic)])
    notifier = bus.notifier([topic])
    notifier.info({}, "an info", {})
    info.got.wait(1)
    bus.stop(listener)
    notifier.error({}, "an error", {})
    notifier.info({}, "another info", {})
    assert info.got.items == ["an info"]
    bus.listener(everything, [Target(topic=topic)])
    notifier.error({}, "a late error", {})
    everything.got.wait_for(
        lambda items: any(i[2] == "a late error" for i in items), "late error"
    )


def test_metadata(bus, topic):
    got = Recorder()

    class Endpoint:
        def info(self, ctxt, publisher, event_type, payload, metadata):
            got.add(metadata)

    bus.listener(Endpoint(), [Target(topic=topic)])
    bus.notifier([topic]).info({}, "event", {})
    (metadata,) = got.wait(1)
    assert metadata["message_id"]
    assert metadata["timestamp"]


@pytest.mark.proves("notify")
def test_several_topics_of_one_listener(bus, unique):
    topics = [unique("topic") for _ in range(3)]
    endpoint = InfoOnly()
    bus.listener(endpoint, [Target(topic=topic) for topic in topics])
    for topic in topics:
        bus.notifier([topic]).info({}, topic, {})
    endpoint.got.wait(3)
    bus.stop_servers()
    assert Counter(endpoint.got.items) == Counter(topics)


@pytest.mark.proves("notify")
def test_one_notifier_to_several_topics(bus, unique):
    """Each topic has its own copy."""
    topics = [unique("topic") for _ in range(3)]
    endpoints = [InfoOnly() for _ in topics]
    for topic, endpoint in zip(topics, endpoints, strict=True):
        bus.listener(endpoint, [Target(topic=topic)])
    notifier = bus.notifier(topics)
    for number in range(10):
        notifier.info({}, str(number), {})
    for endpoint in endpoints:
        endpoint.got.wait(10)
    bus.stop_servers()
    for endpoint in endpoints:
        assert Counter(endpoint.got.items) == Counter(str(n) for n in range(10))


@pytest.mark.proves("notify")
def test_order_of_one_publisher_is_kept(bus, topic):
    """One publisher, one listener, one worker: nothing overtakes."""
    endpoint = InfoOnly()
    transport = bus.notification_transport(
        options={"DEFAULT": {"executor_thread_pool_size": 1}}
    )
    bus.listener(endpoint, [Target(topic=topic)], transport)
    notifier = bus.notifier([topic])
    for number in range(200):
        notifier.info({}, str(number), {})
    endpoint.got.wait(200)
    assert endpoint.got.items == [str(n) for n in range(200)]


@pytest.mark.parametrize("executor", world.executors())
@pytest.mark.proves("notify")
def test_many_notifications_under_each_executor(bus, topic, executor):
    endpoint = InfoOnly()
    bus.listener(endpoint, [Target(topic=topic)], executor=executor)
    notifiers = [bus.notifier([topic]) for _ in range(3)]

    def publish(which, notifier):
        for number in range(100):
            notifier.info({}, f"{which}.{number}", {"pad": "x" * 2000})

    for work in [in_thread(publish, *pair) for pair in enumerate(notifiers)]:
        work.result()
    endpoint.got.wait(300)
    bus.stop_servers()
    assert Counter(endpoint.got.items) == Counter(
        f"{which}.{number}" for which in range(3) for number in range(100)
    )


@pytest.mark.skipif(not REAL.exists(), reason="no recorded notifications at hand")
def test_real_notifications(bus, topic):
    recorded = [json.loads(line) for line in REAL.read_text().splitlines()]
    endpoint = Notified()
    bus.listener(endpoint, [Target(topic=topic)])
    notifier = bus.notifier([topic])
    for one in recorded:
        made = notifier.prepare(publisher_id=one["publisher_id"])
        getattr(made, one["priority"].lower())({}, one["event_type"], one["payload"])
    endpoint.got.wait(len(recorded))
    bus.stop_servers()

    def comparable(priority, publisher, event_type, payload):
        return priority, publisher, event_type, json.dumps(payload, sort_keys=True)

    assert Counter(comparable(*i[:4]) for i in endpoint.got.items) == Counter(
        comparable(
            one["priority"].lower(),
            one["publisher_id"],
            one["event_type"],
            one["payload"],
        )
        for one in recorded
    )


def test_filter_rule(bus, topic):
    class Endpoint(InfoOnly):
        filter_rule = oslo_messaging.NotificationFilter(event_type=r"^wanted\.")

    endpoint = Endpoint()
    bus.listener(endpoint, [Target(topic=topic)])
    notifier = bus.notifier([topic])
    for event_type in ("wanted.1", "other.1", "wanted.2", "other.2", "wanted.3"):
        notifier.info({}, event_type, {})
    endpoint.got.wait(3)
    bus.stop_servers()
    assert sorted(endpoint.got.items) == ["wanted.1", "wanted.2", "wanted.3"]


# -- exchanges ---------------------------------------------------------------


@pytest.mark.proves("agent")
def test_agent_on_the_exchanges_of_several_services(bus, topic, unique):
    """Same topic everywhere, as services have it; each message once."""
    exchanges = {name: unique(name) for name in ("nova", "neutron", "cinder")}
    endpoint = InfoOnly()
    bus.listener(
        endpoint, [Target(topic=topic, exchange=e) for e in exchanges.values()]
    )
    for name, exchange in exchanges.items():
        notifier = bus.notifier([topic], exchange=exchange)
        for number in range(10):
            notifier.info({}, f"{name}.{number}", {})
    endpoint.got.wait(30)
    bus.stop_servers()
    assert Counter(endpoint.got.items) == Counter(
        f"{name}.{number}" for name in exchanges for number in range(10)
    )


@pytest.mark.needs("exchanges")
@pytest.mark.proves("exchanges")
def test_nothing_comes_from_another_exchange(bus, topic, unique):
    wanted, other = unique("wanted"), unique("other")
    listens, foreign = InfoOnly(), InfoOnly()
    bus.listener(listens, [Target(topic=topic, exchange=wanted)])
    bus.listener(foreign, [Target(topic=topic, exchange=other)])
    for number in range(10):
        bus.notifier([topic], exchange=other).info({}, f"other.{number}", {})
    # A listener that took the other exchange's messages would have some of these
    # by the time that its own have come.
    foreign.got.wait(10)
    for number in range(10):
        bus.notifier([topic], exchange=wanted).info({}, f"wanted.{number}", {})
    listens.got.wait(10)
    bus.stop_servers()
    assert {event.split(".")[0] for event in listens.got.items} == {"wanted"}
    assert {event.split(".")[0] for event in foreign.got.items} == {"other"}
    assert (len(listens.got), len(foreign.got)) == (10, 10)


@pytest.mark.needs("exchanges")
@pytest.mark.proves("exchanges")
def test_control_exchange_is_the_default(bus, topic, unique):
    """A listener whose target names no exchange has its transport's own."""
    exchange = unique("exchange")
    by_name, by_default = InfoOnly(), InfoOnly()
    shared = Recorder()
    by_name._shared = by_default._shared = shared
    bus.listener(by_name, [Target(topic=topic, exchange=exchange)])
    bus.listener(
        by_default, [Target(topic=topic)], bus.notification_transport(exchange)
    )
    notifier = bus.notifier([topic], exchange=exchange)
    for number in range(20):
        notifier.info({}, str(number), {})
    shared.wait(20)
    bus.stop_servers()
    # They compete for one and the same address.
    assert Counter(shared.items) == Counter(str(n) for n in range(20))


def test_rpc_and_notifications_of_the_same_topic_do_not_mix(bus, topic):
    calls = Recorder()

    class Endpoint:
        def info(self, ctxt, **kwargs):
            calls.add(kwargs)
            return "rpc"

    endpoint = InfoOnly()
    bus.server(Endpoint(), Target(topic=topic, server="server"))
    bus.listener(endpoint, [Target(topic=topic)])
    notifier = bus.notifier([topic])
    client = bus.client(Target(topic=topic))
    for number in range(10):
        notifier.info({}, str(number), {})
        assert client.call({}, "info", number=number) == "rpc"
    endpoint.got.wait(10)
    bus.stop_servers()
    assert Counter(endpoint.got.items) == Counter(str(n) for n in range(10))
    assert len(calls) == 10


# -- competing listeners and pools -------------------------------------------


def compete(bus, topic):
    """Send 60 notifications to three listeners of one topic; returns what all of them
    got, and the endpoint of each."""
    shared = Recorder()
    endpoints = [InfoOnly(shared=shared) for _ in range(3)]
    for endpoint in endpoints:
        bus.listener(endpoint, [Target(topic=topic)])
    notifier = bus.notifier([topic])
    for number in range(60):
        notifier.info({}, str(number), {})
    shared.wait(60)
    return shared, endpoints


@pytest.mark.proves("compete")
def test_listeners_without_a_pool_compete(bus, topic):
    shared, _ = compete(bus, topic)
    bus.stop_servers()
    assert Counter(shared.items) == Counter(str(n) for n in range(60))


@pytest.mark.needs("balanced")
@pytest.mark.proves("compete")
def test_competing_listeners_each_get_a_share(bus, topic):
    _, endpoints = compete(bus, topic)
    assert all(len(endpoint.got) > 0 for endpoint in endpoints)


@pytest.mark.needs("pools")
@pytest.mark.proves("pools")
class TestPools:
    def test_each_pool_gets_one_copy(self, bus, topic, unique):
        """Two pools of two and two listeners without one: three copies of each."""
        groups = {}
        for name in (unique("pool-a"), unique("pool-b"), None):
            shared = Recorder()
            groups[name] = shared
            for _ in range(2):
                endpoint = InfoOnly(shared=shared)
                bus.listener(endpoint, [Target(topic=topic)], pool=name)
        notifier = bus.notifier([topic])
        for number in range(40):
            notifier.info({}, str(number), {})
        for shared in groups.values():
            shared.wait(40)
        bus.stop_servers()
        for shared in groups.values():
            assert Counter(shared.items) == Counter(str(n) for n in range(40))

    @pytest.mark.needs("balanced")
    def test_members_share_the_copy_of_their_pool(self, bus, topic, unique):
        pool = unique("pool")
        shared = Recorder()
        members = [InfoOnly(shared=shared) for _ in range(3)]
        for member in members:
            bus.listener(member, [Target(topic=topic)], pool=pool)
        notifier = bus.notifier([topic])
        for number in range(60):
            notifier.info({}, str(number), {})
        shared.wait(60)
        assert all(len(member.got) > 0 for member in members)

    def test_pool_of_an_agent_on_several_exchanges(self, bus, topic, unique):
        exchanges = [unique("nova"), unique("neutron")]
        pools = {unique("metering"): Recorder(), unique("audit"): Recorder()}
        targets = [Target(topic=topic, exchange=e) for e in exchanges]
        for pool, shared in pools.items():
            for _ in range(2):
                bus.listener(InfoOnly(shared=shared), targets, pool=pool)
        for exchange in exchanges:
            notifier = bus.notifier([topic], exchange=exchange)
            for number in range(20):
                notifier.info({}, f"{exchange}.{number}", {})
        for shared in pools.values():
            shared.wait(40)
        bus.stop_servers()
        expected = Counter(f"{e}.{n}" for e in exchanges for n in range(20))
        for shared in pools.values():
            assert Counter(shared.items) == expected

    def test_pool_takes_nothing_away_from_the_others(self, bus, topic, unique):
        """A listener without a pool has the same messages whether pools exist."""
        plain, pooled = InfoOnly(), InfoOnly()
        bus.listener(plain, [Target(topic=topic)])
        notifier = bus.notifier([topic])
        for number in range(10):
            notifier.info({}, f"before.{number}", {})
        plain.got.wait(10)
        bus.listener(pooled, [Target(topic=topic)], pool=unique("pool"))
        for number in range(10):
            notifier.info({}, f"after.{number}", {})
        plain.got.wait(20)
        pooled.got.wait(10)
        bus.stop_servers()
        after = [f"after.{n}" for n in range(10)]
        before = [f"before.{n}" for n in range(10)]
        assert Counter(plain.got.items) == Counter(before + after)
        assert Counter(e for e in pooled.got.items if e in after) == Counter(after)

    def test_two_members_in_one_transport(self, bus, topic, unique):
        transport = bus.notification_transport()
        shared = Recorder()
        pool = unique("pool")
        for _ in range(2):
            bus.listener(
                InfoOnly(shared=shared), [Target(topic=topic)], transport, pool=pool
            )
        other = InfoOnly()
        bus.listener(other, [Target(topic=topic)], transport, pool=unique("pool"))
        notifier = bus.notifier([topic], transport=transport)
        for number in range(20):
            notifier.info({}, str(number), {})
        shared.wait(20)
        other.got.wait(20)
        bus.stop_servers()
        assert Counter(shared.items) == Counter(str(n) for n in range(20))
        assert Counter(other.got.items) == Counter(str(n) for n in range(20))

    @pytest.mark.needs("pool_store")
    @pytest.mark.proves("pool_store")
    def test_pool_keeps_messages_while_no_member_listens(self, bus, topic, unique):
        pool = unique("pool")
        first, second = InfoOnly(), InfoOnly()
        listener = bus.listener(first, [Target(topic=topic)], pool=pool)
        notifier = bus.notifier([topic])
        notifier.info({}, "while it listens", {})
        first.got.wait(1)
        bus.stop(listener)
        for number in range(10):
            notifier.info({}, str(number), {})
        bus.listener(second, [Target(topic=topic)], pool=pool)
        second.got.wait(10)
        bus.stop_servers()
        assert first.got.items == ["while it listens"]
        assert Counter(second.got.items) == Counter(str(n) for n in range(10))

    @pytest.mark.needs("pool_names")
    @pytest.mark.proves("pool_names")
    def test_same_pool_on_another_topic_is_another_pool(self, bus, unique):
        pool = unique("pool")
        topics = [unique("topic"), unique("topic")]
        endpoints = [InfoOnly(), InfoOnly()]
        for topic, endpoint in zip(topics, endpoints, strict=True):
            bus.listener(endpoint, [Target(topic=topic)], pool=pool)
        for topic in topics:
            notifier = bus.notifier([topic])
            for number in range(10):
                notifier.info({}, f"{topic}.{number}", {})
        for endpoint in endpoints:
            endpoint.got.wait(10)
        bus.stop_servers()
        for topic, endpoint in zip(topics, endpoints, strict=True):
            assert Counter(endpoint.got.items) == Counter(
                f"{topic}.{n}" for n in range(10)
            )


@pytest.mark.needs("amqp")
@pytest.mark.refuses("pools")
def test_pool_is_refused(bus, topic):
    """Rather than taking messages away from others, or pretending."""
    with pytest.raises(NotImplementedError, match="pool"):
        bus.listener(InfoOnly(), [Target(topic=topic)], pool="some pool")


@pytest.mark.needs("amqp")
@pytest.mark.refuses("policy")
def test_queue_policy_is_refused(bus, topic):
    """A bus that cannot be told how long a queue lives: whoever asks hears of it."""
    transport = bus.notification_transport(url=bus.bus.url_with(queue_expires=600))
    with pytest.raises(NotImplementedError, match="(?i)polic"):
        bus.listener(InfoOnly(), [Target(topic=topic)], transport)


# -- store and forward -------------------------------------------------------


@pytest.mark.needs("store")
@pytest.mark.proves("store")
def test_published_before_the_listener_exists(bus, topic):
    notifier = bus.notifier([topic])
    for number in range(20):
        notifier.info({}, str(number), {})
    endpoint = InfoOnly()
    bus.listener(endpoint, [Target(topic=topic)])
    endpoint.got.wait(20)
    bus.stop_servers()
    assert Counter(endpoint.got.items) == Counter(str(n) for n in range(20))


@pytest.mark.needs("store", "survives")
@pytest.mark.proves("store")
def test_publisher_may_be_gone_before_the_listener_comes(bus, topic):
    transport = bus.notification_transport()
    notifier = bus.notifier([topic], transport=transport)
    for number in range(20):
        notifier.info({}, str(number), {})
    bus.cleanup(transport)
    endpoint = InfoOnly()
    bus.listener(endpoint, [Target(topic=topic)])
    endpoint.got.wait(20)


@pytest.mark.needs("backlog")
@pytest.mark.proves("backlog")
def test_stopping_a_busy_listener_loses_nothing(bus, topic):
    """It finishes what it was given; the rest goes to another, once."""
    gate = Gate()
    shared = Recorder()

    def hold(event_type):
        gate.enter()

    transport = bus.notification_transport(
        options={"DEFAULT": {"executor_thread_pool_size": 1}}
    )
    listener = bus.listener(
        InfoOnly(hold, shared=shared), [Target(topic=topic)], transport
    )
    notifier = bus.notifier([topic])
    for number in range(300):
        notifier.info({}, str(number), {})
    gate.wait_entered()
    stopping = in_thread(listener.stop)
    gate.open()
    stopping.result()
    bus.stop(listener)
    bus.listener(InfoOnly(shared=shared), [Target(topic=topic)])
    shared.wait(300)
    bus.stop_servers()
    assert Counter(shared.items) == Counter(str(n) for n in range(300))


# -- requeueing --------------------------------------------------------------


class RequeueOnce:
    """Answers REQUEUE to the first delivery of each event."""

    def __init__(self, shared=None):
        self.seen = Counter() if shared is None else shared

    def __call__(self, event_type):
        self.seen[event_type] += 1
        if self.seen[event_type] == 1:
            return NotificationResult.REQUEUE
        return NotificationResult.HANDLED


@pytest.mark.needs("requeue")
@pytest.mark.proves("requeue")
def test_requeued_message_comes_again(bus, topic):
    endpoint = InfoOnly(RequeueOnce())
    bus.listener(endpoint, [Target(topic=topic)], allow_requeue=True)
    notifier = bus.notifier([topic])
    for number in range(10):
        notifier.info({}, str(number), {})
    endpoint.got.wait(20)
    bus.stop_servers()
    assert Counter(endpoint.got.items) == {str(n): 2 for n in range(10)}


@pytest.mark.needs("requeue")
@pytest.mark.proves("requeue")
def test_requeued_message_may_go_to_another_listener(bus, topic):
    shared = Recorder()
    seen = Counter()
    for _ in range(2):
        bus.listener(
            InfoOnly(RequeueOnce(seen), shared=shared),
            [Target(topic=topic)],
            allow_requeue=True,
        )
    notifier = bus.notifier([topic])
    for number in range(10):
        notifier.info({}, str(number), {})
    shared.wait(20)
    bus.stop_servers()
    assert Counter(shared.items) == {str(n): 2 for n in range(10)}


@pytest.mark.needs("requeue")
@pytest.mark.proves("requeue")
def test_exception_in_the_endpoint_requeues(bus, topic, caplog):
    failed = []

    def fail_once(event_type):
        if not failed:
            failed.append(event_type)
            raise RuntimeError("once")

    endpoint = InfoOnly(fail_once)
    bus.listener(endpoint, [Target(topic=topic)], allow_requeue=True)
    bus.notifier([topic]).info({}, "event", {})
    endpoint.got.wait(2)
    bus.stop_servers()
    assert endpoint.got.items == ["event", "event"]


def test_without_requeue_a_failed_message_is_done(bus, topic):
    """allow_requeue is False by default: the message is acknowledged all the same."""

    def fail(event_type):
        raise RuntimeError("always")

    endpoint = InfoOnly(fail)
    bus.listener(endpoint, [Target(topic=topic)])
    notifier = bus.notifier([topic])
    notifier.info({}, "first", {})
    notifier.info({}, "second", {})
    endpoint.got.wait(2)
    bus.stop_servers()
    assert sorted(endpoint.got.items) == ["first", "second"]


# -- bad targets -------------------------------------------------------------


def test_listener_without_a_topic(bus):
    with pytest.raises(oslo_messaging.InvalidTarget):
        bus.listener(InfoOnly(), [Target(exchange="x")])


def test_several_listeners_in_one_transport(bus, unique):
    transport = bus.notification_transport()
    topics = [unique("topic") for _ in range(8)]
    endpoints = [InfoOnly() for _ in topics]
    for topic, endpoint in zip(topics, endpoints, strict=True):
        bus.listener(endpoint, [Target(topic=topic)], transport)
    for topic in topics:
        notifier = bus.notifier([topic], transport=transport)
        for number in range(5):
            notifier.info({}, f"{topic}.{number}", {})
    for endpoint in endpoints:
        endpoint.got.wait(5)
    bus.stop_servers()
    for topic, endpoint in zip(topics, endpoints, strict=True):
        assert Counter(endpoint.got.items) == Counter(f"{topic}.{n}" for n in range(5))


@pytest.mark.needs("store")
def test_slow_listener_does_not_stop_the_others(bus, unique):
    """Its messages wait on the bus; those of its neighbours do not."""
    gate = Gate()
    slow_topic, quick_topic = unique("slow"), unique("quick")
    transport = bus.notification_transport(
        options={"DEFAULT": {"executor_thread_pool_size": 1}}
    )
    slow = InfoOnly(lambda event_type: gate.enter())
    quick = InfoOnly()
    bus.listener(slow, [Target(topic=slow_topic)], transport)
    bus.listener(quick, [Target(topic=quick_topic)], transport)
    slow_notifier = bus.notifier([slow_topic])
    quick_notifier = bus.notifier([quick_topic])
    for number in range(300):
        slow_notifier.info({}, str(number), {"pad": "x" * 1000})
    gate.wait_entered()
    for number in range(100):
        quick_notifier.info({}, str(number), {})
    quick.got.wait(100)
    assert len(slow.got) == 1
    gate.open()
    slow.got.wait(300)
