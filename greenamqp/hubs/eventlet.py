# SPDX-License-Identifier: Apache-2.0
"""eventlet's hub.  Imported only in a process that uses eventlet.

Works with each of eventlet's own hubs, ``EVENTLET_HUB=asyncio`` included: only
``add``, ``remove``, ``schedule_call_global`` and ``switch`` of eventlet's BaseHub
are called; and after a fork, in the child, what `_renew` needs.  Where the loop gets an
exception out of a timer or a descriptor, it tells us, see `EventletHub._look_on`.
"""

from __future__ import annotations

import contextlib
import typing

import eventlet
from eventlet import hubs as eventlet_hubs
from eventlet.hubs.hub import READ, WRITE, BaseHub

from greenamqp import interrupts
from greenamqp.hubs import native
from greenamqp.hubs.base import Callback, Timer, Watch, logged
from greenamqp.hubs.green import GreenHub


class _Timer(Timer):
    __slots__ = ("_timer",)

    def __init__(self, timer: typing.Any) -> None:
        self._timer = timer

    def cancel(self) -> None:
        if not self._timer.called:
            self._timer.cancel()


class _Watch(Watch):
    __slots__ = ("_hub", "_on_writable", "_reader", "_writer", "fd")

    def __init__(self, hub: EventletHub, fd: int, on_readable: Callback) -> None:
        self._hub = hub
        self.fd = fd

        def readable(_fd: int) -> None:
            # eventlet's loop calls all that is due, also what was removed meanwhile.
            if self._reader is not None:
                hub._wakeup(on_readable)

        self._writer: typing.Any = None
        self._on_writable: Callback | None = None
        hub._watches[fd] = self
        self._reader: typing.Any = None
        # The listener stays until removed: no epoll_ctl per wait.
        self._reader = hub.loop.add(READ, fd, readable, _throwback, None)

    def want_write(self, on_writable: Callback | None) -> None:
        loop = self._hub.loop
        if self._writer is not None:
            loop.remove(self._writer)
            self._writer = None
        self._on_writable = on_writable
        if on_writable is not None:
            hub, callback = self._hub, on_writable

            def writable(_fd: int) -> None:
                if self._writer is writer:
                    hub._wakeup(callback)

            self._writer = writer = loop.add(WRITE, self.fd, writable, _throwback, None)

    def renew(self) -> None:
        """Have the descriptor watched again, if the loop has dropped it."""
        loop = self._hub.loop
        reader, writer = self._reader, self._writer
        if reader is None:
            return
        if loop.listeners[READ].get(self.fd) is not reader:
            self._reader = loop.add(READ, self.fd, reader.cb, _throwback, None)
        if writer is not None and loop.listeners[WRITE].get(self.fd) is not writer:
            self._writer = None
            self.want_write(self._on_writable)

    def close(self) -> None:
        if self._hub._watches.get(self.fd) is not self:
            return
        loop = self._hub.loop
        for kind in (READ, WRITE):
            # As the loop has it: a signal handler may have raised before we had.
            listener = loop.listeners[kind].get(self.fd)
            if getattr(getattr(listener, "cb", None), "__module__", "") == __name__:
                loop.remove(listener)
        self._reader = self._writer = None
        del self._hub._watches[self.fd]

    def forget(self) -> int:
        """In a child: let go of it without a call to the kernel, where it is the
        parent's.  Returns the descriptor."""
        for listener in (self._reader, self._writer):
            if listener is not None:
                BaseHub.remove(self._hub.loop, listener)
        self._reader = self._writer = None
        return self.fd


def _was_ours(timer: typing.Any, exc: BaseException) -> bool:
    """Whether a timer that failed was to call us, or to begin a green thread of ours:
    not one of the program's that it ended while that waited for us."""
    callbacks = [*getattr(timer, "tpl", ())[:1]]
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        module = frame.f_globals.get("__name__", "")
        if not module.startswith("eventlet."):
            if module.startswith("greenamqp.hubs."):
                return True
            break
        callbacks.append(frame.f_locals.get("cb"))
        traceback = traceback.tb_next
    modules = [getattr(callback, "__module__", None) or "" for callback in callbacks]
    return any(module.startswith("greenamqp.hubs.") for module in modules)


