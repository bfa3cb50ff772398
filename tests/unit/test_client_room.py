# SPDX-License-Identifier: Apache-2.0
"""More subscriptions than a connection holds, and links that may be refused."""

import contextlib

import pytest
from oslo_messaging import Target

from greenamqp.buses import PREDECESSOR
from greenamqp.client import Destination, subscription
from greenamqp.client.receiving import HANDOVER, Leaving
from greenamqp.client.subscription import LEFT_FOR_ROOM
from greenamqp.client.turns import MAX_DOUBTFUL
from greenamqp.connection import life
from greenamqp.connection.state import State
from greenamqp.engine import ACCEPTED, RELEASED, Message
from tests.unit import fakes
from tests.unit.test_client_receive import Consumer

#: A peer that leaves subscriptions two sessions.
SMALL = {"channel_max": subscription.KEPT_SESSIONS + 1}


@pytest.fixture(autouse=True)
def two_links_in_a_session(monkeypatch):
    """So that a connection to such a peer holds four links of subscriptions."""
    monkeypatch.setattr(life, "LINKS_PER_SESSION", 2)


def living(s):
    """The peers of all connections there are."""
    return [peer for peer in s.world.peers if not peer.gone]


def held(s):
    """What is received over each of them."""
    return [
        {name for name, link in peer.outbound.items() if fakes.attached(link)}
        for peer in living(s)
    ]


def consumers(s, count, first=0):
    """So many subscriptions of two links."""
    numbers = range(first, first + count)
    made = [Consumer(s, f"a{number}", f"b{number}") for number in numbers]
    s.world.settle()
    return made


def test_a_connection_is_made_only_where_one_is_full(caplog):
    caplog.set_level("INFO")
    with fakes.setting(network=SMALL) as s:
        made = consumers(s, 2)
        assert len(living(s)) == 1
        made += consumers(s, 3, 2)
        assert [len(names) for names in held(s)] == [4, 4, 2]
        assert all(each.subscription.attached for each in made)
        assert caplog.text.count("connecting once more") == 2


def test_subscriptions_that_came_before_the_connection():
    with fakes.setting(network=SMALL) as s:
        made = [Consumer(s, f"a{number}", f"b{number}") for number in range(5)]
        s.world.settle()
        assert [len(names) for names in held(s)] == [4, 4, 2]
        assert all(each.subscription.attached for each in made)


def test_messages_come_and_are_settled_over_every_connection():
    with fakes.setting(network=SMALL) as s:
        made = consumers(s, 5)
        for peer in living(s):
            for name in list(peer.outbound):
                peer.send(name, Message(name))
        s.world.settle()
        assert [sorted(each.bodies) for each in made] == [
            [f"a{number}", f"b{number}"] for number in range(5)
        ]
        for each in made:
            assert each.settle() and each.settle()
        s.world.settle()
        outcomes = [[outcome for _, outcome in peer.outcomes] for peer in living(s)]
        assert outcomes == [[ACCEPTED] * 4, [ACCEPTED] * 4, [ACCEPTED] * 2]


def test_what_is_sent_and_called_goes_over_the_first():
    with fakes.setting(network=SMALL) as s:
        consumers(s, 5)
        first, *others = living(s)
        s.up()
        call = s.call()
        s.world.settle()
        first.reply(first.received[-1], '{"result": 1}')
        s.world.settle()
        assert call.result() == '{"result": 1}'
        assert not any(peer.received for peer in others)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_one_connection_is_lost_and_the_others_go_on(lost):
    with fakes.setting(network=SMALL) as s:
        made = consumers(s, 5)
        before = held(s)
        peers = living(s)
        peers[lost].cut()
        s.world.settle()
        assert [each.subscription.attached for each in made].count(False) in (1, 2)
        s.world.advance(5)
        assert all(each.subscription.attached for each in made)
        assert sorted(map(sorted, held(s))) == sorted(map(sorted, before))
        assert [peer in living(s) for peer in peers].count(False) == 1


def test_all_connections_are_lost():
    with fakes.setting(network=SMALL) as s:
        made = consumers(s, 5)
        for peer in living(s):
            peer.cut()
        s.world.advance(5)
        assert sorted(map(len, held(s))) == [2, 4, 4]
        assert all(each.subscription.attached for each in made)


