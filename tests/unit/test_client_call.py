# SPDX-License-Identifier: Apache-2.0
"""Calls and the link that their replies come by."""

import random

import pytest
from oslo_messaging import exceptions

from greenamqp.client import Destination
from greenamqp.client.wanted import FIRST_PAUSE
from greenamqp.connection.state import State
from greenamqp.engine import ACCEPTED, REJECTED, RELEASED, Message
from tests.unit import fakes

ADDRESS = "unicast.openstack.t"


def reply_link(s):
    """The peer's end of the link for replies."""
    (link,) = [
        link for name, link in s.peer.outbound.items() if name.startswith("reply-")
    ]
    return link


# -- the ordinary case


def test_a_call_returns_its_reply():
    with fakes.setting() as s:
        task, request = s.called("question")
        assert request.message.body == "question"
        s.answered(task, request)
        assert s.client.replies.waiting == {}


def test_replies_are_accepted():
    with fakes.setting() as s:
        task, request = s.called()
        handle = s.peer.reply(request, "answer")
        s.world.settle()
        assert s.peer.outcomes == [(handle, ACCEPTED)]


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("reply_first", [True, False])
def test_reply_and_outcome_come_in_any_order(reply_first, settled):
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: None
        task, request = s.called()
        steps = [
            lambda: s.peer.settle(request, ACCEPTED),
            lambda: s.peer.reply(request, "answer", settled=settled),
        ]
        for step in reversed(steps) if reply_first else steps:
            step()
            s.world.settle()
        assert task.result() == "answer"


def test_each_caller_gets_its_own_reply():
    with fakes.setting() as s:
        tasks = [s.call(str(number)) for number in range(50)]
        s.world.settle()
        requests = list(s.peer.received)
        random.Random(1).shuffle(requests)
        for request in requests:
            s.peer.reply(request, "re " + request.message.body)
        s.world.settle()
        answers = [task.result() for task in tasks]
        assert answers == [f"re {number}" for number in range(50)]


def test_one_reply_link_for_all_calls_and_none_without_calls():
    with fakes.setting() as s:
        s.up()
        assert s.peer.outbound == {}
        for destination in ("a", "b", "a"):
            task, request = s.called(destination=Destination.reply(destination))
            s.peer.reply(request, "answer")
            s.world.settle()
            task.result()
        assert len(s.peer.outbound) == 1


def test_a_call_waits_for_the_reply_link():
    with fakes.setting() as s:
        s.up()
        s.peer.answer = False
        task = s.call()
        s.world.settle()
        assert s.peer.received == []
        s.peer.answer_links()
        s.world.settle()
        (request,) = s.peer.received
        s.answered(task, request)


def test_a_call_sent_settled():
    with fakes.setting() as s:
        s.up()
        task, request = s.called(settled=True)
        assert request.settled
        s.answered(task, request)


def test_a_retried_call_takes_no_late_reply_to_an_earlier_attempt():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: RELEASED
        task = s.call()
        s.world.settle()
        first = s.peer.received[-1]
        s.peer.outcome = lambda message: ACCEPTED
        s.world.advance(1)
        second = s.peer.received[-1]
        assert first.message.id != second.message.id
        s.peer.reply(first, "wrong")
        s.world.settle()
        assert not task.done
        s.peer.reply(second, "right")
        s.world.settle()
        assert task.result() == "right"


# -- deadlines


def test_no_reply_in_time():
    with fakes.setting() as s:
        task, request = s.called(timeout=10)
        s.world.advance(11)
        with pytest.raises(TimeoutError, match="RPC call to topic=t.*no reply"):
            task.result()
        assert s.client.replies.waiting == {}


def test_a_late_reply_disturbs_nobody(caplog):
    with fakes.setting() as s:
        task, request = s.called(timeout=10)
        s.world.advance(11)
        other, second = s.called(timeout=10)
        s.peer.reply(request, "late")
        s.world.settle()
        assert "came after its call had been given up" in caplog.text
        assert not other.done
        s.peer.reply(second, "in time")
        s.world.settle()
        assert other.result() == "in time"


