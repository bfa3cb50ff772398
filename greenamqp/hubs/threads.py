# SPDX-License-Identifier: Apache-2.0
"""For processes without green threads: callers send in their own thread, under a
lock, and one thread at a time reads, for all connections of the process.

Theory of operation
-------------------

To hand over from one native thread to another costs more than what there is to do for a
message.  So whoever waits reads: a caller its own reply, a worker of an executor that
has nothing to do what it then works on.  Who comes to wait while another thread reads
*follows*: it sleeps until the reader wakes it.

A reader that has what it waited for leaves, and another one has to come before long, if
only for timers.  The hub's own thread sees to that.  It starts with the first
connection and ends with the last.  Where several threads are served it comes at once,
and stays: one reader that stays costs less than one that changes.  Where one thread
alone is served, twice running, that mostly waits again soon, and is to read for itself:
the hub's own thread leaves it some time to come, and leaves it the reading, too.

Who reads is a `Reading`, and TABLE says what follows on what.

What EXPECTED is worth, by ``benchmarks compare`` with one caller on a quiet machine: a
quarter of the CPU of a call or cast, and of a call's time.  (Where a call takes about
as long as TAKE_OVER, on a machine that is slow or busy, it gains nothing.)

Whoever is served in a turn runs once that is over, and the lock free.

While it does not read, the hub's own thread sleeps, and looks every now and then.  It
deposes a reader that does not do what there is to do: that may be in a signal handler,
which runs in the main thread wherever that is.  (Where such a handler waits itself, in
the thread that reads, that is deposed at once.)  It writes what others have gathered,
and does the work that came with messages: `ThreadsHub.gather`, `ThreadsHub.deliver`.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import logging
import math
import operator
import typing

from greenamqp.hubs import native
from greenamqp.hubs.base import (
    WRITE_INTERVAL,
    Callback,
    EngagedError,
    Flushable,
    Timer,
    Waiter,
    logged,
)
from greenamqp.hubs.reacting import ReactorHub
from greenamqp.hubs.reactor import Channel, Reactor

LOG = logging.getLogger(__name__)


class Reading(enum.StrEnum):
    """Who reads."""

    NOBODY = "nobody, as there is no connection"
    DUE = "nobody yet, the hub's own thread is on its way"
    EXPECTED = "nobody yet, a thread that waits, or after TAKE_OVER the hub's own"
    OWN = "the hub's own thread"
    WAITER = "a thread that waits for something itself"


class Event(enum.StrEnum):
    """What makes another one read."""

    STARTS = "the first connection comes"
    OWN_COMES = "the hub's own thread comes"
    WAITER_COMES = "a thread comes to wait"
    LEAVES = "the reader leaves"
    LEAVES_ONE = "the reader leaves, and one thread alone is served"
    IS_DEPOSED = "the reader does not do what there is to do"
    ENDS = "the last connection goes"


_UNREAD = {
    Event.OWN_COMES: Reading.OWN,
    Event.WAITER_COMES: Reading.WAITER,
    Event.ENDS: Reading.NOBODY,
}
_READ = {
    Event.LEAVES: Reading.DUE,
    Event.LEAVES_ONE: Reading.EXPECTED,
    Event.ENDS: Reading.NOBODY,
}
TABLE = {
    Reading.NOBODY: {Event.STARTS: Reading.DUE},
    Reading.DUE: _UNREAD,
    Reading.EXPECTED: _UNREAD,
    Reading.OWN: _READ,
    Reading.WAITER: {**_READ, Event.IS_DEPOSED: Reading.DUE},
}

# How long the hub's own thread leaves it to another one to come and read; it also
# writes then what was gathered.  Seconds.
TAKE_OVER = WRITE_INTERVAL

# How often the hub's own thread looks whether another one that reads does what there is
# to do; the second time in a row that it does not, it is deposed.  Seconds.
LOOK = 0.5


_RELEASE = operator.attrgetter("_lock.release")


class ThreadWaiter(Waiter):
    """A waiter of one native thread: a lock that is held until woken.

    :param idle: what is waited for is work, of which there may be none for long
    """

    __slots__ = ("_hub", "_lock", "_woken", "idle", "ident")

    def __init__(self, hub: ThreadsHub, idle: bool = False) -> None:
        self._hub = hub
        self._woken = False
        self.idle = idle
        #: Whose it is, from the first wait on.
        self.ident: int | None = None
        self._lock = hub._allocate_lock()
        self._lock.acquire()

    def is_served(self) -> bool:
        """Whether its thread has no reason to read any more."""
        return self._woken

    def wait(self, deadline: float | None) -> bool:
        hub = self._hub
        hub.check()
        if hub.is_entered():
            hub.check_may_wait()
        self.ident = me = hub._get_ident()
        own = hub._own
        if own is not None and own.ident == me:
            # Let the thread go on with its work meanwhile, or it would wait for itself.
            return self._wait_within(own, deadline)
        if hub._dirty:
            hub._write()
        followers = hub._followers
        if not self.idle:
            # In this order: who reads, and leaves now, sees us, or else we see that.
            followers.add(self)
        try:
            reader = hub._reader
            if reader is None:
                hub._read(self, deadline)
            elif reader.ident == me:
                # This is a signal handler, or the like, and nobody would read until
                # it returns.
                with hub.lock:
                    if hub._reader is reader:
                        hub._depose()
            if deadline is None:
                self._lock.acquire()
            elif not self._lock.acquire(timeout=max(0.0, deadline - hub.now())):
                with hub.lock:
                    if not self._woken:
                        return False
                self._lock.acquire()  # woken in the last moment, or just about
        finally:
            followers.discard(self)
        self._woken = False
        return True

    def _wait_within(self, own: _OwnThread, deadline: float | None) -> bool:
        hub = self._hub
        if not own.works:
            raise EngagedError(
                "this cannot wait for the message bus: it runs in a finalizer or a "
                "callback that interrupted the driver's own thread"
            )
        outer, own.within = own.within, self
        try:
            while not self._woken:
                if deadline is not None and hub.now() >= deadline:
                    return False
                hub._step(own, deadline)
        finally:
            own.within = outer
            own.works = True
        self._lock.acquire()
        self._woken = False
        return True

    def wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        hub = self._hub
        hub._followers.discard(self)
        if hub.busy:
            # It may read, or would only find the hub's lock taken: after the turn.
            hub._roused.append(self)
        else:
            self._lock.release()
            if hub._reader is self:
                hub._wake_reader()
        if hub._own is not None and hub._own.within is self:
            hub._wake_own()


class _OwnThread:
    """The hub's own thread, from a first connection to the last.

    :ivar asleep: whether it sleeps, or is about to, on its alarm
    :ivar works: whether it does work that came with messages, which may wait
    :ivar within: what such work waits for
    :ivar keeps: whether the reactor is its own to close when it ends
    """

    __slots__ = (
        "_alarm",
        "_work",
        "asleep",
        "ident",
        "keeps",
        "reactor",
        "thread",
        "within",
        "works",
    )

    def __init__(self, hub: ThreadsHub, reactor: Reactor) -> None:
        self.reactor = reactor
        self.thread: typing.Any = None
        self.ident: int | None = None
        self.asleep = False
        self.works = False
        self.within: ThreadWaiter | None = None
        self.keeps = True
        self._work = hub._work
        self._alarm = hub._allocate_lock()
        self._alarm.acquire()

    def is_served(self) -> bool:
        """Whether it has something else to do than to read."""
        return bool(self._work) or (self.within is not None and self.within._woken)

    def sleep(self, timeout: float) -> bool:
        """For so many seconds, or until woken: whether it was."""
        return bool(self._alarm.acquire(timeout=timeout))

    def woke_up(self, woken: bool) -> None:
        """Take note of it.  Under the hub's lock."""
        if not woken and not self.asleep:
            self._alarm.acquire()  # it was woken in the last moment
        self.asleep = False

    def wake(self) -> None:
        """Let it look what has changed, if it sleeps.  Under the hub's lock."""
        if self.asleep:
            self.asleep = False
            self._alarm.release()


