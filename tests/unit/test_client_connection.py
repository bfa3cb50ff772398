# SPDX-License-Identifier: Apache-2.0
"""The client's connection: every row of its table of states, and what people and
the message bus are told of it."""

import errno
import logging
import os

import pytest
from greenlet import GreenletExit
from oslo_messaging import exceptions

from greenamqp.buses import Node
from greenamqp.client import Destination
from greenamqp.connection import life
from greenamqp.connection.failover import Host
from greenamqp.connection.state import State
from greenamqp.engine import ACCEPTED, RELEASED, Message, Terminus
from tests.unit import fakes

TWO_HOSTS = (Host("one", 5672), Host("two", 5673))


pytestmark = pytest.mark.usefixtures("no_chance")


# -- IDLE


def test_nothing_is_connected_before_it_is_wanted():
    with fakes.setting() as s:
        s.world.advance(3600)
        assert s.client.connection.state is State.IDLE
        assert s.network.attempts == []


@pytest.mark.parametrize("wish", ["send", "call", "post", "subscribe"])
def test_whoever_wants_something_connects(wish):
    with fakes.setting() as s:
        s.network.delay = 1.0
        if wish == "send":
            s.notify()
        elif wish == "call":
            s.call()
        elif wish == "post":
            s.client.post(
                "reply",
                fakes.RPC,
                lambda format: Message("{}"),
                deadline=s.world.now() + 10,
                settled=True,
            )
        else:
            s.client.subscribe(lambda _: [Node("a")], 10, lambda *a: None)
        assert s.client.connection.state is State.CONNECTING
        assert s.network.attempts == [(1000.0, "bus", 5672)]
        s.world.advance(1)
        assert s.client.connection.state is State.UP
        assert len(s.network.attempts) == 1


# -- CONNECTING


def test_connected_it_says_open_and_waits_for_the_peers():
    with fakes.setting() as s:
        task = s.notify()
        s.world.settle()
        assert s.client.connection.state is State.UP
        assert task.result() is None
        assert s.peer.events == [("opened",)]


def test_a_host_that_refuses_is_tried_again_after_the_pause():
    with fakes.setting(connection_retry_interval=4) as s:
        s.network.script = ["Connection refused"]
        task = s.notify()
        s.world.advance(3.9)
        assert s.client.connection.state is State.WAITING
        assert "bus:5672: cannot connect: Connection refused" in (
            s.client.connection.last_failure
        )
        s.world.advance(0.2)
        assert s.client.connection.state is State.UP
        assert task.result() is None
        assert [at for at, _, _ in s.network.attempts] == [1000.0, 1004.0]


def test_pauses_grow_by_the_backoff_up_to_the_maximum():
    with fakes.setting(
        connection_retry_interval=2,
        connection_retry_backoff=3,
        connection_retry_interval_max=9,
    ) as s:
        s.network.default = "Connection refused"
        s.client.subscribe(lambda _: [Node("a")], 10, lambda *a: None)
        s.world.advance(60)
        pauses = fakes.pauses(at for at, _, _ in s.network.attempts)
        assert pauses[:5] == [2, 5, 8, 9, 9]


def test_all_hosts_are_tried_in_turn_before_any_pause():
    with fakes.setting(TWO_HOSTS, connection_retry_interval=5) as s:
        s.network.script = ["no route", "refused", "refused"]
        s.notify()
        s.world.advance(20)
        assert s.client.connection.state is State.UP
        assert s.network.attempts == [
            (1000.0, "one", 5672),
            (1000.0, "two", 5673),
            (1005.0, "one", 5672),
            (1005.0, "two", 5673),
        ]


def test_an_error_names_every_host_that_was_tried():
    """One that lives and refuses the login is not hidden by one that is dead."""
    hosts = (Host("one", 5672, "nova", "s3cr3t"), Host("two", 5673))
    with fakes.setting(hosts) as s:
        wrong = {"passwords": {"nova": "another"}}
        s.network.script = [wrong, "refused", wrong, "refused"]
        s.network.default = "refused"
        task = s.notify(timeout=2)
        s.world.advance(3)
        with pytest.raises(TimeoutError) as caught:
            task.result()
        text = str(caught.value)
        assert text.count("one:5672: the peer refused the login of user 'nova'") == 1
        assert text.count("two:5673: cannot connect: ") == 1
        assert "s3cr3t" not in text
        # What was before the connection came up is not to blame for its loss.
        s.network.default = {}
        s.world.advance(60)
        assert s.client.connection.state is State.UP
        s.network.default = "refused"
        s.peer.cut()
        s.world.settle()
        assert "refused the login" not in s.client.connection.last_failure


