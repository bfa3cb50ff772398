# SPDX-License-Identifier: Apache-2.0
"""What greenamqp does on every bus that keeps messages and has pools.

A module of tests for one bus has a class that inherits from :class:`Contract`, or from
:class:`Basics` where the bus has less, and the fixtures ``bus`` and ``url``.
"""

from __future__ import annotations

import contextlib
import queue
import threading

import oslo_messaging
import pytest
from oslo_messaging import NotificationResult, Target

import greenamqp
from tests.chaos import in_flight
from tests.integration.services import (
    PATIENCE,
    Endpoint,
    Notified,
    Remote,
    calling,
    listening,
    notification,
    notifying,
    rpc,
    running,
    serving,
    unique,
)

#: Names with all that has a meaning in some bus's addresses.
AWKWARD = "a b/c%d.e::f#g*h"


class Basics:
    """What any bus can do that keeps messages."""

    @pytest.mark.proves("call", "cast", "remote errors")
    def test_call_cast_and_remote_exception(self, url):
        topic = unique(AWKWARD)
        with serving(url, topic) as endpoint, calling(url, topic) as client:
            assert client.call({"k": 1}, "echo", value=["x", 1]) == ["x", 1]
            assert endpoint.contexts.get(timeout=PATIENCE)["k"] == 1
            client.cast({}, "hear", value="cast")
            assert endpoint.next() == "cast"
            with pytest.raises(Remote, match="such a thing"):
                client.call({}, "fail", text="such a thing")

    @pytest.mark.proves("call", "fanout")
    def test_server_and_fanout(self, url):
        topic = unique()
        with serving(url, topic, "one.a") as one, serving(url, topic, "two.a") as two:
            with calling(url, topic) as client:
                assert client.prepare(server="two.a").call({}, "who") == "two.a"
                assert client.prepare(server="one.a").call({}, "who") == "one.a"
                client.prepare(fanout=True).cast({}, "hear", value="all")
                assert (one.next(), two.next()) == ("all", "all")

    def test_a_fanout_that_nobody_hears_is_in_order(self, url):
        with calling(url, unique()) as client:
            client.prepare(fanout=True, retry=0).cast({}, "hear", value=1)

    def test_a_request_waits_for_its_server(self, url):
        topic = unique()
        answers = []
        with calling(url, topic) as client:
            caller = threading.Thread(
                target=lambda: answers.append(client.call({}, "who"))
            )
            caller.start()
            with serving(url, topic, "late"):
                caller.join(PATIENCE)
        assert answers == ["late"]


class KeepsReplies:
    """What a bus can do that keeps what is replied while a connection is lost."""

    @pytest.mark.proves("reconnect")
    @pytest.mark.parametrize(
        "world, named", [("threads", True), ("eventlet", True), ("threads", False)]
    )
    def test_calls_in_flight_come_to_their_reply(self, url, world, named, capsys):
        figures = in_flight.run(url, world, cuts=6, callers=20, named=named)
        with capsys.disabled():
            print(f"\n    {world}: {in_flight.text(figures)}")
        assert figures["raised"] == {}
        assert figures["executed_twice"] == figures["wrong_replies"] == 0


