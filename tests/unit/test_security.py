# SPDX-License-Identifier: Apache-2.0
"""What options and URL say about TLS and logins, and what the client makes of it."""

import base64
import hashlib
import hmac
import logging
import shlex
import sys

import pytest

from greenamqp import options as driver_options
from greenamqp.connection import security, tls
from greenamqp.connection.failover import Host
from greenamqp.connection.security import Security, is_loopback
from greenamqp.connection.state import State
from greenamqp.engine.connection import has_cyrus_sasl
from greenamqp.engine.sasl import CHALLENGE, SaslServer, SaslState, sasl_frame
from tests.unit import fakes

PASSWORD = "hOrSe-bAtTeRy-9"
NOVA = Host("bus.example", 5672, "nova", PASSWORD)
NOBODY = Host("bus.example", 5672)


@pytest.fixture(params=[False, True], ids=["proton alone", "cyrus"])
def cyrus(request, monkeypatch):
    monkeypatch.setattr(security, "has_cyrus_sasl", lambda: request.param)
    return request.param


@pytest.fixture(autouse=True)
def never_warned(monkeypatch):
    monkeypatch.setattr(security, "_warned", set())


def made(**options) -> Security:
    return Security(fakes.options(**options))


# -- TLS


@pytest.mark.parametrize(
    ("options", "tls"),
    [
        ({}, False),
        ({"ssl": True}, True),
        ({"ssl_ca_file": "ca"}, True),
        ({"ssl_cert_file": "cert"}, True),
        ({"ssl_key_file": "key"}, False),
        ({"ssl_verify_vhost": True}, False),
    ],
)
def test_what_switches_tls_on(options, tls):
    assert made(**options).tls is tls


@pytest.mark.parametrize(
    ("verify_vhost", "vhost", "name"),
    [
        (False, None, "bus.example"),
        (False, "cloud.example", "bus.example"),
        (True, "cloud.example", "cloud.example"),
        (True, None, "bus.example"),
        (True, "", "bus.example"),
    ],
)
def test_server_name(verify_vhost, vhost, name):
    assert made(ssl_verify_vhost=verify_vhost).server_name(NOVA, vhost) == name


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("bus.example.", "bus.example"),
        ("2001:db8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_what_certificates_do_not_have_is_no_part_of_the_name(hostname, name):
    assert made().server_name(Host(hostname, 5671), None) == name
    # OpenSSL takes it for what it is.
    tls.client_stream(None, tls.client_context(), name)


def test_a_key_without_a_certificate_is_told_of(caplog):
    made(ssl_key_file="key").check()
    assert "ssl_key_file is not used" in caplog.text


def test_each_attempt_is_told_of_its_host():
    hosts = [Host("one", 1, "u1", "p1"), Host("two", 2, "u2", "p2")]
    with fakes.setting(hosts, ssl=True, network={}) as s:
        s.network.default = "no network today"
        s.notify(timeout=5)
        s.world.advance(6)
        assert {
            (attempt[1], secured["server_name"])
            for attempt, secured in zip(
                s.network.attempts, s.network.secured, strict=True
            )
        } == {("one", "one"), ("two", "two")}
        assert all(secured["context"] for secured in s.network.secured)


def test_without_tls_an_attempt_is_told_nothing():
    with fakes.setting() as s:
        s.up()
        assert s.network.secured == [{"avoid": {"the only one"}}]


# -- passwords that change


WITHOUT = Host("bus.example", 5672, "nova")


def command(code):
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


@pytest.mark.parametrize("option", ["password_file", "password_command"])
def test_a_password_is_got_anew_each_time(option, tmp_path):
    path = tmp_path / "password"
    path.write_text(f"  {PASSWORD}\n")
    value = str(path)
    if option == "password_command":
        value = command(f"print(open({value!r}).read())")
    one = made(**{option: value})
    one.check()
    assert one.gets_password(WITHOUT)
    assert one.password(WITHOUT) == PASSWORD
    path.write_text("another")
    assert one.password(WITHOUT) == "another"
    assert one.login(WITHOUT, "another").password == "another"


def test_the_password_of_the_url_comes_first():
    assert not made(password_file="/nosuch").gets_password(NOVA)
    assert not made().gets_password(WITHOUT)
    assert made().login(WITHOUT).password == ""


@pytest.mark.parametrize(
    ("written", "why"),
    [
        (None, "No such file or directory"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"\xff", "no UTF-8"),
        (b"x" * 70_000, "are no password"),
    ],
)
def test_a_file_that_has_no_password(written, why, tmp_path):
    path = tmp_path / "password"
    if written is not None:
        path.write_bytes(written)
    with pytest.raises(ValueError, match=f"password_file: .*{path}.*{why}"):
        made(password_file=str(path)).check()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("/nosuch/program", "'/nosuch/program': No such file or directory"),
        (command("print('s3cret'); raise SystemExit(3)"), "exit status 3"),
        (command("pass"), "it is empty"),
        ("'", "No closing quotation"),
        (command("import time; time.sleep(100)"), "not done after 0.1 s"),
    ],
)
def test_a_command_that_gives_no_password(given, why, monkeypatch):
    monkeypatch.setattr(security, "COMMAND_TIMEOUT", 0.1 if "100" in given else 60)
    one = made(password_command=given)
    one.check()
    with pytest.raises(ValueError, match="^password_command: ") as caught:
        one.password(WITHOUT)
    assert why in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="only one of them"):
        made(password_file="a", password_command="b").check()
    with pytest.raises(ValueError, match="gives no user name for this host"):
        made(password_file="a").password(NOBODY)


