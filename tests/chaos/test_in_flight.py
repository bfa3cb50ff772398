# SPDX-License-Identifier: Apache-2.0
"""Calls in flight come to their reply though connections are cut."""

import pytest

from tests.chaos import in_flight


def cut(world: str, broker, capsys, cuts: int, callers: int, named=True) -> None:
    figures = in_flight.run(broker.url, world, cuts=cuts, callers=callers, named=named)
    with capsys.disabled():
        print(f"\n    {world}: {in_flight.text(figures)}")
    assert figures["raised"] == {}
    assert figures["executed_twice"] == figures["wrong_replies"] == 0


def test_120_calls_are_cut_off(any_world, broker, capsys):
    cut(any_world, broker, capsys, 6, 20)


def test_120_calls_to_any_server_are_cut_off(broker, capsys):
    cut("threads", broker, capsys, 6, 20, named=False)


@pytest.mark.chaos
def test_1000_calls_are_cut_off(any_world, broker, capsys):
    cut(any_world, broker, capsys, 20, 50)
