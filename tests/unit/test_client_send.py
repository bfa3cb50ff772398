# SPDX-License-Identifier: Apache-2.0
"""Messages on their way out: outcomes, retries, deadlines, and what becomes of them
when a link or the connection goes."""

import collections
import logging
import time

import pytest
from oslo_messaging import Target, exceptions

from greenamqp.buses import Node, Service
from greenamqp.client import Destination, absence, client
from greenamqp.client.sending import LONGEST_ROUTER_PAUSE
from greenamqp.connection.state import State
from greenamqp.engine import (
    ACCEPTED,
    MODIFIED,
    REJECTED,
    RELEASED,
    LinkState,
    Message,
)
from greenamqp.engine.connection import LINKS_PER_SESSION
from tests.unit import fakes

ADDRESS = "unicast.openstack.t"


def bodies(peer):
    return [received.message.body for received in peer.received]


def outcomes(*given):
    """A peer's outcomes for one message after the other; the last one stays."""
    left = list(given)
    return lambda message: left.pop(0) if len(left) > 1 else left[0]


# -- the ordinary case


def test_send_returns_when_the_message_is_accepted():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: None
        task = s.notify("body")
        s.world.settle()
        (received,) = s.peer.received
        assert received.address == received.message.address == ADDRESS
        assert received.message.body == "body"
        assert not received.settled
        assert not task.done
        s.peer.settle(received, ACCEPTED)
        s.world.settle()
        assert task.result() is None


def test_what_is_sent_settled_is_not_waited_for():
    with fakes.setting() as s:
        s.up()
        task = s.cast(settled=True)
        assert task.result() is None
        s.world.settle()
        assert s.peer.received[0].settled


def test_a_settled_message_waits_for_link_and_credit():
    with fakes.setting(network={"credit": 0}) as s:
        task = s.cast("a", settled=True)
        s.world.settle()
        assert s.client.connection.state is State.UP
        assert not task.done
        s.peer.inbound[ADDRESS].flow(1)
        s.world.settle()
        assert task.result() is None
        assert bodies(s.peer) == ["a"]


def test_one_link_for_many_messages_in_their_order():
    with fakes.setting() as s:
        tasks = [s.notify(str(number)) for number in range(20)]
        s.world.settle()
        tasks += [s.notify(str(number)) for number in range(20, 40)]
        s.world.settle()
        assert [task.result() for task in tasks] == [None] * 40
        assert bodies(s.peer) == [str(number) for number in range(40)]
        assert s.peer.attaches == [ADDRESS]


def test_no_more_is_sent_than_credit_allows():
    with fakes.setting(network={"credit": 3}) as s:
        tasks = [s.notify(str(number)) for number in range(10)]
        s.world.settle()
        assert bodies(s.peer) == ["0", "1", "2"]
        s.peer.inbound[ADDRESS].flow(5)
        s.world.settle()
        assert len(s.peer.received) == 8
        assert sum(task.done for task in tasks) == 8
        s.peer.inbound[ADDRESS].flow(5)
        s.world.settle()
        assert bodies(s.peer) == [str(number) for number in range(10)]


def test_destinations_do_not_wait_for_each_other():
    with fakes.setting() as s:
        s.up()
        s.peer.credit = 0
        stuck = s.notify(destination=Destination.reply("slow"))
        other = s.notify(destination=Destination.reply("quick"))
        s.world.settle()
        s.peer.inbound["quick"].flow(1)
        s.world.settle()
        assert other.done and not stuck.done


@pytest.mark.parametrize(
    "target, address",
    [
        (Target(topic="t", exchange="x"), "unicast.x.t"),
        (Target(topic="t", server="s"), "exclusive.openstack.t.s"),
        (Target(topic="t", server="s", fanout=True), "broadcast.openstack.t.all"),
    ],
)
def test_targets_become_addresses(target, address):
    with fakes.setting() as s:
        task = s.cast(destination=Destination.of(target, Service.RPC))
        s.world.settle()
        assert task.result() is None
        assert s.peer.received[0].address == address


def test_what_one_wakeup_sends_leaves_in_one_write():
    with fakes.setting() as s:
        s.up()

        def chatter():
            for number in range(30):
                s.world.run(
                    s.client.sending(
                        "RPC cast",
                        fakes.RPC,
                        lambda format, text=str(number): fakes.Message(text),
                        deadline=s.world.now() + 5,
                        settled=True,
                    )
                )

        s.world.spawn(chatter)
        s.world.spawn(chatter)
        written = len(s.peer.stream.writes)
        s.world.settle()
        assert len(s.peer.received) == 60
        assert len(s.peer.stream.writes) == written + 1


