# SPDX-License-Identifier: Apache-2.0
"""The broker as its clients see it, on fake wires."""

from __future__ import annotations

import re

import pytest

from greenamqp.broker import links
from greenamqp.broker.namespace import DYNAMIC_PREFIX
from greenamqp.engine import (
    ACCEPTED,
    MODIFIED,
    REJECTED,
    RELEASED,
    LinkState,
    Sasl,
    Terminus,
)
from greenamqp.engine.link import EXPIRE_NEVER
from tests.functional.buses import ROUTER
from tests.unit.bus import Bus, RealBus, decoded, drains_of, message, send
from tests.unit.wire import feed, output

hold = None  # for a receiver that settles nothing by itself


@pytest.fixture
def bus() -> Bus:
    return Bus()


def outcomes(sender) -> list:
    return [outcome for _, outcome, _ in sender.context]


def depth(bus: Bus, address: str) -> int:
    found = bus.core.namespaces[""].lookup(address)
    return getattr(found, "plain", found).depth if found is not None else 0


def lose(client, receiver, how: str) -> None:
    """The receiver goes, or its connection does."""
    if how == "detach":
        receiver.link.close()
        client.bus.run()
    else:
        getattr(client, how)()


# -- queues


def test_who_the_broker_is(bus):
    client = bus.client()
    assert client.engine.remote_properties["product"] == "greenamqp"
    assert client.engine.remote_properties["version"]
    assert "ANONYMOUS-RELAY" in client.engine.remote_offered_capabilities
    assert (
        client.engine.remote_container
        != bus.core.__class__(bus.core.settings, bus.core.clock).container_id
    )


def test_a_queue_keeps_messages_while_nobody_listens(bus):
    sending = bus.client()
    assert send(bus, sending.sender("q"), "a", "b") == [
        ("a", ACCEPTED, None),
        ("b", ACCEPTED, None),
    ]
    sending.close()
    assert depth(bus, "q") == 2
    receiver = bus.client().receiver("q")
    assert receiver.bodies == ["a", "b"]
    assert depth(bus, "q") == 0


def test_messages_are_forwarded_as_they_came(bus):
    client = bus.client()
    receiver = client.receiver("q")
    sender = client.sender("q")
    data = message(
        {"k": [1, 2]}, id=7, address="x", durable=True, priority=9, properties={"p": 1}
    )
    sender.send(data, None)
    bus.run()
    assert receiver.data == [data]


def test_competing_consumers_share_message_by_message(bus):
    receivers = [bus.client().receiver("q", take=hold) for _ in range(3)]
    send(bus, bus.client().sender("q"), *range(9))
    assert [receiver.bodies for receiver in receivers] == [
        [0, 3, 6],
        [1, 4, 7],
        [2, 5, 8],
    ]


def test_a_consumer_gets_as_much_as_its_credit(bus):
    client = bus.client()
    receiver = client.receiver("q", credit=2)
    send(bus, client.sender("q"), *range(5))
    assert receiver.bodies == [0, 1]
    receiver.link.flow(2)
    bus.run()
    assert receiver.bodies == [0, 1, 2, 3]
    assert depth(bus, "q") == 1


def test_released_and_modified_come_again(bus):
    client = bus.client()
    receiver = client.receiver("q", take=hold)
    send(bus, client.sender("q"), "x")
    receiver.settle(0, RELEASED)
    receiver.settle(1, MODIFIED)
    receiver.settle(2, MODIFIED, failed=True)
    found = receiver.messages
    assert [m.delivery_count for m in found] == [0, 0, 0, 1]
    assert not any(m.first_acquirer for m in found)
    receiver.settle(3)
    assert depth(bus, "q") == 0 and len(receiver.data) == 4


def test_undeliverable_here_goes_to_another(bus):
    client, other = bus.client(), bus.client()
    receiver = client.receiver("q", take=hold)
    send(bus, client.sender("q"), "x")
    receiver.settle(0, MODIFIED, failed=True, undeliverable=True)
    assert len(receiver.data) == 1 and depth(bus, "q") == 1
    elsewhere = other.receiver("q")
    assert [m.delivery_count for m in elsewhere.messages] == [1]


def test_rejected_is_dropped(bus):
    client = bus.client()
    receiver = client.receiver("q", take=hold)
    send(bus, client.sender("q"), "x")
    receiver.settle(0, REJECTED, condition="amqp:decode-error", description="no")
    assert depth(bus, "q") == 0 and len(receiver.data) == 1


@pytest.mark.parametrize("how", ["cut", "close", "detach"])
def test_what_a_lost_consumer_held_goes_to_another(bus, how):
    lost, other = bus.client("lost"), bus.client("other")
    receiver = lost.receiver("q", take=hold)
    send(bus, other.sender("q"), 1, 2, 3)
    assert receiver.bodies == [1, 2, 3]
    receiver.settle(1)
    lose(lost, receiver, how)
    found = other.receiver("q").messages
    assert [m.body for m in found] == [1, 3]
    assert [m.delivery_count for m in found] == ([1, 1] if how == "cut" else [0, 0])


def test_a_settled_receiver_is_sent_settled_messages(bus):
    client = bus.client()
    receiver = client.receiver("q", settled=True, take=hold)
    send(bus, client.sender("q"), "x")
    assert receiver.link.presettled(receiver.held[0])
    assert depth(bus, "q") == 0


