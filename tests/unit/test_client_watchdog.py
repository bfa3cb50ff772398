# SPDX-License-Identifier: Apache-2.0
"""A bus that stands still in a session: what waits there goes on elsewhere; and one
that does not answer at all.

The peer says that it is a RabbitMQ, and has the addresses of the predecessor.
"""

import contextlib

import pytest
from oslo_messaging import Target, exceptions

from greenamqp import buses
from greenamqp.buses import Node, identify
from greenamqp.client import Destination
from greenamqp.client.context import GIVEN_UP_AFTER
from greenamqp.client.pursuit import FORGOTTEN_AFTER, LONGEST, Pursuits
from greenamqp.client.replies import Replies
from greenamqp.client.wanted import Phase
from greenamqp.client.watchdog import HASTE, HASTE_LASTS, HASTY_SESSIONS
from greenamqp.connection.failover import Host
from greenamqp.connection.state import State
from greenamqp.engine import ACCEPTED, Int, Message, Sender
from tests.unit import fakes
from tests.unit.test_client_receive import Consumer

PATIENCE = identify("RabbitMQ").patience
#: By then it was noticed.
NOTICED = 1.5 * PATIENCE + 0.1

GOOD = Destination.reply("good")
BAD = Destination.reply("bad")


def rabbit(**options):
    options.setdefault("network", {"product": "RabbitMQ"})
    return fakes.setting(addressing_mode="legacy", **options)


def deaf_to(s, *bodies):
    """What these say has no outcome, over this connection and those to come."""

    def outcome(message):
        return None if message.body in bodies else ACCEPTED

    s.peer.outcome = s.network.default["outcome"] = outcome


def received(s, body):
    """How often a bus got this, over each connection."""
    return [
        sum(each.message.body == body for each in peer.received)
        for peer in s.network.peers
    ]


def test_only_where_a_bus_has_to_answer():
    assert identify("qpid-dispatch-router").patience is None
    assert identify("greenamqp").patience is None
    with fakes.setting() as s:
        s.up()
        deaf_to(s, "bad")
        task = s.notify("bad", timeout=600)
        s.world.advance(500)
        assert not task.done
        assert s.peer.attaches.count(s.peer.received[-1].address) == 1


def test_other_destinations_go_on_in_another_session(caplog):
    with rabbit() as s:
        s.up()
        consumer = Consumer(s, "queue")
        s.notify("x", destination=GOOD)
        s.world.settle()
        deaf_to(s, "bad")
        s.notify("bad", destination=BAD, timeout=PATIENCE * 3)
        s.world.settle()
        before = s.client.connection.engine
        assert s.client.connection.engine.session_count == 1
        s.world.advance(NOTICED)
        assert f"did not answer within {PATIENCE:g} s" in caplog.text
        s.world.advance(1)
        assert consumer.subscription.attached
        task = s.notify("y", destination=GOOD)
        s.world.settle()
        assert task.result() is None
        # The same connection, in which the two have a session each.
        assert s.client.connection.engine is before
        good, bad = (s.peer.inbound[name] for name in ("good", "bad"))
        assert good._session is not bad._session


def test_a_notification_is_pursued_and_fails_in_time():
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        task = s.notify("bad", destination=BAD, timeout=PATIENCE * 9)
        s.world.advance(PATIENCE * 9 - 0.1)
        assert not task.done
        # In a new session, over a new connection, and over another after twice as long.
        assert received(s, "bad") == [2, 1, 1]
        s.world.advance(0.2)
        with pytest.raises(TimeoutError, match="did not answer within"):
            task.result()


def test_a_notification_arrives_when_the_bus_answers_again():
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        task = s.notify("bad", destination=BAD, timeout=PATIENCE * 6)
        s.world.advance(NOTICED)
        assert not task.done
        _, again = s.peer.received
        again.link.settle(again.delivery)
        s.world.settle()
        assert task.result() is None
        # And the session that it had alone may have others.
        link = s.peer.inbound["bad"]
        more = s.notify("more", destination=Destination.reply("more"))
        s.world.settle()
        assert more.result() is None
        assert s.peer.inbound["more"]._session is link._session


