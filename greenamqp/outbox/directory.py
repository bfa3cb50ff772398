# SPDX-License-Identifier: Apache-2.0
"""Which files the outbox has, and whose they are.

Below the directory of the option ``notify_outbox``::

    3f6c.../              a message bus: its hosts and its virtual host, and the
                          default exchange of those who send there
        8d21....db        what one process keeps, with SQLite's files beside it
        8d21....lock      locked by the process that uses it, as long as that lives

Blocks, as `store` does.  All is for the user alone that made it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import typing

from greenamqp import chance, private
from greenamqp.outbox.store import Store, working

_SUFFIX = ".db"
#: What SQLite puts beside a file.
_BESIDE = ("-wal", "-shm", "-journal")
#: What the name of a file ends in that is no database any more.
_BROKEN = ".corrupt"


class NoOutbox(ValueError):
    """The directory cannot be used; the text says why."""


class Claim:
    """A file that this process alone uses.

    Not by fcntl's other kind of lock, which is the process's: it would go with any
    descriptor of the file, and two transports of one process would share it.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Leave it to others.  Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # In a child: to close its copy of the descriptor takes nothing from the parent.
    forked = release

    def remove(self) -> None:
        """Remove the file, which nobody needs any more, and let go of it."""
        for suffix in ("", *_BESIDE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_lock_of(self.path))
        self.release()

    def set_aside(self) -> str:
        """It is no database, or not any more: keep it under another name, where people
        find it, and let go of it.  Returns the name."""
        name = self.path + _BROKEN
        for suffix in ("", *_BESIDE):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path + suffix, name + suffix)
        self.remove()
        return name


def claim(path: str) -> Claim | None:
    """The file at `path` for this process alone; None: another one has it.

    :raises OSError: it cannot be had
    """
    lock = _lock_of(path)
    # No child may get a copy of the descriptor that it knows nothing of.
    with working():
        while True:
            fd = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.fstat(fd)
                with contextlib.suppress(FileNotFoundError):
                    there = os.stat(lock)
                    if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                        return Claim(path, fd)
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # removed meanwhile, with the file: once more


def is_free(path: str) -> bool:
    """Whether no process has the file."""
    try:
        fd = os.open(_lock_of(path), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _lock_of(path: str) -> str:
    return path.removesuffix(_SUFFIX) + ".lock"


class Moved(typing.NamedTuple):
    """What became of the files that nobody looked after.

    :ivar letters: how many were moved
    :ivar broken: what became of those that are no databases any more, for people
    :ivar refused: which cannot be used now, but perhaps later, for people
    """

    letters: int
    broken: list[str]
    refused: list[str]


class Directory:
    """The files for one message bus.

    :param top: as the option says
    :param hosts: of the transport URL, each as ``host:port``
    :param virtual_host: of the transport URL
    :param exchange: the default one: who has another would send elsewhere
    :ivar bus: all of that, for people
    """

    def __init__(
        self,
        top: str,
        hosts: typing.Iterable[str],
        virtual_host: str | None,
        exchange: str | None,
    ) -> None:
        # The order of the hosts says who is asked first, and no more.
        self.bus = f"{','.join(sorted(hosts))}/{virtual_host or ''}"
        if exchange:
            self.bus += f" ({exchange})"
        self.path = os.path.join(
            os.path.abspath(top), hashlib.sha256(self.bus.encode()).hexdigest()[:16]
        )

    def make(self) -> None:
        """Make the directory where there is none, and see that it can be used.

        :raises NoOutbox: it cannot
        """
        top = os.path.dirname(self.path)
        try:
            if not os.path.isdir(top):
                private.make(top)
            private.make(self.path)
        except ValueError as exc:
            raise NoOutbox(str(exc)) from None

    def new(self) -> Claim:
        """A file for this process.

        :raises OSError: there can be none
        """
        made = claim(os.path.join(self.path, chance.unique() + _SUFFIX))
        assert made is not None
        return made

    def files(self) -> list[str]:
        """All files, the oldest first."""
        return files(self.path)

    def move_abandoned(
        self, own: typing.Callable[[], Store], besides: str | None
    ) -> Moved:
        """Move what nobody looks after into a file of ours.

        :param own: gives that file; called only if there is something to move
        :param besides: the path of that file, if there is one
        :raises OSError, sqlite3.Error: ours cannot be had, or written
        """
        moved = 0
        broken = []
        refused = []
        for path in self.files():
            if path == besides:
                continue
            try:
                held = claim(path)
            except OSError as exc:
                refused.append(f"{path}: {exc.strerror}")
                continue
            if held is None:
                continue
            try:
                try:
                    other = Store(path, thorough=True)
                except OSError as exc:
                    refused.append(f"{path}: {exc.strerror}")
                    continue
                except sqlite3.OperationalError as exc:
                    refused.append(f"{path}: {exc}")
                    continue
                except sqlite3.DatabaseError as exc:
                    broken.append(f"{exc}: it is kept as {held.set_aside()}")
                    continue
                count = other.count
                other.close()
                if count:
                    own().absorb(path)
                moved += count
                held.remove()
            finally:
                held.release()
        return Moved(moved, broken, refused)


def files(path: str) -> list[str]:
    """The files of one message bus, the oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(_SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.stat().st_mtime, entry.path))
    return [each for _, each in sorted(found)]


def all_files(top: str) -> list[str]:
    """Those of every message bus.

    :raises OSError: the directory cannot be read
    """
    found: list[str] = []
    with os.scandir(top) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.is_dir():
                found += files(entry.path)
    return found
