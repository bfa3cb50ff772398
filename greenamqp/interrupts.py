# SPDX-License-Identifier: Apache-2.0
"""Exceptions that signal handlers raise.

A handler runs between two instructions of whatever the main thread does.  What it
raises, a soft time limit say, goes up from there as if that code had raised it.  Where
it strikes code that moves bytes or dispatches events, two things are to be done that
nobody does for an ordinary bug: nobody knows what was done by then, so what is half
done has to be given up; and the exception is meant for who is being served, so it must
go on to there.
"""

from __future__ import annotations

import functools
import signal
import types
import typing


def struck(exc: BaseException) -> bool:
    """Whether `exc` came from outside of the code that it came up through: it is none
    that a bug is told by, or a signal handler raised it.  For the unlikely case only,
    as it takes some time."""
    if not isinstance(exc, Exception):
        return True
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()}
    codes.discard(None)
    traceback = exc.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False


def _code(handler: typing.Any) -> types.CodeType | None:
    """What a handler that is written in Python runs."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if handler is None or isinstance(handler, int):
        return None  # none, or the system's
    handler = getattr(handler, "__func__", handler)
    if not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)
