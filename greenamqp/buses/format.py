# SPDX-License-Identifier: Apache-2.0
"""What every format provides, and the JSON that all of them are made of.

Nothing a peer sends is imported or run, but for the exceptions whose modules the
application has allowed.
"""

from __future__ import annotations

import abc
import json
import typing

from oslo_messaging import RemoteError
from oslo_messaging._drivers import common
from oslo_serialization import jsonutils

from greenamqp.engine import Message, Received

# jsonutils.dumps makes an encoder for each call; these are kept and give the same
# bytes for half the time.  The faster ones do not look for circular references (that
# takes a table that threads cannot share): they recurse until Python stops them, and
# the other one then finds out why.
_encode = json.JSONEncoder(default=jsonutils.to_primitive).encode
_make_encoder: typing.Any = getattr(json.encoder, "c_make_encoder", None)
_base_quoted = json.encoder.encode_basestring_ascii

# A text of so many characters is long: looking through it for each of those that want
# an escape, which the C library does many at a time, takes a fifth of copying them one
# by one.  Of shorter ones that is not worth a call of Python.
LONG_TEXT = 4096

# So much of a text's beginning tells how often it wants escapes, and where that is more
# than once in so much, putting them in kind by kind takes longer.  Characters.
_SAMPLE = 4096
_SELDOM = 32

# What wants an escape in ASCII, and which; first that which is in all escapes.
_ESCAPES = [
    (char, _base_quoted(char)[1:-1])
    for char in ("\\", '"', *map(chr, range(0x20)), "\x7f")
]


def quoted(text: str) -> str:
    """`text` as a string of JSON, as :mod:`json` writes it."""
    if len(text) < LONG_TEXT or type(text) is not str or not text.isascii():
        return _base_quoted(text)
    escaped = text
    for char, escape in _ESCAPES:
        if char in text:
            if text.count(char, 0, _SAMPLE) * _SELDOM > _SAMPLE:
                return _base_quoted(text)
            escaped = escaped.replace(char, escape)
    return f'"{escaped}"'


def _encoder(quote: typing.Callable[[str], str]) -> typing.Any:
    if _make_encoder is None:
        return None
    to_primitive = jsonutils.to_primitive
    return _make_encoder(
        None, to_primitive, quote, None, ": ", ", ", False, False, True
    )


_encode_fast = _encoder(_base_quoted)
# It calls Python for each text, so it is for those values alone that have long ones.
_encode_long = _encoder(quoted)
_decoder: typing.Any = json.JSONDecoder()
_decode = _decoder.decode
_scan = _decoder.scan_once

# The longest time that a peer may ask for; JSON has numbers that no clock can add.
MAX_SECONDS = 2**31


class BadMessage(ValueError):
    """A message that is not what it should be; the text says in which way."""


class Request(typing.NamedTuple):
    """What a request or notification holds.

    :ivar call_monitor_timeout: seconds without a heartbeat after which the caller
        gives up, or None
    :ivar id: what a reply names as that which it replies to
    :ivar reply_to: where a reply goes; None: none is wanted
    :ivar unique_id: the same in each copy of one message, or None: not said
    """

    message: typing.Any
    context: dict[str, typing.Any]
    call_monitor_timeout: float | None = None
    id: typing.Any = None
    reply_to: str | None = None
    unique_id: str | None = None


class Format(abc.ABC):
    """Puts into messages what an application says, and reads what peers say.

    What it makes lacks what the client knows: address, time to live, and for calls
    (see `expect_reply`) where the reply is to go.
    """

    @abc.abstractmethod
    def request(
        self,
        message: typing.Any,
        context: typing.Any,
        unique_id: str,
        call_monitor_timeout: float | None = None,
    ) -> Message:
        """An RPC request.

        :param unique_id: the same whenever this is sent again
        :raises TypeError, ValueError: what cannot be serialised is the application's
            mistake, and named
        """

    @abc.abstractmethod
    def notification(
        self,
        message: typing.Any,
        context: typing.Any,
        unique_id: str,
        *,
        envelope: bool,
    ) -> Message:
        """A notification; as `request`.

        :param envelope: whether to wrap it, as version 2.0 of oslo.messaging's format
        """

    @abc.abstractmethod
    def expect_reply(self, request: Message, id: str, reply_to: str) -> None:
        """Have a request that `request` made say so: of one attempt, each has an id of
        its own."""

    def identify(self, message: Message) -> str:
        """The id of a message that is sent, for the log; "" if it has none."""
        return str(message.id or message.correlation_id or "")

    @abc.abstractmethod
    def reply(
        self, id: typing.Any, reply: typing.Any, failure: typing.Any, unique_id: str
    ) -> Message:
        """The reply to the request `id`; `failure` is an exc_info triple or None."""

    @abc.abstractmethod
    def heartbeat(self, id: typing.Any, unique_id: str) -> Message:
        """What tells a caller that the request `id` is still worked on."""

    @abc.abstractmethod
    def parse_request(self, message: Received) -> Request:
        """What a request or notification holds.

        :raises BadMessage: if it is no such thing
        """

    @abc.abstractmethod
    def parse_any(self, message: Received) -> Request:
        """What a message of any program holds: a request of oslo.messaging's as such,
        any other JSON value with an empty context.

        :raises BadMessage: if it is not JSON
        """

    @abc.abstractmethod
    def open_reply(self, message: Received) -> tuple[typing.Any, bool, typing.Any]:
        """The id of the request, whether this is the reply (else: a heartbeat), and
        what `result` is to be given.

        :raises BadMessage: if it is no reply
        """

    @abc.abstractmethod
    def result(self, content: typing.Any, allowed_modules: list[str]) -> typing.Any:
        """What a call returns.

        :raises BadMessage: if it is no reply
        :raises Exception: the remote exception, of its own class where its module is
            allowed, else oslo_messaging.RemoteError
        """


