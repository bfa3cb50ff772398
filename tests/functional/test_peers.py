# SPDX-License-Identifier: Apache-2.0
"""Peers that are not what they should be: the error says what they are instead.

Each is a script of bytes (byte_server).  A cast that is not tried again fails at once,
with the reason; nothing here waits for a time-out but where that is what is tested.
"""

import json
import logging
import re
import struct

import oslo_messaging
import pytest
from oslo_messaging import Target

from greenamqp.engine import has_cyrus_sasl
from tests.functional import buses
from tests.functional.certificates import Authority

pytestmark = [pytest.mark.needs("amqp", "processes"), pytest.mark.any_bus]

SASL = b"AMQP\x03\x01\x00\x00"
AMQP = b"AMQP\x00\x01\x00\x00"
PASSWORD = "hOrSe-bAtTeRy-9"

# By what a user with a password may log in, the best first.
USABLE = "PLAIN"
if has_cyrus_sasl():
    USABLE = "SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 DIGEST-MD5 CRAM-MD5 PLAIN"


def frame(kind: int, body: bytes) -> bytes:
    return struct.pack(">IBBH", 8 + len(body), 2, kind, 0) + body


def mechanisms(*names: str) -> bytes:
    symbols = b"".join(bytes((len(name),)) + name.encode() for name in names)
    array = b"\xe0" + bytes((len(symbols) + 2, len(names))) + b"\xa3" + symbols
    return frame(1, b"\x00\x53\x40\xc0" + bytes((len(array) + 1, 1)) + array)


def outcome(code: int) -> bytes:
    return frame(1, b"\x00\x53\x44\xc0\x03\x01\x50" + bytes((code,)))


def read(count: int) -> dict:
    return {"read": count}


def write(data: bytes) -> dict:
    return {"write": data.hex()}


@pytest.fixture
def scripted(bus):
    """Start a scripted server; returns (its program, its port)."""

    def start(*steps, **spec):
        program = bus.program("byte_server", json.dumps({"steps": steps, **spec}))
        return program, int(program.read())

    return start


def options(**values):
    return {"oslo_messaging_amqp": values}


def failure(bus, url, opts=None, topic="topic"):
    transport = bus.rpc_transport(url=url, options=opts)
    client = bus.client(Target(topic=topic), transport, retry=0)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        client.cast({}, "echo", value=1)
    return str(caught.value)


HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"

IN_THE_CLEAR = {
    "http": ([read(8), write(HTTP)], "no AMQP 1.0 server.*HTTP"),
    "amqp 0-9-1": ([read(8), write(b"AMQP\x00\x00\x09\x01")], "AMQP 0-9-1"),
    "amqp 0-10": ([read(8), write(b"AMQP\x01\x01\x00\x0a")], "AMQP 0-10"),
    "ssh": ([write(b"SSH-2.0-OpenSSH_9.2\r\n")], "SSH"),
    "tls alert": ([read(8), write(b"\x15\x03\x01\x00\x02\x02\x46")], "wants TLS"),
    "closed at once": ([], "closed the connection without a word.*port for TLS"),
    "closed after the header": ([read(8)], "closed the connection without a word"),
    "noise": ([read(8), write(bytes(range(128, 256)))], r"no AMQP 1\.0 server"),
    "half a header": ([read(8), write(SASL[:5])], "closed the connection"),
    "bad credentials": (
        [read(8), write(SASL + mechanisms("PLAIN")), read(40), write(outcome(1))],
        "refused the login of user 'nova' by SASL PLAIN: wrong user name or password",
    ),
    "server's fault": (
        [read(8), write(SASL + mechanisms("PLAIN")), read(40), write(outcome(4))],
        "could not check the login of user 'nova'",
    ),
    "no common mechanism": (
        [read(8), write(SASL + mechanisms("EXTERNAL", "X-OTHER"))],
        "no common SASL mechanism: the peer offers EXTERNAL X-OTHER, and user 'nova' "
        f"may use {USABLE}",
    ),
    "anonymous alone": (
        [read(8), write(SASL + mechanisms("ANONYMOUS"))],
        "no common SASL mechanism: the peer offers ANONYMOUS",
    ),
    "no mechanism": (
        [read(8), write(SASL + mechanisms())],
        "no common SASL mechanism: the peer offers none",
    ),
    "no sasl": ([read(8), write(AMQP)], "takes no login"),
    "closed after login": (
        [read(8), write(SASL + mechanisms("PLAIN")), read(40), write(outcome(0))],
        r"after the login of user 'nova'",
    ),
}


@pytest.mark.parametrize("peer", IN_THE_CLEAR)
def test_spoken_to_in_the_clear(bus, scripted, peer):
    steps, pattern = IN_THE_CLEAR[peer]
    _program, port = scripted(*steps)
    text = failure(bus, f"amqp://nova:{PASSWORD}@127.0.0.1:{port}")
    assert re.search(pattern, text), text
    assert f"127.0.0.1:{port}" in text
    assert PASSWORD not in text


