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
import os
import sqlite3
import typing

from greenamqp import buses, fork
from greenamqp.buses.format import Format, dumps, loads
from greenamqp.client import Client, Destination, Outgoing, Rejected
from greenamqp.engine import Message
from greenamqp.hubs import Countdown, Hub, Steps, Waiter, logs
from greenamqp.outbox.directory import Directory
from greenamqp.outbox.disk import NOTHING, Disk, Done
from greenamqp.outbox.store import Letter

LOG = logging.getLogger("greenamqp.outbox")

#: A notification that the bus has not taken after so long is written to disk.  Seconds.
PATIENCE = 1.0

# How often it is looked for files of processes that are gone.  Seconds.
LOOK_INTERVAL = 10.0

# What the bus does not take is tried again after the first of them, twice as long each
# further time, up to the second.  Seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

# What waits under a hub that only moves while somebody waits gets so much of the time
# of each who notifies.  Seconds.
_TURN = 0.005


class _Flight:
    """A letter on its way to the message bus.

    :ivar entry: as what the client has it
    :ivar over: whether it needs to be in the file no longer
    """

    __slots__ = ("entry", "lane", "over", "unique_id")

    def __init__(self, lane: _Lane, unique_id: str) -> None:
        self.lane = lane
        self.unique_id = unique_id
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
        self.error: BaseException | None = None


