# SPDX-License-Identifier: Apache-2.0
"""Just as much of a message's encoding as a broker must know.

A broker forwards messages as they came.  It looks at the header section (for the
time to live, and to write the delivery count of a message that goes out again) and,
on the anonymous terminus, at the ``to`` of the properties section; nothing else is
decoded.  These readers work on the bytes (AMQP 1.0 part 1, section 1.6, and part 3,
section 3.2).  They never read past the end of what they are given, and raise
:class:`Malformed` where it does not make sense.
"""

from __future__ import annotations

import struct
import typing

_HEADER = 0x70
_DELIVERY_ANNOTATIONS = 0x71
_MESSAGE_ANNOTATIONS = 0x72
_PROPERTIES = 0x73

# A section may be named by a symbol too.  No implementation in use does it, but the
# specification allows it.
_SYMBOLS = {
    b"amqp:header:list": _HEADER,
    b"amqp:delivery-annotations:map": _DELIVERY_ANNOTATIONS,
    b"amqp:message-annotations:map": _MESSAGE_ANNOTATIONS,
    b"amqp:properties:list": _PROPERTIES,
}

# Bytes of a fixed-width value after its constructor, by the constructor's high half.
_WIDTHS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}

# Fields of the header that are true or false, durable and first-acquirer; the others
# are numbers.
_BOOLEANS = (0, 3)

# Constructors.
_NULL = 0x40
_TRUE = 0x41
_LIST0 = 0x45
_LIST8 = 0xC0
_LIST32 = 0xD0
_STRING8 = 0xA1
_STRING32 = 0xB1

# The most that a header's ttl, a uint in milliseconds, can say.
MAX_TTL = 2**32 - 1

# Descriptors may be nested by a peer that means harm; sections are not.
_MAX_DEPTH = 8

_uint32 = struct.Struct(">I").unpack_from
_pack32 = struct.Struct(">I").pack


class Malformed(ValueError):
    """The bytes are not what AMQP 1.0 allows at this place."""


class Header(typing.NamedTuple):
    """The header section: where it ends, its fields, and where its ttl is."""

    end: int = 0
    durable: bool = False
    priority: int | None = None
    ttl: int = 0  # milliseconds, 0: none
    ttl_at: int = 0  # offset of the ttl's constructor, 0: none
    delivery_count: int = 0


_NO_HEADER = Header()


def read_header(data: bytes) -> Header:
    """The header section of a message; without one, a Header that ends at 0.

    :raises Malformed: if the message does not begin with a section
    """
    try:
        code, at = _section(data, 0)
        if code != _HEADER:
            return _NO_HEADER
        count, at, end = _list(data, at)
        durable, priority, ttl, ttl_at, delivery_count = False, None, 0, 0, 0
        for field in range(count):
            value, following = _scalar(data, at)
            if value is not None:
                if isinstance(value, bool) is not (field in _BOOLEANS):
                    raise Malformed(f"field {field} of the header is of another type")
                if field == 0:
                    durable = bool(value)
                elif field == 1:
                    priority = value
                elif field == 2:
                    ttl, ttl_at = value, at
                elif field == 4:
                    delivery_count = value
            at = following
    except (IndexError, struct.error):
        raise Malformed("the header is cut off") from None
    if at != end:
        raise Malformed("the header's size is wrong")
    return Header(end, durable, priority, ttl, ttl_at, delivery_count)


def time_to_live(data: bytes) -> int:
    """The milliseconds that a message may live, 0 for no limit.

    :raises Malformed: if the message does not begin with a section
    """
    start = data[:4]
    if start == b"\x00\x53\x70\x45":
        return 0  # an empty header, as proton writes it
    if start[:2] == b"\x00\x53" and start[2:3] != b"\x70":
        return 0  # another section comes first: there is no header
    return read_header(data).ttl


def with_ttl(data: bytes, ttl: int) -> bytes:
    """The message with less to live, where its header names a time to live."""
    header = read_header(data)
    at = header.ttl_at
    if not at or ttl >= header.ttl:
        return data
    # A smaller number fits where the larger one was.
    patched = bytearray(data)
    if patched[at] == 0x70:
        patched[at + 1 : at + 5] = _pack32(ttl)
    else:
        patched[at + 1] = ttl
    return bytes(patched)


