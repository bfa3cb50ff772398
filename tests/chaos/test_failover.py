# SPDX-License-Identifier: Apache-2.0
"""Hosts that die, freeze and come back, and the log lines that tell of it."""

import contextlib
import time

from tests.chaos.brokers import Broker, together
from tests.chaos.workers import Worker, wait_until
from tests.functional import leaks

#: Pauses as short as they can be set.
EAGER = {
    "connection_retry_interval": 1,
    "connection_retry_backoff": 0,
    "link_retry_delay": 1,
}

#: How many connections are reset while they say, and while they hear, who is there and
#: what they want.
RESETS = 20


def serving(
    world: str,
    url: str,
    timeout: float = 60,
    pause: float | None = None,
    **options,
):
    return Worker(
        world,
        "failover:serve",
        url=url,
        topic="topic",
        timeout=timeout,
        options=EAGER | options,
        pause=pause,
    )


def works(worker: Worker, value: str) -> None:
    """See that a call and a notification get through.

    What is under way when the connection breaks may fail, what is begun afterwards may
    not.  An earlier notification may come again, if its acknowledgement was lost.
    """
    worker.tell(call=value)
    worker.tell(notify=value)
    missing = {"answered", "accepted", "notified"}
    while missing:
        message = worker.hear()
        if message["say"] == "notified" and message["value"] != value:
            continue
        assert message["value"] == value and message["say"] in missing, message
        missing.remove(message["say"])


def connected(broker: Broker, worker: Worker) -> bool:
    """Whether the worker has a connection to the broker, by the kernel's tables."""
    inodes = leaks.sockets(worker.pid)
    with open("/proc/net/tcp") as table:
        rows = [row.split() for row in list(table)[1:]]
    remote = f"0100007F:{broker.port:04X}"
    return any(row[2] == remote and row[3] == "01" and row[9] in inodes for row in rows)


def test_hosts_that_are_killed(any_world):
    """Of three hosts, the one that lives is found, and its connection followed."""
    with contextlib.ExitStack() as stack:
        brokers = [stack.enter_context(Broker()) for _ in range(3)]
        worker = stack.enter_context(serving(any_world, together(*brokers)))
        worker.expect("ready")
        works(worker, "three")
        alive = list(brokers)
        while len(alive) > 1:
            seen = len(worker.log)
            victim = next(broker for broker in alive if connected(broker, worker))
            alive.remove(victim)
            victim.kill()
            lost = f"lost the connection to 127.0.0.1:{victim.port}: "
            # What is sent before the loss is noticed is under way when it breaks.
            worker.logged(lost, since=seen)
            works(worker, f"{len(alive)} left")
            lines = worker.log[seen:]
            # One line for the loss, one at most for a dead host, one for the success.
            assert [level for level, _ in lines] in (
                ["WARNING", "INFO"],
                ["WARNING", "WARNING", "INFO"],
            ), lines
            assert lines[0][1].startswith(lost)
            assert f"connected to 127.0.0.1:{alive[0].port} " in lines[-1][1] or (
                f"connected to 127.0.0.1:{alive[-1].port} " in lines[-1][1]
            )
        alive[0].kill()
        worker.logged("no connection to", since=len(worker.log))
        brokers[0].start()
        works(worker, "back")
        worker.finish()


def test_a_host_that_freezes(any_world, capsys):
    """A host that is silent, its connections open, is taken for lost."""
    with contextlib.ExitStack() as stack:
        brokers = [stack.enter_context(Broker()) for _ in range(2)]
        worker = stack.enter_context(
            serving(any_world, together(*brokers), idle_timeout=2)
        )
        worker.expect("ready")
        works(worker, "before")
        victim = next(broker for broker in brokers if connected(broker, worker))
        victim.freeze()
        frozen = time.monotonic()
        text = worker.logged(f"lost the connection to 127.0.0.1:{victim.port}: ")
        seconds = time.monotonic() - frozen
        assert "silent" in text
        works(worker, "after")
        worker.finish()
    with capsys.disabled():
        print(f"\n    {any_world}: idle_timeout 2 s, found after {seconds:.1f} s")


