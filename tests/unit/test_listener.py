# SPDX-License-Identifier: Apache-2.0
"""Listeners and the messages that they give: polled, calling back, and waited for."""

import gc
import json
import logging
import math
import os
import select

import pytest
from oslo_messaging import Target

from greenamqp.engine import ACCEPTED, REJECTED, RELEASED, Message
from greenamqp.listener import _ReadyFd
from greenamqp.options import MAX_WAIT
from tests.unit import fakes

ANY = "unicast.openstack.t"
ONE = "exclusive.openstack.t.s"
INFO = "unicast.openstack.t.info"


def request(number=0, **fields):
    fields.setdefault("id", str(number))
    return Message(json.dumps({"request": {"n": number}, "context": {}}), **fields)


def send(s, *numbers, address=INFO, **options):
    """Send numbered messages; returns their handles."""
    handles = [s.peer.send(address, request(number), **options) for number in numbers]
    s.world.settle()
    return handles


def numbers(messages):
    return [message.message["n"] for message in messages]


def poll(s, listener, **arguments):
    """What a poll returns that need not wait."""
    return s.world.go(listener.poll, **{"timeout": 0, **arguments}).result()


def do(s, function, *args):
    """Call something from outside the hub's context, and let it take effect."""
    task = s.world.go(function, *args)
    s.world.settle()
    return task.result()


def outcomes(s):
    return [outcome for _, outcome in s.peer.outcomes]


@pytest.fixture
def rig():
    """A driver with a listener for notifications; `rig(...)` as of fakes.driver."""
    stack = []

    def make(batch_size=1, batch_timeout=None, rpc=False, **options):
        context = fakes.driver(**options)
        s = context.__enter__()
        if rpc:
            listener = s.listen(batch_size=batch_size, batch_timeout=batch_timeout)
        else:
            listener = s.listen_for_notifications(
                batch_size=batch_size, batch_timeout=batch_timeout
            )
        stack.append((context, s, listener))
        return s, listener

    yield make
    for context, s, listener in stack:
        do(s, listener.cleanup)
        context.__exit__(None, None, None)


# -- poll


def test_poll_gives_what_is_there(rig):
    s, listener = rig()
    assert poll(s, listener) == []
    send(s, 1, 2, 3)
    assert numbers(poll(s, listener)) == [1]
    assert numbers(poll(s, listener, batch_size=5)) == [2, 3]
    assert poll(s, listener) == []


FULL = {"batch_size": 3, "batch_timeout": 5}


@pytest.mark.parametrize(
    "arguments, steps, given",
    [
        # The first message, or the end of the time.
        ({"timeout": 10}, [(9, ()), (0, (1,))], [1]),
        ({"timeout": 10}, [(9, ()), (2, ())], []),
        ({}, [(100_000, ()), (0, (1,))], [1]),
        # A batch that is full.
        ({"timeout": None} | FULL, [(1, (0,)), (1, (1,)), (1, (2,))], [0, 1, 2]),
        ({"timeout": 100} | FULL, [(1, (0,)), (1, (1,)), (1, (2,))], [0, 1, 2]),
        # One that is not is given after batch_timeout.
        ({"timeout": None} | FULL, [(3, (1,)), (4, (2,)), (2, ())], [1, 2]),
        ({"timeout": 4} | FULL, [(3, (1,)), (4, (2,)), (2, ())], [1, 2]),
        ({"timeout": 100} | FULL, [(3, (1,)), (4, (2,)), (2, ())], [1, 2]),
        # Without that it waits as long as the poll.
        ({"timeout": 10, "batch_size": 3}, [(0, (1,)), (9, ()), (2, ())], [1]),
    ],
)
def test_when_a_poll_returns(rig, arguments, steps, given):
    """Each step: so many seconds later these messages come."""
    s, listener = rig()
    task = s.world.go(listener.poll, **arguments)
    for seconds, sent in steps:
        assert not task.done
        s.world.advance(seconds)
        send(s, *sent)
    assert numbers(task.result()) == given


