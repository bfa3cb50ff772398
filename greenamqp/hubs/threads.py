# SPDX-License-Identifier: Apache-2.0
"""For processes without green threads: callers send in their own thread, under a
lock, and a thread that waits reads, for all connections of the process.

Each hand-over from one native thread to another costs more than what there is to do for
a message.  So a caller that is alone reads its own reply, and a worker of an executor
that has nothing to do reads what it then works on: they lead.

One thread of the hub's own sees to it that somebody always leads.  It does so itself

* at once when the one who led goes while others wait or work, or have been served by
  it: who comes next to wait may be long in coming, and with many of them one reader
  that stays costs less than one that changes;
* otherwise when nobody else does for TAKE_OVER: a thread that was alone mostly comes
  back before that.

* or when the one who leads does not come back, although there is something to do: it
  may be in a signal handler, which runs in the main thread wherever that is.  It is
  deposed then, as it is when such a handler waits for something itself.

It gives way when one thread alone was there to wake, and the last time the same one.
It also does the work that came with messages, see :meth:`ThreadsHub.deliver`, and
writes what others gathered.  It starts with the first connection and ends with the
last.
"""

from __future__ import annotations

import atexit
import logging
import math
import typing

from greenamqp.hubs import native
from greenamqp.hubs.base import (
    WRITE_INTERVAL,
    Callback,
    EngagedError,
    Flushable,
    Timer,
    Waiter,
)
from greenamqp.hubs.reacting import ReactorHub
from greenamqp.hubs.reactor import Channel, Reactor

LOG = logging.getLogger(__name__)

# How long nobody leads before the hub's own thread does; it also writes then what was
# gathered.  Seconds.
TAKE_OVER = WRITE_INTERVAL

# How often the hub's own thread looks whether another one that leads does what there is
# to do; the second time in a row that it does not, it is deposed.  Seconds.
LOOK = 0.5

# How long the end of the interpreter waits for the hub's thread, which a callback of
# the application may hold up.  Seconds.
EXIT_TIMEOUT = 2.0


class ThreadWaiter(Waiter):
    """A waiter of one native thread: a lock that is held until woken.

    :param idle: what is waited for is work, of which there may be none for long
    """

    __slots__ = ("_hub", "_lock", "_within", "_woken", "idle", "ident")

    def __init__(self, hub: ThreadsHub, idle: bool = False) -> None:
        self._hub = hub
        self._woken = False
        # Whether it is waited for within work that the hub's own thread does.
        self._within = False
        self.idle = idle
        #: Whose it is, from the first wait on.
        self.ident: int | None = None
        self._lock = hub._allocate_lock()
        self._lock.acquire()

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
            # In this order: who leads, and goes now, sees us, or else we see that.
            followers.add(self)
        try:
            leader = hub._leader
            if leader is None:
                hub._lead(self, deadline)
            elif leader.ident == me and isinstance(leader, ThreadWaiter):
                # This is a signal handler, or the like, and nobody would read until
                # it returns.
                with hub.lock:
                    if hub._leader is leader:
                        hub._depose(leader)
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
        self._within = True
        try:
            while not self._woken:
                if deadline is not None and hub.now() >= deadline:
                    return False
                hub._step(own, deadline, self)
        finally:
            self._within = False
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
            # It may lead, or would only find the hub's lock taken: after the turn.
            hub._roused.append(self)
        else:
            self._lock.release()
            if hub._leader is self:
                hub._wake_leader()
        if self._within:
            hub._wake_own()


class _OwnThread:
    """The hub's own thread, from a first connection to the last."""

    __slots__ = ("alarm", "ident", "reactor", "sleeps", "thread", "works")

    def __init__(self, reactor: Reactor, alarm: typing.Any) -> None:
        self.reactor = reactor
        self.thread: typing.Any = None
        self.ident: int | None = None
        #: Whether it sleeps, or is about to, and where: held but to wake it up.
        self.sleeps = False
        #: Whether it does work that came with messages, which may wait.
        self.works = False
        self.alarm = alarm
        alarm.acquire()

    def wake(self) -> None:
        """Let it look what has changed, if it sleeps.  Under the hub's lock."""
        if self.sleeps:
            self.sleeps = False
            self.alarm.release()


