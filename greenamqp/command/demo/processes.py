# SPDX-License-Identifier: Apache-2.0
"""The processes of the demo, as their parent sees them.

:class:`Crew` starts processes, carries JSON lines to and from them over a socket
pair, keeps the last lines of what each printed, notices at once when one ends, and
ends them all. :func:`usage` looks at what a process holds.

Promises: no process outlives the crew's :meth:`Crew.close`; on Linux none outlives
the parent even if that is killed. No thread is used: everything is to be called
from the one thread that made the crew.
"""

import collections
import dataclasses
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Sequence

import psutil

from greenamqp.command.processes import die_with_parent

#: How many lines of a process's output are kept, to show when it fails.
_LINES_KEPT = 40

#: How long a process may take to end after SIGTERM before it is killed, seconds.
_TERMINATE_WITHIN = 5.0

_READ_SIZE = 65536

#: What goes between parent and process, in JSON.
Message = dict[str, typing.Any]


class ProcessFailed(Exception):
    """A process ended by itself when it should not have."""

    def __init__(self, process: "Process"):
        status = process.popen.returncode
        if status is None:
            how = "closed its connection to the parent"
        elif status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = f"ended with status {status}"
        super().__init__(f"process {process.name} {how}{process.tail()}")


class Process:
    """One process of a :class:`Crew`."""

    def __init__(
        self, name: str, popen: subprocess.Popen[bytes], channel: socket.socket | None
    ):
        self.name = name
        self.popen = popen
        #: Lines of its output, oldest first.
        self.lines: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        #: True once it may end.
        self.dismissed = False
        self._channel = channel
        self._heard = b""
        self._printed = b""

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        """False once it has ended and been waited for."""
        return self.popen.returncode is None

    def tell(self, message: Message) -> None:
        """Send it a JSON line. One that has ended does not hear it."""
        if self._channel is None:
            raise ValueError(f"process {self.name} has no channel")
        try:
            # Short enough for the socket's buffer, so this does not block.
            self._channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def tail(self) -> str:
        """Its last lines as text to put after a message; empty if there are none."""
        if not self.lines:
            return ""
        return "; it printed:\n" + "\n".join(f"    {line}" for line in self.lines)


class Crew:
    """A group of processes with one event loop."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.processes: list[Process] = []

    def start(
        self, name: str, arguments: Sequence[str], *, channel: bool = False
    ) -> Process:
        """Start ``python arguments...`` as the process ``name``.

        With ``channel`` its last argument will be the number of a descriptor, a
        stream socket over which it exchanges JSON lines with the parent.
        """
        ours = theirs = None
        command = [sys.executable, *arguments]
        if channel:
            ours, theirs = socket.socketpair()
            command.append(str(theirs.fileno()))
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()] if theirs is not None else [],
                # Ctrl-C is for the parent alone, which then ends the others.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError:
            if ours is not None:
                ours.close()
            raise
        finally:
            if theirs is not None:
                theirs.close()
        process = Process(name, popen, ours)
        self.processes.append(process)
        assert popen.stdout is not None
        self._selector.register(popen.stdout, selectors.EVENT_READ, (process, "out"))
        if ours is not None:
            self._selector.register(ours, selectors.EVENT_READ, (process, "channel"))
        return process

    def poll(
        self, timeout: float, on_message: Callable[[Process, Message], None]
    ) -> None:
        """Wait up to ``timeout`` seconds for something to happen and handle it.

        Calls ``on_message`` for each JSON line that came. Raises ProcessFailed if
        a process has ended that was not dismissed.
        """
        ended = []
        for key, _ in self._selector.select(timeout):
            process, kind = key.data
            if kind == "channel":
                self._hear(process, on_message)
            elif not self._read_output(process):
                ended.append(process)
        for process in ended:
            process.popen.wait()
            # What it said last may still be in its channel.
            while process._channel is not None:
                self._hear(process, on_message)
            if not process.dismissed or process.popen.returncode != 0:
                raise ProcessFailed(process)

    def _hear(
        self, process: Process, on_message: Callable[[Process, Message], None]
    ) -> None:
        channel = process._channel
        if channel is None:
            return
        try:
            data = channel.recv(_READ_SIZE)
        except ConnectionError:
            data = b""
        if not data:
            self._selector.unregister(channel)
            channel.close()
            process._channel = None
            return
        *lines, process._heard = (process._heard + data).split(b"\n")
        for line in lines:
            on_message(process, json.loads(line))

    def _read_output(self, process: Process) -> bool:
        """Keep what it printed. False if it closed its output, as it ended."""
        output = process.popen.stdout
        assert output is not None
        data = os.read(output.fileno(), _READ_SIZE)
        if not data:
            self._selector.unregister(output)
            output.close()
            lines = [process._printed] if process._printed else []
        else:
            *lines, process._printed = (process._printed + data).split(b"\n")
        process.lines.extend(line.decode(errors="replace") for line in lines)
        return bool(data)

    def close(self) -> None:
        """End all processes that still run, and wait until they have ended."""
        running = [p for p in self.processes if p.popen.poll() is None]
        for process in running:
            process.dismissed = True
            process.popen.terminate()
        deadline = time.monotonic() + _TERMINATE_WITHIN
        for process in running:
            try:
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        for process in self.processes:
            if process._channel is not None:
                process._channel.close()
                process._channel = None
            if process.popen.stdout is not None:
                process.popen.stdout.close()
        self._selector.close()


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a process holds at one moment."""

    threads: int
    fds: int
    #: Established TCP connections to (or, for the broker, from) the bus.
    connections: int
    #: Resident memory, bytes.
    memory: int
    #: CPU time used so far, seconds.
    cpu: float

    def most(self, other: "Usage | None") -> "Usage":
        """The larger of each figure."""
        if other is None:
            return self
        return Usage(
            *(
                max(pair)
                for pair in zip(
                    dataclasses.astuple(self), dataclasses.astuple(other), strict=True
                )
            )
        )


def usage(pid: int, ports: frozenset[int], *, local: bool = False) -> Usage | None:
    """Look at a process; None where it has ended.

    ``ports`` are the bus's: a connection counts if its remote port (its own port
    with ``local``) is one of them.
    """
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            connections = [
                each.laddr if local else each.raddr
                for each in process.net_connections("tcp")
                if each.status == psutil.CONN_ESTABLISHED
            ]
            return Usage(
                threads=process.num_threads(),
                fds=process.num_fds(),
                connections=sum(each.port in ports for each in connections),
                memory=process.memory_info().rss,
                cpu=sum(process.cpu_times()[:2]),
            )
    except psutil.Error:
        return None
