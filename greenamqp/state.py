# SPDX-License-Identifier: Apache-2.0
"""A private UNIX socket from which an operator reads what this process is doing.

Where the option ``state_dir`` names a directory, each hub that transports are on
listens there at ``PID.N.sock``.  Whoever connects gets one JSON object, ``pid`` and
``transports``, each as :func:`greenamqp.describe` has it, and the end of the stream.
Only the user may enter the directory; one that others may enter is not used.  Where
containers share it, a process of another one may have the same number: each N is one
process's alone, as long as that listens.

All is done in the hub's context, without a thread: under the blocking hub, whenever
somebody waits.  A child that was forked lets go of it, and has one of its own as soon
as it uses a transport.
"""

from __future__ import annotations

import _socket  # the class that no monkey patching replaces
import contextlib
import itertools
import json
import logging
import os
import socket
import typing

from greenamqp import chance, private
from greenamqp.client import Client
from greenamqp.hubs import Countdown, Hub, Watch
from greenamqp.outbox import Outbox

LOG = logging.getLogger(__name__)

#: How many may read at one time: no more are accepted meanwhile.
MOST_READERS = 16

# When it is listened again, where the process has no descriptor for a reader.  Seconds.
_PAUSE = 1.0

_boards: dict[Hub, _Board] = {}
_numbers = itertools.count(1)


def describe(client: Client | None, outbox: Outbox | None) -> dict[str, typing.Any]:
    """What a transport is doing: see :func:`greenamqp.describe`.  From any thread."""
    return {
        "pid": os.getpid(),
        "hub": client.hub.name if client is not None else None,
        "outbox": outbox.describe() if outbox is not None else None,
        "connections": client.describe() if client is not None else [],
    }


def publish(client: Client, outbox: Outbox | None, directory: str) -> None:
    """Have a transport among those that can be read, until its client is closed.  Does
    not block, and raises nothing: what is in the way is logged.  From any thread."""
    hub = client.hub

    def enter() -> None:
        if client.context.closed or hub.inherited:
            return
        board = _boards.get(hub)
        if board is None:
            try:
                board = _Board(hub, directory)
            except (OSError, ValueError) as exc:
                LOG.warning("state_dir: %s: nobody can read the state", exc)
                return
            _boards[hub] = board
        board.transports[client] = outbox
        client.at_close.append(leave)

    def leave() -> None:
        board = _boards.get(hub)
        if board is not None and client in board.transports:
            del board.transports[client]
            if not board.transports:
                del _boards[hub]
                board.close()

    hub.call_inside(enter)


class _Board:
    """What listens.  Hub's context."""

    def __init__(self, hub: Hub, directory: str) -> None:
        self.transports: dict[Client, Outbox | None] = {}
        self._hub = hub
        self._readers: set[_Reader] = set()
        private.make(directory)
        self._socket = _unix_socket()
        # First by a name that nobody looks for: at the others somebody listens, or did.
        hidden = os.path.join(directory, f".{chance.unique()[:8]}")
        try:
            self._socket.bind(hidden)
            try:
                self._socket.listen(MOST_READERS)
                self._path = _take_name(directory, hidden)
            finally:
                os.unlink(hidden)
        except OSError:
            self._socket.close()
            raise
        self._pause = Countdown(hub)
        self._listen()
        hub.holders[self] = None

    def _listen(self) -> None:
        self._watch: Watch = self._hub.watch(self._socket.fileno(), self._acceptable)

    def _acceptable(self) -> None:
        try:
            fd, _ = self._socket._accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone
        except OSError:
            # It waits still, and would be told of again at once.
            self._watch.close()
            self._pause.call_in(_PAUSE, self._listen)
            return
        if len(self._readers) >= MOST_READERS:
            os.close(fd)
            return
        whole = {
            "pid": os.getpid(),
            "transports": list(itertools.starmap(describe, self.transports.items())),
        }
        data = json.dumps(whole).encode()
        self._readers.add(_Reader(self._hub, fd, data, self._readers.discard))

    def close(self) -> None:
        """Listen no longer; whoever reads is left."""
        self._hub.holders.pop(self, None)
        self._pause.cancel()
        self._watch.close()
        self._socket.close()
        for reader in list(self._readers):
            reader.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass

    def forked(self) -> None:
        """See :class:`greenamqp.hubs.base.Holder`.  The path is the parent's, if there
        is one."""
        _boards.pop(self._hub, None)
        self._socket.close()
        if self._hub.pid == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._readers.clear()


def _unix_socket() -> typing.Any:
    return _socket.socket(
        socket.AF_UNIX,
        socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )


def _take_name(directory: str, path: str) -> str:
    """Give what listens at `path` the first of this process's names that is free."""
    for number in _numbers:
        name = os.path.join(directory, f"{os.getpid()}.{number}.sock")
        if not _is_listened_at(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)  # of a process of this number that was killed
        with contextlib.suppress(FileExistsError):
            os.link(path, name)
            return name
    raise AssertionError("there is always a next number")


def _is_listened_at(path: str) -> bool:
    probe = _unix_socket()
    try:
        probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except BlockingIOError:
        pass  # as many wait as may
    finally:
        probe.close()
    return True


class _Reader:
    """Who reads: it gets what fits, and the rest when there is room."""

    def __init__(
        self,
        hub: Hub,
        fd: int,
        data: bytes,
        done: typing.Callable[[_Reader], None],
    ) -> None:
        self._hub = hub
        self._socket = _socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._left = memoryview(data)
        self._done = done
        self._watch: Watch = hub.watch(fd, self._readable)
        self._watch.want_write(self._write)
        hub.holders[self] = None

    def _readable(self) -> None:
        """Nothing is said to us: it is gone."""
        self.close()

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._left)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._left = self._left[sent:]
        if not self._left:
            self.close()

    def close(self) -> None:
        self._hub.holders.pop(self, None)
        self._watch.close()
        self._socket.close()
        self._done(self)

    def forked(self) -> None:
        """See :class:`greenamqp.hubs.base.Holder`."""
        self._socket.close()
