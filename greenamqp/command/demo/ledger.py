# SPDX-License-Identifier: Apache-2.0
"""Who got what: the account of every message that the demo sends.

A *stream* is a numbered row of messages from one sender, 0, 1, 2, ... Each stream
has *receivers*, and each receiver has to get each message exactly once. A receiver
may be several *workers* that share the messages (a pool in two processes). The
ledger is told what was sent and what came, in any order, and finds what is lost,
doubled or was never sent.

Promises: counts are exact, whatever the order; memory is one byte per message and
receiver. Pure, no I/O. To be used from one thread.
"""

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Sequence

#: A message that came this often or more is counted as this often: a count is
#: kept in one byte.
_COUNT_MAX = 255

#: How many numbers a verdict lists of each kind: to look at, not to count.
_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one stream at one receiver.

    ``lost`` are messages whose send succeeded and that never came; ``doubled``
    came more than once; ``unsent`` came although the stream has no such number.
    A message whose send failed may have come or not, as the sender cannot know,
    and counts as lost in neither case. ``examples`` has a few numbers of each kind.
    """

    stream: Hashable
    receiver: str
    received: int
    lost: int
    doubled: int
    unsent: int
    examples: dict[str, list[int]]

    @property
    def exactly_once(self) -> bool:
        """True if nothing was lost, doubled or made up."""
        return not (self.lost or self.doubled or self.unsent)


class _Received:
    """How often each number of one stream came at one receiver."""

    def __init__(self) -> None:
        self.counts = bytearray()
        self.total = 0
        self.doubled = 0

    def add(self, numbers: Iterable[int]) -> None:
        counts = self.counts
        for number in numbers:
            if number < 0:
                raise ValueError(f"a message cannot have the number {number}")
            if number >= len(counts):
                counts.extend(bytes(number + 1 - len(counts)))
            self.total += 1
            if counts[number] == 1:
                self.doubled += 1
            if counts[number] < _COUNT_MAX:
                counts[number] += 1

    def never(self, sent: int) -> int:
        """How many of the first ``sent`` numbers never came."""
        known = min(sent, len(self.counts))
        return self.counts.count(0, 0, known) + sent - known

    def came(self, number: int) -> bool:
        return number < len(self.counts) and self.counts[number] > 0


class _Stream:
    def __init__(self, receivers: Sequence[str]):
        self.sent = 0
        self.failed: set[int] = set()
        self.received = {receiver: _Received() for receiver in receivers}
        self.workers: collections.Counter[tuple[str, str]] = collections.Counter()

    def lacks(self, number: int) -> bool:
        """True if the message has to come: it was sent, and successfully."""
        return number < self.sent and number not in self.failed

    def lost(self, receiver: str) -> int:
        received = self.received[receiver]
        excused = sum(not received.came(number) for number in self.failed)
        return received.never(self.sent) - excused


class Ledger:
    """The account of all streams."""

    def __init__(self) -> None:
        self._streams: dict[Hashable, _Stream] = {}

    def expect(self, stream: Hashable, receivers: Sequence[str]) -> None:
        """Open a stream whose every message is due once at each of ``receivers``."""
        if stream in self._streams:
            raise ValueError(f"stream {stream!r} is open already")
        self._streams[stream] = _Stream(receivers)

    def sent(self, stream: Hashable, number: int, failed: Iterable[int] = ()) -> None:
        """Note ``number`` further sends, of which those numbered ``failed`` failed."""
        known = self._streams[stream]
        known.sent += number
        known.failed.update(failed)

    def got(
        self, stream: Hashable, receiver: str, worker: str, numbers: Sequence[int]
    ) -> None:
        """Note that ``worker`` of ``receiver`` got the messages ``numbers``."""
        known = self._streams[stream]
        known.received[receiver].add(numbers)
        known.workers[receiver, worker] += len(numbers)

    def sends(self, stream: Hashable) -> tuple[int, int]:
        """How many sends of a stream succeeded, and how many failed."""
        known = self._streams[stream]
        return known.sent - len(known.failed), len(known.failed)

    def receipts(self, stream: Hashable, receiver: str) -> int:
        """How many messages a receiver got, doubled ones counted every time."""
        return self._streams[stream].received[receiver].total

    def split(self, stream: Hashable, receiver: str) -> dict[str, int]:
        """How many messages each worker of a receiver got."""
        workers = self._streams[stream].workers
        return {
            worker: count
            for (who, worker), count in sorted(workers.items())
            if who == receiver
        }

    def complete(self) -> bool:
        """True if everything that was sent so far has come at all its receivers."""
        return all(
            stream.lost(receiver) == 0
            for stream in self._streams.values()
            for receiver in stream.received
        )

    def verdicts(self) -> list[Verdict]:
        """The account of every stream at every receiver, in the order opened."""
        return [
            self._verdict(name, stream, receiver)
            for name, stream in self._streams.items()
            for receiver in stream.received
        ]

    @staticmethod
    def _verdict(name: Hashable, stream: _Stream, receiver: str) -> Verdict:
        received = stream.received[receiver]
        lost = stream.lost(receiver)
        beyond = received.counts[stream.sent :]
        unsent = len(beyond) - beyond.count(0)
        examples: dict[str, list[int]] = {}
        if lost or unsent or received.doubled:
            for number in range(max(stream.sent, len(received.counts))):
                came = received.came(number)
                for kind, applies in (
                    ("lost", not came and stream.lacks(number)),
                    ("doubled", came and received.counts[number] > 1),
                    ("unsent", came and number >= stream.sent),
                ):
                    if applies and len(examples.setdefault(kind, [])) < _EXAMPLES:
                        examples[kind].append(number)
        return Verdict(
            stream=name,
            receiver=receiver,
            received=received.total,
            lost=lost,
            doubled=received.doubled,
            unsent=unsent,
            examples=examples,
        )
