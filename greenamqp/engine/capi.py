# SPDX-License-Identifier: Apache-2.0
"""The hot path: proton's C API, called directly.

python-qpid-proton's classes wrap every event, link, delivery and message in a
fresh Python object; that costs more than all the rest of a round trip.  What
happens once per message therefore goes through this module, which talks to
``cproton_ffi``, the cffi module beneath those classes (python-qpid-proton 0.39
and newer).  What happens once per connection or link stays with pyngus.

Relied upon, and checked at import by :func:`check`:

* events: ``pn_collector_peek/pop``, ``pn_event_type/link/delivery``;
* transport: ``pn_transport_push/peek/pop/tick/capacity/pending``;
* links: ``pn_link_send/recv/advance/flow/credit/current`` and
  ``pn_link_drain/drained/get_drain``;
* deliveries: ``pn_delivery`` and ``pn_delivery_*``, ``pn_disposition_*``;
* messages: ``pn_message_*`` and the ``pn_data_*`` of their bodies.

``pn_transport_head`` is not among what python-qpid-proton exposes, so output is
copied once, by ``pn_transport_peek``, into a buffer that is kept.

Nothing here takes a lock or keeps a reference to a link or delivery: a pointer
is valid as long as the engine's link object that it came from is open.  A
:class:`Codec` is used by one engine, hence by one thread at a time.
"""

from __future__ import annotations

import atexit
import functools
import typing
import uuid

try:
    from cproton_ffi import ffi as ffi
    from cproton_ffi import lib as lib
except ImportError as exc:  # pragma: no cover - depends on the installation
    raise ImportError(
        "greenamqp needs python-qpid-proton 0.39 or newer, built with cffi: "
        f"its module cproton_ffi cannot be imported ({exc})"
    ) from exc

import cproton
from proton import Array, Data, Described

from greenamqp.engine import plain
from greenamqp.engine.plain import Received as Received

# When the interpreter ends, proton takes away what its objects are kept alive by.  What
# comes after that and uses one, an exit handler of the application's which cleans up or
# a green thread, would end the process with a crash.
if hasattr(cproton, "clear_retained_objects"):
    atexit.unregister(cproton.clear_retained_objects)

REQUIRED = (
    "pn_collector_peek pn_collector_pop pn_event_type pn_event_link "
    "pn_event_delivery pn_transport_push pn_transport_peek pn_transport_pop "
    "pn_transport_tick pn_transport_capacity pn_transport_pending "
    "pn_transport_closed pn_transport_get_remote_idle_timeout "
    "pn_transport_get_remote_max_frame "
    "pn_link_send pn_link_recv pn_link_advance pn_link_flow pn_link_credit "
    "pn_link_drain pn_link_drained pn_link_get_drain pn_link_is_sender "
    "pn_link_current pn_link_session pn_session_outgoing_bytes "
    "pn_delivery pn_delivery_pending pn_delivery_partial pn_delivery_aborted "
    "pn_delivery_readable pn_delivery_updated pn_delivery_settled "
    "pn_delivery_settle pn_delivery_update pn_delivery_remote_state "
    "pn_delivery_remote pn_delivery_local pn_disposition_condition "
    "pn_disposition_is_failed pn_disposition_is_undeliverable "
    "pn_disposition_set_failed pn_disposition_set_undeliverable "
    "pn_condition_is_set pn_condition_get_name pn_condition_get_description "
    "pn_condition_set_name pn_condition_set_description "
    "pn_message pn_message_free pn_message_clear pn_message_decode "
    "pn_message_encode_py pn_message_body pn_message_properties "
    "pn_message_annotations pn_message_get_id pn_message_set_id "
    "pn_message_get_correlation_id pn_message_set_correlation_id "
    "pn_message_get_address pn_message_set_address pn_message_get_reply_to "
    "pn_message_set_reply_to pn_message_get_subject pn_message_set_subject "
    "pn_message_get_content_type pn_message_set_content_type "
    "pn_message_get_content_encoding pn_message_set_content_encoding "
    "pn_message_get_ttl pn_message_set_ttl pn_message_get_priority "
    "pn_message_set_priority pn_message_is_durable pn_message_set_durable "
    "pn_message_get_expiry_time pn_message_set_expiry_time "
    "pn_message_is_inferred pn_message_set_inferred "
    "pn_data_clear pn_data_rewind pn_data_next pn_data_type "
    "pn_data_put_string pn_data_put_binary "
    "pn_data_get_string pn_data_get_binary"
).split()


