# SPDX-License-Identifier: Apache-2.0
"""The contract of :mod:`greenamqp.hubs.base`, checked against one hub.

Run as ``python -m tests.unit.hub_contract NAME [CHECK...]``, each hub in a process of
its own, since monkey patching is for the whole process.  Prints ``ok CHECK``, ``skip
CHECK`` with the reason, or ``FAIL CHECK`` with the traceback, and ends with the first
failure.  NAME is that of a hub, or ``eventlet-asyncio``.

A check is a function of one argument, an :class:`Env`.  None sleeps in order to
synchronise, none asserts how long something takes.
"""

from __future__ import annotations

import _socket
import collections
import contextlib
import fcntl
import functools
import gc
import itertools
import logging
import os
import random
import resource
import select
import signal
import socket
import sys
import time
import traceback
import typing
import unittest.mock

#: Seconds that nothing takes, however slow the machine.
FAR = 60.0

# Those of a library, whose process may have other native threads.
LIBRARIES = ("eventlet", "eventlet-asyncio", "gevent")
# "simulated" is that of tests.simulation: one native thread, no descriptor.
GREEN = (*LIBRARIES, "simulated")
LOOPS = ("asyncio", "asyncio-uvloop")
NATIVE = ("threads", "blocking", *LIBRARIES, *LOOPS)
HUBS = (*NATIVE, "simulated")

CHECKS: dict[str, typing.Callable[[Env], None]] = {}
#: The names of each hub's checks.
NAMES: dict[str, list[str]] = {hub: [] for hub in HUBS}


class Skip(Exception):
    """This machine does not let it be checked; the text says why."""


def check(hubs: tuple[str, ...] = HUBS) -> typing.Callable:
    """Add a check, of these hubs.  The others have no such thing: no green threads
    into which one could throw, no second thread to deliver in."""

    def add(function: typing.Callable[[Env], None]) -> typing.Callable:
        CHECKS[function.__name__] = function
        for hub in hubs:
            NAMES[hub].append(function.__name__)
        return function

    return add


class Event:
    """Set by somebody, waited for by one thread or green thread."""

    def __init__(self, hub) -> None:
        self._hub = hub
        self._waiter = hub.waiter()
        self.happened = False

    def set(self) -> None:
        with self._hub.lock:
            self.happened = True
            self._waiter.wake()

    def wait(self) -> None:
        while not self.happened:
            assert self._waiter.wait(self._hub.now() + FAR), "nothing happened"


class Env:
    """What a check needs of the world around its hub."""

    #: whether there are green threads
    green = False

    @property
    def one_thread(self):
        """Whether all but what is handed over happens in one native thread."""
        return self.green

    def __init__(self, name: str) -> None:
        from greenamqp import hubs

        self.hub = hubs.get(name)
        self.logged: list[logging.LogRecord] = []

    def spawn(self, function: typing.Callable[[], object]) -> object:
        """Run `function` as an application would, beside the caller."""
        return self.native(function)

    def native(self, function: typing.Callable[[], object]) -> typing.Callable:
        """Run `function` in a native thread of its own; returns what joins it."""
        from greenamqp.hubs import native

        done = native.original("_thread", "allocate_lock")()
        done.acquire()

        def run() -> None:
            try:
                function()
            finally:
                done.release()

        native.original("_thread", "start_new_thread")(run, ())
        return done.acquire

    def outside(self) -> None:
        """Leave the wake-up that may have brought us here."""

    def pair(self) -> contextlib.AbstractContextManager[tuple]:
        """Two ends of a stream."""
        return pair()

    def close(self, *watches) -> None:
        """From outside the hub's context."""
        with self.hub.lock:
            for watch in watches:
                watch.close()

    def event(self) -> Event:
        return Event(self.hub)

    def later(self, seconds: float, callback: typing.Callable[[], None]) -> object:
        return self.hub.call_at(self.hub.now() + seconds, callback)

    def turn(self) -> None:
        """Let the hub do what is due now."""
        event = self.event()
        self.hub.call_inside(event.set)
        event.wait()

    def started(self, count: int, body: typing.Callable[[int], None]) -> list[Event]:
        """Start `count` threads or green threads, and return when each is about to
        run ``body(index)``; their events are set when they are done."""
        done = [self.event() for _ in range(count)]
        running = [self.event() for _ in range(count)]

        def run(index: int) -> None:
            running[index].set()
            try:
                body(index)
            finally:
                done[index].set()

        for index in range(count):
            self.spawn(functools.partial(run, index))
        for event in running:
            event.wait()
        return done

    @property
    def errors(self) -> list[str]:
        """Messages of what was logged as an error since the check began."""
        return [each.getMessage() for each in self.logged]


class EventletEnv(Env):
    green = True

    def spawn(self, function):
        import eventlet

        return eventlet.spawn(function)

    def pooled(self, function):
        """Run in a native thread that the library itself keeps, and return."""
        from eventlet import tpool

        return tpool.execute(function)

    def timeout(self):
        import eventlet

        return eventlet.Timeout

    def kill(self, thread):
        import eventlet

        eventlet.kill(thread)

    def pause(self):
        import eventlet

        eventlet.sleep(0)

    outside = pause


class GeventEnv(Env):
    green = True

    def spawn(self, function):
        import gevent

        return gevent.spawn(function)

    def pooled(self, function):
        import gevent

        return gevent.get_hub().threadpool.apply(function)

    def timeout(self):
        import gevent

        return gevent.Timeout

    def kill(self, thread):
        thread.kill(block=False)

    def pause(self):
        import gevent

        gevent.sleep(0)

    outside = pause


class _Timeout(BaseException):
    """As eventlet's: thrown into whoever is within it when its time is over."""

    def __init__(self, hub, seconds):
        self._hub = hub
        self._seconds = seconds

    def __enter__(self):
        thread = self._hub.current()
        self._timer = self._hub.call_at(
            self._hub.now() + self._seconds,
            lambda: self._hub.throw(thread, self),
        )

    def __exit__(self, *exc_info):
        self._timer.cancel()


class SimulatedEnv(Env):
    """Each process takes another seed, which a check that fails is replayed with."""

    green = True

    def __init__(self, name):
        from tests.simulation.network import LOCAL, SimNetwork
        from tests.simulation.world import SimHub, World

        seed = int(os.environ.get("SEED") or random.getrandbits(32))
        print(f"the order of things is from SEED={seed}", flush=True)
        world = World(random.Random(seed))
        self.network = SimNetwork(world, LOCAL)
        self.hub = SimHub(world, "contract", self.network)
        self.logged = []

    @contextlib.contextmanager
    def pair(self):
        one, other = self.network.pair(self.hub)
        try:
            yield one, other
        finally:
            for each in (one, other):
                if not each.closed:
                    each.close()

    def turn(self):
        # Of several that are due any may come first: so often, each has come.
        for _ in range(40):
            super().turn()

    def spawn(self, function):
        return self.hub.go(function)

    def timeout(self):
        hub = self.hub

        class Timeout(_Timeout):
            def __init__(self, seconds):
                super().__init__(hub, seconds)

        self.timeout = lambda: Timeout
        return Timeout

    def kill(self, thread):
        import greenlet

        self.hub.throw(thread, greenlet.GreenletExit())

    def pause(self):
        self.hub.pause()

    outside = pause


class AsyncioEnv(Env):
    """Each caller is a green thread within a task, so that the checks can be the same:
    where it waits, the task awaits."""

    one_thread = True

    def __init__(self, name):
        from greenamqp.hubs.asyncio import FutureWaiter

        super().__init__(name)
        self.tasks = []

        class Awaited(FutureWaiter):
            __slots__ = ()

            def wait(waiter, deadline):
                if self.hub.foreign():
                    return super().wait(deadline)
                return self._await(waiter.woken(deadline))

        self.hub.waiter = lambda: Awaited(self.hub)

    @staticmethod
    def _await(awaitable):
        import greenlet

        return greenlet.getcurrent().parent.switch(awaitable)

    @staticmethod
    async def within(function):
        """Call `function`, which may wait."""
        import greenlet

        thread = greenlet.greenlet(function)
        result = thread.switch()
        while not thread.dead:
            try:
                got = await result
            except BaseException as exc:
                result = thread.throw(exc)
            else:
                result = thread.switch(got)
        return result

    def spawn(self, function):
        task = self.hub.event_loop.create_task(self.within(function))
        self.tasks.append(task)
        return task

    def pause(self):
        import asyncio

        self._await(asyncio.sleep(0))

    outside = pause


