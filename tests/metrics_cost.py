# SPDX-License-Identifier: Apache-2.0
"""What the option ``metrics`` costs: ``python -m tests.metrics_cost``.

One process is client and server of three transports: one is not measured, one has its
messages counted and no duration recorded, and one all of these, with a meter provider
of OpenTelemetry's SDK.  It makes as many calls over each, in turns, and compares the
CPU that it used meanwhile, of each the batch that had least: what else the machine does
can only add to it.  The broker is a process of its own.

That difference is small, and drowns where the machine has other work.  So what counts
the messages of a call is also timed by itself, which leaves out the few instructions
around it.
"""

from __future__ import annotations

import eventlet

eventlet.monkey_patch()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import time  # noqa: E402
import timeit  # noqa: E402
import typing  # noqa: E402

import oslo_messaging  # noqa: E402
from opentelemetry import metrics  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: E402
from oslo_messaging import Target  # noqa: E402

import greenamqp  # noqa: E402
from greenamqp.command import service  # noqa: E402
from greenamqp.engine import ACCEPTED  # noqa: E402
from greenamqp.telemetry import sample  # noqa: E402
from greenamqp.telemetry.tally import Histograms, Tally  # noqa: E402
from greenamqp.testing.process import BrokerProcess  # noqa: E402


class Endpoint:
    def echo(self, ctxt, value):
        return value


#: Durations that are recorded of a call: the client's, that of either settlement, the
#: server's.
RECORDS = 4

#: Kinds of durations of a transport, of which so many are recorded in a second.
KINDS = 3

#: What is compared: the option, and how many durations of a kind are recorded in a
#: second, at the most.
WAYS = {"off": (False, 1.0), "counted": (True, 1e-6), "all recorded": (True, 1e9)}


class Side:
    """A server and a client of one transport."""

    def __init__(self, url: str, name: str) -> None:
        on, self._rate = WAYS[name]
        conf = service.configuration(argparse.Namespace(config_file=[]))
        conf.set_override("metrics", on, group="oslo_messaging_amqp")
        self.transport = oslo_messaging.get_rpc_transport(conf, url=url)
        target = Target(topic=name.replace(" ", "-"), server="one")
        self.server = greenamqp.Server(self.transport, executor="eventlet")
        self.server.listen(target, [Endpoint()])
        self.server.start()
        self._client = oslo_messaging.get_rpc_client(self.transport, target)

    def batch(self, calls: int) -> float:
        """Microseconds of CPU for each of so many calls."""
        sample.RATE = self._rate
        before = time.process_time()
        for _ in range(calls):
            self._client.call({}, "echo", value="x" * 64)
        return (time.process_time() - before) / calls * 1e6

    def end(self) -> None:
        self.server.stop()
        self.server.wait()
        self.transport.cleanup()


def by_itself() -> float:
    """Microseconds to count what belongs to one call, in client and server."""
    sample.RATE = WAYS["counted"][1]
    nothing = Histograms(*3 * [lambda *_: None])
    tally = Tally(time.monotonic, contextlib.nullcontext(), nothing)

    def count() -> None:
        for what, topic in (("RPC call", "topic"), ("RPC reply", None)):
            sent = tally.sending(what, topic)
            sent.transmitted()
            sent.settled(ACCEPTED, None)
            sent.ended(None)
        processed = tally.handed_out("RPC request", "topic", {})
        if processed is not None:
            processed.begun()
            processed.ended("")

    # All are recorded until it is known how many come in a second.
    end = time.monotonic() + 3
    taken = []
    while time.monotonic() < end:
        taken.append(timeit.timeit(count, number=1000))
    return min(taken) * 1e3


def main(argv: typing.Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--calls", type=int, default=10, help="of each (%(default)s)")
    args = parser.parse_args(argv)
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    rate = sample.RATE
    with BrokerProcess() as broker:
        sides = {name: Side(broker.url, name) for name in WAYS}
        taken: dict[str, list[float]] = {name: [] for name in WAYS}
        for side in sides.values():
            side.batch(args.calls)  # warm up
        for _ in range(args.batches):
            for name, side in sides.items():
                taken[name].append(side.batch(args.calls))
        before = time.process_time()
        reader.get_metrics_data()
        collecting = time.process_time() - before
        for side in sides.values():
            side.end()
    off, counted, recorded = (min(each) for each in taken.values())
    each = (recorded - counted) / RECORDS
    print(f"CPU of a call, client and server together: {off:.0f} us without metrics")
    print(f"  what is counted: {counted - off:+.0f} us, {(counted / off - 1):+.1%}")
    alone = by_itself()
    print(f"    by itself: {alone:.1f} us, {alone / off:.1%}")
    print(
        f"  a duration that is recorded: {each:.0f} us; {rate} in a second of each of "
        f"{KINDS} kinds: {each * rate * KINDS / 1e4:.1f} % of a processor"
    )
    print(f"  to collect them: {collecting * 1e3:.1f} ms each time")


if __name__ == "__main__":
    main()
