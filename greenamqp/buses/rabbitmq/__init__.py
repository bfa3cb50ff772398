# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ: which of its versions wants what, and what is odd about all of them.

``rabbit.py``
    from 4.0 on: queues, exchanges and messages as the ``rabbit://`` driver has them
``declared.py``
    from 4.0 on, where nobody speaks ``rabbit://``: a queue for each address
``before_4.py``
    before 4.0: queues that an attach makes
``management.py``, ``format.py``
    how it is asked for queues; what is in the messages of ``rabbit://``
"""

from __future__ import annotations

import typing

from greenamqp.buses.base import Addresser, Bus
from greenamqp.buses.rabbitmq.before_4 import Rabbit3Addresser
from greenamqp.buses.rabbitmq.rabbit import RabbitAddresser
from greenamqp.engine import Int, RemoteError


class RabbitMQ(Bus):
    """RabbitMQ, of any version."""

    PRODUCT = "RabbitMQ"
    has_vhost_prefix = True
    refusal_ends_session = True
    # It answers an attach, a declaration and a message in far less; where it waits for
    # a queue that is not there it takes more than a minute.
    patience = 10.0
    # It handles each disposition by itself, for a quorum queue with a round of its
    # members, and a durable classic queue that is emptied by it gives its file up, to
    # make another one for the next message.
    settle_delay = 0.003

    def family(self) -> type[Addresser]:
        return (
            RabbitAddresser if self.major >= RabbitAddresser.since else Rabbit3Addresser
        )

    def precedence(self, level: int) -> dict[str, typing.Any]:
        # It takes an int, and passes over anything else.
        return {"rabbitmq:priority": Int(level)}

    def may_take_it_later(self, error: RemoteError | None) -> bool:
        """A classic queue's node is away: 4.0 then gives no condition (nor does it
        where a queue is full), and 4.3 one that it gives for other reasons too."""
        return error is None or (
            error.condition == "amqp:precondition-failed"
            and "unavailable" in error.description
        )
