# SPDX-License-Identifier: Apache-2.0
"""The options of the group ``[oslo_messaging_amqp]``.

Names and meanings are those of the ``amqp`` driver that oslo.messaging carried up to
14.9, so that a deployment's files need not change; the group's old name ``amqp1``
is read as well, and any option can stand in the query of the transport URL.  Options
that the predecessor did not have come last.
"""

from __future__ import annotations

import functools
import ipaddress
import types
import typing

from oslo_config import cfg
from oslo_messaging._drivers import common

#: The group of the ``rabbit://`` driver, and what it has to say about names and
#: arguments of queues and exchanges: who shares them must declare them alike.
RABBIT_GROUP = "oslo_messaging_rabbit"
RABBIT_NAMES = (
    "amqp_auto_delete",
    "amqp_durable_queues",
    "rabbit_ha_queues",
    "rabbit_qos_prefetch_count",
    "rabbit_quorum_delivery_limit",
    "rabbit_quorum_max_memory_bytes",
    "rabbit_quorum_max_memory_length",
    "rabbit_quorum_queue",
    "rabbit_stream_fanout",
    "rabbit_transient_queues_ttl",
    "rabbit_transient_quorum_queue",
)

GROUP = cfg.OptGroup(
    name="oslo_messaging_amqp",
    title="AMQP 1.0 driver options",
    help="Options of the AMQP 1.0 driver (greenamqp).",
)

#: Schemes of transport URLs that ask for TLS.
TLS_SCHEMES = ("amqps", "greenamqps")

#: All schemes of this driver.
SCHEMES = ("amqp", "greenamqp", *TLS_SCHEMES)

#: The largest port.
MAX_PORT = 65_535

#: The longest that something may wait: selectors take 31 bits of milliseconds. Seconds.
MAX_WAIT = (2**31 - 1) // 1000

#: The longest that a message or a queue may live: AMQP gives that 32 bits of
#: milliseconds.
MAX_LIFE = (2**32 - 1) // 1000

#: The shortest: one of them.
MIN_LIFE = 0.001

#: The most of what is counted: credit, for one, must be a C int to proton.
MAX_NUMBER = 2**31 - 1

#: What may be sent pre-settled; the last: replies to an address that the message bus
#: does not keep while the connection of who gave it is lost.
PRE_SETTLED = ("rpc-call", "rpc-reply", "rpc-cast", "notify", "rpc-reply-volatile")

#: Seconds for a notification that is not tried for ever, where no option says it.
NOTIFY_TIMEOUT = 30

_OLD_GROUP: dict[str, typing.Any] = {"deprecated_group": "amqp1"}

_connection = [
    cfg.StrOpt(
        "container_name",
        **_OLD_GROUP,
        help="Prefix of the AMQP container id. What makes the id unique for each "
        "connection is appended. By default the id is made of the program's name and "
        "a UUID.",
    ),
    cfg.IntOpt(
        "idle_timeout",
        default=30,
        min=0,
        max=MAX_WAIT,
        **_OLD_GROUP,
        help="Seconds without a byte from the peer after which the connection counts "
        "as lost, twice that at the latest. 0 switches it off: a peer that vanishes "
        "without a word is then noticed only by the operating system.",
    ),
    cfg.BoolOpt(
        "trace",
        default=False,
        **_OLD_GROUP,
        help="For debugging: write every AMQP frame to the standard error output. "
        "Frames hold the content of messages.",
    ),
    cfg.BoolOpt(
        "pseudo_vhost",
        default=True,
        help="For message buses without virtual hosts: put the virtual host of the "
        "transport URL into every address. False: send it as the hostname of the "
        "AMQP Open frame, for buses that know virtual hosts.",
    ),
    cfg.IntOpt(
        "connection_retry_interval",
        default=1,
        min=1,
        max=MAX_WAIT,
        help="Seconds to wait before another attempt to connect, after all hosts of "
        "the transport URL were tried once.",
    ),
    cfg.IntOpt(
        "connection_retry_backoff",
        default=2,
        min=0,
        max=MAX_WAIT,
        help="Seconds added to connection_retry_interval after each round of "
        "attempts in which no host answered.",
    ),
    cfg.IntOpt(
        "connection_retry_interval_max",
        default=30,
        min=1,
        max=MAX_WAIT,
        help="Upper limit of the wait between two rounds of attempts, in seconds; 10 s "
        "at the most where all hosts refuse the connection, as nobody listens there.",
    ),
]

