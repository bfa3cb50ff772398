# SPDX-License-Identifier: Apache-2.0
"""The files of the outbox, without a message bus."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time

import oslo_messaging
import pytest

from greenamqp.outbox import Directory, Letter, NoOutbox, Store
from greenamqp.outbox.directory import claim, is_free
from greenamqp.outbox.disk import Disk
from tests.unit import fakes


def letters(*names: str, lane: str = "lane", size: int = 10) -> list[Letter]:
    return [Letter(name, lane, name * size) for name in names]


def ids(store: Store, lane: str = "lane") -> list[str]:
    return [letter.unique_id for letter in store.first(lane, 10_000)]


@pytest.fixture
def directory(tmp_path):
    made = Directory(str(tmp_path / "outbox"), ["h:5672"], None, None)
    made.make()
    return made


@pytest.fixture
def store(directory):
    made = Store(os.path.join(directory.path, "own.db"), "a bus")
    yield made
    made.close()


def test_what_is_kept_is_there_in_order_when_it_is_opened_again(store):
    store.add(letters("a", "b"))
    store.add(letters("x", lane="other"))
    store.add(letters("c"))
    store.remove(["a", "unknown"])
    store.close()
    again = Store(store.path)
    assert ids(again) == ["b", "c"]
    assert [letter.content for letter in again.first("lane", 1)] == ["b" * 10]
    assert {name: count for name, (count, _) in again.lanes().items()} == {
        "lane": 2,
        "other": 1,
    }
    assert again.count == 3
    assert again.bus == "a bus"
    again.close()


def test_all_is_for_its_user_alone(store, directory, tmp_path):
    store.add(letters("a"))
    found = sorted(os.listdir(directory.path))
    assert found == ["own.db", "own.db-shm", "own.db-wal"]
    for name in found:
        mode = os.stat(os.path.join(directory.path, name)).st_mode
        assert stat.S_IMODE(mode) == 0o600
    for path in (directory.path, tmp_path / "outbox"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700


def test_of_a_write_that_fails_nothing_is_kept(store):
    store.add(letters("a"))
    with pytest.raises(sqlite3.IntegrityError):
        store.add(letters("b", "a"))
    assert ids(store) == ["a"]
    assert store.count == 1


def test_what_a_signal_handler_left_open_is_undone(store):
    """It may raise between the beginning of a transaction and what ends it."""
    store.add(letters("a"))
    store._db.execute("BEGIN IMMEDIATE")
    store._delete("unique_id = ?", ("a",))
    store.add(letters("b"))
    assert ids(store) == ["a", "b"]
    assert store.count == 2


def test_what_is_added_is_on_the_disk_whatever_came_before(store):
    seen = []
    store._db.set_trace_callback(seen.append)
    store.add(letters("a"))
    store.remove(["a"])
    store.add(letters("b"))
    pragmas = [each.split("=")[1] for each in seen if "synchronous" in each]
    assert pragmas == ["FULL", "NORMAL", "FULL"]


def test_a_full_disk_loses_nothing_of_what_is_there(store):
    """SQLite's own limit gives the error that the file system would."""
    store.add(letters("a"))
    pages = store._one("PRAGMA page_count")
    store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.add(letters("b", size=1_000_000))
    assert ids(store) == ["a"] and store.count == 1
    store._db.execute("PRAGMA max_page_count=1000000")
    store.add(letters("b", size=1_000_000))
    assert ids(store) == ["a", "b"]


def test_the_oldest_fall_out(store):
    names = [str(number) for number in range(100, 140)]
    for name in names:
        store.add(letters(name, size=20_000))
    shed = store.shed_size(1)
    assert 0 < shed < len(names)
    assert ids(store) == names[shed:]
    assert store.size <= 1024 * 1024
    assert store.shed_size(1) == 0


def test_the_old_fall_out(store):
    store.add(letters("a", "b"))
    store._db.execute("UPDATE letters SET created = created - 100 WHERE id = 1")
    assert store.purge(50) == 1
    assert ids(store) == ["b"] and store.count == 1