def dumps(value: typing.Any) -> str:
    """As ``oslo_serialization.jsonutils.dumps``, byte for byte."""
    if _encode_fast is None:
        return _encode(value)
    encode = _encode_fast
    if type(value) is dict and _has_long_text(value, 2):
        encode = _encode_long
    try:
        return "".join(encode(value, 0))
    except (RecursionError, ValueError):
        return _encode(value)


def _has_long_text(value: dict[typing.Any, typing.Any], levels: int) -> bool:
    """Whether there is a long text in `value`, or in dicts in it, `levels` deep: that
    is where arguments and payloads are."""
    for each in [*value.values()]:  # at once: another thread may change it
        kind = type(each)
        if kind is str:
            if len(each) >= LONG_TEXT:
                return True
        elif kind is dict and each and levels and _has_long_text(each, levels - 1):
            return True
    return False


def loads(body: typing.Any) -> typing.Any:
    """The JSON value in a message's body.

    :raises BadMessage: if there is none, or it is nested too deeply
    """
    if isinstance(body, bytes):
        try:
            body = body.decode()
        except UnicodeDecodeError:
            raise BadMessage("the body is not UTF-8") from None
    if not isinstance(body, str):
        raise BadMessage(f"the body is not text but {type(body).__name__}")
    try:
        value, end = _scan(body, 0)
        if end == len(body):
            return value
    except (StopIteration, ValueError):
        pass  # blanks around it, or an error that the whole decoder words better
    except RecursionError:
        raise BadMessage("the JSON in the body is nested too deeply") from None
    try:
        return _decode(body)
    except RecursionError:
        raise BadMessage("the JSON in the body is nested too deeply") from None
    except ValueError as exc:
        raise BadMessage(f"the body is not JSON: {exc}") from None


def seconds(value: typing.Any, name: str) -> float | None:
    """A number of seconds from a message, or None.

    :raises BadMessage: naming it, if it is neither
    """
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 <= value <= MAX_SECONDS
    ):
        raise BadMessage(f"{name} is no number of seconds")
    return value


def written_failure(failure: typing.Any) -> str:
    """`failure`, an exc_info triple, for a reply.

    What JSON cannot write of the exception, such as the bytes that a UnicodeDecodeError
    is about, is left out: the caller hears of its class and its text all the same.
    """
    try:
        return str(common.serialize_remote_exception(failure))
    except Exception:
        kind, raised, trace = failure
        told = type(kind.__name__, (Exception,), {"__module__": kind.__module__})
        return str(common.serialize_remote_exception((told, told(str(raised)), trace)))


def remote_exception(failure: typing.Any, allowed_modules: list[str]) -> Exception:
    """The exception that `failure` describes.

    :raises BadMessage: if it describes none
    """
    try:
        rebuilt: Exception
        rebuilt = common.deserialize_remote_exception(failure, allowed_modules)
        return rebuilt
    except RecursionError:
        raise BadMessage("the failure is nested too deeply") from None
    except Exception as exc:
        # The class itself may be what does not take its arguments, as they came.
        described = _as_described(failure)
        if described is None:
            raise BadMessage(f"the failure cannot be read: {exc}") from None
        return described


def _as_described(failure: typing.Any) -> Exception | None:
    """The remote exception without its class, if `failure` says as much."""
    try:
        fields = loads(failure)
        name, text, trace = fields["class"], fields["message"], fields["tb"]
    except (BadMessage, KeyError, TypeError):
        return None
    if not (isinstance(name, str) and isinstance(text, str)):
        return None
    described: Exception = RemoteError(name, text, trace)
    return described


def in_envelope(value: typing.Any) -> dict[str, str]:
    """`value` in oslo.messaging's envelope, as its common.serialize_msg makes it, in
    less than half of the time."""
    return {"oslo.version": "2.0", "oslo.message": dumps(value)}


def open_envelope(value: dict[str, typing.Any]) -> typing.Any:
    """What is in oslo.messaging's envelope, or `value` if it is none.

    :raises BadMessage: if it cannot be opened
    """
    if value.get("oslo.version") == "2.0" and "oslo.message" in value:
        # As below, without a parser of versions for each message.
        try:
            return loads(value["oslo.message"])
        except BadMessage as exc:
            raise BadMessage(f"the envelope cannot be opened: {exc}") from None
    try:
        return common.deserialize_msg(value)
    except RecursionError:
        raise BadMessage("the message is nested too deeply") from None
    except Exception as exc:
        raise BadMessage(f"the envelope cannot be opened: {exc}") from None
