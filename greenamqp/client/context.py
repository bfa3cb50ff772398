# SPDX-License-Identifier: Apache-2.0
"""What all links of a client share: its connection, and the bus at the other end."""

from __future__ import annotations

import math
import typing

from greenamqp import buses
from greenamqp.buses import Declaration, Management
from greenamqp.client.notices import Notices
from greenamqp.client.pursuit import Pursuits
from greenamqp.client.turns import Turns
from greenamqp.client.watchdog import Watchdog
from greenamqp.connection.life import BusConnection, CannotConnect
from greenamqp.engine import Connection
from greenamqp.hubs import Hub

# For so long after a silent host was left the bus may take it for alive, and give it
# messages for the links that were over it: RabbitMQ's nodes give one of them up after
# net_ticktime, a minute, and a quarter more.  Seconds.
GIVEN_UP_AFTER = 75.0

# Prefix of the names of links, as the predecessor's: operators know them.
LINK_NAME = "openstack.org/om"


class Context:
    """See the module.  Hub's context or lock.

    :ivar engine: of the connection while that is up, else None; so are `addresser`,
        `management` and `watchdog`
    :ivar format: what messages are in: of the bus at hand, or the last one, or the
        likely one
    :ivar bus: who the peer says it is, or the last one
    :ivar turns: whose turn it is to attach a link that may be refused
    :ivar pursuits: where outcomes are missing
    :ivar declared: what was declared, over this connection or an earlier one, and is
        not known to have gone
    :ivar departing: what is to be done when the bus has detached links that are wanted
        no longer, or when all end
    :ivar left: how often a host was left that was silent
    :ivar left_at: when the latest of them was
    :ivar closed: whether the client was closed
    """

    def __init__(
        self, hub: Hub, options: typing.Any, connection: BusConnection
    ) -> None:
        self.hub = hub
        self.options = options
        self.connection = connection
        self.flush = connection.flush
        self.flush_soon = connection.flush_soon
        self.flush_late = connection.flush_late
        self.notices = Notices(hub)
        self.format = buses.likely_format(options)
        self.bus = buses.identify()
        self.turns = Turns()
        self.pursuits = Pursuits()
        self.declared: set[Declaration] = set()
        self.departing: dict[typing.Callable[[], None], None] = {}
        self.left = 0
        self.left_at = -math.inf
        self.closed = False
        self.engine: Connection | None = None
        self.addresser: buses.Addresser | None = None
        self.management: Management | None = None
        self.watchdog: Watchdog | None = None

    @property
    def hopeless(self) -> CannotConnect | None:
        """Why no connection is to be waited for, if the options say so."""
        return self.connection.hopeless if self.options.fail_fast else None

    def left_silent_host(self) -> None:
        """The links over it may still be given messages."""
        self.left += 1
        self.left_at = self.hub.now()

    @property
    def outdated_at(self) -> float:
        """When the bus has given up the links over the latest silent host."""
        return self.left_at + GIVEN_UP_AFTER

    def precedence(self, node: buses.Node) -> dict[str, typing.Any]:
        """Properties of a link that is to be given messages before those that were over
        a silent host; none where it is not."""
        wanted = node.precedence
        if wanted is buses.Precedence.BRIEFLY and self.hub.now() >= self.outdated_at:
            wanted = buses.Precedence.NEVER
        if wanted is buses.Precedence.NEVER or not self.left:
            return {}
        return self.bus.precedence(self.left)

    def down(self) -> None:
        """There is no connection any more."""
        self.engine = self.addresser = self.management = None
        self.departing.clear()
        if self.watchdog is not None:
            self.watchdog.stop()
            self.watchdog = None
