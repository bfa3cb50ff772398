# SPDX-License-Identifier: Apache-2.0
"""eventlet's hub.  Imported only in a process that uses eventlet.

Works with each of eventlet's own hubs, ``EVENTLET_HUB=asyncio`` included: only
``add``, ``remove``, ``schedule_call_global`` and ``switch`` of eventlet's BaseHub
are called.
"""

from __future__ import annotations

import os
import sys
import typing
import weakref

import eventlet
from eventlet import hubs as eventlet_hubs
from eventlet.hubs.hub import READ, WRITE

from greenamqp.hubs.base import Callback, Timer, Watch
from greenamqp.hubs.green import GreenHub, logged


class _Timer(Timer):
    __slots__ = ("_timer",)

    def __init__(self, timer: typing.Any) -> None:
        self._timer = timer

    def cancel(self) -> None:
        if not self._timer.called:
            self._timer.cancel()


class _Watch(Watch):
    __slots__ = ("_fd", "_hub", "_reader", "_writer")

    def __init__(self, hub: EventletHub, fd: int, on_readable: Callback) -> None:
        self._hub = hub
        self._fd = fd

        def readable(_fd: int) -> None:
            # eventlet's loop calls all that is due, also what was removed meanwhile.
            if self._reader is not None:
                hub._wakeup(on_readable)

        # The listener stays until removed: no epoll_ctl per wait.
        self._reader: typing.Any = hub.loop.add(READ, fd, readable, _throwback, None)
        self._writer: typing.Any = None

    def want_write(self, on_writable: Callback | None) -> None:
        loop = self._hub.loop
        if self._writer is not None:
            loop.remove(self._writer)
            self._writer = None
        if on_writable is not None:
            hub, callback = self._hub, on_writable

            def writable(_fd: int) -> None:
                if self._writer is writer:
                    hub._wakeup(callback)

            self._writer = writer = loop.add(
                WRITE, self._fd, writable, _throwback, None
            )

    def close(self) -> None:
        if self._reader is not None:
            self.want_write(None)
            self._hub.loop.remove(self._reader)
            self._reader = None


def _throwback(*_error: object) -> None:
    """eventlet tells that the fd was closed behind our back: the next read fails."""


class EventletHub(GreenHub):
    """Lives in the eventlet hub of the native thread that made it."""

    name = "eventlet"

    def __init__(self) -> None:
        super().__init__()
        self.loop = eventlet_hubs.get_hub()
        if hasattr(self.loop, "loop"):
            # After eventlet's own hook, which in a child names the parent's asyncio
            # loop as the one that runs: the order is that of registration.
            running = weakref.ref(self.loop.loop)
            os.register_at_fork(after_in_child=lambda: _stop_running(running))

    def forked(self) -> None:
        """Give the child an eventlet hub of its own, if it has inherited ours.

        Eventlet goes on with the parent's epoll set, in which the parent's sockets
        are, and with its timers.  The recipe is eventlet's and oslo.service's: the
        old hub is left as it is, with the green threads that wait in it, and the next
        wait of the child makes another.
        """
        if self.inherited:
            return  # a child's child
        super().forked()
        if self._get_ident() == self._thread and eventlet_hubs.get_hub() is self.loop:
            kind = type(self.loop)
            module = sys.modules[kind.__module__]
            eventlet_hubs.use_hub(module if module.Hub is kind else kind)

    def _switch(self) -> None:
        self.loop.switch()

    def _call_soon(self, callback: Callback) -> None:
        self.loop.schedule_call_global(0, callback)

    def watch(self, fd: int, on_readable: Callback) -> Watch:
        return _Watch(self, fd, on_readable)

    def call_at(self, instant: float, callback: Callback) -> Timer:
        delay = max(0.0, instant - self.now())
        return _Timer(
            self.loop.schedule_call_global(delay, lambda: self._wakeup(callback))
        )

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        eventlet.spawn_n(logged, function, *args)


def _stop_running(reference: weakref.ref[typing.Any]) -> None:
    """In a child: the asyncio loop beneath eventlet's inherited hub does not run."""
    import asyncio.events

    if asyncio.events._get_running_loop() is reference():
        asyncio.events._set_running_loop(None)

