# SPDX-License-Identifier: Apache-2.0
"""The disk work of one outbox: one job at a time, each in one go.

Blocks, in a native thread where the hub has any.  No fork begins during a job.
"""

from __future__ import annotations

import sqlite3
import typing

from greenamqp import fork
from greenamqp.outbox.directory import Claim, Directory, Moved
from greenamqp.outbox.store import Letter, Store, working

# Letters of one destination that are read at a time.
_READ = 64


class Done(typing.NamedTuple):
    """What a job has done.

    :ivar read: of each lane that was asked for, its first letters
    :ivar more: which of these may have others
    :ivar lanes: all that there are, if it was looked for
    :ivar moved: how many letters other processes had left
    :ivar old: how many fell out for their age
    :ivar shed: how many fell out as there were too many
    :ivar broken: what became of files that cannot be read, for people
    :ivar refused: which files of others cannot be used now, for people
    :ivar changed: whether another process has changed ours, if it was looked for
    """

    read: dict[str, list[Letter]]
    more: typing.Collection[str]
    lanes: typing.Collection[str]
    moved: int
    old: int
    shed: int
    broken: typing.Sequence[str]
    refused: typing.Sequence[str]
    changed: bool


#: Nothing was done.
NOTHING = Done({}, (), (), 0, 0, 0, (), (), False)


class Disk:
    """See the module.

    :param max_size: MiB that the letters may take
    :param max_age: seconds that each may wait
    """

    def __init__(self, directory: Directory, max_size: int, max_age: float) -> None:
        self._directory = directory
        self._max_size = max_size
        self._max_age = max_age
        # The file, if there is one.
        self._claim: Claim | None = None
        self._store: Store | None = None

    @property
    def count(self) -> int:
        """How many letters there are.  From any thread, at any time."""
        store = self._store
        return store.count if store is not None else 0

    def forked(self) -> None:
        """In a child: the file is the parent's."""
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.forked()
        # To close the database in this process could take it from the parent.
        fork.keep(self._store)

    def work(
        self,
        letters: typing.Sequence[Letter],
        removed: typing.Sequence[str],
        wanting: typing.Sequence[str],
        look: bool,
    ) -> Done:
        """All that there is to do.

        :param letters: to be written: all of them or none
        :param removed: unique ids of those that are not needed any more
        :param wanting: lanes of which the first letters are to be read, after that
        :param look: whether to look for files of processes that are gone
        :raises OSError, sqlite3.Error: the disk does not serve
        """
        with working():
            moved = Moved(0, [], [])
            self._stay(needed=bool(letters))
            if look:
                besides = self._claim.path if self._claim is not None else None
                moved = self._directory.move_abandoned(self._own, besides)
            broken = moved.broken
            try:
                done = self._use(letters, removed, wanting, look, moved.letters > 0)
            except sqlite3.DatabaseError as exc:
                if type(exc) is not sqlite3.DatabaseError or self._claim is None:
                    raise  # the disk
                # Our file is none any more: on in another one.
                self._drop_store()
                claim, self._claim = self._claim, None
                broken.append(f"{exc}: it is kept as {claim.set_aside()}")
                done = self._use(letters, (), wanting, True, False)
            return done._replace(
                moved=moved.letters, broken=broken, refused=moved.refused
            )

    def close(self, removed: typing.Sequence[str]) -> None:
        """The last job: leave the file to others, or remove it if it is empty."""
        with working():
            self._stay(needed=False)
            claim, self._claim = self._claim, None
            empty = False
            try:
                if self._store is not None:
                    self._store.remove(removed)
                    self._store.recount()
                    empty = self._store.count == 0
                self._drop_store()
                if claim is not None and empty:
                    claim.remove()
            finally:
                if claim is not None:
                    claim.release()

    def _use(
        self,
        letters: typing.Sequence[Letter],
        removed: typing.Sequence[str],
        wanting: typing.Sequence[str],
        look: bool,
        moved: bool,
    ) -> Done:
        store = self._own() if letters else self._store
        if store is None:
            return NOTHING._replace(read={lane: [] for lane in wanting})
        if removed:
            store.remove(removed)
        store.follow_clock()
        old = store.purge(self._max_age)
        if letters:
            store.add(letters)
        shed = store.shed_size(self._max_size) if letters or moved else 0
        changed = look and store.changed_elsewhere()  # before it is read
        read = {lane: store.first(lane, _READ) for lane in wanting}
        more = [lane for lane, found in read.items() if len(found) == _READ]
        if not look:
            return Done(read, more, (), 0, old, shed, (), (), False)
        store.recount()
        return Done(read, more, store.lanes(), 0, old, shed, (), (), changed)

    def _own(self) -> Store:
        """Our file."""
        if self._store is None:
            if self._claim is None:
                self._directory.make()
                self._claim = self._directory.new()
            self._store = Store(self._claim.path, self._directory.bus)
        return self._store

    def _stay(self, needed: bool) -> None:
        """See that others find our file when this process is gone: if somebody has
        moved or removed it, what is in it goes into a new one.

        :param needed: whether something is to be written into that
        :raises OSError, ValueError, sqlite3.Error: there can be none
        """
        store, claim = self._store, self._claim
        if store is None or store.is_in_place():
            return
        self._store = self._claim = None
        try:
            self._own().copy(store)
        except (OSError, ValueError, sqlite3.Error):
            self._drop_store()
            if self._claim is not None:
                self._claim.remove()
            # What it has can be sent yet.
            self._store, self._claim = store, claim
            if needed:
                raise
            return
        store.close()
        if claim is not None:
            claim.release()

    def _drop_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()
