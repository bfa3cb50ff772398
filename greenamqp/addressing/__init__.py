# SPDX-License-Identifier: Apache-2.0
"""Targets to termini: what a Target and a kind of traffic are on the message bus.

One family per kind of bus, one file per family.  The peer says in its Open frame who
it is, the option ``addressing_mode`` overrules it; :func:`choose` decides.
"""

from __future__ import annotations

import typing

from greenamqp.addressing.artemis import ArtemisAddresser
from greenamqp.addressing.base import RABBITMQ, Addresser, Bus, Node, Service
from greenamqp.addressing.broker_j import BrokerJAddresser
from greenamqp.addressing.declared import DeclaredAddresser, TooOld
from greenamqp.addressing.legacy import LegacyAddresser
from greenamqp.addressing.rabbit import RabbitAddresser
from greenamqp.addressing.rabbit3 import Rabbit3Addresser
from greenamqp.addressing.routable import RoutableAddresser
from greenamqp.formats import Format
from greenamqp.policy import Policies

__all__ = [
    "Addresser",
    "Bus",
    "Node",
    "Service",
    "choose",
    "has_vhost_prefix",
    "likely_format",
]

_FAMILIES: dict[str, type[Addresser]] = {
    "legacy": LegacyAddresser,
    "routable": RoutableAddresser,
    "rabbit": RabbitAddresser,
    "declared": DeclaredAddresser,
    "rabbit3": Rabbit3Addresser,
    "artemis": ArtemisAddresser,
    "broker-j": BrokerJAddresser,
}

# What fits a product; one that does not say who it is may be an old qpidd.
_MODES = {
    "": "legacy",
    "greenamqp": "legacy",
    "qpid-cpp": "legacy",
    ArtemisAddresser.PRODUCT: "artemis",
    BrokerJAddresser.PRODUCT: "broker-j",
}

# Those for RabbitMQ, which has virtual hosts of its own, and among them those that need
# one that can be asked to declare things.
_RABBITMQ = ("rabbit", "declared", "rabbit3")
_DECLARING = ("rabbit", "declared")


def has_vhost_prefix(product: str) -> bool:
    """Whether a bus of this product is asked for a virtual host as ``vhost:NAME``."""
    return Bus(product).has_vhost_prefix


def likely_format(options: typing.Any) -> Format:
    """What messages will be in, as far as that can be known before a bus is."""
    return _FAMILIES.get(options.addressing_mode, Addresser).format


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
    if mode == "dynamic":
        mode = _fitting(bus)
    family = _FAMILIES[mode]
    if mode in _RABBITMQ:
        vhost = None
    if mode in _DECLARING and bus.major < DeclaredAddresser.SINCE:
        family = TooOld
    return family(options, default_exchange, vhost, bus, policies)


def _fitting(bus: Bus) -> str:
    """The mode for a bus that says who it is."""
    if bus.product == RABBITMQ:
        return "rabbit" if bus.major >= DeclaredAddresser.SINCE else "rabbit3"
    return _MODES.get(bus.product, "routable")
