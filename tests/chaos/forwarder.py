# SPDX-License-Identifier: Apache-2.0
"""A TCP forwarder that mistreats the connections it carries, but reorders nothing.

As a program it forwards from a port of its own to one target and takes commands, one
in a line, on its standard input; each is answered by one line of JSON:

    python -m tests.chaos.forwarder HOST PORT

:class:`Forwarder` starts it in a process of its own, so that it goes on whatever a
test does to the process that it tests, and has a method for each command.
"""

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys

from tests.functional import buses

# One read takes up to this much.  Bytes.
_CHUNK = 64 * 1024

#: Seconds that a command may take which waits for something to happen.
WAIT = 60


class _Link:
    """One connection through the forwarder."""

    def __init__(self, relay: "_Relay", near: socket.socket) -> None:
        self.relay = relay
        self.near = near
        self.far: socket.socket | None = None
        self.tasks: list[asyncio.Task] = []
        # Reset when so many bytes have gone that way; None: not.
        self.up_limit, self.down_limit = relay.next_limits()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self.relay.running.wait()
            self.far = socket.socket()
            self.far.setblocking(False)
            await loop.sock_connect(self.far, self.relay.target)
            for sock in (self.near, self.far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.tasks = [
                asyncio.create_task(self._pipe(self.near, self.far, "up")),
                asyncio.create_task(self._pipe(self.far, self.near, "down")),
            ]
            # The end of one direction is the end of both: AMQP has no half-open
            # connections.
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass
        finally:
            self.end(reset=False)

    async def _pipe(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        loop = asyncio.get_running_loop()
        relay = self.relay
        limit = self.up_limit if way == "up" else self.down_limit
        gone = 0
        with contextlib.suppress(OSError):
            while True:
                await relay.running.wait()
                data = await loop.sock_recv(source, _CHUNK)
                # Stalled while it waited: what was read is held as well.
                await relay.running.wait()
                if not data:
                    return
                if relay.delay:
                    await asyncio.sleep(relay.delay)
                if limit is not None and gone + len(data) >= limit:
                    await loop.sock_sendall(sink, data[: limit - gone])
                    relay.count(way, limit - gone)
                    self.end(reset=True)
                    return
                step = relay.split or len(data)
                for start in range(0, len(data), step):
                    await loop.sock_sendall(sink, data[start : start + step])
                    if relay.split:
                        await asyncio.sleep(0)
                gone += len(data)
                relay.count(way, len(data))

    def end(self, reset: bool) -> None:
        """Close both sides; with a reset, what is under way is thrown away."""
        if self not in self.relay.links:
            return
        self.relay.links.discard(self)
        for task in self.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for sock in (self.near, self.far):
            if sock is None:
                continue
            with contextlib.suppress(OSError):
                if reset:
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                sock.close()
        self.relay.changed()


class _Relay:
    """The forwarder itself, inside its process."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.links: set[_Link] = set()
        self.running = asyncio.Event()
        self.running.set()
        self.delay = 0.0
        self.split = 0
        self.accepted = 0
        self.bytes = {"up": 0, "down": 0}
        self._limits: list[tuple[int | None, int | None]] = []
        self._change = asyncio.Condition()
        self._listener: socket.socket | None = None
        self._acceptor: asyncio.Task | None = None
        self._cutter: asyncio.Task | None = None
        self._port = 0
        self._tasks: set[asyncio.Task] = set()

    def next_limits(self) -> tuple[int | None, int | None]:
        return self._limits.pop(0) if self._limits else (None, None)

    def count(self, way: str, size: int) -> None:
        self.bytes[way] += size

    def changed(self) -> None:
        async def tell() -> None:
            async with self._change:
                self._change.notify_all()

        self._keep(asyncio.create_task(tell()))

    def _keep(self, task: asyncio.Task) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _address = await loop.sock_accept(listener)
            near.setblocking(False)
            self.accepted += 1
            link = _Link(self, near)
            self.links.add(link)
            self._keep(asyncio.create_task(link.run()))
            self.changed()

    # -- the commands

    async def do_accept(self) -> int:
        if self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            listener.listen(1024)
            listener.setblocking(False)
            self._port = listener.getsockname()[1]
            self._listener = listener
            self._acceptor = asyncio.create_task(self._accept(listener))
        return self._port

    async def do_refuse(self) -> None:
        if self._listener is not None and self._acceptor is not None:
            self._acceptor.cancel()
            self._listener.close()
            self._listener = None

    async def do_cut(self) -> int:
        links = list(self.links)
        for link in links:
            link.end(reset=True)
        return len(links)

    async def do_close(self) -> int:
        links = list(self.links)
        for link in links:
            link.end(reset=False)
        return len(links)

    async def do_cut_every(self, seconds: float) -> None:
        if self._cutter is not None:
            self._cutter.cancel()
            self._cutter = None

        async def cut() -> None:
            while True:
                await asyncio.sleep(seconds)
                await self.do_cut()

        if seconds:
            self._cutter = asyncio.create_task(cut())

    async def do_stall(self) -> None:
        self.running.clear()

    async def do_go(self) -> None:
        self.running.set()

    async def do_delay(self, seconds: float) -> None:
        self.delay = seconds

    async def do_split(self, size: int) -> None:
        self.split = size

    async def do_reset_at(self, limits: list[list[int | None]]) -> None:
        self._limits = [(up, down) for up, down in limits]

    async def do_target(self, host: str, port: int) -> None:
        self.target = (host, port)

    async def do_figures(self) -> dict[str, int]:
        return {
            "accepted": self.accepted,
            "now": len(self.links),
            "up": self.bytes["up"],
            "down": self.bytes["down"],
        }

    async def do_wait_accepted(self, count: int) -> int:
        async with self._change:
            await asyncio.wait_for(
                self._change.wait_for(lambda: self.accepted >= count), WAIT
            )
        return self.accepted

    async def do_wait_gone(self) -> None:
        async with self._change:
            await asyncio.wait_for(self._change.wait_for(lambda: not self.links), WAIT)


async def _serve(host: str, port: int) -> None:
    relay = _Relay((host, port))
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    print(json.dumps({"result": await relay.do_accept()}), flush=True)
    while line := await reader.readline():
        name, *arguments = json.loads(line)
        try:
            answer = {"result": await getattr(relay, f"do_{name}")(*arguments)}
        except Exception as exc:
            answer = {"error": repr(exc)}
        print(json.dumps(answer), flush=True)


class Forwarder:
    """A forwarder to ``port`` on this machine, in a process of its own.

    Use it as a context manager, or stop() it.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.forwarder", host, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=buses.ROOT,
            env=buses.plain_environment(),
            preexec_fn=buses.die_with_parent,
        )
        self.port: int = self._answer()

    def __enter__(self) -> "Forwarder":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; its connections end with it."""
        self._process.stdin.close()
        self._process.wait(WAIT)
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the forwarder ended: {self._process.wait(WAIT)}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the forwarder failed: {answer['error']}")
        return answer["result"]

    def _do(self, name: str, *arguments: object):
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        return self._answer()

    def cut(self) -> int:
        """Reset all connections, throwing away what is under way; returns how many."""
        return self._do("cut")

    def close(self) -> int:
        """Close all connections in order, at any byte; returns how many."""
        return self._do("close")

    def cut_every(self, seconds: float) -> None:
        """Cut all connections over and over; 0: no longer."""
        self._do("cut_every", seconds)

    def refuse(self) -> None:
        """Refuse new connections until accept()."""
        self._do("refuse")

    def accept(self) -> None:
        """Accept connections again."""
        self._do("accept")

    def stall(self) -> None:
        """Forward nothing until go(), without a word to either side."""
        self._do("stall")

    def go(self) -> None:
        """Forward again, what was held included."""
        self._do("go")

    def delay(self, seconds: float) -> None:
        """Hold each piece of data so long; the order stays."""
        self._do("delay", seconds)

    def split(self, size: int) -> None:
        """Pass on at most so many bytes at a time; 0: as they come."""
        self._do("split", size)

    def reset_at(self, *limits: tuple[int | None, int | None]) -> None:
        """Reset the next connections, in turn, when so many bytes went up (to the
        target) or down; None: no limit that way."""
        self._do("reset_at", limits)

    def forward_to(self, port: int, host: str = "127.0.0.1") -> None:
        """Forward new connections there."""
        self._do("target", host, port)

    def figures(self) -> dict[str, int]:
        """Connections accepted so far and open now, bytes up and down."""
        return self._do("figures")

    def wait_accepted(self, count: int) -> int:
        """Wait until so many connections were accepted in all; returns how many."""
        return self._do("wait_accepted", count)

    def wait_gone(self) -> None:
        """Wait until no connection is left."""
        self._do("wait_gone")


def main() -> None:
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))


if __name__ == "__main__":
    main()
