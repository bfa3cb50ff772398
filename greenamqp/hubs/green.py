# SPDX-License-Identifier: Apache-2.0
"""What the hubs of eventlet and gevent have in common.

Our callbacks run in the hub's own greenlet, where the hub runs everybody's.  From
there a waiter's greenlet is switched to directly: when it blocks again, control is
back here, and after the last one all output is flushed.  No pump greenlet exists, so
none is in the way and none can leak.

Other native threads never touch the hub's structures: they leave a callback in a
queue and write to an eventfd that the hub watches, and wait on a real lock.
"""

from __future__ import annotations

import abc
import collections
import logging
import math
import os
import typing

import greenlet

from greenamqp import interrupts
from greenamqp.hubs import native
from greenamqp.hubs.alarm import Alarm
from greenamqp.hubs.base import Callback, Flushable, Hub, Waiter, Watch

_Result = typing.TypeVar("_Result")

LOG = logging.getLogger(__name__)

getcurrent = greenlet.getcurrent

# After so long within one wake-up the output so far is flushed: a green thread that
# computes must not hold back what others have ready, and the peer may begin to work.
# From one to the next it takes twice as long, up to the second of them, for each has
# its price.  What nobody waits for leaves after the second of them only.  Seconds.
FIRST_FLUSH = 0.0002
FLUSH_INTERVAL = 0.002

# That price, roughly, here and at the peer: a wake-up that will be over sooner is not
# worth it.  Seconds.
FLUSH_PRICE = 0.00005

# Who works on without waiting lets the hub run after so long.  Seconds.
YIELD_INTERVAL = 0.02

# Until a green thread is switched to again that waited for something else.  Seconds.
MISSED_PAUSE = 0.005

# Green threads that are kept for the next message when they have nothing to do.
IDLE_WORKERS = 64


class GreenWaiter(Waiter):
    """A waiter of one green thread."""

    __slots__ = ("_deadline", "_hub", "_woken", "greenlet")

    def __init__(self, hub: GreenHub) -> None:
        self._hub = hub
        self._woken = False
        self._deadline = 0.0
        self.greenlet: greenlet.greenlet | None = None

    def wait(self, deadline: float | None) -> bool:
        hub = self._hub
        if hub.is_entered():
            hub.check_may_wait()
        # Before the first look: a signal handler that waits comes between any two steps
        # here, and what wakes us meanwhile must see that we are to be switched to.
        self.greenlet = getcurrent()
        try:
            while not self._woken:
                if hub.inherited:
                    hub.check()
                if deadline is not None:
                    if deadline <= hub.now():
                        return False
                    hub._alarm.add(self, deadline)
                hub._switch()
        finally:
            # Also when a time-out or kill of the application throws us out.
            self.greenlet = None
            if deadline is not None:
                hub._alarm.deadlines.pop(self, None)
        self._woken = False
        return True

    def _is_due(self) -> bool:
        """Whether its wait is to end, as far as it is in one."""
        hub = self._hub
        deadline = hub._alarm.deadlines.get(self, math.inf)
        return self._woken or deadline <= hub.now()

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            hub = self._hub
            hub._ready.append(self)
            if not hub.busy:
                hub._schedule()


class _Worker:
    """A green thread that does one piece of work after another, parked in between."""

    __slots__ = ("_function", "_hub", "_waiter")

    def __init__(self, hub: GreenHub, function: Callback) -> None:
        self._hub = hub
        self._function: Callback | None = function
        self._waiter = GreenWaiter(hub)

    def give(self, function: Callback | None) -> None:
        """Do this next; None: end."""
        self._function = function
        self._waiter.wake()

    def run(self) -> None:
        hub = self._hub
        while self._function is not None:
            try:
                self._function()
            except (KeyboardInterrupt, SystemExit, greenlet.GreenletExit):
                raise
            except BaseException:
                # Such as a time-out of eventlet's, which an endpoint was left by.
                LOG.exception("work that came with a message failed")
            self._function = None
            if len(hub._idle) >= IDLE_WORKERS or not hub._users:
                return
            hub._idle.append(self)
            try:
                self._waiter.wait(None)
            except BaseException:
                # Killed: no work may be given to it.
                if self in hub._idle:
                    hub._idle.remove(self)
                raise


