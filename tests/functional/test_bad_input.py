# SPDX-License-Identifier: Apache-2.0
"""Bad input from the bus, and buses that are bad: an error, and life goes on.

Peers that put anything on the wire run as programs of their own (raw.py,
scripted.py). Addresses are spelt out here, in the legacy form, which the tests ask
for by option: they are part of the wire format.
"""

import json
import logging
import socket
import urllib.parse

import oslo_messaging
import pytest
from oslo_messaging import MessageDeliveryFailure, MessagingTimeout, Target

from tests.functional import buses
from tests.functional.harness import InfoBatches, InfoOnly, Recorder, in_thread
from tests.functional.scripted import DESCRIPTION

pytestmark = pytest.mark.needs("amqp")

EXCHANGE = "bad-input"
LEGACY = {"oslo_messaging_amqp": {"addressing_mode": "legacy"}}

#: A connection that cannot be made is given up after the least that can be set.
IMPATIENT = {"oslo_messaging_amqp": {"default_send_timeout": 5}}

DEEP = 200_000

#: Bodies that are no request and no notification.
BAD_BODIES = {
    "no JSON": "this is { not JSON",
    "cut off JSON": '{"request": {"method": "ech',
    "empty": "",
    "list": "[1, 2, 3]",
    "number": "42",
    "null": "null",
    "text": '"text"',
    "too deep": "[" * DEEP + "]" * DEEP,
    "deep in a dict": '{"request": ' + "[" * DEEP + "]" * DEEP + "}",
    "no request": "{}",
    "request is null": '{"request": null, "context": {}}',
    "request is a list": '{"request": [], "context": {}}',
    "context is a list": '{"request": {"method": "echo"}, "context": [1]}',
    "bad envelope": '{"request": {"oslo.version": "2.0", "oslo.message": "{"}, '
    '"context": {}}',
    "unknown envelope": '{"request": {"oslo.version": "9.9", "oslo.message": "{}"}, '
    '"context": {}}',
    "not UTF-8": {"data": "fffe00"},
    "bytes": {"data": "00" * 100},
    "AMQP map": {"value": {"request": {"method": "echo"}, "context": {}}},
    "AMQP list": {"value": [1, 2, 3]},
    "AMQP number": {"value": 1},
    "AMQP null": {"value": None},
}

#: Those that are no notification, though they may be a request.
BAD_NOTIFICATIONS = {
    **BAD_BODIES,
    "priority is null": '{"request": {"priority": null}, "context": {}}',
}


class Echo:
    def __init__(self):
        self.got = Recorder()

    def echo(self, ctxt, value):
        self.got.add(value)
        return value


@pytest.fixture
def target(topic):
    return Target(topic=topic, server="server")


class Sender:
    """A raw sender to the bus.

    ``of_bad`` is what it hears of a message that its receiver rejects: what the
    receiver says where the bus settles end to end, else what the bus says.
    """

    def __init__(self, bus):
        self.of_bad = "rejected" if bus.bus.why_not("store") else "accepted"
        self._program = bus.program("raw", "send", buses.raw_url(bus.bus.url))

    def send(self, address, body, **properties):
        """Send one message; returns what the bus said of it."""
        request = {"address": address, "body": body, **properties}
        self._program.say(json.dumps(request))
        return json.loads(self._program.read())["outcome"]


@pytest.fixture
def sender(bus):
    return Sender(bus)


def reports(caplog, *parts):
    """How many warnings or errors in the log have all ``parts`` in their text."""
    return sum(
        record.levelno >= logging.WARNING
        and all(part in record.getMessage() for part in parts)
        for record in caplog.records
    )


