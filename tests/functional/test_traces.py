# SPDX-License-Identifier: Apache-2.0
"""One call is one trace, and so is one notification; each is traced once."""

import asyncio
import importlib.util
import time

import oslo_messaging
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from oslo_messaging import Target

import greenamqp
from greenamqp import aio
from tests.functional import world
from tests.functional.harness import Notified

pytestmark = [
    pytest.mark.any_bus,
    # In each child of a fork the SDK waits for a thread; where threads are green that
    # child may hang, and so would tests after these.
    pytest.mark.skipif(world.is_green(), reason="OpenTelemetry's SDK hangs in forks"),
]

ON = {"oslo_messaging_amqp": {"traces": True}}
BOTH = ON | {"oslo_messaging_tracing": {"tracing_enabled": True}}

EXPORTER = InMemorySpanExporter()


@pytest.fixture(scope="module")
def provider():
    """The one of this process: it can be set once."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(provider)


@pytest.fixture
def spans(provider):
    """Wait for so many spans; returns them by name."""
    EXPORTER.clear()

    def wait(count):
        while len(found := EXPORTER.get_finished_spans()) < count:  # the guard ends it
            time.sleep(0)
        assert len(found) == count, [span.name for span in found]
        return {span.name: span for span in found}

    return wait


class Endpoint:
    """Says in which span it runs."""

    def __init__(self):
        self.client = None

    def where(self, ctxt):
        context = trace.get_current_span().get_span_context()
        return [context.trace_id, context.span_id]

    def further(self, ctxt):
        return self.client.call({}, "where")

    def fail(self, ctxt):
        raise ValueError("such a thing")


@pytest.fixture
def endpoint(broker, bus, topic):
    endpoint = Endpoint()
    bus.server(
        endpoint,
        Target(topic=topic, server="s"),
        bus.rpc_transport(url=broker.url, options=ON),
    )
    endpoint.client = bus.client(
        Target(topic=topic), bus.rpc_transport(url=broker.url, options=ON)
    )
    return endpoint


def test_one_call_is_one_trace(endpoint, spans, topic):
    context = {"request_id": "req-1"}
    trace_id, span_id = endpoint.client.call(context, "where")
    assert context == {"request_id": "req-1"}
    found = spans(2)
    call, process = found[f"call {topic}"], found[f"process {topic}"]
    assert call.parent is None
    assert call.kind is trace.SpanKind.PRODUCER
    assert process.kind is trace.SpanKind.CONSUMER
    assert process.parent.span_id == call.context.span_id
    assert (process.context.trace_id, process.context.span_id) == (trace_id, span_id)
    assert call.context.trace_id == trace_id
    both = {
        "messaging.system": "amqp",
        "messaging.destination.name": topic,
        "openstack.request_id": "req-1",
    }
    assert dict(call.attributes) == both | {
        "messaging.operation.name": "call",
        "messaging.operation.type": "send",
        "rpc.method": "where",
    }
    assert dict(process.attributes) == both | {
        "messaging.operation.name": "request",
        "messaging.operation.type": "process",
    }


def test_what_an_endpoint_calls_is_of_the_same_trace(endpoint, spans, topic):
    trace_id, span_id = endpoint.client.call({}, "further")
    spans(4)
    by_id = {span.context.span_id: span for span in EXPORTER.get_finished_spans()}
    names = []
    while True:
        span = by_id[span_id]
        assert span.context.trace_id == trace_id
        names.append(span.name)
        if span.parent is None:
            break
        span_id = span.parent.span_id
    assert names == [f"process {topic}", f"call {topic}"] * 2
    # And afterwards nothing is left current.
    assert endpoint.client.call({}, "where")[0] != trace_id


def test_a_failure(endpoint, spans, topic):
    with pytest.raises(ValueError, match="such a thing"):
        endpoint.client.call({}, "fail")
    for span in spans(2).values():
        assert span.attributes["error.type"] == "ValueError"
        assert span.status.status_code is trace.StatusCode.ERROR


@pytest.mark.parametrize("junk", [5, ["x"], None, "x", {"a": 1}])
def test_a_context_that_makes_no_sense(endpoint, spans, topic, junk):
    """It is the sender's; what it calls is carried out all the same."""
    endpoint.client.call({"traceparent": junk, "tracestate": junk}, "where")
    spans(2)


def test_greenamqps_own_server(broker, bus, spans, topic):
    server = greenamqp.Server(bus.rpc_transport(url=broker.url, options=ON))
    server.start()
    server.listen(Target(topic=topic, server="s"), [Endpoint()])
    client = bus.client(
        Target(topic=topic), bus.rpc_transport(url=broker.url, options=ON)
    )
    try:
        trace_id, span_id = client.call({}, "where")
    finally:
        server.stop()
        server.wait()
    process = spans(2)[f"process {topic}"]
    assert (process.context.trace_id, process.context.span_id) == (trace_id, span_id)


class Coroutine:
    async def where(self, ctxt):
        await asyncio.sleep(0)
        return Endpoint().where(ctxt)


@pytest.mark.skipif(world.current() != "threads", reason="here loops are green")
def test_coroutines(broker, bus, spans, topic):
    async def test():
        async with (
            aio.closing(bus.rpc_transport(url=broker.url, options=ON)) as serving,
            aio.closing(bus.rpc_transport(url=broker.url, options=ON)) as calling,
            aio.Server(serving) as server,
        ):
            await server.listen(Target(topic=topic, server="s"), [Coroutine()])
            client = aio.RPCClient(calling, Target(topic=topic))
            return await client.call({}, "where")

    trace_id, span_id = asyncio.run(test())
    found = spans(2)
    process = found[f"process {topic}"]
    assert (process.context.trace_id, process.context.span_id) == (trace_id, span_id)
    assert process.parent.span_id == found[f"call {topic}"].context.span_id


def test_a_notification(broker, bus, spans, topic):
    endpoint = Notified()
    bus.listener(
        endpoint,
        [Target(topic=topic)],
        bus.notification_transport(url=broker.url, options=ON),
    )
    notifier = oslo_messaging.Notifier(
        bus.notification_transport(url=broker.url, options=ON),
        "here",
        driver="messaging",
        topics=[topic],
    )
    notifier.info({}, "one", {})
    endpoint.got.wait(1)
    found = spans(2)
    send = found[f"notify {topic}.info"]
    (process,) = [span for name, span in found.items() if name.startswith("process")]
    assert process.parent.span_id == send.context.span_id
    assert process.context.trace_id == send.context.trace_id


@pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging._tracing") is None,
    reason="this oslo.messaging does not trace",
)
def test_rpc_is_not_traced_twice(broker, bus, spans, topic):
    bus.server(
        Endpoint(),
        Target(topic=topic, server="s"),
        bus.rpc_transport(url=broker.url, options=BOTH),
    )
    client = bus.client(
        Target(topic=topic), bus.rpc_transport(url=broker.url, options=BOTH)
    )
    client.call({}, "where")
    found = spans(2)
    assert {span.instrumentation_scope.name for span in found.values()} == {
        "oslo.messaging"
    }
    assert len({span.context.trace_id for span in found.values()}) == 1
    transport = bus.notification_transport(url=broker.url, options=BOTH)
    oslo_messaging.Notifier(transport, "here", driver="messaging", topics=[topic]).info(
        {}, "one", {}
    )
    assert f"notify {topic}.info" in spans(3)