WITH_TLS = {
    "amqp in the clear": ([read(5), write(AMQP)], "speaks no TLS.*AMQP 1.0"),
    "amqp with sasl": ([read(5), write(SASL)], "speaks no TLS.*AMQP 1.0"),
    "http": ([read(5), write(HTTP)], "speaks no TLS.*HTTP"),
    "amqp 0-9-1": ([read(5), write(b"AMQP\x00\x00\x09\x01")], "no TLS.*AMQP 0-9-1"),
    "closed at once": ([], "closed the connection in the TLS handshake"),
    "closed after hello": ([read(5)], "closed the connection in the TLS handshake"),
    "alert": (
        [read(5), write(b"\x15\x03\x03\x00\x02\x02\x28")],
        "found no common cipher",
    ),
}


@pytest.mark.parametrize("peer", WITH_TLS)
def test_spoken_to_with_tls(bus, scripted, peer):
    steps, pattern = WITH_TLS[peer]
    _program, port = scripted(*steps)
    text = failure(bus, f"amqp://127.0.0.1:{port}", options(ssl=True))
    assert re.search(pattern, text), text
    assert f"127.0.0.1:{port}" in text


@pytest.mark.parametrize("peer", ["http", "amqp 0-9-1", "closed after the header"])
def test_another_protocol_within_tls(bus, scripted, peer, tmp_path):
    authority = Authority(tmp_path)
    steps, pattern = IN_THE_CLEAR[peer]
    _program, port = scripted(*steps, tls={"cert": authority.issue("127.0.0.1")})
    opts = options(ssl_ca_file=authority.ca)
    text = failure(bus, f"amqp://127.0.0.1:{port}", opts)
    assert re.search(pattern, text), text


@pytest.mark.parametrize("tls", [False, True])
def test_a_peer_that_says_nothing(bus, scripted, tls):
    """The caller's own time-out comes first, and the error says what there is."""
    _program, port = scripted({"hold": True})
    transport = bus.rpc_transport(
        url=f"amqp://127.0.0.1:{port}", options=options(ssl=tls)
    )
    client = bus.client(Target(topic="topic"), transport, timeout=2)
    with pytest.raises(oslo_messaging.MessagingTimeout) as caught:
        client.call({}, "echo", value=1)
    text = str(caught.value)
    assert f"127.0.0.1:{port}" in text
    assert ("shaking hands for TLS" if tls else "no answer to the Open frame") in text


def test_a_refused_connection(bus, scripted):
    program, port = scripted()
    program.kill()
    text = failure(bus, f"amqp://127.0.0.1:{port}")
    assert "refused" in text and f"127.0.0.1:{port}" in text


def test_a_name_that_nobody_has(bus):
    text = failure(bus, "amqp://no-such-host.invalid:5672")
    assert "cannot look the name up" in text and "no-such-host.invalid" in text


def test_a_user_name_is_never_dropped(bus, scripted):
    """A server that offers ANONYMOUS alone does not get the user in as nobody."""
    program, port = scripted(
        read(8), write(SASL + mechanisms("ANONYMOUS")), {"read": 64}
    )
    failure(bus, f"amqp://nova:{PASSWORD}@127.0.0.1:{port}")
    program.say("report")
    said = bytes.fromhex("".join(event[1] for event in json.loads(program.read())[0]))
    assert said == SASL


def test_the_realm_is_added(bus, scripted):
    program, port = scripted(read(8), write(SASL + mechanisms("PLAIN")), {"read": 99})
    failure_ = bus.rpc_transport(
        url=f"amqp://nova:{PASSWORD}@127.0.0.1:{port}",
        options=options(sasl_default_realm="CLOUD"),
    )
    client = bus.client(Target(topic="topic"), failure_, timeout=2)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "echo", value=1)
    bus.cleanup(failure_)
    said = b""
    while b"nova@CLOUD" not in said:
        program.say("report")
        events = json.loads(program.read())[0]
        said = b"".join(bytes.fromhex(e[1]) for e in events if e[0] == "read")


@pytest.mark.parametrize("trace", [False, True])
def test_no_password_anywhere(bus, scripted, caplog, capfd, trace):
    """Not in a log of any level, an error, a repr, nor proton's trace."""
    caplog.set_level(logging.DEBUG)
    _program, port = scripted(*IN_THE_CLEAR["bad credentials"][0])
    url = f"amqp://nova:{PASSWORD}@127.0.0.1:{port}"
    opts = options(trace=trace, ssl_key_password=PASSWORD)
    transport = bus.rpc_transport(url=url, options=opts)
    client = bus.client(Target(topic="topic"), transport, retry=0)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        client.cast({}, "echo", value=1)
    chain, error = [], caught.value
    while error is not None:
        chain += [str(error), repr(error), repr(error.args)]
        error = error.__cause__ or error.__context__
    driver = transport._driver
    client = driver._client
    shown = [repr(thing) for thing in (driver, client, *vars(client).values())]
    written = "".join(capfd.readouterr())
    logged = [record.getMessage() for record in caplog.records]
    assert any("wrong user name or password" in text for text in logged)
    for text in (*chain, *shown, *logged, written):
        assert PASSWORD not in text


