# SPDX-License-Identifier: Apache-2.0
"""Subscriptions: their links, their credit, and what becomes of both."""

import pytest
from oslo_messaging import Target

from greenamqp.buses import Node
from greenamqp.client.receiving import DRY_DELAY
from greenamqp.client.wanted import FIRST_PAUSE
from greenamqp.connection.state import State
from greenamqp.engine import ACCEPTED, MODIFIED, REJECTED, RELEASED, Message, capi
from greenamqp.engine.connection import LINKS_PER_SESSION
from tests.unit import fakes


class Consumer:
    """A subscription and what it got."""

    def __init__(self, s, *addresses, window=10, sources=None):
        self.got = []
        self.bodies = []
        self._codec = capi.Codec()
        self.subscription = s.client.subscribe(
            sources or (lambda addresser: [Node(address) for address in addresses]),
            window,
            self._message,
        )

    def _message(self, source, link, delivery, data):
        self.got.append((source, link, delivery))
        self.bodies.append(self._codec.decode(data).body)

    def settle(self, index=0, outcome=ACCEPTED):
        """Settle one, and forget it."""
        source, link, delivery = self.got.pop(index)
        done = source.settle(link, delivery, outcome)
        source._context.flush_soon()
        return done


def attached(s, *addresses, **options):
    consumer = Consumer(s, *addresses, **options)
    s.world.settle()
    assert consumer.subscription.attached
    return consumer


def pool(addresser):
    """What a bus may have no way to make."""
    return addresser.notification_sources([Target(topic="t")], "pool")


def arrived(s, count):
    """Messages that the consumer of "a" has got; returns their handles."""
    handles = [s.peer.send("a", Message(str(number))) for number in range(count)]
    s.world.settle()
    return handles


# -- attaching


def test_links_are_attached_and_then_given_their_credit():
    with fakes.setting() as s:
        consumer = Consumer(s, "a", "b", window=7)
        assert not consumer.subscription.attached
        s.world.settle()
        assert consumer.subscription.attached
        assert {name: link.credit for name, link in s.peer.outbound.items()} == {
            "a": 7,
            "b": 7,
        }


def test_messages_arrive_in_order():
    with fakes.setting() as s:
        consumer = attached(s, "a", window=100)
        arrived(s, 100)
        assert consumer.bodies == [str(number) for number in range(100)]


def test_waiting_for_the_links():
    with fakes.setting(network={"answer": False}) as s:
        consumer = Consumer(s, "a", "b")
        steps = consumer.subscription.attaching(s.world.now() + 30)
        task = s.world.go(s.world.run, steps)
        s.world.advance(10)
        assert not task.done
        s.peer.answer_links()
        s.world.settle()
        assert task.result() is True
        again = s.world.go(s.world.run, consumer.subscription.attaching(0))
        assert again.result() is True


def test_waiting_for_the_links_ends_at_the_deadline():
    with fakes.setting() as s:
        s.network.default = "refused"
        consumer = Consumer(s, "a")
        steps = consumer.subscription.attaching(s.world.now() + 30)
        task = s.world.go(s.world.run, steps)
        s.world.advance(29)
        assert not task.done
        s.world.advance(2)
        assert task.result() is False
        s.network.default = {}
        s.world.advance(60)
        assert consumer.subscription.attached  # all the same


def test_waiting_for_the_links_ends_with_the_messenger():
    with fakes.setting() as s:
        s.network.default = "refused"
        consumer = Consumer(s, "a")
        task = s.world.go(s.world.run, consumer.subscription.attaching(None))
        s.world.settle()
        s.world.go(s.world.run, s.client.closing())
        s.world.settle()
        assert task.result() is False


def test_what_the_bus_cannot_do_is_said():
    with fakes.setting(network={"product": "qpid-cpp"}) as s:
        consumer = Consumer(s, sources=pool)
        task = s.world.go(s.world.run, consumer.subscription.attaching(None))
        s.world.settle()
        with pytest.raises(NotImplementedError, match="pool 'pool'.*qpid-cpp"):
            task.result()
        s.client.unsubscribe(consumer.subscription)
        assert s.client.connection.state is State.UP


def test_another_bus_may_be_able_to_do_it():
    with fakes.setting() as s:
        s.network.script = [{"product": "qpid-cpp"}, {"product": "greenamqp"}]
        consumer = Consumer(s, sources=pool)
        s.world.settle()
        s.lose()
        task = s.world.go(s.world.run, consumer.subscription.attaching(None))
        assert task.result() is True


