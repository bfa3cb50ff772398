# SPDX-License-Identifier: Apache-2.0
"""Nothing that was accepted is lost, and every call ends, while connections are cut."""

import contextlib

import pytest

from tests.chaos.brokers import Broker
from tests.chaos.forwarder import Forwarder
from tests.chaos.workers import Worker
from tests.functional.certificates import Authority
from tests.ledger import compare

#: Seconds by which a call may end after its time-out, however busy the machine; the
#: figure that is printed is far below.
LATE = 30


def run(
    world: str,
    broker,
    capsys,
    messages: int,
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
    """Let a client and a server talk, with as many notifications and calls, while
    their connections are cut every so many seconds, or so often after some of their
    traffic; checks what may never be, prints the figures and returns them."""

    def url(forwarder: Forwarder) -> str:
        return f"amqp://127.0.0.1:{forwarder.port}/{query}"

    with contextlib.ExitStack() as stack:
        near = stack.enter_context(Forwarder(broker.port))
        far = stack.enter_context(Forwarder(broker.port))
        server = stack.enter_context(
            Worker(world, "traffic:server", url=url(far), pause=pause)
        )
        server.expect("ready")
        client = stack.enter_context(
            Worker(
                world,
                "traffic:client",
                url=url(near),
                messages=messages,
                threads=threads,
                timeout=timeout,
                pause=pause,
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
        accepted = [number for number, _, _, error in sent["notify"] if error is None]
        server.tell(accepted=accepted)
        got = server.expect("ledger", wait)
        cuts = near.figures()["accepted"] - 1, far.figures()["accepted"] - 1
        for each in (client, server):
            each.finish()

    figures = {**compare(sent, got), "again": sent["again"], "cuts": cuts}
    with capsys.disabled():
        shown = {k: len(v) if isinstance(v, list) else v for k, v in figures.items()}
        print(f"\n    {world}: " + ", ".join(f"{k} {v}" for k, v in shown.items()))

    assert figures["lost"] == []
    assert figures["wrong_replies"] == []
    assert figures["sent"] == figures["calls"] == messages
    assert figures["longest_call"] <= timeout + LATE
    assert figures["answered"] > 0
    # A call that was answered was executed.
    assert figures["executed"] >= figures["answered"]
    return figures


def limits(count: int) -> list[int]:
    """After how many bytes each of so many connections is reset: so that each gets
    something done, however slow the machine."""
    return [20_000 + 7919 * number % 60_000 for number in range(count)]


def check_client_side(figures: dict) -> None:
    """With the client's connection alone being cut: what came twice was sent twice,
    because its outcome was not known; and no request was executed twice."""
    assert set(figures["doubled"]) <= set(figures["again"])
    assert figures["executed_twice"] == []


def check_all_well(figures: dict, messages: int) -> None:
    """All was accepted and answered, and no request was executed twice."""
    assert figures["accepted"] == figures["answered"] == messages
    assert figures["executed_twice"] == []


def test_the_client_is_cut(any_world, broker, capsys):
    figures = run(
        any_world, broker, capsys, 1500, client_resets=40, pause=0.02, threads=4
    )
    check_client_side(figures)
    assert figures["cuts"][0] > 0


def test_the_server_is_cut(any_world, broker, capsys):
    figures = run(
        any_world, broker, capsys, 1500, server_resets=40, pause=0.02, threads=4
    )
    # A reply that was cut off is sent again, and a request that comes again is known.
    check_all_well(figures, 1500)
    assert figures["cuts"][1] > 0


def test_every_byte_on_its_own(any_world, broker, capsys):
    figures = run(any_world, broker, capsys, 60, split=1, threads=2)
    check_all_well(figures, 60)
    assert figures["doubled"] == []


def test_cut_and_split_within_tls(any_world, tmp_path, capsys):
    authority = Authority(tmp_path)
    with Broker("--tls-cert", authority.issue("127.0.0.1")) as broker:
        figures = run(
            any_world,
            broker,
            capsys,
            200,
            client_resets=8,
            split=97,
            query=f"?ssl_ca_file={authority.ca}",
            pause=0.02,
            threads=4,
        )
    check_client_side(figures)
    assert figures["cuts"][0] > 0


def test_a_slow_line(any_world, broker, capsys):
    figures = run(any_world, broker, capsys, 20, delay=0.02, threads=2)
    check_all_well(figures, 20)
    assert figures["doubled"] == []


@pytest.mark.chaos
def test_20000_and_20000_while_both_are_cut(any_world, broker, capsys):
    run(any_world, broker, capsys, 20_000, client_cut=3.1, server_cut=4.3, wait=600)


@pytest.mark.chaos
def test_20000_and_20000_while_the_client_is_cut(any_world, broker, capsys):
    figures = run(any_world, broker, capsys, 20_000, client_cut=3.1, wait=600)
    check_client_side(figures)