# -- which mechanisms


def mechanisms(host, **options):
    return made(**options).login(host).mechanisms.split()


def test_a_user_is_never_anonymous(cyrus):
    chosen = mechanisms(NOVA)
    assert chosen[-1] == "PLAIN"
    assert "ANONYMOUS" not in chosen
    assert ("SCRAM-SHA-256" in chosen) is cyrus


def test_without_a_user(cyrus):
    # Cyrus would choose GSSAPI where the bus has it, whether there is a ticket or not.
    assert mechanisms(NOBODY) == ["ANONYMOUS"]


def test_a_client_certificate_may_do(cyrus):
    assert mechanisms(NOVA, ssl_cert_file="cert")[0] == "EXTERNAL"
    chosen = mechanisms(NOBODY, ssl_cert_file="cert")
    # Not "whatever Cyrus knows", which may be anything.
    assert chosen == ["EXTERNAL", "ANONYMOUS"]


@pytest.mark.parametrize("host", [NOVA, NOBODY])
def test_the_option_decides_alone(cyrus, host):
    asked = "external  Plain"
    assert mechanisms(host, sasl_mechanisms=asked) == ["EXTERNAL", "PLAIN"]


def test_user_realm_and_password():
    login = made(sasl_default_realm="CLOUD").login(NOVA)
    assert (login.username, login.password) == ("nova@CLOUD", PASSWORD)
    there = Host("h", 1, "nova@other", "p")
    assert made(sasl_default_realm="CLOUD").login(there).username == "nova@other"
    # A user without a password has an empty one; nobody has none.
    assert made().login(Host("h", 1, "nova")).password == ""
    assert made().login(NOBODY).password is None


def test_config_of_cyrus():
    login = made(sasl_config_dir="/etc/sasl2", sasl_config_name="nova").login(NOVA)
    assert (login.config_dir, login.config_name) == ("/etc/sasl2", "nova")


def test_mechanisms_that_cannot_be(cyrus, caplog):
    asked = made(sasl_mechanisms="GSSAPI SCRAM-SHA-256")
    if cyrus:
        asked.check()
    else:
        with pytest.raises(ValueError, match="GSSAPI SCRAM-SHA-256") as caught:
            asked.check()
        assert "PLAIN" in str(caught.value)
    assert not caplog.records


def test_some_mechanisms_cannot_be(cyrus, caplog):
    made(sasl_mechanisms="GSSAPI PLAIN").check()
    assert ("GSSAPI cannot be used" in caplog.text) is not cyrus


def test_no_repr_shows_a_password():
    asked = made(ssl_key_password=PASSWORD)
    values = driver_options.read(fakes.options(ssl_key_password=PASSWORD))
    assert values.ssl_key_password == PASSWORD
    for thing in (asked.login(NOVA), NOVA, asked, str(NOVA), values):
        assert PASSWORD not in repr(thing)


# -- a password in the clear


