# SPDX-License-Identifier: Apache-2.0
"""For processes without green threads: callers send in their own thread, under a
lock, and one thread of the hub's own reads, for all connections of the process.

The thread starts with the first connection and ends with the last.
"""

from __future__ import annotations

import atexit
import logging
import typing

from greenamqp.hubs import native
from greenamqp.hubs.base import WRITE_INTERVAL, Callback, Flushable, Timer, Waiter
from greenamqp.hubs.reacting import ReactorHub
from greenamqp.hubs.reactor import Reactor

LOG = logging.getLogger(__name__)

# How long the end of the interpreter waits for the hub's thread, which a callback of
# the application may hold up.  Seconds.
EXIT_TIMEOUT = 2.0


class ThreadWaiter(Waiter):
    """A waiter of one native thread: a lock that is held until woken."""

    __slots__ = ("_hub", "_lock", "_pumps", "_woken")

    def __init__(self, hub: ThreadsHub) -> None:
        self._hub = hub
        self._woken = False
        # Whether it waits in the hub's own thread, where the loop is to be woken.
        self._pumps = False
        self._lock = hub._allocate_lock()
        self._lock.acquire()

    def wait(self, deadline: float | None) -> bool:
        hub = self._hub
        hub.check()
        if hub.inside():
            # A callback of the application, called by the hub's thread, waits: let
            # the thread go on with its work meanwhile, or it would wait for itself.
            return self._pump(deadline)
        hub._write()
        if deadline is None:
            self._lock.acquire()
        elif not self._lock.acquire(timeout=max(0.0, deadline - hub.now())):
            with hub.lock:
                if not self._woken:
                    return False
            self._lock.acquire()  # woken in the last moment: released, or just about
        self._woken = False
        return True

    def _pump(self, deadline: float | None) -> bool:
        hub = self._hub
        self._pumps = True
        try:
            while not self._woken:
                if deadline is not None and hub.now() >= deadline:
                    return False
                hub._turn(hub._reactor, deadline)
        finally:
            self._pumps = False
        self._lock.acquire()
        self._woken = False
        return True

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            if self._hub.busy:
                self._hub._ready.append(self)
            else:
                self._lock.release()
                if self._pumps:
                    self._hub._wake_reactor()


