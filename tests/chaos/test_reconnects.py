# SPDX-License-Identifier: Apache-2.0
"""A connection that breaks a thousand times leaves nothing behind."""

import pytest

from tests.chaos.workers import Worker

# Connections that are broken before the first count: what stays for the life of the
# process is there by then, and memory has found its size.
FIRST = 50

# How often a call and a notification go through, to use what was restored.
EVERY = 10

#: Bytes by which the allocators may err, and which each connection may leave behind.
#: One that is not let go of is fifty times that.
ERROR = 2_000_000
LEFT = 2000


def broken(worker: Worker, forwarder, count: int) -> None:
    """Break the connection `count` times, each time when it is up again."""
    for number in range(count):
        seen = len(worker.log)
        assert forwarder.cut() == 1
        worker.logged("connected to", since=seen)
        assert worker.changes(seen) == ["lost", "connected"], worker.log[seen:]
        if number % EVERY == 0:
            worker.tell(call=number)
            assert worker.expect("answered")["value"] == number


def reconnect(world: str, forwarder, url: str, capsys, count: int) -> None:
    """See that `count` breaks leave descriptors, threads, greenlets and memory where
    they were."""
    with Worker(world, "reconnects:serve", url=url) as worker:
        worker.expect("ready")
        broken(worker, forwarder, FIRST)
        worker.tell(census=None)
        before = worker.expect("census")
        broken(worker, forwarder, count)
        worker.tell(census=before["census"])
        after = worker.expect("census")
        worker.finish()
    grown = after["resident"] - before["resident"]
    with capsys.disabled():
        print(
            f"\n    {world}: {count} reconnects, {after['census']}, memory "
            f"{before['resident'] >> 10} kB before, {grown / 1024:+.0f} kB"
        )
    assert after["census"] == before["census"]
    assert grown <= ERROR + count * LEFT


def test_50_reconnects_leave_nothing(any_world, forwarder, url, capsys):
    reconnect(any_world, forwarder, url, capsys, 50)


@pytest.mark.chaos
def test_1000_reconnects_leave_nothing(any_world, forwarder, url, capsys):
    reconnect(any_world, forwarder, url, capsys, 1000)
