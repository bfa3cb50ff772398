# SPDX-License-Identifier: Apache-2.0
"""eventlet's hub where eventlet runs on asyncio (``EVENTLET_HUB=asyncio``).

Green threads wait here as they do on eventlet's other hubs, and coroutines of the same
loop by futures: both over one connection.  A coroutine runs in the green thread of
eventlet's loop, which cannot wait in any other way.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import typing

import eventlet
import greenlet

from greenamqp.hubs.base import EngagedError
from greenamqp.hubs.coroutines import STOPS_THE_LOOP, AwaitableWaiter, CoroutineHub
from greenamqp.hubs.eventlet import EventletHub
from greenamqp.hubs.green import GreenWaiter

_Result = typing.TypeVar("_Result")

# Where eventlet has the coroutine that runs its timers.
_RUNNER = "eventlet.hubs.asyncio"


class _Turn:
    """Stands for a task where the hub has a green thread to switch to."""

    __slots__ = ("_future", "_waiter")

    def __init__(self, waiter: _Waiter, future: asyncio.Future[None]) -> None:
        self._waiter = waiter
        self._future = future

    def switch(self) -> None:
        """Have the task go on when the wake-up is over."""
        self._waiter.greenlet = None
        if not self._future.done():
            self._future.set_result(None)


class _Waiter(GreenWaiter, AwaitableWaiter):
    """A waiter of one green thread, or of one task."""

    __slots__ = ()
    _hub: EventletAsyncioHub

    async def woken(self, deadline: float | None) -> bool:
        hub = self._hub
        try:
            while not self._woken:
                if hub.inherited:
                    hub.check()
                if deadline is not None:
                    if deadline <= hub.now():
                        return False
                    hub._alarm.add(self, deadline)
                future = hub.event_loop.create_future()
                self.greenlet = _Turn(self, future)
                await future
        finally:
            self.greenlet = None
            if deadline is not None:
                hub._alarm.deadlines.pop(self, None)
        self._woken = False
        return True


@functools.cache
def _keep_task(loop: asyncio.AbstractEventLoop) -> None:
    """Have a child go on with the task of `loop` that is interrupted by its fork.

    eventlet does so from Python 3.12 on, but each child gets what the first fork
    interrupted; if that is not so, the loop's own task never runs again there.  To be
    called when it has registered what does that: the last one counts.
    """
    swap = getattr(asyncio.tasks, "_swap_current_task", None)
    kept: list[asyncio.Task[object] | None] = [None]

    def keep() -> None:
        kept[0] = asyncio.current_task(loop)

    if swap is not None:
        os.register_at_fork(before=keep, after_in_child=lambda: swap(loop, kept[0]))


def _stop_if_idle(loop: asyncio.AbstractEventLoop) -> None:
    """Have a loop that does not run be taken for one.

    In each child eventlet says of its loop that it runs, also where it had only been
    made before the fork; nothing could start it there any more.
    """
    if asyncio._get_running_loop() is loop and not loop.is_running():
        asyncio._set_running_loop(None)


class EventletAsyncioHub(EventletHub, CoroutineHub):
    """As the base class, for coroutines too."""

    def __init__(self) -> None:
        super().__init__()
        self.event_loop: asyncio.AbstractEventLoop = self.loop.loop
        _stop_if_idle(self.event_loop)
        _keep_task(self.event_loop)

    def waiter(self) -> _Waiter:
        return _Waiter(self)

    def current(self) -> typing.Hashable:
        return self._task() if self._in_loop() else super().current()

    def _in_loop(self) -> bool:
        """Whether this is the loop's green thread, in which nobody can wait."""
        return greenlet.getcurrent() is self._loop_greenlet()

    def _task(self) -> asyncio.Task[object] | None:
        """The task that runs, but for the one in which eventlet runs its timers."""
        task = asyncio.current_task(self.event_loop)
        if task is not None:
            frame = getattr(task.get_coro(), "cr_frame", None)
            if frame is not None and frame.f_globals.get("__name__") == _RUNNER:
                return None
        return task

    def engaged(self) -> bool:
        """As in the base class, but not in a task, which may enter as a green thread
        does."""
        return self.is_entered() or (self._in_loop() and self._task() is None)

    def may_wait(self) -> bool:
        return not self.is_entered() and not self._in_loop()

    def may_log(self) -> bool:
        return self.may_wait()

    def check_may_wait(self) -> None:
        super().check_may_wait()
        if self._in_loop():
            raise EngagedError(STOPS_THE_LOOP)

    async def call_outside(
        self, function: typing.Callable[..., _Result], *args: typing.Any
    ) -> _Result:
        future: asyncio.Future[_Result] = self.event_loop.create_future()
        context = contextvars.copy_context()

        def call() -> None:
            try:
                result = context.run(function, *args)
            except BaseException as exc:
                if not future.done():
                    future.set_exception(exc)
            else:
                if not future.done():
                    future.set_result(result)

        eventlet.spawn_n(call)
        return await future