@contextlib.contextmanager
def pair() -> typing.Iterator[tuple[_socket.socket, _socket.socket]]:
    """Two non-blocking ends, of the class that nothing patches."""
    one, other = _socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    try:
        yield one, other
    finally:
        one.close()
        other.close()


# -- coming and going: first, as others leave threads of the libraries behind


def resources() -> tuple[int, int]:
    """Descriptors and native threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def until(condition: typing.Callable[[], bool]) -> None:
    """A thread that has ended is seen for a moment longer."""
    end = time.monotonic() + FAR
    while not condition():
        assert time.monotonic() < end, resources()
        os.sched_yield()


def green_threads() -> int:
    import greenlet

    gc.collect()
    return sum(
        1
        for each in gc.get_objects()
        if isinstance(each, greenlet.greenlet) and each and not each.dead
    )


@check(GREEN)
def acquire_and_release_leave_nothing(env):
    """Called with the hub acquired once, by the one who runs the checks."""
    env.turn()
    env.hub.release()
    quiet(env)
    if not env.green:
        until(lambda: resources()[1] == 1)
    before = resources()
    alive = green_threads() if env.green else 0
    try:
        for _ in range(5):
            env.hub.acquire()
            env.hub.acquire()
            done = env.event()
            env.hub.deliver(done.set)
            done.wait()
            env.turn()
            env.hub.release()
            still = env.event()
            env.later(0, still.set)
            still.wait()
            env.hub.release()
            quiet(env)
            until(lambda: resources() == before)
            if env.green:
                assert green_threads() == alive
                assert not env.hub._idle
    finally:
        env.hub.acquire()


@check(GREEN)
def what_was_begun_before_the_last_user_left_comes_to_its_end(env):
    """A name may take long to look up."""
    gate, over = env.event(), env.event()
    results = []

    def slow():
        gate.wait()
        return "late"

    def done(result, error):
        results.append((result, error))
        over.set()

    env.hub.offload(slow, done)
    env.pause()
    env.hub.release()
    try:
        gate.set()
        over.wait()
    finally:
        env.hub.acquire()
    assert results == [("late", None)]
    assert not env.logged


@check(LIBRARIES)
def a_thread_that_calls_in_while_the_last_user_leaves(env):
    from greenamqp.hubs import native

    results = []
    join = env.native(lambda: results.append(env.hub.run_inside(lambda: "done")))
    # It has called, and the hub has had no turn to hear of it.
    while not env.hub._from_outside:
        native.original("time", "sleep")(0.001)
    env.hub.release()
    try:
        while not results:
            env.pause()
        join()
        # And one that comes when nobody is there is heard by the next user.
        join = env.native(lambda: results.append(env.hub.run_inside(lambda: "next")))
        while not env.hub._from_outside:
            native.original("time", "sleep")(0.001)
    finally:
        env.hub.acquire()
    while len(results) < 2:
        env.pause()
    join()
    assert results == ["done", "next"]


def quiet(env):
    """Let what was told to end come to its end."""
    if env.green:
        for _ in range(5):
            env.pause()


# -- waiters


@check()
def a_wake_before_the_wait_counts_once(env):
    waiter = env.hub.waiter()
    with env.hub.lock:
        waiter.wake()
        waiter.wake()
    assert waiter.wait(None) is True
    assert waiter.wait(env.hub.now()) is False


@check()
def a_wake_ends_the_wait(env):
    waiter = env.hub.waiter()
    for _ in range(50):
        env.later(0, waiter.wake)
        assert waiter.wait(None) is True
        env.later(0, waiter.wake)
        assert waiter.wait(env.hub.now() + FAR) is True


@check()
def a_deadline_ends_the_wait(env):
    waiter = env.hub.waiter()
    for seconds in (-1, 0, 0.001, 0.02):
        deadline = env.hub.now() + seconds
        assert waiter.wait(deadline) is False
        assert env.hub.now() >= deadline
    with env.hub.lock:
        waiter.wake()
    assert waiter.wait(env.hub.now() - 1) is True


@check()
def a_deadline_in_the_far_future(env):
    waiter = env.hub.waiter()
    for seconds in (1e6, 1e8, 3e9):
        env.later(0.01, waiter.wake)
        assert waiter.wait(env.hub.now() + seconds) is True


@check()
def a_timer_in_the_far_future(env):
    timers = [env.later(seconds, lambda: None) for seconds in (3e6, 1e8, 3e9)]
    env.turn()
    waiter = env.hub.waiter()
    env.later(0.01, waiter.wake)
    assert waiter.wait(None) is True
    for timer in timers:
        timer.cancel()


@check()
def many_deadlines_at_a_time(env):
    ended = []

    def body(index):
        deadline = env.hub.now() + 0.005 * (index % 7)
        assert env.hub.waiter().wait(deadline) is False
        ended.append(env.hub.now() >= deadline)

    for event in env.started(30, body):
        event.wait()
    assert ended == [True] * 30


@check()
def one_callback_wakes_many_in_order(env):
    waiters = {}
    order = []

    def body(index):
        with env.hub.lock:
            waiter = waiters[index] = env.hub.waiter()
        for number in range(3):
            assert waiter.wait(env.hub.now() + FAR)
            order.append((number, index))

    done = env.started(5, body)
    sequence = (3, 0, 4, 1, 2)

    for number in range(3):

        def wake():
            for index in sequence:
                waiters[index].wake()

        while len(waiters) < 5:
            env.turn()
        env.hub.call_inside(wake)
        while len(order) < 5 * (number + 1):
            env.turn()
    for event in done:
        event.wait()
    expected = [(number, index) for number in range(3) for index in sequence]
    # Native threads resume as the operating system pleases.
    assert (order if env.green else sorted(order)) == (
        expected if env.green else sorted(expected)
    )


@check(NATIVE)
def a_waiter_woken_by_another_thread(env):
    waiter = env.hub.waiter()
    for _ in range(50):
        if env.one_thread:
            # Other native threads never touch the hub: they hand over.
            join = env.native(lambda: env.hub.call_inside(waiter.wake))
        else:

            def wake():
                with env.hub.lock:
                    waiter.wake()

            join = env.native(wake)
        assert waiter.wait(env.hub.now() + FAR) is True
        join()


@check(GREEN)
def thrown_out_by_a_timeout(env):
    waiter = env.hub.waiter()
    for deadline in (None, env.hub.now() + FAR):
        try:
            with env.timeout()(0.01):
                waiter.wait(deadline)
        except env.timeout():
            pass
        else:
            raise AssertionError("not thrown out")
        assert waiter not in env.hub._alarm.deadlines
        assert waiter.greenlet is None
        # A wake that comes now must not end another wait of this green thread.
        other = env.hub.waiter()
        env.later(0, waiter.wake)
        env.later(0.02, other.wake)
        assert other.wait(env.hub.now() + FAR) is True
        # It is not lost for who waits here again.
        assert waiter.wait(env.hub.now()) is True


@check(LOOPS)
def nobody_blocks_the_loop(env):
    from greenamqp.hubs import EngagedError

    taken = []

    def steps():
        taken.append("a step")
        yield env.hub.waiter(), None

    for take in (env.hub.run, env.hub.do):
        try:
            take(steps())
        except EngagedError as exc:
            assert "asyncio" in str(exc)
        else:
            raise AssertionError("not raised")
    assert not taken


@check(LOOPS)
def a_task_that_is_cancelled_ends_its_steps(env):
    import asyncio

    ended = []

    def steps():
        try:
            yield env.hub.waiter(), env.hub.now() + FAR
        finally:
            ended.append("withdrawn")

    task = env.hub.event_loop.create_task(env.hub.drive(steps()))
    env.pause()
    assert env.hub._alarm.deadlines
    task.cancel()
    try:
        env._await(task)
    except asyncio.CancelledError:
        ended.append("cancelled")
    assert ended == ["withdrawn", "cancelled"]
    assert not env.hub._alarm.deadlines


@check(("eventlet-asyncio",))
def tasks_wait_beside_green_threads(env):
    import asyncio

    from eventlet.asyncio import spawn_for_awaitable

    from greenamqp import hubs

    hub = env.hub
    ended = []

    def steps(waiter, deadline):
        try:
            return (yield waiter, deadline)
        finally:
            ended.append(waiter)

    async def tasks():
        assert hubs.get("asyncio") is hub
        assert not hub.engaged()
        assert not hub.may_wait()
        woken, late, cancelled = hub.waiter(), hub.waiter(), hub.waiter()
        for take in (hub.run, hub.do):
            try:
                take(steps(late, None))
            except hubs.EngagedError as exc:
                assert "asyncio" in str(exc)
            else:
                raise AssertionError("not raised")
        env.spawn(woken.wake)
        assert await hub.drive(steps(woken, None)) is True
        woken.wake()
        assert await woken.woken(None) is True
        assert await hub.drive(steps(late, hub.now() + 0.01)) is False
        task = asyncio.create_task(hub.drive(steps(cancelled, hub.now() + FAR)))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            ended.append("cancelled")
        assert not hub._alarm.deadlines
        green = hub.waiter()
        waiting = asyncio.create_task(hub.call_outside(green.wait, hub.now() + FAR))
        await asyncio.sleep(0)
        with hub.lock:
            green.wake()
        assert await waiting is True
        return [woken, late, cancelled, "cancelled"]

    assert spawn_for_awaitable(tasks()).wait() == ended


@check(LOOPS)
def what_is_begun_is_done_by_the_loop(env):
    done = env.event()

    def steps():
        waiter = env.hub.waiter()
        env.later(0, waiter.wake)
        assert (yield waiter, None)
        done.set()

    env.hub.begin(steps())
    done.wait()
    for _ in range(100):
        env.turn()
    assert not env.hub._tasks


@check(GREEN)
def thrown_out_in_the_moment_of_the_wake(env):
    before, first, second = env.hub.waiter(), env.hub.waiter(), env.hub.waiter()
    left = []

    class Thrown(Exception):
        """As a time-out or kill."""

    def victim():
        try:
            first.wait(None)
        except Thrown:
            left.append("first")
        second.wait(None)
        left.append("second")

    def thrower():
        before.wait(None)
        # It is among those that were woken, and then it waits somewhere else.
        thread.throw(Thrown())

    thread = env.spawn(victim)
    other = env.spawn(thrower)
    env.pause()
    env.pause()
    done = env.event()

    def wake():
        before.wake()
        first.wake()

    env.hub.call_inside(wake)
    env.turn()
    env.turn()
    assert left == ["first"]
    env.hub.call_inside(second.wake)
    env.later(0.002, done.set)
    done.wait()
    assert left == ["first", "second"]
    assert env.errors == []
    env.kill(other)


@check(GREEN)
def killed_while_it_waits(env):
    waiter = env.hub.waiter()
    thread = env.spawn(lambda: waiter.wait(env.hub.now() + FAR))
    env.pause()
    env.pause()
    assert waiter in env.hub._alarm.deadlines
    env.kill(thread)
    for _ in range(5):
        env.pause()
    assert waiter not in env.hub._alarm.deadlines
    env.hub.call_inside(waiter.wake)
    env.turn()


@check(GREEN)
def a_green_thread_that_ends_badly_after_its_wake(env):
    """It has the hub for its parent, so what it raises comes up there."""
    kinds = [ValueError, env.timeout(), type("Odd", (BaseException,), {})]
    with env.pair() as (one, other):
        beats = []
        watch = env.hub.watch(one.fileno(), lambda: beats.append(one.recv(10)))
        for kind in kinds:
            waiter, second = env.hub.waiter(), env.hub.waiter()
            reached = env.event()

            def victim(waiter=waiter, kind=kind):
                waiter.wait(None)
                raise kind()

            def bystander(second=second, reached=reached):
                second.wait(None)
                reached.set()

            def wake(waiter=waiter, second=second):
                beats.append(one.recv(10))
                waiter.wake()
                second.wake()

            env.spawn(victim)
            env.spawn(bystander)
            for _ in range(3):
                env.pause()
            # From a watch: an error that reached the loop would end it.
            watch.close()
            watch = env.hub.watch(one.fileno(), wake)
            other.send(b"x")
            reached.wait()
            env.outside()
            assert env.hub.busy is False
        beats.clear()
        event = env.event()

        def last():
            beats.append(one.recv(10))
            event.set()

        watch.close()
        watch = env.hub.watch(one.fileno(), last)
        other.send(b"alive")
        event.wait()
        assert beats == [b"alive"]
        watch.close()


@check(LIBRARIES)
def a_green_thread_that_is_thrown_out_of_its_wait_cuts_nothing_off(env):
    """A program's, or one that works on a message: no connection is made anew."""
    revived, left = [], [env.event() for _ in range(3)]

    def times_out(event):
        try:
            with env.timeout()(0.01):
                env.hub.waiter().wait(None)
        finally:
            event.set()

    def reviver():
        revived.append(True)

    env.hub.revivers.append(reviver)
    env.spawn(lambda: times_out(left[0]))
    for event in left[1:]:  # one of them to a new worker
        env.hub.deliver(functools.partial(times_out, event))
    for event in left:
        event.wait()
    for _ in range(5):
        env.turn()
    env.hub.revivers.remove(reviver)
    assert not revived
    failed = [each for each in env.logged if each.exc_info[0] is env.timeout()]
    assert len(failed) == 2
    while len(env.hub._idle) > 1:
        env.hub._idle.pop().give(None)
    env.turn()