def test_one_impossible_subscription_does_not_keep_others_away():
    with fakes.setting(network={"product": "qpid-cpp"}) as s:
        Consumer(s, sources=pool)
        consumer = Consumer(s, "a")
        s.world.settle()
        assert consumer.subscription.attached


def test_a_name_that_is_no_utf8_keeps_no_other_away(caplog):
    with fakes.setting() as s:
        bad = Consumer(s, "\udc80")
        steps = bad.subscription.attaching(s.world.now() + 30)
        waiting = s.world.go(s.world.run, steps)
        consumer = Consumer(s, "a")
        s.world.settle()
        assert consumer.subscription.attached
        with pytest.raises(UnicodeEncodeError):
            waiting.result()  # nobody has to wait for that
        assert "cannot subscribe to '\\udc80'" in caplog.text
        s.lose()
        s.world.settle()
        assert consumer.subscription.attached


# -- credit


@pytest.mark.parametrize(
    "window, credits",
    [
        # before, and after each of the window's messages was settled
        (10, [0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 10]),
        (5, [0, 0, 0, 3, 3, 3]),
        (2, [0, 1, 2]),
        (1, [0, 1]),
    ],
)
def test_credit_comes_back_for_what_was_settled_in_halves(window, credits):
    with fakes.setting() as s:
        consumer = attached(s, "a", window=window)
        for number in range(window):
            s.peer.send("a", Message(str(number)))
        s.world.advance(60)
        seen = [s.peer.outbound["a"].credit]
        for _ in range(window):
            assert consumer.settle()
            s.world.settle()
            seen.append(s.peer.outbound["a"].credit)
        assert seen == credits


def test_less_than_half_comes_back_where_the_peer_has_none():
    """After a moment, for there may be more."""
    with fakes.setting() as s:
        consumer = attached(s, "a", window=10)
        link = s.peer.outbound["a"]
        arrived(s, 10)
        assert consumer.settle() and consumer.settle()
        s.world.settle()
        assert link.credit == 0
        s.world.advance(DRY_DELAY)
        assert link.credit == 2
        # It has some: what is settled meanwhile waits for half a window, or for that
        # to be used up.
        assert consumer.settle()
        s.world.advance(60)
        assert link.credit == 2
        for number in range(2):
            s.peer.send("a", Message(str(number)))
        s.world.advance(DRY_DELAY)
        assert link.credit == 1


def test_no_credit_comes_back_from_who_has_stopped():
    with fakes.setting() as s:
        consumer = attached(s, "a", window=10)
        arrived(s, 10)
        assert consumer.settle()
        consumer.subscription.stop()
        assert consumer.settle()
        s.world.advance(60)
        assert s.peer.outbound["a"].credit == 0


@pytest.mark.parametrize("outcome", [ACCEPTED, RELEASED, REJECTED, MODIFIED])
def test_each_outcome_is_told_and_returns_credit(outcome):
    with fakes.setting() as s:
        consumer = attached(s, "a", window=2)
        handles = []
        for _ in range(10):
            handles.append(s.peer.send("a", Message("x")))
            s.world.settle()
            consumer.settle(outcome=outcome)
            s.world.settle()
        assert s.peer.outcomes == [(handle, outcome) for handle in handles]


def test_messages_may_be_settled_in_any_order():
    with fakes.setting() as s:
        consumer = attached(s, "a", window=8)
        handles = arrived(s, 8)
        for index in (7, 0, 3, 3, 0, 1, 1, 0):
            handle = handles.pop(index)
            assert consumer.settle(index)
            s.world.settle()
            assert s.peer.outcomes.pop() == (handle, ACCEPTED)
        assert s.peer.outbound["a"].credit == 8


def test_a_message_that_the_peer_aborts_returns_its_credit():
    with fakes.setting() as s:
        consumer = attached(s, "a", window=1)
        for _ in range(5):
            abort = s.peer.begin("a", 100_000)
            s.world.settle()
            abort()
            s.world.settle()
            assert s.peer.outbound["a"].credit == 1
        s.peer.send("a", Message("whole"))
        s.world.settle()
        assert consumer.bodies == ["whole"]


def test_a_consumer_that_is_full_holds_up_no_other():
    with fakes.setting() as s:
        full = attached(s, "full", window=2)
        other = attached(s, "other", window=2)
        for number in range(50):
            if s.peer.outbound["full"].credit:
                s.peer.send("full", Message("x"))
            s.peer.send("other", Message(str(number)))
            s.world.settle()
            other.settle()
            s.world.settle()
        assert len(full.got) == 2
        assert len(other.bodies) == 50


