# SPDX-License-Identifier: Apache-2.0
"""What a router does with messages, credit and outcomes; no connections."""

from __future__ import annotations

import pytest

from greenamqp.broker.namespace import Refused
from greenamqp.broker.router import (
    ACCEPTED,
    BACKLOG,
    LOST,
    RELEASED,
    Distribution,
    Result,
    RouterAddress,
    RouterNamespace,
)
from greenamqp.broker.settings import Settings
from greenamqp.broker.store import Usage

REJECTED = Result("rejected", ("amqp:decode-error", "no"))


class Sends:
    def __init__(self):
        self.credited = 0
        self.outcomes = []
        self.gone = []

    def give_credit(self):
        self.credited += 1

    def settle(self, token, result):
        self.outcomes.append((token, result))

    def passed(self, token):
        self.gone.append(token)


class Receives:
    def __init__(self, address, credit=0):
        self.credit = 0
        self.transits = []
        self.got = []
        self.address = address
        address.attach_receiver(self)
        self.grant(credit)

    def grant(self, credit):
        self.credit += credit
        if self.credit > 0:
            self.address.ready(self)

    def deliver(self, transit, data, settled):
        assert self.credit > 0
        self.credit -= 1
        self.got.append((data, settled))
        self.transits.append(transit)

    @property
    def unsettled(self):
        return len(self.transits)

    @property
    def numbers(self):
        return [data[0] for data, _ in self.got]

    def accept(self):
        """All that it has."""
        while self.transits:
            self.transits.pop(0).outcome(ACCEPTED)

    def leave(self):
        while self.transits:
            self.transits.pop(0).outcome(LOST)
        self.address.detach_receiver(self)


def send(address, sender, *numbers, settled=False):
    for number in numbers:
        address.send(sender, number, bytes([number % 256]), settled)


@pytest.fixture(params=[Distribution.CLOSEST, Distribution.BALANCED])
def anycast(request):
    return RouterAddress("a", request.param)


@pytest.fixture
def closest():
    return RouterAddress("c", Distribution.CLOSEST)


@pytest.fixture
def balanced():
    return RouterAddress("b", Distribution.BALANCED)


@pytest.fixture
def multicast():
    return RouterAddress("m", Distribution.MULTICAST)


def test_a_sender_gets_credit_when_the_first_receiver_comes(anycast):
    early, late = Sends(), Sends()
    anycast.attach_sender(early)
    assert early.credited == 0
    Receives(anycast)
    assert early.credited == 1
    Receives(anycast)
    anycast.attach_sender(late)
    assert (early.credited, late.credited) == (1, 1)


def test_nobody_there(anycast, multicast):
    for address in (anycast, multicast):
        sender = Sends()
        address.attach_sender(sender)
        address.send(sender, 1, b"x", settled=False)
        address.send(sender, 2, b"x", settled=True)
        assert sender.outcomes == [(1, RELEASED)]
        assert sender.gone == [2]


@pytest.mark.parametrize("result", [ACCEPTED, RELEASED, REJECTED, LOST])
def test_the_receivers_outcome_is_the_senders(anycast, result):
    sender, receiver = Sends(), Receives(anycast, 10)
    anycast.attach_sender(sender)
    anycast.send(sender, "token", b"data", settled=False)
    assert sender.outcomes == []
    assert receiver.got == [(b"data", False)]
    receiver.transits[0].outcome(result)
    assert sender.outcomes == [("token", result)]


def test_receivers_take_turns(anycast):
    sender = Sends()
    receivers = [Receives(anycast, 10) for _ in range(2)]
    for number in range(6):
        anycast.send(sender, number, bytes([number]), settled=False)
    assert [[data[0] for data, _ in each.got] for each in receivers] == [
        [0, 2, 4],
        [1, 3, 5],
    ]