class ThreadsHub(ReactorHub):
    """See the module."""

    name = "threads"

    def __init__(self) -> None:
        super().__init__()
        self._thread_class = native.original("threading", "Thread")
        self._own: _OwnThread | None = None
        self._leader: ThreadWaiter | _OwnThread | None = None
        # Who waits, does not lead, and is not idle.
        self._followers: set[ThreadWaiter] = set()
        # Who was woken in this turn, and runs after it.
        self._roused: list[ThreadWaiter] = []
        # The thread that was alone in being woken when the hub's own led last.
        self._only: int | None = None
        # Whether who leads, or led last, was the only one that anything came for.
        self._alone = True
        # Until when the hub's own thread leaves it to others to lead.
        self._yields_until = -math.inf
        # Threads whose output is gathered, and whether there may be more of them soon.
        self._gatherers: set[int] = set()
        self._expected = False
        self._write_at = 0.0
        # Whether the hub's own thread wakes up within WRITE_INTERVAL, and writes what
        # was gathered; and whether it did so last time and found nothing.
        self._naps = False
        self._in_vain = False
        # How many turns others have led, and who led at which when there was something
        # that it had not done.
        self._turns = 0
        self._suspect: tuple[object, int] | None = None

    def _let_go(self) -> None:
        super()._let_go()
        # Should it be the hub's own thread that forked, it ends.
        self._own = self._leader = None
        self._followers.clear()
        self._roused.clear()
        self._gatherers.clear()
        self._naps = False

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
        # Before proton's own exit handler, which was registered when it was imported
        # and takes away what a thread in the engine still uses.
        atexit.register(self._at_exit)
        self._reactor = Reactor()
        self._own = own = _OwnThread(self._reactor, self._allocate_lock())
        own.thread = self._thread_class(
            target=self._run, args=(own,), name="greenamqp", daemon=True
        )
        own.thread.start()

    def _stop(self) -> None:
        atexit.unregister(self._at_exit)
        self._end()

    def _at_exit(self) -> None:
        """The interpreter ends, and nobody cleaned up."""
        with self.lock:
            own = self._own
            self._end()
        if own is not None and own.ident != self._get_ident():
            own.thread.join(EXIT_TIMEOUT)

    def _end(self) -> None:
        """Nobody leads any more, and the hub's own thread ends."""
        own, self._own = self._own, None
        self._leader = self._reactor = None
        if own is not None:
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
                if not own.reactor.lent:
                    own.reactor.close()

    def _step(
        self,
        own: _OwnThread,
        deadline: float | None,
        waiter: ThreadWaiter | None = None,
    ) -> None:
        """Lead, or sleep for as long as others are to; then do what work there is.
        `waiter` is what is waited for within such work, until `deadline`."""
        reactor = own.reactor
        own.works = False
        leads = sleeps = False
        patience = None
        with self.lock:
            if self._own is not own:
                return
            yields = self._yields_until - self.now()
            if not self._work and (waiter is None or not waiter._woken):
                leads = self._leader is None and (yields <= 0 or bool(self._calls))
                sleeps = not leads
            if leads:
                self._leader = own
                patience = self._nap(self._patience(reactor, deadline))
            elif sleeps:
                own.sleeps = True
                self._naps = yields > 0
        roused: typing.Collection[ThreadWaiter]
        while leads:
            due = reactor.poll(patience)
            with self.lock:
                if self._leader is not own:
                    break
                worked = bool(self._gatherers)
                self._do(reactor, due)
                self._in_vain = self._naps and not due
                self._naps = False
                leads = not (
                    self._work
                    or (waiter is not None and waiter._woken)
                    or (deadline is not None and self.now() >= deadline)
                    or self._gives_way(worked)
                )
                if leads:
                    patience = self._nap(self._patience(reactor, deadline))
                elif self._leader is own:
                    self._leader = None
                roused = self._take_roused()
            for each in roused:
                each._lock.release()
        if sleeps:
            self._sleep(own, yields, deadline)
        while self._work:
            function = self._work.popleft()
            own.works = True
            try:
                function()
            except BaseException:
                # SystemExit, too: it would end this thread, and every connection.
                LOG.exception("work that came with a message failed")
            own.works = False

    def _gives_way(self, worked: bool) -> bool:
        """Whether others are to lead now, after a turn: if there was one thread to
        wake, and the last time the same, it mostly waits again before long.

        :param worked: whether some were at work already
        """
        if not self._roused:
            return False
        first = self._roused[0].ident
        if len(self._roused) > 1 or self._followers or worked:
            first = None
        only, self._only = self._only, first
        if first is None or first != only:
            return False
        self._expected = False
        self._stand_by()
        return True

    def _sleep(self, own: _OwnThread, yields: float, deadline: float | None) -> None:
        """For so many seconds, or, if they are none, while others lead: up to LOOK."""
        timeout = yields if yields > 0 else LOOK
        if deadline is not None:
            timeout = min(timeout, max(0.0, deadline - self.now()))
        woken = own.alarm.acquire(timeout=timeout)
        with self.lock:
            if not woken and not own.sleeps:
                own.alarm.acquire()  # it was woken in the last moment
            own.sleeps = False
            if self._own is own:
                self._naps = False
                self._flush_dirty()
                if not woken and yields <= 0:
                    self._watch_leader(own)

    def _watch_leader(self, own: _OwnThread) -> None:
        """Depose the thread that leads if it does not do what there is to do.  By the
        hub's own thread, under the lock."""
        leader, suspect = self._leader, self._suspect
        self._suspect = None
        if leader is None or isinstance(leader, _OwnThread):
            return
        try:
            if own.reactor.has_due(self.now() - LOOK):
                self._suspect = (leader, self._turns)
                if self._suspect == suspect:
                    self._depose(leader)
        except OSError as exc:
            # No descriptor is left for another epoll set.  Perhaps at the next look.
            LOG.warning("cannot take the reader's place: %s", exc)

    def _stand_by(self) -> None:
        """Have the hub's own thread lead, if nobody does, and write what was gathered,
        in TAKE_OVER.  Under the lock, while it does not lead."""
        self._yields_until = self.now() + TAKE_OVER
        own = self._own
        if own is not None and own.sleeps and not self._naps:
            self._naps = True
            own.wake()

    # -- who leads

    def _lead(self, waiter: ThreadWaiter, deadline: float | None) -> None:
        """Lead until `waiter`, of the calling thread, is woken, or the deadline.

        Does nothing if another one leads, and may end before, when the hub does.
        """
        lock = self.lock
        leads = False
        roused: typing.Collection[ThreadWaiter]
        try:
            with lock:
                reactor = self._reactor
                if self._leader is not None or reactor is None or waiter._woken:
                    return
                self._alone = True
                self._followers.discard(waiter)
                channel = reactor.channel
                patience = self._patience(reactor, deadline)
                reactor.lent = True
                self._leader = waiter
                leads = True
            while leads:
                due = reactor.poll(patience, channel)
                with lock:
                    self._turns += 1
                    if self._leader is waiter:
                        self._do(reactor, due)
                    roused = self._take_roused()
                    if roused and roused != [waiter]:
                        self._alone = False
                    leads = self._leader is waiter and not (
                        waiter._woken
                        or (deadline is not None and self.now() >= deadline)
                    )
                    if leads:
                        patience = self._patience(reactor, deadline)
                    else:
                        self._resign(waiter, reactor, channel)
                for each in roused:
                    each._lock.release()
        finally:
            if leads or self._leader is waiter:
                # A signal handler raised.
                assert reactor is not None
                with lock:
                    self._alone = False
                    self._resign(waiter, reactor, channel)
                    roused = self._take_roused()
                for each in roused:
                    each._lock.release()

    def _depose(self, waiter: ThreadWaiter) -> None:
        """Have the hub's own thread lead, while `waiter` leads and does not come back.
        Under the lock.

        :raises OSError: there are too many descriptors
        """
        assert self._reactor is not None
        self._reactor.change_channel()
        self._reactor.lent = False
        self._leader = None
        self._alone = False
        if not waiter._woken and not waiter.idle:
            self._followers.add(waiter)
        self._yields_until = -math.inf
        self._wake_own()

    def _resign(
        self, waiter: ThreadWaiter, reactor: Reactor, channel: Channel
    ) -> None:
        """`waiter` leads no longer: the hub's own thread does, sooner or later.  Under
        the lock."""
        if channel is not reactor.channel:
            channel.close()  # it was deposed
            return
        reactor.lent = False
        if self._leader is not waiter:
            reactor.close()  # the hub ended, and its own thread left this to us
            return
        self._leader = None
        others = len(self._gatherers) > (waiter.ident in self._gatherers)
        if self._followers or others or self._calls or not self._alone:
            self._yields_until = -math.inf
            self._wake_own()
        else:
            self._stand_by()

    def _take_roused(self) -> typing.Collection[ThreadWaiter]:
        """Those who were woken in this turn; their locks are to be released once the
        hub's is free, and without taking that again.  Under the lock."""
        if not self._roused:
            return ()
        roused, self._roused = self._roused, []
        return roused

    def _wake_leader(self) -> None:
        """Let whoever leads look what has changed.  Under the lock; it is not awake."""
        assert self._reactor is not None
        self._reactor.wake()

    def _wake_own(self) -> None:
        """Let the hub's own thread look what has changed.  Under the lock."""
        own = self._own
        if own is None:
            return
        if self._leader is not own:
            own.wake()
        elif not self.busy:
            own.reactor.wake()

    @property
    def at_hand(self) -> ThreadWaiter | None:
        """Whose thread runs the present wake-up: to wake it costs nothing.  None if it
        is the hub's own, or nobody's.  Under the lock."""
        leader = self._leader if self.busy else None
        return leader if isinstance(leader, ThreadWaiter) else None

    # A worker that dispatches messages gathers: the acknowledgement and the reply of a
    # request leave in one write, and so do the replies to several that were there.
    # Its endpoint may wait for something else meanwhile.  So it gathers only while the
    # hub's own thread has set itself an alarm, after which it writes whatever there is;
    # a worker that takes longer than that writes as it goes.

    def _nap(self, patience: float | None) -> float | None:
        """How long the hub's own thread, leading, waits at the most."""
        self._naps = self._expected or (bool(self._gatherers) and not self._in_vain)
        self._expected = False
        if not self._naps:
            return patience
        return WRITE_INTERVAL if patience is None else min(patience, WRITE_INTERVAL)

    def not_alone(self) -> None:
        """There is more to do than for one thread: whoever leads is not to do it all,
        one thing after another.  Under the lock."""
        self._alone = False

    def expect_output(self) -> None:
        if self._leader is self._own:
            self._expected = True
        else:
            self._stand_by()

    def gather(self) -> None:
        self._gatherers.add(self._get_ident())

    def breathe(self) -> None:
        if self._dirty and self.now() > self._write_at:
            self._write()

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
            self._naps and self._get_ident() in self._gatherers
        ):
            pump.flush()
        elif not pump.dirty:
            pump.dirty = True
            if not self._dirty:
                self._write_at = self.now() + WRITE_INTERVAL
            self._dirty.append(pump)

    # -- as in the base class

    def call_at(self, instant: float, callback: Callback) -> Timer:
        with self.lock:
            reactor = self._reactor
            assert reactor is not None, "acquire() the hub first"
            upcoming = reactor.next_deadline()
            timer = reactor.call_at(instant, callback)
            if (
                self._leader is not None
                and not self.busy
                and (upcoming is None or instant < upcoming)
            ):
                self._wake_leader()
            return timer

    def waiter(self, idle: bool = False) -> ThreadWaiter:
        """A new waiter; see :class:`ThreadWaiter`."""
        return ThreadWaiter(self, idle)

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        def run() -> None:
            try:
                function(*args)
            except Exception:
                LOG.exception("a thread failed")

        self._thread_class(target=run, name="greenamqp-work", daemon=True).start()

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
            if self._leader is None:
                self._wake_own()
            elif not self.busy:
                self._wake_leader()
