# SPDX-License-Identifier: Apache-2.0
"""greenamqp on a real RabbitMQ 3.10, whose queues are made by attaches."""

from __future__ import annotations

import json
import logging
import os
import time

import pytest
from oslo_messaging import Target

from greenamqp import command
from greenamqp.driver import set_queue_policy
from greenamqp.policy import QueuePolicy
from tests.integration.rabbit import (
    PATIENCE,
    AnyVersion,
    calling,
    listening,
    notifying,
    queues,
    rpc,
    serving,
    unique,
)
from tools.buses import Bus


@pytest.fixture(scope="module")
def rabbitmq():
    with Bus("rabbitmq-3.10", f"rabbitmq-3.10-tests-{os.getpid()}") as bus:
        yield bus


@pytest.fixture
def url(rabbitmq):
    return rabbitmq.url()


class TestAnyVersion(AnyVersion):
    """By what attaches make."""


@pytest.mark.proves("store")
def test_notifications_wait_for_the_first_listener(url, rabbitmq):
    topic = unique()
    with notifying(url, topic) as notifier:
        notifier.info({}, "early", {"n": 1})
        (row,) = (row for name, row in queues(rabbitmq).items() if topic in name)
        assert row["durable"]
        with listening(url, topic) as listener:
            assert listener.next() == ("publisher", "early", {"n": 1})


@pytest.mark.refuses("pools", "policy")
def test_what_it_cannot_do_is_refused_with_the_reason(url):
    topic = unique()
    with pytest.raises(NotImplementedError, match="pool 'p'.*RabbitMQ 3.10"):
        with listening(url, topic, "p"):
            pass
    with rpc(url) as transport:
        set_queue_policy(transport, Target(topic=topic), QueuePolicy(expires=60))
        with pytest.raises(NotImplementedError, match="cannot be told over AMQP 1.0"):
            transport._driver.listen(Target(topic=topic, server="s"), 1, None)


def test_other_addressing_is_refused_with_a_hint(url):
    asked = url + "?addressing_mode=declared"
    with pytest.raises(NotImplementedError, match="4.0 or newer.*dynamic"):
        with serving(asked, unique()):
            pass


@pytest.mark.proves("virtual hosts")
def test_virtual_hosts(rabbitmq):
    vhost, topic = unique("vhost"), unique()
    rabbitmq.control("add_vhost", vhost)
    rabbitmq.control("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    url = rabbitmq.url().rstrip("/") + f"/{vhost}"
    with serving(url, topic), calling(url, topic) as client:
        assert client.call({}, "who") == "server"
        assert any(topic in name for name in queues(rabbitmq, vhost))
        assert not any(topic in name for name in queues(rabbitmq))


def test_the_policy_that_it_advises_removes_what_stays_behind(url, rabbitmq, caplog):
    caplog.set_level(logging.WARNING, "greenamqp")
    topic = unique()
    with serving(url, topic), calling(url, topic) as client:
        client.call({}, "who")
    # As an operator would: with the words of the warning, in a shell; but sooner.
    logged = [record.getMessage() for record in caplog.records]
    advised = next(text for text in logged if "set_policy" in text)
    pattern = advised.rsplit("greenamqp '", 1)[1].split("'")[0]
    left = {n for n in queues(rabbitmq) if n.startswith(("amq.gen-", "reply."))}
    assert len(left) >= 2
    rabbitmq.control(
        "set_policy", "--apply-to", "queues", "greenamqp", pattern, '{"expires":1000}'
    )
    until = time.monotonic() + PATIENCE
    while left & set(queues(rabbitmq)):
        assert time.monotonic() < until, "they are still there"
    assert any(topic in name for name in queues(rabbitmq))  # requests are kept


def test_doctor_names_the_plugin_that_is_missing(capsys):
    """It knows AMQP 0-9-1 alone, and says so."""
    kind = "rabbitmq-3.10-plain"
    plain = Bus(kind, f"{kind}-tests-{os.getpid()}")
    fault = "nothing-listens"
    try:
        # What waits until it speaks AMQP 1.0 would wait for ever.
        plain.start(wait=False)
        while fault == "nothing-listens":
            assert command.main(["doctor", "-f", "json", "--url", plain.url()]) == 1
            steps = json.loads(capsys.readouterr().out)["steps"]
            (failed,) = (step for step in steps if step["result"] == "failed")
            fault = failed["advice"]["fault"]
    finally:
        plain.stop()
    assert fault == "old-amqp"
    assert "rabbitmq-plugins enable rabbitmq_amqp1_0" in failed["advice"]["how"]
