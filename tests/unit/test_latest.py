# SPDX-License-Identifier: Apache-2.0
"""Durations of the last minute."""

from greenamqp.telemetry.latest import KEPT, LATELY, Latest
from greenamqp.telemetry.tally import Histograms


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_medians_of_what_was_recorded_lately():
    clock = Clock()
    latest = Latest(clock)
    assert latest.describe() == {"call": None, "outcome": None}
    histograms = latest.histograms(None)
    for seconds in (1.0, 2.0, 9.0):
        histograms.operation(seconds, "RPC call", "topic", "")
        histograms.settlement(seconds / 10, "notification", "topic", "accepted")
    # No call that had its reply.
    histograms.operation(30.0, "RPC call", "topic", "timeout")
    histograms.operation(30.0, "notification", "topic", "")
    histograms.process(30.0, "RPC call", "topic", "")
    assert latest.describe() == {"call": 2.0, "outcome": 0.2}
    clock.now += LATELY
    histograms.operation(4.0, "RPC call", "topic", "")
    assert latest.describe() == {"call": 3.0, "outcome": 0.2}
    clock.now += 1
    assert latest.describe() == {"call": 4.0, "outcome": None}


def test_many_leave_the_last_ones():
    latest = Latest(Clock())
    record = latest.histograms(None).operation
    for seconds in range(3 * KEPT):
        record(float(seconds), "RPC call", "topic", "")
    assert latest.describe()["call"] == 2.5 * KEPT - 0.5


def test_others_are_told_as_well():
    told = []

    def other(*args):
        told.append(args)

    histograms = Latest(Clock()).histograms(Histograms(other, other, other))
    histograms.operation(1.0, "RPC call", "topic", "")
    histograms.settlement(2.0, "RPC call", "topic", "accepted")
    histograms.process(3.0, "RPC call", "topic", "failed")
    assert told == [
        (1.0, "RPC call", "topic", ""),
        (2.0, "RPC call", "topic", "accepted"),
        (3.0, "RPC call", "topic", "failed"),
    ]
