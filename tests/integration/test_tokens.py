# SPDX-License-Identifier: Apache-2.0
"""Logins by tokens (OAuth 2.0) on a RabbitMQ, which takes one for a password."""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
import time
import typing
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from greenamqp import command
from tests.integration.services import (
    PATIENCE,
    Endpoint,
    HeldCall,
    call_and_notify,
    calling,
    serving,
    unique,
)
from tools.buses import Bus

#: What greenamqp needs; without the last one no queue can be bound to a topic exchange.
SCOPES = (
    "rabbitmq.configure:*/*",
    "rabbitmq.write:*/*",
    "rabbitmq.read:*/*",
    "rabbitmq.write:*/*/*",
    "rabbitmq.read:*/*/*",
)


def _text(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class Issuer:
    """Makes tokens that the bus believes."""

    def __init__(self, bus: Bus) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
        bus.control("add_signing_key", "tests", f"--pem={public.decode()}")

    def token(self, life: float, scopes: typing.Sequence[str] = SCOPES) -> str:
        head = {"alg": "RS256", "typ": "JWT", "kid": "tests"}
        claims = {
            "sub": "nova",
            "aud": ["rabbitmq"],
            "exp": int(time.time() + life),
            "scope": list(scopes),
        }
        signed = b".".join(_text(json.dumps(each).encode()) for each in (head, claims))
        signature = self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return b".".join((signed, _text(signature))).decode()


@pytest.fixture(scope="module")
def bus() -> Iterator[Bus]:
    kind = f"{os.environ.get('RABBITMQ', 'rabbitmq-4.0')}-oauth2"
    with Bus(kind, f"{kind}-tests-{os.getpid()}") as made:
        yield made


@pytest.fixture(scope="module")
def issuer(bus):
    return Issuer(bus)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "token"


@pytest.fixture
def url(bus, file):
    plain = bus.url().replace("guest:guest@", "nova@")
    return f"{plain}?password_file={file}"


def test_a_token_is_a_password(url, issuer, file):
    file.write_text(issuer.token(600))
    call_and_notify(url)


class Connects(logging.Handler):
    """Counts the connections that came up."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.done = threading.Event()
        self.lost: list[str] = []
        self._left = wanted

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("lost the connection"):
            self.lost.append(text)
        self._left -= text.startswith("connected to")
        if self._left == 0:
            self.done.set()


def test_a_token_expires_and_the_next_one_is_taken(url, issuer, file):
    """RabbitMQ ends a connection when its token does; a call goes on over that."""
    file.write_text(issuer.token(5))
    topic = unique()
    endpoint = Endpoint("server")
    log = logging.getLogger("greenamqp.client")
    log.setLevel(logging.INFO)
    # The server's and the client's, twice.
    connects = Connects(4)
    log.addHandler(connects)
    try:
        with serving(url, topic, endpoint=endpoint), calling(url, topic) as client:
            call = HeldCall(client, endpoint, "kept")
            file.write_text(issuer.token(600))
            assert connects.done.wait(PATIENCE)
            assert call.end() == ["kept"]
    finally:
        log.removeHandler(connects)
    assert len(connects.lost) == 2
    assert all("credential expired" in text for text in connects.lost)


@pytest.mark.parametrize(
    ("life", "scopes", "fault"),
    [
        (600, SCOPES, None),
        (-60, SCOPES, "login-refused"),
        (600, SCOPES[:3], "not-permitted"),
    ],
)
def test_doctor(url, issuer, file, life, scopes, fault, capsys):
    file.write_text(issuer.token(life, scopes))
    status = command.main(["doctor", "-f", "json", "--url", url])
    found = json.loads(capsys.readouterr().out)["steps"]
    failed = [step for step in found if step["result"] == "failed"]
    assert {step["advice"]["fault"] for step in failed} == ({fault} if fault else set())
    assert status == (1 if fault else 0)
