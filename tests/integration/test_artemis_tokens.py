# SPDX-License-Identifier: Apache-2.0
"""Logins by SASL OAUTHBEARER and XOAUTH2 on an Artemis that takes tokens."""

from __future__ import annotations

import base64
import json
import os
import time

import pytest

from greenamqp import command
from tests.integration.services import call_and_notify
from tools.buses import Bus


def token(life: float) -> str:
    """One that nobody has signed."""
    claims = {
        "iss": "tests",
        "aud": "artemis",
        "sub": "nova",
        "azp": "nova",
        "exp": int(time.time() + life),
        "roles": ["amq"],
    }
    parts = (json.dumps(each).encode() for each in ({"alg": "none"}, claims))
    texts = [base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in parts]
    return ".".join([*texts, ""])


@pytest.fixture(scope="module")
def bus():
    with Bus("artemis-oauth2", f"artemis-oauth2-tests-{os.getpid()}") as made:
        yield made


@pytest.fixture(params=["OAUTHBEARER", "XOAUTH2"])
def mechanism(request):
    return request.param


@pytest.fixture
def file(tmp_path):
    return tmp_path / "token"


@pytest.fixture
def url(bus, mechanism, file):
    plain = bus.url().replace(f"{bus.kind.user}:{bus.kind.password}@", "nova@")
    return f"{plain}?sasl_mechanisms={mechanism}&password_file={file}"


def test_a_token_logs_in(url, file):
    file.write_text(token(600))
    call_and_notify(url)


@pytest.mark.parametrize("life", [600, -600])
def test_doctor_says_how_and_why_not(url, file, mechanism, life, capsys):
    file.write_text(token(life))
    status = command.main(["doctor", "--quick", "-f", "json", "--url", url])
    shown = capsys.readouterr().out
    assert file.read_text() not in shown
    steps = json.loads(shown)["steps"]
    (login,) = (each for each in steps if each["step"] == "login and Open")
    assert mechanism in login["text"]
    if life > 0:
        assert status == 0 and login["result"] == "ok"
    else:
        assert status == 1 and login["text"].endswith("wrong token")
