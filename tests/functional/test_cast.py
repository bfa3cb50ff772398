# SPDX-License-Identifier: Apache-2.0
"""RPC casts and addresses: who gets a message, and who does not."""

from collections import Counter

import oslo_messaging
import pytest
from oslo_messaging import MessageDeliveryFailure, Target

from tests.functional.harness import Gate, Recorder, in_thread


class Casts:
    """Records what is cast to it, as (server name, value)."""

    def __init__(self, name: str, shared: Recorder) -> None:
        self.name = name
        self.shared = shared

    def note(self, ctxt, value):
        self.shared.add((self.name, value))
        return self.name


@pytest.fixture
def group(bus, topic):
    """Three servers on one topic, each with a transport of its own."""
    got = Recorder()
    names = ["one", "two", "three"]
    for name in names:
        bus.server(Casts(name, got), Target(topic=topic, server=name))
    return names, got


@pytest.mark.proves("cast")
def test_cast_is_done_once(bus, topic, group):
    _, got = group
    client = bus.client(Target(topic=topic))
    for value in range(50):
        assert client.cast({}, "note", value=value) is None
    got.wait(50)
    bus.stop_servers()
    assert Counter(value for _, value in got.items) == Counter(range(50))


@pytest.mark.proves("cast")
def test_server_directed_cast(bus, topic, group):
    names, got = group
    client = bus.client(Target(topic=topic))
    for name in names:
        for value in range(10):
            client.prepare(server=name).cast({}, "note", value=[name, value])
    got.wait(30)
    bus.stop_servers()
    assert all(server == value[0] for server, value in got.items)
    assert len(got) == 30


@pytest.mark.proves("call")
def test_server_directed_call(bus, topic, group):
    names, got = group
    client = bus.client(Target(topic=topic))
    for name in names * 3:
        assert client.prepare(server=name).call({}, "note", value=1) == name
    assert Counter(name for name, _ in got.items) == dict.fromkeys(names, 3)


@pytest.mark.proves("fanout")
def test_fanout_reaches_every_server_once(bus, topic, group):
    names, got = group
    client = bus.client(Target(topic=topic, fanout=True))
    for value in range(20):
        client.cast({}, "note", value=value)
    got.wait(60)
    bus.stop_servers()
    assert Counter(got.items) == {(n, v): 1 for n in names for v in range(20)}


@pytest.mark.proves("fanout")
def test_fanout_from_the_servers_own_transport(bus, topic):
    """A service casts to all of its kind, itself included, over one transport."""
    got = Recorder()
    transport = bus.rpc_transport()
    bus.server(Casts("a", got), Target(topic=topic, server="a"), transport)
    bus.server(Casts("b", got), Target(topic=topic, server="b"), transport)
    bus.client(Target(topic=topic, fanout=True), transport).cast({}, "note", value=1)
    got.wait(2)
    bus.stop_servers()
    assert sorted(got.items) == [("a", 1), ("b", 1)]


@pytest.mark.proves("call", "cast", "fanout")
def test_all_three_ways_on_one_client(bus, topic, group):
    names, got = group
    client = bus.client(Target(topic=topic))
    client.prepare(fanout=True).cast({}, "note", value="all")
    client.prepare(server="two").cast({}, "note", value="two")
    client.cast({}, "note", value="any")
    got.wait(5)
    bus.stop_servers()
    values = Counter(value for _, value in got.items)
    assert values == {"all": 3, "two": 1, "any": 1}
    assert ("two", "two") in got.items


@pytest.mark.needs("balanced")
@pytest.mark.proves("balanced")
def test_calls_are_shared_among_the_group(bus, topic, group):
    """None of three idle servers is left out of thirty calls."""
    names, got = group
    client = bus.client(Target(topic=topic))
    served = Counter(client.call({}, "note", value=n) for n in range(30))
    assert set(served) == set(names)
    assert served.total() == 30


@pytest.mark.needs("balanced")
@pytest.mark.proves("balanced")
def test_casts_are_shared_among_the_group(bus, topic, group):
    names, got = group
    client = bus.client(Target(topic=topic))
    for value in range(30):
        client.cast({}, "note", value=value)
    got.wait(30)
    assert {name for name, _ in got.items} == set(names)


@pytest.mark.needs("exchanges")
@pytest.mark.proves("exchanges")
def test_two_exchanges_with_the_same_topic(bus, topic, unique):
    """Neither a target's exchange nor the control exchange lets anything across."""
    left, right = unique("left"), unique("right")
    got = Recorder()
    bus.server(Casts("left", got), Target(exchange=left, topic=topic, server="s"))
    bus.server(
        Casts("right", got),
        Target(topic=topic, server="s"),
        transport=bus.rpc_transport(exchange=right),
    )
    clients = {
        # each by the other way of saying it
        "left": bus.client(Target(topic=topic), bus.rpc_transport(exchange=left)),
        "right": bus.client(Target(exchange=right, topic=topic)),
    }
    for name, client in clients.items():
        assert client.call({}, "note", value=name) == name
        assert client.prepare(server="s").call({}, "note", value=name) == name
        client.cast({}, "note", value=name)
    got.wait(6)
    bus.stop_servers()
    assert Counter(got.items) == {("left", "left"): 3, ("right", "right"): 3}


@pytest.mark.needs("exchanges")
@pytest.mark.proves("exchanges")
def test_fanout_stays_in_its_exchange(bus, topic, unique):
    left, right = unique("left"), unique("right")
    got = Recorder()
    clients = {}
    for name, exchange in (("left", left), ("right", right)):
        target = Target(exchange=exchange, topic=topic, server="s")
        bus.server(Casts(name, got), target)
        clients[name] = bus.client(Target(exchange=exchange, topic=topic, fanout=True))
    for name, client in clients.items():
        client.cast({}, "note", value=name)
    got.wait(2)
    bus.stop_servers()
    assert sorted(got.items) == [("left", "left"), ("right", "right")]


