# SPDX-License-Identifier: Apache-2.0
"""What each option of ``rabbit://`` and of oslo.messaging's old ``amqp`` driver means
here.  ``greenamqp doctor`` says the same by it."""

from __future__ import annotations

import dataclasses
import typing

from oslo_config import cfg

from greenamqp import options

#: The verdicts.  Their names stay.
READ = "read"  # as it stands, by greenamqp too
BECOMES = "becomes"  # another option, or one of another group
NOTHING = "nothing"  # does nothing here
FIRST = "first"  # somebody has something to do before services move


class Around(typing.NamedTuple):
    """What else is configured: whether TLS is, and whether fanouts are streams."""

    tls: bool
    streams: bool = False


#: What an option with this value becomes, by name.
Convert = typing.Callable[[str, Around], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What one option means here.

    :ivar why: of the verdict, in a sentence
    :ivar convert: what it becomes; None: no option
    :ivar otherwise: why it becomes nothing with this value
    :ivar heed: whether this value asks for something to be done
    """

    verdict: str
    why: str
    convert: Convert | None = None
    otherwise: str = ""
    heed: typing.Callable[[str, Around], bool] | None = None

    def of(self, value: str, around: Around) -> tuple[str, str, dict[str, str]]:
        """Verdict, reason and new options of this value."""
        if self.heed is not None:
            return (FIRST if self.heed(value, around) else self.verdict), self.why, {}
        if self.convert is None:
            return self.verdict, self.why, {}
        try:
            new = self.convert(value, around)
            for name, text in new.items():
                OPTIONS[name].type(text)
        except ValueError as exc:
            return FIRST, f"it cannot be used: {exc}", {}
        return (BECOMES, self.why, new) if new else (NOTHING, self.otherwise, {})


#: The options of this driver.
OPTIONS: dict[str, cfg.Opt] = {opt.dest: opt for opt in options.OPTIONS}


def is_true(value: str) -> bool:
    """:raises ValueError: if it is neither true nor false"""
    return bool(cfg.types.Boolean()(value))


def is_set(value: str | None) -> bool:
    """Whether it is true; what is neither true nor false is not, nor is None."""
    try:
        return value is not None and is_true(value)
    except ValueError:
        return False


def _read(why: str) -> Meaning:
    return Meaning(READ, why)


def _nothing(why: str) -> Meaning:
    return Meaning(NOTHING, why)


def _as(why: str, *names: str) -> Meaning:
    return Meaning(BECOMES, why, lambda value, around: dict.fromkeys(names, value))


def _with_tls(name: str, why: str) -> Meaning:
    return Meaning(
        BECOMES,
        why,
        lambda value, around: {name: value} if around.tls and value else {},
        "there is no TLS without ssl for rabbit://; here it would switch TLS on",
    )


def _guard(value: str, around: Around) -> dict[str, str]:
    return {"heartbeat_guard": "true"} if is_true(value) and not around.tls else {}


def _credit(value: str, around: Around) -> dict[str, str]:
    if around.streams or int(value) <= 0:
        return {}
    return {"rpc_server_credit": value, "notify_server_credit": value}


_DECLARES = "queues are declared by it; it must be as the other services have it"
_ONE_CONNECTION = "each transport has one connection"
_URL_ALONE = "oslo.messaging reads hosts and logins in transport_url alone"
_OWN_NAME = (
    "it is for the names of queues that belong to one process: greenamqp has its own"
)

#: The options of ``[oslo_messaging_rabbit]``.
RABBIT: dict[str, Meaning] = {
    # what is declared
    "amqp_auto_delete": _read(_DECLARES),
    "amqp_durable_queues": _read(_DECLARES),
    "rabbit_ha_queues": _read(
        f"{_DECLARES}; but RabbitMQ 4 has no mirrored queues, whatever they ask for"
    ),
    "rabbit_quorum_queue": _read(_DECLARES),
    "rabbit_quorum_delivery_limit": _read(_DECLARES),
    "rabbit_quorum_max_memory_bytes": _read(_DECLARES),
    "rabbit_quorum_max_memory_length": _read(_DECLARES),
    "rabbit_stream_fanout": _read(
        f"{_DECLARES}; what is sent to all servers while a connection is lost is not "
        "heard"
    ),
    "rabbit_transient_queues_ttl": _read(
        "the queues of this process, for replies and for what is sent to all servers, "
        "are declared by it"
    ),
    "rabbit_transient_quorum_queue": _read(_DECLARES),
    "rabbit_qos_prefetch_count": Meaning(
        BECOMES,
        "the credit of a link is what a prefetch count is",
        _credit,
        "what a server holds is decided by rpc_server_credit and "
        "notify_server_credit, 100 each; rabbit_stream_fanout asks for a prefetch "
        "count, and leaves it at that",
    ),
    # TLS
    "ssl": Meaning(
        BECOMES,
        "TLS; the port stays, and is written out in transport_url",
        lambda value, around: {"ssl": "true"} if around.tls else {},
        "there is no TLS",
    ),
    "ssl_ca_file": _with_tls(
        "ssl_ca_file", "certificates are verified with it, and so are their names"
    ),
    "ssl_cert_file": _with_tls("ssl_cert_file", "the certificate of this side"),
    "ssl_key_file": _with_tls("ssl_key_file", "its key"),
    "ssl_version": _nothing("TLS 1.2 and 1.3 are spoken, and nothing older"),
    "ssl_enforce_hostname_verification": Meaning(
        NOTHING,
        "each host's certificate must name it, whatever this says",
        heed=lambda value, around: around.tls and not is_true(value),
    ),
    "ssl_enforce_fips_mode": _nothing(
        "what OpenSSL may do is decided by the system's configuration of it"
    ),
    # connections
    "rabbit_login_method": Meaning(
        BECOMES,
        "the login is the certificate's",
        lambda value, around: (
            {"sasl_mechanisms": "EXTERNAL"} if value.upper() == "EXTERNAL" else {}
        ),
        "user and password of transport_url log in by SASL PLAIN",
    ),
    "rabbit_retry_interval": _as(
        "the pause after all hosts were tried", "connection_retry_interval"
    ),
    "rabbit_retry_backoff": _as(
        "each pause is longer than the one before by it", "connection_retry_backoff"
    ),
    "rabbit_interval_max": _as("no pause is longer", "connection_retry_interval_max"),
    "heartbeat_timeout_threshold": _as(
        "seconds of silence after which a connection counts as lost", "idle_timeout"
    ),
    "heartbeat_rate": _nothing(
        "heartbeats are sent as often as the other side asks for"
    ),
    "heartbeat_in_pthread": Meaning(
        BECOMES,
        "a native thread writes heartbeats while the program blocks the hub",
        _guard,
        "there is no such thread by default; over TLS there can be none",
    ),
    "kombu_failover_strategy": _nothing(
        "the first host is chosen by chance, the others follow in the order of the URL"
    ),
    "kombu_reconnect_delay": _nothing(
        "a link that was closed is attached again at once, and when it was refused "
        "after link_retry_delay"
    ),
    "kombu_reconnect_splay": _nothing(
        "pauses are random by half, so that not all clients come back in one moment"
    ),
    "enable_cancel_on_failover": _nothing(
        "RabbitMQ detaches the links of a queue that goes; they are attached again"
    ),
    "rpc_conn_pool_size": _nothing(_ONE_CONNECTION),
    "conn_pool_min_size": _nothing(_ONE_CONNECTION),
    "conn_pool_ttl": _nothing(_ONE_CONNECTION),
    # messages
    "kombu_compression": Meaning(
        NOTHING,
        "greenamqp can read no compressed message: take the option out of all "
        "services before the first one moves",
        heed=lambda value, around: bool(value),
    ),
    "kombu_missing_consumer_retry_timeout": _nothing(
        "replies are sent without asking what becomes of them; `pre_settled =` "
        "(nothing), default_reply_retry = -1 and default_reply_timeout have them "
        "tried again"
    ),
    "direct_mandatory_flag": _nothing("a queue that is not there is always told"),
    "use_queue_manager": _nothing(_OWN_NAME),
    "hostname": _nothing(_OWN_NAME),
    "processname": _nothing(_OWN_NAME),
    # what oslo.messaging had once
    **dict.fromkeys(
        (
            "rabbit_host",
            "rabbit_hosts",
            "rabbit_port",
            "rabbit_userid",
            "rabbit_password",
            "rabbit_virtual_host",
        ),
        _nothing(_URL_ALONE),
    ),
    "rabbit_max_retries": _nothing("connecting is tried for ever"),
    "fake_rabbit": _nothing("greenamqp has `greenamqp broker`, for tests"),
}

_OLD_NAMES = {
    "rabbit_use_ssl": "ssl",
    "kombu_ssl_version": "ssl_version",
    "kombu_ssl_keyfile": "ssl_key_file",
    "kombu_ssl_certfile": "ssl_cert_file",
    "kombu_ssl_ca_certs": "ssl_ca_file",
    "kombu_reconnect_timeout": "kombu_missing_consumer_retry_timeout",
    "rabbit_durable_queues": "amqp_durable_queues",
    # Misspelled in some releases.
    "rabbit_quroum_max_memory_length": "rabbit_quorum_max_memory_length",
    "rabbit_quroum_max_memory_bytes": "rabbit_quorum_max_memory_bytes",
}
_UNKNOWN = _nothing("rabbit:// has no such option, either")
_FORGOTTEN = _nothing("this oslo.messaging does not know that name any more: {}")


def rabbit_options() -> dict[str, cfg.Opt]:
    """The options that the installed oslo.messaging has for ``rabbit://``."""
    from oslo_messaging._drivers import amqp, impl_rabbit

    return {opt.dest: opt for opt in (*amqp.amqp_opts, *impl_rabbit.rabbit_opts)}


def of_rabbit(name: str) -> tuple[str, Meaning]:
    """What an option of ``[oslo_messaging_rabbit]`` is called now, and means here."""
    now = _OLD_NAMES.get(name)
    if now is not None:
        opt = rabbit_options().get(now)
        if opt is not None and name in (old.name for old in opt.deprecated_opts):
            return now, RABBIT[now]
        return name, dataclasses.replace(
            _FORGOTTEN, why=_FORGOTTEN.why.format(f"it is {now} now")
        )
    return name, RABBIT.get(name, _UNKNOWN)


#: Those of ``[oslo_messaging_amqp]`` that mean something else than for the old driver.
#: The others are as they were.
AMQP: dict[str, Meaning] = {
    "pre_settled": _read("a kind that is not known is an error; it was ignored"),
    "idle_timeout": _read("0 is off, which was the default; now that is 30"),
    "default_notify_timeout": _read(
        "as before; without it notifications are tried for ever now"
    ),
    "container_name": _read("a prefix, to which what makes it unique is added"),
    "connection_retry_backoff": _read("seconds that are added; it was a factor"),
    "connection_retry_interval": _read(
        "the pause after all hosts were tried; it was before each one"
    ),
    "link_retry_delay": _read(
        "for messages that the bus gives back it is the longest pause now"
    ),
    "trace": _read("as before, without passwords"),
    "ssl_cert_file": _read(
        "switches TLS on; without ssl_ca_file the peer's certificate is verified with "
        "the system's CAs now, and was not"
    ),
    "ssl_key_file": _read("as before; nothing without ssl_cert_file"),
    "sasl_mechanisms": _read("one that proton does not have is an error"),
    "allow_insecure_clients": _nothing("it was for servers"),
    "username": Meaning(
        NOTHING,
        "write user and password into transport_url",
        heed=lambda value, around: bool(value),
    ),
    "password": Meaning(
        NOTHING,
        "write user and password into transport_url",
        heed=lambda value, around: bool(value),
    ),
}


def of_amqp(name: str, value: str) -> tuple[str, str]:
    """Verdict and reason of an option of ``[oslo_messaging_amqp]``."""
    known = AMQP.get(name)
    opt = OPTIONS.get(name)
    if opt is None:
        if known is not None:
            return known.of(value, Around(False))[:2]
        return NOTHING, "there is no such option"
    try:
        if not isinstance(opt, cfg.MultiStrOpt):
            opt.type(value)
    except ValueError as exc:
        return FIRST, f"it cannot be used: {exc}"
    return READ, known.why if known is not None else "as before"