def test_what_needs_no_outcome_asks_for_one_once_in_a_while():
    # A session loses what it is sent, without a word: replies with everything else.
    with rabbit() as s:
        s.up()
        deaf_to(s, "reply")
        for _ in range(3):
            s.post("reply", destination=BAD, settled=True)
            s.world.settle()
        session = s.peer.inbound["bad"]._session
        assert s.client.describe()[0]["senders"][-1]["unsettled"] == 1
        s.world.advance(NOTICED)
        s.post("reply", destination=BAD, settled=True)
        s.world.settle()
        assert s.peer.inbound["bad"]._session is not session
        # Each was sent once.
        assert received(s, "reply") == [4]


def test_what_must_not_arrive_twice_fails():
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        task = s.cast("bad", destination=BAD, timeout=PATIENCE * 6)
        s.world.advance(NOTICED)
        with pytest.raises(
            exceptions.MessageDeliveryFailure, match="whether it arrived is unknown"
        ):
            task.result()


def test_a_link_whose_outcomes_come_slowly_is_not_left():
    with rabbit() as s:
        s.up()
        waiting = []
        s.peer.outcome = lambda message: None
        tasks = [s.notify(str(n), destination=GOOD, timeout=900) for n in range(6)]
        s.world.settle()
        waiting = list(s.peer.received)
        for each in waiting:
            s.world.advance(PATIENCE * 0.8)
            each.link.settle(each.delivery)
        s.world.settle()
        assert all(task.result() is None for task in tasks)
        assert len(s.peer.received) == len(waiting)


def test_an_attach_without_an_answer():
    with rabbit(link_retry_delay=5) as s:
        s.up()
        first = Consumer(s, "first")
        s.world.settle()
        s.peer.answer = False
        second, third = Consumer(s, "second"), Consumer(s, "third")
        s.world.settle()
        assert s.client.connection.engine.session_count == 1
        s.world.advance(PATIENCE - 0.1)
        s.peer.answer = True  # to other attaches than these
        s.world.advance(NOTICED)
        assert first.subscription.attached
        assert second.subscription.attached
        assert third.subscription.attached
        s.peer.send("second", Message("x"))
        s.world.settle()
        assert second.bodies == ["x"]
        assert s.client.connection.state is State.UP


def test_many_attaches_that_are_answered_slowly():
    with rabbit() as s:
        s.up()
        s.peer.answer = False
        consumer = Consumer(s, *(f"q{number}" for number in range(6)))
        s.world.settle()
        waiting = list(s.peer.unanswered)
        s.peer.unanswered.clear()
        for link in waiting:
            s.world.advance(PATIENCE * 0.8)
            s.peer.answer = True
            s.peer.link_requested(s.peer.engine, link)
            s.peer.answer = False
        s.world.settle()
        assert consumer.subscription.attached
        # Nobody asked twice.
        assert len(s.peer.attaches) == 1 + len(waiting)


def test_unsubscribing_from_what_has_no_answer(caplog):
    with rabbit() as s:
        s.up()
        s.peer.answer = False
        consumer = Consumer(s, "queue")
        s.world.settle()
        s.client.unsubscribe(consumer.subscription)
        s.world.advance(5 * PATIENCE)
        s.peer.answer_links()
        s.up()
        assert "trying again" not in caplog.text


def test_replies_that_have_no_place_come_by_another_one():
    with rabbit() as s:
        s.up()
        s.peer.answer = False
        call = s.call(timeout=900, destination=Destination.of(Target(topic="t"), "rpc"))
        s.world.settle()
        first = s.client.replies._name
        s.world.advance(NOTICED)
        assert s.client.replies._name != first
        s.peer.answer = True
        s.peer.unanswered.clear()
        s.world.advance(2 * NOTICED)
        request = s.peer.received[-1]
        s.peer.reply(request, '{"result": 1}')
        s.world.settle()
        assert call.result() == '{"result": 1}'


