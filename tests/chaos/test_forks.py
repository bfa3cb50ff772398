# SPDX-License-Identifier: Apache-2.0
"""Processes that fork while they are connected."""

import os
import signal

import pytest

from tests.chaos.workers import Worker, wait_until

OPTIONS = {"connection_retry_interval": 1, "connection_retry_backoff": 0}


def check_child(found: dict, parent: dict) -> None:
    assert found["wrong"] == []
    assert found["parent"] == parent["pid"] != found["child"]
    assert found["own"] == found["child"]
    # An identity of its own, which names the process.
    assert found["container"] != parent["container"]
    assert f".{found['child']}." in found["container"]
    assert set(found["refused"]) == {"fileno", "poll", "take", "start"}
    assert f"forked from process {parent['pid']}" in found["reason"]
    # No copy of the parent's socket is kept: its end would go unnoticed.
    assert not found["holds_socket"]
    before, during, after = found["watched"]
    assert before == during == after != []


def os_fork(world: str, forwarder, url: str, **options) -> None:
    """See that a process and its children do not disturb each other."""
    with Worker(
        world, "forks:os_fork", url=url, count=200, options=OPTIONS | options
    ) as worker:
        parent = worker.expect("parent")
        containers = {parent["container"]}
        for _ in range(2):
            found = worker.expect("child")
            check_child(found, parent)
            containers.add(found["container"])
            assert worker.expect("ended")["status"] == 0
        assert len(containers) == 3
        done = worker.expect("done")
        assert done["wrong"] == [] and done["calls"] > 0
        assert done["value"] == "still"
        before, after = done["watched"]
        assert before == after != []
        # The parent's connection, and one for each child, which is gone.
        figures = forwarder.figures()
        assert (figures["accepted"], figures["now"]) == (3, 1)
        worker.finish()
        assert not [t for _, t in worker.log if "lost the connection" in t]


def test_os_fork(every_world, forwarder, url):
    # The guard's thread and locks are one more thing that a child inherits.
    os_fork(every_world, forwarder, url, heartbeat_guard=True)


def test_os_fork_on_the_blocking_hub(forwarder, url):
    os_fork("threads", forwarder, url, hub="blocking")


def test_a_message_that_was_in_hand(every_world, url):
    with Worker(
        every_world, "forks:message_at_work", url=url, options=OPTIONS
    ) as worker:
        worker.expect("child")
        done = worker.expect("done")
        assert (done["status"], done["answers"]) == (0, ["from the parent"])
        worker.finish()
        said = [text for text in worker.texts("WARNING") if "was forked" in text]
        assert len(said) == 3, worker.log


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(every_world, forwarder, url, method):
    with Worker(
        every_world,
        "forks:processes",
        url=url,
        method=method,
        count=100,
        options=OPTIONS,
    ) as worker:
        parent = worker.expect("parent")
        containers = {parent["container"]}
        ended = 0
        while True:
            message = worker.hear()
            if message["say"] == "done":
                break
            if message["say"] == "ended":
                assert message["status"] == 0, worker.errors()
                ended += 1
                continue
            assert message["say"] == "child"
            containers.add(message["container"])
            if method == "fork":
                check_child(message, parent)
            else:
                assert message["right"]
                assert message["parent"] == parent["pid"] != message["child"]
        assert ended == 3 and len(containers) == 4
        assert message["wrong"] == [] and message["calls"] > 0
        assert message["value"] == "still"
        assert forwarder.figures()["now"] == 1
        worker.finish()
        assert not [t for _, t in worker.log if "lost the connection" in t]


def test_a_fork_before_the_first_connection(every_world, forwarder, url):
    with Worker(every_world, "forks:before_use", url=url, options=OPTIONS) as worker:
        heard = {m["say"]: m for m in (worker.hear(), worker.hear())}
        assert heard["child"]["wrong"] == heard["done"]["wrong"] == []
        assert heard["done"]["status"] == 0
        worker.finish()
        assert forwarder.figures()["accepted"] == 2


@pytest.mark.parametrize(
    "world, launcher",
    [
        ("threads", "oslo_service"),
        ("eventlet", "oslo_service"),
        ("threads", "cotyledon"),
    ],
)
def test_workers_of_services(world, launcher, forwarder, url):
    """The parent is connected before it starts them, and goes on while they work, die
    and are started again."""
    with Worker(
        world, f"launchers:{launcher}", url=url, workers=2, options=OPTIONS
    ) as worker:
        parent = worker.expect("parent")
        started = [worker.expect("worker") for _ in range(2)]
        answer_all(worker, {each["pid"] for each in started})
        # A worker dies; its successor is forked from a parent that is long at work.
        os.kill(started[0]["pid"], signal.SIGKILL)
        started.append(worker.expect("worker"))
        answer_all(worker, {each["pid"] for each in started[1:]})
        containers = {each["container"] for each in [parent, *started]}
        assert len(containers) == 4
        for each in started:
            assert f".{each['pid']}." in each["container"]
        wait_until(lambda: forwarder.figures()["now"] == 3, "three connections")
        assert forwarder.figures()["accepted"] == 4
        os.kill(worker.pid, signal.SIGTERM)
        worker.expect("ended")
        forwarder.wait_gone()
        assert not [t for _, t in worker.log if "lost the connection" in t]


def answer_all(worker: Worker, pids: set[int]) -> None:
    """See that the parent's calls are answered, by these and by each of them."""
    missing = set(pids)
    while missing:
        worker.tell(call=20)
        answered = set(worker.expect("answered")["pids"])
        assert answered <= pids
        missing -= answered
