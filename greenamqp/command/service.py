# SPDX-License-Identifier: Apache-2.0
"""The message bus that a command is about: a service's configuration, or a URL."""

from __future__ import annotations

import argparse
import itertools
import math
import pathlib
import typing
import urllib.parse
import warnings

from oslo_config import cfg

from greenamqp.command import named, seconds
from greenamqp.command.masking import without_passwords

with warnings.catch_warnings(record=True):
    # eventlet and oslo's eventlet parts deprecate themselves when imported, which who
    # runs a command can do nothing about.
    import oslo_messaging

    from greenamqp import driver, options
    from greenamqp.command.contact import contact
    from greenamqp.connection.state import State
    from greenamqp.transport import register_options

#: Seconds for one step, where nothing else is said.
TIMEOUT = 10.0

#: What oslo.messaging has where nobody says any.
_UNSET = "rabbit://"


class Unusable(Exception):
    """The configuration or the URL cannot be used; the text says why, in one line.

    :cvar status: of the command that ends with it
    """

    status = 2


class Unreachable(Unusable):
    """Nothing is wrong with these, but no host of the URL can be used now."""

    status = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which bus is meant, and how long a step may take."""
    which = parser.add_argument_group("which message bus")
    which.add_argument(
        "--config-file",
        action="append",
        type=named,
        default=[],
        metavar="FILE",
        help="configuration of a service, such as /etc/nova/nova.conf (repeatable)",
    )
    which.add_argument(
        "--url",
        type=named,
        metavar="URL",
        help="its transport URL; what the configuration has otherwise",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="for each step (%(default)s)",
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
    except UnicodeDecodeError as exc:
        # oslo.config does not say of which file.
        name = next(itertools.filterfalse(_is_text, args.config_file), "a file")
        raise Unusable(f"--config-file: {name}: {exc}") from exc
    except (cfg.Error, ValueError, OSError) as exc:
        raise Unusable(f"--config-file: {' '.join(str(exc).split())}") from exc
    register_options(conf)
    return conf


def _is_text(name: str) -> bool:
    """Whether all of the file is UTF-8."""
    try:
        pathlib.Path(name).read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return True


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
        if url is None:
            url = _configured(conf, notifications)
        # Its ValueError names the port; oslo.messaging's does not.
        for host in urllib.parse.urlsplit(url).netloc.split(","):
            _ = urllib.parse.urlsplit(f"//{host}").port
        parsed = oslo_messaging.TransportURL.parse(conf, url)
        if parsed.transport in options.SCHEMES:
            options.check_url(parsed)
    except (ValueError, cfg.Error, oslo_messaging.InvalidTransportURL) as exc:
        said = str(exc).removeprefix("transport URL: ")
        raise Unusable(without_passwords(f"transport URL: {said}", url)) from None
    if parsed.transport not in options.SCHEMES:
        raise Unusable(
            f"{parsed.transport}:// is not of this driver: its URLs begin with "
            "amqp:// or amqps://"
        )
    return parsed


def _configured(conf: cfg.ConfigOpts, notifications: bool) -> str:
    """:raises Unusable: if there is none"""
    url: str | None = None
    try:
        if notifications:
            url = conf.oslo_messaging_notifications.transport_url
        if url is None:
            url = conf.transport_url
    except cfg.NoSuchOptError:  # it names the option that there is
        raise Unusable(
            "transport URL: a $ in it stands for another option, and of that name "
            "there is none: in a password it is written as $$"
        ) from None
    if url == _UNSET:
        raise Unusable("no transport URL: name it, or a --config-file that has it")
    return url


def reach(
    conf: cfg.ConfigOpts, url: oslo_messaging.TransportURL, timeout: float
) -> None:
    """Connect and say goodbye, so that who waits for an answer knows that there is
    somebody.

    :param timeout: seconds for each host
    :raises Unreachable: as soon as all hosts were tried in vain, with their reasons
    """
    with contact(
        driver.hosts_of(url),
        options.of(conf, url),
        url.virtual_host or None,
        hub="threads",
        patience=timeout,
    ) as connection:
        if connection.state is not State.UP:
            raise Unreachable(f"no message bus at {connection.why_down()}")


def transport(
    conf: cfg.ConfigOpts,
    url: str | None,
    timeout: float,
    *,
    notifications: bool = False,
    reached: bool = False,
) -> typing.Any:
    """The transport of that URL; it has connected to nothing yet.  What it waits with
    are native threads, whatever the service has, and it waits no longer than asked.

    :param timeout: seconds; less than 5 are 5, as the options have no less
    :param reached: whether it is known already that the bus is there
    :raises Unusable: if there can be none, or the bus is not there
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
        made = make(conf, parsed)
    except (ValueError, cfg.Error, oslo_messaging.DriverLoadFailure) as exc:
        raise Unusable(without_passwords(str(exc), str(parsed))) from None
    if not reached:
        try:
            reach(conf, parsed, timeout)
        except Unreachable:
            made.cleanup()
            raise
    return made