def test_an_attempt_that_succeeds_too_late_is_dropped():
    with fakes.setting() as s:
        s.network.delay = 5.0
        sending = s.notify()
        closing = s.world.go(s.world.run, s.client.closing())
        assert s.network.running == []  # the attempt was cancelled
        s.world.advance(10)
        assert closing.result() is None
        assert s.network.peers == []
        with pytest.raises(exceptions.MessageDeliveryFailure):
            sending.result()


def test_a_stream_that_comes_when_nobody_wants_it_is_closed():
    with fakes.setting() as s:
        stream = fakes.Stream()
        s.client.connection._connected(stream, None)
        assert stream.closed


# -- OPENING


def test_no_answer_to_the_open_frame(monkeypatch):
    monkeypatch.setattr(fakes, "Peer", fakes.Silent)
    with fakes.setting(idle_timeout=0) as s:
        task = s.notify()
        s.world.advance(life.CONNECT_TIMEOUT - 1)
        assert s.client.connection.state is State.OPENING
        s.world.advance(1.5)
        assert s.client.connection.state is not State.OPENING
        assert "no answer to the Open frame" in s.client.connection.last_failure
        assert s.network.peers[0].stream.closed
        s.world.advance(60)
        with pytest.raises(TimeoutError, match="no answer to the Open frame"):
            task.result()


@pytest.mark.parametrize(
    "error", [None, OSError(errno.ECONNRESET, "Connection reset by peer")]
)
def test_a_connection_that_breaks_while_it_opens(error, monkeypatch):
    class Broken(fakes.Peer):
        def work(self):
            if not self.stream.eof:
                self.cut(error)
            return super().work()

    whole = fakes.Peer
    with fakes.setting(connection_retry_interval=2) as s:
        monkeypatch.setattr(fakes, "Peer", Broken)
        task = s.notify()
        s.world.settle()
        assert s.client.connection.state is State.WAITING
        assert "reset" in s.client.connection.last_failure or (
            "without a word" in s.client.connection.last_failure
        )
        monkeypatch.setattr(fakes, "Peer", whole)
        s.world.advance(3)
        assert task.result() is None


def test_a_peer_that_closes_instead_of_opening(monkeypatch):
    class Unwilling(fakes.Peer):
        def connection_opened(self, connection):
            connection.close("amqp:not-allowed", "vhost unknown")

    monkeypatch.setattr(fakes, "Peer", Unwilling)
    with fakes.setting(virtual_host="there") as s:
        s.notify()
        s.world.settle()
        assert s.client.connection.state is State.WAITING
        assert "bus:5672/there" in s.client.connection.last_failure
        assert "amqp:not-allowed: vhost unknown" in s.client.connection.last_failure


def test_wrong_credentials():
    hosts = (Host("bus", 5672, "me", "no secret"),)
    with fakes.setting(hosts, network={"passwords": {"me": "the real one"}}) as s:
        task = s.notify(timeout=10)
        s.world.settle()
        assert s.client.connection.state is State.WAITING  # no time had to pass
        s.world.advance(11)
        with pytest.raises(TimeoutError) as caught:
            task.result()
        assert "bus:5672" in str(caught.value)
        assert "no secret" not in str(caught.value) + s.client.connection.last_failure


def test_each_host_has_credentials_of_its_own():
    hosts = (Host("one", 1, "u1", "p1"), Host("two", 2, "u2", "p2"))
    with fakes.setting(hosts) as s:
        s.network.script = [
            {"passwords": {"u1": "p1"}},
            {"passwords": {"u2": "p2"}},
        ]
        s.up()
        assert s.peer.engine.user == "u1"
        s.peer.cut()
        s.notify()
        s.world.advance(5)
        assert s.client.connection.state is State.UP
        assert s.peer.engine.user == "u2"


# -- UP


