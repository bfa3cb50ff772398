# SPDX-License-Identifier: Apache-2.0
"""What the hubs of native threads have in common: a reactor, and a lock.

Every thread may enter the engine, under the lock.  One thread at a time *leads*: it
runs the reactor, in turns: it waits for what is due, then does it, under the lock
again.  Where one can be had that is a thread which waits for something itself: what it
waits for then reaches it with no other thread between.  Who leads otherwise, and what
becomes of those who wait while another leads, is what the two hubs differ in.
"""

from __future__ import annotations

import collections
import logging
import typing

from greenamqp import interrupts
from greenamqp.hubs import native
from greenamqp.hubs.base import Callback, Hub, Watch
from greenamqp.hubs.reactor import Reactor

LOG = logging.getLogger(__name__)

_Result = typing.TypeVar("_Result")


class ReactorHub(Hub):
    """Base of the threads and blocking hubs; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self._get_ident = native.original("threading", "get_ident")
        self._allocate_lock = native.original("threading", "Lock")
        self._reactor: Reactor | None = None
        # What other threads want done in the hub's context, and what is to be done
        # outside of it, between two turns.
        self._calls: collections.deque[Callback] = collections.deque()
        self._work: collections.deque[Callback] = collections.deque()

    def _let_go(self) -> None:
        super()._let_go()
        self._calls.clear()
        self._work.clear()
        self._close_reactor()

    def _close_reactor(self) -> None:
        reactor, self._reactor = self._reactor, None
        if reactor is not None:
            reactor.close()

    def acquire(self) -> None:
        with self.lock:
            super().acquire()

    def release(self) -> None:
        with self.lock:
            super().release()

    # -- turns, by whoever runs the reactor

    def _patience(self, reactor: Reactor, deadline: float | None) -> float | None:
        """Seconds that the reactor may wait: until the next timer, but not beyond the
        instant `deadline`; None: for ever.  Under the lock, for it tidies the timers.
        """
        if self._calls:
            return 0.0
        upcoming = reactor.next_deadline()
        if deadline is not None and (upcoming is None or deadline < upcoming):
            upcoming = deadline
        return None if upcoming is None else max(0.0, upcoming - self.now())

    def _do(self, reactor: Reactor, due: list[Callback]) -> None:
        """One wake-up: what is due for descriptors, then for timers, then what was
        left by others, and one flush.  Under the lock."""
        now = self.now()
        if not due and not self._dirty and not self._calls and not reactor.is_late(now):
            return
        self.busy = True
        done = 0
        try:
            reactor.expire(now, due)
            while self._calls:
                due.append(self._calls.popleft())
            for callback in due:
                done += 1
                try:
                    callback()
                except Exception as exc:
                    if interrupts.struck(exc):
                        raise
                    LOG.exception("a callback failed")
            self._flush_dirty()
        except BaseException as exc:
            # A signal handler raised, in the main thread, whose caller hears of it.
            self.cut_off(exc)
            raise
        finally:
            self.busy = False
            # The others are to be done.
            self._calls.extendleft(reversed(due[done:]))

    # -- as in the base class

    def watch(self, fd: int, on_readable: Callback) -> Watch:
        with self.lock:
            assert self._reactor is not None, "acquire() the hub first"
            # epoll takes a new descriptor while another thread waits in it.
            return self._reactor.watch(fd, on_readable)

    def current(self) -> typing.Hashable:
        ident: int = self._get_ident()
        return ident

    def foreign(self) -> bool:
        return False  # every thread may enter, under the lock

    def run_inside(
        self, function: typing.Callable[..., _Result], *args: typing.Any
    ) -> _Result:
        return function(*args)
