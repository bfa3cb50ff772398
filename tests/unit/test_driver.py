# SPDX-License-Identifier: Apache-2.0
"""The driver's contract with oslo.messaging, in a world without sockets and time."""

import collections
import json
import logging
import math
import signal

import oslo_messaging
import pytest
from oslo_messaging import Target, exceptions
from oslo_messaging.transport import TransportOptions

from greenamqp.buses.qpidd import LegacyAddresser
from greenamqp.client import Client
from greenamqp.driver import GreenAMQPDriver
from greenamqp.engine import ACCEPTED, REJECTED, RELEASED
from greenamqp.incoming import Incoming, RpcIncoming
from greenamqp.options import MAX_WAIT
from tests.unit import fakes

ADDRESS = "unicast.openstack.t"


def body(received):
    return json.loads(received.message.body)


# -- requests


def test_a_cast():
    with fakes.driver() as s:
        task = s.send(ctxt={"user": "u"}, message={"method": "m", "args": {"a": 1}})
        s.world.settle()
        assert task.result() is None
        (received,) = s.peer.received
        assert received.address == ADDRESS
        assert not received.settled
        assert body(received) == {
            "request": {"method": "m", "args": {"a": 1}},
            "context": {"user": "u"},
        }
        message = received.message
        assert message.reply_to is None
        assert message.ttl is None
        assert not message.durable


def test_a_call():
    with fakes.driver() as s:
        task = s.call(timeout=10)
        s.world.settle()
        (request,) = s.peer.received
        assert request.message.reply_to
        assert request.message.id
        # It is of no use to anybody afterwards.
        assert request.message.ttl == 10
        s.peer.reply(request, '{"response": {"a": [1]}}')
        s.world.settle()
        assert task.result() == {"a": [1]}


@pytest.mark.parametrize(
    "target, address",
    [
        (Target(topic="t"), "unicast.openstack.t"),
        (Target(topic="t", exchange="x"), "unicast.x.t"),
        (Target(topic="t", server="s"), "exclusive.openstack.t.s"),
        (Target(topic="t", fanout=True), "broadcast.openstack.t.all"),
    ],
)
def test_where_requests_go(target, address):
    with fakes.driver() as s:
        s.up(target)
        assert s.peer.attaches == [address]


def test_a_monitored_call_says_how_long_to_wait():
    with fakes.driver() as s:
        task = s.call(timeout=100, call_monitor_timeout=7)
        s.world.settle()
        (request,) = s.peer.received
        assert body(request)["call_monitor_timeout"] == 7
        s.world.advance(8)
        with pytest.raises(exceptions.MessagingTimeout, match="no heartbeat"):
            task.result()


@pytest.mark.parametrize("kind", ["call", "cast", "notify"])
def test_a_time_out_of_the_program_itself(monkeypatch, kind):
    """Of a signal handler, raised while the driver is at work and does not wait."""

    class SoftLimit(TimeoutError):
        pass

    def handler(*_):
        raise SoftLimit

    submit = Client._submit

    def struck(client, *args):
        submit(client, *args)
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    monkeypatch.setattr(Client, "_submit", struck)
    with fakes.driver() as s:
        if kind == "notify":
            send = s.driver.send_notification
            task = s.world.go(send, Target(topic="t"), {}, {}, 2.0)
        else:
            task = s.send(wait_for_reply=kind == "call", timeout=20)
        s.world.settle()
        with pytest.raises(SoftLimit):
            task.result()
    signal.signal(signal.SIGUSR1, before)


def test_a_monitor_of_no_time_is_none():
    with fakes.driver() as s:
        task = s.call(timeout=100, call_monitor_timeout=0)
        s.world.settle()
        (request,) = s.peer.received
        assert "call_monitor_timeout" not in body(request)
        s.world.advance(90)
        s.peer.reply(request, '{"response": 1}')
        s.world.settle()
        assert task.result() == 1