# -- timers


@check()
def timers_run_in_order_and_once(env):
    ran = []
    done = env.event()
    start = env.hub.now()
    for delay in (0.03, 0.01, 0.02, -5, 0.0005):
        env.hub.call_at(start + delay, functools.partial(ran.append, delay))
    env.hub.call_at(start + 0.04, done.set)
    done.wait()
    assert ran == [-5, 0.0005, 0.01, 0.02, 0.03]


@check()
def a_timer_is_never_early(env):
    early = []
    done = []
    finished = env.event()

    def run(instant):
        done.append(instant)
        if env.hub.now() < instant:
            early.append(instant - env.hub.now())
        if len(done) == 40:
            finished.set()

    for number in range(40):
        instant = env.hub.now() + number * 0.0007
        env.hub.call_at(instant, functools.partial(run, instant))
    finished.wait()
    # What eventlet and gevent round away of a millisecond.
    assert all(by < 0.0011 for by in early), early


@check()
def a_cancelled_timer_does_not_run(env):
    ran = []
    timers = [env.later(delay, lambda: ran.append(1)) for delay in (0, 0.001, 0.005)]
    with env.hub.lock:
        for timer in timers:
            timer.cancel()
            timer.cancel()
    done = env.event()
    env.later(0.02, done.set)
    done.wait()
    # Unless it came before: the hub's thread may be quick.
    assert not ran or not env.green


@check()
def a_timer_may_cancel_another_that_is_due(env):
    ran = []
    timers = []

    def run(index):
        ran.append(index)
        for timer in timers:
            timer.cancel()

    with env.hub.lock:
        instant = env.hub.now() - 1
        timers += [
            env.hub.call_at(instant, functools.partial(run, index))
            for index in range(4)
        ]
    env.turn()
    done = env.event()
    env.later(0.005, done.set)
    done.wait()
    assert len(ran) == 1


@check()
def a_timer_may_set_another_and_cancel_itself(env):
    done = env.event()
    count = []
    current = []

    def run():
        current.pop().cancel()
        count.append(1)
        if len(count) == 20:
            done.set()
        else:
            current.append(env.later(0, run))

    with env.hub.lock:
        current.append(env.later(0, run))
    done.wait()


# -- watches


