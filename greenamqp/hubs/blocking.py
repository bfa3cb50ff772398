# SPDX-License-Identifier: Apache-2.0
"""No thread and no green thread at all: whoever waits, pumps.

A call, a poll or the blocking executor runs the event loop in its own thread until
what it waits for is there.  Between two waits nothing moves, unless the application
waits for a listener's fd, which is readable whenever there is work to do.

A waiter may be waited for within another's wait (an endpoint that makes a call):
the inner wait pumps for both.  Where several threads wait at a time, one of them leads:
it runs the loop, the others sleep until they are woken or it is their turn to lead.
"""

from __future__ import annotations

import logging
import typing

from greenamqp import interrupts
from greenamqp.hubs.base import (
    WRITE_INTERVAL,
    Callback,
    Done,
    Flushable,
    Timer,
    Waiter,
)
from greenamqp.hubs.reacting import ReactorHub
from greenamqp.hubs.reactor import Reactor

LOG = logging.getLogger(__name__)


# Who works on without waiting lets bytes move after so long.  Seconds.
TURN_INTERVAL = 0.01


class BlockingWaiter(Waiter):
    """A waiter whose wait is a turn of the event loop, or many."""

    __slots__ = ("_hub", "_lock", "_woken")

    def __init__(self, hub: BlockingHub) -> None:
        self._hub = hub
        self._woken = False
        # Where a follower sleeps.  Always held but when it is to wake up.
        self._lock = hub._allocate_lock()
        self._lock.acquire()

    def wait(self, deadline: float | None) -> bool:
        hub = self._hub
        if hub.is_entered():
            hub.check_may_wait()
        late = False
        while True:
            with hub.lock:
                if self._woken:
                    self._woken = False
                    return True
                if late:
                    return False
                leads = hub._lead()
                if not leads:
                    hub._followers.append(self)
            if leads:
                try:
                    # Even a wait of no time does what there is to do.
                    while not self._woken and not late:
                        hub.turn(deadline)
                        late = deadline is not None and hub.now() >= deadline
                finally:
                    hub._follow()
            else:
                self._sleep(deadline)
                late = deadline is not None and hub.now() >= deadline

    def _sleep(self, deadline: float | None) -> None:
        """Until woken, or until it is this thread's turn to lead."""
        hub = self._hub
        if deadline is None:
            self._lock.acquire()
        else:
            self._lock.acquire(timeout=max(0.0, deadline - hub.now()))
        with hub.lock:
            if self in hub._followers:
                hub._followers.remove(self)
            self._lock.acquire(blocking=False)

    def wake(self) -> None:
        self._woken = True
        hub = self._hub
        if self in hub._followers:
            self._rouse()
        elif hub._leader is not None and not hub.busy and hub._reactor is not None:
            # Perhaps what the leader waits for in the loop: another thread's, or this
            # one's, interrupted there by a signal handler.
            hub._reactor.wake()

    def _rouse(self) -> None:
        self._hub._followers.remove(self)
        self._lock.release()


