# SPDX-License-Identifier: Apache-2.0
"""Two engines on a wire: connections, links, messages, outcomes, credit, time."""

from __future__ import annotations

import gc
import weakref

import cproton
import proton
import pytest

from greenamqp.engine import (
    ACCEPTED,
    MODIFIED,
    REJECTED,
    RELEASED,
    Connection,
    LinkLimitError,
    LinkState,
    LocalProtocolError,
    Message,
    Receiver,
    RemoteError,
    SettleMode,
    Terminus,
    capi,
)
from greenamqp.engine import connection as connection_module
from greenamqp.engine.connection import MAX_FRAME_SIZE
from tests.unit.wire import RawPeer, Recorder, Wire, accepted, joined

#: A message whose body is null.
EMPTY = b"\x00\x53\x77\x40"


class Receiving:
    """The server's side of a link that receives: keeps messages, settles by order."""

    def __init__(self, outcome=None, credit=1000):
        self.outcome = outcome or (lambda link, delivery: link.settle(delivery))
        self.credit = credit
        self.messages = []

    def __call__(self, link):
        link.accept()
        if link.is_sender:
            return
        link.on_message = self._message
        link.flow(self.credit)

    def _message(self, link, delivery, data):
        self.messages.append(bytes(data))
        self.outcome(link, delivery)


def sender_to(server_side, **options):
    """(client, its attached sender, the list of its outcomes, the wire)."""
    client, server, wire = joined(None, Recorder(server_side), **options)
    outcomes = []
    sender = client.create_sender(Terminus("address"))
    sender.on_settled = lambda link, handle, outcome, error: outcomes.append(
        (handle, outcome, error)
    )
    wire.run()
    return client, sender, outcomes, wire


def link_and_peer(kind="sender", **options):
    """(a link of that kind, the other end of it, the wire)."""
    client, server, wire = joined()
    link = getattr(client, f"create_{kind}")(Terminus("a"), **options)
    wire.run()
    return link, server.handler.links[0], wire


def send(sender, count, wire):
    """So many messages, each by its number."""
    for number in range(count):
        sender.send(EMPTY, number)
    wire.run()


def unsettled(count):
    """So many messages that their receiver has and does not settle.

    (their sender, the list of their outcomes, the wire, of each its link and delivery)
    """
    held = []
    receiving = Receiving(lambda link, delivery: held.append((link, delivery)))
    _, sender, outcomes, wire = sender_to(receiving)
    send(sender, count, wire)
    return sender, outcomes, wire, held


# -- the connection


def test_both_ends_hear_that_it_is_open_and_who_the_peer_is():
    ours, theirs = Recorder(), Recorder()
    client, server, _ = joined(
        ours,
        theirs,
        {"properties": {"product": "one"}, "hostname": "virtual.host"},
        {"properties": {"product": "other"}, "offered_capabilities": ("ANY",)},
    )
    assert ours.events == theirs.events == [("opened",)]
    assert client.remote_properties == {"product": "other"}
    assert server.remote_properties == {"product": "one"}
    assert client.remote_container == "server"
    assert server.remote_container == "client"
    assert server.remote_hostname == "virtual.host"
    assert client.remote_offered_capabilities == ("ANY",)
    assert server.remote_offered_capabilities == ()


@pytest.mark.parametrize("closer", [0, 1])
def test_closing_in_order(closer):
    handlers = Recorder(), Recorder()
    *ends, wire = joined(*handlers)
    ends[closer].close("amqp:connection:forced", "enough")
    wire.run()
    assert all(end.closed and end.finished for end in ends)
    kind, error = handlers[1 - closer].events[-1]
    assert kind == "closed"
    assert (error.condition, error.description) == ("amqp:connection:forced", "enough")
    assert handlers[closer].events == [("opened",)]


def test_closing_twice_says_it_once():
    client, server, wire = joined()
    client.close()
    client.close("amqp:internal-error", "not this one")
    wire.run()
    assert server.handler.events[-1] == ("closed", None)


def test_links_are_detached_before_the_handler_hears_of_the_end():
    order = []
    handler = Recorder()
    handler.connection_closed = lambda connection, error: order.append("closed")
    client, server, wire = joined(handler, None)
    sender = client.create_sender(Terminus("a"))
    sender.on_detached = lambda link, error: order.append("link")
    wire.run()
    server.close("amqp:connection:forced")
    wire.run()
    assert order == ["link", "closed"]
    assert sender.state is LinkState.DETACHED


