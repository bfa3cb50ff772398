# SPDX-License-Identifier: Apache-2.0
"""One connection for a command, which is made once and not again."""

from __future__ import annotations

import contextlib
import logging
import typing
from collections.abc import Iterator, Sequence

from greenamqp import buses, hubs
from greenamqp.connection.failover import Host
from greenamqp.connection.life import BusConnection
from greenamqp.hubs import Waiter


class _Owner:
    """Hears what becomes of the connection."""

    def __init__(self, waiter: Waiter) -> None:
        self.up = False
        self._waiter = waiter

    def connection_up(self, engine: object) -> None:
        self.up = True
        self._waiter.wake()

    def connection_lost(self, reason: str) -> None:
        self.up = False
        self._waiter.wake()


@contextlib.contextmanager
def contact(
    hosts: Sequence[Host],
    options: typing.Any,
    virtual_host: str | None,
    *,
    hub: str = "blocking",
    patience: float | None = None,
) -> Iterator[BusConnection]:
    """Connect as any process of a service would, and say goodbye at the end.

    The connection is up, or every host was tried in vain, once: then `last_failure`
    has the reason of each.  Whoever looks closer does so under the hub's lock.

    :param hub: the name of the hub; ``blocking`` has no thread, and looks a name up
        for as long as the resolver likes
    :param patience: seconds for one attempt, and for all that belongs to one host;
        None: as a service has it
    """
    # Each failure is a warning there; whoever asked says the same.
    log = logging.getLogger("greenamqp.client")
    level = log.level
    log.setLevel(logging.CRITICAL)
    engaged = hubs.get(hub)
    waiter = engaged.waiter()
    owner = _Owner(waiter)
    connection = BusConnection(
        engaged,
        hosts,
        options,
        virtual_host,
        buses.has_vhost_prefix,
        owner,
        patience,
    )
    deadline = None
    if patience is not None:
        # An attempt ends a moment before, and has more to say.
        deadline = engaged.now() + patience * len(hosts) + 0.5
    goodbye = engaged.waiter()
    try:
        with engaged.lock:
            connection.wanted()
        while not owner.up and not connection.exhausted:
            if not waiter.wait(deadline):
                break
        yield connection
    finally:
        with engaged.lock:
            connection.stop()
            connection.begin_close(goodbye)
        try:
            engaged.run(connection.closing())
        finally:
            with engaged.lock:
                connection.put_away()
            connection.release()
            log.setLevel(level)
