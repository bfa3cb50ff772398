# SPDX-License-Identifier: Apache-2.0
"""Heartbeats for connections whose hub does not run.

Heartbeats are the hub's business.  Where the application blocks the hub, with a long
computation or with a library that does not know of green threads, none are sent, and
the peer takes this process for dead.  The guard is the remedy for applications that
cannot be mended: one native thread that writes an empty frame (AMQP 1.0 part 2,
section 2.4.5) to every connection of its care that was silent for most of the time that
the peer allows.  While the hub runs, its own heartbeats come first, and the guard only
looks.

It has a price, therefore it is an option: a process that hangs for good looks alive to
its peer.  And it cannot help where a C library holds the interpreter's lock.

What it relies on:

* A frame must not be torn.  The pump and the guard write under one lock, and the guard
  only where all that the pump began is written (`Charge.written`), after the Open frame
  and before the Close.  Should the socket take a part of the empty frame only, the rest
  of it goes out before anything else, by whoever writes next.
* The socket is closed under the same lock, so that the guard never writes to a
  descriptor that has become another's.
* Locks and thread are real ones in a monkey patched process too.  Nobody waits for such
  a lock for longer than a write without blocking takes.
* The thread calls nothing that the application may have patched, and logs nothing.
* After a fork the child has no guard until it asks for one.

Not for TLS: what a TLS socket carries is the state of an object of one thread.
"""

from __future__ import annotations

import _socket
import time
import typing

from greenamqp import fork
from greenamqp.hubs import native

#: An empty frame: 8 bytes long, of which the header is all, on channel 0.
EMPTY_FRAME = bytes((0, 0, 0, 8, 2, 0, 0, 0))

# The guard acts when the connection was silent for this share of the time that the
# peer wishes to hear from us within.  The engine's own heartbeat comes after half of
# it; what is left is for the way.
SHARE = 0.75

# A socket that takes nothing now is tried again after this share of that time.
_AGAIN = 0.1

# A thread with nothing to do looks around this often.  Seconds.
_IDLE = 3600.0

# Who waits for the thread's end looks this often whether it is to end at all.  Seconds.
_LOOK = 0.1


class Charge:
    """One connection in the guard's care.

    :param sock: the non-blocking socket
    :param patience: seconds within which the peer wishes to hear from us
    """

    __slots__ = ("_last", "_rest", "_socket", "_whole", "beats", "interval", "lock")

    def __init__(self, sock: _socket.socket, patience: float) -> None:
        #: Held by whoever writes to the socket, or closes it.  A real one.
        self.lock = native.original("_thread", "allocate_lock")()
        self.interval = patience * SHARE
        #: Empty frames that the guard has written.
        self.beats = 0
        # The rest is guarded by the lock.
        self._socket: _socket.socket | None = sock
        self._whole = False
        self._last = time.monotonic()
        self._rest = b""

    # -- for the pump, which holds the lock

    def begin(self) -> None:
        """The pump is about to write.

        :raises BlockingIOError: an empty frame is half written, and there is no room
            for the rest now
        :raises OSError: the connection broke
        """
        self._whole = False
        if self._rest:
            if self._socket is None:
                raise ConnectionResetError("it broke amid an empty frame")
            self._rest = self._rest[self._socket.send(self._rest) :]
            if self._rest:
                raise BlockingIOError

    def written(self, anything: bool, frames_may_follow: bool) -> None:
        """The pump has written all that there was.

        :param anything: whether that was something
        :param frames_may_follow: whether the connection is open, both ways
        """
        self._whole = frames_may_follow
        if anything:
            self._last = time.monotonic()

    def stop(self) -> None:
        """The socket is about to be closed.  Takes the lock by itself."""
        with self.lock:
            self._socket = None

    # -- for the guard

    def beat(self, now: float) -> float:
        """Write an empty frame if it is time; returns when to come again."""
        with self.lock:
            if self._socket is None or not self._whole:
                # The pump is at it, or waits for room: then the peer is not reading.
                return now + self.interval
            due = self._last + self.interval
            if now < due:
                return due
            frame = self._rest or EMPTY_FRAME
            try:
                sent = self._socket.send(frame)
            except BlockingIOError:
                return now + self.interval * _AGAIN
            except OSError:
                self._socket = None  # broken; the pump will see for itself
                return now + self.interval
            self._rest = frame[sent:]
            if self._rest:
                return now + self.interval * _AGAIN
            self.beats += 1
            self._last = now
            return now + self.interval


class Guard:
    """The thread and its charges.  Any thread may call any method.

    The thread runs while somebody has asked for it by `acquire`.
    """

    def __init__(self) -> None:
        self._users = 0
        self._prepare()
        fork.tell(self)

    def _prepare(self) -> None:
        allocate = native.original("_thread", "allocate_lock")
        self._lock = allocate()
        self._charges: set[Charge] = set()
        # Free while the thread is to look again at once.
        self._alarm = allocate()
        self._running = False
        # Held until the thread has ended.
        self._ended = allocate()

    def forked(self) -> None:
        """In a child there is no thread, and its charges are the parent's."""
        self._users = 0
        self._prepare()

    def acquire(self) -> None:
        """Have the thread run."""
        with self._lock:
            self._users += 1
            if not self._running:
                self._running = True
                self._ended = native.original("_thread", "allocate_lock")()
                self._ended.acquire()
                start = native.original("_thread", "start_new_thread")
                try:
                    start(self._run, (self._ended,))
                except BaseException:  # there are too many
                    self._running = False
                    self._users -= 1
                    raise

    def release(self) -> None:
        """Need it no longer.  With the last user the thread ends, and this returns
        when it has."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._wake()
            ended = self._ended
        while not ended.acquire(timeout=_LOOK):
            with self._lock:
                if self._users:
                    return  # somebody else has need of it again
        ended.release()

    def add(self, sock: _socket.socket, patience: float) -> Charge:
        """Look after a connection until its charge is given to `remove`."""
        charge = Charge(sock, patience)
        with self._lock:
            self._charges.add(charge)
            self._wake()
        return charge

    def remove(self, charge: Charge) -> None:
        """The socket is about to be closed; nothing is written to it any more."""
        charge.stop()
        with self._lock:
            self._charges.discard(charge)

    def _wake(self) -> None:
        if self._alarm.locked():
            self._alarm.release()

    def _run(self, ended: typing.Any) -> None:
        try:
            while True:
                with self._lock:
                    if not self._users:
                        self._running = False
                        return
                    charges = list(self._charges)
                now = time.monotonic()
                due = min([now + _IDLE, *(charge.beat(now) for charge in charges)])
                self._alarm.acquire(timeout=max(0.0, due - time.monotonic()))
        finally:
            ended.release()


#: The guard of this process.
GUARD: typing.Final = Guard()