def test_the_end_of_the_stream_is_a_failure():
    handler = Recorder()
    client, _, _ = joined(handler)
    receiver = client.create_receiver(Terminus("a"))
    receiver.on_detached = lambda link, error: handler.events.append(("link",))
    client.receive_eof()
    client.process(1.0)
    assert [event[0] for event in handler.events] == ["opened", "link", "failed"]
    client.process(1.0)
    assert len(handler.events) == 3


def test_an_abort_gives_the_reason_once():
    handler = Recorder()
    client, _, _ = joined(handler)
    client.abort("the cable was cut")
    client.process(1.0)
    client.abort("again")
    client.process(1.0)
    assert handler.events[1:] == [("failed", "the cable was cut")]


def test_links_cannot_be_made_once_it_is_closing():
    client, _, _ = joined()
    client.close()
    with pytest.raises(LocalProtocolError):
        client.create_sender(Terminus("a"))


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"AMQP\x00\x00\x09\x01",
        b"AMQP\x00\x01\x00\x00" + b"\xff" * 64,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"AMQP\x00\x01\x00\x00\x00\x00\x00\x07\x02\x00\x00\x00" + bytes(16),
    ],
    ids=["http", "amqp-0-9-1", "noise", "tls", "short-frame"],
)
def test_a_peer_that_does_not_speak_amqp(garbage):
    from tests.unit.wire import feed, output

    handler = Recorder()
    client = connection_module.Connection("client", handler)
    client.open()
    client.process(1.0)
    output(client)
    feed(client, garbage)
    client.process(1.0)
    assert [event[0] for event in handler.events] == ["failed"]
    assert "amqp:connection:framing-error" in handler.events[0][1]


def test_a_callback_that_raises_does_not_stop_the_rest(caplog):
    def broken(link):
        link.accept()
        if link.name == "one":
            raise RuntimeError("a bug of the owner")

    client, _, wire = joined(None, Recorder(broken))
    first = client.create_sender(Terminus("a"), name="one")
    second = client.create_sender(Terminus("a"), name="two")
    wire.run()
    assert first.state is second.state is LinkState.ATTACHED
    assert "a bug of the owner" in caplog.text


# -- time


def test_no_deadline_without_an_idle_timeout():
    client, server, _ = joined()
    assert client.deadline in (None, float("inf"))
    assert server.deadline in (None, float("inf"))


def test_heartbeats_keep_a_silent_connection():
    client, server, wire = joined(None, None, {"idle_timeout": 10}, {"idle_timeout": 4})
    assert client.remote_idle_timeout == pytest.approx(2)  # half, as proton asks
    while wire.now < 100:
        deadlines = client.deadline, server.deadline
        assert all(wire.now < instant <= wire.now + 10 for instant in deadlines)
        wire.now = min(deadlines)
        wire.run()
    assert not client.failed and not server.failed


def test_silence_is_found_out():
    client, server, wire = joined(None, None, {"idle_timeout": 4})
    last_heard = wire.now
    while client.failed is None and wire.now < 100:
        wire.now = client.deadline
        client.process(wire.now)
    assert client.failed is not None
    assert "silent for longer than the idle time-out" in str(client.failed)
    assert wire.now - last_heard <= 8


# -- links


def test_links_share_sessions(monkeypatch):
    monkeypatch.setattr(connection_module, "LINKS_PER_SESSION", 3)
    server_side = Recorder()
    client, server, wire = joined(None, server_side)
    links = [client.create_sender(Terminus(str(number))) for number in range(7)]
    wire.run()
    assert all(link.state is LinkState.ATTACHED for link in links)
    assert client.session_count == 3


def test_the_peers_limit_of_sessions_is_known():
    client, _, wire = joined(None, None, {"links_per_session": 2}, {"channel_max": 1})
    assert client.max_sessions == 2
    links = [client.create_sender(Terminus(str(number))) for number in range(4)]
    wire.run()
    with pytest.raises(LinkLimitError, match="2 sessions of 2 links"):
        client.create_sender(Terminus("one too many"))
    wire.run()
    assert client.failed is None
    links[1].close()
    wire.run()
    link = client.create_sender(Terminus("in its place"))
    wire.run()
    assert link.state is LinkState.ATTACHED


