# SPDX-License-Identifier: Apache-2.0
"""Log records leave where handlers may take their time, and may send.

A logging handler is code of the application's that runs within each call to log.  It
may take a lock that another thread holds while it waits for the message bus, and it
may send what it gets, as oslo.messaging's LoggingNotificationHandler does.  Neither is
possible within the hub's context or under its lock, where most of our records are
made: it would wait for itself.  So

* records that are made there are kept, and handed to the handlers in order, in a thread
  or green thread of their own; those that come after them queue up behind;
* a record that is made while another is being sent, about that, is not sent again: a
  notification that a handler sends of it goes nowhere.

The filter that does this sits on each of our loggers: those of applications and other
libraries are left alone.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import contextvars
import logging
import sys
import time
import typing
import weakref

from greenamqp.hubs import native

# More records than this do not wait: the rest is lost, with its number told.
MAX_WAITING = 1000


def printable(text: str) -> str:
    """`text`, which a peer chose, for a log line: with escapes for what would begin
    another line, or tell a terminal what to do."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class Hub(typing.Protocol):
    """What is asked of a hub."""

    @property
    def in_use(self) -> bool:
        """Whether it runs for somebody."""

    def may_log(self) -> bool:
        """Whether handlers may run here: not within the hub's context or lock."""

    def call_inside(self, callback: typing.Callable[[], None]) -> None:
        """Run it in the hub's context, soon."""

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        """Run it where it may block."""


#: Whether what this thread or green thread logs is to be sent by no handler.
_muted: contextvars.ContextVar[bool] = contextvars.ContextVar("muted", default=False)

_CALL_HANDLERS = logging.Logger.callHandlers.__code__


def is_muted() -> bool:
    """Whether the record that the calling thread sends is about sending one."""
    return _muted.get()


def in_handler() -> bool:
    """Whether a logging handler is what calls.  Takes some time."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL_HANDLERS:
            return True
        frame = typing.cast(typing.Any, frame.f_back)
    return False


@contextlib.contextmanager
def muted() -> typing.Iterator[None]:
    """Within this, what the calling thread logs is not sent."""
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


class _Outside(logging.Filter):
    """Has the records of our loggers leave outside of all hubs."""

    def __init__(self) -> None:
        super().__init__()
        self.hubs: weakref.WeakSet[Hub] = weakref.WeakSet()
        # Each with whether it is about sending another.
        self._waiting: collections.deque[tuple[logging.LogRecord, bool]] = (
            collections.deque()
        )
        self._lost = 0
        self._prepare()

    def _prepare(self) -> None:
        # Held by whoever hands records to handlers.  A real one, never waited for.
        self._drains = native.original("_thread", "allocate_lock")()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is handled in place."""
        hub = next((hub for hub in self.hubs if not hub.may_log()), None)
        about_another = is_muted() or in_handler()
        if hub is None and not self._waiting:
            if about_another:
                self._emit(record, True)
            return not about_another
        if hub is not None and not hub.in_use:
            return True  # it runs no more
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            return False
        # What its arguments say may be another thing later.
        record.msg, record.args = record.getMessage(), None
        self._waiting.append((record, about_another))
        if hub is not None:
            hub.call_inside(lambda: hub.spawn(self.drain))
        else:
            self.drain()  # who did may have been interrupted by a signal handler
        return False

    def _emit(self, record: logging.LogRecord, about_another: bool) -> None:
        with muted() if about_another else contextlib.nullcontext():
            logging.getLogger(record.name).callHandlers(record)

    def drain(self) -> None:
        """Hand over what waits.  Where handlers may wait."""
        while self._waiting:
            if not self._drains.acquire(False):
                return  # whoever does sees it
            try:
                while self._waiting:
                    try:
                        self._emit(*self._waiting[0])
                    finally:
                        self._waiting.popleft()
                    # Who waits for the handler's lock has its turn, or would wait for
                    # as long as there are records.
                    time.sleep(0)
                lost, self._lost = self._lost, 0
            finally:
                self._drains.release()
            if lost:
                logging.getLogger(__name__).warning(
                    "%s log records were lost: their handlers were too slow", lost
                )

    def waiting(self) -> bool:
        """Whether a handler has not had all yet."""
        return bool(self._waiting)

    def forked(self) -> None:
        """In a child: the parent emits them."""
        self._prepare()
        self._waiting.clear()


_outside = _Outside()

#: Hand over all that waits, where handlers may wait.
drain = _outside.drain

#: Whether some of what was logged waits to be handed over.
waiting = _outside.waiting

#: For :mod:`greenamqp.fork`.
forked = _outside.forked


def watch(hub: Hub) -> None:
    """Have no record leave within this hub."""
    _outside.hubs.add(hub)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith("greenamqp.") and isinstance(logger, logging.Logger):
            logger.addFilter(_outside)  # once only, however often it is called


atexit.register(drain)
