# SPDX-License-Identifier: Apache-2.0
"""The guard writes whole empty frames, between frames, to sockets that are its own."""

import _socket
import os
import socket
import threading
import time

import pytest

from greenamqp.connection.guard import EMPTY_FRAME, SHARE, Charge, Guard
from greenamqp.hubs import native

PATIENCE = 8.0


class Wire:
    """A socket that takes as many bytes as the test says, and keeps them."""

    def __init__(self) -> None:
        self.taken = b""
        self.room: list[int | OSError] = []

    def send(self, data: bytes) -> int:
        room = self.room.pop(0) if self.room else len(data)
        if isinstance(room, OSError):
            raise room
        self.taken += bytes(data[:room])
        return room


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def charge(wire):
    made = Charge(wire, PATIENCE)
    # The pump has written something, and the connection is open.
    with made.lock:
        made.begin()
        made.written(True, True)
    return made


def later(charge: Charge, share: float = 1.0) -> float:
    return time.monotonic() + PATIENCE * share


def test_an_empty_frame_is_a_header_alone():
    size, offset, kind, channel = (
        int.from_bytes(EMPTY_FRAME[:4], "big"),
        EMPTY_FRAME[4],
        EMPTY_FRAME[5],
        EMPTY_FRAME[6:],
    )
    assert (size, offset, kind, channel) == (8, 2, 0, b"\0\0")


def test_it_writes_when_the_connection_was_silent_for_most_of_the_time(charge, wire):
    due = charge.beat(later(charge, SHARE / 2))
    assert wire.taken == b""
    assert due > later(charge, SHARE / 2)
    again = charge.beat(due)
    assert wire.taken == EMPTY_FRAME
    assert again == due + PATIENCE * SHARE
    charge.beat(again)
    assert wire.taken == 2 * EMPTY_FRAME
    assert charge.beats == 2


def test_what_the_pump_writes_counts(charge, wire):
    with charge.lock:
        charge.begin()
        charge.written(True, True)
    before = charge.beat(time.monotonic())
    with charge.lock:
        charge.begin()
        charge.written(False, True)  # nothing: the silence goes on
    assert charge.beat(time.monotonic()) == before


def test_not_in_the_middle_of_a_frame(charge, wire):
    with charge.lock:
        charge.begin()  # and nothing came of it: the socket was full
    for _ in range(5):
        charge.beat(later(charge))
    assert wire.taken == b""
    with charge.lock:
        charge.begin()
        charge.written(True, True)
    charge.beat(later(charge))
    assert wire.taken == EMPTY_FRAME


def test_not_before_the_open_frame_nor_after_the_close(wire):
    charge = Charge(wire, PATIENCE)
    charge.beat(later(charge))
    with charge.lock:
        charge.begin()
        charge.written(True, False)
    charge.beat(later(charge))
    assert wire.taken == b""


@pytest.mark.parametrize("part", range(1, 8))
def test_the_rest_of_a_torn_frame_goes_before_anything_else(charge, wire, part):
    wire.room = [part]
    charge.beat(later(charge))
    assert wire.taken == EMPTY_FRAME[:part]
    with charge.lock:
        charge.begin()
        wire.send(b"a frame of the pump")
        charge.written(True, True)
    assert wire.taken == EMPTY_FRAME + b"a frame of the pump"


@pytest.mark.parametrize("part", range(1, 8))
def test_the_guard_ends_a_torn_frame_itself(charge, wire, part):
    wire.room = [part, BlockingIOError(), 8 - part]
    for _ in range(3):
        charge.beat(later(charge))
    assert wire.taken == EMPTY_FRAME
    assert charge.beats == 1


def test_the_pump_waits_while_the_rest_has_no_room(charge, wire):
    wire.room = [3, 2]
    charge.beat(later(charge))
    with charge.lock, pytest.raises(BlockingIOError):
        charge.begin()
    charge.beat(later(charge))  # the pump is at it now
    assert wire.taken == EMPTY_FRAME[:5]
    with charge.lock:
        charge.begin()
    assert wire.taken == EMPTY_FRAME


