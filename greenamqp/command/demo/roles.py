# SPDX-License-Identifier: Apache-2.0
"""The processes that do the demo's work, with stock oslo.messaging throughout.

One process runs one role: a worker of a notification agent, a publisher of one
service's notifications, the RPC server, an RPC client, or the inspector that looks
for leftovers at the end. The parent (``orchestrate``) starts each with the hub's
monkey patching done before anything else is imported, and talks to it in JSON lines:

    role -> parent   ready, report (what it did since the last one), finished,
                     did (a command has been carried out)
    parent -> role   the name of a method: start, pause, mark, stop

The code uses ``threading`` alone; under eventlet and gevent its threads are green.
Nothing here may be used outside a process of its own.
"""

import collections
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
import typing
import uuid
from collections.abc import Iterator

import oslo_messaging
from oslo_config import cfg

from greenamqp import options
from greenamqp.command.demo import plan, workload

# A message, a payload, a context: what JSON calls an object.
_Object = dict[str, typing.Any]

#: How often a role tells its parent what it did, seconds.
_REPORT_EVERY = 0.2

#: What RPC messages carry besides their arguments, to have a usual size.
_RPC_TEXT = "x" * 200

#: The stock server starts a thread per message until it has this many per target;
#: oslo.messaging's default of 64 would be 3,200 native threads for 50 targets.
_WORKERS_PER_TARGET = 4

#: The key under which a notification's payload says which one it is. It cannot be
#: in the context: a Notifier drops the keys that are none of oslo.context's.
_TAG = "demo"

#: How long a process's own queues outlive it on the bus, if it was killed, seconds.
_TRANSIENT = 60


class Channel:
    """The role's end of the connection to its parent."""

    def __init__(self, fd: int):
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()

    def send(self, kind: str, **fields: object) -> None:
        line = json.dumps({"type": kind, **fields}).encode() + b"\n"
        with self._lock:
            self._socket.sendall(line)

    def commands(self) -> Iterator[str]:
        """Yield what the parent says until it closes its end."""
        heard = b""
        while data := self._socket.recv(4096):
            *lines, heard = (heard + data).split(b"\n")
            for line in lines:
                yield json.loads(line)["type"]


