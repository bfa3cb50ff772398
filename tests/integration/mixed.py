# SPDX-License-Identifier: Apache-2.0
"""A load check: services on greenamqp and on oslo.messaging's ``rabbit://`` driver on
one RabbitMQ, each sending to the other.

    python -m tests.integration.mixed [--messages 10000] [--bus rabbitmq-4.0]
    python -m tests.integration.mixed --amqp amqp://HOST --rabbit rabbit://HOST

Two services, each a process with a server, a client and two notification listeners.
Both clients at once do `messages` of each:

* calls and casts to the server of the other service;
* casts to all servers, of which there are those two;
* notifications, which two pools get; each pool has a member in both services.

Prints what was sent and what arrived.  The exit status is 0 only if nothing was lost,
nothing came twice and every reply was the right one.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import multiprocessing
import sys
import threading
import time
import typing

import oslo_messaging
from oslo_messaging import Target

from tests.integration import rabbit
from tools.buses import Bus

#: Seconds without any progress after which what is missing counts as lost.
PATIENCE = 60

#: Callers at one time, of each service.
CALLERS = 16

KINDS = ("call", "cast", "fanout", "notify")
POOLS = ("first", "second")


class Tally:
    """What arrived, as often as it did."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: collections.Counter[tuple[str, str, int]] = collections.Counter()

    def add(self, kind: str, sender: str, number: int) -> None:
        with self._lock:
            self._heard[kind, sender, number] += 1

    def all(self) -> dict[tuple[str, str, int], int]:
        with self._lock:
            return dict(self._heard)

    def count(self) -> int:
        with self._lock:
            return self._heard.total()


class Endpoint:
    """What a server has."""

    target = Target()

    def __init__(self, name: str, tally: Tally) -> None:
        self._name = name
        self._tally = tally

    def call(self, ctxt, sender, number):
        self._tally.add("call", sender, number)
        return [self._name, sender, number]

    def cast(self, ctxt, sender, number):
        self._tally.add("cast", sender, number)

    def fanout(self, ctxt, sender, number):
        self._tally.add("fanout", sender, number)


class Notified:
    """What a listener has."""

    def __init__(self, pool: str, tally: Tally) -> None:
        self._pool = pool
        self._tally = tally

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        self._tally.add(f"notify {self._pool}", publisher_id, payload["number"])


class Service:
    """One side, in its own process."""

    def __init__(self, name: str, other: str, url: str, topic: str) -> None:
        self._name, self._other = name, other
        self._tally = Tally()
        self._stack = contextlib.ExitStack()
        enter = self._stack.enter_context
        transport = enter(rabbit.rpc(url))
        enter(
            rabbit.running(
                oslo_messaging.get_rpc_server(
                    transport,
                    Target(topic=topic, server=name),
                    [Endpoint(name, self._tally)],
                    "threading",
                )
            )
        )
        notifications = enter(rabbit.notification(url))
        for pool in POOLS:
            enter(
                rabbit.running(
                    oslo_messaging.get_notification_listener(
                        notifications,
                        [Target(topic=topic)],
                        [Notified(pool, self._tally)],
                        "threading",
                        pool=f"{topic}-{pool}",
                    )
                )
            )
        self._client = oslo_messaging.get_rpc_client(
            transport, Target(topic=topic), timeout=PATIENCE
        )
        self._notifier = oslo_messaging.Notifier(
            notifications, name, driver="messagingv2", topics=[topic], retry=-1
        )

    def send(self, kind: str, messages: int) -> tuple[float, list[str]]:
        """Send that many; returns the seconds that took, and what went wrong."""
        one = getattr(self, f"_{kind}")
        callers = CALLERS if kind == "call" else 1
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(callers) as pool:
            wrong = [text for text in pool.map(one, range(messages)) if text]
        return time.monotonic() - began, wrong

    def _call(self, number: int) -> str | None:
        client = self._client.prepare(server=self._other)
        try:
            reply = client.call({}, "call", sender=self._name, number=number)
        except Exception as exc:
            return f"call {number}: {exc!r}"
        if reply != [self._other, self._name, number]:
            return f"call {number}: wrong reply {reply}"
        return None

    def _cast(self, number: int) -> None:
        client = self._client.prepare(server=self._other)
        client.cast({}, "cast", sender=self._name, number=number)

    def _fanout(self, number: int) -> None:
        client = self._client.prepare(fanout=True)
        client.cast({}, "fanout", sender=self._name, number=number)

    def _notify(self, number: int) -> None:
        self._notifier.info({}, "event", {"number": number})

    def count(self) -> int:
        return self._tally.count()

    def heard(self) -> dict[tuple[str, str, int], int]:
        return self._tally.all()

    def close(self) -> None:
        self._stack.close()


