# SPDX-License-Identifier: Apache-2.0
"""A listener's fileno(): whatever waits for descriptors can wait for it."""

import asyncio
import os
import resource
import select
import selectors

import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_messaging import Target

from greenamqp.hubs import native
from tests.functional import world
from tests.functional.harness import WAIT, in_thread

# Where nothing is stored, who sends hears of the outcome only while the listener waits,
# and here both are in one thread.
pytestmark = [pytest.mark.needs("amqp", "store"), pytest.mark.proves("descriptors")]

HUBS = {"threads": ["threads", "blocking"]}.get(world.current(), ["auto"])


def with_select(fd):
    return select.select([fd], [], [], WAIT)[0] == [fd]


def with_poll(fd):
    # The patched module has none where the hub cannot do it.
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return poller.poll(WAIT * 1000) == [(fd, select.POLLIN)]


def with_epoll(fd):
    with select.epoll() as poller:
        poller.register(fd, select.EPOLLIN)
        return poller.poll(WAIT) == [(fd, select.EPOLLIN)]


def with_edge_triggered_epoll(fd):
    with select.epoll() as poller:
        poller.register(fd, select.EPOLLIN | select.EPOLLET)
        return poller.poll(WAIT) == [(fd, select.EPOLLIN)]


def with_selectors(fd):
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return [key.fd for key, _ in selector.select(WAIT)] == [fd]


def with_asyncio(fd):
    async def wait():
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(fd, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), WAIT)
        finally:
            loop.remove_reader(fd)
        return True

    return asyncio.run(wait())


def with_eventlet(fd):
    from eventlet.hubs import trampoline

    trampoline(fd, read=True, timeout=WAIT)
    return True


def with_gevent(fd):
    from gevent.socket import wait_read

    wait_read(fd, WAIT)
    return True


WAITS = {
    "threads": [
        with_select,
        with_poll,
        with_epoll,
        with_edge_triggered_epoll,
        with_selectors,
        with_asyncio,
    ],
    "eventlet": [with_select, with_eventlet],
    "eventlet-asyncio": [with_select, with_eventlet],
    "gevent": [with_select, with_poll, with_selectors, with_gevent],
}[world.current()]


@pytest.fixture(params=HUBS)
def listening(request, the_bus, unique):
    """A transport, a listener on it, and how to send to it."""
    topic = unique()
    target = Target(topic=topic, server="s")
    transport = oslo_messaging.get_rpc_transport(
        cfg.CONF, url=the_bus.url_with(hub=request.param)
    )
    listener = transport._listen(target, 1, None)
    other = oslo_messaging.get_rpc_transport(cfg.CONF, url=the_bus.url)
    caster = oslo_messaging.get_rpc_client(other, target)
    yield listener, lambda number: caster.cast({}, "x", number=number)
    listener.cleanup()
    transport.cleanup()
    other.cleanup()


def take(listener, wait, count):
    """`count` messages, by waiting for the descriptor alone."""
    got = []
    while len(got) < count:
        assert wait(listener.fileno())
        # Spurious wake-ups are allowed, lost ones are not.
        while messages := listener.poll(timeout=0):
            for message in messages:
                message.acknowledge()
                got.append(message.message["args"]["number"])
    return got


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
def test_wait(listening, wait):
    """Messages that are there already, and those that come while one waits."""
    listener, send = listening
    for number in range(3):
        send(number)
    assert take(listener, wait, 3) == [0, 1, 2]
    sender = in_thread(lambda: [send(number) for number in range(3, 250)])
    assert take(listener, wait, 247) == list(range(3, 250))
    sender.result()


def test_readable_until_the_queue_is_empty(listening):
    """Taking one of two messages leaves the descriptor readable."""
    listener, send = listening
    send(1)
    send(2)
    got = []
    while len(got) < 2:
        assert WAITS[0](listener.fileno())
        got += listener.poll(timeout=0)
    assert [message.message["args"]["number"] for message in got] == [1, 2]


def test_the_number_stays(listening, the_bus):
    """Until cleanup(), after which there is none."""
    listener, send = listening
    fd = listener.fileno()
    send(1)
    assert take(listener, WAITS[0], 1) == [1]
    assert listener.fileno() == fd
    listener.cleanup()
    with pytest.raises(ValueError, match="cleaned up"):
        listener.fileno()


@pytest.mark.skipif(world.current() != "threads", reason="needs select.poll")
@pytest.mark.parametrize("hub", HUBS)
def test_above_1023(the_bus, unique, hub):
    """Descriptors that select() cannot express."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"this process may have {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        target = Target(topic=unique(), server="s")
        transport = oslo_messaging.get_rpc_transport(
            cfg.CONF, url=the_bus.url_with(hub=hub)
        )
        listener = transport._listen(target, 1, None)
        assert listener.fileno() > 1023
        oslo_messaging.get_rpc_client(transport, target).cast({}, "x", number=7)
        assert take(listener, with_poll, 1) == [7]
        listener.cleanup()
        transport.cleanup()
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(world.current() != "threads", reason="needs select.poll")
def test_blocking_listener_keeps_the_connection(unique):
    """With the blocking hub a loop that waits for one listener keeps heartbeats
    alive, and gets over a lost connection, by that alone."""
    from greenamqp.broker import Broker

    with Broker(idle_timeout=2) as broker:
        target = Target(topic=unique(), server="s")
        transport = oslo_messaging.get_rpc_transport(
            cfg.CONF, url=f"{broker.url}/?hub=blocking&idle_timeout=2"
        )
        listener = transport._listen(target, 1, None)
        fd = listener.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        monotonic = native.original("time", "monotonic")
        until = monotonic() + 5  # more than two idle time-outs
        while (left := until - monotonic()) > 0:
            if poller.poll(left * 1000):
                assert listener.poll(timeout=0) == []
        assert broker.connections == 1
        cast(broker.url, target, 1)
        assert take(listener, with_poll, 1) == [1]
        # Cut off before it has read that, the broker would deliver it again.
        while broker.depth(f"exclusive.openstack.{target.topic}.s"):
            listener.poll(timeout=0.05)
        assert broker.drop_connections() >= 1
        cast(broker.url, target, 2)
        assert take(listener, with_poll, 1) == [2]
        assert listener.fileno() == fd
        listener.cleanup()
        transport.cleanup()


def cast(url, target, number):
    """Over a connection of its own."""
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
    oslo_messaging.get_rpc_client(transport, target).cast({}, "x", number=number)
    transport.cleanup()