@pytest.mark.parametrize("ever", [1e30, math.inf, math.nan])
def test_a_poll_for_ever_is_as_long_as_a_timer_can_wait(rig, ever):
    s, listener = rig()
    task = s.world.go(listener.poll, ever, 2, ever)
    for number in (1, 2):
        assert not task.done
        assert max(s.world.waiting.values()) == s.world.now() + MAX_WAIT
        send(s, number)
    assert numbers(task.result()) == [1, 2]


def test_a_batch_is_never_larger_than_the_credit(rig):
    s, listener = rig(batch_size=100, notify_server_credit=4)
    assert listener.batch_size == 4
    send(s, 0, 1, 2, 3)
    task = s.world.go(listener.poll, timeout=None, batch_size=100, batch_timeout=None)
    assert numbers(task.result()) == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [None, 0, -1])
def test_a_batch_has_one_message_at_the_least(rig, size):
    s, listener = rig(batch_size=size)
    send(s, 1, 2)
    messages, more = listener.take()
    assert numbers(messages) == [1] and more


def test_several_poll_at_a_time(rig):
    s, listener = rig()
    tasks = [s.world.go(listener.poll, timeout=None) for _ in range(3)]
    send(s, 1)
    assert sum(task.done for task in tasks) == 1
    send(s, 2, 3)
    assert sorted(numbers(sum((task.result() for task in tasks), []))) == [1, 2, 3]


def test_who_is_thrown_out_of_a_poll_leaves_nothing(rig):
    s, listener = rig()
    task = s.world.go(listener.poll, timeout=None)
    task.throw(KeyError())
    assert isinstance(task.error, KeyError)
    assert listener._waiters == []
    send(s, 1)
    assert numbers(poll(s, listener)) == [1]


# -- what becomes of messages


@pytest.mark.parametrize("rpc", [True, False])
def test_only_what_may_come_again_is_acknowledged_later(rpc):
    """A request that is executed twice is worse than one that is executed late."""
    options = {"addressing_mode": "legacy", "network": {"product": "RabbitMQ"}}
    with fakes.driver(**options) as s:
        s.world.punctual = True
        listener = s.listen() if rpc else s.listen_for_notifications()
        (handle,) = send(s, 1, address=ANY if rpc else INFO)
        (incoming,) = poll(s, listener)
        do(s, incoming.acknowledge)
        assert s.peer.outcomes == ([(handle, ACCEPTED)] if rpc else [])
        s.world.advance(1)
        assert s.peer.outcomes == [(handle, ACCEPTED)]
        do(s, listener.cleanup)


@pytest.mark.parametrize(
    "method, outcome", [("acknowledge", ACCEPTED), ("requeue", RELEASED)]
)
def test_what_becomes_of_a_message(rig, method, outcome):
    s, listener = rig()
    (handle,) = send(s, 1)
    (incoming,) = poll(s, listener)
    assert s.peer.outcomes == []
    do(s, getattr(incoming, method))
    assert s.peer.outcomes == [(handle, outcome)]


def test_the_first_word_counts(rig):
    s, listener = rig()
    send(s, 1)
    (incoming,) = poll(s, listener)
    for _ in range(2):
        do(s, incoming.acknowledge)
        do(s, incoming.requeue)
    assert outcomes(s) == [ACCEPTED]


def test_a_consumer_holds_one_window_and_no_more(rig):
    s, listener = rig(notify_server_credit=4)
    send(s, 0, 1, 2, 3)
    taken = poll(s, listener, batch_size=4)
    s.world.advance(100)
    assert s.peer.outbound[INFO].credit == 0
    for incoming in taken[:2]:
        do(s, incoming.acknowledge)
    assert s.peer.outbound[INFO].credit == 2
    do(s, taken[2].requeue)
    do(s, taken[3].acknowledge)
    assert s.peer.outbound[INFO].credit == 4