# -- outcomes


ROUTER = {"product": "qpid-dispatch-router"}
FANOUT = Destination.of(Target(topic="t", fanout=True), Service.RPC)


def nobody(**kinds):
    """On a router, a link without credit: nobody is there."""
    return fakes.setting(network=ROUTER | {"credit": 0}, **kinds)


def up(s):
    """Connect, and attach the links to where the tests send."""
    waiting = [s.call(timeout=1), s.cast(timeout=1, destination=FANOUT)]
    s.world.advance(5)
    assert all(task.done for task in waiting)


def test_a_fanout_to_nobody_is_done_after_a_grace_and_then_at_once():
    with nobody() as s:
        up(s)
        first = s.cast(destination=FANOUT)
        s.world.advance(absence.GRACE - 0.1)
        second = s.cast(destination=FANOUT)
        assert not first.done
        s.world.advance(0.1)
        assert first.result() is None
        assert second.result() is None
        assert s.peer.received == []


def test_a_fanout_goes_to_whom_the_grace_brings():
    with nobody() as s:
        up(s)
        task = s.cast("body", destination=FANOUT)
        s.world.advance(absence.GRACE / 2)
        (link,) = [
            link for address, link in s.peer.inbound.items() if "multicast" in address
        ]
        link.flow(10)
        s.world.settle()
        assert task.result() is None
        assert bodies(s.peer) == ["body"]


def test_a_cast_to_nobody_fails_soon_and_a_call_or_notification_waits():
    with nobody() as s:
        up(s)
        cast = s.cast(impatient=True)
        mandatory = s.cast(mandatory=True)
        patient = [s.call(timeout=20), s.notify(timeout=20)]
        s.world.advance(absence.GRACE)
        with pytest.raises(exceptions.MessageUndeliverable):
            mandatory.result()
        assert not cast.done
        s.world.advance(absence.PATIENCE - absence.GRACE)
        with pytest.raises(exceptions.MessageDeliveryFailure, match="no credit"):
            cast.result()
        assert not any(task.done for task in patient)
        s.world.advance(20)
        for task in patient:
            with pytest.raises(TimeoutError):
                task.result()


def test_a_cast_that_a_router_releases_fails_soon():
    with fakes.setting(network=ROUTER) as s:
        s.up()
        s.peer.outcome = outcomes(RELEASED)
        cast = s.cast(impatient=True)
        s.world.advance(absence.PATIENCE + LONGEST_ROUTER_PAUSE)
        with pytest.raises(exceptions.MessageDeliveryFailure, match="nobody there"):
            cast.result()


@pytest.mark.parametrize(
    "product, kinds, left",
    [
        # A router does not take it back from a busy server: the server has to know.
        (ROUTER, {"impatient": True}, 20 - absence.OUTCOME_TIME),
        (ROUTER, {"impatient": True, "settled": True}, None),
        # It is done though it has no outcome, and is executed then.
        (ROUTER, {"impatient": True, "destination": FANOUT}, None),
        # Whoever stores it may keep it for long.
        ({}, {"impatient": True}, None),
    ],
)
def test_when_a_cast_expires(product, kinds, left):
    with fakes.setting(network=product) as s:
        s.up()
        s.peer.outcome = lambda message: None
        before = time.time()
        task = s.cast(timeout=20, **kinds)
        s.world.settle()
        (received,) = s.peer.received
        expiry_time = received.message.expiry_time
        if left is None:
            assert expiry_time == 0
        else:
            assert before - 0.001 <= expiry_time - left <= time.time()
            s.world.advance(20)
            with pytest.raises(TimeoutError, match="will not execute it any more"):
                task.result()


def test_no_credit_because_of_what_is_under_way_is_no_absence():
    with fakes.setting(network=ROUTER | {"credit": 2}) as s:
        s.up()
        s.peer.outcome = lambda message: None
        tasks = [s.cast(impatient=True) for _ in range(4)]
        s.world.advance(2 * absence.PATIENCE)
        assert not any(task.done for task in tasks)
        for received in list(s.peer.received):
            s.peer.settle(received, ACCEPTED)
            received.link.flow(2)
        s.peer.outcome = outcomes(ACCEPTED)
        s.world.settle()
        assert [task.result() for task in tasks[:2]] == [None, None]