def test_the_watchdog_ends_with_its_connection():
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        s.notify("bad", destination=BAD, timeout=900)
        s.world.advance(PATIENCE / 2)
        s.lose()
        s.world.advance(PATIENCE / 2)
        assert len(s.peer.attaches) == 1


# -- a missing outcome is pursued


def test_a_session_that_has_lost_messages_is_left_though_a_link_is_alone_in_it():
    """As RabbitMQ before 4.2 may be after a partition: all that such a session sends
    is lost without a word, and a new one is well."""
    with rabbit() as s:
        s.up()
        sick = []
        s.peer.outcome = lambda message: (
            None if s.peer.inbound["bad"].session in sick else ACCEPTED
        )
        s.notify("first", destination=BAD)
        s.world.settle()
        sick.append(s.peer.inbound["bad"].session)
        task = s.notify("x", destination=BAD)
        s.world.advance(NOTICED)
        assert task.result() is None
        # And once more, where the link has been alone before.
        sick.append(s.peer.inbound["bad"].session)
        task = s.notify("y", destination=BAD)
        s.world.advance(NOTICED)
        assert task.result() is None
        assert len(s.network.peers) == 1


def test_such_a_session_is_left_though_nobody_waits_for_so_long():
    """Each of those who wait for less would find it as it is."""
    with rabbit() as s:
        s.up()
        used = []

        def outcome(message):
            session = s.peer.inbound["bad"].session
            if session not in used:
                used.append(session)
            return None if len(used) < 3 else ACCEPTED

        s.peer.outcome = outcome
        s.notify("x", destination=BAD, timeout=2 * PATIENCE)
        s.world.advance(NOTICED)
        assert len(used) == 2
        s.world.advance(NOTICED)
        task = s.notify("y", destination=BAD, timeout=PATIENCE / 2)
        s.world.advance(1)
        assert task.result() is None
        assert len(used) == 3
        assert len(s.network.peers) == 1


def test_the_next_host_is_asked():
    hosts = [Host("one", 5672), Host("two", 5672)]
    with rabbit(hosts=hosts) as s:
        s.up()
        deaf_to(s, "bad")
        s.network.default = {"product": "RabbitMQ"}
        task = s.notify("bad", destination=BAD, timeout=PATIENCE * 4)
        s.world.advance(3 * NOTICED)
        assert task.result() is None
        first, second = (hostname for _, hostname, _ in s.network.attempts)
        assert first != second


def test_what_others_wait_for_goes_on_over_the_new_connection():
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        many = [Destination.reply(f"bad {number}") for number in range(5)]
        for each in many:
            s.notify("bad", destination=each, timeout=900)
            s.world.advance(1)
        s.world.advance(8 * PATIENCE)
        # Each connection was left for all of them.
        assert len(s.network.peers) == 3
        assert received(s, "bad") == [2 * len(many), len(many), len(many)]


def test_a_connection_is_not_left_for_what_nobody_waits_for():
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        s.notify("bad", destination=BAD, timeout=2 * PATIENCE)
        s.world.advance(10 * PATIENCE)
        assert received(s, "bad") == [2]
        # The next one is told from those that nobody waits for.
        s.notify("bad", destination=BAD, timeout=2 * PATIENCE)
        s.world.advance(10 * PATIENCE)
        assert len(s.network.peers) == 2


def test_an_attach_to_send_by_without_an_answer():
    with rabbit() as s:
        s.up()
        s.peer.answer = False
        task = s.cast("x", destination=GOOD, timeout=900)
        s.world.settle()
        s.peer.answer = True  # to other attaches than this
        s.world.advance(NOTICED)
        assert task.result() is None
        assert received(s, "x") == [1]


def test_pauses_grow_and_an_outcome_ends_them():
    pursuits = Pursuits()

    def steps(count):
        for _ in range(count):
            yield pursuits.pause("a", 10.0), pursuits.step("a", 0.0)

    assert list(steps(5)) == [
        (10, False),
        (10, True),
        (20, True),
        (40, True),
        (80, True),
    ]
    assert list(steps(50))[-1] == (LONGEST, True)
    pursuits.answered("a")
    assert "a" not in pursuits
    assert list(steps(1)) == [(10, False)]
    pursuits.step("b", FORGOTTEN_AFTER + 1)
    assert "a" not in pursuits and "b" in pursuits


