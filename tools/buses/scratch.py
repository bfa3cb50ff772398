# SPDX-License-Identifier: Apache-2.0
"""The scratch folder: where buses are installed, run and remembered.

    software/   what was installed, shared by all instances and kept
    run/        one folder per running instance, gone when it stops
    state.json  which instances there are, their ports and processes

The state file is read and written under a lock, so that several processes may
start and stop buses in the same scratch folder at once.  A process is known by
its id together with its start time, because ids are used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import BusError

ENV_SCRATCH = "GREENAMQP_BUSES_DIR"

#: Below the range from which systems take ports for outgoing connections
#: (32768 and up): a broker that was killed must get its port back.
_PORTS = range(20000, 32000)

#: How often conditions are looked at while waiting, in seconds.
POLL_INTERVAL = 0.1


def default_scratch() -> Path:
    """The folder named by GREENAMQP_BUSES_DIR, or one below the temp folder."""
    named = os.environ.get(ENV_SCRATCH)
    if named:
        return Path(named).absolute()
    return Path(tempfile.gettempdir()) / f"greenamqp-buses-{os.getuid()}"


def _stat(pid: int | str) -> list[str]:
    """What the kernel tells of a process, from its state on; of none, nothing."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _start_time(pid: int) -> str | None:
    """The kernel's start time of a live process, None for none or a zombie."""
    fields = _stat(pid)
    return None if not fields or fields[0] in ("Z", "X") else fields[19]


class Process:
    """A process group that was started here, maybe by another process.

    Its leader's id is the group's id; both are remembered in the state file.
    """

    def __init__(self, pid: int, started: str | None) -> None:
        self.pid = pid
        self.started = started

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        root: Path | None = None,
        cwd: Path | str | None = None,
    ) -> Process:
        """Start *argv* in a session of its own, its output appended to *log*.

        With *root* it runs with that folder as its root (needs to be root).
        """
        if root is not None:
            argv = ("chroot", str(root), *argv)
        with log.open("ab") as output:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        return cls(child.pid, _start_time(child.pid))

    def alive(self) -> bool:
        """Whether the group's leader still runs."""
        # Reap it where it is a child of ours; else init does.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return self.started is not None and _start_time(self.pid) == self.started

    def cpu(self) -> float:
        """CPU seconds that the live processes of the group used, in steps of the
        kernel's clock tick."""
        ticks = sum(int(one[11]) + int(one[12]) for one in self._members())
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes of resident memory of the live processes of the group."""
        pages = sum(int(one[21]) for one in self._members())
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _members(self) -> Iterator[list[str]]:
        """What the kernel tells of each live process of the group."""
        for folder in Path("/proc").glob("[0-9]*"):
            fields = _stat(folder.name)
            if fields and int(fields[2]) == self.pid:
                yield fields

    def signal(self, number: int) -> None:
        """Send a signal to the whole group, if its leader still runs."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def wait_gone(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds for the end; whether it came."""
        return wait_for(lambda: not self.alive(), timeout)

    def kill(self) -> None:
        """SIGKILL to the whole group, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if not self.wait_gone(30):
            raise BusError(f"process {self.pid} does not die")

    def terminate(self, timeout: float) -> None:
        """SIGTERM, and SIGKILL for what is left after *timeout* seconds."""
        self.signal(signal.SIGTERM)
        if not self.wait_gone(timeout):
            self.kill()


def wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll *condition* for up to *timeout* seconds; what it said last."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True


class Scratch:
    """A scratch folder and its state file."""

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder).absolute() if folder else default_scratch()
        self.software = self.folder / "software"
        self.run = self.folder / "run"

    @contextlib.contextmanager
    def lock(self, name: str = "state") -> Iterator[None]:
        """Hold a lock of this folder against all other processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        """The instances by name, to read and change; written back at the end."""
        path = self.folder / "state.json"
        with self.lock():
            try:
                before = path.read_text()
            except FileNotFoundError:
                before = "{}"
            state = json.loads(before)
            yield state
            after = json.dumps(state, indent=1)
            if after != before:
                new = path.with_suffix(".new")
                new.write_text(after)
                new.replace(path)

    def free_ports(self, count: int, taken: set[int]) -> list[int]:
        """*count* loopback ports that nobody listens on, none of *taken*."""
        found: list[int] = []
        candidates = random.sample(_PORTS, len(_PORTS))
        for port in candidates:
            if len(found) == count:
                return found
            if port in taken:
                continue
            with socket.socket() as sock:
                # As a broker would bind it: ports in TIME_WAIT do not matter.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind(("127.0.0.1", port))
                except OSError:
                    continue
            found.append(port)
        raise BusError("no free port on the loopback interface")