@pytest.mark.parametrize(
    "product, delay, pauses",
    [
        ({}, 3, [0.1, 0.2, 0.4, 0.8, 1.6, 3, 3, 3]),
        (ROUTER, 10, [0.1, 0.2, 0.4, 0.8, LONGEST_ROUTER_PAUSE, LONGEST_ROUTER_PAUSE]),
    ],
)
def test_released_is_tried_again_after_growing_pauses(product, delay, pauses):
    with fakes.setting(link_retry_delay=delay, network=product) as s:
        s.up()
        s.peer.outcome = outcomes(*[RELEASED] * len(pauses), ACCEPTED)
        task = s.notify()
        s.world.advance(30)
        assert task.result() is None
        found = fakes.pauses(received.at for received in s.peer.received)
        assert found == pytest.approx(pauses)


@pytest.mark.parametrize("retries, attempts", [(0, 1), (1, 2), (5, 6)])
@pytest.mark.parametrize("kind", ["notify", "cast", "call"])
def test_retries_are_counted(kind, retries, attempts):
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = outcomes(RELEASED)
        task = getattr(s, kind)(retries=retries)
        s.world.advance(59)
        with pytest.raises(exceptions.MessageDeliveryFailure, match="released"):
            task.result()
        assert len(s.peer.received) == attempts


@pytest.mark.parametrize("retries", [None, -1])
def test_without_a_number_of_retries_the_deadline_ends_them(retries):
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = outcomes(RELEASED)
        task = s.notify(retries=retries, timeout=42)
        s.world.advance(41)
        assert not task.done
        s.world.advance(2)
        with pytest.raises(TimeoutError, match="released"):
            task.result()
        sent = len(s.peer.received)
        s.world.advance(100)
        assert len(s.peer.received) == sent


