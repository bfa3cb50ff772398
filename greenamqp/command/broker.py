# SPDX-License-Identifier: Apache-2.0
"""``greenamqp broker``: the embedded broker as a process of its own.

Prints one line with its URL when it is ready to be connected to, and ends cleanly on
SIGTERM and SIGINT.  Without threads: the main thread runs an event loop.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import typing

from greenamqp.broker.settings import MIB, PRODUCTS, Settings
from greenamqp.command import named, number, whole
from greenamqp.command.ending import Ending

# The largest port, the most sessions (a channel has 16 bits), the longest idle time-out
# (AMQP gives it 32 bits of milliseconds), and what fits into proton's fields otherwise.
_MAX_PORT = 65_535
_MAX_SESSIONS = 65_536
_MAX_IDLE_TIMEOUT = 4_294_967
_MOST = {"N": 2**31 - 1, "BYTES": 2**63 - 1}

#: Options that are a number of something: (option, setting, unit, help).
_LIMITS = (
    ("--max-message-size", "max_message_size", "BYTES", "a larger message is refused"),
    (
        "--max-queue-messages",
        "max_queue_messages",
        "N",
        "at so many messages in its queue a sender gets no more credit",
    ),
    (
        "--max-queue-bytes",
        "max_queue_bytes",
        "BYTES",
        "at so many bytes in its queue a sender gets no more credit",
    ),
    (
        "--max-memory",
        "max_memory",
        "BYTES",
        "at so many bytes in all queues no sender gets more credit",
    ),
    ("--max-connections", "max_connections", "N", "more connections are closed"),
    ("--max-links", "max_links", "N", "links of one connection"),
    ("--max-sessions", "max_sessions", "N", "sessions of one connection"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    parser.epilog = (
        "It keeps messages in memory only, nothing on disk, and is for development "
        "and tests, not for production."
    )
    parser.add_argument(
        "--host", type=named, default="127.0.0.1", help="listen there (%(default)s)"
    )
    parser.add_argument(
        "--port",
        type=lambda text: whole(text, 0, _MAX_PORT),
        default=5672,
        help="0 picks a free one (%(default)s)",
    )
    parser.add_argument(
        "--product",
        default="greenamqp",
        choices=sorted(PRODUCTS),
        help="behave as this message bus does (%(default)s)",
    )
    parser.add_argument(
        "--user",
        action="append",
        default=[],
        metavar="NAME:PASSWORD",
        help="who may log in; without any, everybody may connect (repeatable)",
    )
    parser.add_argument(
        "--allow-anonymous",
        action="store_true",
        help="with --user: everybody else may connect all the same",
    )
    for option, what in (
        ("--topic-prefix", "topics: each receiver gets a copy"),
        ("--queue-prefix", "queues: each message goes to one receiver"),
        ("--refuse-prefix", "refused"),
    ):
        parser.add_argument(
            option,
            action="append",
            type=named,
            default=[],
            metavar="PREFIX",
            help=f"addresses that begin so are {what} (repeatable)",
        )
    parser.add_argument(
        "--hostname",
        action="append",
        type=named,
        default=[],
        metavar="NAME",
        help="clients that reach the broker by this name mean no virtual host "
        "(repeatable)",
    )
    parser.add_argument(
        "--idle-timeout",
        type=lambda text: number(text, 0, _MAX_IDLE_TIMEOUT),
        default=defaults["idle_timeout"],
        metavar="SECONDS",
        help="a client that is silent for so long is taken for lost; 0: never "
        "(%(default)s)",
    )
    tls = parser.add_argument_group("TLS", "with a certificate, TLS alone is spoken")
    tls.add_argument("--tls-cert", default="", metavar="FILE", help="certificate (PEM)")
    tls.add_argument(
        "--tls-key",
        default="",
        metavar="FILE",
        help="its key (PEM), if it is not in the same file",
    )
    tls.add_argument(
        "--tls-ca",
        default="",
        metavar="FILE",
        help="CAs of clients' certificates (PEM); with one, EXTERNAL is offered",
    )
    tls.add_argument(
        "--tls-require-client-cert",
        action="store_true",
        help="refuse clients that show no certificate",
    )
    for option, name, unit, text in _LIMITS:
        parser.add_argument(
            option,
            dest=name,
            type=_limit(_MAX_SESSIONS if name == "max_sessions" else _MOST[unit]),
            default=defaults[name],
            metavar=unit,
            help=f"{text} ({_readable(defaults[name], unit)})",
        )
    parser.add_argument(
        "--trace",
        action="store_true",
        help="write every frame to standard error",
    )
    parser.add_argument(
        "--verbose",
        "-v",
        action="count",
        default=0,
        help="log connections; twice: addresses and dropped messages too",
    )


def _limit(most: int) -> typing.Callable[[str], int]:
    """What reads a whole number, with k, M or G for 1024 of the one before."""

    def read(text: str) -> int:
        factors = {"k": 1024, "m": MIB, "g": 1024 * MIB}
        factor = factors.get(text[-1:].lower(), 1)
        return whole(text, 1, most, factor)

    return read


def _readable(value: object, unit: str) -> str:
    if unit == "BYTES" and isinstance(value, int) and value % MIB == 0:
        return f"{value // MIB}M"
    return str(value)


def _users(given: list[str]) -> dict[str, str]:
    """:raises ValueError: without showing a password"""
    users = {}
    for position, pair in enumerate(given, 1):
        name, colon, password = pair.partition(":")
        if not (name and colon):
            raise ValueError(f"--user number {position} is not NAME:PASSWORD")
        users[name] = password
    return users


def settings(args: argparse.Namespace) -> Settings:
    """The broker's settings as the arguments give them.

    :raises ValueError: naming an argument that makes no sense
    """
    defaults = Settings()
    return Settings(
        product=args.product,
        queue_prefixes=(*defaults.queue_prefixes, *args.queue_prefix),
        topic_prefixes=(*defaults.topic_prefixes, *args.topic_prefix),
        refused_prefixes=tuple(args.refuse_prefix),
        users=_users(args.user),
        allow_anonymous=True if args.allow_anonymous else None,
        hostnames=tuple(args.hostname),
        idle_timeout=args.idle_timeout,
        trace=args.trace,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        tls_ca=args.tls_ca,
        tls_require_client_cert=args.tls_require_client_cert,
        **{name: getattr(args, name) for _, name, _, _ in _LIMITS},
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM (returns 0) or SIGINT (returns 130)."""
    from greenamqp import hubs
    from greenamqp.broker import Broker

    logging.basicConfig(
        level=(logging.WARNING, logging.INFO)[min(args.verbose, 1)],
        format="%(asctime)s %(levelname)s %(message)s",
    )
    if args.verbose > 1:
        logging.getLogger("greenamqp").setLevel(logging.DEBUG)
    try:
        given = settings(args)
    except ValueError as exc:
        print(f"greenamqp broker: {exc}", file=sys.stderr)
        return 2
    hub = hubs.get("blocking")
    broker = Broker(args.host, args.port, hub=hub, settings=given)
    done = hub.waiter()
    # A signal handler runs between any two instructions: leave it to the loop.
    ending = Ending(lambda: hub.call_inside(done.wake))
    try:
        broker.start()
    except ValueError as exc:
        print(f"greenamqp broker: {exc}", file=sys.stderr)
        return 2
    except OSError as exc:
        print(
            f"greenamqp broker: cannot listen on {args.host}:{args.port}: {exc}",
            file=sys.stderr,
        )
        return 1
    print(f"greenamqp broker listening on {broker.url}", flush=True)
    done.wait(None)
    broker.stop()
    return ending.status