def test_what_the_peer_sent_settled_returns_credit_as_well():
    with fakes.setting() as s:
        consumer = attached(s, "a", window=2)
        for _ in range(10):
            s.peer.send("a", Message("x"), settled=True)
            s.world.settle()
            assert consumer.settle()
            s.world.settle()
        assert s.peer.outbound["a"].credit == 2


# -- acknowledgements that wait for more of them


@pytest.fixture
def patient():
    """A setting where they do."""
    with fakes.setting(network={"product": "RabbitMQ"}) as s:
        s.world.punctual = True
        yield s


def acknowledge(s, consumer, count):
    for _ in range(count):
        source, link, delivery = consumer.got.pop(0)
        assert source.acknowledge(link, delivery)
    s.world.settle()


def test_acknowledgements_leave_together(patient):
    s = patient
    consumer = attached(s, "a", window=100)
    for _ in range(3):
        handles = arrived(s, 10)
        acknowledge(s, consumer, 5)
        s.world.advance(s.client.context.bus.settle_delay * 0.9)
        acknowledge(s, consumer, 5)
        assert s.peer.outcomes == []
        s.world.advance(s.client.context.bus.settle_delay * 0.2)
        assert set(s.peer.outcomes) == {(handle, ACCEPTED) for handle in handles}
        s.peer.outcomes.clear()


@pytest.mark.parametrize("window, enough", [(100, 25), (10, 3), (3, 1)])
def test_a_part_of_the_window_is_enough_of_them(patient, window, enough):
    s = patient
    consumer = attached(s, "a", window=window)
    arrived(s, enough)
    acknowledge(s, consumer, enough - 1)
    assert s.peer.outcomes == []
    acknowledge(s, consumer, 1)
    assert len(s.peer.outcomes) == enough


def test_they_do_not_wait_where_the_peer_waits_for_them(patient):
    s = patient
    consumer = attached(s, "a", window=100)
    arrived(s, 100)
    for number in range(1, 50):
        acknowledge(s, consumer, 1)
        assert len(s.peer.outcomes) == number


def test_other_outcomes_do_not_wait(patient):
    s = patient
    consumer = attached(s, "a", window=100)
    handles = arrived(s, 2)
    acknowledge(s, consumer, 1)
    consumer.settle(outcome=RELEASED)
    s.world.settle()
    assert s.peer.outcomes == [(handles[1], RELEASED)]
    s.world.advance(1)
    assert s.peer.outcomes[1:] == [(handles[0], ACCEPTED)]


@pytest.mark.parametrize(
    "product, punctual",
    [("RabbitMQ", False), ("qpid-dispatch-router", True), ("greenamqp", True)],
)
def test_elsewhere_they_leave_at_once(product, punctual):
    with fakes.setting(network={"product": product}) as s:
        s.world.punctual = punctual
        consumer = attached(s, "a", window=100)
        arrived(s, 1)
        acknowledge(s, consumer, 1)
        assert len(s.peer.outcomes) == 1


@pytest.mark.parametrize("leave", ["stop", "unsubscribe", "close"])
def test_they_leave_before_their_link_does(patient, leave):
    s = patient
    consumer = attached(s, "a", window=100)
    handles = arrived(s, 3)
    acknowledge(s, consumer, 2)
    if leave == "stop":
        consumer.subscription.stop()
    elif leave == "unsubscribe":
        s.client.unsubscribe(consumer.subscription)
    else:
        s.world.go(s.world.run, s.client.closing())
    s.world.settle()
    assert set(s.peer.outcomes) == {(handle, ACCEPTED) for handle in handles[:2]}
    # Nothing is left that would call later.
    assert not consumer.got[0][0]._held_ends.runs


def test_those_that_wait_when_the_connection_is_lost_come_again(patient):
    s = patient
    consumer = attached(s, "a", window=100)
    arrived(s, 4)
    source = consumer.got[0][0]
    acknowledge(s, consumer, 3)
    s.lose()
    assert source._held == [] and not source._held_ends.runs
    handle = s.peer.send("a", Message("new"))
    s.world.settle()
    # What came before the loss is not acknowledged on the new link.
    source, link, delivery = consumer.got.pop(0)
    assert not source.acknowledge(link, delivery)
    acknowledge(s, consumer, 1)
    s.world.advance(1)
    assert s.peer.outcomes == [(handle, ACCEPTED)]
    assert s.peer.outbound["a"].credit == 99


def test_those_that_wait_when_the_link_goes_come_again(patient):
    s = patient
    consumer = attached(s, "a", window=100)
    arrived(s, 1)
    acknowledge(s, consumer, 1)
    s.peer.outbound["a"].close()
    s.world.advance(1)
    assert consumer.subscription.attached
    assert s.peer.outcomes == []


