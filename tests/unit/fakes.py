# SPDX-License-Identifier: Apache-2.0
"""A world without sockets, threads and time: what the client's tests run in.

:class:`World` is a hub with a clock that stands still unless a test moves it, and the
network behind it.  A client in it connects to :class:`Peer`, the other end of the
connection, which is made of the same engine.  Whoever waits is a greenlet that
:meth:`World.go` starts; the test itself is the hub's context.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import typing

import greenlet
import oslo_messaging
from oslo_config import cfg
from oslo_messaging import Target

from greenamqp import hubs
from greenamqp import options as driver_options
from greenamqp.buses import Service
from greenamqp.client import Client, Destination
from greenamqp.connection import connect
from greenamqp.connection.failover import Host
from greenamqp.connection.state import State
from greenamqp.driver import GreenAMQPDriver
from greenamqp.engine import ACCEPTED, LinkState, Message, Terminus, capi
from greenamqp.engine.sasl import AcceptedConnection, SaslServer
from greenamqp.hubs.base import Hub, Timer, Waiter, Watch
from greenamqp.listener import Listener
from tests.unit.wire import feed, output

# A world that moves this often without coming to rest has run wild.
_RESTLESS = 20_000


def conf(**overrides: typing.Any) -> cfg.ConfigOpts:
    """Configuration that no file and no other test has touched."""
    made = cfg.ConfigOpts()
    driver_options.register(made)
    made([], default_config_files=[], default_config_dirs=[])
    for name, value in overrides.items():
        made.set_override(name, value, group=driver_options.GROUP.name)
    return made


def options(**overrides: typing.Any) -> typing.Any:
    """The driver's group of options, all at their defaults but for `overrides`."""
    return conf(**overrides).oslo_messaging_amqp


def pauses(instants: typing.Iterable[float]) -> list[float]:
    """Seconds from each of these instants to the next."""
    return [after - before for before, after in itertools.pairwise(instants)]


class _Timer(Timer):
    def __init__(self, callback: typing.Callable[[], None]) -> None:
        self.callback: typing.Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class _Waiter(Waiter):
    def __init__(self, world: World) -> None:
        self._world = world
        self._woken = False
        self.greenlet: greenlet.greenlet | None = None

    def wait(self, deadline: float | None) -> bool:
        world = self._world
        current = greenlet.getcurrent()
        assert current is not world.greenlet, "the hub's context must not wait"
        while not self._woken:
            if deadline is not None and deadline <= world.now():
                return False
            if deadline is not None:
                world.waiting[self] = deadline
            self.greenlet = current
            try:
                world.greenlet.switch()
            finally:
                self.greenlet = None
                world.waiting.pop(self, None)
        self._woken = False
        return True

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._world.ready.append(self)


class _Watch(Watch):
    def __init__(
        self, world: World, fd: int, on_readable: typing.Callable[[], None]
    ) -> None:
        self._world = world
        self.fd = fd
        self.on_readable = on_readable
        self.on_writable: typing.Callable[[], None] | None = None
        assert fd not in world.watches, "watched twice"
        world.watches[fd] = self

    def want_write(self, on_writable: typing.Callable[[], None] | None) -> None:
        self.on_writable = on_writable

    def close(self) -> None:
        if self._world.watches.get(self.fd) is self:
            del self._world.watches[self.fd]


class Task:
    """Something that may wait, in a greenlet of its own."""

    def __init__(
        self, world: World, function: typing.Callable, args: tuple, kwargs: dict
    ) -> None:
        self.done = False
        self._result: typing.Any = None
        self.error: BaseException | None = None
        self._world = world
        self._greenlet = greenlet.greenlet(self._run, parent=world.greenlet)
        self._call = (function, args, kwargs)
        self._greenlet.switch()

    def _run(self) -> None:
        function, args, kwargs = self._call
        try:
            self._result = function(*args, **kwargs)
        except BaseException as exc:
            self.error = exc
        self.done = True

    def result(self) -> typing.Any:
        """What it returned; raises what it raised."""
        assert self.done, "it still waits"
        if self.error is not None:
            raise self.error
        return self._result

    def throw(self, error: BaseException) -> None:
        """Throw it out of its wait, as a green thread's time-out does."""
        self._greenlet.throw(error)


