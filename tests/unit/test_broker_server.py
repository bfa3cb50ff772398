# SPDX-License-Identifier: Apache-2.0
"""The broker on real sockets: in this process, in each world, as a command."""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading

import pytest
import trustme
from proton import Message as ProtonMessage
from proton.utils import BlockingConnection

from greenamqp.broker import Broker
from greenamqp.connection import tls
from greenamqp.engine import LinkState, Sasl, Terminus, capi, client_connection
from tests.unit.bus import decoded, message
from tests.unit.wire import Recorder

# Only so that a test that would hang fails instead.  Seconds.
GUARD = 60.0


class SocketClient:
    """A client on a blocking socket: it runs while somebody waits for something."""

    def __init__(self, port: int, sasl: Sasl | None = None, context=None, **options):
        sock = socket.create_connection(("127.0.0.1", port), GUARD)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname="localhost")
        self.sock = sock
        self.handler = Recorder()
        self.engine = client_connection("client", self.handler, sasl=sasl, **options)
        self.engine.open()
        self._buffer = capi.ffi.new("char[]", 65536)
        self.bodies: list[bytes] = []

    def wait(self, condition) -> None:
        """Run until `condition` holds."""
        engine = self.engine
        engine.process(1.0)
        while not condition():
            while size := engine.data_to_send(self._buffer, 65536):
                self.sock.sendall(bytes(capi.ffi.buffer(self._buffer, size)))
                engine.data_sent(size)
            engine.process(1.0)
            if condition():
                return
            data = self.sock.recv(65536)
            if not data:
                engine.abort("the broker closed the connection")
            while data:
                taken = engine.receive_data(data, len(data))
                if not taken:
                    break
                data = data[taken:]
            engine.process(1.0)

    def wait_opened(self) -> SocketClient:
        self.wait(lambda: self.handler.events)
        assert self.handler.events[0] == ("opened",), self.handler.events
        return self

    def receive(self, address: str, count: int) -> list[bytes]:
        """That many messages of an address."""
        got: list[bytes] = []

        def take(link, delivery, data):
            got.append(bytes(data))
            link.settle(delivery)

        receiver = self.engine.create_receiver(Terminus(address))
        receiver.on_attached = lambda link: link.flow(count)
        receiver.on_message = take
        self.wait(lambda: len(got) == count)
        return got

    def send(self, address: str, *data: bytes) -> list[int]:
        """Send messages; returns their outcomes when all are there."""
        outcomes: list[int] = []
        sender = self.engine.create_sender(Terminus(address))
        sender.on_settled = lambda link, handle, outcome, error: outcomes.append(
            outcome
        )
        self.wait(lambda: sender.credit >= len(data))
        for each in data:
            sender.send(each, None)
        self.wait(lambda: len(outcomes) == len(data))
        return outcomes

    def close(self) -> None:
        self.sock.close()


@pytest.fixture(autouse=True)
def no_long_goodbyes(monkeypatch):
    """The clients here run only while a test waits for something."""
    monkeypatch.setattr("greenamqp.broker.STOP_TIMEOUT", 0.05)


@pytest.fixture
def broker():
    with Broker(hub="threads") as made:
        yield made


@pytest.fixture
def client(broker):
    made = SocketClient(broker.port)
    with contextlib.closing(made):
        yield made.wait_opened()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused(port: int, **options) -> list:
    """What a client that is not let in hears."""
    made = SocketClient(port, **options)
    with contextlib.closing(made):
        made.wait(lambda: made.handler.events)
        return made.handler.events


# -- in this process


def test_another_implementation_as_the_client(broker):
    connection = BlockingConnection(broker.url, timeout=GUARD)
    sender = connection.create_sender("q")
    for number in range(10):
        sender.send(ProtonMessage(body=number, ttl=60))
    assert broker.depth("q") == 10
    receiver = connection.create_receiver("q", credit=20)
    for number in range(10):
        got = receiver.receive(timeout=GUARD)
        assert got.body == number and got.delivery_count == 0
        if number % 2:
            receiver.accept()
        else:
            receiver.release(delivered=True)
    again = [receiver.receive(timeout=GUARD) for _ in range(5)]
    assert [got.body for got in again] == [0, 2, 4, 6, 8]
    assert not any(got.first_acquirer for got in again)
    dynamic = connection.create_receiver(None, dynamic=True)
    reply_to = dynamic.link.remote_source.address
    anonymous = connection.create_sender(None)
    anonymous.send(ProtonMessage(body="reply", address=reply_to))
    assert dynamic.receive(timeout=GUARD).body == "reply"
    connection.close()


