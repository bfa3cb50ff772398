# SPDX-License-Identifier: Apache-2.0
"""Notifications and calls in numbers, with a ledger on both ends: see tests.ledger."""

import re

from greenamqp.client import sending
from greenamqp.client.outgoing import Call
from tests import ledger
from tests.chaos.workers import Stage

TOPIC = "traffic"


def server(stage: Stage, url: str, pause: float | None) -> None:
    """Two servers and a listener; told what was accepted, says what came."""
    stage.eager(pause)
    transport = stage.transport(url)
    arrivals = ledger.Arrivals()
    servers = [stage.server(transport, TOPIC, arrivals, f"server-{n}") for n in "01"]
    listener = stage.listener(transport, TOPIC, arrivals)
    stage.say("ready")
    arrivals.await_notifications(stage.hear()["accepted"])
    stage.say("ledger", **arrivals.ledger())
    stage.hear()
    stage.end([*servers, listener])
    transport.cleanup()


class Sent:
    """Which notifications left more than once."""

    def __init__(self) -> None:
        self.again: set[int] = set()
        original = sending.SendingLink._transmit

        def transmit(self_, link, entry):
            if entry.attempts and not isinstance(entry, Call):
                found = re.search(r'number\\*": (\d+)', str(entry.message.body))
                assert found is not None
                self.again.add(int(found[1]))
            original(self_, link, entry)

        sending.SendingLink._transmit = transmit


def client(
    stage: Stage,
    url: str,
    messages: int,
    threads: int,
    timeout: float,
    pause: float | None,
) -> None:
    """As many notifications and calls; says what became of each.

    :param threads: that call, and as many that notify
    """
    stage.eager(pause)
    sent = Sent()
    transport = stage.transport(url)
    # Apart, for a call whose request was lost waits until its time-out.
    kinds = {
        kind: ledger.Sending(
            transport,
            TOPIC,
            messages,
            threads,
            timeout,
            lambda ended: stage.say("progress", ended=ended),
            kinds=[kind],
        )
        for kind in ("notify", "call")
    }
    stage.say("ready")
    stage.hear()
    for each in kinds.values():
        each.start()
    ledgers = {}
    for kind, each in kinds.items():
        each.join()
        ledgers[kind] = each.ledger()[kind]
    wrong = kinds["call"].ledger()["wrong"]
    stage.say("ledger", again=sorted(sent.again), wrong=wrong, **ledgers)
    stage.hear()
    transport.cleanup()
