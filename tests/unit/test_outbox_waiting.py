# SPDX-License-Identifier: Apache-2.0
"""What waits in the outbox, in a world without sockets and time."""

import contextlib
import json
import sqlite3

import pytest
from oslo_messaging import Target, exceptions

from greenamqp.engine import ACCEPTED, REJECTED, RELEASED
from greenamqp.outbox import Store
from greenamqp.outbox.outbox import LOOK_INTERVAL, PATIENCE
from tests.unit import fakes

ADDRESS = "unicast.openstack.t"


@pytest.fixture
def outbox(tmp_path):
    """Makes drivers with an outbox; each ends before the next, as processes do."""

    @contextlib.contextmanager
    def make(**options):
        with fakes.driver(notify_outbox=str(tmp_path / "outbox"), **options) as s:
            yield s

    return make


def notify(s, *numbers, topic="t", **options):
    """Notify one after another, and wait for each as long as it takes."""
    tasks = []
    for number in numbers:
        target = Target(topic=topic)
        message = {"event_type": "e", "number": number}
        tasks.append(s.notify(target, message=message, **options))
        s.world.advance(PATIENCE + 0.1)
    return tasks


def came(s, topic="t"):
    """The numbers that the bus has got, in order."""
    return [
        json.loads(json.loads(each.message.body)["request"]["oslo.message"])["number"]
        for each in s.peer.received
        if each.address.endswith(f".{topic}")
    ]


def give_credit(s):
    s.peer.inbound[ADDRESS].flow(100)


def full(self, letters):
    raise sqlite3.OperationalError("database or disk is full")


def waiting(s):
    return s.driver.outbox.describe()["waiting"]


def test_who_notifies_goes_on_and_it_is_sent_when_the_bus_takes_it(outbox):
    with outbox(network={"credit": 0}) as s:
        for task in notify(s, 1, 2, 3, retry=0):
            assert task.result() is None
        assert waiting(s) == 3 and came(s) == []
        give_credit(s)
        s.world.settle()
        assert came(s) == [1, 2, 3]
        assert waiting(s) == 0
        assert s.driver.outbox.describe()["destinations"] == []
        s.notify(message={"event_type": "e", "number": 4})
        s.world.settle()
        assert came(s) == [1, 2, 3, 4]
        assert s.driver.outbox.sent == 3  # the last went straight


def test_a_slow_bus_gets_it_once(outbox):
    """What had left before it was written is not sent again."""
    with outbox() as s:
        s.up()
        s.peer.outcome = lambda message: None
        (task,) = notify(s, 1)
        assert task.done and waiting(s) == 1
        s.world.advance(20)
        s.peer.settle(s.peer.received[0], ACCEPTED)
        s.world.settle()
        assert came(s) == [1] and waiting(s) == 0


def test_what_is_given_back_is_not_overtaken(outbox):
    with outbox() as s:
        s.up()
        s.peer.outcome = lambda message: RELEASED
        notify(s, 1, 2, 3)
        s.world.advance(5)
        assert set(came(s)) == {1}
        s.peer.outcome = lambda message: ACCEPTED
        s.world.advance(20)
        assert [each for each in came(s) if each != 1] == [2, 3]


def test_other_destinations_do_not_wait(outbox):
    with outbox() as s:
        s.up()
        s.peer.outcome = lambda message: (
            RELEASED if message.address.endswith(".t") else ACCEPTED
        )
        notify(s, 1)
        task = s.notify(Target(topic="u"), message={"event_type": "e", "number": 2})
        s.world.settle()
        assert task.done and waiting(s) == 1


def test_a_rejection_is_for_who_notified(outbox):
    with outbox() as s:
        s.up()
        s.peer.outcome = lambda message: REJECTED
        task = s.notify()
        s.world.settle()
        with pytest.raises(exceptions.MessageDeliveryFailure, match="rejected"):
            task.result()


def test_what_is_rejected_falls_out_and_the_rest_goes_on(outbox, caplog):
    with outbox(network={"credit": 0}) as s:
        notify(s, 1, 2)
        outcomes = iter([REJECTED, ACCEPTED])
        s.peer.outcome = lambda message: next(outcomes)
        give_credit(s)
        s.world.settle()
        assert came(s) == [1, 2]
        assert waiting(s) == 0
        assert s.driver.outbox.dropped["rejected"] == 1
    assert "a notification was lost from the outbox" in caplog.text


def test_what_cannot_be_serialised_is_for_who_notified(outbox):
    with outbox(network={"credit": 0}) as s:
        notify(s, 1)
        circle = []
        circle.append(circle)
        task = s.notify(message={"event_type": circle})
        s.world.settle()
        with pytest.raises(ValueError):
            task.result()
        assert waiting(s) == 1