def _throwback(*_error: object) -> None:
    """eventlet tells that the fd was closed behind our back: the next read fails."""


class EventletHub(GreenHub):
    """Lives in the eventlet hub of the native thread that made it."""

    name = "eventlet"

    def __init__(self) -> None:
        super().__init__()
        self.loop = eventlet_hubs.get_hub()
        if native.eventlet_loop_inherited(self.loop):
            _renew(self.loop)
        self._look_on()

    def _look_on(self) -> None:
        """Hear of what the loop does with exceptions.

        A signal handler may raise in the few steps between the loop and us.  Then it
        forgets a timer without a word, and drops the descriptor.
        """
        loop = self.loop
        squelch_timer = loop.squelch_timer_exception
        squelch = loop.squelch_exception

        def timer_failed(timer: typing.Any, exc_info: typing.Any) -> None:
            squelch_timer(timer, exc_info)
            if _was_ours(timer, exc_info[1]):
                self._struck(exc_info[1])

        def descriptor_failed(fd: int, exc_info: typing.Any) -> None:
            squelch(fd, exc_info)
            watch = self._watches.get(fd)
            if watch is not None:
                watch.renew()
                self._struck(exc_info[1])

        loop.squelch_timer_exception = timer_failed
        loop.squelch_exception = descriptor_failed

    def _struck(self, exc: BaseException) -> None:
        if not self.inherited and interrupts.struck(exc):
            self.cut_off(exc)
            self._scheduled = None
            self._schedule()

    def forked(self) -> None:
        """Part the child's eventlet loop from the parent's, whose epoll set it shares.

        The loop lives on, with the green threads that wait in it, as it does where
        eventlet is left alone.
        """
        if self.inherited:
            return  # a child's child
        ours = {watch.forget() for watch in self._watches.values()}
        self._watches.clear()
        super().forked()
        if native.eventlet_loop_inherited(self.loop):
            _renew(self.loop, ours)

    def _switch(self) -> None:
        self.loop.switch()

    def _call_soon(self, callback: Callback) -> Callback:
        timer = self.loop.schedule_call_global(0, callback)
        cancel: Callback = timer.cancel
        return cancel

    def _loop_greenlet(self) -> typing.Any:
        return self.loop.greenlet

    def watch(self, fd: int, on_readable: Callback) -> Watch:
        self.unwatch(fd)
        return _Watch(self, fd, on_readable)

    def call_at(self, instant: float, callback: Callback) -> Timer:
        delay = max(0.0, instant - self.now())
        return _Timer(
            self.loop.schedule_call_global(delay, lambda: self._wakeup(callback))
        )

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        eventlet.spawn_n(logged, function, *args)


def _renew(loop: typing.Any, without: typing.Collection[int] = ()) -> None:
    """Give `loop`, inherited by a fork, an epoll set of its own, with all descriptors
    in it but those `without`.

    What eventlet's kqueue hub does for itself, and gevent.  Those of eventlet's hubs
    that have nothing in the kernel are left as they are.
    """
    old: typing.Any = getattr(loop, "poll", None)
    if hasattr(old, "fileno"):
        loop.poll = type(old)()
        for fd in {*loop.listeners[READ], *loop.listeners[WRITE]}:
            with contextlib.suppress(OSError):  # closed, or not for epoll
                loop.register(fd, new=True)
        old.close()
    elif hasattr(loop, "loop"):
        old = loop.loop._selector
        new = loop.loop._selector = type(old)()
        for key in list(old.get_map().values()):
            if key.fd not in without:
                with contextlib.suppress(OSError):
                    new.register(key.fileobj, key.events, key.data)
        old.close()