class Account:
    """What the role did since it last told its parent. Any thread may use it."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._sent: collections.Counter[str] = collections.Counter()
        self._failed: dict[str, list[int]] = {}
        self._got: dict[tuple[str, str], list[int]] = {}
        self._latencies: dict[str, list[float]] = {}
        self._events: collections.Counter[str] = collections.Counter()
        self._empty = True

    def sent(self, stream: str) -> None:
        with self._lock:
            self._sent[stream] += 1
            self._empty = False

    def failed(self, stream: str, number: int, why: str) -> None:
        with self._lock:
            self._sent[stream] += 1
            self._failed.setdefault(stream, []).append(number)
            self._events[f"{stream.split('/')[0]} failed: {why}"] += 1
            self._empty = False

    def got(self, stream: str, receiver: str, number: int) -> None:
        with self._lock:
            self._got.setdefault((stream, receiver), []).append(number)
            self._empty = False

    def took(self, what: str, seconds: float) -> None:
        with self._lock:
            self._latencies.setdefault(what, []).append(seconds)
            self._empty = False

    def event(self, what: str) -> None:
        """Count something that should not have happened."""
        with self._lock:
            self._events[what] += 1
            self._empty = False

    def finish(self) -> None:
        """Tell the parent all there is to tell, and that this was all."""
        self.report()
        self._channel.send("finished")

    def report(self) -> None:
        """Tell the parent, if there is anything to tell."""
        # Taken before the counts are, so that reports leave in their order.
        with self._send_lock:
            with self._lock:
                if self._empty:
                    return
                fields = {
                    "sent": [
                        (stream, count, self._failed.get(stream, []))
                        for stream, count in self._sent.items()
                    ],
                    "got": [
                        (stream, receiver, numbers)
                        for (stream, receiver), numbers in self._got.items()
                    ],
                    "latencies": self._latencies,
                    "events": dict(self._events),
                }
                self._clear()
            self._channel.send("report", **fields)


class Pacer:
    """Says when the next of many operations is due, for any number of threads.

    The times are fixed by the rate alone, so a delay is caught up afterwards. With
    rate 0 each is due at once.
    """

    def __init__(self, rate: float):
        self._rate = rate
        self._slots = itertools.count()
        self._stopped = threading.Event()
        self._started = time.monotonic()

    def wait(self) -> bool:
        """Wait until the next operation is due; False once stopped."""
        if self._stopped.is_set():
            return False
        if self._rate:
            due = self._started + next(self._slots) / self._rate
            return not self._stopped.wait(max(0.0, due - time.monotonic()))
        return True

    def stop(self) -> None:
        self._stopped.set()


class Role:
    """A role's life: prepare, [start, pause, mark], stop; from the main thread."""

    def __init__(self, name: str, run: plan.Run, account: Account):
        self.name = name
        self.run = run
        self.account = account
        self._threads: list[threading.Thread] = []

    def prepare(self) -> None:
        """Connect and subscribe. When it returns the role is ready."""

    def start(self) -> None:
        """Begin to send."""

    def pause(self) -> None:
        """Send no more; what is under way has ended when it returns."""

    def mark(self) -> None:
        """Send markers after all that was sent before."""

    def stop(self) -> None:
        """Finish what is under way and release everything."""

    def executor(self) -> str:
        """The stock executor for this process's hub: under gevent the threads of
        ``threading`` are greenlets."""
        return "eventlet" if self.run.hub == "eventlet" else "threading"

    def conf(self, control_exchange: str) -> cfg.ConfigOpts:
        """The process's configuration, as a service has it that has no file."""
        oslo_messaging.set_transport_defaults(self.run.exchange(control_exchange))
        # The global one: oslo.messaging 18 registers its tracing options nowhere
        # else, and its RPC client does not work without them.
        cfg.CONF([], project="greenamqp-demo", default_config_files=[])
        # Who looks on is not helped by patience with what does not get better.
        options.register(cfg.CONF)
        cfg.CONF.set_override("fail_fast", True, options.GROUP.name)
        if self.run.suffix:
            # On RabbitMQ, what a process had for itself outlives one that was killed.
            _ = options.RabbitOptions(cfg.CONF).values
            for group in (options.GROUP.name, options.RABBIT_GROUP):
                cfg.CONF.set_override("rabbit_transient_queues_ttl", _TRANSIENT, group)
        return cfg.CONF

    def spawn(self, target: typing.Callable[[], object], count: int) -> None:
        for _ in range(count):
            thread = threading.Thread(target=target, daemon=True)
            self._threads.append(thread)
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def is_ours(self, run_id: object) -> bool:
        """False, and counted, if a message is of another run."""
        if run_id == self.run.id:
            return True
        self.account.event("message of another run")
        return False


def stop_servers(servers: typing.Sequence[typing.Any]) -> None:
    """Stop oslo.messaging servers and wait until each has dispatched what it got."""
    for server in servers:
        server.stop()
    # All at once: the threading executor's workers look up once a second only, so
    # that one after the other would take as many seconds as there are servers.
    waits = [threading.Thread(target=server.wait) for server in servers]
    for wait in waits:
        wait.start()
    for wait in waits:
        wait.join()


class NotificationEndpoint:
    """Tells the role what a listener of one pool gets."""

    def __init__(self, role: "Agent", pool: str, exchange: str | None):
        self._role = role
        self._pool = pool
        #: The only exchange this endpoint's listener listens to; None for all.
        self._exchange = exchange

    def info(self, *notification: typing.Any) -> None:
        self._tell("info", *notification)

    def error(self, *notification: typing.Any) -> None:
        self._tell("error", *notification)

    def _tell(
        self,
        priority: str,
        _ctxt: _Object,
        _publisher_id: str,
        _event_type: str,
        payload: _Object,
        _metadata: _Object,
    ) -> None:
        self._role.notified(self._pool, self._exchange, priority, payload)