@pytest.mark.parametrize("kind", ["cast", "call"])
@pytest.mark.parametrize("timeout", [None, 20])
def test_only_who_gave_a_timeout_hears_of_one(kind, timeout):
    with fakes.driver(default_send_timeout=12, network={"credit": 0}) as s:
        task = s.send(wait_for_reply=kind == "call", timeout=timeout)
        patience = timeout or 12
        s.world.advance(patience - 1)
        assert not task.done
        s.world.advance(2)
        with pytest.raises(exceptions.MessagingException) as caught:
            task.result()
        expected = (
            exceptions.MessagingTimeout
            if timeout
            else exceptions.MessageDeliveryFailure
        )
        assert type(caught.value) is expected
        assert "topic=t" in str(caught.value)


@pytest.mark.parametrize("ever", [1e30, math.inf, math.nan])
def test_for_ever_is_as_long_as_a_timer_can_wait(ever):
    with fakes.driver() as s:
        task = s.call(timeout=ever, call_monitor_timeout=ever)
        s.world.settle()
        (request,) = s.peer.received
        assert request.message.ttl == MAX_WAIT
        assert body(request)["call_monitor_timeout"] == MAX_WAIT
        assert max(s.world.waiting.values()) <= s.world.now() + MAX_WAIT
        s.peer.reply(request, '{"response": 1}')
        s.world.settle()
        assert task.result() == 1


def test_retry_is_the_number_of_further_attempts():
    with fakes.driver() as s:
        s.up()
        s.peer.outcome = lambda message: RELEASED
        task = s.send(retry=3)
        s.world.advance(10)
        with pytest.raises(exceptions.MessageDeliveryFailure):
            task.result()
        assert len(s.peer.received) == 4


@pytest.mark.parametrize("wait_for_reply", [True, False])
def test_at_least_once_is_an_error_where_nobody_is(wait_for_reply):
    with fakes.driver() as s:
        s.up()
        s.peer.outcome = lambda message: RELEASED
        task = s.send(
            wait_for_reply=wait_for_reply,
            transport_options=TransportOptions(at_least_once=True),
        )
        s.world.settle()
        with pytest.raises(exceptions.MessageUndeliverable):
            task.result()
        patient = s.send(transport_options=TransportOptions(at_least_once=False))
        s.world.settle()
        assert not patient.done
        s.peer.outcome = lambda message: ACCEPTED
        s.world.advance(1)
        assert patient.result() is None


def test_a_refused_address():
    with fakes.driver() as s:
        s.up()
        s.peer.refuse["unicast.openstack.secret"] = ("amqp:unauthorized-access", "no")
        task = s.send(Target(topic="secret"))
        s.world.settle()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="unauthorized"):
            task.result()


@pytest.mark.parametrize(
    "allowed, kind",
    [
        ([], oslo_messaging.RemoteError),
        (["oslo_messaging.exceptions"], oslo_messaging.InvalidTarget),
    ],
)
def test_what_the_server_raises(allowed, kind):
    failure = json.dumps(
        {
            "class": "InvalidTarget",
            "module": "oslo_messaging.exceptions",
            "message": "the reason",
            "tb": [],
            "args": ["the reason", None],
        }
    )
    with fakes.driver(allowed_remote_exmods=allowed) as s:
        task = s.call()
        s.world.settle()
        s.peer.reply(s.peer.received[0], json.dumps({"failure": failure}))
        s.world.settle()
        with pytest.raises(kind, match="the reason"):
            task.result()


@pytest.mark.parametrize("reply", ["", "[]", "no JSON", '{"failure": 5}'])
def test_a_reply_that_cannot_be_read(reply):
    with fakes.driver() as s:
        task = s.call()
        s.world.settle()
        s.peer.reply(s.peer.received[0], reply)
        s.world.settle()
        with pytest.raises(exceptions.MessagingException, match="cannot be read"):
            task.result()
        s.up()  # nothing else is harmed


