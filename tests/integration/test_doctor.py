# SPDX-License-Identifier: Apache-2.0
"""``greenamqp doctor`` on a real RabbitMQ, from 4.0 on."""

from __future__ import annotations

import csv
import io
import json

import kombu
import pytest

from greenamqp import command
from tests.integration.rabbit import queues

USER = "examined"
PASSWORD = "s3cr3t"


@pytest.fixture
def doctor(capsys):
    """Runs it; returns the exit status, what failed by step, and the faults."""

    def run(*arguments):
        status = command.main(["doctor", "-f", "json", *arguments])
        shown = capsys.readouterr()
        assert PASSWORD not in shown.out + shown.err
        steps = json.loads(shown.out)["steps"]
        failed = {each["step"]: each for each in steps if each["result"] == "failed"}
        return status, failed, {each["advice"]["fault"] for each in failed.values()}

    return run


@pytest.fixture
def user(rabbitmq):
    """The URL of a user who may not do anything yet."""
    rabbitmq.control("add_user", USER, PASSWORD)
    yield rabbitmq.url().replace("guest:guest", f"{USER}:{PASSWORD}")
    rabbitmq.control("delete_user", USER)


def test_all_in_order(doctor, rabbitmq):
    assert doctor("--url", rabbitmq.url()) == (0, {}, set())


@pytest.mark.parametrize("right", ["configure", "write", "read"])
def test_a_right_that_is_missing(doctor, rabbitmq, user, right):
    rights = [
        "^$" if each == right else ".*" for each in ("configure", "write", "read")
    ]
    rabbitmq.control("set_permissions", USER, *rights)
    status, failed, faults = doctor("--url", user)
    assert (status, faults) == (1, {"not-permitted"})
    assert f"{right} access to" in failed["RPC"]["text"]
    assert USER in failed["RPC"]["text"]


def test_a_user_with_a_virtual_host_of_its_own_and_no_other(doctor, rabbitmq, user):
    """The default one, which it may not use, is what RabbitMQ takes any name for that
    is not asked for in its own way."""
    rabbitmq.control("add_vhost", "own")
    rabbitmq.control("set_permissions", "-p", "own", USER, ".*", ".*", ".*")
    assert doctor("--url", user + "own") == (0, {}, set())
    rabbitmq.control("delete_vhost", "own")


@pytest.mark.parametrize("vhost", ["", "nosuch"])
def test_a_virtual_host_that_may_not_be_used_or_is_none(doctor, user, vhost):
    status, _, faults = doctor("--url", user + vhost)
    assert (status, faults) == (1, {"virtual-host"})


def test_what_is_in_the_way(doctor, rabbitmq, tmp_path):
    """An exchange of another type than is wanted."""
    with kombu.Connection(rabbitmq.url()) as connection:
        kombu.Exchange("taken", "direct", channel=connection.channel()).declare()
    conf = tmp_path / "service.conf"
    conf.write_text(
        f"[DEFAULT]\ncontrol_exchange = taken\ntransport_url = {rabbitmq.url()}\n"
    )
    status, failed, faults = doctor("--config-file", str(conf))
    assert (status, faults) == (1, {"queue-differs"})
    assert "'taken'" in failed["RPC"]["text"]


def test_queues_that_the_service_will_use(doctor, rabbitmq, tmp_path):
    """They are there as somebody else wants them; what is not there is not made."""
    names = ("noted.info", "served")
    with kombu.Connection(rabbitmq.url()) as connection:
        for name in names:
            kombu.Queue(name, channel=connection.channel(), durable=True).declare()
    conf = tmp_path / "service.conf"
    conf.write_text(
        f"[DEFAULT]\ntransport_url = {rabbitmq.url()}\n"
        "[oslo_messaging_notifications]\ndriver = messagingv2\ntopics = noted\n"
        "[oslo_messaging_rabbit]\nrabbit_quorum_queue = true\n"
    )
    status, failed, faults = doctor("--config-file", str(conf))
    assert (status, faults, list(failed)) == (1, {"queue-differs"}, ["queues"])
    assert "'noted.info'" in failed["queues"]["text"]
    assert "to be set by [oslo_messaging_rabbit]" in failed["queues"]["text"]
    there = {name for name in queues(rabbitmq) if not name.startswith("greenamqp-")}
    assert {"noted.info"} == {name for name in there if "noted" in name}

    conf.write_text(f"[DEFAULT]\ntransport_url = {rabbitmq.url()}\n")
    status, failed, _ = doctor("--config-file", str(conf), "--topic", "served")
    assert status == 1 and "'served'" in failed["queues"]["text"]
    # As it is there.
    durable = f"{rabbitmq.url()}?amqp_durable_queues=true"
    assert doctor("--url", durable, "--topic", "served")[0] == 0


def test_who_receives_from_the_queues_of_a_topic(rabbitmq, capsys):
    """What a caller who waits in vain wants to know."""

    def said():
        arguments = ["doctor", "--url", rabbitmq.url(), "--topic", "watched"]
        assert command.main([*arguments, "-f", "csv"]) == 0
        rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
        return [(x["result"], x["text"]) for x in rows if x["step"] == "queues"]

    ((result, text),) = said()
    assert result == "remark" and text.startswith("topic 'watched': no queue is there")
    with kombu.Connection(rabbitmq.url()) as connection:
        channel = connection.channel()
        queue = kombu.Queue("watched", channel=channel, durable=False)
        queue.declare()
        assert said() == [
            (
                "remark",
                "queue 'watched': 0 receive from it, 0 messages wait: calls of it time "
                "out",
            )
        ]
        consumer = kombu.Consumer(channel, [queue])
        consumer.consume()
        assert said() == [("ok", "queue 'watched': 1 receive from it, 0 messages wait")]


def test_an_alarm(doctor, rabbitmq):
    rabbitmq.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        status, failed, faults = doctor("--timeout", "5", "--url", rabbitmq.url())
    finally:
        rabbitmq.control("set_vm_memory_high_watermark", "absolute", "1GB")
    assert (status, faults) == (1, {"alarm"})
    # One is enough to know.
    assert list(failed) == ["RPC"]