@pytest.mark.parametrize(
    "error", [None, OSError(errno.ETIMEDOUT, "Connection timed out")]
)
def test_a_lost_connection_is_made_again_though_nobody_sends(error):
    with fakes.setting() as s:
        s.up()
        s.peer.cut(error)
        s.world.settle()
        assert s.client.connection.state is State.WAITING
        assert s.network.peers[0].stream.closed
        s.world.advance(5)
        assert s.client.connection.state is State.UP
        assert len(s.network.peers) == 2
        s.up()


def test_a_write_that_fails_loses_the_connection():
    with fakes.setting() as s:
        s.up()
        s.peer.stream.write_error = BrokenPipeError(errno.EPIPE, "Broken pipe")
        task = s.notify()
        s.world.settle()
        assert s.client.connection.state is State.WAITING
        assert "Broken pipe" in s.client.connection.last_failure
        s.world.advance(5)
        assert task.result() is None


def test_a_peer_that_closes_in_order_gives_its_reason(caplog):
    with fakes.setting() as s:
        s.up()
        first = s.peer
        first.engine.close("amqp:connection:forced", "going down")
        s.world.settle()
        assert s.client.connection.state is State.WAITING
        assert "amqp:connection:forced: going down" in s.client.connection.last_failure
        assert "going down" in caplog.text
        # Our answer left before the stream was closed.
        assert first.engine.closed
        s.world.advance(5)
        s.up()


def test_a_peer_that_closes_and_reads_no_more_is_let_go_of():
    with fakes.setting() as s:
        s.up()
        first = s.peer
        first.stream.room = 0
        first.engine.close()
        s.world.settle()
        assert s.client.connection.state is State.WAITING
        assert first.stream.closed
        s.world.advance(5)
        s.up()


def test_a_peer_that_talks_nonsense_loses_the_connection():
    with fakes.setting() as s:
        s.up()
        s.peer.stream.inbound += b"\x00\x00\x00\x02garbage and more garbage"
        s.world.settle()
        assert s.client.connection.state is State.WAITING
        s.world.advance(5)
        s.up()


def test_a_silent_peer_is_found_within_twice_the_idle_timeout():
    with fakes.setting(idle_timeout=6) as s:
        s.up()
        s.world.advance(60)
        assert len(s.network.peers) == 1
        s.peer.silent = True
        s.world.advance(12)
        assert s.client.connection.state is not State.UP or len(s.network.peers) == 2
        s.world.advance(10)
        s.up()


HOSTS = (Host("one", 5672), Host("two", 5672))


def test_a_silent_host_is_left_for_the_next_one():
    with fakes.setting(HOSTS) as s:
        s.up()
        s.peer.silent = True
        s.world.advance(4.9)
        assert len(s.network.attempts) == 1
        s.world.advance(2.1)
        assert s.client.connection.state is State.UP
        first, second = (hostname for _, hostname, _ in s.network.attempts)
        assert first != second
        s.up()


def test_a_host_that_gives_a_sign_of_life_is_not_left():
    """As RabbitMQ does in an alarm, in which it reads nothing."""
    with fakes.setting(HOSTS) as s:
        s.up()
        s.peer.outcome = lambda message: None
        task = s.notify(timeout=900)
        s.world.advance(600)
        assert not task.done
        assert len(s.network.attempts) == 1


@pytest.mark.parametrize("idle", [0, 3])
def test_a_shorter_idle_timeout_counts_or_none(idle):
    with fakes.setting(HOSTS, idle_timeout=idle) as s:
        s.up()
        s.peer.silent = True
        s.world.advance(4)
        assert len(s.network.attempts) == (2 if idle else 1)
        s.world.advance(1000)
        assert len(s.network.attempts) == (2 if idle else 1)


def test_without_idle_timeout_a_silent_peer_is_left_alone():
    with fakes.setting(idle_timeout=0) as s:
        s.up()
        s.peer.silent = True
        s.world.advance(100_000)
        assert s.client.connection.state is State.UP


def test_the_peers_idle_timeout_is_kept():
    with fakes.setting(idle_timeout=0, network={"idle_timeout": 4}) as s:
        s.up()
        s.world.advance(1000)
        assert s.client.connection.state is State.UP
        assert len(s.network.peers) == 1


