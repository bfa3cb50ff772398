# SPDX-License-Identifier: Apache-2.0
"""A hub that the application did not let run: who notices, and what is said of it."""

import _socket
import logging
import socket
import threading
import time

import pytest
from oslo_messaging import Target

from greenamqp.buses import Service
from greenamqp.client import Destination
from greenamqp.connection.guard import GUARD
from greenamqp.connection.pump import Pump
from greenamqp.connection.state import State
from greenamqp.engine import Connection, Message, Terminus
from greenamqp.engine.sasl import AcceptedConnection, SaslServer
from greenamqp.hubs import get
from tests.unit import fakes

NOTIFY = Destination.of(Target(topic="t"), Service.NOTIFY)


def up(s):
    task = s.notify(destination=NOTIFY)
    s.world.settle()
    assert task.result() is None


def block(s, seconds):
    """The clock goes on, and nothing else does."""
    s.world.clock += seconds
    s.world.settle()


def warnings(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if "did not let" in record.getMessage()
    ]


IDLE = 32


@pytest.mark.parametrize("waited", [0, 1, 3, 5, 8, 100])
@pytest.mark.parametrize("share", [0.65, 1.0, 1.9])
def test_longer_than_half_the_idle_timeout_is_worth_a_warning(share, waited, caplog):
    with fakes.setting(idle_timeout=IDLE, network={"idle_timeout": 1000}) as s:
        up(s)
        s.world.advance(waited)
        with caplog.at_level(logging.WARNING, "greenamqp"):
            block(s, IDLE * share)
        (text,) = warnings(caplog)
        said = float(text.partition("run for ")[2].split()[0])
        # A seventh of the time-out is the precision that it is known to.
        assert abs(said - IDLE * share) <= IDLE / 7 + 0.1
        assert f"idle time-out of {IDLE} s" in text


@pytest.mark.parametrize("waited", [0, 1, 3, 5, 8, 100])
def test_shorter_is_not(waited, caplog):
    with fakes.setting(idle_timeout=IDLE, network={"idle_timeout": 1000}) as s:
        up(s)
        for _ in range(10):
            s.world.advance(waited)
            block(s, IDLE * 0.35)
        assert warnings(caplog) == []


def test_the_peers_idle_timeout_counts_where_it_is_shorter(caplog):
    with fakes.setting(idle_timeout=1000, network={"idle_timeout": 32}) as s:
        up(s)
        s.world.advance(10)
        block(s, 14)  # the peer, as proton does, tells half of what it allows
        assert "idle time-out of 16 s" in warnings(caplog)[0]


@pytest.mark.parametrize("idle", [0.004, 0.01, 0.03])
def test_an_idle_timeout_shorter_than_our_clock_ticks(idle, caplog):
    with fakes.setting(network={"idle_timeout": idle}) as s:
        up(s)
        s.world.advance(1)
        assert warnings(caplog) == []


def test_without_idle_timeouts_there_is_nothing_to_be_late_for(caplog):
    with fakes.setting(idle_timeout=0, network={"idle_timeout": 0}) as s:
        up(s)
        block(s, 10_000)
        assert warnings(caplog) == []
        up(s)


def test_a_peer_that_spoke_meanwhile_is_not_taken_for_silent(caplog):
    with fakes.setting(idle_timeout=10, network={"idle_timeout": 1000}) as s:
        up(s)
        # What it said waits in the socket, unread, for longer than it may be silent.
        s.world.clock += 25
        s.peer.engine.process(s.world.clock)
        s.peer.work()
        s.world.settle()
        assert len(warnings(caplog)) == 1
        assert s.client.connection.state is State.UP
        up(s)
        assert len(s.network.peers) == 1


def test_connections_of_one_hub_warn_once(caplog):
    with fakes.setting(idle_timeout=10) as s:
        for _ in range(2):
            s.world.was_blocked(8.0, 10.0)
        s.world.clock += 5
        s.world.was_blocked(12.0, 10.0)  # the same time, as another one saw it
        assert len(warnings(caplog)) == 1
        s.world.clock += 20
        s.world.was_blocked(8.0, 10.0)
        assert len(warnings(caplog)) == 2


class Sink:
    """The other end: a handler that counts messages, and a pump in its own hub."""

    def __init__(self, count):
        self.expected = count
        self.got: list[bytes] = []
        self.failures: list[str] = []
        self.done = threading.Event()

    def connection_opened(self, connection):
        pass

    def connection_closed(self, connection, error):
        self.failures.append(f"closed: {error}")
        self.done.set()

    def connection_failed(self, connection, error):
        self.failures.append(str(error))
        self.done.set()

    def link_requested(self, connection, link):
        link.accept()
        link.flow(self.expected)
        link.on_message = self.message

    def message(self, link, delivery, data):
        self.got.append(bytes(data))
        link.settle(delivery)
        if len(self.got) == self.expected:
            self.done.set()


def test_pump_and_guard_never_write_into_each_others_frames():
    """One end's pump and a guard that is always at it share a narrow socket; the other
    end reads the stream, and would fail at the first frame that is torn."""
    count = 3000
    hub = get("threads")
    hub.acquire()
    near, far = socket.socketpair()
    streams = []
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setblocking(False)
        streams.append(_socket.socket(fileno=sock.detach()))
    sink = Sink(count)
    server = AcceptedConnection("sink", sink, sasl=SaslServer(), idle_timeout=60)
    server_pump = Pump(hub, streams[1], server)
    source = Sink(0)
    client = Connection("source", source, idle_timeout=60)
    pump = Pump(hub, streams[0], client)
    GUARD.acquire()
    stop = threading.Event()
    beaten = threading.Event()

    def hammer():
        while not stop.is_set():
            charge = pump._charge
            if charge is not None:
                charge.interval = 0.0  # always due
                charge.beat(time.monotonic())
                if charge.beats > 100:
                    beaten.set()

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        body = Message("x" * 5000)
        sent = [0]

        def credit(link):
            while sent[0] < count and link.credit > 0:
                link.send(client.codec.encode(body), None, settled=True)
                sent[0] += 1
                if sent[0] % 10 == 0:
                    break
            hub.flush_now(pump)
            if sent[0] < count:
                hub.call_inside(lambda: credit(link))

        def opened(_connection):
            assert pump.keep_alive()
            link = client.create_sender(Terminus("q"), Terminus("q"))
            link.on_credit = credit
            hub.flush_now(pump)

        source.connection_opened = opened
        with hub.lock:
            server.open()
            server_pump.start()
            client.open()
            pump.start()
        assert sink.done.wait(100)
        assert beaten.wait(100)
        assert sink.failures == source.failures == []
        expected = client.codec.encode(body)
        assert all(data == expected for data in sink.got)
    finally:
        stop.set()
        thread.join()
        with hub.lock:
            pump.close()
            server_pump.close()
            client.destroy()
            server.destroy()
        GUARD.release()
        hub.release()