def _serve(pipe: typing.Any, *args: str) -> None:
    service = Service(*args)
    pipe.send(None)
    while True:
        name, rest = pipe.recv()
        pipe.send(getattr(service, name)(*rest))
        if name == "close":
            return


class Remote:
    """A service in another process, as its parent sees it."""

    def __init__(self, name: str, other: str, url: str, topic: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, other, url, topic), daemon=True
        )
        self._process.start()
        theirs.close()

    def up(self) -> None:
        self._pipe.recv()

    def ask(self, name: str, *args: typing.Any) -> typing.Any:
        self._pipe.send((name, args))
        return self._pipe.recv()

    def close(self) -> None:
        self.ask("close")
        self._process.join(PATIENCE)


def run(amqp: str, rabbit_url: str, messages: int) -> bool:
    """Run it; prints the figures.  Returns whether all was as it must be."""
    topic = rabbit.unique("mixed")
    names = {"greenamqp": "rabbit", "rabbit": "greenamqp"}
    urls = {"greenamqp": amqp, "rabbit": rabbit_url}
    services = {
        name: Remote(name, other, urls[name], topic) for name, other in names.items()
    }
    for service in services.values():
        service.up()
    took, wrong = {}, []
    with concurrent.futures.ThreadPoolExecutor(len(services)) as pool:
        for kind in KINDS:
            asked = {
                name: pool.submit(service.ask, "send", kind, messages)
                for name, service in services.items()
            }
            for name, answer in asked.items():
                took[kind, name], texts = answer.result()
                wrong += texts
    # Calls and casts arrive at one server, fanouts at two, notifications in two pools.
    _wait(services.values(), len(services) * messages * (1 + 1 + 2 + 2))
    heard = {name: service.ask("heard") for name, service in services.items()}
    for service in services.values():
        service.close()
    lines, good = _judge(names, heard, took, messages)
    print("\n".join(lines))
    for text in wrong[:10]:
        print(text)
    print(f"calls without the right reply: {len(wrong)}")
    return good and not wrong


def _wait(services: typing.Iterable[Remote], wanted: int) -> None:
    """Until all has arrived, or nothing has for a while."""
    latest, since = -1, time.monotonic()
    while True:
        count = sum(service.ask("count") for service in services)
        if count != latest:
            latest, since = count, time.monotonic()
        elif count >= wanted or time.monotonic() - since > PATIENCE:
            return
        # The other processes do the work; this only asks how far they are.
        threading.Event().wait(0.5)


def _judge(
    names: dict[str, str],
    heard: dict[str, dict[tuple[str, str, int], int]],
    took: dict[tuple[str, str], float],
    messages: int,
) -> tuple[list[str], bool]:
    """The table, and whether nothing was lost and nothing came twice."""
    lines = [
        f"{'kind':<14}{'from':<11}{'to':<11}{'sent':>8}{'arrived':>9}{'lost':>6}"
        f"{'doubled':>9}{'sent/s':>8}"
    ]
    good = True
    for sender, other in names.items():
        rows = [("call", other), ("cast", other)]
        rows += [("fanout", name) for name in names]
        rows += [(f"notify {pool}", "both") for pool in POOLS]
        for kind, to in rows:
            where = names if to == "both" else [to]
            found: collections.Counter[int] = collections.Counter()
            for name in where:
                for (kind_, sender_, number), times in heard[name].items():
                    if (kind_, sender_) == (kind, sender):
                        found[number] += times
            lost = messages - len(found)
            doubled = found.total() - len(found)
            good = good and not lost and not doubled
            rate = messages / took[kind.split()[0], sender]
            lines.append(
                f"{kind:<14}{sender:<11}{to:<11}{messages:>8}{found.total():>9}"
                f"{lost:>6}{doubled:>9}{rate:>8.0f}"
            )
    return lines, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--messages", type=int, default=10_000, help="of each kind")
    parser.add_argument("--bus", default="rabbitmq-4.0", help="which one to start")
    parser.add_argument("--amqp", help="greenamqp's URL of one that runs")
    parser.add_argument("--rabbit", help="the rabbit:// URL of the same")
    args = parser.parse_args()
    if bool(args.amqp) != bool(args.rabbit):
        parser.error("--amqp and --rabbit go together")
    with contextlib.ExitStack() as stack:
        amqp, rabbit_url = args.amqp, args.rabbit
        if amqp is None:
            bus = stack.enter_context(Bus(args.bus, f"{args.bus}-mixed-load"))
            amqp = bus.url()
            rabbit_url = amqp.replace("amqp:", "rabbit:", 1)
        return 0 if run(amqp, rabbit_url, args.messages) else 1


if __name__ == "__main__":
    sys.exit(main())
