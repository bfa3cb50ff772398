# SPDX-License-Identifier: Apache-2.0
"""Many services in one process, as a cloud has them, and the controller that they
report to.

A service has a transport with a stock RPC server, a client and a notifier.  The
controller serves what all of them call, listens to their notifications, and sends to
them.
"""

import os
import random
import sys
import threading
import time
import weakref

import oslo_messaging
from measure import census, mark, summary

#: Seconds for one call of the load.  Far more than one takes: it ends in a failure.
PATIENCE = 30

#: Seconds for one call in a storm, and between two of them: as an operator's script
#: that wants to know when a service is back.
STORM_PATIENCE = 5
STORM_PAUSE = 0.2

#: Services that are called in turn by one caller, at the most.
CALLED = 100

#: Services of a process that start at a time.
STARTERS = 8


class Attempts:
    """When sockets of this process were connected, or tried to be: of any driver.

    An audit hook is told by the interpreter itself.  It stays until the process ends.
    """

    def __init__(self):
        self._seen = weakref.WeakSet()
        self.instants = []
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if event != "socket.connect":
            return
        try:
            # A green socket asks again and again whether it is connected.
            if arguments[0] in self._seen:
                return
            self._seen.add(arguments[0])
        except TypeError:
            pass  # the interpreter's own class, which is asked once
        self.instants.append(time.monotonic())