@pytest.mark.parametrize(
    "extra, words",
    [
        ({}, "no reason given"),
        (
            {"condition": "amqp:not-allowed", "description": "never"},
            "amqp:not-allowed: never",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["notify", "cast", "call"])
def test_rejected_is_an_error_at_once(kind, extra, words):
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = outcomes((REJECTED, extra))
        task = getattr(s, kind)()
        s.world.settle()
        with pytest.raises(exceptions.MessageDeliveryFailure, match=words):
            task.result()
        s.world.advance(60)
        assert len(s.peer.received) == 1
        assert s.client.replies.waiting == {}


@pytest.mark.parametrize("undeliverable", [False, True])
@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("kind", ["notify", "cast", "call"])
def test_modified(kind, failed, undeliverable):
    """A consumer that was lost may have acted on it: only what may arrive twice is
    sent again."""
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = outcomes(
            (MODIFIED, {"failed": failed, "undeliverable": undeliverable}), ACCEPTED
        )
        task = getattr(s, kind)()
        s.world.advance(1)
        if kind != "notify" and (failed or undeliverable):
            with pytest.raises(exceptions.MessageDeliveryFailure, match="returned"):
                task.result()
            assert len(s.peer.received) == 1
        else:
            assert len(s.peer.received) == 2
            assert task.done is (kind != "call")


def test_settled_by_the_peer_without_an_outcome_counts_as_accepted():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: None
        task = s.notify()
        s.world.settle()
        s.peer.settle(s.peer.received[0], 0)
        s.world.settle()
        assert task.result() is None


ABSENT = (REJECTED, {"condition": "amqp:not-found", "description": "no such place"})
BROKER_J = {"product": "Apache Qpid Broker-J Core"}


@pytest.mark.parametrize("kind", ["cast", "call"])
def test_a_bus_that_rejects_where_nobody_is(kind):
    with fakes.setting(network=BROKER_J) as s:
        s.up()
        s.peer.outcome = lambda message: ABSENT
        mandatory = getattr(s, kind)(mandatory=True)
        patient = getattr(s, kind)()
        s.world.settle()
        with pytest.raises(exceptions.MessageUndeliverable):
            mandatory.result()
        assert not patient.done
        seen = len(s.peer.received)
        s.peer.outcome = lambda message: ACCEPTED
        s.world.advance(1)
        assert len(s.peer.received) == seen + 1
        assert s.peer.received[-1].message.body == s.peer.received[1].message.body


def test_such_a_bus_may_reject_for_other_reasons():
    with fakes.setting(network=BROKER_J) as s:
        s.up()
        s.peer.outcome = lambda message: (REJECTED, {"condition": "amqp:too-much"})
        task = s.cast(mandatory=True)
        s.world.settle()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="too-much"):
            task.result()


def test_requests_last_no_longer_than_the_address_of_their_replies():
    """Where that goes with the connection, only who waits for no reply is helped."""
    with fakes.setting(network=BROKER_J) as s:
        s.up()
        s.call("call")
        s.cast("cast")
        s.world.settle()
        lasting = {r.message.body: r.message.durable for r in s.peer.received}
        assert lasting["call"] is False and lasting["cast"] is True


@pytest.mark.parametrize("kind", ["cast", "call"])
def test_mandatory_fails_at_once_where_nobody_is(kind):
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = outcomes(RELEASED)
        task = getattr(s, kind)(mandatory=True)
        s.world.settle()
        with pytest.raises(exceptions.MessageUndeliverable) as caught:
            task.result()
        assert caught.value.routing_key == ADDRESS
        s.world.advance(60)
        assert len(s.peer.received) == 1
        assert s.client.replies.waiting == {}


# -- what waits for ever

FOREVER = 10_000


def test_what_has_no_deadline_waits_for_the_connection(caplog):
    with fakes.setting() as s:
        s.network.default = "no route"
        task = s.notify("body", timeout=None)
        s.world.advance(FOREVER)
        assert not task.done
        assert caplog.text.count("and waits on: bus:5672: cannot connect") == 1
        s.network.default = {}
        s.world.advance(60)
        assert task.result() is None
        assert bodies(s.peer) == ["body"]


def test_what_has_no_deadline_waits_for_its_outcome(caplog):
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: None
        task = s.notify(timeout=None)
        s.world.advance(FOREVER)
        assert not task.done
        assert caplog.text.count("and waits on: no outcome") == 1
        s.peer.settle(s.peer.received[0], ACCEPTED)
        s.world.settle()
        assert task.result() is None


@pytest.mark.parametrize(
    "product, waits", [("qpid-dispatch-router", False), ("some broker", True)]
)
def test_no_credit_is_nobody_there_on_a_router_alone(product, waits):
    """On a broker it is a queue that is full."""
    with fakes.setting(network={"credit": 0, "product": product}) as s:
        task = s.notify(timeout=None)
        s.world.advance(absence.ENDURANCE - 0.1)
        assert not task.done
        s.world.advance(0.2 if not waits else FOREVER)
        if waits:
            assert not task.done
        else:
            with pytest.raises(exceptions.MessageDeliveryFailure, match="no credit"):
                task.result()


def outlasts_absence(s, task, waits, reason):
    """What has no deadline waits on, or fails once nobody was there for long."""
    s.world.advance(absence.ENDURANCE - 0.1)
    assert not task.done
    s.world.advance(11)
    assert task.done is not waits
    if not waits:
        with pytest.raises(exceptions.MessageDeliveryFailure, match=reason):
            task.result()


@pytest.mark.parametrize("outcome, waits", [(RELEASED, False), (MODIFIED, True)])
def test_what_is_given_back_where_nobody_is(outcome, waits):
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = outcomes((outcome, {}))
        task = s.notify(timeout=None)
        outlasts_absence(s, task, waits, "nobody")


@pytest.mark.parametrize(
    "condition, waits", [("amqp:not-found", False), ("amqp:internal-error", True)]
)
def test_a_link_that_is_refused_because_there_is_no_such_place(condition, waits):
    with fakes.setting(network={"refuse": {ADDRESS: (condition, "no")}}) as s:
        task = s.notify(timeout=None)
        outlasts_absence(s, task, waits, condition)


def test_an_outage_is_no_absence():
    with nobody() as s:
        task = s.notify(timeout=None)
        s.world.advance(absence.ENDURANCE - 1)
        s.network.default = "no route"
        s.peer.cut()
        s.world.advance(FOREVER)
        s.network.default = ROUTER | {"credit": 0}
        s.world.advance(absence.ENDURANCE - 1)
        assert not task.done
        s.world.advance(60)
        with pytest.raises(exceptions.MessageDeliveryFailure, match="no credit"):
            task.result()


def test_what_a_log_handler_sends_does_not_wait_for_ever():
    class Sends(logging.Handler):
        def emit(self, record):
            s.world.run(
                s.client.sending(
                    "notification", fakes.RPC, lambda _: Message(""), deadline=None
                )
            )

    with fakes.setting() as s:
        s.network.default = "no route"
        record = logging.makeLogRecord({"levelno": logging.INFO})
        logger = logging.Logger("program")
        logger.addHandler(Sends())
        task = s.world.go(logger.callHandlers, record)
        s.world.advance(client.LONG_WAIT - 0.1)
        assert not task.done
        s.world.advance(0.2)
        with pytest.raises(TimeoutError, match="timed out: bus:5672: cannot connect"):
            task.result()


# -- deadlines


def late(s, task, timeout=60):
    s.world.advance(timeout - 1)
    assert not task.done
    s.world.advance(2)
    with pytest.raises(TimeoutError) as caught:
        task.result()
    return str(caught.value)


def test_late_for_want_of_credit():
    with fakes.setting(network={"credit": 0}) as s:
        task = s.notify()
        reason = late(s, task)
        assert "topic=t" in reason and "no credit" in reason
        # It is not sent when credit comes.
        s.peer.inbound[ADDRESS].flow(10)
        s.world.settle()
        assert s.peer.received == []


def test_late_for_want_of_an_outcome():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: None
        task = s.notify()
        assert "no outcome" in late(s, task)
        s.peer.settle(s.peer.received[0], RELEASED)
        s.world.advance(60)
        assert len(s.peer.received) == 1


def test_late_for_want_of_a_connection():
    with fakes.setting() as s:
        s.network.default = "Connection refused"
        task = s.notify()
        reason = late(s, task)
        assert "bus:5672" in reason and "Connection refused" in reason
        s.network.default = {}
        s.world.advance(60)
        assert s.client.connection.state is State.UP
        assert s.peer.received == []


def test_late_while_the_first_attempt_runs():
    with fakes.setting() as s:
        s.network.delay = 100.0
        task = s.notify()
        assert "bus:5672: still connecting" in late(s, task)


def test_links_that_are_not_in_use_make_room_where_a_router_allows_no_more():
    """It refuses a link in that it attaches and then detaches it."""
    with fakes.setting(network=ROUTER) as s:
        s.up()
        s.cast(destination=Destination.reply("idle"))
        s.world.settle()
        idle = s.peer.inbound["idle"]
        allow = s.peer.link_requested

        def look(connection, link):
            if idle.state is LinkState.ATTACHED:
                link.accept()
                link.close("amqp:resource-limit-exceeded", "disallowed by policy")
            else:
                allow(connection, link)

        s.peer.link_requested = look
        task = s.cast(destination=Destination.reply("other"))
        s.world.advance(2)
        assert task.result() is None
        assert idle.state is LinkState.DETACHED


def test_late_while_the_link_is_refused():
    with fakes.setting() as s:
        s.up()
        s.peer.refuse["gone"] = ("amqp:not-found", "no such queue")
        task = s.notify(destination=Destination.reply("gone"))
        assert "amqp:not-found: no such queue" in late(s, task)


@pytest.mark.parametrize("where", ["pending", "unsettled", "resting", "unconnected"])
@pytest.mark.parametrize("kind", ["notify", "call"])
def test_who_is_thrown_out_of_its_wait_leaves_nothing(kind, where):
    class Timeout(BaseException):
        """As eventlet's and gevent's: no Exception."""

    with fakes.setting() as s:
        if where == "unconnected":
            s.network.default = "refused"
        else:
            s.up()
            if where == "pending":
                s.peer.outcome = lambda message: None
                s.peer.inbound[ADDRESS].flow(-1000)
                s.world.settle()
            elif where == "unsettled":
                s.peer.outcome = lambda message: None
            else:
                s.peer.outcome = outcomes(RELEASED)
        task = getattr(s, kind)("abandoned")
        s.world.settle()
        task.throw(Timeout())
        with pytest.raises(Timeout):
            task.result()
        assert s.client.replies.waiting == {}
        s.network.default = {}
        sent = len(s.peer.received) if s.network.peers else 0
        s.world.advance(60)
        s.peer.outcome = outcomes(ACCEPTED)
        if ADDRESS in s.peer.inbound:
            s.peer.inbound[ADDRESS].flow(1000)
        other = s.notify("other")
        s.world.advance(1)
        assert other.result() is None
        assert bodies(s.peer)[sent:] == ["other"]


# -- the connection is lost


def test_what_the_peer_cannot_have_seen_is_sent_when_it_is_back():
    with fakes.setting(network={"credit": 0}) as s:
        tasks = [
            s.cast("one"),
            s.notify("two"),
            s.cast("three", destination=Destination.reply("r")),
        ]
        s.world.settle()
        s.network.default = {}
        s.lose()
        assert [task.result() for task in tasks] == [None] * 3
        assert sorted(bodies(s.peer)) == ["one", "three", "two"]
        assert s.network.peers[0].received == []


def test_waiting_for_the_connection_uses_up_retries():
    with fakes.setting() as s:
        s.network.default = "refused"
        tasks = {retries: s.cast(retries=retries) for retries in (0, 2, None)}
        s.world.settle()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="refused"):
            tasks[0].result()
        s.world.advance(1.5)  # a second attempt
        assert not tasks[2].done
        s.world.advance(5)  # a third one
        with pytest.raises(exceptions.MessageDeliveryFailure, match="refused"):
            tasks[2].result()
        s.network.default = {}
        s.world.advance(20)
        assert tasks[None].result() is None