@pytest.mark.needs("raw_broker")
@pytest.mark.proves("bad input")
class TestMessages:
    def test_bad_requests_are_rejected(self, bus, target, sender, caplog):
        """Once and for all, with address and id in the log; the next one is served."""
        transport = bus.rpc_transport(EXCHANGE, options=LEGACY)
        echo = Echo()
        bus.server(echo, target, transport)
        any_server = bus.client(Target(topic=target.topic), transport)
        ways = {
            f"unicast.{EXCHANGE}.{target.topic}": any_server.call,
            f"exclusive.{EXCHANGE}.{target.topic}.server": any_server.prepare(
                server="server"
            ).call,
            f"broadcast.{EXCHANGE}.{target.topic}.all": any_server.prepare(
                fanout=True
            ).cast,
        }
        for which, body in BAD_BODIES.items():
            for address, good in ways.items():
                caplog.clear()
                ident = f"id-of-the-bad-one-{which}"
                said = sender.send(address, body, id=ident, reply_to="somewhere")
                assert said == sender.of_bad, which
                # What follows on the same address comes after the bad one.
                good({}, "echo", value=[which, address])
                echo.got.wait_for(
                    lambda got, wanted=[which, address]: wanted in got, which
                )
                assert reports(caplog, address, ident) == 1, which
        # They are gone: a server that starts anew does not meet them again.
        bus.stop_servers()
        caplog.clear()
        again = Echo()
        bus.server(again, target, transport)
        for good in ways.values():
            good({}, "echo", value="again")
        again.got.wait(3)
        bus.stop_servers()
        assert again.got.items == ["again"] * 3
        assert reports(caplog, "id-of-the-bad-one") == 0

    def test_bad_casts_are_dropped(self, bus, target, sender, caplog):
        """As any cast on a router they are accepted when they arrive."""
        transport = bus.rpc_transport(EXCHANGE, options=LEGACY)
        echo = Echo()
        bus.server(echo, target, transport)
        address = f"unicast.{EXCHANGE}.{target.topic}"
        for which, body in BAD_BODIES.items():
            assert sender.send(address, body, id=which) == "accepted", which
        bus.client(Target(topic=target.topic), transport).cast({}, "echo", value=1)
        assert echo.got.wait(1) == [1]
        assert reports(caplog, address) == len(BAD_BODIES)

    def test_bad_notifications_are_rejected(self, bus, topic, sender, caplog):
        transport = bus.notification_transport(EXCHANGE, options=LEGACY)
        endpoint = InfoOnly()
        bus.listener(endpoint, [Target(topic=topic)], transport)
        notifier = bus.notifier([topic], transport=transport)
        address = f"unicast.{EXCHANGE}.{topic}.info"
        for which, body in BAD_NOTIFICATIONS.items():
            ident = f"id-of-the-bad-one-{which}"
            assert sender.send(address, body, id=ident) == sender.of_bad, which
            notifier.info({}, which, {})
            endpoint.got.wait_for(lambda got, which=which: which in got, which)
            assert reports(caplog, address, ident) == 1, which
        bus.stop_servers()
        assert endpoint.got.items == list(BAD_NOTIFICATIONS)

    def test_bad_messages_do_not_use_up_the_credit(self, bus, topic, sender, caplog):
        """Many more than the window holds; each gives its credit back."""
        window = 5
        options = {"oslo_messaging_amqp": LEGACY["oslo_messaging_amqp"].copy()}
        options["oslo_messaging_amqp"]["notify_server_credit"] = window
        transport = bus.notification_transport(EXCHANGE, options=options)
        endpoint = InfoOnly()
        bus.listener(endpoint, [Target(topic=topic)], transport)
        for number in range(4 * window):
            sender.send(f"unicast.{EXCHANGE}.{topic}.info", "bad", id=str(number))
        bus.notifier([topic], transport=transport).info({}, "good", {})
        assert endpoint.got.wait(1) == ["good"]

    def test_bad_messages_in_a_batch(self, bus, topic, sender, caplog):
        """The rest of the batch is delivered."""
        transport = bus.notification_transport(EXCHANGE, options=LEGACY)
        endpoint = InfoBatches()
        bus.batch_listener(
            endpoint, [Target(topic=topic)], transport, batch_size=4, batch_timeout=1
        )
        notifier = bus.notifier([topic], transport=transport)
        for number in range(6):
            notifier.info({}, str(number), {})
            sender.send(f"unicast.{EXCHANGE}.{topic}.info", "bad", id=str(number))
        endpoint.got.wait_for(lambda got: sum(map(len, got)) == 6, "six messages")
        bus.stop_servers()
        assert sorted(endpoint.events()) == [str(n) for n in range(6)]

    def test_request_without_a_method(self, bus, target, sender):
        """Well formed, but nothing that a dispatcher can use."""
        transport = bus.rpc_transport(EXCHANGE, options=LEGACY)
        bus.server(Echo(), target, transport)
        address = f"unicast.{EXCHANGE}.{target.topic}"
        for request in ({}, {"method": None}, {"method": 1}, {"method": "echo"}):
            body = json.dumps({"request": request, "context": {}})
            assert sender.send(address, body) == "accepted"
        client = bus.client(target, transport)
        assert client.call({}, "echo", value="after") == "after"

    def test_request_that_wants_no_reply_or_an_impossible_one(
        self, bus, target, sender
    ):
        """An endpoint's result that can go nowhere harms nobody."""
        transport = bus.rpc_transport(EXCHANGE, options=LEGACY)
        echo = Echo()
        bus.server(echo, target, transport)
        address = f"unicast.{EXCHANGE}.{target.topic}"
        body = json.dumps(
            {"request": {"method": "echo", "args": {"value": 1}}, "context": {}}
        )
        assert sender.send(address, body) == "accepted"
        for reply_to in ("", "nobody/at-this-address", "/", "x" * 5000, "%00"):
            assert sender.send(address, body, id="i", reply_to=reply_to) == "accepted"
        echo.got.wait(6)
        client = bus.client(target, transport)
        for number in range(5):
            assert client.call({}, "echo", value=number) == number

    def test_unknown_keys_and_properties_pass(self, bus, target, sender):
        """A later version may say more than this one knows."""
        transport = bus.rpc_transport(EXCHANGE, options=LEGACY)
        echo = Echo()
        bus.server(echo, target, transport)
        body = json.dumps(
            {
                "request": {
                    "method": "echo",
                    "args": {"value": "known"},
                    "unknown": [1],
                },
                "context": {"what": {"is": "this"}},
                "unknown": {"a": "b"},
            }
        )
        address = f"unicast.{EXCHANGE}.{target.topic}"
        properties = {"x-unknown": "y", "another": 1}
        assert sender.send(address, body, properties=properties) == "accepted"
        assert echo.got.wait(1) == ["known"]


