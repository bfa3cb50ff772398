# SPDX-License-Identifier: Apache-2.0
"""Which host is tried next, and when."""

import pytest

from greenamqp import chance
from greenamqp.connection.failover import Backoff, Host, Hosts

pytestmark = pytest.mark.usefixtures("no_chance")

HOSTS = [Host("one", 1), Host("two", 2), Host("three", 3)]


def backoff(hosts=1, interval=1, step=2, maximum=30):
    return Backoff(hosts, interval, step, maximum)


def test_hosts_begin_where_chance_wants_and_come_all_in_turn(monkeypatch):
    monkeypatch.setattr(chance, "below", lambda count: count - 1)
    hosts = Hosts(HOSTS)
    assert len(hosts) == 3
    names = [hosts.current.hostname] + [hosts.advance().hostname for _ in range(4)]
    assert names == ["three", "one", "two", "three", "one"]


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_may_be_the_first(host, monkeypatch):
    monkeypatch.setattr(chance, "below", lambda count: HOSTS.index(host) % count)
    assert Hosts(HOSTS).current is host


def test_a_host_shows_no_password_and_brackets_ipv6():
    host = Host("::1", 5672, "me", "a secret")
    assert str(host) == "[::1]:5672"
    assert "a secret" not in repr(host)


def test_pauses_of_one_host_grow_to_the_maximum():
    pauses = backoff(interval=1, step=2, maximum=6)
    assert [pauses.next_pause() for _ in range(5)] == [1, 3, 5, 6, 6]


@pytest.mark.parametrize("hosts", [1, 3])
def test_where_nobody_listens_pauses_stay_short(hosts):
    pauses = backoff(hosts=hosts)
    found = [pauses.next_pause(refused=True) for _ in range(20 * hosts)]
    assert max(found) == 10
    # One of the hosts takes connections, and has too much to do: it gets its time.
    found = [pauses.next_pause(refused=i > 0) for i in range(hosts)]
    assert found[-1] == 30
    assert pauses.next_pause(refused=True) == (10 if hosts == 1 else 0)


def test_a_round_of_hosts_has_no_pause_within():
    pauses = backoff(hosts=3)
    assert [pauses.next_pause() for _ in range(7)] == [0, 0, 1, 0, 0, 3, 0]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_half_of_a_pause_is_random(share, monkeypatch):
    monkeypatch.setattr(chance, "share", lambda: share)
    assert backoff(interval=8).next_pause() == 4 + 4 * share


def test_pauses_differ_between_clients(monkeypatch):
    monkeypatch.undo()
    assert len({Backoff(1, 10, 0, 10).next_pause() for _ in range(20)}) > 1


def test_a_connection_that_lasted_begins_anew():
    pauses = backoff()
    assert [pauses.next_pause() for _ in range(3)] == [1, 3, 5]
    assert pauses.next_pause(lasted=5) == 1
    assert pauses.next_pause() == 3


def test_with_other_hosts_the_loss_of_a_good_connection_costs_no_pause():
    pauses = backoff(hosts=2)
    for _ in range(4):
        assert pauses.next_pause(lasted=100) == 0


def test_connections_that_do_not_last_are_failures():
    pauses = backoff(hosts=2, interval=1)
    found = [pauses.next_pause(lasted=0.01) for _ in range(8)]
    assert found == [0, 1, 0, 3, 0, 5, 0, 7]


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_a_connection_that_is_cut_over_and_over_is_not_waited_for_without_end(hosts):
    """Each of these lasts a while: pauses stay as long as the connections, at most."""
    pauses = backoff(hosts=hosts)
    found = [pauses.next_pause(lasted=2.5) for _ in range(100)]
    assert max(found) <= 3
    # And a bus that ends them faster than the interval sees no storm.
    pauses = backoff(hosts=hosts)
    found = [pauses.next_pause(lasted=0.5) for _ in range(100)]
    assert sum(found) >= 15 * (100 // hosts)