def test_it_leaves_nothing_behind():
    before = open_files(), threading.active_count()
    for _ in range(3):
        broker = Broker(hub="threads").start()
        assert broker.start() is broker
        made = SocketClient(broker.port).wait_opened()
        made.send("q", message("x"))
        broker.stop()
        broker.stop()
        # In order: the client hears that it is stopped.
        made.wait(lambda made=made: len(made.handler.events) > 1)
        kind, error = made.handler.events[1]
        assert kind == "closed" and error.condition == "amqp:connection:forced"
        made.close()
    assert (open_files(), threading.active_count()) == before


def test_a_mesh_leaves_nothing_behind():
    before = open_files(), threading.active_count()
    router = {"product": "skupper-router", "mesh_delay": 0.0}
    one = Broker(hub="threads", **router).start()
    other = Broker(neighbour=one, **router).start()
    made = SocketClient(other.port).wait_opened()
    link = made.engine.create_receiver(Terminus("x"))
    made.wait(lambda: link.state is LinkState.ATTACHED)
    port = one.port
    one.kill()
    one.kill()
    one.start()
    assert one.port == port
    sender = SocketClient(one.port).wait_opened()
    waiting = sender.engine.create_sender(Terminus("x"))
    sender.wait(lambda: waiting.credit == 250)
    other.kill()
    made.wait(lambda: made.engine.failed)
    one.stop()
    other.start().stop()
    made.close()
    sender.close()
    assert (open_files(), threading.active_count()) == before


def test_stopping_does_not_wait_for_ever_for_a_peer_that_is_silent():
    broker = Broker(hub="threads").start()
    with socket.create_connection(("127.0.0.1", broker.port), GUARD) as sock:
        assert sock.recv(0) == b""
        while broker.connections == 0:
            pass
        broker.stop()
        assert sock.recv(100) == b""


def test_a_forked_child_has_no_part_in_it(broker, client):
    (accepted,) = broker._server.connections
    descriptors = [broker._server._listening.fileno(), accepted.pump._stream.fileno()]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert broker.depth("q") == broker.connections == 0
            broker.stop()
            for descriptor in descriptors:
                with pytest.raises(OSError):
                    os.fstat(descriptor)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.send("q", message("x"))
    assert broker.connections == 1


def test_a_port_that_is_taken(broker):
    threads = threading.active_count()
    with pytest.raises(OSError):
        Broker(port=broker.port, hub="threads").start()
    assert threading.active_count() == threads


def test_restarting_on_the_same_port():
    with Broker(hub="threads") as broker:
        port = broker.port
        made = SocketClient(port).wait_opened()
    made.close()
    with Broker(port=port, hub="threads") as broker:
        assert broker.port == port


def test_ipv6():
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        broker = Broker("::1", hub="threads").start()
    except OSError as exc:
        pytest.skip(f"no IPv6 here: {exc}")
    try:
        assert broker.url == f"amqp://[::1]:{broker.port}"
        connection = BlockingConnection(broker.url, timeout=GUARD)
        connection.create_sender("q").send(ProtonMessage(body="x"))
        connection.close()
    finally:
        broker.stop()


def test_cutting_connections(broker):
    clients = [SocketClient(broker.port).wait_opened() for _ in range(3)]
    assert broker.connections == 3
    assert broker.drop_connections() == 3
    for made in clients:
        made.wait(lambda made=made: len(made.handler.events) > 1)
        assert made.handler.events[1][0] == "failed"
        made.close()
    assert broker.connections == 0


def test_what_a_broken_connection_held_is_delivered_again(broker, client):
    client.send("q", message("x"))
    lost = SocketClient(broker.port).wait_opened()
    held = []
    receiver = lost.engine.create_receiver(Terminus("q"))
    receiver.on_attached = lambda link: link.flow(1)
    receiver.on_message = lambda link, delivery, data: held.append(delivery)
    lost.wait(lambda: held)
    assert broker.depth("q") == 1
    lost.close()
    (data,) = client.receive("q", 1)
    assert decoded(data).delivery_count == 1