def redelivered(data: bytes, delivery_count: int, ttl: int | None = None) -> bytes:
    """The message with the header of one that was sent before and came back.

    :param delivery_count: how often it failed (part 3, section 3.2.1), beside what
        the header said when it came
    :param ttl: milliseconds that it may still live; None: as its header says
    """
    header = read_header(data)
    fields = bytearray()
    fields += b"\x41" if header.durable else b"\x42"
    if header.priority is None:
        fields += b"\x40"
    else:
        fields += bytes((0x50, min(header.priority, 255)))
    if header.ttl:
        fields += b"\x70" + _pack32(header.ttl if ttl is None else min(ttl, header.ttl))
    else:
        fields += b"\x40"
    fields += b"\x42"  # first-acquirer: false
    fields += b"\x70" + _pack32(min(MAX_TTL, header.delivery_count + delivery_count))
    head = b"\x00\x53\x70\xc0" + bytes((len(fields) + 1, 5)) + fields
    return head + memoryview(data)[header.end :]


def address(data: bytes) -> str | None:
    """The ``to`` of the properties section, None if there is none.

    :raises Malformed: if what comes before it makes no sense
    """
    try:
        at = 0
        size = len(data)
        while at < size:
            code, at = _section(data, at)
            if code == _PROPERTIES:
                break
            if code not in (_HEADER, _DELIVERY_ANNOTATIONS, _MESSAGE_ANNOTATIONS):
                return None  # the sections come in order
            at = _skip(data, at)
        else:
            return None
        count, at, end = _list(data, at)
        if count < 3:
            return None
        at = _skip(data, _skip(data, at))  # message-id, user-id
        kind = data[at]
        if kind == _NULL:
            return None
        if kind == _STRING8:
            first, last = at + 2, at + 2 + data[at + 1]
        elif kind == _STRING32:
            first, last = at + 5, at + 5 + _uint32(data, at + 1)[0]
        else:
            raise Malformed(f"'to' is no string (constructor 0x{kind:02x})")
        if last > end:
            raise Malformed("the properties are cut off")
        return data[first:last].decode()
    except (IndexError, struct.error):
        raise Malformed("the message is cut off") from None
    except UnicodeDecodeError:
        raise Malformed("'to' is not UTF-8") from None


def _section(data: bytes, at: int) -> tuple[int, int]:
    """(code, where the value begins) of the section that begins at `at`."""
    if data[at] != 0:
        raise Malformed(f"no section begins with 0x{data[at]:02x}")
    kind = data[at + 1]
    if kind == 0x53:
        return data[at + 2], at + 3
    if kind == 0x80:
        return _uint64(data, at + 2), at + 10
    if kind == 0xA3:
        last = at + 3 + data[at + 2]
        return _SYMBOLS.get(bytes(data[at + 3 : last]), -1), last
    raise Malformed(f"no section is named by constructor 0x{kind:02x}")


def _uint64(data: bytes, at: int) -> int:
    high, low = _uint32(data, at)[0], _uint32(data, at + 4)[0]
    value: int = high << 32 | low
    return value


def _list(data: bytes, at: int) -> tuple[int, int, int]:
    """(number of fields, where the first begins, where the last ends)."""
    kind = data[at]
    if kind == _LIST8:
        end = at + 2 + data[at + 1]
        count, first = data[at + 2], at + 3
    elif kind == _LIST32:
        end = at + 5 + _uint32(data, at + 1)[0]
        count, first = _uint32(data, at + 5)[0], at + 9
    elif kind == _LIST0:
        return 0, at + 1, at + 1
    else:
        raise Malformed(f"a list was due, constructor 0x{kind:02x} came")
    if end > len(data) or count > end - first:
        raise Malformed("a list is cut off")
    return count, first, end


def _scalar(data: bytes, at: int) -> tuple[int | None, int]:
    """(value, what follows) of a null, a boolean or an unsigned number."""
    kind = data[at]
    if kind == _NULL:
        return None, at + 1
    if kind in (0x41, 0x42):
        return kind == _TRUE, at + 1
    if kind == 0x56:
        return bool(data[at + 1]), at + 2
    if kind in (0x43, 0x44):
        return 0, at + 1
    if kind in (0x50, 0x52, 0x53):
        return data[at + 1], at + 2
    if kind == 0x70:
        return _uint32(data, at + 1)[0], at + 5
    raise Malformed(f"a number was due, constructor 0x{kind:02x} came")


def _skip(data: bytes, at: int, depth: int = 0) -> int:
    """Where the value that begins at `at` ends."""
    kind = data[at]
    half = kind >> 4
    width = _WIDTHS.get(half)
    if width is not None:
        end = at + 1 + width
    elif half in (0xA, 0xC, 0xE):
        end = at + 2 + data[at + 1]
    elif half in (0xB, 0xD, 0xF):
        end = at + 5 + _uint32(data, at + 1)[0]
    elif kind == 0 and depth < _MAX_DEPTH:
        end = _skip(data, _skip(data, at + 1, depth + 1), depth + 1)
    else:
        raise Malformed(f"there is no constructor 0x{kind:02x}")
    if end > len(data):
        raise Malformed("the message is cut off")
    return end
