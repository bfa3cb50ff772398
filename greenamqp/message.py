# SPDX-License-Identifier: Apache-2.0
"""oslo.messaging's requests, replies and notifications, to and from AMQP messages.

The body is one JSON object in an amqp-value string, as the predecessor's:

* request or notification: ``request`` (what the application sends, for notifications
  usually in oslo.messaging's 2.0 envelope), ``context``, and for calls that are
  monitored ``call_monitor_timeout`` in seconds;
* reply: ``response``, or ``failure`` with the serialised exception;
* heartbeat of a call that is still worked on: no body, a correlation-id alone.

Unknown keys pass through; nothing a peer sends is imported or run, but for the
exceptions whose modules the application has allowed.
"""

from __future__ import annotations

import json
import typing

from oslo_messaging._drivers import common
from oslo_serialization import jsonutils

from greenamqp.engine import Received

# jsonutils.dumps makes an encoder for each call; these are kept and give the same
# bytes for half the time.  The faster one does not look for circular references (that
# takes a table that threads cannot share): it recurses until Python stops it, and the
# other one then finds out why.
_encode = json.JSONEncoder(default=jsonutils.to_primitive).encode
_encode_fast: typing.Any = None
if json.encoder.c_make_encoder is not None:
    _encode_fast = json.encoder.c_make_encoder(
        None,
        jsonutils.to_primitive,
        json.encoder.encode_basestring_ascii,
        None,
        ": ",
        ", ",
        False,
        False,
        True,
    )
_decoder = json.JSONDecoder()
_decode = _decoder.decode
_scan = _decoder.scan_once


# The longest time that a peer may ask for; JSON has numbers that no clock can add.
MAX_SECONDS = 2**31


class BadMessage(ValueError):
    """A message that is not what it should be; the text says in which way."""


class Request(typing.NamedTuple):
    """What a request or notification holds."""

    message: dict[str, typing.Any]
    context: dict[str, typing.Any]
    call_monitor_timeout: float | None


def dumps(value: typing.Any) -> str:
    """As ``oslo_serialization.jsonutils.dumps``, byte for byte."""
    if _encode_fast is None:
        return _encode(value)
    try:
        return "".join(_encode_fast(value, 0))
    except (RecursionError, ValueError):
        return _encode(value)


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


def request_body(
    message: typing.Any,
    context: typing.Any,
    *,
    envelope: bool = False,
    call_monitor_timeout: float | None = None,
) -> str:
    """The body of a request or notification.

    :param envelope: wrap the message as version 2.0 of oslo.messaging's format
    :raises TypeError, ValueError: what cannot be serialised is the application's
        mistake, and named
    """
    if envelope:
        message = common.serialize_msg(message)
    data = {"request": message, "context": context}
    if call_monitor_timeout is not None:
        data["call_monitor_timeout"] = call_monitor_timeout
    return dumps(data)


def parse_request(message: Received) -> Request:
    """What a request or notification holds.

    :raises BadMessage: if it is no such thing
    """
    data = loads(message.body)
    if not isinstance(data, dict):
        raise BadMessage(f"the body is not a JSON object but {type(data).__name__}")
    request = data.get("request")
    if isinstance(request, dict) and "oslo.message" in request:
        try:
            request = common.deserialize_msg(request)
        except RecursionError:
            raise BadMessage("the message is nested too deeply") from None
        except Exception as exc:
            raise BadMessage(f"the envelope cannot be opened: {exc}") from None
    if not isinstance(request, dict):
        raise BadMessage(f"the request is not an object but {type(request).__name__}")
    context = data.get("context")
    if context is None:
        context = {}
    if not isinstance(context, dict):
        raise BadMessage(f"the context is not an object but {type(context).__name__}")
    monitor = data.get("call_monitor_timeout")
    if monitor is not None and (
        isinstance(monitor, bool)
        or not isinstance(monitor, (int, float))
        or not 0 <= monitor <= MAX_SECONDS
    ):
        raise BadMessage("call_monitor_timeout is no number of seconds")
    return Request(request, context, monitor)


def parse_any(message: Received) -> Request:
    """What a message of any program holds: a request of oslo.messaging's as such, any
    other JSON value with an empty context.

    :raises BadMessage: if it is not JSON
    """
    data = loads(message.body)
    if isinstance(data, dict) and "request" in data and "context" in data:
        return parse_request(message)
    return Request(data, {}, None)


def reply_body(reply: typing.Any, failure: typing.Any) -> str:
    """The body of a reply; `failure` is an exc_info triple or None."""
    if failure:
        return dumps({"failure": common.serialize_remote_exception(failure)})
    return dumps({"response": reply})


def parse_reply(message: Received, allowed_modules: list[str]) -> typing.Any:
    """What a call returns.

    :raises BadMessage: if it is no reply
    :raises Exception: the remote exception, of its own class where its module is
        allowed, else oslo_messaging.RemoteError
    """
    data = loads(message.body)
    if not isinstance(data, dict):
        raise BadMessage(f"the reply is not a JSON object but {type(data).__name__}")
    failure = data.get("failure")
    if failure is None:
        return data.get("response")
    try:
        exception = common.deserialize_remote_exception(failure, allowed_modules)
    except RecursionError:
        raise BadMessage("the failure is nested too deeply") from None
    except Exception as exc:
        raise BadMessage(f"the failure cannot be read: {exc}") from None
    raise exception
