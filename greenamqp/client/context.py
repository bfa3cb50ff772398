# SPDX-License-Identifier: Apache-2.0
"""What all links of a client share: its connection, and the bus at the other end."""

from __future__ import annotations

import typing

from greenamqp import buses
from greenamqp.buses import Declaration, Management
from greenamqp.client.notices import Notices
from greenamqp.client.pursuit import Pursuits
from greenamqp.client.turns import Turns
from greenamqp.client.watch import HASTE_LASTS, Watch
from greenamqp.connection.life import BusConnection, CannotConnect
from greenamqp.engine import Connection
from greenamqp.hubs import Hub

# Prefix of the names of links, as the predecessor's: operators know them.
LINK_NAME = "openstack.org/om"


class Context:
    """See the module.  Hub's context or lock.

    :ivar engine: of the connection while that is up, else None; so are `addresser`,
        `management` and `watch`
    :ivar format: what messages are in: of the bus at hand, or the last one, or the
        likely one
    :ivar bus: who the peer says it is, or the last one
    :ivar turns: whose turn it is to attach a link that may be refused
    :ivar pursuits: where outcomes are missing
    :ivar declared: what was declared, over this connection or an earlier one, and is
        not known to have gone
    :ivar hasty_until: when the bus has seen that the latest silent host stands still
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
        self.hasty_until = 0.0
        self.closed = False
        self.engine: Connection | None = None
        self.addresser: buses.Addresser | None = None
        self.management: Management | None = None
        self.watch: Watch | None = None

    @property
    def hopeless(self) -> CannotConnect | None:
        """Why no connection is to be waited for, if the options say so."""
        return self.connection.hopeless if self.options.fail_fast else None

    def left_silent_host(self) -> None:
        """The bus may take it for alive for now."""
        self.hasty_until = self.hub.now() + HASTE_LASTS

    def down(self) -> None:
        """There is no connection any more."""
        self.engine = self.addresser = self.management = None
        if self.watch is not None:
            self.watch.stop()
            self.watch = None
