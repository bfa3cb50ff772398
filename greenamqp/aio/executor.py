# SPDX-License-Identifier: Apache-2.0
"""The executor of coroutines: a task for each batch, so many at a time."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import typing

from oslo_messaging._drivers import base

from greenamqp.executor import PoolExecutor, _Entry
from greenamqp.hubs.coroutines import CoroutineHub

LOG = logging.getLogger(__name__)


class TaskExecutor(PoolExecutor):
    """As :class:`greenamqp.executor.PoolExecutor`, with tasks for workers: dispatch
    functions are coroutine functions.

    What finds no task waits in its listener, and holds that one's credit.  Each task
    has a copy of the context in which the executor was made.
    """

    hub: CoroutineHub

    def __init__(self, hub: CoroutineHub, size: int) -> None:
        super().__init__(hub, size)
        self._context = contextvars.copy_context()

    def _engage(self) -> None:
        if not self._coming:
            self._coming = True
            self.hub.event_loop.call_soon(self._begin, context=self._context)

    def _begin(self) -> None:
        """Begin as many tasks as there are batches, and may be tasks."""
        self._coming = False
        hub = self.hub
        while self._running and self._active < self._size:
            with hub.lock:
                entry = self._next()
            if entry is None:
                return
            if entry.removed:
                continue
            messages, more = entry.listener.take()
            if more:
                with hub.lock:
                    self._has_messages(entry)
            if messages:
                entry.active += 1
                self._at_work += 1
                self._active += 1
                context = self._context.copy()
                task = hub.event_loop.create_task(
                    self._run(entry, messages), context=context
                )
                self._workers[task] = entry
                # What is cancelled before it began runs nothing of its own.
                done = functools.partial(self._done, entry, messages)
                task.add_done_callback(done, context=context)

    async def _run(self, entry: _Entry, messages: list[base.IncomingMessage]) -> None:
        dispatch = typing.cast(
            typing.Callable[[list[base.IncomingMessage]], typing.Awaitable[object]],
            entry.dispatch,
        )
        try:
            await dispatch(messages)
        except Exception:
            LOG.exception("a dispatch function failed")

    def _done(
        self,
        entry: _Entry,
        messages: list[base.IncomingMessage],
        task: asyncio.Task[None],
    ) -> None:
        if task.cancelled():
            for message in messages:  # but for what is settled already
                message.requeue()
        del self._workers[task]
        entry.active -= 1
        self._at_work -= 1
        self._active -= 1
        if self._ready:
            self._engage()
        if self._waiters:
            with self.hub.lock:
                self._wake_waiters()
