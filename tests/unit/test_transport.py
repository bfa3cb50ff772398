# SPDX-License-Identifier: Apache-2.0
"""Transports from configurations of all ages."""

import subprocess
import sys

import oslo_messaging
import pytest
from oslo_config import cfg

import greenamqp
from greenamqp.driver import GreenAMQPDriver

FUNCTIONS = ["get_rpc_transport", "get_notification_transport"]


@pytest.fixture
def conf(tmp_path):
    """Make a configuration from the text of a file."""

    def make(text: str) -> cfg.ConfigOpts:
        file = tmp_path / "service.conf"
        file.write_text(text)
        made = cfg.ConfigOpts()
        made([], default_config_files=[str(file)], default_config_dirs=[])
        return made

    return make


def hosts(transport):
    url = transport._driver._url
    return url.transport, [(host.hostname, host.port) for host in url.hosts]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rpc_backend_alone(conf, name):
    made = getattr(greenamqp, name)(conf("[DEFAULT]\nrpc_backend = amqp\n"))
    assert isinstance(made._driver, GreenAMQPDriver)
    assert hosts(made) == ("amqp", [])
    made.cleanup()


def test_rpc_backend_means_localhost(conf):
    made = greenamqp.get_rpc_transport(conf("[DEFAULT]\nrpc_backend = amqp\n"))
    client = made._driver._connected()
    assert str(client.connection._hosts.current) == "localhost:5672"
    made.cleanup()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transport_url_comes_first(conf, name):
    text = "[DEFAULT]\nrpc_backend = amqp\ntransport_url = fake://elsewhere:1\n"
    made = getattr(greenamqp, name)(conf(text))
    assert hosts(made) == ("fake", [("elsewhere", 1)])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_argument_comes_first(conf, name):
    text = "[DEFAULT]\nrpc_backend = rabbit\n"
    made = getattr(greenamqp, name)(conf(text), "amqp://here:7")
    assert hosts(made) == ("amqp", [("here", 7)])
    made.cleanup()


def test_url_of_notifications_comes_first(conf):
    text = (
        "[DEFAULT]\nrpc_backend = amqp\n"
        "[oslo_messaging_notifications]\ntransport_url = fake://notes:2\n"
    )
    configuration = conf(text)
    notes = greenamqp.get_notification_transport(configuration)
    assert hosts(notes) == ("fake", [("notes", 2)])
    rpc = greenamqp.get_rpc_transport(configuration)
    assert hosts(rpc) == ("amqp", [])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_either_it_is_as_oslo_messaging_has_it(conf, name):
    made = getattr(greenamqp, name)(conf("[DEFAULT]\n"))
    stock = getattr(oslo_messaging, name)(conf("[DEFAULT]\n"))
    assert hosts(made) == hosts(stock)
    assert type(made) is type(stock)


def test_default_set_by_the_program_is_no_choice_of_the_operator(conf):
    configuration = conf("[DEFAULT]\nrpc_backend = amqp\n")
    configuration.register_opts(oslo_messaging.transport._transport_opts)
    configuration.set_default("transport_url", "fake://default:3")
    made = greenamqp.get_rpc_transport(configuration)
    assert hosts(made) == ("amqp", [])


def test_the_program_may_have_declared_the_option(conf):
    configuration = conf("[DEFAULT]\nrpc_backend = amqp\n")
    configuration.register_opt(cfg.StrOpt("rpc_backend", help="in other words"))
    made = greenamqp.get_rpc_transport(configuration)
    assert hosts(made) == ("amqp", [])


def test_the_types_are_oslo_messagings(conf):
    configuration = conf("[DEFAULT]\nrpc_backend = amqp\n")
    rpc = greenamqp.get_rpc_transport(configuration, allowed_remote_exmods=["m"])
    notes = greenamqp.get_notification_transport(configuration)
    assert type(rpc) is oslo_messaging.transport.RPCTransport
    assert type(notes) is oslo_messaging.transport.NotificationTransport
    assert "m" in rpc._driver._allowed_remote_exmods


def test_importing_greenamqp_imports_nothing_else():
    program = (
        "import sys, greenamqp\n"
        "assert not {'oslo_messaging', 'eventlet', 'gevent'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_other_drivers_are_not_imported():
    program = (
        "import sys, greenamqp.driver, greenamqp.server\n"
        "assert not {'kombu', 'oslo_messaging._drivers.impl_rabbit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_a_configuration_of_the_programs_own():
    """What oslo.messaging registers on cfg.CONF alone is known there as well: its
    client and its server read it at the first call."""
    own = cfg.ConfigOpts()
    own([], default_config_files=[], default_config_dirs=[])
    oslo_messaging.get_rpc_transport(own, "amqp://127.0.0.1")
    assert own.oslo_messaging_metrics.metrics_enabled is False
    if "oslo_messaging._tracing.client" in sys.modules:
        assert own.oslo_messaging_tracing.tracing_enabled is False