_patience = [
    cfg.BoolOpt(
        "fail_fast",
        default=False,
        help="Raise at once, to whoever sends, calls or listens, what cannot get "
        "better by waiting: credentials that every host refuses, a certificate that is "
        "not trusted, an unknown virtual host, no permission, another protocol. The "
        "cause of what is raised says which. False: they wait until their time-out, as "
        "somebody may mend it meanwhile. Either way connecting is tried again.",
    ),
]

_security = [
    cfg.BoolOpt(
        "ssl",
        default=False,
        help="Use TLS, as a transport URL amqps://... does. Without further ssl "
        "options the certificate of the peer is verified against the system's CA "
        "bundle.",
    ),
    cfg.StrOpt(
        "ssl_ca_file",
        default="",
        **_OLD_GROUP,
        help="PEM file of the CA certificates that the peer's certificate is "
        "verified with. Switches TLS on.",
    ),
    cfg.StrOpt(
        "ssl_cert_file",
        default="",
        **_OLD_GROUP,
        help="PEM file of the certificate with which this side identifies itself. "
        "Switches TLS on.",
    ),
    cfg.StrOpt(
        "ssl_key_file",
        default="",
        **_OLD_GROUP,
        help="PEM file of the private key of ssl_cert_file, if it is not in there.",
    ),
    cfg.StrOpt(
        "ssl_key_password",
        secret=True,
        **_OLD_GROUP,
        help="Password of ssl_key_file, if it is encrypted.",
    ),
    cfg.BoolOpt(
        "ssl_verify_vhost",
        default=False,
        help="Expect the peer's certificate to name the virtual host of the "
        "transport URL, and ask for it by SNI, instead of the name of the host.",
    ),
    cfg.StrOpt(
        "password_file",
        default="",
        help="File with the password, or token, of the users for whom the transport "
        "URL has none. Read for each connection: what changes is used from the next "
        "one on. White space around it is left out.",
    ),
    cfg.StrOpt(
        "password_command",
        default="",
        help="Command that writes that password to its standard output, in place of "
        "password_file: a program and its arguments, without a shell. Run for each "
        "connection, and given up after 10 seconds.",
    ),
    cfg.StrOpt(
        "sasl_mechanisms",
        default="",
        **_OLD_GROUP,
        help="SASL mechanisms to allow, separated by spaces. By default, what the "
        "transport URL gives credentials for.",
    ),
    cfg.StrOpt(
        "sasl_config_dir",
        default="",
        **_OLD_GROUP,
        help="Folder of the Cyrus SASL configuration, where proton has Cyrus SASL.",
    ),
    cfg.StrOpt(
        "sasl_config_name",
        default="",
        **_OLD_GROUP,
        help="Name of the Cyrus SASL configuration file, without its .conf.",
    ),
    cfg.StrOpt(
        "sasl_default_realm",
        default="",
        help="SASL realm of user names that name none.",
    ),
]

