# SPDX-License-Identifier: Apache-2.0
"""Driver, client and listener with messages in the format of the rabbit:// driver.

The peer here makes what is attached to, so the addresses are those of a broker that
does; what is tried is the format.
"""

import json
import logging

import oslo_messaging
import pytest
from oslo_messaging import exceptions

from greenamqp.buses import PREDECESSOR, RABBIT
from greenamqp.buses.base import Node
from greenamqp.buses.qpidd import LegacyAddresser
from greenamqp.client import copies
from greenamqp.engine import ACCEPTED, REJECTED, RELEASED, Message
from tests.unit import fakes

ADDRESS = "unicast.openstack.t.info"


@pytest.fixture(autouse=True)
def rabbit_format(monkeypatch):
    monkeypatch.setattr(LegacyAddresser, "format", RABBIT)


def inner(message):
    """The object in the envelope in the body."""
    body = json.loads(message.body)
    assert body["oslo.version"] == "2.0"
    return json.loads(body["oslo.message"])


def answer(s, request, **fields):
    """A reply as a rabbit:// server sends it, and to where that sends it."""
    asked = inner(request.message)
    body = {"_msg_id": asked["_msg_id"], "_unique_id": "u", "ending": True} | fields
    envelope = {"oslo.version": "2.0", "oslo.message": json.dumps(body)}
    data = Message(
        json.dumps(envelope).encode(), content_type="application/json", inferred=True
    )
    s.peer.send(asked["_reply_q"], data)
    s.world.settle()


# -- what is sent


def test_the_first_message_is_in_the_format_of_the_bus_that_was_found():
    """It was composed before there was a bus."""
    with fakes.driver() as s:
        assert s.driver._connected().format is PREDECESSOR
        task = s.send(ctxt={"user": "u"}, message={"method": "m", "args": {}})
        s.world.settle()
        assert task.result() is None
        (received,) = s.peer.received
        found = inner(received.message)
        assert found.pop("_unique_id")
        assert found == {"method": "m", "args": {}, "_context_user": "u"}
        assert s.driver._connected().format is RABBIT


def test_the_fields_around_the_body():
    with fakes.driver() as s:
        s.up()
        s.send(timeout=5)
        s.notify()
        s.world.settle()
        request, notification = (each.message for each in s.peer.received)
        assert request.ttl is not None and 4 < request.ttl <= 5
        assert notification.ttl is None
        for message in (request, notification):
            assert message.content_type == "application/json"
            assert message.content_encoding == "utf-8"
            assert message.priority == 0 and message.durable
            assert message.inferred


def test_what_cannot_be_serialised_is_raised_before_anything_is_sent():
    with fakes.driver() as s:
        circle = {}
        circle["self"] = circle
        task = s.send(message={"method": "m", "args": circle})
        s.world.settle()
        with pytest.raises(ValueError, match="[Cc]ircular"):
            task.result()
        assert s.network.attempts == []


def test_what_the_bus_at_hand_cannot_be_sent_fails_alone():
    """It could be written in the format of no bus, and cannot in that of this one."""
    with fakes.driver() as s:
        bad, good = s.notify(message=["no dict"]), s.notify()
        s.world.settle()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="must be a dict"):
            bad.result()
        assert good.result() is None


def test_a_message_that_is_sent_again_says_that_it_is_the_same():
    """And each attempt at a call has an id of its own, which its reply names."""
    with fakes.driver(link_retry_delay=1) as s:
        s.up()
        outcomes = iter((RELEASED, ACCEPTED))
        s.peer.outcome = lambda message: next(outcomes)
        task = s.call(timeout=60)
        s.world.advance(2)
        first, second = (inner(each.message) for each in s.peer.received)
        assert first["_unique_id"] == second["_unique_id"]
        assert first["_msg_id"] != second["_msg_id"]
        assert first["_reply_q"] == second["_reply_q"]
        answer(s, s.peer.received[0], result="late", failure=None)
        answer(s, s.peer.received[1], result="right", failure=None)
        assert task.result() == "right"


# -- replies


