# SPDX-License-Identifier: Apache-2.0
"""A program that is interrupted: a timer's handler comes between any two instructions.

    python -m tests.functional.world WORLD tests.functional.interrupted URL TOPIC KIND

KIND ``sends``: the handler casts, and notifies where it may not; ``raises``: it raises
what a soft time limit does.  Meanwhile the main thread makes calls.  The last line that
is written is a JSON object of what came of them.
"""

import json
import random
import signal
import sys
import threading
import uuid

import oslo_messaging
from oslo_config import cfg
from oslo_messaging import Target, exceptions

#: For each kind how many calls, and the seconds between two signals, at random.  One
#: that raises may cost the connection.
PLANS = {"sends": (1500, 0.0002, 0.01), "raises": (200, 0.0001, 0.01)}


#: Where a lock may have been taken that nobody gives back if something is raised: green
#: threads have theirs from a library, written in Python, logging's own as well.  A
#: process whose logging is locked for good is past any driver's help.
LOCKING = {"logging", "threading", "eventlet.semaphore"}


class TimeLimit(Exception):
    """A soft time limit, as job runners have it."""


def is_locking(frame) -> bool:
    """Whether what is interrupted is within a module of `LOCKING`."""
    while frame is not None and frame.f_globals.get("__name__") not in LOCKING:
        frame = frame.f_back
    return frame is not None


def main(url: str, topic: str, kind: str) -> None:
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
    client = oslo_messaging.get_rpc_client(transport, Target(topic=topic), timeout=30)
    notifier = oslo_messaging.Notifier(
        oslo_messaging.get_notification_transport(cfg.CONF, url=url),
        driver="messaging",
        topics=[uuid.uuid4().hex],
    )
    assert client.call({}, "echo", value="first") == "first"
    notifier.info({}, "first", {})

    seen = {"sent": 0, "refused": 0, "raised": 0, "nested": 0, "signals": 0}
    wrong = []
    depth = []

    calls, shortest, longest = PLANS[kind]

    def again() -> None:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(shortest, longest))

    def sends(number, frame) -> None:
        seen["signals"] += 1
        if depth:
            # Handlers nest, and so would the waits.
            seen["nested"] += 1
            return
        depth.append(True)
        try:
            client.cast({}, "cast")
            seen["sent"] += 1
        except exceptions.MessageDeliveryFailure as exc:
            if "cannot wait for the message bus" not in str(exc):
                wrong.append(repr(exc))
            seen["refused"] += 1
            notifier.info({}, "interrupted", {})
        finally:
            depth.pop()
            again()

    # Whether a limit may strike: only where one is caught.
    armed = [False]

    def raises(number, frame) -> None:
        seen["signals"] += 1
        if not armed[0]:
            return
        if is_locking(frame):
            again()
            return
        armed[0] = False
        raise TimeLimit

    signal.signal(signal.SIGALRM, sends if kind == "sends" else raises)
    answered = caught = 0
    for number in range(calls):
        try:
            armed[0] = True
            if kind == "raises" or not number:
                again()
            reply = client.call({}, "echo", value=number)
            armed[0] = False
            answered += 1
            if reply != number:
                wrong.append(f"another call's reply to {number}")
        except TimeLimit:
            caught += 1
        except cfg.NoSuchOptError:
            caught += 1  # oslo.config takes what is raised in it for that
        except exceptions.MessagingException as exc:
            armed[0] = False
            seen["raised"] += 1
            if kind == "sends":
                wrong.append(repr(exc))
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    # Whatever it did, all works afterwards; an attempt to connect that was struck may
    # take all of its time.
    patient = client.prepare(timeout=120)
    if patient.call({}, "echo", value="last") != "last":
        wrong.append("the last call")
    notifier.info({}, "last", {})
    transport.cleanup()
    print(
        json.dumps(
            seen
            | {
                "answered": answered,
                "caught": caught,
                "wrong": wrong[:5],
                "threads": threading.active_count(),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
