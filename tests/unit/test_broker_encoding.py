# SPDX-License-Identifier: Apache-2.0
"""The few bytes of a message that a broker reads and writes, against proton."""

from __future__ import annotations

import struct

import proton
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greenamqp.broker import encoding

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
milliseconds = st.integers(0, 2**32 - 1)
counts = st.integers(0, 2**31)

messages = st.fixed_dictionaries(
    {
        "durable": st.booleans(),
        "priority": st.integers(0, 255),
        "ttl": milliseconds.map(lambda number: number / 1000),
        "first_acquirer": st.booleans(),
        "delivery_count": counts,
        "id": st.none()
        | texts
        | st.binary()
        | st.uuids()
        | st.integers(0, 2**64 - 1).map(proton.ulong),
        "user_id": st.binary(max_size=300),
        "address": st.none() | texts,
        "subject": st.none() | texts,
        "annotations": st.none()
        | st.dictionaries(
            st.sampled_from([proton.symbol("x-opt-a"), proton.symbol("x-opt-b")]),
            texts | st.lists(texts, max_size=3),
            min_size=1,
        ),
        "body": texts | st.binary(),
    }
)


def encoded(fields: dict) -> bytes:
    message = proton.Message()
    for name, value in fields.items():
        if value is not None:
            setattr(message, name, value)
    return bytes(message.encode())


def decoded(data: bytes) -> proton.Message:
    message = proton.Message()
    message.decode(data)
    return message


def ttl_of(data: bytes) -> int:
    """In milliseconds; proton rounds when it encodes."""
    return round(decoded(data).ttl * 1000)


@given(messages)
@settings(max_examples=100)
def test_the_header_is_read_as_proton_wrote_it(fields):
    data = encoded(fields)
    header = encoding.read_header(data)
    assert header.durable is fields["durable"]
    assert (4 if header.priority is None else header.priority) == fields["priority"]
    assert header.ttl == ttl_of(data)
    assert encoding.time_to_live(data) == header.ttl
    assert header.delivery_count == fields["delivery_count"]


@given(messages)
@settings(max_examples=100)
def test_the_address_is_read_as_proton_wrote_it(fields):
    assert encoding.address(encoded(fields)) == fields["address"]


@given(messages, milliseconds)
@settings(max_examples=100)
def test_a_shorter_ttl_changes_nothing_else(fields, ttl):
    data = encoded(fields)
    shorter = decoded(encoding.with_ttl(data, ttl))
    original = decoded(data)
    if ttl < ttl_of(data):
        assert round(shorter.ttl * 1000) == ttl
    else:
        assert shorter.ttl == original.ttl
    for name in fields:
        if name != "ttl":
            assert getattr(shorter, name) == getattr(original, name), name


@given(messages, st.integers(0, 100), st.none() | milliseconds.filter(bool))
@settings(max_examples=100)
def test_a_message_that_goes_out_again(fields, failures, ttl):
    data = encoded(fields)
    again = decoded(encoding.redelivered(data, failures, ttl))
    original = decoded(data)
    assert again.delivery_count == fields["delivery_count"] + failures
    assert again.first_acquirer is False
    expected = ttl_of(data)
    if expected and ttl is not None:
        expected = min(expected, ttl)
    assert round(again.ttl * 1000) == expected
    for name in ("durable", "priority", "id", "address", "subject", "body"):
        assert getattr(again, name) == getattr(original, name), name
    assert again.annotations == original.annotations


def described(code: int, body: bytes) -> bytes:
    return b"\x00\x53" + bytes((code,)) + body


BODY = described(0x77, b"\xa1\x01x")


