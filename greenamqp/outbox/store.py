# SPDX-License-Identifier: Apache-2.0
"""One file of the outbox: notifications in the order in which they came.

All of this blocks, for as long as the disk takes.  It may run in any native thread, of
which one at a time is at work here; a fork waits for it, as SQLite has locks of its
own.  What was added is on the disk (fsync); that something was removed need not be,
when the power fails: then it is sent again.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
import typing

from greenamqp import fork
from greenamqp.hubs import native

_lock: dict[str, typing.Any] = {}


def working() -> typing.Any:
    """A real lock, reentrant: held by whoever is at work here, and by who forks.

    Made when it is first wanted: eventlet replaces all reentrant locks that there are
    when it patches.
    """
    lock = _lock.get("")
    if lock is None:
        # The interpreter's own, as no signal handler may come between.
        mine = native.original("_thread", "RLock")()
        lock = _lock.setdefault("", mine)
        if lock is mine:
            fork.wait_for(lock)
    return lock


# Another process that looks into the file, by the ``greenamqp outbox`` command, is
# waited for so long.  Seconds.
_BUSY = 5.0

# Pages of 4 kB that are gathered in SQLite's log before they go to their places, for
# which whoever writes then waits.  With SQLite's own number that is one writer in 200.
_LOG = 8000

# A clock that went on by so much more or less than time did was set.  Seconds.
_STEP = 60.0

# What goes on while the host sleeps, where there is such a clock.
_SINCE_START = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_MIB = 1024 * 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS bus (name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    unique_id TEXT NOT NULL UNIQUE,
    lane TEXT NOT NULL,
    created REAL NOT NULL,
    content TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_lane ON letters (lane, id);
CREATE INDEX IF NOT EXISTS by_age ON letters (created, id);
"""


class Letter(typing.NamedTuple):
    """A notification that waits.

    :ivar unique_id: the same whenever it is sent
    :ivar lane: where it goes, as text; what has the same stays in order
    :ivar content: what it is made of again, as text
    """

    unique_id: str
    lane: str
    content: str


