# SPDX-License-Identifier: Apache-2.0
"""Options that do nothing, or contradict each other."""

from __future__ import annotations

import importlib.util
import typing
from collections.abc import Iterator, Sequence

import oslo_messaging
from oslo_config import cfg

from greenamqp import buses, options
from greenamqp.command.migrate import table
from greenamqp.connection.security import Security

#: Where these options stand, the old name of the group included.
_GROUPS = (options.GROUP.name, "amqp1")

_LEGACY = ("server_request_prefix", "broadcast_prefix", "group_request_prefix")
_ROUTABLE = (
    "rpc_address_prefix",
    "notify_address_prefix",
    "multicast_address",
    "unicast_address",
    "anycast_address",
    "default_notification_exchange",
    "default_rpc_exchange",
)
_QUEUES = ("queue_expires", "queue_message_ttl", "queue_max_length")


#: Group -> name of an option -> what is set, the last one.
Written = dict[str, dict[str, str]]


def written(files: Sequence[str]) -> Written:
    """The options that files have."""
    sections: dict[str, dict[str, list[str]]] = {}
    for path in files:
        cfg.ConfigParser(path, sections).parse()
    return {
        group: {name: values[-1] for name, values in named.items()}
        for group, named in sections.items()
    }


def remarks(
    values: typing.Any,
    url: oslo_messaging.TransportURL,
    names: Written,
) -> Iterator[str]:
    """What does nothing, or is hardly meant, whatever the bus is.

    :param values: of all options
    :param names: see :func:`written`
    """
    tls = Security(values).tls
    known = {opt.dest for opt in options.OPTIONS}
    for group in _GROUPS:
        for name in sorted(names.get(group, {})):
            if name.replace("-", "_") not in known:
                yield f"[{group}] {name}: there is no such option; it does nothing"
    yield from _foreign(names, tls)
    if values.ssl_key_file and not values.ssl_cert_file:
        yield "ssl_key_file does nothing without ssl_cert_file"
    if values.ssl_key_password and not values.ssl_cert_file:
        yield "ssl_key_password does nothing without ssl_cert_file"
    if values.ssl_verify_vhost and not tls:
        yield "ssl_verify_vhost does nothing without TLS"
    if values.ssl_verify_vhost and not url.virtual_host:
        yield "ssl_verify_vhost does nothing: transport_url has no virtual host"
    if values.heartbeat_guard and tls:
        yield "heartbeat_guard does nothing over TLS"
    if values.idle_timeout == 0:
        yield "idle_timeout 0: a bus that vanishes without a word is not noticed"
    single = len(url.hosts) < 2
    if single and "silent_host_timeout" in names.get(options.GROUP.name, ()):
        yield "silent_host_timeout does nothing: transport_url has one host"
    if values.connection_retry_interval > values.connection_retry_interval_max:
        yield "connection_retry_interval is above connection_retry_interval_max"
    if values.trace:
        yield "trace writes the content of all messages to the standard error output"
    if values.hub in ("eventlet", "gevent"):
        if importlib.util.find_spec(values.hub) is None:
            yield f"hub = {values.hub}, which is not installed here"
    if "rpc-call" in values.pre_settled or "rpc-cast" in values.pre_settled:
        yield "pre_settled: requests may be lost without a word"
    if "notify" in values.pre_settled:
        yield "pre_settled: notifications may be lost without a word"


def _foreign(names: Written, tls: bool) -> Iterator[str]:
    """What ``[oslo_messaging_rabbit]`` has that is not read here."""
    theirs = names.get(options.RABBIT_GROUP, {})
    own = set().union(*(names.get(group, {}) for group in _GROUPS))
    streams = table.is_set(theirs.get("rabbit_stream_fanout"))
    idle = []
    for name, value in sorted(theirs.items()):
        now, meaning = table.of_rabbit(name)
        verdict, why, new = meaning.of(value, table.Around(tls, streams))
        here = ", ".join(f"{option} = {text}" for option, text in new.items())
        if verdict == table.FIRST:
            yield f"[{options.RABBIT_GROUP}] {name}: {why}"
        elif new and not own & new.keys():
            yield (
                f"[{options.RABBIT_GROUP}] {name}: for rabbit:// alone; here it is "
                f"[{options.GROUP.name}] {here}"
            )
        elif now not in options.RABBIT_NAMES and not new:
            idle.append(name)
    if idle:
        yield (
            f"[{options.RABBIT_GROUP}] {', '.join(idle)}: for rabbit:// alone; nothing "
            "here"
        )


def remarks_on_bus(values: typing.Any, names: Written, bus: buses.Bus) -> Iterator[str]:
    """What does nothing on this bus."""
    addresser = buses.choose(values, None, None, bus)
    mode = type(addresser).__name__.removesuffix("Addresser").lower()
    given = set(names.get(options.GROUP.name, {}))
    uses_prefixes = mode in ("routable", "declared")
    for group, used in ((_LEGACY, mode == "legacy"), (_ROUTABLE, uses_prefixes)):
        idle = sorted(given & set(group))
        if idle and not used:
            yield f"{', '.join(idle)}: nothing on this bus, whose addresses are {mode}"
    policies = sorted(given & set(_QUEUES))
    if policies and bus.is_router:
        yield f"{', '.join(policies)}: refused, as a router stores nothing"
    theirs = names.get(options.RABBIT_GROUP, {})
    shared = sorted(theirs.keys() & set(options.RABBIT_NAMES))
    if shared and mode != "rabbit":
        yield (
            f"[{options.RABBIT_GROUP}] {', '.join(shared)}: nothing on this bus, "
            f"whose addresses are {mode}"
        )
