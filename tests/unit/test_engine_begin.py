# SPDX-License-Identifier: Apache-2.0
"""The first Begin of a peer, found in the bytes that come from it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenamqp.engine.begin import BeginReader
from tests.fuzz import wire

HEADERS = b"AMQP\x03\x01\x00\x00", b"AMQP\x00\x01\x00\x00"


def frame(body: bytes, kind: int = 0, extended: bytes = b"") -> bytes:
    offset = 2 + len(extended) // 4
    return (
        struct.pack(">IBBH", 8 + len(extended) + len(body), offset, kind, 0)
        + extended
        + body
    )


# remote-channel, next-outgoing-id, incoming-window, outgoing-window, then handle-max.
FIELDS = b"\x60\x00\x00\x43\x52\x64\x52\x64"


def begin(handle_max: bytes, descriptor: bytes = b"\x00\x53\x11") -> bytes:
    fields = FIELDS + handle_max
    count = 4 + bool(handle_max)
    return descriptor + bytes((0xC0, len(fields) + 1, count)) + fields


OPEN = frame(b"\x00\x53\x10\xc0\x04\x01\xa1\x01x")
SASL = frame(b"\x00\x53\x44\xc0\x03\x01\x50\x00", kind=1)


def read(stream: bytes, *cuts: int) -> BeginReader:
    reader = BeginReader()
    edges = [0, *sorted(cuts), len(stream)]
    for start, end in zip(edges, edges[1:], strict=False):
        if not reader.done:
            reader.feed(memoryview(stream[start:end]))
    return reader


@pytest.mark.parametrize(
    ("handle_max", "links"),
    [
        (b"\x52\xff", 256),
        (b"\x43", 1),
        (b"\x70\x00\x00\x0f\xff", 4096),
        (b"\x70\xff\xff\xff\xff", 2**32),
        (b"\x40", None),
        (b"", None),
    ],
)
@given(cuts=st.lists(st.integers(0, 120), max_size=6))
def test_the_limit_is_found(handle_max, links, cuts):
    body = begin(handle_max)
    stream = HEADERS[0] + SASL + HEADERS[1] + OPEN + frame(b"") + frame(body)
    reader = read(stream, *(cut for cut in cuts if cut <= len(stream)))
    assert reader.done
    assert reader.max_links == links


def test_other_encodings():
    long = b"\x00\x80" + struct.pack(">Q", 0x11)
    assert read(frame(begin(b"\x52\x07", long), extended=b"\0" * 8)).max_links == 8


def test_what_only_looks_like_it_is_no_begin():
    inside = frame(b"\x00\x53\x14" + begin(b"\x52\x07"))
    reader = read(inside + frame(begin(b"\x52\x07"), kind=1))
    assert not reader.done
    reader.feed(memoryview(frame(begin(b"\x52\x01"))))
    assert reader.max_links == 2


def test_a_long_frame_is_passed_over_and_not_kept():
    reader = BeginReader()
    reader.feed(memoryview(struct.pack(">IBBH", 8 + 10_000_000, 2, 0, 0)))
    for _ in range(100):
        reader.feed(memoryview(bytes(100_000)))
        assert len(reader._buffer) < 8
    reader.feed(memoryview(frame(begin(b"\x52\x01"))))
    assert reader.max_links == 2


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack(">IBBH", 7, 2, 0, 0),
        struct.pack(">IBBH", 20, 1, 0, 0),
        struct.pack(">IBBH", 20, 9, 0, 0),
        frame(b"\x00\x53\x11\xc0\xff\xff"),
        frame(b"\x00\x53\x11\x43"),
        frame(b"\x00\x53\x11"),
        frame(wire.described(0x11, ["list", ["map", ["list"], 1]])),
        frame(b"\x00\x53\x11" + wire.nested(2000)),
    ],
)
def test_what_is_no_amqp_ends_it(stream):
    reader = read(stream)
    assert reader.done
    assert reader.max_links is None


@given(st.binary(max_size=200))
def test_any_bytes(stream):
    read(stream)