def test_a_connection_that_comes_up_only_to_be_closed_is_not_made_without_pause(
    monkeypatch,
):
    class Moody(fakes.Peer):
        def connection_opened(self, connection):
            connection.close("amqp:resource-limit-exceeded", "too many of you")

    monkeypatch.setattr(fakes, "Peer", Moody)
    with fakes.setting(TWO_HOSTS, connection_retry_interval=1) as s:
        s.client.subscribe(lambda _: [Node("a")], 10, lambda *a: None)
        s.world.advance(100)
        # Two hosts in each round; the pauses grow by 2 s each time to 30 s.
        assert 8 <= len(s.network.attempts) <= 24


def test_after_a_while_up_the_pauses_begin_anew():
    with fakes.setting(connection_retry_interval=3) as s:
        s.network.script = ["refused"] * 4
        task = s.notify(timeout=600)
        s.world.advance(60)
        assert task.result() is None
        s.peer.cut()
        s.world.settle()
        lost = s.world.now()
        s.world.advance(20)
        assert s.network.attempts[-1][0] == lost + 3


def test_the_peer_has_no_business_with_nodes_of_ours():
    with fakes.setting() as s:
        s.up()
        told = []
        link = s.peer.engine.create_sender(Terminus("mine"))
        link.on_detached = lambda _link, error: told.append(error)
        s.world.settle()
        assert [error.condition for error in told] == ["amqp:not-allowed"]
        s.up()


# -- CLOSED


@pytest.mark.parametrize(
    "state",
    [State.IDLE, State.CONNECTING, State.OPENING, State.UP, State.WAITING],
)
def test_close_in_any_state_leaves_nothing(state, monkeypatch):
    class Silent(fakes.Peer):
        def work(self):
            self.silent = state is State.OPENING
            return super().work()

    monkeypatch.setattr(fakes, "Peer", Silent)
    with fakes.setting() as s:
        sending = None
        if state is not State.IDLE:
            if state is State.CONNECTING:
                s.network.delay = 1.0
            if state is State.WAITING:
                s.network.default = "refused"
            sending = s.notify()
            s.world.settle()
        assert s.client.connection.state is state
        attempts = len(s.network.attempts)
        closing = s.world.go(s.world.run, s.client.closing())
        s.world.advance(life.CLOSE_TIMEOUT)
        assert closing.result() is None
        assert s.client.connection.state is State.CLOSED
        fakes.leftovers(s.world)
        s.world.advance(1000)
        assert len(s.network.attempts) == attempts
        if sending is not None and state is not State.UP:
            with pytest.raises(exceptions.MessageDeliveryFailure, match="cleaned up"):
                sending.result()


def test_close_ends_the_connection_in_order():
    with fakes.setting() as s:
        s.up()
        closing = s.world.go(s.world.run, s.client.closing())
        s.world.settle()
        assert closing.result() is None  # no time had to pass
        assert s.peer.events == [("opened",), ("closed", None)]


def test_close_does_not_wait_long_for_a_silent_peer():
    with fakes.setting() as s:
        s.up()
        s.peer.silent = True
        closing = s.world.go(s.world.run, s.client.closing())
        s.world.advance(life.CLOSE_TIMEOUT)
        assert closing.result() is None
        assert s.peer.stream.closed


def test_close_does_not_wait_for_a_connection_that_breaks_meanwhile():
    with fakes.setting() as s:
        s.up()
        s.peer.silent = True
        closing = s.world.go(s.world.run, s.client.closing())
        s.peer.cut()
        s.world.settle()
        assert closing.result() is None


def test_who_is_thrown_out_of_close_leaves_nothing():
    with fakes.setting() as s:
        s.up()
        s.peer.silent = True
        closing = s.world.go(s.world.run, s.client.closing())
        closing.throw(GreenletExit())
        with pytest.raises(GreenletExit):
            closing.result()
        assert s.peer.stream.closed
        fakes.leftovers(s.world)


@pytest.mark.parametrize("in_order", [True, False])
def test_close_in_the_moment_of_the_loss(in_order):
    with fakes.setting() as s:
        s.up()
        if in_order:
            s.peer.engine.close()
            s.peer.work()
        else:
            s.peer.cut()
        # Read by hand: the loss is known, what follows from it has not run yet.
        s.world.watches[s.peer.stream.fileno()].on_readable()
        assert s.client.connection.state is State.WAITING
        closing = s.world.go(s.world.run, s.client.closing())
        assert closing.result() is None
        assert s.peer.stream.closed


