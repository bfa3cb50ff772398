# SPDX-License-Identifier: Apache-2.0
"""No thread and no green thread at all: whoever waits, pumps.

A call, a poll or the blocking executor runs the event loop in its own thread until
what it waits for is there.  Between two waits nothing moves, unless the application
waits for a listener's fd, which is readable whenever there is work to do.

A waiter may be waited for within another's wait (an endpoint that makes a call):
the inner wait pumps for both.
"""

from __future__ import annotations

import collections
import logging
import typing

from greenamqp.hubs import native
from greenamqp.hubs.base import Callback, Hub, Timer, Waiter, Watch
from greenamqp.hubs.reactor import Reactor

LOG = logging.getLogger(__name__)


# Who works on without waiting lets bytes move after so long.  Seconds.
TURN_INTERVAL = 0.01


class BlockingWaiter(Waiter):
    """A waiter whose wait is a turn of the event loop, or many."""

    __slots__ = ("_hub", "_woken")

    def __init__(self, hub: BlockingHub) -> None:
        self._hub = hub
        self._woken = False

    def wait(self, deadline: float | None) -> bool:
        hub = self._hub
        late = False
        while not self._woken:
            if late:
                return False
            # Even a wait of no time does what there is to do.
            hub.turn(deadline)
            late = deadline is not None and hub.now() >= deadline
        self._woken = False
        return True

    def wake(self) -> None:
        self._woken = True


class BlockingHub(Hub):
    """Belongs to the native thread that made it."""

    name = "blocking"

    def __init__(self) -> None:
        super().__init__()
        self._get_ident = native.original("threading", "get_ident")
        self._allocate_lock = native.original("threading", "Lock")
        self._thread = self._get_ident()
        self._reactor: Reactor | None = None
        self._turn_at = 0.0
        self._calls: collections.deque[Callback] = collections.deque()
        self._work: collections.deque[Callback] = collections.deque()

    def _start(self) -> None:
        self._reactor = Reactor(timerfd=True)

    def _stop(self) -> None:
        if self._reactor is not None:
            self._reactor.close()
            self._reactor = None

    def _let_go(self) -> None:
        super()._let_go()
        self._calls.clear()
        self._work.clear()
        self._stop()

    def fileno(self) -> int:
        """Readable whenever `turn` has something to do, deadlines included."""
        assert self._reactor is not None, "acquire() the hub first"
        return self._reactor.fileno()

    def turn(self, deadline: float | None) -> None:
        """Wait until `deadline` for whatever comes next, then do it.

        In the hub's thread only.  A deadline that has passed only looks.
        """
        reactor = self._reactor
        if reactor is None:
            self.check()
            raise RuntimeError("nothing to wait for: the transport was cleaned up")
        upcoming = reactor.next_deadline()
        if deadline is not None and (upcoming is None or deadline < upcoming):
            upcoming = deadline
        if self._calls or self._work:
            timeout: float | None = 0.0
        elif upcoming is None:
            timeout = None
        else:
            timeout = max(0.0, upcoming - self.now())
        due = reactor.poll(timeout)
        now = self.now()
        self._turn_at = now + TURN_INTERVAL
        due += reactor.expired(now)
        while self._calls:
            due.append(self._calls.popleft())
        if due:
            self.busy = True
            try:
                for callback in due:
                    try:
                        callback()
                    except Exception:
                        LOG.exception("a callback failed")
                self._flush_dirty()
            finally:
                self.busy = False
        if self._reactor is reactor:
            reactor.arm()
        while self._work:
            self._work.popleft()()

    def breathe(self) -> None:
        now = self.now()
        if now > self._turn_at:
            self.turn(now)

    def foreign(self) -> bool:
        return self._get_ident() != self._thread

    def watch(self, fd: int, on_readable: Callback) -> Watch:
        assert self._reactor is not None, "acquire() the hub first"
        return self._reactor.watch(fd, on_readable)

    def call_at(self, instant: float, callback: Callback) -> Timer:
        assert self._reactor is not None, "acquire() the hub first"
        timer = self._reactor.call_at(instant, callback)
        self._reactor.arm()
        return timer

    def waiter(self) -> BlockingWaiter:
        return BlockingWaiter(self)

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        """There is nothing to run it in but the next turn, outside its callbacks."""

        def run() -> None:
            try:
                function(*args)
            except Exception:
                LOG.exception("a deferred function failed")

        self._work.append(run)
        if self._reactor is not None:
            self._reactor.wake()

    def deliver(self, function: Callback) -> None:
        self.spawn(function)

    def current(self) -> typing.Hashable:
        return self._get_ident()

    def offload(
        self,
        function: typing.Callable[[], typing.Any],
        done: typing.Callable[[typing.Any, Exception | None], None],
    ) -> None:
        # No second thread: a name lookup blocks, as this hub's user accepted.
        try:
            result = function()
        except Exception as exc:
            done(None, exc)
        else:
            done(result, None)

    def call_inside(self, callback: Callback) -> None:
        self._calls.append(callback)
        if self._reactor is not None:
            self._reactor.wake()

    def run_inside(
        self, function: typing.Callable[..., typing.Any], *args: typing.Any
    ) -> typing.Any:
        """From another thread: done when the hub's own thread next waits."""
        if not self.foreign():
            return function(*args)
        done = self._allocate_lock()
        done.acquire()
        outcome: list[typing.Any] = []

        def run() -> None:
            try:
                outcome[:] = [function(*args), None]
            except BaseException as exc:
                outcome[:] = [None, exc]
            finally:
                done.release()

        self.call_inside(lambda: self.spawn(run))
        done.acquire()
        result, error = outcome
        if error is not None:
            raise error
        return result
