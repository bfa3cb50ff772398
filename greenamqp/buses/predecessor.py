# SPDX-License-Identifier: Apache-2.0
"""The format of the ``amqp`` driver that oslo.messaging had.

The body is one JSON object in an amqp-value string:

* request or notification: ``request`` (what the application sends, for notifications
  usually in oslo.messaging's 2.0 envelope), ``context``, and for calls that are
  monitored ``call_monitor_timeout`` in seconds;
* reply: ``response``, or ``failure`` with the serialised exception;
* heartbeat of a call that is still worked on: no body, a correlation-id alone.

Properties say the rest: message-id and reply-to of a call, correlation-id of a reply.
Casts and notifications have a message-id as well, by which a copy is known of what was
had before; those of the predecessor have none.  Unknown keys pass through.
"""

from __future__ import annotations

import typing

from greenamqp.buses.format import (
    BadMessage,
    Format,
    Request,
    dumps,
    in_envelope,
    loads,
    open_envelope,
    remote_exception,
    seconds,
    written_failure,
)
from greenamqp.engine import Message, Received

# As long as a UUID in hexadecimal digits.  What is shorter may be a number that another
# sender counts by, too.
_SHORTEST_UNIQUE = 32


class PredecessorFormat(Format):
    """See the module."""

    def request(
        self,
        message: typing.Any,
        context: typing.Any,
        unique_id: str,
        call_monitor_timeout: float | None = None,
    ) -> Message:
        _check_context(context)
        data = {"request": message, "context": context}
        if call_monitor_timeout is not None:
            data["call_monitor_timeout"] = call_monitor_timeout
        return Message(dumps(data), id=unique_id, inferred=True)

    def notification(
        self,
        message: typing.Any,
        context: typing.Any,
        unique_id: str,
        *,
        envelope: bool,
    ) -> Message:
        _check_context(context)
        if envelope:
            message = in_envelope(message)
        data = {"request": message, "context": context}
        return Message(dumps(data), id=unique_id, durable=True, inferred=True)

    def expect_reply(self, request: Message, id: str, reply_to: str) -> None:
        request.id = id
        request.reply_to = reply_to

    def reply(
        self, id: typing.Any, reply: typing.Any, failure: typing.Any, unique_id: str
    ) -> Message:
        if failure:
            data = {"failure": written_failure(failure)}
        else:
            data = {"response": reply}
        return Message(dumps(data), correlation_id=id, inferred=True)

    def heartbeat(self, id: typing.Any, unique_id: str) -> Message:
        return Message(None, correlation_id=id)

    def parse_request(self, message: Received) -> Request:
        data = loads(message.body)
        if not isinstance(data, dict):
            raise BadMessage(f"the body is not a JSON object but {type(data).__name__}")
        request = data.get("request")
        if isinstance(request, dict) and "oslo.message" in request:
            request = open_envelope(request)
        if not isinstance(request, dict):
            raise BadMessage(
                f"the request is not an object but {type(request).__name__}"
            )
        context = data.get("context")
        if context is None:
            context = {}
        if not isinstance(context, dict):
            raise BadMessage(
                f"the context is not an object but {type(context).__name__}"
            )
        id = message.id
        return Request(
            request,
            context,
            seconds(data.get("call_monitor_timeout"), "call_monitor_timeout"),
            id,
            message.reply_to,
            id if isinstance(id, str) and len(id) >= _SHORTEST_UNIQUE else None,
        )

    def parse_any(self, message: Received) -> Request:
        data = loads(message.body)
        if isinstance(data, dict) and "request" in data and "context" in data:
            return self.parse_request(message)
        return Request(data, {}, None, message.id, message.reply_to)

    def open_reply(self, message: Received) -> tuple[typing.Any, bool, typing.Any]:
        # Its body is left to `result`, hence to the caller's own green thread.
        return message.correlation_id, message.body is not None, message.body

    def result(self, content: typing.Any, allowed_modules: list[str]) -> typing.Any:
        data = loads(content)
        if not isinstance(data, dict):
            raise BadMessage(
                f"the reply is not a JSON object but {type(data).__name__}"
            )
        failure = data.get("failure")
        if failure is None:
            return data.get("response")
        raise remote_exception(failure, allowed_modules)


def _check_context(context: typing.Any) -> None:
    """Refuse one that no receiver takes, while its sender is there to be told."""
    if type(context) is dict or context is None:
        return
    # Something else may be written as an object as well.
    if dumps(context)[0] != "{":
        raise TypeError(f"the context must be a dict, not {type(context).__name__}")


#: Formats have no state: one serves all.
PREDECESSOR = PredecessorFormat()
