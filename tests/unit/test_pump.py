# SPDX-License-Identifier: Apache-2.0
"""The pump: every byte once and in order, whatever the stream does."""

import errno
import hashlib

import pytest

from greenamqp.connection.pump import BUFFER_SIZE, READS_PER_WAKEUP, Pump
from greenamqp.engine import ConnectionFailed, capi
from tests.unit import fakes


class Engine:
    """An engine that only notes what a pump does to it."""

    def __init__(self, output=b"", takes=None):
        self.deadline = None
        self.closed = self.finished = self.ended = False
        self.opened = True
        self.idle_timeout = self.remote_idle_timeout = 0
        self.output = bytearray(output)
        self.received = bytearray()
        self.processed = []
        self.aborted = []
        self.eof = 0
        #: bytes that it takes at once; None: all
        self.takes = takes
        #: bytes that it takes at all
        self.capacity = None
        self.on_process = lambda now: None

    def receive_data(self, data, size):
        if isinstance(data, capi.ffi.CData):
            data = capi.ffi.buffer(data, size)
        if self.takes is not None:
            size = min(size, self.takes)
        if self.capacity is not None:
            size = min(size, self.capacity - len(self.received))
        self.received += bytes(memoryview(data)[:size])
        return size

    def receive_eof(self):
        self.eof += 1

    def process(self, now):
        self.processed.append(now)
        self.on_process(now)

    def data_to_send(self, buffer, size):
        size = min(size, len(self.output))
        capi.ffi.memmove(buffer, bytes(self.output[:size]), size)
        return size

    def data_sent(self, count):
        del self.output[:count]

    def abort(self, reason):
        self.aborted.append(reason)


class Rig:
    """A pump, its stream, and an engine that notes."""

    def __init__(self, **engine):
        self.world = fakes.World()
        self.stream = fakes.Stream()
        self.world.streams[self.stream.fileno()] = self.stream
        self.engine = Engine(**engine)
        self.closed = []
        self.pump = Pump(self.world, self.stream, self.engine, self.closed.append)

    def start(self):
        self.pump.start()
        self.world.settle()
        return self

    def assert_over(self):
        """Nothing is left, and the owner was told once."""
        assert self.pump.closed and self.stream.closed
        assert self.closed == [self.pump]
        assert not self.world.watches
        assert self.world.timers == 0


DATA = bytes(range(256)) * 1024  # 256 kB, larger than the buffer


# -- reading


@pytest.mark.parametrize("limit", [1, 3, 1000, BUFFER_SIZE - 1, BUFFER_SIZE, None])
def test_every_byte_is_read_once_and_in_order(limit):
    rig = Rig().start()
    rig.stream.read_limit = limit
    data = DATA[:2000] if limit in (1, 3) else DATA
    rig.stream.inbound += data
    rig.world.settle()
    assert rig.engine.received == data
    assert rig.engine.processed


@pytest.mark.parametrize("takes", [1, 7, 16384, BUFFER_SIZE - 1])
def test_what_the_engine_does_not_take_is_fed_again(takes):
    rig = Rig(takes=takes).start()
    data = DATA[:5000] if takes < 10 else DATA
    rig.stream.inbound += data
    rig.world.settle()
    assert rig.engine.received == data


def test_an_engine_that_takes_no_more_is_not_asked_for_ever():
    rig = Rig().start()
    rig.engine.capacity = 100
    rig.stream.inbound += DATA
    processed = len(rig.engine.processed)
    rig.world._wakeup(rig.world.watches[rig.stream.fileno()].on_readable)
    assert len(rig.engine.received) == 100
    assert len(rig.engine.processed) == processed + 1


def test_one_wakeup_does_not_read_for_ever():
    rig = Rig().start()
    rig.stream.inbound += bytes(3 * READS_PER_WAKEUP * BUFFER_SIZE)
    rig.world._wakeup(rig.world.watches[rig.stream.fileno()].on_readable)
    assert len(rig.engine.received) == READS_PER_WAKEUP * BUFFER_SIZE
    rig.world.settle()
    assert len(rig.engine.received) == 3 * READS_PER_WAKEUP * BUFFER_SIZE


