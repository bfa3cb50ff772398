# SPDX-License-Identifier: Apache-2.0
"""Call monitoring: a call may take long as long as its server is alive."""

import threading

import oslo_messaging
import pytest
from oslo_messaging import Target

from tests.functional.harness import WAIT, Gate, in_thread

pytestmark = [pytest.mark.needs("call_monitor"), pytest.mark.proves("call_monitor")]

# Seconds without a heartbeat after which a call fails. The server sends one every
# half of it, so a server that is held up for less than that is not taken for dead.
MONITOR = 4

# Seconds for which a call is allowed to run: longer than any test.
FOREVER = 3600


class Working:
    def __init__(self):
        self.gate = Gate()

    def work(self, ctxt):
        self.gate.enter()
        return "done"

    def same(self, ctxt, value):
        return value

    def quick(self, ctxt):
        return "quick"


@pytest.fixture
def target(topic, unique):
    return Target(topic=topic, server=unique("server"))


def test_heartbeats_keep_a_long_call_alive(bus, target):
    """The call outlasts the monitor's time-out twice over: that is the subject."""
    endpoint = Working()
    bus.server(endpoint, target)
    client = bus.client(target, timeout=FOREVER, call_monitor_timeout=MONITOR)
    call = in_thread(client.call, {}, "work")
    endpoint.gate.wait_entered()
    threading.Event().wait(2.5 * MONITOR)
    assert not call.done()
    # Calls without heartbeats go on meanwhile.
    assert client.call({}, "quick") == "quick"
    endpoint.gate.open()
    assert call.result() == "done"


def test_heartbeats_amid_other_replies(bus, target):
    """Replies to others come before, between and after the heartbeats of a call."""
    endpoint = Working()
    bus.server(endpoint, target)
    client = bus.client(target, timeout=FOREVER, call_monitor_timeout=MONITOR)
    call = in_thread(client.call, {}, "work")
    endpoint.gate.wait_entered()
    over = threading.Event()
    timer = threading.Timer(1.5 * MONITOR, over.set)
    timer.start()
    count = 0
    while not over.is_set():
        count += 1
        assert client.call({}, "same", value=count) == count
        assert not call.done()
    endpoint.gate.open()
    assert call.result() == "done"


@pytest.mark.needs("amqp")
def test_heartbeats_of_what_is_not_found_end(bus, target):
    """oslo.messaging's own thread, or green thread, would keep the process alive."""
    before = set(threading.enumerate())
    bus.server(Working(), target)
    client = bus.client(target, timeout=FOREVER, call_monitor_timeout=2)
    with pytest.raises(oslo_messaging.RemoteError, match="NoSuchMethod"):
        client.call({}, "nosuch")
    for thread in set(threading.enumerate()) - before:
        if "_watchdog" in thread.name:
            thread.join(WAIT)
            assert not thread.is_alive()


def test_time_out_of_the_call_still_holds(bus, target):
    endpoint = Working()
    bus.server(endpoint, target)
    client = bus.client(target, timeout=MONITOR + 1, call_monitor_timeout=MONITOR)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "work")
    endpoint.gate.open()


def test_nobody_there_is_noticed(bus, target):
    """Without a server no heartbeat comes, long before the call's own time-out."""
    client = bus.client(target, timeout=FOREVER, call_monitor_timeout=2)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "work")


@pytest.mark.needs("processes")
def test_dead_server_is_noticed(bus, target):
    server = bus.peer(target)
    client = bus.client(target, timeout=FOREVER, call_monitor_timeout=MONITOR)
    assert client.call({}, "echo", value=1) == 1
    call = in_thread(client.call, {}, "hold", name="gate")
    assert server.read() == "held gate"
    server.kill()
    with pytest.raises(oslo_messaging.MessagingTimeout):
        call.result()
