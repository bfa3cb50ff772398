# SPDX-License-Identifier: Apache-2.0
"""How long a message waits while nobody is there to take it.

A router stores nothing: it gives no credit while an address has no consumer, and
releases what came too late.  Nothing says whether one will ever come; in a mesh it
takes up to a second until a new one is known everywhere.  So, from when it was first
found out:

====================  =========  =====================================================
message               waits      then
====================  =========  =====================================================
fanout                GRACE      it is done: nobody needs to listen
with at_least_once    GRACE      MessageUndeliverable
cast                  PATIENCE   MessageDeliveryFailure: a caller that stands still for
                                 as long as a call's time-out is not helped
call, notification    -          its own time-out, as somebody may come until then
one with no time-out  ENDURANCE  MessageDeliveryFailure: it waits for ever for a bus,
                                 not for somebody that the bus says is not there
====================  =========  =====================================================

A fanout that did find consumers has an outcome when the slowest of them has settled.
It waits FANOUT_PATIENCE for that, and is done; while it was in vain for the one before
it, not at all.

What waits in a router for a busy server's credit cannot be taken back.  So a cast has
an absolute-expiry-time (AMQP 1.0 part 3, section 3.2.4), OUTCOME_TIME before its sender
gives up, and a server accepts none that is older: what its sender was told has failed
is not executed later, as far as the machines' clocks agree.

Seconds.  On a bus that stores, only ENDURANCE counts: for what it releases, rejects as
not found, or has no place for by that name.
"""

from __future__ import annotations

from greenamqp.buses import Node
from greenamqp.client.outgoing import Outgoing

GRACE = 1.0
PATIENCE = 3.0
ENDURANCE = 30.0

FANOUT_PATIENCE = 0.25

OUTCOME_TIME = 1.0

#: Why what waits for credit fails.
NO_CREDIT = "the message bus gives no credit: is there a consumer?"


def patience(entry: Outgoing, node: Node) -> float | None:
    """How long this one waits while nobody is there; None: its own time-out."""
    if entry.mandatory or node.may_be_unheard:
        return GRACE
    if entry.impatient:
        return PATIENCE
    return ENDURANCE if entry.deadline is None else None


def conclude(entry: Outgoing, node: Node, address: str | None) -> None:
    """It has waited that long."""
    if entry.mandatory:
        entry.undeliverable(address)
    elif node.may_be_unheard:
        entry.accepted()
    else:
        entry.failed(NO_CREDIT)