def _release(roused: collections.deque[ThreadWaiter]) -> None:
    """Let them run, and forget them.

    In one step of the interpreter: a signal handler that raises amid these would leave
    others asleep for ever.
    """
    if roused:
        each = iter(roused.popleft, None)
        with contextlib.suppress(IndexError):
            collections.deque(map(operator.call, map(_RELEASE, each)), 0)


class ThreadsHub(ReactorHub):
    """See the module."""

    name = "threads"

    def __init__(self) -> None:
        super().__init__()
        self._thread_class = native.original("threading", "Thread")
        self._own: _OwnThread | None = None
        self._reading = Reading.NOBODY
        self._reader: ThreadWaiter | _OwnThread | None = None
        # Who waits, does not read, and is not idle.
        self._followers: set[ThreadWaiter] = set()
        # Who was woken in this turn, and runs after it.
        self._roused: collections.deque[ThreadWaiter] = collections.deque()
        # The thread that was served alone last, if one was, and whether it was again.
        self._served: int | None = None
        self._served_again = False
        # Threads whose output is gathered.
        self._gatherers: set[int] = set()
        # When the hub's own thread, by itself, looks who reads, and writes what was
        # gathered: TAKE_OVER after it was asked to.  In the past: nobody has asked.
        self._up_at = -math.inf
        # How many turns there were, and who read at which when there was something
        # that it had not done.
        self._turns = 0
        self._suspect: tuple[object, int] | None = None

    def _let_go(self) -> None:
        super()._let_go()
        # Should it be the hub's own thread that forked, it ends.
        self._own = self._reader = None
        self._reading = Reading.NOBODY
        self._followers.clear()
        self._roused.clear()
        self._gatherers.clear()
        self._up_at = -math.inf

    def _move(
        self, event: Event, reader: ThreadWaiter | _OwnThread | None = None
    ) -> None:
        """From here on it is `reader` who reads.  Under the lock."""
        self._reading = TABLE[self._reading][event]
        self._reader = reader

    # -- coming and going

    def release(self) -> None:
        with self.lock:
            own = self._own
            super().release()
            # A callback may be what does it, which the thread could not end before.
            ended = own is not self._own and not self.busy
        if own is not None and ended and own.ident != self._get_ident():
            own.thread.join()

    def _start(self) -> None:
        self._reactor = Reactor()
        self._own = own = _OwnThread(self, self._reactor)
        self._move(Event.STARTS)
        own.thread = self._thread_class(
            target=self._run, args=(own,), name="greenamqp", daemon=True
        )
        own.thread.start()

    def _stop(self) -> None:
        """Nobody reads any more, and the hub's own thread ends."""
        own, self._own = self._own, None
        self._reactor = None
        if own is not None:
            own.keeps = self._reading is not Reading.WAITER
            self._move(Event.ENDS)
            own.reactor.wake()
            own.wake()

    # -- the hub's own thread

    def _run(self, own: _OwnThread) -> None:
        own.ident = self._get_ident()
        try:
            while self._own is own:
                self._step(own, None)
        finally:
            with self.lock:
                if own.keeps:
                    own.reactor.close()

    def _step(self, own: _OwnThread, deadline: float | None) -> None:
        """Read, or sleep for as long as others are to; then do what work there is."""
        own.works = False
        nap = 0.0
        with self.lock:
            if self._own is not own:
                return
            reads = sleeps = False
            if not own.is_served():
                nap = self._up_at - self.now()
                expects = (
                    self._reading is Reading.EXPECTED and nap > 0 and not self._calls
                )
                reads = self._reader is None and not expects
                own.asleep = sleeps = not reads
        if reads:
            self._read(own, deadline)
        elif sleeps:
            self._sleep(own, nap, deadline)
        while self._work:
            function = self._work.popleft()
            own.works = True
            try:
                function()
            except BaseException:
                # SystemExit, too: it would end this thread, and every connection.
                LOG.exception("work that came with a message failed")
            own.works = False

    def _sleep(self, own: _OwnThread, nap: float, deadline: float | None) -> None:
        """For the seconds of `nap`, or, if there are none, while others read: up to
        LOOK."""
        timeout = nap if nap > 0 else LOOK
        if deadline is not None:
            timeout = min(timeout, max(0.0, deadline - self.now()))
        woken = own.sleep(timeout)
        with self.lock:
            own.woke_up(woken)
            if self._own is own:
                if self._up_at <= self.now():
                    self._up_at = -math.inf
                self._flush_dirty()
                if not woken and nap <= 0:
                    self._watch_reader(own)

    def _watch_reader(self, own: _OwnThread) -> None:
        """Depose the thread that reads if it does not do what there is to do.  By the
        hub's own thread, under the lock."""
        suspect, self._suspect = self._suspect, None
        if self._reading is not Reading.WAITER:
            return
        try:
            if own.reactor.has_due(self.now() - LOOK):
                self._suspect = (self._reader, self._turns)
                if self._suspect == suspect:
                    self._depose()
        except OSError as exc:
            # No descriptor is left for another epoll set.  Perhaps at the next look.
            LOG.warning("cannot take the reader's place: %s", exc)

    def _look_soon(self) -> None:
        """Have the hub's own thread look, while it does not read, who does, and write
        what was gathered, in TAKE_OVER.  Under the lock."""
        is_asked = self._up_at > -math.inf
        self._up_at = self.now() + TAKE_OVER
        if not is_asked and self._own is not None:
            self._own.wake()

    # -- reading

    def _read(self, reader: ThreadWaiter | _OwnThread, deadline: float | None) -> None:
        """Read, in turns, until `reader`, of the calling thread, is served, or the
        deadline.

        Does nothing if another one reads, and may end before, when the hub does.
        """
        lock = self.lock
        own = isinstance(reader, _OwnThread)
        reads = gives_way = False
        roused: collections.deque[ThreadWaiter] = collections.deque()
        try:
            with lock:
                reactor = self._reactor
                if self._reader is not None or reactor is None or reader.is_served():
                    return
                channel = reactor.channel
                patience = self._patience(reactor, deadline)
                if own:
                    self._move(Event.OWN_COMES, reader)
                    patience = self._nap(patience, True)
                else:
                    self._move(Event.WAITER_COMES, reader)
                    self._followers.discard(reader)
                reads = True
            while reads:
                due = reactor.poll(patience, channel)
                with lock:
                    self._turns += 1
                    if self._reader is reader:
                        self._do(reactor, due)
                    roused = self._take_roused()
                    if roused:
                        self._take_note(roused)
                        gives_way = own and self._served_again
                    reads = self._reader is reader and not (
                        reader.is_served()
                        or (deadline is not None and self.now() >= deadline)
                        or gives_way
                    )
                    if reads:
                        patience = self._patience(reactor, deadline)
                        if own:
                            patience = self._nap(patience, bool(due))
                    else:
                        self._leave(reader, reactor, channel, gives_way)
                _release(roused)
        finally:
            _release(roused)
            if reads or self._reader is reader:
                # A signal handler raised.
                assert reactor is not None
                with lock:
                    self._leave(reader, reactor, channel, False)
                    roused = self._take_roused()
                _release(roused)

    def _leave(
        self,
        reader: ThreadWaiter | _OwnThread,
        reactor: Reactor,
        channel: Channel,
        gives_way: bool,
    ) -> None:
        """`reader` reads no longer.  Under the lock."""
        if channel is not reactor.channel:
            channel.close()  # it was deposed
        elif self._reader is not reader:
            reactor.close()  # the hub ended, and this was left to it
        elif (
            (gives_way or (self._served_again and self._served == reader.ident))
            and not self._followers
            and not self._calls
        ):
            self._move(Event.LEAVES_ONE)
            self._look_soon()
        else:
            self._move(Event.LEAVES)
            self._wake_own()

    def _depose(self) -> None:
        """Have the hub's own thread read, while a waiter does and does not come back.
        Under the lock.

        :raises OSError: there are too many descriptors
        """
        waiter = self._reader
        assert self._reactor is not None and isinstance(waiter, ThreadWaiter)
        self._reactor.change_channel()
        self._move(Event.IS_DEPOSED)
        if not waiter._woken and not waiter.idle:
            self._followers.add(waiter)
        self._wake_own()

    def _take_roused(self) -> collections.deque[ThreadWaiter]:
        """Those who were woken in this turn; their locks are to be released once the
        hub's is free, and without taking that again.  Under the lock."""
        roused, self._roused = self._roused, collections.deque()
        return roused

    def _take_note(self, roused: collections.deque[ThreadWaiter]) -> None:
        """Of who is served in this turn.  Under the lock."""
        alone = len(roused) == 1 and not self._followers
        one = roused[0].ident if alone else None
        self._served_again = alone and one == self._served
        self._served = one

    @property
    def at_hand(self) -> ThreadWaiter | None:
        """Whose thread runs the present wake-up: to wake it costs nothing.  None if it
        is the hub's own, or nobody's.  Under the lock.

        After a burst there are several idle workers, and without this a call with one
        caller takes 14 % more CPU (``benchmarks compare``).
        """
        reader = self._reader if self.busy else None
        return reader if isinstance(reader, ThreadWaiter) else None

    def _wake_reader(self) -> None:
        """Let whoever reads look what has changed.  Under the lock; it is not awake."""
        assert self._reactor is not None
        self._reactor.wake()

    def _wake_own(self) -> None:
        """Let the hub's own thread look what has changed.  Under the lock."""
        own = self._own
        if own is None:
            return
        if self._reader is not own:
            own.wake()
        elif not self.busy:
            own.reactor.wake()

    # -- output that is gathered

    # A worker that dispatches messages gathers: the acknowledgement and the reply of a
    # request leave in one write, and so do the replies to several that were there.
    # Its endpoint may wait for something else meanwhile.  So it gathers only while the
    # hub's own thread was asked to look soon, which writes then whatever there is; a
    # worker that takes longer than that writes as it goes.  Without this a server with
    # 16 callers takes 13 to 47 % more CPU for a call (``benchmarks compare``).

    def _nap(self, patience: float | None, found: bool) -> float | None:
        """How long the hub's own thread, which reads, waits at the most.

        :param found: whether there was something to do when it waited last
        """
        now = self.now()
        if self._gatherers and (found or self._up_at == -math.inf):
            self._up_at = now + TAKE_OVER
        nap = self._up_at - now
        if nap <= 0:
            self._up_at = -math.inf
            return patience
        return nap if patience is None else min(patience, nap)

    def expect_output(self) -> None:
        if self._reading is not Reading.OWN or self.busy:
            self._look_soon()

    def gather(self) -> None:
        self._gatherers.add(self._get_ident())

    def write_gathered(self) -> None:
        self._gatherers.discard(self._get_ident())
        self._write()

    def _write(self) -> None:
        """Write what anybody has gathered."""
        if self._dirty:
            with self.lock:
                self._flush_dirty()

    def flush_now(self, pump: Flushable) -> None:
        if not self.busy and not (
            self._up_at > -math.inf and self._get_ident() in self._gatherers
        ):
            pump.flush()
        elif not pump.dirty:
            pump.dirty = True
            self._dirty.append(pump)

    # -- as in the base class

    def call_at(self, instant: float, callback: Callback) -> Timer:
        with self.lock:
            reactor = self._reactor
            assert reactor is not None, "acquire() the hub first"
            upcoming = reactor.next_deadline()
            timer = reactor.call_at(instant, callback)
            if (
                self._reader is not None
                and not self.busy
                and (upcoming is None or instant < upcoming)
            ):
                self._wake_reader()
            return timer

    def waiter(self, idle: bool = False) -> ThreadWaiter:
        """A new waiter; see :class:`ThreadWaiter`."""
        return ThreadWaiter(self, idle)

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        self._thread_class(
            target=logged, args=(function, *args), name="greenamqp-work", daemon=True
        ).start()

    def deliver(self, function: Callback) -> None:
        """In the hub's own thread, after the lock is free again.

        It is meant to hand messages on.  Should it wait, the thread goes on with its
        work meanwhile, see `ThreadWaiter.wait`.
        """
        with self.lock:
            self._work.append(function)
            self._wake_own()

    def call_inside(self, callback: Callback) -> None:
        if self.is_entered():
            # Perhaps amid what is below, or anything else.
            self._calls.append(callback)
            reactor = self._reactor
            if reactor is not None and not self.busy:
                reactor.wake()
            return
        with self.lock:
            self._calls.append(callback)
            if self._reader is None:
                self._wake_own()
            elif not self.busy:
                self._wake_reader()
