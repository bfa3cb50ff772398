# SPDX-License-Identifier: Apache-2.0
"""Two routers as a mesh, on fake wires and a clock that stands still."""

from __future__ import annotations

import pytest

from greenamqp.broker import Broker
from greenamqp.broker.mesh import Mesh
from greenamqp.broker.settings import Settings
from greenamqp.engine import ACCEPTED, MODIFIED, REJECTED, RELEASED
from tests.unit.bus import Bus, drains_of, message, send

hold = None


class Timer:
    def __init__(self, due, call):
        self.due = due
        self.call = call
        self.done = False

    def cancel(self):
        self.done = True


class Routers:
    """The routers `a` and `b`."""

    def __init__(self, **settings) -> None:
        settings = {"product": "skupper-router", "mesh_delay": 0.5} | settings
        self.a, self.b = Bus(**settings), Bus(**settings)
        # What one of them is sent may make the other speak: all wires are run together.
        self.b.wires, self.b.soon = self.a.wires, self.a.soon
        self.timers: list[Timer] = []
        self.join()

    def join(self) -> None:
        self.mesh = Mesh(self.a.core, self.b.core, self._call_later)

    def _call_later(self, delay, call):
        timer = Timer(self.a.now + delay, call)
        self.timers.append(timer)
        return timer

    def wait(self, seconds: float = 0.5) -> None:
        """The time passes, and what is due in it happens."""
        self.a.now = self.b.now = self.a.now + seconds
        for timer in self.timers[:]:
            if timer.due <= self.a.now:
                self.timers.remove(timer)
                if not timer.done:
                    timer.call()
        self.a.run()

    def waiting(self) -> list[Timer]:
        return [timer for timer in self.timers if not timer.done]


@pytest.fixture
def routers() -> Routers:
    return Routers()


def outcomes(sender) -> list:
    return [outcome for _, outcome, _ in sender.context]


@pytest.mark.parametrize("address", ["x", "broadcast.x"])
def test_a_consumer_is_known_next_door_after_a_while(routers, address):
    sender = routers.a.client().sender(address)
    receiver = routers.b.client().receiver(address)
    assert sender.credit == 0
    routers.wait(0.4)
    assert sender.credit == 0
    routers.wait(0.1)
    assert sender.credit == 250
    assert send(routers.a, sender, "m") == [("m", ACCEPTED, None)]
    assert receiver.bodies == ["m"]
    late = routers.a.client().sender(address)
    assert late.credit == 250


def test_both_ways(routers):
    for near, far in ((routers.a, routers.b), (routers.b, routers.a)):
        name = f"to {near}"
        receiver = far.client().receiver(name)
        routers.wait()
        assert send(near, near.client().sender(name), "m") == [("m", ACCEPTED, None)]
        assert receiver.bodies == ["m"]


def test_consumers_that_were_there_before_the_mesh(routers):
    routers.mesh.end()
    receiver = routers.b.client().receiver("x")
    sender = routers.a.client().sender("x")
    routers.wait(10)
    assert sender.credit == 0
    routers.join()
    routers.wait()
    send(routers.a, sender, "m")
    assert receiver.bodies == ["m"] and outcomes(sender) == [ACCEPTED]


def test_outcomes_come_back(routers):
    receiver = routers.b.client().receiver("x", take=hold)
    sender = routers.a.client().sender("x")
    routers.wait()
    assert send(routers.a, sender, *range(4)) == []
    receiver.settle(0, REJECTED, condition="amqp:decode-error", description="no")
    receiver.settle(1, RELEASED)
    receiver.settle(2, MODIFIED)
    receiver.settle(3)
    assert outcomes(sender) == [REJECTED, RELEASED, MODIFIED, ACCEPTED]
    assert str(sender.context[0][2]) == "amqp:decode-error: no"
    assert sender.context[2][2] == {"failed": True, "undeliverable": False}
    assert sender.credit == 250


