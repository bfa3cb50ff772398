# SPDX-License-Identifier: Apache-2.0
"""Fixtures and options of the chaos tests.

Tests marked ``chaos`` are long; they run only where they are asked for, by
``-m chaos``.  Each has a short form that always runs.
"""

import faulthandler

import pytest

from tests import conftest as guarded
from tests.chaos.brokers import Broker
from tests.chaos.forwarder import Forwarder
from tests.functional.world import WORLDS


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "chaos: takes minutes; runs only if asked for by -m chaos"
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if "chaos" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("chaos")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


#: Seconds after which a test marked ``chaos`` is taken for hanging.
LONG = 3600


@pytest.fixture(autouse=True)
def _patience(request: pytest.FixtureRequest) -> None:
    """Give a long test longer than tests/conftest.py gives to all."""
    if request.node.get_closest_marker("chaos"):
        faulthandler.dump_traceback_later(LONG, exit=True, file=guarded._stderr)


@pytest.fixture(params=WORLDS)
def every_world(request: pytest.FixtureRequest) -> str:
    """Each world in turn, for a process under test."""
    return request.param


@pytest.fixture(
    params=[
        pytest.param(world, marks=pytest.mark.chaos if "-" in world else ())
        for world in WORLDS
    ]
)
def any_world(request: pytest.FixtureRequest) -> str:
    """Each world in turn, for what another loop under the same hub hardly changes:
    those are left to the long form."""
    return request.param


@pytest.fixture
def broker():
    with Broker() as made:
        yield made


@pytest.fixture
def forwarder(broker):
    """Between the processes under test and the broker."""
    with Forwarder(broker.port) as made:
        yield made


@pytest.fixture
def url(forwarder) -> str:
    return f"amqp://127.0.0.1:{forwarder.port}/"
