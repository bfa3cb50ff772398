# SPDX-License-Identifier: Apache-2.0
"""Calls and replies where the bus keeps the address for replies while a connection is
lost, as the embedded broker does."""

import pytest
from oslo_messaging import Target, exceptions

from greenamqp.buses import Service
from greenamqp.client import Destination
from greenamqp.client.doubt import IN_DOUBT_FOR
from greenamqp.client.wanted import FIRST_PAUSE
from greenamqp.connection.state import State
from greenamqp.engine import ACCEPTED, MODIFIED, RELEASED, Message
from tests.unit import fakes

KEEPS = {"product": "greenamqp"}
ONE = Destination(None, "t", "server", False, Service.RPC)
ANY = Destination(None, "t", None, False, Service.RPC)
REPLIES = Destination.reply("replies")


@pytest.fixture
def s():
    with fakes.setting(network=KEEPS, link_retry_delay=6) as made:
        made.up()
        yield made


# -- the address


@pytest.mark.parametrize("destination", [ANY, ONE])
def test_an_accepted_call_waits_on_at_the_same_address(s, destination):
    task, request = s.called(destination=destination)
    s.lose()
    assert request.message.reply_to in s.peer.attaches
    assert s.peer.received == []
    s.answered(task, request)
    # And so do those that come after it.
    assert s.called()[1].message.reply_to == request.message.reply_to


@pytest.mark.parametrize("how", ["link", "session"])
def test_a_call_waits_on_when_its_link_alone_is_gone(s, how):
    task, request = s.called()
    link = s.peer.outbound[request.message.reply_to]
    if how == "link":
        link.close("amqp:link:detach-forced", "an operator")
    else:
        link._proton.session.close()
    s.world.advance(FIRST_PAUSE)
    s.answered(task, request)


def test_an_address_may_outlive_its_link_and_not_its_connection():
    with fakes.setting(network={"product": "Apache Qpid Broker-J Core"}) as s:
        s.up()
        task, request = s.called()
        for _ in range(3):
            s.peer.outbound[request.message.reply_to].close("amqp:link:detach-forced")
            s.world.advance(FIRST_PAUSE)
        s.answered(task, request)
        task, request = s.called()
        s.lose()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="unknown"):
            task.result()
        assert s.called()[1].message.reply_to != request.message.reply_to


def test_a_call_that_waits_for_its_address_ends_at_its_deadline(s):
    task, request = s.called(timeout=20)
    s.network.default = "refused"
    s.peer.cut()
    s.world.advance(19)
    assert not task.done
    s.world.advance(2)
    with pytest.raises(TimeoutError, match="refused"):
        task.result()


def test_an_address_that_the_bus_no_longer_knows_is_replaced(s):
    task, request = s.called()
    gone = request.message.reply_to
    s.network.default = KEEPS | {"refuse": {gone: ("amqp:not-found", "gone")}}
    s.lose()
    with pytest.raises(exceptions.MessageDeliveryFailure, match="gone.*unknown"):
        task.result()
    task, request = s.called()
    assert request.message.reply_to != gone
    s.answered(task, request)


def test_an_address_that_is_refused_for_now_is_asked_for_again(s):
    task, request = s.called()
    address = request.message.reply_to
    locked = ("amqp:resource-locked", "belongs to another connection")
    s.network.default = KEEPS | {"refuse": {address: locked}}
    s.lose()
    assert not task.done
    s.peer.refuse.clear()
    s.world.advance(7)
    s.answered(task, request)


def test_another_bus_does_not_have_the_replies(s):
    task, _ = s.called()
    s.network.default = {}
    s.lose()
    with pytest.raises(exceptions.MessageDeliveryFailure, match="cannot be had"):
        task.result()


# -- requests whose outcome is lost