def test_what_cannot_be_serialised_is_the_callers_mistake():
    with fakes.driver() as s:
        circle = []
        circle.append(circle)
        for task in (
            s.send(message={"args": circle}),
            s.call(message={"args": circle}),
            s.notify(message={"payload": circle}),
        ):
            with pytest.raises((ValueError, TypeError, RecursionError)):
                task.result()
        s.up()


@pytest.mark.parametrize(
    "product", ["", "qpid-dispatch-router", "apache-activemq-artemis"]
)
@pytest.mark.parametrize(
    ("topic", "reason"),
    [("\ud800", "surrogates"), ("a\0b", "NUL"), ("a" * 70000, "frame")],
)
def test_a_topic_that_cannot_be_written(product, topic, reason):
    with fakes.driver(network={"product": product}) as s:
        tasks = [
            s.world.go(
                s.driver.send_notification, Target("e", each), {}, {}, 2.0, retry=0
            )
            for each in (topic, "good")
        ]
        s.world.settle()
        with pytest.raises(exceptions.MessageDeliveryFailure, match=reason):
            tasks[0].result()
        assert tasks[1].result() is None


def test_a_name_that_the_bus_has_no_way_to_write(monkeypatch):
    """It is its user's mistake, and nobody else's on the connection."""
    anycast = LegacyAddresser.anycast

    def strict(addresser, target, service):
        target.topic.encode()  # as RabbitMQ's, whose addresses are percent-encoded
        return anycast(addresser, target, service)

    monkeypatch.setattr(LegacyAddresser, "anycast", strict)
    bad, good = Target(topic="\ud800", server="s"), Target(topic="t", server="s")
    with fakes.driver() as s:
        sent = [s.send(Target(topic=each.topic)) for each in (bad, good)]
        listening = [s.world.go(s.driver.listen, each, 1, None) for each in (bad, good)]
        for _ in range(2):
            s.world.settle()
            with pytest.raises(exceptions.MessageDeliveryFailure, match="surrogates"):
                sent[0].result()
            assert sent[1].result() is None
            with pytest.raises(UnicodeEncodeError):
                listening[0].result()
            assert listening[1].result()._subscription.attached
            s.peer.cut()
            s.world.settle()
            sent = [s.send(Target(topic=each.topic)) for each in (bad, good)]
            s.world.advance(10)


@pytest.mark.parametrize("context", [[1], "text", 5, True])
def test_a_context_that_is_no_dict_is_the_callers_mistake(context):
    """No server takes such a request: its caller would wait for nothing."""
    with fakes.driver() as s:
        for send in (s.send, s.call, s.notify):
            with pytest.raises(TypeError, match="context must be a dict"):
                send(ctxt=context).result()
        task = s.send(ctxt=collections.OrderedDict(a=1))
        s.world.settle()
        task.result()
        (request,) = s.peer.received
        assert body(request)["context"] == {"a": 1}


# -- notifications


def test_a_notification():
    with fakes.driver() as s:
        task = s.notify(Target(topic="notifications.info", exchange="nova"))
        s.world.settle()
        assert task.result() is None
        (received,) = s.peer.received
        assert received.address == "unicast.nova.notifications.info"
        assert received.message.durable
        assert received.message.ttl is None
        assert list(body(received)["request"]) == ["oslo.version", "oslo.message"]


def test_a_notification_without_envelope():
    with fakes.driver() as s:
        task = s.notify(version=1.0)
        s.world.settle()
        assert task.result() is None
        assert body(s.peer.received[0])["request"] == {"event_type": "e"}


def test_a_notification_that_nobody_takes_in_time():
    with fakes.driver(default_notify_timeout=9, network={"credit": 0}) as s:
        task = s.notify()
        s.world.advance(8)
        assert not task.done
        s.world.advance(2)
        with pytest.raises(exceptions.MessageDeliveryFailure, match="notification"):
            task.result()


