# SPDX-License-Identifier: Apache-2.0
"""One dispatcher over many listeners.

An executor takes messages from any number of listeners and hands them to the
dispatch function that each was added with.  Listeners come and go before and after
start(), from anywhere: an endpoint, another green thread, another thread, a signal
handler that Python runs between two instructions.

* ``blocking`` dispatches in the thread that called start(), one batch at a time, and
  never makes a thread;
* ``eventlet``, ``gevent`` and ``threading`` dispatch in one bounded pool of workers
  for all listeners.

Every listener gets its turn: one batch each, round after round, so that a backlog on
one keeps another waiting for no more than a round.  What a dispatch function raises
is logged and concerns its own messages only.  Where it is no Exception they go back to
the bus, and it is raised: SystemExit, or what a green thread is killed by.
"""

from __future__ import annotations

import abc
import collections
import functools
import logging
import typing

from oslo_messaging._drivers import base

from greenamqp.hubs import Countdown, Hub, Steps, Waiter, native
from greenamqp.hubs.blocking import BlockingHub
from greenamqp.hubs.threads import ThreadsHub, ThreadWaiter
from greenamqp.listener import Listener

LOG = logging.getLogger(__name__)

Dispatch = typing.Callable[[list[base.IncomingMessage]], object]

#: The executors there are, and the hub that each wants its listeners to be on.
HUBS = {
    "blocking": "blocking",
    "eventlet": "eventlet",
    "gevent": "gevent",
    "threading": "threads",
}


class _Entry:
    """A listener of an executor."""

    __slots__ = ("active", "dispatch", "listener", "queued", "removed")

    def __init__(self, listener: Listener, dispatch: Dispatch) -> None:
        self.listener = listener
        self.dispatch = dispatch
        #: Whether it stands in the queue of those that have messages.
        self.queued = False
        #: How many of its batches are being dispatched.
        self.active = 0
        self.removed = False


