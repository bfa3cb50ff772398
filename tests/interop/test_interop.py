# SPDX-License-Identifier: Apache-2.0
"""greenamqp beside its predecessor: each as a client of the other."""

import uuid

import pytest

from tests.interop.conftest import Failed

MODULE = "interop_errors"


@pytest.fixture
def topic():
    return f"topic-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def pair(party, sides, topic):
    """(client, server): the server serves `topic` as ``s1``."""
    client, server = party(sides[0]), party(sides[1])
    server.ask("serve", topic=topic, server="s1")
    return client, server


def any_server(topic):
    return {"topic": topic}


def one_server(topic):
    return {"topic": topic, "server": "s1"}


VALUES = [
    None,
    0,
    "text",
    "žluť 漢 \U0001f40d \x00",
    [1, [2, {}]],
    {"a": None},
    2**70,
    0.5,
]


@pytest.mark.parametrize("target", [any_server, one_server])
def test_call(pair, topic, target):
    client, _server = pair
    answers = [
        client.ask(
            "call", target=target(topic), method="echo", arguments={"value": value}
        )
        for value in VALUES
    ]
    assert answers == VALUES


def test_large_call(pair, topic):
    client, _server = pair
    value = "x" * 1_000_000
    answer = client.ask(
        "call", target=any_server(topic), method="echo", arguments={"value": value}
    )
    assert answer == value


def test_call_in_another_exchange(party, sides, topic):
    client, server = party(sides[0]), party(sides[1])
    server.ask("serve", topic=topic, server="s1", exchange="cloud")
    target = {"topic": topic, "exchange": "cloud"}
    assert client.ask("call", target=target, method="name") == "s1"


def test_unknown_context_keys_pass(pair, topic):
    client, _server = pair
    context = {
        "request_id": "req-1",
        "trace_info": {"base_id": "b", "hmac_key": ["k"], "žluť": None},
        "_unknown": [1, 2.5, True],
    }
    got = client.ask(
        "call", target=any_server(topic), method="context", context=context
    )
    assert {key: got[key] for key in context} == context


def test_cast(pair, topic):
    client, server = pair
    for number in range(20):
        client.ask(
            "cast",
            target=any_server(topic),
            method="echo",
            arguments={"value": number},
            context={"n": number},
        )
    events = server.events(20)
    assert sorted(value for _name, _ctxt, value in events) == list(range(20))
    assert all(ctxt["n"] == value for _name, ctxt, value in events)


def test_fanout_reaches_both_kinds(party, sides, topic):
    client = party(sides[0])
    servers = [party("old"), party("new")]
    for number, server in enumerate(servers):
        server.ask("serve", topic=topic, server=f"s{number}")
    client.ask(
        "cast",
        target={"topic": topic, "fanout": True},
        method="echo",
        arguments={"value": "all"},
    )
    for server in servers:
        assert [event[2] for event in server.events(1)] == ["all"]


def test_both_kinds_share_a_topic(party, sides, topic):
    """Calls to a topic reach servers of either kind, and no call gets lost."""
    client = party(sides[0])
    for number, side in enumerate(("old", "new")):
        party(side).ask("serve", topic=topic, server=f"s{number}")
    names = {
        client.ask("call", target=any_server(topic), method="name", timeout=60)
        for _ in range(40)
    }
    assert names == {"s0", "s1"}
    for name in names:
        target = {"topic": topic, "server": name}
        assert client.ask("call", target=target, method="name") == name


@pytest.mark.parametrize("driver", ["messaging", "messagingv2"])
def test_notification(party, sides, topic, driver):
    sender, listener = party(sides[0]), party(sides[1])
    listener.ask("listen", topics=[topic])
    for level in ("info", "error"):
        sender.ask(
            "notify",
            topic=topic,
            event=f"compute.{level}",
            payload={"žluť": [1, None]},
            driver=driver,
            level=level,
        )
    events = sorted(listener.events(2))
    assert [event[0] for event in events] == ["error", "info"]
    for priority, _ctxt, publisher, event_type, payload in events:
        assert (publisher, event_type) == ("publisher", f"compute.{priority}")
        assert payload == {"žluť": [1, None]}


def test_requeue(party, sides, topic):
    sender, listener = party(sides[0]), party(sides[1])
    listener.ask("listen", topics=[topic])
    for event in ("again-1", "once"):
        sender.ask("notify", topic=topic, event=event, payload={})
    assert sorted(e[3] for e in listener.events(3)) == ["again-1", "again-1", "once"]


def test_monitored_call_outlives_its_monitor(pair, topic):
    """Heartbeats keep a call alive that takes longer than the monitor waits."""
    client, _server = pair
    answer = client.ask(
        "call",
        target=any_server(topic),
        method="slow",
        arguments={"seconds": 6},
        timeout=60,
        monitor=2,
    )
    assert answer == "done"


def test_monitored_call_ends_with_its_server(pair, topic):
    client, server = pair
    client.begin("call", target=one_server(topic), method="hold", timeout=80, monitor=2)
    server.events(1)
    server.kill()
    with pytest.raises(Failed) as caught:
        client.end()
    assert "MessagingTimeout" in caught.value.error["bases"]


class TestRemoteExceptions:
    @pytest.fixture
    def server(self, party, sides, topic):
        made = party(sides[1])
        made.ask("serve", topic=topic, server="s1")
        return made

    def error(self, client, topic, method, **arguments):
        with pytest.raises(Failed) as caught:
            client.ask(
                "call", target=any_server(topic), method=method, arguments=arguments
            )
        return caught.value.error

    @pytest.mark.parametrize("method", ["allowed", "expected"])
    def test_of_an_allowed_module(self, party, sides, server, topic, method):
        client = party(sides[0], exmods=[MODULE])
        error = self.error(client, topic, method, text="žluť")
        assert error["error"] == "Allowed_Remote"
        assert "Allowed" in error["bases"]
        assert "žluť" in error["text"]

    def test_with_arguments(self, party, sides, server, topic):
        client = party(sides[0], exmods=[MODULE])
        error = self.error(client, topic, "structured")
        assert "Structured" in error["bases"]
        assert error["code"] == 42

    def test_of_another_module(self, party, sides, server, topic):
        client = party(sides[0])
        error = self.error(client, topic, "allowed", text="secret module")
        assert error["error"] == "RemoteError"
        assert "Allowed" in error["text"] and "secret module" in error["text"]

    def test_built_in(self, party, sides, server, topic):
        client = party(sides[0])
        error = self.error(client, topic, "builtin", text="wrong value")
        assert "ValueError" in error["bases"]
        assert "wrong value" in error["text"]


def test_a_method_that_is_not_there(pair, topic):
    client, _server = pair
    with pytest.raises(Failed) as caught:
        client.ask("call", target=any_server(topic), method="missing")
    assert "missing" in caught.value.error["text"]


def test_call_to_nobody_times_out(party, sides, topic):
    client = party(sides[0])
    with pytest.raises(Failed) as caught:
        client.ask("call", target=any_server(topic), method="name", timeout=3)
    assert "MessagingTimeout" in caught.value.error["bases"]
