# SPDX-License-Identifier: Apache-2.0
"""Why a connection could not be made, in words for the one who has to mend it.

Pure functions: from the first bytes that a peer sent, and the errors of OpenSSL and of
the AMQP engine, to one sentence.  One that is Lasting says what no waiting mends.
Nothing here knows or returns a password.
"""

from __future__ import annotations

import ssl
import typing

from greenamqp.engine import BEARER, sasl_offer
from greenamqp.engine.sasl import AMQP_HEADER, SASL_HEADER

# So much of a peer's first bytes is kept until its Open frame comes: its protocol
# headers and the SASL frames, of which none has more than 512 bytes.
GREETING_SIZE = 2048

# What begins with these bytes is no AMQP 1.0 peer, or not in the way that was asked.
_PROTOCOLS: tuple[tuple[bytes, str], ...] = (
    (AMQP_HEADER, "AMQP 1.0"),
    (SASL_HEADER, "AMQP 1.0"),
    (b"AMQP\x02\x01\x00\x00", "AMQP 1.0 with its own negotiation of TLS"),
    (b"AMQP\x00\x00\x09\x01", "AMQP 0-9-1"),
    (b"AMQP\x01\x01\x00\x09", "AMQP 0-9"),
    (b"AMQP\x01\x01\x09\x01", "AMQP 0-9"),
    (b"AMQP\x01\x01\x08\x00", "AMQP 0-8"),
    (b"AMQP\x01\x01\x00\x0a", "AMQP 0-10"),
    (b"AMQP", "another version of AMQP"),
    (b"HTTP/", "HTTP"),
    (b"<!", "HTTP"),
    (b"<html", "HTTP"),
    (b"SSH-", "SSH"),
    (b"220 ", "SMTP or FTP"),
    (b"220-", "SMTP or FTP"),
    (b"GET ", "HTTP"),
    (b"HEAD ", "HTTP"),
    (b"POST ", "HTTP"),
    (b"PUT ", "HTTP"),
    (b"OPTIONS ", "HTTP"),
    (b"CONNECT ", "HTTP"),
    (b"PRI * HTTP/2", "HTTP"),
)

_TLS_RECORDS = (0x14, 0x15, 0x16, 0x17)

# OpenSSL's names of what went wrong, where they say little to people.  An alert is the
# peer's word about us.
_TLS_REASONS = {
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust the CA of our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refused our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the peer refused our kind of certificate",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the peer says that our certificate is revoked",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refused our certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "the peer requires a certificate of us, and none is set (ssl_cert_file)"
    ),
    "TLSV1_ALERT_ACCESS_DENIED": "the peer refuses the owner of our certificate",
    "TLSV1_ALERT_DECRYPT_ERROR": "the peer refused our certificate's signature",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer speaks none of TLS 1.2 and newer",
    "UNSUPPORTED_PROTOCOL": "the peer speaks none of TLS 1.2 and newer",
    "NO_PROTOCOLS_AVAILABLE": "no version of TLS is allowed by OpenSSL's configuration",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "the peer found no common cipher, or wants a certificate of us (ssl_cert_file)"
    ),
    "TLSV1_ALERT_INSUFFICIENT_SECURITY": "the peer wants stronger ciphers",
    "NO_SHARED_CIPHER": "there is no common cipher",
    "TLSV1_UNRECOGNIZED_NAME": "the peer has no certificate for the name asked for",
    "TLSV1_ALERT_NO_APPLICATION_PROTOCOL": "the peer wants another protocol than AMQP",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer showed no certificate",
}

#: Conditions of a peer's error that say: not for you, or there is no such thing.
LASTING_CONDITIONS = frozenset(
    ("amqp:unauthorized-access", "amqp:not-allowed", "amqp:not-found")
)

# Outcomes of SASL (AMQP 1.0 part 5, section 5.3.3.6).
SASL_OK, _SASL_AUTH, _SASL_SYS, _SASL_PERM, _SASL_TEMP = range(5)


