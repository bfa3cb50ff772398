# SPDX-License-Identifier: Apache-2.0
"""Coroutines: each test on asyncio's own loop and on uvloop; nothing is patched."""

import asyncio

import pytest

from greenamqp import aio
from tests.functional import world
from tests.functional.harness import WAIT

collect_ignore_glob = [] if world.current() == "threads" else ["test_*.py"]


def _factory(name):
    if name == "uvloop":
        return pytest.importorskip("uvloop").new_event_loop
    return asyncio.new_event_loop


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine function in a loop, within WAIT; nothing of it is left."""

    def run(test, *args):
        async def guarded():
            async with asyncio.timeout(WAIT):
                result = await test(*args)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks are left: {left}"
            return result

        with asyncio.Runner(loop_factory=_factory(request.param)) as runner:
            errors = []
            runner.get_loop().set_exception_handler(
                lambda loop, context: errors.append(context)
            )
            result = runner.run(guarded())
        assert not errors, errors
        return result

    return run


@pytest.fixture
def rpc(bus):
    """An RPC transport for coroutines, cleaned up by ``async with``."""
    return lambda **options: aio.closing(bus.rpc_transport(**options))


@pytest.fixture
def notifications(bus):
    """As `rpc`, for notifications."""
    return lambda **options: aio.closing(bus.notification_transport(**options))
