# SPDX-License-Identifier: Apache-2.0
"""A client whose bytes are damaged: the broker and its other clients go on."""

from __future__ import annotations

import functools
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenamqp.broker.namespace import Namespace
from greenamqp.broker.store import MESSAGE_OVERHEAD
from greenamqp.engine import RELEASED, Sasl
from greenamqp.engine import connection as connection_module
from greenamqp.engine.link import EXPIRE_NEVER
from tests.unit.bus import Bus, message, send
from tests.unit.wire import feed, output

PRODUCTS = ["greenamqp", "qpid-dispatch-router", "skupper-router", "qpid-cpp"]


@functools.cache
def conversation(product: str) -> list[bytes]:
    """What a client says to a broker that does a bit of everything, in the pieces in
    which it says it."""
    bus = Bus(product=product, users={"me": "secret"}, allow_anonymous=True)
    client = bus.client(
        sasl=Sasl("me", "secret", "PLAIN"), hostname="vhost", properties={"a": 1}
    )
    answers = iter([RELEASED] + [1] * 100)

    def take(link, delivery):
        if next(answers) == RELEASED:
            link.settle(delivery, RELEASED)
        else:
            link.settle(delivery, failed=False)

    client.receiver("unicast.q", credit=10, take=take)
    client.receiver("broadcast.t", credit=3)
    client.receiver(
        "unicast.q::pool",
        expiry_policy=EXPIRE_NEVER,
        capabilities=("shared",),
        node_properties={"x-max-length": 5, "x-expires": 10_000},
    )
    replies = client.receiver(None, dynamic=True)
    sender = client.sender("unicast.q", capabilities=("queue",))
    send(bus, sender, *range(5), ttl=5.0, durable=True, address="unicast.q")
    send(bus, client.sender("broadcast.t"), "x" * 2000, settled=True)
    anonymous = client.sender(None)
    send(bus, anonymous, "y", address=replies.link.remote_source.address, id=1)
    sender.close()
    bus.run()
    replies.link.close()
    bus.run()
    client.close()
    (wire,) = bus.wires
    return wire.log[0]


def test_the_conversation_itself():
    for product in PRODUCTS:
        bus = Bus(product=product, users={"me": "secret"}, allow_anonymous=True)
        peer = bus.peer()
        for piece in conversation(product):
            feed(peer.engine, piece)
            while output(peer.engine):
                peer.engine.process(1.0)
        assert peer.engine.failed is None
        assert peer.engine.user == "me"


@pytest.mark.parametrize("product", PRODUCTS)
@given(data=st.data())
@settings(max_examples=150)
def test_damage(product, data):
    pieces = list(conversation(product))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(1, len(pieces) - 1))
        piece = bytearray(pieces[at])
        piece[data.draw(st.integers(0, len(piece) - 1))] = data.draw(
            st.integers(0, 255)
        )
        pieces[at] = bytes(piece)
    bus = Bus(product=product, users={"me": "secret"}, allow_anonymous=True)
    other = bus.client(hostname="vhost")
    receiver = other.receiver("unicast.mine")
    sender = other.sender("unicast.mine")
    peer = bus.peer()
    with mock.patch.object(connection_module.LOG, "exception") as raised:
        for piece in pieces:
            feed(peer.engine, piece, bus.now)
            peer.engine.process(bus.now)
            while output(peer.engine):
                peer.engine.process(bus.now)
            bus.run()
        peer.engine.abort("the end")
        peer.engine.process(bus.now)
        peer.engine.destroy()
        send(bus, sender, "x")
    assert not raised.called, raised.call_args
    # The other one noticed nothing, and of the damaged one nothing is left.
    assert receiver.bodies == ["x"] and other.events == [("opened",)]
    assert not peer.links
    held = 0
    for namespace in bus.core.namespaces.values():
        if not isinstance(namespace, Namespace):
            assert set(namespace.addresses) <= {"unicast.mine"}
            continue
        for address in namespace.addresses.values():
            assert address.owner is None
            assert address.senders == (1 if address.name == "unicast.mine" else 0)
            for queue in address.queues:
                assert queue.depth == queue.waiting
                held += queue.bytes + MESSAGE_OVERHEAD * queue.depth
    assert bus.core.usage.bytes == held
    assert bus.core.usage.addresses == sum(
        len(namespace.addresses)
        + sum(len(getattr(each, "bound", ())) for each in namespace.addresses.values())
        for namespace in bus.core.namespaces.values()
    )


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_messages_that_are_noise(noise):
    bus = Bus()
    client = bus.client()
    receiver = client.receiver("q")
    for address in ("q", None):
        sender = client.sender(address)
        with mock.patch.object(connection_module.LOG, "exception") as raised:
            sender.send(noise or b"\0", "h")
            bus.run()
        assert not raised.called
        assert len(sender.context) == 1
    send(bus, client.sender("q"), "good")
    assert receiver.data[-1] == message("good")
    assert bus.core.usage.bytes == sum(
        queue.bytes + MESSAGE_OVERHEAD * queue.depth
        for address in bus.core.namespaces[""].addresses.values()
        for queue in address.queues
    )
