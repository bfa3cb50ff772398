# SPDX-License-Identifier: Apache-2.0
"""Counts what becomes of the messages of one client, as cheaply as that can be.

A count is an addition, and OpenTelemetry is shown the sums when somebody asks: its own
counters take longer for one message than the driver does.  Durations are recorded at
once, those of the messages that :mod:`greenamqp.telemetry.sample` chooses when they
begin: of the others nothing is made and no clock is read again, as one object counts
all messages of a kind and topic.
"""

from __future__ import annotations

import collections
import contextlib
import typing

from oslo_messaging import exceptions

from greenamqp.client.outgoing import Rejected, Withdrawn
from greenamqp.engine import ACCEPTED, MODIFIED, REJECTED, RELEASED
from greenamqp.telemetry.sample import Sample

#: Kinds that are counted apart: names of topics and of errors are others' to choose.
MOST_KINDS = 1000

_OTHER = "_OTHER"

#: Records a duration in seconds, of a kind of message, its topic, and what came of it.
Record = typing.Callable[[float, str, str | None, str], None]

_OUTCOMES = {
    ACCEPTED: "accepted",
    REJECTED: "rejected",
    RELEASED: "released",
    MODIFIED: "modified",
}


class Histograms(typing.NamedTuple):
    """Where durations are recorded."""

    #: From the call of the driver until its end.
    operation: Record
    #: From the engine until the outcome.
    settlement: Record
    #: From the handing out until the reply or acknowledgement.
    process: Record


class Tally:
    """See the module.

    :param now: the hub's clock
    :param lock: the hub's
    :ivar kinds: what went well, by kind and topic
    :ivar failed: how many were not sent, by kind, topic and kind of error
    :ivar refused: outcomes other than accepted: how many, by kind, outcome and the
        condition of an error
    """

    def __init__(
        self,
        now: typing.Callable[[], float],
        lock: contextlib.AbstractContextManager[typing.Any],
        histograms: Histograms,
    ) -> None:
        self.now = now
        self.lock = lock
        self.histograms = histograms
        self.kinds: dict[tuple[str, str | None], Kind] = {}
        self.failed: collections.Counter[tuple[str, str | None, str]]
        self.failed = collections.Counter()
        self.refused: collections.Counter[tuple[str, str, str]]
        self.refused = collections.Counter()
        self._sent = Sample()
        self._processed = Sample()

    def sending(self, what: str, topic: str | None) -> Kind | Sent:
        """See :data:`greenamqp.client.observer.Sending`."""
        kind = self.kinds.get((what, topic)) or self._kind(what, topic)
        now = self.now()
        return Sent(kind, now) if self._sent.takes(now) else kind

    def handed_out(
        self, what: str, topic: str | None, context: dict[str, typing.Any]
    ) -> Processed | None:
        """See :data:`greenamqp.client.observer.HandedOut`."""
        now = self.now()
        with self.lock:
            kind = self.kinds.get((what, topic)) or self._kind(what, topic)
            kind.received += 1
            taken = self._processed.takes(now)
        return Processed(kind, now) if taken else None

    def _kind(self, what: str, topic: str | None) -> Kind:
        """A new one, unless there are MOST_KINDS already."""
        if len(self.kinds) >= MOST_KINDS:
            topic = _OTHER
        return self.kinds.setdefault((what, topic), Kind(self, what, topic))


class Kind:
    """Counts messages of one kind and topic: see
    :class:`greenamqp.client.observer.Observation`.

    :ivar sent: how many were sent, and all was well
    :ivar accepted: outcomes
    :ivar received: how many were handed out
    """

    __slots__ = ("accepted", "received", "sent", "tally", "topic", "what")

    def __init__(self, tally: Tally, what: str, topic: str | None) -> None:
        self.tally = tally
        self.what = what
        self.topic = topic
        self.sent = self.accepted = self.received = 0

    def transmitted(self) -> None:
        """It was given to the engine."""

    def settled(self, outcome: int, error: typing.Any) -> None:
        """The bus said what became of it."""
        name = _OUTCOMES.get(outcome, "accepted")
        if name == "accepted":
            self.accepted += 1
            return
        condition = getattr(error, "condition", "")
        count(
            self.tally.refused,
            (self.what, name, condition),
            (self.what, name, condition and _OTHER),
        )

    def ended(self, error: Exception | None) -> None:
        """Nothing more will happen to it."""
        if error is None:
            self.sent += 1
            return
        key = self.what, self.topic, error_type(error)
        count(self.tally.failed, key, (self.what, _OTHER, _OTHER))


class Sent:
    """One message whose durations are recorded: see
    :class:`greenamqp.client.observer.Observation`."""

    __slots__ = ("_began", "_kind", "_transmitted")

    def __init__(self, kind: Kind, began: float) -> None:
        self._kind = kind
        self._began = self._transmitted = began

    def transmitted(self) -> None:
        """It was given to the engine."""
        self._transmitted = self._kind.tally.now()

    def settled(self, outcome: int, error: typing.Any) -> None:
        """The bus said what became of it."""
        kind = self._kind
        kind.settled(outcome, error)
        kind.tally.histograms.settlement(
            kind.tally.now() - self._transmitted,
            kind.what,
            kind.topic,
            _OUTCOMES.get(outcome, "accepted"),
        )

    def ended(self, error: Exception | None) -> None:
        """Nothing more will happen to it."""
        kind = self._kind
        kind.ended(error)
        kind.tally.histograms.operation(
            kind.tally.now() - self._began,
            kind.what,
            kind.topic,
            "" if error is None else error_type(error),
        )


class Processed:
    """One message whose processing is recorded: see
    :class:`greenamqp.client.observer.Processing`."""

    __slots__ = ("_began", "_kind")

    def __init__(self, kind: Kind, began: float) -> None:
        self._kind = kind
        self._began = began

    def begun(self) -> None:
        """It is carried out next."""

    def ended(self, error: str) -> None:
        """It was replied to, acknowledged or given back."""
        kind = self._kind
        kind.tally.histograms.process(
            kind.tally.now() - self._began, kind.what, kind.topic, error
        )


_Key = typing.TypeVar("_Key")


def count(counter: collections.Counter[_Key], key: _Key, other: _Key) -> None:
    """One more of that key, or of `other` if there are MOST_KINDS already."""
    if len(counter) >= MOST_KINDS and key not in counter:
        key = other
    counter[key] += 1


def error_type(error: Exception) -> str:
    """The kind of an error that a sender gets: one of a few words, or the condition
    that the bus gave."""
    condition = getattr(error.__cause__, "condition", "")
    if condition:
        return str(condition)
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, Withdrawn):
        return "withdrawn"
    if isinstance(error, exceptions.MessageUndeliverable):
        return "undeliverable"
    if isinstance(error, Rejected):
        return "rejected"
    return "failed"