def check(candidate: object = lib) -> None:
    """Raise ImportError naming every call that this proton does not expose."""
    missing = [name for name in REQUIRED if not hasattr(candidate, name)]
    if missing:
        raise ImportError(
            "this python-qpid-proton does not expose what greenamqp calls: "
            + ", ".join(missing)
            + "; install python-qpid-proton 0.39 or newer"
        )


check()

NULL = ffi.NULL

# A description may quote what a peer has sent.  With its frame it must be no larger
# than any peer takes, which is 512 bytes at the least (section 2.4.1): proton writes a
# larger one all the same, for which the peer closes the connection.
LONGEST_DESCRIPTION = 300

# What is called for each event, delivery and message, for the engine's other modules to
# import by name: to find a function in `lib` costs a third of calling it.
pn_collector_peek = lib.pn_collector_peek
pn_collector_pop = lib.pn_collector_pop
pn_event_type = lib.pn_event_type
pn_event_link = lib.pn_event_link
pn_event_delivery = lib.pn_event_delivery
pn_transport_push = lib.pn_transport_push
pn_transport_peek = lib.pn_transport_peek
pn_transport_pop = lib.pn_transport_pop
pn_transport_capacity = lib.pn_transport_capacity
pn_link_send = lib.pn_link_send
pn_link_recv = lib.pn_link_recv
pn_link_advance = lib.pn_link_advance
pn_link_credit = lib.pn_link_credit
pn_delivery = lib.pn_delivery
pn_delivery_pending = lib.pn_delivery_pending
pn_delivery_partial = lib.pn_delivery_partial
pn_delivery_aborted = lib.pn_delivery_aborted
pn_delivery_readable = lib.pn_delivery_readable
pn_delivery_settled = lib.pn_delivery_settled
pn_delivery_settle = lib.pn_delivery_settle
pn_delivery_update = lib.pn_delivery_update
pn_delivery_remote_state = lib.pn_delivery_remote_state

# Terminal delivery states (AMQP 1.0 part 3, section 3.4), as proton numbers them.
ACCEPTED: int = lib.PN_ACCEPTED
REJECTED: int = lib.PN_REJECTED
RELEASED: int = lib.PN_RELEASED
MODIFIED: int = lib.PN_MODIFIED

_STRING = lib.PN_STRING
_BINARY = lib.PN_BINARY
_ULONG = lib.PN_ULONG
_UUID = lib.PN_UUID
_PN_NULL = lib.PN_NULL
_DEFAULT_PRIORITY = lib.PN_DEFAULT_PRIORITY
_OVERFLOW = lib.PN_OVERFLOW

from_buffer = ffi.from_buffer

# First size of the buffer that messages are encoded into; it grows by doubling
# and is kept, so a process that sends large messages pays for that once.
ENCODE_BUFFER = 16 * 1024

MessageId = str | bytes | int | uuid.UUID


class DeliveryTag:
    """A delivery tag (AMQP 1.0 part 2, section 2.8.7) that is kept: a number, raised
    before each use, in the form that pn_delivery takes, which copies it."""

    __slots__ = ("number", "value")

    def __init__(self) -> None:
        #: a pointer to it
        self.number = ffi.new("uint64_t *")
        size = ffi.sizeof("uint64_t")
        #: a pn_delivery_tag_t; it points to the number, which has to live as long
        self.value = ffi.new(
            "pn_delivery_tag_t *", (size, ffi.cast("char *", self.number))
        )[0]


class DecodeError(ValueError):
    """A peer's message cannot be decoded; the text says what is wrong with it."""


