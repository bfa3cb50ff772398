# SPDX-License-Identifier: Apache-2.0
"""Who got what: the account of every message that the demo sends.

A *stream* is a numbered row of messages from one sender, 0, 1, 2, ... Each stream
has *receivers*, and each receiver has to get each message exactly once. A receiver
may be several *workers* that share the messages (a pool in two processes). The
ledger is told what was sent and what came, in any order, and finds what is lost,
doubled or was never sent. Pure, no I/O. To be used from one thread.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one stream at one receiver, by the messages' numbers.

    ``lost`` are those whose send succeeded and that never came; ``doubled`` came more
    than once; ``unsent`` came although the stream has no such number. A message whose
    send failed may have come or not, as the sender cannot know, and is not lost.
    """

    stream: str
    receiver: str
    received: int
    lost: list[int]
    doubled: list[int]
    unsent: list[int]

    @property
    def exactly_once(self) -> bool:
        """True if nothing was lost, doubled or made up."""
        return not (self.lost or self.doubled or self.unsent)


class _Stream:
    def __init__(self, receivers: Sequence[str]):
        self.sent = 0
        self.failed: set[int] = set()
        # How often each number came.
        self.came: dict[str, collections.Counter[int]] = {
            receiver: collections.Counter() for receiver in receivers
        }
        self.workers: collections.Counter[tuple[str, str]] = collections.Counter()

    def lost(self, receiver: str) -> list[int]:
        return sorted({*range(self.sent)} - self.failed - self.came[receiver].keys())


class Ledger:
    """The account of all streams."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}

    def expect(self, stream: str, receivers: Sequence[str]) -> None:
        """Open a stream whose every message is due once at each of ``receivers``."""
        self._streams[stream] = _Stream(receivers)

    def sent(self, stream: str, number: int, failed: Iterable[int] = ()) -> None:
        """Note ``number`` further sends, of which those numbered ``failed`` failed."""
        known = self._streams[stream]
        known.sent += number
        known.failed.update(failed)

    def got(
        self, stream: str, receiver: str, worker: str, numbers: Sequence[int]
    ) -> None:
        """Note that ``worker`` of ``receiver`` got the messages ``numbers``."""
        known = self._streams[stream]
        known.came[receiver].update(numbers)
        known.workers[receiver, worker] += len(numbers)

    def sends(self, stream: str) -> tuple[int, int]:
        """How many sends of a stream succeeded, and how many failed."""
        known = self._streams[stream]
        return known.sent - len(known.failed), len(known.failed)

    def receipts(self, stream: str, receiver: str) -> int:
        """How many messages a receiver got, doubled ones counted every time."""
        return self._streams[stream].came[receiver].total()

    def split(self, stream: str, receiver: str) -> dict[str, int]:
        """How many messages each worker of a receiver got."""
        workers = self._streams[stream].workers
        return {
            worker: count
            for (who, worker), count in sorted(workers.items())
            if who == receiver
        }

    def complete(self) -> bool:
        """True if everything that was sent so far has come at all its receivers."""
        return not any(
            stream.lost(receiver)
            for stream in self._streams.values()
            for receiver in stream.came
        )

    def verdicts(self) -> list[Verdict]:
        """The account of every stream at every receiver, in the order opened."""
        return [
            Verdict(
                name,
                receiver,
                received=came.total(),
                lost=stream.lost(receiver),
                doubled=sorted(each for each, times in came.items() if times > 1),
                unsent=sorted(each for each in came if each >= stream.sent),
            )
            for name, stream in self._streams.items()
            for receiver, came in stream.came.items()
        ]