@pytest.mark.parametrize("seen", [True, False])
def test_at_most_once_what_the_peer_may_have_seen_is_not_sent_again(seen):
    with fakes.setting() as s:
        s.up()
        first = s.peer
        first.outcome = lambda message: None
        if not seen:
            first.silent = True
        task = s.cast("once")
        s.world.settle()
        s.lose()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="unknown"):
            task.result()
        s.world.advance(60)
        assert s.peer is not first
        assert s.peer.received == []


def test_at_least_once_what_may_arrive_twice_is_sent_again():
    with fakes.setting() as s:
        s.up()
        first = s.peer
        first.outcome = lambda message: None
        task = s.notify("again")
        s.world.settle()
        s.lose()
        assert task.result() is None
        assert bodies(first) == bodies(s.peer) == ["again"]


def test_order_is_kept_over_a_lost_connection():
    with fakes.setting(network={"credit": 2}) as s:
        s.network.script = [{"credit": 2}]
        tasks = [s.notify(str(number)) for number in range(6)]
        s.world.advance(0)
        s.network.peers[0].outcome = lambda message: None
        s.world.settle()
        s.network.default = {}
        s.lose()
        assert [task.result() for task in tasks] == [None] * 6
        again = bodies(s.peer)
        assert again == sorted(again)