class Counts:
    """How many of what came, for any number of threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self.came = {}

    def add(self, what):
        """One more."""
        with self._lock:
            self.came[what] = self.came.get(what, 0) + 1


class Agent:
    """What a service offers."""

    def __init__(self, counts):
        self._counts = counts

    def ping(self, ctxt, body):
        """Give it back."""
        return body

    def work(self, ctxt, body):
        """A cast to this one."""
        self._counts.add("casts")

    def news(self, ctxt, body):
        """A cast to all."""
        self._counts.add("fanouts")


class Conductor:
    """What the controller offers."""

    def __init__(self, counts):
        self._counts = counts

    def report(self, ctxt, host, body):
        """A service lives."""
        self._counts.add("reports")
        return body

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        """A notification."""
        self._counts.add("notifications")


class _Peer:
    """One that calls, serves and notifies over transports of its own."""

    def __init__(self, side, topic, server, endpoint):
        self.transport = side.transport("rpc")
        self.client = oslo_messaging.get_rpc_client(
            self.transport, oslo_messaging.Target(topic=topic), timeout=PATIENCE
        )
        self.server = oslo_messaging.get_rpc_server(
            self.transport,
            oslo_messaging.Target(topic=topic, server=server),
            [endpoint],
            executor=side.executor,
        )


class Service(_Peer):
    """One of the fleet.

    :param host: its name, which others call it by
    """

    def __init__(self, side, host, counts):
        super().__init__(side, side.topic("agent"), host, Agent(counts))
        self.host = host
        self._self = self.client.prepare(server=host)
        self._conductor = self.client.prepare(topic=side.topic("conductor"))
        self._notifier = oslo_messaging.Notifier(
            self.transport,
            publisher_id=host,
            driver="messagingv2",
            topics=[side.topic("news")],
        )

    def start(self):
        """Be there: when this returns, it has answered itself and can notify."""
        self.server.start()
        self.ping(PATIENCE)

    def ping(self, timeout):
        """Call itself, through the bus."""
        if self._self.prepare(timeout=timeout).call({}, "ping", body="?") != "?":
            raise ValueError("the reply is not what was sent")

    def report(self, body):
        """Call the controller."""
        self._conductor.call({}, "report", host=self.host, body=body)

    def notify(self, body):
        """Tell whoever listens."""
        self._notifier.info({}, "fleet", {"body": body})


class Fleet:
    """All services of this process.

    :param plan: ``first`` and ``count``: which hosts they are
    """

    def __init__(self, side, plan):
        self._attempts = Attempts()
        self._counts = Counts()
        self._side = side
        self._hosts = [f"host-{plan['first'] + i}" for i in range(plan["count"])]
        self._services = []

    def run(self, control):
        """Serve commands until the benchmark has enough."""
        control.answer(ready=True)
        control.serve(
            {
                "start": self._start,
                "mark": lambda: {**mark(), **self._counts.came},
                "census": census,
                "load": self._load,
                "storm": self._storm,
            }
        )
        # Without a goodbye of each, which takes long.
        os._exit(0)

    def _start(self):
        began = time.monotonic()
        self._services = [
            Service(self._side, host, self._counts) for host in self._hosts
        ]
        failures = []
        waiting = list(self._services)

        def starter():
            while waiting:
                try:
                    waiting.pop().start()
                except Exception as exc:
                    failures.append(f"{type(exc).__name__}: {exc}")

        _together([starter] * STARTERS)
        return {"seconds": time.monotonic() - began, "failures": failures}

    def _load(self, *, seconds, interval, size):
        """Reports and notifications of all, one each `interval` seconds, and all the
        interval apart."""
        body = "x" * size
        latencies, failures = [], []
        until = time.monotonic() + seconds
        sent = {"reports": 0, "notifications": 0}

        def beat(service):
            at = time.monotonic() + interval * random.random()
            while at < until:
                time.sleep(max(0.0, at - time.monotonic()))
                at += interval
                began = time.monotonic()
                try:
                    sent["reports"] += 1
                    service.report(body)
                    latencies.append(time.monotonic() - began)
                    sent["notifications"] += 1
                    service.notify(body)
                except Exception as exc:
                    failures.append(f"{type(exc).__name__}: {exc}")

        _together([_bound(beat, service) for service in self._services])
        return {"latencies": latencies, "failures": failures, **sent}

    def _storm(self, *, seconds):
        """Call each service until it answers; `seconds` at the most."""
        answered, failed = [], []
        until = time.monotonic() + seconds

        def ask(service):
            while time.monotonic() < until:
                try:
                    service.ping(STORM_PATIENCE)
                    answered.append(time.monotonic())
                    return
                except Exception as exc:
                    failed.append((time.monotonic(), type(exc).__name__))
                time.sleep(STORM_PAUSE * (0.5 + random.random()))

        _together([_bound(ask, service) for service in self._services])
        return {
            "answered": answered,
            "failed": failed,
            "attempts": self._attempts.instants,
        }


class Controller(_Peer):
    """What the services report to.

    :param plan: ``hosts``: how many there are
    """

    def __init__(self, side, plan):
        self._counts = Counts()
        conductor = Conductor(self._counts)
        super().__init__(side, side.topic("conductor"), "controller", conductor)
        self._plan = plan
        self._agents = self.client.prepare(topic=side.topic("agent"))
        self._listener = oslo_messaging.get_notification_listener(
            side.transport("notification"),
            [oslo_messaging.Target(topic=side.topic("news"))],
            [conductor],
            executor=side.executor,
        )

    def run(self, control):
        """Serve commands until the benchmark has enough."""
        self.server.start()
        self._listener.start()
        control.answer(ready=True)
        control.serve(
            {
                "mark": lambda: {**mark(), **self._counts.came},
                "load": self._load,
                "calls": self._calls,
            }
        )

    def _agent(self, number):
        return self._agents.prepare(server=f"host-{number}")

    def _load(self, *, seconds, burst, burst_interval, fanout_interval, size):
        """Casts to `burst` services at a time, and to all of them."""
        hosts = self._plan["hosts"]
        body = "x" * size
        failures = []
        sent = {"casts": 0, "fanouts": 0}
        to_all = self._agents.prepare(fanout=True)
        bursts = fanouts = time.monotonic()
        until = bursts + seconds
        while bursts < until:
            time.sleep(max(0.0, bursts - time.monotonic()))
            for number in random.sample(range(hosts), min(burst, hosts)):
                try:
                    self._agent(number).cast({}, "work", body=body)
                    sent["casts"] += 1
                except Exception as exc:
                    failures.append(f"{type(exc).__name__}: {exc}")
            if bursts >= fanouts:
                fanouts += fanout_interval
                try:
                    to_all.cast({}, "news", body=body)
                    sent["fanouts"] += 1
                except Exception as exc:
                    failures.append(f"{type(exc).__name__}: {exc}")
            bursts += burst_interval
        return {"failures": failures, **sent}

    def _calls(self, *, seconds):
        """One call after another, to services in turn: each once at least."""
        agents = [
            self._agent(number) for number in range(min(CALLED, self._plan["hosts"]))
        ]
        before = mark()
        latencies, failures = self._call_for(agents, seconds)
        return {
            "before": before,
            "after": mark(),
            "calls": len(latencies),
            "failures": failures,
            **summary(latencies),
        }

    @staticmethod
    def _call_for(agents, seconds):
        latencies, failures = [], []
        began = time.monotonic()
        until = began + seconds
        number = 0
        while began < until or number < len(agents):
            agent = agents[number % len(agents)]
            number += 1
            try:
                agent.call({}, "ping", body="?")
                latencies.append(time.monotonic() - began)
            except Exception as exc:
                failures.append(f"{type(exc).__name__}: {exc}")
            began = time.monotonic()
        return latencies, failures


def _bound(function, argument):
    return lambda: function(argument)


def _together(functions):
    """Each in a thread, or green thread, of its own, until all have returned."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