def test_what_came_over_a_lost_link_is_left_out_and_said_to_come_again(rig, caplog):
    s, listener = rig()
    send(s, 1, 2)
    (first,) = poll(s, listener)
    s.peer.cut()
    s.world.advance(5)
    do(s, first.acknowledge)
    assert "1 from unicast.openstack.t.info cannot be acknowledged" in caplog.text
    send(s, 2, 1)
    assert numbers(poll(s, listener, batch_size=5)) == [2, 1]
    assert outcomes(s) == []


def test_what_its_sender_settled_meanwhile_is_requeued_here(rig):
    """The peer waits for no outcome, so it would not come again."""
    s, listener = rig()
    send(s, 1)
    (incoming,) = poll(s, listener)
    (link,) = s.peer.outbound.values()
    link.settle_oldest()
    s.world.settle()
    do(s, incoming.requeue)
    (again,) = poll(s, listener)
    assert numbers([again]) == [1]
    do(s, again.acknowledge)
    assert poll(s, listener) == []


@pytest.mark.parametrize("end", ["poll", "stop"])
def test_what_was_sent_settled_is_kept_when_its_link_is_lost(rig, end, caplog):
    """It does not come again: the predecessor sends casts so."""
    s, listener = rig()
    got = []
    if end == "stop":
        do(s, listener.start, got.extend)
        # The callback is at work on the first, the others wait.
        listener._deliverer = "somebody"
    send(s, 1, 2, 3, settled=True)
    send(s, 4)
    s.peer.cut()
    s.world.advance(5)
    if end == "poll":
        got = poll(s, listener, batch_size=5)
    else:
        listener._deliverer = None
        do(s, listener.stop)
    assert numbers(got) == [1, 2, 3]
    for incoming in got:
        do(s, incoming.acknowledge)
    assert "cannot be acknowledged" not in caplog.text


def test_a_slow_listener_does_not_hold_up_another(rig):
    s, slow = rig(notify_server_credit=1)
    other = s.listen_for_notifications([(Target(topic="other"), "info")])
    send(s, 1)
    for number in range(10):
        send(s, number, address="unicast.openstack.other.info")
        (incoming,) = poll(s, other)
        assert numbers([incoming]) == [number]
        do(s, incoming.acknowledge)
    assert numbers(poll(s, slow)) == [1]
    do(s, other.cleanup)


def test_what_is_done_after_cleanup_is_logged_and_raises_nothing(rig, caplog):
    """An endpoint may be at work for longer than its transport lives."""
    s, listener = rig(rpc=True)
    for number in range(2):
        s.peer.send(ANY, request(number, reply_to="me"))
    s.world.settle()
    first, second = poll(s, listener, batch_size=2)
    closing = s.world.go(s.driver.cleanup)
    s.world.settle()
    assert closing.result() is None
    fakes.leftovers(s.world)
    for late in (
        first.acknowledge,
        first.heartbeat,
        lambda: first.reply("late"),
        second.requeue,
        listener.stop,
        listener.cleanup,
    ):
        assert s.world.go(late).result() is None
        # The hub may have no loop any more that timers could be set in.
        assert s.world.timers == 0
    assert caplog.text.count("as its link is gone") == 2
    assert "RPC reply to me failed: the transport was cleaned up" in caplog.text


# -- what comes again

ONCE = "0123456789abcdef0123456789abcdef."


def send_as(s, *ids, address=ANY):
    """Send requests that say who they are."""
    for number, id in enumerate(ids):
        s.peer.send(address, request(number, id=id))
    s.world.settle()


@pytest.mark.parametrize("acknowledged", [True, False])
@pytest.mark.parametrize("lost", [True, False])
def test_a_request_that_comes_again_is_not_executed_again(
    rig, acknowledged, lost, caplog
):
    """Also while the first one waits for a worker, which will execute it."""
    s, listener = rig(rpc=True)
    send_as(s, ONCE + "1")
    (first,) = poll(s, listener)
    if lost:
        s.peer.cut()
        s.world.advance(5)
    if acknowledged:
        do(s, first.acknowledge)
    s.peer.outcomes.clear()
    with caplog.at_level(logging.INFO):
        send_as(s, ONCE + "1", ONCE + "2")
        assert numbers(poll(s, listener, batch_size=9)) == [1]
    s.world.settle()
    assert outcomes(s) == [ACCEPTED]
    assert "came before" in caplog.text


