# SPDX-License-Identifier: Apache-2.0
"""Buses that are killed in the middle of traffic, and queues that do not answer.

Each starts a bus of its own, since it is killed.
"""

from __future__ import annotations

import os
import threading
import urllib.parse
from collections.abc import Callable, Iterator

import oslo_messaging
import pytest
from oslo_messaging import Target

from tests.chaos import faults, figures
from tests.functional.world import WORLDS
from tests.integration.rabbit import PATIENCE, conf, unique
from tools.buses import Bus


@pytest.fixture
def started() -> Iterator[Callable[[str], Bus]]:
    """Starts a bus of a kind; it is removed at the end."""
    buses = []

    def start(kind: str) -> Bus:
        bus = Bus(kind, f"{kind}-kills-{os.getpid()}")
        buses.append(bus)
        return bus.start()

    yield start
    for bus in buses:
        bus.stop()


def killed(bus: Bus, capsys: pytest.CaptureFixture, world: str, **query: str) -> None:
    """Kill each node in turn, in the middle of traffic."""
    url = bus.url() + "?addressing_mode=declared&" + urllib.parse.urlencode(query)
    plan = [("kill", node) for node in range(bus.kind.nodes)]
    windows, ledgers = faults.play(
        bus, {"declared": url}, plan, world=world, callers=16, pause=0.01
    )
    rows = figures.figures(windows, ledgers["declared"], callers=16)
    with capsys.disabled():
        print(f"\n{bus.kind.name}, {world}, {query}:\n{figures.table({world: rows})}")
    figures.check(rows)


def rabbitmq() -> str:
    return os.environ.get("RABBITMQ", "rabbitmq-4.0")


@pytest.mark.proves("restart")
@pytest.mark.parametrize("queues", ["classic", "quorum"])
@pytest.mark.parametrize("world", WORLDS)
def test_a_broker_is_killed(started, world, queues, capsys):
    killed(started(rabbitmq()), capsys, world, rabbit_queue_type=queues)


@pytest.mark.proves("failover")
@pytest.mark.parametrize("transient", ["classic", "quorum"])
def test_a_node_of_a_cluster_is_killed_and_another_host_takes_over(
    started, transient, capsys
):
    """The queues of one process are on one node, or on all of them."""
    kind = (
        rabbitmq()
        .replace("rabbitmq-4.0", "rabbitmq-cluster")
        .replace("rabbitmq-4.3", "rabbitmq-cluster-4.3")
    )
    killed(
        started(kind),
        capsys,
        "threads",
        rabbit_queue_type="quorum",
        rabbit_transient_queue_type=transient,
    )


def test_a_queue_without_a_leader_holds_up_no_other(started):
    """RabbitMQ forgets a quorum queue that was declared in the half second before it
    was killed, as far as its leader is concerned (rabbitmq-server 15725).  Whoever
    sends there is told in time, and all others go on."""
    bus = started(rabbitmq())
    transport = oslo_messaging.get_notification_transport(
        conf(), bus.url() + "?addressing_mode=declared&default_notify_timeout=45"
    )
    names = [unique() for _ in range(4)]
    outcomes: dict[str, list[Exception | None]] = {name: [] for name in names}

    def notify(name: str) -> None:
        try:
            transport._send_notification(
                Target(topic=f"{name}.info"), {}, {"a": 1}, version=2.0, retry=-1
            )
        except oslo_messaging.MessageDeliveryFailure as exc:
            outcomes[name].append(exc)
        else:
            outcomes[name].append(None)

    try:
        for name in names:
            notify(name)
        assert all(each == [None] for each in outcomes.values())
        bus.kill9()
        bus.start()
        threads = [threading.Thread(target=notify, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE * 3)
        # The first of them was declared long before: it is there, whatever became
        # of the last.
        assert outcomes[names[0]] == [None, None]
        for name in names:
            assert len(outcomes[name]) == 2
            if outcomes[name][1] is not None:
                assert "did not answer" in str(outcomes[name][1])
        # What the broker forgot does not count any more for those that work.
        fresh = unique()
        outcomes[fresh] = []
        notify(fresh)
        assert outcomes[fresh] == [None]
    finally:
        transport.cleanup()
