# SPDX-License-Identifier: Apache-2.0
"""Queues, and the addresses that lead to them: what a broker keeps.  No I/O.

A :class:`Queue` holds messages until a consumer settles them.  An :class:`Address` is
what a sender names: it puts a message into each queue it leads to.

* An address of the kind QUEUE has a queue of its own (the *plain* queue), which its
  receivers compete for.
* An address of the kind TOPIC has none; each receiver gets a queue of its own for as
  long as it is attached, hence its own copy.
* Either may have *bound* queues, made by a receiver that attaches to ``ADDRESS::NAME``:
  each gets a copy of every message, and its receivers compete for it.

Where an address of the kind QUEUE has bound queues, its plain queue takes part from
the first time on that somebody received from it; without bound queues it always does.
So a message waits for the first listener that comes, and yet nothing piles up beside
the bound queues for a listener that there never was.

Messages are encoded bytes and are never changed, but for the header of one that is
delivered again or whose time to live is shorter by now.

All of it belongs to one thread: see :class:`greenamqp.broker.Broker`.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import heapq
import logging
import typing

from greenamqp.broker import encoding

LOG = logging.getLogger(__name__)

# A queue that was full lets its senders go on when it is down to this share, so that
# they are not woken for every message that leaves.
_RESUME_AT = 0.75

# What a message that is kept costs beside its own bytes, roughly: or small messages
# would take many times the memory that they may.
MESSAGE_OVERHEAD = 256

# How many messages may be lost between two lines in the log that say so.
_LOSSES_PER_LINE = 10_000


class Outcome(enum.Enum):
    """What became of a message that was sent to an address."""

    #: it is in every queue that it belongs in; for a topic without receivers, nowhere
    ACCEPTED = "accepted"
    #: there is no room for it
    FULL = "full"
    #: a queue's policy is to refuse what exceeds its length
    REFUSED = "refused"
    #: what the link names is not there any more
    GONE = "gone"


class Kind(enum.Enum):
    """What an address does with a message; see the module."""

    QUEUE = "queue"
    TOPIC = "topic"


@dataclasses.dataclass(frozen=True)
class Policy:
    """How a queue limits what it holds.  Times in seconds, sizes in bytes.

    ``max_messages`` and ``max_bytes`` count what waits and what is with a consumer.
    At either of them senders get no more credit or, where ``drop_oldest`` is set, the
    oldest message that waits is dropped.  ``max_length`` counts what waits; past it
    the oldest is dropped, or the newest refused where ``refuse_newest`` is set.
    """

    max_messages: int = 1_000_000
    max_bytes: int = 256 * 1024 * 1024
    drop_oldest: bool = False
    max_length: int | None = None
    refuse_newest: bool = False
    #: no message lives longer than this in the queue
    message_ttl: float | None = None
    #: the queue is deleted after so long without a consumer; None: it stays
    expires: float | None = None


class Consumer(typing.Protocol):
    """Who receives from a queue."""

    #: kept by the queue: whether it waits among those that have credit
    listed: bool

    def deliver(self, entry: Entry, data: bytes) -> bool:
        """Send the message, which is `entry`'s as it is now.

        Returns whether it can take another one.  If it cannot take even this one it
        says so to the queue: Queue.give_back.  Where the receiver wants messages
        settled, it tells the queue at once that the entry is done with.
        """


class Usage:
    """What all queues of a broker hold together, and how much that may be.

    Bytes; what a message costs beside its own bytes is counted as MESSAGE_OVERHEAD.
    Also how many addresses there are, bound queues included.
    """

    __slots__ = ("addresses", "bytes", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.addresses = 0
        #: queues whose senders wait for room
        self.waiting: dict[Queue, None] = {}

    def wait(self, queue: Queue) -> None:
        """`queue`'s senders wait until there is room."""
        self.waiting[queue] = None

    def freed(self) -> None:
        """There may be room again."""
        if self.bytes <= self.limit * _RESUME_AT:
            waiting, self.waiting = self.waiting, {}
            for queue in waiting:
                queue.look_for_room()


