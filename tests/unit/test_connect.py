# SPDX-License-Identifier: Apache-2.0
"""Attempts to connect, on the loopback interface."""

import errno
import os
import select
import socket
import time

import pytest

from greenamqp.connection import connect
from greenamqp.hubs import network as hub_network
from greenamqp.hubs.blocking import BlockingHub

# Seconds: no test waits for it.
LONG = 60.0


class Hub(BlockingHub):
    """Its clock can be put forward, so that nobody waits for a deadline."""

    def __init__(self):
        super().__init__()
        self.ahead = 0.0
        self.now = lambda: time.monotonic() + self.ahead


@pytest.fixture
def hub():
    before = len(os.listdir("/proc/self/fd"))
    made = Hub()
    made.acquire()
    yield made
    assert not made._reactor._watches
    assert made._reactor.next_deadline() is None
    assert not made.holders
    made.release()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def closed_port():
    """A port that nobody listens on, and that nobody else gets meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def silent_port():
    """A port whose host answers no more attempts to connect: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = []
        while True:
            filler = socket.socket()
            filler.setblocking(False)
            fillers.append(filler)
            filler.connect_ex(address)
            poll = select.poll()
            poll.register(filler, select.POLLOUT)
            if not poll.poll(100):
                break
            assert len(fillers) < 100, "the queue never fills"
        yield address[1]
        for filler in fillers:
            filler.close()


def addresses(*ports):
    """As getaddrinfo gives them; a number is a port of 127.0.0.1."""
    return [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        if isinstance(port, int)
        else port
        for port in ports
    ]


