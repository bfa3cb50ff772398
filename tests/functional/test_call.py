# SPDX-License-Identifier: Apache-2.0
"""RPC calls: what is returned, to whom, and when a call gives up."""

import threading

import oslo_messaging
import pytest
from oslo_messaging import Target

from tests.functional import world
from tests.functional.harness import WAIT, Gate, Recorder, in_thread

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    -(2**63),
    2**53 + 1,
    1.5,
    -0.001,
    1e300,
    "",
    "text",
    "žluťoučký kůň, 漢字, 🐎, \u0000, \u2028, \\ \" '",
    [],
    {},
    [None, [True, [1, ["deep", {}]]]],
    {"a": {"b": {"c": [1, 2.5, None, {"ď": "é"}]}}, "": "empty key"},
]


class Echo:
    def __init__(self):
        self.contexts = Recorder()

    def echo(self, ctxt, value):
        self.contexts.add(ctxt)
        return value

    def constant(self, ctxt, which):
        return VALUES[which]

    def nothing(self, ctxt):
        pass

    def size(self, ctxt, value):
        return len(value)


@pytest.fixture
def target(topic, unique):
    return Target(topic=topic, server=unique("server"))


@pytest.fixture
def client(bus, target, topic):
    bus.server(Echo(), target)
    return bus.client(Target(topic=topic))


@pytest.mark.proves("call")
def test_values_come_back_as_they_are(client):
    for value in VALUES:
        answer = client.call({}, "echo", value=value)
        assert answer == value
        assert type(answer) is type(value)


def test_values_made_by_the_server(client):
    for which, value in enumerate(VALUES):
        answer = client.call({}, "constant", which=which)
        assert answer == value
        assert type(answer) is type(value)


def test_method_without_a_value_returns_none(client):
    assert client.call({}, "nothing") is None


@pytest.mark.parametrize(
    "text", ["x" * 2**20, "漢" * 2**20], ids=["ascii", "non-ascii"]
)
@pytest.mark.proves("call")
def test_large_values(client, text):
    """A megabyte of text each way takes many frames."""
    assert client.call({}, "size", value=text) == len(text)
    assert client.call({}, "echo", value=text) == text


@pytest.mark.needs("json")
def test_tuple_becomes_list(client):
    assert client.call({}, "echo", value=(1, (2, 3))) == [1, [2, 3]]


def test_unknown_context_keys_pass(bus, target):
    echo = Echo()
    bus.server(echo, target)
    context = {
        "user_id": "u",
        "some key nobody knows": {"nested": [1, None, "漢"]},
        "roles": ["a", "b"],
        "none": None,
        "is_admin": False,
    }
    bus.client(target).call(context, "echo", value=1)
    (seen,) = echo.contexts.items
    assert {key: seen[key] for key in context} == context


@pytest.mark.proves("call")
def test_one_client_many_calls_in_a_row(client):
    for number in range(200):
        assert client.call({}, "echo", value=number) == number


@pytest.mark.proves("call")
def test_concurrent_calls_get_their_own_replies(bus, topic, unique):
    """64 requests are held until all are there, and answered in reverse order."""
    callers = 64
    rounds = 3
    arrived = threading.Semaphore(0)
    turns = [[threading.Event() for _ in range(callers)] for _ in range(rounds)]

    class Endpoint:
        def pair(self, ctxt, turn, caller):
            arrived.release()
            assert turns[turn][caller].wait(WAIT)
            return [turn, caller, ctxt["caller"]]

    bus.server(Endpoint(), Target(topic=topic, server=unique()))
    client = bus.client(Target(topic=topic))
    for turn in range(rounds):
        calls = [
            in_thread(client.call, {"caller": n}, "pair", turn=turn, caller=n)
            for n in range(callers)
        ]
        for _ in calls:
            assert arrived.acquire(timeout=WAIT)
        for event in reversed(turns[turn]):
            event.set()
        for number, call in enumerate(calls):
            assert call.result() == [turn, number, number]


@pytest.mark.proves("call")
def test_concurrent_clients_on_transports_of_their_own(bus, topic, unique):
    bus.server(Echo(), Target(topic=topic, server=unique()))
    clients = [bus.client(Target(topic=topic)) for _ in range(5)]

    def work(number, client):
        return [client.call({}, "echo", value=[number, n]) for n in range(20)]

    calls = [in_thread(work, *pair) for pair in enumerate(clients)]
    for number, call in enumerate(calls):
        assert call.result() == [[number, n] for n in range(20)]


@pytest.mark.proves("time-outs")
def test_call_to_nobody_times_out(bus, topic):
    client = bus.client(Target(topic=topic), timeout=1)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.call({}, "echo", value=1)


@pytest.mark.proves("time-outs")
def test_call_to_a_missing_server_times_out(bus, client, topic, unique):
    direct = client.prepare(server=unique("missing"), timeout=1)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        direct.call({}, "echo", value=1)
    # ... and the transport goes on.
    assert client.call({}, "echo", value=2) == 2