# -- the connection is lost


def test_subscriptions_are_restored():
    with fakes.setting() as s:
        consumers = [attached(s, f"a{number}") for number in range(20)]
        for _ in range(3):
            s.lose()
            s.world.settle()
            assert sorted(s.peer.outbound) == sorted(f"a{n}" for n in range(20))
            for consumer in consumers:
                assert consumer.subscription.attached
            s.peer.send("a7", Message("hello"))
            s.world.settle()
        assert consumers[7].bodies == ["hello"] * 3


def test_a_subscription_names_its_address_as_the_new_bus_wants_it():
    def sources(addresser):
        return addresser.rpc_sources(Target(topic="t", server="s"))

    with fakes.setting() as s:
        s.network.script = [{"product": "qpid-cpp"}, {"product": "a router"}]
        attached(s, sources=sources)
        assert sorted(s.peer.outbound) == [
            "broadcast.openstack.t.all",
            "exclusive.openstack.t.s",
            "unicast.openstack.t",
        ]
        s.lose()
        assert sorted(s.peer.outbound) == [
            "openstack.org/om/rpc/anycast/openstack/t",
            "openstack.org/om/rpc/multicast/openstack/t",
            "openstack.org/om/rpc/unicast/openstack/t/s",
        ]


def test_what_was_received_before_the_loss_cannot_be_settled_after_it():
    with fakes.setting() as s:
        consumer = attached(s, "a", window=4)
        arrived(s, 4)
        s.lose()
        s.peer.send("a", Message("new"))
        s.world.settle()
        for _ in range(4):
            assert consumer.settle() is False
        s.world.settle()
        # Nor does it return credit on the new link.
        assert s.peer.outbound["a"].credit == 3
        assert consumer.settle() is True
        s.world.settle()
        assert len(s.peer.outcomes) == 1


def test_half_a_message_is_lost_with_its_connection():
    with fakes.setting() as s:
        consumer = attached(s, "a")
        s.peer.begin("a", 500)
        s.world.settle()
        s.lose()
        s.peer.send("a", Message("whole"))
        s.world.settle()
        assert consumer.bodies == ["whole"]


# -- a link is lost


@pytest.mark.parametrize("condition", ["amqp:not-found", "amqp:unauthorized-access"])
def test_a_refused_link_is_tried_again(condition, caplog):
    with fakes.setting(link_retry_delay=9) as s:
        s.up()
        s.peer.refuse["a"] = (condition, "not now")
        consumer = Consumer(s, "a", "b")
        s.world.advance(20)
        assert s.peer.attaches.count("a") == 3
        assert s.peer.attaches.count("b") == 1
        assert f"{condition}: not now" in caplog.text
        del s.peer.refuse["a"]
        s.world.advance(10)
        assert consumer.subscription.attached
        assert s.peer.outbound["a"].credit == 10


class Removals:
    """In the place of a client's management: what is asked of it."""

    def __init__(self):
        self.removed = []

    def delete_queue(self, name):
        self.removed.append(name)


def with_a_queue_of_its_own(s):
    """A subscription to a queue that is to be removed; what is removed."""
    node = Node("a", remove="queue of a")
    consumer = attached(s, sources=lambda addresser: [node])
    s.client.context.management = Removals()
    return consumer.subscription, s.client.context.management.removed


def test_a_queue_is_removed_when_its_link_is_closed_on_both_sides():
    """RabbitMQ 4.0 ends the session of a link that it finds without its queue."""
    with fakes.setting() as s:
        subscription, removed = with_a_queue_of_its_own(s)
        s.client.unsubscribe(subscription)
        assert removed == []
        s.world.settle()
        assert removed == ["queue of a"]


def test_a_queue_is_removed_although_the_connection_is_closed_right_after():
    with fakes.setting() as s:
        subscription, removed = with_a_queue_of_its_own(s)
        s.client.unsubscribe(subscription)
        s.world.go(s.world.run, s.client.closing())
        assert removed == ["queue of a"]
        s.world.settle()
        assert removed == ["queue of a"]


def test_a_queue_is_removed_at_once_when_the_connection_is_closed():
    with fakes.setting() as s:
        _, removed = with_a_queue_of_its_own(s)
        s.world.go(s.world.run, s.client.closing())
        s.world.settle()
        assert removed == ["queue of a"]


