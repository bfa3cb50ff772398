# SPDX-License-Identifier: Apache-2.0
"""What an outcome means: the table of greenamqp.client.outcome."""

import itertools

import pytest

from greenamqp.buses import Declaration, Node, identify
from greenamqp.client.outcome import Verdict, judge
from greenamqp.engine import ACCEPTED, MODIFIED, REJECTED, RELEASED, RemoteError

DECLARED = Node(declarations=(Declaration("queue q"),))
UNHEARD = Node(may_be_unheard=True)
SAYS_ABSENT = Node(rejects_absent=True)
BUS = identify("qpid-cpp")
RABBITMQ = identify("RabbitMQ", "4.0.5")
NOT_FOUND = RemoteError("amqp:not-found", "no such queue")
FULL = RemoteError("amqp:resource-limit-exceeded", "full")
UNAVAILABLE = RemoteError("amqp:precondition-failed", "queue is unavailable")


def modified(failed=False, undeliverable=False):
    return {"failed": failed, "undeliverable": undeliverable}


@pytest.mark.parametrize(
    "outcome, error, node, bus, mandatory, repeatable, verdict, reason",
    [
        (ACCEPTED, None, Node(), BUS, False, False, Verdict.DONE, ""),
        (0, None, Node(), BUS, False, False, Verdict.DONE, ""),
        (RELEASED, None, Node(), BUS, False, False, Verdict.AGAIN_DECLARED, "released"),
        (RELEASED, None, Node(), BUS, True, True, Verdict.UNDELIVERABLE, "nobody"),
        (RELEASED, None, UNHEARD, BUS, False, False, Verdict.DONE, ""),
        (RELEASED, None, UNHEARD, BUS, True, False, Verdict.UNDELIVERABLE, "nobody"),
        (REJECTED, None, Node(), BUS, False, True, Verdict.FAILED, "no reason given"),
        (REJECTED, FULL, Node(), BUS, False, False, Verdict.AGAIN, "full"),
        (REJECTED, FULL, UNHEARD, BUS, False, True, Verdict.FAILED, "full"),
        (REJECTED, NOT_FOUND, Node(), BUS, False, True, Verdict.FAILED, "no such"),
        (REJECTED, NOT_FOUND, UNHEARD, BUS, False, True, Verdict.DONE, ""),
        (
            REJECTED,
            NOT_FOUND,
            DECLARED,
            BUS,
            False,
            False,
            Verdict.AGAIN_DECLARED,
            "no such queue",
        ),
        (
            REJECTED,
            NOT_FOUND,
            SAYS_ABSENT,
            BUS,
            False,
            False,
            Verdict.AGAIN_DECLARED,
            "nobody there",
        ),
        (
            REJECTED,
            NOT_FOUND,
            SAYS_ABSENT,
            BUS,
            True,
            False,
            Verdict.UNDELIVERABLE,
            "nobody there",
        ),
        (REJECTED, None, Node(), RABBITMQ, False, False, Verdict.AGAIN, "rejected"),
        (REJECTED, UNAVAILABLE, Node(), RABBITMQ, False, False, Verdict.AGAIN, "unav"),
        (REJECTED, UNAVAILABLE, Node(), BUS, False, False, Verdict.FAILED, "unav"),
        (MODIFIED, modified(), Node(), BUS, False, False, Verdict.AGAIN, "modified"),
        (MODIFIED, modified(True), Node(), BUS, False, False, Verdict.FAILED, "lost"),
        (MODIFIED, modified(True), Node(), BUS, False, True, Verdict.AGAIN, "lost"),
        (
            MODIFIED,
            modified(undeliverable=True),
            Node(),
            BUS,
            False,
            False,
            Verdict.FAILED,
            "modified",
        ),
    ],
)
def test_verdicts(outcome, error, node, bus, mandatory, repeatable, verdict, reason):
    said = judge(outcome, error, node, bus, mandatory=mandatory, repeatable=repeatable)
    assert said[0] is verdict
    assert reason in said[1]
    assert bool(said[1]) is (verdict is not Verdict.DONE)


def test_what_may_have_been_worked_on_is_never_repeated_unless_it_may():
    for failed, undeliverable, mandatory, node, bus in itertools.product(
        (True, False),
        (True, False),
        (True, False),
        (Node(), DECLARED, UNHEARD, SAYS_ABSENT),
        (BUS, RABBITMQ),
    ):
        verdict, _ = judge(
            MODIFIED,
            modified(failed, undeliverable),
            node,
            bus,
            mandatory=mandatory,
            repeatable=False,
        )
        assert (verdict is Verdict.FAILED) is (failed or undeliverable)