class Executor(abc.ABC):
    """See the module.

    :param hub: the hub of all its listeners
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._entries: dict[Listener, _Entry] = {}
        self._ready: collections.deque[_Entry] = collections.deque()
        self._running = False
        #: Set by stop(), for good.
        self.stopped = False
        self._active = 0
        # Batches that are being dispatched.
        self._at_work = 0
        self._waiters: list[Waiter] = []

    def add_listener(self, listener: Listener, dispatch: Dispatch) -> None:
        """Give `listener`'s messages to `dispatch` from now on, or from start() on.

        :raises ValueError: if the listener is on another hub, or here already
        """
        if listener.hub is not self.hub:
            raise ValueError(
                f"the listener is on the {listener.hub.name} hub, and this executor "
                f"on another {self.hub.name} hub"
            )
        self._inside(self._add, listener, dispatch)

    def _add(self, listener: Listener, dispatch: Dispatch) -> None:
        with self.hub.lock:
            if listener in self._entries:
                raise ValueError("the listener has been added already")
            entry = self._entries[listener] = _Entry(listener, dispatch)
            if self._running:
                self._attend(entry)

    def remove_listener(self, listener: Listener) -> None:
        """Take no more of `listener`'s messages, and wait until those that were taken
        are dispatched, but for one that calls this itself.  Unknown ones are ignored.
        """
        self.hub.complete(self.removing(listener))

    def removing(self, listener: Listener) -> Steps[None]:
        """As `remove_listener`."""
        with self.hub.lock:
            entry = self._entries.pop(listener, None)
            if entry is None:
                return
            entry.removed = True
            listener.attend(None)
            own = self.hub.current() in self._dispatching(entry)
        yield from self._until(lambda: entry.active <= own)

    def _inside(self, function: typing.Callable[..., None], *args: typing.Any) -> None:
        if self.hub.foreign():
            self.hub.run_inside(function, *args)
        else:
            function(*args)

    def _attend(self, entry: _Entry) -> None:
        entry.listener.attend(functools.partial(self._has_messages, entry))

    def _has_messages(self, entry: _Entry) -> None:
        """A listener has something.  Hub's context or lock."""
        if not entry.queued and not entry.removed:
            entry.queued = True
            self._ready.append(entry)
        if self._may_work(entry):
            self._engage()

    def _may_work(self, entry: _Entry) -> bool:
        """Whether another batch of `entry` may be begun now."""
        return True

    def _next(self) -> _Entry | None:
        """The listener whose turn it is, out of the queue.  Under the lock."""
        for _ in range(len(self._ready)):
            entry = self._ready.popleft()
            if entry.removed or self._may_work(entry):
                entry.queued = False
                return entry
            # One of its batches at work will look here again when it is done.
            self._ready.append(entry)
        return None

    @abc.abstractmethod
    def _engage(self) -> None:
        """See that somebody works.  Hub's context or lock."""

    @abc.abstractmethod
    def _dispatching(self, entry: _Entry) -> typing.Collection[typing.Hashable]:
        """Who dispatches messages of `entry` now, as hub.current() names them."""

    def _work_once(self) -> bool:
        """Dispatch one batch of the listener whose turn it is.  Returns whether there
        was one that may."""
        if not self._ready:
            return False
        lock = self.hub.lock
        with lock:
            entry = self._next()
            if entry is None:
                return False
            if entry.removed:
                return True
            entry.active += 1
            self._at_work += 1
        try:
            messages, more = entry.listener.take()
            if more:
                with lock:
                    self._has_messages(entry)
            elif self._ready:
                with lock:
                    self._engage()  # for another listener's, should this one block
            if messages:
                self._dispatch(entry, messages)
        finally:
            with lock:
                entry.active -= 1
                self._at_work -= 1
                if self._waiters:
                    self._wake_waiters()
        return True

    def _dispatch(self, entry: _Entry, messages: list[base.IncomingMessage]) -> None:
        try:
            entry.dispatch(messages)
        except Exception:
            LOG.exception("a dispatch function failed")
        except BaseException:
            # oslo.messaging's dispatchers do not say what becomes of them.
            for message in messages:
                message.requeue()
            raise

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            waiter.wake()

    def _until(self, condition: typing.Callable[[], bool]) -> Steps[None]:
        """Wait until `condition`, looked at whenever a batch is done."""
        hub = self.hub
        waiter = hub.waiter()
        with hub.lock:
            self._waiters.append(waiter)
        try:
            while not condition():
                yield waiter, None
        finally:
            with hub.lock:
                self._waiters.remove(waiter)

    @abc.abstractmethod
    def start(self) -> None:
        """Begin to dispatch, unless stop() was called before.  Once."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Begin nothing more.  Does not wait; from anywhere, a signal handler too."""

    @abc.abstractmethod
    def wait(self) -> None:
        """Wait, after stop(), until what was begun is done."""

    def _attend_all(self) -> None:
        with self.hub.lock:
            if self.stopped:
                return
            self._running = True
            for entry in self._entries.values():
                self._attend(entry)

    def _attend_none(self) -> None:
        with self.hub.lock:
            self._running = False
            for entry in self._entries.values():
                entry.listener.attend(None)
                entry.queued = False
            self._ready.clear()
            self._wake_waiters()


def _nothing() -> None:
    """What is called when only the wake-up matters."""


class BlockingExecutor(Executor):
    """Dispatches in the thread that calls start(), until stop().

    Endpoints run one after another.  One that makes a call pumps while it waits; what
    arrives meanwhile is dispatched when it has returned.
    """

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._started = False
        self._waiter = hub.waiter()
        self._current: dict[_Entry, typing.Hashable] = {}

    # A foreign loop may take the place of start(): it waits for fileno() and calls
    # step() when that is readable.

    def attach(self) -> None:
        """Take messages from now on, without dispatching: see step()."""
        self._attend_all()

    def detach(self) -> None:
        """Undo attach()."""
        self._attend_none()

    def fileno(self) -> int:
        """Readable whenever step() has something to do, for all listeners.

        :raises ValueError: if the hub is not the blocking one, which alone has a
            descriptor
        """
        if not isinstance(self.hub, BlockingHub):
            raise ValueError(f"the {self.hub.name} hub has no descriptor to wait for")
        return self.hub.fileno()

    def step(self) -> None:
        """Move bytes, meet deadlines and dispatch what is there: one batch of each
        listener at the most.  Does not wait.  In the hub's thread."""
        if isinstance(self.hub, BlockingHub):
            self.hub.look()
        self.hub.gather()
        try:
            for _ in range(len(self._ready)):
                self._work_once()
        finally:
            self.hub.write_gathered()
        if self._ready:
            self.hub.call_inside(_nothing)  # keeps the descriptor readable

    def start(self) -> None:
        """Dispatch in this thread; returns after stop()."""
        self._started = True
        self._attend_all()
        try:
            while not self.stopped:
                self.hub.gather()
                if self._work_once():
                    self.hub.let_others_run()
                else:
                    self.hub.write_gathered()
                    self._waiter.wait(None)
        finally:
            self.hub.write_gathered()
            self._attend_none()
            self._started = False
            with self.hub.lock:
                self._wake_waiters()

    def _dispatch(self, entry: _Entry, messages: list[base.IncomingMessage]) -> None:
        # An endpoint may run the loop, and be called again within itself.
        before = self._current.get(entry)
        self._current[entry] = self.hub.current()
        try:
            super()._dispatch(entry, messages)
        finally:
            if before is None:
                del self._current[entry]
            else:
                self._current[entry] = before

    def _dispatching(self, entry: _Entry) -> typing.Collection[typing.Hashable]:
        return [self._current[entry]] if entry in self._current else []

    def _engage(self) -> None:
        self._waiter.wake()

    def stop(self) -> None:
        """Have start() return when the batch at hand is done.  Does not wait."""
        self.stopped = True
        # Not under a lock: a signal handler may have interrupted who holds it.
        self.hub.call_inside(self._waiter.wake)

    def wait(self) -> None:
        """Wait until start() has returned, unless this is within a dispatch of it, or
        the thread was attached to a foreign loop."""
        if self._current and self.hub.current() in self._current.values():
            return
        if self._started:
            self.hub.run(self._until(lambda: not self._started))
        else:
            self._attend_none()


