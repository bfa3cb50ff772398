# SPDX-License-Identifier: Apache-2.0
"""Transports as oslo.messaging makes them, and from ``rpc_backend`` too.

Configurations that are older than ``transport_url`` choose their driver by
``rpc_backend = amqp`` in the group ``[DEFAULT]``.  oslo.messaging does not read that
option any more; these functions do, where no URL is given.  In every other case they do
what oslo.messaging's functions of the same names do.
"""

from __future__ import annotations

import importlib
import typing

import oslo_messaging
from oslo_config import cfg
from oslo_messaging import transport as oslo_transport
from oslo_messaging.notify import notifier

from greenamqp import options

_rpc_backend = cfg.StrOpt(
    "rpc_backend",
    help="The driver of the transport where neither the program nor the option "
    "transport_url gives a URL: amqp, for instance, which then connects to localhost. "
    "Read by greenamqp's own get_rpc_transport() and get_notification_transport() "
    "alone.",
)

# Where a value comes from that somebody chose; see oslo.config's Locations.
_NOT_CHOSEN = (cfg.Locations.opt_default, cfg.Locations.set_default)

# Options that oslo.messaging reads of any configuration, and registers on cfg.CONF.
_ON_CONF_ALONE = (
    ("oslo_messaging._metrics.client", "oslo_messaging_metrics"),
    ("oslo_messaging._tracing.client", "oslo_messaging_tracing"),
)


def register_options(conf: cfg.ConfigOpts) -> None:
    """Make all options of oslo.messaging and of this driver known to `conf`: a service
    has them by what it imports, and some of them on ``cfg.CONF`` alone."""
    # Here, as it imports the rabbit driver and kombu, which no service needs.
    from oslo_messaging import opts as oslo_opts

    options.register(conf)
    for group, opts in oslo_opts.list_opts():
        if group != options.GROUP.name:
            conf.register_opts(opts, group)
    register_missed_options(conf)


def register_missed_options(conf: cfg.ConfigOpts) -> None:
    """Make known to `conf` what oslo.messaging reads of it in each call, and has
    registered on ``cfg.CONF`` alone: any other would raise NoSuchOptError then, a
    server after it has taken the request."""
    for module, name in _ON_CONF_ALONE:
        try:
            opts = getattr(importlib.import_module(module), name)
        except ImportError:
            continue  # not in this oslo.messaging
        conf.register_opts(opts, name)


def get_rpc_transport(
    conf: cfg.ConfigOpts,
    url: str | oslo_messaging.TransportURL | None = None,
    allowed_remote_exmods: list[str] | None = None,
    **kwargs: typing.Any,
) -> typing.Any:
    """As :func:`oslo_messaging.get_rpc_transport`; reads ``rpc_backend`` too.

    Nothing is connected before it is used.
    """
    return oslo_messaging.get_rpc_transport(
        conf, url or _backend(conf), allowed_remote_exmods, **kwargs
    )


def get_notification_transport(
    conf: cfg.ConfigOpts,
    url: str | oslo_messaging.TransportURL | None = None,
    allowed_remote_exmods: list[str] | None = None,
) -> typing.Any:
    """As :func:`oslo_messaging.get_notification_transport`; reads ``rpc_backend`` too.

    ``[oslo_messaging_notifications] transport_url`` comes first, then
    ``[DEFAULT] transport_url``, then ``rpc_backend``.
    """
    if not url:
        conf.register_opts(
            notifier._notifier_opts, group="oslo_messaging_notifications"
        )
        if not conf.oslo_messaging_notifications.transport_url:
            url = _backend(conf)
    return oslo_messaging.get_notification_transport(conf, url, allowed_remote_exmods)


def _backend(conf: cfg.ConfigOpts) -> oslo_messaging.TransportURL | None:
    """The URL that ``rpc_backend`` stands for, if it is set and no URL is."""
    conf.register_opts(oslo_transport._transport_opts)
    try:
        conf.register_opt(_rpc_backend)
    except cfg.DuplicateOptError:
        pass  # the program has declared it, in words of its own
    backend = conf.rpc_backend
    if not backend:
        return None
    # Read it first: where a value comes from is only known then.
    if conf.transport_url:
        place = conf.get_location("transport_url")
        if place is not None and place.location not in _NOT_CHOSEN:
            return None
    return oslo_messaging.TransportURL(conf, transport=backend)