def test_our_own_limit_of_sessions_counts_too():
    client, _, wire = joined(
        None, None, {"links_per_session": 1, "channel_max": 2}, {"channel_max": 9}
    )
    assert client.max_sessions == 3
    for number in range(3):
        client.create_sender(Terminus(str(number)))
    with pytest.raises(LinkLimitError):
        client.create_sender(Terminus("one too many"))
    wire.run()
    assert client.failed is None


@pytest.mark.parametrize(("kept", "links"), [(0, 40), (3, 10), (4, 10), (9, 10)])
def test_room_for_links(kept, links):
    client, _, _ = joined(None, None, {"links_per_session": 10}, {"channel_max": 3})
    assert client.room_for_links(kept) == links


def test_a_session_of_ones_own_is_used_again():
    """Refused links leave no sessions behind, and a link that was not may have
    company."""
    client, _, wire = joined(None, Recorder(lambda link: link.reject("a", "b")))
    for _ in range(100):
        client.create_receiver(Terminus("refused"), own_session=True)
        wire.run()
    assert client.session_count == 1
    other, _, wire = joined()
    first = other.create_receiver(Terminus("first"), own_session=True)
    other.create_receiver(Terminus("second"))
    assert other.session_count == 2
    first.share_session()
    other.create_receiver(Terminus("third"), own_session=True)
    assert other.session_count == 3
    wire.run()
    assert other.failed is None


def test_a_session_of_ones_own_is_shared_where_there_is_no_other():
    client, _, wire = joined(None, None, None, {"channel_max": 0})
    links = [
        client.create_receiver(Terminus("one")),
        client.create_receiver(Terminus("two"), own_session=True),
    ]
    wire.run()
    assert [link.state for link in links] == [LinkState.ATTACHED] * 2
    assert client.session_count == 1


def limited(links: int, **options) -> tuple[Connection, Wire]:
    """A client of a peer that takes so many links in a session, and says so."""

    class Limited(Connection):
        def data_to_send(self, buffer, size):
            size = super().data_to_send(buffer, size)
            data = capi.ffi.buffer(buffer, size)
            begin = bytes(data).find(b"\x00\x53\x11\xc0")
            if begin >= 0:
                # The last of proton's five fields, a uint of four bytes.
                end = begin + 5 + data[begin + 4][0]
                data[end - 4 : end] = (links - 1).to_bytes(4, "big")
            return size

    client = Connection("client", Recorder(), **options)
    server = Limited("server", Recorder(), server=True)
    client.open()
    server.open()
    wire = Wire(client, server)
    wire.run()
    return client, wire


def test_the_peers_limit_of_links_in_a_session_is_known():
    client, wire = limited(3)
    client.create_sender(Terminus("first"))
    wire.run()
    assert client.links_per_session == 3
    links = [client.create_sender(Terminus(str(number))) for number in range(8)]
    wire.run()
    assert [link.state for link in links] == [LinkState.ATTACHED] * 8
    assert client.session_count == 3
    assert client.failed is None


def test_links_that_went_out_before_the_limit_was_known():
    client, wire = limited(3)
    for number in range(4):
        client.create_sender(Terminus(str(number)))
    wire.run()
    assert "takes 3 links in a session; 4 were attached" in str(client.failed)
    # The next connection is told.
    client, wire = limited(3, links_per_session=client.links_per_session)
    links = [client.create_sender(Terminus(str(number))) for number in range(4)]
    wire.run()
    assert [link.state for link in links] == [LinkState.ATTACHED] * 4


def test_no_link_beside_others_that_fill_the_session():
    client, _wire = limited(1, links_per_session=1)
    link = client.create_sender(Terminus("pair"), own_session=True)
    with pytest.raises(LinkLimitError, match="1 links in a session"):
        client.create_receiver(Terminus("pair"), beside=link)