class Store:
    """See the module.

    :param path: the file; it is made, for this user alone, where there is none
    :param bus: which message bus it is for, for people; None: as the file says
    :param thorough: look at all of it
    :raises OSError, sqlite3.Error: it cannot be had.  A plain sqlite3.DatabaseError
        says that the file is no database, or not any more
    :ivar count: how many letters there are
    """

    def __init__(
        self, path: str, bus: str | None = None, thorough: bool = False
    ) -> None:
        self.path = path
        # SQLite gives the files that it puts beside it the same permissions.
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._made = os.fstat(fd)
        finally:
            os.close(fd)
        with working():
            self._db = sqlite3.connect(
                path, timeout=_BUSY, isolation_level=None, check_same_thread=False
            )
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute(f"PRAGMA wal_autocheckpoint={_LOG}")
                self._db.executescript(_SCHEMA)
                if bus is not None and not self._one("SELECT count(*) FROM bus"):
                    self._db.execute("INSERT INTO bus VALUES (?)", (bus,))
                self.count = 0
                self.recount()
                self._version = self._one("PRAGMA data_version")
                self._epoch = _epoch()
                if thorough and (found := self._one("PRAGMA quick_check")) != "ok":
                    raise sqlite3.DatabaseError(str(found).splitlines()[0])
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Let go of the file.  Idempotent."""
        with working():
            self._db.close()

    def is_in_place(self) -> bool:
        """Whether its path still leads to the file: somebody may have moved or removed
        it, which one who has it open does not notice."""
        try:
            return os.path.samestat(os.stat(self.path), self._made)
        except OSError:
            return False

    @property
    def bus(self) -> str:
        """Which message bus it is for, for people."""
        with working():
            return str(self._one("SELECT coalesce(max(name), '') FROM bus"))

    def changed_elsewhere(self) -> bool:
        """Whether another process has changed the file since the last time, as who
        removes letters by hand does."""
        with working():
            before, self._version = self._version, self._one("PRAGMA data_version")
            return bool(before != self._version)

    def follow_clock(self) -> None:
        """Where somebody has set the clock, all here is as old as it was before."""
        before, self._epoch = self._epoch, _epoch()
        step = self._epoch - before
        if abs(step) > _STEP:
            with working(), self._transaction():
                self._db.execute("UPDATE letters SET created = created + ?", (step,))

    def recount(self) -> None:
        """Set `count` to what there is: another process may have removed some."""
        with working():
            self.count = int(self._one("SELECT count(*) FROM letters"))

    def add(self, letters: typing.Sequence[Letter]) -> None:
        """Write all of them or none.  They are on the disk then."""
        now = time.time()
        with working(), self._transaction():
            self._db.executemany(
                "INSERT INTO letters (unique_id, lane, created, content) "
                "VALUES (?, ?, ?, ?)",
                [(each.unique_id, each.lane, now, each.content) for each in letters],
            )
            self.count += len(letters)

    def absorb(self, path: str) -> None:
        """Take in, behind what is here, what another file has: nothing of it twice."""
        with working():
            self._db.execute("ATTACH ? AS other", (path,))
            try:
                with self._transaction():
                    self._db.execute(
                        "INSERT OR IGNORE INTO main.letters "
                        "(unique_id, lane, created, content) "
                        "SELECT unique_id, lane, created, content "
                        "FROM other.letters ORDER BY id"
                    )
                self.recount()
            finally:
                self._db.execute("DETACH other")

    def copy(self, other: Store) -> None:
        """Take in, behind what is here, what another one has that is open."""
        with working():
            with self._transaction():
                self._db.executemany(
                    "INSERT OR IGNORE INTO letters "
                    "(unique_id, lane, created, content) VALUES (?, ?, ?, ?)",
                    other._db.execute(
                        "SELECT unique_id, lane, created, content "
                        "FROM letters ORDER BY id"
                    ),
                )
            self.recount()

    def remove(self, unique_ids: typing.Iterable[str]) -> None:
        """Forget these, as far as they are here."""
        with working(), self._transaction("NORMAL"):
            for each in unique_ids:
                self._delete("unique_id = ?", (each,))

    def purge(self, older_than: float = 0.0, lane: str | None = None) -> int:
        """Forget what is older than so many seconds, of one lane or all; returns how
        many that were.  0: all, also what a clock that was ahead has written."""
        oldest = time.time() - older_than if older_than else math.inf
        where, values = "created <= ?", [oldest]
        with working(), self._transaction():
            if lane is not None:
                return self._delete(f"{where} AND lane = ?", (*values, lane))
            return self._delete(where, values)

    def shed_size(self, most: int) -> int:
        """Forget the oldest where all of it takes more than so many MiB; returns how
        many that were."""
        shed = 0
        with working():
            while self.count and (used := self.size) > most * _MIB:
                some = max(1, int(self.count * (1 - most * _MIB / used)))
                with self._transaction():
                    shed += self._delete(
                        "id IN (SELECT id FROM letters ORDER BY created, id LIMIT ?)",
                        (some,),
                    )
        return shed

    @property
    def size(self) -> int:
        """Bytes that the letters take in the file."""
        with working():
            pages = self._one("PRAGMA page_count") - self._one("PRAGMA freelist_count")
            return int(pages * self._one("PRAGMA page_size"))

    def lanes(self) -> dict[str, tuple[int, float]]:
        """How many letters each lane has, and when the first was written."""
        with working():
            return {
                lane: (count, oldest)
                for lane, count, oldest in self._db.execute(
                    "SELECT lane, count(*), min(created) FROM letters GROUP BY lane"
                )
            }

    def first(self, lane: str, limit: int) -> list[Letter]:
        """The first letters of a lane, in order."""
        with working():
            return [
                Letter(unique_id, lane, content)
                for unique_id, content in self._db.execute(
                    "SELECT unique_id, content FROM letters "
                    "WHERE lane = ? ORDER BY id LIMIT ?",
                    (lane, limit),
                )
            ]

    def _one(self, query: str) -> typing.Any:
        return self._db.execute(query).fetchone()[0]

    def _delete(self, where: str, values: typing.Sequence[typing.Any]) -> int:
        count = self._db.execute(f"DELETE FROM letters WHERE {where}", values).rowcount
        self.count -= count
        return count

    def _transaction(self, synchronous: str = "FULL") -> _Transaction:
        return _Transaction(self, self._db, synchronous)


def _epoch() -> float:
    """When the host started, as its clock says now."""
    return time.time() - time.clock_gettime(_SINCE_START)


class _Transaction:
    """All or nothing, the count included."""

    def __init__(self, store: Store, db: sqlite3.Connection, synchronous: str) -> None:
        self._store = store
        self._db = db
        self._synchronous = synchronous
        self._count = 0

    def __enter__(self) -> None:
        if self._db.in_transaction:
            # A signal handler raised in the few steps around the one before.
            self._db.execute("ROLLBACK")
            self._store.recount()
        self._db.execute(f"PRAGMA synchronous={self._synchronous}")
        self._count = self._store.count
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
                return
            except sqlite3.Error:
                self._undo()
                raise
        self._undo()

    def _undo(self) -> None:
        self._store.count = self._count
        if self._db.in_transaction:  # a full disk has undone it already
            self._db.execute("ROLLBACK")