@pytest.mark.parametrize("destination", [ANY, ONE])
def test_a_request_is_sent_again_as_the_same(s, destination):
    s.peer.outcome = lambda message: None
    task, first = s.called(destination=destination)
    s.lose()
    (again,) = s.peer.received
    assert again.message.id == first.message.id
    assert again.message.reply_to == first.message.reply_to
    s.answered(task, first)


def reconnect(s):
    """Lose the connection, and wait until there is another one and no longer."""
    s.peer.cut()
    s.world.settle()
    while s.client.connection.state is not State.UP:
        s.world.advance(0.01)


def test_a_request_that_any_server_may_get_waits_for_its_reply_first(s):
    s.peer.outcome = lambda message: None
    task, first = s.called(destination=ANY)
    reconnect(s)
    assert s.peer.received == []
    s.answered(task, first)
    s.world.advance(IN_DOUBT_FOR)
    assert s.peer.received == []


def test_what_is_in_doubt_waits_for_where_replies_come(s):
    """The reply may be there already."""
    s.peer.outcome = lambda message: None
    task, first = s.called(destination=ANY)
    replies = first.message.reply_to
    s.network.default = KEEPS | {"refuse": {replies: ("amqp:internal-error", "")}}
    s.lose()
    assert s.peer.received == []
    s.peer.refuse.clear()
    while s.client.replies.address is None:
        s.world.advance(0.01)
    assert s.peer.received == []
    s.world.advance(IN_DOUBT_FOR)
    (again,) = s.peer.received
    assert again.message.id == first.message.id
    s.answered(task, first)


def test_what_is_in_doubt_is_still_when_the_connection_is_lost_once_more(s):
    s.peer.outcome = lambda message: None
    task, first = s.called(destination=ANY)
    s.network.default = KEEPS | {"outcome": lambda message: None}
    reconnect(s)
    reconnect(s)
    assert s.peer.received == []
    s.world.advance(IN_DOUBT_FOR)
    (again,) = s.peer.received
    assert again.message.id == first.message.id
    s.answered(task, first)


def test_a_request_that_any_server_may_get_is_not_sent_again_if_not_wanted():
    with fakes.setting(network=KEEPS, repeat_calls=False) as s:
        s.up()
        s.peer.outcome = lambda message: None
        task, first = s.called(destination=ANY)
        s.lose()
        assert s.peer.received == []
        s.answered(task, first)


def test_what_is_in_doubt_ends_by_its_time_out(s):
    s.peer.outcome = lambda message: None
    task, _ = s.called(destination=ANY, timeout=IN_DOUBT_FOR / 2)
    s.lose()
    with pytest.raises(TimeoutError):
        task.result()
    assert s.peer.received == []
    assert not s.client.replies.waiting


def test_a_request_without_retries_is_not_sent_again(s):
    s.peer.outcome = lambda message: None
    task, first = s.called(destination=ONE, retries=0)
    s.lose()
    assert s.peer.received == []
    s.answered(task, first)


def test_what_has_its_reply_is_not_sent_again(s):
    s.peer.outcome = lambda message: None
    task, first = s.called(destination=ONE)
    s.answered(task, first)
    s.lose()
    assert s.peer.received == []


def test_a_request_in_doubt_that_comes_back_keeps_its_id(s):
    """The first one may be at work: whichever is replied to, it is this call."""
    s.peer.outcome = lambda message: None
    task, first = s.called(destination=ONE)
    s.network.default = KEEPS | {"outcome": lambda message: RELEASED}
    s.lose()
    assert {each.message.id for each in s.peer.received} == {first.message.id}
    assert len(s.peer.received) > 1
    s.answered(task, first)


# -- replies


@pytest.mark.parametrize("retries", [0, 3, -1])
def test_a_reply_without_an_outcome_follows_to_the_next_connection(s, retries):
    s.peer.outcome = lambda message: None
    s.post("reply", destination=REPLIES, volatile=True, retries=retries)
    s.world.settle()
    (first,) = s.peer.received
    assert not first.settled
    s.network.default = KEEPS | {"outcome": lambda message: None}
    for _ in range(3):
        s.lose()
        (again,) = s.peer.received
        assert again.message.body == first.message.body