def test_presettled_messages_are_kept_all_the_same(bus):
    client = bus.client()
    assert send(bus, client.sender("q"), "x", settled=True) == []
    receiver = client.receiver("q", take=hold)
    assert receiver.bodies == ["x"]
    assert not receiver.link.presettled(receiver.held[0])


def test_expired_messages_are_not_delivered(bus):
    client = bus.client()
    sender = client.sender("q")
    send(bus, sender, "short", ttl=1.0)
    send(bus, sender, "long", ttl=60.0)
    bus.now += 10
    received = client.receiver("q").messages
    assert [m.body for m in received] == ["long"]
    assert received[0].ttl == pytest.approx(50)


def test_drain_gives_what_there_is_and_the_credit_back(bus):
    raw = bus.raw()
    session = raw.session()
    sender = session.sender("s")
    sender.target.address = "q"
    sender.open()
    receiver = session.receiver("r")
    receiver.source.address = "q"
    receiver.open()
    raw.run()
    for tag in "ab":
        sender.delivery(tag)
        sender.send(message(tag))
        sender.advance()
    raw.run()
    receiver.drain(10)
    raw.run()
    assert receiver.queued == 2
    assert receiver.credit == receiver.queued, "the other eight are given back"


def test_a_long_queue_goes_out_in_portions(bus, monkeypatch):
    monkeypatch.setattr(links, "PORTION", 1000)
    client = bus.client()
    sender = client.sender("q")
    for _ in range(4):
        send(bus, sender, *["x" * 300] * 100)
    engine = client.peer.engine
    sizes = []
    receiver = client.receiver("q", credit=0)
    taken = engine.data_to_send

    def data_to_send(*args):
        sizes.append(engine.unwritten)
        return taken(*args)

    monkeypatch.setattr(engine, "data_to_send", data_to_send)
    receiver.link.flow(1000)
    bus.run()
    assert len(receiver.data) == 400
    assert max(sizes) < 2000
    send(bus, sender, "after")
    assert receiver.bodies[-1] == "after"


def test_drain_of_a_long_queue(bus, monkeypatch):
    monkeypatch.setattr(links, "PORTION", 1000)
    sending = bus.client()
    send(bus, sending.sender("q"), *["x" * 300] * 50)
    raw = bus.raw()
    receiver = raw.receiver("q")
    receiver.drain(100)
    for _ in range(100):
        raw.run()
        bus.run()
    assert receiver.queued == 50
    assert receiver.credit == receiver.queued


# -- credit of senders


def test_a_sender_has_credit_at_once_and_gets_it_back(bus):
    client = bus.client()
    sender = client.sender("q")
    assert sender.credit == 500
    for _ in range(10):
        send(bus, sender, *range(200))
    assert sender.credit > 200
    assert depth(bus, "q") == 2000


def test_a_full_queue_stops_its_senders_until_it_drains():
    bus = Bus(max_queue_messages=10)
    clients = bus.client(), bus.client()
    senders = [client.sender("q") for client in clients]
    assert [sender.credit for sender in senders] == [10, 10]
    sent = 0
    for sender in senders:
        while sender.credit:
            send(bus, sender, sent)
            sent += 1
    assert 10 <= sent <= 20
    assert depth(bus, "q") == sent
    receiver = clients[0].receiver("q", credit=3)
    assert [sender.credit for sender in senders] == [0, 0]
    receiver.link.flow(100)
    bus.run()
    assert all(sender.credit > 0 for sender in senders)
    assert receiver.bodies == list(range(sent))


def test_memory_of_all_queues_is_bounded():
    bus = Bus(max_memory=100_000)
    client = bus.client()
    senders = [client.sender(f"q{number}") for number in range(5)]
    for sender in senders:
        while sender.credit:
            send(bus, sender, "x" * 1000)
    assert bus.core.usage.bytes < 100_000 + 5 * 500 * 1400
    assert all(sender.credit == 0 for sender in senders)
    for number in range(5):
        client.receiver(f"q{number}")
    assert bus.core.usage.bytes == 0
    assert all(sender.credit > 0 for sender in senders)


def test_the_anonymous_terminus_releases_what_has_no_room():
    bus = Bus(max_queue_messages=2)
    sender = bus.client().sender(None)
    send(bus, sender, 1, 2, 3, address="q")
    assert outcomes(sender) == [ACCEPTED, ACCEPTED, RELEASED]
    assert sender.credit > 100


# -- topics, bound queues


def test_a_topic_gives_each_receiver_a_copy(bus):
    client = bus.client()
    sender = client.sender("broadcast.x")
    assert send(bus, sender, "nobody") == [("nobody", ACCEPTED, None)]
    receivers = [bus.client().receiver("broadcast.x") for _ in range(3)]
    send(bus, sender, "all")
    assert [receiver.bodies for receiver in receivers] == [["all"]] * 3
    receivers[0].link.close()
    bus.run()
    send(bus, sender, "rest")
    assert [receiver.bodies for receiver in receivers] == [
        ["all"],
        ["all", "rest"],
        ["all", "rest"],
    ]