def test_messages_of_many_sizes(client):
    data = [message(bytes(size)) for size in (0, 1, 10_000, 100_000, 3_000_000)]
    client.send("q", *data)
    assert client.receive("q", len(data)) == data


def test_a_queue_of_more_than_the_socket_takes(client):
    data = [message(bytes([number % 256]) * 20_000) for number in range(400)]
    for start in range(0, 400, 100):
        client.send("q", *data[start : start + 100])
    assert client.receive("q", 400) == data


def test_large_messages_are_refused_and_others_go_on():
    with Broker(hub="threads", max_message_size=1000) as broker:
        one = SocketClient(broker.port).wait_opened()
        errors = []
        sender = one.engine.create_sender(Terminus("q"))
        sender.on_detached = lambda link, error: errors.append(error.condition)
        one.wait(lambda: sender.credit)
        assert sender.max_message_size == 1000
        sender.send(message("x" * 2000), None)
        one.wait(lambda: errors)
        assert errors == ["amqp:link:message-size-exceeded"]
        assert one.send("q", message("small"))
        one.close()


# -- peers that are no clients


@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\n\r\n", b"AMQP\x00\x00\x09\x01", b"\x16\x03\x01"]
)
def test_a_peer_that_speaks_something_else(broker, client, greeting, caplog):
    with socket.create_connection(("127.0.0.1", broker.port), GUARD) as sock:
        sock.sendall(greeting)
        answer = b"".join(iter(lambda: sock.recv(100), b""))
    assert answer == b"AMQP\x03\x01\x00\x00"
    assert "does not speak AMQP 1.0" in caplog.text
    assert client.send("q", message("x"))


def test_a_peer_that_says_nothing():
    with Broker(hub="threads", handshake_timeout=0.05) as broker:
        with socket.create_connection(("127.0.0.1", broker.port), GUARD) as sock:
            assert sock.recv(100) == b""


def test_a_peer_that_falls_silent():
    with Broker(hub="threads", idle_timeout=1.0) as broker:
        made = SocketClient(broker.port).wait_opened()
        # Nobody lets its engine send heartbeats any more.
        made.sock.settimeout(GUARD)
        while data := made.sock.recv(4096):
            made.engine.receive_data(data, len(data))
        made.engine.process(1.0)
        kind, error = made.handler.events[-1]
        assert kind == "closed"
        assert error.condition == "amqp:resource-limit-exceeded"
        made.close()


def test_more_connections_than_allowed():
    with Broker(hub="threads", max_connections=2) as broker:
        clients = [SocketClient(broker.port).wait_opened() for _ in range(2)]
        with socket.create_connection(("127.0.0.1", broker.port), GUARD) as sock:
            assert sock.recv(100) == b""
        clients.pop().close()
        while broker.connections == 2:
            pass
        SocketClient(broker.port).wait_opened().close()
        clients.pop().close()


def test_no_descriptor_is_free(broker, client, monkeypatch, caplog):
    monkeypatch.setattr("greenamqp.broker.server._ACCEPT_PAUSE", 0.05)
    server = broker._server
    accept = server._listening
    failures = iter([OSError(24, "Too many open files")])

    class Listening:
        def __getattr__(self, name):
            return getattr(accept, name)

        def _accept(self):
            for failure in failures:
                raise failure
            return accept._accept()

    server._listening = Listening()
    SocketClient(broker.port).wait_opened().close()
    assert "no connection can be accepted" in caplog.text


# -- users, TLS


