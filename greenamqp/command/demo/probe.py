# SPDX-License-Identifier: Apache-2.0
"""Whether a transport URL is one that the demo can use, before anything is started.

A dozen processes that each find out by themselves would say so a dozen times.
"""

from __future__ import annotations

import contextlib
import typing
import urllib.parse
from collections.abc import Iterator

import oslo_messaging
from oslo_config import cfg

from greenamqp import buses, driver, options
from greenamqp.command.contact import contact
from greenamqp.connection.life import BusConnection
from greenamqp.connection.state import State
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

    :ivar addresser: what targets are there
    :ivar management: what may be asked of the bus
    """

    def __init__(self, connection: BusConnection, transport: typing.Any) -> None:
        self.connection = connection
        self.hub = connection.hub
        given = options.of(transport.conf, transport)
        vhost = transport.virtual_host if given.pseudo_vhost else None
        policies = Policies(given, options.RabbitOptions(transport.conf, transport))
        with self.hub.lock:
            engine = connection.engine
            if engine is None:
                raise Unusable(f"no message bus at {connection.last_failure}")
            bus = buses.of_peer(engine)
            self.addresser = buses.choose(given, None, vhost or None, bus, policies)
            self.management = self.addresser.dialect(engine, connection.flush_soon)

    @property
    def up(self) -> bool:
        """Whether it is still open."""
        return self.connection.state is State.UP


@contextlib.contextmanager
def connected(url: str) -> Iterator[_Connected]:
    """Connect to the bus, as any process of the demo would, and say goodbye at the end.
    The URL has been checked.

    Raises Unusable with the reason of each host, as soon as all were tried in vain.
    """
    parsed = oslo_messaging.TransportURL.parse(cfg.ConfigOpts(), url)
    with contact(
        driver.hosts_of(parsed),
        options.of(parsed.conf, parsed),
        parsed.virtual_host or None,
    ) as connection:
        if connection.state is not State.UP:
            raise Unusable(f"no message bus at {connection.last_failure}")
        yield _Connected(connection, parsed)


def one_queue(url: str) -> str:
    """Why the bus keeps no two exchanges of one topic apart; empty: it does.

    Raises Unusable as :func:`connected` does.
    """
    with connected(url) as bus:
        return bus.addresser.one_queue
