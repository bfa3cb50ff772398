# SPDX-License-Identifier: Apache-2.0
"""What "wait" means: the one interface between greenamqp and a scheduler.

A hub watches file descriptors, keeps timers, makes waiters and runs callbacks.  Its
callbacks run one at a time, in the *hub's context*, and never block; whoever may
block (a caller of ``send``, an endpoint) does so outside of it, in a waiter.

The contract that keeps the engine whole: engine and client are touched either in
a callback of the hub, which runs under ``hub.lock``, or by others under that lock.

So they are entered once at a time, also where no second thread is.  A signal handler
runs between two instructions of whatever the main thread does, a finalizer wherever
memory is asked for, and either may send.  If it comes upon its own thread within the
lock, nothing of what it asks for is done in place (`Hub.engaged`): what need not be
waited for is left to be done after that step (`Hub.call_inside`), and what would have
to wait raises :class:`EngagedError`, for it would wait for the very code that it
interrupted.

A *wake-up* is one run of a callback together with what it set going: first the
callback, then every waiter that it woke, in order, each until it blocks again, then
one flush of every pump that any of them touched.  So what a batch of replies sets
off leaves in one write.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import logging
import os
import platform
import time
import typing

from greenamqp import fork
from greenamqp.hubs import logs, native
from greenamqp.hubs.network import NETWORK, Network

LOG = logging.getLogger(__name__)

Callback = typing.Callable[[], None]

#: Told what became of work that may block: its result and None, or None and what it
#: raised.
Done = typing.Callable[[typing.Any, BaseException | None], None]

_Result = typing.TypeVar("_Result")


# Output that is gathered waits no longer than this for more of it.  Seconds.
WRITE_INTERVAL = 0.002


class EngagedError(RuntimeError):
    """Something was to wait for the message bus where nothing can come from it.

    That is: in a signal handler, a finalizer or the like, which interrupted the code
    that moves the bytes.  Nothing was sent, and nothing has changed.
    """


def logged(function: typing.Callable[..., object], *args: object) -> None:
    """Run `function`, and log what it raises."""
    try:
        function(*args)
    except Exception:
        LOG.exception("work that the hub was given failed")


class Flushable(typing.Protocol):
    """What a hub flushes at the end of a wake-up: a pump."""

    dirty: bool

    def flush(self) -> None:
        """Write what can be written without blocking."""


class Holder(typing.Protocol):
    """What has descriptors and watches on this hub: a pump, an attempt to connect."""

    def forked(self) -> None:
        """This is a child process: close its copy of the descriptor, touch no watch,
        timer or engine, and call nobody.  The same where an asyncio loop is closed, in
        the hub's own process: let go of what others may have."""


class Timer(abc.ABC):
    """A callback that is due at some instant."""

    @abc.abstractmethod
    def cancel(self) -> None:
        """The callback will not run any more.  Idempotent, also after it ran."""


class Countdown:
    """At most one callback that is due at some instant.  Hub's context or lock."""

    __slots__ = ("_hub", "_timer")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._timer: Timer | None = None

    @property
    def runs(self) -> bool:
        """Whether one is due."""
        return self._timer is not None

    def call_at(self, instant: float, callback: Callback) -> None:
        """As :meth:`Hub.call_at`, instead of what was due before."""
        self.cancel()
        self._timer = self._hub.call_at(
            instant, functools.partial(self._over, callback)
        )

    def call_in(self, seconds: float, callback: Callback) -> None:
        """As `call_at`, so long from now on."""
        self.call_at(self._hub.now() + seconds, callback)

    def cancel(self) -> None:
        """None is due any more.  Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forked(self) -> None:
        """This is a child process: what was due is the parent's."""
        self._timer = None

    def _over(self, callback: Callback) -> None:
        self._timer = None
        callback()


class Watch(abc.ABC):
    """A file descriptor that the hub watches for being readable."""

    @abc.abstractmethod
    def want_write(self, on_writable: Callback | None) -> None:
        """Call `on_writable` whenever the fd is writable; None: no longer."""

    @abc.abstractmethod
    def close(self) -> None:
        """Watch no longer.  To be called before the fd is closed.  Idempotent."""