def test_users():
    with Broker(hub="threads", users={"me": "secret"}) as broker:
        made = SocketClient(broker.port, Sasl("me", "secret", "PLAIN")).wait_opened()
        assert made.send("q", message("x"))
        made.close()
        for sasl in (Sasl("me", "wrong", "PLAIN"), Sasl(mechanisms="ANONYMOUS"), None):
            assert refused(broker.port, sasl=sasl)[0][0] == "failed"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, and files of a server's and a client's certificate of it."""
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        folder / "server.pem"
    )
    client = ca.issue_cert("client.example.org", common_name="nova")
    client.private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    return folder


def context(certificates, own: bool = False) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if own:
        made.load_cert_chain(certificates / "client.pem")
    return made


def test_tls(certificates):
    server = str(certificates / "server.pem")
    with Broker(hub="threads", tls_cert=server) as broker:
        assert broker.url.endswith("/?ssl=true")
        made = SocketClient(broker.port, context=context(certificates)).wait_opened()
        data = [message(bytes(size)) for size in (1, 20_000, 2_000_000)]
        made.send("q", *data)
        assert made.receive("q", 3) == data
        made.close()


def test_a_renewed_certificate(certificates, tmp_path, caplog):
    mine = tmp_path / "server.pem"
    mine.write_bytes((certificates / "server.pem").read_bytes())
    renewed = trustme.CA()
    issued = renewed.issue_cert("localhost").private_key_and_cert_chain_pem.bytes()
    other = ssl.create_default_context(cadata=renewed.cert_pem.bytes().decode())
    with Broker(hub="threads", tls_cert=str(mine)) as broker:
        SocketClient(broker.port, context=context(certificates)).wait_opened().close()
        # Half of it is written: the one before goes on to serve.
        mine.write_bytes(issued[: len(issued) // 2])
        SocketClient(broker.port, context=context(certificates)).wait_opened().close()
        assert f"the key file '{mine}' cannot be used" in caplog.text
        mine.write_bytes(issued)
        SocketClient(broker.port, context=other).wait_opened().close()


def test_client_certificates(certificates):
    with Broker(
        hub="threads",
        tls_cert=str(certificates / "server.pem"),
        tls_ca=str(certificates / "ca.pem"),
        tls_require_client_cert=True,
        allow_anonymous=False,
    ) as broker:
        made = SocketClient(
            broker.port,
            Sasl(mechanisms="EXTERNAL"),
            context(certificates, own=True),
        ).wait_opened()
        (accepted,) = broker._server.connections
        assert accepted.peer.engine.user == "nova"
        made.close()
        with pytest.raises(OSError):
            refused(broker.port, context=context(certificates))


def test_a_client_without_tls_hears_no_amqp(certificates, caplog):
    with Broker(hub="threads", tls_cert=str(certificates / "server.pem")) as broker:
        assert refused(broker.port)[0][0] == "failed"
        with socket.create_connection(("127.0.0.1", broker.port), GUARD):
            # A handshake that is under way ends with the broker.
            while not broker._server._handshakes:
                pass
    assert "no TLS" in caplog.text


def test_files_that_cannot_be_used(certificates):
    with pytest.raises(tls.TlsSetupError, match="missing.pem"):
        Broker(tls_cert=str(certificates / "missing.pem")).start()
    with pytest.raises(ValueError, match="tls_cert"):
        Broker(tls_ca=str(certificates / "ca.pem"))


# -- in each world

WORLD = """
import os, sys
world = sys.argv[1]
if world == "eventlet":
    import eventlet
    eventlet.monkey_patch()
elif world == "gevent":
    import gevent.monkey
    gevent.monkey.patch_all()
import _socket
from greenamqp import hubs
from greenamqp.broker import Broker
from greenamqp.engine import Connection, Message, Terminus
from greenamqp.connection.pump import Pump

hub = hubs.get("blocking" if world == "blocking" else "auto")
assert hub.name == world, hub.name
before = len(os.listdir("/proc/self/fd"))
broker = Broker(hub=hub).start()
print(broker.url)

class Handler:
    def __init__(self):
        self.opened = hub.waiter()
    def connection_opened(self, connection):
        self.opened.wake()
    def connection_closed(self, connection, error):
        print("closed", error)
    def connection_failed(self, connection, error):
        print("failed", error)

hub.acquire()
sock = _socket.socket()
sock.connect(("127.0.0.1", broker.port))
sock.setblocking(False)
handler = Handler()
engine = Connection("client", handler)
got, done = [], hub.waiter()

def take(link, delivery, data):
    got.append(bytes(data))
    link.settle(delivery)
    if len(got) == 300:
        done.wake()

def send(link):
    while link.credit and sent:
        link.send(sent.pop(), None)

sent = [engine.codec.encode(Message(str(number))) for number in range(300)]
with hub.lock:
    engine.open()
    pump = Pump(hub, sock, engine)
    pump.start()
assert handler.opened.wait(hub.now() + 60)
with hub.lock:
    receiver = engine.create_receiver(Terminus("q"))
    receiver.on_attached = lambda link: link.flow(1000)
    receiver.on_message = take
    sender = engine.create_sender(Terminus("q"))
    sender.on_credit = send
    hub.flush_now(pump)