class BlockingHub(ReactorHub):
    """See the module."""

    name = "blocking"

    def __init__(self) -> None:
        super().__init__()
        self._leader: int | None = None
        self._depth = 0
        self._followers: list[BlockingWaiter] = []
        self._turn_at = 0.0
        # The thread whose output is gathered, and until when.
        self._gatherer: int | None = None
        self._write_at = 0.0

    def _lead(self) -> bool:
        """Become the one who runs the loop, if nobody else is.  Under the lock."""
        me = self._get_ident()
        if self._leader not in (None, me):
            return False
        self._leader = me
        self._depth += 1
        return True

    def _follow(self) -> None:
        """Lead no longer; another one who waits does, if there is one."""
        with self.lock:
            self._depth -= 1
            if self._depth > 0:
                # What the wait around this one is for may have been dealt with: if it
                # was a signal handler that waited, that wait may be about to poll.
                if self._reactor is not None:
                    self._reactor.wake()
            else:
                self._leader = None
                if self._followers:
                    self._followers[0]._rouse()

    def _start(self) -> None:
        self._reactor = Reactor(timerfd=True)

    def _stop(self) -> None:
        self._close_reactor()

    def _let_go(self) -> None:
        super()._let_go()
        # Another thread of the parent may have led.
        self._leader = None
        self._gatherer = None
        self._depth = 0
        self._followers.clear()

    def fileno(self) -> int:
        """Readable whenever `turn` has something to do, deadlines included."""
        assert self._reactor is not None, "acquire() the hub first"
        return self._reactor.fileno()

    def turn(self, deadline: float | None) -> None:
        """Wait until `deadline` for whatever comes next, then do it.

        By the one who leads.  A deadline that has passed only looks.
        """
        reactor = self._reactor
        if reactor is None:
            self.check()
            raise RuntimeError("nothing to wait for: the transport was cleaned up")
        if self._dirty:
            self.write_gathered()
        with self.lock:
            patience = 0.0 if self._work else self._patience(reactor, deadline)
        try:
            due = reactor.poll(patience)
        except (OSError, ValueError):
            if self._reactor is reactor:
                raise
            due = []  # a signal handler cleaned up, and closed it
        with self.lock:
            self._turn_at = self.now() + TURN_INTERVAL
            self._do(reactor, due)
            if self._reactor is reactor:
                reactor.arm()
        while self._work:
            self._work.popleft()()

    def flush_now(self, pump: Flushable) -> None:
        if not self.busy and self._gatherer != self._get_ident():
            pump.flush()
        elif not pump.dirty:
            pump.dirty = True
            self._dirty.append(pump)

    def gather(self) -> None:
        if self._gatherer is None:
            self._gatherer = self._get_ident()
            self._write_at = self.now() + WRITE_INTERVAL

    def write_gathered(self) -> None:
        with self.lock:
            if self._gatherer == self._get_ident():
                self._gatherer = None
            self._flush_dirty()

    def look(self) -> None:
        """Do what there is to do, without waiting; whoever leads does it anyway."""
        with self.lock:
            leads = self._lead()
        if leads:
            try:
                self.turn(self.now())
            finally:
                self._follow()

    def let_others_run(self) -> None:
        now = self.now()
        if now > self._write_at:
            self.write_gathered()
        if now > self._turn_at:
            self.look()

    def call_at(self, instant: float, callback: Callback) -> Timer:
        with self.lock:
            assert self._reactor is not None, "acquire() the hub first"
            timer = self._reactor.call_at(instant, callback)
            # Wakes up whoever leads, if this is due before what it waits for.
            self._reactor.arm()
            return timer

    def waiter(self) -> BlockingWaiter:
        return BlockingWaiter(self)

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        """There is nothing to run it in but the next turn, outside its callbacks."""

        def run() -> None:
            try:
                function(*args)
            except Exception as exc:
                if interrupts.struck(exc):
                    raise
                LOG.exception("a deferred function failed")

        self._work.append(run)
        if self._reactor is not None:
            self._reactor.wake()

    def deliver(self, function: Callback) -> None:
        self.spawn(function)

    def offload(
        self,
        function: typing.Callable[[], typing.Any],
        done: Done,
    ) -> None:
        # No second thread: a name lookup blocks, as this hub's user accepted.
        try:
            result = function()
        except BaseException as exc:
            # Ctrl-C, too: who waits for this is to wait no longer.
            done(None, exc)
            if interrupts.struck(exc):
                raise
        else:
            done(result, None)

    def off_thread(
        self,
        function: typing.Callable[[], typing.Any],
        done: Done,
    ) -> None:
        self.offload(function, done)

    def call_inside(self, callback: Callback) -> None:
        self._calls.append(callback)
        if self._reactor is not None:
            self._reactor.wake()