class Agent(Role):
    """A worker of a pool, listening on the exchanges of all services.

    The pool "metering" has one listener with a target for each exchange, as an
    agent has it. "audit" has a listener for each exchange, so that it knows, as the
    other cannot, on which one a message came.
    """

    def __init__(self, name: str, run: plan.Run, account: Account, pool: str):
        super().__init__(name, run, account)
        #: The pools to join, and whether with a listener for each exchange.
        self._pools = {pool: pool == "audit"}
        self._listeners: list[typing.Any] = []

    def prepare(self) -> None:
        self._transport = oslo_messaging.get_notification_transport(
            self.conf("openstack"), url=self.run.url
        )
        for pool, apart in self._pools.items():
            if apart and self.run.apart:
                for service in workload.SERVICES:
                    self._listen(pool, [service], service)
            else:
                self._listen(pool, list(workload.SERVICES), None)

    def _listen(self, pool: str, services: list[str], exchange: str | None) -> None:
        listener = oslo_messaging.get_notification_listener(
            self._transport,
            [
                oslo_messaging.Target(
                    exchange=self.run.exchange(service),
                    topic=self.run.name(workload.TOPIC),
                )
                for service in services
            ],
            [NotificationEndpoint(self, pool, exchange)],
            executor=self.executor(),
            pool=self.run.name(pool),
        )
        listener.start(override_pool_size=_WORKERS_PER_TARGET)
        self._listeners.append(listener)

    def notified(
        self, pool: str, exchange: str | None, priority: str, payload: _Object
    ) -> None:
        now = time.monotonic()
        tag = payload.get(_TAG, {})
        if not self.is_ours(tag.get("run")):
            return
        body = {key: value for key, value in payload.items() if key != _TAG}
        service = tag["service"]
        self.account.got(plan.notify_stream(service), pool, tag["number"])
        self.account.took(f"notify/{service}", now - tag["sent"])
        if exchange not in (None, service):
            self.account.event(f"notification of {service} on exchange {exchange}")
        if workload.checksum(body) != tag["checksum"]:
            self.account.event("notification altered on its way")

    def stop(self) -> None:
        stop_servers(self._listeners)
        self._transport.cleanup()


class Inspector(Agent):
    """Joins every pool after its workers have left, and reads to the end.

    What a worker got but did not acknowledge, and what was doubled and not read
    yet, waits in the pools now. The publishers send a marker behind it: when each
    marker has come there is nothing left, without having waited for a time.
    """

    def __init__(self, name: str, run: plan.Run, account: Account):
        super().__init__(name, run, account, pool="")
        self._pools = dict.fromkeys(plan.POOLS, True)
        self._lock = threading.Lock()
        self._due = {
            (pool, service, priority)
            for pool in plan.POOLS
            for service in workload.SERVICES
            for priority in workload.PRIORITIES
        }

    def notified(
        self, pool: str, exchange: str | None, priority: str, payload: _Object
    ) -> None:
        tag = payload.get(_TAG, {})
        if not self.is_ours(tag.get("run")):
            return
        if "mark" in tag:
            with self._lock:
                self._due.discard((pool, exchange or tag["service"], priority))
                all_seen = not self._due
            if all_seen:
                self.account.finish()
        else:
            stream = plan.notify_stream(tag["service"])
            self.account.got(stream, pool, tag["number"])
            self.account.event(f"left over in pool {pool}")


