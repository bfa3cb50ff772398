# SPDX-License-Identifier: Apache-2.0
"""Callers that are never without a call in flight, and the server that they call."""

from __future__ import annotations

import random
import threading
import time

from tests.chaos.workers import Stage
from tests.ledger import Arrivals

#: Seconds between two attempts to connect: a cut is over soon.
PAUSE = 0.1

#: Seconds that a request takes at the most, so that a cut finds them in every state.
LONGEST = 0.05

SERVER = "the-server"


class Server(Arrivals):
    """Takes its time with each."""

    def echo(self, ctxt, number, filling):
        time.sleep(random.uniform(0, LONGEST))
        return super().echo(ctxt, number, filling)


def serve(stage: Stage, url: str, topic: str) -> None:
    """One server; when told to, says what it has executed."""
    stage.eager(PAUSE)
    transport = stage.transport(url)
    arrivals = Server()
    server = stage.server(transport, topic, arrivals, SERVER)
    stage.say("ready")
    stage.hear()
    stage.say("ledger", **arrivals.ledger())
    stage.hear()
    stage.end([server])
    transport.cleanup()


def call(
    stage: Stage,
    url: str,
    topic: str,
    callers: int,
    timeout: float,
    named: bool,
) -> None:
    """Each caller calls again as soon as it has its reply, until told to stop.

    Says "round" when every caller was replied to since the test said something.
    """
    stage.eager(PAUSE)
    transport = stage.transport(url)
    client = stage.client(transport, topic, timeout)
    if named:
        client = client.prepare(server=SERVER)
    stopping = threading.Event()
    changed = threading.Condition()
    calls: list = []  # number, seconds, error
    wrong: list = []
    waited_for = set(range(callers))

    def work(caller: int) -> None:
        number = caller
        while not stopping.is_set():
            begun = time.monotonic()
            error = None
            try:
                answer = client.call({}, "echo", number=number, filling="")
                if answer != number:
                    wrong.append([number, answer])
            except Exception as exc:
                error = f"{type(exc).__name__}: {exc}"
            calls.append([number, time.monotonic() - begun, error])
            number += callers
            with changed:
                waited_for.discard(caller)
                changed.notify_all()

    client.call({}, "echo", number=-1, filling="")
    threads = [threading.Thread(target=work, args=(n,)) for n in range(callers)]
    for thread in threads:
        thread.start()
    while True:
        with changed:
            while waited_for:
                changed.wait()
        stage.say("round")
        if not stage.hear()["again"]:
            break
        with changed:
            waited_for.update(range(callers))
    stopping.set()
    for thread in threads:
        thread.join()
    stage.say("ledger", calls=calls, wrong=wrong)
    stage.hear()
    transport.cleanup()