class _Lane:
    """What waits for one destination.

    :ivar letters: those that were read, in order
    :ivar more: whether the file may have more of them
    :ivar puts: letters that are being written
    :ivar flights: letters on their way
    :ivar rest: runs during a pause
    """

    def __init__(self, destination: Destination, hub: Hub) -> None:
        self.destination = destination
        self.name = _name_of(destination)
        self.letters: collections.deque[Letter] = collections.deque()
        self.more = False
        self.puts = 0
        self.flights: set[_Flight] = set()
        self.pause = _FIRST_PAUSE
        self.rest = Countdown(hub)


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
        self._disk = Disk(
            directory, options.notify_outbox_max_size, options.notify_outbox_max_age
        )
        self._lanes: dict[Destination, _Lane] = {}
        self._puts: list[_Put] = []
        # The unique ids of what is to be removed from the file.
        self._removed: list[str] = []
        # Whether a job is at work; whether the next is to look for other files.
        self._busy = False
        self._look = True
        # Whether it has been looked for the first time, and who waits for that.
        self._opened = False
        self._openers: list[Waiter] = []
        self._next_look = Countdown(self._hub)
        self._closed = False
        # Whether operators know that something waits.
        self._told = False
        #: Whether the disk does not serve, of which operators know.
        self.failing = False
        #: How many were sent from the disk, and how many fell out, by the reason.
        self.sent = 0
        self.dropped = {"too many": 0, "too old": 0, "rejected": 0}
        #: Files of others that cannot be used now, for people; each was told of once.
        self.refused: set[str] = set()
        fork.tell(self)
        self._hub.holders[self] = None

    def start(self) -> None:
        """Look for what is there.  Does not block."""
        with self._hub.lock:
            self._work()

    def forked(self) -> None:
        """See :mod:`greenamqp.fork`: the file is the parent's.  Or the hub runs no
        more, and it is for who comes next."""
        self._closed = True
        if self._hub.pid != os.getpid():
            self._disk.forked()
            return
        try:
            self._disk.close(self._removed)
        except Exception as exc:
            self._tell_failing(exc)

    def closing(self) -> Steps[None]:
        """Send nothing any more, and leave the file to others.  What waits stays there.
        Idempotent."""
        waiter = self._hub.waiter()
        with self._hub.lock:
            if self._closed:
                return
            self._closed = True
            self._next_look.cancel()
            for lane in self._all_lanes():
                lane.rest.cancel()
            self._openers.append(waiter)
            if not self._busy:
                self._work_last()
        yield waiter, None

    def sending(
        self,
        destination: Destination,
        message: typing.Any,
        context: typing.Any,
        unique_id: str,
        envelope: bool,
    ) -> Steps[Outgoing | None]:
        """Have a notification sent: ends when the message bus has taken it, or it is
        on the disk.

        :returns: None; or, where the disk does not serve, what is on its way without
            it, whose end the caller has to wait for
        :raises TypeError, ValueError: what cannot be serialised
        :raises MessageDeliveryFailure: the message bus rejects it
        """
        if not self._opened:
            yield from self._opening()
        lane = self._lanes.get(destination)
        compose = _compose(message, context, unique_id, envelope)
        if lane is not None or self._client.unavailable:
            compose(self._client.format)  # who notifies is to hear of what is wrong
            letter = Letter(unique_id, "", _content(message, context, envelope))
            kept = yield from self._keeping(destination, letter, None)
            if not kept:
                return self._client.offer(
                    destination,
                    compose,
                    settled=self._settled,
                    waiter=self._hub.waiter(),
                )
            if self._hub.name == "blocking":
                # It moves while somebody waits only: let it.
                yield self._hub.waiter(), self._hub.now() + _TURN
            return None
        waiter = self._hub.waiter()
        entry = self._client.offer(
            destination,
            compose,
            settled=self._settled,
            waiter=waiter,
        )
        try:
            yield waiter, self._hub.now() + PATIENCE
            if entry.done and entry.error is None:
                return None
            letter = Letter(unique_id, "", _content(message, context, envelope))
        except BaseException:
            self._client.withdraw(entry)
            raise
        if isinstance(entry.error, Rejected):
            raise entry.error
        kept = yield from self._keeping(destination, letter, entry)
        return None if kept else entry

    def emptying(self, deadline: float | None) -> Steps[bool]:
        """Wait until nothing waits any more, or until `deadline`; returns which."""
        waiter = self._hub.waiter()
        while not self._opened or self._lanes:
            now = self._hub.now()
            if deadline is not None and now >= deadline:
                return False
            yield waiter, now + 0.1 if deadline is None else min(now + 0.1, deadline)
        return True

    def describe(self) -> dict[str, typing.Any]:
        """See :func:`greenamqp.describe`.  From any thread."""
        with self._hub.lock:
            return {
                "directory": self._directory.path,
                "waiting": self._disk.count,
                "destinations": [str(each) for each in self._lanes],
                "sent": self.sent,
                "dropped": dict(self.dropped),
            }

    # -- to the disk

    def _opening(self) -> Steps[None]:
        """Until it is known what the file holds."""
        waiter = self._hub.waiter()
        with self._hub.lock:
            if self._opened or self._closed:
                return
            self._openers.append(waiter)
            self._work()
        yield waiter, None

    def _keeping(
        self, destination: Destination, letter: Letter, entry: Outgoing | None
    ) -> Steps[bool]:
        """Write it to the disk, and wait for that; returns whether it is there, or has
        been taken meanwhile.

        :param entry: as which it is on its way already
        """
        waiter = self._hub.waiter()
        with self._hub.lock:
            if self._closed:
                return False
            if entry is not None and entry.done and entry.error is None:
                return True
            lane = self._lane(destination)
            flight = None
            if entry is not None and not entry.done:
                flight = self._fly(lane, letter.unique_id)
                flight.entry = entry
                entry.on_end = functools.partial(self._landed, flight)
                entry.waiter = None
            put = _Put(lane, letter._replace(lane=lane.name), waiter, flight)
            lane.puts += 1
            self._puts.append(put)
            self._work()
        while not put.done:
            yield waiter, None
        return put.error is None

    def _tell_failing(self, error: BaseException) -> None:
        if not self.failing:
            self.failing = True
            _log(
                logging.ERROR,
                "notifications cannot be written to the outbox %s (%s): they wait for "
                "the message bus as if there were none",
                self._directory.path,
                str(error) or type(error).__name__,
            )

    def _all_lanes(self) -> list[_Lane]:
        return list(self._lanes.values())

    def _lane(self, destination: Destination) -> _Lane:
        lane = self._lanes.get(destination)
        if lane is None:
            lane = self._lanes[destination] = _Lane(destination, self._hub)
            if not self._told:
                self._told = True
                _log(
                    logging.WARNING,
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
            if lane.more and not (lane.letters or lane.flights or lane.rest.runs)
        ]
        if not (self._puts or self._removed or wanting or self._look):
            return
        self._busy = True
        puts, self._puts = self._puts, []
        removed, self._removed = self._removed, []
        look, self._look = self._look, False
        letters = [put.letter for put in puts]
        self._hub.off_thread(
            functools.partial(self._disk.work, letters, removed, wanting, look),
            functools.partial(self._worked, puts, removed, wanting, look),
        )

    def _work_last(self) -> None:
        """After the last job: close the file."""
        self._busy = True
        self._hub.off_thread(
            functools.partial(self._disk.close, list(self._removed)), self._worked_last
        )

    def _worked(
        self,
        puts: list[_Put],
        removed: list[str],
        wanting: list[str],
        look: bool,
        done: Done | None,
        error: BaseException | None,
    ) -> None:
        with self._hub.lock:
            self._busy = False
            if done is None:
                assert error is not None
                self._failed(puts, removed, wanting, error)
                done = NOTHING
            else:
                if puts or look:
                    self.failing = False
                for put in puts:
                    self._written(put)
            for lane in self._all_lanes():
                if done.changed and lane.letters:
                    lane.letters.clear()
                    lane.more = True
                letters = done.read.get(lane.name)
                if letters is not None:
                    lane.letters.extend(
                        each for each in letters if each.unique_id not in self._removed
                    )
                    lane.more = lane.name in done.more or lane.puts > 0
            for name in done.lanes:
                lane = self._lane(_destination_of(name))
                lane.more = True
            self._tell(done)
            if look:
                self.refused = set(done.refused)
            self._opened = True
            openers = self._openers
            if not self._closed:
                self._openers = []
                for opener in openers:
                    opener.wake()
                if look:
                    self._next_look.call_in(LOOK_INTERVAL, self._look_again)
                for lane in self._all_lanes():
                    self._advance(lane)
                self._work()
            else:
                self._work_last()

    def _look_again(self) -> None:
        self._look = True
        self._work()

    def _worked_last(self, _done: object, error: BaseException | None) -> None:
        with self._hub.lock:
            self._hub.holders.pop(self, None)
            if error is not None:
                _log(logging.WARNING, "the outbox %s: %s", self._directory.path, error)
            for put in self._puts:
                put.done = True
                put.error = sqlite3.OperationalError("the transport was cleaned up")
                put.waiter.wake()
            for opener in self._openers:
                opener.wake()

    def _written(self, put: _Put) -> None:
        put.lane.puts -= 1
        if put.flight is not None and put.flight.over:
            # It was taken before it was there.
            self._removed.append(put.letter.unique_id)
        else:
            put.lane.more = True
        put.done = True
        put.waiter.wake()

    def _failed(
        self,
        puts: list[_Put],
        removed: list[str],
        wanting: list[str],
        error: BaseException,
    ) -> None:
        """The disk does not serve: who wanted to write hears of it, and what is on its
        way is theirs to wait for; the rest waits."""
        self._tell_failing(error)
        for put in puts:
            put.lane.puts -= 1
            if put.flight is not None:
                put.lane.flights.discard(put.flight)
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
        if self._closed:
            self._work_last()
        else:
            self._work()

    def _tell(self, done: Done) -> None:
        where = self._directory.path
        if done.moved:
            _log(
                logging.INFO,
                "%s notifications that another process left are sent from the outbox "
                "%s",
                done.moved,
                where,
            )
        for reason, count in (("too old", done.old), ("too many", done.shed)):
            if count:
                self.dropped[reason] += count
                _log(
                    logging.ERROR,
                    "%s notifications were lost from the outbox %s: %s",
                    count,
                    where,
                    reason,
                )
        for text in done.broken:
            _log(
                logging.ERROR, "a file of the outbox %s cannot be read: %s", where, text
            )
        for text in done.refused:
            if text not in self.refused:
                _log(logging.ERROR, "what another process left stays there: %s", text)

    # -- to the message bus

    def _fly(self, lane: _Lane, unique_id: str) -> _Flight:
        flight = _Flight(lane, unique_id)
        lane.flights.add(flight)
        return flight

    def _advance(self, lane: _Lane) -> None:
        """Send the next one, if none is on its way."""
        if lane.flights or lane.rest.runs or self._closed:
            return
        if lane.letters:
            letter = lane.letters.popleft()
            flight = self._fly(lane, letter.unique_id)
            try:
                compose = _compose_again(letter)
                flight.entry = self._client.offer(
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
                where = self._directory.path
                _log(logging.INFO, "nothing waits in the outbox %s", where)

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
                    _log(
                        logging.ERROR,
                        "a notification was lost from the outbox: %s",
                        error,
                    )
                lane.pause = _FIRST_PAUSE
                flight.over = True
                self._removed.append(flight.unique_id)
            else:
                _log(logging.WARNING, "a notification stays in the outbox: %s", error)
                lane.letters.clear()
                lane.more = True
                self._rest(lane)
            self._advance(lane)
            self._work()

    def _rest(self, lane: _Lane) -> None:
        if not (lane.rest.runs or self._closed):
            lane.rest.call_in(lane.pause, functools.partial(self._rested, lane))
            lane.pause = min(2 * lane.pause, _LONGEST_PAUSE)

    def _rested(self, lane: _Lane) -> None:
        with self._hub.lock:
            self._advance(lane)
            self._work()


def _log(level: int, text: str, *values: object) -> None:
    """Not to be sent: who sends log records would fill the outbox with them."""
    with logs.muted():
        LOG.log(level, text, *values)


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
    return Destination(exchange, topic, server, fanout, buses.Service.NOTIFY)


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


def _compose_again(letter: Letter) -> typing.Callable[[Format], Message]:
    message, context, envelope = loads(letter.content)
    return _compose(message, context, letter.unique_id, envelope)