class Contract(Basics):
    """See the module."""

    @pytest.mark.proves("exchanges")
    def test_exchanges_are_apart(self, url):
        topic = unique()
        with contextlib.ExitStack() as stack:
            transport = stack.enter_context(rpc(url))
            server = greenamqp.Server(transport)
            for exchange in ("one", "two"):
                server.listen(
                    Target(exchange=exchange, topic=topic, server="s"),
                    [Endpoint(exchange)],
                )
            stack.enter_context(running(server))
            client = stack.enter_context(calling(url, topic))
            for exchange in ("one", "two", "one"):
                assert client.prepare(exchange=exchange).call({}, "who") == exchange

    @pytest.mark.proves("store")
    def test_a_cast_waits_for_a_server_that_was_there(self, url):
        topic = unique()
        with serving(url, topic):
            pass
        with calling(url, topic) as client:
            client.cast({}, "hear", value="kept")
        with serving(url, topic) as endpoint:
            assert endpoint.next() == "kept"

    def test_a_reply_to_a_caller_that_left_harms_nobody(self, url):
        topic, late = unique(), Endpoint()
        with serving(url, topic, endpoint=late), calling(url, topic) as other:
            assert other.call({}, "echo", value=1) == 1
            with calling(url, topic, timeout=1) as client:
                with pytest.raises(oslo_messaging.MessagingTimeout):
                    client.call({}, "wait", value=1)
            assert late.started.wait(PATIENCE)
            late.gate.set()
            for number in range(10):
                assert other.call({}, "echo", value=number) == number

    @pytest.mark.proves("store", "pools")
    def test_notifications_wait_and_pools_get_copies(self, url):
        topic = unique()
        with notifying(url, topic) as notifier:
            notifier.info({}, "early", {"n": 1})
            with (
                listening(url, topic) as default,
                listening(url, topic, "a/b::c") as pool,
                listening(url, topic, "other") as other,
            ):
                assert default.next()[1] == "early"
                notifier.info({}, "late", {"n": 2})
                for listener in (default, pool, other):
                    assert listener.next() == ("publisher", "late", {"n": 2})

    @pytest.mark.proves("pool_store")
    def test_a_pool_shares_and_keeps(self, url):
        topic = unique()
        with notifying(url, topic) as notifier:
            with listening(url, topic, "pool"):
                pass
            # Nobody is in the pool now.
            for number in range(40):
                notifier.info({}, "event", {"n": number})
            heard = []
            with (
                listening(url, topic, "pool") as one,
                listening(url, topic, "pool") as two,
            ):
                for number in range(40, 80):
                    notifier.info({}, "event", {"n": number})
                while len(heard) < 80:
                    for member in (one, two):
                        with contextlib.suppress(queue.Empty):
                            heard.append(member.heard.get(timeout=0.1)[2]["n"])
        assert sorted(heard) == list(range(80))

    @pytest.mark.proves("requeue")
    def test_a_message_may_be_requeued_any_number_of_times(self, url):
        """More often than the broker lets a message fail."""
        topic, tries = unique(), 25
        heard: queue.Queue = queue.Queue()
        done = threading.Event()

        class Reluctant:
            count = 0

            def info(self, ctxt, publisher_id, event_type, payload, metadata):
                self.count += 1
                heard.put(payload)
                if self.count < tries:
                    return NotificationResult.REQUEUE
                done.set()
                return NotificationResult.HANDLED

        with notification(url) as transport, notifying(url, topic) as notifier:
            server = greenamqp.Server(transport)
            server.listen_for_notifications(
                [Target(topic=topic)], [Reluctant()], allow_requeue=True
            )
            with running(server):
                notifier.info({}, "event", {"n": 1})
                assert done.wait(PATIENCE)
        assert [heard.get_nowait() for _ in range(tries)] == [{"n": 1}] * tries

    @pytest.mark.proves("servers")
    def test_one_server_has_many_targets_exchanges_and_pools(self, url):
        topic, count = unique(), 30
        with contextlib.ExitStack() as stack:
            transport = stack.enter_context(rpc(url))
            server = greenamqp.Server(transport)
            notified = {pool: Notified() for pool in (None, "p", "q")}
            for number in range(count):
                server.listen(
                    Target(topic=f"{topic}-{number}", server="s"),
                    [Endpoint(str(number))],
                )
            for pool, endpoint in notified.items():
                server.listen_for_notifications(
                    [Target(topic=topic, exchange=name) for name in ("nova", "glance")],
                    [endpoint],
                    pool=pool,
                )
            stack.enter_context(running(server))
            client = stack.enter_context(calling(url, topic))
            for number in range(count):
                prepared = client.prepare(topic=f"{topic}-{number}")
                assert prepared.call({}, "who") == str(number)
            notify = transport._driver.send_notification
            for exchange in ("nova", "glance"):
                notify(
                    Target(topic=f"{topic}.info", exchange=exchange),
                    {},
                    {
                        "publisher_id": "p",
                        "event_type": exchange,
                        "payload": {},
                        "message_id": "m",
                        "priority": "INFO",
                        "timestamp": "t",
                    },
                    2.0,
                )
            for endpoint in notified.values():
                events = {endpoint.next()[1], endpoint.next()[1]}
                assert events == {"nova", "glance"}

    @pytest.mark.proves("servers")
    def test_join_consumer_pool(self, url):
        topic = unique()
        heard: queue.Queue = queue.Queue()
        with notification(url) as transport, notifying(url, topic) as notifier:
            members = [
                greenamqp.join_consumer_pool(
                    transport, heard.put, "pool", f"{topic}.info"
                )
                for _ in range(2)
            ]
            notifier.info({}, "event", {"n": 1})
            assert heard.get(timeout=PATIENCE)["payload"] == {"n": 1}
            notifier.info({}, "event", {"n": 2})
            assert heard.get(timeout=PATIENCE)["payload"] == {"n": 2}
            for member in members:
                member.stop()
        assert heard.empty()

    @pytest.mark.proves("virtual hosts")
    def test_virtual_hosts_are_apart(self, url):
        topic = unique()
        other = url.rstrip("/") + "/other"
        with serving(url, topic, "here"), serving(other, topic, "there"):
            with calling(url, topic) as here, calling(other, topic) as there:
                assert here.call({}, "who") == "here"
                assert there.call({}, "who") == "there"

    @pytest.mark.proves("restart")
    def test_kill_9_loses_nothing_that_was_accepted(self, url, bus):
        topic = unique()
        with (
            notifying(url, topic) as notifier,
            listening(url, topic) as default,
            listening(url, topic, "pool") as pool,
            serving(url, topic) as endpoint,
            calling(url, topic) as client,
        ):
            client.call({}, "who")
            for number in range(200):
                if number == 100:
                    bus.kill9()
                    bus.start()
                notifier.info({}, "event", {"n": number})
                if number >= 110:
                    # A cast on its way when the broker dies may be lost or not:
                    # it is not sent twice.  From here on all is well again.
                    client.cast({}, "hear", value=number)
            for listener in (default, pool):
                heard = set()
                while len(heard) < 200:
                    heard.add(listener.next()[2]["n"])
                assert heard == set(range(200))
            casts = [endpoint.next() for _ in range(90)]
            assert sorted(casts) == list(range(110, 200))
            assert client.call({}, "who") == "server"

    @pytest.mark.proves("restart")
    def test_casts_and_notifications_that_wait_outlive_the_broker(self, url, bus):
        topic = unique()
        with serving(url, topic), listening(url, topic, "pool"):
            pass
        with calling(url, topic) as client, notifying(url, topic) as notifier:
            for number in range(20):
                client.cast({}, "hear", value=number)
                notifier.info({}, "event", {"n": number})
        bus.kill9()
        bus.start()
        with serving(url, topic) as endpoint, listening(url, topic, "pool") as pool:
            assert sorted(endpoint.next() for _ in range(20)) == list(range(20))
            heard = [pool.next()[2]["n"] for _ in range(20)]
            assert sorted(heard) == list(range(20))