_sending = [
    cfg.IntOpt(
        "link_retry_delay",
        default=10,
        min=1,
        max=MAX_WAIT,
        help="Seconds between attempts to attach a link again that the peer refused "
        "or closed, and the longest pause before a message that the peer released "
        "is sent again.",
    ),
    cfg.IntOpt(
        "default_reply_retry",
        default=-1,
        min=-1,
        max=MAX_NUMBER,
        help="How often an RPC reply that the peer released is sent again. "
        "-1: for default_reply_timeout.",
    ),
    cfg.IntOpt(
        "default_reply_timeout",
        default=30,
        min=5,
        max=MAX_WAIT,
        help="Seconds within which an RPC reply must be delivered; longer while its "
        "caller waits.",
    ),
    cfg.IntOpt(
        "default_send_timeout",
        default=30,
        min=5,
        max=MAX_WAIT,
        help="Seconds within which an RPC cast or call must be delivered, if the "
        "caller gives no time-out.",
    ),
    cfg.IntOpt(
        "default_notify_timeout",
        min=5,
        max=MAX_WAIT,
        help="Seconds within which a notification must be delivered. By default, where "
        "the notifier's retry is -1, it is tried for as long as there is no message "
        "bus to take it; 30 where the bus says that nobody is there to take it, or "
        "where retry is a number.",
    ),
    cfg.IntOpt(
        "default_sender_link_timeout",
        default=600,
        min=1,
        max=MAX_WAIT,
        help="Seconds after which a sender link that was not used is detached.",
    ),
    cfg.MultiStrOpt(
        "pre_settled",
        default=["rpc-reply-volatile"],
        help="Kinds of messages to send pre-settled, that is, without asking whether "
        "they arrived: they may be lost without a word. rpc-reply-volatile: replies to "
        "an address that goes with its connection, as on a router. Allowed: "
        + ", ".join(PRE_SETTLED)
        + ".",
    ),
]

_outbox = [
    cfg.StrOpt(
        "notify_outbox",
        default="",
        help="Directory, of this user alone, in which notifications wait that the "
        "message bus does not take at once; whoever notifies goes on. They are sent "
        "from there when it does, by another process if need be. By default they wait "
        "in memory, and so does whoever notifies.",
    ),
    cfg.IntOpt(
        "notify_outbox_max_size",
        default=256,
        min=1,
        max=MAX_NUMBER,
        help="MiB that what waits in the outbox of one process may take, beside 32 MiB "
        "for SQLite's log; the oldest notifications fall out, which the log tells.",
    ),
    cfg.IntOpt(
        "notify_outbox_max_age",
        default=604_800,
        min=1,
        max=MAX_LIFE,
        help="Seconds that a notification may wait in the outbox; then it falls out.",
    ),
]

_addressing = [
    cfg.StrOpt(
        "addressing_mode",
        default="dynamic",
        choices=[
            ("dynamic", "what fits the message bus that the peer says it is"),
            ("legacy", "addresses of brokers such as qpidd"),
            ("routable", "addresses of routers such as qpid-dispatch"),
            (
                "rabbit",
                "queues, exchanges and messages as those of the rabbit:// "
                "driver: RabbitMQ from 4.0 on, beside services that use it",
            ),
            (
                "declared",
                "queues and exchanges of the driver's own: RabbitMQ from 4.0 "
                "on, for services that all use this driver",
            ),
            (
                "rabbit3",
                "queues that are made where they are attached to: RabbitMQ before 4.0",
            ),
            ("artemis", "addresses of Apache ActiveMQ Artemis"),
            (
                "broker-j",
                "queues and exchanges of Apache Qpid Broker-J, which the "
                "driver creates itself",
            ),
        ],
        help="How targets become addresses of the message bus.",
    ),
    cfg.StrOpt(
        "server_request_prefix",
        default="exclusive",
        **_OLD_GROUP,
        help="Legacy addressing: prefix of the address of one server.",
    ),
    cfg.StrOpt(
        "broadcast_prefix",
        default="broadcast",
        **_OLD_GROUP,
        help="Legacy addressing: prefix of the address of all servers.",
    ),
    cfg.StrOpt(
        "group_request_prefix",
        default="unicast",
        **_OLD_GROUP,
        help="Legacy addressing: prefix of the address of any server of a group.",
    ),
    cfg.StrOpt(
        "rpc_address_prefix",
        default="openstack.org/om/rpc",
        help="Routable addressing: prefix of all RPC addresses.",
    ),
    cfg.StrOpt(
        "notify_address_prefix",
        default="openstack.org/om/notify",
        help="Routable addressing: prefix of all notification addresses.",
    ),
    cfg.StrOpt(
        "multicast_address",
        default="multicast",
        help="Routable addressing: follows the prefix where all servers get a copy.",
    ),
    cfg.StrOpt(
        "unicast_address",
        default="unicast",
        help="Routable addressing: follows the prefix where one server is meant.",
    ),
    cfg.StrOpt(
        "anycast_address",
        default="anycast",
        help="Routable addressing: follows the prefix where any server of a group is "
        "meant.",
    ),
    cfg.StrOpt(
        "default_notification_exchange",
        help="Routable addressing: exchange of notifications whose target names "
        "none. Otherwise control_exchange, else 'openstack'.",
    ),
    cfg.StrOpt(
        "default_rpc_exchange",
        help="Routable addressing: exchange of RPC whose target names none. "
        "Otherwise control_exchange, else 'openstack'.",
    ),
]