class Entry:
    """A message in one queue."""

    __slots__ = (
        "data",
        "excluded",
        "expires",
        "failures",
        "queue",
        "returned",
        "sequence",
    )

    def __init__(
        self, queue: Queue, data: bytes, expires: float | None, sequence: int
    ) -> None:
        self.queue = queue
        self.data = data
        self.expires = expires
        self.sequence = sequence
        self.failures = 0
        self.returned = False
        #: consumers that said it is undeliverable there
        self.excluded: set[Consumer] | None = None

    def render(self, now: float) -> bytes:
        """The message as it goes out now."""
        ttl = None
        if self.expires is not None:
            # 0 would mean that it lives for ever.
            ttl = max(1, int((self.expires - now) * 1000))
        if self.returned:
            return encoding.redelivered(self.data, self.failures, ttl)
        if ttl is not None:
            return encoding.with_ttl(self.data, ttl)
        return self.data


class Queue:
    """Messages in order, and the consumers that compete for them.

    A message goes to one consumer that can take it, in turn.  It stays counted until
    it is settled.  What comes back is delivered again before what came later.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        usage: Usage,
        clock: typing.Callable[[], float],
    ) -> None:
        self.name = name
        self.policy = policy
        #: messages that wait or are with a consumer, and their bytes
        self.depth = 0
        self.bytes = 0
        self.consumers: set[Consumer] = set()
        self.deleted = False
        #: when the last consumer left, or the queue was made
        self.idle_since = clock()
        #: whether anybody ever received from it
        self.had_consumer = False
        #: whether it goes with its last consumer
        self.auto_delete = False
        #: told when there is room after there was none
        self.on_room: typing.Callable[[], None] | None = None
        self._usage = usage
        self.clock = clock
        self._blocked = False
        self._sequence = 0
        self._lost = 0
        self._ready: collections.deque[Consumer] = collections.deque()
        self._waiting: collections.deque[Entry] = collections.deque()
        # What came back, as a heap by sequence: it goes out before what waits.
        self._returned: list[tuple[int, Entry]] = []
        # What some consumers cannot take, by sequence.  Not empty only where a
        # consumer said so, and then short.
        self._picky: list[Entry] = []
        # The earliest instant at which something that waits may be too old.
        self._next_expiry = float("inf")

    def __repr__(self) -> str:
        return f"<Queue {self.name!r} {self.depth}>"

    @property
    def waiting(self) -> int:
        """Messages that are with no consumer."""
        return len(self._waiting) + len(self._returned) + len(self._picky)

    # -- what senders do

    def put(self, data: bytes, expires: float | None = None) -> bool:
        """Take a message in; `expires` is the instant at which it is too old.

        Returns False if the policy is to refuse it.
        """
        policy = self.policy
        if policy.message_ttl is not None:
            latest = self.clock() + policy.message_ttl
            expires = latest if expires is None else min(expires, latest)
        self._sequence = sequence = self._sequence + 1
        entry = Entry(self, data, expires, sequence)
        size = len(data)
        ready = self._ready
        if ready:
            # Nothing waits that they could take, or they would not be ready.
            self.depth += 1
            self.bytes += size
            self._usage.bytes += size + MESSAGE_OVERHEAD
            consumer = ready.popleft()
            consumer.listed = False
            if consumer.deliver(entry, data) and not consumer.listed:
                consumer.listed = True
                ready.append(consumer)
            return True
        if policy.max_length is not None and self.waiting >= policy.max_length:
            if policy.refuse_newest or policy.max_length <= 0:
                return not policy.refuse_newest
            self._drop_oldest("is longer than its policy allows")
        self.depth += 1
        self.bytes += size
        self._usage.bytes += size + MESSAGE_OVERHEAD
        self._waiting.append(entry)
        if expires is not None and expires < self._next_expiry:
            self._next_expiry = expires
        if policy.drop_oldest:
            usage = self._usage
            while self._waiting and (
                self.bytes > policy.max_bytes
                or self.depth > policy.max_messages
                or usage.bytes > usage.limit
            ):
                self._drop_oldest("is full")
        return True

    def room(self) -> int:
        """How many more messages there is room for; if there is none, `on_room` will
        be called when there is."""
        policy = self.policy
        if policy.drop_oldest:
            return policy.max_messages
        if self._usage.bytes >= self._usage.limit:
            self._blocked = True
            self._usage.wait(self)
            return 0
        if self.bytes < policy.max_bytes and self.depth < policy.max_messages:
            return policy.max_messages - self.depth
        self._blocked = True
        return 0

    def look_for_room(self) -> None:
        """Call `on_room` if there is room again."""
        policy = self.policy
        if (
            self._blocked
            and self.depth <= policy.max_messages * _RESUME_AT
            and self.bytes <= policy.max_bytes * _RESUME_AT
        ):
            self._blocked = False
            if self.on_room is not None:
                self.on_room()

    # -- what receivers do

    def subscribe(self, consumer: Consumer) -> None:
        """`consumer` receives from now on; it says when it has credit: `ready`."""
        consumer.listed = False
        self.consumers.add(consumer)
        self.had_consumer = True

    def unsubscribe(self, consumer: Consumer) -> None:
        """`consumer` receives no more; what it holds it gives back."""
        self.consumers.discard(consumer)
        if consumer.listed:
            consumer.listed = False
            self._ready.remove(consumer)
        self.idle_since = self.clock()
        if self._picky:
            # Who refused them is gone; another link may take them.
            for entry in self._picky:
                if entry.excluded is not None:
                    entry.excluded.discard(consumer)
            self._offer_picky()

    def ready(self, consumer: Consumer) -> None:
        """`consumer` can take messages: it gets what waits, then what comes."""
        if consumer.listed or consumer not in self.consumers:
            return
        if self._waiting or self._returned or self._picky:
            now = self.clock()
            while (entry := self._next(consumer, now)) is not None:
                if not consumer.deliver(entry, entry.render(now)):
                    return
                if consumer.listed or consumer not in self.consumers:
                    return  # became ready anew, or left, while it was served
        consumer.listed = True
        self._ready.append(consumer)

    def not_ready(self, consumer: Consumer) -> None:
        """`consumer` cannot take messages any more."""
        if consumer.listed:
            consumer.listed = False
            self._ready.remove(consumer)

    def done(self, entry: Entry) -> None:
        """A consumer accepted or rejected the message: it is forgotten."""
        size = len(entry.data)
        self.depth -= 1
        self.bytes -= size
        self._usage.bytes -= size + MESSAGE_OVERHEAD
        if self._blocked:
            self.look_for_room()
        if self._usage.waiting:
            self._usage.freed()

    def give_back(
        self, entry: Entry, failed: bool, excluded: Consumer | None = None
    ) -> None:
        """A consumer did not take the message: it goes to another, or again.

        :param failed: count this as a failed delivery
        :param excluded: do not deliver it to this consumer again
        """
        if self.deleted:
            self.done(entry)
            return
        entry.returned = True
        if failed:
            entry.failures += 1
        if entry.expires is not None and entry.expires < self._next_expiry:
            self._next_expiry = entry.expires
        if excluded is not None:
            if entry.excluded is None:
                entry.excluded = set()
            entry.excluded.add(excluded)
        if entry.excluded:
            self._picky.append(entry)
            self._picky.sort(key=lambda entry: entry.sequence)
            self._offer_picky()
            return
        heapq.heappush(self._returned, (entry.sequence, entry))
        while self._ready and self._returned:
            consumer = self._ready.popleft()
            consumer.listed = False
            self._serve_one(consumer)

    def _serve_one(self, consumer: Consumer) -> None:
        now = self.clock()
        entry = self._next(consumer, now)
        if entry is not None and not consumer.deliver(entry, entry.render(now)):
            return
        if not consumer.listed and consumer in self.consumers:
            consumer.listed = True
            self._ready.append(consumer)

    def _offer_picky(self) -> None:
        """Give what some cannot take to whoever can."""
        for consumer in list(self._ready):
            if not self._picky:
                return
            if consumer.listed:
                self._ready.remove(consumer)
                consumer.listed = False
                self.ready(consumer)

    def _next(self, consumer: Consumer, now: float) -> Entry | None:
        """The next message for `consumer`, taken out of what waits."""
        if self._picky:
            for index, entry in enumerate(self._picky):
                if entry.excluded is None or consumer not in entry.excluded:
                    del self._picky[index]
                    if entry.expires is not None and entry.expires <= now:
                        self._expired(entry)
                        return self._next(consumer, now)
                    return entry
        while True:
            if self._returned:
                entry = heapq.heappop(self._returned)[1]
            elif self._waiting:
                entry = self._waiting.popleft()
            else:
                return None
            if entry.expires is None or entry.expires > now:
                return entry
            self._expired(entry)

    # -- getting rid of messages

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        if now < self._next_expiry:
            return
        self._next_expiry = float("inf")
        entries = [*(entry for _, entry in self._returned), *self._picky]
        entries += self._waiting
        self._returned, self._picky = [], []
        self._waiting.clear()
        for entry in entries:
            if entry.expires is not None:
                if entry.expires <= now:
                    self._expired(entry)
                    continue
                self._next_expiry = min(self._next_expiry, entry.expires)
            if entry.excluded:
                self._picky.append(entry)
            elif entry.returned:
                self._returned.append((entry.sequence, entry))
            else:
                self._waiting.append(entry)
        heapq.heapify(self._returned)

    def _expired(self, entry: Entry) -> None:
        LOG.debug("queue %s: message %d is too old", self.name, entry.sequence)
        self.done(entry)

    def _drop_oldest(self, reason: str) -> None:
        if self._picky:
            entry = self._picky.pop(0)
        elif self._returned:
            entry = heapq.heappop(self._returned)[1]
        elif self._waiting:
            entry = self._waiting.popleft()
        else:
            return
        if self._lost % _LOSSES_PER_LINE == 0:
            LOG.warning(
                "queue %s %s: the oldest messages are dropped (%d so far)",
                self.name,
                reason,
                self._lost + 1,
            )
        self._lost += 1
        self.done(entry)

    def purge(self) -> int:
        """Drop all that waits; returns how many messages that were."""
        entries = [*(entry for _, entry in self._returned), *self._picky]
        entries += self._waiting
        self._returned, self._picky = [], []
        self._waiting.clear()
        for entry in entries:
            self.done(entry)
        return len(entries)

    def delete(self) -> None:
        """Drop all that waits, and in future all that comes back."""
        self.deleted = True
        self.purge()
        self._blocked = False


class Address:
    """What a sender names; see the module for the kinds."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        policy: Policy,
        usage: Usage,
        clock: typing.Callable[[], float],
    ) -> None:
        self.name = name
        self.kind = kind
        self._policy = policy
        self._usage = usage
        self.clock = clock
        self.plain: Queue | None = None
        self.bound: dict[str, Queue] = {}
        self.subscriptions: list[Queue] = []
        #: callables of the senders that wait for room
        self._stalled: list[typing.Callable[[], None]] = []
        #: links that name this address, of senders
        self.senders = 0
        #: the one link that it is for, if any: it goes with that, or expires after it
        self.owner: object = None
        #: somebody said what kind it is to be, so it is not to be guessed again
        self.explicit = False
        self.deleted = False
        self._targets: tuple[Queue, ...] = ()
        if kind is Kind.QUEUE:
            self.plain = self._queue(name, policy)
        self._retarget()

    def __repr__(self) -> str:
        return f"<Address {self.name!r} {self.kind.value}>"

    def _queue(self, name: str, policy: Policy) -> Queue:
        queue = Queue(name, policy, self._usage, self.clock)
        queue.on_room = self._on_room
        return queue

    def _retarget(self) -> None:
        targets = [*self.subscriptions, *self.bound.values()]
        plain = self.plain
        if plain is not None and (plain.had_consumer or not self.bound):
            targets.insert(0, plain)
        self._targets = tuple(targets)
        # A sender may have waited for a queue that does not count any more.
        self._on_room()

    # -- what senders do

    def send(self, data: bytes) -> Outcome:
        """Put a message where it belongs.

        :raises encoding.Malformed: if it is no message
        """
        targets = self._targets
        ttl = encoding.time_to_live(data)
        expires = self.clock() + ttl / 1000.0 if ttl else None
        if len(targets) == 1:
            return (
                Outcome.ACCEPTED if targets[0].put(data, expires) else Outcome.REFUSED
            )
        outcome = Outcome.ACCEPTED if not self.deleted else Outcome.GONE
        for queue in targets:
            if not queue.put(data, expires):
                outcome = Outcome.REFUSED
        return outcome

    def room(self) -> int:
        """How many messages there is room for, in the fullest queue."""
        targets = self._targets
        if len(targets) == 1:
            return targets[0].room()
        return min((queue.room() for queue in targets), default=1 << 30)

    def when_room(self, resume: typing.Callable[[], None]) -> None:
        """Call `resume`, once, when there is room again."""
        if resume not in self._stalled:
            self._stalled.append(resume)

    def forget(self, resume: typing.Callable[[], None]) -> None:
        """The sender that waited is gone."""
        if resume in self._stalled:
            self._stalled.remove(resume)

    def _on_room(self) -> None:
        if self._stalled:
            stalled, self._stalled = self._stalled, []
            for resume in stalled:
                resume()

    # -- what receivers do

    def subscribe(self, consumer: Consumer) -> Queue:
        """`consumer` receives what is sent to this address; returns its queue."""
        if self.plain is not None:
            first = not self.plain.had_consumer
            self.plain.subscribe(consumer)
            if first and self.bound:
                self._retarget()
            return self.plain
        # A receiver of a topic that is too slow loses messages, and slows nobody.
        policy = dataclasses.replace(self._policy, drop_oldest=True, expires=None)
        queue = self._queue(self.name, policy)
        queue.auto_delete = True
        queue.subscribe(consumer)
        self.subscriptions.append(queue)
        self._retarget()
        return queue

    def bind(self, name: str, policy: Policy) -> Queue:
        """The bound queue `name`, made if there is none."""
        queue = self.bound.get(name)
        if queue is None:
            queue = self._queue(f"{self.name}::{name}", policy)
            self.bound[name] = queue
            self._usage.addresses += 1
            self._retarget()
        return queue

    def unbind(self, name: str) -> None:
        """Delete the bound queue `name`, if there is one."""
        queue = self.bound.pop(name, None)
        if queue is not None:
            self._usage.addresses -= 1
            queue.delete()
            self._retarget()

    def unsubscribe(self, consumer: Consumer, queue: Queue) -> None:
        """`consumer` receives from `queue` no more; it has given back what it held."""
        queue.unsubscribe(consumer)
        if queue.auto_delete and not queue.consumers:
            if queue in self.subscriptions:
                self.subscriptions.remove(queue)
                queue.delete()
                self._retarget()
                return
            for name, bound in self.bound.items():
                if bound is queue:
                    self.unbind(name)
                    return

    # -- its life

    @property
    def queues(self) -> list[Queue]:
        """All queues that belong to it."""
        plain = [self.plain] if self.plain is not None else []
        return [*plain, *self.subscriptions, *self.bound.values()]

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost if it were made anew when next named."""
        return (
            not self.senders
            and not self.explicit
            and not self.bound
            and not self.subscriptions
            and self.owner is None
            and (
                self.plain is None
                or (not self.plain.depth and not self.plain.consumers)
            )
        )

    def expire(self, now: float) -> bool:
        """Drop messages that are too old and queues that nobody used for long.

        Returns whether the address itself is to go.
        """
        for queue in self.queues:
            queue.expire(now)
        for name, queue in list(self.bound.items()):
            if _unused(queue, now):
                LOG.debug("queue %s expired", queue.name)
                self.unbind(name)
        if self.plain is not None and _unused(self.plain, now):
            self.plain.purge()
            return not self.bound and not self.senders
        return False

    def delete(self) -> None:
        """Drop all that it holds."""
        self.deleted = True
        for queue in self.queues:
            queue.delete()
        self._usage.addresses -= len(self.bound)
        self.bound.clear()
        self._targets = ()
        self._on_room()


def _unused(queue: Queue, now: float) -> bool:
    expires = queue.policy.expires
    return (
        expires is not None
        and not queue.consumers
        and now - queue.idle_since >= expires
    )


class BoundTarget:
    """A bound queue as what a sender names: its messages go there alone."""

    __slots__ = ("address", "queue")

    def __init__(self, address: Address, queue: Queue) -> None:
        self.address = address
        self.queue = queue

    def send(self, data: bytes) -> Outcome:
        """As :meth:`Address.send`."""
        if self.queue.deleted:
            # Another one of its name may have come.
            name = self.queue.name.removeprefix(f"{self.address.name}::")
            self.queue = self.address.bound.get(name, self.queue)
            if self.queue.deleted:
                return Outcome.GONE
        ttl = encoding.time_to_live(data)
        expires = self.queue.clock() + ttl / 1000.0 if ttl else None
        return Outcome.ACCEPTED if self.queue.put(data, expires) else Outcome.REFUSED

    def room(self) -> int:
        """As :meth:`Address.room`."""
        return self.queue.room() if not self.queue.deleted else 1