# -- a bus that answers nothing


def test_a_bus_that_answers_nothing_is_waited_for(caplog):
    """As in an alarm of RabbitMQ, which reads nothing from those who publish: to send
    again would make copies."""
    with rabbit(idle_timeout=0) as s:
        s.up()
        consumer = Consumer(s, "queue")
        s.world.settle()
        s.peer.frozen = True
        task = s.notify("x", destination=GOOD, timeout=900)
        s.world.advance(10 * PATIENCE)
        assert caplog.text.count("answers nothing") == 1
        s.peer.frozen = False
        s.world.settle()
        assert task.result() is None
        assert received(s, "x") == [1]
        assert consumer.subscription.attached
        assert caplog.text.count("answers again") == 1


def test_after_it_answers_again_all_have_their_time_once_more():
    with rabbit(idle_timeout=0) as s:
        s.up()
        deaf_to(s, "bad")
        s.peer.frozen = True
        task = s.notify("bad", destination=BAD, timeout=900)
        s.world.advance(10 * PATIENCE)
        s.peer.frozen = False
        s.world.advance(PATIENCE - 0.1)
        assert received(s, "bad") == [1]
        s.world.advance(NOTICED - PATIENCE + 0.1)
        assert received(s, "bad") == [2]
        assert not task.done


def test_a_bus_that_gives_no_further_session_is_not_asked():
    with rabbit(network={"product": "RabbitMQ", "channel_max": 0}) as s:
        s.up()
        deaf_to(s, "bad")
        task = s.notify("bad", destination=BAD, timeout=900)
        s.world.advance(3 * NOTICED)
        assert not task.done
        assert len(s.network.peers) == 2


def test_a_bus_that_takes_no_messages_in_new_sessions_either_is_not_left(
    caplog, monkeypatch
):
    """As RabbitMQ from 4.0 on in an alarm: it answers all else."""
    full = True
    monkeypatch.setattr(Sender, "held_back", property(lambda link: full and link.alone))
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        task = s.notify("bad", destination=BAD, timeout=900)
        s.world.advance(20 * PATIENCE)
        assert received(s, "bad") == [2]
        assert caplog.text.count("takes no messages") == 1
        full = False
        s.peer.received[-1].link.settle(s.peer.received[-1].delivery)
        s.world.advance(PATIENCE)
        assert task.result() is None
        assert caplog.text.count("takes messages again") == 1
        assert len(s.network.peers) == 1


# -- after a host that was silent

SILENT = 5
HOSTS = [Host("one", 5672), Host("two", 5672)]


def frozen(s, **network):
    """The host stands still, and is left; so is what the next one says of itself."""
    s.network.default = {"product": "RabbitMQ", **network}
    s.peer.silent = True
    successor(s)


def successor(s):
    """Until the next connection is there."""
    for _ in range(10 * (SILENT + 10)):
        s.world.advance(0.1)
        if len(s.network.peers) == 2 and s.client.connection.state is State.UP:
            break
    first, second = (hostname for _, hostname, _ in s.network.attempts)
    assert first != second


def test_the_successor_of_a_silent_host_is_not_waited_for_as_long():
    with rabbit(hosts=HOSTS, silent_host_timeout=SILENT, link_retry_delay=60) as s:
        s.up()
        consumer = Consumer(s, "queue")
        s.world.settle()
        frozen(s, answer=False)
        s.peer.answer = True  # to other attaches than that
        s.world.advance(2 * HASTE)
        assert consumer.subscription.attached
        # Over the same connection.
        assert len(s.network.peers) == 2


def test_what_may_be_sent_again_is_in_a_new_session_before_long():
    with rabbit(hosts=HOSTS, silent_host_timeout=SILENT) as s:
        s.up()
        s.notify("x", destination=GOOD)
        s.world.settle()
        frozen(s, outcome=lambda message: None)
        task = s.notify("bad", destination=BAD, timeout=600)
        s.world.settle()
        s.peer.outcome = lambda message: ACCEPTED
        s.world.advance(2 * HASTE)
        assert task.result() is None
        assert received(s, "bad")[1] == 2
        assert len(s.network.peers) == 2