class Lasting(str):
    """A reason that waiting does not mend: somebody has to change something."""

    __slots__ = ()


class Interrupted(str):
    """Why a connection was lost: `who` cut off its work, at this end."""

    __slots__ = ()

    def __new__(cls, who: str) -> typing.Self:
        return super().__new__(cls, f"{who} interrupted the connection's work")


def as_lasting(reason: str, text: str) -> str:
    """`text`, which says more than `reason`, and is as lasting as that."""
    return Lasting(text) if isinstance(reason, Lasting) else text


def closed_by_peer(condition: str, error: object) -> str:
    """The peer closed the connection with an error.

    :param condition: of the error, "" if there is none
    """
    text = f"closed by the peer: {error or 'no reason given'}"
    return Lasting(text) if condition in LASTING_CONDITIONS else text


def protocol_of(greeting: bytes) -> str | None:
    """What a peer speaks whose first bytes these are; None if they say nothing."""
    if is_tls(greeting):
        return "TLS"
    for start, name in _PROTOCOLS:
        if greeting.startswith(start):
            return name
    if len(greeting) >= 9 and greeting[:2] == b"\0\0" and greeting[3:5] == b"\4\0":
        return "HTTP/2"  # its first frame: SETTINGS
    return None


def is_tls(greeting: bytes) -> bool:
    """Whether these bytes begin a TLS record: 3.x is the version of all of them."""
    return len(greeting) >= 2 and greeting[0] in _TLS_RECORDS and greeting[1] == 3


def ssl_text(exc: OSError) -> str:
    """OpenSSL's reason, without its bookkeeping."""
    reason = getattr(exc, "reason", None)
    if isinstance(reason, str) and reason:
        return _TLS_REASONS.get(reason, reason.replace("_", " ").lower())
    return exc.strerror or str(exc) or type(exc).__name__


def handshake_failed(
    exc: ssl.SSLError | None, greeting: bytes, server_side: bool
) -> str:
    """Why a TLS handshake failed.

    :param exc: OpenSSL's error, or None: the peer closed the connection
    :param greeting: the peer's first bytes
    """
    if isinstance(exc, ssl.SSLCertVerificationError):
        whose = "client's" if server_side else "peer's"
        message = (exc.verify_message or "no reason given").rstrip(".")
        return Lasting(f"the {whose} certificate does not verify: {message}")
    if greeting and not is_tls(greeting):
        return Lasting(f"the peer speaks no TLS on this port: {_what(greeting)}")
    if exc is None:
        if greeting:
            return "the peer closed the connection in the TLS handshake"
        return (
            "the peer closed the connection in the TLS handshake without a word: does "
            "it speak TLS on this port?"
        )
    return _tls_reason("the TLS handshake failed", exc)


def _tls_reason(what: str, exc: ssl.SSLError) -> str:
    text = f"{what}: {ssl_text(exc)}"
    # What has words of its own is about certificates and what either side allows.
    return Lasting(text) if exc.reason in _TLS_REASONS else text


def handshake_late(greeting: bytes) -> str:
    """Why a TLS handshake was not complete in time."""
    if greeting and not is_tls(greeting):
        return Lasting(f"the peer speaks no TLS on this port: {_what(greeting)}")
    if greeting:
        return "the TLS handshake was not complete in time"
    return (
        "the peer accepted the connection and did not answer the TLS handshake in "
        "time: does it speak TLS on this port?"
    )


def tls_failed(exc: ssl.SSLError) -> str:
    """Why TLS broke after its handshake.

    With TLS 1.3 that is where a client hears what is wrong with its certificate.
    """
    return _tls_reason("TLS failed", exc)


def wants_no_sasl(greeting: bytes, allowed: typing.Sequence[str]) -> bool:
    """Whether a peer may let a client in without SASL that has no credentials: it
    answered with plain AMQP, or offers none of the mechanisms `allowed`."""
    if greeting.startswith(AMQP_HEADER):
        return True
    offer = sasl_offer(greeting)
    return offer is not None and not set(offer) & set(allowed)


