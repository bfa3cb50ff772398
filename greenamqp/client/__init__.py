# SPDX-License-Identifier: Apache-2.0
"""One connection to the message bus, as the driver sees it.

Send, call, subscribe: the client keeps what these need over any number of
connections in turn.  It connects when first used, restores its links after the
connection was lost, and treats what was under way as the delivery promises say:

* what the peer cannot have seen is sent when the connection is back;
* what it may have accepted is sent again only if twice is allowed (notifications);
  an RPC request whose fate is unknown fails, and a call whose reply address went with
  the connection fails at once instead of by its time-out;
* RELEASED and MODIFIED are tried again, within the retries and the deadline;
  REJECTED fails.

Life of the connection::

    state        event                              next
    ---------    -------------------------------    ----------
    IDLE         somebody wants something           CONNECTING
    CONNECTING   the stream is connected            OPENING
    CONNECTING   it cannot be                       WAITING
    OPENING      the peer's Open frame              UP
    OPENING      refused, broken or too late        WAITING
    UP           lost or closed by the peer         WAITING
    WAITING      the pause is over                  CONNECTING
    any          close()                            CLOSED

All methods may be called from any thread or green thread that the hub knows; what
happens inside the hub's context or under its lock is marked as such.

Within: ``outgoing`` (a message on its way), ``outlet`` (what goes to one destination),
``replies`` (the link that replies come by), ``inlet`` (what listeners receive),
``watch`` (leaves sessions in which the bus stands still), ``client`` (the
connection, and what the driver asks of it).
"""

from greenamqp.client.client import Client
from greenamqp.client.outgoing import Destination
from greenamqp.client.receiving import ReceivingLink, Subscription
from greenamqp.client.state import State

__all__ = ["Destination", "ReceivingLink", "Client", "State", "Subscription"]