@pytest.mark.needs("raw_broker")
@pytest.mark.proves("bad input")
class TestReplies:
    """A server that is no good: the client must not be led astray by it."""

    @pytest.fixture
    def server(self, bus, topic):
        program = bus.program(
            "raw",
            "serve",
            buses.raw_url(bus.bus.url),
            f"unicast.{EXCHANGE}.{topic}",
        )
        assert program.read() == "ready"
        return program

    @pytest.fixture
    def client(self, bus, topic):
        transport = bus.rpc_transport(EXCHANGE, options=LEGACY)
        return bus.client(Target(topic=topic), transport)

    @staticmethod
    def right(request, value="right", **more):
        return {
            "address": request["reply_to"],
            "correlation_id": request["id"],
            "body": json.dumps({"response": value}),
            **more,
        }

    def call(self, client, server, *replies_of):
        """Make a call that the server answers with ``replies_of(request)`` each."""
        calling = in_thread(client.call, {"c": 1}, "method", argument=1)
        request = json.loads(server.read())
        server.say(json.dumps([reply(request) for reply in replies_of]))
        return request, calling

    def test_wire_format_of_a_request(self, client, server):
        request, calling = self.call(client, server, self.right)
        assert calling.result() == "right"
        body = json.loads(request["body"])
        assert body["request"] == {"method": "method", "args": {"argument": 1}}
        assert body["context"]["c"] == 1
        assert request["reply_to"]
        assert request["ttl"] > 0

    def test_reply_for_nobody(self, client, server):
        def for_nobody(request):
            return self.right(request, "wrong") | {"correlation_id": "no such call"}

        def without_id(request):
            reply = self.right(request, "wrong")
            del reply["correlation_id"]
            return reply

        def garbage(request):
            return self.right(request) | {"correlation_id": "x", "body": "{{{"}

        for _ in range(3):
            _, calling = self.call(
                client, server, for_nobody, without_id, garbage, self.right
            )
            assert calling.result() == "right"

    def test_second_reply_to_the_same_call(self, client, server):
        _, first = self.call(
            client, server, self.right, lambda r: self.right(r, "second")
        )
        assert first.result() == "right"
        _, next_call = self.call(client, server, lambda r: self.right(r, "next"))
        assert next_call.result() == "next"

    @pytest.mark.parametrize(
        "body",
        [
            "no JSON",
            "[]",
            "[" * DEEP,
            {"data": "fffe"},
            {"value": {"response": 1}},
            json.dumps({"failure": "no JSON"}),
            json.dumps({"failure": 17}),
            json.dumps({"failure": json.dumps([1])}),
            json.dumps({"failure": "[" * DEEP}),
        ],
        ids=lambda body: str(body)[:20],
    )
    def test_reply_that_cannot_be_read(self, client, server, body):
        """An error that says so, not a time-out, and the next call is fine."""
        _, calling = self.call(client, server, lambda r: self.right(r, body=body))
        with pytest.raises(oslo_messaging.MessagingException) as caught:
            calling.result()
        assert not isinstance(caught.value, MessagingTimeout)
        assert str(caught.value)
        _, calling = self.call(client, server, self.right)
        assert calling.result() == "right"

    def test_failure_that_names_a_module_imports_nothing(self, client, server):
        import sys

        module = "this"  # prints a poem when it is imported
        assert module not in sys.modules
        failure = json.dumps(
            {
                "class": "Evil",
                "module": module,
                "message": "text",
                "tb": [],
                "args": [],
                "kwargs": {},
            }
        )
        body = json.dumps({"failure": failure})
        _, calling = self.call(client, server, lambda r: self.right(r, body=body))
        with pytest.raises(oslo_messaging.RemoteError, match="text"):
            calling.result()
        assert module not in sys.modules