def test_capabilities_choose(bus):
    client = bus.client()
    receivers = [client.receiver("x", capabilities=("topic",)) for _ in range(2)]
    send(bus, client.sender("x"), 1)
    assert [receiver.bodies for receiver in receivers] == [[1], [1]]
    wrong = client.sender("x", capabilities=("queue",))
    assert "amqp:precondition-failed" in client.detached(wrong)[0]


def test_pools(bus):
    client = bus.client()
    pools = {
        name: [
            bus.client().receiver(f"n.info::{name}", expiry_policy=EXPIRE_NEVER)
            for _ in range(2)
        ]
        for name in ("metering", "audit")
    }
    plain = client.receiver("n.info")
    send(bus, client.sender("n.info"), *range(6))
    for members in pools.values():
        assert [member.bodies for member in members] == [[0, 2, 4], [1, 3, 5]]
    assert plain.bodies == list(range(6))


def test_a_pool_that_lasts_and_one_that_does_not(bus):
    client = bus.client()
    for name, policy in (("lasts", {"expiry_policy": EXPIRE_NEVER}), ("not", {})):
        client.receiver(f"a::{name}", **policy).link.close()
    bus.run()
    send(bus, client.sender("a"), "x")
    assert depth(bus, "a::lasts") == 1
    assert bus.core.namespaces[""].lookup("a::not") is None
    assert client.receiver("a::lasts").bodies == ["x"]


def test_a_pool_that_lasts_for_a_while(bus):
    client = bus.client()
    client.receiver("a::q", timeout=30).link.close()
    bus.run()
    send(bus, client.sender("a"), "x")
    for seconds, there in ((29, True), (2, False)):
        bus.now += seconds
        bus.core.maintain(bus.now)
        assert (bus.core.namespaces[""].lookup("a::q") is not None) is there


def test_sending_to_a_bound_queue_alone(bus):
    client = bus.client()
    one, other = client.receiver("a::one"), client.receiver("a::other")
    send(bus, client.sender("a::one"), "x")
    anonymous = client.sender(None)
    send(bus, anonymous, "y", address="a::one")
    assert one.bodies == ["x", "y"] and other.bodies == []


@pytest.mark.parametrize("where", ["terminus", "link"])
def test_policies_of_queues(bus, where):
    client = bus.client()
    properties = {"x-max-length": 1, "x-overflow": "reject-publish"}
    if where == "terminus":
        sender = client.sender("q", node_properties=properties)
    else:
        client.engine.create_sender(Terminus("q"), properties=properties)
        bus.run()
        sender = client.sender("q")
    send(bus, sender, 1, 2)
    found = {handle: (outcome, error) for handle, outcome, error in sender.context}
    assert found[1] == (ACCEPTED, None)
    assert found[2][0] == REJECTED
    assert found[2][1].condition == "amqp:resource-limit-exceeded"
    wrong = client.sender("p", node_properties={"x-max-length": -1})
    assert "x-max-length" in client.detached(wrong)[0]


# -- dynamic nodes


def test_a_dynamic_source(bus):
    client, other = bus.client(), bus.client()
    receiver = client.receiver(None, dynamic=True)
    address = receiver.link.remote_source.address
    assert address.startswith(DYNAMIC_PREFIX)
    assert send(bus, other.sender(address), "reply") == [("reply", ACCEPTED, None)]
    assert receiver.bodies == ["reply"]
    thief = other.receiver(address)
    assert "amqp:resource-locked" in other.detached(thief.link)[0]


@pytest.mark.parametrize(
    "how, timeout", [("cut", 0), ("close", 0), ("detach", 0), ("detach", 30)]
)
def test_a_dynamic_node_goes_with_its_link(bus, how, timeout):
    client, other = bus.client(), bus.client()
    receiver = client.receiver(None, dynamic=True, timeout=timeout)
    address = receiver.link.remote_source.address
    anonymous = other.sender(None)
    lose(client, receiver, how)
    assert send(bus, anonymous, "late", address=address) == [("late", RELEASED, None)]
    late = other.sender(address)
    assert "amqp:not-found" in other.detached(late)[0]
    assert bus.core.namespaces[""].addresses == {}


def pass_time(bus, seconds: int) -> None:
    """All who are there give signs of life meanwhile."""
    for _ in range(seconds):
        bus.now += 1
        bus.run()
    bus.core.maintain(bus.now)


def test_a_dynamic_node_with_a_timeout_outlives_its_connection(bus):
    client, other = bus.client(), bus.client()
    lost = client.receiver(None, dynamic=True, timeout=30, take=None)
    address = lost.link.remote_source.address
    sender = other.sender(address)
    send(bus, sender, "held")
    client.cut()
    send(bus, sender, "late")
    bus.core.namespaces[""].forget_idle()
    pass_time(bus, 29)
    back = bus.client().receiver(address, timeout=30)
    assert back.bodies == ["held", "late"]
    # Attached to by its name it is what it was.
    pass_time(bus, 100)
    send(bus, sender, "later")
    assert back.bodies == ["held", "late", "later"]
    sender.close()
    back.link.close()
    bus.run()
    assert bus.core.namespaces[""].addresses == {}


