"""The simulated processes that use the bus: they serve, call, notify; they are stopped,
killed, and started again."""

from __future__ import annotations

import functools
import os
import shutil
import typing

import greenlet
import oslo_messaging
from oslo_messaging import transport as oslo_transport

from greenamqp.driver import GreenAMQPDriver
from greenamqp.executor import PoolExecutor
from greenamqp.outbox.directory import Claim
from greenamqp.server import Server
from greenamqp.transport import register_missed_options
from tests.simulation.ledger import LIMITS, SLACK, Arrival, Message
from tests.simulation.plan import CALL_TIMEOUT
from tests.simulation.world import SimHub
from tests.unit import fakes

if typing.TYPE_CHECKING:
    from tests.simulation.run import Run

# How an endpoint may treat a call.
_HOWS = (*("",) * 8, "slow", "late", "raise", "relay")

# For so long an endpoint is too late for its caller.  Seconds.
_TOO_LONG = CALL_TIMEOUT + 2.0


class Cancelled(BaseException):
    """As a library's time-out comes, from outside."""


class Planned(Exception):
    """What an endpoint was asked to raise."""


@functools.cache
def _conf() -> typing.Any:
    conf = fakes.conf(
        idle_timeout=6,
        container_name="simulated",
        default_send_timeout=10,
        # Small windows, so that they matter.
        rpc_server_credit=10,
        notify_server_credit=8,
        reply_link_credit=6,
    )
    register_missed_options(conf)
    return conf


class Program:
    """A process with a transport."""

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name
        #: how often it was started
        self.life = 0
        #: until when it stood still, so that its clock was not looked at
        self.stopped_until = 0.0
        self.hub: SimHub
        self.transport: typing.Any

    @property
    def driver(self) -> typing.Any:
        """Its transport's."""
        return self.transport._driver

    @property
    def client(self) -> typing.Any:
        """Its driver's."""
        return self.driver.client

    def start(self) -> None:
        """Begin a life."""
        run = self.run
        conf = _conf()
        hosts = ",".join(f"{host}:5672" for host in run.plan.hosts)
        url = oslo_messaging.TransportURL.parse(conf, f"amqp://{hosts}/{run.query}")
        self.transport = oslo_transport.RPCTransport(self._make_driver(conf, url))
        self._live()

    def _make_driver(self, conf: typing.Any, url: typing.Any) -> GreenAMQPDriver:
        return GreenAMQPDriver(conf, url, "openstack")

    def _live(self) -> None:
        run = self.run
        self.life += 1
        self.hub = SimHub(run.world, self.name, run.network)
        run.hubs.append(self.hub)
        self.driver.use_hub(self.hub)
        self.hub.go(self.main)

    def pause(self, *seconds: float) -> None:
        """Let one of these times pass for one green thread."""
        chosen = self.run.rng.choice(seconds)
        if chosen:
            self.run.sleep(self.hub, chosen)

    def main(self) -> None:
        """What it does."""

    def crash(self) -> None:
        """Be killed."""
        self.hub.crash()

    def fork(self) -> None:
        """Go on as a child, whose parent ends without a word, as a daemon does: of what
        there was, the transport can be used."""
        hub, outbox = self.hub, self.driver.outbox
        self.driver.forked()
        if outbox is not None:
            outbox.forked()
        hub.forked()
        if any(sock.watch is not None for sock in hub.network.owned()):
            self.run.wrong(f"{self.name}: a child has its parent's connection")
        self.crash()
        self._live()

    def stop(self, seconds: float) -> None:
        """Stand still, as with SIGSTOP."""
        hub, world = self.hub, self.run.world
        hub.freeze(True)
        self.stopped_until = world.clock + seconds

        def go_on() -> None:
            if not hub.dead:
                hub.freeze(False)

        world.call_at(self.stopped_until, go_on)

    def close(self) -> None:
        """Leave in order."""
        self.transport.cleanup()


class _Pool(Server):
    def _make_executor(self) -> PoolExecutor:
        return PoolExecutor(self._hub_of(self.transport), 8)


