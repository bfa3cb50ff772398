# SPDX-License-Identifier: Apache-2.0
"""What a driver takes of a process, and what it gives back."""

import json
import urllib.parse

import pytest
from oslo_messaging import Target

from tests.functional import world
from tests.functional.harness import (
    InfoOnly,
    connections,
    in_thread,
    native_threads,
)

#: Servers on one transport.
MANY = 50


class Who:
    def __init__(self, name):
        self.name = name

    def who(self, ctxt):
        return self.name


@pytest.fixture
def port(bus):
    return urllib.parse.urlsplit(bus.bus.url).port


@pytest.mark.proves("many targets")
def test_many_stock_servers_on_one_transport(bus, unique):
    transport = bus.rpc_transport()
    topics = [unique("topic") for _ in range(MANY)]
    for topic in topics:
        bus.server(Who(topic), Target(topic=topic, server="s"), transport)
    client = bus.client(Target(topic="unused"), transport)
    calls = [in_thread(client.prepare(topic=topic).call, {}, "who") for topic in topics]
    assert [call.result() for call in calls] == topics
    for topic in reversed(topics):
        direct = client.prepare(topic=topic, server="s")
        assert direct.call({}, "who") == topic


@pytest.mark.needs("one_connection")
@pytest.mark.proves("one_connection")
def test_all_servers_of_a_transport_share_a_connection(bus, unique, port):
    before = connections(port)
    transport = bus.rpc_transport()
    for _ in range(MANY):
        topic = unique("topic")
        bus.server(Who(topic), Target(topic=topic, server="s"), transport)
        assert bus.client(Target(topic=topic), transport).call({}, "who") == topic
    assert connections(port) == before + 1


@pytest.mark.needs("one_connection")
@pytest.mark.proves("one_connection")
def test_idle_servers_have_no_thread_each(bus, unique):
    """One more server, or fifty more: the native threads are the same."""
    transport = bus.rpc_transport()

    def serve():
        bus.server(Who("x"), Target(topic=unique("topic"), server="s"), transport)

    serve()
    before = native_threads()
    for _ in range(MANY):
        serve()
    assert len(native_threads()) <= len(before)


@pytest.mark.needs("green", "no_threads")
@pytest.mark.proves("no_threads")
def test_no_native_threads_in_a_green_world(bus, topic, unique):
    """Nothing that calls, serves or listens has a native thread behind it."""
    before = native_threads()
    bus.server(Who("x"), Target(topic=topic, server="s"))
    endpoint = InfoOnly()
    bus.listener(endpoint, [Target(topic=topic)])
    bus.notifier([topic]).info({}, "event", {})
    client = bus.client(Target(topic=topic))
    calls = [in_thread(client.call, {}, "who") for _ in range(20)]
    assert [call.result() for call in calls] == ["x"] * 20
    endpoint.got.wait(1)
    # One that another test left behind may be gone meanwhile.
    assert native_threads() <= before


@pytest.mark.needs("clean")
@pytest.mark.proves("clean")
def test_cleanup_leaves_nothing_behind(bus, unique):
    """In a process of its own, which counts before and after several rounds."""
    program = bus.program(
        "leaks", bus.bus.url, bus.conf_file(), in_world=world.current()
    )
    before, after = json.loads(program.read()), json.loads(program.read())
    assert program.finish() == 0, program.errors()
    assert after["fds"] == before["fds"]
    # One that the first round left behind may be gone since, as above.
    assert after["threads"] <= before["threads"]
    assert after["greenlets"] <= before["greenlets"]


def ends_quietly(program):
    assert program.finish() == 0, program.errors()
    assert "Traceback" not in program.errors()
    assert "Exception ignored" not in program.errors()


@pytest.mark.needs("exit")
@pytest.mark.parametrize("left", ["client", "server", "listener"])
@pytest.mark.proves("clean")
def test_interpreter_exits_without_cleanup(bus, topic, left):
    """Nothing keeps the process, and nothing complains while it ends."""
    program = bus.program(
        "leaver", bus.bus.url, bus.conf_file(), left, topic, in_world=world.current()
    )
    assert program.read() == "done"
    ends_quietly(program)


@pytest.mark.needs("exit")
@pytest.mark.proves("clean")
def test_an_exit_handler_calls_and_cleans_up(bus, topic):
    """One that was registered before the driver, and so comes after what it has."""
    bus.server(Who("x"), Target(topic=topic, server="s"))
    program = bus.program(
        *("leaver", bus.bus.url, bus.conf_file(), "handler", topic),
        in_world=world.current(),
    )
    assert [program.read(), program.read()] == ["x", "done"]
    ends_quietly(program)


@pytest.mark.proves("clean")
def test_cleanup_may_be_called_again(bus, topic):
    transport = bus.rpc_transport()
    bus.server(Who("x"), Target(topic=topic, server="s"))
    assert bus.client(Target(topic=topic), transport).call({}, "who") == "x"
    transport.cleanup()
    bus.cleanup(transport)


def test_cleanup_of_a_transport_that_was_never_used(bus):
    bus.cleanup(bus.rpc_transport())
    bus.cleanup(bus.notification_transport())


@pytest.mark.needs("survives")
def test_cleanup_of_one_transport_leaves_the_others(bus, topic):
    first, second = bus.rpc_transport(), bus.rpc_transport()
    bus.server(Who("x"), Target(topic=topic, server="s"), second)
    clients = [bus.client(Target(topic=topic), t) for t in (first, second)]
    for client in clients:
        assert client.call({}, "who") == "x"
    bus.cleanup(first)
    assert clients[1].call({}, "who") == "x"
