"""Virtual time: one loop, and a hub for each simulated process.

Nothing waits: when nobody has anything to do, the clock jumps to what comes next.
Where the hubs' contract leaves an order open, the seed decides it: which of several
descriptors, timers and calls that are due comes first; which process gets on.  With
`threads`, callers change as native threads could, too: wherever they ask the hub for
something and do not hold its lock, a look at the clock and the beginning of a wait
included.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import random
import sys
import types
import typing

import greenlet

from greenamqp.connection.pump import Pump
from greenamqp.hubs.base import Callback, Done, Timer, Watch, logged
from greenamqp.hubs.green import GreenHub, GreenWaiter

# What looking at the clock takes, so that no loop that waits for it stands still.
# Seconds.
_LOOK = 1e-6

# So many steps without an end are an endless loop: far more than a run has.
_ENDLESS = 3_000_000


class Stuck(Exception):
    """Somebody waits and nothing will ever happen, or too much does."""


class _Timer(Timer):
    __slots__ = ("callback", "hub")

    def __init__(self, hub: SimHub | None, callback: Callback) -> None:
        self.hub = hub
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class SimWatch(Watch):
    """Of a simulated socket: the hub calls as long as that is readable or writable."""

    __slots__ = ("_on_readable", "_on_writable", "hub", "sock")

    def __init__(self, hub: SimHub, sock: typing.Any, on_readable: Callback) -> None:
        assert sock.watch is None, "watched twice"
        self.hub = hub
        self.sock = sock
        sock.watch = self
        self._on_readable: Callback | None = on_readable
        self._on_writable: Callback | None = None
        hub.watches[self] = None
        self.look()

    def look(self) -> None:
        """The socket may be readable or writable now."""
        sock = self.sock
        if sock.readable() or (self._on_writable is not None and sock.writable()):
            self.hub.is_ready(self)

    def look_for_room(self) -> None:
        """The socket may be writable now."""
        if self._on_writable is not None:
            self.look()

    def want_write(self, on_writable: Callback | None) -> None:
        if self._on_readable is not None:
            self._on_writable = on_writable
            if on_writable is not None:
                self.look()

    def close(self) -> None:
        if self._on_readable is not None:
            self._on_readable = self._on_writable = None
            self.sock.watch = None
            del self.hub.watches[self]
            self.hub.not_ready(self)

    def turn(self) -> None:
        """Call one of those that are due, as a loop does that has found it so."""
        sock, hub = self.sock, self.hub
        reads = self._on_readable if sock.readable() else None
        writes = self._on_writable
        if writes is not None and not sock.writable():
            writes = None
        if reads is not None and writes is not None:
            hub._wakeup(reads if hub.world.toss() else writes)
        elif reads is not None or writes is not None:
            hub._wakeup(reads or writes)
        if not sock.readable() and (self._on_writable is None or not sock.writable()):
            hub.not_ready(self)


class _Lock:
    """The hub's lock, at which threads change.  Of one native thread, so never waited
    for."""

    def __init__(self, hub: SimHub) -> None:
        self._hub = hub
        self._depth = 0

    def _is_owned(self) -> bool:
        return self._depth > 0

    def __enter__(self) -> bool:
        if not self._depth:
            self._hub.maybe_change(sys._getframe(1))
        self._depth += 1
        return True

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1
        if not self._depth and exc_info[0] is None:
            self._hub.maybe_change(sys._getframe(1))


def _in_wait(frame: types.FrameType) -> bool:
    """Whether it is of a wait, or what that has called.  Threads have a waiter of their
    own, which can be interrupted nowhere in its wait."""
    code = GreenWaiter.wait.__code__
    back = frame.f_back
    return frame.f_code is code or (back is not None and back.f_code is code)


class _Waiter(GreenWaiter):
    """Before whose wait another thread may have its turn: a wake-up that comes then
    counts."""

    __slots__ = ()

    _hub: SimHub  # type: ignore[assignment]

    def wait(self, deadline: float | None) -> bool:
        self._hub.maybe_change()
        return super().wait(deadline)


class World:
    """The clock and the one loop.

    :param threads: how likely callers change at a lock: 0.0 to 1.0
    """

    def __init__(self, rng: random.Random, threads: float = 0.0) -> None:
        self.rng = rng
        self.threads = threads
        self.clock = 1000.0
        self._processes = 0
        #: who has something to do now, but for timers
        self.ready: dict[SimHub | SimWatch, None] = {}
        self.steps = 0
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()
        self._failure: BaseException | None = None
        self._main = greenlet.getcurrent()
        self._over = False
        self.loop = greenlet.greenlet(self._run, parent=self._main)

    def next_pid(self) -> int:
        """The number of another process."""
        self._processes += 1
        return 4000 + self._processes

    def toss(self) -> bool:
        """A coin."""
        return self.rng.random() < 0.5

    def now(self) -> float:
        """The virtual instant."""
        self.clock += _LOOK
        return self.clock

    def call_at(
        self, instant: float, callback: Callback, hub: SimHub | None = None
    ) -> _Timer:
        """Call `callback` at an instant; in `hub`, or in the network that no freeze
        holds up."""
        timer = _Timer(hub, callback)
        self.set(timer, instant)
        return timer

    def set(self, timer: _Timer, instant: float) -> None:
        """Have a timer go off at an instant."""
        heapq.heappush(self._timers, (instant, next(self._order), timer))

    def timers_of(self, hub: SimHub) -> int:
        """How many timers of a hub are set."""
        return sum(
            timer.hub is hub and timer.callback is not None
            for _, _, timer in self._timers
        )

    def run_until(self, instant: float) -> None:
        """From the main greenlet: let everything happen up to an instant.

        :raises Stuck: when nothing is left that could happen
        """
        self._over = False
        self.call_at(instant, self._stop)
        self.loop.switch()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _stop(self) -> None:
        self._over = True

    def end(self, hubs: typing.Iterable[SimHub]) -> None:
        """Have what never came to its end come to it now, and not when Python finds it
        in a later world."""
        self._over = True
        for hub in hubs:
            hub.dead = True
            for thread in list(hub.threads):
                thread.throw()
            for holder in list(hub.holders):
                # Of a process that was killed: proton keeps what it was given.
                if isinstance(holder, Pump):
                    holder.engine.destroy()
        # It would keep all of this world: Python cannot look into where it stands.
        self.loop.throw()

    def _run(self) -> None:
        while True:
            try:
                while not self._over:
                    self._step()
                self._main.switch()
            except greenlet.GreenletExit:
                raise
            except BaseException as exc:
                self._failure = exc
                self._main.switch()

    def _step(self) -> None:
        """One of the things that can happen now; if there is none, time passes."""
        self.steps += 1
        if self.steps > _ENDLESS:
            raise Stuck("the world does not come to rest")
        timers, ready = self._timers, self.ready
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        number = total = len(ready)
        if timers and (not number or timers[0][0] <= self.clock):
            self.clock = max(self.clock, timers[0][0])
            total += 1
        elif not number:
            raise Stuck("everybody waits, and nothing is going to happen")
        choice = int(self.rng.random() * total) if total > 1 else 0
        if choice < number:
            next(itertools.islice(ready, choice, None)).turn()
            return
        timer = heapq.heappop(timers)[2]
        callback, hub = timer.callback, timer.hub
        assert callback is not None
        if hub is None:
            timer.callback = None
            callback()
        elif hub.frozen:
            hub.held_back.append(timer)
        else:
            timer.callback = None
            hub._wakeup(callback)


class SimHub(GreenHub):
    """A process of the world: its green threads, its sockets, its time.

    It is the green hubs' own code but for what they take of eventlet or gevent.
    """

    name = "simulated"

    def __init__(self, world: World, process: str, network: typing.Any = None) -> None:
        self.world = world
        self.process = process
        self.soon: collections.deque[Callback] = collections.deque()
        self.watches: dict[SimWatch, None] = {}
        #: it gets no time, as a process that was sent SIGSTOP
        self.frozen = False
        # What was due while it was.
        self.held_back: list[_Timer] = []
        self._held_ready: dict[SimHub | SimWatch, None] = {}
        self.threads: dict[greenlet.greenlet, None] = {}
        #: it is gone
        self.dead = False
        super().__init__()
        self.now = self._now if world.threads else world.now  # type: ignore
        self.wall_clock = world.now  # type: ignore[method-assign]
        self.pid = world.next_pid()
        if network is not None:
            self.network = network.of(self)

    def _make_lock(self) -> None:
        if self.world.threads:
            self.lock = lock = _Lock(self)
            self.is_entered = lock._is_owned
        else:
            super()._make_lock()

    def identity(self) -> dict[str, typing.Any]:
        # Not what plays the run: the length of each frame is part of it.
        return {"process": "simulated", "pid": self.pid, "node": self.process}

    def maybe_change(self, frame: types.FrameType | None = None) -> None:
        """Another thread's turn, perhaps: where threads are what is simulated.

        :param frame: what comes to a place where they change, unless it is a wait
        """
        # What is done most comes first: in the loop nothing changes.
        if greenlet.getcurrent() not in self.threads or self.dead:
            return
        if frame is not None and _in_wait(frame):
            return
        rng = self.world.rng
        if rng.random() < self.world.threads:
            self.pause(rng.choice((0.0, 0.0, 0.003, 0.02)))

    def _now(self) -> float:
        """The clock, where somebody may look who is only then to have a turn again."""
        if not self.lock._depth:  # type: ignore[attr-defined]
            self.maybe_change(sys._getframe(1))
        return self.world.now()

    def waiter(self) -> GreenWaiter:
        return _Waiter(self) if self.world.threads else GreenWaiter(self)

    def pause(self, seconds: float = 0.0) -> None:
        """Let others have their turn, and so much time pass."""
        me = greenlet.getcurrent()
        over: list[bool] = []

        def back() -> None:
            over.append(True)
            if not me.dead:
                me.switch()

        if seconds:
            later = self.world.clock + seconds
            self.world.call_at(later, lambda: self._call_soon(back))
        else:
            self._call_soon(back)
        while not over:  # somebody else may switch here: a wake that comes meanwhile
            self._switch()

    def is_ready(self, what: SimHub | SimWatch) -> None:
        """It, or a watch of its, has something to do."""
        (self._held_ready if self.frozen else self.world.ready)[what] = None

    def not_ready(self, what: SimHub | SimWatch) -> None:
        """It has not."""
        self.world.ready.pop(what, None)
        self._held_ready.pop(what, None)

    def turn(self) -> None:
        """Call what was to be called soon: one of it."""
        callback = self.soon.popleft()
        if not self.soon:
            self.not_ready(self)
        callback()

    def freeze(self, frozen: bool) -> None:
        """Give it no time any more, or again."""
        self.frozen = frozen
        if frozen:
            for each in (self, *self.watches):
                if self.world.ready.pop(each, each) is None:
                    self._held_ready[each] = None
        else:
            held_ready, self._held_ready = self._held_ready, {}
            self.world.ready |= held_ready
            held_back, self.held_back = self.held_back, []
            for timer in held_back:
                # The same one, which its owner may cancel still.
                if timer.callback is not None:
                    self.world.set(timer, self.world.clock)

    def crash(self) -> None:
        """Be gone, as a process that is killed: nothing of it runs any more."""
        self.freeze(True)
        self.dead = True
        self.soon.clear()
        self.not_ready(self)
        for sock in self.network.owned():  # type: ignore[attr-defined]
            if sock.watch is not None:
                sock.watch.close()
            sock.crash()

    # -- the green hubs' own

    def _switch(self) -> None:
        if self.dead:
            raise greenlet.GreenletExit
        self.world.loop.switch()

    def _call_soon(self, callback: Callback) -> Callback:
        if not self.dead:
            self.soon.append(callback)
            self.is_ready(self)
        return lambda: self._take_back(callback)

    def _take_back(self, callback: Callback) -> None:
        if callback in self.soon:
            self.soon.remove(callback)
            if not self.soon:
                self.not_ready(self)

    def _loop_greenlet(self) -> greenlet.greenlet | None:
        # One for all processes: this one's as long as it works for it.  Where logging
        # found several hubs at work it would take the first in memory.
        return self.world.loop if self.busy else None

    def may_log(self) -> bool:
        return self.dead or super().may_log()

    def _start(self) -> None:
        pass  # no other native thread calls in

    def call_inside(self, callback: Callback) -> None:
        self._from_outside.append(callback)
        self._call_soon(self._wakeup_from_outside)

    def watch(self, fd: int, on_readable: Callback) -> Watch:
        return SimWatch(self, self.network.sockets[fd], on_readable)  # type: ignore

    def call_at(self, instant: float, callback: Callback) -> Timer:
        return self.world.call_at(instant, callback, self)

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        self.go(function, *args)

    def off_thread(
        self,
        function: typing.Callable[[], typing.Any],
        done: Done,
    ) -> None:
        # What blocks is done in one go; what it takes is before that and after.
        def work() -> None:
            result, error = None, None
            try:
                result = function()
            except Exception as exc:
                error = exc
            self._after_a_while(lambda: done(result, error))

        self._after_a_while(work)

    def _after_a_while(self, callback: Callback) -> None:
        self.call_at(self.world.clock + 0.01 * self.world.rng.random(), callback)

    def go(
        self, function: typing.Callable[..., object], *args: object
    ) -> greenlet.greenlet:
        """A new green thread; it begins when it gets its turn."""

        def run() -> None:
            try:
                logged(function, *args)
            finally:
                self.threads.pop(thread, None)

        thread = greenlet.greenlet(run, parent=self.world.loop)
        self.threads[thread] = None

        def begin() -> None:
            if not thread.dead:
                thread.switch()

        self._call_soon(begin)
        return thread

    def throw(self, thread: greenlet.greenlet, error: BaseException) -> None:
        """Throw a green thread out of whatever it waits in, when it has its turn."""

        def strike() -> None:
            if not thread.dead:
                thread.throw(error)

        self._call_soon(strike)