def test_a_reply_a_failure_and_heartbeats():
    with fakes.driver() as s:
        s.up()
        results = [s.call(timeout=60, call_monitor_timeout=5) for _ in range(2)]
        s.world.settle()
        requests = list(s.peer.received)
        assert all(inner(each.message)["_timeout"] == 5 for each in requests)
        for _ in range(4):
            s.world.advance(4)
            for request in requests:
                answer(s, request, result=None, failure=None, ending=False)
        answer(s, requests[0], result=[1], failure=None)
        failure = {"class": "ValueError", "module": "builtins", "message": "m"}
        answer(s, requests[1], result=None, failure=json.dumps(failure | {"tb": []}))
        assert results[0].result() == [1]
        with pytest.raises(ValueError):
            results[1].result()


def test_without_heartbeats_a_monitored_call_ends():
    with fakes.driver() as s:
        s.up()
        task = s.call(timeout=60, call_monitor_timeout=5)
        s.world.advance(6)
        with pytest.raises(oslo_messaging.MessagingTimeout, match="heartbeat"):
            task.result()


def test_replies_that_cannot_be_read_cost_their_credit_alone(caplog):
    with fakes.driver(reply_link_credit=4) as s:
        s.up()
        task = s.call(timeout=60)
        s.world.settle()
        (request,) = s.peer.received
        queue = inner(request.message)["_reply_q"]
        for body in (b"\xff", b"[]", b'{"_msg_id": 7}', b"", b'{"ending": true}') * 3:
            s.peer.send(queue, Message(body, inferred=True))
            s.world.settle()
        answer(s, request, result="right", failure=None)
        assert task.result() == "right"
        assert "cannot be read" in caplog.text


# -- what is received


def request_from_them(unique_id="u", **fields):
    body = {"method": "m", "args": {}, "_unique_id": unique_id} | fields
    envelope = {"oslo.version": "2.0", "oslo.message": json.dumps(body)}
    return Message(json.dumps(envelope).encode(), inferred=True)


def test_a_request_is_answered_where_and_how_its_sender_wants_it():
    with fakes.driver() as s:
        listener = s.listen()
        s.peer.send(
            "unicast.openstack.t",
            request_from_them(
                _msg_id="id", _reply_q="their queue", _timeout=7, _context_user="u"
            ),
        )
        s.world.settle()
        task = s.world.go(listener.poll, 0)
        s.world.settle()
        (incoming,) = task.result()
        assert incoming.message == {"method": "m", "args": {}}
        assert incoming.ctxt == {"user": "u"}
        assert incoming.client_timeout == 7
        incoming.acknowledge()
        incoming.heartbeat()
        incoming.reply({"a": 1})
        s.world.settle()
        beat, reply = (each for each in s.peer.received)
        assert (beat.address, reply.address) == ("their queue", "their queue")
        assert beat.message.ttl == 7
        found = inner(beat.message)
        assert found.pop("_unique_id") != inner(reply.message)["_unique_id"]
        assert found == {
            "result": None, "failure": None, "ending": False, "_msg_id": "id"
        }  # fmt: skip
        found = inner(reply.message)
        assert (found["result"], found["ending"]) == ({"a": 1}, True)


def polled(s, listener):
    task = s.world.go(listener.poll, 0, 10)
    s.world.settle()
    return task.result()


def notified(s, listener, *unique_ids):
    handles = [
        s.peer.send(ADDRESS, request_from_them(unique_id)) for unique_id in unique_ids
    ]
    s.world.settle()
    return handles, polled(s, listener)


def test_a_copy_of_what_was_acknowledged_is_dropped(caplog):
    with fakes.driver() as s, caplog.at_level(logging.INFO):
        listener = s.listen_for_notifications()
        _, (first,) = notified(s, listener, "one")
        # Not acknowledged yet: it is not a copy of anything that was done.
        _, (again,) = notified(s, listener, "one")
        first.acknowledge()
        again.requeue()
        s.world.settle()
        s.peer.outcomes.clear()
        (copy, other), taken = notified(s, listener, "one", "two")
        assert [each._unique_id for each in taken] == ["two"]
        s.world.settle()
        assert s.peer.outcomes == [(copy, ACCEPTED)]
        assert "a copy of a message" in caplog.text


