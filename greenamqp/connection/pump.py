# SPDX-License-Identifier: Apache-2.0
"""Bytes between a stream (a socket, or TLS on one) and an engine.

One pump belongs to one connection.  It runs in its hub's context: the hub calls when
the stream is readable, writable again, or when the engine's deadline has come, and
flushes it at the end of each wake-up.  Nobody else reads or writes the stream, but for
:mod:`greenamqp.connection.guard`, which takes turns with the pump.

While a write waits for room, whoever has more to send appends to the engine and
leaves; the rest goes out, in order, when the hub says that there is room.
"""

from __future__ import annotations

import _socket  # the class that no monkey patching replaces
import os
import typing

from greenamqp import interrupts
from greenamqp.connection.diagnosis import GREETING_SIZE, Interrupted, as_lasting
from greenamqp.connection.guard import GUARD, Charge
from greenamqp.engine import MIN_TICK, Connection, capi
from greenamqp.hubs import Hub, Timer, Watch

# One read and one write take up to this much.  Bytes.
BUFFER_SIZE = 64 * 1024

# An engine's deadline that is this long over, in seconds, says that the hub did not
# run: long enough for a busy machine's hub not to be meant.
BEHIND = 0.2

# How often one wake-up reads again because the buffer came back full: enough for a
# burst of large messages, few enough that other connections get their turn.
READS_PER_WAKEUP = 8

_NEVER = float("inf")


class Stream(typing.Protocol):
    """What a pump needs of a non-blocking socket, or of TLS on top of one.

    Reading and writing raise BlockingIOError when nothing can be read or written now.
    """

    def recv_into(self, buffer: memoryview, /) -> int:
        """Read into `buffer`; 0 is the end of the stream."""

    def send(self, data: memoryview, /) -> int:
        """Write some of `data`; returns how many bytes."""

    def fileno(self) -> int:
        """The descriptor to wait for."""

    def close(self) -> None:
        """Close it."""

    def detach(self) -> int:
        """Give the descriptor up, saying nothing to the peer, and return it."""


def _buffer() -> tuple[memoryview, typing.Any]:
    """A buffer that is kept: as a view for the stream, as a pointer for the engine."""
    data = bytearray(BUFFER_SIZE)
    return memoryview(data), capi.from_buffer(data)