def test_trace_of_a_login_goes_on_after_it(bus, capfd):
    """What is left out of the trace is the login alone."""
    broker = buses.EmbeddedBroker("--user", f"nova:{PASSWORD}")
    try:
        transport = bus.rpc_transport(
            url=f"amqp://nova:{PASSWORD}@127.0.0.1:{broker.port}",
            options=options(trace=True),
        )
        bus.client(Target(topic="topic"), transport).cast({}, "echo", value=1)
        bus.cleanup(transport)
    finally:
        broker.stop()
    written = "".join(capfd.readouterr())
    assert "@open" in written and "@transfer" in written
    assert PASSWORD not in written and "sasl-init" not in written


class TestLogin:
    """Against a broker that knows its users."""

    @pytest.fixture
    def broker(self):
        broker = buses.EmbeddedBroker("--user", f"nova:{PASSWORD}")
        yield broker
        broker.stop()

    class Endpoint:
        def echo(self, ctxt, value):
            return value

    def roundtrip(self, bus, topic, url, opts=None):
        target = Target(topic=topic, server="server")
        bus.server(self.Endpoint(), target, bus.rpc_transport(url=url, options=opts))
        client = bus.client(target, bus.rpc_transport(url=url, options=opts))
        assert client.call({}, "echo", value=1) == 1

    def test_right_password(self, bus, topic, broker):
        self.roundtrip(bus, topic, f"amqp://nova:{PASSWORD}@127.0.0.1:{broker.port}")

    def test_wrong_password(self, bus, broker):
        text = failure(bus, f"amqp://nova:wrong@127.0.0.1:{broker.port}")
        assert "wrong user name or password" in text

    def test_no_user(self, bus, broker):
        text = failure(bus, f"amqp://127.0.0.1:{broker.port}")
        assert "no common SASL mechanism: the peer offers PLAIN" in text

    def test_a_mechanism_that_is_not_there(self, bus, broker):
        url = f"amqp://nova:{PASSWORD}@127.0.0.1:{broker.port}"
        text = failure(bus, url, options(sasl_mechanisms="EXTERNAL"))
        assert "no common SASL mechanism: the peer offers PLAIN" in text
        assert "may use EXTERNAL" in text

    def test_plain_needs_a_user(self, bus, broker):
        url = f"amqp://127.0.0.1:{broker.port}"
        text = failure(bus, url, options(sasl_mechanisms="PLAIN"))
        assert "PLAIN needs a user name" in text

    def test_each_host_has_its_own_credentials(self, bus, topic, broker):
        other = buses.EmbeddedBroker("--user", "glance:other-pass")
        try:
            nova = f"nova:{PASSWORD}@127.0.0.1:{broker.port}"
            glance = f"glance:other-pass@127.0.0.1:{other.port}"
            # One of each pair is no match: with the other's credentials it would be.
            for good, bad in (
                (nova, f"nova:{PASSWORD}@127.0.0.1:{other.port}"),
                (glance, f"glance:other-pass@127.0.0.1:{broker.port}"),
            ):
                self.roundtrip(bus, f"{topic}-{good[:4]}", f"amqp://{good},{bad}")
        finally:
            other.stop()

    def test_ipv6(self, bus, topic, scripted, broker):
        program, port = scripted(forward=broker.port)
        self.roundtrip(bus, topic, f"amqp://nova:{PASSWORD}@[::1]:{port}")
        text = failure(bus, f"amqp://nova:wrong@[::1]:{port}")
        assert f"[::1]:{port}" in text

    def test_pseudo_virtual_hosts_are_apart(self, bus, topic, broker):
        """Over one broker without virtual hosts: addresses keep them apart."""
        where = f"amqp://nova:{PASSWORD}@127.0.0.1:{broker.port}"
        target = Target(topic=topic, server="server")
        for name in ("red", "blue"):

            class Named:
                def __init__(self, name):
                    self._name = name

                def who(self, ctxt):
                    return self._name

            bus.server(Named(name), target, bus.rpc_transport(url=f"{where}/{name}"))
        for name in ("red", "blue"):
            client = bus.client(target, bus.rpc_transport(url=f"{where}/{name}"))
            assert {client.call({}, "who") for _ in range(4)} == {name}
