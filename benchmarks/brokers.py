# SPDX-License-Identifier: Apache-2.0
"""Message buses that can be killed and looked into: what `fleet` needs of one."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import pathlib
import socket
import time
import typing
import urllib.parse

from benchmarks.environments import Environments
from benchmarks.processes import Bus, WorkerFailed

#: Seconds that a broker may take until its port is open.
_PATIENCE = 120.0

#: Seconds between two looks at whether a port is open.
_INTERVAL = 0.02

#: What a RabbitMQ may take before it holds publishers up: more than a fleet needs on
#: either driver, so that none is measured in an alarm.  By its own count, which has
#: each connection's buffers in full, 4 MB over loopback, of which next to none is used.
_RABBIT_MEMORY = "64GiB"

#: What a RabbitMQ is asked for a census.
_RABBIT_CENSUS = {
    "sessions": "length(rabbit_amqp_session:list_local())",
    "channels": "length(rabbit_channel:list())",
    "queues": "length(rabbit_amqqueue:list())",
    "exchanges": "length(rabbit_exchange:list())",
    "bindings": 'length(rabbit_binding:list(<<"/">>))',
}

Census = dict[str, int]


class Broker(abc.ABC):
    """A message bus; it ends with the ``with``, if it is ours.

    :ivar urls: its transport URLs by scheme
    :ivar ours: whether it can be killed, and its process looked at
    """

    ours = True

    def __init__(self) -> None:
        self.urls: dict[str, str] = {}

    @property
    def port(self) -> int:
        """The port of the first host."""
        url = next(iter(self.urls.values())).split(",")[0]
        return urllib.parse.urlsplit(url).port or 5672

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @abc.abstractmethod
    def stop(self) -> None:
        """It is needed no longer."""

    @abc.abstractmethod
    def cpu(self) -> float:
        """CPU seconds it used since it was started last."""

    @abc.abstractmethod
    def memory(self) -> int:
        """Bytes of resident memory."""

    def census(self) -> Census:
        """How many of what it holds, as far as it tells; connections as the kernel
        has them, a broker's own to itself left out."""
        return {"connections": connections(self.port)}

    @abc.abstractmethod
    def kill(self) -> None:
        """As by a power failure."""

    @abc.abstractmethod
    def start_again(self) -> None:
        """Come back, at the same port, which need not be open when this returns."""

    def wait_open(self) -> float:
        """Wait for its port; returns the instant at which it was open.

        :raises WorkerFailed: it is not, for long
        """
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return time.monotonic()
            time.sleep(_INTERVAL)
        raise WorkerFailed("the broker did not come back")


class Embedded(Broker):
    """The embedded broker, in a process of its own."""

    def __init__(
        self, environments: Environments, limits: typing.Sequence[str]
    ) -> None:
        super().__init__()
        self._command = [
            environments.python("greenamqp"),
            *("-m", "greenamqp", "broker", "--host", "127.0.0.1", *limits, "--port"),
        ]
        self._process = Bus([*self._command, "0"])
        self.urls = {"amqp": self._process.announced.split()[-1]}

    def stop(self) -> None:
        self._process.stop()

    def cpu(self) -> float:
        return self._process.cpu()

    def memory(self) -> int:
        return self._process.memory()

    def kill(self) -> None:
        self._process.popen.kill()
        self._process.stop()

    def start_again(self) -> None:
        self._process = Bus([*self._command, str(self.port)])


class Real(Broker):
    """One of tools/buses: an instance of our own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        from tools.buses import Bus as RealBus
        from tools.buses.rabbitmq import ENV_MEMORY

        os.environ.setdefault(ENV_MEMORY, _RABBIT_MEMORY)
        self._bus = RealBus(name, instance=f"{name}-fleet-{os.getpid()}").start()
        self.urls = {scheme: self._bus.url(scheme) for scheme in self._bus.kind.schemes}
        self._is_rabbit = "rabbit" in self.urls

    def stop(self) -> None:
        self._bus.stop()

    def cpu(self) -> float:
        return self._bus.cpu()

    def memory(self) -> int:
        return self._bus.memory()

    def census(self) -> Census:
        census = super().census()
        if not self._is_rabbit:
            return census
        # One question: each start of rabbitmqctl takes a second of a core.
        answer = self._bus.control("eval", f"[{','.join(_RABBIT_CENSUS.values())}].")
        census.update(zip(_RABBIT_CENSUS, json.loads(answer), strict=True))
        return census

    def kill(self) -> None:
        self._bus.kill9()

    def start_again(self) -> None:
        # Its own waiting for a login would be one more client in the storm.
        self._bus.start(wait=False)


class Foreign(Broker):
    """One that somebody else keeps: nothing but its URLs is known."""

    ours = False

    def __init__(self, urls: dict[str, str]) -> None:
        super().__init__()
        self.urls = urls

    def stop(self) -> None:
        pass

    def cpu(self) -> float:
        return 0.0

    def memory(self) -> int:
        return 0

    def kill(self) -> None:
        raise NotImplementedError

    def start_again(self) -> None:
        raise NotImplementedError


def connections(port: int) -> int:
    """How many connections of this machine's processes to a port there are."""
    count = 0
    for name in ("tcp", "tcp6"):
        path = pathlib.Path("/proc/net") / name
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            # The peer's address and port in hexadecimal; 01 is "established".
            if fields[3] == "01" and int(fields[2].rpartition(":")[2], 16) == port:
                count += 1
    return count