class Pump:
    """Moves the bytes of one connection.  For use in the hub's context.

    :param on_closed: called once when the stream is closed and nothing will move any
        more, for whatever reason; the engine has told its handler before
    :param idle_timeout: the operator's, where the engine's may be shorter
    """

    def __init__(
        self,
        hub: Hub,
        stream: Stream,
        engine: Connection,
        on_closed: typing.Callable[[Pump], None] | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        self.hub = hub
        self.engine = engine
        self.dirty = False
        self._on_closed = on_closed
        self._idle_timeout = idle_timeout
        self._stream: Stream | None = stream
        self._watch: Watch | None = None
        self._timer: Timer | None = None
        self._armed: float | None = None
        self._blocked = False
        # When the engine was last told that time passes.
        self._ticked: float | None = None
        # When it was to be told next.
        self._due: float | None = None
        self._charge: Charge | None = None
        #: The peer's first bytes, to say what it is if it is no AMQP 1.0 peer; its
        #: owner sets None when it has seen enough.
        self.greeting: bytes | None = b""
        self._input, self._input_pointer = _buffer()
        self._output, self._output_pointer = _buffer()

    @property
    def stream(self) -> Stream | None:
        """The stream, None once it is closed."""
        return self._stream

    @property
    def closed(self) -> bool:
        """Whether the stream is closed."""
        return self._stream is None

    def start(self) -> None:
        """Begin: the engine's first bytes go out."""
        assert self._stream is not None
        self.hub.holders[self] = None
        self._watch = self.hub.watch(self._stream.fileno(), self._readable)
        self._process()
        if getattr(self._stream, "buffered", False):
            # TLS: what came in one piece with the end of its handshake.
            self._readable()

    def flush(self) -> None:
        """Write as much as goes without blocking.  For the hub."""
        stream = self._stream
        if stream is None or self._blocked:
            return
        try:
            if self._charge is None:
                self._write(stream)
            else:
                self._write_in_turn(stream, self._charge)
        except BlockingIOError:
            self._blocked = True
            assert self._watch is not None
            self._watch.want_write(self._writable)
        except OSError as exc:
            if interrupts.struck(exc):  # a time limit, by TimeoutError
                self._interrupted(exc)
                raise
            # The peer may have said why, in bytes that are not read yet.
            self._blocked = True
            self._readable()
            self.abort(f"the connection was lost while writing: {exc}")
        except BaseException as exc:
            self._interrupted(exc)
            raise
        else:
            engine = self.engine
            if (engine.ended or not engine.opened) and engine.closed:
                # Our Close is written and the peer's was read.  Not before: a socket
                # that is closed with bytes unread takes back what was just written.
                # Or the login was refused, which nobody has been told of yet.
                self._finish()

    def _write(self, stream: Stream) -> bool:
        """Write all that the engine has; returns whether that was anything.

        :raises BlockingIOError: not all of it could be written now
        :raises OSError: the connection broke
        """
        engine = self.engine
        pointer = self._output_pointer
        anything = False
        while size := engine.data_to_send(pointer, BUFFER_SIZE):
            sent = stream.send(self._output[:size])
            engine.data_sent(sent)
            if sent < size:
                raise BlockingIOError
            anything = True
        return anything

    def _write_in_turn(self, stream: Stream, charge: Charge) -> None:
        """As _write, where the guard writes as well."""
        with charge.lock:
            charge.begin()
            anything = self._write(stream)
            engine = self.engine
            charge.written(anything, engine.opened and not engine.ended)

    def keep_alive(self) -> bool:
        """Have the guard write heartbeats while the hub does not run.

        To be called when the connection is open; the guard was acquired.  Returns
        False where it cannot: over TLS.
        """
        stream = self._stream
        if not isinstance(stream, _socket.socket):
            return False
        patience = self.engine.remote_idle_timeout
        if patience and self._charge is None:
            self._charge = GUARD.add(stream, patience)
        return True

    def catch_up(self) -> None:
        """Read what has come, if the hub did not run for a while.

        For who is about to send.  The peer may have taken this process for dead and
        closed the connection: what is not written to it yet can go over another one,
        of what is written nobody knows what became.
        """
        if self._due is not None and self.hub.now() > self._due + BEHIND:
            self._readable()

    def abort(self, reason: str) -> None:
        """Give the connection up: the engine tells its handler the reason."""
        if self._stream is None:
            return
        self._close_stream()
        self.engine.abort(reason)
        self.engine.process(self.hub.now())
        self._closed()

    def close(self) -> None:
        """Close the stream as it is; the engine's handler hears nothing of it."""
        if self._stream is not None:
            self._close_stream()
            self._closed()

    def _readable(self) -> None:
        try:
            self._read()
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def _interrupted(self, exc: BaseException) -> None:
        """A signal handler raised where bytes are moved: nobody knows which of them
        were.  The connection is given up, or the peer would be misunderstood."""
        self.abort(Interrupted(type(exc).__name__))
        self.hub.dealt_with = exc

    def _read(self) -> None:
        engine = self.engine
        view = self._input
        for _ in range(READS_PER_WAKEUP):
            stream = self._stream
            if stream is None:
                return
            try:
                size = stream.recv_into(view)
            except BlockingIOError:
                break
            except OSError as exc:
                if interrupts.struck(exc):
                    raise
                reason = f"the connection was lost: {exc}"
                self.abort(as_lasting(exc.args[0] if exc.args else "", reason))
                return
            if size == 0:
                self._end_of_stream()
                return
            if self.greeting is not None and len(self.greeting) < GREETING_SIZE:
                self.greeting += bytes(view[: min(size, GREETING_SIZE)])
            taken = engine.receive_data(self._input_pointer, size)
            while 0 < taken < size:
                # The engine takes only as much as it has room for: once it has
                # worked, it has room for the rest.
                more = engine.receive_data(view[taken:size], size - taken)
                if more == 0:
                    break
                taken += more
            engine.process(self.hub.now())
            if taken < size:
                # It takes no more: closed, or failed and its handler knows.
                break
            if size < BUFFER_SIZE:
                break
        self._settle_up()

    def _end_of_stream(self) -> None:
        if self.engine.finished:
            # The peer took our Close for the end of it.
            self._finish()
            return
        self.engine.receive_eof()
        self.abort("the peer closed the connection without a word")

    def _writable(self) -> None:
        try:
            self._blocked = False
            if self._watch is not None:
                self._watch.want_write(None)
            self.flush()
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def _process(self) -> None:
        try:
            self.engine.process(self.hub.now())
            self._settle_up()
        except BaseException as exc:
            self._interrupted(exc)
            raise

    def _settle_up(self) -> None:
        """After the engine worked: its deadline may be another, output may be due."""
        if self._stream is None:
            return
        deadline = self.engine.deadline
        if deadline != self._armed:
            self._look_back()
            self._arm(deadline)
        self.hub.flush_late(self)

    def _look_back(self) -> None:
        """The engine's clock ticks: did it wait too long for that?

        It ticks several times in an idle time-out, whatever else happens.  So if the
        hub did not run for a while, that began between the last tick and the one that
        was due next; the middle of it is taken.
        """
        now = self.hub.now()
        last, self._ticked = self._ticked, now
        patience = self.engine.idle_timeout
        if self._idle_timeout is not None:
            both = (self._idle_timeout, self.engine.remote_idle_timeout)
            patience = min((each for each in both if each), default=0)
        if patience and last is not None and self._due is not None:
            blocked = now - (last + self._due) / 2
            # It does not tick more often than that, however short the time-out is.
            if blocked > max(patience / 2, MIN_TICK):
                self.hub.was_blocked(blocked, patience)

    def _arm(self, deadline: float | None) -> None:
        self._armed = self._due = deadline
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None and deadline != _NEVER:
            self._timer = self.hub.call_at(deadline, self._deadline_came)

    def _deadline_came(self) -> None:
        self._timer = None
        self._armed = None
        # If the hub did not run for a while, the peer may have spoken meanwhile.  That
        # counts before the time does, or a peer that was never silent would be lost.
        self._readable()
        if self._stream is not None:
            self._process()

    def _finish(self) -> None:
        """Both directions are done, in order."""
        if self._stream is None:
            return
        self._close_stream()
        # The peer's last words, if any came, are dispatched before we are gone.
        self.engine.process(self.hub.now())
        self._closed()

    def forked(self) -> None:
        """See :class:`greenamqp.hubs.base.Holder`."""
        stream, self._stream = self._stream, None
        self._watch = self._timer = self._charge = None
        if stream is not None:
            os.close(stream.detach())

    def _close_stream(self) -> None:
        self.hub.holders.pop(self, None)
        if self._charge is not None:
            GUARD.remove(self._charge)
            self._charge = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        stream, self._stream = self._stream, None
        if stream is not None:
            self.hub.unwatch(stream.fileno())
            stream.close()

    def _closed(self) -> None:
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed(self)