@pytest.mark.proves("time-outs")
def test_call_times_out_while_the_server_works(bus, target):
    gate = Gate()

    class Endpoint(Echo):
        def hold(self, ctxt):
            gate.enter()
            return "too late"

    bus.server(Endpoint(), target)
    client = bus.client(target)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.prepare(timeout=1).call({}, "hold")
    # The late reply is for nobody; the next call must not take it for its own.
    gate.wait_entered()
    gate.open()
    for number in range(10):
        assert client.call({}, "echo", value=number) == number


@pytest.mark.proves("time-outs")
def test_time_out_of_one_call_leaves_the_others_alone(bus, target):
    gate = Gate()

    class Endpoint:
        def hold(self, ctxt, name):
            gate.enter()
            return name

    bus.server(Endpoint(), target)
    client = bus.client(target)
    patient = [in_thread(client.call, {}, "hold", name=n) for n in range(5)]
    for _ in patient:
        gate.wait_entered()
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client.prepare(timeout=1).call({}, "hold", name="impatient")
    assert not any(call.done() for call in patient)
    gate.open()
    assert [call.result() for call in patient] == list(range(5))


@pytest.mark.needs("ttl")
@pytest.mark.proves("ttl")
def test_request_whose_caller_gave_up_is_not_run(bus, target, unique):
    """It is stored while no server is there, but not longer than its caller waits."""
    with pytest.raises(oslo_messaging.MessagingTimeout):
        bus.client(target, timeout=1).call({}, "echo", value="given up")
    # The bus had the request later than its caller began to wait; give it as long
    # again.
    with pytest.raises(oslo_messaging.MessagingTimeout):
        bus.client(Target(topic=unique("nobody")), timeout=1).call({}, "echo", value=0)
    echo = Echo()
    echo.values = Recorder()
    echo.echo = lambda ctxt, value: echo.values.add(value)
    bus.server(echo, target)
    bus.client(target).call({}, "echo", value="now")
    bus.stop_servers()
    assert echo.values.items == ["now"]


@pytest.mark.proves("call")
def test_server_may_call_another_server(bus, unique):
    """A call made by an endpoint while it handles one, over the same transport."""
    transport = bus.rpc_transport()
    first, second = unique("first"), unique("second")

    class Back:
        def double(self, ctxt, value):
            return value * 2

    class Front:
        def __init__(self):
            self.client = bus.client(Target(topic=second), transport)

        def plus_one(self, ctxt, value):
            return self.client.call(ctxt, "double", value=value) + 1

    bus.server(Back(), Target(topic=second, server="s"), transport)
    bus.server(Front(), Target(topic=first, server="s"), transport)
    client = bus.client(Target(topic=first), transport)
    calls = [in_thread(client.call, {}, "plus_one", value=n) for n in range(30)]
    assert [call.result() for call in calls] == [n * 2 + 1 for n in range(30)]


@pytest.mark.parametrize("executor", world.executors())
@pytest.mark.proves("call")
def test_stock_server_under_each_executor(bus, target, executor):
    bus.server(Echo(), target, executor=executor)
    client = bus.client(target)
    calls = [in_thread(client.call, {}, "echo", value=n) for n in range(20)]
    assert [call.result() for call in calls] == list(range(20))


def test_transport_options_pass(bus, target):
    """The option of the API reaches a driver that may not know it, harmlessly."""
    bus.server(Echo(), target)
    options = oslo_messaging.TransportOptions(at_least_once=True)
    client = bus.client(target, transport_options=options)
    assert client.call({}, "echo", value="there") == "there"


@pytest.mark.needs("mandatory")
@pytest.mark.proves("mandatory")
def test_mandatory_call_to_nobody_fails_at_once(bus, target):
    options = oslo_messaging.TransportOptions(at_least_once=True)
    client = bus.client(target, transport_options=options)
    with pytest.raises(oslo_messaging.MessageUndeliverable):
        client.call({}, "echo", value=1)


def test_retry_and_timeout_are_taken(bus, target):
    bus.server(Echo(), target)
    for retry in (None, -1, 0, 3):
        client = bus.client(target, retry=retry, timeout=WAIT)
        assert client.call({}, "echo", value=retry) == retry


class Doubling(oslo_messaging.Serializer):
    """Wraps every entity and context on the way out and unwraps it on the way in."""

    def serialize_entity(self, ctxt, entity):
        return {"wrapped": entity}

    def deserialize_entity(self, ctxt, entity):
        assert set(entity) == {"wrapped"}
        return entity["wrapped"]

    def serialize_context(self, ctxt):
        return {"context": ctxt}

    def deserialize_context(self, ctxt):
        return ctxt["context"]


def test_serializer(bus, target):
    echo = Echo()
    bus.server(echo, target, serializer=Doubling())
    client = bus.client(target, serializer=Doubling())
    assert client.call({"who": "me"}, "echo", value=[1, 2]) == [1, 2]
    assert echo.contexts.items == [{"who": "me"}]


def test_several_endpoints(bus, target):
    class Other:
        def other(self, ctxt):
            return "other"

    bus.server([Echo(), Other()], target)
    client = bus.client(target)
    assert client.call({}, "echo", value=1) == 1
    assert client.call({}, "other") == "other"