def test_where_new_sessions_do_not_help_there_the_host_after_it_is_asked():
    hosts = [*HOSTS, Host("three", 5672)]
    with rabbit(hosts=hosts, silent_host_timeout=SILENT) as s:
        s.up()
        frozen(s, outcome=lambda message: None)
        s.network.default = {"product": "RabbitMQ"}
        task = s.notify("bad", destination=BAD, timeout=600)
        s.world.advance(2 * HASTY_SESSIONS * HASTE)
        assert task.result() is None
        assert len({name for _, name, _ in s.network.attempts}) == 3
        assert received(s, "bad")[1] == HASTY_SESSIONS


def test_the_host_after_it_is_not_waited_for_as_long_either():
    hosts = [*HOSTS, Host("three", 5672)]
    with rabbit(hosts=hosts, silent_host_timeout=SILENT) as s:
        s.up()
        frozen(s, outcome=lambda message: None)
        task = s.notify("bad", destination=BAD, timeout=600)
        s.world.advance(1.5 * HASTY_SESSIONS * HASTE + 0.1)
        assert received(s, "bad")[1:] == [HASTY_SESSIONS, 1]
        s.peer.outcome = lambda message: ACCEPTED
        s.world.advance(2 * HASTE)
        assert task.result() is None
        assert received(s, "bad")[1:] == [HASTY_SESSIONS, 2]


@pytest.mark.parametrize("what", ["subscription", "replies"])
def test_so_it_is_where_they_do_not_help_a_link_that_receives(what):
    hosts = [*HOSTS, Host("three", 5672)]
    with rabbit(hosts=hosts, silent_host_timeout=SILENT) as s:
        s.up()
        frozen(s, answer=False)
        s.network.default = {"product": "RabbitMQ"}
        if what == "replies":
            s.call(timeout=900)
        else:
            consumer = Consumer(s, "queue")
        s.world.advance(2 * HASTY_SESSIONS * HASTE)
        assert len({name for _, name, _ in s.network.attempts}) == 3
        if what == "replies":
            assert len(s.network.peers[1].unanswered) >= HASTY_SESSIONS
            assert s.client.replies.address
        else:
            assert consumer.subscription.attached


def test_what_must_not_arrive_twice_has_its_time_there_too():
    with rabbit(hosts=HOSTS, silent_host_timeout=SILENT) as s:
        s.up()
        frozen(s, outcome=lambda message: None)
        task = s.cast("bad", destination=BAD, timeout=600)
        s.world.advance(PATIENCE - 0.1)
        assert not task.done
        (only,) = (each for each in s.peer.received if each.message.body == "bad")
        only.link.settle(only.delivery)
        s.world.settle()
        assert task.result() is None


def test_replies_keep_their_place_there(monkeypatch):
    forgotten = []
    monkeypatch.setattr(Replies, "forget_declarations", forgotten.append)
    with rabbit(hosts=HOSTS, silent_host_timeout=SILENT) as s:
        s.up()
        frozen(s, answer=False)
        s.call(timeout=900, destination=Destination.of(Target(topic="t"), "rpc"))
        s.world.settle()
        first = s.client.replies._name
        s.world.advance(2 * HASTE)
        assert s.client.replies._name == first
        # To declare its queue anew would take until the frozen node is back.
        assert forgotten == []
        s.world.advance(HASTE_LASTS + NOTICED)
        assert s.client.replies._name != first


def test_a_connection_that_was_cut_is_followed_by_one_with_patience():
    with rabbit(hosts=HOSTS, silent_host_timeout=SILENT) as s:
        s.up()
        s.network.default = {"product": "RabbitMQ", "answer": False}
        s.peer.cut()
        successor(s)
        Consumer(s, "queue")
        s.world.advance(3 * HASTE)
        assert len(s.peer.unanswered) == 1


