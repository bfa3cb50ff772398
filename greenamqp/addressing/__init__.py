# SPDX-License-Identifier: Apache-2.0
"""Targets to termini: what a Target and a kind of traffic are on the message bus.

One family per kind of bus, one file per family.  The peer says in its Open frame who
it is, the option ``addressing_mode`` overrules it; :func:`choose` decides.
"""

from __future__ import annotations

import typing

from greenamqp.addressing.base import RABBITMQ, Addresser, Bus, Node, Service
from greenamqp.addressing.declared import DeclaredAddresser, TooOld
from greenamqp.addressing.legacy import LegacyAddresser
from greenamqp.addressing.rabbit3 import Rabbit3Addresser
from greenamqp.addressing.routable import RoutableAddresser
from greenamqp.policy import Policies

__all__ = ["Addresser", "Bus", "Node", "Service", "choose"]

# Peers that want legacy addresses: qpidd, and whoever does not say who it is.
_LEGACY_PRODUCTS = ("qpid-cpp", "greenamqp", "")

_FAMILIES: dict[str, type[Addresser]] = {
    "legacy": LegacyAddresser,
    "routable": RoutableAddresser,
    "declared": DeclaredAddresser,
    "rabbit3": Rabbit3Addresser,
}


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
        if bus.product == RABBITMQ:
            has_management = bus.major >= DeclaredAddresser.SINCE
            mode = "declared" if has_management else "rabbit3"
        else:
            mode = "legacy" if bus.product in _LEGACY_PRODUCTS else "routable"
    family = _FAMILIES[mode]
    if mode == "declared" and bus.major < DeclaredAddresser.SINCE:
        family = TooOld
    if family in (DeclaredAddresser, Rabbit3Addresser):
        vhost = None  # RabbitMQ has virtual hosts of its own
    return family(options, default_exchange, vhost, bus, policies)
