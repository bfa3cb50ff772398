# SPDX-License-Identifier: Apache-2.0
"""Message buses: one module for each, with all that is odd about it.

A module says how its bus names nodes (an :class:`Addresser`), how it is asked for
queues (a :class:`Management`), what messages are in (a :class:`Format`), and in a
subclass of :class:`Bus` how it behaves besides. To add one is such a module and a row
in :data:`PRODUCTS`.

The peer says in its Open frame who it is: :func:`identify`. The option
``addressing_mode`` overrules how nodes are named: :func:`choose`. Nothing here waits or
does I/O, and nothing knows of connections or links.
"""

from __future__ import annotations

import typing

from greenamqp.buses.artemis import Artemis, ArtemisAddresser
from greenamqp.buses.base import Addresser, Bus, Node, Precedence, Service
from greenamqp.buses.broker_j import BrokerJ, BrokerJAddresser
from greenamqp.buses.embedded import Embedded
from greenamqp.buses.format import BadMessage, Format, Request
from greenamqp.buses.management import Again, Declaration, Management, Refused
from greenamqp.buses.predecessor import PREDECESSOR
from greenamqp.buses.qpidd import LegacyAddresser, Qpidd
from greenamqp.buses.rabbitmq import RabbitMQ
from greenamqp.buses.rabbitmq.before_4 import Rabbit3Addresser
from greenamqp.buses.rabbitmq.declared import DeclaredAddresser, TooOld
from greenamqp.buses.rabbitmq.format import RABBIT
from greenamqp.buses.rabbitmq.rabbit import RabbitAddresser
from greenamqp.buses.routers import (
    DispatchRouter,
    RoutableAddresser,
    SkupperRouter,
    Unknown,
)
from greenamqp.engine import Connection
from greenamqp.policy import Policies

__all__ = [
    "PREDECESSOR",
    "PRODUCTS",
    "RABBIT",
    "Addresser",
    "Again",
    "BadMessage",
    "Bus",
    "Declaration",
    "Format",
    "Management",
    "Node",
    "Precedence",
    "Refused",
    "Request",
    "Service",
    "choose",
    "has_vhost_prefix",
    "identify",
    "likely_format",
    "of_peer",
]

#: The buses that have a module, by the product in their Open frame.
PRODUCTS: dict[str, type[Bus]] = {
    "": Qpidd,
    **{
        bus.PRODUCT: bus
        for bus in (
            Artemis,
            BrokerJ,
            DispatchRouter,
            Embedded,
            Qpidd,
            RabbitMQ,
            SkupperRouter,
        )
    },
}

# What the option addressing_mode can ask for.
_MODES: dict[str, type[Addresser]] = {
    "legacy": LegacyAddresser,
    "routable": RoutableAddresser,
    "rabbit": RabbitAddresser,
    "declared": DeclaredAddresser,
    "rabbit3": Rabbit3Addresser,
    "artemis": ArtemisAddresser,
    "broker-j": BrokerJAddresser,
}


def identify(
    product: str = "", version: str = "", capabilities: tuple[str, ...] = ()
) -> Bus:
    """The bus that says of itself what is given."""
    return PRODUCTS.get(product, Unknown)(product, version, capabilities)


def of_peer(connection: Connection) -> Bus:
    """The bus at the other end of a connection that is open."""
    properties = connection.remote_properties
    return identify(
        str(properties.get("product", "")),
        str(properties.get("version", "")),
        connection.remote_offered_capabilities,
    )


def has_vhost_prefix(product: str) -> bool:
    """Whether a bus of this product is asked for a virtual host as ``vhost:NAME``."""
    return identify(product).has_vhost_prefix


def likely_format(options: typing.Any) -> Format:
    """What messages will be in, as far as that can be known before a bus is."""
    return _MODES.get(options.addressing_mode, Addresser).format


def choose(
    options: typing.Any,
    default_exchange: str | None,
    vhost: str | None,
    bus: Bus,
    policies: Policies | None = None,
) -> Addresser:
    """The addresser for a bus.

    :param options: the group of options
    :param default_exchange: the transport's own, for targets that name none
    :param vhost: what goes into each address as virtual host, or None
    :param policies: what is asked of queues
    """
    mode = options.addressing_mode
    family = bus.family() if mode == "dynamic" else _MODES[mode]
    if family.has_virtual_hosts:
        vhost = None
    if bus.major < family.since:
        family = TooOld
    return family(options, default_exchange, vhost, bus, policies)
