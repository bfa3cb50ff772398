# SPDX-License-Identifier: Apache-2.0
"""Peers that mean harm, towards the driver: it stays within bounds and says why it
left.  (The fuzzer's corpus has the many ways of noise; here is what takes patience.)"""

import pytest

from greenamqp.connection import life
from greenamqp.connection.state import State
from greenamqp.engine import Message
from tests.fuzz import wire
from tests.unit import fakes


def begin(channel: int) -> bytes:
    window = ["uint", 1000]
    fields = ["list", None, ["uint", 0], window, window, ["uint", 2**31 - 1]]
    return wire.frame(wire.described(0x11, fields), channel)


def end(channel: int) -> bytes:
    return wire.frame(wire.described(0x17, ["list"]), channel)


def attach(channel: int, handle: int, receiver: bool) -> bytes:
    terminus = ["desc", ["ulong", 0x28], ["list", "a"]]
    target = ["desc", ["ulong", 0x29], ["list", "a"]]
    fields = [f"l{handle}", ["uint", handle], receiver, None, None, terminus, target]
    if not receiver:
        fields += [None, None, ["uint", 0]]
    return wire.frame(wire.described(0x12, ["list", *fields]), channel)


def say(s: fakes.Setting, data: bytes) -> None:
    """The peer says this, out of its own engine's sight, which would not stand by."""
    s.peer.silent = True
    s.peer.stream.inbound += data
    s.world.settle()


@pytest.mark.parametrize("receiver", [False, True])
def test_links_without_end(receiver):
    with fakes.setting() as s:
        s.up()
        say(s, begin(500))
        for handle in range(life.MAX_REFUSED_LINKS):
            say(s, attach(500, handle, receiver))
        assert s.client.connection.state is State.UP
        say(s, attach(500, 100_000, receiver))
        assert s.client.connection.state is State.WAITING
        assert "attaches links to us" in s.client.connection.last_failure


def test_a_new_connection_counts_anew():
    with fakes.setting() as s:
        s.up()
        for _ in range(3):
            say(s, begin(500))
            for handle in range(life.MAX_REFUSED_LINKS // 2):
                say(s, attach(500, handle, False))
            assert s.client.connection.state is State.UP
            s.lose()


def test_sessions_without_end():
    with fakes.setting() as s:
        s.up()
        for channel in range(1, life.CHANNEL_MAX + 1):
            say(s, begin(channel))
        assert s.client.connection.state is State.UP
        say(s, begin(life.CHANNEL_MAX + 1))
        assert s.client.connection.state is State.WAITING


def test_sessions_that_come_and_go_leave_nothing():
    with fakes.setting() as s:
        s.up()
        say(s, (begin(9) + end(9)) * 5000)
        assert s.client.connection.state is State.UP
        assert len(s.client.connection.engine._sessions) <= 1
        assert not s.client.connection.engine.sessions_over


def test_heartbeats_in_place_of_an_open_frame(monkeypatch):
    """They keep nobody from finding out that the connection never comes up."""
    monkeypatch.setattr(fakes.AcceptedConnection, "open", lambda _self: None)
    with fakes.setting() as s:
        s.notify(timeout=120)
        s.world.settle()
        assert s.client.connection.state is State.OPENING
        for _ in range(40):
            s.network.peers[0].stream.inbound += wire.frame(b"") * 1000
            s.world.advance(1)
        assert len(s.network.peers) > 1
        assert "no answer to the Open frame" in s.client.connection.last_failure


@pytest.mark.parametrize("address", [b"\xff\xfe", b"reply\xc3\x28", b"\x00"])
def test_a_reply_address_that_is_no_text(address):
    """The peer names the node that replies are to be sent to."""
    with fakes.setting() as s:
        s.up()
        s.peer.answer = False
        call = s.call(timeout=30)
        s.world.settle()
        patch(s, b"reply-", address)
        s.peer.answer_links()
        s.world.advance(40)
        assert call.done


def patch(s: fakes.Setting, old: bytes, new: bytes) -> None:
    """Replace the start of a name in what the peer sends from now on; the length
    stays as it is, so that the frame is whole."""
    stream, recv = s.peer.stream, s.peer.stream.recv_into
    new = new.ljust(len(old), b"x")

    def recv_into(buffer):
        stream.inbound[:] = stream.inbound.replace(old, new)
        return recv(buffer)

    stream.recv_into = recv_into


def test_replies_to_nobody_are_only_dropped(caplog):
    """A flood of replies that nobody asked for costs their credit and no memory."""
    with fakes.setting() as s:
        call = s.call(timeout=60)
        s.world.settle()
        (request,) = s.peer.received
        link = s.peer.outbound[request.message.reply_to]
        for number in range(2000):
            assert link.credit > 0
            s.peer.send(
                request.message.reply_to, Message("{}", correlation_id=str(number))
            )
            s.world.settle()
        assert len(s.client.replies.waiting) == 1
        s.peer.reply(request, '{"response": 1}')
        s.world.settle()
        assert call.result() == '{"response": 1}'


def test_the_same_reply_again_is_dropped():
    with fakes.setting() as s:
        call = s.call(timeout=60)
        s.world.settle()
        (request,) = s.peer.received
        s.peer.reply(request, '{"response": "first"}')
        s.peer.reply(request, '{"response": "second"}')
        s.world.settle()
        assert "first" in call.result()
        assert not s.client.replies.waiting
