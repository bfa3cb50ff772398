# SPDX-License-Identifier: Apache-2.0
"""The message bus that a command is about: a service's configuration, or a URL."""

from __future__ import annotations

import argparse
import math
import typing
import urllib.parse
import warnings

from oslo_config import cfg

from greenamqp.command import seconds
from greenamqp.command.masking import without_passwords

with warnings.catch_warnings(record=True):
    # eventlet and oslo's eventlet parts deprecate themselves when imported, which who
    # runs a command can do nothing about.
    import oslo_messaging

    from greenamqp import options
    from greenamqp.transport import register_options

#: Seconds for one step, where nothing else is said.
TIMEOUT = 10.0


class Unusable(Exception):
    """The configuration or the URL cannot be used; the text says why, in one line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which bus is meant, and how long a step may take."""
    which = parser.add_argument_group("which message bus")
    which.add_argument(
        "--config-file",
        action="append",
        default=[],
        metavar="FILE",
        help="configuration of a service, such as /etc/nova/nova.conf (repeatable)",
    )
    which.add_argument(
        "--url",
        metavar="URL",
        help="its transport URL; what the configuration has otherwise, else localhost",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="for each step (%(default)s)",
    )


def add_format(
    parser: argparse.ArgumentParser, what: str = "how it is shown"
) -> None:
    """Declare the argument that asks for JSON."""
    parser.add_argument(
        "-f",
        "--format",
        choices=("text", "json"),
        default="text",
        help=f"{what} (%(default)s)",
    )


def configuration(args: argparse.Namespace) -> cfg.ConfigOpts:
    """The configuration that the arguments name.

    :raises Unusable: if a file of it cannot be read
    """
    conf = cfg.ConfigOpts()
    try:
        conf(
            [],
            project="greenamqp",
            default_config_files=list(args.config_file),
            default_config_dirs=[],
        )
    except (cfg.Error, ValueError, OSError) as exc:
        raise Unusable(f"--config-file: {' '.join(str(exc).split())}") from exc
    register_options(conf)
    return conf


def set_exchange(conf: cfg.ConfigOpts, exchange: str) -> None:
    """Have it in place of ``control_exchange``."""
    conf.set_override("control_exchange", exchange)


def parse(
    conf: cfg.ConfigOpts, url: str | None, *, notifications: bool = False
) -> oslo_messaging.TransportURL:
    """The transport URL that a service with this configuration uses.

    :param url: what comes before the configuration, or None
    :param notifications: the one for notifications
    :raises Unusable: if it is not one of this driver
    """
    try:
        if url is None and notifications:
            url = conf.oslo_messaging_notifications.transport_url
        if url is None:
            url = conf.transport_url
        # Its ValueError names the port; oslo.messaging's does not.
        for host in urllib.parse.urlsplit(url).netloc.split(","):
            _ = urllib.parse.urlsplit(f"//{host}").port
        parsed = oslo_messaging.TransportURL.parse(conf, url)
        if parsed.transport in options.SCHEMES:
            options.check_url(parsed)
    except (ValueError, cfg.Error, oslo_messaging.InvalidTransportURL) as exc:
        raise Unusable(without_passwords(f"transport URL: {exc}", url)) from None
    if parsed.transport not in options.SCHEMES:
        raise Unusable(
            f"{parsed.transport}:// is not of this driver: its URLs begin with "
            "amqp:// or amqps://"
        )
    return parsed


def transport(
    conf: cfg.ConfigOpts,
    url: str | None,
    timeout: float,
    *,
    notifications: bool = False,
) -> typing.Any:
    """The transport of that URL; it has connected to nothing yet.  What it waits with
    are native threads, whatever the service has, and it waits no longer than asked.

    :param timeout: seconds; less than 5 are 5, as the options have no less
    :raises Unusable: if there can be none
    """
    parsed = parse(conf, url, notifications=notifications)
    patience = max(5, math.ceil(timeout))
    for name, value in (
        ("hub", "threads"),
        ("fail_fast", True),
        ("default_send_timeout", patience),
        ("default_reply_timeout", patience),
        ("default_notify_timeout", patience),
    ):
        parsed.query.pop(name, None)
        conf.set_override(name, value, group=options.GROUP.name)
    make = (
        oslo_messaging.get_notification_transport
        if notifications
        else oslo_messaging.get_rpc_transport
    )
    try:
        return make(conf, parsed)
    except (ValueError, cfg.Error, oslo_messaging.DriverLoadFailure) as exc:
        raise Unusable(without_passwords(str(exc), str(parsed))) from None