def test_a_wakeup_without_bytes_harms_nothing():
    rig = Rig().start()
    rig.world._wakeup(rig.world.watches[rig.stream.fileno()].on_readable)
    assert rig.engine.received == b""
    assert not rig.pump.closed


def test_a_callback_of_the_engine_may_close_the_pump_while_it_reads():
    rig = Rig().start()
    rig.stream.inbound += DATA

    def close(now):
        rig.engine.on_process = lambda now: None
        rig.pump.close()

    rig.engine.on_process = close
    rig.world.settle()
    rig.assert_over()
    assert len(rig.engine.received) == BUFFER_SIZE


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTDOWN])
def test_an_error_of_the_stream_is_told_the_engine(number):
    rig = Rig().start()
    rig.stream.inbound += b"last words"
    rig.stream.read_error = OSError(number, "it broke")
    rig.world.settle()
    assert rig.engine.received == b"last words"
    (reason,) = rig.engine.aborted
    assert "it broke" in reason
    rig.assert_over()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("where", ["recv_into", "process", "send", "data_sent"])
def test_a_signal_handler_that_raises_ends_the_connection(where, error):
    """Whether the bytes at hand were moved cannot be known any more."""
    rig = Rig().start()
    owner = rig.stream if where in ("recv_into", "send") else rig.engine
    method = getattr(owner, where)

    def interrupted(*args):
        setattr(owner, where, method)
        method(*args)
        raise error

    setattr(owner, where, interrupted)
    with pytest.raises(error):
        if where in ("recv_into", "process"):
            rig.stream.inbound += b"some bytes"
            rig.world.watches[rig.stream.fileno()].on_readable()
        else:
            rig.engine.output += b"some bytes"
            rig.pump.flush()
    (reason,) = rig.engine.aborted
    assert reason == f"{error.__name__} interrupted the connection's work"
    rig.assert_over()


def test_the_end_of_the_stream():
    rig = Rig().start()
    rig.stream.inbound += b"last words"
    rig.stream.eof = True
    rig.world.settle()
    assert rig.engine.received == b"last words"
    assert rig.engine.eof == 1
    assert rig.engine.aborted == ["the peer closed the connection without a word"]
    rig.assert_over()


def test_the_end_of_the_stream_after_our_close_is_in_order():
    rig = Rig().start()
    rig.engine.finished = True
    rig.stream.eof = True
    rig.world.settle()
    assert rig.engine.aborted == []
    rig.assert_over()


def test_the_engine_hears_of_a_failure_before_the_owner_does():
    rig = Rig().start()
    told = []
    rig.engine.on_process = lambda now: told.append(("engine", rig.engine.aborted))
    rig.pump._on_closed = lambda pump: told.append(("owner", rig.engine.aborted))
    rig.pump.abort("for a reason")
    assert told == [("engine", ["for a reason"]), ("owner", ["for a reason"])]


# -- writing


def test_the_first_bytes_go_out_at_start():
    rig = Rig(output=b"hello").start()
    assert rig.stream.outbound == b"hello"
    assert rig.engine.output == b""


@pytest.mark.parametrize("limit", [1, 10, 4096, None])
def test_partial_writes(limit):
    data = DATA[:3000] if limit in (1, 10) else DATA
    rig = Rig(output=data)
    rig.stream.write_limit = limit
    rig.start()
    assert rig.stream.outbound == data


def test_no_room_is_waited_for():
    rig = Rig(output=DATA)
    rig.stream.room = 1000
    rig.start()
    watch = rig.world.watches[rig.stream.fileno()]
    assert rig.stream.outbound == DATA[:1000]
    assert watch.on_writable is not None
    rig.stream.room = 100_000
    rig.world.settle()
    assert rig.stream.outbound == DATA[:101_000]
    rig.stream.room = None
    rig.world.settle()
    assert rig.stream.outbound == DATA
    # A writable stream is not waited for: it always is.
    assert watch.on_writable is None


