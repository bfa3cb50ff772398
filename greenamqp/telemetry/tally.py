# SPDX-License-Identifier: Apache-2.0
"""Counts what becomes of the messages of one client, as cheaply as that can be.

A count is an addition in a dict, and OpenTelemetry is shown the sums when somebody
asks: its own counters take longer for one message than the driver does.  Durations are
recorded at once, those that :mod:`greenamqp.telemetry.sample` chooses.
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
    :ivar sent: how many, by kind, topic and kind of error ("": none)
    :ivar outcomes: how many, by kind, outcome and the condition of an error
    :ivar received: how many, by kind and topic
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
        self.sent: collections.Counter[tuple[str, str | None, str]]
        self.sent = collections.Counter()
        self.outcomes: collections.Counter[tuple[str, str, str]]
        self.outcomes = collections.Counter()
        self.received: collections.Counter[tuple[str, str | None]]
        self.received = collections.Counter()
        self.operations = Sample()
        self.settlements = Sample()
        self.processes = Sample()

    def sending(self, what: str, topic: str | None) -> Sent:
        """See :data:`greenamqp.client.observer.Sending`."""
        return Sent(self, what, topic)

    def handed_out(
        self, what: str, topic: str | None, context: dict[str, typing.Any]
    ) -> Processed:
        """See :data:`greenamqp.client.observer.HandedOut`."""
        with self.lock:
            count(self.received, (what, topic), (what, _OTHER))
        return Processed(self, what, topic)


class Sent:
    """See :class:`greenamqp.client.observer.Observation`."""

    __slots__ = ("_began", "_tally", "_topic", "_transmitted", "_what")

    def __init__(self, tally: Tally, what: str, topic: str | None) -> None:
        self._tally = tally
        self._what = what
        self._topic = topic
        self._began = self._transmitted = tally.now()

    def transmitted(self) -> None:
        """It was given to the engine."""
        self._transmitted = self._tally.now()

    def settled(self, outcome: int, error: typing.Any) -> None:
        """The bus said what became of it."""
        tally = self._tally
        name = _OUTCOMES.get(outcome, "accepted")
        condition = getattr(error, "condition", "")
        count(
            tally.outcomes,
            (self._what, name, condition),
            (self._what, name, condition and _OTHER),
        )
        now = tally.now()
        if tally.settlements.takes(now):
            tally.histograms.settlement(
                now - self._transmitted, self._what, self._topic, name
            )

    def ended(self, error: Exception | None) -> None:
        """Nothing more will happen to it."""
        tally = self._tally
        kind = "" if error is None else error_type(error)
        count(
            tally.sent,
            (self._what, self._topic, kind),
            (self._what, _OTHER, kind and _OTHER),
        )
        now = tally.now()
        if tally.operations.takes(now):
            tally.histograms.operation(now - self._began, self._what, self._topic, kind)


class Processed:
    """See :class:`greenamqp.client.observer.Processing`."""

    __slots__ = ("_began", "_tally", "_topic", "_what")

    def __init__(self, tally: Tally, what: str, topic: str | None) -> None:
        self._tally = tally
        self._what = what
        self._topic = topic
        self._began = tally.now()

    def begun(self) -> None:
        """It is carried out next."""

    def ended(self, error: str) -> None:
        """It was replied to, acknowledged or given back."""
        tally = self._tally
        now = tally.now()
        with tally.lock:
            taken = tally.processes.takes(now)
        if taken:
            tally.histograms.process(now - self._began, self._what, self._topic, error)


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