class Waiter(abc.ABC):
    """Where one thread or green thread waits to be woken; may be used again."""

    __slots__ = ()

    @abc.abstractmethod
    def wait(self, deadline: float | None) -> bool:
        """Wait until `wake`, or the monotonic instant `deadline`; None: for ever.

        Returns whether it was woken; a wake that came earlier counts, once.  Not to
        be called in the hub's context or under its lock.
        """

    @abc.abstractmethod
    def wake(self) -> None:
        """End the wait, or the next one.  In the hub's context or under its lock."""


#: Something that waits, written once for whatever does the waiting: a generator that
#: yields a waiter and the instant until which to wait for it, as `Waiter.wait` takes
#: it, is sent whether it was woken, and returns its result.  To close it ends it at
#: its wait, where it withdraws what it can.
Steps = typing.Generator[tuple[Waiter, float | None], bool, _Result]


class Hub(abc.ABC):
    """A scheduler, as greenamqp sees it.  Get one from :func:`greenamqp.hubs.get`."""

    #: as in the option ``hub``
    name: typing.ClassVar[str]
    #: Held by whoever is within engine or client: a real one, and reentrant, for
    #: what they call themselves.
    lock: contextlib.AbstractContextManager[typing.Any]
    #: Whether the calling native thread holds the lock.
    is_entered: typing.Callable[[], bool]

    #: Whether a callback that is due runs even if nobody waits for anything here.
    punctual: typing.ClassVar[bool] = False

    #: Where its sockets come from.
    network: Network = NETWORK

    #: The clock that all deadlines are on: seconds, monotonic.
    now = staticmethod(time.monotonic)
    #: Seconds since 1970, for what another machine is to read.
    wall_clock = staticmethod(time.time)

    def __init__(self) -> None:
        self.pid = os.getpid()
        #: True while a wake-up runs: flushes wait for its end.
        self.busy = False
        #: True in a child process if it was made before the fork: of no use there.
        self.inherited = False
        #: Who is to hear of a fork.
        self.holders: dict[Holder, None] = {}
        self._dirty: list[Flushable] = []
        self._users = 0
        # When it was last found to have been blocked.
        self._blocked_until = 0.0
        #: Who is to begin anew what was cut off; see `cut_off`.
        self.revivers: list[Callback] = []
        #: An exception after which that is not needed: a connection was given up.
        self.dealt_with: BaseException | None = None
        self._make_lock()
        logs.watch(self)
        fork.tell(self)

    def _make_lock(self) -> None:
        # The interpreter's own, in C: a signal handler that raises comes before it is
        # taken or after it is given back, and it knows of itself whose it is.
        lock = native.original("_thread", "RLock")()
        self.lock = lock
        self.is_entered = lock._is_owned

    # -- who comes where somebody is

    def engaged(self) -> bool:
        """Whether the calling thread is at work in here already, so that whoever asks
        has interrupted it: nothing may be done in place, and nobody can wait."""
        return self.is_entered()

    def may_wait(self) -> bool:
        """Whether somebody can wait here, with `do`.  From anywhere."""
        return not self.engaged()

    def may_log(self) -> bool:
        """Whether logging handlers, which may take their time, may run here."""
        return not self.engaged()

    def check_may_wait(self) -> None:
        """Nothing, where the hub's waiters can wait.

        :raises EngagedError: where they would wait for what they have interrupted
        """
        if self.engaged():
            raise EngagedError(
                "this cannot wait for the message bus: it runs in a signal handler, a "
                "finalizer or a callback that interrupted the driver itself, or the "
                f"{self.name} hub, which would have to move on meanwhile; have another "
                "thread or green thread do it, or do it after the handler has returned"
            )

    def run(self, steps: Steps[_Result]) -> _Result:
        """Take `steps` to their end; waits in the calling thread or green thread.

        :raises EngagedError: see `check_may_wait`; then none of them was taken
        :raises Exception: what they raise, or what was thrown into the wait
        """
        self.check_may_wait()
        send = steps.send
        try:
            waiter, deadline = next(steps)
            while True:
                waiter, deadline = send(waiter.wait(deadline))
        except StopIteration as end:
            result: _Result = end.value
            return result
        except BaseException:
            # Thrown into the wait by a time-out or kill of the application.
            steps.close()
            raise

    def do(self, steps: Steps[_Result]) -> _Result:
        """As `run`, from any native thread, whose wait is then a real one."""
        if self.foreign():
            return typing.cast(_Result, self.run_inside(self.run, steps))
        return self.run(steps)

    def begin(self, steps: Steps[object]) -> None:
        """Have `steps` taken to their end before long, without waiting for it.  From
        anywhere, a signal handler too."""
        self.call_inside(lambda: self.spawn(self.run, steps))

    def complete(self, steps: Steps[None]) -> None:
        """As `do`; where nobody can wait, as `begin`."""
        if self.may_wait():
            self.do(steps)
        else:
            self.begin(steps)

    def identity(self) -> dict[str, typing.Any]:
        """Which process this is, for the bus to show to people."""
        return {"pid": self.pid, "node": platform.node() or "unknown"}

    # -- forks

    def check(self) -> None:
        """Nothing, in the process that made this hub.

        :raises greenamqp.fork.ForkedError: in a child of it
        """
        if self.inherited:
            raise fork.ForkedError(
                f"process {os.getpid()} was forked from process {self.pid}, to which "
                "this connection and its listeners belong: make new ones"
            )

    def forked(self) -> None:
        """This is a child process: no callback runs any more, and nobody waits here."""
        if self.inherited:
            return  # a child's child
        self.inherited = True
        logs.forked()
        # Another thread of the parent may have held it; here is none to release it.
        self._make_lock()
        self._dirty.clear()
        self.revivers.clear()
        self._let_go()

    def _let_go(self) -> None:
        """Close the child's copies of all descriptors; or all, if the hub is not a
        parent's, and nothing of it will ever run again."""
        holders, self.holders = self.holders, {}
        for holder in holders:
            holder.forked()

    # -- for those who keep connections

    def acquire(self) -> None:
        """Another connection uses this hub: whatever it needs to run is started."""
        self._users += 1
        if self._users == 1:
            self._start()

    def release(self) -> None:
        """A connection is gone; with the last one goes all that the hub holds."""
        self._users -= 1
        if self._users == 0:
            self._stop()

    @property
    def ended(self) -> bool:
        """Whether nothing of it will ever run again in this process, as its asyncio
        loop is closed.  From any thread."""
        return False

    @property
    def in_use(self) -> bool:
        """Whether it runs: whether there is a connection."""
        return self._users > 0 and not self.inherited

    @abc.abstractmethod
    def _start(self) -> None:
        """The first user came."""

    @abc.abstractmethod
    def _stop(self) -> None:
        """The last user went: leave no thread, green thread, timer or fd."""

    @abc.abstractmethod
    def watch(self, fd: int, on_readable: Callback) -> Watch:
        """Call `on_readable` in the hub's context whenever `fd` is readable."""

    def unwatch(self, fd: int) -> None:  # noqa: B027 - where the kernel does it
        """`fd` is about to be closed, or was: have no watch of it left, not even one
        that nobody knows of, since a signal handler raised before it could be kept."""

    @abc.abstractmethod
    def call_at(self, instant: float, callback: Callback) -> Timer:
        """Call `callback` in the hub's context at a monotonic instant, or later."""

    @abc.abstractmethod
    def waiter(self) -> Waiter:
        """A new waiter."""

    @abc.abstractmethod
    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        """Run `function` where it may block: in a green thread or a thread.

        What it raises is logged.
        """

    @abc.abstractmethod
    def deliver(self, function: Callback) -> None:
        """As `spawn`, for work that comes with messages: where the hub keeps idle
        workers, one of them does it within the running wake-up."""

    @abc.abstractmethod
    def current(self) -> typing.Hashable:
        """Which thread or green thread this is."""

    def offload(
        self,
        function: typing.Callable[[], typing.Any],
        done: Done,
    ) -> None:
        """Run a `function` that may block (a name lookup), then, in the hub's
        context, ``done(result, None)`` or ``done(None, exception)``."""
        self.spawn(self._job(function, done))

    def _job(
        self,
        function: typing.Callable[[], typing.Any],
        done: Done,
    ) -> Callback:
        """Runs `function`, and has `done` called in the hub's context."""

        def run() -> None:
            result, error = None, None
            try:
                result = function()
            except BaseException as exc:
                error = exc
            try:
                self.call_inside(lambda: done(result, error))
            except BaseException as exc:
                self.cut_off(exc)
                raise
            if error is not None and not isinstance(error, Exception):
                raise error  # meant for the thread or green thread

        return run

    def off_thread(
        self,
        function: typing.Callable[[], typing.Any],
        done: Done,
    ) -> None:
        """As `offload`, for what no monkey patching makes cooperative, such as a disk:
        in a native thread of its own, where the hub has any.

        `function` may use nothing that may be patched, and so may not log.
        """
        job = self._job(function, done)
        try:
            native.original("_thread", "start_new_thread")(job, ())
        except RuntimeError as exc:  # there are too many
            error = exc
            self.call_inside(lambda: done(None, error))

    @abc.abstractmethod
    def call_inside(self, callback: Callback) -> None:
        """Run `callback` in the hub's context, soon.  From any thread, and from a
        signal handler or finalizer wherever that comes."""

    @abc.abstractmethod
    def foreign(self) -> bool:
        """Whether the calling native thread must use `run_inside`."""

    @abc.abstractmethod
    def run_inside(
        self, function: typing.Callable[..., _Result], *args: typing.Any
    ) -> _Result:
        """Run `function` where this hub's waiters can wait, and return its result or
        raise its exception.  From any native thread, whose wait is a real one.  In an
        asyncio loop nothing can wait: see `do`."""

    def let_others_run(self) -> None:  # noqa: B027 - threads have their turn anyway
        """Between two pieces of work, outside the hub's context: let output leave and
        others have their turn, if it is time for that."""

    def expect_output(self) -> None:  # noqa: B027 - where nobody gathers
        """A thread is about to `gather`.  In the hub's context or under its lock."""

    def gather(self) -> None:  # noqa: B027 - where wake-ups do it anyway
        """Hold back what the calling thread has to write: for a moment, until
        `write_gathered`, or until the thread's next wait.

        For who dispatches messages: what belongs to one, or to several that were there
        together, then leaves in one write.  Outside the hub's context.
        """

    def write_gathered(self) -> None:  # noqa: B027 - as above
        """Write what was held back, and hold back no more."""

    def was_blocked(self, seconds: float, patience: float) -> None:
        """A connection finds that the hub did not run for so long, while one of its
        ends was to hear from the other within `patience` seconds.  Warns, once for
        all connections."""
        now = self.now()
        if now - seconds < self._blocked_until:
            return
        self._blocked_until = now
        LOG.warning(
            "this process did not let the %s hub run for %.1f s, with an idle time-out "
            "of %g s: a message bus may have taken it for dead.  Something computes, "
            "or waits without the hub's knowledge",
            self.name,
            seconds,
            patience,
        )

    # -- exceptions that signal handlers raise

    def cut_off(self, exc: BaseException) -> None:
        """What a signal handler raised cut off work on engine or client: begin anew
        what may be half done.  From anywhere in the hub's own threads."""
        dealt_with, self.dealt_with = self.dealt_with, None
        if exc is not dealt_with:
            self.call_inside(self._revive)

    def _revive(self) -> None:
        for reviver in list(self.revivers):
            reviver()

    # -- flushing

    def flush_now(self, pump: Flushable) -> None:
        """Write `pump`'s output: at once, or at the end of the wake-up that runs."""
        if not self.busy:
            pump.flush()
        elif not pump.dirty:
            pump.dirty = True
            self._dirty.append(pump)

    def flush_soon(self, pump: Flushable) -> None:
        """Write `pump`'s output before long, together with what else comes by then."""
        self.flush_now(pump)

    def flush_late(self, pump: Flushable) -> None:
        """As `flush_soon`, for what nobody waits for: it need not leave before the end
        of the wake-up, unless that takes long."""
        self.flush_soon(pump)

    def _flush_dirty(self) -> None:
        while self._dirty:
            pump = self._dirty.pop()
            pump.dirty = False
            pump.flush()
