# SPDX-License-Identifier: Apache-2.0
"""What is counted, what is sampled, and what the documentation says of it."""

import collections
import pathlib
import re

import pytest
from oslo_messaging import exceptions

from greenamqp.client.outgoing import Rejected, Withdrawn
from greenamqp.engine import RemoteError
from greenamqp.telemetry import sample, states, tally

PAGE = pathlib.Path(__file__).parents[2] / "docs/telemetry.rst"


@pytest.mark.parametrize("rate", [1, sample.RATE, 10 * sample.RATE, 1000 * sample.RATE])
def test_all_of_few_and_some_of_many_are_recorded(rate):
    chosen = sample.Sample()
    seconds = 20
    taken = [
        sum(chosen.takes(100 + second + n / rate) for n in range(rate))
        for second in range(seconds)
    ]
    # In the first second it is not known yet how many there will be.
    for each in taken[1:]:
        assert min(rate, sample.RATE) <= each <= min(rate, sample.RATE) + 1


def test_after_a_rush_all_are_recorded_again():
    chosen = sample.Sample()
    for n in range(100_000):
        chosen.takes(100 + n / 100_000)
    assert not all(chosen.takes(101 + n / 100_000) for n in range(100))
    assert [chosen.takes(500 + n) for n in range(5)][1:] == [True] * 4


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error, kind",
    [
        (TimeoutError(), "timeout"),
        (Withdrawn(), "withdrawn"),
        (Rejected("x"), "rejected"),
        (exceptions.MessageUndeliverable("x", None, None, None), "undeliverable"),
        (exceptions.MessageDeliveryFailure("x"), "failed"),
        (
            caused(
                exceptions.MessageDeliveryFailure("x"),
                RemoteError("amqp:unauthorized-access", "no"),
            ),
            "amqp:unauthorized-access",
        ),
    ],
)
def test_kinds_of_errors(error, kind):
    assert tally.error_type(error) == kind


def test_kinds_are_limited():
    counter = collections.Counter()
    for n in range(tally.MOST_KINDS + 100):
        tally.count(counter, n, "other")
    tally.count(counter, 5, "other")
    assert len(counter) == tally.MOST_KINDS + 1
    assert counter["other"] == 100
    assert counter[5] == 2


def test_the_page_names_every_metric():
    text = PAGE.read_text()
    for each in states.OBSERVED:
        *_, last = each.name.split(".")
        base = each.name.removesuffix(last)
        assert f"``{each.name}``" in text or (
            f"``.{last}``" in text and f"``{base}" in text
        ), each.name
    source = pathlib.Path(states.__file__).with_name("instruments.py").read_text()
    histograms = re.findall(r'"([a-z.]+\.(?:duration|delay))"', source)
    assert len(histograms) == 4
    for name in histograms:
        assert f"``{name}``, histogram" in text