def test_a_request_that_was_given_back_is_executed_when_it_comes_again(rig):
    s, listener = rig(rpc=True)
    for _ in range(3):
        send_as(s, ONCE + "1")
        (incoming,) = poll(s, listener)
        do(s, incoming.requeue)


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_notification_that_was_acknowledged_is_known(rig, acknowledged):
    """One that was given back is not."""
    s, listener = rig()
    send_as(s, ONCE + "1", address=INFO)
    (first,) = poll(s, listener)
    do(s, first.acknowledge if acknowledged else first.requeue)
    send_as(s, ONCE + "1", ONCE + "2", address=INFO)
    expected = [1] if acknowledged else [0, 1]
    assert numbers(poll(s, listener, batch_size=9)) == expected


def test_a_short_id_may_be_that_of_many(rig):
    s, listener = rig(rpc=True)
    for _ in range(3):
        send_as(s, "1")
        (incoming,) = poll(s, listener)
        do(s, incoming.acknowledge)


def test_a_message_says_who_it_is():
    with fakes.driver() as s:
        s.up()
        tasks = [s.send(), s.notify(), s.notify(), s.call()]
        s.world.settle()
        ids = {each.message.id for each in s.peer.received}
        assert len(ids) == len(tasks)
        assert all(len(id) > 32 for id in ids)
        s.peer.reply(s.peer.received[-1], '{"response": 1}')
        s.world.settle()
        assert tasks[-1].result() == 1


# -- RPC


def requested(rig, **fields):
    """A request that a server has in its hands."""
    s, listener = rig(rpc=True)
    s.peer.send(ANY, request(1, **fields))
    s.world.settle()
    (incoming,) = poll(s, listener)
    return s, incoming


def test_a_reply(rig):
    s, incoming = requested(rig, id="the id", reply_to="me")
    do(s, incoming.reply, {"answer": 42})
    (reply,) = s.peer.received
    assert reply.address == "me"
    assert reply.message.correlation_id == "the id"
    assert json.loads(reply.message.body) == {"response": {"answer": 42}}


@pytest.mark.parametrize("message_id", ["text", 7, b"binary"])
def test_the_callers_id_comes_back_as_it_was(rig, message_id):
    s, incoming = requested(rig, id=message_id, reply_to="me")
    do(s, incoming.reply)
    assert s.peer.received[0].message.correlation_id == message_id


def test_a_failure(rig):
    s, incoming = requested(rig, reply_to="me")
    try:
        raise ValueError("the reason")
    except ValueError as exc:
        do(s, incoming.reply, None, (type(exc), exc, exc.__traceback__))
    failure = json.loads(json.loads(s.peer.received[0].message.body)["failure"])
    assert failure["class"] == "ValueError"
    assert failure["message"] == "the reason"


@pytest.mark.parametrize("reply_to", ["me", None])
def test_a_request_that_is_requeued(rig, reply_to):
    s, incoming = requested(rig, reply_to=reply_to)
    do(s, incoming.requeue)
    assert outcomes(s) == [RELEASED]


def test_a_reply_address_that_is_longer_than_any(rig, caplog):
    """A bus may close the connection for it, each time that the reply is tried."""
    s, listener = rig(rpc=True)
    s.peer.send(ANY, request(1, reply_to="r" * 60_000, id="x\nforged"))
    s.peer.send(ANY, request(2, reply_to="me"))
    s.world.settle()
    for incoming in poll(s, listener, batch_size=2):
        do(s, incoming.reply)
    s.world.advance(60)
    assert len(s.network.peers) == 1
    assert [each.address for each in s.peer.received] == ["me"]
    assert "gets no reply: the address for it has 60000 characters" in caplog.text
    assert r"(id x\nforged)" in caplog.text


def test_a_cast_gets_no_reply(rig):
    s, incoming = requested(rig)
    do(s, incoming.reply, "ignored")
    do(s, incoming.acknowledge)
    assert s.peer.received == []
    assert outcomes(s) == [ACCEPTED]


