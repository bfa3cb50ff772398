# SPDX-License-Identifier: Apache-2.0
"""What is sent at once, what waits on disk, and when that is sent.

While nothing of a destination waits, a notification goes straight to the message bus,
and its caller waits for the outcome, as without an outbox.  Where none comes within
PATIENCE, or where it is known that there is no connection, it is written to disk, and
the caller goes on.

From then on all that goes to that destination takes the way over the disk, so that it
stays in order; one at a time is on its way, as a message that the bus gives back is
sent again later.  What had left before it was written stays on its way: it is not sent
twice because the bus is slow.  Each that was taken is removed from the file.  When the
last one was, the next goes straight again.

All disk work is done by one job at a time, in a native thread where the hub has any,
and takes what came meanwhile in one transaction.  All else is done in the hub's context
or under its lock.
"""

from __future__ import annotations

import collections
import functools
import logging
import sqlite3
import typing

from greenamqp import addressing, fork
from greenamqp.client import Client, Destination, Outgoing, Rejected
from greenamqp.engine import Message
from greenamqp.formats import Format, dumps, loads
from greenamqp.hubs import Timer, Waiter, logs
from greenamqp.outbox.directory import Claim, Directory
from greenamqp.outbox.store import WORKING, Letter, Row, Store

LOG = logging.getLogger("greenamqp.outbox")

#: A notification that the bus has not taken after so long is written to disk.  Seconds.
PATIENCE = 1.0

# How often it is looked for files of processes that are gone.  Seconds.
LOOK_INTERVAL = 10.0

# Letters of one destination that are read at a time.
_READ = 64

# What the bus does not take is tried again after the first of them, twice as long each
# further time, up to the second.  Seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

# What waits under a hub that only moves while somebody waits gets so much of the time
# of each who notifies.  Seconds.
_TURN = 0.005


class _Flight:
    """A letter on its way to the message bus.

    :ivar id: in the file; None: it is not written yet
    :ivar over: whether it needs to be in the file no longer
    """

    __slots__ = ("entry", "id", "lane", "over")

    def __init__(self, lane: _Lane, id: int | None) -> None:
        self.lane = lane
        self.id = id
        self.over = False
        self.entry: Outgoing | None = None


class _Put:
    """A letter that is to be written, and who waits for that."""

    __slots__ = ("done", "error", "flight", "lane", "letter", "waiter")

    def __init__(
        self, lane: _Lane, letter: Letter, waiter: Waiter, flight: _Flight | None
    ) -> None:
        self.lane = lane
        self.letter = letter
        self.waiter = waiter
        self.flight = flight
        self.done = False
        self.error: Exception | None = None


class _Lane:
    """What waits for one destination.

    :ivar rows: letters that were read, in order
    :ivar more: whether the file may have more of them
    :ivar puts: letters that are being written
    :ivar flights: letters on their way
    :ivar rest: set during a pause
    """

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.name = _name_of(destination)
        self.rows: collections.deque[Row] = collections.deque()
        self.more = False
        self.puts = 0
        self.flights: set[_Flight] = set()
        self.pause = _FIRST_PAUSE
        self.rest: Timer | None = None


class _Done(typing.NamedTuple):
    """What a job has done."""

    ids: list[int]
    rows: dict[str, list[Row]]
    lanes: typing.Collection[str]
    moved: int
    old: int
    shed: int
    broken: list[str]