# Where there are several listeners, none has more than this many times as many
# workers as are left.  One whose endpoints all block is then stopped at four fifths of
# the pool, two at four ninths each, and whoever comes next still finds a worker.
SHARE = 4


class PoolExecutor(Executor):
    """Dispatches in workers of its hub, `size` of them at the most.

    A listener of several may not take them all: see SHARE.

    One worker is on its way as long as work waits.  It engages the next one before it
    begins, and takes more when it is done: endpoints that do not block are all run by
    the first, those that do get one worker each, within the same wake-up.
    """

    def __init__(self, hub: Hub, size: int) -> None:
        super().__init__(hub)
        if size < 1:
            raise ValueError(f"a pool of {size} workers cannot work")
        self._size = size
        self._workers: dict[typing.Hashable, _Entry | None] = {}
        # Whether a worker was engaged that has not begun.
        self._coming = False

    def _may_work(self, entry: _Entry) -> bool:
        return (
            entry.active == 0
            or len(self._entries) < 2
            or entry.active < SHARE * (self._size - self._at_work)
        )

    def _work_waits(self) -> bool:
        """Whether there is a listener in the queue that may work."""
        return any(self._may_work(entry) for entry in self._ready)

    def _engage(self) -> None:
        if not self._coming:
            self._engage_one()

    def _engage_one(self) -> None:
        """Engage another worker, if there may be one."""
        if self._active < self._size and self._running:
            self._active += 1
            self._coming = True
            try:
                self._deliver(self._work)
            except BaseException:
                self._active -= 1
                self._coming = False
                raise

    def _deliver(self, function: typing.Callable[[], None]) -> None:
        self.hub.deliver(function)

    def _work(self) -> None:
        """A worker: one batch after another, as long as there are any."""
        me = self.hub.current()
        self._workers[me] = None
        self._coming = False
        self.hub.gather()
        try:
            while self._work_once():
                self.hub.let_others_run()
        finally:
            self.hub.write_gathered()
            with self.hub.lock:
                self._workers.pop(me, None)
                self._active -= 1
                if self._ready and self._running and self._work_waits():
                    self._engage()  # came between the last look and now
                if self._waiters:
                    self._wake_waiters()

    def _dispatch(self, entry: _Entry, messages: list[base.IncomingMessage]) -> None:
        self._workers[self.hub.current()] = entry
        super()._dispatch(entry, messages)

    def _dispatching(self, entry: _Entry) -> typing.Collection[typing.Hashable]:
        return [who for who, what in self._workers.items() if what is entry]

    def start(self) -> None:
        """Begin to dispatch; returns at once."""
        if self.hub.foreign():
            self.hub.run_inside(self._attend_all)
        else:
            self._attend_all()

    def stop(self) -> None:
        """Begin nothing more."""
        self.stopped = True
        self.hub.call_inside(self._attend_none)

    def wait(self) -> None:
        """Wait until all that was begun is done, but for a worker that calls this."""
        self.hub.do(self.ending())

    def ending(self) -> Steps[None]:
        """As `wait`."""
        own = self.hub.current() in self._workers
        yield from self._until(lambda: not self._running and self._active <= own)


class _Thread:
    """A native worker thread, parked between two pieces of work."""

    __slots__ = ("function", "waiter")

    def __init__(self, waiter: ThreadWaiter) -> None:
        self.waiter = waiter
        self.function: typing.Callable[[], None] | None = None


