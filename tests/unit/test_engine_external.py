# SPDX-License-Identifier: Apache-2.0
"""A login by certificate, whatever proton was built with: two ends on a fake wire."""

import pytest

from greenamqp.connection import diagnosis
from greenamqp.engine import Sasl, client_connection
from greenamqp.engine import external as external_module
from greenamqp.engine.external import ExternalConnection, ExternalLogin, LoginState
from greenamqp.engine.sasl import (
    CHALLENGE,
    MAX_FRAME,
    OUTCOME,
    AcceptedConnection,
    SaslServer,
    sasl_frame,
)
from tests.unit.wire import Recorder, feed, output

USERS = {"nova": "right"}


class Pair:
    """A client that may log in by EXTERNAL, and a server."""

    def __init__(self, server, piece=None, **sasl):
        self.heard = {"client": Recorder(), "server": Recorder()}
        self.client = ExternalConnection(
            "client", self.heard["client"], sasl=Sasl(**sasl)
        )
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
    both = pair(
        server, piece, mechanisms=mechanisms, username="nova", password="right"
    )
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


def test_a_peer_without_sasl_is_for_proton_to_explain():
    login = ExternalLogin()
    login.receive(b"AMQP\x00\x01\x00\x00rest")
    assert login.state is LoginState.LEFT
    assert bytes(login.input) == b"AMQP\x00\x01\x00\x00rest"


OFFER = b"AMQP\x03\x01\x00\x00" + sasl_frame(0x40, b"\xc0\x0b\x01\xa3\x08EXTERNAL")


def test_a_challenge_is_answered_with_nothing():
    login = ExternalLogin()
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
    login = ExternalLogin()
    login.receive(OFFER)
    login.receive(data)
    assert login.state is LoginState.FAILED
    assert login.reason


def test_an_offer_that_has_no_end_is_not_waited_for():
    login = ExternalLogin()
    login.receive(b"AMQP\x03\x01\x00\x00" + (MAX_FRAME + 1).to_bytes(4, "big"))
    assert login.state is LoginState.LEFT


@pytest.mark.parametrize("cyrus", [False, True])
@pytest.mark.parametrize(
    ("mechanisms", "ours"), [("EXTERNAL PLAIN", True), ("PLAIN", False), ("", False)]
)
def test_where_proton_can_do_it_it_does(mechanisms, ours, cyrus, monkeypatch):
    monkeypatch.setattr(external_module, "has_cyrus_sasl", lambda: cyrus)
    made = client_connection("c", Recorder(), sasl=Sasl(mechanisms=mechanisms))
    assert isinstance(made, ExternalConnection) is (ours and cyrus)
    made.destroy()
