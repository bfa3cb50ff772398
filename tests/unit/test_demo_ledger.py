# SPDX-License-Identifier: Apache-2.0
"""The account that the demo keeps of every message."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert (verdict.lost, verdict.doubled, verdict.unsent) == (1, 0, 0)
    assert verdict.examples == {"lost": [missing]}


@pytest.mark.parametrize("again", [0, 1, 3])
def test_a_doubled_message_is_found(again):
    ledger = ledger_with(4, [0, 1, 2, 3, again])
    assert ledger.complete()
    verdict = only(ledger)
    assert not verdict.exactly_once
    assert (verdict.lost, verdict.doubled, verdict.unsent) == (0, 1, 0)
    assert verdict.examples == {"doubled": [again]}


def test_doubled_by_another_worker_of_the_same_receiver_is_found():
    ledger = ledger_with(2, [0, 1])
    ledger.got("s", "pool", "other worker", [1])
    assert only(ledger).doubled == 1
    assert ledger.split("s", "pool") == {"other worker": 1, "worker": 2}


def test_a_lost_and_a_doubled_message_do_not_cancel_each_other():
    verdict = only(ledger_with(3, [0, 1, 1]))
    assert (verdict.received, verdict.lost, verdict.doubled) == (3, 1, 1)


def test_a_message_that_nobody_sent_is_found():
    verdict = only(ledger_with(2, [0, 1, 7]))
    assert (verdict.lost, verdict.unsent) == (0, 1)
    assert verdict.examples == {"unsent": [7]}


def test_a_message_whose_send_failed_may_have_come_or_not():
    assert only(ledger_with(3, [0, 2], failed=[1])).exactly_once
    assert only(ledger_with(3, [0, 1, 2], failed=[1])).exactly_once
    assert only(ledger_with(3, [0, 1, 1, 2], failed=[1])).doubled == 1
    assert only(ledger_with(3, [0], failed=[1])).lost == 1


def test_each_receiver_is_due_a_copy():
    ledger = Ledger()
    ledger.expect("s", ["a", "b"])
    ledger.sent("s", 2)
    ledger.got("s", "a", "w", [0, 1])
    assert not ledger.complete()
    assert [v.lost for v in ledger.verdicts()] == [0, 2]
    ledger.got("s", "b", "w", [1, 0])
    assert ledger.complete()


def test_a_receipt_may_be_told_before_its_send():
    ledger = ledger_with(0, [0, 1])
    assert ledger.complete()
    assert only(ledger).unsent == 2
    ledger.sent("s", 2)
    assert only(ledger).exactly_once


def test_sends_are_counted_apart():
    assert ledger_with(5, [], failed=[1, 2]).sends("s") == (3, 2)


def test_a_negative_number_and_a_stream_opened_twice_are_refused():
    ledger = ledger_with(1, [0])
    with pytest.raises(ValueError):
        ledger.got("s", "pool", "w", [-1])
    with pytest.raises(ValueError):
        ledger.expect("s", [])


@given(
    sent=st.integers(0, 30),
    got=st.lists(st.integers(0, 40), max_size=80),
    failed=st.sets(st.integers(0, 29)),
)
def test_it_agrees_with_plain_counting(sent, got, failed):
    failed = {number for number in failed if number < sent}
    ledger = ledger_with(sent, got, failed)
    times = collections.Counter(got)
    verdict = only(ledger)
    assert verdict.received == len(got)
    assert verdict.lost == sum(
        times[number] == 0 for number in range(sent) if number not in failed
    )
    assert verdict.doubled == sum(count > 1 for count in times.values())
    assert verdict.unsent == sum(number >= sent for number in times)
    assert ledger.complete() == (verdict.lost == 0)


def test_a_message_that_comes_very_often_is_still_one_doubled():
    assert only(ledger_with(1, [0] * 1000)).doubled == 1