# How long work may wait for native threads that are busy before more are engaged.
# Threads that find nothing to do, or each other, cost more than endpoints that are
# short: with one for each message the interpreter's lock changes hands forty times a
# call.  Seconds.
PATIENCE = 0.001

# When it is tried again to make a thread, where the system has none.  Seconds.
_NO_THREAD_PAUSE = 1.0


class ThreadingExecutor(PoolExecutor):
    """Dispatches in native threads, made when needed and kept until stop().

    One works as long as it gets on.  When no batch was taken for PATIENCE while some
    wait, as many more are engaged as are at work, so that a pool of which all but one
    block is at work within a few milliseconds.
    """

    hub: ThreadsHub

    def __init__(self, hub: ThreadsHub, size: int) -> None:
        super().__init__(hub, size)
        self._taken = 0
        self._taken_before = 0
        self._impatience = Countdown(hub)
        self._short_of_threads = False
        self._thread_class = native.original("threading", "Thread")
        self._idle: dict[ThreadWaiter, _Thread] = {}
        self._threads: list[typing.Any] = []

    def _engage(self) -> None:
        if self._active == 0:
            self._engage_one()
            return
        if not self._impatience.runs and self._running and self._active < self._size:
            self._be_patient(PATIENCE)

    def _engage_one(self) -> None:
        try:
            super()._engage_one()
            self._short_of_threads = False
        except RuntimeError as exc:
            if not self._short_of_threads:
                self._short_of_threads = True
                LOG.error("no further worker, of which %s work: %s", self._active, exc)
            if not self._impatience.runs:
                self._be_patient(_NO_THREAD_PAUSE)

    def _be_patient(self, seconds: float) -> None:
        self._taken_before = self._taken
        self._impatience.call_in(seconds, self._impatient)

    def _impatient(self) -> None:
        if not self._work_waits():
            return
        if self._taken == self._taken_before:
            for _ in range(self._active):
                if not self._impatience.runs:
                    self._engage_one()
        self._engage()

    def _work_once(self) -> bool:
        self._taken += 1
        return super()._work_once()

    def _deliver(self, function: typing.Callable[[], None]) -> None:
        hub = self.hub
        hub.expect_output()
        if self._idle:
            # The one that has just read the message itself, if it was one of these.
            waiter = hub.at_hand
            if waiter not in self._idle:
                waiter = next(reversed(self._idle))
            worker = self._idle.pop(waiter)
            worker.function = function
            waiter.wake()
            return
        worker = _Thread(hub.waiter(idle=True))
        worker.function = function
        thread = self._thread_class(
            target=self._run,
            args=(worker,),
            name=f"greenamqp-worker-{len(self._threads)}",
            daemon=True,
        )
        thread.start()
        self._threads.append(thread)

    def _run(self, worker: _Thread) -> None:
        while worker.function is not None:
            try:
                worker.function()
            except BaseException:
                # SystemExit, too: it would end this thread, and nobody would know.
                LOG.exception("a worker failed")
            with self.hub.lock:
                worker.function = None
                if not self._running or self.hub.inherited:
                    return
                self._idle[worker.waiter] = worker
            worker.waiter.wait(None)

    def _attend_none(self) -> None:
        with self.hub.lock:
            super()._attend_none()
            self._impatience.cancel()
            while self._idle:
                self._idle.popitem()[0].wake()  # without work: it ends

    def wait(self) -> None:
        """Wait until all that was begun is done and its threads have ended."""
        super().wait()
        me = native.original("threading", "current_thread")()
        threads, self._threads = self._threads, []
        for thread in threads:
            if thread is not me:
                thread.join()


def make(name: str, hub: Hub, size: int) -> Executor:
    """The executor of that name on `hub`, with up to `size` workers.

    :raises ValueError: for an unknown name, or a hub that does not go with it
    """
    if name not in HUBS:
        raise ValueError(f"executor must be one of {', '.join(HUBS)}; it is {name!r}")
    if name == "blocking":
        return BlockingExecutor(hub)
    # A monkey patched process has "threads" that are green: its hub does the work.
    if name == "threading" and hub.name in ("eventlet", "gevent"):
        return PoolExecutor(hub, size)
    if HUBS[name] != hub.name:
        raise ValueError(
            f"the {name} executor does not go with the {hub.name} hub of the transport"
        )
    if isinstance(hub, ThreadsHub):
        return ThreadingExecutor(hub, size)
    return PoolExecutor(hub, size)