def test_unsubscribing_makes_room():
    with fakes.setting(network=SMALL) as s:
        made = consumers(s, 5)
        for each in made[1:3]:
            s.client.unsubscribe(each.subscription)
        s.world.settle()
        assert [len(names) for names in held(s)] == [2, 2, 2]
        made = consumers(s, 2, 5)
        assert [len(names) for names in held(s)] == [4, 4, 2]
        assert all(each.subscription.attached for each in made)
        s.client.unsubscribe(made[0].subscription)
        s.client.unsubscribe(made[0].subscription)
        s.world.settle()
        assert [len(names) for names in held(s)] == [2, 4, 2]


def test_one_that_is_too_large_for_any_connection():
    with fakes.setting(network=SMALL, link_retry_delay=9) as s:
        names = [f"n{number}" for number in range(25)]
        large = Consumer(s, *names)
        s.world.settle()
        # All sessions are its, and what does not fit waits.
        assert [len(names) for names in held(s)] == [20]
        assert not large.subscription.attached
        assert "sessions of 2 links" in large.subscription.refusal
        small = Consumer(s, "other")
        s.world.settle()
        assert small.subscription.attached
        assert len(living(s)) == 2


def test_a_listener_on_a_further_connection():
    with fakes.driver(network=SMALL) as s:
        listeners = [s.listen(Target(topic=f"t{n}", server="s")) for n in range(3)]
        assert len(living(s)) == 3
        peer = living(s)[2]
        name = next(name for name in peer.outbound if "t2" in name)
        peer.send(name, PREDECESSOR.request({"method": "m"}, {}, "id"))
        s.world.settle()
        polling = s.world.go(listeners[2].poll, timeout=0)
        s.world.settle()
        (incoming,) = polling.result()
        incoming.acknowledge()
        s.world.settle()
        assert [outcome for _, outcome in peer.outcomes] == [ACCEPTED]
        listeners[2].cleanup()
        s.world.settle()
        assert held(s)[2] == set()


def test_closing_while_a_further_connection_is_made():
    with fakes.setting(network=SMALL) as s:
        s.up()
        s.world.peers[-1].answer = True
        made = [Consumer(s, f"a{number}", f"b{number}") for number in range(5)]
        closing = s.world.go(s.world.run, s.client.closing())
        s.world.advance(10)
        assert closing.result() is None
        assert not any(each.subscription.attached for each in made)
        assert not living(s)


def test_the_link_for_replies_waits_for_room():
    with fakes.setting(network={"channel_max": 0}, link_retry_delay=5) as s:
        for name in "ab":
            task = s.notify(destination=Destination.reply(name))
            s.world.settle()
            assert task.result() is None
        call = s.call()
        s.world.settle()
        assert "1 sessions of 2 links" in s.client.replies.refusal
        s.world.advance(6)
        s.peer.reply(s.peer.received[-1], '{"result": 1}')
        s.world.settle()
        assert call.result() == '{"result": 1}'


@pytest.mark.parametrize("old", [False, True], ids=["in use", "not used for long"])
def test_room_for_what_sends(old, caplog):
    """What was used a moment ago is soon wanted again: sooner a subscription goes."""
    with fakes.setting() as s:
        made = consumers(s, 2)
        senders = [Destination.reply(name) for name in ("s0", "s1", "s2", "s3")]
        for each in senders:
            s.notify(destination=each)
            s.world.settle()
        if old:
            s.world.advance(LEFT_FOR_ROOM + 1)
        first = s.peer
        first.refuse["more"] = ("amqp:resource-limit-exceeded", "too many links")
        task = s.notify(destination=Destination.reply("more"))
        s.world.settle()
        kept = [name for name in ("s0", "s1", "s2", "s3") if name in first.inbound]
        attached = [name for name in kept if fakes.attached(first.inbound[name])]
        assert attached == (["s2", "s3"] if old else ["s0", "s1", "s2", "s3"])
        assert len(living(s)) == (1 if old else 2)
        assert all(each.subscription.attached for each in made)
        first.refuse.clear()
        s.world.advance(1)
        assert task.result() is None
        assert [each for each in caplog.records if each.levelname == "WARNING"] == []