def test_a_reply_that_comes_twice_is_no_news(caplog):
    """A server's message bus may not have heard that it was accepted."""
    with fakes.setting() as s:
        task, request = s.called()
        for _ in range(2):
            s.peer.reply(request, "answer")
            s.world.settle()
        assert task.result() == "answer"
        assert [line for line in caplog.records if line.levelname != "DEBUG"] == []


def test_those_that_were_given_up_are_not_known_for_ever(monkeypatch, caplog):
    monkeypatch.setattr("greenamqp.client.replies.GIVEN_UP", 2)
    with fakes.setting() as s:
        requests = []
        for _ in range(4):
            task, request = s.called(timeout=10)
            s.world.advance(11)
            requests.append(request)
        for request in requests:
            s.peer.reply(request, "late")
        s.world.settle()
        assert "2 replies came after their calls had been given up" in caplog.text


@pytest.mark.parametrize(
    "stranger", ["never seen", 7, b"bytes", None], ids=["str", "int", "bytes", "none"]
)
def test_a_reply_for_nobody(stranger, caplog):
    with fakes.setting(reply_link_credit=2) as s:
        task, request = s.called()
        for _ in range(20):  # each returns its credit
            s.peer.send(
                request.message.reply_to, Message("{}", correlation_id=stranger)
            )
            s.world.settle()
        assert "not made here" in caplog.text
        s.answered(task, request)


def test_a_reply_that_is_no_message():
    with fakes.setting(reply_link_credit=2) as s:
        task, request = s.called()
        for _ in range(20):
            s.peer.send(request.message.reply_to, b"\x00Sw\xa1\x02\xff\xfe")
            s.world.settle()
        assert {outcome for _, outcome in s.peer.outcomes} == {REJECTED}
        assert not task.done
        s.answered(task, request)


def test_a_second_reply_to_the_same_call():
    with fakes.setting() as s:
        task, request = s.called()
        s.peer.reply(request, "first")
        s.peer.reply(request, "second")
        s.world.settle()
        assert task.result() == "first"


# -- the monitor


def test_heartbeats_keep_a_call_alive_to_its_deadline():
    with fakes.setting() as s:
        task, request = s.called(timeout=100, monitor=5)
        for _ in range(24):
            s.world.advance(4)
            s.peer.reply(request, None)
        s.world.settle()
        assert not task.done
        s.world.advance(3)
        assert not task.done
        s.world.advance(2)
        with pytest.raises(TimeoutError, match="no reply"):
            task.result()


def test_without_heartbeats_a_monitored_call_ends_early():
    with fakes.setting() as s:
        task, request = s.called(timeout=100, monitor=5)
        s.world.advance(4)
        s.peer.reply(request, None)
        s.world.advance(4.5)
        assert not task.done
        s.world.advance(1)
        with pytest.raises(TimeoutError, match="no heartbeat.* 5 s"):
            task.result()
        assert s.client.replies.waiting == {}


def test_a_monitored_call_ends_at_its_deadline():
    with fakes.setting() as s:
        task, request = s.called(timeout=8, monitor=5)
        s.world.advance(4)
        s.peer.reply(request, None)
        s.world.advance(4.5)
        with pytest.raises(TimeoutError, match="no reply"):
            task.result()


def test_the_monitor_watches_a_call_that_left_late():
    with fakes.setting(network={"credit": 0}) as s:
        task = s.call(timeout=1000, monitor=50)
        s.world.advance(20)
        s.peer.inbound[ADDRESS].flow(1)
        s.world.settle()
        assert len(s.peer.received) == 1
        s.world.advance(49)
        assert not task.done
        s.world.advance(2)
        with pytest.raises(TimeoutError, match="no heartbeat"):
            task.result()


