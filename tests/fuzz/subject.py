# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: a driver with all it can do under way, and a peer that means harm.

There is no network and no time (tests.unit.fakes), so an example is the same whenever
it is run.  An example is a list of JSON; :func:`run` plays it and returns what became
of everything, or raises AssertionError if a promise is broken:

* no callback raises, and nothing is logged with a traceback;
* every call, cast and notification ends, with a result or one of oslo.messaging's
  errors;
* every message that the peer sent to us is settled, or its link or connection is gone;
* nothing is imported;
* cleanup() leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import logging
import random
import sys
import typing
from unittest import mock

import oslo_messaging
from oslo_config import cfg
from oslo_messaging import Target

from greenamqp import hubs
from greenamqp.connection import connect
from greenamqp.driver import GreenAMQPDriver
from greenamqp.engine import LinkState
from tests.fuzz import wire
from tests.unit import fakes

TOPIC = "topic"

#: More wake-ups than any example may cost; two minutes pass in one.
WAKEUPS = 50_000

Example = list[typing.Any]


class _Journal(logging.Handler):
    """What greenamqp logs; a traceback is a broken promise."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.messages: list[str] = []
        self.tracebacks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(str(record.msg))
        # A message is put together here as it would be for a file.
        text = self.format(record)
        if record.exc_info:
            self.tracebacks.append(text)


class _Stream(fakes.Stream):
    """A stream whose incoming bytes can be tampered with at their offsets."""

    tampering: typing.ClassVar[list[list[typing.Any]]] = []

    def __init__(self) -> None:
        super().__init__()
        self._offset = 0
        self._pending = sorted(
            (edit for edit in type(self).tampering), key=lambda edit: edit[0]
        )

    def recv_into(self, buffer: memoryview) -> int:
        if not self.inbound:
            return super().recv_into(buffer)
        data = bytearray(self.inbound)
        self.inbound.clear()
        start, self._offset = self._offset, self._offset + len(data)
        while self._pending and self._pending[0][0] < self._offset:
            at, kind, argument = self._pending.pop(0)
            wire.tamper(data, max(0, at - start), kind, argument)
        if len(data) > len(buffer):
            self.inbound += data[len(buffer) :]
            self._offset -= len(data) - len(buffer)
            del data[len(buffer) :]
        if not data:
            raise BlockingIOError
        buffer[: len(data)] = data
        return len(data)


class _World(fakes.World):
    """A world in which no peer can make us work without end."""

    def __init__(self) -> None:
        super().__init__()
        self._wakeups = 0

    def _wakeup(self, *callbacks: typing.Callable[[], None]) -> None:
        self._wakeups += 1
        assert self._wakeups < WAKEUPS, "the driver is kept busy without end"
        super()._wakeup(*callbacks)


class Subject:
    """A driver at work in a world of its own."""

    def __init__(
        self, tampering: list[list[typing.Any]], opening: dict[str, typing.Any]
    ) -> None:
        self.journal = _Journal()
        self.world = _World()
        self.network = fakes.Network(self.world, **opening)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(
            mock.patch.object(connect, "Attempt", self.network.attempt)
        )
        self._stack.enter_context(mock.patch.object(hubs, "get", lambda _: self.world))
        stream = type("Tampered", (_Stream,), {"tampering": tampering})
        self._stack.enter_context(mock.patch.object(fakes, "Stream", stream))
        logger = logging.getLogger("greenamqp")
        self._level = logger.level
        logger.addHandler(self.journal)
        logger.setLevel(logging.DEBUG)
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[], default_config_dirs=[])
        url = oslo_messaging.TransportURL.parse(conf, "amqp://bus")
        self.driver = GreenAMQPDriver(conf, url, "exchange", wire.ALLOWED)
        self.tasks: dict[str, fakes.Task] = {}
        self.taken: list[str] = []
        self.handles: list[object] = []

    def start(self) -> None:
        """Set everything going that the driver can do."""
        driver, world = self.driver, self.world
        target = Target(topic=TOPIC, server="server")
        for name, function in (
            ("rpc", lambda: driver.listen(target, 1, None)),
            (
                "notify",
                lambda: driver.listen_for_notifications(
                    [(Target(topic=TOPIC), "info")], None, 1, None
                ),
            ),
        ):
            self.tasks[name] = world.go(function)
        world.settle()
        for name, listen in self.tasks.items():
            if listen.done and listen.error is None:
                self._serve(name, listen.result())
        elsewhere = Target(topic="elsewhere")
        for name, arguments in (
            ("call", {"wait_for_reply": True, "timeout": 20}),
            (
                "monitored",
                {"wait_for_reply": True, "timeout": 20, "call_monitor_timeout": 5},
            ),
            ("cast", {"wait_for_reply": False, "retry": 2}),
        ):
            self.tasks[name] = world.go(
                driver.send, elsewhere, {}, {"method": name}, **arguments
            )
        self.tasks["notification"] = world.go(
            driver.send_notification, elsewhere, {}, {"event_type": "e"}, 2.0, 2
        )
        world.settle()

    def _serve(self, name: str, listener: typing.Any) -> None:
        def incoming(batch: list[typing.Any]) -> None:
            for message in batch:
                self.taken.append(name)
                if name == "rpc":
                    message.acknowledge()
                    message.heartbeat()
                    message.reply({"answer": 1})
                elif len(self.taken) % 2:
                    message.requeue()
                else:
                    message.acknowledge()

        listener.start(incoming)

    # -- what the peer does

    @property
    def peer(self) -> fakes.Peer | None:
        """The other end of the newest connection, if it is open."""
        if not self.network.peers or self.network.peer.stream.closed:
            return None
        return self.network.peer

    def send(self, where: str, data: bytes, settled: bool) -> None:
        """The peer sends a message to one of our links."""
        peer = self.peer
        if peer is None:
            return
        addresses = [
            address
            for address, link in peer.outbound.items()
            if self._kind(address) == where
            and link.state is LinkState.ATTACHED
            and link.credit > 0
        ]
        if addresses:
            handle = peer.send(sorted(addresses)[0], data, settled)
            if not settled:
                self.handles.append(handle)

    def correlation(self) -> list[str]:
        """The ids of the calls that the peer has seen."""
        return [
            str(received.message.id)
            for peer in self.network.peers
            for received in peer.received
            if received.message.reply_to
        ]

    @staticmethod
    def _kind(address: str) -> str:
        if address.startswith("reply-"):
            return "reply"
        return "notify" if address.endswith(".info") else "rpc"

    def inject(self, data: bytes) -> None:
        """Bytes from nowhere, between two frames of the peer's."""
        if self.peer is not None:
            self.world.settle()
            self.peer.stream.inbound += data

    # -- the end

    def finish(self) -> list[typing.Any]:
        """Let time pass until everything must have ended; returns what became of it.

        :raises AssertionError: a promise is broken
        """
        self.world.settle()
        self.world.advance(100)
        became: list[typing.Any] = []
        for name, task in sorted(self.tasks.items()):
            assert task.done, f"{name} never ends"
            error = task.error
            if error is not None:
                assert isinstance(
                    error,
                    (oslo_messaging.MessagingException, oslo_messaging.RemoteError),
                ) or getattr(type(error), "__module__", "").startswith(
                    ("builtins", *wire.ALLOWED)
                ), repr(error)
            became.append([name, type(error).__name__ if error is not None else "ok"])
        settled = {handle for peer in self.network.peers for handle, _ in peer.outcomes}
        if self.peer is not None and len(self.network.peers) == 1:
            detached = len(self.peer.outbound) < len(self.peer.attaches) - len(
                self.peer.inbound
            )
            if not detached:
                assert settled >= set(self.handles), "a message was never settled"
        closing = self.world.go(self.driver.cleanup)
        self.world.advance(10)
        assert closing.done and closing.error is None
        fakes.leftovers(self.world)
        return became

    def close(self) -> None:
        """Undo what the constructor did to the process."""
        self.network.destroy()
        logger = logging.getLogger("greenamqp")
        logger.removeHandler(self.journal)
        logger.setLevel(self._level)
        self._stack.close()


