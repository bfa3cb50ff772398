# SPDX-License-Identifier: Apache-2.0
"""What the fuzzer found, and an example of each way to end: they end well."""

import struct

import pytest

from greenamqp.engine import plain
from tests.fuzz import collect, readers, subject, wire

CORPUS = collect.load()


#: Too large for a file, or too plain to need one.
CRAFTED = {
    f"{what} nested {depth} deep, {section:#x}": [
        ["message", "rpc", data.hex(), False],
        ["message", "notify", data.hex(), False],
        ["reply", 0, data.hex()],
    ]
    for depth in (100, 2000, 50_000)
    for section in (0x72, 0x74, 0x76, 0x77)
    for what, value in (
        ("lists", wire.nested(depth)),
        ("descriptors", b"\x00" * depth + b"\x45" * (depth + 1)),
    )
    for data in [b"\x00\x53" + bytes((section,)) + value]
} | {
    "json nested deeply": [
        ["message", "rpc", wire.text("[" * 200_000).hex(), False],
        ["message", "notify", wire.text('{"request":' * 50_000).hex(), False],
        ["reply", 0, wire.message([[0x77, '{"failure":[' * 50_000]]).hex()],
    ],
    "a frame of nothing but brackets": [
        ["bytes", wire.frame(b"\x00" * 60_000).hex()],
    ],
    "a frame with a nested open": [
        ["bytes", wire.frame(b"\x00\x53\x10" + wire.nested(6000)).hex()],
    ],
    "a frame larger than allowed": [["bytes", struct.pack(">I", 2**31 - 1).hex()]],
    "a frame smaller than its header": [["bytes", "0000000702000000"]],
    "an unknown kind of frame": [["bytes", wire.frame(b"noise", kind=0x70).hex()]],
    "signs of life asked for each millisecond": [
        ["open", {"idle_timeout": 0.001}],
        ["wait", 10],
    ],
    "heartbeats without end": [["bytes", wire.frame(b"").hex() * 100_000]],
}


def test_the_corpus_is_there():
    assert len(CORPUS) > 50


@pytest.mark.parametrize("name", CORPUS)
def test_found(name):
    subject.run(CORPUS[name])


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted(name):
    subject.run(CRAFTED[name])


@pytest.mark.parametrize("module", wire.TRAPS)
@pytest.mark.parametrize("name", ["system", "Popen", "SystemExit"])
def test_modules_that_a_peer_names_are_not_imported(module, name):
    """The example runs, and what it names is not in sys.modules afterwards."""
    body = wire.message([[0x77, wire.failure(module, name, ["true"])]])
    became = subject.run([["reply", 0, body.hex()]])
    assert ["call", "RemoteError"] in became[0]


@pytest.mark.parametrize("seed", readers.seeds(), ids=lambda seed: f"reader {seed[0]}")
def test_readers(seed):
    """Whole, in each place where it may be cut off, and with each byte turned round."""
    readers.run(seed)
    for at in range(1, len(seed)):
        readers.run(seed[:at])
        readers.run(seed[:at] + bytes((seed[at] ^ 0xFF,)) + seed[at + 1 :])


def test_a_reader_that_is_wrong_is_found(monkeypatch):
    monkeypatch.setattr(plain, "read", lambda data: plain.Received("no", id="no"))
    with pytest.raises(AssertionError, match="by proton"):
        readers.as_message(readers.seeds()[0][1:])
    monkeypatch.undo()
    monkeypatch.setattr(
        readers.begin.BeginReader,
        "feed",
        lambda self, data: setattr(self, "max_links", len(data)),
    )
    with pytest.raises(AssertionError):
        readers.as_stream(b"1234")