def test_others_append_while_a_write_waits():
    rig = Rig(output=b"a" * 10)
    rig.stream.room = 4
    rig.start()
    for _ in range(5):
        rig.engine.output += b"b" * 10
        rig.world.flush_now(rig.pump)
        rig.world.flush_soon(rig.pump)
    rig.world.settle()
    assert rig.stream.outbound == b"aaaa"
    writes = len(rig.stream.writes)
    rig.stream.room = None
    rig.world.settle()
    assert rig.stream.outbound == b"a" * 10 + b"b" * 50
    assert len(rig.stream.writes) == writes + 1


def test_reading_goes_on_while_a_write_waits():
    rig = Rig(output=b"a" * 10)
    rig.stream.room = 4
    rig.start()
    rig.stream.inbound += b"credit"
    rig.world.settle()
    assert rig.engine.received == b"credit"
    assert rig.stream.outbound == b"aaaa"


def test_many_flushes_in_one_wakeup_write_once():
    rig = Rig().start()

    def work():
        for _ in range(10):
            rig.engine.output += b"x" * 100
            rig.world.flush_now(rig.pump)
            rig.world.flush_soon(rig.pump)

    rig.world._wakeup(work, work)
    assert rig.stream.writes == [2000]


def test_output_outside_a_wakeup_is_written_at_once():
    rig = Rig().start()
    rig.engine.output += b"now"
    rig.world.flush_now(rig.pump)
    assert rig.stream.outbound == b"now"


def test_a_write_that_fails_hears_the_peer_out():
    rig = Rig().start()
    rig.stream.inbound += b"why"
    rig.stream.write_error = BrokenPipeError(errno.EPIPE, "Broken pipe")
    rig.engine.output += b"x"
    rig.world.flush_now(rig.pump)
    assert rig.engine.received == b"why"
    (reason,) = rig.engine.aborted
    assert "Broken pipe" in reason
    rig.assert_over()


def test_the_stream_is_closed_when_both_ends_have_closed():
    rig = Rig().start()
    rig.engine.output += b"our close"
    rig.engine.ended = rig.engine.closed = True
    rig.stream.room = 3
    rig.world.flush_now(rig.pump)
    assert not rig.pump.closed
    rig.stream.room = None
    rig.world.settle()
    assert rig.stream.outbound == b"our close"
    assert rig.engine.aborted == []
    rig.assert_over()


@pytest.mark.parametrize("how", ["close", "abort"])
def test_it_is_over_once(how):
    rig = Rig(output=b"x" * 10)
    rig.engine.deadline = 2000.0
    rig.stream.room = 1
    rig.start()
    if how == "close":
        rig.pump.close()
    else:
        rig.pump.abort("reason")
    rig.assert_over()
    rig.pump.close()
    rig.pump.abort("another reason")
    rig.pump.flush()
    rig.world.flush_now(rig.pump)
    rig.world.advance(2000)
    rig.assert_over()
    assert rig.engine.aborted == (["reason"] if how == "abort" else [])


# -- deadlines


def test_the_engine_works_at_its_deadline():
    rig = Rig()
    rig.engine.deadline = 1010.0

    def beat(now):
        if now >= rig.engine.deadline:
            rig.engine.deadline = now + 10
            rig.engine.output += b"heartbeat."

    rig.engine.on_process = beat
    rig.start()
    rig.world.advance(45)
    assert rig.stream.outbound == b"heartbeat." * 4
    assert rig.world.timers == 1


def test_a_deadline_that_moves_moves_the_timer():
    rig = Rig()
    rig.engine.deadline = 1010.0
    rig.start()
    rig.engine.deadline = 1005.0
    rig.stream.inbound += b"x"
    rig.world.settle()
    rig.engine.processed.clear()
    rig.engine.on_process = lambda now: setattr(rig.engine, "deadline", None)
    rig.world.advance(4)
    assert rig.engine.processed == []
    rig.world.advance(2)
    assert rig.engine.processed[-1] == 1005.0
    assert rig.world.timers == 0
    processed = len(rig.engine.processed)
    rig.world.advance(100)
    assert len(rig.engine.processed) == processed