def test_what_is_on_its_way_to_a_subscription_that_goes_is_given_back(monkeypatch):
    """Or a router would tell who sent it that its consumer was lost."""
    with fakes.setting() as s:
        made = consumers(s, 2)
        first = s.peer
        old = first.outbound["b1"]
        give_back = Leaving.give_back

        def after_one_more(link):
            if "[b1]" in link._link.name:
                first.send("b1", Message("late"))
                first.work()  # before it hears of that
            give_back(link)

        monkeypatch.setattr(Leaving, "give_back", after_one_more)
        first.refuse["more"] = FULL
        task = s.notify(destination=Destination.reply("more"))
        s.world.settle()
        assert [outcome for _, outcome in first.outcomes] == [RELEASED]
        assert made[1].bodies == []
        assert made[1].subscription.attached
        first.refuse.clear()
        s.world.advance(1)
        assert task.result() is None
        assert not fakes.attached(old)


def displaced(s, **further):
    """Three subscriptions, of which the last one has to go, to a connection that is
    made so; and a notification that wants the room."""
    made = consumers(s, 3)
    s.network.script.append(further)
    s.peer.refuse["more"] = FULL
    task = s.notify(destination=Destination.reply("more"))
    s.world.settle()
    assert len(living(s)) == 2
    return made, task


def test_a_subscription_that_goes_is_always_somewhere():
    """What is sent to all in between would miss it."""
    with fakes.setting() as s:
        made, task = displaced(s, answer=False)
        first, further = living(s)
        # However often room is wanted meanwhile, it is made once.
        s.world.advance(HANDOVER / 2)
        assert len(held(s)[0]) == 6
        first.send("b2", Message("meanwhile"))
        s.world.settle()
        assert made[2].bodies == ["meanwhile"]
        further.answer_links()
        s.world.settle()
        assert made[2].subscription.attached
        further.send("b2", Message("after"))
        s.world.settle()
        assert made[2].bodies == ["meanwhile", "after"]
        made[2].settle()
        made[2].settle()
        s.world.settle()
        assert [outcome for _, outcome in first.outcomes] == [ACCEPTED]
        first.refuse.clear()
        s.world.advance(1)
        assert held(s) == [{"a0", "b0", "a1", "b1"}, {"a2", "b2"}]
        assert task.result() is None


def test_who_needs_the_room_does_not_wait_for_a_bus_that_does_not_answer():
    with fakes.setting() as s:
        made, task = displaced(s, answer=False)
        first = living(s)[0]
        s.world.advance(HANDOVER + 1)
        assert held(s)[0] == {"a0", "b0", "a1", "b1"}
        first.refuse.clear()
        s.world.advance(1)
        assert task.result() is None
        assert not made[2].subscription.attached


@pytest.mark.parametrize("lost", [False, True])
def test_the_end_of_what_a_subscription_leaves(lost):
    with fakes.setting() as s:
        made, task = displaced(s, answer=False)
        first, further = living(s)
        first.refuse.clear()
        if lost:
            first.cut()
        else:
            s.client.unsubscribe(made[2].subscription)
        further.answer_links()
        s.world.advance(5)
        rest = {"a2", "b2"} if lost else set()
        assert held(s) in (
            [{"a0", "b0", "a1", "b1"}, rest],
            [rest, {"a0", "b0", "a1", "b1"}],
        )
        assert task.result() is None


def test_what_is_sent_to_all_and_comes_over_both_connections_is_executed_once():
    with fakes.driver() as s:
        s.listen(Target(topic="t0", server="s"))
        listener = s.listen(Target(topic="t1", server="s"))
        s.network.script.append({"answer": False})
        s.driver.client.room.make()
        s.world.settle()
        first, further = living(s)
        (name,) = (each for each in held(s)[0] if each == "broadcast.openstack.t1.all")
        copy = Message('{"request": {}}', id="i" * 32)
        first.send(name, copy)
        further.answer_links()
        further.work()
        s.world.settle()
        further.send(name, copy)
        s.world.settle()
        polling = s.world.go(listener.poll, timeout=0, batch_size=10)
        s.world.settle()
        (incoming,) = polling.result()
        incoming.acknowledge()
        s.world.advance(1)
        outcomes = [[outcome for _, outcome in peer.outcomes] for peer in living(s)]
        assert outcomes == [[ACCEPTED], [ACCEPTED]]


