# SPDX-License-Identifier: Apache-2.0
"""The short form of tests.integration.kills, and queues that do not answer.

Each starts a bus of its own, since it is killed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import oslo_messaging
import pytest
from oslo_messaging import Target

from tests.functional.world import WORLDS
from tests.integration import kills
from tests.integration.rabbit import PATIENCE, conf, unique
from tools.buses import Bus

MESSAGES = 3000
TIMEOUT = 60.0


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


def killed(bus: Bus, capsys: pytest.CaptureFixture, **arguments: object) -> None:
    figures = kills.run(bus, messages=MESSAGES, timeout=TIMEOUT, **arguments)
    with capsys.disabled():
        print(f"\n{bus.kind.name}, {arguments}:\n{kills.text(figures)}")
    kills.check(figures, MESSAGES, TIMEOUT)


def rabbitmq() -> str:
    return os.environ.get("RABBITMQ", "rabbitmq-4.0")


@pytest.mark.proves("restart")
@pytest.mark.parametrize("queues", ["classic", "quorum"])
@pytest.mark.parametrize("world", WORLDS)
def test_a_broker_is_killed(started, world, queues, capsys):
    options = {"addressing_mode": "declared", "rabbit_queue_type": queues}
    killed(started(rabbitmq()), capsys, world=world, options=options)


@pytest.mark.proves("failover")
@pytest.mark.parametrize("transient", ["classic", "quorum"])
def test_a_node_of_a_cluster_is_killed_and_another_host_takes_over(
    started, transient, capsys
):
    """The queues of one process are on one node, or on all of them."""
    kind = rabbitmq().replace("rabbitmq-4.0", "rabbitmq-cluster").replace(
        "rabbitmq-4.3", "rabbitmq-cluster-4.3"
    )
    options = {
        "addressing_mode": "declared",
        "rabbit_queue_type": "quorum",
        "rabbit_transient_queue_type": transient,
    }
    killed(started(kind), capsys, options=options, one_node=True)


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
