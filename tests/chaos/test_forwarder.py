# SPDX-License-Identifier: Apache-2.0
"""The forwarder itself: what the other tests here rely upon."""

import socket
import threading

import pytest

from tests.chaos.forwarder import Forwarder

WAIT = 60


class Echo:
    """A server that sends back what it gets, and notes it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.ends: list[str] = []
        self.ended = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._run, daemon=True)]
        self._threads[0].start()

    def _run(self) -> None:
        while True:
            try:
                conn, _address = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(conn,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, conn: socket.socket) -> None:
        with conn:
            try:
                while data := conn.recv(65536):
                    conn.sendall(data)
                self.ends.append("end")
            except ConnectionResetError:
                self.ends.append("reset")
            self.ended.release()

    def stop(self) -> None:
        # A blocked accept is woken by this, not by close().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(WAIT)


@pytest.fixture
def echo():
    server = Echo()
    yield server
    server.stop()


@pytest.fixture
def forwarder(echo):
    with Forwarder(echo.port) as made:
        yield made


def connect(forwarder: Forwarder) -> socket.socket:
    return socket.create_connection(("127.0.0.1", forwarder.port), WAIT)


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the end after {len(data)} of {size} bytes"
        data += piece
    return data


PATTERN = bytes(range(256)) * 40


@pytest.mark.parametrize("split", [0, 1, 7])
def test_bytes_arrive_in_order(forwarder, split):
    forwarder.split(split)
    with connect(forwarder) as sock:
        sock.sendall(PATTERN)
        assert read(sock, len(PATTERN)) == PATTERN
    assert forwarder.figures()["up"] == len(PATTERN)


def test_a_delay_keeps_the_order(forwarder):
    forwarder.delay(0.01)
    with connect(forwarder) as sock:
        for start in range(0, 1024, 64):
            sock.sendall(PATTERN[start : start + 64])
        assert read(sock, 1024) == PATTERN[:1024]


def test_a_cut_is_a_reset_on_both_sides(forwarder, echo):
    with connect(forwarder) as sock:
        sock.sendall(b"x")
        read(sock, 1)
        assert forwarder.cut() == 1
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert echo.ended.acquire(timeout=WAIT)
    assert echo.ends == ["reset"]
    assert forwarder.figures()["now"] == 0


def test_a_close_is_an_end_on_both_sides(forwarder, echo):
    with connect(forwarder) as sock:
        sock.sendall(b"x")
        read(sock, 1)
        assert forwarder.close() == 1
        assert sock.recv(1) == b""
    assert echo.ended.acquire(timeout=WAIT)
    assert echo.ends == ["end"]


def test_a_stall_holds_everything_and_loses_nothing(forwarder):
    with connect(forwarder) as sock:
        sock.sendall(b"a")
        read(sock, 1)
        forwarder.stall()
        sock.sendall(PATTERN)
        # The figures come from the process that would have forwarded by now.
        assert forwarder.figures()["up"] == 1
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.settimeout(WAIT)
        forwarder.go()
        assert read(sock, len(PATTERN)) == PATTERN


@pytest.mark.parametrize("limit", [1, 100, 10000])
def test_a_reset_at_a_byte_on_its_way_up(forwarder, limit):
    forwarder.reset_at((limit, None))
    with connect(forwarder) as sock:
        with pytest.raises(ConnectionResetError):
            sock.sendall(PATTERN)
            read(sock, len(PATTERN))
    assert forwarder.figures()["up"] == limit
    with connect(forwarder) as sock:  # the next one has no limit
        sock.sendall(PATTERN)
        assert read(sock, len(PATTERN)) == PATTERN


def test_a_reset_at_a_byte_on_its_way_down(forwarder):
    forwarder.reset_at((None, 100))
    with connect(forwarder) as sock:
        with pytest.raises(ConnectionResetError):
            sock.sendall(PATTERN)
            read(sock, len(PATTERN))
    assert forwarder.figures()["down"] == 100


def test_refusing_and_accepting_again(forwarder):
    forwarder.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(forwarder)
    forwarder.accept()
    with connect(forwarder) as sock:
        sock.sendall(b"x")
        assert read(sock, 1) == b"x"
    assert forwarder.wait_accepted(1) == 1
    forwarder.wait_gone()


def test_cutting_over_and_over(forwarder):
    forwarder.cut_every(0.01)
    for _ in range(3):
        with connect(forwarder) as sock, pytest.raises(ConnectionResetError):
            sock.sendall(b"x")
            while True:
                assert sock.recv(1)
    forwarder.cut_every(0)
    with connect(forwarder) as sock:
        sock.sendall(PATTERN)
        assert read(sock, len(PATTERN)) == PATTERN
