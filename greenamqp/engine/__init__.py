# SPDX-License-Identifier: Apache-2.0
"""AMQP 1.0 with no I/O and no clock; proton and pyngus live here and nowhere else.

:class:`Connection` is one end of a connection, :class:`Sender` and
:class:`Receiver` its links, :class:`Message` and :class:`Codec` what crosses them.
The driver and the embedded broker use the same classes, each for its own end.
"""

from greenamqp.engine.capi import (
    ACCEPTED,
    MODIFIED,
    REJECTED,
    RELEASED,
    Codec,
    DecodeError,
    Message,
    Received,
)
from greenamqp.engine.connection import (
    LINKS_PER_SESSION,
    MIN_TICK,
    Connection,
    Sasl,
    has_cyrus_sasl,
)
from greenamqp.engine.errors import (
    ConnectionFailed,
    LinkLimitError,
    LocalProtocolError,
    RemoteError,
    RemoteProtocolError,
    SessionStalled,
)
from greenamqp.engine.link import (
    DURABLE,
    EXPIRE_NEVER,
    EXPIRE_WITH_LINK,
    Delivery,
    Int,
    Link,
    LinkState,
    Receiver,
    Sender,
    SettleMode,
    Terminus,
    source_filter,
)
from greenamqp.engine.login import BEARER, client_connection
from greenamqp.engine.sasl import sasl_offer

__all__ = [
    "ACCEPTED",
    "BEARER",
    "DURABLE",
    "EXPIRE_NEVER",
    "EXPIRE_WITH_LINK",
    "LINKS_PER_SESSION",
    "MIN_TICK",
    "MODIFIED",
    "REJECTED",
    "RELEASED",
    "Codec",
    "Connection",
    "ConnectionFailed",
    "DecodeError",
    "Delivery",
    "Int",
    "Link",
    "LinkLimitError",
    "LinkState",
    "LocalProtocolError",
    "Message",
    "Received",
    "Receiver",
    "RemoteError",
    "RemoteProtocolError",
    "Sasl",
    "Sender",
    "SessionStalled",
    "SettleMode",
    "Terminus",
    "client_connection",
    "has_cyrus_sasl",
    "sasl_offer",
    "source_filter",
]
