"""Streams between simulated processes, and what happens to streams.

A host is a name.  A byte that was sent arrives in order, after the latency, in pieces
that the seed cuts; how much a read or a write takes is the seed's choice, too.  A
connection can be reset in the middle of a frame; a way between two hosts can stand
still and go on, which TCP makes good, or be dead for the connections that it has; a
host can refuse connections, or let them hang; a name can have no address.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import typing

from tests.simulation.world import SimHub, SimWatch, World

# Bytes that a stream holds which the other end has not read.
_ROOM = 128 * 1024

# The login as nobody, as proton does it by itself.  With Cyrus SASL it has the name of
# this machine as well: a run is to depend on neither.
_NOBODY = b"\0\0\0\x24\x02\x01\0\0\0SA\xc0\x17\x02\xa3\x09ANONYMOUS\xa0\x09anonymous"
_BY_CYRUS = re.compile(
    rb"....\x02\x01\0\0\0SA\xc0.\x02\xa3\x09ANONYMOUS\xa0(.)anonymous@", re.DOTALL
)


class Sim(typing.NamedTuple):
    """How a network behaves all the time, in seconds and bytes."""

    latency: float = 0.0005
    jitter: float = 0.001
    #: how likely a read or write is cut short
    short: float = 0.2


ORDINARY = Sim()

# As within one machine: all of it, at once.
LOCAL = Sim(0.0, 0.0, 0.0)


class SimSocket:
    """As far as greenamqp uses one."""

    family = socket.AF_INET

    def __init__(self, network: SimNetwork, hub: SimHub) -> None:
        self.network = network
        self.hub = hub
        self.fd = network.take(self)
        self.watch: SimWatch | None = None
        self.peer: SimSocket | None = None
        self.inbound = bytearray()
        self.closed = False
        self.error = 0
        self.where: typing.Any = None
        #: who is connected and was not accepted; None: it does not listen
        self.backlog: list[SimSocket] | None = None
        self._connected = False
        self._eof = False
        # Bytes that are under way to the other end, and when the last of them arrive.
        self._under_way = 0
        self._arrival = 0.0
        #: what is sent gets nowhere, and nobody says so
        self.dead = False
        #: the connection breaks in the middle of what is sent next
        self.breaks = False
        # What is left of a login by Cyrus SASL, and what is sent in its place.
        self._login, self._instead = 0, b""

    # -- what a hub sees

    def fileno(self) -> int:
        return self.fd

    def readable(self) -> bool:
        return bool(self.inbound or self._eof or self.error or self.backlog)

    def writable(self) -> bool:
        return bool(self.error) or (self._connected and self._room() > 0)

    def _room(self) -> int:
        peer = self.peer
        held = len(peer.inbound) if peer is not None else 0
        return _ROOM - held - self._under_way

    def _changed(self) -> None:
        if self.watch is not None:
            self.watch.look()

    # -- what its owner does

    def setsockopt(self, *_args: object) -> None:
        pass

    def setblocking(self, _blocking: bool) -> None:
        pass

    def getsockopt(self, _level: int, _option: int) -> int:
        error, self.error = self.error, 0
        return error

    def getsockname(self) -> typing.Any:
        return self.where

    def connect_ex(self, address: typing.Any) -> int:
        self.where = address
        self.network.connect(self, address)
        return errno.EINPROGRESS

    def recv_into(self, buffer: memoryview) -> int:
        assert not self.closed, "read after it was closed"
        if self.inbound:
            size = min(len(self.inbound), len(buffer))
            size = self.network.cut_short(size)
            buffer[:size] = self.inbound[:size]
            del self.inbound[:size]
            if self.peer is not None and self.peer.watch is not None:
                self.peer.watch.look_for_room()
            return size
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if self._eof:
            return 0
        raise BlockingIOError

    def recv(self, size: int) -> bytes:
        buffer = bytearray(size)
        taken = self.recv_into(memoryview(buffer))
        return bytes(buffer[:taken])

    def send(self, data: typing.Any) -> int:
        assert not self.closed, "written after it was closed"
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if self._eof and self.peer is None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        data = bytes(data)
        if by_cyrus := _BY_CYRUS.match(data):
            self._login = by_cyrus.end(1) + by_cyrus[1][0]
            self._instead = _NOBODY
        data = self._instead + data[self._login :]
        size = min(len(data), self._room())
        if size <= 0 or not self._connected:
            raise BlockingIOError
        size = self.network.cut_short(size)
        self._under_way += size
        self.network.carry(self, data[:size])
        return self._taken(size)

    def _taken(self, size: int) -> int:
        """How much that was of what its owner sent."""
        if size < len(self._instead):
            self._login -= size
            self._instead = self._instead[size:]
            return size
        size += self._login - len(self._instead)
        self._login, self._instead = 0, b""
        return size

    def close(self) -> None:
        assert not self.closed, "closed twice"
        assert self.watch is None, "closed while it is watched"
        self._leave(bool(self.inbound))

    def detach(self) -> int:
        """A descriptor that its owner closes, in a child: this end is closed when the
        parent ends as well."""
        self.watch = None
        return os.open(os.devnull, os.O_RDONLY)

    def crash(self) -> None:
        """Its process is killed: the operating system closes it."""
        if not self.closed:
            self._leave(bool(self.inbound))

    def _leave(self, rudely: bool) -> None:
        self.closed = True
        self.network.give_back(self)
        for waiting in self.backlog or ():
            waiting._leave(True)
        if self.backlog is not None:
            self.network.forget(self)
        if self.peer is not None:
            self.network.say_goodbye(self, rudely)

    # -- what the network does

    def established(self, peer: SimSocket) -> None:
        self.peer = peer
        self._connected = True
        self._changed()

    def fail(self, error: int) -> None:
        """It ends with an error: what is under way is lost."""
        if not self.closed and not self.error:
            self.error = error
            self.peer = None
            self._connected = False
            self._changed()

    def arrive(self, sender: SimSocket, data: bytes) -> None:
        """Bytes come in."""
        sender._under_way -= len(data)
        if self.closed:
            sender.fail(errno.ECONNRESET)  # nobody is there to read them
        elif not self.error and self.peer is sender:
            self.inbound += data
            self._changed()

    def end(self) -> None:
        """The other end closed."""
        self._eof = True
        self.peer = None
        self._changed()


class _View:
    """What one process sees of it, as greenamqp.hubs.network.Network has it."""

    def __init__(self, network: SimNetwork, hub: SimHub) -> None:
        self._network = network
        self._hub = hub

    @property
    def sockets(self) -> dict[int, SimSocket]:
        return self._network.sockets

    def owned(self) -> list[SimSocket]:
        """The process's sockets."""
        return [sock for sock in self.sockets.values() if sock.hub is self._hub]

    def look_up(self, hostname: str, port: int) -> list[tuple[typing.Any, ...]]:
        hub, network = self._hub, self._network
        pause = network.rng.random() * network.look_up_time
        hub.waiter().wait(hub.now() + pause)
        if hostname in network.nameless:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name lookup")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (hostname, port))]

    def socket(self, family: int, kind: int, proto: int) -> SimSocket:
        return SimSocket(self._network, self._hub)

    def listen(self, host: str, port: int, backlog: int) -> SimSocket:
        sock = SimSocket(self._network, self._hub)
        sock.where = (host, port or 5672)
        sock.backlog = []
        assert sock.where not in self._network.listening, "address in use"
        self._network.listening[sock.where] = sock
        return sock

    def accept(self, listening: SimSocket) -> tuple[SimSocket, typing.Any]:
        if not listening.backlog:
            raise BlockingIOError
        sock = listening.backlog.pop(0)
        return sock, sock.where


