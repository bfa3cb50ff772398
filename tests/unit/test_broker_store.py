# SPDX-License-Identifier: Apache-2.0
"""Queues and addresses, with no connection and a clock that stands still."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from greenamqp.broker import encoding
from greenamqp.broker.store import (
    MESSAGE_OVERHEAD,
    Address,
    BoundTarget,
    Kind,
    Outcome,
    Policy,
    Queue,
    Usage,
)
from tests.unit.bus import decoded, message


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Taker:
    """A consumer with credit, which keeps what it got."""

    def __init__(self, credit: int = 1000, limit: int = 0) -> None:
        self.credit = credit
        self.limit = limit
        self.listed = False
        self.entries: list = []
        self.data: list[bytes] = []

    def deliver(self, entry, data) -> bool:
        if self.limit and len(data) > self.limit:
            entry.queue.give_back(entry, failed=False, excluded=self)
            return True
        self.credit -= 1
        assert self.credit >= 0
        self.entries.append(entry)
        self.data.append(data)
        return self.credit > 0

    @property
    def bodies(self) -> list[object]:
        return [decoded(data).body for data in self.data]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock):
    def make_queue(limit: int = 1 << 30, **policy) -> Queue:
        return Queue("q", Policy(**policy), Usage(limit), clock)

    return make_queue


@pytest.fixture
def address(clock):
    def make_address(
        kind: Kind = Kind.QUEUE, limit: int = 1 << 30, **policy
    ) -> Address:
        return Address("a", kind, Policy(**policy), Usage(limit), clock)

    return make_address


def attach(queue: Queue, *takers: Taker) -> None:
    for taker in takers:
        queue.subscribe(taker)
        if taker.credit:
            queue.ready(taker)


# -- queues


def test_messages_wait_for_a_consumer_and_keep_their_order(make):
    queue, taker = make(), Taker()
    for number in range(5):
        assert queue.put(message(number))
    assert (queue.depth, queue.waiting) == (5, 5)
    attach(queue, taker)
    for number in range(5, 10):
        queue.put(message(number))
    assert taker.bodies == list(range(10))
    assert (queue.depth, queue.waiting) == (10, 0)
    for entry in taker.entries:
        queue.done(entry)
    assert (queue.depth, queue.bytes) == (0, 0)


def test_forwarded_as_it_came(make):
    queue, taker = make(), Taker()
    attach(queue, taker)
    data = message("x", durable=True, address="somewhere", subject="s")
    queue.put(data)
    assert taker.data[0] is data


def test_consumers_take_turns(make):
    queue, takers = make(), [Taker(), Taker(), Taker()]
    attach(queue, *takers)
    for number in range(9):
        queue.put(message(number))
    assert [taker.bodies for taker in takers] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_only_who_has_credit_gets_messages(make):
    queue, poor, rich = make(), Taker(2), Taker()
    attach(queue, poor, rich)
    for number in range(10):
        queue.put(message(number))
    assert len(poor.data) == 2 and len(rich.data) == 8
    queue.not_ready(rich)
    queue.put(message("late"))
    assert queue.waiting == 1
    poor.credit = 1
    queue.ready(poor)
    assert poor.bodies[-1] == "late"


def test_what_comes_back_goes_out_first_and_in_order(make):
    queue, first = make(), Taker(5)
    attach(queue, first)
    for number in range(8):
        queue.put(message(number))
    queue.unsubscribe(first)
    for entry in reversed(first.entries):
        queue.give_back(entry, failed=False)
    second = Taker()
    attach(queue, second)
    assert second.bodies == list(range(8))


def test_the_header_says_how_often_it_failed(make):
    queue, taker = make(), Taker()
    attach(queue, taker)
    queue.put(message("x", priority=7))
    queue.give_back(taker.entries[0], failed=False)
    queue.give_back(taker.entries[1], failed=True)
    queue.give_back(taker.entries[2], failed=True)
    counts = [decoded(data).delivery_count for data in taker.data]
    assert counts == [0, 0, 1, 2]
    assert not decoded(taker.data[3]).first_acquirer
    assert decoded(taker.data[3]).priority == 7
    assert queue.depth == 1


def test_undeliverable_here_goes_elsewhere(make):
    queue, one, other = make(), Taker(), Taker()
    attach(queue, one)
    queue.put(message("x"))
    queue.give_back(one.entries[0], failed=True, excluded=one)
    assert len(one.data) == 1 and queue.waiting == 1
    queue.put(message("y"))  # what cannot be taken blocks nothing behind it
    assert one.bodies == ["x", "y"]
    attach(queue, other)
    assert other.bodies == ["x"]
    assert decoded(other.data[0]).delivery_count == 1


def test_undeliverable_for_all_waits_for_somebody_else(make):
    queue, one, other = make(), Taker(), Taker()
    attach(queue, one, other)
    queue.put(message("x"))
    queue.give_back(one.entries[0], failed=False, excluded=one)
    queue.give_back(other.entries[0], failed=False, excluded=other)
    assert queue.waiting == 1
    assert (len(one.data), len(other.data)) == (1, 1)
    # A link that comes again is another link.
    queue.unsubscribe(one)
    again = Taker()
    attach(queue, again)
    assert again.bodies == ["x"]


def test_who_refused_and_left_does_not_keep_it_from_the_rest(make):
    queue, one, other = make(), Taker(), Taker()
    attach(queue, one)
    queue.put(message("x"))
    queue.give_back(one.entries[0], failed=False, excluded=one)
    queue.unsubscribe(one)
    attach(queue, other)
    assert other.bodies == ["x"]


def test_a_message_too_large_for_one_consumer_goes_to_another(make):
    queue, small, large = make(), Taker(limit=100), Taker()
    attach(queue, small)
    queue.put(message("x" * 200))
    queue.put(message("y"))
    assert small.bodies == ["y"]
    attach(queue, large)
    assert large.bodies == ["x" * 200]


def test_too_old_is_not_delivered(make, clock):
    queue, taker = make(), Taker()
    queue.put(message("old"), clock.now + 5)
    queue.put(message("young"), clock.now + 50)
    queue.put(message("ageless"))
    clock.now += 5
    attach(queue, taker)
    assert taker.bodies == ["young", "ageless"]
    assert queue.depth == 2


def test_too_old_is_dropped_while_it_waits(make, clock):
    queue, taker = make(), Taker(1)
    attach(queue, taker)
    for number in range(6):
        queue.put(message(number), clock.now + number + 1)
    queue.unsubscribe(taker)
    queue.give_back(taker.entries[0], failed=False)
    assert queue.depth == 6
    for age in range(1, 7):
        queue.expire(clock.now + age)
        assert queue.depth == 6 - age
    assert queue.bytes == 0


def test_what_is_with_a_consumer_does_not_expire_there(make, clock):
    queue, taker = make(), Taker()
    attach(queue, taker)
    queue.put(message("x"), clock.now + 1)
    clock.now += 10
    queue.expire(clock.now)
    assert queue.depth == 1
    queue.give_back(taker.entries[0], failed=False)
    assert len(taker.data) == 1 and queue.depth == 0


def test_the_ttl_goes_down_while_it_waits(address, clock):
    node, taker = address(), Taker()
    node.send(message("x", ttl=10.0))
    clock.now += 4
    attach(node.plain, taker)
    assert decoded(taker.data[0]).ttl == pytest.approx(6)
    clock.now += 5
    node.plain.give_back(taker.entries[0], failed=True)
    assert decoded(taker.data[1]).ttl == pytest.approx(1)


def test_a_ttl_is_never_written_as_none(make, clock):
    queue, taker = make(), Taker()
    queue.put(message("x", ttl=10.0), clock.now + 0.0004)
    attach(queue, taker)
    assert decoded(taker.data[0]).ttl == 0.001


def test_the_queues_own_ttl(make, clock):
    queue, taker = make(message_ttl=5.0), Taker()
    queue.put(message("x"))
    queue.put(message("y", ttl=60.0), clock.now + 60)
    queue.put(message("z", ttl=1.0), clock.now + 1)
    clock.now += 2
    queue.expire(clock.now)
    assert queue.depth == 2
    clock.now += 3
    attach(queue, taker)
    assert taker.data == []


def test_purging(make):
    queue, taker = make(), Taker(1)
    attach(queue, taker)
    for number in range(5):
        queue.put(message(number))
    assert queue.purge() == 4
    assert queue.depth == 1
    queue.done(taker.entries[0])
    assert (queue.depth, queue.bytes) == (0, 0)


def test_what_comes_back_to_a_deleted_queue_is_dropped(make):
    queue, taker = make(), Taker()
    attach(queue, taker)
    queue.put(message("x"))
    queue.delete()
    queue.give_back(taker.entries[0], failed=True)
    assert queue.depth == 0 and len(taker.data) == 1


def test_many_that_come_back_in_order_go_out_in_order(make):
    queue, taker = make(), Taker(50_000)
    attach(queue, taker)
    data = message("x")
    for _ in range(50_000):
        queue.put(data)
    queue.unsubscribe(taker)
    for entry in taker.entries:
        queue.give_back(entry, failed=False)
    again = Taker(50_001)
    attach(queue, again)
    assert [e.sequence for e in again.entries] == list(range(1, 50_001))


# -- limits


def test_room_ends_and_comes_back(make):
    queue, taker, told = make(max_messages=8), Taker(), []
    queue.on_room = lambda: told.append(queue.depth)
    for number in range(8):
        assert queue.room() == 8 - number
        queue.put(message(number))
    assert queue.room() == 0
    attach(queue, taker)
    assert queue.room() == 0, "what is with a consumer counts"
    for entry in taker.entries:
        queue.done(entry)
    assert told == [6], "told once, when it is well below the limit"
    assert queue.room() == 8


def test_room_in_bytes(make):
    data = message("x" * 100)
    queue, taker = make(max_bytes=3 * len(data)), Taker()
    for _ in range(3):
        assert queue.room() > 0
        queue.put(data)
    assert queue.room() == 0
    attach(queue, taker)
    for entry in taker.entries[:1]:
        queue.done(entry)
    assert queue.room() > 0


def test_room_in_all_queues_together(clock):
    data = message("x" * 100)
    usage = Usage(2 * (len(data) + MESSAGE_OVERHEAD))
    told = []
    queues = [Queue(name, Policy(), usage, clock) for name in "ab"]
    for queue in queues:
        queue.on_room = lambda queue=queue: told.append(queue.name)
        assert queue.room() > 0
        queue.put(data)
    assert [queue.room() for queue in queues] == [0, 0]
    taker = Taker()
    attach(queues[0], taker)
    queues[0].done(taker.entries[0])
    assert sorted(told) == ["a", "b"]


def test_dropping_the_oldest(make, caplog):
    queue = make(max_messages=3, drop_oldest=True)
    for number in range(10):
        queue.put(message(number))
        assert queue.room() > 0
    taker = Taker()
    attach(queue, taker)
    assert taker.bodies == [7, 8, 9]
    assert caplog.text.count("dropped") == 1


def test_max_length_drops_the_oldest_that_waits(make):
    queue, taker = make(max_length=2), Taker(1)
    attach(queue, taker)
    for number in range(5):
        assert queue.put(message(number))
    taker.credit = 10
    queue.ready(taker)
    assert taker.bodies == [0, 3, 4]


def test_max_length_refuses_the_newest(make):
    queue = make(max_length=2, refuse_newest=True)
    assert [queue.put(message(number)) for number in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    taker = Taker()
    attach(queue, taker)
    assert taker.bodies == [0, 1]


def test_max_length_of_none_at_all(make):
    queue, taker = make(max_length=0), Taker()
    assert queue.put(message("gone"))
    assert queue.depth == 0
    attach(queue, taker)
    queue.put(message("there"))
    assert taker.bodies == ["there"]


# -- addresses


def test_a_topic_gives_everybody_a_copy(address):
    node, takers = address(Kind.TOPIC), [Taker(), Taker()]
    assert node.send(message("nobody")) is Outcome.ACCEPTED
    for taker in takers:
        node.subscribe(taker).ready(taker)
    node.send(message("all"))
    assert [taker.bodies for taker in takers] == [["all"], ["all"]]


def test_a_slow_receiver_of_a_topic_slows_nobody(address):
    node, slow, fast = address(Kind.TOPIC, max_messages=3), Taker(0), Taker()
    queue = node.subscribe(slow)
    node.subscribe(fast).ready(fast)
    for number in range(10):
        assert node.room() > 0
        node.send(message(number))
    assert fast.bodies == list(range(10))
    slow.credit = 100
    queue.ready(slow)
    assert slow.bodies == [7, 8, 9]


def test_a_receiver_that_leaves_a_topic_leaves_nothing(address):
    node, taker = address(Kind.TOPIC), Taker(0)
    queue = node.subscribe(taker)
    node.send(message("x"))
    node.unsubscribe(taker, queue)
    assert node.queues == [] and queue.deleted and queue.depth == 0
    assert node.idle


def test_a_queue_has_one_copy(address):
    node, takers = address(), [Taker(), Taker()]
    for taker in takers:
        node.subscribe(taker).ready(taker)
    for number in range(4):
        node.send(message(number))
    assert [taker.bodies for taker in takers] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("kind", Kind)
def test_each_bound_queue_has_a_copy(address, kind):
    node = address(kind)
    queues = [node.bind(name, Policy()) for name in ("one", "two")]
    takers = [Taker(), Taker(), Taker()]
    attach(queues[0], takers[0], takers[1])
    attach(queues[1], takers[2])
    for number in range(4):
        node.send(message(number))
    assert [taker.bodies for taker in takers] == [[0, 2], [1, 3], [0, 1, 2, 3]]


def test_a_bound_queue_keeps_messages_while_nobody_listens(address):
    node = address()
    queue = node.bind("pool", Policy())
    node.send(message("x"))
    taker = Taker()
    attach(queue, taker)
    assert taker.bodies == ["x"]


def test_the_plain_queue_beside_bound_queues(address):
    node = address()
    node.send(message("before"))
    assert node.plain.depth == 1
    node.bind("pool", Policy())
    node.send(message("for the pool"))
    assert node.plain.depth == 1, "nobody ever received from it"
    taker = Taker()
    node.subscribe(taker).ready(taker)
    node.send(message("for both"))
    assert taker.bodies == ["before", "for both"]
    node.unsubscribe(taker, node.plain)
    node.send(message("kept"))
    assert node.plain.depth == 1 + 2, "once it had a receiver, it keeps"
    node.unbind("pool")
    assert node.bound == {}


def test_sending_to_a_bound_queue_alone(address):
    node = address()
    target = BoundTarget(node, node.bind("pool", Policy(message_ttl=60.0)))
    other = node.bind("other", Policy())
    assert target.send(message("x", ttl=1.0)) is Outcome.ACCEPTED
    assert (target.queue.depth, other.depth, node.plain.depth) == (1, 0, 0)
    assert target.room() > 0


def test_sending_to_a_bound_queue_that_has_gone(address):
    node = address()
    target = BoundTarget(node, node.bind("pool", Policy()))
    node.unbind("pool")
    assert target.room() > 0
    assert target.send(message("lost otherwise")) is Outcome.GONE
    again = node.bind("pool", Policy())
    assert target.send(message("x")) is Outcome.ACCEPTED
    assert again.depth == 1


def test_sending_to_an_address_that_has_gone(address):
    node = address()
    node.delete()
    assert node.send(message("x")) is Outcome.GONE


def test_a_bound_queue_that_goes_with_its_last_receiver(address):
    node = address()
    queue = node.bind("pool", Policy())
    queue.auto_delete = True
    takers = Taker(0), Taker(0)
    attach(queue, *takers)
    node.send(message("x"))
    node.unsubscribe(takers[0], queue)
    assert node.bound
    node.unsubscribe(takers[1], queue)
    assert not node.bound and queue.deleted


def test_queues_expire_when_nobody_receives_for_long(address, clock):
    node = address(expires=10.0)
    queue = node.bind("pool", Policy(expires=5.0))
    taker = Taker(0)
    attach(queue, taker)
    clock.now += 100
    assert node.expire(clock.now) is False, "the bound queue is in use"
    assert node.bound
    node.unsubscribe(taker, queue)
    clock.now += 4
    node.expire(clock.now)
    assert node.bound
    clock.now += 1
    assert node.expire(clock.now) is True
    assert not node.bound


def test_room_is_that_of_the_fullest_queue_that_counts(address):
    node = address(max_messages=100)
    node.bind("pool", Policy(max_messages=2))
    assert node.room() == 2
    resumed = []
    node.send(message("x"))
    node.send(message("x"))
    assert node.room() == 0
    node.when_room(lambda: resumed.append(True))
    node.unbind("pool")
    assert resumed == [True]
    assert node.room() == 100


def test_a_policy_that_refuses(address):
    node = address(max_length=1, refuse_newest=True)
    assert node.send(message("x")) is Outcome.ACCEPTED
    assert node.send(message("x")) is Outcome.REFUSED


def test_what_is_no_message_is_refused(address):
    with pytest.raises(encoding.Malformed):
        address().send(b"\xff\xff")


def test_idle_is_what_could_be_made_anew(address):
    node, taker = address(), Taker()
    assert node.idle
    node.senders = 1
    assert not node.idle
    node.senders = 0
    queue = node.subscribe(taker)
    assert not node.idle
    node.unsubscribe(taker, queue)
    assert node.idle
    node.send(message("x"))
    assert not node.idle
    node.plain.purge()
    node.bind("pool", Policy())
    assert not node.idle


def test_a_deleted_address_wakes_its_senders(address):
    node, resumed = address(max_messages=1), []
    node.send(message("x"))
    assert node.room() == 0
    node.when_room(lambda: resumed.append(True))
    node.delete()
    assert resumed and node.send(message("x")) is Outcome.GONE


# -- anything that may happen, in any order


class Store(RuleBasedStateMachine):
    """Nothing is lost, nothing is with two consumers at a time, all is counted."""

    consumers = Bundle("consumers")
    deliveries = Bundle("deliveries")

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.usage = Usage(1 << 30)
        self.queue = Queue("q", Policy(), self.usage, self.clock)
        self.sent = 0
        self.done: set[int] = set()
        self.expired: dict[int, float] = {}
        self.takers: list[Taker] = []
        self.refused: set[tuple[int, int]] = set()

    def held(self) -> list:
        return [(taker, entry) for taker in self.takers for entry in taker.entries]

    def pick(self, index: int):
        held = self.held()
        return held[index % len(held)] if held else None

    @rule(ttl=st.none() | st.integers(1, 20))
    def put(self, ttl):
        self.sent += 1
        expires = None if ttl is None else self.clock.now + ttl
        if expires is not None:
            self.expired[self.sent] = expires
        self.queue.put(message(self.sent), expires)

    @rule(target=consumers, credit=st.integers(0, 5))
    def subscribe(self, credit):
        taker = Taker(credit)
        self.takers.append(taker)
        self.queue.subscribe(taker)
        if credit:
            self.queue.ready(taker)
        return taker

    @rule(taker=consumers, credit=st.integers(1, 5))
    def grant(self, taker, credit):
        if taker in self.takers:
            taker.credit += credit
            self.queue.ready(taker)

    @rule(taker=consumers)
    def take_credit_back(self, taker):
        if taker in self.takers:
            taker.credit = 0
            self.queue.not_ready(taker)

    @rule(index=st.integers(0, 100))
    def settle(self, index):
        if picked := self.pick(index):
            taker, entry = picked
            taker.entries.remove(entry)
            self.queue.done(entry)
            self.done.add(entry.sequence)

    @rule(index=st.integers(0, 100), failed=st.booleans(), here=st.booleans())
    def give_back(self, index, failed, here):
        if picked := self.pick(index):
            taker, entry = picked
            taker.entries.remove(entry)
            self.queue.give_back(entry, failed, taker if here else None)

    @rule(target=deliveries, taker=consumes(consumers))
    def unsubscribe(self, taker):
        if taker in self.takers:
            self.takers.remove(taker)
            self.queue.unsubscribe(taker)
            for entry in taker.entries:
                self.queue.give_back(entry, failed=True)
        return multiple()

    @rule(seconds=st.integers(1, 10), sweep=st.booleans())
    def time_goes_by(self, seconds, sweep):
        self.clock.now += seconds
        if sweep:
            self.queue.expire(self.clock.now)

    @invariant()
    def all_is_counted(self):
        queue = self.queue
        held = [entry for _, entry in self.held()]
        assert len({id(entry) for entry in held}) == len(held)
        assert queue.depth == queue.waiting + len(held)
        assert queue.bytes >= 0
        assert self.usage.bytes == queue.bytes + MESSAGE_OVERHEAD * queue.depth

    @invariant()
    def nothing_is_lost(self):
        accounted = self.done | {entry.sequence for _, entry in self.held()}
        queue = self.queue
        waiting = [*queue._waiting, *queue._picky]
        waiting += [entry for _, entry in queue._returned]
        accounted |= {entry.sequence for entry in waiting}
        for number in range(1, self.sent + 1):
            if number not in accounted:
                assert self.expired.get(number, float("inf")) <= self.clock.now

    @invariant()
    def nobody_with_credit_waits_for_what_is_there(self):
        queue = self.queue
        now = self.clock.now
        waiting = [*queue._waiting, *queue._picky]
        waiting += [entry for _, entry in queue._returned]
        for taker in self.takers:
            assert taker.listed == (taker.credit > 0)
            if taker.credit:
                for entry in waiting:
                    too_old = entry.expires is not None and entry.expires <= now
                    assert too_old or taker in (entry.excluded or ())


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=100, stateful_step_count=40)
