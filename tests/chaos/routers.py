# SPDX-License-Identifier: Apache-2.0
"""What becomes of casts on a router: nobody listens, a server is stuck, all are busy.

    python -m tests.functional.world WORLD tests.chaos.routers [--url amqp://HOST]
        [--product skupper-router] [--window 100] [nobody] [stuck] [busy] [burst]

Without a URL it is the embedded broker in the role of that product.  The window is the
servers' ``rpc_server_credit``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import sys
import threading
import time
import typing
import uuid
import warnings

import oslo_messaging
from oslo_config import cfg
from oslo_messaging import MessageDeliveryFailure, Target

from tests.functional import world
from tests.functional.buses import EmbeddedBroker

# Seconds after which what has not been executed will not be.
QUIET = 20.0


class Endpoint:
    """Counts what it executes; each takes `seconds`, and waits for the gate."""

    def __init__(self, seconds: float = 0.0, gate: threading.Event | None = None):
        self.executed: collections.Counter[int] = collections.Counter()
        self._seconds = seconds
        self._gate = gate
        self._changed = threading.Condition()

    def work(self, ctxt, number):
        with self._changed:
            self.executed[number] += 1
            self._changed.notify_all()
        if self._gate is not None:
            self._gate.wait()
        time.sleep(self._seconds)

    def wait(self, numbers: typing.Iterable[int]) -> None:
        """Until these are executed, or nothing was for QUIET seconds."""
        wanted = set(numbers)
        with self._changed:
            while wanted - self.executed.keys():
                if not self._changed.wait(QUIET):
                    return


class Casts:
    """Casts to one topic, and what their sender was told of each."""

    def __init__(self, url: str, window: int, **options: object) -> None:
        self.accepted: list[int] = []
        self.failed: dict[int, str] = {}
        self.seconds = 0.0
        self.topic = f"casts-{uuid.uuid4().hex}"
        self._url = url
        self._window = window
        self._transports: list[oslo_messaging.Transport] = []
        self._servers: list[oslo_messaging.MessageHandlingServer] = []
        self._transport = self._connect(options)

    def _connect(self, options: dict[str, object]) -> oslo_messaging.Transport:
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[], default_config_dirs=[])
        query = "&".join(f"{name}={value}" for name, value in options.items())
        made = oslo_messaging.get_rpc_transport(conf, f"{self._url}/?{query}")
        self._transports.append(made)
        return made

    def serve(self, name: str, endpoint: Endpoint) -> None:
        server = oslo_messaging.get_rpc_server(
            self._connect({"rpc_server_credit": self._window}),
            Target(topic=self.topic, server=name),
            [endpoint],
            executor=world.executors()[0],
        )
        server.start()
        self._servers.append(server)

    def cast(self, number: int, **target: object) -> None:
        client = oslo_messaging.get_rpc_client(
            self._transport, Target(topic=self.topic, **target)
        )
        begun = time.monotonic()
        try:
            client.cast({}, "work", number=number)
        except MessageDeliveryFailure as exc:
            self.failed[number] = str(exc)
        else:
            self.accepted.append(number)
        self.seconds = time.monotonic() - begun

    def close(self) -> None:
        for server in self._servers:
            server.stop()
            server.wait()
        for transport in self._transports:
            transport.cleanup()


def nobody(url: str, window: int) -> bool:
    with contextlib.closing(Casts(url, window)) as casts:
        for number, (what, target) in enumerate(
            {
                "a fanout": {"fanout": True},
                "another": {"fanout": True},
                "a cast to any server": {},
                "a cast to one": {"server": "absent"},
            }.items()
        ):
            casts.cast(number, **target)
            said = casts.failed.get(number, "accepted")
            print(f"  {what}: {said}, after {casts.seconds:.2f} s")
    return set(casts.failed) == {2, 3}


def stuck(url: str, window: int) -> bool:
    gate = threading.Event()
    healthy = [Endpoint(), Endpoint()]
    with contextlib.closing(Casts(url, window)) as casts:
        for name, endpoint in zip("abc", [*healthy, Endpoint(gate=gate)], strict=True):
            casts.serve(name, endpoint)
        begun = time.monotonic()
        for number in range(300):
            casts.cast(number, fanout=True)
        took = time.monotonic() - begun
        for endpoint in healthy:
            endpoint.wait(range(300))
        gate.set()
    executed = [len(endpoint.executed) for endpoint in healthy]
    print(
        f"  300 fanouts, one of three servers is stuck: {len(casts.accepted)} accepted "
        f"in {took:.1f} s, the others executed {executed}"
    )
    return len(casts.accepted) == 300 and executed == [300, 300]


def busy(url: str, window: int) -> bool:
    endpoint = Endpoint(seconds=12.0)
    with contextlib.closing(Casts(url, window, default_send_timeout=5)) as casts:
        casts.serve("s", endpoint)
        threads = []
        for number in range(200):
            one = threading.Thread(target=casts.cast, args=(number,))
            one.start()
            threads.append(one)
            time.sleep(0.01)
        for one in threads:
            one.join()
        endpoint.wait(casts.accepted)
    return _account("200 casts to a server that takes 12 s for each", casts, endpoint)


def burst(url: str, window: int) -> bool:
    endpoint = Endpoint()
    with contextlib.closing(Casts(url, window)) as casts:
        casts.serve("s", endpoint)

        def caller(first: int) -> None:
            for number in range(first, 20_000, 16):
                casts.cast(number)

        begun = time.monotonic()
        threads = [threading.Thread(target=caller, args=(each,)) for each in range(16)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        took = time.monotonic() - begun
        endpoint.wait(casts.accepted)
    what = f"20,000 casts of 16 callers, in {took:.1f} s"
    return _account(what, casts, endpoint) and not casts.failed


def _account(what: str, casts: Casts, endpoint: Endpoint) -> bool:
    executed = endpoint.executed
    lost = set(casts.accepted) - executed.keys()
    wrong = executed.keys() & casts.failed.keys()
    twice = sum(count > 1 for count in executed.values())
    print(
        f"  {what}: {len(casts.accepted)} accepted, {len(lost)} of them lost; "
        f"{len(casts.failed)} failed, {len(wrong)} of them executed; {twice} twice"
    )
    return not lost and not wrong and not twice


#: Each prints what it saw, and returns whether that is as promised.
CASES = {each.__name__: each for each in (nobody, stuck, busy, burst)}


def main() -> int:
    warnings.simplefilter("ignore", DeprecationWarning)
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.routers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--url")
    parser.add_argument("--product", default="skupper-router")
    parser.add_argument("--window", type=int, default=100)
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = options.url
        if url is None:
            broker = EmbeddedBroker("--product", options.product)
            stack.callback(broker.stop)
            url = broker.url
        results = {}
        for name in options.cases or CASES:
            print(name, flush=True)
            results[name] = CASES[name](url.rstrip("/"), options.window)
    print("as promised" if all(results.values()) else f"not so: {results}")
    return int(not all(results.values()))


if __name__ == "__main__":
    sys.exit(main())