def test_a_full_socket_is_tried_again_soon(charge, wire):
    wire.room = [BlockingIOError()]
    now = later(charge)
    assert now < charge.beat(now) < now + PATIENCE * SHARE / 2
    assert wire.taken == b""


def test_a_broken_socket_is_left_to_the_pump(charge, wire):
    wire.room = [BrokenPipeError()]
    for _ in range(3):
        charge.beat(later(charge))
    assert wire.taken == b""


def test_nothing_is_written_once_the_socket_is_to_be_closed(charge, wire):
    charge.stop()
    charge.beat(later(charge))
    assert wire.taken == b""


def raw_pair():
    near, far = socket.socketpair()
    near.setblocking(False)
    raw = _socket.socket(fileno=near.detach())
    far.settimeout(60)
    return raw, far


def opened(guard, raw, patience):
    charge = guard.add(raw, patience)
    with charge.lock:
        charge.begin()
        charge.written(True, True)
    return charge


def native_threads() -> set[str]:
    """Those of this process; what other tests began may still be about to end."""
    return set(os.listdir("/proc/self/task"))


def threads(before: set[str], expected: int) -> int:
    """How many there are that were not `before`, once one that has ended is off the
    list."""
    deadline = time.monotonic() + 60
    while (count := len(native_threads() - before)) != expected:
        if time.monotonic() > deadline:
            break
        time.sleep(0.001)
    return count


def test_the_thread_writes_by_itself_and_ends_with_the_last_user():
    guard = Guard()
    before = native_threads()
    guard.acquire()
    guard.acquire()
    assert threads(before, 1) == 1
    raw, far = raw_pair()
    charge = opened(guard, raw, 0.05)
    data = b""
    while len(data) < 5 * len(EMPTY_FRAME):
        data += far.recv(64)
    assert data == EMPTY_FRAME * (len(data) // 8)
    guard.remove(charge)
    guard.release()
    assert threads(before, 1) == 1
    guard.release()
    assert threads(before, 0) == 0
    raw.close()
    far.close()


def test_the_thread_comes_and_goes_as_often_as_it_is_wanted():
    guard = Guard()
    before = native_threads()

    def use():
        for _ in range(200):
            guard.acquire()
            guard.release()

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
        assert not user.is_alive()
    assert threads(before, 0) == 0


def test_a_descriptor_that_is_another_s_now_gets_nothing():
    guard = Guard()
    guard.acquire()
    try:
        for _ in range(50):
            raw, far = raw_pair()
            number = raw.fileno()
            charge = opened(guard, raw, 0.0005)
            far.recv(1)  # the guard is at it
            guard.remove(charge)
            raw.close()
            # The number is free, and the next to get it is somebody else.
            victim, other = socket.socketpair()
            other.setblocking(False)
            assert number in (victim.fileno(), other.fileno())
            with pytest.raises(BlockingIOError):
                other.recv(1)
            for sock in (far, victim, other):
                sock.close()
    finally:
        guard.release()


def test_what_breaks_amid_an_empty_frame_is_broken(charge, wire):
    wire.room = [3, ConnectionResetError("reset")]
    charge.beat(later(charge))
    charge.beat(later(charge, 2))
    with charge.lock, pytest.raises(OSError, match="broke"):
        charge.begin()


def test_a_thread_that_cannot_be_started_is_tried_again(monkeypatch):
    guard = Guard()
    original = native.original

    def cannot(*_):
        raise RuntimeError("can't start new thread")

    def full(module, name):
        return cannot if name == "start_new_thread" else original(module, name)

    with monkeypatch.context() as patched:
        patched.setattr(native, "original", full)
        with pytest.raises(RuntimeError):
            guard.acquire()
    guard.acquire()
    assert guard._running
    guard.release()
    assert not guard._running
