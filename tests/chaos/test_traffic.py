# SPDX-License-Identifier: Apache-2.0
"""Nothing that was accepted is lost, and every call ends, while connections are cut."""

import contextlib

import pytest

from tests.chaos.brokers import Broker
from tests.chaos.forwarder import Forwarder
from tests.chaos.workers import Worker
from tests.functional.certificates import Authority

#: Seconds by which a call may end after its time-out, however busy the machine; the
#: figure that is printed is far below.
LATE = 30


def run(
    world: str,
    broker,
    capsys,
    notifications: int,
    calls: int,
    *,
    client_cut: float = 0,
    server_cut: float = 0,
    client_resets: int = 0,
    server_resets: int = 0,
    split: int = 0,
    delay: float = 0,
    query: str = "",
    pause: float | None = None,
    threads: int = 16,
    timeout: float = 20,
    wait: float = 120,
) -> dict:
    """Let a client and a server talk while their connections are cut every so many
    seconds, or so often after some of their traffic; checks what may never be, prints
    the figures, returns the ledgers."""

    def url(forwarder: Forwarder) -> str:
        return f"amqp://127.0.0.1:{forwarder.port}/{query}"

    with contextlib.ExitStack() as stack:
        near = stack.enter_context(Forwarder(broker.port))
        far = stack.enter_context(Forwarder(broker.port))
        common = {"options": {}, "pause": pause}
        server = stack.enter_context(
            Worker(world, "traffic:server", url=url(far), **common)
        )
        server.expect("ready")
        client = stack.enter_context(
            Worker(
                world,
                "traffic:client",
                url=url(near),
                notifications=notifications,
                calls=calls,
                threads=threads,
                timeout=timeout,
                **common,
            )
        )
        client.expect("ready")
        for forwarder, seconds in ((near, client_cut), (far, server_cut)):
            forwarder.split(split)
            forwarder.delay(delay)
            forwarder.cut_every(seconds)
        if client_resets:
            near.reset_at(*((limit, None) for limit in limits(client_resets)))
            near.cut()
        if server_resets:
            far.reset_at(*((None, limit) for limit in limits(server_resets)))
            far.cut()
        client.tell(go=True)
        while (sent := client.hear(wait))["say"] == "progress":
            pass
        near.cut_every(0)
        far.cut_every(0)
        server.tell(accepted=sent["accepted"])
        got = server.expect("ledger", wait)
        cuts = near.figures()["accepted"] - 1, far.figures()["accepted"] - 1
        for each in (client, server):
            each.finish()

    figures = {
        "notifications": notifications,
        "accepted": len(sent["accepted"]),
        "not accepted": sent["failed"],
        "lost": len(got["missing"]),
        "came twice": len(got["twice"]),
        "sent again": len(sent["again"]),
        "calls": calls,
        **sent["outcomes"],
        "wrong replies": len(sent["wrong"]),
        "executed": got["executed"],
        "executed twice": len(got["executed_twice"]),
        "longest call": f"{sent['longest']:.1f} s of {timeout:g} s",
        "reconnects": f"client {cuts[0]}, server {cuts[1]}",
        "seconds": f"{sent['seconds']:.1f}",
    }
    with capsys.disabled():
        print(f"\n    {world}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))

    assert got["missing"] == []
    assert sent["wrong"] == []
    assert sum(sent["outcomes"].values()) == calls
    assert sent["longest"] <= timeout + LATE
    assert sent["outcomes"]["answered"] > 0
    # A call that was answered was executed.
    assert got["executed"] >= sent["outcomes"]["answered"]
    return {"sent": sent, "got": got, "cuts": cuts}


def limits(count: int) -> list[int]:
    """After how many bytes each of so many connections is reset: so that each gets
    something done, however slow the machine."""
    return [20_000 + 7919 * number % 60_000 for number in range(count)]


def check_client_side(ledgers: dict) -> None:
    """With the client's connection alone being cut: what came twice was sent twice,
    because its outcome was not known; and no request was executed twice."""
    assert set(ledgers["got"]["twice"]) <= set(ledgers["sent"]["again"])
    assert ledgers["got"]["executed_twice"] == []


def test_the_client_is_cut(any_world, broker, capsys):
    ledgers = run(
        any_world, broker, capsys, 1500, 1500, client_resets=40, pause=0.02, threads=4
    )
    check_client_side(ledgers)
    assert ledgers["cuts"][0] > 0


def test_the_server_is_cut(any_world, broker, capsys):
    ledgers = run(
        any_world, broker, capsys, 1500, 1500, server_resets=40, pause=0.02, threads=4
    )
    assert ledgers["sent"]["failed"] == {}
    assert len(ledgers["sent"]["accepted"]) == 1500
    # A reply that was cut off is sent again, and a request that comes again is known.
    assert ledgers["sent"]["outcomes"] == {"answered": 1500}
    assert ledgers["got"]["executed_twice"] == []
    assert ledgers["cuts"][1] > 0


def test_every_byte_on_its_own(any_world, broker, capsys):
    ledgers = run(any_world, broker, capsys, 60, 60, split=1, threads=2)
    assert len(ledgers["sent"]["accepted"]) == 60
    assert ledgers["sent"]["outcomes"] == {"answered": 60}
    assert ledgers["got"]["twice"] == ledgers["got"]["executed_twice"] == []


def test_cut_and_split_within_tls(any_world, tmp_path, capsys):
    authority = Authority(tmp_path)
    with Broker("--tls-cert", authority.issue("127.0.0.1")) as broker:
        ledgers = run(
            any_world,
            broker,
            capsys,
            200,
            200,
            client_resets=8,
            split=97,
            query=f"?ssl_ca_file={authority.ca}",
            pause=0.02,
            threads=4,
        )
    check_client_side(ledgers)
    assert ledgers["cuts"][0] > 0


def test_a_slow_line(any_world, broker, capsys):
    ledgers = run(any_world, broker, capsys, 20, 20, delay=0.02, threads=2)
    assert len(ledgers["sent"]["accepted"]) == 20
    assert ledgers["sent"]["outcomes"] == {"answered": 20}
    assert ledgers["got"]["twice"] == ledgers["got"]["executed_twice"] == []


@pytest.mark.chaos
def test_20000_and_20000_while_both_are_cut(any_world, broker, capsys):
    run(
        any_world,
        broker,
        capsys,
        20_000,
        20_000,
        client_cut=3.1,
        server_cut=4.3,
        wait=600,
    )


@pytest.mark.chaos
def test_20000_and_20000_while_the_client_is_cut(any_world, broker, capsys):
    ledgers = run(any_world, broker, capsys, 20_000, 20_000, client_cut=3.1, wait=600)
    check_client_side(ledgers)
