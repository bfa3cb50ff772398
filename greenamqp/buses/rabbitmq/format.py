# SPDX-License-Identifier: Apache-2.0
"""The format of oslo.messaging's ``rabbit://`` driver.

The body is JSON in UTF-8 in one data section, content-type ``application/json``: an
envelope of two strings, ``oslo.version`` and ``oslo.message``, of which the second one
holds JSON once more (for notifications of version 1 there is no envelope).  In there is
one flat object:

* request or notification: the fields of the message itself, the context with
  ``_context_`` before each of its keys, ``_unique_id``, by which a receiver knows a
  copy of what it has had, and for calls ``_msg_id``, ``_reply_q`` (a queue's name) and
  ``_timeout`` (seconds without a heartbeat, or null);
* reply: ``result``, ``failure`` (a serialised exception, or null), ``_msg_id`` and
  ``ending``; a heartbeat is a reply that is not ``ending``.

What a call says about its reply differs with each attempt, and all else does not.  So a
request's body is kept without its end, which `expect_reply` puts on: the fields of an
object may be written one after another, and JSON escapes a string character by
character, so that what is in the envelope need not be escaped again.
"""

from __future__ import annotations

import re
import typing

from greenamqp.buses.format import (
    BadMessage,
    Format,
    Request,
    dumps,
    loads,
    open_envelope,
    quoted,
    remote_exception,
    seconds,
    written_failure,
)
from greenamqp.engine import Message, Received

_ENVELOPE = '{"oslo.version": "2.0", "oslo.message": '
_CONTEXT = "_context_"

# The id of a request or of what it is replied, else that of the message; in an envelope
# the quotes are escaped.
_IDS = [
    re.compile(rb'"_msg_id\\?": \\?"([^"\\]+)'),
    re.compile(rb'"_unique_id\\?": \\?"([^"\\]+)'),
]

# The rabbit:// driver sends all with this; another one would be overtaken by it, or
# overtake it, in a quorum queue.
_PRIORITY = 0


class _Request(Message):
    """A request, the end of whose body may be written again.

    :ivar head: the body without that end
    """

    __slots__ = ("head",)

    head: str


def _message(body: str, kind: type[Message] = Message) -> Message:
    return kind(
        body.encode(),
        content_type="application/json",
        content_encoding="utf-8",
        durable=True,
        priority=_PRIORITY,
        inferred=True,
    )


def _flat(
    message: typing.Any, context: typing.Any, unique_id: str
) -> dict[str, typing.Any]:
    if not isinstance(message, dict):
        raise TypeError(
            "what is sent to rabbit:// services must be a dict, not "
            f"{type(message).__name__}"
        )
    if context is None:
        context = {}
    elif not isinstance(context, dict):
        # A request context that no serializer has made a dict of, as theirs takes it.
        if not hasattr(context, "to_dict"):
            raise TypeError(f"the context must be a dict, not {type(context).__name__}")
        context = context.to_dict()
    data = dict(message)
    data["_unique_id"] = unique_id
    for key, value in context.items():
        data[f"{_CONTEXT}{key}"] = value
    return data


class RabbitFormat(Format):
    """See the module."""

    def request(
        self,
        message: typing.Any,
        context: typing.Any,
        unique_id: str,
        call_monitor_timeout: float | None = None,
    ) -> Message:
        data = _flat(message, context, unique_id)
        if call_monitor_timeout is not None:
            data["_timeout"] = call_monitor_timeout
        # Without the brace and the quote at its end.
        head = _ENVELOPE + quoted(dumps(data))[:-2]
        made = typing.cast(_Request, _message(head + '}"}', _Request))
        made.head = head
        return made

    def notification(
        self,
        message: typing.Any,
        context: typing.Any,
        unique_id: str,
        *,
        envelope: bool,
    ) -> Message:
        body = dumps(_flat(message, context, unique_id))
        return _message(f"{_ENVELOPE}{quoted(body)}}}" if envelope else body)

    def expect_reply(self, request: Message, id: str, reply_to: str) -> None:
        tail = quoted(dumps({"_msg_id": id, "_reply_q": reply_to}))
        # Without its quote and brace, and with a comma for them.
        head = typing.cast(_Request, request).head
        request.body = f"{head}, {tail[2:]}}}".encode()

    def identify(self, message: Message) -> str:
        for pattern in _IDS:
            found = pattern.findall(message.body)
            if found:  # what the application sends may hold such a key before ours
                return str(found[-1], "ascii", "replace")
        return ""

    def reply(
        self, id: typing.Any, reply: typing.Any, failure: typing.Any, unique_id: str
    ) -> Message:
        if failure:
            reply, failure = None, written_failure(failure)
        return self._reply(id, reply, failure or None, True, unique_id)

    def heartbeat(self, id: typing.Any, unique_id: str) -> Message:
        return self._reply(id, None, None, False, unique_id)

    def _reply(
        self,
        id: typing.Any,
        result: typing.Any,
        failure: str | None,
        ending: bool,
        unique_id: str,
    ) -> Message:
        data = {
            "result": result,
            "failure": failure,
            "ending": ending,
            "_msg_id": id,
            "_unique_id": unique_id,
        }
        body = f"{_ENVELOPE}{quoted(dumps(data))}}}"
        return _message(body)

    def _open(self, message: Received) -> typing.Any:
        data = loads(message.body)
        if isinstance(data, dict) and "oslo.message" in data:
            return open_envelope(data)
        return data

    def parse_request(self, message: Received) -> Request:
        data = self._open(message)
        if not isinstance(data, dict):
            raise BadMessage(
                f"the message is not a JSON object but {type(data).__name__}"
            )
        return self._request(data)

    def parse_any(self, message: Received) -> Request:
        data = self._open(message)
        if isinstance(data, dict):
            return self._request(data)
        return Request(data, {})

    def _request(self, data: dict[str, typing.Any]) -> Request:
        context = {}
        fields = {}
        for key, value in data.items():
            if key.startswith(_CONTEXT):
                context[key[len(_CONTEXT) :]] = value
            else:
                fields[key] = value
        id = _name(fields.pop("_msg_id", None), "_msg_id")
        reply_to = _name(fields.pop("_reply_q", None), "_reply_q")
        return Request(
            fields,
            context,
            seconds(fields.pop("_timeout", None), "_timeout"),
            id,
            reply_to if id else None,
            _name(fields.pop("_unique_id", None), "_unique_id"),
        )

    def open_reply(self, message: Received) -> tuple[typing.Any, bool, typing.Any]:
        data = self._open(message)
        if not isinstance(data, dict):
            raise BadMessage(
                f"the reply is not a JSON object but {type(data).__name__}"
            )
        return (
            _name(data.get("_msg_id"), "_msg_id"),
            bool(data.get("ending")),
            data,
        )

    def result(self, content: typing.Any, allowed_modules: list[str]) -> typing.Any:
        failure = content.get("failure")
        if failure:
            raise remote_exception(failure, allowed_modules)
        return content.get("result")


def _name(value: typing.Any, field: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise BadMessage(f"{field} is not a string but {type(value).__name__}")


#: Formats have no state: one serves all.
RABBIT = RabbitFormat()
