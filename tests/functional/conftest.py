# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the functional tests: the world, the bus, and what talks over it."""

import os

from tests.functional import world

# First of all, before anything else is imported: see world.enter().
world.enter(os.environ.get(world.ENV) or "threads")

import uuid  # noqa: E402
import warnings  # noqa: E402

import pytest  # noqa: E402

with warnings.catch_warnings():
    # eventlet and oslo's eventlet parts deprecate themselves when imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tests.functional import buses, harness  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(feature, ...): what the bus must be able to do, see buses.FEATURES",
    )
    config.addinivalue_line(
        "markers",
        "any_bus: says nothing of the bus of the run; left out where one is named",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """What says nothing of a bus is run once, on the embedded broker."""
    if os.environ.get(buses.ENV):
        out = [item for item in items if item.get_closest_marker("any_bus")]
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)


def pytest_report_header(config: pytest.Config) -> str:
    url = os.environ.get(buses.ENV) or "embedded broker"
    return f"greenamqp functional tests: world {world.current()}, bus {url}"


@pytest.fixture(scope="session")
def the_bus():
    """The bus of this run; an embedded broker lives as long as the run."""
    url = os.environ.get(buses.ENV)
    if url:
        yield buses.identify(url)
        return
    broker = buses.EmbeddedBroker()
    try:
        yield buses.identify(broker.url)
    finally:
        broker.stop()


@pytest.fixture(autouse=True)
def needs(request: pytest.FixtureRequest, the_bus: buses.Bus) -> None:
    """Skip a test whose needs the bus does not meet, with the table's reason.

    Reports of the test say so, too: their property ``lacks`` has both.
    """
    for marker in request.node.iter_markers("needs"):
        for feature in marker.args:
            if feature == "green" and not world.is_green():
                pytest.skip("only where threads are green threads")
            if reason := the_bus.why_not(feature):
                lacks = (feature, the_bus.lacks()[feature])
                request.node.user_properties.append(("lacks", lacks))
                pytest.skip(reason)
    for marker in request.node.iter_markers("refuses"):
        for feature in marker.args:
            if not the_bus.why_not(feature):
                pytest.skip(f"{the_bus.kind}: {buses.FEATURES[feature]}")


@pytest.fixture
def bus(the_bus: buses.Bus):
    """Servers, clients and notifiers on the bus; all are stopped at the end."""
    with warnings.catch_warnings():
        # oslo.messaging deprecates the eventlet executor, which is tested here.
        warnings.simplefilter("ignore", DeprecationWarning)
        with harness.Harness(the_bus) as made:
            yield made


@pytest.fixture
def broker():
    """An embedded broker in this process, for what says nothing of the bus."""
    from greenamqp.broker import Broker

    with Broker() as made:
        yield made


@pytest.fixture
def unique():
    """A name that nobody else on the bus has."""
    return lambda what="t": f"{what}-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def topic(unique) -> str:
    return unique("topic")