def test_all_is_all_whatever_the_clock_said(store, monkeypatch):
    with monkeypatch.context() as ahead:
        ahead.setattr("time.time", lambda: 4e9)
        store.add(letters("a"))
    assert store.purge(50) == 0
    assert store.purge() == 1


@pytest.mark.parametrize("step", [4e8, -4e8])
def test_who_sets_the_clock_makes_nothing_old(store, monkeypatch, step):
    store.add(letters("a"))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + step)
    store.follow_clock()
    store.follow_clock()
    ((_, oldest),) = store.lanes().values()
    assert abs(oldest - (now + step)) < 60
    assert store.purge(60) == 0


def test_a_file_is_one_process_s(directory):
    held = directory.new()
    assert claim(held.path) is None
    assert not is_free(held.path)
    held.release()
    assert is_free(held.path)
    again = claim(held.path)
    assert again is not None
    again.remove()
    assert os.listdir(directory.path) == []


def test_what_nobody_looks_after_is_moved_and_what_is_used_is_not(directory, store):
    store.add(letters("a"))
    left, used = directory.new(), directory.new()
    for held, names in ((left, "bc"), (used, "d")):
        other = Store(held.path)
        other.add(letters(*names))
        other.close()
    left.release()
    assert directory.move_abandoned(lambda: store, store.path) == (2, [], [])
    assert ids(store) == ["a", "b", "c"]
    assert not os.path.exists(left.path) and os.path.exists(used.path)
    used.release()


def test_what_was_moved_and_not_removed_is_not_there_twice(directory, store):
    store.add(letters("a", "b"))
    left = directory.new()
    other = Store(left.path)
    other.add(letters("a", "b", "c"))
    other.close()
    left.release()
    directory.move_abandoned(lambda: store, store.path)
    assert ids(store) == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["head", "middle"])
def test_a_damaged_file_is_set_aside_and_the_others_are_moved(directory, store, damage):
    paths = []
    for names in ("ab", "cd"):
        held = directory.new()
        other = Store(held.path)
        other.add(letters(*names, size=5000))
        other.close()
        held.release()
        paths.append(held.path)
    with open(paths[0], "r+b") as file:
        file.seek(0 if damage == "head" else 4096)
        file.write(b"\xff" * 8192)
    moved, broken, _ = directory.move_abandoned(lambda: store, store.path)
    assert (moved, ids(store)) == (2, ["c", "d"])
    assert len(broken) == 1 and broken[0].endswith(f"kept as {paths[0]}.corrupt")
    assert os.path.exists(paths[0] + ".corrupt")


def test_a_file_that_cannot_be_used_is_in_nobody_s_way(directory, store):
    """It need not be damaged: another user's, for instance, put back from a backup."""
    unusable = os.path.join(directory.path, "0.db")
    os.mkdir(unusable)
    os.utime(unusable, (0, 0))
    left = directory.new()
    other = Store(left.path)
    other.add(letters("a"))
    other.close()
    left.release()
    assert directory.files()[0] == unusable
    moved = directory.move_abandoned(lambda: store, store.path)
    assert moved == (1, [], [f"{unusable}: Is a directory"])
    assert ids(store) == ["a"]


@pytest.fixture
def disk(directory):
    made = Disk(directory, 100, 1000)
    yield made
    made.close([])


def write(disk, *names):
    return disk.work(letters(*names), [], ["lane"], False).read["lane"]


def left_in(directory):
    """What a process that comes next finds."""
    found = []
    for path in directory.files():
        assert is_free(path)
        store = Store(path)
        found += ids(store)
        store.close()
    return found


