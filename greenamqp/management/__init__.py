# SPDX-License-Identifier: Apache-2.0
"""What is declared on a broker before links are attached.

Brokers that make no queue because a link is attached to one are asked to, by messages
to a node of theirs.  Each has requests of its own, but all are asked in the same way:
:mod:`~greenamqp.management.base` has that, and one module per broker its requests.
"""

from __future__ import annotations

from greenamqp.management.base import Declaration, Declarations, Management, Refused
from greenamqp.management.rabbitmq import binding, exchange, queue, quote

__all__ = [
    "Declaration",
    "Declarations",
    "Management",
    "Refused",
    "binding",
    "exchange",
    "queue",
    "quote",
]