def test_a_dynamic_node_with_a_timeout_expires(bus):
    client, other = bus.client(), bus.client()
    address = client.receiver(None, dynamic=True, timeout=30).link.remote_source.address
    client.cut()
    pass_time(bus, 30)
    assert bus.core.namespaces[""].addresses == {}
    late = other.receiver(address, timeout=30)
    assert "amqp:not-found" in other.detached(late.link)[0]


def test_who_is_back_before_its_loss_is_known_takes_its_dynamic_node_over(bus):
    client, other = bus.client(), bus.client()
    lost = client.receiver(None, dynamic=True, timeout=30, take=None)
    address = lost.link.remote_source.address
    sender = other.sender(address)
    send(bus, sender, "held")
    back = bus.client().receiver(address, timeout=30)
    assert "amqp:link:stolen" in client.detached(lost.link)[0]
    client.cut()
    send(bus, sender, "late")
    assert back.bodies == ["held", "late"]


def test_a_dynamic_target(bus):
    client = bus.client()
    sender = client.sender(None, dynamic=True)
    address = sender.remote_target.address
    receiver = client.receiver(address)
    send(bus, sender, "x")
    assert receiver.bodies == ["x"]
    sender.close()
    bus.run()
    assert address not in bus.core.namespaces[""].addresses


# -- the anonymous terminus


def test_the_anonymous_terminus(bus):
    client = bus.client()
    receiver = client.receiver("unicast.q")
    sender = client.sender(None)
    assert sender.credit == 500
    send(bus, sender, "x", address="unicast.q")
    send(bus, sender, "new", address="new.queue")
    send(bus, sender, "topic", address="broadcast.nobody")
    send(bus, sender, "nowhere")
    assert receiver.bodies == ["x"] and depth(bus, "new.queue") == 1
    assert outcomes(sender) == [ACCEPTED, ACCEPTED, ACCEPTED, REJECTED]
    assert sender.context[-1][2].condition == "amqp:precondition-failed"


def test_what_may_not_be_used():
    bus = Bus(refused_prefixes=("secret",))
    client = bus.client()
    for link in (client.sender("secret.x"), client.receiver("secret.y").link):
        assert "amqp:unauthorized-access" in client.detached(link)[0]
        assert "secret" in client.detached(link)[0]
    anonymous = client.sender(None)
    send(bus, anonymous, "x", address="secret.x")
    assert anonymous.context[0][1] == REJECTED
    assert anonymous.context[0][2].condition == "amqp:unauthorized-access"
    assert send(bus, anonymous, "y", address="open")[-1] == ("y", ACCEPTED, None)


# -- virtual hosts, users


def test_virtual_hosts(bus):
    one, other = bus.client(hostname="one"), bus.client(hostname="other")
    send(bus, one.sender("q"), "x")
    assert other.receiver("q").bodies == []
    assert bus.client(hostname="one").receiver("q").bodies == ["x"]


def test_too_many_virtual_hosts():
    bus = Bus(max_virtual_hosts=1)
    bus.client(hostname="one")
    refused = bus.client(hostname="two")
    kind, error = refused.events[-1]
    assert kind == "closed" and error.condition == "amqp:resource-limit-exceeded"


def test_users():
    bus = Bus(users={"me": "secret"})
    assert bus.client(sasl=Sasl("me", "secret")).events == [("opened",)]
    for sasl in (Sasl("me", "wrong"), Sasl(), None):
        assert bus.client(sasl=sasl).events[-1][0] == "failed"


def test_external():
    bus = Bus(allow_anonymous=False)
    peer = bus.peer(external="CN=me")
    assert peer.engine._gate.mechanisms == ("EXTERNAL",)


# -- a hostile peer


def test_messages_without_credit_cost_the_link(bus):
    raw = bus.raw()
    link = raw.sender("broadcast.x")
    assert link.credit == 500
    # proton keeps to its credit; a flow that we never sent makes it send more.
    for number in range(500):
        link.delivery(str(number))
        link.send(message("x"))
        link.advance()
    raw.run()
    producer = next(iter(raw.peer.links))
    producer.credit = 0
    link.delivery("one too many")
    link.send(message("x"))
    link.advance()
    raw.run()
    assert link.remote_condition.name == "amqp:link:transfer-limit-exceeded"
    assert not raw.peer.links


def test_a_message_that_is_none_is_rejected(bus):
    client = bus.client()
    for address in ("q", None):
        sender = client.sender(address)
        sender.send(b"\xff\xff\xff", "noise")
        bus.run()
        handle, outcome, error = sender.context[0]
        assert outcome == REJECTED and error.condition == "amqp:decode-error"
        assert send(bus, sender, "good", address="q")[-1][1] == ACCEPTED


def test_a_storm_of_links_is_stopped_and_others_go_on():
    bus = Bus(max_links=10)
    client, other = bus.client(), bus.client()
    links_made = [client.sender(f"q{number}") for number in range(15)]
    states = [link.state for link in links_made]
    assert states.count(LinkState.ATTACHED) == 10
    assert "10 links" in client.detached(links_made[-1])[0]
    assert send(bus, other.sender("q"), "x") == [("x", ACCEPTED, None)]
    links_made[0].close()
    bus.run()
    assert client.sender("again").state is LinkState.ATTACHED