def monitored(rig, seconds=9, reply_to="me"):
    """A request whose caller wants to hear of the work on it."""
    s, listener = rig(rpc=True)
    body = {"request": {"n": 1}, "context": {}, "call_monitor_timeout": seconds}
    s.peer.send(ANY, Message(json.dumps(body), id="the id", reply_to=reply_to))
    s.world.settle()
    (incoming,) = poll(s, listener)
    return s, incoming


def test_heartbeats(rig):
    s, incoming = monitored(rig)
    assert incoming.client_timeout == 9
    do(s, incoming.heartbeat)
    (beat,) = s.peer.received
    assert beat.message.body is None
    assert beat.message.correlation_id == "the id"
    assert beat.message.ttl == 9
    assert beat.settled


@pytest.mark.parametrize("end", ["reply", "requeue"])
def test_heartbeats_end_with_the_work(rig, end):
    """The server's thread that sends them goes on for as long as it can."""
    s, incoming = monitored(rig)
    do(s, getattr(incoming, end))
    sent = len(s.peer.received)
    with pytest.raises(RuntimeError, match="not worked on any more"):
        do(s, incoming.heartbeat)
    assert len(s.peer.received) == sent


def test_a_heartbeat_for_nobody(rig, caplog):
    s, incoming = monitored(rig, reply_to=None)
    assert incoming.client_timeout is None
    do(s, incoming.heartbeat)
    assert "names no reply address" in caplog.text
    assert s.peer.received == []


def test_a_stale_heartbeat_is_not_sent(rig):
    s, incoming = monitored(rig, seconds=5)
    s.peer.credit = 0
    do(s, incoming.heartbeat)
    s.world.advance(10)
    s.peer.inbound["me"].flow(10)
    s.world.settle()
    assert s.peer.received == []


def test_replies_of_a_batch_leave_in_one_write(rig):
    s, listener = rig(rpc=True)
    for number in range(10):
        s.peer.send(ANY, request(number, reply_to="me"))
    s.world.settle()
    batch = poll(s, listener, batch_size=10)
    do(s, batch[0].reply)  # attaches the link
    written = len(s.peer.stream.writes)
    for incoming in batch[1:]:
        s.world.go(incoming.reply, "answer").result()
    s.world.settle()
    assert len(s.peer.received) == 10
    assert len(s.peer.stream.writes) == written + 1


def test_the_last_reply_leaves_at_once(rig):
    s, listener = rig(rpc=True)
    # One that is given back, one that is answered twice: neither is at work any more.
    for number in range(3):
        s.peer.send(ANY, request(number, reply_to="me"))
    s.world.settle()
    first, second, third = poll(s, listener, batch_size=3)
    do(s, first.requeue)
    do(s, second.reply)
    do(s, second.reply)
    third.reply("urgent")
    # Nothing has moved since: it is on the wire already.
    assert b"urgent" in s.peer.stream.outbound
    s.world.settle()
    assert s.driver._client.requests_at_work == 0


def test_a_request_that_is_never_replied_to_is_at_work_no_more(rig):
    """Its endpoint was left by a green thread's time-out, say: no server replies."""
    s, listener = rig(rpc=True)
    for number in range(2):
        s.peer.send(ANY, request(number, reply_to="me"))
    s.world.settle()
    dropped, kept = poll(s, listener, batch_size=2)
    assert s.driver._client.requests_at_work == 2
    del dropped
    gc.collect()
    s.world.settle()
    assert s.driver._client.requests_at_work == 1
    kept.reply("urgent")
    s.world.settle()
    assert s.driver._client.requests_at_work == 0
    assert len(s.peer.received) == 1


# -- bad messages