def test_termini_cross_unharmed():
    seen = []

    def look(link):
        seen.append((link.remote_source, link.remote_target))
        link.accept()

    client, _, wire = joined(None, Recorder(look))
    source = Terminus(
        "söurce",
        capabilities=("queue", "shared"),
        durability=2,
        expiry_policy=3,
        timeout=17,
        distribution_mode=1,
        node_properties={"x-expires": 1000},
    )
    client.create_receiver(source, Terminus("here"))
    client.create_sender(Terminus(None))
    client.create_receiver(Terminus(dynamic=True))
    wire.run()
    assert seen[0][0] == source
    assert seen[0][1].address == "here"
    assert seen[1][1].address is None and not seen[1][1].dynamic
    assert seen[2][0].dynamic and seen[2][0].address is None


def test_a_dynamic_source_gets_its_address():
    client, _, wire = joined(
        None, Recorder(lambda link: link.accept(Terminus("made.for.you", dynamic=True)))
    )
    receiver = client.create_receiver(Terminus(dynamic=True))
    wire.run()
    assert receiver.remote_source.address == "made.for.you"
    assert receiver.remote_source.dynamic


@pytest.mark.parametrize("kind", ["create_sender", "create_receiver"])
def test_a_refused_link(kind):
    server = Recorder(lambda link: link.reject("amqp:not-found", "no such node"))
    client, engine, wire = joined(None, server)
    heard = []
    for _ in range(3):  # the name is free again each time
        link = getattr(client, kind)(Terminus("a"), name="same")
        link.on_attached = lambda link: heard.append("attached")
        link.on_detached = lambda link, error: heard.append(error)
        wire.run()
    assert [str(error) for error in heard] == ["amqp:not-found: no such node"] * 3
    assert client.failed is None and engine.failed is None
    assert not engine._links and not engine.lifecycle._receiver_links
    assert not engine._links and not engine.lifecycle._sender_links


@pytest.mark.parametrize("reason", [None, "no such node"])
@pytest.mark.parametrize("kind", ["create_sender", "create_receiver"])
def test_a_link_that_is_refused_by_half(kind, reason):
    """The peer does not detach it as it has to, but answers a detach."""

    def refuse(link):
        half = link._proton
        for terminus in (half.source, half.target):
            terminus.type = proton.Terminus.UNSPECIFIED
        half.open()
        if reason is not None:
            half.condition = proton.Condition("amqp:not-found", reason)

    client, engine, wire = joined(None, Recorder(refuse))
    heard = []
    link = getattr(client, kind)(Terminus("a"))
    link.on_attached = lambda link: heard.append("attached")
    link.on_detached = lambda link, error: heard.append(error and str(error))
    wire.run()
    assert heard == [reason and f"amqp:not-found: {reason}"]
    assert link.state is LinkState.DETACHED
    assert not client._links and client.failed is None and engine.failed is None


@pytest.mark.parametrize("closer", ["client", "server"])
def test_detaching(closer):
    link, peer, wire = link_and_peer()
    client, server = link.connection, peer.connection
    heard = []
    link.on_detached = peer.on_detached = lambda link, error: heard.append(
        (link, str(error))
    )
    (link if closer == "client" else peer).close("amqp:resource-deleted", "gone")
    wire.run()
    told = peer if closer == "client" else link
    assert heard == [(told, "amqp:resource-deleted: gone")]
    assert link.state is peer.state is LinkState.DETACHED
    assert not client._links and not server._links
    assert not client.lifecycle._sender_links and not server.lifecycle._receiver_links


@pytest.mark.parametrize("kind", ["sender", "receiver"])
def test_who_closes_hears_when_the_peer_has_closed_too(kind):
    link, _, wire = link_and_peer(kind)
    heard = []
    link.on_closed = heard.append
    link.close()
    link.connection.process(wire.now)
    assert heard == [], "the peer knows nothing of it yet"
    wire.run()
    assert heard == [link]


def test_links_that_come_and_go_leave_nothing():
    server_side = Recorder()
    client, server, wire = joined(None, server_side)
    for _ in range(100):
        link = client.create_receiver(Terminus("a"))
        wire.run()
        link.close()
        wire.run()
    assert client.session_count == 1
    for end in (client, server):
        assert not end._links and not end._doomed
        assert not end.lifecycle._sender_links and not end.lifecycle._receiver_links


def test_accept_and_reject_are_for_links_that_were_asked_for():
    client, _, wire = joined()
    link = client.create_sender(Terminus("a"))
    with pytest.raises(LocalProtocolError):
        link.accept()
    with pytest.raises(LocalProtocolError):
        link.reject("amqp:not-found")


