# SPDX-License-Identifier: Apache-2.0
"""Addresses for routers, byte for byte as the predecessor's::

    all servers   PREFIX/multicast[/VHOST]/EXCHANGE/TOPIC
    one server    PREFIX/unicast[/VHOST]/EXCHANGE/TOPIC/SERVER
    any server    PREFIX/anycast[/VHOST]/EXCHANGE/TOPIC

The prefix tells RPC and notifications apart; a router distributes by it and by the
word that follows.
"""

from __future__ import annotations

import typing

from oslo_messaging import Target

from greenamqp.buses.base import Addresser, Bus, Service, join

# The exchange where neither target, options nor control_exchange name one.
_LAST_RESORT = "openstack"


class RoutableAddresser(Addresser):
    """See the module."""

    def _configure(self, options: typing.Any) -> None:
        common = self._default_exchange or _LAST_RESORT
        self._prefix = {
            Service.RPC: options.rpc_address_prefix,
            Service.NOTIFY: options.notify_address_prefix,
        }
        self._exchange = {
            Service.RPC: options.default_rpc_exchange or common,
            Service.NOTIFY: options.default_notification_exchange or common,
        }
        self._unicast = options.unicast_address
        self._multicast = options.multicast_address
        self._anycast = options.anycast_address

    def _address(
        self, word: str, target: Target, service: Service, last: str | None = None
    ) -> str:
        exchange = target.exchange or self._exchange[service]
        prefix = f"{self._prefix[service]}/{word}"
        return join("/", prefix, self._vhost, exchange, target.topic, last)

    def multicast(self, target: Target, service: Service) -> str:
        return self._address(self._multicast, target, service)

    def unicast(self, target: Target, service: Service) -> str:
        return self._address(self._unicast, target, service, target.server)

    def anycast(self, target: Target, service: Service) -> str:
        return self._address(self._anycast, target, service)


class Unknown(Bus):
    """A bus of a product that has no module here: a router's addresses are names that
    most of them can make something of."""

    def family(self) -> type[Addresser]:
        return RoutableAddresser


class DispatchRouter(Unknown):
    """Apache Qpid Dispatch Router."""

    PRODUCT = "qpid-dispatch-router"
    is_router = True


class SkupperRouter(DispatchRouter):
    """skupper-router, which came of it."""

    PRODUCT = "skupper-router"
