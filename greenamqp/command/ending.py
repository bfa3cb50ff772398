# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT as the end of a command that serves."""

from __future__ import annotations

import signal
import typing


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
