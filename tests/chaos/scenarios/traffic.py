# SPDX-License-Identifier: Apache-2.0
"""Notifications and calls in numbers, with a ledger on both ends.

Every message has a number.  The client writes down what became of each that it sent,
the server what it got; the test compares.
"""

import collections
import re
import threading
import time

import oslo_messaging

from greenamqp.client import sending
from tests.chaos.workers import Stage

TOPIC = "traffic"

# Seconds without another message after which what has not come will not come.
QUIET = 20


class Ledger:
    """What came, by number, and how often."""

    def __init__(self) -> None:
        self.notifications: collections.Counter[int] = collections.Counter()
        self.calls: collections.Counter[int] = collections.Counter()
        self._changed = threading.Condition()

    def note(self, counter: collections.Counter[int], number: int) -> None:
        with self._changed:
            counter[number] += 1
            self._changed.notify_all()

    def info(self, ctxt, publisher, event_type, payload, metadata):
        self.note(self.notifications, payload["number"])

    def echo(self, ctxt, number, filling):
        self.note(self.calls, number)
        return number

    def wait_for(self, numbers: set[int]) -> list[int]:
        """Wait until all these notifications have come, or nothing comes any more;
        returns what is missing."""
        with self._changed:
            while missing := numbers - self.notifications.keys():
                before = self.notifications.total()
                self._changed.wait(QUIET)
                if self.notifications.total() == before:
                    break
            return sorted(missing)


def server(stage: Stage, url: str, options: dict, pause: float | None) -> None:
    stage.eager(pause)
    transport = stage.transport(url, **options)
    ledger = Ledger()
    servers = [stage.server(transport, TOPIC, ledger, f"server-{n}") for n in range(2)]
    listener = oslo_messaging.get_notification_listener(
        transport,
        [oslo_messaging.Target(topic=TOPIC)],
        [ledger],
        executor=stage.executor,
    )
    listener.start()
    stage.say("ready")
    accepted = set(stage.hear()["accepted"])
    missing = ledger.wait_for(accepted)
    stage.say(
        "ledger",
        missing=missing,
        twice=sorted(n for n, count in ledger.notifications.items() if count > 1),
        superfluous=sum(count - 1 for count in ledger.notifications.values()),
        executed=len(ledger.calls),
        executed_twice=sorted(n for n, count in ledger.calls.items() if count > 1),
    )
    stage.hear()
    stage.end([*servers, listener])
    transport.cleanup()


class Sent:
    """Which notifications left more than once."""

    def __init__(self) -> None:
        self.again: set[int] = set()
        original = sending.SendingLink._transmit

        def transmit(self_, link, entry):
            if entry.attempts and not entry.is_call:
                found = re.search(r'number\\*": (\d+)', str(entry.message.body))
                assert found is not None
                self.again.add(int(found[1]))
            original(self_, link, entry)

        sending.SendingLink._transmit = transmit


def client(
    stage: Stage,
    url: str,
    notifications: int,
    calls: int,
    threads: int,
    timeout: float,
    options: dict,
    pause: float | None,
) -> None:
    """Half of the threads notify, half of them call, until all is done."""
    stage.eager(pause)
    sent = Sent()
    transport = stage.transport(url, **options)
    rpc = stage.client(transport, TOPIC, timeout)
    filling = "x" * 1000
    accepted: list[int] = []
    failed: collections.Counter[str] = collections.Counter()
    outcomes: collections.Counter[str] = collections.Counter()
    wrong: list = []
    longest = [0.0]
    numbers = {"notify": iter(range(notifications)), "call": iter(range(calls))}
    lock = threading.Lock()

    def work(kind: str) -> None:
        do = notify if kind == "notify" else call
        while True:
            with lock:
                number = next(numbers[kind], None)
            if number is None:
                return
            do(number)
            if number % 500 == 0:
                stage.say("progress", kind=kind, number=number)

    def notify(number: int) -> None:
        try:
            transport._send_notification(
                oslo_messaging.Target(topic=f"{TOPIC}.info"),
                {},
                {
                    "event_type": "traffic",
                    "publisher_id": "client",
                    "payload": {"number": number, "filling": filling},
                    "priority": "INFO",
                    "message_id": str(number),
                    "timestamp": "",
                },
                version=2.0,
                retry=-1,
            )
        except Exception as exc:
            failed[type(exc).__name__] += 1
        else:
            accepted.append(number)

    def call(number: int) -> None:
        begun = time.monotonic()
        try:
            answer = rpc.call({}, "echo", number=number, filling=filling)
        except Exception as exc:
            outcomes[type(exc).__name__] += 1
        else:
            outcomes["answered"] += 1
            if answer != number:
                wrong.append([number, answer])
        longest[0] = max(longest[0], time.monotonic() - begun)

    workers = [
        threading.Thread(target=work, args=(kind,))
        for kind in ("notify", "call")
        for _ in range(threads)
    ]
    stage.say("ready")
    stage.hear()
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stage.say(
        "ledger",
        accepted=accepted,
        failed=failed,
        outcomes=outcomes,
        wrong=wrong,
        longest=longest[0],
        again=sorted(sent.again),
        seconds=time.monotonic() - begun,
    )
    stage.hear()
    transport.cleanup()