BAD = [
    (Message("no JSON", id="bad"), "not JSON"),
    (Message("[]", id="bad"), "not a JSON object"),
    (Message(None, id="bad"), "not text"),
    (Message('{"request": 7}', id="bad"), "the request is not an object"),
    (Message("[" * 100_000, id="bad"), "too deeply"),
    (Message({"a": "map"}, id="bad"), "not text"),
    (Message('{"request": {"priority": null}}', id="bad"), "priority of the"),
    # What is said of it is as long as a frame may not be.
    (
        Message(
            json.dumps(
                {"request": {"oslo.version": "9" + ".1" * 50_000, "oslo.message": "{}"}}
            ),
            id="bad",
        ),
        "envelope cannot be opened",
    ),
]


@pytest.mark.parametrize("bad, reason", BAD, ids=[reason for _, reason in BAD])
@pytest.mark.parametrize("style", ["poll", "callback"])
def test_a_bad_message_is_rejected_and_the_next_one_given(
    rig, style, bad, reason, caplog
):
    s, listener = rig()
    got = []
    if style == "callback":
        listener.start(got.extend)
    handle = s.peer.send(INFO, bad)
    send(s, 1)
    s.world.settle()
    if style == "poll":
        got += poll(s, listener)
    assert numbers(got) == [1]
    s.world.settle()
    assert s.peer.outcomes == [(handle, REJECTED)]
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    line = record.getMessage()
    assert reason in line and INFO in line and "bad" in line


def test_what_is_no_amqp_message_is_rejected(rig, caplog):
    s, listener = rig()
    handle = s.peer.send(INFO, b"\x00Sw\xa1\x02\xff\xfe")
    send(s, 1)
    assert numbers(poll(s, listener)) == [1]
    assert s.peer.outcomes == [(handle, REJECTED)]
    assert INFO in caplog.text


def test_no_message_writes_lines_of_its_own_into_the_log(rig, caplog):
    s, listener = rig()
    forged = "x\n2026-01-01 ERROR all is lost\x1b[2J"
    s.peer.send(INFO, Message("bad", id=forged))
    s.peer.send(INFO, Message(json.dumps({"request": {}, "context": {}}), id=forged))
    s.world.settle()
    (incoming,) = poll(s, listener)
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    for text in (record.getMessage(), incoming.msg_id):
        assert text.isprintable() and r"x\n2026-01-01 ERROR" in text


def test_bad_messages_return_their_credit(rig):
    s, listener = rig(notify_server_credit=2)
    for _ in range(10):
        s.peer.send(INFO, Message("bad"))
        s.world.settle()
        assert poll(s, listener) == []
        s.world.settle()
    assert s.peer.outbound[INFO].credit >= 1
    assert outcomes(s) == [REJECTED] * 10


# -- calling back


def test_the_callback_gets_lists_of_messages(rig):
    """What came before the start as well."""
    s, listener = rig()
    send(s, 1, 2)
    got = []
    listener.start(got.append)
    s.world.settle()
    send(s, 3)
    send(s, 4, 5)
    assert [numbers(messages) for messages in got] == [[1], [2], [3], [4], [5]]


@pytest.mark.parametrize(
    "size, timeout, steps",
    [
        # It is full: at once.
        (3, 100, [(0, [1, 2], []), (0, [3, 4], [[1, 2, 3]])]),
        # It is not: after its time.  The next one has the whole time for itself.
        (
            *(3, 7),
            [
                *((0, [1], []), (5, [2], []), (1, [], []), (2, [], [[1, 2]])),
                *((0, [3], []), (6, [], []), (2, [], [[3]])),
            ],
        ),
        # The rest of one waits from when it is the first.
        (2, 7, [(0, [1], []), (6, [2, 3], [[1, 2]]), (6, [], []), (2, [], [[3]])]),
        # Without a time only full ones.
        (3, None, [(0, [1, 2], []), (100_000, [], []), (0, [3], [[1, 2, 3]])]),
    ],
)
def test_when_a_batch_is_given(rig, size, timeout, steps):
    """Each step: so many seconds later these messages come, and those are given."""
    s, listener = rig(batch_size=size, batch_timeout=timeout)
    got = []
    listener.start(got.append)
    for seconds, sent, given in steps:
        s.world.advance(seconds)
        send(s, *sent)
        assert [numbers(messages) for messages in got] == given
        got.clear()


