# SPDX-License-Identifier: Apache-2.0
"""What cannot get better by waiting is told at once, where ``fail_fast`` is set."""

import pytest
from oslo_messaging import Target, exceptions

from greenamqp.buses import Refused
from greenamqp.connection.diagnosis import Lasting
from greenamqp.connection.failover import Host
from greenamqp.connection.life import CannotConnect
from greenamqp.connection.state import State
from greenamqp.engine import RemoteError
from greenamqp.engine.sasl import SaslServer
from tests.unit import fakes

WRONG = "amqp://nova:wrong@bus:5672/"
SECRET = {"passwords": {"nova": "right"}}
UNTRUSTED = Lasting("the peer's certificate does not verify: self-signed certificate")

WAYS = {
    "cast": lambda s: s.send(),
    "cast with a time-out": lambda s: s.send(timeout=50),
    "call": lambda s: s.call(timeout=50),
    "notification": lambda s: s.notify(),
    "rpc server": lambda s: s.world.go(s.driver.listen, Target(topic="t"), 1, None),
    "listener": lambda s: s.world.go(
        s.driver.listen_for_notifications, [(Target(topic="t"), "info")], None, 1, None
    ),
}


def told(task):
    """What the caller got, of whom nothing is kept waiting."""
    assert task.done
    with pytest.raises(exceptions.MessageDeliveryFailure) as caught:
        task.result()
    return caught.value


@pytest.mark.parametrize("way", WAYS)
def test_whoever_waits_is_told(way):
    with fakes.driver(WRONG, network=SECRET, fail_fast=True) as s:
        task = WAYS[way](s)
        s.world.settle()
        error = told(task)
        assert "bus:5672: the peer refused the login of user 'nova'" in str(error)
        assert type(error.__cause__) is CannotConnect
        assert "wrong user name or password" in str(error.__cause__)
        # Who comes later hears it as well, without any further attempt.
        attempts = len(s.network.attempts)
        late = WAYS[way](s)
        s.world.settle()
        assert type(told(late).__cause__) is CannotConnect
        assert len(s.network.attempts) == attempts


@pytest.mark.parametrize("way", WAYS)
def test_without_the_option_everybody_waits(way):
    with fakes.driver(WRONG, network=SECRET) as s:
        task = WAYS[way](s)
        s.world.advance(10)
        assert not task.done
        s.network.default = {"passwords": {"nova": "wrong"}}
        s.world.advance(15)
        if way == "call":
            s.peer.reply(s.peer.received[0], '{"response": null}')
            s.world.settle()
        assert task.done
        if way in ("rpc server", "listener"):
            task.result().cleanup()


def test_it_is_tried_again_all_the_same():
    with fakes.driver(WRONG, network=SECRET, fail_fast=True) as s:
        s.notify()
        s.world.advance(3)
        s.network.default = {"passwords": {"nova": "wrong"}}
        s.world.advance(10)
        s.up()


@pytest.mark.parametrize(
    ("outcomes", "at_once"),
    [
        ([SECRET, SECRET], True),
        ([SECRET, UNTRUSTED], True),
        ([SECRET, "refused"], False),
        (["refused", SECRET], False),
    ],
)
def test_every_host_must_be_of_no_use(outcomes, at_once):
    url = "amqp://nova:wrong@one:1,nova:wrong@two:2/"
    with fakes.driver(url, fail_fast=True) as s:
        s.network.script = list(outcomes)
        s.network.default = "refused"
        task = s.notify()
        s.world.settle()
        assert len(s.network.attempts) == 2
        assert task.done is at_once
        if at_once:
            error = str(told(task))
            assert "one:1" in error and "two:2" in error


