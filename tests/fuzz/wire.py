# SPDX-License-Identifier: Apache-2.0
"""Bytes of AMQP 1.0 made by hand: what no encoder would make.

Values are given as JSON, ``["list", ...]`` and the like; see :func:`value`.
"""

from __future__ import annotations

import json
import struct
import typing

#: Modules that a peer names and that must never be imported on its behalf.
TRAPS = ["antigravity", "this", "tests.fuzz.trap"]

#: Modules whose exceptions it may have rebuilt.
ALLOWED = ["tests.functional.errors"]


def frame(body: bytes, channel: int = 0, kind: int = 0, doff: int = 2) -> bytes:
    """A frame around `body` (part 2, section 2.3)."""
    return struct.pack(">IBBH", 8 + len(body), doff, kind, channel & 0xFFFF) + body


def value(given: typing.Any) -> bytes:
    """A value in its encoding (part 1, section 1.6).

    None, bools, ints (long), floats and str are what they look like; a list begins
    with its constructor: ``["list", ...]``, ``["map", ...]``, ``["array", CODE, HEX]``,
    ``["sym", str]``, ``["bin", hex]``, ``["desc", descriptor, value]``,
    ``["uint", n]``, ``["ulong", n]``, ``["ubyte", n]``, ``["raw", hex]``.
    """
    if given is None:
        return b"\x40"
    if isinstance(given, bool):
        return b"\x41" if given else b"\x42"
    if isinstance(given, int):
        return b"\x81" + struct.pack(">q", (given + 2**63) % 2**64 - 2**63)
    if isinstance(given, float):
        return b"\x82" + struct.pack(">d", given)
    if isinstance(given, str):
        data = given.encode("utf-8", "surrogatepass")
        return b"\xb1" + struct.pack(">I", len(data)) + data
    kind, *rest = given
    if kind in ("list", "map"):
        body = b"".join(value(one) for one in rest)
        code = b"\xd0" if kind == "list" else b"\xd1"
        return code + struct.pack(">II", len(body) + 4, len(rest)) + body
    if kind == "array":
        body = bytes((rest[0],)) + bytes.fromhex(rest[1])
        count = len(body) - 1
        return b"\xf0" + struct.pack(">II", len(body) + 4, count) + body
    if kind == "sym":
        data = rest[0].encode("utf-8", "surrogatepass")
        return b"\xb3" + struct.pack(">I", len(data)) + data
    if kind == "bin":
        data = bytes.fromhex(rest[0])
        return b"\xb0" + struct.pack(">I", len(data)) + data
    if kind == "desc":
        return b"\x00" + value(rest[0]) + value(rest[1])
    if kind == "uint":
        return b"\x70" + struct.pack(">I", rest[0] % 2**32)
    if kind == "ulong":
        return b"\x80" + struct.pack(">Q", rest[0] % 2**64)
    if kind == "ubyte":
        return b"\x50" + bytes((rest[0] % 256,))
    if kind == "raw":
        return bytes.fromhex(rest[0])
    raise ValueError(f"no such kind of value: {kind!r}")


def described(code: int, body: typing.Any) -> bytes:
    """A described value, such as a performative or a section of a message."""
    return b"\x00\x53" + bytes((code % 256,)) + value(body)


def message(sections: list[list[typing.Any]]) -> bytes:
    """A message from its sections, ``[CODE, VALUE]`` each (part 3, section 3.2)."""
    return b"".join(described(code, body) for code, body in sections)


def text(body: str, **properties: str | None) -> bytes:
    """A message with a string for its body, as the driver's own are."""
    fields = [None] * 6
    for index, name in enumerate(
        ("message_id", "user", "to", "subject", "reply_to", "correlation_id")
    ):
        fields[index] = properties.get(name)
    return message([[0x73, ["list", *fields]], [0x77, body]])


def reply(correlation_id: str, rest: bytes) -> bytes:
    """A message with a correlation id, and `rest` for all that follows."""
    return message([[0x73, ["list", *[None] * 5, correlation_id]]]) + rest


def failure(module: typing.Any, name: typing.Any, args: typing.Any) -> str:
    """The body of a reply with an exception in it, as oslo.messaging writes it."""
    given = {
        "module": module,
        "class": name,
        "args": args,
        "kwargs": {},
        "message": "m",
        "tb": ["t"],
    }
    return json.dumps({"failure": json.dumps(given)})


def nested(depth: int) -> bytes:
    """An empty list in so many lists."""
    heads = []
    size = 1
    for _ in range(depth):
        heads.append(b"\xd0" + struct.pack(">II", size + 4, 1))
        size += 9
    return b"".join(reversed(heads)) + b"\x45"


def tamper(data: bytearray, at: int, kind: str, argument: typing.Any) -> None:
    """Damage `data` at an offset."""
    if kind == "flip":
        if at < len(data):
            data[at] ^= argument or 1
    elif kind == "set":
        if at < len(data):
            data[at] = argument
    elif kind == "delete":
        del data[at : at + argument]
    elif kind == "insert":
        data[at:at] = bytes.fromhex(argument)
    elif kind == "repeat":
        data[at:at] = data[at : at + argument]
    elif kind == "end":
        del data[at:]
    else:
        raise ValueError(f"no such kind of damage: {kind!r}")
