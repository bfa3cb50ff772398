# SPDX-License-Identifier: Apache-2.0
"""Whether a transport URL is one that the demo can use, before anything is started.

A dozen processes that each find out by themselves would say so a dozen times.
"""

from __future__ import annotations

import contextlib
import logging
import urllib.parse
from collections.abc import Iterator

import oslo_messaging
from oslo_config import cfg

from greenamqp import buses, driver, hubs, options
from greenamqp.buses import Management
from greenamqp.connection.life import BusConnection
from greenamqp.engine import Connection
from greenamqp.policy import Policies


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


class _Connected:
    """A connection of the parent's own, and the bus at its end.

    :ivar up: whether it is open
    :ivar addresser: what targets are there, once it was up
    :ivar management: what may be asked of the bus, once it was up
    """

    addresser: buses.Addresser
    management: Management

    def __init__(self, url: str) -> None:
        self.up = False
        self.hub = hubs.get("blocking")
        self.waiter = self.hub.waiter()
        parsed = oslo_messaging.TransportURL.parse(cfg.ConfigOpts(), url)
        self._vhost = parsed.virtual_host or None
        self._options = options.of(parsed.conf, parsed)
        self._policies = Policies(
            self._options, options.RabbitOptions(parsed.conf, parsed)
        )
        self.connection = BusConnection(
            self.hub,
            driver.hosts_of(parsed),
            self._options,
            self._vhost,
            buses.has_vhost_prefix,
            self,
        )

    def connection_up(self, engine: Connection) -> None:
        """See Owner of the connection; so is the next."""
        properties = engine.remote_properties or {}
        bus = buses.identify(
            str(properties.get("product") or ""), str(properties.get("version") or "")
        )
        self.addresser = buses.choose(
            self._options,
            None,
            self._vhost if self._options.pseudo_vhost else None,
            bus,
            self._policies,
        )
        self.management = self.addresser.dialect(engine, self.connection.flush_soon)
        self.up = True
        self.waiter.wake()

    def connection_lost(self, reason: str) -> None:
        self.up = False
        self.waiter.wake()


@contextlib.contextmanager
def connected(url: str) -> Iterator[_Connected]:
    """Connect to the bus, as any process of the demo would, and say goodbye at the end.
    The URL has been checked.

    Raises Unusable with the reason of each host, as soon as all were tried in vain.
    """
    # Each failure is a warning there; what is raised says the same.
    log = logging.getLogger("greenamqp.client")
    level = log.level
    log.setLevel(logging.CRITICAL)
    bus = _Connected(url)
    hub, connection = bus.hub, bus.connection
    goodbye = hub.waiter()
    try:
        with hub.lock:
            connection.wanted()
        # Every attempt has a limit of its own.
        while not bus.up and not connection.exhausted:
            bus.waiter.wait(None)
        if not bus.up:
            raise Unusable(f"no message bus at {connection.last_failure}")
        yield bus
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


def one_queue(url: str) -> str:
    """Why the bus keeps no two exchanges of one topic apart; empty: it does.

    Raises Unusable as :func:`connected` does.
    """
    with connected(url) as bus:
        return bus.addresser.one_queue