class Message:
    """The fields of an AMQP message that the driver reads or sets.

    ``ttl`` is in seconds (None: not given), ``expiry_time`` in seconds since the
    epoch (0: not given).  ``body`` is str (amqp-value string), bytes (amqp-value
    binary or data sections), None (amqp-value null or no body) or, for the rare
    other types, what proton's own Message gives.
    """

    __slots__ = (
        "address",
        "annotations",
        "body",
        "content_encoding",
        "content_type",
        "correlation_id",
        "durable",
        "expiry_time",
        "id",
        "inferred",
        "priority",
        "properties",
        "reply_to",
        "subject",
        "ttl",
    )

    def __init__(
        self,
        body: typing.Any = None,
        *,
        id: MessageId | None = None,
        address: str | None = None,
        subject: str | None = None,
        reply_to: str | None = None,
        correlation_id: MessageId | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        ttl: float | None = None,
        durable: bool = False,
        priority: int = _DEFAULT_PRIORITY,
        inferred: bool = False,
        properties: dict[str, typing.Any] | None = None,
        annotations: dict[typing.Any, typing.Any] | None = None,
        expiry_time: float = 0,
    ) -> None:
        self.body = body
        self.id = id
        self.address = address
        self.subject = subject
        self.reply_to = reply_to
        self.correlation_id = correlation_id
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.ttl = ttl
        self.durable = durable
        self.priority = priority
        self.inferred = inferred
        self.properties = properties
        self.annotations = annotations
        self.expiry_time = expiry_time

    def __repr__(self) -> str:
        # The body may hold credentials of the application: it is not shown.
        shown = {
            name: value
            for name in self.__slots__
            if name != "body" and (value := getattr(self, name)) not in (None, 0, False)
        }
        return f"<Message {shown}>"


def _text(chars: typing.Any) -> str | None:
    return ffi.string(chars).decode() if chars else None


def _message_id(msgid: typing.Any) -> MessageId | None:
    kind = msgid.type
    if kind == _PN_NULL:
        return None
    value = msgid.u
    if kind == _STRING:
        raw = value.as_bytes
        return ffi.unpack(raw.start, raw.size).decode() if raw.size else ""
    if kind == _BINARY:
        raw = value.as_bytes
        return ffi.unpack(raw.start, raw.size) if raw.size else b""
    if kind == _ULONG:
        return int(value.as_ulong)
    if kind == _UUID:
        return uuid.UUID(bytes=bytes(ffi.unpack(value.as_uuid.bytes, 16)))
    return None


def _as_message_id(value: MessageId) -> dict[str, typing.Any]:
    if isinstance(value, str):
        raw = from_buffer(value.encode())
        return {"type": _STRING, "u": {"as_bytes": (len(raw), raw)}}
    if isinstance(value, bytes):
        raw = from_buffer(value)
        return {"type": _BINARY, "u": {"as_bytes": (len(raw), raw)}}
    if isinstance(value, uuid.UUID):
        return {"type": _UUID, "u": {"as_uuid": {"bytes": value.bytes}}}
    return {"type": _ULONG, "u": {"as_ulong": value}}


# Section descriptors (AMQP 1.0 part 3, section 3.2) with what proton writes after them
# when the section is empty.
_EMPTY_HEADER = b"\x00\x53\x70\x45"
_EMPTY_PROPERTIES = b"\x00\x53\x73\x45"
_NULL_FIELD = b"\x40"


# The constructor and size of a short string, by its size.
_STR8 = [b"\xa1" + bytes((size,)) for size in range(256)]


def _string(text: str) -> bytes:
    """A str8-utf8 or str32-utf8 (part 1, section 1.6.20)."""
    data = text.encode()
    size = len(data)
    if size < 256:
        return _STR8[size] + data
    return b"\xb1" + size.to_bytes(4, "big") + data


# Addresses are the same ones all the time.
_address = functools.lru_cache(maxsize=1024)(_string)


def _symbol(text: str | None) -> bytes:
    """A sym8 or sym32 (part 1, section 1.6.21), or null."""
    if text is None:
        return _NULL_FIELD
    data = text.encode()
    if len(data) < 256:
        return b"\xa3" + bytes((len(data),)) + data
    return b"\xb3" + len(data).to_bytes(4, "big") + data