def test_what_finds_no_credit_waits(anycast, multicast):
    for address in (anycast, multicast):
        sender, receiver = Sends(), Receives(address)
        send(address, sender, 1)
        send(address, sender, 2, settled=True)
        assert receiver.got == [] and sender.gone == [2]
        receiver.grant(5)
        assert receiver.got == [(b"\x01", False), (b"\x02", True)]
        send(address, sender, 3, settled=True)
        assert receiver.got[-1] == (b"\x03", True)
        assert sender.outcomes == []


def test_settled_messages_that_are_too_many_are_dropped(anycast, multicast):
    """All that wait, but for the first; what is not settled stays."""
    for address in (anycast, multicast):
        sender, receiver = Sends(), Receives(address)
        send(address, sender, *range(BACKLOG - 1), settled=True)
        send(address, sender, BACKLOG - 1)
        send(address, sender, BACKLOG, BACKLOG + 1, settled=True)
        receiver.grant(1000)
        expected = [0, BACKLOG - 1, BACKLOG, BACKLOG + 1]
        assert receiver.numbers == [number % 256 for number in expected]


def test_closest_goes_by_turns_whoever_has_credit(closest):
    sender = Sends()
    stuck, idle = Receives(closest), Receives(closest, 100)
    send(closest, sender, *range(6))
    assert idle.numbers == [1, 3, 5]
    stuck.grant(100)
    assert stuck.numbers == [0, 2, 4]


def test_balanced_goes_to_the_idlest(balanced):
    sender = Sends()
    stuck, idle = Receives(balanced), Receives(balanced, 100)
    for number in range(7):
        send(balanced, sender, number)
        idle.accept()
    assert idle.numbers == [1, 2, 3, 4, 5, 6]
    stuck.grant(100)
    assert stuck.numbers == [0], "it waited for this one alone"


def test_balanced_fills_all_alike(balanced):
    sender = Sends()
    receivers = [Receives(balanced), Receives(balanced, 100)]
    send(balanced, sender, *range(10))
    receivers[0].grant(100)
    assert [len(each.got) for each in receivers] == [5, 5]


def test_the_last_receiver_that_leaves_releases_what_waits(anycast):
    sender, receiver = Sends(), Receives(anycast, 1)
    for number in range(3):
        anycast.send(sender, number, b"x", settled=False)
    receiver.leave()
    assert sorted(sender.outcomes, key=lambda pair: pair[0]) == [
        (0, LOST),
        (1, RELEASED),
        (2, RELEASED),
    ]


def test_each_outcome_brings_credit_also_when_the_last_receiver_leaves(anycast):
    class Credited(Sends):
        def settle(self, token, result):
            super().settle(token, result)
            assert anycast.reachable

    sender, receiver = Credited(), Receives(anycast, 1)
    send(anycast, sender, 1, 2)
    receiver.leave()
    assert len(sender.outcomes) == 2 and not anycast.reachable


def test_a_receiver_that_leaves_another_behind(anycast):
    """What waited for it comes back; what waits for the other stays."""
    sender = Sends()
    one, other = Receives(anycast, 1), Receives(anycast)
    send(anycast, sender, 1, 2, 3)
    one.leave()
    assert sender.outcomes == [(1, LOST), (3, RELEASED)]
    other.grant(1)
    assert other.numbers == [2]


def test_what_a_sender_leaves_behind_arrives(anycast, multicast):
    for address in (anycast, multicast):
        sender = Sends()
        receiver = Receives(address)
        address.attach_sender(sender)
        send(address, sender, 1)
        address.detach_sender(sender)
        receiver.grant(5)
        assert receiver.numbers == [1]


def test_multicast_copies(multicast):
    sender = Sends()
    receivers = [Receives(multicast, 10) for _ in range(3)]
    multicast.send(sender, 1, b"x", settled=False)
    assert all(each.got == [(b"x", False)] for each in receivers)
    for each in receivers[:2]:
        each.transits[0].outcome(ACCEPTED)
    assert sender.outcomes == []
    receivers[2].transits[0].outcome(ACCEPTED)
    assert sender.outcomes == [(1, ACCEPTED)]