class GreenHub(Hub):
    """Base of the eventlet and gevent hubs; belongs to one native thread."""

    punctual = True

    def __init__(self) -> None:
        super().__init__()
        self._ready: list[GreenWaiter] = []
        # Takes the scheduled wake-up back, if there is one.
        self._scheduled: Callback | None = None
        self._idle: list[_Worker] = []
        # When the wake-up began, or output left early within it, and after how long
        # the next that somebody waits for does.
        self._flushed_at = 0.0
        self._flush_interval = FIRST_FLUSH
        # Whether somebody waits for what is dirty.
        self._urgent = False
        self._yield_at = 0.0
        self._alarm: Alarm[GreenWaiter] = Alarm(self, self._end_wait)
        self._get_ident = native.original("threading", "get_ident")
        self._allocate_lock = native.original("threading", "Lock")
        self._thread = self._get_ident()
        self._from_outside: collections.deque[Callback] = collections.deque()
        # Held where other threads write to the eventfd, and where it goes away.
        self._eventfd_lock = self._allocate_lock()
        self._eventfd = -1
        self._eventfd_watch: Watch | None = None
        # Of each descriptor.
        self._watches: dict[int, typing.Any] = {}

    # -- what eventlet and gevent differ in

    @abc.abstractmethod
    def _switch(self) -> None:
        """Let the hub run until somebody switches back to this green thread."""

    @abc.abstractmethod
    def _call_soon(self, callback: Callback) -> Callback:
        """Have the hub run `callback` in its next turn; returns what takes that back,
        before it has run.  In the hub's thread."""

    @abc.abstractmethod
    def _loop_greenlet(self) -> greenlet.greenlet | None:
        """The green thread that the library's loop runs in."""

    def engaged(self) -> bool:
        """As in the base class; and in the loop's green thread, which nothing but
        callbacks of the loop and signal handlers run in.  They can interrupt the loop
        amid what it does to its own timers and descriptors."""
        return self.is_entered() or getcurrent() is self._loop_greenlet()

    def unwatch(self, fd: int) -> None:
        watch = self._watches.get(fd)
        if watch is not None:
            watch.close()

    # -- wake-ups

    def _schedule(self) -> None:
        if self._scheduled is None:
            self._scheduled = self._call_soon(self._scheduled_wakeup)

    def _scheduled_wakeup(self) -> None:
        self._scheduled = None
        self._wakeup(None)

    def _wakeup(self, callback: Callback | None) -> None:
        """One wake-up: see the module base.  Runs in the hub's greenlet."""
        if self.inherited:
            return  # of a watch or timer that the parent set
        self.busy = True
        ready: list[GreenWaiter] = []
        done = 0
        try:
            if callback is not None:
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
            ready = self._ready
            if ready:
                now = self.now()
                self._flush_interval = FIRST_FLUSH
                self._flushed_at = now
                self._yield_at = now + YIELD_INTERVAL
            while ready:
                self._ready = []
                began = now
                for done, waiter in enumerate(ready, 1):
                    if waiter.greenlet is None:
                        continue  # it has left meanwhile
                    try:
                        waiter.greenlet.switch()
                    except (KeyboardInterrupt, SystemExit):
                        raise
                    except BaseException:
                        # A green thread that ends so has us as its parent.  Its
                        # time-outs, too, would end the watch that we were called by.
                        LOG.exception("a green thread ended with an exception")
                    if waiter.greenlet is not None and waiter._is_due():
                        self._try_again(waiter)
                    if self._dirty and self._is_flush_due(now := self.now()):
                        # For each as long as for those before.
                        rest = (now - began) / done * (len(ready) - done)
                        if rest > FLUSH_PRICE:
                            self._flush_early()
                # Whom these have woken, such as the next worker of a pool.
                ready, done = self._ready, 0
            if self._dirty:
                self._flush_all()
        except BaseException as exc:
            # A signal handler raised: the others are to be woken all the same.
            if ready is not self._ready:
                self._ready[:0] = ready[done:]
            if not isinstance(exc, Exception):
                raise
            # The loop would do no better.
            self.cut_off(exc)
            LOG.exception("a wake-up failed")
        finally:
            self.busy = False
            if self._ready or self._dirty:
                self._schedule()

    def _try_again(self, waiter: GreenWaiter) -> None:
        """Its green thread was switched to, and was not in its wait: a signal handler
        came just before that, and waits for something itself."""
        self.call_at(self.now() + MISSED_PAUSE, lambda: self._end_wait(waiter))

    def let_others_run(self) -> None:
        now = self.now()
        if self._is_flush_due(now):
            self._flush_early()
        if now > self._yield_at:
            waiter = GreenWaiter(self)
            self._call_soon(lambda: self._wakeup(waiter.wake))
            waiter.wait(None)
            self._yield_at = self.now() + YIELD_INTERVAL

    def _is_flush_due(self, now: float) -> bool:
        """Whether output is to leave before the wake-up ends."""
        interval = self._flush_interval if self._urgent else FLUSH_INTERVAL
        return now > self._flushed_at + interval

    def _flush_early(self) -> None:
        """Flush within a wake-up."""
        self._flush_all()
        self._flush_interval = min(2 * self._flush_interval, FLUSH_INTERVAL)
        self._flushed_at = self.now()

    def _flush_all(self) -> None:
        self._urgent = False
        with self.lock:
            self._flush_dirty()

    def flush_now(self, pump: Flushable) -> None:
        if not self.busy:
            pump.flush()
            if pump.dirty:
                self._flushed(pump)
            return
        self._urgent = True
        if not pump.dirty:
            self.flush_late(pump)

    def _flushed(self, pump: Flushable) -> None:
        """What `pump` had for the scheduled wake-up has left: that is taken back if it
        was for this alone.  So a request's acknowledgement costs no turn of the hub
        where its reply follows at once.

        A signal handler may cut this off anywhere: then there is a flush too many.
        """
        pump.dirty = False
        self._dirty.remove(pump)
        if not (self._dirty or self._ready):
            self._urgent = False
            scheduled, self._scheduled = self._scheduled, None
            if scheduled is not None:
                scheduled()
                if self._dirty or self._ready:  # by a signal handler, just now
                    self._schedule()

    def flush_soon(self, pump: Flushable) -> None:
        self._urgent = True
        self.flush_late(pump)

    def flush_late(self, pump: Flushable) -> None:
        if not pump.dirty:
            pump.dirty = True
            self._dirty.append(pump)
            if not self.busy:
                self._schedule()

    def _revive(self) -> None:
        self._alarm.renew()
        super()._revive()

    def _end_wait(self, waiter: GreenWaiter) -> None:
        self._ready.append(waiter)

    # -- other native threads

    def waiter(self) -> GreenWaiter:
        return GreenWaiter(self)

    def foreign(self) -> bool:
        ident: int = self._get_ident()
        foreign: bool = ident != self._thread
        return foreign

    def current(self) -> typing.Hashable:
        green_thread: typing.Hashable = getcurrent()
        return green_thread

    def deliver(self, function: Callback) -> None:
        if self._idle:
            self._idle.pop().give(function)
        else:
            self.spawn(_Worker(self, function).run)

    def _start(self) -> None:
        # What another thread left while nobody used the hub is told of at once.
        self._eventfd = os.eventfd(
            len(self._from_outside), os.EFD_NONBLOCK | os.EFD_CLOEXEC
        )
        self._eventfd_watch = self.watch(self._eventfd, self._called_from_outside)

    def _stop(self) -> None:
        while self._idle:
            self._idle.pop().give(None)
        if self._eventfd_watch is not None:
            self._eventfd_watch.close()
            self._eventfd_watch = None
            with self._eventfd_lock:
                eventfd, self._eventfd = self._eventfd, -1
            os.close(eventfd)
            if self._from_outside:
                self._call_soon(self._wakeup_from_outside)
        self._alarm.stop()

    def _let_go(self) -> None:
        super()._let_go()
        self._ready.clear()
        self._alarm.deadlines.clear()
        self._idle.clear()
        self._from_outside.clear()
        # Another thread of the parent may have held it.
        self._eventfd_lock = self._allocate_lock()
        self._eventfd_watch = None
        eventfd, self._eventfd = self._eventfd, -1
        if eventfd >= 0:
            os.close(eventfd)

    def _called_from_outside(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            pass
        self._run_from_outside()

    def _wakeup_from_outside(self) -> None:
        self._wakeup(self._run_from_outside)

    def _run_from_outside(self) -> None:
        while self._from_outside:
            try:
                self._from_outside.popleft()()
            except Exception as exc:
                # The others were announced by the same write.
                LOG.exception("a callback failed")
                if interrupts.struck(exc):
                    self.cut_off(exc)

    def call_inside(self, callback: Callback) -> None:
        self._from_outside.append(callback)
        if self.foreign():
            with self._eventfd_lock:
                if self._eventfd >= 0:
                    os.eventfd_write(self._eventfd, 1)
        elif self._eventfd >= 0:
            # By the eventfd from the hub's own thread too: a signal handler may have
            # interrupted the hub's wait, which goes on as if nothing had been.  Without
            # the lock: it may have interrupted whoever holds that.
            os.eventfd_write(self._eventfd, 1)
        else:
            # Begun before the last user went: a name that took long to look up.
            self._call_soon(self._wakeup_from_outside)

    def run_inside(
        self, function: typing.Callable[..., _Result], *args: typing.Any
    ) -> _Result:
        self.check()
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
        if outcome[1] is not None:
            raise outcome[1]
        return typing.cast(_Result, outcome[0])
