# SPDX-License-Identifier: Apache-2.0
"""One line for many links."""

import logging

import pytest
from oslo_messaging import Target

from greenamqp.buses import Node, Service
from greenamqp.client import Destination, notices
from greenamqp.connection.state import State
from greenamqp.engine import Message
from tests.unit import fakes

LINKS = 200


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.WARNING, "greenamqp")

    def taken():
        found = [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if record.name.startswith("greenamqp")
        ]
        caplog.clear()
        return found

    return taken


def subscribe(s, count=LINKS):
    for number in range(count):
        s.client.subscribe(
            lambda _, n=number: [Node(f"address-{n}")], 10, lambda *a: None
        )
    s.world.settle()
    assert s.client.connection.state is State.UP


def peer_links(s):
    """The broker's ends of the links."""
    return list(s.peer.engine._links.values())


def test_a_connection_that_breaks_is_one_line_however_many_links(lines):
    with fakes.setting() as s:
        subscribe(s)
        lines()
        s.peer.cut()
        s.world.settle()
        ((level, text),) = lines()
        assert level == "WARNING" and text.startswith("lost the connection to bus:5672")
        s.world.advance(5)
        assert len(s.peer.engine._links) == LINKS
        assert lines() == []


def test_a_line_has_an_end_whatever_a_peer_has_in_it(lines):
    with fakes.setting() as s:
        s.client.notices.add(notices.STRAY, id="i" * 100_000)
        s.world.settle()
        ((_, text),) = lines()
        assert len(text) == notices.LONGEST and text.endswith("iii")


def test_a_bus_that_goes_down_link_by_link_is_one_line(lines):
    with fakes.setting() as s:
        subscribe(s)
        lines()
        for link in peer_links(s):
            link.close("amqp:connection:forced", "going down")
        s.peer.engine.close("amqp:connection:forced", "going down")
        s.world.settle()
        ((level, text),) = lines()
        assert level == "WARNING" and "going down" in text


@pytest.mark.parametrize("count", [1, LINKS])
def test_links_that_the_bus_closes_together_are_one_line(count, lines):
    with fakes.setting(link_retry_delay=3) as s:
        subscribe(s, count)
        lines()
        for link in peer_links(s):
            link.close("amqp:resource-deleted", "deleted by the operator")
        s.world.settle()
        ((level, text),) = lines()
        assert level == "ERROR"
        assert "deleted by the operator" in text and "address-0" in text
        assert "trying again in 0.5 s" in text
        assert (str(count) in text) == (count > 1)
        s.world.advance(5)
        assert len(s.peer.engine._links) == count
        assert lines() == []


def test_replies_that_cannot_be_sent_are_one_line(lines):
    with fakes.setting() as s:
        s.network.default = "Connection refused"
        for number in range(LINKS):
            s.client.post(
                "RPC reply",
                Destination.reply(f"caller-{number}"),
                lambda format: Message("{}"),
                deadline=s.world.now() + 5,
                retries=0,
            )
        s.world.advance(10)
        mine = [text for _, text in lines() if "caller-" in text]
        assert len(mine) == 1 and str(LINKS) in mine[0]


def test_a_reply_that_waits_for_the_connection_is_sent_when_it_is_there():
    """Its one attempt is not used up by a connection that was not there."""
    with fakes.setting() as s:
        s.network.script = ["refused", "refused"]
        s.client.post(
            "RPC reply",
            Destination.reply("caller"),
            lambda format: Message("{}"),
            deadline=s.world.now() + 30,
            retries=0,
        )
        s.world.advance(10)
        assert s.client.connection.state is State.UP
        assert len(s.peer.received) == 1


def test_what_is_collected_is_written_at_the_end(lines):
    with fakes.setting() as s:
        s.client.notices.add(notices.LINK_CLOSED, address="a", reason="r")
        closing = s.world.go(s.world.run, s.client.closing())
        s.world.settle()
        assert closing.result() is None
        assert [text for _, text in lines()] == ["the link to a was closed: r"]


def test_texts_may_hold_braces(lines):
    with fakes.setting() as s:
        s.client.notices.add(notices.LINK_CLOSED, address="{a}", reason="{} %s")
        s.world.settle()
        assert [text for _, text in lines()] == ["the link to {a} was closed: {} %s"]


def test_with_other_hosts_a_silent_one_is_given_up_sooner(monkeypatch, no_chance):
    """A send that waits as long as it does by default gets past a host that is silent
    from the first byte on."""

    whole = fakes.Peer
    hosts = [fakes.Host("one", 1), fakes.Host("two", 2)]
    with fakes.setting(hosts, idle_timeout=0) as s:
        monkeypatch.setattr(fakes, "Peer", fakes.Silent)
        task = s.notify(
            destination=Destination.of(Target(topic="t"), Service.NOTIFY), timeout=30
        )
        s.world.advance(1)
        monkeypatch.setattr(fakes, "Peer", whole)
        s.world.advance(29)
        assert task.result() is None
        assert [host for _, host, _ in s.network.attempts] == ["one", "two"]