# -- values that cannot be sent -------------------------------------------------


@pytest.mark.proves("bad input")
def test_value_that_cannot_be_serialised(bus, target):
    """The caller is told; nothing is sent, and the transport goes on."""
    echo = Echo()
    bus.server(echo, target)
    client = bus.client(target)
    circular = []
    circular.append(circular)
    with pytest.raises(Exception, match=r"(?i)circular|recursion|serial|depth"):
        client.call({}, "echo", value=circular)
    assert client.call({}, "echo", value=1) == 1
    assert echo.got.items == [1]


@pytest.mark.proves("bad input")
def test_result_that_cannot_be_serialised(bus, target):
    """The caller hears of it at once rather than by its time-out."""

    class Endpoint(Echo):
        def circular(self, ctxt):
            value = []
            value.append(value)
            return value

        def broken(self, ctxt):
            class Broken:
                def __iter__(self):
                    raise ArithmeticError("nothing to see here")

            return Broken()

        def undecodable(self, ctxt):
            return b"\xff"

        def undecoded(self, ctxt):
            return b"\xff".decode()

    bus.server(Endpoint(), target)
    client = bus.client(target)
    with pytest.raises(ValueError, match=r"(?i)circular"):
        client.call({}, "circular")
    with pytest.raises(ArithmeticError, match="nothing to see"):
        client.call({}, "broken")
    for method in ("undecodable", "undecoded"):
        with pytest.raises(oslo_messaging.RemoteError, match="UnicodeDecodeError.*xff"):
            client.call({}, method)
    assert client.call({}, "echo", value=1) == 1


# -- bad buses ---------------------------------------------------------------------


def url_of(port, user=""):
    return f"amqp://{user}127.0.0.1:{port}"


