# SPDX-License-Identifier: Apache-2.0
"""The account that the demo keeps of every message."""

import pytest

from greenamqp.command.demo.ledger import Ledger


def ledger_with(sent, got, failed=()):
    ledger = Ledger()
    ledger.expect("s", ["pool"])
    ledger.sent("s", sent, failed)
    ledger.got("s", "pool", "worker", got)
    return ledger


def only(ledger):
    (verdict,) = ledger.verdicts()
    return verdict


def test_each_once_in_any_order_is_well():
    ledger = ledger_with(4, [2, 0, 3, 1])
    assert ledger.complete()
    assert only(ledger).exactly_once
    assert only(ledger).received == 4


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_lost_message_is_found(missing):
    ledger = ledger_with(4, [n for n in range(4) if n != missing])
    assert not ledger.complete()
    verdict = only(ledger)
    assert not verdict.exactly_once
    assert (verdict.lost, verdict.doubled, verdict.unsent) == ([missing], [], [])


@pytest.mark.parametrize("again", [0, 1, 3])
def test_a_doubled_message_is_found(again):
    ledger = ledger_with(4, [0, 1, 2, 3, again])
    assert ledger.complete()
    verdict = only(ledger)
    assert not verdict.exactly_once
    assert (verdict.lost, verdict.doubled, verdict.unsent) == ([], [again], [])


def test_doubled_by_another_worker_of_the_same_receiver_is_found():
    ledger = ledger_with(2, [0, 1])
    ledger.got("s", "pool", "other worker", [1])
    assert only(ledger).doubled == [1]
    assert ledger.split("s", "pool") == {"other worker": 1, "worker": 2}


def test_a_lost_and_a_doubled_message_do_not_cancel_each_other():
    verdict = only(ledger_with(3, [0, 1, 1]))
    assert (verdict.received, verdict.lost, verdict.doubled) == (3, [2], [1])


def test_a_message_that_nobody_sent_is_found():
    verdict = only(ledger_with(2, [0, 1, 7]))
    assert (verdict.lost, verdict.unsent) == ([], [7])


def test_a_message_whose_send_failed_may_have_come_or_not():
    assert only(ledger_with(3, [0, 2], failed=[1])).exactly_once
    assert only(ledger_with(3, [0, 1, 2], failed=[1])).exactly_once
    assert only(ledger_with(3, [0, 1, 1, 2], failed=[1])).doubled == [1]
    assert only(ledger_with(3, [0], failed=[1])).lost == [2]


def test_each_receiver_is_due_a_copy():
    ledger = Ledger()
    ledger.expect("s", ["a", "b"])
    ledger.sent("s", 2)
    ledger.got("s", "a", "w", [0, 1])
    assert not ledger.complete()
    assert [v.lost for v in ledger.verdicts()] == [[], [0, 1]]
    ledger.got("s", "b", "w", [1, 0])
    assert ledger.complete()


def test_a_receipt_may_be_told_before_its_send():
    ledger = ledger_with(0, [0, 1])
    assert ledger.complete()
    assert only(ledger).unsent == [0, 1]
    ledger.sent("s", 2)
    assert only(ledger).exactly_once


def test_sends_are_counted_apart():
    assert ledger_with(5, [], failed=[1, 2]).sends("s") == (3, 2)
