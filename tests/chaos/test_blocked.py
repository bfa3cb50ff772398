# SPDX-License-Identifier: Apache-2.0
"""What happens when the application does not let the hub run.

The broker drops a client that is silent for its idle time-out; the client blocks for
three of them.
"""

import contextlib
import re

import pytest

from tests.chaos.brokers import Broker
from tests.chaos.workers import Worker

#: Seconds after which the broker takes a silent client for lost.
IDLE = 3

OPTIONS = {
    "connection_retry_interval": 1,
    "connection_retry_backoff": 0,
    "idle_timeout": IDLE,
}

GREEN = ["eventlet", "eventlet-asyncio", "gevent"]


@pytest.fixture
def broker(request):
    with Broker("--idle-timeout", str(getattr(request, "param", IDLE))) as made:
        yield made


def blocking(world: str, broker: Broker, **options):
    return Worker(world, "blocked:serve", url=broker.url, options=OPTIONS | options)


def warned(worker: Worker) -> list[float]:
    """For how many seconds the hub did not run, by each warning of it."""
    pattern = re.compile(r"did not let the (\w+) hub run for ([\d.]+) s")
    return [
        float(match[2])
        for text in worker.texts("WARNING")
        if (match := pattern.search(text))
    ]


@pytest.fixture
def workers(broker, request):
    """One worker in each green world, side by side."""
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(blocking(world, broker, **request.param))
            for world in GREEN
        ]
        for worker in made:
            worker.expect("ready")
        yield made


def block(workers: list[Worker], seconds: float, **how: bool) -> list[int]:
    """Block them all; returns how many heartbeats the guard of each has written."""
    for worker in workers:
        worker.tell(block=seconds, **how)
    return [worker.expect("blocked")["beats"] for worker in workers]


def call(worker: Worker, value: object) -> None:
    worker.tell(call=value)
    assert worker.expect("answered")["value"] == value


@pytest.mark.parametrize("workers", [{}], indirect=True)
def test_without_the_guard_the_connection_is_dropped_and_comes_back(workers):
    assert block(workers, 3 * IDLE) == [0, 0, 0]
    for worker in workers:
        worker.logged("lost the connection to")
        worker.logged("connected to", since=len(worker.log))
        call(worker, "after")
        worker.finish()
        (seconds,) = warned(worker)
        assert 2 * IDLE < seconds


@pytest.mark.parametrize("workers", [{}], indirect=True)
def test_a_call_right_after_it_is_not_lost(workers):
    """The broker has closed the connection, and the hub did not run to learn of it."""
    for worker in workers:
        worker.tell(block=3 * IDLE, call="at once")
    for worker in workers:
        assert worker.expect("answered")["value"] == "at once"
        worker.finish()


@pytest.mark.parametrize("workers", [{"heartbeat_guard": True}], indirect=True)
def test_the_guard_keeps_the_connection(workers):
    # Then again with requests that are about to be written all the time.
    for turn, busy in enumerate((False, True)):
        for beats in block(workers, 3 * IDLE, busy=busy):
            assert beats >= 2 * (turn + 1)
        for worker in workers:
            call(worker, turn)
    for worker in workers:
        worker.finish()
        assert len(warned(worker)) == 2
        # Connected once, and never lost.
        assert len([t for _, t in worker.log if t.startswith("connected to")]) == 1
        assert not [t for _, t in worker.log if "lost the connection" in t]


@pytest.mark.parametrize("workers", [{"idle_timeout": 20}], indirect=True)
@pytest.mark.parametrize("broker", [60], indirect=True)
def test_a_hub_that_is_blocked_for_a_moment_is_no_news(workers):
    block(workers, 1)
    for worker in workers:
        call(worker, "after")
        worker.finish()
        assert worker.texts("WARNING") == []


def test_a_thread_that_waits_blocks_no_hub_of_threads(broker):
    with blocking("threads", broker) as worker:
        worker.expect("ready")
        worker.tell(block=3 * IDLE)
        worker.expect("blocked")
        call(worker, "after")
        worker.finish()
        assert not [t for _, t in worker.log if "lost the connection" in t]