def test_what_was_requeued_is_no_copy():
    with fakes.driver() as s:
        listener = s.listen_for_notifications()
        for _ in range(3):
            _, (message,) = notified(s, listener, "one")
            message.requeue()


def test_what_was_acknowledged_as_its_link_went_is_known_again():
    """That is what copies come of."""
    with fakes.driver() as s:
        listener = s.listen_for_notifications()
        _, (message,) = notified(s, listener, "one")
        s.peer.cut()
        s.world.advance(5)
        message.acknowledge()
        _, taken = notified(s, listener, "one", "two")
        assert [each._unique_id for each in taken] == ["two"]


@pytest.mark.parametrize("least", [3, 30])
def test_copies_are_known_for_a_while_and_not_for_ever(least, monkeypatch):
    monkeypatch.setattr(copies, "LEAST", least)
    with fakes.driver(notify_server_credit=5) as s:
        listener = s.listen_for_notifications()
        known = max(least, copies.PER_CREDIT * 5)
        for number in range(2 * known):
            _, (message,) = notified(s, listener, str(number))
            message.acknowledge()
            s.world.advance(0.01)
            assert len(listener._had) <= 2 * known
        _, taken = notified(s, listener, "0", str(known), str(2 * known - 1))
        assert [each._unique_id for each in taken] == ["0"]


def test_messages_that_do_not_say_who_they_are_are_all_taken():
    with fakes.driver() as s:
        listener = s.listen_for_notifications()
        for _ in range(3):
            _, (message,) = notified(s, listener, None)
            message.acknowledge()


def test_what_is_no_request_is_rejected_and_named(caplog):
    with fakes.driver() as s:
        listener = s.listen_for_notifications()
        handle = s.peer.send(ADDRESS, Message("no JSON"))
        s.world.settle()
        assert polled(s, listener) == []
        s.world.settle()
        assert s.peer.outcomes == [(handle, REJECTED)]
        assert ADDRESS in caplog.text


# -- rejections that may be for now only


@pytest.mark.parametrize(
    "condition, description, later",
    [
        (None, "", True),
        ("amqp:precondition-failed", "queue 'q' is unavailable", True),
        ("amqp:precondition-failed", "bad 'to' address string", False),
        ("amqp:resource-limit-exceeded", "", True),
    ],
)
def test_rabbitmq_may_take_later_what_it_rejects(condition, description, later):
    extra = {}
    if condition is not None:
        extra = {"condition": condition, "description": description}
    # It asks for no virtual host, hence does not connect twice.
    with fakes.setting(network={"product": "RabbitMQ"}, addressing_mode="legacy") as s:
        s.up()
        s.peer.outcome = lambda message: (REJECTED, extra)
        task = s.cast()
        s.world.settle()
        s.peer.outcome = lambda message: ACCEPTED
        s.world.advance(2)
        if later:
            assert task.result() is None
            assert len(s.peer.received) == 2
        else:
            with pytest.raises(exceptions.MessageDeliveryFailure, match="rejected"):
                task.result()


def test_other_buses_reject_for_good():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: REJECTED
        task = s.cast()
        s.world.advance(2)
        with pytest.raises(exceptions.MessageDeliveryFailure, match="rejected"):
            task.result()
        assert len(s.peer.received) == 1


def test_replies_are_named_by_their_queue_where_that_is_not_its_address(monkeypatch):
    monkeypatch.setattr(
        LegacyAddresser,
        "reply_source",
        lambda self, unique: Node("/queues/reply_q", reply_to="reply_q"),
    )
    with fakes.driver() as s:
        s.up()
        task = s.call(timeout=60)
        s.world.settle()
        (request,) = s.peer.received
        assert inner(request.message)["_reply_q"] == "reply_q"
        body = RABBIT.reply(inner(request.message)["_msg_id"], "right", None, "u")
        s.peer.send("/queues/reply_q", body)
        s.world.settle()
        assert task.result() == "right"