@check()
def a_readable_fd_is_told_until_it_is_read(env):
    with env.pair() as (one, other):
        told = []
        done = env.event()

        def readable():
            told.append(one.recv(1))
            if len(told) == 3:
                done.set()

        watch = env.hub.watch(one.fileno(), readable)
        other.send(b"abc")
        done.wait()
        env.turn()
        assert told == [b"a", b"b", b"c"]
        env.close(watch, watch)
        other.send(b"d")
        env.turn()
        env.turn()
        assert len(told) == 3


@check()
def a_writable_fd_is_told_while_it_is_wanted(env):
    with env.pair() as (one, other):
        read = env.event()
        writable = env.event()
        watch = env.hub.watch(one.fileno(), lambda: (one.recv(10), read.set()))
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(bytes(65536))
        told = []

        def room():
            told.append(1)
            watch.want_write(None)
            writable.set()

        with env.hub.lock:
            watch.want_write(room)
        env.turn()
        assert told == []
        # Reading goes on meanwhile.
        other.send(b"x")
        read.wait()
        with contextlib.suppress(BlockingIOError):
            while True:
                other.recv(65536)
        writable.wait()
        env.turn()
        env.turn()
        assert told == [1]
        # And once more.
        again = env.event()

        def room_again():
            watch.want_write(None)
            again.set()

        with env.hub.lock:
            watch.want_write(room_again)
        again.wait()
        with env.hub.lock:
            watch.want_write(lambda: None)
            watch.close()


@check()
def the_end_of_the_stream_is_readable(env):
    with env.pair() as (one, other):
        done = env.event()
        got = []

        def readable():
            got.append(one.recv(10))
            watch.close()
            done.set()

        watch = env.hub.watch(one.fileno(), readable)
        other.close()
        done.wait()
        assert got == [b""]


@check(NATIVE)
def an_error_of_the_stream_is_told(env):
    listener = _socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    one = _socket.socket()
    one.connect(listener.getsockname())
    one.setblocking(False)
    other = _socket.socket(fileno=listener._accept()[0])
    done = env.event()
    got = []

    def readable():
        try:
            got.append(one.recv(10))
        except ConnectionResetError:
            got.append("reset")
        watch.close()
        done.set()

    watch = env.hub.watch(one.fileno(), readable)
    # RST instead of FIN.
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    other.close()
    done.wait()
    assert got == ["reset"]
    one.close()
    listener.close()


@check(("eventlet", "eventlet-asyncio"))
def a_descriptor_that_the_loop_dropped_is_watched_again(env):
    """eventlet drops one when an exception comes up to its loop, a signal handler's."""
    with env.pair() as (one, other):
        read, wrote = env.event(), env.event()

        def readable():
            with contextlib.suppress(BlockingIOError):
                one.recv(1)
                read.set()

        def writable():
            watch.want_write(None)
            wrote.set()

        watch = env.hub.watch(one.fileno(), readable)
        for wanted, event in ((None, read), (writable, wrote)):
            watch.want_write(wanted)
            try:
                raise ValueError("of a signal handler")
            except ValueError:
                env.hub.loop.squelch_exception(one.fileno(), sys.exc_info())
            env.pause()
            other.send(b"x")
            event.wait()
        watch.close()


@check(NATIVE)
def descriptors_above_1023(env):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise Skip(f"this process may have {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    with env.pair() as (one, other):
        fd = fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 2500)
        done = env.event()
        writable = env.event()

        def readable():
            one.recv(10)
            done.set()

        watch = env.hub.watch(fd, readable)

        def room():
            watch.want_write(None)
            writable.set()

        with env.hub.lock:
            watch.want_write(room)
        writable.wait()
        other.send(b"x")
        done.wait()
        env.close(watch)
        os.close(fd)


@check(NATIVE)
def a_descriptor_number_used_again(env):
    first = []
    with env.pair() as (one, other):
        fd = fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, 200)
        for _ in range(20):
            stale = env.hub.watch(fd, lambda: first.append(1))
            with env.hub.lock:
                stale.want_write(lambda: first.append(1))
                stale.close()
            # Not os.close, which gevent puts off.
            _socket.close(fd)
            assert fcntl.fcntl(one.fileno(), fcntl.F_DUPFD, fd) == fd
            done = env.event()
            first.clear()

            def readable(done=done):
                one.recv(10)
                done.set()

            watch = env.hub.watch(fd, readable)
            other.send(b"x")
            done.wait()
            env.close(watch)
            assert first == []
        os.close(fd)


def _one_ends_what_others_are_due_for(env, begin, end):
    """Of several descriptors that are due one is told, which ends that for all."""
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(env.pair()) for _ in range(4)]
        called = []
        watches = []

        def told():
            called.append(True)
            for watch in watches:
                end(watch)

        with env.hub.lock:
            watches += [begin(one, other, told) for one, other in pairs]
        env.turn()
        env.turn()
        assert len(called) == 1, called
        assert env.errors == []
        env.close(*watches)


@check()
def a_callback_closes_the_watch_of_another_that_is_due(env):
    def begin(one, other, readable):
        other.send(b"x")
        return env.hub.watch(one.fileno(), readable)

    _one_ends_what_others_are_due_for(env, begin, lambda watch: watch.close())


@check()
def a_callback_ends_the_wish_to_write_of_another_that_is_due(env):
    def begin(one, other, writable):
        watch = env.hub.watch(one.fileno(), lambda: None)
        watch.want_write(writable)
        return watch

    _one_ends_what_others_are_due_for(env, begin, lambda watch: watch.want_write(None))


# -- other threads


@check()
def call_inside_from_everywhere(env):
    seen = []
    here = env.event()
    env.hub.call_inside(lambda: (seen.append("own"), here.set()))
    here.wait()

    inner = env.event()
    env.hub.call_inside(lambda: env.hub.call_inside(inner.set))
    inner.wait()
    assert seen == ["own"]


@check(NATIVE)
def call_inside_from_native_threads(env):
    threads, each = 4, 200
    order = collections.defaultdict(list)
    idents = set()
    done = env.event()
    from greenamqp.hubs import native

    get_ident = native.original("threading", "get_ident")

    def callback(thread, number):
        idents.add(get_ident())
        assert env.hub.busy
        order[thread].append(number)
        if sum(map(len, order.values())) == threads * each:
            done.set()

    def run(thread):
        for number in range(each):
            env.hub.call_inside(functools.partial(callback, thread, number))

    joins = [env.native(functools.partial(run, thread)) for thread in range(threads)]
    done.wait()
    for join in joins:
        join()
    assert all(numbers == list(range(each)) for numbers in order.values())
    assert len(idents) == 1


@check(NATIVE)
def run_inside_from_a_native_thread(env):
    got = []
    done = env.event()

    class Odd(BaseException):
        """No Exception."""

    def fails(kind):
        raise kind("as asked")

    def waits():
        waiter = env.hub.waiter()
        env.later(0.005, waiter.wake)
        return (yield waiter, env.hub.now() + FAR)

    def run():
        try:
            got.append(env.hub.run_inside(lambda a, b: (a, b), 1, "two"))
            got.append(env.hub.do(waits()))
            for kind in (KeyError, Odd):
                try:
                    env.hub.run_inside(fails, kind)
                except kind as exc:
                    got.append(type(exc))
            got.append(env.hub.foreign())
        except BaseException as exc:
            got.append(exc)
        env.hub.call_inside(done.set)

    join = env.native(run)
    done.wait()
    join()
    assert got == [(1, "two"), True, KeyError, Odd, env.one_thread], got


@check(LIBRARIES)
def run_inside_from_the_librarys_own_threads(env):

    def waits():
        waiter = env.hub.waiter()
        env.later(0.005, waiter.wake)
        return waiter.wait(env.hub.now() + FAR)

    for _ in range(5):
        assert env.pooled(lambda: env.hub.run_inside(waits)) is True
        assert env.pooled(env.hub.foreign) is True
    assert env.hub.foreign() is False


@check()
def run_inside_from_inside(env):
    assert env.hub.run_inside(lambda a: a + 1, 1) == 2
    try:
        env.hub.run_inside(lambda: [][0])
    except IndexError:
        pass
    else:
        raise AssertionError("not raised")


