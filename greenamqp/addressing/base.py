# SPDX-License-Identifier: Apache-2.0
"""What every family of addresses provides."""

from __future__ import annotations

import abc
import dataclasses
import enum
import typing

from oslo_messaging import Target

from greenamqp.engine import Terminus


class Service(enum.Enum):
    """The two kinds of traffic, which some buses keep apart."""

    RPC = "rpc"
    NOTIFY = "notify"


@dataclasses.dataclass(frozen=True)
class Bus:
    """Who the peer says it is, in its Open frame."""

    product: str = ""
    version: str = ""
    capabilities: tuple[str, ...] = ()

    @property
    def is_router(self) -> bool:
        """Whether nothing is stored between sender and receiver."""
        return self.product in ("qpid-dispatch-router", "skupper-router")

    @property
    def has_shared_queues(self) -> bool:
        """Whether ``address::queue`` names a queue of its own on an address, which
        gets a copy of each message and may have many consumers."""
        return self.product == "greenamqp"


class Addresser(abc.ABC):
    """Makes termini of targets, for one connection to one bus.

    :param options: the group of options
    :param default_exchange: for targets that name none
    :param vhost: goes into each address, where the bus has no virtual hosts
    """

    def __init__(
        self,
        options: typing.Any,
        default_exchange: str | None,
        vhost: str | None,
        bus: Bus,
    ) -> None:
        self._default_exchange = default_exchange
        self._vhost = vhost
        self._bus = bus

    @abc.abstractmethod
    def multicast(self, target: Target, service: Service) -> str:
        """The address of all servers of a target."""

    @abc.abstractmethod
    def unicast(self, target: Target, service: Service) -> str:
        """The address of the one server that the target names."""

    @abc.abstractmethod
    def anycast(self, target: Target, service: Service) -> str:
        """The address of any server of a target."""

    def destination(self, target: Target, service: Service) -> Terminus:
        """Where messages for `target` are sent."""
        if target.fanout:
            return Terminus(self.multicast(target, service))
        if target.server:
            return Terminus(self.unicast(target, service))
        return Terminus(self.anycast(target, service))

    def rpc_sources(self, target: Target) -> list[Terminus]:
        """What a server of `target` receives from."""
        addresses = [
            self.multicast(target, Service.RPC),
            self.anycast(target, Service.RPC),
        ]
        if target.server:
            addresses.insert(0, self.unicast(target, Service.RPC))
        return [Terminus(address) for address in addresses]

    def notification_sources(self, target: Target, pool: str | None) -> list[Terminus]:
        """What a listener for the notifications of `target` receives from.

        :raises NotImplementedError: if a pool is named and the bus has none
        """
        address = self.anycast(target, Service.NOTIFY)
        if pool is None:
            return [Terminus(address)]
        if not self._bus.has_shared_queues:
            raise NotImplementedError(
                f"pool {pool!r}: the message bus "
                f"({self._bus.product or 'of unknown product'}) gives no way to "
                "have each pool get a copy of each notification"
            )
        return [Terminus(f"{address}::{pool}.{address}")]


def join(separator: str, *parts: str | None) -> str:
    """The parts that are there, joined."""
    return separator.join(part for part in parts if part)