class _FailedSends(logging.Handler):
    """Notices that a Notifier could not send: it logs that and returns normally."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._failed = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        why = record.exc_info[1] if record.exc_info else None
        self._failed.why = type(why).__name__ if why else record.getMessage()

    def take(self) -> str | None:
        """Why the last send in this thread failed; None if it did not."""
        why = getattr(self._failed, "why", None)
        self._failed.why = None
        return why


class Sender(Role):
    """Sends at a pace, from :meth:`start` to :meth:`pause`."""

    _pacer: Pacer
    _transport: oslo_messaging.Transport

    def pause(self) -> None:
        self._pacer.stop()
        self.join()

    def stop(self) -> None:
        self._transport.cleanup()


class Publisher(Sender):
    """Publishes one service's notifications on that service's control exchange."""

    def __init__(self, name: str, run: plan.Run, account: Account, service: str):
        super().__init__(name, run, account)
        self._service = service
        self._stream = plan.notify_stream(service)
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def prepare(self) -> None:
        samples = []
        if self.run.samples and self._service == "nova":
            samples = workload.load_samples(self.run.samples)
        self._bodies = iter(
            workload.Notifications(self._service, self.run.seed, samples)
        )
        self._failures = _FailedSends()
        logging.getLogger("oslo_messaging.notify.messaging").addHandler(self._failures)
        self._transport = oslo_messaging.get_notification_transport(
            self.conf(self._service), url=self.run.url
        )
        self._notifier = oslo_messaging.Notifier(
            self._transport,
            driver="messagingv2",
            topics=[self.run.name(workload.TOPIC)],
        )

    def start(self) -> None:
        self._pacer = Pacer(self.run.rate * plan.SHARES[self._service])
        self.spawn(self._publish, 1 if self.run.rate else plan.UNPACED_SENDERS)

    def _publish(self) -> None:
        while self._pacer.wait():
            with self._lock:
                body, checksum = next(self._bodies)
                number = next(self._numbers)
            why = self._send(
                body,
                {
                    "run": self.run.id,
                    "service": self._service,
                    "number": number,
                    "checksum": checksum,
                    # The same clock in all processes of a machine.
                    "sent": time.monotonic(),
                },
            )
            if why is None:
                self.account.sent(self._stream)
            else:
                self.account.failed(self._stream, number, why)

    def _send(self, body: workload.Notification, tag: _Object) -> str | None:
        """Send one; None, or why it failed."""
        notifier = self._notifier.prepare(publisher_id=body.publisher_id)
        payload = {**body.payload, _TAG: tag}
        try:
            getattr(notifier, body.priority)({}, body.event_type, payload)
        except Exception as exc:
            return type(exc).__name__
        return self._failures.take()

    def mark(self) -> None:
        tag = {"run": self.run.id, "mark": True, "service": self._service}
        for priority in workload.PRIORITIES:
            body = workload.Notification("demo.end", priority, self.name, {})
            why = self._send(body, tag)
            if why is not None:
                self.account.event(f"marker not sent: {why}")


class RPCEndpoint:
    """The methods of one of the RPC server's targets."""

    def __init__(self, role: Role, topic: str, server: str):
        self._role = role
        self._topic = topic
        self._server = server

    def _ours(self, ctxt: _Object, server: str | None) -> bool:
        if server not in (None, self._server):
            self._role.account.event(f"message for {server} at {self._server}")
        return self._role.is_ours(ctxt.get("demo_run"))

    def echo(
        self,
        ctxt: _Object,
        client: str,
        number: int,
        server: str | None,
        text: str,
    ) -> _Object:
        if self._ours(ctxt, server):
            self._role.account.got(plan.call_stream(client), plan.SERVERS, number)
        return {"number": number, "server": self._server, "text": text}

    def note(
        self,
        ctxt: _Object,
        client: str,
        number: int,
        server: str | None,
        text: str,
    ) -> None:
        if self._ours(ctxt, server):
            self._role.account.got(plan.cast_stream(client), plan.SERVERS, number)

    def refresh(self, ctxt: _Object, client: str, number: int, text: str) -> None:
        if self._ours(ctxt, None):
            stream = plan.fanout_stream(client, self._topic)
            self._role.account.got(stream, self._server, number)


class Server(Role):
    """An RPC server for every topic and server name, all on one connection."""

    def prepare(self) -> None:
        self._transport = oslo_messaging.get_rpc_transport(
            self.conf("openstack"), url=self.run.url
        )
        self._servers = []
        for topic in plan.RPC_TOPICS:
            for server in plan.server_names():
                stock = oslo_messaging.get_rpc_server(
                    self._transport,
                    oslo_messaging.Target(topic=self.run.name(topic), server=server),
                    [RPCEndpoint(self, topic, server)],
                    executor=self.executor(),
                )
                stock.start(override_pool_size=_WORKERS_PER_TARGET)
                self._servers.append(stock)

    def stop(self) -> None:
        stop_servers(self._servers)
        self._transport.cleanup()


