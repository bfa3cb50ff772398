# SPDX-License-Identifier: Apache-2.0
"""What a probe is told, and what stands in a Guru Meditation Report."""

import oslo_messaging
import pytest
import webob
from oslo_config import cfg
from oslo_messaging import Target
from oslo_middleware import healthcheck
from oslo_reports import guru_meditation_report

import greenamqp
from greenamqp import inspection, report
from greenamqp.broker import Broker

pytestmark = pytest.mark.any_bus


@pytest.fixture
def broker():
    with Broker() as made:
        yield made


@pytest.fixture
def client(broker, bus, topic):
    transport = bus.rpc_transport(url=broker.url)
    return bus.client(Target(topic=topic), transport)


def probe():
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[])
    app = healthcheck.Healthcheck(
        None, {"oslo_config": conf, "backends": "greenamqp", "detailed": True}
    )
    request = webob.Request.blank("/healthcheck", accept="application/json")
    return request.get_response(app)


def test_a_probe(broker, client):
    assert probe().status_int == 200  # it was not used yet
    client.cast({}, "one")
    assert greenamqp.is_connected(client.transport)
    assert probe().status_int == 200
    broker.kill()
    with pytest.raises(oslo_messaging.MessageDeliveryFailure):
        client.prepare(retry=0).cast({}, "two")
    answer = probe()
    assert answer.status_int == 503
    assert "no connection to the message bus" in answer.text
    assert f"127.0.0.1:{broker.port}" in answer.text
    broker.start()
    client.cast({}, "three")
    assert probe().status_int == 200
    broker.kill()
    client.transport.cleanup()
    assert inspection.failures() == []


class Version:
    vendor_string = lambda self: "vendor"  # noqa: E731
    product_string = lambda self: "product"  # noqa: E731
    version_string_with_package = lambda self: "1"  # noqa: E731


def test_a_report(broker, client):
    client.cast({}, "one")
    text = guru_meditation_report.TextGuruMeditation(Version()).run()
    assert text.count(report.TITLE) == 1
    _, _, section = text.partition(report.TITLE)
    assert f"host = 127.0.0.1:{broker.port}" in section
    assert "state = up" in section