@pytest.mark.parametrize("retry", [None, -1])
def test_a_notifier_that_tries_for_ever_outlasts_an_outage(retry):
    with fakes.driver() as s:
        s.network.default = "no route"
        task = s.notify(retry=retry)
        s.world.advance(100_000)
        assert not task.done
        s.network.default = {}
        s.world.advance(60)
        assert task.result() is None


@pytest.mark.parametrize(
    "retry, overrides, seconds",
    [(2, {}, 30), (-1, {"default_notify_timeout": 7}, 7)],
)
def test_a_notification_with_an_end(retry, overrides, seconds):
    with fakes.driver(**overrides) as s:
        s.up()
        s.peer.outcome = lambda message: None
        task = s.notify(retry=retry)
        s.world.advance(seconds - 0.1)
        assert not task.done
        s.world.advance(0.2)
        with pytest.raises(exceptions.MessageDeliveryFailure, match="no outcome"):
            task.result()


def test_a_rejected_notification():
    with fakes.driver() as s:
        s.up()
        s.peer.outcome = lambda message: (REJECTED, {"condition": "amqp:not-allowed"})
        task = s.notify()
        s.world.settle()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="not-allowed"):
            task.result()


@pytest.mark.parametrize("kind, again", [("notify", True), ("send", False)])
def test_what_is_sent_again_after_the_connection_was_lost(kind, again):
    with fakes.driver() as s:
        s.up()
        s.peer.outcome = lambda message: None
        task = getattr(s, kind)()
        s.world.settle()
        s.peer.cut()
        s.world.advance(5)
        assert len(s.peer.received) == int(again)
        assert (task.error is None) is again


# -- listening


def test_listen_returns_when_the_subscriptions_are_up():
    with fakes.driver() as s:
        s.network.delay = 5.0
        task = s.world.go(s.driver.listen, Target(topic="t", server="s"), 1, None)
        s.world.advance(4)
        assert not task.done
        s.world.advance(2)
        listener = task.result()
        assert sorted(s.peer.outbound) == [
            "broadcast.openstack.t.all",
            "exclusive.openstack.t.s",
            "unicast.openstack.t",
        ]
        listener.cleanup()


def test_listen_does_not_wait_for_ever(caplog):
    with fakes.driver(default_send_timeout=15) as s:
        s.network.default = "Connection refused"
        task = s.world.go(s.driver.listen, Target(topic="t", server="s"), 1, None)
        s.world.advance(14)
        assert not task.done
        s.world.advance(2)
        listener = task.result()
        assert "not subscribed yet after 15 s" in caplog.text
        assert "Connection refused" in caplog.text
        s.network.default = {}
        s.world.advance(60)
        assert len(s.peer.outbound) == 3
        listener.cleanup()


def test_the_caller_may_change_its_target_afterwards():
    with fakes.driver() as s:
        target = Target(topic="t", server="s")
        listener = s.listen(target)
        target.topic = "other"
        s.peer.cut()
        s.world.advance(5)
        assert "unicast.openstack.t" in s.peer.outbound
        listener.cleanup()


def test_listening_for_notifications_of_many_exchanges():
    with fakes.driver() as s:
        listener = s.listen_for_notifications(
            [
                (Target(topic="notifications", exchange=exchange), priority)
                for exchange in ("nova", "neutron", None)
                for priority in ("info", "error")
            ]
        )
        assert sorted(s.peer.outbound) == [
            "unicast.neutron.notifications.error",
            "unicast.neutron.notifications.info",
            "unicast.nova.notifications.error",
            "unicast.nova.notifications.info",
            "unicast.openstack.notifications.error",
            "unicast.openstack.notifications.info",
        ]
        listener.cleanup()


def test_listening_in_a_pool():
    with fakes.driver(network={"product": "greenamqp"}) as s:
        listener = s.listen_for_notifications(pool="metering")
        (address,) = s.peer.outbound
        assert address.startswith("unicast.openstack.t.info::")
        assert "metering" in address
        listener.cleanup()