class Client(Sender):
    """Makes calls, casts and fanout casts to all topics."""

    def __init__(self, name: str, run: plan.Run, account: Account):
        super().__init__(name, run, account)
        self._lock = threading.Lock()
        self._operations = itertools.count()
        self._numbers: collections.Counter[str] = collections.Counter()

    def prepare(self) -> None:
        self._transport = oslo_messaging.get_rpc_transport(
            self.conf("openstack"), url=self.run.url
        )
        self._clients = {
            topic: oslo_messaging.get_rpc_client(
                self._transport,
                oslo_messaging.Target(topic=self.run.name(topic)),
                timeout=plan.CALL_TIMEOUT,
            )
            for topic in plan.RPC_TOPICS
        }

    def start(self) -> None:
        self._pacer = Pacer(self.run.rate * plan.RPC_SHARE / plan.CLIENTS)
        self.spawn(self._work, plan.CALLERS)

    def _work(self) -> None:
        while self._pacer.wait():
            with self._lock:
                operation = next(self._operations)
                kind = plan.RPC_MIX[operation % len(plan.RPC_MIX)]
                turn = operation // len(plan.RPC_MIX)
                topic = plan.RPC_TOPICS[turn % len(plan.RPC_TOPICS)]
                # Every other one to a server of its own, the others to any.
                names = plan.server_names()
                server = None
                if operation % 2:
                    server = names[turn // len(plan.RPC_TOPICS) % len(names)]
                stream = {
                    "call": plan.call_stream(self.name),
                    "cast": plan.cast_stream(self.name),
                    "fanout": plan.fanout_stream(self.name, topic),
                }[kind]
                number = self._numbers[stream]
                self._numbers[stream] += 1
            started = time.monotonic()
            try:
                self._operate(kind, topic, server, number)
            except Exception as exc:
                self.account.failed(stream, number, type(exc).__name__)
            else:
                self.account.sent(stream)
                self.account.took(kind, time.monotonic() - started)

    def _operate(self, kind: str, topic: str, server: str | None, number: int) -> None:
        ctxt = {"request_id": f"req-{uuid.uuid4()}", "demo_run": self.run.id}
        client = self._clients[topic]
        arguments = {"client": self.name, "number": number, "text": _RPC_TEXT}
        if kind == "fanout":
            client.prepare(fanout=True).cast(ctxt, "refresh", **arguments)
            return
        if server is not None:
            client = client.prepare(server=server)
        if kind == "cast":
            client.cast(ctxt, "note", server=server, **arguments)
            return
        reply = client.call(ctxt, "echo", server=server, **arguments)
        if (
            reply["number"] != number
            or reply["text"] != _RPC_TEXT
            or server not in (None, reply["server"])
        ):
            self.account.event("wrong reply to a call")


def make(name: str, kind: str, run: plan.Run, account: Account, of: str) -> Role:
    """The role ``kind``; ``of`` is a publisher's service or an agent's pool."""
    if kind == "agent":
        return Agent(name, run, account, of)
    if kind == "publisher":
        return Publisher(name, run, account, of)
    roles = {"server": Server, "client": Client, "inspector": Inspector}
    return roles[kind](name, run, account)


def main() -> None:
    """Run the role that the process's arguments describe, until it is told to stop."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    spec, fd = json.loads(sys.argv[1]), int(sys.argv[2])
    channel = Channel(fd)
    account = Account(channel)
    run = plan.Run(**spec["run"])
    role = make(spec["name"], spec["kind"], run, account, spec["of"])
    try:
        role.prepare()
    except (NotImplementedError, oslo_messaging.MessagingException) as exc:
        # What the bus cannot do or refuses; the text says it all.
        sys.exit(f"{type(exc).__name__}: {exc}")
    channel.send("ready")

    reporter = Pacer(1 / _REPORT_EVERY)

    def report() -> None:
        while reporter.wait():
            account.report()

    threading.Thread(target=report, daemon=True).start()
    for command in channel.commands():
        # Each is the name of a method; the parent hears when it has returned.
        getattr(role, command)()
        account.report()
        channel.send("did", command=command)
        if command == "stop":
            return
    # The parent is gone; nothing is worth finishing.
    os._exit(1)
