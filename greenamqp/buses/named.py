# SPDX-License-Identifier: Apache-2.0
"""Names for brokers that give a meaning to slashes, dots and double colons::

    all servers    PREFIX.multicast:[VHOST:]EXCHANGE:TOPIC
    one server     PREFIX.unicast:[VHOST:]EXCHANGE:TOPIC:SERVER
    any server     PREFIX.anycast:[VHOST:]EXCHANGE:TOPIC

These are the addresses that routers get, with dots in the prefix: a broker that has
settings for all that begins with certain words parts these by dots.  Between names
there are colons, so that a dot in one of them (they are host names, often) makes no two
targets the same.  What has a meaning to a broker is encoded as in a URL.
"""

from __future__ import annotations

import re
import typing

from oslo_messaging import Target

from greenamqp.buses.base import Service, join
from greenamqp.buses.routers import RoutableAddresser

# A slash parts exchange and key in Broker-J; in Artemis two colons part address and
# queue, "#" and "*" stand for any words, and a question mark ends the address.
_SPECIAL = re.compile(r"[%/:#*?]")


def quote(name: str) -> str:
    """A name as a part of another one."""
    return _SPECIAL.sub(lambda found: f"%{ord(found[0]):02X}", name)


class NamedAddresser(RoutableAddresser):
    """See the module."""

    def _configure(self, options: typing.Any) -> None:
        super()._configure(options)
        # These brokers keep the queues of servers that left.  Seconds.
        self._cast_ttl: float | None = options.rpc_cast_ttl or None

    def _address(
        self, word: str, target: Target, service: Service, last: str | None = None
    ) -> str:
        exchange = target.exchange or self._exchange[service]
        prefix = quote(f"{self._prefix[service]}.{word}".replace("/", "."))
        names = (self._vhost, exchange, target.topic, last)
        return join(":", prefix, *(quote(name) for name in names if name))

    @staticmethod
    def _pool_queue(pool: str, address: str) -> str:
        """The queue of a pool for what is sent to `address`."""
        return f"pool:{quote(pool)}:{address}"