def test_repeating_uses_up_retries():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: None
        task = s.notify(retries=0)
        s.world.settle()
        s.lose()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="unknown"):
            task.result()
        assert s.peer.received == []


def test_what_rests_after_a_release_survives_the_connection():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = outcomes(RELEASED)
        tasks = [s.notify("n"), s.cast("c")]
        s.world.settle()
        s.lose()
        assert [task.result() for task in tasks] == [None, None]
        assert sorted(bodies(s.peer)) == ["c", "n"]


# -- the link is lost


@pytest.mark.parametrize(
    "condition",
    [
        "amqp:unauthorized-access",
        "amqp:not-allowed",
        "amqp:not-implemented",
        "amqp:invalid-field",
    ],
)
def test_a_refusal_that_stays_is_an_error_at_once(condition):
    with fakes.setting() as s:
        s.up()
        s.peer.refuse["closed"] = (condition, "not you")
        destination = Destination.reply("closed")
        tasks = [s.notify(destination=destination), s.call(destination=destination)]
        s.world.settle()
        for task in tasks:
            with pytest.raises(
                exceptions.MessageDeliveryFailure, match=f"closed.*{condition}: not you"
            ):
                task.result()
        # Nobody is condemned for ever: the next one asks again.
        del s.peer.refuse["closed"]
        task = s.notify(destination=destination)
        s.world.settle()
        assert task.result() is None


def test_a_refusal_that_may_pass_is_tried_again_within_retries():
    with fakes.setting(link_retry_delay=7) as s:
        s.up()
        s.peer.refuse["later"] = ("amqp:not-found", "not yet")
        destination = Destination.reply("later")
        patient = s.notify(destination=destination)
        hasty = s.notify(destination=destination, retries=0)
        s.world.settle()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="not yet"):
            hasty.result()
        s.world.advance(8)
        assert s.peer.attaches.count("later") == 2
        del s.peer.refuse["later"]
        s.world.advance(5)
        assert not patient.done
        s.world.advance(2)
        assert patient.result() is None


def test_a_link_closed_under_way():
    with fakes.setting(link_retry_delay=100) as s:
        s.up()
        s.peer.outcome = lambda message: None
        notification = s.notify("n")
        cast = s.cast("c")
        s.world.settle()
        s.peer.inbound[ADDRESS].close("amqp:resource-deleted", "queue deleted")
        s.world.settle()
        with pytest.raises(
            exceptions.MessageDeliveryFailure, match="queue deleted; whether"
        ):
            cast.result()
        assert not notification.done
        s.peer.received.clear()
        s.peer.outcome = outcomes(ACCEPTED)
        s.world.advance(1)  # it was up: it may be again
        assert notification.result() is None
        assert bodies(s.peer) == ["n"]


def test_a_link_closed_at_rest_is_attached_again_when_needed():
    with fakes.setting() as s:
        s.up()
        s.peer.inbound[ADDRESS].close()
        s.world.settle()
        assert s.peer.attaches == [ADDRESS]
        task = s.notify()
        s.world.settle()
        assert task.result() is None


