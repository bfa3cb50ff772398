# SPDX-License-Identifier: Apache-2.0
"""Addresses for brokers in qpidd's way, byte for byte as the predecessor's::

    all servers   PREFIX[.VHOST].EXCHANGE.TOPIC.all     broadcast...
    one server    PREFIX[.VHOST].EXCHANGE.TOPIC.SERVER  exclusive...
    any server    PREFIX[.VHOST].EXCHANGE.TOPIC         unicast...

RPC and notifications are not told apart.
"""

from __future__ import annotations

import typing

from oslo_messaging import Target

from greenamqp.buses.base import Addresser, Bus, Service, join


class LegacyAddresser(Addresser):
    """See the module."""

    def _configure(self, options: typing.Any) -> None:
        self._unicast = options.server_request_prefix
        self._multicast = options.broadcast_prefix
        self._anycast = options.group_request_prefix

    def _address(self, prefix: str, target: Target, last: str | None) -> str:
        exchange = target.exchange or self._default_exchange
        return join(".", prefix, self._vhost, exchange, target.topic, last)

    def multicast(self, target: Target, service: Service) -> str:
        return self._address(self._multicast, target, "all")

    def unicast(self, target: Target, service: Service) -> str:
        return self._address(self._unicast, target, target.server)

    def anycast(self, target: Target, service: Service) -> str:
        return self._address(self._anycast, target, None)


class Qpidd(Bus):
    """qpidd, and whatever does not say who it is, as an old one does not."""

    PRODUCT = "qpid-cpp"

    def family(self) -> type[Addresser]:
        return LegacyAddresser
