# SPDX-License-Identifier: Apache-2.0
"""Embedded brokers that can be killed, frozen and started again on the same port."""

import argparse
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from tests.functional import buses
from tools.buses import BUSES, Bus


class Broker:
    """An embedded broker in a process of its own.

    Use it as a context manager, or stop() it.
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._running: Any = None
        self._frozen = False
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, again on the port that it had."""
        port = ["--port", str(self.port)] if self.port else []
        self._running = buses.EmbeddedBroker(*self._arguments, *port)
        self.port = self._running.port

    @property
    def url(self) -> str:
        return f"amqp://127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        return self._running._process.pid

    def kill(self) -> None:
        """SIGKILL: no goodbye; what it held is gone."""
        process = self._running._process
        process.kill()
        process.wait()
        process.stdout.close()
        self._running = None

    def kill9(self, node: int | None) -> None:
        """As `kill`, in the way of tools.buses."""
        self.kill()

    def freeze(self) -> None:
        """SIGSTOP: its connections stay, and nothing comes over them."""
        os.kill(self.pid, signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._frozen = False

    def stop(self) -> None:
        """End it in order; harmless if it is dead."""
        if self._running is not None:
            if self._frozen:
                self.thaw()
            self._running.stop()
            self._running = None

    def __enter__(self) -> "Broker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def together(*brokers: Broker) -> str:
    """A transport URL that names them all."""
    return "amqp://" + ",".join(f"127.0.0.1:{b.port}" for b in brokers) + "/"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Declare which bus a command is to start."""
    parser.add_argument(
        "--bus", choices=sorted(BUSES), metavar="NAME", help="(the embedded broker)"
    )


@contextlib.contextmanager
def chosen(name: str | None, purpose: str) -> Iterator[tuple[Any, str]]:
    """The bus of that name, with its URL, in an instance for this purpose; None: an
    embedded broker."""
    if name is None:
        with Broker() as broker:
            yield broker, broker.url
    else:
        with Bus(name, f"{name}-{purpose}-{os.getpid()}") as bus:
            yield bus, bus.url()