def test_a_deadline_that_came_too_early_comes_again():
    rig = Rig()
    rig.engine.deadline = 1010.0

    times = []

    def beat(now):
        # The engine counts in whole milliseconds, and finds that it is not time yet.
        if now >= 1010.0:
            times.append(now)
        if len(times) == 5:
            rig.engine.deadline = None

    rig.engine.on_process = beat
    rig.start()
    rig.world.advance(11)
    assert rig.engine.deadline is None
    assert rig.world.timers == 0


@pytest.mark.parametrize("deadline", [None, float("inf")])
def test_no_deadline_no_timer(deadline):
    rig = Rig()
    rig.engine.deadline = deadline
    rig.start()
    assert rig.world.timers == 0


def test_what_came_counts_before_the_time_does():
    rig = Rig()
    rig.engine.deadline = 1010.0
    order = []
    rig.engine.on_process = lambda now: order.append((now, bytes(rig.engine.received)))
    rig.start()
    # The hub did not run for a while, and then runs timers first.
    rig.stream.inbound += b"alive"
    rig.world.clock = 1100.0
    timer = next(each for _, _, each in rig.world._timers)
    rig.engine.deadline = None
    rig.world._wakeup(timer.callback)
    assert order[-1] == (1100.0, b"alive")


# -- with a real engine


def conversation(split=None, **knobs):
    """A call and a notification; returns how many bytes came."""
    with fakes.setting() as s:
        calling = s.call("question")
        # The stream exists once the attempt has succeeded.
        s.world._move()
        stream = s.peer.stream
        stream.split = split
        for knob, value in knobs.items():
            setattr(stream, knob, value)
        s.world.settle()
        s.peer.reply(s.peer.received[0], "answer " * 10)
        s.world.settle()
        assert calling.result() == "answer " * 10
        notifying = s.notify("body " * 20)
        s.world.settle()
        assert notifying.result() is None
        assert s.peer.received[-1].message.body == "body " * 20
        return stream._read


def test_the_stream_may_be_split_at_every_byte():
    total = conversation()
    assert total > 500
    for split in range(1, total):
        assert conversation(split) == total


def test_the_stream_may_come_and_go_byte_by_byte():
    conversation(read_limit=1, write_limit=1)


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_a_large_message_through_a_narrow_stream(size):
    body = (hashlib.sha256(b"x").hexdigest() * (size // 64 + 1))[:size]
    with fakes.setting() as s:
        s.up()
        s.peer.stream.room = 0
        large = s.notify(body)
        small = s.notify("small")
        while not small.done:
            s.peer.stream.room = 5003
            s.world.settle()
        assert large.result() is None
        assert [each.message.body for each in s.peer.received] == [body, "small"]


def test_a_large_message_comes_in():
    body = "x" * 1_000_000
    with fakes.setting() as s:
        task = s.call()
        s.world.settle()
        s.peer.stream.read_limit = 7001
        s.peer.reply(s.peer.received[0], body)
        s.world.settle()
        assert task.result() == body


def test_a_reason_that_was_sent_is_not_lost_to_a_broken_pipe():
    with fakes.setting() as s:
        s.up()
        s.peer.engine.close("amqp:connection:forced", "maintenance")
        s.peer.work()
        s.peer.stream.write_error = BrokenPipeError(errno.EPIPE, "Broken pipe")
        s.notify()
        s.world.settle()
        assert "maintenance" in s.client.connection.last_failure


def test_a_failure_has_a_type_of_its_own():
    failures = []

    class Handler(fakes.Peer):
        def connection_failed(self, connection, error):
            failures.append(error)

    world = fakes.World()
    stream = fakes.Stream()
    world.streams[stream.fileno()] = stream
    peer = Handler(world, stream)
    pump = Pump(world, stream, peer.engine)
    world.peers.clear()
    pump.start()
    stream.read_error = OSError(errno.ECONNRESET, "reset")
    world.settle()
    (failure,) = failures
    assert isinstance(failure, ConnectionFailed)
    assert "reset" in str(failure)
