# SPDX-License-Identifier: Apache-2.0
"""Starting, talking to and stopping the processes of a benchmark."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import subprocess
import tempfile
import typing

from greenamqp.command.processes import cpu_seconds, die_with_parent, stat

WORKER = pathlib.Path(__file__).parent / "worker"

#: Seconds that a worker may take for an answer.  Far more than any does: who takes
#: longer hangs.
PATIENCE = 300.0


class WorkerFailed(Exception):
    """A worker ended, hangs, or says that it cannot do what it is told."""


class Process:
    """A child process whose standard error output is kept in a file, and which is
    gone when the ``with`` ends."""

    def __init__(
        self, command: typing.Sequence[str], name: str, environment: dict[str, str]
    ) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **environment},
            # Not the project's folder: its metadata would make every side find this
            # driver.
            cwd=tempfile.gettempdir(),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._buffer = b""

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.popen.pid

    def line(self, patience: float = PATIENCE) -> str:
        """The next line of its standard output.

        :raises WorkerFailed: if none comes in time
        """
        stdout = self.popen.stdout
        assert stdout is not None
        poll = select.poll()
        poll.register(stdout.fileno(), select.POLLIN)
        while b"\n" not in self._buffer:
            if not poll.poll(patience * 1000):
                raise WorkerFailed(f"{self.name} hangs\n{self.errors()}")
            data = os.read(stdout.fileno(), 1 << 20)
            if not data:
                self.popen.wait(10)
                raise WorkerFailed(
                    f"{self.name} ended with code {self.popen.returncode}\n"
                    f"{self.errors()}"
                )
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def errors(self) -> str:
        """The end of what it wrote to its standard error output."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 4000))
        return self._errors.read().decode(errors="replace")

    def cpu(self) -> float:
        """CPU seconds it used, from outside; in steps of the kernel's clock tick."""
        return cpu_seconds(stat(self.pid))

    def memory(self) -> int:
        """Bytes of resident memory, from outside."""
        text = pathlib.Path(f"/proc/{self.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """Ask it to end, and see to it."""
        assert self.popen.stdin is not None and self.popen.stdout is not None
        try:
            self.popen.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.ask_to_end()
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            # Its whole session: what it started goes with it.
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
        self.popen.stdout.close()
        self._errors.close()

    def ask_to_end(self) -> None:
        """The end of its standard input is enough."""


class Bus(Process):
    """The embedded broker in a process of its own."""

    def __init__(self, command: typing.Sequence[str]) -> None:
        super().__init__(command, "the broker", {})
        # Its first line ends with the port or the URL that it listens at.
        self.announced = self.line(60).strip()

    def ask_to_end(self) -> None:
        """It knows no better way."""
        self.popen.terminate()


class Worker(Process):
    """A client or server of one side.

    :param under: a command that runs it: ``python ...`` comes after it
    """

    def __init__(
        self,
        python: str,
        role: str,
        side: dict[str, typing.Any],
        plan: dict[str, typing.Any],
        name: str,
        under: typing.Sequence[str] = (),
    ) -> None:
        # Hash seeds differ from process to process and move figures by a few percent.
        super().__init__(
            [*under, python, str(WORKER), role, json.dumps(side), json.dumps(plan)],
            f"{name} {role}",
            {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"},
        )
        self.ready: dict[str, typing.Any] = {}

    def wait_ready(self) -> dict[str, typing.Any]:
        """Its first answer."""
        self.ready = self.answer()
        return self.ready

    def send(self, do: str, **arguments: typing.Any) -> None:
        """A command; `answer` gives what comes of it."""
        stdin = self.popen.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(f"{self.name} is gone\n{self.errors()}") from None

    def answer(self, patience: float = PATIENCE) -> dict[str, typing.Any]:
        """The next answer."""
        answer = json.loads(self.line(patience))
        if "error" in answer:
            raise WorkerFailed(f"{self.name}: {answer['error']}\n{self.errors()}")
        return answer

    def ask(self, do: str, **arguments: typing.Any) -> dict[str, typing.Any]:
        """A command and its answer."""
        self.send(do, **arguments)
        return self.answer()