def test_a_link_may_be_accepted_later():
    server_side = Recorder(lambda link: None)
    client, _, wire = joined(None, server_side)
    link = client.create_sender(Terminus("a"))
    wire.run()
    assert link.state is LinkState.ATTACHING
    server_side.links[0].accept()
    wire.run()
    assert link.state is LinkState.ATTACHED


def test_settle_modes_are_the_peers():
    link, peer, _ = link_and_peer("receiver", settle_mode=SettleMode.SETTLED)
    assert peer.remote_settle_mode is SettleMode.SETTLED
    assert link.remote_settle_mode is SettleMode.SETTLED


# -- messages and outcomes


def test_messages_arrive_in_order_and_their_outcomes_too():
    receiving = Receiving()
    client, sender, outcomes, wire = sender_to(receiving)
    messages = [client.codec.encode(Message(str(number))) for number in range(100)]
    for number, data in enumerate(messages):
        sender.send(data, number)
    assert sender.unsettled == 100
    wire.run()
    assert receiving.messages == messages
    assert outcomes == [(number, ACCEPTED, None) for number in range(100)]
    assert sender.unsettled == 0


def test_each_delivery_of_a_link_has_a_tag_of_its_own():
    """The memory of a tag is used again for the next one before the first is written
    (AMQP 1.0 part 2, section 2.6.12)."""
    tags = []

    def outcome(link, delivery):
        tag = capi.lib.pn_delivery_tag(delivery)
        tags.append(bytes(capi.ffi.buffer(tag.start, tag.size)))
        link.settle(delivery)

    client, sender, outcomes, wire = sender_to(Receiving(outcome))
    send(sender, 300, wire)
    assert len(set(tags)) == len(tags) == len(outcomes) == 300


def test_a_description_is_no_longer_than_a_frame_of_any_peer():
    """It may quote a message, and only messages go into several frames."""
    description = "é\ud800" * 100_000

    def reject(link, delivery):
        link.settle(delivery, REJECTED, condition="c:d", description=description)

    client, sender, outcomes, wire = sender_to(
        Receiving(reject), client_options={"max_frame_size": 512}
    )
    sender.send(EMPTY, 1)
    wire.run()
    ((handle, outcome, error),) = outcomes
    assert (handle, outcome) == (1, REJECTED)
    assert str(error).startswith("c:d: é?é?") and len(error.description) > 100
    assert not client.ended


@pytest.mark.parametrize("kind", ["sender", "receiver"])
@pytest.mark.parametrize(
    "name, reason",
    [("x" * 9000, "do not go into a frame of 20000 bytes"), ("\ud800", "surrogate")],
)
def test_names_that_the_peer_cannot_be_told(kind, name, reason):
    """Nothing is sent, and no link is used up."""
    client, server, wire = joined(server_options={"max_frame_size": 20_000})
    create = {"sender": client.create_sender, "receiver": client.create_receiver}[kind]
    for address in ("a", "x" * 6000):
        create(Terminus(address), Terminus(address), name=f"the link to {address}")
    wire.run()
    for _ in range(300):
        with pytest.raises(ValueError, match=reason):
            create(Terminus(name), Terminus(name), name=f"the link to {name}")
    wire.run()
    assert client.session_count == 1
    assert not client.ended and not server.ended


def test_outcomes_that_are_ready_together_are_one_frame():
    """A disposition names a range (AMQP 1.0 part 2, section 2.7.6)."""
    client, sender, outcomes, wire = sender_to(Receiving())
    wire.log[1].clear()
    send(sender, 100, wire)
    assert outcomes == [(number, ACCEPTED, None) for number in range(100)]
    assert b"".join(wire.log[1]).count(b"\x00\x53\x15") == 1