def opening_failed(
    reason: str,
    greeting: bytes,
    *,
    tls: bool,
    sasl: bool,
    allowed: typing.Sequence[str],
    outcome: int | None,
    mechanism: str | None,
    user: str | None,
    vhost: str | None = None,
) -> str:
    """Why a connection failed between TCP (or TLS) and the peer's Open frame.

    :param reason: what is known without looking closer
    :param greeting: the peer's first bytes, above TLS
    :param tls: whether TLS is used
    :param sasl: whether SASL is used; then
    :param allowed: the mechanisms that we may use; empty: any
    :param outcome: SASL's, None while there is none
    :param mechanism: that was chosen, or None
    :param user: who was to log in, or None
    :param vhost: the virtual host asked for in the Open frame, or None
    """
    if not greeting:
        if tls:
            return as_lasting(
                reason, f"{reason} (after the TLS handshake, before any AMQP)"
            )
        return (
            f"{reason} (before any AMQP: is this a port for TLS, or for another "
            "protocol?)"
        )
    if is_tls(greeting):
        return Lasting(
            "the peer wants TLS on this port, and was spoken to in the clear: use "
            "amqps:// or ssl=true, or its port without TLS"
        )
    if not greeting.startswith((SASL_HEADER, AMQP_HEADER)):
        if SASL_HEADER.startswith(greeting) or AMQP_HEADER.startswith(greeting):
            return reason  # cut off within its header
        return Lasting(f"the peer is no AMQP 1.0 server: {_what(greeting)}")
    if not sasl:
        if greeting.startswith(SASL_HEADER):
            return Lasting("the peer wants a login by SASL")
        return reason
    if greeting.startswith(AMQP_HEADER):
        return Lasting(
            "the peer takes no login: it answered the request for SASL with plain "
            "AMQP 1.0"
        )
    offer = sasl_offer(greeting)
    who = f"user {user!r}" if user else "a client without a user name"
    if outcome == SASL_OK:
        if vhost:
            return as_lasting(
                reason, f"{reason} (after the login: may {who} use {vhost!r}?)"
            )
        return as_lasting(reason, f"{reason} (after the login of {who})")
    if outcome == _SASL_AUTH and mechanism and mechanism != "none":
        if mechanism in ("ANONYMOUS", "EXTERNAL"):
            return Lasting(f"the peer refused the login of {who} by SASL {mechanism}")
        wrong = "token" if mechanism in BEARER else "user name or password"
        return Lasting(
            f"the peer refused the login of {who} by SASL {mechanism}: wrong {wrong}"
        )
    if outcome in (_SASL_SYS, _SASL_PERM, _SASL_TEMP) and mechanism not in (
        None,
        "none",
    ):
        text = f"the peer could not check the login of {who}: an error on its side"
        return Lasting(text) if outcome == _SASL_PERM else text
    if offer is not None:
        usable = [name for name in offer if not allowed or name in allowed]
        if not usable:
            return Lasting(
                "no common SASL mechanism: the peer offers "
                f"{' '.join(offer) or 'none'}, and {who} may use {' '.join(allowed)}"
            )
        if "PLAIN" in usable and not user:
            return Lasting(
                "no common SASL mechanism: the peer offers "
                f"{' '.join(offer)}, and PLAIN needs a user name, which the transport "
                "URL does not give for this host"
            )
        if mechanism in (None, "none", ""):
            return Lasting(
                f"no SASL mechanism of {' '.join(usable)} worked out: {reason}"
            )
        return f"{reason} (in the login of {who} by SASL {mechanism})"
    return f"{reason} (before the login)"


def _what(greeting: bytes) -> str:
    protocol = protocol_of(greeting)
    shown = greeting[:24]
    if protocol is not None:
        return f"it speaks {protocol} (it sent {shown!r})"
    return f"it sent {shown!r}"