class Outbox:
    """See the module.  Any thread or green thread that the hub knows may send.

    :param client: sends
    :param directory: where what waits is kept
    :param options: the group of options
    """

    def __init__(
        self, client: Client, directory: Directory, options: typing.Any
    ) -> None:
        self._client = client
        self._hub = client.hub
        self._directory = directory
        self._settled = "notify" in options.pre_settled
        self._max_size = options.notify_outbox_max_size
        self._max_age = options.notify_outbox_max_age
        self._lanes: dict[Destination, _Lane] = {}
        self._puts: list[_Put] = []
        self._removed: list[int] = []
        # Whether a job is at work; whether the next is to look for other files.
        self._busy = False
        self._look = True
        # Whether it has been looked for the first time, and who waits for that.
        self._opened = False
        self._openers: list[Waiter] = []
        self._look_timer: Timer | None = None
        self._closed = False
        # The file, if there is one: of jobs.
        self._claim: Claim | None = None
        self._store: Store | None = None
        # Whether operators know that something waits, and that nothing can be written.
        self._told = False
        self._failing = False
        #: How many were sent from the disk, and how many fell out, by the reason.
        self.sent = 0
        self.dropped = {"too many": 0, "too old": 0, "rejected": 0}
        fork.tell(self)

    def start(self) -> None:
        """Look for what is there.  Does not block."""
        with self._hub.lock:
            self._work()

    def forked(self) -> None:
        """See :mod:`greenamqp.fork`: the file is the parent's."""
        self._closed = True
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.forked()
        # To close the database in this process could take it from the parent.
        fork.keep(self._store)

    def close(self) -> None:
        """Send nothing any more, and leave the file to others.  What waits stays there.
        Where one may wait; idempotent."""
        waiter = self._hub.waiter()
        with self._hub.lock:
            if self._closed:
                return
            self._closed = True
            for timer in (self._look_timer, *(each.rest for each in self._all_lanes())):
                if timer is not None:
                    timer.cancel()
            self._openers.append(waiter)
            if not self._busy:
                self._work_last()
        waiter.wait(None)

    def send(
        self,
        destination: Destination,
        message: typing.Any,
        context: typing.Any,
        unique_id: str,
        envelope: bool,
    ) -> bool:
        """Have a notification sent: returns when the message bus has taken it, or it is
        on the disk.

        :returns: False if neither was possible, and the caller has to see to it
        :raises TypeError, ValueError: what cannot be serialised
        :raises MessageDeliveryFailure: the message bus rejects it
        :raises EngagedError: see Hub.check_may_wait
        """
        self._hub.check_may_wait()
        if not self._opened:
            self._wait_opened()
        lane = self._lanes.get(destination)
        compose = _compose(message, context, unique_id, envelope)
        if lane is not None or self._client.unavailable:
            compose(self._client.format)  # who notifies is to hear of what is wrong
            letter = Letter(unique_id, "", _content(message, context, envelope))
            kept = self._keep(destination, letter, None)
            self._linger()
            return kept
        waiter = self._hub.waiter()
        entry = self._client.offer(
            "notification",
            destination,
            compose,
            settled=self._settled,
            waiter=waiter,
        )
        try:
            waiter.wait(self._hub.now() + PATIENCE)
            if entry.done and entry.error is None:
                return True
            letter = Letter(unique_id, "", _content(message, context, envelope))
        except BaseException:
            self._client.withdraw(entry)
            raise
        if isinstance(entry.error, Rejected):
            raise entry.error
        return self._keep(destination, letter, entry)

    def wait_empty(self, deadline: float | None) -> bool:
        """Wait until nothing waits any more, or until `deadline`; returns which."""
        waiter = self._hub.waiter()
        while not self._opened or self._lanes:
            now = self._hub.now()
            if deadline is not None and now >= deadline:
                return False
            waiter.wait(now + 0.1 if deadline is None else min(now + 0.1, deadline))
        return True

    def describe(self) -> dict[str, typing.Any]:
        """See :func:`greenamqp.describe`.  From any thread."""
        with self._hub.lock:
            return {
                "directory": self._directory.path,
                "waiting": self._store.count if self._store is not None else 0,
                "destinations": [str(each) for each in self._lanes],
                "sent": self.sent,
                "dropped": dict(self.dropped),
            }

    # -- to the disk

    def _wait_opened(self) -> None:
        waiter = self._hub.waiter()
        with self._hub.lock:
            if self._opened or self._closed:
                return
            self._openers.append(waiter)
            self._work()
        waiter.wait(None)

    def _keep(
        self, destination: Destination, letter: Letter, entry: Outgoing | None
    ) -> bool:
        """Write it to the disk, and wait for that; returns whether it is there, or has
        been taken meanwhile.

        :param entry: as which it is on its way already
        """
        waiter = self._hub.waiter()
        with self._hub.lock:
            if self._closed:
                if entry is not None:
                    self._client.withdraw(entry)
                return False
            if entry is not None and entry.done and entry.error is None:
                return True
            lane = self._lane(destination)
            flight = None
            if entry is not None and not entry.done:
                flight = self._fly(lane, None)
                flight.entry = entry
                entry.on_end = functools.partial(self._landed, flight)
                entry.waiter = None
            put = _Put(lane, letter._replace(lane=lane.name), waiter, flight)
            lane.puts += 1
            self._puts.append(put)
            self._work()
        while not put.done:
            waiter.wait(None)
        if put.error is not None:
            self._tell_failing(put.error)
        return put.error is None

    def _tell_failing(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            with logs.muted():
                LOG.error(
                    "notifications cannot be written to the outbox %s (%s): they wait "
                    "for the message bus as if there were none",
                    self._directory.path,
                    error,
                )

    def _linger(self) -> None:
        """Under a hub that only moves while somebody waits: let it."""
        if self._hub.name == "blocking":
            self._hub.waiter().wait(self._hub.now() + _TURN)

    def _all_lanes(self) -> list[_Lane]:
        return list(self._lanes.values())

    def _lane(self, destination: Destination) -> _Lane:
        lane = self._lanes.get(destination)
        if lane is None:
            lane = self._lanes[destination] = _Lane(destination)
            if not self._told:
                self._told = True
                LOG.warning(
                    "notifications wait in the outbox %s: %s",
                    self._directory.path,
                    self._client.unavailable or "the message bus does not take them",
                )
        return lane

    # -- jobs

    def _work(self) -> None:
        """Begin a job, if there is something to do and none is at work."""
        if self._busy or self._closed:
            return
        wanting = [
            lane.name
            for lane in self._lanes.values()
            if lane.more and not (lane.rows or lane.flights or lane.rest)
        ]
        if not (self._puts or self._removed or wanting or self._look):
            return
        self._busy = True
        puts, self._puts = self._puts, []
        removed, self._removed = self._removed, []
        look, self._look = self._look, False
        letters = [put.letter for put in puts]
        self._hub.off_thread(
            functools.partial(self._job, letters, removed, wanting, look),
            functools.partial(self._worked, puts, removed, wanting, look),
        )

    def _work_last(self) -> None:
        """After the last job: close the file."""
        self._busy = True
        self._hub.off_thread(
            functools.partial(self._job_last, list(self._removed)), self._worked_last
        )

    def _job(
        self,
        letters: list[Letter],
        removed: list[int],
        wanting: list[str],
        look: bool,
    ) -> _Done:
        """All disk work that there is.  In a native thread."""
        with WORKING:
            moved = 0
            broken: list[str] = []
            if look:
                besides = self._claim.path if self._claim is not None else None
                moved, broken = self._directory.move_abandoned(self._own, besides)
            try:
                return self._use(letters, removed, wanting, look, moved, broken)
            except sqlite3.OperationalError:
                raise  # the disk
            except sqlite3.DatabaseError as exc:
                assert self._claim is not None
                self._drop_store()
                broken.append(f"{exc}: it is kept as {self._claim.set_aside()}")
                self._claim = None
                return self._use(letters, [], [], True, moved, broken)

    def _use(
        self,
        letters: list[Letter],
        removed: list[int],
        wanting: list[str],
        look: bool,
        moved: int,
        broken: list[str],
    ) -> _Done:
        store = self._own() if letters else self._store
        if store is None:
            return _Done([], {}, (), moved, 0, 0, broken)
        if removed:
            store.remove(removed)
        old = store.purge(self._max_age) if letters or wanting or look else 0
        ids = store.add(letters) if letters else []
        shed = store.shed_size(self._max_size) if letters or moved else 0
        rows = {lane: store.first(lane, _READ) for lane in wanting}
        if look:
            store.recount()
        lanes = store.lanes() if look else ()
        return _Done(ids, rows, lanes, moved, old, shed, broken)

    def _own(self) -> Store:
        """Our file.  In a job."""
        if self._store is None:
            if self._claim is None:
                self._directory.make()
                self._claim = self._directory.new()
            self._store = Store(self._claim.path, self._directory.bus)
        return self._store

    def _drop_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _job_last(self, removed: list[int]) -> None:
        with WORKING:
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

    def _worked(
        self,
        puts: list[_Put],
        removed: list[int],
        wanting: list[str],
        look: bool,
        done: _Done | None,
        error: Exception | None,
    ) -> None:
        with self._hub.lock:
            self._busy = False
            if done is None:
                assert error is not None
                self._failed(puts, removed, wanting, error)
                done = _Done([], {}, (), 0, 0, 0, [])
            elif puts:
                self._failing = False
            for put, id in zip(puts, done.ids, strict=False):
                self._written(put, id)
            for lane in self._all_lanes():
                rows = done.rows.get(lane.name)
                if rows is not None:
                    lane.rows.extend(r for r in rows if r.id not in self._removed)
                    lane.more = len(rows) == _READ or lane.puts > 0
            for name in done.lanes:
                lane = self._lane(_destination_of(name))
                lane.more = True
            self._tell(done)
            self._opened = True
            openers = self._openers
            if not self._closed:
                self._openers = []
                for opener in openers:
                    opener.wake()
                if look:
                    self._look_timer = self._hub.call_at(
                        self._hub.now() + LOOK_INTERVAL, self._look_again
                    )
                for lane in self._all_lanes():
                    self._advance(lane)
                self._work()
            else:
                self._work_last()

    def _look_again(self) -> None:
        self._look = True
        self._work()

    def _worked_last(self, _done: object, error: Exception | None) -> None:
        with self._hub.lock:
            if error is not None:
                LOG.warning("the outbox %s: %s", self._directory.path, error)
            for put in self._puts:
                put.done = True
                put.error = sqlite3.OperationalError("the transport was cleaned up")
                put.waiter.wake()
            for opener in self._openers:
                opener.wake()

    def _written(self, put: _Put, id: int) -> None:
        put.lane.puts -= 1
        flight = put.flight
        if flight is None:
            put.lane.more = True
        elif flight.over:
            self._removed.append(id)
        else:
            flight.id = id
            # Should it fail, it is read from there.
            put.lane.more = True
        put.done = True
        put.waiter.wake()

    def _failed(
        self,
        puts: list[_Put],
        removed: list[int],
        wanting: list[str],
        error: Exception,
    ) -> None:
        """The disk does not serve: who wanted to write hears of it, the rest waits."""
        for put in puts:
            put.lane.puts -= 1
            if put.flight is not None:
                put.lane.flights.discard(put.flight)
                if put.flight.entry is not None:
                    self._client.withdraw(put.flight.entry)
            put.error = error
            put.done = True
            put.waiter.wake()
        self._removed[:0] = removed
        for lane in self._all_lanes():
            if lane.name in wanting:
                self._rest(lane)
        if removed or not puts:
            # Not at once again: that would go on for as long as the disk is full.
            self._busy = True
            self._hub.call_at(self._hub.now() + _FIRST_PAUSE, self._idle_again)

    def _idle_again(self) -> None:
        self._busy = False
        self._work()

    def _tell(self, done: _Done) -> None:
        where = self._directory.path
        if done.moved:
            LOG.info(
                "%s notifications that another process left are sent from the outbox "
                "%s",
                done.moved,
                where,
            )
        for reason, count in (("too old", done.old), ("too many", done.shed)):
            if count:
                self.dropped[reason] += count
                LOG.error(
                    "%s notifications were lost from the outbox %s: %s",
                    count,
                    where,
                    reason,
                )
        for text in done.broken:
            LOG.error("a file of the outbox %s cannot be read: %s", where, text)

    # -- to the message bus

    def _fly(self, lane: _Lane, id: int | None) -> _Flight:
        flight = _Flight(lane, id)
        lane.flights.add(flight)
        return flight

    def _advance(self, lane: _Lane) -> None:
        """Send the next one, if none is on its way."""
        if lane.flights or lane.rest is not None or self._closed:
            return
        if lane.rows:
            row = lane.rows.popleft()
            flight = self._fly(lane, row.id)
            try:
                compose = _compose_row(row)
                flight.entry = self._client.offer(
                    "notification",
                    lane.destination,
                    compose,
                    settled=self._settled,
                    on_end=functools.partial(self._landed, flight),
                )
            except (TypeError, ValueError) as exc:
                self._landed(flight, Rejected(f"it cannot be written: {exc}"))
        elif not lane.more and not lane.puts:
            if self._lanes.pop(lane.destination, None) is not None and not self._lanes:
                self._told = False
                LOG.info("nothing waits in the outbox %s", self._directory.path)

    def _landed(self, flight: _Flight, error: Exception | None) -> None:
        """Its end is known.  Within the client, which is not to be asked for anything
        now."""
        self._hub.call_inside(functools.partial(self._ended, flight, error))

    def _ended(self, flight: _Flight, error: Exception | None) -> None:
        with self._hub.lock:
            lane = flight.lane
            if flight not in lane.flights or self._closed and error is not None:
                return
            lane.flights.discard(flight)
            if error is None or isinstance(error, Rejected):
                if error is None:
                    self.sent += 1
                else:
                    self.dropped["rejected"] += 1
                    LOG.error("a notification was lost from the outbox: %s", error)
                lane.pause = _FIRST_PAUSE
                flight.over = True
                if flight.id is not None:
                    self._removed.append(flight.id)
            else:
                LOG.warning("a notification stays in the outbox: %s", error)
                lane.rows.clear()
                lane.more = True
                self._rest(lane)
            self._advance(lane)
            self._work()

    def _rest(self, lane: _Lane) -> None:
        if lane.rest is None and not self._closed:
            lane.rest = self._hub.call_at(
                self._hub.now() + lane.pause, functools.partial(self._rested, lane)
            )
            lane.pause = min(2 * lane.pause, _LONGEST_PAUSE)

    def _rested(self, lane: _Lane) -> None:
        with self._hub.lock:
            lane.rest = None
            self._advance(lane)
            self._work()


# -- what a letter holds


def _name_of(destination: Destination) -> str:
    return dumps(
        [
            destination.exchange,
            destination.topic,
            destination.server,
            destination.fanout,
        ]
    )


def _destination_of(name: str) -> Destination:
    exchange, topic, server, fanout = loads(name)
    return Destination(exchange, topic, server, fanout, addressing.Service.NOTIFY)


def _content(message: typing.Any, context: typing.Any, envelope: bool) -> str:
    if context is not None and not isinstance(context, dict):
        context = context.to_dict() if hasattr(context, "to_dict") else context
    return dumps([message, context, envelope])


def _compose(
    message: typing.Any, context: typing.Any, unique_id: str, envelope: bool
) -> typing.Callable[[Format], Message]:
    return lambda format: format.notification(
        message, context, unique_id, envelope=envelope
    )


def _compose_row(row: Row) -> typing.Callable[[Format], Message]:
    message, context, envelope = loads(row.letter.content)
    return _compose(message, context, row.letter.unique_id, envelope)
