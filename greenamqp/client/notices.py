# SPDX-License-Identifier: Apache-2.0
"""Log lines about links, of which there may be hundreds on a connection.

What ends them, ends many at once: a session, an administrator who deletes queues, a
bus that goes down link by link.  Of the lines that one wake-up of the hub would bring,
those of one kind become one line, with the first as an example and their number.
"""

from __future__ import annotations

import dataclasses
import logging
import typing

from greenamqp.hubs import Countdown, Hub, logs

LOG = logging.getLogger("greenamqp.client")

# Characters of a line: peers choose ids, and the addresses that they want replies at.
LONGEST = 2000


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of line: its texts, with ``{count}`` and the values given to `add`."""

    level: int
    one: str
    many: str


LINK_CLOSED = Kind(
    logging.WARNING,
    "the link to {address} was closed: {reason}",
    "{count} links were closed, first that to {address}: {reason}",
)
SUBSCRIPTION_CLOSED = Kind(
    logging.ERROR,
    "the subscription to {address} was closed by the peer: {reason}; trying again in "
    "{delay} s",
    "{count} subscriptions were closed by the peer, first that to {address}: {reason}; "
    "trying again in {delay} s",
)
NOT_SUBSCRIBED = Kind(
    logging.ERROR,
    "cannot subscribe to {address}: {reason}",
    "cannot make {count} subscriptions, first that to {address}: {reason}",
)
NOT_SENT = Kind(
    logging.WARNING,
    "{reason}",
    "{count} messages that nobody waits for could not be sent; the first: {reason}",
)
NOT_SETTLED = Kind(
    logging.WARNING,
    "message {id} from {address} cannot be {outcome}, as its link is gone: the "
    "message bus will deliver it again",
    "{count} messages cannot be settled, as their links are gone: the message bus will "
    "deliver them again; the first: {id} from {address}",
)
LOST = Kind(
    logging.WARNING,
    "message {id} from {address} cannot be requeued, and is lost: it was settled when "
    "it came, and its listener takes no more",
    "{count} messages cannot be requeued, and are lost: they were settled when they "
    "came, and their listeners take no more; the first: {id} from {address}",
)
TOO_LATE = Kind(
    logging.WARNING,
    "a message from {address} came {late:.1f} s after its expiry time, and was "
    "rejected: its sender has given it up",
    "{count} messages came after their expiry time, and were rejected: their senders "
    "have given them up; the first from {address}, {late:.1f} s late",
)
LATE = Kind(
    logging.WARNING,
    "a reply came after its call had been given up, and was dropped (to request {id})",
    "{count} replies came after their calls had been given up, and were dropped (the "
    "first to request {id})",
)
STRAY = Kind(
    logging.WARNING,
    "a reply to a request that was not made here was dropped (to request {id})",
    "{count} replies to requests that were not made here were dropped (the first to "
    "request {id})",
)


class Notices:
    """Collects lines and writes them before long.  Hub's context or lock."""

    def __init__(self, hub: Hub) -> None:
        self._collected: dict[Kind, tuple[dict[str, typing.Any], int]] = {}
        self._pause = Countdown(hub)
        self._closed = False

    def add(self, kind: Kind, **values: typing.Any) -> None:
        """One more of this kind."""
        first, count = self._collected.get(kind, (values, 0))
        self._collected[kind] = (first, count + 1)
        if self._closed:
            self.write()
        elif not self._pause.runs:
            self._pause.call_in(0, self.write)

    def drop(self, *kinds: Kind) -> None:
        """Forget what there is of these kinds."""
        for kind in kinds:
            self._collected.pop(kind, None)

    def close(self) -> None:
        """Write what there is, and from now on each line at once: the hub may run no
        more."""
        self._closed = True
        self.write()

    def write(self) -> None:
        """Write what there is."""
        self._pause.cancel()
        collected, self._collected = self._collected, {}
        for kind, (values, count) in collected.items():
            text = (kind.one if count == 1 else kind.many).format(count=count, **values)
            LOG.log(kind.level, f"%.{LONGEST}s", logs.printable(text))