@check(NATIVE)
def many_threads_run_inside_at_a_time(env):
    results = []
    finished = env.event()

    def run(index):
        results.append(env.hub.run_inside(lambda: index * 2))
        if len(results) == 20:
            env.hub.call_inside(finished.set)

    joins = [env.native(functools.partial(run, index)) for index in range(20)]
    finished.wait()
    for join in joins:
        join()
    assert sorted(results) == [2 * index for index in range(20)]


# -- work


def _hands_over_result_or_error(env, hand_over):
    outcomes = []
    done = env.event()

    def got(result, error):
        outcomes.append((result, type(error)))
        if len(outcomes) == 2:
            done.set()

    def fails():
        raise OSError("no such name, or no space left")

    with env.hub.lock:
        hand_over(lambda: "result", got)
        hand_over(fails, got)
    done.wait()
    assert sorted(outcomes, key=str) == sorted(
        [("result", type(None)), (None, OSError)], key=str
    )


@check()
def offload_hands_over_result_or_error(env):
    _hands_over_result_or_error(env, env.hub.offload)


@check()
def off_thread_hands_over_result_or_error(env):
    _hands_over_result_or_error(env, env.hub.off_thread)


@check(("blocking",))
def who_waits_for_what_blocks_hears_of_ctrl_c(env):
    """What blocks does so in the thread where signal handlers run."""
    for hand_over in (env.hub.offload, env.hub.off_thread):
        got = []

        def interrupted():
            raise KeyboardInterrupt

        try:
            with env.hub.lock:
                hand_over(interrupted, lambda result, error, got=got: got.append(error))
        except KeyboardInterrupt as exc:
            assert got == [exc]
        else:
            raise AssertionError("it was kept from who is interrupted")


@check(("threads", *LIBRARIES))
def the_hub_runs_while_something_blocks_off_thread(env):
    """What blocks goes on only when the hub has had a turn."""
    from greenamqp.hubs import native

    gate = native.original("threading", "Lock")()
    gate.acquire()
    passed = []
    done = env.event()

    def got(result, error):
        passed.append(result)
        done.set()

    env.hub.off_thread(lambda: gate.acquire(timeout=FAR / 2), got)
    env.later(0.002, gate.release)
    done.wait()
    assert passed == [True]


@check()
def spawn_runs_where_it_may_wait(env):
    done = env.event()
    got = []

    def work(*args):
        waiter = env.hub.waiter()
        env.hub.call_inside(waiter.wake)
        got.append((args, waiter.wait(env.hub.now() + FAR)))
        done.set()

    env.hub.spawn(work, 1, 2)
    done.wait()
    assert got == [((1, 2), True)]


@check()
def spawn_from_a_callback(env):
    done = env.event()
    env.hub.call_inside(lambda: env.hub.spawn(done.set))
    done.wait()


@check()
def what_spawned_work_raises_is_logged(env):
    done = env.event()

    def fails():
        try:
            raise ValueError("on purpose")
        finally:
            done.set()

    env.hub.spawn(fails)
    done.wait()
    for _ in range(1000):
        env.turn()
        if env.logged:
            break
    (record,) = env.logged
    assert record.exc_info[0] is ValueError


@check()
def what_delivered_work_raises_is_logged(env):
    for _ in range(3):
        done = env.event()

        def fails(done=done):
            done.set()
            raise ValueError("on purpose")

        env.hub.deliver(fails)
        done.wait()
    done = env.event()
    env.hub.deliver(done.set)
    done.wait()
    env.turn()
    assert [record.exc_info[0] for record in env.logged] == [ValueError] * 3


@check(("threads",))
def work_that_wants_the_thread_to_end_does_not_end_it(env):
    def leaves():
        raise SystemExit

    env.hub.deliver(leaves)
    env.turn()
    done = env.event()
    env.hub.deliver(done.set)
    done.wait()
    assert [record.exc_info[0] for record in env.logged] == [SystemExit]


@check(GREEN)
def deliver_uses_idle_workers_again(env):
    who = []
    for _ in range(20):
        done = env.event()
        env.hub.deliver(lambda done=done: (who.append(env.hub.current()), done.set()))
        done.wait()
        env.turn()
    assert len(set(who)) == 1
    assert len(env.hub._idle) == 1


@check(GREEN)
def a_delivery_happens_within_the_wakeup(env):
    pump = Pump()
    warm = env.event()
    env.hub.deliver(warm.set)
    warm.wait()
    env.turn()
    order = []
    done = env.event()

    def work():
        order.append("work")
        env.hub.flush_soon(pump)
        done.set()

    pump.on_flush = lambda: order.append("flush")

    def callback():
        env.hub.deliver(work)
        order.append("callback")

    env.hub.call_inside(callback)
    done.wait()
    env.turn()
    assert order == ["callback", "work", "flush"]


@check(GREEN + ("threads",))
def a_delivery_that_waits_holds_up_no_other(env):
    release = env.hub.waiter()
    entered, passed, left = env.event(), env.event(), env.event()

    def waits():
        entered.set()
        assert release.wait(env.hub.now() + FAR)
        left.set()

    env.hub.deliver(waits)
    entered.wait()
    for _ in range(3):
        env.hub.deliver(passed.set)
        passed.wait()
    env.hub.call_inside(release.wake)
    left.wait()


@check(("threads",))
def a_delivery_that_waits_is_woken_by_another_thread(env):
    """Nothing else happens that could end the hub's own wait."""
    release = env.hub.waiter()
    entered = env.hub._allocate_lock()
    left = env.hub._allocate_lock()
    entered.acquire()
    left.acquire()

    def waits():
        entered.release()
        assert release.wait(None)
        left.release()

    env.hub.deliver(waits)
    assert entered.acquire(timeout=FAR)
    # Until the hub's thread is in its wait there is nothing to see, so many times.
    for _ in range(20):
        with env.hub.lock:
            pass
    with env.hub.lock:
        release.wake()
    assert left.acquire(timeout=FAR), "it was not woken"


@check(GREEN + ("threads",))
def many_deliveries_wait_at_a_time(env):
    count = 100
    gate = []
    done = []
    finished = env.event()

    def waits():
        waiter = env.hub.waiter()
        with env.hub.lock:
            gate.append(waiter)
        assert waiter.wait(env.hub.now() + FAR)
        with env.hub.lock:
            done.append(1)
            if len(done) == count:
                finished.set()

    for _ in range(count):
        env.hub.deliver(waits)
    while len(gate) < count:
        env.turn()
    with env.hub.lock:
        for waiter in gate:
            waiter.wake()
    finished.wait()
    env.turn()
    if env.green:
        from greenamqp.hubs.green import IDLE_WORKERS

        assert len(env.hub._idle) == IDLE_WORKERS


@check(GREEN)
def a_worker_killed_while_idle_takes_no_work_with_it(env):
    first = env.event()
    threads = []
    env.hub.deliver(lambda: (threads.append(env.hub.current()), first.set()))
    first.wait()
    env.turn()
    thread = threads[0]
    env.kill(thread)
    for _ in range(5):
        env.pause()
    assert thread.dead
    second = env.event()
    env.hub.deliver(second.set)
    second.wait()


@check()
def current_tells_threads_apart(env):
    seen = []

    def body(_index):
        seen.append((env.hub.current(), env.hub.current()))
        env.hub.waiter().wait(env.hub.now() + 0.005)

    events = env.started(4, body)
    for event in events:
        event.wait()
    assert all(one == other for one, other in seen)
    assert len({hash(one) for one, _ in seen}) == len({one for one, _ in seen})
    if env.green:
        assert len({one for one, _ in seen}) == 4
    assert env.hub.current() not in {one for one, _ in seen} or not env.green


# -- flushing


class Pump:
    """What a hub flushes."""

    def __init__(self):
        self.dirty = False
        self.flushed = 0
        self.on_flush = lambda: None

    def flush(self):
        self.flushed += 1
        self.on_flush()