def test_the_consumer_next_door_leaves(routers):
    client = routers.b.client()
    receiver = client.receiver("x", take=hold)
    sender = routers.a.client().sender("x")
    routers.wait()
    send(routers.a, sender, "held")
    receiver.link.close()
    routers.a.run()
    assert outcomes(sender) == [MODIFIED]
    send(routers.a, sender, "not known yet")
    assert outcomes(sender) == [MODIFIED, RELEASED]
    assert sender.credit == 250, "a released message brings credit"
    routers.wait()
    assert sender.credit == 250, "what is left stays"
    send(routers.a, sender, "known")
    assert outcomes(sender) == [MODIFIED, RELEASED, RELEASED]
    assert sender.credit == 0
    client.receiver("x")
    routers.wait()
    assert sender.credit == 250


def test_consumers_of_ones_own_come_first(routers):
    far = routers.b.client().receiver("unicast.x")
    near = routers.a.client().receiver("unicast.x")
    routers.wait()
    sender = routers.a.client().sender("unicast.x")
    send(routers.a, sender, *range(3))
    assert (near.bodies, far.bodies) == ([0, 1, 2], [])
    near.link.close()
    send(routers.a, sender, 3)
    assert far.bodies == [3] and outcomes(sender) == [ACCEPTED] * 4
    assert sender.credit == 250, "no drain: there is somebody"


def test_multicast_reaches_each_once_and_waits_for_the_slowest(routers):
    takers = [
        router.client().receiver("broadcast.x", take=hold)
        for router in (routers.a, routers.b, routers.b)
    ]
    routers.wait()
    sender = routers.a.client().sender("broadcast.x")
    send(routers.a, sender, "m")
    assert [taker.bodies for taker in takers] == [["m"]] * 3
    takers[2].settle(0)
    takers[0].settle(0, RELEASED)
    assert sender.context == []
    takers[1].settle(0, RELEASED)
    assert sender.context == [("m", ACCEPTED, None)]


def test_a_balanced_address_reaches_beyond_when_its_own_are_busy(routers):
    """Those of another router are a little farther away."""
    far = routers.b.client().receiver("x", take=hold)
    near = routers.a.client().receiver("x", take=hold)
    routers.wait()
    sender = routers.a.client().sender("x")
    for number in range(6):
        send(routers.a, sender, number)
    assert (near.bodies, far.bodies) == ([0, 1, 3, 5], [2, 4])
    near.settle(0)
    near.settle(1)
    send(routers.a, sender, 6, 7)
    assert near.bodies == [0, 1, 3, 5, 6, 7]


def test_settled_messages_wait_next_door(routers):
    for name in ("x", "broadcast.x"):
        slow = routers.b.client().receiver(name, credit=1, take=hold)
        routers.wait()
        sender = routers.a.client().sender(name)
        send(routers.a, sender, "first", "second", settled=True)
        assert slow.bodies == ["first"]
        assert slow.link.presettled(slow.held[0])
        slow.link.flow(5)
        routers.a.run()
        assert slow.bodies == ["first", "second"]
        assert sender.credit == 250


def test_what_finds_no_credit_next_door_waits(routers):
    receiver = routers.b.client().receiver("x", credit=0)
    sender = routers.a.client().sender("x")
    routers.wait()
    for number in range(250):
        sender.send(message(number), number)
    routers.a.run()
    assert sender.credit == 0 and sender.context == []
    receiver.link.flow(1000)
    routers.a.run()
    assert outcomes(sender) == [ACCEPTED] * 250 and sender.credit == 250


def test_replies_find_their_way_at_once(routers):
    client = routers.a.client()
    replies = client.receiver(None, dynamic=True)
    address = replies.link.remote_source.address
    server = routers.b.client()
    anonymous, named = server.sender(None), server.sender(address)
    assert named.credit == 250
    send(routers.b, anonymous, "one", address=address)
    send(routers.b, named, "two")
    assert replies.bodies == ["one", "two"]
    client.close()
    send(routers.b, anonymous, "nobody", address=address)
    assert outcomes(anonymous) == [ACCEPTED, RELEASED] and anonymous.credit == 250
    assert not routers.waiting()