@pytest.mark.parametrize(
    ("host", "options", "warned"),
    [
        (NOVA, {}, True),
        (NOVA, {"ssl": True}, False),
        (NOVA, {"sasl_mechanisms": "EXTERNAL"}, False),
        (NOVA, {"sasl_mechanisms": "SCRAM-SHA-256 PLAIN"}, True),
        (NOBODY, {}, False),
        (Host("localhost", 5672, "nova", PASSWORD), {}, False),
        (Host("127.0.0.1", 5672, "nova", PASSWORD), {}, False),
        (Host("::1", 5672, "nova", PASSWORD), {}, False),
        (Host("10.0.0.1", 5672, "nova", PASSWORD), {}, True),
    ],
)
def test_plain_without_tls_is_warned_of_once(host, options, warned, caplog):
    asked = made(**options)
    for _ in range(3):
        asked.warn_of_plain(host, asked.login(host))
    assert len(caplog.records) == warned
    assert PASSWORD not in caplog.text
    if warned:
        assert str(host) in caplog.text and "'nova'" in caplog.text


def test_the_messenger_warns_of_each_host_once(caplog):
    with fakes.setting([NOVA], network={"passwords": {"nova": PASSWORD}}) as s:
        s.up()
        s.lose()
        s.lose()
    texts = [r.getMessage() for r in caplog.records if "without TLS" in r.getMessage()]
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("name", "is_it"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("bus", False),
    ],
)
def test_loopback(name, is_it):
    assert is_loopback(name) is is_it


# -- logging in, at the client


def test_login(caplog):
    caplog.set_level(logging.INFO)
    with fakes.setting([NOVA], network={"passwords": {"nova": PASSWORD}}) as s:
        s.up()
        assert s.peer.engine.user == "nova"
    assert "login: PLAIN" in caplog.text
    assert PASSWORD not in caplog.text


def test_wrong_password_goes_on_with_the_other_host(caplog):
    hosts = [
        Host("one", 1, "nova", "wrong-pass"),
        Host("two", 2, "nova", PASSWORD),
    ]
    with fakes.setting(hosts, network={"passwords": {"nova": PASSWORD}}) as s:
        # Whichever comes first: the one with the right password is found.
        task = s.notify(timeout=30)
        s.world.advance(10)
        assert task.result() is None
        assert s.client.connection._hosts.current.hostname == "two"
        s.peer.cut()
        s.world.advance(10)
        assert "one:1: the peer refused the login of user 'nova'" in caplog.text
        assert s.client.connection.state is State.UP


def test_wrong_password_is_tried_again_with_pauses():
    """The password may be mended at the bus; and no bus is hammered meanwhile."""
    with fakes.setting([NOVA], network={"passwords": {"nova": "other"}}) as s:
        task = s.notify(timeout=300)
        s.world.advance(200)
        assert 5 < len(s.network.attempts) < 30
        s.network.default = {"passwords": {"nova": PASSWORD}}
        s.world.advance(60)
        assert task.result() is None


def test_the_error_of_a_late_caller_says_why():
    with fakes.setting([NOVA], network={"passwords": {"nova": "other"}}) as s:
        task = s.notify(timeout=3)
        s.world.advance(4)
        with pytest.raises(TimeoutError, match="wrong user name or password") as caught:
            task.result()
        assert "bus.example:5672" in str(caught.value)
        assert PASSWORD not in str(caught.value)


# -- a bus that wants no login


class Plain(SaslServer):
    """Offers what no client here can do, and lets clients in without SASL."""

    def __init__(self, *_args):
        super().__init__()
        self.mechanisms = ("GSSAPI",)


@pytest.fixture
def no_sasl(monkeypatch):
    monkeypatch.setattr(fakes, "SaslServer", Plain)


def test_without_credentials_a_bus_may_be_entered_without_sasl(no_sasl):
    with fakes.setting([NOBODY]) as s:
        task = s.notify(timeout=30)
        s.world.advance(10)
        assert task.result() is None
        assert len(s.network.attempts) == 2
        # Known from now on.
        s.lose()
        assert len(s.network.attempts) == 3