@check()
def one_flush_for_many_touches(env):
    pump = Pump()

    def callback():
        for _ in range(10):
            env.hub.flush_now(pump)
            env.hub.flush_soon(pump)
            env.hub.flush_late(pump)
        assert pump.flushed == 0

    env.hub.call_inside(callback)
    env.turn()
    env.turn()
    assert pump.flushed == 1
    assert pump.dirty is False


@check((*GREEN, *LOOPS))
def the_flush_comes_after_the_waiters_that_were_woken(env):
    from greenamqp.hubs import asyncio, green

    # On a busy machine they may take longer, and what is held back so long is written.
    with (
        unittest.mock.patch.multiple(green, FIRST_FLUSH=FAR, FLUSH_INTERVAL=FAR),
        unittest.mock.patch.object(asyncio, "WRITE_INTERVAL", FAR),
    ):
        order = []
        pump = Pump()
        pump.on_flush = lambda: order.append("flush")
        waiters = {}

        def body(index):
            waiters[index] = env.hub.waiter()
            assert waiters[index].wait(env.hub.now() + FAR)
            env.hub.flush_now(pump)
            env.hub.flush_soon(pump)
            order.append(index)

        done = env.started(3, body)
        while len(waiters) < 3:
            env.pause()

        def callback():
            env.hub.flush_now(pump)
            for index in range(3):
                waiters[index].wake()
            order.append("callback")

        env.hub.call_inside(callback)
        for event in done:
            event.wait()
        env.turn()
        assert order == ["callback", 0, 1, 2, "flush"]


@check(GREEN)
def whom_a_waiter_wakes_runs_within_the_same_wakeup(env):
    order = []
    pump = Pump()
    pump.on_flush = lambda: order.append("flush")
    waiters = {}

    def body(index):
        waiters[index] = env.hub.waiter()
        assert waiters[index].wait(env.hub.now() + FAR)
        order.append(index)
        # Whatever left before: if they took long, the output so far was not held back.
        env.hub.flush_now(pump)
        if index + 1 in waiters:
            waiters[index + 1].wake()

    done = env.started(4, body)
    while len(waiters) < 4:
        env.pause()

    def callback():
        env.hub.flush_now(pump)
        waiters[0].wake()

    env.hub.call_inside(callback)
    for event in done:
        event.wait()
    env.turn()
    assert [each for each in order if each != "flush"] == [0, 1, 2, 3]
    assert order[-1] == "flush"


def flushes_of_a_wakeup(env, number, microseconds, flush):
    """When the output is flushed, in microseconds since the wake-up began, that
    `number` green threads have within it: each works for so long."""
    pump = Pump()
    waiters = {}
    flushed = []
    pump.on_flush = lambda: flushed.append(round(1e6 * (clock[0] - began)))

    def body(index):
        waiters[index] = env.hub.waiter()
        assert waiters[index].wait(None)
        flush(pump)
        clock[0] += microseconds / 1e6

    done = env.started(number, body)
    while len(waiters) < number:
        env.pause()
    began = env.hub.now()
    clock = [began]
    env.hub.now = lambda: clock[0]

    def callback():
        for waiter in waiters.values():
            waiter.wake()

    env.hub.call_inside(callback)
    for event in done:
        event.wait()
    env.turn()
    del env.hub.now
    return flushed


@check(GREEN)
def output_leaves_early_within_a_long_wakeup(env):
    """The first does not wait for the last to be done; each flush takes longer."""
    for flush in (env.hub.flush_now, env.hub.flush_soon):
        flushed = flushes_of_a_wakeup(env, 10, 300, flush)
        assert flushed == [300, 900, 1800, 3000]


@check(GREEN)
def what_nobody_waits_for_leaves_late(env):
    flushed = flushes_of_a_wakeup(env, 10, 300, env.hub.flush_late)
    assert flushed == [2100, 3000]


@check(GREEN)
def what_nobody_waits_for_leaves_with_what_somebody_waits_for(env):
    flushes = itertools.cycle([env.hub.flush_late, env.hub.flush_now])

    def flush(pump):
        next(flushes)(pump)

    assert flushes_of_a_wakeup(env, 6, 300, flush) == [600, 1200, 1800]


@check(GREEN)
def a_wakeup_that_is_nearly_over_is_not_interrupted(env):
    assert flushes_of_a_wakeup(env, 8, 30, env.hub.flush_now) == [240]
    assert flushes_of_a_wakeup(env, 10, 30, env.hub.flush_now) == [210, 300]


@check()
def outside_a_wakeup_flush_now_is_at_once(env):
    pump = Pump()
    env.outside()
    with env.hub.lock:
        env.hub.flush_now(pump)
        assert pump.flushed == 1


@check()
def outside_a_wakeup_the_others_flush_before_long(env):
    pump = Pump()
    env.outside()
    with env.hub.lock:
        for _ in range(5):
            env.hub.flush_soon(pump)
            env.hub.flush_late(pump)
    env.turn()
    env.turn()
    assert pump.flushed >= 1
    if env.green:
        assert pump.flushed == 1
    assert pump.dirty is False


@check(("threads", "blocking"))
def timers_are_touched_under_the_lock_only(env):
    """Looking for the next one drops those that were cancelled: another thread's new
    one must not come in between."""
    reactor = env.hub._reactor
    held = []

    def watched(method):
        def call(*args):
            held.append(env.hub.lock._is_owned())
            return method(*args)

        return call

    for name in ("next_deadline", "call_at", "expire"):
        setattr(reactor, name, watched(getattr(reactor, name)))
    fired = env.event()
    timers = [env.later(FAR, fired.set) for _ in range(3)]
    for timer in timers:
        timer.cancel()
    env.later(0, fired.set)
    fired.wait()
    env.turn()
    assert len(held) > 4
    assert all(held)


@check(("blocking",))
def what_is_gathered_leaves_in_one_flush(env):
    pump = Pump()
    env.hub.gather()
    env.hub.flush_soon(pump)
    env.hub.flush_now(pump)
    assert pump.flushed == 0 and pump.dirty
    env.hub.write_gathered()
    assert pump.flushed == 1 and not pump.dirty
    env.hub.flush_now(pump)
    assert pump.flushed == 2


@check(("blocking",))
def what_is_gathered_leaves_before_a_wait(env):
    """Or who gathers would wait for the answer to what was never written."""
    pump = Pump()
    waiter = env.hub.waiter()
    pump.on_flush = waiter.wake
    env.hub.gather()
    env.hub.flush_now(pump)
    assert pump.flushed == 0
    assert waiter.wait(env.hub.now() + FAR)
    assert pump.flushed == 1


@check(("blocking",))
def what_is_gathered_leaves_while_there_is_more_to_do(env):
    pump = Pump()
    env.hub.gather()
    env.hub.flush_now(pump)
    until = env.hub.now() + FAR
    while not pump.flushed and env.hub.now() < until:
        env.hub.gather()
        env.hub.let_others_run()
    assert pump.flushed == 1


@check(("blocking",))
def nobody_gathers_for_another_thread(env):
    pump = Pump()
    env.hub.gather()

    def body():
        with env.hub.lock:
            env.hub.flush_now(pump)

    env.native(body)()
    assert pump.flushed == 1
    env.hub.write_gathered()
    assert pump.flushed == 1


@check(("threads",))
def threads_gather_while_the_hub_is_about_to_write(env):
    pump = Pump()
    hub = env.hub
    hub.gather()
    # While we have the lock, the hub's thread cannot find that its alarm went off.
    with hub.lock:
        hub._up_at = hub.now()
        hub.flush_soon(pump)
        hub.flush_now(pump)
        assert pump.flushed == 0 and pump.dirty
        hub.write_gathered()
        assert pump.flushed == 1 and not pump.dirty
        hub.flush_now(pump)
        assert pump.flushed == 2


@check(("threads",))
def what_a_thread_gathers_and_forgets_leaves_by_itself(env):
    """Its endpoint waits for something else, or never returns."""
    pump = Pump()
    flushed = env.event()
    pump.on_flush = flushed.set
    hub = env.hub

    def body():
        hub.gather()
        with hub.lock:
            hub.flush_soon(pump)

    def callback():
        hub.expect_output()
        env.native(body)

    hub.call_inside(callback)
    flushed.wait()
    assert pump.flushed == 1
    hub._gatherers.clear()  # or it would seem to be at work for ever