def test_the_anonymous_terminus_sends_next_door(routers):
    receiver = routers.b.client().receiver("x")
    sender = routers.a.client().sender(None)
    send(routers.a, sender, "early", address="x")
    routers.wait()
    send(routers.a, sender, "m", address="x")
    assert outcomes(sender) == [RELEASED, ACCEPTED]
    assert receiver.bodies == ["m"]


def test_a_router_dies(routers):
    """Its neighbour thinks its consumers alive: released, with credit, no drain."""
    server = routers.b.client()
    receiver = server.receiver("x", take=hold)
    sender = routers.a.client().sender("x")
    routers.wait()
    send(routers.a, sender, "held")
    routers.mesh.died(routers.b.core)
    server.cut()
    routers.a.run()
    assert sender.context == [
        ("held", MODIFIED, {"failed": True, "undeliverable": False})
    ]
    drains = drains_of(sender)
    for _ in range(3):
        send(routers.a, sender, "m")
        assert sender.context[-1] == ("m", RELEASED, None)
        assert sender.credit == 250 and not drains
    routers.wait(2.9)
    assert send(routers.a, sender, "m")[-1] == ("m", RELEASED, None)
    assert not drains
    routers.wait(0.1)
    assert sender.credit == 250
    assert send(routers.a, sender, "m")[-1] == ("m", RELEASED, None)
    assert drains and sender.credit == 0
    assert receiver.bodies == ["held"]


def test_a_router_that_died_comes_again(routers):
    sender = routers.a.client().sender("x")
    server = routers.b.client()
    server.receiver("x")
    routers.wait()
    routers.mesh.died(routers.b.core)
    server.cut()
    assert routers.b.core.namespaces[""].addresses == {}
    routers.mesh.end()
    routers.join()
    again = routers.b.client().receiver("x")
    routers.wait()
    send(routers.a, sender, "m")
    assert again.bodies == ["m"] and outcomes(sender) == [ACCEPTED]
    routers.wait(10)
    assert sender.credit == 250, "the death is forgotten"


def test_a_sender_that_leaves_while_its_message_is_next_door(routers):
    receiver = routers.b.client().receiver("x", take=hold)
    client = routers.a.client()
    sender = client.sender("x")
    routers.wait()
    send(routers.a, sender, "m")
    client.close()
    receiver.settle(0)
    assert receiver.bodies == ["m"] and sender.context == []


def test_virtual_hosts_stay_apart(routers):
    there = routers.b.client(hostname="one").receiver("x")
    other = routers.b.client(hostname="other").receiver("x")
    routers.wait()
    sender = routers.a.client(hostname="one").sender("x")
    send(routers.a, sender, "m")
    assert (there.bodies, other.bodies) == (["m"], [])
    assert routers.a.client().sender("x").credit == 0


def test_addresses_go_with_their_links(routers):
    sender = routers.a.client()
    sender.sender("x")
    receiver = routers.b.client()
    receiver.receiver("x")
    routers.wait()
    sender.close()
    receiver.close()
    routers.wait()
    for router in (routers.a, routers.b):
        assert router.core.namespaces[""].addresses == {}
    assert not routers.waiting()


def test_addresses_that_the_other_does_not_take():
    routers = Routers(max_addresses=1)
    routers.a.client().receiver("mine")
    routers.b.client().receiver("theirs")
    routers.wait()
    assert list(routers.a.core.namespaces[""].addresses) == ["mine"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("mesh_delay", -1), ("mesh_delay", 1.1), ("mesh_timeout", float("nan"))],
)
def test_settings(name, value):
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


def test_a_mesh_is_of_two_routers():
    router = Broker(product="skupper-router")
    with pytest.raises(ValueError, match="two brokers"):
        Broker(neighbour=router)
    with pytest.raises(ValueError, match="two brokers"):
        Broker(product="skupper-router", neighbour=Broker())
    Broker(product="skupper-router", neighbour=router)
    with pytest.raises(ValueError, match="two brokers"):
        Broker(product="skupper-router", neighbour=router)
