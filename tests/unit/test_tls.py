# SPDX-License-Identifier: Apache-2.0
"""TLS streams over memory: every way in which bytes can be cut up or lost."""

import random
import ssl

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from greenamqp.connection import tls
from greenamqp.connection.pump import BUFFER_SIZE

PASSWORD = "hOrSe-bAtTeRy-9"


class Wire:
    """One end of a connection without a network."""

    def __init__(self) -> None:
        self.other: Wire
        self.inbound = bytearray()
        #: bytes that one write, one read takes at the most
        self.write_limit: int | None = None
        self.read_limit: int | None = None
        #: bytes that may be on their way; None: any number
        self.room: int | None = None
        self.eof = False
        self.closed = False
        self.error: OSError | None = None

    @classmethod
    def pair(cls) -> "tuple[Wire, Wire]":
        one, other = cls(), cls()
        one.other, other.other = other, one
        return one, other

    def recv_into(self, buffer) -> int:
        size = min(len(buffer), len(self.inbound), self.read_limit or 2**30)
        if size:
            buffer[:size] = self.inbound[:size]
            del self.inbound[:size]
            return size
        if self.eof:
            return 0
        raise BlockingIOError

    def send(self, data) -> int:
        assert len(data)
        if self.error is not None:
            raise self.error
        size = min(len(data), self.write_limit or 2**30)
        if self.room is not None:
            size = min(size, self.room - len(self.other.inbound))
        if size <= 0:
            raise BlockingIOError
        self.other.inbound += data[:size]
        return size

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True
        self.other.eof = True


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Paths of PEM files by their names."""
    folder = tmp_path_factory.mktemp("pem")
    ca, stranger = trustme.CA(), trustme.CA()
    made = {}

    def keep(name: str, data: bytes) -> None:
        made[name] = str(folder / f"{name}.pem")
        (folder / f"{name}.pem").write_bytes(data)

    server = ca.issue_cert("bus.example", "10.0.0.1", "*.cloud.example")
    client = ca.issue_cert("alice.example", common_name="alice")
    keep("ca", ca.cert_pem.bytes())
    keep("stranger-ca", stranger.cert_pem.bytes())
    keep("server", server.private_key_and_cert_chain_pem.bytes())
    keep("client", client.private_key_and_cert_chain_pem.bytes())
    keep("client-cert", client.cert_chain_pems[0].bytes())
    keep("client-key", client.private_key_pem.bytes())
    keep("server-key", server.private_key_pem.bytes())
    keep("noise", b"no certificate at all\n")
    key = serialization.load_pem_private_key(client.private_key_pem.bytes(), None)
    keep(
        "client-key-encrypted",
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(PASSWORD.encode()),
        ),
    )
    return made


def streams(files, name="bus.example", *, require=False, **client):
    """Both ends of a connection, before their handshake, and its wires."""
    ours, theirs = Wire.pair()
    server_context = tls.server_context(
        files["server"],
        ca_file=files["ca"] if require else "",
        require_client_cert=require,
    )
    client_context = tls.client_context(client.pop("ca_file", files["ca"]), **client)
    return (
        tls.client_stream(ours, client_context, name),
        tls.server_stream(theirs, server_context),
        ours,
        theirs,
    )


def shake(*ends):
    """Drive handshakes until all are complete."""
    left = list(ends)
    for _ in range(10_000):
        left = [end for end in left if not end.shake()]
        if not left:
            return
    raise AssertionError("the handshake does not end")


def failure(first, second):
    """Drive handshakes until one fails; returns the error of each, None if none."""
    errors = {}
    for _ in range(10_000):
        for end in (first, second):
            if end in errors:
                continue
            try:
                end.shake()
            except tls.TlsError as exc:
                errors[end] = str(exc)
                end.close()
        if len(errors) == 2:
            break
    return errors.get(first), errors.get(second)


def read_all(stream) -> bytes:
    """All that can be read now, as a pump reads."""
    buffer = memoryview(bytearray(BUFFER_SIZE))
    data = b""
    while True:
        try:
            size = stream.recv_into(buffer)
        except BlockingIOError:
            return data
        if size == 0:
            return data
        data += bytes(buffer[:size])


@pytest.mark.parametrize("name", ["bus.example", "10.0.0.1", "nova.cloud.example"])
def test_handshake(files, name):
    client, server, *_ = streams(files, name)
    shake(client, server)
    assert client.version == server.version == "TLSv1.3"
    assert server.peer_name is None
    assert client.peer_name


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_handshake_in_pieces(files, limit):
    client, server, ours, theirs = streams(files)
    for wire in (ours, theirs):
        wire.read_limit = wire.write_limit = limit
        wire.room = 3 * limit
    waited = 0
    left = [client, server]
    while left:
        for end in (client, server):
            if end not in left:
                read_all(end)  # tickets, with TLS 1.3
            elif end.shake():
                left.remove(end)
            else:
                waited += end.wants_write
    assert waited


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other.example", "mismatch"),
        ("10.0.0.2", "mismatch"),
        ("a.b.cloud.example", "mismatch"),
    ],
)
def test_wrong_name(files, name, reason):
    client, server, *_ = streams(files, name)
    mine, theirs = failure(client, server)
    assert reason in mine and name in mine
    assert "refused our certificate" in theirs


def test_unknown_ca(files):
    client, server, *_ = streams(files, ca_file=files["stranger-ca"])
    mine, theirs = failure(client, server)
    assert "certificate does not verify" in mine
    assert "does not trust the CA" in theirs


def test_client_certificate(files):
    client, server, *_ = streams(files, require=True, cert_file=files["client"])
    shake(client, server)
    assert server.peer_name == "alice"


def test_client_certificate_is_missing(files):
    client, server, *_ = streams(files, require=True)
    with pytest.raises(tls.TlsError, match="showed no certificate"):
        shake(client, server)
    server.close()
    # With TLS 1.3 the client's own handshake was complete before.
    with pytest.raises(tls.TlsError, match="requires a certificate"):
        client.recv_into(memoryview(bytearray(BUFFER_SIZE)))


@pytest.mark.parametrize(
    "key, password", [("client-key", None), ("client-key-encrypted", PASSWORD)]
)
def test_key_in_a_file_of_its_own(files, key, password):
    client, server, *_ = streams(
        files,
        require=True,
        cert_file=files["client-cert"],
        key_file=files[key],
        key_password=password,
    )
    shake(client, server)
    assert server.peer_name == "alice"


@pytest.mark.parametrize(
    ("cert", "key", "password", "problem"),
    [
        ("client-cert", "client-key-encrypted", None, "no password for it is given"),
        ("client-cert", "client-key-encrypted", "", "no password for it is given"),
        ("client-cert", "client-key-encrypted", "wrong-pass", "is its password right"),
        ("client-cert", "client-key-encrypted", "wrong" * 999, "is its password right"),
        ("client-cert", "server-key", None, "not that of the certificate"),
        ("client-cert", "noise", None, "private key"),
        ("client-cert", "missing", None, "cannot be read: No such file"),
        ("missing", "client-key", None, "cannot be read: No such file"),
        ("noise", "client-key", None, "certificate"),
        ("client-cert", "", None, "private key"),
    ],
)
def test_unusable_identity(files, cert, key, password, problem, tmp_path):
    missing = str(tmp_path / "missing.pem")
    paths = [files.get(name, missing) if name else "" for name in (cert, key)]
    with pytest.raises(tls.TlsSetupError, match=problem) as caught:
        tls.client_context(files["ca"], *paths, password)
    error = caught.value
    assert any(path and path in str(error) for path in paths)
    if password:
        assert password not in str(error)
        assert error.__context__ is None


@pytest.mark.parametrize("ca", ["noise", "missing"])
def test_unusable_ca(files, ca, tmp_path):
    path = files.get(ca, str(tmp_path / "missing.pem"))
    with pytest.raises(tls.TlsSetupError, match="CA file") as caught:
        tls.client_context(path)
    assert path in str(caught.value)


def test_a_server_that_requires_certificates_needs_a_ca(files):
    with pytest.raises(tls.TlsSetupError, match="no CA file"):
        tls.server_context(files["server"], require_client_cert=True)


@pytest.mark.parametrize("name", ["", ".example", "a" * 300 + ".example"])
def test_no_host_name(files, name):
    with pytest.raises(tls.TlsSetupError, match="no host name"):
        streams(files, name)


def test_minimum_version(files):
    for context in (tls.client_context(), tls.server_context(files["server"])):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_client_verifies(files):
    for context in (tls.client_context(), tls.client_context(files["ca"])):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname


@pytest.mark.parametrize("seed", range(10))
def test_all_bytes_arrive(files, seed):
    """However the network cuts them up, and whenever it has no room."""
    chance = random.Random(seed)
    client, server, ours, theirs = streams(files)
    shake(client, server)
    data = chance.randbytes(400_000)
    view = memoryview(data)
    sent, got = 0, b""
    while len(got) < len(data):
        for wire in (ours, theirs):
            wire.read_limit = chance.choice([None, 1000, 20_000])
            wire.write_limit = chance.choice([None, 1, 5000])
            wire.room = chance.choice([100, 30_000, 100_000])
        if sent < len(data):
            try:
                sent += client.send(view[sent : sent + BUFFER_SIZE])
            except BlockingIOError:
                pass
        got += read_all(server)
    assert got == data
    assert sent == len(data) or client.send(view[sent:]) == len(data) - sent


def test_nothing_that_was_read_is_held_back(files):
    """After a read that gave less than the whole buffer only the socket has more."""
    client, server, ours, theirs = streams(files)
    shake(client, server)
    buffer = memoryview(bytearray(BUFFER_SIZE))
    sent = sum(client.send(memoryview(bytes(50_000))) for _ in range(20))
    got = 0
    while got < sent:
        assert theirs.inbound, "the rest is neither given nor in the socket"
        got += server.recv_into(buffer)
    with pytest.raises(BlockingIOError):
        server.recv_into(buffer)


def test_bytes_with_the_end_of_the_handshake(files):
    """What came in one piece with it does not wait for more."""
    client, server, ours, theirs = streams(files)
    client.shake()
    server.shake()
    assert client.shake()
    client.send(memoryview(b"early"))
    assert server.shake()
    assert not theirs.inbound
    assert server.buffered
    assert read_all(server) == b"early"
    assert not server.buffered


def test_end_of_stream(files):
    client, server, *_ = streams(files)
    shake(client, server)
    client.send(memoryview(b"last words"))
    client.close()
    buffer = memoryview(bytearray(BUFFER_SIZE))
    assert bytes(buffer[: server.recv_into(buffer)]) == b"last words"
    assert server.recv_into(buffer) == 0
    assert server.recv_into(buffer) == 0


def test_end_without_a_goodbye(files):
    client, server, ours, theirs = streams(files)
    shake(client, server)
    client.send(memoryview(b"last words"))
    theirs.eof = True
    buffer = memoryview(bytearray(BUFFER_SIZE))
    assert bytes(buffer[: server.recv_into(buffer)]) == b"last words"
    assert server.recv_into(buffer) == 0


def test_corrupt_record(files):
    client, server, ours, theirs = streams(files)
    shake(client, server)
    client.send(memoryview(b"good"))
    client.send(memoryview(b"bad"))
    theirs.inbound[-1] ^= 1
    buffer = memoryview(bytearray(BUFFER_SIZE))
    assert bytes(buffer[: server.recv_into(buffer)]) == b"good"
    for _ in range(2):
        with pytest.raises(tls.TlsError, match="TLS failed"):
            server.recv_into(buffer)


def test_noise_in_place_of_a_handshake(files):
    for start in (b"\x16\x03\x01\x40\x00", b"\x80\x2e\x01", b"", b"\x16\x03\x01\0\0"):
        client, server, ours, theirs = streams(files)
        theirs.inbound += start + random.Random(1).randbytes(40_000)
        with pytest.raises(tls.TlsError):
            while not server.shake():
                pass
        server.close()
        assert theirs.closed


def test_a_broken_socket(files):
    client, server, ours, theirs = streams(files)
    shake(client, server)
    ours.error = ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(OSError, match="reset"):
        client.send(memoryview(b"data"))
    client.close()
    assert ours.closed


def test_closing_before_the_handshake_says_nothing(files):
    client, server, ours, theirs = streams(files)
    client.close()
    assert ours.closed and not theirs.inbound


def test_what_came_before_a_reset_counts(files):
    """It takes just as much as one read does, so that a second one follows at once."""
    client, server, ours, _theirs = streams(files)
    shake(client, server)
    buffer = memoryview(bytearray(BUFFER_SIZE))
    with pytest.raises(BlockingIOError):
        while True:
            client.recv_into(buffer)  # session tickets
    payload = b"x" * 47_033
    server.send(memoryview(payload))

    class Reset:
        def recv_into(self, view):
            try:
                return ours.recv_into(view)
            except BlockingIOError:
                raise ConnectionResetError("reset") from None

    client._socket = Reset()
    got = 0
    with pytest.raises(OSError, match="reset"):
        while True:
            got += client.recv_into(buffer)
    assert got == len(payload)