class SimNetwork:
    """All streams of a world."""

    def __init__(self, world: World, sim: Sim = ORDINARY) -> None:
        self.world = world
        self.rng = world.rng
        self.sim = sim
        self.sockets: dict[int, SimSocket] = {}
        self.listening: dict[typing.Any, SimSocket] = {}
        self._next_fd = 3
        #: seconds that looking a name up takes at the most
        self.look_up_time = 0.01
        # Hosts whose names have no address, that refuse, where connecting hangs.
        self.nameless: set[str] = set()
        self.refusing: set[str] = set()
        self.hanging: set[str] = set()
        # Until when nothing moves on the way from or to a host.
        self.still_until: dict[str, float] = {}
        #: told of what happens, for people
        self.note: typing.Callable[..., None] = lambda *_args: None
        self._ports = 40000

    def of(self, hub: SimHub) -> _View:
        """What a process sees of it."""
        return _View(self, hub)

    def take(self, sock: SimSocket) -> int:
        """A descriptor for a socket."""
        self._next_fd += 1
        self.sockets[self._next_fd] = sock
        return self._next_fd

    def give_back(self, sock: SimSocket) -> None:
        del self.sockets[sock.fd]

    def forget(self, listening: SimSocket) -> None:
        self.listening.pop(listening.where, None)

    def cut_short(self, size: int) -> int:
        """How much of `size` bytes one read or write takes."""
        if size > 1 and self.rng.random() < self.sim.short:
            return self.rng.randrange(1, size)
        return size

    def _delay(self, one: SimSocket) -> float:
        sim = self.sim
        delay = sim.latency + self.rng.random() * sim.jitter
        still = max(
            self.still_until.get(one.hub.process, 0.0),
            self.still_until.get(one.peer.hub.process, 0.0) if one.peer else 0.0,
        )
        return max(self.world.clock + delay, still + delay)

    # -- connections

    def connect(self, sock: SimSocket, address: typing.Any) -> None:
        """Have `sock` connected, refused, or left hanging."""
        host = address[0]
        pause = 1.0
        delay = 2 * (self.sim.latency + self.rng.random() * self.sim.jitter)

        def arrive() -> None:
            nonlocal pause
            if sock.closed:
                return
            still = self.still_until.get(host, 0.0) > self.world.clock
            if still or host in self.hanging:
                # Lost on the way: it is asked again after 1, 2, 4 s and so on.
                self.world.call_at(self.world.clock + pause, arrive)
                pause *= 2
                return
            listening = self.listening.get(address)
            if listening is None or host in self.refusing:
                sock.fail(errno.ECONNREFUSED)
                return
            self._ports += 1
            other = SimSocket(self, listening.hub)
            other.where = (sock.hub.process, self._ports)
            other.established(sock)
            sock.established(other)
            assert listening.backlog is not None
            listening.backlog.append(other)
            listening._changed()
            self.note("network", f"{sock.hub.process} is connected to {host}")

        self.world.call_at(self.world.clock + delay, arrive)

    def carry(self, sender: SimSocket, data: bytes) -> None:
        """Bytes on their way."""
        receiver = sender.peer
        assert receiver is not None
        if sender.dead or receiver.dead:
            return
        if sender.breaks:
            data = data[: self.rng.randrange(len(data) + 1)]
            self._later(sender, lambda: self._break(sender, receiver, data))
        else:
            self._later(sender, lambda: receiver.arrive(sender, data))

    def _break(self, sender: SimSocket, receiver: SimSocket, data: bytes) -> None:
        if sender.peer is receiver:
            receiver.arrive(sender, data)
            self.reset(receiver)

    def say_goodbye(self, sender: SimSocket, rudely: bool) -> None:
        """The end of the stream on its way, or a reset, which what is under way may not
        survive."""
        receiver = sender.peer
        assert receiver is not None
        if sender.dead or receiver.dead:
            return
        if rudely:
            self._later(sender, lambda: receiver.fail(errno.ECONNRESET))
        else:
            self._later(sender, receiver.end)

    def _later(self, sender: SimSocket, arrive: typing.Callable[[], None]) -> None:
        if self.sim is LOCAL:
            arrive()
        else:
            at = sender._arrival = max(sender._arrival, self._delay(sender))
            self.world.call_at(at, arrive)

    def connections(self) -> list[SimSocket]:
        """Ends of connections, those that connected, by descriptor."""
        return [
            sock
            for _, sock in sorted(self.sockets.items())
            if sock.peer is not None and sock.backlog is None
        ]

    def reset(self, sock: SimSocket) -> None:
        """Cut a connection, wherever its bytes are: both ends have an error."""
        peer = sock.peer
        if self.rng.random() < 0.5:
            sock.inbound.clear()
        sock.fail(errno.ECONNRESET)
        if peer is not None:
            peer.fail(errno.ECONNRESET)

    def cut(self, sock: SimSocket) -> None:
        """Reset a connection in the middle of what either end sends next."""
        for end in (sock, sock.peer):
            if end is not None:
                end.breaks = True

    def kill_silently(self, sock: SimSocket) -> None:
        """Nothing gets through any more, and nobody says so."""
        sock.dead = True
        if sock.peer is not None:
            sock.peer.dead = True

    def pair(self, hub: SimHub) -> tuple[SimSocket, SimSocket]:
        """Two ends in one process."""
        one, other = SimSocket(self, hub), SimSocket(self, hub)
        one.established(other)
        other.established(one)
        return one, other