def priorities(s, address):
    """What is said of each link from there, over each connection in turn."""
    said = [
        properties.get("rabbitmq:priority")
        for peer in s.network.peers
        for attached, properties in peer.properties
        if attached == address
    ]
    assert all(type(each) in (type(None), Int) for each in said)
    return said


def test_links_go_before_those_that_are_over_a_silent_host():
    """Until the bus gives that up, it has them for alive and gives them messages."""

    def sources(addresser):
        kinds = buses.Precedence
        return [
            Node("all", precedence=kinds.NEVER),
            Node("topic", precedence=kinds.BRIEFLY),
            Node("own", precedence=kinds.ALWAYS),
        ]

    with rabbit(hosts=HOSTS, silent_host_timeout=SILENT) as s:
        s.up()
        consumer = Consumer(s, sources=sources, window=7)
        s.world.settle()
        frozen(s)
        s.world.settle()
        assert consumer.subscription.attached
        assert priorities(s, "all") == [None, None]
        assert priorities(s, "topic") == [None, 1]
        assert priorities(s, "own") == [None, 1]
        s.world.advance(GIVEN_UP_AFTER - 1)
        assert priorities(s, "topic") == [None, 1]
        s.world.advance(2)
        # Others are to have their share again.
        assert priorities(s, "topic") == [None, 1, None]
        assert priorities(s, "own") == [None, 1]
        assert consumer.subscription.attached
        s.peer.send("topic", Message("x"))
        s.world.settle()
        assert consumer.bodies == ["x"]
        assert s.peer.outbound["topic"].credit == 6


def test_what_went_before_others_does_so_again_after_the_next_silent_host():
    def sources(addresser):
        return [Node("own", precedence=buses.Precedence.ALWAYS)]

    with rabbit(hosts=HOSTS, silent_host_timeout=SILENT) as s:
        s.up()
        Consumer(s, sources=sources)
        s.world.settle()
        frozen(s)
        s.world.advance(2 * GIVEN_UP_AFTER)
        s.peer.cut()
        s.world.advance(20)
        assert priorities(s, "own") == [None, 1, 1]
        s.peer.silent = True
        s.world.advance(20)
        assert priorities(s, "own") == [None, 1, 1, 2]


@contextlib.contextmanager
def ahead_for_now():
    """A world and a consumer, whose link from "topic" goes before others for now."""

    def sources(addresser):
        return [Node("topic", precedence=buses.Precedence.BRIEFLY)]

    with rabbit(hosts=HOSTS, silent_host_timeout=SILENT) as s:
        s.up()
        consumer = Consumer(s, sources=sources)
        s.world.settle()
        frozen(s)
        s.world.settle()
        yield s, consumer


def test_what_was_acknowledged_is_before_its_link_goes_behind_others():
    with ahead_for_now() as (s, consumer):
        s.world.punctual = True
        context = s.client.context
        delay = context.bus.settle_delay
        s.world.advance(context.outdated_at - s.world.now() - delay / 2)
        handle = s.peer.send("topic", Message("x"))
        s.world.settle()
        source, link, delivery = consumer.got.pop()
        assert source.acknowledge(link, delivery)
        s.world.advance(delay)
        assert priorities(s, "topic") == [None, 1, None]
        assert (handle, ACCEPTED) in s.peer.outcomes


def test_a_link_that_is_busy_with_its_declarations_goes_behind_others_later():
    with ahead_for_now() as (s, consumer):
        (link,) = consumer.subscription.links
        link.phase = Phase.DECLARING
        s.world.advance(GIVEN_UP_AFTER + 1)
        assert priorities(s, "topic") == [None, 1]
        link.phase = Phase.UP
        s.world.advance(1)
        assert priorities(s, "topic") == [None, 1, None]


def test_a_subscription_that_ended_meanwhile_is_not_attached_again():
    with ahead_for_now() as (s, consumer):
        s.client.unsubscribe(consumer.subscription)
        s.world.advance(GIVEN_UP_AFTER + 1)
        assert priorities(s, "topic") == [None, 1]