def _list(descriptor: bytes, fields: list[bytes]) -> bytes:
    """A described list8 or list32 (part 1, section 1.6.22)."""
    content = b"".join(fields)
    if len(content) < 255:  # the size counts the byte of the count too
        return descriptor + bytes((0xC0, len(content) + 1, len(fields))) + content
    return (
        descriptor
        + b"\xd0"
        + (len(content) + 4).to_bytes(4, "big")
        + len(fields).to_bytes(4, "big")
        + content
    )


def _plain(message: Message) -> bytes | None:
    """The bytes of a plain message, as proton writes them; None if it is not plain.

    What the driver sends mostly is.  Putting it together here costs a fifth of handing
    each field to proton; a test compares the two for whatever hypothesis comes up with.
    """
    body = message.body
    kind = type(body)
    message_id, correlation_id = message.id, message.correlation_id
    if not (
        (kind is str or (kind is bytes and message.inferred))
        and message.properties is None
        and message.annotations is None
        and message.subject is None
        and (message_id is None or isinstance(message_id, str))
        and (correlation_id is None or isinstance(correlation_id, str))
    ):
        return None
    priority = message.priority
    if message.ttl is not None or priority != _DEFAULT_PRIORITY:
        header_fields = [
            b"\x41" if message.durable else _NULL_FIELD,
            _NULL_FIELD if priority == _DEFAULT_PRIORITY else bytes((0x50, priority)),
        ]
        if message.ttl is not None:
            ttl = _milliseconds(message.ttl)
            header_fields.append(
                b"\x52" + bytes((ttl,))
                if ttl < 256
                else b"\x70" + ttl.to_bytes(4, "big")
            )
        header = _list(b"\x00\x53\x70", header_fields)
    elif message.durable:
        header = b"\x00\x53\x70\xc0\x02\x01\x41"
    else:
        header = _EMPTY_HEADER
    # message-id, user-id, to, subject, reply-to, correlation-id, content-type and
    # -encoding, absolute-expiry-time; nulls at the end are left out.
    fields = [
        _NULL_FIELD if message_id is None else _string(message_id),
        _NULL_FIELD,
        _NULL_FIELD if message.address is None else _address(message.address),
        _NULL_FIELD,
        _NULL_FIELD if message.reply_to is None else _address(message.reply_to),
    ]
    if correlation_id is not None:
        fields.append(_string(correlation_id))
    expiry_time = int(message.expiry_time * 1000)
    if (
        expiry_time
        or message.content_type is not None
        or message.content_encoding is not None
    ):
        if correlation_id is None:
            fields.append(_NULL_FIELD)
        fields.append(_symbol(message.content_type))
        fields.append(_symbol(message.content_encoding))
        if expiry_time:
            fields.append(b"\x83" + expiry_time.to_bytes(8, "big", signed=True))
    while fields and fields[-1] is _NULL_FIELD:
        fields.pop()
    properties = _list(b"\x00\x53\x73", fields) if fields else _EMPTY_PROPERTIES
    if kind is str:
        return b"".join((header, properties, b"\x00\x53\x77", _string(body)))
    if len(body) < 256:
        start = b"\x00\x53\x75\xa0" + bytes((len(body),))
    else:
        start = b"\x00\x53\x75\xb0" + len(body).to_bytes(4, "big")
    return b"".join((header, properties, start, body))


def _milliseconds(ttl: float) -> int:
    """A ttl as AMQP counts it: whole milliseconds, of which 0 would mean "none"."""
    return max(1, min(int(ttl * 1000), 2**32 - 1))