def test_a_link_closed_by_the_peer_is_attached_again(caplog):
    with fakes.setting(link_retry_delay=9) as s:
        consumer = attached(s, "a", "b")
        s.peer.outbound["a"].close("amqp:resource-deleted", "queue deleted")
        s.world.settle()
        s.world.advance(FIRST_PAUSE / 2)
        assert "queue deleted" in caplog.text
        assert not consumer.subscription.attached
        s.peer.send("b", Message("x"))
        s.world.settle()
        assert consumer.bodies == ["x"]
        s.world.advance(FIRST_PAUSE / 2)
        assert consumer.subscription.attached
        assert s.peer.outbound["a"].credit == 10


def test_a_link_that_a_router_attaches_and_forbids_is_refused():
    """It is not tried again as soon as one that was up, and was lost."""
    with fakes.setting(link_retry_delay=9) as s:
        consumer = attached(s, "a")
        for attaches in 1, 2:
            assert s.peer.attaches.count("a") == attaches
            s.peer.outbound["a"].close("amqp:unauthorized-access", "not yours")
            s.world.settle()
            s.world.advance(8)
            assert s.peer.attaches.count("a") == attaches
            s.world.advance(1)
        assert consumer.subscription.attached


def test_more_links_than_the_peer_allows_are_tried_again(caplog):
    with fakes.setting(link_retry_delay=9, network={"channel_max": 0}) as s:
        names = [f"a{number}" for number in range(LINKS_PER_SESSION)]
        consumer = Consumer(s, *names, "one-more")
        s.world.settle()
        assert "cannot subscribe to one-more: the peer allows 1 session" in caplog.text
        s.peer.outbound["a3"].close()
        s.world.settle()
        s.world.advance(10)
        # Its place was free: one of the two that wait has it.
        up = sum(map(fakes.attached, s.peer.outbound.values()))
        assert up == LINKS_PER_SESSION
        assert not consumer.subscription.attached


def test_a_link_waiting_to_be_attached_again_and_a_lost_connection():
    with fakes.setting(link_retry_delay=20) as s:
        consumer = attached(s, "a")
        s.peer.outbound["a"].close()
        s.world.settle()
        s.lose()
        assert consumer.subscription.attached
        s.world.advance(60)
        assert s.peer.attaches == ["a"]


# -- stopping


def test_stop_withdraws_credit_and_releases_what_comes():
    with fakes.setting() as s:
        consumer = attached(s, "a", window=10)
        taken = s.peer.send("a", Message("taken"))
        s.world.settle()
        # These cross the withdrawal on the wire.
        handles = [s.peer.send("a", Message("late")) for _ in range(3)]
        s.peer.work()
        consumer.subscription.stop()
        s.world.settle()
        assert consumer.bodies == ["taken"]
        assert s.peer.outcomes == [(handle, RELEASED) for handle in handles]
        assert s.peer.outbound["a"].credit <= 0
        # What was taken is settled as ever, and brings no credit.
        assert consumer.settle()
        s.world.advance(60)
        assert s.peer.outcomes[-1] == (taken, ACCEPTED)
        assert s.peer.outbound["a"].credit <= 0


def test_a_link_that_comes_up_after_stop_gets_no_credit():
    with fakes.setting(network={"answer": False}) as s:
        consumer = Consumer(s, "a")
        s.world.settle()
        consumer.subscription.stop()
        s.peer.answer_links()
        s.world.advance(60)
        assert s.peer.outbound["a"].credit == 0


def test_a_stopped_subscription_is_not_restored():
    with fakes.setting() as s:
        consumer = attached(s, "a")
        consumer.subscription.stop()
        s.lose()
        s.world.advance(60)
        assert s.peer.attaches == []


@pytest.mark.parametrize("closed", ["link", "connection"])
def test_an_unsubscribed_subscription_is_gone(closed):
    with fakes.setting(link_retry_delay=5) as s:
        consumer = attached(s, "a", "b")
        s.peer.send("a", Message("unsettled"))
        s.world.settle()
        s.client.unsubscribe(consumer.subscription)
        s.world.settle()
        assert s.peer.outbound == {}
        assert consumer.settle() is False
        if closed == "connection":
            s.lose()
        s.world.advance(60)
        assert s.peer.outbound == {}
        assert not s.client.room.subscriptions
        s.client.unsubscribe(consumer.subscription)


@pytest.mark.parametrize("seconds", [0, 60])
def test_unsubscribing_while_a_link_waits_to_be_attached_again(seconds):
    with fakes.setting(link_retry_delay=5) as s:
        consumer = attached(s, "a")
        s.peer.outbound["a"].close()
        s.world.settle()
        s.client.unsubscribe(consumer.subscription)
        # No timer is left either, which setting() looks for.
        s.world.advance(seconds)
        assert s.peer.attaches == ["a"]