def test_names_without_end(bus):
    client = bus.client()
    link = client.engine.create_sender(Terminus("q"), name="x" * 5000)
    errors = []
    link.on_detached = lambda link, error: errors.append(str(error))
    bus.run()
    assert "4096" in errors[0]
    too_long = client.sender("a" * 5000)
    assert "4096" in client.detached(too_long)[0]


def test_a_broken_connection_is_told_why_and_leaves_nothing(bus):
    raw = bus.raw()
    for _ in range(2):
        link = raw.session().receiver("same")
        link.source.address = "q"
        link.open()
    raw.run()
    assert raw.connection.remote_condition.name == "amqp:connection:framing-error"
    assert "same" in raw.connection.remote_condition.description
    assert not raw.peer.links
    assert not bus.core.namespaces[""].addresses["q"].plain.consumers
    assert bus.core.namespaces[""].connections == 0


def test_addresses_that_are_not_utf8(bus):
    raw = bus.raw()
    raw.patch = lambda data: data.replace(b"PATCH", b"\xff\xfe\xfd\xfc\xfb")
    raw.sender("PATCH")
    assert raw.peer.engine.failed is not None
    assert send(bus, bus.client().sender("q"), "x") == [("x", ACCEPTED, None)]


def test_a_to_that_is_not_utf8(bus):
    client = bus.client()
    sender = client.sender(None)
    sender.send(message("x", address="PATCH").replace(b"PATCH", b"\xff" * 5), 1)
    bus.run()
    assert sender.context[0][1] == REJECTED
    assert "UTF-8" in sender.context[0][2].description


def test_transactions_are_refused(bus):
    raw = bus.raw()
    link = raw.session().sender("s")
    link.target.type = link.target.COORDINATOR
    link.open()
    raw.run()
    assert link.remote_condition.name == "amqp:not-implemented"


def test_a_source_without_address_is_refused(bus):
    client = bus.client()
    receiver = client.receiver(None, credit=0)
    assert "no address" in client.detached(receiver.link)[0]


def test_a_message_too_large_for_a_consumer_waits_for_another(bus):
    raw = bus.raw()
    link = raw.receiver("q", max_message_size=1000)
    link.flow(10)
    raw.run()
    client = bus.client()
    send(bus, client.sender("q"), "x" * 2000, "small")
    raw.run()
    assert link.queued == 1
    assert client.receiver("q").bodies == ["x" * 2000]


def test_closing_the_broker_gives_messages_back_first(bus):
    client = bus.client()
    client.receiver("q", take=hold)
    send(bus, client.sender("q"), "x")
    client.peer.close("amqp:connection:forced", "enough")
    bus.run()
    kind, error = client.events[-1]
    assert kind == "closed" and str(error) == "amqp:connection:forced: enough"
    assert bus.client().receiver("q").messages[0].delivery_count == 0


# -- as other products


def test_as_qpidd():
    bus = Bus(product="qpid-cpp")
    client = bus.client("container")
    assert client.engine.remote_properties["product"] == "qpid-cpp"
    for address in ("unicast.x", "broadcast.x"):
        assert client.sender(address).credit == 500
    unlisted = client.sender("anything")
    assert "amqp:not-found" in client.detached(unlisted)[0]
    anonymous = client.sender(None)
    send(bus, anonymous, "no to")
    send(bus, anonymous, "unknown", address="unicast.unknown")
    send(bus, anonymous, "known", address="unicast.x")
    assert outcomes(anonymous) == [ACCEPTED] * 3
    assert client.receiver("unicast.x").bodies == ["known"]
    assert "unicast.unknown" not in bus.core.namespaces[""].addresses
    receiver = client.receiver(None, dynamic=True)
    assert receiver.link.remote_source.address.startswith("container_")


@pytest.mark.parametrize("asked", [0, 5, 60])
def test_qpidd_mirrors_the_idle_timeout(asked):
    bus = Bus(product="qpid-cpp")
    # An engine asks for half of what it allows.
    client = bus.client(idle_timeout=2 * asked)
    assert client.peer.engine.remote_idle_timeout == pytest.approx(asked)
    assert client.engine.remote_idle_timeout == pytest.approx(asked)
    assert send(bus, client.sender("unicast.x"), "m") == [("m", ACCEPTED, None)]


def test_qpidd_delivers_again_what_is_released_and_not_what_is_rejected():
    bus = Bus(product="qpid-cpp")
    client, lost = bus.client("client"), bus.client("lost")
    receiver = lost.receiver("unicast.x", take=hold)
    sender = client.sender("unicast.x")
    assert [o for _, o, _ in send(bus, sender, "m", "n")] == [ACCEPTED] * 2
    receiver.settle(0, RELEASED)
    receiver.settle(1, REJECTED)
    assert receiver.bodies == ["m", "n", "m"]
    lost.cut()
    assert client.receiver("unicast.x").bodies == ["m"]


def test_qpidd_delivers_unsettled_what_was_sent_settled():
    bus = Bus(product="qpid-cpp")
    client = bus.client()
    receiver = client.receiver("unicast.x", take=hold)
    send(bus, client.sender("unicast.x"), "m", settled=True)
    assert not receiver.link.presettled(receiver.held[0])


