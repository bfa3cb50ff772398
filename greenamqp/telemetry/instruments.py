# SPDX-License-Identifier: Apache-2.0
"""The instruments of OpenTelemetry, once for a process.

Counts and states are observed: whoever reads the meter provider's metrics has all
clients asked what they have done and are doing, in the reader's thread.  Durations are
histograms, recorded where they end.
"""

from __future__ import annotations

import functools
import typing

from opentelemetry import metrics

from greenamqp import fork
from greenamqp.client import Client
from greenamqp.hubs import Hub, Timer, native
from greenamqp.telemetry import states
from greenamqp.telemetry.latest import Latest
from greenamqp.telemetry.states import Described, Numbers
from greenamqp.telemetry.tally import Histograms, Tally

#: Seconds between two looks at the clock of a hub.
BEAT = 1.0

# As the conventions have them. Seconds.
_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_DELAYS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class _Measured(typing.NamedTuple):
    tally: Tally
    outbox: Described | None


class Instruments:
    """See the module; :data:`INSTRUMENTS` is the one of the process.

    A meter provider may be set before or after: the API's instruments find it.
    """

    def __init__(self) -> None:
        meter = metrics.get_meter("greenamqp")
        make = functools.partial(
            meter.create_histogram,
            unit="s",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self._histograms = Histograms(
            _recorder(
                make(
                    "messaging.client.operation.duration",
                    description="From the call of the driver to its end: the outcome, "
                    "or of an RPC call the reply",
                )
            ),
            _recorder(
                make(
                    "greenamqp.client.settlement.duration",
                    description="From the sending of a message to its outcome",
                ),
                "greenamqp.outcome",
            ),
            _recorder(
                make(
                    "messaging.process.duration",
                    description="From the handing out of a message to the reply or "
                    "acknowledgement",
                )
            ),
        )
        self._delay = meter.create_histogram(
            "greenamqp.hub.delay",
            unit="s",
            description="How late the hub runs what is due: for how long the "
            "application does not let it",
            explicit_bucket_boundaries_advisory=_DELAYS,
        )
        for each in states.OBSERVED:
            create = {
                "counter": meter.create_observable_counter,
                "gauge": meter.create_observable_up_down_counter,
            }[each.kind]
            create(
                each.name,
                [functools.partial(self._observe, each.name)],
                unit=each.unit,
                description=each.description,
            )
        self._begin()
        fork.tell(self)

    def _begin(self) -> None:
        # Reentrant, for a signal handler that cleans up while somebody looks.
        self._lock = native.original("_thread", "RLock")()
        self._clients: dict[Client, _Measured] = {}
        self._beats: dict[Hub, _Beat] = {}
        # What clients have counted that are closed.
        self._past = states.empty()
        self._numbers = states.empty()
        # Whose numbers were taken of these; all of them at the beginning.
        self._taken = {each.name for each in states.OBSERVED}

    def forked(self) -> None:
        """See :mod:`greenamqp.fork`: a child counts its own."""
        self._begin()

    def add(self, client: Client, outbox: Described | None, latest: Latest) -> None:
        """Measure a client from now on, until it is closed.  From any thread.

        :param latest: where its durations are recorded as well
        """
        hub = client.hub
        tally = Tally(hub.now, hub.lock, latest.histograms(self._histograms))

        def enter() -> None:
            if client.context.closed or hub.inherited:
                return
            client.at_close.append(leave)
            beat = self._beats.get(hub)
            if beat is None and hub.name != "blocking":
                # That one does not run but where somebody waits.
                beat = self._beats[hub] = _Beat(hub, self._delay)
            if beat is not None:
                beat.users += 1
            self._clients[client] = _Measured(tally, outbox)

        def leave() -> None:
            measured = self._clients.get(client)
            if measured is None:
                return
            numbers = states.empty()
            self._add(numbers, client, measured)
            with self._lock:
                states.add_counters(self._past, numbers)
                del self._clients[client]
            beat = self._beats.get(hub)
            if beat is not None and beat.left():
                del self._beats[hub]

        client.on_send = tally.sending
        client.on_hand_out.append(tally.handed_out)
        hub.call_inside(enter)

    # -- observing

    def _observe(
        self, name: str, options: metrics.CallbackOptions
    ) -> typing.Iterable[metrics.Observation]:
        """The values of one instrument.  All are asked for in turn, and get what was
        seen at one time."""
        if name in self._taken:
            self._numbers = self._look()
            self._taken = set()
        self._taken.add(name)
        values = self._numbers[name].items()
        return [metrics.Observation(value, dict(key)) for key, value in values]

    def _look(self) -> Numbers:
        numbers = states.empty()
        with self._lock:
            clients = list(self._clients.items())
            states.add_counters(numbers, self._past)
        # Not under that lock: a client that is closed takes it within its hub's.
        for client, measured in clients:
            self._add(numbers, client, measured)
        return numbers

    @staticmethod
    def _add(numbers: Numbers, client: Client, measured: _Measured) -> None:
        with client.hub.lock:
            states.add_tally(numbers, measured.tally)
        states.add_connections(numbers, client.describe())
        if measured.outbox is not None:
            states.add_outbox(numbers, measured.outbox.describe())


class _Beat:
    """Looks every BEAT how late a hub is.  Hub's context."""

    def __init__(self, hub: Hub, delay: metrics.Histogram) -> None:
        #: Clients on that hub.
        self.users = 0
        self._hub = hub
        self._delay = delay
        self._attributes = {"greenamqp.hub": hub.name}
        self._timer: Timer
        self._due = 0.0
        self._set()

    def _set(self) -> None:
        self._due = self._hub.now() + BEAT
        self._timer = self._hub.call_at(self._due, self._beat)

    def _beat(self) -> None:
        self._delay.record(max(0.0, self._hub.now() - self._due), self._attributes)
        self._set()

    def left(self) -> bool:
        """A client less; returns whether it was the last, and it has stopped."""
        self.users -= 1
        if self.users == 0:
            self._timer.cancel()
        return self.users == 0


def _recorder(
    histogram: metrics.Histogram, result: str = "error.type"
) -> typing.Callable[[float, str, str | None, str], None]:
    """What records durations, with the name of the attribute for what came of it."""

    def record(seconds: float, what: str, topic: str | None, came: str) -> None:
        attributes = dict(states.message_attributes(what, topic))
        if came:
            attributes[result] = came
        histogram.record(seconds, attributes)

    return record


INSTRUMENTS = Instruments()