class Codec:
    """Encodes and decodes messages with one pn_message_t that is kept.

    One engine has one; it is not to be entered by two threads at once.
    """

    __slots__ = ("_buffer", "_message", "_pointer")

    def __init__(self) -> None:
        self._message = ffi.gc(lib.pn_message(), lib.pn_message_free)
        self._resize(ENCODE_BUFFER)

    def _resize(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._pointer = from_buffer(self._buffer)

    def encode(self, message: Message) -> bytes:
        """The bytes of `message`, as proton's own Message class encodes them.

        A body of None is sent as an amqp-value section that holds null: brokers
        refuse a message with no body section at all, and every receiver reads
        both alike.
        """
        return _plain(message) or self._encode(message)

    def _encode(self, message: Message) -> bytes:
        """By proton, for any message."""
        msg = self._message
        lib.pn_message_clear(msg)
        # Strings that proton copies are held in locals until it has.
        if message.inferred:
            lib.pn_message_set_inferred(msg, True)
        if message.durable:
            lib.pn_message_set_durable(msg, True)
        if message.priority != _DEFAULT_PRIORITY:
            lib.pn_message_set_priority(msg, message.priority)
        if message.ttl is not None:
            lib.pn_message_set_ttl(msg, _milliseconds(message.ttl))
        if message.id is not None:
            lib.pn_message_set_id(msg, _as_message_id(message.id))
        if message.correlation_id is not None:
            lib.pn_message_set_correlation_id(
                msg, _as_message_id(message.correlation_id)
            )
        if message.address is not None:
            lib.pn_message_set_address(msg, message.address.encode())
        if message.reply_to is not None:
            lib.pn_message_set_reply_to(msg, message.reply_to.encode())
        if message.subject is not None:
            lib.pn_message_set_subject(msg, message.subject.encode())
        if message.content_type is not None:
            lib.pn_message_set_content_type(msg, message.content_type.encode())
        if message.content_encoding is not None:
            lib.pn_message_set_content_encoding(msg, message.content_encoding.encode())
        if message.expiry_time:
            lib.pn_message_set_expiry_time(msg, int(message.expiry_time * 1000))
        if message.properties:
            Data(lib.pn_message_properties(msg)).put_object(message.properties)
        if message.annotations:
            Data(lib.pn_message_annotations(msg)).put_object(message.annotations)
        body = message.body
        data = lib.pn_message_body(msg)
        if isinstance(body, str):
            raw = from_buffer(body.encode())
            lib.pn_data_put_string(data, (len(raw), raw))
        elif isinstance(body, (bytes, bytearray)):
            raw = from_buffer(body)
            lib.pn_data_put_binary(data, (len(raw), raw))
        elif body is not None:
            Data(data).put_object(body)
        while True:
            size = lib.pn_message_encode_py(msg, self._pointer, len(self._buffer))
            if size >= 0:
                encoded = bytes(memoryview(self._buffer)[:size])
                # Written here, since proton writes a null body or leaves it out as
                # it pleases; see the docstring.
                return encoded + b"\x00\x53\x77\x40" if body is None else encoded
            if size != _OVERFLOW:
                raise ValueError(f"message cannot be encoded (proton error {size})")
            self._resize(2 * len(self._buffer))

    def decode(self, data: bytes | bytearray | memoryview) -> Message:
        """The message that `data` holds; raises DecodeError if it holds none."""
        message: Message = self._decode(data, self._fields)
        return message

    def decode_request(self, data: bytes | bytearray | memoryview) -> Received:
        """What a request's or notification's receiver looks at: all but
        correlation_id.

        :raises DecodeError: if `data` holds no message
        """
        return plain.read(data) or self._decode(data, self._request_fields)

    def decode_reply(self, data: bytes | bytearray | memoryview) -> Received:
        """What a reply's receiver looks at: correlation_id and body.

        :raises DecodeError: if `data` holds no message
        """
        return plain.read(data) or self._decode(data, self._reply_fields)

    def _decode(
        self,
        data: bytes | bytearray | memoryview,
        fields: typing.Callable[[typing.Any], typing.Any],
    ) -> typing.Any:
        msg = self._message
        # pn_message_decode leaves the body of the message before where this one has
        # none: a heartbeat would come out as a copy of the latest reply.
        lib.pn_message_clear(msg)
        # Of nothing proton must not be asked.
        if not data or lib.pn_message_decode(msg, from_buffer(data), len(data)) != 0:
            raise DecodeError("not an AMQP 1.0 message")
        try:
            return fields(msg)
        except UnicodeDecodeError as exc:
            raise DecodeError(f"a string in the message is not UTF-8: {exc}") from None
        except RecursionError:
            raise DecodeError("the message is nested too deep") from None
        except Exception as exc:
            # Whatever it is, such as a map whose key is a list, the peer chose it.
            raise DecodeError(
                f"the message makes no sense ({type(exc).__name__}: {exc})"
            ) from None

    def _request_fields(self, msg: typing.Any) -> Received:
        return Received(
            self._body(msg),
            _message_id(lib.pn_message_get_id(msg)),
            _text(lib.pn_message_get_reply_to(msg)),
            ttl=lib.pn_message_get_ttl(msg) / 1000 or None,
            expiry_time=lib.pn_message_get_expiry_time(msg) / 1000,
        )

    def _reply_fields(self, msg: typing.Any) -> Received:
        return Received(
            self._body(msg),
            correlation_id=_message_id(lib.pn_message_get_correlation_id(msg)),
        )

    @staticmethod
    def _body(msg: typing.Any) -> typing.Any:
        # Asked for anew each time: that is when proton decodes the section.
        data = lib.pn_message_body(msg)
        lib.pn_data_rewind(data)
        if not lib.pn_data_next(data):
            return None
        kind = lib.pn_data_type(data)
        if kind == _STRING:
            raw = lib.pn_data_get_string(data)
            return ffi.unpack(raw.start, raw.size).decode() if raw.size else ""
        if kind == _BINARY:
            raw = lib.pn_data_get_binary(data)
            return bytes(ffi.buffer(raw.start, raw.size)) if raw.size else b""
        return _owned(Data(data).get_object())

    def _fields(self, msg: typing.Any) -> Message:
        message = Message.__new__(Message)
        message.id = _message_id(lib.pn_message_get_id(msg))
        message.correlation_id = _message_id(lib.pn_message_get_correlation_id(msg))
        message.address = _text(lib.pn_message_get_address(msg))
        message.reply_to = _text(lib.pn_message_get_reply_to(msg))
        message.subject = _text(lib.pn_message_get_subject(msg))
        message.content_type = _text(lib.pn_message_get_content_type(msg))
        message.content_encoding = _text(lib.pn_message_get_content_encoding(msg))
        ttl = lib.pn_message_get_ttl(msg)
        message.ttl = ttl / 1000 if ttl else None
        message.durable = lib.pn_message_is_durable(msg)
        message.priority = lib.pn_message_get_priority(msg)
        message.expiry_time = lib.pn_message_get_expiry_time(msg) / 1000
        message.inferred = lib.pn_message_is_inferred(msg)
        message.properties = _mapping(lib.pn_message_properties(msg))
        message.annotations = _mapping(lib.pn_message_annotations(msg))
        message.body = self._body(msg)
        return message


def _mapping(data: typing.Any) -> dict[typing.Any, typing.Any] | None:
    lib.pn_data_rewind(data)
    if not lib.pn_data_next(data):
        return None
    value = _owned(Data(data).get_object())
    return value if isinstance(value, dict) else None


def _owned(value: typing.Any) -> typing.Any:
    """`value` without references into proton's memory: proton gives binaries as views
    of the message, which is overwritten by the next one."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {_owned(key): _owned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_owned(item) for item in value]
    if isinstance(value, Described):
        return Described(_owned(value.descriptor), _owned(value.value))
    if isinstance(value, Array):
        return Array(
            value.descriptor, value.type, *(_owned(item) for item in value.elements)
        )
    return value


def condition_of(condition: typing.Any) -> tuple[str, str] | None:
    """(name, description) of a pn_condition_t, or None where it is not set."""
    if condition == NULL or not lib.pn_condition_is_set(condition):
        return None
    name = lib.pn_condition_get_name(condition)
    text = lib.pn_condition_get_description(condition)
    return (
        ffi.string(name).decode(errors="replace") if name else "",
        ffi.string(text).decode(errors="replace") if text else "",
    )


def set_condition(condition: typing.Any, name: str, description: str) -> None:
    """Set name and description of a pn_condition_t that belongs to this side, the
    description up to LONGEST_DESCRIPTION."""
    lib.pn_condition_set_name(condition, name.encode())
    text = description.encode(errors="replace")
    if len(text) > LONGEST_DESCRIPTION:
        text = text[:LONGEST_DESCRIPTION].decode(errors="ignore").encode()
    lib.pn_condition_set_description(condition, text)
