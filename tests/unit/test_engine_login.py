# SPDX-License-Identifier: Apache-2.0
"""A login by certificate or token, whatever proton was built with: two ends on a fake
wire."""

import pytest

from greenamqp.connection import diagnosis
from greenamqp.engine import Sasl, client_connection, sasl
from greenamqp.engine import login as login_module
from greenamqp.engine.login import Login, LoginConnection, LoginState
from greenamqp.engine.sasl import (
    CHALLENGE,
    MAX_FRAME,
    OUTCOME,
    AcceptedConnection,
    SaslServer,
    SaslState,
    sasl_frame,
)
from tests.unit.wire import Recorder, feed, output

USERS = {"nova": "right"}


class Pair:
    """A client that may log in by EXTERNAL, and a server."""

    def __init__(self, server, piece=None, **sasl):
        self.heard = {"client": Recorder(), "server": Recorder()}
        self.client = LoginConnection("client", self.heard["client"], sasl=Sasl(**sasl))
        self.server = AcceptedConnection("server", self.heard["server"], server)
        self.client.open()
        self.server.open()
        self.greeting = b""
        moved = True
        while moved:
            moved = False
            for one, other in (
                (self.client, self.server),
                (self.server, self.client),
            ):
                one.process(1.0)
                while sent := output(one):
                    moved = True
                    if one is self.server:
                        self.greeting += sent
                    size = piece or len(sent)
                    for at in range(0, len(sent), size):
                        feed(other, sent[at : at + size], 1.0)
        self.client.process(1.0)

    def destroy(self):
        self.client.destroy()
        self.server.destroy()


