# SPDX-License-Identifier: Apache-2.0
"""What OpenTelemetry's readers get: in memory, and as Prometheus's text."""

import json
import pathlib
import re
import subprocess
import sys
import time

import oslo_messaging
import prometheus_client
import pytest
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from oslo_messaging import Target

import greenamqp
from greenamqp.telemetry import states
from tests.functional import world
from tests.functional.harness import Gate, Notified, in_thread

pytestmark = [
    pytest.mark.any_bus,
    # In each child of a fork the SDK waits for a thread; where threads are green that
    # child may hang, and so would tests after these.
    pytest.mark.skipif(world.is_green(), reason="OpenTelemetry's SDK hangs in forks"),
]

ON = {"oslo_messaging_amqp": {"metrics": True}}
#: Comes into being a second after the start.
RARE = {"greenamqp_hub_delay_seconds_bucket"}
#: Labels that Prometheus adds, and one that only failures have.
FOREIGN = {"instance", "error_type"}

DASHBOARD = pathlib.Path(__file__).parents[2] / "docs/dashboards/grafana.json"


@pytest.fixture(scope="module")
def reader():
    """The one of this process: a meter provider can be set once."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader, PrometheusMetricReader()]))
    return reader


@pytest.fixture
def read(reader):
    """The points of a metric, as {values of attributes: value}; what was counted before
    this test is left out."""

    def points():
        found = {}
        data = reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        value = getattr(point, "value", None)
                        if value is None:
                            value = point.count
                        key = metric.name, frozenset(point.attributes.items())
                        found[key] = value
        return found

    before = points()

    def read(name, *attributes):
        found = {}
        for (metric, items), value in points().items():
            if metric == name:
                if name.startswith("messaging."):
                    value -= before.get((metric, items), 0)
                if value:
                    known = dict(items)
                    assert known["messaging.system"] == "amqp"
                    key = tuple(known.get(attribute) for attribute in attributes)
                    found[key] = found.get(key, 0) + value
        return found

    return read


class Endpoint:
    def __init__(self):
        self.gate = Gate()

    def hold(self, ctxt):
        self.gate.enter()
        return "held"

    def fail(self, ctxt):
        raise ValueError("such a thing")

    def take(self, ctxt):
        pass


REPLIES = ("reply", None, None)
OPERATION = ("messaging.operation.name", "messaging.destination.name", "error.type")


def test_a_signal_handler_may_clean_up_while_somebody_looks(
    broker, bus, reader, monkeypatch
):
    transport = bus.rpc_transport(url=broker.url, options=ON)
    transport._driver.use_hub()
    add = states.add_counters
    handlers = [transport.cleanup]

    def interrupted(*args):
        if handlers:
            handlers.pop()()
        add(*args)

    monkeypatch.setattr(states, "add_counters", interrupted)
    reader.get_metrics_data()
    assert transport._driver.client is None


def test_what_is_sent_and_received(broker, bus, topic, read):
    endpoint = Endpoint()
    bus.server(
        endpoint,
        Target(topic=topic, server="s"),
        bus.rpc_transport(url=broker.url, options=ON),
    )
    transport = bus.rpc_transport(url=broker.url, options=ON)
    client = bus.client(Target(topic=topic), transport)
    waiting = in_thread(client.call, {}, "hold")
    endpoint.gate.wait_entered()
    assert read("greenamqp.call.unanswered") == {(): 1}
    assert read("greenamqp.request.at_work") == {(): 1}
    assert read("greenamqp.connections", "greenamqp.state", "server.port") == {
        ("up", broker.port): 2
    }
    assert read("greenamqp.sender.credit")[()] > 0
    assert read("greenamqp.receiver.links")[()] > 0
    endpoint.gate.open()
    assert waiting.result() == "held"
    with pytest.raises(ValueError, match="such a thing"):
        client.call({}, "fail")
    client.cast({}, "take")
    nobody = bus.client(Target(topic="no-" + topic), transport, timeout=1)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        nobody.call({}, "hold")
    assert client.call({}, "take") is None

    # The outcome of a reply comes when its caller has it already.
    while read("messaging.client.sent.messages", *OPERATION).get(REPLIES) != 3:
        time.sleep(0)  # the guard ends it
    sent = read("messaging.client.sent.messages", *OPERATION)
    assert sent == {
        ("call", topic, None): 3,
        ("cast", topic, None): 1,
        ("call", "no-" + topic, "timeout"): 1,
        REPLIES: 3,
    }
    operation = ("messaging.operation.name", "messaging.destination.name")
    assert read("messaging.client.consumed.messages", *operation) == {
        ("request", topic): 4
    }
    assert read("messaging.client.operation.duration", *OPERATION) == sent
    outcome = ("messaging.operation.name", "greenamqp.outcome")
    outcomes = {
        ("call", "accepted"): 4,
        ("cast", "accepted"): 1,
        ("reply", "accepted"): 3,
    }
    assert read("greenamqp.client.outcomes", *outcome) == outcomes
    assert read("greenamqp.client.settlement.duration", *outcome) == outcomes
    # The last of them may not have ended yet: a cast is not replied to.
    process = read("messaging.process.duration", *OPERATION)
    assert process["request", topic, "ValueError"] == 1
    assert process["request", topic, None] in (2, 3)
    assert read("greenamqp.call.unanswered") == {}


def test_notifications(broker, bus, topic, read):
    endpoint = Notified()
    bus.listener(
        endpoint,
        [Target(topic=topic)],
        bus.notification_transport(url=broker.url, options=ON),
    )
    transport = bus.notification_transport(url=broker.url, options=ON)
    notifier = oslo_messaging.Notifier(
        transport, "here", driver="messaging", topics=[topic]
    )
    notifier.info({}, "one", {})
    notifier.error({}, "two", {})
    endpoint.got.wait(2)
    sent = read("messaging.client.sent.messages", *OPERATION)
    assert sent == {
        ("notify", f"{topic}.info", None): 1,
        ("notify", f"{topic}.error", None): 1,
    }
    consumed = read("messaging.client.consumed.messages", "messaging.operation.name")
    assert consumed == {("notify",): 2}
    # What was counted outlives the transport, and what it was doing does not.
    transport.cleanup()
    assert read("messaging.client.sent.messages", *OPERATION) == sent
    assert read("greenamqp.connections", "server.port") == {(broker.port,): 1}


def test_a_connection_that_is_lost(broker, bus, topic, read):
    before = read("greenamqp.connection.opened").get((), 0)
    transport = bus.notification_transport(url=broker.url, options=ON)
    notifier = oslo_messaging.Notifier(
        transport, "here", driver="messaging", topics=[topic]
    )
    notifier.info({}, "one", {})
    assert read("greenamqp.connection.opened") == {(): before + 1}
    down = read("greenamqp.connection.down_time")[()]
    broker.drop_connections()
    notifier.info({}, "two", {})
    assert read("greenamqp.connection.opened") == {(): before + 2}
    assert read("greenamqp.connection.down_time")[()] > down
    (connection,) = greenamqp.describe(transport)["connections"]
    assert connection["came_up"] == 2
    assert connection["time_down"] > 0


def test_the_dashboard_shows_what_there_is(broker, bus, topic, reader, tmp_path):
    """Each metric that the dashboard names is in Prometheus's text."""
    options = {
        "oslo_messaging_amqp": {"metrics": True, "notify_outbox": str(tmp_path / "o")}
    }
    transport = bus.notification_transport(url=broker.url, options=options)
    bus.listener(Notified(), [Target(topic=topic)], transport)
    notifier = oslo_messaging.Notifier(
        transport, "here", driver="messaging", topics=[topic]
    )
    notifier.info({}, "one", {})
    rpc = bus.rpc_transport(url=broker.url, options=ON)
    bus.server(Endpoint(), Target(topic=topic, server="s"), rpc)
    bus.client(Target(topic=topic), rpc).call({}, "take")
    text = prometheus_client.generate_latest().decode()
    there = {
        name: set(re.findall(r'(\w+)="', labels))
        for name, labels in re.findall(r"^(\w+)\{(.*)\}", text, re.MULTILINE)
    }
    dashboard = json.loads(DASHBOARD.read_text())
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            (name,) = re.findall(r"(\w+)\{", expression)
            shown.add(name)
            if name in RARE:
                continue
            assert name in there, f"{panel['title']}: {name} is not in:\n{text}"
            for labels in re.findall(r"by \(([^)]*)\)", expression):
                unknown = set(labels.split(", ")) - there[name] - FOREIGN
                assert not unknown, f"{panel['title']}: {name} has no {unknown}"
    # And the other way round: all that is there is shown.
    missing = {
        name
        for name in there
        if name.startswith(("messaging_", "greenamqp_"))
        and not name.endswith(("_seconds_sum", "_seconds_count"))
    } - shown
    assert not missing, missing