@check(("threads",))
def a_thread_that_gathers_writes_before_it_waits(env):
    pump = Pump()
    hub = env.hub
    waiter = hub.waiter()
    pump.on_flush = waiter.wake
    hub.gather()
    with hub.lock:
        hub._up_at = hub.now()
        hub.flush_now(pump)
        assert pump.flushed == 0
    assert waiter.wait(hub.now() + FAR)
    assert pump.flushed == 1
    hub.write_gathered()


@check()
def who_does_not_gather_may_say_so(env):
    env.hub.gather()
    env.hub.write_gathered()
    pump = Pump()
    env.outside()
    with env.hub.lock:
        env.hub.flush_now(pump)
    assert pump.flushed == 1


@check()
def a_flush_may_touch_another_pump(env):
    one, other = Pump(), Pump()
    one.on_flush = lambda: env.hub.flush_now(other)
    env.hub.call_inside(lambda: env.hub.flush_now(one))
    env.turn()
    env.turn()
    assert (one.flushed, other.flushed) == (1, 1)


@check()
def an_exception_in_a_callback_harms_nobody(env):
    pump = Pump()
    woken = env.event()
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(env.pair()) for _ in range(2)]
        read = []

        def readable(index):
            read.append(pairs[index][0].recv(10))
            env.hub.flush_now(pump)
            if index == 0:
                woken.set()
                raise ValueError("on purpose")

        watches = [
            env.hub.watch(one.fileno(), functools.partial(readable, index))
            for index, (one, _) in enumerate(pairs)
        ]
        for number in range(3):
            woken.happened = False
            flushed = pump.flushed
            for _, other in pairs:
                other.send(b"x")
            woken.wait()
            while len(read) < 2 * (number + 1):
                env.turn()
            env.turn()
            assert pump.flushed > flushed
        env.close(*watches)
    env.later(0, lambda: {}["on purpose"])
    both = env.event()
    env.hub.call_inside(lambda: {}["on purpose"])
    env.hub.call_inside(both.set)
    both.wait()
    done = env.event()
    env.later(0.002, done.set)
    done.wait()
    # Another thread, or green thread, may be handing the records over.
    while len(env.logged) < 5:
        env.turn()
    kinds = [record.exc_info[0] for record in env.logged]
    assert kinds == [ValueError] * 3 + [KeyError] * 2
    env.outside()
    with env.hub.lock:
        assert env.hub.busy is False


# -- who leads, of native threads


@contextlib.contextmanager
def leads(env) -> typing.Iterator[typing.Callable[[], typing.Hashable]]:
    """Have the calling thread lead whenever it waits, until somebody else waits too.

    Gives what sends itself a byte, waits for it, and says which thread read it.
    """
    waiter = env.hub.waiter()
    readers = []
    one, other = _socket.socketpair()

    def readable():
        one.recv(1)
        readers.append(env.hub.current())
        waiter.wake()

    watch = env.hub.watch(one.fileno(), readable)

    def reader():
        other.send(b"x")
        assert waiter.wait(env.hub.now() + FAR)
        return readers.pop()

    try:
        until(lambda: reader() == env.hub.current())
        yield reader
    finally:
        env.close(watch)
        one.close()
        other.close()


def waited_for(env, waiter):
    """Until some thread waits in `waiter`.  It leads, unless the machine is so busy
    that another one came first: the hub's own, or one that waits as well."""
    until(lambda: env.hub._reader is waiter or waiter in env.hub._followers)


@check(("threads",))
def who_waits_alone_reads_itself(env):
    with leads(env) as reader:
        # On a busy machine it may be held up, and find the hub's own thread reading.
        until(lambda: [reader() for _ in range(20)] == [env.hub.current()] * 20)


@check(("threads",))
def the_hubs_own_thread_reads_when_nobody_waits(env):
    read = env.hub._allocate_lock()
    read.acquire()
    by = []

    def callback():
        by.append(env.hub.current())
        read.release()

    with leads(env) as reader:
        for _ in range(20):
            reader()
            with env.pair() as (one, other):
                watch = env.hub.watch(
                    one.fileno(), lambda one=one: (one.recv(1), callback())
                )
                other.send(b"x")
                assert read.acquire(timeout=FAR)
                env.close(watch)
            env.later(0, callback)
            assert read.acquire(timeout=FAR)
            env.hub.call_inside(callback)
            assert read.acquire(timeout=FAR)
            env.hub.deliver(callback)
            assert read.acquire(timeout=FAR)
        assert set(by) == {env.hub._own.ident}


@check(("threads",))
def who_follows_is_served_when_the_leader_has_gone(env):
    asleep = env.hub._allocate_lock()
    asleep.acquire()
    waiter = env.hub.waiter()

    def follow():
        asleep.release()
        assert waiter.wait(env.hub.now() + FAR)
        asleep.release()

    with leads(env) as reader:
        for _ in range(20):
            env.native(follow)
            assert asleep.acquire(timeout=FAR)
            reader()
            waited_for(env, waiter)
            with env.pair() as (one, other):
                watch = env.hub.watch(
                    one.fileno(), lambda one=one: (one.recv(1), waiter.wake())
                )
                other.send(b"x")
                assert asleep.acquire(timeout=FAR)
                env.close(watch)


@check(("threads",))
def who_was_not_alone_is_followed_at_once(env):
    """By the hub's own thread, which else leaves it some time to come back."""
    from greenamqp.hubs.threads import Reading

    hub = env.hub
    waiter = hub.waiter()
    me = hub.current()

    def leave(*callbacks):
        """Lead for one turn; returns whether the next one is expected to come soon."""
        by = []
        until(lambda: reader() == me)
        hub.call_inside(lambda: by.append(hub.current()))
        for callback in (*callbacks, waiter.wake):
            hub.call_inside(callback)
        assert waiter.wait(hub.now() + FAR)
        return by == [me], hub._reading is Reading.EXPECTED

    def seen(expected, *callbacks):
        """The hub's own thread may have taken the calls before us."""
        until(lambda: leave(*callbacks) == (True, expected))

    with leads(env) as reader:
        seen(True)
        seen(False, lambda: hub.waiter().wake())
        seen(True)


@check(("threads",))
def another_thread_wakes_the_one_that_leads(env):
    waiter = env.hub.waiter()

    def wake():
        waited_for(env, waiter)
        with env.hub.lock:
            waiter.wake()

    with leads(env) as reader:
        for _ in range(20):
            reader()
            join = env.native(wake)
            assert waiter.wait(env.hub.now() + FAR)
            join()


@check(("threads",))
def who_leads_is_woken_for_what_is_due_before(env):
    """A timer, a call and a delivery that other threads make meanwhile."""
    waiter = env.hub.waiter()

    def wake():
        with env.hub.lock:
            waiter.wake()

    def make(begin):
        waited_for(env, waiter)
        begin()

    with leads(env) as reader:
        for begin in (
            lambda: env.later(0, wake),
            lambda: env.hub.call_inside(wake),
            lambda: env.hub.deliver(wake),
        ):
            for _ in range(20):
                reader()
                join = env.native(functools.partial(make, begin))
                assert waiter.wait(env.hub.now() + FAR)
                join()


@check(("threads",))
def an_idle_worker_that_read_its_work_is_at_hand(env):
    """It is the cheapest to wake; anybody else's thread is not at hand."""
    hub = env.hub
    waiter = hub.waiter(idle=True)
    at_hand = []
    over = []

    def work():
        while not over:
            assert waiter.wait(hub.now() + FAR)

    def callback():
        at_hand.append(hub.at_hand)
        waiter.wake()

    join = env.native(work)
    with hub.lock:
        assert hub.at_hand is None
    try:

        def once():
            done = len(at_hand) + 1
            hub.call_inside(callback)
            until(lambda: len(at_hand) == done)
            return at_hand[-1] is waiter

        until(once)
        with hub.lock:
            assert hub.at_hand is None
        assert hub._followers == set()
    finally:
        with hub.lock:
            over.append(True)
            waiter.wake()
        join()