@pytest.fixture
def dead_port():
    """A port of this host where nobody listens, and nobody will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.any_bus
class TestBuses:
    def test_unreachable_host(self, bus, topic, dead_port):
        """Call and cast fail in time, and say where they wanted to go and why not."""
        transport = bus.rpc_transport(url=url_of(dead_port), options=IMPATIENT)
        client = bus.client(Target(topic=topic), transport, timeout=2)
        with pytest.raises(MessagingTimeout) as caught:
            client.call({}, "echo", value=1)
        assert f"127.0.0.1:{dead_port}" in str(caught.value)
        assert "refused" in str(caught.value).lower()
        with pytest.raises(MessageDeliveryFailure) as caught:
            client.cast({}, "echo", value=1)
        assert f"127.0.0.1:{dead_port}" in str(caught.value)
        assert "refused" in str(caught.value).lower()

    def test_unknown_host(self, bus, topic):
        transport = bus.rpc_transport(
            url="amqp://no-such-host.invalid:5672", options=IMPATIENT
        )
        client = bus.client(Target(topic=topic), transport, timeout=2)
        with pytest.raises(MessagingTimeout, match=r"no-such-host\.invalid"):
            client.call({}, "echo", value=1)

    def test_notification_to_an_unreachable_host(self, bus, topic, dead_port, caplog):
        """The notifier never raises: it logs, and the service goes on."""
        transport = bus.notification_transport(
            url=url_of(dead_port),
            options={"oslo_messaging_amqp": {"default_notify_timeout": 5}},
        )
        bus.notifier([topic], transport=transport).info({}, "event", {})
        text = caplog.text
        assert "Could not send notification" in text
        assert f"127.0.0.1:{dead_port}" in text

    def test_unreachable_host_first_in_the_url(self, bus, topic, dead_port):
        """The next host of the URL is taken."""
        bus.server(Echo(), Target(topic=topic, server="s"))
        netloc = urllib.parse.urlsplit(bus.bus.url).netloc
        transport = bus.rpc_transport(
            url=bus.bus.url_with(f"127.0.0.1:{dead_port},{netloc}")
        )
        client = bus.client(Target(topic=topic), transport)
        assert client.call({}, "echo", value=1) == 1

    @pytest.mark.parametrize("what", ["silent", "garbage", "close", "refuse"])
    def test_host_that_is_no_use(self, bus, topic, what):
        port = int(bus.program("scripted", what).read())
        transport = bus.rpc_transport(url=url_of(port), options=IMPATIENT)
        client = bus.client(Target(topic=topic), transport, timeout=3)
        with pytest.raises(MessagingTimeout) as caught:
            client.call({}, "echo", value=1)
        assert f"127.0.0.1:{port}" in str(caught.value)
        if what == "refuse":
            assert DESCRIPTION in str(caught.value)
        # ... and another transport is none the worse for it.
        bus.server(Echo(), Target(topic=topic, server="s"))
        assert bus.client(Target(topic=topic)).call({}, "echo", value=1) == 1

    def test_links_are_refused(self, bus, topic):
        port = int(bus.program("scripted", "refuse-links").read())
        transport = bus.rpc_transport(url=url_of(port), options=IMPATIENT)
        client = bus.client(Target(topic=topic), transport, timeout=5)
        for attempt in (client.call, client.cast):
            with pytest.raises((MessagingTimeout, MessageDeliveryFailure)) as caught:
                attempt({}, "echo", value=1)
            assert DESCRIPTION in str(caught.value)

    def test_message_larger_than_the_link_allows(self, bus, topic):
        peer = bus.program("scripted", "small", "10000")
        port = int(peer.read())
        transport = bus.rpc_transport(url=url_of(port), options=IMPATIENT)
        client = bus.client(Target(topic=topic), transport)
        client.cast({}, "echo", value="small")
        assert peer.read().startswith("took ")
        with pytest.raises(MessageDeliveryFailure, match="10000"):
            client.cast({}, "echo", value="x" * 20000)
        client.cast({}, "echo", value="small again")
        assert peer.read().startswith("took ")

    @pytest.fixture
    def guarded(self):
        """A broker that wants to know who is there."""
        broker = buses.EmbeddedBroker("--user", "alice:se/cr@et")
        yield broker.port
        broker.stop()

    def test_right_password(self, bus, topic, guarded):
        url = url_of(guarded, "alice:se%2Fcr%40et@")
        bus.server(Echo(), Target(topic=topic, server="s"), bus.rpc_transport(url=url))
        client = bus.client(Target(topic=topic), bus.rpc_transport(url=url))
        assert client.call({}, "echo", value=1) == 1

    @pytest.mark.parametrize("user", ["alice:other-password@", "bob:se%2Fcr%40et@", ""])
    def test_wrong_password(self, bus, topic, guarded, user):
        transport = bus.rpc_transport(url=url_of(guarded, user), options=IMPATIENT)
        client = bus.client(Target(topic=topic), transport, timeout=3)
        with pytest.raises((MessagingTimeout, MessageDeliveryFailure)) as caught:
            client.call({}, "echo", value=1)
        text = str(caught.value).lower()
        assert "auth" in text or "sasl" in text or "login" in text
        assert "se/cr@et" not in str(caught.value)
        assert "other-password" not in str(caught.value)

    def test_wrong_password_is_not_logged(self, bus, topic, guarded, caplog):
        caplog.set_level(logging.DEBUG)
        secret = "pa55-that-nobody-may-see"
        transport = bus.rpc_transport(
            url=url_of(guarded, f"alice:{secret}@"), options=IMPATIENT
        )
        client = bus.client(Target(topic=topic), transport, timeout=2)
        with pytest.raises((MessagingTimeout, MessageDeliveryFailure)):
            client.call({}, "echo", value=1)
        greenamqp = [r for r in caplog.records if r.name.startswith("greenamqp")]
        assert greenamqp
        assert not [r for r in greenamqp if secret in r.getMessage()]

    def test_option_that_does_not_exist(self, bus):
        with pytest.raises(Exception, match="no_such_option"):
            bus.rpc_transport(url=bus.bus.url_with(no_such_option=1))
