# SPDX-License-Identifier: Apache-2.0
"""gevent's hub.  Imported only in a process that uses gevent."""

from __future__ import annotations

import typing

import gevent
from gevent.hub import get_hub

from greenamqp.hubs.base import Callback, Timer, Watch, logged
from greenamqp.hubs.green import GreenHub

_READ, _WRITE = 1, 2  # libev's and libuv's event bits, as gevent documents them


class _Timer(Timer):
    __slots__ = ("_timer",)

    def __init__(self, timer: typing.Any) -> None:
        self._timer = timer

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None


class _Watch(Watch):
    __slots__ = ("_fd", "_hub", "_reader", "_writer")

    def __init__(self, hub: GeventHub, fd: int, on_readable: Callback) -> None:
        self._hub = hub
        self._fd = fd
        # Both are known before they start: libev ends the process if one of a closed
        # descriptor has started.
        self._writer: typing.Any = None
        self._reader: typing.Any = hub.hub.loop.io(fd, _READ)
        hub._watches[fd] = self
        self._reader.start(hub._wakeup, on_readable)

    def want_write(self, on_writable: Callback | None) -> None:
        if self._writer is not None:
            self._writer.stop()
            self._writer.close()
            self._writer = None
        if on_writable is not None:
            self._writer = self._hub.hub.loop.io(self._fd, _WRITE)
            self._writer.start(self._hub._wakeup, on_writable)

    def close(self) -> None:
        if self._reader is not None:
            self.want_write(None)
            self._reader.stop()
            self._reader.close()
            self._reader = None
            if self._hub._watches.get(self._fd) is self:
                del self._hub._watches[self._fd]


class GeventHub(GreenHub):
    """Lives in the gevent hub of the native thread that made it."""

    name = "gevent"

    def __init__(self) -> None:
        super().__init__()
        self.hub = get_hub()

    def _let_go(self) -> None:
        """gevent makes its loop anew after a fork and puts every watch into the new
        one, ours of the parent's sockets included: they are stopped, but not before
        that has happened, as before they would be stopped in the parent's loop."""
        if self._get_ident() == self._thread:
            self.hub.loop.run_callback(self._let_go_of_watches)
        else:
            super()._let_go()

    def _let_go_of_watches(self) -> None:
        for watch in list(self._watches.values()):
            watch.close()
        super()._let_go()

    def _switch(self) -> None:
        self.hub.switch()

    def _call_soon(self, callback: Callback) -> Callback:
        stop: Callback = self.hub.loop.run_callback(callback).stop
        return stop

    def _loop_greenlet(self) -> typing.Any:
        return self.hub

    def watch(self, fd: int, on_readable: Callback) -> Watch:
        self.unwatch(fd)
        return _Watch(self, fd, on_readable)

    def call_at(self, instant: float, callback: Callback) -> Timer:
        timer = self.hub.loop.timer(max(0.0, instant - self.now()))
        handle = _Timer(timer)

        def run() -> None:
            handle.cancel()
            self._wakeup(callback)

        # update: gevent's idea of "now" is as old as the loop's last turn.
        timer.start(run, update=True)
        return handle

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        gevent.spawn(logged, function, *args)
