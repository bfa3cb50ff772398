# SPDX-License-Identifier: Apache-2.0
"""The embedded broker in its own role: qpidd's addresses, with queues and policies.

Nothing is declared.  What stays there is the queue of a pool, which goes with a link
that asks for it by its expiry policy, and for some time the address for replies of a
client whose connection was lost.
"""

from __future__ import annotations

import typing

from greenamqp import chance
from greenamqp.buses import management
from greenamqp.buses.base import Addresser, Bus
from greenamqp.buses.management import Batch, Declarations, Refused
from greenamqp.buses.qpidd import LegacyAddresser
from greenamqp.engine import (
    EXPIRE_WITH_LINK,
    LocalProtocolError,
    Receiver,
    RemoteError,
    Terminus,
)


class Management(management.Management):
    """See the module."""

    def remove(
        self,
        nodes: typing.Iterable[tuple[str | None, Declarations]],
        done: management.Done,
    ) -> None:
        """See the base class."""
        bound = {address for address, _ in nodes if address and "::" in address}
        if not bound:
            done(None)
            return
        batch = Batch(len(bound), done)
        for address in sorted(bound):
            self._remove(address, batch)
        self._flush()

    def _remove(self, address: str, batch: Batch) -> None:
        def attached(link: Receiver) -> None:
            link.on_detached = None
            link.close()
            self._flush()
            batch.one_less(None)

        def detached(link: Receiver, error: RemoteError | None) -> None:
            if not link.connection.ended:
                batch.one_less(Refused.by_link(f"queue {address!r}", error))

        try:
            link = self._connection.create_receiver(
                Terminus(address, expiry_policy=EXPIRE_WITH_LINK),
                name=f"management/{chance.unique()}",
            )
        except LocalProtocolError as exc:
            batch.one_less(Refused(f"queue {address!r}: {exc}"))
            return
        link.on_attached = attached
        link.on_detached = detached


class Embedded(Bus):
    """``greenamqp broker``."""

    PRODUCT = "greenamqp"
    has_shared_queues = True
    has_queue_policies = True
    reply_lifetime = 600
    dialect = Management

    def family(self) -> type[Addresser]:
        return LegacyAddresser
