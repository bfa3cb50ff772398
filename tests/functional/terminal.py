# SPDX-License-Identifier: Apache-2.0
"""A program in a terminal, as a person has it: what it shows, and keys."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios

import pytest

from tests.functional import buses

#: Seconds, for what takes much less.
_LIMIT = 60

_COLOURS = re.compile(rb"\x1b\[[\d;]*m")

CTRL_C = b"\x03"


class Terminal:
    """Starts a program in a terminal of its own.  Use it as a context manager; skips
    the test where the system has no terminals.

    :ivar shown: all that it has written so far
    """

    def __init__(self, arguments: list[str]) -> None:
        try:
            self._ours, theirs = pty.openpty()
        except OSError as exc:
            pytest.skip(f"this system gives no terminal: {exc}")
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 160, 0, 0))
        self.shown = b""
        self._process = subprocess.Popen(
            arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=buses.ROOT,
            env=os.environ | {"TERM": "xterm-256color"},
            preexec_fn=self._take_over,
        )
        os.close(theirs)

    @staticmethod
    def _take_over() -> None:
        """In the child: keys are for it."""
        buses.die_with_parent()
        os.setsid()
        # What a shell runs in the background ignores it, and so do its children.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def wait_for(self, pattern: str, times: int = 1) -> None:
        """Until what it shows, colours aside, has had that so often."""
        sought = re.compile(pattern.encode())
        while len(sought.findall(_COLOURS.sub(b"", self.shown))) < times:
            assert select.select([self._ours], [], [], _LIMIT)[0], self.shown
            self.shown += os.read(self._ours, 65536)

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self) -> int:
        """Wait until it has ended; returns its exit status."""
        with contextlib.suppress(OSError):  # when it has ended
            # It may have more to say than a terminal holds.
            while more := os.read(self._ours, 65536):
                self.shown += more
        return self._process.wait(_LIMIT)
