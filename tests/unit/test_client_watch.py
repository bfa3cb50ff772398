# SPDX-License-Identifier: Apache-2.0
"""A bus that stands still in a session: what waits there goes on elsewhere.

The peer says that it is a RabbitMQ, and has the addresses of the predecessor.
"""

import pytest
from oslo_messaging import Target, exceptions

from greenamqp.addressing import Bus
from greenamqp.client import Destination
from greenamqp.connection.state import State
from greenamqp.engine import ACCEPTED, Message
from tests.unit import fakes
from tests.unit.test_client_receive import Consumer

PATIENCE = Bus("RabbitMQ").patience
#: By then it was noticed.
NOTICED = 1.5 * PATIENCE + 0.1

GOOD = Destination.reply("good")
BAD = Destination.reply("bad")


def rabbit(**options):
    options.setdefault("network", {"product": "RabbitMQ"})
    return fakes.setting(addressing_mode="legacy", **options)


def deaf_to(s, *bodies):
    """What these say has no outcome."""
    s.peer.outcome = lambda message: None if message.body in bodies else ACCEPTED


def test_only_where_a_bus_has_to_answer():
    assert Bus("qpid-dispatch-router").patience is None
    assert Bus("greenamqp").patience is None
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
        assert s.client.connection.engine._session_count == 1
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


def test_a_notification_is_sent_once_more_and_fails_in_time():
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        task = s.notify("bad", destination=BAD, timeout=PATIENCE * 9)
        s.world.advance(PATIENCE * 9 - 0.1)
        assert not task.done
        # The second time it waits alone, and holds up nobody.
        assert len(s.peer.received) == 2
        s.world.advance(0.2)
        with pytest.raises(TimeoutError, match="did not answer within"):
            task.result()


def test_a_notification_arrives_when_the_bus_answers_again():
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        task = s.notify("bad", destination=BAD, timeout=PATIENCE * 6)
        s.world.advance(PATIENCE * 4)
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
        assert s.client.connection.engine._session_count == 1
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


def test_the_watch_ends_with_its_connection():
    with rabbit() as s:
        s.up()
        deaf_to(s, "bad")
        s.notify("bad", destination=BAD, timeout=900)
        s.world.advance(PATIENCE / 2)
        s.lose()
        s.world.advance(PATIENCE / 2)
        assert len(s.peer.attaches) == 1