def test_close_twice():
    with fakes.setting() as s:
        s.up()
        for _ in range(2):
            closing = s.world.go(s.world.run, s.client.closing())
            s.world.settle()
            assert closing.result() is None
        assert s.world.stopped == 1


def test_what_waits_fails_when_the_messenger_is_closed():
    with fakes.setting() as s:
        s.up()
        s.peer.outcome = lambda message: None
        unsettled = s.notify()
        calling = s.call()
        s.world.settle()
        s.peer.outcome = lambda message: ACCEPTED
        accepted = s.call()
        s.world.settle()
        s.peer.credit = 0
        pending = s.notify(destination=Destination.reply("elsewhere"))
        s.world.settle()
        s.peer.outcome = lambda message: RELEASED
        released = s.notify()
        s.world.settle()
        closing = s.world.go(s.world.run, s.client.closing())
        s.world.settle()
        assert closing.result() is None
        for task in (unsettled, calling, accepted, pending, released):
            with pytest.raises(exceptions.MessageDeliveryFailure, match="cleaned up"):
                task.result()


def test_nothing_can_be_sent_after_close():
    with fakes.setting() as s:
        closing = s.world.go(s.world.run, s.client.closing())
        assert closing.result() is None
        for task in (s.notify(), s.call()):
            with pytest.raises(exceptions.MessageDeliveryFailure, match="cleaned up"):
                task.result()
        assert s.network.attempts == []


# -- what is said


def test_the_peer_is_told_who_connects():
    with fakes.setting(container_name="nova-compute") as s:
        s.up()
        engine = s.peer.engine
        assert engine.remote_container.startswith(f"nova-compute.{os.getpid()}.")
        assert engine.remote_properties["pid"] == os.getpid()
        first = engine.remote_container
        s.peer.cut()
        s.world.advance(5)
        # Some buses keep state by the name: each connection has another.
        assert s.peer.engine.remote_container != first


def test_what_an_operator_has_to_see_to_is_said_once(caplog):
    with fakes.setting(network={"product": "RabbitMQ"}) as s:
        s.up()
        s.peer.cut()
        s.world.advance(5)
        s.up()
        said = [r for r in caplog.records if "set_policy" in r.getMessage()]
    assert len(said) == 1 and said[0].levelname == "WARNING"


@pytest.mark.parametrize("pseudo, hostname", [(True, None), (False, "there")])
def test_the_virtual_host_goes_into_addresses_or_the_open_frame(pseudo, hostname):
    with fakes.setting(virtual_host="there", pseudo_vhost=pseudo) as s:
        s.up()
        assert s.peer.engine.remote_hostname == hostname
        assert list(s.peer.inbound) == [
            "unicast.there.openstack.t" if pseudo else "unicast.openstack.t"
        ]


def test_changes_of_state_are_logged_once_with_host_and_reason(caplog):
    caplog.set_level(logging.INFO, "greenamqp")
    with fakes.setting(TWO_HOSTS, virtual_host="v") as s:
        s.network.script = ["Connection refused", {"product": "a bus"}]
        s.up()
        s.peer.cut()
        s.world.advance(5)
        lines = [
            record.getMessage()
            for record in caplog.records
            if record.name == "greenamqp.client"
        ]
    assert len(lines) == 4
    assert "one:5672/v" in lines[0] and "Connection refused" in lines[0]
    assert "two:5673" in lines[0]
    assert "connected to two:5673/v (a bus" in lines[1]
    assert "lost the connection to two:5673/v" in lines[2]
    assert "connected to one:5672/v" in lines[3]


def test_a_program_whose_name_is_no_text(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/opt/\udcff"])
    with fakes.setting() as s:
        s.up()
        assert s.peer.engine.remote_properties["process"] == "?"


def test_what_cannot_be_said_to_a_peer_is_a_failed_attempt(monkeypatch):
    with fakes.setting() as s:
        make, connection = s.client.connection._new_engine, s.client.connection
        monkeypatch.setattr(connection, "_new_engine", lambda password: 1 / 0)
        s.cast("x")
        s.world.settle()
        assert connection.state is State.WAITING
        assert "division by zero" in connection.last_failure
        monkeypatch.setattr(connection, "_new_engine", make)
        s.world.advance(5)
        assert connection.state is State.UP