@pytest.mark.parametrize("how", ["refused", "credit", "released"])
def test_a_monitored_call_that_never_left_says_why(how):
    """No server was there to be silent."""
    network, reason = {
        "refused": ({}, "bus:5672: cannot connect: .*refused"),
        "credit": ({"credit": 0}, "gives no credit"),
        "released": ({}, "released it: nobody there"),
    }[how]
    with fakes.setting(network=network) as s:
        if how == "refused":
            s.network.default = "refused"
        elif how == "released":
            s.up()
            s.peer.outcome = lambda message: RELEASED
        task = s.call(timeout=100, monitor=5)
        s.world.advance(20)
        with pytest.raises(TimeoutError, match=reason) as caught:
            task.result()
        assert "heartbeat" not in str(caught.value)


def test_what_came_before_a_call_was_accepted_is_not_its_end():
    with fakes.setting() as s:
        s.up()
        outcomes = [RELEASED, ACCEPTED]
        s.peer.outcome = lambda message: outcomes.pop(0)
        task = s.call(timeout=30)
        s.world.advance(31)
        with pytest.raises(TimeoutError, match="no reply"):
            task.result()


def test_a_heartbeat_is_no_reply_to_a_call_without_monitor():
    with fakes.setting() as s:
        task, request = s.called(timeout=10)
        s.peer.reply(request, None)
        s.world.advance(5)
        assert not task.done
        s.answered(task, request)


# -- credit


@pytest.mark.parametrize("window", [1, 2, 10, 200])
def test_the_reply_link_has_credit_for_every_call_that_waits(window):
    """A router drops a reply that finds no credit."""
    with fakes.setting(reply_link_credit=window) as s:
        s.up()
        rng = random.Random(window)
        waiting = []
        for _ in range(300):
            if waiting and rng.random() < 0.48:
                task, request = waiting.pop(rng.randrange(len(waiting)))
                if rng.random() < 0.3:
                    s.peer.reply(request, None)  # a heartbeat uses credit, too
                    waiting.append((task, request))
                else:
                    s.peer.reply(request, "answer")
                s.world.settle()
            else:
                waiting.append(s.called())
            assert reply_link(s).credit >= len(waiting)
        for _, request in waiting:
            s.peer.reply(request, "answer")
        s.world.settle()
        assert all(task.done for task, _ in waiting)


def test_the_window_is_the_option_while_few_calls_wait():
    with fakes.setting(reply_link_credit=40) as s:
        task, request = s.called()
        assert reply_link(s).credit == 40
        lowest = 40
        for _ in range(100):
            s.peer.reply(request, None)
            s.world.settle()
            credit = reply_link(s).credit
            assert credit <= 40
            lowest = min(lowest, credit)
        # Given back in halves of the window: not a frame for each.
        assert lowest == 21


def test_credit_for_many_callers_does_not_stay_for_ever():
    with fakes.setting(reply_link_credit=5) as s:
        tasks = [s.called() for _ in range(100)]
        assert reply_link(s).credit >= 100
        for _, request in tasks:
            s.peer.reply(request, "answer")
            s.world.settle()
        for _ in range(500):
            task, request = s.called()
            s.peer.reply(request, "answer")
            s.world.settle()
        assert reply_link(s).credit <= 5


# -- the connection is lost


def test_an_accepted_call_fails_at_once_when_its_reply_cannot_come():
    with fakes.setting() as s:
        task, request = s.called()
        s.lose()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="unknown"):
            task.result()
        assert s.peer.received == []
        assert s.client.replies.waiting == {}


@pytest.mark.parametrize("settled", [True, False])
def test_a_call_that_may_have_arrived_is_not_sent_again(settled):
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: None
        task, request = s.called(settled=settled)
        s.lose()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="unknown"):
            task.result()
        s.world.advance(60)
        assert s.peer.received == []
        assert s.client.replies.waiting == {}


def test_a_call_that_did_not_leave_is_sent_with_the_new_reply_address():
    with fakes.setting(network={"credit": 0}) as s:
        task = s.call()
        s.world.settle()
        assert s.client.connection.state is State.UP
        old = list(s.peer.outbound)
        s.network.default = {}
        s.lose()
        (request,) = s.peer.received
        assert request.message.reply_to not in old
        s.answered(task, request)


