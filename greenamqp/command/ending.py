# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT as the end of a command: of one that serves by what it is told,
of any other by KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import signal
import sys
import typing

# After so long an interrupt that was lost is tried again: elsewhere then.  Seconds.
_MOMENT = 0.01


@contextlib.contextmanager
def interrupted_by(number: int) -> typing.Iterator[None]:
    """Meanwhile this signal raises KeyboardInterrupt in the main thread, which is to be
    the caller's.  It takes SIGALRM as well.

    What is raised while C code calls back, as proton does while one of its objects is
    made or taken apart, Python ignores: then it is raised anew, a moment later.
    """
    before = {
        each: signal.signal(each, _interrupt) for each in (number, signal.SIGALRM)
    }
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)


def _interrupt(number: int, frame: object) -> typing.NoReturn:
    sys.unraisablehook = _ignored
    raise KeyboardInterrupt


def _ignored(what: sys.UnraisableHookArgs) -> None:
    # Of anything else nothing is said amid the last words of the command: an object of
    # proton's that was struck while it was made cannot be taken apart.
    if what.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _MOMENT)


class Ending:
    """Takes both signals from now on.  To be made in the main thread.

    :param tell: called when one comes, between any two instructions of that thread
    :ivar status: what the command is to return: 0 after SIGTERM, 130 after SIGINT
    """

    def __init__(self, tell: typing.Callable[[], object]) -> None:
        self.status = 0
        self._tell = tell
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._came)

    def _came(self, number: int, frame: object) -> None:
        if number == signal.SIGINT:
            self.status = 130
        self._tell()
