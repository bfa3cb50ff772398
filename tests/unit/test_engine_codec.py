# SPDX-License-Identifier: Apache-2.0
"""The codec against proton's own Message class: same fields, both ways, same bytes."""

from __future__ import annotations

import struct
import uuid

import proton
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from greenamqp.engine import Codec, DecodeError, Message, capi

# What AMQP cannot carry: lone surrogates have no UTF-8.  NUL ends a C string, which
# is how proton keeps addresses, subjects and the like.
texts = st.text(st.characters(codec="utf-8"))
c_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))

message_ids = st.none() | texts | st.binary() | st.integers(0, 2**64 - 1) | st.uuids()

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary()
    | st.uuids()
)
values = st.recursive(
    scalars,
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4)
    ),
    max_leaves=8,
)
annotation_keys = st.builds(
    proton.symbol,
    st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1),
)

fields = st.fixed_dictionaries(
    {
        "body": texts
        | st.binary()
        | st.dictionaries(texts, values, max_size=4)
        | st.lists(values, max_size=4)
        | st.integers(-(2**63), 2**63 - 1)
        | st.booleans(),
        "id": message_ids,
        "correlation_id": message_ids,
        "address": st.none() | c_texts,
        "reply_to": st.none() | c_texts,
        "subject": st.none() | c_texts,
        "content_type": st.none()
        | st.text(st.characters(codec="ascii", exclude_characters="\0")),
        "content_encoding": st.none() | st.sampled_from(["utf-8", "gzip", "x" * 300]),
        "durable": st.booleans(),
        "priority": st.integers(0, 255),
        "ttl": st.none() | st.integers(1, 2**32 - 1).map(lambda ms: ms / 1000),
        "inferred": st.booleans(),
        "properties": st.none()
        | st.dictionaries(texts, scalars, min_size=1, max_size=4),
        "annotations": st.none()
        | st.dictionaries(annotation_keys, values, min_size=1, max_size=4),
        "expiry_time": st.integers(0, 2**52).map(float),
    }
)


def proton_message(given_fields: dict) -> proton.Message:
    """proton's own message with these fields."""
    message = proton.Message()
    for name, value in given_fields.items():
        if value is not None:
            if isinstance(value, int) and name in ("id", "correlation_id"):
                value = proton.ulong(value)
            setattr(message, name, value)
    return message


@given(fields)
@settings(max_examples=300)
def test_encoding_is_what_proton_reads(given_fields):
    message = proton.Message()
    message.decode(Codec().encode(Message(**given_fields)))
    expected = proton.Message()
    expected.decode(proton_message(given_fields).encode())
    for name in given_fields:
        assert getattr(message, name) == getattr(expected, name), name


@given(fields)
@settings(max_examples=300)
def test_encoding_has_the_bytes_of_proton(given_fields):
    assert (
        Codec().encode(Message(**given_fields)) == proton_message(given_fields).encode()
    )


@given(fields)
@settings(max_examples=300)
def test_decoding_reads_what_proton_writes(given_fields):
    original = proton_message(given_fields)
    data = bytes(original.encode())
    message = Codec().decode(data)
    expected = proton.Message()
    expected.decode(data)
    for name in given_fields:
        found, wanted = getattr(message, name), getattr(expected, name)
        if name == "ttl":
            wanted = wanted or None
        elif name.startswith("content_") and given_fields[name] is None:
            wanted = None  # which proton's class turns into the text "None"
        elif name in ("properties", "annotations") and not wanted:
            wanted, found = {}, found or {}
        elif name == "body" and isinstance(wanted, memoryview):
            wanted = bytes(wanted)
        assert found == wanted, name


@given(st.lists(fields, min_size=2, max_size=4))
@settings(max_examples=100)
def test_a_codec_that_is_kept_mixes_nothing_up(many):
    codec = Codec()
    for given_fields in many:
        message = Message(**given_fields)
        assert codec.encode(message) == Codec().encode(message)
        data = Codec().encode(message)
        again = codec.decode(data)
        fresh = Codec().decode(data)
        for name in Message.__slots__:
            assert getattr(again, name) == getattr(fresh, name), name


@pytest.mark.parametrize("size", [0, 1, 255, 256, 16 * 1024, 65536, 10**6])
@pytest.mark.parametrize(
    "make", [lambda n: "x" * n, lambda n: "ü€😀" * (n // 3), bytes]
)
@pytest.mark.parametrize("inferred", [False, True])
def test_bodies_of_all_sizes(size, make, inferred):
    body = make(size)
    codec = Codec()
    data = codec.encode(Message(body, inferred=inferred))
    assert codec.decode(data).body == body
    other = proton.Message()
    other.decode(data)
    assert other.body == body


def test_binary_body_of_another_client():
    for inferred in (False, True):
        message = proton.Message(body=b"\x00\xff binary", inferred=inferred)
        decoded = Codec().decode(bytes(message.encode()))
        assert decoded.body == b"\x00\xff binary"
        assert decoded.inferred is inferred


def test_no_body_is_sent_as_null():
    data = Codec().encode(Message(None, subject="s"))
    assert data.endswith(b"\x00\x53\x77\x40")
    assert Codec().decode(data).body is None
    other = proton.Message()
    other.decode(data)
    assert other.body is None and other.subject == "s"


def test_a_ttl_is_never_rounded_to_none():
    assert Codec().decode(Codec().encode(Message("x", ttl=0.0001))).ttl == 0.001


def test_a_ttl_that_is_too_long_is_the_longest():
    assert (
        Codec().decode(Codec().encode(Message("x", ttl=1e9))).ttl == (2**32 - 1) / 1000
    )


def test_all_kinds_of_id():
    unique = uuid.uuid4()
    for value in ("id", b"\x00id", 17, unique, ""):
        decoded = Codec().decode(Codec().encode(Message("x", id=value)))
        assert decoded.id == value and type(decoded.id) is type(value)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x00")
@example(b"\x00\x53\x77")
@settings(max_examples=500)
def test_bytes_that_are_no_message(data):
    """Either a message or DecodeError; nothing else, and never a crash."""
    try:
        Codec().decode(data)
    except DecodeError:
        pass


@given(fields, st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_messages_with_damage(given_fields, data):
    encoded = bytearray(Codec().encode(Message(**given_fields)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    try:
        Codec().decode(bytes(encoded[:cut]))
    except DecodeError:
        pass


def test_text_that_is_not_utf8_is_an_error_of_the_message():
    data = Codec().encode(Message("x", id="abc", subject="abcdef"))
    with pytest.raises(DecodeError, match="UTF-8"):
        Codec().decode(data.replace(b"abcdef", b"ab\xffdef"))


@pytest.mark.parametrize("depth", [1_000, 50_000])
def test_deep_nesting_is_an_error_of_the_message(depth):
    body = b"\x40"
    for _ in range(depth):
        body = b"\xd0" + struct.pack(">II", len(body) + 4, 1) + body
    with pytest.raises(DecodeError, match="deep"):
        Codec().decode(b"\x00\x53\x77" + body)


def test_a_missing_call_is_named():
    class Without:
        def __getattr__(self, name):
            if name == "pn_link_send":
                raise AttributeError(name)
            return getattr(capi.lib, name)

    with pytest.raises(ImportError, match="pn_link_send"):
        capi.check(Without())


def test_repr_does_not_show_the_body():
    assert "secret" not in repr(Message("secret", subject="shown"))
    assert "shown" in repr(Message("secret", subject="shown"))
