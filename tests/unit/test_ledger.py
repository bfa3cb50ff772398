# SPDX-License-Identifier: Apache-2.0
"""What the ledgers of tests.ledger say of lost, doubled and unanswered messages."""

from __future__ import annotations

import threading

import pytest

from tests import ledger
from tests.integration import kills

REFUSED = "MessageDeliveryFailure: refused"


def sent(notify, call=(), wrong=()):
    return {"notify": list(notify), "call": list(call), "wrong": list(wrong)}


def test_what_was_accepted_and_did_not_come_is_lost():
    figures = ledger.compare(
        sent([(0, 1.0, 2.0, None), (1, 1.0, 2.5, None), (2, 1.0, 4.0, REFUSED)]),
        {"notified": [[0, 2], [2, 1]], "executed": []},
    )
    assert figures["sent"] == 3
    assert figures["accepted"] == 2
    assert figures["arrived"] == 2
    assert figures["lost"] == [1]
    assert figures["doubled"] == 1
    assert figures["not_accepted"] == {REFUSED: 1}
    assert figures["longest_notification"] == 3.0
    assert figures["back_after"] == {}


def test_what_became_of_the_calls():
    figures = ledger.compare(
        sent(
            [(0, 9.0, 9.5, None)],
            [(0, 1.0, 2.0, None), (1, 1.0, 8.0, REFUSED), (2, 6.0, 9.0, None)],
            [[2, 0]],
        ),
        {"notified": [[0, 1]], "executed": [[0, 1], [2, 2]]},
        broken=5.0,
    )
    assert figures["calls"] == 3
    assert figures["answered"] == 2
    assert figures["call_errors"] == {REFUSED: 1}
    assert figures["longest_call"] == 7.0
    assert figures["executed_twice"] == 1
    assert figures["wrong_replies"] == [[2, 0]]
    assert figures["seconds"] == 8.5
    # The first that was begun after it, not the first that ended after it.
    assert figures["back_after"] == {"notify": 4.5, "call": 4.0}


def figures(**changed):
    well = ledger.compare(
        sent([(0, 1.0, 2.0, None)], [(0, 1.0, 2.0, None)]),
        {"notified": [[0, 1]], "executed": [[0, 1]]},
        broken=0.5,
    )
    return well | changed


def test_promises_that_are_kept():
    kills.check(figures(), 1, 60)


@pytest.mark.parametrize(
    ("changed", "promise"),
    [
        ({"calls": 0}, "every notification and call ends"),
        ({"lost": [0]}, "whose send returned arrives"),
        ({"longest_call": 61.1}, "within 61 s"),
        ({"wrong_replies": [[1, 2]]}, "another call's reply"),
        ({"back_after": {"call": None}}, "comes back"),
    ],
)
def test_promises_that_are_not(changed, promise):
    with pytest.raises(kills.Broken, match=promise):
        kills.check(figures(**changed), 1, 60)


def test_arrivals_are_counted_and_waited_for():
    arrivals = ledger.Arrivals()
    waiting = threading.Thread(target=arrivals.await_notifications, args=([1, 2],))
    waiting.start()
    for number in (1, 1, 2):
        arrivals.info({}, "publisher", "event", {"number": number}, {})
    waiting.join()
    assert arrivals.echo({}, 7, "filling") == 7
    assert arrivals.ledger() == {"notified": [(1, 2), (2, 1)], "executed": [(7, 1)]}


def test_who_waits_for_what_does_not_come_is_let_go():
    arrivals = ledger.Arrivals()
    arrivals.await_notifications([1], quiet=0.01)
    assert arrivals.ledger()["notified"] == []
