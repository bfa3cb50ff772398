# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy in front of a bus, as a program, to break connections at will.

    python -m tests.functional.proxy HOST PORT

It prints the port that it listens on, then does what it is told in lines on stdin,
and answers each with a line when it is done:

    cut         close every connection, and say how many there were
    refuse      as cut, and close the listening socket
    accept      listen again, on the same port
    hold        pass no more bytes on, in either direction
    pass        pass them on again
    wait N      wait until N connections are open
    cut-in N    let N more bytes of the bus through, then cut in their midst
"""

import contextlib
import selectors
import socket
import sys


class Pair:
    """A connection from a client and the one to the bus that goes with it."""

    def __init__(self, client: socket.socket, bus: socket.socket) -> None:
        self.sockets = (client, bus)
        self.buffers = {client: bytearray(), bus: bytearray()}
        self.ended = {client: False, bus: False}

    def other(self, sock: socket.socket) -> socket.socket:
        client, bus = self.sockets
        return bus if sock is client else client


class Proxy:
    CHUNK = 65536

    def __init__(self, host: str, port: int) -> None:
        self.bus = (host, port)
        self.selector = selectors.DefaultSelector()
        self.listening: socket.socket | None = None
        self.port = 0
        self.pairs: list[Pair] = []
        self.holding = False
        self.until_cut: int | None = None
        self.wanted: int | None = None
        self.accept()

    # -- commands

    def accept(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", self.port))
        self.listening.setblocking(False)
        self.port = self.listening.getsockname()[1]
        self.selector.register(self.listening, selectors.EVENT_READ, None)

    def refuse(self) -> int:
        if self.listening is not None:
            self.selector.unregister(self.listening)
            self.listening.close()
            self.listening = None
        return self.cut()

    def cut(self) -> int:
        count = len(self.pairs)
        for pair in list(self.pairs):
            self.drop(pair)
        self.until_cut = None
        return count

    def command(self, line: str) -> None:
        word, *arguments = line.split()
        if word == "cut":
            print("cut", self.cut(), flush=True)
        elif word == "refuse":
            print("refused", self.refuse(), flush=True)
        elif word == "accept":
            self.accept()
            print("accepting", flush=True)
        elif word in ("hold", "pass"):
            self.holding = word == "hold"
            for pair in self.pairs:
                self.watch(pair)
            print(word, flush=True)
        elif word == "wait":
            self.wanted = int(arguments[0])
            self.check_wanted()
        elif word == "cut-in":
            self.until_cut = int(arguments[0])
            print("will cut", flush=True)

    def check_wanted(self) -> None:
        if self.wanted is not None and len(self.pairs) >= self.wanted:
            self.wanted = None
            print("open", len(self.pairs), flush=True)

    # -- bytes

    def run(self) -> None:
        self.selector.register(sys.stdin, selectors.EVENT_READ, "stdin")
        while True:
            for key, events in self.selector.select():
                if key.data == "stdin":
                    line = sys.stdin.readline()
                    if not line:
                        return
                    self.command(line)
                elif key.data is None:
                    self.new(key.fileobj)
                elif key.data in self.pairs:
                    self.move(key.data, key.fileobj, events)

    def new(self, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        try:
            bus = socket.create_connection(self.bus)
        except OSError:
            client.close()
            return
        pair = Pair(client, bus)
        for sock in pair.sockets:
            sock.setblocking(False)
            self.selector.register(sock, selectors.EVENT_READ, pair)
        self.pairs.append(pair)
        self.watch(pair)
        self.check_wanted()

    def watch(self, pair: Pair) -> None:
        for sock in pair.sockets:
            events = 0
            if not self.holding:
                if not pair.ended[sock] and len(pair.buffers[sock]) < self.CHUNK:
                    events |= selectors.EVENT_READ
                if pair.buffers[pair.other(sock)]:
                    events |= selectors.EVENT_WRITE
            known = sock in self.selector.get_map()
            if known and events:
                self.selector.modify(sock, events, pair)
            elif known:
                self.selector.unregister(sock)
            elif events:
                self.selector.register(sock, events, pair)

    def move(self, pair: Pair, sock: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                self.read(pair, sock)
            if pair in self.pairs and events & selectors.EVENT_WRITE:
                waiting = pair.buffers[pair.other(sock)]
                del waiting[: sock.send(waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self.drop(pair)
        if pair not in self.pairs:
            return
        if any(pair.ended[s] and not pair.buffers[s] for s in pair.sockets):
            self.drop(pair)
        else:
            self.watch(pair)

    def read(self, pair: Pair, sock: socket.socket) -> None:
        data = sock.recv(self.CHUNK)
        if not data:
            pair.ended[sock] = True
            return
        client, bus = pair.sockets
        if sock is bus and self.until_cut is not None:
            if len(data) >= self.until_cut:
                client.setblocking(True)
                client.sendall(bytes(pair.buffers[bus]) + data[: self.until_cut])
                self.cut()
                return
            self.until_cut -= len(data)
        pair.buffers[sock] += data

    def drop(self, pair: Pair) -> None:
        if pair in self.pairs:
            self.pairs.remove(pair)
        for sock in pair.sockets:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(sock)
            sock.close()


def main() -> None:
    host, port = sys.argv[1:]
    proxy = Proxy(host, int(port))
    print(proxy.port, flush=True)
    proxy.run()


if __name__ == "__main__":
    main()