def test_all_outcomes():
    answers = iter(
        [
            {"outcome": ACCEPTED},
            {"outcome": RELEASED},
            {
                "outcome": REJECTED,
                "condition": "amqp:decode-error",
                "description": "what is this",
            },
            {"outcome": REJECTED},
            {"outcome": MODIFIED, "failed": True},
            {"outcome": MODIFIED, "undeliverable": True},
        ]
    )
    receiving = Receiving(lambda link, delivery: link.settle(delivery, **next(answers)))
    client, sender, outcomes, wire = sender_to(receiving)
    send(sender, 6, wire)
    # Those with details may overtake those without, which go out in ranges.
    found = {handle: (outcome, error) for handle, outcome, error in outcomes}
    assert found[0] == (ACCEPTED, None)
    assert found[1] == (RELEASED, None)
    assert found[2][0] == REJECTED
    assert isinstance(found[2][1], RemoteError)
    assert str(found[2][1]) == "amqp:decode-error: what is this"
    assert found[3] == (REJECTED, None)
    assert found[4] == (MODIFIED, {"failed": True, "undeliverable": False})
    assert found[5] == (MODIFIED, {"failed": False, "undeliverable": True})
    assert len(outcomes) == 6


@pytest.mark.parametrize("state", [capi.lib.PN_RECEIVED, 0x33, 0x34])
def test_a_state_that_is_no_outcome(state):
    """Received, or one of a transaction's: the outcome comes later, if it does."""
    sender, outcomes, wire, held = unsettled(2)
    for _, delivery in held:
        capi.pn_delivery_update(delivery, state)
    wire.run()
    assert outcomes == []
    (first, delivery), (_, other) = held
    first.settle(delivery, RELEASED)
    capi.pn_delivery_settle(other)
    wire.run()
    assert sorted(outcomes) == [(0, RELEASED, None), (1, 0, None)]
    assert sender.unsettled == 0


def test_outcomes_may_come_late_and_in_any_order():
    sender, outcomes, wire, held = unsettled(10)
    assert outcomes == []
    for link, delivery in held[::2] + held[::-2]:
        link.settle(delivery)
    wire.run()
    assert sorted(handle for handle, _, _ in outcomes) == list(range(10))


def test_a_settled_message_has_no_outcome():
    presettled = []
    receiving = Receiving(
        lambda link, delivery: presettled.append(link.presettled(delivery))
    )
    client, sender, outcomes, wire = sender_to(receiving)
    sender.send(EMPTY, "handle", settled=True)
    sender.send(EMPTY, "other")
    wire.run()
    assert presettled == [True, False]
    assert outcomes == [] and sender.unsettled == 1


def test_abandoned_messages_are_told_of_no_more():
    sender, outcomes, wire, held = unsettled(3)
    assert sender.abandon() == [0, 1, 2]
    for link, delivery in held:
        link.settle(delivery)
    wire.run()
    assert outcomes == []


def with_a_window_of_one_frame(link):
    """Take a link whose session has room for one frame."""
    session = capi.lib.pn_link_session(link._pn)
    capi.lib.pn_session_set_incoming_capacity(session, MAX_FRAME_SIZE)
    link.accept()
    link.flow(1000)


def test_a_sender_that_is_alone_knows_that_the_peer_takes_nothing(monkeypatch):
    """The peer's window is closed: what it has not read fills it."""
    client, server, wire = joined(None, Recorder(with_a_window_of_one_frame))
    alone = client.create_sender(Terminus("alone"), own_session=True)
    other = client.create_sender(Terminus("other"))
    wire.run()
    monkeypatch.setattr(Receiver, "_delivery_updated", lambda link, delivery: None)
    for sender in (alone, other):
        sender.send(EMPTY, "taken")
        wire.run()
        assert not sender.held_back
        sender.send(EMPTY, "stays here")
        wire.run()
    assert alone.held_back
    # Others may have sent what fills this one's window.
    assert not other.held_back


def test_what_the_peer_has_not_taken_is_recalled(monkeypatch):
    client, server, wire = joined(None, Recorder(with_a_window_of_one_frame))
    sender = client.create_sender(Terminus("address"))
    wire.run()
    taken, late = [], []
    updated = Receiver._delivery_updated
    monkeypatch.setattr(Receiver, "_delivery_updated", lambda *args: late.append(args))
    for number in range(4):
        sender.send(b"\x00\x53\x77\x54" + bytes([number]), number)
        wire.run()
    assert len(late) == 1  # the peer's window holds no more
    client.leave_session(sender, "because")
    # Of one that has left it is of no use, and does no harm.
    sender.recall({0, 1, 3})
    sender.abandon()
    monkeypatch.undo()

    def take(link, delivery, data):
        taken.append(bytes(data)[-1])
        link.settle(delivery)

    late[0][0].on_message = take
    updated(*late[0])
    wire.run()
    assert taken == [0, 2]