@pytest.fixture
def pair():
    made = []

    def make(*args, **options):
        made.append(Pair(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.destroy()


@pytest.mark.parametrize("piece", [None, 1, 7])
@pytest.mark.parametrize("mechanisms", ["EXTERNAL", "external PLAIN ANONYMOUS"])
def test_it_is_used_where_it_is_offered(pair, mechanisms, piece):
    server = SaslServer(USERS, external="CN=nova")
    both = pair(server, piece, mechanisms=mechanisms, username="nova", password="right")
    assert both.client.remote_opened and both.server.remote_opened
    assert both.server.user == "CN=nova"
    assert (both.client.sasl_outcome, both.client.sasl_mechanism) == (0, "EXTERNAL")


@pytest.mark.parametrize("piece", [None, 1, 7])
@pytest.mark.parametrize(
    ("sasl", "user", "mechanism"),
    [
        (
            {"mechanisms": "EXTERNAL PLAIN", "username": "nova", "password": "right"},
            "nova",
            "PLAIN",
        ),
        ({"mechanisms": "EXTERNAL ANONYMOUS"}, None, "ANONYMOUS"),
    ],
)
def test_what_else_is_allowed_is_used_where_it_is_not(
    pair, sasl, user, mechanism, piece
):
    both = pair(SaslServer(USERS), piece, **sasl)
    assert both.client.remote_opened and both.server.remote_opened
    assert both.server.user == user
    assert both.client.sasl_mechanism == mechanism
    assert both.client.sasl_outcome == 0


def test_alone_it_is_never_replaced(pair):
    both = pair(SaslServer(USERS, anonymous=True), mechanisms="EXTERNAL")
    assert not both.server.remote_opened
    assert "does not offer EXTERNAL" in str(both.client.failed)
    assert both.client.sasl_outcome is None
    assert diagnosis.sasl_offer(both.greeting) == ("PLAIN", "ANONYMOUS")


def test_refused_it_is_never_replaced(pair):
    class Refusing(SaslServer):
        def _authenticate(self, response):
            self._refuse("not this one")

    server = Refusing(USERS, anonymous=True, external="CN=mallory")
    both = pair(
        server,
        mechanisms="EXTERNAL PLAIN ANONYMOUS",
        username="nova",
        password="right",
    )
    assert not both.server.remote_opened
    assert both.client.sasl_mechanism == "EXTERNAL"
    assert both.client.sasl_outcome == 1
    assert "refused the login" in str(both.client.failed)
    assert both.client.closed and both.client.finished


class Tokens(SaslServer):
    """Takes tokens as RFC 7628 and Google's XOAUTH2 have them."""

    def __init__(self, *mechanisms):
        super().__init__(USERS)
        self.mechanisms = (*mechanisms, "PLAIN")
        self.heard = []

    def _authenticate(self, response):
        if self._mechanism == "PLAIN":
            super()._authenticate(response)
            return
        self.heard.append(bytes(response))
        if b"auth=Bearer " + TOKEN.encode() + b"\x01\x01" not in response:
            if len(self.heard) == 1:
                # What is wrong, which the client answers before it hears the end.
                self.output += sasl_frame(CHALLENGE, b"\xc0\x05\x01\xa0\x02{}")
                self.state = SaslState.RESPONSE
            else:
                self._refuse("not this token")
            return
        self.user = "by token"
        self.output += sasl_frame(OUTCOME, b"\xc0\x03\x01\x50\x00")
        self.state = SaslState.AMQP


TOKEN = "e30." + 70 * "abcd"


@pytest.mark.parametrize(
    ("offered", "first"),
    [
        ("OAUTHBEARER", b"n,a=no=2Cva=3D,\x01auth=Bearer %s\x01\x01"),
        ("XOAUTH2", b"user=no,va=\x01auth=Bearer %s\x01\x01"),
    ],
)
def test_a_token(pair, offered, first):
    server = Tokens(offered)
    both = pair(
        server,
        mechanisms="OAUTHBEARER XOAUTH2 PLAIN",
        username="no,va=",
        password=TOKEN,
    )
    assert both.client.remote_opened and both.server.remote_opened
    assert both.client.sasl_mechanism == offered
    assert server.heard == [first % TOKEN.encode()]


@pytest.mark.parametrize(
    ("mechanism", "answer"), [("OAUTHBEARER", b"\x01"), ("XOAUTH2", b"")]
)
def test_a_token_that_is_refused(pair, mechanism, answer):
    server = Tokens(mechanism)
    both = pair(server, mechanisms=mechanism, username="nova", password="expired")
    assert not both.client.remote_opened
    assert (both.client.sasl_outcome, both.client.sasl_mechanism) == (1, mechanism)
    assert server.heard[1:] == [answer]
    assert "expired" not in str(both.client.failed)


def test_a_token_where_only_passwords_are_taken(pair):
    both = pair(
        Tokens(), mechanisms="OAUTHBEARER PLAIN", username="nova", password="right"
    )
    assert both.client.remote_opened
    assert both.client.sasl_mechanism == "PLAIN"


@pytest.mark.parametrize("size", [1, 200, 255, 256, 5000])
def test_a_token_may_have_any_length(size):
    login = Login({"XOAUTH2": b"x" * size})
    login.receive(b"AMQP\x03\x01\x00\x00")
    login.receive(sasl_frame(0x40, b"\xc0\x0a\x01\xa3\x07XOAUTH2"))
    assert login.state is LoginState.OUTCOME
    (code, fields) = take_large_frame(bytes(login.output[8:]))
    assert (code, fields) == (0x41, [b"XOAUTH2", b"x" * size])


def take_large_frame(data):
    """As a server takes it that allows more than 512 bytes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sasl, "MAX_FRAME", 65536)
        return sasl.take_frame(bytearray(data))


def test_a_peer_without_sasl_is_for_proton_to_explain():
    login = Login({"EXTERNAL": b""})
    login.receive(b"AMQP\x00\x01\x00\x00rest")
    assert login.state is LoginState.LEFT
    assert bytes(login.input) == b"AMQP\x00\x01\x00\x00rest"


OFFER = b"AMQP\x03\x01\x00\x00" + sasl_frame(0x40, b"\xc0\x0b\x01\xa3\x08EXTERNAL")


def test_a_challenge_is_answered_with_nothing():
    login = Login({"EXTERNAL": b""})
    login.receive(OFFER)
    sent = len(login.output)
    login.receive(sasl_frame(CHALLENGE, b"\xc0\x03\x01\xa0\x00"))
    assert login.state is LoginState.OUTCOME
    assert len(login.output) > sent
    login.receive(sasl_frame(OUTCOME, b"\xc0\x03\x01\x50\x00") + b"AMQP")
    assert login.state is LoginState.DONE
    assert bytes(login.input) == b"AMQP"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x00\x02\x01\x00\x00",
        b"\x7f\xff\xff\xff\x02\x01\x00\x00",
        sasl_frame(0x41, b"\x45"),
        sasl_frame(OUTCOME, b"\x45"),
        sasl_frame(OUTCOME, b"\xc0\x02\x01\x50"),
        sasl_frame(CHALLENGE, b"\xc0\x03\x01\xa0\x00") * 9,
    ],
)
def test_what_makes_no_sense_ends_it(data):
    login = Login({"EXTERNAL": b""})
    login.receive(OFFER)
    login.receive(data)
    assert login.state is LoginState.FAILED
    assert login.reason


def test_an_offer_that_has_no_end_is_not_waited_for():
    login = Login({"EXTERNAL": b""})
    login.receive(b"AMQP\x03\x01\x00\x00" + (MAX_FRAME + 1).to_bytes(4, "big"))
    assert login.state is LoginState.LEFT


@pytest.mark.parametrize("cyrus", [False, True])
@pytest.mark.parametrize(
    ("mechanisms", "ours"), [("EXTERNAL PLAIN", True), ("PLAIN", False), ("", False)]
)
def test_where_proton_can_do_it_it_does(mechanisms, ours, cyrus, monkeypatch):
    monkeypatch.setattr(login_module, "has_cyrus_sasl", lambda: cyrus)
    made = client_connection("c", Recorder(), sasl=Sasl(mechanisms=mechanisms))
    assert isinstance(made, LoginConnection) is (ours and cyrus)
    made.destroy()


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
@pytest.mark.parametrize("cyrus", [False, True])
def test_proton_knows_no_tokens(mechanism, cyrus, monkeypatch):
    monkeypatch.setattr(login_module, "has_cyrus_sasl", lambda: cyrus)
    made = client_connection("c", Recorder(), sasl=Sasl(mechanisms=mechanism))
    assert isinstance(made, LoginConnection)
    made.destroy()
