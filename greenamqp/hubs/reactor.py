# SPDX-License-Identifier: Apache-2.0
"""A small event loop on epoll, for processes that have none of their own.

The threads hub runs it in its one thread, the blocking hub in whatever thread waits;
for the latter the epoll set holds a timer fd too, so that a foreign loop that waits
for the set alone wakes up for the next deadline.
epoll and not select: descriptors above 1023 are ordinary in a large service.
Not thread safe, but for :meth:`Reactor.wake`.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import os
import select
import typing

from greenamqp import interrupts
from greenamqp.hubs import native
from greenamqp.hubs.base import Callback, Timer, Watch

# epoll counts milliseconds in 31 bits, 24 days: nobody waits longer in one piece.
_LONGEST_POLL = 86400.0


class _Timer(Timer):
    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class _Watch(Watch):
    __slots__ = ("_fd", "_reactor", "on_readable", "on_writable")

    def __init__(self, reactor: Reactor, fd: int, on_readable: Callback) -> None:
        self._reactor = reactor
        self._fd = fd
        self.on_readable: Callback | None = on_readable
        self.on_writable: Callback | None = None
        reactor._watches[fd] = self
        reactor._epoll.register(fd, select.EPOLLIN)

    def want_write(self, on_writable: Callback | None) -> None:
        if self.on_readable is None or self.on_writable is on_writable:
            return
        self.on_writable = on_writable
        self._reactor._epoll.modify(
            self._fd, select.EPOLLIN | (select.EPOLLOUT if on_writable else 0)
        )

    def close(self) -> None:
        if self.on_readable is not None:
            self.on_readable = self.on_writable = None
            self._reactor._forget(self._fd, self)


class _Timespec(ctypes.Structure):
    _fields_: typing.ClassVar = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_: typing.ClassVar = [("interval", _Timespec), ("value", _Timespec)]


class _TimerFd:
    """A Linux timer fd on the monotonic clock; ``os`` has them from Python 3.13 on,
    so the C library is called."""

    _CLOCK_MONOTONIC = 1
    _ABSOLUTE = 1

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_* have these values
        self.fd: int = self._libc.timerfd_create(self._CLOCK_MONOTONIC, flags)
        if self.fd < 0:
            errno = ctypes.get_errno()
            raise OSError(errno, f"timerfd_create: {os.strerror(errno)}")
        self._instant: float | None = None

    def set(self, instant: float | None) -> None:
        """Become readable at a monotonic instant; None: not at all."""
        if instant == self._instant:
            return
        self._instant = instant
        value = _Itimerspec()
        if instant is not None and instant != float("inf"):
            # 0 would disarm it; an instant in the past is due at once.
            nanoseconds = max(1, int(instant * 1e9))
            value.value.sec, value.value.nsec = divmod(nanoseconds, 10**9)
        self._libc.timerfd_settime(self.fd, self._ABSOLUTE, ctypes.byref(value), None)

    def clear(self) -> None:
        """Take note that it went off."""
        self._instant = None
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass  # set anew meanwhile

    def close(self) -> None:
        os.close(self.fd)


class Channel:
    """What a reactor is polled by: an epoll set, and an eventfd in it to end a poll."""

    def __init__(self) -> None:
        self.epoll = native.original("select", "epoll")(flags=select.EPOLL_CLOEXEC)
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.epoll.register(self.eventfd, select.EPOLLIN)

    def wake(self) -> None:
        """End a poll, or the next one."""
        os.eventfd_write(self.eventfd, 1)

    def close(self) -> None:
        """Close both.  Idempotent."""
        eventfd, self.eventfd = self.eventfd, -1
        if eventfd >= 0:
            self.epoll.close()
            os.close(eventfd)

    # A signal handler may raise where it was to be closed.
    __del__ = close


class Reactor:
    """Watches, timers and a wake-up from other threads."""

    def __init__(self, timerfd: bool = False) -> None:
        #: The present one.
        self.channel = Channel()
        self._epoll = self.channel.epoll
        self._watches: dict[int, _Watch] = {}
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()
        self._alarm = _TimerFd() if timerfd else None
        if self._alarm is not None:
            self._epoll.register(self._alarm.fd, select.EPOLLIN)

    def close(self) -> None:
        """Let go of the epoll set and of its own other descriptors.  Idempotent."""
        if self.channel.eventfd < 0:
            return
        self.channel.close()
        if self._alarm is not None:
            self._alarm.close()
        self._watches.clear()
        self._timers.clear()

    def fileno(self) -> int:
        """The epoll set: readable when some watch is."""
        return int(self._epoll.fileno())

    def watch(self, fd: int, on_readable: Callback) -> _Watch:
        """As :meth:`greenamqp.hubs.base.Hub.watch`."""
        return _Watch(self, fd, on_readable)

    def _forget(self, fd: int, watch: _Watch) -> None:
        if self._watches.get(fd) is watch:
            del self._watches[fd]
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError) as exc:
                # Else the fd or the set was closed before the watch.
                if interrupts.struck(exc):
                    raise

    def call_at(self, instant: float, callback: Callback) -> _Timer:
        """As :meth:`greenamqp.hubs.base.Hub.call_at`."""
        timer = _Timer(callback)
        heapq.heappush(self._timers, (instant, next(self._order), timer))
        return timer

    def wake(self) -> None:
        """End a poll that another thread is in, or the next one."""
        self.channel.wake()

    def change_channel(self) -> None:
        """Have all polled by a new channel.  Whoever polls the old one, and does not
        come back from that at present, finds its eventfd written, for good, and
        nothing else in it; it closes it when it has come back."""
        old = self.channel
        new = Channel()
        for fd, watch in self._watches.items():
            writes = select.EPOLLOUT if watch.on_writable is not None else 0
            try:
                new.epoll.register(fd, select.EPOLLIN | writes)
            except OSError:
                pass  # closed before its watch
            else:
                old.epoll.unregister(fd)
        self.channel = new
        self._epoll = new.epoll
        old.wake()

    def has_due(self, late: float) -> bool:
        """Whether there is something to poll, or a timer that was due at `late`."""
        upcoming = self.next_deadline()
        return (upcoming is not None and upcoming <= late) or bool(self._epoll.poll(0))

    def arm(self) -> None:
        """Have the epoll set become readable at the next deadline."""
        if self._alarm is not None:
            self._alarm.set(self.next_deadline())

    def next_deadline(self) -> float | None:
        """The monotonic instant of the next timer, or None."""
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def poll(
        self, timeout: float | None, channel: Channel | None = None
    ) -> list[Callback]:
        """Wait up to `timeout` seconds for watches; returns what is to be called.

        :param channel: the one that was present when the calling thread came to run
            the reactor, if that may change

        Whether a callback is still wanted is to be asked when its turn comes, as an
        earlier one may have closed its watch: each returned callable does.
        """
        due: list[Callback] = []
        # epoll counts milliseconds and rounds up, so a timer is not polled for.
        timeout = -1 if timeout is None else min(timeout, _LONGEST_POLL)
        channel = channel or self.channel
        for fd, events in channel.epoll.poll(timeout):
            if fd == channel.eventfd:
                if channel is self.channel:
                    try:
                        os.eventfd_read(fd)
                    except BlockingIOError:
                        pass  # a signal handler polled in between
                continue
            if self._alarm is not None and fd == self._alarm.fd:
                self._alarm.clear()
                continue
            watch = self._watches.get(fd)
            if watch is not None:
                due.append(_dispatcher(watch, events))
        return due

    def is_late(self, now: float) -> bool:
        """Whether a timer is due, or one that was cancelled would be."""
        return bool(self._timers) and self._timers[0][0] <= now

    def expire(self, now: float, due: list[Callback]) -> None:
        """Add callbacks of timers that are due, each asking if it still is wanted."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            # In this order: a signal handler that raises leaves it in one at least.
            due.append(_runner(timers[0][2]))
            heapq.heappop(timers)


def _dispatcher(watch: _Watch, events: int) -> Callback:
    def dispatch() -> None:
        if events & select.EPOLLOUT and watch.on_writable is not None:
            watch.on_writable()
        # An error or hang-up is found out by reading.
        if events & ~select.EPOLLOUT and watch.on_readable is not None:
            watch.on_readable()

    return dispatch


def _runner(timer: _Timer) -> Callback:
    def run() -> None:
        callback: typing.Any = timer.callback
        if callback is not None:
            timer.callback = None
            callback()

    return run
