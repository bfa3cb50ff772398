# SPDX-License-Identifier: Apache-2.0
"""Spans of OpenTelemetry: one for each message that is sent, one for its processing.

Both are of one trace.  What the second needs to know of the first travels in the
message's context, as with oslo.messaging's own tracing, so that either end may use
either: that context passes every message bus and every format.

The span of an RPC request is current while its endpoint runs, so that what the endpoint
calls is part of the trace.  That of a notification is not: a stock listener does not
tell the driver when it begins.
"""

from __future__ import annotations

import threading
import typing

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from greenamqp.client import Reply
from greenamqp.hubs import Steps
from greenamqp.telemetry.states import message_attributes

_Result = typing.TypeVar("_Result")

Context = dict[str, typing.Any]


class Tracer:
    """The spans of one transport.  From any thread.

    :param rpc: whether RPC is traced; False: oslo.messaging does
    """

    def __init__(self, rpc: bool) -> None:
        self._rpc = rpc
        self._tracer = trace.get_tracer("greenamqp")

    def sending(
        self,
        what: str,
        topic: str,
        context: Context,
        message: typing.Any,
        steps: typing.Callable[[Context], Steps[_Result]],
    ) -> Steps[_Result]:
        """The steps that send a message, with a span around them, or of a call until
        its reply.  To be called where the application sends, as that is where the span
        belongs.

        :param steps: are given the context that the message is to have: one of its own,
            with the trace in it, unless the application has put one there
        """
        if not self._traces(what):
            return steps(context)
        attributes = _attributes(what, topic, "send", context)
        method = message.get("method") if isinstance(message, dict) else None
        if isinstance(method, str):
            attributes["rpc.method"] = method
        span = self._tracer.start_span(
            f"{attributes['messaging.operation.name']} {topic}",
            kind=trace.SpanKind.PRODUCER,
            attributes=attributes,
        )
        carrier = dict(context)
        if "traceparent" not in carrier:
            propagate.inject(carrier, trace.set_span_in_context(span))
        return _around(span, steps(carrier))

    def handed_out(
        self, what: str, topic: str | None, context: Context
    ) -> Process | None:
        """See :data:`greenamqp.client.observer.HandedOut`."""
        if not self._traces(what):
            return None
        attributes = _attributes(what, topic, "process", context)
        process = Process(self._tracer, f"process {topic}", attributes, context)
        if what == "notification":
            process.start()
        return process

    def _traces(self, what: str) -> bool:
        return self._rpc or what == "notification"


class Process:
    """The span of what is done with a message; see
    :class:`greenamqp.client.observer.Processing`."""

    def __init__(
        self, tracer: trace.Tracer, name: str, attributes: Context, context: Context
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes
        self._context = context
        self._span: trace.Span | None = None
        self._current: tuple[int, typing.Any] | None = None

    def start(self) -> trace.Span:
        """The work begins."""
        # Whatever a sender puts there, it is no reason to fail.
        texts = {key: t for key, t in self._context.items() if isinstance(t, str)}
        self._span = self._tracer.start_span(
            self._name,
            context=propagate.extract(texts),
            kind=trace.SpanKind.CONSUMER,
            attributes=self._attributes,
        )
        return self._span

    def begun(self) -> None:
        """It is an RPC request that is carried out next, in this thread."""
        token = otel_context.attach(trace.set_span_in_context(self.start()))
        self._current = threading.get_ident(), token

    def ended(self, error: str) -> None:
        """It was replied to, acknowledged or given back."""
        if self._current is not None:
            thread, token = self._current
            if thread == threading.get_ident():
                otel_context.detach(token)
        if self._span is not None:
            if error:
                _failed(self._span, error)
            self._span.end()


def _around(span: trace.Span, steps: Steps[_Result]) -> Steps[_Result]:
    try:
        result = yield from steps
        if isinstance(result, Reply):
            # What the server raised is raised to the caller later, by its own class.
            try:
                result.result([])
            except Exception as exc:
                _failed(span, getattr(exc, "exc_type", type(exc).__name__))
        return result
    except Exception as exc:
        span.record_exception(exc)
        _failed(span, type(exc).__name__)
        raise
    finally:
        span.end()


def _failed(span: trace.Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(trace.StatusCode.ERROR)


def _attributes(what: str, topic: str | None, type: str, context: Context) -> Context:
    attributes: Context = dict(message_attributes(what, topic))
    attributes["messaging.operation.type"] = type
    request = context.get("request_id")
    if isinstance(request, str):
        attributes["openstack.request_id"] = request
    return attributes