class _Endpoint:
    """Notes what comes, for one consumer."""

    def __init__(self, program: Serving, consumer: str) -> None:
        self._program = program
        self._consumer = consumer

    def _came(self, number: int) -> None:
        program = self._program
        run = program.run
        run.note(program.name, f"{self._consumer} has {number}")
        run.ledger.came(
            number,
            Arrival(self._consumer, program.name, program.life, run.world.clock),
        )

    @oslo_messaging.expected_exceptions(Planned)
    def echo(self, ctxt: object, value: int, how: str) -> int:
        program = self._program
        self._came(value)
        if how == "slow":
            program.pause(2.0)
        elif how == "late":
            program.pause(_TOO_LONG)
        else:
            program.pause(0.0, 0.0, 0.01, 0.3)
        if how == "raise":
            raise Planned(f"planned {value}")
        if how == "relay":
            return program.relay(value)
        return value

    def note(self, ctxt: object, value: int) -> None:
        self._came(value)

    def deep(self, ctxt: object, value: int) -> int:
        return value

    def info(self, ctxt, publisher, event_type, payload, metadata) -> typing.Any:
        ledger, rng = self._program.run.ledger, self._program.run.rng
        if payload not in ledger.requeued and rng.random() < 0.05:
            ledger.requeued.add(payload)
            return oslo_messaging.NotificationResult.REQUEUE
        self._came(payload)
        self._program.pause(0.0, 0.0, 0.05, 0.5)
        return None


class _Batches(_Endpoint):
    def info(self, messages) -> None:  # type: ignore[override]
        for message in messages:
            self._came(message["payload"])
        self._program.pause(0.0, 0.5)


class Serving(Program):
    """It has endpoints."""

    #: since when it listens; infinite: it does not yet
    since = float("inf")

    def main(self) -> None:
        """Listen for all there is."""
        life = self.life
        self.since = float("inf")
        self.server = server = _Pool(self.transport)
        name = self.name
        topics = [oslo_messaging.Target(topic="news")]
        work = oslo_messaging.Target(topic="work", server=name)
        server.listen(work, [_Endpoint(self, "work")])
        server.listen(
            oslo_messaging.Target(topic="deep", server=name), [_Endpoint(self, "deep")]
        )
        server.listen_for_notifications(
            topics,
            [_Endpoint(self, "news")],
            priorities=["info"],
            allow_requeue=True,
        )
        if self.run.has_pools:
            server.listen_for_notifications(
                topics,
                [_Endpoint(self, "pool")],
                priorities=["info"],
                pool="pool",
                allow_requeue=True,
            )
        server.listen_for_notifications(
            [oslo_messaging.Target(topic="bulk")],
            [_Batches(self, "bulk")],
            priorities=["info"],
            batch_size=4,
            batch_timeout=0.3,
        )
        server.start()
        if life == self.life:
            self.since = self.run.world.clock

    def relay(self, value: int) -> int:
        """Ask another server, or this one."""
        return self.driver.send(
            oslo_messaging.Target(topic="deep"),
            {},
            {"method": "deep", "args": {"value": value}},
            wait_for_reply=True,
            timeout=CALL_TIMEOUT - 1.0,
        )

    def crash(self) -> None:
        self.run.ledger.crashes.append(self.run.world.clock)
        self.since = float("inf")
        super().crash()

    def close(self) -> None:
        self.server.stop()
        self.server.wait()
        super().close()