_lifetime = [
    cfg.IntOpt(
        "rpc_cast_ttl",
        default=86400,
        min=0,
        max=MAX_LIFE,
        help="Artemis and Broker-J, which keep the queues of servers that left: "
        "seconds after which an RPC cast that no server has taken expires. 0: never. "
        "A call expires when its caller gives up.",
    ),
]

_credit = [
    cfg.IntOpt(
        "reply_link_credit",
        default=200,
        min=1,
        max=MAX_NUMBER,
        help="Replies that may be on their way at once; more where more calls wait.",
    ),
    cfg.IntOpt(
        "rpc_server_credit",
        default=100,
        min=1,
        max=MAX_NUMBER,
        help="RPC requests per link that a server holds without having taken them "
        "into work.",
    ),
    cfg.IntOpt(
        "notify_server_credit",
        default=100,
        min=1,
        max=MAX_NUMBER,
        help="Notifications per link that a listener holds unacknowledged.",
    ),
]

_new = [
    cfg.StrOpt(
        "hub",
        default="auto",
        choices=[
            (
                "auto",
                "eventlet or gevent where the process is monkey patched by it, "
                "else threads",
            ),
            ("eventlet", "green threads of eventlet"),
            ("gevent", "greenlets of gevent"),
            ("threads", "native threads: one that reads, senders in their own"),
            ("blocking", "no threads at all: whoever waits does the work"),
        ],
        help="What does the driver's waiting. Chosen when the first connection is "
        "made.",
    ),
    cfg.BoolOpt(
        "heartbeat_guard",
        default=False,
        help="Have a native thread write heartbeats while the application blocks the "
        "hub, so that the message bus does not take this process for dead. The price: "
        "a process that hangs for good looks alive. Not over TLS.",
    ),
    cfg.StrOpt(
        "state_dir",
        default="",
        help="Directory in which each process has a UNIX socket from which `greenamqp "
        "state` and `greenamqp top` read what it is doing. It is made, for this user "
        "alone; one that others may enter is not used. Empty: none.",
    ),
    cfg.BoolOpt(
        "metrics",
        default=False,
        help="Count messages, measure how long they take and show the state of the "
        "transport, as instruments of OpenTelemetry's API, which has to be installed "
        "(the extra `telemetry`). Where they go is for the process to say: without a "
        "meter provider nothing is shown.",
    ),
    cfg.BoolOpt(
        "traces",
        default=False,
        help="Make a span of OpenTelemetry of each message that is sent, and of each "
        "that is worked on, of one trace: its context travels in that of the message. "
        "Needs what `metrics` needs. RPC is left out where oslo.messaging traces it "
        "itself (tracing_enabled in [oslo_messaging_tracing]).",
    ),
]