def test_a_call_at_rest_is_sent_with_the_new_reply_address():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: RELEASED
        task = s.call()
        s.world.settle()
        s.lose()
        (request,) = s.peer.received
        s.answered(task, request)


def test_a_call_that_rests_is_tried_again_with_the_next_connection():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: RELEASED
        task = s.call()
        s.world.advance(10)  # its next pause is one of several seconds
        s.peer.received.clear()
        s.peer.outcome = lambda message: ACCEPTED
        s.peer.cut()
        s.world.advance(2)
        assert s.client.connection.state is State.UP
        (request,) = s.peer.received
        s.answered(task, request)


def test_the_reply_link_comes_back_only_when_it_is_needed():
    with fakes.setting() as s:
        task, request = s.called()
        s.peer.reply(request, "answer")
        s.world.settle()
        task.result()
        s.lose()
        assert s.peer.outbound == {}
        task, request = s.called()
        s.answered(task, request)


# -- a link is lost


def test_a_reply_comes_though_the_link_of_the_request_is_gone():
    with fakes.setting() as s:
        task, request = s.called()
        s.peer.inbound[ADDRESS].close("amqp:resource-deleted", "server left")
        s.world.settle()
        assert not task.done
        s.answered(task, request)


def test_the_reply_link_is_closed_by_the_peer():
    with fakes.setting(link_retry_delay=6) as s:
        task, request = s.called()
        reply_link(s).close("amqp:resource-deleted", "temporary queue gone")
        s.world.settle()
        with pytest.raises(
            exceptions.MessageDeliveryFailure, match="temporary queue gone.*unknown"
        ):
            task.result()
        s.peer.received.clear()
        next_one = s.call()
        s.world.advance(FIRST_PAUSE / 2)
        assert s.peer.received == []
        s.world.advance(FIRST_PAUSE / 2)
        (request,) = s.peer.received
        s.answered(next_one, request)


def test_a_reply_that_the_peer_aborts_returns_its_credit(caplog):
    with fakes.setting(reply_link_credit=2) as s:
        task, request = s.called()
        for _ in range(10):
            abort = s.peer.begin(request.message.reply_to, 100_000)
            s.world.settle()
            abort()
            s.world.settle()
            assert reply_link(s).credit >= 1
        assert "a reply was lost" in caplog.text
        s.answered(task, request)


def test_a_new_connection_does_not_wait_for_the_old_ones_reply_link():
    with fakes.setting(link_retry_delay=100) as s:
        first, _ = s.called()
        reply_link(s).close()
        s.world.settle()
        assert first.done
        s.lose()
        task, request = s.called()
        s.answered(task, request)


def test_the_reply_link_is_refused():
    with fakes.setting(link_retry_delay=6) as s:
        s.up()
        s.peer.refuse[""] = ("amqp:not-allowed", "no dynamic nodes here")
        task = s.call(timeout=20)
        s.world.advance(21)
        with pytest.raises(TimeoutError, match="no dynamic nodes here"):
            task.result()
        assert s.peer.attaches.count("") <= 4
        del s.peer.refuse[""]
        s.world.advance(10)
        task, request = s.called()
        s.answered(task, request)


def test_close_with_a_reply_link_that_waits_to_be_attached_again():
    with fakes.setting() as s:
        s.called()
        reply_link(s).close()
        s.world.settle()
        # setting() looks for what is left.


def test_a_heartbeat_is_not_taken_for_the_reply_before_it():
    with fakes.setting() as s:
        first, first_request = s.called()
        second, second_request = s.called()
        s.peer.reply(first_request, "first")
        s.peer.reply(second_request, None)
        s.world.settle()
        assert first.result() == "first"
        assert not second.done
        s.peer.reply(second_request, "second")
        s.world.settle()
        assert second.result() == "second"
