# SPDX-License-Identifier: Apache-2.0
"""Traffic whose every message has a number, and what became of each.

:class:`Sending` sends notifications and calls from many threads at once and writes down
how each ended; :class:`Arrivals` is the endpoint at the other end.  What either holds
goes over a pipe as JSON; :func:`compare` draws the two together.
"""

from __future__ import annotations

import collections
import itertools
import threading
import time
import typing

import oslo_messaging

# Seconds without another message after which what has not come will not come.
QUIET = 20.0


class Arrivals:
    """What came, by number, and how often: an endpoint of servers and listeners."""

    def __init__(self) -> None:
        self.notified: collections.Counter[int] = collections.Counter()
        self.executed: collections.Counter[int] = collections.Counter()
        self._changed = threading.Condition()

    def info(self, ctxt, publisher_id, event_type, payload, metadata) -> None:
        """A notification."""
        self._note(self.notified, payload["number"])

    def echo(self, ctxt, number, filling):
        """A call."""
        self._note(self.executed, number)
        return number

    def _note(self, counter: collections.Counter[int], number: int) -> None:
        with self._changed:
            counter[number] += 1
            self._changed.notify_all()

    def await_notifications(
        self, numbers: typing.Iterable[int], quiet: float = QUIET
    ) -> None:
        """Wait until all of these have come, or nothing came for `quiet` seconds."""
        wanted = set(numbers)
        with self._changed:
            while wanted - self.notified.keys():
                before = self.notified.total()
                self._changed.wait(quiet)
                if self.notified.total() == before:
                    return

    def ledger(self) -> dict[str, typing.Any]:
        """All of it: [number, how often] each."""
        with self._changed:
            return {
                "notified": sorted(self.notified.items()),
                "executed": sorted(self.executed.items()),
            }


class Sending:
    """Sends numbered notifications and calls, in turn, from many threads at once.

    :param topic: of the servers and listeners that have :class:`Arrivals`
    :param messages: so many of either
    :param timeout: seconds that a call may take
    :param tell: called with how many of them all have ended, now and then
    """

    #: How often `tell` is called: after so many.
    STEP = 100

    def __init__(
        self,
        transport: typing.Any,
        topic: str,
        messages: int,
        threads: int,
        timeout: float,
        tell: typing.Callable[[int], None],
        filling: str = "x" * 1000,
    ) -> None:
        self._transport = transport
        self._topic = topic
        self._client = oslo_messaging.get_rpc_client(
            transport, oslo_messaging.Target(topic=topic), timeout=timeout
        )
        self._filling = filling
        self._tell = tell
        self._lock = threading.Lock()
        # In turn, so that neither kind is done long before the other.
        self._left = itertools.product(range(messages), ("notify", "call"))
        self._ended = 0
        # When each began and ended, and the error it ended with or None.
        self._notes: dict[str, list[tuple[int, float, float, str | None]]] = {
            "notify": [],
            "call": [],
        }
        self._wrong: list[list[typing.Any]] = []
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]

    def run(self) -> None:
        """Send all of it."""
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        send = {"notify": self._notify, "call": self._call}
        while True:
            with self._lock:
                number, kind = next(self._left, (None, ""))
            if number is None:
                return
            begun = time.monotonic()
            error = None
            try:
                send[kind](number)
            except Exception as exc:
                error = f"{type(exc).__name__}: {exc}"
            self._notes[kind].append((number, begun, time.monotonic(), error))
            with self._lock:
                self._ended += 1
                ended = self._ended
            if ended % self.STEP == 0:
                self._tell(ended)

    def _notify(self, number: int) -> None:
        # Not by a Notifier: it logs what fails, and says nothing to its caller.
        self._transport._send_notification(
            oslo_messaging.Target(topic=f"{self._topic}.info"),
            {},
            {
                "event_type": "ledger",
                "publisher_id": "ledger",
                "payload": {"number": number, "filling": self._filling},
                "priority": "INFO",
                "message_id": str(number),
                "timestamp": "",
            },
            version=2.0,
            retry=-1,
        )

    def _call(self, number: int) -> None:
        answer = self._client.call({}, "echo", number=number, filling=self._filling)
        if answer != number:
            self._wrong.append([number, answer])

    def ledger(self) -> dict[str, typing.Any]:
        """All of it; instants are the machine's monotonic clock."""
        return {"wrong": self._wrong, **self._notes}


class Figures(typing.TypedDict):
    """What :func:`compare` found; all in numbers of messages and seconds."""

    sent: int
    accepted: int
    not_accepted: dict[str, int]
    arrived: int
    lost: list[int]
    doubled: int
    calls: int
    answered: int
    call_errors: dict[str, int]
    wrong_replies: list[list[typing.Any]]
    executed_twice: int
    longest_call: float
    longest_notification: float
    seconds: float
    back_after: dict[str, float | None]


def compare(
    sent: dict[str, typing.Any],
    got: dict[str, typing.Any],
    broken: float | None = None,
) -> Figures:
    """The ledger of a :class:`Sending` against that of its :class:`Arrivals`.

    :param broken: the instant at which something was broken: `back_after` then has how
        many seconds later the first notification and call ended well that were begun
        after it
    """
    notified, executed = dict(got["notified"]), dict(got["executed"])
    accepted = {number for number, _, _, error in sent["notify"] if error is None}
    every = sent["notify"] + sent["call"]
    back: dict[str, float | None] = {}
    for kind in ("notify", "call") if broken is not None else ():
        well = [
            ended
            for _, begun, ended, error in sent[kind]
            if error is None and begun > broken
        ]
        back[kind] = min(well) - broken if well else None
    return {
        "sent": len(sent["notify"]),
        "accepted": len(accepted),
        "not_accepted": _errors(sent["notify"]),
        "arrived": len(notified),
        "lost": sorted(accepted - notified.keys()),
        "doubled": sum(count > 1 for count in notified.values()),
        "calls": len(sent["call"]),
        "answered": sum(error is None for _, _, _, error in sent["call"]),
        "call_errors": _errors(sent["call"]),
        "wrong_replies": sent["wrong"],
        "executed_twice": sum(count > 1 for count in executed.values()),
        "longest_call": _longest(sent["call"]),
        "longest_notification": _longest(sent["notify"]),
        "seconds": max(ended for _, _, ended, _ in every)
        - min(begun for _, begun, _, _ in every),
        "back_after": back,
    }


def _errors(notes: list[list[typing.Any]]) -> dict[str, int]:
    """The errors, without what differs from one to the next, and how many of each."""
    return dict(
        collections.Counter(error for _, _, _, error in notes if error).most_common()
    )


def _longest(notes: list[list[typing.Any]]) -> float:
    return max((ended - begun for _, begun, ended, _ in notes), default=0.0)
