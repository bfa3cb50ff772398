# SPDX-License-Identifier: Apache-2.0
"""How a worker talks with the benchmark that started it: one JSON object per line.

Commands come by the standard input, answers go to what was the standard output when
the worker started; what anything else prints goes to the standard error output.
"""

import json
import os
import threading


class Control:
    """Commands in, answers out.  One reader at a time.

    :param hub: how to wait for a command without stopping the rest of the process:
        ``eventlet``, ``gevent``, or anything else for a wait of the calling thread
    """

    def __init__(self, hub):
        self._hub = hub
        self._buffer = b""
        self._in = os.dup(0)
        self._out = os.dup(1)
        os.dup2(2, 1)
        # A library that reads the standard input must not take our commands.
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)

    def answer(self, **values):
        """Send one answer.  It is short enough, or is read at once: this may block."""
        data = json.dumps(values).encode() + b"\n"
        while data:
            data = data[os.write(self._out, data) :]

    def read(self):
        """The next command; None when the benchmark is gone."""
        while b"\n" not in self._buffer:
            self._wait()
            data = os.read(self._in, 65536)
            if not data:
                return None
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def _wait(self):
        if self._hub == "eventlet":
            from eventlet import hubs

            hubs.trampoline(self._in, read=True)
        elif self._hub == "gevent":
            from gevent import socket

            socket.wait_read(self._in)

    def fileno(self):
        """Readable when a command has come."""
        return self._in

    def serve(self, handlers):
        """Answer commands with what ``handlers[command](**arguments)`` returns, a
        dict; until the end of the input."""
        while not self.serve_one(handlers):
            pass

    def serve_one(self, handlers):
        """Answer the next command; returns whether there is none any more."""
        command = self.read()
        if command is None:
            return True
        name = command.pop("do")
        try:
            self.answer(**handlers[name](**command))
        except Exception as exc:
            self.answer(error=f"{name}: {type(exc).__name__}: {exc}")
        return False

    def serve_in_thread(self, handlers, at_end):
        """As `serve`, in a thread of its own; then call `at_end`."""

        def run():
            self.serve(handlers)
            at_end()

        threading.Thread(target=run, name="control", daemon=True).start()