class Calling(Program):
    """It has callers, which may be killed."""

    def __init__(self, run: Run, name: str, actors: typing.Sequence[str]) -> None:
        super().__init__(run, name)
        self._actors = actors
        #: who is in the middle of something
        self.at_work: dict[greenlet.greenlet, Message] = {}
        #: who has not come to the end of the run
        self.busy = 0

    def main(self) -> None:
        """Begin with all of it."""
        self.busy = len(self._actors)
        self.at_work = {}
        for kind in self._actors:
            self.hub.go(self._act, kind)
        if self.run.plan.kills:
            self._kill_later()

    def crash(self) -> None:
        self.busy = 0
        super().crash()

    # -- kills

    def _kill_later(self) -> None:
        run, hub = self.run, self.hub
        pause = run.rng.expovariate(1.0 / run.plan.kills)
        if run.world.clock + pause < run.end:
            hub.call_at(
                run.world.clock + pause,
                lambda: hub._call_soon(self._kill),
            )

    def _kill(self) -> None:
        self._kill_later()
        victims = list(self.at_work)
        if victims:
            victim = self.run.rng.choice(victims)
            error = self.run.rng.choice((greenlet.GreenletExit, Cancelled))
            self.run.note(self.name, f"{self.at_work[victim].number} is killed")
            victim.throw(error)

    # -- what callers do

    def _act(self, kind: str) -> None:
        """Do one thing after another, until the time is over."""
        run, hub = self.run, self.hub
        me = greenlet.getcurrent()
        while True:
            run.sleep(hub, self._pause())
            if run.world.clock >= run.end:
                break
            how = run.rng.choice(_HOWS) if kind == "call" else ""
            message = run.ledger.new(kind, self.name, run.world.clock, how)
            self.at_work[me] = message
            run.note(self.name, f"{kind} {message.number} {how} begins")
            try:
                self._once(message)
            except (greenlet.GreenletExit, Cancelled):
                if hub.dead:
                    raise
            except oslo_messaging.MessagingException as exc:
                self._failed(message, exc)
            else:
                message.fate = "taken"
                run.note(self.name, f"{message.number} is done")
                # Who stood still finds the reply and the deadline together.
                stood_still = message.began < self.stopped_until
                if how == "raise" or how == "late" and not stood_still:
                    run.wrong(f"call {message.number} has a reply")
            finally:
                self.at_work.pop(me, None)
            self._look_at_the_clock(message)
        self.busy -= 1

    def _pause(self) -> float:
        """Before the next thing.  Each does one in the last seconds: what stays broken
        is found then."""
        run = self.run
        pause = 0.2 + 3.0 * run.rng.random()
        now = run.world.clock
        in_trouble, in_calm = run.plan.pace
        if now < run.calm_from:
            return pause * in_trouble
        return min(pause * in_calm, max(pause, run.end - pause - now))

    def _failed(self, message: Message, exc: Exception) -> None:
        run, number = self.run, message.number
        message.fate = "failed"
        run.note(self.name, f"{number} failed: {exc}")
        in_order = (
            message.how == "late"
            and isinstance(exc, oslo_messaging.MessagingTimeout)
            or message.how == "raise"
            and f"planned {number}" in str(exc)
        )
        if message.began > run.peace_from and not in_order:
            run.wrong(f"{message.kind} {number} failed in peace: {exc}")

    def _look_at_the_clock(self, message: Message) -> None:
        limit, now = LIMITS[message.kind], self.run.world.clock
        if limit is not None:
            latest = max(message.began + limit, self.stopped_until) + SLACK
            if now > latest:
                self.run.wrong(
                    f"{message.kind} {message.number} took {now - message.began:.3f} s,"
                    f" with a limit of {limit:g} s"
                )

    def _once(self, message: Message) -> None:
        number, kind = message.number, message.kind
        if kind in ("notify", "insist", "bulk", "keep"):
            topic = "bulk.info" if kind == "bulk" else "news.info"
            self.driver.send_notification(
                oslo_messaging.Target(topic=topic),
                {},
                {
                    "event_type": "e",
                    "payload": number,
                    "publisher_id": "p",
                    "priority": "INFO",
                    "message_id": str(number),
                    "timestamp": "",
                },
                2.0,
                3 if kind in ("notify", "bulk") else -1,
            )
            return
        target = oslo_messaging.Target(topic="work", fanout=kind == "fanout" or None)
        args: dict[str, typing.Any] = {"value": number}
        if kind != "call":
            self.driver.send(target, {}, {"method": "note", "args": args})
            return
        args["how"] = message.how
        request = {"method": "echo", "args": args}
        if self.run.rng.random() < 0.2:
            target = target(server=self.run.rng.choice(self.run.server_names))
        reply = self.driver.send(
            target, {}, request, wait_for_reply=True, timeout=CALL_TIMEOUT
        )
        if reply != number:
            self.run.wrong(f"call {number} got the reply of {reply}")


class Keeping(Calling):
    """Its notifications wait on disk."""

    def _make_driver(self, conf: typing.Any, url: typing.Any) -> GreenAMQPDriver:
        outbox = os.path.join(self.run.disk(), "outbox")
        # For this one alone: each time the options are read anew.
        conf.set_override("notify_outbox", outbox, "oslo_messaging_amqp")
        driver = super()._make_driver(conf, url)
        conf.clear_override("notify_outbox", "oslo_messaging_amqp")
        return driver

    def crash(self) -> None:
        """The files stay, as they are; the memory is gone."""
        claim = self._claim()
        super().crash()
        self._leave_file(claim)

    def fork(self) -> None:
        claim = self._claim()
        super().fork()
        self._leave_file(claim)

    def _claim(self) -> Claim | None:
        outbox = self.driver.outbox
        return outbox._disk._claim if outbox is not None else None

    def _leave_file(self, claim: Claim | None) -> None:
        if claim is None:
            return
        # SQLite of this process would go on with what it has in memory: so the file
        # that is found has another name.
        rng, path = self.run.rng, claim.path
        left = f"{path.removesuffix('.db')}-{self.life}.db"
        if os.path.exists(path):
            shutil.copyfile(path, left)
            if os.path.exists(f"{path}-wal"):
                shutil.copyfile(f"{path}-wal", f"{left}-wal")
                with open(f"{left}-wal", "ab") as log:
                    # What it was about to write, as far as that came.
                    log.write(rng.randbytes(rng.choice((0, 100, 5000))))
            os.utime(left, (self.run.world.clock,) * 2)
        claim.remove()

    @property
    def waiting(self) -> int:
        """How many notifications are on its disk."""
        outbox = self.driver.outbox
        return outbox.describe()["waiting"] if outbox is not None else 0