def test_one_call_at_a_time(rig):
    s, listener = rig()
    running = []
    got = []
    gate = s.world.waiter()

    def callback(messages):
        running.append(1)
        assert len(running) == 1
        gate.wait(None)
        got.extend(messages)
        running.pop()

    listener.start(callback)
    send(s, 1, 2, 3)
    for number in range(1, 4):
        assert numbers(got) == list(range(1, number))
        gate.wake()
        s.world.settle()
    assert numbers(got) == [1, 2, 3]


def test_a_callback_that_waits_holds_up_no_other_listener(rig):
    s, listener = rig()
    other = s.listen_for_notifications([(Target(topic="other"), "info")])
    gate = s.world.waiter()
    listener.start(lambda messages: gate.wait(None))
    got = []
    other.start(got.extend)
    send(s, 1)
    send(s, 2, 3, address="unicast.openstack.other.info")
    assert numbers(got) == [2, 3]
    gate.wake()
    do(s, other.cleanup)


def test_what_a_callback_does_not_take_is_given_back(rig, caplog):
    s, listener = rig(batch_size=2, batch_timeout=1)
    got = []

    def callback(messages):
        if not got:
            got.append("failed")
            raise ValueError("on purpose")
        got.extend(messages)

    listener.start(callback)
    # The rig fails on logged tracebacks, by the latest handler; this one is wanted.
    logging.getLogger("greenamqp").handlers[-1].addFilter(lambda record: False)
    send(s, 1, 2)
    assert outcomes(s) == [RELEASED, RELEASED]
    assert "on purpose" in caplog.text
    send(s, 3, 4)
    assert numbers(got[1:]) == [3, 4]


# -- stopping


def test_after_stop_nothing_is_given(rig):
    s, listener = rig()
    got = []
    listener.start(got.append)
    do(s, listener.stop)
    assert s.peer.outbound[INFO].credit <= 0
    s.world.advance(100)
    assert got == []


def test_stop_gives_back_what_was_not_taken(rig):
    s, listener = rig(batch_size=5, batch_timeout=100)
    listener.start(lambda messages: None)
    handles = send(s, 1, 2, 3)
    do(s, listener.stop)
    assert s.peer.outcomes == [(handle, RELEASED) for handle in handles]


def test_what_was_taken_can_be_acknowledged_after_stop(rig):
    s, listener = rig()
    got = []
    listener.start(got.extend)
    send(s, 1)
    do(s, listener.stop)
    do(s, got[0].acknowledge)
    assert outcomes(s) == [ACCEPTED]


def test_what_cannot_go_back_is_given_to_the_callback_even_so(rig):
    s, listener = rig(batch_size=5, batch_timeout=100)
    got = []
    listener.start(got.extend)
    send(s, 1)
    send(s, 2, settled=True)
    do(s, listener.stop)
    assert numbers(got) == [2]
    assert outcomes(s) == [RELEASED]


def test_stop_waits_for_the_callback_that_runs(rig):
    s, listener = rig()
    gate = s.world.waiter()
    listener.start(lambda messages: gate.wait(None))
    send(s, 1, 2)
    stopping = s.world.go(listener.stop)
    s.world.advance(100)
    assert not stopping.done
    gate.wake()
    s.world.settle()
    assert stopping.result() is None
    assert outcomes(s) == [RELEASED]


def test_stop_from_within_the_callback(rig):
    s, listener = rig()
    got = []

    def callback(messages):
        got.extend(messages)
        listener.stop()

    listener.start(callback)
    send(s, 1, 2, 3)
    assert numbers(got) == [1]
    assert outcomes(s) == [RELEASED, RELEASED]


def test_stop_ends_a_poll(rig):
    s, listener = rig()
    task = s.world.go(listener.poll, timeout=None)
    do(s, listener.stop)
    assert task.result() == []
    assert s.world.go(listener.poll, timeout=None).result() == []


def test_what_is_queued_can_be_polled_after_stop(rig):
    s, listener = rig()
    send(s, 1, 2)
    do(s, listener.stop)
    assert numbers(poll(s, listener, batch_size=9)) == [1, 2]


