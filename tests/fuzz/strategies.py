# SPDX-License-Identifier: Apache-2.0
"""What the fuzzer draws: examples for tests.fuzz.subject.run."""

from __future__ import annotations

import json
import typing

from hypothesis import strategies as st

from tests.fuzz import readers, wire

_TEXT = st.one_of(
    st.sampled_from(["", "a", "reply-0", "topic", "amqp:not-found", "\x00", "ž" * 9]),
    st.text(max_size=20),
)

_HEX = st.binary(max_size=24).map(bytes.hex)

_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    _TEXT,
    _TEXT.map(lambda text: ["sym", text]),
    _HEX.map(lambda data: ["bin", data]),
    st.integers(0, 2**33).map(lambda number: ["uint", number]),
    st.integers(0, 2**65).map(lambda number: ["ulong", number]),
    st.integers(0, 255).map(lambda number: ["ubyte", number]),
    _HEX.map(lambda data: ["raw", data]),
    st.tuples(st.integers(0, 255), _HEX).map(lambda given: ["array", *given]),
)

VALUES: st.SearchStrategy[typing.Any] = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5).map(lambda items: ["list", *items]),
        st.lists(inner, max_size=6).map(lambda items: ["map", *items]),
        st.tuples(inner, inner).map(lambda pair: ["desc", *pair]),
    ),
    max_leaves=12,
)

_DEPTHS = st.sampled_from([5, 100, 600, 5000])
_NESTED = st.one_of(
    _DEPTHS.map(lambda depth: ["raw", (b"\x00" * depth + b"\x45" * (depth + 1)).hex()]),
    _DEPTHS.map(lambda depth: ["raw", wire.nested(depth).hex()]),
)


# -- messages

_SECTIONS = st.sampled_from(list(range(0x70, 0x7A)))
_ANY_MESSAGE = st.lists(
    st.tuples(_SECTIONS, st.one_of(VALUES, _NESTED)).map(list), max_size=4
).map(wire.message)

_JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        _TEXT,
        st.sampled_from(["2.0", "1.0", "99.0", *wire.TRAPS, "builtins", "exceptions"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "request",
                    "context",
                    "call_monitor_timeout",
                    "oslo.message",
                    "oslo.version",
                    "method",
                    "args",
                    "response",
                    "failure",
                    "module",
                    "class",
                    "message",
                    "kwargs",
                    "tb",
                    "event_type",
                    "payload",
                    "",
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=15,
)


_FAILURES = st.builds(
    wire.failure,
    st.sampled_from([*wire.TRAPS, "builtins", "os", "tests.functional.errors", "", 1]),
    st.sampled_from(["Custom", "WithArguments", "system", "SystemExit", "eval", None]),
    st.one_of(st.lists(_JSON, max_size=3), _JSON),
)

_BODIES = st.one_of(
    _JSON.map(lambda data: json.dumps(data)),
    _JSON.map(lambda data: json.dumps({"request": data, "context": {}})),
    _JSON.map(
        lambda data: json.dumps(
            {
                "request": {"oslo.version": "2.0", "oslo.message": json.dumps(data)},
                "context": data,
            }
        )
    ),
    _FAILURES,
    _TEXT,
    st.sampled_from(["[" * 5000, '{"request":' * 3000, "9" * 5000, '{"request": {}}']),
)

_REQUESTS = st.builds(
    lambda body, reply_to, identity: wire.text(
        body, reply_to=reply_to, message_id=identity
    ),
    _BODIES,
    st.one_of(st.none(), _TEXT),
    st.one_of(st.none(), _TEXT),
)

_MESSAGES = st.one_of(_REQUESTS, _ANY_MESSAGE, st.binary(max_size=60))

_REPLIES = st.one_of(
    _BODIES.map(lambda body: wire.message([[0x77, body]])),
    st.tuples(_SECTIONS, VALUES).map(lambda section: wire.message([list(section)])),
    st.binary(max_size=40),
)

# -- frames

_PERFORMATIVES = st.sampled_from(list(range(0x10, 0x19)))
_FRAMES = st.builds(
    lambda code, body, channel, kind: wire.frame(
        wire.described(code, body), channel, kind
    ),
    _PERFORMATIVES,
    st.one_of(
        VALUES,
        st.lists(st.one_of(_LEAVES, VALUES), max_size=14).map(
            lambda fields: ["list", *fields]
        ),
        _NESTED,
    ),
    st.sampled_from([0, 1, 2, 7, 65535]),
    st.sampled_from([0, 0, 0, 1, 9]),
)

_NOISE = st.one_of(
    st.binary(max_size=80),
    _FRAMES,
    st.lists(_FRAMES, min_size=2, max_size=6).map(b"".join),
)

# -- the peer's own end

_OPENING = st.fixed_dictionaries(
    {},
    optional={
        "idle_timeout": st.sampled_from([0.001, 0.05, 1, 30]),
        "max_frame_size": st.sampled_from([512, 513, 1000, 2**32 - 1]),
        "channel_max": st.sampled_from([0, 1, 65535]),
        "credit": st.sampled_from([0, 1, 2**31 - 1]),
        "product": st.sampled_from(
            ["qpid-cpp", "qpid-dispatch-router", "RabbitMQ", "apache-activemq-artemis"]
        ),
        "answer": st.just(False),
    },
).map(lambda options: ["open", options])

# -- steps

_TAMPER = st.one_of(
    st.tuples(
        st.just("tamper"),
        st.integers(0, 3000),
        st.sampled_from(["flip", "set"]),
        st.integers(0, 255),
    ),
    st.tuples(
        st.just("tamper"),
        st.integers(0, 3000),
        st.sampled_from(["delete", "repeat"]),
        st.integers(1, 60),
    ),
    st.tuples(st.just("tamper"), st.integers(0, 3000), st.just("insert"), _HEX),
    st.tuples(st.just("tamper"), st.integers(0, 3000), st.just("end"), st.just(0)),
)

_STEPS = st.one_of(
    st.tuples(
        st.just("message"),
        st.sampled_from(["rpc", "notify", "reply"]),
        _MESSAGES.map(bytes.hex),
        st.booleans(),
    ),
    st.tuples(st.just("reply"), st.integers(0, 2), _REPLIES.map(bytes.hex)),
    st.tuples(st.just("bytes"), _NOISE.map(bytes.hex)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 6, 40])),
    st.tuples(st.just("cut")),
)

#: Damage to what a well-behaved peer says.
DAMAGE = st.lists(_TAMPER.map(list), min_size=1, max_size=4)

#: A peer that says what it likes.
CONVERSATIONS = st.builds(
    lambda opening, steps: [*opening, *steps],
    st.lists(_OPENING, max_size=1),
    st.lists(_STEPS.map(list), min_size=1, max_size=8),
)

#: Both.
EXAMPLES = st.one_of(
    CONVERSATIONS, DAMAGE, st.builds(lambda a, b: a + b, DAMAGE, CONVERSATIONS)
)

# -- bytes alone


def _damaged(data: bytes, damage: list[list[typing.Any]]) -> bytes:
    changed = bytearray(data)
    for _, at, kind, argument in damage:
        wire.tamper(changed, at % (len(changed) + 1), kind, argument)
    return bytes(changed)


#: For readers.run: damage to what leads far, or anything.
BYTES = st.one_of(
    st.builds(_damaged, st.sampled_from(readers.seeds()), DAMAGE),
    st.builds(
        lambda kind, data: bytes((kind,)) + data,
        st.integers(0, len(readers.READERS) - 1),
        st.one_of(_MESSAGES, _BODIES.map(str.encode), _NOISE),
    ),
)