def test_a_session_that_is_ended_takes_no_other_with_it():
    with fakes.setting(link_retry_delay=2) as s:
        s.up()
        link = s.peer.inbound[ADDRESS]
        link._endpoint._pn_link.session.close()
        s.world.settle()
        assert s.client.connection.state is State.UP
        task = s.notify()
        s.world.advance(3)
        assert task.result() is None
        assert len(s.network.peers) == 1


def test_who_comes_while_a_refused_link_waits_hears_why():
    with fakes.setting(link_retry_delay=100) as s:
        s.up()
        s.peer.refuse["gone"] = ("amqp:not-found", "no such queue")
        destination = Destination.reply("gone")
        s.notify(destination=destination)
        s.world.advance(5)
        task = s.notify(destination=destination)
        assert "no such queue" in late(s, task)
        assert s.peer.attaches.count("gone") == 1


def test_what_waited_for_a_refused_link_is_no_reason_any_more():
    with fakes.setting(link_retry_delay=5) as s:
        s.up()
        s.peer.refuse["gone"] = ("amqp:not-found", "no such queue")
        destination = Destination.reply("gone")
        first = s.notify(destination=destination)
        s.world.settle()
        del s.peer.refuse["gone"]
        s.world.advance(6)
        assert first.result() is None
        s.peer.inbound["gone"].flow(-1000)
        s.world.settle()
        task = s.notify(destination=destination)
        assert "no such queue" not in late(s, task)


@pytest.mark.parametrize("end", ["close", "loss"])
def test_a_link_that_waits_to_be_attached_again_leaves_no_timer(end):
    refuse = {"gone": ("amqp:not-found", "no such queue")}
    with fakes.setting(link_retry_delay=50, network={"refuse": refuse}) as s:
        task = s.notify(destination=Destination.reply("gone"), timeout=200)
        s.world.settle()
        if end == "loss":
            s.lose()
            # The new connection has an attempt of its own, and a new pause.
            s.world.advance(44)
            assert s.peer.attaches.count("gone") == 1
            s.world.advance(8)
            assert s.peer.attaches.count("gone") == 2
        assert not task.done


# -- limits


def test_no_more_links_than_the_peer_allows():
    with fakes.setting(link_retry_delay=5, network={"channel_max": 0}) as s:
        s.up()
        s.peer.outcome = lambda message: None
        tasks = [
            s.notify(destination=Destination.reply(f"a{n}"), timeout=20)
            for n in range(LINKS_PER_SESSION + 1)
        ]
        s.world.settle()
        # All links are in use but the one that the connection began with.
        s.world.advance(4)
        assert len(s.peer.received) == LINKS_PER_SESSION
        assert "a7" in s.peer.inbound
        for each in list(s.peer.received):
            each.link.settle(each.delivery)
        s.peer.outcome = lambda message: ACCEPTED
        s.world.advance(6)
        assert all(task.result() is None for task in tasks)


def test_no_link_left_for_replies():
    """The subscription that has taken them all goes to another connection."""
    with fakes.setting(link_retry_delay=5, network={"channel_max": 0}) as s:
        s.up()
        names = [f"a{n}" for n in range(LINKS_PER_SESSION - 1)]
        subscription = s.client.subscribe(
            lambda addresser: [Node(name) for name in names], 10, print
        )
        s.world.settle()
        # There is one already to where it is sent to.
        first, sent = s.peer, len(s.peer.received)
        call = s.call(timeout=20)
        s.world.settle()
        assert len(first.received) == sent
        s.world.advance(6)
        first.reply(first.received[-1], "answer")
        s.world.settle()
        assert call.result() == "answer"
        assert subscription.attached
        assert s.peer is not first and len(s.peer.outbound) == len(names)
        # Others follow it.
        further = s.client.subscribe(lambda addresser: [Node("b")], 10, print)
        s.world.settle()
        assert further.attached and "b" in s.peer.outbound


def test_links_that_are_not_used_make_room():
    with fakes.setting(link_retry_delay=50, network={"channel_max": 0}) as s:
        for n in range(2 * LINKS_PER_SESSION):
            task = s.notify(destination=Destination.reply(f"a{n}"), timeout=20)
            s.world.settle()
            if not task.done:
                s.world.advance(1)
            assert task.result() is None


@pytest.mark.parametrize("kind", ["notify", "cast", "call"])
def test_a_message_that_the_link_does_not_take(kind):
    with fakes.setting() as s:
        s.up()
        s.peer.max_message_size = 500
        destination = Destination.reply("small")
        task = getattr(s, kind)("x" * 600, destination=destination)
        s.world.settle()
        with pytest.raises(
            exceptions.MessageDeliveryFailure, match=r"\d+ bytes.*small takes 500"
        ):
            task.result()
        assert s.peer.received == []
        assert s.client.replies.waiting == {}
        smaller = s.notify("x" * 300, destination=destination)
        s.world.settle()
        assert smaller.result() is None