@pytest.mark.parametrize(
    ("outcomes", "heard"),
    [
        ((RELEASED, ACCEPTED, REJECTED), Result("rejected")),
        ((RELEASED, LOST, ACCEPTED), ACCEPTED),
        ((RELEASED, RELEASED, LOST), LOST),
        ((RELEASED, RELEASED, RELEASED), RELEASED),
        ((REJECTED,), Result("rejected")),
    ],
)
def test_one_outcome_for_all(multicast, outcomes, heard):
    sender = Sends()
    receivers = [Receives(multicast, 1) for _ in outcomes]
    multicast.send(sender, 1, b"x", settled=False)
    for receiver, outcome in zip(receivers, outcomes, strict=True):
        receiver.transits[0].outcome(outcome)
    assert sender.outcomes == [(1, heard)]


def test_multicast_waits_for_the_slow_one(multicast):
    sender = Sends()
    slow, fast = Receives(multicast), Receives(multicast, 10)
    for number in range(3):
        multicast.send(sender, number, bytes([number]), settled=False)
    for transit in fast.transits:
        transit.outcome(ACCEPTED)
    assert len(fast.got) == 3 and sender.outcomes == []
    slow.grant(2)
    assert [data for data, _ in slow.got] == [b"\x00", b"\x01"]
    for transit in slow.transits:
        transit.outcome(ACCEPTED)
    assert sender.outcomes == [(0, ACCEPTED), (1, ACCEPTED)]
    slow.transits.clear()
    slow.leave()
    assert sender.outcomes[2] == (2, ACCEPTED)


# -- the addresses of a router


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("broadcast.nova.compute.all", "multicast"),
        ("unicast.nova.compute", "closest"),
        ("exclusive.nova.compute.host", "closest"),
        ("openstack.org/om/rpc/multicast/nova/compute", "multicast"),
        ("openstack.org/om/notify/anycast/nova/notifications.info", "balanced"),
        ("openstack.org/om/rpc/unicast/broadcast/x", "closest"),
        ("anything", "balanced"),
        ("openstack.org/om/rpc", "balanced"),
    ],
)
def test_what_an_address_is(name, distribution):
    namespace = RouterNamespace("", Settings(), "R", Usage(1))
    assert namespace.resolve(name).distribution is Distribution[distribution.upper()]


def test_an_address_lives_while_somebody_is_attached():
    namespace = RouterNamespace("", Settings(), "R", Usage(1))
    sender = Sends()
    address = namespace.resolve("a")
    address.attach_sender(sender)
    receiver = Receives(address)
    assert namespace.resolve("a") is address is namespace.lookup("a")
    receiver.leave()
    namespace.release(address)
    assert namespace.lookup("a") is address
    address.detach_sender(sender)
    namespace.release(address)
    assert namespace.lookup("a") is None
    assert namespace.idle


def test_temporary_addresses_look_like_a_routers():
    namespace = RouterNamespace("", Settings(), "Router.1", Usage(1))
    one, other = namespace.make_dynamic(), namespace.make_dynamic()
    assert one.name.startswith("amqp:/_topo/0/Router.1/temp.")
    assert one.name != other.name


def test_addresses_are_limited_and_may_be_refused():
    settings = Settings(max_addresses=2, refused_prefixes=("secret",))
    namespace = RouterNamespace("", settings, "R", Usage(1))
    with pytest.raises(Refused) as refused:
        namespace.resolve("secret.place")
    assert refused.value.condition == "amqp:unauthorized-access"
    with pytest.raises(Refused):
        namespace.resolve("")
    namespace.resolve("1")
    namespace.resolve("2")
    with pytest.raises(Refused) as refused:
        namespace.resolve("3")
    assert refused.value.condition == "amqp:resource-limit-exceeded"
    with pytest.raises(Refused):
        namespace.make_dynamic()
