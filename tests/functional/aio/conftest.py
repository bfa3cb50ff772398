# SPDX-License-Identifier: Apache-2.0
"""Coroutines: each test on asyncio's own loop and on uvloop, where nothing is patched;
and in the loop that eventlet runs on, where what is stock lives in green threads.
"""

import asyncio
import functools

import pytest

from greenamqp import aio, hubs
from tests.functional import world
from tests.functional.harness import WAIT

if world.current() == "eventlet-asyncio":
    import eventlet
    from eventlet.asyncio import spawn_for_awaitable

LOOPS = {"threads": ["asyncio", "uvloop"], "eventlet-asyncio": ["eventlet"]}

collect_ignore_glob = [] if world.current() in LOOPS else ["test_*.py"]


class _Eventlet:
    """As asyncio.Runner, in the loop of eventlet."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.get_loop().set_exception_handler(None)

    def get_loop(self):
        return eventlet.hubs.get_hub().loop

    def run(self, coroutine):
        return spawn_for_awaitable(coroutine).wait()


def _runner(name):
    if name == "eventlet":
        return _Eventlet()
    if name == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    else:
        factory = asyncio.new_event_loop
    return asyncio.Runner(loop_factory=factory)


def in_thread(function, *args, **kwargs):
    """A task that calls `function` where it may wait: in a thread, or in a green thread
    where stock code lives in those."""
    hub = hubs.get("asyncio")
    call = functools.partial(function, *args, **kwargs)
    return asyncio.create_task(hub.call_outside(call))


def others():
    """The tasks of the loop but the one that asks, and those of eventlet itself."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if world.current() == "eventlet-asyncio":
        # It waits for its next timer in one.
        own = ("Hub.run.<locals>.async_run", "Event.wait")
        left = {task for task in left if task.get_coro().__qualname__ not in own}
    return left


@pytest.fixture(params=LOOPS.get(world.current(), []))
def run(request):
    """Runs a coroutine function in a loop, within WAIT; nothing of it is left."""

    def run(test, patience=WAIT):
        async def guarded():
            async with asyncio.timeout(patience):
                result = await test()
            left = others()
            assert not left, f"tasks are left: {left}"
            return result

        with _runner(request.param) as runner:
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