_failover = [
    cfg.IntOpt(
        "silent_host_timeout",
        default=5,
        min=0,
        max=MAX_WAIT,
        help="Where the transport URL has several hosts: seconds without a byte from "
        "the one at hand, which is asked for a sign of life several times meanwhile, "
        "after which the next one is taken; idle_timeout where that is shorter, or 0. "
        "0: idle_timeout alone counts.",
    ),
    cfg.BoolOpt(
        "repeat_calls",
        default=True,
        help="Send the request of a call to any server of a topic again where its "
        "outcome was lost with the connection and no reply comes within a second, on "
        "a message bus that keeps replies meanwhile. It may then be executed twice, by "
        "two servers, as with the rabbit:// driver. Without, such a call waits: if its "
        "request was lost, until its time-out. To one server it is always sent again: "
        "that executes one of the two.",
    ),
]

_queues = [
    cfg.FloatOpt(
        "queue_expires",
        min=MIN_LIFE,
        max=MAX_LIFE,
        help="Seconds that a queue lives without a consumer, where the message bus can "
        "be told. By default, what the bus does by itself.",
    ),
    cfg.FloatOpt(
        "queue_message_ttl",
        min=MIN_LIFE,
        max=MAX_LIFE,
        help="Seconds that a message lives in a queue, where the bus can be told.",
    ),
    cfg.IntOpt(
        "queue_max_length",
        min=1,
        max=MAX_NUMBER,
        help="Messages that a queue holds, where the bus can be told; more push out "
        "the oldest.",
    ),
]

_rabbit = [
    cfg.StrOpt(
        "rabbit_queue_type",
        default="quorum",
        choices=[
            ("quorum", "survives the loss of a node of a cluster"),
            ("classic", "lives on one node; less to do for each message"),
        ],
        help="Declared addressing: the type of the queues that keep messages while "
        "nobody takes them. All services must agree.",
    ),
    cfg.StrOpt(
        "rabbit_transient_queue_type",
        default="classic",
        choices=[
            ("classic", "lives on one node; quick"),
            (
                "quorum",
                "survives the loss of a node of a cluster; each message takes longer",
            ),
        ],
        help="Declared addressing: the type of the queues that belong to one process: "
        "for replies to its calls, and for what is sent to all servers.",
    ),
    cfg.IntOpt(
        "rabbit_transient_queues_ttl",
        default=1800,
        min=1,
        max=MAX_LIFE,
        help="Declared addressing: seconds after which a queue of a process that went "
        "away without a word is removed. Replies outlive a loss of the connection that "
        "is shorter. (Rabbit addressing goes by the option of this name in "
        "[oslo_messaging_rabbit].)",
    ),
]

OPTIONS: list[cfg.Opt] = [
    *_connection,
    *_patience,
    *_security,
    *_sending,
    *_outbox,
    *_addressing,
    *_lifetime,
    *_credit,
    *_new,
    *_failover,
    *_queues,
    *_rabbit,
]


def register(conf: cfg.ConfigOpts) -> None:
    """Make the options known to `conf`.  May be called again."""
    # A group of its own: one that two configurations share, or of which oslo.config
    # made a shallow copy, would carry what is set in one over to the other.
    conf.register_group(
        cfg.OptGroup(name=GROUP.name, title=GROUP.title, help=GROUP.help)
    )
    conf.register_opts(OPTIONS, group=GROUP.name)


class Values(types.SimpleNamespace):
    """The values of all options; its repr leaves out what is secret."""

    def __repr__(self) -> str:
        shown = {opt.dest: getattr(self, opt.dest) for opt in OPTIONS if not opt.secret}
        return f"<Values {shown}>"


def read(group: typing.Any) -> Values:
    """The values of all options, read once: oslo.config takes a microsecond for each
    look, and the driver looks several times for each message."""
    values = {opt.dest: getattr(group, opt.dest) for opt in OPTIONS}
    kinds = values["pre_settled"]
    if isinstance(kinds, str):  # from the query of a URL, commas between them
        kinds = kinds.split(",")
    # One that is empty is how a file says: none.
    values["pre_settled"] = frozenset(
        kind.strip().lower() for kind in kinds if kind.strip()
    )
    return Values(**values)


def of(conf: cfg.ConfigOpts, url: typing.Any) -> Values:
    """The values of all options, those in the query of the transport URL included."""
    register(conf)
    values = read(_group(conf, url, GROUP.name, {opt.dest for opt in OPTIONS}))
    if url is not None and asks_for_tls(url):
        values.ssl = True
    return values


