# SPDX-License-Identifier: Apache-2.0
"""Two routers of one process as a mesh: what each knows of the other's receivers.

A router hears of the first receiver of an address at its neighbour, and that the last
one went, with a delay; of a temporary address at once.  Until it has heard, it acts on
what it knew.  To each of its addresses the neighbour's receivers are one more receiver,
which always has credit: what finds none over there waits there.

A router that dies says nothing.  Its neighbour thinks its receivers there for a while
and releases what is sent to them; what was under way to it comes back as lost.

All of it belongs to one thread, that of both routers.  No I/O.
"""

from __future__ import annotations

import logging
import typing

from greenamqp.broker.core import Core
from greenamqp.broker.namespace import Refused
from greenamqp.broker.router import (
    LOST,
    RELEASED,
    Result,
    RouterAddress,
    RouterNamespace,
    Transit,
    is_temporary,
)

LOG = logging.getLogger(__name__)

# More messages than senders have credit for.
_ALWAYS = 1_000_000_000


class Timer(typing.Protocol):
    """A function that is going to be called."""

    def cancel(self) -> None:
        """It will not be called."""


CallLater = typing.Callable[[float, typing.Callable[[], None]], Timer]


class _Beyond:
    """The receivers that the neighbour has for an address."""

    def __init__(self, view: _View, vhost: str, name: str) -> None:
        self.credit = _ALWAYS
        self.unsettled = 0
        self._view = view
        self.place = (vhost, name)

    def deliver(self, transit: Transit, data: bytes, settled: bool) -> None:
        self._view.pass_on(self, transit, data, settled)


class _View:
    """What a router knows of its neighbour.  There it is the sender of messages."""

    def __init__(self, core: Core, other: Core, call_later: CallLater) -> None:
        self.core = core
        self.other = other
        self._call_later = call_later
        self._alive = True
        self._news: dict[tuple[str, str], None] = {}
        self._timer: Timer | None = None
        # Messages that the other has and did not settle, and who they went to.
        self._under_way: dict[Transit, _Beyond] = {}
        other.on_receivers = self._changed
        for vhost, namespace in other.routers():
            for address in namespace.addresses.values():
                if address.receivers:
                    self._changed(vhost, address.name)

    # -- what it knows

    def _changed(self, vhost: str, name: str) -> None:
        """The neighbour has receivers for an address, or has none any more."""
        if is_temporary(name):
            self._learn(vhost, name)
            return
        self._news[vhost, name] = None
        if self._timer is None:
            delay = self.core.settings.mesh_delay
            self._timer = self._call_later(delay, self._learn_all)

    def _learn_all(self) -> None:
        self._timer = None
        news, self._news = self._news, {}
        for vhost, name in news:
            self._learn(vhost, name)

    def _learn(self, vhost: str, name: str) -> None:
        found = self._there(vhost, name)
        try:
            namespace = self.core.namespace(vhost)
            assert isinstance(namespace, RouterNamespace)
            if found is not None and found.receivers:
                address = namespace.resolve(name)
                if address.beyond is None:
                    address.set_beyond(_Beyond(self, vhost, name))
            elif (known := namespace.lookup(name)) is not None:
                known.set_beyond(None)
                namespace.release(known)
        except Refused as exc:
            LOG.warning("%s of the other router is left out: %s", name, exc)

    def _there(self, vhost: str, name: str) -> RouterAddress | None:
        namespace = self.other.namespaces.get(vhost)
        assert namespace is None or isinstance(namespace, RouterNamespace)
        return namespace.lookup(name) if namespace is not None else None

    def lost(self) -> None:
        """The neighbour died, and what it had with it."""
        self._silence()
        under_way, self._under_way = self._under_way, {}
        for transit in under_way:
            transit.outcome(LOST)
        delay = self.core.settings.mesh_timeout
        self._timer = self._call_later(delay, self.forget)

    def forget(self) -> None:
        """There is no neighbour."""
        self._silence()
        self._under_way.clear()
        for _, namespace in self.core.routers():
            for address in list(namespace.addresses.values()):
                address.set_beyond(None)
                namespace.release(address)

    def _silence(self) -> None:
        self._alive = False
        self.other.on_receivers = None
        self._news.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- messages

    def pass_on(
        self, beyond: _Beyond, transit: Transit, data: bytes, settled: bool
    ) -> None:
        """Have the neighbour deliver a message to its own receivers."""
        address = self._there(*beyond.place) if self._alive else None
        if address is not None:
            if not settled:
                self._under_way[transit] = beyond
                beyond.unsettled += 1
            address.send(self, transit, data, settled, farther=False)
        elif not settled:
            transit.outcome(RELEASED)

    def settle(self, token: Transit, result: Result) -> None:
        """The neighbour knows the outcome of what was passed on to it."""
        beyond = self._under_way.pop(token, None)
        if beyond is not None:
            beyond.unsettled -= 1
            token.outcome(result)

    def passed(self, token: Transit) -> None:
        """Nobody waits for a settled message."""

    def give_credit(self) -> None:
        """It needs none."""


class Mesh:
    """Two routers, side by side from construction on."""

    def __init__(self, one: Core, other: Core, call_later: CallLater) -> None:
        self._views = [_View(one, other, call_later), _View(other, one, call_later)]

    def died(self, core: Core) -> None:
        """One of the two is gone: to be called before its connections are."""
        for view in self._views:
            if view.core is core:
                view.forget()
        for view in self._views:
            if view.core is not core:
                view.lost()

    def end(self) -> None:
        """They have nothing to do with each other any more."""
        for view in self._views:
            view.forget()