def test_a_name_that_is_no_utf8_harms_nobody_else():
    with fakes.setting() as s:
        bad = Destination.of(Target(topic="\udc80"), Service.RPC)
        before = s.cast(destination=bad)
        s.up()
        after = s.cast(destination=bad)
        s.world.settle()
        for task in (before, after):
            with pytest.raises(exceptions.MessageDeliveryFailure):
                task.result()
        s.lose()
        s.up()


def test_more_links_than_one_session_holds():
    with fakes.setting() as s:
        tasks = [s.notify(destination=Destination.reply(f"a{n}")) for n in range(600)]
        s.world.settle()
        assert [task.result() for task in tasks] == [None] * 600
        sessions = collections.Counter(
            link._endpoint._pn_link.session._impl for link in s.peer.inbound.values()
        )
        assert sessions.total() == 600
        assert max(sessions.values()) <= LINKS_PER_SESSION


# -- idle links


def test_idle_links_are_detached():
    with fakes.setting(default_sender_link_timeout=100) as s:
        s.up()
        busy = Destination.reply("busy")
        stuck = Destination.reply("stuck")
        s.peer.outcome = lambda message: None
        waiting = s.notify(destination=stuck, timeout=10_000)
        s.world.settle()
        s.peer.outcome = outcomes(ACCEPTED)
        for _ in range(10):
            task = s.notify(destination=busy)
            s.world.advance(30)
            assert task.result() is None
        assert sorted(s.peer.inbound) == ["busy", "stuck"]
        assert s.peer.attaches.count("busy") == 1
        s.peer.settle(s.peer.received[0], ACCEPTED)
        s.world.advance(200)
        assert waiting.result() is None
        assert s.peer.inbound == {}
        s.up()  # and it comes again when it is needed


def test_a_link_is_not_detached_while_a_message_rests_on_it():
    with fakes.setting(default_sender_link_timeout=1, link_retry_delay=30) as s:
        s.up()
        s.peer.outcome = outcomes(*[RELEASED] * 9, ACCEPTED)
        task = s.notify(timeout=1000)
        s.world.advance(100)
        assert task.result() is None
        assert s.peer.attaches == [ADDRESS]


def test_links_without_use_are_forgotten_with_the_connection():
    with fakes.setting() as s:
        s.up()
        for number in range(50):
            s.cast(destination=Destination.reply(f"r{number}"))
        s.world.settle()
        s.lose()
        assert s.peer.attaches == []
        assert s.client._links == {}


# -- post


def test_post_does_not_wait():
    with fakes.setting() as s:
        s.post("reply")
        s.world.settle()
        assert bodies(s.peer) == ["reply"]
        s.world.advance(5)
        assert s.client._unattended == []


@pytest.mark.parametrize("why", ["no credit", "no outcome", "no connection"])
def test_a_post_expires_and_says_so(why, caplog):
    with fakes.setting(network={"credit": int(why != "no credit")}) as s:
        if why == "no connection":
            s.network.default = "Connection refused"
        if why == "no outcome":
            s.up()
            s.peer.outcome = lambda message: None
        s.post("reply", timeout=20)
        s.world.advance(19)
        assert "timed out" not in caplog.text
        s.world.advance(3)
        assert "RPC reply to topic=t timed out" in caplog.text
        assert s.client._unattended == []
        s.network.default = {}
        s.world.advance(60)
        s.peer.outcome = outcomes(ACCEPTED)
        if s.peer.received:
            s.peer.received.clear()
        if ADDRESS in s.peer.inbound:
            s.peer.inbound[ADDRESS].flow(100)
        s.world.settle()
        assert "reply" not in bodies(s.peer)


def test_a_post_that_fails_is_logged(caplog):
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = outcomes((REJECTED, {"condition": "amqp:not-allowed"}))
        s.post()
        s.world.settle()
        assert "RPC reply to topic=t failed" in caplog.text
        assert "amqp:not-allowed" in caplog.text


def test_a_post_outlives_the_connection():
    with fakes.setting() as s:
        s.network.script = ["refused", "refused"]
        s.post("reply")
        s.world.advance(20)
        assert bodies(s.peer) == ["reply"]


def test_a_post_is_retried_as_often_as_told():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = outcomes(RELEASED)
        s.post("reply", retries=3)
        s.world.advance(60)
        assert bodies(s.peer) == ["reply"] * 4
