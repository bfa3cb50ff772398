# SPDX-License-Identifier: Apache-2.0
"""TLS and logins, from the options and the transport URL to the wire.

TLS ends in a process between the driver and the bus (byte_server), which says what it
saw of the client.
"""

import json
import logging
import urllib.parse

import oslo_messaging
import pytest
from oslo_messaging import Target

import greenamqp
from tests.functional import buses, harness
from tests.functional.certificates import Authority

pytestmark = [pytest.mark.needs("amqp", "processes"), pytest.mark.any_bus]


class Endpoint:
    def echo(self, ctxt, value):
        return value


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """A CA that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


class Front:
    """TLS in front of the bus."""

    def __init__(self, bus, **tls):
        port = urllib.parse.urlsplit(bus.bus.url).port
        spec = {"tls": tls, "forward": port}
        self._program = bus.program("byte_server", json.dumps(spec))
        self.port = int(self._program.read())

    def report(self):
        self._program.say("report")
        return json.loads(self._program.read())


@pytest.fixture
def front(bus):
    return lambda **tls: Front(bus, **tls)


def options(**values):
    return {"oslo_messaging_amqp": values}


def roundtrip(bus, topic, url, opts=None, value="value"):
    """One call over transports with `url`: client and server each have one."""
    target = Target(topic=topic, server="server")
    bus.server(Endpoint(), target, bus.rpc_transport(url=url, options=opts))
    client = bus.client(target, bus.rpc_transport(url=url, options=opts))
    assert client.call({}, "echo", value=value) == value


def failure(bus, topic, url, opts=None):
    """What a cast that is not tried again says when there is no connection."""
    transport = bus.rpc_transport(url=url, options=opts)
    client = bus.client(Target(topic=topic), transport, retry=0)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        client.cast({}, "echo", value=1)
    return str(caught.value)


def test_call_over_tls(bus, topic, front, authority):
    tls = front(cert=authority.issue("127.0.0.1"))
    url = f"amqp://127.0.0.1:{tls.port}"
    roundtrip(bus, topic, url, options(ssl_ca_file=authority.ca))
    versions = {event[1] for events in tls.report() for event in events}
    assert versions == {"TLSv1.3"}


def test_a_scheme_that_asks_for_tls(bus, topic, front, authority):
    tls = front(cert=authority.issue("127.0.0.1"))
    url = f"amqps://127.0.0.1:{tls.port}"
    roundtrip(bus, topic, url, options(ssl_ca_file=authority.ca))
    reason = failure(bus, topic, url)
    assert "the peer's certificate does not verify" in reason


def test_large_messages_over_tls(bus, topic, front, authority):
    """Many records each way: more than buffers hold, so that writes have to wait."""
    tls = front(cert=authority.issue("127.0.0.1"))
    url = f"amqp://127.0.0.1:{tls.port}"
    value = "".join(chr(32 + i % 90) for i in range(3_000_000))
    roundtrip(bus, topic, url, options(ssl_ca_file=authority.ca), value)


def test_without_any_thread(bus, topic, front, authority):
    """Whoever sends does the work, the handshake included."""
    tls = front(cert=authority.issue("127.0.0.1"))
    listening = harness.InfoOnly()
    bus.listener(listening, [Target(topic=topic)])
    transport = bus.notification_transport(
        url=f"amqp://127.0.0.1:{tls.port}",
        options=options(ssl_ca_file=authority.ca, hub="blocking"),
    )
    notifier = bus.notifier([topic], transport=transport)
    for number in range(20):
        notifier.info({}, f"event-{number}", {"payload": "x" * 10_000 * number})
    assert set(listening.got.wait(20)) == {f"event-{n}" for n in range(20)}


def test_ssl_in_the_url_takes_the_system_bundle(
    bus, topic, front, authority, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", authority.ca)
    tls = front(cert=authority.issue("127.0.0.1"))
    roundtrip(bus, topic, f"amqp://127.0.0.1:{tls.port}?ssl=true")


def test_options_in_the_url(bus, topic, front, authority):
    tls = front(cert=authority.issue("127.0.0.1"))
    ca = urllib.parse.quote(authority.ca, safe="")
    roundtrip(bus, topic, f"amqp://127.0.0.1:{tls.port}/?ssl_ca_file={ca}")


def test_unknown_ca(bus, topic, front, authority, stranger):
    tls = front(cert=stranger.issue("127.0.0.1"))
    url = f"amqp://127.0.0.1:{tls.port}"
    text = failure(bus, topic, url, options(ssl_ca_file=authority.ca))
    assert "certificate does not verify" in text
    assert f"127.0.0.1:{tls.port}" in text
    # The server heard of it: nothing else was sent.
    while not any(tls.report()):
        pass  # it has accepted, and not yet read what became of it
    assert "unknown ca" in str(tls.report())


def test_system_bundle_does_not_trust_a_private_ca(bus, topic, front, authority):
    tls = front(cert=authority.issue("127.0.0.1"))
    text = failure(bus, topic, f"amqp://127.0.0.1:{tls.port}", options(ssl=True))
    assert "certificate does not verify" in text


def test_wrong_host_name(bus, topic, front, authority):
    tls = front(cert=authority.issue("elsewhere.example"))
    url = f"amqp://127.0.0.1:{tls.port}"
    text = failure(bus, topic, url, options(ssl_ca_file=authority.ca))
    assert "certificate does not verify" in text
    assert "127.0.0.1" in text and "mismatch" in text


def test_each_host_has_its_own_name(bus, topic, front, authority):
    """Two hosts: each is verified against the name that the URL calls it by."""
    by_name = front(cert=authority.issue("localhost"))
    by_address = front(cert=authority.issue("127.0.0.1"))
    opts = options(ssl_ca_file=authority.ca)
    # Whichever is tried first, neither may stand for the other.
    swapped = f"amqp://127.0.0.1:{by_name.port},localhost:{by_address.port}"
    text = failure(bus, topic, swapped, opts)
    assert "certificate does not verify" in text
    for one in (by_name, by_address):
        port = one.port
        host = "localhost" if one is by_name else "127.0.0.1"
        dead = f"{'127.0.0.1' if one is by_name else 'localhost'}:{port}"
        # One host name is wrong for this certificate, the other right: it gets there.
        roundtrip(bus, f"{topic}-{host}", f"amqp://{dead},{host}:{port}", opts)


def test_sni_is_the_host_name(bus, topic, front, authority):
    tls = front(cert=authority.issue("localhost"))
    url = f"amqp://localhost:{tls.port}"
    roundtrip(bus, topic, url, options(ssl_ca_file=authority.ca))
    assert {event[2] for events in tls.report() for event in events} == {"localhost"}


def test_verify_vhost(bus, topic, front, authority):
    tls = front(cert=authority.issue("cloud.example"))
    url = f"amqp://127.0.0.1:{tls.port}/cloud.example"
    opts = options(ssl_ca_file=authority.ca, ssl_verify_vhost=True)
    roundtrip(bus, topic, url, opts)
    names = {event[2] for events in tls.report() for event in events}
    assert names == {"cloud.example"}
    text = failure(bus, topic, url, options(ssl_ca_file=authority.ca))
    assert "mismatch" in text


def test_verify_vhost_without_a_vhost_verifies_the_host(bus, topic, front, authority):
    tls = front(cert=authority.issue("cloud.example"))
    opts = options(ssl_ca_file=authority.ca, ssl_verify_vhost=True)
    text = failure(bus, topic, f"amqp://127.0.0.1:{tls.port}", opts)
    assert "mismatch" in text


def test_client_certificate(bus, topic, front, authority):
    tls = front(cert=authority.issue("127.0.0.1"), ca=authority.ca)
    mine = authority.issue("alice.example", common_name="alice")
    url = f"amqp://127.0.0.1:{tls.port}"
    opts = options(ssl_ca_file=authority.ca, ssl_cert_file=mine)
    roundtrip(bus, topic, url, opts)
    assert {event[3] for events in tls.report() for event in events} == {"alice"}


def test_client_certificate_is_required(bus, topic, front, authority):
    tls = front(cert=authority.issue("127.0.0.1"), ca=authority.ca)
    url = f"amqp://127.0.0.1:{tls.port}"
    text = failure(bus, topic, url, options(ssl_ca_file=authority.ca))
    assert "requires a certificate" in text


def test_client_certificate_of_a_stranger(bus, topic, front, authority, stranger):
    tls = front(cert=authority.issue("127.0.0.1"), ca=authority.ca)
    url = f"amqp://127.0.0.1:{tls.port}"
    mine = stranger.issue("mallory.example")
    opts = options(ssl_ca_file=authority.ca, ssl_cert_file=mine)
    text = failure(bus, topic, url, opts)
    assert "does not trust the CA of our certificate" in text


def test_old_versions_are_refused(bus, topic, front, authority):
    tls = front(cert=authority.issue("127.0.0.1"), max="TLSv1_1")
    url = f"amqp://127.0.0.1:{tls.port}"
    text = failure(bus, topic, url, options(ssl_ca_file=authority.ca))
    assert "TLS" in text
    assert not any(event[0] == "tls" for events in tls.report() for event in events)


def test_tls_1_2(bus, topic, front, authority):
    tls = front(cert=authority.issue("127.0.0.1"), max="TLSv1_2")
    url = f"amqp://127.0.0.1:{tls.port}"
    roundtrip(bus, topic, url, options(ssl_ca_file=authority.ca))
    assert {event[1] for events in tls.report() for event in events} == {"TLSv1.2"}


def test_the_caller_hears_of_it_within_its_time_out(
    bus, topic, front, authority, stranger
):
    tls = front(cert=stranger.issue("127.0.0.1"))
    transport = bus.rpc_transport(
        url=f"amqp://127.0.0.1:{tls.port}", options=options(ssl_ca_file=authority.ca)
    )
    client = bus.client(Target(topic=topic), transport, timeout=2)
    with pytest.raises(oslo_messaging.MessagingTimeout) as caught:
        client.call({}, "echo", value=1)
    assert "certificate does not verify" in str(caught.value)


def cause(bus, topic, url, **opts):
    """What a caller is told who would wait for long, and would not for this."""
    transport = bus.rpc_transport(url=url, options=options(fail_fast=True, **opts))
    client = bus.client(Target(topic=topic), transport, timeout=600)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure) as caught:
        client.call({}, "echo", value=1)
    assert type(caught.value.__cause__) is greenamqp.CannotConnect
    assert str(caught.value.__cause__) in str(caught.value)
    return str(caught.value.__cause__)


def test_who_fails_fast_is_told_at_once(bus, topic, front, authority, stranger):
    tls = front(cert=stranger.issue("127.0.0.1"))
    url = f"amqps://127.0.0.1:{tls.port}"
    text = cause(bus, topic, url, ssl_ca_file=authority.ca)
    assert "certificate does not verify" in text
    other = authority.issue("elsewhere.example")
    url = f"amqps://127.0.0.1:{front(cert=other).port}"
    text = cause(bus, topic, url, ssl_ca_file=authority.ca)
    assert "mismatch" in text


def test_who_fails_fast_is_told_of_a_client_certificate(
    bus, topic, front, authority, stranger
):
    tls = front(cert=authority.issue("127.0.0.1"), ca=authority.ca)
    url = f"amqps://127.0.0.1:{tls.port}"
    text = cause(bus, topic, url, ssl_ca_file=authority.ca)
    assert "requires a certificate" in text
    mine = stranger.issue("mallory.example")
    text = cause(bus, topic, url, ssl_ca_file=authority.ca, ssl_cert_file=mine)
    assert "does not trust the CA of our certificate" in text


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("ssl_ca_file", "{folder}/missing.pem", "missing.pem"),
        ("ssl_ca_file", "{empty}", "holds no certificate"),
        ("ssl_cert_file", "{empty}", "no certificate with its private key"),
    ],
)
def test_bad_files_are_named(bus, tmp_path, option, value, named):
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    path = value.format(folder=tmp_path, empty=empty)
    with pytest.raises(ValueError, match=named) as caught:
        bus.rpc_transport(options=options(**{option: path}))
    assert path in str(caught.value)


def test_a_renewed_certificate_is_used_without_a_restart(
    bus, topic, front, authority, stranger, tmp_path, caplog
):
    """Files are read for each connection, not once for the process."""
    tls = front(cert=authority.issue("127.0.0.1"))
    trusted = tmp_path / "trusted.pem"
    with open(stranger.ca) as source:
        trusted.write_text(source.read())
    url = f"amqp://127.0.0.1:{tls.port}"
    opts = options(ssl_ca_file=str(trusted))
    transport = bus.rpc_transport(url=url, options=opts)
    client = bus.client(Target(topic=topic), transport, retry=0)
    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        client.cast({}, "echo", value=1)
    with open(authority.ca) as source:
        trusted.write_text(source.read())
    caplog.set_level(logging.INFO)
    target = Target(topic=topic, server="server")
    bus.server(Endpoint(), target, bus.rpc_transport())
    patient = bus.client(target, transport)
    assert patient.call({}, "echo", value="renewed") == "renewed"


class TestEmbeddedBroker:
    """TLS without anything in between, and a certificate for a login."""

    @pytest.fixture
    def broker(self, authority):
        certificate = authority.issue("127.0.0.1")
        broker = buses.EmbeddedBroker(
            "--tls-cert",
            certificate,
            "--tls-key",
            certificate,
            "--tls-ca",
            authority.ca,
            "--user",
            "nova:password",
        )
        yield broker
        broker.stop()

    def test_password(self, bus, topic, broker, authority):
        url = f"amqp://nova:password@127.0.0.1:{broker.port}"
        roundtrip(bus, topic, url, options(ssl_ca_file=authority.ca))

    def test_certificate(self, bus, topic, broker, authority, caplog):
        caplog.set_level(logging.INFO)
        mine = authority.issue("alice.example", common_name="alice")
        url = f"amqp://127.0.0.1:{broker.port}"
        opts = options(ssl_ca_file=authority.ca, ssl_cert_file=mine)
        roundtrip(bus, topic, url, opts)
        assert "TLS, login: EXTERNAL" in caplog.text

    def test_external_alone(self, bus, topic, broker, authority):
        mine = authority.issue("alice.example", common_name="alice")
        opts = options(
            ssl_ca_file=authority.ca, ssl_cert_file=mine, sasl_mechanisms="EXTERNAL"
        )
        roundtrip(bus, topic, f"amqp://127.0.0.1:{broker.port}", opts)

    def test_external_without_a_certificate(self, bus, topic, broker, authority):
        opts = options(ssl_ca_file=authority.ca, sasl_mechanisms="EXTERNAL")
        text = failure(bus, topic, f"amqp://127.0.0.1:{broker.port}", opts)
        assert "no common SASL mechanism: the peer offers PLAIN" in text

    def test_who_fails_fast(self, bus, topic, broker, authority):
        url = f"amqps://nova:wrong@127.0.0.1:{broker.port}"
        text = cause(bus, topic, url, ssl_ca_file=authority.ca)
        assert "wrong user name or password" in text
        url = f"amqps://127.0.0.1:{broker.port}"
        text = cause(bus, topic, url, ssl_ca_file=authority.ca)
        assert "no common SASL mechanism" in text

    def test_in_the_clear(self, bus, topic, broker):
        text = failure(bus, topic, f"amqp://127.0.0.1:{broker.port}")
        assert "wants TLS" in text or "port for TLS" in text

    def test_the_system_bundle_is_not_enough(self, bus, topic, broker):
        url = f"amqp://127.0.0.1:{broker.port}"
        text = failure(bus, topic, url, options(ssl=True))
        assert "certificate does not verify" in text
