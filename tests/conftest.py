# SPDX-License-Identifier: Apache-2.0
"""What every test of greenamqp gets: a guard against hanging for ever.

The guard is faulthandler's timer, which is a thread of the C library of its own:
it works in a process whose green threads have stopped, where a time-out kept by
Python's threads would hang with them.
"""

import faulthandler
import os
import sys

import pytest

from greenamqp.hubs import logs
from tests import features
from tests.functional import world

# Seconds after which a test is taken for hanging. It prints every stack and ends
# the process; it is far above what any test needs on a slow machine, and no test
# may depend on it.
GUARD = float(os.environ.get("GREENAMQP_TEST_GUARD", "240"))

_stderr = None


def pytest_configure(config: pytest.Config) -> None:
    if world.current() == "threads":
        # As there, for the processes that unit tests start.
        os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")
    config.addinivalue_line(
        "markers", "proves(feature, ...): what passes with it, see features.py"
    )
    config.addinivalue_line(
        "markers",
        "refuses(feature): runs where the bus cannot do it; shows how it is refused",
    )
    global _stderr
    # pytest replaces fd 2 while a test runs, so the guard needs its own copy.
    _stderr = os.fdopen(os.dup(sys.__stderr__.fileno()), "w")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        features.named_by(item, "proves")
        features.named_by(item, "refuses")


def pytest_unconfigure(config: pytest.Config) -> None:
    global _stderr
    faulthandler.cancel_dump_traceback_later()
    if _stderr is not None:
        _stderr.close()
        _stderr = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    if _stderr is not None:
        faulthandler.dump_traceback_later(GUARD, exit=True, file=_stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


class _AllLogged(pytest.LogCaptureFixture):
    """Waits for the records that were made in a hub and leave outside of it."""

    @property
    def handler(self):
        while logs.waiting():  # the guard ends it
            logs.drain()
            os.sched_yield()
        return super().handler


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """pytest's own, with all that was logged so far."""
    caplog.__class__ = _AllLogged
    return caplog
