# SPDX-License-Identifier: Apache-2.0
"""Whether a transport URL is one that the demo can use, before anything is started.

A dozen processes that each find out by themselves would say so a dozen times.
"""

from __future__ import annotations

import logging
import urllib.parse

import oslo_messaging
from oslo_config import cfg

from greenamqp import buses, driver, hubs, options
from greenamqp.connection.life import BusConnection
from greenamqp.hubs import Waiter


class Unusable(Exception):
    """The demo cannot use that URL; the text says why, in one line."""


def check_url(url: str) -> list[int]:
    """Have the driver read the URL; returns the ports in it.  Connects to nothing.

    Raises Unusable for what is no URL of this driver's, has no host, or says what the
    driver does not know.
    """
    scheme, _, rest = url.partition("://")
    if not rest or rest.startswith(("/", "?")):
        raise Unusable(
            "--url wants a transport URL with a host, such as amqp://host:5672"
        )
    if scheme not in options.SCHEMES:
        raise Unusable(
            f"{scheme}:// is not of this driver, which the demo is about: its URLs "
            "begin with amqp:// or amqps://"
        )
    try:
        # Its ValueError names the port; oslo.messaging's does not.
        for host in urllib.parse.urlsplit(url).netloc.split(","):
            _ = urllib.parse.urlsplit(f"//{host}").port
        transport = oslo_messaging.get_rpc_transport(cfg.ConfigOpts(), url=url)
    except (ValueError, oslo_messaging.DriverLoadFailure) as exc:
        raise Unusable(f"--url: {exc}") from exc
    transport.cleanup()
    parsed = oslo_messaging.TransportURL.parse(cfg.ConfigOpts(), url)
    return [host.port for host in driver.hosts_of(parsed)]


class _Owner:
    """Hears what becomes of the connection."""

    def __init__(self, waiter: Waiter) -> None:
        self.up = False
        self._waiter = waiter

    def connection_up(self, engine: object) -> None:
        self.up = True
        self._waiter.wake()

    def connection_lost(self, reason: str) -> None:
        self.up = False
        self._waiter.wake()


def connect(url: str) -> None:
    """Connect to the bus once, as any process of the demo would, and say goodbye.
    The URL has been checked.

    Raises Unusable with the reason of each host, as soon as all were tried in vain.
    """
    # Each failure is a warning there; what is raised says the same.
    log = logging.getLogger("greenamqp.client")
    level = log.level
    log.setLevel(logging.CRITICAL)
    hub = hubs.get("blocking")
    waiter = hub.waiter()
    owner = _Owner(waiter)
    parsed = oslo_messaging.TransportURL.parse(cfg.ConfigOpts(), url)
    connection = BusConnection(
        hub,
        driver.hosts_of(parsed),
        options.of(parsed.conf, parsed),
        parsed.virtual_host or None,
        buses.has_vhost_prefix,
        owner,
    )
    goodbye = hub.waiter()
    try:
        with hub.lock:
            connection.wanted()
        # Every attempt has a limit of its own.
        while not owner.up and not connection.exhausted:
            waiter.wait(None)
        if not owner.up:
            raise Unusable(f"no message bus at {connection.last_failure}")
    finally:
        with hub.lock:
            connection.stop()
            connection.begin_close(goodbye)
        try:
            connection.wait_closed()
        finally:
            with hub.lock:
                connection.put_away()
            connection.release()
            log.setLevel(level)