assert done.wait(hub.now() + 60)
assert broker.connections == 1
broker.stop()
with hub.lock:
    pump.close()
    engine.destroy()
hub.release()
if world in ("threads", "blocking"):
    assert len(os.listdir("/proc/self/fd")) == before
print("received", len(set(got)))
"""


@pytest.mark.parametrize("world", ["eventlet", "gevent", "threads", "blocking"])
def test_in_each_world(world, tmp_path):
    pytest.importorskip(world if world in ("eventlet", "gevent") else "sys")
    script = tmp_path / "world.py"
    script.write_text(WORLD)
    result = subprocess.run(
        [sys.executable, str(script), world],
        capture_output=True,
        text=True,
        timeout=GUARD * 2,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "received 300" in result.stdout, result.stdout + result.stderr
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr, result.stderr


# -- the command


@contextlib.contextmanager
def command(*arguments: str):
    """``greenamqp broker`` and the URL that it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "greenamqp", "broker", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("greenamqp broker listening on amqp://"), (
            line + process.stderr.read()
        )
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)]
)
def test_the_command(number, status):
    with command() as (process, url):
        connection = BlockingConnection(url, timeout=GUARD)
        connection.create_sender("q").send(ProtonMessage(body="x"))
        assert connection.create_receiver("q").receive(GUARD).body == "x"
        connection.close()
        process.send_signal(number)
        assert process.wait(GUARD) == status
        assert "Traceback" not in process.stderr.read()


def test_the_command_of_the_container():
    lines = (pathlib.Path(__file__).parents[2] / "tools/Containerfile").read_text()
    program, name, *arguments = json.loads(lines.rpartition("CMD ")[2])
    assert (program, name) == ("greenamqp", "broker")
    at = arguments.index("--port")
    assert arguments[at + 1] == re.search(r"EXPOSE (\d+)", lines)[1]
    del arguments[at : at + 2]  # for one that is free
    with command(*arguments) as (_, url):
        BlockingConnection(url, timeout=GUARD).close()


def test_the_commands_options():
    with command(
        *("--product", "qpid-dispatch-router", "--user", "me:se:cret"),
        *("--refuse-prefix", "secret", "--idle-timeout", "0", "--max-memory", "10M"),
        *("--topic-prefix", "events", "--hostname", "bus", "-vv"),
    ) as (process, url):
        port = int(url.rpartition(":")[2])
        made = SocketClient(port, Sasl("me", "se:cret", "PLAIN")).wait_opened()
        assert made.engine.remote_properties["product"] == "qpid-dispatch-router"
        errors = []
        link = made.engine.create_sender(Terminus("secret.x"))
        link.on_detached = lambda link, error: errors.append(error.condition)
        made.wait(lambda: errors)
        assert errors == ["amqp:unauthorized-access"]
        made.close()
        assert refused(port, sasl=Sasl("me", "wrong", "PLAIN"))[0][0] == "failed"
        process.terminate()
        assert process.wait(GUARD) == 0
        logged = process.stderr.read()
        assert "nothing on disk" in logged and "not for production" in logged
        assert "se:cret" not in logged


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("--user", "no-colon-hidden"), 2, "number 1 is not NAME:PASSWORD"),
        (("--product", "nobody"), 2, "qpid-cpp"),
        (("--max-links", "0"), 2, "--max-links"),
        (("--port", "99999"), 2, "0 to 65535"),
        (("--max-memory", "lots"), 2, "--max-memory"),
        (("--tls-cert", "/does/not/exist.pem"), 2, "/does/not/exist.pem"),
        (("--tls-key", "x"), 2, "tls_cert"),
    ],
)
def test_arguments_that_make_no_sense(arguments, status, text):
    result = subprocess.run(
        [sys.executable, "-m", "greenamqp", "broker", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=GUARD,
    )
    assert result.returncode == status
    assert text in result.stderr and "Traceback" not in result.stderr
    assert "hidden" not in result.stderr


def test_a_port_that_is_taken_is_said(broker):
    result = subprocess.run(
        [sys.executable, "-m", "greenamqp", "broker", "--port", str(broker.port)],
        capture_output=True,
        text=True,
        timeout=GUARD,
    )
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{broker.port}" in result.stderr


def test_it_uses_no_socket_class_that_may_be_patched(broker):
    """Its listening socket is the interpreter's own."""
    assert type(broker._server._listening) is _socket.socket
