# SPDX-License-Identifier: Apache-2.0
"""The hub of an asyncio event loop, asyncio's own or any other such as uvloop's.

Its callbacks run in the loop's thread, as callbacks of the loop.  Coroutines of that
loop wait by awaiting `FutureWaiter.woken`; to block there would stop the loop, so that
`Hub.run` is refused.

What a single task sends is written at once.  Where several were woken together, what
they send, or whatever need not hurry, is written by a callback of the loop that runs
after them: what a batch of replies sets off leaves in one write.

It makes no thread.  What may block (a name lookup, a logging handler) runs in the
loop's own executor.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import typing

from greenamqp import interrupts
from greenamqp.hubs import native
from greenamqp.hubs.alarm import Alarm
from greenamqp.hubs.base import (
    WRITE_INTERVAL,
    Callback,
    Done,
    EngagedError,
    Flushable,
    Steps,
    Timer,
    Watch,
    logged,
)
from greenamqp.hubs.coroutines import STOPS_THE_LOOP, AwaitableWaiter, CoroutineHub

LOG = logging.getLogger(__name__)

_Result = typing.TypeVar("_Result")


class FutureWaiter(AwaitableWaiter):
    """A waiter of one task."""

    __slots__ = ("_future", "_hub", "_woken")

    def __init__(self, hub: AsyncioHub) -> None:
        self._hub = hub
        self._woken = False
        self._future: asyncio.Future[None] | None = None

    async def woken(self, deadline: float | None) -> bool:
        hub = self._hub
        while not self._woken:
            if hub.inherited:
                hub.check()
            if deadline is not None:
                if deadline <= hub.now():
                    return False
                hub._alarm.add(self, deadline)
            self._future = hub.event_loop.create_future()
            try:
                await self._future
            finally:
                self._future = None
                if deadline is not None:
                    hub._alarm.deadlines.pop(self, None)
        self._woken = False
        return True

    def wait(self, deadline: float | None) -> bool:
        """As in the base class, in another thread.  In the loop's, where nobody can
        block, it only looks.

        :raises EngagedError: if that is not enough
        """
        hub = self._hub
        if hub.foreign():
            return asyncio.run_coroutine_threadsafe(
                self.woken(deadline), hub.event_loop
            ).result()
        if not self._woken:
            if deadline is None or deadline > hub.now():
                hub.check_may_wait()
            return False
        self._woken = False
        return True

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            if self._hub.foreign():  # work that was spawned
                self._hub.event_loop.call_soon_threadsafe(self.look)
            else:
                self.look()

    def look(self) -> None:
        """Have the task look whether it was woken, or is late."""
        if self._future is not None and not self._future.done():
            self._hub._woken += 1
            self._future.set_result(None)


class _Timer(Timer):
    """A timer that is never early, whatever the loop takes for the time."""

    __slots__ = ("_callback", "_handle", "_hub", "_instant")

    def __init__(self, hub: AsyncioHub, instant: float, callback: Callback) -> None:
        self._hub = hub
        self._instant = instant
        self._callback = callback
        self._set()

    def _set(self) -> None:
        # By a delay: not every loop's clock is ours, and uvloop's stands still within
        # a turn.
        delay = max(0.0, self._instant - self._hub.now())
        self._handle = self._hub.event_loop.call_later(delay, self._run)

    def _run(self) -> None:
        if self._hub.now() < self._instant:
            self._set()
        else:
            self._hub._wakeup(self._callback)

    def cancel(self) -> None:
        self._handle.cancel()


class _Watch(Watch):
    __slots__ = ("_hub", "fd")

    def __init__(self, hub: AsyncioHub, fd: int, on_readable: Callback) -> None:
        self._hub = hub
        self.fd = fd
        hub._watches[fd] = self
        hub.event_loop.add_reader(fd, self._tell, on_readable)

    def _tell(self, callback: Callback) -> None:
        # The loop has called all that is due in one turn.
        if self._is_open():
            self._hub._wakeup(callback)

    def _is_open(self) -> bool:
        return self._hub._watches.get(self.fd) is self

    def want_write(self, on_writable: Callback | None) -> None:
        if self._is_open():
            if on_writable is None:
                self._hub.event_loop.remove_writer(self.fd)
            else:
                self._hub.event_loop.add_writer(self.fd, self._tell, on_writable)

    def close(self) -> None:
        if self._is_open():
            del self._hub._watches[self.fd]
            self._hub.event_loop.remove_reader(self.fd)
            self._hub.event_loop.remove_writer(self.fd)


class AsyncioHub(CoroutineHub):
    """See the module.  Made in a coroutine of the loop that it belongs to."""

    name = "asyncio"
    punctual = True

    def __init__(self) -> None:
        super().__init__()
        self.event_loop = asyncio.get_running_loop()
        self._get_ident: typing.Callable[[], int] = native.original(
            "threading", "get_ident"
        )
        self._allocate_lock = native.original("threading", "Lock")
        self._thread: int = self._get_ident()
        self._alarm: Alarm[FutureWaiter] = Alarm(self, FutureWaiter.look)
        self._watches: dict[int, _Watch] = {}
        self._calls: collections.deque[Callback] = collections.deque()
        # Whether a callback of the loop is on its way that writes.
        self._scheduled = False
        # When output leaves that somebody waits for, if that is not called by then.
        self._write_at = 0.0
        # How many tasks the wake-up that runs, or ran last, has woken.
        self._woken = 0
        # The loop has weak references alone.
        self._tasks: set[asyncio.Task[object]] = set()

    # -- waiting

    def foreign(self) -> bool:
        return self._get_ident() != self._thread

    def may_wait(self) -> bool:
        return self.foreign()

    def check_may_wait(self) -> None:
        super().check_may_wait()
        raise EngagedError(STOPS_THE_LOOP)

    def do(self, steps: Steps[_Result]) -> _Result:
        if self.foreign():
            return asyncio.run_coroutine_threadsafe(
                self.drive(steps), self.event_loop
            ).result()
        return self.run(steps)

    def complete(self, steps: Steps[None]) -> None:
        if self.ended:
            steps.close()
            self._let_go()  # nobody else will
        else:
            super().complete(steps)

    def begin(self, steps: Steps[object]) -> None:
        self.call_inside(lambda: self._begin(steps))

    def _begin(self, steps: Steps[object]) -> None:
        task: asyncio.Task[object] = self.event_loop.create_task(self._logged(steps))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _logged(self, steps: Steps[object]) -> None:
        try:
            await self.drive(steps)
        except Exception:
            LOG.exception("what was begun failed")

    def waiter(self) -> FutureWaiter:
        return FutureWaiter(self)

    def current(self) -> typing.Hashable:
        if self.foreign():
            return self._get_ident()
        return asyncio.current_task(self.event_loop)

    # -- the loop

    def _start(self) -> None:
        """The loop runs."""

    def _stop(self) -> None:
        self._alarm.stop()

    def _let_go(self) -> None:
        super()._let_go()
        self._watches.clear()
        self._alarm.deadlines.clear()
        self._calls.clear()

    def _wakeup(self, callback: Callback) -> None:
        """Run a callback in the hub's context.  In the loop's thread."""
        if self.inherited:
            return
        self.busy = True
        self._woken = 0
        try:
            with self.lock:
                callback()
        except Exception as exc:
            LOG.exception("a callback failed")
            if interrupts.struck(exc):
                self.cut_off(exc)
        except BaseException as exc:
            self.cut_off(exc)
            raise
        finally:
            self.busy = False
            if self._dirty or self._woken > 1:
                self._schedule()  # behind the tasks that were woken

    def watch(self, fd: int, on_readable: Callback) -> Watch:
        return _Watch(self, fd, on_readable)

    def call_at(self, instant: float, callback: Callback) -> Timer:
        return _Timer(self, instant, callback)

    async def call_outside(
        self, function: typing.Callable[..., _Result], *args: typing.Any
    ) -> _Result:
        return await asyncio.to_thread(function, *args)

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        self.event_loop.run_in_executor(None, logged, function, *args)

    def deliver(self, function: Callback) -> None:
        # In place: a stock server's callback only hands over to a thread.
        self.event_loop.call_soon(logged, function)

    def off_thread(
        self,
        function: typing.Callable[[], typing.Any],
        done: Done,
    ) -> None:
        self.offload(function, done)

    def call_inside(self, callback: Callback) -> None:
        self._calls.append(callback)
        try:
            self.event_loop.call_soon_threadsafe(self._run_calls)
        except RuntimeError:
            if not self.ended:
                raise
            self._let_go()  # nobody will ever do it

    def _run_calls(self) -> None:
        while self._calls:
            self._wakeup(self._calls.popleft())

    def run_inside(
        self, function: typing.Callable[..., _Result], *args: typing.Any
    ) -> _Result:
        self.check()
        if not self.foreign():
            return function(*args)

        async def run() -> _Result:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.event_loop).result()

    # -- flushing

    def flush_now(self, pump: Flushable) -> None:
        if self._scheduled:
            now = self.now()
            if now < self._write_at:
                self.flush_soon(pump)
                return
            self._write_at = now + WRITE_INTERVAL
        super().flush_now(pump)

    def flush_soon(self, pump: Flushable) -> None:
        if not pump.dirty:
            pump.dirty = True
            self._dirty.append(pump)
            if not self.busy:
                self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._write_at = self.now() + WRITE_INTERVAL
            self.event_loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self._wakeup(self._flush_dirty)