@pytest.fixture
def resolve(monkeypatch):
    """Have the name lookup give this."""

    def give(result):
        def getaddrinfo(host, port, *args, **options):
            if isinstance(result, Exception):
                raise result
            return list(result)

        monkeypatch.setattr(hub_network._socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(hub_network.socket, "getaddrinfo", getaddrinfo)

    return give


class Attempting:
    def __init__(self, hub, port=1, hostname="127.0.0.1", timeout=LONG):
        self.hub = hub
        self.outcomes = []
        self.attempt = connect.Attempt(
            hub,
            hostname,
            port,
            hub.now() + timeout,
            lambda *outcome: self.outcomes.append(outcome),
        )

    def finish(self):
        while not self.outcomes:
            self.hub.turn(None)
        # Whatever is still to come would be one too many.
        self.hub.turn(self.hub.now())
        (outcome,) = self.outcomes
        return outcome


def failure(attempting):
    stream, reason = attempting.finish()
    assert stream is None
    return reason


def test_a_stream_that_is_set_up_for_messaging(hub, server):
    stream, reason = Attempting(hub, server.getsockname()[1]).finish()
    assert reason is None
    with server.accept()[0] as peer:
        assert stream.getpeername() == server.getsockname()
        assert stream.gettimeout() == 0
        assert not os.get_inheritable(stream.fileno())
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        peer.sendall(b"hello")
        watch = hub.watch(stream.fileno(), lambda: None)
        hub.turn(None)
        watch.close()
        buffer = bytearray(10)
        assert stream.recv_into(memoryview(buffer)) == 5
        with pytest.raises(BlockingIOError):
            stream.recv_into(memoryview(buffer))
    stream.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python knows no IPv6")
def test_ipv6(hub):
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this host has no IPv6")
    with server:
        stream, reason = Attempting(hub, server.getsockname()[1], "::1").finish()
        assert reason is None
        stream.close()


def test_a_port_that_refuses(hub, closed_port):
    assert failure(Attempting(hub, closed_port)) == os.strerror(errno.ECONNREFUSED)


def test_a_name_that_is_unknown(hub, resolve):
    resolve(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    reason = failure(Attempting(hub, hostname="nowhere"))
    assert reason.startswith("cannot look the name up")
    assert "Name or service not known" in reason


def test_a_name_without_addresses(hub, resolve):
    resolve([])
    assert failure(Attempting(hub)) == "no address"


def test_a_name_that_is_none(hub):
    assert "label" in failure(Attempting(hub, hostname="a" * 70 + ".example"))


DEAD = {
    "refuses": lambda closed: closed,
    "no such family": lambda closed: (9999, socket.SOCK_STREAM, 0, "", ("x", 1)),
    "cannot be written": lambda closed: (
        socket.AF_INET,
        socket.SOCK_STREAM,
        6,
        "",
        ("256.256.256.256", 1),
    ),
}


@pytest.mark.parametrize("kind", DEAD)
@pytest.mark.parametrize("count", [1, 3])
def test_dead_addresses_before_one_that_lives(
    hub, server, closed_port, resolve, kind, count
):
    dead = DEAD[kind](closed_port)
    resolve(addresses(*[dead] * count, server.getsockname()[1]))
    stream, reason = Attempting(hub, hostname="many").finish()
    assert reason is None
    assert stream.getpeername() == server.getsockname()
    stream.close()


def test_all_addresses_dead(hub, closed_port, resolve):
    resolve(addresses(closed_port, closed_port))
    assert failure(Attempting(hub)) == os.strerror(errno.ECONNREFUSED)


def test_an_address_that_does_not_answer_gives_way_to_the_next(
    hub, server, silent_port, resolve
):
    resolve(addresses(silent_port, silent_port, server.getsockname()[1]))
    attempting = Attempting(hub, timeout=LONG)
    for _ in range(2):
        hub.turn(hub.now())
        assert attempting.outcomes == []
        hub.ahead += LONG / 3
    stream, reason = attempting.finish()
    assert reason is None
    assert stream.getpeername() == server.getsockname()
    stream.close()


def test_nobody_answers(hub, silent_port, resolve):
    resolve(addresses(silent_port))
    attempting = Attempting(hub, timeout=LONG)
    hub.turn(hub.now())
    assert attempting.outcomes == []
    hub.ahead += LONG
    assert failure(attempting) == "no answer in time"


def test_a_deadline_that_has_passed(hub, silent_port):
    assert failure(Attempting(hub, silent_port, timeout=-1)) == "no answer in time"


@pytest.mark.parametrize("addresses_left", [0, 1])
def test_cancel_while_it_connects(hub, server, silent_port, resolve, addresses_left):
    resolve(addresses(*[silent_port] * (addresses_left + 1)))
    attempting = Attempting(hub)
    hub.turn(hub.now())
    attempting.attempt.cancel()
    attempting.attempt.cancel()
    hub.ahead += LONG
    hub.turn(hub.now())
    assert attempting.outcomes == []


@pytest.fixture
def lookup(hub):
    """Name lookups end when the test calls this."""
    waiting = []
    offload = hub.offload
    hub.offload = lambda function, done: waiting.append((function, done))
    return lambda: offload(*waiting.pop())


def test_cancel_while_the_name_is_looked_up(hub, server, lookup):
    attempting = Attempting(hub, server.getsockname()[1])
    attempting.attempt.cancel()
    lookup()
    hub.turn(hub.now())
    assert attempting.outcomes == []


def test_a_lookup_that_comes_too_late(hub, server, lookup):
    attempting = Attempting(hub, server.getsockname()[1])
    hub.ahead += LONG
    assert failure(attempting) == "no answer in time"
    lookup()
    hub.turn(hub.now())
    assert len(attempting.outcomes) == 1


def test_an_attempt_that_succeeds_after_it_was_cancelled_leaves_nothing(hub, server):
    attempting = Attempting(hub, server.getsockname()[1])
    attempting.attempt.cancel()
    hub.turn(hub.now())
    assert attempting.outcomes == []


def test_an_address_that_is_to_be_avoided_comes_last(hub, server, closed_port, resolve):
    port = server.getsockname()[1]
    resolve(addresses(port, closed_port))
    attempting = Attempting(hub)
    attempting.attempt.cancel()
    outcomes = []
    attempt = connect.Attempt(
        hub,
        "name",
        1,
        hub.now() + LONG,
        lambda *outcome: outcomes.append(outcome),
        avoid={("127.0.0.1", port)},
    )
    while not outcomes:
        hub.turn(None)
    ((stream, reason),) = outcomes
    assert reason is None
    assert attempt.address == ("127.0.0.1", port)
    assert not attempt.has_others
    stream.close()
