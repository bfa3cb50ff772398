# SPDX-License-Identifier: Apache-2.0
"""What the ledgers of tests.ledger say of lost, doubled and unanswered messages, and
tests.chaos.faults of what a fault has cost."""

from __future__ import annotations

import threading
import xml.etree.ElementTree

import oslo_messaging
import pytest

from tests import ledger
from tests.chaos import faults, figures, timeline

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
    assert figures["doubled"] == [0]
    assert figures["not_accepted"] == {REFUSED: 1}


def test_what_became_of_the_calls():
    figures = ledger.compare(
        sent(
            [],
            [(0, 1.0, 2.0, None), (1, 1.0, 8.0, REFUSED), (2, 6.0, 9.0, None)],
            [[2, 0]],
        ),
        {"notified": [], "executed": [[0, 1], [2, 2]]},
    )
    assert figures["calls"] == 3
    assert figures["answered"] == 2
    assert figures["call_errors"] == {REFUSED: 1}
    assert figures["longest_call"] == 7.0
    assert figures["executed"] == 2
    assert figures["executed_twice"] == [2]
    assert figures["wrong_replies"] == [[2, 0]]


class Transport:
    """Takes each notification, but for the fourth, which it never ends."""

    def __init__(self):
        self.numbers = []
        self.conf = object()
        self.enough = threading.Event()
        self.never = threading.Event()

    def _send_notification(self, target, ctxt, message, **_more):
        self.numbers.append(message["payload"]["number"])
        if len(self.numbers) == 4:
            self.enough.set()
            self.never.wait()


def test_what_is_on_its_way_at_the_end_is_told(monkeypatch):
    monkeypatch.setattr(oslo_messaging, "get_rpc_client", lambda *_, **__: None)
    transport = Transport()
    sending = ledger.Sending(transport, "topic", None, 1, 1.0, kinds=["notify"])
    sending.start()
    transport.enough.wait()
    sending.stop(0.0)
    notes = sending.ledger()["notify"]
    errors = [(number, error) for number, _, _, error in notes]
    assert errors == [(0, None), (1, None), (2, None), (3, ledger.PENDING)]
    transport.never.set()
    sending.join()
    assert transport.numbers == [0, 1, 2, 3]


def test_each_caller_has_numbers_of_its_own(monkeypatch):
    monkeypatch.setattr(oslo_messaging, "get_rpc_client", lambda *_, **__: None)
    transport = Transport()
    transport.never.set()
    sending = ledger.Sending(transport, "topic", 7, 3, 1.0, kinds=["notify"])
    sending.start()
    sending.join()
    assert sorted(transport.numbers) == list(range(7))


# One caller, a call each second, of 0.1 s; a fault from 10 s to 12 s.
WINDOW = figures.Window("fault", 0, 10.0, 12.0, 20.0)


def row(calls=None, notify=None, got=None, wrong=()):
    every = [(n, float(n), n + 0.1, None) for n in range(20)]
    calls, notify = (every if each is None else each for each in (calls, notify))
    counts = [[n, 1] for n in range(20)]
    found = {"notified": counts, "executed": counts} if got is None else got
    ledgers = {"sent": sent(notify, calls, wrong), "got": found}
    (made,) = figures.figures([WINDOW], ledgers, callers=1, timeout=5.0)
    return made


def test_a_fault_that_nobody_noticed():
    well = row()
    figures.check([well])
    assert well["sent"] == 40
    assert well["raised"] == well["lost"] == well["stuck"] == well["hung"] == 0
    assert round(well["call stall"], 3) == 1.0
    assert well["call back"] == 0.0


def test_a_stall_is_counted_from_the_fault_to_the_next_success():
    calls = [(n, float(n), n + 0.1, None) for n in range(20) if not 10 <= n < 15]
    calls.append((10, 10.0, 14.9, REFUSED))
    made = row(calls)
    assert made["raised"] == 1
    assert made["errors"] == {REFUSED: 1}
    assert round(made["call stall"], 3) == 5.1
    # The first second with the usual rate begins just before that success.
    assert round(made["call back"], 1) == 2.2
    assert round(made["notify stall"], 3) == 1.0


def test_a_stall_of_one_caller_is_not_hidden_by_another():
    notes = [(2 * n, float(n), n + 0.1, None) for n in range(20)]
    notes += [(2 * n + 1, float(n), n + 0.1, None) for n in range(20) if n < 10]
    assert round(figures._stall(notes, WINDOW, 2), 3) == 10.0


def test_what_comes_several_times_is_drawn_together():
    drawn = figures.together([row(), row(calls=[(0, 1.0, 1.1, None)])])
    assert drawn["fault"]["times"] == 2
    assert drawn["fault"]["sent"] == 61
    assert drawn["fault"]["call back"] is None
    assert "never" in figures.table({"greenamqp": [row(calls=[])]})


@pytest.mark.parametrize(
    ("changed", "promise"),
    [
        ({"got": {"notified": [], "executed": []}}, "whose send returned arrives"),
        ({"calls": [(0, 10.0, 16.1, REFUSED)]}, "by its time-out"),
        ({"wrong": [[11, 2]]}, "another call's reply"),
        ({"notify": [(0, 11.0, 15.0, ledger.PENDING)]}, "nothing waits any more"),
        ({"calls": [(n, n, n + 0.1, None) for n in range(11)]}, "comes back"),
    ],
)
def test_promises_that_are_not_kept(changed, promise):
    with pytest.raises(figures.Broken, match=promise):
        figures.check([row(**changed)])


def test_what_went_with_its_queue_is_no_broken_promise():
    gone = row(got={"notified": [], "executed": []}) | {"fault": "kill"}
    figures.check([gone], "classic")
    with pytest.raises(figures.Broken, match="whose send returned arrives"):
        figures.check([gone], "quorum")


def test_a_seed_repeats_the_faults():
    def plan(seed):
        return list(faults._plans(["kill", "close"], [0, 1, 2], 5.0, seed))

    assert plan(1) == plan(1) != plan(2)
    assert list(faults._plans(["kill", "close"], [0, 1], 0.0, 1)) == [
        [("kill", 0), ("kill", 1)],
        [("close", 0)],
    ]


def test_a_picture_shows_faults_rates_and_errors(tmp_path):
    calls = [(0, 1.0, 1.1, None), (1, 2.0, 3.0, REFUSED)]
    path = tmp_path / "timeline.svg"
    timeline.draw(path, [WINDOW], {"greenamqp": {"sent": sent(calls, calls)}})
    drawn = xml.etree.ElementTree.parse(path).getroot()
    fills = [each.get("fill") for each in drawn]
    assert fills.count("#c0392b") == 2
    assert [each.text for each in drawn if each.text and "fault" in each.text]


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