class ThreadsHub(ReactorHub):
    """One native thread that reads; see the module."""

    name = "threads"

    def __init__(self) -> None:
        super().__init__()
        self._thread_class = native.original("threading", "Thread")
        self._ready: list[ThreadWaiter] = []
        self._thread: typing.Any = None
        self._ident: int | None = None
        self._stopping = False
        # Threads whose output is gathered, and whether there may be more of them soon.
        self._gatherers: set[int] = set()
        self._expected = False
        self._write_at = 0.0
        # Whether the hub's thread wakes up within WRITE_INTERVAL, and writes what was
        # gathered; and whether it did so last time and found nothing.
        self._naps = False
        self._in_vain = False

    def _let_go(self) -> None:
        super()._let_go()
        self._ready.clear()
        self._gatherers.clear()
        self._naps = False
        # Ends the loop, should it be the hub's own thread that forked.
        self._stopping = True

    def inside(self) -> bool:
        """Whether the calling thread is the hub's own."""
        return self._get_ident() == self._ident

    def release(self) -> None:
        with self.lock:
            super().release()
            thread = self._thread if self._users == 0 else None
            if thread is not None:
                self._thread = None
        if thread is not None and not self.inside():
            thread.join()

    def _start(self) -> None:
        # Before proton's own exit handler, which was registered when it was imported
        # and takes away what a thread in the engine still uses.
        atexit.register(self._at_exit)
        self._stopping = False
        self._reactor = Reactor()
        self._thread = self._thread_class(
            target=self._run, args=(self._reactor,), name="greenamqp", daemon=True
        )
        self._thread.start()

    def _at_exit(self) -> None:
        """The interpreter ends, and nobody cleaned up."""
        with self.lock:
            thread = self._thread
            self._stopping = True
            if self._reactor is not None:
                self._reactor.wake()
        if thread is not None and not self.inside():
            thread.join(EXIT_TIMEOUT)

    def _stop(self) -> None:
        atexit.unregister(self._at_exit)
        self._stopping = True
        if self._reactor is not None:
            self._reactor.wake()

    def _run(self, reactor: Reactor) -> None:
        self._ident = self._get_ident()
        try:
            # Stopped, or stopped and started again with another thread and reactor.
            while not self._stopping and self._reactor is reactor:
                self._turn(reactor, None)
        finally:
            with self.lock:
                if self._reactor is reactor:
                    self._reactor = None
                    self._ident = None
                reactor.close()

    def _turn(self, reactor: Reactor | None, deadline: float | None) -> None:
        """Wait for whatever comes next, then run it.  In the hub's thread."""
        assert reactor is not None
        with self.lock:
            self._naps = nap = bool(
                self._expected or (self._gatherers and not self._in_vain)
            )
            self._expected = False
            patience = self._patience(reactor, deadline)
        if nap:
            longest = WRITE_INTERVAL
            patience = longest if patience is None else min(patience, longest)
        due = reactor.poll(patience)
        with self.lock:
            self._in_vain = nap and not due and not self._dirty
            self._naps = False
            self._do(reactor, due)
            ready, self._ready = self._ready, []
        for waiter in ready:
            waiter._lock.release()
        while self._work:
            function = self._work.popleft()
            try:
                function()
            except BaseException:
                # SystemExit, too: it would end this thread, and every connection.
                LOG.exception("work that came with a message failed")

    # A worker that dispatches messages gathers: the acknowledgement and the reply of a
    # request leave in one write, and so do the replies to several that were there.
    # Its endpoint may wait for something else meanwhile.  So it gathers only while the
    # hub's thread has set itself an alarm, after which it writes whatever there is; a
    # worker that takes longer than that writes as it goes.

    def expect_output(self) -> None:
        self._expected = True

    def gather(self) -> None:
        self._gatherers.add(self._get_ident())

    def breathe(self) -> None:
        if self._dirty and self.now() > self._write_at:
            self._write()

    def write_gathered(self) -> None:
        self._gatherers.discard(self._get_ident())
        self._write()

    def _write(self) -> None:
        """Write what anybody has gathered.  In any thread but the hub's own."""
        if self._dirty:
            with self.lock:
                self._flush_dirty()

    def flush_now(self, pump: Flushable) -> None:
        if not self.busy and not (
            self._naps and self._get_ident() in self._gatherers
        ):
            pump.flush()
        elif not pump.dirty:
            pump.dirty = True
            if not self._dirty:
                self._write_at = self.now() + WRITE_INTERVAL
            self._dirty.append(pump)

    def _wake_reactor(self) -> None:
        if self._reactor is not None and not self.inside():
            self._reactor.wake()

    def call_at(self, instant: float, callback: Callback) -> Timer:
        with self.lock:
            assert self._reactor is not None, "acquire() the hub first"
            upcoming = self._reactor.next_deadline()
            timer = self._reactor.call_at(instant, callback)
            if upcoming is None or instant < upcoming:
                self._wake_reactor()
            return timer

    def waiter(self) -> ThreadWaiter:
        return ThreadWaiter(self)

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        def run() -> None:
            try:
                function(*args)
            except Exception:
                LOG.exception("a thread failed")

        self._thread_class(target=run, name="greenamqp-work", daemon=True).start()

    def deliver(self, function: Callback) -> None:
        """In the hub's own thread, after the lock is free again.

        It is meant to hand messages on.  Should it wait, the thread goes on pumping
        meanwhile, see `ThreadWaiter.wait`.
        """
        with self.lock:
            self._work.append(function)
            if not self.busy:
                self._wake_reactor()

    def call_inside(self, callback: Callback) -> None:
        with self.lock:
            self._calls.append(callback)
            self._wake_reactor()