def asks_for_tls(url: typing.Any) -> bool:
    """Whether a transport URL itself, not the configuration, asks for TLS."""
    return url.transport in TLS_SCHEMES or cfg.types.Boolean()(
        url.query.get("ssl", "false")
    )


def _group(
    conf: cfg.ConfigOpts, url: typing.Any, name: str, names: typing.Container[str]
) -> typing.Any:
    """A group of options, with those of the URL's query which it has."""
    if url is None:
        return conf[name]
    query = {key: text for key, text in url.query.items() if key in names}
    proxy = common.ConfigOptsProxy(conf, types.SimpleNamespace(query=query), name)
    return getattr(proxy, name)


class RabbitOptions:
    """What ``[oslo_messaging_rabbit]`` and the URL's query say, of RABBIT_NAMES.

    Read when it is first asked for: the options are those of the installed
    oslo.messaging, whose rabbit driver need not be loaded where nobody wants to know.

    :param conf: the configuration, or None: all defaults
    :param url: the transport URL, or None
    """

    def __init__(self, conf: typing.Any = None, url: typing.Any = None) -> None:
        self._conf = conf
        self._url = url

    @functools.cached_property
    def values(self) -> types.SimpleNamespace:
        """The value of each."""
        opts = _rabbit_options()
        if self._conf is None:
            return types.SimpleNamespace(
                **{name: opt.default for name, opt in opts.items()}
            )
        self._conf.register_opts(list(opts.values()), group=RABBIT_GROUP)
        group = _group(self._conf, self._url, RABBIT_GROUP, opts)
        return types.SimpleNamespace(**{name: getattr(group, name) for name in opts})


def _rabbit_options() -> dict[str, cfg.Opt]:
    from oslo_messaging._drivers import amqp, impl_rabbit

    known = {opt.dest: opt for opt in (*amqp.amqp_opts, *impl_rabbit.rabbit_opts)}
    return {name: known[name] for name in RABBIT_NAMES if name in known}


def check_url(url: typing.Any) -> None:
    """Look at the ports of a transport URL, and at what its query says.

    :raises ValueError: names the port or the option, and what is allowed
    """
    for host in url.hosts:
        _check_host(host)
    known = {opt.dest: opt for opt in OPTIONS}
    if not known.keys() >= url.query.keys():
        known = _rabbit_options() | known
    for name, text in url.query.items():
        opt = known.get(name)
        if opt is None:
            raise ValueError(
                f"transport URL: there is no option {name!r} in [{GROUP.name}]; there "
                f"are {', '.join(sorted(known))}"
            )
        try:
            opt.type(text)
        except ValueError as exc:
            raise ValueError(
                f"transport URL: {name} must be {opt.type}; {text!r} is not: {exc}"
            ) from None
        if name in RABBIT_NAMES and isinstance(opt, cfg.IntOpt) and int(text) < 0:
            # That driver has no limits of its own.
            raise ValueError(f"transport URL: {name} must not be negative: {text!r}")
    if url.transport in TLS_SCHEMES and not cfg.types.Boolean()(
        url.query.get("ssl", "true")
    ):
        raise ValueError(
            f"transport URL: {url.transport}:// asks for TLS, and ssl="
            f"{url.query['ssl']} for none"
        )


def _check_host(host: typing.Any) -> None:
    """:raises ValueError: names what is wrong with the host or its port"""
    name = host.hostname or ""
    if ":" in name:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            raise ValueError(
                f"transport URL: {name!r} is neither a host with one port nor an IPv6 "
                "address"
            ) from None
    if host.port is not None and not 1 <= host.port <= MAX_PORT:
        raise ValueError(
            f"transport URL: the port of {name or 'localhost'} must be from 1 to "
            f"{MAX_PORT}: {host.port}"
        )


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """For oslo-config-generator (entry point ``oslo.config.opts``)."""
    return [(GROUP, OPTIONS)]
