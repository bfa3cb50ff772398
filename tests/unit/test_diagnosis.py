# SPDX-License-Identifier: Apache-2.0
"""From bytes and errors to sentences."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenamqp.connection import diagnosis

SASL = b"AMQP\x03\x01\x00\x00"
AMQP = b"AMQP\x00\x01\x00\x00"


@pytest.mark.parametrize(
    ("greeting", "protocol"),
    [
        (b"", None),
        (b"\x00", None),
        (AMQP, "AMQP 1.0"),
        (SASL, "AMQP 1.0"),
        (b"AMQP\x00\x00\x09\x01", "AMQP 0-9-1"),
        (b"AMQP\x01\x01\x00\x0a", "AMQP 0-10"),
        (b"AMQP\x09\x09\x09\x09", "another version of AMQP"),
        (b"HTTP/1.0 400 Bad Request", "HTTP"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "HTTP/2"),
        (b"GET / HTTP/1.1", "HTTP"),
        (b"SSH-2.0-x", "SSH"),
        (b"220 mail ESMTP", "SMTP or FTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS"),
        (b"\x16\x03\x03\x00\x7a", "TLS"),
        (b"\x16\x04\x03", None),
        (b"-ERR unknown command", None),
    ],
)
def test_protocols(greeting, protocol):
    assert diagnosis.protocol_of(greeting) == protocol


def frame(body: bytes, kind: int = 1) -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + bytes((2, kind, 0, 0)) + body


ARRAY = b"\xe0\x0c\x01\xa3\x09ANONYMOUS"
SMALL = b"\x00\x53\x40"
LARGE = b"\x00\x80" + b"\x00" * 7 + b"\x40"


@pytest.mark.parametrize(
    ("body", "offer"),
    [
        (SMALL + b"\xc0\x0f\x01" + ARRAY, ("ANONYMOUS",)),
        (LARGE + b"\xc0\x0f\x01" + ARRAY, ("ANONYMOUS",)),
        (SMALL + b"\xd0\x00\x00\x00\x12\x00\x00\x00\x01" + ARRAY, ("ANONYMOUS",)),
        (SMALL + b"\xc0\x08\x01\xa3\x05PLAIN", ("PLAIN",)),
        (SMALL + b"\xc0\x0b\x01\xb3\x00\x00\x00\x05PLAIN", ("PLAIN",)),
        (
            SMALL + b"\xc0\x15\x01\xf0\x00\x00\x00\x0f\x00\x00\x00\x02\xa3"
            b"\x01A\x05PLAIN",
            ("A", "PLAIN"),
        ),
        (
            SMALL + b"\xc0\x10\x01\xe0\x0d\x01\xb3\x00\x00\x00\x05PLAIN",
            ("PLAIN",),
        ),
        (SMALL + b"\xc0\x03\x01\xe0\x00\x00\xa3", ()),
        (SMALL + b"\x45", None),
        (b"\x00\x53\x44\xc0\x03\x01\x50\x00", ()),
    ],
)
def test_offers(body, offer):
    assert diagnosis.sasl_offer(SASL + frame(body)) == offer


@pytest.mark.parametrize("cut", range(8, 36))
def test_an_offer_that_is_cut_off_is_none_yet(cut):
    whole = SASL + frame(SMALL + b"\xc0\x0f\x01" + ARRAY)
    assert diagnosis.sasl_offer(whole[:cut]) in (
        None,
        ("ANONYMOUS",) if cut >= len(whole) else None,
    )


def explain(greeting: bytes, **given) -> str:
    arguments = {
        "tls": False,
        "sasl": True,
        "allowed": ["PLAIN"],
        "outcome": None,
        "mechanism": None,
        "user": "nova",
    } | given
    return diagnosis.opening_failed("it broke", greeting, **arguments)


@given(
    st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda b: SASL + b)),
    st.sampled_from([None, 0, 1, 2, 3, 4, 9]),
    st.sampled_from([None, "none", "", "PLAIN", "EXTERNAL"]),
    st.booleans(),
    st.booleans(),
)
def test_any_greeting_has_an_explanation(greeting, outcome, mechanism, tls, sasl):
    text = explain(greeting, outcome=outcome, mechanism=mechanism, tls=tls, sasl=sasl)
    assert isinstance(text, str) and text


OFFER = SASL + frame(SMALL + b"\xc0\x08\x01\xa3\x05PLAIN")


@pytest.mark.parametrize(
    ("greeting", "given", "said"),
    [
        (b"", {}, "is this a port for TLS"),
        (b"", {"tls": True}, "after the TLS handshake"),
        (b"\x15\x03\x01\x00\x02\x02\x46", {}, "ssl=true"),
        (AMQP, {}, "takes no login"),
        (SASL, {"sasl": False}, "wants a login"),
        (AMQP, {"sasl": False}, "it broke"),
        (SASL, {}, "before the login"),
        (OFFER, {"outcome": 1, "mechanism": "PLAIN"}, "wrong user name or password"),
        (OFFER, {"outcome": 1, "mechanism": "EXTERNAL"}, "login of user 'nova' by"),
        (OFFER, {"outcome": 3, "mechanism": "PLAIN"}, "an error on its side"),
        (OFFER, {"outcome": 0, "vhost": "cloud"}, "may user 'nova' use 'cloud'"),
        (OFFER, {"allowed": ["EXTERNAL"], "outcome": 3}, "may use EXTERNAL"),
        (OFFER, {"user": None, "outcome": 3}, "PLAIN needs a user name"),
        (OFFER, {"mechanism": "PLAIN"}, "in the login of user 'nova'"),
        (OFFER, {"mechanism": None}, "no SASL mechanism of PLAIN worked out"),
    ],
)
def test_explanations(greeting, given, said):
    assert said in explain(greeting, **given)


@pytest.mark.parametrize(
    ("greeting", "allowed", "wants"),
    [
        (AMQP, ["ANONYMOUS"], True),
        (OFFER, ["ANONYMOUS"], True),
        (OFFER, ["PLAIN"], False),
        (SASL, ["ANONYMOUS"], False),
        (b"HTTP/1.1 400", ["ANONYMOUS"], False),
        (b"", ["ANONYMOUS"], False),
    ],
)
def test_who_wants_no_sasl(greeting, allowed, wants):
    assert diagnosis.wants_no_sasl(greeting, allowed) is wants


def test_errors_of_openssl_without_a_reason():
    assert diagnosis.ssl_text(OSError(104, "Connection reset")) == "Connection reset"
    assert diagnosis.ssl_text(ssl.SSLError(1, "something")) == "something"
    known = ssl.SSLError(1, "text")
    known.reason = "TLSV1_ALERT_UNKNOWN_CA"
    assert "does not trust the CA" in diagnosis.ssl_text(known)
    known.reason = "SOME_NEW_REASON"
    assert diagnosis.ssl_text(known) == "some new reason"


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (b"", "did not answer the TLS handshake"),
        (b"\x16\x03\x03", "not complete in time"),
        (AMQP, "speaks no TLS"),
    ],
)
def test_late_handshakes(greeting, said):
    assert said in diagnosis.handshake_late(greeting)
