# SPDX-License-Identifier: Apache-2.0
"""What a failure is called, who can mend it, and how."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to do about a failure.

    :ivar fault: its name, which stays
    :ivar who: can mend it
    :ivar how: in a sentence
    """

    fault: str
    who: str
    how: str


_SERVICE = "who configures the service"
_BUS = "who runs the message bus"
_NETWORK = "who runs the network"
_NAMES = "who runs the name server"
_CA = "who issues the certificates"

# The first whose text is in the reason.  The texts are the driver's and OpenSSL's.
_TABLE: tuple[tuple[str, Advice], ...] = (
    (
        "password_file: ",
        Advice(
            "no-password",
            _SERVICE,
            "have the file there, readable for the service's user, with the password "
            "or token in it; and the user name in transport_url",
        ),
    ),
    (
        "password_command: ",
        Advice(
            "no-password",
            _SERVICE,
            "run the command by hand, as the service's user: it must write the "
            "password or token and end with status 0; and the user name must be in "
            "transport_url",
        ),
    ),
    (
        "cannot look the name up",
        Advice(
            "unknown-name",
            f"{_SERVICE}, or {_NAMES}",
            "correct the host in transport_url, or have its name known here: "
            "`getent hosts NAME` shows what this machine finds",
        ),
    ),
    (
        "Connection refused",
        Advice(
            "nothing-listens",
            f"{_SERVICE}, or {_BUS}",
            "compare the port in transport_url with the one that the bus listens on "
            "(5672, with TLS 5671), and see whether it runs",
        ),
    ),
    (
        "no answer in time",
        Advice(
            "no-answer",
            f"{_NETWORK}, or {_BUS}",
            "see whether the host is up, and whether a firewall on the way swallows "
            "what goes to that port",
        ),
    ),
    (
        "certificate has expired",
        Advice(
            "certificate-expired",
            _BUS,
            "have the bus show a new certificate; if it does, set this machine's clock",
        ),
    ),
    (
        "certificate is not yet valid",
        Advice("certificate-early", _BUS, "compare the clocks of both machines"),
    ),
    (
        "mismatch, certificate is not valid for",
        Advice(
            "certificate-name",
            f"{_SERVICE}, or {_CA}",
            "use a name in transport_url that the certificate has, or have one issued "
            "for this name",
        ),
    ),
    (
        "certificate does not verify",
        Advice(
            "certificate-untrusted",
            f"{_SERVICE}, or {_BUS}",
            "put the CA of the bus's certificate into the file that ssl_ca_file names; "
            "the bus must send what is between the two",
        ),
    ),
    (
        "speaks no TLS on this port",
        Advice(
            "no-tls-there",
            _SERVICE,
            "use the port with TLS (mostly 5671), or amqp:// and none of the options "
            "ssl, ssl_ca_file and ssl_cert_file",
        ),
    ),
    (
        "the peer wants TLS on this port",
        Advice(
            "tls-wanted",
            _SERVICE,
            "write amqps:// in transport_url, or use the port without TLS",
        ),
    ),
    (
        "requires a certificate of us",
        Advice(
            "no-client-certificate",
            _SERVICE,
            "set ssl_cert_file and ssl_key_file to a certificate that the bus accepts",
        ),
    ),
    (
        "our certificate",
        Advice(
            "client-certificate-refused",
            f"{_BUS}, or {_CA}",
            "have the bus trust the CA of ssl_cert_file, or a certificate for clients "
            "issued by one that it trusts",
        ),
    ),
    (
        "TLS cannot be set up",
        Advice("tls-files", _SERVICE, "mend the file that is named"),
    ),
    (
        "speaks none of TLS 1.2",
        Advice("old-tls", _BUS, "allow TLS 1.2 or newer there"),
    ),
    (
        "TLS handshake",
        Advice(
            "tls-handshake",
            f"{_SERVICE}, or {_BUS}",
            "see whether this is a port for TLS, and what the log of the bus says",
        ),
    ),
    (
        "it speaks AMQP 0-9",
        Advice(
            "old-amqp",
            _BUS,
            "RabbitMQ before 4.0 needs `rabbitmq-plugins enable rabbitmq_amqp1_0`; "
            "what knows AMQP 0-9-1 alone is for rabbit://",
        ),
    ),
    (
        "is no AMQP 1.0 server",
        Advice(
            "not-amqp",
            _SERVICE,
            "correct the port in transport_url: another service answers there",
        ),
    ),
    (
        "wrong user name or password",
        Advice(
            "login-refused",
            f"{_SERVICE}, or {_BUS}",
            "compare user and password in transport_url with the bus's; @, / and : "
            "are written as %40, %2F and %3A",
        ),
    ),
    (
        "wrong token",
        Advice(
            "login-refused",
            f"{_SERVICE}, or {_BUS}",
            "see whether the token is for this bus and has not expired, and what the "
            "log of the bus says",
        ),
    ),
    (
        "refused the login",
        Advice("login-refused", _BUS, "allow this client to log in so, or another way"),
    ),
    (
        "wants a login",
        Advice(
            "login-wanted",
            _SERVICE,
            "give user and password for this host in transport_url",
        ),
    ),
    (
        "SASL mechanism",
        Advice(
            "no-mechanism",
            f"{_SERVICE}, or {_BUS}",
            "give user and password for this host in transport_url, or change "
            "sasl_mechanisms or what the bus offers",
        ),
    ),
    (
        "takes no login",
        Advice(
            "login-unwanted",
            _SERVICE,
            "leave user and password out of transport_url: the bus has no SASL there",
        ),
    ),
    (
        "after the login",
        Advice(
            "virtual-host",
            f"{_SERVICE}, or {_BUS}",
            "correct what follows the / in transport_url, or make that virtual host "
            "and give the user rights on it",
        ),
    ),
    (
        "no answer to the Open frame",
        Advice(
            "silent",
            f"{_SERVICE}, or {_BUS}",
            "see what listens on that port: it takes connections and says nothing",
        ),
    ),
    (
        "before any AMQP",
        Advice(
            "closed-at-once",
            f"{_SERVICE}, or {_BUS}",
            "see whether the port is one for TLS, and whether a load balancer in "
            "between has a backend",
        ),
    ),
    (
        "inequivalent arg",
        Advice(
            "queue-differs",
            _SERVICE,
            "give all services the same value of the option that is named, and delete "
            "the queue once",
        ),
    ),
    (
        "holds back all who publish",
        Advice(
            "alarm",
            _BUS,
            "free memory or disk there: an alarm stops publishers "
            "(`rabbitmq-diagnostics alarms` shows it)",
        ),
    ),
    (
        "the bus does not copy it",
        Advice(
            "fanout-shared",
            _BUS,
            "a router: have the addresses that fanouts go to configured with the "
            "distribution multicast, see docs/buses/routers",
        ),
    ),
    (
        "did not answer within",
        Advice(
            "stands-still",
            _BUS,
            "see whether the node that has the queue is up, and whether its memory or "
            "disk is full",
        ),
    ),
    (
        "gives no credit",
        Advice(
            "no-credit",
            _BUS,
            "a router: have these addresses configured, multicast ones too; a broker: "
            "see whether it is full",
        ),
    ),
    (
        "unauthorized-access",
        Advice(
            "not-permitted",
            _BUS,
            "give the user the right that is named; it needs those to configure, write "
            "and read (`rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'`). "
            "Who logs in by a token has them as its scopes, those on topics too "
            "(read:*/*/*, write:*/*/*)",
        ),
    ),
    (
        "not-allowed",
        Advice("not-permitted", _BUS, "allow this user what is named"),
    ),
)

_UNKNOWN = Advice(
    "other", _BUS, "see what the log of the bus says of this, and docs/troubleshooting"
)


def advice(reason: str) -> Advice:
    """What to do about a failure with this reason."""
    return next((known for text, known in _TABLE if text in reason), _UNKNOWN)