def test_a_pool_where_the_bus_has_none():
    with fakes.driver(network={"product": "qpid-cpp"}) as s:
        with pytest.raises(NotImplementedError, match="metering"):
            s.listen_for_notifications(pool="metering")
        s.world.settle()
        assert s.peer.outbound == {}
        s.listen_for_notifications().cleanup()


@pytest.mark.parametrize("kind", [RpcIncoming, Incoming])
def test_what_a_listener_gives(kind):
    with fakes.driver() as s:
        if kind is RpcIncoming:
            listener, address = s.listen(), "unicast.openstack.t"
        else:
            listener = s.listen_for_notifications()
            address = "unicast.openstack.t.info"
        s.peer.send(
            address, fakes.Message('{"request": {"a": 1}, "context": {"b": 2}}', id="7")
        )
        s.world.settle()
        task = s.world.go(listener.poll, timeout=0)
        (incoming,) = task.result()
        assert type(incoming) is kind
        assert (incoming.message, incoming.ctxt) == ({"a": 1}, {"b": 2})
        assert incoming.msg_id == "7"
        listener.cleanup()


# -- hosts


@pytest.mark.parametrize(
    "url, attempt",
    [
        ("amqp://", ("localhost", 5672)),
        ("amqp:///vhost", ("localhost", 5672)),
        ("amqp://host", ("host", 5672)),
        ("amqp://host:1234/", ("host", 1234)),
        ("amqp://me:secret@host/", ("host", 5672)),
        ("amqp://[::1]:1234/", ("::1", 1234)),
        ("amqp://me:secret@[2001:db8::1]/", ("2001:db8::1", 5672)),
    ],
)
def test_hosts_of_the_url(url, attempt):
    with fakes.driver(url) as s:
        s.send()
        s.world.settle()
        assert s.network.attempts == [(1000.0, *attempt)]


def test_all_hosts_of_the_url_are_tried_with_their_credentials():
    with fakes.driver("amqp://a:1@one:1,b:2@two:2,c:3@three/vh") as s:
        s.network.default = "refused"
        task = s.send()
        s.world.settle()
        tried = [host for _, host, _ in s.network.attempts]
        assert sorted(tried) == ["one", "three", "two"]
        s.network.default = {"passwords": {"a": "1", "b": "2", "c": "3"}}
        s.world.advance(5)
        assert task.result() is None
        user = {"one": "a", "two": "b", "three": "c"}
        assert s.peer.engine.user == user[s.network.attempts[-1][1]]


@pytest.mark.parametrize(
    "url, named",
    [
        ("amqp://bus/v%00h", "the virtual host has a NUL"),
        ("amqp://n%00o:s3cr3t@bus/", "the user name for bus has a NUL"),
        ("amqp://a:b@one,nova:s3cr%003t@two/", "the password for two has a NUL"),
        ("amqp://bus/?container_name=n%00o", "container_name has a NUL"),
        ("amqp://bus/?sasl_default_realm=n%00o", "sasl_default_realm has a NUL"),
    ],
)
def test_a_name_that_would_be_cut_off(url, named):
    with pytest.raises(ValueError, match=named) as caught:
        with fakes.driver(url):
            pass
    assert "s3cr" not in str(caught.value)


def test_a_name_that_cannot_be_written():
    url = oslo_messaging.TransportURL(
        fakes.conf(), transport="amqp", virtual_host="\ud800"
    )
    with pytest.raises(ValueError, match="the virtual host .* UTF-8") as caught:
        GreenAMQPDriver(url.conf, url)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("pseudo", [True, False])
def test_names_in_any_script(pseudo):
    url = "amqp://%C5%BElu%C5%A5:%E6%BC%A2%3A%40%2F%25@bus/%E6%BC%A2%2F%20b?"
    with fakes.driver(f"{url}pseudo_vhost={pseudo}") as s:
        s.network.default = {"passwords": {"žluť": "漢:@/%"}}
        task = s.send()
        s.world.settle()
        assert task.result() is None
        assert s.peer.engine.user == "žluť"
        assert s.peer.engine.remote_hostname == (None if pseudo else "漢/ b")
        (received,) = s.peer.received
        assert ("漢/ b" in received.address) == pseudo