def test_qpidd_drops_what_no_consumer_of_a_topic_hears():
    bus = Bus(product="qpid-cpp")
    client = bus.client()
    assert send(bus, client.sender("broadcast.x"), "m") == [("m", ACCEPTED, None)]
    receivers = [client.receiver("broadcast.x") for _ in range(2)]
    send(bus, client.sender("broadcast.x"), *range(6))
    assert [receiver.bodies for receiver in receivers] == [[*range(6)]] * 2


def test_qpidd_looks_at_the_ttl():
    bus = Bus(product="qpid-cpp")
    client = bus.client()
    send(bus, client.sender("unicast.x"), "old", ttl=1.0)
    bus.now += 60
    assert client.receiver("unicast.x").bodies == []


def test_qpidd_shares_a_dynamic_queue_of_equal_names():
    """Equal container ids and link names on two connections: one queue."""
    bus = Bus(product="qpid-cpp")
    one, other = bus.client("same"), bus.client("same")
    links = [
        client.engine.create_receiver(Terminus(None, dynamic=True), name="replies")
        for client in (one, other)
    ]
    bus.run()
    assert {link.remote_source.address for link in links} == {"same_replies"}


ROUTERS = ["qpid-dispatch-router", "skupper-router"]


@pytest.fixture(params=[ROUTER] if ROUTER else ROUTERS)
def router(request):
    """Either product, or the real one that GREENAMQP_TEST_ROUTER names."""
    if not ROUTER:
        yield Bus(product=request.param)
        return
    real = RealBus(ROUTER)
    yield real
    real.close()


def test_router_who_it_is(router):
    engine = router.client().engine
    assert engine.remote_properties["product"] in ROUTERS
    assert engine.remote_properties["version"]
    assert engine.remote_offered_capabilities[:2] == (
        "ANONYMOUS-RELAY",
        "qd.streaming-links",
    )
    assert engine.remote_idle_timeout == pytest.approx(8)


@pytest.mark.parametrize("address", ["unicast.x", "broadcast.x", "any"])
def test_router_credit_comes_with_a_consumer(router, address):
    sender = router.client().sender(address)
    assert (sender.state, sender.credit) == (LinkState.ATTACHED, 0)
    client = router.client()
    receiver = client.receiver(address, credit=0)
    assert sender.credit == 250
    receiver.link.close()
    router.run()
    assert sender.credit == 250, "what is left stays"
    assert send(router, sender, "x") == [("x", RELEASED, None)]
    assert sender.credit == 0, "and is taken back when it is used in vain"
    client.receiver(address)
    assert sender.credit == 250


@pytest.mark.parametrize("address", ["x", "broadcast.x"])
@pytest.mark.parametrize("settled", [False, True])
def test_router_takes_back_the_credit_of_who_sends_to_nobody(router, address, settled):
    client, other = router.client(), router.client()
    sender, quiet = client.sender(address), other.sender(address)
    receiver = client.receiver(address)
    receiver.link.close()
    router.run()
    drains = drains_of(sender)
    send(router, sender, 1, 2, 3, settled=settled)
    assert outcomes(sender) == ([] if settled else [RELEASED] * 3)
    assert drains and sender.credit == 0
    assert quiet.credit == 250, "it sent nothing"


def test_router_what_crosses_a_drain_is_released(router):
    """The peer uses up its credit instead of giving it back."""
    client = router.client()
    sender = client.sender("x")
    client.receiver("x").link.close()
    router.run()

    def use_it_up(link):
        while link.credit > 0:
            link.send(message("late"), "late")

    sender.on_drain = use_it_up
    send(router, sender, "first")
    assert len(sender.context) == 250 and set(outcomes(sender)) == {RELEASED}
    assert sender.credit == 0
    client.receiver("x")
    assert sender.credit == 250


def test_router_a_consumer_comes_while_credit_is_taken_back(router):
    core = router.core
    client = router.client()
    sender = client.sender("x")
    client.receiver("x").link.close()
    router.run()

    def crossed(link):
        """The consumer is there before the broker reads the answer."""
        core.namespaces[""].resolve("x").attach_receiver(Nobody())
        link.drained()

    sender.on_drain = crossed
    assert send(router, sender, "m") == [("m", RELEASED, None)]
    assert sender.credit == 250


def test_router_a_consumer_comes_and_the_drain_was_not_answered(router):
    client = router.client()
    sender = client.sender("x")
    client.receiver("x").link.close()
    router.run()
    sender.on_drain = lambda link: None
    send(router, sender, "m")
    assert sender.credit == 249
    client.receiver("x")
    assert sender.credit == 250


class Nobody:
    """A receiver that takes nothing."""

    credit = unsettled = 0


def test_router_each_outcome_brings_credit(router):
    client = router.client()
    sender = client.sender("x")
    receiver = client.receiver("x", take=hold)
    anonymous = client.sender(None)
    send(router, sender, *range(3))
    assert sender.credit == 247
    for number, outcome in enumerate((RELEASED, REJECTED, ACCEPTED)):
        receiver.settle(number, outcome)
        assert sender.credit == 248 + number
    send(router, anonymous, "nobody", address="y")
    send(router, anonymous, "no to")
    assert outcomes(anonymous) == [RELEASED, REJECTED]
    assert anonymous.credit == 250