def test_cleanup_detaches_and_gives_everything_back(rig):
    s, listener = rig()
    send(s, 1, 2, 3)
    (taken,) = poll(s, listener)
    for _ in range(2):
        do(s, listener.cleanup)
    assert s.peer.outbound == {}
    do(s, taken.acknowledge)
    assert ACCEPTED not in outcomes(s)
    s.peer.cut()
    s.world.advance(5)
    assert s.peer.outbound == {}


def test_cleanup_of_a_driver_ends_its_listeners_links():
    with fakes.driver() as s:
        listener = s.listen()
        do(s, s.driver.cleanup)
        assert s.peer.events[-1] == ("closed", None)
        do(s, listener.stop)
        do(s, listener.cleanup)


# -- the descriptor


def readable(listener):
    waiting = select.poll()
    waiting.register(listener.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def test_the_descriptor_is_readable_while_there_is_something_to_take(rig):
    s, listener = rig()
    assert not readable(listener)
    send(s, 1, 2)
    assert readable(listener)
    poll(s, listener)
    assert readable(listener)
    poll(s, listener)
    assert not readable(listener)
    for _ in range(5):
        send(s, 1)
        assert readable(listener)
        poll(s, listener)
        assert not readable(listener)


def test_a_descriptor_asked_for_late_shows_what_is_there_already(rig):
    s, listener = rig()
    send(s, 1)
    assert readable(listener)


def test_the_descriptor_stays_the_same_whatever_becomes_of_the_connection(rig):
    s, listener = rig()
    fd = listener.fileno()
    send(s, 1)
    s.peer.cut()
    s.world.advance(5)
    assert listener.fileno() == fd
    # A spurious wake-up is allowed: it is over once somebody has looked.
    assert poll(s, listener) == []
    assert not readable(listener)
    send(s, 2)
    assert readable(listener)


def test_a_bad_message_leaves_the_descriptor_as_it_should_be(rig):
    s, listener = rig()
    listener.fileno()
    s.peer.send(INFO, Message("bad"))
    s.world.settle()
    poll(s, listener)
    assert not readable(listener)


def test_cleanup_closes_the_descriptor():
    before = os.listdir("/proc/self/fd")
    with fakes.driver() as s:
        listener = s.listen()
        fd = listener.fileno()
        assert str(fd) in os.listdir("/proc/self/fd")
        do(s, listener.cleanup)
        with pytest.raises(ValueError, match="cleaned up"):
            listener.fileno()
    assert os.listdir("/proc/self/fd") == before


def test_a_child_that_has_closed_all_closes_no_other_file(rig):
    """A daemon: what it opens gets the numbers that it has closed."""
    s, listener = rig()
    number = listener.fileno()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), number)
            listener.cleanup()
            os.fstat(number)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    send(s, 1)
    assert select.select([number], [], [], 0)[0] == [number]


# -- for executors


def test_who_attends_is_told_and_takes(rig):
    s, listener = rig(batch_size=2, batch_timeout=3)
    told = []
    listener.attend(lambda: told.append(1))
    assert listener.take() == ([], False)
    send(s, 1)
    assert told == []
    assert listener.take() == ([], False)
    s.world.advance(4)
    assert told == [1]
    messages, more = listener.take()
    assert (numbers(messages), more) == ([1], False)
    send(s, 2, 3, 4, 5)
    assert len(told) > 1
    messages, more = listener.take()
    assert (numbers(messages), more) == ([2, 3], True)
    messages, more = listener.take()
    assert (numbers(messages), more) == ([4, 5], False)
    told.clear()
    listener.attend(None)
    send(s, 6, 7)
    assert told == []
    listener.attend(lambda: told.append(1))
    assert told == [1]


def test_a_descriptor_that_cannot_be_made_leaves_none_behind():
    class Ended:
        def fileno(self):
            raise OSError("too many open files")

    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="too many"):
        _ReadyFd(Ended())
    assert len(os.listdir("/proc/self/fd")) == len(before)