def test_a_subscription_goes_while_the_connection_is_lost():
    with fakes.setting() as s:
        made = consumers(s, 2)
        first = s.peer
        first.refuse["more"] = FULL
        s.notify(destination=Destination.reply("more"))
        s.world.settle()
        assert fakes.attached(first.outbound["b1"])
        first.cut()
        s.world.advance(10)
        assert all(each.subscription.attached for each in made)


#: Such a bus refuses a link in that it attaches and then detaches it.
ROUTER = {"product": "qpid-dispatch-router", "attaches_first": True}
FULL = ("amqp:resource-limit-exceeded", "disallowed by policy")


def test_what_a_router_does_not_let_in_is_received_over_another_connection():
    with fakes.setting(network=ROUTER) as s:
        kept = Consumer(s, "kept")
        s.world.settle()
        s.peer.refuse["more"] = FULL
        moved = Consumer(s, "more")
        s.world.settle()
        assert held(s) == [{"kept"}, {"more"}]
        assert kept.subscription.attached and moved.subscription.attached


def test_room_for_replies_where_a_router_allows_no_more():
    with fakes.setting(network=ROUTER) as s:
        s.notify(destination=Destination.reply("idle"))
        s.world.settle()
        s.peer.refuse[""] = FULL
        call = s.call()
        s.world.settle()
        assert "disallowed by policy" in s.client.replies.refusal
        assert "idle" not in s.peer.inbound
        s.peer.refuse.clear()
        s.world.advance(1)
        s.peer.reply(s.peer.received[-1], '{"result": 1}')
        s.world.settle()
        assert call.result() == '{"result": 1}'


# -- links that may be refused


def test_refused_links_take_no_sessions_from_others():
    network = {"product": "RabbitMQ", "channel_max": 15}
    with fakes.setting(network=network, link_retry_delay=9) as s:
        s.up()
        names = [f"n{number}" for number in range(16)]
        s.peer.refuse.update(dict.fromkeys(names, ("amqp:not-found", "no such queue")))
        consumer = Consumer(s, *names)
        s.world.advance(10)
        assert not consumer.subscription.attached
        assert "no such queue" in consumer.subscription.refusal
        # Each of them was tried twice, the second time in a session of its own.
        assert sorted(s.peer.attaches[-32:]) == sorted(2 * names)
        assert s.client.connection.engine.session_count <= 8 + MAX_DOUBTFUL
        s.peer.refuse.clear()
        s.world.advance(10)
        assert consumer.subscription.attached
        s.world.advance(10)
        # They share sessions again.
        others = Consumer(s, *(f"o{number}" for number in range(4)))
        s.world.settle()
        assert others.subscription.attached
        assert s.client.connection.state is State.UP


@contextlib.contextmanager
def all_turns_taken(count):
    """A world, and so many subscriptions whose links were refused: those of the first
    have all turns, the others wait, and nobody answers."""
    with fakes.setting(network={"product": "RabbitMQ"}, link_retry_delay=9) as s:
        s.up()
        names = [f"n{number}" for number in range(count * MAX_DOUBTFUL)]
        s.peer.refuse.update(dict.fromkeys(names, ("amqp:not-found", "no such queue")))
        made = [
            Consumer(s, *names[first : first + MAX_DOUBTFUL])
            for first in range(0, len(names), MAX_DOUBTFUL)
        ]
        s.world.settle()
        s.peer.refuse.clear()
        s.peer.answer = False
        s.world.advance(10)
        yield s, [each.subscription for each in made]


def test_a_doubtful_link_that_is_wanted_no_longer_gives_up_its_turn():
    with all_turns_taken(2) as (s, (first, second)):
        s.client.unsubscribe(first)
        s.peer.answer_links()
        s.world.settle()
        assert second.attached


def test_a_link_that_lets_its_turn_pass_holds_up_nobody():
    with all_turns_taken(3) as (s, (first, second, third)):
        second.stop()  # the next turns would be its
        s.client.unsubscribe(first)
        s.peer.answer_links()
        s.world.settle()
        assert third.attached