def test_router_drains_no_anonymous_terminus(router):
    client = router.client()
    client.sender("y")  # the address is there, but nobody receives
    sender = client.sender(None)
    drains = drains_of(sender)
    send(router, sender, "nobody", address="y")
    assert sender.context == [("nobody", RELEASED, None)]
    assert not drains and sender.credit == 250


@pytest.mark.parametrize(
    ("outcome", "how"),
    [
        (ACCEPTED, {}),
        (RELEASED, {}),
        (REJECTED, {"condition": "amqp:decode-error", "description": "no"}),
        (REJECTED, {}),
        (MODIFIED, {"failed": True}),
        (MODIFIED, {"failed": False}),
        (MODIFIED, {"undeliverable": True}),
    ],
)
def test_router_outcomes_are_end_to_end(router, outcome, how):
    client = router.client()
    receiver = client.receiver("x", take=hold)
    sender = client.sender("x")
    assert send(router, sender, "m") == []
    receiver.settle(0, outcome, **how)
    ((handle, found, error),) = sender.context
    assert (handle, found) == ("m", outcome)
    if outcome == MODIFIED:
        assert error == {"undeliverable": False} | how | {"failed": True}
    elif how:
        assert str(error) == "amqp:decode-error: no"
    assert len(receiver.data) == 1, "no redelivery"


@pytest.mark.parametrize("how", ["cut", "close", "detach"])
def test_router_consumer_lost(router, how):
    client, lost = router.client(), router.client()
    receiver = lost.receiver("x", take=hold)
    sender = client.sender("x")
    send(router, sender, "m")
    lose(lost, receiver, how)
    assert sender.context == [("m", MODIFIED, {"failed": True, "undeliverable": False})]


def test_router_window(router):
    client = router.client()
    receiver = client.receiver("x", take=hold)
    sender = client.sender("x")
    for number in range(250):
        sender.send(message(number), number)
    router.run()
    assert sender.credit == 0 and len(receiver.data) == 250
    for number in range(200):
        receiver.link.settle(receiver.held[number])
    router.run()
    assert sender.credit == 200
    assert outcomes(sender) == [ACCEPTED] * 200


def test_router_slow_consumer(router):
    client = router.client()
    receiver = client.receiver("x", credit=1)
    sender = client.sender("x")
    send(router, sender, 1, 2, 3)
    send(router, sender, "settled", settled=True)
    assert outcomes(sender) == [ACCEPTED]
    receiver.link.flow(10)
    router.run()
    assert receiver.bodies == [1, 2, 3, "settled"]
    assert outcomes(sender) == [ACCEPTED] * 3


@pytest.mark.parametrize("address", ["x", "unicast.x", "broadcast.x"])
def test_router_settled_messages_that_are_too_many(router, address):
    client = router.client()
    receiver = client.receiver(address, credit=0)
    sender = client.sender(address)
    send(router, sender, *range(250), settled=True)
    send(router, sender, *range(250, 260), settled=True)
    receiver.link.flow(1000)
    router.run()
    assert receiver.bodies == [0, *range(250, 260)]


@pytest.mark.parametrize("address", ["x", "unicast.x"])
def test_router_one_of_two_consumers_is_stuck(router, address):
    """What it was to get waits for it alone, until it leaves."""
    client, other = router.client(), router.client()
    stuck = other.receiver(address, credit=0, take=hold)
    idle = client.receiver(address)
    sender = client.sender(address)
    for number in range(6):
        send(router, sender, number)
    balanced = address == "x"
    assert idle.bodies == ([1, 2, 3, 4, 5] if balanced else [1, 3, 5])
    send(router, sender, *range(6, 16))
    assert len(idle.bodies) == (11 if balanced else 8)
    stuck.link.close()
    router.run()
    assert outcomes(sender).count(ACCEPTED) == len(idle.bodies)
    assert outcomes(sender).count(RELEASED) == 16 - len(idle.bodies)
    assert sender.credit == 250


def test_router_the_last_consumer_leaves_what_it_has_and_what_waits(router):
    receiver = router.client().receiver("x", credit=2, take=hold)
    sender = router.client().sender("x")
    send(router, sender, *range(4))
    receiver.link.close()
    router.run()
    assert outcomes(sender) == [MODIFIED, MODIFIED, RELEASED, RELEASED]
    assert sender.credit == 250


@pytest.mark.parametrize("address", ["x", "broadcast.x"])
def test_router_what_its_sender_settles_while_it_waits_arrives(router, address):
    receiver = router.client().receiver(address, credit=0, take=hold)
    sender = router.client().sender(address)
    for _ in range(2):
        send(router, sender, *range(200))
        while sender.oldest is not None:
            sender.settle_oldest()
        router.run()
    assert sender.credit == 250 and sender.context == []
    receiver.link.flow(1000)
    router.run()
    assert receiver.bodies == [*range(200)] * 2
    assert receiver.link.presettled(receiver.held[-1])


def test_router_settled_by_its_sender_before_it_is_read(caplog):
    bus = Bus(product=ROUTERS[0])
    receiver = bus.client().receiver("x", take=hold)
    client = bus.client()
    sender = client.sender("x")
    for body in ("m", "n"):
        sender.send(message(body), body)
    data = output(client.engine)
    sender.settle_oldest()
    sender.settle_oldest()
    feed(client.peer.engine, data + output(client.engine))
    bus.run()
    assert receiver.bodies == ["m", "n"] and receiver.link.presettled(receiver.held[0])
    assert sender.credit == 250 and not caplog.records