def test_topics_do_not_mix(bus, unique):
    """Not even where one topic's name is the beginning of the other's."""
    short = unique("topic")
    got = Recorder()
    for name in (short, short + ".x", short + "2"):
        bus.server(Casts(name, got), Target(topic=name, server="s"))
    for name in (short, short + ".x", short + "2"):
        client = bus.client(Target(topic=name))
        assert client.call({}, "note", value=name) == name
        client.prepare(fanout=True).cast({}, "note", value=name)
    got.wait(6)
    bus.stop_servers()
    assert all(server == value for server, value in got.items)
    assert len(got) == 6


@pytest.mark.proves("cast")
def test_names_with_unusual_characters(bus, unique):
    topic = unique("to-pic_1.2:3")
    server = unique("host.example.org@backend#pool")
    got = Recorder()
    bus.server(Casts("it", got), Target(topic=topic, server=server))
    client = bus.client(Target(topic=topic))
    assert client.call({}, "note", value=1) == "it"
    assert client.prepare(server=server).call({}, "note", value=2) == "it"


@pytest.mark.needs("store", "backlog")
@pytest.mark.proves("store")
def test_cast_before_the_server_exists(bus, topic, unique):
    """Whoever stores keeps the casts to a server that was there once."""
    got = Recorder()
    target = Target(topic=topic, server="late")
    first = bus.server(Casts("first", got), target)
    client = bus.client(Target(topic=topic))
    assert client.call({}, "note", value="up") == "first"
    bus.stop(first)
    for value in range(10):
        client.cast({}, "note", value=value)
    bus.server(Casts("second", got), target)
    got.wait(11)
    bus.stop_servers()
    assert Counter(got.items[1:]) == {("second", v): 1 for v in range(10)}


@pytest.mark.needs("absent")
@pytest.mark.proves("absent")
def test_cast_to_a_server_that_has_never_been_there(bus, topic):
    got = Recorder()
    bus.client(Target(topic=topic, server="late")).cast({}, "note", value="early")
    bus.server(Casts("late", got), Target(topic=topic, server="late"))
    assert got.wait(1) == [("late", "early")]


@pytest.mark.needs("amqp")
@pytest.mark.refuses("absent")
def test_cast_to_nobody_is_an_error(bus, topic):
    """Once it has been retried for as long as the options say."""
    options = {"oslo_messaging_amqp": {"default_send_timeout": 5}}
    client = bus.client(Target(topic=topic), bus.rpc_transport(options=options))
    with pytest.raises(MessageDeliveryFailure, match=topic):
        client.cast({}, "note", value="lost")


@pytest.mark.needs("backlog")
def test_stopped_server_gets_nothing_more(bus, topic):
    got = Recorder()
    leaver = bus.server(Casts("leaver", got), Target(topic=topic, server="leaver"))
    client = bus.client(Target(topic=topic))
    assert client.call({}, "note", value=0) == "leaver"
    bus.server(Casts("stayer", got), Target(topic=topic, server="stayer"))
    bus.stop(leaver)
    for value in range(20):
        assert client.call({}, "note", value=value) == "stayer"
    client.prepare(fanout=True).cast({}, "note", value="all")
    got.wait(22)
    bus.stop_servers()
    assert Counter(name for name, _ in got.items) == {"leaver": 1, "stayer": 21}


@pytest.mark.needs("backlog")
@pytest.mark.proves("backlog")
def test_stopping_a_busy_server_loses_nothing(bus, topic, unique):
    """It finishes what it was given; the rest goes to another server, once."""
    count = 400
    gate = Gate()
    got = Recorder()

    class Busy(Casts):
        def note(self, ctxt, value):
            gate.enter()
            return super().note(ctxt, value)

    transport = bus.rpc_transport(options={"DEFAULT": {"executor_thread_pool_size": 2}})
    busy = bus.server(Busy("busy", got), Target(topic=topic, server="b"), transport)
    client = bus.client(Target(topic=topic))
    for value in range(count):
        client.cast({}, "note", value=value)
    gate.wait_entered()
    # stop() may wait for the endpoints at work, which may not go on before it.
    stopping = in_thread(busy.stop)
    gate.open()
    stopping.result()
    bus.stop(busy)
    by_busy = len(got)
    bus.server(Casts("other", got), Target(topic=topic, server="o"))
    got.wait(count)
    bus.stop_servers()
    assert Counter(value for _, value in got.items) == Counter(range(count))
    assert Counter(name for name, _ in got.items)["busy"] == by_busy


def test_server_starts_again_after_stop(bus, topic):
    got = Recorder()
    target = Target(topic=topic, server="s")
    transport = bus.rpc_transport()
    client = bus.client(Target(topic=topic))
    for turn in range(3):
        server = bus.server(Casts(f"turn {turn}", got), target, transport)
        for _ in range(5):
            assert client.call({}, "note", value=turn) == f"turn {turn}"
        bus.stop(server)


def test_target_without_topic(bus):
    with pytest.raises(oslo_messaging.InvalidTarget, match="topic"):
        bus.client(Target(exchange="x")).cast({}, "note", value=1)
    with pytest.raises(oslo_messaging.InvalidTarget, match="topic"):
        bus.client(Target(exchange="x")).call({}, "note", value=1)


@pytest.mark.parametrize(
    "target",
    [Target(server="s"), Target(topic="t"), Target()],
    ids=["no topic", "no server", "nothing"],
)
def test_server_without_topic_or_name(bus, target):
    with pytest.raises(oslo_messaging.InvalidTarget):
        bus.server(Casts("x", Recorder()), target)
