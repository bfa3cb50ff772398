# SPDX-License-Identifier: Apache-2.0
"""The demo's percentiles."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenamqp.command.demo.latency import Latencies

_TIMES = st.lists(st.floats(1e-5, 100), min_size=1, max_size=200)


def of(times):
    found = Latencies()
    for time in times:
        found.add(time)
    return found


@given(times=_TIMES, part=st.sampled_from([0.01, 0.5, 0.99, 1.0]))
def test_a_percentile_is_right_within_its_precision(times, part):
    exact = sorted(times)[math.ceil(len(times) * part) - 1]
    assert of(times).percentile(part) == pytest.approx(exact, rel=0.0225)


@given(one=_TIMES, other=_TIMES)
def test_merging_is_the_same_as_counting_together(one, other):
    merged = of(one)
    # As it travels from a process to its parent.
    merged.merge(json.loads(json.dumps(of(other).dump())))
    together = of(one + other)
    assert merged.dump() == together.dump()
    assert merged.count == len(one) + len(other)
    assert merged.longest == max(one + other)


def test_nothing_counted():
    assert of([]).percentile(0.5) is None
    assert of([]).count == 0


@pytest.mark.parametrize("time", [0.0, -1.0, 1e-9])
def test_no_time_at_all_is_counted(time):
    assert of([time]).count == 1
    assert of([time]).percentile(1.0) == pytest.approx(0.0, abs=1e-6)
