# SPDX-License-Identifier: Apache-2.0
"""Plain messages read from their bytes, against proton's decoder."""

from __future__ import annotations

import proton
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from greenamqp.engine import Codec, DecodeError, Message, plain
from tests.fuzz.readers import FIELDS
from tests.unit.test_engine_codec import fields, texts

# All that is before the body has to fit into a kilobyte.
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)

plain_fields = st.fixed_dictionaries(
    {
        "body": texts | st.binary(),
        "id": st.none() | names,
        "correlation_id": st.none() | names,
        "address": st.none() | names,
        "reply_to": st.none() | names,
        "durable": st.booleans(),
        "priority": st.integers(0, 255),
        "ttl": st.none() | st.integers(1, 2**32 - 1).map(lambda ms: ms / 1000),
        "inferred": st.booleans(),
        "content_type": st.none() | st.text("json/-", max_size=60),
        "expiry_time": st.just(0.0) | st.integers(1, 2**52).map(lambda ms: ms / 1000),
    }
)


def by_proton(data: bytes) -> dict:
    message = Codec().decode(data)
    return {name: getattr(message, name) for name in FIELDS}


def found(message: plain.Received) -> dict:
    return {name: getattr(message, name) for name in FIELDS}


@given(plain_fields)
@example({"body": ""})
@example({"body": "x" * 255, "id": "i" * 255, "reply_to": "r" * 255})
@example({"body": "x" * 256, "id": "i" * 256, "reply_to": "r" * 300})
@example({"body": "ü" * 10**6, "correlation_id": "ü"})
@example({"body": b"\x00\xff" * 10**6, "inferred": True})
@settings(max_examples=300)
def test_plain_messages_are_read(given_fields):
    data = Codec().encode(Message(**given_fields))
    message = plain.read(memoryview(data))
    assert message is not None
    assert found(message) == by_proton(data)


def test_a_heartbeat_is_plain():
    message = plain.read(Codec().encode(Message(None, correlation_id="c", ttl=1.0)))
    assert message is not None
    assert (message.body, message.correlation_id) == (None, "c")


@pytest.mark.parametrize("ttl", [None, 0.001, 0.255, 0.256, 60.0, 2**32 / 1000 - 1])
@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("priority", [0, 4, 9, 255])
def test_a_time_to_live_is_read(ttl, durable, priority):
    codec = Codec()
    for id in ("plain", 7):
        data = codec.encode(
            Message("text", id=id, ttl=ttl, durable=durable, priority=priority)
        )
        assert (plain.read(data) is None) is (id == 7)
        assert codec.decode_request(data).ttl == ttl


def test_what_a_broker_adds_is_passed_by():
    data = Codec().encode(
        Message(
            "text",
            id="i",
            subject="s",
            content_type="application/json",
            annotations={proton.symbol("x-exchange"): "e" * 300},
            properties={"one": 1},
        )
    )
    message = plain.read(data)
    assert message is not None
    assert (message.body, message.id) == ("text", "i")


@given(fields)
@settings(max_examples=300)
def test_of_any_message_it_reads_the_same_or_nothing(given_fields):
    data = Codec().encode(Message(**given_fields))
    message = plain.read(data)
    if message is not None:
        assert found(message) == by_proton(data)


@pytest.mark.parametrize(
    "message",
    [
        Message("x", id=7),
        Message("x", id=b"binary"),
        Message("x", correlation_id=b"binary"),
        Message({"a": "map"}),
        Message(["a", "list"]),
        Message(17),
        Message("x", annotations={proton.symbol("long"): "a" * 2000}),
    ],
)
def test_what_is_not_plain_is_for_proton(message):
    codec = Codec()
    data = codec.encode(message)
    assert plain.read(data) is None
    request = codec.decode_request(data)
    assert (request.body, request.id) == (message.body, message.id)
    assert codec.decode_reply(data).correlation_id == message.correlation_id


def test_several_sections_of_a_body_are_for_proton():
    one = b"\x00\x53\x75\xa0\x01x"
    assert plain.read(one) is not None
    assert plain.read(one + one) is None


def test_a_piece_of_a_message_is_not_plain():
    data = Codec().encode(Message("text", id="i", ttl=5.0))
    for size in range(len(data)):
        assert plain.read(data[:size]) is None, size
    assert plain.read(data + b"\x00") is None


@given(plain_fields, st.data())
@settings(max_examples=500)
def test_damage(given_fields, data):
    """What it makes of a damaged message is what proton makes of it, if that can
    decode it at all."""
    encoded = bytearray(Codec().encode(Message(**given_fields)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    message = plain.read(encoded)
    if message is None:
        return
    try:
        expected = by_proton(bytes(encoded))
    except DecodeError:
        return
    assert found(message) == expected


def test_a_list_with_bytes_beyond_its_fields_is_for_proton():
    whole = b"\x00\x53\x73\xc0\x07\x05\x40\x40\x40\x40\xa1\x00\x00\x53\x77\xa1\x00"
    message = plain.read(whole)
    assert message is not None and message.reply_to == ""
    # The count says none, or one less.
    for count in (0, 4):
        assert plain.read(whole[:5] + bytes([count]) + whole[6:]) is None


def test_text_that_is_not_utf8_is_named():
    codec = Codec()
    data = codec.encode(Message("abcdef", id="i")).replace(b"abcdef", b"ab\xffdef")
    assert plain.read(data) is None
    with pytest.raises(DecodeError, match="UTF-8"):
        codec.decode_request(data)