@pytest.mark.parametrize("ended", ["session", "link"])
def test_what_the_peer_ended_itself_is_not_recalled(ended):
    """proton would tell of it by an event of the link, which is freed by then: the
    process crashes, or does not yet."""

    client, server, wire = joined(None, Recorder(with_a_window_of_one_frame))
    sender = client.create_sender(Terminus("address"))
    wire.run()
    receiver = server.handler.links[0]
    aborted = []

    def detached(link, error):
        deliveries = list(link._unsettled)
        link.recall(set(link.handles))
        aborted.extend(map(capi.lib.pn_delivery_aborted, deliveries))
        link.abandon()

    sender.on_detached = detached
    for number in range(3):
        sender.send(bytes(MAX_FRAME_SIZE * 3), number)
    wire.run()
    if ended == "session":
        capi.lib.pn_session_close(capi.lib.pn_link_session(receiver._pn))
    else:
        receiver.close()
    wire.run()
    assert aborted == [False, False, False]


def test_whether_the_peer_answers_at_all():
    client, server, wire = joined(None, None, {}, {"channel_max": 2})
    asked = []
    client.create_sender(Terminus("address"))
    wire.run()
    for count in range(1, 4):
        assert client.probe(lambda: asked.append(True))
        if count > 1:
            assert not client.probe(lambda: None), "the peer allows three sessions"
        assert len(asked) == count - 1
        wire.run()
        assert len(asked) == count
        assert client.session_count == 2


def test_the_session_by_which_it_was_asked_is_that_of_the_next_link():
    """It is not ended: RabbitMQ loses a Begin that comes on the channel of a session
    before it has answered its End, and proton begins the next one there."""
    client, server, wire = joined(None, Recorder(lambda link: link.accept()))
    client.create_sender(Terminus("one"))
    wire.run()
    ends = []
    client.probe(lambda: ends.append(client.session_count))
    wire.run()
    alive = list(client.sessions_alive)
    other = client.create_sender(Terminus("other"), own_session=True)
    wire.run()
    assert other.state is LinkState.ATTACHED and other.alone
    assert list(client.sessions_alive) == alive
    # One that is in use stays, whatever is asked later.
    client.probe(lambda: ends.append(client.session_count))
    wire.run()
    assert other.state is LinkState.ATTACHED
    assert ends == [2, 3] and client.session_count == 3


def test_a_session_that_was_left_is_ended_and_not_used_again():
    client, server, wire = joined(None, Recorder(lambda link: link.accept()))
    one, other = (client.create_sender(Terminus(name)) for name in ("one", "other"))
    wire.run()
    told = []
    for link in (one, other):
        link.on_detached = lambda link, error: told.append((link, str(error)))
    client.leave_session(one, "because")
    assert set(told) == {(one, "because"), (other, "because")}
    again = client.create_sender(Terminus("one"))
    wire.run()
    assert again.state is LinkState.ATTACHED
    assert client.session_count == 1


def test_a_message_that_nobody_takes_is_released():
    client, sender, outcomes, wire = sender_to(
        lambda link: (link.accept(), link.flow(1))
    )
    sender.send(EMPTY, "h")
    wire.run()
    assert outcomes == [("h", RELEASED, None)]


def test_settling_on_a_link_that_is_gone():
    sender, _, wire, held = unsettled(1)
    sender.close()
    wire.run()
    link, delivery = held[0]
    assert link.settle(delivery) is False


@pytest.mark.parametrize("size", [1, 400, 70_000, 1_000_000])
@pytest.mark.parametrize("piece", [7919, 64 * 1024])
@pytest.mark.parametrize("frame", [512, 64 * 1024])
def test_messages_in_many_frames_and_pieces(size, piece, frame):
    receiving = Receiving()
    client, sender, outcomes, wire = sender_to(
        receiving, server_options={"max_frame_size": frame}
    )
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    sender.send(data, "large")
    sender.send(b"small", "small")
    wire.run(piece)
    assert receiving.messages == [data, b"small"]
    assert [handle for handle, _, _ in outcomes] == ["large", "small"]