class Stream:
    """One end of a connection without a network; knobs for what networks do."""

    _numbers = itertools.count(100_000)

    def __init__(self) -> None:
        self._fd = next(self._numbers)
        self._read = 0
        #: what the other end sent and this one has not read yet
        self.inbound = bytearray()
        #: what this end wrote and the other has not taken yet
        self.outbound = bytearray()
        #: bytes that may be written before there is no room; None: any number
        self.room: int | None = None
        #: bytes that one read, one write takes at the most
        self.read_limit: int | None = None
        self.write_limit: int | None = None
        #: offset in all that is read where one read ends and the next one begins
        self.split: int | None = None
        self.eof = False
        self.read_error: OSError | None = None
        self.write_error: OSError | None = None
        self.closed = False
        #: sizes of all reads and writes that moved something
        self.reads: list[int] = []
        self.writes: list[int] = []

    def fileno(self) -> int:
        return self._fd

    def recv_into(self, buffer: memoryview) -> int:
        assert not self.closed
        if self.inbound:
            size = min(len(self.inbound), len(buffer))
            if self.read_limit is not None:
                size = min(size, self.read_limit)
            if self.split is not None and self._read < self.split:
                size = min(size, self.split - self._read)
            self._read += size
            buffer[:size] = self.inbound[:size]
            del self.inbound[:size]
            self.reads.append(size)
            return size
        if self.read_error is not None:
            raise self.read_error
        if self.eof:
            return 0
        raise BlockingIOError

    def send(self, data: memoryview) -> int:
        assert not self.closed
        assert len(data), "nothing to write"
        if self.write_error is not None:
            raise self.write_error
        size = len(data)
        if self.write_limit is not None:
            size = min(size, self.write_limit)
        if self.room is not None:
            size = min(size, self.room)
            self.room -= size
        if size == 0:
            raise BlockingIOError
        self.outbound += data[:size]
        self.writes.append(size)
        return size

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True

    @property
    def readable(self) -> bool:
        return bool(self.inbound or self.eof or self.read_error)

    @property
    def writable(self) -> bool:
        return self.room is None or self.room > 0 or self.write_error is not None


