# SPDX-License-Identifier: Apache-2.0
"""What oslo.messaging's requests, replies and notifications look like in messages.

One format per file.  Which one is spoken belongs to the family of addresses (see
:mod:`greenamqp.addressing`): on RabbitMQ that of the ``rabbit://`` driver, so that both
understand each other, elsewhere that of the ``amqp`` driver which oslo.messaging had.
"""

from greenamqp.formats.base import BadMessage, Format, Request, dumps, loads
from greenamqp.formats.predecessor import PredecessorFormat
from greenamqp.formats.rabbit import RabbitFormat

__all__ = [
    "PREDECESSOR",
    "RABBIT",
    "BadMessage",
    "Format",
    "Request",
    "dumps",
    "loads",
]

#: Formats have no state: one of each serves all.
PREDECESSOR = PredecessorFormat()
RABBIT = RabbitFormat()