def test_the_next_process_sends_it_before_its_own(outbox):
    with outbox(network={"credit": 0}) as s:
        notify(s, 1, 2)
    with outbox() as s:
        s.notify(message={"event_type": "e", "number": 3})
        s.world.settle()
        assert came(s) == [1, 2, 3]


def test_the_next_process_sends_it_though_it_has_nothing_to_notify(outbox):
    with outbox(network={"credit": 0}) as s:
        notify(s, 1)
    with outbox() as s:
        s.send()
        s.world.settle()
        assert 1 in [
            "oslo.message" in str(each.message.body) for each in s.peer.received
        ]


def test_what_was_kept_is_what_would_have_been_sent(outbox):
    context = {"user": "ä", "n": [1, 2.5, None, True]}
    bodies = []
    for network in ({}, {"credit": 0}):
        with outbox(network=network) as s:
            notify(s, 1, ctxt=context)
            give_credit(s)
            s.world.settle()
            bodies.append(s.peer.received[-1].message.body)
    assert bodies[0] == bodies[1]


def test_where_nothing_can_be_written_it_waits_as_without_an_outbox(
    outbox, monkeypatch, caplog
):
    with outbox(network={"credit": 0}) as s:
        notify(s, 1)
        with monkeypatch.context() as disk:
            disk.setattr(Store, "add", full)
            (task,) = notify(s, 2)
            assert not task.done
            assert "cannot be written to the outbox" in caplog.text
            assert "disk is full" in caplog.text
            give_credit(s)
            s.world.settle()
        assert task.done
        assert sorted(came(s)) == [1, 2]
        assert waiting(s) == 0


def test_what_is_on_its_way_is_not_sent_again_where_nothing_can_be_written(
    outbox, monkeypatch
):
    with outbox() as s:
        s.up()
        s.peer.outcome = lambda message: None
        monkeypatch.setattr(Store, "add", full)
        (task,) = notify(s, 1)
        s.world.advance(20)
        assert not task.done and came(s) == [1]
        s.peer.settle(s.peer.received[0], ACCEPTED)
        s.world.settle()
        assert task.result() is None
        assert came(s) == [1] and waiting(s) == 0


def test_its_deadline_holds_where_nothing_can_be_written(outbox, monkeypatch):
    with outbox(default_notify_timeout=5) as s:
        s.up()
        s.peer.outcome = lambda message: None
        monkeypatch.setattr(Store, "add", full)
        (task,) = notify(s, 1)
        s.world.advance(6)
        with pytest.raises(exceptions.MessageDeliveryFailure, match="no outcome"):
            task.result()


def test_a_file_that_is_damaged_in_use_is_set_aside(outbox, tmp_path, caplog):
    with outbox(network={"credit": 0}) as s:
        notify(s, 1)
        (path,) = tmp_path.rglob("*.db")
        store = s.driver.outbox._disk._store
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store._db.close()
        path.write_bytes(b"\xff" * path.stat().st_size)
        store._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        (task,) = notify(s, 2)
        assert task.done
        assert "cannot be read: " in caplog.text
        assert list(tmp_path.rglob("*.corrupt"))
        give_credit(s)
        s.world.settle()
        assert 2 in came(s)
        assert waiting(s) == 0


def test_a_file_that_cannot_be_used_is_told_of_once(outbox, tmp_path, caplog):
    with outbox(network={"credit": 0}) as s:
        notify(s, 1)
        (path,) = tmp_path.rglob("*.db")
        path.with_name("0.db").mkdir()
        s.world.advance(35)
        told = [each for each in caplog.records if "0.db" in each.getMessage()]
        assert len(told) == 1
        give_credit(s)
        s.world.settle()
        assert came(s) == [1]


def test_what_was_purged_meanwhile_is_not_sent(outbox, tmp_path):
    """But for the one that was on its way already."""
    with outbox(network={"credit": 0}) as s:
        notify(s, 1, 2, 3)
        s.peer.inbound[ADDRESS].flow(1)
        s.world.settle()
        (path,) = tmp_path.rglob("*.db")
        other = Store(str(path))
        assert other.purge() == 2
        other.close()
        s.world.advance(LOOK_INTERVAL + 1)
        give_credit(s)
        s.world.settle()
        assert came(s) == [1, 2]
        assert s.driver.outbox.describe()["destinations"] == []
        notify(s, 4)
        assert came(s) == [1, 2, 4]
