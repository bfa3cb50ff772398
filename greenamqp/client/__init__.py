# SPDX-License-Identifier: Apache-2.0
"""What is asked of the message bus: send, call, subscribe.

The client keeps what these need over any number of connections in turn.  It connects
when first used, restores its links after the connection was lost, and treats what was
under way as the delivery promises say:

* what the peer cannot have seen is sent when the connection is back;
* what it may have accepted is sent again only if twice is allowed (notifications);
  an RPC request whose fate is unknown fails, but for a call to one server, which knows
  a copy, where the bus keeps the reply address; a call whose reply address went with
  the connection fails at once instead of by its time-out;
* RELEASED and MODIFIED are tried again, within the retries and the deadline;
  REJECTED fails.

All methods may be called from any thread or green thread that the hub knows; what
happens inside the hub's context or under its lock is marked as such.

It knows nothing of sockets, hosts or logins: those are the connection's.  All of it
logs by one name, for where in it something is logged is nobody's business.

Within: ``client`` (what the driver asks), ``outgoing`` (a message on its way),
``wanted`` (the life of a link, with its table), ``sending``, ``receiving`` and
``replies`` (the three kinds of it), ``outcome`` (what an outcome means, a table),
``absence`` (how long a message waits for a consumer), ``doubt`` (calls that may have
arrived), ``subscription`` (what a listener receives, and the room for it), ``copies``
(what was had before), ``watchdog`` (leaves sessions in which the bus stands still),
``pursuit`` (when a missing outcome is waited for no longer), ``turns`` (links that may
be refused), ``context`` (what all of these share).
"""

from greenamqp.client.client import Client
from greenamqp.client.copies import Known
from greenamqp.client.outgoing import Destination, Outgoing, Rejected, Reply
from greenamqp.client.receiving import ReceivingLink
from greenamqp.client.subscription import Subscription

__all__ = [
    "Client",
    "Destination",
    "Known",
    "Outgoing",
    "ReceivingLink",
    "Rejected",
    "Reply",
    "Subscription",
]