@check(("threads",))
def what_is_gathered_leaves_while_another_thread_leads(env):
    """It leads on, and does not write for others: the hub's own thread does."""
    waiter = env.hub.waiter()
    pump = Pump()
    pump.on_flush = waiter.wake

    def body():
        waited_for(env, waiter)
        env.hub.gather()
        with env.hub.lock:
            env.hub.expect_output()
            env.hub.flush_soon(pump)

    with leads(env) as reader:
        for number in range(20):
            reader()
            join = env.native(body)
            assert waiter.wait(env.hub.now() + FAR)
            assert pump.flushed == number + 1
            join()
            env.hub._gatherers.clear()


@check(("threads",))
def a_signal_handler_that_raises_leaves_nothing_undone(env):
    """In the thread that leads, between two callbacks."""
    woken = [env.hub.waiter() for _ in range(3)]
    me = env.hub.current()
    interrupted = []

    def handler(number, frame):
        raise KeyboardInterrupt

    def first():
        woken[0].wake()
        if env.hub.current() == me:
            interrupted.append(True)
            signal.raise_signal(signal.SIGUSR1)

    def begin():
        waited_for(env, woken[2])
        others = [
            env.native(lambda each=each: each.wait(env.hub.now() + FAR))
            for each in woken[:2]
        ]
        for each in woken[:2]:
            waited_for(env, each)
        with env.hub.lock:
            for callback in (first, woken[1].wake, woken[2].wake):
                env.later(0, callback)
        for join in others:
            join()

    with leads(env) as reader:
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            while len(interrupted) < 20:
                until(lambda: reader() == me)
                join = env.native(begin)
                try:
                    assert woken[2].wait(env.hub.now() + FAR)
                except KeyboardInterrupt:
                    assert woken[2].wait(env.hub.now() + FAR)
                join()
        finally:
            signal.signal(signal.SIGUSR1, before)


@check(("threads",))
def the_hub_ends_while_a_thread_leads(env):
    """And begins anew: the descriptors of both are closed, and the thread's wait is
    good for the second."""
    with leads(env):
        pass
    descriptors = resources()[0]
    for _ in range(20):
        waiter = env.hub.waiter()
        done = env.native(lambda w=waiter: w.wait(env.hub.now() + FAR))
        waited_for(env, waiter)
        env.hub.release()
        env.hub.acquire()
        env.hub.call_inside(waiter.wake)
        done()
        until(lambda: resources()[0] == descriptors)


# -- the beat


@check()
def a_ticker_keeps_its_beat_while_others_wait(env):
    """The ticker is what ends the wait: were it held up, nothing would."""
    beats = []
    waiter = env.hub.waiter()

    def enough():
        with env.hub.lock:
            waiter.wake()

    def tick():
        while len(beats) < 100:
            beats.append(1)
            if env.green:
                env.pause()
            else:
                time.sleep(0.0005)
        enough()

    stop = [env.hub.waiter() for _ in range(5)]

    def waiting(index):
        assert stop[index].wait(env.hub.now() + FAR)

    others = env.started(5, waiting)
    env.spawn(tick)
    assert waiter.wait(env.hub.now() + FAR) is True
    assert len(beats) == 100
    with env.hub.lock:
        for each in stop:
            each.wake()
    for event in others:
        event.wait()


@check()
def timers_and_watches_run_while_others_wait(env):
    with env.pair() as (one, other):
        beats = []
        done = env.hub.waiter()

        def readable():
            beats.append(one.recv(10))
            if len(beats) == 100:
                done.wake()
            else:
                env.later(0, lambda: other.send(b"x"))

        watch = env.hub.watch(one.fileno(), readable)
        other.send(b"x")
        assert done.wait(env.hub.now() + FAR)
        env.close(watch)


@check(tuple(hub for hub in HUBS if hub not in LOOPS))
def waits_within_waits(env):
    """An endpoint that makes a call, in the thread that waits for another."""
    outer, inner = env.hub.waiter(), env.hub.waiter()
    got = []
    done = env.event()

    def endpoint():
        env.later(0.002, inner.wake)
        got.append(inner.wait(env.hub.now() + FAR))
        with env.hub.lock:
            outer.wake()
        done.set()

    env.hub.deliver(endpoint)
    assert outer.wait(env.hub.now() + FAR) is True
    done.wait()
    assert got == [True]


# -- what belongs to one hub


@check(("blocking",))
def the_blocking_hubs_descriptor(env):
    poll = select.poll()
    poll.register(env.hub.fileno(), select.POLLIN)
    env.turn()
    while poll.poll(0):
        env.hub.look()
    # A call from another thread.
    done = []
    join = env.native(lambda: env.hub.call_inside(lambda: done.append("called")))
    assert poll.poll(FAR * 1000)
    join()
    env.hub.look()
    # A timer.
    env.later(0.005, lambda: done.append("timer"))
    while "timer" not in done:
        assert poll.poll(FAR * 1000)
        env.hub.look()
    # A watch.
    with env.pair() as (one, other):
        watch = env.hub.watch(one.fileno(), lambda: done.append(one.recv(10)))
        other.send(b"read")
        assert poll.poll(FAR * 1000)
        env.hub.look()
        watch.close()
    # Work.
    env.hub.spawn(lambda: done.append("work"))
    assert poll.poll(FAR * 1000)
    env.hub.look()
    assert done == ["called", "timer", b"read", "work"]
    while poll.poll(0):
        env.hub.look()


@check(NATIVE)
def the_hub_that_is_chosen(env):
    from greenamqp import hubs

    assert hubs.get(env.hub.name) is env.hub
    if env.hub.name not in ("blocking", "asyncio"):  # which are asked for
        assert hubs.choose() == env.hub.name
        assert hubs.get() is env.hub
    for other in ("eventlet", "gevent"):
        if other != env.hub.name:
            assert other not in sys.modules, f"{other} was imported"


class _Errors(logging.Handler):
    def __init__(self, env: Env) -> None:
        super().__init__(logging.ERROR)
        self._env = env

    def emit(self, record: logging.LogRecord) -> None:
        self._env.logged.append(record)


_ENVS = {
    "eventlet": EventletEnv,
    "gevent": GeventEnv,
    "threads": Env,
    "blocking": Env,
    "simulated": SimulatedEnv,
    "asyncio": AsyncioEnv,
}


def main(name: str, wanted: list[str]) -> int:
    """Run the checks up to the first that fails; returns 1 if there is one."""
    hub = name.partition("-")[0]
    if name == "eventlet-asyncio":
        os.environ["EVENTLET_HUB"] = "asyncio"
    if hub == "eventlet":
        import eventlet

        eventlet.monkey_patch()
        if name == "eventlet-asyncio":
            assert "asyncio" in type(eventlet.hubs.get_hub()).__module__
    elif hub == "gevent":
        from gevent import monkey

        monkey.patch_all()
    elif hub == "asyncio":
        import asyncio

        make = None
        if name == "asyncio-uvloop":
            import uvloop

            make = uvloop.new_event_loop

        async def run() -> int:
            return await AsyncioEnv.within(lambda: run_checks(name, wanted))

        with asyncio.Runner(loop_factory=make) as runner:
            return runner.run(run())
    return run_checks(name, wanted)


def run_checks(name: str, wanted: list[str]) -> int:
    """As `main`, where the hub is at home."""
    hub = name.partition("-")[0]
    env = _ENVS[hub](hub)
    logging.getLogger("greenamqp").addHandler(_Errors(env))
    logging.getLogger("greenamqp").propagate = False
    env.hub.acquire()
    for each in wanted or NAMES[name]:
        env.logged.clear()
        try:
            CHECKS[each](env)
        except Skip as exc:
            print(f"skip {each}: {exc}", flush=True)
        except BaseException:
            print(f"FAIL {each}\n{traceback.format_exc()}", flush=True)
            for record in env.logged:
                print(logging.Formatter().format(record), flush=True)
            # What it left behind must not be blamed on others.
            return 1
        else:
            print(f"ok {each}", flush=True)
    env.hub.release()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
