# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin (entry point ``pytest11``): a broker and transports for a test.

pytest loads this in every run of an environment that greenamqp is in, also before
somebody monkey patches: so nothing but pytest is imported before a fixture is used.
"""

from __future__ import annotations

import typing

import pytest

if typing.TYPE_CHECKING:
    from greenamqp.broker import Broker
    from greenamqp.testing.process import BrokerProcess


@pytest.fixture
def greenamqp_broker_settings() -> dict[str, typing.Any]:
    """What greenamqp_broker is made with; to be overridden.

    Keyword arguments of greenamqp.broker.Broker, such as product="skupper-router";
    and process=True for a broker in a process of its own.
    """
    return {}


@pytest.fixture
def greenamqp_broker(
    greenamqp_broker_settings: dict[str, typing.Any],
) -> typing.Iterator[Broker | BrokerProcess]:
    """A message bus that nobody else is on: an embedded broker that runs."""
    settings = dict(greenamqp_broker_settings)
    broker: Broker | BrokerProcess
    if settings.pop("process", False):
        from greenamqp.testing.process import BrokerProcess

        broker = BrokerProcess(**settings)
    else:
        from greenamqp.broker import Broker

        broker = Broker(**settings)
    with broker:
        yield broker


@pytest.fixture
def greenamqp_conf(greenamqp_broker: Broker | BrokerProcess) -> typing.Any:
    """A configuration (cfg.ConfigOpts) whose transport_url is the broker's."""
    from oslo_config import cfg

    from greenamqp.transport import register_options

    conf = cfg.ConfigOpts()
    conf([], project="greenamqp", default_config_files=[], default_config_dirs=[])
    register_options(conf)
    conf.set_override("transport_url", greenamqp_broker.url)
    return conf


@pytest.fixture
def greenamqp_transport(greenamqp_conf: typing.Any) -> typing.Iterator[typing.Any]:
    """A transport for RPC on the broker; it is cleaned up after the test."""
    import oslo_messaging

    transport = oslo_messaging.get_rpc_transport(greenamqp_conf)
    yield transport
    transport.cleanup()


@pytest.fixture
def greenamqp_notification_transport(
    greenamqp_conf: typing.Any,
) -> typing.Iterator[typing.Any]:
    """A transport for notifications on the broker; it is cleaned up after the test."""
    import oslo_messaging

    transport = oslo_messaging.get_notification_transport(greenamqp_conf)
    yield transport
    transport.cleanup()