class World(Hub):
    """The hub, its clock, and all that moves."""

    name = "fake"

    def __init__(self) -> None:
        super().__init__()
        self.greenlet = greenlet.getcurrent()
        self.clock = 1000.0
        self.ready: list[_Waiter] = []
        self.waiting: dict[_Waiter, float] = {}  # those with a deadline
        self.watches: dict[int, _Watch] = {}
        self.streams: dict[int, Stream] = {}
        self.peers: list[Peer] = []
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()
        self._calls: list[typing.Callable[[], None]] = []
        self.started = 0
        #: the names by which a hub was asked for
        self.asked_for: list[str] = []
        self.stopped = 0
        #: timers that were set when the last user went
        self.left_behind = 0

    # -- for tests

    def go(
        self, function: typing.Callable, *args: typing.Any, **kwargs: typing.Any
    ) -> Task:
        """Begin something that may wait; it runs until it does."""
        return Task(self, function, args, kwargs)

    def settle(self) -> None:
        """Let everything happen that happens at this instant."""
        for _ in range(_RESTLESS):
            if not self._move():
                return
        raise AssertionError("the world does not come to rest")

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass, and everything happen that happens in them."""
        end = self.clock + seconds
        while True:
            self.settle()
            coming = [instant for instant in self._instants() if instant <= end]
            if not coming:
                break
            # What was due and has not happened waits for the next millisecond: the
            # engine counts in those.
            instant = min(coming)
            self.clock = instant if instant > self.clock else self.clock + 0.001
        self.clock = max(self.clock, end)

    @property
    def timers(self) -> int:
        """How many timers are set."""
        return sum(timer.callback is not None for _, _, timer in self._timers)

    # -- how things move

    def _instants(self) -> typing.Iterator[float]:
        for instant, _, timer in self._timers:
            if timer.callback is not None:
                yield instant
        yield from self.waiting.values()
        for peer in self.peers:
            quiet = peer.gone or peer.frozen
            if not quiet and peer.engine.deadline is not None:
                yield peer.engine.deadline

    def _move(self) -> bool:
        moved = False
        for waiter, deadline in list(self.waiting.items()):
            if deadline <= self.clock:
                del self.waiting[waiter]
                self.ready.append(waiter)
        if self.ready or self._calls or self._dirty:
            calls, self._calls = self._calls, []
            self._wakeup(*calls)
            moved = True
        while self._timers and self._timers[0][0] <= self.clock:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                callback, timer.callback = timer.callback, None
                self._wakeup(callback)
                moved = True
        for peer in list(self.peers):
            moved |= peer.work()
        for fd, watch in list(self.watches.items()):
            stream = self.streams[fd]
            assert not stream.closed, "watched after it was closed"
            if watch.on_writable is not None and stream.writable:
                self._wakeup(watch.on_writable)
                moved = True
            if self.watches.get(fd) is watch and stream.readable:
                self._wakeup(watch.on_readable)
                moved = True
        return moved

    def _wakeup(self, *callbacks: typing.Callable[[], None]) -> None:
        # No error is caught: in a test each is one too many.
        self.busy = True
        try:
            for callback in callbacks:
                callback()
            ready, self.ready = self.ready, []
            for waiter in ready:
                if waiter.greenlet is not None:
                    waiter.greenlet.switch()
            self._flush_dirty()
        finally:
            self.busy = False

    # -- the hub's contract

    def now(self) -> float:  # type: ignore[override]
        return self.clock

    def _start(self) -> None:
        self.started += 1

    def _stop(self) -> None:
        # As a hub with a loop of its own does: with the last user goes everything.
        self.stopped += 1
        self.left_behind = self.timers
        self._timers.clear()
        self._calls.clear()

    def watch(self, fd: int, on_readable: typing.Callable[[], None]) -> Watch:
        return _Watch(self, fd, on_readable)

    def call_at(self, instant: float, callback: typing.Callable[[], None]) -> Timer:
        timer = _Timer(callback)
        heapq.heappush(self._timers, (instant, next(self._order), timer))
        return timer

    def waiter(self) -> Waiter:
        return _Waiter(self)

    def spawn(self, function: typing.Callable[..., object], *args: object) -> None:
        self._calls.append(lambda: self.go(function, *args))

    def deliver(self, function: typing.Callable[[], None]) -> None:
        self.spawn(function)

    def current(self) -> typing.Hashable:
        return greenlet.getcurrent()

    def call_inside(self, callback: typing.Callable[[], None]) -> None:
        self._calls.append(callback)

    def off_thread(
        self,
        function: typing.Callable[[], typing.Any],
        done: typing.Callable[[typing.Any, BaseException | None], None],
    ) -> None:
        # What blocks takes no time here.
        self._job(function, done)()

    def flush_soon(self, pump: typing.Any) -> None:
        # As the green hubs: with the next wake-up.
        if not pump.dirty:
            pump.dirty = True
            self._dirty.append(pump)

    def foreign(self) -> bool:
        return False

    def run_inside(
        self, function: typing.Callable[..., typing.Any], *args: typing.Any
    ) -> typing.Any:
        return function(*args)


class Received(typing.NamedTuple):
    """A message that a peer got."""

    address: str
    message: Message
    settled: bool
    at: float
    link: typing.Any
    delivery: typing.Any


class Peer:
    """The bus's end of one connection.

    Every attribute may be changed at any time by the test.

    :ivar outcome: what becomes of a message: an outcome, ``(outcome, extra)`` with
        keyword arguments of ``Receiver.settle``, or None to leave it unsettled
    :ivar credit: what each link that sends to us is given at once
    :ivar refuse: addresses whose links are refused, each with condition and text
    :ivar attaches_first: what is refused is attached, and then detached
    :ivar max_message_size: of links that send to us
    :ivar silent: say and read nothing any more
    :ivar frozen: the same for now: what comes meanwhile is read later
    """

    def __init__(
        self,
        world: World,
        stream: Stream,
        host: Host | None = None,
        *,
        passwords: dict[str, str] | None = None,
        product: str = "",
        credit: int = 1000,
        answer: bool = True,
        refuse: dict[str, tuple[str, str]] | None = None,
        attaches_first: bool = False,
        outcome: typing.Callable[[Message], typing.Any] = lambda message: ACCEPTED,
        **engine_options: typing.Any,
    ) -> None:
        self.world = world
        self.stream = stream
        self.host = host
        self.events: list[tuple] = []
        self.received: list[Received] = []
        self.inbound: dict[str, typing.Any] = {}  # by address: links that send to us
        self.outbound: dict[str, typing.Any] = {}  # by address: links that we send on
        self.attaches: list[str] = []
        #: What each attach said, by address.
        self.properties: list[tuple[str, dict]] = []
        self.outcomes: list[tuple[typing.Any, int]] = []
        self.outcome = outcome
        self.credit = credit
        self.refuse: dict[str, tuple[str, str]] = dict(refuse or {})
        self.attaches_first = attaches_first
        self.max_message_size = 0
        self.silent = False
        self.frozen = False
        #: Whether links that are asked for are answered.
        self.answer = answer
        self.unanswered: list[typing.Any] = []
        self._dynamic = itertools.count(1)
        # Beyond those that the engine counts for itself.
        self._tags = itertools.count(2**32)
        if product:
            engine_options.setdefault("properties", {})["product"] = product
        sasl = SaslServer(passwords) if passwords is not None else SaslServer()
        self.engine = AcceptedConnection("bus", self, sasl, **engine_options)
        self.engine.open()
        world.peers.append(self)

    # -- moving

    @property
    def gone(self) -> bool:
        """Whether nothing comes from it any more."""
        stream = self.stream
        hung_up = stream.closed and not stream.outbound
        return self.silent or stream.eof or hung_up

    def work(self) -> bool:
        """Take what came and send what is due; returns whether anything moved."""
        if self.gone:
            self.stream.outbound.clear()
            return False
        if self.frozen:
            return False
        moved = False
        data = bytes(self.stream.outbound)
        self.stream.outbound.clear()
        if data:
            moved = True
            feed(self.engine, data, self.world.now())
        self.engine.process(self.world.now())
        while sent := output(self.engine):
            moved = True
            self.stream.inbound += sent
        return moved

    def cut(self, error: OSError | None = None) -> None:
        """The connection breaks: by the end of the stream, or an error."""
        self.stream.eof = True
        self.stream.read_error = error

    # -- what tests have it say

    def send(
        self, address: str, message: Message | bytes, settled: bool = False
    ) -> object:
        """Send to the link that receives from `address`; returns the handle that
        ``outcomes`` names it by."""
        handle = object()
        data = (
            message if isinstance(message, bytes) else self.engine.codec.encode(message)
        )
        self.outbound[address].send(data, handle, settled)
        return handle

    def begin(self, address: str, size: int) -> typing.Callable[[], None]:
        """Send the first `size` bytes of a message; returns what aborts it."""
        link = self.outbound[address]
        tag = next(self._tags).to_bytes(8, "big")
        delivery = capi.lib.pn_delivery(link._pn, (8, capi.from_buffer(tag)))
        data = self.engine.codec.encode(Message("x" * 2 * size))
        capi.lib.pn_link_send(link._pn, capi.from_buffer(data), size)
        return lambda: capi.lib.pn_delivery_abort(delivery)

    def reply(self, to: Received, body: str | None, settled: bool = False) -> object:
        """Answer a request that came."""
        reply_to = to.message.reply_to
        assert reply_to is not None
        return self.send(reply_to, Message(body, correlation_id=to.message.id), settled)

    def answer_links(self) -> None:
        """Answer all links that were not, and those to come."""
        self.answer = True
        waiting, self.unanswered = self.unanswered, []
        for link in waiting:
            self.link_requested(self.engine, link)

    # -- what happens to it

    def connection_opened(self, connection: object) -> None:
        self.events.append(("opened",))

    def connection_closed(self, connection: object, error: object) -> None:
        self.events.append(("closed", error))

    def connection_failed(self, connection: object, error: object) -> None:
        self.events.append(("failed", str(error)))

    def link_requested(self, connection: object, link: typing.Any) -> None:
        if not self.answer:
            self.unanswered.append(link)
            return
        remote = link.remote_source if link.is_sender else link.remote_target
        address = remote.address or ""
        self.properties.append((address, link.remote_properties))
        if address in self.refuse:
            self.attaches.append(address)
            if self.attaches_first:
                link.accept()
                link.close(*self.refuse[address])
            else:
                link.reject(*self.refuse[address])
            return
        if link.is_sender:
            if remote.dynamic:
                address = f"reply-{id(self):x}-{next(self._dynamic)}"
                link.accept(source=Terminus(address, dynamic=True))
            else:
                link.accept()
            self.outbound[address] = link
            link.on_settled = lambda _link, handle, outcome, _error: (
                self.outcomes.append((handle, outcome))
            )
        else:
            link.accept(max_message_size=self.max_message_size)
            self.inbound[address] = link
            link.on_message = lambda *args: self._message(address, *args)
            if self.credit:
                link.flow(self.credit)
        self.attaches.append(address)
        link.on_detached = lambda gone, _error: self._gone(address, gone)

    def _gone(self, address: str, link: object) -> None:
        for links in (self.inbound, self.outbound):
            if links.get(address) is link:
                del links[address]

    def _message(
        self, address: str, link: typing.Any, delivery: object, data: memoryview
    ) -> None:
        message = self.engine.codec.decode(data)
        settled = link.is_settled(delivery)
        self.received.append(
            Received(address, message, settled, self.world.now(), link, delivery)
        )
        outcome = self.outcome(message)
        if outcome is not None:
            extra: dict = {}
            if isinstance(outcome, tuple):
                outcome, extra = outcome
            link.settle(delivery, outcome, **extra)

    def settle(self, received: Received, outcome: int, **extra: typing.Any) -> None:
        """Settle a message that was left unsettled."""
        assert received.link.settle(received.delivery, outcome, **extra)


class Silent(Peer):
    """It says nothing, from the first byte on."""

    def work(self) -> bool:
        self.silent = True
        return super().work()


class Network:
    """What a client connects through, in place of real sockets.

    :ivar script: what becomes of each attempt in turn: a reason for it to fail, or a
        dict of arguments for the Peer; when it is used up, `default` is for all others
    """

    def __init__(self, world: World, **default: typing.Any) -> None:
        self.world = world
        self.attempts: list[tuple[float, str, int]] = []
        #: what each was told of TLS
        self.secured: list[dict[str, typing.Any]] = []
        self.peers: list[Peer] = []
        self.script: list[typing.Any] = []
        self.default: typing.Any = default
        #: seconds that an attempt takes
        self.delay = 0.0
        #: attempts that run now
        self.running: list[object] = []

    @property
    def peer(self) -> Peer:
        """The newest one."""
        return self.peers[-1]

    def destroy(self) -> None:
        """Let go of what proton holds of all of them."""
        for peer in self.peers:
            peer.engine.destroy()

    def attempt(
        self,
        hub: World,
        hostname: str,
        port: int,
        deadline: float,
        done: typing.Callable,
        **secured: typing.Any,
    ) -> object:
        """In place of greenamqp.connection.connect.Attempt."""
        self.attempts.append((hub.now(), hostname, port))
        self.secured.append(secured)
        plan = self.script.pop(0) if self.script else self.default
        running = _Attempt(self)

        def finish() -> None:
            running.end()
            if isinstance(plan, str):
                done(None, plan)
                return
            stream = Stream()
            self.world.streams[stream.fileno()] = stream
            self.peers.append(Peer(self.world, stream, **plan))
            done(stream, None)

        running.timer = hub.call_at(hub.now() + self.delay, finish)
        self.running.append(running)
        return running


class _Attempt:
    address = "the only one"
    has_others = False
    password = None
    stage = "connecting"

    def __init__(self, network: Network) -> None:
        self._network = network
        self.timer: Timer | None = None
        self.stages: list[tuple[str, float]] = []

    def end(self) -> None:
        self._network.running.remove(self)

    def cancel(self) -> None:
        if self in self._network.running:
            self.end()
            assert self.timer is not None
            self.timer.cancel()


#: Where the tests send to, if they do not care.
RPC = Destination.of(Target(topic="t"), Service.RPC)


class Setting(typing.NamedTuple):
    """A client and the world that it is in."""

    world: World
    network: Network
    client: Client

    @property
    def peer(self) -> Peer:
        """The other end of the newest connection."""
        return self.network.peer

    def send(
        self,
        body: str = "{}",
        timeout: float | None = 60.0,
        destination: Destination = RPC,
        what: str = "notification",
        **options: typing.Any,
    ) -> Task:
        """Begin to send something."""
        deadline = None if timeout is None else self.world.now() + timeout
        steps = self.client.sending(
            what,
            destination,
            lambda format: Message(body),
            deadline=deadline,
            **options,
        )
        return self.world.go(self.world.run, steps)

    def notify(self, body: str = "{}", **options: typing.Any) -> Task:
        """Begin to send what may arrive twice."""
        return self.send(body, repeatable=True, **options)

    def cast(self, body: str = "{}", **options: typing.Any) -> Task:
        """Begin to send what may not."""
        return self.send(body, what="RPC cast", **options)

    def call(
        self,
        body: str = "{}",
        timeout: float = 60.0,
        destination: Destination = RPC,
        **options: typing.Any,
    ) -> Task:
        """Begin a call."""

        def call() -> typing.Any:
            steps = self.client.calling(
                destination,
                lambda format: Message(body),
                deadline=deadline,
                **options,
            )
            return self.world.run(steps).content

        deadline = self.world.now() + timeout
        return self.world.go(call)

    def called(self, *args: typing.Any, **options: typing.Any) -> tuple[Task, Received]:
        """A call that the peer has received and accepted; with what the peer got."""
        task = self.call(*args, **options)
        self.world.settle()
        assert not task.done
        return task, self.peer.received[-1]

    def answered(self, task: Task, request: Received) -> None:
        """The peer replies to a call, which returns that."""
        self.peer.reply(request, "answer")
        self.world.settle()
        assert task.result() == "answer"

    def post(
        self,
        body: str = "{}",
        timeout: float = 60.0,
        destination: Destination = RPC,
        **options: typing.Any,
    ) -> None:
        """Send and do not wait."""
        self.client.post(
            "RPC reply",
            destination,
            lambda format: Message(body),
            deadline=self.world.now() + timeout,
            **options,
        )

    def up(self) -> None:
        """Connect."""
        task = self.notify()
        self.world.settle()
        assert task.result() is None
        assert self.client.connection.state is State.UP
        self.peer.received.clear()

    def lose(self) -> None:
        """Lose the connection and have it made again."""
        self.peer.cut()
        self.world.advance(5)
        assert self.client.connection.state is State.UP


@contextlib.contextmanager
def setting(
    hosts: typing.Sequence[Host] = (Host("bus", 5672),),
    *,
    default_exchange: str | None = "openstack",
    virtual_host: str | None = None,
    network: dict[str, typing.Any] | None = None,
    **overrides: typing.Any,
) -> typing.Iterator[Setting]:
    """A client in a world of its own; options as `overrides`.

    At the end the client is closed, and nothing of it may be left.  An error that
    was caught and logged with its traceback fails the test.
    """
    with _prepared(network or {}) as (world, net):
        client = Client(
            world, hosts, options(**overrides), default_exchange, virtual_host
        )
        yield Setting(world, net, client)
        closing = world.go(world.run, client.closing())
        world.advance(10)
        assert closing.result() is None
        leftovers(world)


@contextlib.contextmanager
def _prepared(
    network: dict[str, typing.Any],
) -> typing.Iterator[tuple[World, Network]]:
    world = World()
    mistakes = _Mistakes()
    logging.getLogger("greenamqp").addHandler(mistakes)
    net = Network(world, **network)
    original, connect.Attempt = connect.Attempt, net.attempt
    get, hubs.get = hubs.get, lambda name="auto": world.asked_for.append(name) or world
    try:
        yield world, net
        assert not mistakes.found, "\n".join(mistakes.found)
    finally:
        net.destroy()
        connect.Attempt = original
        hubs.get = get
        logging.getLogger("greenamqp").removeHandler(mistakes)


class DriverSetting(typing.NamedTuple):
    """A driver and the world that it is in."""

    world: World
    network: Network
    driver: GreenAMQPDriver

    @property
    def peer(self) -> Peer:
        """The other end of the newest connection."""
        return self.network.peer

    def send(self, target: Target | None = None, **arguments: typing.Any) -> Task:
        """Begin a cast, or a call with ``wait_for_reply=True``."""
        return self.world.go(
            self.driver.send,
            target or Target(topic="t"),
            arguments.pop("ctxt", {}),
            arguments.pop("message", {"method": "m"}),
            **arguments,
        )

    def call(self, target: Target | None = None, **arguments: typing.Any) -> Task:
        """Begin a call."""
        return self.send(target, wait_for_reply=True, **arguments)

    def notify(self, target: Target | None = None, **arguments: typing.Any) -> Task:
        """Begin to send a notification."""
        return self.world.go(
            self.driver.send_notification,
            target or Target(topic="t"),
            arguments.pop("ctxt", {}),
            arguments.pop("message", {"event_type": "e"}),
            arguments.pop("version", 2.0),
            **arguments,
        )

    def up(self, target: Target | None = None) -> None:
        """Connect, and attach the link to `target`."""
        task = self.send(target)
        self.world.settle()
        assert task.result() is None
        self.peer.received.clear()

    def listen(
        self,
        target: Target | None = None,
        batch_size: int = 1,
        batch_timeout: float | None = None,
    ) -> Listener:
        """A listener for RPC requests."""
        task = self.world.go(
            self.driver.listen,
            target or Target(topic="t", server="s"),
            batch_size,
            batch_timeout,
        )
        self.world.settle()
        return task.result()

    def listen_for_notifications(
        self,
        targets: typing.Sequence[tuple[Target, str]] = ((Target(topic="t"), "info"),),
        pool: str | None = None,
        batch_size: int = 1,
        batch_timeout: float | None = None,
    ) -> Listener:
        """A listener for notifications."""
        task = self.world.go(
            self.driver.listen_for_notifications,
            targets,
            pool,
            batch_size,
            batch_timeout,
        )
        self.world.settle()
        return task.result()


@contextlib.contextmanager
def driver(
    url: str = "amqp://bus:5672/",
    *,
    default_exchange: str | None = "openstack",
    allowed_remote_exmods: typing.Sequence[str] = (),
    network: dict[str, typing.Any] | None = None,
    configuration: cfg.ConfigOpts | None = None,
    **overrides: typing.Any,
) -> typing.Iterator[DriverSetting]:
    """A driver in a world of its own; options as `overrides`.

    At the end it is cleaned up, and nothing of it may be left.
    """
    with _prepared(network or {}) as (world, net):
        configuration = configuration or conf(**overrides)
        made = GreenAMQPDriver(
            configuration,
            oslo_messaging.TransportURL.parse(configuration, url),
            default_exchange,
            list(allowed_remote_exmods),
        )
        yield DriverSetting(world, net, made)
        cleaning = world.go(made.cleanup)
        world.advance(10)
        assert cleaning.result() is None
        leftovers(world)


class _Mistakes(logging.Handler):
    """Notes what was logged with a traceback: a callback's mistake."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter())
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(self.format(record))


def leftovers(world: World) -> None:
    """Fail if anything of a closed client is left."""
    assert world.stopped == world.started
    assert not world.watches
    assert all(stream.closed for stream in world.streams.values())
    assert world.left_behind == world.timers == 0


def attached(link: typing.Any) -> bool:
    """Whether a peer's link is up."""
    return link.state is LinkState.ATTACHED