def test_a_host_that_wants_no_sasl_is_no_lost_cause(monkeypatch):
    class Other(fakes.SaslServer):
        def __init__(self):
            super().__init__()
            self.mechanisms = ("GSSAPI",)

    monkeypatch.setattr(fakes, "SaslServer", Other)
    with fakes.driver("amqp://bus/", fail_fast=True) as s:
        task = s.notify()
        s.world.advance(5)
        assert task.result() is None


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("condition", ["amqp:not-found", "amqp:not-allowed"])
def test_a_bus_that_closes_after_its_open_frame(condition, hosts):
    """So do some where the virtual host is unknown."""
    url = "amqp://" + ",".join(f"nova:right@h{i}:1" for i in range(hosts)) + "/nosuch"
    with fakes.driver(url, network=SECRET, fail_fast=True) as s:
        opened = fakes.Peer.connection_opened

        def closing(peer, connection):
            opened(peer, connection)
            peer.engine.close(condition, "no vhost")

        s.network.default = {**SECRET, "credit": 0}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fakes.Peer, "connection_opened", closing)
            task = s.notify()
            s.world.advance(0.5)
            error = told(task)
            assert f"{condition}: no vhost" in str(error)
            assert "/nosuch" in str(error)
            assert type(error.__cause__) is CannotConnect


def test_a_connection_that_had_lasted_is_made_again_first():
    """The next login may have another token."""
    url = "amqp://nova:right@bus:5672/"
    with fakes.driver(url, network=SECRET, fail_fast=True) as s:
        s.up()
        s.world.advance(30)
        s.peer.engine.close("amqp:unauthorized-access", "credential expired")
        s.world.settle()
        task = s.notify()
        s.world.settle()
        assert not task.done
        s.world.advance(3)
        assert task.result() is None


def test_a_reply_waits():
    """Nobody stands still for it, and who called does not know of this."""
    host = Host("bus", 5672, "nova", "wrong")
    with fakes.setting([host], network=SECRET, fail_fast=True) as s:
        s.post()
        s.world.advance(3)
        s.network.default = {"passwords": {"nova": "wrong"}}
        s.world.advance(10)
        assert s.client.connection.state is State.UP
        assert len(s.peer.received) == 1


@pytest.mark.parametrize("condition", ["amqp:unauthorized-access", "amqp:not-allowed"])
def test_no_permission_to_listen(condition):
    refuse = {"exclusive.openstack.t.s": (condition, "not for nova")}
    for fast in (True, False):
        with fakes.driver(network={"refuse": refuse}, fail_fast=fast) as s:
            target = Target(topic="t", server="s")
            task = s.world.go(s.driver.listen, target, 1, None)
            s.world.settle()
            assert task.done is fast
            if fast:
                error = told(task)
                assert f"{condition}: not for nova" in str(error)
                assert type(error.__cause__) is Refused
            else:
                s.world.advance(40)
                task.result().cleanup()


def test_a_subscription_that_is_refused_for_now_is_waited_for():
    refuse = {"exclusive.openstack.t.s": ("amqp:not-found", "later")}
    with fakes.driver(network={"refuse": refuse}, fail_fast=True) as s:
        task = s.world.go(s.driver.listen, Target(topic="t", server="s"), 1, None)
        s.world.settle()
        assert not task.done
        s.peer.refuse.clear()
        s.world.advance(11)
        task.result().cleanup()


def test_no_permission_to_send():
    refuse = {"unicast.openstack.t": ("amqp:unauthorized-access", "not for nova")}
    with fakes.driver(network={"refuse": refuse}) as s:
        task = s.send()
        s.world.settle()
        error = told(task)
        assert type(error.__cause__) is RemoteError
        assert error.__cause__.condition == "amqp:unauthorized-access"


@pytest.mark.parametrize("fast", [True, False])
def test_no_permission_to_have_replies(fast):
    refuse = {"": ("amqp:unauthorized-access", "not for nova")}
    with fakes.driver(network={"refuse": refuse}, fail_fast=fast) as s:
        task = s.call(timeout=5)
        s.world.settle()
        assert task.done is fast
        if fast:
            error = told(task)
            assert "the link for replies: amqp:unauthorized-access" in str(error)
            assert type(error.__cause__) is Refused
            # What needs no reply is not kept from leaving.
            s.up()
        else:
            s.world.advance(6)


def test_no_login_is_told_once_both_ways_were_tried(monkeypatch):
    monkeypatch.setattr(
        fakes, "SaslServer", lambda: SaslServer({"nova": "p"}, anonymous=False)
    )
    with fakes.driver("amqp://bus/", fail_fast=True) as s:
        task = s.notify()
        s.world.settle()
        assert not task.done
        s.world.advance(2)
        error = str(told(task))
        assert "the peer offers PLAIN" in error
        assert "without SASL: the peer wants a login by SASL" in error