def test_a_connection_that_stalls(any_world, forwarder, url):
    """The same where the network swallows everything, and there is one host only."""
    with serving(any_world, url, idle_timeout=2) as worker:
        worker.expect("ready")
        works(worker, "before")
        forwarder.stall()
        assert "silent" in worker.logged("lost the connection to")
        seen = len(worker.log)
        forwarder.cut()
        forwarder.go()
        worker.logged("connected to", since=seen)
        works(worker, "after")
        worker.finish()


def test_resets_at_any_byte_of_the_opening(any_world, forwarder, url):
    """Whatever the connection was about to say or hear when it was reset, the next one
    is made, and in the end everything is there again."""
    with serving(any_world, url, pause=0) as worker:
        worker.expect("ready")
        said = forwarder.figures()
        assert said["accepted"] == 1
        limits = []
        for byte in range(RESETS):
            limits.append((1 + said["up"] * byte // RESETS, None))
            limits.append((None, 1 + said["down"] * byte // RESETS))
        forwarder.reset_at(*limits)
        forwarder.cut()
        assert forwarder.wait_accepted(2 + len(limits)) == 2 + len(limits)
        works(worker, "after")
        worker.finish()
        # Each was told of once.
        changes = worker.changes()
        assert len(changes) - changes.count("connected") == 1 + len(limits)


def test_a_cut_connection_with_200_links_is_one_line(any_world, forwarder, url):
    with Worker(any_world, "failover:many_links", url=url, count=100) as worker:
        worker.expect("ready")
        seen = len(worker.log)
        forwarder.cut()
        worker.expect("restored")
        worker.finish()
        lines = worker.log[seen:]
        assert [level for level, _ in lines] == ["WARNING", "INFO"], lines
        assert all(f"127.0.0.1:{forwarder.port}/vhost" in text for _, text in lines)


def test_what_is_under_way_when_the_connection_breaks(any_world, forwarder, url):
    """A call whose request may have arrived waits for its reply, until its time-out; a
    notification is sent again; what waits for the connection is sent over the next."""
    with serving(any_world, url) as worker:
        worker.expect("ready")
        works(worker, "before")
        forwarder.stall()
        before = forwarder.figures()["accepted"]
        worker.tell(call="lost", timeout=10)
        worker.tell(notify="kept")
        # Both have left the process: they are in the stalled connection's buffers.
        wait_until(lambda: unread(forwarder.pid, forwarder.port), "they leave")
        forwarder.refuse()
        forwarder.cut()
        message = worker.expect("failed")
        assert message["value"] == "lost"
        assert message["kind"] == "MessagingTimeout"
        worker.tell(call="patient")
        forwarder.go()
        forwarder.accept()
        heard = []
        while len(heard) < 3:
            heard.append(told(worker))
            if heard[-1] == ("notified", "before"):
                heard.pop()  # once more: its acknowledgement was stalled as well
        assert set(heard) == {
            ("answered", "patient"),
            ("accepted", "kept"),
            ("notified", "kept"),
        }
        assert forwarder.figures()["accepted"] == before + 1
        worker.finish()


def told(worker: Worker) -> tuple[str, str]:
    """What the worker says next, and of which message."""
    message = worker.hear()
    return message["say"], message["value"]


def unread(pid: int, port: int) -> int:
    """Bytes that came to connections on `port` and wait to be read."""
    with open(f"/proc/{pid}/net/tcp") as table:
        rows = [row.split() for row in list(table)[1:]]
    mine = [row for row in rows if row[1] == f"0100007F:{port:04X}"]
    return sum(int(row[4].split(":")[1], 16) for row in mine if row[3] == "01")