@pytest.mark.parametrize(
    ("head", "ttl"),
    [
        (b"", 0),
        (described(0x70, b"\x45"), 0),
        (described(0x70, b"\xc0\x01\x00"), 0),
        (described(0x70, b"\xc0\x05\x03\x40\x40\x52\x64"), 100),
        (described(0x70, b"\xc0\x04\x03\x40\x40\x43"), 0),
        (described(0x70, b"\xc0\x08\x03\x41\x40\x70\x00\x00\x01\x00"), 256),
        (described(0x70, b"\xc0\x09\x03\x56\x01\x50\x09\x52\xff\x40"), None),
        (described(0x70, b"\xc0\x07\x03\x56\x01\x50\x09\x52\xff"), 255),
        (described(0x70, b"\xc0\x04\x03\x40\x40\x41"), None),
        (described(0x70, b"\xc0\x03\x01\x52\x01"), None),
        (
            described(0x70, b"\xd0" + struct.pack(">II", 8, 3) + b"\x40\x40\x52\x05"),
            5,
        ),
        (b"\x00\x80" + struct.pack(">Q", 0x70) + b"\xc0\x05\x03\x40\x40\x52\x07", 7),
        (b"\x00\xa3\x10amqp:header:list" + b"\xc0\x05\x03\x40\x40\x52\x08", 8),
    ],
)
def test_headers_in_other_forms(head, ttl):
    data = head + BODY
    if ttl is None:
        with pytest.raises(encoding.Malformed):
            encoding.read_header(data)
        return
    header = encoding.read_header(data)
    assert header.ttl == encoding.time_to_live(data) == ttl
    assert header.end == len(head)
    if ttl > 1:
        assert encoding.time_to_live(encoding.with_ttl(data, ttl - 1)) == ttl - 1
    assert encoding.with_ttl(data, ttl + 1) == data
    assert encoding.redelivered(data, 1).endswith(BODY)


def test_a_message_without_header_gets_one_when_it_comes_back():
    message = decoded(encoding.redelivered(BODY, 2))
    assert (message.delivery_count, message.body) == (2, "x")
    assert message.ttl == 0 and message.priority == 4 and not message.durable


@pytest.mark.parametrize(
    ("data", "address"),
    [
        (BODY, None),
        (described(0x73, b"\x45"), None),
        (described(0x73, b"\xc0\x03\x02\x40\x40"), None),
        (described(0x73, b"\xc0\x06\x03\x40\x40\xa1\x01a"), "a"),
        (
            described(
                0x73,
                b"\xd0"
                + struct.pack(">II", 12, 3)
                + b"\x43\x40\xb1"
                + struct.pack(">I", 1)
                + b"b",
            ),
            "b",
        ),
        (
            b"\x00\xa3\x14amqp:properties:list" + b"\xc0\x06\x03\x40\x40\xa1\x01c",
            "c",
        ),
        (
            described(0x71, b"\xc1\x05\x02\xa3\x01k\x40")
            + described(0x72, b"\xd1" + struct.pack(">II", 8, 2) + b"\xa3\x01k\x40")
            + described(0x73, b"\xc0\x06\x03\x40\x40\xa1\x01d"),
            "d",
        ),
    ],
)
def test_addresses_in_other_forms(data, address):
    assert encoding.address(data) == address


@pytest.mark.parametrize(
    "data",
    [
        described(0x73, b"\xc0\x06\x03\x40\x40\xa1\x02a"),
        described(0x73, b"\xc0\x06\x03\x40\x40\x83\x01a"),
        described(0x73, b"\xc0\x06\x03\x40\x40\xa1\x01\xff"),
        described(0x73, b"\xc0\x60\x03\x40\x40\xa1\x01a"),
        described(0x73, b"\xa1\x01a"),
        described(0x71, b"\xc1\xff"),
        b"\x00\x53",
        b"\x01",
        b"\x00\x40",
    ],
)
def test_what_makes_no_sense_is_malformed(data):
    with pytest.raises(encoding.Malformed):
        encoding.address(data)


@given(st.binary(max_size=100))
@example(b"")
@example(b"\x00")
@example(b"\x00" * 100)
@example(b"\x00\x53\x70\xd0\xff\xff\xff\xff\xff\xff\xff\xff")
@settings(max_examples=200)
def test_noise_is_read_or_malformed(data):
    for read in (
        encoding.read_header,
        encoding.time_to_live,
        encoding.address,
        lambda noise: encoding.with_ttl(noise, 1),
        lambda noise: encoding.redelivered(noise, 1, 1),
    ):
        try:
            read(data)
        except encoding.Malformed:
            pass


@given(messages, st.data())
@settings(max_examples=200)
def test_damage_is_read_or_malformed(fields, data):
    damaged = bytearray(encoded(fields))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(60, len(damaged) - 1)))
        damaged[at] = data.draw(st.integers(0, 255))
    test_noise_is_read_or_malformed.hypothesis.inner_test(bytes(damaged))
