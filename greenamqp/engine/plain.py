# SPDX-License-Identifier: Apache-2.0
"""Plain messages, read without proton: what a receiver looks at, and nothing else.

proton decodes a whole message into a tree of its own, body included, out of which each
field is then asked for by a call.  Requests, replies and notifications are plain: some
sections that nobody here looks at, ids of text, one body of text or bytes.  Of those
:func:`read` takes the few fields that matter straight from the bytes, for half the
cost; a large body is copied once instead of three times.

It gives up on anything else, and on whatever is damaged: then proton decodes, and
finds the words for what is wrong.  A test compares the two for whatever hypothesis
comes up with.
"""

from __future__ import annotations

import typing
import uuid

if typing.TYPE_CHECKING:
    MessageId = str | bytes | int | uuid.UUID

# Sections of a message (AMQP 1.0 part 3, section 3.2), by their descriptors: all are
# small ulongs.
_HEADER = 0x70
_PROPERTIES = 0x73
_DATA = 0x75
_VALUE = 0x77
#: Those that nobody here looks at: delivery and message annotations, application
#: properties.
_PASSED_BY = (0x71, 0x72, 0x74)

# Fields of the properties section. Nearly all messages end before the expiry time: then
# those after the correlation-id are not looked at.
_ID, _REPLY_TO, _CORRELATION_ID, _EXPIRY_TIME = 0, 4, 5, 8
_FIELDS = 6

# All sections before the body are looked for here.  Ours have some 150 bytes, with
# what a broker adds; a message that has more there is proton's to decode.
_HEAD = 1024


class Received:
    """What a receiver of requests or replies looks at: a few fields of a message.
    Fields as in :class:`greenamqp.engine.Message`."""

    __slots__ = (
        "body",
        "correlation_id",
        "expiry_time",
        "id",
        "reply_to",
        "ttl",
    )

    def __init__(
        self,
        body: typing.Any,
        id: MessageId | None = None,
        reply_to: str | None = None,
        correlation_id: MessageId | None = None,
        ttl: float | None = None,
        expiry_time: float = 0,
    ) -> None:
        self.body = body
        self.id = id
        self.reply_to = reply_to
        self.correlation_id = correlation_id
        self.ttl = ttl
        self.expiry_time = expiry_time


def read(data: bytes | bytearray | memoryview) -> Received | None:
    """The message that `data` holds; None if it is not plain, or none at all."""
    head = bytes(data[:_HEAD])
    ids: list[typing.Any] = [None] * _FIELDS + [0.0]
    ttl = None
    at = 0
    try:
        while True:
            if head[at] or head[at + 1] != 0x53:
                return None
            section = head[at + 2]
            code = head[at + 3]
            at += 4
            if section == _VALUE or section == _DATA:
                return _whole(data, head, at, section, code, ids, ttl)
            if code == 0x45:  # an empty list
                continue
            if code == 0xC0 or code == 0xC1:  # list8, map8
                start = at + 1
                end = start + head[at]
            elif code == 0xD0 or code == 0xD1:  # list32, map32
                start = at + 4
                end = start + int.from_bytes(head[at:start], "big")
            else:
                return None
            if section == _PROPERTIES:
                if not _read_ids(head, start, end, code, ids):
                    return None
            elif section == _HEADER:
                ttl = _read_ttl(head, start, code)
            elif section not in _PASSED_BY:
                return None
            at = end
    except (IndexError, UnicodeDecodeError):
        return None


def _read_ttl(head: bytes, at: int, code: int) -> float | None:
    """The time to live in the list at `at`, that of the header, if it is written as
    peers write it: it is no more than a hint."""
    if code != 0xC0 or head[at] < 3:
        return None
    at += 2  # durable
    at += 1 if head[at] == 0x40 else 2  # priority: null, or a ubyte
    code = head[at]
    if code == 0x70:  # uint
        return int.from_bytes(head[at + 1 : at + 5], "big") / 1000
    if code == 0x52:  # smalluint
        return head[at + 1] / 1000
    return None


def _read_ids(head: bytes, at: int, end: int, code: int, ids: list[typing.Any]) -> bool:
    """Fill in `ids` from the list between `at` and `end`, that of the properties; the
    expiry time is the last.  Returns whether they are all plain."""
    if code == 0xC0:
        count = head[at]
        at += 1
    elif code == 0xD0:
        count = int.from_bytes(head[at : at + 4], "big")
        at += 4
    else:
        return False
    for field in range(min(count, _FIELDS)):
        code = head[at]
        at += 1
        if code == 0x40:  # null
            continue
        if code == 0xA1 or code == 0xA0:  # str8, vbin8
            start = at + 1
            at = start + head[at]
        elif code == 0xB1 or code == 0xB0:  # str32, vbin32
            start = at + 4
            at = start + int.from_bytes(head[at:start], "big")
        else:
            return False
        if field == _ID or field == _REPLY_TO or field == _CORRELATION_ID:
            if code & 0x0F == 0 or at > end:
                return False
            text = ids[field] = head[start:at].decode()
            if field == _REPLY_TO and "\0" in text:
                return False  # where proton would end it
    if end > len(head):
        return False
    # Where there are no more fields there must be no more bytes: proton would go by
    # these.
    if count <= _FIELDS:
        return at == end
    if count <= _EXPIRY_TIME:
        return at <= end
    return _read_expiry_time(head, at, end, ids)


def _read_expiry_time(head: bytes, at: int, end: int, ids: list[typing.Any]) -> bool:
    """As _read_ids, from the field at `at` on: content-type and -encoding are before
    the expiry time."""
    for _ in range(_FIELDS, _EXPIRY_TIME):
        code = head[at]
        at += 1
        if code == 0xA3:  # sym8
            at += 1 + head[at]
        elif code == 0xB3:  # sym32
            at += 4 + int.from_bytes(head[at : at + 4], "big")
        elif code != 0x40:
            return False
    code = head[at]
    at += 1
    if code == 0x83:  # a timestamp, in milliseconds
        ids[_FIELDS] = int.from_bytes(head[at : at + 8], "big", signed=True) / 1000
        at += 8
    elif code != 0x40:
        return False
    return at <= end


def _whole(
    data: bytes | bytearray | memoryview,
    head: bytes,
    at: int,
    section: int,
    code: int,
    ids: list[typing.Any],
    ttl: float | None,
) -> Received | None:
    """The message, if the body at `at` is plain and ends where the message ends."""
    body: str | bytes | None
    if code & 0xF0 == 0xA0:  # vbin8, str8
        start = at + 1
        size = head[at]
    elif code & 0xF0 == 0xB0:  # vbin32, str32
        start = at + 4
        if start > len(head):
            return None
        size = int.from_bytes(head[at:start], "big")
    elif code == 0x40 and section == _VALUE and at == len(data):
        return _received(None, ids, ttl)
    else:
        return None
    if start + size != len(data):
        return None
    if code == 0xA1 or code == 0xB1:
        if section == _DATA:
            return None
        body = str(data[start:], "utf-8")
    elif code == 0xA0 or code == 0xB0:
        body = bytes(data[start:])
    else:
        return None
    return _received(body, ids, ttl)


def _received(
    body: str | bytes | None, ids: list[typing.Any], ttl: float | None
) -> Received:
    return Received(
        body, ids[_ID], ids[_REPLY_TO], ids[_CORRELATION_ID], ttl, ids[_FIELDS]
    )