def test_router_presettled_stays_settled(router):
    client = router.client()
    receiver = client.receiver("x", take=hold)
    sender = client.sender("x")
    send(router, sender, "m", settled=True)
    assert receiver.link.presettled(receiver.held[0])
    for _ in range(10):
        send(router, sender, *range(100), settled=True)
    assert sender.credit > 100


def test_router_looks_at_no_ttl(router):
    now = router.now
    client = router.client()
    receiver = client.receiver("x", credit=0)
    send(router, client.sender("x"), "m", ttl=1.0)
    router.now = now + 60
    receiver.link.flow(1)
    router.run()
    assert receiver.messages[0].ttl == 1.0


def test_router_multicast(router):
    client = router.client()
    sender = client.sender("broadcast.x")
    takers = [router.client().receiver("broadcast.x", take=hold) for _ in range(3)]
    send(router, sender, "m")
    assert [taker.bodies for taker in takers] == [["m"]] * 3
    takers[0].settle(0, RELEASED)
    takers[1].settle(0, ACCEPTED)
    assert sender.context == []
    takers[2].settle(0, REJECTED, condition="amqp:decode-error", description="no")
    assert sender.context == [("m", REJECTED, None)], "nobody is told why"


def test_router_round_robin(router):
    sender_client = router.client()
    takers = [router.client().receiver("unicast.x") for _ in range(2)]
    send(router, sender_client.sender("unicast.x"), *range(6))
    assert sorted(len(taker.data) for taker in takers) == [3, 3]


def test_router_anonymous_terminus(router):
    client = router.client()
    receiver = client.receiver("x")
    sender = client.sender(None)
    assert sender.credit == 250
    send(router, sender, "there", address="x")
    send(router, sender, "nobody", address="y")
    send(router, sender, "no to")
    found = {handle: (outcome, error) for handle, outcome, error in sender.context}
    assert found["there"] == (ACCEPTED, None)
    assert found["nobody"] == (RELEASED, None)
    assert found["no to"][0] == REJECTED
    assert found["no to"][1].condition == "amqp:precondition-failed"
    assert receiver.bodies == ["there"]


def test_router_head_of_line(router):
    client = router.client()
    client.receiver("stalled", credit=0)
    sender = client.sender(None)
    for number in range(250):
        sender.send(message(number, address="stalled"), number)
    router.run()
    assert sender.credit == 0 and sender.context == []


def test_router_dynamic_source(router):
    client = router.client()
    receiver = client.receiver(None, dynamic=True)
    address = receiver.link.remote_source.address
    assert re.fullmatch(r"amqp:/_topo/0/[^/]+/temp\.[\w+]{15}", address)
    sender = client.sender(None)
    send(router, sender, "x", address=address)
    assert receiver.bodies == ["x"]
    receiver.link.close()
    router.run()
    assert send(router, sender, "y", address=address)[-1] == ("y", RELEASED, None)


@pytest.mark.parametrize("address", ["x", None])
def test_router_a_sender_that_leaves(router, address):
    client, other = router.client(), router.client()
    receiver = client.receiver("x", credit=0, take=hold)
    sender = other.sender(address)
    send(router, sender, "waits", address="x")
    other.cut()
    receiver.link.flow(5)
    router.run()
    assert receiver.bodies == ["waits"]
    settling = router.client().sender("x")
    send(router, settling, "m")
    receiver.settle(1)
    assert settling.context == [("m", ACCEPTED, None)]


def test_router_settled_receiver(router):
    client = router.client()
    receiver = client.receiver("x", settled=True, take=hold)
    assert send(router, client.sender("x"), "m") == [("m", ACCEPTED, None)]
    assert receiver.link.presettled(receiver.held[0])


def test_router_addresses_go_with_their_links(router):
    client = router.client()
    client.sender("a")
    client.receiver("b")
    client.close()
    assert router.core.namespaces[""].addresses == {}


def test_router_receiver_that_takes_less(router):
    raw = router.raw()
    link = raw.receiver("x", max_message_size=1000)
    link.flow(10)
    raw.run()
    sender = router.client().sender("x")
    send(router, sender, "x" * 2000)
    raw.run()
    router.run()
    assert sender.context[0][1] == REJECTED
    assert sender.context[0][2].condition == "amqp:link:message-size-exceeded"


def test_messages_know_their_way_back(bus):
    """A call as a driver makes it: reply address, correlation id, anonymous reply."""
    client, server = bus.client("c"), bus.client("s")
    replies = client.receiver(None, dynamic=True)
    requests = server.receiver("unicast.t")
    request = client.sender("unicast.t")
    send(
        bus,
        request,
        "ping",
        id="1",
        reply_to=replies.link.remote_source.address,
        ttl=30.0,
    )
    got = decoded(requests.data[0])
    answer = server.sender(None)
    send(bus, answer, "pong", address=got.reply_to, correlation_id=got.id)
    assert replies.messages[0].correlation_id == "1"
    assert outcomes(answer) == outcomes(request) == [ACCEPTED]