def run(example: Example) -> list[typing.Any]:
    """Play an example; returns what became of everything, for telling ways apart.

    Steps: ``["open", OPTIONS]`` of the peer's own end, before all else;
    ``["tamper", OFFSET, KIND, ARGUMENT]`` of the bytes that the peer sends,
    ``["message", LINK, HEX, SETTLED]``, ``["reply", NTH, HEX]`` with the nth call's
    correlation id in it, ``["bytes", HEX]`` from nowhere, ``["wait", SECONDS]``,
    ``["cut"]``.

    :raises AssertionError: a promise is broken
    """
    modules = set(sys.modules)
    tampering = [step[1:] for step in example if step[0] == "tamper"]
    opening: dict[str, typing.Any] = {}
    for step in example:
        if step[0] == "open":
            opening.update(step[1])
    chance = random.getstate()
    random.seed(0)  # the jitter of pauses: an example is the same each time
    subject = Subject(tampering, opening)
    try:
        subject.start()
        for step in example:
            kind, *arguments = step
            if kind == "message":
                where, data, settled = arguments
                subject.send(where, bytes.fromhex(data), settled)
            elif kind == "reply":
                calls = subject.correlation()
                if calls:
                    data = wire.reply(
                        calls[arguments[0] % len(calls)], bytes.fromhex(arguments[1])
                    )
                    subject.send("reply", data, False)
            elif kind == "bytes":
                subject.inject(bytes.fromhex(arguments[0]))
            elif kind == "wait":
                subject.world.advance(arguments[0])
            elif kind == "cut" and subject.peer is not None:
                subject.peer.cut()
            subject.world.settle()
        became = subject.finish()
    finally:
        random.setstate(chance)
        subject.close()
    assert not subject.journal.tracebacks, subject.journal.tracebacks[0]
    imported = {
        name for name in set(sys.modules) - modules if not name.startswith("greenamqp")
    }
    assert not imported & set(wire.TRAPS), f"imported: {sorted(imported)}"
    return [became, sorted(set(subject.journal.messages)), sorted(set(subject.taken))]