@pytest.mark.parametrize("on", [False, True])
def test_nothing_is_imported_or_missed_without_it(broker, on):
    """Off: OpenTelemetry is not imported. On, and not installed: a warning."""
    program = f"""
import sys, importlib.abc

class Nowhere(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "opentelemetry":
            print("wanted", name)
            raise ImportError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nowhere())
import logging; logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
from oslo_config import cfg
import oslo_messaging
from greenamqp.transport import register_options
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
register_options(conf)
conf.set_override("metrics", {on}, group="oslo_messaging_amqp")
transport = oslo_messaging.get_notification_transport(conf, "{broker.url}")
notifier = oslo_messaging.Notifier(
    transport, "here", driver="messaging", topics=["t"]
)
notifier.info({{}}, "one", {{}})
transport.cleanup()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.endswith("done\n"), done
    assert ("wanted opentelemetry" in done.stdout) is on
    assert ("pip install greenamqp[telemetry]" in done.stdout) is on


def test_a_child_counts_its_own(broker):
    program = f"""
import os, sys
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
from oslo_config import cfg
import oslo_messaging
from greenamqp.transport import register_options
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
register_options(conf)
conf.set_override("metrics", True, group="oslo_messaging_amqp")
transport = oslo_messaging.get_notification_transport(conf, "{broker.url}")
notifier = oslo_messaging.Notifier(
    transport, "here", driver="messaging", topics=["t"]
)

def sent():
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name == "messaging.client.sent.messages":
                    for point in metric.data.data_points:
                        print(point.value, flush=True)

notifier.info({{}}, "one", {{}})
child = os.fork()
if not child:
    notifier.info({{}}, "two", {{}})
    notifier.info({{}}, "three", {{}})
    sent()
    transport.cleanup()
    os._exit(0)
os.waitpid(child, 0)
sent()
transport.cleanup()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.split() == ["2", "1"], done