@pytest.mark.parametrize(
    ("host", "options"),
    [
        (NOVA, {}),
        (NOBODY, {"sasl_mechanisms": "ANONYMOUS"}),
        (NOBODY, {"sasl_config_name": "nova"}),
    ],
)
def test_a_login_that_is_asked_for_is_never_left_out(no_sasl, host, options):
    with fakes.setting([host], **options) as s:
        task = s.notify(timeout=60)
        s.world.advance(61)
        # Cyrus SASL may know the one that is offered, and have no ticket for it.
        with pytest.raises(TimeoutError, match="no (common )?SASL mechanism"):
            task.result()
        assert len(s.network.attempts) > 3
        assert s.client.connection.state is not State.UP


def test_a_bus_that_wants_a_login_says_so_each_time(caplog, monkeypatch):
    monkeypatch.setattr(
        fakes, "SaslServer", lambda: SaslServer({"nova": "p"}, anonymous=False)
    )
    with fakes.setting([NOBODY]) as s:
        s.notify(timeout=30)
        s.world.advance(31)
        texts = [record.getMessage() for record in caplog.records]
        reasons = [text for text in texts if text.startswith("no connection")]
    assert len(reasons) > 3
    assert all("the peer offers PLAIN" in reason for reason in reasons)


# -- a password that does not go over the wire


class Scram(SaslServer):
    """Knows SCRAM-SHA-256 as well (RFC 5802, RFC 7677); what it says last is a
    challenge, which the client answers with nothing."""

    _SALT, _ROUNDS = b"pinch", 4096

    def __init__(self, password):
        super().__init__({"nova": password}, anonymous=False)
        self.mechanisms = ("PLAIN", "SCRAM-SHA-256")
        self._salted = hashlib.pbkdf2_hmac(
            "sha256", password.encode(), self._SALT, self._ROUNDS
        )
        self._said = []

    def _authenticate(self, response):
        if self._mechanism != "SCRAM-SHA-256":
            super()._authenticate(response)
        elif not self._said:
            bare = response.partition(b",,")[2]
            salt = base64.b64encode(self._SALT)
            nonce = bare.partition(b",r=")[2] + b"more"
            first = b"r=%b,s=%b,i=%d" % (nonce, salt, self._ROUNDS)
            self._said = [bare, first]
            self._challenge(first)
        elif len(self._said) == 2:
            final, _, proof = response.rpartition(b",p=")
            self._said.append(final)
            signature = self._prove(b"Server Key")
            if base64.b64decode(proof) == self._client_proof():
                self._challenge(b"v=" + base64.b64encode(signature))
            else:
                self._refuse("wrong user or password")
        else:
            self._mechanism = "ANONYMOUS"  # which has nothing to prove
            super()._authenticate(response)

    def _challenge(self, text):
        fields = b"\xa0" + bytes((len(text),)) + text
        self.output += sasl_frame(
            CHALLENGE, b"\xc0" + bytes((len(fields) + 1, 1)) + fields
        )
        self.state = SaslState.RESPONSE

    def _prove(self, name, *, stored=False):
        key = hmac.digest(self._salted, name, "sha256")
        if stored:
            key = hashlib.sha256(key).digest()
        return hmac.digest(key, b",".join(self._said), "sha256")

    def _client_proof(self):
        key = hmac.digest(self._salted, b"Client Key", "sha256")
        signature = self._prove(b"Client Key", stored=True)
        return bytes(one ^ other for one, other in zip(key, signature, strict=True))


@pytest.fixture
def scram(monkeypatch):
    if not has_cyrus_sasl():
        pytest.skip("proton was built without Cyrus SASL")
    servers = []

    def serve(password):
        def make(*_args):
            servers.append(Scram(password))
            return servers[-1]

        monkeypatch.setattr(fakes, "SaslServer", make)
        return servers

    return serve


@pytest.mark.parametrize("wanted", ["", "SCRAM-SHA-256"])
def test_scram_is_preferred_to_plain(scram, wanted):
    servers = scram(PASSWORD)
    with fakes.setting([NOVA], sasl_mechanisms=wanted) as s:
        task = s.notify(timeout=5)
        s.world.advance(6)
        assert task.result() is None
    assert len(servers[0]._said) == 3


def test_scram_with_a_wrong_password(scram):
    servers = scram("other")
    with fakes.setting([NOVA]) as s:
        task = s.notify(timeout=5)
        s.world.advance(6)
        with pytest.raises(TimeoutError, match="by SASL SCRAM-SHA-256: wrong"):
            task.result()
    # Nor does the password go as it is then.
    assert all(len(server._said) == 3 for server in servers)