@pytest.mark.parametrize("how", ["removed", "moved", "only the file"])
def test_a_file_that_is_taken_away_is_made_again(disk, directory, tmp_path, how):
    write(disk, "a", "b")
    if how == "removed":
        shutil.rmtree(tmp_path / "outbox")
    elif how == "moved":
        os.rename(tmp_path / "outbox", tmp_path / "old")
    else:
        os.unlink(directory.files()[0])
    assert [each.unique_id for each in write(disk, "c")] == ["a", "b", "c"]
    disk.close(["a"])
    assert left_in(directory) == ["b", "c"]


def test_a_file_that_is_taken_away_at_the_end(disk, directory, tmp_path):
    write(disk, "a")
    shutil.rmtree(tmp_path / "outbox")
    disk.close([])
    assert left_in(directory) == ["a"]


def test_where_none_can_be_made_again_it_is_sent_yet(disk, tmp_path):
    write(disk, "a")
    shutil.rmtree(tmp_path / "outbox")
    (tmp_path / "outbox").write_text("")
    with pytest.raises(NoOutbox):
        write(disk, "b")
    assert [each.unique_id for each in write(disk)] == ["a"]
    (tmp_path / "outbox").unlink()
    assert [each.unique_id for each in write(disk, "c")] == ["a", "c"]


def test_who_sends_elsewhere_has_another_directory(tmp_path):
    def path(*args):
        return Directory(str(tmp_path), *args).path

    one = path(["a:1", "b:2"], "v", "nova")
    assert path(["b:2", "a:1"], "v", "nova") == one
    others = {
        path(["a:1"], "v", "nova"),
        path(["a:1", "b:2"], None, "nova"),
        path(["a:1", "b:2"], "v", "neutron"),
    }
    assert len(others | {one}) == 4


@pytest.mark.parametrize("problem", ["a file", "open to others"])
def test_a_directory_that_cannot_be_used(directory, tmp_path, problem):
    if problem == "a file":
        top = tmp_path / "file"
        top.write_text("")
        directory = Directory(str(top), ["h:5672"], None, None)
    else:
        os.chmod(directory.path, 0o755)
    with pytest.raises(NoOutbox, match="File exists|others than its user"):
        directory.make()


def test_the_transport_says_why_there_can_be_no_outbox(tmp_path):
    (tmp_path / "file").write_text("")
    conf = fakes.conf(notify_outbox=str(tmp_path / "file"))
    with pytest.raises(ValueError, match="notify_outbox: .*file: File exists"):
        oslo_messaging.get_notification_transport(conf, "amqp://localhost/")


_FORKS = """
import os, sys, threading
from greenamqp.outbox import Letter, Store

def write(path):
    store = Store(path)
    store.add([Letter("one", "lane", "text")])
    store.close()

def hammer():
    number = 0
    while not over.is_set():
        write(os.path.join(sys.argv[1], f"{number}.db"))
        number += 1

over = threading.Event()
thread = threading.Thread(target=hammer)
thread.start()
for number in range(30):
    child = os.fork()
    if not child:
        write(os.path.join(sys.argv[1], f"child-{number}.db"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
over.set()
thread.join()
"""


_STRUCK = """
import os, signal, sys, threading
from greenamqp.outbox.store import working

class Struck(Exception):
    pass

def strike(*args):
    raise Struck

def is_free():
    taken = []

    def take():
        taken.append(working().acquire(timeout=10))
        working().release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken == [True]

def at_work():
    while True:
        with working():
            pass

def forks():
    while True:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

signal.signal(signal.SIGALRM, strike)
sys.unraisablehook = lambda what: None
for work, times in (at_work, 300), (forks, 100):
    for number in range(times):
        parent = os.getpid()
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-5 * (number + 1), 0.05)
            work()
        except Struck:
            if os.getpid() != parent:
                os._exit(0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert is_free(), (work, number)
"""


def test_a_signal_handler_that_raises_leaves_nobody_locked_out():
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _STRUCK], check=True, timeout=300
    )


def test_a_child_can_write_whatever_a_thread_of_its_parent_was_at(tmp_path):
    """SQLite's own locks are free in it: a fork waits for who holds them."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS, str(tmp_path)],
        check=True,
        timeout=60,
    )
