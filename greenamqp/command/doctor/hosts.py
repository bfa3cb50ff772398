# SPDX-License-Identifier: Apache-2.0
"""One host after another, from its name to its Open frame."""

from __future__ import annotations

import copy
import itertools
import ssl
import time
import typing

import oslo_messaging

from greenamqp import buses, driver
from greenamqp.command.contact import contact
from greenamqp.command.doctor.findings import Findings
from greenamqp.connection.failover import Host
from greenamqp.connection.life import BusConnection
from greenamqp.connection.state import State
from greenamqp.connection.tls import TlsStream

#: Days before a certificate's end that are remarked.
SOON = 30

# What the connection calls its stages, and what they are here.
_STEPS = {
    "getting the password": "password",
    "looking its name up": "name",
    "connecting": "TCP",
    "shaking hands for TLS": "TLS",
    "opening": "login and Open",
}

# How a reason says that the peer closed before it said anything.
_CLOSED = "before any AMQP: is this a port for TLS"

_IN_ORDER = {"password": "was given", "name": "has an address", "TCP": "connected"}


def look_at(
    findings: Findings,
    url: oslo_messaging.TransportURL,
    options: typing.Any,
    timeout: float,
    *,
    one_is_enough: bool = False,
) -> buses.Bus | None:
    """Try each host of the URL.  Returns what the first one is that can be used.

    :param one_is_enough: try no other after it; what failed before is remarked alone
    """
    found: buses.Bus | None = None
    before = len(findings.all)
    for host in driver.hosts_of(url):
        vhost = url.virtual_host or None
        with contact([host], options, vhost, hub="threads", patience=timeout) as made:
            closed = _CLOSED in made.last_failure
            speaks_tls = closed and _speaks_tls(host, options, timeout)
            with made.hub.lock:
                bus = _tell(findings, host, made, vhost, options, speaks_tls)
        found = found or bus
        if found and one_is_enough:
            findings.excuse(before)
            break
    return found


def _speaks_tls(host: Host, options: typing.Any, timeout: float) -> bool:
    """Whether a port that closes what is in the clear goes on with TLS."""
    secured = copy.copy(options)
    secured.ssl = True
    with contact([host], secured, None, hub="threads", patience=timeout) as made:
        # What is said of a certificate is said after the peer has shown one.
        shaken = any(stage == "opening" for stage, _ in made.stages)
        return shaken or "certificate" in made.last_failure


def _tell(
    findings: Findings,
    host: Host,
    connection: BusConnection,
    vhost: str | None,
    options: typing.Any,
    speaks_tls: bool,
) -> buses.Bus | None:
    where = str(host)
    up = connection.state is State.UP
    stages = list(connection.stages)
    if not up:
        stages.append(("", connection.hub.now()))
    taken: dict[str, float] = {}
    for (stage, began), (_, ended) in itertools.pairwise(stages):
        # A name with several addresses comes back to a stage.
        step = _STEPS[stage]
        taken[step] = taken.get(step, 0.0) + ended - began
    # The step says the host already.
    reason = connection.why_down().removeprefix(f"{connection.where}: ")
    if _CLOSED in reason and speaks_tls:
        reason = "the peer wants TLS on this port, and closed what was in the clear"
    last = _STEPS.get(stages[-2][0], "") if not up and len(stages) > 1 else ""
    for step, time_taken in taken.items():
        if step == last:
            findings.failed(step, where, reason, time_taken)
        elif step == "TLS" and up and connection.tls is not None:
            _tell_tls(findings, where, connection.tls, time_taken)
        elif step != "login and Open":
            findings.ok(step, where, _IN_ORDER.get(step, "in order"), time_taken)
    engine = connection.engine
    if not up or engine is None:
        if not last:
            findings.failed("connection", where, reason)
        return None
    bus = buses.of_peer(engine)
    user = f"user {host.username!r}" if host.username else "no user name"
    findings.ok(
        "login and Open",
        where,
        f"{bus}; SASL {engine.sasl_mechanism or 'none'}, {user}, "
        f"virtual host {vhost or 'none'}",
        taken.get("login and Open"),
    )
    idle = engine.idle_timeout
    addresser = buses.choose(
        options, None, vhost if options.pseudo_vhost else None, bus
    )
    findings.ok(
        "product",
        where,
        f"addresses by {type(addresser).__name__.removesuffix('Addresser')}, "
        f"messages in {type(addresser.format).__name__}, "
        f"{engine.max_sessions} sessions, idle time-out "
        f"{f'{idle:g} s' if idle else 'none'}",
    )
    if addresser.advice:
        findings.remark("product", where, addresser.advice)
    return bus


def _tell_tls(findings: Findings, where: str, stream: TlsStream, taken: float) -> None:
    certificate = stream.certificate
    text = f"{stream.version}, certificate of {stream.peer_name}"
    for part in certificate.get("issuer", ()):
        for key, value in part:
            if key in ("organizationName", "commonName"):
                text += f", issued by {value}"
    until = certificate.get("notAfter")
    days = None
    if until:
        days = int((ssl.cert_time_to_seconds(until) - time.time()) // 86_400)
        text += f", {days} days left"
    findings.ok("TLS", where, text, taken)
    if days is not None and days < SOON:
        findings.remark("TLS", where, f"the certificate ends in {days} days")
