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


#: The error of what was on its way when the sending was given up.
PENDING = "still pending"


class Sending:
    """Sends numbered notifications and calls, in turn, from many threads at once.

    Each thread is a caller of its own, whose numbers are `caller`, `caller + threads`
    and so on.

    :param topic: of the servers and listeners that have :class:`Arrivals`
    :param messages: so many of either; None: until it is stopped
    :param timeout: seconds that a call may take
    :param tell: called with how many of them all have ended, now and then
    :param kinds: what is sent: "notify", "call" or both
    :param pause: seconds from the end of one to the next
    """

    #: How often `tell` is called: after so many.
    STEP = 100

    def __init__(
        self,
        transport: typing.Any,
        topic: str,
        messages: int | None,
        threads: int,
        timeout: float,
        tell: typing.Callable[[int], None] = lambda ended: None,
        filling: str = "x" * 1000,
        kinds: typing.Sequence[str] = ("notify", "call"),
        pause: float = 0.0,
    ) -> None:
        self._transport = transport
        self._topic = topic
        self._client = oslo_messaging.get_rpc_client(
            transport, oslo_messaging.Target(topic=topic), timeout=timeout
        )
        self._messages = messages
        self._filling = filling
        self._tell = tell
        self._kinds = kinds
        self._pause = pause
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._ended = 0
        # When each began and ended, and the error it ended with or None.
        self._notes: dict[str, list[tuple[int, float, float, str | None]]] = {
            "notify": [],
            "call": [],
        }
        # By caller, what it has begun and not ended: kind, number, instant.
        self._begun: dict[int, tuple[str, int, float]] = {}
        self._wrong: list[list[typing.Any]] = []
        self._threads = [
            threading.Thread(target=self._work, args=(caller, threads), daemon=True)
            for caller in range(threads)
        ]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all of it is sent."""
        for thread in self._threads:
            thread.join()

    def stop(self, patience: float) -> None:
        """Begin nothing more, and wait so many seconds for what has begun."""
        self._stopped.set()
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, caller: int, callers: int) -> None:
        send = {"notify": self._notify, "call": self._call}
        numbers: typing.Iterable[int] = itertools.count(caller, callers)
        if self._messages is not None:
            numbers = range(caller, self._messages, callers)
        # In turn, so that neither kind is done long before the other.
        for number, kind in ((n, kind) for n in numbers for kind in self._kinds):
            if self._stopped.wait(self._pause):
                return
            begun = time.monotonic()
            with self._lock:
                self._begun[caller] = kind, number, begun
            error = None
            try:
                send[kind](number)
            except Exception as exc:
                error = f"{type(exc).__name__}: {exc}"
            with self._lock:
                del self._begun[caller]
                self._notes[kind].append((number, begun, time.monotonic(), error))
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
        """All of it; instants are the machine's monotonic clock.  What has not ended
        ends now, with the error PENDING."""
        now = time.monotonic()
        with self._lock:
            notes = {kind: list(each) for kind, each in self._notes.items()}
            for kind, number, begun in self._begun.values():
                notes[kind].append((number, begun, now, PENDING))
            return {"wrong": list(self._wrong), **notes}


class Figures(typing.TypedDict):
    """What :func:`compare` found; all in numbers of messages and seconds."""

    sent: int
    accepted: int
    not_accepted: dict[str, int]
    arrived: int
    lost: list[int]
    doubled: list[int]
    calls: int
    answered: int
    call_errors: dict[str, int]
    wrong_replies: list[list[typing.Any]]
    executed: int
    executed_twice: list[int]
    longest_call: float


def compare(sent: dict[str, typing.Any], got: dict[str, typing.Any]) -> Figures:
    """The ledger of a :class:`Sending` against that of its :class:`Arrivals`."""
    notified, executed = dict(got["notified"]), dict(got["executed"])
    accepted = {number for number, _, _, error in sent["notify"] if error is None}
    return {
        "sent": len(sent["notify"]),
        "accepted": len(accepted),
        "not_accepted": _errors(sent["notify"]),
        "arrived": len(notified),
        "lost": sorted(accepted - notified.keys()),
        "doubled": sorted(n for n, count in notified.items() if count > 1),
        "calls": len(sent["call"]),
        "answered": sum(error is None for _, _, _, error in sent["call"]),
        "call_errors": _errors(sent["call"]),
        "wrong_replies": sent["wrong"],
        "executed": len(executed),
        "executed_twice": sorted(n for n, count in executed.items() if count > 1),
        "longest_call": max(
            (ended - begun for _, begun, ended, _ in sent["call"]), default=0.0
        ),
    }


def _errors(notes: list[list[typing.Any]]) -> dict[str, int]:
    """The errors, without what differs from one to the next, and how many of each."""
    return dict(
        collections.Counter(error for _, _, _, error in notes if error).most_common()
    )