# -- the process


def test_nothing_is_connected_before_it_is_needed():
    with fakes.driver() as s:
        s.world.advance(100)
        assert s.network.attempts == []
        assert s.world.started == 0


def test_cleanup_twice_and_use_after_it():
    with fakes.driver() as s:
        s.up()
        for _ in range(2):
            cleaning = s.world.go(s.driver.cleanup)
            s.world.settle()
            assert cleaning.result() is None
        assert s.world.stopped == 1
        assert s.peer.events[-1] == ("closed", None)


def test_calls_from_a_native_thread_that_the_hub_does_not_know():
    inside = []
    with fakes.driver() as s:

        def run_inside(function, *args):
            inside.append(function.__name__)
            foreign.append(False)
            try:
                return function(*args)
            finally:
                foreign.pop()

        foreign = [True]
        s.world.foreign = lambda: foreign[-1]
        s.world.run_inside = run_inside
        s.send()
        s.world.settle()
        s.notify()
        s.world.settle()
        listener = s.listen()
        assert len(s.peer.received) == 2
        s.peer.send(ADDRESS, fakes.Message('{"request": {}}', id="1", reply_to="me"))
        s.world.settle()
        task = s.world.go(listener.poll, timeout=0)
        (incoming,) = task.result()
        incoming.acknowledge()
        s.world.settle()
        assert [outcome for _, outcome in s.peer.outcomes] == [ACCEPTED]
        s.world.go(incoming.reply, "answer").result()
        s.world.settle()
        assert s.peer.received[-1].address == "me"
        s.world.go(listener.cleanup)
        s.world.go(s.driver.cleanup)
        s.world.settle()
        assert s.world.stopped == 1
        foreign[:] = [False]
    assert inside == [
        "run",
        "run",
        "_attached",
        "poll",
        "_settle",
        "post",
        "run",
        "run",
    ]


def test_requeueing_is_supported():
    with fakes.driver() as s:
        assert s.driver.require_features(requeue=True) is None


def test_the_hub_may_be_wished_for():
    with fakes.driver() as s:
        assert s.driver.use_hub("blocking") is s.world
        assert s.driver.use_hub("threads") is s.world
        assert s.world.asked_for == ["blocking"]
    with fakes.driver(hub="gevent") as s:
        s.driver.use_hub("blocking")
        assert s.world.asked_for == ["gevent"]


@pytest.mark.parametrize("scheme", ["amqp", "amqps", "greenamqp", "greenamqps"])
def test_oslo_messaging_finds_it_by_name(scheme):
    conf = fakes.conf()
    conf.control_exchange = "x"
    transport = oslo_messaging.get_rpc_transport(conf, f"{scheme}://host/")
    assert type(transport._driver) is GreenAMQPDriver
    transport.cleanup()


def test_passwords_are_nowhere_in_the_log(caplog):
    caplog.set_level(logging.DEBUG)
    with fakes.driver("amqp://me:s3cr3t@bus/vh?ssl_key_password=s3cr3t") as s:
        s.network.script = ["refused", {"passwords": {"me": "another"}}]
        task = s.send(timeout=5)
        s.world.advance(10)
        with pytest.raises(exceptions.MessagingTimeout) as caught:
            task.result()
        assert "s3cr3t" not in str(caught.value)
    assert "refused" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("amqp:", True),
        ("amqp://", True),
        ("amqp:///v", True),
        ("amqp://u:p@/", True),
        ("amqp://one,:5672", True),
        ("amqp://one/", False),
    ],
)
def test_a_url_without_a_host_is_told_of(url, told, caplog):
    with fakes.driver(url):
        assert ("names no host: that means localhost" in caplog.text) is told
