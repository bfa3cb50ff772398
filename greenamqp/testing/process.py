# SPDX-License-Identifier: Apache-2.0
"""The embedded broker in a process of its own, as :class:`BrokerProcess`.

The two processes talk by lines, each a Python literal: what Broker is made with, or
what is to be called, an empty one for the end; and back what came of it.  The child
also ends when its standard input does, so that none is left behind, whatever becomes of
the parent.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import typing

from greenamqp.broker import Broker, Settings


class BrokerProcess:
    """As :class:`greenamqp.broker.Broker`, in a process of its own.

    For a test that blocks, forks or ends processes, and must not have its bus in the
    way.  One thread at a time may use it.

    :param host: name or address to listen on
    :param port: 0 picks a free one
    :param fields: fields of :class:`greenamqp.broker.Settings`
    :raises ValueError: naming a setting whose value is not allowed
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, **fields: typing.Any
    ) -> None:
        Settings(**fields)
        self.host = host
        self.port = port
        self._fields = fields
        self._process: subprocess.Popen[str] | None = None
        #: The transport URL, without user and password, once it was started.
        self.url = ""

    def start(self) -> BrokerProcess:
        """Listen and serve; returns itself.

        :raises RuntimeError: if it cannot, with the reason
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "greenamqp.testing.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                self.port, self.url = self._ask(
                    {"host": self.host, "port": self.port, **self._fields}
                )
            except BaseException:
                self.kill()
                raise
        return self

    def stop(self) -> None:
        """Close all connections in order, then end.  Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            # A child of this process may have the pipe, too, and not end before us.
            process.communicate("\n")

    def kill(self) -> None:
        """End it without a word (SIGKILL); it may be started again on its port."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> BrokerProcess:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def depth(self, address: str, virtual_host: str = "") -> int:
        """See :meth:`greenamqp.broker.Broker.depth`."""
        return int(self._ask(("depth", address, virtual_host)))

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return int(self._ask(("connections",)))

    def drop_connections(self) -> int:
        """Cut all connections without a word; returns how many."""
        return int(self._ask(("drop_connections",)))

    def _ask(self, what: object) -> typing.Any:
        """:raises RuntimeError: it failed, or does not run; says why"""
        process = self._process
        if process is None:
            raise RuntimeError("the broker was not started, or is stopped")
        assert process.stdin is not None and process.stdout is not None
        try:
            print(repr(what), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"the broker's process ended: {process.wait()}")
        value, error = ast.literal_eval(answer)
        if error:
            raise RuntimeError(f"the broker: {error}")
        return value


def _answer(value: object, error: str = "") -> None:
    print(repr((value, error)), flush=True)


def main() -> int:
    """The child: serve until standard input ends."""
    try:
        broker = Broker(hub="threads", **ast.literal_eval(sys.stdin.readline()))
        broker.start()
    except Exception as exc:
        _answer(None, f"{type(exc).__name__}: {exc}")
        return 1
    with broker:
        _answer((broker.port, broker.url))
        for line in sys.stdin:
            if line == "\n":
                break
            name, *arguments = ast.literal_eval(line)
            found = getattr(broker, name)
            _answer(found(*arguments) if callable(found) else found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