def test_a_reply_that_was_accepted_does_not_follow(s):
    s.post("reply", destination=REPLIES, volatile=True)
    s.world.settle()
    s.lose()
    assert s.peer.received == []


@pytest.mark.parametrize("sent", [True, False])
def test_at_the_end_a_reply_that_has_left_is_no_cause_for_a_warning(s, sent, caplog):
    s.peer.outcome = lambda message: None
    s.post("reply", destination=REPLIES, volatile=True)
    s.world.settle()
    if not sent:
        s.network.default = "refused"
        s.peer.cut()
        s.world.settle()
    closing = s.world.go(s.world.run, s.client.closing())
    s.world.advance(10)
    assert closing.done
    assert ("RPC reply to replies failed" in caplog.text) is not sent


def test_a_reply_follows_until_its_deadline(s, caplog):
    s.peer.outcome = lambda message: None
    s.post("reply", destination=REPLIES, volatile=True, timeout=20)
    s.world.settle()
    s.network.default = "refused"
    s.peer.cut()
    s.world.advance(25)
    assert "RPC reply to replies timed out" in caplog.text
    s.network.default = KEEPS
    s.world.advance(60)
    assert s.client.connection.state is State.UP
    assert s.peer.received == []


@pytest.mark.parametrize("outcome", [RELEASED, (MODIFIED, {"failed": True})])
def test_a_reply_that_comes_back_is_sent_again(s, outcome):
    """The queue of its caller may be away for the moment."""
    outcomes = [outcome, ACCEPTED]
    s.peer.outcome = lambda message: outcomes.pop(0)
    s.post("reply", destination=REPLIES, volatile=True, retries=-1)
    s.world.advance(2)
    assert len(s.peer.received) == 2


def test_a_reply_to_an_address_that_goes_with_its_connection_asks_for_no_outcome():
    with fakes.setting() as s:
        s.up()
        s.post("reply", destination=REPLIES, volatile=True)
        s.world.settle()
        (first,) = s.peer.received
        assert first.settled
        s.lose()
        assert s.peer.received == []


def test_the_second_copy_of_a_reply_disturbs_nobody(s, caplog):
    task, request = s.called()
    s.answered(task, request)
    s.peer.send(
        request.message.reply_to, Message("again", correlation_id=request.message.id)
    )
    s.world.settle()
    assert caplog.text == ""


# -- a queue that is asked for


def test_where_none_may_be_made_replies_come_from_what_goes_with_its_link():
    refuse = {"activemq.management": ("amqp:unauthorized-access", "not for you")}
    artemis = {"product": "apache-activemq-artemis", "refuse": refuse}
    with fakes.setting(network=artemis) as s:
        s.up()
        for _ in range(2):
            task, request = s.called()
            assert s.peer.outbound[request.message.reply_to].remote_source.dynamic
            s.answered(task, request)
            s.lose()
        task, request = s.called()
        s.lose()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="unknown"):
            task.result()


# -- copies of a request


@pytest.mark.parametrize(
    "reply_to, again, executed",
    [
        # A call may come again to whichever of a process's servers.
        ("replies", False, 1),
        ("replies", True, 2),
        # What is sent to all servers is for each of them.
        (None, False, 2),
    ],
)
def test_a_call_is_executed_by_one_server_of_a_process(reply_to, again, executed):
    request = Message('{"request": {}}', id="i" * 32, reply_to=reply_to)
    with fakes.driver(network=KEEPS) as s:
        taken = []
        for name in ("one", "two"):
            listener = s.listen(Target(topic="t", server=name))
            s.peer.send(f"exclusive.openstack.t.{name}", request)
            s.world.settle()
            (*messages,) = s.world.go(listener.poll, timeout=0).result()
            for message in messages:
                message.requeue() if again else message.acknowledge()
            taken += messages
        assert len(taken) == executed
