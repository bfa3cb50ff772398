# SPDX-License-Identifier: Apache-2.0
"""Processes that are forked from one that has imported what they need.

Most of what a short test in a process of its own costs would be its imports.  For each
world there is one process, started when it is first asked for, that patches itself,
imports, and then only forks: it has no thread, no hub and no connection.

    python -m tests.functional.world WORLD tests.functional.nursery FD
"""

from __future__ import annotations

import _socket
import array
import atexit
import contextlib
import faulthandler
import importlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import warnings
from typing import IO, Any

from greenamqp.command.processes import die_with_parent
from greenamqp.hubs import native
from tests.functional import buses, world

# Bytes: of a request at most, and of each number that is told.
_MOST, _NUMBER = 65536, 16


class Child:
    """A process that a nursery forked, in a session of its own.

    :ivar stdin: text, by lines
    :ivar stdout: text
    :ivar stderr: a file, to be read at the end
    :ivar returncode: None: nobody has waited for its end
    """

    def __init__(self, nursery: socket.socket, request: dict[str, Any]) -> None:
        theirs, stdin = os.pipe()
        stdout, out = os.pipe()
        self._status, status = os.pipe()
        self.stderr: IO[str] = tempfile.TemporaryFile("w+")
        given = [theirs, out, self.stderr.fileno(), status]
        socket.send_fds(nursery, [json.dumps(request).encode()], given)
        for fd in (theirs, out, status):
            os.close(fd)
        self.stdin = open(stdin, "w", buffering=1)
        self.stdout = open(stdout)
        self.returncode: int | None = None
        self.pid = self._told(None)

    def _told(self, timeout: float | None) -> int:
        if not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return int(os.read(self._status, _NUMBER))

    def wait(self, timeout: float | None = None) -> int:
        """As subprocess.Popen's."""
        if self.returncode is None:
            self.returncode = self._told(timeout)
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To it alone, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def close(self) -> None:
        """Close all files, once it has ended."""
        with contextlib.suppress(OSError):
            self.stdin.close()
        self.stdout.close()
        self.stderr.close()


_nurseries: dict[tuple[str, str], socket.socket] = {}


def fork(
    world_name: str, function: str, python: str = sys.executable, **params: Any
) -> Child:
    """A process of this world that calls `function`, "module:name", with `params`.  For
    tests, which have one thread that calls this.

    :param python: which interpreter, and so with what is installed there
    """
    nursery = (python, world_name)
    if nursery not in _nurseries:
        _nurseries[nursery] = _start(*nursery)
    request = {"function": function, "params": params}
    return Child(_nurseries[nursery], request)


def _start(python: str, world_name: str) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = str(theirs.fileno())
    process = subprocess.Popen(
        [
            *(python, "-m", "tests.functional.world", world_name),
            *("tests.functional.nursery", fd),
        ],
        env=buses.plain_environment() | {"PYTHONUNBUFFERED": "1"},
        cwd=buses.ROOT,
        pass_fds=[theirs.fileno()],
        preexec_fn=die_with_parent,
        start_new_session=True,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def serve(fd: int) -> None:
    """Fork for each request of the socket.  Returns in the children, when the function
    has, and at the end of the socket."""
    if world.current() == "threads":
        # As a service there does, before it imports anything else.
        from oslo_service import backend

        backend.init_backend(backend.BackendType.THREADING)
    from oslo_messaging import conffixture  # noqa: F401

    import greenamqp.driver  # noqa: F401

    fork = native.original("os", "fork")
    waitpid = native.original("os", "waitpid")
    requests = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
    while True:
        text, fds = _received(requests)
        if not text:
            break
        request = json.loads(text)
        module, _, name = request["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        if fork():
            for each in fds:
                os.close(each)
            with contextlib.suppress(ChildProcessError):
                while waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        # One process more, to say how the other one ends.
        requests.close()
        *standard, status = fds
        die_with_parent()
        child = fork()
        if child:
            for each in standard:
                os.close(each)
            _tell(status, child)
            _tell(status, os.waitstatus_to_exitcode(waitpid(child, 0)[1]))
            os._exit(0)
        die_with_parent()
        os.setsid()
        for number, each in enumerate(standard):
            os.dup2(each, number)
        for each in fds:
            os.close(each)
        function(**request["params"])
        return
    with contextlib.suppress(ChildProcessError):
        while True:
            waitpid(-1, 0)


def _tell(fd: int, number: int) -> None:
    native.original("os", "write")(fd, f"{number:{_NUMBER}}".encode())


def _received(requests: _socket.socket) -> tuple[bytes, list[int]]:
    """A request and its descriptors.  The socket is of no library that was patched."""
    fds = array.array("i")
    text, ancillary, *_ = requests.recvmsg(_MOST, _socket.CMSG_LEN(4 * fds.itemsize))
    for _level, _type, data in ancillary:
        fds.frombytes(data)
    return text, list(fds)


if __name__ == "__main__":
    faulthandler.enable()
    warnings.simplefilter("ignore", DeprecationWarning)
    serve(int(sys.argv[1]))
