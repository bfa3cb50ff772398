# SPDX-License-Identifier: Apache-2.0
"""While something waits for the bus, everybody else goes on.

No test here measures time. Something waits until a ticker in another (green) thread
has ticked some more, so a driver that blocked the process would hang the test.
"""

import threading
import time

import oslo_messaging
import pytest
from oslo_messaging import Target

from tests.functional.harness import WAIT, InfoOnly, in_thread

pytestmark = pytest.mark.proves("others go on")

#: Ticks that make a beat.
BEAT = 20


class Ticker:
    """Ticks as often as the scheduler lets it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ticks = 0
        self._stop = False
        self._running = in_thread(self._run)

    def _run(self) -> None:
        while not self._stop:
            time.sleep(0.001)
            with self._changed:
                self._ticks += 1
                self._changed.notify_all()

    @property
    def ticks(self) -> int:
        return self._ticks

    def beat(self) -> None:
        """Wait until it has ticked BEAT times more."""
        with self._changed:
            until = self._ticks + BEAT
            assert self._changed.wait_for(lambda: self._ticks >= until, WAIT)

    def stop(self) -> None:
        self._stop = True
        self._running.result()


@pytest.fixture
def ticker():
    made = Ticker()
    yield made
    made.stop()


@pytest.fixture
def target(topic, unique):
    return Target(topic=topic, server=unique("server"))


@pytest.mark.needs("processes")
def test_ticker_beats_between_request_and_reply(bus, target, ticker):
    """The server, in another process, answers only after the ticker has beaten."""
    server = bus.peer(target)
    client = bus.client(target)
    client.call({}, "echo", value="connected")
    for turn in range(3):
        name = f"turn {turn}"

        def release(name=name):
            assert server.read() == f"held {name}"
            ticker.beat()
            client.call({}, "release", name=name)

        releasing = in_thread(release)
        before = ticker.ticks
        assert client.call({}, "hold", name=name) == name
        assert ticker.ticks >= before + BEAT
        releasing.result()


@pytest.mark.needs("processes")
def test_first_call_of_a_process_connects_beside_the_others(bus, target, ticker):
    """Name look-up, connecting and handshake are part of the first call."""
    server = bus.peer(target)
    client = bus.client(target)
    call = in_thread(client.call, {}, "hold", name="first")
    assert server.read() == "held first"
    ticker.beat()
    assert not call.done()
    client.call({}, "release", name="first")
    assert call.result() == "first"


def test_ticker_beats_while_a_call_to_nobody_waits(bus, topic, ticker):
    client = bus.client(Target(topic=topic), timeout=2)
    before = ticker.ticks
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "nothing")
    assert ticker.ticks >= before + BEAT


def test_ticker_beats_while_many_calls_wait(bus, target, ticker):
    release = threading.Event()
    arrived = threading.Semaphore(0)

    class Endpoint:
        def hold(self, ctxt, n):
            arrived.release()
            assert release.wait(WAIT)
            return n

    bus.server(Endpoint(), target)
    client = bus.client(target)
    calls = [in_thread(client.call, {}, "hold", n=n) for n in range(30)]
    for _ in calls:
        assert arrived.acquire(timeout=WAIT)
    ticker.beat()
    assert not any(call.done() for call in calls)
    release.set()
    assert [call.result() for call in calls] == list(range(30))


def test_ticker_beats_while_a_listener_idles(bus, topic, ticker):
    endpoint = InfoOnly()
    bus.listener(endpoint, [Target(topic=topic)])
    ticker.beat()
    bus.notifier([topic]).info({}, "event", {})
    assert endpoint.got.wait(1) == ["event"]


def test_large_messages_leave_room_for_the_ticker(bus, target, ticker):
    """Megabytes fill the socket's buffers, so that writing has to wait as well."""

    class Endpoint:
        def echo(self, ctxt, value):
            return value

    bus.server(Endpoint(), target)
    client = bus.client(target)
    big = "x" * (4 * 2**20)
    before = ticker.ticks
    calls = [in_thread(client.call, {}, "echo", value=big) for _ in range(4)]
    for call in calls:
        assert call.result() == big
    assert ticker.ticks > before