def test_large_messages_of_several_links_interleave():
    receiving = Receiving()
    client, server, wire = joined(
        None, Recorder(receiving), None, {"max_frame_size": 1024}
    )
    links = [client.create_sender(Terminus(str(number))) for number in range(5)]
    wire.run()
    for number, link in enumerate(links):
        link.send(bytes([number]) * 100_000, None)
    wire.run(4096)
    assert sorted(receiving.messages) == [
        bytes([number]) * 100_000 for number in range(5)
    ]
    assert not server.unfinished


# -- credit


def test_nothing_is_sent_without_credit():
    client, sender, outcomes, wire = sender_to(Receiving(credit=2))
    sender.send(EMPTY, 1)
    sender.send(EMPTY, 2)
    with pytest.raises(LocalProtocolError, match="no credit"):
        sender.send(EMPTY, 3)


def test_credit_is_told_of():
    client, server, wire = joined()
    sender = client.create_sender(Terminus("a"))
    credits = []
    sender.on_credit = lambda link: credits.append(link.credit)
    wire.run()
    assert credits == []
    (peer,) = server.handler.links
    peer.flow(3)
    wire.run()
    assert credits[-1] == 3
    peer.flow(2)
    wire.run()
    assert credits[-1] == 5


def test_credit_on_a_closed_link_does_nothing():
    _, link, wire = link_and_peer()
    link.close()
    link.flow(10)
    assert link.credit == 0 or link.state is LinkState.DETACHED
    wire.run()


def test_drain_gives_credit_back():
    server = accepted(Recorder())
    raw = RawPeer(server)
    raw.run()
    receiver = raw.receiver("a")
    receiver.drain(10)
    raw.run()
    assert receiver.credit == 0
    # And where the owner wants to use it first:
    link = server.handler.links[0]

    def use_one(link):
        if link.credit == 10:
            link.send(EMPTY, None)
        link.drained()

    link.on_drain = use_one
    receiver.drain(10)
    raw.run()
    assert receiver.queued == 1
    assert receiver.credit == receiver.queued


def test_a_receiver_takes_its_credit_back():
    sender, link, wire = link_and_peer()
    given_back = []
    link.on_drained = lambda link, credit: given_back.append(credit)
    link.flow(10)
    wire.run()
    sender.send(EMPTY, None)
    link.drain()
    wire.run()
    assert (sender.credit, link.credit, given_back) == (0, 0, [9])
    link.flow(5)
    wire.run()
    assert sender.credit == 5, "it is drained no more"
    wire.run()
    assert given_back == [9]


def test_draining_a_link_that_is_gone_does_nothing():
    _, link, wire = link_and_peer()
    link.close()
    link.drain()
    wire.run()


# -- letting go


def test_destroying_is_possible_at_any_time():
    for stage in range(4):
        client, server, wire = joined()
        if stage > 0:
            sender = client.create_sender(Terminus("a"))
        if stage > 1:
            wire.run()
        if stage > 2:
            sender.close()
        client.destroy()
        server.destroy()
        if stage > 0:
            assert sender.state is LinkState.DETACHED
            assert sender.credit == 0


@pytest.mark.parametrize("end", ["whole", "detached", "session", "closed", "failed"])
def test_a_connection_that_was_destroyed_is_freed(end):
    """proton's objects and ours hold each other: not one may be left out."""
    gc.collect()
    before = cproton.retained_count()
    client, server, wire = joined(None, Recorder(Receiving()))
    sender = client.create_sender(Terminus("a"))
    client.create_receiver(Terminus("b"), own_session=True)
    wire.run()
    sender.send(client.codec.encode(Message("{}")), None)
    wire.run()
    if end == "detached":
        sender.close()
    elif end == "session":
        sender._endpoint._pn_link.session.close()
    elif end == "closed":
        client.close()
    elif end == "failed":
        client.abort("for a reason")
        client.process(1.0)
    if end != "failed":
        wire.run()
    alive = weakref.ref(client), weakref.ref(server)
    client.destroy()
    server.destroy()
    del client, server, wire, sender
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
    # Less where what other tests left behind went meanwhile.
    assert cproton.retained_count() <= before


def test_the_wire_itself_loses_nothing():
    client, server, _ = joined()
    wire = Wire(client, server)
    client.create_sender(Terminus("a"))
    before = wire.step()
    assert before > 0 and wire.log[0]
